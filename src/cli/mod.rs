//! The command line: one function per command, exit codes that scripts can rely on.
mod demo;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use argon2::{Argon2, PasswordHasher};
use clap::{Parser, Subcommand};
use secrecy::{ExposeSecret, SecretString};

use crate::config::{self, Config};
use crate::{seal, server, telemetry};

/// A bad configuration (`EX_CONFIG` of sysexits.h).
const BAD_CONFIG: u8 = 78;

/// MCP gateway: clients sign in once, each user's own token reaches every MCP server behind it.
#[derive(Parser)]
#[command(name = "postern", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve as the configuration says.
    Run {
        /// The configuration file.
        #[arg(short, long, env = "POSTERN_CONFIG", default_value = "/etc/postern/postern.yaml")]
        config: PathBuf,
    },
    /// Read and check a configuration; open no port, change nothing. Exit code 78 if it is wrong.
    Validate {
        /// The configuration file.
        #[arg(short, long, env = "POSTERN_CONFIG", default_value = "/etc/postern/postern.yaml")]
        config: PathBuf,
    },
    /// Print the JSON schema of the configuration.
    Schema,
    /// Everything in one process on this computer: gateway, an MCP server that demands its own token, one user.
    Demo {
        /// Another configuration than the built-in one (conf/demo.yaml).
        #[arg(short, long)]
        config: Option<PathBuf>,
    },
    /// Keys.
    #[command(subcommand)]
    Keys(Keys),
    /// Read a password from standard input and print its hash for login.local.users.
    HashPassword,
}

#[derive(Subcommand)]
enum Keys {
    /// Print a new sealing key: 32 random bytes in base64.
    Generate,
}

/// Does what the arguments say.
pub fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run { config } => with_config(&config, |config| {
            telemetry::log();
            started(server::run(config))
        }),
        Command::Validate { config } => with_config(&config, |config| {
            println(&format!(
                "configuration is fine: {} route(s), {} listener(s)",
                config.routes.len(),
                config.server.listen.len()
            ))
        }),
        Command::Schema => println(&serde_json::to_string_pretty(&config::schema()).unwrap_or_default()),
        Command::Demo { config } => demo::demo(config.as_deref()),
        Command::Keys(Keys::Generate) => match seal::generate() {
            Ok(key) => println(key.expose_secret()),
            Err(error) => failed(&error.to_string()),
        },
        Command::HashPassword => hash_password(),
    }
}

fn with_config(path: &Path, then: impl FnOnce(Config) -> ExitCode) -> ExitCode {
    match config::load(path) {
        Ok(config) => then(config),
        Err(report) => {
            eprintln(&report.to_string());
            ExitCode::from(BAD_CONFIG)
        }
    }
}

fn started(outcome: Result<(), server::StartError>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error.to_string()),
    }
}

fn hash_password() -> ExitCode {
    let mut line = String::new();
    if let Err(error) = std::io::stdin().read_line(&mut line) {
        return failed(&format!("password cannot be read from standard input: {error}"));
    }
    let password = SecretString::from(line.trim_end_matches(['\r', '\n']).to_owned());
    if password.expose_secret().is_empty() {
        return failed(
            "give the password on standard input, for example: printf %s \"$PASSWORD\" | postern hash-password",
        );
    }
    match Argon2::default().hash_password(password.expose_secret().as_bytes()) {
        Ok(hash) => println(&hash.to_string()),
        Err(error) => failed(&error.to_string()),
    }
}

fn failed(message: &str) -> ExitCode {
    eprintln(&format!("postern: {message}"));
    ExitCode::FAILURE
}

/// A reader that has gone away is no reason to panic.
fn println(text: &str) -> ExitCode {
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn eprintln(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
