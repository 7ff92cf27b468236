//! Dynamic client registration (RFC 7591): `POST /oauth/register`; what became of it is changed in [`manage`].
//!
//! A public client is nothing but its metadata, so its id is their digest: the same application registers any number of
//! times and is one client, and nobody can change what an id stands for. A client with a secret or keys of its own gets
//! an id of its own, and a token to manage it with.
pub mod manage;

use std::time::{Duration, SystemTime};

use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};

use super::client::registered::Registered;
use super::refusal::Refusal;
use super::{Snapshot, redirect};
use crate::clock::unix_seconds;
use crate::config::ClientAuthMethod;
use crate::jose::Keys;
use crate::seal;
use crate::store::Put;
use crate::store::record::Records;

/// A registration that no user has ever used is forgotten soon; anybody can make one.
const UNUSED_TTL: Duration = Duration::from_secs(24 * 3600);
const MAX_REDIRECT_URIS: usize = 32;
const MAX_NAME: usize = 200;
const SECRET_PREFIX: &str = "postern_cs_";
const TOKEN_PREFIX: &str = "postern_ct_";
const NO_RANDOMNESS: Refusal = Refusal::server_error("no randomness");

/// Metadata as a client sends them (RFC 7591 §2). What is not here is ignored.
#[derive(Deserialize)]
pub struct Asked {
    /// Of a change only (RFC 7592 §2.2).
    client_id: Option<String>,
    client_secret: Option<String>,
    #[serde(default)]
    redirect_uris: Vec<String>,
    client_name: Option<String>,
    grant_types: Option<Vec<String>>,
    response_types: Option<Vec<String>>,
    token_endpoint_auth_method: Option<String>,
    jwks: Option<serde_json::Value>,
    jwks_uri: Option<String>,
    software_statement: Option<serde::de::IgnoredAny>,
}

