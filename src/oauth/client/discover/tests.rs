#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use serde_json::{Value, json};

use super::*;
use crate::oauth::client::stub::{Answer, Seen, Stub, local, outbound};

const PATH_METADATA: &str = "/.well-known/oauth-protected-resource/mcp";
const ROOT_METADATA: &str = "/.well-known/oauth-protected-resource";
const RFC8414: &str = "/.well-known/oauth-authorization-server";
const OPENID: &str = "/.well-known/openid-configuration";

/// A server whose documents are given by path; everything else is 404.
async fn serving(documents: impl Fn(&str, &str) -> Option<Value> + Send + Sync + 'static) -> Stub {
    Stub::start(move |seen: &Seen, base: &str| match documents(&seen.path, base) {
        Some(document) => Answer::json(200, document),
        None => Answer::status(404),
    })
    .await
}

fn resource(base: &str) -> Value {
    json!({"resource": format!("{base}/mcp"), "authorization_servers": [base], "scopes_supported": ["a", "b"]})
}

fn server(issuer: &str) -> Value {
    json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{issuer}/authorize"),
        "token_endpoint": format!("{issuer}/token"),
        "registration_endpoint": format!("{issuer}/register"),
        "code_challenge_methods_supported": ["plain", "S256"],
    })
}

/// The usual server, with members of its authorization server metadata replaced (null removes).
async fn with_server(changes: Value) -> Stub {
    serving(move |path, base| match path {
        PATH_METADATA => Some(resource(base)),
        RFC8414 => {
            let mut document = server(base);
            for (key, value) in changes.as_object().unwrap() {
                match value {
                    Value::Null => document.as_object_mut().unwrap().remove(key),
                    value => document.as_object_mut().unwrap().insert(key.clone(), value.clone()),
                };
            }
            Some(document)
        }
        _ => None,
    })
    .await
}

async fn with_resource(document: impl Fn(&str) -> Value + Send + Sync + 'static) -> Stub {
    serving(move |path, base| match path {
        PATH_METADATA => Some(document(base)),
        RFC8414 => Some(server(base)),
        _ => None,
    })
    .await
}

async fn discovered(stub: &Stub) -> Result<Discovered, DiscoverError> {
    overridden(stub, &Overrides::default(), None).await
}

async fn challenged(stub: &Stub, bearer: &Bearer) -> Result<Discovered, DiscoverError> {
    overridden(stub, &Overrides::default(), Some(bearer)).await
}

async fn overridden(
    stub: &Stub,
    overrides: &Overrides,
    bearer: Option<&Bearer>,
) -> Result<Discovered, DiscoverError> {
    let url = stub.url("/mcp");
    discover(&outbound(), &Target { url: &url, policy: &local(), overrides }, bearer).await
}

fn hint(url: String) -> Bearer {
    Bearer { resource_metadata: Some(url), ..Bearer::default() }
}

#[tokio::test]
async fn spec_cl_1_the_path_document_is_enough() {
    let stub = with_server(json!({})).await;
    let found = discovered(&stub).await.unwrap();
    assert_eq!(stub.paths(), [PATH_METADATA, RFC8414]);
    assert_eq!(found.resource.unwrap(), stub.url("/mcp"));
    assert_eq!(found.scopes, ["a", "b"]);
    assert_eq!(found.server.issuer, stub.base());
    assert_eq!(found.server.token_endpoint, stub.url("/token"));
    assert_eq!(found.server.registration_endpoint, Some(stub.url("/register")));
    assert_eq!(found.server.auth_methods, ["client_secret_basic"]);
    assert!(!found.server.cimd && !found.server.iss_parameter);
}

#[tokio::test]
async fn spec_cl_1_the_root_document_comes_last_and_its_resource_stays_as_spelled() {
    let stub = serving(|path, base| match path {
        ROOT_METADATA => {
            Some(json!({"resource": base, "authorization_servers": [format!("{base}/tenant1")]}))
        }
        "/.well-known/oauth-authorization-server/tenant1" => Some(server(&format!("{base}/tenant1"))),
        _ => None,
    })
    .await;
    let found = discovered(&stub).await.unwrap();
    assert_eq!(found.resource.unwrap(), stub.base(), "no slash added");
    assert!(found.scopes.is_empty());
    let asked = [PATH_METADATA, ROOT_METADATA, "/.well-known/oauth-authorization-server/tenant1"];
    assert_eq!(stub.paths(), asked);
}

