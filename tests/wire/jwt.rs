//! Access tokens that are JWTs (RFC 9068), for resource servers other than Postern.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::time::{Duration, Instant};

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use support::browser::Browser;
use support::client::{Client, Tokens};
use support::cluster::{Cluster, Shared, address_of, store_at};
use support::eventually;
use support::gateway::{Builder, Gateway, Route, restrict};
use support::key::Key;
use support::process::run;
use support::redis::Redis;
use support::upstream::Upstream;

const SECOND: Duration = Duration::from_secs(1);

fn builder(upstream: &Upstream) -> Builder {
    Gateway::builder()
        .route(Route::open("demo", upstream))
        .route(Route::open("other", upstream))
        .with("oauth_server.access_token_format", json!("jwt"))
}

async fn sign_in(gateway: &Gateway) -> (Client, Tokens) {
    let client = Client::register(gateway).await;
    let tokens = client.sign_in(&mut Browser::new().through(gateway), "demo").await;
    (client, tokens)
}

async fn status(gateway: &Gateway, route: &str, token: &str) -> u16 {
    gateway.mcp(route).bearer(token).tool("echo", json!({})).await.status
}

async fn published(gateway: &Gateway) -> Value {
    let answer = gateway.http.get(gateway.url("/oauth/jwks.json")).send().await.unwrap();
    serde_json::from_str(&answer.text().await.unwrap()).unwrap()
}

/// Head or claims of a token.
fn part(token: &str, index: usize) -> Value {
    let part = token.split('.').nth(index).unwrap();
    serde_json::from_slice(&BASE64URL_NOPAD.decode(part.as_bytes()).unwrap()).unwrap()
}

/// Whether another resource server takes the token, with the published keys.
fn is_taken(keys: &Value, token: &str, issuer: &str, audience: &str) -> bool {
    let keys = postern::jose::Keys::parse(keys.to_string().as_bytes()).unwrap();
    let audiences = [audience];
    let expected = postern::jose::Expected { issuer, audiences: Some(&audiences), types: &["at+jwt"] };
    keys.verify(token, &expected, std::time::SystemTime::now()).is_ok()
}

#[tokio::test]
async fn sr_as_50_a_token_says_what_rfc_9068_asks_for_and_anybody_verifies_it() {
    let upstream = Upstream::open().await;
    let gateway = builder(&upstream).start().await;
    let (client, tokens) = sign_in(&gateway).await;
    let token = &tokens.access_token;
    let head = part(token, 0);
    let keys = published(&gateway).await;
    assert_eq!((&head["typ"], &head["alg"]), (&json!("at+jwt"), &json!("ES256")));
    assert_eq!(keys["keys"].as_array().unwrap().len(), 1);
    assert_eq!((&keys["keys"][0]["kid"], &keys["keys"][0]["use"]), (&head["kid"], &json!("sig")));
    let claims = part(token, 1);
    for (name, value) in [
        ("iss", json!(gateway.public_url)),
        ("sub", json!("alice")),
        ("aud", json!(client.resource("demo"))),
        ("client_id", json!(client.id)),
        ("scope", json!("mcp:access")),
    ] {
        assert_eq!(claims[name], value, "{name}");
    }
    let (from, to) = (claims["iat"].as_u64().unwrap(), claims["exp"].as_u64().unwrap());
    assert_eq!(to - from, 600);
    let next = client.refresh(&tokens.refresh_token).await.tokens();
    assert_ne!(part(&next.access_token, 1)["jti"], claims["jti"]);
    assert!(is_taken(&keys, token, &gateway.public_url, &client.resource("demo")));
    assert!(!is_taken(&keys, token, &gateway.public_url, &client.resource("other")));
    // Here it works on its route alone, until it is taken back.
    for _ in 0..3 {
        assert_eq!(status(&gateway, "demo", token).await, 200);
    }
    assert_eq!(status(&gateway, "other", token).await, 401);
    client.revoke(&next.refresh_token).await;
    eventually(SECOND, async || status(&gateway, "demo", token).await == 401).await;
    gateway.output.assert_no_secret();
    assert!(!gateway.output.text().contains(token.as_str()), "a token in the log");
}

