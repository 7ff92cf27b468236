//! The built gateway under test: writes its configuration, hands it a listening socket, watches it.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::mcp::McpRequest;
use super::port::Port;
use super::process::{Output, PROGRAM, Process};
use super::redis::Redis;
use super::upstream::Upstream;
use super::{PATIENCE, eventually, http_client, http_client_to};

/// The hash of `pw`, as in the smallest configuration of the manual.
pub const PASSWORD_HASH: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$8ZCVR4QDG/0C4YXMmXc5eg$m/LlQtKDdhxEFEjjkAiV8iTCvwp/xu4N6O8sWaElWH8";

/// Moves the socket from standard input to descriptor 3, where socket activation puts it, and becomes the program.
const HAND_OVER: &str = r#"exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$0" "$@""#;

/// One entry of `routes`.
#[derive(Clone)]
pub struct Route(Value);

impl Route {
    /// At `/{name}`, with a token per user.
    pub fn oauth(name: &str, upstream: &Upstream) -> Self {
        Self::to(name, &upstream.url(), json!({"kind": "oauth"}))
    }

    /// At `/{name}`, without credential.
    pub fn open(name: &str, upstream: &Upstream) -> Self {
        Self::to(name, &upstream.url(), json!({"kind": "none"}))
    }

    /// At `/{name}`, with one fixed header for everybody.
    pub fn header(name: &str, upstream: &Upstream, header: &str, value: Value) -> Self {
        Self::to(name, &upstream.url(), json!({"kind": "header", "name": header, "value": value}))
    }

    /// At `/{name}`, to any URL with any credential.
    pub fn to(name: &str, url: &str, credential: Value) -> Self {
        Route(json!({
            "name": name,
            "path": format!("/{name}"),
            "upstream": {"url": url, "allow_private": true},
            "credential": credential,
        }))
    }

    /// Sets any key of the route; the pointer is as in RFC 6901 with dots: `credential.client_id`.
    pub fn with(mut self, key: &str, value: Value) -> Self {
        set(&mut self.0, key, value);
        self
    }

    /// The entry as it is written.
    pub fn document(&self) -> &Value {
        &self.0
    }

    pub fn without(mut self, key: &str) -> Self {
        if let Some(route) = self.0.as_object_mut() {
            route.remove(key);
        }
        self
    }
}

/// Sets `a.b.c` in a document and makes the objects on the way.
fn set(document: &mut Value, key: &str, value: Value) {
    *key.split('.').fold(document, |object, name| &mut object[name]) = value;
}

#[derive(Default)]
pub struct Builder {
    routes: Vec<Value>,
    settings: Vec<(String, Value)>,
    environment: Vec<(String, String)>,
    tls: bool,
    one_of_many: Option<SocketAddr>,
    under: Vec<String>,
    example: Option<(String, Vec<String>)>,
    program: Option<PathBuf>,
}

impl Builder {
    pub fn route(mut self, route: Route) -> Self {
        self.routes.push(route.0);
        self
    }

    /// Sets any key of the configuration: `server.threads`, `oauth_server.access_token_ttl`.
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.settings.push((key.into(), value));
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// The public listener speaks TLS, as `https://localhost:port`, with a certificate made for this run.
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Listens there, and is called `localhost`, as others on the same port of other loopback addresses are.
    pub fn one_of_many(mut self, address: SocketAddr) -> Self {
        self.one_of_many = Some(address);
        self
    }

    /// Starts it by way of another program, that watches it.
    pub fn under(mut self, command: &[String]) -> Self {
        self.under = command.to_vec();
        self
    }

    /// Starts it from this path, where another program may be put.
    pub fn program(mut self, path: &Path) -> Self {
        self.program = Some(path.to_owned());
        self
    }

    /// Starts a program of `examples/` in its place, with these arguments after the configuration's.
    pub fn example(mut self, name: &str, arguments: &[&str]) -> Self {
        self.example = Some((name.into(), arguments.iter().map(ToString::to_string).collect()));
        self
    }

    /// Starts the program and waits until it is ready.
    pub async fn start(self) -> Gateway {
        let mut gateway = self.prepare();
        gateway.spawn();
        gateway.ready().await;
        gateway
    }

