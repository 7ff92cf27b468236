//! The rig under the integration tests: scripted upstreams, the built program, a browser and a client.
//!
//! Everything talks over real sockets on ports the kernel picks. Nothing sleeps for a fixed time: tests wait
//! for a condition with a deadline (`eventually`) or hold a [`gate::Gate`] that they open themselves.
//! Every secret made here starts with [`CANARY`], so that one search over the logs proves that none leaked.
#![allow(dead_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod answers;
pub mod authorization_server;
pub mod aws;
pub mod body;
pub mod browser;
pub mod checker;
pub mod cimd;
pub mod client;
pub mod cluster;
pub mod cookies;
pub mod gate;
pub mod gateway;
pub mod h2_client;
pub mod h2_server;
pub mod html;
pub mod identity;
pub mod internet;
pub mod key;
pub mod ledger;
pub mod machine;
pub mod managed;
pub mod mcp;
pub mod mcp_server;
pub mod node;
pub mod page;
pub mod params;
pub mod port;
pub mod process;
pub mod raw;
pub mod received;
pub mod recorder;
pub mod redis;
pub mod relay;
pub mod script;
pub mod server;
pub mod service;
pub mod tls_server;
pub mod token_endpoint;
pub mod upstream;
pub mod wrk;

use std::future::Future;
use std::net::SocketAddr;
use std::panic::Location;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ring::rand::SecureRandom;

/// How every secret of the rig begins.
pub const CANARY: &str = "CANARY_";

/// Long enough for a slow machine, short enough that a hang fails the test soon.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Waits until `condition` holds; panics at the caller's line when `deadline` has passed.
#[track_caller]
pub fn eventually<F, A>(deadline: Duration, mut condition: F) -> impl Future<Output = ()>
where
    F: FnMut() -> A,
    A: Future<Output = bool>,
{
    eventually_some(deadline, move || {
        let holds = condition();
        async move { holds.await.then_some(()) }
    })
}

/// Waits until `condition` yields a value; panics at the caller's line when `deadline` has passed.
#[track_caller]
pub fn eventually_some<F, A, T>(deadline: Duration, mut condition: F) -> impl Future<Output = T>
where
    F: FnMut() -> A,
    A: Future<Output = Option<T>>,
{
    let caller = Location::caller();
    async move {
        let end = Instant::now() + deadline;
        loop {
            if let Some(value) = condition().await {
                return value;
            }
            assert!(Instant::now() < end, "{caller}: still not so after {deadline:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Awaits `future`, but no longer than `deadline`; panics at the caller's line.
#[track_caller]
pub fn within<T>(deadline: Duration, future: impl Future<Output = T>) -> impl Future<Output = T> {
    let caller = Location::caller();
    async move {
        match tokio::time::timeout(deadline, future).await {
            Ok(value) => value,
            Err(_) => panic!("{caller}: not done after {deadline:?}"),
        }
    }
}

/// `length` random bytes in hexadecimal.
pub fn random_hex(length: usize) -> String {
    let mut bytes = vec![0; length];
    ring::rand::SystemRandom::new().fill(&mut bytes).expect("randomness");
    data_encoding::HEXLOWER.encode(&bytes)
}

/// A fresh secret that a search for [`CANARY`] finds: `CANARY_{kind}_{random}`.
pub fn secret(kind: &str) -> String {
    format!("{CANARY}{kind}_{}", random_hex(12))
}

/// An HTTP client that follows no redirect, uses no proxy and trusts only `roots`.
pub fn http_client(roots: &[reqwest::Certificate]) -> reqwest::Client {
    http_builder(roots).build().expect("http client")
}

/// The same, to which the name `localhost` means this address.
pub fn http_client_to(address: SocketAddr) -> reqwest::Client {
    http_builder(&[]).resolve("localhost", address).build().expect("http client")
}

fn http_builder(roots: &[reqwest::Certificate]) -> reqwest::ClientBuilder {
    // Another test of this binary may have installed the provider already; that is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .tls_certs_only(roots.iter().cloned())
        .timeout(Duration::from_secs(60))
}

/// A lock that does not care about a test that panicked while it held it.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
