//! Leading somebody to their page by way of the client: where a call needs its user and the client says that it opens URLs
//! for servers, the answer is an elicitation instead of a challenge. Neither of them has to begin anew for it.
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use pingora::Result;
use pingora::proxy::Session;
use tokio::time::timeout;

use super::context::Context;
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
        let failure = match failure.page().is_some() && local::is_small(session) {
            true => {
                let body = read(session).await;
                let failure =
                    elicited(failure, body.as_deref(), &session.req_header().headers, ctx.elicitation);
                self.let_refresh(&failure).await;
                failure
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
        let headers = &session.req_header().headers;
        let failure = elicited(failure, complete.as_deref(), headers, ctx.elicitation);
        self.let_refresh(&failure).await;
        failure
    }

    /// Who is led to a page need not be brought by a refresh that fails, and would lose their tokens over it.
    async fn let_refresh(&self, failure: &Failure) {
        if let Failure::Elicit { page, .. } = failure {
            self.authority.connector.answered_by_page(page.grant()).await;
        }
    }
}

/// `is_declared`: the session began with the capability.
fn elicited(failure: Failure, body: Option<&[u8]>, headers: &HeaderMap, is_declared: bool) -> Failure {
    let is_mirrored = Call::from_headers(headers).is_mirrored();
    let call = body.and_then(|body| Elicitable::read(body, is_mirrored, is_declared));
    match (call, failure.page()) {
        (Some(call), Some(page)) if call.is_declined => {
            drop(call);
            Failure::NeedsPage { page: page.clone() }
        }
        (Some(call), Some(page)) => Failure::Elicit { call, page: page.clone() },
        _ => failure,
    }
}

async fn read(session: &mut Session) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    // What a rule has read ahead is here already.
    if let Some(before) = session.as_ref().get_retry_buffer() {
        body.extend_from_slice(&before);
    }
    let all = async {
        while let Ok(Some(piece)) = session.read_request_body().await {
            let piece: Bytes = piece;
            body.extend_from_slice(&piece);
        }
    };
    timeout(ARRIVAL, all).await.ok().map(|()| body)
}
