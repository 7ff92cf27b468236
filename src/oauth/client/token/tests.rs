#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use std::collections::HashMap;

use bytes::Bytes;
use http::HeaderMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::oauth::client::stub::{Answer as Scripted, Stub, at, local, nobody, outbound};

const REDIRECT: &str = "https://gw.example/oauth/upstream/callback/abc";
const RESOURCE: &str = "https://mcp.example.com";

fn client(auth_method: AuthMethod, id: &str, secret: Option<&str>) -> Registration {
    Registration::new(id.into(), secret.map(SecretString::from), auth_method, REDIRECT.into())
}

fn response(status: u16, headers: &[(&'static str, &str)], body: &str) -> Response {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, value.parse().unwrap());
    }
    Response {
        status: StatusCode::from_u16(status).unwrap(),
        headers: map,
        body: Bytes::from(body.to_string()),
    }
}

fn json(status: u16, body: &str) -> Outcome {
    classify(&response(status, &[("content-type", "application/json")], body), at(1_000))
}

fn success(body: &str) -> TokenResponse {
    match json(200, body) {
        Outcome::Success(tokens) => tokens,
        other => panic!("{other:?} for {body}"),
    }
}

fn kind(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Success(tokens) if tokens.usable => "success",
        Outcome::Success(_) => "refresh token only",
        Outcome::CleanTransient { .. } => "clean",
        Outcome::Ambiguous => "ambiguous",
        Outcome::Dead => "dead",
        Outcome::UnknownClient => "unknown",
        Outcome::Config(_) => "config",
    }
}

