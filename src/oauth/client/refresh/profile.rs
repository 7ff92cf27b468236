//! How an authorization server takes a refresh token that comes twice: what the configuration says of it, else what was
//! seen of it.
//!
//! Seen is, of a connection, whether its refresh token is ever replaced; and of an issuer, whether it ended a connection
//! over a token that was tried again because the answer to the first time was missing. Whoever is taken for strict too
//! easily makes a few people wait; the other way round they would lose their connections one after the other.
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{Credential, RefreshRotation};
use crate::oauth::client::Connector;
use crate::route::Route;
use crate::seal;
use crate::store::Kind;
use crate::store::record::{Records, Tokens, Typed};

/// How long an issuer is remembered for it.
const REMEMBERED: Duration = Duration::from_secs(90 * 24 * 3600);

/// What was seen of an issuer (store record, found by the digest of its identifier).
#[derive(Serialize, Deserialize)]
struct Profile {
    /// A second use ends the connection.
    strict: bool,
}

impl Typed for Profile {
    const KIND: Kind = Kind::Issuer;
}

impl Connector {
    /// Whether a second use of the refresh token would end the connection.
    pub(super) async fn is_strict(&self, route: &Route, tokens: &Tokens) -> bool {
        let configured = match &route.credential {
            Credential::Oauth(oauth) => {
                oauth.refresh_rotation.or(oauth.profile_at(&tokens.issuer).refresh_rotation)
            }
            _ => None,
        };
        match configured {
            Some(rotation) => rotation == RefreshRotation::Strict,
            // Never replaced, so never spent.
            None if tokens.rotates == Some(false) => false,
            None => was_strict(&self.records, &tokens.issuer).await,
        }
    }

    /// The issuer ended a connection over a token that came twice.
    pub(super) async fn was_seen_strict(&self, issuer: &str) {
        let key = seal::digest(issuer);
        let version = match self.records.get::<Profile>(&key).await {
            Ok(Some(known)) => known.version,
            _ => 0,
        };
        tracing::warn!(target: "postern::refresh", issuer, "this authorization server ends a connection when a refresh token comes twice; credential.refresh_rotation can say so from the start");
        // Whoever was faster has written the same.
        if let Err(error) = self.records.put(&key, version, &Profile { strict: true }, REMEMBERED).await {
            tracing::warn!(target: "postern::refresh", %error, "what was seen of an issuer is not remembered");
        }
    }
}

