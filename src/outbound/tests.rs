//! The client against real sockets. Servers are threads that block on their sockets; a test ends when its client
//! has gone, so nothing waits for the clock but the limits under test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use http::{StatusCode, header};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::*;

/// Answers each connection with one call; reports the request heads it read.
fn server(answer: impl Fn(&mut TcpStream) + Send + 'static) -> (SocketAddr, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (seen, heads) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            if let Some(head) = head(&mut stream) {
                seen.send(head).ok();
                answer(&mut stream);
            }
        }
    });
    (address, heads)
}

/// Reads a request with its body, or nothing when the client went away first.
fn head(stream: &mut impl Read) -> Option<String> {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        text.push(byte[0]);
    }
    let head = String::from_utf8(text).unwrap();
    let length = head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).ok()?;
    Some(head + &String::from_utf8(body).unwrap())
}

fn until_closed(stream: &mut TcpStream) {
    let mut rest = [0; 64];
    while matches!(stream.read(&mut rest), Ok(read) if read > 0) {}
}

fn outbound() -> Outbound {
    Outbound::new(Settings::default()).unwrap()
}

fn loopback() -> AddressPolicy {
    AddressPolicy::allowing(["127.0.0.1".into(), "localhost".into()])
}

fn limits(connect: u64, total: u64, body: usize) -> Limits {
    Limits { connect: Duration::from_millis(connect), total: Duration::from_millis(total), body }
}

fn reason(error: &Error) -> String {
    match error {
        Error::Refused { reason, .. } => (*reason).to_owned(),
        other => panic!("not refused: {other}"),
    }
}

#[tokio::test]
async fn get_and_post() {
    let (address, heads) = server(|stream| {
        stream.write_all(b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n{\"a\":1}").unwrap();
    });
    let answer =
        outbound().send(Request::get(format!("http://{address}/p?q=%41")), &loopback()).await.unwrap();
    assert_eq!(answer.status, StatusCode::CREATED);
    assert_eq!(answer.json::<serde_json::Value>().unwrap(), serde_json::json!({"a": 1}));
    let head = heads.recv().unwrap();
    assert!(head.starts_with("GET /p?q=%41 HTTP/1.1\r\n"), "{head}");
    assert!(head.contains(concat!("user-agent: postern/", env!("CARGO_PKG_VERSION"), "\r\n")), "{head}");
    assert!(!head.contains("accept-encoding"), "{head}");

    // The name resolves once, here; the client is handed the addresses.
    let url = format!("http://localhost:{}/form", address.port());
    outbound().send(Request::post_form(url, &[("code", "a b")]), &loopback()).await.unwrap();
    let head = heads.recv().unwrap();
    assert!(head.starts_with("POST /form ") && head.ends_with("\r\n\r\ncode=a+b"), "{head}");
    assert!(head.contains(&format!("host: localhost:{}\r\n", address.port())), "{head}");
}

#[tokio::test]
async fn redirects_are_answers() {
    for status in ["301", "302", "303", "307", "308"] {
        let (address, heads) = server(move |stream| {
            write!(stream, "HTTP/1.1 {status} X\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n")
                .unwrap();
        });
        let answer = outbound().send(Request::get(format!("http://{address}/")), &loopback()).await.unwrap();
        assert_eq!(answer.status.as_str(), status);
        assert_eq!(answer.headers[header::LOCATION], "/elsewhere");
        assert!(heads.recv().unwrap().starts_with("GET / "));
        assert!(heads.try_recv().is_err());
    }
}

#[tokio::test]
async fn body_cap() {
    for (length, fits) in [(99, true), (100, true), (101, false)] {
        for chunked in [false, true] {
            let (address, _heads) = server(move |stream| {
                let body = "x".repeat(length);
                if chunked {
                    write!(stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n").ok();
                } else {
                    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}").ok();
                }
            });
            let request = Request::get(format!("http://{address}/")).limits(limits(3000, 8000, 100));
            match outbound().send(request, &loopback()).await {
                Ok(answer) => assert!(fits && answer.body.len() == length),
                Err(error) => {
                    assert!(!fits && matches!(error, Error::TooLarge { limit: 100, .. }), "{error}")
                }
            }
        }
    }
    // An endless body stops at the cap, too.
    let (address, _heads) = server(|stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok();
        while stream.write_all(&[b'x'; 4096]).is_ok() {}
    });
    let error = outbound().send(Request::get(format!("http://{address}/")), &loopback()).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { limit: 262_144, .. }), "{error}");
}

