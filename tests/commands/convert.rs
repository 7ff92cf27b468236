//! `postern convert`: what a file of ToolHive says is said by the routes, which pass `postern validate`; what is not said is told, and
//! no secret is shown.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use crate::support;

use std::path::Path;

use serde_json::{Value, json};
use support::process::{Finished, run};

const CONFIG: u8 = 78;

async fn convert(file: &Path) -> Finished {
    run(&["convert", "--from", "toolhive", file.to_str().unwrap()], &[]).await
}

/// A file in `tests/data/toolhive`.
async fn sample(name: &str) -> Finished {
    convert(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/toolhive").join(name)).await
}

async fn written(text: &str) -> Finished {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("toolhive.yaml");
    std::fs::write(&file, text).unwrap();
    let finished = convert(&file).await;
    assert!(!format!("{}{}", finished.stdout, finished.stderr).contains("CANARY"), "{}", finished.stderr);
    finished
}

/// One resource with its `spec`, and a server that names it.
fn resource(spec: &Value) -> String {
    let of = |kind: &str, spec: &Value| json!({"apiVersion": "toolhive.stacklok.dev/v1beta1", "kind": kind, "metadata": {"name": "files"}, "spec": spec});
    let server =
        json!({"remoteUrl": "https://files.example.com/mcp", "externalAuthConfigRef": {"name": "files"}});
    format!("{}\n---\n{}\n", of("MCPExternalAuthConfig", spec), of("MCPRemoteProxy", &server))
}

fn routes(finished: &Finished) -> Value {
    let read: Value = serde_saphyr::from_str(&finished.stdout)
        .unwrap_or_else(|error| panic!("{error}\n{}", finished.stdout));
    read["routes"].clone()
}

fn credential(finished: &Finished, route: &str) -> Value {
    let routes = routes(finished);
    let found = routes.as_array().unwrap().iter().find(|entry| entry["name"] == route);
    found.unwrap_or_else(|| panic!("no {route} in {}", finished.stdout))["credential"].clone()
}

/// With the providers and variables that its comments name, what was printed is a configuration.
async fn assert_valid(finished: &Finished, providers: &[&str], variables: &[&str]) {
    let mut providers: Vec<Value> = providers
        .iter()
        .map(|name| {
            assert!(finished.stdout.contains(&format!("#   {name}\n")), "{name} is not named: {}", finished.stdout);
            let issuer = format!("https://{name}.example.com");
            json!({"name": name, "issuer": issuer, "client_id": "postern", "client_secret": {"env": "LOGIN_SECRET"}})
        })
        .collect();
    providers.push(json!({"name": "other", "issuer": "https://other.example.com", "client_id": "postern"}));
    let mut environment = vec![("LOGIN_SECRET", "secret")];
    for variable in variables {
        assert!(
            finished.stdout.contains(&format!("#   {variable}: ")),
            "{variable} is not named: {}",
            finished.stdout
        );
        environment.push((variable, "secret"));
    }
    let around = json!({"server": {"public_url": "http://127.0.0.1:8080", "listen": ["127.0.0.1:8080"]}, "login": {"oidc": providers}});
    let around = around.as_object().unwrap().iter().map(|(key, value)| format!("{key}: {value}\n"));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("postern.yaml");
    std::fs::write(&file, format!("{}{}", around.collect::<String>(), finished.stdout)).unwrap();
    let checked = run(&["validate", "--config", file.to_str().unwrap()], &environment).await;
    assert_eq!(checked.code, Some(0), "{}\n{}", checked.stderr, finished.stdout);
}

#[tokio::test]
async fn a_file_with_nothing_else_in_it_is_carried_over_whole() {
    let finished = sample("complete.yaml").await;
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""), "{}", finished.stdout);
    assert!(!finished.stdout.contains("CANARY"));
    let variables = ["EXCHANGE_CLIENT_SECRET", "EXCHANGE_CLIENT_SECRET_2", "SEARCH_API_KEY", "WIKI_TOKEN"];
    assert_valid(&finished, &["corp", "google"], &variables).await;

    assert_eq!(
        credential(&finished, "files"),
        json!({
            "kind": "token_exchange", "token_endpoint": "https://idp.example.com/token", "client_id": "postern",
            "client_secret": {"env": "EXCHANGE_CLIENT_SECRET"}, "subject_provider": "corp", "subject_token": "id",
            "audience": "files", "scopes": ["files:read", "files:write"], "name": "X-Upstream-Token",
        })
    );
    assert_eq!(credential(&finished, "mail"), json!({"kind": "upstream_inject", "provider": "google"}));
    let token = json!({"env": "WIKI_TOKEN"});
    let header =
        json!({"kind": "header", "name": "Authorization", "format": "Bearer {value}", "value": token});
    assert_eq!(credential(&finished, "wiki-en"), header, "the default of the group");
    let key = json!({"env": "SEARCH_API_KEY"});
    assert_eq!(credential(&finished, "search"), json!({"kind": "header", "name": "X-Api-Key", "value": key}));
    assert_eq!(credential(&finished, "public"), json!({"kind": "none"}));
    // The Secret of this name in another namespace is another one.
    assert_eq!(credential(&finished, "files-2")["value"], json!({"env": "EXCHANGE_CLIENT_SECRET_2"}));
    let role = |claim: &str, value: &str, name: &str, priority: i64| {
        let arn = format!("arn:aws:iam::123456789012:role/{name}");
        json!({"claim": claim, "values": [value], "arn": arn, "priority": priority})
    };
    assert_eq!(
        credential(&finished, "aws"),
        json!({
            "kind": "aws_sigv4", "subject_provider": "corp", "region": "eu-central-1", "service": "aws-mcp",
            // Without a priority ToolHive tries it last, Postern first.
            "roles": [role("groups", "staff", "staff", i64::from(i32::MAX)), role("teams", "admins", "admin", 1)],
            "fallback_role": "arn:aws:iam::123456789012:role/guest", "session_name_claim": "email", "duration": "1800s",
        })
    );
    let upstream = |name: &str| {
        let routes = routes(&finished);
        routes.as_array().unwrap().iter().find(|route| route["name"] == name).unwrap()["upstream"].clone()
    };
    assert_eq!(upstream("mail"), json!({"url": "http://mail.tools.svc:8080/mcp", "allow_private": true}));
    assert_eq!(upstream("files"), json!({"url": "https://files.example.com/mcp"}));
}

