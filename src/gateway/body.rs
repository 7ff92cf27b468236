//! A request's body on its way up, piece by piece.
use std::time::Duration;

use bytes::Bytes;
use pingora::proxy::Session;
use pingora::{Error, Result};

use super::context::{ANSWERED, Context};
use super::inspect::{Asked, read_ahead};
use super::{Gateway, bounds};
use crate::respond::Failure;

/// Nearly all short bodies are here with their head, and the rest soon after.
const SOON: Duration = Duration::from_secs(5);

/// Reads a short body that an upstream must not keep waiting (`upstream::peer`), unless that is done. One that comes slowly goes on as it
/// comes: what has come of it is sent first.
pub(super) async fn read_early(session: &mut Session, asked: &Asked) -> Result<(), Failure> {
    if matches!(asked, Asked::Known(_)) || session.as_downstream_mut().is_body_done() {
        return Ok(());
    }
    session.as_downstream_mut().enable_retry_buffering();
    match read_ahead(session, SOON).await {
        Ok(_) | Err(Failure::TooSlow) => Ok(()),
        Err(failure) => Err(failure),
    }
}

impl Gateway {
    /// Lets a piece pass, or holds it back, or ends the request.
    pub(super) async fn pass_body(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Context,
    ) -> Result<()> {
        match end {
            true => ctx.unended = None,
            false => ctx.unended.iter_mut().for_each(|unended| unended.came(session)),
        }
        bounds::require_pace(session, body.as_ref(), ctx, end)?;
        let Some(target) = &mut ctx.target else {
            return Ok(());
        };
        if let (Some(opening), Some(piece)) = (&mut target.opening, &body) {
            opening.add(piece);
        }
        if !matches!(target.asked, Asked::Held(_)) {
            return Ok(());
        }
        let (head, most) = (session.req_header(), ctx.snapshot.config.limits.inspect_body);
        let released = Box::pin(self.release(target, head, &ctx.request_id, most, body, end)).await;
        released.map_err(|failure| {
            ctx.failure = Some(failure);
            Error::explain(ANSWERED, "an answer of ours instead")
        })
    }
}
