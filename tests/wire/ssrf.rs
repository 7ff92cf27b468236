//! Where strangers may not lead us: every place that a URL can come from, fed with every spelling of an address that is
//! not public, in a network where somebody listens at all of them. Nobody there may hear anything, and the flow ends in
//! an error; where the configuration allows the host, it is heard, so that the listeners are known to work.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use futures_util::future::join_all;
use serde_json::{Value, json};
use support::browser::{Arrival, Browser};
use support::client::{Callback, Client};
use support::gateway::{Builder, Gateway, PASSWORD_HASH, Route};
use support::internet::{Internet, write_hosts};
use support::key::Key;
use support::mcp::McpRequest;
use support::params::Params;
use support::tls_server::{JSON, http_text};

const CALLBACK: &str = "https://client.example/cb";
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// The public server, and names for everything else.
const HOSTS: &str = "\
127.0.0.1 localhost
93.184.216.34 evil.test turn.evil.test mixed.test mixed6.test
10.0.0.1 ten.test mixed.test 10.0.0.1.nip.io
fd00::1 ula.test mixed6.test
127.0.0.1 loop.test localtest.me
::1 loop6.test
0.0.0.0 zero.test
172.16.0.1 172.test
192.168.0.1 192.test
169.254.169.254 metadata.test metadata.google.internal
100.64.0.1 shared.test
192.0.0.192 assigned.test
198.18.0.1 benchmark.test
240.0.0.1 reserved.test
fe80::1 link.test
::ffff:10.0.0.1 mapped.test
64:ff9b::a00:1 nat64.test
2002:a00:1::1 6to4.test
2001::1 teredo.test
";

/// Public by its text, and never by its address.
const NAMES: [&str; 22] = [
    "https://localhost",
    "https://localhost.",
    "https://loop.test",
    "https://loop6.test",
    "https://localtest.me",
    "https://zero.test",
    "https://ten.test",
    "https://TEN.test:8080",
    "https://10.0.0.1.nip.io",
    "https://172.test",
    "https://192.test",
    "https://metadata.google.internal",
    "https://shared.test",
    "https://assigned.test",
    "https://benchmark.test",
    "https://reserved.test",
    "https://ula.test",
    "https://link.test",
    "https://mapped.test",
    "https://nat64.test",
    "https://mixed.test",
    "https://mixed6.test",
];

/// Addresses, and what some parser takes for one.
const LITERALS: [&str; 76] = [
    // Loopback and this network.
    "https://127.0.0.1",
    "http://127.0.0.1",
    "http://127.0.0.1:8080",
    "https://127.0.0.2:8080",
    "https://127.1",
    "https://127.0.0.1.",
    "https://2130706433",
    "https://0x7f000001",
    "https://0x7f.1",
    "https://0177.0.0.1",
    "https://017700000001",
    "https://127。0。0。1",
    "https://１２７.0.0.1",
    "https://%31%32%37.0.0.1",
    "https://0.0.0.0",
    "https://0",
    "https://0.1.2.3",
    "https://[::1]",
    "https://[::1]:8080",
    "https://[0:0:0:0:0:0:0:1]",
    "https://[::]",
    // Private.
    "https://10.0.0.1",
    "http://10.0.0.1:8080",
    "https://10.255.255.255",
    "https://167772161",
    "https://172.16.0.1",
    "https://172.31.255.255",
    "https://192.168.0.1",
    "https://0xc0a80001",
    "https://[fc00::1]",
    "https://[fd00::1]",
    // Metadata services and link-local.
    "http://169.254.169.254",
    "https://169.254.169.254",
    "https://2852039166",
    "https://0xa9fea9fe",
    "https://0251.0376.0251.0376",
    "https://169.254.43518",
    "https://100.100.100.200",
    "https://168.63.129.16",
    "https://192.0.0.192",
    "https://[fd00:ec2::254]",
    "https://[fe80::1]",
    "https://[fe80::1%25lo]",
    "https://[fe80::1%lo]",
    "https://[fec0::1]",
    // Shared, reserved and documentation.
    "https://100.64.0.1",
    "https://192.0.2.1",
    "https://192.88.99.1",
    "https://198.18.0.1",
    "https://198.19.255.255",
    "https://198.51.100.1",
    "https://203.0.113.1",
    "https://224.0.0.1",
    "https://240.0.0.1",
    "https://255.255.255.255",
    "https://[100::1]",
    "https://[2001:db8::1]",
    "https://[ff02::1]",
    // One inside the other.
    "https://[::ffff:127.0.0.1]",
    "https://[::ffff:a9fe:a9fe]",
    "https://[::10.0.0.1]",
    "https://[::ffff:0:10.0.0.1]",
    "https://[64:ff9b::a00:1]",
    "https://[64:ff9b::169.254.169.254]",
    "https://[64:ff9b:1::a00:1]",
    "https://[2002:a00:1::1]",
    "https://[2001::1]",
    // What two parsers read in two ways.
    "https://evil.test@10.0.0.1",
    "https://evil.test:443@10.0.0.1",
    "https://10.0.0.1#@evil.test",
    "https://10.0.0.1\\@evil.test",
    "https:10.0.0.1",
    "//10.0.0.1",
    "gopher://127.0.0.1:8080",
    "ftp://127.0.0.1:8080",
    "file://10.0.0.1/etc/passwd",
];

