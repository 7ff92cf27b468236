#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use std::borrow::Cow;
use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proptest::prelude::*;
use serde_json::{Map as JsonMap, Value as Json, json};

use super::*;

/// Facts written out, as the file with the corpus has them.
struct Given {
    facts: Json,
    groups: Vec<String>,
    headers: Headers,
    unknown: Vec<Name>,
}

struct Headers(JsonMap<String, Json>);

impl Table for Headers {
    fn text(&self, name: &str) -> Option<Cow<'_, str>> {
        self.0.get(name).and_then(Json::as_str).map(Cow::Borrowed)
    }
}

/// Monday, 5 January 2026, 09:30.
fn noon() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_767_605_400)
}

fn given(arguments: Json) -> Given {
    let facts = json!({
        "caller": {"subject": "alice", "issuer": "https://idp.example", "email": "Alice@Example.com", "groups": ["dev", "ops"],
            "claims": {"team": "blue", "level": 3, "none": null, "roles": ["a", "b"]}, "client": "c1", "machine": false},
        "request": {"method": "POST", "path": "/github", "headers": {"x-tenant": "blue", "user-agent": "sdk/1"}, "source": "10.1.2.3"},
        "mcp": {"revision": "2025-11-25", "method": "tools/call", "tool": "read_file", "prompt": "", "resource": "", "arguments": arguments},
        "route": {"name": "github", "scopes": []},
    });
    let groups = vec!["dev".to_owned(), "ops".to_owned()];
    let headers = Headers(facts["request"]["headers"].as_object().unwrap().clone());
    Given { facts, groups, headers, unknown: Vec::new() }
}

impl Facts for Given {
    fn fact(&self, name: Name) -> Option<Value<'_>> {
        if self.unknown.contains(&name) {
            return None;
        }
        let (root, field) = name.text().split_once('.').unwrap();
        Some(match name {
            Name::RequestTime => Value::Time(noon()),
            Name::RequestHeaders => Value::Map(Map::Table(&self.headers)),
            Name::CallerGroups => Value::List(List::Texts(&self.groups)),
            _ => Value::json(&self.facts[root][field]),
        })
    }
}

fn run(text: &str, facts: &Given) -> Result<bool, Fault> {
    compile(text).unwrap_or_else(|mistakes| panic!("{text}: {mistakes:?}")).holds(facts)
}

/// The same facts for the interpreter of the `cel` crate.
fn theirs(json: &Json) -> cel::Value {
    match json {
        Json::Null => cel::Value::Null,
        Json::Bool(value) => cel::Value::Bool(*value),
        Json::Number(number) => match number.as_i64() {
            Some(whole) => cel::Value::Int(whole),
            None => cel::Value::Float(number.as_f64().unwrap()),
        },
        Json::String(text) => cel::Value::String(std::sync::Arc::new(text.clone())),
        Json::Array(items) => cel::Value::List(items.iter().map(theirs).collect::<Vec<_>>().into()),
        Json::Object(members) => {
            let members: HashMap<String, cel::Value> =
                members.iter().map(|(name, value)| (name.clone(), theirs(value))).collect();
            cel::Value::Map(members.into())
        }
    }
}

/// `None`: it has no result.
fn run_theirs(text: &str, facts: &Given) -> Option<bool> {
    let mut context = cel::Context::default();
    for (root, fields) in facts.facts.as_object().unwrap() {
        context.add_variable_from_value(root.clone(), theirs(fields));
    }
    match cel::Program::compile(text).unwrap().execute(&context) {
        Ok(cel::Value::Bool(value)) => Some(value),
        _ => None,
    }
}

fn corpus() -> Json {
    serde_json::from_str(include_str!("../../tests/data/expressions.json")).unwrap()
}

