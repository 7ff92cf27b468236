//! Resources that name a credential, and where their servers are.

use super::super::credential::{self, Around};
use super::super::section::{Findings, Lost, Place, Section, bare};
use super::super::written::{Credential, Field};
use super::{Document, Externals};

/// An MCP server.
pub struct Server {
    pub name: String,
    pub place: Place,
    namespace: String,
    group: String,
    pub url: Option<String>,
    pub is_private: bool,
    /// `None`: nobody names one. `Some(None)`: one that cannot be carried over, which was said.
    pub credential: Option<Option<Credential>>,
}

impl Server {
    /// One that nobody says more of than its credential.
    pub fn alone(name: String, place: Place, credential: Option<Credential>) -> Self {
        let (namespace, group) = (String::new(), String::new());
        Self { name, place, namespace, group, url: None, is_private: false, credential: Some(credential) }
    }
}

/// What a resource says that is not about who may go where with what: how ToolHive's own Pods run.
const OF_PODS: &[&str] = &[
    "args",
    "audit",
    "backendReplicas",
    "embeddingServerRef",
    "endpointPrefix",
    "env",
    "groupRef",
    "imagePullSecrets",
    "mcpPort",
    "openTelemetry",
    "podTemplateSpec",
    "port",
    "proxyMode",
    "proxyPort",
    "replicas",
    "resourceOverrides",
    "resources",
    "secrets",
    "serviceAccount",
    "serviceType",
    "sessionAffinity",
    "sessionStorage",
    "targetPort",
    "telemetry",
    "telemetryConfigRef",
    "trustProxyHeaders",
    "volumes",
    "name",
    "group",
    "metadata",
    "operational",
    "sessionTTL",
];

/// Why a key of a resource is not carried over. `None`: there is nothing to carry.
fn reason(key: &str) -> Option<&'static str> {
    let key = bare(key);
    if OF_PODS.iter().any(|of_pods| bare(of_pods) == key) {
        return None;
    }
    Some(match key.as_str() {
        "oidcconfig" | "oidcconfigref" | "incomingauth" => {
            "who is let in is written in `login`, or in `trusted_issuers`"
        }
        "authzconfig" | "authzconfigref" => "rules are written in `policy`",
        "authserverref" | "authserverconfig" | "authserver" => {
            "Postern is the authorization server itself; write its upstreams as entries of `login.oidc`"
        }
        "toolconfigref" | "toolsfilter" | "tools" | "aggregation" => {
            "which tools may be called is written in `policy`; Postern gives them no other names"
        }
        "cabundleref" => "certificates to trust are written in `outbound.ca_files`",
        "ratelimiting" => "limits are written in `limits`",
        "headerforward" => "a route puts in one credential",
        "permissionprofile" | "image" => {
            "Postern starts no servers; write the URL under which this one is reached"
        }
        _ => "has no counterpart in Postern",
    })
}

/// `MCPRemoteProxy` and `MCPServerEntry` say where the server is; an `MCPServer` is started by ToolHive. `None`: said why.
pub fn server(document: Document, externals: &mut Externals, found: &mut Findings) -> Option<Server> {
    let Document { kind, name, namespace, mut spec } = document;
    let mut read = || -> Result<Server, Lost> {
        let named = reference(&mut spec, &namespace, externals, found).unwrap_or(Some(None));
        let around = Around { name: &name, namespace: &namespace, has_own_server: false };
        let credential = match named {
            None => headers(&mut spec, around, found)?.map(Some),
            named => named,
        };
        let url = spec.words("remoteUrl", found)?;
        if url.is_none() && kind != "MCPServer" {
            return Err(found.lose(&spec.place.child("remoteUrl"), "is missing"));
        }
        let is_private = spec.switch("allowPrivateEndpoint", found)?;
        let is_private = is_private || url.as_deref().is_some_and(|url| credential::inside(url).is_some());
        transport(&mut spec, found)?;
        let place = Place { key: String::new(), ..spec.place.clone() };
        let (name, namespace, group) = (name.clone(), namespace.clone(), group(&spec));
        Ok(Server { name, place, namespace, group, url, is_private, credential })
    };
    let server = read();
    spec.rest(found, reason);
    server.ok()
}

