//! The commands about managed connections, as people run them: the guide from its first line to its last, what is said when
//! something is wrong, and what is never said.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::gateway::{Builder, Gateway, restrict};
use support::mcp::McpRequest;
use support::process::{Finished, Output, PROGRAM, Process, run};
use support::upstream::Upstream;
use support::{PATIENCE, eventually, random_hex, secret};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const GUIDE: &str = include_str!("../../docs/managed.md");
const EVERYTHING: &str = "connections:read,connections:write,connections:token,connections:audit";

/// A running Postern, and a place to work at.
struct Place {
    gateway: Gateway,
    directory: TempDir,
}

impl Place {
    /// With these service accounts, whose tokens are in `{name}.token`: their names, scopes and users.
    async fn with(builder: Builder, accounts: &[(&str, &str, Option<&str>)]) -> Self {
        let mut place = Place::before(builder);
        for (name, scopes, user) in accounts {
            let mut words = vec!["service-accounts", "create", name, "--api", scopes];
            words.extend(user.iter().flat_map(|user| ["--acts-for", user]));
            let made = place.run(&words).await;
            assert_eq!(made.code, Some(0), "{}", made.stderr);
            place.keep(&format!("{name}.token"), &made.stdout);
        }
        place.start().await;
        place
    }

    fn before(builder: Builder) -> Self {
        Place { gateway: builder.prepare(), directory: tempfile::tempdir().unwrap() }
    }

    async fn start(&mut self) {
        self.gateway.spawn();
        self.gateway.ready().await;
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.file(name)).unwrap().trim().to_owned()
    }

    fn keep(&self, name: &str, text: &str) -> String {
        std::fs::write(self.file(name), text).unwrap();
        restrict(&self.file(name));
        self.file(name).to_str().unwrap().to_owned()
    }

    /// Without a token of its own.
    async fn run(&self, words: &[&str]) -> Finished {
        run(words, &[("POSTERN_CONFIG", self.gateway.config_file().to_str().unwrap())]).await
    }

    async fn run_as(&self, account: &str, words: &[&str]) -> Finished {
        let file = self.file(&format!("{account}.token"));
        self.run(&[words, &["--token-file", file.to_str().unwrap()]].concat()).await
    }

    /// What it prints, where it goes well.
    async fn said(&self, account: &str, words: &[&str]) -> String {
        let finished = self.run_as(account, words).await;
        assert_eq!(finished.code, Some(0), "{words:?}: {}", finished.stderr);
        finished.stdout
    }

    async fn json(&self, account: &str, words: &[&str]) -> Value {
        serde_json::from_str(&self.said(account, &[words, &["--json"]].concat()).await).unwrap()
    }

    /// Lines of a shell, which keeps its variables for the next ones.
    async fn shell(&self, lines: &str, output: &Output) {
        let known = if self.file("variables").exists() { ". ./variables\n" } else { "" };
        let script = format!("set -eua\n{known}{lines}\nexport -p > variables");
        // What everybody on the machine could see of it is written down.
        std::fs::create_dir_all(self.file("bin")).unwrap();
        let noting = format!(
            "#!/bin/sh\nprintf '%s\\n' \"$@\" >> '{}'\nexec '{PROGRAM}' \"$@\"",
            self.file("arguments").display()
        );
        std::fs::write(self.file("bin/postern"), noting).unwrap();
        std::fs::set_permissions(self.file("bin/postern"), std::fs::Permissions::from_mode(0o700)).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", &script]).current_dir(self.directory.path()).stdin(Stdio::null());
        command.env("PATH", format!("{}:{}", self.file("bin").display(), std::env::var("PATH").unwrap()));
        command.env("POSTERN_CONFIG", self.gateway.config_file());
        let ended = Process::start(command, output).wait(4 * PATIENCE).await;
        assert!(ended.success(), "{lines}\n---\n{}", output.text());
    }

    /// Neither printed nor among the arguments of a program.
    fn assert_unseen(&self, known: &str, output: &Output) {
        assert!(!output.text().contains(known), "a secret is printed: {}", output.text());
        let arguments = self.read("arguments");
        assert!(
            arguments.contains("--json") && !arguments.contains(known),
            "a secret is an argument: {arguments}"
        );
    }

    async fn status(&self, address: &str, token: &str) -> u16 {
        McpRequest::to(&self.gateway.http, address).bearer(token).call("ping", json!({})).await.status
    }
}

