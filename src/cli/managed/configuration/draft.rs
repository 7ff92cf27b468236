//! What an added server is to be, from the arguments and from the files that they name: no argument carries a secret.
use std::path::{Path, PathBuf};

use clap::Args;
use secrecy::SecretString;
use serde::Serialize;

use crate::cli::managed::access::{secret, share_stdin};
use crate::cli::managed::remote::Failure;
use crate::managed::record::{Header, SecretHeader};
use crate::store::record::expose_option;

#[derive(Args)]
#[group(skip)]
pub struct Draft {
    /// What people call it.
    name: String,
    /// Of the MCP server.
    url: String,
    /// The organisation that it belongs to, by its id. Without: whom the token acts for.
    #[arg(long = "org", value_name = "ID")]
    organization: Option<String>,
    #[command(flatten)]
    auth: Auth,
    /// For how many at a time. Without: an organisation's for many.
    #[arg(long, value_parser = ["single_user", "multi_user"])]
    sharing: Option<String>,
    /// Paths below the address lead to the server, too.
    #[arg(long)]
    passthrough: bool,
    /// A scope to ask for in place of what the server wants; may be given several times.
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// A header that goes along with every call, nothing secret; may be given several times.
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = pair)]
    headers: Vec<(String, String)>,
}

/// What is not said stays as it is.
#[derive(Args)]
#[group(skip)]
pub struct Change {
    /// What people are to call it.
    #[arg(long)]
    name: Option<String>,
    /// Of the MCP server. Another one gets no secret of the one before: give them again.
    #[arg(long)]
    url: Option<String>,
    #[command(flatten)]
    auth: Auth,
    /// A secret header that stays as it is beside those that --header-file gives; may be given several times.
    #[arg(long = "keep-header", value_name = "NAME", requires = "header_files")]
    kept_headers: Vec<String>,
    /// For how many at a time.
    #[arg(long, value_parser = ["single_user", "multi_user"])]
    sharing: Option<String>,
    /// Whether paths below the address lead to the server, too.
    #[arg(long)]
    passthrough: Option<bool>,
    /// The scopes to ask for in place of what the server wants; may be given several times.
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// Ask for what the server wants.
    #[arg(long, conflicts_with = "scopes")]
    server_scopes: bool,
    /// The headers that go along with every call, nothing secret; may be given several times.
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = pair)]
    headers: Vec<(String, String)>,
    /// Nothing goes along with calls any more.
    #[arg(long, conflicts_with = "headers")]
    no_headers: bool,
}

#[derive(Args)]
#[group(skip)]
struct Auth {
    /// How the server is authorized to. Without: as the other options say.
    #[arg(long = "auth", value_parser = [NONE, STATIC_HEADERS, OAUTH_DYNAMIC, OAUTH_STATIC])]
    mode: Option<String>,
    /// A header with a secret that every call carries, and the file with its value (`-`: standard input); may be given
    /// several times.
    #[arg(long = "header-file", value_name = "NAME=FILE", value_parser = pair, conflicts_with = "client_id")]
    header_files: Vec<(String, String)>,
    /// A client that is registered at the server's authorization server.
    #[arg(long, value_name = "ID")]
    client_id: Option<String>,
    /// The file with its secret (`-`: standard input).
    #[arg(long, value_name = "FILE", requires = "client_id")]
    client_secret_file: Option<PathBuf>,
}

const NONE: &str = "none";
const STATIC_HEADERS: &str = "static_headers";
const OAUTH_DYNAMIC: &str = "oauth_dynamic";
const OAUTH_STATIC: &str = "oauth_static";

/// As the API takes it.
#[derive(Serialize)]
pub struct Wanted {
    #[serde(skip_serializing_if = "Option::is_none")]
    organization: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    auth: Option<WantedAuth>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sharing: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    passthrough: Option<bool>,
    /// `Some(None)`: what the server wants.
    #[serde(skip_serializing_if = "Option::is_none")]
    scopes: Option<Option<Vec<String>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    headers: Option<Vec<Header>>,
}

#[derive(Serialize)]
struct WantedAuth {
    mode: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    headers: Option<Vec<SecretHeader>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "expose_option")]
    client_secret: Option<SecretString>,
}

