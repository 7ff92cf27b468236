//! HTTP by hand, byte for byte, for what no decent client would send.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::within;

#[derive(Clone, Debug)]
pub struct RawResponse {
    pub status: u16,
    /// In order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Chunks joined.
    pub body: Vec<u8>,
}

impl RawResponse {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

pub struct RawConnection {
    stream: TcpStream,
    /// Read but not yet used.
    buffer: Vec<u8>,
}

impl RawConnection {
    pub async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("connect");
        stream.set_nodelay(true).expect("nodelay");
        RawConnection { stream, buffer: Vec::new() }
    }

    /// Writes these bytes; an error (the other side has closed) is told, not raised.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).await.is_ok()
    }

    /// Closes the sending direction only.
    pub async fn finish_sending(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// Reads one response; `None` when the connection closes before it is complete.
    #[track_caller]
    pub fn response(&mut self, deadline: Duration) -> impl Future<Output = Option<RawResponse>> + '_ {
        within(deadline, self.read_response())
    }

    /// Whether what comes first is this.
    #[track_caller]
    pub fn begins_with(&mut self, first: &[u8], deadline: Duration) -> impl Future<Output = bool> {
        within(deadline, async move {
            while self.buffer.len() < first.len() && self.more().await {}
            self.buffer.starts_with(first)
        })
    }

    async fn read_response(&mut self) -> Option<RawResponse> {
        let head = self.until(b"\r\n\r\n").await?;
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut lines = head.lines();
        let status: u16 = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
            .collect();
        let mut response = RawResponse { status, headers, body: Vec::new() };
        let bodiless = status < 200 || matches!(status, 204 | 304);
        let chunked = response.header("transfer-encoding").is_some_and(|value| value.contains("chunked"));
        let length = response.header("content-length").and_then(|value| value.parse().ok());
        response.body = match length {
            _ if bodiless => Vec::new(),
            _ if chunked => self.chunks().await?,
            Some(length) => self.take(length).await?,
            None => self.rest().await,
        };
        Some(response)
    }

    /// Everything until the other side closes.
    #[track_caller]
    pub fn until_closed(&mut self, deadline: Duration) -> impl Future<Output = Vec<u8>> + '_ {
        within(deadline, self.rest())
    }

    /// Returns when the other side has closed; whatever it still sent is dropped.
    #[track_caller]
    pub fn closed(&mut self, deadline: Duration) -> impl Future<Output = ()> + '_ {
        within(deadline, async {
            self.rest().await;
        })
    }

    async fn rest(&mut self) -> Vec<u8> {
        while self.more().await {}
        std::mem::take(&mut self.buffer)
    }

    async fn chunks(&mut self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = String::from_utf8_lossy(&self.until(b"\r\n").await?).into_owned();
            let size = usize::from_str_radix(line.split(';').next()?.trim(), 16).ok()?;
            if size == 0 {
                // Trailers, if any, end with an empty line.
                while self.until(b"\r\n").await?.len() > 2 {}
                return Some(body);
            }
            body.extend(self.take(size).await?);
            self.take(2).await?;
        }
    }

    /// Takes everything up to and with `mark`.
    async fn until(&mut self, mark: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.buffer.windows(mark.len()).position(|window| window == mark) {
                return Some(self.buffer.drain(..at + mark.len()).collect());
            }
            if !self.more().await {
                return None;
            }
        }
    }

    /// Reads so many bytes; `None` when the connection closes before.
    #[track_caller]
    pub fn exactly(
        &mut self,
        length: usize,
        deadline: Duration,
    ) -> impl Future<Output = Option<Vec<u8>>> + '_ {
        within(deadline, self.take(length))
    }

    async fn take(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < length {
            if !self.more().await {
                return None;
            }
        }
        Some(self.buffer.drain(..length).collect())
    }

    /// Reads some more; `false` at the end or after a reset.
    async fn more(&mut self) -> bool {
        self.stream.read_buf(&mut self.buffer).await.is_ok_and(|read| read > 0)
    }
}

/// Sends these bytes on a new connection and reads one response.
#[track_caller]
pub fn exchange(
    address: SocketAddr,
    bytes: impl Into<Vec<u8>>,
    deadline: Duration,
) -> impl Future<Output = Option<RawResponse>> {
    let bytes = bytes.into();
    within(deadline, async move {
        let mut connection = RawConnection::open(address).await;
        connection.send(bytes).await;
        connection.read_response().await
    })
}
