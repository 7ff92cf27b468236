//! A gateway with a say of one's own in its policy: a list of tools that nobody may call while it says so.
//!
//! ```sh
//! cargo run --example policy_hook -- postern.yaml frozen.txt
//! ```
//!
//! `frozen.txt` has the name of a tool on each line, and is read again for each call: a switch that works within a second
//! and needs no reload. Everything else is as `postern run` does it.
use std::path::PathBuf;
use std::process::ExitCode;

use postern::mcp::{ItemKind, Message};
use postern::policy::{Hook, Question, Ruling};
use postern::server::Builder;

struct Frozen {
    list: PathBuf,
}

impl Hook for Frozen {
    fn decide(&self, _: &Question<'_>, message: Option<&Message>) -> Ruling {
        let item = message.and_then(|message| message.item.as_ref());
        let Some(tool) = item.filter(|item| item.kind == ItemKind::Tool) else {
            return Ruling::Pass;
        };
        // Nobody knows what is frozen without the list, so everything is.
        let Ok(list) = std::fs::read_to_string(&self.list) else {
            return Ruling::Deny;
        };
        match list.lines().any(|line| line.trim() == tool.name) {
            true => Ruling::Deny,
            false => Ruling::Pass,
        }
    }

    fn needs_message(&self) -> bool {
        true
    }
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(config), Some(list)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: policy_hook CONFIG LIST");
        return ExitCode::FAILURE;
    };
    match Builder::new(config).policy(Frozen { list: list.into() }).run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
