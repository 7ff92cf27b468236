//! Secrets that users hand over themselves (`credential.per_user`), kept as connections of theirs: they have no end that we
//! know of and nothing renews them, and what the upstream refuses is asked for again.
use std::time::SystemTime;

use secrecy::SecretString;

use super::connect::CONNECTION_TTL;
use super::prospect::Prospect;
use super::{Connector, connection_key};
use crate::config::{Credential, UserHeader};
use crate::route::Route;
use crate::store::State;
use crate::store::record::{RecordError, Tokens};

/// Longer than any key; a header line must hold it.
const LONGEST: usize = 8 * 1024;

/// What was handed over is no secret that could be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a key is one line of letters, digits and signs, without spaces")]
pub struct NoKey;

/// A secret that the header can carry, without the white space that came along when it was copied.
pub fn read(header: &UserHeader, handed_over: &str) -> Result<SecretString, NoKey> {
    let key = handed_over.trim();
    let is_printable = key.bytes().all(|byte| byte.is_ascii_graphic());
    match !key.is_empty() && key.len() <= LONGEST && is_printable && header.value(key).is_some() {
        true => Ok(SecretString::from(key)),
        false => Err(NoKey),
    }
}

impl Connector {
    /// Keeps it in place of what is there.
    pub async fn keep_user_key(
        &self,
        route: &Route,
        user: &str,
        key: SecretString,
        now: SystemTime,
    ) -> Result<(), RecordError> {
        let tokens = Tokens {
            access_token: key,
            refresh_token: None,
            id_token: None,
            expires_at: None,
            obtained_at: now,
            connected_at: Some(now),
            scopes: Vec::new(),
            requested_scopes: Vec::new(),
            // From nobody but the user.
            issuer: String::new(),
            resource: None,
            token_endpoint: String::new(),
            revocation_endpoint: None,
            registration: String::new(),
            user: user.to_owned(),
            route: route.name.clone(),
            account: None,
            rotates: None,
        };
        self.records.connect(&connection_key(user, route), &tokens, CONNECTION_TTL).await?;
        tracing::info!(target: "audit", event = "connect", user, route = %route.name, ok = true);
        Ok(())
    }

    /// Whether the user has to hand one over.
    pub(super) async fn prospect_of_key(&self, route: &Route, user: &str, anew: bool) -> Prospect {
        let key = connection_key(user, route);
        let connection = match self.records.connection(&key).await {
            Ok(Some((connection, _))) if !anew => connection,
            Ok(_) | Err(RecordError::Unreadable) => return Prospect::Key,
            Err(_) => return Prospect::Unknown,
        };
        let is_refused =
            connection.state == State::NeedsReauth || connection.refused >= connection.generation;
        match is_refused || self.open_challenge(&key, Some(&connection.incarnation)).await.is_some() {
            true => Prospect::Key,
            false => Prospect::Connected { scopes: Vec::new() },
        }
    }
}

/// The header that a user's secret goes into, where that is what the route wants.
pub fn header_of(route: &Route) -> Option<&UserHeader> {
    match &route.credential {
        Credential::UserHeader(header) => Some(header),
        _ => None,
    }
}