#[tokio::test]
async fn spec_cl_1_the_challenge_comes_first() {
    let stub = serving(|path, base| match path {
        "/custom/metadata.json" => Some(resource(base)),
        RFC8414 => Some(server(base)),
        _ => None,
    })
    .await;
    challenged(&stub, &hint(stub.url("/custom/metadata.json"))).await.unwrap();
    assert_eq!(stub.paths(), ["/custom/metadata.json", RFC8414]);
}

#[tokio::test]
async fn a_hint_that_leads_nowhere_or_elsewhere_gives_way_to_the_well_known_places() {
    let elsewhere = serving(|_, base| Some(resource(base))).await;
    let foreign = elsewhere.url("/prm").replace("127.0.0.1", "127.0.0.2");
    let stub = with_server(json!({})).await;
    for lost in [stub.url("/gone"), foreign, "http://169.254.169.254/x".into(), "file:///x".into()] {
        challenged(&stub, &hint(lost)).await.unwrap();
    }
    assert_eq!(stub.paths().iter().filter(|path| *path == PATH_METADATA).count(), 4);
    assert!(elsewhere.seen().is_empty());
    // A hint that is the well-known place itself is asked once.
    let empty = serving(|_, _| None).await;
    challenged(&empty, &hint(empty.url(PATH_METADATA))).await.unwrap();
    assert_eq!(empty.paths(), [PATH_METADATA, ROOT_METADATA, RFC8414, OPENID]);
    // Nor does what lies there, or an outage of it, cost more than the hint.
    for status in [200, 403, 429, 500] {
        let stub = Stub::start(move |seen, base| match seen.path.as_str() {
            "/hint" => Answer::status(status).header("content-type", "application/json").body("{}"),
            PATH_METADATA => Answer::json(200, resource(base)),
            RFC8414 => Answer::json(200, server(base)),
            _ => Answer::status(404),
        })
        .await;
        challenged(&stub, &hint(stub.url("/hint"))).await.unwrap();
    }
}

#[tokio::test]
async fn pom_21_resource_metadata_that_say_nothing_useful_are_looked_past() {
    let good = |base: &str| resource(base).to_string();
    type Document = fn(&str) -> String;
    // What the first place has, and whether the second is asked.
    let cases: [(&str, u16, Document, bool); 8] = [
        ("all of it", 200, |base| resource(base).to_string(), false),
        (
            "the least",
            200,
            |base| json!({"resource": format!("{base}/mcp"), "authorization_servers": [base]}).to_string(),
            false,
        ),
        ("no resource", 200, |base| json!({"authorization_servers": [base]}).to_string(), true),
        ("no servers", 200, |base| json!({"resource": format!("{base}/mcp")}).to_string(), true),
        (
            "an empty list",
            200,
            |base| json!({"resource": format!("{base}/mcp"), "authorization_servers": []}).to_string(),
            true,
        ),
        ("nothing", 404, |_| String::new(), true),
        ("no JSON", 200, |_| "{\"resource\":".to_owned(), true),
        ("another document", 200, |_| "[]".to_owned(), true),
    ];
    for (what, status, document, is_looked_past) in cases {
        let stub = Stub::start(move |seen, base| match seen.path.as_str() {
            PATH_METADATA => {
                Answer::status(status).header("content-type", "application/json").body(document(base))
            }
            ROOT_METADATA => Answer::status(200).header("content-type", "application/json").body(good(base)),
            RFC8414 => Answer::json(200, server(base)),
            _ => Answer::status(404),
        })
        .await;
        assert_eq!(discovered(&stub).await.unwrap().resource.unwrap(), stub.url("/mcp"), "{what}");
        let all = [PATH_METADATA, ROOT_METADATA, RFC8414];
        let asked: Vec<&str> =
            all.into_iter().filter(|place| is_looked_past || *place != ROOT_METADATA).collect();
        assert_eq!(stub.paths(), asked, "{what}");
    }
}

