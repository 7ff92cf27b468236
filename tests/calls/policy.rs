//! Rules on who may call what, at the running program: what is let through goes byte for byte, what is denied says so in the
//! call's own words, and what cannot be read in one way is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use crate::support;

use serde_json::{Value, json};
use support::browser::Browser;
use support::client::{Callback, Client, Tokens};
use support::gateway::{Builder, Gateway, Route};
use support::identity::IdentityProvider;
use support::mcp::{McpAnswer, McpRequest};
use support::raw::exchange;
use support::upstream::Upstream;
use support::{PATIENCE, eventually, eventually_some};

struct Rig {
    upstream: Upstream,
    gateway: Gateway,
    tokens: Tokens,
    client: Client,
    browser: Browser,
}

impl Rig {
    async fn new(policy: Value) -> Self {
        Self::with(Gateway::builder(), policy).await
    }

    async fn with(builder: Builder, policy: Value) -> Self {
        let upstream = Upstream::open().await;
        let gateway = builder.route(Route::open("demo", &upstream).with("policy", policy)).start().await;
        let client = Client::register(&gateway).await;
        let mut browser = Browser::new();
        let tokens = client.sign_in(&mut browser, "demo").await;
        Self { upstream, gateway, tokens, client, browser }
    }

    fn call(&self) -> McpRequest {
        self.gateway.mcp("demo").bearer(&self.tokens.access_token)
    }

    async fn echo(&self, message: &str) -> McpAnswer {
        self.call().tool("echo", json!({"message": message})).await
    }

    /// Waits for a decision in the audit log.
    async fn has_decided(&self, outcome: &str, by: &str) {
        let is = |line: &Value| {
            line["event"] == "policy_decided" && text(&line["outcome"]) == outcome && text(&line["by"]) == by
        };
        eventually(PATIENCE, || async { self.gateway.output.records().iter().any(is) }).await;
    }

    /// A call with this body, framed so that it is held back until all of it was judged.
    async fn in_pieces(&self, body: &[u8], size: usize) -> (u16, Value) {
        let mut request = format!(
            "POST /demo HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
             accept: application/json, text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
            self.gateway.address, self.tokens.access_token
        )
        .into_bytes();
        for piece in body.chunks(size) {
            request
                .extend_from_slice(&[format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat());
        }
        request.extend_from_slice(b"0\r\n\r\n");
        let answer = exchange(self.gateway.address, request, PATIENCE).await.expect("an answer");
        (answer.status, serde_json::from_slice(&answer.body).unwrap_or_default())
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[track_caller]
fn assert_denied(answer: &McpAnswer) {
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (200, &json!(-32099)), "{}", answer.body);
}

fn echo_of(message: &str) -> String {
    json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "echo", "arguments": {"message": message}}})
        .to_string()
}

