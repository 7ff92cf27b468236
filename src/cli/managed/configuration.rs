//! `postern config`.
mod draft;

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use self::draft::{Change, Draft};
use super::access::Access;
use super::remote::{Answer, Call, Extent};
use super::table::{Column, NOTHING, items, properties, table, text, versioned};

#[derive(Subcommand)]
pub enum Configuration {
    /// List those of an organisation, or one's own.
    List {
        #[command(flatten)]
        access: Access,
        /// The id of the organisation. Without: one's own.
        #[arg(long = "org", value_name = "ID")]
        organization: Option<String>,
    },
    /// Show one, with its address and its version.
    Show {
        #[command(flatten)]
        access: Access,
        /// Its id, as `config list` says it.
        configuration: String,
    },
    /// Look at an MCP server without adding it: what it wants, and whether Postern can get that.
    Discover {
        #[command(flatten)]
        access: Access,
        /// Of the MCP server.
        url: String,
    },
    /// Look at an MCP server and add it.
    Create {
        #[command(flatten)]
        access: Access,
        #[command(flatten)]
        draft: Draft,
        /// Print its id alone.
        #[arg(short, long)]
        quiet: bool,
    },
    /// Change one. Where another server, another client or other scopes come of it, everybody's tokens and connections end.
    Change {
        #[command(flatten)]
        access: Access,
        /// Its id, as `config list` says it.
        configuration: String,
        #[command(flatten)]
        change: Change,
        /// Only if this is its version still.
        #[arg(long, value_name = "VERSION")]
        if_match: Option<u64>,
    },
    /// Let it be used again.
    Enable {
        #[command(flatten)]
        access: Access,
        /// Its id, as `config list` says it.
        configuration: String,
        /// Only if this is its version still.
        #[arg(long, value_name = "VERSION")]
        if_match: Option<u64>,
    },
    /// Let nobody use it for now; connections and assignments stay.
    Disable {
        #[command(flatten)]
        access: Access,
        /// Its id, as `config list` says it.
        configuration: String,
        /// Only if this is its version still.
        #[arg(long, value_name = "VERSION")]
        if_match: Option<u64>,
    },
    /// Take it away: its secrets are gone, its address leads nowhere, everybody is disconnected.
    Delete {
        #[command(flatten)]
        access: Access,
        /// Its id, as `config list` says it.
        configuration: String,
        /// Only if this is its version still.
        #[arg(long, value_name = "VERSION")]
        if_match: Option<u64>,
    },
    /// List what the token's user may use: where it is, whether it is connected, and where to connect.
    Available {
        #[command(flatten)]
        access: Access,
    },
}

pub const CONFIGURATIONS: &str = "configurations";

const LISTED: &[Column] = &[
    ("ID", |configuration| text(configuration, "/id")),
    ("NAME", |configuration| text(configuration, "/name")),
    ("SERVER", |configuration| text(configuration, "/url")),
    ("AUTH", |configuration| text(configuration, "/auth/mode")),
    ("SHARING", |configuration| text(configuration, "/sharing")),
    ("ENABLED", |configuration| text(configuration, "/enabled")),
];

const SHOWN: &[Column] = &[
    ("ID", |configuration| text(configuration, "/id")),
    ("NAME", |configuration| text(configuration, "/name")),
    ("ADDRESS", |configuration| text(configuration, "/route/url")),
    ("SERVER", |configuration| text(configuration, "/url")),
    ("AUTH", auth),
    ("SHARING", |configuration| text(configuration, "/sharing")),
    ("PASSTHROUGH", |configuration| text(configuration, "/passthrough")),
    ("SCOPES", |configuration| text(configuration, "/scopes")),
    ("HEADERS", headers),
    ("ENABLED", |configuration| text(configuration, "/enabled")),
    ("CREATED", |configuration| text(configuration, "/created_at")),
    ("CHANGED", |configuration| text(configuration, "/updated_at")),
];

const AVAILABLE: &[Column] = &[
    ("ID", |available| text(available, "/configuration")),
    ("NAME", |available| text(available, "/name")),
    ("STATE", |available| text(available, "/state")),
    ("ADDRESS", |available| text(available, "/url")),
    ("CONNECT", |available| text(available, "/page")),
];

const SEEN: &[Column] = &[
    ("AUTH", |seen| text(seen, "/mode")),
    ("ISSUER", |seen| text(seen, "/issuer")),
    ("SCOPES", |seen| text(seen, "/scopes")),
    ("REGISTRATION", |seen| text(seen, "/registration")),
    ("OBSTACLE", |seen| text(seen, "/obstacle")),
];

impl Configuration {
    pub fn run(self) -> ExitCode {
        match self {
            Self::List { access, organization } => access.run(
                |answer| table(items(&answer.value), LISTED, "no configurations"),
                async |remote| {
                    let of = [("organization", organization.as_deref())];
                    remote.list(&[CONFIGURATIONS], &of, Extent::All).await
                },
            ),
            Self::Show { access, configuration } => access
                .run(shown, async |remote| remote.call(Call::get([CONFIGURATIONS, &configuration])).await),
            Self::Discover { access, url } => access.run(
                |answer| properties(&answer.value, SEEN),
                async |remote| remote.call(Call::post(["discover"]).body(&json!({"url": url}))?).await,
            ),
            Self::Create { access, draft, quiet } => access.run(
                |answer| match quiet {
                    true => text(&answer.value, "/id"),
                    false => shown(answer),
                },
                async |remote| remote.call(Call::post([CONFIGURATIONS]).body(&draft.read()?)?).await,
            ),
            Self::Change { access, configuration, change, if_match } => access.run(shown, async |remote| {
                let call = Call::patch([CONFIGURATIONS, &configuration]).expecting(if_match);
                remote.call(call.body(&change.read()?)?).await
            }),
            Self::Enable { access, configuration, if_match } => {
                switch(&access, &configuration, true, if_match)
            }
            Self::Disable { access, configuration, if_match } => {
                switch(&access, &configuration, false, if_match)
            }
            Self::Delete { access, configuration, if_match } => access.run(
                |_| format!("{configuration} is gone: its address leads nowhere"),
                async |remote| {
                    remote.call(Call::delete([CONFIGURATIONS, &configuration]).expecting(if_match)).await
                },
            ),
            Self::Available { access } => access.run(
                |answer| table(items(&answer.value), AVAILABLE, "nothing is assigned"),
                async |remote| remote.list(&["available"], &[], Extent::All).await,
            ),
        }
    }
}

fn switch(access: &Access, configuration: &str, enabled: bool, if_match: Option<u64>) -> ExitCode {
    access.run(shown, async |remote| {
        let call = Call::patch([CONFIGURATIONS, configuration]).expecting(if_match);
        remote.call(call.body(&json!({"enabled": enabled}))?).await
    })
}

fn shown(answer: &Answer) -> String {
    versioned(answer, SHOWN)
}

/// The mode, and what is known of it.
fn auth(configuration: &Value) -> String {
    let mode = text(configuration, "/auth/mode");
    let detail = match mode.as_str() {
        "static_headers" => text(configuration, "/auth/headers"),
        "oauth_static" => text(configuration, "/auth/client_id"),
        _ => return mode,
    };
    format!("{mode} ({detail})")
}

fn headers(configuration: &Value) -> String {
    let all = configuration.pointer("/headers").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let line = |header: &Value| format!("{}={}", text(header, "/name"), text(header, "/value"));
    if all.is_empty() { NOTHING.to_owned() } else { all.iter().map(line).collect::<Vec<_>>().join(", ") }
}
