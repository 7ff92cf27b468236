//! Exchanged tokens, shared by all instances: one is asked for where and when somebody needs it, by one caller in the whole
//! cluster, and everybody else uses what that brings.
//!
//! What is shown for such a token may be shown again, so this needs less than a refresh does: a record that one instance
//! writes first says that it is at work; with that record's time to live the claim ends by the store's clock, whatever has
//! become of its owner. An owner that comes too late writes over what a later one has, which costs one more request some
//! time and harms nobody. A token that is still good stays in the record while a newer one is asked for, and comes back
//! when there is none.
//!
//! Keys name the subject's connection or grant as well, so that nobody meets what was got before they signed in anew; they
//! begin with the user, so that signing out finds them all.
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Connector;
use super::exchange::{Failure, Wish};
use crate::store::record::{RecordError, Records, Typed};
use crate::store::{Kind, Put};
use crate::{failpoint, seal};

/// Longer than an owner takes: the eight seconds of a request, and its way to and from the store.
const LEASE: Duration = Duration::from_secs(12);
/// How long somebody waits for another instance.
const PATIENCE: Duration = Duration::from_secs(13);
/// How often a waiting instance looks: more and more seldom.
const POLL: Duration = Duration::from_millis(25);
const POLL_MAX: Duration = Duration::from_millis(250);
/// No new attempt so soon after one that came to nothing for no reason that lasts.
const BACKOFF: Duration = Duration::from_secs(2);
/// Nor so soon after a refusal: whoever loops does not get to the token endpoint.
const REFUSED: Duration = Duration::from_secs(30);
/// How long a token counts whose server does not say.
const UNSAID: Duration = Duration::from_secs(300);
/// So long before its end a token is not sent any more; less, where it lives for less than fifty seconds.
const MARGIN: Duration = Duration::from_secs(5);
/// An owner whose record was taken away meanwhile begins anew, so often.
const TRIES: usize = 2;

/// A token that was got.
#[derive(Clone, Serialize, Deserialize)]
pub struct Issued {
    /// Names it, and is not secret.
    pub id: Arc<str>,
    #[serde(serialize_with = "crate::store::record::expose")]
    pub token: SecretString,
    pub obtained_at: SystemTime,
    /// From here on it is not sent any more: a moment before its end.
    pub good_until: SystemTime,
}

/// The token that somebody has and does not want any more.
#[derive(Clone)]
pub struct Worn {
    pub id: Arc<str>,
    /// The upstream has turned it down. Otherwise it only comes to its end, and goes on serving until there is a newer one.
    pub refused: bool,
}

impl Issued {
    fn is(&self, worn: Option<&Worn>) -> bool {
        worn.is_some_and(|worn| worn.id == self.id)
    }
}

/// What came of asking for one.
#[derive(Clone)]
pub enum Exchanged {
    Token(Arc<Issued>),
    Failed(Failure),
}

/// A store record.
#[derive(Serialize, Deserialize)]
enum Standing {
    /// Somebody is asking. `before`: what there was.
    UnderWay {
        before: Option<Issued>,
    },
    Issued(Issued),
    /// `of`: names the subject's token that was shown; of another one nothing is known.
    Failed {
        failure: Failure,
        of: String,
    },
}

impl Typed for Standing {
    const KIND: Kind = Kind::Exchange;
}

/// The key of a token. `user`: whom it is about; empty: nobody. `facts`: everything that it depends on besides, in an order of
/// its own: whose connection or grant, where it is for, and what is asked for.
pub fn exchange_key(user: &str, facts: &[&str]) -> String {
    format!("{}{}", of_user(user), seal::digest(&facts.join("\0")))
}

fn of_user(user: &str) -> String {
    format!("{}/", seal::digest(user))
}

/// Ends what was exchanged for this user: whoever still has a grant gets another one.
pub async fn forget_exchanged(records: &Records, user: &str) -> Result<(), RecordError> {
    let prefix = of_user(user);
    for (key, _) in records.store().scan(Kind::Exchange).await? {
        if key.starts_with(&prefix) {
            records.remove::<Standing>(&key).await?;
        }
    }
    Ok(())
}

impl Connector {
    /// A token as wished, other than the worn one. Concurrent callers, at all instances, share one request.
    pub async fn exchanged(self: &Arc<Self>, key: &str, wish: &Wish, worn: Option<&Worn>) -> Exchanged {
        // A shared attempt may have begun before this token was refused; then there is one more.
        for _ in 0..2 {
            let attempt = || {
                let this = Arc::clone(self);
                let (key, wish, worn) = (key.to_owned(), wish.clone(), worn.cloned());
                async move { this.attempt_exchange(&key, &wish, worn.as_ref()).await }
            };
            match self.exchanging.join(key, &self.in_flight, attempt).await {
                Some(Exchanged::Token(token)) if token.is(worn) => {}
                Some(exchanged) => return exchanged,
                None => break,
            }
        }
        Exchanged::Failed(Failure::Later { retry_after: None })
    }

