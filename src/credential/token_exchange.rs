//! `token_exchange`: a token that says who the user is, shown as RFC 8693 or RFC 7523 want it.
use std::time::{Duration, SystemTime};

use secrecy::SecretString;

use super::Unresolved;
use crate::config::{Actor, ExchangeForm, InjectedToken, Subject, TokenExchange};
use crate::oauth::client::Connector;
use crate::oauth::client::exchange::{ACCESS_TOKEN, Grant, ID_TOKEN, JWT, Shown};

const RETRY: Duration = Duration::from_secs(1);

/// The grant that shows this token. `is_ours`: we have signed it.
pub(super) async fn grant(
    connector: &Connector,
    exchange: &TokenExchange,
    token: SecretString,
    is_ours: bool,
    now: SystemTime,
) -> Result<Grant, Unresolved> {
    let usual = match exchange.subject {
        Subject::Provider(_, InjectedToken::Id) => ID_TOKEN,
        _ if is_ours => JWT,
        _ => ACCESS_TOKEN,
    };
    let kind = exchange.subject_token_type.as_deref().unwrap_or(usual);
    let subject = Shown { token, kind: kind.to_owned() };
    if exchange.form == ExchangeForm::Assertion {
        return Ok(Grant::Assertion { subject });
    }
    let actor = match &exchange.actor {
        None => None,
        Some(Actor::Token(token, kind)) => Some(Shown { token: token.clone(), kind: kind.clone() }),
        Some(Actor::Ourselves) => {
            let us = connector.origin().to_owned();
            let token = signed(connector, exchange.at.audience_of_assertions(), &us, now).await?;
            Some(Shown { token, kind: JWT.to_owned() })
        }
    };
    Ok(Grant::Exchange { subject, actor, requested: exchange.requested_token_type.clone() })
}

/// A JWT of ours for whoever exchanges tokens there, about this user, or about ourselves by our own address.
pub(super) async fn signed(
    connector: &Connector,
    audience: &str,
    about: &str,
    now: SystemTime,
) -> Result<SecretString, Unresolved> {
    let unavailable = || Unresolved::Unavailable { retry_after: RETRY };
    let key = connector.client_key(audience).await.map_err(|_| unavailable())?;
    key.vouch(connector.origin(), about, now).ok_or_else(unavailable)
}