#[test]
fn the_corpus_has_the_results_it_should_and_those_of_cel() {
    let corpus = corpus();
    let facts = given(corpus["arguments"].clone());
    let mut wrong = Vec::new();
    for case in corpus["results"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let expected = match &case["result"] {
            Json::Bool(value) => Ok(*value),
            other => Err(other.as_str().unwrap().to_owned()),
        };
        let found = match compile(text) {
            Ok(program) => program.holds(&facts).map_err(|fault| format!("{fault:?}").to_lowercase()),
            Err(mistakes) => Err(format!("{mistakes:?}")),
        };
        if found != expected {
            wrong.push(format!("{text}: {found:?} instead of {expected:?}"));
        }
        // What is no part of CEL's core, or has a feature of the crate's that is not built in.
        if case["ours_alone"] != json!(true) && run_theirs(text, &facts) != expected.clone().ok() {
            wrong.push(format!("{text}: cel says {:?}", run_theirs(text, &facts)));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn mistakes_are_found_where_they_are() {
    let mut wrong = Vec::new();
    for case in corpus()["mistakes"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let said = match compile(text) {
            Ok(_) => "nothing".to_owned(),
            Err(mistakes) => {
                let lines = mistakes
                    .iter()
                    .map(|Mistake { line, column, what, write }| format!("{line}:{column}: {what}; {write}"));
                lines.collect::<Vec<_>>().join("\n")
            }
        };
        if !said.starts_with(case["says"].as_str().unwrap()) {
            wrong.push(format!("{text}\n    says {said}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn all_mistakes_are_said() {
    let mistakes = compile("caller.nam == 'x' && route.nam == 1").err().unwrap();
    assert_eq!(mistakes.len(), 2, "{mistakes:?}");
}

#[test]
fn what_is_used_is_known() {
    let program = compile(
        "caller.email == '' || has(mcp.arguments.a.b) || mcp.arguments['a'].c == 1 || mcp.arguments.list[0].x == 1",
    )
    .ok()
    .unwrap();
    assert_eq!(program.uses(), Names::of(&[Name::CallerEmail, Name::McpArguments]));
    let mut wanted = Wanted::default();
    for path in [&["a", "b"][..], &["a", "c"], &["list"]] {
        wanted.add(path);
    }
    assert_eq!(*program.arguments(), wanted);
    let all = compile("mcp.arguments.exists(name, name == 'x')").ok().unwrap();
    assert_eq!(*all.arguments(), Wanted::All);
    wanted.merge(all.arguments());
    assert_eq!(wanted, Wanted::All);
}

#[test]
fn what_is_not_known_yet_decides_nothing() {
    let facts = Given { unknown: vec![Name::McpArguments], ..given(json!({})) };
    for (text, expected) in [
        ("mcp.arguments.a == 1", Err(Fault::Unknown)),
        ("!(mcp.arguments.a == 1)", Err(Fault::Unknown)),
        ("mcp.arguments.a == 1 && mcp.tool == 'other'", Ok(false)),
        ("mcp.tool == 'read_file' || mcp.arguments.a == 1", Ok(true)),
        ("mcp.tool == 'read_file' && mcp.arguments.a == 1", Err(Fault::Unknown)),
        ("caller.claims.absent == 1 || mcp.arguments.a == 1", Err(Fault::Unknown)),
        ("mcp.arguments.a == 1 || caller.claims.absent == 1", Err(Fault::Unknown)),
        ("['a'].exists(x, mcp.arguments.a == x)", Err(Fault::Unknown)),
        ("mcp.arguments.a == 1 ? true : true", Err(Fault::Unknown)),
    ] {
        assert_eq!(run(text, &facts), expected, "{text}");
    }
}

#[test]
fn a_run_has_an_end() {
    let items: Vec<u32> = (0..1000).collect();
    let facts = given(json!({"items": items, "text": "x".repeat(1 << 20)}));
    for text in [
        "mcp.arguments.items.all(a, mcp.arguments.items.all(b, mcp.arguments.items.all(c, a + b + c >= 0)))",
        "mcp.arguments.items.all(a, !mcp.arguments.text.contains('y'))",
        "mcp.arguments.items.all(a, !mcp.arguments.text.matches('(x+x+)+y'))",
        "mcp.arguments.items.map(a, mcp.arguments.text + mcp.arguments.text).size() == 1000",
        "mcp.arguments.items.all(a, mcp.arguments.items == mcp.arguments.items)",
        "mcp.arguments.items.all(a, mcp.arguments.text != mcp.arguments.text + 'x')",
    ] {
        assert_eq!(run(text, &facts), Err(Fault::Costly), "{text}");
    }
    assert_eq!(
        run("!mcp.arguments.text.matches('y$') && mcp.arguments.items.all(a, a < 1000)", &facts),
        Ok(true)
    );
}

#[test]
fn long_and_deep_expressions_are_refused_and_break_nothing() {
    let chain = format!("{}1 == 1", "1+".repeat(2000));
    let nested = format!("{}true{}", "(".repeat(2000), ")".repeat(2000));
    let members = format!("mcp.arguments{} == 1", ".a".repeat(1900));
    let nots = format!("{}true", "!".repeat(3000));
    for text in [&chain, &nested] {
        assert!(compile(text).is_err(), "{}", &text[..20]);
    }
    // Two negations are none, whoever writes them.
    assert!(compile(&nots).is_ok());
    // A path is gone through step by step, not from within itself; only running it would be deep.
    assert!(compile(&members).is_err());
    assert!(compile(&"x".repeat(5000)).err().unwrap()[0].what.contains("too long"));
    let many = vec!["caller.machine"; 200].join(" || ");
    assert!(compile(&many).is_ok());
}

#[test]
fn days_are_counted_by_the_calendar() {
    for (at, [year, month, date, weekday, hours, minutes]) in [
        (0, [1970, 0, 1, 4, 0, 0]),
        (951_782_399, [2000, 1, 28, 1, 23, 59]),
        (951_782_400, [2000, 1, 29, 2, 0, 0]),
        (1_767_605_400, [2026, 0, 5, 1, 9, 30]),
        (4_107_542_400, [2100, 2, 1, 1, 0, 0]),
    ] {
        struct At(SystemTime);
        impl Facts for At {
            fn fact(&self, _: Name) -> Option<Value<'_>> {
                Some(Value::Time(self.0))
            }
        }
        let text = format!(
            "request.time.getFullYear() == {year} && request.time.getMonth() == {month} && request.time.getDate() == {date} \
             && request.time.getDayOfMonth() == {date} - 1 && request.time.getDayOfWeek() == {weekday} \
             && request.time.getHours() == {hours} && request.time.getMinutes() == {minutes}"
        );
        let time = UNIX_EPOCH + Duration::from_secs(at);
        assert_eq!(compile(&text).ok().unwrap().holds(&At(time)), Ok(true), "{at}");
    }
}

#[test]
fn no_fault_names_a_value() {
    for fault in [Fault::Costly, Fault::Kind, Fault::Missing, Fault::Range, Fault::Unknown] {
        assert!(!fault.to_string().contains(['{', '"', '\'']));
    }
}

fn leaf() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "caller.machine",
        "true",
        "false",
        "mcp.arguments.n == 3",
        "mcp.arguments.n > 2.5",
        "mcp.arguments.d <= 2",
        "mcp.arguments.absent == 1",
        "mcp.arguments.n == 'text'",
        "mcp.arguments.n / 0 == 1",
        "mcp.arguments.n",
        "has(mcp.arguments.absent)",
        "has(mcp.arguments.o.a)",
        "has(mcp.arguments.n.a)",
        "mcp.arguments.s.startsWith('ab')",
        "mcp.arguments.n.startsWith('ab')",
        "'dev' in caller.groups",
        "mcp.arguments.n in [1, 2, 3]",
        "mcp.arguments.s in mcp.arguments.o",
        "mcp.arguments.l.exists(x, x > 2)",
        "mcp.arguments.l.all(x, x == 1)",
        "mcp.arguments.l.exists_one(x, x == 1)",
        "mcp.arguments.l.filter(x, x > 1).size() == 2",
        "mcp.arguments.l.map(x, x + 1) == [2, 3, 4]",
        "mcp.arguments.mixed.exists(x, x > 2)",
        "mcp.arguments.l[1] == 2",
        "mcp.arguments.l[7] == 2",
        "mcp.arguments.nothing == null",
        "mcp.arguments.s + 'x' == 'abx'",
    ])
    .prop_map(str::to_owned)
}

fn expression() -> impl Strategy<Value = String> {
    leaf().prop_recursive(4, 24, 3, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) && ({b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) || ({b})")),
            inner.clone().prop_map(|a| format!("!({a})")),
            (inner.clone(), inner.clone(), inner.clone())
                .prop_map(|(a, b, c)| format!("(({a}) ? ({b}) : ({c})) == true")),
            inner.prop_map(|a| format!("mcp.arguments.l.exists(y, y == 2 && ({a}))")),
        ]
    })
}

proptest! {
    #[test]
    fn any_expression_comes_to_what_cel_makes_of_it(text in expression()) {
        let facts = given(json!({"n": 3, "d": 1.5, "s": "ab", "l": [1, 2, 3], "mixed": [1, "x", 3], "o": {"a": 1}, "nothing": null}));
        if let Ok(program) = compile(&text) {
            prop_assert_eq!(program.holds(&facts).ok(), run_theirs(&text, &facts), "{}", text);
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in "[ -~\u{e4}\n]{0,60}") {
        if let Err(mistakes) = compile(&text) {
            prop_assert!(!mistakes.is_empty());
        }
    }
}
