//! Routes of bytes (`kind: tcp`): both directions to their ends, who may connect and how many, which peer, how long, and what becomes
//! of a connection when the process stops, is replaced or reads its configuration again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};
use support::gateway::{Gateway, Route};
use support::process::run;
use support::raw::RawConnection;
use support::upstream::Upstream;
use support::{PATIENCE, eventually, eventually_some};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Says everything again, and good-bye when its client has said all.
struct Peer {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Peer {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (accepted, open) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let counts = (Arc::clone(&accepted), Arc::clone(&open));
        let accepting = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (accepted, open) = counts.clone();
                accepted.fetch_add(1, Ordering::SeqCst);
                open.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let said = async {
                        let mut bytes = vec![0; 65536];
                        while let length @ 1.. = stream.read(&mut bytes).await? {
                            stream.write_all(&bytes[..length]).await?;
                        }
                        stream.write_all(b"bye").await
                    };
                    let _ = said.await;
                    drop(stream);
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, accepted, open, accepting }
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn route(peers: &[&Peer], settings: Value) -> Route {
    let addresses: Vec<_> = peers.iter().map(|peer| peer.address.to_string()).collect();
    let url =
        format!("tcp://{}", peers.first().map_or("db.test:5432".to_owned(), |peer| peer.address.to_string()));
    let route = Route::to("db", &url, json!(null))
        .without("path")
        .without("credential")
        .with("kind", json!("tcp"))
        .with("listen", json!("127.0.0.1:0"))
        .with("tcp", settings);
    if peers.len() == 1 { route } else { route.with("upstream.peers", json!(addresses)) }
}

/// Where the route listens.
fn at(gateway: &Gateway) -> SocketAddr {
    let is_it =
        |line: &Value| line["message"] == "listening" && line["listener"] == "tcp" && line["route"] == "db";
    let line = gateway.output.records().into_iter().find(is_it).expect("the line of the listener");
    line["address"].as_str().unwrap().parse().unwrap()
}

async fn said(connection: &mut RawConnection, text: &str) -> bool {
    connection.send(text).await;
    connection.exactly(text.len(), PATIENCE).await.is_some_and(|heard| heard == text.as_bytes())
}

/// The lines of connections that have ended.
fn lines(gateway: &Gateway) -> Vec<Value> {
    gateway.output.records().into_iter().filter(|line| line["kind"] == "tcp").collect()
}

async fn ended(gateway: &Gateway, reason: &str) -> Value {
    eventually_some(PATIENCE, || async { lines(gateway).into_iter().find(|line| line["reason"] == reason) })
        .await
}

async fn metrics(gateway: &Gateway) -> String {
    gateway.http.get(gateway.admin("/metrics")).send().await.unwrap().text().await.unwrap()
}

#[tokio::test]
async fn bytes_go_both_ways_and_who_has_said_all_may_still_listen() {
    let peer = Peer::start().await;
    let gateway = Gateway::builder().route(route(&[&peer], json!({}))).start().await;
    let mut connection = RawConnection::open(at(&gateway)).await;
    let text: String = (0..1_000_000).map(|at| char::from(b'a' + (at % 26) as u8)).collect();
    for piece in text.as_bytes().chunks(50_000) {
        connection.send(piece).await;
        assert_eq!(connection.exactly(piece.len(), PATIENCE).await.as_deref(), Some(piece));
    }
    assert!(metrics(&gateway).await.contains("postern_tcp_connections{route=\"db\"} 1"));
    connection.finish_sending().await;
    assert_eq!(connection.until_closed(PATIENCE).await, b"bye");
    let line = ended(&gateway, "ok").await;
    assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&json!(1_000_000), &json!(1_000_003)));
    assert_eq!(
        (&line["client_ip"], &line["upstream"]),
        (&json!("127.0.0.1"), &json!(peer.address.to_string()))
    );
    let text = metrics(&gateway).await;
    for line in [
        "postern_tcp_connections{route=\"db\"} 0",
        "postern_tcp_connections_total{reason=\"ok\",route=\"db\"} 1",
        "postern_tcp_bytes_total{direction=\"in\",route=\"db\"} 1000000",
        "postern_tcp_bytes_total{direction=\"out\",route=\"db\"} 1000003",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    // It is no request, and no route of requests.
    let answer = gateway.http.get(gateway.url("/db")).send().await.unwrap();
    assert_eq!(answer.status(), 404);
}

