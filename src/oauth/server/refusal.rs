//! The errors of our OAuth endpoints, as RFC 6749 §5.2, RFC 7591 §3.2.2 and RFC 8707 §2 name them.
use http::StatusCode;

/// An error answer of an OAuth endpoint: a registered code and a sentence for the developer of the client.
/// The sentence is ours and fixed, so it carries neither secrets nor characters that need escaping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {description}")]
pub struct Refusal {
    pub code: &'static str,
    pub description: &'static str,
}

// === impl Refusal ===

impl Refusal {
    const fn new(code: &'static str, description: &'static str) -> Self {
        Self { code, description }
    }
    pub const fn invalid_request(description: &'static str) -> Self {
        Self::new("invalid_request", description)
    }
    pub const fn invalid_client(description: &'static str) -> Self {
        Self::new("invalid_client", description)
    }
    pub const fn invalid_grant(description: &'static str) -> Self {
        Self::new("invalid_grant", description)
    }
    pub const fn invalid_target(description: &'static str) -> Self {
        Self::new("invalid_target", description)
    }
    pub const fn invalid_scope(description: &'static str) -> Self {
        Self::new("invalid_scope", description)
    }
    pub const fn invalid_redirect_uri(description: &'static str) -> Self {
        Self::new("invalid_redirect_uri", description)
    }
    pub const fn invalid_client_metadata(description: &'static str) -> Self {
        Self::new("invalid_client_metadata", description)
    }
    pub const fn unsupported_response_type(description: &'static str) -> Self {
        Self::new("unsupported_response_type", description)
    }
    pub const fn unsupported_grant_type(description: &'static str) -> Self {
        Self::new("unsupported_grant_type", description)
    }
    pub const fn unauthorized_client(description: &'static str) -> Self {
        Self::new("unauthorized_client", description)
    }
    pub const fn request_not_supported(description: &'static str) -> Self {
        Self::new("request_not_supported", description)
    }
    /// RFC 6750 §3.1.
    pub const fn invalid_token(description: &'static str) -> Self {
        Self::new("invalid_token", description)
    }
    /// RFC 6585 §4.
    pub const fn too_many(description: &'static str) -> Self {
        Self::new("too_many_requests", description)
    }
    pub const fn access_denied(description: &'static str) -> Self {
        Self::new("access_denied", description)
    }
    pub const fn server_error(description: &'static str) -> Self {
        Self::new("server_error", description)
    }
    /// Our own trouble, or somebody's whom we need: never one of the codes that make clients throw tokens away.
    pub const fn unavailable(description: &'static str) -> Self {
        Self::new("temporarily_unavailable", description)
    }

    pub fn status(&self) -> StatusCode {
        match self.code {
            "invalid_client" | "invalid_token" => StatusCode::UNAUTHORIZED,
            "too_many_requests" => StatusCode::TOO_MANY_REQUESTS,
            "temporarily_unavailable" => StatusCode::SERVICE_UNAVAILABLE,
            "server_error" => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

impl From<crate::store::record::RecordError> for Refusal {
    fn from(_: crate::store::record::RecordError) -> Self {
        Self::unavailable("the store cannot be reached, try again")
    }
}
