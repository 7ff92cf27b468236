//! The HTTP server below every scripted party: a kernel port, every connection counted, and each of them
//! can be cut at any moment, also instead of an answer.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use axum::Router;
use axum::body::to_bytes;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request};
use axum::response::Response;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use super::lock;
use super::port::Port;
use super::received::Received;

/// Largest request body a scripted server reads.
const BODY_LIMIT: usize = 64 << 20;

type Answering = Pin<Box<dyn Future<Output = Response> + Send>>;
type Handler = Arc<dyn Fn(Received, Connection) -> Answering + Send + Sync>;

/// A listening server. It ends when this is dropped.
pub struct Server {
    pub address: SocketAddr,
    /// Keeps the address while it is stopped.
    port: Port,
    handler: Handler,
    lines: Arc<Lines>,
    accepting: Mutex<AbortHandle>,
}

/// The connections of one server.
#[derive(Default)]
struct Lines {
    opened: AtomicUsize,
    open: Mutex<Vec<Connection>>,
}

impl Server {
    /// Starts on a port of the kernel's choosing on 127.0.0.1.
    pub async fn start<H, A>(handler: H) -> Server
    where
        H: Fn(Received, Connection) -> A + Send + Sync + 'static,
        A: Future<Output = Response> + Send + 'static,
    {
        let port = Port::take();
        let (listener, address) = (port.listen(), port.address());
        let handler: Handler =
            Arc::new(move |request, connection| -> Answering { Box::pin(handler(request, connection)) });
        let lines = Arc::new(Lines::default());
        let accepting = Mutex::new(accept(listener, handler.clone(), lines.clone()));
        Server { address, port, handler, lines, accepting }
    }

    /// Cuts every connection and refuses new ones.
    pub fn stop(&self) {
        lock(&self.accepting).abort();
        self.cut_all();
    }

    /// Listens again on the same port.
    pub async fn resume(&self) {
        let listener = self.port.listen_again().await;
        *lock(&self.accepting) = accept(listener, self.handler.clone(), self.lines.clone());
    }

    /// Cuts every connection that is open, idle ones too.
    pub fn cut_all(&self) {
        // Cloned first: a cut line may be dropped at once, and takes the same lock.
        let open = lock(&self.lines.open).clone();
        open.iter().for_each(Connection::cut);
    }

    /// Connections accepted so far.
    pub fn connections_opened(&self) -> usize {
        self.lines.opened.load(Ordering::SeqCst)
    }

    /// Connections open now.
    pub fn connections_open(&self) -> usize {
        lock(&self.lines.open).len()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn accept(listener: std::net::TcpListener, handler: Handler, lines: Arc<Lines>) -> AbortHandle {
    listener.set_nonblocking(true).expect("nonblocking");
    let listener = TcpListener::from_std(listener).expect("listener");
    let router = Router::new().fallback(
        async move |ConnectInfo(connection): ConnectInfo<Connection>, request: Request| {
            let (head, body) = request.into_parts();
            // A body that breaks off is recorded as far as nobody can tell: empty.
            let body = to_bytes(body, BODY_LIMIT).await.unwrap_or_default();
            let received = Received {
                method: head.method,
                path: head.uri.path().to_owned(),
                query: head.uri.query().map(str::to_owned),
                headers: head.headers,
                body,
                connection: connection.number as u64,
                at: Instant::now(),
            };
            handler(received, connection).await
        },
    );
    let service = router.into_make_service_with_connect_info::<Connection>();
    tokio::spawn(async move {
        let _ = axum::serve(Accepting { listener, lines }, service).await;
    })
    .abort_handle()
}

/// A handle on the connection a request came on.
#[derive(Clone, Debug)]
pub struct Connection {
    number: usize,
    cut: Arc<AtomicBool>,
    reader: Arc<Mutex<Option<Waker>>>,
}

impl Connection {
    /// Closes it at once. Whatever the handler returns afterwards is not sent.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
        if let Some(reader) = lock(&self.reader).take() {
            reader.wake();
        }
    }

    fn check(&self) -> io::Result<()> {
        if self.cut.load(Ordering::SeqCst) { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

impl Connected<IncomingStream<'_, Accepting>> for Connection {
    fn connect_info(stream: IncomingStream<'_, Accepting>) -> Self {
        stream.remote_addr().clone()
    }
}

struct Accepting {
    listener: TcpListener,
    lines: Arc<Lines>,
}

impl Listener for Accepting {
    type Io = Line;
    type Addr = Connection;

    async fn accept(&mut self) -> (Line, Connection) {
        let (stream, _) = Listener::accept(&mut self.listener).await;
        let _ = stream.set_nodelay(true);
        let number = self.lines.opened.fetch_add(1, Ordering::SeqCst);
        let connection = Connection { number, cut: Arc::default(), reader: Arc::default() };
        lock(&self.lines.open).push(connection.clone());
        (Line { stream, connection: connection.clone(), lines: self.lines.clone() }, connection)
    }

    fn local_addr(&self) -> io::Result<Connection> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A TCP stream that fails once it has been cut.
struct Line {
    stream: TcpStream,
    connection: Connection,
    lines: Arc<Lines>,
}

impl Drop for Line {
    fn drop(&mut self) {
        lock(&self.lines.open).retain(|open| open.number != self.connection.number);
    }
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Registered before the check, or a cut in between would go unnoticed.
        *lock(&self.connection.reader) = Some(cx.waker().clone());
        self.connection.check()?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.connection.check()?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.check()?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
