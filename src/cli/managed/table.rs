//! Answers for people: columns of text, one line for each thing, or one line for each property of one thing. Names come
//! from everybody who may write one, so nothing of them moves a terminal's cursor.
use serde_json::Value;

use super::remote::Answer;

/// Its title, and what of a thing stands in it.
pub type Column = (&'static str, fn(&Value) -> String);

/// Between columns.
const GAP: &str = "  ";
/// Where there is nothing.
pub const NOTHING: &str = "-";

/// A table of `items`; `none`: what is said where there are none.
pub fn table(items: &[Value], columns: &[Column], none: &str) -> String {
    if items.is_empty() {
        return none.to_owned();
    }
    let titles = columns.iter().map(|(title, _)| (*title).to_owned()).collect();
    let cells = items.iter().map(|item| columns.iter().map(|(_, cell)| cell(item)).collect());
    aligned(&std::iter::once(titles).chain(cells).collect::<Vec<Vec<String>>>())
}

/// The items of a list.
pub fn items(list: &Value) -> &[Value] {
    list.get("items").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// One thing, a line for each property.
pub fn properties(thing: &Value, rows: &[Column]) -> String {
    aligned(&cells(thing, rows))
}

/// The same, and the version of it, where it has one.
pub fn versioned(answer: &Answer, rows: &[Column]) -> String {
    let mut lines = cells(&answer.value, rows);
    lines.extend(answer.version.map(|version| vec!["VERSION".to_owned(), version.to_string()]));
    aligned(&lines)
}

fn cells(thing: &Value, rows: &[Column]) -> Vec<Vec<String>> {
    rows.iter().map(|(title, cell)| vec![(*title).to_owned(), cell(thing)]).collect()
}

fn aligned(lines: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for line in lines {
        for (position, cell) in line.iter().enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(position) {
                Some(known) => *known = width.max(*known),
                None => widths.push(width),
            }
        }
    }
    let padded = |line: &Vec<String>| {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join(GAP).trim_end().to_owned()
    };
    lines.iter().map(padded).collect::<Vec<_>>().join("\n")
}

/// What is at a JSON pointer, as a person writes it.
pub fn text(thing: &Value, pointer: &str) -> String {
    thing.pointer(pointer).map_or_else(|| NOTHING.to_owned(), written)
}

fn written(value: &Value) -> String {
    match value {
        Value::Null => NOTHING.to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) if text.is_empty() => NOTHING.to_owned(),
        Value::String(text) => plain(text),
        Value::Array(all) if all.is_empty() => NOTHING.to_owned(),
        Value::Array(all) => all.iter().map(written).collect::<Vec<_>>().join(" "),
        Value::Number(_) | Value::Object(_) => plain(&value.to_string()),
    }
}

/// One line, without what a terminal obeys and without what turns the direction of writing.
pub fn plain(text: &str) -> String {
    let is_shown = |character: char| {
        !character.is_control()
            && !matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    text.chars().map(|character| if is_shown(character) { character } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use serde_json::json;

    const COLUMNS: &[Column] = &[
        ("NAME", |item| text(item, "/name")),
        ("USED", |item| text(item, "/used")),
        ("COUNT", |item| text(item, "/count")),
    ];

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let items =
            [json!({"name": "Müller", "used": true, "count": 0}), json!({"name": "a", "used": ["x", "y"]})];
        let expected = "NAME    USED  COUNT\nMüller  yes   0\na       x y   -";
        assert_eq!(table(&items, COLUMNS, "none"), expected);
        assert_eq!(table(&[], COLUMNS, "none"), "none");
        assert_eq!(properties(&items[1], &COLUMNS[..2]), "NAME  a\nUSED  x y");
    }

    #[test]
    fn a_name_is_text_and_nothing_that_a_terminal_obeys() {
        assert_eq!(plain("a\u{1b}[2Jb\nc\u{202e}d\u{9b}"), "a?[2Jb?c?d?");
        assert_eq!(text(&json!({"name": "a\tb"}), "/name"), "a?b");
    }
}
