//! `postern org` and `postern member`.
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;

use super::access::Access;
use super::remote::{Answer, Call, Extent, user as in_path};
use super::table::{Column, items, properties, table, text, versioned};

#[derive(Subcommand)]
pub enum Organization {
    /// List those that the token may know of.
    List {
        #[command(flatten)]
        access: Access,
    },
    /// Show one, with its version.
    Show {
        #[command(flatten)]
        access: Access,
        /// Its id, as `org list` says it.
        organization: String,
    },
    /// Make one. Whoever makes it administers it.
    Create {
        #[command(flatten)]
        access: Access,
        /// What people call it.
        name: String,
        /// Print its id alone.
        #[arg(short, long)]
        quiet: bool,
    },
    /// Give it another name.
    Rename {
        #[command(flatten)]
        access: Access,
        /// Its id, as `org list` says it.
        organization: String,
        /// What people are to call it.
        name: String,
        /// Only if this is its version still.
        #[arg(long, value_name = "VERSION")]
        if_match: Option<u64>,
    },
    /// Take it away with all that belongs to it: nobody gets anywhere by it from then on.
    Delete {
        #[command(flatten)]
        access: Access,
        /// Its id, as `org list` says it.
        organization: String,
        /// Only if this is its version still.
        #[arg(long, value_name = "VERSION")]
        if_match: Option<u64>,
    },
}

#[derive(Subcommand)]
pub enum Member {
    /// List the members of an organisation.
    List {
        #[command(flatten)]
        access: Access,
        /// The id of the organisation.
        organization: String,
    },
    /// Make somebody a member, or give them another role.
    Put {
        #[command(flatten)]
        access: Access,
        /// The id of the organisation.
        organization: String,
        /// Whom: the name of a local user, or issuer and subject joined by a bar.
        user: String,
        /// Members use what is assigned to them; administrators also change what there is, and who is there.
        #[arg(long, default_value = "member", value_parser = ["member", "administrator"])]
        role: String,
    },
    /// Take somebody out: what was assigned to them there, they cannot use from then on, and are disconnected from.
    Remove {
        #[command(flatten)]
        access: Access,
        /// The id of the organisation.
        organization: String,
        /// Whom.
        user: String,
    },
}

const ORGANIZATIONS: &str = "organizations";
const MEMBERS: &str = "members";

const ORGANIZATION: &[Column] = &[
    ("ID", |organization| text(organization, "/id")),
    ("NAME", |organization| text(organization, "/name")),
    ("CREATED", |organization| text(organization, "/created_at")),
];

const MEMBER: &[Column] = &[
    ("USER", |member| text(member, "/user")),
    ("ROLE", |member| text(member, "/role")),
    ("SINCE", |member| text(member, "/created_at")),
];

impl Organization {
    pub fn run(self) -> ExitCode {
        match self {
            Self::List { access } => access.run(
                |answer| table(items(&answer.value), ORGANIZATION, "no organisations"),
                async |remote| remote.list(&[ORGANIZATIONS], &[], Extent::All).await,
            ),
            Self::Show { access, organization } => {
                access.run(shown, async |remote| remote.call(Call::get([ORGANIZATIONS, &organization])).await)
            }
            Self::Create { access, name, quiet } => access.run(
                |answer| match quiet {
                    true => text(&answer.value, "/id"),
                    false => shown(answer),
                },
                async |remote| remote.call(Call::post([ORGANIZATIONS]).body(&json!({"name": name}))?).await,
            ),
            Self::Rename { access, organization, name, if_match } => access.run(shown, async |remote| {
                let call = Call::patch([ORGANIZATIONS, &organization]).expecting(if_match);
                remote.call(call.body(&json!({"name": name}))?).await
            }),
            Self::Delete { access, organization, if_match } => access.run(
                |_| format!("{organization} is gone, with all that belonged to it"),
                async |remote| {
                    remote.call(Call::delete([ORGANIZATIONS, &organization]).expecting(if_match)).await
                },
            ),
        }
    }
}

fn shown(answer: &Answer) -> String {
    versioned(answer, ORGANIZATION)
}

impl Member {
    pub fn run(self) -> ExitCode {
        match self {
            Self::List { access, organization } => access.run(
                |answer| table(items(&answer.value), MEMBER, "no members"),
                async |remote| remote.list(&[ORGANIZATIONS, &organization, MEMBERS], &[], Extent::All).await,
            ),
            Self::Put { access, organization, user, role } => access.run(
                |answer| properties(&answer.value, MEMBER),
                async |remote| {
                    let user = in_path(&user);
                    let call = Call::put([ORGANIZATIONS, &organization, MEMBERS, &user]);
                    remote.call(call.body(&json!({"role": role}))?).await
                },
            ),
            Self::Remove { access, organization, user } => access.run(
                |_| format!("{user} is no member of {organization} any more"),
                async |remote| {
                    remote.call(Call::delete([ORGANIZATIONS, &organization, MEMBERS, &in_path(&user)])).await
                },
            ),
        }
    }
}
