//! The arguments of a call, as far as rules look at them, read as strictly as the message around them: a member that is
//! looked at comes once and in one spelling, and a number is one that every reader takes for the same.
use std::collections::HashSet;

use serde_json::{Map, Number, Value};

use super::Unreadable;
use super::message::{folded, is_spelling_of};
use super::scan::{self, Scan};
use crate::expression::Wanted;

/// A whole number beyond that is another one for readers that have doubles alone (RFC 8259 §6).
const WHOLE: u64 = 1 << 53;
/// What a rule looks at is nested no deeper.
const DEEP: usize = 128;

/// Those of an object's members that are wanted, in their order. `null` is an object without any.
/// `raw`: one value as it is written.
pub fn read(raw: &str, wanted: &Wanted) -> Result<Map<String, Value>, Unreadable> {
    match value(&mut Scan::new(raw), wanted, DEEP) {
        Some(Value::Object(members)) => Ok(members),
        Some(Value::Null) => Ok(Map::new()),
        _ => Err(Unreadable::Ambiguous),
    }
}

/// The value that comes next. `None`: it is not the same for all readers. `room`: how much deeper it may be nested.
fn value(scan: &mut Scan<'_>, wanted: &Wanted, room: usize) -> Option<Value> {
    let room = room.checked_sub(1)?;
    Some(match scan.peek()? {
        b'{' => Value::Object(members(scan, wanted, room)?),
        b'[' => Value::Array(items(scan, wanted, room)?),
        _ => match scan.value()? {
            "null" => Value::Null,
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            text if text.starts_with('"') => Value::String(scan::text_of(text)?.into_owned()),
            number => Value::Number(self::number(number)?),
        },
    })
}

/// The members that are looked at; of the others nothing is kept, and nothing said. Where any may be looked at, no two may be
/// taken for one another.
fn members(scan: &mut Scan<'_>, wanted: &Wanted, room: usize) -> Option<Map<String, Value>> {
    let (mut members, mut spellings) = (Map::new(), HashSet::new());
    let mut goes_on = scan.enter(b'{')?;
    while goes_on {
        let name = scan.name()?.text()?;
        let below = match wanted {
            Wanted::All => spellings.insert(folded(&name)).then_some(Some(wanted))?,
            Wanted::Members(known) => match known.get(&*name) {
                None if known.keys().any(|known| is_spelling_of(&name, known)) => return None,
                below => below,
            },
        };
        match below {
            Some(below) => {
                let earlier = members.insert(name.into_owned(), value(scan, below, room)?);
                earlier.is_none().then_some(())?;
            }
            None => drop(scan.value()?),
        }
        goes_on = scan.goes_on(b'{')?;
    }
    Some(members)
}

/// An array has no members, whatever is in it: where some of them are wanted, nothing is.
fn items(scan: &mut Scan<'_>, wanted: &Wanted, room: usize) -> Option<Vec<Value>> {
    let mut items = Vec::new();
    if let Wanted::Members(_) = wanted {
        scan.value()?;
        return Some(items);
    }
    let mut goes_on = scan.enter(b'[')?;
    while goes_on {
        items.push(value(scan, wanted, room)?);
        goes_on = scan.goes_on(b'[')?;
    }
    Some(items)
}

fn number(written: &str) -> Option<Number> {
    let number: Number = serde_json::from_str(written).ok()?;
    let is_same_for_all = match number.as_i64() {
        Some(whole) => whole.unsigned_abs() <= WHOLE,
        // So large a double is a whole number, or was written as one.
        None => number.as_f64().is_some_and(|double| double.abs() <= WHOLE as f64),
    };
    is_same_for_all.then_some(number)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use serde_json::json;
    use serde_json::value::RawValue;

    use super::*;
    use crate::expression::compile;

    /// What is read of `arguments` for a rule.
    fn read_for(rule: &str, arguments: &str) -> Option<Value> {
        let program = compile(rule).ok().unwrap();
        let raw: Box<RawValue> = serde_json::from_str(arguments).ok()?;
        read(raw.get(), program.arguments()).ok().map(Value::Object)
    }

    #[test]
    fn only_what_is_wanted_is_read() {
        for (rule, arguments, expected) in [
            ("mcp.arguments.a == 1", r#"{"a":1,"b":[1,{"a":2}],"c":{"a":3}}"#, json!({"a": 1})),
            ("mcp.arguments.a.b == 1", r#"{"a":{"b":1,"c":2},"b":3}"#, json!({"a": {"b": 1}})),
            (
                "has(mcp.arguments.a) && mcp.arguments.a.b == 1",
                r#"{"a":{"b":1,"c":2}}"#,
                json!({"a": {"b": 1, "c": 2}}),
            ),
            ("mcp.arguments.a.b == 1", r#"{"a":[{"b":1}]}"#, json!({"a": []})),
            ("mcp.arguments.a == 1", "null", json!({})),
            ("mcp.arguments.a == 1", " {} ", json!({})),
            ("mcp.arguments.a == 'x'", r#"{"\u0061":"\u0078"}"#, json!({"a": "x"})),
            ("mcp.arguments.size() == 1", r#"{"a":[1,[2,{"b":null}]]}"#, json!({"a": [1, [2, {"b": null}]]})),
            ("mcp.arguments.a == 1.5", r#"{"a":15e-1}"#, json!({"a": 1.5})),
            (
                "mcp.arguments.a == 1",
                r#"{"a":9007199254740992,"b":1}"#,
                json!({"a": 9_007_199_254_740_992_u64}),
            ),
            // What no rule looks at is the upstream's.
            ("mcp.arguments.a == 1", r#"{"b":99999999999999999999,"b":1,"B":1e999,"c":"\ud800"}"#, json!({})),
        ] {
            assert_eq!(read_for(rule, arguments), Some(expected), "{rule} {arguments}");
        }
    }

    #[test]
    fn what_has_two_meanings_is_not_read() {
        let (one, whole) = ("mcp.arguments.key == 1", "mcp.arguments.size() == 1");
        for (rule, arguments) in [
            (one, r#"{"key":1,"key":2}"#),
            (one, r#"{"key":1,"\u006bey":2}"#),
            (one, r#"{"key":1,"KEY":2}"#),
            (one, r#"{"Key":1}"#),
            (one, "{\"\u{212a}ey\":1}"),
            (one, r#"{"key":9007199254740993}"#),
            (one, r#"{"key":-9007199254740993}"#),
            (one, r#"{"key":99999999999999999999}"#),
            (one, r#"{"key":1e400}"#),
            (one, r#"{"key":"\ud800"}"#),
            (one, r#"{"key":[1,18446744073709551615]}"#),
            (one, r#"{"key":{"a":1,"A":2}}"#),
            (one, r#"{"key":18446744073709551616.0}"#),
            (one, r#"{"key":1,"\ud800":2}"#),
            (one, "[]"),
            (one, "\"key\""),
            (one, "1"),
            (whole, r#"{"a":1,"a":2}"#),
            (whole, r#"{"a":1,"A":2}"#),
            (whole, "{\"s\":1,\"\u{17f}\":2}"),
            (whole, r#"{"a":{"b":1,"b":2}}"#),
            (whole, r#"{"a":[{"b":1,"B":2}]}"#),
            ("mcp.arguments.a.b == 1", r#"{"a":{"b":1},"A":{"b":2}}"#),
            ("mcp.arguments.a.b == 1", r#"{"a":{"b":1,"B":2}}"#),
        ] {
            assert_eq!(read_for(rule, arguments), None, "{rule} {arguments}");
        }
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        assert_eq!(read_for(one, &format!("{{\"key\":{deep}}}")), None);
    }
}
