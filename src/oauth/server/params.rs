//! Parameters of a request, as RFC 6749 §3.1 wants them read: sent twice is an error, empty is absent, unknown is
//! ignored.
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use super::refusal::Refusal;

/// Decoded `application/x-www-form-urlencoded` parameters, each name once.
pub struct Params {
    values: HashMap<String, String>,
    /// Names that came more than once.
    doubled: HashSet<String>,
}

/// No request of ours has more; the rest is somebody trying.
const MAX_PARAMS: usize = 64;
const TWICE: Refusal = Refusal::invalid_request("a parameter was sent twice");

impl Params {
    pub fn parse(encoded: &str) -> Result<Self, Refusal> {
        let params = Self::read(encoded)?;
        params.each_once().map(|()| params)
    }

    /// As [`Params::parse`], for whoever has to know where an error may be told before it is one: the first value counts.
    pub fn read(encoded: &str) -> Result<Self, Refusal> {
        let (mut values, mut doubled) = (HashMap::new(), HashSet::new());
        for (name, value) in form_urlencoded::parse(encoded.as_bytes()) {
            if values.len() + doubled.len() >= MAX_PARAMS {
                return Err(Refusal::invalid_request("too many parameters"));
            }
            match values.entry(name.into_owned()) {
                Entry::Vacant(vacant) => drop(vacant.insert(value.into_owned())),
                Entry::Occupied(known) => drop(doubled.insert(known.key().clone())),
            }
        }
        Ok(Self { values, doubled })
    }

    /// Whether the parameter came more than once, so that nobody knows which one is meant.
    pub fn is_doubled(&self, name: &str) -> bool {
        self.doubled.contains(name)
    }

    /// Nothing, unless any parameter came more than once.
    pub fn each_once(&self) -> Result<(), Refusal> {
        if self.doubled.is_empty() { Ok(()) } else { Err(TWICE) }
    }

    /// The value, unless absent or empty.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub fn required(&self, name: &'static str, missing: &'static str) -> Result<&str, Refusal> {
        self.value(name).ok_or(Refusal::invalid_request(missing))
    }
}

/// `base` with `pairs` added to its query.
pub fn with_query(base: &str, pairs: &[(&str, &str)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(pairs);
    let separator = if !base.contains('?') {
        "?"
    } else if base.ends_with(['?', '&']) {
        ""
    } else {
        "&"
    };
    format!("{base}{separator}{}", query.finish())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn twice_is_an_error_and_empty_is_absent() {
        assert!(Params::parse("a=1&a=1").is_err());
        let params = Params::parse("a=&b=x+y%20z").unwrap();
        assert_eq!((params.value("a"), params.value("b"), params.value("c")), (None, Some("x y z"), None));
        assert!(Params::parse(&(0..65).map(|n| format!("p{n}=1&")).collect::<String>()).is_err());
    }

    #[test]
    fn queries_are_added_to_what_is_there() {
        assert_eq!(with_query("https://c/cb", &[("code", "a b")]), "https://c/cb?code=a+b");
        assert_eq!(with_query("https://c/cb?x=1", &[("code", "a")]), "https://c/cb?x=1&code=a");
        assert_eq!(with_query("https://c/cb?", &[("code", "a")]), "https://c/cb?code=a");
    }
}
