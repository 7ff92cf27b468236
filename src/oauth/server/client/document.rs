//! Client ID Metadata Documents (draft-ietf-oauth-client-id-metadata-document): the id of such a client is the URL of a
//! document about it, which must repeat the id byte for byte.
//!
//! A document is fetched through the guarded client and remembered in memory for as long as it says, within limits. When
//! its host does not answer, what was known of it goes on counting for a while: nobody's refresh fails over that.
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header;
use quick_cache::sync::Cache;
use serde::Deserialize;
use tokio::sync::Semaphore;
use url::Url;

use super::{Authentication, Client, ClientError};
use crate::config::Cimd;
use crate::jose::Keys;
use crate::oauth::server::redirect;
use crate::outbound::{self, AddressPolicy, Fetched, Limits, Outbound, Request};

/// Longest document read, bytes.
const DOCUMENT_MAX: usize = 64 * 1024;
const DOCUMENT_TIME: Duration = Duration::from_secs(5);
const REMEMBER_MIN: Duration = Duration::from_secs(60);
const REMEMBER_DEFAULT: Duration = Duration::from_secs(300);
const REMEMBER_MAX: Duration = Duration::from_secs(24 * 3600);
const REMEMBER_FAILURE: Duration = Duration::from_secs(15);
/// How long a document is good whose host does not answer.
const STALE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Documents fetched at the same time; whoever comes later is told to try again.
const FETCHES: usize = 64;
/// Whoever waits longer for a turn is told to come again.
const TURN: Duration = Duration::from_secs(2);
const DOCUMENTS: usize = 1024;

/// The documents that are known.
pub struct Documents {
    known: Cache<String, Remembered>,
    fetching: Semaphore,
}

#[derive(Clone)]
struct Remembered {
    outcome: Result<Client, Failed>,
    until: SystemTime,
    /// The last good one, and until when it may stand in.
    spare: Option<(Client, SystemTime)>,
}

#[derive(Clone, Copy)]
enum Failed {
    Document(&'static str),
    Unavailable,
}

#[derive(Deserialize)]
struct Document {
    client_id: String,
    /// Required by MCP (Client ID Metadata Documents).
    client_name: String,
    #[serde(default)]
    redirect_uris: Vec<String>,
    token_endpoint_auth_method: Option<String>,
    jwks: Option<serde_json::Value>,
    jwks_uri: Option<String>,
    client_secret: Option<serde::de::IgnoredAny>,
    client_secret_expires_at: Option<serde::de::IgnoredAny>,
}

impl Default for Documents {
    fn default() -> Self {
        Self { known: Cache::new(DOCUMENTS), fetching: Semaphore::new(FETCHES) }
    }
}

impl Documents {
    /// The client that the document at `id` describes. Fetched once for all who ask at the same time.
    pub async fn find(
        &self,
        outbound: &Outbound,
        cimd: &Cimd,
        id: &str,
        now: SystemTime,
    ) -> Result<Client, ClientError> {
        if !cimd.enabled {
            return Err(ClientError::Unknown);
        }
        let policy = document_policy(id, cimd).map_err(ClientError::Document)?;
        let mut spare = None;
        let known = self.known.get(id);
        let is_hit = known.as_ref().is_some_and(|known| known.until > now);
        outbound.count_lookup(Fetched::ClientDocument, is_hit);
        if let Some(known) = known {
            if is_hit {
                return known.outcome.map_err(ClientError::from);
            }
            spare = known.spare.filter(|(_, until)| *until > now);
            self.known.remove(id);
        }
        let fetched = self.known.get_or_insert_async(id, async {
            let Ok(Ok(_turn)) = tokio::time::timeout(TURN, self.fetching.acquire()).await else {
                // Not remembered as a failure: it is none of the document's.
                return Err(ClientError::Unavailable);
            };
            Ok(fetch(outbound, &policy, cimd.allow_private, id, now).await.or(spare.clone(), now))
        });
        match fetched.await {
            Ok(remembered) => remembered.outcome.map_err(ClientError::from),
            // Too much is being fetched just now. What was known goes on counting, and stays known.
            Err(error) => match spare {
                Some(spare) => {
                    let (outcome, until) = (Ok(spare.0.clone()), now + REMEMBER_FAILURE);
                    let stand_in = Remembered { outcome, until, spare: Some(spare.clone()) };
                    self.known.insert(id.to_owned(), stand_in);
                    Ok(spare.0)
                }
                None => Err(error),
            },
        }
    }
}

impl From<Failed> for ClientError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Document(why) => Self::Document(why),
            Failed::Unavailable => Self::Unavailable,
        }
    }
}