impl Draft {
    pub fn read(&self) -> Result<Wanted, Failure> {
        let usual = if self.organization.is_some() { "multi_user" } else { "single_user" };
        Ok(Wanted {
            organization: self.organization.clone(),
            name: Some(self.name.clone()),
            url: Some(self.url.clone()),
            auth: Some(self.auth.read(&[])?.unwrap_or_else(|| WantedAuth::of(OAUTH_DYNAMIC))),
            sharing: Some(self.sharing.clone().unwrap_or_else(|| usual.to_owned())),
            passthrough: Some(self.passthrough),
            scopes: some(&self.scopes).map(Some),
            headers: headers(&self.headers),
        })
    }
}

impl Change {
    pub fn read(&self) -> Result<Wanted, Failure> {
        let wanted = Wanted {
            organization: None,
            name: self.name.clone(),
            url: self.url.clone(),
            auth: self.auth.read(&self.kept_headers)?,
            sharing: self.sharing.clone(),
            passthrough: self.passthrough,
            scopes: if self.server_scopes { Some(None) } else { some(&self.scopes).map(Some) },
            headers: if self.no_headers { Some(Vec::new()) } else { headers(&self.headers) },
        };
        match wanted.says_nothing() {
            true => {
                Err(Failure::Usage("say what is to be otherwise: `postern config change --help`".to_owned()))
            }
            false => Ok(wanted),
        }
    }
}

impl Wanted {
    fn says_nothing(&self) -> bool {
        let Self { organization: _, name, url, auth, sharing, passthrough, scopes, headers } = self;
        name.is_none()
            && url.is_none()
            && auth.is_none()
            && sharing.is_none()
            && passthrough.is_none()
            && scopes.is_none()
            && headers.is_none()
    }
}

impl Auth {
    /// `None`: nothing is said of it. `kept`: secret headers whose values Postern has.
    fn read(&self, kept: &[String]) -> Result<Option<WantedAuth>, Failure> {
        let files = self.header_files.iter().map(|(_, file)| Path::new(file));
        if share_stdin(files.chain(self.client_secret_file.as_deref())) {
            return Err(Failure::Usage("standard input has room for one secret".to_owned()));
        }
        let implied = match (&self.client_id, self.header_files.is_empty()) {
            (Some(_), _) => Some(OAUTH_STATIC),
            (None, false) => Some(STATIC_HEADERS),
            (None, true) => None,
        };
        let Some(mode) = self.mode.as_deref().or(implied) else { return Ok(None) };
        let what = match mode {
            STATIC_HEADERS => "--header-file",
            OAUTH_STATIC => "--client-id",
            _ => "neither --header-file nor --client-id",
        };
        let fits = matches!(
            (mode, implied),
            (STATIC_HEADERS, Some(STATIC_HEADERS))
                | (OAUTH_STATIC, Some(OAUTH_STATIC))
                | (NONE | OAUTH_DYNAMIC, None)
        );
        if !fits {
            return Err(Failure::Usage(format!("--auth {mode} goes with {what}")));
        }
        let mut wanted = WantedAuth::of(mode);
        if mode == STATIC_HEADERS {
            let given = self
                .header_files
                .iter()
                .map(|(name, file)| Ok(SecretHeader { name: name.clone(), value: secret(Path::new(file))? }));
            let kept = kept.iter().map(|name| Ok(SecretHeader { name: name.clone(), value: "".into() }));
            wanted.headers = Some(given.chain(kept).collect::<Result<_, Failure>>()?);
        }
        wanted.client_id = self.client_id.clone();
        wanted.client_secret = self.client_secret_file.as_deref().map(secret).transpose()?;
        Ok(Some(wanted))
    }
}

impl WantedAuth {
    fn of(mode: &str) -> Self {
        Self { mode: mode.to_owned(), headers: None, client_id: None, client_secret: None }
    }
}

fn headers(written: &[(String, String)]) -> Option<Vec<Header>> {
    let all = written.iter().map(|(name, value)| Header { name: name.clone(), value: value.clone() });
    some(&all.collect::<Vec<_>>())
}

/// Options that were given at least once.
fn some<T: Clone>(given: &[T]) -> Option<Vec<T>> {
    (!given.is_empty()).then(|| given.to_vec())
}

fn pair(written: &str) -> Result<(String, String), String> {
    match written.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}
