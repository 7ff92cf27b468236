//! The section `login`: who may sign in.
use schemars::JsonSchema;
use serde::Deserialize;

use super::Secret;

#[derive(Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Login {
    /// People listed in this file.
    pub(in crate::config) local: Option<Local>,
    /// Identity providers (OpenID Connect).
    pub(in crate::config) oidc: Option<Vec<IdentityProvider>>,
    /// After so long without a page opened, a browser has to sign in again. Default: `12h`.
    pub(in crate::config) session_idle: Option<String>,
    /// After so long a browser has to sign in again in any case. Default: `7d`.
    pub(in crate::config) session_ttl: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Local {
    /// The people who may sign in.
    pub(in crate::config) users: Option<Vec<User>>,
    /// For demonstrations: the user who is signed in by one click, without a password. Only where `public_url` and all listeners are loopback.
    pub(in crate::config) one_click: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct User {
    /// The name to sign in with.
    pub(in crate::config) username: String,
    /// Argon2id hash of the password, as `postern hash-password` prints.
    pub(in crate::config) password_hash: String,
    /// E-mail address that rules see. Default: none.
    pub(in crate::config) email: Option<String>,
    /// Groups that rules see. Default: none.
    pub(in crate::config) groups: Option<Vec<String>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct IdentityProvider {
    /// Short name, unique: lower-case letters, digits, `-` and `_`.
    pub(in crate::config) name: String,
    /// What people read on the button. Default: `name`.
    pub(in crate::config) label: Option<String>,
    /// The issuer, exactly as the provider writes it. Register `{public_url}/login/callback` there as redirect URI,
    /// `{public_url}/login/signed-out` for after signing out, and `{public_url}/login/backchannel-logout`.
    pub(in crate::config) issuer: String,
    /// Postern's client id there.
    pub(in crate::config) client_id: String,
    /// Postern's client secret there. Default: none, a public client.
    pub(in crate::config) client_secret: Option<Secret>,
    /// Scopes to ask for beside `openid`. Default: `profile`, `email`.
    pub(in crate::config) scopes: Option<Vec<String>>,
    /// Whether the issuer's host may be a private address and speak http. Default: `false`.
    pub(in crate::config) allow_private: Option<bool>,
    /// Only people whose verified e-mail address is in one of these domains. Default: everybody there.
    pub(in crate::config) allowed_domains: Option<Vec<String>>,
    /// Only people who are in one of these groups. Default: everybody there.
    pub(in crate::config) allowed_groups: Option<Vec<String>>,
    /// Claim of the ID token that lists a person's groups. Default: `groups`.
    pub(in crate::config) groups_claim: Option<String>,
    /// Claims that rules see in `caller.claims`; e-mail and groups they see anyway. Default: none.
    pub(in crate::config) policy_claims: Option<Vec<String>>,
    /// Claim of the ID token that people read as somebody's name. Who they are is always issuer and `sub`. Default: `email`.
    pub(in crate::config) name_claim: Option<String>,
    /// Whether this provider sends people back to an address of its own, `{public_url}/login/callback/{name}`, which is then the
    /// one to register there. With several providers of which one does not send `iss` (RFC 9207), it keeps any of them from
    /// passing for another (RFC 9700 §4.4). Default: `false`.
    pub(in crate::config) own_redirect_uri: Option<bool>,
    /// Whether a sign-out at the provider (back-channel logout) also ends what the person has granted to applications, and the
    /// tokens that the provider gave to people who came in elsewhere.
    /// Default: `false`.
    pub(in crate::config) logout_ends_grants: Option<bool>,
}
