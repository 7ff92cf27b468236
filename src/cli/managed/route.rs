//! `postern route` and `postern token`: the address of an added server, and what is good there for a while.
use std::process::ExitCode;

use clap::Subcommand;

use super::access::Access;
use super::configuration::CONFIGURATIONS;
use super::remote::Call;
use super::table::text;

#[derive(Subcommand)]
pub enum Route {
    /// Give a configuration another address, and print it. The old one and every token for it are no good from then on;
    /// what users have connected stays.
    Rotate {
        #[command(flatten)]
        access: Access,
        /// The id of the configuration.
        configuration: String,
        /// Only if this is its version still.
        #[arg(long, value_name = "VERSION")]
        if_match: Option<u64>,
    },
}

#[derive(Subcommand)]
pub enum Token {
    /// Print an access token for the address of a configuration, good for some minutes; for the user that this command's own
    /// token acts for.
    Mint {
        #[command(flatten)]
        access: Access,
        /// The id of the configuration.
        configuration: String,
    },
}

impl Route {
    pub fn run(self) -> ExitCode {
        let Self::Rotate { access, configuration, if_match } = self;
        access.run(
            |answer| text(&answer.value, "/route/url"),
            async |remote| {
                remote.call(Call::post([CONFIGURATIONS, &configuration, "rotate"]).expecting(if_match)).await
            },
        )
    }
}

impl Token {
    pub fn run(self) -> ExitCode {
        let Self::Mint { access, configuration } = self;
        access.run(
            |answer| text(&answer.value, "/access_token"),
            async |remote| remote.call(Call::post([CONFIGURATIONS, &configuration, "token"])).await,
        )
    }
}
