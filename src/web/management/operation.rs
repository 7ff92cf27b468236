//! One row of the table that both the router and the OpenAPI document are made from: what can be asked, and who answers it.
use std::pin::Pin;

use axum::http::{Method, StatusCode};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::call::Call;
use super::condition;
use super::problem::Problem;
use crate::api::managed::scope::Scope;

/// What can be done with something.
pub struct Operation {
    pub method: Method,
    /// Below [`ROOT`](super::ROOT).
    pub path: &'static str,
    /// One name for it, unique.
    pub name: &'static str,
    pub summary: &'static str,
    pub access: Access,
    pub query: Option<Shape>,
    pub body: Option<Shape>,
    pub status: StatusCode,
    pub answer: Option<Shape>,
    /// Whether what it is about has versions.
    pub versioned: bool,
    pub run: Run,
}

/// Who may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Whoever is signed in, and who has a token with this scope.
    Scope(Scope),
    /// Whoever is signed in.
    Session,
}

/// What something looks like.
pub type Shape = fn(&mut SchemaGenerator) -> Schema;

/// The shape of a type.
pub fn of<T: JsonSchema>(schemas: &mut SchemaGenerator) -> Schema {
    schemas.subschema_for::<T>()
}

pub type Run = for<'a> fn(&'a Call<'a>) -> Running<'a>;
pub type Running<'a> = Pin<Box<dyn Future<Output = Result<Reply, Problem>> + Send + 'a>>;

/// What was done.
#[derive(Clone, Serialize, Deserialize)]
pub struct Reply {
    pub document: Option<Value>,
    pub version: Option<u64>,
    /// Where it is now.
    pub location: Option<String>,
}

// === impl Operation ===

impl Operation {
    pub fn is_change(&self) -> bool {
        self.method != Method::GET
    }

    /// Names in the path.
    pub fn parameters(&self) -> impl Iterator<Item = &'static str> {
        self.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
    }
}

// === impl Reply ===

impl Reply {
    pub fn of(document: &impl Serialize) -> Result<Self, Problem> {
        let document = serde_json::to_value(document).map_err(|_| Problem::unavailable())?;
        Ok(Self { document: Some(document), version: None, location: None })
    }

    pub fn nothing() -> Self {
        Self { document: None, version: None, location: None }
    }

    pub fn version(self, version: u64) -> Self {
        Self { version: Some(version), ..self }
    }

    pub fn at(self, location: String) -> Self {
        Self { location: Some(location), ..self }
    }

    pub fn tag(&self) -> Option<String> {
        self.version.map(condition::tag)
    }
}
