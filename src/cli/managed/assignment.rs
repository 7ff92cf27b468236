//! `postern assign`.
use std::process::ExitCode;

use clap::Subcommand;

use super::access::Access;
use super::configuration::CONFIGURATIONS;
use super::remote::{Call, Extent, user as in_path};
use super::table::{Column, items, properties, table, text};

#[derive(Subcommand)]
pub enum Assignment {
    /// List who may use a configuration.
    List {
        #[command(flatten)]
        access: Access,
        /// The id of the configuration.
        configuration: String,
    },
    /// Let a member of the organisation use a configuration.
    Add {
        #[command(flatten)]
        access: Access,
        /// The id of the configuration.
        configuration: String,
        /// Whom.
        user: String,
    },
    /// Take it from them, with their connection there.
    Remove {
        #[command(flatten)]
        access: Access,
        /// The id of the configuration.
        configuration: String,
        /// From whom.
        user: String,
    },
}

const ASSIGNMENTS: &str = "assignments";

const ASSIGNMENT: &[Column] = &[
    ("USER", |assignment| text(assignment, "/user")),
    ("SINCE", |assignment| text(assignment, "/created_at")),
];

impl Assignment {
    pub fn run(self) -> ExitCode {
        match self {
            Self::List { access, configuration } => access.run(
                |answer| table(items(&answer.value), ASSIGNMENT, "assigned to nobody"),
                async |remote| {
                    remote.list(&[CONFIGURATIONS, &configuration, ASSIGNMENTS], &[], Extent::All).await
                },
            ),
            Self::Add { access, configuration, user } => access.run(
                |answer| properties(&answer.value, ASSIGNMENT),
                async |remote| {
                    remote
                        .call(Call::put([CONFIGURATIONS, &configuration, ASSIGNMENTS, &in_path(&user)]))
                        .await
                },
            ),
            Self::Remove { access, configuration, user } => access.run(
                |_| format!("{user} cannot use {configuration} any more"),
                async |remote| {
                    remote
                        .call(Call::delete([CONFIGURATIONS, &configuration, ASSIGNMENTS, &in_path(&user)]))
                        .await
                },
            ),
        }
    }
}