/// The answer (RFC 7591 §3.2.1, RFC 7592 §3).
#[derive(Serialize)]
pub struct Answer {
    pub client_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_secret: Option<String>,
    /// 0: never. There where there is a secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    client_secret_expires_at: Option<u64>,
    client_id_issued_at: u64,
    redirect_uris: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_name: Option<String>,
    grant_types: [&'static str; 2],
    response_types: [&'static str; 1],
    token_endpoint_auth_method: ClientAuthMethod,
    #[serde(skip_serializing_if = "Option::is_none")]
    jwks: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jwks_uri: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    registration_client_uri: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    registration_access_token: Option<String>,
}

/// Validates the metadata in `body` and stores the client. `may_store` is asked before anything new is kept.
pub async fn register(
    records: &Records,
    snapshot: &Snapshot,
    body: &[u8],
    now: SystemTime,
    may_store: impl FnOnce() -> bool,
) -> Result<Answer, Refusal> {
    let mut client = Asked::parse(body)?.into_client(snapshot)?;
    client.issued_at = unix_seconds(now);
    const TOO_MANY: Refusal = Refusal::too_many("too many registrations from there, try again in a minute");
    if client.auth_method == ClientAuthMethod::None {
        let client_id = format!("client_{}", client.digest());
        let known = records.readable::<Registered>(&client_id).await?;
        if let Some(known) = known.as_ref().filter(|known| known.expires_at > now + UNUSED_TTL / 2) {
            return Ok(Answer::of(client_id, known.value.clone()));
        }
        if known.is_none() && !may_store() {
            return Err(TOO_MANY);
        }
        // Whoever was faster stored the same.
        let version = known.map_or(0, |known| known.version);
        records.put(&client_id, version, &client, UNUSED_TTL).await?;
        return Ok(Answer::of(client_id, client));
    }
    if !may_store() {
        return Err(TOO_MANY);
    }
    let client_id = format!("client_{}", seal::name().map_err(|_| NO_RANDOMNESS)?);
    let token = fresh(TOKEN_PREFIX)?;
    client.management = Some(seal::digest(&token));
    let secret = match client.auth_method {
        ClientAuthMethod::PrivateKeyJwt => None,
        _ => Some(fresh(SECRET_PREFIX)?),
    };
    client.secret = secret.as_deref().map(seal::digest);
    if records.put(&client_id, 0, &client, UNUSED_TTL).await? != Put::Stored {
        return Err(NO_RANDOMNESS);
    }
    let mut answer = Answer::of(client_id, client).managed(snapshot, token);
    answer.client_secret_expires_at = secret.is_some().then_some(0);
    answer.client_secret = secret;
    Ok(answer)
}

fn fresh(prefix: &str) -> Result<String, Refusal> {
    let token = seal::token().map_err(|_| NO_RANDOMNESS)?;
    Ok(format!("{prefix}{}", token.expose_secret()))
}

// === impl Registered ===

impl Registered {
    /// What a public client's id is made of.
    fn digest(&self) -> String {
        let parts = serde_json::json!([self.client_name, self.redirect_uris]);
        seal::digest(&parts.to_string())
    }
}

// === impl Answer ===

impl Answer {
    fn of(client_id: String, client: Registered) -> Self {
        Self {
            client_id,
            client_secret: None,
            client_secret_expires_at: None,
            client_id_issued_at: client.issued_at,
            redirect_uris: client.redirect_uris,
            client_name: client.client_name,
            grant_types: ["authorization_code", "refresh_token"],
            response_types: ["code"],
            token_endpoint_auth_method: client.auth_method,
            jwks: client.jwks,
            jwks_uri: client.jwks_uri,
            registration_client_uri: None,
            registration_access_token: None,
        }
    }

    fn managed(self, snapshot: &Snapshot, token: String) -> Self {
        let uri = format!("{}/oauth/register/{}", snapshot.issuer(), self.client_id);
        Self { registration_client_uri: Some(uri), registration_access_token: Some(token), ..self }
    }
}

// === impl Asked ===

impl Asked {
    fn parse(body: &[u8]) -> Result<Self, Refusal> {
        serde_json::from_slice(body)
            .map_err(|_| Refusal::invalid_client_metadata("the body is not a JSON object of client metadata"))
    }

    fn into_client(self, snapshot: &Snapshot) -> Result<Registered, Refusal> {
        self.check()?;
        let auth_method = self.auth_method(snapshot)?;
        let has_keys = auth_method == ClientAuthMethod::PrivateKeyJwt;
        Ok(Registered {
            client_name: self.client_name,
            redirect_uris: self.redirect_uris,
            issued_at: 0,
            auth_method,
            secret: None,
            jwks: self.jwks.filter(|_| has_keys),
            jwks_uri: self.jwks_uri.filter(|_| has_keys),
            management: None,
        })
    }

    fn check(&self) -> Result<(), Refusal> {
        if self.redirect_uris.is_empty() {
            return Err(Refusal::invalid_redirect_uri("redirect_uris is required"));
        }
        if self.redirect_uris.len() > MAX_REDIRECT_URIS {
            return Err(Refusal::invalid_redirect_uri("too many redirect_uris"));
        }
        if !self.redirect_uris.iter().all(|uri| redirect::acceptable(uri)) {
            return Err(Refusal::invalid_redirect_uri(
                "redirect_uris must be https, or http on localhost or a loopback address, in normal form (lower-case host, no default port), without fragment or wildcard",
            ));
        }
        if self.client_name.as_ref().is_some_and(|name| name.len() > MAX_NAME) {
            return Err(Refusal::invalid_client_metadata("client_name is too long"));
        }
        if self.software_statement.is_some() {
            return Err(Refusal::invalid_client_metadata("software statements are not supported"));
        }
        let lacks = |asked: &Option<Vec<String>>, needed: &str| {
            asked.as_ref().is_some_and(|list| !list.iter().any(|one| one == needed))
        };
        if lacks(&self.grant_types, "authorization_code") {
            return Err(Refusal::invalid_client_metadata("grant_types must have authorization_code"));
        }
        if lacks(&self.response_types, "code") {
            return Err(Refusal::invalid_client_metadata("response_types must have code"));
        }
        Ok(())
    }

    /// Without a wish the client is public, as nearly all MCP clients are; the answer says so (RFC 7591 §3.2.1).
    fn auth_method(&self, snapshot: &Snapshot) -> Result<ClientAuthMethod, Refusal> {
        match self.token_endpoint_auth_method.as_deref() {
            None | Some("none") => Ok(ClientAuthMethod::None),
            Some("client_secret_basic") => Ok(ClientAuthMethod::ClientSecretBasic),
            Some("client_secret_post") => Ok(ClientAuthMethod::ClientSecretPost),
            Some("private_key_jwt") => {
                let private = snapshot.config.oauth_server.cimd.allow_private;
                let usable = match (&self.jwks, &self.jwks_uri) {
                    (Some(set), None) => {
                        Keys::parse(set.to_string().as_bytes()).is_some_and(|keys| !keys.is_empty())
                    }
                    (None, Some(uri)) => {
                        uri.len() <= 2048
                            && (uri.starts_with("https://") || (private && redirect::is_loopback(uri)))
                    }
                    _ => false,
                };
                match usable {
                    true => Ok(ClientAuthMethod::PrivateKeyJwt),
                    false => Err(Refusal::invalid_client_metadata(
                        "private_key_jwt needs one of jwks, with a public key to verify by, and an https jwks_uri",
                    )),
                }
            }
            Some(_) => Err(Refusal::invalid_client_metadata(
                "token_endpoint_auth_method is none, client_secret_basic, client_secret_post or private_key_jwt",
            )),
        }
    }
}
