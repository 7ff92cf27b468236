//! A gateway whose audit events go to a file as well, for a program that collects them.
//!
//! ```sh
//! cargo run --example audit_sink -- postern.yaml audit.jsonl
//! ```
//!
//! What takes long, a network say, belongs into a thread of its own, as here: the gateway calls a sink on the path of the
//! request.
use std::fs::File;
use std::io::Write;
use std::process::ExitCode;
use std::sync::mpsc::{self, Sender};

use postern::server::Builder;
use postern::telemetry::audit::{Decision, Resolution, Sink};
use serde_json::{Value, json};

struct Collector {
    lines: Sender<Value>,
}

impl Sink for Collector {
    fn resolution(&self, resolution: &Resolution<'_>) {
        // The other end is there as long as the process is.
        let _ = self.lines.send(json!({"credential": resolution}));
    }

    fn decision(&self, decision: &Decision<'_>) {
        let _ = self.lines.send(json!({"decision": decision}));
    }
}

impl Collector {
    /// Writes to `file` in a thread of its own.
    fn to(mut file: File) -> Self {
        let (lines, written) = mpsc::channel::<Value>();
        std::thread::spawn(move || {
            for line in written {
                if let Err(error) = writeln!(file, "{line}") {
                    eprintln!("the audit file cannot be written: {error}");
                }
            }
        });
        Self { lines }
    }
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(config), Some(path)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: audit_sink CONFIG FILE");
        return ExitCode::FAILURE;
    };
    let file = match File::options().create(true).append(true).open(&path) {
        Ok(file) => file,
        Err(error) => {
            eprintln!("{}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    };
    match Builder::new(config).audit(Collector::to(file)).run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
