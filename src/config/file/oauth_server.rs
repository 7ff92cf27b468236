//! The section `oauth_server`: Postern as the authorization server of MCP clients.
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Secret;

#[derive(Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct OauthServer {
    /// Form of the access tokens that Postern issues: `sealed`, which only Postern reads, or `jwt` (RFC 9068) for resource
    /// servers other than Postern, which verify them by `/oauth/jwks.json`. Default: `sealed`.
    pub(in crate::config) access_token_format: Option<AccessTokenFormat>,
    /// Keys that sign JWTs. The first one signs, all of them are published. Without any, one is made and kept in the store.
    pub(in crate::config) signing_keys: Option<Vec<SigningKey>>,
    /// Life of an access token, at most `15m`. Default: `10m`.
    pub(in crate::config) access_token_ttl: Option<String>,
    /// Life of a refresh token that is not used. Default: `30d`.
    pub(in crate::config) refresh_token_ttl: Option<String>,
    /// How long what a user has allowed lasts in any case, however often its refresh tokens are used. Default: `365d`.
    pub(in crate::config) grant_ttl: Option<String>,
    /// For how long a used refresh token may be shown again by a client that lost the answer, at most `60s`. Default: `30s`.
    pub(in crate::config) refresh_replay_window: Option<String>,
    /// How MCP clients make themselves known.
    pub(in crate::config) clients: Option<Clients>,
    /// Identity providers that let clients act for their people, who are not asked (enterprise-managed authorization): a client
    /// shows an identity assertion authorization grant (ID-JAG) at the token endpoint.
    pub(in crate::config) id_jag: Option<IdJag>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct IdJag {
    /// Names of entries of `login.oidc`.
    pub(in crate::config) issuers: Vec<String>,
}

/// Forms of access tokens.
#[derive(Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum AccessTokenFormat {
    #[default]
    Sealed,
    Jwt,
}

/// A key that signs JWTs.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct SigningKey {
    /// Its `kid`: letters, digits, `-` and `_`. Never give a new key an old name.
    pub(in crate::config) id: String,
    /// PEM file with a P-256 or Ed25519 key in PKCS#8. Must be readable by its owner only.
    pub(in crate::config) file: PathBuf,
}

#[derive(Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Clients {
    /// Client ID metadata documents: the client's id is the URL of a document about it.
    pub(in crate::config) cimd: Option<Cimd>,
    /// Dynamic client registration (RFC 7591).
    pub(in crate::config) dcr: Option<Dcr>,
    /// Clients that you know and list here.
    #[serde(rename = "static")]
    pub(in crate::config) listed: Option<Vec<StaticClient>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct StaticClient {
    /// Letters, digits, `-`, `_` and `.`.
    pub(in crate::config) client_id: String,
    /// What people read on the consent page.
    pub(in crate::config) client_name: Option<String>,
    /// Where answers may go, exactly. None for a client without people.
    pub(in crate::config) redirect_uris: Option<Vec<String>>,
    /// How it authenticates. Default: `client_secret_basic` with a secret, `private_key_jwt` with keys, else `none`.
    pub(in crate::config) token_endpoint_auth_method: Option<ClientAuthMethod>,
    /// Its secret.
    pub(in crate::config) client_secret: Option<Secret>,
    /// `private_key_jwt`: file with its public keys, a JWK set.
    pub(in crate::config) jwks_file: Option<PathBuf>,
    /// `private_key_jwt`: where its public keys are, an `https` URL.
    pub(in crate::config) jwks_uri: Option<String>,
    /// Whether it may ask about tokens (`/oauth/introspect`, RFC 7662). Default: `false`.
    pub(in crate::config) introspect: Option<bool>,
    /// Lets it get tokens for itself (grant `client_credentials`), without people.
    pub(in crate::config) client_credentials: Option<ClientCredentials>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct ClientCredentials {
    /// Names of the routes that it may call.
    pub(in crate::config) routes: Vec<String>,
    /// The user whose connections it uses at routes with a credential per user. Default: nobody's.
    pub(in crate::config) acts_for: Option<String>,
}

/// How a client authenticates at our endpoints (RFC 7591 §2).
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuthMethod {
    #[default]
    None,
    ClientSecretBasic,
    ClientSecretPost,
    PrivateKeyJwt,
}

#[derive(Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Cimd {
    /// Default: `true`.
    pub(in crate::config) enabled: Option<bool>,
    /// Whether documents may lie on private and loopback addresses, and come by `http` from loopback ones. Default: `false`.
    pub(in crate::config) allow_private: Option<bool>,
    /// Hosts that documents may come from, like `claude.ai` or `*.example.com`, which is one label in front and no more. Default: any. A
    /// document proves only who controls its host; whether to let that application in is asked of each user, with the host shown.
    pub(in crate::config) allow_hosts: Option<Vec<String>>,
    /// Hosts that no document may come from, whatever `allow_hosts` says; `*.example.com` is all below. Default: none.
    pub(in crate::config) deny_hosts: Option<Vec<String>>,
}

#[derive(Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Dcr {
    /// Default: `true`.
    pub(in crate::config) enabled: Option<bool>,
}