#[tokio::test]
async fn a_vmcp_s_own_file_is_carried_over_and_its_secrets_are_not_shown() {
    let finished = sample("vmcp.yaml").await;
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""), "{}", finished.stdout);
    assert!(!finished.stdout.contains("CANARY"), "{}", finished.stdout);
    let variables = ["FILES_CLIENT_SECRET", "SEARCH_KEY", "WIKI_HEADER_VALUE"];
    assert_valid(&finished, &["google"], &variables).await;
    let files = credential(&finished, "files");
    assert_eq!(
        (&files["subject"], &files["scopes"]),
        (&json!("caller"), &json!(["files:read", "files:write"]))
    );
    assert_eq!(files["subject_token_type"], "urn:ietf:params:oauth:token-type:access_token");
    assert_eq!(routes(&finished)[0]["upstream"]["allow_hosts"], json!(["sts.example.com"]), "it speaks http");
    assert_eq!(credential(&finished, "search")["value"], json!({"env": "SEARCH_KEY"}));
    assert_eq!(credential(&finished, "notes"), json!({"kind": "none"}), "the default");
    assert_eq!(routes(&finished).as_array().unwrap().len(), 5);
}

#[tokio::test]
async fn exchanges_in_two_steps_and_in_entra_s_form_are_carried_over() {
    let finished = sample("enterprise.yaml").await;
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""), "{}", finished.stdout);
    assert_valid(&finished, &["corp", "entra"], &["CHAT_SECRET", "DRIVE_SECRET", "ENTRA_SECRET"]).await;
    assert_eq!(
        credential(&finished, "graph"),
        json!({
            "kind": "entra_obo", "subject_provider": "entra", "tenant": "contoso.onmicrosoft.com",
            "client_id": "11111111-2222-3333-4444-555555555555", "client_secret": {"env": "ENTRA_SECRET"},
            "scopes": ["api://graph/.default"],
        })
    );
    let drive = credential(&finished, "drive");
    assert_eq!(drive["token_endpoint"], "https://login.microsoftonline.us/contoso.com/oauth2/v2.0/token");
    assert_eq!(drive["scopes"], json!(["api://drive/.default"]));
    assert_eq!(
        credential(&finished, "chat"),
        json!({
            "kind": "id_jag", "subject_provider": "corp", "token_endpoint": "http://chat.apps.svc.cluster.local/token",
            "client_id": "postern", "client_secret": {"env": "CHAT_SECRET"}, "audience": "https://chat.example.com",
            "resource": "https://chat.example.com/mcp", "scopes": ["chat.read"],
        })
    );
    // What the provider's entry in `login.oidc` has to be.
    for fact in [
        "its token endpoint is https://corp.example.com/token",
        "its `client_id` is gateway",
        "its `client_secret` is key secret of",
    ] {
        assert!(finished.stdout.contains(fact), "{fact}: {}", finished.stdout);
    }
    let allowed = routes(&finished)
        .as_array()
        .unwrap()
        .iter()
        .any(|route| route["upstream"]["allow_hosts"] == json!(["chat.apps.svc.cluster.local"]));
    assert!(allowed, "{}", finished.stdout);
}

