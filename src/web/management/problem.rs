//! What is wrong with a request, as RFC 9457 has it.
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use crate::api::managed::Refused;

/// Why there is no answer.
#[derive(Debug)]
pub struct Problem {
    kind: Kind,
    detail: String,
    errors: Vec<Fault>,
    challenge: Option<HeaderValue>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Malformed,
    Unauthorized,
    Forged,
    Forbidden,
    InsufficientScope,
    NotFound,
    MethodNotAllowed,
    Conflict,
    Stale,
    TooLarge,
    UnsupportedMediaType,
    Invalid,
    Unusable,
    KeyReused,
    TooManyRequests,
    Unavailable,
}

/// What is wrong with one thing that was sent.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Error")]
pub struct Fault {
    /// A member of the body, as a JSON pointer in a fragment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pointer: Option<String>,
    /// A parameter of the query.
    #[serde(skip_serializing_if = "Option::is_none")]
    parameter: Option<&'static str>,
    detail: String,
}

/// As it is sent.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Problem")]
pub struct Document<'a> {
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "<[Fault]>::is_empty")]
    errors: &'a [Fault],
    /// As in the log of the gateway.
    request_id: &'a str,
}

// === impl Kind ===

impl Kind {
    fn status(self) -> StatusCode {
        match self {
            Self::Malformed => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forged | Self::Forbidden | Self::InsufficientScope => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict => StatusCode::CONFLICT,
            Self::Stale => StatusCode::PRECONDITION_FAILED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Invalid | Self::Unusable | Self::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The last part of its type, and its title.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Malformed => ("malformed", "The request cannot be read"),
            Self::Unauthorized => ("unauthorized", "Nobody is signed in"),
            Self::Forged => ("forged", "This has to come from a page of this origin"),
            Self::Forbidden => ("forbidden", "You may not do this"),
            Self::InsufficientScope => ("insufficient-scope", "The token is not good for this"),
            Self::NotFound => ("not-found", "There is nothing here"),
            Self::MethodNotAllowed => ("method-not-allowed", "This cannot be done with it"),
            Self::Conflict => ("conflict", "Something stands against it"),
            Self::Stale => ("stale", "It has changed meanwhile"),
            Self::TooLarge => ("too-large", "The body is too long"),
            Self::UnsupportedMediaType => ("unsupported-media-type", "The body has to be JSON"),
            Self::Invalid => ("invalid", "Something that was sent is not valid"),
            Self::Unusable => ("unusable", "The MCP server cannot be used"),
            Self::KeyReused => ("idempotency-key-reused", "The key was used for another request"),
            Self::TooManyRequests => ("too-many-requests", "You have asked too often"),
            Self::Unavailable => ("unavailable", "Please try again in a moment"),
        }
    }

    fn retry_after(self) -> Option<HeaderValue> {
        match self {
            Self::Unavailable => Some(HeaderValue::from_static("2")),
            Self::TooManyRequests => Some(HeaderValue::from_static("60")),
            _ => None,
        }
    }
}

// === impl Problem ===

impl Problem {
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), errors: Vec::new(), challenge: None }
    }

    /// A member of the body is not as it has to be. `pointer`: with dots, empty for all of it.
    pub fn of_member(pointer: &str, detail: String) -> Self {
        let pointer = match pointer {
            "" => "#".to_owned(),
            member => format!("#/{}", member.replace('.', "/")),
        };
        let fault = Fault { pointer: Some(pointer), parameter: None, detail: detail.clone() };
        Self { errors: vec![fault], ..Self::new(Kind::Invalid, detail) }
    }

    pub fn of_parameter(parameter: &'static str, detail: &str) -> Self {
        let fault = Fault { pointer: None, parameter: Some(parameter), detail: detail.to_owned() };
        Self { errors: vec![fault], ..Self::new(Kind::Malformed, format!("{parameter} {detail}")) }
    }

    pub fn challenged(self, challenge: &str) -> Self {
        Self { challenge: HeaderValue::from_str(challenge).ok(), ..self }
    }

    pub fn nothing() -> Self {
        Self::new(Kind::NotFound, "There is nothing of that name, or not for you.")
    }

    pub fn unavailable() -> Self {
        Self::new(Kind::Unavailable, "The store cannot be reached.")
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where nobody has said which version they mean, none is stale: somebody else was faster.
    pub fn unconditional(self) -> Self {
        match self.kind {
            Kind::Stale => Self { kind: Kind::Conflict, ..self },
            _ => self,
        }
    }

    pub fn into_response(self, request_id: &str) -> Response {
        let (name, title) = self.kind.words();
        let status = self.kind.status();
        let document = Document {
            kind: format!("urn:postern:problem:{name}"),
            title,
            status: status.as_u16(),
            detail: &self.detail,
            errors: &self.errors,
            request_id,
        };
        let mut response = (status, axum::Json(document)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.extend(self.kind.retry_after().map(|seconds| (header::RETRY_AFTER, seconds)));
        headers.extend(self.challenge.map(|challenge| (header::WWW_AUTHENTICATE, challenge)));
        response
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::NotFound => Self::nothing(),
            Refused::Forbidden(why) => Self::new(Kind::Forbidden, why),
            Refused::Invalid(member, why) => Self::of_member(member, why),
            Refused::Conflict(why) => Self::new(Kind::Conflict, why),
            Refused::Stale => Self::new(Kind::Stale, "It is another version by now: get it again."),
            Refused::Unusable(why) => Self::new(Kind::Unusable, why),
            Refused::Unavailable => Self::unavailable(),
        }
    }
}
