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
use socket2::SockRef;

use super::StartError;
use crate::config::Config;

/// Connections that wait to be accepted: as many as the kernel allows (`net.core.somaxconn`, 4096). The 128 of the standard
/// library overflow as soon as that many clients come back at once, and who is dropped then tries again after a second.
const BACKLOG: i32 = i32::MAX;

/// A socket that listens.
pub struct Bound {
    pub socket: TcpListener,
    /// As it is written, for a successor.
    pub configured: String,
    /// The name Pingora knows it by: `actual` as text, which is unique where the configured address need not be (port 0).
    pub address: String,
    /// Where it really listens.
    pub actual: SocketAddr,
    pub tls: bool,
    pub purpose: Purpose,
}

/// What comes in at a socket.
#[derive(Clone, PartialEq, Eq)]
pub enum Purpose {
    /// `proxied`: a balancer speaks first.
    Requests {
        proxied: bool,
    },
    Admin,
    /// Bytes, at the route of this name.
    Bytes(String),
}

/// All sockets of the configuration. `handed`: what a predecessor listens on, by the addresses that it was configured with.
pub fn bind(config: &Config, mut handed: Vec<(String, TcpListener)>) -> Result<Vec<Bound>, StartError> {
    let mut inherited = inherited()?;
    let server = &config.server;
    let requests = server.listen.iter().map(|listen| {
        let purpose = Purpose::Requests { proxied: listen.proxied };
        (&*listen.address, listen.tls, purpose)
    });
    let admin = server.admin.as_deref().map(|address| (address, false, Purpose::Admin));
    let bytes =
        config.tcp.iter().map(|route| (&*route.listen, route.tls, Purpose::Bytes(route.name.clone())));
    let wanted: Vec<(&str, bool, Purpose)> = requests.chain(admin).chain(bytes).collect();
    let mut bound = Vec::new();
    for (address, tls, purpose) in wanted {
        let failed = |reason| StartError::Listen { address: address.to_owned(), reason };
        let configured = address
            .to_socket_addrs()
            .map_err(failed)?
            .next()
            .ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        let by_name = handed.iter().position(|(at, _)| at == address);
        let socket = match (by_name, inherited.iter().position(|(at, _)| *at == configured)) {
            // In their order: those on ports of the kernel's choosing have one name.
            (Some(index), _) => handed.remove(index).1,
            (None, Some(index)) => inherited.swap_remove(index).1,
            (None, None) => listen(configured).map_err(failed)?,
        };
        // Without this a worker thread would block in accept(2).
        socket.set_nonblocking(true).map_err(failed)?;
        let actual = socket.local_addr().map_err(failed)?;
        let configured = address.to_owned();
        bound.push(Bound { socket, configured, address: actual.to_string(), actual, tls, purpose });
    }
    match inherited.first() {
        Some((address, _)) => Err(StartError::UnknownSocket(address.to_string())),
        None => Ok(bound),
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpListener::bind(address)?;
    SockRef::from(&socket).listen(BACKLOG)?;
    Ok(socket)
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use std::net::TcpStream;
    use std::time::Duration;

    #[test]
    fn connections_that_come_at_once_wait_their_turn() {
        let socket = listen(([127, 0, 0, 1], 0).into()).unwrap();
        let address = socket.local_addr().unwrap();
        // Nobody accepts. One that finds no place would be dropped, and be tried again only after a second.
        let connect = |_| TcpStream::connect_timeout(&address, Duration::from_millis(900));
        let waiting: Result<Vec<_>, _> = (0..512).map(connect).collect();
        assert_eq!(waiting.unwrap().len(), 512);
    }
}
