//! Whether routes may be made at run time, and under which rules → [`Managed`].
use std::sync::Arc;
use std::time::Duration;

use super::calls::CallLimit;
use super::checked::Checker;
use super::file;
use super::policy::Policy;
use super::report::Key;
use super::route::hosts;

/// Of routes that are made at run time.
#[derive(Clone)]
pub struct Managed {
    /// Users who may make organisations and see all of them.
    pub administrators: Vec<String>,
    /// Whether people may add servers for themselves.
    pub personal: bool,
    /// Hosts that may use `http` and private addresses: lower case, no port, IPv6 without brackets.
    pub private_hosts: Vec<String>,
    /// How long events are kept.
    pub event_retention: Duration,
    /// The global one; `None`: nothing is said.
    pub policy: Option<Policy>,
    /// Those of all routes.
    pub limits: Vec<Arc<CallLimit>>,
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// `policy`, `limits`: what holds at all routes.
pub(super) fn check(
    check: &mut Checker<'_>,
    written: Option<&file::Managed>,
    policy: Option<Policy>,
    limits: &[Arc<CallLimit>],
) -> Option<Managed> {
    let written = written?;
    let key = Key::top("managed");
    let administrators = written.administrators.clone().unwrap_or_default();
    for (index, name) in administrators.iter().enumerate() {
        if name.is_empty() {
            let key = key.child("administrators").item(index);
            check.refuse(
                &key,
                "is no name of a user",
                "write the name as `postern connections list` shows it",
            );
        }
    }
    let retention = written.event_retention.as_deref();
    Some(Managed {
        administrators,
        personal: written.personal.unwrap_or(true),
        private_hosts: hosts(check, &key.child("allow_hosts"), written.allow_hosts.as_deref()),
        event_retention: check.duration(&key.child("event_retention"), retention, 60 * DAY, DAY, 3650 * DAY),
        policy,
        limits: limits.to_vec(),
    })
}
