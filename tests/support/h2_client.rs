//! HTTP/2 over TLS by hand, frame by frame, for what no decent client would send. It blocks: run it in `spawn_blocking`.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::gateway::Gateway;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
const ACK: u8 = 1;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD: usize = 9;

#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// Whom to connect to, and what to send there.
#[derive(Clone)]
pub struct There {
    gateway: std::net::SocketAddr,
    host: String,
    token: String,
    config: Arc<ClientConfig>,
}

pub struct H2Client {
    line: StreamOwned<ClientConnection, TcpStream>,
    buffer: Vec<u8>,
}

impl There {
    /// A gateway with TLS, and who calls.
    pub fn at(gateway: &Gateway, token: &str) -> Self {
        let certificate = gateway.config_file().with_file_name("tls.crt");
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(certificate).expect("certificate")).expect("root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("TLS")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let host = gateway.public_url.split_once("://").expect("a URL").1.to_owned();
        There { gateway: gateway.address, host, token: token.to_owned(), config: Arc::new(config) }
    }

    /// How TLS is spoken there.
    pub fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }

    /// Connects and says what comes first; nothing is set beside what `settings` says (RFC 9113 §6.5.1).
    pub fn connect(&self, settings: &[u8]) -> H2Client {
        let mut client = self.connect_speechless();
        assert!(client.send(&[PREFACE, &frame(SETTINGS, 0, 0, settings)].concat()));
        // An acknowledgement in the middle of a frame would be none.
        client
            .until(super::PATIENCE, |frame| frame.kind == SETTINGS && frame.flags & ACK == 0)
            .expect("settings");
        client
    }

    /// Connects, shakes hands and says nothing.
    pub fn connect_speechless(&self) -> H2Client {
        let socket = TcpStream::connect(self.gateway).expect("connect");
        socket.set_nodelay(true).expect("nodelay");
        let name = ServerName::try_from("localhost").expect("name");
        let session = ClientConnection::new(Arc::clone(&self.config), name).expect("session");
        let mut client = H2Client { line: StreamOwned::new(session, socket), buffer: Vec::new() };
        while client.line.conn.is_handshaking() {
            client.line.conn.complete_io(&mut client.line.sock).expect("handshake");
        }
        client
    }

    /// The header of a call of this route with a body to come, as a block.
    pub fn block(&self, more: &[(&str, &str)]) -> Vec<u8> {
        let bearer = format!("Bearer {}", self.token);
        let mut fields = vec![
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", self.host.as_str()),
            (":path", "/demo"),
            ("authorization", bearer.as_str()),
            ("content-type", "application/json"),
            ("accept", "application/json, text/event-stream"),
        ];
        fields.extend(more);
        fields.iter().flat_map(|(name, value)| field(name, value)).collect()
    }

    /// A call whose body follows.
    pub fn call(&self, stream: u32) -> Vec<u8> {
        frame(HEADERS, END_HEADERS, stream, &self.block(&[]))
    }

    /// A whole call.
    pub fn ping(&self, stream: u32) -> Vec<u8> {
        let body = br#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
        [self.call(stream), frame(DATA, END_STREAM, stream, body)].concat()
    }
}

