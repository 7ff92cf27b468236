//! A socket that listens, bound before anything else, so that port 0 can be asked for and is told.
use std::io::Write;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Socket, Type};

const BACKLOG: i32 = 65_535;

/// Connections made from here on wait for their program, so it counts as listening.
pub fn listen(address: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let listener = TcpListener::from(socket);
    let actual = listener.local_addr()?;
    println!("listening {actual}");
    std::io::stdout().flush()?;
    Ok((listener, actual))
}
