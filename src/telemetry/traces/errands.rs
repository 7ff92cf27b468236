//! What was asked of others for the sake of one recorded request, discovery above all: requests of Postern's own, and what was
//! made of their answers. Of an address only the host: paths may be secrets.
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::Method;
use url::Url;

use crate::outbound::{Error, Sight, Watch};
use crate::seal;

/// More of one request is not noted.
const MOST: usize = 64;

/// Of a request that goes on.
#[derive(Debug)]
pub struct Errands {
    started: Instant,
    noted: Mutex<Vec<Errand>>,
}

/// A moment is counted from the request's arrival.
#[derive(Debug)]
pub enum Errand {
    Exchange {
        id: [u8; 8],
        method: Method,
        host: String,
        port: u16,
        times: (Duration, Duration),
        /// The status, or a word for what went wrong.
        outcome: Result<u16, &'static str>,
    },
    Decision {
        at: Duration,
        step: &'static str,
        decision: &'static str,
    },
}

// === impl Errands ===

impl Errands {
    pub fn new(started: Instant) -> Arc<Self> {
        Arc::new(Self { started, noted: Mutex::default() })
    }

    /// Who notes them.
    pub fn watch(self: &Arc<Self>) -> Watch {
        let this = Arc::clone(self);
        Arc::new(move |sight| this.note(sight))
    }

    /// What there was.
    pub fn take(&self) -> Vec<Errand> {
        std::mem::take(&mut *self.noted.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note(&self, sight: Sight) {
        let now = self.started.elapsed();
        let errand = match sight {
            Sight::Remark(remark) => {
                Errand::Decision { at: now, step: remark.step, decision: remark.decision }
            }
            Sight::Exchange(exchange) => {
                let (Ok(url), Ok(id)) = (Url::parse(&exchange.url), seal::random()) else { return };
                Errand::Exchange {
                    id,
                    method: exchange.method,
                    host: url.host_str().unwrap_or_default().to_owned(),
                    port: url.port_or_known_default().unwrap_or_default(),
                    times: (now.saturating_sub(exchange.took), now),
                    outcome: exchange
                        .outcome
                        .map(|answer| answer.status.as_u16())
                        .map_err(|error| word(&error)),
                }
            }
        };
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.len() < MOST {
            noted.push(errand);
        }
    }
}

fn word(error: &Error) -> &'static str {
    match error {
        Error::Refused { .. } => "refused",
        Error::NotSent { .. } => "not_sent",
        Error::Unknown { .. } => "no_answer",
        Error::TooLarge { .. } => "too_large",
        Error::Invalid { .. } => "invalid",
    }
}
