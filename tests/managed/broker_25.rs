//! What was found wanting at a gateway whose routes are made at run time, and has to work here: addresses with a key, who may
//! use them, what their tokens are bound to, what is let through, and what is kept. One test for each line, by its number.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use serde_json::{Value, json};
use support::PATIENCE;
use support::client::Client;
use support::managed::{Person, address, builder, call_at, id, path, ping};
use support::mcp::McpAnswer;
use support::raw::exchange;
use support::script::Answer;
use support::upstream::Upstream;

/// What an answer says, without what differs between any two.
fn said(answer: &McpAnswer) -> (u16, String, Vec<String>) {
    let id = answer.header("x-request-id").unwrap_or_default();
    let mut names: Vec<_> = answer.headers.keys().map(ToString::to_string).collect();
    names.sort();
    (answer.status, answer.body.replace(id, ""), names)
}

#[tokio::test]
async fn brk25_01_brk25_02_an_address_has_a_key_that_is_replaced_at_once_and_connections_stay() {
    let upstream = Upstream::start().await;
    let gateway = builder().start().await;
    let mut alice = Person::sign_in(&gateway, "alice").await;
    let client = Client::register(&gateway).await;
    let organization = alice.organization("Acme", &[("alice", "administrator")]).await;
    let personal = alice.add(None, &upstream, json!({})).await;
    let shared = alice.add(Some(&organization), &upstream, json!({})).await;
    alice.assign(&shared, "alice").await;
    for (added, context) in [(&personal, "user"), (&shared, "org")] {
        let url = address(added);
        let segments: Vec<&str> = path(url).split('/').collect();
        assert_eq!(segments[..2], ["connect", context], "{url}");
        assert!(segments[4].len() >= 43, "256 bits: {url}");
        assert!(!url.contains("alice") && !url.contains("Acme"), "{url}");

        let tokens = alice.let_in(&client, url).await;
        assert_eq!(ping(&gateway, url, &tokens.access_token).await.status, 200);
        let visits = upstream.authorization.requests.count("/authorize");

        let rotate = format!("/configurations/{}/rotate", id(added));
        let rotated = alice.ask("POST", &rotate).done(200).await;
        let new = address(&rotated).to_owned();
        assert_ne!(new, url);
        assert_eq!(path(&new).rsplit_once('/').unwrap().0, path(url).rsplit_once('/').unwrap().0);
        // Neither the token at the new address, nor anything at the old one.
        assert_eq!(ping(&gateway, &new, &tokens.access_token).await.status, 401);
        let old = ping(&gateway, url, &tokens.access_token).await;
        assert_eq!(client.refresh(&tokens.refresh_token).await.status(), 400);
        let key = path(&new).rsplit_once('/').unwrap().1;
        let nobodys = new.replace(key, &key.chars().rev().collect::<String>());
        let short = new.rsplit_once('/').unwrap().0.to_owned();
        for other in [
            nobodys,
            short.clone(),
            format!("{short}/x"),
            format!("{new}x"),
            format!("{new}/below"),
            new.replace("/mc.", "/mc.x"),
            gateway.url("/connect/user/u/mc.x/yy"),
            gateway.url("/connect/team/u/mc.x/yy"),
        ] {
            let other = ping(&gateway, &other, &tokens.access_token).await;
            assert_eq!(said(&other), said(&old));
            assert_eq!(other.status, 404);
        }
        // The user comes in at the new address without going to the server's authorization server again.
        let again = alice.let_in(&client, &new).await;
        assert_eq!(ping(&gateway, &new, &again.access_token).await.status, 200);
        assert_eq!(upstream.authorization.requests.count("/authorize"), visits);
        assert!(!gateway.output.text().contains(path(&new).rsplit_once('/').unwrap().1), "no key in a log");
    }
    gateway.output.assert_no_secret();
}

