//! A look at an MCP server that somebody wants to add: does it answer, does it want a token, and can Postern get one there.
use super::{Desk, Refused};
use crate::managed;
use crate::managed::record::{Auth, Configuration, ConnectRoute, Discovered, Owner, Sharing};
use crate::oauth::client::discover::{DiscoverError, Overrides, Target, discover};
use crate::oauth::client::probe::{Probe, probe};

/// What was seen.
pub struct Seen {
    /// What it wants, as one of the words of [`Auth`].
    pub auth: &'static str,
    pub discovered: Discovered,
    /// Why nobody gets tokens for it, although it wants one.
    pub obstacle: Option<DiscoverError>,
}

impl Desk<'_> {
    /// Looks at a server that is not added yet.
    pub async fn look(&self, url: &str) -> Result<Seen, Refused> {
        self.require_user(&self.actor.name).or(match self.actor.is_administrator {
            true => Ok(()),
            false => Err(Refused::Forbidden("whoever looks at servers has to be a user")),
        })?;
        self.check_url(url)?;
        self.seen(&draft(url)).await
    }

    pub(super) async fn seen(&self, configuration: &Configuration) -> Result<Seen, Refused> {
        let around = managed::Around::of(&self.snapshot.config).ok_or(Refused::Unavailable)?;
        let unusable = || Refused::Unusable("it cannot be led to".to_owned());
        let route = managed::route_of(configuration, around).ok_or_else(unusable)?;
        let (outbound, upstream) = (&self.authority.connector.outbound, &route.upstream);
        let bearer = match probe(outbound, &upstream.url, &upstream.policy).await {
            Probe::Unreachable(why) => return Err(Refused::Unusable(format!("it does not answer: {why}"))),
            Probe::Open => None,
            Probe::Challenged { bearer, .. } => Some(bearer),
        };
        let at = self.seconds();
        let Some(bearer) = bearer else {
            let discovered = Discovered { registration: "none".to_owned(), at, ..Discovered::default() };
            return Ok(Seen { auth: "none", discovered, obstacle: None });
        };
        let overrides = Overrides { scopes: configuration.scopes.clone(), ..Overrides::default() };
        let target = Target { url: &upstream.url, policy: &upstream.policy, overrides: &overrides };
        let found = match discover(outbound, &target, bearer.as_ref()).await {
            Ok(found) if found.server.is_published => found,
            found => {
                let obstacle = found.err().unwrap_or(DiscoverError::Unsupported("nobody publishes one"));
                let discovered = Discovered { registration: "none".to_owned(), at, ..Discovered::default() };
                return Ok(Seen { auth: "static_headers", discovered, obstacle: Some(obstacle) });
            }
        };
        let registration = match &found.server {
            server if server.cimd && self.authority.connector.has_documents() => {
                "client_id_metadata_document"
            }
            server if server.registration_endpoint.is_some() => "dynamic",
            _ => "none",
        };
        let discovered = Discovered {
            issuer: Some(found.server.issuer),
            resource: found.resource,
            scopes: found.scopes,
            registration: registration.to_owned(),
            at,
        };
        let auth = if registration == "none" { "oauth_static" } else { "oauth_dynamic" };
        Ok(Seen { auth, discovered, obstacle: None })
    }
}

impl Seen {
    /// Whether a configuration can work that authorizes so.
    pub fn fits(&self, auth: &Auth) -> Result<(), Refused> {
        let unusable = |why: &str| Err(Refused::Unusable(why.to_owned()));
        match auth {
            Auth::StaticHeaders(_) => Ok(()),
            Auth::None if self.auth == "none" => Ok(()),
            Auth::None => unusable(&format!("it wants a token: use {}", self.auth)),
            Auth::OauthDynamic | Auth::OauthStatic { .. } if self.obstacle.is_some() => {
                let why = self.obstacle.map(|why| why.to_string()).unwrap_or_default();
                unusable(&format!("nobody gets tokens for it: {why}"))
            }
            // Some servers ask for one only once a tool is called.
            Auth::OauthDynamic if self.auth != "oauth_static" => Ok(()),
            Auth::OauthDynamic => {
                unusable("its authorization server registers nobody: use oauth_static with a client of yours")
            }
            Auth::OauthStatic { .. } => Ok(()),
        }
    }
}

/// Nobody's, and kept nowhere.
fn draft(url: &str) -> Configuration {
    Configuration {
        id: "draft".to_owned(),
        owner: Owner::User(String::new()),
        name: String::new(),
        url: url.to_owned(),
        auth: Auth::OauthDynamic,
        sharing: Sharing::SingleUser,
        slot: None,
        passthrough: false,
        scopes: None,
        headers: Vec::new(),
        enabled: true,
        revision: 0,
        route: ConnectRoute { key: String::new().into(), version: 0, created_at: 0 },
        discovered: None,
        created_at: 0,
        updated_at: 0,
        deleted_at: None,
    }
}
