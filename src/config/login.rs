//! Who may sign in.
//!
//! Local users and people of identity providers; one-click sign-in is for demonstrations and stays on loopback.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use argon2::Params;
use argon2::password_hash::phc::PasswordHash;
use secrecy::SecretString;

use super::attributes::Attributes;
use super::checked::Checker;
use super::file;
use super::oidc::{self, IdentityProvider, SEPARATOR};
use super::report::Key;
use super::server::Server;

/// How people sign in.
pub struct Login {
    /// Local ones, by name. There are some, or there is a provider.
    pub users: HashMap<String, User>,
    /// Name of the user who signs in by one click; one of `users`. Then `public_url` and all listeners are loopback.
    pub one_click: Option<String>,
    pub providers: Vec<IdentityProvider>,
    /// After so long unused a session ends.
    pub session_idle: Duration,
    /// After so long a session ends.
    pub session_ttl: Duration,
}

impl Login {
    /// Whether there is a user of that name.
    pub fn knows(&self, username: &str) -> bool {
        self.users.contains_key(username) || self.provider_of(username).is_some()
    }

    /// The identity provider that vouches for this user.
    pub fn provider_of(&self, user: &str) -> Option<&IdentityProvider> {
        self.providers.iter().find(|provider| provider.knows(user))
    }

    /// The provider of that short name.
    pub fn provider(&self, name: &str) -> Option<&IdentityProvider> {
        self.providers.iter().find(|provider| provider.name == name)
    }
}

/// A local user.
pub struct User {
    /// PHC string of an Argon2id hash that can be verified. Kept like a secret: it can be attacked offline.
    pub password_hash: SecretString,
    /// What rules may look at.
    pub attributes: Arc<Attributes>,
}

/// What the names of programs begin with.
const RESERVED: [&str; 2] = ["client:", "service:"];

/// Checks `login`. `server` is `None` when it is itself in error: then nothing is said about loopback. `needed`: whether
/// anything here takes somebody who signs in.
pub(super) fn check(
    check: &mut Checker<'_>,
    written: &file::Login,
    server: Option<&Server>,
    needed: bool,
) -> Login {
    let login = Key::top("login");
    let providers = oidc::check(check, written.oidc.as_deref().unwrap_or_default());
    let oidc = written.oidc.as_ref().is_some_and(|providers| !providers.is_empty());
    let (minute, day) = (Duration::from_secs(60), Duration::from_secs(24 * 3600));
    let session_ttl = written.session_ttl.as_deref();
    let session_ttl =
        check.duration(&login.child("session_ttl"), session_ttl, 7 * day, Duration::from_secs(1), 365 * day);
    let idle = written.session_idle.as_deref();
    let session_idle =
        check.duration(&login.child("session_idle"), idle, 720 * minute, Duration::from_secs(1), 365 * day);
    let local = login.child("local");
    let listed = written.local.as_ref().and_then(|local| local.users.as_deref()).unwrap_or_default();
    if listed.is_empty() && !oidc && needed {
        let write = "add an entry with `username` and `password_hash` (made by `postern hash-password`), or a provider under `login.oidc`";
        check.refuse(&local.child("users"), "nobody could sign in", write);
    }
    let mut users = HashMap::with_capacity(listed.len());
    for (index, user) in listed.iter().enumerate() {
        let key = local.child("users").item(index);
        let name = key.child("username");
        if user.username.is_empty()
            || user.username.len() > 128
            || user.username.trim() != user.username
            || user.username.chars().any(|c| c.is_control() || c == SEPARATOR)
        {
            check.refuse(
                &name,
                "is not a user name",
                "write 1 to 128 bytes without `|`, and without spaces around them",
            );
        } else if RESERVED.iter().any(|prefix| user.username.starts_with(prefix)) {
            let what = "begins like the name of a program";
            check.refuse(&name, what, "write a name that begins with neither `client:` nor `service:`");
        } else if users.contains_key(&user.username) {
            check.refuse(&name, "is listed twice", "keep one entry per user");
        }
        if !is_argon2id(&user.password_hash) {
            let write = "write what `postern hash-password` prints, in quotes: \"$argon2id$v=19$…\"";
            check.refuse(&key.child("password_hash"), "is not an Argon2id hash", write);
        }
        let password_hash = SecretString::from(user.password_hash.as_str());
        let (email, groups) =
            (user.email.clone().unwrap_or_default(), user.groups.clone().unwrap_or_default());
        let attributes = Arc::new(Attributes { email, groups, ..Attributes::default() });
        users.insert(user.username.clone(), User { password_hash, attributes });
    }
    let one_click = written.local.as_ref().and_then(|local| local.one_click.clone());
    if let Some(name) = &one_click {
        let key = local.child("one_click");
        if !users.contains_key(name) {
            check.refuse(&key, "is not a listed user", "write a username from `login.local.users`");
        }
        let loopback = |server: &Server| {
            server.public_url.is_loopback() && server.listen.iter().all(super::Listen::is_loopback)
        };
        if server.is_some_and(|server| !loopback(server)) {
            let what = "sign-in without a password needs a loopback `public_url` and loopback listeners only";
            check.refuse(
                &key,
                what,
                "leave it out, or use 127.0.0.1 in `server.public_url` and `server.listen`",
            );
        }
    }
    Login { users, one_click, providers, session_idle, session_ttl }
}

/// Whether `text` is a PHC string with an Argon2id hash, a salt and parameters that can be computed.
fn is_argon2id(text: &str) -> bool {
    PasswordHash::new(text).is_ok_and(|hash| {
        hash.algorithm.as_str() == "argon2id"
            && hash.salt.is_some()
            && hash.hash.is_some()
            && Params::try_from(&hash).is_ok()
    })
}
