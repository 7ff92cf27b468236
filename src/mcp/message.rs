//! The JSON-RPC message in a request body, read so strictly that no server can read it in another way: what is decided
//! on it holds for what arrives. It is never written again, the bytes go on as they came.
//!
//! Refused is what parsers differ about: members that come twice or differ in case alone, batches, text that is no
//! UTF-8, a byte order mark, anything behind the end.
use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use http::HeaderMap;
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::{METHOD, NAME, arguments, decoded, single};
use crate::expression::Wanted;

/// A longer one is not repeated, bytes.
const LONGEST_ID: usize = 256;

/// What a message asks for. An answer of the client to a request of the server asks for nothing.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Message {
    pub method: Option<String>,
    /// What is called, read, subscribed to or completed.
    pub item: Option<Item>,
    /// Of a tool or a prompt, as far as they were wanted.
    pub arguments: Map<String, Value>,
    /// `id` as JSON, as it was written; `null` where there is none that is worth repeating.
    pub id: String,
}

/// Something that a server offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub kind: ItemKind,
    /// Of a resource its URI.
    pub name: String,
}

/// What servers offer. A resource template is a resource, by its template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ItemKind {
    Prompt,
    Resource,
    Tool,
}

/// Why nothing can be decided on a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("the body is not one JSON-RPC message with a single meaning")]
    Ambiguous,
    #[error("batches are not accepted here: send each message in a request of its own")]
    Batch,
}

impl Message {
    /// `wanted`: the arguments that somebody will look at.
    pub fn read(body: &[u8], wanted: &Wanted) -> Result<Self, Unreadable> {
        const KNOWN: [&str; 6] = ["jsonrpc", "id", "method", "params", "result", "error"];
        let text = std::str::from_utf8(body).map_err(|_| Unreadable::Ambiguous)?;
        if text.trim_ascii_start().starts_with('[') {
            return Err(Unreadable::Batch);
        }
        let message = Members::read(text, &KNOWN)?;
        let method = message.text("method")?;
        let params = || message.raw("params").map(|params| params.get()).ok_or(Unreadable::Ambiguous);
        let (item, arguments) = match method.as_deref() {
            Some("tools/call") => called(params()?, ItemKind::Tool, wanted)?,
            Some("prompts/get") => called(params()?, ItemKind::Prompt, wanted)?,
            Some("resources/read" | "resources/subscribe" | "resources/unsubscribe") => {
                (Some(Members::read(params()?, &["uri"])?.item(ItemKind::Resource, "uri")?), Map::new())
            }
            Some("completion/complete") => (completed(params()?)?, Map::new()),
            _ => (None, Map::new()),
        };
        let id = message.raw("id").map(|id| id.get()).filter(|id| id.len() <= LONGEST_ID);
        let id = id.unwrap_or("null").to_owned();
        Ok(Self { method, item, arguments, id })
    }

    /// Whether `Mcp-Method` and `Mcp-Name`, where they are, say the same: a server may go by either (SEP-2243).
    pub fn is_mirrored_in(&self, headers: &HeaderMap) -> bool {
        let method = !headers.contains_key(METHOD) || single(headers, METHOD) == self.method.as_deref();
        // What the name of other methods is, only their extension knows.
        let named = matches!(self.method.as_deref(), Some("tools/call" | "prompts/get" | "resources/read"));
        let item = self.item.as_ref().filter(|_| named && headers.contains_key(NAME));
        let name =
            item.is_none_or(|item| single(headers, NAME).and_then(decoded).as_deref() == Some(&*item.name));
        method && name
    }

    /// Whether an answer is expected.
    pub fn is_request(&self) -> bool {
        self.method.is_some() && self.id != "null"
    }
}

