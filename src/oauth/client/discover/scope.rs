//! Which scopes an authorization asks for, and what counts as a scope name at all. Pure.
use super::AuthorizationServer;
use crate::challenge::Bearer;
use crate::config::Profile;

/// Of a list of scopes so many are taken.
const MOST_SCOPES: usize = 100;
/// And so many bytes of them together: tokens of ours carry them, in a header.
const LONGEST_SCOPES: usize = 3072;
const OFFLINE_ACCESS: &str = "offline_access";

/// Challenge, else published; `offline_access` only where the authorization server knows it, and never alone: a
/// request without scopes leaves the choice to the server. What the provider is known to want for a refresh token likewise.
pub(super) fn wanted_scopes(
    challenge: Option<&Bearer>,
    published: Vec<String>,
    server: &AuthorizationServer,
    profile: &Profile,
) -> Vec<String> {
    let offline_known = server.scopes_supported.iter().any(|scope| scope == OFFLINE_ACCESS);
    let challenged = scope_list(challenge.and_then(|bearer| bearer.scope.as_deref()));
    let mut scopes = if challenged.is_empty() {
        let mut published = valid_scopes(published);
        published.retain(|scope| scope != OFFLINE_ACCESS || offline_known);
        published
    } else {
        challenged
    };
    if offline_known && !scopes.is_empty() && !scopes.iter().any(|scope| scope == OFFLINE_ACCESS) {
        scopes.push(OFFLINE_ACCESS.to_string());
    }
    let besides = profile.scopes.iter().map(ToString::to_string).filter(|_| !scopes.is_empty());
    valid_scopes(scopes.clone().into_iter().chain(besides))
}

/// The names in a `scope` value, each once.
pub(in super::super) fn scope_list(value: Option<&str>) -> Vec<String> {
    valid_scopes(value.unwrap_or_default().split(' ').map(str::to_string))
}

/// RFC 6749 §3.3 names only, each once, in their order.
pub(super) fn valid_scopes(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut valid: Vec<String> = Vec::new();
    let mut length = 0;
    for name in names {
        let fits = !name.is_empty() && name.bytes().all(|b| matches!(b, 0x21 | 0x23..=0x5b | 0x5d..=0x7e));
        if fits && !valid.contains(&name) {
            length += name.len() + 1;
            if valid.len() == MOST_SCOPES || length > LONGEST_SCOPES {
                break;
            }
            valid.push(name);
        }
    }
    valid
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_scopes_is_bounded_in_number_and_in_length() {
        assert_eq!(valid_scopes((0..200).map(|number| format!("s{number}"))).len(), MOST_SCOPES);
        // A hundred bytes each, with what stands between them.
        assert_eq!(valid_scopes((0..50).map(|number| format!("{number:0>99}"))).len(), LONGEST_SCOPES / 100);
        assert!(valid_scopes(["x".repeat(LONGEST_SCOPES)]).is_empty());
    }
}
