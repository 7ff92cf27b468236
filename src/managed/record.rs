//! What is kept of managed connections. Every record has a version in the store; what is deleted stays as a mark that it
//! was there, without its secrets.
use std::fmt;

use schemars::JsonSchema;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::seal;
use crate::store::Kind;
use crate::store::record::{Typed, expose, expose_option};

/// An organisation (store record, found by its id).
#[derive(Clone, Serialize, Deserialize)]
pub struct Organization {
    /// [`ORGANIZATION`] and random characters.
    pub id: String,
    pub name: String,
    /// Seconds since the epoch.
    pub created_at: u64,
    #[serde(default)]
    pub deleted_at: Option<u64>,
}

/// What the id of an organisation begins with.
pub const ORGANIZATION: &str = "org-";
/// What the id of a configuration begins with. No route of the configuration file has a dot in its name.
pub const CONFIGURATION: &str = "mc.";

/// What a member may do in an organisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Use what is assigned to them.
    Member,
    /// Also change configurations, members and assignments.
    Administrator,
}

/// Somebody's place in an organisation (store record, found by [`pair`] of both).
#[derive(Clone, Serialize, Deserialize)]
pub struct Membership {
    pub organization: String,
    pub user: String,
    pub role: Role,
    pub created_at: u64,
}

/// Whose a configuration is, which is also in whose context its route is called.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    User(String),
    Organization(String),
}

/// An MCP server that somebody has added (store record, found by its id).
#[derive(Clone, Serialize, Deserialize)]
pub struct Configuration {
    /// [`CONFIGURATION`] and random characters; the name of its route.
    pub id: String,
    pub owner: Owner,
    pub name: String,
    /// Of the MCP server.
    pub url: String,
    pub auth: Auth,
    pub sharing: Sharing,
    /// Who has it, where it is for one user at a time: whoever writes their name here first.
    #[serde(default)]
    pub slot: Option<String>,
    /// Whether paths below the route's lead to the server too.
    pub passthrough: bool,
    /// Asked for at the server's authorization server in place of what it wants itself.
    #[serde(default)]
    pub scopes: Option<Vec<String>>,
    /// Sent along with every call; nothing secret.
    #[serde(default)]
    pub headers: Vec<Header>,
    pub enabled: bool,
    /// Grows with every change after which nobody's token or connection is good any more, and with every rotation.
    pub revision: u64,
    pub route: ConnectRoute,
    /// What was found out about the server when it was last looked at.
    #[serde(default)]
    pub discovered: Option<Discovered>,
    pub created_at: u64,
    pub updated_at: u64,
    #[serde(default)]
    pub deleted_at: Option<u64>,
}

/// How the server wants to be authorized.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Auth {
    None,
    /// The same for everybody.
    StaticHeaders(Vec<SecretHeader>),
    /// Each user's own token; Postern registers itself (RFC 7591).
    OauthDynamic,
    /// The same, with a client that somebody has registered.
    OauthStatic {
        client_id: String,
        #[serde(serialize_with = "expose_option")]
        client_secret: Option<SecretString>,
    },
}

/// How many may be assigned at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sharing {
    SingleUser,
    MultiUser,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    pub name: String,
    pub value: String,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct SecretHeader {
    pub name: String,
    #[serde(serialize_with = "expose")]
    pub value: SecretString,
}

/// The last part of the address of a configuration's route.
#[derive(Clone, Serialize, Deserialize)]
pub struct ConnectRoute {
    /// 256 random bits in base64url.
    #[serde(serialize_with = "expose")]
    pub key: SecretString,
    /// Counts rotations, from 1.
    pub version: u64,
    pub created_at: u64,
}

/// What a look at a server has found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discovered {
    /// The authorization server; `None`: the server asked for no token.
    pub issuer: Option<String>,
    /// As in its metadata.
    pub resource: Option<String>,
    /// Of its challenge.
    pub scopes: Vec<String>,
    /// How a client of its own is come by there: `client_id_metadata_document`, `dynamic` or `none`.
    pub registration: String,
    pub at: u64,
}

/// Somebody's use of a configuration (store record, found by [`pair`] of both): that it is assigned, and the instance that
/// their tokens and connection belong to.
#[derive(Clone, Serialize, Deserialize)]
pub struct Assignment {
    pub configuration: String,
    pub user: String,
    /// Random; another one after every removal.
    pub instance: String,
    pub created_at: u64,
}

impl Typed for Organization {
    const KIND: Kind = Kind::Organization;
}

impl Typed for Membership {
    const KIND: Kind = Kind::Membership;
}

impl Typed for Configuration {
    const KIND: Kind = Kind::Configuration;
}

impl Typed for Assignment {
    const KIND: Kind = Kind::Assignment;
}

/// The key of what belongs to two.
pub fn pair(one: &str, other: &str) -> String {
    format!("{one}\0{other}")
}

/// Both halves of [`pair`].
pub fn halves(key: &str) -> Option<(&str, &str)> {
    key.split_once('\0')
}

/// The short name of a user in addresses, which says nothing of who it is.
pub fn user_id(user: &str) -> String {
    let digest = seal::digest(&format!("managed user\0{user}"));
    format!("u-{}", digest.get(..22).unwrap_or_default())
}

// === impl Owner ===

impl Owner {
    /// The execution context, and who it is, as in the address of a route.
    pub fn segments(&self) -> (&'static str, String) {
        match self {
            Self::User(user) => ("user", user_id(user)),
            Self::Organization(id) => ("org", id.clone()),
        }
    }

    pub fn organization(&self) -> Option<&str> {
        match self {
            Self::User(_) => None,
            Self::Organization(id) => Some(id),
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(user) => write!(formatter, "user:{user}"),
            Self::Organization(id) => write!(formatter, "organization:{id}"),
        }
    }
}

// === impl Configuration ===

impl Configuration {
    pub fn is_deleted(&self) -> bool {
        self.deleted_at.is_some()
    }

    /// Whether its address leads anywhere.
    pub fn is_served(&self) -> bool {
        self.enabled && !self.is_deleted()
    }

    /// Takes the secrets out; what is left says that it was there.
    pub fn wiped(self, now: u64) -> Self {
        let key = SecretString::default();
        Self {
            auth: match self.auth {
                Auth::StaticHeaders(_) => Auth::StaticHeaders(Vec::new()),
                Auth::OauthStatic { client_id, .. } => Auth::OauthStatic { client_id, client_secret: None },
                other => other,
            },
            slot: None,
            headers: Vec::new(),
            enabled: false,
            revision: self.revision + 1,
            route: ConnectRoute { key, ..self.route },
            updated_at: now,
            deleted_at: Some(now),
            ..self
        }
    }
}

// === impl Auth ===

impl Auth {
    /// As it is written.
    pub fn word(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::StaticHeaders(_) => "static_headers",
            Self::OauthDynamic => "oauth_dynamic",
            Self::OauthStatic { .. } => "oauth_static",
        }
    }

    /// Whether each user has a connection of their own.
    pub fn is_of_user(&self) -> bool {
        matches!(self, Self::OauthDynamic | Self::OauthStatic { .. })
    }
}
