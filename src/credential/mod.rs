//! `Permit` → [`Credential`]: what is injected for this caller at this route, or what the user has to do first. One
//! file per strategy; a route's configuration says which.
pub mod connection;
mod known;
mod window;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderName, HeaderValue};

use crate::config;
use crate::oauth::client::refresh::Outdated;
use crate::policy::Permit;

pub use connection::Connections;

/// What goes upstream.
pub struct Credential {
    /// Ready-made and marked sensitive, so that no log prints it.
    pub header: Option<(HeaderName, HeaderValue)>,
    pub source: Source,
}

/// Where a credential came from: what a refusal of it means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The route needs none.
    None,
    /// From the configuration.
    Fixed,
    /// The user is not connected and the upstream has not asked yet.
    Anonymous,
    Connection {
        key: Arc<str>,
        incarnation: Arc<str>,
        generation: u64,
        refreshable: bool,
    },
}

/// Why there is no credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    /// `incarnation`: of the connection that is good for nothing any more, if there is one.
    #[error("the user has to authorize at the upstream")]
    NeedsUser { incarnation: Option<Arc<str>> },
    /// The connection may do more than the user has let this client do: all that it may.
    #[error("the user has to let the client use this connection")]
    NotConsented { scopes: Vec<String> },
    #[error("no valid token just now")]
    Unavailable { retry_after: Duration },
}

impl Source {
    /// Of the connection it came from, if it came from one.
    pub fn incarnation(&self) -> Option<&str> {
        match self {
            Source::Connection { incarnation, .. } => Some(incarnation),
            _ => None,
        }
    }

    /// The connection it came from, if it came from one: its key and incarnation.
    pub fn connection(&self) -> Option<(&str, Arc<str>)> {
        match self {
            Source::Connection { key, incarnation, .. } => Some((key, Arc::clone(incarnation))),
            _ => None,
        }
    }

    /// The tokens it came from, to ask for newer ones.
    pub fn outdated(&self) -> Option<Outdated> {
        match self {
            Source::Connection { incarnation, generation, .. } => {
                Some(Outdated { incarnation: Arc::clone(incarnation), generation: *generation })
            }
            _ => None,
        }
    }
}

/// The credential for the permitted call. `refused`: the tokens that the upstream has just turned down.
pub async fn resolve(
    connections: &Connections,
    permit: &Permit<'_>,
    refused: Option<&Outdated>,
    now: SystemTime,
) -> Result<Credential, Unresolved> {
    let route = permit.route();
    match &route.credential {
        config::Credential::None => Ok(Credential { header: None, source: Source::None }),
        config::Credential::Header { .. } => {
            Ok(Credential { header: route.fixed.clone(), source: Source::Fixed })
        }
        config::Credential::Oauth(_) => connections.resolve(permit.caller(), route, refused, now).await,
        config::Credential::UpstreamInject(_) => {
            let resolved = connections.resolve(permit.caller(), route, refused, now).await?;
            match resolved.source {
                // The upstream is never called for somebody who has no token.
                Source::Anonymous => Err(Unresolved::NeedsUser { incarnation: None }),
                _ => Ok(resolved),
            }
        }
    }
}
