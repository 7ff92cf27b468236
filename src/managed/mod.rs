//! Routes that were made at run time: organisations and people add MCP servers, assign them and take them away. The records
//! are in the store; here is a copy of them all, which the store's events keep true, and what becomes of them: routes like
//! those of the configuration file, in the same table. So a request asks nobody who may use what.
pub mod address;
pub mod header;
pub mod record;
mod routes;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use url::Url;
use zeroize::Zeroizing;

use self::record::{Assignment, Configuration, Membership, Organization, Owner, halves};
use crate::config::{Config, Managed as Settings, PublicUrl};
use crate::route::{self, Route};
use crate::store::Kind;
use crate::store::record::{RecordError, Records, Typed};

/// All that is known of managed connections.
#[derive(Default)]
pub struct Directory {
    held: Mutex<Held>,
    /// Whoever takes a change in reads it and notes it before the next one does, so that no older state comes last.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Held {
    organizations: HashMap<String, Organization>,
    /// By organisation and user.
    members: HashMap<String, BTreeMap<String, Membership>>,
    configurations: HashMap<String, Arc<Configuration>>,
    /// By configuration and user.
    assignments: HashMap<String, BTreeMap<String, Assignment>>,
    owned: HashMap<Owner, BTreeSet<String>>,
    assigned: HashMap<String, BTreeSet<String>>,
}

/// What routes are made with, besides records.
#[derive(Clone, Copy)]
pub struct Around<'a> {
    pub public_url: &'a PublicUrl,
    pub settings: &'a Settings,
}

/// The route of a configuration as it would be, without anybody who may use it: where it leads, and with what.
pub fn route_of(configuration: &Configuration, around: Around<'_>) -> Option<Route> {
    routes::route(configuration, None, &BTreeMap::new(), around)
}

/// Host of a URL in the form in which hosts are compared: lower case, IPv6 without brackets.
pub fn host(url: &Url) -> Option<String> {
    let host = url.host_str().filter(|host| !host.is_empty())?;
    Some(host.trim_start_matches('[').trim_end_matches(']').to_owned())
}

// === impl Around ===

impl<'a> Around<'a> {
    /// `None`: this configuration lets nobody add anything.
    pub fn of(config: &'a Config) -> Option<Self> {
        let settings = config.managed.as_ref()?;
        Some(Self { public_url: &config.server.public_url, settings })
    }
}

// === impl Directory ===

impl Directory {
    /// Reads everything anew.
    pub async fn read(&self, records: &Records) -> Result<(), RecordError> {
        let _turn = self.turn.lock().await;
        let mut held = Held::default();
        for organization in all(records).await? {
            held.put_organization(organization);
        }
        for membership in all(records).await? {
            held.put_membership(membership);
        }
        for configuration in all(records).await? {
            held.put_configuration(configuration);
        }
        for assignment in all(records).await? {
            held.put_assignment(assignment);
        }
        *self.held() = held;
        Ok(())
    }

    /// Reads one record again. Returns the configurations whose routes may be others now: none where it is as it was, as when
    /// the store tells this instance of what it has changed itself.
    pub async fn changed(
        &self,
        records: &Records,
        kind: Kind,
        key: &str,
    ) -> Result<Vec<String>, RecordError> {
        let _turn = self.turn.lock().await;
        match kind {
            Kind::Organization => {
                let found = value(records, key).await?;
                let mut held = self.held();
                if is_same(held.organizations.get(key), found.as_ref()) {
                    return Ok(Vec::new());
                }
                held.organizations.remove(key);
                found.into_iter().for_each(|organization| held.put_organization(organization));
                Ok(held.of(&Owner::Organization(key.to_owned())))
            }
            Kind::Membership => {
                let Some((organization, user)) = halves(key) else { return Ok(Vec::new()) };
                let found = value(records, key).await?;
                let mut held = self.held();
                let known = held.members.get(organization).and_then(|members| members.get(user));
                if is_same(known, found.as_ref()) {
                    return Ok(Vec::new());
                }
                held.remove_membership(organization, user);
                found.into_iter().for_each(|membership| held.put_membership(membership));
                Ok(held.of(&Owner::Organization(organization.to_owned())))
            }
            Kind::Configuration => {
                let found = value(records, key).await?;
                let mut held = self.held();
                if is_same(held.configurations.get(key).map(|known| &**known), found.as_ref()) {
                    return Ok(Vec::new());
                }
                held.remove_configuration(key);
                found.into_iter().for_each(|configuration| held.put_configuration(configuration));
                Ok(vec![key.to_owned()])
            }
            Kind::Assignment => {
                let Some((configuration, user)) = halves(key) else { return Ok(Vec::new()) };
                let found = value(records, key).await?;
                let mut held = self.held();
                let known = held.assignments.get(configuration).and_then(|assigned| assigned.get(user));
                if is_same(known, found.as_ref()) {
                    return Ok(Vec::new());
                }
                held.remove_assignment(configuration, user);
                found.into_iter().for_each(|assignment| held.put_assignment(assignment));
                Ok(vec![configuration.to_owned()])
            }
            _ => Ok(Vec::new()),
        }
    }

