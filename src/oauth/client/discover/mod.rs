//! From the URL of an upstream MCP server to the authorization server that issues its tokens.
//!
//! The walk: the challenge's `resource_metadata`, else the well-known places (RFC 9728 §3.1), then the metadata of
//! the issuer named there (RFC 8414, OpenID Connect Discovery), in the order the MCP specification gives. A server
//! without resource metadata is taken as one of revision 2025-03-26, its own authorization server at its origin.
//! Every document is checked before anything in it is used ([`check`]); nothing is stored and nothing is cached here.
mod assertion;
mod check;
mod document;
mod scope;
mod server;

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use url::Url;

pub use self::assertion::{AssertionServer, JWT_BEARER, assertion_server};
use self::check::{issuer_url, origin, resource_matches, safe_url, server_metadata_urls};
use self::document::{ResourceMetadata, ServerMetadata, fetch};
pub(super) use self::scope::scope_list;
use self::scope::wanted_scopes;
pub use self::server::AuthorizationServer;
use self::server::{belong_together, checked_server, configured_server};
use crate::challenge::Bearer;
use crate::config::{OauthCredential, Profile};
use crate::outbound::{AddressPolicy, Outbound};

/// For the whole walk; a slow-dripping server costs a user this much at most.
const TOTAL_TIME: Duration = Duration::from_secs(10);
/// Of a list of authorization servers so many are tried.
const MOST_SERVERS: usize = 3;

/// The steps, in what is told to who looks on.
const RESOURCE: &str = "resource_metadata";
const METADATA: &str = "server_metadata";
const SERVER: &str = "authorization_server";

/// The server whose authorization server is looked for.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// Upstream MCP URL as configured.
    pub url: &'a str,
    pub policy: &'a AddressPolicy,
    pub overrides: &'a Overrides,
}

/// What the configuration fixes instead of leaving it to discovery.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    pub issuer: Option<String>,
    /// Together with `token_endpoint`: no discovery at all.
    pub authorization_endpoint: Option<String>,
    pub token_endpoint: Option<String>,
    /// Also vouches for resource metadata that names exactly this resource, as behind an internal address.
    pub resource: Option<String>,
    /// Taken as they are, nothing added.
    pub scopes: Option<Vec<String>>,
    /// `None`: by the issuer.
    pub profile: Option<&'static Profile>,
}

impl From<&OauthCredential> for Overrides {
    fn from(oauth: &OauthCredential) -> Self {
        Self {
            issuer: oauth.issuer.clone(),
            authorization_endpoint: oauth.authorization_endpoint.clone(),
            token_endpoint: oauth.token_endpoint.clone(),
            resource: oauth.resource.clone(),
            scopes: oauth.scopes.clone(),
            profile: oauth.profile,
        }
    }
}

impl Overrides {
    fn profile_at(&self, issuer: &str) -> &'static Profile {
        self.profile.unwrap_or_else(|| Profile::of_issuer(issuer))
    }
}

/// What an authorization needs to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discovered {
    pub server: AuthorizationServer,
    /// As configured, else verbatim from the resource metadata, else the origin of the upstream. `None`: the server refuses
    /// to be told.
    pub resource: Option<String>,
    /// As configured, else of the challenge, else all that the resource metadata lists, else empty.
    pub scopes: Vec<String>,
}

