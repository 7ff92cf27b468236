//! Bearer in, [`Caller`] out. Says who is calling and what their token is for, nothing about rights: that is
//! `policy`. The token is read from the `Authorization` header alone, never from query or body (RFC 6750 §2,
//! MCP authorization, Token Requirements).
pub mod assumed;
pub mod foreign;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderMap, header};
use secrecy::SecretString;

use self::foreign::{Foreign, ForeignToken};

use crate::config::{Attributes, RELAYED, issuer_of};
use crate::oauth::server::access_token::{Opened, PREFIX};
use crate::oauth::server::service;
use crate::oauth::server::standing::{self, Holder, NoStanding, Standing};
use crate::route::Route;

/// Who is calling, proven by a token. Only this module makes one.
pub struct Caller {
    who: Who,
}

/// How a caller's user can be asked for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// By a challenge: the client sends them through an authorization of ours.
    Authorization,
    /// By their page here alone: their client's authorization server is another one.
    Page,
    /// There is nobody.
    Nobody,
}

enum Who {
    Ours(Holder),
    /// Proven by an authorization server that the route trusts in our place. With the token itself, where the route shows it to
    /// somebody.
    Theirs(Arc<ForeignToken>, Option<SecretString>),
    /// Nobody was asked.
    Nobody,
}

/// Why a request has no caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthnError {
    /// No credential at all: the challenge carries no error (RFC 6750 §3.1).
    #[error("no access token")]
    Missing,
    /// Two credentials: nobody can say which of them counts (RFC 6750 §3.1).
    #[error("malformed authorization header")]
    Malformed,
    /// One bearer token that is none of ours, whatever it is made of.
    #[error("access token is not valid")]
    Invalid,
    #[error("access token has expired")]
    Expired,
    /// Its grant was, or its client, or its user is blocked.
    #[error("grant was revoked")]
    Revoked,
    /// Ours: it cannot be judged yet.
    #[error("the gateway is not ready yet")]
    NotReady,
}

/// Proves who is calling a route whose tokens are ours.
pub fn authenticate(
    headers: &HeaderMap,
    standing: &Standing<'_>,
    now: SystemTime,
) -> Result<Caller, AuthnError> {
    holder(headers, standing, now).map(|holder| Caller { who: Who::Ours(holder) })
}

/// Whose token of ours a request brings, wherever it may be good.
pub fn holder(headers: &HeaderMap, standing: &Standing<'_>, now: SystemTime) -> Result<Holder, AuthnError> {
    let token = bearer(headers)?;
    standing.holder(&token, now).map_err(|error| match error {
        NoStanding::Foreign => AuthnError::Invalid,
        NoStanding::Expired => AuthnError::Expired,
        NoStanding::Revoked => AuthnError::Revoked,
        NoStanding::NotReady => AuthnError::NotReady,
    })
}

/// Proves who is calling a route whose tokens are others'.
pub async fn authenticate_foreign(
    headers: &HeaderMap,
    foreign: &Foreign,
    standing: &Standing<'_>,
    route: &Route,
    now: SystemTime,
) -> Result<Caller, AuthnError> {
    let token = bearer(headers)?;
    if !standing.keys.is_known() {
        // Who is blocked is known together with the keys.
        return Err(AuthnError::NotReady);
    }
    // One of ours is not shown to anybody else.
    if token.starts_with(PREFIX) || token.starts_with(service::PREFIX) {
        return Err(AuthnError::Invalid);
    }
    let found = foreign.holder(&token, route, now).await?;
    match standing.revoked.has_user(&found.subject) {
        true => Err(AuthnError::Revoked),
        false => {
            let shown = route.credential.shows_caller().then(|| SecretString::from(&*token));
            Ok(Caller { who: Who::Theirs(found, shown) })
        }
    }
}

/// The one token of a request.
fn bearer(headers: &HeaderMap) -> Result<Cow<'_, str>, AuthnError> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().ok_or(AuthnError::Missing)?;
    if values.next().is_some() {
        return Err(AuthnError::Malformed);
    }
    // Bytes that are no text are no part of a token either, but they do not hide what kind of credential this is.
    match std::str::from_utf8(value.as_bytes()) {
        Ok(value) => token_of(value).map(Cow::Borrowed),
        Err(_) => {
            let value = String::from_utf8_lossy(value.as_bytes());
            token_of(&value).map(|token| Cow::Owned(token.to_owned()))
        }
    }
}

