//! An https server by hand that speaks HTTP/2 alone: one answer to every request, whose body is ended by trailers, as no
//! server does of itself (RFC 9113 §8.1); and one that ends streams and connections as it is told to.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::lock;
use super::tls_server::identity;

const PREFACE: usize = 24;
/// What everybody takes in one frame, bytes (RFC 9113 §4.2).
const LONGEST: usize = 16_384;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const INITIAL_WINDOW_SIZE: u16 = 4;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// Serves until the test program ends.
pub struct H2Server {
    pub url: String,
    /// In PEM; signed by itself, so it is also what has to be trusted.
    pub certificate: String,
}

pub const NO_ERROR: u32 = 0;
pub const INTERNAL_ERROR: u32 = 2;
pub const REFUSED_STREAM: u32 = 7;
pub const ENHANCE_YOUR_CALM: u32 = 11;

type Line = StreamOwned<ServerConnection, TcpStream>;

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Answer,
    /// Its stream is reset with this error. Only REFUSED_STREAM says that nothing was done (RFC 9113 §8.7).
    Reset(u32),
    /// GOAWAY, by which this call was not taken, and the end.
    Dismiss(u32),
    /// GOAWAY, by which this call was taken, its answer, and the end.
    DismissAndAnswer,
    /// The same without an answer.
    DismissAndLeave,
    /// Nothing is said any more.
    Leave,
    /// Answered, and then the connection ends.
    AnswerAndLeave,
    /// The same with GOAWAY.
    AnswerAndDismiss,
    /// A head of so many fields, each of so many bytes, and no body.
    Head(usize, usize),
}

/// Serves until the test program ends, and carries out the first act that is left, or answers.
pub struct Acting {
    pub url: String,
    /// In PEM.
    pub certificate: String,
    acts: Arc<Mutex<VecDeque<Act>>>,
    taken: Arc<AtomicUsize>,
    bytes: Arc<AtomicUsize>,
}

impl Acting {
    pub fn start() -> Self {
        Self::with_window(None)
    }

    /// Takes so many bytes of each call's body, and no more; `None`: as many as are usual, 65,535 of all bodies on a connection.
    pub fn with_window(window: Option<u32>) -> Self {
        let acts: Arc<Mutex<VecDeque<Act>>> = Arc::default();
        let (taken, bytes) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (left, count) = (acts.clone(), [taken.clone(), bytes.clone()]);
        let (url, certificate) = listen(move |mut line| {
            // Ends with the connection.
            let _ = act(&mut line, window, &left, &count).and_then(|()| leave(&mut line));
        });
        Acting { url, certificate, acts, taken, bytes }
    }

    pub fn next(&self, acts: &[Act]) {
        *lock(&self.acts) = acts.iter().copied().collect();
    }

    /// Calls that were carried out.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::SeqCst)
    }

    /// Bytes of bodies that came.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::SeqCst)
    }

    /// Acts that nothing has come for.
    pub fn left(&self) -> usize {
        lock(&self.acts).len()
    }
}

