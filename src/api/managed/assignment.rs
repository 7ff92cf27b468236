//! Who may use what.
use super::event::Event;
use super::{Desk, Refused};
use crate::managed::record::{Assignment, Configuration, Owner, Sharing, pair};
use crate::seal;
use crate::store::FOREVER;

impl Desk<'_> {
    /// By user; for who may change the configuration.
    pub async fn assignments(&self, configuration: &str) -> Result<Vec<Assignment>, Refused> {
        self.configuration_to_change(configuration).await?;
        Ok(self.authority.directory.assignments(configuration))
    }

    /// Lets a member use a configuration; who may already, may.
    pub async fn assign(&self, configuration: &str, user: &str) -> Result<Assignment, Refused> {
        let (found, event) = self.begun("assignment.add", configuration, user).await?;
        let assigned = async {
            self.require_user(user)?;
            let organization = match &found.owner {
                Owner::User(_) => {
                    return Err(Refused::Conflict("a personal configuration is its owner's alone"));
                }
                Owner::Organization(organization) => organization,
            };
            let member = self.authority.directory.membership(organization, user);
            member.ok_or(Refused::Conflict("they have to be a member of the organisation first"))?;
            let assignments = self.authority.directory.assignments(configuration);
            if let Some(there) = assignments.iter().find(|assignment| assignment.user == user) {
                return Ok(there.clone());
            }
            if found.sharing == Sharing::SingleUser {
                // Of two who are assigned at a time, at two instances, one gets it.
                let take = |configuration: Configuration| match &configuration.slot {
                    Some(other) if other != user => {
                        Err(Refused::Conflict("it is for one user, and assigned to another one"))
                    }
                    _ => Ok(Configuration { slot: Some(user.to_owned()), ..configuration }),
                };
                self.change(configuration, None, |_| FOREVER, take).await?;
            }
            self.put_assignment(&found, user).await
        };
        self.noted(event, assigned.await).await
    }

    /// Takes it from them, with their connection there.
    pub async fn unassign(&self, configuration: &str, user: &str) -> Result<(), Refused> {
        let (found, event) = self.begun("assignment.remove", configuration, user).await?;
        let removed = async {
            if matches!(found.owner, Owner::User(_)) {
                return Err(Refused::Conflict("a personal configuration is its owner's: delete it"));
            }
            let assignments = self.authority.directory.assignments(configuration);
            let there = assignments.iter().find(|assignment| assignment.user == user);
            self.take_away(there.ok_or(Refused::NotFound)?).await
        };
        self.noted(event, removed.await).await
    }

    async fn begun(
        &self,
        action: &str,
        configuration: &str,
        user: &str,
    ) -> Result<(Configuration, Event), Refused> {
        let event = Event::new(action).about(configuration).to(user);
        match self.configuration_to_change(configuration).await {
            Ok(found) => {
                let event = event.of(&found.value.owner);
                Ok((found.value, event))
            }
            Err(refused) => self.noted(event, Err(refused)).await,
        }
    }

    pub(super) async fn put_assignment(
        &self,
        configuration: &Configuration,
        user: &str,
    ) -> Result<Assignment, Refused> {
        let assignment = Assignment {
            configuration: configuration.id.clone(),
            user: user.to_owned(),
            instance: seal::name().map_err(|_| Refused::Unavailable)?,
            created_at: self.seconds(),
        };
        self.create(&pair(&configuration.id, user), &assignment).await?;
        Ok(assignment)
    }

    /// Ends somebody's use of a configuration: first the right to it, then what they were connected with.
    pub(super) async fn take_away(&self, assignment: &Assignment) -> Result<(), Refused> {
        let (configuration, user) = (&assignment.configuration, &assignment.user);
        self.remove::<Assignment>(&pair(configuration, user)).await?;
        if let Some(configuration) = self.authority.directory.configuration(configuration) {
            self.disconnect(&configuration, vec![user.clone()]).await?;
        }
        let free = |configuration: Configuration| match &configuration.slot {
            Some(own) if own == user => Ok(Configuration { slot: None, ..configuration }),
            _ => Ok(configuration),
        };
        match self.change(configuration, None, |_| FOREVER, free).await {
            // It is deleted, or its organisation is.
            Err(Refused::NotFound) => Ok(()),
            freed => freed.map(|_| ()),
        }
    }
}
