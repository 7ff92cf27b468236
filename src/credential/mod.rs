//! `Permit` → [`Credential`]: what is injected for this caller at this route, or what the user has to do first. One
//! file per strategy; a route's configuration says which.
pub mod aws_sigv4;
pub mod connection;
mod custom;
mod entra_obo;
pub mod exchanged;
mod known;
mod postern_token;
mod token_exchange;
mod whose;
mod window;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderName, HeaderValue};

use crate::config::{self, Attributes};
use crate::oauth::client::Connector;
use crate::oauth::client::refresh::Outdated;
use crate::oauth::server::access_token::Keys;
use crate::policy::Permit;
use crate::route::Route;
use crate::telemetry::Metrics;
use crate::telemetry::audit::{self, Act, Outcome, Resolution};

pub use aws_sigv4::Roles;
pub use connection::Connections;
pub use custom::{Released, Strategies, Strategy, Withheld};
pub use exchanged::ExchangedTokens;

/// All that credentials come from.
pub struct Credentials {
    pub connections: Arc<Connections>,
    pub exchanged: Arc<ExchangedTokens>,
    pub roles: Arc<Roles>,
    /// Those that this program was built with.
    pub strategies: Strategies,
    pub audit: Arc<dyn audit::Sink>,
    metrics: Arc<Metrics>,
}

/// A permitted call that wants a credential.
pub struct Ask<'a> {
    pub permit: &'a Permit<'a>,
    /// Of the caller's user; nothing where nobody needs to know.
    pub attributes: &'a Attributes,
    /// What the upstream has just turned down: something newer is wanted.
    pub refused: Option<&'a Outdated>,
    pub request_id: &'a HeaderValue,
    pub keys: &'a Keys,
    pub now: SystemTime,
}

/// What goes upstream.
pub struct Credential {
    pub put: Put,
    pub source: Source,
    /// How it was got.
    pub act: Act,
}

/// What is done to a request.
pub enum Put {
    Nothing,
    /// Ready-made and marked sensitive, so that no log prints it.
    Header(HeaderName, HeaderValue),
    /// Each attempt is signed, body and all.
    Sign(Arc<aws_sigv4::Signer>),
}

/// Where a credential came from: what a refusal of it means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The route needs none.
    None,
    /// From the configuration.
    Fixed,
    /// Made by us.
    Minted,
    /// Of a strategy that is not built in.
    Custom,
    /// The user is not connected and the upstream has not asked yet.
    Anonymous,
    Connection {
        key: Arc<str>,
        incarnation: Arc<str>,
        generation: u64,
        refreshable: bool,
    },
    /// Got for another token, or for ourselves.
    Exchanged {
        key: Arc<str>,
        id: Arc<str>,
        /// Whether another one may be better: this one did not just come in place of one that was refused.
        renewable: bool,
        /// The connection that it was got with, if with one: key and incarnation.
        of: Option<(Arc<str>, Arc<str>)>,
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
    /// The user has to sign in at the provider once more, which wants to see them for what they ask for. `claims`: what about
    /// (OpenID Connect Core §5.5).
    #[error("the identity provider wants to see the user")]
    NeedsProvider { incarnation: Arc<str>, claims: Option<String> },
    /// The token endpoint gives us none: only the operator can help.
    #[error("the token endpoint gives no token for this route")]
    Refused,
    /// Nor is there anything to ask for: the operator has given this user no role.
    #[error("the user has no role at the upstream")]
    NoRole,
    #[error("no valid token just now")]
    Unavailable { retry_after: Duration },
}

impl Source {
    /// For logs.
    fn name(&self) -> &'static str {
        match self {
            Source::None => "none",
            Source::Fixed => "fixed",
            Source::Minted => "minted",
            Source::Custom => "custom",
            Source::Anonymous => "anonymous",
            Source::Connection { .. } => "connection",
            Source::Exchanged { .. } => "exchanged",
        }
    }

    /// Of the connection it came from, if it came from one.
    pub fn incarnation(&self) -> Option<&str> {
        match self {
            Source::Connection { incarnation, .. } => Some(incarnation),
            Source::Exchanged { of, .. } => of.as_ref().map(|(_, incarnation)| &**incarnation),
            _ => None,
        }
    }

    /// The connection it came from, if it came from one: its key and incarnation.
    pub fn connection(&self) -> Option<(&str, Arc<str>)> {
        match self {
            Source::Connection { key, incarnation, .. } => Some((key, Arc::clone(incarnation))),
            Source::Exchanged { of: Some((key, incarnation)), .. } => Some((key, Arc::clone(incarnation))),
            _ => None,
        }
    }

    /// The tokens it came from, to ask for newer ones.
    pub fn outdated(&self) -> Option<Outdated> {
        match self {
            Source::Connection { incarnation, generation, .. } => {
                Some(Outdated { incarnation: Arc::clone(incarnation), generation: *generation })
            }
            // Each has a name of its own.
            Source::Exchanged { id, .. } => Some(Outdated { incarnation: Arc::clone(id), generation: 1 }),
            _ => None,
        }
    }
}

