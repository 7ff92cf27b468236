//! Whether there is memory for more: looked at every second, so that new work is turned away before the kernel ends the process
//! with all that runs. What is under way goes on and gives its memory back as it ends.
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;

use crate::oauth::server::Authority;
use crate::telemetry::{InFlight, Metrics};

const LOOK: Duration = Duration::from_secs(1);
/// Where the kernel shows its control groups (version 2).
const GROUPS: &str = "/sys/fs/cgroup";
/// Of what a control group may hold, where no limit is written.
const PERCENT: u64 = 90;

/// Looks, and says so.
pub struct Memory {
    pub authority: Arc<Authority>,
    pub metrics: Arc<Metrics>,
    pub in_flight: InFlight,
}

/// What there is, and how much of it may be, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Look {
    used: u64,
    /// `None`: any number.
    limit: Option<u64>,
}

/// How it went so far.
#[derive(Debug, Default)]
struct Course {
    /// How much was under way when memory ran out. The allocator keeps what is freed for what comes next, so that the process may hold
    /// as much for long after: it has room again once a quarter of that has ended.
    full: Option<usize>,
}

#[async_trait]
impl BackgroundService for Memory {
    /// Goes on while the last requests end.
    async fn start(&self, _shutdown: ShutdownWatch) {
        let (mut tick, mut course) = (tokio::time::interval(LOOK), Course::default());
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let written = self.authority.snapshot().config.limits.memory;
            let looked = tokio::task::spawn_blocking(move || look(written)).await.unwrap_or_default();
            self.metrics.memory.set(gauge(looked.used));
            self.metrics.memory_limit.set(looked.limit.map_or(0, gauge));
            let is_scarce = course.is_scarce(looked, self.in_flight.count());
            if self.in_flight.set_scarce(is_scarce) != is_scarce {
                let Look { used, limit } = looked;
                match is_scarce {
                    true => tracing::warn!(used, limit, "memory runs out: new requests are refused"),
                    false => tracing::info!(used, limit, "there is memory again"),
                }
            }
        }
    }
}

impl Course {
    fn is_scarce(&mut self, Look { used, limit }: Look, under_way: usize) -> bool {
        if limit.is_none_or(|limit| used <= limit) {
            self.full = None;
            return false;
        }
        let full = *self.full.get_or_insert(under_way);
        under_way > full / 4 * 3
    }
}

fn gauge(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// `written`: what the configuration allows this process; 0 is any number. Without it, what its control group may hold counts, and all
/// that is in there.
fn look(written: Option<usize>) -> Look {
    let of_group = match written {
        Some(_) => None,
        None => group().and_then(|group| of_group(&group)),
    };
    let limit = written.filter(|written| *written > 0).and_then(|written| u64::try_from(written).ok());
    of_group.unwrap_or_else(|| Look { used: resident().unwrap_or_default(), limit })
}

/// What this process holds.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.saturating_mul(1024))
}

/// The control group of this process.
fn group() -> Option<PathBuf> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new(GROUPS).join(path))
}

/// `None`: it has no bound. Files that the kernel can drop at any time do not count.
fn of_group(group: &Path) -> Option<Look> {
    let read = |name: &str| std::fs::read_to_string(group.join(name)).ok();
    let most: u64 = read("memory.max")?.trim().parse().ok()?;
    let current: u64 = read("memory.current")?.trim().parse().ok()?;
    let statistics = read("memory.stat")?;
    let files = statistics.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse().ok());
    let used = current.saturating_sub(files.unwrap_or(0));
    Some(Look { used, limit: Some(most / 100 * PERCENT) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn what_is_scarce_is_so_until_a_part_of_it_has_ended_or_was_given_back() {
        let mut course = Course::default();
        let mut at = |used, under_way| course.is_scarce(Look { used, limit: Some(100) }, under_way);
        assert!(!at(100, 1000));
        assert!(at(101, 1000) && at(200, 1100) && at(101, 751));
        assert!(!at(200, 750), "the allocator keeps what it has");
        assert!(at(200, 800), "and there is no more than that");
        assert!(!at(99, 2000));
        assert!(at(101, 2000) && !at(101, 1500));
        // A limit below what is held without any work keeps nobody out for good.
        assert!(!Course::default().is_scarce(Look { used: 2, limit: Some(1) }, 0));
        assert!(!Course::default().is_scarce(Look { used: 2, limit: None }, 9));
    }

    #[test]
    fn a_control_group_counts_where_it_has_a_bound_and_nothing_is_written() {
        let place = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(place.path().join(name), text).unwrap();
        assert_eq!(of_group(place.path()), None);
        write("memory.current", "5000\n");
        write("memory.stat", "anon 2000\ninactive_file 1000\nactive_file 2000\n");
        write("memory.max", "max\n");
        assert_eq!(of_group(place.path()), None);
        write("memory.max", "10000\n");
        assert_eq!(of_group(place.path()), Some(Look { used: 4000, limit: Some(9000) }));
        assert!(look(Some(0)).limit.is_none() && look(Some(0)).used > 1024 * 1024);
        assert_eq!(look(Some(7)).limit, Some(7));
    }
}
