//! A connection over HTTP/2, from its preface to its end. Pingora's own loop around `h2` takes frames that carry nothing without
//! end, waits for a header or a body however long, and gives everybody the limits of the start.
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::FutureExt;
use pingora::apps::HttpServerApp;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::{H2Accept, H2Options, HttpSession, default_h2_options, handshake};
use pingora::protocols::{Digest, Stream};
use pingora::server::ShutdownWatch;
use pingora::time::timeout;
use tokio::io::AsyncReadExt;
use tokio::sync::watch;

use super::alive::{self, Asks};
use super::calm::{Calm, Late};
use super::frames::{ENHANCE_YOUR_CALM, PREFACE};
use super::wire::Wire;
use super::{FAREWELL, Place};
use crate::config::Limits;

/// Of one answer, bytes that its client has not taken yet.
const SEND_BUFFER: usize = 256 * 1024;
/// Idle connections are closed after that long; those on which nothing was ever asked, after the time of a header.
const IDLE: Duration = Duration::from_secs(300);
/// So many requests that are none are borne with.
const MALFORMED: usize = 32;

/// What one connection may do. What is left out keeps to bounds already, in `h2`.
fn options(limits: &Limits) -> H2Options {
    let mut options = default_h2_options();
    options.max_concurrent_streams(limits.streams_per_connection);
    options.max_header_list_size(u32::try_from(limits.header_size).unwrap_or(u32::MAX));
    options.max_send_buffer_size(SEND_BUFFER);
    options
}

/// Serves requests, each in a task of its own, until the connection ends or the process is told to.
pub async fn serve<A>(app: Arc<A>, stream: Stream, shutdown: ShutdownWatch, place: Place, limits: Limits)
where
    A: HttpServerApp + Send + Sync + 'static,
{
    let place = Arc::new(place);
    let calm = Arc::new(Calm::new(&limits, Arc::clone(&place)));
    let stream = match timeout(limits.header_time, prefaced(stream, &calm)).await {
        Ok(Some(stream)) => stream,
        Ok(None) => return,
        Err(_) => return place.hit("handshake"),
    };
    let digest = Arc::new(Digest {
        ssl_digest: stream.get_ssl_digest(),
        timing_digest: stream.get_timing_digest(),
        proxy_digest: stream.get_proxy_digest(),
        socket_digest: stream.get_socket_digest(),
    });
    let Ok(mut connection) = handshake(stream, Some(options(&limits))).await else { return };
    let (active, is_active) = watch::channel(0);
    let active = Arc::new(active);
    let (mut stops, mut malformed) = (false, 0);
    // Made once: what is waited for is looked at again for each request.
    let mut told = shutdown.clone();
    let mut stopping = pin!(told.wait_for(|stops| *stops));
    let mut limit = pin!(calm.gone_too_far());
    let asks = Asks { period: limits.keep_alive, within: limits.write_time };
    let mut gone = pin!(alive::gone(connection.ping_pong(), &calm, is_active.clone(), asks));
    let mut idle = pin!(idle(is_active, limits.header_time, &calm));
    let limit = loop {
        let accepted = tokio::select! {
            biased;
            _ = &mut stopping, if !stops => {
                connection.graceful_shutdown();
                stops = true;
                continue;
            }
            limit = &mut limit => break limit,
            () = &mut gone => {
                tracing::info!(target: "postern::server", "a client over HTTP/2 does not answer any more");
                return place.hit("write_time");
            }
            accepted = HttpSession::from_h2_conn(&mut connection, Arc::clone(&digest)) => accepted,
            () = &mut idle, if !stops => return,
        };
        match accepted {
            Ok(Some(H2Accept::Session(session))) => {
                let (app, shutdown) = (Arc::clone(&app), shutdown.clone());
                let guard = Active::begin(&active);
                tokio::spawn(request(
                    app,
                    session,
                    shutdown,
                    calm.body_of_newest(),
                    Arc::clone(&place),
                    guard,
                ));
            }
            Ok(Some(H2Accept::Rejected)) if malformed < MALFORMED => malformed += 1,
            Ok(Some(H2Accept::Rejected)) => break "http2",
            Ok(None) | Err(_) if calm.is_dismissed() => return place.hit("http2"),
            Ok(None) | Err(_) => return,
        }
    };
    place.hit(limit);
    connection.abrupt_shutdown(ENHANCE_YOUR_CALM.into());
    let ending = async {
        while let Ok(Some(_)) = HttpSession::from_h2_conn(&mut connection, Arc::clone(&digest)).await {}
    };
    if timeout(FAREWELL, ending).await.is_err() {
        tracing::trace!(target: "postern::server", "closed on a client that was sent away");
    }
}