#[test]
fn pom_34_json_answers_are_classified() {
    for (status, body, expected) in [
        (200, r#"{"access_token":"a","token_type":"Bearer"}"#, "success"),
        (200, r#"{"access_token":"a","token_type":"bEaReR","refresh_token":"r"}"#, "success"),
        (201, r#"{"access_token":"a","token_type":"bearer"}"#, "success"),
        (200, r#"{"access_token":"a.b-c_d~e+f/g==","token_type":"bearer","id_token":7}"#, "success"),
        (200, r#"{"access_token":"a","token_type":"bearer","scope":7,"expires_in":{}}"#, "success"),
        // An access token nobody may send, beside a refresh token worth keeping.
        (
            200,
            r#"{"access_token":"a\r\nX: y","token_type":"bearer","refresh_token":"r"}"#,
            "refresh token only",
        ),
        (200, r#"{"access_token":"a b","token_type":"bearer","refresh_token":"r"}"#, "refresh token only"),
        (200, r#"{"access_token":"ä","token_type":"bearer","refresh_token":"r"}"#, "refresh token only"),
        (
            200,
            r#"{"access_token":"a\u0000","token_type":"bearer","refresh_token":"r"}"#,
            "refresh token only",
        ),
        (200, r#"{"access_token":"==","token_type":"bearer","refresh_token":"r"}"#, "refresh token only"),
        (200, r#"{"access_token":"a=b","token_type":"bearer","refresh_token":"r"}"#, "refresh token only"),
        (200, r#"{"access_token":7,"token_type":"bearer","refresh_token":"r"}"#, "refresh token only"),
        (200, r#"{"access_token":"a","token_type":"mac","refresh_token":"r"}"#, "refresh token only"),
        (200, r#"{"access_token":"a","refresh_token":"r"}"#, "refresh token only"),
        (200, r#"{"refresh_token":"r"}"#, "refresh token only"),
        // Nothing to keep.
        (200, r#"{"access_token":"a","token_type":"DPoP"}"#, "ambiguous"),
        (200, r#"{"access_token":"","token_type":"bearer"}"#, "ambiguous"),
        (200, r#"{"access_token":"a b","token_type":"bearer","refresh_token":"r\n"}"#, "ambiguous"),
        (200, r#"{"access_token":"a","access_token":"b","token_type":"bearer"}"#, "ambiguous"),
        (200, r#"{"access_token":"a","token_type":"bea"#, "ambiguous"),
        (200, "{}", "ambiguous"),
        (200, "[]", "ambiguous"),
        (200, "null", "ambiguous"),
        (200, "", "ambiguous"),
        (204, "", "ambiguous"),
        // Errors behind a good status.
        (200, r#"{"error":"invalid_grant"}"#, "dead"),
        (200, r#"{"error":"bad_refresh_token"}"#, "dead"),
        (200, r#"{"error":"incorrect_client_credentials"}"#, "config"),
        // The grant is gone, whatever the status.
        (400, r#"{"error":"invalid_grant"}"#, "dead"),
        (401, r#"{"error":"invalid_grant","error_description":"x"}"#, "dead"),
        (403, r#"{"error":"invalid_grant"}"#, "dead"),
        // We are at fault, or the configuration.
        (400, r#"{"error":"invalid_request"}"#, "config"),
        (400, r#"{"error":"unauthorized_client"}"#, "config"),
        (400, r#"{"error":"unsupported_grant_type"}"#, "config"),
        (400, r#"{"error":"invalid_scope"}"#, "config"),
        (400, r#"{"error":"invalid_target"}"#, "config"),
        (401, r#"{"error":"invalid_client"}"#, "unknown"),
        (400, r#"{"error":"invalid_client"}"#, "unknown"),
        (400, r#"{"error":"INVALID_GRANT"}"#, "config"),
        (404, r#"{"detail":"Not Found"}"#, "config"),
        (400, r#"{"error":{"code":"invalid_grant"}}"#, "config"),
        // Later.
        (400, r#"{"error":"temporarily_unavailable"}"#, "clean"),
        (400, r#"{"error":"slow_down"}"#, "clean"),
        (429, r#"{"error":"invalid_grant"}"#, "clean"),
        // Perhaps processed.
        (400, r#"{"error":"server_error"}"#, "ambiguous"),
        (400, r#"{"error":"invalid_grant","error":"invalid_client"}"#, "ambiguous"),
        (400, "", "ambiguous"),
        (500, r#"{"error":"invalid_grant"}"#, "ambiguous"),
        (502, "", "ambiguous"),
        (503, r#"{"error":"temporarily_unavailable"}"#, "ambiguous"),
        (302, "", "config"),
        (307, r#"{"error":"invalid_grant"}"#, "config"),
    ] {
        assert_eq!(kind(&json(status, body)), expected, "{status} {body}");
    }
}

#[test]
fn pom_b7_a_grant_is_dead_only_where_the_server_says_so() {
    let json = [("content-type", "application/json")];
    for status in (400..500).filter(|status| *status != 429) {
        for (content_type, body) in [
            ("text/html", ""),
            ("text/html", "<h1>invalid_grant</h1>"),
            ("text/html", r#"{"error":"invalid_grant"}"#),
            ("application/json", ""),
            ("application/json", r#"{"message":"invalid_grant"}"#),
            ("application/json", r#"{"error":"slow_down"}"#),
            ("application/json", r#"{"error":"request_timeout"}"#),
            ("application/json", r#"{"error":"access_denied"}"#),
        ] {
            let answer = response(status, &[("content-type", content_type)], body);
            let outcome = kind(&classify(&answer, at(0)));
            assert!(matches!(outcome, "ambiguous" | "config" | "clean"), "{status} {body}: {outcome}");
        }
    }
    for status in [400, 401, 403] {
        let outcome = kind(&classify(&response(status, &json, r#"{"error":"invalid_grant"}"#), at(0)));
        assert_eq!(outcome, "dead", "{status}");
    }
    // Too many requests say nothing about the one that was turned away.
    for body in ["", r#"{"error":"invalid_grant"}"#, r#"{"error":"invalid_client"}"#] {
        let headers = [("content-type", "application/json"), ("retry-after", "7")];
        let limited = classify(&response(429, &headers, body), at(0));
        let Outcome::CleanTransient { retry_after } = limited else { panic!("{limited:?}") };
        assert_eq!(retry_after, Some(Duration::from_secs(7)), "{body}");
    }
}

#[tokio::test]
async fn pom_34_what_is_no_json_or_too_long_is_no_token() {
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let outcome = classify(&response(200, &form, "access_token=a&token_type=bearer&refresh_token=r"), at(0));
    assert_eq!(kind(&outcome), "ambiguous");
    let long = format!(r#"{{"access_token":"a","token_type":"bearer","x":"{}"}}"#, "y".repeat(1 << 20));
    let stub = Stub::start(move |_, _| Scripted::json(200, &long)).await;
    assert_eq!(kind(&refreshed(&stub.url("/token"), &local()).await), "ambiguous");
    // The grant is judged by what is said, and an outage is never its end.
    for (status, expected) in [(400, "dead"), (500, "ambiguous"), (502, "ambiguous"), (503, "ambiguous")] {
        assert_eq!(kind(&json(status, r#"{"error":"invalid_grant"}"#)), expected, "{status}");
    }
}

#[test]
fn the_content_type_protects_the_grant_but_costs_no_tokens() {
    let html = [("content-type", "text/html")];
    let dead = response(400, &html, r#"{"error":"invalid_grant"}"#);
    assert_eq!(kind(&classify(&dead, at(0))), "ambiguous");
    assert_eq!(kind(&classify(&response(403, &html, "<html>blocked</html>"), at(0))), "ambiguous");
    assert_eq!(kind(&classify(&response(404, &[], "not found"), at(0))), "ambiguous");
    let tokens = response(200, &html, r#"{"access_token":"a","token_type":"bearer"}"#);
    assert_eq!(kind(&classify(&tokens, at(0))), "success");
}

#[test]
fn sr_t40_an_overlong_token_is_not_carried_but_its_neighbour_is_kept() {
    let at_limit = "a".repeat(LONGEST_TOKEN);
    let tokens = success(&format!(r#"{{"access_token":"{at_limit}","token_type":"bearer"}}"#));
    assert_eq!(tokens.access_token.expose_secret().len(), LONGEST_TOKEN);
    let tokens =
        success(&format!(r#"{{"access_token":"{at_limit}a","token_type":"bearer","refresh_token":"r"}}"#));
    assert!(!tokens.usable);
    assert!(tokens.access_token.expose_secret().is_empty());
    assert_eq!(tokens.refresh_token.unwrap().expose_secret(), "r");
}

#[test]
fn sr_t70_lifetimes_are_clamped_whatever_they_look_like() {
    let day = 24 * 60 * 60;
    for (spelling, seconds) in [
        ("3600", Some(3600)),
        ("3600.0", Some(3600)),
        ("\"3600\"", Some(3600)),
        ("1", Some(1)),
        ("0", Some(1)),
        ("-1", Some(1)),
        ("86400", Some(day)),
        ("86401", Some(day)),
        ("1e308", Some(day)),
        ("1e400", Some(day)),
        ("-1e400", Some(1)),
        ("99999999999999999999999999", Some(day)),
        ("\"inf\"", Some(day)),
        ("\"NaN\"", None),
        ("\"\"", None),
        ("\"soon\"", None),
        ("null", None),
        ("true", None),
        ("[]", None),
    ] {
        let body = format!(r#"{{"access_token":"a","token_type":"bearer","expires_in":{spelling}}}"#);
        assert_eq!(success(&body).expires_in, seconds.map(Duration::from_secs), "{spelling}");
    }
    assert_eq!(success(r#"{"access_token":"a","token_type":"bearer"}"#).expires_in, None);
}

#[test]
fn scopes_come_as_text_or_list() {
    for (spelling, expected) in [
        (r#""a b:c a""#, Some(vec!["a", "b:c"])),
        (r#"["a","b"]"#, Some(vec!["a", "b"])),
        (r#""""#, Some(vec![])),
        (r#""a \" b""#, Some(vec!["a", "b"])),
        ("null", None),
        ("7", None),
    ] {
        let body = format!(r#"{{"access_token":"a","token_type":"bearer","scope":{spelling}}}"#);
        let expected = expected.map(|names| names.into_iter().map(str::to_string).collect::<Vec<_>>());
        assert_eq!(success(&body).scope, expected, "{spelling}");
    }
}

#[test]
fn sr_t70_retry_after_is_seconds_or_a_date_and_never_long() {
    for (value, seconds) in [
        ("7", Some(7)),
        ("0", Some(0)),
        ("300", Some(300)),
        ("301", Some(300)),
        ("315360000", Some(300)),
        ("99999999999999999999999", Some(300)),
        ("Thu, 01 Jan 1970 00:17:40 GMT", Some(60)),
        ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
        ("Fri, 01 Jan 2100 00:00:00 GMT", Some(300)),
        ("-5", None),
        ("soon", None),
        ("", None),
    ] {
        let limited = classify(&response(429, &[("retry-after", value)], ""), at(1_000));
        let Outcome::CleanTransient { retry_after } = limited else { panic!("{limited:?}") };
        assert_eq!(retry_after, seconds.map(Duration::from_secs), "{value}");
        let down = classify(&response(503, &[("retry-after", value)], ""), at(1_000));
        assert_eq!(kind(&down), if seconds.is_some() { "clean" } else { "ambiguous" }, "{value}");
    }
}

#[test]
fn errors_and_debug_output_carry_no_secret() {
    let Outcome::Config(text) = json(400, r#"{"error":"x\r\ncanary secret"}"#) else { panic!() };
    assert!(!text.contains("canary"));
    let tokens = json(200, r#"{"access_token":"canary","token_type":"bearer","refresh_token":"canary"}"#);
    assert!(!format!("{tokens:?}").contains("canary"));
}

async fn sent(
    registration: &Registration,
    grant: Presented<'_>,
) -> (Option<String>, HashMap<String, String>) {
    let stub = Stub::start(|_, _| Scripted::json(200, r#"{"access_token":"a","token_type":"bearer"}"#)).await;
    let outcome =
        request(&outbound(), &local(), &stub.url("/token"), registration, grant, Some(RESOURCE), at(0)).await;
    assert_eq!(kind(&outcome), "success");
    let seen = stub.seen();
    assert_eq!((seen[0].method.as_str(), seen[0].path.as_str()), ("POST", "/token"));
    assert_eq!(seen[0].header("accept"), Some("application/json"));
    let form = seen[0].form();
    let map: HashMap<_, _> = form.iter().cloned().collect();
    assert_eq!(map.len(), form.len(), "a repeated parameter");
    (seen[0].header("authorization").map(str::to_string), map)
}

#[tokio::test]
async fn a_code_goes_out_with_its_verifier_and_the_resource_as_spelled() {
    let verifier = "v".into();
    let grant = Presented::Code { code: "c&d", verifier: &verifier, redirect_uri: REDIRECT };
    let (authorization, form) =
        sent(&client(AuthMethod::None, "https://gw.example/c.json", None), grant).await;
    assert_eq!(authorization, None);
    assert_eq!(form["grant_type"], "authorization_code");
    assert_eq!(form["code"], "c&d");
    assert_eq!(form["code_verifier"], "v");
    assert_eq!(form["redirect_uri"], REDIRECT);
    assert_eq!(form["resource"], RESOURCE);
    assert_eq!(form["client_id"], "https://gw.example/c.json");
    assert_eq!(form.len(), 6);
}

#[tokio::test]
async fn a_refresh_goes_out_with_the_resource() {
    let token = "r".into();
    let post = client(AuthMethod::ClientSecretPost, "id", Some("s&s"));
    let (authorization, form) = sent(&post, Presented::Refresh { refresh_token: &token }).await;
    assert_eq!(authorization, None);
    assert_eq!(form["grant_type"], "refresh_token");
    assert_eq!(form["refresh_token"], "r");
    assert_eq!(form["resource"], RESOURCE);
    assert_eq!((form["client_id"].as_str(), form["client_secret"].as_str()), ("id", "s&s"));
    assert_eq!(form.len(), 5);
}

#[tokio::test]
async fn basic_credentials_are_form_encoded_first() {
    let token = "r".into();
    let basic = client(AuthMethod::ClientSecretBasic, "a:b c", Some("s%ü/:"));
    let (authorization, form) = sent(&basic, Presented::Refresh { refresh_token: &token }).await;
    let authorization = authorization.unwrap();
    let encoded = authorization.strip_prefix("Basic ").unwrap();
    let decoded = String::from_utf8(BASE64.decode(encoded.as_bytes()).unwrap()).unwrap();
    assert_eq!(decoded, "a%3Ab+c:s%25%C3%BC%2F%3A");
    assert!(!form.contains_key("client_id") && !form.contains_key("client_secret"));
}

async fn refreshed(endpoint: &str, policy: &AddressPolicy) -> Outcome {
    let token = "r".into();
    let grant = Presented::Refresh { refresh_token: &token };
    let public = client(AuthMethod::None, "id", None);
    request(&outbound(), policy, endpoint, &public, grant, Some(RESOURCE), at(0)).await
}

#[tokio::test]
async fn what_was_never_sent_is_clean_or_a_matter_of_configuration() {
    let nobody = nobody();
    let endpoint = format!("http://{}/token", nobody.local_addr().unwrap());
    assert_eq!(kind(&refreshed(&endpoint, &local()).await), "clean");
    assert_eq!(kind(&refreshed(&endpoint, &AddressPolicy::public()).await), "config");
    let token = "r".into();
    let grant = Presented::Refresh { refresh_token: &token };
    let secretless = client(AuthMethod::ClientSecretBasic, "id", None);
    let outcome = request(&outbound(), &local(), &endpoint, &secretless, grant, Some(RESOURCE), at(0)).await;
    assert_eq!(kind(&outcome), "config");
}

#[tokio::test]
async fn a_connection_that_ends_after_the_request_is_ambiguous() {
    for answer in ["", "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"access"] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}/token", listener.local_addr().unwrap());
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut heard = Vec::new();
            while !heard.windows(15).any(|window| window == b"refresh_token=r") {
                let mut buffer = [0; 1024];
                let read = stream.read(&mut buffer).await.unwrap();
                heard.extend_from_slice(&buffer[..read]);
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        assert_eq!(kind(&refreshed(&endpoint, &local()).await), "ambiguous", "{answer}");
        serving.await.unwrap();
    }
}

#[tokio::test]
async fn sr_t22_no_redirect_is_followed_with_a_token() {
    for status in [301, 302, 303, 307, 308] {
        let elsewhere = Stub::start(|_, _| Scripted::status(200)).await;
        let target = elsewhere.url("/token");
        let stub = Stub::start(move |_, _| Scripted::status(status).header("location", &target)).await;
        assert_eq!(kind(&refreshed(&stub.url("/token"), &local()).await), "config");
        assert!(elsewhere.seen().is_empty());
    }
}
