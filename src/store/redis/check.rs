//! Whether a Redis is fit to hold what must not get lost.
use std::collections::HashMap;

use ::redis::cluster_routing::{MultipleNodeRoutingInfo, ResponsePolicy, RoutingInfo};
use ::redis::{ErrorKind, FromRedisValue, RedisError, ServerErrorKind, Value, cmd};

use super::connection::Connection;
use super::topology::Target;

/// Why a server is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nobody is there, or not for us just now.
    #[error("{0}")]
    Unreachable(String),
    #[error("the server refuses the user name or password; check store.username and store.password")]
    Credentials,
    #[error("the user may not run {0}; give it the ACL line in conf/postern.yaml")]
    Permission(String),
    #[error(
        "maxmemory-policy is {0}, which throws grants away when memory runs short; set it to noeviction or to a volatile-ttl policy of a database of its own"
    )]
    Eviction(String),
    #[error("the server is a replica; name its primary in store.urls, or use topology: sentinel")]
    Replica,
    #[error("the server is version {0}; Redis 6.2 or newer, or Valkey, is needed")]
    Version(String),
    #[error("the server is part of a cluster; write topology: cluster")]
    Cluster,
}

impl Refusal {
    /// Whether only a person can change it.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Unreachable(_) | Self::Replica)
    }
}

/// A connection to a server that is fit.
pub async fn connect(target: &Target) -> Result<Connection, Refusal> {
    let mut connection = target.connect().await.map_err(|error| refusal(&error))?;
    for text in info(&mut connection).await.map_err(|error| refusal(&error))? {
        let fields: HashMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name, value.trim()))
            .collect();
        let clustered = fields.get("cluster_enabled") == Some(&"1");
        if clustered && matches!(connection, Connection::Single(_)) {
            return Err(Refusal::Cluster);
        }
        fit(&fields)?;
    }
    Ok(connection)
}

/// What each primary says of itself.
async fn info(connection: &mut Connection) -> Result<Vec<String>, RedisError> {
    match connection {
        Connection::Single(single) => {
            // In one round trip: the way to the server may be long.
            Ok(vec![cmd("INFO").query_async::<String>(single).await?])
        }
        Connection::Cluster(cluster) => {
            let everywhere =
                RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None::<ResponsePolicy>));
            let answer: Value = cluster.route_command(cmd("INFO"), everywhere).await?;
            let texts: HashMap<String, String> =
                FromRedisValue::from_redis_value(answer).map_err(RedisError::from)?;
            Ok(texts.into_values().collect())
        }
    }
}

fn fit(fields: &HashMap<&str, &str>) -> Result<(), Refusal> {
    // A Valkey says which Redis it is like.
    if let Some(version) = fields.get("redis_version") {
        let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        if (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) < (6, 2) {
            return Err(Refusal::Version((*version).to_owned()));
        }
    }
    if fields.get("role") == Some(&"slave") {
        return Err(Refusal::Replica);
    }
    match fields.get("maxmemory_policy") {
        Some(policy) if policy.starts_with("allkeys-") => Err(Refusal::Eviction((*policy).to_owned())),
        _ => Ok(()),
    }
}

fn refusal(error: &RedisError) -> Refusal {
    match error.kind() {
        ErrorKind::AuthenticationFailed => Refusal::Credentials,
        ErrorKind::Server(ServerErrorKind::NoPerm) => Refusal::Permission("what it has to".to_owned()),
        _ if matches!(error.code(), Some("WRONGPASS" | "NOAUTH")) => Refusal::Credentials,
        _ => Refusal::Unreachable(text(error)),
    }
}

/// A failure in one line, without what was sent.
pub fn text(error: &RedisError) -> String {
    let what = match error.code() {
        Some(code) => code.to_owned(),
        // Of the connection, not of a command.
        None if error.is_io_error() => error.to_string().lines().next().unwrap_or_default().to_owned(),
        None => error.category().to_owned(),
    };
    if error.is_timeout() { format!("{what}: no answer in time, it may have been carried out") } else { what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_loses_grants_is_refused() {
        let fit = |pairs: &[(&'static str, &'static str)]| fit(&pairs.iter().copied().collect());
        assert_eq!(
            fit(&[("redis_version", "7.0.15"), ("maxmemory_policy", "noeviction"), ("role", "master")]),
            Ok(())
        );
        for policy in ["allkeys-lru", "allkeys-lfu", "allkeys-random"] {
            assert_eq!(fit(&[("maxmemory_policy", policy)]), Err(Refusal::Eviction(policy.to_owned())));
        }
        assert_eq!(fit(&[("role", "slave")]), Err(Refusal::Replica));
        for (version, old) in [("6.0.16", true), ("6.2.0", false), ("10.1.0", false), ("5.9.9", true)] {
            assert_eq!(fit(&[("redis_version", version)]).is_err(), old, "{version}");
        }
    }
}
