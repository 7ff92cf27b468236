//! Kinds of values, as far as they are known before there are any.
use std::fmt;

/// What a part of an expression results in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Whatever a client or an identity provider wrote: only known once it is there.
    Any,
    Bool,
    Double,
    Int,
    List(Box<Kind>),
    /// By text.
    Map(Box<Kind>),
    Null,
    Text,
    Time,
}

impl Kind {
    pub fn is_number(&self) -> bool {
        matches!(self, Self::Double | Self::Int)
    }

    /// Whether a value of one may be a value of the other, numbers being numbers.
    pub fn meets(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, _) | (_, Self::Any) => true,
            (Self::List(one), Self::List(another)) | (Self::Map(one), Self::Map(another)) => {
                one.meets(another)
            }
            _ => self == other || self.is_number() && other.is_number(),
        }
    }

    /// As [`Self::meets`], without taking one kind of number for the other.
    pub fn may_be(&self, other: &Self) -> bool {
        *self == Self::Any || self == other
    }

    /// What holds values of both.
    pub fn or(self, other: &Self) -> Self {
        if self == *other { self } else { Self::Any }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any value"),
            Self::Bool => f.write_str("true or false"),
            Self::Double => f.write_str("a number"),
            Self::Int => f.write_str("a whole number"),
            Self::List(_) => f.write_str("a list"),
            Self::Map(_) => f.write_str("a map"),
            Self::Null => f.write_str("null"),
            Self::Text => f.write_str("text"),
            Self::Time => f.write_str("a time"),
        }
    }
}
