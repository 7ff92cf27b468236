//! What a client over HTTP/2 may do to everybody else: nothing. Whoever floods is told to calm down and sent away, whoever does
//! not come on loses what does not, and all others are served meanwhile (T46). With `POSTERN_SOAK=1` others are measured for longer,
//! and the gateway has a processor of its own; figures in `benches/soak.md`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::cell::Cell;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::body::Feed;
use support::browser::Browser;
use support::client::Client;
use support::gateway::{Gateway, Route};
use support::h2_client::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, H2Client, HEADERS, PING, PRIORITY,
    RST_STREAM, SETTINGS, There, WINDOW_UPDATE, field, frame, text,
};
use support::raw::RawConnection;
use support::script::Answer;
use support::upstream::Upstream;
use support::{PATIENCE, eventually};

const SECOND: Duration = Duration::from_secs(1);
/// How long each flood lasts that is measured.
const LONG: Duration = Duration::from_secs(30);
// Error codes (RFC 9113 §7).
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const CALM: u32 = 11;

/// A gateway with TLS and these limits, and a way for alice to call it.
async fn start(upstream: &Upstream, limits: Value) -> (Gateway, There) {
    let builder = Gateway::builder().tls().route(Route::open("demo", upstream)).with("limits", limits);
    let gateway = builder.start().await;
    let mut browser = Browser::of("alice").trusting(&gateway.roots);
    let token = Client::register(&gateway).await.sign_in(&mut browser, "demo").await.access_token;
    let there = There::at(&gateway, &token);
    (gateway, there)
}

/// Runs a client by hand.
async fn by_hand<T: Send + 'static>(
    there: &There,
    client: impl FnOnce(&There, &mut H2Client) -> T + Send + 'static,
) -> T {
    let there = there.clone();
    let client = move || client(&there, &mut there.connect(&[]));
    tokio::task::spawn_blocking(client).await.unwrap()
}

/// Whether others are served.
async fn serves(there: &There) -> bool {
    by_hand(there, |there, client| client.send(&there.ping(1)) && client.answer(1, PATIENCE) == Ok(200)).await
}

async fn limited(gateway: &Gateway, limit: &str) -> u64 {
    let text = gateway.http.get(gateway.admin("/metrics")).send().await.unwrap().text().await.unwrap();
    let series = format!("postern_limited_total{{limit=\"{limit}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&series)).expect("a metric").parse().unwrap()
}

/// As much as it has ever held, KiB.
fn memory(gateway: &Gateway) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.process_id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// One after the other, for as long as the other side takes them: the error with which it does not any more.
fn flood(client: &mut H2Client, mut next: impl FnMut(u32) -> Vec<u8>) -> Option<u32> {
    let end = Instant::now() + 4 * PATIENCE;
    let mut number = 0;
    loop {
        let batch: Vec<u8> = (0..50)
            .flat_map(|_| {
                number += 1;
                next(number)
            })
            .collect();
        if !client.send(&batch) {
            return client.sent_away(PATIENCE);
        }
        assert!(Instant::now() < end, "{number} frames, and no end");
    }
}

/// The next so many calls are answered with streams, which these keep open.
fn streams(upstream: &Upstream, count: usize) -> Vec<Feed> {
    let stream = |_| {
        let (feed, answer) = Answer::stream();
        upstream.answer_next(answer);
        feed
    };
    (0..count).map(stream).collect()
}

/// A stream that is not wanted any more.
fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())
}

/// A window that is too large, for which the other side resets the stream (RFC 9113 §6.9.1).
fn broken(stream: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &0x7fff_ffff_u32.to_be_bytes())
}

type First = fn(&There) -> Vec<u8>;
type Next = Arc<dyn Fn(&There, u32) -> Vec<u8> + Send + Sync>;
type Flood = (&'static str, First, Next, &'static str);

