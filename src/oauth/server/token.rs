//! `POST /oauth/token` (RFC 6749 §3.2): which grant is meant, with what.
use super::authenticate::authenticate;
use super::code::{Redemption, redeem};
use super::grant::{Answer, Renewal, refresh};
use super::jag::{self, Presented, id_jag};
use super::machine::{Wish, client_credentials};
use super::params::Params;
use super::refusal::Refusal;
use super::{Authority, Snapshot};
use crate::oauth::client::identity::Providers;

/// `body`: the form as sent. `authorization`: the header of that name.
pub async fn token(
    authority: &Authority,
    snapshot: &Snapshot,
    providers: &Providers,
    authorization: Option<&str>,
    body: &str,
) -> Result<Answer, Refusal> {
    let params = Params::parse(body)?;
    let grant_type = params.required("grant_type", "grant_type is required")?;
    // Whatever is asked for, nothing of it is looked at for somebody unknown.
    let client = authenticate(authority, snapshot, authorization, &params).await?;
    let resource = params.value("resource");
    match grant_type {
        "authorization_code" => {
            let verifier = params.required("code_verifier", "code_verifier is required")?;
            if !(43..=128).contains(&verifier.len()) {
                return Err(Refusal::invalid_grant("the code is not valid"));
            }
            let redemption = Redemption {
                client: &client,
                code: params.required("code", "code is required")?,
                verifier,
                redirect_uri: params.value("redirect_uri"),
                resource,
            };
            redeem(authority, snapshot, &redemption).await
        }
        "refresh_token" => {
            let renewal = Renewal {
                client: &client,
                refresh_token: params.required("refresh_token", "refresh_token is required")?,
                scope: params.value("scope"),
                resource,
            };
            refresh(authority, snapshot, &renewal).await
        }
        "client_credentials" if snapshot.config.oauth_server.has_machines() => {
            let wish = Wish { client: &client, scope: params.value("scope"), resource };
            client_credentials(authority, snapshot, &wish)
        }
        jag::GRANT if !snapshot.config.oauth_server.id_jag.is_empty() => {
            let presented = Presented {
                client: &client,
                assertion: params.required("assertion", "assertion is required")?,
                scope: params.value("scope"),
                resource,
            };
            id_jag(authority, snapshot, providers, &presented).await
        }
        _ => Err(Refusal::unsupported_grant_type("grant_type is none of those that the metadata lists")),
    }
}
