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
    /// provider gave when they signed in here. `token_exchange`: a token of each user, got for another one. `entra_obo`: the same
    /// in the form of Microsoft Entra. `id_jag`: the user's ID token, exchanged for an identity assertion that the upstream's
    /// authorization server takes. `client_credentials`: a token of Postern's own, the same for everybody. `aws_sigv4`: a signature, with
    /// the credentials of the user's role at AWS. `postern_token`: a short token of Postern's own for the caller, good at other routes,
    /// for an upstream that is an MCP client itself. `header`: one header, fixed or with each user's own secret. `custom`: what a
    /// strategy says that this program was built with. `none`: nothing.
    /// Default: `oauth`.
    pub(in crate::config) kind: Option<CredentialKind>,
    /// `upstream_inject`: entry of `login.oidc`, by name. Its tokens are kept and refreshed; for refresh tokens most providers want the scope
    /// `offline_access` in that entry.
    pub(in crate::config) provider: Option<String>,
    /// `upstream_inject`: which of its tokens: `access`, or `id` for the ID token. Most providers give a newer ID token with a refresh; where
    /// one does not, the user signs in there again once it has ended. Default: `access`.
    pub(in crate::config) token: Option<InjectedToken>,
    /// `postern_token`: names of the routes that the upstream may call for its caller.
    pub(in crate::config) routes: Option<Vec<String>>,
    /// `custom`: name of a strategy that this program was built with.
    pub(in crate::config) strategy: Option<String>,
    /// `custom`: what that strategy wants to know.
    pub(in crate::config) with: Option<BTreeMap<String, serde_json::Value>>,
    /// `header`: name of the header. `token_exchange`, `client_credentials`: the one that the token goes into; default: `Authorization`.
    pub(in crate::config) name: Option<String>,
    /// `header`: the secret.
    pub(in crate::config) value: Option<Secret>,
    /// Text around the secret, like `Bearer {value}`. Default: `{value}` for `header`, `Bearer {value}` for tokens.
    pub(in crate::config) format: Option<String>,
    /// `header`: each user hands over a secret of their own on their page, `/connections`; there is no `value` then. Default: `false`.
    pub(in crate::config) per_user: Option<bool>,
    /// `header` with `per_user`: where users get their secret, a sentence for that page.
    pub(in crate::config) hint: Option<String>,
    /// `oauth`: client id at the upstream's authorization server; default: a client metadata document, or registration.
    /// `token_exchange`, `client_credentials`: client id at the token endpoint. `entra_obo`: default: that of `subject_provider`, with its
    /// secret.
    pub(in crate::config) client_id: Option<String>,
    /// Secret of `client_id`.
    pub(in crate::config) client_secret: Option<Secret>,
    /// Scopes to ask for. Default: what the upstream names for `oauth`, none for others.
    pub(in crate::config) scopes: Option<Vec<String>>,
    /// `oauth`: the upstream's authorization server; default: what discovery finds. `token_exchange`, `client_credentials`: the
    /// authorization server whose metadata say where the token endpoint is. `id_jag`: both; default of it and `token_endpoint`: the
    /// authorization server that the upstream's metadata names, where it takes assertions.
    pub(in crate::config) issuer: Option<String>,
    /// `oauth`: authorization endpoint, in place of the discovered one. Together with `token_endpoint`, nothing is discovered.
    pub(in crate::config) authorization_endpoint: Option<String>,
    /// Token endpoint, in place of the discovered one. Together with `authorization_endpoint`, `oauth` discovers nothing.
    pub(in crate::config) token_endpoint: Option<String>,
    /// Resource indicator (RFC 8707), sent exactly as written; several as a list for `token_exchange` and `client_credentials`.
    /// Default: what the upstream's metadata says for `oauth`, none for others.
    pub(in crate::config) resource: Option<Texts>,
    /// `token_exchange`, `client_credentials`: whom the token is for, one or a list. Default: nobody is named.
    pub(in crate::config) audience: Option<Texts>,
    /// `token_exchange`, `client_credentials`: further parameters of the token request. Default: none.
    pub(in crate::config) params: Option<BTreeMap<String, String>>,
    /// `token_exchange`: `exchange` is RFC 8693, `assertion` shows the subject's token as a grant of its own (RFC 7523). Default: `exchange`.
    pub(in crate::config) form: Option<ExchangeForm>,
    /// `token_exchange`: whose token is exchanged. `caller`: a JWT that Postern signs about them, verified with the keys at
    /// `{public_url}/oauth/jwks.json`; where the route trusts other issuers, the token that they came with. Default: `caller`, unless
    /// `subject_provider` is there.
    pub(in crate::config) subject: Option<SubjectOf>,
    /// `token_exchange`, `entra_obo`, `id_jag`, `aws_sigv4`: entry of `login.oidc`, by name; a token that it gave when the user signed in
    /// is exchanged, for `id_jag` and `aws_sigv4` the ID token.
    pub(in crate::config) subject_provider: Option<String>,
    /// `entra_obo`: tenant in whose name tokens are asked for, by id or domain, or `from_user` for the user's own (`tid` of their ID token).
    /// It takes the place of `{tenant}` in `token_endpoint`; default of that: `https://login.microsoftonline.com/{tenant}/oauth2/v2.0/token`.
    pub(in crate::config) tenant: Option<String>,
    /// `token_exchange`: which of the provider's tokens: `access`, or `id` for the ID token. Default: `access`.
    pub(in crate::config) subject_token: Option<InjectedToken>,
    /// `token_exchange`: type of the subject's token. Default: `urn:ietf:params:oauth:token-type:jwt` for one that Postern signs,
    /// `urn:ietf:params:oauth:token-type:id_token` for an ID token, `urn:ietf:params:oauth:token-type:access_token` for others.
    pub(in crate::config) subject_token_type: Option<String>,
    /// `token_exchange`: type of token to ask for; another one is refused. Default: none is named, and an access token or JWT is taken.
    pub(in crate::config) requested_token_type: Option<String>,
    /// `token_exchange`: who acts for the user. `self`: Postern, by a JWT that it signs. Default: nobody is named.
    pub(in crate::config) actor: Option<ActorToken>,
    /// `token_exchange`: a token about whoever acts for the user, in place of `actor`.
    pub(in crate::config) actor_token: Option<Secret>,
    /// `token_exchange`: type of `actor_token`. Default: `urn:ietf:params:oauth:token-type:jwt`.
    pub(in crate::config) actor_token_type: Option<String>,
    /// How Postern authenticates at the token endpoint. Default: what the authorization server supports for `oauth`,
    /// `client_secret_basic` for others.
    pub(in crate::config) token_endpoint_auth_method: Option<TokenEndpointAuthMethod>,
    /// `oauth`: the user whose connection serves everybody at this route, like `alice` or `https://idp.example.com|4711`; they alone connect
    /// it. Default: each user has one of their own.
    pub(in crate::config) shared_by: Option<String>,
    /// `oauth`: further parameters of the authorization request, like `{access_type: offline}`. Default: none.
    pub(in crate::config) authorization_params: Option<BTreeMap<String, String>>,
    /// `oauth`: what the authorization server does about a refresh token that comes a second time, because an answer got lost. `strict`:
    /// it ends the connection; then Postern waits, while the access token is good, for the instance that may have the answer. Default:
    /// Postern tries at once, which saves most, until it has seen this server end a connection for it.
    pub(in crate::config) refresh_rotation: Option<RefreshRotation>,
    /// `oauth`: a provider that deviates from the standards: `atlassian`, `entra`, `github`, `google`, `notion` or `slack`.
    /// Default: known by its issuer.
    pub(in crate::config) profile: Option<String>,
    /// `aws_sigv4`: region of the service, like `eu-central-1`.
    pub(in crate::config) region: Option<String>,
    /// `aws_sigv4`: the service as signatures name it, like `bedrock-agentcore`.
    pub(in crate::config) service: Option<String>,
    /// `aws_sigv4`: who has which role, by their ID token. Default: nobody but for `fallback_role`.
    pub(in crate::config) roles: Option<Vec<AwsRole>>,
    /// `aws_sigv4`: ARN of the role of everybody else. Default: they are refused.
    pub(in crate::config) fallback_role: Option<String>,
    /// `aws_sigv4`: claim of the ID token that the role's session is named after, for the logs of AWS. Default: `sub`.
    pub(in crate::config) session_name_claim: Option<String>,
    /// `aws_sigv4`: how long the role's credentials last, `15m` to `12h`. Default: `1h`.
    pub(in crate::config) duration: Option<String>,
    /// `aws_sigv4`: URL of the token service (STS). Default: that of the region.
    pub(in crate::config) sts_endpoint: Option<String>,
}