/// The tool or prompt that is called, and its arguments.
fn called(
    params: &str,
    kind: ItemKind,
    wanted: &Wanted,
) -> Result<(Option<Item>, Map<String, Value>), Unreadable> {
    if wanted.is_nothing() {
        return Ok((Some(Members::read(params, &["name"])?.item(kind, "name")?), Map::new()));
    }
    let params = Members::read(params, &["name", "arguments"])?;
    let arguments = params.raw("arguments").map(|raw| arguments::read(raw, wanted)).transpose()?;
    Ok((Some(params.item(kind, "name")?), arguments.unwrap_or_default()))
}

/// What is to be completed: an argument of a prompt or of a resource template.
fn completed(params: &str) -> Result<Option<Item>, Unreadable> {
    let params = Members::read(params, &["ref"])?;
    let reference = params.raw("ref").ok_or(Unreadable::Ambiguous)?;
    let reference = Members::read(reference.get(), &["type", "name", "uri"])?;
    Ok(match reference.text("type")?.as_deref() {
        Some("ref/prompt") => Some(reference.item(ItemKind::Prompt, "name")?),
        Some("ref/resource") => Some(reference.item(ItemKind::Resource, "uri")?),
        _ => None,
    })
}

/// The members of one object, by name; no two could be taken for one another.
pub(super) struct Members<'t>(Vec<(Cow<'t, str>, &'t RawValue)>);

/// With more members than that, names are looked for by their hash.
const FEW: usize = 16;

/// Borrowed where it was written without escapes.
#[derive(Deserialize)]
struct Key<'t>(#[serde(borrow)] Cow<'t, str>);

impl<'t> Members<'t> {
    /// `known`: the names that have a meaning here; no other spelling of them is let through.
    pub(super) fn read(text: &'t str, known: &[&str]) -> Result<Self, Unreadable> {
        let Self(members) = serde_json::from_str(text).map_err(|_| Unreadable::Ambiguous)?;
        let is_variant =
            |name: &str| !known.contains(&name) && known.iter().any(|known| is_spelling_of(name, known));
        if members.iter().any(|(name, _)| is_variant(name)) {
            return Err(Unreadable::Ambiguous);
        }
        Ok(Self(members))
    }