#[tokio::test]
async fn compressed_bodies_stay_as_they_are() {
    let (address, _heads) = server(|stream| {
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc")
            .unwrap();
    });
    let answer = outbound().send(Request::get(format!("http://{address}/")), &loopback()).await.unwrap();
    assert_eq!(answer.body, "abc");
}

#[tokio::test]
async fn slow_answers_end_at_the_total() {
    // Each byte comes soon after the one before: only a limit on the whole ends this.
    let (address, _heads) = server(|stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n").ok();
        while stream.write_all(b"x").is_ok() {
            thread::sleep(Duration::from_millis(5));
        }
    });
    let request = Request::get(format!("http://{address}/?canary")).limits(limits(3000, 150, 100_000));
    let error = outbound().send(request, &loopback()).await.unwrap_err();
    assert_eq!(error.to_string(), format!("http://{address}: no complete answer, timed out"));
    assert!(matches!(error, Error::Unknown { .. }) && error.is_transient() && !error.is_unsent());

    let (address, _heads) = server(until_closed);
    let request = Request::get(format!("http://{address}/")).limits(limits(3000, 150, 100));
    assert!(matches!(outbound().send(request, &loopback()).await, Err(Error::Unknown { .. })));
}

#[tokio::test]
async fn head_only_leaves_an_endless_stream() {
    let (closed, gone) = mpsc::channel();
    let (address, _heads) = server(move |stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n: hello\n\n").unwrap();
        until_closed(stream);
        closed.send(()).ok();
    });
    let request = Request::get(format!("http://{address}/")).head_only();
    let answer = outbound().send(request, &loopback()).await.unwrap();
    assert_eq!(answer.headers[header::CONTENT_TYPE], "text/event-stream");
    assert!(answer.body.is_empty());
    // And hangs up.
    tokio::task::spawn_blocking(move || gone.recv_timeout(Duration::from_secs(5))).await.unwrap().unwrap();
}

#[tokio::test]
async fn lost_after_sending_is_unknown() {
    for part in [
        "",
        "HTTP/1.1 200 OK\r\nContent-",
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
        "garbage\r\n\r\n",
    ] {
        let (address, heads) = server(move |stream| {
            stream.write_all(part.as_bytes()).unwrap();
        });
        let request = Request::post_form(format!("http://{address}/"), &[("refresh_token", "canary")]);
        let error = outbound().send(request, &loopback()).await.unwrap_err();
        assert!(matches!(error, Error::Unknown { .. }), "{part:?}: {error}");
        assert!(!error.to_string().contains("canary"));
        // Sent once: nothing retries on its own.
        assert!(heads.recv().is_ok() && heads.try_recv().is_err());
    }
}

#[tokio::test]
async fn never_connected_is_not_sent() {
    let nobody = tokio::net::TcpSocket::new_v4().unwrap();
    nobody.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let free = nobody.local_addr().unwrap();
    let error =
        outbound().send(Request::get(format!("http://{free}/?canary")), &loopback()).await.unwrap_err();
    assert!(matches!(error, Error::NotSent { .. }) && error.is_transient() && error.is_unsent(), "{error}");
    assert!(
        error.to_string().starts_with(&format!("http://{free}: not sent, Connection refused")),
        "{error}"
    );

    // A handshake that never ends: TCP is up, the request still is here.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let request =
        Request::get(format!("https://{}/", silent.local_addr().unwrap())).limits(limits(150, 5000, 100));
    let error = outbound().send(request, &loopback()).await.unwrap_err();
    assert!(matches!(error, Error::NotSent { .. }), "{error}");

    // Plain text where TLS should be.
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = plain.local_addr().unwrap();
    thread::spawn(move || plain.accept().unwrap().0.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
    let error = outbound().send(Request::get(format!("https://{address}/")), &loopback()).await.unwrap_err();
    assert!(matches!(error, Error::NotSent { .. }), "{error}");

    // A label longer than DNS can carry resolves nowhere.
    let url = format!("https://{}.test/", "a".repeat(64));
    let error = outbound().send(Request::get(url), &loopback()).await.unwrap_err();
    assert!(matches!(error, Error::NotSent { .. }), "{error}");
}

fn tls_server(names: &[&str]) -> (SocketAddr, CertificateDer<'static>, Receiver<String>) {
    let certified =
        rcgen::generate_simple_self_signed(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
            .unwrap();
    let certificate = certified.cert.der().clone();
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (seen, heads): (Sender<String>, _) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = rustls::StreamOwned::new(connection, stream.unwrap());
            if let Some(head) = head(&mut stream) {
                seen.send(head).ok();
                stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").ok();
                stream.conn.send_close_notify();
                stream.flush().ok();
            }
        }
    });
    (address, certificate, heads)
}

