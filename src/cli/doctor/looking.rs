//! Looks on while the gateway's own code asks, and makes steps of what it saw.
use std::sync::{Arc, Mutex, PoisonError};

use http::HeaderValue;
use serde_json::Value;

use super::report::{Answered, Asked, Challenged, Step, line};
use crate::challenge;
use crate::outbound::{Answer, Exchange, Outbound, Remark, Sight};

/// Members of a metadata document that are worth showing.
const MEMBERS: [&str; 13] = [
    "resource",
    "authorization_servers",
    "issuer",
    "authorization_endpoint",
    "token_endpoint",
    "registration_endpoint",
    "revocation_endpoint",
    "scopes_supported",
    "code_challenge_methods_supported",
    "grant_types_supported",
    "token_endpoint_auth_methods_supported",
    "client_id_metadata_document_supported",
    "authorization_response_iss_parameter_supported",
];

/// What was seen since somebody took it last.
#[derive(Clone, Default)]
pub struct Eyes(Arc<Mutex<Vec<Sight>>>);

/// What was seen, in order.
#[derive(Default)]
pub struct Seen {
    pub steps: Vec<Step>,
    /// Documents that could be read, with where they lie.
    pub documents: Vec<(String, Value)>,
}

impl Eyes {
    /// The same client, on which these eyes are.
    pub fn on(&self, outbound: &Outbound) -> Outbound {
        let seen = Arc::clone(&self.0);
        outbound.watched(Arc::new(move |sight| {
            seen.lock().unwrap_or_else(PoisonError::into_inner).push(sight);
        }))
    }

    pub fn take(&self) -> Seen {
        let sights = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mut seen = Seen::default();
        for sight in sights {
            match sight {
                Sight::Exchange(exchange) => seen.exchange(exchange),
                Sight::Remark(remark) => seen.remark(&remark),
            }
        }
        seen
    }
}

impl Seen {
    fn exchange(&mut self, exchange: Exchange) {
        let Exchange { method, url, took, outcome } = exchange;
        let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let mut facts = Value::Null;
        let answered = match outcome {
            Ok(answer) => {
                facts = answer.document.as_deref().map_or(Value::Null, parsed);
                answered(&answer, milliseconds)
            }
            Err(error) => Answered {
                status: None,
                error: Some(line(&error.to_string())),
                content_type: None,
                length: None,
                milliseconds,
                www_authenticate: None,
            },
        };
        let asked = Asked { method: method.to_string(), url: line(&url) };
        let mut step = Step::open("request", asked, answered);
        for name in MEMBERS {
            step = step.fact(name, facts.get(name).cloned().unwrap_or_default());
        }
        self.steps.push(step);
        if facts.is_object() {
            self.documents.push((url, facts));
        }
    }

    /// A remark belongs to the request before it, if that is what it is about.
    fn remark(&mut self, remark: &Remark) {
        let Remark { step, about, decision, why } = remark;
        let is_of = |last: &mut Step| last.url() == Some(line(about).as_str()) && !last.is_decided();
        match self.steps.pop_if(is_of) {
            Some(last) => self.steps.push(last.about(step).decided(decision, why)),
            None => self.steps.push(Step::new(step, decision, why).fact("about", about.as_str())),
        }
    }
}

fn parsed(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_default()
}

fn answered(answer: &Answer, milliseconds: u64) -> Answered {
    let text = |value: &HeaderValue| line(&String::from_utf8_lossy(value.as_bytes()));
    let schemes: Vec<String> =
        challenge::schemes(answer.challenges.iter()).iter().map(|scheme| line(scheme)).collect();
    let bearer = challenge::bearer(answer.challenges.iter()).unwrap_or_default();
    let challenged = Challenged {
        schemes,
        scope: bearer.scope.as_deref().map(line),
        resource_metadata: bearer.resource_metadata.as_deref().map(line),
        error: bearer.error.as_deref().map(line),
    };
    Answered {
        status: Some(answer.status.as_u16()),
        error: None,
        content_type: answer.content_type.as_ref().map(text),
        length: answer.length,
        milliseconds,
        www_authenticate: (!answer.challenges.is_empty()).then_some(challenged),
    }
}