    /// Writes the configuration and takes a port, but starts nothing.
    pub fn prepare(self) -> Gateway {
        let directory = tempfile::tempdir().expect("temporary directory");
        let port = Port::take_at(self.one_of_many.unwrap_or(([127, 0, 0, 1], 0).into()));
        let (listener, address) = (port.listen(), port.address());
        let public_url = match (self.tls, self.one_of_many) {
            (true, _) => format!("https://localhost:{}", address.port()),
            (false, Some(_)) => format!("http://localhost:{}", address.port()),
            (false, None) => format!("http://{address}"),
        };
        let mut config = json!({
            "server": {
                "public_url": public_url,
                "listen": [address.to_string()],
                "admin": "127.0.0.1:0",
                "data_dir": directory.path().join("data"),
            },
            "login": {"local": {"users": [
                {"username": "alice", "password_hash": PASSWORD_HASH},
                {"username": "bob", "password_hash": PASSWORD_HASH},
            ]}},
            "routes": self.routes,
        });
        let mut roots = Vec::new();
        if self.tls {
            let made = rcgen::generate_simple_self_signed(["localhost".into(), "127.0.0.1".into()])
                .expect("certificate");
            let (cert_file, key_file) = (directory.path().join("tls.crt"), directory.path().join("tls.key"));
            std::fs::write(&cert_file, made.cert.pem()).expect("certificate file");
            std::fs::write(&key_file, made.signing_key.serialize_pem()).expect("key file");
            restrict(&key_file);
            let certificate = json!({"cert_file": cert_file, "key_file": key_file});
            set(&mut config, "server.tls", json!({"certificates": [certificate]}));
            roots.push(reqwest::Certificate::from_der(made.cert.der()).expect("certificate"));
        }
        // The same tests run on both stores; those that choose one keep it.
        let chosen = self.settings.iter().any(|(key, _)| key == "store");
        let redis = std::env::var_os("POSTERN_TEST_STORE").filter(|store| store == "redis" && !chosen);
        let redis = redis.map(|_| {
            let redis = Redis::start(&[]);
            let key_file = directory.path().join("sealing.key");
            let key: [u8; 32] = std::array::from_fn(|index| index as u8 + 1);
            std::fs::write(&key_file, data_encoding::BASE64.encode(&key)).expect("key file");
            restrict(&key_file);
            set(&mut config, "store", json!({"kind": "redis", "urls": [redis.url()]}));
            set(&mut config, "sealing_keys", json!([{"id": "k1", "file": key_file}]));
            redis
        });
        for (key, value) in self.settings {
            set(&mut config, &key, value);
        }
        let public_url = config["server"]["public_url"].as_str().expect("public_url").to_owned();
        // JSON is YAML; one setting per line, as a person would write it.
        let text = serde_json::to_string_pretty(&config).expect("configuration");
        std::fs::write(directory.path().join("postern.yaml"), text).expect("configuration file");
        Gateway {
            public_url,
            address,
            roots: roots.clone(),
            http: match self.one_of_many {
                Some(_) => http_client_to(address),
                None => http_client(&roots),
            },
            output: Output::default(),
            directory,
            environment: self.environment,
            under: self.under,
            example: self.example,
            program: self.program.unwrap_or_else(|| PROGRAM.into()),
            port,
            listener: Some(listener),
            process: None,
            started_at_line: 0,
            _redis: redis,
        }
    }
}

pub fn restrict(file: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).expect("permissions");
}

/// Dropping it kills the program; when the test has failed, its log is printed.
pub struct Gateway {
    /// First, so that the program is gone before its directory is.
    process: Option<Process>,
    /// As configured, no slash at the end.
    pub public_url: String,
    /// Where the public listener is.
    pub address: SocketAddr,
    /// What a client has to trust to reach it.
    pub roots: Vec<reqwest::Certificate>,
    /// A client without redirects that trusts it.
    pub http: reqwest::Client,
    pub output: Output,
    directory: TempDir,
    environment: Vec<(String, String)>,
    /// What the program is started by.
    under: Vec<String>,
    /// What is started in its place.
    example: Option<(String, Vec<String>)>,
    program: PathBuf,
    /// Keeps the address between two starts.
    port: Port,
    listener: Option<TcpListener>,
    /// Lines before this one belong to earlier starts.
    started_at_line: usize,
    /// Its store, where it has one of its own on Redis.
    _redis: Option<Redis>,
}

