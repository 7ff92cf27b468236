//! The management API over HTTP: what every endpoint does, and that nobody gets anywhere by it who has no business there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::time::SystemTime;

use serde_json::{Value, json};
use support::browser::Browser;
use support::cookies::Site;
use support::gateway::{Builder, Gateway, PASSWORD_HASH};
use support::process::run;
use support::upstream::Upstream;

const USERS: [&str; 5] = ["alice", "bob", "carol", "dave", "erin"];

/// A gateway where people add servers; Alice administers it.
fn builder() -> Builder {
    let users = USERS.map(|name| json!({"username": name, "password_hash": PASSWORD_HASH}));
    Gateway::builder()
        .with("login.local.users", json!(users))
        .with("managed", json!({"administrators": ["alice"], "allow_hosts": ["127.0.0.1"]}))
}

/// Somebody who asks.
#[derive(Clone)]
struct Api {
    http: reqwest::Client,
    root: String,
    headers: Vec<(&'static str, String)>,
}

struct Answered {
    status: u16,
    json: Value,
    headers: reqwest::header::HeaderMap,
}

impl Api {
    fn nobody(gateway: &Gateway) -> Self {
        Api { http: gateway.http.clone(), root: gateway.url("/api/v1"), headers: Vec::new() }
    }

    fn bearer(gateway: &Gateway, token: &str) -> Self {
        Self::nobody(gateway).with("authorization", &format!("Bearer {token}"))
    }

    /// A page of this origin, in the browser of somebody who has signed in.
    async fn of(gateway: &Gateway, user: &str) -> Self {
        let mut browser = Browser::of(user);
        let page = browser.go(&gateway.url("/connections")).await.page();
        browser.sign_in(&page).await.page();
        let url = gateway.url("/").parse().unwrap();
        let cookie = browser.jar.header(&url, "GET", Site::Origin, SystemTime::now()).unwrap();
        let reader = Self::nobody(gateway).with("cookie", &cookie);
        let known = reader.get("/connections").await;
        assert_eq!((known.status, &known.json["user"]), (200, &json!(user)), "{}", known.json);
        let csrf = known.json["csrf"].as_str().unwrap().to_owned();
        reader.with("sec-fetch-site", "same-origin").with("x-csrf-token", &csrf)
    }

    /// With a header more, or another one.
    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value.to_owned()));
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self
    }

    fn and(&self, name: &'static str, value: &str) -> Self {
        self.clone().with(name, value)
    }

    async fn raw(&self, method: &str, path: &str, body: Option<(&str, String)>) -> Answered {
        let url = format!("{}{path}", self.root);
        let mut request = self.http.request(method.parse().unwrap(), url);
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        if let Some((kind, body)) = body {
            request = request.header("content-type", kind).body(body);
        }
        let answer = request.send().await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let text = answer.text().await.unwrap();
        let json = serde_json::from_str(&text).unwrap_or_default();
        Answered { status, json, headers }
    }

    async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Answered {
        self.raw(method, path, body.map(|body| ("application/json", body.to_string()))).await
    }

    async fn get(&self, path: &str) -> Answered {
        self.send("GET", path, None).await
    }

    async fn post(&self, path: &str, body: &Value) -> Answered {
        self.send("POST", path, Some(body)).await
    }

    async fn patch(&self, path: &str, body: &Value) -> Answered {
        self.send("PATCH", path, Some(body)).await
    }

    async fn put(&self, path: &str, body: &Value) -> Answered {
        self.send("PUT", path, Some(body)).await
    }

    async fn delete(&self, path: &str) -> Answered {
        self.send("DELETE", path, None).await
    }

    async fn make_organization(&self, name: &str) -> String {
        self.post("/organizations", &json!({"name": name})).await.id()
    }

    async fn make_configuration(&self, body: &Value) -> String {
        self.post("/configurations", body).await.id()
    }
}

impl Answered {
    #[track_caller]
    fn is(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.json);
        self.json
    }

    #[track_caller]
    fn id(self) -> String {
        assert_eq!(self.status, 201, "{}", self.json);
        let id = self.json["id"].as_str().unwrap().to_owned();
        assert!(self.header("location").ends_with(&id));
        id
    }

    #[track_caller]
    fn header(&self, name: &str) -> String {
        let value = self.headers.get(name).unwrap_or_else(|| panic!("no {name}: {}", self.json));
        value.to_str().unwrap().to_owned()
    }

    fn tag(&self) -> String {
        self.header("etag")
    }

    /// Refused in the form of RFC 9457.
    #[track_caller]
    fn refused(&self, status: u16, kind: &str) -> &Value {
        let kind = format!("urn:postern:problem:{kind}");
        assert_eq!((self.status, self.json["type"].as_str()), (status, Some(&*kind)), "{}", self.json);
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(self.json["status"], status);
        assert!(self.json["request_id"].as_str().is_some_and(|id| id.len() > 3), "{}", self.json);
        &self.json
    }
}

fn open_server(upstream: &Upstream, organization: Option<&str>) -> Value {
    let mut body = json!({
        "name": "Files", "url": upstream.url(), "auth": {"mode": "none"}, "sharing": "single_user",
    });
    if let Some(organization) = organization {
        body["organization"] = json!(organization);
        body["sharing"] = json!("multi_user");
    }
    body
}

