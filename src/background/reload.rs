//! Reading the configuration again at all instances at once. Each has its own file; `postern reload` says in the store that
//! the files have changed, and every instance hears of it as of any other change, a lost message included.
use serde::{Deserialize, Serialize};

use super::Upkeep;
use crate::store::record::{RecordError, Records, Typed};
use crate::store::{FOREVER, Kind, Put};

/// The record's key. Its version counts the wishes.
const KEY: &str = "configuration";

/// The wish that everybody reads their file again (store record).
#[derive(Serialize, Deserialize)]
struct Wish {}

impl Typed for Wish {
    const KIND: Kind = Kind::Reload;
}

/// Has every instance read its file again.
pub async fn ask(records: &Records) -> Result<(), RecordError> {
    loop {
        let version = version(records).await?;
        if records.put(KEY, version, &Wish {}, FOREVER).await? == Put::Stored {
            return Ok(());
        }
    }
}

/// How often it was asked for. Whoever starts looks at once: what is asked for from then on, their file may not have had.
pub async fn version(records: &Records) -> Result<u64, RecordError> {
    Ok(records.store().get(Kind::Reload, KEY).await?.map_or(0, |wish| wish.version))
}

impl Upkeep {
    /// Reads the file again if that was asked for since the last look. Says whether the store could be asked.
    pub(super) async fn read_wish(&self) -> bool {
        let now = match version(&self.authority.records).await {
            Ok(version) => version,
            Err(error) => {
                tracing::warn!(%error, "whether the configuration is to be read again is not known yet");
                return false;
            }
        };
        if self.heard.lock().await.replace(now) != Some(now) {
            let reload = std::sync::Arc::clone(&self.reload);
            if tokio::task::spawn_blocking(move || reload()).await.is_err() {
                tracing::error!("reading the configuration again was cut off");
            }
        }
        true
    }
}
