//! What two processes say to each other while the one takes over from the other, over a socket that nobody else has: it
//! is the standard input that the second is started with.
//!
//! ```text
//! old  here are the sockets, and the way to the store            (descriptors)
//! new  the configuration is fine; I need the embedded store      or: I do not
//! old  it is closed, open it
//! new  I serve, by this number                                   or: this is wrong
//! old  then you are the one                                      from here on it drains
//! ```
//!
//! One JSON object a line. The end of the connection before the last line is the end of the attempt: the old process goes
//! on as before, the new one ends.
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::SystemTime;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Tells a process that it is to bring up the one that succeeds its parent, by whose number.
pub const SUCCEEDS: &str = "POSTERN_SUCCEEDS";
/// Tells a process that it is the one that succeeds, and who stands between: its parent, by whose number.
pub const BY_WAY_OF: &str = "POSTERN_BY_WAY_OF";
/// As many descriptors as go with one message (`SCM_MAX_FD`).
const DESCRIPTORS: usize = 253;
/// No message is longer.
const LINE: usize = 65536;

/// What the old process begins with. One descriptor for each address, and the way to the store last.
#[derive(Serialize, Deserialize)]
pub struct Inheritance {
    /// Addresses as the configuration has them.
    pub addresses: Vec<String>,
    /// The store that the old process has, if it is a file, and since when.
    pub embedded: Option<(PathBuf, SystemTime)>,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum FromOld {
    StoreIsClosed,
    YouAreTheOne,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum FromNew {
    NeedsStore,
    NeedsNoStore,
    /// As which process.
    Serves(u32),
    Failed(String),
}

/// One end.
pub struct Line(UnixStream);

impl Line {
    pub fn over(stream: UnixStream) -> Self {
        Self(stream)
    }

    pub fn stream(&self) -> &UnixStream {
        &self.0
    }

    pub fn say(&self, message: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        (&self.0).write_all(&line)
    }

    /// Byte by byte: what follows a line may come with descriptors.
    pub fn hear<T: DeserializeOwned>(&self) -> io::Result<T> {
        let mut line = Vec::new();
        let mut byte = [0];
        loop {
            match (&self.0).read(&mut byte)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                _ if byte == *b"\n" => return Ok(serde_json::from_slice(&line)?),
                _ if line.len() == LINE => return Err(io::ErrorKind::InvalidData.into()),
                _ => line.extend_from_slice(&byte),
            }
        }
    }

    /// The descriptors go with the first byte.
    pub fn give(&self, inheritance: &Inheritance, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        if !beside.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::Error::other("more listeners than can be handed over"));
        }
        sendmsg(self.0.as_fd(), &[IoSlice::new(b" ")], &mut beside, SendFlags::empty())?;
        self.say(inheritance)
    }

    pub fn take(&self) -> io::Result<(Inheritance, Vec<OwnedFd>)> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let flags = RecvFlags::CMSG_CLOEXEC;
        recvmsg(self.0.as_fd(), &mut [IoSliceMut::new(&mut byte)], &mut beside, flags)?;
        let mut descriptors = Vec::new();
        for message in beside.drain() {
            if let RecvAncillaryMessage::ScmRights(taken) = message {
                descriptors.extend(taken);
            }
        }
        Ok((self.hear()?, descriptors))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn sockets_arrive_in_order_and_listen_on() {
        let (old, new) = UnixStream::pair().unwrap();
        let sockets: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<_> =
            sockets.iter().map(|socket| socket.local_addr().unwrap().to_string()).collect();
        let inheritance = Inheritance { addresses: addresses.clone(), embedded: None };
        let descriptors: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        let old = Line::over(old);
        old.give(&inheritance, &descriptors).unwrap();
        old.say(&FromOld::YouAreTheOne).unwrap();
        drop((old, sockets));
        let new = Line::over(new);
        let (taken, descriptors) = new.take().unwrap();
        assert_eq!(taken.addresses, addresses);
        let sockets: Vec<_> = descriptors.into_iter().map(TcpListener::from).collect();
        for (socket, address) in sockets.iter().zip(&addresses) {
            assert_eq!(socket.local_addr().unwrap().to_string(), *address);
            std::net::TcpStream::connect(address).unwrap();
        }
        assert!(matches!(new.hear().unwrap(), FromOld::YouAreTheOne));
        assert!(new.hear::<FromOld>().is_err(), "the other end has gone");
    }
}