#[tokio::test]
async fn tls_trusts_the_given_authority_only() {
    let (address, certificate, heads) = tls_server(&["localhost"]);
    let trusting = Outbound::new(Settings {
        ca_certificates: vec![certificate.clone()],
        forbidden: vec![],
        ..Settings::default()
    })
    .unwrap();
    assert_eq!(trusting.roots().last(), Some(&certificate));
    let url = format!("https://localhost:{}/", address.port());
    assert_eq!(trusting.send(Request::get(&url), &loopback()).await.unwrap().status, StatusCode::NO_CONTENT);
    heads.recv().unwrap();

    let stranger = outbound().send(Request::get(&url), &loopback()).await.unwrap_err();
    assert!(
        matches!(&stranger, Error::NotSent { reason, .. } if reason.contains("UnknownIssuer")),
        "{stranger}"
    );
    let wrong_name =
        trusting.send(Request::get(format!("https://{address}/")), &loopback()).await.unwrap_err();
    assert!(matches!(wrong_name, Error::NotSent { .. }), "{wrong_name}");
    assert!(heads.try_recv().is_err());
}

#[test]
fn a_bad_authority_is_named() {
    let settings = Settings {
        ca_certificates: vec![CertificateDer::from(vec![1, 2, 3])],
        forbidden: vec![],
        ..Settings::default()
    };
    assert!(matches!(Outbound::new(settings), Err(SetupError::Certificate { position: 1, .. })));
}

/// T57 and Z06: every spelling ends before a socket is opened.
#[tokio::test]
async fn sr_t57_forbidden_destinations() {
    let outbound = outbound();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    for host in [
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "0177.0.0.1",
        "017700000001",
        "127.0.0.1.",
        "%31%32%37.0.0.1",
        "１２７.0.0.1",
        "127。0。0。1",
        "0",
        "0.0.0.0",
        "localhost",
        "LOCALHOST",
        "[::1]",
        "[::]",
        "[0:0:0:0:0:0:0:1]",
        "[::127.0.0.1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::FFFF:10.0.0.1]",
        "[::ffff:0:127.0.0.1]",
        "[64:ff9b::a00:1]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b:1::7f00:1]",
        "[2002:7f00:1::]",
        "[2002:a00:1::1]",
        "[2001:0:a00:1::]",
        "[fe80::1]",
        "[fc00::1]",
        "[fd12::1]",
        "[fd00:ec2::254]",
        "[ff02::1]",
        "[2001:db8::1]",
        "[3fff::1]",
        "[5f00::1]",
        "[100::1]",
        "10.0.0.1",
        "10.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "0xa9fea9fe",
        "2852039166",
        "100.64.0.1",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
    ] {
        let request = Request::get(format!("https://{host}:{port}/"));
        let error = outbound.send(request, &AddressPolicy::public()).await.unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{host}: {error}");
        let vetted = outbound.vet(host, port, &AddressPolicy::public()).await;
        assert!(matches!(vetted, Err(Error::Refused { .. })), "{host}");
    }
    assert!(listener.accept().is_err());
}

