//! Names of peers: what the name service says now is where requests go, whether it answers with addresses or with the hosts of a
//! service; what it says passes the address policy; and while it says nothing, what was known last goes on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use crate::support;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use support::browser::Browser;
use support::client::Client;
use support::gateway::{Gateway, Route};
use support::mcp::McpRequest;
use support::process::run;
use support::upstream::Upstream;
use support::{PATIENCE, eventually, lock};
use tokio::net::UdpSocket;

#[derive(Clone)]
enum Record {
    Address(IpAddr),
    /// Priority, weight, port, host.
    Host(u16, u16, u16, &'static str),
}

/// What is known of each name; `None`: nothing is said at all.
type Zone = Option<HashMap<&'static str, Vec<Record>>>;

/// A name server that says what it is told to, for a second each.
struct NameServer {
    address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    asked: Arc<Mutex<Vec<String>>>,
    answering: tokio::task::JoinHandle<()>,
}

impl NameServer {
    async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let zone = Arc::new(Mutex::new(Some(HashMap::new())));
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let (known, names) = (Arc::clone(&zone), Arc::clone(&asked));
        let answering = tokio::spawn(async move {
            let mut query = [0; 1500];
            while let Ok((length, client)) = socket.recv_from(&mut query).await {
                let (name, kind, end) = question(&query[..length]);
                lock(&names).push(name.clone());
                let answer =
                    lock(&known).as_ref().map(|zone| answer(&query[..end], kind, zone.get(name.as_str())));
                if let Some(answer) = answer {
                    let _ = socket.send_to(&answer, client).await;
                }
            }
        });
        Self { address, zone, asked, answering }
    }

    fn say(&self, name: &'static str, records: Vec<Record>) {
        lock(&self.zone).get_or_insert_default().insert(name, records);
    }

    fn addresses(&self, name: &'static str, addresses: &[IpAddr]) {
        self.say(name, addresses.iter().copied().map(Record::Address).collect());
    }

    /// Says nothing any more.
    fn fall_silent(&self) {
        *lock(&self.zone) = None;
    }

    fn asked(&self, name: &str) -> usize {
        lock(&self.asked).iter().filter(|asked| *asked == name).count()
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.answering.abort();
    }
}

/// Name and type of the one question, and where it ends.
fn question(query: &[u8]) -> (String, u16, usize) {
    let (mut at, mut labels) = (12, Vec::new());
    while query[at] != 0 {
        let length = usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..=at + length]).to_lowercase());
        at += length + 1;
    }
    (labels.join("."), u16::from_be_bytes([query[at + 1], query[at + 2]]), at + 5)
}

/// Header and question as they came, and the records of that type; a name that is not there does not exist.
fn answer(question: &[u8], kind: u16, records: Option<&Vec<Record>>) -> Vec<u8> {
    const TYPES: [(u16, usize); 2] = [(1, 4), (28, 16)];
    let mut bodies: Vec<Vec<u8>> = Vec::new();
    for record in records.into_iter().flatten() {
        match record {
            Record::Address(IpAddr::V4(address)) if kind == TYPES[0].0 => {
                bodies.push(address.octets().to_vec())
            }
            Record::Address(IpAddr::V6(address)) if kind == TYPES[1].0 => {
                bodies.push(address.octets().to_vec())
            }
            Record::Host(priority, weight, port, host) if kind == 33 => {
                let mut body: Vec<u8> =
                    [priority, weight, port].into_iter().flat_map(|number| number.to_be_bytes()).collect();
                for label in host.split('.').filter(|label| !label.is_empty()) {
                    body.push(label.len() as u8);
                    body.extend(label.bytes());
                }
                body.push(0);
                bodies.push(body);
            }
            _ => {}
        }
    }
    let code = if records.is_some() { 0x80 } else { 0x83 };
    let mut answer = question.to_vec();
    answer[2..12].copy_from_slice(&[0x85, code, 0, 1, 0, bodies.len() as u8, 0, 0, 0, 0]);
    for body in bodies {
        answer.extend([0xc0, 12]);
        answer.extend(kind.to_be_bytes());
        answer.extend([0, 1, 0, 0, 0, 1]);
        answer.extend((body.len() as u16).to_be_bytes());
        answer.extend(body);
    }
    answer
}

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn route(peers: Value) -> Route {
    Route::to("demo", "http://mcp.test/mcp", json!({"kind": "none"})).with("upstream.peers", peers)
}

async fn start(names: &NameServer, peers: Value) -> (Gateway, McpRequest) {
    start_with(names, route(peers)).await
}

