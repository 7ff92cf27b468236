//! The collections of requests and answers under `tests/data` that somebody could read in two ways, sent byte by byte, with an ordinary
//! request behind each on the same connection, and an upstream that keeps every byte: what arrives there is one request, framed in one
//! way, with the target that was matched, or nothing; and what was hidden in it never is a request.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use crate::support;

use std::cmp::Ordering;
use std::path::Path;

use serde_json::{Value, json};
use support::PATIENCE;
use support::browser::Browser;
use support::client::Client;
use support::gateway::{Gateway, Route};
use support::h2_client::{DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, There, field, frame, status};
use support::raw::{RawConnection, RawResponse};
use support::recorder::{Recorder, chunks};

const NEXT: &str = "{\"next\":1}";
/// An answer that is nobody's.
const POISON: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 6\r\n\r\n\"evil\"";

fn corpus(name: &str) -> Vec<Value> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    let corpus = serde_json::from_str(&std::fs::read_to_string(&file).unwrap());
    corpus.unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn text<'c>(case: &'c Value, member: &str) -> Option<&'c str> {
    case[member].as_str()
}

/// A gateway with the route `demo` before an upstream by hand, and a token for it.
struct Bench {
    gateway: Gateway,
    token: String,
    recorder: Recorder,
    wrong: Vec<String>,
}

impl Bench {
    async fn start(builder: support::gateway::Builder) -> Self {
        let recorder = Recorder::start().await;
        let route = Route::to("demo", &format!("http://{}/mcp", recorder.address), json!({"kind": "none"}));
        Self::at(builder.route(route), recorder, "demo").await
    }

    /// With a token for this route.
    async fn at(builder: support::gateway::Builder, recorder: Recorder, route: &str) -> Self {
        let gateway = builder.start().await;
        let mut browser = Browser::new().trusting(&gateway.roots);
        let token = Client::register(&gateway).await.sign_in(&mut browser, route).await.access_token;
        Bench { gateway, token, recorder, wrong: Vec::new() }
    }

    fn host(&self) -> &str {
        self.gateway.public_url.split_once("://").unwrap().1
    }

    fn port(&self) -> String {
        self.gateway.address.port().to_string()
    }

