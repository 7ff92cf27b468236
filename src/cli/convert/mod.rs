//! `postern convert`: another gateway's configuration → routes on standard output, and on standard error what they cannot say.
//!
//! The ways of a document: text → sections whose keys are taken one by one (`section`), so that every key nobody took is told →
//! servers and credentials (`toolhive`, `credential`) → routes (`written`), each of which is held against Postern's own rules
//! (`trial`) before it is printed. A route that would not do what the file says is left out, never printed half.

mod credential;
mod section;
mod toolhive;
mod trial;
mod written;

use std::path::Path;
use std::process::ExitCode;

use clap::ValueEnum;

use super::{BAD_CONFIG, eprintln, println};

/// Whose configuration it is.
#[derive(Clone, Copy, ValueEnum)]
pub enum Origin {
    /// Kubernetes resources of ToolHive's operator, and configurations of its vMCP.
    Toolhive,
}

/// Prints the routes. Exit code 0: they say all that the file says; 1: not all; 78: the file cannot be read.
pub fn convert(from: Origin, path: &Path) -> ExitCode {
    let file = path.display();
    let read = std::fs::read_to_string(path).map_err(|error| format!("{file}: cannot be read: {error}"));
    let converted = read.and_then(|text| match from {
        Origin::Toolhive => toolhive::convert(&text).map_err(|why| format!("{file}:{why}")),
    });
    let (routes, losses) = match converted {
        Ok(converted) => converted,
        Err(why) => {
            eprintln(&why);
            return ExitCode::from(BAD_CONFIG);
        }
    };
    let printed = println(&written::file(&routes));
    for loss in &losses {
        eprintln(&format!("{file}:{loss}"));
    }
    if losses.is_empty() { printed } else { ExitCode::FAILURE }
}
