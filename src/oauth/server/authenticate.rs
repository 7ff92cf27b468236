//! Client authentication at our endpoints (RFC 6749 §2.3): by the one method that the client has registered, and by no
//! other, so that a weaker proof never stands in for a stronger one.
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::BASE64;
use governor::Quota;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use url::Url;

use super::client::{Authentication, Client, ClientError};
use super::params::Params;
use super::quota::{Each, per_second};
use super::refusal::Refusal;
use super::{Authority, Snapshot};
use crate::config::ClientAuthMethod;
use crate::jose::remote::RemoteError;
use crate::jose::{Claims, Expected, Keys};
use crate::outbound::AddressPolicy;
use crate::seal;
use crate::store::record::Typed;
use crate::store::{Kind, Put};

/// Assertions of one client: many, for a busy program, but not any number.
const ASSERTIONS: Quota = per_second(20, 500);
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// An assertion is made for one request; what is good for longer is refused.
const ASSERTION_MAX: Duration = Duration::from_secs(600);
const UNKNOWN: Refusal = Refusal::invalid_client("the client is not known here, or has not proven who it is");

/// How many assertions each client has shown.
pub fn assertions() -> Each<String> {
    Each::of(ASSERTIONS)
}

/// A client that has proven who it is, as far as its registration asks for it.
pub struct Authenticated {
    pub id: String,
    pub method: ClientAuthMethod,
    /// The client; `None` where its document is out of reach and it showed no proof: then it can only be a public one,
    /// which what it presents has to confirm.
    pub client: Option<Client>,
}

/// An assertion that was used (store record, found by the digest of client and `jti`).
#[derive(Serialize, Deserialize)]
struct Used {}

impl Typed for Used {
    const KIND: Kind = Kind::Assertion;
}

/// What a request brings along to prove it.
enum Proof<'a> {
    Nothing,
    Secret { method: ClientAuthMethod, secret: String },
    Assertion(&'a str),
}

/// Who sent this request. `authorization`: the header of that name.
pub async fn authenticate(
    authority: &Authority,
    snapshot: &Snapshot,
    authorization: Option<&str>,
    params: &Params,
) -> Result<Authenticated, Refusal> {
    let (id, proof) = presented(authorization, params)?;
    let method = proof.method();
    let client = match authority.client(snapshot, &id).await {
        Ok(client) => client,
        Err(ClientError::Unavailable) if method == ClientAuthMethod::None => {
            return Ok(Authenticated { id, method, client: None });
        }
        Err(ClientError::Unavailable) => {
            return Err(Refusal::unavailable("the client cannot be looked up just now, try again"));
        }
        Err(ClientError::Unknown | ClientError::Document(_)) => return Err(UNKNOWN),
    };
    if client.auth.method() != method {
        return Err(UNKNOWN);
    }
    match (&client.auth, proof) {
        (Authentication::None, Proof::Nothing) => {}
        (Authentication::Secret { digest, .. }, Proof::Secret { secret, .. }) => {
            if !bool::from(seal::digest(&secret).as_bytes().ct_eq(digest.as_bytes())) {
                return Err(UNKNOWN);
            }
        }
        (Authentication::Keys(_) | Authentication::KeysAt { .. }, Proof::Assertion(assertion)) => {
            authority.check_assertion(snapshot, &client, assertion).await?;
        }
        _ => return Err(UNKNOWN),
    }
    Ok(Authenticated { id, method, client: Some(client) })
}

impl Authenticated {
    /// Whether a code or grant that was given to a client with this method may be used by it.
    pub fn may_use(&self, given_to: &str, method: ClientAuthMethod) -> bool {
        self.id == given_to && (self.client.is_some() || method == ClientAuthMethod::None)
    }
}

impl Proof<'_> {
    fn method(&self) -> ClientAuthMethod {
        match self {
            Self::Nothing => ClientAuthMethod::None,
            Self::Secret { method, .. } => *method,
            Self::Assertion(_) => ClientAuthMethod::PrivateKeyJwt,
        }
    }
}

/// One method per request (RFC 6749 §2.3), and one client.
fn presented<'p>(authorization: Option<&str>, params: &'p Params) -> Result<(String, Proof<'p>), Refusal> {
    let named = params.value("client_id");
    let assertion = params.value("client_assertion");
    let methods = [authorization.is_some(), params.value("client_secret").is_some(), assertion.is_some()];
    if methods.into_iter().filter(|used| *used).count() > 1 {
        return Err(Refusal::invalid_request("authenticate by one method only"));
    }
    let (id, proof) = if let Some(authorization) = authorization {
        let (id, secret) = basic(authorization).ok_or(UNKNOWN)?;
        (id, Proof::Secret { method: ClientAuthMethod::ClientSecretBasic, secret })
    } else if let Some(assertion) = assertion {
        if params.value("client_assertion_type") != Some(ASSERTION_TYPE) {
            return Err(UNKNOWN);
        }
        let id = crate::jose::issuer_of(assertion).ok_or(UNKNOWN)?;
        (id, Proof::Assertion(assertion))
    } else {
        let id = params.required("client_id", "client_id is required")?.to_owned();
        let proof = params.value("client_secret").map_or(Proof::Nothing, |secret| Proof::Secret {
            method: ClientAuthMethod::ClientSecretPost,
            secret: secret.to_owned(),
        });
        (id, proof)
    };
    match named {
        Some(named) if named != id => {
            Err(Refusal::invalid_request("client_id is not the client that authenticates"))
        }
        _ => Ok((id, proof)),
    }
}

