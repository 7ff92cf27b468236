//! Several instances that are one Postern: one public URL, one store, one set of sealing keys. They listen on the same
//! port of different loopback addresses; which one a client reaches is decided by what `localhost` means to it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde_json::{Value, json};

use super::browser::Browser;
use super::client::{Client, Tokens};
use super::gateway::{Builder, Gateway, Route, restrict};
use super::mcp::McpRequest;
use super::port::Port;
use super::redis::Redis;
use super::relay::Relay;
use super::upstream::Upstream;

/// What the instances share.
pub struct Shared {
    /// Ours on every loopback address for as long as it is ours on the first.
    port: Port,
    store: Value,
    routes: Vec<Route>,
    settings: Vec<(String, Value)>,
    keys: tempfile::TempDir,
}

/// The instances.
pub struct Cluster {
    pub instances: Vec<Gateway>,
    pub shared: Shared,
}

/// A store section for one server.
pub fn store_at(address: SocketAddr) -> Value {
    json!({"kind": "redis", "urls": [format!("redis://{address}")], "prefix": "test:"})
}

pub fn address_of(redis: &Redis) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, redis.port).into()
}

impl Shared {
    pub fn new(store: Value, routes: Vec<Route>) -> Self {
        let keys = tempfile::tempdir().expect("temporary directory");
        let this = Shared { port: Port::take(), store, routes, settings: Vec::new(), keys };
        this.make_key("k1", 1);
        this
    }

    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.settings.push((key.to_owned(), value));
        self
    }

    /// A sealing key in a file of its own; the entry for `sealing_keys`.
    pub fn make_key(&self, id: &str, seed: u8) -> Value {
        let bytes: [u8; 32] = std::array::from_fn(|index| (index as u8).wrapping_mul(7).wrapping_add(seed));
        let file: PathBuf = self.keys.path().join(format!("{id}.key"));
        std::fs::write(&file, data_encoding::BASE64.encode(&bytes)).expect("key file");
        restrict(&file);
        json!({"id": id, "file": file})
    }

    /// The instance of this number, not started yet. `store`: it reaches the store in a way of its own.
    pub fn instance(&self, number: usize, store: Option<Value>) -> Builder {
        let address = Ipv4Addr::new(127, 0, 0, u8::try_from(number + 1).expect("few"));
        let mut builder = Gateway::builder()
            .one_of_many((address, self.port.address().port()).into())
            .with("server.access_log", json!("off"))
            .with("store", store.unwrap_or_else(|| self.store.clone()))
            .with("sealing_keys", json!([self.make_key("k1", 1)]));
        for (key, value) in &self.settings {
            builder = builder.with(key, value.clone());
        }
        for route in &self.routes {
            builder = builder.route(route.clone());
        }
        builder
    }
}

impl Cluster {
    /// So many instances on one Redis, with one OAuth route `demo`.
    pub async fn start(count: usize, redis: &Redis, upstream: &Upstream) -> Self {
        Self::of(count, Shared::new(store_at(address_of(redis)), vec![Route::oauth("demo", upstream)])).await
    }

    pub async fn of(count: usize, shared: Shared) -> Self {
        let mut instances = Vec::new();
        for number in 0..count {
            instances.push(shared.instance(number, None).start().await);
        }
        Cluster { instances, shared }
    }

    /// As [`Cluster::start`], each instance behind a relay of its own to the store.
    pub async fn behind_relays(count: usize, redis: &Redis, upstream: &Upstream) -> (Self, Vec<Relay>) {
        let address = address_of(redis);
        let shared = Shared::new(store_at(address), vec![Route::oauth("demo", upstream)]);
        let (mut instances, mut relays) = (Vec::new(), Vec::new());
        for number in 0..count {
            let relay = Relay::to(address).await;
            instances.push(shared.instance(number, Some(store_at(relay.address))).start().await);
            relays.push(relay);
        }
        (Cluster { instances, shared }, relays)
    }

    /// Alice signs in through this instance and connects.
    pub async fn sign_in(&self, instance: usize) -> (Client, Tokens) {
        self.sign_in_as("alice", instance).await
    }

    pub async fn sign_in_as(&self, user: &str, instance: usize) -> (Client, Tokens) {
        self.sign_in_at(user, "demo", instance).await
    }

    /// Alice signs in to the route at this path.
    pub async fn sign_in_to(&self, path: &str, instance: usize) -> (Client, Tokens) {
        self.sign_in_at("alice", path, instance).await
    }

    async fn sign_in_at(&self, user: &str, path: &str, instance: usize) -> (Client, Tokens) {
        let gateway = &self.instances[instance];
        let client = Client::register(gateway).await;
        let mut browser = Browser::of(user).through(gateway);
        let tokens = client.sign_in(&mut browser, path).await;
        (client, tokens)
    }

    /// The same client, which from now on reaches this instance.
    pub fn client_at(&self, instance: usize, client: &Client) -> Client {
        client.through(&self.instances[instance])
    }

    /// An MCP call at this instance.
    pub fn call(&self, instance: usize, tokens: &Tokens) -> McpRequest {
        self.instances[instance].mcp("demo").bearer(&tokens.access_token)
    }

    /// What all instances have printed.
    pub fn logs(&self) -> Vec<Value> {
        self.instances.iter().flat_map(|instance| instance.output.records()).collect()
    }
}
