//! From the command line to a serving process: which configurations are refused and with which words, what comes
//! up on which sockets, and what a start finds in its data directory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use reqwest::Version;
use serde_json::{Value, json};
use support::browser::{Arrival, Browser};
use support::client::Client;
use support::gateway::{Gateway, PASSWORD_HASH, Route, listening_address};
use support::mcp::McpRequest;
use support::port::Port;
use support::process::{Finished, Output, PROGRAM, Process, run};
use support::raw::exchange;
use support::upstream::Upstream;
use support::{CANARY, PATIENCE, eventually, eventually_some, http_client, secret};

/// The smallest configuration there is; scripts outside rely on it, so only ports may be changed here.
const MINIMAL: &str = include_str!("../contract/minimal.yaml");

/// Every key name that is fixed, also those of later versions.
const FULL: &str = include_str!("../contract/full.yaml");

/// A text with other words in these places, in one pass: what is put in is never taken for another place.
fn fill(text: &str, places: &[(&str, &str)]) -> String {
    assert!(places.iter().all(|(place, _)| text.contains(place)), "{places:?}");
    let (mut filled, mut rest) = (String::new(), text);
    while let Some(first) = rest.chars().next() {
        let (length, words) = match places.iter().find(|(place, _)| rest.starts_with(place)) {
            Some((place, words)) => (place.len(), *words),
            None => (first.len_utf8(), &rest[..first.len_utf8()]),
        };
        filled.push_str(words);
        rest = &rest[length..];
    }
    filled
}

/// The smallest configuration on ports of the kernel's choosing.
fn anywhere(data_dir: &str) -> String {
    fill(MINIMAL, &[("127.0.0.1:8080\"", "127.0.0.1:0\""), ("9090", "0"), ("./postern-data", data_dir)])
}

/// A directory of files for one run of the program.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Files(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: &str) -> String {
        self.write_with_mode(name, content, 0o600)
    }

    fn write_with_mode(&self, name: &str, content: &str, mode: u32) -> String {
        std::fs::write(self.path(name), content).unwrap();
        std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(mode)).unwrap();
        self.text(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }
}

async fn validate(file: &str) -> Finished {
    run(&["validate", "--config", file], &[]).await
}

/// A certificate for these names, as the pair of its PEM texts, and what a client trusts to accept it.
fn certificate(names: &[&str]) -> (String, String, reqwest::Certificate) {
    let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let trusted = reqwest::Certificate::from_der(made.cert.der()).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem(), trusted)
}

/// The smallest configuration with this piece replaced, and line and column of the mark `^` in it.
fn broken(from: &str, to: &str) -> (String, String) {
    assert_eq!(MINIMAL.matches(from).count(), 1, "{from}");
    let text = MINIMAL.replace(from, to);
    let at = text.find('^').expect("a mark");
    let (before, after) = (&text[..at], &text[at + 1..]);
    let line = before.matches('\n').count() + 1;
    let column = at - before.rfind('\n').map_or(0, |end| end + 1) + 1;
    (format!("{line}:{column}"), format!("{before}{after}"))
}

