//! `postern_token`: a token of ours for the caller, in place of the one that they came with, for an upstream that is an MCP
//! client itself. It is good at the routes that the configuration names, for what the caller's own token is good for, five
//! minutes and never longer than that; and whatever ends the caller's grant ends it.
use std::time::Duration;

use http::{HeaderValue, header};

use super::{Ask, Credential, Put, Source, Unresolved};
use crate::config::RELAYED;
use crate::oauth::server::access_token::Claims;
use crate::telemetry::audit::Act;

const LIFETIME: Duration = Duration::from_secs(5 * 60);

/// Whoever comes with such a token gets no other one: an upstream calls for its own caller, and for nobody behind them.
pub(super) fn resolve(ask: &Ask<'_>) -> Result<Credential, Unresolved> {
    let (caller, route) = (ask.permit.caller(), ask.permit.route());
    let (Some(own), Some(audience)) = (caller.own_token(), &route.audience) else {
        return Err(Unresolved::NeedsUser { incarnation: None });
    };
    let client = [RELAYED, &route.name].concat();
    let claims = Claims {
        audience,
        grant: own.grant(),
        subject: own.subject(),
        client: &client,
        scope: own.scope(),
        expires_at: own.expires_at().min(ask.now + LIFETIME),
    };
    let unavailable = Unresolved::Unavailable { retry_after: Duration::from_secs(1) };
    let token = ask.keys.seal_opaque(&claims, ask.now).map_err(|_| unavailable.clone())?;
    let mut value = HeaderValue::try_from(["Bearer ", &token].concat()).map_err(|_| unavailable)?;
    value.set_sensitive(true);
    Ok(Credential {
        put: Put::Header(header::AUTHORIZATION, value),
        source: Source::Minted,
        act: Act::Acquire,
    })
}
