//! Two versions beside each other on one Redis, as they are while instances are upgraded one after the other: whatever one has
//! begun or given, the other goes on with. `POSTERN_OTHER_PROGRAM` names the program of the other version; without it both are
//! this one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::json;
use support::browser::Browser;
use support::client::{Callback, Client, Tokens};
use support::cluster::{Cluster, Shared, address_of, store_at};
use support::eventually;
use support::gateway::{Gateway, Route};
use support::mcp::McpAnswer;
use support::process::PROGRAM;
use support::redis::Redis;
use support::upstream::Upstream;

const SECOND: Duration = Duration::from_secs(1);

fn other_program() -> PathBuf {
    std::env::var_os("POSTERN_OTHER_PROGRAM").map_or_else(|| PROGRAM.into(), PathBuf::from)
}

/// Puts a program in the place of another, as a package does.
fn put(program: &Path, place: &Path) {
    let beside = place.with_extension("new");
    std::fs::copy(program, &beside).unwrap();
    std::fs::rename(&beside, place).unwrap();
}

async fn whoami(gateway: &Gateway, route: &str, tokens: &Tokens) -> McpAnswer {
    gateway.mcp(route).bearer(&tokens.access_token).tool("whoami", json!({})).await
}

/// Which of the upstream's tokens a call arrives with.
async fn generation(gateway: &Gateway, route: &str, tokens: &Tokens) -> u64 {
    let answer = whoami(gateway, route, tokens).await;
    let result = (answer.status == 200).then(|| answer.result());
    let generation = result.and_then(|result| result["structuredContent"]["generation"].as_u64());
    generation.unwrap_or_else(|| panic!("{} {}", answer.status, answer.body))
}

async fn is_refused(gateway: &Gateway, route: &str, tokens: &Tokens) {
    eventually(SECOND, async || whoami(gateway, route, tokens).await.status == 401).await;
}

/// What a program of either version says on the command line.
fn run(program: &Path, gateway: &Gateway, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).arg("--config").arg(gateway.config_file()).output().unwrap()
}