/// Floods, by what they are called: what comes once, what comes without end, and what limit stops it.
fn floods() -> Vec<Flood> {
    let none: First = |_| Vec::new();
    let call: First = |there| there.call(1);
    let begins: First = |there| frame(HEADERS, 0, 1, &there.block(&[]));
    let every = |bytes: Vec<u8>| -> Next { Arc::new(move |_, _| bytes.clone()) };
    vec![
        (
            "resets",
            none,
            Arc::new(|there, number| {
                let stream = number * 2 - 1;
                [there.call(stream), reset(stream)].concat()
            }),
            "resets",
        ),
        // What is sent at once ends with one that has only begun.
        (
            "resets apart",
            |there| there.call(1),
            Arc::new(|there, number| [reset(number * 2 - 1), there.call(number * 2 + 1)].concat()),
            "resets",
        ),
        ("pings", none, every(frame(PING, 0, 0, b"CANARY__")), "control_frames"),
        ("answers to pings", none, every(frame(PING, 1, 0, b"CANARY__")), "control_frames"),
        ("settings", none, every(frame(SETTINGS, 0, 0, &[])), "control_frames"),
        (
            "sizes of tables",
            none,
            Arc::new(|_, number| {
                frame(SETTINGS, 0, 0, &[&[0, 1][..], &(number % 2 * 4096).to_be_bytes()].concat())
            }),
            "control_frames",
        ),
        ("priorities", none, every(frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 16])), "control_frames"),
        ("unknown frames", none, every(frame(0xbb, 0, 0, b"what is that")), "control_frames"),
        ("windows", none, every(frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())), "control_frames"),
        (
            "windows of a stream",
            call,
            every(frame(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes())),
            "control_frames",
        ),
        ("nothing of a body", call, every(frame(DATA, 0, 1, &[])), "http2"),
        ("nothing of a body, padded", call, every(frame(DATA, 8, 1, &[3, 0, 0, 0])), "http2"),
        ("continuations", begins, every(frame(CONTINUATION, 0, 1, &field("x", "y"))), "http2"),
        ("nothing of a header", begins, every(frame(CONTINUATION, 0, 1, &[])), "http2"),
        // One field, and then its number in the table again and again (RFC 7541 §6.1): 300 KiB from a few.
        (
            "a header out of a table",
            none,
            Arc::new(|there, number| {
                let fill = [vec![0x40], text("x"), text(&"y".repeat(3000))].concat();
                let block = [there.block(&[]), fill, vec![0xbe; 100]].concat();
                frame(HEADERS, END_HEADERS | END_STREAM, number * 2 - 1, &block)
            }),
            "http2",
        ),
        // The client makes the server reset them (CVE-2025-8671).
        (
            "streams broken on purpose",
            none,
            Arc::new(|there, number| {
                let stream = number * 2 - 1;
                [there.call(stream), broken(stream)].concat()
            }),
            "resets",
        ),
        // Two hosts, of which none can be both.
        (
            "requests that are none",
            none,
            Arc::new(|there, number| {
                let block = there.block(&[("host", "elsewhere.test")]);
                frame(HEADERS, END_HEADERS | END_STREAM, number * 2 - 1, &block)
            }),
            "http2",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_t46_whoever_floods_is_sent_away_and_all_others_are_served() {
    let upstream = Upstream::open().await;
    let (gateway, there) = start(&upstream, json!({})).await;
    assert!(serves(&there).await);
    let before = memory(&gateway);
    for (name, first, next, limit) in floods() {
        let (calls, hits) = (upstream.calls().len(), limited(&gateway, limit).await);
        let said = gateway.output.len();
        let code = by_hand(&there, move |there, client| {
            client.send(&first(there));
            flood(client, |number| next(there, number))
        });
        let (code, is_served) = tokio::join!(code, serves(&there));
        assert!(is_served, "meanwhile: {name}");
        // A connection that is written to once it is closed is reset, and then nobody reads why it was.
        assert!(code.is_none_or(|code| code == CALM), "{name}: {code:?}");
        eventually(SECOND, async || limited(&gateway, limit).await == hits + 1).await;
        // Neither the upstream nor the log hears of more than of a few.
        let (calls, said) = (upstream.calls().len() - calls, gateway.output.len() - said);
        println!("{name}: {calls} calls, {said} lines");
        assert!(calls < 30 && said < 90, "{name}: {calls} calls, {said} lines");
    }
    assert!(memory(&gateway) < before + 32 * 1024, "{} KiB before, {} after", before, memory(&gateway));
}

/// Calls at a pace, over connections of their own: how long they took, sorted. All of them are answered.
fn paced(there: &There, lasts: Duration) -> Vec<Duration> {
    const CALLERS: usize = 5;
    const PACE: Duration = Duration::from_millis(50);
    let calls = |there: There| {
        let (mut client, begun, mut took) = (there.connect(&[]), Instant::now(), Vec::new());
        for number in 0.. {
            let due = begun + PACE * number;
            if due > begun + lasts {
                break;
            }
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let (sent, stream) = (Instant::now(), number * 2 + 1);
            assert!(client.send(&there.ping(stream)));
            assert_eq!(client.answer(stream, PATIENCE), Ok(200));
            took.push(sent.elapsed());
        }
        took
    };
    let mut took: Vec<Duration> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS).map(|_| scope.spawn(|| calls(there.clone()))).collect();
        callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect()
    });
    took.sort();
    took
}

