//! What the trap decided, carried out.
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode, Version};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};

use super::context::{ANSWERED, Context, REFRESHED, Replacement, Target};
use super::head::Said;
use super::screen::{self, SHORT};
use super::{Gateway, TRIES};
use crate::authn::{Caller, Reach};
use crate::config::Credential;
use crate::credential::Source;
use crate::oauth::client::challenged::Challenge;
use crate::respond::Failure;
use crate::route::Route;
use crate::trap::{self, Verdict};

/// What follows for the request.
enum Consequence {
    Pass,
    /// The same request again, with another token.
    Again(Box<Error>),
    /// An answer of ours in place of the upstream's.
    Instead(Failure),
}

/// When a request may be sent again whose token was refused.
const AGAIN: Duration = Duration::from_secs(1);
/// As many interim answers may come before one.
const INTERIM: usize = 100;
/// What the head of an answer may have, fields and bytes: over HTTP/1 Pingora reads no more.
const FIELDS: usize = 256;
const HEAD: usize = 1 << 20;

/// Ends an answer that means nothing, or two things.
fn unreadable(why: &'static str) -> Box<Error> {
    Error::explain(ErrorType::InvalidHTTPHeader, why).into_up()
}

/// Over HTTP/2 a head of 16 MiB is read.
fn is_too_long(head: &ResponseHeader) -> bool {
    let bytes = |headers: &HeaderMap| -> usize {
        headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
    };
    head.version == Version::HTTP_2 && (head.headers.len() > FIELDS || bytes(&head.headers) > HEAD)
}

impl Gateway {
    /// What becomes of the upstream's answer, seen its head.
    pub(super) async fn judge(
        &self,
        session: &mut Session,
        (upstream, said): (&ResponseHeader, &Said),
        ctx: &mut Context,
    ) -> Result<()> {
        if !upstream.status.is_informational() {
            ctx.seen.times.answered = Some(ctx.elapsed());
        }
        let Some(target) = &mut ctx.target else {
            return Ok(());
        };
        if upstream.status == StatusCode::SWITCHING_PROTOCOLS {
            if target.upgrades {
                // From here on its client may say nothing for long; keep-alives of TCP find out whether it is there.
                session.set_read_timeout(None);
                return Ok(());
            }
            // Nobody asked for it: `Upgrade` never gets past us.
            return Err(unreadable("protocol switched unasked"));
        }
        if upstream.status.is_informational() {
            ctx.seen.interim += 1;
            return match ctx.seen.interim > INTERIM {
                true => Err(unreadable("no end of interim answers")),
                false => Ok(()),
            };
        }
        if !screen::is_framed(said, upstream.version) {
            return Err(unreadable("where its body ends can be read in more than one way"));
        }
        if is_too_long(upstream) {
            return Err(unreadable("its head is too long"));
        }
        let replayable = !session.as_ref().retry_buffer_truncated() && ctx.attempts < TRIES;
        let refreshed = target.refused.is_some();
        let source = &target.credential.source;
        let verdict = trap::judge(upstream.status, &upstream.headers, source, refreshed, replayable);
        let success = upstream.status.is_success();
        if verdict == Verdict::Pass && self.is_old_news(target, success) {
            return Ok(());
        }
        let failure = match Box::pin(self.carry_out(verdict, target, success, replayable)).await {
            Consequence::Pass => return Ok(()),
            Consequence::Again(error) => return Err(error),
            Consequence::Instead(failure) => failure,
        };
        let failure = Box::pin(self.elicited(failure, session, ctx)).await;
        // Nothing is sent before the upstream's body has ended, so a body of unknown length is not waited for; where there is
        // none, there is no place for ours either.
        let has_no_place = ctx.header_only && matches!(failure, Failure::Elicit { .. });
        let is_short = said.length.is_some_and(|length| length <= SHORT);
        if has_no_place || !ctx.header_only && !is_short {
            ctx.failure = Some(failure);
            return Err(Error::explain(ANSWERED, "an answer of ours instead"));
        }
        let route = ctx.route.clone();
        let reply = self.reply(&failure, route.as_deref(), session, ctx);
        ctx.replacement = Some(Replacement::new(reply, ctx.header_only));
        Ok(())
    }

    /// Whether an answer that passes says nothing that is not known: this grant's challenge is settled, or it has none.
    fn is_old_news(&self, target: &Target, success: bool) -> bool {
        let source = &target.credential.source;
        let is_of_user = !matches!(
            source,
            Source::None
                | Source::Fixed
                | Source::Minted
                | Source::Custom
                | Source::Exchanged { of: None, .. }
        );
        !success
            || !is_of_user
            || self.authority.connector.is_settled(target.caller.grant(), source.incarnation())
    }

