//! Whether, before consent, a user has to go to an upstream's authorization server, and where that is.
//!
//! What an upstream says is remembered for a while, so that many who come for the first time ask it once; whoever has been
//! there before, or was sent by it, comes because something has changed, and has it asked anew.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use dashmap::DashMap;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::discover::{DiscoverError, Discovered, Overrides, Target, discover};
use super::probe::{Probe, probe};
use super::refresh::{Outdated, Renewed};
use super::{Connector, connection_key};
use crate::config::{Credential, OauthCredential};
use crate::route::Route;
use crate::seal;
use crate::store::record::{RecordError, Tokens};
use crate::store::{Connection, State};

/// How long what was discovered counts for people who come for the first time.
const DISCOVERED: Duration = Duration::from_secs(600);
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
    /// The user has to sign in once more at their identity provider, of this short name.
    SignIn(String),
    /// Only people of another identity provider than this user's can use the route.
    NotTheirs,
    /// The upstream is out of reach, so nobody can say.
    Unknown,
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
enum Upstream {
    /// It asks for nothing.
    Open,
    /// It does not answer.
    Silent,
    /// It wants a token, of these.
    Protected(Result<Arc<Discovered>, DiscoverError>),
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
        let oauth = match &route.credential {
            Credential::Oauth(oauth) => oauth,
            Credential::UpstreamInject(provider) => {
                return Ok(self.prospect_at_provider(provider, route, user).await);
            }
            Credential::None | Credential::Header { .. } => return Ok(Prospect::NotNeeded),
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
        if let (None, Some((connection, tokens))) = (&challenge, &existing)
            && self.is_usable(route, &key, connection, tokens).await
        {
            return Ok(Prospect::Connected { scopes: tokens.scopes.clone() });
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
        let overrides = overrides(oauth);
        let said = self.upstreams.of(&name_of(route, &overrides));
        let before = said.count.load(Ordering::Acquire);
        let mut latest = said.latest.lock().await;
        // Whoever was asked while we waited for our turn has said it to us as well.
        let is_new = said.count.load(Ordering::Acquire) > before;
        if let Some(Latest { upstream: known, at, is_for_all }) = &*latest {
            // What went wrong counts for those who have waited for it, and for nobody after them.
            let is_good = matches!(known, Upstream::Protected(Ok(found)) if found.server.is_published);
            let is_fresh = is_good && !has_asked && self.clock.now() < *at + DISCOVERED;
            let is_ours = if has_asked { !matches!(known, Upstream::Open) } else { *is_for_all };
            if (is_new || is_fresh) && is_ours {
                return known.clone();
            }
        }
        let (answer, is_for_all) = self.ask(route, &overrides, has_asked).await;
        let is_outage = match &answer {
            Upstream::Silent => true,
            Upstream::Protected(Err(error)) => error.is_transient(),
            _ => false,
        };
        let is_held =
            latest.as_ref().is_some_and(|latest| matches!(latest.upstream, Upstream::Protected(Ok(_))));
        // An outage does not take away what others can still use.
        if !(is_outage && is_held) {
            *latest = Some(Latest { upstream: answer.clone(), at: self.clock.now(), is_for_all });
            said.count.fetch_add(1, Ordering::Release);
        }
        answer
    }

    /// What was remembered of the upstream has led nowhere.
    pub(super) fn forget_upstream(&self, route: &Route) {
        if let Credential::Oauth(oauth) = &route.credential {
            self.upstreams.0.remove(&name_of(route, &overrides(oauth)));
        }
    }

    /// What it says, and whether it says so to everybody.
    async fn ask(&self, route: &Route, overrides: &Overrides, has_asked: bool) -> (Upstream, bool) {
        let (bearer, is_for_all) = match probe(&self.outbound, &route.upstream.url, &route.upstream.policy)
            .await
        {
            Probe::Challenged { bearer, .. } => (bearer, true),
            Probe::Open if has_asked => (None, false),
            Probe::Open => return (Upstream::Open, true),
            Probe::Unreachable(reason) => {
                tracing::info!(target: "postern::oauth", route = %route.name, %reason, "upstream does not answer the probe");
                return (Upstream::Silent, true);
            }
        };
        let target = Target { url: &route.upstream.url, policy: &route.upstream.policy, overrides };
        let discovered = discover(&self.outbound, &target, bearer.as_ref()).await;
        (Upstream::Protected(discovered.map(Arc::new)), is_for_all)
    }
}

fn name_of(route: &Route, overrides: &Overrides) -> String {
    seal::digest(&format!("{}\0{overrides:?}", route.place))
}

fn overrides(oauth: &OauthCredential) -> Overrides {
    Overrides {
        issuer: oauth.issuer.clone(),
        authorization_endpoint: oauth.authorization_endpoint.clone(),
        token_endpoint: oauth.token_endpoint.clone(),
        resource: oauth.resource.clone(),
        scopes: oauth.scopes.clone(),
        profile: oauth.profile,
    }
}

/// Whether tokens are good for something: unexpired, or renewable.
pub(super) fn is_alive(tokens: &Tokens, now: SystemTime) -> bool {
    tokens.refresh_token.is_some() || tokens.expires_at.is_none_or(|end| end > now)
}