impl Remembered {
    /// What was known before stands in for a host that does not answer; for a document that was changed it does not.
    fn or(mut self, spare: Option<(Client, SystemTime)>, now: SystemTime) -> Self {
        match (&self.outcome, spare) {
            (Ok(client), _) => self.spare = Some((client.clone(), now + STALE)),
            (Err(Failed::Unavailable), Some(spare)) => {
                tracing::info!(target: "postern::oauth", client = %spare.0.id, "a client document cannot be fetched: the one before goes on counting");
                self.outcome = Ok(spare.0.clone());
                self.spare = Some(spare);
            }
            (Err(_), _) => {}
        }
        self
    }
}

/// Checks the URL itself: https, with a path, nothing that could be read in two ways. For a test set-up with
/// `allow_private`, loopback documents may be http.
fn document_policy(id: &str, cimd: &Cimd) -> Result<AddressPolicy, &'static str> {
    let url = Url::parse(id).map_err(|_| "client_id is not a URL")?;
    let host = url
        .host_str()
        .ok_or("client_id has no host")?
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    if url.scheme() != "https" && !(cimd.allow_private && redirect::is_loopback(id)) {
        return Err("client_id must be an https URL");
    }
    if url.as_str() != id
        || url.path() == "/"
        || url.fragment().is_some()
        || !url.username().is_empty()
        || url.password().is_some()
    {
        return Err("client_id must be a plain URL with a path");
    }
    if !cimd.admits(&host) {
        return Err("its host is not among those that are allowed here");
    }
    Ok(if cimd.allow_private { AddressPolicy::allowing([host]) } else { AddressPolicy::public() })
}

/// Failures are remembered too, for a moment: nobody can make us ask somebody else again and again.
async fn fetch(
    outbound: &Outbound,
    policy: &AddressPolicy,
    private: bool,
    id: &str,
    now: SystemTime,
) -> Remembered {
    let failed = |failure| Remembered { outcome: Err(failure), until: now + REMEMBER_FAILURE, spare: None };
    let limits = Limits { total: DOCUMENT_TIME, body: DOCUMENT_MAX, ..Limits::default() };
    let response = match outbound.send(Request::get(id).limits(limits), policy).await {
        Ok(response) => response,
        Err(outbound::Error::Refused { .. }) => {
            return failed(Failed::Document("its address is not allowed"));
        }
        Err(outbound::Error::TooLarge { .. }) => return failed(Failed::Document("it is too large")),
        Err(_) => return failed(Failed::Unavailable),
    };
    if response.status.is_server_error() || response.status == http::StatusCode::TOO_MANY_REQUESTS {
        return failed(Failed::Unavailable);
    }
    if response.status != http::StatusCode::OK {
        return failed(Failed::Document("it is not there"));
    }
    let document =
        response.json::<Document>().map_err(|_| "it is not a JSON document with the required fields");
    match document.and_then(|document| document.check(id, private)) {
        Ok(client) => {
            let remember =
                max_age(&response.headers).unwrap_or(REMEMBER_DEFAULT).clamp(REMEMBER_MIN, REMEMBER_MAX);
            Remembered { outcome: Ok(client), until: now + remember, spare: None }
        }
        Err(why) => failed(Failed::Document(why)),
    }
}

fn max_age(headers: &http::HeaderMap) -> Option<Duration> {
    let value = headers.get(header::CACHE_CONTROL)?.to_str().ok()?;
    if value.contains("no-store") || value.contains("no-cache") {
        return Some(Duration::ZERO);
    }
    let seconds = value.split(',').find_map(|part| part.trim().strip_prefix("max-age="))?;
    seconds.trim().parse().ok().map(Duration::from_secs)
}

impl Document {
    fn check(self, id: &str, private: bool) -> Result<Client, &'static str> {
        if self.client_id != id {
            return Err("its client_id is another one");
        }
        if self.client_secret.is_some() || self.client_secret_expires_at.is_some() {
            return Err("it carries a secret");
        }
        let auth = match self.token_endpoint_auth_method.as_deref() {
            None | Some("none") => Authentication::None,
            // A shared secret cannot be in a public document.
            Some("private_key_jwt") => match (&self.jwks, self.jwks_uri) {
                (Some(set), None) => {
                    let keys = Keys::parse(set.to_string().as_bytes()).filter(|keys| !keys.is_empty());
                    Authentication::Keys(Arc::new(keys.ok_or("its jwks has no usable key")?))
                }
                (None, Some(uri)) if uri.starts_with("https://") || private => {
                    Authentication::KeysAt { uri, private }
                }
                _ => return Err("private_key_jwt needs one of jwks and an https jwks_uri"),
            },
            Some(_) => return Err("its token_endpoint_auth_method is neither none nor private_key_jwt"),
        };
        if self.redirect_uris.is_empty()
            || self.redirect_uris.len() > 32
            || !self.redirect_uris.iter().all(|uri| redirect::acceptable(uri))
        {
            return Err("its redirect_uris are missing or not acceptable");
        }
        Ok(Client {
            id: id.to_owned(),
            name: Some(self.client_name),
            redirect_uris: self.redirect_uris,
            host: Some(redirect::host(id)),
            is_listed: false,
            auth,
        })
    }
}
