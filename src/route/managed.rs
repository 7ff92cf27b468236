//! Routes that were made at run time, by name: any number of them, each of which comes and goes on its own while others are
//! looked up.
use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::Route;
use crate::map::Map;

/// So many that one of them is small where there are tens of thousands of routes, and that all together are cheap to share.
const PARTS: usize = 256;

/// Cheap to clone, and what is changed in a clone costs a part of the whole.
#[derive(Clone)]
pub struct Managed {
    parts: Vec<Arc<Map<String, Arc<Route>>>>,
}

impl Default for Managed {
    fn default() -> Self {
        Self { parts: vec![Arc::default(); PARTS] }
    }
}

impl Managed {
    pub fn get(&self, name: &str) -> Option<&Arc<Route>> {
        self.parts.get(place(name))?.get(name)
    }

    /// `None`: there is none of this name any more.
    pub fn set(&mut self, name: String, route: Option<Arc<Route>>) {
        let Some(part) = self.parts.get_mut(place(&name)).map(Arc::make_mut) else { return };
        match route {
            Some(route) => part.insert(name, route),
            None => part.remove(&name),
        };
    }

    /// In no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.parts.iter().flat_map(|part| part.values())
    }
}

impl FromIterator<(String, Arc<Route>)> for Managed {
    fn from_iter<I: IntoIterator<Item = (String, Arc<Route>)>>(routes: I) -> Self {
        let mut managed = Self::default();
        routes.into_iter().for_each(|(name, route)| managed.set(name, Some(route)));
        managed
    }
}

/// Which part a name belongs to.
fn place(name: &str) -> usize {
    FixedState::default().hash_one(name) as usize % PARTS
}
