//! A configuration as it is written and as it is shown. Secrets are written and never shown.
use schemars::JsonSchema;
use secrecy::SecretString;
use serde::{Deserialize, Deserializer, Serialize};

use super::time;
use crate::api::managed::configuration::Draft;
use crate::api::managed::wish::Wish;
use crate::managed::record::{self, Owner, Sharing};
use crate::managed::{self, Around};
use crate::web::About;

/// A header that goes along with every call.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Header {
    #[schemars(length(min = 1))]
    name: String,
    #[schemars(length(min = 1))]
    value: String,
}

/// One whose value nobody gets to see again.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretHeader {
    #[schemars(length(min = 1))]
    name: String,
    /// Left out in a change: the one that is there.
    #[serde(default)]
    #[schemars(with = "String")]
    value: SecretString,
}

/// How the server wants to be authorized.
#[derive(Deserialize, JsonSchema)]
#[serde(tag = "mode", rename_all = "snake_case", deny_unknown_fields)]
pub enum NewAuth {
    None {},
    /// The same for everybody.
    StaticHeaders {
        #[schemars(length(min = 1, max = 20))]
        headers: Vec<SecretHeader>,
    },
    /// Each user's own token; the gateway registers itself.
    OauthDynamic {},
    /// Each user's own token, with a client that you have registered.
    OauthStatic {
        #[schemars(length(min = 1))]
        client_id: String,
        /// Left out in a change of the same client: the one that is there.
        #[serde(default, deserialize_with = "given")]
        #[schemars(with = "String")]
        client_secret: Option<SecretString>,
    },
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewConfiguration {
    /// Left out: it is your own.
    #[serde(default, deserialize_with = "given")]
    #[schemars(with = "String")]
    organization: Option<String>,
    #[schemars(length(min = 1, max = 200))]
    name: String,
    /// Of the MCP server.
    #[schemars(extend("format" = "uri"))]
    url: String,
    auth: NewAuth,
    /// Left out: `single_user`.
    #[serde(default, deserialize_with = "given")]
    #[schemars(with = "Sharing")]
    sharing: Option<Sharing>,
    /// Whether paths below the address lead to the server too.
    #[serde(default)]
    passthrough: bool,
    /// Asked for in place of what the server wants itself.
    #[serde(default)]
    #[schemars(length(max = 50))]
    scopes: Option<Vec<String>>,
    #[serde(default)]
    #[schemars(length(max = 20))]
    headers: Vec<Header>,
}

/// What is left out stays as it is.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangedConfiguration {
    #[serde(default, deserialize_with = "given")]
    #[schemars(with = "String", length(min = 1, max = 200))]
    name: Option<String>,
    /// With another one secrets have to be given again.
    #[serde(default, deserialize_with = "given")]
    #[schemars(with = "String", extend("format" = "uri"))]
    url: Option<String>,
    #[serde(default, deserialize_with = "given")]
    #[schemars(with = "NewAuth")]
    auth: Option<NewAuth>,
    #[serde(default, deserialize_with = "given")]
    #[schemars(with = "Sharing")]
    sharing: Option<Sharing>,
    #[serde(default, deserialize_with = "given")]
    #[schemars(with = "bool")]
    passthrough: Option<bool>,
    /// `null`: what the server wants itself.
    #[serde(default, deserialize_with = "given")]
    #[schemars(with = "Option<Vec<String>>", length(max = 50))]
    scopes: Option<Option<Vec<String>>>,
    #[serde(default, deserialize_with = "given")]
    #[schemars(with = "Vec<Header>", length(max = 20))]
    headers: Option<Vec<Header>>,
    /// Whether its address leads anywhere.
    #[serde(default, deserialize_with = "given")]
    #[schemars(with = "bool")]
    enabled: Option<bool>,
}

#[derive(Serialize, JsonSchema)]
pub struct Configuration {
    id: String,
    /// Whose it is, unless it is a user's.
    organization: Option<String>,
    /// Whose it is, unless it is an organisation's.
    user: Option<String>,
    name: String,
    url: String,
    auth: Auth,
    sharing: Sharing,
    passthrough: bool,
    scopes: Option<Vec<String>>,
    headers: Vec<Header>,
    enabled: bool,
    route: Route,
    discovered: Option<Discovered>,
    #[schemars(extend("format" = "date-time"))]
    created_at: String,
    #[schemars(extend("format" = "date-time"))]
    updated_at: String,
}

#[derive(Serialize, JsonSchema)]
#[serde(tag = "mode", rename_all = "snake_case")]
enum Auth {
    None {},
    StaticHeaders {
        /// Names alone.
        headers: Vec<String>,
    },
    OauthDynamic {},
    OauthStatic {
        client_id: String,
        has_client_secret: bool,
    },
}