#[tokio::test]
async fn pom_22_server_metadata_that_cannot_be_used_give_way_to_the_next_place() {
    const APPENDED: &str = "/t1/.well-known/openid-configuration";
    let inserted = |place: &str| format!("{place}/t1");
    for path in ["", "/t1"] {
        let places = match path {
            "" => vec![RFC8414.to_owned(), OPENID.to_owned()],
            _ => vec![inserted(RFC8414), inserted(OPENID), APPENDED.to_owned()],
        };
        // What cannot be used, and whether it says so about itself.
        let unfit = [
            ("S256 is not announced", json!({"code_challenge_methods_supported": null})),
            ("no method is", json!({"code_challenge_methods_supported": []})),
            ("codes are not granted", json!({"grant_types_supported": ["implicit"]})),
            ("nothing is granted", json!({"grant_types_supported": []})),
            ("not a document", json!([1])),
        ];
        for (what, changes) in &unfit {
            for (position, last) in places.iter().enumerate() {
                let (changes, good, asked) = (changes.clone(), last.clone(), places.clone());
                let stub = serving(move |seen, base| match seen {
                    PATH_METADATA => Some(json!({"resource": format!("{base}/mcp"), "authorization_servers": [format!("{base}{path}")]})),
                    seen if seen == good => Some(server(&format!("{base}{path}"))),
                    seen if asked.iter().any(|place| place == seen) => {
                        let mut document = server(&format!("{base}{path}"));
                        match changes.as_object() {
                            Some(changes) => document.as_object_mut().unwrap().extend(changes.clone()),
                            None => document = changes.clone(),
                        }
                        Some(document)
                    }
                    _ => None,
                })
                .await;
                let found = discovered(&stub).await.unwrap();
                assert_eq!(found.server.issuer, stub.url(path), "{what}");
                let asked: Vec<&str> = std::iter::once(PATH_METADATA)
                    .chain(places[..=position].iter().map(String::as_str))
                    .collect();
                assert_eq!(stub.paths(), asked, "{what}");
            }
        }
    }
    // Absent means that codes are granted (RFC 8414 §2).
    discovered(&with_server(json!({"grant_types_supported": null})).await).await.unwrap();
    let none = with_server(json!({"grant_types_supported": []})).await;
    assert_eq!(discovered(&none).await, Err(DiscoverError::Unsupported("it does not grant codes")));
}

#[tokio::test]
async fn an_outage_where_the_challenge_leads_is_not_taken_for_a_server_without_metadata() {
    let stub = Stub::start(|seen, _| Answer::status(if seen.path == "/hint" { 503 } else { 404 })).await;
    let error = challenged(&stub, &hint(stub.url("/hint"))).await.unwrap_err();
    assert!(error.is_transient());
}

#[tokio::test]
async fn sr_t19_one_configured_endpoint_lends_no_trust_to_a_server_that_was_found() {
    let honest = "https://login.honest.example/authorize";
    let evil = json!({"token_endpoint": "https://evil.example/token"});
    let stub = with_server(evil).await;
    let alone = Overrides { authorization_endpoint: Some(honest.into()), ..Overrides::default() };
    assert!(matches!(overridden(&stub, &alone, None).await, Err(DiscoverError::Invalid(_))));
    let named = Overrides { issuer: Some(stub.base().into()), ..alone };
    assert_eq!(overridden(&stub, &named, None).await.unwrap().server.authorization_endpoint, honest);
    // Nor are secrets of a configured token endpoint shown elsewhere.
    let stub = with_server(json!({"revocation_endpoint": "https://evil.example/revoke"})).await;
    let alone =
        Overrides { token_endpoint: Some("https://api.honest.example/token".into()), ..Overrides::default() };
    let server = overridden(&stub, &alone, None).await.unwrap().server;
    assert_eq!((server.revocation_endpoint, server.registration_endpoint), (None, None));
}

#[tokio::test]
async fn a_configured_issuer_makes_up_for_a_list_that_is_missing() {
    let stub =
        with_resource(|base| json!({"resource": format!("{base}/mcp"), "scopes_supported": ["a"]})).await;
    let overrides = Overrides { issuer: Some(stub.base().into()), ..Overrides::default() };
    let found = overridden(&stub, &overrides, None).await.unwrap();
    assert_eq!((found.resource.unwrap(), found.scopes), (stub.url("/mcp"), vec!["a".to_owned()]));
}

