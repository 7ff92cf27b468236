//! How long an upstream keeps connections on which nothing is asked. It says so (`Keep-Alive`), or it is seen: a connection that
//! was found closed shows how long it had rested then, one that is still open shows that so long is not too long. Whoever
//! uses none that is nearly as old as that does not meet the moment in which it is closed. It is never a call that finds out: until
//! some connection was closed, none is used that has rested for nearly as long as any was seen to be open.
//!
//! A restart closes connections of any age, and what was learned of that is too little. One of those that are not used any more
//! therefore stays, and is open when it should long be closed: then all that was learned is forgotten.
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use memchr::memmem::{self, Finder};
use pingora_core::protocols::Stream;
use pingora_core::protocols::l4::ext::get_tcp_info;

use super::peer::IDLE;

/// An upstream may have another configuration since.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// By how much later than another a connection is closed by upstreams that look after them every second.
const SPREAD: Duration = Duration::from_secs(1);
/// The kernel counts its time in steps of at most so much.
const STEP: Duration = Duration::from_millis(10);
/// Closed by the other side, and not yet by us (`TCP_CLOSE_WAIT` of the kernel).
const CLOSE_WAIT: u8 = 8;
/// By neither (`TCP_ESTABLISHED`).
const ESTABLISHED: u8 = 1;

/// Whoever keeps them for less is met at the wrong moment, perhaps, before that is known.
const LEAST: Duration = Duration::from_secs(1);

/// What one upstream has shown.
#[derive(Debug, Default)]
pub struct Patience {
    closing: Option<Closing>,
    /// One has rested for so long and was open.
    outlived: Duration,
}

#[derive(Debug)]
struct Closing {
    after: Duration,
    seen: SystemTime,
}

impl Patience {
    /// How long a connection may have rested to be used again; `said`: what its upstream has said of it.
    pub fn allows(&self, said: Option<Duration>, now: SystemTime) -> Duration {
        let kept = self.known(said, now).unwrap_or_else(|| self.outlived.max(LEAST));
        IDLE.min(kept * 3 / 4)
    }

    /// How long it may have rested when the request goes out for which it was chosen: that may have a long body to wait for, and cannot be
    /// sent again. So nothing but what is known counts.
    pub fn bears(&self, said: Option<Duration>, now: SystemTime) -> Duration {
        self.known(said, now).map_or(IDLE, |kept| IDLE.min(kept * 3 / 4))
    }

    fn known(&self, said: Option<Duration>, now: SystemTime) -> Option<Duration> {
        let closing = self.closing.as_ref().filter(|closing| closing.is_recent(now));
        closing.map(|closing| closing.after).into_iter().chain(said).min()
    }

    /// One was closed after it had rested for so long. Right after an answer it was not for its rest.
    pub fn closed(&mut self, after: Duration, now: SystemTime) {
        if after < STEP {
            return;
        }
        self.open(after);
        self.closing.take_if(|closing| !closing.is_recent(now));
        let after = self.closing.as_ref().map_or(after, |closing| closing.after.min(after));
        // When that is forgotten, it is not yet refuted.
        self.outlived = after;
        self.closing = Some(Closing { after, seen: now });
    }

    /// One that has rested for so long was not closed by then.
    pub fn open(&mut self, rested: Duration) {
        self.outlived = self.outlived.max(rested);
        self.closing.take_if(|closing| rested > closing.after + SPREAD);
    }

    pub fn is_known(&self, now: SystemTime) -> bool {
        self.closing.as_ref().is_some_and(|closing| closing.is_recent(now))
    }
}

impl Closing {
    fn is_recent(&self, now: SystemTime) -> bool {
        now.duration_since(self.seen).unwrap_or_default() < FORGOTTEN
    }
}

/// How long a connection had rested when its upstream closed it; it has rested for `rested` now, and before that for as long as the
/// answer had waited for us. Not rather too long: the last segment that came is the good-bye, and the last with data the answer.
/// After a reset nobody knows.
pub fn closed_after(stream: &Stream, rested: Duration) -> Option<Duration> {
    let info = get_tcp_info(stream.id()).ok().filter(|info| info.tcpi_state == CLOSE_WAIT)?;
    let [since, heard] =
        [info.tcpi_last_ack_recv, info.tcpi_last_data_recv].map(|ago| Duration::from_millis(ago.into()));
    Some(rested.max(heard).saturating_sub(since + STEP))
}

/// Whether nobody has closed it.
pub fn is_open(stream: &Stream) -> bool {
    get_tcp_info(stream.id()).is_ok_and(|info| info.tcpi_state == ESTABLISHED)
}

/// Whether the other side alone has closed it, and has not reset it since.
pub fn is_closed(stream: &Stream) -> bool {
    get_tcp_info(stream.id()).is_ok_and(|info| info.tcpi_state == CLOSE_WAIT)
}

/// Bytes sent on it that its upstream has acknowledged: never more than were sent, which the count of those that went out can be,
/// where one was sent twice. The first byte acknowledged is none of ours (SYN).
pub fn acknowledged(stream: &Stream) -> Option<u64> {
    get_tcp_info(stream.id()).ok().map(|info| info.tcpi_bytes_acked.saturating_sub(1))
}

/// How long ago the last of an answer came, rather too long. It may have waited for us since.
pub fn heard(stream: &Stream) -> Option<Duration> {
    let info = get_tcp_info(stream.id()).ok()?;
    Some(Duration::from_millis(info.tcpi_last_data_recv.into()) + STEP)
}

