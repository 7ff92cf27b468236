//! Looks after pools: what the names of peers stand for, and whether the peers are well. The questions go the way requests go, to
//! the same addresses, under the same name, with the same trust in certificates; they carry no credential.
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, header};
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
use crate::route::Upstream;

/// Pools that came with a reload are looked after within that time even if nobody says so.
const LOOK: Duration = Duration::from_secs(1);
const PING: &[u8] = br#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;

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
                let is_well = is_well(&connector, &upstream, peer.address, &health).await;
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

async fn is_well(connector: &Connector, upstream: &Upstream, address: SocketAddr, health: &Health) -> bool {
    let asked = async {
        match &health.probe {
            Probe::Tcp => TcpStream::connect(address).await.is_ok(),
            Probe::Http(path) => {
                status(connector, upstream, address, "GET", path, b"").await.is_ok_and(|status| status < 400)
            }
            Probe::Mcp => {
                let path = &upstream.base_path;
                let path = if path.is_empty() { "/" } else { path };
                status(connector, upstream, address, "POST", path, PING)
                    .await
                    .is_ok_and(|status| status < 500)
            }
        }
    };
    timeout(health.timeout, asked).await.unwrap_or(false)
}

/// The status of the answer, on a connection of its own: one that is open already may hide that no other comes about.
async fn status(
    connector: &Connector,
    upstream: &Upstream,
    address: SocketAddr,
    method: &str,
    path: &str,
    body: &'static [u8],
) -> Result<u16> {
    let mut head = RequestHeader::build(method, path.as_bytes(), None)?;
    if let Some(host) = &upstream.host_header {
        head.insert_header(header::HOST, host)?;
    }
    head.insert_header(header::USER_AGENT, HeaderValue::from_static("postern-health"))?;
    head.insert_header(header::CONNECTION, HeaderValue::from_static("close"))?;
    head.insert_header(header::ACCEPT, HeaderValue::from_static("application/json, text/event-stream"))?;
    if !body.is_empty() {
        head.insert_header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))?;
        head.insert_header(header::CONTENT_LENGTH, body.len())?;
    }
    let mut peer = peer::peer(upstream, address, false);
    peer.options.alpn = ALPN::H1;
    let (mut session, _) = connector.get_http_session(&*peer).await?;
    session.write_request_header(Box::new(head)).await?;
    if !body.is_empty() {
        session.write_request_body(Bytes::from_static(body), true).await?;
    }
    session.finish_request_body().await?;
    session.read_response_header().await?;
    Ok(session.response_header().map_or(500, |head| head.status.as_u16()))
}