/// One address of each kind; to multicast there is no connection, and none to link-local without a zone.
const SPECIAL: [&str; 22] = [
    "127.0.0.1",
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.0.1",
    "169.254.169.254",
    "100.64.0.1",
    "168.63.129.16",
    "192.0.0.192",
    "198.18.0.1",
    "203.0.113.1",
    "240.0.0.1",
    "::1",
    "::",
    "::ffff:10.0.0.1",
    "::10.0.0.1",
    "64:ff9b::a00:1",
    "2002:a00:1::1",
    "2001::1",
    "2001:db8::1",
    "fd00::1",
];

fn corpus() -> Vec<String> {
    LITERALS.iter().chain(&NAMES).map(|entry| format!("{entry}/x")).collect()
}

/// Each may be private, so it is reached once the configuration allows it.
const ALLOWED: [(&str, &str); 3] = [
    ("https://10.0.0.1/x", "10.0.0.1"),
    ("https://ten.test/x", "ten.test"),
    ("https://[fd00::1]/x", "fd00::1"),
];

/// What a request to the public server asks for: `/{place}/{number}/{what}`, or a well-known document about that.
struct Ask {
    host: String,
    place: String,
    number: usize,
    what: String,
    query: Vec<(String, String)>,
}

impl Ask {
    fn of(request: &str) -> Option<Self> {
        let target = request.split(' ').nth(1)?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let (path, document) = match path.strip_prefix("/.well-known/") {
            Some(rest) => rest.split_once('/').map(|(document, path)| (path, Some(document)))?,
            None => (path.strip_prefix('/')?, None),
        };
        let mut parts = path.splitn(3, '/');
        let (place, number) = (parts.next()?, parts.next()?.parse().ok()?);
        let lines = request.lines().filter_map(|line| line.split_once(": "));
        let (_, host) = lines.into_iter().find(|(name, _)| name.eq_ignore_ascii_case("host"))?;
        Some(Ask {
            host: host.to_owned(),
            place: place.to_owned(),
            number,
            what: document.unwrap_or(parts.next().unwrap_or_default()).to_owned(),
            query: form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
        })
    }

    fn parameter(&self, name: &str) -> &str {
        self.query.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }
}

fn ok(document: &Value) -> String {
    http_text(200, &[JSON], &document.to_string())
}

fn missing() -> String {
    http_text(404, &[], "")
}

