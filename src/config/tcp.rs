//! Routes of `kind: tcp`: bytes from a listener of their own to the peers of an upstream. Nobody is asked who they are; where they come
//! from is all there is to go by.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use url::Url;

use super::checked::Checker;
use super::file::{self, BalanceOn, HealthKind, RouteKind};
use super::pool::{self, Pool};
use super::report::Key;
use super::route::Upstream;

/// A route of bytes.
#[derive(Debug, Clone)]
pub struct TcpRoute {
    /// Unique among all routes.
    pub name: String,
    /// `host:port` as written; the host is an IP literal, port 0 is allowed.
    pub listen: String,
    /// Has a pool in any case.
    pub upstream: Upstream,
    /// What clients say comes in TLS, which ends here.
    pub tls: bool,
    /// Who may connect, by their addresses. Empty: everybody.
    pub allow_from: Vec<IpNet>,
    /// Open at once; at least one.
    pub connections: usize,
    /// After so long without a byte in either direction a connection ends.
    pub idle_timeout: Duration,
    /// How long a peer may take to be connected to.
    pub connect_timeout: Duration,
}

impl TcpRoute {
    #[must_use]
    pub fn admits(&self, from: IpAddr) -> bool {
        let from = from.to_canonical();
        self.allow_from.is_empty() || self.allow_from.iter().any(|net| net.contains(&from))
    }
}

const CONNECTIONS: usize = 1024;
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const LEAST: Duration = Duration::from_millis(100);
const EXAMPLE: &str = "write tcp://, a host and a port, like tcp://db.internal:5432";

pub(super) fn is_tcp(entry: &file::Route) -> bool {
    entry.kind == Some(RouteKind::Tcp)
}

/// Checks all routes of that kind. `taken`: addresses that others listen on.
pub(super) fn check(
    check: &mut Checker<'_>,
    written: &[file::Route],
    taken: &[SocketAddr],
    has_certificates: bool,
) -> Vec<TcpRoute> {
    let mut routes = Vec::new();
    let mut taken = taken.to_vec();
    for (index, entry) in written.iter().enumerate().filter(|(_, entry)| is_tcp(entry)) {
        let key = Key::top("routes").item(index);
        strangers(check, &key, entry);
        let listen = listen(check, &key, entry, &mut taken);
        let upstream = upstream(check, &key.child("upstream"), &entry.upstream);
        let none = file::TcpSettings::default();
        let settings = entry.tcp.as_ref().unwrap_or(&none);
        let key = key.child("tcp");
        let connections = settings.connections.unwrap_or(CONNECTIONS);
        let tls = settings.tls.unwrap_or(false);
        if tls && !has_certificates {
            check.refuse(&key.child("tls"), "needs certificates", "add `server.tls.certificates`");
        }
        let mut time = |name: &str, written: &Option<String>, usual: Duration, most: Duration| {
            check.duration(&key.child(name), written.as_deref(), usual, LEAST, most)
        };
        let idle_timeout = time("idle_timeout", &settings.idle_timeout, HOUR, 7 * DAY);
        let connect_timeout =
            time("connect_timeout", &settings.connect_timeout, Duration::from_secs(5), HOUR);
        let allow_from = networks(check, &key.child("allow_from"), settings.allow_from.as_deref());
        if let (Some(listen), Some(upstream)) = (listen, upstream) {
            routes.push(TcpRoute {
                name: entry.name.clone(),
                listen,
                upstream,
                tls,
                allow_from,
                connections,
                idle_timeout,
                connect_timeout,
            });
        }
    }
    routes
}

fn networks(check: &mut Checker<'_>, list: &Key, written: Option<&[String]>) -> Vec<IpNet> {
    let write =
        "write networks like 10.0.0.0/8, or single addresses; leave it out where everybody may connect";
    if written.is_some_and(<[String]>::is_empty) {
        check.refuse(list, "lets nobody in", write);
    }
    let mut networks = Vec::new();
    for (index, entry) in written.unwrap_or_default().iter().enumerate() {
        let network = entry.parse().ok().or_else(|| entry.parse::<IpAddr>().ok().map(IpNet::from));
        match network {
            Some(network) => networks.push(network),
            None => check.refuse(&list.item(index), "is no network", write),
        }
    }
    networks
}

