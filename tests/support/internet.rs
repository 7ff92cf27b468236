//! The whole Internet on one machine: a network name space whose loopback device answers for every address there is.
//!
//! A test enters it by running itself once more inside. There one listener per port hears whoever connects, to any
//! address: at [`PUBLIC`] it is a web server under the test's own names, everywhere else it only writes down that it was
//! reached. Names are what the hosts file says, which the test may rewrite at any time.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::process::{Output, Process};
use super::tls_server::{identity, serve};
use super::{PATIENCE, eventually, lock};

/// An address that no registry has reserved.
pub const PUBLIC: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 34);

/// Heard at every address. The web server is at the one for https.
const PORTS: [u16; 3] = [80, 443, 8080];

/// Where the outer run has put the hosts file; says to the inner run that it is inside.
const INSIDE: &str = "POSTERN_TEST_INTERNET";

/// How a name space of one's own is to be had: where the system lets anybody have one, else as root.
const WAYS: [&[&str]; 2] = [&["--user", "--map-root-user"], &[]];

/// The process name space is for the end: whatever happens to a run, it leaves no process behind.
const SPACES: [&str; 5] = ["--net", "--mount", "--pid", "--fork", "--kill-child"];

/// Every address becomes one of ours, the hosts file another, and then the test runs.
const SET_UP: &str = r#"
PATH="$PATH:/usr/sbin:/sbin"
ip link set lo up
ip route add local default dev lo
ip -6 route add local default dev lo
mount --bind "$0" /etc/hosts
exec "$@"
"#;

/// Longer than a run inside takes on a slow machine.
const DEADLINE: Duration = Duration::from_secs(55);

/// Exists inside only.
pub struct Internet {
    /// In PEM: whom Postern and browsers have to trust.
    pub certificate: String,
    hosts: PathBuf,
    reached: Arc<Mutex<Vec<SocketAddr>>>,
}

impl Internet {
    /// Outside: runs `test` of this program inside, where it must pass, and returns nothing. Inside: listens; `answer` is
    /// the web server of these names.
    pub async fn enter(
        test: &str,
        hosts: &str,
        names: &[&str],
        answer: impl Fn(&str) -> String + Send + Sync + 'static,
    ) -> Option<Self> {
        let Some(file) = std::env::var_os(INSIDE) else {
            outside(test, hosts).await;
            return None;
        };
        let (config, certificate) = identity(names);
        let (answer, reached) = (Arc::new(answer), Arc::<Mutex<Vec<SocketAddr>>>::default());
        for port in PORTS {
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).expect("listen");
            let (config, answer, reached) = (config.clone(), answer.clone(), reached.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    let at = stream.local_addr().expect("address");
                    let at = SocketAddr::new(at.ip().to_canonical(), at.port());
                    if at != SocketAddr::from((PUBLIC, 443)) {
                        lock(&reached).push(at);
                        continue;
                    }
                    let (config, answer) = (config.clone(), answer.clone());
                    std::thread::spawn(move || serve(stream, config, |_| {}, |request| answer(request)));
                }
            });
        }
        Some(Internet { certificate, hosts: file.into(), reached })
    }

    /// From now on these are the names.
    pub fn rename(&self, hosts: &str) {
        write_hosts(&self.hosts, hosts);
    }

    /// Where the hosts file is, for whoever rewrites it from within an answer.
    pub fn hosts_file() -> Option<PathBuf> {
        std::env::var_os(INSIDE).map(PathBuf::from)
    }

    /// Takes the list of all addresses reached so far, other than the web server's.
    pub async fn reached(&self) -> Vec<SocketAddr> {
        // Connections are taken up in their order, so once ours is there, so are all before it.
        const MARK: Ipv4Addr = Ipv4Addr::new(127, 99, 99, 99);
        for port in PORTS {
            drop(TcpStream::connect((MARK, port)).expect("connect"));
        }
        let is_mark = |address: &SocketAddr| address.ip() == IpAddr::from(MARK);
        eventually(PATIENCE, async || {
            lock(&self.reached).iter().filter(|at| is_mark(at)).count() == PORTS.len()
        })
        .await;
        let mut reached = std::mem::take(&mut *lock(&self.reached));
        reached.retain(|address| !is_mark(address));
        reached
    }
}

/// In place, since it is the file itself that is mounted.
pub fn write_hosts(file: &Path, hosts: &str) {
    std::fs::write(file, hosts).expect("hosts file");
}

async fn outside(test: &str, hosts: &str) {
    let way = match way_in() {
        Ok(way) => way,
        Err(reason) => {
            // Past the harness, which keeps to itself what a test prints that passes.
            let _ = writeln!(std::io::stderr(), "{test}: skipped, no network name space to be had: {reason}");
            return;
        }
    };
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    write_hosts(file.path(), hosts);
    let mut command = Command::new("unshare");
    command.args(way).args(SPACES).args(["sh", "-ec", SET_UP]).arg(file.path());
    command.arg(std::env::current_exe().expect("this program"));
    // By its name without the module's: that two of them have it would show below.
    command.args([test, "--nocapture", "--test-threads=1"]).env(INSIDE, file.path());
    let output = Output::default();
    let status = Process::start(command, &output).wait(DEADLINE).await;
    let text = output.text();
    println!("--- inside ---\n{text}\n---");
    // A name that is no test's would pass as well.
    assert!(status.success() && text.contains("1 passed"), "{test}: {status}");
}

/// The arguments for `unshare`, or why the system lets us have no name space.
fn way_in() -> Result<&'static [&'static str], String> {
    let mut reason = String::new();
    for way in WAYS {
        let tried = Command::new("unshare")
            .args(way)
            .args(SPACES)
            .arg("true")
            .output()
            .expect("unshare, of util-linux");
        if tried.status.success() {
            return Ok(way);
        }
        let said = String::from_utf8_lossy(&tried.stderr).trim().to_owned();
        // Not permitted, or so many of them allowed as none.
        let refusals = ["not permitted", "ermission denied", "No space left"];
        assert!(refusals.iter().any(|refusal| said.contains(refusal)), "unshare {way:?}: {said}");
        reason = said;
    }
    Err(reason)
}
