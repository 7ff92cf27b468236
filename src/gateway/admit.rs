//! The stages before the upstream, in their order: what comes out is permitted, or is answered by ourselves.
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderValue, Method};
use pingora::http::RequestHeader;
use pingora::proxy::Session;

use super::context::{Context, Target};
use super::inspect::Asked;
use super::quota::{self, Counted};
use super::seen::timed;
use super::session::{NoSession, Opening, Session as McpSession};
use super::{Gateway, body, local, plain, screen, sign};
use crate::authn::{Caller, Reach};
use crate::config::Attributes;
use crate::credential::{Ask, Credential, Unresolved};
use crate::managed::address::is_contained;
use crate::mcp::{self, ItemKind, METHOD, SUBSCRIPTION};
use crate::oauth::client::challenged::Challenge;
use crate::oauth::client::connection_key;
use crate::oauth::client::refresh::Outdated;
use crate::oauth::server::Snapshot;
use crate::oauth::server::access_token::Keys;
use crate::policy::{Decision, Denied, Permit, Question, Request};
use crate::respond::Failure;
use crate::route::{Route, canonical_path};
use crate::telemetry::audit::{self, Sink};
use crate::{authn, origin, policy, web};

/// While the store does not say what is known of somebody.
const AGAIN: Duration = Duration::from_secs(1);

/// What a request turned out to be.
pub(super) enum Admitted {
    Proxied,
    Local { path: String, authority: String },
    Preflight,
}

impl Gateway {
    /// Says what becomes of a request.
    pub(super) async fn admit(&self, session: &mut Session, ctx: &mut Context) -> Result<Admitted, Failure> {
        let is_preflight = plain::is_preflight(session);
        self.require_room(&ctx.snapshot.config.limits)?;
        let said = screen::request(session, &ctx.snapshot.config.limits)?;
        let head = session.req_header();
        let snapshot = Arc::clone(&ctx.snapshot);
        let host = screen::host(head).ok_or(Failure::Malformed("exactly one host is needed"))?;
        let path = canonical_path(head.uri.path())?;
        let matched = if let Some(challenge) = plain::challenge(self.challenges.as_ref(), head)? {
            challenge
        } else {
            let authority = snapshot.routes.authority(host)?;
            let is_metadata = snapshot.routes.metadata(&authority, &path).is_some();
            // A route at the root stands where our home page would.
            let is_home_taken = path.is_empty() && snapshot.routes.find(&authority, &path).is_ok();
            let is_local = snapshot.routes.is_public(&authority) && web::is_local(&path) && !is_home_taken;
            if is_metadata || is_local {
                return Ok(Admitted::Local { path: path.into_owned(), authority: authority.into_owned() });
            }
            snapshot.routes.find(&authority, &path)?
        };
        let route = plain::route(&matched, is_preflight);
        ctx.route = Some(Arc::clone(&route));
        let is_mcp = route.kind.is_mcp();
        if is_mcp {
            ctx.origin = origin::allowed(&head.headers, &snapshot.config.server)?.cloned();
            if head.method == Method::OPTIONS {
                return Ok(Admitted::Preflight);
            }
        }
        let now = ctx.arrived;
        let revoked = self.authority.revoked.count();
        let standing = self.authority.standing(&snapshot);
        let caller = match route.is_ours() {
            _ if route.kind.is_public() => Caller::nobody(),
            true => authn::authenticate(&head.headers, &standing, now)?,
            false => {
                let proven =
                    authn::authenticate_foreign(&head.headers, &self.foreign, &standing, &route, now);
                Box::pin(proven).await?
            }
        };
        ctx.seen.caller(&caller);
        if route.managed.is_some() && !head.uri.query().is_none_or(is_contained) {
            return Err(Failure::Malformed("the query has a name or a value that is too long, or no name"));
        }
        let uri = plain::target(&matched, &head.uri)?;
        let upgrades = plain::is_websocket(&route, head);
        let listens = is_mcp && head.headers.get(METHOD).is_some_and(|method| method == SUBSCRIPTION);
        let most = snapshot.config.limits.inspect_body;
        let is_signed = sign::is_signed(&route);
        if is_signed {
            sign::require_short(session, &said)?;
        }
        let needs_message = || {
            route.rules.need_message()
                || self.hook.as_ref().is_some_and(|hook| hook.needs_message())
                || quota::need_message(&route.limits, listens)
        };
        let asked = match is_mcp && needs_message() {
            true => self.inspect((session, &said), &route, most).await?,
            false => Asked::Anything,
        };
        if is_signed {
            Box::pin(sign::read_body(session, &asked)).await?;
        }
        let attributes = match route.rules.need_attributes() || route.credential.needs_attributes() {
            true => Box::pin(self.attributes(&snapshot, &caller, now)).await?,
            false => Arc::default(),
        };
        let (downstream, source) = (session, ctx.client);
        let head = downstream.req_header();
        let is_stream = upgrades
            || is_mcp && head.method == Method::GET
            || asked.message().is_some_and(quota::is_subscription);
        let holder = plain::holder(&caller, source);
        let counted = match route.limits.is_empty() {
            true => Counted::default(),
            false => Box::pin(self.count((&caller, &holder), &route, &asked, is_stream)).await?,
        };
        let session = match is_mcp {
            true => McpSession::of_request(&head.headers, &snapshot.keys, &caller, &route),
            false => Ok(None),
        };
        ctx.elicitation = matches!(&session, Ok(Some(session)) if session.elicitation);
        let request = Request {
            method: &head.method,
            path: head.uri.path(),
            headers: &head.headers,
            source,
            time: now,
        };
        let question = Question {
            caller: &caller,
            attributes: &attributes,
            route: &route,
            request,
            hook: self.hook.as_deref(),
        };
        let permit = self.permitted(&question, asked.of_policy(), Some(&ctx.request_id)).await?;
        let credential = self.credential(&permit, &attributes, None, (&ctx.request_id, &snapshot.keys, now));
        let (credential, waited) = timed(ctx.started, pin!(credential)).await;
        ctx.seen.times.credential = waited;
        let credential = credential?;
        let session = session.map_err(|NoSession| Failure::NoSession)?;
        let stream = match upgrades || is_mcp && head.method == Method::GET || listens {
            true => Some(self.streams.open(&holder, &snapshot.config.limits)?),
            false => None,
        };
        // Only a request outside of any session begins one, and only where there are sessions.
        let may_begin =
            is_mcp && session.is_none() && head.method == Method::POST && !mcp::is_mirrored(&head.headers);
        if route.upstream.tls && !upgrades && local::is_small(&said) {
            Box::pin(body::read_early(downstream, &asked)).await?;
        }
        ctx.target = Some(Target {
            route,
            caller,
            credential,
            attributes,
            source,
            arrived: now,
            asked,
            uri,
            upgrades,
            session,
            _stream: stream,
            counted,
            opening: may_begin.then(Opening::default),
            revoked,
            peer: None,
            busy: None,
            refused: None,
            again: false,
        });
        Ok(Admitted::Proxied)
    }