#[tokio::test]
async fn pom_14_a_denied_call_is_answered_in_its_own_words_and_never_arrives() {
    let rig = Rig::new(json!({"call": [
        {"name": "adding", "allow": "mcp.tool == 'add'"},
        {"name": "soft-words", "allow": "mcp.tool == 'echo' && !mcp.arguments.message.contains('secret')"},
    ]}))
    .await;
    assert_eq!(rig.call().tool("add", json!({"a": 1, "b": 2})).await.status, 200);
    assert_eq!(rig.echo("hello").await.tool_text(), "hello");
    let before = rig.upstream.requests.all().len();

    let denied = rig.call().post(&echo_of("a secret")).await;
    assert_denied(&denied);
    let said = denied.json();
    assert_eq!((&said["jsonrpc"], &said["id"]), (&json!("2.0"), &json!(7)));
    let id = denied.header("x-request-id").unwrap().to_owned();
    assert_eq!(said["error"]["data"]["requestId"], id.as_str());
    assert!(!denied.body.contains("soft-words"), "which rule it was, is for the operator");
    for id in [json!(0), json!("0"), json!("a \"b\" \u{e9}"), json!(-1)] {
        let call = json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": "whoami"}});
        let denied = rig.call().post(&call.to_string()).await;
        assert_denied(&denied);
        assert_eq!(denied.json()["id"], id);
    }
    assert_denied(&rig.call().tool("whoami", json!({})).await);
    assert_eq!(rig.call().call("something/new", json!({})).await.json()["error"]["code"], -32099);
    // Nobody waits for an answer to a notification.
    let unheard =
        rig.call().post(r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"whoami"}}"#).await;
    assert_eq!((unheard.status, &unheard.json()["error"]), (403, &json!("access_denied")));
    assert_eq!(rig.upstream.requests.all().len(), before, "nothing of it arrived");

    let line = eventually_some(PATIENCE, || async {
        let of_it = |line: &Value| line["event"] == "policy_decided" && line["request_id"] == id.as_str();
        rig.gateway.output.records().into_iter().find(of_it)
    })
    .await;
    assert_eq!(
        (text(&line["outcome"]), text(&line["by"]), text(&line["item"])),
        ("denied", "default", "echo")
    );
    assert_eq!((text(&line["user"]), text(&line["route"])), ("alice", "demo"));
    assert!(!rig.gateway.output.text().contains("a secret"), "arguments are in no log");
    rig.has_decided("allowed", "rule soft-words").await;
    // The protocol itself goes on.
    assert_eq!(rig.call().call("tools/list", json!({})).await.status, 200);
    assert_eq!(rig.call().call("ping", json!({})).await.status, 200);
}

#[tokio::test]
async fn a_denied_call_may_be_a_403() {
    let rig = Rig::new(json!({"denied_status": 403})).await;
    let denied = rig.echo("x").await;
    assert_eq!((denied.status, &denied.json()["error"]["code"]), (403, &json!(-32099)));
}

#[tokio::test]
async fn global_rules_come_before_those_of_a_route_and_routes_choose_their_default() {
    let global = json!({"call": [{"name": "no-echo", "deny": "mcp.tool == 'echo' && route.name == 'demo'"}]});
    let rig = Rig::with(Gateway::builder().with("policy", global), json!({"default": "allow"})).await;
    assert_denied(&rig.echo("x").await);
    assert_eq!(rig.call().tool("add", json!({"a": 1, "b": 2})).await.status, 200);
}

