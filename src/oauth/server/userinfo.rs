//! Who a token's user is (OpenID Connect Core §5.3), for clients that were allowed to know it: a scope of its own, which is good
//! for nothing else.
use std::time::SystemTime;

use serde::Serialize;

use super::standing::{Holder, NoStanding};
use super::{Authority, Snapshot};
use crate::config::issuer_of;
use crate::route::PROFILE_SCOPE;

/// OpenID Connect Core §5.1, as far as it is known here.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct UserInfo {
    pub sub: String,
    /// Of a local user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preferred_username: Option<String>,
}

/// Why nothing is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoUserInfo {
    #[error("no access token of a user of this server")]
    Token,
    #[error("access token lacks the scope profile")]
    Scope,
    #[error("the gateway is not ready yet")]
    NotReady,
}

pub fn userinfo(
    authority: &Authority,
    snapshot: &Snapshot,
    token: &str,
    now: SystemTime,
) -> Result<UserInfo, NoUserInfo> {
    let token = match authority.standing(snapshot).holder(token, now) {
        Ok(Holder::User(token)) => token,
        Ok(Holder::Client { .. } | Holder::Service(_)) => return Err(NoUserInfo::Token),
        Err(NoStanding::NotReady) => return Err(NoUserInfo::NotReady),
        Err(NoStanding::Foreign | NoStanding::Expired | NoStanding::Revoked) => {
            return Err(NoUserInfo::Token);
        }
    };
    if !token.scope().split(' ').any(|scope| scope == PROFILE_SCOPE) {
        return Err(NoUserInfo::Scope);
    }
    let sub = token.subject().to_owned();
    let is_local = issuer_of(&sub).is_none();
    Ok(UserInfo { preferred_username: is_local.then(|| sub.clone()), sub })
}
