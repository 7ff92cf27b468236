//! Registrations at upstreams' authorization servers, looked after: secrets that end are replaced before they do, and a
//! registration that no route needs any more is deleted there (RFC 7592), after a while in which the route may come back.
//!
//! All instances do this, each thing once: whoever writes the note first does it.
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::discover::AuthorizationServer;
use super::manage::{deregister, renew_secret};
use super::register::{RegisterError, Registration};
use super::registration::by_id;
use super::{Connector, connection_key, issuer_key};
use crate::clock::unix_seconds;
use crate::outbound::AddressPolicy;
use crate::route::{Route, Table};
use crate::store::record::{RecordError, Typed, Versioned};
use crate::store::{FOREVER, Kind, Put};

/// How often a write is decided anew because somebody else was faster.
const TRIES: usize = 4;
/// An instance that has read its configuration later than this one gets to object.
const OBJECTIONS: Duration = Duration::from_secs(15);
/// How long a new secret is offered to a store that does not take it.
const OFFERED: usize = 60;
/// Longer than it takes to get a new secret and to store it.
const CHANGING: Duration = Duration::from_secs(90);
/// After a failure it is tried again so much later.
const AGAIN: Duration = Duration::from_secs(600);

/// Who uses the registration at an issuer (store record, found by the issuer's key).
#[derive(Clone, Serialize, Deserialize)]
struct Uses {
    issuer: String,
    /// [`Route::place`] of each.
    places: Vec<String>,
    /// Hosts that may be private, as the routes allowed them.
    hosts: Vec<String>,
    /// Seconds since the epoch: from when on no route was there any more.
    gone_since: Option<u64>,
    /// Nothing is tried before that.
    not_before: u64,
    /// Until then a secret may be about to change.
    #[serde(default)]
    changing_until: u64,
}

impl Typed for Uses {
    const KIND: Kind = Kind::Uses;
}

impl Connector {
    /// Remembers that this route uses the registration there, if it is one that can be managed.
    pub(super) async fn note_use(
        &self,
        route: &Route,
        server: &AuthorizationServer,
        registration: &Registration,
    ) {
        if registration.management.is_none() {
            return;
        }
        let key = issuer_key(&server.issuer);
        let noted = async {
            for _ in 0..TRIES {
                let found = self.records.get::<Uses>(&key).await?;
                let version = found.as_ref().map_or(0, |found| found.version);
                let uses = found.map(|found| found.value);
                if uses
                    .as_ref()
                    .is_some_and(|uses| uses.places.contains(&route.place) && uses.gone_since.is_none())
                {
                    return Ok(());
                }
                let before = uses.as_ref();
                let mut places = before.map(|uses| uses.places.clone()).unwrap_or_default();
                let mut hosts = before.map(|uses| uses.hosts.clone()).unwrap_or_default();
                places.retain(|place| *place != route.place);
                places.push(route.place.clone());
                hosts.extend(route.issuer_policy.private_hosts().map(str::to_owned));
                hosts.sort();
                hosts.dedup();
                let uses = Uses { places, hosts, ..Uses::of(&server.issuer) };
                if self.records.put(&key, version, &uses, FOREVER).await? == Put::Stored {
                    return self.leave_others(&key, &route.place).await;
                }
            }
            Ok(())
        };
        let noted: Result<(), RecordError> = noted.await;
        if let Err(error) = noted {
            tracing::debug!(target: "postern::oauth", %error, "who uses a registration is not noted");
        }
    }

    /// An upstream that has changed its authorization server does not need the registration at the one before.
    async fn leave_others(&self, key: &str, place: &str) -> Result<(), RecordError> {
        for (other, found) in self.records.scan::<Uses>().await? {
            if other != key && found.value.places.iter().any(|known| known == place) {
                let mut uses = found.value;
                uses.places.retain(|known| known != place);
                self.records.put(&other, found.version, &uses, FOREVER).await?;
            }
        }
        Ok(())
    }

