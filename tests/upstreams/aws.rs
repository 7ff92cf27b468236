//! Routes whose requests are signed with the credentials of the user's role at AWS: which role that is, that what arrives is
//! what was signed, and what happens where there is none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::collections::HashSet;
use std::time::Duration;

use serde_json::{Value, json};
use support::aws::{Given, REGION, SERVICE, Sts};
use support::browser::{Arrival, Browser};
use support::client::{Callback, Client, Tokens};
use support::gate::Gate;
use support::gateway::{Gateway, Route};
use support::identity::IdentityProvider;
use support::mcp::{McpAnswer, McpRequest};
use support::raw::exchange;
use support::received::Received;
use support::script::Answer;
use support::upstream::Upstream;
use support::{PATIENCE, eventually};

const SECOND: Duration = Duration::from_secs(1);

fn arn(name: &str) -> String {
    format!("arn:aws:iam::123456789012:role/{name}")
}

/// Admins are admins, staff is staff, and nobody else is anything.
fn credential(sts: &Sts) -> Value {
    json!({"kind": "aws_sigv4", "region": REGION, "service": SERVICE, "subject_provider": "corp",
    "sts_endpoint": sts.endpoint, "session_name_claim": "email", "roles": [
        {"claim": "groups", "values": ["staff"], "arn": arn("staff"), "priority": 5},
        {"claim": "groups", "values": ["admins", "owners"], "arn": arn("admin"), "priority": 1},
    ]})
}

struct World {
    provider: IdentityProvider,
    sts: Sts,
    upstream: Upstream,
    gateway: Gateway,
    client: Client,
    tokens: Tokens,
}

impl World {
    /// Somebody with these groups has signed in. `more`: keys of the credential.
    async fn of(groups: Value, more: Value) -> Self {
        let provider = IdentityProvider::start().await;
        provider.set(|script| {
            script.refreshable = true;
            script.claims["groups"] = groups;
        });
        let (sts, upstream) = (Sts::trusting(&provider).await, Upstream::open().await);
        let mut credential = credential(&sts);
        for (key, value) in more.as_object().unwrap() {
            credential[key] = value.clone();
        }
        let gateway = Gateway::builder()
            .route(Route::to("demo", &upstream.url(), credential))
            .env("IDP_SECRET", "of the identity provider")
            .with("login", json!({"oidc": [provider.entry()]}))
            .start()
            .await;
        let client = Client::register(&gateway).await;
        let tokens = sign_in(&client).await;
        World { provider, sts, upstream, gateway, client, tokens }
    }

    fn call(&self) -> McpRequest {
        self.gateway.mcp("demo").bearer(&self.tokens.access_token)
    }

    async fn echo(&self, message: &str) -> McpAnswer {
        self.call().tool("echo", json!({"message": message})).await
    }

    /// Who has signed each of the calls that the upstream has got.
    #[track_caller]
    fn signers(&self) -> Vec<Given> {
        let signer = |call: &Received| self.sts.signer(call).unwrap_or_else(|why| panic!("{why}"));
        self.upstream.calls().iter().map(signer).collect()
    }

    /// Whatever happened, nobody got what is ours or the client's, and the upstream nothing of the provider's.
    #[track_caller]
    fn assert_nothing_leaked(&self) {
        let held = [&*self.tokens.access_token, &*self.tokens.refresh_token];
        self.upstream.assert_never_saw(&held);
        for token in held {
            assert!(!self.sts.requests.mention(token));
        }
        for shown in self.sts.requests.all().iter().filter_map(|request| request.form("WebIdentityToken")) {
            assert!(!self.upstream.requests.mention(&shown), "the ID token has come to the upstream");
        }
        assert!(!self.upstream.requests.mention("access-"), "a token of the provider's");
        self.gateway.output.assert_no_secret();
    }
}

