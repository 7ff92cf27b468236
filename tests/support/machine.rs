//! A machine within this one, whose first process is a systemd (`tests/setup/machine.sh`).

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::process::Finished;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/setup/machine.sh");

/// How the script says that there is none to be had.
const NOT_TO_BE_HAD: i32 = 77;

/// Dropping it ends it, and whatever runs in it.
pub struct Machine {
    child: Child,
    /// Of its first process.
    process: String,
}

impl Machine {
    /// Where there is none to be had, says so in the test's name.
    pub fn boot(test: &str) -> Option<Self> {
        let mut command = Command::new(SCRIPT);
        // Until its input ends.
        command.arg("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("bash");
        let mut line = String::new();
        let mut printed = BufReader::new(child.stdout.as_mut().expect("piped"));
        printed.read_line(&mut line).expect("a line");
        if let Some(process) = line.strip_prefix("machine ") {
            return Some(Machine { process: process.trim().to_owned(), child });
        }
        let mut said = String::new();
        child.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
        assert_eq!(child.wait().expect("a child").code(), Some(NOT_TO_BE_HAD), "{said}");
        // Past the harness, which keeps to itself what a test prints that passes.
        let _ = writeln!(std::io::stderr(), "{test}: skipped, {}", said.trim());
        None
    }

    /// A file of it.
    pub fn file(&self, path: &str) -> PathBuf {
        format!("/proc/{}/root{path}", self.process).into()
    }

    /// Runs a command in it to its end.
    pub async fn run(&self, command: &str) -> Finished {
        let (process, command) = (self.process.clone(), command.to_owned());
        tokio::task::spawn_blocking(move || run_in(&process, &command)).await.expect("no panic")
    }

    /// The same, where there is nothing to wait in.
    pub fn run_now(&self, command: &str) -> Finished {
        run_in(&self.process, command)
    }
}

fn run_in(process: &str, command: &str) -> Finished {
    let mut inside = Command::new(SCRIPT);
    let done = inside.args(["in", process]).args(command.split(' ')).stdin(Stdio::null()).output();
    let done = done.expect("bash");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    Finished {
        code: done.status.code(),
        files: Vec::new(),
        stdout: text(&done.stdout),
        stderr: text(&done.stderr),
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
