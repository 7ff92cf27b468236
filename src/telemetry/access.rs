//! The access log: one line per request on standard output, written by a thread of its own so that a slow reader
//! never holds a request up. When the reader is too slow for the buffer lines are dropped.
use std::io::Write;
use std::net::IpAddr;

use serde::Serialize;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};

use crate::config::AccessLog;

/// One request. Paths are without their query.
#[derive(Serialize)]
pub struct Line<'a> {
    pub time: String,
    pub request_id: &'a str,
    pub client_ip: Option<IpAddr>,
    pub method: &'a str,
    pub host: &'a str,
    pub path: &'a str,
    pub route: Option<&'a str>,
    pub status: u16,
    pub reason: &'a str,
    pub user: Option<&'a str>,
    pub client_id: Option<&'a str>,
    pub mcp_method: Option<&'a str>,
    pub mcp_name: Option<&'a str>,
    pub duration_ms: f64,
    pub bytes_out: usize,
    pub attempts: u32,
}

/// Where the lines go.
pub struct Log {
    writer: Option<(NonBlocking, bool)>,
}

impl Log {
    /// The log, and the guard that writes out the rest when it is dropped.
    pub fn new(kind: AccessLog) -> (Self, Option<WorkerGuard>) {
        let json = match kind {
            AccessLog::Off => return (Self { writer: None }, None),
            AccessLog::Json => true,
            AccessLog::Text => false,
        };
        let (writer, flush) = NonBlockingBuilder::default().lossy(true).finish(std::io::stdout());
        (Self { writer: Some((writer, json)) }, Some(flush))
    }

    pub fn is_on(&self) -> bool {
        self.writer.is_some()
    }

    pub fn write(&self, line: &Line<'_>) {
        let Some((writer, json)) = &self.writer else {
            return;
        };
        let mut text =
            if *json { serde_json::to_vec(line).unwrap_or_default() } else { line.text().into_bytes() };
        text.push(b'\n');
        // A full buffer drops the line; that is what non-blocking means.
        let _ = writer.clone().write_all(&text);
    }
}

impl Line<'_> {
    /// For a terminal: no character in it moves the cursor or ends the line.
    fn text(&self) -> String {
        let user = self.user.unwrap_or("-");
        let Self { time, method, host, path, status, reason, duration_ms, bytes_out, .. } = self;
        format!("{time} {status} {method} {host}{path} {duration_ms:.1}ms {bytes_out}B {reason} {user:?}")
            .replace(char::is_control, "?")
    }
}
