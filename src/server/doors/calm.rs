//! Whether the client at the other end of a connection over HTTP/2 keeps calm (RFC 9113 §10.5): how many frames it sends that
//! carry nothing, how many calls it breaks off, how long a header takes it, and which bodies do not come on. `h2` bounds what it
//! holds for a client, but answers whatever it is sent, and waits however long.
//!
//! A call that is broken off has cost what a call costs, and its place among those under way is free at once: so a client could
//! have us begin any number (rapid reset, CVE-2023-44487; by frames for which we reset it, CVE-2025-8671). It may do so as often as
//! its calls are answered, and some times more: whoever cancels what takes too long, or leaves a page, stays far below.
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pingora::time::sleep;
use tokio::sync::Notify;

use super::super::upgrade::now;
use super::allowance::Allowance;
use super::frames::{
    CONTINUATION, DATA, ENHANCE_YOUR_CALM, Frame, Frames, GOAWAY, HEADERS, PING, PROTOCOL_ERROR,
    REFUSED_STREAM, RST_STREAM, Seen, WINDOW_UPDATE,
};
use super::room::Place;
use crate::config::Limits;

/// How many updates of windows a client may send for a frame of an answer, as Envoy has it.
const UPDATES: usize = 10;
/// Both windows as they are before any update (RFC 9113 §6.9.2): nothing else is set.
const WINDOW: i64 = 65_535;
/// For how many that the client broke off itself one counts that we had to break off.
const BROKEN: usize = 5;
/// So many answers without a body are remembered.
const BODILESS: usize = 32;

#[derive(Debug)]
pub struct Calm {
    state: Mutex<State>,
    /// Whose connection it is.
    place: Arc<Place>,
    /// There is something to wait for that was not there before.
    stirred: Notify,
}

/// Of a stream, told once that its body does not come on.
pub type Late = Arc<Notify>;

#[derive(Debug)]
struct State {
    header_time: Duration,
    body_time: Duration,
    /// Bytes a second.
    body_rate: f64,
    from_client: Frames,
    to_client: Frames,
    /// Frames that may still come, and updates on top of them.
    control_frames: Allowance,
    updates: usize,
    /// Calls that may still be broken off, and those of which it is not known yet: begun, and neither answered nor ended.
    resets: Allowance,
    unanswered: Vec<u32>,
    most_unanswered: usize,
    /// `PING`s that the client has not answered yet.
    asked: usize,
    /// Whether something came, and went, since somebody began to listen.
    heard: bool,
    said: bool,
    /// When a header that has begun has to be here.
    header_due: Option<Instant>,
    bodies: Vec<Body>,
    /// What the client may still send.
    window: i64,
    /// The last stream that was begun.
    newest: u32,
    /// Streams whose answers ended with their heads, the last of them.
    bodiless: VecDeque<u32>,
    /// Until when is waited.
    awaited: Option<Instant>,
    over: Option<&'static str>,
    /// `h2` has had enough of it.
    dismissed: bool,
}

/// One that is on its way.
#[derive(Debug)]
struct Body {
    stream: u32,
    /// When the next of it has to be here.
    due: Instant,
    window: i64,
    late: Late,
}

impl Calm {
    pub fn new(limits: &Limits, place: Arc<Place>) -> Self {
        let now = now();
        let streams = limits.streams_per_connection as usize;
        let state = State {
            header_time: limits.header_time,
            body_time: limits.body_time,
            body_rate: limits.body_rate as f64,
            from_client: Frames::after_preface(),
            to_client: Frames::default(),
            control_frames: Allowance::of(limits.control_frames, now),
            updates: 0,
            // All that are under way may be cancelled at once.
            resets: Allowance::of(limits.resets.max(streams), now),
            unanswered: Vec::new(),
            // Under way, and refused or ended without the client's having taken that yet.
            most_unanswered: 2 * streams,
            asked: 0,
            heard: false,
            said: false,
            header_due: None,
            bodies: Vec::new(),
            window: WINDOW,
            newest: 0,
            bodiless: VecDeque::new(),
            awaited: None,
            over: None,
            dismissed: false,
        };
        Self { state: Mutex::new(state), place, stirred: Notify::new() }
    }

    /// Looks at what came from the client. How many bytes of it go on at once, and whether a header ends there: with one at a
    /// time it is known which stream a request belongs to.
    pub fn received(&self, bytes: &[u8]) -> (usize, bool) {
        let (mut state, mut rest, mut header) = (self.state(), bytes, false);
        let now = now();
        state.heard |= !bytes.is_empty();
        while let Some((frame, seen)) = state.from_client.next(&mut rest) {
            match seen {
                Seen::Head => state.begins(&frame, now),
                Seen::Payload(length) if frame.kind == DATA => state.comes_on(frame.stream, length, now),
                Seen::Payload(_) => {}
                Seen::Whole => header = state.ends(&frame),
            }
            if header || state.over.is_some() {
                break;
            }
        }
        let due = state.due();
        if state.over.is_some() || due.is_some_and(|due| state.awaited.is_none_or(|awaited| due < awaited)) {
            self.stirred.notify_one();
        }
        (bytes.len() - rest.len(), header)
    }