#[tokio::test]
async fn pom_23_without_resource_metadata_the_origin_is_server_and_resource() {
    for place in [RFC8414, OPENID] {
        let stub = serving(move |path, base| (path == place).then(|| server(base))).await;
        let found = discovered(&stub).await.unwrap();
        assert_eq!(
            (found.server.issuer.as_str(), found.resource.as_deref().unwrap()),
            (stub.base(), stub.base()),
            "{place}"
        );
        let elsewhere = serving(move |path, base| {
            (path == "/.well-known/oauth-authorization-server/as").then(|| server(&format!("{base}/as")))
        })
        .await;
        let overrides = Overrides { issuer: Some(elsewhere.url("/as")), ..Overrides::default() };
        let found = overridden(&stub, &overrides, None).await.unwrap();
        assert_eq!(found.server.issuer, elsewhere.url("/as"), "what is configured comes first");
        assert_eq!(found.resource.unwrap(), stub.base());
    }
}

#[tokio::test]
async fn spec_cl_2_an_issuer_with_a_path_has_three_places() {
    let stub = serving(|path, base| match path {
        PATH_METADATA => {
            Some(json!({"resource": format!("{base}/mcp"), "authorization_servers": [format!("{base}/t1/")]}))
        }
        "/t1/.well-known/openid-configuration" => {
            let mut document = server(&format!("{base}/t1"));
            document["issuer"] = json!(format!("{base}/t1/"));
            Some(document)
        }
        _ => None,
    })
    .await;
    let found = discovered(&stub).await.unwrap();
    assert_eq!(found.server.issuer, stub.url("/t1/"), "the slash is part of the issuer");
    let asked = [
        PATH_METADATA,
        "/.well-known/oauth-authorization-server/t1",
        "/.well-known/openid-configuration/t1",
        "/t1/.well-known/openid-configuration",
    ];
    assert_eq!(stub.paths(), asked);
}

#[tokio::test]
async fn an_issuer_without_a_path_has_two_places() {
    let stub = serving(|path, base| match path {
        PATH_METADATA => Some(resource(base)),
        OPENID => Some(server(base)),
        _ => None,
    })
    .await;
    discovered(&stub).await.unwrap();
    assert_eq!(stub.paths(), [PATH_METADATA, RFC8414, OPENID]);
    let stub = with_resource(resource).await;
    discovered(&stub).await.unwrap();
    let nothing = serving(|path, base| (path == PATH_METADATA).then(|| resource(base))).await;
    assert!(matches!(discovered(&nothing).await, Err(DiscoverError::Unsupported(_))));
}

#[tokio::test]
async fn spec_cl_6_metadata_of_another_resource_stops_everything() {
    for wrong in ["https://evil.example.com/mcp", "/mcp", "http://127.0.0.1:1/mcp"] {
        let stub = with_resource(move |base| {
            let mut document = resource(base);
            document["resource"] = json!(wrong);
            document
        })
        .await;
        assert_eq!(discovered(&stub).await, Err(DiscoverError::ResourceMismatch));
        assert_eq!(stub.paths(), [PATH_METADATA], "neither the root nor a server is asked");
    }
}

#[tokio::test]
async fn a_configured_resource_vouches_for_metadata_that_names_it() {
    let stub = with_resource(|base| {
        let mut document = resource(base);
        document["resource"] = json!("https://public.example.com/mcp");
        document
    })
    .await;
    let overrides =
        Overrides { resource: Some("https://public.example.com/mcp".into()), ..Overrides::default() };
    let found = overridden(&stub, &overrides, None).await.unwrap();
    assert_eq!(found.resource.unwrap(), "https://public.example.com/mcp");
}

#[tokio::test]
async fn spec_cl_7_another_issuer_is_refused() {
    for wrong in ["https://attacker.example.com", "http://127.0.0.1"] {
        let stub = with_server(json!({"issuer": wrong})).await;
        assert_eq!(discovered(&stub).await, Err(DiscoverError::IssuerMismatch));
        assert_eq!(stub.paths(), [PATH_METADATA, RFC8414]);
    }
    let slash = with_resource(
        |base| json!({"resource": format!("{base}/mcp"), "authorization_servers": [format!("{base}/")]}),
    )
    .await;
    assert_eq!(discovered(&slash).await, Err(DiscoverError::IssuerMismatch), "a slash makes another issuer");
}

