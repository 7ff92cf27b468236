//! Routes: which host and path lead to which server.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use url::Url;

use super::calls::{self, CallLimit};
use super::checked::{Checker, bare_host, has_dot_segment};
use super::credential::{self, Credential};
use super::file;
use super::kind::{self, Kind};
use super::login::Login;
use super::policy::{self, Policy};
use super::pool::{self, Pool};
use super::report::Key;
use super::server::{PublicUrl, is_host};
use super::trusted::{self, TrustedIssuer};

/// A server as Postern publishes it.
pub struct Route {
    /// `[a-z0-9_-]+`, unique.
    pub name: String,
    pub kind: Kind,
    /// As in a `Host` header, lower case, without the default port of `public_url`'s scheme. `None`: the public host.
    pub host: Option<String>,
    /// Canonical: a leading slash, none at the end, none doubled; `""` for the root.
    pub path: String,
    pub upstream: Upstream,
    pub credential: Credential,
    /// Access scopes besides `mcp:access`.
    pub scopes: Vec<String>,
    /// What calls of a tool need besides, by its name; never nothing.
    pub tool_scopes: BTreeMap<String, Vec<String>>,
    /// Who may call what. `None`: nothing is said, and everybody with a token may.
    pub policy: Option<Policy>,
    /// Whose access tokens it takes in place of our own. Empty: our own.
    pub trusted_issuers: Vec<Arc<TrustedIssuer>>,
    /// What its calls count towards: the limits of all routes, then its own.
    pub limits: Vec<Arc<CallLimit>>,
    /// Whether preflights of browsers go on although no token comes with them.
    pub preflights: bool,
}

/// The server behind a route.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// `https`, or `http` with `allow_private`; no userinfo, query, fragment.
    pub url: Url,
    /// `url` byte for byte as written.
    pub url_as_written: String,
    /// Whether the host of `url` may use `http` and private addresses.
    pub allow_private: bool,
    /// Other hosts with the same permission: lower case, no port, IPv6 without brackets.
    pub allow_hosts: Vec<String>,
    /// How long it may say nothing to a request. Zero: as long as it likes.
    pub read_timeout: Duration,
    /// Where it is. `None`: where `url` says.
    pub pool: Option<Pool>,
}

impl Upstream {
    /// Host of `url`, lower case, IPv6 without brackets.
    #[must_use]
    pub fn host(&self) -> String {
        bare_host(&self.url)
    }

    /// Path of `url` without a slash at the end; `""` for the root. What follows the route's path is put behind it.
    #[must_use]
    pub fn base_path(&self) -> &str {
        self.url.path().trim_end_matches('/')
    }

    /// Every host that may use `http` and private addresses, in the form of `allow_hosts`.
    #[must_use]
    pub fn private_hosts(&self) -> Vec<String> {
        let own = self.allow_private.then(|| self.host());
        own.into_iter().chain(self.allow_hosts.iter().cloned()).collect()
    }
}

/// What speaks HTTP and is no MCP server may be silent for that long, where nothing is written.
const HTTP_SILENCE: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// First path segment of every route that is made at run time.
pub const MANAGED: &str = "connect";

/// First path segments of Postern's own endpoints.
const LOCAL: [&str; 10] = [
    "oauth",
    "login",
    "logout",
    "connections",
    "api",
    ".well-known",
    "favicon.ico",
    "healthz",
    "readyz",
    "metrics",
];

/// What routes refer to.
pub(super) struct Around<'a> {
    /// `None` when it is itself in error.
    pub public_url: Option<&'a PublicUrl>,
    pub issuers: &'a [Arc<TrustedIssuer>],
    pub login: &'a Login,
    /// `policy` at the top.
    pub policy: Option<policy::Section>,
    /// The limits of all routes together.
    pub calls: &'a [Arc<CallLimit>],
    /// Whether routes are made at run time, in a place of their own.
    pub reserved: bool,
}

