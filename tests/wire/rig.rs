//! The rig itself: what the other tests lean on has to be right first.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use support::authorization_server::AuthorizationServer;
use support::browser::{Arrival, Browser};
use support::client::Callback;
use support::cookies::{Jar, Site};
use support::gate::Gate;
use support::gateway::listening_address;
use support::html::{escape, forms, meta_refresh, text, unescape};
use support::identity::IdentityProvider;
use support::identity::exchange::{self as exchanges, ACCESS_TOKEN, EXCHANGE, ID_TOKEN, JWT, JWT_BEARER};
use support::key::Key;
use support::mcp::{Event, McpRequest};
use support::params::{Params, Pkce};
use support::raw::{RawConnection, exchange};
use support::script::{
    Answer, AuthorizationScript, Consent, IssParameter, MetadataLocation, RegistrationScript, ServerMetadata,
    TokenFault,
};
use support::server::Server;
use support::upstream::Upstream;
use support::{PATIENCE, http_client};
use url::Url;

const CLIENT: &str = "http://127.0.0.1:7/callback";

#[test]
fn forms_are_read_as_a_browser_reads_them() {
    let page = r#"<!DOCTYPE html><!-- <form action=/no> --><form ACTION="/go?a=1&amp;b=2" Method=post>
        <input type=hidden name=csrf value="a&quot;b&#39;c&#x3e;d"><input name='username' required>
        <input type="checkbox" name=box><input type="checkbox" name=tick checked><input type=submit value="Send it">
        <button type="submit" name="decision" value="allow"><b>Allow</b> it</button></form>
        <input name=outside><form><button>Deny</button></form>"#;
    let found = forms(page);
    assert_eq!(found.len(), 2);
    assert_eq!((found[0].action.as_str(), found[0].method.as_str()), ("/go?a=1&b=2", "POST"));
    assert_eq!(found[0].value("csrf"), Some("a\"b'c>d"));
    let sent: Vec<_> = found[0].defaults().into_iter().map(|(name, _)| name).collect();
    assert_eq!(sent, ["csrf", "username", "tick"]);
    assert_eq!(found[0].button("send").unwrap().label, "Send it");
    assert_eq!(found[0].button("ALLOW").unwrap().value, "allow");
    assert_eq!((found[1].method.as_str(), found[1].action.as_str()), ("GET", ""));
    assert!(found[1].button("deny").is_some() && found[1].button("allow").is_none());
}

