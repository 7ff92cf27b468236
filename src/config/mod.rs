//! The configuration: the file as written (`file`) → the configuration as used (`checked`).
//!
//! Sits at the bottom of the house: everything above takes the checked values and never asks again.
//! Loading reads the file and what it names (secrets, certificates) and has no other effect: no port is
//! opened, nothing is created. The path of a file is YAML text → positioned tree (`document`) → held
//! against the schema of the types (`shape`) → typed (`file`) → checked and resolved (`checked`), and every
//! stage adds to one [`Report`].

mod attributes;
mod calls;
mod checked;
mod clients;
mod credential;
mod document;
mod expiry;
mod file;
mod id_jag;
mod kind;
mod limits;
mod login;
mod managed;
mod oidc;
mod outbound;
mod policy;
mod pool;
mod profile;
mod proxies;
mod reload;
mod report;
mod route;
mod secret;
mod server;
mod shape;
mod source;
mod store;
mod tcp;
mod telemetry;
#[cfg(test)]
mod tests;
mod tls;
mod trusted;

use std::path::Path;

pub use attributes::Attributes;
pub use calls::{CallLimit, Per, Rate};
pub use checked::{ACCESS_TOKEN_TTL_MAX, Config, OauthClient, OauthServer};
pub use clients::{Cimd, ListedAuthentication, ListedClient, Machine, RELAYED};
pub use credential::{
    Actor, AwsSigv4, Credential, Custom, EntraObo, Exchanger, IdJag, OauthCredential, RolesHeld, Subject,
    TENANT, TokenExchange, UserHeader, is_settable, is_tenant,
};
pub use expiry::Expiry;
pub use file::{
    AccessLog, AccessTokenFormat, AuditLog, ClientAuthMethod, ExchangeForm, ForwardedHeader, InjectedToken,
    RefreshRotation, TokenEndpointAuthMethod,
};
pub use kind::Kind;
pub use limits::Limits;
pub use login::{Login, User};
pub use managed::Managed;
pub use oidc::{IdentityProvider, issuer_of};
pub use outbound::Outbound;
pub use policy::{Effect, Policy, Rule};
pub use pool::{Balance, BalanceOn, Health, Peer, Pool, Probe};
pub use profile::Profile;
pub use reload::Fixed;
pub use report::{Key, Position, Problem, Report};
pub use route::{MANAGED, Route, Upstream};
pub use secret::{Environment, Process, SealingKey};
pub use server::{Listen, PublicUrl, Server};
pub use source::Source;
pub use store::{Address, ClientCertificate, Redis, Store, Topology};
pub use tcp::TcpRoute;
pub use telemetry::Traces;
pub use tls::{Certificate, ClientAuthorities, Handshake};
pub use trusted::{Introspection, TrustedIssuer};

/// Reads the file at `path`, checks it and resolves its secrets from this process's environment.
///
/// # Errors
/// Every problem of the file, or that it cannot be read.
pub fn load(path: &Path) -> Result<Config, Report> {
    load_with(path, &[])
}

/// The same for a program that has further strategies, of these names (`credential.kind: custom`).
///
/// # Errors
/// As [`load`].
pub fn load_with(path: &Path, strategies: &[String]) -> Result<Config, Report> {
    load_in(path, &Process, strategies)
}

fn load_in(path: &Path, environment: &dyn Environment, strategies: &[String]) -> Result<Config, Report> {
    let name = path.display().to_string();
    parse_with(&read(path, &name)?, &name, environment, strategies)
}

/// `server.public_url` of the file at `path`, as written: for whoever only wants to know where Postern is, and may not see
/// the secrets that the file names.
///
/// # Errors
/// That the file cannot be read, or does not say it.
pub fn public_url(path: &Path) -> Result<String, Report> {
    let name = path.display().to_string();
    let document = document::read(&read(path, &name)?, &name)?;
    document.text(&["server", "public_url"]).map(str::to_owned).ok_or_else(|| {
        Report::whole(
            &name,
            "has no server.public_url".to_owned(),
            "write the URL under which clients reach Postern",
        )
    })
}

fn read(path: &Path, name: &str) -> Result<String, Report> {
    let bytes = std::fs::read(path).map_err(|error| {
        Report::whole(name, format!("cannot be read: {error}"), "give the path of a configuration file")
    })?;
    String::from_utf8(bytes)
        .map_err(|_| Report::whole(name, "is not UTF-8 text".to_owned(), "save the file as UTF-8"))
}

/// Checks the configuration `text`; `name` stands in front of every problem.
///
/// # Errors
/// Every problem of the text.
pub fn parse(text: &str, name: &str, environment: &dyn Environment) -> Result<Config, Report> {
    parse_with(text, name, environment, &[])
}

fn parse_with(
    text: &str,
    name: &str,
    environment: &dyn Environment,
    strategies: &[String],
) -> Result<Config, Report> {
    let document = document::read(text, name)?;
    let shaped = shape::check(&document, &schema());
    if shaped.broken {
        return Err(Report::new(name, shaped.problems));
    }
    // The walk has just compared the tree with these types; a failure here is a gap in `shape`.
    let fixed = Fixed::of(&shaped.json);
    let file: file::File = serde_json::from_value(shaped.json)
        .map_err(|error| Report::whole(name, format!("does not fit the schema: {error}"), ""))?;
    checked::check(file, fixed, &document, (environment, strategies), shaped.problems, name)
}

/// JSON schema (draft 2020-12) of the file, for editors and `postern schema`.
#[must_use]
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(file::File).to_value()
}