/// Checks all routes. What is wrong is recorded and left out.
pub(super) fn check(check: &mut Checker<'_>, written: &[file::Route], around: &Around<'_>) -> Vec<Route> {
    let public_url = around.public_url;
    let list = Key::top("routes");
    let mut names: HashMap<&str, usize> = HashMap::with_capacity(written.len());
    let mut places: HashMap<(String, String), &str> = HashMap::with_capacity(written.len());
    let mut routes = Vec::with_capacity(written.len());
    let own = own_places(written, public_url);
    for (index, entry) in written.iter().enumerate() {
        let key = list.item(index);
        name(check, &key.child("name"), &entry.name);
        if let Some(earlier) = names.insert(&entry.name, index) {
            let what = format!("is also the name of routes[{earlier}]");
            check.refuse(&key.child("name"), what, "give each route a name of its own");
        }
        // Those of bytes are looked at in `tcp`.
        let Some(kind) = kind::check(check, &key, entry, public_url) else { continue };
        if entry.host.is_none() && entry.path.is_none() {
            check.refuse(&key, "has neither path nor host", format!("write `path: /{}`", entry.name));
        }
        let host = match &entry.host {
            Some(host) => host_of(check, &key.child("host"), host, public_url).map(Some),
            None => Some(None),
        };
        let path = path_of(check, &key.child("path"), entry.path.as_deref().unwrap_or_default());
        if let (Some(host), Some(path), Some(public_url)) = (&host, &path, public_url) {
            let place = (host.clone().unwrap_or_else(|| public_url.authority().to_owned()), path.clone());
            shadow(check, &key.child("path"), &place, public_url, around.reserved);
            if let Some(other) = places.insert(place, &entry.name) {
                let what = format!("has the same host and path as route `{other}`");
                check.refuse(&key.child("path"), what, "give each route a place of its own");
            }
        }
        let upstream = upstream(check, &key.child("upstream"), &entry.upstream, kind);
        let private = upstream.as_ref().map(Upstream::private_hosts).unwrap_or_default();
        let beside = credential::Around { private: &private, login: around.login, own: &own };
        let credential = match (&entry.credential, kind::default_credential(kind)) {
            (None, Some(default)) => Some(default),
            (written, _) => credential::check(check, &key.child("credential"), written.as_ref(), &beside),
        };
        let scopes = check.scopes(&key.child("scopes"), entry.scopes.as_deref().unwrap_or_default());
        let own_limits = entry.limits.as_deref().unwrap_or_default();
        let own_limits = calls::check(check, &key.child("limits"), own_limits, Some(&entry.name));
        let tool_scopes = tool_scopes(check, &key.child("tool_scopes"), entry.tool_scopes.iter().flatten());
        let is_ours = kind::takes_ours(entry, around.issuers);
        let policy_key = key.child("policy");
        let policy =
            policy::of_route(check, &policy_key, entry.policy.as_ref(), around.policy.as_ref(), is_ours);
        let own_rules = entry.policy.iter().flat_map(|policy| &policy.call).map(Vec::len).sum();
        kind::check_policy(check, &policy_key, kind, own_rules, policy.as_ref());
        if let (Some(host), Some(path), Some(upstream), Some(credential)) = (host, path, upstream, credential)
        {
            let issuers_key = key.child("trusted_issuers");
            let issuers = entry.trusted_issuers.as_ref();
            let trusted_issuers = match kind.is_public() {
                true => Vec::new(),
                false => trusted::of_route(check, &issuers_key, issuers, around.issuers),
            };
            if credential.is_of_user() {
                require_sign_in(check, &key, &trusted_issuers, around.login);
            }
            // V-03: the upstream's authorization server meets another subject than the one that the caller signed in as.
            let is_silent = entry.credential.as_ref().is_some_and(|credential| credential.subject.is_none());
            if credential.shows_caller() && is_silent && trusted_issuers.is_empty() {
                let what = "exchanges a JWT about the user that Postern signs, and no token of their identity provider";
                let write = "write `subject: caller` if that is meant, or `subject_provider` with the name of a provider";
                check.warn(&key.child("credential"), what, write);
            }
            let name = entry.name.clone();
            routes.push(Route {
                name,
                kind,
                host,
                path,
                upstream,
                credential,
                scopes,
                tool_scopes,
                policy,
                trusted_issuers,
                limits: around.calls.iter().cloned().chain(own_limits).collect(),
                preflights: entry.cors_allow_preflight.unwrap_or(false),
            });
        }
    }
    credential::postern_token::check_routes(check, &list, written, &routes);
    routes
}

