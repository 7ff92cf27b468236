//! An expression in the form in which it runs: names found, kinds checked, patterns compiled.
use std::time::SystemTime;

use ipnet::IpNet;
use regex::Regex;

use super::names::Name;

pub enum Node {
    Arithmetic(Arithmetic, Box<[Node; 2]>),
    Bool(bool),
    Both(Box<[Node; 2]>),
    Choice(Box<[Node; 3]>),
    Compare(Comparison, Box<[Node; 2]>),
    Convert(Conversion, Box<Node>),
    Double(f64),
    Either(Box<[Node; 2]>),
    Equal(Box<[Node; 2]>),
    Fact(Name),
    Has(Box<Node>, Box<str>),
    In(Box<[Node; 2]>),
    Index(Box<[Node; 2]>),
    Int(i64),
    List(Box<[Node]>),
    Loop(Loop, Box<[Node; 2]>),
    Matches(Box<Node>, Box<Regex>),
    Member(Box<Node>, Box<str>),
    Negative(Box<Node>),
    Not(Box<Node>),
    Null,
    Part(Part, Box<Node>),
    Size(Box<Node>),
    Test(Test, Box<[Node; 2]>),
    Text(Box<str>),
    Time(SystemTime),
    /// The item a loop is at; 0 is the innermost loop's.
    Variable(usize),
    /// Of an address, as text.
    Within(IpNet, Box<Node>),
}

#[derive(Clone, Copy)]
pub enum Arithmetic {
    Add,
    Divide,
    Multiply,
    Remainder,
    Subtract,
}

#[derive(Clone, Copy)]
pub enum Comparison {
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
}

#[derive(Clone, Copy)]
pub enum Conversion {
    Double,
    Int,
    LowerCase,
    Text,
}

/// What is made of a list: its first node is the list, its second runs once for each item.
#[derive(Clone, Copy)]
pub enum Loop {
    All,
    Exists,
    ExistsOne,
    Filter,
    Map,
}

/// Of a time, in UTC, as CEL counts them: months, days of the month and of the week from 0, Sunday first.
#[derive(Clone, Copy)]
pub enum Part {
    Date,
    DayOfMonth,
    DayOfWeek,
    FullYear,
    Hours,
    Minutes,
    Month,
}

#[derive(Clone, Copy)]
pub enum Test {
    Contains,
    EndsWith,
    StartsWith,
}
