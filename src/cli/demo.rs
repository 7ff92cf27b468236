//! `postern demo`: gateway, an MCP server that demands its own OAuth token, and one user, all in one process on
//! loopback. What a stranger tries first.
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;

use super::{BAD_CONFIG, agent, eprintln, failed, println, started};
use crate::config::{Config, Source};
use crate::{demo, server, telemetry};

const CONFIGURATION: &str = include_str!("../../conf/demo.yaml");

/// Serves the demo until it is stopped. `path`: another configuration than the built-in one; `with_agent`: a program
/// without people calls it as well.
pub fn demo(path: Option<&Path>, with_agent: bool) -> ExitCode {
    let built_in =
        if with_agent { format!("{CONFIGURATION}{}", agent::ROUTE) } else { CONFIGURATION.to_owned() };
    let source = match path {
        Some(path) => Source::file(path, Vec::new()),
        None => Source::text(built_in, "conf/demo.yaml"),
    };
    let config = match source.read() {
        Ok(config) => config,
        Err(report) => {
            eprintln(&report.to_string());
            return ExitCode::from(BAD_CONFIG);
        }
    };
    telemetry::log();
    let Some(address) = upstream_address(&config) else {
        return failed(
            "the demo needs a first route with an upstream on a loopback address, such as http://127.0.0.1:8081/mcp",
        );
    };
    if let Err(error) = serve_upstream(address) {
        return failed(&format!(
            "cannot start the demo's MCP server on {address}: {error}; is it running already?"
        ));
    }
    introduce(&config);
    if with_agent && let Err(why) = agent::start(&config) {
        return failed(&why);
    }
    started(server::run(config, source))
}

/// Where the first route expects its upstream, if that is on this computer.
fn upstream_address(config: &Config) -> Option<SocketAddr> {
    let url = &config.routes.first()?.upstream.url;
    let address = url.socket_addrs(|| None).ok()?.into_iter().next()?;
    address.ip().is_loopback().then_some(address)
}

/// The MCP server and its authorization server, in a thread of their own; the socket is bound before this returns.
fn serve_upstream(address: SocketAddr) -> std::io::Result<()> {
    let socket = std::net::TcpListener::bind(address)?;
    socket.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        let served = runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(socket)?;
            demo::serve(listener, std::future::pending::<()>()).await
        });
        if let Err(error) = served {
            tracing::error!(%error, "the demo's MCP server has ended");
        }
    });
    Ok(())
}

fn introduce(config: &Config) {
    let Some(route) = config.routes.first() else {
        return;
    };
    let url = format!("{}{}", config.server.public_url.origin(), route.path);
    let upstream = &route.upstream.url;
    println(&format!(
        "\nPostern's demo is running.\n\n  MCP server to add to your client:  {url}\n  behind it, with its own sign-in:   {upstream}\n\n\
         Claude Code:  claude mcp add --transport http {name} {url}\n\
         VS Code:      code --add-mcp '{{\"name\":\"{name}\",\"type\":\"http\",\"url\":\"{url}\"}}'\n\
         Anything else that speaks stdio:  npx mcp-remote {url}\n\n\
         The client opens a browser: sign in with one click, allow the client, allow Postern at the demo's own\n\
         authorization server, and you are back. Then call the tool `whoami`. Stop with Ctrl+C; what you allowed is\n\
         kept in {data}, but the demo's MCP server forgets its tokens, so it asks once more after a restart.\n",
        data = config.server.data_dir.display(),
        name = route.name,
    ));
}