/// The same while others flood, come back once they are sent away, and flood on. How often they were.
fn beside(
    there: &There,
    lasts: Duration,
    first: First,
    next: &Next,
    niceness: i32,
) -> (Vec<Duration>, usize) {
    const FLOODERS: usize = 2;
    let (over, times) = (AtomicBool::new(false), AtomicUsize::new(0));
    let end = Instant::now() + lasts + PATIENCE;
    let floods = || {
        rustix::process::nice(niceness).unwrap();
        while !over.load(Ordering::Relaxed) && Instant::now() < end {
            let mut client = there.connect(&[]);
            client.send(&first(there));
            flood(&mut client, |number| next(there, number));
            times.fetch_add(1, Ordering::Relaxed);
        }
    };
    let took = std::thread::scope(|scope| {
        (0..FLOODERS).for_each(|_| drop(scope.spawn(floods)));
        let took = paced(there, lasts);
        over.store(true, Ordering::Relaxed);
        took
    });
    (took, times.into_inner())
}

/// A thread (`-cp`) or all of a process (`-acp`), and what they start from now on.
fn on_processor(number: &str, whose: &str, id: &str) {
    let mut taskset = std::process::Command::new("taskset");
    assert!(taskset.args([whose, number, id]).output().unwrap().status.success());
}