#[tokio::test]
async fn urls_that_are_not_followed() {
    let outbound = outbound();
    for (url, expected) in [
        ("", "not absolute"),
        ("/path", "not absolute"),
        ("//8.8.8.8/", "not absolute"),
        ("https:8.8.8.8/", "not absolute"),
        ("https:/8.8.8.8/", "not absolute"),
        ("https:///8.8.8.8/", "no host"),
        ("https://", "no host"),
        ("https://?a", "no host"),
        ("gopher://8.8.8.8/", "neither"),
        ("file:///etc/passwd", "no host"),
        ("file://host/etc", "neither"),
        ("ftp://8.8.8.8/", "neither"),
        ("ws://8.8.8.8/", "neither"),
        ("javascript://8.8.8.8/%0aalert(1)", "neither"),
        ("data:text/plain,https://8.8.8.8/", "no host"),
        ("http://8.8.8.8/", "plain http"),
        ("HTTP://8.8.8.8/", "plain http"),
        ("https://user@8.8.8.8/", "user information"),
        ("https://user:pass@8.8.8.8/", "user information"),
        ("https://@8.8.8.8/", "user information"),
        ("https://:@8.8.8.8/", "user information"),
        ("https://8.8.8.8/#", "fragment"),
        ("https://8.8.8.8/a#b", "fragment"),
        (" https://8.8.8.8/", "white space"),
        ("https://8.8.8.8/\n", "white space"),
        ("ht\ttps://8.8.8.8/", "white space"),
        ("https://8.8.8.8\\@127.0.0.1/", "backslashes"),
        ("https://8.8.8.8/a\\b", "backslashes"),
        ("https://8.8.8.8/\x7f", "white space"),
        ("https://8.8.8.8:99999/", "not valid"),
        ("https://a b/", "white space"),
        ("https://[::1/", "not valid"),
        ("https://[fe80::1%25eth0]/", "not valid"),
    ] {
        let error = outbound.send(Request::get(url), &AddressPolicy::public()).await.unwrap_err();
        assert!(reason(&error).contains(expected), "{url}: {error}");
        assert!(error.is_unsent() && !error.is_transient());
    }
    let long = format!("https://8.8.8.8/{}", "a".repeat(8 * 1024));
    assert!(reason(&outbound.send(Request::get(long), &loopback()).await.unwrap_err()).contains("too long"));
}

#[tokio::test]
async fn http_needs_leave_and_leave_is_per_host() {
    let (address, heads) = server(|stream| {
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
    });
    let url = format!("http://{address}/");
    for policy in [AddressPolicy::public(), AddressPolicy::allowing(["localhost".into()])] {
        let error = outbound().send(Request::get(&url), &policy).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("http://{address}: refused, plain http is not allowed for this host")
        );
    }
    assert!(heads.try_recv().is_err());
    outbound().send(Request::get(&url), &loopback()).await.unwrap();

    // Leave covers private addresses, never special ones.
    let policy =
        AddressPolicy::allowing(["169.254.169.254".into(), "::ffff:7f00:1".into(), "0.0.0.0".into()]);
    for host in ["169.254.169.254", "[::ffff:127.0.0.1]", "0.0.0.0"] {
        let error = outbound().send(Request::get(format!("http://{host}/")), &policy).await.unwrap_err();
        assert_eq!(reason(&error), "it has a special-use address", "{host}");
    }
}

#[tokio::test]
async fn own_listeners_are_out_of_reach() {
    let with = |forbidden: &str| {
        let forbidden = vec![forbidden.parse().unwrap()];
        Outbound::new(Settings { ca_certificates: vec![], forbidden, ..Settings::default() }).unwrap()
    };
    let policy = AddressPolicy::allowing([
        "127.0.0.1".into(),
        "127.9.9.9".into(),
        "::1".into(),
        "10.255.255.254".into(),
    ]);
    for (own, host, port, refused) in [
        ("127.0.0.1:9090", "127.0.0.1", 9090, true),
        ("127.0.0.1:9090", "127.0.0.1", 9091, false),
        ("127.0.0.1:9090", "127.9.9.9", 9090, false),
        ("127.0.0.1:9090", "::1", 9090, false),
        ("0.0.0.0:9090", "127.0.0.1", 9090, true),
        ("0.0.0.0:9090", "127.9.9.9", 9090, true),
        ("0.0.0.0:9090", "127.0.0.1", 9091, false),
        ("0.0.0.0:9090", "10.255.255.254", 9090, false),
        ("[::]:9090", "127.0.0.1", 9090, true),
        ("[::]:9090", "::1", 9090, true),
        ("[::1]:9090", "[::1]", 9090, true),
        ("[::ffff:127.0.0.1]:9090", "127.0.0.1", 9090, true),
    ] {
        match with(own).vet(host, port, &policy).await {
            Ok(vetted) => assert!(!refused && vetted.len() == 1, "{own} {host}:{port}"),
            Err(error) => {
                assert!(refused && reason(&error) == "it is an internal listener", "{own} {host}:{port}")
            }
        }
    }
}

