//! `POST /oauth/token` (RFC 6749 §3.2): which grant is meant, with what.
use super::grant::{Answer, Redemption, Renewal, redeem, refresh};
use super::params::Params;
use super::refusal::Refusal;
use super::{Authority, Snapshot};

/// `body`: the form as sent.
pub async fn token(authority: &Authority, snapshot: &Snapshot, body: &str) -> Result<Answer, Refusal> {
    let params = Params::parse(body)?;
    let grant_type = params.required("grant_type", "grant_type is required")?;
    let client_id = params.required("client_id", "client_id is required")?;
    if params.value("client_secret").is_some() || params.value("client_assertion").is_some() {
        return Err(Refusal::invalid_client("clients are public here: send client_id alone"));
    }
    let resource = params.value("resource");
    match grant_type {
        "authorization_code" => {
            let verifier = params.required("code_verifier", "code_verifier is required")?;
            if !(43..=128).contains(&verifier.len()) {
                return Err(Refusal::invalid_grant("the code is not valid"));
            }
            let code = params.required("code", "code is required")?;
            redeem(
                authority,
                snapshot,
                &Redemption {
                    client_id,
                    code,
                    verifier,
                    redirect_uri: params.value("redirect_uri"),
                    resource,
                },
            )
            .await
        }
        "refresh_token" => {
            let refresh_token = params.required("refresh_token", "refresh_token is required")?;
            refresh(
                authority,
                snapshot,
                &Renewal { client_id, refresh_token, scope: params.value("scope"), resource },
            )
            .await
        }
        _ => Err(Refusal::unsupported_grant_type("grant_type is authorization_code or refresh_token")),
    }
}
