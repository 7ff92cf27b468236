//! Values while an expression runs. They borrow from the facts and from the expression; nothing is copied to be looked at.
use std::borrow::Cow;
use std::cmp::Ordering;
use std::time::SystemTime;

use serde_json::{Map as JsonMap, Value as Json};

/// Has no `Debug`: facts are other people's.
#[derive(Clone)]
pub enum Value<'v> {
    Bool(bool),
    Double(f64),
    Int(i64),
    List(List<'v>),
    Map(Map<'v>),
    Null,
    Text(Cow<'v, str>),
    Time(SystemTime),
}

#[derive(Clone)]
pub enum List<'v> {
    Json(&'v [Json]),
    Own(Vec<Value<'v>>),
    Texts(&'v [String]),
}

#[derive(Clone, Copy)]
pub enum Map<'v> {
    Json(&'v JsonMap<String, Json>),
    /// Of texts.
    Table(&'v dyn Table),
}

/// Texts by name.
pub trait Table {
    fn text(&self, name: &str) -> Option<Cow<'_, str>>;
}

// === impl Value ===

impl<'v> Value<'v> {
    pub fn text(text: &'v str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }

    /// A whole number is one, however it was spelled elsewhere in the document; what is too large for that is a double.
    pub fn json(json: &'v Json) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(number) => match number.as_i64() {
                Some(whole) => Self::Int(whole),
                None => Self::Double(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Self::text(text),
            Json::Array(items) => Self::List(List::Json(items)),
            Json::Object(members) => Self::Map(Map::Json(members)),
        }
    }

    /// Values of different kinds are not equal; numbers are by what they count.
    pub fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Bool(one), Self::Bool(another)) => one == another,
            (Self::List(one), Self::List(another)) => {
                one.len() == another.len()
                    && one.iter().zip(another.iter()).all(|(one, another)| one.equals(&another))
            }
            (Self::Map(Map::Json(one)), Self::Map(Map::Json(another))) => {
                let same = |(name, value)| {
                    another.get(name).is_some_and(|other| Value::json(value).equals(&Value::json(other)))
                };
                one.len() == another.len() && one.iter().all(same)
            }
            (Self::Null, Self::Null) => true,
            (Self::Text(one), Self::Text(another)) => one == another,
            _ => self.compared(other) == Some(Ordering::Equal),
        }
    }

    /// `None`: these two have no order.
    pub fn compared(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Bool(one), Self::Bool(another)) => Some(one.cmp(another)),
            (Self::Double(one), Self::Double(another)) => one.partial_cmp(another),
            (Self::Double(one), Self::Int(another)) => counted(*another, *one).map(Ordering::reverse),
            (Self::Int(one), Self::Double(another)) => counted(*one, *another),
            (Self::Int(one), Self::Int(another)) => Some(one.cmp(another)),
            (Self::Text(one), Self::Text(another)) => Some(one.cmp(another)),
            (Self::Time(one), Self::Time(another)) => Some(one.cmp(another)),
            _ => None,
        }
    }
}

/// A whole number and another, exactly: not every whole number has a double.
fn counted(whole: i64, double: f64) -> Option<Ordering> {
    // 2^63 is the first double above every whole number.
    const BEYOND: f64 = 9_223_372_036_854_775_808.0;
    if double.is_nan() {
        None
    } else if double >= BEYOND {
        Some(Ordering::Less)
    } else if double < -BEYOND {
        Some(Ordering::Greater)
    } else {
        let floor = double.floor();
        // In range, so that nothing is cut off.
        #[allow(clippy::cast_possible_truncation)]
        let order = whole.cmp(&(floor as i64));
        Some(order.then(if double > floor { Ordering::Less } else { Ordering::Equal }))
    }
}

// === impl List ===

impl<'v> List<'v> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Json(items) => items.len(),
            Self::Own(items) => items.len(),
            Self::Texts(items) => items.len(),
        }
    }

    pub(super) fn get(&self, index: usize) -> Option<Value<'v>> {
        match self {
            Self::Json(items) => items.get(index).map(Value::json),
            Self::Own(items) => items.get(index).cloned(),
            Self::Texts(items) => items.get(index).map(|text| Value::text(text)),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Value<'v>> {
        (0..self.len()).filter_map(|index| self.get(index))
    }
}

// === impl Map ===

impl<'v> Map<'v> {
    pub fn get(self, name: &str) -> Option<Value<'v>> {
        match self {
            Self::Json(members) => members.get(name).map(Value::json),
            Self::Table(table) => table.text(name).map(Value::Text),
        }
    }
}