    /// Replaces secrets that are about to end, and deletes what no route needs.
    pub async fn tidy_registrations(&self, routes: &Table) {
        let known = match self.records.scan::<Uses>().await {
            Ok(known) => known,
            Err(error) => {
                tracing::debug!(target: "postern::oauth", %error, "registrations are not looked after just now");
                return;
            }
        };
        for (key, found) in known {
            let is_used = found.value.places.iter().any(|place| routes.has_place(place));
            let tidied = match is_used {
                true => self.keep_alive(&key, found).await,
                false => self.retire(&key, found, routes).await,
            };
            if let Err(error) = tidied {
                tracing::debug!(target: "postern::oauth", %error, "a registration is not looked after just now");
            }
        }
    }

    async fn keep_alive(&self, key: &str, found: Versioned<Uses>) -> Result<(), RecordError> {
        let now = self.clock.now();
        let uses = found.value.clone();
        let is_back = uses.gone_since.is_some();
        let registration = self.records.readable::<Registration>(key).await?.map(|found| found.value);
        let due = registration.filter(|registration| registration.is_ending(now) && !uses.is_waiting(now));
        if due.is_none() && !is_back {
            return Ok(());
        }
        let mut uses = Uses { gone_since: None, ..uses };
        if due.is_some() {
            (uses.not_before, uses.changing_until) =
                (unix_seconds(now + AGAIN), unix_seconds(now + CHANGING));
        }
        if self.records.put(key, found.version, &uses, FOREVER).await? == Put::Conflict {
            return Ok(());
        }
        if let Some(registration) = due {
            self.renew_secret(key, &uses, registration, now).await;
        }
        Ok(())
    }

    async fn renew_secret(&self, key: &str, uses: &Uses, registration: Registration, now: SystemTime) {
        let applicant = self.ourselves.applicant(&registration.redirect_uri, None, None);
        let renewed = renew_secret(&self.outbound, &uses.policy(), &registration, &applicant, now).await;
        let kept = match renewed {
            Ok(renewed) => {
                // The one before may be worth nothing already, so this one is not given up.
                let _under_way = self.in_flight.start();
                let mut kept = self.keep_renewed(key, &renewed).await;
                for _ in 0..OFFERED {
                    if kept.is_ok() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    kept = self.keep_renewed(key, &renewed).await;
                }
                kept
            }
            failed => failed.map(|_| ()),
        };
        let ok = kept.is_ok();
        tracing::info!(target: "audit", event = "client_secret_renewed", issuer = %uses.issuer, client_id = %registration.client_id, ok);
        if let Err(error) = kept {
            tracing::warn!(target: "postern::oauth", issuer = %uses.issuer, %error, "a client secret that ends soon is not renewed");
        }
    }

    /// First for the tokens that this client was given, then for those to come.
    async fn keep_renewed(&self, key: &str, renewed: &Registration) -> Result<(), RegisterError> {
        self.keep(&by_id(key, &renewed.client_id), renewed).await?;
        self.keep(key, renewed).await
    }

    /// Whether our secret at this issuer may be about to change: then what it says about the present one is no verdict.
    pub(super) async fn is_secret_changing(&self, issuer: &str) -> bool {
        let uses = self.records.readable::<Uses>(&issuer_key(issuer)).await.ok().flatten();
        uses.is_some_and(|uses| uses.value.changing_until > unix_seconds(self.clock.now()))
    }

