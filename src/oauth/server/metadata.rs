//! The documents that say where everything is. Built from the configuration alone, never from a request, and they
//! name only what works.
use serde::Serialize;

use super::{Snapshot, jag};
use crate::config::ClientAuthMethod;
use crate::jose::ALGORITHMS;
use crate::route::{PROFILE_SCOPE, Route};

/// Protected resource metadata of one route (RFC 9728 §2).
#[derive(Serialize)]
pub struct Resource<'a> {
    resource: &'a str,
    authorization_servers: Vec<&'a str>,
    bearer_methods_supported: [&'static str; 1],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    scopes_supported: &'a [String],
    resource_name: &'a str,
}

pub fn resource<'a>(snapshot: &'a Snapshot, route: &'a Route) -> Resource<'a> {
    Resource {
        resource: &route.resource,
        authorization_servers: match route.trusted_issuers.as_slice() {
            [] => vec![snapshot.issuer()],
            others => others.iter().map(|other| other.issuer.as_str()).collect(),
        },
        bearer_methods_supported: ["header"],
        // What there is to begin with; more is asked for when it is needed (MCP, Scope Selection Strategy).
        scopes_supported: &route.scopes,
        resource_name: route.title(),
    }
}

/// How clients may authenticate at our endpoints.
const METHODS: [ClientAuthMethod; 4] = [
    ClientAuthMethod::None,
    ClientAuthMethod::ClientSecretBasic,
    ClientAuthMethod::ClientSecretPost,
    ClientAuthMethod::PrivateKeyJwt,
];

/// Those that prove anything.
const PROVEN: [ClientAuthMethod; 3] = [
    ClientAuthMethod::ClientSecretBasic,
    ClientAuthMethod::ClientSecretPost,
    ClientAuthMethod::PrivateKeyJwt,
];

/// Authorization server metadata (RFC 8414 §2), also served under OpenID Connect's name for clients that look there.
#[derive(Serialize)]
pub struct Server {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    registration_endpoint: Option<String>,
    revocation_endpoint: String,
    jwks_uri: String,
    scopes_supported: Vec<String>,
    response_types_supported: [&'static str; 1],
    response_modes_supported: [&'static str; 1],
    grant_types_supported: Vec<&'static str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    authorization_grant_profiles_supported: &'static [&'static str],
    token_endpoint_auth_methods_supported: [ClientAuthMethod; 4],
    token_endpoint_auth_signing_alg_values_supported: [&'static str; 5],
    revocation_endpoint_auth_methods_supported: [ClientAuthMethod; 4],
    revocation_endpoint_auth_signing_alg_values_supported: [&'static str; 5],
    code_challenge_methods_supported: [&'static str; 1],
    authorization_response_iss_parameter_supported: bool,
    client_id_metadata_document_supported: bool,
    #[serde(flatten)]
    introspection: Option<Introspection>,
    #[serde(flatten)]
    openid: Option<OpenId>,
}

/// There where a client is listed for it (RFC 7662).
#[derive(Serialize)]
struct Introspection {
    introspection_endpoint: String,
    introspection_endpoint_auth_methods_supported: [ClientAuthMethod; 3],
    introspection_endpoint_auth_signing_alg_values_supported: [&'static str; 5],
}

/// What OpenID Connect Discovery §3 requires besides, and clients that read the document insist on. No ID token is ever
/// issued, so there is no algorithm to name.
#[derive(Serialize)]
struct OpenId {
    userinfo_endpoint: String,
    subject_types_supported: [&'static str; 1],
    id_token_signing_alg_values_supported: [&'static str; 0],
}

pub fn server(snapshot: &Snapshot, openid: bool) -> Server {
    let issuer = snapshot.issuer();
    // Of those that were made at run time one speaks for all.
    let routes = snapshot.routes.configured().chain(snapshot.routes.managed().take(1));
    let mut scopes: Vec<String> = routes
        .filter(|route| route.is_ours())
        .flat_map(|route| route.scopes.iter().chain(route.rules.scopes()).cloned())
        .chain([PROFILE_SCOPE.to_owned()])
        .collect();
    scopes.sort();
    scopes.dedup();
    let mut grants = vec!["authorization_code", "refresh_token"];
    if snapshot.config.oauth_server.has_machines() {
        grants.push("client_credentials");
    }
    let decides = !snapshot.config.oauth_server.id_jag.is_empty();
    grants.extend(decides.then_some(jag::GRANT));
    Server {
        issuer: issuer.to_owned(),
        authorization_endpoint: format!("{issuer}/oauth/authorize"),
        token_endpoint: format!("{issuer}/oauth/token"),
        registration_endpoint: snapshot
            .config
            .oauth_server
            .dcr_enabled
            .then(|| format!("{issuer}/oauth/register")),
        revocation_endpoint: format!("{issuer}/oauth/revoke"),
        jwks_uri: format!("{issuer}/oauth/jwks.json"),
        scopes_supported: scopes,
        response_types_supported: ["code"],
        response_modes_supported: ["query"],
        grant_types_supported: grants,
        authorization_grant_profiles_supported: if decides { &[jag::PROFILE] } else { &[] },
        token_endpoint_auth_methods_supported: METHODS,
        token_endpoint_auth_signing_alg_values_supported: ALGORITHMS,
        revocation_endpoint_auth_methods_supported: METHODS,
        revocation_endpoint_auth_signing_alg_values_supported: ALGORITHMS,
        code_challenge_methods_supported: ["S256"],
        authorization_response_iss_parameter_supported: true,
        client_id_metadata_document_supported: snapshot.config.oauth_server.cimd.enabled,
        introspection: snapshot.config.oauth_server.has_watchers().then(|| Introspection {
            introspection_endpoint: format!("{issuer}/oauth/introspect"),
            introspection_endpoint_auth_methods_supported: PROVEN,
            introspection_endpoint_auth_signing_alg_values_supported: ALGORITHMS,
        }),
        openid: openid.then(|| OpenId {
            userinfo_endpoint: format!("{issuer}/oauth/userinfo"),
            subject_types_supported: ["public"],
            id_token_signing_alg_values_supported: [],
        }),
    }
}