    /// The route of a configuration, where it has one: it is there, and enabled, and can be led to.
    pub fn route(&self, id: &str, around: Around<'_>) -> Option<Arc<Route>> {
        let held = self.held();
        let configuration = held.configurations.get(id).filter(|known| known.is_served())?;
        held.route(configuration, around).map(Arc::new)
    }

    /// All routes.
    pub fn routes(&self, around: Around<'_>) -> route::Managed {
        let held = self.held();
        let served = held.configurations.values().filter(|known| known.is_served());
        let routes = served.filter_map(|configuration| {
            Some((configuration.id.clone(), Arc::new(held.route(configuration, around)?)))
        });
        routes.collect()
    }

    /// One that is not deleted.
    pub fn organization(&self, id: &str) -> Option<Organization> {
        self.held().organizations.get(id).filter(|known| known.deleted_at.is_none()).cloned()
    }

    /// Those that a user is a member of, by id; `None`: all there are.
    pub fn organizations(&self, member: Option<&str>) -> Vec<Organization> {
        let held = self.held();
        let is_theirs = |organization: &&Organization| {
            let members = held.members.get(&organization.id);
            organization.deleted_at.is_none()
                && member.is_none_or(|user| members.is_some_and(|members| members.contains_key(user)))
        };
        let mut found: Vec<_> = held.organizations.values().filter(is_theirs).cloned().collect();
        found.sort_by(|one, other| one.id.cmp(&other.id));
        found
    }

    pub fn membership(&self, organization: &str, user: &str) -> Option<Membership> {
        let held = self.held();
        held.organizations.get(organization).filter(|known| known.deleted_at.is_none())?;
        held.members.get(organization)?.get(user).cloned()
    }

    /// By user.
    pub fn members(&self, organization: &str) -> Vec<Membership> {
        let held = self.held();
        held.members.get(organization).into_iter().flat_map(BTreeMap::values).cloned().collect()
    }

    /// One that is not deleted.
    pub fn configuration(&self, id: &str) -> Option<Arc<Configuration>> {
        self.held().configurations.get(id).filter(|known| !known.is_deleted()).cloned()
    }

    /// What belongs to somebody and is not deleted, by id.
    pub fn owned(&self, owner: &Owner) -> Vec<Arc<Configuration>> {
        let held = self.held();
        held.of(owner).iter().filter_map(|id| held.alive(id)).collect()
    }

    /// What a user may use or could, were it enabled, by id.
    pub fn assigned(&self, user: &str) -> Vec<(Arc<Configuration>, Assignment)> {
        let held = self.held();
        let ids = held.assigned.get(user).into_iter().flatten();
        let found = ids.filter_map(|id| {
            let configuration = held.alive(id)?;
            let assignment = held.people(&configuration).get(user).map(|assignment| (*assignment).clone())?;
            Some((configuration, assignment))
        });
        found.collect()
    }

    /// Who is assigned, by user.
    pub fn assignments(&self, configuration: &str) -> Vec<Assignment> {
        let held = self.held();
        held.assignments.get(configuration).into_iter().flat_map(BTreeMap::values).cloned().collect()
    }