#[tokio::test]
async fn pom_b12_no_document_leads_to_another_issuer_address_or_scheme() {
    let other = with_server(json!({"issuer": "https://honest.example"})).await;
    assert_eq!(discovered(&other).await, Err(DiscoverError::IssuerMismatch));
    for key in ["authorization_endpoint", "token_endpoint", "registration_endpoint", "revocation_endpoint"] {
        for (endpoint, error) in [
            // Plain http is for hosts that the configuration names.
            ("http://as.example.com/x", DiscoverError::Refused),
            ("http://169.254.169.254/x", DiscoverError::Refused),
            ("ftp://as.example.com/x", DiscoverError::Invalid("url of another scheme than https")),
        ] {
            let stub = with_server(json!({key: endpoint})).await;
            assert_eq!(discovered(&stub).await, Err(error), "{key} {endpoint}");
        }
    }
    // Shared, mapped, translated and tunnelled addresses are as private as the plain ones.
    for host in [
        "100.64.0.1",
        "10.0.0.1",
        "169.254.169.254",
        "192.0.0.1",
        "198.18.0.1",
        "240.0.0.1",
        "[::ffff:10.0.0.1]",
        "[64:ff9b::a00:1]",
        "[2002:a00:1::]",
        "[fd00::1]",
        "[fe80::1]",
    ] {
        let stub = with_resource(move |base| {
            json!({"resource": format!("{base}/mcp"), "authorization_servers": [format!("https://{host}")]})
        })
        .await;
        let refused = discovered(&stub).await;
        assert!(
            matches!(refused, Err(DiscoverError::Refused | DiscoverError::Invalid(_))),
            "{host}: {refused:?}"
        );
    }
    // Wherever a redirect points, nobody goes there.
    let elsewhere = serving(|_, base| Some(resource(base))).await;
    for moved in [PATH_METADATA, RFC8414] {
        let target = elsewhere.url(moved);
        let stub = Stub::start(move |seen, base| match seen.path.as_str() {
            path if path == moved => Answer::status(302).header("location", &target),
            PATH_METADATA => Answer::json(200, resource(base)),
            _ => Answer::status(404),
        })
        .await;
        let found = discovered(&stub).await;
        assert!(found.is_err() || moved == PATH_METADATA, "{moved}: {found:?}");
    }
    assert!(elsewhere.seen().is_empty());
}

#[tokio::test]
async fn spec_cl_8_pkce_must_be_announced() {
    for methods in [Value::Null, json!([]), json!(["plain"]), json!(["s256"])] {
        let stub = with_server(json!({"code_challenge_methods_supported": methods})).await;
        assert!(matches!(discovered(&stub).await, Err(DiscoverError::Unsupported(_))), "{methods}");
    }
}

#[tokio::test]
async fn sr_t15_unsafe_endpoints_are_refused() {
    let keys = ["authorization_endpoint", "token_endpoint", "registration_endpoint", "revocation_endpoint"];
    for key in keys {
        for bad in
            ["javascript:alert(1)", "data:text/html,x", "/relative", "https://u@127.0.0.1/", "https://h/#f"]
        {
            let stub = with_server(json!({key: bad})).await;
            assert!(matches!(discovered(&stub).await, Err(DiscoverError::Invalid(_))), "{key} {bad}");
        }
        let stub = with_server(json!({key: "http://as.example.com/x"})).await;
        assert_eq!(discovered(&stub).await, Err(DiscoverError::Refused), "{key}");
    }
    for key in ["authorization_endpoint", "token_endpoint"] {
        let stub = with_server(json!({key: null})).await;
        assert!(matches!(discovered(&stub).await, Err(DiscoverError::Unsupported(_))), "{key}");
    }
}

