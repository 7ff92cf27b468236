//! The other side of `postern demo`: an MCP server that wants its own OAuth token, and the authorization
//! server it trusts, both on one loopback listener.
//!
//! It stands in for a service of somebody else, so it uses nothing of the gateway but the clock. It keeps
//! everything in memory, bounded, and forgets it when it ends; only clients it knows ever after, for all it knows
//! of one stands in the client's id. Anyone who reaches its page may be anyone there: that is why [`serve`] takes
//! only loopback listeners.

mod authorization_server;
mod authorize;
mod client;
mod mcp_server;
mod token;

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use data_encoding::BASE64URL_NOPAD;
use ring::digest;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::net::TcpListener;

use crate::clock::Clock;

/// The only scope there is.
const SCOPE: &str = "demo:tools";
/// How long an access token lives: short, so that a refresh is seen in a demonstration.
const ACCESS_LIFETIME: Duration = Duration::from_secs(5 * 60);
/// How many entries each table holds before the oldest is dropped.
const TABLE_SIZE: usize = 10_000;

/// URL of the MCP endpoint that [`serve`] offers on a listener bound to `address`.
pub fn mcp_url(address: SocketAddr) -> String {
    format!("http://{address}/mcp")
}

/// Serves the MCP server at `/mcp` and its authorization server until `shutdown` completes, then finishes the
/// requests under way.
///
/// # Errors
/// `InvalidInput` when the listener is not bound to a loopback address; else what the listener reports.
pub async fn serve<F>(listener: TcpListener, shutdown: F) -> io::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let address = listener.local_addr()?;
    if !address.ip().is_loopback() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the demo upstream serves loopback only"));
    }
    axum::serve(listener, router(address, Clock::system())).with_graceful_shutdown(shutdown).await
}

fn router(address: SocketAddr, clock: Clock) -> Router {
    let demo = Arc::new(Demo {
        issuer: format!("http://{address}"),
        resource: mcp_url(address),
        clock,
        tables: Mutex::new(Tables::default()),
    });
    authorization_server::routes()
        .merge(mcp_server::routes())
        .layer(middleware::from_fn(only_from_here))
        .with_state(demo)
}

/// Lets a request in whose `Host`, and `Origin` where there is one, name this computer. A page of another site
/// stays out, even by a name that it lets point here (DNS rebinding).
async fn only_from_here(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let host = header_text(headers, "host").is_some_and(is_local);
    let origin = !headers.contains_key(header::ORIGIN)
        || header_text(headers, "origin")
            .and_then(|origin| origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")))
            .is_some_and(is_local);
    if host && origin { next.run(request).await } else { StatusCode::FORBIDDEN.into_response() }
}

fn is_local(authority: &str) -> bool {
    authority.parse::<http::uri::Authority>().is_ok_and(|authority| {
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    })
}

/// What the handlers share.
struct Demo {
    /// Issuer of the authorization server: the origin, without a slash at the end.
    issuer: String,
    /// Canonical URL of the MCP server.
    resource: String,
    clock: Clock,
    tables: Mutex<Tables>,
}

impl Demo {
    /// The tables. The lock is never held across an await.
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All state. Codes and tokens are found by their [`digest_of`], never kept themselves.
#[derive(Default)]
struct Tables {
    /// Requests waiting for the user's answer, by ticket.
    pending: Table<Pending>,
    codes: Table<Code>,
    /// What a user allowed a client; a token counts only while its grant is here.
    grants: Table<Grant>,
    access: Table<AccessToken>,
    refresh: Table<RefreshToken>,
}

/// An authorization request that passed all checks.
#[derive(Clone)]
struct Pending {
    client: client::Client,
    redirect_uri: String,
    code_challenge: String,
    state: Option<String>,
    expires: SystemTime,
}

struct Code {
    grant: String,
    redirect_uri: String,
    code_challenge: String,
    expires: SystemTime,
    used: bool,
}

#[derive(Clone)]
struct Grant {
    client_id: String,
    account: String,
}

struct AccessToken {
    grant: String,
    expires: SystemTime,
}

struct RefreshToken {
    grant: String,
    used: bool,
}

/// A map that drops its oldest entry when it is full. Keys are random or digests and never come twice.
struct Table<V> {
    entries: HashMap<String, V>,
    order: VecDeque<String>,
}

impl<V> Default for Table<V> {
    fn default() -> Self {
        Table { entries: HashMap::new(), order: VecDeque::new() }
    }
}

impl<V> Table<V> {
    fn insert(&mut self, key: String, value: V) {
        // Removed entries leave their key in `order`, where it falls out at the front in its turn.
        while self.order.len() >= TABLE_SIZE {
            if let Some(oldest) = self.order.pop_front() {
                self.entries.remove(&oldest);
            }
        }
        self.order.push_back(key.clone());
        self.entries.insert(key, value);
    }

    fn find(&self, key: &str) -> Option<&V> {
        self.entries.get(key)
    }

    fn find_mut(&mut self, key: &str) -> Option<&mut V> {
        self.entries.get_mut(key)
    }

    fn remove(&mut self, key: &str) -> Option<V> {
        self.entries.remove(key)
    }
}

/// The system has no randomness to give.
#[derive(Debug, thiserror::Error)]
#[error("no randomness from the system")]
struct NoRandomness;

/// 256 random bits in base64url, for identifiers, codes and tokens alike.
fn random_text() -> Result<String, NoRandomness> {
    let mut bytes = [0_u8; 32];
    SystemRandom::new().fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(BASE64URL_NOPAD.encode(&bytes))
}

/// SHA-256 in base64url. Also the S256 transformation of a PKCE verifier (RFC 7636 §4.2).
fn digest_of(text: &str) -> String {
    BASE64URL_NOPAD.encode(digest::digest(&digest::SHA256, text.as_bytes()).as_ref())
}

fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Marks an answer that must not be kept anywhere.
fn no_store(response: impl IntoResponse) -> Response {
    let mut response = response.into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests;
