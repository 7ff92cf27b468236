//! A strategy of ToolHive (`MCPExternalAuthConfig.spec`, or an entry of a vMCP's `outgoingAuth`) → `credential` of a route.
//!
//! The operator writes `tokenExchange`, the vMCP `token_exchange`; the keys below mean the same in both. The operator has secrets by
//! reference, the vMCP in variables or as they are; what is printed names a variable in each case.

mod aws_sts;

use url::Url;

use super::section::{Findings, Lost, Section, bare, line};
use super::written::{Credential, Field};

/// What a whole file says that a strategy depends on.
#[derive(Clone, Copy)]
pub struct Around<'a> {
    /// The resource's name, for variables.
    pub name: &'a str,
    pub namespace: &'a str,
    /// ToolHive signs people in itself, and puts its first provider where none is named.
    pub has_own_server: bool,
}

/// The namespace of what names none.
pub const DEFAULT_NAMESPACE: &str = "default";

const UNKNOWN: &str = "has no counterpart in Postern";
const NAMELESS: &str =
    "is empty, which means no provider, not even `default`; write the `name` of an entry of `login.oidc`";
const MISSING: &str = "is missing; write the `name` of an entry of `login.oidc` whose token it is";

/// The credential; or the findings say why there is none.
pub fn convert(mut written: Section, around: Around<'_>, found: &mut Findings) -> Result<Credential, Lost> {
    let kind = written.needed("type", found)?;
    let of_kind: fn(&mut Section, Around<'_>, &mut Findings) -> Result<Credential, Lost> = match bare(&kind)
        .as_str()
    {
        "unauthenticated" => |_, _, _| Ok(Credential::new("none")),
        "upstreaminject" => upstream_inject,
        "tokenexchange" => token_exchange,
        "headerinjection" => header_injection,
        "bearertoken" => bearer_token,
        "awssts" => aws_sts::convert,
        "obo" => obo,
        "xaa" => xaa,
        "embeddedauthserver" => {
            let reason =
                "Postern is the authorization server itself; write its upstreams as entries of `login.oidc`";
            return Err(found.lose(&written.place.child(&kind), reason));
        }
        _ => {
            return Err(
                found.lose(&written.place.child("type"), "is no kind of credential that Postern knows")
            );
        }
    };
    let keys = written.section(&kind, found)?;
    let is_bare = bare(&kind) == "unauthenticated";
    let Some(mut keys) = keys.or_else(|| is_bare.then(|| written.clone())) else {
        return Err(found.lose(&written.place.child(&kind), "is missing"));
    };
    let credential = of_kind(&mut keys, around, found);
    if !is_bare {
        keys.rest(found, |_| Some(UNKNOWN));
    }
    written.rest(found, |_| Some("belongs to another `type`"));
    credential
}

fn upstream_inject(keys: &mut Section, _: Around<'_>, found: &mut Findings) -> Result<Credential, Lost> {
    let provider = needed_provider(keys, "providerName", found)?;
    let mut credential = Credential::new("upstream_inject").with("provider", Field::Text(provider.clone()));
    credential.provider = Some(provider);
    Ok(credential)
}

fn token_exchange(keys: &mut Section, around: Around<'_>, found: &mut Findings) -> Result<Credential, Lost> {
    const URN: &str = "urn:ietf:params:oauth:token-type:";
    let provider = provider(keys, "subjectProviderName", found)?;
    if provider.is_none() && around.has_own_server {
        let reason = "is missing, and ToolHive takes the first provider of its authorization server; write which one is meant";
        return Err(found.lose(&keys.place.child("subjectProviderName"), reason));
    }
    let endpoint = keys.needed("tokenUrl", found)?;
    let mut credential =
        Credential::new("token_exchange").with("token_endpoint", Field::Text(endpoint.clone()));
    credential.hosts.extend(inside(&endpoint));
    credential = client(credential, keys, "client", around, found)?;
    let kind = keys.words("subjectTokenType", found)?.unwrap_or_default();
    let kind = kind.strip_prefix(URN).unwrap_or(&kind);
    let is_of_user = provider.is_some();
    credential = match provider {
        Some(name) => {
            credential.provider = Some(name.clone());
            credential.with("subject_provider", Field::Text(name))
        }
        None => {
            let note = "The caller's: where the route has `trusted_issuers`, the token that they come with; else a JWT that Postern signs.";
            credential.notes.push(note.to_owned());
            credential.with("subject", Field::Text("caller".to_owned()))
        }
    };
    credential = match kind {
        "" => credential,
        "id_token" if is_of_user => credential.with("subject_token", Field::Text("id".to_owned())),
        "access_token" if is_of_user => credential.with("subject_token", Field::Text("access".to_owned())),
        "access_token" | "id_token" | "jwt" => {
            credential.with("subject_token_type", Field::Text(format!("{URN}{kind}")))
        }
        _ => {
            return Err(
                found.lose(&keys.place.child("subjectTokenType"), "is no type of token that ToolHive has")
            );
        }
    };
    let name = keys.words("externalTokenHeaderName", found)?;
    let mut scopes = keys.texts("scopes", found)?;
    // As it once was written.
    if let Some(scope) = keys.words("scope", found)? {
        scopes.extend(scope.split_whitespace().map(str::to_owned));
    }
    Ok(credential
        .with_text("audience", keys.words("audience", found)?)
        .with_list("scopes", scopes)
        .with_text("name", name))
}

fn header_injection(
    keys: &mut Section,
    around: Around<'_>,
    found: &mut Findings,
) -> Result<Credential, Lost> {
    let name = keys.needed("headerName", found)?;
    let references = ["valueSecretRef", "headerValueEnv", "headerValue"];
    let value = secret(keys, references, around, found)?
        .ok_or_else(|| found.lose(&keys.place.child("valueSecretRef"), "is missing"))?;
    Ok(Credential::new("header").with("name", Field::Text(name)).with("value", value))
}

fn bearer_token(keys: &mut Section, around: Around<'_>, found: &mut Findings) -> Result<Credential, Lost> {
    let value = secret(keys, ["tokenSecretRef", "tokenEnv", "token"], around, found)?
        .ok_or_else(|| found.lose(&keys.place.child("tokenSecretRef"), "is missing"))?;
    Ok(Credential::new("header")
        .with("name", Field::Text("Authorization".to_owned()))
        .with("format", Field::Text("Bearer {value}".to_owned()))
        .with("value", value))
}

/// Entra's on-behalf-of form. The operator has `tenantId` and `authority`, the vMCP `tokenUrl`.
fn obo(keys: &mut Section, around: Around<'_>, found: &mut Findings) -> Result<Credential, Lost> {
    let provider = needed_provider(keys, "subjectTokenProviderName", found)?;
    let mut credential = Credential::new("entra_obo").with("subject_provider", Field::Text(provider.clone()));
    credential.provider = Some(provider);
    let endpoint = match (keys.words("tokenUrl", found)?, keys.words("authority", found)?) {
        (Some(url), _) => Some(url),
        (None, Some(authority)) => Some(format!("{authority}/{{tenant}}/oauth2/v2.0/token")),
        (None, None) => None,
    };
    if endpoint.as_ref().is_none_or(|endpoint| endpoint.contains("{tenant}")) {
        let tenant = keys.needed("tenantId", found)?;
        credential = credential.with("tenant", Field::Text(tenant));
    }
    credential.hosts.extend(endpoint.as_deref().and_then(inside));
    credential = client(credential.with_text("token_endpoint", endpoint), keys, "client", around, found)?;
    // Scopes go before the audience, which is asked for as one where there are none.
    let (mut scopes, audience) = (keys.texts("scopes", found)?, keys.words("audience", found)?);
    if scopes.is_empty() {
        scopes.extend(audience);
    }
    for name in ["cacheSkew", "cacheSkewSeconds"] {
        if let Some((place, _)) = keys.take(name) {
            found.lose(&place, "Postern renews tokens shortly before their end; when is not configured");
        }
    }
    Ok(credential.with_list("scopes", scopes))
}

/// An ID token for an identity assertion at the provider, that for a token at the target.
fn xaa(keys: &mut Section, around: Around<'_>, found: &mut Findings) -> Result<Credential, Lost> {
    let provider = needed_provider(keys, "subjectProviderName", found)?;
    let endpoint = keys.needed("targetTokenUrl", found)?;
    let mut credential = Credential::new("id_jag")
        .with("subject_provider", Field::Text(provider.clone()))
        .with("token_endpoint", Field::Text(endpoint.clone()));
    credential.provider = Some(provider);
    credential.hosts.extend(inside(&endpoint));
    // `http` is allowed by `allow_hosts`.
    keys.switch("insecureTargetTokenUrl", found)?;
    credential = client(credential, keys, "targetClient", around, found)?;
    // Postern asks at the provider as the client that signs people in there.
    let at = keys.needed("idpTokenUrl", found)?;
    if Url::parse(&at).is_ok_and(|url| !url.username().is_empty() || url.password().is_some()) {
        return Err(found.lose(&keys.place.child("idpTokenUrl"), "contains a user name or password"));
    }
    credential.of_provider.push(format!("its token endpoint is {at}"));
    if let Some(id) = keys.words("idpClientId", found)? {
        credential.of_provider.push(format!("its `client_id` is {id}"));
    }
    let references = ["idpClientSecretRef", "idpClientSecretEnv", "idpClientSecret"];
    if let Some(Field::Secret(_, holds)) = secret(keys, references, around, found)? {
        credential.of_provider.push(format!("its `client_secret` is {holds}"));
    }
    let kind = keys.words("subjectTokenType", found)?;
    if kind.is_some_and(|kind| !kind.ends_with("id_token")) {
        return Err(
            found.lose(&keys.place.child("subjectTokenType"), "is not an ID token, which `id_jag` exchanges")
        );
    }
    let audience = keys.needed("targetAudience", found)?;
    Ok(credential
        .with("audience", Field::Text(audience))
        .with_text("resource", keys.words("targetResource", found)?)
        .with_list("scopes", keys.texts("scopes", found)?))
}

/// `…Id` and the secret beside it, as which Postern asks at a token endpoint.
fn client(
    credential: Credential,
    keys: &mut Section,
    prefix: &str,
    around: Around<'_>,
    found: &mut Findings,
) -> Result<Credential, Lost> {
    let id = format!("{prefix}Id");
    let Some(client_id) = keys.words(&id, found)? else {
        let reason = "is missing; Postern asks for tokens only as a client, write which one";
        return Err(found.lose(&keys.place.child(&id), reason));
    };
    let [reference, variable, text] = ["Ref", "Env", ""].map(|end| format!("{prefix}Secret{end}"));
    let credential = credential.with("client_id", Field::Text(client_id));
    Ok(match secret(keys, [&reference, &variable, &text], around, found)? {
        Some(secret) => credential.with("client_secret", secret),
        None => credential.with("token_endpoint_auth_method", Field::Text("none".to_owned())),
    })
}

/// A secret by reference to a Secret of Kubernetes, in a variable, or as it is, whatever of them is there; its value stays unread.
pub fn secret(
    keys: &mut Section,
    [reference, variable, text]: [&str; 3],
    around: Around<'_>,
    found: &mut Findings,
) -> Result<Option<Field>, Lost> {
    if let Some(mut reference) = keys.section(reference, found)? {
        let (name, key) = (reference.needed("name", found)?, reference.needed("key", found)?);
        reference.rest(found, |_| Some(UNKNOWN));
        let namespace = around.namespace;
        let within =
            if namespace == DEFAULT_NAMESPACE { String::new() } else { format!(" in namespace {namespace}") };
        let holds = line(&format!("key {key} of the Secret {name}{within}"));
        let variable = found.variable(&format!("{name}_{key}"), &holds);
        return Ok(Some(Field::Secret(variable, holds)));
    }
    if let Some(variable) = keys.words(variable, found)? {
        let holds = format!("what ToolHive reads from {variable}");
        let variable = found.named_variable(&variable, &holds);
        return Ok(Some(Field::Secret(variable, holds)));
    }
    let Some((place, _)) = keys.take(text).filter(|(_, value)| value != "") else { return Ok(None) };
    let holds = format!("what stands at {}: {}", place.document, place.key);
    let variable = found.variable(&format!("{}_{text}", around.name), &holds);
    Ok(Some(Field::Secret(variable, holds)))
}

fn needed_provider(keys: &mut Section, key: &str, found: &mut Findings) -> Result<String, Lost> {
    provider(keys, key, found)?.ok_or_else(|| found.lose(&keys.place.child(key), MISSING))
}

/// The name of a provider as an entry of `login.oidc` can have it.
fn provider(keys: &mut Section, key: &str, found: &mut Findings) -> Result<Option<String>, Lost> {
    let Some(name) = keys.text(key, found)? else { return Ok(None) };
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    let reason = match name.len() {
        0 => NAMELESS,
        1..=32 if name.bytes().all(fits) => return Ok(Some(name)),
        _ => {
            "is no name that an entry of `login.oidc` can have: 1 to 32 lower-case letters, digits, `-` or `_`"
        }
    };
    Err(found.lose(&keys.place.child(key), reason))
}

/// The host of an address that Postern goes to only when it is allowed: by `http`, or within a cluster.
pub fn inside(url: &str) -> Option<String> {
    let url = Url::parse(url).ok()?;
    let host = url.host_str()?;
    let is_inside =
        url.scheme() == "http" || [".svc", ".cluster.local"].iter().any(|end| host.ends_with(end));
    is_inside.then(|| host.trim_matches(['[', ']']).to_owned())
}