#[tokio::test]
async fn sr_t19_a_borrowed_sign_in_page_is_refused_unless_configured() {
    let honest = "https://honest.example.com/authorize";
    let stub = with_server(json!({"authorization_endpoint": honest})).await;
    assert!(matches!(discovered(&stub).await, Err(DiscoverError::Invalid(_))));
    let overrides = Overrides { authorization_endpoint: Some(honest.into()), ..Overrides::default() };
    let found = overridden(&stub, &overrides, None).await.unwrap();
    assert_eq!(found.server.authorization_endpoint, honest);
    assert_eq!(found.server.token_endpoint, stub.url("/token"));
}

#[tokio::test]
async fn several_servers_the_first_that_passes_and_at_most_three() {
    let stub = with_resource(|base| {
        json!({
            "resource": format!("{base}/mcp"),
            "authorization_servers": ["javascript:x", format!("{base}/none"), base],
        })
    })
    .await;
    assert_eq!(discovered(&stub).await.unwrap().server.issuer, stub.base());
    let stub = with_resource(|base| {
        let mut many: Vec<String> = (0..1000).map(|number| format!("{base}/{number}")).collect();
        many.push(base.to_string());
        json!({"resource": format!("{base}/mcp"), "authorization_servers": many})
    })
    .await;
    assert!(matches!(discovered(&stub).await, Err(DiscoverError::Unsupported(_))));
    assert_eq!(stub.seen().len(), 1 + 3 * 3);
}

#[tokio::test]
async fn an_outage_does_not_move_a_user_to_the_next_server() {
    for status in [429, 500, 503] {
        let stub = Stub::start(move |seen, base| match seen.path.as_str() {
            PATH_METADATA => Answer::json(
                200,
                json!({
                    "resource": format!("{base}/mcp"),
                    "authorization_servers": [format!("{base}/down"), base],
                }),
            ),
            RFC8414 => Answer::json(200, server(base)),
            _ => Answer::status(status),
        })
        .await;
        let error = discovered(&stub).await.unwrap_err();
        assert!(error.is_transient(), "{status}");
    }
}

#[tokio::test]
async fn an_outage_of_the_path_document_is_not_its_absence() {
    let stub = Stub::start(|_, _| Answer::status(503)).await;
    assert_eq!(discovered(&stub).await, Err(DiscoverError::Unavailable));
    assert_eq!(stub.paths(), [PATH_METADATA]);
}

#[tokio::test]
async fn a_configured_issuer_must_be_listed_where_there_is_a_list() {
    let stub = with_server(json!({})).await;
    let overrides = Overrides { issuer: Some("https://other.example.com".into()), ..Overrides::default() };
    assert_eq!(overridden(&stub, &overrides, None).await, Err(DiscoverError::IssuerNotListed));
    assert_eq!(stub.paths(), [PATH_METADATA]);
    let overrides = Overrides { issuer: Some(stub.base().into()), ..Overrides::default() };
    assert!(overridden(&stub, &overrides, None).await.is_ok());
    let unlisted = serving(|path, base| (path == RFC8414).then(|| server(base))).await;
    let overrides = Overrides { issuer: Some(unlisted.base().into()), ..Overrides::default() };
    let found = overridden(&unlisted, &overrides, None).await.unwrap();
    assert_eq!(found.resource.unwrap(), unlisted.base());
    assert_eq!(unlisted.paths(), [PATH_METADATA, ROOT_METADATA, RFC8414]);
}

#[tokio::test]
async fn configured_endpoints_need_no_discovery() {
    let stub = serving(|_, _| None).await;
    let overrides = Overrides {
        authorization_endpoint: Some("https://login.example.com/a?x=1".into()),
        token_endpoint: Some("https://api.example.com/t".into()),
        scopes: Some(vec!["read".into()]),
        ..Overrides::default()
    };
    let found = overridden(&stub, &overrides, Some(&hint(stub.url("/prm")))).await.unwrap();
    assert!(stub.seen().is_empty());
    assert_eq!(found.server.issuer, "https://login.example.com");
    assert_eq!(found.server.registration_endpoint, None);
    assert_eq!(found.scopes, ["read"]);
    assert_eq!(found.resource.unwrap(), stub.base());
    let unsafe_ones = Overrides { token_endpoint: Some("http://api.example.com/t".into()), ..overrides };
    assert_eq!(overridden(&stub, &unsafe_ones, None).await, Err(DiscoverError::Refused));
}

