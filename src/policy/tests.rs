#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use std::time::{Duration, UNIX_EPOCH};

use http::{HeaderValue, header};
use serde_json::{Value, json};

use super::*;
use crate::authn::authenticate;
use crate::config::{self, Config};
use crate::mcp::ItemKind;
use crate::oauth::server::access_token::{Claims, Keys};
use crate::oauth::server::revoked::Revoked;
use crate::oauth::server::service::Services;
use crate::oauth::server::standing::Standing;
use crate::route::Table;

/// A caller at a route with rules.
struct World {
    route: Arc<Route>,
    caller: Caller,
    attributes: Attributes,
    headers: HeaderMap,
}

impl World {
    fn new(policy: &Value) -> Self {
        Self::with(policy, "mcp:access")
    }

    /// `scope`: of the caller's token.
    fn with(policy: &Value, scope: &str) -> Self {
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let config = configured(policy);
        let routes = Table::new(&config.server.public_url, &config.routes);
        let route = Arc::clone(routes.by_name("files").unwrap());
        let keys = Keys::new(&[[3; 32]]).unwrap();
        let claims = Claims {
            audience: &route.resource,
            grant: "g",
            subject: "alice",
            client: "c",
            scope,
            expires_at: now + Duration::from_secs(5),
        };
        let token = format!("Bearer {}", keys.seal(&claims, now).unwrap());
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_str(&token).unwrap())]);
        let (revoked, services) = (Revoked::default(), Services::default());
        let standing = Standing {
            keys: &keys,
            revoked: &revoked,
            services: &services,
            config: &config,
            routes: &routes,
        };
        let caller = authenticate(&headers, &standing, now).ok().unwrap();
        let groups = vec!["dev".to_owned()];
        let attributes =
            Attributes { email: "alice@example.com".to_owned(), groups, ..Attributes::default() };
        Self { route, caller, attributes, headers }
    }

    fn question(&self) -> Question<'_> {
        let request = Request {
            method: &Method::POST,
            path: "/files",
            headers: &self.headers,
            source: Some([10, 0, 0, 1].into()),
            time: UNIX_EPOCH,
        };
        let Self { caller, attributes, route, .. } = self;
        Question { caller, attributes, route, request, hook: None }
    }

    /// What comes of a message, and by what: `allowed by rule a`.
    fn asks(&self, message: &Value) -> String {
        let message = Message::read(message.to_string().as_bytes(), self.route.rules.arguments()).unwrap();
        let (outcome, decision) = permit(&self.question(), Asked::Message(&message));
        assert_eq!(
            outcome.is_ok(),
            decision.outcome == Outcome::Allowed || !decision.enforced,
            "{decision:?}"
        );
        format!("{} by {}", decision.outcome, decision.by)
    }

    fn calls(&self, tool: &str, arguments: &Value) -> String {
        let params = json!({"name": tool, "arguments": arguments});
        self.asks(&json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}))
    }

    fn sees(&self, kind: ItemKind, name: &str) -> bool {
        visible(&self.question(), kind, name)
    }
}

fn configured(policy: &Value) -> Config {
    let text = json!({"server": {"public_url": "http://127.0.0.1:8080", "listen": ["127.0.0.1:8080"]},
        "login": {"local": {"users": [{"username": "alice", "password_hash":
            "$argon2id$v=19$m=19456,t=2,p=1$8ZCVR4QDG/0C4YXMmXc5eg$m/LlQtKDdhxEFEjjkAiV8iTCvwp/xu4N6O8sWaElWH8"}]}},
        "routes": [{"name": "files", "path": "/files", "upstream": {"url": "https://files.example.com/mcp"}, "policy": policy,
            "tool_scopes": {"scoped": ["files:scoped"]}}]});
    config::parse(&text.to_string(), "test", &config::Process).unwrap_or_else(|report| panic!("{report}"))
}

