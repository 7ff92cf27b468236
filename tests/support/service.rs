//! The program as a service manager has it: replaced while it runs.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::Mutex;

use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tempfile::TempDir;

use super::gateway::{Builder, Gateway};
use super::process::{Finished, PROGRAM, run};
use super::{PATIENCE, eventually, lock};

/// A gateway that is replaced while it runs, and whoever it is replaced by. Dropping it kills them all.
pub struct Service {
    pub gateway: Gateway,
    directory: TempDir,
    manager: UnixDatagram,
    /// Whom the manager hears.
    main: Mutex<u32>,
}

impl Service {
    pub async fn start(builder: Builder) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("postern");
        std::os::unix::fs::symlink(PROGRAM, &program).unwrap();
        let socket = directory.path().join("notify");
        let manager = UnixDatagram::bind(&socket).unwrap();
        manager.set_nonblocking(true).unwrap();
        set_socket_passcred(&manager, true).unwrap();
        let builder = builder.env("NOTIFY_SOCKET", socket.to_str().unwrap()).program(&program);
        let mut service = Service { gateway: builder.prepare(), directory, manager, main: Mutex::default() };
        service.spawn();
        service.gateway.ready().await;
        service
    }

    fn spawn(&mut self) {
        self.gateway.spawn();
        *lock(&self.main) = self.gateway.process_id();
    }

    /// As [`Gateway::restart`].
    pub async fn restart(&mut self) {
        self.gateway.restart().await;
        *lock(&self.main) = self.gateway.process_id();
    }

    pub fn program(&self) -> PathBuf {
        self.directory.path().join("postern")
    }

    /// Puts a script in the program's place.
    pub fn script(&self, text: &str) {
        std::fs::remove_file(self.program()).unwrap();
        std::fs::write(self.program(), text).unwrap();
        std::fs::set_permissions(self.program(), std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Puts the program in its place again.
    pub fn mend(&self) {
        std::fs::remove_file(self.program()).unwrap();
        std::os::unix::fs::symlink(PROGRAM, self.program()).unwrap();
    }

    /// Runs `postern upgrade`.
    pub async fn upgrade(&self, more: &[&str]) -> Finished {
        let file = self.gateway.config_file();
        let words = [&["upgrade", "--config", file.to_str().unwrap()], more].concat();
        run(&words, &[]).await
    }

    /// Hands over, and returns the new process.
    pub async fn hand_over(&self) -> u32 {
        // Whoever notifies waits for a manager that reads.
        self.told();
        let done = self.upgrade(&["--always"]).await;
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        let successor = done.stdout.split_whitespace().nth(1).and_then(|word| word.parse().ok());
        successor.unwrap_or_else(|| panic!("{}", done.stdout))
    }

    /// Every process of this configuration that has not ended.
    pub fn processes(&self) -> Vec<u32> {
        let file = self.gateway.config_file();
        let ours = |id: &u32| {
            let words = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            words.split(|byte| *byte == 0).any(|word| word == file.as_os_str().as_encoded_bytes())
        };
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(ours).collect()
    }

    /// Waits until this is the only process.
    pub async fn is_alone(&self, process: u32) {
        eventually(PATIENCE, || async { self.processes() == [process] }).await;
    }

    /// What the service manager has been told since it was last asked, a line each. With `NotifyAccess=main` nobody but the main
    /// process can name another one; what else a new one says too early does not matter to a service that is up.
    pub fn told(&self) -> Vec<String> {
        let (mut lines, mut message, mut main) = (Vec::new(), [0; 512], lock(&self.main));
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
            let mut beside = RecvAncillaryBuffer::new(&mut space);
            let into = &mut [IoSliceMut::new(&mut message)];
            let Ok(received) = recvmsg(&self.manager, into, &mut beside, RecvFlags::empty()) else {
                return lines;
            };
            let sender = beside.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmCredentials(sender) => {
                    u32::try_from(sender.pid.as_raw_nonzero().get()).ok()
                }
                _ => None,
            });
            let text = String::from_utf8_lossy(&message[..received.bytes]).into_owned();
            let names = |line: &&str| line.starts_with("MAINPID=");
            if sender == Some(*main) {
                let named = text.lines().find(names).and_then(|line| line.rsplit('=').next());
                *main = named.map_or(*main, |named| named.parse().unwrap());
                lines.extend(text.lines().map(str::to_owned));
            } else {
                lines.extend(text.lines().filter(|line| !names(line)).map(str::to_owned));
            }
        }
    }

    pub async fn upgrades(&self, outcome: &str) -> u64 {
        let line = format!("postern_upgrades_total{{outcome=\"{outcome}\"}} ");
        let text = self.http.get(self.admin("/metrics")).send().await.unwrap().text().await.unwrap();
        text.lines().find_map(|found| found.strip_prefix(&line)).map_or(0, |count| count.parse().unwrap())
    }
}

impl Deref for Service {
    type Target = Gateway;
    fn deref(&self) -> &Gateway {
        &self.gateway
    }
}

impl DerefMut for Service {
    fn deref_mut(&mut self) -> &mut Gateway {
        &mut self.gateway
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // A process may be about to start another.
        while !self.processes().is_empty() {
            for process in self.processes() {
                let _ = std::process::Command::new("sh")
                    .args(["-c", &format!("kill -KILL {process} 2>&-")])
                    .status();
            }
            // Or it would be there as a zombie.
            self.gateway.has_ended();
        }
    }
}
