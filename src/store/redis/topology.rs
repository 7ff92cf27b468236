//! From the configuration to connections: one server, the primary that Sentinels name, or a Cluster.
use std::time::Duration;

use ::redis::aio::PubSub;
use ::redis::cluster::{ClusterClient, ClusterClientBuilder};
use ::redis::io::tcp::TcpSettings;
use ::redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use ::redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo,
    RedisConnectionInfo, RedisError, TlsCertificates, TlsMode,
};
use secrecy::ExposeSecret;
use tokio::sync::Mutex;

use super::connection::Connection;
use crate::config::{Address, Redis, Topology};

/// A server that does not take a connection in this time is as good as gone.
const CONNECT: Duration = Duration::from_secs(1);
/// After that, nobody knows whether a command was carried out.
pub const ANSWER: Duration = Duration::from_millis(1500);

/// Where to connect to.
pub enum Target {
    Standalone(Box<Client>),
    Sentinel(Box<Mutex<SentinelClient>>),
    /// The clients lead to single nodes, for subscriptions.
    Cluster(Box<ClusterClient>, Vec<Client>),
}

impl Target {
    pub fn new(config: &Redis) -> Result<Self, RedisError> {
        Ok(match &config.topology {
            Topology::Standalone => {
                Self::Standalone(Box::new(clients(config)?.into_iter().next().ok_or_else(nowhere)?))
            }
            Topology::Sentinel { master } => Self::Sentinel(Box::new(Mutex::new(sentinel(config, master)?))),
            Topology::Cluster => Self::Cluster(Box::new(cluster(config)?), clients(config)?),
        })
    }

    /// A new connection to whoever is in charge now.
    pub async fn connect(&self) -> Result<Connection, RedisError> {
        match self {
            Self::Standalone(client) => single(client).await,
            Self::Sentinel(sentinel) => single(&sentinel.lock().await.async_get_client().await?).await,
            Self::Cluster(cluster, _) => cluster.get_async_connection().await.map(Connection::Cluster),
        }
    }

    /// A connection for subscriptions. In a Cluster any node serves: what is published anywhere is heard everywhere.
    pub async fn listen(&self) -> Result<PubSub, RedisError> {
        match self {
            Self::Standalone(client) => client.get_async_pubsub().await,
            Self::Sentinel(sentinel) => {
                let client = sentinel.lock().await.async_get_client().await?;
                client.get_async_pubsub().await
            }
            Self::Cluster(_, nodes) => {
                let mut failure = nowhere();
                for node in nodes {
                    match tokio::time::timeout(CONNECT, node.get_async_pubsub()).await {
                        Ok(Ok(listening)) => return Ok(listening),
                        Ok(Err(error)) => failure = error,
                        Err(_) => {}
                    }
                }
                Err(failure)
            }
        }
    }
}

async fn single(client: &Client) -> Result<Connection, RedisError> {
    let config =
        AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(Some(ANSWER));
    client.get_multiplexed_async_connection_with_config(&config).await.map(Connection::Single)
}

fn nowhere() -> RedisError {
    RedisError::from((::redis::ErrorKind::InvalidClientConfig, "no address"))
}

/// One client per address.
fn clients(config: &Redis) -> Result<Vec<Client>, RedisError> {
    let client = |address: &Address| {
        let info = info(config, address)?;
        match certificates(config) {
            Some(certificates) => Client::build_with_tls(info, certificates),
            None => Client::open(info),
        }
    };
    config.addresses.iter().map(client).collect()
}

fn info(config: &Redis, address: &Address) -> Result<ConnectionInfo, RedisError> {
    let mut redis = RedisConnectionInfo::default().set_db(config.database);
    if let Some(username) = &config.username {
        redis = redis.set_username(username);
    }
    if let Some(password) = &config.password {
        redis = redis.set_password(password.expose_secret());
    }
    let info = connection_address(config, address).into_connection_info()?;
    Ok(info.set_redis_settings(redis).set_tcp_settings(tcp()))
}

fn connection_address(config: &Redis, address: &Address) -> ConnectionAddr {
    match address {
        Address::Unix(path) => ConnectionAddr::Unix(path.clone()),
        Address::Tcp(host, port) if config.tls => {
            ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None }
        }
        Address::Tcp(host, port) => ConnectionAddr::Tcp(host.clone(), *port),
    }
}

fn certificates(config: &Redis) -> Option<TlsCertificates> {
    config.tls.then(|| TlsCertificates {
        client_tls: config.client_certificate.as_ref().map(|client| ClientTlsConfig {
            client_cert: client.certificate.clone(),
            client_key: client.key.expose_secret().to_vec(),
        }),
        root_cert: config.authorities.clone(),
    })
}

/// Small commands, each waited for.
fn tcp() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}

fn sentinel(config: &Redis, master: &str) -> Result<SentinelClient, RedisError> {
    let addresses: Vec<_> =
        config.addresses.iter().map(|address| connection_address(config, address)).collect();
    let mut builder = SentinelClientBuilder::new(addresses, master, SentinelServerType::Master)?
        .set_client_to_redis_db(config.database)
        .set_client_to_redis_tcp_settings(tcp())
        .set_client_to_sentinel_tcp_settings(tcp());
    if let Some(certificates) = certificates(config) {
        builder = builder
            .set_client_to_redis_tls_mode(TlsMode::Secure)
            .set_client_to_sentinel_tls_mode(TlsMode::Secure)
            .set_client_to_redis_certificates(certificates.clone())
            .set_client_to_sentinel_certificates(certificates);
    }
    if let Some(username) = &config.username {
        builder = builder.set_client_to_redis_username(username);
    }
    if let Some(password) = &config.password {
        builder = builder.set_client_to_redis_password(password.expose_secret());
    }
    if let Some(username) = &config.sentinel_username {
        builder = builder.set_client_to_sentinel_username(username);
    }
    if let Some(password) = &config.sentinel_password {
        builder = builder.set_client_to_sentinel_password(password.expose_secret());
    }
    builder.build()
}

fn cluster(config: &Redis) -> Result<ClusterClient, RedisError> {
    let nodes = config.addresses.iter().map(|address| info(config, address));
    let mut builder = ClusterClientBuilder::new(nodes.collect::<Result<Vec<_>, _>>()?)
        .connection_timeout(CONNECT)
        .response_timeout(ANSWER)
        .overall_response_timeout(Some(2 * ANSWER))
        .retries(4)
        .tcp_settings(tcp());
    if let Some(certificates) = certificates(config) {
        builder = builder.tls(TlsMode::Secure).certs(certificates);
    }
    builder.build()
}
