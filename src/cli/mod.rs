//! The command line: one function per command, exit codes that scripts can rely on.
mod agent;
mod convert;
mod demo;
mod doctor;
mod kept;
mod managed;
mod password;
mod policy;
mod running;
mod service_accounts;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use secrecy::ExposeSecret;

use crate::config::{self, Config, Report, Source};
use crate::{seal, server, telemetry};

pub use agent::ROUTE as AGENT_ROUTE;

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
        /// Also try the store: that it can be reached, read and written, and opens with the sealing keys.
        #[arg(long)]
        online: bool,
    },
    /// Have the running Postern read its configuration again; on a shared store, every instance.
    ///
    /// On the embedded store the one that runs is waited for, and what it says decides the exit code. On a shared store each
    /// instance reads the file that it was started with, within a second or as soon as it reaches the store, and this command knows
    /// of none how it went: ask each for its metrics `postern_config_reload_failed` (1: its file was refused, the configuration
    /// before is in use) and `postern_config_reload_success_timestamp_seconds`, or read its log. `postern upgrade` beside an
    /// instance waits for that one.
    Reload {
        /// The configuration file, for the store.
        #[arg(short, long, env = "POSTERN_CONFIG", default_value = "/etc/postern/postern.yaml")]
        config: PathBuf,
    },
    /// Have the running Postern take in what has changed, without a refused connection: the configuration, or by a new
    /// process the program and what needs one.
    Upgrade {
        /// The configuration file, for the data directory.
        #[arg(short, long, env = "POSTERN_CONFIG", default_value = "/etc/postern/postern.yaml")]
        config: PathBuf,
        /// By a new process in any case.
        #[arg(long)]
        always: bool,
    },
    /// Print the JSON schema of the configuration.
    Schema,
    /// Everything in one process on this computer: gateway, an MCP server that demands its own token, one user.
    Demo {
        /// Another configuration than the built-in one (conf/demo.yaml).
        #[arg(short, long)]
        config: Option<PathBuf>,
        /// Also a program without people: it gets a service account and calls a tool with it.
        #[arg(long)]
        agent: bool,
    },
    /// Walk the way to an upstream's authorization as the gateway would, and say where it ends, why, and what to change.
    ///
    /// Needs no running gateway and no store; changes nothing. Exit code 0 when an authorization could begin or none is
    /// needed, 1 when not.
    #[command(after_long_help = doctor::JSON)]
    Doctor {
        /// The configuration file.
        #[arg(short, long, env = "POSTERN_CONFIG", default_value = "/etc/postern/postern.yaml")]
        config: PathBuf,
        /// The name of the route.
        route: String,
        /// Where Postern would register, register for real, and delete that again where it can be done (RFC 7592).
        #[arg(long)]
        register: bool,
        /// Print one JSON object; `--help` describes it.
        #[arg(long)]
        json: bool,
    },
    /// The rules on who may call what.
    #[command(subcommand)]
    Policy(Policy),
    /// Keys.
    #[command(subcommand)]
    Keys(Keys),
    /// The store.
    #[command(subcommand)]
    Store(StoreCommand),
    /// Users' connections to upstream servers.
    #[command(subcommand)]
    Connections(Connections),
    /// Users: who there is, and who is kept out.
    #[command(subcommand)]
    Users(Users),
    /// Programs that call without people, each with a token that you make for it.
    #[command(subcommand)]
    ServiceAccounts(service_accounts::Command),
    #[command(flatten)]
    Managed(Box<managed::Managed>),
    /// Print what another gateway's file says as routes of Postern's; what they cannot say goes to standard error.
    ///
    /// Secrets become variables, which comments name. Exit code 0 when nothing is lost, 1 when something is, 78 when the file
    /// cannot be read.
    Convert {
        /// Whose file it is.
        #[arg(long)]
        from: convert::Origin,
        /// The file, in YAML.
        file: PathBuf,
    },
    /// Read a password from standard input and print its hash for login.local.users.
    HashPassword,
}

#[derive(Subcommand)]
enum Keys {
    /// Print a new sealing key: 32 random bytes in base64.
    Generate,
    /// List the sealing keys, how many records each of them seals, and the keys of access tokens.
    List {
        /// The configuration file.
        #[arg(short, long, env = "POSTERN_CONFIG", default_value = "/etc/postern/postern.yaml")]
        config: PathBuf,
    },
    /// Move every record under the first sealing key and report what is left; then the others may go.
    Rotate {
        /// The configuration file.
        #[arg(short, long, env = "POSTERN_CONFIG", default_value = "/etc/postern/postern.yaml")]
        config: PathBuf,
        /// Add a key for access tokens instead, which takes over within seconds at every instance.
        #[arg(long)]
        access_tokens: bool,
    },
}

#[derive(Subcommand)]
enum Policy {
    /// Try the rules of a configuration on cases (docs/policy.md); opens no port, changes nothing. Exit code 1 when one is
    /// decided otherwise than it says.
    Test {
        /// The configuration file.
        #[arg(short, long, env = "POSTERN_CONFIG", default_value = "/etc/postern/postern.yaml")]
        config: PathBuf,
        /// The cases, in YAML.
        cases: PathBuf,
    },
}