fn builder() -> Builder {
    Gateway::builder().with("managed", json!({"administrators": ["alice"], "allow_hosts": ["127.0.0.1"]}))
}

async fn place() -> Place {
    Place::with(builder(), &[("desk", EVERYTHING, None), ("bob", EVERYTHING, Some("bob"))]).await
}

/// The code blocks of the guide below a heading.
fn blocks(heading: &str, language: &str) -> String {
    let section = GUIDE.split("\n## ").find(|section| section.starts_with(heading)).expect(heading);
    let fence = format!("```{language}\n");
    let blocks = section.split(fence.as_str()).skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_guide_is_what_the_program_does() {
    let (files, weather) = (Upstream::start().await, Upstream::open().await);
    let key = secret("weather_key");
    let mut managed: Value = serde_saphyr::from_str(&blocks("Setting up", "yaml")).unwrap();
    managed["managed"]["allow_hosts"] = json!(["127.0.0.1"]);
    let builder = Gateway::builder().with("managed", managed["managed"].take());
    let mut place = Place::before(builder);
    let output = Output::default();
    let run = async |place: &Place, lines: &str| {
        let lines = lines
            .replace("https://mcp.example.com", &place.gateway.public_url)
            .replace("https://files.example.com/mcp", &files.url())
            .replace("https://weather.example.com/mcp", &weather.url());
        place.shell(&lines, &output).await;
    };
    let setting_up = blocks("Setting up", "sh");
    let (accounts, variables) = setting_up.split_once("\nexport").unwrap();
    run(&place, accounts).await;
    place.start().await;
    place.keep("given", &key);
    run(&place, &format!("export{variables}\nWEATHER_KEY=$(cat given)")).await;
    let events = async |action: &str| {
        let said = place.json("desk", &["events", "--actor", "service:desk", "--action", action]).await;
        said["items"].as_array().unwrap().len()
    };

    run(&place, &blocks("An organisation with two members", "sh")).await;
    let organization =
        place.json("desk", &["org", "list"]).await["items"][0]["id"].as_str().unwrap().to_owned();
    let members = place.json("desk", &["member", "list", &organization]).await;
    let role = |index: usize| (&members["items"][index]["user"], &members["items"][index]["role"]);
    assert_eq!(role(0), (&json!("alice"), &json!("administrator")));
    assert_eq!(role(1), (&json!("bob"), &json!("member")));

    run(&place, &blocks("Adding a server", "sh")).await;
    let all = place.json("desk", &["config", "list", "--org", &organization]).await;
    let named = |name: &str| {
        let all = all["items"].as_array().unwrap();
        all.iter().find(|one| one["name"] == name).unwrap()["id"].as_str().unwrap().to_owned()
    };
    let (files_id, weather_id) = (named("Files"), named("Weather"));
    let assigned = place.json("desk", &["assign", "list", &files_id]).await;
    assert_eq!(assigned["items"].as_array().unwrap().len(), 2);

    run(&place, &blocks("Using it", "sh")).await;
    let available = place.json("bob", &["config", "available"]).await;
    assert_eq!(available["items"].as_array().unwrap().len(), 2);
    let address = async || {
        let shown = place.json("desk", &["config", "show", &weather_id]).await;
        shown["route"]["url"].as_str().unwrap().to_owned()
    };
    let (first, minted) = (address().await, place.read("minted.token"));
    assert_eq!(place.status(&first, &minted).await, 200);
    let sent = |call: &support::received::Received| call.header("x-api-key");
    assert_eq!(sent(weather.calls().last().unwrap()), Some(key.clone()));

    run(&place, &blocks("Changing", "sh")).await;
    let shown = place.json("desk", &["config", "show", &weather_id]).await;
    assert_eq!((&shown["name"], &shown["enabled"]), (&json!("Weather and tides"), &json!(true)));
    assert_eq!(place.status(&first, &minted).await, 200, "nothing of that ends a token");
    assert_eq!(sent(weather.calls().last().unwrap()), Some(key.clone()));
    let shown = place.json("desk", &["config", "show", &files_id]).await;
    assert_eq!(shown["scopes"], json!(["files:read"]));

    run(&place, &blocks("Another address", "sh")).await;
    let second = address().await;
    assert_ne!(first, second);
    assert_eq!(place.status(&first, &minted).await, 404);
    assert_eq!(place.status(&second, &minted).await, 401);
    let minted = place.said("bob", &["token", "mint", &weather_id]).await;
    assert_eq!(place.status(&second, &minted).await, 200);

    run(&place, &blocks("Taking somebody out", "sh")).await;
    assert_eq!(place.status(&second, &minted).await, 401);
    let members = place.json("desk", &["member", "list", &organization]).await;
    assert_eq!(members["items"].as_array().unwrap().len(), 1);

    run(&place, &blocks("Who did what", "sh")).await;
    assert_eq!((events("member.remove").await, events("route.rotate").await), (1, 1));

    run(&place, &blocks("Taking things away", "sh")).await;
    assert_eq!(place.json("desk", &["org", "list"]).await["items"], json!([]));
    assert_eq!(place.status(&second, &minted).await, 404);

    for known in [&key, &place.read("desk.token"), &place.read("bob.token"), &minted] {
        place.assert_unseen(known, &output);
    }
    place.gateway.output.assert_no_secret();
}

#[test]
fn the_guide_has_every_command() {
    for (group, verbs) in [
        ("org", &["list", "show", "create", "rename", "delete"][..]),
        ("member", &["list", "put", "remove"]),
        (
            "config",
            &["list", "show", "discover", "create", "change", "enable", "disable", "delete", "available"],
        ),
        ("assign", &["list", "add", "remove"]),
        ("route", &["rotate"]),
        ("token", &["mint"]),
    ] {
        for verb in verbs {
            assert!(
                GUIDE.contains(&format!("postern {group} {verb} "))
                    || GUIDE.contains(&format!("postern {group} {verb}\n")),
                "{group} {verb}"
            );
        }
    }
    assert!(GUIDE.contains("postern events "));
}

#[tokio::test]
async fn tables_are_for_people_and_json_is_the_answer() {
    let (upstream, place) = (Upstream::open().await, place().await);
    assert_eq!(place.said("desk", &["org", "list"]).await, "no organisations");
    let made = place.said("desk", &["org", "create", "Acme"]).await;
    let lines: Vec<&str> = made.lines().collect();
    let [id, name, created, version] = lines[..] else { panic!("{made}") };
    let organization = id.strip_prefix("ID       ").unwrap();
    assert_eq!((name, version), ("NAME     Acme", "VERSION  1"));
    assert!(created.starts_with("CREATED  20") && created.ends_with('Z'), "{created}");
    let listed = place.said("desk", &["org", "list"]).await;
    let width = organization.len();
    let expected = format!("{:<width$}  NAME  CREATED\n{organization}  Acme  20", "ID");
    assert!(listed.starts_with(&expected), "{listed}");
    let listed = place.json("desk", &["org", "list"]).await;
    assert_eq!((&listed["items"][0]["id"], &listed["next"]), (&json!(organization), &Value::Null));

    assert_eq!(place.json("desk", &["org", "show", organization]).await["version"], json!(1));
    place.said("desk", &["member", "put", organization, "bob"]).await;
    assert_eq!(
        place.said("desk", &["member", "put", organization, "bob", "--json"]).await.chars().next(),
        Some('{')
    );
    let create = ["config", "create", "Files", &upstream.url(), "--auth", "none", "--org", organization];
    let shown =
        place.said("desk", &[&create[..], &["--header", "X-Tenant=blue", "--passthrough"]].concat()).await;
    for line in [
        "NAME         Files",
        "AUTH         none",
        "SHARING      multi_user",
        "PASSTHROUGH  yes",
        "HEADERS      X-Tenant=blue",
        "ENABLED      yes",
        "VERSION      1",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line}: {shown}");
    }
    let configuration = shown.lines().next().unwrap().split_whitespace().last().unwrap();
    place.said("desk", &["assign", "add", configuration, "bob"]).await;
    let available = place.said("bob", &["config", "available"]).await;
    let titles: Vec<&str> = available.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(titles, ["ID", "NAME", "STATE", "ADDRESS", "CONNECT"]);
    // What is taken away is nothing, in JSON as well.
    assert_eq!(place.said("desk", &["assign", "remove", configuration, "bob", "--json"]).await, "");
    let removed = place.said("desk", &["member", "remove", organization, "bob"]).await;
    assert_eq!(removed, format!("bob is no member of {organization} any more"));
}