#[tokio::test]
async fn a_client_that_breaks_off_takes_its_peer_along() {
    let peer = Peer::start().await;
    let gateway = Gateway::builder().route(route(&[&peer], json!({}))).start().await;
    let mut connection = RawConnection::open(at(&gateway)).await;
    assert!(said(&mut connection, "hello").await);
    drop(connection);
    eventually(PATIENCE, || async { peer.open() == 0 && !lines(&gateway).is_empty() }).await;
}

#[tokio::test]
async fn who_is_not_let_in_reaches_nobody() {
    let peer = Peer::start().await;
    let only = json!({"allow_from": ["10.0.0.0/8", "fd00::/8", "127.0.0.2"]});
    let gateway = Gateway::builder().route(route(&[&peer], only)).start().await;
    let mut connection = RawConnection::open(at(&gateway)).await;
    connection.send("hello").await;
    assert_eq!(connection.until_closed(PATIENCE).await, b"");
    assert_eq!(
        (ended(&gateway, "not_allowed").await["client_ip"].clone(), peer.accepted()),
        (json!("127.0.0.1"), 0)
    );
    // From the next connection on the rule is another.
    gateway
        .reconfigure("routes", json!([route(&[&peer], json!({"allow_from": ["127.0.0.0/8"]})).document()]));
    gateway.hang_up();
    eventually(PATIENCE, || async { said(&mut RawConnection::open(at(&gateway)).await, "hello").await })
        .await;
}

#[tokio::test]
async fn no_more_are_open_than_there_is_room_for() {
    let peer = Peer::start().await;
    let gateway = Gateway::builder().route(route(&[&peer], json!({"connections": 2}))).start().await;
    let (mut first, mut second) =
        (RawConnection::open(at(&gateway)).await, RawConnection::open(at(&gateway)).await);
    assert!(said(&mut first, "a").await && said(&mut second, "b").await);
    let mut third = RawConnection::open(at(&gateway)).await;
    assert_eq!(third.until_closed(PATIENCE).await, b"");
    ended(&gateway, "too_many_connections").await;
    assert!(said(&mut second, "still").await);
    drop(first);
    eventually(PATIENCE, || async { said(&mut RawConnection::open(at(&gateway)).await, "c").await }).await;
}

#[tokio::test]
async fn a_connection_on_which_nothing_is_said_ends() {
    let peer = Peer::start().await;
    let gateway = Gateway::builder().route(route(&[&peer], json!({"idle_timeout": "400ms"}))).start().await;
    let mut connection = RawConnection::open(at(&gateway)).await;
    let until = Instant::now() + Duration::from_millis(1200);
    while Instant::now() < until {
        assert!(said(&mut connection, "tick").await);
        tokio::task::yield_now().await;
    }
    connection.closed(PATIENCE).await;
    ended(&gateway, "idle").await;
    eventually(PATIENCE, || async { peer.open() == 0 }).await;
}

#[tokio::test]
async fn peers_share_connections_and_one_that_is_gone_is_passed_over() {
    let peers = [Peer::start().await, Peer::start().await, Peer::start().await];
    let all: Vec<_> = peers.iter().collect();
    let route = route(&all, json!({})).with("upstream.health", json!({"kind": "tcp", "interval": "10s"}));
    let gateway = Gateway::builder().route(route).start().await;
    let checked = |peer: &Peer| peer.accepted();
    eventually(PATIENCE, || async { peers.iter().all(|peer| checked(peer) == 1) }).await;
    for _ in 0..9 {
        assert!(said(&mut RawConnection::open(at(&gateway)).await, "hello").await);
    }
    assert_eq!(peers.iter().map(checked).collect::<Vec<_>>(), [4, 4, 4], "a check, and three of nine");
    peers[0].accepting.abort();
    eventually(PATIENCE, || async { tokio::net::TcpStream::connect(peers[0].address).await.is_err() }).await;
    for _ in 0..6 {
        assert!(said(&mut RawConnection::open(at(&gateway)).await, "hello").await);
    }
    assert!(metrics(&gateway).await.contains("kind=\"connect\""));
}

#[tokio::test]
async fn consistent_peers_go_by_the_address_of_the_client() {
    let peers = [Peer::start().await, Peer::start().await, Peer::start().await];
    let all: Vec<_> = peers.iter().collect();
    let route = route(&all, json!({})).with("upstream.balance", json!("consistent"));
    let gateway = Gateway::builder().route(route).start().await;
    for _ in 0..9 {
        assert!(said(&mut RawConnection::open(at(&gateway)).await, "hello").await);
    }
    let mut counts: Vec<_> = peers.iter().map(Peer::accepted).collect();
    counts.sort_unstable();
    assert_eq!(counts, [0, 0, 9]);
}

