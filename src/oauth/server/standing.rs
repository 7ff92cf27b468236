//! Whether an access token counts at this moment: it is ours and unexpired, nothing it stands on has been taken back, and
//! whoever it names is still somebody here. Asked for every request and by introspection, so that the two never differ.
use std::sync::Arc;
use std::time::SystemTime;

use super::access_token::{Keys, OpenError, Opened};
use super::revoked::Revoked;
use super::service::{self, ServiceAccount, Services};
use super::{Authority, Snapshot, machine};
use crate::clock::unix_seconds;
use crate::config::{Config, Machine};
use crate::route::{Route, Table};

/// What there is to ask. Memory only.
pub struct Standing<'a> {
    pub keys: &'a Keys,
    pub revoked: &'a Revoked,
    pub services: &'a Services,
    pub config: &'a Config,
    pub routes: &'a Table,
}

/// Whoever has a token that counts.
pub enum Holder {
    User(Opened),
    /// A client for itself.
    Client {
        token: Opened,
        machine: Arc<Machine>,
    },
    Service(Arc<ServiceAccount>),
}

/// Why a token does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoStanding {
    #[error("not an access token of this server")]
    Foreign,
    #[error("access token has expired")]
    Expired,
    #[error("what the access token stands on was taken back")]
    Revoked,
    #[error("the keys of access tokens are not known yet")]
    NotReady,
}

impl From<OpenError> for NoStanding {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Foreign => Self::Foreign,
            OpenError::Expired => Self::Expired,
            OpenError::NotReady => Self::NotReady,
        }
    }
}

/// Whether a user's token was made for this route (RFC 8707 §2), and where the route was made at run time, for the route and
/// the user's use of it as both are now.
pub fn is_for(token: &Opened, route: &Route) -> bool {
    let is_bound = || route.binding(token.subject()).is_some_and(|binding| token.is_for(binding));
    token.is_for(&route.resource) && (route.managed.is_none() || is_bound())
}

impl Authority {
    pub fn standing<'a>(&'a self, snapshot: &'a Snapshot) -> Standing<'a> {
        let Snapshot { config, keys, routes } = snapshot;
        Standing { keys, revoked: &self.revoked, services: &self.services, config, routes }
    }
}

impl Standing<'_> {
    /// Who has this token.
    pub fn holder(&self, token: &str, now: SystemTime) -> Result<Holder, NoStanding> {
        if token.starts_with(service::PREFIX) {
            return self.service(token, now);
        }
        let token = self.keys.open(token, now)?;
        if self.revoked.has_grant(token.grant()) || self.revoked.has_client(token.client()) {
            return Err(NoStanding::Revoked);
        }
        if let Some(client) = token.subject().strip_prefix(machine::SUBJECT) {
            let machine = Arc::clone(self.machine(client).ok_or(NoStanding::Revoked)?);
            return Ok(Holder::Client { token, machine });
        }
        if !self.admits(token.subject()) {
            return Err(NoStanding::Revoked);
        }
        Ok(Holder::User(token))
    }

    /// Whether whoever was a holder still is one, for what goes on longer than a request. When the token ends is no matter:
    /// an answer that has begun may be ended.
    pub fn holds(&self, holder: &Holder, route: &Route) -> bool {
        let token = |token: &Opened| {
            !self.revoked.has_grant(token.grant()) && !self.revoked.has_client(token.client())
        };
        match holder {
            Holder::User(user) => {
                let is_there = |now: &Arc<Route>| is_for(user, now);
                let stays = route.managed.is_none() || self.routes.by_name(&route.name).is_some_and(is_there);
                token(user) && self.admits(user.subject()) && stays
            }
            Holder::Client { token: client, machine: then } => {
                let same =
                    |now: &Arc<Machine>| now.routes.contains(&route.name) && now.acts_for == then.acts_for;
                token(client) && self.machine(client.client()).is_some_and(same)
            }
            Holder::Service(account) => {
                self.services.has(account) && account.acts_for.as_deref().is_none_or(|user| self.admits(user))
            }
        }
    }

    fn service(&self, token: &str, now: SystemTime) -> Result<Holder, NoStanding> {
        // Which accounts there are is known together with the keys.
        if !self.keys.is_known() {
            return Err(NoStanding::NotReady);
        }
        let account = self.services.find(token).ok_or(NoStanding::Foreign)?;
        if account.expires_at <= unix_seconds(now) {
            return Err(NoStanding::Expired);
        }
        if account.acts_for.as_deref().is_some_and(|user| !self.admits(user)) {
            return Err(NoStanding::Revoked);
        }
        Ok(Holder::Service(account))
    }

    /// The client as it is listed now. `None` also while the user whom it acts for is kept out.
    fn machine(&self, client: &str) -> Option<&Arc<Machine>> {
        let machine = self.config.oauth_server.listed.get(client)?.machine.as_ref()?;
        machine.acts_for.as_deref().is_none_or(|user| self.admits(user)).then_some(machine)
    }

    /// Whether this is a user of ours who is not kept out.
    pub fn admits(&self, user: &str) -> bool {
        self.config.login.knows(user) && !self.revoked.has_user(user)
    }
}