    /// Whether nothing was taken back that the caller stands on. A stream may go on for hours, and who has lost access
    /// hears no more of it.
    pub(super) fn is_still_admitted(&self, target: &mut Target) -> bool {
        let count = self.authority.revoked.count();
        if target.revoked == count {
            return true;
        }
        target.revoked = count;
        let snapshot = self.authority.snapshot();
        target.caller.still_stands(&self.authority.standing(&snapshot), &target.route)
    }

    /// The credential again, newer than the one that was refused.
    pub(super) async fn renew(
        &self,
        target: &mut Target,
        head: &RequestHeader,
        (request_id, keys): (&HeaderValue, &Keys),
    ) -> Result<(), Failure> {
        let now = self.authority.clock.now();
        let refused = target.refused.as_ref();
        // Decided and noted once before.
        let question = target.question(head, self.hook.as_deref());
        let permit = self.permitted(&question, target.asked.of_policy(), None).await?;
        target.credential =
            self.credential(&permit, &target.attributes, refused, (request_id, keys, now)).await?;
        target.again = false;
        Ok(())
    }

    /// A person is sent to the upstream's authorization server; a program can be sent nowhere, nor anybody for a connection that is
    /// somebody else's.
    /// `is_known`: they have been there before. Whoever has not has to let their client use what comes of it, so that it is the
    /// client's authorization that leads there and the page would be one trip more.
    pub(super) fn needs_user(&self, caller: &Caller, route: &Route, is_known: bool) -> Failure {
        match caller.reach() {
            _ if route.is_of_another(caller.user()) => Failure::NeedsConnection,
            Reach::Authorization => {
                Failure::NeedsUser { page: is_known.then(|| self.page_of(caller, route)) }
            }
            Reach::Page => Failure::NeedsPage { page: self.page_of(caller, route) },
            Reach::Nobody => Failure::NeedsConnection,
        }
    }

    /// What a denied caller is told.
    pub(super) async fn denied(&self, caller: &Caller, route: &Route, denied: Denied) -> Failure {
        // A client that answers with a refresh instead of sending the user has to see it fail.
        if let (Denied::Scope { needed }, Some(user), Reach::Authorization) =
            (&denied, caller.user(), caller.reach())
        {
            let connector = &self.authority.connector;
            connector.lacked_scopes(caller.grant(), (user, caller.client()), route, needed.clone()).await;
        }
        denied.into()
    }