#[tokio::test]
async fn sr_t27_no_forged_token_is_taken() {
    let upstream = Upstream::open().await;
    let gateway = builder(&upstream).start().await;
    let (client, tokens) = sign_in(&gateway).await;
    let token = &tokens.access_token;
    let (head, claims) = (part(token, 0), part(token, 1));
    let parts: Vec<&str> = token.split('.').collect();
    let encoded = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let with = |document: &Value, name: &str, value: Value| {
        let mut document = document.clone();
        document[name] = value;
        document
    };
    let stranger = Key::new(head["kid"].as_str().unwrap());
    let mut forged = vec![
        ("nothing signed", format!("{}.{}.", parts[0], parts[1])),
        ("two parts", format!("{}.{}", parts[0], parts[1])),
        ("padded", format!("{}=.{}.{}", parts[0], parts[1], parts[2])),
        ("somebody else's key", stranger.sign(&claims)),
        (
            "other claims",
            format!("{}.{}.{}", parts[0], encoded(&with(&claims, "sub", json!("bob"))), parts[2]),
        ),
        (
            "a later end",
            format!("{}.{}.{}", parts[0], encoded(&with(&claims, "exp", json!(4_000_000_000_u64))), parts[2]),
        ),
        ("endless", format!("{}.{}.{}", parts[0], parts[1], "A".repeat(20_000))),
        ("zeros", format!("{}.{}.{}", parts[0], parts[1], BASE64URL_NOPAD.encode(&[0; 64]))),
    ];
    for algorithm in ["none", "None", "HS256", "RS256", "ES384", "EdDSA"] {
        let head = encoded(&with(&head, "alg", json!(algorithm)));
        forged.push(("another algorithm", format!("{head}.{}.{}", parts[1], parts[2])));
        forged.push(("another algorithm, unsigned", format!("{head}.{}.", parts[1])));
    }
    for (name, value) in
        [("typ", json!("JWT")), ("crit", json!(["exp"])), ("jwk", stranger.set()["keys"][0].clone())]
    {
        forged.push((
            "another head",
            format!("{}.{}.{}", encoded(&with(&head, name, value)), parts[1], parts[2]),
        ));
    }
    // The public key taken for a secret.
    let secret =
        ring::hmac::Key::new(ring::hmac::HMAC_SHA256, published(&gateway).await.to_string().as_bytes());
    let message = format!("{}.{}", encoded(&with(&head, "alg", json!("HS256"))), parts[1]);
    let signature = BASE64URL_NOPAD.encode(ring::hmac::sign(&secret, message.as_bytes()).as_ref());
    forged.push(("the public key as secret", format!("{message}.{signature}")));
    upstream.requests.clear();
    for (what, token) in forged {
        assert_eq!(status(&gateway, "demo", &token).await, 401, "{what}");
        // Too long for a form, or of nobody.
        let revoked = if token.len() > 16_000 { 400 } else { 200 };
        assert_eq!(client.revoke(&token).await.status, revoked, "{what}");
    }
    assert!(upstream.calls().is_empty());
    assert_eq!(status(&gateway, "demo", token).await, 200, "and the true one is");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_as_51_sr_t32_keys_overlap_and_rotate_without_a_restart() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::open().await);
    let shared = Shared::new(store_at(address_of(&redis)), vec![Route::open("demo", &upstream)])
        .with("oauth_server.access_token_format", json!("jwt"));
    let cluster = Cluster::of(2, shared).await;
    let (client, tokens) = cluster.sign_in(0).await;
    let before = part(&tokens.access_token, 0)["kid"].clone();
    assert_eq!(published(&cluster.instances[0]).await, published(&cluster.instances[1]).await);
    let file = cluster.instances[0].config_file();
    let rotated = run(&["keys", "rotate", "--access-tokens", "--config", file.to_str().unwrap()], &[]).await;
    assert_eq!(rotated.code, Some(0), "{}", rotated.stderr);
    // Published before it signs, so that whoever has fetched the set in between knows it.
    for instance in &cluster.instances {
        eventually(SECOND, async || published(instance).await["keys"].as_array().unwrap().len() == 2).await;
    }
    let (mut refresh_token, begun) = (tokens.refresh_token.clone(), Instant::now());
    let after = loop {
        let next = cluster.client_at(1, &client).refresh(&refresh_token).await.tokens();
        for instance in &cluster.instances {
            assert_eq!(status(instance, "demo", &next.access_token).await, 200);
            assert_eq!(status(instance, "demo", &tokens.access_token).await, 200);
        }
        let id = part(&next.access_token, 0)["kid"].clone();
        if id != before {
            break id;
        }
        assert!(begun.elapsed() < 15 * SECOND);
        refresh_token = next.refresh_token;
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(begun.elapsed() > 2 * SECOND, "{:?}", begun.elapsed());
    let keys = published(&cluster.instances[0]).await;
    let ids: Vec<&Value> = keys["keys"].as_array().unwrap().iter().map(|key| &key["kid"]).collect();
    assert_eq!(ids, [&after, &before]);
}