async fn start_with(names: &NameServer, route: Route) -> (Gateway, McpRequest) {
    let gateway = Gateway::builder()
        .with("outbound.name_servers", json!([names.address.to_string()]))
        .route(route)
        .start()
        .await;
    let client = Client::register(&gateway).await;
    let tokens = client.sign_in(&mut Browser::new(), "demo").await;
    let request = gateway.mcp("demo").bearer(&tokens.access_token);
    (gateway, request)
}

async fn echo(request: &McpRequest) -> u16 {
    request.tool("echo", json!({"message": "hi"})).await.status
}

fn port(peer: &Upstream) -> u16 {
    peer.server.address.port()
}

/// Whether of the next calls all go to these.
async fn goes_to(request: &McpRequest, peers: &[&Upstream], others: &[&Upstream]) -> bool {
    peers.iter().chain(others).for_each(|peer| peer.requests.clear());
    for _ in 0..6 {
        if echo(request).await != 200 {
            return false;
        }
    }
    peers.iter().all(|peer| !peer.calls().is_empty()) && others.iter().all(|peer| peer.calls().is_empty())
}

#[tokio::test]
async fn a_service_leads_to_its_hosts_by_priority_and_weight_and_follows_their_changes() {
    let (first, second, third) = (Upstream::open().await, Upstream::open().await, Upstream::open().await);
    let names = NameServer::start().await;
    names.addresses("one.test", &[LOOPBACK]);
    let service = "_mcp._tcp.example.test";
    names.say(
        service,
        vec![
            Record::Host(10, 3, port(&first), "one.test"),
            Record::Host(10, 1, port(&second), "one.test"),
            Record::Host(20, 9, port(&third), "one.test"),
        ],
    );
    let (_gateway, request) = start(&names, json!(["srv:_mcp._tcp.example.test"])).await;
    assert!(goes_to(&request, &[&first, &second], &[&third]).await);
    for _ in 0..34 {
        assert_eq!(echo(&request).await, 200);
    }
    let (most, fewest) = (first.calls().len(), second.calls().len());
    assert!(most.abs_diff(3 * fewest) <= 4, "{most} and {fewest}");
    // Another answer, and the traffic moves; the host that is second choice serves where the first has no address.
    names.say(
        service,
        vec![Record::Host(1, 0, 9, "nowhere.test"), Record::Host(2, 0, port(&third), "one.test")],
    );
    eventually(PATIENCE, || async { goes_to(&request, &[&third], &[&first, &second]).await }).await;
    // No such service (RFC 2782), and no such name: what was known goes on.
    names.say(service, vec![Record::Host(0, 0, 0, ".")]);
    let before = names.asked(service);
    eventually(PATIENCE, || async { names.asked(service) > before + 1 }).await;
    assert!(goes_to(&request, &[&third], &[&first, &second]).await);
}

#[tokio::test]
async fn the_second_choice_of_a_service_serves_while_the_first_does_not() {
    let (first, second) = (Upstream::open().await, Upstream::open().await);
    let names = NameServer::start().await;
    names.addresses("one.test", &[LOOPBACK]);
    names.say(
        "_mcp._tcp.example.test",
        vec![
            Record::Host(10, 1, port(&first), "one.test"),
            Record::Host(20, 1, port(&second), "one.test"),
            Record::Host(30, 1, 9, "one.test"),
        ],
    );
    let peers = json!(["srv:_mcp._tcp.example.test"]);
    // What becomes of requests says it, or checks do.
    for health in [None, Some(json!({"kind": "tcp", "interval": "100ms", "healthy": 1, "unhealthy": 1}))] {
        let mut route = route(peers.clone());
        if let Some(health) = health {
            route = route.with("upstream.health", health);
        }
        let (_gateway, request) = start_with(&names, route).await;
        assert!(goes_to(&request, &[&first], &[&second]).await);
        first.server.stop();
        eventually(PATIENCE, || async { goes_to(&request, &[&second], &[&first]).await }).await;
        first.server.resume().await;
        eventually(PATIENCE, || async { goes_to(&request, &[&first], &[&second]).await }).await;
    }
}

