//! Lists show a caller what they may use and nothing else: in JSON and in events, as answers to a call, on the GET stream and
//! where it is taken up again. What cannot be read is refused; what is no list goes on byte for byte.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use serde_json::{Value, json};
use support::PATIENCE;
use support::body::Feed;
use support::browser::Browser;
use support::client::Client;
use support::eventually;
use support::gateway::{Builder, Gateway, Route};
use support::h2_server::H2Server;
use support::mcp::{McpAnswer, McpRequest};
use support::raw::{RawConnection, exchange};
use support::script::Answer;
use support::upstream::Upstream;
use support::within;

const JSON: (&str, &str) = ("content-type", "application/json");
const EVENTS: (&str, &str) = ("content-type", "text/event-stream");
const LIST: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
const CALL: &str =
    r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{}}}"#;

/// Nothing is shown that has `secret` in its name.
fn hiding(route: Route) -> Route {
    let rule = "(mcp.tool + mcp.prompt + mcp.resource).contains('secret')";
    route.with("policy", json!({"default": "allow", "list": [{"name": "secrets", "deny": rule}]}))
}

struct Rig {
    upstream: Upstream,
    gateway: Gateway,
    call: McpRequest,
    token: String,
}

impl Rig {
    async fn new() -> Self {
        Self::with(Gateway::builder()).await
    }

    async fn with(builder: Builder) -> Self {
        let upstream = Upstream::open().await;
        Self::of(builder.route(hiding(Route::open("demo", &upstream))), upstream).await
    }

    async fn of(builder: Builder, upstream: Upstream) -> Self {
        let gateway = builder.start().await;
        let client = Client::register(&gateway).await;
        let token = client.sign_in(&mut Browser::new().trusting(&gateway.roots), "demo").await.access_token;
        Rig { call: gateway.mcp("demo").bearer(&token), upstream, gateway, token }
    }

    /// The answer to a request for a list, when this is the upstream's.
    async fn list(&self, headers: &[(&str, &str)], body: &str) -> McpAnswer {
        self.upstream.answer_next(Answer::http(200, headers, body));
        self.call.post(LIST).await
    }

    /// Whether such an answer is refused, seen its body: by another one, or where its head has gone ahead, without a byte of it.
    async fn refuses(&self, body: &str) -> bool {
        self.upstream.answer_next(Answer::http(200, &[JSON], body));
        let answer = self.call.send("POST", Some(LIST)).await;
        match answer.status().as_u16() {
            200 => Stream { answer, read: String::new() }.rest().await == (String::new(), false),
            _ => refused(&McpAnswer::of(answer).await),
        }
    }

    /// A stream that the test feeds. `method`: how it is asked for.
    async fn stream(&self, method: &str) -> (Feed, Stream) {
        let (feed, answer) = Answer::stream();
        self.upstream.answer_next(answer);
        let answer = self.call.send(method, (method == "POST").then_some(LIST)).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        (feed, Stream { answer, read: String::new() })
    }

    /// Waits until so many answers of the upstream were refused.
    async fn refused_times(&self, times: usize) {
        eventually(PATIENCE, async || self.refusals().await == times).await;
    }

    async fn refusals(&self) -> usize {
        let metrics =
            self.gateway.http.get(self.gateway.admin("/metrics")).send().await.unwrap().text().await;
        let metrics = metrics.unwrap();
        let counted = metrics.lines().filter(|line| line.contains("upstream_unfilterable"));
        let counts = counted.filter(|line| line.starts_with("postern_requests_total"));
        counts.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum()
    }
}

/// A stream, byte for byte.
struct Stream {
    answer: reqwest::Response,
    read: String,
}

impl Stream {
    /// Reads on until this is all that has come.
    #[track_caller]
    fn comes_to(&mut self, expected: &str) -> impl Future<Output = ()> {
        let expected = expected.to_owned();
        within(PATIENCE, async move {
            while self.read.len() < expected.len() {
                let piece = self.answer.chunk().await.unwrap().expect("more");
                self.read.push_str(std::str::from_utf8(&piece).unwrap());
            }
            assert_eq!(self.read, expected);
        })
    }

