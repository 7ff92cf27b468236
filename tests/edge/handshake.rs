//! What a client has to bring before it is heard: a version of TLS that is new enough, and a certificate where one is wanted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use reqwest::{Identity, tls};
use serde_json::{Value, json};
use support::gateway::{Gateway, Route};
use support::process::run;
use support::upstream::Upstream;
use support::{PATIENCE, eventually};

/// An authority, and certificates by it.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        Self::with(|_| ())
    }

    fn with(change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(&mut parameters);
        let pem = parameters.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(parameters, key) }
    }

    /// What a client of this name shows.
    fn client(&self, name: &str) -> Identity {
        self.client_with(name, |_| ())
    }

    fn client_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut parameters);
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        Identity::from_pem(format!("{}{}", key.serialize_pem(), certificate.pem()).as_bytes()).unwrap()
    }
}

/// A client with a connection of its own for each request, that goes on with a session where it may.
fn client(gateway: &Gateway, identity: Option<Identity>) -> reqwest::ClientBuilder {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only(gateway.roots.clone())
        .pool_max_idle_per_host(0)
        .timeout(PATIENCE);
    match identity {
        Some(identity) => client.identity(identity),
        None => client,
    }
}

/// Whether it comes in, to hear that it has no token.
async fn comes_in(gateway: &Gateway, client: &reqwest::Client) -> bool {
    match client.get(gateway.url("/demo")).send().await {
        Ok(answer) => answer.status() == 401,
        Err(_) => false,
    }
}

/// A gateway with TLS, and this beside its certificate.
async fn with_tls(upstream: &Upstream, keys: &[(&str, Value)]) -> Gateway {
    let mut gateway = Gateway::builder().tls().route(Route::open("demo", upstream)).prepare();
    for (key, value) in keys {
        gateway.reconfigure(&format!("server.{key}"), value.clone());
    }
    gateway.spawn();
    gateway.ready().await;
    gateway
}

#[tokio::test]
async fn only_who_shows_a_certificate_of_a_known_authority_comes_in_and_the_log_says_who() {
    let upstream = Upstream::open().await;
    let (ours, other) = (Authority::new(), Authority::new());
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("clients.pem");
    std::fs::write(&file, &ours.pem).unwrap();
    let old = |parameters: &mut CertificateParams| parameters.not_after = date_time_ymd(2020, 1, 1);
    let for_servers = |parameters: &mut CertificateParams| {
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    };
    for (wanted, bare_comes_in) in
        [(None, false), (Some("required"), false), (Some("optional"), true), (Some("off"), true)]
    {
        let mut keys = vec![("tls.client_ca_file", json!(file))];
        keys.extend(wanted.map(|wanted| ("tls.client_certificates", json!(wanted))));
        let gateway = with_tls(&upstream, &keys).await;
        let is_off = wanted == Some("off");
        for (identity, expected) in [
            (Some(ours.client("robot 7")), true),
            (Some(other.client("robot 7")), is_off),
            (Some(ours.client_with("robot 7", old)), is_off),
            (Some(ours.client_with("robot 7", for_servers)), is_off),
            (None, bare_comes_in),
        ] {
            for http1_only in [false, true] {
                let client = client(&gateway, identity.clone());
                let client = if http1_only { client.http1_only() } else { client }.build().unwrap();
                assert_eq!(comes_in(&gateway, &client).await, expected, "{wanted:?} {identity:?}");
            }
        }
        let shown = async || {
            let lines = gateway.output.records();
            let of = |line: &&Value| line["path"] == "/demo";
            let shown: Vec<_> =
                lines.iter().filter(of).map(|line| line["client_certificate"].clone()).collect();
            let known = shown.iter().filter(|said| **said == "CN=robot 7").count();
            let unknown = shown.iter().filter(|said| said.is_null()).count();
            (known, unknown) == if is_off { (0, 10) } else { (2, 2 * usize::from(bare_comes_in)) }
        };
        eventually(PATIENCE, shown).await;
    }
}