#[tokio::test]
async fn sr_f32_an_address_that_changes_moves_traffic_and_silence_changes_nothing() {
    let names = NameServer::start().await;
    let peer = Upstream::open().await;
    // The same port at another address of this machine.
    let other: IpAddr = Ipv4Addr::new(127, 0, 0, 9).into();
    names.addresses("peer.test", &[LOOPBACK]);
    let peers = json!([format!("peer.test:{}", port(&peer))]);
    let (gateway, request) = start(&names, peers).await;
    assert_eq!(echo(&request).await, 200);
    let listener = tokio::net::TcpListener::bind((other, port(&peer))).await.unwrap();
    names.addresses("peer.test", &[other]);
    let moved = async {
        loop {
            tokio::select! {
                accepted = listener.accept() => break accepted.unwrap(),
                _ = echo(&request) => {}
            }
        }
    };
    drop(support::within(PATIENCE, moved).await);
    drop(listener);
    names.addresses("peer.test", &[LOOPBACK]);
    eventually(PATIENCE, || async { echo(&request).await == 200 }).await;
    // Wait until it is the only one that is known, and then let nobody answer.
    let text =
        async || gateway.http.get(gateway.admin("/metrics")).send().await.unwrap().text().await.unwrap();
    let stands = format!(
        "postern_upstream_peer_state{{peer=\"{}\",route=\"demo\",state=\"up\"}} 1",
        peer.server.address
    );
    eventually(PATIENCE, || async { text().await.contains(&stands) }).await;
    names.fall_silent();
    let failed = |line: &Value| line["message"] == "addresses of a peer not known";
    eventually(PATIENCE, || async { gateway.output.records().iter().any(failed) }).await;
    for _ in 0..5 {
        assert_eq!(echo(&request).await, 200);
    }
}

#[tokio::test]
async fn both_families_are_asked_for() {
    let names = NameServer::start().await;
    let peer = Upstream::open().await;
    names.addresses("peer.test", &[LOOPBACK, Ipv6Addr::LOCALHOST.into()]);
    let peers = json!([format!("peer.test:{}", port(&peer))]);
    let (gateway, request) = start(&names, peers).await;
    assert_eq!(echo(&request).await, 200);
    let text = gateway.http.get(gateway.admin("/metrics")).send().await.unwrap().text().await.unwrap();
    for address in [format!("127.0.0.1:{}", port(&peer)), format!("[::1]:{}", port(&peer))] {
        assert!(
            text.contains(&format!("postern_upstream_peer_state{{peer=\"{address}\"")),
            "{address}\n{text}"
        );
    }
}

#[tokio::test]
async fn what_the_name_service_says_passes_the_address_policy() {
    let names = NameServer::start().await;
    let peer = Upstream::open().await;
    names.addresses("one.test", &[LOOPBACK]);
    // 169.254.169.254 is never reached, whatever a route allows.
    names.addresses("metadata.test", &[Ipv4Addr::new(169, 254, 169, 254).into()]);
    let good = Record::Host(1, 1, port(&peer), "one.test");
    let service = "_mcp._tcp.example.test";
    names.say(service, vec![good.clone()]);
    let (gateway, request) = start(&names, json!(["srv:_mcp._tcp.example.test"])).await;
    assert_eq!(echo(&request).await, 200);
    names.say(service, vec![good.clone(), Record::Host(1, 9, 80, "metadata.test")]);
    let refused =
        |line: &Value| line["error"].as_str().is_some_and(|text| text.contains("special-use address"));
    eventually(PATIENCE, || async { gateway.output.records().iter().any(refused) }).await;
    for _ in 0..5 {
        assert_eq!(echo(&request).await, 200, "what was good last goes on");
    }
    // Where nothing private is allowed, a service leads to nothing private either.
    let public = Route::to("demo", "https://mcp.test/mcp", json!({"kind": "none"}))
        .with("upstream.peers", json!(["srv:_mcp._tcp.example.test"]))
        .with("upstream.allow_private", json!(false));
    names.say(service, vec![good]);
    gateway.reconfigure("routes", json!([public.document()]));
    gateway.hang_up();
    let refused = |line: &Value| line["error"].as_str().is_some_and(|text| text.contains("private address"));
    eventually(PATIENCE, || async { gateway.output.records().iter().any(refused) }).await;
    eventually(PATIENCE, || async { echo(&request).await == 502 }).await;
}

#[tokio::test]
async fn a_name_of_a_service_is_one() {
    for peer in [
        "srv:",
        "srv:example.com",
        "srv:_mcp._tcp.example.com:80",
        "srv:_mcp",
        "srv:_mcp._tcp.exa mple.com",
        "srv://_mcp._tcp.x",
    ] {
        let gateway = Gateway::builder().route(route(json!([peer]))).prepare();
        let checked = run(&["validate", "--config", gateway.config_file().to_str().unwrap()], &[]).await;
        let said = checked.stdout + &checked.stderr;
        assert!(said.contains("routes[0].upstream.peers[0]: is no name of a service"), "{peer}: {said}");
    }
    let gateway = Gateway::builder().with("outbound.name_servers", json!(["dns.example.com"])).prepare();
    let checked = run(&["validate", "--config", gateway.config_file().to_str().unwrap()], &[]).await;
    assert!(
        (checked.stdout + &checked.stderr)
            .contains("outbound.name_servers[0]: is no address of a name server")
    );
}
