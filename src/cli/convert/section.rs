//! A mapping whose keys are taken one by one → what was taken, and what is left over: nothing gets lost unsaid.

use serde_json::{Map, Value};

/// Where something stands.
#[derive(Clone)]
pub struct Place {
    /// The document, like `12: MCPRemoteProxy files`.
    pub document: String,
    /// Keys from its top, like `spec.remoteUrl`.
    pub key: String,
}

impl Place {
    pub fn child(&self, name: &str) -> Self {
        let dot = if self.key.is_empty() { "" } else { "." };
        Self { document: self.document.clone(), key: format!("{}{dot}{name}", self.key) }
    }
}

/// What cannot be carried over, and the variables that secrets are to be put into.
#[derive(Default)]
pub struct Findings {
    losses: Vec<String>,
    /// A variable's name, and what belongs into it.
    variables: Vec<(String, String)>,
}

impl Findings {
    /// Notes that what stands there is not carried over.
    pub fn lose(&mut self, place: &Place, reason: &str) -> Lost {
        let Place { document, key } = place;
        let dot = if key.is_empty() { "" } else { ": " };
        let loss = line(&format!("{document}{dot}{key}: {reason}"));
        if !self.losses.contains(&loss) {
            self.losses.push(loss);
        }
        Lost(())
    }

    /// A variable for what `holds` says, named after words of the file.
    pub fn variable(&mut self, words: &str, holds: &str) -> String {
        let mut name = String::with_capacity(words.len());
        let mut is_within = false;
        for c in words.chars() {
            if c.is_ascii_digit() && name.is_empty() || c.is_ascii_uppercase() && is_within {
                name.push('_');
            }
            name.push(if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' });
            is_within = c.is_ascii_lowercase();
        }
        self.named_variable(&name, holds)
    }

    /// A variable of this name, or with a number behind it where that holds something else.
    pub fn named_variable(&mut self, name: &str, holds: &str) -> String {
        if let Some((name, _)) = self.variables.iter().find(|(_, held)| held == holds) {
            return name.clone();
        }
        let name = distinct(name, '_', |name| self.variables.iter().any(|(taken, _)| taken == name));
        self.variables.push((name.clone(), holds.to_owned()));
        name
    }

    pub fn into_losses(self) -> Vec<String> {
        self.losses
    }
}

/// Something is not carried over, and [`Findings`] say why.
pub struct Lost(());

/// The name, or with a number behind it the first that is not taken.
pub fn distinct(wanted: &str, between: char, is_taken: impl Fn(&str) -> bool) -> String {
    let mut name = wanted.to_owned();
    let mut count = 2;
    while is_taken(&name) {
        name = format!("{wanted}{between}{count}");
        count += 1;
    }
    name
}

/// As one line without control characters, for comments and messages: what it quotes was written by others.
pub fn line(text: &str) -> String {
    let is_break = |c: char| {
        c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
    };
    text.chars().map(|c| if is_break(c) { ' ' } else { c }).collect()
}

/// `tokenUrl`, `token_url` and `tokenURL` are one key.
pub fn bare(name: &str) -> String {
    name.chars().filter(|c| *c != '_' && *c != '-').map(|c| c.to_ascii_lowercase()).collect()
}

/// A mapping, and where it stands.
#[derive(Clone)]
pub struct Section {
    pub place: Place,
    keys: Map<String, Value>,
}

impl Section {
    pub fn new(place: Place, keys: Map<String, Value>) -> Self {
        Self { place, keys }
    }

    /// Whether there is such a key with a value.
    pub fn has(&self, name: &str) -> bool {
        self.keys.iter().any(|(key, value)| bare(key) == bare(name) && !value.is_null())
    }

    /// The value of a key, which is then no longer there. `None`: there was none.
    pub fn take(&mut self, name: &str) -> Option<(Place, Value)> {
        let key = self.keys.keys().find(|key| bare(key) == bare(name)).cloned()?;
        let value = self.keys.remove(&key)?;
        (!value.is_null()).then(|| (self.place.child(&key), value))
    }