/// A vMCP: what its backends get, and where they are, if it says so.
pub fn gateway(
    document: Document,
    has_own_server: bool,
    servers: &mut Vec<Server>,
    externals: &mut Externals,
    found: &mut Findings,
) {
    let Document { name, namespace, mut spec, .. } = document;
    let mut config = spec.section("config", found).ok().flatten();
    let group =
        [Some(&spec), config.as_ref()].into_iter().flatten().map(group).find(|group| !group.is_empty());
    let group = group.unwrap_or_default();
    let mut outgoing = spec.section("outgoingAuth", found).ok().flatten();
    for part in [Some(&mut spec), config.as_mut()].into_iter().flatten() {
        let inner = part.section("outgoingAuth", found).ok().flatten();
        outgoing = outgoing.or(inner);
        for backend in part.sections("backends", found).unwrap_or_default() {
            servers.extend(backend_of(backend, &namespace, &group, found));
        }
    }
    if let Some(mut outgoing) = outgoing {
        let mut strategy = |section: Section, of: &str, found: &mut Findings| {
            strategy(section, Around { name: of, namespace: &namespace, has_own_server }, externals, found)
        };
        let backends = outgoing.section("backends", found).ok().flatten();
        for (backend, section) in backends.map(|section| section.entries(found)).unwrap_or_default() {
            let place = section.place.clone();
            let Some(credential) = strategy(section, &backend, found) else { continue };
            give(servers, &backend, &namespace, place, credential, found);
        }
        if let Some(section) = outgoing.section("default", found).ok().flatten() {
            let place = section.place.clone();
            if let Some(credential) = strategy(section, &name, found) {
                give_rest(servers, &namespace, &group, &place, &credential, found);
            }
        }
        // Where from: from what the file says.
        outgoing.take("source");
        outgoing.rest(found, reason);
    }
    spec.rest(found, reason);
    if let Some(config) = config {
        config.rest(found, reason);
    }
}

/// An entry of `backends`, with a URL.
fn backend_of(mut backend: Section, namespace: &str, group: &str, found: &mut Findings) -> Option<Server> {
    let name = backend.needed("name", found).ok()?;
    let url = backend.needed("url", found).ok()?;
    let place = backend.place.clone();
    let is_sent = transport(&mut backend, found);
    backend.rest(found, reason);
    is_sent.ok()?;
    let is_private = credential::inside(&url).is_some();
    let (namespace, group) = (namespace.to_owned(), group.to_owned());
    Some(Server { name, place, namespace, group, url: Some(url), is_private, credential: None })
}

/// To the server of this name, if it has none of its own.
fn give(
    servers: &mut Vec<Server>,
    name: &str,
    namespace: &str,
    place: Place,
    credential: Option<Credential>,
    found: &mut Findings,
) {
    let Some(server) = servers.iter_mut().find(|server| server.name == name && server.namespace == namespace)
    else {
        let mut server = Server::alone(name.to_owned(), place, credential);
        namespace.clone_into(&mut server.namespace);
        servers.push(server);
        return;
    };
    let from =
        |credential: &Option<Credential>| credential.as_ref().map(|credential| credential.from.clone());
    match &server.credential {
        None => server.credential = Some(credential),
        Some(own) if from(own) == from(&credential) => {}
        Some(_) => {
            found.lose(
                &place,
                "the server has a credential of its own, which its route keeps: a route has one",
            );
        }
    }
}

/// To all servers of the group that have none.
fn give_rest(
    servers: &mut [Server],
    namespace: &str,
    group: &str,
    place: &Place,
    credential: &Option<Credential>,
    found: &mut Findings,
) {
    let of_group = |server: &&mut Server| {
        server.credential.is_none() && server.namespace == namespace && server.group == group
    };
    let mut count = 0;
    for server in servers.iter_mut().filter(of_group) {
        server.credential = Some(credential.clone());
        count += 1;
    }
    if count == 0 {
        found.lose(
            place,
            "no server in this file gets it; give its credential to the routes of those that do",
        );
    }
}

