//! The configuration as used: every default applied, every reference read, nothing left to ask.
//!
//! Runs the checks of each section with one [`Checker`], which collects all problems instead of stopping.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use url::Url;

use super::calls;
use super::clients::{self, Cimd, ListedClient, Names};
use super::document::Node;
use super::limits::{self, Limits};
use super::outbound::{self, Outbound};
use super::reload::Fixed;
use super::report::{Key, Problem, Report};
use super::secret::{self, Environment, SealingKey};
use super::telemetry::{self, Traces};
use super::{file, id_jag, kind, login, managed, policy, route, server, store, tcp, trusted};
use crate::jose::sign::SigningKey;

/// The whole configuration. Has no `Debug`: it holds secrets.
pub struct Config {
    pub server: server::Server,
    pub store: store::Store,
    /// The first seals, all open. Empty: one is generated into `server.data_dir`.
    pub sealing_keys: Vec<SealingKey>,
    pub oauth_server: OauthServer,
    pub oauth_client: OauthClient,
    pub login: login::Login,
    pub outbound: Outbound,
    pub limits: Limits,
    /// `None`: nothing is traced.
    pub traces: Option<Traces>,
    /// `None`: no routes are made at run time.
    pub managed: Option<managed::Managed>,
    /// In the order of the file. Names are unique, and so are pairs of host and path.
    pub routes: Vec<route::Route>,
    /// The same, of those that have no requests but bytes.
    pub tcp: Vec<tcp::TcpRoute>,
    /// What a running process does not take anew.
    pub fixed: Fixed,
    /// What works, and had better be otherwise.
    pub warnings: Report,
}

/// No access token lives longer.
pub const ACCESS_TOKEN_TTL_MAX: Duration = Duration::from_secs(15 * 60);

/// Postern as authorization server.
#[derive(Clone)]
pub struct OauthServer {
    /// 1 s to 15 min.
    pub access_token_ttl: Duration,
    /// At least `access_token_ttl`.
    pub refresh_token_ttl: Duration,
    /// How long what a user allowed lasts in any case, however often it is used.
    pub grant_ttl: Duration,
    /// 0 to 60 s.
    pub refresh_replay_window: Duration,
    pub access_token_format: file::AccessTokenFormat,
    /// The first signs. Empty: one is made and kept in the store.
    pub signing_keys: Vec<SigningKey>,
    pub cimd: Cimd,
    /// Whether clients may register themselves (RFC 7591).
    pub dcr_enabled: bool,
    /// The listed clients, by id.
    pub listed: HashMap<String, ListedClient>,
    /// Names of the identity providers that let clients act for their people; empty: none does.
    pub id_jag: Vec<String>,
}

impl OauthServer {
    /// Whether any client may get tokens for itself.
    pub fn has_machines(&self) -> bool {
        self.listed.values().any(|client| client.machine.is_some())
    }

    /// Whether any client may ask about tokens.
    pub fn has_watchers(&self) -> bool {
        self.listed.values().any(|client| client.may_introspect)
    }
}

/// Postern as OAuth client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OauthClient {
    /// Exactly as written; `https` with a path. `None`: Postern's own documents.
    pub client_metadata_url: Option<String>,
    /// After so long a registration that no route needs is deleted.
    pub unused_registration_ttl: Duration,
}

/// Collects problems and knows where each key stands.
pub(super) struct Checker<'a> {
    document: &'a Node,
    environment: &'a dyn Environment,
    /// Names of the strategies that the program has besides its own.
    strategies: &'a [String],
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
    /// Whether Postern is for this machine alone; known once `server` is checked.
    loopback: bool,
}

