//! The commands that ask something of the running Postern: the one that has the data directory, or all on a shared store.
use std::process::ExitCode;

use super::kept::on_store;
use super::{failed, println};
use crate::background::reload;
use crate::config::{Config, Store};
use crate::server::control::{Wish, ask};
use crate::store::record::RecordError;

/// `postern reload`
pub fn reload(config: &Config) -> ExitCode {
    if matches!(config.store, Store::Embedded) {
        return asked(config, Wish::Reload);
    }
    on_store(config, async |parts| {
        reload::ask(&parts.records).await?;
        let text = "every instance reads its own configuration again; how it went, each says for itself: \
                    postern_config_reload_failed, and its log";
        Ok::<_, RecordError>((text.to_owned(), true))
    })
}

/// `postern upgrade`
pub fn upgrade(config: &Config, always: bool) -> ExitCode {
    asked(config, if always { Wish::Upgrade } else { Wish::Apply })
}

fn asked(config: &Config, wish: Wish) -> ExitCode {
    let data_dir = &config.server.data_dir;
    match ask(data_dir, wish) {
        Ok(Ok(text)) => println(&text),
        Ok(Err(reason)) => failed(&reason),
        Err(error) => {
            failed(&format!("no running Postern answers in {} ({error}): is it started?", data_dir.display()))
        }
    }
}