    /// Whether a route that there is has connections whose tokens were given to this client.
    async fn is_needed(&self, registration: &str, routes: &Table) -> Result<bool, RecordError> {
        for (key, _) in self.records.store().scan(Kind::Connection).await? {
            let Ok(Some((_, tokens))) = self.records.connection(&key).await else { continue };
            let route = routes.by_name(&tokens.route);
            let is_there = route.is_some_and(|route| connection_key(&tokens.user, route) == key);
            if is_there && tokens.registration == registration {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn retire(&self, key: &str, found: Versioned<Uses>, routes: &Table) -> Result<(), RecordError> {
        let (uses, now) = (found.value, self.clock.now());
        let gone = uses.gone_since.unwrap_or(unix_seconds(now));
        let wait = self.unused_registration_ttl.max(OBJECTIONS);
        let is_over = UNIX_EPOCH + Duration::from_secs(gone) + wait <= now;
        if uses.gone_since.is_none() {
            let uses = Uses { gone_since: Some(gone), ..uses };
            return self.records.put(key, found.version, &uses, FOREVER).await.map(|_| ());
        }
        if !is_over || uses.is_waiting(now) {
            return Ok(());
        }
        let later = Uses { not_before: unix_seconds(now + AGAIN), ..uses.clone() };
        if self.records.put(key, found.version, &later, FOREVER).await? == Put::Conflict {
            return Ok(());
        }
        let registration = self.records.readable::<Registration>(key).await?.map(|found| found.value);
        if let Some(registration) = &registration
            && self.is_needed(&by_id(key, &registration.client_id), routes).await?
        {
            return Ok(());
        }
        if let Some(registration) = &registration
            && let Some(management) = &registration.management
            && !deregister(&self.outbound, &uses.policy(), management).await
        {
            tracing::warn!(target: "postern::oauth", issuer = %uses.issuer, "a registration that no route needs is not deleted yet");
            return Ok(());
        }
        if let Some(registration) = registration {
            // Whoever still has tokens that were given to it learns that they are good for nothing any more.
            let over = Registration {
                expires_at: Some(now),
                client_secret: None,
                management: None,
                ..registration.clone()
            };
            if let Err(error) = self.keep(&by_id(key, &registration.client_id), &over).await {
                tracing::debug!(target: "postern::oauth", %error, "a deleted registration is not marked");
            }
            self.records.remove::<Registration>(key).await?;
            tracing::info!(target: "audit", event = "deregistered_upstream", issuer = %uses.issuer, client_id = %registration.client_id);
        }
        // Unless somebody has come back meanwhile.
        match self.records.get::<Uses>(key).await? {
            Some(now) if now.version == found.version + 1 => self.records.remove::<Uses>(key).await,
            _ => Ok(()),
        }
    }
}

impl Uses {
    fn of(issuer: &str) -> Self {
        let (issuer, places, hosts) = (issuer.to_owned(), Vec::new(), Vec::new());
        Self { issuer, places, hosts, gone_since: None, not_before: 0, changing_until: 0 }
    }

    fn policy(&self) -> AddressPolicy {
        AddressPolicy::allowing(self.hosts.iter().cloned())
    }

    fn is_waiting(&self, now: SystemTime) -> bool {
        self.not_before > unix_seconds(now)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use secrecy::ExposeSecret;
    use serde_json::json;

    use super::*;
    use crate::oauth::client::stub::{Answer, Bench, Stub, server};

    const DAY: Duration = Duration::from_secs(24 * 3600);

    /// Registers clients whose secrets live for a day, and lets them manage themselves.
    async fn managed(bench: &Bench) -> Stub {
        let (count, clock) = (AtomicUsize::new(0), bench.clock.clone());
        Stub::start(move |seen, base| match (seen.method.as_str(), seen.path.as_str()) {
            ("POST", "/register") | ("PUT", "/register/c") => {
                let secret = format!("secret-{}", count.fetch_add(1, Ordering::SeqCst));
                Answer::json(
                    201,
                    json!({
                        "client_id": "c", "client_secret": secret,
                        "client_secret_expires_at": unix_seconds(clock.now() + DAY),
                        "token_endpoint_auth_method": "client_secret_post",
                        "registration_client_uri": format!("{base}/register/c"), "registration_access_token": "r",
                    }),
                )
            }
            ("DELETE", "/register/c") => Answer::status(204),
            _ => Answer::status(404),
        })
        .await
    }

    fn by_secret(stub: &Stub) -> AuthorizationServer {
        AuthorizationServer { auth_methods: vec!["client_secret_post".into()], ..server(stub) }
    }

    fn secret(registration: &Registration) -> &str {
        registration.client_secret.as_ref().unwrap().expose_secret()
    }

    #[tokio::test]
    async fn a_secret_is_replaced_before_it_ends_and_by_one_instance() {
        let bench = Bench::new();
        let stub = managed(&bench).await;
        let server = by_secret(&stub);
        let (one, other, table) = (bench.connector(), bench.connector(), bench.table());
        let (own, registered) = one.registration(&bench.route(), &server).await.unwrap();
        assert_eq!(secret(&registered), "secret-0");
        one.tidy_registrations(&table).await;
        assert_eq!(stub.seen().len(), 1, "it is young");
        bench.clock.advance(DAY * 3 / 4);
        tokio::join!(one.tidy_registrations(&table), other.tidy_registrations(&table));
        let seen = stub.seen();
        assert_eq!((seen.len(), seen[1].method.as_str()), (2, "PUT"));
        assert_eq!(seen[1].header("authorization"), Some("Bearer r"));
        let sent: serde_json::Value = serde_json::from_slice(&seen[1].body).unwrap();
        assert_eq!((&sent["client_id"], &sent["grant_types"][1]), (&json!("c"), &json!("refresh_token")));
        // For tokens that were given before as well as for those to come.
        for key in [&own, &issuer_key(&server.issuer)] {
            let kept = bench.records.get::<Registration>(key).await.unwrap().unwrap().value;
            assert_eq!(secret(&kept), "secret-1", "{key}");
        }
        one.tidy_registrations(&table).await;
        assert_eq!(stub.seen().len(), 2);
        // What the server says of the one before is no verdict for a moment, and one after that.
        assert!(other.is_secret_changing(&server.issuer).await);
        bench.clock.advance(CHANGING);
        assert!(!other.is_secret_changing(&server.issuer).await);
    }

    #[tokio::test]
    async fn a_secret_that_has_ended_is_asked_about_no_more() {
        let bench = Bench::new();
        let stub = managed(&bench).await;
        let server = by_secret(&stub);
        let (connector, table) = (bench.connector(), bench.table());
        connector.registration(&bench.route(), &server).await.unwrap();
        bench.clock.advance(DAY);
        connector.tidy_registrations(&table).await;
        assert_eq!(stub.seen().len(), 1, "the next authorization registers anew");
        assert!(!connector.is_secret_changing(&server.issuer).await, "and whoever depends on it is told");
    }

    #[tokio::test]
    async fn a_registration_that_no_route_needs_is_deleted_after_a_while() {
        let bench = Bench::new();
        let stub = managed(&bench).await;
        let server = by_secret(&stub);
        let connector = Arc::new(bench.connector());
        connector.registration(&bench.route(), &server).await.unwrap();
        let (with, without) = (bench.table(), bench.without_routes());
        let deletions = || stub.seen().into_iter().filter(|seen| seen.method == "DELETE").collect::<Vec<_>>();
        connector.tidy_registrations(&without).await;
        // The route comes back in time.
        bench.clock.advance(DAY * 6);
        connector.tidy_registrations(&with).await;
        bench.clock.advance(DAY * 2);
        connector.tidy_registrations(&without).await;
        assert!(deletions().is_empty());
        bench.clock.advance(DAY * 7);
        let other = bench.connector();
        tokio::join!(connector.tidy_registrations(&without), other.tidy_registrations(&without));
        let deletions = deletions();
        assert_eq!(deletions.len(), 1);
        assert_eq!(deletions[0].header("authorization"), Some("Bearer r"));
        let key = issuer_key(&server.issuer);
        assert!(bench.records.get::<Registration>(&key).await.unwrap().is_none());
        let over = bench.records.get::<Registration>(&by_id(&key, "c")).await.unwrap().unwrap().value;
        assert!(!over.is_valid(bench.clock.now()) && over.client_secret.is_none());
        assert!(bench.records.scan::<Uses>().await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn an_upstream_that_changes_its_authorization_server_leaves_the_one_before() {
        let bench = Bench::new();
        let (before, after) = (managed(&bench).await, managed(&bench).await);
        let connector = Arc::new(bench.connector());
        for stub in [&before, &after] {
            connector.registration(&bench.route(), &by_secret(stub)).await.unwrap();
        }
        let table = bench.table();
        connector.tidy_registrations(&table).await;
        bench.clock.advance(DAY * 8);
        connector.tidy_registrations(&table).await;
        let deleted = |stub: &Stub| stub.seen().iter().filter(|seen| seen.method == "DELETE").count();
        assert_eq!((deleted(&before), deleted(&after)), (1, 0));
    }
}
