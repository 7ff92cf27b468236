#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use secrecy::ExposeSecret;

use super::*;

/// Variables and files of a test.
#[derive(Default)]
struct Fake {
    variables: HashMap<String, String>,
    files: HashMap<PathBuf, (Vec<u8>, u32)>,
}

impl Fake {
    fn var(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    fn file(mut self, path: &str, content: &str, mode: u32) -> Self {
        self.files.insert(PathBuf::from(path), (content.as_bytes().to_vec(), mode));
        self
    }
}

impl Environment for Fake {
    fn var(&self, name: &str) -> Option<String> {
        self.variables.get(name).cloned()
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.files.get(path).map(|(content, _)| content.clone()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn mode(&self, path: &Path) -> io::Result<u32> {
        self.files.get(path).map(|(_, mode)| *mode).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn real(&self, path: &Path) -> io::Result<PathBuf> {
        Ok(path.to_owned())
    }

    fn run(&self, command: &[String]) -> io::Result<Vec<u8>> {
        match command {
            [program, key] if program == "unwrap" => Ok(format!("{key}\n").into_bytes()),
            _ => Err(io::Error::other("exit status: 1")),
        }
    }

    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }
}

const HASH: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$8ZCVR4QDG/0C4YXMmXc5eg$m/LlQtKDdhxEFEjjkAiV8iTCvwp/xu4N6O8sWaElWH8";

/// A file that is right, in which tests replace parts.
const BASE: &str = r#"server:
  public_url: http://127.0.0.1:8080
  listen: ["127.0.0.1:8080"]
  #server
login:
  local:
    #local
    users:
      - username: alice
        password_hash: "HASH"
#top
routes:
  - name: demo
    path: /demo
    upstream:
      url: https://up.example.com/mcp
      #upstream
    #route
"#;

fn base(replacements: &[(&str, &str)]) -> String {
    let mut text = BASE.to_owned();
    for (from, to) in replacements {
        assert!(text.contains(from), "{from} is not in the base text");
        text = text.replacen(from, to, 1);
    }
    text.replace("HASH", HASH)
}

fn good(replacements: &[(&str, &str)], environment: &Fake) -> Config {
    parse(&base(replacements), "conf.yaml", environment).unwrap_or_else(|report| panic!("{report}"))
}

fn bad(replacements: &[(&str, &str)], environment: &Fake) -> String {
    match parse(&base(replacements), "conf.yaml", environment) {
        Ok(_) => panic!("accepted: {replacements:?}"),
        Err(report) => report.to_string(),
    }
}

/// Asserts the one problem of BASE with one replacement.
fn one(from: &str, to: &str, expected: &str) {
    let report = bad(&[(from, to)], &Fake::default());
    assert_eq!(report.lines().count(), 1, "{report}");
    assert!(report.starts_with(expected), "got  {report}\nwant {expected}");
}

fn credential(text: &str) -> String {
    format!("credential: {{{text}}}")
}

const MINIMAL: &str = include_str!("../../tests/contract/minimal.yaml");

#[test]
fn minimal_file_gets_all_defaults() {
    let config = parse(MINIMAL, "minimal.yaml", &Fake::default()).unwrap_or_else(|report| panic!("{report}"));
    let server = &config.server;
    assert_eq!(server.public_url.origin(), "http://127.0.0.1:8080");
    assert_eq!(server.public_url.authority(), "127.0.0.1:8080");
    assert_eq!((server.public_url.host(), server.public_url.port()), ("127.0.0.1", 8080));
    assert!(server.public_url.is_loopback() && !server.public_url.is_https());
    assert_eq!(server.listen, [Listen { address: "127.0.0.1:8080".to_owned(), tls: false, proxied: false }]);
    assert_eq!(server.admin.as_deref(), Some("127.0.0.1:9090"));
    assert_eq!(server.data_dir, Path::new("./postern-data"));
    assert_eq!(server.access_log, AccessLog::Json);
    assert_eq!(server.drain_timeout, Duration::from_secs(30));
    assert!(server.threads >= 1 && server.tls.is_empty() && server.allowed_origins.is_empty());
    assert!(matches!(config.store, Store::Embedded));
    assert!(config.sealing_keys.is_empty());
    let oauth = &config.oauth_server;
    assert_eq!(oauth.access_token_ttl, Duration::from_secs(600));
    assert_eq!(oauth.refresh_token_ttl, Duration::from_secs(30 * 86400));
    assert_eq!(oauth.refresh_replay_window, Duration::from_secs(30));
    let everybody =
        Cimd { enabled: true, allow_private: false, allow_hosts: Vec::new(), deny_hosts: Vec::new() };
    assert_eq!(oauth.cimd, everybody);
    assert!(oauth.dcr_enabled && oauth.listed.is_empty());
    assert_eq!(config.oauth_client.client_metadata_url, None);
    assert_eq!(config.login.users.len(), 2);
    assert_eq!(config.login.one_click, None);
    let route = &config.routes[0];
    assert_eq!((route.name.as_str(), route.host.as_deref(), route.path.as_str()), ("demo", None, "/demo"));
    assert_eq!(route.upstream.url_as_written, "http://127.0.0.1:4110/mcp");
    assert_eq!(route.upstream.base_path(), "/mcp");
    assert_eq!(route.upstream.private_hosts(), ["127.0.0.1"]);
    assert!(matches!(&route.credential, Credential::Oauth(oauth) if oauth.client_id.is_none()));
}

const FULL: &str = include_str!("../../tests/contract/full.yaml");

#[test]
fn full_file_has_only_missing_files_and_what_is_not_there_yet() {
    let environment = Fake::default().var("FILES_SECRET", "f").var("SEARCH_KEY", "s").var("IDP_SECRET", "i");
    let report = parse(FULL, "full.yaml", &environment).err().unwrap();
    let expected = "\
full.yaml:4:36: server.tls.certificates[0].cert_file: /etc/postern/tls.crt cannot be read: entity not found; name a file that Postern's user can read
full.yaml:4:68: server.tls.certificates[0].key_file: /etc/postern/tls.key cannot be read: entity not found; name a file that Postern's user can read
full.yaml:15:20: sealing_keys[0].file: /etc/postern/k1.key cannot be read: entity not found; name a file that Postern's user can read
full.yaml:18:33: oauth_server.signing_keys[0].file: /etc/postern/s1.pem cannot be read: entity not found; name a file that Postern's user can read";
    assert_eq!(report.to_string(), expected);
}

#[test]
fn everything_configured_arrives() {
    let key = data_encoding::BASE64.encode(&std::array::from_fn::<u8, 32, _>(|index| index as u8));
    let pair = rcgen::generate_simple_self_signed(["mcp.example.com".to_owned()]).unwrap();
    let environment = Fake::default()
        .var("FILES_SECRET", "files-secret")
        .var("IDP_SECRET", "idp-secret")
        .var("CREDENTIALS_DIRECTORY", "/run/credentials")
        .file("/run/credentials/search", "search-key\r\n", 0o440)
        .file("/etc/postern/tls.crt", &pair.cert.pem(), 0o644)
        .file("/etc/postern/tls.key", &pair.signing_key.serialize_pem(), 0o640)
        .file("/etc/postern/ca.crt", &pair.cert.pem(), 0o644)
        .file("/etc/postern/k1.key", &format!("{key}\n"), 0o100_600);
    let text = FULL
        .replace("  signing_keys: [{id: s1, file: /etc/postern/s1.pem}]\n", "")
        .replace("ca_files: []", "ca_files: [/etc/postern/ca.crt]")
        .replace("{env: SEARCH_KEY}", "{credential: search}")
        .replace("\"off\"", "off");
    let config = parse(&text, "full.yaml", &environment).unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(
        config.server.listen,
        [Listen { address: "0.0.0.0:443".to_owned(), tls: true, proxied: false }]
    );
    assert_eq!(config.server.access_log, AccessLog::Off);
    assert_eq!(config.server.threads, 2);
    assert_eq!(config.server.public_url.authority(), "mcp.example.com");
    assert_eq!(config.server.public_url.port(), 443);
    assert_eq!(config.server.tls[0].key.cert.len(), 1);
    assert_eq!(config.outbound.ca_certificates.len(), 1);
    let Store::Redis(redis) = &config.store else { panic!("not redis") };
    assert_eq!(redis.topology, Topology::Standalone);
    assert_eq!(redis.addresses, [Address::Tcp("127.0.0.1".to_owned(), 6379)]);
    assert_eq!((redis.database, redis.tls, redis.prefix.as_str()), (0, false, "postern:"));
    let corp = config.login.provider("corp").unwrap();
    assert_eq!((corp.issuer.as_str(), corp.client_id.as_str()), ("https://idp.example.com", "postern"));
    assert_eq!(corp.client_secret.as_ref().unwrap().expose_secret(), "idp-secret");
    assert!(
        config.login.knows("https://idp.example.com|4711") && !config.login.knows("https://idp.example|1")
    );
    assert_eq!(config.sealing_keys[0].id, "k1");
    assert_eq!(config.sealing_keys[0].key.expose_secret()[31], 31);
    let Credential::Oauth(oauth) = &config.routes[0].credential else { panic!("not oauth") };
    assert_eq!(oauth.client_secret.as_ref().unwrap().expose_secret(), "files-secret");
    assert_eq!(oauth.scopes.as_deref(), Some(["read".to_owned()].as_slice()));
    let Credential::Header { name, value } = &config.routes[1].credential else { panic!("not header") };
    assert_eq!((name.as_str(), value.expose_secret()), ("authorization", "Bearer search-key"));
    assert!(matches!(config.routes[2].credential, Credential::None));
}

#[test]
fn unknown_keys_are_all_reported_with_place_and_choice() {
    let report = bad(
        &[("#upstream", "ulr: x"), ("#server", "acces_log: json"), ("path: /demo", "path: /oauth")],
        &Fake::default(),
    );
    let expected = "\
conf.yaml:4:3: server.acces_log: unknown key; did you mean `access_log`? write one of access_log, acme_challenge, admin, allowed_origins, audit_log, data_dir, drain_timeout, forwarded_header, listen, proxy_protocol, public_url, threads, tls, trusted_proxies, upgrade_timeout, watch
conf.yaml:14:11: routes[0].path: lies under /oauth, which is Postern's own; choose another path, or give the route a host of its own
conf.yaml:17:7: routes[0].upstream.ulr: unknown key; did you mean `url`? write one of allow_hosts, allow_private, balance, balance_on, drain, health, peers, read_timeout, slow_start, url";
    assert_eq!(report, expected);
}

#[test]
fn syntax_types_and_missing_keys_have_a_place() {
    one("#top", "server: {}", "conf.yaml:11:1: not valid YAML: duplicate mapping key");
    one("#top", "x: [", "conf.yaml:13:3: not valid YAML: ");
    one(
        "#server",
        "threads: many",
        "conf.yaml:4:12: server.threads: is text where it cannot be; write a whole number",
    );
    one(
        "#server",
        "threads: 0",
        "conf.yaml:4:12: server.threads: is out of range; write a whole number from 1 upwards",
    );
    one("#server", "threads: -1", "conf.yaml:4:12: server.threads: is out of range");
    one("#server", "threads: 1.5", "conf.yaml:4:12: server.threads: is out of range");
    one(
        "#server",
        "access_log: true",
        "conf.yaml:4:15: server.access_log: is a boolean, not a word; write one of off, json, text",
    );
    one(
        "#server",
        "access_log: jsno",
        "conf.yaml:4:15: server.access_log: unknown value; did you mean `json`?",
    );
    one(
        "name: demo",
        "name: demo\n    tool_scopes: {drop: []}",
        "conf.yaml:14:25: routes[0].tool_scopes.drop: names no scope; write the scopes that a call needs, or leave the tool out",
    );
    one(
        "name: demo",
        "name: demo\n    tool_scopes: {drop: [\"a b\"]}",
        "conf.yaml:14:26: routes[0].tool_scopes.drop[0]: is not a scope; write one scope per entry",
    );
    let limits = |limits: &str, refusal: &str| {
        one("name: demo", &format!("name: demo\n    limits: [{limits}]"), &format!("conf.yaml:14:{refusal}"));
    };
    limits("{per: [caller]}", "14: routes[0].limits[0]: limits nothing; write `rate`, `concurrent` or both");
    limits(
        "{rate: 10 per second}",
        "21: routes[0].limits[0].rate: is not a rate; write how many in which time",
    );
    for rate in ["0/s", "10/w", "-1/s", "1.5/s", "2000000/s", "/s", "10/"] {
        limits(
            &format!("{{rate: \"{rate}\"}}"),
            "21: routes[0].limits[0].rate: is not a rate; write how many",
        );
    }
    limits(
        "{concurrent: 1, burst: 3}",
        "37: routes[0].limits[0].burst: belongs to a rate; write `rate`, or leave",
    );
    limits(
        "{rate: 1/d, burst: 400}",
        "33: routes[0].limits[0].burst: takes more than a year to come back; write",
    );
    limits("{rate: 1/s, burst: 0}", "33: routes[0].limits[0].burst: is out of range; write a whole number");
    limits("{concurrent: 0}", "27: routes[0].limits[0].concurrent: is out of range; write a whole number");
    limits(
        "{per: [route], rate: 1/s}",
        "21: routes[0].limits[0].per[0]: is needless: a route's limits count its",
    );
    limits(
        "{per: [callers], rate: 1/s}",
        "21: routes[0].limits[0].per[0]: unknown value; did you mean `caller`?",
    );
    limits(
        "{per: [tool, caller], rate: 1/s}, {per: [caller, tool], rate: 60/m, burst: 1}",
        "48: routes[0].limits[1]: is the same as number 0 of this list; leave one out",
    );
    one("name: demo", "name: 7", "conf.yaml:13:11: routes[0].name: is a number, not text; put it in quotes");
    one(
        "#upstream",
        "allow_private: yes",
        "conf.yaml:17:22: routes[0].upstream.allow_private: is text where it cannot be; write true or false",
    );
    one(
        "  - name: demo\n    path",
        "  - path",
        "conf.yaml:13:5: routes[0].name: is missing; write `name: …` (Name of the route, unique",
    );
    one("  public_url: http://127.0.0.1:8080\n", "", "conf.yaml:1:1: server.public_url: is missing");
    one("  public_url: http://127.0.0.1:8080\n", "  public_url:\n", "conf.yaml:2:");
    one(
        "listen: [\"127.0.0.1:8080\"]",
        "listen: 127.0.0.1:8080",
        "conf.yaml:3:11: server.listen: is text where it cannot be; write a list",
    );
    assert!(parse("", "conf.yaml", &Fake::default()).is_err());
    assert!(parse("- a\n", "conf.yaml", &Fake::default()).is_err());
}

#[test]
fn a_redis_has_to_be_reachable_shared_and_private() {
    let keys = "sealing_keys: [{id: k1, env: K1}]\n";
    let cases = [
        ("kind: redis", "store.urls: no address of Redis is given; write `urls:"),
        ("kind: redis, urls: [\"redis://:pw@127.0.0.1\"]", "carries credentials; they belong into"),
        ("kind: redis, urls: [\"http://127.0.0.1\"]", "is not a Redis URL; write"),
        ("kind: redis, urls: [\"redis://127.0.0.1/x\"]", "has a path that is no database number"),
        (
            "kind: redis, urls: [\"redis://127.0.0.1\", \"redis://127.0.0.2\"]",
            "nothing says how they belong together",
        ),
        ("kind: redis, urls: [\"redis://127.0.0.1\"], topology: sentinel", "needs the name of the primary"),
        ("kind: redis, urls: [\"redis://127.0.0.1\"], master: x", "belongs to `topology: sentinel`"),
        ("kind: redis, urls: [\"redis://127.0.0.1/1\"], topology: cluster", "a cluster has just one"),
        (
            "kind: redis, urls: [\"redis://r.example.com\"], password: {env: PW}",
            "without TLS; write rediss://",
        ),
        ("kind: redis, urls: [\"rediss://r.example.com\"]", "and no password is given; write `password:"),
        ("kind: redis, urls: [\"redis://127.0.0.1\"], prefix: \"{x}\"", "store.prefix: is not a prefix"),
        (
            "kind: redis, urls: [\"redis://127.0.0.1\"], ca_file: ca.pem",
            "is for TLS, which the URLs do not ask for",
        ),
        ("kind: redis, urls: [\"rediss://127.0.0.1\"], cert_file: c.pem", "has no key beside it"),
        ("kind: embedded, urls: [\"redis://127.0.0.1\"]", "store.urls: belongs to `kind: redis`"),
    ];
    let key = data_encoding::BASE64.encode(&std::array::from_fn::<u8, 32, _>(|index| index as u8));
    let environment = Fake::default().var("K1", &key).var("PW", "pw").file("c.pem", "no certificate", 0o644);
    for (store, expected) in cases {
        let report = bad(&[("#top", &format!("store: {{{store}}}\n{keys}"))], &environment);
        assert_eq!(report.lines().count(), 1, "{store}: {report}");
        assert!(report.contains(expected), "got  {report}\nwant {expected}");
    }
    let report = bad(&[("#top", "store: {kind: redis, urls: [\"redis://127.0.0.1\"]}")], &environment);
    assert!(report.contains("and none are configured; make one with"), "{report}");
}

#[test]
fn a_sealing_key_may_come_from_a_command() {
    let key = data_encoding::BASE64.encode(&std::array::from_fn::<u8, 32, _>(|index| index as u8));
    let entry = |entry: &str| format!("sealing_keys: [{{id: k1, {entry}}}]");
    let config = good(&[("#top", &entry(&format!("command: [unwrap, \"{key}\"]")))], &Fake::default());
    assert_eq!(config.sealing_keys[0].key.expose_secret()[31], 31);
    for (text, expected) in [
        ("command: [unwrap, short]", "sealing_keys[0].command: holds no base64"),
        ("command: [fails]", "sealing_keys[0].command: the command fails: exit status: 1"),
        ("command: [unwrap, x], env: K", "sealing_keys[0]: names more than one place for a secret"),
    ] {
        let report = bad(&[("#top", &entry(text))], &Fake::default());
        assert!(report.contains(expected), "got  {report}\nwant {expected}");
    }
}

#[test]
fn keys_of_a_store_belong_to_its_kind() {
    one("#top", "store: {urls: [x]}", "conf.yaml:11:15: store.urls: belongs to `kind: redis`");
}

#[test]
fn a_profile_says_what_it_needs_and_knows_what_it_can() {
    one(
        "#route",
        "credential: {profile: gitlab}",
        "conf.yaml:18:27: routes[0].credential.profile: `gitlab` is no provider that is known; write one of atlassian, entra, ",
    );
    one(
        "#route",
        "credential: {profile: github}",
        "conf.yaml:18:17: routes[0].credential.client_id: is missing: at github every application is registered by hand; register",
    );
    one(
        "#route",
        "credential: {kind: none, profile: github}",
        "conf.yaml:18:39: routes[0].credential.profile: belongs to `kind: oauth`",
    );
    let oauth = |written: &str| {
        let config =
            good(&[("#route", &format!("credential: {{client_id: x, {written}}}"))], &Fake::default());
        match &config.routes[0].credential {
            Credential::Oauth(oauth) => oauth.clone(),
            _ => panic!("another kind"),
        }
    };
    let known = oauth("profile: github");
    assert_eq!(known.issuer.as_deref(), Some("https://github.com/login/oauth"));
    assert_eq!(known.token_endpoint.as_deref(), Some("https://github.com/login/oauth/access_token"));
    // An Enterprise server has them elsewhere, and all of them.
    let own = oauth("profile: github, issuer: \"https://git.example.com/login/oauth\"");
    assert_eq!((own.authorization_endpoint, own.token_endpoint), (None, None));
}

#[test]
fn public_url_is_an_origin() {
    let public = |url: &str| ("public_url: http://127.0.0.1:8080", format!("public_url: \"{url}\""));
    for url in [
        "http://mcp.example.com",
        "https://h/x",
        "https://h?x",
        "https://u@h",
        "https://h/#f",
        "ftp://h",
        "h",
        "http://10.0.0.1",
        "https://h:0",
        "https://h/.",
        " https://h",
    ] {
        let (from, to) = public(url);
        one(from, &to, "conf.yaml:2:15: server.public_url: ");
    }
    for (url, origin, authority, port) in [
        ("https://MCP.example.com:443/", "https://mcp.example.com", "mcp.example.com", 443),
        ("https://mcp.example.com:8443", "https://mcp.example.com:8443", "mcp.example.com:8443", 8443),
        ("http://localhost", "http://localhost", "localhost", 80),
        ("http://[::1]:8080", "http://[::1]:8080", "[::1]:8080", 8080),
        ("http://127.9.9.9:1", "http://127.9.9.9:1", "127.9.9.9:1", 1),
    ] {
        let (from, to) = public(url);
        let found = good(&[(from, &to)], &Fake::default()).server.public_url;
        assert_eq!((found.origin(), found.authority(), found.port()), (origin, authority, port));
        assert_eq!(found.is_loopback(), !origin.contains("example"));
        assert_eq!(format!("{}://{}", found.scheme(), found.authority()), origin);
    }
}

#[test]
fn listeners() {
    let listen = |list: &str| format!("listen: {list}");
    let from = "listen: [\"127.0.0.1:8080\"]";
    one(from, &listen("[]"), "conf.yaml:3:11: server.listen: is empty");
    one(from, &listen("[\"localhost:8080\"]"), "conf.yaml:3:12: server.listen[0]: is not an address");
    one(from, &listen("[\"0.0.0.0\"]"), "conf.yaml:3:12: server.listen[0]: is not an address");
    one(
        from,
        &listen("[\"127.0.0.1:1\", \"127.0.0.1:1\"]"),
        "conf.yaml:3:27: server.listen[1]: is listed twice",
    );
    one(
        from,
        &listen("[\"https://127.0.0.1:1\"]"),
        "conf.yaml:3:12: server.listen[0]: has TLS, but there is no certificate",
    );
    one(
        from,
        &listen("[\"127.0.0.1:9090\"]\n  admin: \"127.0.0.1:9090\""),
        "conf.yaml:4:10: server.admin: is also in",
    );
    one("#server", "admin: \"9090\"", "conf.yaml:4:10: server.admin: is not an address");
    one("#server", "drain_timeout: 5", "conf.yaml:4:18: server.drain_timeout: is a number, not text");
    one(
        "#server",
        "drain_timeout: soon",
        "conf.yaml:4:18: server.drain_timeout: is not a duration; write a number with a unit, like 30s",
    );
    one("#server", "allowed_origins: [\"*\"]", "conf.yaml:4:21: server.allowed_origins[0]: is not a URL");
    one(
        "#server",
        "allowed_origins: [\"https://a/b\"]",
        "conf.yaml:4:21: server.allowed_origins[0]: has a path",
    );
    let list = listen("[\"127.0.0.1:0\", \"127.0.0.1:0\", \"http://[::]:1\"]");
    let config = good(
        &[(from, &list), ("#server", "admin: off\n  allowed_origins: [\"https://A.example:443/\"]")],
        &Fake::default(),
    );
    assert_eq!(config.server.admin, None);
    assert_eq!(config.server.listen.len(), 3);
    assert_eq!(config.server.listen[2], Listen { address: "[::]:1".to_owned(), tls: false, proxied: false });
    assert!(config.server.listen[0].is_loopback() && !config.server.listen[2].is_loopback());
    assert_eq!(config.server.allowed_origins, ["https://a.example"]);
}

#[test]
fn certificates_are_proven() {
    let pair = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(["b.example".to_owned()]).unwrap();
    let (cert, key, wrong) =
        (pair.cert.pem(), pair.signing_key.serialize_pem(), other.signing_key.serialize_pem());
    let tls = "tls: {certificates: [{cert_file: c, key_file: k}]}";
    let report = |cert: &str, key: &str| {
        bad(&[("#server", tls)], &Fake::default().file("c", cert, 0o644).file("k", key, 0o600))
    };
    assert!(report(&cert, &wrong).contains("server.tls.certificates[0].key_file: k is not the key of c; "));
    assert!(report("", &key).contains("certificates[0].cert_file: c holds no readable certificate; "));
    assert!(report(&cert, "").contains("certificates[0].key_file: k holds no readable private key; "));
    assert!(report(&cert, &format!("{key}{wrong}")).contains("key_file: k holds 2 private keys; "));
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(report(garbage, &key).contains("cert_file: c holds a certificate that cannot be read; "));
    let garbage = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    assert!(report(&cert, garbage).contains("key_file: k holds a private key that cannot be used; "));
    one("#server", "tls: {certificates: []}", "conf.yaml:4:23: server.tls.certificates: is empty");
    let environment = Fake::default().file("c", &cert, 0o644).file("k", &key, 0o600);
    let listen = "listen: [\"127.0.0.1:1\", \"http://127.0.0.1:2\"]";
    let config = good(&[("#server", tls), ("listen: [\"127.0.0.1:8080\"]", listen)], &environment);
    assert!(config.server.listen[0].tls && !config.server.listen[1].tls);
    one(
        "#top",
        "outbound: {ca_files: [nowhere.pem]}",
        "conf.yaml:11:23: outbound.ca_files[0]: nowhere.pem cannot be read",
    );
    let empty = bad(&[("#top", "outbound: {ca_files: [c]}")], &Fake::default().file("c", &key, 0o600));
    assert!(
        empty.starts_with("conf.yaml:11:23: outbound.ca_files[0]: c holds no readable certificate"),
        "{empty}"
    );
}

#[test]
fn a_certificate_that_ends_soon_is_a_warning() {
    let tls = "tls: {certificates: [{cert_file: c, key_file: k}], client_ca_file: a, client_certificates: ";
    let warnings = |wanted: &str, (shown, vouches): ((i32, u8, u8), (i32, u8, u8))| {
        let made = |(year, month, day)| {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut parameters = rcgen::CertificateParams::new(["a.example".to_owned()]).unwrap();
            parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            parameters.not_after = rcgen::date_time_ymd(year, month, day);
            (parameters.self_signed(&key).unwrap().pem(), key.serialize_pem())
        };
        let ((own, key), (first, _), (later, _)) = (made(shown), made(vouches), made((2060, 1, 1)));
        let environment = Fake::default().file("k", &key, 0o600);
        // Of the chain it is the first that is shown as ours; of authorities, the first to end.
        let environment = environment.file("c", &format!("{own}{}", made((2020, 1, 1)).0), 0o644).file(
            "a",
            &format!("{later}{first}"),
            0o644,
        );
        let config = good(&[("#server", &format!("{tls}{wanted}}}"))], &environment);
        let expiries = config.server.expiries();
        let expiries: Vec<_> = expiries.map(|expiry| (expiry.of.name(), &*expiry.file, expiry.at)).collect();
        (config.warnings.to_string(), format!("{expiries:?}"))
    };
    // It is the 15th of January 2027, 8 o'clock.
    let (said, seen) = warnings("required", ((2027, 1, 30), (2050, 1, 1)));
    assert_eq!(said, "");
    assert_eq!(seen, r#"[("server", "c", 1801267200), ("client_ca", "a", 2524608000)]"#);
    let (said, _) = warnings("optional", ((2027, 1, 29), (2027, 1, 15)));
    let soon = "conf.yaml:4:36: server.tls.certificates[0].cert_file: a certificate of c ends within 14 days: 2027-01-29T00:00:00Z; renew it, and reload";
    let over = "conf.yaml:4:70: server.tls.client_ca_file: a certificate of a has ended: 2027-01-15T00:00:00Z; renew it, and reload";
    assert_eq!(said.lines().collect::<Vec<_>>(), [soon, over]);
    // Nobody is asked for one.
    let (said, seen) = warnings("off", ((2027, 1, 30), (2027, 1, 15)));
    assert_eq!((&*said, &*seen), ("", r#"[("server", "c", 1801267200)]"#));
}

#[test]
fn secrets_are_named_and_never_shown() {
    let header = |value: &str| credential(&format!("kind: header, name: X-Key, value: {value}"));
    for (value, expected) in [
        ("\"\"", "18:52: routes[0].credential.value: is empty; write {env: NAME}"),
        ("12345", "18:52: routes[0].credential.value: is a number where a secret belongs"),
        ("{}", "18:52: routes[0].credential.value: does not say where the secret is"),
        ("{env: A, file: b}", "18:52: routes[0].credential.value: names more than one place"),
        ("{env: UNSET}", "18:58: routes[0].credential.value.env: environment variable UNSET is not set"),
        ("{file: nowhere}", "18:59: routes[0].credential.value.file: nowhere cannot be read"),
        (
            "{credential: c}",
            "18:65: routes[0].credential.value.credential: $CREDENTIALS_DIRECTORY is not set",
        ),
        ("{credential: ../c}", "18:65: routes[0].credential.value.credential: is not the name"),
        ("{evn: A}", "18:53: routes[0].credential.value.evn: unknown key; did you mean `env`?"),
    ] {
        let report = bad(&[("#route", &header(value))], &Fake::default());
        assert!(report.contains(&format!("conf.yaml:{expected}")), "{report}");
        assert!(!report.contains("hunter2") && !report.contains("12345"), "{report}");
    }
    for value in ["hunter2\nhunter2", "", "\n", " hunter2", "hunter2\u{7f}"] {
        let report = bad(&[("#route", &header("{env: KEY}"))], &Fake::default().var("KEY", value));
        assert!(report.contains("routes[0].credential.value"), "{report}");
        assert!(!report.contains("hunter2"), "{report}");
    }
    let config = good(&[("#route", &header("{env: KEY}"))], &Fake::default().var("KEY", "hunter2\n"));
    let Credential::Header { value, .. } = &config.routes[0].credential else { panic!("not header") };
    assert_eq!(value.expose_secret(), "hunter2");
    assert!(!format!("{value:?}").contains("hunter2"));
    assert!(!format!("{:?}", config.login.users["alice"].password_hash).contains("argon2id"));
}

#[test]
fn sr_t31_sealing_keys_are_exact_and_private() {
    let key = |bytes: &[u8]| data_encoding::BASE64.encode(bytes);
    let random: [u8; 32] = std::array::from_fn(|index| (index * 7) as u8);
    let text = "sealing_keys: [{id: k1, file: k}]";
    let report = |content: &str, mode: u32| bad(&[("#top", text)], &Fake::default().file("k", content, mode));
    let start = "conf.yaml:11:31: sealing_keys[0].file: ";
    for mode in [0o644, 0o640, 0o604, 0o602, 0o610] {
        let found = report(&key(&random), mode);
        assert!(
            found.starts_with(&format!("{start}key file k is readable by others; run chmod 600 k")),
            "{found}"
        );
    }
    assert!(report("not base64!", 0o600).starts_with(&format!("{start}holds no base64")));
    assert!(report(&key(&[1, 2, 3]), 0o600).starts_with(&format!("{start}holds 3 bytes, not 32")));
    assert!(report(&key(&[0; 32]), 0o600).starts_with(&format!("{start}holds a placeholder")));
    assert!(report("", 0o600).starts_with(&format!("{start}the secret there is empty")));
    let environment = Fake::default().file("k", &key(&random), 0o600).var("K", &key(&random));
    let twice = "sealing_keys: [{id: k1, file: k}, {id: k1, env: K}]";
    let found = bad(&[("#top", twice)], &environment);
    assert_eq!(found, "conf.yaml:11:40: sealing_keys[1].id: is used twice; give each key an id of its own");
    let found = bad(&[("#top", "sealing_keys: [{id: k.1, env: K}]")], &environment);
    assert!(found.starts_with("conf.yaml:11:21: sealing_keys[0].id: is not a key id"), "{found}");
    let both = "sealing_keys: [{id: k2, env: K}, {id: k1, file: k}]";
    let config = good(&[("#top", both)], &environment);
    assert_eq!(config.sealing_keys.iter().map(|key| key.id.as_str()).collect::<Vec<_>>(), ["k2", "k1"]);
    assert_eq!(config.sealing_keys[0].key.expose_secret(), &random);
}

#[test]
fn lifetimes_have_bounds() {
    let server = |text: &str| format!("oauth_server: {{{text}}}");
    for text in [
        "access_token_ttl: 16m",
        "access_token_ttl: 0s",
        "refresh_token_ttl: 1m",
        "refresh_token_ttl: 90000000d",
        "refresh_replay_window: 61s",
    ] {
        let name = text.split(':').next().unwrap();
        let report = bad(&[("#top", &server(text))], &Fake::default());
        assert!(report.starts_with("conf.yaml:11:"), "{report}");
        assert!(
            report.contains(&format!("oauth_server.{name}: is out of range; write a duration from ")),
            "{report}"
        );
    }
    let text = server(
        "access_token_ttl: 15m, refresh_token_ttl: 15m, refresh_replay_window: 0s, clients: {cimd: {enabled: false}, dcr: {enabled: false}}",
    );
    let found = good(&[("#top", &text)], &Fake::default()).oauth_server;
    assert_eq!(found.access_token_ttl, Duration::from_secs(900));
    assert_eq!(found.refresh_replay_window, Duration::ZERO);
    assert!(!found.cimd.enabled && !found.dcr_enabled);
}

#[test]
fn client_metadata_url_is_a_usable_client_id() {
    for url in [
        "http://a.example/c",
        "https://a.example",
        "https://a.example/",
        "https://a.example/x/../c",
        "https://u@a.example/c",
        "https://a.example/c#f",
    ] {
        let report =
            bad(&[("#top", &format!("oauth_client: {{client_metadata_url: \"{url}\"}}"))], &Fake::default());
        assert!(report.starts_with("conf.yaml:11:37: oauth_client.client_metadata_url: "), "{report}");
    }
    let config =
        good(&[("#top", "oauth_client: {client_metadata_url: \"https://A.example/c\"}")], &Fake::default());
    assert_eq!(config.oauth_client.client_metadata_url.as_deref(), Some("https://A.example/c"));
    good(&[("#top", "oauth_client:")], &Fake::default());
}

#[test]
fn users_and_one_click() {
    one("HASH", "secret", "conf.yaml:10:24: login.local.users[0].password_hash: is not an Argon2id hash");
    let weaker = HASH.replace("argon2id", "argon2i");
    one("HASH", &weaker, "conf.yaml:10:24: login.local.users[0].password_hash: is not an Argon2id hash");
    one(
        "username: alice",
        "username: \" alice\"",
        "conf.yaml:9:19: login.local.users[0].username: is not a user name",
    );
    let twice = format!("#top\n      - {{username: alice, password_hash: \"{HASH}\"}}");
    one("#top", &twice, "conf.yaml:12:20: login.local.users[1].username: is listed twice");
    let users = "\n    #local\n    users:\n      - username: alice\n        password_hash: \"HASH\"";
    one(users, " {}", "conf.yaml:6:10: login.local.users: nobody could sign in");
    one("#local", "one_click: bob", "conf.yaml:7:16: login.local.one_click: is not a listed user");
    assert_eq!(
        good(&[("#local", "one_click: alice")], &Fake::default()).login.one_click.as_deref(),
        Some("alice")
    );
    for (from, to) in [
        ("http://127.0.0.1:8080", "https://mcp.example.com"),
        ("\"127.0.0.1:8080\"", "\"127.0.0.1:8080\", \"0.0.0.0:8081\""),
    ] {
        let report = bad(&[("#local", "one_click: alice"), (from, to)], &Fake::default());
        assert!(
            report.starts_with("conf.yaml:7:16: login.local.one_click: sign-in without a password"),
            "{report}"
        );
    }
}

#[test]
fn paths_are_canonical() {
    for path in ["demo", "/demo", "/demo/", "//demo", "//demo//"] {
        let config = good(&[("path: /demo", &format!("path: {path}"))], &Fake::default());
        assert_eq!(config.routes[0].path, "/demo");
    }
    for path in ["/", "//", "\"\""] {
        assert_eq!(good(&[("path: /demo", &format!("path: {path}"))], &Fake::default()).routes[0].path, "");
    }
    for path in ["/a/../b", "/./a", "/a%20b", "/a?b", "\"/a#b\"", "\"/a\\\\b\"", "\"/a\\tb\"", "/ä", "/a b"]
    {
        one("path: /demo", &format!("path: {path}"), "conf.yaml:14:11: routes[0].path: contains ");
    }
    for path in [
        "/oauth",
        "/oauth/x",
        "/login",
        "/logout",
        "/connections",
        "/.well-known/x",
        "/api",
        "//healthz",
        "/readyz",
        "/metrics",
    ] {
        one("path: /demo", &format!("path: {path}"), "conf.yaml:14:11: routes[0].path: lies under /");
    }
    good(&[("path: /demo", "path: /oauth2")], &Fake::default());
    good(&[("path: /demo", "path: /oauth\n    host: a.example")], &Fake::default());
    one(
        "path: /demo",
        "path: /.well-known/x\n    host: a.example",
        "conf.yaml:14:11: routes[0].path: lies under /.well-known",
    );
    one(
        "path: /demo",
        "path: /oauth\n    host: 127.0.0.1:8080",
        "conf.yaml:14:11: routes[0].path: lies under /oauth",
    );
}

#[test]
fn hosts_and_places() {
    let host = |host: &str| format!("host: \"{host}\"");
    for (written, expected) in [
        ("Files.Example.com", "files.example.com"),
        ("files.example.com:80", "files.example.com"),
        ("files.example.com:443", "files.example.com:443"),
        ("[::1]:8080", "[::1]:8080"),
        ("[::1]", "[::1]"),
        ("10.0.0.7", "10.0.0.7"),
    ] {
        let config = good(&[("path: /demo", &host(written))], &Fake::default());
        assert_eq!(config.routes[0].host.as_deref(), Some(expected));
        assert_eq!(config.routes[0].path, "");
    }
    for written in [
        "",
        "a b",
        "a/b",
        "https://a",
        "a:b",
        "a:0",
        "a:99999",
        "a:+1",
        "ä.example",
        "a..b",
        ".a",
        "::1",
        "1.2.3",
        "u@a",
        "[::1]x",
    ] {
        one("path: /demo", &host(written), "conf.yaml:14:11: routes[0].host: is not a host");
    }
    one("    path: /demo\n", "", "conf.yaml:13:5: routes[0]: has neither path nor host");
    one("name: demo", "name: Demo", "conf.yaml:13:11: routes[0].name: is not a route name");
    let second = |text: &str| format!("#\n  - {{{text}, upstream: {{url: \"https://b.example/\"}}}}");
    one(
        "#route",
        &second("name: demo, path: /b"),
        "conf.yaml:19:12: routes[1].name: is also the name of routes[0]",
    );
    one(
        "#route",
        &second("name: b, path: //demo/"),
        "conf.yaml:19:21: routes[1].path: has the same host and path as route `demo`",
    );
    let public = second("name: b, path: /demo, host: \"127.0.0.1:8080\"");
    one("#route", &public, "conf.yaml:19:21: routes[1].path: has the same host and path as route `demo`");
    good(&[("#route", &second("name: b, path: /demo, host: b.example"))], &Fake::default());
}

#[test]
fn upstream_urls() {
    for url in [
        "http://up.example.com/mcp",
        "https://u:p@h/",
        "https://h/?q",
        "https://h/#f",
        "https://h/a/../b",
        "https://h/%2E%2e/b",
        "ftp://h/",
        "/mcp",
        "https://h:0/",
        "https://h/a b",
    ] {
        one("https://up.example.com/mcp", &format!("\"{url}\""), "conf.yaml:16:12: routes[0].upstream.url: ");
    }
    let config = good(
        &[
            ("https://up.example.com/mcp", "http://UP.example.com:80/mcp/"),
            (
                "#upstream",
                "allow_private: true\n      allow_hosts: [Auth.Example, \"::1\", \"[::2]\", 10.0.0.1]",
            ),
        ],
        &Fake::default(),
    );
    let upstream = &config.routes[0].upstream;
    assert_eq!(upstream.url_as_written, "http://UP.example.com:80/mcp/");
    assert_eq!((upstream.host().as_str(), upstream.base_path()), ("up.example.com", "/mcp"));
    assert_eq!(upstream.private_hosts(), ["up.example.com", "auth.example", "::1", "::2", "10.0.0.1"]);
    assert_eq!(upstream.read_timeout, Duration::ZERO, "streams of an MCP server may be silent");
    for (written, expected) in
        [("read_timeout: 90s", 90), ("read_timeout: 0s", 0), ("read_timeout: 1d", 86_400)]
    {
        let upstream = good(&[("#upstream", written)], &Fake::default()).routes.remove(0).upstream;
        assert_eq!(upstream.read_timeout, Duration::from_secs(expected), "{written}");
    }
    let http = [("#route", "kind: http\n    host: app.example.com")];
    assert_eq!(good(&http, &Fake::default()).routes[0].upstream.read_timeout, Duration::from_secs(3600));
    one(
        "#upstream",
        "read_timeout: 2d",
        "conf.yaml:17:21: routes[0].upstream.read_timeout: is out of range; write a duration from 0s to 1day",
    );
    for host in ["a:80", "https://a", "", "a/b"] {
        one(
            "#upstream",
            &format!("allow_hosts: [\"{host}\"]"),
            "conf.yaml:17:21: routes[0].upstream.allow_hosts[0]: is not a host name",
        );
    }
}

#[test]
fn peers_are_addresses_and_nothing_else() {
    let peers = |text: &str| format!("peers: [{text}]");
    let plain = "peers: [\"Up-1.internal:8080\", {address: \"[2001:200::1]:443\", weight: 3}]";
    let upstream = good(&[("#upstream", plain)], &Fake::default()).routes.remove(0).upstream;
    let pool = upstream.pool.clone().unwrap();
    let expected = [
        Peer { host: "up-1.internal".to_owned(), port: 8080, weight: 1 },
        Peer { host: "2001:200::1".to_owned(), port: 443, weight: 3 },
    ];
    assert_eq!((&pool.peers[..], pool.balance, pool.health), (&expected[..], Balance::RoundRobin, None));
    assert_eq!((pool.slow_start, pool.drain), (Duration::ZERO, Duration::from_secs(600)));
    assert_eq!((upstream.host().as_str(), upstream.private_hosts().len()), ("up.example.com", 0));

    for (peer, what) in [
        ("\"https://a.example:443\"", "is a URL and no address; write host and port alone"),
        ("\"a.example:443/other\"", "has a path"),
        ("\"user@a.example:443\"", "has a user"),
        ("\"a.example:443?x\"", "has a query or fragment"),
        ("\"srv:mcp.example\"", "is no name of a service"),
        ("a.example", "has no port"),
        ("\"a.example:0\"", "has no port"),
        ("\"a.example:+80\"", "has no port"),
        ("\"2001:200::1:443\"", "has no port"),
        ("\"a b:443\"", "is not a host with a port"),
        ("\"0x8.8.8.8:443\"", "is not a host with a port"),
        ("\"10.0.0.1:443\"", "is not a public address; add `allow_private: true`"),
        ("\"[::1]:443\"", "is not a public address"),
        ("\"169.254.169.254:80\"", "is not a public address"),
    ] {
        one("#upstream", &peers(peer), &format!("conf.yaml:17:15: routes[0].upstream.peers[0]: {what}"));
    }
    for (text, what) in [
        (peers("{address: \"a.example:1\", host: b}"), "peers[0].host: unknown key"),
        (peers("{address: \"a.example:1\", path: /x}"), "peers[0].path: unknown key"),
        (peers("{address: \"a.example:1\", weight: 101}"), "peers[0].weight: is out of range"),
        (peers("\"a.example:1\", \"A.example:1\""), "peers[1]: stands here twice"),
        (peers(""), "peers: has none or too many"),
    ] {
        let report = bad(&[("#upstream", &text)], &Fake::default());
        assert!(
            report.contains(&format!("routes[0].upstream.{what}")) && report.lines().count() == 1,
            "{report}"
        );
    }
    // Allowed by name, or with the upstream itself.
    for allowed in ["allow_hosts: [10.0.0.1]", "allow_private: true"] {
        let text = format!("{allowed}\n      peers: [\"10.0.0.1:443\"]");
        good(&[("#upstream", &text)], &Fake::default());
    }
}

#[test]
fn what_is_said_of_peers_needs_some_and_fits_together() {
    for alone in
        ["balance: round_robin", "balance_on: caller", "health: {kind: tcp}", "slow_start: 1s", "drain: 1s"]
    {
        let (name, _) = alone.split_once(':').unwrap();
        let what =
            format!("conf.yaml:17:{}: routes[0].upstream.{name}: says something of peers", 9 + name.len());
        one("#upstream", alone, &what);
    }
    let with = |text: &str| format!("peers: [\"a.example:1\"]\n      {text}");
    for (text, what) in [
        ("balance: random", "balance: unknown value"),
        ("balance_on: caller", "balance_on: belongs to `balance: consistent`"),
        ("health: {kind: http}", "health.path: is missing"),
        ("health: {kind: http, path: healthz}", "health.path: is no path"),
        ("health: {kind: http, path: \"/a/../b\"}", "health.path: is no path"),
        ("health: {kind: mcp, path: /x}", "health.path: belongs to `kind: http`"),
        ("health: {kind: udp}", "health.kind: unknown value"),
        ("health: {kind: tcp, interval: 1ms}", "health.interval: is out of range"),
        ("health: {kind: tcp, timeout: 2h}", "health.timeout: is out of range"),
        ("health: {kind: tcp, unhealthy: 101}", "health.unhealthy: is out of range"),
        ("slow_start: 2h", "slow_start: is out of range"),
        ("drain: 2d", "drain: is out of range"),
    ] {
        let report = bad(&[("#upstream", &with(text))], &Fake::default());
        assert!(
            report.contains(&format!("routes[0].upstream.{what}")) && report.lines().count() == 1,
            "{report}"
        );
    }
    let text = with(
        "balance: consistent\n      balance_on: mcp-name\n      health: {kind: http, path: \"/h?x=1\", interval: 1s}\n      slow_start: 30s",
    );
    let pool = good(&[("#upstream", &text)], &Fake::default()).routes.remove(0).upstream.pool.unwrap();
    assert_eq!((pool.balance, pool.balance_on), (Balance::Consistent, BalanceOn::McpName));
    let health = Health {
        probe: Probe::Http("/h?x=1".to_owned()),
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(2),
        healthy: 2,
        unhealthy: 3,
    };
    assert_eq!((pool.health, pool.slow_start), (Some(health), Duration::from_secs(30)));
}

#[test]
fn injected_tokens_come_from_a_provider_that_there_is() {
    let providers = "login:\n  oidc: [{name: corp, issuer: \"https://idp.example.com\", client_id: p}]\n";
    let trusts = "trusted_issuers: [{name: other, issuer: \"https://other.example.com\"}]";
    let found = |credential: &str, more: &str| {
        let line = format!("credential: {{{credential}}}{more}");
        bad(&[("#route", &line), ("login:\n", providers), ("#top", trusts)], &Fake::default())
    };
    for (credential, expected) in [
        (
            "kind: upstream_inject",
            "credential.provider: is missing; write the `name` of an entry of `login.oidc`",
        ),
        ("kind: upstream_inject, provider: \"\"", "credential.provider: is empty; write the `name`"),
        ("kind: upstream_inject, provider: other", "credential.provider: `other` is no identity provider"),
        ("kind: upstream_inject, provider: corp, scopes: [x]", "credential.scopes: belongs to `kind: oauth`"),
        ("kind: none, provider: corp", "credential.provider: belongs to `kind: upstream_inject`"),
    ] {
        let report = found(credential, "");
        assert!(report.contains(expected), "{credential}: {report}");
    }
    let aws = |more: &str| format!("kind: aws_sigv4, region: r, service: s, subject_provider: corp, {more}");
    let role = "arn:aws:iam::123456789012:role/a";
    for (credential, expected) in [
        (
            "kind: aws_sigv4".to_owned(),
            "credential.region: is missing; write it as AWS does, like eu-central-1",
        ),
        ("kind: aws_sigv4".to_owned(), "credential.subject_provider: is missing"),
        ("kind: aws_sigv4, region: EU".to_owned(), "credential.region: is no name that AWS gives"),
        (aws("duration: 1h"), "credential.roles: names no role; write `roles`, `fallback_role` or both"),
        (
            aws("fallback_role: admin"),
            "credential.fallback_role: is not the ARN of a role; write it like arn:aws:iam:",
        ),
        (
            aws("fallback_role: \"arn:aws:iam::1:role/a\""),
            "credential.fallback_role: is not the ARN of a role",
        ),
        (
            aws(&format!("roles: [{{claim: groups, values: [], arn: \"{role}\"}}]")),
            "credential.roles[0].values: names no value",
        ),
        (
            aws(&format!("roles: [{{claim: \"\", values: [x], arn: \"{role}\"}}]")),
            "credential.roles[0].claim: is empty",
        ),
        (
            aws(&format!(
                "roles: [{{when: \"caller.email.endsWith('@example.com') &&\n caller.groups == 1\", arn: \"{role}\"}}]"
            )),
            "credential.roles[0].when: line 1, column ",
        ),
        (
            aws(&format!("roles: [{{when: \"caller.machine || mcp.tool == 'x'\", arn: \"{role}\"}}]")),
            "credential.roles[0].when: line 1, column 22 of the expression: `mcp.tool` has no place here; write one of caller.subject",
        ),
        (
            aws(&format!("roles: [{{when: caller.machine, claim: groups, arn: \"{role}\"}}]")),
            "credential.roles[0].when: stands beside `claim` or `values`",
        ),
        (aws(&format!("roles: [{{arn: \"{role}\"}}]")), "credential.roles[0].claim: is missing"),
        (
            aws(&format!("fallback_role: \"{role}\", duration: 10m")),
            "credential.duration: is out of range; write a duration from 15m to 12h",
        ),
        (
            aws(&format!("fallback_role: \"{role}\", sts_endpoint: \"http://sts.example.com\"")),
            "credential.sts_endpoint: is http; write https://, or add sts.example.com to `upstream.allow_hosts`",
        ),
        ("kind: none, region: r".to_owned(), "credential.region: belongs to `kind: aws_sigv4`"),
    ] {
        let report = found(&credential, "");
        assert!(report.contains(expected), "{credential}: {report}");
    }
    let report = found("kind: upstream_inject, provider: corp", "\n    trusted_issuers: [other]");
    assert!(
        report.contains(
            "trusted_issuers: needs connections of users of `other`, who cannot sign in here to make them"
        ),
        "{report}"
    );
}

#[test]
fn header_credentials() {
    let environment = Fake::default().var("KEY", "hunter2");
    let report = |text: &str| bad(&[("#route", &credential(text))], &environment);
    for name in [
        "Host",
        "Connection",
        "TE",
        "Content-Length",
        "Content-Type",
        "Mcp-Session-Id",
        "X-Forwarded-For",
        "Last-Event-ID",
        "a b",
    ] {
        let found = report(&format!("kind: header, name: {name}, value: {{env: KEY}}"));
        assert!(found.starts_with("conf.yaml:18:38: routes[0].credential.name: is "), "{found}");
    }
    let found = report("kind: header");
    assert!(
        found.contains("credential.name: is missing") && found.contains("credential.value: is missing"),
        "{found}"
    );
    for format in ["Bearer", "{value}{value}"] {
        let found = report(&format!("kind: header, name: A, value: {{env: KEY}}, format: \"{format}\""));
        assert!(found.contains("credential.format: does not say where the secret goes"), "{found}");
    }
    let found = report("kind: header, name: A, value: {env: KEY}, client_id: x");
    assert!(found.contains("credential.client_id: belongs to `kind: oauth`"), "{found}");
    let found = report("value: {env: KEY}");
    assert!(found.contains("credential.value: belongs to `kind: header`"), "{found}");
    let found = report("kind: none, format: x");
    assert!(found.contains("credential.format: belongs to `kind: header`"), "{found}");
}

#[test]
fn oauth_credentials() {
    let environment = Fake::default().var("KEY", "hunter2");
    let report = |text: &str| bad(&[("#route", &credential(text))], &environment);
    for (text, expected) in [
        ("client_secret: {env: KEY}", "client_id: is missing"),
        (
            "client_id: a, client_secret: {env: KEY}, token_endpoint_auth_method: none",
            "token_endpoint_auth_method: needs no client_secret",
        ),
        (
            "client_id: a, token_endpoint_auth_method: client_secret_post",
            "token_endpoint_auth_method: needs a client_secret",
        ),
        ("token_endpoint_auth_method: private", "token_endpoint_auth_method: unknown value"),
        (
            "issuer: \"http://auth.example\"",
            "issuer: is http; write https://, or add auth.example to `upstream.allow_hosts`",
        ),
        ("issuer: \"https://auth.example?x\"", "issuer: contains a query"),
        ("resource: \"not absolute\"", "resource: is not a resource indicator"),
        ("resource: \"https://a/#f\"", "resource: is not a resource indicator"),
        ("scopes: [\"a b\"]", "scopes[0]: is not a scope"),
        (
            "authorization_params: {state: x}",
            "authorization_params.state: is a parameter that Postern sets itself",
        ),
    ] {
        let found = report(text);
        assert!(found.contains(&format!("routes[0].credential.{expected}")), "{found}");
        assert_eq!(found.lines().count(), 1, "{found}");
    }
    // One of the two stands in for the one that is discovered.
    for one in ["token_endpoint: \"https://a/t\"", "authorization_endpoint: \"https://a/t\""] {
        good(&[("#route", &credential(one))], &environment);
    }
    let text = credential(
        "client_id: a, client_secret: {env: KEY}, issuer: \"http://auth.example\", \
         authorization_endpoint: \"https://a/x?y=z\", token_endpoint: \"https://a/t\", resource: \"urn:x\", \
         token_endpoint_auth_method: client_secret_post, scopes: [], authorization_params: {prompt: login}",
    );
    let config = good(
        &[
            ("#route", &format!("scopes: [\"x:y\", \"x:y\"]\n    {text}")),
            ("#upstream", "allow_hosts: [auth.example]"),
        ],
        &environment,
    );
    let Credential::Oauth(oauth) = &config.routes[0].credential else { panic!("not oauth") };
    assert_eq!(oauth.issuer.as_deref(), Some("http://auth.example"));
    assert_eq!(oauth.authorization_endpoint.as_deref(), Some("https://a/x?y=z"));
    assert_eq!(oauth.token_endpoint_auth_method, Some(TokenEndpointAuthMethod::ClientSecretPost));
    assert_eq!(oauth.scopes, Some(Vec::new()));
    assert_eq!(oauth.authorization_params["prompt"], "login");
    assert_eq!(config.routes[0].scopes, ["x:y"]);
}

#[test]
fn files_that_cannot_be_loaded() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("none.yaml");
    let report = load(&path).err().unwrap().to_string();
    assert!(report.starts_with(&format!("{}: cannot be read: ", path.display())), "{report}");
    std::fs::write(&path, [0xff, 0xfe, 0x00]).unwrap();
    assert!(load(&path).err().unwrap().to_string().contains("is not UTF-8 text"));
    std::fs::write(&path, MINIMAL).unwrap();
    assert!(load(&path).is_ok());
}

#[test]
fn shipped_files_load_as_they_stand() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf");
    for name in ["postern.yaml", "demo.yaml"] {
        let text = std::fs::read_to_string(directory.join(name)).unwrap();
        assert!(text.starts_with("# yaml-language-server: $schema=./postern.schema.json\n"), "{name}");
        if let Err(report) = parse(&text, name, &Fake::default()) {
            panic!("{report}");
        }
    }
    let demo = load(&directory.join("demo.yaml")).unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(demo.login.one_click.as_deref(), Some("demo"));
    let hash =
        argon2::password_hash::phc::PasswordHash::new(demo.login.users["demo"].password_hash.expose_secret())
            .unwrap();
    argon2::PasswordVerifier::verify_password(&argon2::Argon2::default(), b"demo", &hash).unwrap();
}

/// What the commented file says of each limit is what counts where nothing is written.
#[test]
fn limits_as_they_ship_are_the_usual_ones() {
    let minimal = parse(MINIMAL, "conf.yaml", &Fake::default()).unwrap_or_else(|report| panic!("{report}"));
    let shipped = include_str!("../../conf/postern.yaml");
    let shipped =
        parse(shipped, "postern.yaml", &Fake::default()).unwrap_or_else(|report| panic!("{report}"));
    assert_eq!((minimal.limits, shipped.limits), (Limits::default(), Limits::default()));
}

#[test]
fn examples_are_right_as_they_are() {
    let pair = rcgen::generate_simple_self_signed(["mcp.example.com".to_owned()]).unwrap();
    let (cert, key) = (pair.cert.pem(), pair.signing_key.serialize_pem());
    let names = ["IDP", "GITHUB", "ENTRA", "GOOGLE", "SLACK", "ATLASSIAN"];
    let fake = names.iter().fold(Fake::default(), |fake, name| fake.var(&format!("{name}_SECRET"), "x"));
    let fake = fake.file("/etc/postern/tls.crt", &cert, 0o644).file("/etc/postern/tls.key", &key, 0o600);
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/examples");
    let mut profiles = Vec::new();
    for file in std::fs::read_dir(directory).unwrap() {
        let path = file.unwrap().path();
        let name = path.display().to_string();
        let text = std::fs::read_to_string(&path).unwrap();
        let config = parse(&text, &name, &fake).unwrap_or_else(|report| panic!("{report}"));
        profiles.extend(config.routes.into_iter().filter_map(|route| match route.credential {
            Credential::Oauth(oauth) => {
                let issuer =
                    oauth.issuer.clone().unwrap_or_else(|| route.upstream.url.origin().ascii_serialization());
                Some(oauth.profile_at(&issuer).name)
            }
            _ => None,
        }));
    }
    profiles.retain(|name| *name != "standard");
    profiles.sort_unstable();
    assert_eq!(profiles, Profile::names().collect::<Vec<_>>(), "one example each");
}

/// Every key of the schema is named in the commented file, except those that are not there yet.
#[test]
fn shipped_file_names_every_key() {
    let text = include_str!("../../conf/postern.yaml");
    let schema = schema();
    let mut sections = vec![&schema];
    sections.extend(schema["$defs"].as_object().unwrap().values());
    for (name, of) in sections.iter().filter_map(|of| of["properties"].as_object()).flatten() {
        let later = of["description"].as_str().is_some_and(|text| text.starts_with("Not yet"));
        let named = text.contains(&format!("{name}:"));
        assert!(later || named, "{name} is missing in conf/postern.yaml");
    }
}

#[test]
fn what_tokens_of_other_issuers_are_for_is_no_other_place() {
    let found = |audience: &str, takes: &str| {
        let issuer = format!(
            "trusted_issuers: [{{name: other, issuer: \"https://other.example.com\", audience: \"{audience}\"}}]"
        );
        let routes = format!(
            "trusted_issuers: [other]\n    credential: {{kind: none}}\n  - {{name: mail, path: /mail, upstream: {{url: \"https://mail.example.com/mcp/\"}}, credential: {{kind: none}}, trusted_issuers: {takes}}}"
        );
        let changes = [("#route", routes.as_str()), ("#top", issuer.as_str())];
        parse(&base(&changes), "test", &Fake::default()).err().map(|report| report.to_string())
    };
    // V-07. Under the name of the only route that takes them they are for that.
    for (audience, takes) in [
        ("http://127.0.0.1:8080/demo", "[]"),
        ("http://127.0.0.1:8080", "[other]"),
        ("http://127.0.0.1:8080/mailbox", "[other]"),
        ("api://postern", "[other]"),
        ("mail", "[other]"),
    ] {
        assert_eq!(found(audience, takes), None, "{audience} {takes}");
    }
    for (audience, takes, expected) in [
        (
            "http://127.0.0.1:8080/mail",
            "[other]",
            "is the resource of route `mail`, whose tokens would be taken at route `demo`",
        ),
        (
            "HTTP://127.0.0.1:8080/demo/",
            "[other]",
            "is the resource of route `demo`, whose tokens would be taken at route `mail`",
        ),
        ("http://127.0.0.1:8080/mail", "[]", "is the resource of route `mail`"),
        ("https://mail.example.com/mcp", "[other]", "is the upstream of route `mail`"),
        ("https://MAIL.example.com:443/mcp/", "[]", "is the upstream of route `mail`"),
    ] {
        let report = found(audience, takes).unwrap_or_default();
        assert!(
            report.contains(&format!("trusted_issuers[0].audience: {expected}")),
            "{audience} {takes}: {report}"
        );
    }
}

#[test]
fn schema_file_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/postern.schema.json");
    let written: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert!(written == schema(), "run: postern schema > conf/postern.schema.json");
}

#[test]
fn tokens_of_ours_are_for_other_routes_that_take_them() {
    let trusts = "trusted_issuers: [{name: other, issuer: \"https://other.example.com\"}]";
    let found = |line: &str, more: &str| {
        let routes = format!(
            "{line}\n  - {{name: theirs, path: /theirs, upstream: {{url: \"https://a.example.com/mcp\"}}, credential: {{kind: none}}, trusted_issuers: [other]}}{more}"
        );
        bad(&[("#route", &routes), ("#top", trusts)], &Fake::default())
    };
    for (credential, expected) in [
        ("kind: postern_token", "credential.routes: is missing"),
        ("kind: postern_token, routes: []", "credential.routes: is empty"),
        ("kind: postern_token, routes: [nowhere]", "credential.routes[0]: `nowhere` is no route"),
        ("kind: postern_token, routes: [demo]", "credential.routes[0]: is the route itself"),
        (
            "kind: postern_token, routes: [theirs]",
            "credential.routes[0]: `theirs` takes tokens of other issuers alone",
        ),
        ("kind: none, routes: [theirs]", "credential.routes: belongs to `kind: postern_token`"),
    ] {
        let report = found(&format!("credential: {{{credential}}}"), "");
        assert!(report.contains(expected), "{credential}: {report}");
    }
    let beside = "\n    trusted_issuers: [other]";
    let report = found(&format!("credential: {{kind: postern_token, routes: [theirs]}}{beside}"), "");
    assert!(report.contains("which are not ours at this route"), "{report}");
}

#[test]
fn header_credentials_of_each_user() {
    let report = |text: &str| bad(&[("#route", &credential(text))], &Fake::default().var("KEY", "hunter2"));
    for (text, expected) in [
        ("kind: header, per_user: true", "credential.name: is missing"),
        (
            "kind: header, per_user: true, name: X-Key, value: {env: KEY}",
            "credential.value: stands beside `per_user: true`",
        ),
        (
            "kind: header, per_user: true, name: X-Key, format: x",
            "credential.format: does not say where the secret goes",
        ),
        (
            "kind: header, name: X-Key, value: {env: KEY}, hint: there",
            "credential.hint: belongs to `per_user: true`",
        ),
        ("kind: oauth, per_user: true", "credential.per_user: belongs to `kind: header`"),
    ] {
        assert!(report(text).contains(expected), "{text}: {}", report(text));
    }
}

/// What is wrong with a credential that is exchanged, among a provider `corp` and an issuer `other`.
fn exchange_problems(credential: &str) -> Vec<String> {
    let providers = "login:\n  oidc: [{name: corp, issuer: \"https://idp.example.com\", client_id: p}]\n";
    let route = format!("credential: {{{credential}}}");
    let environment = Fake::default().var("KEY", "hunter2");
    let text = base(&[("#route", &route), ("login:\n", providers), ("path: /demo", "host: own.example.com")]);
    match parse(&text, "conf.yaml", &environment) {
        Ok(_) => Vec::new(),
        Err(report) => report.to_string().lines().map(str::to_owned).collect(),
    }
}

#[test]
fn what_exchanges_need_and_what_they_may_not_say() {
    const AT: &str = "token_endpoint: \"https://as.example.com/token\", client_id: us";
    const SECRET: &str = "client_secret: {env: KEY}";
    let own = format!("kind: client_credentials, {AT}, {SECRET}");
    let user = format!("kind: token_exchange, {AT}, {SECRET}");
    let obo = "kind: entra_obo, subject_provider: corp, scopes: [\"api://x/.default\"]";
    for good in [
        own.clone(),
        format!("kind: client_credentials, {AT}, token_endpoint_auth_method: private_key_jwt"),
        format!("{own}, audience: files, resource: [\"https://r1.example\", \"urn:r2\"], params: {{tenant: t}}"),
        format!("{own}, name: X-Api-Key, format: \"key={{value}}\", scopes: [read]"),
        "kind: client_credentials, issuer: \"https://as.example.com\", client_id: us, client_secret: {env: KEY}".into(),
        user.clone(),
        format!("{user}, subject: caller, actor: self, requested_token_type: \"urn:x:y\""),
        format!("{user}, subject_provider: corp, subject_token: id, actor_token: {{env: KEY}}, actor_token_type: \"urn:a\""),
        format!("{user}, form: assertion, audience: [a, b]"),
        format!("kind: token_exchange, {AT}, token_endpoint_auth_method: none"),
        format!("{obo}, tenant: from_user, token_endpoint_auth_method: private_key_jwt"),
        format!("{obo}, tenant: contoso.example, client_id: us, {SECRET}"),
        format!("kind: id_jag, subject_provider: corp, issuer: \"https://as.example.com\", client_id: us, {SECRET}"),
        format!("kind: id_jag, subject_provider: corp, audience: \"https://as.example.com\", {AT}, {SECRET}"),
        format!("kind: id_jag, subject_provider: corp, client_id: us, {SECRET}"),
        format!("{obo}, token_endpoint: \"https://as.example.com/token\", client_id: us, {SECRET}"),
    ] {
        assert_eq!(exchange_problems(&good), [""; 0], "{good}");
    }
    for (bad, expected) in [
        (format!("kind: client_credentials, client_id: us, {SECRET}"), "token_endpoint: is missing"),
        ("kind: client_credentials, token_endpoint: \"https://as.example.com/t\", client_secret: {env: KEY}".into(), "client_id: is missing"),
        (own.replace("client_id: us", "client_id: \"\""), "client_id: is empty"),
        (format!("kind: client_credentials, {AT}"), "client_secret: is missing"),
        (format!("kind: client_credentials, {AT}, token_endpoint_auth_method: none"), "token_endpoint_auth_method: is none"),
        (format!("{own}, token_endpoint_auth_method: private_key_jwt"), "token_endpoint_auth_method: needs no client_secret"),
        (own.replace("https://as.example.com", "http://as.example.com"), "token_endpoint: is http"),
        (own.replace("https://as", "//as"), "token_endpoint: is not a URL"),
        // V-13: who names nobody means nobody.
        (format!("{own}, audience: []"), "audience: names nobody"),
        (format!("{own}, audience: \"\""), "audience: names nobody"),
        (format!("{own}, audience: [a, \" \"]"), "audience: names nobody"),
        (format!("{own}, resource: [\"/files\"]"), "resource: is not a resource indicator"),
        (format!("{own}, resource: 7"), "resource: is a number, not text"),
        (format!("{own}, params: {{scope: x}}"), "params.scope: is a parameter that Postern sets itself"),
        (format!("{own}, name: Host"), "name: is a header that a credential cannot set"),
        (format!("{own}, format: Bearer"), "format: does not say where the secret goes"),
        (format!("{own}, format: \" {{value}}\""), "format: makes a header value"),
        (format!("{own}, subject_provider: corp"), "subject_provider: belongs to `kind: token_exchange`"),
        (format!("{own}, authorization_params: {{a: b}}"), "authorization_params: belongs to `kind: oauth`"),
        // V-07: it would come back as a caller's.
        (format!("{own}, audience: \"http://127.0.0.1:8080/demo\""), "audience: is Postern itself"),
        (format!("{own}, resource: \"http://own.example.com/\""), "resource: is Postern itself"),
        (own.replace("https://as.example.com/token", "http://127.0.0.1:8080/oauth/token"), "token_endpoint: is Postern itself"),
        (format!("{user}, issuer: \"http://OWN.example.com:80\""), "issuer: is Postern itself"),
        // V-02, V-06.
        (format!("{user}, subject_provider: other"), "subject_provider: `other` is no identity provider"),
        (format!("{user}, subject_provider: \"\""), "subject_provider: is empty"),
        (format!("{user}, subject: caller, subject_provider: corp"), "subject: is the caller"),
        (format!("{user}, subject: user"), "subject: unknown value"),
        (format!("{user}, subject_token: id"), "subject_token: has no `subject_provider` beside it"),
        (format!("{user}, subject_token_type: access_token"), "subject_token_type: is not a type of token"),
        (format!("{user}, actor: self, actor_token: {{env: KEY}}"), "actor: is there beside `actor_token`"),
        (format!("{user}, actor_token_type: \"urn:a\""), "actor_token_type: has no `actor_token`"),
        (format!("{user}, actor_token: {{env: NONE}}"), "actor_token.env: environment variable NONE is not set"),
        (format!("{user}, form: assertion, actor: self"), "actor: belongs to `form: exchange`"),
        (format!("{user}, form: assertion, requested_token_type: \"urn:a\""), "requested_token_type: belongs to `form: exchange`"),
        ("kind: oauth, resource: [\"https://a.example\"]".into(), "resource: is a list"),
        (obo.into(), "tenant: is missing"),
        (format!("kind: id_jag, subject_provider: corp, {AT}, {SECRET}"), "audience: is missing"),
        (format!("kind: id_jag, {AT}, {SECRET}, audience: x"), "subject_provider: is missing"),
        (format!("{obo}, tenant: \"a/b\""), "tenant: is not a tenant"),
        (format!("{obo}, tenant: common, token_endpoint: \"https://as.example.com/token\""), "tenant: has no place in `token_endpoint`"),
        // The provider has no secret here.
        (format!("{obo}, tenant: common"), "token_endpoint_auth_method: does not fit the client"),
        (format!("{obo}, tenant: common, {SECRET}"), "client_id: is missing beside `client_secret`"),
        (format!("{obo}, tenant: common, resource: \"urn:x\""), "resource: belongs to `kind: oauth`"),
        (format!("{obo}, tenant: common, audience: x"), "audience: belongs to `kind: client_credentials`"),
        (obo.replace("corp", "other"), "subject_provider: `other` is no identity provider"),
        ("kind: entra_obo, tenant: common".into(), "subject_provider: is missing"),
        ("kind: entra_obo, tenant: common, subject_provider: corp".into(), "scopes: names no scope"),
    ] {
        let found = exchange_problems(&bad);
        let expected = format!("routes[0].credential.{expected}");
        assert!(found.iter().any(|line| line.contains(&expected)), "{bad}: {found:?} lacks {expected}");
    }
    // All of it at once.
    let found =
        exchange_problems("kind: token_exchange, subject_provider: x, audience: [], params: {scope: y}");
    assert_eq!(found.len(), 6, "{found:?}");
}

#[test]
fn who_lets_clients_act_for_their_people_is_a_provider_by_its_name() {
    let providers = "login:\n  oidc: [{name: corp, issuer: \"https://idp.example.com\", client_id: p}]\n";
    let environment = Fake::default().var("KEY", "hunter2");
    let agent = |issuers: &str, client: &str| {
        format!(
            "oauth_server: {{id_jag: {{issuers: {issuers}}}, clients: {{static: [{{client_id: agent{client}}}]}}}}"
        )
    };
    const SECRET: &str = ", client_secret: {env: KEY}";
    let text = agent("[corp]", SECRET);
    let found = good(&[("#top", &text), ("login:\n", providers)], &environment).oauth_server;
    assert_eq!((found.id_jag.as_slice(), found.listed.len()), (["corp".to_owned()].as_slice(), 1));
    // V-02, V-06.
    for (issuers, client, expected) in [
        ("[other]", SECRET, "oauth_server.id_jag.issuers[0]: `other` is no identity provider"),
        ("[corp, \"\"]", SECRET, "oauth_server.id_jag.issuers[1]: is empty"),
        ("[]", SECRET, "oauth_server.id_jag.issuers: is empty"),
        ("[corp, corp]", SECRET, "oauth_server.id_jag.issuers[1]: is listed twice"),
        ("[corp]", "", "oauth_server.clients.static[0]: can do nothing"),
        ("[other]", SECRET, "oauth_server.clients.static[0]: can do nothing"),
    ] {
        let report = bad(&[("#top", &agent(issuers, client)), ("login:\n", providers)], &environment);
        assert!(report.contains(expected), "{report} lacks {expected}");
    }
    let report = bad(&[("#top", &text)], &environment);
    assert!(report.contains("`corp` is no identity provider, and `login.oidc` has none"), "{report}");
}

#[test]
fn a_secret_in_the_file_is_for_one_machine_alone() {
    let header = [("#route", &*credential("kind: header, name: X-Key, value: hunter2-plain"))];
    let config = good(&header, &Fake::default());
    let warning =
        "conf.yaml:18:52: routes[0].credential.value: a secret stands in the file itself; write {env: NAME}";
    assert!(config.warnings.to_string().starts_with(warning), "{}", config.warnings);
    assert!(
        matches!(&config.routes[0].credential, Credential::Header { value, .. } if value.expose_secret() == "hunter2-plain")
    );
    let elsewhere = ("public_url: http://127.0.0.1:8080", "public_url: https://gw.example.com");
    let report = bad(&[header[0], elsewhere], &Fake::default());
    assert!(report.contains("credential.value: a secret does not stand in the file itself"), "{report}");
    assert!(!report.contains("hunter2") && !config.warnings.to_string().contains("hunter2"));
}

#[test]
fn an_empty_client_secret_means_a_public_client() {
    let providers = "login:\n  oidc: [{name: corp, issuer: \"https://idp.example.com\", client_id: p, client_secret: \"\"}]\n";
    let clients = "oauth_server: {clients: {static: [{client_id: c, client_secret: \"\", redirect_uris: [\"https://c.example.com/back\"]}]}}";
    let route =
        credential("kind: oauth, client_id: c, client_secret: \"\", token_endpoint_auth_method: none");
    let config = good(&[("login:\n", providers), ("#top", clients), ("#route", &route)], &Fake::default());
    assert!(config.login.providers[0].client_secret.is_none());
    assert!(
        matches!(&config.routes[0].credential, Credential::Oauth(oauth) if oauth.client_secret.is_none())
    );
    assert!(matches!(config.oauth_server.listed["c"].authentication, ListedAuthentication::None));
    assert_eq!(config.warnings.problems, []);
}

#[test]
fn what_works_and_is_hardly_meant_is_said() {
    let providers = "login:\n  oidc: [{name: corp, issuer: \"https://idp.example.com\", client_id: p}]\n";
    let warnings = |credential: &str| {
        let route = format!("credential: {{{credential}}}");
        let environment = Fake::default().var("KEY", "hunter2");
        good(&[("login:\n", providers), ("#route", &route)], &environment).warnings.to_string()
    };
    // V-09: whoever comes in with a password goes on to the provider.
    assert_eq!(warnings("kind: upstream_inject, provider: corp"), "");
    // V-03.
    let at =
        "kind: token_exchange, issuer: \"https://as.example.com\", client_id: us, client_secret: {env: KEY}";
    let silent = warnings(at);
    assert!(silent.contains("credential: exchanges a JWT about the user that Postern signs"), "{silent}");
    assert_eq!(warnings(&format!("{at}, subject: caller")), "");
    // V-04.
    let report = bad(
        &[("#top", "trusted_issuers: [{name: us, issuer: \"http://127.0.0.1:8080/\", allow_private: true}]")],
        &Fake::default(),
    );
    assert!(report.contains("trusted_issuers[0].issuer: is Postern itself"), "{report}");
}

#[test]
fn traces_have_a_collector_a_share_and_headers_of_their_own() {
    let traces = |text: &str| format!("telemetry: {{traces: {{{text}}}}}");
    let environment = Fake::default().var("KEY", "hunter2\n").var("BAD", "hunter2\u{7f}");
    let good = |text: &str| good(&[("#top", &traces(text))], &environment).traces.unwrap();
    let least = good("endpoint: \"http://[::1]:4318\"");
    assert_eq!((&*least.endpoint, &*least.host), ("http://[::1]:4318/v1/traces", "::1"));
    assert_eq!((least.sample, least.follow_clients, &*least.service_name), (0.01, true, "postern"));
    let most = good(
        "endpoint: \"https://c.example.com/otlp\", sample: 1, follow_clients: false, headers: {X-Key: {env: KEY}}",
    );
    assert_eq!(
        (&*most.endpoint, most.sample, most.follow_clients),
        ("https://c.example.com/otlp", 1.0, false)
    );
    assert_eq!(most.headers["x-key"], "hunter2");
    assert!(!format!("{:?}", most.headers).contains("hunter2"));

    let there = "endpoint: \"http://c:4318\"";
    for (text, expected) in [
        ("sample: 1".to_owned(), "21: telemetry.traces.endpoint: is missing"),
        ("endpoint: \"c:4318\"".to_owned(), "32: telemetry.traces.endpoint: is not an http or https URL"),
        (
            "endpoint: \"grpc://c:4317\"".to_owned(),
            "32: telemetry.traces.endpoint: is not an http or https URL",
        ),
        (
            "endpoint: \"http://u:p@c\"".to_owned(),
            "32: telemetry.traces.endpoint: contains a user name or password",
        ),
        (
            format!("{there}, sample: 1.1"),
            "57: telemetry.traces.sample: is out of range; write a number from 0 to 1",
        ),
        (
            format!("{there}, sample: -0.1"),
            "57: telemetry.traces.sample: is out of range; write a number from 0 to 1",
        ),
        (format!("{there}, sample: .nan"), "57: not valid YAML: "),
        (
            format!("{there}, sample: some"),
            "57: telemetry.traces.sample: is text where it cannot be; write a number",
        ),
        (
            format!("{there}, follow_clients: 1"),
            "65: telemetry.traces.follow_clients: is a number where it cannot be",
        ),
        (format!("{there}, protocol: grpc"), "49: telemetry.traces.protocol: unknown key"),
        (
            format!("{there}, headers: {{a b: {{env: KEY}}}}"),
            "64: telemetry.traces.headers.a b: is not the name of a header",
        ),
        (
            format!("{there}, headers: {{Content-Type: {{env: KEY}}}}"),
            "73: telemetry.traces.headers.Content-Type: belongs to the message or the connection",
        ),
        (
            format!("{there}, headers: {{X-Key: {{env: KEY}}, x-key: {{env: KEY}}}}"),
            "85: telemetry.traces.headers.x-key: stands here twice",
        ),
        (
            format!("{there}, headers: {{X-Key: {{env: UNSET}}}}"),
            "72: telemetry.traces.headers.X-Key.env: environment variable UNSET",
        ),
        (
            format!("{there}, headers: {{X-Key: {{env: BAD}}}}"),
            "66: telemetry.traces.headers.X-Key: cannot be sent in a header",
        ),
    ] {
        let report = bad(&[("#top", &traces(&text))], &environment);
        let is_it = report.lines().count() == 1 && report.starts_with(&format!("conf.yaml:11:{expected}"));
        assert!(is_it && !report.contains("hunter2"), "got  {report}\nwant {expected}");
    }
    one("#top", "telemetry: {metrics: {}}", "conf.yaml:11:13: telemetry.metrics: unknown key");
}
