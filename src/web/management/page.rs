//! A part of a list at a time: what comes after the last one of the part before.
use data_encoding::BASE64URL_NOPAD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::problem::Problem;

const DEFAULT: usize = 50;
pub const MOST: usize = 200;

/// The part that is asked for.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// How many at the most.
    #[serde(default)]
    #[schemars(with = "u8", range(min = 1, max = 200))]
    pub limit: Option<usize>,
    /// `next` of the part before.
    #[serde(default)]
    #[schemars(with = "String")]
    pub cursor: Option<String>,
}

#[derive(Serialize, JsonSchema)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// The cursor of what comes next; nothing: this was the last.
    pub next: Option<String>,
}

/// A wish, checked.
pub struct Part {
    pub limit: usize,
    /// The key of the last one of the part before.
    pub after: Option<String>,
}

impl Part {
    pub fn new(limit: Option<usize>, cursor: Option<&str>) -> Result<Self, Problem> {
        let limit = limit.unwrap_or(DEFAULT);
        if !(1..=MOST).contains(&limit) {
            return Err(Problem::of_parameter("limit", "has to be 1 to 200"));
        }
        let read = |cursor: &str| {
            let bytes = BASE64URL_NOPAD.decode(cursor.as_bytes()).ok()?;
            String::from_utf8(bytes).ok()
        };
        let after = cursor.map(|cursor| {
            read(cursor).ok_or_else(|| Problem::of_parameter("cursor", "is none that was given out"))
        });
        Ok(Self { limit, after: after.transpose()? })
    }

    /// Of all, those that are asked for. `all` is in the order of its keys.
    pub fn of<T>(&self, all: Vec<T>, key: impl Fn(&T) -> &str) -> Page<T> {
        let after = self.after.as_deref().unwrap_or_default();
        let rest = all.into_iter().filter(|item| after.is_empty() || key(item) > after);
        self.first(rest.take(self.limit + 1).collect(), key)
    }

    /// Of those that are asked for and, where there is one, the next.
    pub fn first<T>(&self, mut items: Vec<T>, key: impl Fn(&T) -> &str) -> Page<T> {
        let is_more = items.len() > self.limit;
        items.truncate(self.limit);
        let last = items.last().filter(|_| is_more);
        let next = last.map(|last| BASE64URL_NOPAD.encode(key(last).as_bytes()));
        Page { items, next }
    }
}

impl<T> Page<T> {
    pub fn map<U>(self, change: impl FnMut(T) -> U) -> Page<U> {
        Page { items: self.items.into_iter().map(change).collect(), next: self.next }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn parts_are_all_of_it_and_each_once() {
        let all: Vec<String> = (0..7).map(|number| format!("k{number}")).collect();
        let (mut seen, mut cursor, mut parts) = (Vec::new(), None, 0);
        loop {
            let part = Part::new(Some(3), cursor.as_deref()).ok().unwrap();
            let page = part.of(all.clone(), |key| key);
            parts += 1;
            seen.extend(page.items);
            match page.next {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        assert_eq!((seen, parts), (all, 3));
    }

    #[test]
    fn a_full_part_that_is_the_last_says_so() {
        let page = Part { limit: 2, after: None }.of(vec!["a", "b"], |key| key);
        assert_eq!((page.items.len(), page.next), (2, None));
    }

    #[test]
    fn what_is_no_limit_or_cursor_is_refused() {
        for limit in [0, 201] {
            assert!(Part::new(Some(limit), None).is_err());
        }
        assert!(Part::new(None, Some("not base64!")).is_err());
    }
}
