//! Looks after pools: what the names of peers stand for, and whether the peers are well. The questions go the way requests go, to
//! the same addresses, under the same name, with the same trust in certificates; they carry no credential.
//!
//! An MCP server is asked what every revision of it answers without a session: `server/discover`, and where it does not know that, `ping`.
//! That it wants a token or a session for an answer says that it is there.
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use http::{HeaderValue, StatusCode, header};
use pingora::Result;
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use pingora::upstreams::peer::ALPN;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::balance::Peer;
use super::peer;
use super::pool::{Pool, Pools, since_1970};
use crate::config::{Health, Probe};
use crate::mcp::{self, OwnRequest};
use crate::route::Upstream;

/// Pools that came with a reload are looked after within that time even if nobody says so.
const LOOK: Duration = Duration::from_secs(1);

/// Looks after all pools.
pub struct Watching {
    pub pools: Arc<Pools>,
    pub connector: Arc<Connector>,
}

#[async_trait]
impl BackgroundService for Watching {
    /// Goes on while the last requests end: they may still need a peer.
    async fn start(&self, _shutdown: ShutdownWatch) {
        loop {
            for pool in self.pools.all() {
                if !pool.is_watched.swap(true, Ordering::Relaxed) {
                    tokio::spawn(look_up(Arc::clone(&self.pools), Arc::downgrade(&pool)));
                    let (pools, connector) = (Arc::clone(&self.pools), Arc::clone(&self.connector));
                    tokio::spawn(check(pools, Arc::downgrade(&pool), connector));
                }
            }
            let _ = timeout(LOOK, self.pools.changed.notified()).await;
        }
    }
}

/// Until there is another pool in its place.
async fn look_up(pools: Arc<Pools>, pool: Weak<Pool>) {
    while let Some(pool) = pool.upgrade() {
        let again = pools.look_up(&pool).await;
        drop(pool);
        sleep(again).await;
    }
}

/// As [`look_up`].
async fn check(pools: Arc<Pools>, pool: Weak<Pool>, connector: Arc<Connector>) {
    while let Some(pool) = pool.upgrade() {
        let Some(health) = pool.settings.settings.health.clone() else { return };
        let members = pool.members();
        let leaving = members.leaving.iter().map(|leaving| &leaving.peer);
        let mut asked = JoinSet::new();
        for peer in members.present.iter().map(|member| &member.peer).chain(leaving) {
            let (peer, upstream) = (Arc::clone(peer), Arc::clone(&pool.upstream));
            let (connector, health) = (Arc::clone(&connector), health.clone());
            asked.spawn(async move {
                let is_well =
                    Asking { connector: &connector, upstream: &upstream, peer: &peer }.is_well(&health).await;
                (peer, is_well)
            });
        }
        while let Some(answered) = asked.join_next().await {
            if let Ok((peer, is_well)) = answered {
                note(&pools, &pool.name, &peer, is_well, &health);
            }
        }
        drop(pool);
        sleep(health.interval).await;
    }
}

fn note(pools: &Pools, route: &str, peer: &Peer, is_well: bool, health: &Health) {
    let address = peer.address;
    match peer.checked(is_well, health, since_1970(pools.clock.now())) {
        Some(true) => {
            tracing::info!(target: "postern::upstream", route, peer = %address, "peer is back");
        }
        Some(false) => {
            tracing::warn!(target: "postern::upstream", route, peer = %address, "peer is down");
        }
        None => {}
    }
}

/// Whom to ask, and by what way.
struct Asking<'a> {
    connector: &'a Connector,
    upstream: &'a Upstream,
    peer: &'a Peer,
}

impl Asking<'_> {
    async fn is_well(&self, health: &Health) -> bool {
        let asked = async {
            match &health.probe {
                Probe::Tcp => TcpStream::connect(self.peer.address).await.is_ok(),
                Probe::Http(path) => {
                    self.status("GET", path, None).await.is_ok_and(|status| status.as_u16() < 400)
                }
                Probe::Mcp => self.is_mcp().await,
            }
        };
        timeout(health.timeout, asked).await.unwrap_or(false)
    }

    async fn is_mcp(&self) -> bool {
        let path = &self.upstream.base_path;
        let path = if path.is_empty() { "/" } else { path };
        let begins = self.peer.pings.load(Ordering::Relaxed);
        let mut has_place = false;
        for is_ping in [begins, !begins] {
            let own = if is_ping { mcp::ping_request() } else { mcp::probe_request() };
            let Ok(status) = self.status("POST", path, Some(own)).await else { return false };
            match judged(status) {
                Judged::Well => {
                    self.peer.pings.store(is_ping, Ordering::Relaxed);
                    return true;
                }
                Judged::Unwell => return false,
                // A server that wants a session says so to a `ping` as well, and is one; what has no such place is none.
                Judged::Refused { is_place } => has_place |= is_place && is_ping,
            }
        }
        has_place
    }

    /// The status of the answer, on a connection of its own: one that is open already may hide that no other comes about.
    async fn status(&self, method: &str, path: &str, own: Option<OwnRequest>) -> Result<StatusCode> {
        let mut head = RequestHeader::build(method, path.as_bytes(), None)?;
        if let Some(host) = &self.upstream.host_header {
            head.insert_header(header::HOST, host)?;
        }
        head.insert_header(header::USER_AGENT, HeaderValue::from_static("postern-health"))?;
        head.insert_header(header::CONNECTION, HeaderValue::from_static("close"))?;
        if let Some(own) = &own {
            for (name, value) in &own.headers {
                head.insert_header(name, HeaderValue::from_static(value))?;
            }
            head.insert_header(header::CONTENT_LENGTH, own.body.len())?;
        }
        let mut peer = peer::peer(self.upstream, self.peer.address, false);
        peer.options.alpn = ALPN::H1;
        let (mut session, _) = self.connector.get_http_session(&*peer).await?;
        session.write_request_header(Box::new(head)).await?;
        if let Some(own) = own {
            session.write_request_body(own.body, true).await?;
        }
        session.finish_request_body().await?;
        session.read_response_header().await?;
        Ok(session.response_header().map_or(StatusCode::INTERNAL_SERVER_ERROR, |head| head.status))
    }
}

/// What an answer to a question of MCP says.
#[derive(Debug, PartialEq, Eq)]
enum Judged {
    /// It was understood; or a token is wanted first, or less haste.
    Well,
    Unwell,
    /// Not this question, or not so. `is_place`: that there is an MCP server to refuse it.
    Refused {
        is_place: bool,
    },
}

fn judged(status: StatusCode) -> Judged {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS => Judged::Well,
        status if status.is_success() => Judged::Well,
        status if status.is_server_error() => Judged::Unwell,
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::GONE => {
            Judged::Refused { is_place: false }
        }
        // Redirects are not followed.
        status => Judged::Refused { is_place: status.is_client_error() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_refuses_is_there_and_a_place_without_one_is_not() {
        for (status, expected) in [
            (200, Judged::Well),
            (202, Judged::Well),
            (401, Judged::Well),
            (403, Judged::Well),
            (429, Judged::Well),
            (400, Judged::Refused { is_place: true }),
            (406, Judged::Refused { is_place: true }),
            (404, Judged::Refused { is_place: false }),
            (405, Judged::Refused { is_place: false }),
            (307, Judged::Refused { is_place: false }),
            (500, Judged::Unwell),
            (503, Judged::Unwell),
        ] {
            assert_eq!(StatusCode::from_u16(status).map(judged).ok(), Some(expected), "{status}");
        }
    }
}
