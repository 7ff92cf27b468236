//! Names → addresses, with how long they are good for, and names of services (SRV, RFC 2782) → the hosts that have them. The system
//! resolves what it always did; services, and everything where name servers are configured, are asked for from here.
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;
use tokio::time::timeout;

use super::client::RESOLVE_LIMIT;
use super::{AddressPolicy, Error, Outbound};

/// Hosts of one service that are looked at.
const HOSTS_MOST: usize = 64;
/// Of one question to one server. There is time for a second one.
const QUESTION: Duration = Duration::from_secs(1);

/// Who is asked about names.
#[derive(Default)]
pub(super) struct Names {
    /// Empty: those of the system.
    servers: Vec<SocketAddr>,
    resolver: OnceLock<Option<TokioResolver>>,
}

/// An address that has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub address: SocketAddr,
    /// Its share beside those of its rank.
    pub share: u32,
    /// Zero is the first choice; another one is for when all before it have failed (RFC 2782, priority).
    pub rank: u32,
}

/// What a name leads to, the first choice first.
pub struct Vetted {
    pub addresses: Vec<Place>,
    /// How long the name service says that it stays so. `None`: it does not.
    pub fresh_for: Option<Duration>,
}

impl Vetted {
    pub(super) fn of(addresses: Vec<SocketAddr>, fresh_for: Option<Duration>) -> Self {
        let place = |address| Place { address, share: 1, rank: 0 };
        Self { addresses: addresses.into_iter().map(place).collect(), fresh_for }
    }
}

type Found<T> = Result<(Vec<T>, Option<Duration>), &'static str>;

/// A host that has a service.
struct Host {
    priority: u16,
    weight: u16,
    port: u16,
    name: String,
}

// === impl Names ===

impl Names {
    pub(super) fn of(servers: Vec<SocketAddr>) -> Self {
        Self { servers, resolver: OnceLock::new() }
    }

    pub(super) async fn addresses(&self, name: &str, port: u16) -> Found<SocketAddr> {
        match timeout(RESOLVE_LIMIT, self.look_up(name, port)).await {
            Ok(found) => found,
            Err(_) => Err("name resolution timed out"),
        }
    }

    async fn look_up(&self, name: &str, port: u16) -> Found<SocketAddr> {
        if self.servers.is_empty() {
            let found = tokio::net::lookup_host((name, port)).await.map_err(|_| UNRESOLVED)?;
            return Ok((found.collect(), None));
        }
        let found = self.resolver()?.lookup_ip(absolute(name)).await.map_err(|_| UNRESOLVED)?;
        Ok((found.iter().map(|ip| (ip, port).into()).collect(), fresh_for(found.as_lookup())))
    }

    /// The hosts of a service, those to be preferred first.
    async fn hosts(&self, service: &str) -> Found<Host> {
        let asked = self.resolver()?;
        let found = timeout(RESOLVE_LIMIT, asked.srv_lookup(absolute(service))).await;
        let found = found.map_err(|_| "name resolution timed out")?.map_err(|_| UNRESOLVED)?;
        let hosts = found.answers().iter().filter_map(|record| match &record.data {
            RData::SRV(srv) => Some(Host {
                priority: srv.priority,
                weight: srv.weight,
                port: srv.port,
                name: srv.target.to_ascii().trim_end_matches('.').to_owned(),
            }),
            _ => None,
        });
        // A dot alone says that there is no such service (RFC 2782).
        let mut hosts: Vec<Host> = hosts.filter(|host| !host.name.is_empty() && host.port != 0).collect();
        hosts.sort_by_key(|host| host.priority);
        hosts.truncate(HOSTS_MOST);
        Ok((hosts, fresh_for(&found)))
    }

    fn resolver(&self) -> Result<&TokioResolver, &'static str> {
        let resolver = self.resolver.get_or_init(|| {
            let built = match self.servers.as_slice() {
                [] => TokioResolver::builder_tokio(),
                servers => Ok(TokioResolver::builder_with_config(
                    configured(servers),
                    TokioRuntimeProvider::default(),
                )),
            };
            let built = built.and_then(|builder| builder.with_options(options()).build());
            built.inspect_err(|error| tracing::error!(%error, "names cannot be asked about")).ok()
        });
        resolver.as_ref().ok_or("no name server is known")
    }
}

const UNRESOLVED: &str = "name does not resolve";

fn configured(servers: &[SocketAddr]) -> ResolverConfig {
    let servers = servers.iter().map(|server| {
        let at = |mut connection: ConnectionConfig| {
            connection.port = server.port();
            connection
        };
        let connections = vec![at(ConnectionConfig::udp()), at(ConnectionConfig::tcp())];
        NameServerConfig::new(server.ip(), true, connections)
    });
    ResolverConfig::from_name_servers(servers.collect())
}

/// Nothing is kept there: what is known of a name, and for how long, is known to whoever asked.
fn options() -> ResolverOpts {
    let mut options = ResolverOpts::default();
    options.timeout = QUESTION;
    options.attempts = 1;
    options.cache_size = 0;
    options
}

/// Nothing is put behind it.
fn absolute(name: &str) -> String {
    format!("{}.", name.trim_end_matches('.'))
}

fn fresh_for(found: &Lookup) -> Option<Duration> {
    found.answers().iter().map(|record| Duration::from_secs(record.ttl.into())).min()
}

impl Outbound {
    /// As [`Outbound::vet`], of the hosts that have a service, as far as they have addresses. A host that may not be reached is an
    /// attack or a mistake here as well. The permission to be at private addresses is the service's.
    pub async fn vet_service(&self, service: &str, policy: &AddressPolicy) -> Result<Vetted, Error> {
        let target = || service.to_owned();
        let not_sent = |reason: &str| Error::NotSent { target: target(), reason: reason.into() };
        let private = policy.allows_private(service);
        let (hosts, mut fresh_for) = self.names().hosts(service).await.map_err(not_sent)?;
        let mut addresses: Vec<Place> = Vec::new();
        for (rank, equals) in (0..).zip(hosts.chunk_by(|one, other| one.priority == other.priority)) {
            for host in equals {
                let Ok((found, fresh)) = self.names().addresses(&host.name, host.port).await else {
                    continue;
                };
                fresh_for = fresh_for.into_iter().chain(fresh).min();
                let share = u32::from(host.weight).max(1);
                let found = self.judge(found, private, target)?;
                addresses.extend(found.into_iter().map(|address| Place { address, share, rank }));
            }
        }
        match addresses.is_empty() {
            true => Err(not_sent("no host has the service")),
            false => Ok(Vetted { addresses, fresh_for }),
        }
    }
}