impl Gateway {
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// One OAuth route `demo`, everything else as in the smallest configuration.
    pub async fn before(upstream: &Upstream) -> Self {
        Self::builder().route(Route::oauth("demo", upstream)).start().await
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.public_url)
    }

    /// URL on the admin listener; panics before the program has named its address.
    #[track_caller]
    pub fn admin(&self, path: &str) -> String {
        format!(
            "http://{}{path}",
            self.listener_address("admin").expect("the admin listener's address in the log")
        )
    }

    /// An MCP call to a route, to be filled in and sent.
    pub fn mcp(&self, route: &str) -> McpRequest {
        McpRequest::to(&self.http, &self.url(&format!("/{route}")))
    }

    pub fn config_file(&self) -> PathBuf {
        self.directory.path().join("postern.yaml")
    }

    pub fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Changes the configuration file between two starts.
    pub fn reconfigure(&self, key: &str, value: Value) {
        let text = std::fs::read_to_string(self.config_file()).expect("configuration file");
        let mut config: Value = serde_json::from_str(&text).expect("configuration");
        set(&mut config, key, value);
        let text = serde_json::to_string_pretty(&config).expect("configuration");
        std::fs::write(self.config_file(), text).expect("configuration file");
    }

    /// Starts the program without waiting for anything.
    pub fn spawn(&mut self) {
        let listener = self.listener.take().expect("a listener");
        let mut command = Command::new("sh");
        command.args(["-c", HAND_OVER]).args(&self.under);
        match &self.example {
            None => command.arg(&self.program).args(["run", "--config"]).arg(self.config_file()),
            Some((name, arguments)) => {
                let example = Path::new(PROGRAM).with_file_name("examples").join(name);
                assert!(example.exists(), "cargo build --examples makes {}", example.display());
                command.arg(example).arg(self.config_file()).args(arguments)
            }
        };
        command.current_dir(self.directory.path()).stdin(Stdio::from(OwnedFd::from(listener)));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        self.started_at_line = self.output.len();
        self.process = Some(Process::start(command, &self.output));
        // `command` held our copy of the socket; from here on only the program listens.
    }

    /// Leaves its port to a process that somebody else starts.
    pub fn leave(&mut self) {
        self.listener = None;
    }

    /// Waits until `GET /readyz` answers 200; for long, since callgrind may count what it does.
    pub async fn ready(&mut self) {
        let this = std::sync::Mutex::new(&mut *self);
        eventually(4 * PATIENCE, || {
            let asked = {
                let mut this = super::lock(&this);
                let ended = this.process.as_mut().expect("started").ended();
                assert!(ended.is_none(), "postern ended: {ended:?}\n{}", this.output.text());
                let address = this.listener_address("admin");
                address.map(|address| this.http.get(format!("http://{address}/readyz")))
            };
            async move {
                match asked {
                    Some(request) => request.send().await.is_ok_and(|answer| answer.status() == 200),
                    None => false,
                }
            }
        })
        .await;
    }

    /// Stops in good order (SIGTERM) and waits for the end.
    pub async fn stop(&mut self) -> ExitStatus {
        self.terminate();
        self.wait_exit(PATIENCE).await
    }

    /// Sends SIGTERM and returns at once.
    pub fn terminate(&self) {
        self.running().signal("TERM");
    }

    /// Sends SIGHUP.
    pub fn hang_up(&self) {
        self.running().signal("HUP");
    }

    /// Ends it with SIGKILL, as a crash would.
    pub async fn kill9(&mut self) {
        self.running().signal("KILL");
        self.wait_exit(PATIENCE).await;
    }

    /// Waits until the program has ended by itself.
    pub async fn wait_exit(&mut self, deadline: Duration) -> ExitStatus {
        let status = self.process.as_mut().expect("started").wait(deadline).await;
        self.process = None;
        status
    }

    /// Whether the process that was started has ended. Collects it, if it has.
    pub fn has_ended(&mut self) -> bool {
        self.process.as_mut().is_none_or(|process| process.ended().is_some())
    }

    /// Waits until the process that was started has ended, whoever still prints; its exit code.
    pub async fn wait_code(&mut self) -> Option<i32> {
        let process = std::sync::Mutex::new(self.process.as_mut().expect("started"));
        let status = super::eventually_some(PATIENCE, || {
            let status = super::lock(&process).ended();
            async move { status }
        });
        let code = status.await.code();
        self.process = None;
        code
    }

    /// Sends any signal by its name.
    pub fn signal(&self, name: &str) {
        self.running().signal(name);
    }

    /// Sets or, without a value, removes a variable of the next start.
    pub fn set_env(&mut self, name: &str, value: Option<&str>) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.extend(value.map(|value| (name.to_owned(), value.to_owned())));
    }

    /// Starts it again on the same port with the same configuration and data; stops it first if it runs.
    pub async fn restart(&mut self) {
        if self.process.is_some() {
            self.stop().await;
        }
        self.listener = Some(self.port.listen_again().await);
        self.spawn();
        self.ready().await;
    }

    /// Starts it again after it has ended by itself.
    pub async fn start_again(&mut self) {
        self.process = None;
        self.restart().await;
    }

    /// As [`Gateway::restart`], but waits only until it listens.
    pub async fn restart_unready(&mut self) {
        if self.process.is_some() {
            self.stop().await;
        }
        self.listener = Some(self.port.listen_again().await);
        self.spawn();
        let this = &*self;
        eventually(PATIENCE, || async { this.listener_address("admin").is_some() }).await;
    }

    pub fn process_id(&self) -> u32 {
        self.running().id()
    }

    /// All lines it has printed, over all starts.
    pub fn logs(&self) -> Vec<String> {
        self.output.lines()
    }

    fn running(&self) -> &Process {
        self.process.as_ref().expect("running")
    }

    fn listener_address(&self, listener: &str) -> Option<SocketAddr> {
        self.output
            .lines()
            .iter()
            .skip(self.started_at_line)
            .find_map(|line| listening_address(line, listener))
    }
}

/// Reads `{"message":"listening","listener":…,"address":…}`, with the fields on top or below `fields`.
pub fn listening_address(line: &str, listener: &str) -> Option<SocketAddr> {
    let record: Value = serde_json::from_str(line).ok()?;
    let fields = if record["fields"].is_object() { &record["fields"] } else { &record };
    let matches = fields["message"] == "listening" && fields["listener"] == listener;
    fields["address"].as_str().filter(|_| matches)?.parse().ok()
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- what postern printed ---\n{}\n---", self.output.text());
        }
    }
}
