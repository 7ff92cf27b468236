//! The program as a service manager has it: replaced while it runs.

use std::ops::{Deref, DerefMut};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use tempfile::TempDir;

use super::gateway::{Builder, Gateway};
use super::process::{Finished, PROGRAM, run};
use super::{PATIENCE, eventually};

/// A gateway that is replaced while it runs, and whoever it is replaced by. Dropping it kills them all.
pub struct Service {
    pub gateway: Gateway,
    directory: TempDir,
    manager: UnixDatagram,
}

impl Service {
    pub async fn start(builder: Builder) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("postern");
        std::os::unix::fs::symlink(PROGRAM, &program).unwrap();
        let socket = directory.path().join("notify");
        let manager = UnixDatagram::bind(&socket).unwrap();
        manager.set_nonblocking(true).unwrap();
        let builder = builder.env("NOTIFY_SOCKET", socket.to_str().unwrap()).program(&program);
        let mut service = Service { gateway: builder.prepare(), directory, manager };
        service.gateway.spawn();
        service.gateway.ready().await;
        service
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

    /// What the service manager has been told since it was last asked, a line each.
    pub fn told(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut message = [0; 512];
        while let Ok(length) = self.manager.recv(&mut message) {
            lines.extend(String::from_utf8_lossy(&message[..length]).lines().map(str::to_owned));
        }
        lines
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