/// An upstream and its authorization server that are good in all but the one place of the case: from there it leads to
/// `to`.
fn upstream(ask: &Ask, to: &str) -> String {
    let own = format!("https://{}/{}/{}", ask.host, ask.place, ask.number);
    let moved = || http_text(302, &[("location", to)], "");
    let challenge = |hint: &str| {
        let value = format!("Bearer resource_metadata=\"{hint}\"");
        http_text(401, &[("www-authenticate", &value)], "")
    };
    match (ask.place.as_str(), ask.what.as_str()) {
        ("issued" | "asked", "oauth-authorization-server") => ok(&json!({
            "issuer": own, "jwks_uri": to, "introspection_endpoint": to,
        })),
        ("issued_moved", _) => moved(),
        ("open", "mcp") => ok(&json!({"jsonrpc": "2.0", "id": 1, "result": {}})),
        ("open", "moved") => http_text(307, &[("location", to)], ""),
        ("client_moved", _) => moved(),
        ("client_keys", "doc") => ok(&json!({
            "client_id": format!("{own}/doc"), "client_name": "Keyed", "redirect_uris": [CALLBACK],
            "token_endpoint_auth_method": "private_key_jwt", "jwks_uri": to,
        })),
        ("client", "doc") => ok(&json!({
            "client_id": format!("{own}/doc"), "client_name": "Good", "redirect_uris": [CALLBACK],
        })),
        ("hint", "mcp") => challenge(to),
        ("hint", _) => missing(),
        (_, "mcp") => challenge(&format!("{own}/resource")),
        ("moved_documents", _) | ("moved_registration", "register") | ("moved_token", "token") => moved(),
        (place, "resource" | "oauth-protected-resource") => {
            let server = if place == "authorization_servers" { to } else { &own };
            ok(&json!({"resource": format!("{own}/mcp"), "authorization_servers": [server]}))
        }
        (place, "oauth-authorization-server") => {
            let mut document = json!({
                "issuer": own,
                // A name below it may change its address on the way; the browser keeps to this one.
                "authorization_endpoint": format!("https://evil.test/{place}/{}/authorize", ask.number),
                "token_endpoint": format!("{own}/token"),
                "registration_endpoint": format!("{own}/register"),
                "code_challenge_methods_supported": ["S256"],
                "token_endpoint_auth_methods_supported": ["none"],
                "jwks_uri": to,
                "userinfo_endpoint": to,
                "service_documentation": to,
            });
            if place.ends_with("_endpoint") || place == "issuer" {
                document[place] = to.into();
            }
            ok(&document)
        }
        (_, "register") => http_text(
            201,
            &[JSON],
            &json!({"client_id": "we", "token_endpoint_auth_method": "none"}).to_string(),
        ),
        (_, "authorize") => {
            let back = Params::new().with("code", "CANARY_code").with("state", ask.parameter("state"));
            http_text(302, &[("location", &back.url(ask.parameter("redirect_uri")))], "")
        }
        (_, "token") => ok(&json!({"access_token": "CANARY_access", "token_type": "Bearer"})),
        _ => missing(),
    }
}

/// A gateway that trusts the public server.
fn gateway(internet: &Internet, directory: &tempfile::TempDir) -> Builder {
    let file = directory.path().join("public.pem");
    std::fs::write(&file, &internet.certificate).unwrap();
    Gateway::builder().with("outbound.ca_files", json!([file]))
}

/// A route of a case, without any permission.
fn route(name: &str, host: &str, place: &str, number: usize) -> Route {
    let url = format!("https://{host}/{place}/{number}/mcp");
    Route::to(name, &url, json!({"kind": "oauth"})).with("upstream", json!({"url": url}))
}

/// Where a URL can stand in what an upstream says.
const PLACES: [&str; 10] = [
    "hint",
    "authorization_servers",
    "issuer",
    "authorization_endpoint",
    "token_endpoint",
    "registration_endpoint",
    "revocation_endpoint",
    "moved_documents",
    "moved_registration",
    "moved_token",
];

/// Those that Postern asks itself once their host is allowed; no redirect is ever followed.
const ASKED: [&str; 5] =
    ["hint", "authorization_servers", "token_endpoint", "registration_endpoint", "revocation_endpoint"];

/// So many people, since nobody may begin more than a hundred authorizations.
const VISITORS: usize = 16;

/// Of what is never asked, one in so many entries will do.
fn every(place: &str) -> usize {
    if ASKED.contains(&place) { 1 } else { 4 }
}

fn name_of(place: &str, number: usize, allowed: bool) -> String {
    let place = place.replace('_', "-");
    if allowed { format!("{place}-{number}-allowed") } else { format!("{place}-{number}") }
}

/// One trip of a browser, to wherever it ends at the client, and whether a connection came of it: one that did is ended
/// again, which is when a revocation endpoint is asked. Where nobody is found who gives tokens, the client gets its code all
/// the same.
async fn trip(gateway: &Gateway, client: &Client, browser: &mut Browser, name: &str) -> (Callback, bool) {
    let url = client.authorization(name).url();
    let arrival = browser.authorize_or_stop(&client.redirect_uri, &url).await;
    let Arrival::Client(url) = arrival else { panic!("{name}: {arrival:?}") };
    let callback = Callback::of(&url);
    if callback.error().is_some() {
        return (callback, false);
    }
    let page = browser.go(&gateway.url("/connections")).await.page();
    let action = format!("/connections/{name}/disconnect");
    let Some(form) = page.forms().into_iter().find(|form| form.action.ends_with(&action)) else {
        return (callback, false);
    };
    browser.submit(&page, &form, &[]).await.page();
    (callback, true)
}