#[tokio::test]
async fn brk25_03_a_token_is_for_one_address_version_use_and_context() {
    let (upstream, other) = (Upstream::start().await, Upstream::start().await);
    let (open, second_open) = (Upstream::open().await, Upstream::open().await);
    for format in ["sealed", "jwt"] {
        let gateway = builder().with("oauth_server.access_token_format", json!(format)).start().await;
        let mut alice = Person::sign_in(&gateway, "alice").await;
        let client = Client::register(&gateway).await;
        let organization = alice.organization("Acme", &[("alice", "administrator")]).await;
        let personal = alice.add(None, &upstream, json!({})).await;
        let shared = alice.add(Some(&organization), &upstream, json!({})).await;
        let second = alice.add(Some(&organization), &other, json!({})).await;
        for added in [&shared, &second] {
            alice.assign(added, "alice").await;
        }
        let [personal, shared_url, second] =
            [&personal, &shared, &second].map(|added| address(added).to_owned());
        let tokens = alice.let_in(&client, &shared_url).await;
        let token = tokens.access_token.as_str();
        for (url, status) in [(&shared_url, 200), (&personal, 401), (&second, 401)] {
            assert_eq!(ping(&gateway, url, token).await.status, status, "{format}: {url}");
        }
        // Taken away and given back, it is another use of it.
        alice.unassign(&shared, "alice").await;
        assert_eq!(ping(&gateway, &shared_url, token).await.status, 401);
        alice.assign(&shared, "alice").await;
        assert_eq!(ping(&gateway, &shared_url, token).await.status, 401, "{format}");
        assert_eq!(client.refresh(&tokens.refresh_token).await.status(), 400);
        // So is another version.
        let tokens = alice.let_in(&client, &shared_url).await;
        assert_eq!(ping(&gateway, &shared_url, &tokens.access_token).await.status, 200);
        let change = alice.ask("PATCH", &format!("/configurations/{}", id(&shared)));
        change.with(json!({"url": other.url()})).done(200).await;
        assert_eq!(ping(&gateway, &shared_url, &tokens.access_token).await.status, 401, "{format}");
        assert!(other.calls_with_token().is_empty(), "no token of one server goes to another");
        let dead = upstream.authorization.ledger(|ledger| ledger.families.iter().all(|family| family.dead));
        assert!(dead, "what the old server was connected with is ended there");

        // Nor is it the connection alone that makes the difference.
        let none = json!({"auth": {"mode": "none"}});
        let free = alice.add(Some(&organization), &open, none).await;
        let free_url = address(&free).to_owned();
        for what in ["use", "version"] {
            alice.assign(&free, "alice").await;
            let tokens = alice.let_in(&client, &free_url).await;
            assert_eq!(ping(&gateway, &free_url, &tokens.access_token).await.status, 200, "{what}");
            if what == "use" {
                alice.unassign(&free, "alice").await;
                alice.assign(&free, "alice").await;
            } else {
                let change = alice.ask("PATCH", &format!("/configurations/{}", id(&free)));
                change.with(json!({"url": second_open.url()})).done(200).await;
            }
            let refused = ping(&gateway, &free_url, &tokens.access_token).await;
            assert_eq!(refused.status, 401, "{format}: another {what}");
            assert_eq!(client.refresh(&tokens.refresh_token).await.status(), 400, "{what}");
        }
    }
}

