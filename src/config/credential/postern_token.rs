//! `kind: postern_token`: names of routes → the routes for which an upstream gets tokens of ours.

use super::super::checked::Checker;
use super::super::file;
use super::super::report::Key;
use super::super::route::Route;
use super::Credential;

pub(super) fn check(check: &mut Checker<'_>, key: &Key, written: &file::Credential) -> Option<Credential> {
    let routes = written.routes.clone().unwrap_or_default();
    // V-13: a token for nothing in particular would be one for everything.
    if routes.is_empty() {
        let what = if written.routes.is_some() { "is empty" } else { "is missing" };
        check.refuse(&key.child("routes"), what, "write the names of the routes that the upstream may call");
        return None;
    }
    Some(Credential::PosternToken(routes))
}

/// Holds the names against all routes.
pub(in crate::config) fn check_routes(
    check: &mut Checker<'_>,
    list: &Key,
    written: &[file::Route],
    routes: &[Route],
) {
    for route in routes {
        let Credential::PosternToken(names) = &route.credential else { continue };
        let Some(index) = written.iter().position(|entry| entry.name == route.name) else { continue };
        let key = list.item(index).child("credential").child("routes");
        if !route.trusted_issuers.is_empty() {
            let what = "makes tokens of those that callers come with, which are not ours at this route";
            check.refuse(&key, what, "let the route take our own: `trusted_issuers: []`");
        }
        for (place, name) in names.iter().enumerate() {
            let what = match routes.iter().find(|other| other.name == *name) {
                None if written.iter().any(|entry| entry.name == *name) => continue,
                None => format!("`{name}` is no route"),
                Some(_) if *name == route.name => {
                    "is the route itself, whose upstream would call itself".to_owned()
                }
                Some(other) if !other.trusted_issuers.is_empty() => {
                    format!("`{name}` takes tokens of other issuers alone")
                }
                Some(_) if names.iter().take(place).any(|before| before == name) => {
                    "is named twice".to_owned()
                }
                Some(_) => continue,
            };
            check.refuse(&key.item(place), what, "write the names of other routes that take our tokens");
        }
    }
}