#[tokio::test]
async fn who_vouches_for_clients_changes_with_the_file_and_no_session_outlives_it() {
    let upstream = Upstream::open().await;
    let (ours, other) = (Authority::new(), Authority::new());
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("clients.pem");
    std::fs::write(&file, &ours.pem).unwrap();
    let keys = [("tls.client_ca_file", json!(file)), ("watch", json!(true))];
    let gateway = with_tls(&upstream, &keys).await;
    let of = |authority: &Authority| client(&gateway, Some(authority.client("robot"))).build().unwrap();
    let (first, second) = (of(&ours), of(&other));
    assert!(comes_in(&gateway, &first).await && comes_in(&gateway, &first).await);
    assert!(!comes_in(&gateway, &second).await);
    std::fs::write(&file, &other.pem).unwrap();
    eventually(PATIENCE, async || comes_in(&gateway, &second).await).await;
    assert!(!comes_in(&gateway, &first).await);
    // What is no such file changes nothing.
    std::fs::write(&file, "none").unwrap();
    gateway.output.shows("holds no readable authorities").await;
    assert!(comes_in(&gateway, &second).await);
}

#[tokio::test]
async fn the_lowest_version_of_tls_is_the_one_that_is_written() {
    let upstream = Upstream::open().await;
    for (lowest, old_comes_in) in [(None, true), (Some("1.2"), true), (Some("1.3"), false)] {
        let keys: Vec<_> = lowest.map(|lowest| ("tls.min_version", json!(lowest))).into_iter().collect();
        let gateway = with_tls(&upstream, &keys).await;
        let old = client(&gateway, None).tls_version_max(tls::Version::TLS_1_2).build().unwrap();
        let new = client(&gateway, None).tls_version_min(tls::Version::TLS_1_3).build().unwrap();
        assert_eq!(comes_in(&gateway, &old).await, old_comes_in, "{lowest:?}");
        assert!(comes_in(&gateway, &new).await);
        if lowest == Some("1.2") {
            gateway.reconfigure("server.tls.min_version", json!("1.3"));
            gateway.hang_up();
            eventually(PATIENCE, async || !comes_in(&gateway, &old).await).await;
            assert!(comes_in(&gateway, &new).await);
        }
    }
}

#[tokio::test]
async fn when_certificates_end_is_seen_and_said_and_what_is_used_no_more_is_forgotten() {
    let upstream = Upstream::open().await;
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("clients.pem");
    let since = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap().as_secs();
    let end = since(SystemTime::now()) + 9 * 24 * 60 * 60;
    let authority = Authority::with(|parameters| {
        parameters.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(end);
    });
    std::fs::write(&file, &authority.pem).unwrap();
    let gateway = with_tls(&upstream, &[("tls.client_ca_file", json!(file))]).await;
    let directory = gateway.config_file().parent().unwrap().to_owned();
    let shown = async || {
        let text = gateway.http.get(gateway.admin("/metrics")).send().await.unwrap().text().await.unwrap();
        let series = "postern_certificate_expiry_timestamp_seconds{file=";
        text.lines().filter_map(|line| line.strip_prefix(series)).map(str::to_owned).collect::<Vec<_>>()
    };
    let line = |name: &Path, purpose: &str, end: u64| format!("{name:?},use=\"{purpose}\"}} {end}");
    // rcgen's own certificates are for ever.
    let served = directory.join("tls.crt");
    let at_first = shown().await;
    assert!(at_first.len() == 2 && at_first.contains(&line(&file, "client_ca", end)), "{at_first:?}");
    let ever = line(&served, "server", since(SystemTime::from(date_time_ymd(4096, 1, 1))));
    assert!(at_first.contains(&ever), "{at_first:?}");
    let warning = format!("a certificate of {} ends within 14 days: ", file.display());
    gateway.output.shows(&warning).await;
    let said = || gateway.output.text().matches(&warning).count();
    assert_eq!(said(), 1);
    let validated = run(&["validate", "--config", gateway.config_file().to_str().unwrap()], &[]).await;
    assert_eq!(validated.code, Some(0));
    assert!(
        validated.stderr.contains(&warning) && validated.stderr.starts_with("warning: "),
        "{}",
        validated.stderr
    );

    let over = date_time_ymd(2020, 1, 1);
    let old = Authority::with(|parameters| parameters.not_after = over);
    std::fs::write(&file, &old.pem).unwrap();
    gateway.hang_up();
    let ended = line(&file, "client_ca", since(SystemTime::from(over)));
    eventually(PATIENCE, async || shown().await.contains(&ended)).await;
    gateway.output.shows(&format!("a certificate of {} has ended: 2020-01-01", file.display())).await;
    // As the guide says.
    let theirs = client(&gateway, Some(old.client("robot"))).build().unwrap();
    assert!(comes_in(&gateway, &theirs).await);
    gateway.reconfigure("server.tls.client_certificates", json!("off"));
    gateway.hang_up();
    eventually(PATIENCE, async || shown().await == [ever.clone()]).await;
    assert_eq!(said(), 1);
}