#[tokio::test]
async fn organisations_and_their_members() {
    let gateway = builder().start().await;
    let (alice, bob) = (Api::of(&gateway, "alice").await, Api::of(&gateway, "bob").await);
    let made = alice.post("/organizations", &json!({"name": " Works "})).await;
    assert_eq!((made.status, made.tag()), (201, "\"1\"".into()), "{}", made.json);
    assert_eq!(made.json["name"], "Works");
    assert!(made.json["created_at"].as_str().unwrap().ends_with('Z'));
    for (name, value) in [
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        ("cross-origin-resource-policy", "same-origin"),
        ("content-type", "application/json"),
    ] {
        assert_eq!(made.header(name), value);
    }
    let id = made.id();
    let at = format!("/organizations/{id}");

    bob.post("/organizations", &json!({"name": "His"})).await.refused(403, "forbidden");
    bob.get(&at).await.refused(404, "not-found");
    assert_eq!(bob.get("/organizations").await.is(200)["items"], json!([]));
    let put = alice.put(&format!("{at}/members/bob"), &json!({"role": "member"})).await.is(200);
    assert_eq!(
        (&put["user"], &put["segment"], &put["role"]),
        (&json!("bob"), &json!("bob"), &json!("member"))
    );
    assert_eq!(bob.get(&at).await.is(200)["id"], json!(id));
    bob.patch(&at, &json!({"name": "His"})).await.refused(403, "forbidden");
    alice.put(&format!("{at}/members/bob"), &json!({"role": "administrator"})).await.is(200);
    let renamed = bob.patch(&at, &json!({"name": "His"})).await;
    assert_eq!((renamed.tag().as_str(), &renamed.json["name"]), ("\"2\"", &json!("His")));
    let members = bob.get(&format!("{at}/members")).await.is(200);
    let names: Vec<_> = members["items"].as_array().unwrap().iter().map(|member| &member["user"]).collect();
    assert_eq!(names, ["alice", "bob"]);
    alice.put(&format!("{at}/members/mallory"), &json!({"role": "member"})).await.refused(422, "invalid");
    alice.put(&format!("{at}/members/bob"), &json!({"role": "king"})).await.refused(422, "invalid");
    // A name that cannot stand in a path.
    let carol = data_encoding::BASE64URL_NOPAD.encode(b"carol");
    let put = alice.put(&format!("{at}/members/~{carol}"), &json!({"role": "member"})).await.is(200);
    assert_eq!(put["user"], "carol");

    assert_eq!(alice.delete(&format!("{at}/members/carol")).await.status, 204);
    alice.delete(&format!("{at}/members/carol")).await.refused(404, "not-found");
    assert_eq!(alice.delete(&format!("{at}/members/alice")).await.status, 204);
    // The last administrator stays, but for the gateway's.
    bob.delete(&format!("{at}/members/bob")).await.refused(409, "conflict");
    let gone = bob.delete(&at).await;
    assert_eq!((gone.status, gone.json), (204, json!(null)));
    bob.get(&at).await.refused(404, "not-found");
    alice.get(&at).await.refused(404, "not-found");
}