    /// What rules may know of the caller's user.
    async fn attributes(
        &self,
        snapshot: &Snapshot,
        caller: &Caller,
        now: SystemTime,
    ) -> Result<Arc<Attributes>, Failure> {
        let Some(user) = caller.person() else {
            return Ok(caller.attributes().map(Arc::clone).unwrap_or_default());
        };
        let known = self.authority.attributes_of(snapshot, user, now).await;
        known.map_err(|_| Failure::Unavailable { retry_after: AGAIN })
    }

    /// Policy. What it decides is noted under the request's id, where that is given.
    pub(super) async fn permitted<'q>(
        &self,
        question: &Question<'q>,
        asked: policy::Asked<'_>,
        note: Option<&HeaderValue>,
    ) -> Result<Permit<'q>, Failure> {
        let (outcome, decision) = policy::permit(question, asked);
        if let Some(id) = note.filter(|_| decision.is_of_policy()) {
            let audit = &*self.credentials.audit;
            if audit.wants(decision.outcome.name()) {
                decided(audit, question, asked, &decision, id);
            }
            if decision.fault.is_some() {
                self.metrics.policy_faults.with_label_values(&[question.route.label()]).inc();
            }
        }
        match outcome {
            Ok(permit) => Ok(permit),
            Err(denied) => Err(Box::pin(self.denied(question.caller, question.route, denied)).await),
        }
    }

    /// What goes upstream for whom the policy lets in, newer than `refused`.
    async fn credential(
        &self,
        permit: &Permit<'_>,
        attributes: &Attributes,
        refused: Option<&Outdated>,
        (request_id, keys, now): (&HeaderValue, &Keys, SystemTime),
    ) -> Result<Credential, Failure> {
        match self.credentials.resolve(&Ask { permit, attributes, refused, request_id, keys, now }).await {
            Ok(credential) => Ok(credential),
            Err(unresolved) => {
                Err(Box::pin(self.unresolved(permit.caller(), permit.route(), unresolved)).await)
            }
        }
    }

    /// What a caller is told for whom there is no credential.
    async fn unresolved(&self, caller: &Caller, route: &Arc<Route>, unresolved: Unresolved) -> Failure {
        match unresolved {
            Unresolved::Unavailable { retry_after } => Failure::Unavailable { retry_after },
            Unresolved::Refused => Failure::NotExchanged,
            Unresolved::NoRole => Failure::NoRole,
            Unresolved::NeedsProvider { incarnation, claims } => {
                let challenge = Challenge::claiming(claims, incarnation.to_string());
                self.remember_challenge(caller, route, challenge).await;
                self.needs_user(caller, route, true)
            }
            Unresolved::NotConsented { scopes } => {
                let needed = caller.scopes_and(&scopes);
                self.denied(caller, route, Denied::Scope { needed }).await
            }
            Unresolved::NeedsUser { incarnation } => {
                if let (Some(user), Some(incarnation)) =
                    (route.owner.as_deref().or(caller.user()), &incarnation)
                    && self
                        .authority
                        .connector
                        .has_failed_trial(&connection_key(user, route), incarnation)
                        .await
                {
                    return Failure::UpstreamInsists;
                }
                // Told once more, the client may answer with a refresh: then that has to fail.
                let (is_known, incarnation) =
                    (incarnation.is_some(), incarnation.map(|name| name.to_string()));
                self.remember_challenge(caller, route, Challenge::new(Vec::new(), incarnation)).await;
                self.needs_user(caller, route, is_known)
            }
        }
    }
}

/// Tells the audit log of a decision. What is called is named only where it is a name and nothing else: the address of a resource
/// may hold a secret.
fn decided(
    audit: &dyn Sink,
    question: &Question<'_>,
    asked: policy::Asked<'_>,
    decision: &Decision<'_>,
    id: &HeaderValue,
) {
    let message = match asked {
        policy::Asked::Message(message) => Some(message),
        policy::Asked::Bodiless | policy::Asked::ToCome => None,
    };
    let is_name = |text: &&str| is_name(text);
    let tool =
        message.and_then(|message| message.item.as_ref()).filter(|item| item.kind != ItemKind::Resource);
    audit.decision(&audit::Decision {
        at: question.request.time,
        outcome: decision.outcome.name(),
        by: decision.by.into(),
        enforced: decision.enforced,
        fault: decision.fault.map(|fault| fault.to_string()),
        route: &question.route.name,
        user: question.caller.subject(),
        client: question.caller.client(),
        method: message.and_then(|message| message.method.as_deref()).filter(is_name),
        item: tool.map(|tool| tool.name.as_str()).filter(is_name),
        request_id: id.to_str().unwrap_or_default(),
    });
}

/// Whether it is a name and nothing else.
pub(super) fn is_name(text: &str) -> bool {
    let is_part =
        |byte: u8| matches!(byte, b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'/' | b'.' | b'_' | b'-');
    text.len() <= 128 && text.bytes().all(is_part)
}
