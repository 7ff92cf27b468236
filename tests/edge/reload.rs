//! What SIGHUP changes in a running gateway, what it leaves alone, and that no request notices.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::browser::Browser;
use support::client::{Client, Tokens};
use support::cluster::{Cluster, Shared};
use support::gateway::{Gateway, PASSWORD_HASH, Route};
use support::mcp::McpAnswer;
use support::process::run;
use support::redis::Redis;
use support::relay::Weather;
use support::script::Answer;
use support::upstream::Upstream;
use support::wrk::{Counted, Wrk};
use support::{PATIENCE, eventually, http_client};

const PING: &str = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;

const SECOND: Duration = Duration::from_secs(1);

async fn whoami(gateway: &Gateway, tokens: &Tokens) -> McpAnswer {
    gateway.mcp("demo").bearer(&tokens.access_token).tool("whoami", json!({})).await
}

async fn sign_in(gateway: &Gateway, user: &str) -> (Client, Tokens) {
    let client = Client::register(gateway).await;
    let tokens = client.sign_in(&mut Browser::of(user), "demo").await;
    (client, tokens)
}

/// How often a reload ended so.
async fn reloads(gateway: &Gateway, outcome: &str) -> u64 {
    let text = gateway.http.get(gateway.admin("/metrics")).send().await.unwrap().text().await.unwrap();
    let line = format!("postern_config_reloads_total{{outcome=\"{outcome}\"}} ");
    text.lines().find_map(|found| found.strip_prefix(&line)).map_or(0, |count| count.parse().unwrap())
}

/// Sends SIGHUP and waits until it is carried out.
async fn reload(gateway: &Gateway, outcome: &str) {
    let before = reloads(gateway, outcome).await;
    gateway.hang_up();
    eventually(PATIENCE, || async { reloads(gateway, outcome).await > before }).await;
}

fn routes(routes: &[Route]) -> Value {
    routes.iter().map(|route| route.document().clone()).collect()
}

#[tokio::test]
async fn sr_f26_a_route_that_is_taken_away_is_gone_and_comes_back_with_what_was_granted() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::before(&upstream).await;
    let (client, tokens) = sign_in(&gateway, "alice").await;
    assert_eq!(whoami(&gateway, &tokens).await.status, 200);
    let route = Route::oauth("demo", &upstream);
    gateway.reconfigure("routes", routes(&[Route::open("other", &upstream)]));
    reload(&gateway, "ok").await;
    assert_eq!(whoami(&gateway, &tokens).await.status, 404);
    let refused = client.refresh(&tokens.refresh_token).await;
    assert_eq!((refused.status(), refused.error().as_deref()), (400, Some("invalid_target")));
    let metadata = gateway.url("/.well-known/oauth-protected-resource/demo");
    assert_eq!(gateway.http.get(&metadata).send().await.unwrap().status(), 404);
    // The new one is there at once, and the token of the old one is not for it.
    let at_other = gateway.mcp("other").bearer(&tokens.access_token).tool("echo", json!({})).await;
    assert_eq!(at_other.status, 401);
    gateway.reconfigure("routes", routes(&[route]));
    reload(&gateway, "ok").await;
    assert_eq!(whoami(&gateway, &tokens).await.status, 200);
    assert_eq!(client.refresh(&tokens.refresh_token).await.status(), 200);
    assert_eq!(upstream.authorization.token_requests("authorization_code").len(), 1);
}

#[tokio::test]
async fn pom_17_a_server_that_takes_over_a_route_never_sees_the_tokens_of_the_one_before() {
    let (before, after) = (Upstream::start().await, Upstream::start().await);
    let gateway = Gateway::before(&before).await;
    let (_, tokens) = sign_in(&gateway, "alice").await;
    assert_eq!(whoami(&gateway, &tokens).await.status, 200);
    gateway.reconfigure("routes", routes(&[Route::oauth("demo", &after)]));
    reload(&gateway, "ok").await;
    let answer = whoami(&gateway, &tokens).await;
    assert_eq!(answer.status, 401, "the user is sent to the new server: {}", answer.body);
    assert!(after.calls_with_token().is_empty());
    let (_, tokens) = sign_in(&gateway, "alice").await;
    assert_eq!(whoami(&gateway, &tokens).await.status, 200);
    assert_eq!(after.authorization.token_requests("authorization_code").len(), 1);
    // And back: the connection to the first is as it was.
    gateway.reconfigure("routes", routes(&[Route::oauth("demo", &before)]));
    reload(&gateway, "ok").await;
    assert_eq!(whoami(&gateway, &tokens).await.status, 200);
    assert_eq!(before.authorization.token_requests("authorization_code").len(), 1);
}

