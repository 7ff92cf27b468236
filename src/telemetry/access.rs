//! The access log: one line per request on standard output. When its reader is too slow for [`output`] lines are dropped.
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::output;
use crate::config::AccessLog;

/// One request. Paths are without their query.
#[derive(Serialize)]
pub struct Line<'a> {
    pub time: String,
    pub request_id: &'a str,
    pub client_ip: Option<IpAddr>,
    /// The subject of the certificate that the client's connection was proven with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<&'a str>,
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
    /// `user`, `program` or `anonymous`.
    pub caller: &'static str,
    pub duration_ms: f64,
    /// Of it, for the credential; `None`: it was there, or was not asked for.
    pub credential_ms: Option<f64>,
    /// For a connection to the upstream, of the last attempt; `None`: there was one.
    pub connect_ms: Option<f64>,
    /// From the beginning of the last attempt to the head of the upstream's answer.
    pub first_byte_ms: Option<f64>,
    pub bytes_in: usize,
    pub bytes_out: usize,
    pub attempts: u32,
    /// Where the upstream was reached.
    pub upstream: Option<SocketAddr>,
    /// Of the trace, where the request is in one that is recorded.
    pub trace_id: Option<String>,
}

/// One connection of bytes.
#[derive(Serialize)]
pub struct Connection<'a> {
    pub time: String,
    pub kind: &'static str,
    pub client_ip: IpAddr,
    /// As of a request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<&'a str>,
    pub route: &'a str,
    pub upstream: Option<SocketAddr>,
    pub reason: &'a str,
    pub duration_ms: f64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

/// Where the lines go.
#[derive(Clone)]
pub struct Log(AccessLog);

impl Log {
    pub fn new(kind: AccessLog) -> Self {
        Self(kind)
    }

    pub fn is_on(&self) -> bool {
        self.0 != AccessLog::Off
    }

    pub fn write(&self, line: &Line<'_>) {
        self.write_as(line, || line.text());
    }

    pub fn write_connection(&self, line: &Connection<'_>) {
        self.write_as(line, || line.text());
    }

    fn write_as(&self, line: &impl Serialize, plainly: impl FnOnce() -> String) {
        let mut text = match self.0 {
            AccessLog::Off => return,
            AccessLog::Json => serde_json::to_vec(line).unwrap_or_default(),
            AccessLog::Text => plainly().into_bytes(),
        };
        text.push(b'\n');
        output::access().line(text);
    }
}

impl Connection<'_> {
    /// As [`Line::text`].
    fn text(&self) -> String {
        let Self { time, client_ip, route, reason, duration_ms, bytes_in, bytes_out, .. } = self;
        format!("{time} tcp {client_ip} {route} {duration_ms:.1}ms {bytes_in}B {bytes_out}B {reason}")
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
