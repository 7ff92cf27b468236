//! Whose token is exchanged, and what is shown for it: nobody's, one that we sign about our user, the one that a caller of
//! another authorization server came with, or the one that an identity provider gave when the user signed in.
use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use secrecy::SecretString;

use super::connection::Connections;
use super::{Ask, Unresolved, entra_obo, token_exchange};
use crate::config::Credential;
use crate::oauth::client::Connector;
use crate::oauth::client::exchange::{Grant, Wish};
use crate::oauth::client::refresh::Outdated;
use crate::route::Route;

/// Who a token is about.
pub(super) struct Whose<'a> {
    /// Empty: nobody.
    pub(super) user: Cow<'a, str>,
    pub(super) grant: Cow<'a, str>,
    pub(super) by: By<'a>,
}

/// What says so.
pub(super) enum By<'a> {
    Nothing,
    /// We do.
    Us,
    /// What the caller came with.
    Token(Cow<'a, SecretString>),
    /// A connection at an identity provider: key and incarnation.
    Connection(Arc<str>, Arc<str>),
}

impl<'a> Whose<'a> {
    /// Whose token the route exchanges for this caller.
    pub(super) async fn of(ask: &Ask<'a>, connections: &Connections) -> Result<Whose<'a>, Unresolved> {
        let (caller, route) = (ask.permit.caller(), ask.permit.route());
        let grant = Cow::Borrowed(caller.grant());
        if matches!(route.credential, Credential::ClientCredentials(_)) {
            return Ok(Whose { user: "".into(), grant, by: By::Nothing });
        }
        // Nobody else's in their place.
        let user = caller.user().ok_or(Unresolved::NeedsUser { incarnation: None })?;
        let by = match (route.credential.provider(), caller.token()) {
            (Some(_), _) => {
                let (key, incarnation) = connections.standing(caller, route).await?;
                By::Connection(key, incarnation)
            }
            (None, Some(token)) => By::Token(Cow::Borrowed(token)),
            (None, None) => By::Us,
        };
        Ok(Whose { user: user.into(), grant, by })
    }

    /// What an exchanged token belongs to besides its user: with another sign-in or another grant it is another one.
    pub(super) fn origin(&self) -> &str {
        match &self.by {
            By::Nothing => "",
            By::Us | By::Token(_) => &self.grant,
            By::Connection(_, incarnation) => incarnation,
        }
    }

    /// The connection that it comes from, if from one: its key and incarnation.
    pub(super) fn connection(&self) -> Option<(Arc<str>, Arc<str>)> {
        match &self.by {
            By::Connection(key, incarnation) => Some((Arc::clone(key), Arc::clone(incarnation))),
            By::Nothing | By::Us | By::Token(_) => None,
        }
    }

    /// What is shown to the token endpoint, and of which generation that is, where another one can be had. `refused`: the one
    /// that was not taken.
    pub(super) async fn shown(
        &self,
        connector: &Connector,
        connections: &Connections,
        route: &Arc<Route>,
        refused: Option<&Outdated>,
        now: SystemTime,
    ) -> Result<(Wish, Option<Outdated>), Unresolved> {
        let wish = |grant| Wish::of(route, grant).ok_or(Unresolved::Refused);
        let (token, of) = match &self.by {
            By::Nothing => return Ok((wish(Grant::ClientCredentials)?, None)),
            By::Us => {
                let at = route.credential.exchanger().ok_or(Unresolved::Refused)?;
                let audience = at.audience_of_assertions();
                (token_exchange::signed(connector, audience, &self.user, now).await?, None)
            }
            By::Token(token) => (SecretString::clone(token), None),
            By::Connection(..) => {
                let who = (&*self.grant, &*self.user);
                let subject = connections.subject(who, route, refused, now).await?;
                if matches!(route.credential, Credential::EntraObo(_)) {
                    let wish = wish(entra_obo::grant(subject.token))?;
                    let wish = match wish.wants_tenant() {
                        true => wish.in_tenant(&entra_obo::tenant(subject.tenant)?),
                        false => wish,
                    };
                    return Ok((wish, Some(subject.of)));
                }
                if matches!(route.credential, Credential::IdJag(_)) {
                    let wish = Wish::by_assertion(route, subject.token).ok_or(Unresolved::Refused)?;
                    return Ok((wish, Some(subject.of)));
                }
                (subject.token, Some(subject.of))
            }
        };
        let is_ours = matches!(self.by, By::Us);
        let grant = match &route.credential {
            Credential::TokenExchange(exchange) => {
                token_exchange::grant(connector, exchange, token, is_ours, now).await?
            }
            _ => return Err(Unresolved::Refused),
        };
        Ok((wish(grant)?, of))
    }

    /// The same without its caller.
    pub(super) fn kept(&self) -> Whose<'static> {
        let by = match &self.by {
            By::Nothing => By::Nothing,
            By::Us => By::Us,
            By::Token(token) => By::Token(Cow::Owned(SecretString::clone(token))),
            By::Connection(key, incarnation) => By::Connection(Arc::clone(key), Arc::clone(incarnation)),
        };
        let owned = |text: &Cow<'_, str>| Cow::Owned(text.clone().into_owned());
        Whose { user: owned(&self.user), grant: owned(&self.grant), by }
    }
}