/// Id and secret of HTTP Basic; both are form-encoded inside (RFC 6749 §2.3.1).
fn basic(authorization: &str) -> Option<(String, String)> {
    let (scheme, encoded) = authorization.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(BASE64.decode(encoded.trim().as_bytes()).ok()?).ok()?;
    let (id, secret) = decoded.split_once(':')?;
    Some((form_decoded(id)?, form_decoded(secret)?)).filter(|(id, _)| !id.is_empty())
}

fn form_decoded(text: &str) -> Option<String> {
    // As the name of a parameter without a value.
    let alone = text.replace('=', "%3D").replace('&', "%26");
    let (decoded, rest) = form_urlencoded::parse(alone.as_bytes()).next().unwrap_or_default();
    rest.is_empty().then(|| decoded.into_owned())
}

impl Authority {
    /// RFC 7523 §3. The audience is our issuer or this endpoint and nothing besides, so an assertion made for us serves
    /// nobody else, and none made for others serves here; each is good once.
    async fn check_assertion(
        &self,
        snapshot: &Snapshot,
        client: &Client,
        assertion: &str,
    ) -> Result<(), Refusal> {
        let now = self.clock.now();
        let endpoint = format!("{}/oauth/token", snapshot.issuer());
        let expected = Expected {
            issuer: &client.id,
            audiences: Some(&[snapshot.issuer(), &endpoint]),
            types: &["", "jwt", "client-authentication+jwt"],
        };
        let claims = match &client.auth {
            Authentication::Keys(keys) => verify(keys, assertion, &expected, now),
            Authentication::KeysAt { uri, private } => {
                let policy = key_policy(uri, *private);
                self.key_sets.verify(uri, &policy, assertion, &expected, now).await
            }
            _ => return Err(UNKNOWN),
        };
        let claims = claims.map_err(|error| match error {
            RemoteError::Unavailable => Refusal::unavailable("the client's keys cannot be fetched just now"),
            RemoteError::Token(error) => {
                tracing::info!(target: "postern::oauth", client = %client.id, %error, "client assertion refused");
                UNKNOWN
            }
        })?;
        let left = (UNIX_EPOCH + Duration::from_secs(claims.exp)).duration_since(now).unwrap_or_default();
        let id = claims.jti.as_deref().filter(|id| !id.is_empty()).ok_or(UNKNOWN)?;
        if claims.sub != client.id || claims.audiences().count() != 1 || left > ASSERTION_MAX {
            return Err(UNKNOWN);
        }
        match self.is_first_use(&client.id, &format!("{}\0{id}", client.id), left).await? {
            true => Ok(()),
            false => Err(UNKNOWN),
        }
    }

    /// Whether a client shows something for the first time that is good once. `name`: what it is called among all such;
    /// `left`: how long it is valid yet.
    pub(super) async fn is_first_use(
        &self,
        client: &String,
        name: &str,
        left: Duration,
    ) -> Result<bool, Refusal> {
        // Each is remembered for a while, so nobody gets any number of them.
        if !self.assertions.admits(client) {
            return Err(Refusal::too_many("too many assertions at once, try again in a minute"));
        }
        // For as long as it could be shown again.
        let remember = left + 2 * crate::jose::SKEW;
        Ok(self.records.put(&seal::digest(name), 0, &Used {}, remember).await? == Put::Stored)
    }
}

fn key_policy(uri: &str, private: bool) -> AddressPolicy {
    let host = Url::parse(uri).ok().and_then(|url| url.host_str().map(str::to_owned));
    match host.filter(|_| private) {
        Some(host) => AddressPolicy::allowing([host]),
        None => AddressPolicy::public(),
    }
}

fn verify(
    keys: &Keys,
    assertion: &str,
    expected: &Expected<'_>,
    now: SystemTime,
) -> Result<Claims, RemoteError> {
    Ok(keys.verify(assertion, expected, now)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn basic_credentials_are_form_encoded_inside() {
        let header = |text: &str| format!("Basic {}", BASE64.encode(text.as_bytes()));
        let both = |id: &str, secret: &str| Some((id.to_owned(), secret.to_owned()));
        assert_eq!(basic(&header("a:b")), both("a", "b"));
        assert_eq!(basic(&header("a%3Ab:c+d%2B")), both("a:b", "c d+"));
        assert_eq!(basic(&header("a:b:c=&d")), both("a", "b:c=&d"));
        assert_eq!(basic(&header("a:")), both("a", ""));
        for wrong in [header(":b"), header("a"), "Bearer YTpi".into(), "Basic !".into(), "Basic".into()] {
            assert_eq!(basic(&wrong), None, "{wrong}");
        }
    }
}