#[tokio::test]
async fn a_provider_without_a_name_is_no_provider() {
    let exchange = |name: Option<&str>| {
        let mut keys = json!({"tokenUrl": "https://idp.example.com/token", "clientId": "c", "audience": "a"});
        if let Some(name) = name {
            keys["subjectProviderName"] = json!(name);
        }
        json!({"type": "tokenExchange", "tokenExchange": keys})
    };
    let inject = |keys: Value| json!({"type": "upstreamInject", "upstreamInject": keys});
    for (spec, key) in [
        (inject(json!({"providerName": ""})), "spec.upstreamInject.providerName: is empty"),
        (inject(json!({})), "spec.upstreamInject.providerName: is missing"),
        (inject(json!({"providerName": "Corp IdP"})), "spec.upstreamInject.providerName: is no name"),
        (exchange(Some("")), "spec.tokenExchange.subjectProviderName: is empty"),
        (
            json!({"type": "awsSts", "awsSts": {"region": "eu-central-1"}}),
            "spec.awsSts.subjectProviderName: is missing",
        ),
    ] {
        let finished = written(&resource(&spec)).await;
        assert_eq!(finished.code, Some(1), "{}", finished.stdout);
        assert!(
            finished.stderr.contains(&format!("toolhive.yaml:1: MCPExternalAuthConfig files: {key}")),
            "{}",
            finished.stderr
        );
        assert_eq!(routes(&finished), json!([]), "{}", finished.stdout);
        assert!(!finished.stdout.contains("default"));
    }
    // Without the key it is the caller's, unless ToolHive would take the first of its own providers.
    let alone = resource(&exchange(None));
    let finished = written(&alone).await;
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert_eq!(credential(&finished, "files")["subject"], "caller");
    let server =
        json!({"groupRef": {"name": "g"}, "authServerConfig": {"upstreamProviders": [{"name": "corp"}]}});
    let gateway = json!({"apiVersion": "toolhive.stacklok.dev/v1beta1", "kind": "VirtualMCPServer", "metadata": {"name": "v"}, "spec": server});
    let finished = written(&format!("{alone}---\n{gateway}\n")).await;
    assert_eq!((finished.code, routes(&finished)), (Some(1), json!([])));
    assert!(
        finished.stderr.contains("subjectProviderName: is missing, and ToolHive takes"),
        "{}",
        finished.stderr
    );
}

