//! Whether, before consent, a user has to go to an upstream's authorization server, and where that is.
//!
//! What an upstream says is remembered for a while, so that many who come for the first time ask it once; whoever has been
//! there before, or was sent by it, comes because something has changed, and has it asked anew.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dashmap::DashMap;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::discover::{AuthorizationServer, DiscoverError, Discovered, Overrides, Target, discover};
use super::probe::{Probe, probe};
use super::refresh::{Outdated, Renewed};
use super::standing::LastSaid;
use super::{Connector, connection_key};
use crate::clock::unix_seconds;
use crate::config::{Credential, OauthCredential};
use crate::outbound::Outbound;
use crate::route::{Route, Table};
use crate::seal;
use crate::store::record::{RecordError, Tokens};
use crate::store::{Connection, State};

/// How long what was discovered counts for people who come for the first time.
const DISCOVERED: Duration = Duration::from_secs(600);
/// So long before its end it is discovered again, where somebody has used it since.
const AHEAD: Duration = Duration::from_secs(60);
/// More upstreams than that are forgotten together.
const UPSTREAMS: usize = 20_000;

/// What a user will be asked for, and where.
#[derive(Clone, Serialize, Deserialize)]
pub struct Plan {
    pub discovered: Discovered,
    pub scopes: Vec<String>,
    /// What the upstream asked for in the middle of things, if that is why.
    #[serde(default)]
    pub step_up: Option<Vec<String>>,
}

/// Whether a user has to go to the upstream's authorization server.
pub enum Prospect {
    /// The upstream asks for nobody.
    NotNeeded,
    /// The user has been there; with what the connection may do.
    Connected {
        scopes: Vec<String>,
    },
    Needed(Box<Plan>),
    /// The user has to sign in at this identity provider (its short name): once more, or for the first time.
    SignIn(String),
    /// The user has to hand over a secret, on the page of the route.
    Key,
    /// The upstream is out of reach, so nobody can say.
    Unknown,
    /// It asks for a token and does not say who gives one.
    Unexplained,
}

/// What upstreams have said.
#[derive(Default)]
pub(super) struct Upstreams(DashMap<String, Arc<Said>>);

#[derive(Default)]
struct Said {
    /// Held while the upstream is asked.
    latest: Mutex<Option<Latest>>,
    /// How often it has answered.
    count: AtomicU64,
    /// Somebody has used what it said.
    is_used: AtomicBool,
    /// When it was asked last and did not answer, seconds since the epoch; 0: it did.
    silent_at: AtomicU64,
}

struct Latest {
    upstream: Upstream,
    at: SystemTime,
    /// It says so to everybody; otherwise it lets people in, and counts as protected for those alone whom it has asked for a
    /// token later on.
    is_for_all: bool,
}

/// What an upstream says without a credential.
#[derive(Clone)]
pub enum Upstream {
    /// It asks for nothing.
    Open,
    /// It does not answer.
    Silent,
    /// It wants a token, of these.
    Protected(Result<Arc<Discovered>, DiscoverError>),
}

impl Upstream {
    /// Good enough to be remembered.
    fn is_good(&self) -> bool {
        matches!(self, Self::Protected(Ok(found)) if found.server.is_published)
    }
}

impl Latest {
    fn is_good(&self) -> bool {
        self.upstream.is_good()
    }
}

impl Upstreams {
    fn of(&self, name: &str) -> Arc<Said> {
        if self.0.len() > UPSTREAMS {
            self.0.clear();
        }
        Arc::clone(&self.0.entry(name.to_owned()).or_default())
    }
}

impl Connector {
    /// Asks the upstream, with no credential, whether it wants one, and finds out from whom.
    pub async fn prospect(
        self: &Arc<Self>,
        route: &Arc<Route>,
        user: &str,
    ) -> Result<Prospect, DiscoverError> {
        self.look(route, user, false).await
    }

    /// As [`Connector::prospect`], for a user who wants to go there although what they have works. It goes on working
    /// until something newer is there.
    pub async fn prospect_anew(
        self: &Arc<Self>,
        route: &Arc<Route>,
        user: &str,
    ) -> Result<Prospect, DiscoverError> {
        self.look(route, user, true).await
    }

