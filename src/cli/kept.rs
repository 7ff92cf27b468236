//! The commands that work on what is kept: on a shared store beside the running instances, on the embedded one while
//! Postern is stopped.
use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use super::{failed, println};
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::oauth::client::standing::{self, State as Stands};
use crate::oauth::server::service::{self, ServiceAccount, Wanted};
use crate::oauth::server::{block, token_keys};
use crate::route::Table;
use crate::seal;
use crate::server::foundation::{Foundation, Purpose};
use crate::store::embedded::{Embedded, FILE_NAME, OpenError};
use crate::store::export::Export;
use crate::store::migrate::{Source, migrate as copy};
use crate::store::record::RecordError;
use crate::store::{Change, Kind, StoreError};

/// How long a check of the store may take, and what it leaves behind at most.
const PROBE: Duration = Duration::from_secs(5);

/// Runs `work` on the opened parts and says how it ended.
pub fn on_store<E: ToString>(
    config: &Config,
    work: impl AsyncFnOnce(&Foundation) -> Result<(String, bool), E>,
) -> ExitCode {
    rustls::crypto::ring::default_provider().install_default().ok();
    if is_in_use(config) {
        return failed(
            "the embedded store is in use by a running Postern: stop it for this command, or keep the store in Redis, where commands work beside running instances",
        );
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.to_string()),
    };
    let done = Foundation::lay(config, Purpose::Command, None).map_err(|error| error.to_string());
    let done = done.and_then(|parts| runtime.block_on(work(&parts)).map_err(|error| error.to_string()));
    match done {
        Ok((text, true)) => println(&text),
        Ok((text, false)) => {
            println(&text);
            ExitCode::FAILURE
        }
        Err(error) => failed(&error),
    }
}

/// Whether the store belongs to a running Postern. One that is not there yet is not made: its sealing key comes first.
fn is_in_use(config: &Config) -> bool {
    matches!(config.store, config::Store::Embedded)
        && config.server.data_dir.join(FILE_NAME).exists()
        && matches!(Embedded::open(&config.server.data_dir, Clock::system()), Err(OpenError::InUse { .. }))
}

/// `postern validate --online`
pub fn check(config: &Config) -> ExitCode {
    let file = config.server.data_dir.join(FILE_NAME);
    if matches!(config.store, config::Store::Embedded) {
        if !file.exists() {
            return println(&format!("store is fine: embedded, {} will be made", file.display()));
        }
        if is_in_use(config) {
            return println("store is fine: embedded, in use by a running Postern");
        }
    }
    on_store(config, async |parts| {
        let store = parts.records.store();
        store.ready().await.map_err(|error| error.to_string())?;
        for kind in Kind::ALL {
            store.tombstones(kind).await.map_err(|error| error.to_string())?;
        }
        // A record of nobody's, written, heard of, taken once and deleted: what every command of a flow needs.
        let mut changes = store.subscribe();
        let name = seal::name().map_err(|error| error.to_string())?;
        let failed = |error: StoreError| error.to_string();
        store.put(Kind::Flow, &name, 0, Vec::new(), PROBE).await.map_err(failed)?;
        let told = Change::Of { kind: Kind::Flow, key: name.clone() };
        let heard = async { while changes.recv().await.is_ok_and(|change| change != told) {} };
        tokio::time::timeout(PROBE, heard).await.map_err(|_| "changes are not heard of".to_owned())?;
        store.take(Kind::Flow, &name).await.map_err(failed)?;
        store.remove(Kind::Flow, &name).await.map_err(failed)?;
        let keys = token_keys::count(&parts.records).await.map_err(|error| error.to_string())?;
        let used = parts.records.count_by_key().await.map_err(|error| error.to_string())?;
        let known = parts.records.sealer().key_ids();
        let lost: usize = used.iter().filter(|(id, _)| !known.contains(id)).map(|(_, records)| records).sum();
        let name = match config.store {
            config::Store::Embedded => "embedded",
            config::Store::Redis(_) => "redis",
        };
        let mut text = format!("store is fine: {name}, {} record(s)", used.values().sum::<usize>());
        if keys == 0 {
            text.push_str(", new");
        }
        if lost > 0 {
            let _ = write!(
                text,
                "\n{lost} record(s) are sealed with a key that is not in sealing_keys: give it back, or those users sign in again"
            );
        }
        Ok::<_, String>((text, lost == 0))
    })
}