#[tokio::test]
async fn lists_are_read_to_their_end() {
    let place = place().await;
    let token = place.read("desk.token");
    let create = async |index: usize| {
        let request = place.gateway.http.post(place.gateway.url("/api/v1/organizations"));
        let body = json!({"name": format!("Number {index}")}).to_string();
        let request = request.bearer_auth(&token).header("content-type", "application/json").body(body);
        assert_eq!(request.send().await.unwrap().status(), 201);
    };
    for index in 0..203 {
        create(index).await;
    }
    let listed = place.json("desk", &["org", "list"]).await;
    assert_eq!((listed["items"].as_array().unwrap().len(), &listed["next"]), (203, &Value::Null));
    let events = place.json("desk", &["events", "--limit", "202"]).await;
    let next = events["next"].as_str().unwrap();
    assert_eq!(events["items"].as_array().unwrap().len(), 202);
    let rest = place.json("desk", &["events", "--cursor", next]).await;
    assert_eq!((rest["items"].as_array().unwrap().len(), &rest["next"]), (1, &Value::Null));
}

#[tokio::test]
async fn what_is_wrong_is_said_with_what_to_do_about_it() {
    let (upstream, mut place) = (Upstream::open().await, Place::before(builder()));
    for (name, scopes) in [("desk", EVERYTHING), ("reader", "connections:read")] {
        let made = place.run(&["service-accounts", "create", name, "--api", scopes]).await;
        place.keep(&format!("{name}.token"), &made.stdout);
    }
    place.start().await;
    let organization = place.said("desk", &["org", "create", "Acme", "--quiet"]).await;
    let (organization, url) = (organization.as_str(), upstream.url());
    let add = ["config", "create", "Files", &url, "--org", organization, "--quiet"];
    let configuration = place.said("desk", &[&add[..], &["--auth", "none"]].concat()).await;
    let key = secret("header_key");
    let header = format!("X-Api-Key={}", place.keep("key", &key));
    let empty = format!("X-Api-Key={}", place.keep("empty", "\n"));
    let elsewhere = format!("http://localhost:{}", place.gateway.address.port());
    let wrong = place.keep("wrong.token", &format!("postern_st_{}", random_hex(32)));

    for (account, words, code, said) in [
        (
            "desk",
            &["org", "rename", organization, "Other", "--if-match", "7"][..],
            1,
            &["--if-match", "request "][..],
        ),
        ("desk", &["org", "create", ""], 1, &["\n  name: has to have 1 to 200 characters"]),
        (
            "desk",
            &["member", "put", organization, "https://idp.example.com|x"],
            1,
            &["user: nobody of that name"],
        ),
        ("desk", &["org", "delete", "org-nowhere"], 1, &["There is nothing of that name"]),
        ("desk", &["org", "delete", ".."], 2, &["name nothing"]),
        ("desk", &["config", "show", ""], 2, &["name nothing"]),
        (
            "desk",
            &["config", "create", "Bad", "http://example.com/", "--org", organization],
            1,
            &["\n  url: has to begin with https://"],
        ),
        (
            "desk",
            &["config", "create", "Bad", &url, "--org", organization, "--header", "Cookie=a"],
            1,
            &["headers: Cookie may not be set"],
        ),
        (
            "desk",
            &["config", "create", "Bad", &url, "--org", organization, "--header-file", "Cookie"],
            2,
            &["NAME=VALUE"],
        ),
        (
            "desk",
            &["config", "create", "Bad", &url, "--auth", "none", "--header-file", &header],
            2,
            &["--auth none goes with neither"],
        ),
        ("desk", &["config", "create", "Bad", &url, "--auth", "oauth_static"], 2, &["goes with --client-id"]),
        ("desk", &["config", "create", "Bad", &url, "--header-file", &empty], 2, &["is empty"]),
        (
            "desk",
            &["config", "create", "Bad", &url, "--header-file", "A=-", "--header-file", "B=-"],
            2,
            &["room for one secret"],
        ),
        ("desk", &["config", "create", "Bad", &url, "--header-file", "A=-"], 2, &["standard input is empty"]),
        (
            "desk",
            &["config", "create", "Bad", &url, "--header-file", "A=/nowhere"],
            2,
            &["/nowhere cannot be read"],
        ),
        ("desk", &["config", "create", "Bad", &url, "--client-secret-file", "-"], 2, &["--client-id"]),
        ("desk", &["config", "change", &configuration], 2, &["config change --help"]),
        (
            "desk",
            &["config", "change", &configuration, "--auth", "oauth_static", "--client-id", ""],
            1,
            &["client_id: is missing"],
        ),
        ("desk", &["token", "mint", &configuration], 1, &["nothing of that name"]),
        ("desk", &["events", "--limit", "0"], 2, &["--limit"]),
        (
            "reader",
            &["org", "create", "Other"],
            1,
            &["lacks the scope connections:write", "create NAME --api connections:write"],
        ),
        ("wrong", &["org", "list"], 1, &["service-accounts list"]),
        ("desk", &["org", "list", "--server", "http://mcp.example.com"], 2, &["https://"]),
        ("desk", &["org", "list", "--server", "mcp.example.com"], 2, &["is not a URL"]),
        (
            "desk",
            &["org", "list", "--server", "http://127.0.0.1:1"],
            1,
            &["127.0.0.1:1", "is Postern running"],
        ),
        ("desk", &["org", "list", "--server", &elsewhere], 1, &["421", "public_url"]),
        (
            "desk",
            &["org", "list", "--server", &upstream.origin],
            1,
            &["does its configuration have `managed`"],
        ),
        ("desk", &["org", "list", "--token", "x"], 2, &["unexpected argument '--token'"]),
        ("desk", &["org", "list", "--config", "/nowhere.yaml"], 78, &["/nowhere.yaml", "cannot be read"]),
        ("desk", &["org", "list", "--config", &wrong], 78, &["wrong.token"]),
    ] {
        let finished = place.run_as(account, words).await;
        assert_eq!(finished.code, Some(code), "{words:?}: {}{}", finished.stdout, finished.stderr);
        for said in said {
            assert!(finished.stderr.contains(said), "{words:?}: {said}: {}", finished.stderr);
        }
        assert_eq!(finished.stdout, "", "{words:?}");
        for known in [&key, &place.read(&format!("{account}.token"))] {
            assert!(!finished.stderr.contains(known.as_str()), "{words:?}: {}", finished.stderr);
        }
    }
    let without = place.run(&["org", "list"]).await;
    assert_eq!(without.code, Some(2));
    assert!(without.stderr.contains("no token: give --token-file"), "{}", without.stderr);
    assert!(place.gateway.output.text().contains("\"org-nowhere\""), "the log has what was refused");
    assert_eq!(place.said("desk", &["config", "list", "--org", organization]).await.lines().count(), 2);
}

