//! Host and path in, [`Route`] out. Pure: built from the configuration once, asked once per request.
//!
//! The decision is made on one canonical form of the path, and that same form is what goes upstream, so nothing can
//! be routed as one thing and read as another. Whatever has no single meaning (escaped separators, dot segments,
//! control bytes) is refused instead of interpreted.
mod acme;
mod managed;
mod path;
mod preflight;
mod rules;
mod table;
mod tree;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::uri::InvalidUri;
use http::{HeaderName, HeaderValue, Uri};
use secrecy::ExposeSecret;

use crate::config::{self, CallLimit, Credential, IdentityProvider, Kind, PublicUrl, TrustedIssuer};
use crate::outbound::AddressPolicy;
use crate::telemetry::Series;

pub use acme::Challenges;
pub use managed::Managed;
pub use path::{canonical_path, has_one_spelling};
pub use rules::Rules;
pub use table::Table;

/// The scope every access token needs, on every route.
pub const ACCESS_SCOPE: &str = "mcp:access";
/// Lets a client know who its user is, and call nothing.
pub const PROFILE_SCOPE: &str = "profile";
const RESOURCE_METADATA: &str = "/.well-known/oauth-protected-resource";

/// A server as published by the gateway.
pub struct Route {
    pub name: String,
    pub kind: Kind,
    /// Canonical URL: the audience of its tokens (RFC 8707) and `resource` of its metadata (RFC 9728), byte for byte.
    pub resource: String,
    /// Where that metadata is (RFC 9728 §3.1, path inserted).
    pub metadata_url: String,
    /// `host[:port]` it answers on, default port left out.
    pub authority: String,
    /// `authority`, ready-made for `X-Forwarded-Host`.
    pub forwarded_host: Option<HeaderValue>,
    /// Canonical path; empty for the root.
    pub path: String,
    pub upstream: Arc<Upstream>,
    pub credential: Credential,
    /// What a user's connection here belongs to, whoever the user is: this route and its upstream, so that another server
    /// under the same name is another connection; or an identity provider, for all routes that inject its tokens.
    pub place: String,
    /// Whose connection serves everybody. `None`: each user's own serves them.
    pub owner: Option<String>,
    /// Whom requests to the issuer of those connections may reach.
    pub issuer_policy: AddressPolicy,
    /// Where a token is good that we make for the upstream: the resources of its routes, separated by blanks.
    pub audience: Option<String>,
    /// The header of a configured credential, ready-made.
    pub fixed: Option<(HeaderName, HeaderValue)>,
    /// What a caller's token must carry; the default of a client that asks for nothing.
    pub scopes: Vec<String>,
    /// What single calls need besides.
    pub rules: Rules,
    /// Whose access tokens it takes. Empty: our own, and those alone.
    pub trusted_issuers: Vec<Arc<TrustedIssuer>>,
    /// What its calls count towards.
    pub limits: Vec<Arc<CallLimit>>,
    /// Where preflights of browsers go, with which no token comes. `None`: they are requests like others.
    pub preflights: Option<Arc<Route>>,
    /// What is particular about a route that was made at run time.
    pub managed: Option<Box<Particulars>>,
    /// What is counted of its requests.
    series: OnceLock<Series>,
}

/// Of a route that was made at run time.
pub struct Particulars {
    /// What its owner calls it.
    pub title: String,
    /// What the organisation is called that it belongs to. `None`: it is somebody's own.
    pub organization: Option<String>,
    /// Whether paths below its own lead to the upstream too.
    pub passthrough: bool,
    /// Who may use it, and what their tokens are bound to besides its resource: which version of it, and whose use of it.
    pub people: HashMap<String, String>,
    /// What goes upstream besides: auxiliary and static headers, ready-made.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// Where a route leads.
pub struct Upstream {
    /// As configured, for discovery and for people.
    pub url: String,
    pub host: String,
    /// A hash of `host`: connections are used again for the same name alone.
    pub group: u64,
    pub port: u16,
    pub tls: bool,
    /// What the `Host` header says: host, and port unless it is the scheme's own.
    pub authority: String,
    /// `authority`, ready-made for `Host`.
    pub host_header: Option<HeaderValue>,
    /// Path of `url`, without a trailing slash unless written so.
    pub base_path: String,
    /// `base_path`, ready-made: what nearly every request asks for.
    base_uri: Option<Uri>,
    pub policy: AddressPolicy,
    /// How long it may say nothing to a request. `None`: as long as it likes.
    pub read_timeout: Option<Duration>,
    /// Where it is, and whom its peers may reach. `None`: where `url` says.
    pub pool: Option<Box<Pool>>,
}

/// The addresses behind an upstream.
#[derive(Clone, PartialEq, Eq)]
pub struct Pool {
    pub settings: config::Pool,
    pub policy: AddressPolicy,
}

/// A route and the part of the path below it (empty, or beginning with a slash).
pub struct Matched<'a> {
    pub route: &'a Arc<Route>,
    pub rest: &'a str,
}

