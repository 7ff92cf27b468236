//! Holds the document against the JSON schema of `file`: unknown keys, missing keys, wrong types.
//!
//! One source for editor, `postern schema` and these messages: the types in `file`. Only the parts of
//! JSON Schema that those types produce are understood.

use serde_json::{Map, Value as Json};

use super::document::{Entry, Node, Value};
use super::report::{Key, Problem};

/// The document as JSON without its unknown keys, and what was wrong with it.
pub(super) struct Shaped {
    pub(super) json: Json,
    pub(super) problems: Vec<Problem>,
    /// Something besides an unknown key is wrong: looking further would only produce echoes.
    pub(super) broken: bool,
}

/// Walks `document` along `schema`.
pub(super) fn check(document: &Node, schema: &Json) -> Shaped {
    let mut walk = Walk { schema, problems: Vec::new(), broken: false };
    let json = walk.node(document, schema, &Key::default());
    Shaped { json, problems: walk.problems, broken: walk.broken }
}

struct Walk<'a> {
    schema: &'a Json,
    problems: Vec<Problem>,
    broken: bool,
}

impl<'a> Walk<'a> {
    fn node(&mut self, node: &Node, schema: &'a Json, key: &Key) -> Json {
        let resolved = self.resolve(schema, node);
        if matches!(node.value, Value::Null) {
            if !resolved.nullable && resolved.kind.is_some() {
                self.refuse(node, key, "has no value", format!("write {}", resolved.wanted()));
            }
            return Json::Null;
        }
        if let Some(words) = &resolved.words {
            return self.word(node, words, key);
        }
        match (resolved.kind, &node.value) {
            (Some("object") | None, Value::Map(entries)) => self.map(node, entries, &resolved, key),
            (Some("array") | None, Value::List(items)) => {
                let of = resolved.schema.get("items").unwrap_or(&Json::Null);
                Json::Array(
                    items.iter().enumerate().map(|(i, item)| self.node(item, of, &key.item(i))).collect(),
                )
            }
            (Some("string") | None, Value::Text(text)) => Json::String(text.clone()),
            (Some("boolean") | None, Value::Bool(value)) => Json::Bool(*value),
            (Some("integer"), Value::Number(number)) => {
                let least = resolved.schema.get("minimum").and_then(Json::as_f64).unwrap_or(0.0);
                match number.as_u64() {
                    Some(whole) if whole as f64 >= least => {}
                    _ => self.refuse(
                        node,
                        key,
                        "is out of range",
                        format!("write a whole number from {least} upwards"),
                    ),
                }
                Json::Number(number.clone())
            }
            (None | Some("number"), Value::Number(number)) => Json::Number(number.clone()),
            _ => {
                let (what, write) = resolved.mismatch(node);
                self.refuse(node, key, what, write);
                Json::Null
            }
        }
    }

    fn word(&mut self, node: &Node, words: &[&str], key: &Key) -> Json {
        match &node.value {
            Value::Text(text) if words.contains(&text.as_str()) => Json::String(text.clone()),
            Value::Text(text) => {
                let write = choose(text, words);
                self.refuse(node, key, "unknown value", write);
                Json::Null
            }
            _ => {
                // Some are numbers to YAML.
                let as_text = |word: &&str| match word.starts_with(|first: char| first.is_ascii_digit()) {
                    true => format!("\"{word}\""),
                    false => (*word).to_owned(),
                };
                let words: Vec<String> = words.iter().map(as_text).collect();
                self.refuse(
                    node,
                    key,
                    format!("is {}, not a word", node.kind()),
                    format!("write one of {}", words.join(", ")),
                );
                Json::Null
            }
        }
    }

    fn map(&mut self, node: &Node, entries: &[Entry], resolved: &Resolved<'a>, key: &Key) -> Json {
        let empty = Map::new();
        let properties = resolved.schema.get("properties").and_then(Json::as_object).unwrap_or(&empty);
        let additional = resolved.schema.get("additionalProperties");
        let open = resolved.kind.is_none() || additional.is_some_and(|of| of.as_bool() != Some(false));
        let mut map = Map::new();
        for entry in entries {
            let child = key.child(&entry.key);
            let of = self.property(resolved.schema, &entry.key);
            if let Some(of) = of {
                map.insert(entry.key.clone(), self.node(&entry.node, of, &child));
            } else if open {
                let of = resolved.schema.get("additionalProperties").unwrap_or(&Json::Null);
                map.insert(entry.key.clone(), self.node(&entry.node, of, &child));
            } else {
                let known: Vec<&str> = properties.keys().map(String::as_str).collect();
                self.problems.push(Problem {
                    position: Some(entry.position),
                    key: child,
                    what: "unknown key".to_owned(),
                    write: choose(&entry.key, &known),
                });
            }
        }
        let required = resolved.schema.get("required").and_then(Json::as_array);
        for name in required.into_iter().flatten().filter_map(Json::as_str) {
            if !entries.iter().any(|entry| entry.key == name) {
                let about = properties.get(name).and_then(|of| self.about(of)).unwrap_or_default();
                let write = format!("write `{name}: …`{about}");
                self.refuse(node, &key.child(name), "is missing", write);
            }
        }
        Json::Object(map)
    }