fn token_of(value: &str) -> Result<&str, AuthnError> {
    let (scheme, token) = value.split_once(' ').unwrap_or((value, ""));
    // Another scheme is no credential for us, so the answer is where to get one.
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(AuthnError::Missing);
    }
    let token = token.trim_matches(' ');
    match has_second_credential(token) {
        true => Err(AuthnError::Malformed),
        false => Ok(token),
    }
}

/// Whether another credential follows in the same header. Space and comma alone do not say so: a token that was
/// damaged on the way may contain either.
fn has_second_credential(token: &str) -> bool {
    // Nearly none has either, and bytes are looked at faster than pieces.
    if memchr::memchr2(b' ', b',', token.as_bytes()).is_none() {
        return false;
    }
    let mut others = token.split([' ', ',']).skip(1);
    others.any(|other| other.starts_with(PREFIX) || other.eq_ignore_ascii_case("bearer"))
}

fn is_relayed(token: &Opened) -> bool {
    token.client().starts_with(RELAYED)
}

// === impl Caller ===

impl Caller {
    /// Of a route where nobody is asked who they are; anywhere else it may do nothing.
    pub fn nobody() -> Self {
        Self { who: Who::Nobody }
    }

    pub fn is_nobody(&self) -> bool {
        matches!(self.who, Who::Nobody)
    }

    pub fn subject(&self) -> &str {
        match &self.who {
            Who::Ours(Holder::User(token) | Holder::Client { token, .. }) => token.subject(),
            Who::Ours(Holder::Service(account)) => &account.subject,
            Who::Theirs(token, _) => &token.subject,
            Who::Nobody => "",
        }
    }

    pub fn client(&self) -> &str {
        match &self.who {
            Who::Ours(Holder::User(token) | Holder::Client { token, .. }) => token.client(),
            Who::Ours(Holder::Service(account)) => &account.subject,
            Who::Theirs(token, _) => &token.client,
            Who::Nobody => "",
        }
    }

    /// Whether nothing of it was taken back since it was proven for this route.
    pub fn still_stands(&self, standing: &Standing<'_>, route: &Route) -> bool {
        match &self.who {
            Who::Ours(holder) => standing.holds(holder, route),
            Who::Theirs(token, _) => {
                let trusts =
                    |route: &Arc<Route>| route.trusted_issuers.iter().any(|trusted| token.is_of(trusted));
                let known = standing.routes.by_name(&route.name);
                !standing.revoked.has_user(&token.subject) && known.is_some_and(trusts)
            }
            Who::Nobody => route.kind.is_public(),
        }
    }

    /// Id of the grant, the one to be revoked; of a service account or a token of others, what stands for it.
    pub fn grant(&self) -> &str {
        match &self.who {
            Who::Ours(Holder::User(token) | Holder::Client { token, .. }) => token.grant(),
            Who::Ours(Holder::Service(account)) => &account.digest,
            Who::Theirs(token, _) => &token.digest,
            Who::Nobody => "",
        }
    }

    /// Whose connections are used. `None`: nobody's, for a program that acts for no user.
    pub fn user(&self) -> Option<&str> {
        match &self.who {
            Who::Ours(Holder::User(token)) => Some(token.subject()),
            Who::Ours(Holder::Client { machine, .. }) => machine.acts_for.as_deref(),
            Who::Ours(Holder::Service(account)) => account.acts_for.as_deref(),
            Who::Theirs(token, _) => (!token.is_program).then_some(&token.subject),
            Who::Nobody => None,
        }
    }

    /// What it came with, if that is another authorization server's and the route shows it to somebody.
    pub fn token(&self) -> Option<&SecretString> {
        match &self.who {
            Who::Ours(_) | Who::Nobody => None,
            Who::Theirs(_, shown) => shown.as_ref(),
        }
    }

    /// Who vouches for the subject. Empty: we do.
    pub fn issuer(&self) -> &str {
        let is_program = matches!(self.who, Who::Ours(Holder::Client { .. } | Holder::Service(_)));
        let issuer = (!is_program).then(|| issuer_of(self.subject())).flatten();
        issuer.unwrap_or_default()
    }

