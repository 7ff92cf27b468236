//! A user's connections, one per route, and what their states are called in front of people.
use std::time::SystemTime;

use crate::oauth::client::standing::{Outage, Standing, State, Wanted};
use crate::oauth::client::user_key::header_of;
use crate::oauth::server::{Authority, Snapshot};
use crate::route::Route;
use crate::store::record::RecordError;

/// A route, and how a user's connection there stands.
pub struct Listed<'a> {
    pub route: &'a Route,
    pub standing: Standing,
}

/// Every route that the user may use, by name.
pub async fn list<'a>(
    authority: &Authority,
    snapshot: &'a Snapshot,
    user: &str,
) -> Result<Vec<Listed<'a>>, RecordError> {
    let mut listed = Vec::new();
    for route in snapshot.routes.iter().filter(|route| !route.kind.is_public() && route.admits(user)) {
        listed.push(Listed { route, standing: authority.connector.standing(route, user).await? });
    }
    listed.sort_by(|one, other| one.route.name.cmp(&other.route.name));
    Ok(listed)
}

impl Listed<'_> {
    /// The state in a sentence or two for its user.
    pub fn words(&self) -> String {
        match header_of(self.route) {
            Some(_) => words_of_key(self.standing.state),
            None => words(self.standing.state),
        }
    }
}

fn words(state: State) -> String {
    let words = match state {
        State::NotNeeded => "Needs no connection of your own.",
        State::NotConnected => "Not connected. Connect now, or when an application needs it.",
        State::Connected => "Connected with your account there.",
        State::Expires(end) => {
            return format!(
                "Connected with your account there. That ends at {}: connect again then, or now.",
                minute(end)
            );
        }
        State::NeedsSignIn(Wanted::Ended) => "The connection is over: connect again.",
        State::NeedsSignIn(Wanted::Asked) => {
            "The server asks for you, or for more than you have allowed: connect again."
        }
        State::Unavailable(Outage::Renewal) => {
            "Connected, but not usable just now: its authorization server does not renew the access. Postern tries again by itself."
        }
        State::Unavailable(Outage::Silence) => {
            "It did not answer when it was asked a moment ago. Please try again in a minute."
        }
    };
    words.to_owned()
}

/// The same where the user hands over a secret.
fn words_of_key(state: State) -> String {
    let words = match state {
        State::Connected | State::Expires(_) => "Your key is kept here.",
        State::NeedsSignIn(_) => {
            "The server does not take the key that you have entered here. Enter another one."
        }
        State::NotConnected | State::Unavailable(_) => "Needs a key of yours.",
        State::NotNeeded => return words(state),
    };
    words.to_owned()
}

/// `2026-01-31 12:34 UTC`
fn minute(time: SystemTime) -> String {
    let text = humantime::format_rfc3339_seconds(time).to_string();
    let minute: String = text.chars().take("2026-01-31T12:34".len()).collect();
    format!("{} UTC", minute.replace('T', " "))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn the_end_of_a_connection_is_said_to_the_minute() {
        let said = words(State::Expires(UNIX_EPOCH + Duration::from_secs(1_700_000_000)));
        assert!(said.contains("ends at 2023-11-14 22:13 UTC:"), "{said}");
    }
}
