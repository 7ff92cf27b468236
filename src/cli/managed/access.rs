//! Which Postern a command talks to, who it is there, and how the answer is shown: the options that all of these commands have.
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use zeroize::Zeroizing;

use super::remote::{Answer, Failure, Remote};
use crate::cli::{BAD_CONFIG, eprintln, failed, println};
use crate::config;

/// A command was called in a way that cannot be meant; as clap has it.
const USAGE: u8 = 2;
const VARIABLE: &str = "POSTERN_TOKEN";
/// Of systemd (`LoadCredential=`).
const CREDENTIAL: &str = "postern-token";
/// In place of a file: standard input.
const STDIN: &str = "-";
/// Of files with secrets, bytes.
const LONGEST_SECRET: u64 = 64 * 1024;

#[derive(Args)]
#[group(skip)]
pub struct Access {
    /// The running Postern, like https://mcp.example.com. Without: `server.public_url` of the configuration file.
    #[arg(long, env = "POSTERN_SERVER", value_name = "URL")]
    server: Option<String>,
    /// The configuration file.
    #[arg(short, long, env = "POSTERN_CONFIG", default_value = "/etc/postern/postern.yaml")]
    config: PathBuf,
    /// The file with the token. Without: the variable POSTERN_TOKEN, else $CREDENTIALS_DIRECTORY/postern-token.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Print the API's answer, with the version where there is one.
    #[arg(long)]
    json: bool,
}

impl Access {
    /// Asks, and prints what came of it: as `show` says it for people, or as it is.
    pub fn run(
        &self,
        show: impl FnOnce(&Answer) -> String,
        ask: impl AsyncFnOnce(&Remote) -> Result<Answer, Failure>,
    ) -> ExitCode {
        let asked = self.asked(ask);
        match asked {
            Ok(answer) if !self.json => println(&show(&answer)),
            Ok(Answer { value: Value::Null, .. }) => ExitCode::SUCCESS,
            Ok(answer) => println(&serde_json::to_string_pretty(&answer.document()).unwrap_or_default()),
            Err(Failure::Usage(why)) => {
                eprintln(&format!("postern: {why}"));
                ExitCode::from(USAGE)
            }
            Err(Failure::Config(report)) => {
                eprintln(&report.to_string());
                ExitCode::from(BAD_CONFIG)
            }
            Err(failure) => failed(&failure.to_string()),
        }
    }

    fn asked(&self, ask: impl AsyncFnOnce(&Remote) -> Result<Answer, Failure>) -> Result<Answer, Failure> {
        rustls::crypto::ring::default_provider().install_default().ok();
        let server = match &self.server {
            Some(server) => server.clone(),
            None => config::public_url(&self.config).map_err(Failure::Config)?,
        };
        let remote = Remote::new(&server, &self.token()?)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::Usage(error.to_string()))?;
        runtime.block_on(ask(&remote))
    }

    /// Never from an argument: those are for everybody on the machine to see.
    fn token(&self) -> Result<SecretString, Failure> {
        if let Some(file) = &self.token_file {
            return secret(file);
        }
        if let Ok(token) = std::env::var(VARIABLE) {
            return Ok(SecretString::from(token));
        }
        let directory = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        match directory.map(|directory| directory.join(CREDENTIAL)).filter(|file| file.exists()) {
            Some(file) => secret(&file),
            None => Err(Failure::Usage(format!(
                "no token: give --token-file FILE, or set {VARIABLE}; \
                 `postern service-accounts create NAME --api SCOPE` makes one"
            ))),
        }
    }
}

/// Reads a secret from a file or, by the name `-`, from standard input. The end of its line is not part of it.
pub fn secret(file: &Path) -> Result<SecretString, Failure> {
    let mut text = Zeroizing::new(String::new());
    let is_stdin = file.to_str() == Some(STDIN);
    let name = if is_stdin { "standard input".to_owned() } else { file.display().to_string() };
    let read = match is_stdin {
        true => std::io::stdin().take(LONGEST_SECRET).read_to_string(&mut text),
        false => {
            std::fs::File::open(file).and_then(|opened| opened.take(LONGEST_SECRET).read_to_string(&mut text))
        }
    };
    read.map_err(|error| Failure::Usage(format!("{name} cannot be read: {error}")))?;
    let secret = SecretString::from(text.trim_end_matches(['\r', '\n']));
    match secret.expose_secret().is_empty() {
        true => Err(Failure::Usage(format!("{name} is empty"))),
        false => Ok(secret),
    }
}

/// Whether several secrets are to come from standard input, of which there is one.
pub fn share_stdin<'a>(files: impl IntoIterator<Item = &'a Path>) -> bool {
    files.into_iter().filter(|file| file.to_str() == Some(STDIN)).count() > 1
}