/// `postern keys list`
pub fn list_keys(config: &Config) -> ExitCode {
    on_store(config, async |parts| {
        let used = parts.records.count_by_key().await?;
        let known = parts.records.sealer().key_ids();
        let mut text = String::new();
        for (position, id) in known.iter().enumerate() {
            let role = if position == 0 { "seals" } else { "opens" };
            let _ = writeln!(text, "{id}\t{role}\t{} record(s)", used.get(id).copied().unwrap_or(0));
        }
        for (id, records) in used.iter().filter(|(id, _)| !known.contains(id)) {
            let _ = writeln!(text, "{id}\tmissing\t{records} record(s)");
        }
        let count = token_keys::count(&parts.records).await.unwrap_or(0);
        let _ = write!(text, "access tokens\t{count} key(s)");
        Ok::<_, RecordError>((text, true))
    })
}

/// `postern keys rotate`
pub fn rotate_keys(config: &Config) -> ExitCode {
    on_store(config, async |parts| {
        let resealed = parts.records.reseal_all().await?;
        let first = parts.records.sealer().key_ids().into_iter().next().unwrap_or_default();
        let left: usize =
            resealed.by_key.iter().filter(|(id, _)| **id != first).map(|(_, count)| count).sum();
        let mut text = format!("{} record(s) moved under {first}, {left} left", resealed.moved);
        for (id, count) in resealed.by_key.iter().filter(|(id, _)| **id != first) {
            let _ = write!(text, "\n{id}\t{count} record(s)");
        }
        if resealed.unreadable > 0 {
            let _ = write!(text, "\n{} cannot be read: those users sign in again", resealed.unreadable);
        }
        Ok::<_, RecordError>((text, left == 0))
    })
}

/// `postern keys rotate --access-tokens`
pub fn rotate_access_tokens(config: &Config) -> ExitCode {
    on_store(config, async |parts| {
        token_keys::rotate(&parts.records, parts.clock.now()).await?;
        let text = "a new key for access tokens takes over within seconds; the old ones still open theirs";
        Ok::<_, token_keys::KeysError>((text.to_owned(), true))
    })
}

/// `postern store migrate`
pub fn migrate(from: &Config, to: &Config) -> ExitCode {
    on_store(to, async |target| {
        // An embedded store in use is read out by the Postern that has it.
        let source: Box<dyn Source> = match is_in_use(from) {
            true => Box::new(Export::of(&from.server.data_dir)),
            false => {
                let source =
                    Foundation::lay(from, Purpose::Command, None).map_err(|error| error.to_string())?;
                Box::new(Arc::clone(source.records.store()))
            }
        };
        let target = target.records.store();
        let migrated = copy(source.as_ref(), target.as_ref()).await.map_err(|error| error.to_string())?;
        let mut text = format!("{} record(s) copied", migrated.copied);
        for (kind, (in_source, in_target)) in &migrated.counts {
            let _ = write!(text, "\n{kind}\t{in_source} in the source, {in_target} of them in the target");
        }
        Ok::<_, String>((text, migrated.is_complete()))
    })
}

/// `postern connections list`
pub fn list_connections(config: &Config, user: Option<&str>) -> ExitCode {
    on_store(config, async |parts| {
        let mut lines = Vec::new();
        for (key, _) in parts.records.store().scan(Kind::Connection).await.map_err(RecordError::from)? {
            let (connection, tokens) = match parts.records.connection(&key).await {
                Ok(Some(found)) => found,
                Ok(None) => continue,
                Err(RecordError::Unreadable) => {
                    // Nobody can say whose it is.
                    let state = standing::UNREADABLE.name();
                    lines.push(format!("?\t{}\t{state}\tunreadable", key.get(..12).unwrap_or(&key)));
                    continue;
                }
                Err(error) => return Err(error),
            };
            if user.is_some_and(|user| user != tokens.user) {
                continue;
            }
            let state = parts.connector.judge(&key, &connection, &tokens).await.state;
            let mut line = format!("{}\t{}\t{}\t{}", tokens.user, tokens.route, state.name(), tokens.issuer);
            if let Stands::Expires(end) = state {
                let _ = write!(line, "\t{}", humantime::format_rfc3339_seconds(end));
            }
            lines.push(line);
        }
        lines.sort();
        let text = if lines.is_empty() { "no connections".to_owned() } else { lines.join("\n") };
        Ok::<_, RecordError>((text, true))
    })
}

/// `postern connections disconnect`
pub fn disconnect(config: &Config, user: &str, route: &str) -> ExitCode {
    let table = Table::new(&config.server.public_url, &config.routes);
    let Some(found) = table.by_name(route) else {
        return failed(&format!("there is no route {route} in the configuration"));
    };
    on_store(config, async |parts| {
        let connector = &parts.connector;
        let mut was_there = connector.disconnect(user, found).await?;
        // The route may have led to another server before.
        for (key, _) in parts.records.store().scan(Kind::Connection).await.map_err(RecordError::from)? {
            if let Ok(Some((_, tokens))) = parts.records.connection(&key).await
                && tokens.user == user
                && tokens.route == route
            {
                was_there |=
                    connector.end(&key, user, route, &found.issuer_policy, &found.credential).await?;
            }
        }
        let text = match was_there {
            true => format!("{user} is disconnected from {route}"),
            false => format!("{user} was not connected to {route}; nothing under way connects them"),
        };
        Ok::<_, RecordError>((text, true))
    })
}