    /// What somebody is assigned that belongs to an organisation.
    pub fn assigned_in(&self, organization: &str, user: &str) -> Vec<Assignment> {
        let held = self.held();
        let of = held.of(&Owner::Organization(organization.to_owned()));
        of.iter().filter_map(|id| held.assignments.get(id)?.get(user).cloned()).collect()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn all<T: Typed>(records: &Records) -> Result<Vec<T>, RecordError> {
    Ok(records.scan::<T>().await?.into_iter().map(|(_, found)| found.value).collect())
}

/// Whether a record says what is known already.
fn is_same<T: Typed>(known: Option<&T>, found: Option<&T>) -> bool {
    let written = |record: Option<&T>| serde_json::to_vec(&record).map(Zeroizing::new).ok();
    written(known).is_some_and(|known| written(found).is_some_and(|found| known == found))
}

async fn value<T: Typed>(records: &Records, key: &str) -> Result<Option<T>, RecordError> {
    Ok(records.readable::<T>(key).await?.map(|found| found.value))
}

// === impl Held ===

impl Held {
    /// Who may use a configuration: whoever it is assigned to, as long as they are a member of the organisation it belongs
    /// to; what belongs to a user is theirs alone.
    fn people(&self, configuration: &Configuration) -> BTreeMap<&str, &Assignment> {
        let assigned = self.assignments.get(&configuration.id).into_iter().flatten();
        let members = match &configuration.owner {
            Owner::User(_) => None,
            Owner::Organization(id) => {
                let is_there = self.organizations.get(id).is_some_and(|known| known.deleted_at.is_none());
                self.members.get(id).filter(|_| is_there)
            }
        };
        let may = |user: &String| match &configuration.owner {
            Owner::User(owner) => owner == user,
            Owner::Organization(_) => members.is_some_and(|members| members.contains_key(user)),
        };
        assigned.filter(|(user, _)| may(user)).map(|(user, assignment)| (user.as_str(), assignment)).collect()
    }

    fn route(&self, configuration: &Configuration, around: Around<'_>) -> Option<Route> {
        let organization = configuration.owner.organization().and_then(|id| self.organizations.get(id));
        routes::route(configuration, organization, &self.people(configuration), around)
    }

    fn of(&self, owner: &Owner) -> Vec<String> {
        self.owned.get(owner).into_iter().flatten().cloned().collect()
    }

    fn alive(&self, id: &str) -> Option<Arc<Configuration>> {
        self.configurations.get(id).filter(|known| !known.is_deleted()).cloned()
    }

    fn put_organization(&mut self, organization: Organization) {
        self.organizations.insert(organization.id.clone(), organization);
    }

    fn put_membership(&mut self, membership: Membership) {
        let members = self.members.entry(membership.organization.clone()).or_default();
        members.insert(membership.user.clone(), membership);
    }

    fn remove_membership(&mut self, organization: &str, user: &str) {
        if let Some(members) = self.members.get_mut(organization) {
            members.remove(user);
            if members.is_empty() {
                self.members.remove(organization);
            }
        }
    }

    fn put_configuration(&mut self, configuration: Configuration) {
        self.owned.entry(configuration.owner.clone()).or_default().insert(configuration.id.clone());
        self.configurations.insert(configuration.id.clone(), Arc::new(configuration));
    }

    fn remove_configuration(&mut self, id: &str) {
        let Some(configuration) = self.configurations.remove(id) else { return };
        if let Some(owned) = self.owned.get_mut(&configuration.owner) {
            owned.remove(id);
            if owned.is_empty() {
                self.owned.remove(&configuration.owner);
            }
        }
    }

    fn put_assignment(&mut self, assignment: Assignment) {
        self.assigned.entry(assignment.user.clone()).or_default().insert(assignment.configuration.clone());
        let assignments = self.assignments.entry(assignment.configuration.clone()).or_default();
        assignments.insert(assignment.user.clone(), assignment);
    }

    fn remove_assignment(&mut self, configuration: &str, user: &str) {
        if let Some(assigned) = self.assigned.get_mut(user) {
            assigned.remove(configuration);
            if assigned.is_empty() {
                self.assigned.remove(user);
            }
        }
        if let Some(assignments) = self.assignments.get_mut(configuration) {
            assignments.remove(user);
            if assignments.is_empty() {
                self.assignments.remove(configuration);
            }
        }
    }
}
