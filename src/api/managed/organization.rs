//! Organisations and their members.
use super::event::Event;
use super::{Current, Desk, Refused, name};
use crate::managed::record::{Membership, ORGANIZATION, Organization, Owner, Role, pair};
use crate::seal;
use crate::store::FOREVER;

impl Desk<'_> {
    /// Those the actor may know of, by id.
    pub fn organizations(&self) -> Vec<Organization> {
        let member = (!self.actor.is_administrator).then_some(self.actor.name.as_str());
        self.authority.directory.organizations(member)
    }

    pub async fn organization(&self, id: &str) -> Result<Current<Organization>, Refused> {
        self.role(id)?;
        let found = self.read::<Organization>(id).await?;
        Ok(Current { value: found.value, version: found.version })
    }

    /// Makes one. Whoever makes it and is a user administers it.
    pub async fn create_organization(&self, written: &str) -> Result<Current<Organization>, Refused> {
        let made = self.made_organization(written).await;
        let event = Event::new("organization.create");
        let event = match &made {
            Ok(made) => event.of(&Owner::Organization(made.value.id.clone())),
            Err(_) => event,
        };
        self.noted(event, made).await
    }

    async fn made_organization(&self, written: &str) -> Result<Current<Organization>, Refused> {
        if !self.actor.is_administrator {
            return Err(Refused::Forbidden("an administrator of this gateway has to do this"));
        }
        let id = format!("{ORGANIZATION}{}", seal::name().map_err(|_| Refused::Unavailable)?);
        let organization = Organization {
            id: id.clone(),
            name: name(written)?,
            created_at: self.seconds(),
            deleted_at: None,
        };
        self.create(&id, &organization).await?;
        if self.snapshot.config.login.knows(&self.actor.name) {
            self.put_membership(&id, &self.actor.name, Role::Administrator).await?;
        }
        Ok(Current { value: organization, version: 1 })
    }

    pub async fn rename_organization(
        &self,
        id: &str,
        written: &str,
        expected: Option<u64>,
    ) -> Result<Current<Organization>, Refused> {
        let renamed = async {
            self.administered(id)?;
            let name = name(written)?;
            let rename = |organization: Organization| Ok(Organization { name: name.clone(), ..organization });
            self.change(id, expected, |_| FOREVER, rename).await
        };
        let event = Event::new("organization.rename").of(&Owner::Organization(id.to_owned()));
        self.noted(event, renamed.await).await
    }

    /// Takes it away with all that belongs to it. From the moment this is written nobody gets anywhere by it.
    pub async fn delete_organization(&self, id: &str, expected: Option<u64>) -> Result<(), Refused> {
        let deleted = async {
            if !self.actor.is_administrator {
                self.administered(id)?;
            } else {
                self.role(id)?;
            }
            let now = self.seconds();
            let delete =
                |organization: Organization| Ok(Organization { deleted_at: Some(now), ..organization });
            let retention = self.settings.event_retention;
            self.change(id, expected, |_| retention, delete).await?;
            for configuration in self.authority.directory.owned(&Owner::Organization(id.to_owned())) {
                self.wipe(&configuration, None).await?;
            }
            for membership in self.authority.directory.members(id) {
                self.remove::<Membership>(&pair(id, &membership.user)).await?;
            }
            Ok(())
        };
        let event = Event::new("organization.delete").of(&Owner::Organization(id.to_owned()));
        self.noted(event, deleted.await).await
    }

    /// By user; for members.
    pub fn members(&self, organization: &str) -> Result<Vec<Membership>, Refused> {
        self.role(organization)?;
        Ok(self.authority.directory.members(organization))
    }

    /// Makes somebody a member, or gives them another role.
    pub async fn put_member(
        &self,
        organization: &str,
        user: &str,
        role: Role,
    ) -> Result<Membership, Refused> {
        let put = async {
            self.administered(organization)?;
            self.require_user(user)?;
            if role == Role::Member {
                self.require_another_administrator(organization, user)?;
            }
            self.put_membership(organization, user, role).await
        };
        let event = Event::new("member.put").of(&Owner::Organization(organization.to_owned())).to(user);
        self.noted(event, put.await).await
    }

    /// Takes somebody out, with all that was assigned to them there. People may leave by themselves.
    pub async fn remove_member(&self, organization: &str, user: &str) -> Result<(), Refused> {
        let removed = async {
            let (_, role) = self.role(organization)?;
            if user != self.actor.name || role.is_none() {
                self.administered(organization)?;
            }
            let there = self.authority.directory.membership(organization, user);
            there.ok_or(Refused::NotFound)?;
            self.require_another_administrator(organization, user)?;
            self.remove::<Membership>(&pair(organization, user)).await?;
            for assignment in self.authority.directory.assigned_in(organization, user) {
                self.take_away(&assignment).await?;
            }
            Ok(())
        };
        let event = Event::new("member.remove").of(&Owner::Organization(organization.to_owned())).to(user);
        self.noted(event, removed.await).await
    }

    async fn put_membership(
        &self,
        organization: &str,
        user: &str,
        role: Role,
    ) -> Result<Membership, Refused> {
        let membership = Membership {
            organization: organization.to_owned(),
            user: user.to_owned(),
            role,
            created_at: self.seconds(),
        };
        let key = pair(organization, user);
        match self.create(&key, &membership).await {
            Err(Refused::Conflict(_)) => {
                let change = |there: Membership| Ok(Membership { role, ..there });
                Ok(self.change(&key, None, |_| FOREVER, change).await?.value)
            }
            created => created.map(|()| membership),
        }
    }

    /// An organisation is never left to nobody, but by who administers the gateway.
    fn require_another_administrator(&self, organization: &str, user: &str) -> Result<(), Refused> {
        let members = self.authority.directory.members(organization);
        let is_other = |member: &Membership| member.role == Role::Administrator && member.user != user;
        let was = |member: &Membership| member.role == Role::Administrator && member.user == user;
        if self.actor.is_administrator || !members.iter().any(was) || members.iter().any(is_other) {
            return Ok(());
        }
        Err(Refused::Conflict("the organisation needs another administrator first"))
    }
}
