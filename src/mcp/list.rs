//! Lists of tools, prompts and resources in a JSON text of the server, cut down to what a caller may see.
//!
//! A list is known by its shape, not by what was asked: wherever a message has one in its `result`, it is filtered. Written
//! anew are the array and `cacheScope`, every other byte is copied. As with [`Message`](super::Message), a text that two
//! parsers might read in two ways is refused: one of them could find an item that the other did not see.
use std::ops::Range;

use serde_json::value::RawValue;

use super::glance::Glance;
use super::message::{ItemKind, Members, Unreadable};

/// Member of the result, what it lists, and which member of an item says its name.
const LISTS: [(&str, ItemKind, &str); 4] = [
    ("tools", ItemKind::Tool, "name"),
    ("prompts", ItemKind::Prompt, "name"),
    ("resources", ItemKind::Resource, "uri"),
    ("resourceTemplates", ItemKind::Resource, "uriTemplate"),
];
/// Who may keep a result: `public`, everybody; `private`, the one who asked (2026-07-28).
const CACHE_SCOPE: &str = "cacheScope";
const PRIVATE: &str = "\"private\"";
/// What reading a resource brings.
const CONTENTS: &str = "contents";

/// The text without the items that `keep` says no to, given what they are and their name or URI. No list in it, and nothing
/// read, may be kept for others. `None`: it stays as it is.
///
/// A text without any object passes, whatever it is.
pub fn filter(
    text: &str,
    keep: &mut dyn FnMut(ItemKind, &str) -> bool,
) -> Result<Option<String>, Unreadable> {
    if Glance::at(text.as_bytes()).is_indifferent {
        return Ok(None);
    }
    let mut copy = Copy { text, copied: 0, written: String::new() };
    let body = text.trim_ascii();
    if body.starts_with('[') {
        // A batch (2025-03-26).
        for message in elements(body)? {
            of_message(message.get(), &mut copy, keep)?;
        }
    } else {
        of_message(body, &mut copy, keep)?;
    }
    Ok(copy.finish())
}

fn of_message<'t>(
    message: &'t str,
    copy: &mut Copy<'t>,
    keep: &mut dyn FnMut(ItemKind, &str) -> bool,
) -> Result<(), Unreadable> {
    const KNOWN: [&str; 6] = ["jsonrpc", "id", "method", "params", "result", "error"];
    // No message is anything but an object.
    if !message.starts_with('{') && !message.contains('{') {
        return Ok(());
    }
    let message = Members::read(message, &KNOWN)?;
    match message.raw("result") {
        Some(result) if result.get().starts_with('{') => of_result(result, copy, keep),
        Some(result) if result.get().starts_with('[') && result.get().contains('{') => {
            Err(Unreadable::Ambiguous)
        }
        _ => Ok(()),
    }
}

fn of_result<'t>(
    result: &'t RawValue,
    copy: &mut Copy<'t>,
    keep: &mut dyn FnMut(ItemKind, &str) -> bool,
) -> Result<(), Unreadable> {
    const KNOWN: [&str; 6] = ["tools", "prompts", "resources", "resourceTemplates", CONTENTS, CACHE_SCOPE];
    let members = Members::read(result.get(), &KNOWN)?;
    let mut edits = Vec::new();
    let mut is_of_caller = members.raw(CONTENTS).is_some();
    for (name, kind, key) in LISTS {
        // Some servers write `null` for none.
        let Some(list) = members.raw(name).filter(|list| list.get() != "null") else { continue };
        is_of_caller = true;
        let items = elements(list.get())?;
        let mut kept = Vec::with_capacity(items.len());
        for item in &items {
            let name = Members::read(item.get(), &[key])?.text(key)?.ok_or(Unreadable::Ambiguous)?;
            if keep(kind, &name) {
                kept.push(item.get());
            }
        }
        if kept.len() < items.len() {
            edits.push((list.get(), format!("[{}]", kept.join(","))));
        }
    }
    if let Some(scope) = members.raw(CACHE_SCOPE).filter(|scope| is_of_caller && scope.get() != PRIVATE) {
        edits.push((scope.get(), PRIVATE.to_owned()));
    }
    // In the order of the text; no two of them overlap.
    edits.sort_by_key(|(old, _)| old.as_ptr());
    for (old, new) in edits {
        copy.replace(old, &new);
    }
    Ok(())
}

