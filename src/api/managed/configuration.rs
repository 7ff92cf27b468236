//! MCP servers that people and organisations have added.
use std::pin::Pin;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream;
use secrecy::SecretString;

use super::event::Event;
use super::wish::{Wish, is_material, require_secrets, wished};
use super::{Current, Desk, Refused};
use crate::managed;
use crate::managed::record::{
    Assignment, Auth, CONFIGURATION, Configuration, ConnectRoute, Discovered, Header, Owner, Sharing, pair,
};
use crate::oauth::client::connection_key;
use crate::route::Route;
use crate::seal;
use crate::store::FOREVER;

/// Connections that are ended at a time.
const ENDINGS: usize = 16;

/// What somebody wants to add.
pub struct Draft {
    pub owner: Owner,
    pub name: String,
    pub url: String,
    pub auth: Auth,
    pub sharing: Sharing,
    pub passthrough: bool,
    pub scopes: Option<Vec<String>>,
    pub headers: Vec<Header>,
}

impl Desk<'_> {
    /// Those of an organisation, or the actor's own, by id.
    pub fn configurations(&self, organization: Option<&str>) -> Result<Vec<Arc<Configuration>>, Refused> {
        let owner = match organization {
            Some(id) => {
                self.administered(id)?;
                Owner::Organization(id.to_owned())
            }
            None => Owner::User(self.actor.name.clone()),
        };
        Ok(self.authority.directory.owned(&owner))
    }

    /// What the actor may use.
    pub fn available(&self) -> Vec<(Arc<Configuration>, Assignment)> {
        let mut all = self.authority.directory.assigned(&self.actor.name);
        all.retain(|(configuration, _)| configuration.enabled);
        all
    }

    /// For who may change it.
    pub async fn configuration_to_change(&self, id: &str) -> Result<Current<Configuration>, Refused> {
        let found = self.read::<Configuration>(id).await?;
        if found.value.is_deleted() {
            return Err(Refused::NotFound);
        }
        match self.require_owner(&found.value.owner) {
            // A member knows of what they are assigned, and of nothing else that the organisation has.
            Err(Refused::Forbidden(_)) if !self.is_assigned(id) => Err(Refused::NotFound),
            may => may.map(|()| Current { value: found.value, version: found.version }),
        }
    }

    fn is_assigned(&self, configuration: &str) -> bool {
        let assignments = self.authority.directory.assignments(configuration);
        assignments.iter().any(|assignment| assignment.user == self.actor.name)
    }

    /// Looks at the server and adds it. What is personal is assigned to its owner at once.
    pub async fn create_configuration(&self, draft: Draft) -> Result<Current<Configuration>, Refused> {
        let event = Event::new("configuration.create").of(&draft.owner);
        let made = self.made_configuration(draft).await;
        let event = match &made {
            Ok(made) => event.about(&made.value.id),
            Err(_) => event,
        };
        self.noted(event, made).await
    }

    async fn made_configuration(&self, draft: Draft) -> Result<Current<Configuration>, Refused> {
        self.require_owner(&draft.owner)?;
        if matches!(draft.owner, Owner::User(_)) {
            let why = "is needed: a program has nothing of its own";
            self.require_user(&self.actor.name)
                .map_err(|_| Refused::Invalid("organization", why.to_owned()))?;
            if !self.settings.personal {
                return Err(Refused::Forbidden("this gateway lets organisations alone add servers"));
            }
            if draft.sharing != Sharing::SingleUser {
                let why = "a personal configuration is for a single user".to_owned();
                return Err(Refused::Invalid("sharing", why));
            }
        }
        let now = self.seconds();
        let mut configuration = Configuration {
            id: format!("{CONFIGURATION}{}", seal::name().map_err(|_| Refused::Unavailable)?),
            owner: draft.owner,
            name: draft.name,
            url: draft.url,
            auth: draft.auth,
            sharing: draft.sharing,
            slot: None,
            passthrough: draft.passthrough,
            scopes: draft.scopes,
            headers: draft.headers,
            enabled: true,
            revision: 1,
            route: ConnectRoute { key: key()?, version: 1, created_at: now },
            discovered: None,
            created_at: now,
            updated_at: now,
            deleted_at: None,
        };
        self.check(&mut configuration)?;
        configuration.discovered = Some(self.look_at(&configuration).await?);
        if let Owner::User(user) = &configuration.owner {
            configuration.slot = Some(user.clone());
        }
        self.create(&configuration.id, &configuration).await?;
        if let Owner::User(user) = &configuration.owner {
            self.put_assignment(&configuration, user).await?;
        }
        Ok(Current { value: configuration, version: 1 })
    }

    /// Changes it. Where the change is material, nobody's token is good for it any more, and what users were connected with
    /// is ended.
    pub async fn change_configuration(
        &self,
        id: &str,
        wish: Wish,
        expected: Option<u64>,
    ) -> Result<Current<Configuration>, Refused> {
        let changed = async {
            let before = self.configuration_to_change(id).await?;
            // Before anybody's server is asked anything.
            if expected.is_some_and(|expected| expected != before.version) {
                return Err(Refused::Stale);
            }
            if wish.url.as_ref().is_some_and(|url| *url != before.value.url) {
                require_secrets(&before.value.auth, wish.auth.as_ref())?;
            }
            let mut wanted = wished(before.value.clone(), &wish);
            self.check(&mut wanted)?;
            if wanted.sharing != before.value.sharing {
                wanted.slot = self.slot_for(&wanted)?;
            }
            let is_material = is_material(&before.value, &wanted);
            if is_material {
                wanted.discovered = Some(self.look_at(&wanted).await?);
                wanted.revision += 1;
            }
            wanted.updated_at = self.seconds();
            // What was decided on is what is changed.
            let version = expected.unwrap_or(before.version);
            let changed = self.change(id, Some(version), |_| FOREVER, |_| Ok(wanted.clone())).await?;
            if is_material {
                self.disconnect_all(&before.value).await?;
            }
            Ok(changed)
        };
        let event = self.event("configuration.change", id);
        self.noted(event, changed.await).await
    }

    /// Who has the one place, where there is one from now on.
    fn slot_for(&self, wanted: &Configuration) -> Result<Option<String>, Refused> {
        if matches!((&wanted.owner, wanted.sharing), (Owner::User(_), Sharing::MultiUser)) {
            let why = "a personal configuration is for a single user".to_owned();
            return Err(Refused::Invalid("sharing", why));
        }
        let mut assigned = self.authority.directory.assignments(&wanted.id).into_iter();
        match (wanted.sharing, assigned.next(), assigned.next()) {
            (Sharing::MultiUser, ..) => Ok(None),
            (Sharing::SingleUser, only, None) => Ok(only.map(|only| only.user)),
            (Sharing::SingleUser, ..) => Err(Refused::Conflict("it is assigned to several users")),
        }
    }

    /// Another address: the old one and every token for it are no good from now on. Connections stay.
    pub async fn rotate(&self, id: &str, expected: Option<u64>) -> Result<Current<Configuration>, Refused> {
        let rotated = async {
            self.configuration_to_change(id).await?;
            let (key, now) = (key()?, self.seconds());
            let rotate = |configuration: Configuration| {
                let version = configuration.route.version + 1;
                Ok(Configuration {
                    route: ConnectRoute { key: key.clone(), version, created_at: now },
                    revision: configuration.revision + 1,
                    updated_at: now,
                    ..configuration
                })
            };
            self.change(id, expected, |_| FOREVER, rotate).await
        };
        let event = self.event("route.rotate", id);
        self.noted(event, rotated.await).await
    }

    /// Takes it away: its secrets are gone, its address leads nowhere, what users were connected with is ended.
    pub async fn delete_configuration(&self, id: &str, expected: Option<u64>) -> Result<(), Refused> {
        let event = self.event("configuration.delete", id);
        let deleted = async {
            let found = self.configuration_to_change(id).await?;
            self.wipe(&found.value, expected).await
        };
        self.noted(event, deleted.await).await
    }

    pub(super) async fn wipe(
        &self,
        configuration: &Configuration,
        expected: Option<u64>,
    ) -> Result<(), Refused> {
        let now = self.seconds();
        let retention = self.settings.event_retention;
        let wipe = |configuration: Configuration| Ok(configuration.wiped(now));
        self.change(&configuration.id, expected, |_| retention, wipe).await?;
        self.disconnect_all(configuration).await?;
        for assignment in self.authority.directory.assignments(&configuration.id) {
            self.remove::<Assignment>(&pair(&configuration.id, &assignment.user)).await?;
        }
        Ok(())
    }

    async fn disconnect_all(&self, configuration: &Configuration) -> Result<(), Refused> {
        let assigned = self.authority.directory.assignments(&configuration.id);
        self.disconnect(configuration, assigned.into_iter().map(|assignment| assignment.user).collect()).await
    }

    /// Ends what users were connected with, as the configuration says it.
    pub(super) async fn disconnect(
        &self,
        configuration: &Configuration,
        users: Vec<String>,
    ) -> Result<(), Refused> {
        let around = managed::Around::of(&self.snapshot.config).ok_or(Refused::Unavailable)?;
        let Some(route) =
            managed::route_of(configuration, around).filter(|_| configuration.auth.is_of_user())
        else {
            return Ok(());
        };
        let endings: Vec<_> = users.into_iter().map(|user| self.end(&route, user)).collect();
        let ended: Vec<_> = stream::iter(endings).buffer_unordered(ENDINGS).collect().await;
        ended.into_iter().collect()
    }

    fn end<'d>(
        &'d self,
        route: &'d Route,
        user: String,
    ) -> Pin<Box<dyn Future<Output = Result<(), Refused>> + Send + 'd>> {
        Box::pin(async move {
            let (connector, key) = (&self.authority.connector, connection_key(&user, route));
            connector.end(&key, &user, &route.name, &route.issuer_policy, &route.credential).await?;
            Ok(())
        })
    }

    fn event(&self, action: &str, id: &str) -> Event {
        let event = Event::new(action).about(id);
        match self.authority.directory.configuration(id) {
            Some(known) => event.of(&known.owner),
            None => event,
        }
    }

    async fn look_at(&self, configuration: &Configuration) -> Result<Discovered, Refused> {
        let seen = self.seen(configuration).await?;
        seen.fits(&configuration.auth)?;
        Ok(seen.discovered)
    }
}

fn key() -> Result<SecretString, Refused> {
    seal::token().map_err(|_| Refused::Unavailable)
}