/// Names and ports of the public URL and of all routes.
fn own_places(written: &[file::Route], public_url: Option<&PublicUrl>) -> Vec<(String, u16)> {
    let Some(public_url) = public_url else { return Vec::new() };
    let hosts = written.iter().filter_map(|route| route.host.as_deref());
    let hosts = hosts.chain([public_url.authority()]);
    let urls = hosts.filter_map(|host| Url::parse(&format!("{}://{host}", public_url.scheme())).ok());
    urls.filter_map(|url| Some((url.host_str()?.to_owned(), url.port_or_known_default()?))).collect()
}

/// Who has a connection of their own makes it here, and so has to be able to sign in here as the same person: same issuer,
/// same subject. An e-mail address makes nobody the same. Where the connection is at another identity provider (V-04, V-09), they
/// go on there, as those do who come in with a password.
fn require_sign_in(check: &mut Checker<'_>, key: &Key, issuers: &[Arc<TrustedIssuer>], login: &Login) {
    for trusted in issuers {
        if !login.providers.iter().any(|provider| provider.issuer == trusted.issuer) {
            let what = format!(
                "needs connections of users of `{}`, who cannot sign in here to make them",
                trusted.name
            );
            let write = format!("add a provider with the issuer {} to `login.oidc`", trusted.issuer);
            check.refuse(&key.child("trusted_issuers"), what, write);
        }
    }
}

fn tool_scopes<'f>(
    check: &mut Checker<'_>,
    key: &Key,
    written: impl Iterator<Item = (&'f String, &'f Vec<String>)>,
) -> BTreeMap<String, Vec<String>> {
    let mut checked = BTreeMap::new();
    for (tool, scopes) in written {
        let key = key.child(tool);
        if tool.is_empty() {
            check.refuse(&key, "is no name of a tool", "write the name as `tools/list` shows it");
        } else if scopes.is_empty() {
            check.refuse(&key, "names no scope", "write the scopes that a call needs, or leave the tool out");
        }
        checked.insert(tool.clone(), check.scopes(&key, scopes));
    }
    checked
}

fn name(check: &mut Checker<'_>, key: &Key, written: &str) {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    if written.is_empty() || written.len() > 64 || !written.chars().all(allowed) {
        check.refuse(key, "is not a route name", "write 1 to 64 lower-case letters, digits, `-` or `_`");
    }
}

/// A host with an optional port, in the form in which it is compared.
fn host_of(
    check: &mut Checker<'_>,
    key: &Key,
    written: &str,
    public_url: Option<&PublicUrl>,
) -> Option<String> {
    let lower = written.to_ascii_lowercase();
    let (host, port) = match lower.rsplit_once(':') {
        // A colon inside brackets belongs to the IPv6 literal.
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (lower.as_str(), None),
    };
    let digits = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let number = port.map(|port| if digits(port) { port.parse::<u16>().unwrap_or(0) } else { 0 });
    if !is_host(host) || number == Some(0) {
        let write = "write the host as clients send it, like files.example.com or files.example.com:8443";
        check.refuse(key, "is not a host", write);
        return None;
    }
    let default = if public_url.is_none_or(PublicUrl::is_https) { 443 } else { 80 };
    Some(match number {
        Some(number) if number != default => format!("{host}:{number}"),
        _ => host.to_owned(),
    })
}

