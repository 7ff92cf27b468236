//! The bridge to the axum router: our own endpoints are answered from inside `request_filter`.
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, Version, header};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use pingora::time::timeout;
use pingora::{Error, ErrorType, Result};
use tower::ServiceExt as _;

use super::Gateway;
use super::admit::Admitted;
use super::context::Context;
use super::head::Said;
use crate::origin;
use crate::respond::{Failure, Reply};
use crate::web::About;

/// The largest body of a local request, bytes. None of ours comes near.
const BODY_MAX: usize = 64 * 1024;

impl Gateway {
    /// Answers a request, or has it go on: whether it is answered.
    pub(super) async fn take(&self, session: &mut Session, ctx: &mut Context) -> Result<bool> {
        match self.admit(session, ctx).await {
            Ok(Admitted::Proxied) => Ok(false),
            admitted => Box::pin(self.answer(admitted, session, ctx)).await.map(|()| true),
        }
    }

    /// Answers a request that does not go on to an upstream.
    async fn answer(
        &self,
        admitted: Result<Admitted, Failure>,
        session: &mut Session,
        ctx: &mut Context,
    ) -> Result<()> {
        match admitted {
            Ok(Admitted::Proxied) => Ok(()),
            Ok(Admitted::Local { path, authority }) => {
                let client = ctx.client;
                let request_id = ctx.request_id.to_str().unwrap_or_default().to_owned();
                let about = About { snapshot: Arc::clone(&ctx.snapshot), authority, client, request_id };
                serve(session, &self.router, &path, about).await?;
                ctx.reason = "local";
                Ok(())
            }
            Ok(Admitted::Preflight) => {
                ctx.reason = "preflight";
                answer(session, &preflight(session, ctx.origin.as_ref())).await
            }
            Err(failure) => self.refuse(failure, session, ctx).await,
        }
    }
}

/// Hands the request to the router and streams its answer. `path` is canonical.
pub async fn serve(session: &mut Session, router: &Router, path: &str, about: About) -> Result<()> {
    let (version, is_head) = (session.req_header().version, session.req_header().method == Method::HEAD);
    let within = about.snapshot.config.limits.body_time;
    let Ok(body) = timeout(within, read_body(session)).await else {
        return Err(Error::explain(ErrorType::ReadTimedout, "the body of a local request").into_down());
    };
    let Some(body) = body? else { return Ok(()) };
    let request = request(session, path, body, about)?;
    let response = match router.clone().oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let (parts, mut body) = response.into_parts();
    let mut head = ResponseHeader::from(parts);
    let status = head.status;
    let bodiless = is_head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if !bodiless && !head.headers.contains_key(header::CONTENT_LENGTH) {
        // axum leaves this to hyper, which is not here.
        match body.size_hint().exact() {
            Some(length) => head.insert_header(header::CONTENT_LENGTH, length)?,
            None if version == Version::HTTP_11 => {
                head.insert_header(header::TRANSFER_ENCODING, "chunked")?
            }
            None => {}
        }
    }
    session.write_response_header(Box::new(head), bodiless).await?;
    if bodiless {
        session.finish_body().await?;
        return Ok(());
    }
    loop {
        // What is ready goes first: a client that has its answer may send its next request at once, and that must not
        // be taken for data after the end of this one.
        let frame = tokio::select! {
            biased;
            frame = body.frame() => frame,
            gone = session.read_body_or_idle(true) => { gone?; return Ok(()); }
        };
        match frame {
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    session.write_response_body(Some(data), false).await?;
                }
            }
            Some(Err(error)) => return Err(Error::because(ErrorType::InternalError, "local body", error)),
            None => {
                session.write_response_body(None, true).await?;
                return Ok(());
            }
        }
    }
}

/// What a browser hears that asks before it calls.
pub fn preflight(session: &Session, origin: Option<&HeaderValue>) -> Reply {
    let asked = session.get_header(header::ACCESS_CONTROL_REQUEST_HEADERS);
    let mut headers = Vec::from(origin::preflight(asked));
    headers.extend(origin.into_iter().flat_map(origin::readable));
    Reply { status: StatusCode::NO_CONTENT, headers, body: Bytes::new(), reason: "preflight" }
}

/// Sends a finished answer and keeps the connection where that is possible.
pub async fn answer(session: &mut Session, reply: &Reply) -> Result<()> {
    if is_small(&Said::of(&session.req_header().headers)) {
        // The rest of a small body is read after the answer, so that a 401 does not cost the client its connection.
        session.set_close_on_response_before_downstream_finish(false);
    }
    let mut head = head(reply)?;
    let bodiless = session.req_header().method == Method::HEAD || reply.status == StatusCode::NO_CONTENT;
    if reply.status != StatusCode::NO_CONTENT {
        head.insert_header(header::CONTENT_LENGTH, reply.body.len())?;
    }
    session.write_response_header(Box::new(head), bodiless).await?;
    match bodiless {
        true => session.finish_body().await,
        false => session.write_response_body(Some(reply.body.clone()), true).await,
    }
}

/// The head of an answer of ours, its length still to come.
pub fn head(reply: &Reply) -> Result<ResponseHeader> {
    let mut head = ResponseHeader::build(reply.status, Some(reply.headers.len() + 1))?;
    for (name, value) in &reply.headers {
        head.append_header(name.clone(), value.clone())?;
    }
    Ok(head)
}

fn expects_continue(session: &Session) -> bool {
    session
        .get_header(header::EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Whether the unread body may be read later: never after `Expect: 100-continue`, where the client may leave it out.
pub(super) fn is_small(said: &Said) -> bool {
    said.length.is_some_and(|length| length <= BODY_MAX) && !said.is_awaited
}

async fn read_body(session: &mut Session) -> Result<Option<Vec<u8>>> {
    if expects_continue(session) {
        // Any header written before the body is read, even a 100, would otherwise end the connection.
        session.set_close_on_response_before_downstream_finish(false);
        session.write_continue_response().await?;
        session.set_close_on_response_before_downstream_finish(true);
    }
    let mut body = Vec::new();
    while let Some(chunk) = session.read_request_body().await? {
        if body.len() + chunk.len() > BODY_MAX {
            let mut head = ResponseHeader::build(StatusCode::PAYLOAD_TOO_LARGE, Some(1))?;
            head.insert_header(header::CONTENT_LENGTH, 0)?;
            head.insert_header(header::CACHE_CONTROL, "no-store")?;
            head.insert_header(header::ACCESS_CONTROL_ALLOW_ORIGIN, "*")?;
            session.write_response_header(Box::new(head), true).await?;
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}

fn request(session: &Session, path: &str, body: Vec<u8>, about: About) -> Result<http::Request<Body>> {
    let head = session.req_header();
    let path = if path.is_empty() { "/" } else { path };
    let uri = match head.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let mut request = http::Request::builder().method(head.method.clone()).uri(uri).extension(about);
    if let Some(headers) = request.headers_mut() {
        for (name, value) in &head.headers {
            if name != header::COOKIE {
                headers.append(name.clone(), value.clone());
            }
        }
        // HTTP/2 may split cookies over several fields (RFC 9113 §8.2.3).
        let cookies: Vec<&[u8]> =
            head.headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
            && !cookies.is_empty()
        {
            headers.insert(header::COOKIE, joined);
        }
    }
    request
        .body(Body::from(body))
        .map_err(|error| Error::because(ErrorType::InternalError, "local request", error))
}