#[tokio::test]
async fn without_resource_metadata_the_origin_is_the_authorization_server() {
    let stub = serving(|path, base| (path == RFC8414).then(|| server(base))).await;
    let found = discovered(&stub).await.unwrap();
    assert_eq!(stub.paths(), [PATH_METADATA, ROOT_METADATA, RFC8414]);
    assert_eq!(found.server.issuer, stub.base());
    assert_eq!(found.resource.unwrap(), stub.base());
    let slash = serving(|path, base| {
        (path == RFC8414).then(|| {
            let mut document = server(base);
            document["issuer"] = json!(format!("{base}/"));
            document
        })
    })
    .await;
    assert_eq!(discovered(&slash).await.unwrap().server.issuer, slash.url("/"));
    let wrong = serving(|path, _| (path == RFC8414).then(|| server("https://evil.example.com"))).await;
    assert_eq!(discovered(&wrong).await, Err(DiscoverError::IssuerMismatch));
}

#[tokio::test]
async fn without_any_metadata_the_fixed_paths_are_used() {
    let stub = serving(|_, _| None).await;
    let found = discovered(&stub).await.unwrap();
    assert_eq!(found.server.authorization_endpoint, stub.url("/authorize"));
    assert_eq!(found.server.token_endpoint, stub.url("/token"));
    assert_eq!(found.server.registration_endpoint, Some(stub.url("/register")));
    assert_eq!(found.server.auth_methods, ["none"]);
}

#[tokio::test]
async fn spec_cl_14_scopes_by_source() {
    let bearer = Bearer { scope: Some("mcp:write a a".into()), ..Bearer::default() };
    let stub = with_server(json!({})).await;
    assert_eq!(challenged(&stub, &bearer).await.unwrap().scopes, ["mcp:write", "a"]);
    let overrides = Overrides { scopes: Some(vec!["x".into()]), ..Overrides::default() };
    assert_eq!(overridden(&stub, &overrides, Some(&bearer)).await.unwrap().scopes, ["x"]);
}

#[tokio::test]
async fn spec_cl_12_offline_access_only_where_it_is_known() {
    let known = with_server(json!({"scopes_supported": ["a", "offline_access"]})).await;
    assert_eq!(discovered(&known).await.unwrap().scopes, ["a", "b", "offline_access"]);
    let overrides = Overrides { scopes: Some(vec!["x".into()]), ..Overrides::default() };
    assert_eq!(overridden(&known, &overrides, None).await.unwrap().scopes, ["x"]);
    let unknown = with_resource(|base| {
        json!({
            "resource": format!("{base}/mcp"),
            "authorization_servers": [base],
            "scopes_supported": ["a", "offline_access", "with space", ""],
        })
    })
    .await;
    assert_eq!(discovered(&unknown).await.unwrap().scopes, ["a"]);
    let silent = serving(|path, base| match path {
        PATH_METADATA => Some(json!({"resource": format!("{base}/mcp"), "authorization_servers": [base]})),
        RFC8414 => {
            let mut document = server(base);
            document["scopes_supported"] = json!(["offline_access"]);
            Some(document)
        }
        _ => None,
    })
    .await;
    assert!(discovered(&silent).await.unwrap().scopes.is_empty(), "never alone");
}

#[tokio::test]
async fn capabilities_are_read() {
    let stub = with_server(json!({
        "client_id_metadata_document_supported": true,
        "authorization_response_iss_parameter_supported": true,
        "token_endpoint_auth_methods_supported": ["none", "client_secret_post"],
        "revocation_endpoint": null,
    }))
    .await;
    let server = discovered(&stub).await.unwrap().server;
    assert!(server.cimd && server.iss_parameter);
    assert_eq!(server.auth_methods, ["none", "client_secret_post"]);
    let stored = serde_json::to_string(&server).unwrap();
    assert_eq!(serde_json::from_str::<AuthorizationServer>(&stored).unwrap(), server);
}

