//! Answers of ours on the proxied path: asked for at `respond`, written here.
use std::sync::Arc;

use http::header;
use pingora::http::ResponseHeader;
use pingora::proxy::{FailToProxy, Session};
use pingora::{Error, ErrorSource, ErrorType, Result};

use super::Gateway;
use super::context::Context;
use crate::respond::{self, Failure, Reply};
use crate::route::Route;
use crate::{inject, origin};

impl Gateway {
    /// Our answer, readable for the origin that asked, and noted for the log.
    pub(super) fn reply(
        &self,
        failure: &Failure,
        route: Option<&Route>,
        session: &Session,
        ctx: &mut Context,
    ) -> Reply {
        let mut reply = respond::reply(failure, route, &session.req_header().headers);
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
            return FailToProxy {
                error_code: 0,
                can_reuse_downstream: false,
            };
        };
        let route = ctx.target.as_ref().map(|target| Arc::clone(&target.route));
        let reply = self.reply(&failure, route.as_deref(), session, ctx);
        let error_code = reply.status.as_u16();
        if session.response_written().is_none()
            && let Err(error) = write_error(session, reply).await
        {
            tracing::debug!(target: "postern::gateway", etype = error.etype().as_str(), "client left before it was told");
        }
        FailToProxy {
            error_code,
            can_reuse_downstream: false,
        }
    }
}

/// Whose fault it is. `None`: the client's own connection, and then there is nobody left to tell.
fn blame(error: &Error) -> Option<Failure> {
    use ErrorType::{ConnectTimedout, HTTPStatus, ReadTimedout, TLSHandshakeTimedout, WriteTimedout};
    match (error.esource(), error.etype()) {
        (ErrorSource::Downstream, HTTPStatus(413)) => Some(Failure::TooLarge),
        (ErrorSource::Downstream, _) => None,
        (_, ConnectTimedout | TLSHandshakeTimedout | ReadTimedout | WriteTimedout) => {
            Some(Failure::UpstreamTimeout)
        }
        _ => Some(Failure::UpstreamUnreachable),
    }
}

async fn write_error(session: &mut Session, reply: Reply) -> Result<()> {
    let mut head = ResponseHeader::build(reply.status, Some(reply.headers.len() + 1))?;
    for (name, value) in reply.headers {
        head.append_header(name, value)?;
    }
    head.insert_header(header::CONTENT_LENGTH, reply.body.len())?;
    session.write_error_response(head, reply.body).await
}
