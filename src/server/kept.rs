//! What a client's connection over HTTP/1.1 is between two requests: a stream that is waited on, and nothing more. Pingora's
//! own loop waits with a session, a buffer for the next header and the future of the whole next request, which is nearly all
//! that an idle connection costs; here they come into being with the request's first bytes.
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use futures_util::future::BoxFuture;
use pingora::apps::{HttpPersistentSettings, HttpServerApp};
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;
use pingora::time::{Elapsed, timeout};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use super::doors::header::{Bounds, Header, Progress};
use super::doors::{Place, farewell};
use super::upgrade::{LINGER, Succeeded};
use crate::gateway::silence;
use crate::gateway::silence::lean::Lean;

/// Until its first filter gives it longer, a connection that is kept is kept that long, seconds.
const BEGIN: u64 = 60;
/// Idle connections are closed after that long.
const IDLE: Duration = Duration::from_secs(crate::gateway::KEEPALIVE_SECONDS);
/// As much as is read at first: the header of a request, and with luck all of a small one.
const FIRST: usize = 4096;
/// For the header to grow, should only its beginning have come; more than that much costs Pingora another read.
const ROOM: usize = 1024;

const TOO_LARGE: &[u8] =
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Serves one request after the other, until the connection ends or the process is told to.
pub async fn serve<A: HttpServerApp>(
    app: Arc<A>,
    stream: Stream,
    mut shutdown: ShutdownWatch,
    place: Place,
    bounds: Bounds,
    succeeded: Succeeded,
) {
    let mut stream: Stream = Box::new(Lean::new(stream));
    let (mut settings, mut patience) = (None, bounds.time);
    loop {
        let begun = tokio::select! {
            biased; // what has arrived is answered
            begun = timeout(patience, first(&mut stream)) => begun,
            () = over(&mut shutdown, &succeeded) => return,
        };
        let Ok(Ok(mut begun)) = begun else { return };
        if begun.is_empty() {
            return;
        }
        let mut header = Header::default();
        let progress = match header.look(&begun, &bounds) {
            Progress::Partial => Box::pin(rest(&mut stream, &mut begun, header, &bounds)).await,
            progress => Ok(progress),
        };
        match progress {
            Ok(Progress::Whole) => {}
            Ok(Progress::TooLong) => return refuse(stream, place, "header_size").await,
            Ok(Progress::TooMany) => return refuse(stream, place, "header_fields").await,
            Ok(Progress::Partial) => return,
            Err(Elapsed) => return place.hit("header_time"),
        }
        let session = session(stream, settings, begun);
        let Some(reusable) = app.process_new_http(session, &shutdown).await else { return };
        (stream, settings) = reusable.consume();
        silence::end(&stream);
        patience = IDLE;
    }
}

/// Turns a client away whose header goes beyond this limit. In a box, since hardly any connection needs the room.
fn refuse(stream: Stream, place: Place, limit: &'static str) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        place.hit(limit);
        farewell(stream, TOO_LARGE).await;
    })
}

/// Reads on until the header is complete or out of bounds; partial, if the client has left.
async fn rest(
    stream: &mut Stream,
    begun: &mut BytesMut,
    mut header: Header,
    bounds: &Bounds,
) -> Result<Progress, Elapsed> {
    let reading = async {
        loop {
            begun.reserve(ROOM);
            if !matches!(stream.read_buf(begun).await, Ok(1..)) {
                return Progress::Partial;
            }
            match header.look(begun, bounds) {
                Progress::Partial => {}
                progress => return progress,
            }
        }
    };
    timeout(bounds.time, reading).await
}

/// The process stops; after a hand-over, a moment later.
async fn over(shutdown: &mut ShutdownWatch, succeeded: &Succeeded) {
    // Without a sender nobody is left to wait for.
    let _ = shutdown.wait_for(|stops| *stops).await;
    if let Some(since) = succeeded.get() {
        tokio::time::sleep(LINGER.saturating_sub(since.elapsed())).await;
    }
}

/// The first bytes of a request; none if the client has left.
async fn first(stream: &mut Stream) -> io::Result<BytesMut> {
    poll_fn(|cx| {
        // On the stack, so that whoever says nothing holds no buffer.
        let mut space = [MaybeUninit::uninit(); FIRST];
        let mut read = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut *stream).poll_read(cx, &mut read))?;
        let mut begun = BytesMut::with_capacity(read.filled().len().max(ROOM));
        begun.extend_from_slice(read.filled());
        Poll::Ready(Ok(begun))
    })
    .await
}

