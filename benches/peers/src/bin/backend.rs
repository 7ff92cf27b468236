//! The MCP server behind every target: one thread, HTTP/1.1 and HTTP/2 without TLS.
//!
//!     POST /mcp          284 bytes of JSON, as POST /stream
//!     POST /busy         as POST /mcp, after twenty milliseconds
//!     POST /sse          ten events, each sent on its own
//!     GET  /stream       one event, and the stream stays open
//!     POST /big?bytes=N  N bytes
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use futures_util::{StreamExt, future, stream};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use peers::listening::listen;
use tokio::net::TcpListener;

const EVENTS: usize = 10;
const AT_WORK: Duration = Duration::from_millis(20);
const CHUNK: &[u8] = &[b'm'; 64 * 1024];

static ANSWER: LazyLock<Bytes> = LazyLock::new(|| {
    let text = "m".repeat(184);
    format!(
        r#"{{"jsonrpc": "2.0", "id": 1, "result": {{"content": [{{"type": "text", "text": "{text}"}}], "isError": false}}}}"#
    )
    .into()
});
static EVENT: LazyLock<Bytes> = LazyLock::new(|| {
    r#"event: message
data: {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": 1, "progress": 1}}

"#
    .into()
});

type Body = UnsyncBoxBody<Bytes, Infallible>;

#[derive(Parser)]
struct Options {
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
}

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let (head, mut body) = request.into_parts();
    while let Some(frame) = body.frame().await {
        frame?;
    }
    if head.uri.path() == "/busy" {
        tokio::time::sleep(AT_WORK).await;
    }
    let size = head.uri.query().and_then(|query| query.strip_prefix("bytes=")?.parse().ok());
    Ok(match (&head.method, head.uri.path(), size) {
        (&Method::POST, "/mcp" | "/stream" | "/busy", _) => typed("application/json", Full::new(ANSWER.clone()).boxed_unsync()),
        (&Method::POST, "/sse", _) => typed("text/event-stream", events(EVENTS)),
        (&Method::GET, "/stream", _) => typed("text/event-stream", open_stream()),
        (&Method::POST, "/big", Some(size)) => sized(size),
        _ => {
            let mut missing = Response::new(Full::default().boxed_unsync());
            *missing.status_mut() = StatusCode::NOT_FOUND;
            missing
        }
    })
}

fn typed(media_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

fn frame(bytes: Bytes) -> Result<Frame<Bytes>, Infallible> {
    Ok(Frame::data(bytes))
}

/// Yields before each further event, so that each is flushed before the next is there.
fn events(count: usize) -> Body {
    let events = stream::iter(0..count).then(|index| async move {
        if index > 0 {
            tokio::task::yield_now().await;
        }
        frame(EVENT.clone())
    });
    StreamBody::new(events).boxed_unsync()
}

fn open_stream() -> Body {
    let first = stream::once(future::ready(frame(EVENT.clone())));
    StreamBody::new(first.chain(stream::pending())).boxed_unsync()
}

fn sized(size: usize) -> Response<Body> {
    let chunks = (0..size)
        .step_by(CHUNK.len())
        .map(move |at| frame(Bytes::from_static(CHUNK).slice(..CHUNK.len().min(size - at))));
    let mut response =
        typed("application/octet-stream", StreamBody::new(stream::iter(chunks)).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(size));
    response
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let (socket, _) = listen(Options::parse().listen)?;
    let listener = TcpListener::from_std(socket)?;
    loop {
        let Ok((connection, _)) = listener.accept().await else { continue };
        connection.set_nodelay(true).ok();
        tokio::spawn(async move {
            // A client that leaves is no news.
            Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(connection), service_fn(answer))
                .await
                .ok();
        });
    }
}
