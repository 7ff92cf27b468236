//! What is noted about a finished request.
use pingora::Error;
use pingora::proxy::Session;

use super::context::Context;
use super::{Gateway, screen};
use crate::managed::address::masked;
use crate::mcp;
use crate::telemetry::access::Line;

/// More of a path is not logged, bytes.
const PATH_MAX: usize = 2048;

impl Gateway {
    pub(super) fn record(&self, session: &Session, error: Option<&Error>, ctx: &mut Context) {
        let status = match session.response_written() {
            Some(head) if !head.status.is_informational() => head.status.as_u16(),
            _ => 0,
        };
        if ctx.reason == "ok" && error.is_some() {
            ctx.reason = "broken_off";
        }
        error.into_iter().for_each(|error| self.note_end(error));
        let route = ctx.route.as_ref().map_or("-", |route| route.label());
        let class = match status {
            200..=299 => "2xx",
            300..=399 => "3xx",
            400..=499 => "4xx",
            500..=599 => "5xx",
            _ => "none",
        };
        self.metrics.requests.with_label_values(&[route, class, ctx.reason]).inc();
        self.metrics.duration.with_label_values(&[route]).observe(ctx.elapsed().as_secs_f64());
        if self.access.is_on() {
            self.write_access_line(session, ctx, status);
        }
    }

    fn write_access_line(&self, session: &Session, ctx: &Context, status: u16) {
        let head = session.req_header();
        let path = masked(head.uri.path());
        let call = mcp::Call::from_headers(&head.headers);
        self.access.write(&Line {
            time: humantime::format_rfc3339_millis(self.authority.clock.now()).to_string(),
            request_id: ctx.request_id.to_str().unwrap_or_default(),
            client_ip: screen::client(session),
            method: head.method.as_str(),
            host: screen::host(head).unwrap_or_default(),
            path: path.get(..PATH_MAX).unwrap_or(&path),
            route: ctx.route.as_ref().map(|route| route.name.as_str()),
            status,
            reason: ctx.reason,
            user: ctx.target.as_ref().map(|target| target.caller.subject()),
            client_id: ctx.target.as_ref().map(|target| target.caller.client()),
            mcp_method: call.method,
            mcp_name: call.name,
            duration_ms: (ctx.elapsed().as_secs_f64() * 1e6).round() / 1e3,
            bytes_out: session.body_bytes_sent(),
            attempts: ctx.attempts,
        });
    }
}
