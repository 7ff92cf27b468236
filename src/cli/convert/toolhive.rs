//! Documents of ToolHive → servers, each with its credential → routes.

mod servers;

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use serde_saphyr::Spanned;

use super::credential::{self, Around, DEFAULT_NAMESPACE};
use super::section::{Findings, Place, Section, bare, distinct, line};
use super::trial;
use super::written::{Credential, Route};
use servers::Server;

const GROUP: &str = "toolhive.stacklok.dev/";
const VERSIONS: [&str; 2] = ["v1alpha1", "v1beta1"];

/// A document, or an item of a list of them.
struct Document {
    kind: String,
    name: String,
    namespace: String,
    spec: Section,
}

/// A credential that servers may name.
struct External {
    place: Place,
    /// `None`: it cannot be carried over, which was said.
    credential: Option<Credential>,
    is_named: bool,
}

/// Resources by namespace and name.
type Externals = BTreeMap<(String, String), External>;

/// Routes, and what could not be carried over, as `LINE: KIND NAME: KEY: REASON`.
///
/// # Errors
/// The text is no YAML, or nothing in it is ToolHive's.
pub fn convert(text: &str) -> Result<(Vec<Route>, Vec<String>), String> {
    let mut found = Findings::default();
    let documents = read(text, &mut found)?;
    let has_own_server = documents.iter().any(signs_people_in);
    let mut externals = Externals::new();
    let (mut servers, mut gateways) = (Vec::new(), Vec::new());
    for document in documents {
        match document.kind.as_str() {
            "MCPExternalAuthConfig" => external(document, has_own_server, &mut externals, &mut found),
            "MCPServer" | "MCPRemoteProxy" | "MCPServerEntry" => servers.push(document),
            "VirtualMCPServer" => gateways.push(document),
            // Names alone, and values that are not to be seen.
            "MCPGroup" | "Secret" => {}
            _ => {
                found.lose(&Place { key: String::new(), ..document.spec.place }, "is not carried over");
            }
        }
    }
    let mut servers: Vec<Server> = servers
        .into_iter()
        .filter_map(|document| servers::server(document, &mut externals, &mut found))
        .collect();
    for document in gateways {
        servers::gateway(document, has_own_server, &mut servers, &mut externals, &mut found);
    }
    let unnamed = externals.into_iter().filter(|(_, external)| !external.is_named);
    servers.extend(
        unnamed.map(|((_, name), External { place, credential, .. })| Server::alone(name, place, credential)),
    );
    let routes = routes(servers, &mut found);
    Ok((routes, found.into_losses()))
}

/// The documents, and those in lists of them.
fn read(text: &str, found: &mut Findings) -> Result<Vec<Document>, String> {
    let options = serde_saphyr::options! {
        strict_booleans: true,
        // It could show a secret.
        with_snippet: false,
    };
    let read: Vec<Spanned<Value>> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
            let at = error.location().map(|at| format!("{}:{}:", at.line(), at.column())).unwrap_or_default();
            let text = error.without_snippet().render_with_formatter(&serde_saphyr::UserMessageFormatter);
            format!("{at} not valid YAML: {}", line(text.lines().next().unwrap_or_default()))
        })?;
    let mut documents = Vec::new();
    for Spanned { value, referenced, .. } in read {
        let at = referenced.line().to_string();
        let Value::Object(mut keys) = value else {
            found.lose(&Place { document: at, key: String::new() }, "is not a mapping");
            continue;
        };
        match keys.remove("items") {
            Some(Value::Array(items)) => {
                for item in items {
                    documents.extend(item.as_object().and_then(|keys| document(&at, keys.clone(), found)));
                }
            }
            _ => documents.extend(document(&at, keys, found)),
        }
    }
    let is_ours = |document: &Document| !matches!(document.kind.as_str(), "Secret");
    if !documents.iter().any(is_ours) {
        return Err(" nothing in it is of ToolHive".to_owned());
    }
    Ok(documents)
}

/// `None`: it is not ToolHive's, or of a version that nobody knows here, which is said.
fn document(line: &str, keys: Map<String, Value>, found: &mut Findings) -> Option<Document> {
    let words = |map: &Map<String, Value>, key: &str| {
        map.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let (api, kind) = (words(&keys, "apiVersion"), words(&keys, "kind"));
    // The vMCP's own file is no resource.
    if api.is_empty() && keys.keys().any(|key| bare(key) == "outgoingauth") {
        let name = words(&keys, "name");
        let place = Place { document: format!("{line}: vMCP {name}"), key: String::new() };
        let spec = Section::new(place, keys);
        return Some(Document {
            kind: "VirtualMCPServer".to_owned(),
            name,
            namespace: DEFAULT_NAMESPACE.to_owned(),
            spec,
        });
    }
    let metadata = keys.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
    let (name, namespace) = (words(&metadata, "name"), words(&metadata, "namespace"));
    let namespace = if namespace.is_empty() { DEFAULT_NAMESPACE.to_owned() } else { namespace };
    let place = Place { document: format!("{line}: {kind} {name}"), key: "spec".to_owned() };
    let whole = Place { key: String::new(), ..place.clone() };
    match api.strip_prefix(GROUP) {
        Some(version) if VERSIONS.contains(&version) => {}
        Some(_) => {
            found.lose(&whole, "has a version that is not known here: v1alpha1 and v1beta1 are");
            return None;
        }
        None if kind == "Secret" => {}
        None => {
            found.lose(&whole, "is not of ToolHive");
            return None;
        }
    }
    let spec = match keys.get("spec") {
        Some(Value::Object(spec)) => spec.clone(),
        _ => Map::new(),
    };
    Some(Document { kind, name, namespace, spec: Section::new(place, spec) })
}

/// Whether it has ToolHive's authorization server, whose first provider is taken where a strategy names none.
fn signs_people_in(document: &Document) -> bool {
    let spec = &document.spec;
    ["authServerConfig", "authServerRef", "authServer", "embeddedAuthServer"].iter().any(|key| spec.has(key))
}

fn external(document: Document, has_own_server: bool, externals: &mut Externals, found: &mut Findings) {
    let Document { name, namespace, spec, .. } = document;
    let place = spec.place.clone();
    let around = Around { name: &name, namespace: &namespace, has_own_server };
    let credential = credential::convert(spec, around, found).ok();
    let credential =
        credential.map(|credential| Credential { from: format!("{namespace}/{name}"), ..credential });
    let external = External { place: place.clone(), credential, is_named: false };
    if externals.insert((namespace, name), external).is_some() {
        found.lose(&place, "takes the place of one before it that has the same name");
    }
}

/// Those that would pass, each under a name of its own.
fn routes(servers: Vec<Server>, found: &mut Findings) -> Vec<Route> {
    let mut routes: Vec<Route> = Vec::with_capacity(servers.len());
    for server in servers {
        // Where nobody names one, nothing is put in.
        let Some(credential) = server.credential.unwrap_or_else(|| Some(Credential::new("none"))) else {
            continue;
        };
        let fit = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        let wanted: String = server.name.chars().map(fit).collect();
        let name = distinct(&wanted, '-', |name| routes.iter().any(|route| route.name == name));
        let from = format!("Line {}", server.place.document);
        let route = Route { from, name, url: server.url, is_private: server.is_private, credential };
        let problems = trial::problems(&route);
        if problems.is_empty() {
            routes.push(route);
            continue;
        }
        for problem in problems {
            found.lose(&server.place, &problem);
        }
    }
    routes
}
