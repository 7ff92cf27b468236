//! How much of what everybody shares one caller, one connection, and all of them together, may hold.
use std::time::Duration;

use super::checked::Checker;
use super::file;
use super::report::Key;

/// What there is room for at one instance. Numbers are at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Streams that clients open for themselves (`GET`, `subscriptions/listen`), which may stay open for hours.
    pub streams: usize,
    /// Of one user or program.
    pub streams_per_user: usize,
    /// The longest body that a rule may need, bytes.
    pub inspect_body: usize,
    /// The longest answer, or event of one, that can be filtered, bytes.
    pub inspect_answer: usize,
    /// Connections of clients.
    pub connections: usize,
    /// From one address, this machine's own among them. `None`: the usual number, and any from this machine.
    pub connections_per_address: Option<usize>,
    /// Requests under way, without streams.
    pub requests: usize,
    /// Memory of this process, bytes; 0: any number. `None`: a part of what its control group may hold.
    pub memory: Option<usize>,
    /// For a handshake, and for a request's header.
    pub header_time: Duration,
    /// The longest header, bytes.
    pub header_size: usize,
    /// Fields of a header.
    pub header_fields: usize,
    /// The longest body, bytes.
    pub body: usize,
    /// How long a body may stand still, and be slower than `body_rate`.
    pub body_time: Duration,
    /// Bytes a second.
    pub body_rate: usize,
    /// How long a client may take nothing of its answer.
    pub write_time: Duration,
    /// After how much silence a stream of events gets a comment, or over HTTP/2 its client a `PING`. Zero: never.
    pub keep_alive: Duration,
    /// On one connection over HTTP/2.
    pub streams_per_connection: u32,
    /// On one connection over HTTP/2, frames that carry nothing, in ten seconds.
    pub control_frames: usize,
    /// On one connection over HTTP/2, calls that are broken off beyond as many as are answered, in ten seconds.
    pub resets: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams: 10_000,
            streams_per_user: 256,
            inspect_body: 1024 * 1024,
            inspect_answer: 4 * 1024 * 1024,
            connections: 20_000,
            connections_per_address: None,
            requests: 10_000,
            memory: None,
            header_time: Duration::from_secs(10),
            header_size: 64 * 1024,
            header_fields: 100,
            body: 32 * 1024 * 1024,
            body_time: Duration::from_secs(30),
            body_rate: 256,
            write_time: Duration::from_secs(60),
            keep_alive: Duration::from_secs(15),
            streams_per_connection: 100,
            control_frames: 1000,
            resets: 100,
        }
    }
}

/// A body that is read ahead is never too long.
const BODY_LEAST: usize = 64 * 1024;
/// Shorter ones are common, and are read at once.
const HEADER_LEAST: usize = 4096;
/// What Pingora takes.
const HEADER_MOST: usize = 1024 * 1024 - 1;
const FIELDS_MOST: usize = 256;
/// Fewer are not enough to begin with.
const FRAMES_LEAST: usize = 50;
/// Longer waits are longer than any connection should be held for nothing.
const TIME_MOST: Duration = Duration::from_secs(60 * 60);

pub(super) fn check(check: &mut Checker<'_>, written: &file::Limits) -> Limits {
    let key = Key::top("limits");
    let usual = Limits::default();
    let mut from = |name: &str, written: Option<usize>, usual: usize, least: usize, most: usize| {
        let number = written.unwrap_or(usual);
        if number == 0 && least == 1 {
            check.refuse(&key.child(name), "is 0", "write 1 or more, or leave it out");
        } else if number < least {
            check.refuse(&key.child(name), "is too small", format!("write {least} or more, or leave it out"));
        } else if number > most {
            check.refuse(&key.child(name), "is too large", format!("write {most} or less, or leave it out"));
        }
        number
    };
    let most = usize::MAX;
    let per_connection = from(
        "streams_per_connection",
        written.streams_per_connection,
        usual.streams_per_connection as usize,
        1,
        1000,
    );
    let limits = Limits {
        streams: from("streams", written.streams, usual.streams, 1, most),
        streams_per_user: from("streams_per_user", written.streams_per_user, usual.streams_per_user, 1, most),
        inspect_answer: from("inspect_answer", written.inspect_answer, usual.inspect_answer, 1, most),
        inspect_body: from("inspect_body", written.inspect_body, usual.inspect_body, BODY_LEAST, most),
        connections: from("connections", written.connections, usual.connections, 1, most),
        connections_per_address: written
            .connections_per_address
            .map(|number| from("connections_per_address", Some(number), 1, 1, most)),
        requests: from("requests", written.requests, usual.requests, 1, most),
        header_size: from("header_size", written.header_size, usual.header_size, HEADER_LEAST, HEADER_MOST),
        header_fields: from("header_fields", written.header_fields, usual.header_fields, 16, FIELDS_MOST),
        body: from("body", written.body, usual.body, BODY_LEAST, most),
        control_frames: from(
            "control_frames",
            written.control_frames,
            usual.control_frames,
            FRAMES_LEAST,
            most,
        ),
        resets: from("resets", written.resets, usual.resets, FRAMES_LEAST, most),
        body_rate: from("body_rate", written.body_rate, usual.body_rate, 0, most),
        streams_per_connection: u32::try_from(per_connection).unwrap_or(usual.streams_per_connection),
        memory: written.memory,
        ..usual
    };
    let keep_alive = written.keep_alive.as_deref();
    let keep_alive =
        check.duration(&key.child("keep_alive"), keep_alive, usual.keep_alive, Duration::ZERO, TIME_MOST);
    let mut time = |name: &str, written: Option<&String>, usual: Duration| {
        let least = Duration::from_millis(100);
        check.duration(&key.child(name), written.map(String::as_str), usual, least, TIME_MOST)
    };
    Limits {
        header_time: time("header_time", written.header_time.as_ref(), usual.header_time),
        body_time: time("body_time", written.body_time.as_ref(), usual.body_time),
        write_time: time("write_time", written.write_time.as_ref(), usual.write_time),
        keep_alive,
        ..limits
    }
}
