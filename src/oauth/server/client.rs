//! Who asks: the clients we know, by registration or by the document their id points to.
//!
//! A client id that is a URL is a Client ID Metadata Document (draft-ietf-oauth-client-id-metadata-document): the
//! document is fetched through the guarded client, must repeat the id byte for byte, and is remembered for a while
//! in memory. Any other id is one we handed out at registration (RFC 7591).
use std::time::{Duration, SystemTime};

use http::header;
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use url::Url;

use super::redirect;
use crate::config::Cimd;
use crate::outbound::{self, AddressPolicy, Limits, Outbound, Request};
use crate::store::Kind;
use crate::store::record::{RecordError, Records, Typed};

/// A registered client (RFC 7591), as stored. All are public clients: authentication method `none`.
#[derive(Clone, Serialize, Deserialize)]
pub struct Registered {
    pub client_name: Option<String>,
    pub redirect_uris: Vec<String>,
    pub issued_at: u64,
}

impl Typed for Registered {
    const KIND: Kind = Kind::Client;
}

/// A client, however it is known.
#[derive(Clone)]
pub struct Client {
    pub id: String,
    /// What it calls itself: unverified.
    pub name: Option<String>,
    pub redirect_uris: Vec<String>,
    /// The host that vouches for it: that of its document. Registered clients have none.
    pub host: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("client is not known")]
    Unknown,
    #[error("client document is not usable: {0}")]
    Document(&'static str),
    /// Theirs or ours is out of reach: worth another try, and no reason to forget anything.
    #[error("client cannot be looked up now")]
    Unavailable,
}

/// Longest document read, bytes.
const DOCUMENT_MAX: usize = 64 * 1024;
const DOCUMENT_TIME: Duration = Duration::from_secs(5);
const REMEMBER_MIN: Duration = Duration::from_secs(60);
const REMEMBER_DEFAULT: Duration = Duration::from_secs(300);
const REMEMBER_MAX: Duration = Duration::from_secs(24 * 3600);
/// A registration nobody uses for so long is forgotten.
const REGISTRATION_TTL: Duration = Duration::from_secs(90 * 24 * 3600);
/// Documents fetched at the same time; whoever comes later is told to try again.
const FETCHES: usize = 16;
/// Longer ids are refused.
const ID_MAX: usize = 2048;
const REMEMBER_FAILURE: Duration = Duration::from_secs(15);

/// Looks clients up. Documents are fetched once for all who ask at the same time.
pub struct Clients {
    documents: Cache<String, Remembered>,
    fetching: Semaphore,
}

#[derive(Clone)]
struct Remembered {
    outcome: Result<Client, Failed>,
    until: SystemTime,
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
    client_secret: Option<serde::de::IgnoredAny>,
    client_secret_expires_at: Option<serde::de::IgnoredAny>,
}

// === impl Clients ===

impl Default for Clients {
    fn default() -> Self {
        Self { documents: Cache::new(1024), fetching: Semaphore::new(FETCHES) }
    }
}

impl Clients {
    /// The client of that id.
    pub async fn find(
        &self,
        records: &Records,
        outbound: &Outbound,
        cimd: &Cimd,
        id: &str,
        now: SystemTime,
    ) -> Result<Client, ClientError> {
        if id.len() > ID_MAX {
            return Err(ClientError::Unknown);
        }
        if !id.starts_with("https://") && !id.starts_with("http://") {
            return registered(records, id).await;
        }
        if !cimd.enabled {
            return Err(ClientError::Unknown);
        }
        let policy = document_policy(id, cimd.allow_private).map_err(ClientError::Document)?;
        if let Some(known) = self.documents.get(id) {
            if known.until > now {
                return known.outcome.map_err(ClientError::from);
            }
            self.documents.remove(id);
        }
        let fetched = self.documents.get_or_insert_async(id, async {
            let _turn = self.fetching.try_acquire().map_err(|_| ClientError::Unavailable)?;
            Ok::<_, ClientError>(fetch(outbound, &policy, id, now).await)
        });
        fetched.await?.outcome.map_err(ClientError::from)
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

/// A registration that is used is kept: called when tokens are issued to the client.
pub async fn keep(records: &Records, id: &str, now: SystemTime) {
    let stored = match records.get::<Registered>(id).await {
        Ok(Some(stored)) if stored.expires_at < now + REGISTRATION_TTL / 2 => stored,
        _ => return,
    };
    if let Err(error) = records.put(id, stored.version, &stored.value, REGISTRATION_TTL).await {
        tracing::warn!(target: "postern::oauth", %error, "a client's registration could not be kept longer");
    }
}

async fn registered(records: &Records, id: &str) -> Result<Client, ClientError> {
    match records.get::<Registered>(id).await {
        Ok(Some(known)) => Ok(Client {
            id: id.to_owned(),
            name: known.value.client_name,
            redirect_uris: known.value.redirect_uris,
            host: None,
        }),
        Ok(None) => Err(ClientError::Unknown),
        Err(RecordError::Unreadable) => Err(ClientError::Unknown),
        Err(_) => Err(ClientError::Unavailable),
    }
}

/// Checks the URL itself: https, with a path, nothing that could be read in two ways. For a test set-up with
/// `allow_private`, loopback documents may be http.
fn document_policy(id: &str, allow_private: bool) -> Result<AddressPolicy, &'static str> {
    let url = Url::parse(id).map_err(|_| "client_id is not a URL")?;
    let host = url
        .host_str()
        .ok_or("client_id has no host")?
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    if url.scheme() != "https" && !(allow_private && redirect::is_loopback(id)) {
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
    Ok(if allow_private { AddressPolicy::allowing([host]) } else { AddressPolicy::public() })
}

/// Failures are remembered too, for a moment: nobody can make us ask somebody else again and again.
async fn fetch(outbound: &Outbound, policy: &AddressPolicy, id: &str, now: SystemTime) -> Remembered {
    let failed = |failure| Remembered { outcome: Err(failure), until: now + REMEMBER_FAILURE };
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
    match document.and_then(|document| document.check(id)) {
        Ok(client) => {
            let remember =
                max_age(&response.headers).unwrap_or(REMEMBER_DEFAULT).clamp(REMEMBER_MIN, REMEMBER_MAX);
            Remembered { outcome: Ok(client), until: now + remember }
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

// === impl Document ===

impl Document {
    fn check(self, id: &str) -> Result<Client, &'static str> {
        if self.client_id != id {
            return Err("its client_id is another one");
        }
        if self.client_secret.is_some() || self.client_secret_expires_at.is_some() {
            return Err("it carries a secret");
        }
        if self.token_endpoint_auth_method.is_some_and(|method| method != "none") {
            return Err("only token_endpoint_auth_method none is supported");
        }
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
        })
    }
}

// === impl Client ===

impl Client {
    pub fn allows(&self, redirect_uri: &str) -> bool {
        self.redirect_uris.iter().any(|registered| redirect::matches(registered, redirect_uri))
    }
}