#[tokio::test]
async fn sr_t61_hostile_documents() {
    for (status, kind, body, expected) in [
        (200, "application/json", "x".repeat(300 * 1024), Some(DiscoverError::Invalid(""))),
        // Nothing that is metadata: the walk ends at the fixed paths.
        (200, "application/json", r#"{"resource":"#.to_string(), None),
        (200, "application/json", "[".repeat(100_000), None),
        (200, "application/json", r#"{"resource":"a","resource":"b"}"#.into(), None),
        (200, "application/json", r#"{"error":"none"}"#.into(), None),
        (200, "text/html", "<html>".into(), None),
        (302, "application/json", "{}".into(), None),
        (401, "application/json", "{}".into(), None),
        (500, "text/html", "<html>".into(), Some(DiscoverError::Unavailable)),
    ] {
        let shown: String = body.chars().take(30).collect();
        let stub = Stub::start(move |_, base| {
            Answer::status(status)
                .header("content-type", kind)
                .header("location", &format!("{base}/elsewhere"))
                .body(&body)
        })
        .await;
        let error = discovered(&stub).await.err();
        assert_eq!(
            error.as_ref().map(std::mem::discriminant),
            expected.as_ref().map(std::mem::discriminant),
            "{status} {kind} {shown}: {error:?}"
        );
        assert!(!stub.paths().contains(&"/elsewhere".to_string()));
    }
}

#[tokio::test]
async fn the_address_policy_has_the_first_word() {
    let stub = with_server(json!({})).await;
    let url = stub.url("/mcp");
    let target = Target { url: &url, policy: &AddressPolicy::public(), overrides: &Overrides::default() };
    assert_eq!(discover(&outbound(), &target, None).await, Err(DiscoverError::Refused));
    assert!(stub.seen().is_empty());
}

#[tokio::test]
async fn our_key_is_shown_only_where_its_algorithm_is_taken() {
    let both = ["private_key_jwt", "client_secret_post"];
    for (algorithms, expected) in [
        (json!(null), both.as_slice()),
        (json!(["RS256", "ES256"]), &both),
        (json!(["RS256", "PS256"]), &both[1..]),
        (json!([]), &both[1..]),
    ] {
        let stub = with_server(json!({
            "token_endpoint_auth_methods_supported": both,
            "token_endpoint_auth_signing_alg_values_supported": algorithms,
        }))
        .await;
        assert_eq!(discovered(&stub).await.unwrap().server.auth_methods, expected, "{algorithms}");
    }
}

/// What an upstream says of who takes assertions, with members of the server's metadata replaced.
async fn takes_assertions(changes: Value) -> Result<AssertionServer, DiscoverError> {
    let stub = serving(move |path, base| match path {
        PATH_METADATA => Some(resource(base)),
        RFC8414 => {
            let mut document = server_taking_assertions(base);
            for (name, value) in changes.as_object().unwrap() {
                document[name] = value.clone();
            }
            Some(document)
        }
        _ => None,
    })
    .await;
    assertion_server(&outbound(), (&stub.url("/mcp"), &local()), None, None).await
}

#[tokio::test]
async fn who_takes_assertions_needs_neither_codes_nor_pkce_and_an_address_that_may_be_asked() {
    let server = takes_assertions(json!({})).await.unwrap();
    assert!(server.token_endpoint.ends_with("/token") && server.resource.ends_with("/mcp"));
    for (changes, error) in [
        (json!({"issuer": "https://other.example"}), DiscoverError::IssuerMismatch),
        (json!({"token_endpoint": "http://169.254.169.254/token"}), DiscoverError::Refused),
        (json!({"token_endpoint": null}), DiscoverError::Unsupported("it has no token endpoint")),
    ] {
        assert_eq!(takes_assertions(changes).await, Err(error));
    }
    for grants in [json!(null), json!([]), json!(["authorization_code"])] {
        let refused = takes_assertions(json!({"grant_types_supported": grants})).await;
        assert!(matches!(refused, Err(DiscoverError::Unsupported(why)) if why.contains("jwt-bearer")));
    }
    // Nothing is guessed at.
    let stub = serving(|path, base| (path == RFC8414).then(|| server_taking_assertions(base))).await;
    let found = assertion_server(&outbound(), (&stub.url("/mcp"), &local()), None, None).await;
    assert_eq!(found, Err(DiscoverError::Unsupported("the upstream's resource metadata name none")));
}

fn server_taking_assertions(base: &str) -> Value {
    json!({"issuer": base, "token_endpoint": format!("{base}/token"), "grant_types_supported": [JWT_BEARER]})
}
