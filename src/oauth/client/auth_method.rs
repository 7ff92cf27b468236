//! Which way of proving our client to a token endpoint to pick.
use serde::{Deserialize, Serialize};

use super::discover::AuthorizationServer;
use crate::config::TokenEndpointAuthMethod;

/// How our client proves itself at a token endpoint (RFC 7591 §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthMethod {
    /// A public client: PKCE alone.
    None,
    ClientSecretBasic,
    ClientSecretPost,
    /// An assertion signed by our key at that issuer ([`super::client_key`]).
    PrivateKeyJwt,
}

impl AuthMethod {
    const ALL: [Self; 4] = [Self::None, Self::ClientSecretBasic, Self::ClientSecretPost, Self::PrivateKeyJwt];

    /// The registered name.
    pub fn as_str(self) -> &'static str {
        match self {
            AuthMethod::None => "none",
            AuthMethod::ClientSecretBasic => "client_secret_basic",
            AuthMethod::ClientSecretPost => "client_secret_post",
            AuthMethod::PrivateKeyJwt => "private_key_jwt",
        }
    }

    /// By registered name; `None` for a method that is not ours.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.as_str() == name)
    }

    /// For a new client: what the operator wants, if the server has it; no secret where it can do without, else what it names
    /// first. Some list a method that only works at some of their endpoints, and none of them first.
    pub fn for_new_client(server: &AuthorizationServer, wanted: Option<Self>) -> Option<Self> {
        if let Some(wanted) = wanted.filter(|wanted| wanted.is_listed(server)) {
            return Some(wanted);
        }
        let mut known = server.auth_methods.iter().filter_map(|name| Self::from_name(name));
        if Self::None.is_listed(server) { Some(Self::None) } else { known.next() }
    }

    /// For a client that the operator registered by hand and that says nothing about its method.
    pub fn for_configured_client(server: &AuthorizationServer, has_secret: bool) -> Self {
        match has_secret {
            false => AuthMethod::None,
            true if !Self::ClientSecretBasic.is_listed(server)
                && Self::ClientSecretPost.is_listed(server) =>
            {
                AuthMethod::ClientSecretPost
            }
            true => AuthMethod::ClientSecretBasic,
        }
    }

    /// For a client that is a document of ours: without a secret in any case.
    pub fn for_document(server: &AuthorizationServer) -> Self {
        match !Self::None.is_listed(server) && Self::PrivateKeyJwt.is_listed(server) {
            true => Self::PrivateKeyJwt,
            false => Self::None,
        }
    }

    fn is_listed(self, server: &AuthorizationServer) -> bool {
        server.auth_methods.iter().any(|name| name == self.as_str())
    }
}

impl From<TokenEndpointAuthMethod> for AuthMethod {
    fn from(method: TokenEndpointAuthMethod) -> Self {
        match method {
            TokenEndpointAuthMethod::None => Self::None,
            TokenEndpointAuthMethod::ClientSecretBasic => Self::ClientSecretBasic,
            TokenEndpointAuthMethod::ClientSecretPost => Self::ClientSecretPost,
            TokenEndpointAuthMethod::PrivateKeyJwt => Self::PrivateKeyJwt,
        }
    }
}
