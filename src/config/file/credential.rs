//! `routes[].credential`, as it is written.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::Secret;

/// What is put into requests to the upstream. Which keys belong here depends on `kind`.
#[derive(Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Credential {
    /// `oauth`: each user's own token, got by discovery and authorization. `upstream_inject`: a token that the user's identity
    /// provider gave when they signed in here. `postern_token`: a short token of
    /// Postern's own for the caller, good at other routes, for an upstream that is an MCP client itself. `header`: one header, fixed or with
    /// each user's own secret. `none`: nothing. Default: `oauth`.
    pub(in crate::config) kind: Option<CredentialKind>,
    /// `upstream_inject`: entry of `login.oidc`, by name. Its tokens are kept and refreshed; for refresh tokens most providers want the scope
    /// `offline_access` in that entry.
    pub(in crate::config) provider: Option<String>,
    /// `upstream_inject`: which of its tokens: `access`, or `id` for the ID token. Most providers give a newer ID token with a refresh; where
    /// one does not, the user signs in there again once it has ended. Default: `access`.
    pub(in crate::config) token: Option<InjectedToken>,
    /// `postern_token`: names of the routes that the upstream may call for its caller.
    pub(in crate::config) routes: Option<Vec<String>>,
    /// `header`: name of the header.
    pub(in crate::config) name: Option<String>,
    /// `header`: the secret.
    pub(in crate::config) value: Option<Secret>,
    /// `header`: text around the secret, like `Bearer {value}`. Default: `{value}`.
    pub(in crate::config) format: Option<String>,
    /// `header`: each user hands over a secret of their own on their page, `/connections`; there is no `value` then. Default: `false`.
    pub(in crate::config) per_user: Option<bool>,
    /// `header` with `per_user`: where users get their secret, a sentence for that page.
    pub(in crate::config) hint: Option<String>,
    /// `oauth`: client id at the upstream's authorization server. Default: a client metadata document, or registration.
    pub(in crate::config) client_id: Option<String>,
    /// `oauth`: secret of `client_id`.
    pub(in crate::config) client_secret: Option<Secret>,
    /// `oauth`: scopes to ask the upstream for. Default: what the upstream names.
    pub(in crate::config) scopes: Option<Vec<String>>,
    /// `oauth`: the upstream's authorization server. Default: what discovery finds.
    pub(in crate::config) issuer: Option<String>,
    /// `oauth`: authorization endpoint, in place of the discovered one. Together with `token_endpoint`, nothing is discovered.
    pub(in crate::config) authorization_endpoint: Option<String>,
    /// `oauth`: token endpoint, in place of the discovered one. Together with `authorization_endpoint`, nothing is discovered.
    pub(in crate::config) token_endpoint: Option<String>,
    /// `oauth`: resource indicator (RFC 8707), sent exactly as written. Default: what the upstream's metadata says.
    pub(in crate::config) resource: Option<String>,
    /// `oauth`: how Postern authenticates at the token endpoint. Default: what the authorization server supports.
    pub(in crate::config) token_endpoint_auth_method: Option<TokenEndpointAuthMethod>,
    /// `oauth`: further parameters of the authorization request, like `{access_type: offline}`. Default: none.
    pub(in crate::config) authorization_params: Option<BTreeMap<String, String>>,
    /// `oauth`: what the authorization server does about a refresh token that comes a second time, because an answer got lost. `strict`:
    /// it ends the connection; then Postern waits, while the access token is good, for the instance that may have the answer. Default:
    /// Postern tries at once, which saves most, until it has seen this server end a connection for it.
    pub(in crate::config) refresh_rotation: Option<RefreshRotation>,
    /// `oauth`: a provider that deviates from the standards: `atlassian`, `entra`, `github`, `google`, `notion` or `slack`.
    /// Default: known by its issuer.
    pub(in crate::config) profile: Option<String>,
}

/// Kinds of credential.
#[derive(Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum CredentialKind {
    #[default]
    Oauth,
    UpstreamInject,
    PosternToken,
    Header,
    None,
}

impl CredentialKind {
    /// As it is written.
    pub(in crate::config) fn word(self) -> &'static str {
        match self {
            Self::Oauth => "oauth",
            Self::UpstreamInject => "upstream_inject",
            Self::PosternToken => "postern_token",
            Self::Header => "header",
            Self::None => "none",
        }
    }
}

/// Tokens that an identity provider gives at sign-in.
#[derive(Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum InjectedToken {
    Access,
    Id,
}

/// How an authorization server takes a refresh token that was used before.
#[derive(Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum RefreshRotation {
    /// Refresh tokens are good until revoked.
    None,
    /// The token before is good for a while.
    Grace,
    /// A token that comes twice ends the connection.
    Strict,
}

/// Client authentication at a token endpoint (RFC 7591 §2). `private_key_jwt`: by a key that Postern makes for the issuer, published at
/// `{public_url}/oauth/jwks.json`.
#[derive(Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum TokenEndpointAuthMethod {
    None,
    ClientSecretBasic,
    ClientSecretPost,
    PrivateKeyJwt,
}
