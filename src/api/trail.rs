//! The way through the authorization servers of one or several routes, one after the other.
//!
//! It goes with the browser: each authorization under way carries what is left and what has come of the ones before, in its
//! own record with its own `state`, so that there is nothing beside it that could be lost, mixed up or used twice. What
//! fails is noted and the way goes on.
use std::collections::VecDeque;

use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::return_address::ReturnAddress;
use crate::oauth::client::connect::ConnectError;
use crate::oauth::client::prospect::Prospect;
use crate::oauth::client::register::RegisterError;
use crate::oauth::server::authorize::Browser;
use crate::oauth::server::{Authority, Snapshot};

/// So many upstreams are asked at a time for one user.
const AT_ONCE: usize = 8;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trail {
    /// The page of ours that it ends on.
    pub home: String,
    /// Where the user wants to go from there; checked, and to be checked again.
    return_to: Option<String>,
    /// Whether what is connected is connected anew.
    anew: bool,
    /// The route whose authorization server the user is at.
    at: Option<String>,
    left: VecDeque<String>,
    /// Routes that are connected now, or need nothing.
    pub done: Vec<String>,
    pub failed: Vec<Failed>,
    /// Where to sign in at last, one after the other: each provider, and a route that wants its tokens.
    #[serde(default)]
    pub sign_ins: Vec<(String, String)>,
    /// Routes that the user has to hand over a secret for, each on a page of its own.
    #[serde(default)]
    pub keys: Vec<String>,
}

/// A route that is not connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    pub route: String,
    pub why: Why,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Somebody there said no.
    Denied,
    TooOften,
    Unavailable,
    /// The route is not there any more.
    Gone,
    /// It does what it must not.
    Broken,
}

/// Where the browser goes.
pub enum Onward {
    /// To an authorization server.
    Away(String),
    /// There is nothing left.
    End(Box<Trail>),
}

impl Trail {
    /// Nobody goes to one place twice.
    pub fn new(
        routes: impl IntoIterator<Item = String>,
        anew: bool,
        home: String,
        return_to: Option<ReturnAddress>,
    ) -> Self {
        let mut left = VecDeque::new();
        for route in routes {
            if !left.contains(&route) {
                left.push_back(route);
            }
        }
        let return_to = return_to.map(|address| address.as_str().to_owned());
        let (done, failed, sign_ins, keys) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { home, return_to, anew, at: None, left, done, failed, sign_ins, keys }
    }

    /// The trail that an authorization was begun for, if it was.
    pub fn of(resume: &Value) -> Option<Self> {
        serde_json::from_value(resume.get("trail")?.clone()).ok()
    }

    /// Where the user wants to go, if that is still allowed.
    pub fn return_to(&self, snapshot: &Snapshot) -> Option<ReturnAddress> {
        ReturnAddress::check(snapshot, self.return_to.as_deref()?).ok()
    }

    /// The user is back from where they were sent.
    pub async fn back<T>(
        mut self,
        authority: &Authority,
        snapshot: &Snapshot,
        browser: &Browser,
        outcome: Result<T, ConnectError>,
    ) -> Onward {
        if let Some(route) = self.at.take() {
            match outcome {
                Ok(_) => self.done.push(route),
                Err(error) => self.fails_with(route, &error),
            }
        }
        self.on(authority, snapshot, browser).await
    }

    /// To the first authorization server that wants the user. All upstreams are asked beforehand and at once, so that
    /// those that do not answer are waited for together.
    pub async fn set_out(mut self, authority: &Authority, snapshot: &Snapshot, browser: &Browser) -> Onward {
        if self.left.len() > 1 {
            let anew = self.anew;
            let names = std::mem::take(&mut self.left);
            let asked = names.into_iter().map(async |name| {
                let found = look(authority, snapshot, browser, &name, anew).await;
                (name, found)
            });
            let asked: Vec<_> = stream::iter(asked).buffered(AT_ONCE).collect().await;
            for (name, found) in asked {
                self.settle(name, found);
            }
        }
        self.on(authority, snapshot, browser).await
    }