#[test]
fn meta_refresh_text_and_entities() {
    let quoted = r#"<meta charset=utf-8><META HTTP-EQUIV="Refresh" CONTENT="0; URL='/next?a=1&amp;b=2'">"#;
    assert_eq!(meta_refresh(quoted).as_deref(), Some("/next?a=1&b=2"));
    assert_eq!(
        meta_refresh(r#"<meta http-equiv=refresh content="0;url=http://x/">"#).as_deref(),
        Some("http://x/")
    );
    assert_eq!(meta_refresh(r#"<meta http-equiv=refresh content=5>"#), None);
    assert_eq!(meta_refresh(r#"<meta name="description" content="0;url=/x">"#), None);
    let page =
        "<head><title>T</title><style>p{}</style></head><header>Hi</header><p title='a>b'>you &amp;\n me</p>";
    assert_eq!(text(page), "Hi you & me");
    for plain in ["a<b>\"c\"&'d'", "&amp;", "&", "&#; &bad; ü"] {
        assert_eq!(unescape(&escape(plain)), plain);
    }
    // Broken pages end the reading, they do not break it.
    for broken in
        ["<", "<form", "<input name=", "<form action='x", "<!--", "<a b='", "&#x110000;", "<form =/>"]
    {
        forms(broken);
        text(broken);
        meta_refresh(broken);
    }
}

#[test]
fn the_jar_follows_the_cookie_rules() {
    let now = SystemTime::now();
    let later = now + Duration::from_secs(61);
    let http = Url::parse("http://127.0.0.1:8080/oauth/x").unwrap();
    let other_port = Url::parse("http://127.0.0.1:9/elsewhere").unwrap();
    let https = Url::parse("https://gw.test/a/b").unwrap();
    let mut jar = Jar::default();
    jar.take(&http, "sid=1; Path=/; HttpOnly; SameSite=Lax", now);
    jar.take(&http, "strict=1; Path=/; SameSite=Strict", now);
    jar.take(&http, "short=1; Path=/oauth; Max-Age=60", now);
    jar.take(&http, "secret=1; Path=/; Secure", now);
    jar.take(&http, "elsewhere=1; Path=/; Domain=evil.test", now);
    let sent = |url: &Url, method: &str, site, at| jar.header(url, method, site, at).unwrap_or_default();
    assert_eq!(sent(&http, "GET", Site::Origin, now), "sid=1; strict=1; short=1");
    assert_eq!(sent(&http, "GET", Site::Origin, later), "sid=1; strict=1");
    assert_eq!(sent(&other_port, "GET", Site::Same, now), "sid=1; strict=1", "ports share cookies");
    assert_eq!(sent(&http, "GET", Site::Cross, now), "sid=1; short=1");
    assert_eq!(sent(&http, "POST", Site::Cross, now), "");
    assert_eq!(sent(&https, "GET", Site::None, now), "");

    let mut jar = Jar::default();
    jar.take(&https, "__Host-a=1; Path=/; Secure", now);
    jar.take(&https, "__Host-b=1; Secure", now);
    jar.take(&https, "__Host-c=1; Path=/; Secure; Domain=gw.test", now);
    jar.take(&https, "__Secure-d=1; Path=/", now);
    let names: Vec<_> = jar.all().iter().map(|cookie| cookie.name.as_str()).collect();
    assert_eq!(names, ["__Host-a"]);
    jar.take(&https, "__Host-a=2; Path=/; Secure", now);
    assert_eq!(jar.find("__Host-a").unwrap().value, "2");
    jar.take(&https, "__Host-a=; Path=/; Secure; Max-Age=0", now);
    assert!(jar.all().is_empty());
    jar.take(&https, "b=1; Path=/", now);
    jar.take(&https, "b=1; Path=/; Expires=Thu, 01 Jan 1970 00:00:00 GMT", now);
    assert!(jar.all().is_empty());
}

#[test]
fn both_forms_of_the_listening_line_are_read() {
    let flat = r#"{"level":"INFO","message":"listening","listener":"admin","address":"127.0.0.1:4000"}"#;
    let nested = r#"{"fields":{"message":"listening","listener":"public","address":"127.0.0.1:4001"}}"#;
    assert_eq!(listening_address(flat, "admin"), "127.0.0.1:4000".parse().ok());
    assert_eq!(listening_address(nested, "public"), "127.0.0.1:4001".parse().ok());
    assert_eq!(listening_address(nested, "admin"), None);
    assert_eq!(listening_address("not json", "admin"), None);
}

/// A client of the upstream's own authorization server, without any gateway.
struct Direct {
    id: String,
    pkce: Pkce,
    authorization: AuthorizationServer,
    resource: String,
}

impl Direct {
    async fn register(upstream: &Upstream) -> Self {
        let document = json!({"redirect_uris": [CLIENT], "token_endpoint_auth_method": "none"});
        let (status, body) = post(&upstream.authorization, "/register", &document.to_string()).await;
        assert_eq!(status, 201, "{body}");
        let id = body["client_id"].as_str().unwrap().to_owned();
        Direct {
            id,
            pkce: Pkce::new(),
            authorization: upstream.authorization.clone(),
            resource: upstream.url(),
        }
    }

    fn url(&self) -> String {
        let params = Params::new()
            .with("response_type", "code")
            .with("client_id", &self.id)
            .with("redirect_uri", CLIENT)
            .with("state", "s1")
            .with("scope", "read")
            .with("resource", &self.resource)
            .with("code_challenge", &self.pkce.challenge)
            .with("code_challenge_method", "S256");
        params.url(&format!("{}/authorize", self.authorization.origin))
    }

    async fn authorize(&self) -> Callback {
        Browser::new().authorize(CLIENT, &self.url()).await
    }

    async fn redeem(&self, code: &str) -> (u16, Value) {
        let params = Params::new()
            .with("grant_type", "authorization_code")
            .with("client_id", &self.id)
            .with("code", code)
            .with("redirect_uri", CLIENT)
            .with("resource", &self.resource)
            .with("code_verifier", &self.pkce.verifier);
        post(&self.authorization, "/token", &params.encoded()).await
    }

    async fn refresh(&self, token: &Value) -> (u16, Value) {
        let params = Params::new()
            .with("grant_type", "refresh_token")
            .with("client_id", &self.id)
            .with("refresh_token", token.as_str().unwrap());
        post(&self.authorization, "/token", &params.encoded()).await
    }

    async fn tokens(&self) -> Value {
        let (status, tokens) = self.redeem(&self.authorize().await.code()).await;
        assert_eq!(status, 200, "{tokens}");
        tokens
    }
}

/// Status and JSON body; 0 when there was no answer.
async fn post(server: &AuthorizationServer, path: &str, body: &str) -> (u16, Value) {
    let request = http_client(&[]).post(format!("{}{path}", server.origin)).body(body.to_owned());
    let Ok(answer) = request.send().await else {
        return (0, Value::Null);
    };
    let status = answer.status().as_u16();
    (status, serde_json::from_slice(&answer.bytes().await.unwrap_or_default()).unwrap_or_default())
}

async fn get(url: &str) -> (u16, Value) {
    let answer = http_client(&[]).get(url).send().await.unwrap();
    let status = answer.status().as_u16();
    (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or_default())
}

fn call(upstream: &Upstream) -> McpRequest {
    McpRequest::to(&http_client(&[]), &upstream.url())
}

#[tokio::test]
async fn the_upstream_is_an_mcp_server_behind_oauth() {
    let upstream = Upstream::start().await;
    let refused = call(&upstream).tool("whoami", json!({})).await;
    assert_eq!(refused.status, 401);
    let (status, metadata) = get(&refused.challenge("resource_metadata").unwrap()).await;
    assert_eq!((status, &metadata["resource"]), (200, &json!(upstream.url())));
    assert_eq!(metadata["authorization_servers"], json!([upstream.origin]));
    let (_, metadata) = get(&format!("{}/.well-known/oauth-authorization-server", upstream.origin)).await;
    assert_eq!(metadata["issuer"], json!(upstream.authorization.issuer()));
    assert_eq!(metadata["code_challenge_methods_supported"], json!(["S256"]));

    let client = Direct::register(&upstream).await;
    let callback = client.authorize().await;
    assert_eq!((callback.state(), callback.iss()), (Some("s1"), Some(upstream.origin.as_str())));
    let (status, tokens) = client.redeem(&callback.code()).await;
    assert_eq!(status, 200, "{tokens}");
    let bearer = call(&upstream).bearer(tokens["access_token"].as_str().unwrap());
    assert_eq!(bearer.tool("whoami", json!({})).await.tool_text(), "upstream-user");
    assert_eq!(bearer.tool("echo", json!({"message": "hello"})).await.tool_text(), "hello");
    assert_eq!((upstream.calls().len(), upstream.calls_with_token().len()), (3, 2));

    // A code used twice takes its tokens with it.
    assert_eq!(client.redeem(&callback.code()).await.1["error"], "invalid_grant");
    assert_eq!(bearer.tool("whoami", json!({})).await.challenge("error").as_deref(), Some("invalid_token"));
}

#[tokio::test]
async fn refresh_tokens_rotate_and_a_replay_kills_the_family() {
    let upstream = Upstream::start().await;
    let client = Direct::register(&upstream).await;
    let first = client.tokens().await;
    upstream.refuse_current_tokens();
    let with = |tokens: &Value| call(&upstream).bearer(tokens["access_token"].as_str().unwrap());
    assert_eq!(with(&first).tool("whoami", json!({})).await.status, 401);
    let (_, second) = client.refresh(&first["refresh_token"]).await;
    assert_eq!(with(&second).tool("whoami", json!({})).await.status, 200);
    assert_eq!(client.refresh(&first["refresh_token"]).await, (400, json!({"error": "invalid_grant"})));
    assert_eq!(with(&second).tool("whoami", json!({})).await.status, 401);
    assert_eq!(client.refresh(&second["refresh_token"]).await.0, 400);
    assert_eq!(upstream.authorization.uses_of(first["refresh_token"].as_str().unwrap()), 2);
    assert_eq!(upstream.authorization.refreshes(), 1);
    assert_eq!(upstream.authorization.token_requests("refresh_token").len(), 3);

    upstream.set_authorization(|script| script.rotates = false);
    let first = client.tokens().await;
    let (_, second) = client.refresh(&first["refresh_token"]).await;
    assert!(second["refresh_token"].is_null());
    assert_eq!(client.refresh(&first["refresh_token"]).await.0, 200);
    upstream.authorization.expire_access_tokens();
    assert_eq!(with(&second).tool("whoami", json!({})).await.status, 401);
}

#[tokio::test]
async fn token_faults_consume_what_they_say() {
    let upstream = Upstream::start().await;
    let client = Direct::register(&upstream).await;
    let tokens = client.tokens().await;
    let fault_next = |fault| upstream.set_authorization(|script| script.token_faults.push_back(fault));
    let refresh = &tokens["refresh_token"];
    fault_next(TokenFault::answer(429, &[("retry-after", "1")], "slow down"));
    fault_next(TokenFault::Hangup);
    assert_eq!(client.refresh(refresh).await.0, 429);
    assert_eq!(client.refresh(refresh).await.0, 0);
    assert_eq!(upstream.authorization.uses_of(refresh.as_str().unwrap()), 0, "nothing was consumed");
    fault_next(TokenFault::HalfAnswer);
    let (status, body) = client.refresh(refresh).await;
    assert_eq!((status, body), (200, Value::Null));
    assert_eq!(client.refresh(refresh).await.0, 400, "it was consumed");

    let tokens = client.tokens().await;
    fault_next(TokenFault::LoseAnswer);
    assert_eq!(client.refresh(&tokens["refresh_token"]).await.0, 0);
    assert_eq!(client.refresh(&tokens["refresh_token"]).await.0, 400, "it was consumed");
}

#[tokio::test]
async fn a_gate_holds_the_token_endpoint() {
    let upstream = Upstream::start().await;
    let client = Direct::register(&upstream).await;
    let tokens = client.tokens().await;
    let gate = Gate::shut();
    upstream.set_authorization(|script| script.token_gate = Some(gate.clone()));
    let passing = async {
        gate.wait_for(1, PATIENCE).await;
        assert_eq!(upstream.authorization.refreshes(), 0);
        gate.let_pass(1);
    };
    let (answer, ()) = tokio::join!(client.refresh(&tokens["refresh_token"]), passing);
    assert_eq!((answer.0, gate.waiting()), (200, 0));
    gate.open();
    assert_eq!(client.refresh(&answer.1["refresh_token"]).await.0, 200);
}

#[tokio::test]
async fn client_authentication_is_checked() {
    let server = AuthorizationServer::start().await;
    for method in ["client_secret_basic", "client_secret_post"] {
        let registration =
            Some(RegistrationScript { method: Some(method.into()), ..RegistrationScript::default() });
        server.set(|script| script.registration = registration);
        let (_, client) = post(&server, "/register", &json!({"redirect_uris": [CLIENT]}).to_string()).await;
        assert_eq!(client["token_endpoint_auth_method"], method);
        let (id, secret) = (client["client_id"].as_str().unwrap(), client["client_secret"].as_str().unwrap());
        let refresh = Params::new().with("grant_type", "refresh_token").with("refresh_token", "none");
        let bare = refresh.clone().with("client_id", id);
        assert_eq!(post(&server, "/token", &bare.encoded()).await.0, 401);
        let posted = bare.with("client_secret", secret);
        // Known to the server, so only the token is wrong; or known by the other method, so the client is.
        let error = if method == "client_secret_post" { "invalid_grant" } else { "invalid_client" };
        assert_eq!(post(&server, "/token", &posted.encoded()).await.1["error"], error);
    }
    assert_eq!(server.registrations(), 2);
    server.set(|script| script.registration = None);
    assert_eq!(post(&server, "/register", "{}").await.0, 404);
}

#[tokio::test]
async fn metadata_lies_where_the_script_says() {
    let server = AuthorizationServer::start().await;
    server.set(|script| script.issuer_path = "/t1".into());
    for (kind, path) in [
        (ServerMetadata::Rfc8414, "/.well-known/oauth-authorization-server/t1"),
        (ServerMetadata::OidcInserted, "/.well-known/openid-configuration/t1"),
        (ServerMetadata::OidcAppended, "/t1/.well-known/openid-configuration"),
    ] {
        server.set(|script| script.metadata = kind);
        let (status, document) = get(&format!("{}{path}", server.origin)).await;
        assert_eq!((status, &document["issuer"]), (200, &json!(format!("{}/t1", server.origin))));
    }
    server.set(|script: &mut AuthorizationScript| {
        script.metadata = ServerMetadata::Rfc8414;
        script.metadata_patch =
            json!({"token_endpoint": "https://evil.test/token", "revocation_endpoint": null});
        script.issuer = Some("https://other.test".into());
        script.code_challenge_methods = None;
    });
    let (_, document) = get(&format!("{}/.well-known/oauth-authorization-server/t1", server.origin)).await;
    assert_eq!(document["token_endpoint"], "https://evil.test/token");
    assert_eq!(document["issuer"], "https://other.test");
    assert!(document.get("revocation_endpoint").is_none());
    assert!(document.get("code_challenge_methods_supported").is_none());

    let upstream = Upstream::relying_on(&server).await;
    let well_known = "/.well-known/oauth-protected-resource";
    for (location, path) in [
        (MetadataLocation::PathInserted, format!("{well_known}/mcp")),
        (MetadataLocation::Root, well_known.into()),
        (MetadataLocation::At("/meta".into()), "/meta".into()),
    ] {
        upstream.set(|script| script.resource_metadata.location = location.clone());
        let challenge = call(&upstream).get().await.challenge("resource_metadata").unwrap();
        assert_eq!(challenge, format!("{}{path}", upstream.origin));
        assert_eq!(get(&challenge).await.1["authorization_servers"], json!(["https://other.test"]));
    }
    upstream.set(|script| script.resource_metadata.location = MetadataLocation::Nowhere);
    assert_eq!(call(&upstream).get().await.challenge("resource_metadata"), None);
    assert_eq!(get(&format!("{}{well_known}", upstream.origin)).await.0, 404);
}

#[tokio::test]
async fn the_authorization_endpoint_approves_denies_asks_and_lies() {
    let upstream = Upstream::start().await;
    let client = Direct::register(&upstream).await;
    upstream.set_authorization(|script| script.consent = Consent::Deny("access_denied".into()));
    assert_eq!(client.authorize().await.error(), Some("access_denied"));
    upstream.set_authorization(|script| {
        script.consent = Consent::Page;
        script.iss = IssParameter::Wrong("https://evil.test".into());
    });
    let callback = client.authorize().await;
    assert_eq!(callback.iss(), Some("https://evil.test"));
    assert_eq!(client.redeem(&callback.code()).await.0, 200);
    upstream.set_authorization(|script| script.iss = IssParameter::Absent);
    let mut browser = Browser::new();
    browser.stop_before(CLIENT);
    let page = browser.go(&client.url()).await.page();
    let denied = Callback::of(&browser.press(&page, "deny").await.client());
    assert_eq!((denied.error(), denied.iss()), (Some("access_denied"), None));
    let bad = client.url().replace("S256", "plain");
    assert!(matches!(browser.go(&bad).await, Arrival::Page(page) if page.status == 400));
    let foreign = client.url().replace("callback", "elsewhere");
    assert!(matches!(browser.go(&foreign).await, Arrival::Page(page) if page.status == 400));
}

#[tokio::test]
async fn scopes_are_asked_for_call_by_call() {
    let upstream = Upstream::start().await;
    upstream.set(|script| {
        script.tool_scopes.insert("echo".into(), "write".into());
        script.challenge.scope = Some("read".into());
    });
    assert_eq!(call(&upstream).get().await.challenge("scope").as_deref(), Some("read"));
    let tokens = Direct::register(&upstream).await.tokens().await;
    let bearer = call(&upstream).bearer(tokens["access_token"].as_str().unwrap());
    assert_eq!(bearer.tool("whoami", json!({})).await.status, 200);
    let refused = bearer.tool("echo", json!({})).await;
    assert_eq!((refused.status, refused.challenge("scope").as_deref()), (403, Some("write")));
    assert_eq!(refused.challenge("error").as_deref(), Some("insufficient_scope"));
}

#[tokio::test]
async fn events_come_one_by_one_and_leaving_is_noticed() {
    let upstream = Upstream::open().await;
    let (feed, answer) = Answer::stream();
    upstream.answer_next(answer);
    let mut reader = call(&upstream).events().await;
    feed.event("one");
    let event = Event { event: Some("message".into()), id: None, data: "one".into() };
    assert_eq!(reader.next(PATIENCE).await, Some(event));
    feed.bytes(": comment\n\nid: 7\nda");
    feed.bytes("ta: two\ndata: lines\n\n");
    let event = Event { event: None, id: Some("7".into()), data: "two\nlines".into() };
    assert_eq!(reader.next(PATIENCE).await, Some(event));
    drop(reader);
    support::within(PATIENCE, feed.gone()).await;

    let (feed, answer) = Answer::stream();
    upstream.answer_next(answer);
    let mut reader = call(&upstream).events().await;
    feed.finish();
    assert_eq!(reader.next(PATIENCE).await, None);

    let given = std::sync::Arc::default();
    upstream.answer_next(Answer::Endless(std::sync::Arc::clone(&given)));
    let mut reader = call(&upstream).post_events("{}").await;
    for _ in 0..100 {
        assert!(reader.next(PATIENCE).await.is_some());
    }
    assert!(given.load(std::sync::atomic::Ordering::Relaxed) > 0);
}

#[tokio::test]
async fn answers_of_any_kind_and_none() {
    let upstream = Upstream::open().await;
    upstream.answer_next(Answer::http(418, &[("set-cookie", "a=1"), ("set-cookie", "b=2")], "<p>tea"));
    let answer = call(&upstream).post("{}").await;
    assert_eq!((answer.status, answer.body.as_str()), (418, "<p>tea"));
    assert_eq!(answer.headers.get_all("set-cookie").iter().count(), 2);
    upstream.answer_next(Answer::InvalidToken);
    assert_eq!(call(&upstream).post("{}").await.challenge("error").as_deref(), Some("invalid_token"));
    upstream.answer_next(Answer::InsufficientScope("admin".into()));
    assert_eq!(call(&upstream).post("{}").await.challenge("scope").as_deref(), Some("admin"));
    upstream.answer_next(Answer::Hangup);
    assert!(call(&upstream).try_send("POST", Some("{}")).await.is_err());
    upstream.answer_next(Answer::Half);
    let mut half = call(&upstream).send("POST", Some("{}")).await;
    assert!(half.chunk().await.unwrap().is_some(), "the first half arrives");
    assert!(half.chunk().await.is_err());
    upstream.set(|script| script.sessions = true);
    assert_eq!(call(&upstream).call("tools/list", json!({})).await.status, 400);
    let first = call(&upstream).call("initialize", json!({})).await;
    let session = call(&upstream).header("mcp-session-id", first.header("mcp-session-id").unwrap());
    assert_eq!(session.call("tools/list", json!({})).await.result()["tools"][0]["name"], "echo");
    assert_eq!(session.delete().await.status, 204);
    assert_eq!(session.call("tools/list", json!({})).await.status, 404);
}

#[tokio::test]
async fn a_server_stops_cuts_and_comes_back() {
    let upstream = Upstream::open().await;
    let mut idle = RawConnection::open(upstream.server.address).await;
    idle.send("GET /mcp HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(idle.response(PATIENCE).await.unwrap().status, 405);
    assert_eq!(upstream.server.connections_open(), 1);
    upstream.server.stop();
    idle.closed(PATIENCE).await;
    support::eventually(PATIENCE, || async {
        tokio::net::TcpStream::connect(upstream.server.address).await.is_err()
    })
    .await;
    upstream.server.resume().await;
    let answer =
        exchange(upstream.server.address, "GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n", PATIENCE).await;
    assert_eq!(answer.unwrap().status, 404);
}

#[tokio::test]
async fn raw_responses_are_read_in_every_framing() {
    let server = Server::start(|request, _| async move {
        use axum::response::IntoResponse;
        match request.path.as_str() {
            "/empty" => axum::http::StatusCode::NO_CONTENT.into_response(),
            "/stream" => {
                let (feed, fed) = support::body::Fed::pair();
                feed.bytes("one");
                feed.bytes("two");
                axum::response::Response::new(fed.body())
            }
            _ => request.text().into_response(),
        }
    })
    .await;
    let mut connection = RawConnection::open(server.address).await;
    connection.send("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabcGET /stream HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(connection.response(PATIENCE).await.unwrap().text(), "abc");
    let chunked = connection.response(PATIENCE).await.unwrap();
    assert_eq!((chunked.header("transfer-encoding"), chunked.text().as_str()), (Some("chunked"), "onetwo"));
    connection.send("GET /empty HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert_eq!(connection.response(PATIENCE).await.unwrap().status, 204);
    connection.closed(PATIENCE).await;
    assert_eq!(server.connections_opened(), 1);
}

#[tokio::test]
async fn the_browser_says_where_it_comes_from() {
    let target = Server::start(|request, _| async move {
        use axum::response::IntoResponse;
        let came = request.header("sec-fetch-site").unwrap_or_default();
        match request.path.as_str() {
            "/hop" => axum::response::Redirect::to("/end").into_response(),
            _ => format!("{} {came} {:?}", request.method, request.header("origin")).into_response(),
        }
    })
    .await;
    let url = |path: &str| format!("http://{}{path}", target.address);
    let mut browser = Browser::new();
    assert_eq!(browser.go(&url("/hop")).await.page().body, "GET none None");
    let from = |browser: &Browser| browser.hops.last().unwrap().url.clone();
    assert_eq!(from(&browser).path(), "/end");
    let other_port = browser.follow_from("http://127.0.0.1:1/", &url("/hop")).await.page();
    assert_eq!(other_port.body, "GET same-site None");
    assert_eq!(
        browser.follow_from("https://evil.test/", &url("/hop")).await.page().body,
        "GET cross-site None"
    );
    assert!(browser.visited(&url("/hop")) && browser.trail().len() == 6);
}

#[tokio::test]
async fn the_authorization_server_reads_client_documents() {
    let server = AuthorizationServer::start().await;
    server.set(|script| script.cimd = true);
    let documents = support::cimd::ClientDocuments::start().await;
    let id = documents.publish("/client.json", CLIENT);
    let upstream = Upstream::relying_on(&server).await;
    let resource = upstream.url();
    let client = Direct { id, pkce: Pkce::new(), authorization: server.clone(), resource };
    assert_eq!(client.tokens().await["token_type"], "Bearer");
    assert_eq!(documents.reads("/client.json"), 1);
    let wrong =
        documents.publish_document("/wrong.json", &json!({"client_id": "x", "redirect_uris": [CLIENT]}));
    let client = Direct { id: wrong, ..client };
    assert!(matches!(Browser::new().go(&client.url()).await, Arrival::Page(page) if page.status == 400));
}

/// Asks the provider for a token for other tokens; `shown`: how the client proves itself.
async fn exchange_at(
    provider: &IdentityProvider,
    shown: &[(&str, &str)],
    fields: &[(&str, &str)],
) -> (u16, Value) {
    let mut request = http_client(&[]).post(format!("{}/token", provider.issuer));
    let mut body = form_urlencoded::Serializer::new(String::new());
    body.extend_pairs(fields);
    match shown {
        [("authorization", value)] => request = request.header("authorization", *value),
        pairs => {
            body.extend_pairs(pairs);
        }
    }
    let answer = request.body(body.finish()).send().await.unwrap();
    let status = answer.status().as_u16();
    (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap())
}

#[tokio::test]
async fn the_provider_exchanges_what_is_right_and_nothing_else() {
    let (provider, key) = (IdentityProvider::start().await, Key::new("gateway"));
    let secret = "a secret/+ ";
    provider.set(|script| {
        script.exchanges.secret = secret.into();
        script.exchanges.keys = key.set();
        script.exchanges.gateway = "https://gw".into();
        script.exchanges.audiences = vec!["files".into(), "mail".into()];
    });
    let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let basic =
        format!("Basic {}", data_encoding::BASE64.encode(format!("gateway:{}", encode(secret)).as_bytes()));
    let basic = [("authorization", basic.as_str())];
    let own = [("grant_type", "client_credentials"), ("scope", "read")];
    let (status, answer) = exchange_at(&provider, &basic, &own).await;
    assert_eq!((status, answer["access_token"].as_str()), (200, Some(exchanges::name(1).as_str())));
    assert!(answer.get("issued_token_type").is_none(), "that is said of exchanges only");
    // The way to prove oneself is one, and so is the secret.
    let post = [("client_id", "gateway"), ("client_secret", secret)];
    assert_eq!(exchange_at(&provider, &post, &own).await.0, 401);
    provider.set(|script| script.exchanges.method = "client_secret_post");
    assert_eq!(exchange_at(&provider, &post, &own).await.0, 200);
    assert_eq!(exchange_at(&provider, &basic, &own).await.0, 401);
    assert_eq!(
        exchange_at(&provider, &[("client_id", "gateway"), ("client_secret", "x")], &own).await.0,
        401
    );
    provider.set(|script| script.exchanges.method = "private_key_jwt");
    let assertion = key.assertion("gateway", &provider.issuer);
    let proof = [("client_id", "gateway"), ("client_assertion", assertion.as_str())];
    assert_eq!(exchange_at(&provider, &proof, &own).await.0, 200);
    let forged = Key::new("gateway").assertion("gateway", &provider.issuer);
    assert_eq!(exchange_at(&provider, &[("client_assertion", forged.as_str())], &own).await.0, 401);
    let elsewhere = key.assertion("gateway", "https://elsewhere");
    assert_eq!(exchange_at(&provider, &[("client_assertion", elsewhere.as_str())], &own).await.0, 401);
    assert_eq!((provider.exchanged().len(), provider.exchanges()), (3, 8));

    // Whose token it is says the one that is shown.
    let access = provider.access_token("anybody", &json!({}));
    let id = provider.access_token("postern", &json!({"sub": "4712"}));
    let ours = key
        .sign(&json!({"iss": "https://gw", "sub": "alice", "aud": provider.issuer, "exp": u64::MAX >> 12}));
    for (token, kind, whose) in
        [(&access, ACCESS_TOKEN, "4711"), (&id, ID_TOKEN, "4712"), (&ours, JWT, "alice")]
    {
        let fields = [
            ("grant_type", EXCHANGE),
            ("subject_token", token.as_str()),
            ("subject_token_type", kind),
            ("audience", "files"),
            ("audience", "mail"),
            ("resource", "https://files.example"),
        ];
        let (status, answer) = exchange_at(&provider, &proof, &fields).await;
        assert_eq!((status, answer["issued_token_type"].as_str()), (200, Some(ACCESS_TOKEN)), "{answer}");
        let given = provider.exchanged().pop().unwrap();
        assert_eq!((given.subject.as_str(), given.audience.len(), given.resource.len()), (whose, 2, 1));
    }
    let refused = async |fields: &[(&str, &str)]| {
        let (status, answer) = exchange_at(&provider, &proof, fields).await;
        assert_eq!(status, 400, "{answer}");
        answer["error"].as_str().unwrap().to_owned()
    };
    let subject =
        |token, kind| [("grant_type", EXCHANGE), ("subject_token", token), ("subject_token_type", kind)];
    assert_eq!(refused(&subject("access-1", ACCESS_TOKEN)).await, "invalid_grant", "never given");
    assert_eq!(refused(&subject(&access, ID_TOKEN)).await, "invalid_grant", "for another audience");
    assert_eq!(refused(&subject(&access, "urn:x")).await, "invalid_request");
    let wrong = [&subject(&access, ACCESS_TOKEN)[..], &[("audience", "wallet")]].concat();
    assert_eq!(refused(&wrong).await, "invalid_target");
    let on_behalf =
        [("grant_type", JWT_BEARER), ("assertion", access.as_str()), ("requested_token_use", "on_behalf_of")];
    assert_eq!(exchange_at(&provider, &proof, &on_behalf).await.0, 200);
    let with_resource = [&on_behalf[..], &[("resource", "https://files.example")]].concat();
    assert_eq!(refused(&with_resource).await, "invalid_request");
    let actor =
        [&subject(&access, ACCESS_TOKEN)[..], &[("actor_token", &ours), ("actor_token_type", JWT)]].concat();
    assert_eq!(exchange_at(&provider, &proof, &actor).await.0, 200);
    assert_eq!(provider.exchanged().pop().unwrap().actor.as_deref(), Some("alice"));
}