    async fn look(
        self: &Arc<Self>,
        route: &Arc<Route>,
        user: &str,
        anew: bool,
    ) -> Result<Prospect, DiscoverError> {
        if route.is_of_another(Some(user)) {
            return Ok(Prospect::NotNeeded);
        }
        let oauth = match (&route.credential, route.credential.provider()) {
            (Credential::Oauth(oauth), _) => oauth,
            (_, Some(provider)) => return Ok(self.prospect_at_provider(provider, route, user, anew).await),
            (Credential::UserHeader(_), None) => return Ok(self.prospect_of_key(route, user, anew).await),
            (_, None) => return Ok(Prospect::NotNeeded),
        };
        let key = connection_key(user, route);
        let existing = match self.records.connection(&key).await {
            Ok(existing) => existing,
            // Nobody can read it any more: only a new authorization helps.
            Err(RecordError::Unreadable) => None,
            Err(_) => return Ok(Prospect::Unknown),
        };
        let incarnation = existing.as_ref().map(|(connection, _)| connection.incarnation.as_str());
        let challenge = self.open_challenge(&key, incarnation).await;
        if let (None, Some((connection, tokens)), false) = (&challenge, &existing, anew)
            && self.is_usable(route, &key, connection, tokens).await
        {
            // A renewal may have changed them.
            let renewed = self.records.connection(&key).await.ok().flatten();
            let scopes = renewed.map_or_else(|| tokens.scopes.clone(), |(_, tokens)| tokens.scopes);
            return Ok(Prospect::Connected { scopes });
        }
        if self.is_unexplained(route) {
            return Ok(Prospect::Unexplained);
        }
        // Some servers ask only once a tool is called; and whoever was there before comes because something has changed.
        let has_asked = challenge.is_some() || existing.is_some();
        let discovered = match self.upstream(route, oauth, has_asked).await {
            Upstream::Open => return Ok(Prospect::NotNeeded),
            Upstream::Silent => return Ok(Prospect::Unknown),
            // The upstream wants a token, so without its authorization server the client would get one of ours and be
            // refused with it: its flow ends here, for now or for good.
            Upstream::Protected(discovered) => Arc::unwrap_or_clone(discovered?),
        };
        // What was asked for before is asked for again: a step up adds (MCP Step-Up, SEP-2350).
        let before = existing.into_iter().flat_map(|(_, tokens)| tokens.requested_scopes);
        let challenge = challenge.unwrap_or_default();
        let step_up = challenge.stepped_up();
        let mut scopes = Vec::new();
        for scope in discovered.scopes.iter().cloned().chain(challenge.scopes).chain(before) {
            if !scopes.contains(&scope) {
                scopes.push(scope);
            }
        }
        Ok(Prospect::Needed(Box::new(Plan { discovered, scopes, step_up })))
    }

    /// Whether the connection may do more than these scopes say, so that a client with no others cannot use it. What cannot be
    /// found out now is found out with the next call.
    pub async fn has_outgrown(&self, user: &str, route: &Route, scopes: &[String]) -> bool {
        let is_new = |scope: &String| !scopes.contains(scope) && !route.rules.has_scope(scope);
        self.connected_scopes(user, route).await.iter().any(is_new)
    }

    /// What the connection may do that the user has made for this route alone; nothing where there is none that works, or
    /// nobody can tell now.
    pub async fn connected_scopes(&self, user: &str, route: &Route) -> Vec<String> {
        if !matches!(route.credential, Credential::Oauth(_)) || route.owner.is_some() {
            return Vec::new();
        }
        let found = self.records.connection(&connection_key(user, route)).await.ok().flatten();
        let usable = found.filter(|(connection, _)| connection.state != State::NeedsReauth);
        usable.map(|(_, tokens)| tokens.scopes).unwrap_or_default()
    }

    /// Whether the connection will do, without the user: what has run out is renewed, so that a grant that is dead is found
    /// now and not by the client's first call.
    pub(super) async fn is_usable(
        self: &Arc<Self>,
        route: &Arc<Route>,
        key: &str,
        connection: &Connection,
        tokens: &Tokens,
    ) -> bool {
        if connection.state == State::NeedsReauth || !is_alive(tokens, self.clock.now()) {
            return false;
        }
        let is_over = tokens.expires_at.is_some_and(|end| end <= self.clock.now());
        if !is_over && connection.refused < connection.generation {
            return true;
        }
        let outdated = Outdated {
            incarnation: connection.incarnation.as_str().into(),
            generation: connection.generation,
        };
        // What cannot be had now is no reason to ask the user.
        !matches!(self.renew(route, key, &outdated).await, Renewed::NeedsUser)
    }

