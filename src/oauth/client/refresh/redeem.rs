//! What an owner does: tell the store that the refresh token leaves, send it, put the answer away, and tell the store
//! what has come of it.
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

use super::event::{self, Step};
use super::{BACKOFF, LEASE, POLL, Renewed};
use crate::failpoint;
use crate::jose;
use crate::oauth::client::Connector;
use crate::oauth::client::connect::{CONNECTION_TTL, profile_of};
use crate::oauth::client::register::Registration;
use crate::oauth::client::token::{self, Outcome, Presented, TokenResponse};
use crate::route::Route;
use crate::store::journal::Prepared;
use crate::store::record::{IdToken, Records, Tokens};
use crate::store::{Attempt, Committed, Connection, Phase, Release, Released};

/// Later than that after the acquisition nothing is sent any more: with the eight seconds that the authorization server
/// has, the answer comes well within the lease.
pub const SEND_BY: Duration = Duration::from_secs(2);
/// How often and how long tokens are offered to a store that does not take them.
const OFFER: Duration = Duration::from_secs(1);
const OFFERED: Duration = Duration::from_secs(600);
/// When the configuration is at fault, asking often does not help.
const BACKOFF_CONFIG: Duration = Duration::from_secs(30);

impl Connector {
    /// `asked`: when the lease began, at the latest.
    pub(super) async fn redeem_refresh_token(
        &self,
        route: &Route,
        key: &str,
        acquired: Connection,
        takeover: Option<Phase>,
        asked: Instant,
    ) -> Renewed {
        let Some(attempt) = acquired.attempt.clone() else {
            return Renewed::Later { retry_after: BACKOFF };
        };
        let ends = Ends { connector: self, key, acquired: &acquired, attempt: &attempt };
        let tokens = match self.records.tokens(key, &acquired) {
            Ok(tokens) => tokens,
            // Left as it is: with the right key it is good again.
            Err(_) => {
                ends.release(Release::Transient { wait: Duration::ZERO }).await;
                return self.outcome("unreadable", Renewed::NeedsUser);
            }
        };
        let Some(refresh_token) = &tokens.refresh_token else {
            return ends.dead("no_refresh_token").await;
        };
        if let Some(wait) = self.probe_not_before(route, &acquired, &tokens, takeover).await {
            return ends.ambiguous(wait).await;
        }
        let registration = match self
            .client_of(&route.credential, &tokens.registration, (&tokens.issuer, &tokens.token_endpoint))
            .await
        {
            Ok(Some(registration)) => registration,
            // Ours to lose, not the user's: nothing is given up over it.
            Ok(None) => {
                tracing::error!(target: "postern::refresh", issuer = %tokens.issuer, "our registration at this issuer is missing or unreadable");
                return ends.transient("no_registration", BACKOFF_CONFIG).await;
            }
            Err(_) => return ends.transient("store", BACKOFF).await,
        };
        if !registration.is_valid(self.clock.now()) {
            return ends.unknown_client(route, &tokens.issuer, &registration).await;
        }
        if asked.elapsed() > SEND_BY {
            return ends.transient("late", BACKOFF).await;
        }
        failpoint::reached("P3").await;
        // Not acknowledged, not sent.
        match self.records.store().sent(key, &attempt.id, attempt.fence).await {
            Ok(true) => event::token(Step::Sent, key, &acquired, refresh_token),
            Ok(false) => {
                event::step(Step::Stale, key, &acquired, Some("before it was sent"));
                return self.current(key).await;
            }
            Err(_) => return self.outcome("store", Renewed::Later { retry_after: BACKOFF }),
        }
        failpoint::reached("P4").await;
        let now = self.clock.now();
        let answer = token::request(
            &self.outbound,
            &route.issuer_policy,
            &tokens.token_endpoint,
            &registration,
            Presented::Refresh { refresh_token },
            tokens.resource.as_deref(),
            now,
        )
        .await;
        event::step(Step::Result, key, &acquired, Some(event::word(&answer)));
        failpoint::reached("P6").await;
        match answer {
            Outcome::Success(response) => {
                let policy = &route.issuer_policy;
                let profile = profile_of(route, &tokens.issuer);
                let response =
                    TokenResponse { scope: response.scope.map(|scopes| profile.split(scopes)), ..response };
                let renewed = merged(tokens, response, now);
                ends.success(renewed, &registration, policy).await
            }
            Outcome::CleanTransient { retry_after } => {
                ends.transient("transient", retry_after.unwrap_or(BACKOFF).max(BACKOFF)).await
            }
            Outcome::Ambiguous => ends.ambiguous(BACKOFF).await,
            Outcome::Dead => {
                if takeover == Some(Phase::Sent) {
                    self.was_seen_strict(&tokens.issuer).await;
                }
                ends.dead("dead").await
            }
            Outcome::UnknownClient => ends.unknown_client(route, &tokens.issuer, &registration).await,
            Outcome::Config(error) => {
                tracing::error!(target: "postern::refresh", route = %route.name, issuer = %tokens.issuer, %error, "the authorization server refuses this client: check its registration");
                ends.transient("config", BACKOFF_CONFIG).await
            }
        }
    }

