//! Leading somebody to their page by way of the client: where a call needs its user and the client says that it opens URLs
//! for servers, the answer is an elicitation instead of a challenge. Neither of them has to begin anew for it.
use std::time::Duration;

use pingora::Result;
use pingora::proxy::Session;

use super::context::Context;
use super::head::Said;
use super::inspect::read_ahead;
use super::{Gateway, local};
use crate::authn::Caller;
use crate::mcp::{Call, Elicitable};
use crate::respond::{Failure, Page};
use crate::route::Route;
use crate::web::link;

/// How long the rest of a call may take that is read only to answer it.
const ARRIVAL: Duration = Duration::from_secs(5);

impl Gateway {
    /// The page where this caller's user connects to the route, for them alone.
    pub(super) fn page_of(&self, caller: &Caller, route: &Route) -> Page {
        let snapshot = self.authority.snapshot();
        let now = self.authority.clock.now();
        let link = caller.user().and_then(|user| link::seal(&snapshot.keys, user, &route.name, now));
        let plain = format!("{}/connections/{}", snapshot.issuer(), route.name);
        Page::new(plain, link, caller.grant())
    }

    /// Answers a request that does not get as far as its upstream.
    pub(super) async fn refuse(
        &self,
        failure: Failure,
        session: &mut Session,
        ctx: &mut Context,
    ) -> Result<()> {
        let is_small = local::is_small(&Said::of(&session.req_header().headers));
        let failure = match failure.page().is_some() && is_small {
            true => {
                // What a rule has read ahead is here already.
                let before = session.as_ref().get_retry_buffer().unwrap_or_default();
                let rest = read_ahead(session, ARRIVAL).await;
                let body = rest.ok().map(|rest| [before.as_ref(), &rest].concat());
                self.elicited_by(failure, body.as_deref(), session, ctx).await
            }
            false => failure,
        };
        let route = ctx.route.clone();
        let reply = self.reply(&failure, route.as_deref(), session, ctx);
        local::answer(session, &reply).await
    }

    /// The same for one that was on its way: what was sent is still here, unless it was too long.
    pub(super) async fn elicited(&self, failure: Failure, session: &Session, ctx: &Context) -> Failure {
        let sent = failure.page().and_then(|_| session.as_ref().get_retry_buffer());
        let complete = sent.filter(|_| !session.as_ref().retry_buffer_truncated());
        self.elicited_by(failure, complete.as_deref(), session, ctx).await
    }

    async fn elicited_by(
        &self,
        failure: Failure,
        body: Option<&[u8]>,
        session: &Session,
        ctx: &Context,
    ) -> Failure {
        let is_mirrored = Call::from_headers(&session.req_header().headers).is_mirrored();
        let call = body.and_then(|body| Elicitable::read(body, is_mirrored, ctx.elicitation));
        let (Some(call), Some(page)) = (call, failure.page().cloned()) else { return failure };
        if call.is_declined {
            return Failure::NeedsPage { page };
        }
        // Who is led to a page need not be brought by a refresh that fails, and would lose their tokens over it.
        self.authority.connector.answered_by_page(page.grant()).await;
        Failure::Elicit { call, page }
    }
}