fn act(
    line: &mut Line,
    window: Option<u32>,
    acts: &Mutex<VecDeque<Act>>,
    [taken, bytes]: &[Arc<AtomicUsize>; 2],
) -> io::Result<()> {
    line.read_exact(&mut [0; PREFACE])?;
    let window = window.map(|size| [&INITIAL_WINDOW_SIZE.to_be_bytes()[..], &size.to_be_bytes()].concat());
    write(line, SETTINGS, 0, 0, &window.unwrap_or_default())?;
    let goodbye = |last: u32, error: u32| [last.to_be_bytes(), error.to_be_bytes()].concat();
    loop {
        let (kind, flags, stream, payload) = read(line)?;
        if kind == DATA {
            bytes.fetch_add(payload.len(), Ordering::SeqCst);
        }
        match kind {
            HEADERS | DATA if flags & END_STREAM != 0 => {}
            _ => {
                assent(line, kind, flags, &payload)?;
                continue;
            }
        }
        let act = lock(acts).pop_front().unwrap_or(Act::Answer);
        if !matches!(act, Act::Reset(REFUSED_STREAM) | Act::Dismiss(_)) {
            taken.fetch_add(1, Ordering::SeqCst);
        }
        match act {
            Act::Dismiss(error) => write(line, GOAWAY, 0, 0, &goodbye(stream.saturating_sub(2), error))?,
            Act::DismissAndAnswer | Act::DismissAndLeave => {
                write(line, GOAWAY, 0, 0, &goodbye(stream, NO_ERROR))?;
            }
            Act::Reset(error) => write(line, RST_STREAM, 0, stream, &error.to_be_bytes())?,
            _ => {}
        }
        match act {
            Act::Answer | Act::DismissAndAnswer | Act::AnswerAndLeave | Act::AnswerAndDismiss => {
                let head = [field(":status", "200"), field("content-type", "application/json")].concat();
                write(line, HEADERS, END_HEADERS, stream, &head)?;
                write(line, DATA, END_STREAM, stream, br#"{"jsonrpc":"2.0","id":1,"result":{}}"#)?;
            }
            Act::Head(fields, length) => write_head(line, stream, fields, length)?,
            _ => {}
        }
        match act {
            Act::Answer | Act::Reset(_) | Act::Head(..) => {}
            Act::AnswerAndDismiss => return write(line, GOAWAY, 0, 0, &goodbye(stream, NO_ERROR)),
            // By the good-bye alone its client has to know that nothing comes any more.
            Act::Dismiss(_) => return io::copy(line, &mut io::sink()).map(drop),
            _ => return Ok(()),
        }
    }
}

/// Ends a connection in order. With bytes unread the end would be a reset, which may take an answer or a good-bye with it.
fn leave(line: &mut Line) -> io::Result<()> {
    line.conn.send_close_notify();
    line.flush()?;
    line.sock.shutdown(Shutdown::Write)?;
    io::copy(&mut line.sock, &mut io::sink()).map(drop)
}

impl H2Server {
    /// At `https://localhost:port/mcp`. The body comes in these pieces, each a frame of its own.
    pub fn start(content_type: &'static str, pieces: Vec<String>) -> Self {
        let (url, certificate) = listen(move |line| {
            // Ends with the connection.
            let _ = serve(line, content_type, &pieces);
        });
        H2Server { url, certificate }
    }
}

/// Listens at `https://localhost:port/mcp`, whose certificate is in PEM, and serves each connection in a thread.
fn listen(serve: impl Fn(Line) + Send + Sync + 'static) -> (String, String) {
    let (config, certificate) = identity(&["localhost"]);
    let mut config = ServerConfig::clone(&config);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (config, serve) = (Arc::new(config), Arc::new(serve));
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let url = format!("https://localhost:{}/mcp", listener.local_addr().expect("address").port());
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (config, serve) = (Arc::clone(&config), Arc::clone(&serve));
            std::thread::spawn(move || {
                let session = ServerConnection::new(config).expect("TLS session");
                serve(StreamOwned::new(session, stream));
            });
        }
    });
    (url, certificate)
}

fn serve(mut line: Line, content_type: &str, pieces: &[String]) -> io::Result<()> {
    line.read_exact(&mut [0; PREFACE])?;
    write(&mut line, SETTINGS, 0, 0, &[])?;
    loop {
        let (kind, flags, stream, payload) = read(&mut line)?;
        match kind {
            HEADERS | DATA if flags & END_STREAM != 0 => {
                let head = [field(":status", "200"), field("content-type", content_type)].concat();
                write(&mut line, HEADERS, END_HEADERS, stream, &head)?;
                for piece in pieces {
                    write(&mut line, DATA, 0, stream, piece.as_bytes())?;
                }
                write(&mut line, HEADERS, END_HEADERS | END_STREAM, stream, &field("x-trailer", "1"))?;
            }
            _ => assent(&mut line, kind, flags, &payload)?,
        }
    }
}

/// What has to be said to a frame that is no call.
fn assent(line: &mut Line, kind: u8, flags: u8, payload: &[u8]) -> io::Result<()> {
    match kind {
        SETTINGS if flags & ACK == 0 => write(line, SETTINGS, ACK, 0, &[]),
        PING if flags & ACK == 0 => write(line, PING, ACK, 0, payload),
        _ => Ok(()),
    }
}

/// The head of an answer with so many fields, each of so many bytes.
fn write_head(line: &mut Line, stream: u32, fields: usize, length: usize) -> io::Result<()> {
    let head = [field(":status", "200"), field("x", &"f".repeat(length)).repeat(fields)].concat();
    let (first, rest) = head.split_at(head.len().min(LONGEST));
    write(line, HEADERS, END_STREAM, stream, first)?;
    for piece in rest.chunks(LONGEST) {
        write(line, CONTINUATION, 0, stream, piece)?;
    }
    write(line, CONTINUATION, END_HEADERS, stream, &[])
}

fn read(line: &mut Line) -> io::Result<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    line.read_exact(&mut head)?;
    let [a, b, c, kind, flags, id @ ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    line.read_exact(&mut payload)?;
    Ok((kind, flags, u32::from_be_bytes(id) & 0x7fff_ffff, payload))
}

fn write(line: &mut Line, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let frame = [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat();
    line.write_all(&frame)?;
    line.flush()
}

/// A header field, spelled out (RFC 7541 §6.2.2).
fn field(name: &str, value: &str) -> Vec<u8> {
    [vec![0], text(name), text(value)].concat()
}

/// Its length in seven bits, and what is more in further ones (RFC 7541 §5.1).
fn text(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    match text.len().checked_sub(127) {
        None => bytes.push(text.len() as u8),
        Some(mut rest) => {
            bytes.push(127);
            while rest >= 128 {
                bytes.push(rest as u8 | 128);
                rest >>= 7;
            }
            bytes.push(rest as u8);
        }
    }
    bytes.extend(text.as_bytes());
    bytes
}