#[tokio::test]
async fn a_postern_that_lets_nobody_add_anything_says_so() {
    let place = Place::with(builder(), &[("desk", EVERYTHING, None)]).await;
    let token = place.file("desk.token");
    let other = Gateway::builder().start().await;
    let words = ["org", "list", "--server", &other.public_url, "--token-file", token.to_str().unwrap()];
    let refused = place.run(&words).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("lets nobody add MCP servers"), "{}", refused.stderr);
}

#[tokio::test]
async fn a_token_comes_from_a_file_a_variable_or_a_credential() {
    let place = place().await;
    let (config, token) = (place.gateway.config_file(), place.read("desk.token"));
    let (config, wrong) = (config.to_str().unwrap(), place.keep("wrong.token", "postern_st_wrong"));
    let directory = place.directory.path().to_str().unwrap();
    place.keep("postern-token", &token);
    let list = async |words: &[&str], variables: &[(&str, &str)]| {
        let variables = [&[("POSTERN_CONFIG", config)], variables].concat();
        run(&[&["org", "list"], words].concat(), &variables).await.code
    };
    let file = place.file("desk.token");
    assert_eq!(list(&["--token-file", file.to_str().unwrap()], &[("POSTERN_TOKEN", "wrong")]).await, Some(0));
    assert_eq!(list(&["--token-file", &wrong], &[("POSTERN_TOKEN", &token)]).await, Some(1));
    assert_eq!(list(&[], &[("POSTERN_TOKEN", &token)]).await, Some(0));
    assert_eq!(list(&[], &[("POSTERN_TOKEN", "wrong"), ("CREDENTIALS_DIRECTORY", directory)]).await, Some(1));
    assert_eq!(list(&[], &[("CREDENTIALS_DIRECTORY", directory)]).await, Some(0));
    assert_eq!(list(&[], &[("CREDENTIALS_DIRECTORY", "/nowhere")]).await, Some(2));
    // Nothing of the configuration file is needed but where Postern is.
    let bare = place.keep(
        "bare.yaml",
        &format!(
            "server: {{public_url: \"{}\"}}\nsealing_keys: [{{id: k, env: NOT_HERE}}]",
            place.gateway.public_url
        ),
    );
    assert_eq!(list(&[], &[("POSTERN_CONFIG", &bare), ("POSTERN_TOKEN", &token)]).await, Some(0));
    assert_eq!(
        list(
            &["--server", &place.gateway.public_url],
            &[("POSTERN_CONFIG", "/nowhere"), ("POSTERN_TOKEN", &token)]
        )
        .await,
        Some(0)
    );
}