#[tokio::test]
async fn people_of_a_provider_have_a_place_in_paths() {
    let provider = json!({
        "name": "corp", "issuer": "https://idp.example.com", "client_id": "c", "client_secret": "CANARY_idp",
    });
    let gateway = builder().with("login.oidc", json!([provider])).start().await;
    let alice = Api::of(&gateway, "alice").await;
    let members = format!("/organizations/{}/members", alice.make_organization("Works").await);
    let role = json!({"role": "member"});
    let segment = |user: &str| format!("~{}", data_encoding::BASE64URL_NOPAD.encode(user.as_bytes()));
    let person = "https://idp.example.com|a/b 1";
    let put = alice.put(&format!("{members}/{}", segment(person)), &role).await.is(200);
    assert_eq!((&put["user"], &put["segment"]), (&json!(person), &json!(segment(person))));
    assert_eq!(alice.get(&members).await.is(200)["items"][1], put);
    assert_eq!(alice.delete(&format!("{members}/{}", segment(person))).await.status, 204);
    // Longer than the store could keep it, and what nobody is called.
    let long = format!("https://idp.example.com|{}", "x".repeat(1_500));
    for nobody in [segment(&long), segment("https://idp.example.com|a\0b"), "~x!".into(), "~".into()] {
        alice.put(&format!("{members}/{nobody}"), &role).await.refused(404, "not-found");
    }
    assert_eq!(alice.get(&members).await.is(200)["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_configuration_from_its_making_to_its_end() {
    let (gateway, open) = (builder().start().await, Upstream::open().await);
    let (alice, bob) = (Api::of(&gateway, "alice").await, Api::of(&gateway, "bob").await);
    let seen = bob.post("/discover", &json!({"url": open.url()})).await.is(200);
    assert_eq!((&seen["mode"], &seen["registration"]), (&json!("none"), &json!("none")));
    let organization = alice.make_organization("Works").await;
    let id = alice.make_configuration(&open_server(&open, Some(&organization))).await;
    let at = format!("/configurations/{id}");
    let made = alice.get(&at).await;
    assert_eq!((made.tag(), &made.json["organization"]), ("\"1\"".into(), &json!(organization)));
    let address = made.json["route"]["url"].as_str().unwrap().to_owned();
    assert!(address.contains(&format!("/connect/org/{organization}/{id}/")), "{address}");
    let listed = alice.get(&format!("/configurations?organization={organization}")).await.is(200);
    assert_eq!(listed["items"][0], made.json);
    assert_eq!(alice.get("/configurations").await.is(200)["items"], json!([]), "nothing is her own");

    // Nobody uses it who is not assigned, nor is anybody assigned who is no member.
    let assignment = format!("{at}/assignments/bob");
    alice.send("PUT", &assignment, None).await.refused(409, "conflict");
    bob.send("POST", &format!("{at}/token"), None).await.refused(404, "not-found");
    let member = json!({"role": "member"});
    alice.put(&format!("/organizations/{organization}/members/bob"), &member).await.is(200);
    assert_eq!(alice.send("PUT", &assignment, None).await.is(200)["user"], "bob");
    assert_eq!(alice.get(&format!("{at}/assignments")).await.is(200)["items"][0]["segment"], "bob");
    let available = bob.get("/available").await.is(200);
    let available = &available["items"][0];
    assert_eq!((&available["configuration"], &available["url"]), (&json!(id), &json!(address)));
    assert_eq!((&available["state"], &available["name"]), (&json!("not_needed"), &json!("Files")));

    // A token of five minutes works there.
    let token = bob.send("POST", &format!("{at}/token"), None).await.is(200);
    assert_eq!((&token["token_type"], &token["expires_in"]), (&json!("Bearer"), &json!(300)));
    assert_eq!(token["resource"], json!(address));
    let path = address.strip_prefix(&gateway.public_url).unwrap().strip_prefix('/').unwrap().to_owned();
    let call = async |path: &str, token: &Value| {
        gateway
            .mcp(path)
            .bearer(token["access_token"].as_str().unwrap())
            .tool("whoami", json!({}))
            .await
            .status
    };
    assert_eq!(call(&path, &token).await, 200);

    // What is called otherwise leads to the same place; another address is another one.
    let changed = alice.patch(&at, &json!({"name": "Archive", "passthrough": true})).await;
    assert_eq!(
        (changed.tag().as_str(), &changed.json["name"]),
        ("\"2\"", &json!("Archive")),
        "{}",
        changed.json
    );
    assert_eq!(call(&path, &token).await, 200);
    let rotated = alice.send("POST", &format!("{at}/rotate"), None).await;
    assert_eq!(rotated.json["route"]["version"], 2, "{}", rotated.json);
    assert_eq!(call(&path, &token).await, 404);
    let fresh = bob.send("POST", &format!("{at}/token"), None).await.is(200);
    let next = rotated.json["route"]["url"].as_str().unwrap();
    let next = next.strip_prefix(&gateway.public_url).unwrap().strip_prefix('/').unwrap();
    assert_eq!((call(next, &token).await, call(next, &fresh).await), (401, 200));

    alice.patch(&at, &json!({"enabled": false})).await.is(200);
    assert_eq!(call(next, &fresh).await, 404);
    alice.patch(&at, &json!({"enabled": true})).await.is(200);
    assert_eq!(alice.delete(&assignment).await.status, 204);
    assert_eq!(call(next, &fresh).await, 401);
    assert_eq!(alice.delete(&at).await.status, 204);
    alice.get(&at).await.refused(404, "not-found");
    assert_eq!(bob.get("/available").await.is(200)["items"], json!([]));
    gateway.output.assert_no_secret();
}

#[tokio::test]
async fn a_personal_configuration_and_its_secrets() {
    let (gateway, upstream, open) =
        (builder().start().await, Upstream::start().await, Upstream::open().await);
    let (bob, alice) = (Api::of(&gateway, "bob").await, Api::of(&gateway, "alice").await);
    let auth = json!({"mode": "static_headers", "headers": [{"name": "X-Api-Key", "value": "CANARY_key"}]});
    let mut body = open_server(&open, None);
    body["auth"] = auth.clone();
    body["headers"] = json!([{"name": "X-Tenant", "value": "blue"}]);
    let id = bob.make_configuration(&body).await;
    let at = format!("/configurations/{id}");
    let made = bob.get(&at).await.is(200);
    assert_eq!(made["auth"], json!({"mode": "static_headers", "headers": ["X-Api-Key"]}));
    assert_eq!(made["headers"], json!([{"name": "X-Tenant", "value": "blue"}]));
    assert_eq!((&made["user"], &made["organization"]), (&json!("bob"), &json!(null)));
    assert!(!made.to_string().contains("CANARY"));
    // It is his alone: an administrator of the gateway sees no more of it than that anybody's would be there.
    alice.get(&at).await.refused(404, "not-found");
    assert_eq!(bob.get("/available").await.is(200)["items"][0]["configuration"], json!(id));
    bob.send("PUT", &format!("{at}/assignments/carol"), None).await.refused(409, "conflict");

    // A secret goes nowhere but where it was written for.
    let elsewhere = Upstream::open().await;
    let moved = json!({"url": elsewhere.url()});
    assert_eq!(bob.patch(&at, &moved).await.refused(422, "invalid")["errors"][0]["pointer"], "#/auth");
    let kept = json!({"url": elsewhere.url(), "auth": {"mode": "static_headers", "headers": [{"name": "x-api-key"}]}});
    bob.patch(&at, &kept).await.refused(422, "invalid");
    assert!(elsewhere.calls().is_empty(), "nothing was asked there");
    let named = json!({"auth": {"mode": "static_headers", "headers": [{"name": "X-Api-Key"}, {"name": "X-More", "value": "CANARY_more"}]}});
    assert_eq!(bob.patch(&at, &named).await.is(200)["auth"]["headers"], json!(["X-Api-Key", "X-More"]));
    bob.patch(&at, &json!({"url": elsewhere.url(), "auth": auth})).await.is(200);

    // A client of one's own, whose secret is a fact and no value.
    let body = json!({
        "name": "Own", "url": upstream.url(), "scopes": ["files:read"],
        "auth": {"mode": "oauth_static", "client_id": "c1", "client_secret": "CANARY_client"},
    });
    let made = bob.post("/configurations", &body).await;
    assert_eq!(
        made.json["auth"],
        json!({"mode": "oauth_static", "client_id": "c1", "has_client_secret": true})
    );
    let own = format!("/configurations/{}", made.id());
    assert_eq!(bob.patch(&own, &json!({"scopes": null})).await.is(200)["scopes"], json!(null));
    bob.patch(&own, &json!({"url": open.url()})).await.refused(422, "invalid");
    bob.patch(&own, &json!({"name": null})).await.refused(422, "invalid");
    let wants = json!({"name": "No", "url": upstream.url(), "auth": {"mode": "none"}});
    bob.post("/configurations", &wants).await.refused(422, "unusable");
    let state = bob.get("/available").await.is(200);
    let item = state["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|item| own.ends_with(item["configuration"].as_str().unwrap()));
    assert_eq!(item.unwrap()["state"], "not_connected");
    bob.send("POST", &format!("{own}/token"), None).await.refused(409, "conflict");
    gateway.output.assert_no_secret();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_those_who_change_the_same_version_one_does() {
    let (gateway, open) = (builder().start().await, Upstream::open().await);
    let alice = Api::of(&gateway, "alice").await;
    let organization = alice.make_organization("Works").await;
    let at_organization = format!("/organizations/{organization}");
    let id = alice.make_configuration(&open_server(&open, Some(&organization))).await;
    let at = format!("/configurations/{id}");

    for path in [&at, &at_organization] {
        let tag = alice.get(path).await.tag();
        let known = alice.and("if-none-match", &tag).get(path).await;
        assert_eq!((known.status, known.tag(), known.json), (304, tag.clone(), json!(null)));
        assert_eq!(alice.and("if-none-match", "\"99\"").get(path).await.status, 200);
        let claims = (0..6).map(|number| {
            let (api, path) = (alice.and("if-match", &tag), path.clone());
            tokio::spawn(async move { api.patch(&path, &json!({"name": format!("n{number}")})).await })
        });
        let (mut won, mut stale) = (0, 0);
        for claim in claims.collect::<Vec<_>>() {
            let answer = claim.await.unwrap();
            match answer.status {
                200 => won += 1,
                _ => {
                    answer.refused(412, "stale");
                    stale += 1;
                }
            }
        }
        assert_eq!((won, stale), (1, 5));
        for other in ["\"1\"", "W/\"2\"", "2", "\"x\""] {
            alice.and("if-match", other).patch(path, &json!({"name": "never"})).await.refused(412, "stale");
        }
        alice.and("if-match", "*").patch(path, &json!({"name": "any"})).await.is(200);
    }
    alice.and("if-match", "\"1\"").send("POST", &format!("{at}/rotate"), None).await.refused(412, "stale");
    for path in [&at, &at_organization] {
        alice.and("if-match", "\"1\"").delete(path).await.refused(412, "stale");
        let tag = alice.get(path).await.tag();
        assert_eq!(alice.and("if-match", &tag).delete(path).await.status, 204);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_twice_under_one_key_is_done_once() {
    let gateway = builder().start().await;
    let alice = Api::of(&gateway, "alice").await;
    let count = async || alice.get("/organizations").await.is(200)["items"].as_array().unwrap().len();
    let keyed = alice.and("idempotency-key", "\"first\"");
    let (body, other) = (json!({"name": "Works"}), json!({"name": "Others"}));
    let first = keyed.post("/organizations", &body).await;
    let again = keyed.post("/organizations", &body).await;
    assert_eq!((first.status, again.status, first.tag()), (201, 201, again.tag()));
    assert_eq!((&first.json, first.header("location")), (&again.json, again.header("location")));
    assert_eq!(count().await, 1);
    keyed.post("/organizations", &other).await.refused(422, "idempotency-key-reused");
    keyed.post("/tokens", &body).await.refused(422, "idempotency-key-reused");
    for bad in ["", &"k".repeat(256)] {
        alice.and("idempotency-key", bad).post("/organizations", &body).await.refused(400, "malformed");
    }

    // Somebody else's key is another one, and what failed is tried again.
    let bob = Api::of(&gateway, "bob").await.with("idempotency-key", "\"first\"");
    bob.post("/organizations", &body).await.refused(403, "forbidden");
    let failed = alice.and("idempotency-key", "later");
    failed.post("/organizations", &json!({"name": ""})).await.refused(422, "invalid");
    failed.post("/organizations", &other).await.is(201);
    assert_eq!(count().await, 2);

    let racing = alice.and("idempotency-key", "race");
    let tries = (0..8).map(|_| {
        let (api, body) = (racing.clone(), body.clone());
        tokio::spawn(async move { api.post("/organizations", &body).await })
    });
    let mut made = std::collections::BTreeSet::new();
    for one in tries.collect::<Vec<_>>() {
        let answer = one.await.unwrap();
        match answer.status {
            201 => drop(made.insert(answer.json["id"].as_str().unwrap().to_owned())),
            _ => drop(answer.refused(409, "conflict").clone()),
        }
    }
    assert_eq!((made.len(), count().await), (1, 3));
}

#[tokio::test]
async fn lists_come_in_parts() {
    let gateway = builder().start().await;
    let alice = Api::of(&gateway, "alice").await;
    let mut made = Vec::new();
    for number in 0..5 {
        made.push(alice.make_organization(&format!("n{number}")).await);
    }
    made.sort();
    let (mut seen, mut path) = (Vec::new(), "/organizations?limit=2".to_owned());
    loop {
        let page = alice.get(&path).await.is(200);
        let items = page["items"].as_array().unwrap();
        assert!(items.len() <= 2 && !items.is_empty());
        seen.extend(items.iter().map(|item| item["id"].as_str().unwrap().to_owned()));
        match page["next"].as_str() {
            Some(next) => path = format!("/organizations?limit=2&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, made);

    // Events, the newest first.
    let first = alice.get("/events?limit=3&action=organization.create").await.is(200);
    let next = first["next"].as_str().unwrap();
    let second =
        alice.get(&format!("/events?limit=3&action=organization.create&cursor={next}")).await.is(200);
    let of = |page: &Value| -> Vec<String> {
        let items = page["items"].as_array().unwrap();
        items.iter().map(|event| event["organization"].as_str().unwrap().to_owned()).collect()
    };
    let mut events = [of(&first), of(&second)].concat();
    assert_eq!((events.len(), &second["next"]), (5, &json!(null)));
    events.sort();
    assert_eq!(events, made);
    let event = &first["items"][0];
    assert_eq!((&event["actor"], &event["outcome"]), (&json!("alice"), &json!("success")));
    assert!(event["request_id"].as_str().unwrap().len() > 3);

    for bad in ["limit=0", "limit=201", "limit=x", "cursor=%20", "unknown=1", "limit=1&limit=2"] {
        alice.get(&format!("/organizations?{bad}")).await.refused(400, "malformed");
    }
}

#[tokio::test]
async fn what_is_not_asked_for_is_refused() {
    let (gateway, open) = (builder().start().await, Upstream::open().await);
    let alice = Api::of(&gateway, "alice").await;
    let at = "/organizations";
    let raw = async |kind: &str, body: &str| alice.raw("POST", at, Some((kind, body.to_owned()))).await;
    raw("application/json", "{\"name\": ").await.refused(400, "malformed");
    raw("application/json", "{\"name\": \"x\"} {}").await.refused(400, "malformed");
    raw("text/plain", "{\"name\": \"x\"}").await.refused(415, "unsupported-media-type");
    raw("application/json", &format!("{{\"name\": \"{}\"}}", "x".repeat(50_000)))
        .await
        .refused(413, "too-large");
    raw("application/json", "").await.refused(400, "malformed");
    for body in
        [json!({"name": "x", "more": 1}), json!({}), json!({"name": 1}), json!([]), json!({"name": "x\u{7}"})]
    {
        alice.post(at, &body).await.refused(422, "invalid");
    }
    raw("application/json", "{\"name\": \"a\", \"name\": \"b\"}").await.refused(422, "invalid");
    let head = alice.send("HEAD", at, None).await;
    assert_eq!((head.status, head.json), (200, json!(null)));
    let wrong = alice.send("PUT", at, None).await;
    wrong.refused(405, "method-not-allowed");
    assert_eq!(wrong.header("allow"), "GET, POST");
    alice.get(&format!("{at}/nothing")).await.refused(404, "not-found");
    alice.get(&format!("{at}/{}", "x".repeat(2_000))).await.refused(404, "not-found");
    alice.get(&format!("/configurations/{}", "x".repeat(2_000))).await.refused(404, "not-found");
    alice.get("/configurations/nothing?x=1").await.refused(400, "malformed");
    for (member, value) in [
        ("auth", json!({"mode": "none", "headers": []})),
        ("auth", json!({"mode": "magic"})),
        ("auth", json!({"mode": "static_headers", "headers": [{"name": "Host", "value": "x"}]})),
        ("auth", json!({"mode": "static_headers", "headers": []})),
        ("headers", json!([{"name": "Authorization", "value": "x"}])),
        ("sharing", json!("everybody")),
        ("url", json!("http://169.254.169.254/latest")),
        ("url", json!("https://localhost/mcp")),
        ("url", json!("https://user:pw@example.com/mcp")),
        ("scopes", json!(["a b"])),
        ("unknown", json!(1)),
    ] {
        let mut body = open_server(&open, None);
        body[member] = value.clone();
        let refused = alice.post("/configurations", &body).await;
        refused.refused(422, "invalid");
    }
    alice.post("/discover", &json!({"url": "https://10.0.0.1/mcp"})).await.refused(422, "unusable");
    // Nothing of it was done.
    assert_eq!(alice.get("/configurations").await.is(200)["items"], json!([]));
    assert_eq!(alice.get(at).await.is(200)["items"], json!([]));
}

#[tokio::test]
async fn a_foreign_page_does_nothing() {
    let gateway = builder().start().await;
    let alice = Api::of(&gateway, "alice").await;
    let body = json!({"name": "Works"});
    for api in [
        alice.clone().without("x-csrf-token"),
        alice.and("x-csrf-token", "guessed"),
        alice.and("sec-fetch-site", "cross-site"),
        alice.and("sec-fetch-site", "same-site"),
        alice.and("sec-fetch-site", "none"),
        alice.clone().without("sec-fetch-site"),
        alice.clone().without("sec-fetch-site").with("origin", "https://evil.example"),
    ] {
        api.post("/organizations", &body).await.refused(403, "forged");
    }
    for site in ["cross-site", "same-site"] {
        alice.and("sec-fetch-site", site).get("/organizations").await.refused(403, "forged");
    }
    let preflight = Api::nobody(&gateway)
        .with("origin", "https://evil.example")
        .send("OPTIONS", "/organizations", None)
        .await;
    assert!(preflight.status == 405 && !preflight.headers.contains_key("access-control-allow-origin"));
    assert_eq!(alice.get("/organizations").await.is(200)["items"], json!([]));
    let origin = alice.clone().without("sec-fetch-site").with("origin", &gateway.public_url);
    origin.post("/organizations", &body).await.is(201);
}

/// The same with programs: what their accounts are made with → their tokens.
async fn with_programs<const N: usize>(accounts: [&[&str]; N]) -> (Gateway, [Api; N]) {
    let mut gateway = builder().prepare();
    let mut tokens = Vec::new();
    for words in accounts {
        let made = command(&gateway, &[&["service-accounts", "create"], words].concat()).await;
        tokens.push(made.trim().to_owned());
    }
    gateway.spawn();
    gateway.ready().await;
    let programs: Vec<_> = tokens.iter().map(|token| Api::bearer(&gateway, token)).collect();
    (gateway, programs.try_into().ok().unwrap())
}

/// What a command says that does what it is told.
async fn command(gateway: &Gateway, words: &[&str]) -> String {
    let file = gateway.config_file();
    let finished = run(&[words, &["--config", file.to_str().unwrap()]].concat(), &[]).await;
    assert_eq!(finished.code, Some(0), "{}{}", finished.stdout, finished.stderr);
    finished.stdout
}

#[tokio::test]
async fn tokens_are_good_for_their_scopes_and_nothing_else() {
    let scopes = "connections:read,connections:write";
    let own = ["for-bob", "--api", "connections:read", "--acts-for", "bob"];
    let (mut gateway, [program, own]) = with_programs([&["ops", "--api", scopes], &own]).await;
    let open = Upstream::open().await;
    let (alice, bob) = (Api::of(&gateway, "alice").await, Api::of(&gateway, "bob").await);
    let none = Api::nobody(&gateway).get("/organizations").await;
    none.refused(401, "unauthorized");
    assert_eq!(none.header("www-authenticate"), "Bearer");
    for bad in ["nonsense", "postern_at_AAAA", "postern_st_nobody"] {
        let refused = Api::bearer(&gateway, bad).get("/organizations").await;
        refused.refused(401, "unauthorized");
        assert_eq!(refused.header("www-authenticate"), "Bearer error=\"invalid_token\"");
    }
    // A token counts, and not the cookie beside it.
    alice.and("authorization", "Bearer nonsense").get("/organizations").await.refused(401, "unauthorized");

    // A short one of a user's own.
    for bad in [
        json!({"scopes": []}),
        json!({"scopes": ["mcp:access"]}),
        json!({"scopes": ["connections:read"], "lifetime_seconds": 901}),
        json!({"scopes": ["connections:read"], "lifetime_seconds": 0}),
    ] {
        bob.post("/tokens", &bad).await.refused(422, "invalid");
    }
    let wanted = json!({"scopes": ["connections:read"], "lifetime_seconds": 60});
    let made = bob.post("/tokens", &wanted).await.is(200);
    assert_eq!((&made["scope"], &made["expires_in"]), (&json!("connections:read"), &json!(60)));
    let token = made["access_token"].as_str().unwrap();
    let reader = Api::bearer(&gateway, token);
    reader.get("/configurations").await.is(200);
    let refused = reader.post("/configurations", &open_server(&open, None)).await;
    refused.refused(403, "insufficient-scope");
    assert_eq!(
        refused.header("www-authenticate"),
        "Bearer error=\"insufficient_scope\", scope=\"connections:write\""
    );
    reader.get("/events").await.refused(403, "insufficient-scope");
    reader.post("/tokens", &wanted).await.refused(403, "forbidden");

    // Neither is a token of a route good here, nor one of these there.
    let all = json!({"scopes": ["connections:read", "connections:write", "connections:token", "connections:audit"]});
    let made = bob.post("/tokens", &all).await.is(200);
    let writer = Api::bearer(&gateway, made["access_token"].as_str().unwrap());
    let id = writer.make_configuration(&open_server(&open, None)).await;
    let minted = writer.send("POST", &format!("/configurations/{id}/token"), None).await.is(200);
    Api::bearer(&gateway, minted["access_token"].as_str().unwrap())
        .get("/available")
        .await
        .refused(401, "unauthorized");
    let path = minted["resource"].as_str().unwrap().strip_prefix(&gateway.url("/")).unwrap();
    assert_eq!(gateway.mcp(path).bearer(token).tool("whoami", json!({})).await.status, 401);
    assert_eq!(writer.get("/events").await.is(200)["items"][0]["action"], "token.mint");

    // Programs.
    let organization = program.make_organization("Works").await;
    let refused = program.post("/configurations", &open_server(&open, None)).await;
    assert_eq!(refused.refused(422, "invalid")["errors"][0]["pointer"], "#/organization");
    assert_eq!(alice.get(&format!("/organizations/{organization}")).await.status, 200);
    program.get("/events").await.refused(403, "insufficient-scope");
    assert_eq!(own.get("/organizations").await.is(200)["items"], json!([]));
    assert_eq!(own.get("/configurations").await.is(200)["items"][0]["id"], json!(id));

    // Whoever is kept out is kept out with all of it.
    gateway.stop().await;
    command(&gateway, &["users", "block", "bob"]).await;
    gateway.restart().await;
    assert_eq!(program.get("/organizations").await.status, 200);
    for api in [&bob, &reader, &writer, &own] {
        api.get("/configurations").await.refused(401, "unauthorized");
    }
    gateway.output.assert_no_secret();
}

#[tokio::test]
async fn without_managed_connections_there_is_nothing() {
    let gateway = Gateway::builder().start().await;
    let alice = Api::of(&gateway, "alice").await;
    for path in ["/organizations", "/configurations/x", "/openapi.json"] {
        alice.get(path).await.refused(404, "not-found");
    }
    alice.post("/discover", &json!({"url": "https://example.com"})).await.refused(404, "not-found");
}

/// What everything that can be asked is filled in with, so that what is new cannot be forgotten.
struct Filled {
    organization: String,
    configuration: String,
    user: &'static str,
    upstream: String,
}

impl Filled {
    fn path(&self, path: &str) -> String {
        let path = path.replace("{organization}", &self.organization);
        let path = path.replace("{configuration}", &self.configuration).replace("{user}", self.user);
        assert!(!path.contains('{'), "{path} has a name that this test knows nothing of");
        path
    }

    fn body(&self, name: &str) -> Value {
        match name {
            "createOrganization" | "renameOrganization" | "changeConfiguration" => json!({"name": "taken"}),
            "putMember" => json!({"role": "administrator"}),
            "createConfiguration" => json!({
                "organization": self.organization, "name": "planted", "url": self.upstream,
                "auth": {"mode": "none"}, "sharing": "multi_user",
            }),
            "discover" => json!({"url": self.upstream}),
            "createToken" => json!({"scopes": ["connections:read"]}),
            _ => panic!("{name} wants a body that this test knows nothing of"),
        }
    }
}

/// What a plain member and somebody from elsewhere hear. `0`: it is about nobody's but their own.
fn expected(name: &str, path: &str) -> (u16, u16) {
    match name {
        "getOrganization" | "listMembers" => (200, 404),
        "createConfiguration" => (403, 404),
        "createOrganization" => (403, 403),
        "listOrganizations" | "listConfigurations" | "listAvailable" | "listEvents" | "discover"
        | "createToken" => (0, 0),
        _ if path.contains("{configuration}") => (404, 404),
        _ if path.contains("{organization}") => (403, 404),
        _ => panic!("{name} has no row here"),
    }
}

#[tokio::test]
async fn nobody_gets_at_what_is_others() {
    let accounts: [&[&str]; 2] =
        [&["reader", "--api", "connections:read"], &["writer", "--api", "connections:write"]];
    let (gateway, [read, write]) = with_programs(accounts).await;
    let open = Upstream::open().await;
    let mut people = Vec::new();
    for user in USERS {
        people.push(Api::of(&gateway, user).await);
    }
    let [alice, bob, carol, dave, erin] = people.try_into().ok().unwrap();
    let (ours, theirs) = (alice.make_organization("Ours").await, alice.make_organization("Theirs").await);
    let at = format!("/organizations/{ours}");
    let administrator = json!({"role": "administrator"});
    alice.put(&format!("{at}/members/bob"), &administrator).await.is(200);
    alice.put(&format!("{at}/members/carol"), &json!({"role": "member"})).await.is(200);
    alice.put(&format!("/organizations/{theirs}/members/dave"), &administrator).await.is(200);
    let configuration = bob.make_configuration(&open_server(&open, Some(&ours))).await;
    let at_configuration = format!("/configurations/{configuration}");
    bob.send("PUT", &format!("{at_configuration}/assignments/bob"), None).await.is(200);
    let before = (
        bob.get(&at).await.json,
        bob.get(&at_configuration).await.json,
        bob.get(&format!("{at}/members")).await.json,
    );

    let nobody = Api::nobody(&gateway);
    let document = nobody.get("/openapi.json").await.is(200);
    let filled = Filled { organization: ours.clone(), configuration, user: "bob", upstream: open.url() };
    let mut asked = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let name = operation["operationId"].as_str().unwrap();
            let body = operation["requestBody"].is_object().then(|| filled.body(name));
            let (method, url) = (method.to_uppercase(), filled.path(path));
            let ask = async |api: &Api, url: &str| api.send(&method, url, body.as_ref()).await;
            let (of_member, of_stranger) = expected(name, path);
            ask(&nobody, &url).await.refused(401, "unauthorized");
            let too_few = if operation["x-scope"] == "connections:read" { &write } else { &read };
            assert_eq!(ask(too_few, &url).await.status, 403, "{method} {path}: {name} with another scope");
            for (who, api, status) in [
                ("member", &carol, of_member),
                ("other", &dave, of_stranger),
                ("stranger", &erin, of_stranger),
            ] {
                let answer = ask(api, &url).await;
                let wanted = if status == 0 { 200 } else { status };
                assert_eq!(answer.status, wanted, "{method} {path} as {who}: {}", answer.json);
                if status == 0 {
                    let said = answer.json.to_string();
                    let is_told = said.contains(&*ours) && who != "member";
                    // Of what was refused they hear what they have named themselves.
                    let is_shown = said.contains(&filled.configuration) && name != "listEvents";
                    assert!(!is_told && !is_shown, "{method} {path} as {who}: {said}");
                }
                asked += 1;
            }
        }
    }
    assert!(asked >= 60, "{asked}");
    // The same by way of a query.
    for path in [
        format!("/configurations?organization={ours}"),
        format!("/events?organization={ours}"),
        format!("/events?configuration={}", filled.configuration),
    ] {
        let of_member = if path.contains("organization=") { 403 } else { 404 };
        assert_eq!(carol.get(&path).await.status, of_member, "{path}");
        for api in [&dave, &erin] {
            api.get(&path).await.refused(404, "not-found");
        }
    }
    let after = (
        bob.get(&at).await.json,
        bob.get(&at_configuration).await.json,
        bob.get(&format!("{at}/members")).await.json,
    );
    assert_eq!(before, after);
    assert_eq!(
        bob.get(&format!("{at_configuration}/assignments")).await.json["items"].as_array().unwrap().len(),
        1
    );
    let blocked = bob.get(&format!("/events?organization={ours}&outcome=blocked&limit=200")).await.is(200);
    assert!(blocked["items"].as_array().unwrap().iter().any(|event| event["actor"] == "erin"), "{blocked}");
}

#[tokio::test]
async fn the_document_is_whole() {
    let gateway = builder().start().await;
    let answer = Api::nobody(&gateway).get("/openapi.json").await;
    assert_eq!((answer.status, &answer.json["openapi"]), (200, &json!("3.1.0")));
    let text = answer.json.to_string();
    for piece in text.split("\"$ref\":\"#").skip(1) {
        let pointer = piece.split('"').next().unwrap();
        assert!(answer.json.pointer(pointer).is_some(), "{pointer} leads nowhere");
    }
    let operations: Vec<_> = answer.json["paths"]
        .as_object()
        .unwrap()
        .values()
        .flat_map(|methods| methods.as_object().unwrap().values())
        .collect();
    let mut names: Vec<_> =
        operations.iter().map(|operation| operation["operationId"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 22, "{names:?}");
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 22, "{names:?}");
}

/// Schemathesis against the served document, below `tests/interop`.
async fn schemathesis(gateway: &Gateway, program: &Api, settings: &str, words: &[&str]) {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let directory = tempfile::tempdir().unwrap();
    // Whoever names a version that is gone hears that first.
    let refused =
        r#"expected-statuses = ["400", "401", "403", "404", "409", "412", "413", "415", "422", "429"]"#;
    let settings = format!("{settings}[checks.negative_data_rejection]\n{refused}\n");
    std::fs::write(directory.path().join("schemathesis.toml"), settings).unwrap();
    let checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,\
                  response_headers_conformance,negative_data_rejection,missing_required_header,ignored_auth";
    let (_, token) = program.headers.iter().find(|(name, _)| *name == "authorization").unwrap();
    let mut command = std::process::Command::new(root.join("target/interop-venv/bin/st"));
    command
        .args(["--no-color", "run", &gateway.url("/api/v1/openapi.json"), "--header"])
        .arg(format!("Authorization: {token}"))
        .args(["--checks", checks, "--phases", "coverage,fuzzing", "--seed", "1", "--max-examples", "10"])
        .args(["--warnings", "off", "--generation-database", "none"])
        .args(words)
        .current_dir(directory.path());
    let ended = tokio::task::spawn_blocking(move || {
        let setup = std::process::Command::new(root.join("tests/interop/setup.sh")).output().unwrap();
        assert!(setup.status.success(), "{}", String::from_utf8_lossy(&setup.stderr));
        command.output().unwrap()
    });
    let ended = ended.await.unwrap();
    let said = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success(), "{said}{}", String::from_utf8_lossy(&ended.stderr));
    assert!(said.contains("passed"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schemathesis_finds_nothing() {
    let all = "connections:read,connections:write,connections:token,connections:audit";
    let accounts: [&[&str]; 2] = [&["wide", "--api", all], &["deep", "--api", all]];
    let (gateway, [wide, deep]) = with_programs(accounts).await;
    let open = Upstream::open().await;
    schemathesis(&gateway, &wide, "", &[]).await;
    // Once more, at what is there.
    let organization = deep.make_organization("Works").await;
    let configuration = deep.make_configuration(&open_server(&open, Some(&organization))).await;
    let settings = format!(
        "[parameters]\n\"path.organization\" = \"{organization}\"\n\"path.configuration\" = \"{configuration}\"\n\"path.user\" = \"bob\"\n"
    );
    schemathesis(&gateway, &deep, &settings, &["--exclude-method", "DELETE"]).await;
    assert_eq!(deep.get(&format!("/configurations/{configuration}")).await.status, 200);
}