/// A role at AWS, and who has it.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct AwsRole {
    /// Claim of the ID token, like `groups`: a text, or a list of texts.
    pub(in crate::config) claim: Option<String>,
    /// Those who have one of these there have the role.
    pub(in crate::config) values: Option<Vec<String>>,
    /// In place of `claim` and `values`: a condition in CEL on `caller`, as in rules, like `'admins' in caller.groups`. Where it cannot be
    /// decided, nobody gets this role or one behind it.
    pub(in crate::config) when: Option<String>,
    /// The role, like `arn:aws:iam::123456789012:role/name`.
    pub(in crate::config) arn: String,
    /// The lowest is tried first, equal ones as they are written. Default: 0.
    pub(in crate::config) priority: Option<i32>,
}

/// Kinds of credential.
#[derive(Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum CredentialKind {
    #[default]
    Oauth,
    UpstreamInject,
    PosternToken,
    Custom,
    TokenExchange,
    EntraObo,
    IdJag,
    ClientCredentials,
    AwsSigv4,
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
            Self::Custom => "custom",
            Self::TokenExchange => "token_exchange",
            Self::EntraObo => "entra_obo",
            Self::IdJag => "id_jag",
            Self::ClientCredentials => "client_credentials",
            Self::AwsSigv4 => "aws_sigv4",
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

/// Forms of a request for a token by another one.
#[derive(Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum ExchangeForm {
    #[default]
    Exchange,
    Assertion,
}

/// Whose token is exchanged.
#[derive(Deserialize, JsonSchema, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum SubjectOf {
    Caller,
}

/// Who acts for the user.
#[derive(Deserialize, JsonSchema, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum ActorToken {
    #[serde(rename = "self")]
    Ourselves,
}

/// One text, or a list of them.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
pub(in crate::config) enum Texts {
    One(String),
    Several(Vec<String>),
}

impl Texts {
    pub(in crate::config) fn list(&self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one.clone()],
            Self::Several(several) => several.clone(),
        }
    }
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
