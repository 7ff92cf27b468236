//! The section `trusted_issuers`: authorization servers in Postern's place.
use schemars::JsonSchema;
use serde::Deserialize;

use super::Secret;

/// An authorization server whose access tokens are taken at some routes in place of Postern's own.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct TrustedIssuer {
    /// Short name, unique: lower-case letters, digits, `-` and `_`.
    pub(in crate::config) name: String,
    /// The issuer, exactly as it writes itself (RFC 8414).
    pub(in crate::config) issuer: String,
    /// What its tokens name as audience. The resource of a route only where that route alone takes them,
    /// and never an upstream's URL. Default: the URL of the route they are used at.
    pub(in crate::config) audience: Option<String>,
    /// Where its keys are. Default: where its metadata say.
    pub(in crate::config) jwks_uri: Option<String>,
    /// Asks it about each token (RFC 7662), which need not be a JWT then. Default: tokens are JWTs, verified with its keys.
    pub(in crate::config) introspection: Option<Introspection>,
    /// Claim that lists a user's groups. Default: `groups`.
    pub(in crate::config) groups_claim: Option<String>,
    /// Claims that rules see in `caller.claims`; e-mail and groups they see anyway. Default: none.
    pub(in crate::config) policy_claims: Option<Vec<String>>,
    /// Whether the issuer's host may be a private address and speak http. Default: `false`.
    pub(in crate::config) allow_private: Option<bool>,
    /// Whether routes that name no issuers take this one. Default: `false`.
    pub(in crate::config) for_all_routes: Option<bool>,
}

/// How Postern asks about tokens.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Introspection {
    /// Postern's client id there.
    pub(in crate::config) client_id: String,
    /// Postern's client secret there.
    pub(in crate::config) client_secret: Secret,
    /// Where to ask. Default: where its metadata say.
    pub(in crate::config) endpoint: Option<String>,
    /// How long an answer counts, and so how long a token that is revoked there still works here. Default: `30s`.
    pub(in crate::config) cache: Option<String>,
}
