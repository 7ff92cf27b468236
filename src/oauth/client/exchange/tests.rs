#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use std::collections::BTreeMap;

use bytes::Bytes;
use http::HeaderMap;
use serde_json::json;

use super::*;
use crate::config::TokenEndpointAuthMethod;
use crate::oauth::client::stub::at as time;

fn shown() -> Shown {
    Shown { token: "of the user".into(), kind: ACCESS_TOKEN.into() }
}

fn exchange(requested: Option<&str>) -> Grant {
    Grant::Exchange { subject: shown(), actor: None, requested: requested.map(str::to_owned) }
}

fn answered(
    grant: &Grant,
    status: u16,
    headers: &[(&'static str, &str)],
    body: &str,
) -> Result<Given, Failure> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, value.parse().unwrap());
    }
    let response = Response {
        status: StatusCode::from_u16(status).unwrap(),
        headers: map,
        body: Bytes::from(body.to_owned()),
    };
    judge(&response, grant, time(1_000))
}

fn failed(grant: &Grant, status: u16, body: Value) -> Failure {
    answered(grant, status, &[], &body.to_string()).err().unwrap()
}

#[test]
fn what_is_given_has_to_be_what_was_asked_for() {
    let good = json!({"access_token": "t.o_k-e~n+/=", "token_type": "bearer", "issued_token_type": ACCESS_TOKEN,
        "expires_in": "60", "refresh_token": "dropped"});
    let given = answered(&exchange(None), 200, &[], &good.to_string()).ok().unwrap();
    assert_eq!(
        (given.token.expose_secret(), given.expires_in),
        ("t.o_k-e~n+/=", Some(Duration::from_secs(60)))
    );
    let patched = |name: &str, value: Value| {
        let mut answer = good.clone();
        answer[name] = value;
        answer.to_string()
    };
    let takes = |grant: &Grant, body: &str| answered(grant, 200, &[], body).is_ok();
    for (issued, requested, taken) in [
        (json!(JWT), None, true),
        (json!(JWT), Some(JWT), true),
        (json!(ACCESS_TOKEN), Some(ACCESS_TOKEN), true),
        (json!(JWT), Some(ACCESS_TOKEN), false),
        (json!(ID_TOKEN), None, false),
        (json!("urn:ietf:params:oauth:token-type:refresh_token"), None, false),
        (json!(null), None, false),
        (json!(ID_JAG), None, false),
        // What is asked for as an assertion must not be an access token.
        (json!(ID_JAG), Some(ID_JAG), false),
        (json!([ACCESS_TOKEN]), None, false),
    ] {
        let body = patched("issued_token_type", issued.clone());
        assert_eq!(takes(&exchange(requested), &body), taken, "{issued} for {requested:?}");
        // Nothing but an exchange says it.
        assert!(
            takes(&Grant::ClientCredentials, &body) && takes(&Grant::OnBehalfOf { subject: shown() }, &body)
        );
    }
    for (name, value) in [
        ("token_type", json!("N_A")),
        ("token_type", json!("DPoP")),
        ("token_type", json!(null)),
        ("access_token", json!("a b")),
        ("access_token", json!("a\r\nx: y")),
        ("access_token", json!("")),
        ("access_token", json!(7)),
        ("access_token", json!("x".repeat(16 * 1024 + 1))),
        // Some say so with status 200.
        ("error", json!("invalid_target")),
    ] {
        let refused = answered(&exchange(None), 200, &[], &patched(name, value.clone()));
        assert_eq!(refused.err(), Some(Failure::Refused), "{name}: {value}");
    }
    assert_eq!(
        answered(&exchange(None), 200, &[], &patched("expires_in", json!(null))).ok().unwrap().expires_in,
        None
    );
}

#[test]
fn an_assertion_is_no_access_token() {
    let answer = |kind| json!({"access_token": "a.b.c", "token_type": kind, "issued_token_type": ID_JAG, "expires_in": 300});
    let wanted = exchange(Some(ID_JAG));
    assert!(answered(&wanted, 200, &[], &answer("N_A").to_string()).is_ok());
    assert_eq!(answered(&wanted, 200, &[], &answer("Bearer").to_string()).err(), Some(Failure::Refused));
    assert_eq!(answered(&exchange(None), 200, &[], &answer("N_A").to_string()).err(), Some(Failure::Refused));
}

