//! Requests that are signed on their way to the upstream: their bodies are read ahead, and each attempt is signed as it is
//! sent.
use http::request::Parts;
use pingora::proxy::Session;

use super::context::Target;
use super::head::Said;
use super::inspect::{ARRIVAL, Asked, read_ahead};
use super::{Gateway, local};
use crate::config::Credential;
use crate::credential::Put;
use crate::respond::Failure;
use crate::route::Route;

/// Whether requests at this route are signed.
pub fn is_signed(route: &Route) -> bool {
    matches!(route.credential, Credential::AwsSigv4(_))
}

/// A body that is signed says how long it is, and is short.
pub fn require_short(session: &mut Session, said: &Said) -> Result<(), Failure> {
    match session.as_downstream_mut().is_body_empty() || local::is_small(said) {
        true => Ok(()),
        false if said.length.is_none() => {
            Err(Failure::Malformed("requests to this server are signed, so the body needs a content-length"))
        }
        false => Err(Failure::TooLarge { limit: "body" }),
    }
}

/// Reads the body of a request that is signed, unless a rule has had it read. It is sent on from there, and again.
pub async fn read_body(session: &mut Session, asked: &Asked) -> Result<(), Failure> {
    if matches!(asked, Asked::Known(_)) || session.as_downstream_mut().is_body_empty() {
        return Ok(());
    }
    session.as_downstream_mut().enable_retry_buffering();
    read_ahead(session, ARRIVAL).await.map(|_| ())
}

impl Gateway {
    /// Signs the head of an attempt, if its credential says so. Comes after everything else that is done to it.
    pub(super) fn sign(&self, session: &Session, target: &Target, head: &mut Parts) -> Result<(), Failure> {
        let Put::Sign(signer) = &target.credential.put else {
            return Ok(());
        };
        let upstream = &target.route.upstream;
        let scheme = if upstream.tls { "https" } else { "http" };
        let origin = format!("{scheme}://{}", upstream.authority);
        let body = session.as_downstream().get_retry_buffer().unwrap_or_default();
        let signed = signer.sign(head, &origin, &body, self.authority.clock.now());
        signed.map_err(|_| Failure::Malformed("the request cannot be signed"))
    }
}
