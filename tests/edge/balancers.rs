//! Behind a balancer: whose a connection or a request is, is what the balancer says, and what nobody else may say.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};
use support::browser::Browser;
use support::client::Client;
use support::gateway::{Gateway, Route, listening_address};
use support::raw::exchange;
use support::upstream::Upstream;
use support::{PATIENCE, eventually};

const SECOND: Duration = Duration::from_secs(1);
const CALL: &str =
    r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"message":"x"}}}"#;

/// A gateway that clients reach at its own address, and balancers that are trusted at another.
struct Behind {
    gateway: Gateway,
    /// Where each connection begins with a header.
    address: SocketAddr,
}

impl Behind {
    async fn start(upstream: &Upstream, trusted: &str, settings: &[(&str, Value)]) -> Self {
        let mut gateway = Gateway::builder().tls().route(Route::open("demo", upstream)).prepare();
        gateway.reconfigure("server.listen", json!([gateway.address.to_string(), "https://127.0.0.1:0"]));
        gateway.reconfigure("server.proxy_protocol", json!(["127.0.0.1:0"]));
        gateway.reconfigure("server.trusted_proxies", json!([trusted]));
        gateway.reconfigure("limits.header_time", json!("1s"));
        for (key, value) in settings {
            gateway.reconfigure(key, value.clone());
        }
        gateway.spawn();
        gateway.ready().await;
        let lines = gateway.output.lines();
        let mut listeners = lines.iter().filter_map(|line| listening_address(line, "public"));
        let address = listeners.find(|address| *address != gateway.address).unwrap();
        Self { gateway, address }
    }

    /// A connection over which this came first, together with what a client begins with; `None` if it was not taken.
    fn connect(&self, header: &[u8]) -> Option<StreamOwned<ClientConnection, TcpStream>> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut roots = RootCertStore::empty();
        let certificate = std::fs::read(self.gateway.config_file().with_file_name("tls.crt")).unwrap();
        roots.add(PemObject::from_pem_slice(&certificate).unwrap()).unwrap();
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let mut tls = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
        let mut socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut first = header.to_vec();
        tls.write_tls(&mut first).unwrap();
        socket.write_all(&first).ok()?;
        while tls.is_handshaking() {
            tls.complete_io(&mut socket).ok()?;
        }
        Some(StreamOwned::new(tls, socket))
    }

    /// Sends a call with these fields on a connection of its own; status and body, if it was taken.
    fn call(&self, header: &[u8], fields: &str) -> Option<(u16, String)> {
        let mut stream = self.connect(header)?;
        let host = self.gateway.public_url.split_once("://").unwrap().1;
        let request = format!(
            "POST /demo HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\n\
             Connection: close\r\nContent-Length: {}\r\n{fields}\r\n{CALL}",
            CALL.len()
        );
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        Some((answer.split(' ').nth(1)?.parse().ok()?, answer))
    }

    async fn limited(&self, limit: &str) -> u64 {
        let metrics = self.gateway.http.get(self.gateway.admin("/metrics"));
        let text = metrics.send().await.unwrap().text().await.unwrap();
        let series = format!("postern_limited_total{{limit=\"{limit}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&series)).unwrap().parse().unwrap()
    }

    /// Waits for the line of the request that came after `seen` lines of the log; whose it was.
    async fn logged(&self, seen: usize) -> Value {
        logged(&self.gateway, seen).await
    }
}

async fn logged(gateway: &Gateway, seen: usize) -> Value {
    let line = async || {
        let lines = gateway.output.lines();
        let mut new = lines.iter().skip(seen).filter_map(|line| serde_json::from_str::<Value>(line).ok());
        new.find(|line| line["path"] == "/demo").map(|line| line["client_ip"].clone())
    };
    support::eventually_some(PATIENCE, line).await
}

fn from(client: &str) -> Vec<u8> {
    format!("PROXY TCP4 {client} 198.51.100.1 56324 443\r\n").into_bytes()
}