/// In a browser of its own.
async fn sign_in(client: &Client) -> Tokens {
    let request = client.authorization("demo");
    let arrival = Browser::new().authorize_or_stop(&client.redirect_uri, &request.url()).await;
    let Arrival::Client(url) = arrival else { panic!("{}", arrival.page().text()) };
    client.redeem(&Callback::of(&url).code(), &request).await.tokens()
}

#[tokio::test]
async fn a_request_is_signed_with_the_credentials_of_the_users_role() {
    let world = World::of(json!(["staff", "admins"]), json!({})).await;
    assert_eq!(world.sts.requests.all().len(), 0, "a role is assumed when it is needed");
    for message in ["one", "zwei ü", "\u{1F980}"] {
        assert_eq!(world.echo(message).await.tool_text(), message);
    }
    let call = world.call();
    assert_eq!(
        call.get().await.status,
        405,
        "the upstream has no stream, and a signed request has no body here"
    );
    let twice = call
        .clone()
        .header("mcp-name", "a")
        .and_header("accept-language", "de  ,  en")
        .and_header("accept-language", "fr");
    assert_eq!(twice.call("tools/list", json!({})).await.status, 200);
    let given = world.sts.given();
    assert_eq!(given.len(), 1, "for all of them");
    assert_eq!(
        (&*given[0].role, &*given[0].session_name, given[0].duration),
        (&*arn("admin"), "ada@example.com", 3600)
    );
    assert_eq!(
        world.signers(),
        [given[0].clone(), given[0].clone(), given[0].clone(), given[0].clone(), given[0].clone()]
    );
    world.assert_nothing_leaked();
    // The check itself sees what was changed on the way.
    let mut call = world.upstream.calls().remove(0);
    call.body = call.text().replace("one", "two").into();
    assert!(world.sts.signer(&call).unwrap_err().contains("wrong signature"));
}

#[tokio::test]
async fn what_a_client_says_about_signatures_does_not_arrive() {
    let world = World::of(json!("admins"), json!({})).await;
    let mut call = world.call();
    for name in ["x-amz-date", "x-amz-security-token", "x-amz-content-sha256", "x-amz-target"] {
        call = call.header(name, "of the client");
    }
    assert_eq!(call.tool("echo", json!({})).await.status, 200);
    world.signers();
    assert!(!world.upstream.requests.mention("of the client"));
}

#[tokio::test]
async fn who_has_no_role_is_refused_unless_there_is_one_for_everybody_else() {
    let world = World::of(json!(["guests"]), json!({})).await;
    let answer = world.echo("x").await;
    assert_eq!((answer.status, &answer.json()["error"]), (403, &json!("access_denied")), "{}", answer.body);
    assert_eq!((world.sts.requests.all().len(), world.upstream.calls().len()), (0, 0));
    world.assert_nothing_leaked();

    let world = World::of(json!(["guests"]), json!({"fallback_role": arn("guest"), "duration": "15m"})).await;
    assert_eq!(world.echo("x").await.status, 200);
    assert_eq!(world.signers()[0].role, arn("guest"));
    assert_eq!(world.signers()[0].duration, 900);
}

#[tokio::test]
async fn conditions_on_the_caller_give_a_role_as_well() {
    let roles = json!([
        {"when": "caller.client == 'somebody else' || caller.machine", "arn": arn("admin"), "priority": 1},
        {"when": "'staff' in caller.groups && caller.email.endsWith('@example.com')", "arn": arn("staff"), "priority": 2},
        {"when": "caller.claims.team == 'cats'", "arn": arn("cats"), "priority": 3},
    ]);
    let more = json!({"roles": roles, "fallback_role": arn("guest")});
    let world = World::of(json!(["staff"]), more.clone()).await;
    assert_eq!(world.echo("x").await.tool_text(), "x");
    assert_eq!(world.signers()[0].role, arn("staff"));
    world.assert_nothing_leaked();
    // What nobody knows of the caller decides nothing: there is no role then, and none for everybody else either.
    let world = World::of(json!(["guests"]), more).await;
    let answer = world.echo("x").await;
    assert_eq!((answer.status, &answer.json()["error"]), (403, &json!("access_denied")), "{}", answer.body);
    assert_eq!((world.sts.requests.all().len(), world.upstream.calls().len()), (0, 0));
    world.assert_nothing_leaked();
}