#[tokio::test]
async fn where_nobody_answers_the_connection_ends() {
    let peer = Peer::start().await;
    let gateway = Gateway::builder().route(route(&[&peer], json!({}))).start().await;
    peer.accepting.abort();
    eventually(PATIENCE, || async { tokio::net::TcpStream::connect(peer.address).await.is_err() }).await;
    let mut connection = RawConnection::open(at(&gateway)).await;
    assert_eq!(connection.until_closed(PATIENCE).await, b"");
    ended(&gateway, "upstream_unreachable").await;
}

#[tokio::test]
async fn what_is_open_has_until_the_drain_timeout_and_nothing_new_comes() {
    let peer = Peer::start().await;
    let mut gateway = Gateway::builder()
        .route(route(&[&peer], json!({})))
        .with("server.drain_timeout", json!("60s"))
        .start()
        .await;
    let address = at(&gateway);
    let mut connection = RawConnection::open(address).await;
    assert!(said(&mut connection, "before").await);
    gateway.terminate();
    eventually(PATIENCE, || async { tokio::net::TcpStream::connect(address).await.is_err() }).await;
    assert!(said(&mut connection, "after").await);
    assert!(!gateway.has_ended());
    connection.finish_sending().await;
    assert_eq!(connection.until_closed(PATIENCE).await, b"bye");
    assert!(gateway.wait_exit(PATIENCE).await.success());
}

#[tokio::test]
async fn the_drain_timeout_ends_what_does_not_end() {
    let peer = Peer::start().await;
    let mut gateway = Gateway::builder()
        .route(route(&[&peer], json!({})))
        .with("server.drain_timeout", json!("300ms"))
        .start()
        .await;
    let mut connection = RawConnection::open(at(&gateway)).await;
    assert!(said(&mut connection, "hello").await);
    assert!(gateway.stop().await.success());
    connection.closed(PATIENCE).await;
}

/// Ends a process of ours that is nobody's child any more.
struct Successor(String);

impl Drop for Successor {
    fn drop(&mut self) {
        let _ = std::process::Command::new("kill").args(["-KILL", &self.0]).status();
    }
}

#[tokio::test]
async fn the_listener_is_handed_over_and_what_is_open_stays_open() {
    let peer = Peer::start().await;
    let mut gateway = Gateway::builder().route(route(&[&peer], json!({}))).start().await;
    let address = at(&gateway);
    let mut connection = RawConnection::open(address).await;
    assert!(said(&mut connection, "before").await);
    let file = gateway.config_file();
    let done = run(&["upgrade", "--always", "--config", file.to_str().unwrap()], &[]).await;
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let successor = Successor(done.stdout.split_whitespace().nth(1).unwrap().to_owned());
    for _ in 0..20 {
        assert!(said(&mut RawConnection::open(address).await, "during").await);
    }
    assert!(said(&mut connection, "after").await);
    connection.finish_sending().await;
    assert_eq!(connection.until_closed(PATIENCE).await, b"bye");
    assert_eq!(gateway.wait_code().await, Some(0));
    assert!(said(&mut RawConnection::open(address).await, "the new one alone").await);
    // The admin listener is the admin listener still, though both were asked for as port 0.
    assert!(metrics(&gateway).await.contains("postern_tcp_connections_total"));
    drop(successor);
}