    /// What comes until the end, and whether it is a proper one.
    async fn rest(mut self) -> (String, bool) {
        within(PATIENCE, async move {
            loop {
                match self.answer.chunk().await {
                    Ok(Some(piece)) => self.read.push_str(std::str::from_utf8(&piece).unwrap()),
                    Ok(None) => return (self.read, true),
                    Err(_) => return (self.read, false),
                }
            }
        })
        .await
    }
}

/// A message with a list in it: `names` of `kind`, each written as the member that says so.
fn list(kind: &str, names: &[&str]) -> String {
    let key = match kind {
        "resources" => "uri",
        "resourceTemplates" => "uriTemplate",
        _ => "name",
    };
    let items: Vec<Value> =
        names.iter().map(|name| json!({key: name, "title": "secrets are no names"})).collect();
    json!({"jsonrpc": "2.0", "id": 1, "result": {kind: items}}).to_string()
}

fn refused(answer: &McpAnswer) -> bool {
    let error = answer.json()["error_description"].as_str().unwrap_or_default().to_owned();
    answer.status == 502 && error.contains("cannot be filtered")
}

// === JSON ===

#[tokio::test]
async fn every_kind_of_list_loses_what_the_caller_may_not_use() {
    let rig = Rig::new().await;
    for kind in ["tools", "prompts", "resources", "resourceTemplates"] {
        let answer = rig.list(&[JSON], &list(kind, &["a", "secret-1", "b", "my-secret"])).await;
        assert_eq!((answer.status, &*answer.body), (200, &*list(kind, &["a", "b"])));
        let answer = rig.list(&[JSON], &list(kind, &["secret"])).await;
        assert_eq!(answer.body, list(kind, &[]));
    }
    rig.refused_times(0).await;
}