    /// `replayable`: the request can and may be sent once more.
    async fn carry_out(
        &self,
        verdict: Verdict,
        target: &mut Target,
        success: bool,
        replayable: bool,
    ) -> Consequence {
        let connector = &self.authority.connector;
        let verdict = match verdict {
            // What the provider's tokens may do is the operator's and the provider's to say, and what a shared connection may do its
            // owner's; asking the user changes nothing.
            Verdict::StepUp { .. }
                if matches!(target.route.credential, Credential::UpstreamInject(..))
                    || target.route.is_of_another(target.caller.user()) =>
            {
                Verdict::Pass
            }
            verdict => verdict,
        };
        let is_unmet = matches!(verdict, Verdict::Connect { .. } | Verdict::StepUp { .. });
        if is_unmet && replayable && self.has_newer(target).await {
            return Consequence::Again(again(target));
        }
        match verdict {
            Verdict::Pass => {
                if !self.is_old_news(target, success) {
                    let source = &target.credential.source;
                    self.credentials.connections.accepted(source);
                    connector.settle(target.caller.grant(), source.connection()).await;
                }
                Consequence::Pass
            }
            Verdict::Refresh => {
                target.refused = target.credential.source.outdated();
                Consequence::Again(again(target))
            }
            Verdict::Later => {
                self.credentials.exchanged.refuse(&target.credential.source, self.authority.clock.now());
                Consequence::Instead(Failure::Unavailable { retry_after: AGAIN })
            }
            Verdict::Connect { scopes, refused } => {
                let source = &target.credential.source;
                let anonymous = *source == Source::Anonymous;
                let now = self.authority.clock.now();
                // Of a call that cannot be sent again nobody knows whether another token would do, unless there is one already.
                let is_outdated = !refused && self.has_newer(target).await;
                // One refusal after the other: another token is refused as well.
                let refused = refused
                    || !is_outdated
                        && !self.credentials.connections.renew_refused(&target.route, source, now).await;
                match refused {
                    true => self.credentials.connections.refuse(source).await,
                    false => connector.unsettle(target.caller.grant()),
                }
                let connection = source.connection();
                if refused
                    && let Some((key, incarnation)) = &connection
                    && connector.fails_trial(key, incarnation).await
                {
                    return Consequence::Instead(Failure::UpstreamInsists);
                }
                if anonymous && connector.is_unexplained(&target.route) {
                    return Consequence::Instead(Failure::UpstreamUnexplained);
                }
                if refused || anonymous {
                    let challenge = Challenge::new(scopes, incarnation_of(connection));
                    self.remember_challenge(&target.caller, &target.route, challenge).await;
                }
                Consequence::Instead(self.needs_user(&target.caller, &target.route, !anonymous))
            }
            Verdict::StepUp { scopes } => {
                let connection = target.credential.source.connection();
                if let Some((key, _)) = &connection
                    && !connector.may_step_up(key, &scopes).await
                {
                    return Consequence::Instead(Failure::AskedTooOften);
                }
                let challenge = Challenge::step_up(scopes.clone(), incarnation_of(connection));
                self.remember_challenge(&target.caller, &target.route, challenge).await;
                if target.caller.reach() == Reach::Page {
                    return Consequence::Instead(self.needs_user(&target.caller, &target.route, true));
                }
                Consequence::Instead(Failure::StepUp { scopes: target.caller.scopes_and(&scopes) })
            }
            Verdict::Misconfigured => {
                tracing::error!(
                    target: "postern::upstream",
                    route = %target.route.name,
                    "the upstream refuses what the route's credential says: check its configuration"
                );
                Consequence::Instead(Failure::UpstreamRefused)
            }
        }
    }

    /// Whether the user has been at the upstream's since, maybe by way of another instance.
    async fn has_newer(&self, target: &Target) -> bool {
        self.credentials.connections.has_newer(&target.caller, &target.route, &target.credential.source).await
    }

    /// The next authorization asks for its scopes as well, and the grant's next refresh brings the user.
    pub(super) async fn remember_challenge(&self, caller: &Caller, route: &Route, challenge: Challenge) {
        // Whoever acts for nobody has no connection to be asked about, and a program nobody to be sent.
        let is_asked = caller.reach() != Reach::Nobody && !route.is_of_another(caller.user());
        let Some(user) = caller.user().filter(|_| is_asked) else {
            return;
        };
        self.authority.connector.challenged(caller.grant(), user, route, &challenge).await;
    }
}

fn incarnation_of(connection: Option<(&str, Arc<str>)>) -> Option<String> {
    connection.map(|(_, incarnation)| incarnation.to_string())
}

/// Ends this attempt and asks for another one, with the credential looked up anew.
fn again(target: &mut Target) -> Box<Error> {
    target.again = true;
    let mut again = Error::explain(REFRESHED, "token refused, trying a newer one");
    again.as_up();
    again.set_retry(true);
    again
}
