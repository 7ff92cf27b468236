//! `aws_sigv4`: the ID token of the user's identity provider → the credentials of their role at AWS, by which requests are
//! signed.
//!
//! Which role that is follows from what the ID token says, when the credentials are got, and from the conditions on the caller,
//! as they are with each call. They are kept by this process until
//! they end, and a newer ID token alone changes nothing about them; another sign-in, or a configuration that says something
//! else, does. Every instance gets its own: a role may be assumed by several at once.
mod signer;
mod sts;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quick_cache::sync::Cache;
use secrecy::ExposeSecret;

use super::connection::Connections;
use super::whose::Whose;
use super::window::{spread, window};
use super::{Ask, Credential, Put, Source, Unresolved};
use crate::authn::Caller;
use crate::config::{Attributes, AwsSigv4, RolesHeld};
use crate::expression::{Facts, List, Map, Name, Value};
use crate::oauth::client::Connector;
use crate::oauth::client::flight::Flights;
use crate::oauth::client::refresh::Outdated;
use crate::route::Route;
use crate::telemetry::audit::Act;
use crate::{jose, seal};

use self::sts::{Asked, NotAssumed};
pub use signer::{Signer, Unsignable};

/// So many are kept, those that are used least go first.
const SESSIONS: usize = 50_000;
const RETRY: Duration = Duration::from_secs(2);
/// The token service is not asked again so soon after a refusal, its own or the upstream's.
const QUIET: Duration = Duration::from_secs(30);

/// The credentials of roles, in memory.
pub struct Roles {
    connector: Arc<Connector>,
    connections: Arc<Connections>,
    held: Cache<String, Held>,
    flights: Flights<Result<Arc<Session>, Unresolved>>,
}

/// What is known of one user at one route.
#[derive(Clone, Default)]
struct Held {
    session: Option<Arc<Session>>,
    /// Until when nothing is asked, and why.
    failed: Option<(SystemTime, Unresolved)>,
}

/// A role as somebody has it for a while.
struct Session {
    /// Names it, and is not secret.
    id: Arc<str>,
    signer: Arc<Signer>,
    /// It came in place of one that was refused; until then nobody asks for a third.
    insists_until: Option<SystemTime>,
    /// From here on another one is got in the background.
    refresh_at: SystemTime,
    /// From here on nothing is signed any more.
    dead_at: SystemTime,
}

/// Whose role is wanted, where.
#[derive(Clone)]
struct Wanted {
    key: String,
    whose: Arc<Whose<'static>>,
    route: Arc<Route>,
    aws: Arc<AwsSigv4>,
    /// What the conditions of its roles come to.
    roles: RolesHeld,
    /// In place of one that the upstream has refused.
    instead: bool,
}

/// What the conditions of roles may speak of.
struct Known<'a> {
    caller: &'a Caller,
    attributes: &'a Attributes,
}

impl Facts for Known<'_> {
    fn fact(&self, name: Name) -> Option<Value<'_>> {
        Some(match name {
            Name::CallerSubject => Value::text(self.caller.subject()),
            Name::CallerIssuer => Value::text(self.caller.issuer()),
            Name::CallerEmail => Value::text(&self.attributes.email),
            Name::CallerGroups => Value::List(List::Texts(&self.attributes.groups)),
            Name::CallerClaims => Value::Map(Map::Json(&self.attributes.claims)),
            Name::CallerClient => Value::text(self.caller.client()),
            Name::CallerMachine => Value::Bool(self.caller.is_machine()),
            _ => return None,
        })
    }
}

impl Roles {
    pub fn new(connector: Arc<Connector>, connections: Arc<Connections>) -> Self {
        Self { connector, connections, held: Cache::new(SESSIONS), flights: Flights::default() }
    }

