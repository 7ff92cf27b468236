//! Scripts of `tests/interop`, run by Node.js against the built program. `make test` installs what they need.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::PATIENCE;
use super::process::{Output, PROGRAM, Process};

/// The scripts limit themselves; this is for one that hangs, and leaves time to install packages first.
const LONGEST: Duration = Duration::from_secs(180);

/// Runs a script of `tests/interop` to its end and returns what it printed; panics with that when it fails.
pub async fn run(script: &str, arguments: &[&str]) -> Vec<String> {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("temporary directory");
    let mut command = Command::new("node");
    command
        .arg(Path::new("tests/interop").join(script))
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("POSTERN_BIN", PROGRAM)
        .env("WORK_DIR", directory.path())
        .stdin(Stdio::null());
    let output = Output::default();
    let mut process = Process::start(command, &output);
    let status = match tokio::time::timeout(LONGEST, process.wait(LONGEST * 2)).await {
        Ok(status) => status.to_string(),
        Err(_) => {
            // It has programs of its own to stop, so it is asked; dropping the process would leave them behind.
            process.signal("TERM");
            process.wait(PATIENCE).await;
            format!("stopped after {LONGEST:?}")
        }
    };
    assert_eq!(status, "exit status: 0", "{script} {}\n{}", arguments.join(" "), output.text());
    output.lines()
}
