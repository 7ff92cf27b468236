//! Traces: they go on from the client's, reach the upstream and a collector, hold nobody up and say nothing secret.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use crate::support;

use std::collections::{BTreeMap, BTreeSet};

use axum::response::IntoResponse;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Attribute;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;
use serde_json::{Value, json};
use support::browser::Browser;
use support::client::{Client, Tokens};
use support::gateway::{Builder, Gateway, Route};
use support::received::Requests;
use support::server::Server;
use support::upstream::Upstream;
use support::{CANARY, PATIENCE, eventually_some, secret};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// A collector of OpenTelemetry's protocol, that reads with OpenTelemetry's own types.
struct Collector {
    server: Server,
    requests: Requests,
}

impl Collector {
    async fn start() -> Self {
        let requests = Requests::default();
        let heard = requests.clone();
        let server = Server::start(move |request, _| {
            heard.add(request);
            async { axum::http::StatusCode::OK.into_response() }
        });
        Self { server: server.await, requests }
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.server.address)
    }

    fn spans(&self) -> Vec<Span> {
        let requests = self.requests.to("/v1/traces").into_iter();
        let requests =
            requests.map(|request| ExportTraceServiceRequest::decode(&*request.body).expect("protobuf"));
        let resources = requests.flat_map(|request| request.resource_spans);
        resources.flat_map(|spans| spans.scope_spans).flat_map(|spans| spans.spans).collect()
    }

    /// The first span like that.
    async fn span(&self, wanted: impl Fn(&Span) -> bool) -> Span {
        eventually_some(PATIENCE, || {
            let found = self.spans().into_iter().find(|span| wanted(span));
            async move { found }
        })
        .await
    }
}

fn traced(collector: &str, sample: f64) -> Builder {
    Gateway::builder().with("telemetry.traces", json!({"endpoint": collector, "sample": sample}))
}