/// Why there is no authorization server to go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiscoverError {
    /// Network, 429 or 5xx: worth another try later.
    #[error("metadata is unavailable at the moment")]
    Unavailable,
    #[error("the resource metadata speaks for another server")]
    ResourceMismatch,
    #[error("the authorization server metadata names another issuer")]
    IssuerMismatch,
    #[error("the configured issuer is not among the authorization servers of this resource")]
    IssuerNotListed,
    /// Honest, but not enough for us.
    #[error("the authorization server cannot be used: {0}")]
    Unsupported(&'static str),
    /// Malformed or unsafe.
    #[error("metadata refused: {0}")]
    Invalid(&'static str),
    #[error("metadata refused: address not allowed")]
    Refused,
}

impl DiscoverError {
    /// Whether waiting may help. Everything else stays until somebody changes something.
    pub fn is_transient(&self) -> bool {
        matches!(self, DiscoverError::Unavailable)
    }
}

/// Finds and checks the authorization server of `target`. `challenge` is the Bearer challenge the server answered
/// with, if any. At most twelve documents are fetched, in ten seconds.
pub async fn discover(
    outbound: &Outbound,
    target: &Target<'_>,
    challenge: Option<&Bearer>,
) -> Result<Discovered, DiscoverError> {
    tokio::time::timeout(TOTAL_TIME, walk(outbound, target, challenge)).await.unwrap_or_else(|_| {
        let seconds = TOTAL_TIME.as_secs();
        outbound.remark(SERVER, target.url, "unavailable", || format!("not found within {seconds} seconds"));
        Err(DiscoverError::Unavailable)
    })
}

async fn walk(
    outbound: &Outbound,
    target: &Target<'_>,
    challenge: Option<&Bearer>,
) -> Result<Discovered, DiscoverError> {
    let upstream = Url::parse(target.url).map_err(|_| DiscoverError::Invalid("upstream url"))?;
    if let Some(server) = configured_server(target)? {
        return Ok(conclude(target, challenge, server, None));
    }
    let metadata = resource_metadata(outbound, target, &upstream, challenge).await?;
    let listed =
        metadata.as_ref().and_then(|metadata| metadata.authorization_servers.as_deref()).unwrap_or(&[]);
    let server = match (&target.overrides.issuer, listed) {
        (Some(issuer), []) => published_server(outbound, target, issuer).await?,
        (Some(issuer), listed) if listed.contains(issuer) => {
            published_server(outbound, target, issuer).await?
        }
        (Some(issuer), listed) => {
            outbound.remark(SERVER, issuer, "refused", || {
                format!("the resource metadata list {}", listed.join(", "))
            });
            return Err(DiscoverError::IssuerNotListed);
        }
        (None, []) => origin_server(outbound, target, &upstream).await?,
        (None, listed) => first_usable(outbound, target, listed).await?,
    };
    Ok(conclude(target, challenge, server, metadata))
}

/// The checked resource metadata, or `None` where the server publishes none.
async fn resource_metadata(
    outbound: &Outbound,
    target: &Target<'_>,
    upstream: &Url,
    challenge: Option<&Bearer>,
) -> Result<Option<ResourceMetadata>, DiscoverError> {
    let hint = challenge.and_then(|bearer| bearer.resource_metadata.clone()).filter(|hint| {
        let may_follow = check::may_follow(hint, upstream, target.policy);
        if !may_follow {
            outbound.remark(RESOURCE, hint, "not_followed", || {
                "the challenge leads to another host than the upstream's, or to what is no plain url".into()
            });
        }
        may_follow
    });
    let well_known = check::resource_metadata_urls(upstream);
    // A hint that names a well-known place is not asked twice.
    let places = hint.iter().chain(well_known.iter().filter(|url| Some(*url) != hint.as_ref()));
    // An outage where the challenge leads may hide what the well-known places do not have.
    let mut lost = None;
    for place in places {
        let found = match fetch::<ResourceMetadata>(outbound, target.policy, RESOURCE, place).await {
            Ok(Some(found)) if target.overrides.issuer.is_some() || found.names_servers() => found,
            // A document that names no authorization server is of no use, unless the operator does.
            Ok(found) => {
                if found.is_some() {
                    outbound.remark(RESOURCE, place, "skipped", || "it names no authorization server".into());
                }
                continue;
            }
            // What came of a hint is not worth more than the hint: the well-known places are there all the same.
            Err(error) if Some(place) == hint.as_ref() => {
                lost = error.is_transient().then_some(error);
                continue;
            }
            Err(error) => return Err(error),
        };
        let configured = target.overrides.resource.as_deref();
        if !resource_matches(&found.resource, upstream, configured) {
            outbound.remark(RESOURCE, place, "refused", || {
                format!("it speaks for {}, and the upstream is {}", found.resource, target.url)
            });
            return Err(DiscoverError::ResourceMismatch);
        }
        outbound.remark(RESOURCE, place, "taken", || format!("it speaks for {}", found.resource));
        return Ok(Some(found));
    }
    lost.map_or(Ok(None), Err)
}

/// The first of the listed servers that passes every check. An outage ends the search: moving on to the next server
/// because one is down would move the user's authorization with it.
async fn first_usable(
    outbound: &Outbound,
    target: &Target<'_>,
    listed: &[String],
) -> Result<AuthorizationServer, DiscoverError> {
    let mut first_error = None;
    for issuer in listed.iter().take(MOST_SERVERS) {
        match published_server(outbound, target, issuer).await {
            Err(error) if !error.is_transient() => {
                first_error.get_or_insert(error);
            }
            result => return result,
        }
    }
    Err(first_error.unwrap_or(DiscoverError::Unsupported("none is listed")))
}

/// The server that calls itself `issuer`, by its own metadata.
async fn published_server(
    outbound: &Outbound,
    target: &Target<'_>,
    issuer: &str,
) -> Result<AuthorizationServer, DiscoverError> {
    let found = async {
        let url = issuer_url(issuer, target.policy)?;
        let is_fit = |metadata: &ServerMetadata| metadata.check(target.overrides.profile_at(issuer));
        checked_server(target, &url, issuer_metadata(outbound, target.policy, issuer, is_fit).await?)
    };
    found.await.inspect_err(|error| {
        let decision = if error.is_transient() { "unavailable" } else { "refused" };
        outbound.remark(SERVER, issuer, decision, || error.to_string());
    })
}

/// What an issuer says of itself (RFC 8414, OpenID Connect Discovery).
pub trait IssuerMetadata: DeserializeOwned {
    fn issuer(&self) -> &str;
}

/// Fetches the metadata of an issuer from where they may lie. `check`: whether they are good for what is wanted of them.
pub async fn issuer_metadata<M: IssuerMetadata>(
    outbound: &Outbound,
    policy: &AddressPolicy,
    issuer: &str,
    check: impl Fn(&M) -> Result<(), DiscoverError>,
) -> Result<M, DiscoverError> {
    let mut wrong = None;
    for place in server_metadata_urls(&issuer_url(issuer, policy)?) {
        let Some(metadata) = fetch::<M>(outbound, policy, METADATA, &place).await? else {
            continue;
        };
        // RFC 8414 §3.3: the very same string. Somebody else's document is not looked past.
        if metadata.issuer() != issuer {
            outbound.remark(METADATA, &place, "refused", || {
                format!("it names the issuer {}, and {issuer} was asked for", metadata.issuer())
            });
            return Err(DiscoverError::IssuerMismatch);
        }
        let checked = check(&metadata);
        remark_check(outbound, &place, &checked);
        match checked {
            Ok(()) => return Ok(metadata),
            // Another place may have a better one.
            Err(error) => drop(wrong.get_or_insert(error)),
        }
    }
    Err(wrong.unwrap_or(DiscoverError::Unsupported("it publishes no metadata")))
}

fn remark_check(outbound: &Outbound, place: &str, checked: &Result<(), DiscoverError>) {
    match checked {
        Ok(()) => {
            outbound.remark(METADATA, place, "taken", || "it is of the issuer that was asked for".into())
        }
        Err(error) => outbound.remark(METADATA, place, "skipped", || error.to_string()),
    }
}

/// Revision 2025-03-26: the MCP server's origin is its authorization server, with fixed paths where it has no
/// metadata. The identifier is of our making, so both spellings of an origin are equal here.
async fn origin_server(
    outbound: &Outbound,
    target: &Target<'_>,
    upstream: &Url,
) -> Result<AuthorizationServer, DiscoverError> {
    let issuer = origin(upstream);
    let url = issuer_url(&issuer, target.policy)?;
    let mut wrong = None;
    for place in server_metadata_urls(&url) {
        let Some(metadata) = fetch::<ServerMetadata>(outbound, target.policy, METADATA, &place).await? else {
            continue;
        };
        if check::without_slash(&metadata.issuer) != issuer {
            outbound.remark(METADATA, &place, "refused", || {
                format!("it names the issuer {}, and {issuer} was asked for", metadata.issuer)
            });
            return Err(DiscoverError::IssuerMismatch);
        }
        let checked = metadata.check(target.overrides.profile_at(&issuer));
        remark_check(outbound, &place, &checked);
        match checked {
            Ok(()) => return checked_server(target, &url, metadata),
            Err(error) => drop(wrong.get_or_insert(error)),
        }
    }
    if let Some(error) = wrong {
        return Err(error);
    }
    outbound.remark(SERVER, &issuer, "assumed", || {
        "nothing is published: as a server of revision 2025-03-26 it has fixed paths at its origin".into()
    });
    let overrides = target.overrides;
    let server = AuthorizationServer {
        authorization_endpoint: overrides
            .authorization_endpoint
            .clone()
            .unwrap_or_else(|| format!("{issuer}/authorize")),
        token_endpoint: overrides.token_endpoint.clone().unwrap_or_else(|| format!("{issuer}/token")),
        registration_endpoint: Some(format!("{issuer}/register")),
        revocation_endpoint: None,
        // Nothing is published; clients of that revision are public ones with PKCE.
        auth_methods: vec!["none".to_string()],
        cimd: false,
        iss_parameter: false,
        scopes_supported: Vec::new(),
        is_published: false,
        issuer,
    };
    let authorization = safe_url(&server.authorization_endpoint, target.policy)?;
    let token = safe_url(&server.token_endpoint, target.policy)?;
    belong_together(target, &authorization, &token)?;
    Ok(server)
}

fn conclude(
    target: &Target<'_>,
    challenge: Option<&Bearer>,
    server: AuthorizationServer,
    metadata: Option<ResourceMetadata>,
) -> Discovered {
    let (published_resource, published_scopes) = match metadata {
        Some(metadata) => (Some(metadata.resource), metadata.scopes_supported.unwrap_or_default()),
        None => (None, Vec::new()),
    };
    let own_origin = || Url::parse(target.url).map_or_else(|_| target.url.to_owned(), |url| origin(&url));
    let profile = target.overrides.profile_at(&server.issuer);
    let found = || published_resource.unwrap_or_else(own_origin);
    // What the operator writes is sent, whatever is known of the provider.
    let configured = target.overrides.resource.clone();
    let resource = configured.or_else(|| (!profile.refuses_resource).then(found));
    let scopes = match &target.overrides.scopes {
        Some(configured) => configured.clone(),
        None => wanted_scopes(challenge, published_scopes, &server, profile),
    };
    Discovered { server, resource, scopes }
}

#[cfg(test)]
mod tests;