    /// The user of ours who is before it.
    pub fn person(&self) -> Option<&str> {
        match &self.who {
            Who::Ours(Holder::User(token)) => Some(token.subject()),
            Who::Ours(_) | Who::Theirs(..) | Who::Nobody => None,
        }
    }

    /// What the token itself says of its user.
    pub fn attributes(&self) -> Option<&Arc<Attributes>> {
        match &self.who {
            Who::Ours(_) | Who::Nobody => None,
            Who::Theirs(token, _) => Some(&token.attributes),
        }
    }

    /// Whether it is a program, with nobody before it.
    pub fn is_machine(&self) -> bool {
        match &self.who {
            Who::Ours(Holder::User(_)) => false,
            Who::Ours(Holder::Client { .. } | Holder::Service(_)) => true,
            Who::Theirs(token, _) => token.is_program,
            Who::Nobody => false,
        }
    }

    /// The token of a user who calls by a client of their own: neither a program, nor an upstream that calls for them.
    pub fn own_token(&self) -> Option<&Opened> {
        match &self.who {
            Who::Ours(Holder::User(token)) if !is_relayed(token) => Some(token),
            _ => None,
        }
    }

    /// How somebody is reached who has to do something.
    pub fn reach(&self) -> Reach {
        match &self.who {
            // An upstream that calls for them sends them nowhere.
            Who::Ours(Holder::User(token)) if is_relayed(token) => Reach::Page,
            Who::Ours(Holder::User(_)) => Reach::Authorization,
            Who::Ours(_) | Who::Nobody => Reach::Nobody,
            Who::Theirs(token, _) if token.is_program => Reach::Nobody,
            Who::Theirs(..) => Reach::Page,
        }
    }

    /// Whether the token was issued for this route (RFC 8707 §2).
    pub fn is_for(&self, route: &Route) -> bool {
        match &self.who {
            Who::Ours(_) if !route.is_ours() => false,
            Who::Ours(Holder::User(token)) => standing::is_for(token, route),
            // Taken off the list, a route is shut for tokens that were made for it.
            Who::Ours(Holder::Client { token, machine }) => {
                token.is_for(&route.resource) && machine.routes.contains(&route.name)
            }
            Who::Ours(Holder::Service(account)) => account.routes.contains(&route.name),
            Who::Theirs(token, _) => token.is_for(route),
            Who::Nobody => route.kind.is_public(),
        }
    }

    pub fn has_scope(&self, scope: &str) -> bool {
        // What a service account may is said by its routes.
        matches!(self.who, Who::Ours(Holder::Service(_))) || self.scope().split(' ').any(|own| own == scope)
    }

