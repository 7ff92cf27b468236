//! A caller as one would be proven, for trying rules: through the same checks, with a token that no gateway takes.
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, header};
use serde_json::{Map, Value};

use super::foreign::ForeignToken;
use super::{AuthnError, Caller, Who, authenticate};
use crate::config::Config;
use crate::oauth::server::access_token::{Claims, Keys};
use crate::oauth::server::machine;
use crate::oauth::server::revoked::Revoked;
use crate::oauth::server::service::Services;
use crate::oauth::server::standing::Standing;
use crate::route::{Route, Table};
use crate::seal;

/// Who is assumed to call.
pub struct Assumed<'a> {
    /// `None`: the client itself.
    pub user: Option<&'a str>,
    pub client: &'a str,
    /// Separated by blanks.
    pub scope: &'a str,
    /// What an issuer says of the user; for routes that take its tokens.
    pub said: &'a Map<String, Value>,
}

/// Proves them, as far as the configuration knows of such a caller.
pub fn assume(
    assumed: &Assumed<'_>,
    config: &Config,
    routes: &Table,
    route: &Route,
    now: SystemTime,
) -> Result<Caller, AuthnError> {
    let Assumed { user, client, scope, said } = *assumed;
    if route.kind.is_public() {
        return Ok(Caller::nobody());
    }
    if !route.is_ours() {
        let token =
            ForeignToken::assumed(route, user, client, scope, said, now).ok_or(AuthnError::Invalid)?;
        return Ok(Caller { who: Who::Theirs(Arc::new(token), None) });
    }
    let key = seal::random().map_err(|_| AuthnError::NotReady)?;
    let keys = Keys::new(&[key]).map_err(|_| AuthnError::NotReady)?;
    let own = format!("{}{client}", machine::SUBJECT);
    let claims = Claims {
        audience: &route.resource,
        grant: "assumed",
        subject: user.unwrap_or(&own),
        client,
        scope,
        expires_at: now + Duration::from_secs(60),
    };
    let token = keys.seal(&claims, now).map_err(|_| AuthnError::Invalid)?;
    let line = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| AuthnError::Malformed)?;
    let headers = HeaderMap::from_iter([(header::AUTHORIZATION, line)]);
    let (revoked, services) = (Revoked::default(), Services::default());
    let standing = Standing { keys: &keys, revoked: &revoked, services: &services, config, routes };
    authenticate(&headers, &standing, now)
}
