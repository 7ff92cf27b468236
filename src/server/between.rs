//! The process between the old one and the new one: a child of the old that starts the new, and ends once that serves.
//!
//! systemd wants its main process to be a child of its own. Whoever names another one's child (`MAINPID=`) has one whose end is
//! not noticed for as long as its parent lives, and that is killed at once (SIGKILL) where it should be asked to stop: systemd
//! does not wait for strangers. When this process ends, the new one has no parent left and becomes systemd's, and only then it
//! is named.
//!
//! It does nothing else, so that nothing is lost with it: it kills what it started when the old process goes or gives up, and
//! ends as that does.
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::handover::BY_WAY_OF;
use crate::telemetry::output;

const POLL: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// Starts this program once more, with the line to the old process, and returns only if it cannot.
pub fn stand() -> io::Error {
    match start() {
        Ok(child) => end(wait(child)),
        Err(error) => error,
    }
}

fn start() -> io::Result<Child> {
    let mut arguments = std::env::args_os();
    // If another program has come into its place meanwhile, there is no such file, and the hand-over fails.
    let mut command = Command::new(std::env::current_exe()?);
    // The path as it was written is what the next one is started from.
    if let Some(path) = arguments.next() {
        command.arg0(path);
    }
    command.args(arguments).env(BY_WAY_OF, std::process::id().to_string()).spawn()
}

/// Until it ends, or nobody wants it any more.
fn wait(mut child: Child) -> i32 {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return status.code().unwrap_or(1),
            Ok(None) if !is_given_up() => {}
            _ => break,
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    1
}

/// Whether the old process closes its end within a moment. What it has said is not ours to read, and may lie there unread.
fn is_given_up() -> bool {
    let stdin = io::stdin();
    let mut asked = [PollFd::new(&stdin, PollFlags::RDHUP)];
    let is_known = poll(&mut asked, Some(&POLL)).is_ok();
    is_known && asked.iter().any(|one| !one.revents().is_empty())
}

#[expect(clippy::disallowed_methods, reason = "nothing has begun here")]
fn end(code: i32) -> ! {
    output::flush();
    std::process::exit(code)
}
