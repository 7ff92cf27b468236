//! The configuration as a tree of positioned nodes.
//!
//! Serde stops at the first wrong key; this tree lets `shape` and `checked` look at the whole file and
//! say line and column for everything they find. It has no `Debug`: somebody may have put a secret in it.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};

use super::report::{Key, Position, Problem, Report, Step};

/// One YAML value and where it stands.
pub(super) struct Node {
    pub(super) position: Position,
    pub(super) value: Value,
}

/// What YAML 1.2 makes of a value.
pub(super) enum Value {
    Null,
    Bool(bool),
    Number(serde_json::Number),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One `key: value` line; `position` is that of the key.
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) position: Position,
    pub(super) node: Node,
}

/// Reads `text`. A syntax error (also: a duplicate key, a tag, a second document) is the only problem then.
pub(super) fn read(text: &str, name: &str) -> Result<Node, Report> {
    let options = serde_saphyr::options! {
        // YAML 1.2: `off`, `no`, `yes` are words, not booleans.
        strict_booleans: true,
        reject_unsupported_tags: true,
        // A snippet could show a secret that stands in the wrong place.
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options::<Node>(text, options).map_err(|error| {
        let position = error.location().map(position_of);
        let text = error.without_snippet().render_with_formatter(&serde_saphyr::UserMessageFormatter);
        let problem = Problem {
            position,
            key: Key::default(),
            what: format!("not valid YAML: {}", first_line(&text)),
            write: String::new(),
        };
        Report::new(name, vec![problem])
    })
}

fn position_of(location: Location) -> Position {
    Position { line: location.line().max(1), column: location.column().max(1) }
}

/// The parser's message without the place it appends: the report prints the place in front.
fn first_line(message: &str) -> &str {
    let line = message.lines().next().unwrap_or_default();
    line.split_once(" at line ").map_or(line, |(before, _)| before)
}

impl Node {
    /// Place of the value at `key`, or of the nearest enclosing value that exists.
    pub(super) fn locate(&self, key: &Key) -> Position {
        let mut node = self;
        for step in key.steps() {
            let next = match (&node.value, step) {
                (Value::Map(entries), Step::Name(name)) => {
                    entries.iter().find(|entry| entry.key == *name).map(|entry| &entry.node)
                }
                (Value::List(items), Step::Index(index)) => items.get(*index),
                _ => None,
            };
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        node.position
    }

    /// The text under these names, one within the other.
    pub(super) fn text(&self, names: &[&str]) -> Option<&str> {
        match (&self.value, names) {
            (Value::Text(text), []) => Some(text),
            (Value::Map(entries), [name, inner @ ..]) => {
                entries.iter().find(|entry| entry.key == *name)?.node.text(inner)
            }
            _ => None,
        }
    }

    /// What kind of value this is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { position: position_of(spanned.referenced), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        serde_json::Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("a number without an end has no place here"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = access.next_key::<Spanned<String>>()? {
            let position = position_of(key.referenced);
            let mut node: Node = access.next_value()?;
            // A block that begins on the next line is found under its key, not at its first entry.
            if node.position.line > position.line {
                node.position = position;
            }
            entries.push(Entry { key: key.value, position, node });
        }
        Ok(Value::Map(entries))
    }
}
