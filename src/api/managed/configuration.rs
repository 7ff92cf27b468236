//! MCP servers that people and organisations have added.
use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream;
use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

use super::event::Event;
use super::{Current, Desk, Refused, name};
use crate::managed::record::{
    Assignment, Auth, CONFIGURATION, Configuration, ConnectRoute, Discovered, Header, Owner, SecretHeader,
    Sharing, pair,
};
use crate::managed::{self, header};
use crate::oauth::client::connection_key;
use crate::seal;
use crate::store::FOREVER;

/// Of an URL, bytes.
const LONGEST_URL: usize = 2048;
/// Of one kind.
const MOST_HEADERS: usize = 20;
const MOST_SCOPES: usize = 50;
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

/// What somebody wants to be otherwise; `None`: as it is.
#[derive(Default, Clone)]
pub struct Wish {
    pub name: Option<String>,
    pub url: Option<String>,
    pub auth: Option<Auth>,
    pub sharing: Option<Sharing>,
    pub passthrough: Option<bool>,
    /// `Some(None)`: what the server wants.
    pub scopes: Option<Option<Vec<String>>>,
    pub headers: Option<Vec<Header>>,
    pub enabled: Option<bool>,
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
        self.require_owner(&found.value.owner)?;
        Ok(Current { value: found.value, version: found.version })
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
            self.require_user(&self.actor.name)?;
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
            let mut wanted = wished(before.value.clone(), &wish);
            self.check(&mut wanted)?;
            let assigned = self.authority.directory.assignments(id).len();
            if wanted.sharing == Sharing::SingleUser && assigned > 1 {
                return Err(Refused::Conflict("it is assigned to several users"));
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
        self.disconnect(configuration, assigned.iter().map(|assignment| assignment.user.as_str())).await
    }

    /// Ends what users were connected with, as the configuration says it.
    pub(super) async fn disconnect(
        &self,
        configuration: &Configuration,
        users: impl IntoIterator<Item = &str>,
    ) -> Result<(), Refused> {
        let around = managed::Around::of(&self.snapshot.config).ok_or(Refused::Unavailable)?;
        let Some(route) =
            managed::route_of(configuration, around).filter(|_| configuration.auth.is_of_user())
        else {
            return Ok(());
        };
        let connector = &self.authority.connector;
        let ended = stream::iter(users).map(async |user| {
            let key = connection_key(user, &route);
            connector.end(&key, user, &route.name, &route.issuer_policy, &route.credential).await
        });
        let ended: Vec<_> = ended.buffer_unordered(ENDINGS).collect().await;
        for end in ended {
            end?;
        }
        Ok(())
    }

    fn event(&self, action: &str, id: &str) -> Event {
        let event = Event::new(action).about(id);
        match self.authority.directory.configuration(id) {
            Some(known) => event.of(&known.owner),
            None => event,
        }
    }