#[test]
fn a_deny_wins_and_nothing_is_allowed_by_itself() {
    let world = World::new(&json!({"call": [
        {"name": "devs-read", "allow": "'dev' in caller.groups && mcp.tool.startsWith('read_')"},
        {"name": "not-secret", "deny": "mcp.tool == 'read_secret'"},
        {"name": "home", "allow": "mcp.tool == 'write' && mcp.arguments.path.startsWith('/home/')"},
        {"name": "unreachable", "allow": "mcp.tool == 'read_file'"},
    ]}));
    for (tool, arguments, expected) in [
        ("read_file", json!({}), "allowed by rule devs-read"),
        ("read_secret", json!({}), "denied by rule not-secret"),
        ("write", json!({"path": "/home/a"}), "allowed by rule home"),
        ("write", json!({"path": "/etc/a"}), "denied by default"),
        ("write", json!({"path": ["/home/a"]}), "denied by default"),
        ("write", json!({}), "denied by default"),
        ("other", json!({}), "denied by default"),
    ] {
        assert_eq!(world.calls(tool, &arguments), expected, "{tool} {arguments}");
    }
}

#[test]
fn pom_15_tools_are_compared_in_every_way_and_only_where_they_are_called() {
    for (condition, tools, others) in [
        ("mcp.tool == 'read_file'", &["read_file"][..], &["read_files", "Read_file", "read_file "][..]),
        ("mcp.tool in ['read_file', 'list']", &["read_file", "list"], &["read", "lists"]),
        ("mcp.tool != '' && !(mcp.tool in ['delete', 'drop'])", &["read", "dropped"], &["delete", "drop"]),
        ("mcp.tool.startsWith('read_')", &["read_", "read_file"], &["read", "xread_", "READ_file"]),
        ("mcp.tool.endsWith('_file')", &["read_file", "_file"], &["read_files", "file"]),
        ("mcp.tool.contains('ad_f')", &["read_file", "ad_f"], &["read_File", "adf"]),
    ] {
        let allowed = World::new(&json!({"call": [{"name": "r", "allow": condition}]}));
        let denied = World::new(&json!({"default": "allow", "call": [{"name": "r", "deny": condition}]}));
        for tool in tools {
            assert_eq!(allowed.calls(tool, &json!({})), "allowed by rule r", "{condition}: {tool}");
            assert_eq!(denied.calls(tool, &json!({})), "denied by rule r", "{condition}: {tool}");
        }
        for tool in others {
            assert_eq!(allowed.calls(tool, &json!({})), "denied by default", "{condition}: {tool}");
            assert_eq!(denied.calls(tool, &json!({})), "allowed by default", "{condition}: {tool}");
        }
        // The same name elsewhere is no tool.
        for (method, member) in
            [("prompts/get", "name"), ("resources/read", "uri"), ("something/new", "name")]
        {
            let message = json!({"id": 1, "method": method, "params": {member: tools[0]}});
            assert_eq!(allowed.asks(&message), "denied by default", "{condition}: {message}");
            assert_eq!(denied.asks(&message), "allowed by default", "{condition}: {message}");
        }
        let list = json!({"id": 1, "method": "tools/list", "params": {"name": tools[0]}});
        assert_eq!(denied.asks(&list), "allowed by protocol", "{condition}");
    }
}

#[test]
fn what_keeps_the_protocol_going_needs_no_rule_but_hears_a_deny() {
    let world = World::new(&json!({"call": [
        {"name": "no-etc", "deny": "mcp.arguments.path.startsWith('/etc/')"},
        {"name": "no-prompts", "deny": "mcp.method == 'prompts/list'"},
    ]}));
    for (message, expected) in [
        (json!({"id": 1, "method": "initialize", "params": {}}), "allowed by protocol"),
        (json!({"method": "notifications/initialized"}), "allowed by protocol"),
        (json!({"id": 1, "method": "tools/list"}), "allowed by protocol"),
        (json!({"id": 1, "method": "subscriptions/listen"}), "allowed by protocol"),
        (json!({"id": 1, "result": {}}), "allowed by protocol"),
        (json!({"id": 1, "method": "prompts/list"}), "denied by rule no-prompts"),
        (json!({"id": 1, "method": "resources/read", "params": {"uri": "x:y"}}), "denied by rule no-etc"),
        (json!({"id": 1, "method": "something/new"}), "denied by rule no-etc"),
        // What a `deny` cannot be decided on is denied.
        (json!({"id": 1, "method": "tools/call", "params": {"name": "x"}}), "denied by rule no-etc"),
    ] {
        assert_eq!(world.asks(&message), expected, "{message}");
    }
    let (outcome, decision) = permit(&world.question(), Asked::Bodiless);
    assert!(outcome.is_ok() && decision.by == By::Protocol);
}

