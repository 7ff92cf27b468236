//! Real Redis servers: one, a primary with replicas and Sentinels, or a Cluster. Each has a port and a directory of its
//! own and ends when it is dropped. Stands alone, so that the tests inside the crate can use it too.
#![allow(dead_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::net::TcpSocket;

const PATIENCE: Duration = Duration::from_secs(20);

/// A redis-server on a free port.
pub struct Redis {
    pub port: u16,
    /// Keeps the port ours, also while the server is down.
    _port: TcpSocket,
    directory: TempDir,
    arguments: Vec<String>,
    child: Mutex<Child>,
}

impl Redis {
    /// Starts one that writes nothing to disk unless told to.
    pub fn start(arguments: &[&str]) -> Self {
        Self::launch(|_| arguments.iter().map(|argument| argument.to_string()).collect())
    }

    /// As [`Redis::start`], with arguments that depend on the directory.
    pub fn launch(arguments: impl Fn(&Path) -> Vec<String>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let arguments = arguments(directory.path());
        let (reserved, port) = reserve();
        let mut child = spawn(directory.path(), port, &arguments);
        assert!(answers(port, &mut child), "redis-server does not start");
        Self { port, _port: reserved, directory, arguments, child: Mutex::new(child) }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    pub fn kill(&self) {
        let mut child = self.child.lock().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Starts it again where it was, with what it had written to disk.
    pub fn again(&self) {
        let mut child = spawn(self.directory.path(), self.port, &self.arguments);
        assert!(answers(self.port, &mut child), "redis-server does not start again");
        *self.child.lock().unwrap() = child;
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.lock().unwrap().id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// How often a command was called, as the server counts.
    pub fn calls(&self, command: &str) -> u64 {
        let stats = self.cli(&["INFO", "commandstats"]);
        let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        line.and_then(|rest| rest.split(',').next()?.parse().ok()).unwrap_or_default()
    }

    pub fn cli(&self, arguments: &[&str]) -> String {
        cli(self.port, arguments)
    }

    /// Waits until what it answers contains `wanted`.
    pub fn wait_for(&self, arguments: &[&str], wanted: &str) {
        wait_until(&format!("{arguments:?} contains {wanted}"), || self.cli(arguments).contains(wanted));
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap();
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// A primary, a replica and three Sentinels that watch over them.
pub struct Watched {
    pub primary: Redis,
    pub replica: Redis,
    pub sentinels: Vec<Redis>,
}

impl Watched {
    pub const MASTER: &str = "main";

    pub fn start() -> Self {
        let primary = Redis::start(&[]);
        let replica = Redis::start(&["--replicaof", "127.0.0.1", &primary.port.to_string()]);
        replica.wait_for(&["INFO", "replication"], "master_link_status:up");
        let sentinel = |directory: &Path| {
            // A Sentinel keeps its state in its configuration file.
            let file = directory.join("sentinel.conf");
            let name = Self::MASTER;
            let text = format!(
                "sentinel monitor {name} 127.0.0.1 {} 2\nsentinel down-after-milliseconds {name} 500\n\
                 sentinel failover-timeout {name} 3000\nsentinel parallel-syncs {name} 1\n",
                primary.port
            );
            std::fs::write(&file, text).unwrap();
            vec![file.to_str().unwrap().to_owned(), "--sentinel".to_owned()]
        };
        let sentinels: Vec<_> = (0..3).map(|_| Redis::launch(sentinel)).collect();
        for sentinel in &sentinels {
            sentinel.wait_for(&["SENTINEL", "MASTER", Self::MASTER], "num-other-sentinels\n2");
            sentinel.wait_for(&["SENTINEL", "MASTER", Self::MASTER], "num-slaves\n1");
        }
        Self { primary, replica, sentinels }
    }

    pub fn urls(&self) -> Vec<String> {
        self.sentinels.iter().map(|sentinel| format!("redis://127.0.0.1:{}", sentinel.port)).collect()
    }

    /// Whether the replica has all that the primary has written.
    pub fn replica_has_caught_up(&self) -> bool {
        let says = self.primary.cli(&["INFO", "replication"]);
        let number = |name: &str| -> u64 {
            let after = says.split(name).nth(1).unwrap();
            after.split(|next: char| !next.is_ascii_digit()).next().unwrap().parse().unwrap()
        };
        number("offset=") == number("master_repl_offset:")
    }

    /// Waits until the replica has become the primary.
    pub fn wait_for_failover(&self) {
        self.replica.wait_for(&["INFO", "replication"], "role:master");
    }
}

/// Three primaries with a replica each.
pub struct Cluster {
    pub nodes: Vec<Redis>,
    _bus_ports: Vec<TcpSocket>,
}

impl Cluster {
    pub fn start() -> Self {
        // The port of the cluster's own bus; the usual one, ten thousand above, may not exist.
        let (bus_ports, ports): (Vec<_>, Vec<_>) = (0..6).map(|_| reserve()).unzip();
        let nodes: Vec<_> = ports
            .iter()
            .map(|port| {
                let port = port.to_string();
                let arguments =
                    ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-port"];
                Redis::start(&[&arguments[..], &[&port]].concat())
            })
            .collect();
        let mut create = Command::new("redis-cli");
        create.args(["--cluster", "create"]);
        create.args(nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)));
        create.args(["--cluster-replicas", "1", "--cluster-yes"]);
        let made = create.output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
        for node in &nodes {
            node.wait_for(&["CLUSTER", "INFO"], "cluster_state:ok");
            node.wait_for(&["CLUSTER", "INFO"], "cluster_slots_ok:16384");
        }
        wait_until("every replica is linked", || {
            let up = |node: &Redis| node.cli(&["INFO", "replication"]).contains("master_link_status:up");
            nodes.iter().filter(|node| up(node)).count() == 3
        });
        Self { nodes, _bus_ports: bus_ports }
    }

    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(|node| format!("redis://127.0.0.1:{}", node.port)).collect()
    }

    /// The primaries, as the nodes see themselves.
    pub fn primaries(&self) -> Vec<&Redis> {
        let is_primary = |node: &&Redis| node.cli(&["INFO", "replication"]).contains("role:master");
        self.nodes.iter().filter(is_primary).collect()
    }
}

fn cli(port: u16, arguments: &[&str]) -> String {
    let output = Command::new("redis-cli").args(["-p", &port.to_string()]).args(arguments).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().replace('\r', "")
}

/// A port of the kernel's choosing that nobody else is given: bound and never listening. Who asks for it by number, with
/// `SO_REUSEADDR` as servers do, may listen.
fn reserve() -> (TcpSocket, u16) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

fn spawn(directory: &Path, port: u16, arguments: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    // A configuration file stands in front.
    let (file, rest) = match arguments.first() {
        Some(first) if !first.starts_with("--") => (Some(first), &arguments[1..]),
        _ => (None, arguments),
    };
    command.args(file);
    // With TLS there is no plain port.
    let tls = rest.iter().position(|argument| argument == "PORT");
    let rest: Vec<String> = rest
        .iter()
        .map(|argument| if argument == "PORT" { port.to_string() } else { argument.clone() })
        .collect();
    let plain = if tls.is_some() { "0".to_owned() } else { port.to_string() };
    command.args(["--port", &plain, "--bind", "127.0.0.1"]).arg("--dir").arg(directory).args(rest);
    if file.is_none() {
        command.args(["--save", ""]);
    }
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server, which `make test` installs")
}

fn answers(port: u16, child: &mut Child) -> bool {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        // One that wants a password answers too; one with TLS only takes the connection.
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return child.try_wait().unwrap().is_none();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "still not so: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