#[tokio::test]
async fn what_cannot_be_carried_over_is_told_with_its_document_key_and_reason() {
    let header = json!({"headerName": "X-Key", "valueSecretRef": {"name": "s", "key": "k"}});
    let header_of = |more: Value| {
        let mut spec = json!({"type": "headerInjection", "headerInjection": header});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    let aws = |matcher: &str| {
        let roles = json!([{"matcher": matcher, "roleArn": "arn:aws:iam::123456789012:role/r"}]);
        json!({"type": "awsSts", "awsSts": {"region": "eu-central-1", "subjectProviderName": "corp", "roleMappings": roles}})
    };
    let of_header = |header: Value| json!({"type": "headerInjection", "headerInjection": header});
    // The spec, what is told, and how many routes there are.
    for (spec, told, count) in [
        (header_of(json!({"later": 1})), "spec.later: belongs to another `type`", 1),
        (
            of_header(
                json!({"headerName": "X-Key", "valueSecretRef": {"name": "s", "key": "k"}, "headerValue": "CANARY"}),
            ),
            "spec.headerInjection.headerValue: has no counterpart",
            1,
        ),
        (
            of_header(json!({"headerName": "Host", "headerValue": "CANARY"})),
            "its route would be refused: credential.name: is a header that",
            0,
        ),
        (
            of_header(json!({"headerName": 7, "headerValue": "CANARY"})),
            "spec.headerInjection.headerName: is not text",
            0,
        ),
        (
            of_header(json!({"headerName": "X-Key", "valueSecretRef": "CANARY"})),
            "valueSecretRef: is not a mapping",
            0,
        ),
        (
            json!({"type": "tokenExchange", "tokenExchange": {"tokenUrl": "https://a.test/t"}}),
            "tokenExchange.clientId: is missing",
            0,
        ),
        (
            json!({"type": "tokenExchange", "tokenExchange": {"tokenUrl": "https://u:CANARY@a.test/t", "clientId": "c"}}),
            "credential.token_endpoint: contains a user name",
            0,
        ),
        (
            json!({"type": "xaa", "xaa": {"subjectProviderName": "corp", "targetTokenUrl": "https://a.test/t", "targetClientId": "c",
            "idpTokenUrl": "https://u:CANARY@a.test/t"}}),
            "spec.xaa.idpTokenUrl: contains a user name",
            0,
        ),
        (
            json!({"type": "obo", "obo": {"subjectTokenProviderName": "corp", "clientId": "c", "tenantId": "t.test", "cacheSkew": "30s",
            "clientSecretRef": {"name": "s", "key": "k"}, "scopes": ["a"]}}),
            "spec.obo.cacheSkew: Postern renews",
            1,
        ),
        (json!({"type": "tokenExchange"}), "spec.tokenExchange: is missing", 0),
        (json!({"type": "magic"}), "spec.type: is no kind of credential", 0),
        (
            json!({"type": "embeddedAuthServer", "embeddedAuthServer": {"issuer": "https://a.test"}}),
            "spec.embeddedAuthServer: Postern is the authorization server itself",
            0,
        ),
        (aws(r#"claims["sub"] == "a" && true"#), "roleMappings[0].matcher: is an expression", 0),
    ] {
        let finished = written(&resource(&spec)).await;
        assert_eq!(finished.code, Some(1), "{spec}\n{}", finished.stdout);
        assert!(finished.stderr.contains(told), "{spec}\n{}", finished.stderr);
        assert_eq!(routes(&finished).as_array().unwrap().len(), count, "{spec}\n{}", finished.stdout);
    }
}

#[tokio::test]
async fn what_servers_say_besides_is_told_too() {
    let finished = sample("lossy.yaml").await;
    assert_eq!(finished.code, Some(1));
    let told: Vec<&str> =
        finished.stderr.lines().map(|line| line.split_once("lossy.yaml:").unwrap().1).collect();
    let expected = [
        "2: ConfigMap settings: is not of ToolHive",
        "6: MCPOIDCConfig corp: is not carried over",
        "11: MCPExternalAuthConfig later: has a version that is not known here",
        "25: MCPRemoteProxy files: spec.authzConfig: rules are written in `policy`",
        "25: MCPRemoteProxy files: spec.oidcConfigRef: who is let in",
        "25: MCPRemoteProxy files: spec.surprise: has no counterpart",
        "36: MCPServer local: spec.image: Postern starts no servers",
        "45: MCPRemoteProxy lost: spec.externalAuthConfigRef: names a resource that is not in the file",
        "52: MCPRemoteProxy old: spec.transport: Postern passes on streamable HTTP alone",
        "59: VirtualMCPServer office: spec.incomingAuth: who is let in",
        "59: VirtualMCPServer office: spec.outgoingAuth.backends.files: the server has a credential of its own",
        "59: VirtualMCPServer office: spec.outgoingAuth.default: no server in this file gets it",
    ];
    for wanted in expected {
        assert!(told.iter().any(|line| line.starts_with(wanted)), "{wanted}\nis not in\n{}", finished.stderr);
    }
    assert_eq!(told.len(), expected.len(), "{}", finished.stderr);
    let names: Vec<Value> =
        routes(&finished).as_array().unwrap().iter().map(|route| route["name"].clone()).collect();
    assert_eq!(names, ["files", "local"], "{}", finished.stdout);
    assert_eq!(routes(&finished)[1]["upstream"], json!({"url": null}), "nobody says where it is");
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_78() {
    for (text, told) in [
        ("a: [", "not valid YAML"),
        ("a: 1\na: 2 # CANARY\n", "not valid YAML"),
        ("", "nothing in it is of ToolHive"),
        ("hello: world\n", "nothing in it is of ToolHive"),
        ("apiVersion: v1\nkind: Secret\ndata: {a: CANARY}\n", "nothing in it is of ToolHive"),
    ] {
        let finished = written(text).await;
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(CONFIG.into()), ""), "{text}");
        assert!(finished.stderr.contains(told), "{text}: {}", finished.stderr);
    }
    let finished = convert(Path::new("/nowhere/toolhive.yaml")).await;
    assert_eq!(finished.code, Some(CONFIG.into()));
    assert!(finished.stderr.contains("cannot be read"));
}

#[tokio::test]
async fn what_others_have_written_stays_in_its_place() {
    let spec = json!({"type": "headerInjection", "headerInjection": {
        "headerName": "X-Key", "valueSecretRef": {"name": "s\nroutes: []", "key": "k\u{2028}#\u{85}x: y"}}});
    let finished = written(&resource(&spec)).await;
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert_eq!(routes(&finished).as_array().unwrap().len(), 1, "{}", finished.stdout);
    assert_valid(&finished, &[], &["S_ROUTES_____K___X__Y"]).await;
}