#[tokio::test]
async fn sr_t57_what_an_upstream_says_leads_to_public_addresses_only() {
    let (corpus, told) = (corpus(), corpus());
    let test = "sr_t57_what_an_upstream_says_leads_to_public_addresses_only";
    let Some(internet) = Internet::enter(test, HOSTS, &["evil.test"], move |request| {
        Ask::of(request).map_or_else(missing, |ask| upstream(&ask, &told[ask.number]))
    })
    .await
    else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let user = |number: usize| format!("visitor{number}");
    let users: Vec<Value> = (0..VISITORS)
        .map(|number| json!({"username": user(number), "password_hash": PASSWORD_HASH}))
        .collect();
    let mut builder = gateway(&internet, &directory)
        .with("login.local.users", json!(users))
        .route(route("good", "evil.test", "good", 0))
        .route(
            Route::to("open", "https://evil.test/open", json!({"kind": "none"}))
                .without("upstream")
                .with("upstream.url", json!("https://evil.test/open")),
        );
    for place in PLACES {
        for number in (0..corpus.len()).step_by(every(place)) {
            builder = builder.route(route(&name_of(place, number, false), "evil.test", place, number));
        }
    }
    let number_of = |entry: &str| corpus.iter().position(|known| known == entry).unwrap();
    for place in ASKED {
        for (entry, host) in ALLOWED {
            let number = number_of(entry);
            let allowed = route(&name_of(place, number, true), "evil.test", place, number);
            builder = builder.route(allowed.with("upstream.allow_hosts", json!([host])));
        }
    }
    let gateway = builder.start().await;
    let root = reqwest::Certificate::from_pem(internet.certificate.as_bytes()).unwrap();
    let client = Client::register(&gateway).await;
    let mut visitors: Vec<Browser> = (0..VISITORS)
        .map(|number| Browser::of(&user(number)).trusting(std::slice::from_ref(&root)))
        .collect();

    // Whoever comes is heard, or none of this would prove anything.
    for address in SPECIAL {
        drop(
            std::net::TcpStream::connect((address, 443)).unwrap_or_else(|error| panic!("{address}: {error}")),
        );
    }
    assert_eq!(internet.reached().await.len(), SPECIAL.len());

    // Without a bad place in it, such an upstream is connected and the flow gets through.
    let (callback, is_connected) = trip(&gateway, &client, &mut visitors[0], "good").await;
    assert!(is_connected, "{}", callback.url);

    for place in PLACES {
        let (gateway, client) = (&gateway, &client);
        let trips = visitors.iter_mut().enumerate().map(async |(first, browser)| {
            let mut connected = 0;
            let cases = corpus.iter().enumerate().step_by(every(place));
            for (number, entry) in cases.skip(first).step_by(VISITORS) {
                let name = name_of(place, number, false);
                let (callback, is_connected) = trip(gateway, client, browser, &name).await;
                // That one is asked when the connection ends.
                let is_used_later = place == "revocation_endpoint";
                assert!(!is_connected || is_used_later, "{place} {entry}: {}", callback.url);
                connected += usize::from(is_connected);
            }
            connected
        });
        let connected: usize = join_all(trips).await.into_iter().sum();
        assert_eq!(internet.reached().await, [], "{place}");
        assert_eq!(connected > 50, place == "revocation_endpoint", "{place}: {connected}");
    }

    // An upstream's own redirects are the client's affair.
    let tokens = client.sign_in(&mut visitors[0], "open").await;
    let call = async |path: String| {
        let request = McpRequest::to(&gateway.http, &gateway.url(&path));
        request.bearer(&tokens.access_token).tool("echo", json!({})).await.status
    };
    assert_eq!(call("/open/0/mcp".into()).await, 200);
    for (number, entry) in corpus.iter().enumerate() {
        assert_ne!(call(format!("/open/{number}/moved")).await, 200, "{entry}");
    }
    assert_eq!(internet.reached().await, [], "redirects of calls");

    for place in ASKED {
        for (entry, _) in ALLOWED {
            let name = name_of(place, number_of(entry), true);
            trip(&gateway, &client, &mut visitors[0], &name).await;
            let reached = internet.reached().await;
            assert!(!reached.is_empty(), "{place}: {entry} is allowed, and nobody has come");
        }
    }
}