    /// An earlier answer is missing, so the refresh token may be spent. Trying it again finds out, and at most servers
    /// saves the connection; a server that takes it for theft ends the connection instead. There it is tried only when
    /// the access token is of no more use, so that the earlier owner can come back with the answer until then.
    async fn probe_not_before(
        &self,
        route: &Route,
        acquired: &Connection,
        tokens: &Tokens,
        takeover: Option<Phase>,
    ) -> Option<Duration> {
        if takeover != Some(Phase::Sent)
            || acquired.refused >= acquired.generation
            || !self.is_strict(route, tokens).await
        {
            return None;
        }
        tokens.expires_at?.duration_since(self.clock.now()).ok().filter(|left| !left.is_zero())
    }

    /// What is in force, whoever put it there.
    pub(super) async fn current(&self, key: &str) -> Renewed {
        let renewed = match self.records.connection(key).await {
            Ok(Some(current)) => Renewed::Tokens(Arc::new(current)),
            Ok(None) => Renewed::NeedsUser,
            Err(_) => Renewed::Later { retry_after: BACKOFF },
        };
        self.outcome("stale", renewed)
    }

    /// Ends an attempt; what the store cannot be told ends with its lease.
    pub(super) async fn release(
        &self,
        key: &str,
        id: &str,
        fence: u64,
        outcome: Release,
    ) -> Option<Released> {
        match self.records.store().release(key, id, fence, outcome).await {
            Ok(released) => Some(released),
            Err(error) => {
                tracing::warn!(target: "postern::refresh", %error, "attempt not released, its lease will end");
                None
            }
        }
    }
}

/// The ways in which an attempt ends.
struct Ends<'a> {
    connector: &'a Connector,
    key: &'a str,
    acquired: &'a Connection,
    attempt: &'a Attempt,
}

impl Ends<'_> {
    async fn release(&self, outcome: Release) -> Option<Released> {
        self.connector.release(self.key, &self.attempt.id, self.attempt.fence, outcome).await
    }

    async fn transient(&self, word: &'static str, wait: Duration) -> Renewed {
        self.after(Release::Transient { wait }, word, Renewed::Later { retry_after: wait }).await
    }

    async fn ambiguous(&self, wait: Duration) -> Renewed {
        self.after(Release::Ambiguous { wait }, "ambiguous", Renewed::Later { retry_after: wait }).await
    }

    /// Where we can register anew, only the user can help, since what a client was given is good for no other one.
    async fn unknown_client(&self, route: &Route, issuer: &str, client: &Registration) -> Renewed {
        if self.connector.has_secret_of_today(route, issuer, client).await {
            return self.transient("another_secret", BACKOFF).await;
        }
        tracing::error!(target: "postern::refresh", issuer, client_id = %client.client_id, "the authorization server does not know this client: check its registration");
        match self.connector.forget_client(&route.credential, issuer, client).await {
            true => self.dead("unknown_client").await,
            false => self.transient("unknown_client", BACKOFF_CONFIG).await,
        }
    }

    async fn dead(&self, word: &'static str) -> Renewed {
        self.after(Release::NeedsReauth, word, Renewed::NeedsUser).await
    }

    /// Whoever has newer tokens by now is believed rather than our own failure.
    async fn after(&self, outcome: Release, word: &'static str, renewed: Renewed) -> Renewed {
        let released = self.release(outcome).await;
        failpoint::reached("P9").await;
        match released {
            Some(Released::Done) => self.connector.outcome(word, renewed),
            Some(Released::Rescued | Released::Stale) => {
                event::step(Step::Stale, self.key, self.acquired, Some(word));
                self.connector.current(self.key).await
            }
            None => self.connector.outcome("store", Renewed::Later { retry_after: BACKOFF }),
        }
    }

    /// Nobody sees the new tokens before they are on disk.
    async fn success(
        &self,
        tokens: Tokens,
        registration: &Registration,
        policy: &crate::outbound::AddressPolicy,
    ) -> Renewed {
        let Ends { connector, key, acquired, attempt } = self;
        let records = &connector.records;
        let Ok(prepared) = records.prepare(key, acquired, attempt, &tokens, CONNECTION_TTL).await else {
            return connector.outcome("store", Renewed::Later { retry_after: BACKOFF });
        };
        event::step(Step::Journal, key, acquired, None);
        failpoint::reached("P7").await;
        let give_up = Instant::now() + LEASE;
        loop {
            match records.commit(&prepared).await {
                Ok(Committed::Stored { generation }) => {
                    event::step(Step::Commit, key, &Connection { generation, ..(*acquired).clone() }, None);
                    failpoint::reached("P8").await;
                    let connection =
                        Connection { generation, attempt: None, sealed: Vec::new(), ..(*acquired).clone() };
                    return connector.outcome("success", Renewed::Tokens(Arc::new((connection, tokens))));
                }
                Ok(Committed::Orphaned) => {
                    event::step(Step::Stale, key, acquired, Some("kept as an orphan"));
                    return connector.outcome("orphaned", Renewed::Later { retry_after: BACKOFF });
                }
                Ok(Committed::Stale) => {
                    event::step(Step::Stale, key, acquired, None);
                    return connector.current(key).await;
                }
                // Disconnected meanwhile: nobody wants these tokens any more, and they must not live on.
                Ok(Committed::Gone) => {
                    event::step(Step::Tombstone, key, acquired, None);
                    let now = connector.clock.now();
                    token::revoke(&connector.outbound, policy, registration, &tokens, now).await;
                    return connector.outcome("gone", Renewed::NeedsUser);
                }
                Err(error) if Instant::now() < give_up => {
                    tracing::warn!(target: "postern::refresh", %error, "new tokens not stored yet, trying again");
                    tokio::time::sleep(2 * POLL).await;
                }
                Err(error) => {
                    tracing::error!(target: "postern::refresh", %error, "new tokens not stored yet, their caller waits no longer");
                    tokio::spawn(offer(records.clone(), prepared));
                    return connector.outcome("store", Renewed::Later { retry_after: BACKOFF });
                }
            }
        }
    }
}

