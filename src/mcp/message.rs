//! The JSON-RPC message in a request body, read so strictly that no server can read it in another way: what is decided
//! on it holds for what arrives. It is never written again, the bytes go on as they came.
//!
//! Refused is what parsers differ about: members that come twice or differ in case alone, batches, text that is no
//! UTF-8, a byte order mark, anything behind the end.
use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use compact_str::CompactString;
use http::HeaderMap;
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::envelope::Envelope;
use super::scan;
use super::{METHOD, NAME, arguments, decoded, single};
use crate::expression::Wanted;

/// A longer one is not repeated, bytes.
const LONGEST_ID: usize = 256;

/// What a message asks for. An answer of the client to a request of the server asks for nothing.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Message {
    pub method: Option<CompactString>,
    /// What is called, read, subscribed to or completed.
    pub item: Option<Item>,
    /// Of a tool or a prompt, as far as they were wanted.
    pub arguments: Map<String, Value>,
    /// `id` as JSON, as it was written; `null` where there is none that is worth repeating.
    pub id: CompactString,
}

/// Something that a server offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub kind: ItemKind,
    /// Of a resource its URI.
    pub name: CompactString,
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
        let text = std::str::from_utf8(body).map_err(|_| Unreadable::Ambiguous)?;
        if text.trim_ascii_start().starts_with('[') {
            return Err(Unreadable::Batch);
        }
        let envelope = Envelope::read(text)?;
        let method = envelope.method()?;
        let (item, arguments) = match method.as_deref() {
            Some("tools/call") => called(&envelope, ItemKind::Tool, wanted)?,
            Some("prompts/get") => called(&envelope, ItemKind::Prompt, wanted)?,
            Some("resources/read" | "resources/subscribe" | "resources/unsubscribe") => {
                (Some(Item::named(ItemKind::Resource, envelope.param("uri")?)?), Map::new())
            }
            Some("completion/complete") => (completed(&envelope)?, Map::new()),
            _ => (None, Map::new()),
        };
        let id = envelope.id.filter(|id| id.len() <= LONGEST_ID).unwrap_or("null");
        Ok(Self { method: method.map(CompactString::from), item, arguments, id: id.into() })
    }

    /// Whether `Mcp-Method` and `Mcp-Name`, where they are, say the same: a server may go by either (SEP-2243).
    pub fn is_mirrored_in(&self, headers: &HeaderMap) -> bool {
        // Most clients send neither, and to compare names is less than to hash two.
        if headers.keys().all(|name| *name != METHOD && *name != NAME) {
            return true;
        }
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

impl Item {
    /// `name`: as it is written, where it is.
    fn named(kind: ItemKind, name: Option<&str>) -> Result<Self, Unreadable> {
        let name = name.and_then(scan::text_of).ok_or(Unreadable::Ambiguous)?;
        Ok(Self { kind, name: name.into() })
    }
}

/// The tool or prompt that is called, and its arguments.
fn called(
    envelope: &Envelope<'_>,
    kind: ItemKind,
    wanted: &Wanted,
) -> Result<(Option<Item>, Map<String, Value>), Unreadable> {
    let arguments = match wanted.is_nothing() {
        true => None,
        false => envelope.param("arguments")?,
    };
    let arguments = arguments.map(|raw| arguments::read(raw, wanted)).transpose()?;
    Ok((Some(Item::named(kind, envelope.param("name")?)?), arguments.unwrap_or_default()))
}

/// What is to be completed: an argument of a prompt or of a resource template.
fn completed(envelope: &Envelope<'_>) -> Result<Option<Item>, Unreadable> {
    let reference = envelope.param("ref")?.ok_or(Unreadable::Ambiguous)?;
    let reference = Members::read(reference, &["type", "name", "uri"])?;
    let named = |kind, name| Item::named(kind, reference.raw(name).map(RawValue::get)).map(Some);
    match reference.text("type")?.as_deref() {
        Some("ref/prompt") => named(ItemKind::Prompt, "name"),
        Some("ref/resource") => named(ItemKind::Resource, "uri"),
        _ => Ok(None),
    }
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
    use proptest::prelude::*;

    use super::*;
    use crate::expression::compile;

    fn read(body: &str) -> Result<Message, Unreadable> {
        Message::read(body.as_bytes(), &Wanted::default())
    }

    #[test]
    fn a_call_says_what_it_calls() {
        let message = |method: &str, name: Option<(ItemKind, &str)>, id: &str| Message {
            method: Some(method.into()),
            item: name.map(|(kind, name)| Item { kind, name: name.into() }),
            arguments: Map::new(),
            id: id.into(),
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
            let escaped_first = format!(r#"{{"\u006d0":0,{members}"method":"ping"}}"#);
            assert_eq!(read(&escaped_first), Err(Unreadable::Ambiguous), "{count}");
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

    /// The same in several passes: each object on its own, by `serde_json`.
    fn read_by_serde(text: &str, wanted: &Wanted) -> Result<Message, Unreadable> {
        let message = Members::read(text, &["jsonrpc", "id", "method", "params", "result", "error"])?;
        let method = message.text("method")?;
        let params = |known: &[&str]| Members::read(message.raw("params").map_or("", RawValue::get), known);
        let named = |members: &Members<'_>, kind, key: &str| {
            let name = members.text(key)?.ok_or(Unreadable::Ambiguous)?.into();
            Ok::<_, Unreadable>(Some(Item { kind, name }))
        };
        let mut arguments = Map::new();
        let item = match method.as_deref() {
            Some(method @ ("tools/call" | "prompts/get")) => {
                let known = if wanted.is_nothing() { &["name"][..] } else { &["name", "arguments"] };
                let params = params(known)?;
                if let Some(raw) = params.raw("arguments").filter(|_| !wanted.is_nothing()) {
                    arguments = arguments::read(raw.get(), wanted)?;
                }
                let kind = if method == "tools/call" { ItemKind::Tool } else { ItemKind::Prompt };
                named(&params, kind, "name")?
            }
            Some("resources/read" | "resources/subscribe" | "resources/unsubscribe") => {
                named(&params(&["uri"])?, ItemKind::Resource, "uri")?
            }
            Some("completion/complete") => {
                let params = params(&["ref"])?;
                let of =
                    Members::read(params.raw("ref").map_or("", RawValue::get), &["type", "name", "uri"])?;
                match of.text("type")?.as_deref() {
                    Some("ref/prompt") => named(&of, ItemKind::Prompt, "name")?,
                    Some("ref/resource") => named(&of, ItemKind::Resource, "uri")?,
                    _ => None,
                }
            }
            _ => None,
        };
        let id = message.raw("id").map(RawValue::get).filter(|id| id.len() <= LONGEST_ID);
        Ok(Message { method: method.map(Into::into), item, arguments, id: id.unwrap_or("null").into() })
    }

    /// An object of these members, with now and then a slip in it.
    fn object(members: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
        let slip =
            prop_oneof![30 => Just(""), 1 => Just(","), 1 => Just("{"), 1 => Just("1"), 1 => Just("\"")];
        (prop::collection::vec(members, 0..6), prop::sample::select(vec![",", " ,\n "]), slip)
            .prop_map(|(members, comma, slip)| format!("{{{}{slip}}}", members.join(comma)))
    }

    fn member(
        names: &'static [&'static str],
        values: impl Strategy<Value = String>,
    ) -> impl Strategy<Value = String> {
        (prop::sample::select(names), values).prop_map(|(name, value)| format!("\"{name}\": {value}"))
    }

    fn messages() -> impl Strategy<Value = String> {
        let value = || {
            const VALUES: [&str; 10] = [
                "\"a\"",
                "\"\\u0061\"",
                "\"\\ud800\"",
                "1",
                "null",
                "{}",
                "[]",
                "{\"key\":1}",
                "{\"key\":1,\"Key\":2}",
                "01",
            ];
            prop::sample::select(&VALUES[..]).prop_map(str::to_owned)
        };
        let reference = object(member(
            &["type", "name", "uri", "Name", "x"],
            prop_oneof![value(), Just("\"ref/prompt\"".to_owned()), Just("\"ref/resource\"".to_owned())],
        ));
        let params = object(member(
            &[
                "name",
                "name",
                "uri",
                "ref",
                "arguments",
                "n\\u0061me",
                "Name",
                "URI",
                "Ref",
                "argumentſ",
                "_meta",
                "a",
                "\\ud800",
            ],
            prop_oneof![value(), reference],
        ))
        .boxed();
        let method = prop::sample::select(vec![
            "\"tools/call\"",
            "\"tools/call\"",
            "\"tools\\/call\"",
            "\"prompts/get\"",
            "\"resources/read\"",
            "\"completion/complete\"",
            "\"ping\"",
            "null",
            "1",
        ]);
        let of_method =
            (method, any::<bool>(), params.clone()).prop_map(|(method, before, params)| match before {
                true => format!("\"method\":{method}, \"params\" :{params}"),
                false => format!("\"params\":{params},\"method\":{method}"),
            });
        let other = member(
            &[
                "jsonrpc", "id", "id", "result", "error", "params", "Method", "\\u0069d", "iD", "reſult",
                "x", "y", "\\ud800",
            ],
            prop_oneof![3 => value(), 1 => params],
        );
        (object(prop_oneof![1 => of_method, 2 => other]), prop_oneof![9 => Just(""), 1 => Just(" x")])
            .prop_map(|(object, behind)| format!(" {object}{behind}"))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn one_pass_reads_what_several_read(text in messages(), rule: bool) {
            let program = compile("mcp.arguments.key == 1").ok().unwrap();
            let nothing = Wanted::default();
            let wanted = if rule { program.arguments() } else { &nothing };
            prop_assert_eq!(Message::read(text.as_bytes(), wanted), read_by_serde(&text, wanted), "{}", text);
        }
    }
}