    /// A whole request with all rights.
    fn request(&self, method: &str, path: &str, body: &str) -> String {
        format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            self.host(),
            self.token,
            body.len()
        )
    }

    /// Puts in what is not the same in every run, or too long to be written down.
    fn fill(&self, text: &str, path: &str) -> String {
        let smuggled = self.request("GET", &format!("{path}/smuggled"), "");
        text.replace("IN_CHUNKS", &format!("{:x}\r\nSMUGGLED\r\n0\r\n\r\n", smuggled.len()))
            .replace("SMUGGLED", &smuggled)
            .replace("HOST", self.host())
            .replace("PORT", &self.port())
            .replace("PATH", path)
            .replace("FILLER", &"f".repeat(64 * 1024))
            .replace("ZEROS", &"0".repeat(64 * 1024))
            .replace("MEGABYTES", &"m".repeat(2 << 20))
            .replace("FIELDS", &"x: y\r\n".repeat(1000))
            .replace("HINTS", &"HTTP/1.1 103 Early Hints\r\nlink: </evil.js>\r\n\r\n".repeat(100_000))
            .replace("POISONS", &POISON.repeat(1000))
            .replace("POISON", POISON)
    }

    /// The bytes of a case, without the request behind it.
    fn bytes(&self, case: &Value, path: &str) -> String {
        let body = self.fill(text(case, "body").unwrap_or_default(), path);
        let own = [format!("host: {}", self.host()), format!("authorization: Bearer {}", self.token)];
        let own = if case["anonymous"] == true { &own[..1] } else { &own[..] };
        let lines = case["lines"].as_array().unwrap().iter();
        let lines = lines.map(|line| self.fill(line.as_str().unwrap(), path));
        let lines = lines.map(|line| line.replace("LENGTH", &body.len().to_string()));
        let line = self.fill(text(case, "line").unwrap_or("POST PATH HTTP/1.1"), path);
        let lines: Vec<String> = match case["first"] == true {
            true => lines.chain(own.iter().cloned()).collect(),
            false => own.iter().cloned().chain(lines).collect(),
        };
        let end = text(case, "eol").unwrap_or("\r\n");
        format!("{line}{end}{}{end}{end}{body}", lines.join(end))
    }

    async fn final_answer(connection: &mut RawConnection) -> Option<RawResponse> {
        loop {
            let answer = connection.response(PATIENCE).await?;
            if answer.status >= 200 {
                return Some(answer);
            }
        }
    }

    /// What is answered to these pieces on one connection, each sent when the one before it was answered. With `unfinished` nobody
    /// waits for the answer: there is more to come that never does.
    async fn answers(&self, pieces: &[&str], unfinished: bool) -> Vec<RawResponse> {
        let mut connection = RawConnection::open(self.gateway.address).await;
        let mut answers = Vec::new();
        for piece in pieces {
            connection.send(piece).await;
            if unfinished {
                break;
            }
            let Some(answer) = Self::final_answer(&mut connection).await else { break };
            answers.push(answer);
        }
        connection.finish_sending().await;
        connection.closed(PATIENCE).await;
        answers
    }

    /// Sends a case and the request behind it, `at_once` or when the case has been answered.
    async fn try_request(&mut self, case: &Value, path: &str, at_once: bool) {
        let (arrived, path) = (format!("/mcp{path}"), format!("/demo{path}"));
        let (bytes, next) = (self.bytes(case, &path), self.request("POST", &format!("{path}/next"), NEXT));
        let status = case["status"].as_u64().unwrap() as u16;
        let is_kept = case["then"] == true;
        let smuggled = self.fill("SMUGGLED", &path);
        // What the one who comes first takes for a body of its own may come late.
        let late = bytes.strip_suffix(&smuggled).filter(|_| status == 200 && !is_kept);
        let first = bytes.clone() + &next;
        let behind = late.map_or(next.clone(), |_| smuggled + &next);
        let pieces = match at_once {
            true => vec![first.as_str()],
            false => vec![late.unwrap_or(&bytes), &behind],
        };
        let answers = self.answers(&pieces, case["unfinished"] == true).await;
        let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
        let expected =
            [Some(status).filter(|status| *status != 0), Some(200).filter(|_| is_kept && !at_once)];
        self.expect(
            case,
            statuses == expected.into_iter().flatten().collect::<Vec<_>>(),
            (at_once, &statuses),
        );
        let mut wanted = Vec::new();
        if let Some(body) = text(case, "arrives") {
            let method = text(case, "line").map_or("POST", |line| line.trim().split(' ').next().unwrap());
            let target = format!("{arrived}{}", text(case, "target").unwrap_or_default());
            wanted.push((method.to_owned(), target, self.fill(body, &path)));
        }
        let seen = self.recorder.below(&arrived);
        let is_tunnel = seen.iter().any(|seen| seen.header("upgrade").is_some());
        self.expect(case, !is_tunnel, "`upgrade` at the upstream");
        let mut seen: Vec<_> = seen
            .into_iter()
            .map(|seen| (seen.method, seen.target, String::from_utf8_lossy(&seen.body).into_owned()))
            .collect();
        // Each is answered for itself.
        for (answer, (_, target, _)) in answers.iter().zip(&seen).filter(|(answer, _)| answer.status == 200) {
            self.expect(case, answer.text().contains(&format!("\"{target}\"")), answer.text());
        }
        let after = ("POST".to_owned(), format!("{arrived}/next"), NEXT.to_owned());
        match at_once {
            // Whoever does not wait for an answer may be left without one.
            true => seen.retain(|seen| *seen != after || !is_kept),
            false => wanted.extend(is_kept.then_some(after)),
        }
        self.expect(case, seen == wanted, (at_once, &seen));
    }

    fn expect(&mut self, case: &Value, holds: bool, got: impl std::fmt::Debug) {
        if !holds {
            self.wrong.push(format!("{case}\n    got {got:?}"));
        }
    }

    /// Says which cases were answered otherwise than they should have been.
    #[track_caller]
    fn ends(&self) {
        assert!(self.wrong.is_empty(), "{} case(s):\n{}", self.wrong.len(), self.wrong.join("\n"));
        assert_eq!(self.recorder.faults(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn sr_t43_sr_t44_a_request_of_two_meanings_has_one_at_the_upstream_or_none() {
    let mut bench = Bench::start(Gateway::builder()).await;
    let corpus = corpus("requests.json");
    assert!(corpus.len() >= 120);
    for (number, case) in corpus.iter().enumerate() {
        for at_once in [true, false] {
            bench.try_request(case, &format!("/{number}-{at_once}"), at_once).await;
        }
    }
    bench.ends();
}

/// The status of a case, one of several where it says so.
fn is_status(case: &Value, status: u16) -> bool {
    case["status"] == status
}

#[tokio::test]
async fn sr_t45_a_path_has_one_spelling_that_is_matched_and_arrives() {
    let recorder = Recorder::start().await;
    let to =
        |name: &str| Route::to(name, &format!("http://{}/{name}", recorder.address), json!({"kind": "none"}));
    let site = to("site").without("path").without("credential").with("kind", json!("http"));
    let site = site.with("host", json!("site.test")).with("public", json!(true));
    let builder = Gateway::builder().route(to("open")).route(to("secret")).route(site);
    let mut bench = Bench::at(builder, recorder, "open").await;
    for case in corpus("paths.json") {
        let target = bench.fill(text(&case, "target").unwrap(), "");
        let host = bench.fill(text(&case, "at").unwrap_or("HOST"), "");
        let forms = match text(&case, "arrives") {
            Some(_) => vec![target],
            None if target.starts_with('/') => {
                vec![target.clone(), format!("http://{host}{target}"), format!("{target}?x=/open")]
            }
            None => vec![target],
        };
        for form in forms {
            let before = bench.recorder.below("").len();
            let bearer = if host == bench.host() {
                format!("authorization: Bearer {}\r\n", bench.token)
            } else {
                String::new()
            };
            let request = format!("GET {form} HTTP/1.1\r\nhost: {host}\r\n{bearer}\r\n");
            let answers = bench.answers(&[&request], false).await;
            let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
            let seen: Vec<String> =
                bench.recorder.below("").split_off(before).into_iter().map(|seen| seen.target).collect();
            let wanted: Vec<&str> = text(&case, "arrives").into_iter().collect();
            bench.expect(
                &case,
                statuses.first().is_some_and(|status| is_status(&case, *status)),
                (&form, &statuses),
            );
            bench.expect(&case, seen == wanted, (&form, &seen));
        }
    }
    bench.ends();
}

#[tokio::test]
async fn sr_rs_09_sr_t45_a_host_is_one_of_ours_and_said_once() {
    let mut bench = Bench::start(Gateway::builder()).await;
    for case in corpus("hosts.json") {
        let before = bench.recorder.below("").len();
        let target = bench.fill(text(&case, "target").unwrap_or("/demo"), "");
        let lines = case["lines"].as_array().unwrap().iter();
        let lines: String = lines.map(|line| bench.fill(line.as_str().unwrap(), "") + "\r\n").collect();
        let request =
            format!("GET {target} HTTP/1.1\r\n{lines}authorization: Bearer {}\r\n\r\n", bench.token);
        let answers = bench.answers(&[&request], false).await;
        let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
        bench.expect(&case, statuses.first().is_some_and(|status| is_status(&case, *status)), &statuses);
        let seen = bench.recorder.below("").split_off(before);
        bench.expect(&case, seen.len() == usize::from(statuses == [200]), seen.len());
        let here = bench.recorder.address.to_string();
        bench.expect(&case, seen.iter().all(|seen| seen.header("host") == Some(&here)), &seen);
        bench.expect(&case, answers.iter().all(|answer| !answer.text().contains("evil")), &statuses);
    }
    bench.ends();
}

#[tokio::test]
async fn sr_t55_an_answer_of_two_meanings_has_one_at_the_client_or_none_and_spoils_no_other() {
    let mut bench = Bench::start(Gateway::builder()).await;
    for (number, case) in corpus("answers.json").iter().enumerate() {
        let (path, target) = (format!("/demo/{number}"), format!("/mcp/{number}"));
        let answer = bench.fill(text(case, "answer").unwrap(), "");
        bench.recorder.answer(&target, answer.as_bytes(), case["closes"] == true, case["early"] == true);
        let mut connection = RawConnection::open(bench.gateway.address).await;
        let request = bench.request("POST", &path, &"b".repeat(300_000));
        connection.send(request.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n")).await;
        let bytes = connection.until_closed(PATIENCE).await;
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(2000)]).into_owned();
        let (status, body) = match answer_in(&bytes) {
            Ok(answer) => answer.unwrap_or_default(),
            Err(fault) => {
                bench.expect(case, false, (fault, &shown));
                continue;
            }
        };
        bench.expect(case, is_status(case, status), (status, &shown));
        let is_body = text(case, "body").is_none_or(|wanted| body == wanted.as_bytes());
        bench.expect(case, is_body, &shown);
        bench.expect(case, !shown.contains("evil") || text(case, "answer") == Some("POISONS"), &shown);
        for turn in 0..3 {
            let next = bench.request("POST", &format!("{path}/{turn}"), NEXT);
            let answers = bench.answers(&[&next], false).await;
            let own = format!("{{\"target\":\"{target}/{turn}\"}}");
            let is_own = matches!(&answers[..], [answer] if answer.status == 200 && answer.text() == own);
            bench.expect(case, is_own, &answers);
        }
    }
    bench.ends();
}

/// The one answer in these bytes, read as strictly as a request is at the upstream; `None`: it breaks off. Interim ones say nothing.
fn answer_in(mut bytes: &[u8]) -> Result<Option<(u16, Vec<u8>)>, &'static str> {
    // However many interim ones come before it.
    let (status, headers, rest) = loop {
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
        let (head, rest) = (String::from_utf8_lossy(&bytes[..end]), &bytes[end + 4..]);
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")).ok_or("the status line")?;
        let status = status.split(' ').next().and_then(|digits| digits.parse().ok()).ok_or("the status")?;
        let mut headers = Vec::new();
        for line in lines {
            let (name, value) = line.split_once(": ").ok_or("a header line")?;
            if name.contains([' ', '\t']) || value.contains(char::is_control) {
                return Err("a header");
            }
            headers.push((name.to_lowercase(), value.to_owned()));
        }
        match status {
            200.. => break (status, headers, rest),
            _ if headers.is_empty() => bytes = rest,
            _ => return Err("an interim answer that says something"),
        }
    };
    let all = |wanted: &str| -> Vec<&str> {
        headers.iter().filter(|(name, _)| name == wanted).map(|(_, value)| value.as_str()).collect()
    };
    match (&all("content-length")[..], &all("transfer-encoding")[..]) {
        _ if matches!(status, 204 | 304) => {
            if rest.is_empty() {
                Ok(Some((status, Vec::new())))
            } else {
                Err("a body where there is none")
            }
        }
        ([length], []) => match rest.len().cmp(&length.parse().map_err(|_| "a length")?) {
            Ordering::Less => Ok(None),
            Ordering::Equal => Ok(Some((status, rest.to_vec()))),
            Ordering::Greater => Err("more than one answer"),
        },
        ([], ["chunked"]) => match chunks(rest, 0)? {
            Some((body, end)) if end == rest.len() => Ok(Some((status, body))),
            Some(_) => Err("more than one answer"),
            None => Ok(None),
        },
        ([], []) => Ok(Some((status, rest.to_vec()))),
        _ => Err("framed in two ways, or in none that is known"),
    }
}

/// What is answered on two streams, of which the second is an ordinary call. 0: the stream or the connection was ended.
fn ask_http_2(there: &There, case: &[u8], next: &[u8]) -> (u16, u16) {
    let mut client = there.connect(&[]);
    client.send(&[case, next].concat());
    let mut answers = [None, None];
    while answers.contains(&None)
        && let Some(came) = client.next(PATIENCE)
    {
        let said = match came.kind {
            HEADERS => status(&came.payload),
            RST_STREAM => 0,
            _ => continue,
        };
        if let (1 | 3, answer) = (came.stream, &mut answers[came.stream as usize / 2 % 2]) {
            answer.get_or_insert(said);
        }
    }
    let [case, next] = answers.map(Option::unwrap_or_default);
    (case, next)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_t43_a_request_over_http_2_has_one_meaning_at_the_upstream_or_none() {
    let mut bench = Bench::start(Gateway::builder().tls()).await;
    for (number, case) in corpus("requests_http2.json").iter().enumerate() {
        let (path, target) = (format!("/demo/{number}"), format!("/mcp/{number}"));
        let block = |path: &str, case: &Value| {
            let own = [(":method", "POST"), (":scheme", "https"), (":authority", "HOST"), (":path", "PATH")];
            let own = own.map(|(name, value)| match &case["pseudo"][name] {
                Value::Null if case["pseudo"].get(name).is_some() => Vec::new(),
                Value::Null => field(name, &bench.fill(value, path)),
                other => field(name, &bench.fill(other.as_str().unwrap(), path)),
            });
            let bearer = format!("Bearer {}", bench.token);
            let known = [field("authorization", &bearer), field("content-type", "application/json")];
            [own.concat(), known.concat(), fields(&bench, &case["fields"], path)].concat()
        };
        let body = bench.fill(text(case, "body").unwrap_or("hello"), &path);
        let mut bytes = frame(HEADERS, END_HEADERS, 1, &block(&path, case));
        let trailers = fields(&bench, &case["trailers"], &path);
        let ends = if trailers.is_empty() { END_STREAM } else { 0 };
        bytes.extend(frame(DATA, ends, 1, body.as_bytes()));
        if !trailers.is_empty() {
            bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 1, &trailers));
        }
        let next = frame(HEADERS, END_HEADERS, 3, &block(&format!("{path}/next"), &json!({})));
        let next = [next, frame(DATA, END_STREAM, 3, NEXT.as_bytes())].concat();
        let there = There::at(&bench.gateway, &bench.token);
        let asked = tokio::task::spawn_blocking(move || ask_http_2(&there, &bytes, &next));
        let (status, after) = asked.await.unwrap();
        let is_kept = case["then"] == true;
        bench.expect(case, is_status(case, status) && (after == 200) == is_kept, (status, after));
        let seen = bench.recorder.below(&target).into_iter();
        let mut seen: Vec<_> = seen
            .filter(|seen| seen.target == target || seen.target.starts_with(&format!("{target}/")))
            .map(|seen| (seen.target, String::from_utf8_lossy(&seen.body).into_owned()))
            .collect();
        seen.sort();
        let mut wanted: Vec<_> =
            text(case, "arrives").map(|body| (target.clone(), bench.fill(body, &path))).into_iter().collect();
        wanted.extend(is_kept.then(|| (format!("{target}/next"), NEXT.to_owned())));
        bench.expect(case, seen == wanted, &seen);
    }
    bench.ends();
}

/// Header fields, one after the other.
fn fields(bench: &Bench, fields: &Value, path: &str) -> Vec<u8> {
    let fields = fields.as_array().into_iter().flatten();
    let filled = fields.map(|pair| {
        let [name, value] = [0, 1].map(|at| bench.fill(pair[at].as_str().unwrap(), path));
        field(&name, &value)
    });
    filled.collect::<Vec<_>>().concat()
}
