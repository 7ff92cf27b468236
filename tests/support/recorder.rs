//! An upstream by hand that keeps every byte it gets and reads it as strictly as anything does: what is well framed is a request
//! and is answered, anything else is a fault.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::lock;

#[derive(Clone, Debug)]
pub struct Recorded {
    /// As it came, to the last byte of its framing.
    pub bytes: Vec<u8>,
    pub method: String,
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Recorded {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// What is answered in place of `200` and the target, and whether the connection is closed behind it.
#[derive(Clone)]
struct Script {
    target: String,
    answer: Vec<u8>,
    closes: bool,
    is_early: bool,
}

#[derive(Default)]
struct Record {
    requests: Vec<Recorded>,
    faults: Vec<String>,
    script: Option<Script>,
}

pub struct Recorder {
    pub address: SocketAddr,
    record: Arc<Mutex<Record>>,
}

impl Recorder {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let record = Arc::new(Mutex::new(Record::default()));
        let kept = record.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, kept.clone()));
            }
        });
        Recorder { address, record }
    }

    /// Whole requests so far whose target begins like this, oldest first.
    pub fn below(&self, target: &str) -> Vec<Recorded> {
        let mut requests = lock(&self.record).requests.clone();
        requests.retain(|request| request.target.starts_with(target));
        requests
    }

    /// What came and was no request of one meaning.
    pub fn faults(&self) -> Vec<String> {
        lock(&self.record).faults.clone()
    }

    /// Requests for this target are answered with these bytes from now on.
    pub fn answer(&self, target: &str, answer: &[u8], closes: bool, is_early: bool) {
        let script = Script { target: target.into(), answer: answer.into(), closes, is_early };
        lock(&self.record).script = Some(script);
    }
}

async fn serve(mut stream: TcpStream, record: Arc<Mutex<Record>>) {
    let mut bytes = Vec::new();
    let mut is_answered = false;
    loop {
        let parsed = request(&bytes);
        if let Some(script) = early(&bytes, &record).filter(|_| !is_answered) {
            is_answered = true;
            let _ = stream.write_all(&script.answer).await;
            if script.closes {
                let _ = stream.shutdown().await;
            }
        }
        match parsed {
            Ok(Some((request, length))) => {
                bytes.drain(..length);
                let script = lock(&record).script.clone().filter(|script| script.target == request.target);
                let target = request.target.clone();
                lock(&record).requests.push(request);
                if std::mem::take(&mut is_answered) {
                    continue;
                }
                let (answer, closes) = match script {
                    Some(script) => (script.answer, script.closes),
                    None => (good(&target), false),
                };
                let _ = stream.write_all(&answer).await;
                if closes {
                    let _ = stream.shutdown().await;
                }
            }
            Ok(None) => {
                if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                    return;
                }
            }
            Err(fault) => {
                let shown = bytes.escape_ascii().to_string();
                lock(&record).faults.push(format!("{fault}: {shown}"));
                return;
            }
        }
    }
}

/// The answer to a request of which the head is there, and the body need not be.
fn early(bytes: &[u8], record: &Mutex<Record>) -> Option<Script> {
    let script = lock(record).script.clone().filter(|script| script.is_early)?;
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let line = String::from_utf8_lossy(&bytes[..head]).into_owned();
    (line.split(' ').nth(1) == Some(script.target.as_str())).then_some(script)
}

/// Names what was asked for, so that an answer cannot be taken for another one's.
pub fn good(target: &str) -> Vec<u8> {
    let body = format!("{{\"target\":\"{target}\"}}");
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// The first request in these bytes and how long it is; `None`: more has to come.
fn request(bytes: &[u8]) -> Result<Option<(Recorded, usize)>, &'static str> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| "a head that is no text")?;
    let mut lines = head.split("\r\n");
    if head.split("\r\n").any(|line| line.bytes().any(|byte| byte < 0x20 && byte != b'\t' || byte == 0x7f)) {
        return Err("a control character");
    }
    let line: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
    let [method, target, "HTTP/1.1"] = line[..] else { return Err("the request line") };
    let is_token = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
    };
    let mut headers = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(':').filter(|(name, _)| is_token(name)).ok_or("a header line")?;
        headers.push((name.to_lowercase(), value.trim().to_owned()));
    }
    let all = |wanted: &str| -> Vec<&str> {
        headers.iter().filter(|(name, _)| name == wanted).map(|(_, value)| value.as_str()).collect()
    };
    if all("host").len() != 1 {
        return Err("not one host");
    }
    let start = end + 4;
    let (lengths, codings) = (all("content-length"), all("transfer-encoding"));
    let framed = match (&lengths[..], &codings[..]) {
        ([], []) => Some((Vec::new(), start)),
        ([length], []) if !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit()) => {
            let length: usize = length.parse().map_err(|_| "a length that is no number")?;
            bytes.get(start..start + length).map(|body| (body.to_vec(), start + length))
        }
        ([], ["chunked"]) => chunks(bytes, start)?,
        _ => return Err("framed in two ways, or in none that is known"),
    };
    let (method, target) = (method.to_owned(), target.to_owned());
    let recorded = |(body, length): (Vec<u8>, usize)| {
        (Recorded { bytes: bytes[..length].to_vec(), method, target, headers, body }, length)
    };
    Ok(framed.map(recorded))
}

pub type Framed = Option<(Vec<u8>, usize)>;

/// Chunks with nothing beside their sizes, and no trailers.
pub fn chunks(bytes: &[u8], start: usize) -> Result<Framed, &'static str> {
    let (mut body, mut at) = (Vec::new(), start);
    loop {
        let rest = &bytes[at..];
        let Some(end) = rest.windows(2).position(|window| window == b"\r\n") else {
            return if rest.len() > 32 { Err("the size of a chunk") } else { Ok(None) };
        };
        let digits = std::str::from_utf8(&rest[..end]).map_err(|_| "the size of a chunk")?;
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err("the size of a chunk");
        }
        let size = usize::from_str_radix(digits, 16).map_err(|_| "the size of a chunk")?;
        at += end + 2;
        let Some(piece) = bytes.get(at..at + size + 2) else { return Ok(None) };
        if &piece[size..] != b"\r\n" {
            return Err("the end of a chunk");
        }
        body.extend_from_slice(&piece[..size]);
        at += size + 2;
        if size == 0 {
            return Ok(Some((body, at)));
        }
    }
}
