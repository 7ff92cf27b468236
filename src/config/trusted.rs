//! Authorization servers that stand in Postern's place at some routes.
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use url::Url;

use super::checked::{Checker, bare_host};
use super::file;
use super::oidc::{self, SEPARATOR};
use super::report::Key;
use super::route::Route;
use super::secret;
use super::server::PublicUrl;

/// An authorization server whose access tokens are taken.
pub struct TrustedIssuer {
    pub name: String,
    /// Byte for byte as written.
    pub issuer: String,
    /// What its tokens name as audience. `None`: the resource of the route.
    pub audience: Option<String>,
    /// `None`: where its metadata say.
    pub jwks_uri: Option<String>,
    /// `None`: its tokens are JWTs.
    pub introspection: Option<Introspection>,
    /// Hosts that may be private and speak http: those of the addresses above, if they may.
    pub private_hosts: Vec<String>,
    /// Where its tokens list groups.
    pub groups_claim: String,
    /// What else they say that rules may look at.
    pub policy_claims: Vec<String>,
    for_all_routes: bool,
}

/// How to ask about tokens (RFC 7662).
pub struct Introspection {
    pub client_id: String,
    pub client_secret: SecretString,
    /// `None`: where its metadata say.
    pub endpoint: Option<String>,
    /// How long an answer counts.
    pub cache: Duration,
}

impl TrustedIssuer {
    /// What somebody of this issuer is called here: as people who sign in through it are.
    #[must_use]
    pub fn user(&self, subject: &str) -> String {
        oidc::user(&self.issuer, subject)
    }
}

/// Checks the list. What is wrong is recorded and left out.
pub(super) fn check(
    check: &mut Checker<'_>,
    written: &[file::TrustedIssuer],
    public_url: Option<&PublicUrl>,
) -> Vec<Arc<TrustedIssuer>> {
    let list = Key::top("trusted_issuers");
    let mut issuers: Vec<Arc<TrustedIssuer>> = Vec::with_capacity(written.len());
    for (index, entry) in written.iter().enumerate() {
        let key = list.item(index);
        let earlier = issuers.iter().map(|earlier| (earlier.name.as_str(), earlier.issuer.as_str()));
        oidc::identify(check, &key, (&entry.name, &entry.issuer), earlier);
        let private = entry.allow_private.unwrap_or(false);
        let mut private_hosts = Vec::new();
        let asked = entry.introspection.as_ref().and_then(|introspection| introspection.endpoint.as_ref());
        let addresses = [
            (key.child("issuer"), Some(&entry.issuer)),
            (key.child("jwks_uri"), entry.jwks_uri.as_ref()),
            (key.child("introspection").child("endpoint"), asked),
        ];
        for (place, text) in addresses {
            if let Some(url) = text.and_then(|text| check.url(&place, text, private))
                && private
            {
                private_hosts.push(bare_host(&url));
            }
        }
        // V-04: our own tokens are taken wherever no issuers are named.
        if public_url.is_some_and(|own| own.origin() == entry.issuer.trim_end_matches('/')) {
            let write = "leave the entry out: Postern's own tokens are taken by every route without `trusted_issuers`";
            check.refuse(&key.child("issuer"), "is Postern itself", write);
        }
        if entry.issuer.contains(['?', SEPARATOR]) {
            let write = "write the issuer as it names itself";
            check.refuse(&key.child("issuer"), "contains a query or `|`", write);
        }
        let introspection = match &entry.introspection {
            Some(written) => match introspection(check, &key.child("introspection"), written) {
                Some(introspection) => Some(introspection),
                None => continue,
            },
            None => None,
        };
        if introspection.is_some() && entry.jwks_uri.is_some() {
            let write = "leave out one of `jwks_uri` and `introspection`";
            check.refuse(&key.child("jwks_uri"), "is not needed where tokens are asked about", write);
        }
        issuers.push(Arc::new(TrustedIssuer {
            name: entry.name.clone(),
            issuer: entry.issuer.clone(),
            audience: entry.audience.clone(),
            jwks_uri: entry.jwks_uri.clone(),
            introspection,
            private_hosts,
            groups_claim: entry.groups_claim.clone().unwrap_or_else(|| "groups".to_owned()),
            policy_claims: entry.policy_claims.clone().unwrap_or_default(),
            for_all_routes: entry.for_all_routes.unwrap_or(false),
        }));
    }
    issuers
}

