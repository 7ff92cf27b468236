//! The stages before the upstream, in their order: what comes out is permitted, or is answered by ourselves.
use std::sync::Arc;

use http::Method;
use pingora::proxy::Session;

use super::context::{Context, Target};
use super::{Gateway, screen};
use crate::credential::{self, Unresolved};
use crate::respond::Failure;
use crate::route::{Route, canonical_path};
use crate::{authn, origin, policy, web};

/// What a request turned out to be.
pub(super) enum Admitted {
    Proxied,
    Local { path: String, authority: String },
    Preflight,
}

/// A refusal, and where the request was headed if that is known.
pub(super) type Refused = (Failure, Option<Arc<Route>>);

impl Gateway {
    /// Says what becomes of a request.
    pub(super) async fn admit(&self, session: &Session, ctx: &mut Context) -> Result<Admitted, Refused> {
        let head = session.req_header();
        let nowhere = |failure: Failure| (failure, None);
        screen::request(head).map_err(|what| nowhere(Failure::Malformed(what)))?;
        let snapshot = Arc::clone(&ctx.snapshot);
        let host = screen::host(head).ok_or(nowhere(Failure::Malformed("exactly one host is needed")))?;
        let authority = snapshot
            .routes
            .authority(host)
            .map_err(|error| nowhere(error.into()))?;
        let path = canonical_path(head.uri.path()).map_err(|error| nowhere(error.into()))?;
        let is_metadata = snapshot.routes.metadata(&authority, &path).is_some();
        if is_metadata || (snapshot.routes.is_public(&authority) && web::is_local(&path)) {
            return Ok(Admitted::Local {
                path: path.into_owned(),
                authority: authority.into_owned(),
            });
        }
        let matched = snapshot
            .routes
            .find(&authority, &path)
            .map_err(|error| nowhere(error.into()))?;
        let route = Arc::clone(matched.route);
        let here = |failure: Failure| (failure, Some(Arc::clone(&route)));
        ctx.origin = origin::allowed(&head.headers, &snapshot.config.server)
            .map_err(|error| here(error.into()))?
            .cloned();
        if head.method == Method::OPTIONS {
            return Ok(Admitted::Preflight);
        }
        let now = self.authority.clock.now();
        let caller = authn::authenticate(&head.headers, &snapshot.keys, &self.revoked, now)
            .map_err(|error| here(error.into()))?;
        let permit = policy::permit(&caller, &route).map_err(|denied| here(denied.into()))?;
        let credential = credential::resolve(&self.connections, &permit, &route, None, now)
            .await
            .map_err(|error| here(failure_of(error)))?;
        let path = route.upstream.target(matched.rest, head.uri.query());
        ctx.target = Some(Target {
            route,
            caller,
            credential,
            path,
            refused: None,
            again: false,
        });
        Ok(Admitted::Proxied)
    }

    /// The credential again, newer than the one that was refused.
    pub(super) async fn renew(&self, target: &mut Target) -> Result<(), Failure> {
        let now = self.authority.clock.now();
        let permit = policy::permit(&target.caller, &target.route)?;
        let renewed = credential::resolve(
            &self.connections,
            &permit,
            &target.route,
            target.refused.as_ref(),
            now,
        )
        .await;
        target.credential = renewed.map_err(failure_of)?;
        target.again = false;
        Ok(())
    }
}

fn failure_of(unresolved: Unresolved) -> Failure {
    match unresolved {
        Unresolved::NeedsUser => Failure::NeedsUser,
        Unresolved::Unavailable { retry_after } => Failure::Unavailable { retry_after },
    }
}
