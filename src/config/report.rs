//! What is wrong with a configuration: every problem with its place, its key and what to write instead.
//!
//! All stages of `config` collect into one list, so that one run of `postern validate` shows everything.

use std::fmt;

/// Where a problem sits in the file; both numbers count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub line: u64,
    pub column: u64,
}

/// The way to a key from the top of the file, printed as `routes[0].upstream.url`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Key(Vec<Step>);

/// One step of a [`Key`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Name(String),
    Index(usize),
}

impl Key {
    /// The key `name` at the top of the file.
    pub(super) fn top(name: &str) -> Self {
        Self::default().child(name)
    }

    /// The key `name` inside the mapping at `self`.
    pub(super) fn child(&self, name: &str) -> Self {
        let mut steps = self.0.clone();
        steps.push(Step::Name(name.to_owned()));
        Self(steps)
    }

    /// Entry `index` of the list at `self`.
    pub(super) fn item(&self, index: usize) -> Self {
        let mut steps = self.0.clone();
        steps.push(Step::Index(index));
        Self(steps)
    }

    pub(super) fn steps(&self) -> &[Step] {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            match step {
                Step::Name(name) if position == 0 => f.write_str(name)?,
                Step::Name(name) => write!(f, ".{name}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// One thing that is wrong. Never holds the value of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `None` when the file as a whole is meant (it cannot be read, say).
    pub position: Option<Position>,
    /// The key it is about; empty for syntax errors.
    pub key: Key,
    /// What is wrong, one line.
    pub what: String,
    /// What to write instead, one line; may be empty where `what` says it all.
    pub write: String,
}

/// Every problem of one configuration file, in file order.
///
/// `Display` prints one line per problem: `FILE:LINE:COLUMN: KEY: WHAT; WRITE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Name of the file as it was given.
    pub file: String,
    pub problems: Vec<Problem>,
}

impl Report {
    /// Sorts by place, so that the report reads like the file.
    pub(super) fn new(file: &str, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| problem.position);
        Self { file: file.to_owned(), problems }
    }

    /// A report with a single problem about the whole file.
    pub(super) fn whole(file: &str, what: String, write: &str) -> Self {
        let problem = Problem { position: None, key: Key::default(), what, write: write.to_owned() };
        Self { file: file.to_owned(), problems: vec![problem] }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            f.write_str(&self.file)?;
            if let Some(Position { line, column }) = problem.position {
                write!(f, ":{line}:{column}")?;
            }
            f.write_str(": ")?;
            if !problem.key.steps().is_empty() {
                write!(f, "{}: ", problem.key)?;
            }
            f.write_str(&problem.what)?;
            if !problem.write.is_empty() {
                write!(f, "; {}", problem.write)?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Report {}
