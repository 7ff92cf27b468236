//! `custom`: a strategy of whoever builds on the library, by the name it was registered under
//! ([`crate::server::Builder::strategy`]).
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::{HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};

use super::{Ask, Credential, Put, Source, Unresolved};
use crate::config::{Custom, is_settable};
use crate::map::Map;
use crate::telemetry::audit::Act;

/// A way to a credential that is not built in.
///
/// It is asked for each permitted call and says what goes upstream. It runs on the path of the request: what takes long is
/// kept and renewed ahead. Policy has run before it, audit comes after it, and what an upstream refuses is the operator's
/// matter, as with every credential that no user can do anything about.
#[async_trait]
pub trait Strategy: Send + Sync {
    /// `with`: the route's `credential.with`, as written; an object.
    async fn resolve(&self, ask: &Ask<'_>, with: &serde_json::Value) -> Result<Released, Withheld>;
}

/// What a strategy puts into a request: one header.
pub struct Released {
    pub name: HeaderName,
    pub value: SecretString,
}

/// Why a strategy has nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Withheld {
    /// The client is told to come again.
    #[error("nothing just now")]
    Later(Duration),
    /// Coming again changes nothing.
    #[error("nothing for this call")]
    Refused,
}

/// Those of this process, by name.
pub type Strategies = Map<String, Arc<dyn Strategy>>;

pub(super) async fn resolve(
    strategies: &Strategies,
    ask: &Ask<'_>,
    custom: &Custom,
) -> Result<Credential, Unresolved> {
    // The configuration was checked against the same names.
    let strategy = strategies.get(&custom.strategy).ok_or(Unresolved::Refused)?;
    let released = strategy.resolve(ask, &custom.with).await.map_err(|withheld| match withheld {
        Withheld::Later(retry_after) => Unresolved::Unavailable { retry_after },
        Withheld::Refused => Unresolved::Refused,
    })?;
    match HeaderValue::from_str(released.value.expose_secret()) {
        Ok(mut value) if is_settable(&released.name) => {
            value.set_sensitive(true);
            Ok(Credential {
                put: Put::Header(released.name, value),
                source: Source::Custom,
                act: Act::Acquire,
            })
        }
        _ => {
            tracing::error!(
                target: "postern::credential",
                strategy = custom.strategy,
                header = %released.name,
                "a strategy has released what no header may carry"
            );
            Err(Unresolved::Refused)
        }
    }
}