    /// What the upstream of this route says. `has_asked`: it has asked for a token already, whatever it says now, and what
    /// is remembered of it is too old.
    async fn upstream(&self, route: &Route, oauth: &OauthCredential, has_asked: bool) -> Upstream {
        let overrides = Overrides::from(oauth);
        let said = self.upstreams.of(&name_of(route, &overrides));
        let before = said.count.load(Ordering::Acquire);
        let mut latest = said.latest.lock().await;
        // Whoever was asked while we waited for our turn has said it to us as well.
        let is_new = said.count.load(Ordering::Acquire) > before;
        if let Some(Latest { upstream: known, at, is_for_all }) = &*latest {
            // What went wrong counts for those who have waited for it, and for nobody after them.
            let is_fresh = known.is_good() && !has_asked && self.clock.now() < *at + DISCOVERED;
            let is_ours = if has_asked { !matches!(known, Upstream::Open) } else { *is_for_all };
            if (is_new || is_fresh) && is_ours {
                said.is_used.store(true, Ordering::Release);
                return known.clone();
            }
        }
        let (answer, is_for_all) = ask(&self.outbound, route, &overrides, has_asked).await;
        let is_outage = match &answer {
            Upstream::Silent => true,
            Upstream::Protected(Err(error)) => error.is_transient(),
            _ => false,
        };
        said.silent_at.store(if is_outage { unix_seconds(self.clock.now()) } else { 0 }, Ordering::Release);
        let is_held =
            latest.as_ref().is_some_and(|latest| matches!(latest.upstream, Upstream::Protected(Ok(_))));
        // An outage does not take away what others can still use.
        if !(is_outage && is_held) {
            *latest = Some(Latest { upstream: answer.clone(), at: self.clock.now(), is_for_all });
            said.count.fetch_add(1, Ordering::Release);
        }
        answer
    }

    /// Discovers again what is used and about to be forgotten. Whoever comes meanwhile goes by what there is.
    pub async fn renew_discovered(&self, routes: &Table) {
        for route in routes.iter() {
            let Credential::Oauth(oauth) = &route.credential else { continue };
            let overrides = Overrides::from(oauth);
            let Some(said) = self.upstreams.0.get(&name_of(route, &overrides)).map(|said| Arc::clone(&said))
            else {
                continue;
            };
            let now = self.clock.now();
            let is_due = said.latest.try_lock().is_ok_and(|latest| {
                latest
                    .as_ref()
                    .is_some_and(|latest| latest.is_good() && now + AHEAD >= latest.at + DISCOVERED)
            });
            if !is_due || !said.is_used.swap(false, Ordering::AcqRel) {
                continue;
            }
            let (upstream, is_for_all) = ask(&self.outbound, route, &overrides, false).await;
            let latest = Latest { upstream, at: self.clock.now(), is_for_all };
            // Anything else is found out by whoever needs to know.
            if latest.is_good() {
                *said.latest.lock().await = Some(latest);
            }
        }
    }

    /// The authorization server that the upstream names now.
    pub(super) async fn issuer_of_today(
        &self,
        route: &Route,
        oauth: &OauthCredential,
    ) -> Option<AuthorizationServer> {
        match self.upstream(route, oauth, true).await {
            Upstream::Protected(Ok(found)) => Some(found.server.clone()),
            _ => None,
        }
    }

    /// It asks for a token, names nobody who gives one, and where servers of the first revision have one there is nobody either:
    /// for a while nobody is sent there.
    pub fn nobody_gives_tokens(&self, route: &Route) {
        tracing::error!(target: "postern::oauth", route = %route.name, "the upstream asks for a token and publishes no authorization server: write credential.authorization_endpoint and token_endpoint if it has one, or another credential.kind");
        if self.unexplained.len() > UPSTREAMS {
            self.unexplained.clear();
        }
        self.unexplained.insert(unexplained_at(route), self.clock.now());
    }

    /// Whether that was found out of late.
    pub fn is_unexplained(&self, route: &Route) -> bool {
        if self.unexplained.is_empty() {
            return false;
        }
        let found = self.unexplained.get(&unexplained_at(route)).map(|at| *at);
        found.is_some_and(|at| self.clock.now() < at + DISCOVERED)
    }