impl<'a> Checker<'a> {
    pub(super) fn environment(&self) -> &'a dyn Environment {
        self.environment
    }

    /// Records a problem at `key`, or at what encloses it where `key` is not written.
    pub(super) fn refuse(&mut self, key: &Key, what: impl Into<String>, write: impl Into<String>) {
        self.problems.push(Problem {
            position: Some(self.document.locate(key)),
            key: key.clone(),
            what: what.into(),
            write: write.into(),
        });
    }

    /// The same for what works, and had better be otherwise.
    pub(super) fn warn(&mut self, key: &Key, what: impl Into<String>, write: impl Into<String>) {
        self.refuse(key, what, write);
        self.warnings.extend(self.problems.pop());
    }

    pub(super) fn strategies(&self) -> &'a [String] {
        self.strategies
    }

    pub(super) fn is_loopback(&self) -> bool {
        self.loopback
    }

    /// The file at `path`, which `key` names. `None`: a problem was recorded.
    pub(super) fn read(&mut self, key: &Key, path: &Path) -> Option<Vec<u8>> {
        match self.environment.read(path) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                let what = format!("{} cannot be read: {error}", path.display());
                self.refuse(key, what, "name a file that Postern's user can read");
                None
            }
        }
    }

    /// The duration written at `key`, or `default`; refused outside `least..=most`.
    pub(super) fn duration(
        &mut self,
        key: &Key,
        written: Option<&str>,
        default: Duration,
        least: Duration,
        most: Duration,
    ) -> Duration {
        let Some(text) = written else { return default };
        match humantime::parse_duration(text) {
            Ok(value) if value < least || value > most => {
                let (least, most) = (humantime::format_duration(least), humantime::format_duration(most));
                self.refuse(key, "is out of range", format!("write a duration from {least} to {most}"));
                default
            }
            Ok(value) => value,
            Err(_) => {
                let example = humantime::format_duration(default);
                self.refuse(key, "is not a duration", format!("write a number with a unit, like {example}"));
                default
            }
        }
    }

    /// Scopes (RFC 6749 §3.3), without repetitions, in order.
    pub(super) fn scopes(&mut self, key: &Key, written: &[String]) -> Vec<String> {
        let allowed = |byte: u8| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
        let mut scopes: Vec<String> = Vec::with_capacity(written.len());
        for (index, scope) in written.iter().enumerate() {
            if scope.is_empty() || !scope.bytes().all(allowed) {
                let write =
                    "write one scope per entry, of printable ASCII without spaces, quotes and backslashes";
                self.refuse(&key.item(index), "is not a scope", write);
            } else if !scopes.contains(scope) {
                scopes.push(scope.clone());
            }
        }
        scopes
    }

    /// An absolute `https` URL without userinfo and fragment; also `http` where the caller judges that (`plain`).
    pub(super) fn url(&mut self, key: &Key, written: &str, plain: bool) -> Option<Url> {
        let example = "write a URL like https://host.example.com/path";
        let url = match Url::parse(written) {
            Ok(url) if url.has_host() && matches!(url.scheme(), "https" | "http") => url,
            Ok(_) => {
                self.refuse(key, "is not an http or https URL", example);
                return None;
            }
            Err(error) => {
                self.refuse(key, format!("is not a URL: {error}"), example);
                return None;
            }
        };
        // The parser silently drops tabs, line breaks and outer spaces and turns backslashes; say it instead.
        if written.chars().any(|c| c.is_control() || c.is_whitespace() || c == '\\') {
            self.refuse(key, "contains spaces, control characters or backslashes", example);
        } else if !url.username().is_empty() || url.password().is_some() {
            self.refuse(key, "contains a user name or password", "leave out everything before `@`");
        } else if url.fragment().is_some() {
            self.refuse(key, "contains a fragment", "leave out `#` and what follows");
        } else if url.scheme() == "http" && !plain {
            self.refuse(key, "is http", "write https://");
        } else {
            return Some(url);
        }
        None
    }
}

/// Host of `url`, lower case, IPv6 without brackets: the form in which hosts are compared everywhere.
pub(super) fn bare_host(url: &Url) -> String {
    url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned()
}

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Checks all sections. `problems` are those found before.
pub(super) fn check(
    mut file: file::File,
    fixed: Fixed,
    document: &Node,
    (environment, strategies): (&dyn Environment, &[String]),
    problems: Vec<Problem>,
    name: &str,
) -> Result<Config, Report> {
    file.drop_empty_secrets();
    let mut check =
        Checker { document, environment, strategies, problems, warnings: Vec::new(), loopback: false };
    let server = server::check(&mut check, &file.server);
    check.loopback = server.as_ref().is_some_and(|server| server.public_url.is_loopback());
    let public_url = server.as_ref().map(|server| &server.public_url);
    let sealing_keys = secret::sealing_keys(&mut check, file.sealing_keys.as_deref().unwrap_or_default());
    let store = store::check(
        &mut check,
        file.store.as_ref(),
        file.sealing_keys.as_ref().is_some_and(|keys| !keys.is_empty()),
    );
    let oauth_client = oauth_client(&mut check, file.oauth_client);
    let issuers = trusted::check(&mut check, file.trusted_issuers.as_deref().unwrap_or_default(), public_url);
    let is_ours = |route: &&file::Route| kind::takes_ours(route, &issuers);
    let own_routes: Vec<String> =
        file.routes.iter().filter(is_ours).map(|route| route.name.clone()).collect();
    let has_people = !own_routes.is_empty() || file.login.is_some() || file.managed.is_some();
    let login = login::check(&mut check, &file.login.unwrap_or_default(), server.as_ref(), has_people);
    let names = Names { routes: &own_routes, users: &|user| login.knows(user) };
    let oauth_server = oauth_server(&mut check, &file.oauth_server.unwrap_or_default(), &names, &login);
    let outbound = outbound::check(&mut check, file.outbound);
    let traces = telemetry::check(&mut check, file.telemetry.as_ref());
    let policy =
        file.policy.as_ref().map(|written| policy::section(&mut check, &Key::top("policy"), written));
    let limits = file.limits.unwrap_or_default();
    let at_calls = Key::top("limits").child("calls");
    let calls = calls::check(&mut check, &at_calls, limits.calls.as_deref().unwrap_or_default(), None);
    let limits = limits::check(&mut check, &limits);
    let everywhere = policy::of_route(&mut check, &Key::top("policy"), None, policy.as_ref(), true);
    let managed = managed::check(&mut check, file.managed.as_ref(), everywhere, &calls);
    let reserved = managed.is_some();
    let around =
        route::Around { public_url, issuers: &issuers, login: &login, policy, calls: &calls, reserved };
    let routes = route::check(&mut check, &file.routes, &around);
    let taken = server.iter().flat_map(server::Server::addresses).collect::<Vec<_>>();
    let tcp = tcp::check(&mut check, &file.routes, &taken, file.server.tls.is_some());
    if let Some(public_url) = public_url {
        let written = file.trusted_issuers.as_deref().unwrap_or_default();
        trusted::check_audiences(&mut check, written, &routes, public_url);
    }
    match server {
        Some(server) if check.problems.is_empty() => Ok(Config {
            server,
            store,
            sealing_keys,
            oauth_server,
            oauth_client,
            login,
            outbound,
            limits,
            traces,
            managed,
            routes,
            tcp,
            fixed,
            warnings: Report::new(name, check.warnings),
        }),
        _ => Err(Report::new(name, check.problems)),
    }
}

