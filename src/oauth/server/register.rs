//! Dynamic client registration (RFC 7591): `POST /oauth/register`.
//!
//! Every client registered this way is public, whatever it asked for; §3.2.1 lets a server replace values, and the
//! answer says what is in force.
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::client::Registered;
use super::redirect;
use super::refusal::Refusal;
use crate::seal;
use crate::store::record::Records;

/// A registration that no user has ever used is forgotten soon; anybody can make one.
const UNUSED_TTL: Duration = Duration::from_secs(24 * 3600);
const MAX_REDIRECT_URIS: usize = 32;
const MAX_NAME: usize = 200;

#[derive(Deserialize)]
struct Asked {
    #[serde(default)]
    redirect_uris: Vec<String>,
    client_name: Option<String>,
    grant_types: Option<Vec<String>>,
    response_types: Option<Vec<String>>,
    software_statement: Option<serde::de::IgnoredAny>,
}

/// The answer (RFC 7591 §3.2.1).
#[derive(Serialize)]
pub struct Answer {
    pub client_id: String,
    client_id_issued_at: u64,
    redirect_uris: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_name: Option<String>,
    grant_types: [&'static str; 2],
    response_types: [&'static str; 1],
    token_endpoint_auth_method: &'static str,
}

/// Validates the metadata in `body` and stores the client.
pub async fn register(records: &Records, body: &[u8], now: SystemTime) -> Result<Answer, Refusal> {
    let asked: Asked = serde_json::from_slice(body)
        .map_err(|_| Refusal::invalid_client_metadata("the body is not a JSON object of client metadata"))?;
    asked.check()?;
    let issued_at = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let client_id = format!("client_{}", seal::name().map_err(|_| Refusal::server_error("no randomness"))?);
    let client = Registered { client_name: asked.client_name, redirect_uris: asked.redirect_uris, issued_at };
    records.put(&client_id, 0, &client, UNUSED_TTL).await?;
    Ok(Answer {
        client_id,
        client_id_issued_at: issued_at,
        redirect_uris: client.redirect_uris,
        client_name: client.client_name,
        grant_types: ["authorization_code", "refresh_token"],
        response_types: ["code"],
        token_endpoint_auth_method: "none",
    })
}

// === impl Asked ===

impl Asked {
    fn check(&self) -> Result<(), Refusal> {
        if self.redirect_uris.is_empty() {
            return Err(Refusal::invalid_redirect_uri("redirect_uris is required"));
        }
        if self.redirect_uris.len() > MAX_REDIRECT_URIS {
            return Err(Refusal::invalid_redirect_uri("too many redirect_uris"));
        }
        if !self.redirect_uris.iter().all(|uri| redirect::acceptable(uri)) {
            return Err(Refusal::invalid_redirect_uri(
                "redirect_uris must be https, or http on localhost or a loopback address, without fragment or wildcard",
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
}