    /// The scopes of the token, and those of `more` that it lacks.
    pub fn scopes_and<'s>(&self, more: impl IntoIterator<Item = &'s String>) -> Vec<String> {
        let own = self.scope().split(' ').filter(|own| !own.is_empty());
        let mut all: Vec<String> = own.map(str::to_owned).collect();
        for scope in more {
            if !all.contains(scope) {
                all.push(scope.clone());
            }
        }
        all
    }

    fn scope(&self) -> &str {
        match &self.who {
            Who::Ours(Holder::User(token) | Holder::Client { token, .. }) => token.scope(),
            Who::Ours(Holder::Service(_)) => "",
            Who::Theirs(token, _) => &token.scope,
            Who::Nobody => "",
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::config::{self, Config};
    use crate::oauth::server::access_token::{Claims, Keys};
    use crate::oauth::server::revoked::Revoked;
    use crate::oauth::server::service::Services;
    use crate::route::Table;
    use http::HeaderValue;
    use std::time::{Duration, UNIX_EPOCH};

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn keys_and_token() -> (Keys, String) {
        let keys = Keys::new(&[[3; 32]]).unwrap();
        let claims = Claims {
            audience: "r",
            grant: "g",
            subject: "alice",
            client: "c",
            scope: "mcp:access x",
            expires_at: now() + Duration::from_secs(5),
        };
        let token = keys.seal(&claims, now()).unwrap();
        (keys, token)
    }

    fn judge(values: &[&str], revoked: &Revoked) -> Result<Caller, AuthnError> {
        let (keys, token) = keys_and_token();
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(
                header::AUTHORIZATION,
                HeaderValue::from_str(&value.replace("TOKEN", &token)).unwrap(),
            );
        }
        judged(&headers, &keys, revoked)
    }

    fn judged(headers: &HeaderMap, keys: &Keys, revoked: &Revoked) -> Result<Caller, AuthnError> {
        let (services, config) = (&Services::default(), &alices());
        let routes = &Table::new(&config.server.public_url, &config.routes);
        authenticate(headers, &Standing { keys, revoked, services, config, routes }, now())
    }

    /// A configuration in which Alice is a user.
    fn alices() -> Config {
        let text = r#"{"server": {"public_url": "http://127.0.0.1:8080", "listen": ["127.0.0.1:8080"]},
            "login": {"local": {"users": [{"username": "alice", "password_hash":
            "$argon2id$v=19$m=19456,t=2,p=1$8ZCVR4QDG/0C4YXMmXc5eg$m/LlQtKDdhxEFEjjkAiV8iTCvwp/xu4N6O8sWaElWH8"}]}},
            "routes": []}"#;
        config::parse(text, "test", &config::Process).unwrap_or_else(|report| panic!("{report}"))
    }

    #[test]
    fn one_bearer_token_is_a_caller() {
        for value in ["Bearer TOKEN", "bearer TOKEN", "BEARER  TOKEN"] {
            let caller = judge(&[value], &Revoked::default()).ok().unwrap();
            assert_eq!(
                (caller.subject(), caller.user(), caller.has_scope("x"), caller.has_scope("mcp")),
                ("alice", Some("alice"), true, false)
            );
        }
    }

    #[test]
    fn anything_else_is_not() {
        let none = Revoked::default();
        assert_eq!(judge(&[], &none).err(), Some(AuthnError::Missing));
        for two in [
            &["Bearer TOKEN", "Bearer TOKEN"][..],
            &["Bearer TOKEN, Bearer TOKEN"],
            &["Bearer TOKEN,TOKEN"],
            &["Bearer TOKEN TOKEN"],
            &["Bearer x,bearer y"],
        ] {
            assert_eq!(judge(two, &none).err(), Some(AuthnError::Malformed), "{two:?}");
        }
        for invalid in ["Bearer xTOKEN", "Bearer", "Bearer ", "Bearer TOKEN,", "Bearer a,b c"] {
            assert_eq!(judge(&[invalid], &none).err(), Some(AuthnError::Invalid), "{invalid}");
        }
        for other in ["Basic TOKEN", "TOKEN"] {
            assert_eq!(judge(&[other], &none).err(), Some(AuthnError::Missing));
        }
    }

    #[test]
    fn a_token_with_any_bit_flipped_is_invalid() {
        let (keys, token) = keys_and_token();
        let mut flips = 0;
        for bit in 0..token.len() * 8 {
            let mut bytes = format!("Bearer {token}").into_bytes();
            bytes["Bearer ".len() + bit / 8] ^= 1 << (bit % 8);
            // Control characters are no header at all.
            let Ok(value) = HeaderValue::from_bytes(&bytes) else { continue };
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value)]);
            let refused = judged(&headers, &keys, &Revoked::default()).err();
            assert_eq!(refused, Some(AuthnError::Invalid), "bit {bit}");
            flips += 1;
        }
        assert!(flips > token.len() * 6);
    }

    #[test]
    fn a_revoked_grant_takes_its_tokens_along() {
        let revoked = Revoked::default();
        revoked.revoke("g".into(), UNIX_EPOCH + Duration::from_secs(1_800_000_010));
        assert_eq!(judge(&["Bearer TOKEN"], &revoked).err(), Some(AuthnError::Revoked));
        revoked.sweep(UNIX_EPOCH + Duration::from_secs(1_800_000_011));
        assert!(judge(&["Bearer TOKEN"], &revoked).is_ok());
    }

    #[test]
    fn a_blocked_user_is_no_caller() {
        let revoked = Revoked::default();
        revoked.block("bob".into());
        assert!(judge(&["Bearer TOKEN"], &revoked).is_ok());
        revoked.block("alice".into());
        assert_eq!(judge(&["Bearer TOKEN"], &revoked).err(), Some(AuthnError::Revoked));
    }
}