fn oauth_server(
    check: &mut Checker<'_>,
    written: &file::OauthServer,
    names: &Names<'_>,
    login: &login::Login,
) -> OauthServer {
    let key = Key::top("oauth_server");
    let signing_keys = secret::signing_keys(check, written.signing_keys.as_deref().unwrap_or_default());
    let access_token_ttl = check.duration(
        &key.child("access_token_ttl"),
        written.access_token_ttl.as_deref(),
        10 * MINUTE,
        SECOND,
        ACCESS_TOKEN_TTL_MAX,
    );
    let refresh_token_ttl = check.duration(
        &key.child("refresh_token_ttl"),
        written.refresh_token_ttl.as_deref(),
        30 * DAY,
        access_token_ttl,
        3650 * DAY,
    );
    let grant_ttl = check.duration(
        &key.child("grant_ttl"),
        written.grant_ttl.as_deref(),
        365 * DAY,
        access_token_ttl,
        3650 * DAY,
    );
    let refresh_replay_window = check.duration(
        &key.child("refresh_replay_window"),
        written.refresh_replay_window.as_deref(),
        30 * SECOND,
        Duration::ZERO,
        MINUTE,
    );
    let clients = written.clients.as_ref();
    let cimd = clients::cimd(check, clients.and_then(|clients| clients.cimd.as_ref()));
    let id_jag = id_jag::issuers(check, written.id_jag.as_ref(), login);
    let listed = clients.and_then(|clients| clients.listed.as_ref());
    let listed = clients::listed(check, listed, names, !id_jag.is_empty());
    let dcr = clients.and_then(|clients| clients.dcr.as_ref());
    OauthServer {
        access_token_ttl,
        refresh_token_ttl,
        grant_ttl,
        refresh_replay_window,
        access_token_format: written.access_token_format.unwrap_or_default(),
        signing_keys,
        cimd,
        listed,
        id_jag,
        dcr_enabled: dcr.and_then(|dcr| dcr.enabled).unwrap_or(true),
    }
}

/// A client id that is a URL: https, a path, no dot segments (client ID metadata document draft, §3).
fn oauth_client(check: &mut Checker<'_>, written: Option<file::OauthClient>) -> OauthClient {
    let key = Key::top("oauth_client").child("client_metadata_url");
    let (client_metadata_url, ttl) = written
        .map_or((None, None), |section| (section.client_metadata_url, section.unused_registration_ttl));
    if let Some(text) = &client_metadata_url
        && let Some(url) = check.url(&key, text, false)
    {
        let example = "write a URL like https://mcp.example.com/oauth/client.json";
        if url.path() == "/" {
            check.refuse(&key, "has no path", example);
        } else if has_dot_segment(text) {
            check.refuse(&key, "contains `.` or `..` as a part of its path", example);
        }
    }
    let key = Key::top("oauth_client").child("unused_registration_ttl");
    let unused_registration_ttl = check.duration(&key, ttl.as_deref(), 7 * DAY, Duration::ZERO, 3650 * DAY);
    OauthClient { client_metadata_url, unused_registration_ttl }
}

/// Whether a path in `text` has a segment `.` or `..`, percent-encoded or not.
pub(super) fn has_dot_segment(text: &str) -> bool {
    let path = text.split(['?', '#']).next().unwrap_or_default().to_ascii_lowercase().replace("%2e", ".");
    path.split('/').any(|segment| matches!(segment, "." | ".."))
}
