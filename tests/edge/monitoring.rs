//! The dashboard and the alerts: each metric and label they name is there in a running program, and the rules do what they say.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use crate::support;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use regex::Regex;
use serde_json::{Value, json};
use support::browser::Browser;
use support::client::Client;
use support::gateway::{Gateway, Route};
use support::upstream::Upstream;
use support::{PATIENCE, eventually_some};

const DASHBOARD: &str = include_str!("../../conf/grafana-dashboard.json");
const ALERTS: &str = include_str!("../../conf/alerts.yaml");
const DOCUMENTED: &str = include_str!("../../docs/metrics.md");
/// Labels that Prometheus itself puts on, or a histogram has.
const ANYWHERE: [&str; 3] = ["instance", "job", "le"];

fn alerts() -> Vec<Value> {
    let file: Value = serde_saphyr::from_str(ALERTS).unwrap();
    file["groups"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap().clone())
        .collect()
}

/// What the panels of the dashboard ask for.
fn drawn() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let drawn = panels.flat_map(|panel| panel["targets"].as_array().unwrap().clone());
    drawn.map(|target| target["expr"].as_str().unwrap().to_owned()).collect()
}

fn expressions() -> Vec<String> {
    let alerts = alerts().into_iter().map(|alert| alert["expr"].as_str().unwrap().to_owned());
    drawn().into_iter().chain(alerts).collect()
}

/// What stands in the table, by metric: its labels.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let rows = DOCUMENTED.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.map(|row| row.split('|').map(|cell| cell.replace('`', "")).collect::<Vec<_>>());
    let set = |labels: &str| labels.split(',').map(|label| label.trim().to_owned()).collect();
    cells.map(|cells| (cells[1].trim().to_owned(), set(&cells[3]))).collect()
}

/// The metric without what a histogram adds to its name.
fn family(name: &str) -> &str {
    let parts = ["_bucket", "_count", "_sum"].iter();
    parts
        .filter(|_| name.ends_with("_bucket") || name.contains("_seconds_"))
        .fold(name, |name, part| name.strip_suffix(part).unwrap_or(name))
}