/// Nobody knows without the store: then it is not tried out.
async fn was_strict(records: &Records, issuer: &str) -> bool {
    match records.readable::<Profile>(&seal::digest(issuer)).await {
        Ok(profile) => profile.is_some_and(|profile| profile.value.strict),
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use std::sync::Arc;

    use secrecy::SecretString;

    use super::*;
    use crate::oauth::client::connection_key;
    use crate::oauth::client::refresh::{LEASE, Outdated, Renewed};
    use crate::oauth::client::register::{AuthMethod, Registration};
    use crate::oauth::client::stub::{Answer, Bench, Stub};

    const HOUR: Duration = Duration::from_secs(3600);

    /// A server that takes `r1` at most once.
    async fn strict_server() -> Stub {
        Stub::start(|seen, _| match seen.form().iter().any(|(_, value)| value == "r1") {
            true => Answer::json(400, r#"{"error":"invalid_grant"}"#),
            false => Answer::json(
                200,
                r#"{"access_token":"a2","token_type":"Bearer","expires_in":3600,"refresh_token":"r2"}"#,
            ),
        })
        .await
    }

    /// A connection with the tokens `a1` and `r1`: its key and what is outdated of it.
    async fn connected(bench: &Bench, stub: &Stub, user: &str, rotates: Option<bool>) -> (String, Outdated) {
        let (route, now) = (bench.route(), bench.clock.now());
        let registration =
            Registration::new("us".into(), None, AuthMethod::None, "http://127.0.0.1/back".into());
        bench.records.put("registration", 0, &registration, HOUR).await.unwrap();
        let tokens = Tokens {
            access_token: SecretString::from("a1"),
            refresh_token: Some(SecretString::from("r1")),
            id_token: None,
            expires_at: Some(now + HOUR),
            obtained_at: now,
            connected_at: None,
            scopes: Vec::new(),
            requested_scopes: Vec::new(),
            issuer: stub.base().to_owned(),
            resource: Some("http://127.0.0.1:1/mcp".into()),
            token_endpoint: stub.url("/token"),
            revocation_endpoint: None,
            registration: "registration".into(),
            user: user.into(),
            route: "demo".into(),
            account: None,
            rotates,
        };
        let key = connection_key(user, &route);
        let incarnation = bench.records.connect(&key, &tokens, HOUR).await.unwrap();
        (key, Outdated { incarnation: incarnation.into(), generation: 1 })
    }

    /// What comes of a refresh after an owner died with the answer under way.
    async fn after_a_crash(bench: &Bench, stub: &Stub, user: &str, rotates: Option<bool>) -> Renewed {
        let (key, outdated) = connected(bench, stub, user, rotates).await;
        let store = bench.records.store();
        store.acquire(&key, "gone", 1, LEASE).await.unwrap();
        let fence = store.connection(&key).await.unwrap().unwrap().fence;
        assert!(store.sent(&key, "gone", fence).await.unwrap());
        bench.clock.advance(LEASE + Duration::from_secs(1));
        Arc::new(bench.connector()).renew(&bench.route(), &key, &outdated).await
    }

    #[tokio::test]
    async fn whether_a_refresh_token_is_ever_replaced_is_remembered() {
        for (member, rotates) in
            [("", false), (r#","refresh_token":"r1""#, false), (r#","refresh_token":"r2""#, true)]
        {
            let answer = format!(r#"{{"access_token":"a2","token_type":"Bearer"{member}}}"#);
            let (bench, stub) = (Bench::new(), Stub::start(move |_, _| Answer::json(200, &answer)).await);
            let (key, outdated) = connected(&bench, &stub, "alice", None).await;
            Arc::new(bench.connector()).renew(&bench.route(), &key, &outdated).await;
            let (_, tokens) = bench.records.connection(&key).await.unwrap().unwrap();
            assert_eq!(tokens.rotates, Some(rotates), "{member}");
        }
    }

    #[tokio::test]
    async fn a_secret_that_has_run_out_is_not_sent() {
        let fresh = r#"{"access_token":"a2","token_type":"Bearer","expires_in":3600,"refresh_token":"r2"}"#;
        let (bench, stub) = (Bench::new(), Stub::start(move |_, _| Answer::json(200, fresh)).await);
        let (key, outdated) = connected(&bench, &stub, "alice", None).await;
        let known = bench.records.get::<Registration>("registration").await.unwrap().unwrap();
        let expires_at = Some(bench.clock.now() + HOUR);
        let ending = Registration { expires_at, ..known.value };
        bench.records.put("registration", known.version, &ending, 9 * HOUR).await.unwrap();
        bench.clock.advance(HOUR / 2);
        let connector = Arc::new(bench.connector());
        assert!(matches!(connector.renew(&bench.route(), &key, &outdated).await, Renewed::Tokens(_)));
        bench.clock.advance(HOUR);
        let outdated = Outdated { generation: 2, ..outdated };
        assert!(matches!(connector.renew(&bench.route(), &key, &outdated).await, Renewed::NeedsUser));
        assert_eq!(stub.seen().len(), 1);
    }

    #[tokio::test]
    async fn a_server_seen_to_be_strict_is_not_tried_a_second_time() {
        let (bench, stub) = (Bench::new(), strict_server().await);
        // Nobody knows yet: tried, and lost.
        assert!(matches!(after_a_crash(&bench, &stub, "alice", None).await, Renewed::NeedsUser));
        assert_eq!(stub.seen().len(), 1);
        // From then on it waits until the access token ends.
        let renewed = after_a_crash(&bench, &stub, "bob", Some(true)).await;
        let Renewed::Later { retry_after } = renewed else { panic!("not waiting") };
        assert!(retry_after > HOUR - 2 * LEASE, "{retry_after:?}");
        assert_eq!(stub.seen().len(), 1, "not sent");
        // Whose refresh token is never replaced has nothing to lose.
        after_a_crash(&bench, &stub, "carol", Some(false)).await;
        assert_eq!(stub.seen().len(), 2);
        // Another issuer is another matter.
        let other = strict_server().await;
        after_a_crash(&bench, &other, "dave", None).await;
        assert_eq!(other.seen().len(), 1);
    }
}