#[tokio::test]
async fn a_store_that_comes_back_empty_gets_the_keys_of_the_tokens_again() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::open().await);
    let shared = Shared::new(store_at(address_of(&redis)), vec![Route::open("demo", &upstream)])
        .with("oauth_server.access_token_format", json!("jwt"));
    let mut cluster = Cluster::of(1, shared).await;
    let (_, tokens) = cluster.sign_in(0).await;
    let before = published(&cluster.instances[0]).await;
    cluster.instances[0].stop().await;
    redis.kill();
    redis.again();
    assert_eq!(redis.cli(&["DBSIZE"]).trim(), "0", "nothing is left");
    // No memory has them, and no store.
    cluster.instances[0].restart().await;
    assert_eq!(published(&cluster.instances[0]).await, before);
    assert_eq!(status(&cluster.instances[0], "demo", &tokens.access_token).await, 200);
}

#[tokio::test]
async fn configured_keys_sign_and_formats_change_without_a_restart() {
    let upstream = Upstream::open().await;
    let directory = tempfile::tempdir().unwrap();
    let key = |id: &str, algorithm| {
        let file = directory.path().join(format!("{id}.pem"));
        std::fs::write(&file, rcgen::KeyPair::generate_for(algorithm).unwrap().serialize_pem()).unwrap();
        restrict(&file);
        json!({"id": id, "file": file})
    };
    let (first, second) = (key("s1", &rcgen::PKCS_ED25519), key("s2", &rcgen::PKCS_ECDSA_P256_SHA256));
    let gateway = Gateway::builder().route(Route::open("demo", &upstream)).start().await;
    assert_eq!(published(&gateway).await, json!({"keys": []}));
    let (client, sealed) = sign_in(&gateway).await;
    assert!(sealed.access_token.starts_with("postern_at_"));
    let ids = async || -> Vec<String> {
        let keys = published(&gateway).await;
        keys["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
    };
    gateway.reconfigure("oauth_server", json!({"access_token_format": "jwt", "signing_keys": [first]}));
    gateway.hang_up();
    eventually(SECOND, async || ids().await == ["s1"]).await;
    let signed = client.refresh(&sealed.refresh_token).await.tokens();
    assert_eq!(part(&signed.access_token, 0), json!({"typ": "at+jwt", "alg": "EdDSA", "kid": "s1"}));
    // Put in front, the next key signs; what the one before it signed goes on counting.
    gateway.reconfigure("oauth_server.signing_keys", json!([second, first]));
    gateway.hang_up();
    eventually(SECOND, async || ids().await == ["s2", "s1"]).await;
    let next = client.refresh(&signed.refresh_token).await.tokens();
    assert_eq!(part(&next.access_token, 0)["kid"], "s2");
    for token in [&sealed, &signed, &next] {
        assert_eq!(status(&gateway, "demo", &token.access_token).await, 200);
    }
    // Taken out, a key counts for nothing.
    gateway.reconfigure("oauth_server.signing_keys", json!([second]));
    gateway.hang_up();
    eventually(SECOND, async || status(&gateway, "demo", &signed.access_token).await == 401).await;
    assert_eq!(status(&gateway, "demo", &next.access_token).await, 200);
}

#[tokio::test]
async fn a_signing_key_that_cannot_sign_is_named() {
    let upstream = Upstream::open().await;
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str, private: bool| {
        let file = directory.path().join(name);
        std::fs::write(&file, text).unwrap();
        if private {
            restrict(&file);
        }
        json!({"id": "s1", "file": file})
    };
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap().serialize_pem();
    let p256 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap().serialize_pem();
    for (key, said) in [
        (write("a", "nonsense", true), "holds no key that we sign with; make one: openssl genpkey"),
        (write("b", &p384, true), "holds no key that we sign with"),
        (write("c", &p256, false), "is readable by others"),
        (json!({"id": "s 1", "file": "/nowhere"}), "is not a key id"),
    ] {
        let gateway = builder(&upstream).with("oauth_server.signing_keys", json!([key])).prepare();
        let file = gateway.config_file();
        let refused = run(&["validate", "--config", file.to_str().unwrap()], &[]).await;
        assert_eq!(refused.code, Some(78));
        let text = refused.stdout + &refused.stderr;
        assert!(text.contains(said), "{said}: {text}");
    }
}
