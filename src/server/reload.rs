//! What a running process takes from its configuration anew: the sealing keys, so that they can be changed without a
//! restart. Everything else waits for one.
use super::foundation;
use crate::config::{Config, Report};
use crate::store::record::Records;

/// Reads the configuration again and uses its sealing keys from now on. A configuration that is wrong changes nothing.
pub fn sealing_keys(records: &Records, again: &impl Fn() -> Result<Config, Report>) {
    let keys = match again() {
        Ok(config) => foundation::sealing_keys(&config).map_err(|error| error.to_string()),
        Err(report) => Err(report.to_string()),
    };
    let replaced = keys.and_then(|keys| records.sealer().replace(keys).map_err(|error| error.to_string()));
    match replaced {
        Ok(()) => {
            let mut ids = records.sealer().key_ids();
            let others = ids.split_off(1.min(ids.len()));
            tracing::info!(
                seals = ids.concat(),
                opens = others.len(),
                "SIGHUP: the sealing keys of the configuration are in use; the rest of it waits for a restart"
            );
        }
        Err(reason) => tracing::error!(%reason, "SIGHUP: the configuration is not read again"),
    }
}