#[tokio::test]
async fn brk25_04_who_may_not_any_more_may_not_at_once() {
    let upstream = Upstream::open().await;
    let gateway = builder().start().await;
    let alice = Person::sign_in(&gateway, "alice").await;
    let mut bob = Person::sign_in(&gateway, "bob").await;
    let client = Client::register(&gateway).await;
    let members = [("alice", "administrator"), ("bob", "member")];
    let organization = alice.organization("Acme", &members).await;
    let none = json!({"auth": {"mode": "none"}});
    let added = alice.add(Some(&organization), &upstream, none).await;
    let url = address(&added).to_owned();
    let of = format!("/configurations/{}", id(&added));
    // Not assigned: the client is told, and gets nothing.
    let request = client.authorization(path(&url));
    let refused = bob.browser.authorize(&client.redirect_uri, &request.url()).await;
    assert_eq!(refused.error(), Some("access_denied"), "{}", refused.url);

    for (what, status) in [("unassign", 401), ("member", 401), ("disable", 404), ("organization", 404)] {
        alice.assign(&added, "bob").await;
        let tokens = bob.let_in(&client, &url).await;
        assert_eq!(ping(&gateway, &url, &tokens.access_token).await.status, 200, "{what}");
        let calls = upstream.calls().len();
        match what {
            "unassign" => alice.unassign(&added, "bob").await,
            "member" => {
                let member = format!("/organizations/{organization}/members/bob");
                alice.ask("DELETE", &member).done(204).await;
            }
            "disable" => {
                alice.ask("PATCH", &of).with(json!({"enabled": false})).done(200).await;
            }
            _ => {
                alice.ask("DELETE", &format!("/organizations/{organization}")).done(204).await;
            }
        }
        let answer = ping(&gateway, &url, &tokens.access_token).await;
        assert_eq!(answer.status, status, "{what}: {}", answer.body);
        assert_eq!(upstream.calls().len(), calls, "{what}");
        assert_eq!(client.refresh(&tokens.refresh_token).await.status(), 400, "{what}");
        match what {
            "member" => {
                let member = format!("/organizations/{organization}/members/bob");
                alice.ask("PUT", &member).with(json!({"role": "member"})).done(200).await;
            }
            "disable" => {
                alice.ask("PATCH", &of).with(json!({"enabled": true})).done(200).await;
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn brk25_05_brk25_07_a_challenge_leads_to_the_metadata_of_this_address() {
    let upstream = Upstream::start().await;
    let gateway = builder().start().await;
    let alice = Person::sign_in(&gateway, "alice").await;
    let added = alice.add(None, &upstream, json!({"passthrough": true})).await;
    let url = address(&added);
    for below in ["", "/a", "/a/b"] {
        let answer = gateway.mcp(&format!("{}{below}", path(url))).call("ping", json!({})).await;
        assert_eq!(answer.status, 401, "{below}");
        let metadata = answer.challenge("resource_metadata").unwrap();
        assert_eq!(metadata, gateway.url(&format!("/.well-known/oauth-protected-resource/{}", path(url))));
        assert_eq!(answer.challenge("scope").as_deref(), Some("mcp:access"));
        let document = McpAnswer::of(gateway.http.get(&metadata).send().await.unwrap()).await.json();
        assert_eq!(document["resource"], url);
        assert_eq!(document["authorization_servers"], json!([gateway.public_url]));
    }
    let gone = format!("/.well-known/oauth-protected-resource/{}x", path(url));
    assert_eq!(gateway.http.get(gateway.url(&gone)).send().await.unwrap().status(), 404);
}

#[tokio::test]
async fn brk25_09_the_user_sees_who_has_added_the_server_and_where_it_leads() {
    let upstream = Upstream::start().await;
    let gateway = builder().start().await;
    let mut alice = Person::sign_in(&gateway, "alice").await;
    let client = Client::register(&gateway).await;
    let organization = alice.organization("Acme \u{202e}Ltd", &[("alice", "administrator")]).await;
    let name = json!({"name": "Bug <b>tracker</b>"});
    let shared = alice.add(Some(&organization), &upstream, name.clone()).await;
    alice.assign(&shared, "alice").await;
    let personal = alice.add(None, &upstream, name).await;
    let host = upstream.origin.trim_start_matches("http://").to_owned();
    for (added, whose) in [(&shared, "Added by Acme Ltd"), (&personal, "Added by you")] {
        let request = client.authorization(path(address(added)));
        let page = alice.browser.go_to_consent(&client.redirect_uri, &request.url()).await;
        let text = page.text();
        for part in [whose, "Bug <b>tracker</b>", "Identity not verified", &host, address(added)] {
            assert!(text.contains(part), "{part} is missing: {text}");
        }
        assert!(!page.body.contains("<b>tracker"), "markup in a name stays text");
    }
}

#[tokio::test]
async fn brk25_14_a_dead_connection_is_a_challenge_and_one_visit_makes_it_good() {
    let upstream = Upstream::start().await;
    let gateway = builder().start().await;
    let mut alice = Person::sign_in(&gateway, "alice").await;
    let client = Client::register(&gateway).await;
    let added = alice.add(None, &upstream, json!({})).await;
    let url = address(&added).to_owned();
    let tokens = alice.let_in(&client, &url).await;
    assert_eq!(ping(&gateway, &url, &tokens.access_token).await.status, 200);
    // An outage of the authorization server is nobody's to repair.
    upstream.authorization.ledger(|ledger| ledger.families.iter_mut().for_each(|family| family.dead = true));
    upstream.refuse_current_tokens();
    let refused = ping(&gateway, &url, &tokens.access_token).await;
    assert_eq!(refused.status, 401, "{}", refused.body);
    assert!(refused.challenge("resource_metadata").is_some(), "no bare refusal");
    assert_eq!(client.refresh(&tokens.refresh_token).await.error().as_deref(), Some("invalid_grant"));
    upstream.set(|script| script.refused_generation = 0);
    let again = alice.let_in(&client, &url).await;
    assert_eq!(ping(&gateway, &url, &again.access_token).await.status, 200);
}

#[tokio::test]
async fn brk25_16_only_the_protocols_headers_go_on_and_what_was_written_for_the_server() {
    let upstream = Upstream::open().await;
    let gateway = builder().start().await;
    let mut alice = Person::sign_in(&gateway, "alice").await;
    let client = Client::register(&gateway).await;
    let key = support::secret("api-key");
    let auth = json!({"mode": "static_headers", "headers": [
        {"name": "X-Api-Key", "value": key}, {"name": "Authorization", "value": format!("Bearer {key}")},
    ]});
    let headers = json!([{"name": "X-Tenant", "value": "acme"}]);
    let added = alice.add(None, &upstream, json!({"auth": auth, "headers": headers})).await;
    assert!(!added.to_string().contains(&key), "secrets are written and never read");
    let url = address(&added).to_owned();
    let tokens = alice.let_in(&client, &url).await;
    let mut call = call_at(&gateway, &url, &tokens.access_token);
    for (name, value) in [
        ("cookie", "a=b"),
        ("x-api-key", "of the client"),
        ("x-tenant", "of the client"),
        ("x-auth-token", "of the client"),
        ("x-anything", "of the client"),
        ("user-agent", "of the client"),
        ("mcp-param-a", "1"),
        ("last-event-id", "7"),
    ] {
        call = call.and_header(name, value);
    }
    assert_eq!(call.call("ping", json!({})).await.status, 200);
    let seen = upstream.calls().pop().unwrap();
    for (name, value) in [
        ("x-api-key", Some(key.as_str())),
        ("authorization", Some(&*format!("Bearer {key}"))),
        ("x-tenant", Some("acme")),
        ("mcp-param-a", Some("1")),
        ("last-event-id", Some("7")),
        ("content-type", Some("application/json")),
        ("cookie", None),
        ("x-auth-token", None),
        ("x-anything", None),
        ("user-agent", None),
    ] {
        assert_eq!(seen.header(name).as_deref(), value, "{name}");
    }
    upstream.assert_never_saw(&[&tokens.access_token]);
    let change = async |body: Value| {
        alice.ask("PATCH", &format!("/configurations/{}", id(&added))).with(body).send().await.status
    };
    for name in
        ["Host", "X-Forwarded-Host", "CF-Connecting-IP", "Cookie", "Connection", "Mcp-Session-Id", "a b"]
    {
        let auth = json!({"mode": "static_headers", "headers": [{"name": name, "value": "x"}]});
        assert_eq!(change(json!({"auth": auth})).await, 422, "{name}");
        assert_eq!(change(json!({"headers": [{"name": name, "value": "x"}]})).await, 422, "{name}");
    }
    assert_eq!(change(json!({"headers": [{"name": "X-Api-Key", "value": "x"}]})).await, 422);
    gateway.output.assert_no_secret();
}

#[tokio::test]
async fn brk25_17_a_page_of_another_origin_gets_nowhere() {
    let upstream = Upstream::open().await;
    let gateway = builder().with("server.allowed_origins", json!(["https://app.example"])).start().await;
    let mut alice = Person::sign_in(&gateway, "alice").await;
    let client = Client::register(&gateway).await;
    let added = alice.add(None, &upstream, json!({"auth": {"mode": "none"}})).await;
    let url = address(&added).to_owned();
    let tokens = alice.let_in(&client, &url).await;
    for (origin, status) in [("https://app.example", 200), ("https://evil.example", 403), ("null", 403)] {
        let call = call_at(&gateway, &url, &tokens.access_token).header("origin", origin);
        assert_eq!(call.call("ping", json!({})).await.status, status, "{origin}");
    }
}

#[tokio::test]
async fn brk25_18_nobody_adds_a_server_of_this_network() {
    let gateway = builder().start().await;
    let alice = Person::sign_in(&gateway, "alice").await;
    for url in [
        "https://10.0.0.1/mcp",
        "https://100.64.0.1/mcp",
        "https://169.254.169.254/mcp",
        "https://172.16.0.1/mcp",
        "https://192.0.0.1/mcp",
        "https://192.0.2.1/mcp",
        "https://192.88.99.1/mcp",
        "https://192.168.0.1/mcp",
        "https://198.18.0.1/mcp",
        "https://198.51.100.1/mcp",
        "https://203.0.113.1/mcp",
        "https://224.0.0.1/mcp",
        "https://255.255.255.255/mcp",
        "https://0.0.0.0/mcp",
        "https://127.0.0.2/mcp",
        "https://2130706434/mcp",
        "https://[::]/mcp",
        "https://[::1]/mcp",
        "https://[::ffff:10.0.0.1]/mcp",
        "https://[fc00::1]/mcp",
        "https://[fe80::1]/mcp",
        "https://[ff02::1]/mcp",
        "https://[2001:db8::1]/mcp",
        "https://[2001::1]/mcp",
        "https://[2002:a00:1::]/mcp",
        "https://[64:ff9b::a00:1]/mcp",
        "https://[3fff::1]/mcp",
        "https://localhost/mcp",
        "https://intranet/mcp",
        "http://server.example/mcp",
        "https://user:pw@server.example/mcp",
        "https://server.example/mcp?a=b",
        "https://server.example/mcp#a",
        "https://server.example/a/../mcp",
        "https://server.example/a%2fb",
        "ftp://server.example/",
        "server.example",
    ] {
        let body = json!({"name": "x", "url": url, "auth": {"mode": "none"}, "sharing": "single_user"});
        let answer = alice.ask("POST", "/configurations").with(body).send().await;
        assert_eq!(answer.status, 422, "{url}: {}", answer.body);
        let answer = alice.ask("POST", "/discover").with(json!({"url": url})).send().await;
        assert_eq!(answer.status, 422, "{url}: {}", answer.body);
    }
    assert_eq!(alice.get("/configurations").await["items"], json!([]));
}

#[tokio::test]
async fn brk25_19_nothing_is_followed_and_nothing_leads_out() {
    let (upstream, elsewhere) = (Upstream::open().await, Upstream::open().await);
    let gateway = builder().start().await;
    let mut alice = Person::sign_in(&gateway, "alice").await;
    let client = Client::register(&gateway).await;
    let none = json!({"auth": {"mode": "none"}, "passthrough": true});
    let added = alice.add(None, &upstream, none).await;
    let url = address(&added).to_owned();
    let tokens = alice.let_in(&client, &url).await;
    let location = elsewhere.url();
    let moved = [("location", location.as_str()), ("set-cookie", "a=b"), ("www-authenticate", "Basic")];
    upstream.answer_next(Answer::http(302, &moved, ""));
    let answer = ping(&gateway, &url, &tokens.access_token).await;
    // Returned, but not where to: a client that follows would show its token there.
    assert_eq!(answer.status, 302);
    for name in ["location", "set-cookie", "www-authenticate"] {
        assert_eq!(answer.header(name), None, "{name}");
    }
    assert!(elsewhere.calls().is_empty());

    let calls = upstream.requests.all().len();
    for below in ["/../x", "/%2e%2e/x", "/a%2fb", "/a%5cb", "/a\\b", "/a%00", "/%zz"] {
        let head = format!(
            "GET /{}{below} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\n\r\n",
            path(&url),
            gateway.address,
            tokens.access_token
        );
        let answer = exchange(gateway.address, head, PATIENCE).await.unwrap();
        assert!(matches!(answer.status, 400 | 404), "{below}: {}", answer.status);
    }
    for (query, status) in [
        ("a=1&b".to_owned(), 200),
        (format!("a={}", "v".repeat(4097)), 400),
        (format!("{}=1", "n".repeat(201)), 400),
        ("=1".to_owned(), 400),
    ] {
        let call = gateway.mcp(&format!("{}?{query}", path(&url))).bearer(&tokens.access_token);
        assert_eq!(call.call("ping", json!({})).await.status, status, "{}", &query[..4.min(query.len())]);
    }
    assert_eq!(upstream.requests.all().len(), calls + 1);
    let below = gateway.mcp(&format!("{}/below", path(&url))).bearer(&tokens.access_token);
    below.call("ping", json!({})).await;
    assert!(upstream.authorization.requests.all().pop().unwrap().path.ends_with("/mcp/below"));
}

#[tokio::test]
async fn brk25_20_a_program_gets_a_short_token_and_what_is_deleted_is_gone() {
    let upstream = Upstream::start().await;
    let gateway = builder().start().await;
    let mut alice = Person::sign_in(&gateway, "alice").await;
    let bob = Person::sign_in(&gateway, "bob").await;
    let client = Client::register(&gateway).await;
    let added = alice.add(None, &upstream, json!({})).await;
    let url = address(&added).to_owned();
    let mint = format!("/configurations/{}/token", id(&added));
    // Nobody is connected yet.
    assert_eq!(alice.ask("POST", &mint).send().await.status, 409);
    alice.let_in(&client, &url).await;
    let minted = alice.ask("POST", &mint).done(200).await;
    let token = minted["access_token"].as_str().unwrap();
    assert!(minted["expires_in"].as_u64().unwrap() <= 300 && minted.get("refresh_token").is_none());
    assert_eq!(minted["resource"], url);
    assert_eq!(ping(&gateway, &url, token).await.status, 200);
    assert_eq!(bob.ask("POST", &mint).send().await.status, 404, "and nobody else gets one");

    // One slot.
    let members = [("alice", "administrator"), ("bob", "member"), ("carol", "member")];
    let organization = alice.organization("Acme", &members).await;
    let single = alice.add(Some(&organization), &upstream, json!({"sharing": "single_user"})).await;
    alice.assign(&single, "bob").await;
    let slot = |user: &str| format!("/configurations/{}/assignments/{user}", id(&single));
    assert_eq!(alice.ask("PUT", &slot("carol")).send().await.status, 409);
    alice.unassign(&single, "bob").await;
    alice.assign(&single, "carol").await;
    // It becomes one for several, and one for one again, who keeps it.
    let share = async |sharing: &str, status: u16| {
        let change = alice.ask("PATCH", &format!("/configurations/{}", id(&single)));
        change.with(json!({"sharing": sharing})).done(status).await
    };
    share("multi_user", 200).await;
    alice.assign(&single, "bob").await;
    share("single_user", 409).await;
    alice.unassign(&single, "carol").await;
    share("single_user", 200).await;
    assert_eq!(alice.ask("PUT", &slot("carol")).send().await.status, 409);
    let own = alice.ask("PATCH", &format!("/configurations/{}", id(&added)));
    own.with(json!({"sharing": "multi_user"})).done(422).await;

    let of = format!("/configurations/{}", id(&added));
    alice.ask("DELETE", &of).done(204).await;
    assert_eq!(ping(&gateway, &url, token).await.status, 404);
    assert_eq!(alice.ask("GET", &of).send().await.status, 404);
    let dead = upstream.authorization.ledger(|ledger| ledger.families.iter().all(|family| family.dead));
    assert!(dead, "its connections are ended");
    let events = alice.get("/events?limit=200").await;
    let actions: Vec<_> =
        events["items"].as_array().unwrap().iter().map(|event| event["action"].as_str().unwrap()).collect();
    for action in ["configuration.create", "token.mint", "assignment.add", "configuration.delete"] {
        assert!(actions.contains(&action), "{action}: {actions:?}");
    }
    let blocked = events["items"].as_array().unwrap().iter().find(|event| event["actor"] == "bob").unwrap();
    assert_eq!((&blocked["action"], &blocked["outcome"]), (&json!("token.mint"), &json!("blocked")));
    let key = path(&url).rsplit_once('/').unwrap().1;
    for secret in [token, key] {
        assert!(!events.to_string().contains(secret) && !gateway.output.text().contains(secret));
    }
    gateway.output.assert_no_secret();
}

#[tokio::test]
async fn brk25_06_to_know_the_user_and_to_call_are_two_scopes_and_old_registrations_work() {
    let upstream = Upstream::open().await;
    let gateway = builder().start().await;
    let mut alice = Person::sign_in(&gateway, "alice").await;
    let added = alice.add(None, &upstream, json!({"auth": {"mode": "none"}})).await;
    let url = address(&added).to_owned();
    let redirect_uri = support::client::unused_redirect_uri();
    // One of the first clients, which has registered for the profile alone.
    let document =
        json!({"redirect_uris": [redirect_uri], "token_endpoint_auth_method": "none", "scope": "profile"});
    let registered = Client::register_with(&gateway, &document).await.json();
    let client = Client::known_as(&gateway, registered["client_id"].as_str().unwrap(), &redirect_uri);
    let request = client.authorization(path(&url)).with("scope", "profile");
    let callback = alice.browser.authorize(&redirect_uri, &request.url()).await;
    let tokens = client.redeem(&callback.code(), &request).await.tokens();
    assert_eq!(tokens.scope, "mcp:access profile");
    assert_eq!(ping(&gateway, &url, &tokens.access_token).await.status, 200);
    let about = async |token: &str| {
        let asked = gateway.http.get(gateway.url("/oauth/userinfo"));
        McpAnswer::of(asked.header("authorization", format!("Bearer {token}")).send().await.unwrap()).await
    };
    let said = about(&tokens.access_token).await;
    assert_eq!(said.json(), json!({"sub": "alice", "preferred_username": "alice"}));

    let narrow = async |scope: &str, refresh: &str| {
        client.token(&client.refreshment(refresh).with("scope", scope)).await.tokens()
    };
    let profile = narrow("profile", &tokens.refresh_token).await;
    assert_eq!(profile.scope, "profile");
    let access = narrow("mcp:access", &profile.refresh_token).await;
    assert_eq!(ping(&gateway, &url, &access.access_token).await.status, 200);
    let refused = ping(&gateway, &url, &profile.access_token).await;
    assert_eq!((refused.status, refused.challenge("error").as_deref()), (403, Some("insufficient_scope")));
    assert_eq!(refused.challenge("scope").as_deref(), Some("profile mcp:access"));
    assert_eq!(about(&profile.access_token).await.status, 200);
    let refused = about(&access.access_token).await;
    assert_eq!((refused.status, refused.challenge("scope").as_deref()), (403, Some("profile")));
    for token in ["", "x", &tokens.refresh_token] {
        assert_eq!(about(token).await.status, 401);
    }
}

#[tokio::test]
async fn brk25_04_who_loses_access_hears_no_more_of_a_stream() {
    let upstream = Upstream::open().await;
    let gateway = builder().start().await;
    let alice = Person::sign_in(&gateway, "alice").await;
    let mut bob = Person::sign_in(&gateway, "bob").await;
    let client = Client::register(&gateway).await;
    let members = [("alice", "administrator"), ("bob", "member")];
    let organization = alice.organization("Acme", &members).await;
    let added = alice.add(Some(&organization), &upstream, json!({"auth": {"mode": "none"}})).await;
    for end in ["unassign", "rotate", "disable"] {
        alice.assign(&added, "bob").await;
        let of = format!("/configurations/{}", id(&added));
        let url = address(&alice.get(&of).await).to_owned();
        let tokens = bob.let_in(&client, &url).await;
        let (feed, answer) = Answer::stream();
        upstream.answer_next(answer);
        let mut stream = call_at(&gateway, &url, &tokens.access_token).send("GET", None).await;
        feed.event("before");
        assert!(stream.chunk().await.unwrap().is_some(), "{end}");
        match end {
            "unassign" => alice.unassign(&added, "bob").await,
            "rotate" => drop(alice.ask("POST", &format!("{of}/rotate")).done(200).await),
            _ => drop(alice.ask("PATCH", &of).with(json!({"enabled": false})).done(200).await),
        }
        feed.event("after");
        assert!(stream.chunk().await.is_err(), "{end}: nothing more comes");
    }
}