/// What an entry of `outgoingAuth` means. `None`: what the server itself says.
fn strategy(
    mut section: Section,
    around: Around<'_>,
    externals: &mut Externals,
    found: &mut Findings,
) -> Option<Option<Credential>> {
    let kind = section.clone().words("type", found).ok().flatten().unwrap_or_default();
    match bare(&kind).as_str() {
        "discovered" => {
            section.take("type");
            section.rest(found, |_| Some("belongs to another `type`"));
            None
        }
        "externalauthconfigref" => {
            section.take("type");
            let named = reference(&mut section, around.namespace, externals, found);
            if matches!(named, Ok(None)) {
                found.lose(&section.place.child("externalAuthConfigRef"), "is missing");
            }
            section.rest(found, |_| Some("belongs to another `type`"));
            Some(named.ok().flatten().flatten())
        }
        _ => {
            let from = format!("{} {}", section.place.document, section.place.key);
            let credential = credential::convert(section, around, found).ok();
            Some(credential.map(|credential| Credential { from, ..credential }))
        }
    }
}

/// The resource that `externalAuthConfigRef` names. `None`: none is named.
fn reference(
    section: &mut Section,
    namespace: &str,
    externals: &mut Externals,
    found: &mut Findings,
) -> Result<Option<Option<Credential>>, Lost> {
    let Some(mut named) = section.section("externalAuthConfigRef", found)? else { return Ok(None) };
    let (name, place) = (named.needed("name", found)?, named.place.clone());
    named.rest(found, |_| Some("has no counterpart in Postern"));
    match externals.get_mut(&(namespace.to_owned(), name)) {
        Some(external) => {
            external.is_named = true;
            Ok(Some(external.credential.clone()))
        }
        None => Err(found.lose(&place, "names a resource that is not in the file, in this namespace")),
    }
}

/// `headerForward` with a single header from a Secret is a credential.
fn headers(spec: &mut Section, around: Around<'_>, found: &mut Findings) -> Result<Option<Credential>, Lost> {
    let has_one = spec.clone().section("headerForward", found)?.is_some_and(|mut headers| {
        let has_plain = headers.has("addPlaintextHeaders");
        let secret = headers.take("addHeadersFromSecret");
        !has_plain && secret.is_some_and(|(_, secret)| secret.as_array().is_some_and(|list| list.len() == 1))
    });
    if !has_one {
        return Ok(None);
    }
    let Some(mut headers) = spec.section("headerForward", found)? else { return Ok(None) };
    let mut credential = None;
    for mut header in headers.sections("addHeadersFromSecret", found)? {
        let field = header.needed("headerName", found)?;
        let value = credential::secret(&mut header, ["valueSecretRef", "", ""], around, found)?;
        let value = value.ok_or_else(|| found.lose(&header.place.child("valueSecretRef"), "is missing"))?;
        credential = Some(Credential::new("header").with("name", Field::Text(field)).with("value", value));
    }
    headers.rest(found, reason);
    Ok(credential)
}

/// Only that which Postern has.
fn transport(section: &mut Section, found: &mut Findings) -> Result<(), Lost> {
    let is_started = section.has("image");
    match section.words("transport", found)?.as_deref() {
        None | Some("streamable-http" | "streamable_http") => Ok(()),
        Some(_) if is_started => Ok(()),
        Some(_) => {
            Err(found.lose(&section.place.child("transport"), "Postern passes on streamable HTTP alone"))
        }
    }
}

/// The name in `groupRef`, which is a text or a mapping.
fn group(section: &Section) -> String {
    let mut section = section.clone();
    let named = section.take("groupRef").or_else(|| section.take("group")).map(|(_, value)| value);
    let name = named.as_ref().and_then(|value| value.as_str().or_else(|| value.get("name")?.as_str()));
    name.unwrap_or_default().to_owned()
}