#[tokio::test]
async fn sr_f26_a_wrong_configuration_changes_nothing_and_says_why() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::before(&upstream).await;
    let (_, tokens) = sign_in(&gateway, "alice").await;
    let good = std::fs::read_to_string(gateway.config_file()).unwrap();
    for (wrong, said) in [
        ("server: [".to_owned(), "not valid YAML"),
        (good.replace("\"routes\"", "\"rotues\""), "rotues"),
        (good.replace("\"oauth\"", "\"magic\""), "routes[0].credential.kind"),
    ] {
        std::fs::write(gateway.config_file(), wrong).unwrap();
        reload(&gateway, "failed").await;
        gateway.output.shows(said).await;
        assert_eq!(whoami(&gateway, &tokens).await.status, 200);
    }
    std::fs::write(gateway.config_file(), good).unwrap();
    reload(&gateway, "ok").await;
    assert_eq!(whoami(&gateway, &tokens).await.status, 200);
    gateway.output.assert_no_secret();
}

#[tokio::test]
async fn sr_rs_06_a_user_taken_out_of_the_file_is_out_at_once() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::before(&upstream).await;
    let ((client, alice), (_, bob)) = (sign_in(&gateway, "alice").await, sign_in(&gateway, "bob").await);
    gateway.reconfigure("login.local.users", json!([{"username": "bob", "password_hash": PASSWORD_HASH}]));
    reload(&gateway, "ok").await;
    assert_eq!(whoami(&gateway, &alice).await.status, 401);
    assert_eq!(client.refresh(&alice.refresh_token).await.error().as_deref(), Some("invalid_grant"));
    assert_eq!(whoami(&gateway, &bob).await.status, 200);
}

#[tokio::test]
async fn what_waits_for_a_restart_is_named_and_left_as_it_was() {
    let upstream = Upstream::open().await;
    let gateway = Gateway::builder().route(Route::open("demo", &upstream)).start().await;
    let (_, tokens) = sign_in(&gateway, "alice").await;
    gateway.reconfigure("server.public_url", json!("http://127.0.0.1:1"));
    gateway.reconfigure("server.drain_timeout", json!("7s"));
    gateway.reconfigure("server.allowed_origins", json!(["https://inspector.example.com"]));
    reload(&gateway, "ok").await;
    gateway.output.shows("\"keys\":\"server.drain_timeout, server.public_url\"").await;
    let metadata = gateway.url("/.well-known/oauth-authorization-server");
    let metadata = gateway.http.get(metadata).send().await.unwrap().text().await.unwrap();
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    assert_eq!(metadata["issuer"], gateway.public_url.as_str());
    let from = gateway.mcp("demo").bearer(&tokens.access_token);
    let from = from.header("origin", "https://inspector.example.com");
    assert_eq!(from.tool("echo", json!({})).await.status, 200, "an origin is taken at once");
}

