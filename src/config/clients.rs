//! Clients of the authorization server: those listed in the file, and who else may make itself known.
use std::collections::HashMap;
use std::sync::Arc;

use secrecy::SecretString;
use url::Url;

use super::checked::Checker;
use super::file::{self, ClientAuthMethod};
use super::report::Key;
use super::secret;
use crate::jose::Keys;

/// What the id of a client begins with that is an upstream of ours: it calls for its own caller, by a token that it got from us.
pub const RELAYED: &str = "route:";

/// Clients that are known by the URL of a metadata document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cimd {
    pub enabled: bool,
    /// Whether documents may come from private addresses, and by `http` from loopback ones.
    pub allow_private: bool,
    /// The only hosts that documents may come from; empty: any. `*.` in front stands for one label, as in certificates: who has a
    /// name may give those below it to others.
    pub allow_hosts: Vec<String>,
    /// Hosts that no document comes from; stronger than `allow_hosts`. Here `*.` stands for all names below.
    pub deny_hosts: Vec<String>,
}

/// A client that the operator knows.
#[derive(Clone)]
pub struct ListedClient {
    pub name: Option<String>,
    /// Exact; empty for a client without people.
    pub redirect_uris: Vec<String>,
    pub authentication: ListedAuthentication,
    /// Whether it may ask about tokens (RFC 7662).
    pub may_introspect: bool,
    /// Whether and where it may call for itself (RFC 6749 §4.4).
    pub machine: Option<Arc<Machine>>,
}

/// How a listed client proves who it is.
#[derive(Clone)]
pub enum ListedAuthentication {
    None,
    Secret { method: ClientAuthMethod, secret: SecretString },
    Keys(Arc<Keys>),
    KeysAt(String),
}

/// What a client without people may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Names of routes.
    pub routes: Vec<String>,
    /// The user whose connections it uses. `None`: nobody's.
    pub acts_for: Option<String>,
}

impl Cimd {
    /// Whether documents of this host (lower case, no port) are taken at all.
    pub fn admits(&self, host: &str) -> bool {
        let listed = |list: &[String], most_labels: usize| {
            list.iter().any(|entry| match entry.strip_prefix("*.") {
                Some(parent) => {
                    let labels = host.strip_suffix(parent).and_then(|rest| rest.strip_suffix('.'));
                    labels
                        .is_some_and(|labels| !labels.is_empty() && labels.split('.').count() <= most_labels)
                }
                None => entry == host,
            })
        };
        !listed(&self.deny_hosts, usize::MAX) && (self.allow_hosts.is_empty() || listed(&self.allow_hosts, 1))
    }
}

pub(super) fn cimd(check: &mut Checker<'_>, written: Option<&file::Cimd>) -> Cimd {
    let key = Key::top("oauth_server").child("clients").child("cimd");
    let mut hosts = |name: &'static str, written: Option<&Vec<String>>| -> Vec<String> {
        let entries = written.into_iter().flatten().enumerate();
        let mut hosts = Vec::new();
        for (index, entry) in entries {
            let host = entry.to_ascii_lowercase();
            let bare = host.strip_prefix("*.").unwrap_or(&host);
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
            if bare.is_empty() || !bare.bytes().all(plain) || bare.starts_with('.') {
                let write = "write a host like `client.example.com`, or `*.example.com` for those below";
                check.refuse(&key.child(name).item(index), "is not a host", write);
            } else {
                hosts.push(host);
            }
        }
        hosts
    };
    Cimd {
        allow_hosts: hosts("allow_hosts", written.and_then(|cimd| cimd.allow_hosts.as_ref())),
        deny_hosts: hosts("deny_hosts", written.and_then(|cimd| cimd.deny_hosts.as_ref())),
        enabled: written.and_then(|cimd| cimd.enabled).unwrap_or(true),
        allow_private: written.and_then(|cimd| cimd.allow_private).unwrap_or(false),
    }
}

