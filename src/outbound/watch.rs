//! Looking on: what was sent, what came back and what was made of it, told as it happens. Where nobody looks on, nothing is
//! kept and nothing is written down.
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use tokio::time::Instant;

use super::{AddressPolicy, Error, Outbound, Request, Response};

/// Who looks on.
pub type Watch = Arc<dyn Fn(Sight) + Send + Sync>;

tokio::task_local! {
    /// Who looks on at all that is asked for the sake of one request.
    static OF_REQUEST: Watch;
}

/// Whatever `work` asks for, through whichever client, is shown to `watch`.
pub async fn shown<T>(watch: Watch, work: impl Future<Output = T>) -> T {
    OF_REQUEST.scope(watch, work).await
}

/// For work in a task of its own: it is shown to who looks on here.
pub fn carried<T>(work: impl Future<Output = T>) -> impl Future<Output = T> {
    let watch = OF_REQUEST.try_with(Arc::clone).ok();
    async move {
        match watch {
            Some(watch) => shown(watch, work).await,
            None => work.await,
        }
    }
}

/// Who counts what is made of answers, and whether what was fetched was still there.
pub trait Count: Send + Sync {
    /// Both are words of ours.
    fn decision(&self, step: &'static str, decision: &'static str);

    fn lookup(&self, kept: Fetched, is_there: bool);
}

/// What is kept of what was fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetched {
    /// Verdicts on access tokens of other authorization servers.
    ForeignToken,
    /// Client metadata documents.
    ClientDocument,
}

/// What there is to see.
pub enum Sight {
    Exchange(Exchange),
    Remark(Remark),
}

/// One request and its end. Nothing of it is secret: no header and no body of the request, and of a query only that of a URL
/// where a document was asked for without proving anything.
pub struct Exchange {
    pub method: Method,
    pub url: String,
    pub took: Duration,
    pub outcome: Result<Answer, Error>,
}

/// Of an answer, what is no secret.
pub struct Answer {
    pub status: StatusCode,
    pub content_type: Option<HeaderValue>,
    /// In bytes, where it is known.
    pub length: Option<u64>,
    /// `WWW-Authenticate`, as received.
    pub challenges: Vec<HeaderValue>,
    /// The body, where a document was asked for without proving anything.
    pub document: Option<Bytes>,
}

/// What was made of an answer, or decided without one.
pub struct Remark {
    /// To which step it belongs.
    pub step: &'static str,
    /// The URL that was asked, or whatever else it is about.
    pub about: String,
    /// One word.
    pub decision: &'static str,
    /// One line. May hold a stranger's text.
    pub why: String,
}

impl Outbound {
    /// The same client, with somebody who looks on.
    #[must_use]
    pub fn watched(&self, watch: Watch) -> Self {
        let mut watched = self.clone();
        watched.watch = Some(watch);
        watched
    }

    /// The same client, with somebody who counts.
    #[must_use]
    pub fn counted(mut self, count: Arc<dyn Count>) -> Self {
        self.count = Some(count);
        self
    }

    /// Counts a look into what was fetched with it.
    pub fn count_lookup(&self, kept: Fetched, is_there: bool) {
        if let Some(count) = &self.count {
            count.lookup(kept, is_there);
        }
    }

    /// Tells who looks on what was made of the answer from `about`, and counts it.
    pub fn remark(
        &self,
        step: &'static str,
        about: &str,
        decision: &'static str,
        why: impl FnOnce() -> String,
    ) {
        if let Some(count) = &self.count {
            count.decision(step, decision);
        }
        if let Some(watch) = self.watch() {
            watch(Sight::Remark(Remark { step, about: about.to_owned(), decision, why: why() }));
        }
    }

    fn watch(&self) -> Option<Watch> {
        self.watch.clone().or_else(|| OF_REQUEST.try_with(Arc::clone).ok())
    }

    /// As [`Outbound::remark`], for a request without an answer.
    pub fn remark_failure(&self, step: &'static str, about: &str, error: &Error) {
        let decision = if error.is_transient() { "unavailable" } else { "refused" };
        self.remark(step, about, decision, || error.to_string());
    }

    /// Sends one request and waits for its answer, of whatever status. See [`Error`] for what each failure says
    /// about whether the request left.
    pub async fn send(&self, request: Request, policy: &AddressPolicy) -> Result<Response, Error> {
        let Some(watch) = self.watch() else {
            return self.exchange(request, policy).await;
        };
        let method = request.method.clone();
        let is_plain = method == Method::GET && !request.headers.contains_key(header::AUTHORIZATION);
        let is_whole = !request.head_only;
        let url = match request.url.split_once('?') {
            Some((place, _)) if !is_plain => place.to_owned(),
            _ => request.url.clone(),
        };
        let begun = Instant::now();
        let outcome = self.exchange(request, policy).await;
        let seen = outcome.as_ref().map_err(Error::clone).map(|response| {
            let announced = response.headers.get(header::CONTENT_LENGTH);
            let announced = announced.and_then(|length| length.to_str().ok()?.parse().ok());
            Answer {
                status: response.status,
                content_type: response.headers.get(header::CONTENT_TYPE).cloned(),
                length: if is_whole { u64::try_from(response.body.len()).ok() } else { announced },
                challenges: response.headers.get_all(header::WWW_AUTHENTICATE).iter().cloned().collect(),
                document: (is_plain && is_whole).then(|| response.body.clone()),
            }
        });
        watch(Sight::Exchange(Exchange { method, url, took: begun.elapsed(), outcome: seen }));
        outcome
    }
}