    /// To the next one.
    async fn on(mut self, authority: &Authority, snapshot: &Snapshot, browser: &Browser) -> Onward {
        while let Some(name) = self.left.pop_front() {
            let plan = match look(authority, snapshot, browser, &name, self.anew).await {
                Ok(Prospect::Needed(plan)) => plan,
                found => {
                    self.settle(name, found);
                    continue;
                }
            };
            let Some(route) = snapshot.routes.of_user(&name, &browser.user) else { continue };
            self.at = Some(name.clone());
            let resume = json!({"trail": self});
            let begun = authority.connector.begin(route, *plan, &browser.user, &browser.session, resume);
            match begun.await {
                Ok(url) => return Onward::Away(url),
                Err(error) => {
                    self.at = None;
                    self.fails_with(name, &error);
                }
            }
        }
        Onward::End(Box::new(self))
    }

    /// Where the user is still to go stays; the rest is done, or failed.
    fn settle(&mut self, name: String, found: Result<Prospect, Why>) {
        match found {
            Ok(Prospect::Needed(_)) => self.left.push_back(name),
            Ok(Prospect::NotNeeded | Prospect::Connected { .. }) => self.done.push(name),
            Ok(Prospect::SignIn(provider)) => {
                if !self.sign_ins.iter().any(|(known, _)| *known == provider) {
                    self.sign_ins.push((provider, name));
                }
            }
            Ok(Prospect::Key) => self.keys.push(name),
            Ok(Prospect::Unexplained) => self.fails(name, Why::Broken),
            Ok(Prospect::Unknown) => self.fails(name, Why::Unavailable),
            Err(why) => self.fails(name, why),
        }
    }

    fn fails_with(&mut self, route: String, error: &ConnectError) {
        tracing::info!(target: "postern::oauth", %route, %error, "not connected");
        self.fails(route, Why::of(error));
    }

    fn fails(&mut self, route: String, why: Why) {
        self.failed.push(Failed { route, why });
    }

    /// What failed, in words, on one line.
    pub fn failures(&self) -> String {
        let failures = self.failed.iter().map(|failed| format!("{}: {}", failed.route, failed.why.words()));
        failures.collect::<Vec<_>>().join(" ")
    }
}

async fn look(
    authority: &Authority,
    snapshot: &Snapshot,
    browser: &Browser,
    name: &str,
    anew: bool,
) -> Result<Prospect, Why> {
    let route = snapshot.routes.of_user(name, &browser.user).ok_or(Why::Gone)?;
    let found = match anew {
        true => authority.connector.prospect_anew(route, &browser.user).await,
        false => authority.connector.prospect(route, &browser.user).await,
    };
    found.map_err(|error| {
        tracing::warn!(target: "postern::oauth", route = %name, %error, "upstream authorization cannot be prepared");
        if error.is_transient() { Why::Unavailable } else { Why::Broken }
    })
}

impl Why {
    fn of(error: &ConnectError) -> Self {
        match error {
            ConnectError::Denied => Self::Denied,
            ConnectError::TooOften => Self::TooOften,
            ConnectError::Unavailable | ConnectError::Register(RegisterError::Unavailable) => {
                Self::Unavailable
            }
            ConnectError::Issuer
            | ConnectError::Register(_)
            | ConnectError::Token(_)
            | ConnectError::Unexplained => Self::Broken,
        }
    }

    /// For the user, in sentences.
    pub fn words(self) -> &'static str {
        match self {
            Self::Denied => "Its authorization server did not allow it. You can try again any time.",
            Self::TooOften => {
                "You were there three times in a few minutes, for the same. Please wait ten minutes, or disconnect first."
            }
            Self::Unavailable => "The server cannot be reached just now. Please try again in a moment.",
            Self::Gone => "There is no such server. It may have been taken away meanwhile.",
            Self::Broken => {
                "The server's authorization server cannot be used. Please tell whoever runs this gateway."
            }
        }
    }

    /// For programs.
    pub fn code(self) -> &'static str {
        match self {
            Self::Denied => "access_denied",
            Self::TooOften => "too_many_requests",
            Self::Unavailable => "temporarily_unavailable",
            Self::Gone => "not_found",
            Self::Broken => "server_error",
        }
    }
}