/// Why a request leads nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    #[error("path has no single meaning")]
    BadPath,
    #[error("host is malformed")]
    BadHost,
    #[error("no route for this host")]
    UnknownHost,
    #[error("no route for this path")]
    NotFound,
}

// === impl Route ===

impl Route {
    pub fn new(public: &PublicUrl, configured: &config::Route) -> Self {
        let scheme = if public.is_https() { "https" } else { "http" };
        let default_port = if public.is_https() { 443 } else { 80 };
        let authority = match &configured.host {
            None => public.authority().to_owned(),
            Some(host) => with_port(host, public.port(), default_port),
        };
        let origin = format!("{scheme}://{authority}");
        // Others know no scopes but their own.
        let is_ours = configured.trusted_issuers.is_empty() && !configured.kind.is_public();
        let mut scopes: Vec<String> = is_ours.then(|| ACCESS_SCOPE.to_owned()).into_iter().collect();
        scopes.extend(configured.scopes.iter().filter(|scope| *scope != ACCESS_SCOPE).cloned());
        let upstream = Arc::new(Upstream::new(&configured.upstream));
        let (place, issuer_policy) = match configured.credential.provider() {
            Some(provider) => (provider_place(&provider.issuer), provider_policy(provider)),
            // Neither names nor URLs have a NUL, so no two of them meet.
            None => (format!("{}\0{}", configured.name, upstream.url), upstream.policy.clone()),
        };
        let preflights = configured.preflights.then(|| {
            let twin = Self::new(public, &preflight::of(configured));
            Arc::new(Self { upstream: Arc::clone(&upstream), ..twin })
        });
        Self {
            name: configured.name.clone(),
            kind: configured.kind,
            resource: format!("{origin}{}", configured.path),
            metadata_url: format!("{origin}{RESOURCE_METADATA}{}", configured.path),
            forwarded_host: HeaderValue::from_str(&authority).ok(),
            authority,
            path: configured.path.clone(),
            upstream,
            place,
            issuer_policy,
            owner: match &configured.credential {
                Credential::Oauth(oauth) => oauth.shared_by.clone(),
                _ => None,
            },
            audience: None,
            fixed: fixed(&configured.credential),
            credential: configured.credential.clone(),
            scopes,
            rules: Rules::new(configured.kind, &configured.tool_scopes, configured.policy.as_ref()),
            trusted_issuers: configured.trusted_issuers.clone(),
            limits: configured.limits.clone(),
            preflights,
            managed: None,
            series: OnceLock::new(),
        }
    }

    /// What people know it by.
    pub fn title(&self) -> &str {
        self.managed.as_ref().map_or(&self.name, |managed| &managed.title)
    }

    /// What metrics know it by: of those that were made at run time there may be any number, and metrics are bounded.
    pub fn label(&self) -> &str {
        self.managed.as_ref().map_or(&self.name, |_| "managed")
    }

    /// What is counted of its requests: looked up once.
    pub fn series(&self) -> &Series {
        self.series.get_or_init(|| Series::new(self.label()))
    }

    /// Whether this user may use it, as far as that is a question of the route.
    pub fn admits(&self, user: &str) -> bool {
        self.managed.as_ref().is_none_or(|managed| managed.people.contains_key(user))
    }

    /// What a user's tokens are bound to besides the resource. `None`: nothing, or they have no business here.
    pub fn binding(&self, user: &str) -> Option<&str> {
        self.managed.as_ref()?.people.get(user).map(String::as_str)
    }

    /// All that a user's tokens are made for.
    pub fn audience_for(&self, user: &str) -> String {
        audience(&self.resource, self.binding(user))
    }

    fn takes_descendants(&self) -> bool {
        self.managed.as_ref().is_none_or(|managed| managed.passthrough)
    }

    /// Whether the connection that serves this user here is somebody else's.
    pub fn is_of_another(&self, user: Option<&str>) -> bool {
        self.owner.as_deref().is_some_and(|owner| user != Some(owner))
    }

    /// Whether its clients get their tokens from us.
    pub fn is_ours(&self) -> bool {
        self.trusted_issuers.is_empty() && !self.kind.is_public()
    }

    /// The scopes of a challenge, space-separated (RFC 6750 §3).
    pub fn scope(&self) -> String {
        self.scopes.join(" ")
    }
}

/// What a token says that it is for: the resource, and what it is bound to besides.
pub fn audience(resource: &str, binding: Option<&str>) -> String {
    match binding {
        Some(binding) => format!("{resource} {binding}"),
        None => resource.to_owned(),
    }
}