#[derive(Subcommand)]
enum StoreCommand {
    /// Copy everything from the store of one configuration into that of another, and compare the counts. May be run again.
    Migrate {
        /// The configuration with the store to copy from.
        #[arg(short, long, env = "POSTERN_CONFIG", default_value = "/etc/postern/postern.yaml")]
        config: PathBuf,
        /// The configuration with the store to copy into; with the same sealing keys.
        #[arg(long)]
        to: PathBuf,
    },
}

#[derive(Subcommand)]
enum Users {
    /// List the users, and whether they are blocked.
    List {
        /// The configuration file.
        #[arg(short, long, env = "POSTERN_CONFIG", default_value = "/etc/postern/postern.yaml")]
        config: PathBuf,
    },
    /// Keep a user out: within a second no instance takes a sign-in, a session or a token of theirs. Connections stay.
    Block {
        /// The configuration file.
        #[arg(short, long, env = "POSTERN_CONFIG", default_value = "/etc/postern/postern.yaml")]
        config: PathBuf,
        /// Whom.
        user: String,
    },
    /// Let a user in again.
    Unblock {
        /// The configuration file.
        #[arg(short, long, env = "POSTERN_CONFIG", default_value = "/etc/postern/postern.yaml")]
        config: PathBuf,
        /// Whom.
        user: String,
    },
}

#[derive(Subcommand)]
enum Connections {
    /// List who is connected to which route, and how that stands.
    List {
        /// The configuration file.
        #[arg(short, long, env = "POSTERN_CONFIG", default_value = "/etc/postern/postern.yaml")]
        config: PathBuf,
        /// Of this user only.
        #[arg(long)]
        user: Option<String>,
    },
    /// End a connection at every instance, and its tokens at the authorization server where that can be done.
    Disconnect {
        /// The configuration file.
        #[arg(short, long, env = "POSTERN_CONFIG", default_value = "/etc/postern/postern.yaml")]
        config: PathBuf,
        /// Whose.
        #[arg(long)]
        user: String,
        /// At which route.
        #[arg(long)]
        route: String,
    },
}

/// Does what the arguments say.
pub fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run { config: path } => {
            let source = Source::file(path, Vec::new());
            with(source.read(), |config| {
                telemetry::log();
                started(server::run(config, source))
            })
        }
        Command::Validate { config, online } => with_config(&config, |config| {
            warn(&config);
            let fine = println(&format!(
                "configuration is fine: {} route(s), {} listener(s)",
                config.routes.len() + config.tcp.len(),
                config.server.listen.len() + config.tcp.len()
            ));
            if online { kept::check(&config) } else { fine }
        }),
        Command::Reload { config } => with_config(&config, |config| running::reload(&config)),
        Command::Upgrade { config, always } => {
            with_config(&config, |config| running::upgrade(&config, always))
        }
        Command::Schema => println(&serde_json::to_string_pretty(&config::schema()).unwrap_or_default()),
        Command::Demo { config, agent } => demo::demo(config.as_deref(), agent),
        Command::Doctor { config, route, register, json } => {
            with_config(&config, |config| doctor::doctor(&config, &route, register, json))
        }
        Command::Policy(Policy::Test { config, cases }) => {
            with_config(&config, |config| policy::test(&config, &cases))
        }
        Command::Keys(Keys::Generate) => match seal::generate() {
            Ok(key) => println(key.expose_secret()),
            Err(error) => failed(&error.to_string()),
        },
        Command::Keys(Keys::List { config }) => with_config(&config, |config| kept::list_keys(&config)),
        Command::Keys(Keys::Rotate { config, access_tokens: true }) => {
            with_config(&config, |config| kept::rotate_access_tokens(&config))
        }
        Command::Keys(Keys::Rotate { config, .. }) => {
            with_config(&config, |config| kept::rotate_keys(&config))
        }
        Command::Store(StoreCommand::Migrate { config, to }) => {
            with_config(&config, |from| with_config(&to, |to| kept::migrate(&from, &to)))
        }
        Command::Connections(Connections::List { config, user }) => {
            with_config(&config, |config| kept::list_connections(&config, user.as_deref()))
        }
        Command::Connections(Connections::Disconnect { config, user, route }) => {
            with_config(&config, |config| kept::disconnect(&config, &user, &route))
        }
        Command::Users(Users::List { config }) => with_config(&config, |config| kept::list_users(&config)),
        Command::Users(Users::Block { config, user }) => {
            with_config(&config, |config| kept::block(&config, &user))
        }
        Command::Users(Users::Unblock { config, user }) => {
            with_config(&config, |config| kept::unblock(&config, &user))
        }
        Command::ServiceAccounts(command) => command.run(),
        Command::Managed(command) => managed::run(*command),
        Command::Convert { from, file } => convert::convert(from, &file),
        Command::HashPassword => password::hash(),
    }
}

fn with_config(path: &Path, then: impl FnOnce(Config) -> ExitCode) -> ExitCode {
    with(config::load(path), then)
}

fn with(loaded: Result<Config, Report>, then: impl FnOnce(Config) -> ExitCode) -> ExitCode {
    match loaded {
        Ok(config) => then(config),
        Err(report) => {
            eprintln(&report.to_string());
            ExitCode::from(BAD_CONFIG)
        }
    }
}

/// What the configuration had better say otherwise.
fn warn(config: &Config) {
    for line in config.warnings.to_string().lines() {
        eprintln(&format!("warning: {line}"));
    }
}

fn started(outcome: Result<(), server::StartError>) -> ExitCode {
    telemetry::output::flush();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
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
