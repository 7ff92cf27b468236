//! Conditions in CEL, the Common Expression Language: text in, [`Program`] out, which is asked with [`Facts`].
//!
//! The grammar is the `cel` crate's. What it reads becomes a tree of our own: with kinds checked at the place they are
//! written, so that a rule with a slip in it is refused when it is loaded; with patterns compiled once; and with a run that
//! borrows what it looks at, stops at a number of steps and says nothing of values when it fails. The crate's own
//! interpreter gives none of the four. That both come to the same results, a corpus of expressions shows
//! (`tests/data/expressions.json`).
mod calendar;
mod check;
mod kind;
mod names;
mod node;
mod run;
mod value;
mod wanted;

use std::thread;

use cel::parser::Parser;

use self::check::Check;
use self::node::Node;

pub use names::{Name, Names};
pub use run::{Facts, Fault};
pub use value::{List, Map, Table, Value};
pub use wanted::Wanted;

/// Of an expression, bytes.
const LONGEST: usize = 4096;
/// The grammar's parser calls itself for every operator of a chain.
const STACK: usize = 64 * 1024 * 1024;

/// A checked condition.
pub struct Program {
    node: Node,
    uses: Names,
    arguments: Wanted,
    text: Box<str>,
}

/// What is wrong with an expression; line and column count from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    pub line: usize,
    pub column: usize,
    pub what: String,
    /// What to write instead; may be empty.
    pub write: String,
}

/// Reads and checks an expression that is true or false. All that is wrong is said, at least one thing.
pub fn compile(text: &str) -> Result<Program, Vec<Mistake>> {
    compile_below(text, None)
}

/// The same for one that may speak of the caller and of nothing else.
pub fn compile_of_caller(text: &str) -> Result<Program, Vec<Mistake>> {
    compile_below(text, Some("caller"))
}

/// `root`: what alone it may speak of.
fn compile_below(text: &str, root: Option<&'static str>) -> Result<Program, Vec<Mistake>> {
    let whole = |what: &str, write: &str| {
        vec![Mistake { line: 1, column: 1, what: what.to_owned(), write: write.to_owned() }]
    };
    if text.trim().is_empty() {
        return Err(whole("is empty", "write a condition, like `caller.machine`"));
    }
    if text.len() > LONGEST {
        return Err(whole("is too long", &format!("write no more than {LONGEST} bytes, or several rules")));
    }
    thread::scope(|scope| {
        let reading = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || read(text, root));
        let read = reading.map_err(|_| whole("cannot be read now", "try again"))?;
        read.join().unwrap_or_else(|_| Err(whole("cannot be read", "write a condition in CEL")))
    })
}

fn read(text: &str, root: Option<&'static str>) -> Result<Program, Vec<Mistake>> {
    let (expression, source) = Parser::new().parse_with_source_info(text).map_err(|errors| {
        let mistakes = errors.errors.into_iter().map(|error| {
            let (line, column) = error.pos;
            let at = |number: isize| usize::try_from(number).unwrap_or(1).max(1);
            let said = error.msg.lines().next().unwrap_or_default();
            Mistake {
                line: at(line),
                column: at(column),
                what: format!("is not CEL: {said}"),
                write: String::new(),
            }
        });
        mistakes.collect::<Vec<_>>()
    })?;
    let mut check = Check::new(&source, root);
    match (check.condition(&expression), check.mistakes.is_empty()) {
        (Some(node), true) => {
            Ok(Program { node, uses: check.uses, arguments: check.arguments, text: text.trim().into() })
        }
        _ => Err(check.mistakes),
    }
}

// === impl Program ===

impl Program {
    /// Whether it is true of these facts.
    pub fn holds(&self, facts: &dyn Facts) -> Result<bool, Fault> {
        run::holds(&self.node, facts)
    }

    /// The facts it may ask for.
    pub fn uses(&self) -> Names {
        self.uses
    }

    /// The parts of `mcp.arguments` it may ask for.
    pub fn arguments(&self) -> &Wanted {
        &self.arguments
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests;
