//! The external processor of Envoy that does nothing: every request and every answer goes on as it is.
use std::net::SocketAddr;
use std::pin::Pin;

use clap::Parser;
use envoy_types::pb::envoy::service::ext_proc::v3 as ext_proc;
use ext_proc::external_processor_server::{ExternalProcessor, ExternalProcessorServer};
use ext_proc::processing_request::Request as Part;
use ext_proc::processing_response::Response as Verdict;
use ext_proc::{HeadersResponse, ProcessingRequest, ProcessingResponse};
use futures_util::{Stream, StreamExt};
use peers::listening::listen;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

#[derive(Parser)]
struct Options {
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
}

struct Continue;

#[tonic::async_trait]
impl ExternalProcessor for Continue {
    type ProcessStream = Pin<Box<dyn Stream<Item = Result<ProcessingResponse, Status>> + Send>>;

    async fn process(
        &self,
        request: Request<Streaming<ProcessingRequest>>,
    ) -> Result<Response<Self::ProcessStream>, Status> {
        Ok(Response::new(Box::pin(request.into_inner().map(|part| part.and_then(verdict)))))
    }
}

/// An empty answer says CONTINUE.
fn verdict(part: ProcessingRequest) -> Result<ProcessingResponse, Status> {
    let response = match part.request {
        Some(Part::RequestHeaders(_)) => Verdict::RequestHeaders(HeadersResponse::default()),
        Some(Part::ResponseHeaders(_)) => Verdict::ResponseHeaders(HeadersResponse::default()),
        _ => return Err(Status::invalid_argument("headers only")),
    };
    Ok(ProcessingResponse { response: Some(response), ..ProcessingResponse::default() })
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (socket, _) = listen(Options::parse().listen)?;
    let connections = TcpListenerStream::new(TcpListener::from_std(socket)?).inspect(|connection| {
        connection.as_ref().map(|connection| connection.set_nodelay(true)).ok();
    });
    Server::builder()
        .add_service(ExternalProcessorServer::new(Continue))
        .serve_with_incoming(connections)
        .await?;
    Ok(())
}