#[test]
fn a_failure_says_whose_it_is() {
    let (exchange, own) = (exchange(None), Grant::ClientCredentials);
    let error =
        |grant: &Grant, code: &str| failed(grant, 400, json!({"error": code, "error_description": "secret"}));
    for grant in [&exchange, &Grant::Assertion { subject: shown() }, &Grant::OnBehalfOf { subject: shown() }]
    {
        for code in ["invalid_grant", "invalid_token"] {
            assert_eq!(error(grant, code), Failure::Subject { surely: true });
        }
        for code in ["invalid_client", "invalid_target", "invalid_scope", "unauthorized_client", "<b>"] {
            assert_eq!(error(grant, code), Failure::Refused, "{code}");
        }
        assert_eq!(error(grant, "temporarily_unavailable"), Failure::Later { retry_after: None });
    }
    assert_eq!(error(&exchange, "invalid_request"), Failure::Subject { surely: false });
    // Without a subject there is nobody to be sent anywhere.
    for code in ["invalid_grant", "invalid_request", "interaction_required"] {
        assert_eq!(error(&own, code), Failure::Refused);
    }
    let later =
        |status, headers: &[(&'static str, &str)]| answered(&exchange, status, headers, "no json").err();
    for status in [408, 429, 500, 502, 503, 400, 404, 200] {
        assert_eq!(later(status, &[]), Some(Failure::Later { retry_after: None }), "{status}");
    }
    let wait = Some(Duration::from_secs(7));
    assert_eq!(later(429, &[("retry-after", "7")]), Some(Failure::Later { retry_after: wait }));
    assert_eq!(later(302, &[]), Some(Failure::Refused));
    assert_eq!(failed(&exchange, 400, json!({})), Failure::Refused);
}

#[test]
fn claims_are_passed_on_as_an_object_of_our_own_writing() {
    let claims = |claims: Value| match failed(
        &Grant::OnBehalfOf { subject: shown() },
        400,
        json!({"error": "interaction_required", "claims": claims}),
    ) {
        Failure::Interaction { claims } => claims,
        other => panic!("{other:?}"),
    };
    let wanted = r#"{"access_token":{"capolids":{"essential":true,"values":["c1"]}}}"#;
    assert_eq!(claims(json!(wanted)).as_deref(), Some(wanted));
    assert_eq!(claims(json!(format!(" {wanted}\n"))).as_deref(), Some(wanted));
    let long = json!({"x": "y".repeat(LONGEST_CLAIMS)}).to_string();
    for nothing in
        [json!(null), json!("no json"), json!("[1]"), json!("\"text\""), json!({"a": 1}), json!(long)]
    {
        assert_eq!(claims(nothing.clone()), None, "{nothing}");
    }
}

#[test]
fn every_form_sends_what_it_is_made_of_and_no_more() {
    let at = Exchanger {
        issuer: None,
        token_endpoint: None,
        client_id: "us".into(),
        client_secret: None,
        auth_method: TokenEndpointAuthMethod::None,
        scopes: vec![],
        audience: vec!["a1".into(), "a2".into()],
        resource: vec!["https://r1".into(), "https://r2".into()],
        params: BTreeMap::from([("more".into(), "said".into())]),
        header: http::header::AUTHORIZATION,
        format: "Bearer {value}".into(),
    };
    let wish =
        |grant| Wish { at: at.clone(), policy: AddressPolicy::public(), grant, first: None, upstream: None };
    let text = |grant: Grant| {
        let wish = wish(grant);
        fields(&wish, &wish.grant, "read write")
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect::<Vec<_>>()
            .join(" & ")
    };
    let rest = "audience=a1 & audience=a2 & resource=https://r1 & resource=https://r2 & scope=read write & more=said";
    assert_eq!(text(Grant::ClientCredentials), format!("grant_type=client_credentials & {rest}"));
    let actor = Some(Shown { token: "of us".into(), kind: JWT.into() });
    let full = Grant::Exchange { subject: shown(), actor, requested: Some(ACCESS_TOKEN.into()) };
    assert_eq!(
        text(full),
        format!(
            "grant_type={EXCHANGE} & subject_token=of the user & subject_token_type={ACCESS_TOKEN} & \
             requested_token_type={ACCESS_TOKEN} & actor_token=of us & actor_token_type={JWT} & {rest}"
        )
    );
    assert_eq!(
        text(Grant::Assertion { subject: shown() }),
        format!("grant_type={JWT_BEARER} & assertion=of the user & {rest}")
    );
    let nothing = Exchanger { audience: vec![], resource: vec![], params: BTreeMap::new(), ..at.clone() };
    let bare = Wish { at: nothing, ..wish(Grant::OnBehalfOf { subject: shown() }) };
    assert_eq!(
        fields(&bare, &bare.grant, ""),
        [("grant_type", JWT_BEARER), ("assertion", "of the user"), ("requested_token_use", "on_behalf_of")]
    );
}
