//! Which identity providers let clients act for their people here (`oauth_server.id_jag`).
use super::checked::Checker;
use super::credential::provider;
use super::file;
use super::login::Login;
use super::report::Key;

/// The names of those providers; none where nobody does.
pub(super) fn issuers(check: &mut Checker<'_>, written: Option<&file::IdJag>, login: &Login) -> Vec<String> {
    let Some(written) = written else {
        return Vec::new();
    };
    let list = Key::top("oauth_server").child("id_jag").child("issuers");
    if written.issuers.is_empty() {
        let write = "write names of entries of `login.oidc`, or leave `id_jag` out";
        check.refuse(&list, "is empty", write);
    }
    let mut names: Vec<String> = Vec::with_capacity(written.issuers.len());
    for (index, name) in written.issuers.iter().enumerate() {
        let key = list.item(index);
        if names.contains(name) {
            check.refuse(&key, "is listed twice", "keep one entry per provider");
        } else if provider(check, &key, Some(name), login).is_some() {
            names.push(name.clone());
        }
    }
    names
}
