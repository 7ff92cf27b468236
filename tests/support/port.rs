//! A port that stays ours while nobody listens on it, between two starts of a server for example.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::SockRef;
use tokio::net::TcpSocket;

use super::{PATIENCE, eventually_some};

/// Bound to a port of the kernel's choosing on 127.0.0.1 and never listening, so the kernel gives the port to nobody
/// else, and who connects is refused. Whoever asks for this very address, with `SO_REUSEADDR` as servers do, may listen.
pub struct Port(TcpSocket);

impl Port {
    pub fn take() -> Self {
        Self::take_at(([127, 0, 0, 1], 0).into())
    }

    /// This very one, which nobody listens on.
    pub fn take_at(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().expect("socket");
        socket.set_reuseaddr(true).expect("SO_REUSEADDR");
        socket.bind(address).expect("bind");
        Port(socket)
    }

    pub fn address(&self) -> SocketAddr {
        self.0.local_addr().expect("address")
    }

    pub fn listen(&self) -> TcpListener {
        listen(self.address()).expect("listen")
    }

    /// Listens as soon as whoever listened before has ended.
    pub async fn listen_again(&self) -> TcpListener {
        let address = self.address();
        eventually_some(PATIENCE, || async move { listen(address).ok() }).await
    }
}

/// With room for all that come at once: a thousand callers are no storm to be told apart from a fault.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    SockRef::from(&listener).listen(4096)?;
    Ok(listener)
}