impl Unresolved {
    /// What would have to be done.
    fn act(&self) -> Act {
        match self {
            Unresolved::NeedsUser { .. }
            | Unresolved::NeedsProvider { .. }
            | Unresolved::NotConsented { .. } => Act::Connect,
            Unresolved::Refused | Unresolved::NoRole => Act::Acquire,
            Unresolved::Unavailable { .. } => Act::Refresh,
        }
    }

    /// For logs.
    fn reason(&self) -> &'static str {
        match self {
            Unresolved::NeedsUser { incarnation: None } => "not_connected",
            Unresolved::NeedsUser { incarnation: Some(_) } => "connection_ended",
            Unresolved::NeedsProvider { .. } => "interaction_required",
            Unresolved::NotConsented { .. } => "not_consented",
            Unresolved::Refused => "not_exchanged",
            Unresolved::NoRole => "no_role",
            Unresolved::Unavailable { .. } => "unavailable",
        }
    }
}

// === impl Credentials ===

impl Credentials {
    pub fn new(connector: Arc<Connector>, audit: Arc<dyn audit::Sink>, strategies: Strategies) -> Self {
        let metrics = Arc::clone(connector.metrics());
        let connections = Arc::new(Connections::new(Arc::clone(&connector)));
        let exchanged = ExchangedTokens::new(Arc::clone(&connector), Arc::clone(&connections));
        let roles = Roles::new(connector, Arc::clone(&connections));
        Self {
            connections,
            exchanged: Arc::new(exchanged),
            roles: Arc::new(roles),
            strategies,
            audit,
            metrics,
        }
    }

    /// The credential for the permitted call. It is told to the audit log once, whatever comes of it.
    pub async fn resolve(&self, ask: &Ask<'_>) -> Result<Credential, Unresolved> {
        let resolved = self.of(ask).await;
        let (act, outcome, reason) = match &resolved {
            Ok(credential) => (credential.act, Outcome::Ok, credential.source.name()),
            Err(unresolved) => (unresolved.act(), Outcome::Failed, unresolved.reason()),
        };
        let (caller, route) = (ask.permit.caller(), ask.permit.route());
        self.count(&resolved, route.credential.word(), act, reason);
        self.audit.resolution(&Resolution {
            at: ask.now,
            act,
            outcome,
            reason,
            strategy: route.credential.word(),
            route: &route.name,
            user: caller.user(),
            client: caller.client(),
            request_id: ask.request_id.to_str().unwrap_or_default(),
        });
        resolved
    }

    /// What was simply there is counted as that and no more: it is of nearly every call.
    fn count(
        &self,
        resolved: &Result<Credential, Unresolved>,
        strategy: &str,
        act: Act,
        reason: &'static str,
    ) {
        let is_there = act == Act::Inject && resolved.is_ok();
        if !is_there {
            self.metrics.credentials.with_label_values(&[strategy, act.word(), reason]).inc();
        }
        let source = resolved.as_ref().ok().map(|credential| &credential.source);
        if !is_there || matches!(source, Some(Source::Connection { .. } | Source::Exchanged { .. })) {
            self.metrics.caches.credentials.count(is_there);
        }
    }

    async fn of(&self, ask: &Ask<'_>) -> Result<Credential, Unresolved> {
        let route = ask.permit.route();
        match &route.credential {
            config::Credential::None => Ok(Credential::nothing(Source::None)),
            config::Credential::Header { .. } => Ok(Credential::fixed(route)),
            config::Credential::PosternToken(_) => postern_token::resolve(ask),
            config::Credential::Oauth(_) => self.connections.resolve(ask).await,
            config::Credential::UserHeader(_) | config::Credential::UpstreamInject(..) => {
                let resolved = self.connections.resolve(ask).await?;
                match resolved.source {
                    // The upstream is never called for somebody who has no token.
                    Source::Anonymous => Err(Unresolved::NeedsUser { incarnation: None }),
                    _ => Ok(resolved),
                }
            }
            config::Credential::ClientCredentials(_)
            | config::Credential::TokenExchange(_)
            | config::Credential::EntraObo(_)
            | config::Credential::IdJag(_) => self.exchanged.resolve(ask).await,
            config::Credential::AwsSigv4(aws) => self.roles.resolve(ask, aws).await,
            config::Credential::Custom(custom) => {
                Box::pin(custom::resolve(&self.strategies, ask, custom)).await
            }
        }
    }
}

// === impl Credential ===

impl Credential {
    fn fixed(route: &Route) -> Self {
        let put = match &route.fixed {
            Some((name, value)) => Put::Header(name.clone(), value.clone()),
            None => Put::Nothing,
        };
        Self { put, source: Source::Fixed, act: Act::Inject }
    }

    fn nothing(source: Source) -> Self {
        Self { put: Put::Nothing, source, act: Act::Inject }
    }
}