    /// Looks at what is sent to the client.
    pub fn sent(&self, mut bytes: &[u8]) {
        let mut state = self.state();
        state.said |= !bytes.is_empty();
        while let Some((frame, seen)) = state.to_client.next(&mut bytes) {
            match (frame.kind, seen) {
                (PING, Seen::Head) if frame.asks() => state.asked += 1,
                (DATA, Seen::Head) => state.updates = state.updates.saturating_add(UPDATES),
                (HEADERS, Seen::Head) => state.answers(&frame),
                (RST_STREAM, Seen::Head) => state.forget(frame.stream),
                (RST_STREAM, Seen::Whole) => {
                    state.refused(&frame).into_iter().for_each(|limit| self.place.hit(limit));
                    if state.breaks(&frame, now()) {
                        self.stirred.notify_one();
                    }
                }
                (WINDOW_UPDATE, Seen::Whole) => state.opens(&frame),
                (GOAWAY, Seen::Whole) => state.dismissed |= frame.error() == ENHANCE_YOUR_CALM,
                _ => {}
            }
        }
    }

    /// The body of the stream that was begun last, if one is to come.
    pub fn body_of_newest(&self) -> Option<Late> {
        let state = self.state();
        let body = state.bodies.iter().find(|body| body.stream == state.newest)?;
        Some(Arc::clone(&body.late))
    }

    /// Whether a header has begun.
    pub fn awaits_header(&self) -> bool {
        self.state().header_due.is_some()
    }

    /// Whether nothing more of it is read.
    pub fn is_over(&self) -> bool {
        self.state().over.is_some()
    }

    /// Whether the client was told to calm down.
    pub fn is_dismissed(&self) -> bool {
        self.state().dismissed
    }

    /// Looks from now on whether anything passes.
    pub fn listen(&self) {
        let mut state = self.state();
        (state.heard, state.said) = (false, false);
    }

    /// Whether nothing has come or gone since then.
    pub fn is_silent(&self) -> bool {
        let state = self.state();
        !state.heard && !state.said
    }

    /// Whether something has come since then.
    pub fn has_heard(&self) -> bool {
        self.state().heard
    }