#[tokio::test]
async fn all_but_the_list_and_its_scope_is_left_as_it_was() {
    let rig = Rig::new().await;
    let page = |tools: &str, scope: &str| {
        format!(
            " {{ \"jsonrpc\":\"2.0\",\r\n\t\"result\" : {{\"ttlMs\":6e4,\"nextCursor\":\"p\\u00e9é\",\"tools\" :{tools},\"cacheScope\": \"{scope}\" , \"_meta\":{{\"tools\":[{{\"name\":\"secret\"}}]}} }}, \"id\":1.0}} \n"
        )
    };
    let tools =
        r#"[ {"name" : "a", "x":[1E400,{}]} , {"name":"secret"},{"title":"é\ud83d\ude00","name":"b"} ]"#;
    let seen = r#"[{"name" : "a", "x":[1E400,{}]},{"title":"é\ud83d\ude00","name":"b"}]"#;
    // Page by page; one that has nothing for the caller still leads to the next.
    let answer = rig.list(&[JSON, ("x-more", "stays")], &page(tools, "public")).await;
    assert_eq!(answer.body, page(seen, "private"));
    assert_eq!(answer.header("x-more"), Some("stays"));
    let answer = rig.list(&[JSON], &page(r#"[{"name":"secret"}]"#, "private")).await;
    assert_eq!(answer.body, page("[]", "private"));
    // The caller sees all of it, others may not.
    let answer = rig.list(&[JSON], &page(r#"[ {"name":"a"} ]"#, "public")).await;
    assert_eq!(answer.body, page(r#"[ {"name":"a"} ]"#, "private"));
}

#[tokio::test]
async fn the_head_says_nothing_of_bytes_that_are_no_longer_there() {
    let rig = Rig::new().await;
    let said = [
        JSON,
        ("etag", "\"1\""),
        ("content-digest", "sha-256=:x:"),
        ("repr-digest", "sha-256=:x:"),
        ("digest", "sha-256=x"),
        ("content-md5", "x"),
        ("accept-ranges", "bytes"),
    ];
    let answer = rig.list(&said, &list("tools", &["a", "secret"])).await;
    assert_eq!(answer.body, list("tools", &["a"]));
    for (name, _) in &said[1..] {
        assert_eq!(answer.header(name), None, "{name}");
    }
    assert_eq!(answer.header("content-length"), None);
}

#[tokio::test]
async fn what_is_no_list_goes_on_byte_for_byte() {
    let rig = Rig::new().await;
    for body in [
        "{ \"jsonrpc\":\"2.0\", \"id\":1 ,\"result\":{\"content\":[{\"type\":\"text\",\"text\":\"{\\\"tools\\\":[{\\\"name\\\":\\\"secret\\\"}]}\"}]}}\n",
        r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"tools"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"result":{"structuredContent":{"tools":[{"name":"secret"}]},"cacheScope":"public"}}"#,
        "",
    ] {
        rig.upstream.answer_next(Answer::http(200, &[JSON], body));
        let answer = rig.call.post(CALL).await;
        assert_eq!((answer.status, &*answer.body), (200, body));
        // Nor is it sent in another way, as nobody asked for a list.
        assert_eq!(answer.header("content-length"), Some(&*body.len().to_string()));
    }
    // A message that is accepted, as servers say it.
    for headers in [&[][..], &[JSON], &[("content-type", "text/plain")]] {
        for status in [202, 204] {
            rig.upstream.answer_next(Answer::http(status, headers, ""));
            let answer = rig.call.post(LIST).await;
            assert_eq!((answer.status, answer.header("transfer-encoding")), (status, None));
        }
        let (feed, answer) = Answer::json_in_pieces();
        rig.upstream.answer_next(answer);
        feed.finish();
        assert_eq!(rig.call.post(LIST).await.body, "");
    }
    // What went wrong is told by its status.
    for status in [400, 404, 503] {
        for (kind, body) in
            [("text/html", "<p>{tools}</p>"), ("application/json", r#"{"error":{"tools":1}}"#)]
        {
            rig.upstream.answer_next(Answer::http(status, &[("content-type", kind)], body));
            let answer = rig.call.post(LIST).await;
            assert_eq!((answer.status, &*answer.body), (status, body));
        }
    }
    rig.refused_times(0).await;
}

#[tokio::test]
async fn a_list_is_one_whatever_was_asked_and_however_it_is_answered() {
    let rig = Rig::new().await;
    // As the answer to a call its length was told before it was known: spaces make up for it.
    let body = list("tools", &["a", "secret"]);
    rig.upstream.answer_next(Answer::http(200, &[JSON], &body));
    let answer = rig.call.post(CALL).await;
    assert_eq!(answer.header("content-length"), Some(&*body.len().to_string()));
    assert_eq!(answer.body, format!("{:1$}", list("tools", &["a"]), body.len()));
    // In an error, in a batch, in another spelling, and without a type.
    rig.upstream.answer_next(Answer::http(400, &[JSON], &body));
    let answer = rig.call.post(LIST).await;
    assert_eq!((answer.status, answer.body), (400, list("tools", &["a"])));
    let batch = format!("[{},{body}]", list("prompts", &["secret"]));
    assert_eq!(
        rig.list(&[JSON], &batch).await.body,
        format!("[{},{}]", list("prompts", &[]), list("tools", &["a"]))
    );
    let spelled = body.replace("secret\"", "s\\u0065cret\"").replace("\"tools\"", "\"t\\u006fols\"");
    assert_eq!(
        rig.list(&[JSON], &spelled).await.body,
        list("tools", &["a"]).replace("\"tools\"", "\"t\\u006fols\"")
    );
    assert_eq!(rig.list(&[], &body).await.body, list("tools", &["a"]));
    let parameters = ("content-type", "Application/JSON; charset=UTF-8");
    assert_eq!(rig.list(&[parameters], &body).await.body, list("tools", &["a"]));
}

#[tokio::test]
async fn what_could_be_read_in_two_ways_is_refused() {
    let rig = Rig::new().await;
    let bodies = [
        r#"{"id":1,"result":{"tools":[],"tools":[{"name":"secret"}]}}"#,
        r#"{"id":1,"result":{"tools":[],"Tools":[{"name":"secret"}]}}"#,
        r#"{"id":1,"result":{"toolſ":[{"name":"secret"}]}}"#,
        r#"{"id":1,"result":{},"result":{"tools":[{"name":"secret"}]}}"#,
        r#"{"id":1,"Result":{"tools":[{"name":"secret"}]}}"#,
        r#"{"id":1,"result":{"tools":[{"name":"a","name":"secret"}]}}"#,
        r#"{"id":1,"result":{"tools":[{"Name":"secret"}]}}"#,
        r#"{"id":1,"result":{"tools":[{"title":"secret"}]}}"#,
        r#"{"id":1,"result":{"tools":{"secret":{}}}}"#,
        r#"{"id":1,"result":{"tools":[{"name":"secret"}]}"#,
        r#"{"id":1,"result":{"tools":[{"name":"secret"}]}}{}"#,
        "\u{feff}{\"id\":1,\"result\":{\"tools\":[{\"name\":\"secret\"}]}}",
    ];
    for body in bodies {
        assert!(rig.refuses(body).await, "{body}");
    }
    rig.refused_times(bodies.len()).await;
    rig.gateway.output.shows("an answer of the upstream cannot be filtered").await;
    // In an event, too: then nothing of the stream goes on from there.
    for body in bodies {
        let (feed, mut stream) = rig.stream("POST").await;
        feed.event("{}");
        stream.comes_to("event: message\ndata: {}\n\n").await;
        feed.event(body);
        feed.event("{}");
        assert_eq!(stream.rest().await, ("event: message\ndata: {}\n\n".to_owned(), false), "{body}");
    }
}

#[tokio::test]
async fn each_caller_sees_what_they_may_call() {
    let upstream = Upstream::open().await;
    let rules = |dry_run: bool| {
        let alice = json!({"name": "alice", "allow": "caller.subject == 'alice'"});
        let others = json!({"name": "others", "allow": "mcp.tool.startsWith('read_')"});
        // What depends on arguments is not known yet.
        let sometimes =
            json!({"name": "sometimes", "allow": "mcp.tool == 'copy' && mcp.arguments.to == '/tmp'"});
        json!({"dry_run": dry_run, "call": [alice, others, sometimes]})
    };
    let route = Route::open("demo", &upstream).with("policy", rules(false));
    let rig = Rig::of(Gateway::builder().route(route), upstream).await;
    let client = Client::register(&rig.gateway).await;
    let token = client.sign_in(&mut Browser::of("bob"), "demo").await.access_token;
    let (alice, bob) = (&rig.call, rig.gateway.mcp("demo").bearer(&token));
    let all = list("tools", &["read_a", "write_a", "copy", "read_b"]);
    let seen = async |call: &McpRequest| {
        rig.upstream.answer_next(Answer::http(200, &[JSON], &all));
        call.post(LIST).await.body
    };
    assert_eq!(seen(alice).await, all);
    assert_eq!(seen(&bob).await, list("tools", &["read_a", "copy", "read_b"]));
    assert_eq!(bob.tool("write_a", json!({})).await.json()["error"]["code"], -32099);
    assert_eq!(bob.tool("read_a", json!({})).await.status, 200);
    // Other rules hold from the next request on; rules that only look hide nothing.
    let looking = Route::open("demo", &rig.upstream).with("policy", rules(true));
    rig.gateway.reconfigure("routes", json!([looking.document()]));
    rig.gateway.hang_up();
    rig.gateway.output.shows("the configuration is in use").await;
    assert_eq!(seen(&bob).await, all);
}

// === what cannot be filtered ===

#[tokio::test]
async fn upstreams_are_asked_for_what_can_be_read() {
    let rig = Rig::new().await;
    let greedy = rig
        .call
        .clone()
        .header("accept-encoding", "gzip, br")
        .header("range", "bytes=10-")
        .header("if-range", "\"1\"")
        .header("if-none-match", "\"1\"")
        .header("if-modified-since", "Tue, 01 Jul 2025 00:00:00 GMT");
    assert_eq!(greedy.post(CALL).await.status, 200);
    let seen = rig.upstream.requests.last_to("/mcp");
    assert_eq!(seen.header("accept-encoding").as_deref(), Some("identity"));
    for name in ["range", "if-range", "if-none-match", "if-modified-since"] {
        assert_eq!(seen.header(name), None, "{name}");
    }
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_is_refused() {
    let rig = Rig::new().await;
    let body = list("tools", &["a", "secret"]);
    for headers in [
        &[JSON, ("content-encoding", "gzip")][..],
        &[JSON, ("content-encoding", "identity, br")],
        &[EVENTS, ("content-encoding", "zstd")],
        &[("content-encoding", "deflate")],
        &[("content-type", "application/x-ndjson")],
        &[("content-type", "application/json; charset=utf-16")],
        &[("content-type", "text/plain")],
        &[JSON, EVENTS],
    ] {
        let answer = rig.list(headers, &body).await;
        assert!(refused(&answer), "{headers:?} became {} {}", answer.status, answer.body);
    }
    rig.upstream.answer_next(Answer::http(206, &[JSON, ("content-range", "bytes 0-9/99")], &body));
    assert!(refused(&rig.call.post(LIST).await));
    rig.upstream.answer_next(Answer::http(404, &[JSON, ("content-encoding", "gzip")], &body));
    assert!(refused(&rig.call.post(LIST).await));
    // Said to be what it is.
    assert_eq!(rig.list(&[JSON, ("content-encoding", "identity")], &body).await.body, list("tools", &["a"]));
    rig.refused_times(10).await;
}

#[tokio::test]
async fn there_is_room_for_so_much_and_no_more() {
    let rig = Rig::with(Gateway::builder().with("limits.inspect_answer", json!(1000))).await;
    let of_length = |length: usize| {
        let bare = list("tools", &["a", "secret", ""]).len();
        list("tools", &["a", "secret", &"x".repeat(length - bare)])
    };
    assert!(
        rig.list(&[JSON], &of_length(1000)).await.json()["result"]["tools"][1]["name"]
            .as_str()
            .unwrap()
            .len()
            > 700
    );
    assert!(refused(&rig.list(&[JSON], &of_length(1001)).await));
    // Of a length that nobody knows beforehand, nothing leaves before its end.
    let (feed, answer) = Answer::json_in_pieces();
    rig.upstream.answer_next(answer);
    let answer = rig.call.send("POST", Some(LIST)).await;
    assert_eq!(answer.status(), 200);
    for piece in of_length(1001).as_bytes() {
        feed.bytes(vec![*piece]);
    }
    let (read, is_whole) = Stream { answer, read: String::new() }.rest().await;
    assert_eq!((read.as_str(), is_whole), ("", false));
    // Each event has that room, and the stream as a whole any.
    let (feed, mut stream) = rig.stream("GET").await;
    let event = format!("data: {}\n\n", "x".repeat(1000 - 8));
    feed.bytes(event.repeat(3));
    stream.comes_to(&event.repeat(3)).await;
    feed.bytes(format!("data: {}\n\n", "x".repeat(1001 - 8)));
    assert_eq!(stream.rest().await, (event.repeat(3), false));
    rig.refused_times(3).await;
}

#[tokio::test]
async fn where_everybody_sees_everything_nothing_is_looked_at() {
    let upstream = Upstream::open().await;
    let rig = Rig::of(Gateway::builder().route(Route::open("demo", &upstream)), upstream).await;
    let body = list("tools", &["secret"]);
    let answer = rig.list(&[JSON, ("content-encoding", "gzip"), ("etag", "\"1\"")], &body).await;
    assert_eq!((answer.status, &answer.body, answer.header("etag")), (200, &body, Some("\"1\"")));
    let twice = r#"{"result":{"tools":[],"tools":[{"name":"secret"}]}}"#;
    let answer = rig.list(&[JSON], twice).await;
    assert_eq!(
        (answer.status, &*answer.body, answer.header("content-length")),
        (200, twice, Some(&*twice.len().to_string()))
    );
    let curious = rig.call.clone().header("accept-encoding", "br").header("range", "bytes=0-");
    curious.post(CALL).await;
    let seen = rig.upstream.requests.last_to("/mcp");
    assert_eq!(
        (seen.header("accept-encoding").as_deref(), seen.header("range").as_deref()),
        (Some("br"), Some("bytes=0-"))
    );
    // Half an event leaves.
    let (feed, mut stream) = rig.stream("GET").await;
    feed.bytes("data: ha");
    stream.comes_to("data: ha").await;
}

#[tokio::test]
async fn an_answer_of_ours_is_ours_whatever_it_stands_in_for() {
    let upstream = Upstream::start().await;
    let route = hiding(Route::oauth("demo", &upstream));
    let rig = Rig::of(Gateway::builder().route(route), upstream).await;
    // The token is refused, a newer one is not, and the second answer is filtered.
    rig.upstream.refuse_current_tokens();
    assert_eq!(rig.list(&[JSON], &list("tools", &["secret", "a"])).await.body, list("tools", &["a"]));
    // Every token is refused, in a way that cannot be read.
    let refusal =
        [JSON, ("content-encoding", "gzip"), ("www-authenticate", "Bearer error=\"invalid_token\"")];
    for _ in 0..3 {
        rig.upstream.answer_next(Answer::http(401, &refusal, "no JSON"));
    }
    let answer = rig.call.post(LIST).await;
    assert_eq!((answer.status, answer.challenge("error").as_deref()), (401, Some("invalid_token")));
}

// === events ===

#[tokio::test]
async fn events_in_pieces_of_one_byte_are_filtered_and_half_of_one_never_leaves() {
    let rig = Rig::new().await;
    let event = |tools: &[&str]| {
        format!("id: 7\r\nevent: message\r\ndata: {}\r\nretry: 100\r\n\r\n", list("tools", tools))
    };
    for method in ["POST", "GET"] {
        let (feed, mut stream) = rig.stream(method).await;
        let bytes = |text: &str| text.bytes().for_each(|byte| feed.bytes(vec![byte]));
        bytes(": alive\n");
        stream.comes_to(": alive\n").await;
        bytes(&event(&["a", "secret", "b"]));
        let mut seen = format!(": alive\n{}", event(&["a", "b"]));
        stream.comes_to(&seen).await;
        let untouched = "data:{ \"method\":\"notifications/tools/list_changed\"}\rid:  8\r\r";
        bytes(untouched);
        seen.push_str(untouched);
        stream.comes_to(&seen).await;
        // In several lines, which become one.
        let (first, second) = list("tools", &["secret", "c"])
            .split_once(',')
            .map(|(a, b)| (format!("{a},"), b.to_owned()))
            .unwrap();
        bytes(&format!("data: {first}\ndata:{second}\n\n"));
        seen.push_str(&format!("data: {}\n\n", list("tools", &["c"]).replacen(',', ", ", 1)));
        stream.comes_to(&seen).await;
        bytes("data: this never becomes an event\nid: 9\n");
        feed.finish();
        assert_eq!(stream.rest().await, (seen, true));
    }
}

#[tokio::test]
async fn a_stream_that_is_taken_up_again_is_filtered_like_any_other() {
    let rig = Rig::new().await;
    let (feed, answer) = Answer::stream();
    rig.upstream.answer_next(answer);
    let mut replay = rig.call.clone().header("last-event-id", "stream-1_4").events().await;
    assert_eq!(replay.status, 200);
    assert_eq!(rig.upstream.requests.last_to("/mcp").header("last-event-id").as_deref(), Some("stream-1_4"));
    feed.bytes(format!("id: stream-1_5\ndata: {}\n\n", list("resources", &["file:///secret", "file:///a"])));
    let event = replay.next(PATIENCE).await.unwrap();
    assert_eq!((event.id.as_deref(), event.data), (Some("stream-1_5"), list("resources", &["file:///a"])));
}

#[tokio::test]
async fn events_of_a_known_length_are_filtered() {
    let rig = Rig::new().await;
    let event = |tools: &[&str]| format!("data: {}\n\n", list("tools", tools));
    let answer = rig.list(&[EVENTS], &event(&["secret", "a"]).repeat(2)).await;
    assert_eq!(answer.body, event(&["a"]).repeat(2));
    rig.upstream.answer_next(Answer::http(200, &[EVENTS], &event(&["secret"])));
    assert_eq!(rig.call.post(CALL).await.body, event(&[]));
}

// === versions of HTTP ===

#[tokio::test]
async fn clients_of_http_1_0_get_no_chunks() {
    let rig = Rig::new().await;
    let (list_of, seen) = (list("tools", &["a", "secret"]), list("tools", &["a"]));
    for (kind, body, seen) in [
        (JSON, list_of.clone(), seen.clone()),
        (EVENTS, format!("data: {list_of}\n\n"), format!("data: {seen}\n\n")),
    ] {
        for connection in ["close", "keep-alive"] {
            rig.upstream.answer_next(Answer::http(200, &[kind], &body));
            let mut client = RawConnection::open(rig.gateway.address).await;
            client
                .send(format!(
                    "POST /demo HTTP/1.0\r\nhost: {}\r\nconnection: {connection}\r\nauthorization: Bearer {}\r\naccept: application/json, text/event-stream\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{LIST}",
                    rig.gateway.address, rig.token, LIST.len()
                ))
                .await;
            let all = String::from_utf8(client.until_closed(PATIENCE).await).unwrap();
            let (head, body) = all.split_once("\r\n\r\n").unwrap();
            let head = head.to_lowercase();
            assert!(head.starts_with("http/1.1 200") && head.contains("\r\nconnection: close"), "{head}");
            assert!(!head.contains("transfer-encoding") && !head.contains("content-length"), "{head}");
            assert_eq!(body, seen);
        }
    }
}

#[tokio::test]
async fn connections_go_on_after_a_filtered_list() {
    let rig = Rig::new().await;
    let mut client = RawConnection::open(rig.gateway.address).await;
    let post = |body: &str| {
        format!(
            "POST /demo HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\naccept: application/json, text/event-stream\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            rig.gateway.address,
            rig.token,
            body.len()
        )
    };
    for _ in 0..3 {
        rig.upstream.answer_next(Answer::http(200, &[JSON], &list("tools", &["secret", "a"])));
        client.send(post(LIST)).await;
        assert_eq!(client.response(PATIENCE).await.unwrap().text(), list("tools", &["a"]));
        rig.upstream.answer_next(Answer::http(200, &[JSON], &list("tools", &["secret", "a"])));
        client.send(post(CALL)).await;
        assert_eq!(client.response(PATIENCE).await.unwrap().text().trim_end(), list("tools", &["a"]));
    }
    let one = exchange(rig.gateway.address, post(LIST), PATIENCE).await.unwrap();
    assert_eq!(one.header("transfer-encoding"), Some("chunked"));
}

#[tokio::test]
async fn lists_are_filtered_over_http_2() {
    let rig = Rig::with(Gateway::builder().tls()).await;
    rig.upstream.answer_next(Answer::http(200, &[JSON], &list("tools", &["a", "secret"])));
    let answer = rig.call.send("POST", Some(LIST)).await;
    assert_eq!(answer.version(), reqwest::Version::HTTP_2);
    assert_eq!(answer.text().await.unwrap(), list("tools", &["a"]));
    let (feed, mut stream) = rig.stream("GET").await;
    let event = |tools: &[&str]| format!("data: {}\n\n", list("tools", tools));
    feed.bytes(event(&["a", "secret"]));
    stream.comes_to(&event(&["a"])).await;
    assert!(rig.refuses(r#"{"result":{"tools":[],"tools":[{"name":"secret"}]}}"#).await);
}

#[tokio::test]
async fn trailers_end_a_body_as_well() {
    let files = tempfile::tempdir().unwrap();
    let event = |tools: &[&str]| format!("data: {}\n\n", list("tools", tools));
    let whole = list("tools", &["secret", "a"]);
    let (first, second) = whole.split_at(30);
    let twice = r#"{"result":{"tools":[],"tools":[{"name":"secret"}]}}"#;
    for (kind, pieces, seen) in [
        ("application/json", vec![first.to_owned(), second.to_owned()], list("tools", &["a"])),
        ("application/json", vec![twice.to_owned()], String::new()),
        (
            "text/event-stream",
            vec![event(&["secret"]), event(&["b"]), "data: half".to_owned()],
            event(&[]) + &event(&["b"]),
        ),
    ] {
        let server = H2Server::start(kind, pieces);
        let certificate = files.path().join("ca.pem");
        std::fs::write(&certificate, &server.certificate).unwrap();
        let route = hiding(Route::to("demo", &server.url, json!({"kind": "none"})));
        let builder = Gateway::builder().route(route).with("outbound.ca_files", json!([certificate]));
        let rig = Rig::of(builder, Upstream::open().await).await;
        let answer = rig.call.send("POST", Some(LIST)).await;
        assert_eq!((answer.status().as_u16(), answer.text().await.unwrap_or_default()), (200, seen));
    }
}