#[test]
fn scopes_are_asked_for_where_they_would_help() {
    let policy = json!({"default": "allow", "call": [
        {"name": "no", "deny": "mcp.tool == 'no'"},
        {"name": "writes", "require_scope": ["files:write"], "if": "mcp.tool.startsWith('write')"},
        {"name": "pay", "require_consent": "Pay in your name", "if": "mcp.arguments.amount > 100"},
        {"name": "many", "require_scope": ["files:many"], "if": "mcp.tool == 'write_many'"},
    ]});
    let world = World::new(&policy);
    assert_eq!(world.calls("read", &json!({"amount": 1})), "allowed by default");
    assert_eq!(world.calls("no", &json!({"amount": 1})), "denied by rule no");
    assert_eq!(world.calls("write", &json!({"amount": 1})), "step_up by rule writes");
    assert_eq!(world.calls("read", &json!({"amount": 101})), "step_up by rule pay");
    assert_eq!(world.calls("scoped", &json!({"amount": 1})), "step_up by token");
    assert_eq!(world.calls("read", &json!({})), "denied by rule pay", "it cannot be decided");
    let params = json!({"name": "write_many", "arguments": {"amount": 500}});
    let all = json!({"id": 1, "method": "tools/call", "params": params}).to_string();
    let all = Message::read(all.as_bytes(), world.route.rules.arguments()).unwrap();
    let (outcome, _) = permit(&world.question(), Asked::Message(&all));
    let needed = ["mcp:access", "files:write", "consent:pay", "files:many"].map(str::to_owned).to_vec();
    assert_eq!(outcome.err(), Some(Denied::Scope { needed }), "all of them at once");

    let able = World::with(&policy, "mcp:access files:write consent:pay");
    assert_eq!(able.calls("write", &json!({"amount": 500})), "allowed by default");
    assert_eq!(able.calls("write_many", &json!({"amount": 500})), "step_up by rule many");
}

#[test]
fn a_dry_run_says_what_it_would_do() {
    let world = World::new(&json!({"dry_run": true, "call": [
        {"name": "writes", "require_scope": ["files:write"], "if": "mcp.tool == 'write'"},
        {"name": "reads", "allow": "mcp.tool in ['read', 'write', 'scoped']"},
    ]}));
    assert_eq!(world.calls("delete", &json!({})), "denied by default");
    assert_eq!(world.calls("write", &json!({})), "step_up by rule writes");
    assert_eq!(
        world.route.rules.scopes().collect::<Vec<_>>(),
        ["files:scoped"],
        "what is not enforced is not offered"
    );
    assert_eq!(world.calls("scoped", &json!({})), "step_up by token", "scopes of tools are no matter of it");
    assert!(world.sees(ItemKind::Tool, "delete"));
}

#[test]
fn before_the_message_only_what_is_certain_is_decided() {
    let ahead = |rule: &str| {
        let world = World::new(&json!({"call": [{"name": "r", "deny": rule}]}));
        let (outcome, decision) = permit(&world.question(), Asked::ToCome);
        assert_eq!(outcome.is_ok(), decision.outcome == Outcome::Allowed);
        format!("{} by {}", decision.outcome, decision.by)
    };
    assert_eq!(ahead("'dev' in caller.groups"), "denied by rule r");
    assert_eq!(ahead("'dev' in caller.groups || mcp.tool == 'x'"), "denied by rule r");
    assert_eq!(ahead("'ops' in caller.groups && mcp.tool == 'x'"), "allowed by to come");
    assert_eq!(ahead("mcp.tool == 'x'"), "allowed by to come");
    assert_eq!(ahead("mcp.arguments.a == 1"), "allowed by to come");
    assert_eq!(ahead("caller.claims.absent == 1"), "denied by rule r");
}