    pub(super) async fn resolve(
        self: &Arc<Self>,
        ask: &Ask<'_>,
        aws: &Arc<AwsSigv4>,
    ) -> Result<Credential, Unresolved> {
        let (route, now) = (ask.permit.route(), ask.now);
        let whose = Whose::of(ask, &self.connections).await?;
        let of = whose.connection().ok_or(Unresolved::NeedsUser { incarnation: None })?;
        let known = Known { caller: ask.permit.caller(), attributes: ask.attributes };
        let roles = aws.held(&known);
        let key = format!("{}\0{}\0{}\0{roles:?}", of.0, of.1, aws.facts());
        let held = self.held.get(&key).unwrap_or_default();
        let is_refused =
            |session: &Session| ask.refused.is_some_and(|refused| refused.incarnation == session.id);
        let failure = held.failed.filter(|(until, _)| now < *until).map(|(_, why)| why);
        let wanted = || {
            let (whose, route, aws) = (Arc::new(whose.kept()), Arc::clone(route), Arc::clone(aws));
            let roles = roles.clone();
            Wanted { key: key.clone(), whose, route, aws, roles, instead: ask.refused.is_some() }
        };
        let (session, act) = match held.session.filter(|session| now < session.dead_at) {
            Some(session) if !is_refused(&session) => {
                if now >= session.refresh_at && failure.is_none() {
                    let (this, wanted) = (Arc::clone(self), wanted());
                    tokio::spawn(async move { this.shared(wanted).await });
                }
                (session, Act::Inject)
            }
            session => match failure {
                Some(why) => return Err(why),
                None => {
                    let act = if session.is_some() { Act::Refresh } else { Act::Acquire };
                    (self.shared(wanted()).await?, act)
                }
            },
        };
        let source = Source::Exchanged {
            key: key.as_str().into(),
            id: Arc::clone(&session.id),
            renewable: act == Act::Inject && session.insists_until.is_none_or(|until| now >= until),
            of: Some(of),
        };
        Ok(Credential { put: Put::Sign(Arc::clone(&session.signer)), source, act })
    }

    /// What one attempt comes to, for all who want it at once.
    async fn shared(self: &Arc<Self>, wanted: Wanted) -> Result<Arc<Session>, Unresolved> {
        let begin = || {
            let (this, wanted) = (Arc::clone(self), wanted.clone());
            async move { this.fetch(&wanted).await }
        };
        let outcome = self.flights.join(&wanted.key, self.connector.in_flight(), begin).await;
        outcome.unwrap_or(Err(Unresolved::Unavailable { retry_after: RETRY }))
    }

    async fn fetch(&self, wanted: &Wanted) -> Result<Arc<Session>, Unresolved> {
        let outcome = self.assume(wanted).await;
        let now = self.connector.clock.now();
        let held = match &outcome {
            Ok(session) => Held { session: Some(Arc::clone(session)), failed: None },
            Err(why) => {
                let quiet = match why {
                    Unresolved::Unavailable { retry_after } => *retry_after,
                    Unresolved::Refused => QUIET,
                    // Another sign-in is another key, and what an ID token says is asked of nobody.
                    _ => Duration::ZERO,
                };
                // What is there serves until it ends.
                let before = self.held.get(&wanted.key).unwrap_or_default();
                Held { failed: Some((now + quiet, why.clone())), ..before }
            }
        };
        self.held.insert(wanted.key.clone(), held);
        outcome
    }

    async fn assume(&self, wanted: &Wanted) -> Result<Arc<Session>, Unresolved> {
        let Wanted { whose, route, aws, roles, instead, .. } = wanted;
        let mut refused: Option<Outdated> = None;
        loop {
            let now = self.connector.clock.now();
            let of = (&*whose.grant, &*whose.user);
            let subject = self.connections.subject(of, route, refused.as_ref(), now).await?;
            let (token, shown) = (subject.token, subject.of);
            // It was verified when it came.
            let claims = jose::unverified(token.expose_secret()).ok_or(Unresolved::Refused)?;
            let role = aws.role(&claims.sub, &claims.rest, roles).ok_or(Unresolved::NoRole)?;
            let asked = Asked {
                region: &aws.region,
                endpoint: aws.sts_endpoint.as_deref(),
                role,
                session_name: &aws.session_name(&claims.sub, &claims.rest),
                token: &token,
                duration: aws.duration,
            };
            match sts::assume(&self.connector.outbound, &route.upstream.policy, &asked).await {
                Ok((credentials, ends_at)) => {
                    let id = seal::name().map_err(|_| Unresolved::Unavailable { retry_after: RETRY })?;
                    let (refresh_at, dead_at) = window(now, ends_at, spread(&id));
                    let signer = Arc::new(Signer::new(credentials, &aws.region, &aws.service));
                    let insists_until = instead.then(|| now + QUIET);
                    return Ok(Arc::new(Session {
                        id: id.into(),
                        signer,
                        insists_until,
                        refresh_at,
                        dead_at,
                    }));
                }
                // By the clock of AWS; a newer one is taken.
                Err(NotAssumed::Expired) if refused.is_none() => refused = Some(shown),
                Err(NotAssumed::Expired) => {
                    return Err(Unresolved::NeedsUser { incarnation: Some(shown.incarnation) });
                }
                // No other token of this provider would do either: AWS does not know it, or us.
                Err(NotAssumed::Invalid | NotAssumed::Refused) => return Err(Unresolved::Refused),
                Err(NotAssumed::Later) => return Err(Unresolved::Unavailable { retry_after: RETRY }),
            }
        }
    }
}