#[tokio::test]
async fn tricky_bodies_are_decided_on_what_arrives() {
    let rig = Rig::new(json!({"call": [
        {"name": "short", "allow": "mcp.tool == 'echo' && size(mcp.arguments.message) < 1100000"},
        {"name": "no-secret", "deny": "mcp.tool == 'echo' && mcp.arguments.message.contains('secret')"},
        {"name": "deep", "allow": "mcp.tool == 'deep' && mcp.arguments.a.b.c[0].d == 'x'"},
    ]}))
    .await;
    let mebibyte = echo_of(&"m".repeat(1024 * 1024 - 200));
    let hidden = echo_of(&format!("{}secret", "m".repeat(1024 * 1024 - 200)));
    let escaped = echo_of("x").replace("\"x\"", r#""s\u0065cr\u0065t""#);
    let doubled = echo_of("x").replace("\"x\"}", r#""x","message":"secret"}"#);
    let folded = echo_of("x").replace("\"x\"}", r#""x","Message":"secret"}"#);
    let nested = echo_of("x").replace("\"x\"", &format!("{}{}", "[".repeat(200), "]".repeat(200)));
    let call = |arguments: &str| {
        format!(
            r#"{{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{{"name":"deep","arguments":{arguments}}}}}"#
        )
    };
    let cases = [
        (echo_of("plain"), 200, true),
        (mebibyte, 200, true),
        (hidden, 200, false),
        (escaped, 200, false),
        (doubled, 400, false),
        (folded, 400, false),
        (nested, 400, false),
        (call(r#"{"a":{"b":{"c":[{"d":"\u0078"},2]}},"other":[{"d":1,"d":2}]}"#), 200, true),
        (call(r#"{"a":{"b":{"c":[{"d":"x","D":1}]}}}"#), 400, false),
        (call(r#"{"a":{"b":{"c":[]}}}"#), 200, false),
        (call(r#"{"a":{"b":{"c":[{"d":"x"}]}},"a":{}}"#), 400, false),
    ];
    for (body, status, arrives) in &cases {
        let sizes = if body.len() < 2000 { vec![1, 7, body.len()] } else { vec![4096, body.len()] };
        for size in sizes {
            rig.upstream.requests.clear();
            let shown: String = body.chars().rev().take(60).collect::<String>().chars().rev().collect();
            let (got, said) = rig.in_pieces(body.as_bytes(), size).await;
            assert_eq!(got, *status, "{shown} in pieces of {size}: {said}");
            assert_eq!(said["error"]["code"] == -32099, *status == 200 && !arrives, "{shown}: {said}");
            let arrived = rig.upstream.requests.all();
            let whole: Vec<_> = arrived.iter().filter(|request| !request.body.is_empty()).collect();
            match arrives {
                true => assert!(matches!(whole.as_slice(), [one] if one.body == body.as_bytes()), "{shown}"),
                false => assert!(whole.is_empty(), "{shown} in pieces of {size}"),
            }
        }
        if body.len() < 60_000 {
            rig.upstream.requests.clear();
            let answer = rig.call().post(body).await;
            assert_eq!(answer.status, *status, "{}", answer.body);
            assert_eq!(
                rig.upstream.requests.all().len(),
                usize::from(*arrives),
                "read ahead, nothing goes upstream"
            );
        }
    }
}

#[tokio::test]
async fn a_body_that_is_too_long_for_a_rule_is_refused() {
    let policy = json!({"default": "allow", "call": [{"name": "r", "deny": "mcp.arguments.message == 'x'"}]});
    let rig = Rig::with(Gateway::builder().with("limits", json!({"inspect_body": 70_000})), policy).await;
    let (long, longer) = (echo_of(&"m".repeat(69_000)), echo_of(&"m".repeat(70_000)));
    assert_eq!(rig.in_pieces(long.as_bytes(), 5000).await.0, 200);
    assert_eq!(rig.in_pieces(longer.as_bytes(), 5000).await.0, 413);
    assert_eq!(rig.call().post(&long).await.status, 200);
    rig.upstream.requests.clear();
    assert_eq!(rig.call().post(&longer).await.status, 413);
    assert!(rig.upstream.requests.all().is_empty(), "its length says so beforehand");
}

#[tokio::test]
async fn what_needs_no_message_is_decided_before_anything_goes_upstream() {
    let rig = Rig::new(
        json!({"default": "allow", "call": [{"name": "not-alice", "deny": "caller.subject == 'alice'"}]}),
    )
    .await;
    assert_eq!(rig.call().get().await.status, 403, "the event stream has no message");
    let (status, _) = rig.in_pieces(echo_of(&"m".repeat(100_000)).as_bytes(), 5000).await;
    assert_eq!(status, 403);
    assert!(rig.upstream.requests.all().is_empty());
}

#[tokio::test]
async fn rules_that_could_not_be_decided_are_counted() {
    let rig = Rig::new(json!({"call": [
        {"name": "secret", "deny": "mcp.tool == 'add' && mcp.arguments.secret == 'x'"},
        {"name": "long", "allow": "mcp.arguments.message.size() > 2"},
    ]}))
    .await;
    let series = r#"postern_policy_faults_total{route="demo"}"#;
    let faults = async || {
        let text = rig.gateway.http.get(rig.gateway.admin("/metrics")).send().await.unwrap().text().await;
        let text = text.unwrap();
        text.lines().find_map(|line| line.strip_prefix(series)).map(|count| count.trim().to_owned())
    };
    assert_eq!(rig.echo("heard").await.tool_text(), "heard");
    assert_eq!(rig.echo("x").await.json()["error"]["code"], -32099, "decided, and denied");
    assert_eq!(faults().await, None);
    // The argument that a rule looks at is not there: of a deny, of an allow.
    rig.call().tool("add", json!({"a": 1, "b": 2})).await;
    assert_eq!(faults().await.as_deref(), Some("1"));
    rig.call().tool("whoami", json!({})).await;
    assert_eq!(faults().await.as_deref(), Some("2"));
    let is = |line: &&Value| line["event"] == "policy_decided" && line["fault"].is_string();
    let told = || rig.gateway.output.records().iter().filter(is).count();
    eventually(PATIENCE, async || told() == 2).await;
}

#[tokio::test]
async fn a_dry_run_lets_everything_through_and_says_what_it_would_do() {
    let rig = Rig::new(json!({"dry_run": true, "call": [
        {"name": "no-echo", "deny": "mcp.tool == 'echo'"},
        {"name": "scope", "require_scope": ["demo:add"], "if": "mcp.tool == 'add'"},
        {"name": "all", "allow": "true"},
    ]}))
    .await;
    assert_eq!(rig.echo("x").await.tool_text(), "x");
    assert_eq!(rig.call().tool("add", json!({"a": 1, "b": 2})).await.status, 200);
    rig.has_decided("denied", "rule no-echo").await;
    rig.has_decided("step_up", "rule scope").await;
    let records = rig.gateway.output.records();
    assert!(
        records.iter().filter(|line| line["event"] == "policy_decided").all(|line| line["enforced"] == false)
    );
}

#[tokio::test]
async fn a_rule_asks_for_scopes_and_for_consent_in_its_own_words() {
    let mut rig = Rig::new(json!({"default": "allow", "call": [
        {"name": "writing", "require_scope": ["demo:write"], "if": "mcp.tool == 'echo'"},
        {"name": "adding", "require_consent": "Add up your numbers", "if": "mcp.tool == 'add'"},
    ]}))
    .await;
    let lacks = rig.echo("x").await;
    assert_eq!((lacks.status, lacks.challenge("error").as_deref()), (403, Some("insufficient_scope")));
    assert_eq!(lacks.challenge("scope").as_deref(), Some("mcp:access demo:write"));
    let add = json!({"a": 1, "b": 2});
    let lacks = rig.call().tool("add", add.clone()).await;
    assert_eq!(lacks.status, 403);
    let scope = lacks.challenge("scope").unwrap();
    assert_eq!(scope, "mcp:access consent:adding");
    // What one allows to an address that nobody else can have is remembered, but not this.
    let redirect = "https://client.example/cb";
    let document =
        json!({"client_name": "Adder", "redirect_uris": [redirect], "token_endpoint_auth_method": "none"});
    let id = Client::register_with(&rig.gateway, &document).await.json();
    rig.client = Client::known_as(&rig.gateway, text(&id["client_id"]), redirect);
    for _ in 0..2 {
        let request = rig.client.authorization("demo").with("scope", &scope);
        let page = rig.browser.go_to_consent(redirect, &request.url()).await;
        assert!(page.text().contains("Add up your numbers"), "asked each time: {}", page.text());
        let code = Callback::of(&rig.browser.consent_allow(&page).await.client()).code();
        rig.tokens = rig.client.redeem(&code, &request).await.tokens();
        assert_eq!(rig.call().tool("add", add.clone()).await.status, 200);
    }
    assert_eq!(rig.echo("x").await.status, 403, "the other scope is another matter");
}

#[tokio::test]
async fn rules_know_what_the_identity_provider_says_of_people() {
    let provider = IdentityProvider::start().await;
    let claims = |groups: Value, department: &str| json!({"sub": "4711", "email": "ada@example.com", "email_verified": true, "groups": groups, "department": department});
    provider.set(|script| script.claims = claims(json!(["dev"]), "blue"));
    let mut entry = provider.entry();
    entry["policy_claims"] = json!(["department"]);
    let upstream = Upstream::open().await;
    let policy = json!({"call": [
        {"name": "devs", "allow": "mcp.tool == 'echo' && 'dev' in caller.groups && caller.email.endsWith('@example.com')"},
        {"name": "blue", "allow": "mcp.tool == 'add' && caller.claims.department == 'blue'"},
        {"name": "issuer", "allow": format!("mcp.tool == 'whoami' && caller.issuer == '{}'", provider.issuer)},
    ]});
    let gateway = Gateway::builder()
        .env("IDP_SECRET", "of Postern at the provider")
        .with("login", json!({"oidc": [entry]}))
        .route(Route::open("demo", &upstream).with("policy", policy))
        .start()
        .await;
    let client = Client::register(&gateway).await;
    let mut browser = Browser::new();
    let old = client.sign_in(&mut browser, "demo").await;
    let call = async |tool: &str| {
        let arguments = if tool == "add" { json!({"a": 1, "b": 2}) } else { json!({"message": "x"}) };
        let answer = gateway.mcp("demo").bearer(&old.access_token).tool(tool, arguments).await;
        assert_eq!(answer.status, 200);
        answer.json()["error"]["code"] != -32099
    };
    assert!(call("echo").await && call("add").await && call("whoami").await);
    // Somebody changes; from their next sign-in on it counts, for what they were given before as well.
    provider.set(|script| script.claims = claims(json!(["ops"]), "red"));
    client.sign_in(&mut Browser::new(), "demo").await;
    eventually(PATIENCE, || async { !call("echo").await }).await;
    assert!(!call("add").await && call("whoami").await);
    let unverified = json!({"sub": "4711", "email": "ada@example.com", "groups": ["dev"]});
    provider.set(|script| script.claims = unverified);
    client.sign_in(&mut Browser::new(), "demo").await;
    assert!(!call("echo").await, "an address that nobody has verified is none");
}

#[tokio::test]
async fn rules_know_local_users_by_the_file_and_others_by_their_tokens() {
    let provider = IdentityProvider::start().await;
    let (upstream, other) = (Upstream::open().await, Upstream::open().await);
    let policy = json!({"call": [{"name": "devs", "allow": "'dev' in caller.groups && caller.email == 'a@example.com'"}]});
    let trusted =
        json!({"name": "corp", "issuer": provider.issuer, "allow_private": true, "groups_claim": "roles"});
    let mut gateway = Gateway::builder()
        .route(Route::open("demo", &upstream))
        .route(Route::open("corp", &other).with("trusted_issuers", json!(["corp"])))
        .with("trusted_issuers", json!([trusted]))
        .with("policy", policy)
        .start()
        .await;
    let client = Client::register(&gateway).await;
    let own = client.sign_in(&mut Browser::new(), "demo").await.access_token;
    let denied = async |gateway: &Gateway, route: &str, token: &str| {
        let answer = gateway.mcp(route).bearer(token).tool("echo", json!({"message": "x"})).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()["error"]["code"] == -32099
    };
    assert!(denied(&gateway, "demo", &own).await);
    let more = json!({"sub": "4711", "client_id": "c", "email": "a@example.com", "email_verified": true});
    let mut able = more.clone();
    able["roles"] = json!(["dev"]);
    let audience = gateway.url("/corp");
    assert!(denied(&gateway, "corp", &provider.access_token(&audience, &more)).await);
    assert!(!denied(&gateway, "corp", &provider.access_token(&audience, &able)).await);

    let hash = support::gateway::PASSWORD_HASH;
    let alice =
        json!({"username": "alice", "password_hash": hash, "email": "a@example.com", "groups": ["dev"]});
    gateway.reconfigure("login.local.users", json!([alice]));
    gateway.restart().await;
    assert!(!denied(&gateway, "demo", &own).await);
}

#[tokio::test]
async fn rules_can_be_tried_without_a_gateway() {
    let (upstream, provider) = (Upstream::open().await, IdentityProvider::start().await);
    let rules = json!({"call": [
        {"name": "devs", "allow": "'dev' in caller.groups && mcp.tool.startsWith('read_')"},
        {"name": "inside", "allow": "mcp.resource == 'docs:a' && cidr('10.0.0.0/8').containsIP(request.source)"},
        {"name": "team", "allow": "caller.claims.team == 'blue' && request.headers['x-tenant'] == 'b'"},
        {"name": "programs", "allow": "caller.machine && mcp.prompt == 'p'"},
        {"name": "etc", "deny": "has(mcp.arguments.path) && mcp.arguments.path.startsWith('/etc/')"},
        {"name": "more", "require_scope": ["demo:more"], "if": "mcp.tool == 'read_more'"},
    ]});
    let alice =
        json!({"username": "alice", "password_hash": support::gateway::PASSWORD_HASH, "groups": ["dev"]});
    let trusted =
        json!({"name": "corp", "issuer": provider.issuer, "allow_private": true, "policy_claims": ["team"]});
    let gateway = Gateway::builder()
        .route(Route::open("demo", &upstream))
        .route(Route::open("corp", &upstream).with("trusted_issuers", json!(["corp"])))
        .with("trusted_issuers", json!([trusted]))
        .with("login.local.users", json!([alice]))
        .with("policy", rules)
        .prepare();
    let case = |name: &str, route: &str, caller: Value, more: Value, decision: &str, by: &str| {
        let mut case = json!({"name": name, "route": route, "caller": caller, "expect": {"decision": decision, "by": by}});
        case.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        case
    };
    let alice = || json!({"user": "alice"});
    let right = [
        case("reads", "demo", alice(), json!({"call": {"tool": "read_x"}}), "allowed", "rule devs"),
        case(
            "other groups",
            "demo",
            json!({"user": "alice", "groups": []}),
            json!({"call": {"tool": "read_x"}}),
            "denied",
            "default",
        ),
        case(
            "etc",
            "demo",
            alice(),
            json!({"call": {"tool": "read_x", "arguments": {"path": "/etc/a"}}}),
            "denied",
            "rule etc",
        ),
        case("more", "demo", alice(), json!({"call": {"tool": "read_more"}}), "step_up", "rule more"),
        case(
            "more, with it",
            "demo",
            json!({"user": "alice", "scopes": ["mcp:access", "demo:more"]}),
            json!({"call": {"tool": "read_more"}}),
            "allowed",
            "rule devs",
        ),
        case(
            "inside",
            "demo",
            alice(),
            json!({"call": {"resource": "docs:a"}, "request": {"source": "10.1.1.1"}}),
            "allowed",
            "rule inside",
        ),
        case(
            "outside",
            "demo",
            alice(),
            json!({"call": {"resource": "docs:a"}, "request": {"source": "11.1.1.1"}}),
            "denied",
            "default",
        ),
        case("lists", "demo", alice(), json!({"call": {"method": "tools/list"}}), "allowed", "protocol"),
        case("the stream", "demo", alice(), json!({}), "allowed", "protocol"),
        case(
            "their token",
            "corp",
            json!({"user": "4711", "claims": {"team": "blue", "other": 1}}),
            json!({"call": {"tool": "x"}, "request": {"headers": {"x-tenant": "b"}}}),
            "allowed",
            "rule team",
        ),
        case(
            "their program",
            "corp",
            json!({"client": "robot"}),
            json!({"call": {"prompt": "p"}}),
            "allowed",
            "rule programs",
        ),
    ];
    let file = gateway.data_dir().parent().unwrap().join("cases.yaml");
    let config = gateway.config_file();
    let test = async |cases: &Value| {
        std::fs::write(&file, json!({"cases": cases}).to_string()).unwrap();
        support::process::run(
            &["policy", "test", "--config", config.to_str().unwrap(), file.to_str().unwrap()],
            &[],
        )
        .await
    };
    let fine = test(&json!(right)).await;
    assert_eq!(fine.code, Some(0), "{} {}", fine.stdout, fine.stderr);
    let wrong = [
        case("wrong rule", "demo", alice(), json!({"call": {"tool": "read_x"}}), "allowed", "rule inside"),
        case(
            "nobody",
            "demo",
            json!({"user": "mallory"}),
            json!({"call": {"tool": "read_x"}}),
            "denied",
            "default",
        ),
        case("no route", "none", alice(), json!({"call": {"tool": "read_x"}}), "denied", "default"),
    ];
    let failed = test(&json!(wrong)).await;
    assert_eq!(failed.code, Some(1));
    let said = failed.stdout;
    assert!(
        said.contains("wrong rule: expected allowed by rule inside, and it is allowed by rule devs"),
        "{said}"
    );
    assert!(
        said.contains("nobody: ") && said.contains("no route: ") && said.contains("3 case(s), 3 otherwise"),
        "{said}"
    );
}