/// As [`from`], in version 2, with room for this much beside the addresses.
fn from_binary(client: [u8; 4], beside: usize) -> Vec<u8> {
    let length = u16::try_from(12 + beside).unwrap().to_be_bytes();
    let head = b"\r\n\r\n\0\r\nQUIT\n\x21\x11";
    [&head[..], &length, &client, &[198, 51, 100, 1, 0xDC, 4, 1, 0xBB], &vec![0; beside]].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_balancer_says_whose_a_connection_is_and_what_says_it_badly_is_no_connection() {
    let upstream = Upstream::open().await;
    let behind = Behind::start(&upstream, "127.0.0.0/8", &[]).await;
    let cases: Vec<Value> = serde_json::from_str(include_str!("../data/proxy_protocol.json")).unwrap();
    let mut refused = 0;
    for case in &cases {
        let text = case["header"].as_str().unwrap();
        let header = match case["hex"] == true {
            true => data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap(),
            false => text.as_bytes().to_vec(),
        };
        let seen = behind.gateway.output.len();
        let answer = behind.call(&header, "X-Forwarded-For: 203.0.113.9\r\n");
        let Some(client) = case["client"].as_str() else {
            assert_eq!(answer, None, "{text:?}");
            refused += 1;
            continue;
        };
        assert_eq!(answer.unwrap().0, 401, "{text:?}");
        let client = match client {
            // What came through may be anybody's word.
            "unknown" => Value::Null,
            "balancer" => json!("203.0.113.9"),
            client => json!(client.parse::<SocketAddr>().unwrap().ip().to_canonical().to_string()),
        };
        assert_eq!(behind.logged(seen).await, client, "{text:?}");
    }
    assert!(refused > 20);
    assert_eq!(behind.limited("proxy_protocol").await, refused);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_that_is_cut_off_or_slow_or_long_takes_neither_time_nor_room() {
    let upstream = Upstream::open().await;
    let behind = Behind::start(&upstream, "127.0.0.0/8", &[]).await;
    let ended = |mut socket: TcpStream| {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let begun = Instant::now();
        assert!(matches!(socket.read(&mut [0]), Ok(0) | Err(_)), "an answer");
        begun.elapsed()
    };
    let (text, binary) = (from("192.0.2.7"), from_binary([192, 0, 2, 7], 0));
    let begun = |part: &[u8]| {
        let mut socket = TcpStream::connect(behind.address).unwrap();
        socket.write_all(part).unwrap();
        socket
    };
    // Cut off: whoever says no more is gone with it, and whoever only waits when the time is up.
    for header in [&text, &binary] {
        for end in [1, 5, 12, 15, 20, header.len() - 1] {
            let socket = begun(&header[..end]);
            socket.shutdown(std::net::Shutdown::Write).unwrap();
            assert!(ended(socket) < SECOND / 2, "{end}");
        }
    }
    assert_eq!(behind.limited("proxy_protocol").await, 12);
    for header in [&b""[..], &text[..20], &binary[..20], &binary[..]] {
        let took = ended(begun(header));
        assert!(took > SECOND / 2 && took < 4 * SECOND, "{took:?}");
    }
    // Byte by byte.
    let mut slow = begun(b"");
    let started = Instant::now();
    for byte in &text {
        if slow.write_all(&[*byte]).is_err() {
            break;
        }
        std::thread::sleep(SECOND / 8);
    }
    assert!(started.elapsed() < 4 * SECOND);
    assert_eq!(behind.limited("handshake").await, 5);
    // In pieces, but in time; and with much that is nobody's matter.
    for header in [&text, &binary, &from_binary([192, 0, 2, 7], 1_500)] {
        assert_eq!(behind.call(header, "").unwrap().0, 401);
    }
    assert_eq!(behind.call(&from_binary([192, 0, 2, 7], 2_100), ""), None);
    assert_eq!(behind.limited("proxy_protocol").await, 13);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_else_may_speak_where_balancers_do_and_no_balancer_elsewhere() {
    let upstream = Upstream::open().await;
    let behind = Behind::start(&upstream, "192.0.2.0/24", &[]).await;
    assert_eq!(behind.call(&from("192.0.2.7"), ""), None);
    assert_eq!(behind.call(b"", ""), None);
    assert_eq!(behind.limited("proxy_protocol").await, 2);
    // Who is trusted counts from the next reload on.
    behind.gateway.reconfigure("server.trusted_proxies", json!(["127.0.0.1"]));
    behind.gateway.hang_up();
    eventually(PATIENCE, async || behind.call(&from("192.0.2.7"), "").is_some()).await;
    let elsewhere = Behind { address: behind.gateway.address, gateway: behind.gateway };
    assert_eq!(elsewhere.call(&from("192.0.2.7"), ""), None);
    assert_eq!(elsewhere.call(b"", "").unwrap().0, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_limits_and_upstreams_go_by_the_address_that_the_balancer_says() {
    let upstream = Upstream::open().await;
    let rules =
        json!({"call": [{"name": "office", "allow": "request.source == '192.0.2.7'"}], "denied_status": 403});
    let settings = [("limits.connections_per_address", json!(2)), ("policy", rules)];
    let behind = Behind::start(&upstream, "127.0.0.0/8", &settings).await;
    let gateway = &behind.gateway;
    let mut browser = Browser::of("alice").trusting(&gateway.roots);
    let token = Client::register(gateway).await.sign_in(&mut browser, "demo").await.access_token;
    let fields = format!("Authorization: Bearer {token}\r\n");
    let (office, elsewhere) = (from("192.0.2.7"), from("192.0.2.8"));
    let (status, answer) = behind.call(&office, &fields).unwrap();
    assert_eq!(status, 200, "{answer}");
    let arrived = upstream.calls().pop().unwrap();
    assert_eq!(arrived.header("x-forwarded-for").as_deref(), Some("192.0.2.7"));
    // Whoever is not the office does not become it by a field.
    let claims = format!("{fields}X-Forwarded-For: 192.0.2.7\r\nForwarded: for=192.0.2.7\r\n");
    assert_eq!(behind.call(&elsewhere, &claims).unwrap().0, 403);
    assert_eq!(behind.call(b"PROXY UNKNOWN\r\n", &claims).unwrap().0, 403);
    let field = "X-Forwarded-For: 192.0.2.7\r\n";
    assert_eq!(behind.call(b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0", &format!("{fields}{field}")).unwrap().0, 200);
    assert_eq!(upstream.calls().len(), 2);
    // Each has their share of connections, and the balancer's own are not counted.
    let open: Vec<_> = (0..2).map(|_| behind.connect(&elsewhere).unwrap()).collect();
    assert!(behind.connect(&elsewhere).is_none());
    assert_eq!(behind.limited("connections_per_address").await, 1);
    assert_eq!(behind.call(&office, &fields).unwrap().0, 200);
    drop(open);
    eventually(PATIENCE, async || behind.call(&elsewhere, &fields).is_some()).await;
}

#[tokio::test]
async fn whose_a_request_is_a_trusted_balancer_may_say_and_nobody_else() {
    let upstream = Upstream::open().await;
    let trusted = json!(["127.0.0.1", "10.0.0.0/8"]);
    let builder = || Gateway::builder().route(Route::open("demo", &upstream));
    let nobody = builder().start().await;
    let listed = builder().with("server.trusted_proxies", trusted.clone()).start().await;
    let forwarded = builder().with("server.trusted_proxies", trusted);
    let forwarded = forwarded.with("server.forwarded_header", json!("forwarded")).start().await;
    let cases = [
        ("X-Forwarded-For: 192.0.2.7\r\n", Some("192.0.2.7"), Some("127.0.0.1")),
        (
            "X-Forwarded-For: 192.0.2.7\r\nForwarded: for=198.51.100.1\r\n",
            Some("192.0.2.7"),
            Some("198.51.100.1"),
        ),
        ("Forwarded: for=192.0.2.7;proto=https\r\n", Some("127.0.0.1"), Some("192.0.2.7")),
        ("X-Forwarded-For: 198.51.100.1, 192.0.2.7, 10.1.2.3\r\n", Some("192.0.2.7"), Some("127.0.0.1")),
        ("X-Forwarded-For: 192.0.2.7, unknown, 10.1.2.3\r\n", None, Some("127.0.0.1")),
        ("Forwarded: for=198.51.100.1, for=_hidden\r\n", Some("127.0.0.1"), None),
    ];
    for (fields, by_list, by_forwarded) in cases {
        for (gateway, client) in
            [(&nobody, Some("127.0.0.1")), (&listed, by_list), (&forwarded, by_forwarded)]
        {
            let host = gateway.public_url.split_once("://").unwrap().1;
            let request = format!("GET /demo HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n");
            let seen = gateway.output.len();
            assert_eq!(exchange(gateway.address, request, PATIENCE).await.unwrap().status, 401);
            assert_eq!(logged(gateway, seen).await, json!(client), "{fields}");
        }
    }
}

#[tokio::test]
async fn guesses_at_passwords_are_counted_by_the_address_that_a_trusted_balancer_says() {
    for (trusted, other_is_kept_out) in [(json!(["127.0.0.1"]), false), (json!([]), true)] {
        let mut gateway = Gateway::builder().with("server.trusted_proxies", trusted).prepare();
        gateway.spawn();
        gateway.ready().await;
        let mut sign_in = async |address: IpAddr, password: &str| {
            let fields = [("x-forwarded-for".parse().unwrap(), address.to_string().parse().unwrap())];
            let client = reqwest::Client::builder().no_proxy().default_headers(fields.into_iter().collect());
            gateway.http = client.redirect(reqwest::redirect::Policy::none()).build().unwrap();
            let mut browser = Browser::of("alice").through(&gateway);
            let page = browser.go(&gateway.url("/login")).await.page();
            let fields = [("username", "alice"), ("password", password)];
            browser.submit_once(&page, &page.form_to("/login"), &fields).await.status
        };
        let (one, other) = ("192.0.2.7".parse().unwrap(), "192.0.2.8".parse().unwrap());
        for _ in 0..10 {
            assert_eq!(sign_in(one, "wrong").await, 401);
        }
        assert_eq!(sign_in(one, "pw").await, 429);
        assert_eq!(sign_in(other, "pw").await, if other_is_kept_out { 429 } else { 200 });
    }
}
