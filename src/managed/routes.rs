//! A configuration → its route.
use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use secrecy::ExposeSecret;
use url::Url;

use super::Around;
use super::record::{Assignment, Auth, Configuration, Organization};
use crate::config::{self, Credential, Kind, MANAGED, OauthCredential};
use crate::route::{Particulars, Route};

/// `None`: it was made under rules that are others by now.
pub(super) fn route(
    configuration: &Configuration,
    organization: Option<&Organization>,
    people: &BTreeMap<&str, &Assignment>,
    around: Around<'_>,
) -> Option<Route> {
    let configured = config::Route {
        name: configuration.id.clone(),
        kind: Kind::Mcp,
        host: None,
        path: path(configuration),
        upstream: upstream(configuration, around)?,
        credential: credential(configuration),
        scopes: Vec::new(),
        tool_scopes: BTreeMap::new(),
        policy: around.settings.policy.clone(),
        trusted_issuers: Vec::new(),
        limits: around.settings.limits.clone(),
        preflights: false,
    };
    let mut route = Route::new(around.public_url, &configured);
    let bound = |assignment: &Assignment| binding(configuration, assignment);
    route.managed = Some(Box::new(Particulars {
        title: configuration.name.clone(),
        organization: organization.map(|organization| organization.name.clone()),
        passthrough: configuration.passthrough,
        people: people.iter().map(|(user, own)| ((*user).to_owned(), bound(own))).collect(),
        headers: headers(configuration),
    }));
    Some(route)
}

/// Of the route: context, owner, configuration and key.
pub(super) fn path(configuration: &Configuration) -> String {
    let (context, owner) = configuration.owner.segments();
    let key = configuration.route.key.expose_secret();
    format!("/{MANAGED}/{context}/{owner}/{}/{key}", configuration.id)
}

/// What a token is bound to besides the address of its route: this revision of the configuration, and this use of it.
fn binding(configuration: &Configuration, assignment: &Assignment) -> String {
    format!("urn:postern:use:{}:{}", assignment.instance, configuration.revision)
}

fn upstream(configuration: &Configuration, around: Around<'_>) -> Option<config::Upstream> {
    let url = Url::parse(&configuration.url).ok()?;
    let upstream = config::Upstream {
        url_as_written: configuration.url.clone(),
        url,
        allow_private: false,
        allow_hosts: around.settings.private_hosts.clone(),
        read_timeout: Duration::ZERO,
        pool: None,
    };
    let may_be_plain = around.settings.private_hosts.contains(&upstream.host());
    (upstream.url.scheme() == "https" || may_be_plain).then_some(upstream)
}

fn credential(configuration: &Configuration) -> Credential {
    match &configuration.auth {
        Auth::None | Auth::StaticHeaders(_) => Credential::None,
        Auth::OauthDynamic => Credential::Oauth(oauth(configuration)),
        Auth::OauthStatic { client_id, client_secret } => Credential::Oauth(OauthCredential {
            client_id: Some(client_id.clone()),
            client_secret: client_secret.clone(),
            ..oauth(configuration)
        }),
    }
}

fn oauth(configuration: &Configuration) -> OauthCredential {
    OauthCredential { scopes: configuration.scopes.clone(), ..OauthCredential::default() }
}

/// Auxiliary headers, then static ones, so that these have the last word.
fn headers(configuration: &Configuration) -> Vec<(HeaderName, HeaderValue)> {
    let made = |name: &str, value: &str, is_secret: bool| {
        let mut value = HeaderValue::from_str(value).ok()?;
        value.set_sensitive(is_secret);
        Some((HeaderName::try_from(name).ok()?, value))
    };
    let auxiliary = configuration.headers.iter().map(|header| made(&header.name, &header.value, false));
    let secret = match &configuration.auth {
        Auth::StaticHeaders(headers) => headers.as_slice(),
        _ => &[],
    };
    let secret = secret.iter().map(|header| made(&header.name, header.value.expose_secret(), true));
    auxiliary.chain(secret).flatten().collect()
}
