//! The operator's guide, from its first line to its last: every command in it is run, beside a running Postern where it says so and
//! without one where it needs that, and every alert has its section.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::browser::Browser;
use support::client::Client;
use support::cluster::{address_of, store_at};
use support::gateway::{Gateway, Route, restrict};
use support::process::{Output, PROGRAM, Process, run};
use support::redis::Redis;
use support::upstream::Upstream;
use support::{PATIENCE, eventually};

const GUIDE: &str = include_str!("../../docs/operations.md");

/// Sections whose commands speak to a running Postern; with the embedded store the others need a stop.
const BESIDE: [&str; 5] =
    ["Install", "Redis", "Change the configuration", "Upgrade", "When something is wrong"];

/// The commands of the guide, each with its section.
fn blocks() -> Vec<(&'static str, &'static str)> {
    let sections = GUIDE.split("\n## ").skip(1);
    let blocks = sections.flat_map(|section| {
        let heading = section.lines().next().unwrap();
        section.split("```sh\n").skip(1).map(move |rest| (heading, rest.split("```").next().unwrap()))
    });
    blocks.collect()
}

/// Every process of this configuration but its commands.
fn servers(file: &Path) -> Vec<u32> {
    let ours = |id: &u32| {
        let words = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        let mut words = words.split(|byte| *byte == 0);
        words.any(|word| word == b"run") && words.any(|word| word == file.as_os_str().as_encoded_bytes())
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(ours).collect()
}

async fn stop(gateway: &mut Gateway) {
    let file = gateway.config_file();
    for process in servers(&file) {
        let _ = Command::new("kill").args(["-TERM", &process.to_string()]).status();
    }
    eventually(PATIENCE, || {
        gateway.has_ended();
        let all = servers(&file);
        async move { all.is_empty() }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_of_the_guide_does_what_it_says() {
    let (upstream, redis) = (Upstream::start().await, Redis::start(&[]));
    let keys = tempfile::tempdir().unwrap();
    let key = keys.path().join("k1.key");
    let bytes: [u8; 32] = std::array::from_fn(|index| (index as u8).wrapping_mul(7).wrapping_add(1));
    std::fs::write(&key, data_encoding::BASE64.encode(&bytes)).unwrap();
    restrict(&key);
    let mut gateway = Gateway::builder()
        .with("sealing_keys", json!([{"id": "k1", "file": key}]))
        .route(Route::oauth("files", &upstream))
        .start()
        .await;
    let client = Client::register(&gateway).await;
    let tokens = client.sign_in(&mut Browser::new(), "files").await;

    let file = gateway.config_file();
    let place = file.parent().unwrap().to_owned();
    let mut on_redis: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    on_redis["store"] = store_at(address_of(&redis));
    on_redis["server"]["data_dir"] = json!(place.join("elsewhere"));
    std::fs::write(place.join("on-redis.yaml"), on_redis.to_string()).unwrap();
    std::fs::write(place.join("password"), "pw\n").unwrap();
    std::fs::create_dir(place.join("bin")).unwrap();
    std::os::unix::fs::symlink(PROGRAM, place.join("bin/postern")).unwrap();
    let path = format!("{}:{}", place.join("bin").display(), std::env::var("PATH").unwrap());

    let mut runs = true;
    for (heading, lines) in blocks() {
        match (runs, BESIDE.contains(&heading)) {
            (true, false) => stop(&mut gateway).await,
            (false, true) => gateway.start_again().await,
            _ => {}
        }
        runs = BESIDE.contains(&heading);
        if lines.contains("tar -xzf") {
            // Nothing but what was backed up brings it back.
            std::fs::remove_file(place.join("data/postern.redb")).unwrap();
        }
        let output = Output::default();
        let mut command = Command::new("sh");
        command.args(["-euc", lines]).current_dir(&place).env("PATH", &path).stdin(Stdio::null());
        let ended = Process::start(command, &output).wait(2 * PATIENCE).await;
        assert!(ended.success(), "{heading}\n{lines}\n---\n{}", output.text());
        let text = output.text();
        match lines {
            lines if lines.contains("store migrate") => assert!(text.contains("record(s) copied"), "{text}"),
            lines if lines.contains("connections list") => assert!(text.contains("alice\tfiles"), "{text}"),
            lines if lines.contains("--always") => assert!(text.ends_with(" serves"), "{text}"),
            _ => {}
        }
    }
    // After all of it Alice is where she was.
    if !runs {
        gateway.start_again().await;
    }
    assert_eq!(client.refresh(&tokens.refresh_token).await.status(), 200);
    stop(&mut gateway).await;
    assert!(blocks().len() > 12, "the guide was not read");
}

/// What is wrong with a configuration is said to whoever asks for it to be read, in the log, and by the metric of the alert, until it is
/// right.
#[tokio::test]
async fn a_reload_that_is_refused_says_why() {
    let upstream = Upstream::open().await;
    let gateway = Gateway::builder().route(Route::open("demo", &upstream)).start().await;
    let failed = async || {
        let text = gateway.http.get(gateway.admin("/metrics")).send().await.unwrap().text().await.unwrap();
        let found = text.lines().find_map(|line| line.strip_prefix("postern_config_reload_failed "));
        found.unwrap().to_owned()
    };
    let file = gateway.config_file();
    assert_eq!(failed().await, "0");
    let good = std::fs::read_to_string(&file).unwrap();
    // Right for the command, which reads it as well, and wrong for the process, which has no such variable.
    let secret = json!({"kind": "header", "name": "x-key", "value": {"env": "KEY_OF_THE_COMMAND"}});
    let route = Route::to("demo", &upstream.url(), secret);
    gateway.reconfigure("routes", json!([route.document()]));
    let words = ["reload", "--config", file.to_str().unwrap()];
    let asked = run(&words, &[("KEY_OF_THE_COMMAND", "k")]).await;
    assert_eq!(asked.code, Some(1), "{}", asked.stdout);
    assert!(asked.stderr.contains("KEY_OF_THE_COMMAND"), "{}", asked.stderr);
    let refused = |line: &Value| {
        line["message"].as_str().is_some_and(|message| message.starts_with("not reloaded"))
            && line["reason"].as_str().is_some_and(|reason| reason.contains("KEY_OF_THE_COMMAND"))
    };
    gateway.output.has(1, refused).await;
    assert_eq!(failed().await, "1");
    std::fs::write(&file, good).unwrap();
    let asked = run(&words, &[]).await;
    assert_eq!(
        (asked.code, asked.stdout.as_str()),
        (Some(0), "the configuration is in use"),
        "{}",
        asked.stderr
    );
    assert_eq!(failed().await, "0");
}

#[test]
fn every_alert_has_a_section_that_says_what_to_do() {
    for alert in include_str!("../../conf/alerts.yaml")
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
    {
        assert!(GUIDE.contains(&format!("\n### {alert}\n")), "{alert}");
    }
}

#[test]
fn the_unit_is_what_systemd_understands_and_as_closed_as_it_was() {
    let text = include_str!("../../conf/postern.service");
    let place = tempfile::tempdir().unwrap();
    let unit = place.path().join("postern.service");
    let documentation = text.lines().find(|line| line.starts_with("Documentation=")).unwrap();
    std::fs::write(&unit, text.replace("/usr/bin/postern", PROGRAM).replace(documentation, "")).unwrap();
    let analyze = |words: &[&str]| {
        let ran = Command::new("systemd-analyze").args(words).arg(&unit).output().expect("systemd-analyze");
        (
            ran.status.success(),
            format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr)),
        )
    };
    let (is_fine, said) = analyze(&["verify"]);
    assert!(is_fine && said.is_empty(), "{said}");
    // 10 is open, 0 is shut.
    let (is_fine, said) = analyze(&["security", "--offline=yes", "--threshold=17"]);
    assert!(is_fine, "{said}");
}