#[tokio::test]
async fn sr_t57_what_a_trusted_issuer_says_leads_to_public_addresses_only() {
    let (corpus, told, key) = (corpus(), corpus(), Key::new("k"));
    let test = "sr_t57_what_a_trusted_issuer_says_leads_to_public_addresses_only";
    let keys = key.set();
    let Some(internet) =
        Internet::enter(test, HOSTS, &["evil.test"], move |request| match Ask::of(request) {
            Some(ask) if ask.place == "keys" => ok(&keys),
            // The one number beyond the corpus is of an issuer that is good.
            Some(ask) => {
                upstream(&ask, told.get(ask.number).map_or("https://evil.test/keys/0/set", String::as_str))
            }
            None => missing(),
        })
        .await
    else {
        return;
    };
    const PLACES: [&str; 3] = ["issued", "issued_moved", "asked"];
    let good = corpus.len();
    let entry = |place: &str, number: usize| {
        let mut entry = json!({"name": format!("{place}_{number}"),
            "issuer": format!("https://evil.test/{place}/{number}")});
        if place == "asked" {
            entry["introspection"] = json!({"client_id": "we", "client_secret": {"env": "SECRET"}});
        }
        entry
    };
    let mut issuers: Vec<Value> = vec![entry("issued", good)];
    issuers.extend(PLACES.iter().flat_map(|place| (0..good).map(|number| entry(place, number))));
    issuers.push(json!({"name": "private", "issuer": "https://ten.test/x", "allow_private": true}));
    let directory = tempfile::tempdir().unwrap();
    let mut builder =
        gateway(&internet, &directory).env("SECRET", "of Postern").with("trusted_issuers", json!(issuers));
    for issuer in &issuers {
        let name = issuer["name"].as_str().unwrap();
        let open = Route::to(name, "https://evil.test/open/0/mcp", json!({"kind": "none"}));
        let public = open.with("upstream", json!({"url": "https://evil.test/open/0/mcp"}));
        builder = builder.route(public.with("trusted_issuers", json!([name])));
    }
    let gateway = builder.start().await;
    let call = async |issuer: &Value| {
        let name = issuer["name"].as_str().unwrap();
        let mut claims = Key::claims("somebody", &gateway.url(&format!("/{name}")));
        claims["iss"] = issuer["issuer"].clone();
        gateway.mcp(name).bearer(&key.sign(&claims)).tool("echo", json!({})).await.status
    };
    let [first, rest @ .., private] = issuers.as_slice() else { panic!("no issuers") };
    assert_eq!(call(first).await, 200);
    for issuer in rest {
        let status = call(issuer).await;
        assert!(status >= 400, "{issuer}: {status}");
    }
    assert_eq!(internet.reached().await, []);
    call(private).await;
    assert!(!internet.reached().await.is_empty(), "its issuer is allowed, and nobody has come");
}

/// Shows who it is with this key, and asks for tokens; the code is nobody's.
async fn ask_for_tokens(client: &Client, key: &Key) -> u16 {
    let params = Params::new()
        .with("grant_type", "authorization_code")
        .with("code", "nobodys")
        .with("redirect_uri", CALLBACK)
        .with("client_id", &client.id)
        .with("client_assertion_type", ASSERTION_TYPE)
        .with("client_assertion", &key.assertion(&client.id, &client.public_url));
    client.token(&params).await.status()
}

/// Whether a client of this id gets as far as being asked for the user.
async fn is_known(gateway: &Gateway, id: &str) -> bool {
    let url = Client::known_as(gateway, id, CALLBACK).authorization("demo").url();
    match Browser::new().go(&url).await.page().status {
        200 => true,
        400.. => false,
        other => panic!("{id}: {other}"),
    }
}

/// Registers with keys at `uri` and shows one, if it may.
async fn register_and_ask(gateway: &Gateway, key: &Key, uri: &str) -> u16 {
    let document = json!({"redirect_uris": [CALLBACK], "token_endpoint_auth_method": "private_key_jwt",
        "jwks_uri": uri});
    let answer = Client::register_with(gateway, &document).await;
    match answer.json()["client_id"].as_str() {
        Some(id) => ask_for_tokens(&Client::known_as(gateway, id, CALLBACK), key).await,
        None => answer.status,
    }
}