/// What an answer that begins so says about it: `Keep-Alive: timeout=5` (RFC 2068 §19.7.1, and what Node's servers send). Less
/// than a second is rounded to none there, which says nothing.
pub fn said(answer: &[u8]) -> Option<Duration> {
    static TIMEOUT: LazyLock<Finder> = LazyLock::new(|| Finder::new("timeout="));
    const NAME: &[u8] = b"keep-alive:";
    let at = TIMEOUT.find(answer)?;
    let before = answer.get(..at)?;
    let line = before.get(memchr::memrchr(b'\n', before)? + 1..)?;
    let is_meant = line.get(..NAME.len()).is_some_and(|name| name.eq_ignore_ascii_case(NAME));
    if !is_meant || memmem::find(before, b"\r\n\r\n").is_some() {
        return None;
    }
    let digits = answer.get(at + TIMEOUT.needle().len()..)?.iter().take_while(|byte| byte.is_ascii_digit());
    let seconds =
        digits.fold(0_u32, |all, digit| all.saturating_mul(10).saturating_add((digit - b'0').into()));
    (seconds > 0).then(|| Duration::from_secs(seconds.into()))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    const NOW: SystemTime = UNIX_EPOCH;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_connection_rests_for_three_quarters_of_the_least_that_was_seen() {
        let mut patience = Patience::default();
        assert_eq!((patience.allows(None, NOW), patience.is_known(NOW)), (LEAST * 3 / 4, false));
        patience.closed(Duration::from_millis(2_500), NOW);
        patience.closed(seconds(2), NOW);
        patience.closed(Duration::from_millis(2_900), NOW);
        assert_eq!(
            (patience.allows(None, NOW), patience.is_known(NOW)),
            (Duration::from_millis(1_500), true)
        );
        assert_eq!(
            patience.allows(Some(seconds(1)), NOW),
            Duration::from_millis(750),
            "what is said counts too"
        );
        assert_eq!(patience.allows(Some(seconds(60)), NOW), Duration::from_millis(1_500));
        assert_eq!(Patience::default().allows(Some(seconds(60)), NOW), IDLE);
    }

    #[test]
    fn until_one_was_closed_none_rests_for_nearly_as_long_as_any_has() {
        let mut patience = Patience::default();
        for (open, allowed) in
            [(100, 750), (1_000, 750), (2_000, 1_500), (1_200, 1_500), (4_000, 3_000), (9_000, 4_000)]
        {
            patience.open(Duration::from_millis(open));
            assert_eq!(patience.allows(None, NOW), Duration::from_millis(allowed), "{open}");
        }
        assert_eq!(
            Patience::default().allows(Some(seconds(5)), NOW),
            Duration::from_millis(3_750),
            "as it has said"
        );
        assert_eq!(Patience::default().bears(None, NOW), IDLE);
        patience.closed(seconds(2), NOW);
        assert_eq!(patience.allows(None, NOW), Duration::from_millis(1_500));
        assert_eq!(patience.bears(None, NOW), Duration::from_millis(1_500));
    }

    #[test]
    fn what_was_seen_is_forgotten_unless_it_is_seen_again() {
        let mut patience = Patience::default();
        patience.closed(seconds(2), NOW);
        patience.closed(Duration::from_millis(2_100), NOW + seconds(500));
        assert!(patience.is_known(NOW + seconds(1_099)));
        assert_eq!(patience.allows(None, NOW + seconds(1_099)), Duration::from_millis(1_500));
        assert_eq!(patience.allows(None, NOW + seconds(1_100)), Duration::from_millis(1_500), "not refuted");
        assert!(!patience.is_known(NOW + seconds(1_100)));
        patience.open(seconds(3));
        assert_eq!(patience.allows(None, NOW + seconds(1_100)), Duration::from_millis(2_250));
        patience.closed(Duration::from_millis(2_400), NOW + seconds(1_100));
        assert_eq!(patience.allows(None, NOW + seconds(1_100)), Duration::from_millis(1_800));
    }

    #[test]
    fn one_that_outlives_it_refutes_it() {
        let mut patience = Patience::default();
        patience.closed(Duration::from_millis(20), NOW);
        patience.open(Duration::from_millis(1_020));
        assert!(patience.is_known(NOW), "some look after their connections every second");
        patience.open(Duration::from_millis(1_021));
        assert!(!patience.is_known(NOW));
        patience.closed(Duration::from_millis(20), NOW);
        patience.closed(seconds(3), NOW);
        assert_eq!(
            patience.allows(None, NOW),
            Duration::from_millis(2_250),
            "this one was not closed for so long"
        );
    }

    #[test]
    fn an_end_right_after_an_answer_says_nothing() {
        let mut patience = Patience::default();
        patience.closed(Duration::from_millis(9), NOW);
        assert!(!patience.is_known(NOW));
    }

    #[test]
    fn an_answer_says_how_long_its_connection_is_kept() {
        let head = |line: &str| {
            said(format!("HTTP/1.1 200 OK\r\n{line}\r\ncontent-length: 2\r\n\r\n{{}}").as_bytes())
        };
        assert_eq!(head("Keep-Alive: timeout=5"), Some(seconds(5)));
        assert_eq!(head("keep-alive: max=100, timeout=72"), Some(seconds(72)));
        assert_eq!(head("keep-alive:timeout=99999999999"), Some(seconds(u32::MAX.into())));
        for nothing in
            ["keep-alive: timeout=0", "keep-alive: timeout=", "x-keep-alive: timeout=5", "date: now"]
        {
            assert_eq!(head(nothing), None, "{nothing}");
        }
        let in_the_body = b"HTTP/1.1 200 OK\r\ncontent-length: 23\r\n\r\n\r\nkeep-alive: timeout=1";
        assert_eq!(said(in_the_body), None);
    }
}
