//! Whether the client at the other end of a connection over HTTP/2 is still there. While answers are under way on which nothing is
//! said, and it says nothing either, it is asked by a `PING` (RFC 9113 §6.7): what stands between sees that the connection lives,
//! and one that does not answer is gone. Over HTTP/1.1, which has no such frame, comments in streams of events do the former.
use std::future::{pending, poll_fn};
use std::time::Duration;

use h2::{Ping, PingPong};
use pingora::time::{sleep, timeout};
use tokio::sync::watch;

use super::calm::Calm;

/// After how much silence a client is asked, and how long it may take to say something then.
#[derive(Debug, Clone, Copy)]
pub struct Asks {
    pub period: Duration,
    pub within: Duration,
}

/// Waits until the client is known to have gone. Without a period nobody asks.
pub async fn gone(
    pings: Option<PingPong>,
    calm: &Calm,
    mut active: watch::Receiver<usize>,
    Asks { period, within }: Asks,
) {
    let Some(mut pings) = pings.filter(|_| !period.is_zero()) else { return pending().await };
    loop {
        // Without a sender nothing is under way any more.
        let _ = active.wait_for(|active| *active > 0).await;
        calm.listen();
        sleep(period).await;
        if *active.borrow() == 0 || !calm.is_silent() {
            continue;
        }
        // One that was never answered is still out.
        let _ = pings.send_ping(Ping::opaque());
        let answer = poll_fn(|cx| pings.poll_pong(cx));
        // Whoever says anything is there.
        if timeout(within, answer).await.is_err() && !calm.has_heard() {
            return;
        }
    }
}