    pub fn text(&mut self, name: &str, found: &mut Findings) -> Result<Option<String>, Lost> {
        match self.take(name) {
            None => Ok(None),
            Some((_, Value::String(text))) => Ok(Some(text)),
            Some((place, _)) => Err(found.lose(&place, "is not text")),
        }
    }

    /// A text that says something.
    pub fn words(&mut self, name: &str, found: &mut Findings) -> Result<Option<String>, Lost> {
        Ok(self.text(name, found)?.filter(|text| !text.is_empty()))
    }

    /// A text that has to be there.
    pub fn needed(&mut self, name: &str, found: &mut Findings) -> Result<String, Lost> {
        self.words(name, found)?.ok_or_else(|| found.lose(&self.place.child(name), "is missing"))
    }

    pub fn texts(&mut self, name: &str, found: &mut Findings) -> Result<Vec<String>, Lost> {
        let Some((place, value)) = self.take(name) else { return Ok(Vec::new()) };
        let texts = value.as_array().and_then(|list| {
            list.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
        });
        texts.ok_or_else(|| found.lose(&place, "is not a list of texts"))
    }

    pub fn whole(&mut self, name: &str, found: &mut Findings) -> Result<Option<i64>, Lost> {
        let Some((place, value)) = self.take(name) else { return Ok(None) };
        value.as_i64().map(Some).ok_or_else(|| found.lose(&place, "is not a whole number"))
    }

    pub fn switch(&mut self, name: &str, found: &mut Findings) -> Result<bool, Lost> {
        let Some((place, value)) = self.take(name) else { return Ok(false) };
        value.as_bool().ok_or_else(|| found.lose(&place, "is neither true nor false"))
    }

    pub fn section(&mut self, name: &str, found: &mut Findings) -> Result<Option<Section>, Lost> {
        match self.take(name) {
            None => Ok(None),
            Some((place, Value::Object(keys))) => Ok(Some(Section::new(place, keys))),
            Some((place, _)) => Err(found.lose(&place, "is not a mapping")),
        }
    }

    /// The mappings of a list.
    pub fn sections(&mut self, name: &str, found: &mut Findings) -> Result<Vec<Section>, Lost> {
        let Some((place, value)) = self.take(name) else { return Ok(Vec::new()) };
        let Value::Array(items) = value else { return Err(found.lose(&place, "is not a list")) };
        let item = |(index, item): (usize, Value)| {
            let place = Place { key: format!("{}[{index}]", place.key), document: place.document.clone() };
            match item {
                Value::Object(keys) => Ok(Section::new(place, keys)),
                _ => Err(found.lose(&place, "is not a mapping")),
            }
        };
        items.into_iter().enumerate().map(item).collect()
    }

    /// The mappings under all keys, by key.
    pub fn entries(self, found: &mut Findings) -> Vec<(String, Section)> {
        let mut entries = Vec::with_capacity(self.keys.len());
        for (name, value) in self.keys {
            let place = self.place.child(&name);
            match value {
                Value::Object(keys) => entries.push((name, Section::new(place, keys))),
                _ => {
                    found.lose(&place, "is not a mapping");
                }
            }
        }
        entries
    }

    /// Says of all keys that were not taken why they are not carried over; of none for which there is no reason.
    pub fn rest(self, found: &mut Findings, reason: impl Fn(&str) -> Option<&'static str>) {
        for (key, value) in &self.keys {
            if let Some(reason) = reason(key).filter(|_| !value.is_null()) {
                found.lose(&self.place.child(key), reason);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_holds_one_thing() {
        let mut found = Findings::default();
        assert_eq!(found.variable("files_clientSecret", "a"), "FILES_CLIENT_SECRET");
        assert_eq!(found.variable("files-client-secret", "b"), "FILES_CLIENT_SECRET_2");
        assert_eq!(found.named_variable("FILES_CLIENT_SECRET", "c"), "FILES_CLIENT_SECRET_3");
        assert_eq!(found.variable("whatever", "a"), "FILES_CLIENT_SECRET", "the same thing");
        assert_eq!(found.variable("1password", "d"), "_1PASSWORD");
        assert_eq!(found.named_variable("as_it_is", "e"), "as_it_is");
    }
}
