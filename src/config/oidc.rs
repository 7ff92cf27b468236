//! Identity providers: who else says who somebody is (OpenID Connect Core).
use secrecy::SecretString;

use super::checked::{Checker, bare_host};
use super::file;
use super::report::Key;
use super::secret;

/// An identity provider.
#[derive(Clone)]
pub struct IdentityProvider {
    /// `[a-z0-9_-]+`, unique; part of addresses.
    pub name: String,
    /// What people read on the button.
    pub label: String,
    /// Byte for byte as written; part of its users' names here.
    pub issuer: String,
    pub client_id: String,
    /// `None`: a public client, by PKCE alone.
    pub client_secret: Option<SecretString>,
    /// Asked for beside `openid`.
    pub scopes: Vec<String>,
    /// Hosts that may be private and speak http: those of `issuer`, if it may.
    pub private_hosts: Vec<String>,
    /// Only people whose verified e-mail address ends in one of these; empty: everybody there.
    pub allowed_domains: Vec<String>,
    /// Only people in one of these groups; empty: everybody there.
    pub allowed_groups: Vec<String>,
    /// Where an ID token lists groups.
    pub groups_claim: String,
    /// What else an ID token says that rules may look at.
    pub policy_claims: Vec<String>,
    /// What an ID token calls a person, for people to read.
    pub name_claim: String,
    /// Whether people come back from it to an address that no other provider has.
    pub own_redirect_uri: bool,
    /// Whether signing out there ends what was granted here as well.
    pub logout_ends_grants: bool,
}

/// Between issuer and subject in a user's name; no issuer has one.
pub const SEPARATOR: char = '|';

impl IdentityProvider {
    /// What a person of this provider is called here: by issuer and subject, never by an address that may change hands.
    #[must_use]
    pub fn user(&self, subject: &str) -> String {
        user(&self.issuer, subject)
    }

    /// Whether this user is a person of this provider.
    #[must_use]
    pub fn knows(&self, user: &str) -> bool {
        user.split_once(SEPARATOR).is_some_and(|(issuer, _)| issuer == self.issuer)
    }
}

/// The issuer that vouches for this user. `None`: a local one.
#[must_use]
pub fn issuer_of(user: &str) -> Option<&str> {
    user.split_once(SEPARATOR).map(|(issuer, _)| issuer)
}

/// Somebody of an issuer, whichever way they come.
pub(super) fn user(issuer: &str, subject: &str) -> String {
    format!("{issuer}{SEPARATOR}{subject}")
}

/// What entries of issuers have in common: a short name, and neither name nor issuer used twice. `earlier`: those before.
pub(super) fn identify<'e>(
    check: &mut Checker<'_>,
    key: &Key,
    (name, issuer): (&str, &str),
    earlier: impl Iterator<Item = (&'e str, &'e str)> + Clone,
) {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    if name.is_empty() || name.len() > 32 || !name.chars().all(plain) {
        let write = "write 1 to 32 lower-case letters, digits, `-` or `_`";
        check.refuse(&key.child("name"), "is not a name", write);
    }
    if earlier.clone().any(|(other, _)| other == name) {
        check.refuse(&key.child("name"), "is used twice", "give each entry a name of its own");
    }
    if earlier.clone().any(|(_, other)| other == issuer) {
        check.refuse(&key.child("issuer"), "is listed twice", "keep one entry per issuer");
    }
}

/// Checks the list. What is wrong is recorded and left out.
pub(super) fn check(check: &mut Checker<'_>, written: &[file::IdentityProvider]) -> Vec<IdentityProvider> {
    let list = Key::top("login").child("oidc");
    let mut providers: Vec<IdentityProvider> = Vec::with_capacity(written.len());
    for (index, entry) in written.iter().enumerate() {
        let key = list.item(index);
        let earlier = providers.iter().map(|earlier| (earlier.name.as_str(), earlier.issuer.as_str()));
        identify(check, &key, (&entry.name, &entry.issuer), earlier);
        if entry.client_id.is_empty() {
            check.refuse(&key.child("client_id"), "is empty", "write the client id that the provider gave");
        }
        let private = entry.allow_private.unwrap_or(false);
        let issuer_key = key.child("issuer");
        let Some(url) = check.url(&issuer_key, &entry.issuer, private) else {
            continue;
        };
        if url.query().is_some() || entry.issuer.contains(SEPARATOR) {
            check.refuse(&issuer_key, "contains a query or `|`", "write the issuer as the provider names it");
        }
        let client_secret = match &entry.client_secret {
            Some(secret) => match secret::resolve(check, &key.child("client_secret"), secret) {
                Some(secret) => Some(secret),
                None => continue,
            },
            None => None,
        };
        let default = || vec!["profile".to_owned(), "email".to_owned()];
        let scopes = entry.scopes.clone().unwrap_or_else(default);
        let mut scopes = check.scopes(&key.child("scopes"), &scopes);
        scopes.retain(|scope| scope != "openid");
        providers.push(IdentityProvider {
            name: entry.name.clone(),
            label: entry.label.clone().unwrap_or_else(|| entry.name.clone()),
            issuer: entry.issuer.clone(),
            client_id: entry.client_id.clone(),
            client_secret,
            scopes,
            private_hosts: if private { vec![bare_host(&url)] } else { Vec::new() },
            allowed_domains: lower(entry.allowed_domains.as_ref()),
            allowed_groups: entry.allowed_groups.clone().unwrap_or_default(),
            groups_claim: entry.groups_claim.clone().unwrap_or_else(|| "groups".to_owned()),
            policy_claims: entry.policy_claims.clone().unwrap_or_default(),
            name_claim: entry.name_claim.clone().unwrap_or_else(|| "email".to_owned()),
            own_redirect_uri: entry.own_redirect_uri.unwrap_or(false),
            logout_ends_grants: entry.logout_ends_grants.unwrap_or(false),
        });
    }
    providers
}

fn lower(written: Option<&Vec<String>>) -> Vec<String> {
    let domains = written.into_iter().flatten();
    domains.map(|domain| domain.trim_start_matches('@').to_ascii_lowercase()).collect()
}