/// `postern users block`
pub fn block(config: &Config, user: &str) -> ExitCode {
    // Whoever is not in the file may be by tomorrow.
    let unknown = if config.login.knows(user) { "" } else { " (not a user of the configuration)" };
    on_store(config, async |parts| {
        let text = match block::block(&parts.records, user, parts.clock.now()).await? {
            true => format!("{user}{unknown} is blocked: nothing of theirs works from now on"),
            false => format!("{user}{unknown} was blocked already"),
        };
        Ok::<_, RecordError>((text, true))
    })
}

/// `postern users unblock`
pub fn unblock(config: &Config, user: &str) -> ExitCode {
    on_store(config, async |parts| {
        let text = match block::unblock(&parts.records, user).await? {
            true => format!("{user} is not blocked any more"),
            false => format!("{user} was not blocked"),
        };
        Ok::<_, RecordError>((text, true))
    })
}

/// `postern users list`
pub fn list_users(config: &Config) -> ExitCode {
    on_store(config, async |parts| {
        let blocked = block::blocked(&parts.records).await?;
        let mut names: Vec<&str> = config.login.users.keys().map(String::as_str).collect();
        names.extend(blocked.iter().map(String::as_str).filter(|user| !config.login.knows(user)));
        names.sort_unstable();
        let lines: Vec<String> = names
            .into_iter()
            .map(|name| {
                let state = if blocked.contains(name) { "blocked" } else { "active" };
                format!("{name}\t{state}")
            })
            .collect();
        Ok::<_, RecordError>((lines.join("\n"), true))
    })
}

/// `postern service-accounts create`
pub fn create_service(config: &Config, wanted: Wanted) -> ExitCode {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if wanted.name.is_empty() || wanted.name.len() > 64 || !wanted.name.bytes().all(plain) {
        return failed("the name of a service account is 1 to 64 letters, digits, `-`, `_` or `.`");
    }
    let known = |name: &String| config.routes.iter().any(|route| route.name == *name);
    if let Some(route) = wanted.routes.iter().find(|route| !known(route)) {
        return failed(&format!("there is no route {route} in the configuration"));
    }
    let others = |name: &&String| {
        config.routes.iter().any(|route| route.name == **name && !route.trusted_issuers.is_empty())
    };
    if let Some(route) = wanted.routes.iter().find(others) {
        return failed(&format!("route {route} takes tokens of its trusted_issuers alone"));
    }
    if let Some(user) = wanted.acts_for.as_deref().filter(|user| !config.login.knows(user)) {
        return failed(&format!("there is no user {user} in the configuration"));
    }
    if !wanted.api.is_empty() && config.managed.is_none() {
        return failed("--api is of use only where the configuration has `managed`");
    }
    if wanted.lifetime < Duration::from_secs(1) || wanted.lifetime > service::LIFETIME_MAX {
        return failed("--expires is from one second to ten years");
    }
    on_store(config, async |parts| {
        let name = wanted.name.clone();
        Ok::<_, RecordError>(match service::create(&parts.records, wanted, parts.clock.now()).await? {
            Some(token) => (token, true),
            None => (format!("there is a service account {name} already: revoke it first"), false),
        })
    })
}

/// `postern service-accounts revoke`
pub fn revoke_service(config: &Config, name: &str) -> ExitCode {
    on_store(config, async |parts| {
        Ok::<_, RecordError>(match service::revoke(&parts.records, name).await? {
            true => (format!("the token of {name} works nowhere any more"), true),
            false => (format!("there is no service account {name}"), false),
        })
    })
}

/// `postern service-accounts list`
pub fn list_services(config: &Config) -> ExitCode {
    on_store(config, async |parts| {
        let mut lines: Vec<String> = Vec::new();
        for (name, account) in parts.records.scan::<ServiceAccount>().await? {
            let (routes, user) = (account.value.routes.join(","), account.value.acts_for);
            let end = humantime::format_rfc3339_seconds(account.expires_at);
            let mut line = format!("{name}\t{routes}\t{}\t{end}", user.as_deref().unwrap_or("-"));
            if !account.value.api.is_empty() {
                line = format!("{line}\t{}", account.value.api.join(","));
            }
            lines.push(line);
        }
        lines.sort();
        let text = if lines.is_empty() { "no service accounts".to_owned() } else { lines.join("\n") };
        Ok::<_, RecordError>((text, true))
    })
}
