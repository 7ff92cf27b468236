//! The addresses behind an upstream. Its URL says who it is: resource, discovery, scheme, host header, path. They only say where
//! that is to be found.

use std::net::IpAddr;
use std::time::Duration;

use super::checked::{Checker, has_dot_segment};
use super::file;
use super::report::Key;
use super::route::hosts;
use super::server::is_host;
use crate::outbound::{Class, classify};

pub use super::file::{Balance, BalanceOn};

/// Addresses behind an upstream, and how they share its requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// At least one; no two the same.
    pub peers: Vec<Peer>,
    pub balance: Balance,
    pub balance_on: BalanceOn,
    /// `None`: only what becomes of requests says how they are.
    pub health: Option<Health>,
    /// How long a peer that has come back takes until it bears its whole share. Zero: no time.
    pub slow_start: Duration,
    /// How long one that was taken out still has the sessions begun there.
    pub drain: Duration,
}

/// Where an upstream is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Lower case, IPv6 without brackets.
    pub host: String,
    /// Zero: `host` is the name of a service (SRV), whose hosts have ports.
    pub port: u16,
    /// 1 to 100.
    pub weight: u32,
}

/// How peers are asked whether they are well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    pub probe: Probe,
    pub interval: Duration,
    pub timeout: Duration,
    /// Good answers in a row; at least one.
    pub healthy: u32,
    /// Bad ones in a row; at least one.
    pub unhealthy: u32,
}

/// What they are asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// A GET of this path and query.
    Http(String),
    Tcp,
    Mcp,
}

const PEERS_MAX: usize = 64;
const WEIGHT_MAX: u32 = 100;
const STREAK_MAX: u32 = 100;
const LEAST: Duration = Duration::from_millis(100);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const EXAMPLE: &str = "write host and port alone, like 10.0.0.11:8080 or [fd00::11]:8080; scheme, host header and path are those of `url`";

/// `allow_private`: that the upstream may be at private addresses; `allowed`: hosts of peers that may besides.
pub(super) fn check(
    check: &mut Checker<'_>,
    key: &Key,
    written: &file::Upstream,
    allow_private: bool,
    allowed: &[String],
) -> Option<Pool> {
    let peers_key = key.child("peers");
    let Some(entries) = &written.peers else {
        let alone = [
            ("balance", written.balance.is_some()),
            ("balance_on", written.balance_on.is_some()),
            ("health", written.health.is_some()),
            ("slow_start", written.slow_start.is_some()),
            ("drain", written.drain.is_some()),
        ];
        for (name, _) in alone.into_iter().filter(|(_, is_written)| *is_written) {
            let write = "write `peers` too, or leave it out";
            check.refuse(&key.child(name), "says something of peers, and there are none", write);
        }
        return None;
    };
    if entries.is_empty() || entries.len() > PEERS_MAX {
        let write =
            format!("write 1 to {PEERS_MAX} addresses, or leave `peers` out: then it is where `url` says");
        check.refuse(&peers_key, "has none or too many", write);
    }
    let mut peers: Vec<Peer> = Vec::with_capacity(entries.len());
    for (index, entry) in entries.iter().enumerate() {
        let key = peers_key.item(index);
        let Some(peer) = peer(check, &key, entry, allow_private, allowed) else { continue };
        match peers.iter().position(|other| (&other.host, other.port) == (&peer.host, peer.port)) {
            Some(_) => check.refuse(&key, "stands here twice", "leave one out, or give it a `weight`"),
            None => peers.push(peer),
        }
    }
    let balance = written.balance.unwrap_or(Balance::RoundRobin);
    if written.balance_on.is_some() && balance != Balance::Consistent {
        let write = "write `balance: consistent`, or leave it out";
        check.refuse(&key.child("balance_on"), "belongs to `balance: consistent`", write);
    }
    Some(Pool {
        peers,
        balance,
        balance_on: written.balance_on.unwrap_or(BalanceOn::Caller),
        health: written.health.as_ref().and_then(|health| self::health(check, &key.child("health"), health)),
        slow_start: check.duration(
            &key.child("slow_start"),
            written.slow_start.as_deref(),
            Duration::ZERO,
            Duration::ZERO,
            HOUR,
        ),
        drain: check.duration(
            &key.child("drain"),
            written.drain.as_deref(),
            Duration::from_secs(600),
            Duration::ZERO,
            DAY,
        ),
    })
}

