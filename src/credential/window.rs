//! When a token is renewed ahead of its end, and from when on it is not sent any more.
use std::time::{Duration, SystemTime};

/// When to refresh ahead and when to stop sending, for a token valid from `from` to `until`. Both margins shrink with
/// the lifetime, so that tokens of two seconds work as well as those of a day. `spread`, 0 to 255, moves the first by up
/// to a quarter of its distance from the end, so that tokens given out together are not all renewed together.
pub(super) fn window(from: SystemTime, until: SystemTime, spread: u8) -> (SystemTime, SystemTime) {
    let lifetime = until.duration_since(from).unwrap_or_default();
    let ahead = (lifetime / 10).max(Duration::from_secs(60)).min(lifetime / 4);
    let jitter = ahead / 4 * u32::from(spread) / 255;
    let margin = Duration::from_secs(5).min(lifetime / 10);
    (until - ahead + jitter, until - margin)
}

/// The same for one connection at every instance, evenly spread over all of them.
pub(super) fn spread(incarnation: &str) -> u8 {
    let digest = ring::digest::digest(&ring::digest::SHA256, incarnation.as_bytes());
    digest.as_ref().first().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use std::time::UNIX_EPOCH;

    #[test]
    fn windows_shrink_with_the_lifetime() {
        let at = |seconds: f64| UNIX_EPOCH + Duration::from_secs_f64(seconds);
        assert_eq!(window(at(0.0), at(3600.0), 0), (at(3240.0), at(3595.0)));
        assert_eq!(window(at(0.0), at(3600.0), 255), (at(3330.0), at(3595.0)));
        assert_eq!(window(at(0.0), at(300.0), 0), (at(240.0), at(295.0)));
        assert_eq!(window(at(0.0), at(2.0), 0), (at(1.5), at(1.8)));
        for (lifetime, spread) in [(1.0, 255), (2.0, 255), (60.0, 255), (86400.0, 255)] {
            let (refresh_at, dead_at) = window(at(0.0), at(lifetime), spread);
            assert!(refresh_at < dead_at && dead_at < at(lifetime));
        }
    }
}