/// Refuses what is about requests.
fn strangers(check: &mut Checker<'_>, key: &Key, entry: &file::Route) {
    for (name, is_written) in [
        ("host", entry.host.is_some()),
        ("path", entry.path.is_some()),
        ("public", entry.public.is_some()),
        ("cors_allow_preflight", entry.cors_allow_preflight.is_some()),
        ("credential", entry.credential.is_some()),
        ("scopes", entry.scopes.is_some()),
        ("tool_scopes", entry.tool_scopes.is_some()),
        ("policy", entry.policy.is_some()),
        ("trusted_issuers", entry.trusted_issuers.is_some()),
        ("limits", entry.limits.is_some()),
    ] {
        if is_written {
            let write = "leave it out; `tcp.allow_from` says who may connect";
            check.refuse(&key.child(name), "is about requests, and `kind: tcp` has bytes alone", write);
        }
    }
    let upstream = key.child("upstream");
    if entry.upstream.health.as_ref().is_some_and(|health| health.kind != HealthKind::Tcp) {
        check.refuse(&upstream.child("health").child("kind"), "asks what only HTTP answers", "write `tcp`");
    }
    if entry.upstream.balance_on.is_some_and(|on| on != BalanceOn::Source) {
        let write = "write `source`, or leave it out";
        check.refuse(&upstream.child("balance_on"), "is not known of a connection", write);
    }
    if entry.upstream.read_timeout.is_some() {
        check.refuse(&upstream.child("read_timeout"), "is about requests", "write `tcp.idle_timeout`");
    }
    if entry.upstream.allow_hosts.is_some() {
        check.refuse(&upstream.child("allow_hosts"), "leads nowhere at `kind: tcp`", "leave it out");
    }
}

fn listen(
    check: &mut Checker<'_>,
    key: &Key,
    entry: &file::Route,
    taken: &mut Vec<SocketAddr>,
) -> Option<String> {
    let example = "write an IP address and a port of its own, like 0.0.0.0:5432 or [::]:5432";
    let Some(listen) = &entry.listen else {
        check.refuse(key, "is `kind: tcp` and has no `listen`", example);
        return None;
    };
    let Ok(address) = listen.parse::<SocketAddr>() else {
        check.refuse(&key.child("listen"), "is not an address to listen on", example);
        return None;
    };
    if address.port() != 0 && taken.contains(&address) {
        check.refuse(&key.child("listen"), "is listened on by something else already", example);
    }
    taken.push(address);
    Some(listen.clone())
}

fn upstream(check: &mut Checker<'_>, key: &Key, written: &file::Upstream) -> Option<Upstream> {
    let allow_private = written.allow_private.unwrap_or(false);
    let at = key.child("url");
    let bare = written.url.strip_prefix("tcp://").filter(|rest| !rest.contains(['/', '?', '#', '@']));
    let (Some(bare), Ok(url)) = (bare, Url::parse(&written.url)) else {
        check.refuse(&at, "is no address of bytes", EXAMPLE);
        return None;
    };
    let pool = match pool::check(check, key, written, allow_private, &[]) {
        Some(pool) => Pool { balance_on: BalanceOn::Source, ..pool },
        // Where `url` says: one peer, which is looked up and watched like several.
        None => {
            let address = file::Peer::Plain(bare.to_owned());
            Pool::of(pool::peer(check, &at, &address, allow_private, &[])?)
        }
    };
    let url_as_written = written.url.clone();
    let (allow_hosts, read_timeout) = (Vec::new(), Duration::ZERO);
    Some(Upstream { url, url_as_written, allow_private, allow_hosts, read_timeout, pool: Some(pool) })
}