#[tokio::test]
async fn another_client_of_the_same_user_may_have_another_role() {
    let world = World::of(json!([]), json!({"fallback_role": arn("guest")})).await;
    let other = Client::register(&world.gateway).await;
    let mut credential = credential(&world.sts);
    credential["roles"] =
        json!([{"when": format!("caller.client == '{}'", world.client.id), "arn": arn("known")}]);
    credential["fallback_role"] = json!(arn("guest"));
    let route = Route::to("demo", &world.upstream.url(), credential);
    world.gateway.reconfigure("routes", json!([route.document()]));
    world.gateway.hang_up();
    world.gateway.output.shows("the configuration is in use").await;
    let theirs = sign_in(&other).await;
    for _ in 0..2 {
        assert_eq!(world.echo("x").await.status, 200);
        let call = world.gateway.mcp("demo").bearer(&theirs.access_token);
        assert_eq!(call.tool("echo", json!({"message": "x"})).await.status, 200);
    }
    let roles: Vec<_> = world.signers().into_iter().map(|given| given.role).collect();
    assert_eq!(roles, [arn("known"), arn("guest"), arn("known"), arn("guest")]);
    world.assert_nothing_leaked();
}

#[tokio::test]
async fn many_calls_at_once_assume_the_role_once_and_it_is_renewed_before_it_ends() {
    let world = World::of(json!("staff"), json!({})).await;
    let gate = Gate::shut();
    world.sts.set(|script| {
        script.lifetime = Some(4 * SECOND);
        script.gate = Some(gate.clone());
    });
    let calls: Vec<_> = (0..40)
        .map(|_| {
            let call = world.call();
            tokio::spawn(async move { call.tool("echo", json!({})).await.status })
        })
        .collect();
    gate.wait_for(1, PATIENCE).await;
    gate.open();
    for call in calls {
        assert_eq!(call.await.unwrap(), 200);
    }
    assert_eq!(world.sts.given().len(), 1);
    world.sts.set(|script| script.gate = None);
    // Calls go on all the while, each signed with what is good.
    let keys =
        || world.signers().into_iter().map(|given| given.access_key).collect::<HashSet<String>>().len();
    eventually(PATIENCE, async || {
        assert_eq!(world.echo("x").await.status, 200);
        world.sts.given().len() >= 3 && keys() >= 2
    })
    .await;
    // One that is good serves while the token service is down.
    world.sts.set(|script| script.lifetime = Some(Duration::from_secs(300)));
    let before = world.sts.given().len();
    eventually(PATIENCE, async || {
        assert_eq!(world.echo("x").await.status, 200);
        world.sts.given().len() > before
    })
    .await;
    world.sts.set(|script| script.refusal = Some((503, "ServiceUnavailable")));
    assert_eq!(world.echo("x").await.status, 200);
    world.assert_nothing_leaked();
}

#[tokio::test]
async fn a_token_service_that_gives_nothing_is_no_matter_for_the_user() {
    for (status, code, answer, quiet) in [
        (500, "InternalFailure", 503, false),
        (400, "IDPCommunicationError", 503, false),
        (400, "Throttling", 503, false),
        (403, "AccessDenied", 502, true),
        (400, "InvalidIdentityToken", 502, true),
    ] {
        let world = World::of(json!("staff"), json!({})).await;
        world.sts.set(|script| script.refusal = Some((status, code)));
        let refused = world.echo("x").await;
        assert_eq!(refused.status, answer, "{code}: {}", refused.body);
        assert!(refused.header("www-authenticate").is_none());
        assert_eq!(refused.header("retry-after").is_some(), answer == 503, "{code}");
        assert_eq!(world.echo("x").await.status, answer, "{code}");
        assert_eq!(world.sts.requests.all().len(), 1, "{code}: it is not asked again at once");
        assert_eq!(world.upstream.calls().len(), 0, "{code}");
        world.assert_nothing_leaked();
        world.sts.set(|script| script.refusal = None);
        if !quiet {
            eventually(PATIENCE, async || world.echo("x").await.status == 200).await;
        }
        // What the service says about it may hold anything.
        assert!(world.gateway.logs().iter().all(|line| !line.contains("<Message>")));
    }
}

