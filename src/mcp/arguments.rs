//! The arguments of a call, as far as rules look at them, read as strictly as the message around them: a member that is
//! looked at comes once and in one spelling, and a number is one that every reader takes for the same.
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::message::{Unreadable, folded, is_spelling_of};
use crate::expression::Wanted;

/// A whole number beyond that is another one for readers that have doubles alone (RFC 8259 §6).
const WHOLE: u64 = 1 << 53;

/// Those of an object's members that are wanted, in their order. `null` is an object without any.
/// `raw`: one value as it is written.
pub fn read(raw: &str, wanted: &Wanted) -> Result<Map<String, Value>, Unreadable> {
    let mut text = serde_json::Deserializer::from_str(raw);
    match Wanting(wanted).deserialize(&mut text) {
        Ok(Value::Object(members)) if raw.starts_with('{') => Ok(members),
        Ok(_) if raw == "null" => Ok(Map::new()),
        _ => Err(Unreadable::Ambiguous),
    }
}

#[derive(Clone, Copy)]
struct Wanting<'w>(&'w Wanted);

impl<'de> DeserializeSeed<'de> for Wanting<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Wanting<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value with a single meaning")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        // So large a double is a whole number, or was written as one.
        let number = Number::from_f64(value).filter(|_| value.abs() <= WHOLE as f64);
        number.map(Value::Number).ok_or_else(|| E::custom("a number that readers take for different ones"))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        match value.unsigned_abs() > WHOLE {
            true => Err(E::custom("a number that readers take for different ones")),
            false => Ok(Value::from(value)),
        }
    }

    fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Value, M::Error> {
        match self.0 {
            Wanted::All => all(map),
            Wanted::Members(_) => some(map, self.0),
        }
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<Value, S::Error> {
        let mut items = Vec::new();
        match self.0 {
            Wanted::All => {
                while let Some(item) = seq.next_element_seed(self)? {
                    items.push(item);
                }
            }
            // It has no members, whatever is in it.
            Wanted::Members(_) => while seq.next_element::<IgnoredAny>()?.is_some() {},
        }
        Ok(Value::Array(items))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        i64::try_from(value)
            .map_or_else(|_| Err(E::custom("a number out of range")), |value| self.visit_i64(value))
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

/// Every member: any of them may be looked at, so no two may be taken for one another.
fn all<'de, M: MapAccess<'de>>(mut map: M) -> Result<Value, M::Error> {
    let (mut members, mut spellings) = (Map::new(), HashSet::new());
    while let Some(name) = map.next_key::<String>()? {
        if !spellings.insert(folded(&name)) {
            return Err(M::Error::custom("a member that comes twice"));
        }
        members.insert(name, map.next_value_seed(Wanting(&Wanted::All))?);
    }
    Ok(Value::Object(members))
}

/// The members that are looked at; of the others nothing is kept, and nothing said.
fn some<'de, M: MapAccess<'de>>(mut map: M, wanted: &Wanted) -> Result<Value, M::Error> {
    let mut members = Map::new();
    while let Some(found) = map.next_key_seed(Called(wanted))? {
        let Some((name, below)) = found else {
            map.next_value::<IgnoredAny>()?;
            continue;
        };
        if members.insert(name.to_owned(), map.next_value_seed(Wanting(below))?).is_some() {
            return Err(M::Error::custom("a member that comes twice"));
        }
    }
    Ok(Value::Object(members))
}

/// Finds what a member's name is wanted for; another spelling of a name that is wanted is an error.
struct Called<'w>(&'w Wanted);

impl<'de, 'w> DeserializeSeed<'de> for Called<'w> {
    type Value = Option<(&'w str, &'w Wanted)>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'w> Visitor<'_> for Called<'w> {
    type Value = Option<(&'w str, &'w Wanted)>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a member's name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        let Wanted::Members(wanted) = self.0 else { return Ok(None) };
        if let Some((name, below)) = wanted.get_key_value(name) {
            return Ok(Some((name, below)));
        }
        match wanted.keys().any(|known| is_spelling_of(name, known)) {
            true => Err(E::custom("another spelling of a member")),
            false => Ok(None),
        }
    }
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
