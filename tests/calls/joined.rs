//! How a call is written to its upstream: header and body at once where the body is there, and never one held back for
//! the other.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use serde_json::json;
use support::PATIENCE;
use support::gateway::{Gateway, Route};
use support::raw::RawConnection;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";

/// An upstream that tells of every piece as it reads it, and on which connection. It answers when the body has ended as
/// `is_end` says.
fn upstream(is_end: fn(&[u8]) -> bool) -> (String, Receiver<(usize, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    let (tell, told) = channel();
    thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let (stream, tell) = (stream.unwrap(), tell.clone());
            thread::spawn(move || serve(stream, number, is_end, &tell));
        }
    });
    (url, told)
}

fn serve(mut stream: TcpStream, number: usize, is_end: fn(&[u8]) -> bool, tell: &Sender<(usize, Vec<u8>)>) {
    let (mut request, mut piece) = (Vec::new(), [0; 65536]);
    while let Ok(length @ 1..) = stream.read(&mut piece) {
        request.extend_from_slice(&piece[..length]);
        if tell.send((number, piece[..length].to_vec())).is_err() {
            return;
        }
        if is_end(&request) {
            stream.write_all(ANSWER).unwrap();
            request.clear();
        }
    }
}

/// An upstream that answers one request per connection; at a second it closes. It tells the method of each.
fn closing() -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    let (tell, told) = channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, tell) = (stream.unwrap(), tell.clone());
            thread::spawn(move || {
                let mut request = [0; 65536];
                for answer in [Some(ANSWER), None] {
                    let Ok(length @ 1..) = stream.read(&mut request) else { return };
                    let method = request[..length].split(|byte| *byte == b' ').next().unwrap();
                    tell.send(String::from_utf8(method.to_vec()).unwrap()).unwrap();
                    answer.into_iter().for_each(|answer| stream.write_all(answer).unwrap());
                }
            });
        }
    });
    (url, told)
}

async fn gateway(url: &str) -> Gateway {
    Gateway::builder().route(Route::to("demo", url, json!({"kind": "none"}))).start().await
}

fn head(more: &str) -> String {
    format!(
        "POST /demo HTTP/1.1\r\nhost: HOST\r\nauthorization: Bearer TOKEN\r\n\
         content-type: application/json\r\naccept: application/json, text/event-stream\r\n{more}\r\n"
    )
}

/// A connection of a client with a token, and the head of a call on it.
async fn client(gateway: &Gateway, more: &str) -> (RawConnection, String) {
    let client = support::client::Client::register(gateway).await;
    let tokens = client.sign_in(&mut support::browser::Browser::new(), "demo").await;
    let host = gateway.address.to_string();
    let head = head(more).replace("HOST", &host).replace("TOKEN", &tokens.access_token);
    (RawConnection::open(gateway.address).await, head)
}

#[tokio::test]
async fn a_call_goes_upstream_in_one_piece_on_a_connection_that_is_kept() {
    let (url, told) = upstream(|request| request.ends_with(b"the body"));
    let gateway = gateway(&url).await;
    let (mut connection, head) = client(&gateway, "content-length: 8\r\n").await;
    let mut connections = HashSet::new();
    for _ in 0..50 {
        connection.send(format!("{head}the body")).await;
        assert_eq!(connection.response(PATIENCE).await.unwrap().status, 200);
        let (number, piece) = told.recv_timeout(PATIENCE).unwrap();
        let piece = String::from_utf8(piece).unwrap();
        assert!(
            piece.starts_with("POST /mcp HTTP/1.1\r\n") && piece.ends_with("\r\n\r\nthe body"),
            "{piece}"
        );
        connections.insert(number);
    }
    // A call may come before the connection of the one before is back in the pool.
    assert!(connections.len() < 25, "{connections:?}");
}

#[tokio::test]
async fn a_header_does_not_wait_for_a_slow_body() {
    let (url, told) = upstream(|request| request.ends_with(b"the body"));
    let gateway = gateway(&url).await;
    let (mut connection, head) = client(&gateway, "content-length: 8\r\n").await;
    for _ in 0..3 {
        connection.send(head.as_bytes()).await;
        let (_, piece) = told.recv_timeout(PATIENCE).unwrap();
        assert!(piece.starts_with(b"POST /mcp HTTP/1.1\r\n") && piece.ends_with(b"\r\n\r\n"));
        connection.send("the ").await;
        assert_eq!(told.recv_timeout(PATIENCE).unwrap().1, b"the ");
        connection.send("body").await;
        assert_eq!(told.recv_timeout(PATIENCE).unwrap().1, b"body");
        assert_eq!(connection.response(PATIENCE).await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn a_call_without_a_body_goes_at_once() {
    let (url, told) = upstream(|request| request.ends_with(b"\r\n\r\n"));
    let gateway = gateway(&url).await;
    let (mut connection, head) = client(&gateway, "content-length: 0\r\n").await;
    for _ in 0..3 {
        connection.send(head.as_bytes()).await;
        assert_eq!(connection.response(PATIENCE).await.unwrap().status, 200);
        assert!(told.recv_timeout(PATIENCE).unwrap().1.ends_with(b"\r\n\r\n"));
    }
}

#[tokio::test]
async fn a_body_in_chunks_arrives_whole() {
    let (url, told) = upstream(|request| request.ends_with(b"0\r\n\r\n"));
    let gateway = gateway(&url).await;
    let (mut connection, head) = client(&gateway, "transfer-encoding: chunked\r\n").await;
    for _ in 0..3 {
        connection.send(format!("{head}4\r\nthe \r\n")).await;
        connection.send("4\r\nbody\r\n0\r\n\r\n").await;
        assert_eq!(connection.response(PATIENCE).await.unwrap().status, 200);
        let arrived: Vec<u8> = told.try_iter().flat_map(|(_, piece)| piece).collect();
        let body = arrived.split(|byte| *byte == b'\n').filter(|line| !line.contains(&b':')).skip(2);
        let text: String = body.map(|line| String::from_utf8_lossy(line).trim().to_owned()).collect();
        assert!(text.contains("the") && text.contains("body"), "{text}");
    }
}

/// The connection was just being closed: what may be sent twice is sent again, and nothing else is.
#[tokio::test]
async fn a_connection_closed_at_the_next_request_costs_no_stream_and_repeats_no_call() {
    const TIMES: usize = 20;
    let (url, told) = closing();
    let gateway = gateway(&url).await;
    let (mut connection, head) = client(&gateway, "content-length: 8\r\n").await;
    let get = head.replace("POST", "GET").replace("content-length: 8\r\n", "");
    for _ in 0..TIMES {
        connection.send(get.clone()).await;
        assert_eq!(connection.response(PATIENCE).await.unwrap().status, 200);
    }
    let seen = told.try_iter().filter(|method| method == "GET").count();
    assert!(seen > TIMES, "{seen}: no connection was used twice");
    let mut failed = 0;
    for _ in 0..TIMES {
        // After a failure the client's connection is closed.
        let mut connection = RawConnection::open(gateway.address).await;
        connection.send(format!("{head}the body")).await;
        let status = connection.response(PATIENCE).await.unwrap().status;
        assert!(status == 200 || status == 502, "{status}");
        failed += usize::from(status == 502);
    }
    assert_eq!(told.try_iter().filter(|method| method == "POST").count(), TIMES);
    assert!(failed > 0, "no connection was used twice");
}