#[tokio::test]
async fn bytes_take_no_room_of_requests() {
    let (peer, upstream) = (Peer::start().await, Upstream::open().await);
    let gateway = Gateway::builder()
        .route(route(&[&peer], json!({})))
        .route(Route::open("demo", &upstream))
        .with("limits", json!({"requests": 1}))
        .start()
        .await;
    let mut held = Vec::new();
    for _ in 0..5 {
        let mut connection = RawConnection::open(at(&gateway)).await;
        assert!(said(&mut connection, "hello").await);
        held.push(connection);
    }
    assert_eq!(gateway.http.get(gateway.url("/demo")).send().await.unwrap().status(), 401);
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Says `hello` inside TLS to the server of this name, which the certificate in `trusted` proves: what is heard until the end. `None`: it
/// does not come to that.
async fn inside_tls(
    gateway: &Gateway,
    trusted: &std::path::Path,
    name: &'static str,
    identity: Option<Identity>,
) -> Option<String> {
    let (address, trusted) = (at(gateway), CertificateDer::from_pem_file(trusted).unwrap());
    let talk = move || {
        let mut roots = RootCertStore::empty();
        roots.add(trusted).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.unwrap().with_root_certificates(roots);
        let mut config = match identity {
            Some((chain, key)) => config.with_client_auth_cert(chain, key).unwrap(),
            None => config.with_no_client_auth(),
        };
        // Whatever is spoken inside is no affair of Postern's.
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        let session = ClientConnection::new(Arc::new(config), ServerName::try_from(name).unwrap()).unwrap();
        let socket = std::net::TcpStream::connect(address).ok()?;
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut stream = StreamOwned::new(session, socket);
        stream.write_all(b"hello").ok()?;
        stream.flush().ok()?;
        let mut heard = vec![0; 5];
        stream.read_exact(&mut heard).ok()?;
        // It has said all, and may still listen.
        stream.conn.send_close_notify();
        stream.conn.complete_io(&mut stream.sock).ok()?;
        stream.read_to_end(&mut heard).ok()?;
        Some(String::from_utf8(heard).unwrap())
    };
    tokio::task::spawn_blocking(talk).await.unwrap()
}

#[tokio::test]
async fn tls_ends_here_and_who_does_not_shake_hands_reaches_nobody() {
    let peer = Peer::start().await;
    let gateway = Gateway::builder()
        .tls()
        .route(route(&[&peer], json!({"tls": true})))
        .with("limits", json!({"header_time": "500ms"}))
        .start()
        .await;
    let certificate = gateway.config_file().with_file_name("tls.crt");
    let heard = inside_tls(&gateway, &certificate, "localhost", None).await;
    assert_eq!(heard.as_deref(), Some("hellobye"));
    let line = ended(&gateway, "ok").await;
    assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&json!(5), &json!(8)));
    assert!(line.get("client_certificate").is_none());
    // In the clear, and not at all.
    let mut plain = RawConnection::open(at(&gateway)).await;
    plain.send("hello, is anybody there?\r\n\r\n").await;
    plain.closed(PATIENCE).await;
    ended(&gateway, "no_handshake").await;
    RawConnection::open(at(&gateway)).await.closed(PATIENCE).await;
    let refused = || lines(&gateway).iter().filter(|line| line["reason"] == "no_handshake").count();
    eventually(PATIENCE, async || refused() == 2).await;
    assert!(metrics(&gateway).await.contains("postern_limited_total{limit=\"handshake\"} 1"));
    assert_eq!(peer.accepted(), 1);
}

#[tokio::test]
async fn the_certificate_of_the_name_is_shown_and_a_renewed_one_from_the_next_connection_on() {
    let peer = Peer::start().await;
    let mut gateway = Gateway::builder().tls().route(route(&[&peer], json!({"tls": true}))).prepare();
    let directory = gateway.config_file().parent().unwrap().to_owned();
    let first = json!({"cert_file": directory.join("tls.crt"), "key_file": directory.join("tls.key")});
    let write = |file: &str| {
        let made = rcgen::generate_simple_self_signed(["db.test".to_owned()]).unwrap();
        std::fs::write(directory.join(file).with_extension("crt"), made.cert.pem()).unwrap();
        std::fs::write(directory.join(file).with_extension("key"), made.signing_key.serialize_pem()).unwrap();
    };
    write("db");
    support::gateway::restrict(&directory.join("db.key"));
    let second = json!({"cert_file": directory.join("db.crt"), "key_file": directory.join("db.key")});
    gateway.reconfigure("server.tls.certificates", json!([first, second]));
    gateway.spawn();
    gateway.ready().await;
    let shows = async |certificate: &str, name| {
        inside_tls(&gateway, &directory.join(certificate), name, None).await.is_some()
    };
    assert!(shows("db.crt", "db.test").await && shows("tls.crt", "localhost").await);
    assert!(!shows("tls.crt", "db.test").await);
    std::fs::copy(directory.join("db.crt"), directory.join("old.crt")).unwrap();
    write("db");
    gateway.hang_up();
    eventually(PATIENCE, async || shows("db.crt", "db.test").await).await;
    assert!(!shows("old.crt", "db.test").await);
}

