//! A request's body on its way up, piece by piece.
use bytes::Bytes;
use pingora::proxy::Session;
use pingora::{Error, Result};

use super::context::{ANSWERED, Context};
use super::inspect::Asked;
use super::{Gateway, bounds};

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
