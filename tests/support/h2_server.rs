//! An https server by hand that speaks HTTP/2 alone: one answer to every request, whose body is ended by trailers, as no
//! server does of itself (RFC 9113 §8.1).

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::tls_server::identity;

const PREFACE: usize = 24;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// Serves until the test program ends.
pub struct H2Server {
    pub url: String,
    /// In PEM; signed by itself, so it is also what has to be trusted.
    pub certificate: String,
}

type Line = StreamOwned<ServerConnection, TcpStream>;

impl H2Server {
    /// At `https://localhost:port/mcp`. The body comes in these pieces, each a frame of its own.
    pub fn start(content_type: &'static str, pieces: Vec<String>) -> Self {
        let (config, certificate) = identity(&["localhost"]);
        let mut config = ServerConfig::clone(&config);
        config.alpn_protocols = vec![b"h2".to_vec()];
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let url = format!("https://localhost:{}/mcp", listener.local_addr().expect("address").port());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (config, pieces) = (Arc::clone(&config), pieces.clone());
                std::thread::spawn(move || {
                    let session = ServerConnection::new(config).expect("TLS session");
                    // Ends with the connection.
                    let _ = serve(StreamOwned::new(session, stream), content_type, &pieces);
                });
            }
        });
        H2Server { url, certificate }
    }
}

fn serve(mut line: Line, content_type: &str, pieces: &[String]) -> io::Result<()> {
    line.read_exact(&mut [0; PREFACE])?;
    write(&mut line, SETTINGS, 0, 0, &[])?;
    loop {
        let (kind, flags, stream, payload) = read(&mut line)?;
        match kind {
            SETTINGS if flags & ACK == 0 => write(&mut line, SETTINGS, ACK, 0, &[])?,
            PING if flags & ACK == 0 => write(&mut line, PING, ACK, 0, &payload)?,
            HEADERS | DATA if flags & END_STREAM != 0 => {
                let head = [field(":status", "200"), field("content-type", content_type)].concat();
                write(&mut line, HEADERS, END_HEADERS, stream, &head)?;
                for piece in pieces {
                    write(&mut line, DATA, 0, stream, piece.as_bytes())?;
                }
                write(&mut line, HEADERS, END_HEADERS | END_STREAM, stream, &field("x-trailer", "1"))?;
            }
            _ => {}
        }
    }
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
    let text = |text: &str| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
    [vec![0], text(name), text(value)].concat()
}