    /// The schema of property `name`, borrowed for as long as the whole schema.
    fn property(&self, schema: &'a Json, name: &str) -> Option<&'a Json> {
        schema.get("properties")?.get(name)
    }

    /// First sentence of a description, in parentheses.
    fn about(&self, schema: &Json) -> Option<String> {
        let text = schema.get("description")?.as_str()?;
        let sentence = text.split_once(". ").map_or(text, |(first, _)| first);
        let sentence = sentence.lines().collect::<Vec<_>>().join(" ");
        Some(format!(" ({})", sentence.trim_end_matches('.')))
    }

    /// Follows `$ref` and picks the alternative that is written, or else the first that is not `null`.
    fn resolve(&self, schema: &'a Json, node: &Node) -> Resolved<'a> {
        if let Some(alternatives) = schema.get("anyOf").and_then(Json::as_array) {
            let is_null = |of: &&Json| of.get("type").and_then(Json::as_str) == Some("null");
            let known = alternatives.iter().filter(|of| !is_null(of));
            let mut known: Vec<_> = known.map(|of| self.resolve(of, node)).collect();
            let written = known.iter().position(|of| of.fits(node)).unwrap_or_default();
            let mut resolved =
                if known.is_empty() { Resolved::plain(schema) } else { known.swap_remove(written) };
            resolved.nullable |= alternatives.iter().any(|of| is_null(&of));
            return resolved;
        }
        let named = schema.get("$ref").and_then(Json::as_str).and_then(|path| path.strip_prefix("#/$defs/"));
        if let Some(name) = named {
            let target = self.schema.get("$defs").and_then(|defs| defs.get(name)).unwrap_or(&Json::Null);
            let mut resolved = self.resolve(target, node);
            resolved.secret = name == "Secret";
            return resolved;
        }
        Resolved::plain(schema)
    }

    fn refuse(&mut self, node: &Node, key: &Key, what: impl Into<String>, write: impl Into<String>) {
        self.broken = true;
        self.problems.push(Problem {
            position: Some(node.position),
            key: key.clone(),
            what: what.into(),
            write: write.into(),
        });
    }
}

/// What a schema asks for, with references followed.
struct Resolved<'a> {
    schema: &'a Json,
    kind: Option<&'a str>,
    nullable: bool,
    /// The allowed words, where only some are.
    words: Option<Vec<&'a str>>,
    /// This is the place of a secret.
    secret: bool,
}

impl<'a> Resolved<'a> {
    fn plain(schema: &'a Json) -> Self {
        let types: Vec<&str> = match schema.get("type") {
            Some(Json::String(name)) => vec![name.as_str()],
            Some(Json::Array(names)) => names.iter().filter_map(Json::as_str).collect(),
            _ => Vec::new(),
        };
        let words: Option<Vec<&str>> = if let Some(words) = schema.get("enum").and_then(Json::as_array) {
            Some(words.iter().filter_map(Json::as_str).collect())
        } else {
            // Unit variants with a description of their own.
            schema.get("oneOf").and_then(Json::as_array).map(|variants| {
                variants.iter().filter_map(|variant| variant.get("const").and_then(Json::as_str)).collect()
            })
        };
        let kind = types.iter().copied().find(|name| *name != "null").or(words.as_ref().map(|_| "string"));
        Self { schema, kind, nullable: types.contains(&"null"), words, secret: false }
    }

    /// Whether it asks for what is written.
    fn fits(&self, node: &Node) -> bool {
        matches!(
            (self.kind, &node.value),
            (Some("string"), Value::Text(_))
                | (Some("array"), Value::List(_))
                | (Some("object"), Value::Map(_))
        )
    }

    /// What belongs here, for messages.
    fn wanted(&self) -> &'static str {
        match self.kind {
            _ if self.secret => SECRET_FORMS,
            Some("object") => "a mapping of keys",
            Some("array") => "a list, like [first, second]",
            Some("boolean") => "true or false",
            Some("integer") => "a whole number",
            Some("number") => "a number",
            _ => "text",
        }
    }

    fn mismatch(&self, node: &Node) -> (String, String) {
        match (&node.value, self.kind) {
            _ if self.secret => {
                (format!("is {} where a secret belongs", node.kind()), format!("write {SECRET_FORMS}"))
            }
            (Value::Number(_) | Value::Bool(_), Some("string")) => {
                (format!("is {}, not text", node.kind()), "put it in quotes".to_owned())
            }
            _ => (format!("is {} where it cannot be", node.kind()), format!("write {}", self.wanted())),
        }
    }
}

/// The three ways to name a secret.
pub(super) const SECRET_FORMS: &str = "{env: NAME}, {file: PATH} or {credential: NAME}";

/// "did you mean" where something known is close, and the whole choice.
fn choose(written: &str, known: &[&str]) -> String {
    let near = known
        .iter()
        .map(|name| (distance(&written.to_lowercase(), name), *name))
        .filter(|(steps, name)| *steps <= 1.max(name.len() / 3))
        .min();
    match near {
        Some((_, name)) => format!("did you mean `{name}`? write one of {}", known.join(", ")),
        None => format!("write one of {}", known.join(", ")),
    }
}

/// Edit distance where swapping two neighbours counts once (optimal string alignment).
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=right.len()).collect();
    let mut previous = None;
    for (row, a) in left.chars().enumerate() {
        let mut current = Vec::with_capacity(last.len());
        current.push(row + 1);
        for (column, b) in right.iter().enumerate() {
            let at = |line: &[usize], index: usize| line.get(index).copied().unwrap_or(usize::MAX / 2);
            let mut best = at(&last, column) + usize::from(a != *b);
            best = best.min(at(&last, column + 1) + 1).min(at(&current, column) + 1);
            if column > 0 && previous == Some(*b) && right.get(column - 1) == Some(&a) {
                best = best.min(at(&before, column - 1) + 1);
            }
            current.push(best);
        }
        previous = Some(a);
        before = std::mem::replace(&mut last, current);
    }
    last.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_found() {
        assert_eq!(distance("ulr", "url"), 1);
        assert_eq!(distance("public_ur", "public_url"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert!(choose("ulr", &["url", "allow_private"]).starts_with("did you mean `url`?"));
        assert_eq!(choose("zzz", &["url", "path"]), "write one of url, path");
    }
}