#[tokio::test]
async fn a_certificate_is_trusted_where_the_system_or_a_variable_says_so() {
    let place = Place::with(builder().tls(), &[("desk", EVERYTHING, None)]).await;
    let (config, token) = (place.gateway.config_file(), place.file("desk.token"));
    let (config, token) = (config.to_str().unwrap(), token.to_str().unwrap());
    let certificate = place.gateway.config_file().with_file_name("tls.crt");
    let words = ["org", "list", "--config", config, "--token-file", token];
    let refused = run(&words, &[]).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("UnknownIssuer"), "{}", refused.stderr);
    let listed = run(&words, &[("SSL_CERT_FILE", certificate.to_str().unwrap())]).await;
    assert_eq!((listed.code, listed.stdout.as_str()), (Some(0), "no organisations"), "{}", listed.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_asked_for_once_is_done_once_although_the_answer_is_lost() {
    let place = place().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let there = listener.local_addr().unwrap();
    let target = place.gateway.address;
    // The first answer is read and given to nobody.
    let relay = tokio::spawn(async move {
        let mut requests = Vec::new();
        for is_lost in [true, false] {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut server = TcpStream::connect(target).await.unwrap();
            let mut request = vec![0; 16 * 1024];
            let length = client.read(&mut request).await.unwrap();
            // A gateway knows the host that it is called by.
            let request = String::from_utf8_lossy(&request[..length]);
            let request = request.replace(&there.to_string(), &target.to_string());
            server.write_all(request.as_bytes()).await.unwrap();
            requests.push(request);
            let mut answer = vec![0; 16 * 1024];
            let length = server.read(&mut answer).await.unwrap();
            if !is_lost {
                client.write_all(&answer[..length]).await.unwrap();
            }
        }
        requests
    });
    let made = place
        .said("desk", &["org", "create", "Acme", "--quiet", "--server", &format!("http://{there}")])
        .await;
    let requests = relay.await.unwrap();
    let key = |request: &str| {
        let line = request.lines().find(|line| line.to_ascii_lowercase().starts_with("idempotency-key: "));
        line.expect("a key").to_owned()
    };
    assert_eq!(key(&requests[0]), key(&requests[1]));
    let listed = place.json("desk", &["org", "list"]).await;
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
    assert_eq!(listed["items"][0]["id"], json!(made));
}

#[tokio::test]
async fn secrets_are_read_from_files_and_standard_input_and_nobody_gets_to_see_them() {
    let (upstream, place) = (Upstream::start().await, place().await);
    let output = Output::default();
    let (key, other, client_secret) = (secret("header_key"), secret("other_key"), secret("client_secret"));
    for (name, text) in [("key", &key), ("other", &other), ("client", &client_secret)] {
        place.keep(name, text);
    }
    let script = format!(
        "export POSTERN_TOKEN=$(cat desk.token) url={url}
        org=$(postern org create Acme -q)
        headers=$(postern config create Headers $url --org $org --header-file X-Api-Key=- --header-file X-Other=other -q < key)
        oauth=$(postern config create Oauth $url --org $org --client-id ours --client-secret-file client -q)
        postern config show $headers; postern config show $headers --json
        postern config show $oauth; postern config show $oauth --json
        postern config change $headers --header-file X-Api-Key=key --keep-header X-Other --json
        postern config change $oauth --client-id ours --client-secret-file - < client
        postern config list --org $org --json; postern events --json; postern route rotate $headers --json
        postern config delete $headers --json; postern config show $headers || true",
        url = upstream.url()
    );
    place.shell(&script, &output).await;
    for known in [&key, &other, &client_secret, &place.read("desk.token")] {
        place.assert_unseen(known, &output);
    }
    let text = output.text();
    assert!(
        text.contains("static_headers (X-Api-Key X-Other)") && text.contains("oauth_static (ours)"),
        "{text}"
    );
    assert!(text.contains("\"has_client_secret\": true"), "{text}");
    eventually(PATIENCE, || async { place.gateway.output.text().contains("configuration.delete") }).await;
    place.gateway.output.assert_no_secret();
}
