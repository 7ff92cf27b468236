//! Parts of a time, in UTC.
use std::time::{SystemTime, UNIX_EPOCH};

use super::node::Part;

impl Part {
    /// This part of `time`.
    pub(super) fn of(self, time: SystemTime) -> i64 {
        const DAY: i64 = 24 * 3600;
        let seconds = match time.duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            Err(error) => -i64::try_from(error.duration().as_secs()).unwrap_or(i64::MAX),
        };
        let (day, second) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        let (year, month, date) = civil(day);
        match self {
            Self::Date => date,
            Self::DayOfMonth => date - 1,
            // The first of January 1970 was a Thursday.
            Self::DayOfWeek => (day + 4).rem_euclid(7),
            Self::FullYear => year,
            Self::Hours => second / 3600,
            Self::Minutes => second / 60 % 60,
            Self::Month => month - 1,
        }
    }
}

/// Year, month and day, both from 1, of the day so many after 1970-01-01, in the Gregorian calendar. Counted in eras of 400
/// years that begin with March, so that the leap day is the last of its year.
fn civil(day: i64) -> (i64, i64, i64) {
    let day = day.saturating_add(719_468);
    let (era, of_era) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let date = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year + era * 400 + i64::from(month <= 2), month, date)
}