#[tokio::test]
async fn clients_of_bytes_show_certificates_where_these_are_wanted() {
    let peer = Peer::start().await;
    let files = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let mut parameters = CertificateParams::new(Vec::new()).unwrap();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(files.path().join("ca.pem"), parameters.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(parameters, key);
    let key = KeyPair::generate().unwrap();
    let mut parameters = CertificateParams::new(Vec::new()).unwrap();
    parameters.distinguished_name.push(DnType::CommonName, "robot 7");
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = parameters.signed_by(&key, &issuer).unwrap().der().clone();
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut gateway = Gateway::builder().tls().route(route(&[&peer], json!({"tls": true}))).prepare();
    gateway.reconfigure("server.tls.client_ca_file", json!(files.path().join("ca.pem")));
    gateway.spawn();
    gateway.ready().await;
    let trusted = gateway.config_file().with_file_name("tls.crt");
    assert_eq!(inside_tls(&gateway, &trusted, "localhost", None).await, None);
    ended(&gateway, "no_handshake").await;
    assert_eq!(peer.accepted(), 0);
    let heard = inside_tls(&gateway, &trusted, "localhost", Some((vec![certificate], private))).await;
    assert_eq!(heard.as_deref(), Some("hellobye"));
    assert_eq!(ended(&gateway, "ok").await["client_certificate"], "CN=robot 7");
}

/// Whether there is TLS waits for the next start, and until then nothing is said in the clear instead.
#[tokio::test]
async fn a_route_that_is_to_have_tls_never_goes_without() {
    let peer = Peer::start().await;
    let gateway = Gateway::builder().route(route(&[&peer], json!({}))).start().await;
    assert!(said(&mut RawConnection::open(at(&gateway)).await, "hello").await);
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let directory = gateway.config_file().parent().unwrap().to_owned();
    std::fs::write(directory.join("tls.crt"), made.cert.pem()).unwrap();
    std::fs::write(directory.join("tls.key"), made.signing_key.serialize_pem()).unwrap();
    support::gateway::restrict(&directory.join("tls.key"));
    let pair = json!({"cert_file": directory.join("tls.crt"), "key_file": directory.join("tls.key")});
    gateway.reconfigure("server.tls", json!({"certificates": [pair]}));
    gateway.reconfigure("server.listen", json!([format!("http://{}", gateway.address)]));
    gateway.reconfigure("routes", json!([route(&[&peer], json!({"tls": true})).document()]));
    gateway.hang_up();
    gateway.output.shows("these changes wait for a restart").await;
    let before = peer.accepted();
    let mut connection = RawConnection::open(at(&gateway)).await;
    connection.send("hello").await;
    connection.closed(PATIENCE).await;
    ended(&gateway, "no_handshake").await;
    assert_eq!(peer.accepted(), before);
}

#[tokio::test]
async fn what_does_not_go_together_is_refused_before_it_serves() {
    let peer = Peer::start().await;
    let good = || route(&[&peer], json!({}));
    for (broken, said) in [
        (good().without("listen"), "routes[0]: is `kind: tcp` and has no `listen`"),
        (good().with("listen", json!("db:5432")), "routes[0].listen: is not an address to listen on"),
        (good().with("path", json!("/db")), "routes[0].path: is about requests"),
        (good().with("policy", json!({"call": []})), "routes[0].policy: is about requests"),
        (good().with("credential", json!({"kind": "none"})), "routes[0].credential: is about requests"),
        (
            good().with("upstream.url", json!("http://127.0.0.1:1")),
            "routes[0].upstream.url: is no address of bytes",
        ),
        (good().with("upstream.url", json!("tcp://127.0.0.1")), "has no port"),
        (good().with("upstream.url", json!("tcp://127.0.0.1:1/x")), "is no address of bytes"),
        (good().with("upstream.allow_private", json!(false)), "is not a public address"),
        (good().with("tcp.allow_from", json!([])), "lets nobody in"),
        (good().with("tcp.allow_from", json!(["example.com"])), "routes[0].tcp.allow_from[0]: is no network"),
        (
            good().with("tcp.tls", json!(true)),
            "routes[0].tcp.tls: needs certificates; add `server.tls.certificates`",
        ),
        (good().with("tcp.connections", json!(0)), "routes[0].tcp.connections: is out of range"),
        (
            good()
                .with("upstream.balance_on", json!("caller"))
                .with("upstream.peers", json!(["127.0.0.1:1"])),
            "is not known of a connection",
        ),
        (
            good()
                .with("upstream.health", json!({"kind": "http", "path": "/"}))
                .with("upstream.peers", json!(["127.0.0.1:1"])),
            "asks what only HTTP answers",
        ),
        (
            good().with("kind", json!("mcp")).with("path", json!("/db")),
            "routes[0].listen: belongs to `kind: tcp`",
        ),
    ] {
        let gateway = Gateway::builder().route(broken).prepare();
        let checked = run(&["validate", "--config", gateway.config_file().to_str().unwrap()], &[]).await;
        let complaint = checked.stdout + &checked.stderr;
        assert!(checked.code != Some(0) && complaint.contains(said), "{said}\n{complaint}");
    }
    let gateway = Gateway::builder().route(good()).prepare();
    let taken = good().with("listen", json!(gateway.address.to_string()));
    gateway.reconfigure("routes", json!([taken.document()]));
    let checked = run(&["validate", "--config", gateway.config_file().to_str().unwrap()], &[]).await;
    assert!((checked.stdout + &checked.stderr).contains("is listened on by something else already"));
}