/// The clients of the list, by id. What is wrong is recorded and left out. Routes and users are checked by `names`.
/// `assertions`: whether those that prove who they are may act for people of an identity provider.
pub(super) fn listed(
    check: &mut Checker<'_>,
    written: Option<&Vec<file::StaticClient>>,
    names: &Names<'_>,
    assertions: bool,
) -> HashMap<String, ListedClient> {
    let list = Key::top("oauth_server").child("clients").child("static");
    let mut clients = HashMap::new();
    for (index, entry) in written.into_iter().flatten().enumerate() {
        let key = list.item(index);
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if entry.client_id.is_empty() || entry.client_id.len() > 128 || !entry.client_id.bytes().all(plain) {
            let write = "write 1 to 128 letters, digits, `-`, `_` or `.`";
            check.refuse(&key.child("client_id"), "is not a client id", write);
        }
        let redirect_uris = redirect_uris(check, &key.child("redirect_uris"), entry);
        let authentication = authentication(check, &key, entry);
        let machine = machine(check, &key, entry, names);
        let is_public = matches!(authentication, Some(ListedAuthentication::None));
        let is_for_people = !redirect_uris.is_empty() || (assertions && !is_public);
        if !is_for_people && machine.is_none() && entry.introspect != Some(true) {
            let what = "can do nothing";
            check.refuse(&key, what, "give it `redirect_uris`, `client_credentials` or `introspect: true`");
        }
        let Some(authentication) = authentication else {
            continue;
        };
        let client = ListedClient {
            name: entry.client_name.clone(),
            redirect_uris,
            authentication,
            may_introspect: entry.introspect.unwrap_or(false),
            machine,
        };
        let proven = !matches!(client.authentication, ListedAuthentication::None);
        if !proven && (client.may_introspect || client.machine.is_some()) {
            let what = "could be anybody";
            check.refuse(&key.child("token_endpoint_auth_method"), what, "let it authenticate: not `none`");
        }
        if entry.client_id.starts_with(RELAYED) {
            let what = format!("begins like the name of an upstream that calls for somebody ({RELAYED})");
            check.refuse(&key.child("client_id"), what, "give the client another id");
        }
        if clients.insert(entry.client_id.clone(), client).is_some() {
            check.refuse(&key.child("client_id"), "is listed twice", "give each client an id of its own");
        }
    }
    clients
}

/// What entries of the list may refer to.
pub(super) struct Names<'a> {
    pub(super) routes: &'a [String],
    pub(super) users: &'a dyn Fn(&str) -> bool,
}

fn redirect_uris(check: &mut Checker<'_>, key: &Key, entry: &file::StaticClient) -> Vec<String> {
    let uris = entry.redirect_uris.clone().unwrap_or_default();
    for (index, uri) in uris.iter().enumerate() {
        let fits = Url::parse(uri).is_ok_and(|url| {
            let loopback = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
            (url.scheme() == "https" || (url.scheme() == "http" && loopback)) && url.fragment().is_none()
        });
        if !fits || uri.contains('*') {
            let write =
                "write an https URL, or http on localhost or a loopback address; no fragment, no wildcard";
            check.refuse(&key.item(index), "is not a redirect URI", write);
        }
    }
    uris
}