async fn signed_in(gateway: &Gateway, route: &str) -> Tokens {
    let client = Client::register(gateway).await;
    client.sign_in(&mut Browser::new(), route).await
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

fn attributes(span: &Span) -> BTreeMap<&str, Value> {
    let read = |value: &Attribute| match value {
        Attribute::StringValue(text) => json!(text),
        Attribute::IntValue(number) => json!(number),
        other => panic!("{other:?}"),
    };
    let all = span.attributes.iter();
    all.map(|pair| (pair.key.as_str(), read(pair.value.as_ref().unwrap().value.as_ref().unwrap()))).collect()
}

/// The value of one series; 0 when it is not there.
async fn metric(gateway: &Gateway, series: &str) -> f64 {
    let text = gateway.http.get(gateway.admin("/metrics")).send().await.unwrap().text().await.unwrap();
    let found = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    found.map_or(0.0, |value| value.parse().unwrap())
}

#[tokio::test]
async fn pom_44_a_request_goes_on_from_its_clients_trace_and_the_upstream_from_ours() {
    let (upstream, collector) = (Upstream::start().await, Collector::start().await);
    let gateway = traced(&collector.endpoint(), 0.0).route(Route::oauth("demo", &upstream)).start().await;
    let tokens = signed_in(&gateway, "demo").await;
    let call = gateway.mcp("demo?key=CANARY_query").bearer(&tokens.access_token);
    let call = call
        .header("traceparent", &format!("00-{TRACE}-{PARENT}-01"))
        .and_header("tracestate", "vendor=value")
        .and_header("baggage", "user=alice")
        .and_header("mcp-method", "tools/call")
        .and_header("mcp-name", "whoami");
    let answer = call.tool("whoami", json!({"token": secret("argument")})).await;
    assert_eq!(answer.status, 200);

    let whole = collector.span(|span| span.kind() == SpanKind::Server).await;
    assert_eq!((hex(&whole.trace_id), hex(&whole.parent_span_id)), (TRACE.into(), PARENT.into()));
    assert_eq!(whole.name, "POST demo");
    let told = attributes(&whole);
    for (key, value) in [
        ("http.request.method", json!("POST")),
        ("http.response.status_code", json!(200)),
        ("http.route", json!("demo")),
        ("mcp.method.name", json!("tools/call")),
        ("gen_ai.tool.name", json!("whoami")),
        ("postern.caller", json!("user")),
        ("postern.reason", json!("ok")),
        ("postern.request_id", json!(answer.header("x-request-id").unwrap())),
    ] {
        assert_eq!(told[key], value, "{key}");
    }
    let call = collector.span(|span| span.kind() == SpanKind::Client).await;
    assert_eq!(call.parent_span_id, whole.span_id);
    assert_eq!(attributes(&call)["server.port"], json!(upstream.server.address.port()));
    assert!(whole.start_time_unix_nano <= call.start_time_unix_nano);
    assert!(call.start_time_unix_nano < call.end_time_unix_nano);
    assert!(call.end_time_unix_nano <= whole.end_time_unix_nano);

    // The upstream goes on from the call, with what others have to say about the trace.
    let heard = upstream.calls().pop().unwrap();
    let expected = format!("00-{TRACE}-{}-01", hex(&call.span_id));
    assert_eq!(heard.header("traceparent"), Some(expected));
    assert_eq!(heard.header("tracestate").as_deref(), Some("vendor=value"));
    // And the line in the access log names the trace.
    gateway.output.has(1, |line| line["trace_id"] == TRACE).await;

    // No secret gets there.
    let sent = collector.requests.to("/v1/traces");
    assert_eq!(sent[0].header("content-type").as_deref(), Some("application/x-protobuf"));
    let told: String =
        sent.iter().map(|request| String::from_utf8_lossy(&request.body).into_owned()).collect();
    for hidden in [CANARY, "CANARY_query", &tokens.access_token] {
        assert!(!told.contains(hidden), "{hidden}");
    }
}

/// From the challenge to the tokens, and again to newer ones: who was asked, for the sake of which request, and what came of it.
#[tokio::test]
async fn discovery_and_tokens_are_spans_of_the_request_that_needs_them() {
    let (upstream, collector) = (Upstream::start().await, Collector::start().await);
    let gateway = traced(&collector.endpoint(), 1.0).route(Route::oauth("demo", &upstream)).start().await;
    let tokens = signed_in(&gateway, "demo").await;
    let authorization: http::Uri = upstream.authorization.origin.parse().unwrap();
    let is_errand = |span: &Span, method: &str, status: u16| {
        let told = attributes(span);
        span.kind() == SpanKind::Client
            && span.name == method
            && told["server.address"] == json!(authorization.host())
            && told["server.port"] == json!(authorization.port_u16())
            && told["http.response.status_code"] == json!(status)
    };
    // The page that leads there asked for metadata, and noted what it made of them.
    let metadata = collector.span(|span| is_errand(span, "GET", 200)).await;
    let page = collector.span(|span| span.span_id == metadata.parent_span_id).await;
    assert_eq!((page.kind(), page.trace_id.clone()), (SpanKind::Server, metadata.trace_id.clone()));
    assert!(page.start_time_unix_nano <= metadata.start_time_unix_nano);
    assert!(metadata.end_time_unix_nano <= page.end_time_unix_nano);
    let decided = |span: &Span, step: &str| {
        let told = json!([["postern.step", step], ["postern.decision", "taken"]]);
        span.events.iter().any(|event| {
            let pairs = event.attributes.iter().map(|pair| {
                let Some(Attribute::StringValue(text)) = &pair.value.as_ref().unwrap().value else {
                    panic!()
                };
                json!([pair.key, text])
            });
            event.name == "discovery"
                && Value::from_iter(pairs) == told
                && (span.start_time_unix_nano..=span.end_time_unix_nano).contains(&event.time_unix_nano)
        })
    };
    assert!(decided(&page, "server_metadata"), "{:?}", page.events);
    // The way back asked for tokens.
    let code = collector.span(|span| is_errand(span, "POST", 200) && span.trace_id != page.trace_id).await;

    // A call whose token is refused waits for a newer one, which is asked for in a task of its own.
    upstream.refuse_current_tokens();
    let call = gateway.mcp("demo").bearer(&tokens.access_token);
    let answer =
        call.header("traceparent", &format!("00-{TRACE}-{PARENT}-01")).tool("whoami", json!({})).await;
    assert_eq!(answer.status, 200);
    let whole = collector.span(|span| span.name == "POST demo" && hex(&span.trace_id) == TRACE).await;
    let of_call = |span: &Span| span.parent_span_id == whole.span_id && span.trace_id == whole.trace_id;
    let renewal = collector.span(|span| of_call(span) && span.name == "renewal").await;
    let refresh = collector.span(|span| of_call(span) && is_errand(span, "POST", 200)).await;
    assert_ne!(refresh.span_id, code.span_id);
    assert!(renewal.start_time_unix_nano <= refresh.end_time_unix_nano);
    assert!(refresh.end_time_unix_nano <= renewal.end_time_unix_nano);
    // Where the store is elsewhere, the credential that was refused had to be fetched as well.
    let others = |span: &Span| of_call(span) && span.name != "credential";
    let ids: BTreeSet<Vec<u8>> =
        collector.spans().into_iter().filter(others).map(|span| span.span_id).collect();
    assert_eq!(ids.len(), 3, "the call, the renewal, the refresh");
    // Strangers' servers hear nothing of the trace.
    for asked in upstream.authorization.requests.all() {
        assert_eq!(asked.header("traceparent"), None, "{}", asked.path);
    }
}

#[tokio::test]
async fn what_is_not_recorded_passes_on_as_it_came() {
    let (upstream, collector) = (Upstream::open().await, Collector::start().await);
    let parent = |flags: &str| format!("00-{TRACE}-{PARENT}-{flags}");
    for (traces, sample) in [(true, 1.0), (false, 0.0)] {
        let builder = if traces { traced(&collector.endpoint(), sample) } else { Gateway::builder() };
        let gateway = builder.route(Route::open("open", &upstream)).start().await;
        let tokens = signed_in(&gateway, "open").await;
        let call = gateway.mcp("open").bearer(&tokens.access_token);
        // Its client does not record it; or nobody traces anything here.
        let given = parent(if traces { "00" } else { "01" });
        assert_eq!(call.clone().header("traceparent", &given).call("ping", json!({})).await.status, 200);
        assert_eq!(upstream.calls().pop().unwrap().header("traceparent"), Some(given));
        // A trace of our own begins where there is none.
        assert_eq!(call.header("tracestate", "of=nothing").call("ping", json!({})).await.status, 200);
        let heard = upstream.calls().pop().unwrap();
        assert_eq!(heard.header("traceparent").is_some(), traces);
        assert_eq!(heard.header("tracestate").is_some(), !traces);
        if traces {
            let whole = collector.span(|span| span.name == "POST open").await;
            assert!(whole.parent_span_id.is_empty());
        }
    }
    assert!(!collector.spans().iter().any(|span| hex(&span.trace_id) == TRACE));
}

#[tokio::test]
async fn nothing_is_recorded_at_zero_and_a_client_may_have_no_say() {
    let (upstream, collector) = (Upstream::open().await, Collector::start().await);
    let gateway = traced(&collector.endpoint(), 0.0)
        .with("telemetry.traces.follow_clients", json!(false))
        .route(Route::open("open", &upstream))
        .start()
        .await;
    let tokens = signed_in(&gateway, "open").await;
    let call = gateway.mcp("open").bearer(&tokens.access_token);
    let given = format!("00-{TRACE}-{PARENT}-01");
    for _ in 0..20 {
        assert_eq!(call.clone().header("traceparent", &given).call("ping", json!({})).await.status, 200);
        assert_eq!(upstream.calls().pop().unwrap().header("traceparent"), Some(given.clone()));
    }
    let mut gateway = gateway;
    gateway.stop().await;
    assert_eq!(collector.requests.all().len(), 0);
}

#[tokio::test]
async fn a_collector_that_is_away_or_hangs_holds_no_request_up_and_is_told_of_later() {
    let (upstream, collector) = (Upstream::open().await, Collector::start().await);
    collector.server.stop();
    let gateway = traced(&collector.endpoint(), 1.0).route(Route::open("open", &upstream)).start().await;
    let tokens = signed_in(&gateway, "open").await;
    let call = gateway.mcp("open").bearer(&tokens.access_token);
    assert_eq!(call.call("ping", json!({})).await.status, 200);
    let failed = r#"postern_traced_requests_total{result="failed"}"#;
    support::eventually(PATIENCE, async || metric(&gateway, failed).await > 0.0).await;
    gateway.output.shows("the trace collector takes no spans").await;
    collector.server.resume().await;
    assert_eq!(call.call("ping", json!({})).await.status, 200);
    collector.span(|span| span.name == "POST open").await;
    gateway.output.shows("the trace collector takes spans again").await;

    // It takes connections and says nothing: what finds no room is dropped, and every request is answered.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let gateway = traced(&endpoint, 1.0).route(Route::open("open", &upstream)).start().await;
    let (address, dropped) = (gateway.address, r#"postern_traced_requests_total{result="dropped"}"#);
    let mut connection = support::raw::RawConnection::open(address).await;
    let mut asked = 0;
    while metric(&gateway, dropped).await == 0.0 {
        for _ in 0..200 {
            connection.send(format!("GET /nowhere HTTP/1.1\r\nHost: {address}\r\n\r\n")).await;
            assert_eq!(connection.response(PATIENCE).await.unwrap().status, 404);
        }
        asked += 200;
        assert!(asked < 10_000, "nothing was dropped");
    }
}

#[tokio::test]
async fn a_collector_may_want_a_key_that_nobody_else_sees() {
    let (upstream, collector) = (Upstream::open().await, Collector::start().await);
    let key = secret("collector");
    let gateway = traced(&collector.endpoint(), 1.0)
        .env("COLLECTOR_KEY", &key)
        .with("telemetry.traces.headers", json!({"x-api-key": {"env": "COLLECTOR_KEY"}}))
        .route(Route::open("open", &upstream))
        .start()
        .await;
    gateway.mcp("open").call("ping", json!({})).await;
    collector.span(|span| span.name == "POST open").await;
    assert_eq!(collector.requests.all()[0].header("x-api-key"), Some(key));
    gateway.output.assert_no_secret();
}
