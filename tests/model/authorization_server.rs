//! The other side: an authorization server in five versions, all of which exist.
//!
//! Each authorization by the user begins a family of refresh tokens; a redemption makes one the successor of another.

use super::world::{Mask, Tick};

/// What becomes of a refresh token that has been redeemed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// B1: it goes on being the refresh token.
    Keeps,
    /// B2: it is dead, its successor counts.
    Rotates,
    /// B3: as before, and whoever shows it again ends the whole family.
    Revokes,
    /// B4: shown again within [`GRACE`] and before its successor was used, it gets the same successor; later it ends
    /// the family.
    Repeats,
    /// B5: shown again within [`GRACE`] and before its successor was used, it gets another successor, and the one
    /// before dies.
    Replaces,
}

/// How long a redeemed token may be shown again: half a minute.
pub const GRACE: Tick = 5;

/// A refresh token, by the order in which its family got it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Refresh {
    /// Which authorization by the user it belongs to.
    pub family: u8,
    /// 0 for the first.
    pub serial: u8,
}

/// All it knows of one user.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AuthorizationServer {
    families: Vec<Vec<Issued>>,
    /// Families that have ended.
    ended: Mask,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Issued {
    standing: Standing,
    parent: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Standing {
    Live,
    Spent { at: Tick },
    Displaced,
}

/// What became of a refresh token that was presented.
pub struct Redeemed {
    /// The refresh token that comes with the new access token; without, `invalid_grant`.
    pub successor: Option<Refresh>,
    /// Whether the presented one had been redeemed before.
    pub again: bool,
    /// Whether that ended the family.
    pub ends_family: bool,
    /// Whether an earlier successor died of it.
    pub displaces: bool,
}

impl AuthorizationServer {
    /// One user, authorized once.
    pub fn new() -> Self {
        let mut server = Self { families: Vec::new(), ended: Mask::default() };
        server.authorize();
        server
    }

    /// The user authorizes anew.
    pub fn authorize(&mut self) -> Refresh {
        self.families.push(vec![Issued { standing: Standing::Live, parent: None }]);
        Refresh { family: (self.families.len() - 1) as u8, serial: 0 }
    }

    /// RFC 7009, or an administrator.
    pub fn end(&mut self, family: u8) {
        self.ended.insert(family);
    }

    /// Whether nothing of the family is accepted any more.
    pub fn has_ended(&self, family: u8) -> bool {
        self.ended.contains(family)
    }

    /// Whether the token would be accepted now.
    pub fn accepts(&self, behaviour: Behaviour, refresh: Refresh, now: Tick) -> bool {
        self.clone().redeem(behaviour, refresh, now).successor.is_some()
    }

    /// Whether another one died of it.
    pub fn displaced_another(&self, refresh: Refresh) -> bool {
        let parent = self.issued(refresh).parent;
        self.families[usize::from(refresh.family)]
            .iter()
            .any(|issued| issued.parent == parent && issued.standing == Standing::Displaced)
    }

    /// Whether nothing but the grace being over keeps the token from being accepted.
    pub fn is_only_too_late(&self, behaviour: Behaviour, refresh: Refresh, now: Tick) -> bool {
        match self.issued(refresh).standing {
            Standing::Spent { at } => {
                !self.accepts(behaviour, refresh, now) && self.accepts(behaviour, refresh, at)
            }
            _ => false,
        }
    }

    /// Whose successor it is.
    pub fn parent(&self, refresh: Refresh) -> Option<Refresh> {
        self.issued(refresh).parent.map(|serial| Refresh { serial, ..refresh })
    }

    /// A token request with this refresh token.
    pub fn redeem(&mut self, behaviour: Behaviour, refresh: Refresh, now: Tick) -> Redeemed {
        let mut redeemed = Redeemed { successor: None, again: false, ends_family: false, displaces: false };
        if self.has_ended(refresh.family) {
            return redeemed;
        }
        match self.issued(refresh).standing {
            Standing::Displaced => {}
            Standing::Live if behaviour == Behaviour::Keeps => redeemed.successor = Some(refresh),
            Standing::Live => {
                self.issued_mut(refresh).standing = Standing::Spent { at: now };
                redeemed.successor = Some(self.issue(refresh));
            }
            Standing::Spent { at } => {
                redeemed.again = true;
                let unused = self.unused_successor(refresh).filter(|_| now <= at + GRACE);
                match (behaviour, unused) {
                    (Behaviour::Repeats, Some(successor)) => redeemed.successor = Some(successor),
                    (Behaviour::Replaces, Some(successor)) => {
                        self.issued_mut(successor).standing = Standing::Displaced;
                        redeemed.displaces = true;
                        redeemed.successor = Some(self.issue(refresh));
                    }
                    (Behaviour::Revokes | Behaviour::Repeats, _) => {
                        self.end(refresh.family);
                        redeemed.ends_family = true;
                    }
                    _ => {}
                }
            }
        }
        redeemed
    }

    fn issue(&mut self, parent: Refresh) -> Refresh {
        let family = &mut self.families[usize::from(parent.family)];
        family.push(Issued { standing: Standing::Live, parent: Some(parent.serial) });
        Refresh { family: parent.family, serial: (family.len() - 1) as u8 }
    }

    fn unused_successor(&self, parent: Refresh) -> Option<Refresh> {
        let family = &self.families[usize::from(parent.family)];
        let successor = family
            .iter()
            .position(|issued| issued.parent == Some(parent.serial) && issued.standing == Standing::Live)?;
        Some(Refresh { family: parent.family, serial: successor as u8 })
    }

    fn issued(&self, refresh: Refresh) -> &Issued {
        &self.families[usize::from(refresh.family)][usize::from(refresh.serial)]
    }

    fn issued_mut(&mut self, refresh: Refresh) -> &mut Issued {
        &mut self.families[usize::from(refresh.family)][usize::from(refresh.serial)]
    }
}