/// Offers new tokens to the store until it takes them: nothing else in this process would before the next failover.
async fn offer(records: Records, prepared: Prepared) {
    let end = Instant::now() + OFFERED;
    while Instant::now() < end {
        tokio::time::sleep(OFFER).await;
        if let Ok(committed) = records.commit(&prepared).await {
            tracing::info!(target: "postern::refresh", ?committed, "new tokens taken to the store at last");
            return;
        }
    }
}

/// The tokens after a refresh: what the answer leaves out stays (RFC 6749 §6). An access token that cannot be sent
/// counts as long expired, so that the old one is not sent either, but the refresh token beside it is kept.
fn merged(old: Tokens, response: TokenResponse, now: SystemTime) -> Tokens {
    let expires_at = if response.usable {
        response.expires_in.map(|lifetime| now + lifetime)
    } else {
        Some(SystemTime::UNIX_EPOCH)
    };
    let replaced = |old: &SecretString| {
        response.refresh_token.as_ref().is_some_and(|new| new.expose_secret() != old.expose_secret())
    };
    Tokens {
        rotates: old.refresh_token.as_ref().map(replaced),
        access_token: if response.usable { response.access_token } else { old.access_token },
        refresh_token: response.refresh_token.or(old.refresh_token),
        expires_at,
        obtained_at: now,
        scopes: response.scope.unwrap_or(old.scopes),
        id_token: old.id_token.map(|old| newer_id_token(old, response.id_token, now)),
        ..old
    }
}

/// The ID token after a refresh: what the answer says of the same user, from the same issuer and for us (OpenID Connect
/// Core §12.2), or else the one that there is. It has come straight from its issuer, by the connection that the refresh
/// token went to, and so needs no look at its signature (§3.1.3.7).
fn newer_id_token(old: IdToken, given: Option<SecretString>, now: SystemTime) -> IdToken {
    let claims = |token: &SecretString| jose::unverified(token.expose_secret());
    let (Some(given), Some(known)) = (given, claims(&old.token)) else {
        return old;
    };
    let same = claims(&given).filter(|new| {
        (&new.iss, &new.sub) == (&known.iss, &known.sub) && new.audiences().eq(known.audiences())
    });
    match same {
        Some(claims) => IdToken::new(given, claims.exp, now),
        None => {
            tracing::warn!(target: "postern::refresh", issuer = %known.iss, "an ID token of somebody else came with a refresh");
            old
        }
    }
}
