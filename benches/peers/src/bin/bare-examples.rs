//! Pingora as its examples build it: every default, the system's allocator, only the pool large enough for the load.
use std::net::SocketAddr;

use clap::Parser;
use peers::forward::Forward;
use peers::listening::listen;
use peers::pingora_on::{self, On};
use pingora::prelude::*;
use pingora::server::configuration::ServerConf;

#[derive(Parser)]
struct Options {
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    #[arg(long)]
    upstream: SocketAddr,
}

fn main() -> std::io::Result<()> {
    let options = Options::parse();
    let (socket, address) = listen(options.listen)?;
    let conf = ServerConf { upstream_keepalive_pool_size: 512, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let peer = HttpPeer::new(options.upstream, false, String::new());
    let mut service = http_proxy_service(&server.configuration, Forward(peer));
    service.add_tcp(&address.to_string());
    server.add_service(On {
        service: Some(service),
        address: address.to_string(),
        socket: Some(socket),
        runtime: None,
    });
    pingora_on::run(server);
    Ok(())
}
