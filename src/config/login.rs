//! Who may sign in.
//!
//! Local users only in this version; one-click sign-in is for demonstrations and stays on loopback.

use std::collections::HashMap;

use argon2::Params;
use argon2::password_hash::phc::PasswordHash;
use secrecy::SecretString;

use super::checked::Checker;
use super::file;
use super::report::Key;
use super::server::Server;

/// How people sign in.
pub struct Login {
    /// By name; there is at least one.
    pub users: HashMap<String, User>,
    /// Name of the user who signs in by one click; one of `users`. Then `public_url` and all listeners are loopback.
    pub one_click: Option<String>,
}

impl Login {
    /// Whether there is a user of that name.
    pub fn knows(&self, username: &str) -> bool {
        self.users.contains_key(username)
    }
}

/// A local user.
pub struct User {
    /// PHC string of an Argon2id hash that can be verified. Kept like a secret: it can be attacked offline.
    pub password_hash: SecretString,
}

/// What the names of programs begin with.
const RESERVED: [&str; 2] = ["client:", "service:"];

/// Checks `login`. `server` is `None` when it is itself in error: then nothing is said about loopback.
pub(super) fn check(check: &mut Checker<'_>, written: &file::Login, server: Option<&Server>) -> Login {
    let login = Key::top("login");
    let oidc = written.oidc.as_ref().is_some_and(|providers| !providers.is_empty());
    if oidc {
        let write = "leave it out and list people under `login.local.users`";
        check.refuse(&login.child("oidc"), "this version signs in local users only", write);
    }
    let local = login.child("local");
    let listed = written.local.as_ref().and_then(|local| local.users.as_deref()).unwrap_or_default();
    if listed.is_empty() && !oidc {
        let write = "add an entry with `username` and `password_hash` (made by `postern hash-password`)";
        check.refuse(&local.child("users"), "nobody could sign in", write);
    }
    let mut users = HashMap::with_capacity(listed.len());
    for (index, user) in listed.iter().enumerate() {
        let key = local.child("users").item(index);
        let name = key.child("username");
        if user.username.is_empty()
            || user.username.len() > 128
            || user.username.trim() != user.username
            || user.username.chars().any(char::is_control)
        {
            check.refuse(&name, "is not a user name", "write 1 to 128 bytes without spaces around them");
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
        users.insert(user.username.clone(), User { password_hash });
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
    Login { users, one_click }
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