    /// Whether it may be written so, and the form in which it is kept.
    fn check(&self, configuration: &mut Configuration) -> Result<(), Refused> {
        configuration.name = name(&configuration.name)?;
        self.check_url(&configuration.url)?;
        if configuration.headers.len() > MOST_HEADERS {
            return Err(Refused::Invalid("headers", format!("are more than {MOST_HEADERS}")));
        }
        let bad = |what: &'static str, name: &str, why: header::BadHeader| {
            Refused::Invalid(what, format!("{name} {why}"))
        };
        for written in &configuration.headers {
            header::check(&written.name, &written.value, false)
                .map_err(|why| bad("headers", &written.name, why))?;
        }
        match &configuration.auth {
            Auth::StaticHeaders(headers) if headers.is_empty() || headers.len() > MOST_HEADERS => {
                let why = format!("have to be 1 to {MOST_HEADERS}");
                return Err(Refused::Invalid("auth.headers", why));
            }
            Auth::StaticHeaders(headers) => {
                for written in headers {
                    header::check(&written.name, written.value.expose_secret(), true)
                        .map_err(|why| bad("auth.headers", &written.name, why))?;
                }
            }
            Auth::OauthStatic { client_id, .. } if client_id.trim().is_empty() => {
                return Err(Refused::Invalid("auth.client_id", "is missing".to_owned()));
            }
            Auth::None | Auth::OauthDynamic | Auth::OauthStatic { .. } => {}
        }
        let is_scope = |scope: &String| {
            !scope.is_empty() && scope.bytes().all(|byte| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e))
        };
        match &configuration.scopes {
            Some(scopes) if scopes.len() > MOST_SCOPES || !scopes.iter().all(is_scope) => {
                let why = format!("are not scopes of RFC 6749 §3.3, or more than {MOST_SCOPES}");
                Err(Refused::Invalid("scopes", why))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn check_url(&self, written: &str) -> Result<Url, Refused> {
        let invalid = |why: &str| Refused::Invalid("url", why.to_owned());
        if written.len() > LONGEST_URL {
            return Err(invalid("is too long"));
        }
        let url = Url::parse(written).map_err(|_| invalid("is not a URL"))?;
        let host = managed::host(&url).ok_or_else(|| invalid("has no host"))?;
        let is_listed = self.settings.private_hosts.contains(&host);
        match url.scheme() {
            "https" => {}
            "http" if is_listed => {}
            _ => return Err(invalid("has to begin with https://")),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(invalid("may not have a user or a password in it: use static headers"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(invalid("may not have a query or a fragment"));
        }
        // The parser drops and turns what others may read otherwise.
        let is_plain = written.bytes().all(|byte| (0x21..0x7f).contains(&byte) && byte != b'\\');
        if !is_plain || written.split('/').any(|part| matches!(part, "." | "..")) || written.contains("%2") {
            return Err(invalid("can be read in more than one way"));
        }
        let is_local = host == "localhost" || host.ends_with(".localhost") || !host.contains(['.', ':']);
        match is_local && !is_listed {
            true => Err(invalid("names a host of this network")),
            false => Ok(url),
        }
    }

    async fn look_at(&self, configuration: &Configuration) -> Result<Discovered, Refused> {
        let seen = self.seen(configuration).await?;
        seen.fits(&configuration.auth)?;
        Ok(seen.discovered)
    }
}

/// Whether tokens and connections that were good before are so no more. The order of scopes is no matter, nor is what is
/// sent along.
fn is_material(before: &Configuration, after: &Configuration) -> bool {
    let set = |scopes: &Option<Vec<String>>| {
        scopes.as_ref().map(|scopes| scopes.iter().cloned().collect::<BTreeSet<_>>())
    };
    let client = |auth: &Auth| match auth {
        Auth::OauthStatic { client_id, client_secret } => {
            let secret = client_secret.as_ref().map(|secret| secret.expose_secret().to_owned());
            Some((client_id.clone(), secret))
        }
        Auth::None | Auth::StaticHeaders(_) | Auth::OauthDynamic => None,
    };
    before.url != after.url
        || before.auth.word() != after.auth.word()
        || client(&before.auth) != client(&after.auth)
        || set(&before.scopes) != set(&after.scopes)
}

fn wished(configuration: Configuration, wish: &Wish) -> Configuration {
    let wish = wish.clone();
    Configuration {
        name: wish.name.unwrap_or(configuration.name),
        url: wish.url.unwrap_or(configuration.url),
        auth: wish.auth.map_or(configuration.auth.clone(), |auth| kept(auth, configuration.auth)),
        sharing: wish.sharing.unwrap_or(configuration.sharing),
        passthrough: wish.passthrough.unwrap_or(configuration.passthrough),
        scopes: wish.scopes.unwrap_or(configuration.scopes),
        headers: wish.headers.unwrap_or(configuration.headers),
        enabled: wish.enabled.unwrap_or(configuration.enabled),
        ..configuration
    }
}

/// Secrets are written and never read: one that is left empty is the one that is there.
fn kept(wish: Auth, there: Auth) -> Auth {
    let is_empty = |secret: &SecretString| secret.expose_secret().is_empty();
    match (wish, there) {
        (Auth::StaticHeaders(headers), Auth::StaticHeaders(known)) => {
            let keep = |header: SecretHeader| {
                let same = known.iter().find(|known| known.name.eq_ignore_ascii_case(&header.name));
                match same.filter(|_| is_empty(&header.value)) {
                    Some(known) => SecretHeader { value: known.value.clone(), ..header },
                    None => header,
                }
            };
            Auth::StaticHeaders(headers.into_iter().map(keep).collect())
        }
        (
            Auth::OauthStatic { client_id, client_secret: None },
            Auth::OauthStatic { client_id: known, client_secret },
        ) if client_id == known => Auth::OauthStatic { client_id, client_secret },
        (wish, _) => wish,
    }
}

fn key() -> Result<SecretString, Refused> {
    seal::token().map_err(|_| Refused::Unavailable)
}