#[tokio::test]
async fn every_metric_and_label_of_dashboard_and_alerts_is_there() {
    let upstream = Upstream::start().await;
    let peers = json!([upstream.server.address.to_string()]);
    let pool =
        Route::to("pool", "http://mcp.test/mcp", json!({"kind": "none"})).with("upstream.peers", peers);
    let gateway = Gateway::builder().route(Route::oauth("demo", &upstream)).route(pool).start().await;
    let client = Client::register(&gateway).await;
    let tokens = client.sign_in(&mut Browser::new(), "demo").await;
    let call = gateway.mcp("demo").bearer(&tokens.access_token);
    assert_eq!(call.tool("whoami", json!({})).await.status, 200);
    let of_pool = client.sign_in(&mut Browser::new(), "pool").await;
    gateway.mcp("pool").bearer(&of_pool.access_token).call("ping", json!({})).await;
    upstream.refuse_current_tokens();
    assert_eq!(call.tool("whoami", json!({})).await.status, 200);
    assert_eq!(gateway.mcp("demo").call("ping", json!({})).await.status, 401);
    // A request is counted once it has been answered.
    let scrape = eventually_some(PATIENCE, async || {
        let scraped = gateway.http.get(gateway.admin("/metrics")).send().await.unwrap().text().await.unwrap();
        let last = [r#"reason="no_token",route="demo"} 1"#, r#"reason="ok",route="demo"} 2"#];
        last.iter().all(|series| scraped.contains(series)).then_some(scraped)
    })
    .await;
    let there: BTreeSet<&str> =
        scrape.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let documented = documented();
    assert_eq!(
        there
            .iter()
            .filter(|name| name.starts_with("postern_"))
            .map(ToString::to_string)
            .collect::<BTreeSet<_>>(),
        documented.keys().cloned().collect(),
        "the table and what is scraped"
    );

    let metric = Regex::new(r"\b(?:postern|process)_\w+").unwrap();
    let selector = Regex::new(r"\b((?:postern|process)_\w+)\{([^}]*)\}").unwrap();
    let label = Regex::new(r"(\w+)\s*(?:=~|!~|!=|=)").unwrap();
    let grouping = Regex::new(r"\bby \(([^)]*)\)").unwrap();
    for expression in expressions() {
        let mut known: BTreeSet<String> = BTreeSet::new();
        for found in metric.find_iter(&expression) {
            let name = family(found.as_str());
            assert!(there.contains(name), "{name} in {expression}");
            known.extend(documented.get(name).into_iter().flatten().cloned());
        }
        let is_known = |label: &str| known.contains(label) || ANYWHERE.contains(&label);
        for found in selector.captures_iter(&expression) {
            for found in label.captures_iter(&found[2]) {
                assert!(is_known(&found[1]), "{} in {expression}", &found[1]);
            }
        }
        for found in grouping.captures_iter(&expression) {
            for name in found[1].split(',').map(str::trim) {
                assert!(is_known(name), "{name} in {expression}");
            }
        }
    }
    // Words that are looked for are words that are counted.
    for (series, least) in [
        (r#"postern_requests_total{caller="user",class="2xx",reason="ok",route="demo"}"#, 2.0),
        (r#"postern_requests_total{caller="anonymous",class="4xx",reason="no_token",route="demo"}"#, 1.0),
        (r#"postern_refreshes_total{outcome="success"}"#, 1.0),
        (r#"postern_credentials_total{act="refresh",reason="connection",strategy="oauth"}"#, 1.0),
        (r#"postern_cache_lookups_total{cache="credentials",result="hit"}"#, 1.0),
        (r#"postern_discovery_total{decision="taken",step="server_metadata"}"#, 1.0),
        (r#"postern_store_operations_total{operation="connect",result="ok"}"#, 1.0),
        (r#"postern_store_duration_seconds_count{operation="connect"}"#, 1.0),
        (r#"postern_upstream_connect_seconds_count{route="demo"}"#, 1.0),
        (r#"postern_upstream_first_byte_seconds_count{route="demo"}"#, 2.0),
        // There from the beginning, so that the first time is a rise.
        (r#"postern_limited_total{limit="connections"}"#, 0.0),
        (r#"postern_upgrades_total{outcome="failed"}"#, 0.0),
        (r#"postern_config_reloads_total{outcome="failed"}"#, 0.0),
        (r#"postern_traced_requests_total{result="dropped"}"#, 0.0),
        ("postern_connections", 1.0),
        ("postern_connections_limit", 100.0),
        (
            &format!(
                r#"postern_upstream_peer_requests_total{{peer="{}",route="pool"}}"#,
                upstream.server.address
            ),
            1.0,
        ),
    ] {
        let value = scrape.lines().find_map(|line| line.strip_prefix(series)?.trim().parse::<f64>().ok());
        assert!(value.is_some_and(|value| value >= least), "{series}\n{scrape}");
    }
}

#[test]
fn every_alert_says_what_is_wrong_and_where_to_read_on() {
    let alerts = alerts();
    assert!(alerts.len() > 15);
    let mut names = BTreeSet::new();
    for alert in &alerts {
        let name = alert["alert"].as_str().unwrap();
        assert!(names.insert(name), "{name} twice");
        let runbook = format!("docs/operations.md#{}", name.to_lowercase());
        assert_eq!(alert["annotations"]["runbook"], json!(runbook));
        assert!(alert["annotations"]["summary"].as_str().unwrap().len() > 20, "{name}");
        assert!(
            matches!(alert["labels"]["severity"].as_str(), Some("critical" | "warning" | "info")),
            "{name}"
        );
    }
}

/// Asks Prometheus's own tool.
#[track_caller]
fn promtool(arguments: [&str; 3]) {
    let run = Command::new("promtool").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let run = run.expect("promtool, which `tests/setup/install.sh test` installs");
    let said = [run.stdout, run.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    assert!(run.status.success(), "{said}");
}

#[test]
fn prometheus_takes_the_rules_and_they_go_off_when_they_should() {
    promtool(["check", "rules", "conf/alerts.yaml"]);
    promtool(["test", "rules", "tests/data/alerts.yaml"]);
}

/// Each goes off somewhere.
#[test]
fn every_alert_is_played_through() {
    let played: Value = serde_saphyr::from_str(include_str!("../data/alerts.yaml")).unwrap();
    let tests = played["tests"].as_array().unwrap().iter();
    let cases = tests.flat_map(|test| test["alert_rule_test"].as_array().unwrap());
    let goes_off = |case: &&Value| !case["exp_alerts"].as_array().unwrap().is_empty();
    let goes_off = cases.filter(goes_off).map(|case| case["alertname"].as_str().unwrap());
    let goes_off: BTreeSet<&str> = goes_off.collect();
    let all = alerts();
    assert_eq!(all.iter().map(|alert| alert["alert"].as_str().unwrap()).collect::<BTreeSet<_>>(), goes_off);
}

/// What the dashboard draws, as rules: its variables stand for what Grafana puts there.
#[test]
fn prometheus_understands_every_expression_of_the_dashboard() {
    let rules = drawn().into_iter().enumerate().map(|(number, expression)| {
        let expression = expression.replace("$__rate_interval", "5m");
        json!({"record": format!("drawn:{number}"), "expr": expression})
    });
    let file = json!({"groups": [{"name": "drawn", "rules": rules.collect::<Vec<_>>()}]});
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("drawn.yaml");
    std::fs::write(&path, file.to_string()).unwrap();
    promtool(["check", "rules", path.to_str().unwrap()]);
}
