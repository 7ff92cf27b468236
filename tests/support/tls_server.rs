//! An https server by hand: one answer to every request, and all that came over its encrypted lines kept.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, Stream};

use super::lock;

const ANSWER: &str = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;

/// Serves until the test program ends.
pub struct TlsServer {
    pub url: String,
    /// In PEM; signed by itself, so it is also what has to be trusted.
    pub certificate: String,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    connections: AtomicUsize,
    received: Mutex<String>,
}

impl TlsServer {
    /// At `https://localhost:port/mcp`, with a certificate for `name`.
    pub fn start(name: &str) -> Self {
        let (config, certificate) = identity(&[name]);
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let url = format!("https://localhost:{}/mcp", listener.local_addr().expect("address").port());
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                shared.connections.fetch_add(1, Ordering::SeqCst);
                let (config, state) = (Arc::clone(&config), Arc::clone(&shared));
                std::thread::spawn(move || {
                    let heard = |piece: &str| lock(&state.received).push_str(piece);
                    serve(stream, config, heard, |_| http_text(200, &[JSON], ANSWER));
                });
            }
        });
        TlsServer { url, certificate, state }
    }

    /// Connections accepted so far, whether or not a handshake followed.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// All requests so far, decrypted.
    pub fn received(&self) -> String {
        lock(&self.state.received).clone()
    }
}

/// What it takes to be these names, and the certificate in PEM for whoever shall believe it.
pub fn identity(names: &[&str]) -> (Arc<ServerConfig>, String) {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let made = rcgen::generate_simple_self_signed(names).expect("certificate");
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|config| config.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key))
        .expect("TLS");
    (Arc::new(config), made.cert.pem())
}

/// Answers until the other side has no more requests, or does not get through the handshake. `heard` is told all that
/// comes, as it comes; `answer` gets a whole request.
pub fn serve(
    mut stream: TcpStream,
    config: Arc<ServerConfig>,
    heard: impl Fn(&str),
    answer: impl Fn(&str) -> String,
) {
    let mut session = ServerConnection::new(config).expect("TLS session");
    let mut line = Stream::new(&mut session, &mut stream);
    let mut request = String::new();
    let mut piece = [0; 4096];
    while let Ok(length @ 1..) = line.read(&mut piece) {
        let text = String::from_utf8_lossy(&piece[..length]).into_owned();
        heard(&text);
        request.push_str(&text);
        if is_complete(&request) {
            if line.write_all(answer(&request).as_bytes()).is_err() {
                return;
            }
            request.clear();
        }
    }
}

pub const JSON: (&str, &str) = ("content-type", "application/json");

/// An answer as it goes over the line; headers are sent as they are.
pub fn http_text(status: u16, headers: &[(&str, &str)], body: &str) -> String {
    let mut text = format!("HTTP/1.1 {status} Scripted\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text + "\r\n" + body
}

fn is_complete(request: &str) -> bool {
    let Some((head, body)) = request.split_once("\r\n\r\n") else { return false };
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = lines.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length = lengths.next().and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0);
    body.len() >= length
}
