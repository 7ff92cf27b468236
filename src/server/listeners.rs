//! Sockets are bound, or taken over from `LISTEN_FDS`, before anything else starts: a port in use is an error, a
//! test can hand over a port of the kernel's choosing, and socket activation works. Pingora then finds each socket in
//! its table of inherited ones, under the very address string its service was given.
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::IntoRawFd;

use async_trait::async_trait;
use listenfd::ListenFd;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;

use super::StartError;
use crate::config::Server;

/// A socket that listens.
pub struct Bound {
    pub socket: TcpListener,
    /// The name Pingora knows it by: `actual` as text, which is unique where the configured address need not be (port 0).
    pub address: String,
    /// Where it really listens.
    pub actual: SocketAddr,
    pub tls: bool,
    pub is_admin: bool,
}

/// All sockets of the configuration.
pub fn bind(server: &Server) -> Result<Vec<Bound>, StartError> {
    let mut inherited = inherited()?;
    let mut wanted: Vec<(&str, bool, bool)> =
        server.listen.iter().map(|listen| (listen.address.as_str(), listen.tls, false)).collect();
    wanted.extend(server.admin.as_deref().map(|address| (address, false, true)));
    let mut bound = Vec::new();
    for (address, tls, is_admin) in wanted {
        let failed = |reason| StartError::Listen { address: address.to_owned(), reason };
        let configured = address
            .to_socket_addrs()
            .map_err(failed)?
            .next()
            .ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        let socket = match inherited.iter().position(|(at, _)| *at == configured) {
            Some(index) => inherited.swap_remove(index).1,
            None => TcpListener::bind(configured).map_err(failed)?,
        };
        // Without this a worker thread would block in accept(2).
        socket.set_nonblocking(true).map_err(failed)?;
        let actual = socket.local_addr().map_err(failed)?;
        bound.push(Bound { socket, address: actual.to_string(), actual, tls, is_admin });
    }
    match inherited.first() {
        Some((address, _)) => Err(StartError::UnknownSocket(address.to_string())),
        None => Ok(bound),
    }
}

/// What systemd or a test hands over (`sd_listen_fds(3)`).
fn inherited() -> Result<Vec<(SocketAddr, TcpListener)>, StartError> {
    let mut passed = ListenFd::from_env();
    let mut sockets = Vec::new();
    for index in 0..passed.len() {
        let socket = passed
            .take_tcp_listener(index)
            .map_err(|error| StartError::Other(format!("LISTEN_FDS: {error}")))?;
        if let Some(socket) = socket {
            let address =
                socket.local_addr().map_err(|error| StartError::Other(format!("LISTEN_FDS: {error}")))?;
            sockets.push((address, socket));
        }
    }
    Ok(sockets)
}

/// A service on sockets of ours.
pub struct OnSockets<S> {
    service: S,
    sockets: Vec<(String, TcpListener)>,
}

impl<S: Service> OnSockets<S> {
    /// `sockets`: each under the address string that the service was given.
    pub fn new(service: S, sockets: Vec<(String, TcpListener)>) -> Self {
        Self { service, sockets }
    }
}

#[async_trait]
impl<S: Service> Service for OnSockets<S> {
    async fn start_service(
        &mut self,
        fds: Option<ListenFds>,
        shutdown: ShutdownWatch,
        listeners_per_fd: usize,
    ) {
        if let Some(fds) = &fds {
            let mut fds = fds.lock();
            for (address, socket) in self.sockets.drain(..) {
                if fds.get(&address).is_none() {
                    fds.add(address, socket.into_raw_fd());
                }
            }
        }
        self.service.start_service(fds, shutdown, listeners_per_fd).await;
    }

    fn name(&self) -> &str {
        self.service.name()
    }

    fn threads(&self) -> Option<usize> {
        self.service.threads()
    }

    fn listen_addresses(&self) -> Option<Vec<String>> {
        self.service.listen_addresses()
    }
}