/// The canonical form of a path.
fn path_of(check: &mut Checker<'_>, key: &Key, written: &str) -> Option<String> {
    // RFC 3986 pchar without percent-encoding, which has more than one spelling for the same path.
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@/".contains(c);
    if !written.chars().all(plain) {
        let write = "write letters, digits, slashes and -._~!$&'()*+,;=:@ only";
        check.refuse(key, "contains a character that a route path cannot have", write);
        return None;
    }
    if has_dot_segment(written) {
        check.refuse(key, "contains `.` or `..` as a part", "write the path that is meant");
        return None;
    }
    let parts = written.split('/').filter(|part| !part.is_empty());
    Some(parts.flat_map(|part| ["/", part]).collect())
}

/// Refuses what would hide Postern's own endpoints, and routes that are made at run time; well-known documents exist under
/// every host.
fn shadow(
    check: &mut Checker<'_>,
    key: &Key,
    place: &(String, String),
    public_url: &PublicUrl,
    reserved: bool,
) {
    let (host, path) = place;
    let Some(first) = path.split('/').nth(1) else {
        return;
    };
    let is_public = host == public_url.authority();
    let taken = match first {
        ".well-known" => true,
        MANAGED => is_public && reserved,
        _ => is_public && LOCAL.contains(&first),
    };
    if taken {
        let what = format!("lies under /{first}, which is Postern's own");
        check.refuse(key, what, "choose another path, or give the route a host of its own");
    }
}

fn upstream(check: &mut Checker<'_>, key: &Key, written: &file::Upstream, kind: Kind) -> Option<Upstream> {
    let usual = if kind.is_mcp() { Duration::ZERO } else { HTTP_SILENCE };
    let read_timeout = check.duration(
        &key.child("read_timeout"),
        written.read_timeout.as_deref(),
        usual,
        Duration::ZERO,
        DAY,
    );
    let allow_private = written.allow_private.unwrap_or(false);
    let allow_hosts = hosts(check, &key.child("allow_hosts"), written.allow_hosts.as_deref());
    let pool = pool::check(check, key, written, allow_private, &allow_hosts);
    let at = key.child("url");
    let url = check.url(&at, &written.url, true)?;
    if url.scheme() == "http" && !allow_private {
        let write = "write https://, or add `allow_private: true` where the network in between is trusted";
        check.refuse(&at, "is http", write);
    } else if url.query().is_some() {
        check.refuse(&at, "contains a query", "leave out `?` and what follows");
    } else if has_dot_segment(&written.url) {
        check.refuse(&at, "contains `.` or `..` as a part of its path", "write the path that is meant");
    } else if url.port() == Some(0) {
        check.refuse(&at, "has port 0", "write the port of the upstream");
    } else {
        let url_as_written = written.url.clone();
        return Some(Upstream { url, url_as_written, allow_private, allow_hosts, read_timeout, pool });
    }
    None
}

/// Hosts without scheme and port, in the form in which they are compared.
pub(super) fn hosts(check: &mut Checker<'_>, key: &Key, written: Option<&[String]>) -> Vec<String> {
    let mut hosts = Vec::new();
    for (index, host) in written.iter().copied().flatten().enumerate() {
        let lower = host.to_ascii_lowercase();
        let bracketed =
            if lower.contains(':') && !lower.starts_with('[') { format!("[{lower}]") } else { lower };
        match url::Host::parse(&bracketed) {
            Ok(parsed) if is_host(&bracketed) => {
                let text = parsed.to_string();
                hosts.push(text.trim_start_matches('[').trim_end_matches(']').to_owned());
            }
            _ => {
                let item = key.item(index);
                check.refuse(&item, "is not a host name", "write a name or address without scheme and port");
            }
        }
    }
    hosts
}