fn introspection(check: &mut Checker<'_>, key: &Key, written: &file::Introspection) -> Option<Introspection> {
    if written.client_id.is_empty() {
        check.refuse(&key.child("client_id"), "is empty", "write the client id that the issuer gave");
    }
    let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
    let cache =
        check.duration(&key.child("cache"), written.cache.as_deref(), 30 * second, second, 10 * minute);
    Some(Introspection {
        client_id: written.client_id.clone(),
        client_secret: secret::resolve(check, &key.child("client_secret"), &written.client_secret)?,
        endpoint: written.endpoint.clone(),
        cache,
    })
}

/// Whether a route takes tokens of others, as far as that can be said before it is checked.
pub(super) fn has_issuers(route: &file::Route, issuers: &[Arc<TrustedIssuer>]) -> bool {
    match &route.trusted_issuers {
        Some(named) => !named.is_empty(),
        None => issuers.iter().any(|issuer| issuer.for_all_routes),
    }
}

/// The issuers that a route takes. `named`: as the route has it; what is not there is recorded.
pub(super) fn of_route(
    check: &mut Checker<'_>,
    key: &Key,
    named: Option<&Vec<String>>,
    issuers: &[Arc<TrustedIssuer>],
) -> Vec<Arc<TrustedIssuer>> {
    let Some(named) = named else {
        return issuers.iter().filter(|issuer| issuer.for_all_routes).map(Arc::clone).collect();
    };
    let mut taken = Vec::new();
    for (index, name) in named.iter().enumerate() {
        match issuers.iter().find(|issuer| issuer.name == *name) {
            Some(issuer) => taken.push(Arc::clone(issuer)),
            None => {
                let what = format!("there is no issuer `{name}`");
                check.refuse(&key.item(index), what, "write the name of an entry of `trusted_issuers`");
            }
        }
    }
    taken
}

/// V-07: what a token is for is the place that takes it. Under the name of one route it would be taken at others as well, and
/// under that of an upstream every token that somebody has for the upstream would be one for Postern.
pub(super) fn check_audiences(
    check: &mut Checker<'_>,
    written: &[file::TrustedIssuer],
    routes: &[Route],
    public_url: &PublicUrl,
) {
    let list = Key::top("trusted_issuers");
    let resource = |route: &Route| {
        let host = route.host.as_deref().unwrap_or(public_url.authority());
        format!("{}://{host}{}", public_url.scheme(), route.path)
    };
    let write =
        "leave it out: tokens are for the resource of the route then; or write what the issuer calls Postern";
    for (index, entry) in written.iter().enumerate() {
        let Some(audience) = entry.audience.as_deref().and_then(plain) else { continue };
        let key = list.item(index).child("audience");
        let is_it = |text: &str| plain(text).is_some_and(|text| text == audience);
        if let Some(route) = routes.iter().find(|route| is_it(&route.upstream.url_as_written)) {
            let what = format!(
                "is the upstream of route `{}`, whose callers would hand over tokens that are meant for it",
                route.name
            );
            check.refuse(&key, what, write);
        }
        let Some(named) = routes.iter().find(|route| is_it(&resource(route))) else { continue };
        let takes = |route: &&Route| route.trusted_issuers.iter().any(|issuer| issuer.name == entry.name);
        if let Some(other) = routes.iter().filter(takes).find(|route| route.name != named.name) {
            let what = format!(
                "is the resource of route `{}`, whose tokens would be taken at route `{}`",
                named.name, other.name
            );
            check.refuse(&key, what, write);
        }
    }
}

/// A URL in the form in which two are compared. `None`: it is a name of another kind.
fn plain(text: &str) -> Option<String> {
    let url = Url::parse(text).ok().filter(Url::has_host)?;
    Some(url.as_str().trim_end_matches('/').to_owned())
}