/// The elements of an array.
fn elements(text: &str) -> Result<Vec<&RawValue>, Unreadable> {
    serde_json::from_str(text).map_err(|_| Unreadable::Ambiguous)
}

/// A copy of a text with some slices of it replaced, from its beginning to its end.
struct Copy<'t> {
    text: &'t str,
    /// So much of it is done with, bytes.
    copied: usize,
    written: String,
}

impl Copy<'_> {
    /// `old`: a slice of the text.
    fn replace(&mut self, old: &str, new: &str) {
        let Range { start, end } = self.place(old);
        self.written.push_str(self.text.get(self.copied..start).unwrap_or_default());
        self.written.push_str(new);
        self.copied = end;
    }

    fn place(&self, slice: &str) -> Range<usize> {
        let start = slice.as_ptr().addr().saturating_sub(self.text.as_ptr().addr());
        start..start + slice.len()
    }

    /// `None`: nothing was replaced.
    fn finish(mut self) -> Option<String> {
        if self.copied == 0 {
            return None;
        }
        self.written.push_str(self.text.get(self.copied..).unwrap_or_default());
        Some(self.written)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// Hides what has `secret` in its name.
    fn hide(text: &str) -> Result<Option<String>, Unreadable> {
        filter(text, &mut |_, name| !name.contains("secret"))
    }

    #[track_caller]
    fn filtered(text: &str) -> String {
        hide(text).unwrap().unwrap()
    }

    #[test]
    fn each_list_is_filtered_by_what_its_items_are_called() {
        let asked = |text: &str| {
            let mut asked = Vec::new();
            let kept = filter(text, &mut |kind, name| {
                asked.push((kind, name.to_owned()));
                false
            });
            (asked, kept.unwrap())
        };
        for (list, kind, key) in LISTS {
            let text = format!(r#"{{"id":1,"result":{{"{list}":[{{"{key}":"a","title":"x"}}]}}}}"#);
            let (asked, kept) = asked(&text);
            assert_eq!(asked, [(kind, "a".to_owned())]);
            assert_eq!(kept.unwrap(), format!(r#"{{"id":1,"result":{{"{list}":[]}}}}"#));
        }
    }

    #[test]
    fn nothing_but_the_array_and_the_scope_is_written_anew() {
        let text = concat!(
            " {\"jsonrpc\" : \"2.0\",\r\n\"id\":1.00,\"result\":{ \"nextCursor\":\"\\u00e9é\", \"x\":{\"tools\":[{\"name\":\"secret\"}]},",
            "\"cacheScope\" : \"public\" ,\"ttlMs\":5, \"tools\" : [ {\"name\":\"a\" , \"n\":1e400},  {\"name\":\"secret\"},\n{ \"name\":\"b\"}  ] , \"y\":[ ] }} \n"
        );
        assert_eq!(
            filtered(text),
            concat!(
                " {\"jsonrpc\" : \"2.0\",\r\n\"id\":1.00,\"result\":{ \"nextCursor\":\"\\u00e9é\", \"x\":{\"tools\":[{\"name\":\"secret\"}]},",
                "\"cacheScope\" : \"private\" ,\"ttlMs\":5, \"tools\" : [{\"name\":\"a\" , \"n\":1e400},{ \"name\":\"b\"}] , \"y\":[ ] }} \n"
            )
        );
    }

    #[test]
    fn what_may_be_seen_stays_as_it_is() {
        for text in [
            r#"{"id":1,"result":{"tools":[ {"name":"a"} ],"cacheScope":"private"}}"#,
            r#"{"id":1,"result":{"tools":[]}}"#,
            r#"{"id":1,"result":{"tools":null,"nextCursor":"x"}}"#,
            r#"{"id":1,"result":{"supportedVersions":[],"cacheScope":"public"}}"#,
            r#"{"id":1,"result":{"content":[{"type":"text","text":"{\"tools\":[{\"name\":\"secret\"}]}"}]}}"#,
            r#"{"id":1,"result":{"structuredContent":{"tools":[{"name":"secret"}]}}}"#,
            r#"{"id":1,"result":{"capabilities":{"tools":{}}}}"#,
            r#"{"id":1,"error":{"code":-32601,"message":"tools"}}"#,
            r#"{"id":1,"method":"sampling/createMessage","params":{"tools":[{"name":"secret"}]}}"#,
            r#"[{"id":1,"result":{"tools":[{"name":"a"}]}},{"id":2,"result":{}}]"#,
            "",
            " \n",
            "/messages?session=1",
            "Accepted",
            "null",
            "[]",
            r#"["tools:"]"#,
            r#"{"result":"{\"tools\":0}","tools":[{"name":"secret"}]}"#,
        ] {
            assert_eq!(hide(text), Ok(None), "{text}");
        }
    }

    #[test]
    fn a_batch_is_filtered_message_by_message() {
        let text = r#" [ {"id":1,"result":{"tools":[{"name":"secret"}]}} , {"id":2,"result":{"prompts":[{"name":"a"},{"name":"secret"}],"cacheScope":"public"}}]"#;
        assert_eq!(
            filtered(text),
            r#" [ {"id":1,"result":{"tools":[]}} , {"id":2,"result":{"prompts":[{"name":"a"}],"cacheScope":"private"}}]"#
        );
    }

    #[test]
    fn several_lists_of_one_result_are_filtered() {
        let text = r#"{"result":{"prompts":[{"name":"secret"}],"cacheScope":0,"tools":[{"name":"secret"}]}}"#;
        assert_eq!(filtered(text), r#"{"result":{"prompts":[],"cacheScope":"private","tools":[]}}"#);
    }

    #[test]
    fn what_was_read_is_kept_for_nobody_else() {
        let text = r#"{"result":{"contents":[{"uri":"secret"}],"cacheScope":"public"}}"#;
        assert_eq!(filtered(text), r#"{"result":{"contents":[{"uri":"secret"}],"cacheScope":"private"}}"#);
    }

    #[test]
    fn names_are_read_whatever_their_spelling() {
        for text in [
            r#"{"result":{"tools":[{"name":"s\u0065cret"}]}}"#,
            r#"{"result":{"tools":[{"n\u0061me":"secret"}]}}"#,
            r#"{"result":{"t\u006fols":[{"name":"secret"}]}}"#,
            r#"{"r\u0065sult":{"tools":[{"name":"secret"}]}}"#,
        ] {
            assert!(!filtered(text).contains("cret"), "{text}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for text in [
            // Twice, or in another spelling.
            r#"{"result":{"tools":[]},"result":{"tools":[{"name":"secret"}]}}"#,
            r#"{"result":{"tools":[]},"Result":{"tools":[{"name":"secret"}]}}"#,
            r#"{"RESULT":{"tools":[{"name":"secret"}]}}"#,
            r#"{"result":{"tools":[],"tools":[{"name":"secret"}]}}"#,
            r#"{"result":{"tools":[],"TOOLS":[{"name":"secret"}]}}"#,
            r#"{"result":{"Tools":[{"name":"secret"}]}}"#,
            r#"{"result":{"toolſ":[{"name":"secret"}]}}"#,
            r#"{"result":{"tool\u017f":[{"name":"secret"}]}}"#,
            r#"{"result":{"resourcetemplates":[{"uriTemplate":"secret"}]}}"#,
            r#"{"result":{"resourceTemplates":[{"uritemplate":"secret","uriTemplate":"a"}]}}"#,
            r#"{"result":{"cacheScope":"private","cachescope":"public"}}"#,
            r#"{"result":{"tools":[{"name":"a","name":"secret"}]}}"#,
            r#"{"result":{"tools":[{"name":"a","Name":"secret"}]}}"#,
            r#"{"result":{"tools":[{"name":"a","n\u0061me":"secret"}]}}"#,
            // Items without a name, and lists that are none.
            r#"{"result":{"tools":[{"title":"secret"}]}}"#,
            r#"{"result":{"tools":[{"name":["secret"]}]}}"#,
            r#"{"result":{"tools":["secret"]}}"#,
            r#"{"result":{"tools":[null]}}"#,
            r#"{"result":{"tools":[[{"name":"secret"}]]}}"#,
            r#"{"result":{"tools":{"0":{"name":"secret"}}}}"#,
            r#"{"result":[{"tools":[{"name":"secret"}]}]}"#,
            r#"[[{"result":{"tools":[{"name":"secret"}]}}]]"#,
            // No JSON, or more than one.
            r#"{"result":{"tools":[{"name":"secret"}]}"#,
            r#"{"result":{"tools":[{"name":"secret"}]}} {}"#,
            r#"{"result":{"tools":[{"name":"secret"},]}}"#,
            r#"{result:{"tools":[{"name":"secret"}]}}"#,
            r#"{result:{tools:[{name:"secret"}]}}"#,
            r#"{"result":{"tools":[{"name":"secret"}]/**/}}"#,
            "{\"result\":{\"tools\":[{\"name\":\"sec\nret\"}]}}",
            "\u{feff}{\"result\":{\"tools\":[{\"name\":\"secret\"}]}}",
            "{\"result\":{\"tools\" /**/ :[{\"name\":\"secret\"}]}}\u{0}",
            r#"{"result":{"tools":[{"name":"\ud800secret"}]}}"#,
        ] {
            assert_eq!(hide(text), Err(Unreadable::Ambiguous), "{text}");
        }
    }

    /// JSON with our names in all places, in some spelling.
    fn texts() -> impl Strategy<Value = Value> {
        let scalar = prop_oneof![
            Just(json!(null)),
            Just(json!(1.5)),
            "[a-z\"\\\\ é{}:,\\[\\]]{0,6}".prop_map(Value::from),
            Just(json!("secret")),
            Just(json!("public")),
        ];
        scalar.prop_recursive(5, 60, 5, |inner| {
            let name = prop_oneof![
                Just("result".to_owned()),
                Just("tools".to_owned()),
                Just("Tools".to_owned()),
                Just("resources".to_owned()),
                Just("name".to_owned()),
                Just("uri".to_owned()),
                Just("cacheScope".to_owned()),
                "[a-z]{1,3}",
            ];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((name, inner), 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    /// The same by another way: on the tree.
    fn expected(message: &mut Value) {
        let Some(result) = message.get_mut("result").and_then(Value::as_object_mut) else { return };
        for (list, _, key) in LISTS {
            if let Some(items) = result.get_mut(list).and_then(Value::as_array_mut) {
                items.retain(|item| !item[key].as_str().unwrap().contains("secret"));
            }
        }
        let is_of_caller = LISTS.iter().any(|(list, ..)| result.get(*list).is_some_and(Value::is_array));
        if is_of_caller && result.contains_key("cacheScope") {
            result["cacheScope"] = json!("private");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn what_comes_out_is_what_comes_in_without_what_is_hidden(message in texts(), pretty: bool) {
            let text = if pretty { serde_json::to_string_pretty(&message) } else { serde_json::to_string(&message) }.unwrap();
            match hide(&text) {
                Ok(kept) => {
                    let mut expected_of = message.clone();
                    match &mut expected_of {
                        Value::Array(messages) => messages.iter_mut().for_each(expected),
                        message => expected(message),
                    }
                    let kept = kept.unwrap_or(text);
                    prop_assert_eq!(serde_json::from_str::<Value>(&kept).unwrap(), expected_of);
                }
                // Never a text without a member of ours.
                Err(_) => prop_assert!(!Glance::at(text.as_bytes()).is_indifferent),
            }
        }

        #[test]
        fn lists_of_any_items_lose_what_is_hidden_and_nothing_else(
            items in prop::collection::vec(("(secret|[a-z]{0,3})", texts()), 0..6),
            before in texts(),
        ) {
            let list: Vec<Value> = items.iter().map(|(name, more)| json!({"description": more, "name": name})).collect();
            let text = json!({"a": before, "result": {"b": before, "tools": list}}).to_string();
            let kept = hide(&text).unwrap().unwrap_or(text);
            let kept: Value = serde_json::from_str(&kept).unwrap();
            let left: Vec<Value> = list.into_iter().filter(|item| item["name"] != "secret").collect();
            prop_assert_eq!(kept, json!({"a": before, "result": {"b": before, "tools": left}}));
        }

        #[test]
        fn no_text_panics(text in "[\\[\\]{}:,\"\\\\ua-c0 \u{feff}ſ]{0,40}") {
            let _ = hide(&text);
        }
    }
}