/// Where MCP clients find it.
#[derive(Serialize, JsonSchema)]
struct Route {
    /// Whoever has it has a part of what opens it. Nothing: the rules of the gateway do not let it lead anywhere any more.
    url: Option<String>,
    /// Counts rotations.
    version: u64,
    #[schemars(extend("format" = "date-time"))]
    created_at: String,
}

/// What a look at the server has found.
#[derive(Serialize, JsonSchema)]
struct Discovered {
    /// Its authorization server.
    issuer: Option<String>,
    resource: Option<String>,
    scopes: Vec<String>,
    /// How a client is come by there: `client_id_metadata_document`, `dynamic` or `none`.
    registration: String,
    #[schemars(extend("format" = "date-time"))]
    at: String,
}

/// What is written, even if that is `null`.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

// === impl NewConfiguration ===

impl NewConfiguration {
    pub fn draft(self, actor: &str) -> Draft {
        Draft {
            owner: match self.organization {
                Some(organization) => Owner::Organization(organization),
                None => Owner::User(actor.to_owned()),
            },
            name: self.name,
            url: self.url,
            auth: self.auth.record(),
            sharing: self.sharing.unwrap_or(Sharing::SingleUser),
            passthrough: self.passthrough,
            scopes: self.scopes,
            headers: self.headers.into_iter().map(Header::record).collect(),
        }
    }
}

// === impl ChangedConfiguration ===

impl ChangedConfiguration {
    pub fn wish(self) -> Wish {
        Wish {
            name: self.name,
            url: self.url,
            auth: self.auth.map(NewAuth::record),
            sharing: self.sharing,
            passthrough: self.passthrough,
            scopes: self.scopes,
            headers: self.headers.map(|headers| headers.into_iter().map(Header::record).collect()),
            enabled: self.enabled,
        }
    }
}

impl Header {
    fn record(self) -> record::Header {
        record::Header { name: self.name, value: self.value }
    }
}

impl NewAuth {
    fn record(self) -> record::Auth {
        let secret = |header: SecretHeader| record::SecretHeader { name: header.name, value: header.value };
        match self {
            Self::None {} => record::Auth::None,
            Self::StaticHeaders { headers } => {
                record::Auth::StaticHeaders(headers.into_iter().map(secret).collect())
            }
            Self::OauthDynamic {} => record::Auth::OauthDynamic,
            Self::OauthStatic { client_id, client_secret } => {
                record::Auth::OauthStatic { client_id, client_secret }
            }
        }
    }
}

// === impl Configuration ===

impl Configuration {
    /// For who may change it.
    pub fn of(record: &record::Configuration, about: &About) -> Self {
        let header =
            |header: &record::Header| Header { name: header.name.clone(), value: header.value.clone() };
        Self {
            id: record.id.clone(),
            organization: record.owner.organization().map(str::to_owned),
            user: match &record.owner {
                Owner::User(user) => Some(user.clone()),
                Owner::Organization(_) => None,
            },
            name: record.name.clone(),
            url: record.url.clone(),
            auth: Auth::of(&record.auth),
            sharing: record.sharing,
            passthrough: record.passthrough,
            scopes: record.scopes.clone(),
            headers: record.headers.iter().map(header).collect(),
            enabled: record.enabled,
            route: Route {
                url: Around::of(&about.snapshot.config)
                    .and_then(|around| managed::route_of(record, around))
                    .map(|route| route.resource),
                version: record.route.version,
                created_at: time(record.route.created_at),
            },
            discovered: record.discovered.as_ref().map(Discovered::of),
            created_at: time(record.created_at),
            updated_at: time(record.updated_at),
        }
    }
}

impl Auth {
    fn of(record: &record::Auth) -> Self {
        match record {
            record::Auth::None => Self::None {},
            record::Auth::StaticHeaders(headers) => {
                Self::StaticHeaders { headers: headers.iter().map(|header| header.name.clone()).collect() }
            }
            record::Auth::OauthDynamic => Self::OauthDynamic {},
            record::Auth::OauthStatic { client_id, client_secret } => {
                Self::OauthStatic { client_id: client_id.clone(), has_client_secret: client_secret.is_some() }
            }
        }
    }
}

impl Discovered {
    fn of(record: &record::Discovered) -> Self {
        Self {
            issuer: record.issuer.clone(),
            resource: record.resource.clone(),
            scopes: record.scopes.clone(),
            registration: record.registration.clone(),
            at: time(record.at),
        }
    }
}