    /// Waits until the client has gone too far: the limit that it has come to. Bodies that are late meanwhile end alone.
    pub async fn gone_too_far(&self) -> &'static str {
        loop {
            let due = match self.overdue(now()) {
                Ok(due) => due,
                Err(limit) => return limit,
            };
            match due {
                None => self.stirred.notified().await,
                Some(due) => tokio::select! {
                    () = self.stirred.notified() => {}
                    () = sleep(due.saturating_duration_since(now())) => {}
                },
            }
        }
    }

    /// Until when there is nothing to do.
    fn overdue(&self, now: Instant) -> Result<Option<Instant>, &'static str> {
        let mut state = self.state();
        if state.header_due.is_some_and(|due| due <= now) {
            state.over = Some("header_time");
        }
        if let Some(limit) = state.over {
            return Err(limit);
        }
        state.end_late(now);
        state.awaited = state.due();
        Ok(state.awaited)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn begins(&mut self, frame: &Frame, now: Instant) {
        match frame.kind {
            HEADERS => {
                self.header_due.get_or_insert(now + self.header_time);
                if frame.stream > self.newest {
                    self.begins_call(frame.stream, now);
                }
                if frame.stream > self.newest && !frame.ends_stream() {
                    let (stream, due) = (frame.stream, now + self.body_time);
                    self.bodies.push(Body { stream, due, window: WINDOW, late: Late::default() });
                }
            }
            DATA => {
                let length = i64::try_from(frame.length).unwrap_or(i64::MAX);
                self.window = self.window.saturating_sub(length);
                let body = self.bodies.iter_mut().find(|body| body.stream == frame.stream);
                body.into_iter().for_each(|body| body.window = body.window.saturating_sub(length));
                if frame.length == 0 && !frame.ends_stream() {
                    self.count(now);
                }
            }
            CONTINUATION if frame.length > 0 => {}
            WINDOW_UPDATE if self.updates > 0 => self.updates -= 1,
            PING if frame.answers() && self.asked > 0 => self.asked -= 1,
            RST_STREAM => {
                self.forget(frame.stream);
                self.count(now);
                if self.was_unanswered(frame.stream) {
                    self.count_resets(1, now);
                }
            }
            _ => self.count(now),
        }
    }

    /// One more that carries nothing.
    fn count(&mut self, now: Instant) {
        if !self.control_frames.takes(now) {
            self.over.get_or_insert("control_frames");
        }
    }

    /// Whoever takes nothing of what becomes of its calls has so many that nobody knows of whether they are broken off.
    fn begins_call(&mut self, stream: u32, now: Instant) {
        if self.unanswered.len() < self.most_unanswered {
            self.unanswered.push(stream);
        } else {
            self.count_resets(1, now);
        }
    }

    /// So many more calls that are broken off.
    fn count_resets(&mut self, count: usize, now: Instant) {
        if !(0..count).all(|_| self.resets.takes(now)) {
            self.over.get_or_insert("resets");
        }
    }

    /// Whether it was, until now.
    fn was_unanswered(&mut self, stream: u32) -> bool {
        let place = self.unanswered.iter().position(|unanswered| *unanswered == stream);
        place.map(|place| self.unanswered.swap_remove(place)).is_some()
    }

    /// A body that comes more slowly than it has to loses of its time, until none is left.
    fn comes_on(&mut self, stream: u32, length: usize, now: Instant) {
        let (full, rate) = (now + self.body_time, self.body_rate);
        if let Some(body) = self.bodies.iter_mut().find(|body| body.stream == stream) {
            let gained = Duration::try_from_secs_f64(length as f64 / rate).ok();
            body.due =
                gained.and_then(|gained| body.due.checked_add(gained)).map_or(full, |due| due.min(full));
        }
    }

    /// Whether a header ends with it.
    fn ends(&mut self, frame: &Frame) -> bool {
        if frame.ends_stream() {
            self.forget(frame.stream);
        }
        if frame.ends_headers() {
            self.header_due = None;
            self.newest = self.newest.max(frame.stream);
        }
        frame.ends_headers()
    }

    fn answers(&mut self, frame: &Frame) {
        if self.was_unanswered(frame.stream) {
            self.resets.gains();
        }
        if frame.ends_stream() {
            self.bodiless.truncate(BODILESS - 1);
            self.bodiless.push_front(frame.stream);
        }
    }

    /// Whether a call too many is ended by `h2` because of what came on its stream.
    fn breaks(&mut self, frame: &Frame, now: Instant) -> bool {
        if self.was_unanswered(frame.stream) && frame.blames_peer() {
            self.count_resets(BROKEN, now);
        }
        self.over.is_some()
    }

    /// The limit by which `h2` ends a stream, if it is one of ours: it says 431 by itself, and resets what it has answered.
    fn refused(&self, frame: &Frame) -> Option<&'static str> {
        match frame.reason() {
            REFUSED_STREAM => Some("streams_per_connection"),
            PROTOCOL_ERROR if self.bodiless.contains(&frame.stream) => Some("header_size"),
            _ => None,
        }
    }

    fn opens(&mut self, frame: &Frame) {
        let increment = i64::from(frame.increment());
        if frame.stream == 0 {
            self.window = self.window.saturating_add(increment);
        } else if let Some(body) = self.bodies.iter_mut().find(|body| body.stream == frame.stream) {
            body.window = body.window.saturating_add(increment);
        }
    }

    /// Whoever has no window left waits for us.
    fn end_late(&mut self, now: Instant) {
        let (again, is_open) = (now + self.body_time, self.window > 0);
        self.bodies.retain_mut(|body| {
            if body.due > now {
                return true;
            }
            let waits = !is_open || body.window <= 0;
            if waits {
                body.due = again;
            } else {
                body.late.notify_one();
            }
            waits
        });
    }

    fn due(&self) -> Option<Instant> {
        self.bodies.iter().map(|body| body.due).chain(self.header_due).min()
    }

    fn forget(&mut self, stream: u32) {
        self.bodies.retain(|body| body.stream != stream);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::super::room::Room;
    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn whoever_takes_no_answers_cannot_begin_calls_without_end() {
        let room = Arc::new(Room::new(1, Arc::new(Metrics::new().unwrap())));
        let limits = Limits { streams_per_connection: 10, resets: 50, ..Limits::default() };
        let calm = Calm::new(&limits, Arc::new(room.enter(1).unwrap()));
        calm.received(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let begun = (0..1000_u32).take_while(|number| {
            let stream = (number * 2 + 1).to_be_bytes();
            calm.received(&[&[0, 0, 0, HEADERS, 5][..], &stream].concat());
            !calm.is_over()
        });
        assert_eq!(begun.count(), 20 + 50);
    }
}