impl Pool {
    /// One peer, with what is usual.
    pub(super) fn of(peer: Peer) -> Self {
        Self {
            peers: vec![peer],
            balance: Balance::RoundRobin,
            balance_on: BalanceOn::Source,
            health: None,
            slow_start: Duration::ZERO,
            drain: Duration::ZERO,
        }
    }
}

pub(super) fn peer(
    check: &mut Checker<'_>,
    key: &Key,
    entry: &file::Peer,
    allow_private: bool,
    allowed: &[String],
) -> Option<Peer> {
    let (text, weight) = match entry {
        file::Peer::Plain(text) => (text, 1),
        file::Peer::Weighted(peer) => (&peer.address, peer.weight.unwrap_or(1)),
    };
    if !(1..=WEIGHT_MAX).contains(&weight) {
        check.refuse(&key.child("weight"), "is out of range", format!("write 1 to {WEIGHT_MAX}"));
    }
    if let Some(name) = text.strip_prefix("srv:") {
        let host = name.to_ascii_lowercase();
        let is_service =
            host.starts_with('_') && host.contains("._") && !host.contains([':', '[']) && is_host(&host);
        if !is_service {
            let write =
                "write srv: and the name, like srv:_mcp._tcp.example.com; the ports are those of its hosts";
            check.refuse(key, "is no name of a service", write);
            return None;
        }
        return Some(Peer { host, port: 0, weight });
    }
    let what = match () {
        () if text.contains("://") => Some("is a URL and no address"),
        () if text.contains('/') => Some("has a path"),
        () if text.contains('@') => Some("has a user"),
        () if text.contains(['?', '#']) => Some("has a query or fragment"),
        () => None,
    };
    if let Some(what) = what {
        check.refuse(key, what, EXAMPLE);
        return None;
    }
    let parts = text.rsplit_once(':').filter(|(host, _)| !host.contains(':') || host.ends_with(']'));
    let digits = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let port = parts.and_then(|(_, port)| port.parse().ok().filter(|number| *number != 0 && digits(port)));
    let (Some((host, _)), Some(port)) = (parts, port) else {
        check.refuse(key, "has no port", EXAMPLE);
        return None;
    };
    let lower = host.to_ascii_lowercase();
    if !is_host(&lower) {
        check.refuse(key, "is not a host with a port", EXAMPLE);
        return None;
    }
    let host = hosts(check, key, Some(&[lower])).pop()?;
    let is_allowed = allow_private || allowed.contains(&host);
    if !is_allowed && host.parse::<IpAddr>().is_ok_and(|address| classify(address) != Class::Public) {
        let write =
            "add `allow_private: true`, or the host of the peer to `allow_hosts`, where that is meant";
        check.refuse(key, "is not a public address", write);
        return None;
    }
    Some(Peer { host, port, weight })
}

fn health(check: &mut Checker<'_>, key: &Key, written: &file::Health) -> Option<Health> {
    let path_key = key.child("path");
    let probe = match (written.kind, &written.path) {
        (file::HealthKind::Http, Some(path)) => Probe::Http(path.clone()),
        (file::HealthKind::Http, None) => {
            check.refuse(&path_key, "is missing", "write what is asked for, like /healthz");
            return None;
        }
        (file::HealthKind::Tcp | file::HealthKind::Mcp, Some(_)) => {
            check.refuse(&path_key, "belongs to `kind: http`", "leave it out");
            return None;
        }
        (file::HealthKind::Tcp, None) => Probe::Tcp,
        (file::HealthKind::Mcp, None) => Probe::Mcp,
    };
    if let Probe::Http(path) = &probe
        && (!path.starts_with('/')
            || path.contains('#')
            || has_dot_segment(path)
            || path.parse::<http::uri::PathAndQuery>().is_err())
    {
        check.refuse(&path_key, "is no path", "write one that begins with a slash, like /healthz");
    }
    let mut streak = |name: &str, written: Option<u32>, default: u32| {
        let number = written.unwrap_or(default);
        if !(1..=STREAK_MAX).contains(&number) {
            check.refuse(&key.child(name), "is out of range", format!("write 1 to {STREAK_MAX}"));
        }
        number
    };
    let (healthy, unhealthy) =
        (streak("healthy", written.healthy, 2), streak("unhealthy", written.unhealthy, 3));
    let mut duration = |name: &str, written: &Option<String>, default: u64| {
        let default = Duration::from_secs(default);
        check.duration(&key.child(name), written.as_deref(), default, LEAST, HOUR)
    };
    let interval = duration("interval", &written.interval, 5);
    let timeout = duration("timeout", &written.timeout, 2);
    Some(Health { probe, interval, timeout, healthy, unhealthy })
}