fn authentication(
    check: &mut Checker<'_>,
    key: &Key,
    entry: &file::StaticClient,
) -> Option<ListedAuthentication> {
    let method = entry.token_endpoint_auth_method.unwrap_or(match (&entry.client_secret, entry.has_keys()) {
        (Some(_), _) => ClientAuthMethod::ClientSecretBasic,
        (None, true) => ClientAuthMethod::PrivateKeyJwt,
        (None, false) => ClientAuthMethod::None,
    });
    let by_secret =
        matches!(method, ClientAuthMethod::ClientSecretBasic | ClientAuthMethod::ClientSecretPost);
    let by_keys = method == ClientAuthMethod::PrivateKeyJwt;
    if entry.client_secret.is_some() && !by_secret {
        check.refuse(&key.child("client_secret"), "is of no use with this method", "leave it out");
    }
    if entry.has_keys() && !by_keys {
        let write = "leave out `jwks_file` and `jwks_uri`, or write `private_key_jwt`";
        check.refuse(&key.child("token_endpoint_auth_method"), "needs no keys", write);
    }
    match (&entry.client_secret, &entry.jwks_file, &entry.jwks_uri) {
        (Some(secret), _, _) if by_secret => {
            let secret = secret::resolve(check, &key.child("client_secret"), secret)?;
            Some(ListedAuthentication::Secret { method, secret })
        }
        (None, _, _) if by_secret => {
            check.refuse(&key.child("client_secret"), "is missing", "say where the secret is");
            None
        }
        (_, Some(file), None) if by_keys => {
            let set = check.read(&key.child("jwks_file"), file)?;
            match Keys::parse(&set).filter(|keys| !keys.is_empty()) {
                Some(keys) => Some(ListedAuthentication::Keys(Arc::new(keys))),
                None => {
                    let what = format!("{} holds no JWK set with a public key to verify by", file.display());
                    check.refuse(&key.child("jwks_file"), what, "name a file like {\"keys\": [{…}]}");
                    None
                }
            }
        }
        (_, None, Some(uri)) if by_keys => {
            let url = check.url(&key.child("jwks_uri"), uri, false)?;
            Some(ListedAuthentication::KeysAt(url.into()))
        }
        _ if by_keys => {
            let write = "write one of `jwks_file` and `jwks_uri`";
            check.refuse(&key.child("token_endpoint_auth_method"), "needs the client's public keys", write);
            None
        }
        _ => Some(ListedAuthentication::None),
    }
}

fn machine(
    check: &mut Checker<'_>,
    key: &Key,
    entry: &file::StaticClient,
    names: &Names<'_>,
) -> Option<Arc<Machine>> {
    let written = entry.client_credentials.as_ref()?;
    let key = key.child("client_credentials");
    if written.routes.is_empty() {
        check.refuse(&key.child("routes"), "is empty", "list the routes that it may call");
    }
    for (index, route) in written.routes.iter().enumerate() {
        if !names.routes.contains(route) {
            let what = format!("there is no route `{route}` for tokens of Postern's own");
            check.refuse(&key.child("routes").item(index), what, "write the name of a route");
        }
    }
    if let Some(user) = written.acts_for.as_deref().filter(|user| !(names.users)(user)) {
        let what = format!("there is no user `{user}`");
        check.refuse(&key.child("acts_for"), what, "write the name of a user, or leave it out");
    }
    Some(Arc::new(Machine { routes: written.routes.clone(), acts_for: written.acts_for.clone() }))
}

impl file::StaticClient {
    fn has_keys(&self) -> bool {
        self.jwks_file.is_some() || self.jwks_uri.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pom_42_a_star_allows_one_label_and_denies_all_below() {
        let with = |allow: &[&str], deny: &[&str]| Cimd {
            enabled: true,
            allow_private: false,
            allow_hosts: allow.iter().map(ToString::to_string).collect(),
            deny_hosts: deny.iter().map(ToString::to_string).collect(),
        };
        assert!(with(&[], &[]).admits("any.example"));
        let listed = with(
            &["a.example", "*.b.example", "*.x.c.example", "*.c.example"],
            &["bad.b.example", "*.bad.c.example"],
        );
        for (host, taken) in [
            ("a.example", true),
            ("x.a.example", false),
            ("x.b.example", true),
            ("y.x.b.example", false),
            ("y.x.c.example", true),
            ("b.example", false),
            (".b.example", false),
            ("evilb.example", false),
            ("bad.b.example", false),
            ("bad.c.example", true),
            ("x.bad.c.example", false),
        ] {
            assert_eq!(listed.admits(host), taken, "{host}");
        }
        let denied = with(&[], &["*.bad.example"]);
        assert!(!denied.admits("x.bad.example") && !denied.admits("y.x.bad.example"));
        assert!(denied.admits("bad.example"));
    }
}