    /// As it was written.
    pub(super) fn raw(&self, name: &str) -> Option<&'t RawValue> {
        self.0.iter().find(|(own, _)| own == name).map(|(_, value)| *value)
    }

    /// `None`: there is no such member.
    pub(super) fn text(&self, name: &str) -> Result<Option<String>, Unreadable> {
        self.raw(name)
            .map(|raw| serde_json::from_str(raw.get()).map_err(|_| Unreadable::Ambiguous))
            .transpose()
    }

    /// What the member `named` names.
    fn item(&self, kind: ItemKind, named: &str) -> Result<Item, Unreadable> {
        let name = self.text(named)?.ok_or(Unreadable::Ambiguous)?;
        Ok(Item { kind, name })
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let (mut members, mut names) = (Vec::<(Cow<'de, str>, _)>::with_capacity(4), HashSet::new());
                while let Some((Key(name), value)) = map.next_entry::<Key<'de>, &RawValue>()? {
                    if members.len() == FEW {
                        names.extend(members.iter().map(|(name, _)| name.clone()));
                    }
                    let is_there = match members.len() < FEW {
                        true => members.iter().any(|(known, _)| *known == name),
                        false => !names.insert(name.clone()),
                    };
                    if is_there {
                        return Err(M::Error::custom("a member that comes twice"));
                    }
                    members.push((name, value));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// Whether somebody may take the one for the other.
pub(super) fn is_spelling_of(name: &str, known: &str) -> bool {
    match name.is_ascii() && known.is_ascii() {
        true => name.eq_ignore_ascii_case(known),
        false => folded(name) == folded(known),
    }
}

/// One form for all spellings that somebody may take for the same: Unicode's simple folding, as Go's `encoding/json`
/// does it, makes an `s` of `ſ` and a `k` of the Kelvin sign.
pub(super) fn folded(name: &str) -> String {
    name.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use http::HeaderValue;

    use super::*;

    fn read(body: &str) -> Result<Message, Unreadable> {
        Message::read(body.as_bytes(), &Wanted::default())
    }

    #[test]
    fn a_call_says_what_it_calls() {
        let message = |method: &str, name: Option<(ItemKind, &str)>, id: &str| Message {
            method: Some(method.to_owned()),
            item: name.map(|(kind, name)| Item { kind, name: name.to_owned() }),
            arguments: Map::new(),
            id: id.to_owned(),
        };
        for (body, expected) in [
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"add"}}"#,
                message("tools/call", Some((ItemKind::Tool, "add")), "1"),
            ),
            (
                r#" {"id":"a","method":"prompts\/get","params":{"x":{"name":"no"},"name":"p"}} "#,
                message("prompts/get", Some((ItemKind::Prompt, "p")), "\"a\""),
            ),
            (
                r#"{"id":2,"method":"resources/read","params":{"uri":"file:///x","name":"no"}}"#,
                message("resources/read", Some((ItemKind::Resource, "file:///x")), "2"),
            ),
            (
                r#"{"\u006dethod":"tools/call","params":{"n\u0061me":"\u0061dd"}}"#,
                message("tools/call", Some((ItemKind::Tool, "add")), "null"),
            ),
            (
                r#"{"id":3,"method":"resources/subscribe","params":{"uri":"file:///x"}}"#,
                message("resources/subscribe", Some((ItemKind::Resource, "file:///x")), "3"),
            ),
            (
                r#"{"id":4,"method":"completion/complete","params":{"ref":{"type":"ref/prompt","name":"p"}}}"#,
                message("completion/complete", Some((ItemKind::Prompt, "p")), "4"),
            ),
            (
                r#"{"id":5,"method":"completion/complete","params":{"ref":{"type":"ref/resource","uri":"x:{y}"}}}"#,
                message("completion/complete", Some((ItemKind::Resource, "x:{y}")), "5"),
            ),
            (
                r#"{"id":6,"method":"completion/complete","params":{"ref":{"type":"ref/other"}}}"#,
                message("completion/complete", None, "6"),
            ),
            (r#"{"method":"tools/list"}"#, message("tools/list", None, "null")),
            (r#"{"id":1,"method":"ping","params":[1]}"#, message("ping", None, "1")),
        ] {
            assert_eq!(read(body), Ok(expected), "{body}");
        }
        assert_eq!(read(r#"{"id":1,"result":{}}"#).unwrap().method, None);
    }

    #[test]
    fn a_member_that_comes_twice_is_found_among_many() {
        for count in [1, FEW - 1, FEW, FEW + 1, 3 * FEW] {
            let members: String = (0..count).map(|n| format!(r#""m{n}":0,"#)).collect();
            let message = |last: &str| format!(r#"{{{members}"method":"ping","{last}":1}}"#);
            assert!(read(&message("other")).is_ok(), "{count}");
            for twice in ["m0", "\\u006d0", "method", &format!("m{}", count - 1)] {
                assert_eq!(read(&message(twice)), Err(Unreadable::Ambiguous), "{twice} of {count}");
            }
        }
    }

    #[test]
    fn names_are_compared_with_the_headers() {
        let call = read(r#"{"id":1,"method":"tools/call","params":{"name":"über"}}"#).unwrap();
        let list = read(r#"{"id":1,"method":"tools/list"}"#).unwrap();
        for (message, lines, same) in [
            (&call, &[][..], true),
            (&call, &[(METHOD, "tools/call"), (NAME, "=?base64?w7xiZXI=?=")], true),
            (&call, &[(METHOD, "tools/list")], false),
            (&call, &[(METHOD, "tools/call"), (METHOD, "tools/call")], false),
            (&call, &[(NAME, "uber")], false),
            (&call, &[(NAME, "=?base64?***?=")], false),
            (&list, &[(METHOD, "tools/list"), (NAME, "of an extension")], true),
            (&list, &[(METHOD, "tools/call")], false),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(name, HeaderValue::from_static(value));
            }
            assert_eq!(message.is_mirrored_in(&headers), same, "{lines:?}");
        }
    }
}