#[tokio::test]
async fn an_id_token_that_has_ended_at_aws_is_renewed_or_its_user_asked() {
    let world = World::of(json!("staff"), json!({})).await;
    world.provider.set(|script| script.id_token_on_refresh = true);
    world.sts.set(|script| script.refusal = Some((400, "ExpiredTokenException")));
    let answer = world.echo("x").await;
    assert_eq!(answer.status, 401, "{}", answer.body);
    let shown: Vec<_> =
        world.sts.requests.all().iter().filter_map(|request| request.form("WebIdentityToken")).collect();
    assert_eq!(shown.len(), 2);
    assert_ne!(shown[0], shown[1], "a newer one was tried");
    assert_eq!(world.upstream.calls().len(), 0);
    world.assert_nothing_leaked();
}

#[tokio::test]
async fn bodies_that_cannot_be_signed_are_refused() {
    let world = World::of(json!("staff"), json!({})).await;
    let long = world.echo(&"x".repeat(65_000)).await;
    assert_eq!(long.status, 200, "up to 64 KiB");
    world.signers();
    assert_eq!(world.echo(&"x".repeat(66_000)).await.status, 413);
    let (address, token) = (world.gateway.address, &world.tokens.access_token);
    let request = format!(
        "POST /demo HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"
    );
    assert_eq!(exchange(address, request, PATIENCE).await.unwrap().status, 400);
    assert_eq!(world.upstream.calls().len(), 1);
    world.assert_nothing_leaked();
}

#[tokio::test]
async fn each_attempt_is_signed_anew_and_refused_credentials_are_got_once_more() {
    let world = World::of(json!("staff"), json!({})).await;
    assert_eq!(world.echo("once").await.status, 200);
    world.upstream.answer_next(Answer::InvalidToken);
    assert_eq!(world.echo("twice").await.tool_text(), "twice");
    let signers = world.signers();
    assert_eq!(signers.len(), 3);
    assert_eq!(signers[0].access_key, signers[1].access_key);
    assert_ne!(signers[1].access_key, signers[2].access_key);
    // One refusal after the other is the operator's to look at; a 403 of AWS is the caller's to see.
    for _ in 0..3 {
        world.upstream.answer_next(Answer::InvalidToken);
        assert_eq!(world.echo("x").await.status, 502);
    }
    assert_eq!(world.sts.given().len(), 2, "whoever loops does not get to the token service");
    world.upstream.answer_next(Answer::http(403, &[], "AccessDeniedException"));
    assert_eq!(world.echo("x").await.status, 403);
    world.assert_nothing_leaked();
}

#[tokio::test]
async fn a_signed_request_keeps_its_query_and_path() {
    let world = World::of(json!("staff"), json!({})).await;
    let url = world.gateway.url("/demo?b=2&a=1%20x&a=0");
    let call = McpRequest::to(&world.gateway.http, &url).bearer(&world.tokens.access_token);
    assert_eq!(call.tool("echo", json!({})).await.status, 200);
    let calls = world.upstream.calls();
    assert_eq!(calls[0].query.as_deref(), Some("b=2&a=1%20x&a=0"));
    world.signers();
    // Signing out ends what the role was for.
    world.client.revoke(&world.tokens.refresh_token).await;
    eventually(PATIENCE, async || world.echo("x").await.status == 401).await;
}