/// Says of each route that hands out tokens of ours where these are good.
fn with_audiences(mut routes: Vec<Route>) -> Vec<Route> {
    let resource =
        |name: &String| routes.iter().find(|route| route.name == *name).map(|route| &*route.resource);
    let audience = |route: &Route| match &route.credential {
        Credential::PosternToken(names) => {
            Some(names.iter().filter_map(resource).collect::<Vec<_>>().join(" "))
        }
        _ => None,
    };
    let audiences: Vec<_> = routes.iter().map(audience).collect();
    routes.iter_mut().zip(audiences).for_each(|(route, audience)| route.audience = audience);
    routes
}

/// As [`Route::place`], for the connections that hold an identity provider's tokens.
pub fn provider_place(issuer: &str) -> String {
    format!("\0{issuer}")
}

/// Whom requests to an identity provider may reach.
pub fn provider_policy(provider: &IdentityProvider) -> AddressPolicy {
    AddressPolicy::allowing(provider.private_hosts.iter().cloned())
}

fn fixed(credential: &Credential) -> Option<(HeaderName, HeaderValue)> {
    let Credential::Header { name, value } = credential else {
        return None;
    };
    let mut value = HeaderValue::from_str(value.expose_secret()).ok()?;
    value.set_sensitive(true);
    Some((name.clone(), value))
}

/// A host as configured keeps its port; without one it has the public one.
fn with_port(host: &str, public_port: u16, default_port: u16) -> String {
    let port = host
        .rsplit_once(':')
        .filter(|(_, port)| !port.ends_with(']'))
        .and_then(|(_, port)| port.parse::<u16>().ok());
    match port {
        Some(port) if port == default_port => host.trim_end_matches(&format!(":{port}")).to_owned(),
        Some(_) => host.to_owned(),
        None if public_port == default_port => host.to_owned(),
        None => format!("{host}:{public_port}"),
    }
}

// === impl Pool ===

impl Pool {
    fn new(configured: &config::Upstream, pool: &config::Pool) -> Self {
        let peers = pool.peers.iter().filter(|_| configured.allow_private).map(|peer| peer.host.clone());
        let policy = AddressPolicy::allowing(peers.chain(configured.allow_hosts.iter().cloned()));
        Self { settings: pool.clone(), policy }
    }
}

// === impl Upstream ===

impl Upstream {
    pub fn new(configured: &config::Upstream) -> Self {
        let url = &configured.url;
        let host = configured.host();
        let mut group = DefaultHasher::new();
        host.hash(&mut group);
        let tls = url.scheme() == "https";
        let authority = match url.port() {
            Some(port) => format!("{}:{port}", url.host_str().unwrap_or_default()),
            None => url.host_str().unwrap_or_default().to_owned(),
        };
        Self {
            url: configured.url_as_written.clone(),
            port: url.port_or_known_default().unwrap_or(if tls { 443 } else { 80 }),
            tls,
            host_header: HeaderValue::from_str(&authority).ok(),
            authority,
            base_path: url.path().to_owned(),
            base_uri: url.path().parse().ok(),
            policy: AddressPolicy::allowing(configured.private_hosts()),
            read_timeout: Some(configured.read_timeout).filter(|time| !time.is_zero()),
            pool: configured.pool.as_ref().map(|pool| Box::new(Pool::new(configured, pool))),
            host,
            group: group.finish(),
        }
    }

    /// Path and query of the request to the upstream. `rest` is what lies below the route.
    pub fn target(&self, rest: &str, query: Option<&str>) -> Result<Uri, InvalidUri> {
        match (&self.base_uri, rest, query) {
            (Some(base), "", None) => Ok(base.clone()),
            _ => Uri::try_from(self.below(rest, query)),
        }
    }

    fn below(&self, rest: &str, query: Option<&str>) -> String {
        let mut target = String::with_capacity(
            self.base_path.len() + rest.len() + query.map_or(0, |query| query.len() + 1),
        );
        target.push_str(if rest.is_empty() { &self.base_path } else { self.base_path.trim_end_matches('/') });
        target.push_str(rest);
        if let Some(query) = query {
            target.push('?');
            target.push_str(query);
        }
        target
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn hosts_keep_their_ports() {
        assert_eq!(with_port("files.example", 443, 443), "files.example");
        assert_eq!(with_port("files.example", 8443, 443), "files.example:8443");
        assert_eq!(with_port("files.example:9443", 443, 443), "files.example:9443");
        assert_eq!(with_port("files.example:443", 8443, 443), "files.example");
        assert_eq!(with_port("[::1]", 8080, 80), "[::1]:8080");
    }
}
