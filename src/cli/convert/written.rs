//! Routes → the YAML that Postern reads, with comments on what else has to be there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::section::line;

/// A value in the file.
#[derive(Clone)]
pub enum Field {
    Text(String),
    Number(i64),
    List(Vec<Field>),
    Map(Vec<(&'static str, Field)>),
    /// A variable, and what belongs into it.
    Secret(String, String),
}

/// `credential` of a route.
#[derive(Clone)]
pub struct Credential {
    /// Which resource it was, to tell two of them apart.
    pub from: String,
    pub fields: Vec<(&'static str, Field)>,
    /// The entry of `login.oidc` that it needs.
    pub provider: Option<String>,
    /// What that entry has to be.
    pub of_provider: Vec<String>,
    /// Comments.
    pub notes: Vec<String>,
    /// Hosts that are led to, and may be within the private network.
    pub hosts: Vec<String>,
}

impl Credential {
    /// Of this kind, without anything else.
    pub fn new(kind: &str) -> Self {
        Self {
            from: String::new(),
            fields: vec![("kind", Field::Text(kind.to_owned()))],
            provider: None,
            of_provider: Vec::new(),
            notes: Vec::new(),
            hosts: Vec::new(),
        }
    }

    pub fn with(mut self, name: &'static str, field: Field) -> Self {
        self.fields.push((name, field));
        self
    }

    pub fn with_text(self, name: &'static str, text: Option<String>) -> Self {
        match text {
            Some(text) => self.with(name, Field::Text(text)),
            None => self,
        }
    }

    pub fn with_list(self, name: &'static str, list: Vec<String>) -> Self {
        match list.is_empty() {
            true => self,
            false => self.with(name, Field::List(list.into_iter().map(Field::Text).collect())),
        }
    }
}

/// A route as it will be printed.
#[derive(Clone)]
pub struct Route {
    /// The document that it comes from.
    pub from: String,
    pub name: String,
    /// `None`: the file does not say where the server is.
    pub url: Option<String>,
    pub is_private: bool,
    pub credential: Credential,
}

/// The whole output.
pub fn file(routes: &[Route]) -> String {
    let mut text = String::from("# Routes for Postern, by `postern convert`.\n");
    let credentials = || routes.iter().map(|route| &route.credential);
    let mut providers: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for credential in credentials() {
        if let Some(name) = &credential.provider {
            providers.entry(name).or_default().extend(credential.of_provider.iter().map(String::as_str));
        }
    }
    if !providers.is_empty() {
        text.push_str("#\n# Entries that have to be in `login.oidc`, by name:\n");
    }
    for (name, facts) in providers {
        let _ = writeln!(text, "#   {name}");
        for fact in facts {
            let _ = writeln!(text, "#     {}", line(fact));
        }
    }
    let secrets: BTreeMap<&str, &str> = credentials()
        .flat_map(|credential| &credential.fields)
        .filter_map(|(_, field)| secret(field))
        .collect();
    if !secrets.is_empty() {
        text.push_str("#\n# Variables that have to be set, and what belongs into them:\n");
    }
    for (variable, holds) in secrets {
        let _ = writeln!(text, "#   {}: {}", line(variable), line(holds));
    }
    if routes.is_empty() {
        text.push_str("routes: []");
        return text;
    }
    text.push_str("routes:\n");
    for route in routes {
        text.push_str(&self::route(route));
    }
    text.trim_end().to_owned()
}

/// One entry of `routes`.
pub fn route(route: &Route) -> String {
    let Route { from, name, url, is_private, credential } = route;
    let mut text = format!("  # {}\n", line(from));
    let _ = writeln!(text, "  - name: {}", scalar(name));
    let _ = writeln!(text, "    path: {}", scalar(&format!("/{name}")));
    text.push_str("    upstream:\n");
    let _ = match url {
        Some(url) => writeln!(text, "      url: {}", scalar(url)),
        None => writeln!(text, "      url:    # where the MCP server is; the file does not say"),
    };
    if *is_private {
        text.push_str("      allow_private: true\n");
    }
    if !credential.hosts.is_empty() {
        let hosts = Field::List(credential.hosts.iter().cloned().map(Field::Text).collect());
        let _ = writeln!(text, "      allow_hosts: {}", flow(&hosts));
    }
    text.push_str("    credential:\n");
    for note in &credential.notes {
        let _ = writeln!(text, "      # {}", line(note));
    }
    for (name, field) in &credential.fields {
        match field {
            Field::List(items) if items.iter().any(|item| matches!(item, Field::Map(_))) => {
                let _ = writeln!(text, "      {name}:");
                for item in items {
                    let _ = writeln!(text, "        - {}", flow(item));
                }
            }
            field => {
                let comment = secret(field).map(|(_, holds)| format!("    # {}", line(holds)));
                let _ = writeln!(text, "      {name}: {}{}", flow(field), comment.unwrap_or_default());
            }
        }
    }
    text
}

fn secret(field: &Field) -> Option<(&str, &str)> {
    match field {
        Field::Secret(variable, holds) => Some((variable, holds)),
        Field::Text(_) | Field::Number(_) | Field::List(_) | Field::Map(_) => None,
    }
}

/// In one line.
fn flow(field: &Field) -> String {
    match field {
        Field::Text(text) => scalar(text),
        Field::Number(number) => number.to_string(),
        Field::List(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Field::Map(entries) => {
            let entries = entries.iter().map(|(name, field)| format!("{name}: {}", flow(field)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
        }
        Field::Secret(variable, _) => format!("{{env: {}}}", scalar(variable)),
    }
}

/// Plain where nothing in it means anything to YAML, else in double quotes as JSON has it.
fn scalar(text: &str) -> String {
    const WORDS: [&str; 9] = ["false", "n", "no", "null", "off", "on", "true", "y", "yes"];
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._/:@+-".contains(c);
    let begins = |c: char| c.is_ascii_alphabetic() || c == '/';
    let means = |word: &&str| text.eq_ignore_ascii_case(word);
    if text.starts_with(begins)
        && !text.ends_with(':')
        && text.chars().all(is_plain)
        && !WORDS.iter().any(means)
    {
        return text.to_owned();
    }
    let quoted = serde_json::Value::from(text).to_string();
    // JSON leaves some of them as they are that YAML breaks lines at, or does not take.
    quoted
        .chars()
        .map(
            |c| {
                if c.is_alphanumeric() || c.is_ascii() && !c.is_control() {
                    c.to_string()
                } else {
                    escaped(c)
                }
            },
        )
        .collect()
}

fn escaped(c: char) -> String {
    format!("\\U{:08x}", u32::from(c))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for text in [
            "",
            "a",
            "yes",
            "Y",
            "~",
            "null",
            "1",
            "0x1",
            "1e3",
            "a: b",
            "a #b",
            "- a",
            "https://a.test/b?c=d&e=#f",
            "a:",
            "{a}",
            "[a]",
            "\"quoted\" \\ back",
            "two\nlines",
            "tab\t",
            "\u{85}\u{2028}\u{feff}",
            "größe",
            "\u{7f}",
            "🦀",
            "'",
            "%a",
            "@a",
            "/a",
            "a,b",
            "!a",
            "*a",
        ] {
            for written in [
                format!("x: {}", scalar(text)),
                format!("x: {}", flow(&Field::Map(vec![("y", Field::List(vec![Field::Text(text.into())]))]))),
            ] {
                let read: serde_json::Value = serde_saphyr::from_str(&written).unwrap();
                let value = read["x"].as_str().or(read["x"]["y"][0].as_str());
                assert_eq!(value, Some(text), "{written}");
            }
        }
    }
}