    /// What the upstream of this route has said to this process of late.
    pub(super) fn last_said(&self, route: &Route) -> LastSaid {
        let Credential::Oauth(oauth) = &route.credential else { return LastSaid::default() };
        let said =
            self.upstreams.0.get(&name_of(route, &Overrides::from(oauth))).map(|said| Arc::clone(&said));
        let Some(said) = said else { return LastSaid::default() };
        let latest = said.latest.try_lock();
        let is_open = latest.is_ok_and(|latest| {
            latest.as_ref().is_some_and(|latest| matches!(latest.upstream, Upstream::Open))
        });
        let silent_at = match said.silent_at.load(Ordering::Acquire) {
            0 => None,
            seconds => Some(UNIX_EPOCH + Duration::from_secs(seconds)),
        };
        LastSaid { is_open, silent_at }
    }

    /// What was remembered of the upstream has led nowhere.
    pub(super) fn forget_upstream(&self, route: &Route) {
        if let Credential::Oauth(oauth) = &route.credential {
            self.upstreams.0.remove(&name_of(route, &Overrides::from(oauth)));
        }
    }
}

/// What the upstream of this route says, and whether it says so to everybody.
pub async fn ask(
    outbound: &Outbound,
    route: &Route,
    overrides: &Overrides,
    has_asked: bool,
) -> (Upstream, bool) {
    let (bearer, is_for_all) = match probe(outbound, &route.upstream.url, &route.upstream.policy).await {
        Probe::Challenged { bearer, .. } => (bearer, true),
        Probe::Open if has_asked => (None, false),
        Probe::Open => return (Upstream::Open, true),
        Probe::Unreachable(reason) => {
            tracing::info!(target: "postern::oauth", route = %route.name, %reason, "upstream does not answer the probe");
            return (Upstream::Silent, true);
        }
    };
    let target = Target { url: &route.upstream.url, policy: &route.upstream.policy, overrides };
    let discovered = discover(outbound, &target, bearer.as_ref()).await;
    (Upstream::Protected(discovered.map(Arc::new)), is_for_all)
}

/// The route as it is configured: once it is mended, nothing is remembered of it.
fn unexplained_at(route: &Route) -> String {
    match &route.credential {
        Credential::Oauth(oauth) => name_of(route, &Overrides::from(oauth)),
        _ => route.place.clone(),
    }
}

fn name_of(route: &Route, overrides: &Overrides) -> String {
    seal::digest(&format!("{}\0{overrides:?}", route.place))
}

/// Whether tokens are good for something: unexpired, or renewable.
pub(super) fn is_alive(tokens: &Tokens, now: SystemTime) -> bool {
    tokens.refresh_token.is_some() || tokens.expires_at.is_none_or(|end| end > now)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use serde_json::json;

    use super::*;
    use crate::oauth::client::stub::{Answer, Bench, Stub};

    #[tokio::test]
    async fn what_is_used_is_discovered_again_before_it_is_forgotten() {
        let stub = Stub::start(|seen, base| match seen.path.as_str() {
            "/.well-known/oauth-authorization-server" => Answer::json(
                200,
                json!({
                    "issuer": base, "authorization_endpoint": format!("{base}/authorize"),
                    "token_endpoint": format!("{base}/token"), "code_challenge_methods_supported": ["S256"],
                }),
            ),
            "/mcp" => Answer::status(401),
            _ => Answer::status(404),
        })
        .await;
        let bench = Bench::new().lead_to(&stub.url("/mcp"));
        let (connector, route, table) = (Arc::new(bench.connector()), bench.route(), bench.table());
        let asked = || stub.paths().iter().filter(|path| path.as_str() == "/mcp").count();
        let come = async |user: &str| {
            assert!(matches!(connector.prospect(&route, user).await, Ok(Prospect::Needed(_))));
        };
        come("alice").await;
        bench.clock.advance(DISCOVERED - AHEAD);
        connector.renew_discovered(&table).await;
        assert_eq!(asked(), 1, "nobody has come by since");
        come("bob").await;
        connector.renew_discovered(&table).await;
        assert_eq!(asked(), 2);
        // Whoever comes after the end of the first does not wait.
        bench.clock.advance(AHEAD * 2);
        come("carol").await;
        assert_eq!(asked(), 2);
    }
}