    async fn attempt_exchange(&self, key: &str, wish: &Wish, worn: Option<&Worn>) -> Exchanged {
        // Before anything is claimed: waiting in line must not use up the lease.
        let Some(_turn) = self.turn(wish.server()).await else {
            return self.failed_exchange("busy", Failure::Later { retry_after: None });
        };
        let (begun, mut poll, mut tries) = (Instant::now(), POLL, 0);
        while begun.elapsed() < PATIENCE {
            let (standing, version) = match self.records.get::<Standing>(key).await {
                Ok(Some(found)) => (Some(found.value), found.version),
                Ok(None) => (None, 0),
                // Sealed with a lost key: worth nothing to anybody.
                Err(RecordError::Unreadable) => match self.records.remove::<Standing>(key).await {
                    Ok(()) => continue,
                    Err(error) => return self.without_store_exchange(&error),
                },
                Err(error) => return self.without_store_exchange(&error),
            };
            let now = self.clock.now();
            let serves = |token: &Issued| !token.is(worn) && now < token.good_until;
            let before = match standing {
                Some(Standing::Issued(token) | Standing::UnderWay { before: Some(token) })
                    if serves(&token) =>
                {
                    return self.got("adopted", token);
                }
                Some(Standing::Failed { failure, of }) if of.is_empty() || of == wish.fingerprint() => {
                    return self.failed_exchange("remembered", failure);
                }
                Some(Standing::UnderWay { .. }) => {
                    tokio::time::sleep(poll).await;
                    poll = (2 * poll).min(POLL_MAX);
                    continue;
                }
                // What was refused does not come back.
                Some(Standing::Issued(token)) => {
                    Some(token).filter(|token| !worn.is_some_and(|worn| worn.refused && token.is(Some(worn))))
                }
                Some(Standing::Failed { .. }) | None => None,
            };
            let claim = Standing::UnderWay { before: before.clone() };
            match self.records.put(key, version, &claim, LEASE).await {
                Ok(Put::Stored) if tries < TRIES => tries += 1,
                Ok(Put::Stored) => break,
                Ok(Put::Conflict) => continue,
                Err(error) => return self.without_store_exchange(&error),
            }
            failpoint::reached("X1").await;
            if let Some(exchanged) = self.own_exchange(key, version + 1, wish, before).await {
                return exchanged;
            }
        }
        self.failed_exchange("waited", Failure::Later { retry_after: None })
    }

    /// What the owner of the record at this version does. `None`: it is somebody else's by now, or nobody's any more.
    async fn own_exchange(
        &self,
        key: &str,
        version: u64,
        wish: &Wish,
        before: Option<Issued>,
    ) -> Option<Exchanged> {
        let answer = self.exchange(wish, self.clock.now()).await;
        failpoint::reached("X2").await;
        let now = self.clock.now();
        let left = |token: &Issued| token.good_until.duration_since(now).unwrap_or_default();
        let (standing, ttl, exchanged) = match answer {
            Ok(given) => {
                let lifetime = given.expires_in.unwrap_or(UNSAID);
                let id = seal::name().ok()?.into();
                let good_for = lifetime - MARGIN.min(lifetime / 10);
                let (token, good_until) = (given.token, now + good_for);
                let token = Issued { id, token, obtained_at: now, good_until };
                (Standing::Issued(token.clone()), good_for, self.got("success", token))
            }
            Err(failure) => {
                let (word, quiet) = match &failure {
                    Failure::Later { retry_after } => {
                        ("transient", retry_after.unwrap_or_default().max(BACKOFF))
                    }
                    Failure::Subject { .. } => ("subject", REFUSED),
                    Failure::Interaction { .. } => ("interaction", REFUSED),
                    Failure::Refused => ("refused", REFUSED),
                };
                let failed = self.failed_exchange(word, failure.clone());
                match before.filter(|token| now < token.good_until) {
                    Some(token) => (Standing::Issued(token.clone()), left(&token), failed),
                    None => {
                        let of = match failure {
                            Failure::Later { .. } => String::new(),
                            _ => wish.fingerprint(),
                        };
                        (Standing::Failed { failure, of }, quiet, failed)
                    }
                }
            }
        };
        match self.records.put(key, version, &standing, ttl).await {
            Ok(Put::Stored) => Some(exchanged),
            Ok(Put::Conflict) => None,
            Err(error) => {
                // Good for those who wait for it; everybody else asks for one of their own.
                tracing::warn!(target: "postern::exchange", %error, "what was exchanged is not in the store");
                Some(exchanged)
            }
        }
    }

    fn without_store_exchange(&self, error: &RecordError) -> Exchanged {
        tracing::warn!(target: "postern::exchange", %error, "store unavailable, nothing is exchanged");
        self.failed_exchange("store", Failure::Later { retry_after: None })
    }

    fn got(&self, outcome: &'static str, token: Issued) -> Exchanged {
        self.metrics.exchanges.with_label_values(&[outcome]).inc();
        Exchanged::Token(Arc::new(token))
    }

    fn failed_exchange(&self, outcome: &'static str, failure: Failure) -> Exchanged {
        self.metrics.exchanges.with_label_values(&[outcome]).inc();
        Exchanged::Failed(failure)
    }
}
