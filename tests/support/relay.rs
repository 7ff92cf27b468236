//! A TCP relay that misbehaves on command: between an instance and its store, or anything else.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::lock;

/// What happens to what passes through. Counts from the next bytes on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Weather {
    Fair,
    /// Each piece arrives so much later.
    Slow(Duration),
    /// Connections stay and nothing arrives, either way; new ones are taken and fare no better.
    Blackhole,
    /// What is sent arrives; answers do not.
    HalfOpen,
    /// Connections are broken, new ones too.
    Down,
}

/// Ends when it is dropped.
pub struct Relay {
    pub address: SocketAddr,
    weather: watch::Sender<Weather>,
    lines: Arc<Mutex<Vec<AbortHandle>>>,
    accepting: AbortHandle,
}

impl Relay {
    /// Listens on a port of the kernel's choosing and passes everything on to `target`.
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let (weather, observed) = watch::channel(Weather::Fair);
        let lines: Arc<Mutex<Vec<AbortHandle>>> = Arc::default();
        let open = lines.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let line = tokio::spawn(carry(client, target, observed.clone()));
                lock(&open).push(line.abort_handle());
            }
        });
        Relay { address, weather, lines, accepting: accepting.abort_handle() }
    }

    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
        if weather == Weather::Down {
            lock(&self.lines).drain(..).for_each(|line| line.abort());
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
        lock(&self.lines).drain(..).for_each(|line| line.abort());
    }
}

async fn carry(client: TcpStream, target: SocketAddr, weather: watch::Receiver<Weather>) {
    if *weather.borrow() == Weather::Down {
        return;
    }
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let asked = pump(&mut from_client, &mut to_server, weather.clone(), false);
    let answered = pump(&mut from_server, &mut to_client, weather, true);
    // Either end closes both.
    tokio::select! { () = asked => {}, () = answered => {} }
}

async fn pump(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    mut weather: watch::Receiver<Weather>,
    is_answer: bool,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = match from.read(&mut buffer).await {
            Ok(length) if length > 0 => length,
            _ => return,
        };
        let held = |weather: &Weather| {
            *weather == Weather::Blackhole || (is_answer && *weather == Weather::HalfOpen)
        };
        let now = match weather.wait_for(|weather| !held(weather)).await {
            Ok(now) => *now,
            Err(_) => return,
        };
        match now {
            Weather::Down => return,
            Weather::Slow(delay) => tokio::time::sleep(delay).await,
            _ => {}
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