/// A session that has already read `begun`.
fn session(stream: Stream, settings: Option<HttpPersistentSettings>, begun: BytesMut) -> ServerSession {
    let mut session = ServerSession::new_http1(stream);
    match settings {
        Some(settings) => settings.apply_to_session(&mut session),
        None => session.set_keepalive(Some(BEGIN)),
    }
    session.set_pipelined_prefix(begun);
    session
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use async_trait::async_trait;
    use pingora::apps::ReusedHttpStream;
    use pingora::http::ResponseHeader;
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
    use tokio::sync::watch;
    use tokio::task::JoinHandle;

    use crate::config::Limits;
    use crate::server::doors::Room;
    use crate::telemetry::Metrics;

    /// Answers with the path and the body that it was sent.
    struct Echo;

    #[async_trait]
    impl HttpServerApp for Echo {
        async fn process_new_http(
            self: &Arc<Self>,
            mut session: ServerSession,
            _shutdown: &ShutdownWatch,
        ) -> Option<ReusedHttpStream> {
            session.read_request().await.ok().filter(|read| *read)?;
            let mut answer = session.req_header().uri.path().as_bytes().to_vec();
            while let Some(piece) = session.read_request_body().await.unwrap() {
                answer.extend_from_slice(&piece);
            }
            let mut head = ResponseHeader::build(200, None).unwrap();
            head.insert_header("content-length", answer.len()).unwrap();
            session.write_response_header(Box::new(head)).await.unwrap();
            session.write_response_body(answer.into(), true).await.unwrap();
            let settings = HttpPersistentSettings::for_session(&session);
            let reusable = session.finish().await.ok().flatten()?;
            Some(ReusedHttpStream::from_reusable_stream(reusable, settings))
        }
    }

    fn served() -> (DuplexStream, watch::Sender<bool>, JoinHandle<()>) {
        served_by(Succeeded::default())
    }

    fn served_by(succeeded: Succeeded) -> (DuplexStream, watch::Sender<bool>, JoinHandle<()>) {
        let (here, there) = duplex(65536);
        let (stop, stops) = watch::channel(false);
        let room = Arc::new(Room::new(1, Arc::new(Metrics::new().unwrap())));
        let (place, bounds) = (room.enter(1).unwrap(), Bounds::from(&Limits::default()));
        let serving = serve(Arc::new(Echo), Box::new(here), stops, place, bounds, succeeded);
        (there, stop, tokio::spawn(serving))
    }

    async fn answered(client: &mut DuplexStream, end: &str) {
        let mut arrived = String::new();
        while !arrived.ends_with(end) {
            let mut read = [0; 1024];
            let length = client.read(&mut read).await.unwrap();
            assert_ne!(length, 0, "{arrived}");
            arrived.push_str(std::str::from_utf8(&read[..length]).unwrap());
        }
        assert!(arrived.starts_with("HTTP/1.1 200"), "{arrived}");
    }

    #[tokio::test]
    async fn one_request_after_the_other_is_answered_however_it_arrives() {
        let (mut client, _stop, _) = served();
        for piece in [1, 2, 50, 5000, 65536] {
            for body in [0, 3, 3000, 9000] {
                let head = format!("POST /{piece} HTTP/1.1\r\nhost: x\r\ncontent-length: {body}\r\n\r\n");
                let request = [head.as_bytes(), &vec![b'b'; body]].concat();
                for piece in request.chunks(piece) {
                    client.write_all(piece).await.unwrap();
                    tokio::task::yield_now().await;
                }
                answered(&mut client, &format!("\r\n\r\n/{piece}{}", "b".repeat(body))).await;
            }
        }
    }

    #[tokio::test]
    async fn a_large_head_is_read_to_its_end() {
        let (mut client, _stop, _) = served();
        let filler = "f".repeat(3 * FIRST);
        let request = format!("GET /large HTTP/1.1\r\nhost: x\r\nx-filler: {filler}\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        answered(&mut client, "\r\n\r\n/large").await;
    }

    #[tokio::test]
    async fn a_connection_ends_with_its_client_and_with_the_process() {
        for is_used in [false, true] {
            let (mut client, stop, serving) = served();
            let (mut other, _stop, serving_other) = served();
            if is_used {
                for client in [&mut client, &mut other] {
                    client.write_all(b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
                    answered(client, "\r\n\r\n/a").await;
                }
            }
            drop(other);
            serving_other.await.unwrap();
            stop.send(true).unwrap();
            serving.await.unwrap();
            assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
        }
    }

    #[tokio::test]
    async fn what_has_arrived_when_the_process_ends_is_answered() {
        let (mut client, stop, serving) = served();
        client.write_all(b"GET /late HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        stop.send(true).unwrap();
        answered(&mut client, "\r\n\r\n/late").await;
        serving.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_hand_over_whoever_was_about_to_ask_is_answered() {
        let succeeded = Succeeded::default();
        succeeded.set(super::super::upgrade::now()).unwrap();
        let (mut client, stop, serving) = served_by(succeeded);
        stop.send(true).unwrap();
        tokio::time::sleep(LINGER / 2).await;
        client.write_all(b"GET /about HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        answered(&mut client, "\r\n\r\n/about").await;
        serving.await.unwrap();
    }
}
