//! Which parts of a document expressions look at, so that no more of it is read.
use std::collections::BTreeMap;

/// What is looked at below one value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// All of it, or what cannot be told beforehand.
    All,
    /// These members, if it is an object. None: nothing.
    Members(BTreeMap<Box<str>, Wanted>),
}

impl Default for Wanted {
    fn default() -> Self {
        Self::Members(BTreeMap::new())
    }
}

impl Wanted {
    pub fn is_nothing(&self) -> bool {
        matches!(self, Self::Members(members) if members.is_empty())
    }

    /// All that lies at `path` as well.
    pub(super) fn add(&mut self, path: &[&str]) {
        match (self, path) {
            (Self::All, _) => {}
            (Self::Members(members), [first, rest @ ..]) => {
                members.entry((*first).into()).or_default().add(rest);
            }
            (here @ Self::Members(_), []) => *here = Self::All,
        }
    }

    /// What either wants.
    pub fn merge(&mut self, other: &Self) {
        match (&mut *self, other) {
            (Self::All, _) => {}
            (_, Self::All) => *self = Self::All,
            (Self::Members(members), Self::Members(others)) => {
                for (name, other) in others {
                    members.entry(name.clone()).or_default().merge(other);
                }
            }
        }
    }
}