/// A place to replace, what to put there with `^` at the problem, the key that is named, and how the words begin.
type Case = (String, String, &'static str, String);

fn server(line: &str, key: &'static str, what: &str) -> Case {
    let (from, to) = ("login:\n", format!("  {line}\nlogin:\n"));
    (from.into(), to, key, what.into())
}

fn top(line: &str, key: &'static str, what: &str) -> Case {
    ("login:\n".into(), format!("{line}\nlogin:\n"), key, what.into())
}

fn certificates(cert: &str, key: &str, named: &'static str, what: &str) -> Case {
    let line = format!("tls: {{certificates: [{{cert_file: {cert}, key_file: {key}}}]}}");
    server(&line, named, what)
}

fn edit(from: &str, to: &str, key: &'static str, what: &str) -> Case {
    (from.into(), to.into(), key, what.into())
}

fn credential(value: &str, named: &'static str, what: &str) -> Case {
    let to = format!(
        "kind: header
      name: X-Key
      value: {value} "
    );
    ("kind: oauth ".into(), to, named, what.into())
}

fn second_route(keys: &str, named: &'static str, what: &str) -> Case {
    let end = "refresh, inject\n";
    let to = format!("{end}  - {{{keys}, upstream: {{url: \"https://b.test/\"}}}}\n");
    (end.into(), to, named, what.into())
}

/// Runs `validate` and `run` on each case: exit code 78, one line with the place, and nothing else happens.
async fn assert_refused(files: &Files, cases: Vec<Case>) {
    for (from, to, key, what) in cases {
        let (place, text) = broken(&from, &to);
        let file = files.write("postern.yaml", &text);
        for command in ["validate", "run"] {
            let ended = run(&[command, "--config", &file], &[]).await;
            let expected = format!("{file}:{place}: {key}: {what}");
            assert_eq!(ended.code, Some(78), "{command} {expected}\n{}", ended.stderr);
            assert!(ended.stderr.starts_with(&expected), "got  {}\nwant {expected}", ended.stderr);
            assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
            assert!(ended.stderr.contains("; ") && ended.stdout.is_empty(), "{}", ended.stderr);
            assert!(!ended.stderr.contains(CANARY), "{}", ended.stderr);
            assert!(ended.files.is_empty(), "{:?}", ended.files);
        }
    }
}

#[tokio::test]
async fn a_bad_key_or_value_is_refused_with_its_place_and_what_to_write() {
    let list = "listen: [\"127.0.0.1:8080\"]";
    let url = "public_url: http://127.0.0.1:8080\n";
    let upstream = "url: http://127.0.0.1:4110/mcp";
    let private = "allow_private: true ";
    let user = "users:\n      - username: alice";
    let canary = secret("written");
    let cases = vec![
        top("^sever: {}", "sever", "unknown key; did you mean `server`?"),
        server("^thread: 2", "server.thread", "unknown key; did you mean `threads`?"),
        edit(
            private,
            "^ulr: x\n      allow_private: true ",
            "routes[0].upstream.ulr",
            "unknown key; did you mean `url`?",
        ),
        edit(list, "listen: ^127.0.0.1:8080", "server.listen", "is text where it cannot be; write a list"),
        edit(
            list,
            "listen: [^\"localhost:8080\"]",
            "server.listen[0]",
            "is not an address to listen on; write an IP address",
        ),
        edit(
            list,
            "listen: [^\"https://127.0.0.1:8080\"]",
            "server.listen[0]",
            "has TLS, but there is no certificate; add `server.tls.certificates`",
        ),
        server(
            "trusted_proxies: [10.0.0.0/8, ^balancer]",
            "server.trusted_proxies[1]",
            "is not a network; write an address, or a network like 10.0.0.0/8",
        ),
        server(
            "trusted_proxies: [^\"::/0\"]",
            "server.trusted_proxies[0]",
            "is everybody, who could then be anybody; ",
        ),
        server(
            "forwarded_header: ^forwarded",
            "server.forwarded_header",
            "is believed of nobody; add `server.trusted_proxies`",
        ),
        server(
            "proxy_protocol: [^\"127.0.0.1:1\"]",
            "server.proxy_protocol[0]",
            "is no address of `server.listen`; write one of them, without http:// or https://",
        ),
        server(
            "proxy_protocol: [^\"127.0.0.1:8080\"]",
            "server.proxy_protocol[0]",
            "has no TLS; name listeners with TLS; ",
        ),
        server("threads: ^many", "server.threads", "is text where it cannot be; write a whole number"),
        server(
            "access_log: ^true",
            "server.access_log",
            "is a boolean, not a word; write one of off, json, text",
        ),
        server(
            "drain_timeout: ^soon",
            "server.drain_timeout",
            "is not a duration; write a number with a unit, like 30s",
        ),
        edit(
            private,
            "allow_private: ^yes ",
            "routes[0].upstream.allow_private",
            "is text where it cannot be; write true or false",
        ),
        edit(
            url,
            "public_url: ^http://mcp.test\n",
            "server.public_url",
            "is http on a host that is not loopback; write https://mcp.test",
        ),
        edit(
            url,
            "public_url: ^http://127.0.0.1:8080/base\n",
            "server.public_url",
            "has a path or a query, but stands for an origin; write http://127.0.0.1:8080",
        ),
        edit(
            "\"127.0.0.1:9090\"",
            "^\"127.0.0.1:8080\"",
            "server.admin",
            "is also in `server.listen`; give the admin listener a port of its own",
        ),
        top(
            "oauth_server: {access_token_ttl: ^16m}",
            "oauth_server.access_token_ttl",
            "is out of range; write a duration from ",
        ),
        edit(
            upstream,
            "url: ^http://127.0.0.1:4110/mcp?key=1",
            "routes[0].upstream.url",
            "contains a query; ",
        ),
        edit(
            upstream,
            "url: ^https://user:pw@127.0.0.1/mcp",
            "routes[0].upstream.url",
            "contains a user name or password; ",
        ),
        edit(
            "url: http://127.0.0.1:4110/mcp\n      allow_private: true ",
            "url: ^http://127.0.0.1:4110/mcp ",
            "routes[0].upstream.url",
            "is http; write https://, or add `allow_private: true`",
        ),
        edit(
            user,
            "one_click: ^carol\n    users:\n      - username: alice",
            "login.local.one_click",
            "is not a listed user; ",
        ),
        credential(
            "{env: ^POSTERN_NOT_SET}",
            "routes[0].credential.value.env",
            "environment variable POSTERN_NOT_SET is not set; set it to the secret",
        ),
        credential(
            &format!("^[{canary}]"),
            "routes[0].credential.value",
            "is a list where a secret belongs; write {env: NAME}",
        ),
    ];
    assert_refused(&Files::new(), cases).await;
}

#[tokio::test]
async fn routes_that_collide_or_hide_our_own_endpoints_are_refused() {
    let path = "path: /demo ";
    let mut cases = vec![
        second_route("name: ^demo, path: /b", "routes[1].name", "is also the name of routes[0]; "),
        second_route(
            "name: b, path: ^//demo/",
            "routes[1].path",
            "has the same host and path as route `demo`; ",
        ),
        second_route(
            "name: b, host: \"127.0.0.1:8080\", path: ^/demo",
            "routes[1].path",
            "has the same host and path as route `demo`; ",
        ),
    ];
    for own in [
        "oauth",
        ".well-known",
        "login",
        "logout",
        "connections",
        "api",
        "healthz",
        "readyz",
        "metrics",
        "favicon.ico",
    ] {
        let what = format!("lies under /{own}, which is Postern's own; ");
        cases.push(edit(path, &format!("path: ^/{own}/demo "), "routes[0].path", &what));
    }
    assert_refused(&Files::new(), cases).await;
}

#[tokio::test]
async fn files_that_cannot_be_used_are_refused_before_anything_starts() {
    let files = Files::new();
    let (cert, key, _) = certificate(&["a.test"]);
    let (_, other_key, _) = certificate(&["a.test"]);
    let (cert, key) = (files.write("tls.crt", &cert), files.write("tls.key", &key));
    let other = files.write("other.key", &other_key);
    let garbage = files.write("garbage.pem", "-----BEGIN CERTIFICATE-----\n!\n");
    let short = files.write("short.key", "AAAA\n");
    // Where others get into the directory, the file's own mode counts.
    std::fs::create_dir(files.path("open")).unwrap();
    // A directory that nobody else gets through would be protection enough, wherever on the way it lies.
    for directory in [files.path("open"), files.path("")] {
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let random = run(&["keys", "generate"], &[]).await.stdout;
    let readable = files.write_with_mode("open/readable.key", &random, 0o644);
    let (directory, nowhere) = (files.text("open"), files.text("nowhere"));
    let (cert_file, key_file) =
        ("server.tls.certificates[0].cert_file", "server.tls.certificates[0].key_file");
    let unread = |path: &str| format!("{path} cannot be read: ");
    let clients = |keys: &str, named, what: &str| {
        let certificates = format!("[{{cert_file: {cert}, key_file: {key}}}]");
        server(&format!("tls: {{certificates: {certificates}, {keys}}}"), named, what)
    };
    let (ca_file, wanted) = ("server.tls.client_ca_file", "server.tls.client_certificates");
    let sealing = |file: &str| format!("sealing_keys: [{{id: k1, file: ^{file}}}]");
    let open_key = format!("key file {readable} is readable by others; run chmod 600 {readable}");
    let cases = vec![
        certificates(&format!("^{nowhere}"), &key, cert_file, &unread(&nowhere)),
        certificates(
            &format!("^{garbage}"),
            &key,
            cert_file,
            &format!("{garbage} holds no readable certificate; "),
        ),
        certificates(&cert, &format!("^{nowhere}"), key_file, &unread(&nowhere)),
        certificates(&cert, &format!("^{directory}"), key_file, &unread(&directory)),
        certificates(
            &cert,
            &format!("^{cert}"),
            key_file,
            &format!("{cert} holds no readable private key; "),
        ),
        certificates(&cert, &format!("^{other}"), key_file, &format!("{other} is not the key of {cert}; ")),
        clients(&format!("client_ca_file: ^{nowhere}"), ca_file, &unread(&nowhere)),
        clients(
            &format!("client_ca_file: ^{garbage}"),
            ca_file,
            &format!(
                "{garbage} holds no readable authorities; name a PEM file with at least one CERTIFICATE block"
            ),
        ),
        clients(
            &format!("client_ca_file: ^{key}"),
            ca_file,
            &format!("{key} holds no readable authorities; "),
        ),
        clients(
            "client_certificates: ^optional",
            wanted,
            "needs to know who vouches for clients; add `server.tls.client_ca_file`",
        ),
        clients(
            "min_version: ^1.3",
            "server.tls.min_version",
            "is a number, not a word; write one of \"1.2\", \"1.3\"",
        ),
        edit(
            "listen: [\"127.0.0.1:8080\"]",
            &format!(
                "listen: [\"https://127.0.0.1:8080\"]\n  proxy_protocol: [^\"127.0.0.1:8080\"]\n  \
                 tls: {{certificates: [{{cert_file: {cert}, key_file: {key}}}]}}"
            ),
            "server.proxy_protocol[0]",
            "has nobody who may connect; add `server.trusted_proxies`",
        ),
        top(
            &sealing(&short),
            "sealing_keys[0].file",
            "holds 3 bytes, not 32; write what `postern keys generate` prints",
        ),
        top(&sealing(&readable), "sealing_keys[0].file", &open_key),
        top(&sealing(&nowhere), "sealing_keys[0].file", &unread(&nowhere)),
        top(&format!("outbound: {{ca_files: [^{nowhere}]}}"), "outbound.ca_files[0]", &unread(&nowhere)),
    ];
    assert_refused(&files, cases).await;
}

#[tokio::test]
async fn all_problems_are_told_at_once_in_the_order_of_the_file() {
    let files = Files::new();
    let text = MINIMAL
        .replace("admin:", "admn:")
        .replace("http://127.0.0.1:8080", "http://mcp.test")
        .replace("path: /demo ", "path: /login ");
    let file = files.write("postern.yaml", &text);
    let ended = validate(&file).await;
    assert_eq!(ended.code, Some(78));
    let keys: Vec<&str> = ended.stderr.lines().map(|line| line.split(": ").nth(1).unwrap()).collect();
    assert_eq!(keys[..2], ["server.public_url", "server.admn"], "{}", ended.stderr);
}

#[tokio::test]
async fn a_file_that_is_no_configuration_is_refused() {
    let files = Files::new();
    for text in ["", "- a\n", "server: [\n", "a: 1\na: 2\n", "\u{0}", "just text"] {
        let file = files.write("postern.yaml", text);
        let ended = validate(&file).await;
        assert_eq!(ended.code, Some(78), "{text:?}: {}", ended.stderr);
        assert!(ended.stderr.starts_with(&file), "{}", ended.stderr);
    }
    let nowhere = files.text("nowhere.yaml");
    for command in ["validate", "run", "demo"] {
        let ended = run(&[command, "--config", &nowhere], &[]).await;
        assert_eq!(ended.code, Some(78), "{}", ended.stderr);
        assert!(ended.stderr.starts_with(&format!("{nowhere}: cannot be read: ")), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn the_smallest_configuration_runs_as_it_stands() {
    let upstream = Upstream::start().await;
    let mut gateway = Gateway::builder().prepare();
    let port = gateway.address.port().to_string();
    let upstream_port = upstream.origin.rsplit(':').next().unwrap();
    let text = fill(MINIMAL, &[("8080", &port), ("9090", "0"), ("4110", upstream_port)]);
    std::fs::write(gateway.config_file(), text).unwrap();
    gateway.spawn();
    gateway.ready().await;
    let client = Client::register(&gateway).await;
    let tokens = client.sign_in(&mut Browser::new(), "demo").await;
    let answer = gateway.mcp("demo").bearer(&tokens.access_token).tool("whoami", json!({})).await;
    assert_eq!(answer.tool_text(), "upstream-user");

    // `./postern-data` counts from where the program was started.
    let data_dir = gateway.config_file().with_file_name("postern-data");
    let mut names: Vec<_> = std::fs::read_dir(&data_dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    // Made once everything else is up.
    names.retain(|name| !name.ends_with(".sock"));
    names.sort();
    assert_eq!(names, ["access-token.keys", "postern.redb", "sealing.key"]);
    assert_eq!(mode(&data_dir), 0o700);
    assert_eq!(mode(&data_dir.join("postern.redb")), 0o600);
    assert_eq!(mode(&data_dir.join("sealing.key")), 0o600);
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn trusted_certificates_are_written_as_one_private_file() {
    let files = Files::new();
    let ca_files = [files.write("ca.crt", &certificate(&["a.test"]).0)];
    let upstream = Upstream::open().await;
    let mut gateway = Gateway::builder()
        .with("outbound.ca_files", json!(ca_files))
        .route(Route::open("open", &upstream))
        .start()
        .await;
    let bundle = gateway.data_dir().join("ca-bundle.pem");
    let written = std::fs::read_to_string(&bundle).unwrap();
    assert!(written.ends_with("-----END CERTIFICATE-----\n"));
    assert_eq!(mode(&bundle), 0o600);
    // One that an earlier version left readable, or that was cut off, is replaced.
    gateway.stop().await;
    std::fs::write(&bundle, "-----BEGIN").unwrap();
    std::fs::set_permissions(&bundle, std::fs::Permissions::from_mode(0o644)).unwrap();
    gateway.restart().await;
    assert_eq!(std::fs::read_to_string(&bundle).unwrap(), written);
    assert_eq!(mode(&bundle), 0o600);
    let names = std::fs::read_dir(gateway.data_dir()).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
    // Made once everything else is up.
    names.retain(|name| !name.ends_with(".sock"));
    names.sort();
    assert_eq!(names, ["access-token.keys", "ca-bundle.pem", "postern.redb", "sealing.key"]);
}

#[tokio::test]
async fn every_fixed_key_name_is_known() {
    let files = Files::new();
    let ended = validate(&files.write("full.yaml", FULL)).await;
    assert_eq!(ended.code, Some(78));
    for line in ended.stderr.lines() {
        // Later versions have these; the files are not here.
        let expected = ["this version", "cannot be read", "is not set"];
        assert!(expected.iter().any(|words| line.contains(words)), "{line}");
    }

    let (cert, key, _) = certificate(&["mcp.example.com"]);
    files.write("tls.crt", &cert);
    files.write("tls.key", &key);
    files.write("k1.key", &run(&["keys", "generate"], &[]).await.stdout);
    let without = |text: &str, from: &str, to: &str| {
        let (start, end) = (text.find(from).unwrap(), text.find(to).unwrap());
        format!("{}{}", &text[..start], &text[end..])
    };
    let text = without(FULL, "  signing_keys:", "  access_token_ttl:");
    let text = without(&text, "  oidc:\n", "outbound:\n");
    let users =
        format!("login:\n  local: {{users: [{{username: a, password_hash: \"{PASSWORD_HASH}\"}}]}}\n");
    let text = text.replace("login:\n", &users).replace("/etc/postern", files.0.path().to_str().unwrap());
    let file = files.write("full.yaml", &text);
    let variables = [("FILES_SECRET", "a"), ("SEARCH_KEY", "b")];
    let ended = run(&["validate", "--config", &file], &variables).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.stdout, "configuration is fine: 3 route(s), 1 listener(s)");
}

#[tokio::test]
async fn the_shipped_configurations_are_good() {
    for name in ["postern.yaml", "demo.yaml"] {
        let file = format!("{}/conf/{name}", env!("CARGO_MANIFEST_DIR"));
        let ended = validate(&file).await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let by_variable = run(&["validate"], &[("POSTERN_CONFIG", &file)]).await;
        assert_eq!((by_variable.code, by_variable.stdout), (Some(0), ended.stdout));
    }
}

#[tokio::test]
async fn validate_opens_no_port_and_makes_no_file() {
    let files = Files::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let text = fill(MINIMAL, &[("8080", &port), ("./postern-data", &files.text("data"))]);
    let ended = validate(&files.write("postern.yaml", &text)).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(!files.path("data").exists());
}

#[tokio::test]
async fn a_port_in_use_is_an_error_and_nothing_is_left_behind() {
    let files = Files::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (data, address) = (files.text("data"), format!("127.0.0.1:{port}\""));
    let free = "127.0.0.1:0\"";
    for (listen, admin) in [(address.as_str(), free), (free, address.as_str())] {
        let places = [("127.0.0.1:8080\"", listen), ("127.0.0.1:9090\"", admin), ("./postern-data", &data)];
        let text = fill(MINIMAL, &places);
        let file = files.write("postern.yaml", &text);
        let ended = run(&["run", "--config", &file], &[]).await;
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        let message = format!("postern: cannot listen on 127.0.0.1:{port}: Address already in use");
        assert!(ended.stderr.lines().last().unwrap().starts_with(&message), "{}", ended.stderr);
        assert!(!ended.stderr.contains("listening"), "{}", ended.stderr);
        assert!(!files.path("data").exists());
    }
}

/// The program with a socket as descriptor 3, where socket activation puts it.
fn activated(socket: &TcpListener, config: &Path, output: &Output) -> Process {
    let hand_over = r#"exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$0" run --config "$1""#;
    let mut command = Command::new("sh");
    command
        .args(["-c", hand_over, PROGRAM])
        .arg(config)
        .stdin(Stdio::from(OwnedFd::from(socket.try_clone().unwrap())));
    Process::start(command, output)
}

/// The public listeners named in the log, in order.
fn public_listeners(output: &Output) -> Vec<SocketAddr> {
    let lines = output.lines();
    lines.iter().filter_map(|line| listening_address(line, "public")).collect()
}

#[tokio::test]
async fn a_socket_handed_over_is_used_and_outlives_the_process() {
    let files = Files::new();
    // Held here all the time: the program could not bind this address itself.
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let (port, data) = (address.port().to_string(), files.text("data"));
    let text = fill(MINIMAL, &[("8080", &port), ("9090", "0"), ("./postern-data", &data)]);
    let config = files.write("postern.yaml", &text);
    let get = format!("GET /login HTTP/1.1\r\nHost: {address}\r\n\r\n");
    for _ in 0..2 {
        // Asked before anybody is there: the connection waits in the socket.
        let asked = tokio::spawn(exchange(address, get.clone(), PATIENCE));
        let output = Output::default();
        let mut process = activated(&socket, Path::new(&config), &output);
        let answer = asked.await.unwrap();
        assert_eq!(answer.map(|answer| answer.status), Some(200), "{}", output.text());
        process.signal("TERM");
        assert_eq!(process.wait(PATIENCE).await.code(), Some(0));
    }
}

#[tokio::test]
async fn a_socket_that_nobody_configured_is_an_error() {
    let files = Files::new();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let text = anywhere(&files.text("data"));
    let config = files.write("postern.yaml", &text);
    let output = Output::default();
    let mut process = activated(&socket, Path::new(&config), &output);
    assert_eq!(process.wait(PATIENCE).await.code(), Some(1), "{}", output.text());
    let last = output.lines().pop().unwrap();
    let message = format!(
        "postern: LISTEN_FDS holds a socket for {address}, which is neither in server.listen nor server.admin"
    );
    assert_eq!(last, message);
}

#[tokio::test]
async fn two_listeners_serve_the_same_and_admin_can_be_off() {
    let upstream = Upstream::open().await;
    let mut gateway = Gateway::builder().route(Route::open("open", &upstream)).prepare();
    let first = gateway.address;
    gateway.reconfigure("server.listen", json!([first.to_string(), "127.0.0.1:0"]));
    gateway.reconfigure("server.admin", json!("off"));
    gateway.spawn();
    let output = gateway.output.clone();
    let listeners = eventually_some(PATIENCE, || {
        let found = Some(public_listeners(&output)).filter(|found| found.len() == 2);
        async move { found }
    })
    .await;
    assert_eq!(listeners[0], first);
    let ask = |host: SocketAddr| {
        format!("GET /.well-known/oauth-authorization-server HTTP/1.1\r\nHost: {host}\r\n\r\n")
    };
    for listener in &listeners {
        let answer = exchange(*listener, ask(first), PATIENCE).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    // Who we are comes from the configuration, not from where somebody connected.
    let foreign = exchange(listeners[1], ask(listeners[1]), PATIENCE).await.unwrap();
    assert_eq!(foreign.status, 421, "{}", foreign.text());
    assert!(!gateway.output.text().contains(r#""listener":"admin""#));
    assert_eq!(gateway.stop().await.code(), Some(0));
}

/// A client for one version of HTTP that finds every name at `address`.
fn tls_client(
    address: SocketAddr,
    names: &[&str],
    trusted: &[reqwest::Certificate],
    old: bool,
) -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut client = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .tls_certs_only(trusted.iter().cloned())
        .timeout(PATIENCE);
    for name in names {
        client = client.resolve(name, address);
    }
    if old { client.http1_only() } else { client }.build().unwrap()
}

#[tokio::test]
async fn tls_listeners_speak_both_versions_of_http() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::builder().tls().route(Route::oauth("demo", &upstream)).start().await;
    let client = Client::register(&gateway).await;
    let mut browser = Browser::new().trusting(&gateway.roots);
    let tokens = client.sign_in(&mut browser, "demo").await;
    assert!(browser.jar.all().iter().any(|cookie| cookie.name.starts_with("__Host-")));
    for (old, version) in [(true, Version::HTTP_11), (false, Version::HTTP_2)] {
        let http = tls_client(gateway.address, &[], &gateway.roots, old);
        let call = McpRequest::to(&http, &gateway.url("/demo")).bearer(&tokens.access_token);
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
            "params": {"name": "echo", "arguments": {"message": "x".repeat(100_000)}}});
        let answer = call.send("POST", Some(&body.to_string())).await;
        assert_eq!((answer.status().as_u16(), answer.version()), (200, version));
        let answer: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        assert_eq!(answer["result"]["content"][0]["text"].as_str().map(str::len), Some(100_000));
        let refused = call.without_header("authorization").call("ping", json!({})).await;
        assert_eq!(refused.status, 401);
        assert!(refused.challenge("resource_metadata").unwrap().starts_with(&gateway.public_url));
    }
    // Plain HTTP on a TLS port gets no answer that could be taken for one, and harms nobody.
    let plain = exchange(gateway.address, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", PATIENCE).await;
    assert!(plain.is_none(), "{plain:?}");
    assert_eq!(gateway.http.get(gateway.url("/")).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn the_name_a_client_asks_for_picks_the_certificate() {
    let files = Files::new();
    let (cert_a, key_a, trust_a) = certificate(&["a.test"]);
    let (cert_b, key_b, trust_b) = certificate(&["b.test", "*.b.test"]);
    let pair = |name: &str, cert: &str, key: &str| json!({"cert_file": files.write(&format!("{name}.crt"), cert), "key_file": files.write(&format!("{name}.key"), key)});
    let certificates = json!({"certificates": [pair("a", &cert_a, &key_a), pair("b", &cert_b, &key_b)]});
    let upstream = Upstream::open().await;
    let mut gateway = Gateway::builder().prepare();
    let port = gateway.address.port();
    // TLS where the entry says so, or says nothing; none where it says http.
    gateway.reconfigure(
        "server.listen",
        json!([gateway.address.to_string(), "http://127.0.0.1:0", "https://127.0.0.1:0"]),
    );
    gateway.reconfigure("server.tls", certificates);
    gateway.reconfigure("server.public_url", json!(format!("https://a.test:{port}")));
    let route = |name: &str, host: &str| {
        json!({"name": name, "host": host, "path": "/x", "credential": {"kind": "none"},
            "upstream": {"url": upstream.url(), "allow_private": true}})
    };
    gateway.reconfigure("routes", json!([route("a", "a.test"), route("b", "sub.b.test")]));
    gateway.spawn();
    gateway.ready().await;
    let listeners = public_listeners(&gateway.output);
    assert_eq!(listeners.len(), 3);
    let names = ["a.test", "sub.b.test", "b.test"];
    for (name, trusted, other) in [("a.test", &trust_a, &trust_b), ("sub.b.test", &trust_b, &trust_a)] {
        for (tls, old, version) in [
            (listeners[0], false, Version::HTTP_2),
            // HTTP/2 has one authority only, so where the port is another one the older version is asked.
            (listeners[2], true, Version::HTTP_11),
        ] {
            let get = |trusted: &reqwest::Certificate| {
                let http = tls_client(tls, &names, std::slice::from_ref(trusted), old);
                let request = http.get(format!("https://{name}:{}/x", tls.port()));
                match old {
                    true => request.header("host", format!("{name}:{port}")).send(),
                    false => request.send(),
                }
            };
            let answer = get(trusted).await.unwrap();
            assert_eq!((answer.status().as_u16(), answer.version()), (401, version));
            let challenge = answer.headers()["www-authenticate"].to_str().unwrap();
            let metadata = format!("https://{name}:{port}/.well-known/");
            assert!(challenge.contains(&metadata), "{challenge}");
            assert!(get(other).await.is_err(), "{name} was shown the other certificate");
        }
    }
    // A name that no certificate has: the first one.
    let http = reqwest::Client::builder()
        .no_proxy()
        .tls_danger_accept_invalid_certs(true)
        .tls_info(true)
        .resolve("c.test", gateway.address)
        .build()
        .unwrap();
    let answer = http.get(format!("https://c.test:{port}/x")).send().await.unwrap();
    let shown = answer.extensions().get::<reqwest::tls::TlsInfo>().unwrap().peer_certificate().unwrap();
    let first = reqwest::Certificate::from_der(shown).unwrap();
    assert_eq!((answer.status().as_u16(), format!("{first:?}")), (421, format!("{trust_a:?}")));

    let plain = format!("GET /x HTTP/1.1\r\nHost: a.test:{port}\r\n\r\n");
    let answer = exchange(listeners[1], plain, PATIENCE).await.unwrap();
    assert_eq!(answer.status, 401, "{}", answer.text());
}

#[tokio::test]
async fn schema_prints_what_is_shipped() {
    let printed = run(&["schema"], &[]).await;
    assert_eq!(printed.code, Some(0));
    assert_eq!(printed.stdout.trim_end(), include_str!("../../conf/postern.schema.json").trim_end());
    let schema: Value = serde_json::from_str(&printed.stdout).unwrap();
    assert_eq!(schema["additionalProperties"], false);
}

#[tokio::test]
async fn version_and_usage() {
    let printed = run(&["--version"], &[]).await;
    assert_eq!((printed.code, printed.stdout), (Some(0), format!("postern {}", env!("CARGO_PKG_VERSION"))));
    for wrong in [&[][..], &["serve"], &["run", "--port", "1"], &["keys"]] {
        let ended = run(wrong, &[]).await;
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{wrong:?}");
        assert!(ended.stderr.contains("Usage: "), "{}", ended.stderr);
    }
}

/// One OAuth route, sealed with these keys.
async fn sealed_with(upstream: &Upstream, keys: &Value) -> Gateway {
    Gateway::builder().with("sealing_keys", keys.clone()).route(Route::oauth("demo", upstream)).start().await
}

#[tokio::test]
async fn sr_t32_a_generated_key_seals_the_store_and_can_be_rotated() {
    let files = Files::new();
    let mut keys = Vec::new();
    for name in ["k1", "k2", "k3"] {
        let made = run(&["keys", "generate"], &[]).await;
        assert_eq!((made.code, made.stderr.as_str(), made.stdout.lines().count()), (Some(0), "", 1));
        let bytes = data_encoding::BASE64.decode(made.stdout.as_bytes()).unwrap();
        assert_eq!(bytes.len(), 32);
        assert!(!keys.contains(&bytes));
        keys.push(bytes);
        files.write(name, &format!("{}\n", made.stdout));
    }
    let key = |name: &str| json!({"id": name, "file": files.text(name)});
    let upstream = Upstream::start().await;
    let mut gateway = sealed_with(&upstream, &json!([key("k1")])).await;
    assert!(!gateway.data_dir().join("sealing.key").exists());
    let client = Client::register(&gateway).await;
    let tokens = client.sign_in(&mut Browser::new(), "demo").await;

    // A new key in front: what the old one sealed still opens, and nobody signs in again.
    gateway.reconfigure("sealing_keys", json!([key("k2"), key("k1")]));
    gateway.restart().await;
    let tokens = client.refresh(&tokens.refresh_token).await.tokens();
    let answer = gateway.mcp("demo").bearer(&tokens.access_token).tool("whoami", json!({})).await;
    assert_eq!(answer.tool_text(), "upstream-user");

    // Another key altogether: refused with a sentence, and nobody's data is lost over it.
    gateway.stop().await;
    for wrong in [json!([key("k3")]), json!([{"id": "k1", "file": files.text("k3")}]), json!([])] {
        gateway.reconfigure("sealing_keys", wrong);
        let ended = run(&["run", "--config", gateway.config_file().to_str().unwrap()], &[]).await;
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        let last = ended.stderr.lines().last().unwrap();
        assert!(last.starts_with("postern: ") && last.contains("sealing"), "{last}");
        assert!(!ended.stderr.contains("\"listening\""), "{}", ended.stderr);
        assert!(!gateway.data_dir().join("sealing.key").exists());
    }
    gateway.reconfigure("sealing_keys", json!([key("k2"), key("k1")]));
    gateway.restart().await;
    let answer = gateway.mcp("demo").bearer(&tokens.access_token).tool("whoami", json!({})).await;
    assert_eq!(answer.tool_text(), "upstream-user");
}

#[tokio::test]
async fn sr_t31_a_lost_or_open_key_beside_a_store_is_refused_and_nothing_is_overwritten() {
    let upstream = Upstream::start().await;
    let mut gateway = Gateway::before(&upstream).await;
    gateway.stop().await;
    let (key_file, store_file) =
        (gateway.data_dir().join("sealing.key"), gateway.data_dir().join("postern.redb"));
    let (key, store) = (std::fs::read(&key_file).unwrap(), std::fs::read(&store_file).unwrap());
    let config = gateway.config_file();
    let refused = async |words: &str| {
        let ended = run(&["run", "--config", config.to_str().unwrap()], &[]).await;
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        let last = ended.stderr.lines().last().unwrap().to_owned();
        assert!(last.starts_with("postern: ") && last.contains(words), "{last}");
        assert!(std::fs::read(&store_file).unwrap() == store, "the store was changed: {last}");
    };
    std::fs::remove_file(&key_file).unwrap();
    refused("sealing.key is missing but postern.redb is there: restore the key, or move the store away")
        .await;
    assert!(!key_file.exists());

    let restore = |mode: u32| {
        std::fs::write(&key_file, &key).unwrap();
        std::fs::set_permissions(&key_file, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    restore(0o644);
    refused("may be used by others than its owner: set its mode to 0600").await;
    restore(0o600);
    std::fs::write(&key_file, "AAAA").unwrap();
    refused("a sealing key is 32 random bytes in base64").await;
    restore(0o600);
    gateway.restart().await;
}

#[tokio::test]
async fn a_store_that_cannot_be_opened_is_refused_and_left_alone() {
    let upstream = Upstream::start().await;
    let mut gateway = Gateway::before(&upstream).await;
    // In use by another process, which goes on.
    let files = Files::new();
    let text = anywhere(gateway.data_dir().to_str().unwrap());
    let config = files.write("postern.yaml", &text);
    let refused = async |words: &str| {
        let ended = run(&["run", "--config", &config], &[]).await;
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        let last = ended.stderr.lines().last().unwrap().to_owned();
        assert!(last.starts_with("postern: store: ") && last.contains(words), "{last}");
        assert!(!ended.stderr.contains("\"listening\""), "{}", ended.stderr);
    };
    refused("postern.redb is in use by another process; the embedded store serves one Postern at a time")
        .await;
    assert_eq!(gateway.http.get(gateway.admin("/readyz")).send().await.unwrap().status(), 200);
    gateway.stop().await;

    let store = gateway.data_dir().join("postern.redb");
    std::fs::write(&store, "this is no store").unwrap();
    refused("postern.redb is damaged or no Postern store").await;
    assert_eq!(std::fs::read(&store).unwrap(), b"this is no store");
}

#[tokio::test]
async fn a_data_directory_that_cannot_be_made_is_an_error() {
    let files = Files::new();
    let taken = files.write("file", "");
    let text = anywhere(&format!("{taken}/data"));
    let ended = run(&["run", "--config", &files.write("postern.yaml", &text)], &[]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let last = ended.stderr.lines().last().unwrap();
    assert!(last.starts_with("postern: ") && last.contains("data"), "{last}");
    assert_eq!(std::fs::read_to_string(taken).unwrap(), "");
}

/// Runs `postern hash-password` with this on standard input.
fn hash_password(input: &str) -> Finished {
    let mut child = Command::new(PROGRAM)
        .arg("hash-password")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().trim_end().to_owned();
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    Finished { code: output.status.code(), files: Vec::new(), stdout, stderr }
}

#[tokio::test]
async fn a_hashed_password_lets_its_user_sign_in() {
    let (first, second) = (hash_password("pw\n"), hash_password("pw"));
    assert_eq!((first.code, first.stderr.as_str()), (Some(0), ""));
    assert!(first.stdout.starts_with("$argon2id$v=19$m=19456,t=2,p=1$") && first.stdout.lines().count() == 1);
    assert_ne!(first.stdout, second.stdout, "the salt is random");
    for nothing in ["", "\n"] {
        let ended = hash_password(nothing);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{}", ended.stderr);
    }

    let users = json!([
        {"username": "carol", "password_hash": first.stdout},
        {"username": "dave", "password_hash": hash_password("other\n").stdout},
    ]);
    let upstream = Upstream::start().await;
    let gateway = Gateway::builder()
        .with("login.local.users", users)
        .route(Route::oauth("demo", &upstream))
        .start()
        .await;
    let client = Client::register(&gateway).await;
    client.sign_in(&mut Browser::of("carol"), "demo").await;
    let request = client.authorization("demo");
    for stranger in ["dave", "alice"] {
        let stopped = Browser::of(stranger).authorize_or_stop(&client.redirect_uri, &request.url()).await;
        assert!(matches!(stopped, Arrival::Page(page) if page.status == 401), "{stranger} got in");
    }
}

/// A running demo and the addresses of its gateway and of its upstream.
async fn demo(files: &Files, output: &Output) -> (Process, SocketAddr, SocketAddr, [Port; 2]) {
    demo_of(include_str!("../../conf/demo.yaml"), &[], files, output).await
}

async fn demo_of(
    text: &str,
    more: &[&str],
    files: &Files,
    output: &Output,
) -> (Process, SocketAddr, SocketAddr, [Port; 2]) {
    // It binds its ports itself, so they are kept for it until the test ends.
    let ports = [Port::take(), Port::take()];
    let [gateway, upstream] = [ports[0].address(), ports[1].address()];
    let places = [
        ("127.0.0.1:8080", gateway.to_string()),
        ("127.0.0.1:8081", upstream.to_string()),
        ("127.0.0.1:9090", "127.0.0.1:0".to_owned()),
        ("./postern-data", files.text("data")),
    ];
    let places = places.each_ref().map(|(place, words)| (*place, words.as_str()));
    let config = files.write("demo.yaml", &fill(text, &places));
    let mut command = Command::new(PROGRAM);
    command.args(["demo", "--config", &config]).args(more).stdin(Stdio::null());
    let process = Process::start(command, output);
    eventually(PATIENCE, || {
        let listening = public_listeners(output).contains(&gateway);
        async move { listening }
    })
    .await;
    (process, gateway, upstream, ports)
}

#[tokio::test]
async fn the_demo_is_a_gateway_with_an_upstream_and_one_click() {
    let (files, output) = (Files::new(), Output::default());
    let (mut process, address, upstream, _ports) = demo(&files, &output).await;
    let mut gateway = Gateway::builder().prepare();
    gateway.public_url = format!("http://{address}");
    // What a newcomer pastes into a client.
    assert!(
        output.text().contains(&format!("claude mcp add --transport http demo {}/demo", gateway.public_url))
    );
    let upstream_url = format!("http://{upstream}/mcp");
    let direct = McpRequest::to(&http_client(&[]), &upstream_url).call("ping", json!({})).await;
    assert_eq!(direct.status, 401);
    assert!(direct.challenge("resource_metadata").unwrap().starts_with(&format!("http://{upstream}/")));

    let client = Client::register(&gateway).await;
    let request = client.authorization("demo");
    let mut browser = Browser::new();
    browser.stop_before(&client.redirect_uri);
    let login = browser.go(&request.url()).await.page();
    let consent = browser.press(&login, "sign in as demo").await.page();
    let upstream_consent = browser.press(&consent, "allow").await.page();
    assert!(upstream_consent.url.as_str().starts_with(&upstream_url[..upstream_url.len() - 4]));
    let Arrival::Client(url) = browser.press(&upstream_consent, "allow").await else {
        panic!("not back at the client: {:?}", browser.trail());
    };
    let callback = support::client::Callback::of(&url);
    let tokens = client.redeem(&callback.code(), &request).await.tokens();
    let answer = gateway.mcp("demo").bearer(&tokens.access_token).tool("whoami", json!({})).await;
    assert!(!answer.tool_text().is_empty());

    process.signal("TERM");
    assert_eq!(process.wait(PATIENCE).await.code(), Some(0), "{}", output.text());
}

#[tokio::test]
async fn an_agent_without_people_calls_a_tool_of_the_demo() {
    let (files, output) = (Files::new(), Output::default());
    let text = format!("{}{}", include_str!("../../conf/demo.yaml"), postern::cli::AGENT_ROUTE);
    let (mut process, address, ..) = demo_of(&text, &["--agent"], &files, &output).await;
    let says = format!(
        "The agent has called `whoami` at http://{address}/open with a service account's token; the tool says: You are a guest"
    );
    eventually(PATIENCE, || {
        let said = output.text().contains(&says);
        async move { said }
    })
    .await;
    assert!(!output.text().contains("postern_st_"), "its token is its own");
    process.signal("TERM");
    assert_eq!(process.wait(PATIENCE).await.code(), Some(0), "{}", output.text());
}

#[tokio::test]
async fn one_click_and_the_demo_stay_on_this_computer() {
    let files = Files::new();
    let (cert, key, _) = certificate(&["a.test"]);
    let tls = format!(
        "tls: {{certificates: [{{cert_file: {}, key_file: {}}}]}}",
        files.write("c", &cert),
        files.write("k", &key)
    );
    let shipped = include_str!("../../conf/demo.yaml");
    for text in [
        shipped.replace("listen: [\"127.0.0.1:8080\"]", "listen: [\"0.0.0.0:8080\"]"),
        shipped.replace("listen: [\"127.0.0.1:8080\"]", "listen: [\"127.0.0.1:8080\", \"[::]:8082\"]"),
        shipped.replace("public_url: http://127.0.0.1:8080", &format!("public_url: https://a.test\n  {tls}")),
    ] {
        assert_ne!(text, shipped);
        let file = files.write("demo.yaml", &text);
        for command in ["demo", "run", "validate"] {
            let ended = run(&[command, "--config", &file], &[]).await;
            assert_eq!(ended.code, Some(78), "{}", ended.stderr);
            assert!(
                ended.stderr.contains("login.local.one_click: sign-in without a password needs"),
                "{}",
                ended.stderr
            );
        }
    }
    // The upstream of the demo lets anybody be anybody.
    let away = shipped.replace("http://127.0.0.1:8081/mcp", "http://192.0.2.1:8081/mcp");
    let ended = run(&["demo", "--config", &files.write("demo.yaml", &away)], &[]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("an upstream on a loopback address"), "{}", ended.stderr);
}

#[tokio::test]
async fn one_click_needs_the_loopback_host_in_the_request_too() {
    let upstream = Upstream::open().await;
    let gateway = Gateway::builder()
        .with("login.local.one_click", json!("alice"))
        .route(Route::open("open", &upstream).with("host", json!("files.test")))
        .start()
        .await;
    let page = Browser::new().go(&gateway.url("/login")).await.page();
    assert!(page.text().contains("Sign in as alice"));
    // A page of another site that lets its name point here.
    let port = gateway.address.port();
    for host in [format!("evil.test:{port}"), format!("files.test:{port}"), format!("localhost:{port}")] {
        let get = format!("GET /login HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let answer = exchange(gateway.address, get, PATIENCE).await.unwrap();
        assert_ne!(answer.status, 200, "{host}");
        assert!(!answer.text().contains("Sign in as"), "{host}");
    }
}
