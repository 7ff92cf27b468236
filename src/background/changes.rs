//! What the store says has changed, one after the other, for whoever keeps copies.
use tokio::sync::broadcast::{Receiver, error::RecvError};

use crate::store::{Change, Store};

/// Nothing is missed from the moment it is made.
pub struct Changes(Receiver<Change>);

/// More had changed than is kept for those who are slow, and some of it is lost. What comes next is what changes from now on:
/// what is read after this is not out of date already.
#[derive(Debug, PartialEq, Eq)]
pub struct Behind;

impl Changes {
    pub fn of(store: &dyn Store) -> Self {
        Self(store.subscribe())
    }

    /// The same from now on, for somebody else.
    pub fn from_now_on(&self) -> Self {
        Self(self.0.resubscribe())
    }

    /// `None`: the store is no more.
    pub async fn next(&mut self) -> Option<Result<Change, Behind>> {
        match self.0.recv().await {
            Ok(change) => Some(Ok(change)),
            // What is still kept is the oldest of it. Going on there, one would be behind again with the next change.
            Err(RecvError::Lagged(_)) => {
                self.0 = self.0.resubscribe();
                Some(Err(Behind))
            }
            Err(RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::broadcast::Sender;

    use super::*;
    use crate::store::Kind;

    #[tokio::test]
    async fn who_was_behind_goes_on_with_what_changes_afterwards() {
        let change = |number: usize| Change::Of { kind: Kind::Connection, key: number.to_string() };
        let store = Sender::new(4);
        let mut changes = Changes(store.subscribe());
        (0..9).for_each(|number| assert!(store.send(change(number)).is_ok()));
        assert_eq!(changes.next().await, Some(Err(Behind)));
        // Reading everything takes its time, in which this comes.
        assert!(store.send(change(9)).is_ok());
        assert_eq!(
            changes.next().await,
            Some(Ok(change(9))),
            "neither behind again nor with what was read already"
        );
        drop(store);
        assert_eq!(changes.next().await, None);
    }
}