#[test]
fn sr_t46_a_flood_that_comes_back_again_and_again_keeps_nobody_waiting() {
    let is_soak = std::env::var_os("POSTERN_SOAK").is_some();
    if is_soak {
        let here = std::fs::read_link("/proc/thread-self").unwrap();
        on_processor("0", "-cp", here.file_name().unwrap().to_str().unwrap());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(again_and_again(is_soak));
}

async fn again_and_again(is_soak: bool) {
    // In the long form what a flood takes itself is taken from nobody who calls.
    let (lasts, niceness) = if is_soak { (LONG, 19) } else { (SECOND / 2, 0) };
    let upstream = Upstream::open().await;
    let (gateway, there) = start(&upstream, json!({})).await;
    if is_soak {
        on_processor("1", "-acp", &gateway.process_id().to_string());
    }
    let before = memory(&gateway);
    let measured = tokio::task::spawn_blocking(move || {
        let alone = paced(&there, 2 * lasts);
        let during = floods().into_iter().map(|(name, first, next, _)| {
            let (took, times) = beside(&there, lasts, first, &next, niceness);
            (name, took, times)
        });
        let during: Vec<_> = during.collect();
        (alone, during)
    });
    let (alone, during) = measured.await.unwrap();
    let at = |took: &[Duration], percent: usize| took[took.len() * percent / 100];
    println!("alone: p50 {:?}, p99 {:?} of {}", at(&alone, 50), at(&alone, 99), alone.len());
    for (name, took, times) in &during {
        let (p50, p99) = (at(took, 50), at(took, 99));
        let ratio = p99.as_secs_f64() / at(&alone, 99).as_secs_f64();
        println!("{name}: p50 {p50:?}, p99 {p99:?} ({ratio:.1}) of {}; sent away {times} times", took.len());
        assert!(*times > 0, "{name}");
    }
    println!("{} KiB before, {} at most", before, memory(&gateway));
    assert!(memory(&gateway) < before + 64 * 1024);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_t46_whoever_is_sent_away_is_told_why() {
    let upstream = Upstream::open().await;
    let (gateway, there) = start(&upstream, json!({"control_frames": 50})).await;
    let told = by_hand(&there, |_, client| {
        client.send(&frame(PING, 0, 0, b"CANARY__").repeat(500));
        let answered = Cell::new(0);
        let is_last = |frame: &Frame| {
            answered.set(answered.get() + usize::from(frame.kind == PING));
            frame.kind == GOAWAY
        };
        let last = client.until(PATIENCE, is_last).expect("a reason");
        (last.payload[4..8].to_vec(), answered.get())
    });
    let (code, answered) = told.await;
    assert_eq!(code, CALM.to_be_bytes());
    assert!(answered <= 50, "{answered}: nothing of what comes after is looked at");
    let code = by_hand(&there, |there, client| {
        client.send(&frame(HEADERS, 0, 1, &there.block(&[])));
        client.send(&frame(CONTINUATION, 0, 1, &field("x", "y")).repeat(20));
        client.sent_away(PATIENCE)
    });
    assert_eq!(code.await, Some(CALM));
    // Frames that should carry something, and carry nothing, count as well.
    let code = by_hand(&there, |there, client| {
        client.send(&[there.call(1), frame(DATA, 0, 1, &[]).repeat(60)].concat());
        client.sent_away(PATIENCE)
    });
    assert_eq!(code.await, Some(CALM));
    // Long before `h2` has had enough of them.
    let code = by_hand(&there, |there, client| {
        let block = there.block(&[("host", "elsewhere.test")]);
        let none = |number: u32| frame(HEADERS, END_HEADERS | END_STREAM, number * 2 + 1, &block);
        client.send(&(0..34).flat_map(none).collect::<Vec<u8>>());
        client.sent_away(PATIENCE)
    });
    assert_eq!(code.await, Some(CALM));
    for (limit, times) in [("control_frames", 2), ("http2", 2)] {
        eventually(SECOND, async || limited(&gateway, limit).await == times).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_t46_a_client_that_works_may_send_what_it_takes() {
    let upstream = Upstream::open().await;
    let (gateway, there) = start(&upstream, json!({"control_frames": 50})).await;
    // As many in ten seconds, and some again after some.
    let pings = by_hand(&there, |_, client| {
        let mut answered = |count: usize| {
            client.send(&frame(PING, 0, 0, b"CANARY__").repeat(count));
            (0..count).filter(|_| client.until(PATIENCE, |frame| frame.kind == PING).is_some()).count()
        };
        let first = answered(45);
        std::thread::sleep(3 * SECOND);
        (first, answered(14))
    });
    assert_eq!(pings.await, (45, 14));
    let length = 4 * 1024 * 1024;
    upstream.answer_next(Answer::http(200, &[("content-type", "application/json")], &"x".repeat(length)));
    let calls = by_hand(&there, move |there, client| {
        // For each frame of a long answer one more of it, and of everything.
        client.send(&there.ping(1));
        let mut taken = 0;
        loop {
            let frame = client.next(PATIENCE).expect("an answer");
            if frame.kind == DATA && frame.stream == 1 {
                taken += frame.payload.len();
                let more = u32::try_from(frame.payload.len()).unwrap().to_be_bytes();
                if !frame.payload.is_empty() {
                    client.send(
                        &[self::frame(WINDOW_UPDATE, 0, 0, &more), self::frame(WINDOW_UPDATE, 0, 1, &more)]
                            .concat(),
                    );
                }
                if frame.flags & END_STREAM != 0 {
                    break;
                }
            }
        }
        assert_eq!(taken, length);
        (1..300)
            .filter(|number| {
                client.send(&there.ping(number * 2 + 1)) && client.answer(number * 2 + 1, PATIENCE) == Ok(200)
            })
            .count()
    });
    assert_eq!(calls.await, 299);
    assert_eq!((limited(&gateway, "control_frames").await, limited(&gateway, "http2").await), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_t46_a_client_may_break_off_what_is_under_way_and_as_much_as_is_answered() {
    let upstream = Upstream::open().await;
    let (gateway, there) = start(&upstream, json!({})).await;
    let _open = streams(&upstream, 150);
    let rounds = by_hand(&there, |there, client| {
        // What is answered is not broken off, however early it ends.
        for stream in (1..300).step_by(2) {
            assert!(client.send(&there.ping(stream)));
            assert_eq!(client.answer(stream, PATIENCE), Ok(200));
            assert!(client.send(&reset(stream)));
        }
        // A page that is left, with all that it was waiting for.
        let streams = || (301..501).step_by(2);
        assert!(client.send(&streams().flat_map(|stream| there.call(stream)).collect::<Vec<_>>()));
        assert!(client.send(&streams().flat_map(reset).collect::<Vec<_>>()));
        // And for a long time after it one of two.
        let round = |round: &u32| {
            let stream = 501 + round * 4;
            client.send(&there.ping(stream))
                && client.answer(stream, PATIENCE) == Ok(200)
                && client.send(&[there.call(stream + 2), reset(stream + 2)].concat())
        };
        (0..300).take_while(round).count()
    });
    assert_eq!(rounds.await, 300);
    assert_eq!((limited(&gateway, "resets").await, limited(&gateway, "control_frames").await), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_t46_whoever_breaks_off_more_calls_than_that_is_sent_away_early() {
    let upstream = Upstream::open().await;
    let (gateway, there) = start(&upstream, json!({"streams_per_connection": 20, "resets": 50})).await;
    // One that the server has to break off counts as five.
    for (times, end, borne) in [(1, reset as fn(u32) -> Vec<u8>, 45), (2, broken, 9)] {
        let (answered, code) = by_hand(&there, move |there, client| {
            let calls = |streams: std::ops::Range<u32>| -> Vec<u8> {
                streams
                    .flat_map(|number| [there.call(number * 2 + 1), end(number * 2 + 1)].concat())
                    .collect()
            };
            client.send(&calls(0..borne));
            let next = borne * 2 + 1;
            client.send(&there.ping(next));
            let told = |frame: &Frame| frame.stream == next && frame.kind == HEADERS;
            let answered = client.until(PATIENCE, told).is_some();
            client.send(&calls(borne + 1..borne + 12));
            (answered, client.sent_away(PATIENCE))
        })
        .await;
        assert!(answered);
        assert!(code.is_none_or(|code| code == CALM), "{code:?}");
        eventually(SECOND, async || limited(&gateway, "resets").await == times).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_t46_sr_t47_a_header_that_does_not_end_ends_the_connection() {
    let upstream = Upstream::open().await;
    let (gateway, there) = start(&upstream, json!({"header_time": "1s"})).await;
    // In one frame that drips, in many, and of which nothing more comes.
    let drips = by_hand(&there, |there, client| {
        let begun = Instant::now();
        for byte in frame(HEADERS, END_HEADERS, 1, &there.block(&[])).chunks(1) {
            if !client.send(byte) {
                break;
            }
            if client.until(SECOND / 20, |frame| frame.kind == GOAWAY).is_some() {
                return (Some(CALM), begun.elapsed());
            }
        }
        (None, begun.elapsed())
    });
    let trickles = by_hand(&there, |there, client| {
        let begun = Instant::now();
        client.send(&frame(HEADERS, 0, 1, &there.block(&[])));
        std::thread::sleep(SECOND / 2);
        client.send(&frame(CONTINUATION, 0, 1, &field("x", "y")));
        (client.sent_away(PATIENCE), begun.elapsed())
    });
    let stops = by_hand(&there, |there, client| {
        let begun = Instant::now();
        client.send(&frame(HEADERS, 0, 1, &there.block(&[])));
        (client.sent_away(PATIENCE), begun.elapsed())
    });
    let (drips, trickles, stops) = tokio::join!(drips, trickles, stops);
    for (code, took) in [drips, trickles, stops] {
        assert_eq!(code, Some(CALM));
        assert!(took > SECOND / 2 && took < 4 * SECOND, "{took:?}");
    }
    assert_eq!(limited(&gateway, "header_time").await, 3);
    // Whoever says nothing on a new connection is gone as soon, whether they have begun to speak HTTP/2 or not.
    let silent = by_hand(&there, |_, client| client.sent_away(4 * SECOND));
    silent.await;
    let speechless = there.clone();
    let speechless =
        tokio::task::spawn_blocking(move || speechless.connect_speechless().sent_away(4 * SECOND));
    assert_eq!(speechless.await.unwrap(), None);
    eventually(SECOND, async || limited(&gateway, "handshake").await == 1).await;
    assert!(serves(&there).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_t46_sr_t47_a_body_that_does_not_come_on_ends_its_stream_alone() {
    let upstream = Upstream::open().await;
    let (gateway, there) = start(&upstream, json!({"body_time": "1s", "body_rate": 1000})).await;
    let (feed, answer) = Answer::stream();
    upstream.answer_next(answer);
    let all = by_hand(&there, move |there, client| {
        // A stream on the same connection that has nothing to do with it.
        client.send(&there.ping(1));
        assert_eq!(client.answer(1, PATIENCE), Ok(200));
        // One that stands still, and one of which nothing came at all.
        client.send(&[there.call(3), frame(DATA, 0, 3, b"{"), there.call(5)].concat());
        let still = [client.answer(3, 4 * SECOND), client.answer(5, 4 * SECOND)];
        // One that trickles, in frames and within one.
        client.send(&there.call(7));
        let begun = Instant::now();
        let trickles = loop {
            client.send(&frame(DATA, 0, 7, b" "));
            if let Some(frame) = client.until(SECOND / 5, |frame| frame.stream == 7) {
                break frame.kind;
            }
            assert!(begun.elapsed() < 5 * SECOND);
        };
        client.send(&there.call(9));
        let begun = Instant::now();
        let within = frame(DATA, END_STREAM, 9, &[b' '; 100]);
        let drips = within.chunks(1).find_map(|byte| {
            client.send(byte);
            client.until(SECOND / 5, |frame| frame.stream == 9)
        });
        (still, trickles, drips.expect("an end").kind, begun.elapsed())
    });
    let (still, trickles, drips, took) = all.await;
    assert_eq!(still, [Err(CANCEL), Err(CANCEL)]);
    assert!(matches!(trickles, RST_STREAM | HEADERS) && drips == RST_STREAM && took < 4 * SECOND);
    assert_eq!(limited(&gateway, "body_time").await, 4);
    // One of which more came than the window had at first, and which could go on.
    let stops = by_hand(&there, |there, client| {
        client.send(&[there.call(1), frame(DATA, 0, 1, &[b' '; 16_000]).repeat(4)].concat());
        let mut shut = HashSet::from([0, 1]);
        while !shut.is_empty() {
            let opened = client.until(PATIENCE, |frame| frame.kind == WINDOW_UPDATE).expect("more room");
            shut.remove(&opened.stream);
        }
        client.send(&frame(DATA, 0, 1, &[b' '; 16_000]));
        client.answer(1, 4 * SECOND)
    });
    assert_eq!(stops.await, Err(CANCEL));
    assert_eq!(limited(&gateway, "body_time").await, 5);
    feed.event("still here");
    // Nobody's trouble: bodies of any size that come on.
    let quick = by_hand(&there, |there, client| {
        client.send(
            &[there.call(1), frame(DATA, 0, 1, &[b' '; 10_000]), frame(DATA, END_STREAM, 1, b"{}")].concat(),
        );
        client.answer(1, PATIENCE)
    });
    assert!(quick.await.is_ok());
    assert_eq!(limited(&gateway, "body_time").await, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_breaks_off_over_http_2_has_one_line_in_the_log() {
    let upstream = Upstream::open().await;
    let (gateway, there) = start(&upstream, json!({"body_time": "1s"})).await;
    let (feed, answer) = Answer::stream();
    upstream.answer_next(answer);
    let reset = |stream| frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes());
    let left = by_hand(&there, move |there, client| {
        let call = |stream, name: &str, flags| {
            frame(HEADERS, END_HEADERS | flags, stream, &there.block(&[("mcp-method", name)]))
        };
        let ping = br#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
        // What is sent after that finds the call under way.
        let has_begun = |client: &mut H2Client| {
            client.send(&frame(PING, 0, 0, b"CANARY__"));
            assert!(client.until(PATIENCE, |frame| frame.kind == PING).is_some());
        };
        // In the middle of an answer.
        client.send(&[call(1, "answered", 0), frame(DATA, END_STREAM, 1, ping)].concat());
        assert_eq!(client.answer(1, PATIENCE), Ok(200));
        client.send(&reset(1));
        // Before it has begun; before its body, and in the middle of it.
        client.send(&[call(3, "none", 0), reset(3)].concat());
        client.send(&call(5, "bodiless", 0));
        has_begun(client);
        client.send(&reset(5));
        client.send(&[call(7, "half", 0), frame(DATA, 0, 7, b"{")].concat());
        has_begun(client);
        client.send(&reset(7));
        // One whose body does not come on.
        client.send(&[call(9, "late", 0), frame(DATA, 0, 9, b"{\"")].concat());
        assert_eq!(client.answer(9, 4 * SECOND), Err(CANCEL));
        // With the connection, before and after all of it is there.
        client.send(&[call(11, "gone", 0), frame(DATA, 0, 11, b"{")].concat());
        client.send(&[call(13, "whole", 0), frame(DATA, END_STREAM, 13, ping)].concat());
        client.answer(13, PATIENCE)
    });
    assert_eq!(left.await, Ok(200));
    let names = ["answered", "bodiless", "half", "late", "gone", "whole"];
    let lines = || -> Vec<Vec<String>> {
        let records = gateway.output.records();
        let of = |name: &str| {
            let found = records.iter().filter(|line| line["mcp_method"] == name);
            found.map(|line| format!("{} {} {}", line["status"], line["reason"], line["bytes_in"])).collect()
        };
        names.map(of).into()
    };
    eventually(PATIENCE, async || lines().iter().all(|lines| !lines.is_empty())).await;
    drop(feed);
    assert!(serves(&there).await);
    assert_eq!(
        lines(),
        [
            ["200 \"client_gone\" 40"],
            ["0 \"client_gone\" 0"],
            ["0 \"client_gone\" 1"],
            ["408 \"too_slow\" 2"],
            ["0 \"client_gone\" 1"],
            ["200 \"ok\" 40"],
        ]
    );
    assert!(gateway.output.records().iter().all(|line| line["mcp_method"] != "none"));
    let slow = gateway.output.records().into_iter().find(|line| line["reason"] == "too_slow").unwrap();
    assert_eq!(
        (&slow["route"], &slow["user"], &slow["caller"]),
        (&json!("demo"), &json!("alice"), &json!("user"))
    );
    assert_eq!(
        (&slow["method"], &slow["path"], &slow["attempts"]),
        (&json!("POST"), &json!("/demo"), &json!(1))
    );
}

/// What it may send is told by windows, and while they are shut the client waits for the upstream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_t47_a_body_that_waits_for_a_slow_upstream_is_not_late() {
    let (url, reads) = slow_upstream();
    let builder = Gateway::builder().tls().route(Route::to("demo", &url, json!({"kind": "none"})));
    let gateway = builder.with("limits", json!({"body_time": "2s"})).start().await;
    let mut browser = Browser::of("alice").trusting(&gateway.roots);
    let token = Client::register(&gateway).await.sign_in(&mut browser, "demo").await.access_token;
    let there = There::at(&gateway, &token);
    let answer = by_hand(&there, move |there, client| {
        client.send(&there.call(1));
        let (mut of_all, mut of_it, mut left) = (65_535, 65_535, 16 * 1024 * 1024);
        let mut waits = Instant::now();
        loop {
            let length = 16_384.min(of_all).min(of_it).min(left);
            if length > 0 {
                client.send(&frame(
                    DATA,
                    if length == left { END_STREAM } else { 0 },
                    1,
                    &vec![b' '; length],
                ));
                (of_all, of_it, left) = (of_all - length, of_it - length, left - length);
                waits = Instant::now();
                if left == 0 {
                    return client.answer(1, PATIENCE);
                }
                continue;
            }
            match client.next(SECOND / 10) {
                Some(frame) if frame.kind == WINDOW_UPDATE => {
                    let more = u32::from_be_bytes(*frame.payload.first_chunk().unwrap()) as usize;
                    *(if frame.stream == 0 { &mut of_all } else { &mut of_it }) += more;
                }
                Some(frame) if frame.stream == 1 => panic!("{frame:?}"),
                // The upstream reads on when the time is long over.
                _ if waits.elapsed() > 5 * SECOND => drop(reads.send(())),
                _ => {}
            }
        }
    });
    assert_eq!(answer.await, Ok(200));
    assert_eq!(limited(&gateway, "body_time").await, 0);
}

/// One that reads nothing of a body until it is told to, and answers at its end.
fn slow_upstream() -> (String, std::sync::mpsc::Sender<()>) {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    let (go_on, waits) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut read = vec![0; 1024 * 1024];
        waits.recv().unwrap();
        let mut all = 0;
        while let Ok(length @ 1..) = stream.read(&mut read) {
            all += length;
            if all > 16 * 1024 * 1024 && read[..length].ends_with(b"0\r\n\r\n") {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
            }
        }
    });
    (url, go_on)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_t46_streams_have_a_number_and_whoever_takes_nothing_is_cut_off() {
    let upstream = Upstream::open().await;
    let (gateway, there) = start(&upstream, json!({"streams_per_connection": 5, "write_time": "1s"})).await;
    let before = memory(&gateway);
    let feeds = streams(&upstream, 5);
    let opens = by_hand(&there, |there, client| {
        let opened: Vec<_> = [1, 3, 5, 7, 9]
            .into_iter()
            .map(|stream| {
                client.send(&there.ping(stream));
                client.answer(stream, PATIENCE)
            })
            .collect();
        client.send(&there.ping(11));
        let sixth = client.answer(11, PATIENCE);
        let is_cut = |frame: &Frame| frame.kind == RST_STREAM && frame.stream != 11;
        let cut = |_| client.until(PATIENCE, is_cut).map(|frame| frame.stream);
        (opened, sixth, (0..5).filter_map(cut).collect::<HashSet<_>>().len())
    });
    let feeding = tokio::spawn(async move {
        let event = "x".repeat(64 * 1024);
        // Its window is 64 KiB, and never opened again.
        for _ in 0..600 {
            feeds.iter().for_each(|feed| feed.event(&event));
            tokio::time::sleep(SECOND / 200).await;
        }
    });
    assert_eq!(opens.await, (vec![Ok(200); 5], Err(REFUSED_STREAM), 5));
    assert_eq!(limited(&gateway, "streams_per_connection").await, 1);
    eventually(10 * SECOND, async || limited(&gateway, "write_time").await == 5).await;
    feeding.await.unwrap();
    assert!(memory(&gateway) < before + 24 * 1024, "{} KiB before, {} after", before, memory(&gateway));
    assert!(serves(&there).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_t46_sr_t48_a_header_over_http_2_has_the_same_bounds() {
    let upstream = Upstream::open().await;
    let (gateway, there) = start(&upstream, json!({"header_size": 32 * 1024})).await;
    let sent = |more: Vec<(String, String)>| {
        by_hand(&there, move |there, client| {
            let more: Vec<(&str, &str)> =
                more.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let block = there.block(&more);
            let mut pieces = block.chunks(16_000).enumerate();
            let last = block.chunks(16_000).count() - 1;
            let frames = pieces.by_ref().flat_map(|(number, piece)| {
                let kind = if number == 0 { HEADERS } else { CONTINUATION };
                frame(kind, if number == last { END_HEADERS } else { 0 }, 1, piece)
            });
            client.send(
                &[
                    frames.collect(),
                    frame(DATA, END_STREAM, 1, br#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#),
                ]
                .concat(),
            );
            client.answer(1, PATIENCE)
        })
    };
    let filled = |length: usize| vec![("x-filler".to_owned(), "f".repeat(length))];
    let with =
        |count: usize| (0..count).map(|number| (format!("x-{number}"), "f".to_owned())).collect::<Vec<_>>();
    for (more, status) in [(filled(30_000), 200), (filled(34_000), 431), (with(90), 200), (with(200), 431)] {
        assert_eq!(sent(more).await, Ok(status));
    }
    assert_eq!(limited(&gateway, "header_fields").await, 1);
    eventually(SECOND, async || limited(&gateway, "header_size").await == 1).await;
    assert_eq!(upstream.calls().len(), 2);
}

/// Without TLS nobody is spoken to over HTTP/2, whether they begin with it or ask for it.
#[tokio::test]
async fn sr_t44_http_2_without_tls_is_not_spoken() {
    let upstream = Upstream::open().await;
    let gateway = Gateway::builder().route(Route::open("demo", &upstream)).start().await;
    let mut connection = RawConnection::open(gateway.address).await;
    connection.send([&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, &[])].concat()).await;
    let said = connection.until_closed(PATIENCE).await;
    assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&said));
}