/// One request, unless it is broken off already: all that had come with it was looked at before, so rapid resets never get
/// further than here. It ends as it is when its body does not come on, and its stream with it (`CANCEL`).
async fn request<A: HttpServerApp>(
    app: Arc<A>,
    mut session: HttpSession,
    shutdown: ShutdownWatch,
    late: Option<Late>,
    place: Arc<Place>,
    _active: Active,
) {
    if let Some(Ok(_reason)) = session.idle().now_or_never() {
        return;
    }
    let serving = app.process_new_http(ServerSession::new_http2(session), &shutdown);
    let Some(late) = late else {
        serving.await;
        return;
    };
    tokio::select! {
        biased; // what is here is answered
        _ = serving => {}
        () = late.notified() => {
            tracing::info!(target: "postern::server", "the body of a request over HTTP/2 did not come on");
            place.hit("body_time");
        }
    }
}

/// A connection whose preface is here: `h2` would wait for it however long.
async fn prefaced(mut stream: Stream, calm: &Arc<Calm>) -> Option<Stream> {
    let mut begun = BytesMut::with_capacity(256);
    while begun.len() < PREFACE {
        if stream.read_buf(&mut begun).await.ok()? == 0 {
            return None;
        }
    }
    Some(Box::new(Wire::watched(stream, begun.freeze(), Arc::clone(calm))))
}

/// Waits until nothing has been under way for so long, and no header has begun; `patience`: before the first request.
async fn idle(mut active: watch::Receiver<usize>, mut patience: Duration, calm: &Calm) {
    loop {
        if active.has_changed().is_ok_and(|changed| changed) {
            patience = IDLE;
        }
        // Without a sender nothing is.
        let _ = active.wait_for(|active| *active == 0).await;
        match timeout(patience, active.changed()).await {
            Ok(Ok(())) => patience = IDLE,
            Ok(Err(_)) => return,
            Err(_) if calm.awaits_header() => {}
            Err(_) => return,
        }
    }
}

/// Counts as under way until dropped.
struct Active(Arc<watch::Sender<usize>>);

impl Active {
    fn begin(active: &Arc<watch::Sender<usize>>) -> Self {
        active.send_modify(|active| *active += 1);
        Self(Arc::clone(active))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.send_modify(|active| *active = active.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::room::Room;
    use super::*;
    use crate::telemetry::Metrics;

    const PATIENCE: Duration = Duration::from_millis(10);

    async fn is_idle(active: watch::Receiver<usize>, within: Duration) -> bool {
        let room = Arc::new(Room::new(1, Arc::new(Metrics::new().unwrap())));
        let calm = Calm::new(&Limits::default(), Arc::new(room.enter(1).unwrap()));
        timeout(within, idle(active, PATIENCE, &calm)).await.is_ok()
    }

    #[tokio::test]
    async fn nothing_is_idle_while_a_request_is_under_way() {
        let active = Arc::new(watch::channel(0).0);
        let (one, other) = (Active::begin(&active), Active::begin(&active));
        drop(one);
        assert!(!is_idle(active.subscribe(), PATIENCE * 5).await);
        drop(other);
        assert!(is_idle(active.subscribe(), Duration::from_secs(10)).await);
    }

    #[tokio::test]
    async fn whoever_has_asked_may_rest_for_longer() {
        let (active, watched) = watch::channel(0);
        let active = Arc::new(active);
        drop(Active::begin(&active));
        assert!(!is_idle(watched, PATIENCE * 5).await);
        let waiting = is_idle(active.subscribe(), Duration::from_secs(1));
        let asking = async { drop(Active::begin(&active)) };
        assert!(!tokio::join!(waiting, asking).0);
    }
}