#[tokio::test]
async fn sr_f36_a_renewed_certificate_is_shown_from_the_next_handshake_on() {
    let upstream = Upstream::open().await;
    let gateway = Gateway::builder().tls().route(Route::open("demo", &upstream)).start().await;
    let path = gateway.url("/");
    let made = rcgen::generate_simple_self_signed(["localhost".into(), "127.0.0.1".into()]).unwrap();
    let renewed = http_client(&[reqwest::Certificate::from_der(made.cert.der()).unwrap()]);
    assert!(renewed.get(&path).send().await.is_err(), "not trusted yet");
    let directory = gateway.config_file().parent().unwrap().to_owned();
    std::fs::write(directory.join("tls.crt"), made.cert.pem()).unwrap();
    std::fs::write(directory.join("tls.key"), made.signing_key.serialize_pem()).unwrap();
    reload(&gateway, "ok").await;
    assert_eq!(renewed.get(&path).send().await.unwrap().status(), 200);
    assert!(http_client(&gateway.roots).get(&path).send().await.is_err(), "the old one is gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_f26_pom_41_no_request_notices_a_storm_of_reloads() {
    let is_soak = std::env::var_os("POSTERN_SOAK").is_some();
    let (rounds, count) = if is_soak { (1000, 200) } else { (60, 20) };
    let (upstream, streaming) = (Upstream::start().await, Upstream::open().await);
    let always = [Route::oauth("demo", &upstream), Route::open("streams", &streaming)];
    let builder = always.iter().fold(Gateway::builder(), |builder, route| builder.route(route.clone()));
    let gateway = Arc::new(builder.start().await);
    let (client, tokens) = sign_in(&gateway, "alice").await;
    let at_streams = client.sign_in(&mut Browser::new(), "streams").await;
    let mut streams = Vec::new();
    for _ in 0..count {
        let (feed, answer) = Answer::stream();
        streaming.answer_next(answer);
        let mut events = gateway.mcp("streams").bearer(&at_streams.access_token).events().await;
        feed.event("begins");
        assert_eq!(events.next(PATIENCE).await.unwrap().data, "begins");
        streams.push((feed, events));
    }
    let (done, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (gateway, tokens) = (Arc::clone(&gateway), tokens.clone());
            let (done, served) = (Arc::clone(&done), Arc::clone(&served));
            tokio::spawn(async move {
                while !done.load(Ordering::Relaxed) {
                    let answer = whoami(&gateway, &tokens).await;
                    assert_eq!(answer.status, 200, "{}", answer.body);
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    // And, in the long form, a load that is not of our making.
    let wrk = if is_soak { Wrk::start(&gateway.url("/demo"), &tokens.access_token, PING) } else { None };
    let good = std::fs::read_to_string(gateway.config_file()).unwrap();
    for round in 0..rounds {
        // Now and then a wrong one, and one with another route beside.
        match round % 3 {
            0 => std::fs::write(gateway.config_file(), "nonsense: [").unwrap(),
            1 => std::fs::write(gateway.config_file(), &good).unwrap(),
            _ => {
                let beside = Route::open("beside", &upstream);
                gateway.reconfigure("routes", routes(&[&always[..], &[beside]].concat()));
            }
        }
        reload(&gateway, if round % 3 == 0 { "failed" } else { "ok" }).await;
    }
    done.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    println!("{rounds} reloads, {} calls, {count} streams", served.load(Ordering::Relaxed));
    if let Some(wrk) = wrk {
        let counted = wrk.end().await;
        println!("{} requests of wrk beside them", counted.requests);
        assert_eq!(counted, Counted { requests: counted.requests, ..Counted::default() });
    }
    assert!(served.load(Ordering::Relaxed) > 50);
    for (feed, mut events) in streams {
        feed.event("goes on");
        assert_eq!(events.next(PATIENCE).await.unwrap().data, "goes on");
        feed.finish();
        assert_eq!(events.next(PATIENCE).await, None);
    }
    assert_eq!(upstream.authorization.token_requests("authorization_code").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_rs_06_a_changed_route_counts_at_every_instance_within_a_second() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    let (cluster, relays) = Cluster::behind_relays(3, &redis, &upstream).await;
    let (_, tokens) = cluster.sign_in(0).await;
    let at = async |instance: usize| whoami(&cluster.instances[instance], &tokens).await.status;
    let moved = [Route::oauth("demo", &upstream).with("path", json!("/moved"))];
    for (number, instance) in cluster.instances.iter().enumerate() {
        assert_eq!(at(number).await, 200);
        instance.reconfigure("routes", routes(&moved));
    }
    // One of them does not hear of it in time.
    relays[2].set(Weather::Blackhole);
    let file = cluster.instances[0].config_file();
    let asked = run(&["reload", "--config", file.to_str().unwrap()], &[]).await;
    assert_eq!(asked.code, Some(0), "{}", asked.stderr);
    let changed = Instant::now();
    for instance in 0..2 {
        eventually(SECOND, async || at(instance).await == 404).await;
    }
    assert!(changed.elapsed() < SECOND, "{:?}", changed.elapsed());
    assert_eq!(at(2).await, 200, "it goes by what it knows");
    relays[2].set(Weather::Fair);
    eventually(PATIENCE, async || at(2).await == 404).await;
    // Once each, and not again with whatever else changes in the store.
    cluster.sign_in_to("moved", 0).await;
    for instance in &cluster.instances {
        assert_eq!(reloads(instance, "ok").await, 1);
    }
    // Who starts afterwards has read its file already.
    let mut cluster = cluster;
    cluster.instances[1].restart().await;
    assert_eq!(reloads(&cluster.instances[1], "ok").await, 0);
}

/// `postern reload` says that the files have changed, not how it went with each of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_a_reload_of_all_went_each_instance_says_for_itself() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    let (cluster, _relays) = Cluster::behind_relays(2, &redis, &upstream).await;
    let (fine, wrong) = (&cluster.instances[0], &cluster.instances[1]);
    let good = std::fs::read_to_string(wrong.config_file()).unwrap();
    std::fs::write(wrong.config_file(), "nonsense: [").unwrap();
    let file = fine.config_file();
    let asked = run(&["reload", "--config", file.to_str().unwrap()], &[]).await;
    assert_eq!(asked.code, Some(0), "{}", asked.stderr);
    assert!(asked.stdout.contains("postern_config_reload_failed"), "{}", asked.stdout);
    let is_refused = async |instance: &Gateway| {
        let text = instance.http.get(instance.admin("/metrics")).send().await.unwrap().text().await.unwrap();
        text.lines().any(|line| line == "postern_config_reload_failed 1")
    };
    eventually(PATIENCE, async || reloads(fine, "ok").await == 1).await;
    eventually(PATIENCE, async || is_refused(wrong).await).await;
    assert!(!is_refused(fine).await);
    std::fs::write(wrong.config_file(), good).unwrap();
    // As beside it, or by `systemctl reload`: of that one alone, which is waited for.
    let file = wrong.config_file();
    let asked = run(&["upgrade", "--config", file.to_str().unwrap()], &[]).await;
    assert_eq!((asked.code, asked.stdout.as_str()), (Some(0), "the configuration is in use"));
    assert!(!is_refused(wrong).await);
    assert_eq!(reloads(fine, "ok").await, 1);
}

/// Its file changed after it was read and before the store could be asked.
#[tokio::test]
async fn an_instance_that_starts_without_the_store_reads_its_file_again_when_it_is_back() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    let (mut cluster, relays) = Cluster::behind_relays(2, &redis, &upstream).await;
    let (_, tokens) = cluster.sign_in(0).await;
    relays[1].set(Weather::Down);
    cluster.instances[1].restart_unready().await;
    let moved = [Route::oauth("demo", &upstream).with("path", json!("/moved"))];
    cluster.instances.iter().for_each(|instance| instance.reconfigure("routes", routes(&moved)));
    let file = cluster.instances[0].config_file();
    assert_eq!(run(&["reload", "--config", file.to_str().unwrap()], &[]).await.code, Some(0));
    relays[1].set(Weather::Fair);
    eventually(PATIENCE, async || whoami(&cluster.instances[1], &tokens).await.status == 404).await;
}

#[tokio::test]
async fn a_lone_instance_is_told_beside_its_data() {
    let upstream = Upstream::open().await;
    let shared = Shared::new(json!({"kind": "embedded"}), vec![Route::open("demo", &upstream)]);
    let gateway = shared.instance(0, None).start().await;
    let file = gateway.config_file();
    let words = ["reload", "--config", file.to_str().unwrap()];
    let told = run(&words, &[]).await;
    assert_eq!(
        (told.code, told.stdout.as_str()),
        (Some(0), "the configuration is in use"),
        "{}",
        told.stderr
    );
    assert_eq!(reloads(&gateway, "ok").await, 1);
    let mut gateway = gateway;
    gateway.stop().await;
    let refused = run(&words, &[]).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("no running Postern answers"), "{}", refused.stderr);
}

#[tokio::test]
async fn sr_f35_a_reload_never_takes_keys_that_the_open_store_was_not_written_with() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::before(&upstream).await;
    let (client, tokens) = sign_in(&gateway, "alice").await;
    // Another data directory waits for a restart, and so do the keys in it; none are made there.
    let elsewhere = gateway.data_dir().with_file_name("elsewhere");
    gateway.reconfigure("server.data_dir", json!(elsewhere));
    reload(&gateway, "ok").await;
    gateway.output.shows("server.data_dir").await;
    assert!(!elsewhere.exists());
    assert_eq!(whoami(&gateway, &tokens).await.status, 200);
    assert_eq!(client.refresh(&tokens.refresh_token).await.status(), 200);
}

#[tokio::test]
async fn listeners_keep_their_certificate_when_the_file_has_none_any_more() {
    let upstream = Upstream::open().await;
    let gateway = Gateway::builder().tls().route(Route::open("demo", &upstream)).start().await;
    let good = std::fs::read_to_string(gateway.config_file()).unwrap();
    let mut config: Value = serde_json::from_str(&good).unwrap();
    config["server"].as_object_mut().unwrap().remove("tls");
    config["server"]["public_url"] = "http://127.0.0.1:1".into();
    std::fs::write(gateway.config_file(), config.to_string()).unwrap();
    reload(&gateway, "ok").await;
    gateway.output.shows("server.tls").await;
    assert_eq!(gateway.http.get(gateway.url("/")).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_file_that_is_watched_is_read_again_however_it_is_changed() {
    let upstream = Upstream::open().await;
    let gateway = Gateway::builder()
        .tls()
        .with("server.watch", json!(true))
        .route(Route::open("demo", &upstream))
        .start()
        .await;
    let becomes = async |outcome: &str, count: u64| {
        eventually(PATIENCE, || async { reloads(&gateway, outcome).await == count }).await;
    };
    let file = gateway.config_file();
    let beside = |name: &str| file.with_file_name(name);
    // Written over.
    gateway.reconfigure("server.allowed_origins", json!(["https://one.example.com"]));
    becomes("ok", 1).await;
    let good = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, "nonsense: [").unwrap();
    becomes("failed", 1).await;
    assert_eq!(gateway.http.get(gateway.url("/")).send().await.unwrap().status(), 200);
    // Put in its place, as editors do.
    std::fs::write(beside("new"), &good).unwrap();
    std::fs::rename(beside("new"), &file).unwrap();
    becomes("ok", 2).await;
    // A link that leads elsewhere, as in a mounted ConfigMap.
    for (number, directory) in ["first", "second"].into_iter().enumerate() {
        std::fs::create_dir(beside(directory)).unwrap();
        std::fs::write(beside(directory).join("postern.yaml"), &good).unwrap();
        std::os::unix::fs::symlink(beside(directory), beside("next")).unwrap();
        std::fs::rename(beside("next"), beside("current")).unwrap();
        if number == 0 {
            std::os::unix::fs::symlink("current/postern.yaml", beside("new")).unwrap();
            std::fs::rename(beside("new"), &file).unwrap();
        }
        becomes("ok", 3 + number as u64).await;
    }
    // What it names.
    let made = rcgen::generate_simple_self_signed(["localhost".into(), "127.0.0.1".into()]).unwrap();
    std::fs::write(beside("tls.crt"), made.cert.pem()).unwrap();
    std::fs::write(beside("tls.key"), made.signing_key.serialize_pem()).unwrap();
    let renewed = http_client(&[reqwest::Certificate::from_der(made.cert.der()).unwrap()]);
    eventually(PATIENCE, || async { renewed.get(gateway.url("/")).send().await.is_ok() }).await;
    assert_eq!(reloads(&gateway, "failed").await, 1);
}
