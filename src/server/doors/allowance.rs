//! How much of something that costs us more than them a client may do: so many within a while, of which those that are used up
//! come back little by little.
use std::time::{Duration, Instant};

/// In that time all come back.
const WHILE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Allowance {
    most: f64,
    left: f64,
    /// When that was reckoned.
    at: Instant,
}

impl Allowance {
    pub fn of(most: usize, now: Instant) -> Self {
        Self { most: most as f64, left: most as f64, at: now }
    }

    /// Uses one up: whether there was one.
    pub fn takes(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.left = (self.left + self.most * since / WHILE.as_secs_f64()).min(self.most);
        let is_left = self.left >= 1.0;
        if is_left {
            self.left -= 1.0;
        }
        is_left
    }

    /// One more, where they are not all there.
    pub fn gains(&mut self) {
        self.left = (self.left + 1.0).min(self.most);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)]
    use super::*;

    #[test]
    fn what_is_used_up_comes_back_with_time_and_with_what_is_gained_and_never_beyond_all() {
        let begun = Instant::now();
        let mut allowance = Allowance::of(50, begun);
        let mut taken = |now, gained| {
            (0..gained).for_each(|_| allowance.gains());
            (0..200).take_while(|_| allowance.takes(now)).count()
        };
        assert_eq!(taken(begun, 10), 50);
        assert_eq!(taken(begun, 20), 20);
        assert_eq!(taken(begun + WHILE / 2, 0), 25);
        assert_eq!(taken(begun + WHILE * 100, 100), 50);
    }
}
