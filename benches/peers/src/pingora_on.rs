//! Pingora on a socket of ours and, where asked, on a runtime of ours.
use std::net::TcpListener;
use std::os::fd::IntoRawFd;

use async_trait::async_trait;
use pingora::server::{ListenFds, RunArgs, Server, ShutdownSignal, ShutdownSignalWatch, ShutdownWatch};
use pingora::services::Service;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

/// Serves until SIGINT, which ends the process at once, and by itself: one that counts what runs then writes it down.
pub fn run(server: Server) {
    server.run(RunArgs { shutdown_signal: Box::new(Interrupt) });
}

struct Interrupt;

#[async_trait]
impl ShutdownSignalWatch for Interrupt {
    async fn recv(&self) -> ShutdownSignal {
        match tokio::signal::ctrl_c().await {
            Ok(()) => ShutdownSignal::FastShutdown,
            Err(_) => std::future::pending().await,
        }
    }
}

/// A service on `socket`, which it knows as `address`; on its own runtime if there is one.
pub struct On<S> {
    pub service: Option<S>,
    pub address: String,
    pub socket: Option<TcpListener>,
    pub runtime: Option<Runtime>,
}

#[async_trait]
impl<S: Service + 'static> Service for On<S> {
    async fn start_service(
        &mut self,
        fds: Option<ListenFds>,
        shutdown: ShutdownWatch,
        listeners_per_fd: usize,
    ) {
        if let (Some(fds), Some(socket)) = (&fds, self.socket.take()) {
            fds.lock().add(self.address.clone(), socket.into_raw_fd());
        }
        let Some(mut service) = self.service.take() else { return };
        let Some(runtime) = self.runtime.take() else {
            return service.start_service(fds, shutdown, listeners_per_fd).await;
        };
        // A thread of its own, because a current-thread runtime only moves while somebody blocks on it.
        let (ended, end) = oneshot::channel();
        std::thread::spawn(move || {
            runtime.block_on(service.start_service(fds, shutdown, listeners_per_fd));
            ended.send(())
        });
        end.await.ok();
    }

    fn name(&self) -> &str {
        "proxy"
    }
}