#[test]
fn every_fact_is_the_requests() {
    let mut world = World::new(&json!({"call": []}));
    world.headers.append("x-tenant", HeaderValue::from_static("a"));
    world.headers.append("x-tenant", HeaderValue::from_static("b"));
    world.headers.insert("mcp-protocol-version", HeaderValue::from_static("2025-11-25"));
    world.attributes.claims.insert("team".to_owned(), json!("blue"));
    let message =
        json!({"id": 1, "method": "tools/call", "params": {"name": "t", "arguments": {"n": 1}}}).to_string();
    let wanted = crate::expression::compile("mcp.arguments.size() == 1").ok().unwrap();
    let message = Message::read(message.as_bytes(), wanted.arguments()).unwrap();
    let question = world.question();
    let facts = Known::new(&question, Subject::Message(&message));
    for text in [
        "caller.subject == 'alice' && caller.issuer == '' && caller.client == 'c' && !caller.machine",
        "caller.email == 'alice@example.com' && caller.groups == ['dev'] && caller.claims.team == 'blue'",
        "request.method == 'POST' && request.path == '/files' && request.source == '10.0.0.1'",
        "request.time == timestamp('1970-01-01T00:00:00Z')",
        "request.headers['x-tenant'] == 'a, b' && !('x-other' in request.headers)",
        "!('authorization' in request.headers)",
        "mcp.revision == '2025-11-25' && mcp.method == 'tools/call' && mcp.tool == 't' && mcp.prompt == '' && mcp.resource == ''",
        "mcp.arguments.n == 1",
        "route.name == 'files' && route.scopes == ['mcp:access']",
    ] {
        assert_eq!(crate::expression::compile(text).ok().unwrap().holds(&facts), Ok(true), "{text}");
    }
}

#[test]
fn lists_show_what_could_be_called() {
    let world = World::new(&json!({"call": [
        {"name": "reads", "allow": "mcp.tool.startsWith('read_') || mcp.resource.startsWith('docs:')"},
        {"name": "home", "allow": "mcp.tool == 'write' && mcp.arguments.path.startsWith('/home/')"},
        {"name": "no-etc", "deny": "has(mcp.arguments.path) && mcp.arguments.path.startsWith('/etc/')"},
        {"name": "no-secret", "deny": "mcp.tool == 'read_secret'"},
        {"name": "ask", "require_scope": ["files:write"], "if": "mcp.tool == 'write'"},
        {"name": "others", "allow": "caller.subject == 'bob'"},
    ]}));
    for (kind, name, expected) in [
        (ItemKind::Tool, "read_file", true),
        (ItemKind::Tool, "read_secret", false),
        (ItemKind::Tool, "write", true),
        (ItemKind::Tool, "delete", false),
        (ItemKind::Resource, "docs:a", true),
        (ItemKind::Resource, "read_file", false),
        (ItemKind::Prompt, "read_file", false),
    ] {
        assert_eq!(world.sees(kind, name), expected, "{kind:?} {name}");
    }
}

#[test]
fn lists_may_have_rules_of_their_own() {
    let world = World::new(&json!({
        "call": [{"name": "all", "allow": "true"}],
        "list": [{"name": "few", "allow": "mcp.tool in ['a', 'b'] && mcp.method == 'tools/list'"}, {"name": "not-b", "deny": "mcp.tool == 'b'"}],
    }));
    let seen = ["a", "b", "c"].map(|name| world.sees(ItemKind::Tool, name));
    assert_eq!(seen, [true, false, false]);
    assert_eq!(world.calls("c", &json!({})), "allowed by rule all");
}

#[test]
fn a_hook_takes_away_and_never_gives() {
    struct Says(Ruling);
    impl Hook for Says {
        fn decide(&self, _: &Question<'_>, _: Option<&Message>) -> Ruling {
            self.0.clone()
        }
    }
    let world = World::new(&json!({"call": [{"name": "r", "allow": "mcp.tool == 'a'"}]}));
    let ask = |says: Ruling, tool: &str| {
        let hook = Says(says);
        let text = json!({"id": 1, "method": "tools/call", "params": {"name": tool}}).to_string();
        let message = Message::read(text.as_bytes(), world.route.rules.arguments()).unwrap();
        let question = Question { hook: Some(&hook), ..world.question() };
        let (outcome, decision) = permit(&question, Asked::Message(&message));
        assert_eq!(outcome.is_ok(), decision.outcome == Outcome::Allowed);
        format!("{} by {}", decision.outcome, decision.by)
    };
    assert_eq!(ask(Ruling::Pass, "a"), "allowed by rule r");
    assert_eq!(ask(Ruling::Deny, "a"), "denied by hook");
    assert_eq!(ask(Ruling::Require(vec!["x:y".to_owned()]), "a"), "step_up by hook");
    assert_eq!(ask(Ruling::Pass, "b"), "denied by default");
}
