//! Runs an expression. Its semantics are CEL's; what may go wrong says nothing about values.
use std::borrow::Cow;
use std::cell::Cell;
use std::cmp::Ordering;
use std::net::IpAddr;

use super::names::Name;
use super::node::{Arithmetic, Comparison, Conversion, Loop, Node, Test};
use super::value::{List, Map, Value};

/// More than any sensible rule needs, in nodes visited and pieces of text looked at.
const STEPS: u32 = 200_000;
/// Bytes of text that count as one step.
const PIECE: usize = 256;

/// What is known of a request; asked only for what an expression uses.
pub trait Facts {
    /// `None`: it is not known yet, and may be anything.
    fn fact(&self, name: Name) -> Option<Value<'_>>;
}

/// Why an expression has no result. Names no value: they are other people's, and secrets may be among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("takes more steps than a rule may")]
    Costly,
    #[error("an operator or a function meets a kind of value it has no meaning for")]
    Kind,
    #[error("reads a member or an item that is not there")]
    Missing,
    #[error("a number is out of range")]
    Range,
    /// Depends on a fact that is not known yet.
    #[error("depends on what is not known yet")]
    Unknown,
}

/// Whether it holds.
pub(super) fn holds(node: &Node, facts: &dyn Facts) -> Result<bool, Fault> {
    let run = Run { facts, left: Cell::new(STEPS) };
    run.truth(node, None)
}

/// The item of a loop, and those of the loops around it.
struct Scope<'s, 'v> {
    item: &'s Value<'v>,
    outer: Option<&'s Scope<'s, 'v>>,
}

type Around<'s, 'v> = Option<&'s Scope<'s, 'v>>;

struct Run<'v> {
    facts: &'v dyn Facts,
    left: Cell<u32>,
}

