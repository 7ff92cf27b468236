//! `postern service-accounts`: tokens for programs that call without people.
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;

use super::{kept, with_config};
use crate::api::managed::scope::Scope;
use crate::oauth::server::service::Wanted;

#[derive(Subcommand)]
pub enum Command {
    /// List the accounts: their routes, for whom they act, and when they end.
    List {
        /// The configuration file.
        #[arg(short, long, env = "POSTERN_CONFIG", default_value = "/etc/postern/postern.yaml")]
        config: PathBuf,
    },
    /// Make an account and print its token, which is shown this once.
    Create {
        /// The configuration file.
        #[arg(short, long, env = "POSTERN_CONFIG", default_value = "/etc/postern/postern.yaml")]
        config: PathBuf,
        /// What it is called: letters, digits, `-`, `_` and `.`.
        name: String,
        /// A route that it may call; may be given several times.
        #[arg(long = "route", required_unless_present = "api")]
        routes: Vec<String>,
        /// Scopes of the management API, like `connections:read,connections:write`. Acting for nobody, it is an administrator.
        #[arg(long, value_delimiter = ',')]
        api: Vec<Scope>,
        /// The user whose connections it uses at routes with a credential per user. Without: nobody's.
        #[arg(long)]
        acts_for: Option<String>,
        /// After how long it ends, like `90d`.
        #[arg(long, default_value = "90d", value_parser = humantime::parse_duration)]
        expires: Duration,
    },
    /// Take an account back: within a second no instance takes its token.
    Revoke {
        /// The configuration file.
        #[arg(short, long, env = "POSTERN_CONFIG", default_value = "/etc/postern/postern.yaml")]
        config: PathBuf,
        /// Its name.
        name: String,
    },
}

impl Command {
    pub fn run(self) -> ExitCode {
        match self {
            Self::List { config } => with_config(&config, |config| kept::list_services(&config)),
            Self::Create { config, name, routes, api, acts_for, expires } => {
                let api = api.into_iter().map(|scope| scope.name().to_owned()).collect();
                let wanted = Wanted { name, routes, acts_for, api, lifetime: expires };
                with_config(&config, |config| kept::create_service(&config, wanted))
            }
            Self::Revoke { config, name } => {
                with_config(&config, |config| kept::revoke_service(&config, &name))
            }
        }
    }
}
