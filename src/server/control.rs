//! What may be asked of the running process from beside it: a socket in the data directory, which its owner alone can open.
//! `postern upgrade` and `postern reload` ask here and are told how it went.
//!
//! A request is a word on a line; the answer is one line, `ok` or `failed` and what there is to say.
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
use tokio::sync::{Mutex, Notify, watch};

use super::reload::Reload;
use super::shutdown::Signals;
use super::upgrade::Upgrade;

/// The socket inside the data directory.
const FILE_NAME: &str = "control.sock";
/// Whoever connects and says nothing is not waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two tries to accept somebody.
const AGAIN: Duration = Duration::from_secs(1);

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Read the configuration again.
    Reload,
    /// Hand over to a new process.
    Upgrade,
    /// Whichever of the two takes in what has changed.
    Apply,
}

impl Wish {
    const ALL: [(Wish, &str); 3] =
        [(Wish::Reload, "reload"), (Wish::Upgrade, "upgrade"), (Wish::Apply, "apply")];

    fn word(self) -> &'static str {
        Self::ALL.iter().find(|(wish, _)| *wish == self).map_or("", |(_, word)| word)
    }
}

/// Serves the socket.
pub struct Control {
    pub data_dir: PathBuf,
    pub hands: Arc<Hands>,
    /// The socket is the predecessor's until then.
    pub is_the_one: Mutex<watch::Receiver<bool>>,
}

/// Who carries it out.
pub struct Hands {
    pub reload: Arc<Reload>,
    pub upgrade: Arc<Upgrade>,
}

#[async_trait]
impl BackgroundService for Control {
    async fn start(&self, _shutdown: ShutdownWatch) {
        if self.is_the_one.lock().await.wait_for(|is_the_one| *is_the_one).await.is_err() {
            return;
        }
        if let Err(error) = self.serve().await {
            tracing::warn!(%error, "`postern upgrade` cannot reach this process; signals can");
        }
    }
}

impl Control {
    async fn serve(&self) -> io::Result<()> {
        let path = self.data_dir.join(FILE_NAME);
        // Left by a process that was killed, or by the predecessor; nobody else has this directory.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = tokio::net::UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(answer(stream, Arc::clone(&self.hands)));
                }
                // There may be no file for it now.
                Err(error) => {
                    tracing::warn!(%error, "a wish at the control socket cannot be heard");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }
}

async fn answer(stream: tokio::net::UnixStream, hands: Arc<Hands>) -> io::Result<()> {
    let (asked, mut answer) = stream.into_split();
    let mut asked = tokio::io::BufReader::new(asked).lines();
    let word = tokio::time::timeout(PATIENCE, asked.next_line()).await??.unwrap_or_default();
    let done = match Wish::ALL.iter().find(|(_, known)| *known == word) {
        None => Err(format!("`{word}` is nothing that this version knows")),
        Some((wish, _)) => {
            let wish = *wish;
            tokio::task::spawn_blocking(move || hands.carry_out(wish)).await.map_err(io::Error::other)?
        }
    };
    let line = match done {
        Ok(text) => format!("ok {}\n", text.replace('\n', "; ")),
        Err(reason) => format!("failed {}\n", reason.replace('\n', "; ")),
    };
    answer.write_all(line.as_bytes()).await
}

impl Hands {
    /// The same by signals: SIGHUP reads the configuration again, SIGUSR2 hands over. `leave`: see [`Signals::listen`].
    pub fn listen(self: &Arc<Self>, leave: Arc<Notify>) -> io::Result<Signals> {
        let [hang_up, user2, end] = [(); 3].map(|()| Arc::clone(self));
        let upgrade = move || {
            let hands = Arc::clone(&user2);
            // What it comes to is in the log.
            std::thread::spawn(move || drop(hands.upgrade.now()));
        };
        Signals::listen(move || drop(hang_up.reload.now()), upgrade, leave, move || end.upgrade.forget())
    }

    /// Blocks. What was done, or why nothing was.
    pub fn carry_out(&self, wish: Wish) -> Result<String, String> {
        if wish != Wish::Upgrade {
            // A wrong configuration would stop the new process too.
            let waiting = self.reload.now()?;
            let is_done = waiting.is_empty() && !self.upgrade.is_due();
            if wish == Wish::Reload || is_done {
                return Ok(match waiting.is_empty() {
                    true => "the configuration is in use".to_owned(),
                    false => format!(
                        "the configuration is in use; waiting for `postern upgrade`: {}",
                        waiting.join(", ")
                    ),
                });
            }
        }
        self.upgrade.now().map(|successor| format!("process {successor} serves"))
    }
}

/// Asks the running process of this data directory. What it has done, or why not.
pub fn ask(data_dir: &Path, wish: Wish) -> io::Result<Result<String, String>> {
    let mut stream = UnixStream::connect(data_dir.join(FILE_NAME))?;
    stream.write_all(format!("{}\n", wish.word()).as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    match line.trim_end().split_once(' ') {
        Some(("ok", text)) => Ok(Ok(text.to_owned())),
        Some(("failed", reason)) => Ok(Err(reason.to_owned())),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
