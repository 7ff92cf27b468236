//! `postern events`.
use std::process::ExitCode;

use super::access::Access;
use super::remote::Extent;
use super::table::{Column, items, table, text};
use clap::Args;

#[derive(Args)]
#[group(skip)]
pub struct Events {
    #[command(flatten)]
    access: Access,
    /// Of this organisation, by its id.
    #[arg(long = "org", value_name = "ID")]
    organization: Option<String>,
    /// About this configuration, by its id.
    #[arg(long, value_name = "ID")]
    configuration: Option<String>,
    /// Of what this user, or this service account, has asked for.
    #[arg(long, value_name = "NAME")]
    actor: Option<String>,
    /// Of this kind, like configuration.create.
    #[arg(long)]
    action: Option<String>,
    /// That came to this.
    #[arg(long, value_parser = ["success", "failure", "blocked"])]
    outcome: Option<String>,
    /// So many at most.
    #[arg(long, default_value = "50", value_parser = clap::value_parser!(u16).range(1..))]
    limit: u16,
    /// Go on from where an answer ended: its `next`.
    #[arg(long)]
    cursor: Option<String>,
}

const EVENT: &[Column] = &[
    ("AT", |event| text(event, "/at")),
    ("ACTOR", |event| text(event, "/actor")),
    ("ACTION", |event| text(event, "/action")),
    ("OUTCOME", |event| text(event, "/outcome")),
    ("ORGANISATION", |event| text(event, "/organization")),
    ("CONFIGURATION", |event| text(event, "/configuration")),
    ("USER", |event| text(event, "/user")),
    ("REQUEST", |event| text(event, "/request_id")),
    ("REASON", |event| text(event, "/reason")),
];

impl Events {
    pub fn run(self) -> ExitCode {
        let Self { access, organization, configuration, actor, action, outcome, limit, cursor } = self;
        let query = [
            ("organization", organization.as_deref()),
            ("configuration", configuration.as_deref()),
            ("actor", actor.as_deref()),
            ("action", action.as_deref()),
            ("outcome", outcome.as_deref()),
        ];
        let extent = Extent::Some { limit: usize::from(limit), cursor: cursor.as_deref() };
        access.run(
            |answer| table(items(&answer.value), EVENT, "no events"),
            async |remote| remote.list(&["events"], &query, extent).await,
        )
    }
}
