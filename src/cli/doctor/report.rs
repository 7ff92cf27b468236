//! What the doctor has to say, for people and as JSON. Whatever is put in, one line of visible ASCII comes out: most of it
//! are strangers' words.
use std::fmt;

use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::outbound::printable;

/// The longest text of one field.
const TEXT_LIMIT: usize = 700;
/// The longest value of a fact, and the most elements of a list.
const FACT_LIMIT: usize = 300;
const LIST_LIMIT: usize = 20;

#[derive(Serialize)]
pub struct Report {
    pub route: String,
    pub steps: Vec<Step>,
    pub verdict: Verdict,
}

#[derive(Serialize)]
pub struct Verdict {
    /// Whether an authorization could begin, or none is needed.
    pub ok: bool,
    pub summary: String,
    pub fixes: Vec<String>,
}

/// One thing that was looked at.
#[derive(Serialize, Default)]
pub struct Step {
    step: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<Asked>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<Answered>,
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "as_map")]
    facts: Vec<(&'static str, Value)>,
    decision: String,
    why: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
    /// It ends the way to an authorization.
    #[serde(skip)]
    failed: bool,
}

#[derive(Serialize)]
pub struct Asked {
    pub method: String,
    pub url: String,
}

#[derive(Serialize)]
pub struct Answered {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Why there is no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// In bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    pub milliseconds: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub www_authenticate: Option<Challenged>,
}

/// Of `WWW-Authenticate`, what counts.
#[derive(Serialize)]
pub struct Challenged {
    pub schemes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_metadata: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

// === impl Step ===

impl Step {
    pub fn new(step: &'static str, decision: &str, why: &str) -> Self {
        Self { step, ..Self::default() }.decided(decision, why)
    }

    /// One about which nothing is decided yet.
    pub fn open(step: &'static str, request: Asked, response: Answered) -> Self {
        Self { step, request: Some(request), response: Some(response), ..Self::default() }
    }

    pub fn decided(mut self, decision: &str, why: &str) -> Self {
        (self.decision, self.why) = (line(decision), line(why));
        self
    }

    /// To which step a request belongs is known afterwards.
    pub fn about(self, step: &'static str) -> Self {
        Self { step, ..self }
    }

    /// Adds a fact, unless it is nothing.
    pub fn fact(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        let value = plain(value.into());
        if !matches!(&value, Value::Null) {
            self.facts.push((name, value));
        }
        self
    }

    /// What would be better, although it works as it is.
    pub fn advice(mut self, fix: Option<String>) -> Self {
        self.fix = fix.map(|fix| line(&fix)).or(self.fix);
        self
    }

    /// Nothing works before this is put right.
    pub fn failed(mut self, fix: &str) -> Self {
        self.failed = true;
        self.advice(Some(fix.to_owned()))
    }

    pub fn is(&self, step: &str) -> bool {
        self.step == step
    }

    pub fn has_failed(&self) -> bool {
        self.failed
    }

    pub fn is_decided(&self) -> bool {
        !self.decision.is_empty()
    }

    pub fn why(&self) -> &str {
        &self.why
    }

    pub fn url(&self) -> Option<&str> {
        self.request.as_ref().map(|request| request.url.as_str())
    }

    /// Whether it is a request that nothing useful came of.
    pub fn is_unanswered(&self) -> bool {
        let is_error = |response: &Answered| {
            response.error.is_some() || response.status.is_some_and(|status| status >= 429)
        };
        self.response.as_ref().is_some_and(is_error)
    }
}

impl Report {
    /// `fine`: the summary, if nothing has failed.
    pub fn new(route: &str, steps: Vec<Step>, fine: &str) -> Self {
        let failed = steps.iter().find(|step| step.failed);
        let summary = match failed {
            Some(step) => format!("no authorization can begin: {}", step.why),
            None => line(fine),
        };
        let mut fixes: Vec<String> = steps.iter().filter_map(|step| step.fix.clone()).collect();
        fixes.dedup();
        let verdict = Verdict { ok: failed.is_none(), summary, fixes };
        Self { route: route.to_owned(), steps, verdict }
    }
}

// === for people ===

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "route {}", self.route)?;
        for (index, step) in self.steps.iter().enumerate() {
            writeln!(out, "\n{}. {}: {}", index + 1, step.step.replace('_', " "), step.decision)?;
            write!(out, "{step}")?;
        }
        let Verdict { ok, summary, fixes } = &self.verdict;
        write!(out, "\n{}: {summary}", if *ok { "fine" } else { "not fine" })?;
        fixes.iter().try_for_each(|fix| write!(out, "\nfix: {fix}"))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Asked { method, url }) = &self.request {
            writeln!(out, "   > {method} {url}")?;
        }
        if let Some(response) = &self.response {
            writeln!(out, "   < {response}")?;
            if let Some(challenged) = &response.www_authenticate {
                writeln!(out, "   < www-authenticate: {challenged}")?;
            }
        }
        for (name, value) in &self.facts {
            writeln!(out, "   {}: {}", name.replace('_', " "), spoken(value))?;
        }
        // What to change stands at the end, where it is looked for.
        writeln!(out, "   why: {}", self.why)
    }
}

impl fmt::Display for Answered {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.error, self.status) {
            (Some(error), _) => write!(out, "{error}")?,
            (None, Some(status)) => write!(out, "{status}")?,
            (None, None) => write!(out, "nothing")?,
        }
        if let Some(content_type) = &self.content_type {
            write!(out, ", {content_type}")?;
        }
        if let Some(length) = self.length {
            write!(out, ", {length} bytes")?;
        }
        write!(out, ", {} ms", self.milliseconds)
    }
}

impl fmt::Display for Challenged {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.schemes.join(", "))?;
        let known =
            [("error", &self.error), ("scope", &self.scope), ("resource_metadata", &self.resource_metadata)];
        let known = known.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
        known.into_iter().try_for_each(|(name, value)| write!(out, "; {name}: {value}"))
    }
}

fn spoken(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Array(values) => values.iter().map(spoken).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// One line of visible ASCII.
pub fn line(text: &str) -> String {
    printable(text, TEXT_LIMIT)
}

/// A fact as it can be shown: texts, flags, numbers and lists of them; anything deeper is nothing.
fn plain(value: Value) -> Value {
    match value {
        Value::String(text) => printable(&text, FACT_LIMIT).into(),
        Value::Array(values) => values.into_iter().take(LIST_LIMIT).map(plain).collect(),
        Value::Object(_) => Value::Null,
        other => other,
    }
}

fn as_map<S: Serializer>(facts: &[(&'static str, Value)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(facts.iter().map(|(name, value)| (name, value)))
}
