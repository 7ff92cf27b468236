//! What a credential for the management API is good for. Somebody who is signed in may do all that they may.
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Scope {
    /// To look.
    #[serde(rename = "connections:read")]
    Read,
    /// To change.
    #[serde(rename = "connections:write")]
    Write,
    /// To get tokens for routes.
    #[serde(rename = "connections:token")]
    Token,
    /// To see who did what.
    #[serde(rename = "connections:audit")]
    Audit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not one of connections:read, connections:write, connections:token, connections:audit")]
pub struct UnknownScope;

impl Scope {
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Token, Self::Audit];

    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "connections:read",
            Self::Write => "connections:write",
            Self::Token => "connections:token",
            Self::Audit => "connections:audit",
        }
    }
}

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(written: &str) -> Result<Self, UnknownScope> {
        Self::ALL.into_iter().find(|scope| scope.name() == written).ok_or(UnknownScope)
    }
}
