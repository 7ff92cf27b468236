//! The built program as a child process, with everything it prints kept.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{CANARY, PATIENCE, eventually, eventually_some, lock};

/// Path of the program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_postern");

/// All lines of both output streams, over all starts. Clones share them.
#[derive(Clone, Default)]
pub struct Output(Arc<Mutex<Vec<String>>>);

impl Output {
    pub fn lines(&self) -> Vec<String> {
        lock(&self.0).clone()
    }

    pub fn len(&self) -> usize {
        lock(&self.0).len()
    }

    pub fn text(&self) -> String {
        lock(&self.0).join("\n")
    }

    /// Waits until `text` has been printed: the log is written beside the answers, not before them.
    #[track_caller]
    pub fn shows(&self, text: &str) -> impl Future<Output = ()> {
        eventually(PATIENCE, move || {
            let printed = self.text().contains(text);
            async move { printed }
        })
    }

    /// Waits until there are `count` lines of JSON such as `wanted`.
    #[track_caller]
    pub fn has(&self, count: usize, wanted: impl Fn(&serde_json::Value) -> bool) -> impl Future<Output = ()> {
        eventually(PATIENCE, move || {
            let has = self.records().iter().filter(|line| wanted(line)).count() == count;
            async move { has }
        })
    }

    /// Lines that are JSON, parsed.
    pub fn records(&self) -> Vec<serde_json::Value> {
        lock(&self.0).iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Panics when any line carries a secret of the rig.
    #[track_caller]
    pub fn assert_no_secret(&self) {
        if let Some(line) = lock(&self.0).iter().find(|line| line.contains(CANARY)) {
            panic!("a secret in the log: {line}");
        }
    }

    fn collect(&self, stream: impl Read + Send + 'static) -> JoinHandle<()> {
        let lines = self.0.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                lock(&lines).push(String::from_utf8_lossy(&line).into_owned());
            }
        })
    }
}

/// A running child. Dropping it kills it.
pub struct Process {
    child: Child,
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    /// Starts `command`; what it prints goes to `output`.
    pub fn start(mut command: Command, output: &Output) -> Self {
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start the program");
        let stdout = output.collect(child.stdout.take().expect("piped"));
        let stderr = output.collect(child.stderr.take().expect("piped"));
        Process { child, readers: vec![stdout, stderr] }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it has ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("child")
    }

    /// Waits for its end and for its last line.
    pub async fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let status = {
            let child = Mutex::new(&mut self.child);
            eventually_some(deadline, || {
                let status = lock(&child).try_wait().expect("child");
                async move { status }
            })
            .await
        };
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        status
    }

    /// Sends a signal by its name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let pid = self.id().to_string();
        let status = Command::new("sh").args(["-c", "kill -s \"$0\" \"$1\"", name, &pid]).status();
        assert!(status.is_ok_and(|status| status.success()), "kill -s {name} {pid}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a run of the program to its end has left.
pub struct Finished {
    pub code: Option<i32>,
    /// Names of the files it made where it ran.
    pub files: Vec<String>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs the program to its end, in an empty directory: `run(&["validate", "--config", path], &[]).await`.
pub async fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Finished {
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut command = Command::new(PROGRAM);
    command.args(arguments).envs(environment.iter().copied()).stdin(Stdio::null());
    command.current_dir(directory.path());
    let (stdout, stderr) = (Output::default(), Output::default());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start the program");
    let readers = vec![
        stdout.collect(child.stdout.take().expect("piped")),
        stderr.collect(child.stderr.take().expect("piped")),
    ];
    let status = Process { child, readers }.wait(PATIENCE).await;
    let files = std::fs::read_dir(directory.path()).expect("directory").map_while(Result::ok);
    let files = files.map(|file| file.file_name().to_string_lossy().into_owned()).collect();
    Finished { code: status.code(), files, stdout: stdout.text(), stderr: stderr.text() }
}
