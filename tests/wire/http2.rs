//! HTTP/2 as RFC 9113 wants it of a server, asked by somebody else: the cases of httpwg, which are h2spec's. It speaks without TLS,
//! where Postern speaks no HTTP/2, so a relay puts its bytes into TLS and takes nothing away.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use axum::response::IntoResponse;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::json;
use support::PATIENCE;
use support::browser::Browser;
use support::client::Client;
use support::gateway::{Gateway, Route};
use support::h2_client::{DATA, END_HEADERS, END_STREAM, HEADERS, There, frame};
use support::process::{Output, Process};
use support::server::Server;
use support::upstream::Upstream;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

/// With the time it takes to install it.
const LONGEST: Duration = Duration::from_secs(600);
/// As many cases as there are, so that none is lost unseen.
const CASES: usize = 107;
/// What Postern does otherwise: where its `h2` ends the connection it always says PROTOCOL_ERROR, and never the finer reason; what
/// is malformed is answered with 400, which ends the stream as well; of trailers nothing goes on, whatever is in them; and after a client's
/// good-bye, with nothing under way, nothing it says is answered any more. (Where a case does not wait for the answer, whether it passes
/// depends on which is faster.)
const OTHERWISE: [(&str, &str); 20] = [
    ("4. http frames :: invalid header block fragment", ENDED),
    ("5. streams and multiplexing :: closed sends headers frame", ENDED),
    ("5. streams and multiplexing :: closed sends headers frame after rst stream", ENDED),
    ("5. streams and multiplexing :: half closed remote sends data frame", ENDED),
    ("5. streams and multiplexing :: half closed remote sends headers frame", ENDED),
    ("6. frame definitions :: sends data frame on invalid stream state", ENDED),
    ("6. frame definitions :: sends ping frame with invalid length", ENDED),
    ("6. frame definitions :: sends priority frame with invalid length", ENDED),
    ("6. frame definitions :: sends rst stream frame with invalid length", ENDED),
    ("6. frame definitions :: sends settings frame with ack and payload", ENDED),
    ("6. frame definitions :: sends settings frame with invalid length", ENDED),
    ("6. frame definitions :: sends settings initial window size with exceeded max window size value", ENDED),
    ("6. frame definitions :: sends settings initial window size with invalid value", ENDED),
    ("6. frame definitions :: sends window update frame with invalid length", ENDED),
    // Whoever is hung up on here panics.
    ("7. error codes :: sends goaway frame with unknown error code", ""),
    ("8. expressing http semantics in http2 :: sends connect without authority", ANSWERED),
    (
        "8. expressing http semantics in http2 :: sends headers frame with leading space in field value",
        ANSWERED,
    ),
    ("8. expressing http semantics in http2 :: sends headers frame with mismatched host authority", ANSWERED),
    ("8. expressing http semantics in http2 :: sends headers frame with pseudo header in trailer", ANSWERED),
    (
        "8. expressing http semantics in http2 :: sends headers frame with trailing tab in field value",
        ANSWERED,
    ),
];
const ENDED: &str = "got ProtocolError";
const ANSWERED: &str = "EndStream";

/// Listens without TLS, and passes on to the gateway with it, over HTTP/2.
async fn wrapped(gateway: SocketAddr, config: Arc<ClientConfig>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (connector, name) =
                (TlsConnector::from(Arc::clone(&config)), ServerName::try_from("localhost"));
            tokio::spawn(async move {
                let server = TcpStream::connect(gateway).await.unwrap();
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                let mut server = connector.connect(name.unwrap(), server).await.unwrap();
                // Either end closes both.
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    address
}

/// Where the program is. `None`: it cannot be had here.
async fn httpwg() -> Option<std::path::PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Output::default();
    let mut installing = Process::start(Command::new(root.join("tests/setup/httpwg.sh")), &output);
    if !installing.wait(LONGEST).await.success() {
        let said = output.text();
        let is_away = ["failed to download", "failed to get", "could not find", "unable to update registry"];
        assert!(is_away.iter().any(|away| said.contains(away)), "{said}");
        return None;
    }
    Some(root.join("target/httpwg/bin/httpwg"))
}

/// The cases that are named after this mark, each with what is said next.
fn named(output: &Output, mark: &str) -> BTreeMap<String, String> {
    let lines: Vec<String> = output.lines().into_iter().filter(|line| !line.trim().is_empty()).collect();
    let name = |line: &String| line.split_once(mark)?.1.strip_prefix("RFC 9113 :: ").map(str::to_owned);
    lines
        .iter()
        .zip(lines.iter().skip(1))
        .filter_map(|(line, next)| Some((name(line)?, next.clone())))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_2_is_spoken_as_rfc_9113_has_it() {
    let Some(program) = httpwg().await else {
        println!("skipped: httpwg cannot be fetched from crates.io");
        return;
    };
    let site = Server::start(|_, _| async { "it is all the same".into_response() }).await;
    let route = Route::to("site", &format!("http://{}", site.address), json!({"kind": "none"}))
        .without("path")
        .without("credential")
        .with("kind", json!("http"))
        .with("host", json!("localhost"))
        .with("public", json!(true));
    // The cases ask for `localhost`, so the pages are elsewhere.
    let builder = Gateway::builder().tls().with("server.public_url", json!("https://pages.test"));
    let gateway = builder.route(route).start().await;
    let address = wrapped(gateway.address, There::at(&gateway, "").config()).await.to_string();
    let output = Output::default();
    let mut command = Command::new(program);
    // What it says of itself would come in between.
    command.env("RUST_LOG", "error");
    command.args([
        "--verbose",
        "--address",
        &address,
        "--connect-timeout",
        "10000",
        // A header that does not end is waited for this long less a few seconds.
        "--frame-timeout",
        "15000",
    ]);
    Process::start(command, &output).wait(LONGEST).await;
    let text = output.text();
    let (all, passed) = (named(&output, "Running test: "), named(&output, "Test passed: "));
    assert_eq!(all.len(), CASES, "{text}");
    let said = named(&output, "Test failed: ");
    // One that panics says nothing at its end.
    for name in all.keys().filter(|name| !passed.contains_key(*name)) {
        let instead = OTHERWISE.iter().find(|(known, _)| known == name).map(|(_, instead)| *instead);
        let said = said.get(name).map(String::as_str).unwrap_or_default();
        assert!(instead.is_some_and(|instead| said.contains(instead)), "{name}: {said}\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_with_blanks_around_it_is_none() {
    let upstream = Upstream::open().await;
    let gateway = Gateway::builder().tls().route(Route::open("demo", &upstream)).start().await;
    let mut browser = Browser::new().trusting(&gateway.roots);
    let token = Client::register(&gateway).await.sign_in(&mut browser, "demo").await.access_token;
    let there = There::at(&gateway, &token);
    let asked = tokio::task::spawn_blocking(move || {
        let mut client = there.connect(&[]);
        let values = ["a b", " a", "a ", "\ta", "a\t", " ", ""];
        let mut stream = 1;
        values.map(|value| {
            let head = frame(HEADERS, END_HEADERS, stream, &there.block(&[("x-field", value)]));
            let body = br#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
            client.send(&[head, frame(DATA, END_STREAM, stream, body)].concat());
            let answer = client.answer(stream, PATIENCE);
            stream += 2;
            answer
        })
    });
    assert_eq!(asked.await.unwrap(), [200, 400, 400, 400, 400, 400, 200].map(Ok));
    assert_eq!(upstream.calls().len(), 2);
}