impl H2Client {
    /// Writes; whether the other side was there to take it.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.line.write_all(bytes).and_then(|()| self.line.flush()).is_ok()
    }

    /// The next frame; settings are acknowledged. `None` at the end, and when none has come in time.
    pub fn next(&mut self, within: Duration) -> Option<Frame> {
        let end = Instant::now() + within;
        loop {
            if let Some(frame) = self.take() {
                if frame.kind == SETTINGS && frame.flags & ACK == 0 {
                    self.send(&self::frame(SETTINGS, ACK, 0, &[]));
                }
                return Some(frame);
            }
            let left = end.checked_duration_since(Instant::now())?;
            self.line.sock.set_read_timeout(Some(left.max(Duration::from_millis(1)))).expect("timeout");
            let mut piece = [0; 16384];
            match self.line.read(&mut piece) {
                Ok(0) => return None,
                Ok(length) => self.buffer.extend_from_slice(&piece[..length]),
                Err(error) if is_late(&error) => {}
                Err(_) => return None,
            }
        }
    }

    /// The next frame such as `wanted`.
    pub fn until(&mut self, within: Duration, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        let end = Instant::now() + within;
        loop {
            let frame = self.next(end.checked_duration_since(Instant::now())?)?;
            if wanted(&frame) {
                return Some(frame);
            }
        }
    }

    /// The status of the answer on this stream; the error code, if it was reset.
    pub fn answer(&mut self, stream: u32, within: Duration) -> Result<u16, u32> {
        let told = |frame: &Frame| frame.stream == stream && matches!(frame.kind, HEADERS | RST_STREAM);
        let frame = self.until(within, told).unwrap_or_else(|| panic!("no answer on stream {stream}"));
        if frame.kind == RST_STREAM { Err(code(&frame.payload)) } else { Ok(status(&frame.payload)) }
    }

    /// With which error the other side has ended the connection. `None`: it just closed. Panics when it has not.
    pub fn sent_away(&mut self, within: Duration) -> Option<u32> {
        let (end, mut reason) = (Instant::now() + within, None);
        while let Some(frame) = self.next(end.saturating_duration_since(Instant::now())) {
            if frame.kind == GOAWAY {
                reason = Some(code(&frame.payload[4..]));
            }
        }
        assert!(Instant::now() < end, "the connection is still open");
        reason
    }

    fn take(&mut self) -> Option<Frame> {
        let [a, b, c, kind, flags, stream @ ..] = *self.buffer.first_chunk::<HEAD>()?;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        let payload = self.buffer.get(HEAD..HEAD + length)?.to_vec();
        self.buffer.drain(..HEAD + length);
        Some(Frame { kind, flags, stream: u32::from_be_bytes(stream) & 0x7fff_ffff, payload })
    }
}

fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header field, spelled out (RFC 7541 §6.2.2).
pub fn field(name: &str, value: &str) -> Vec<u8> {
    [vec![0], text(name), text(value)].concat()
}

/// A string with its length before it (RFC 7541 §5).
pub fn text(text: &str) -> Vec<u8> {
    let mut coded = Vec::new();
    match u8::try_from(text.len()).ok().filter(|length| *length < 127) {
        Some(length) => coded.push(length),
        None => {
            coded.push(127);
            let mut rest = text.len() - 127;
            while rest >= 128 {
                coded.push(u8::try_from(rest % 128).expect("a byte") | 128);
                rest /= 128;
            }
            coded.push(u8::try_from(rest).expect("a byte"));
        }
    }
    coded.extend_from_slice(text.as_bytes());
    coded
}

fn code(payload: &[u8]) -> u32 {
    u32::from_be_bytes(*payload.first_chunk().expect("a code"))
}

/// What `:status` says, which comes first: by its index, or in digits (RFC 7541 §6.1, §6.2, appendix B).
pub fn status(block: &[u8]) -> u16 {
    match *block {
        [index @ 0x88..=0x8e, ..] => [200, 204, 206, 304, 400, 404, 500][usize::from(index - 0x88)],
        [_, length, ref digits @ ..] if length & 0x80 == 0 => {
            std::str::from_utf8(&digits[..3]).expect("digits").parse().expect("a status")
        }
        [_, length, ref coded @ ..] => {
            let coded = &coded[..usize::from(length & 0x7f)];
            let bits = coded.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1));
            let mut bits = bits.map(u16::from);
            let mut number = |count: usize| bits.by_ref().take(count).fold(0, |number, bit| number * 2 + bit);
            (0..3).fold(0, |status, _| {
                let digit = match number(5) {
                    short @ 0..=2 => short,
                    long => long * 2 + number(1) - 22,
                };
                status * 10 + digit
            })
        }
        _ => panic!("no status"),
    }
}
