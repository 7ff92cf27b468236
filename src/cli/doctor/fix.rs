//! What to change where the way ends: a key of the configuration, or something at the upstream.
use std::net::SocketAddr;

use serde_json::Value;
use url::Url;

use super::report::Step;
use crate::config::OauthCredential;
use crate::oauth::client::discover::DiscoverError;
use crate::outbound::{AddressPolicy, Error, Outbound};
use crate::route::Route;

/// For the host of the upstream itself.
pub const ALLOW_PRIVATE: &str =
    "if the server is meant to be on a private address, write `upstream.allow_private: true`";

/// What was seen on the way.
pub struct Found<'a> {
    pub steps: &'a [Step],
    pub documents: &'a [(String, Value)],
}

impl Found<'_> {
    /// The last document with this member, and where it lies.
    fn last(&self, member: &str) -> Option<(&str, &Value)> {
        let found =
            self.documents.iter().rev().find_map(|(url, document)| Some((url, document.get(member)?)));
        found.map(|(url, value)| (url.as_str(), value))
    }

    fn last_place(&self) -> &str {
        self.documents.last().map_or("the metadata", |(url, _)| url)
    }
}

/// For a name that leads nowhere, or where nobody may go.
pub async fn address(outbound: &Outbound, host: &str, port: u16, error: &Error) -> String {
    if error.is_transient() {
        return format!("see that {host} can be resolved from here, or correct the url");
    }
    match would_be_allowed(outbound, host, port).await {
        true => ALLOW_PRIVATE.to_owned(),
        false => "no key allows this address: the server needs another one".to_owned(),
    }
}

pub fn allow_host(host: &str) -> String {
    format!("if that host is meant, write `upstream.allow_hosts: [\"{host}\"]`, beside those that are there")
}

/// Whether leave is all that is missing.
async fn would_be_allowed(outbound: &Outbound, host: &str, port: u16) -> bool {
    outbound.vet(host, port, &AddressPolicy::allowing([host.to_owned()])).await.is_ok()
}

/// For a discovery that has failed.
pub async fn discovery(
    error: DiscoverError,
    found: &Found<'_>,
    route: &Route,
    oauth: &OauthCredential,
    outbound: &Outbound,
) -> String {
    let (upstream, place) = (&route.upstream.url, found.last_place());
    match error {
        DiscoverError::Unavailable => {
            let lost = found.steps.iter().rev().find(|step| step.is_unanswered()).and_then(Step::url);
            format!("see that {} answers from here, or try again later", lost.unwrap_or(place))
        }
        DiscoverError::ResourceMismatch => {
            let named = found.last("resource").and_then(|(_, value)| value.as_str()).unwrap_or_default();
            format!(
                "if {named} is this server's public name, write `credential.resource: \"{named}\"`; else correct `upstream.url`, or the upstream's operator has {place} name {upstream} as its resource"
            )
        }
        DiscoverError::IssuerMismatch => {
            let (place, named) = found.last("issuer").unwrap_or((place, &Value::Null));
            let named = named.as_str().unwrap_or_default();
            match &oauth.issuer {
                Some(issuer) => format!(
                    "if the server at {place} is meant, write `credential.issuer: \"{named}\"` in place of {issuer}, exactly as it spells itself"
                ),
                None => format!(
                    "the upstream's operator lists the authorization server as it spells itself, {named}, or the document at {place} names the issuer that is listed; postern cannot look past that"
                ),
            }
        }
        DiscoverError::IssuerNotListed => {
            let listed = found.last("authorization_servers").and_then(|(_, value)| value.as_array());
            let listed = listed.into_iter().flatten().filter_map(Value::as_str);
            let listed = listed.map(|issuer| format!("\"{issuer}\"")).collect::<Vec<_>>().join(" or ");
            format!("write `credential.issuer: {listed}`, as the upstream lists it, or leave it out")
        }
        DiscoverError::Unsupported(_) => format!(
            "the authorization server's operator changes that (metadata: {place}); if you know that it takes codes with PKCE S256 all the same, write `credential.authorization_endpoint`, `credential.token_endpoint` and `credential.client_id`, and nothing is discovered, or `credential.profile` where it is one of the known providers"
        ),
        DiscoverError::Invalid(_) => format!(
            "the operator of {place} repairs the document; an endpoint that you know to be right can be written as `credential.authorization_endpoint` or `credential.token_endpoint`"
        ),
        DiscoverError::Refused => {
            let hosts = private_hosts(found, route, oauth, outbound).await;
            match hosts.as_slice() {
                [] => "no key allows this address: the server needs another one".to_owned(),
                hosts => allow_host(&hosts.join("\", \"")),
            }
        }
    }
}

/// Hosts that the walk was sent to and that leave alone keeps it from.
async fn private_hosts(
    found: &Found<'_>,
    route: &Route,
    oauth: &OauthCredential,
    outbound: &Outbound,
) -> Vec<String> {
    let policy = &route.upstream.policy;
    let mut hosts: Vec<String> = Vec::new();
    for url in places(found, oauth) {
        let Some((host, port)) = place(url) else { continue };
        let is_plain = url.starts_with("http://") && !policy.allows_private(&host);
        let is_refused =
            is_plain || matches!(outbound.vet(&host, port, policy).await, Err(Error::Refused { .. }));
        if is_refused && !hosts.contains(&host) && would_be_allowed(outbound, &host, port).await {
            hosts.push(host);
        }
    }
    hosts
}

/// URLs in the documents and in the configuration that the walk may have been refused.
fn places<'a>(found: &'a Found<'_>, oauth: &'a OauthCredential) -> Vec<&'a str> {
    let members = [
        "issuer",
        "authorization_endpoint",
        "token_endpoint",
        "registration_endpoint",
        "revocation_endpoint",
    ];
    let mut places: Vec<&str> = Vec::new();
    for (_, document) in found.documents {
        places.extend(members.iter().filter_map(|name| document.get(name)?.as_str()));
        let listed = document.get("authorization_servers").and_then(Value::as_array);
        places.extend(listed.into_iter().flatten().take(3).filter_map(Value::as_str));
    }
    let written = [&oauth.issuer, &oauth.authorization_endpoint, &oauth.token_endpoint];
    places.extend(written.into_iter().filter_map(|url| url.as_deref()));
    places
}

/// Host, as keys of the configuration spell it, and port.
pub fn place(url: &str) -> Option<(String, u16)> {
    let url = Url::parse(url).ok()?;
    let host = url.host_str()?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Some((bare.to_owned(), url.port_or_known_default()?))
}

pub fn texts(addresses: &[SocketAddr]) -> Vec<String> {
    addresses.iter().map(|address| address.ip().to_string()).collect()
}
