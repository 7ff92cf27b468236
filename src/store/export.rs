//! The rows of an embedded store for whoever migrates it while its Postern runs: the file serves one process at a time,
//! so that process reads them out, over a socket in the data directory that its owner alone can open.
//!
//! A request is the name of a kind on a line. The answer is one JSON object per line, `{"key":…,"row":…}` with the row in
//! base64, and at the end a line with their number: an answer without it was cut off. Values are sealed as they lie.
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::migrate::Source;
use super::{Kind, Row, Store, StoreError};

/// The socket inside the data directory.
const FILE_NAME: &str = "export.sock";

#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    row: String,
}

/// Serves the rows of `store` until it is dropped.
pub async fn serve(store: Arc<dyn Store>, data_dir: &Path) -> io::Result<()> {
    let path = data_dir.join(FILE_NAME);
    // Left by a process that was killed; nobody else has this directory.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    loop {
        let (stream, _) = listener.accept().await?;
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            if let Err(error) = answer(stream, store.as_ref()).await {
                tracing::warn!(target: "postern::store", %error, "the store was not read out to its end");
            }
        });
    }
}

async fn answer(stream: UnixStream, store: &dyn Store) -> io::Result<()> {
    let (asked, mut answer) = stream.into_split();
    let mut asked = BufReader::new(asked).lines();
    while let Some(name) = asked.next_line().await? {
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name);
        let kind = kind.ok_or_else(|| io::Error::other("no such kind"))?;
        let rows = store.rows(kind).await.map_err(io::Error::other)?;
        let count = rows.len();
        for (key, row) in rows {
            let row = BASE64.encode(&row.encode().map_err(io::Error::other)?);
            let mut line = serde_json::to_vec(&Line { key, row })?;
            line.push(b'\n');
            answer.write_all(&line).await?;
        }
        answer.write_all(format!("{count}\n").as_bytes()).await?;
    }
    Ok(())
}

/// The store of a running Postern, read from outside.
pub struct Export {
    path: PathBuf,
}

impl Export {
    /// The one of this data directory.
    pub fn of(data_dir: &Path) -> Self {
        Self { path: data_dir.join(FILE_NAME) }
    }

    async fn read(&self, kind: Kind) -> io::Result<Vec<(String, Row)>> {
        let mut stream = UnixStream::connect(&self.path).await?;
        stream.write_all(format!("{}\n", kind.name()).as_bytes()).await?;
        let mut lines = BufReader::new(stream).lines();
        let mut rows = Vec::new();
        while let Some(line) = lines.next_line().await? {
            if let Ok(count) = line.parse::<usize>() {
                return match count == rows.len() {
                    true => Ok(rows),
                    false => Err(io::Error::other("rows are missing")),
                };
            }
            let Line { key, row } = serde_json::from_str(&line)?;
            let row = BASE64.decode(row.as_bytes()).map_err(io::Error::other)?;
            rows.push((key, Row::decode(&row).map_err(io::Error::other)?));
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

#[async_trait]
impl Source for Export {
    async fn rows(&self, kind: Kind) -> Result<Vec<(String, Row)>, StoreError> {
        let rows = self.read(kind).await;
        rows.map_err(|error| StoreError::Unavailable(format!("{}: {error}", self.path.display())))
    }
}
