//! wrk, as a load that is not of our making.

use std::io::Write;
use std::process::Command;
use std::time::Duration;

use tempfile::NamedTempFile;

use super::PATIENCE;
use super::process::{Output, Process};

/// It is ended before.
const LONGEST: &str = "2h";

pub struct Wrk {
    process: Process,
    output: Output,
    _script: NamedTempFile,
}

/// What it says at its end.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Counted {
    pub requests: u64,
    /// Answers that are not 2xx or 3xx.
    pub failed: u64,
    /// Connections that were not made, broke off or said nothing in time.
    pub refused: u64,
}

impl Wrk {
    /// Posts this over and over with this token; `None` where it is not installed.
    pub fn start(url: &str, token: &str, body: &str) -> Option<Self> {
        // What it is called with is wrong, and it says so.
        Command::new("wrk").output().ok()?;
        let mut script = NamedTempFile::new().expect("temporary file");
        let headers = [
            ("content-type", "application/json"),
            ("accept", "application/json, text/event-stream"),
            ("authorization", &format!("Bearer {token}")),
        ];
        writeln!(script, "wrk.method = 'POST'\nwrk.body = '{body}'").expect("script");
        for (name, value) in headers {
            writeln!(script, "wrk.headers['{name}'] = '{value}'").expect("script");
        }
        let mut command = Command::new("wrk");
        command.args(["--threads", "1", "--connections", "16", "--timeout", "30s", "--duration", LONGEST]);
        command.arg("--script").arg(script.path()).arg(url);
        let output = Output::default();
        Some(Wrk { process: Process::start(command, &output), output, _script: script })
    }

    /// Ends it.
    pub async fn end(mut self) -> Counted {
        self.process.signal("INT");
        self.process.wait(PATIENCE + Duration::from_secs(30)).await;
        let printed = self.output.text();
        let counted = Counted::of(&printed);
        assert!(counted.requests > 0, "{printed}");
        counted
    }
}

impl Counted {
    fn of(printed: &str) -> Self {
        let mut counted = Counted::default();
        for line in printed.lines().map(str::trim) {
            let numbers = line.split([' ', ',']).filter_map(|word| word.parse::<u64>().ok());
            if line.contains(" requests in ") {
                counted.requests = numbers.take(1).sum();
            } else if line.starts_with("Socket errors:") {
                counted.refused = numbers.sum();
            } else if line.starts_with("Non-2xx or 3xx responses:") {
                counted.failed = numbers.sum();
            }
        }
        counted
    }
}