impl<'v> Run<'v> {
    fn value(&self, node: &'v Node, around: Around<'_, 'v>) -> Result<Value<'v>, Fault> {
        self.spend(1)?;
        Ok(match node {
            Node::Arithmetic(operator, of) => {
                let [left, right] = self.two(of, around)?;
                self.arithmetic(*operator, left, right)?
            }
            Node::Choice(of) => {
                let [condition, yes, no] = &**of;
                self.value(if self.truth(condition, around)? { yes } else { no }, around)?
            }
            Node::Convert(conversion, of) => self.converted(*conversion, self.value(of, around)?)?,
            Node::Double(value) => Value::Double(*value),
            Node::Fact(name) => self.facts.fact(*name).ok_or(Fault::Unknown)?,
            Node::Index(of) => match self.two(of, around)? {
                [Value::List(list), Value::Int(index)] => {
                    usize::try_from(index).ok().and_then(|index| list.get(index)).ok_or(Fault::Missing)?
                }
                [Value::Map(map), Value::Text(name)] => map.get(&name).ok_or(Fault::Missing)?,
                _ => return Err(Fault::Kind),
            },
            Node::Int(value) => Value::Int(*value),
            Node::List(nodes) => {
                let items: Result<_, _> = nodes.iter().map(|node| self.value(node, around)).collect();
                Value::List(List::Own(items?))
            }
            Node::Loop(Loop::Filter, of) => self.filtered(of, around)?,
            Node::Loop(Loop::Map, of) => self.mapped(of, around)?,
            Node::Member(of, name) => match self.value(of, around)? {
                Value::Map(map) => map.get(name).ok_or(Fault::Missing)?,
                _ => return Err(Fault::Kind),
            },
            Node::Negative(of) => match self.value(of, around)? {
                Value::Double(value) => Value::Double(-value),
                Value::Int(value) => Value::Int(value.checked_neg().ok_or(Fault::Range)?),
                _ => return Err(Fault::Kind),
            },
            Node::Null => Value::Null,
            Node::Part(part, of) => match self.value(of, around)? {
                Value::Time(time) => Value::Int(part.of(time)),
                _ => return Err(Fault::Kind),
            },
            Node::Size(of) => Value::Int(self.size(&self.value(of, around)?)?),
            Node::Text(text) => Value::text(text),
            Node::Time(time) => Value::Time(*time),
            Node::Variable(depth) => item(around, *depth)?,
            _ => Value::Bool(self.condition(node, around)?),
        })
    }

    /// What is true or false by its form.
    fn condition(&self, node: &'v Node, around: Around<'_, 'v>) -> Result<bool, Fault> {
        Ok(match node {
            Node::Bool(value) => *value,
            Node::Both(of) => return self.joined(of, around, false),
            Node::Compare(comparison, of) => {
                let [left, right] = self.two(of, around)?;
                self.read(&left)?;
                let order = match (left.compared(&right), &left, &right) {
                    (Some(order), ..) => order,
                    // Not a number is in no order with any.
                    (None, Value::Double(_), Value::Double(_) | Value::Int(_))
                    | (None, Value::Int(_), Value::Double(_)) => return Ok(false),
                    _ => return Err(Fault::Kind),
                };
                comparison.is(order)
            }
            Node::Within(network, of) => match self.value(of, around)? {
                Value::Text(text) => {
                    let address: IpAddr = text.parse().map_err(|_| Fault::Kind)?;
                    network.contains(&address.to_canonical())
                }
                _ => return Err(Fault::Kind),
            },
            Node::Either(of) => return self.joined(of, around, true),
            Node::Equal(of) => {
                let [left, right] = self.two(of, around)?;
                self.equal(&left, &right)?
            }
            Node::Has(of, name) => match self.value(of, around)? {
                Value::Map(map) => map.get(name).is_some(),
                _ => return Err(Fault::Kind),
            },
            Node::In(of) => match self.two(of, around)? {
                [item, Value::List(list)] => {
                    for other in list.iter() {
                        if self.equal(&item, &other)? {
                            return Ok(true);
                        }
                    }
                    false
                }
                [Value::Text(name), Value::Map(map)] => map.get(&name).is_some(),
                [_, Value::Map(Map::Json(_))] => false,
                _ => return Err(Fault::Kind),
            },
            Node::Loop(Loop::All, of) => return self.any(of, around, false),
            Node::Loop(Loop::Exists, of) => return self.any(of, around, true),
            Node::Loop(Loop::ExistsOne, of) => self.one(of, around)?,
            Node::Matches(of, pattern) => match self.value(of, around)? {
                Value::Text(text) => {
                    // A pattern may look at every byte more than once.
                    self.spend_text(text.len().saturating_mul(8))?;
                    pattern.is_match(&text)
                }
                _ => return Err(Fault::Kind),
            },
            Node::Not(of) => !self.truth(of, around)?,
            Node::Test(test, of) => match self.two(of, around)? {
                [Value::Text(text), Value::Text(part)] => {
                    self.spend_text(text.len())?;
                    match test {
                        Test::Contains => memchr::memmem::find(text.as_bytes(), part.as_bytes()).is_some(),
                        Test::EndsWith => text.ends_with(&*part),
                        Test::StartsWith => text.starts_with(&*part),
                    }
                }
                _ => return Err(Fault::Kind),
            },
            _ => return Err(Fault::Kind),
        })
    }

    fn truth(&self, node: &'v Node, around: Around<'_, 'v>) -> Result<bool, Fault> {
        match self.value(node, around)? {
            Value::Bool(value) => Ok(value),
            _ => Err(Fault::Kind),
        }
    }

    /// `&&` and `||`: one side that decides does so whatever is wrong with the other.
    fn joined(&self, of: &'v [Node; 2], around: Around<'_, 'v>, decides: bool) -> Result<bool, Fault> {
        let [left, right] = of;
        let left = self.truth(left, around);
        if left == Ok(decides) {
            return left;
        }
        match (left, self.truth(right, around)) {
            (_, Ok(right)) if right == decides => Ok(decides),
            (Ok(_), right) => right,
            (Err(_), Err(Fault::Unknown)) => Err(Fault::Unknown),
            (left, _) => left,
        }
    }

    fn two(&self, of: &'v [Node; 2], around: Around<'_, 'v>) -> Result<[Value<'v>; 2], Fault> {
        let [left, right] = of;
        Ok([self.value(left, around)?, self.value(right, around)?])
    }

    /// The items of the first node: of a map its names.
    fn items(&self, node: &'v Node, around: Around<'_, 'v>) -> Result<List<'v>, Fault> {
        match self.value(node, around)? {
            Value::List(list) => Ok(list),
            Value::Map(Map::Json(members)) => {
                Ok(List::Own(members.keys().map(|name| Value::text(name)).collect()))
            }
            _ => Err(Fault::Kind),
        }
    }

    /// `exists` and `all`: one item that decides does so whatever is wrong with the others.
    fn any(&self, of: &'v [Node; 2], around: Around<'_, 'v>, decides: bool) -> Result<bool, Fault> {
        let [list, body] = of;
        let mut outcome = Ok(!decides);
        for item in self.items(list, around)?.iter() {
            match self.truth(body, Some(&Scope { item: &item, outer: around })) {
                Ok(truth) if truth == decides => return Ok(decides),
                Ok(_) => {}
                Err(Fault::Costly) => return Err(Fault::Costly),
                Err(Fault::Unknown) => outcome = Err(Fault::Unknown),
                Err(fault) => outcome = outcome.and(Err(fault)),
            }
        }
        outcome
    }

    fn one(&self, of: &'v [Node; 2], around: Around<'_, 'v>) -> Result<bool, Fault> {
        let [list, body] = of;
        let mut count = 0_usize;
        for item in self.items(list, around)?.iter() {
            count += usize::from(self.truth(body, Some(&Scope { item: &item, outer: around }))?);
        }
        Ok(count == 1)
    }

    fn filtered(&self, of: &'v [Node; 2], around: Around<'_, 'v>) -> Result<Value<'v>, Fault> {
        let [list, body] = of;
        let mut kept = Vec::new();
        for item in self.items(list, around)?.iter() {
            if self.truth(body, Some(&Scope { item: &item, outer: around }))? {
                kept.push(item);
            }
        }
        Ok(Value::List(List::Own(kept)))
    }

    fn mapped(&self, of: &'v [Node; 2], around: Around<'_, 'v>) -> Result<Value<'v>, Fault> {
        let [list, body] = of;
        let mut made = Vec::new();
        for item in self.items(list, around)?.iter() {
            made.push(self.value(body, Some(&Scope { item: &item, outer: around }))?);
        }
        Ok(Value::List(List::Own(made)))
    }

    fn equal(&self, left: &Value<'v>, right: &Value<'v>) -> Result<bool, Fault> {
        self.read(left)?;
        Ok(left.equals(right))
    }

    /// Pays for looking at all of it.
    fn read(&self, value: &Value<'v>) -> Result<(), Fault> {
        match value {
            Value::List(List::Json(items)) => {
                for item in *items {
                    self.read(&Value::json(item))?;
                }
            }
            Value::List(List::Own(items)) => {
                for item in items {
                    self.read(item)?;
                }
            }
            Value::List(List::Texts(texts)) => self.spend_text(texts.len().saturating_mul(PIECE))?,
            Value::Map(Map::Json(members)) => {
                for member in members.values() {
                    self.read(&Value::json(member))?;
                }
            }
            Value::Text(text) => return self.spend_text(text.len()),
            _ => {}
        }
        self.spend(1)
    }

    fn size(&self, value: &Value<'v>) -> Result<i64, Fault> {
        let size = match value {
            Value::List(list) => list.len(),
            Value::Map(Map::Json(members)) => members.len(),
            Value::Text(text) => {
                self.spend_text(text.len())?;
                text.chars().count()
            }
            _ => return Err(Fault::Kind),
        };
        i64::try_from(size).map_err(|_| Fault::Range)
    }

    fn arithmetic(&self, by: Arithmetic, left: Value<'v>, right: Value<'v>) -> Result<Value<'v>, Fault> {
        match (left, right) {
            (Value::Int(left), Value::Int(right)) => {
                let result = match by {
                    Arithmetic::Add => left.checked_add(right),
                    Arithmetic::Divide => left.checked_div(right),
                    Arithmetic::Multiply => left.checked_mul(right),
                    Arithmetic::Remainder => left.checked_rem(right),
                    Arithmetic::Subtract => left.checked_sub(right),
                };
                result.map(Value::Int).ok_or(Fault::Range)
            }
            (Value::Double(left), Value::Double(right)) => Ok(Value::Double(match by {
                Arithmetic::Add => left + right,
                Arithmetic::Divide => left / right,
                Arithmetic::Multiply => left * right,
                Arithmetic::Subtract => left - right,
                Arithmetic::Remainder => return Err(Fault::Kind),
            })),
            (Value::Text(left), Value::Text(right)) if matches!(by, Arithmetic::Add) => {
                self.spend_text(left.len() + right.len())?;
                Ok(Value::Text(left + right))
            }
            _ => Err(Fault::Kind),
        }
    }

    fn converted(&self, to: Conversion, value: Value<'v>) -> Result<Value<'v>, Fault> {
        Ok(match (to, value) {
            (Conversion::LowerCase, Value::Text(text)) => {
                self.spend_text(text.len())?;
                match text.bytes().any(|byte| byte.is_ascii_uppercase()) {
                    true => Value::Text(Cow::Owned(text.to_ascii_lowercase())),
                    false => Value::Text(text),
                }
            }
            (Conversion::Text, value @ Value::Text(_))
            | (Conversion::Int, value @ Value::Int(_))
            | (Conversion::Double, value @ Value::Double(_)) => value,
            (Conversion::Text, Value::Int(value)) => Value::Text(Cow::Owned(value.to_string())),
            (Conversion::Text, Value::Bool(value)) => Value::text(if value { "true" } else { "false" }),
            (Conversion::Int, Value::Text(text)) => Value::Int(text.parse().map_err(|_| Fault::Range)?),
            // Towards zero. The bounds are the next doubles within.
            (Conversion::Int, Value::Double(value)) if value.abs() < 9_223_372_036_854_774_785.0 => {
                #[allow(clippy::cast_possible_truncation)]
                let whole = value as i64;
                Value::Int(whole)
            }
            (Conversion::Int, Value::Double(_)) => return Err(Fault::Range),
            #[allow(clippy::cast_precision_loss)]
            (Conversion::Double, Value::Int(value)) => Value::Double(value as f64),
            (Conversion::Double, Value::Text(text)) => Value::Double(text.parse().map_err(|_| Fault::Range)?),
            _ => return Err(Fault::Kind),
        })
    }

    fn spend_text(&self, bytes: usize) -> Result<(), Fault> {
        self.spend(u32::try_from(bytes / PIECE).unwrap_or(u32::MAX))
    }

    fn spend(&self, steps: u32) -> Result<(), Fault> {
        let left = self.left.get().checked_sub(steps).ok_or(Fault::Costly)?;
        self.left.set(left);
        Ok(())
    }
}

fn item<'v>(around: Around<'_, 'v>, depth: usize) -> Result<Value<'v>, Fault> {
    let mut scope = around;
    for _ in 0..depth {
        scope = scope.and_then(|scope| scope.outer);
    }
    scope.map(|scope| scope.item.clone()).ok_or(Fault::Kind)
}

// === impl Comparison ===

impl Comparison {
    fn is(self, order: Ordering) -> bool {
        match self {
            Self::Greater => order.is_gt(),
            Self::GreaterOrEqual => order.is_ge(),
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
        }
    }
}