#[tokio::test]
async fn sr_t58_what_a_client_says_of_itself_leads_to_public_addresses_only() {
    let (corpus, told) = (corpus(), corpus());
    let test = "sr_t58_what_a_client_says_of_itself_leads_to_public_addresses_only";
    let Some(internet) = Internet::enter(test, HOSTS, &["evil.test"], move |request| {
        Ask::of(request).map_or_else(missing, |ask| upstream(&ask, &told[ask.number]))
    })
    .await
    else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let demo = || route("demo", "evil.test", "open", 0);
    let strict = gateway(&internet, &directory).route(demo()).start().await;
    let key = Key::new("k");
    assert!(is_known(&strict, "https://evil.test/client/0/doc").await);
    for (number, entry) in corpus.iter().enumerate() {
        assert!(!is_known(&strict, entry).await, "{entry}");
        let moved = format!("https://evil.test/client_moved/{number}/doc");
        assert!(!is_known(&strict, &moved).await, "{entry}");
    }
    assert_eq!(internet.reached().await, [], "documents");
    for (number, entry) in corpus.iter().enumerate() {
        let id = format!("https://evil.test/client_keys/{number}/doc");
        let status = ask_for_tokens(&Client::known_as(&strict, &id, CALLBACK), &key).await;
        assert!(status >= 400, "{entry}: {status}");
        let status = register_and_ask(&strict, &key, entry).await;
        assert!(status >= 400, "{entry}: {status}");
    }
    assert_eq!(internet.reached().await, [], "keys");
    drop(strict);

    let lax = gateway(&internet, &directory)
        .with("oauth_server.clients.cimd.allow_private", json!(true))
        .route(demo())
        .start()
        .await;
    for (entry, _) in ALLOWED {
        is_known(&lax, entry).await;
        assert!(!internet.reached().await.is_empty(), "{entry}: nobody has come for the document");
        register_and_ask(&lax, &key, entry).await;
        assert!(!internet.reached().await.is_empty(), "{entry}: nobody has come for the keys");
    }
}

/// The hosts file once the name has turned to a private address.
fn turned() -> String {
    HOSTS.replace(" turn.evil.test", "") + "10.0.0.1 turn.evil.test\n"
}

#[tokio::test]
async fn sr_t59_a_name_that_turns_private_on_the_way_is_not_followed() {
    // The name turns when this is asked for; what would come next at the name must not come.
    const MOMENTS: [&str; 4] = ["mcp", "resource", "oauth-authorization-server", "register"];
    let test = "sr_t59_a_name_that_turns_private_on_the_way_is_not_followed";
    let names = ["evil.test", "turn.evil.test"];
    let Some(internet) = Internet::enter(test, HOSTS, &names, |request| {
        let Some(ask) = Ask::of(request) else { return missing() };
        if ask.place.starts_with("turn") && MOMENTS[ask.number] == ask.what {
            write_hosts(&Internet::hosts_file().unwrap(), &turned());
        }
        upstream(&ask, "")
    })
    .await
    else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let host = "turn.evil.test";
    let open = |name: &str| {
        let url = format!("https://{host}/open/0/mcp");
        Route::to(name, &url, json!({"kind": "none"})).with("upstream", json!({"url": url}))
    };
    let mut builder = gateway(&internet, &directory).route(open("early")).route(open("late"));
    for (number, moment) in MOMENTS.iter().enumerate() {
        let allowed = route(&format!("{moment}-allowed"), host, "turn_allowed", number);
        builder = builder
            .route(route(moment, host, "turn", number))
            .route(allowed.with("upstream.allow_hosts", json!([host])));
    }
    let gateway = builder.route(route("good", host, "good", 0)).start().await;
    let root = reqwest::Certificate::from_pem(internet.certificate.as_bytes()).unwrap();
    let client = Client::register(&gateway).await;
    let mut browser = Browser::new().trusting(&[root]);
    let (callback, _) = trip(&gateway, &client, &mut browser, "good").await;
    assert_eq!(callback.error(), None, "{}", callback.url);

    for moment in MOMENTS {
        let (callback, is_connected) = trip(&gateway, &client, &mut browser, moment).await;
        assert!(!is_connected, "{moment}: {}", callback.url);
        assert_eq!(internet.reached().await, [], "{moment}");
        internet.rename(HOSTS);
        trip(&gateway, &client, &mut browser, &format!("{moment}-allowed")).await;
        assert!(!internet.reached().await.is_empty(), "{moment}: allowed, and nobody has come");
        internet.rename(HOSTS);
    }

    let early = client.sign_in(&mut browser, "early").await;
    let late = client.sign_in(&mut browser, "late").await;
    let call = async |route: &str, token: &str| {
        gateway.mcp(route).bearer(token).tool("echo", json!({})).await.status
    };
    assert_eq!(call("early", &early.access_token).await, 200);
    internet.rename(&turned());
    // The address that was checked goes on being the one that is used.
    assert_eq!(call("early", &early.access_token).await, 200);
    assert_eq!(call("late", &late.access_token).await, 502);
    assert_eq!(internet.reached().await, []);
}