#[tokio::test]
async fn vet_returns_what_may_be_dialled() {
    let outbound = outbound();
    let public = AddressPolicy::public();
    assert_eq!(outbound.vet("8.8.8.8", 443, &public).await, Ok(vec!["8.8.8.8:443".parse().unwrap()]));
    let v6 = Ok(vec!["[2001:4860:4860::8888]:443".parse().unwrap()]);
    assert_eq!(outbound.vet("2001:4860:4860::8888", 443, &public).await, v6);
    assert_eq!(outbound.vet("[2001:4860:4860::8888]", 443, &public).await, v6);
    let local = outbound.vet("localhost", 80, &loopback()).await.unwrap();
    assert!(local.iter().all(|address| address.ip().is_loopback() && address.port() == 80));
    for host in ["", "a b", "a/b", "user@host", "[::1", "::1]"] {
        assert!(matches!(outbound.vet(host, 443, &public).await, Err(Error::Refused { .. })), "{host}");
    }
}

#[tokio::test]
async fn the_error_text_is_one_short_line() {
    let error = outbound()
        .vet(&format!("a\nb{}", "\u{202e}".repeat(300)), 1, &AddressPolicy::public())
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(text.len() < 300 && text.bytes().all(|byte| (b' '..0x7f).contains(&byte)), "{text}");
}

#[tokio::test]
async fn who_looks_on_sees_no_secret() {
    let (address, _heads) = server(|stream| {
        stream
            .write_all(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 8\r\n\r\n\"canary\"",
            )
            .unwrap();
    });
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let told = Arc::clone(&seen);
    let watched = outbound().watched(Arc::new(move |sight| told.lock().unwrap().push(sight)));
    let url = format!("http://{address}/place?canary");
    let bearer = header::HeaderValue::from_static("Bearer canary");
    for request in [
        Request::get(&url),
        Request::get(&url).header(header::AUTHORIZATION, bearer),
        Request::post_form(&url, &[("refresh_token", "canary")]),
    ] {
        assert_eq!(watched.send(request, &loopback()).await.unwrap().body, "\"canary\"");
    }
    assert!(watched.send(Request::get("http://10.0.0.1/"), &loopback()).await.is_err());
    watched.remark("step", "about", "taken", || "why".to_owned());
    outbound().remark("step", "about", "taken", || unreachable!("nobody looks on"));
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    let exchanges: Vec<_> = seen
        .iter()
        .map_while(|sight| match sight {
            Sight::Exchange(exchange) => Some(exchange),
            Sight::Remark(_) => None,
        })
        .collect();
    assert_eq!(exchanges.len(), 4);
    let bare = format!("http://{address}/place");
    let urls: Vec<&str> = exchanges.iter().map(|exchange| exchange.url.as_str()).collect();
    assert_eq!(urls, [&url, &bare, &bare, "http://10.0.0.1/"]);
    let documents: Vec<bool> = exchanges
        .iter()
        .filter_map(|exchange| Some(exchange.outcome.as_ref().ok()?.document.is_some()))
        .collect();
    assert_eq!(documents, [true, false, false], "only what was asked for without proving anything");
    assert!(matches!(exchanges[3].outcome, Err(Error::Refused { .. })));
    assert!(matches!(&seen[4], Sight::Remark(remark) if remark.why == "why"));
}