fn succeeds(program: &Path, gateway: &Gateway, arguments: &[&str]) {
    let output = run(program, gateway, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// From the first request to the last: each step at the other of the two. What is left signed in, and by whom.
async fn goes_on(
    one: &Gateway,
    other: &Gateway,
    user: &str,
    route: &str,
    upstream: &Upstream,
) -> (Client, Tokens) {
    let client = Client::register(one).await;
    let request = client.authorization(route);
    let mut browser = Browser::of(user).through(one);
    let page = browser.go_to_consent(&client.redirect_uri, &request.url()).await;
    let mut browser = browser.through(other);
    let code = Callback::of(&browser.consent_allow(&page).await.client()).code();
    let tokens = client.through(one).redeem(&code, &request).await.tokens();
    assert_eq!((generation(other, route, &tokens).await, generation(one, route, &tokens).await), (1, 1));
    let next = client.through(other).refresh(&tokens.refresh_token).await.tokens();
    assert_eq!(generation(one, route, &next).await, 1);
    let next = client.through(one).refresh(&next.refresh_token).await.tokens();
    assert_eq!(generation(other, route, &next).await, 1);
    upstream.refuse_current_tokens();
    assert_eq!((generation(other, route, &next).await, generation(one, route, &next).await), (2, 2));
    upstream.refuse_current_tokens();
    assert_eq!((generation(one, route, &next).await, generation(other, route, &next).await), (3, 3));
    assert_eq!(upstream.authorization.refreshes(), 2);
    for gateway in [one, other] {
        browser = browser.through(gateway);
        let page = browser.go(&gateway.url("/connections")).await.page();
        assert!(page.status == 200 && page.text().contains(route), "{}", page.text());
    }
    // Another client of the same user, which ends.
    let leaving = Client::register(other).await;
    let left = leaving.sign_in(&mut Browser::of(user).through(other), route).await;
    assert_eq!(generation(one, route, &left).await, 3);
    leaving.through(one).revoke(&left.refresh_token).await;
    is_refused(one, route, &left).await;
    is_refused(other, route, &left).await;
    assert_eq!(generation(other, route, &next).await, 3);
    (client, next)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_f34_two_versions_on_one_redis_are_one_postern() {
    let (redis, demo, files) = (Redis::start(&[]), Upstream::start().await, Upstream::start().await);
    let routes = vec![Route::oauth("demo", &demo), Route::oauth("files", &files)];
    let shared = Shared::new(store_at(address_of(&redis)), routes);
    let (directory, other_program) = (tempfile::tempdir().unwrap(), other_program());
    let place = directory.path().join("postern");
    put(&other_program, &place);
    let mut first = shared.instance(0, None).program(&place).start().await;
    let second = shared.instance(1, None).start().await;
    let (client, alices) = goes_on(&first, &second, "alice", "demo", &demo).await;
    let (_, bobs) = goes_on(&second, &first, "bob", "files", &files).await;

    // What operators do with the one counts at the other.
    for program in [&other_program, Path::new(PROGRAM)] {
        succeeds(program, &first, &["users", "block", "bob"]);
        is_refused(&first, "files", &bobs).await;
        is_refused(&second, "files", &bobs).await;
        succeeds(program, &first, &["users", "unblock", "bob"]);
        for gateway in [&first, &second] {
            eventually(SECOND, async || whoami(gateway, "files", &bobs).await.status == 200).await;
        }
        succeeds(program, &first, &["keys", "rotate", "--access-tokens"]);
        succeeds(program, &first, &["keys", "rotate"]);
        succeeds(program, &first, &["connections", "list"]);
    }
    for (at, elsewhere) in [(&first, &second), (&second, &first)] {
        let tokens = client.through(at).sign_in(&mut Browser::new().through(at), "demo").await;
        assert_eq!(generation(elsewhere, "demo", &tokens).await, 3);
    }

    // Upgraded, and back again.
    for program in [Path::new(PROGRAM), &other_program] {
        put(program, &place);
        first.restart().await;
        assert_eq!(generation(&first, "demo", &alices).await, 3);
        assert_eq!(generation(&first, "files", &bobs).await, 3);
    }
    let last = client.through(&first).refresh(&alices.refresh_token).await.tokens();
    assert_eq!(generation(&second, "demo", &last).await, 3);
    for gateway in [&first, &second] {
        gateway.output.assert_no_secret();
    }
}

#[tokio::test]
async fn sr_f34_what_a_newer_version_has_written_is_neither_used_nor_replaced() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::start().await);
    let mut cluster = Cluster::start(1, &redis, &upstream).await;
    let (client, tokens) = cluster.sign_in(0).await;
    let records = ["connection", "grant"].map(|kind| redis.cli(&["KEYS", &format!("*:{kind}:*")]));
    let write_as = |format: &str| {
        for record in &records {
            redis.cli(&["SETRANGE", record, "0", format]);
        }
    };
    let written = || {
        const DIGEST: &str = "return redis.sha1hex(redis.call('GET', KEYS[1]))";
        records.each_ref().map(|record| redis.cli(&["EVAL", DIGEST, "1", record]))
    };
    write_as("\u{2}");
    let before = written();
    // Nothing of it is in memory any more.
    cluster.instances[0].restart().await;
    let gateway = &cluster.instances[0];
    let sent = upstream.calls_with_token().len();
    let answers = [
        whoami(gateway, "demo", &tokens).await,
        client.refresh(&tokens.refresh_token).await.0,
        client.revoke(&tokens.refresh_token).await,
    ];
    // Nobody is told to begin anew, or promised what was not done.
    for answer in answers {
        assert_eq!((answer.status, answer.header("retry-after").is_some()), (503, true), "{}", answer.body);
    }
    let ended =
        run(PROGRAM.as_ref(), gateway, &["connections", "disconnect", "--user", "alice", "--route", "demo"]);
    assert!(String::from_utf8_lossy(&ended.stderr).contains("a newer version of Postern"), "{ended:?}");
    assert_eq!(upstream.calls_with_token().len(), sent);
    assert_eq!(upstream.authorization.token_requests("refresh_token").len(), 0);
    assert_eq!(written(), before);
    write_as("\u{1}");
    assert_eq!(generation(gateway, "demo", &tokens).await, 1);
    assert_eq!(client.refresh(&tokens.refresh_token).await.status(), 200);
}
