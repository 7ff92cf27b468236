//! Answers of ours on the proxied path: asked for at `respond`, written here.
use std::time::Duration;

use http::header;
use pingora::proxy::{FailToProxy, Session};
use pingora::{Error, ErrorSource, ErrorType, Result, RetryType};

use super::context::{Context, REFRESHED};
use super::{Gateway, TRIES, local};
use crate::respond::{self, Failure, Reply};
use crate::route::Route;
use crate::upstream::joined;
use crate::{inject, origin};

/// After a fault of ours the client may try again.
const RETRY: Duration = Duration::from_secs(1);

impl Gateway {
    /// Our answer, readable for the origin that asked, and noted for the log.
    pub(super) fn reply(
        &self,
        failure: &Failure,
        route: Option<&Route>,
        session: &Session,
        ctx: &mut Context,
    ) -> Reply {
        self.note_limit(failure);
        let mut reply = respond::reply(failure, route, &session.req_header().headers, &ctx.request_id);
        reply.headers.extend(ctx.origin.iter().flat_map(origin::readable));
        reply.headers.push((inject::REQUEST_ID, ctx.request_id.clone()));
        ctx.reason = reply.reason;
        reply
    }

    /// The end of a request that failed after it had left `request_filter`.
    pub(super) async fn rescue(
        &self,
        session: &mut Session,
        error: &Error,
        ctx: &mut Context,
    ) -> FailToProxy {
        let Some(failure) = ctx.failure.take().or_else(|| blame(error)) else {
            ctx.reason = "client_gone";
            return FailToProxy { error_code: 0, can_reuse_downstream: false };
        };
        let failure = self.elicited(failure, session, ctx).await;
        let route = ctx.route.clone();
        let reply = self.reply(&failure, route.as_deref(), session, ctx);
        let error_code = reply.status.as_u16();
        // A 100 that went by is no answer yet.
        if session.response_written().is_none_or(|head| head.status.is_informational())
            && let Err(error) = write_error(session, reply).await
        {
            tracing::debug!(target: "postern::gateway", etype = error.etype().as_str(), "client left before it was told");
        }
        FailToProxy { error_code, can_reuse_downstream: false }
    }
}

/// Whether a request that was sent may be sent once more.
pub(super) fn decide_retry(session: &Session, error: &mut Error, ctx: &Context) {
    let complete = !session.as_ref().retry_buffer_truncated() && ctx.attempts < TRIES;
    // What Pingora has decided may be sent again was not carried out: a stream refused, or a connection that said
    // good-bye before it (RFC 9113 §8.7). A broken frame proves nothing.
    let untouched = matches!(error.retry, RetryType::Decided(true)) && error.etype() != &ErrorType::InvalidH2;
    let untouched = untouched || joined::is_untouched(error);
    if error.etype() == &REFRESHED || untouched {
        // Nor was a request that was answered 401; so even a POST may go again, as long as all of it is still here.
        error.set_retry(complete);
    } else if !complete || !session.req_header().method.is_idempotent() {
        error.set_retry(false);
    } else {
        error.retry.decide_reuse(ctx.reused);
    }
}

/// Whose fault it is. `None`: the client's own connection, and then there is nobody left to tell.
fn blame(error: &Error) -> Option<Failure> {
    use ErrorSource::{Downstream, Internal, Unset, Upstream};
    use ErrorType::{
        ConnectTimedout, ConnectionClosed, H2Error, HTTPStatus, ReadError, ReadTimedout,
        TLSHandshakeTimedout, WriteError, WriteTimedout,
    };
    match (error.esource(), error.etype()) {
        (Downstream, HTTPStatus(413)) => Some(Failure::TooLarge { limit: "body" }),
        (Downstream, ReadTimedout) => Some(Failure::TooSlow),
        (Downstream, ConnectionClosed | H2Error | ReadError | WriteError | WriteTimedout) => None,
        (Downstream, _) => Some(Failure::Malformed("the request body is malformed")),
        (Upstream, ConnectTimedout | TLSHandshakeTimedout | ReadTimedout | WriteTimedout) => {
            Some(Failure::UpstreamTimeout)
        }
        (Upstream, _) => Some(Failure::UpstreamUnreachable),
        (Internal | Unset, ConnectTimedout | TLSHandshakeTimedout) => Some(Failure::UpstreamTimeout),
        (Internal | Unset, ErrorType::InternalError | ErrorType::InvalidHTTPHeader) => {
            Some(Failure::Unavailable { retry_after: RETRY })
        }
        (Internal | Unset, _) => Some(Failure::UpstreamUnreachable),
    }
}

async fn write_error(session: &mut Session, reply: Reply) -> Result<()> {
    let mut head = local::head(&reply)?;
    head.insert_header(header::CONTENT_LENGTH, reply.body.len())?;
    session.write_error_response(head, reply.body).await
}
