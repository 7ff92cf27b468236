//! The unit and the program under a systemd: started, reloaded under load, watched and stopped as `systemctl` does it, with all that the
//! unit takes from it. `tests/edge/upgrade.rs` has what the program does of itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::disallowed_methods)]

use crate::support;

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::json;
use support::browser::Browser;
use support::client::{Client, Tokens};
use support::gate::Gate;
use support::gateway::{Builder, Gateway, Route};
use support::machine::Machine;
use support::mcp::McpRequest;
use support::port::Port;
use support::process::{Finished, PROGRAM};
use support::script::Answer;
use support::upstream::Upstream;
use support::{PATIENCE, eventually, http_client};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

const ECHO: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"message":"late"}}}"#;

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/conf/postern.service");
const CONFIG: &str = "/etc/postern/postern.yaml";
const INSTALLED: &str = "/usr/bin/postern";
/// Nothing of the unit is set otherwise.
const AS_IT_IS: &str = "";

/// The service on a machine of its own. What clients see of it is as with any gateway.
struct Unit {
    gateway: Gateway,
    machine: Machine,
    _admin: Port,
}

impl Unit {
    /// Starts it; `None` where there is no machine to be had.
    async fn start(test: &str, builder: Builder, drop_in: &str) -> Option<Self> {
        let (machine, admin) = (Machine::boot(test)?, Port::take());
        let builder = builder
            .with("server.admin", json!(admin.address().to_string()))
            .with("server.data_dir", json!("/var/lib/postern"))
            .with("server.access_log", json!("off"));
        let mut gateway = builder.prepare();
        gateway.leave();
        let unit = Unit { gateway, machine, _admin: admin };
        let at = |path: &str| unit.machine.file(path);
        std::fs::create_dir(at("/etc/postern")).unwrap();
        std::fs::copy(UNIT, at("/usr/lib/systemd/system/postern.service")).unwrap();
        std::fs::create_dir(at("/etc/systemd/system/postern.service.d")).unwrap();
        std::fs::write(at("/etc/systemd/system/postern.service.d/test.conf"), drop_in).unwrap();
        unit.configure();
        unit.install();
        assert_eq!(unit.systemctl("daemon-reload").await.code, Some(0));
        let started = unit.systemctl("start postern").await;
        assert_eq!(started.code, Some(0), "{}{}", started.stderr, unit.journal().await);
        Some(unit)
    }

    /// Takes over what the gateway's configuration is by now.
    fn configure(&self) {
        std::fs::copy(self.gateway.config_file(), self.machine.file(CONFIG)).unwrap();
        std::fs::set_permissions(self.machine.file(CONFIG), PermissionsExt::from_mode(0o644)).unwrap();
    }

    /// Puts the program in its place, as a package does: another file each time.
    fn install(&self) {
        std::fs::copy(PROGRAM, self.machine.file("/usr/bin/postern.new")).unwrap();
        std::fs::rename(self.machine.file("/usr/bin/postern.new"), self.machine.file(INSTALLED)).unwrap();
    }

    /// Puts a script in its place. The program itself lies beside it.
    fn install_script(&self, text: &str) {
        let beside = self.machine.file("/usr/bin/postern.good");
        if !beside.exists() {
            std::fs::rename(self.machine.file(INSTALLED), beside).unwrap();
        }
        let script = self.machine.file("/usr/bin/postern.new");
        std::fs::write(&script, text).unwrap();
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::rename(script, self.machine.file(INSTALLED)).unwrap();
    }

    async fn systemctl(&self, words: &str) -> Finished {
        self.machine.run(&format!("systemctl {words}")).await
    }

    /// What `systemctl show` says of it.
    async fn property(&self, name: &str) -> String {
        self.systemctl(&format!("show --value --property={name} postern")).await.stdout
    }

    async fn journal(&self) -> String {
        self.machine.run("journalctl --no-pager --unit=postern").await.stdout
    }

    /// Every process of it, by the machine's numbers.
    async fn processes(&self) -> Vec<String> {
        let listed = "/sys/fs/cgroup/system.slice/postern.service/cgroup.procs";
        self.machine.run(&format!("cat {listed}")).await.stdout.lines().map(str::to_owned).collect()
    }

    /// Waits until this is the only one.
    async fn is_alone(&self, process: &str) {
        eventually(PATIENCE, || async { self.processes().await == [process] }).await;
    }

    /// `None` while nobody is there.
    async fn answers(&self, tokens: &Tokens) -> Option<u16> {
        let call = McpRequest::to(&http_client(&[]), &self.gateway.url("/demo")).bearer(&tokens.access_token);
        call.try_send("POST", Some(ECHO)).await.ok().map(|answer| answer.status().as_u16())
    }

    async fn tokens(&self) -> (Client, Tokens) {
        let client = Client::register(&self.gateway).await;
        let tokens = client.sign_in(&mut Browser::new(), "demo").await;
        (client, tokens)
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let journal = self.machine.run_now("journalctl --no-pager --unit=postern --unit=init.scope");
            eprintln!("--- the journal ---\n{}\n---", journal.stdout);
        }
    }
}

/// Callers who fail the test when a single call fails, half of them over a new connection each time.
struct Load {
    done: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    callers: Vec<JoinHandle<()>>,
}

impl Load {
    fn begin(gateway: &Gateway, tokens: &Tokens) -> Self {
        let (done, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let caller = |number: usize| {
            let (done, served) = (Arc::clone(&done), Arc::clone(&served));
            let (kept, url, token) =
                (gateway.http.clone(), gateway.url("/demo"), tokens.access_token.clone());
            tokio::spawn(async move {
                while !done.load(Ordering::Relaxed) {
                    let http = if number.is_multiple_of(2) { kept.clone() } else { http_client(&[]) };
                    let answer = McpRequest::to(&http, &url).bearer(&token).post(ECHO).await;
                    assert_eq!((answer.status, answer.tool_text()), (200, "late".into()));
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let callers = (0..4).map(caller).collect();
        Load { done, served, callers }
    }

    /// Waits until some more calls have been served.
    async fn goes_on(&self) {
        let before = self.served.load(Ordering::Relaxed);
        eventually(PATIENCE, || async {
            assert!(self.callers.iter().all(|caller| !caller.is_finished()), "a call has failed");
            self.served.load(Ordering::Relaxed) > before + 20
        })
        .await;
    }

    async fn end(self) -> usize {
        self.done.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.await.unwrap();
        }
        self.served.load(Ordering::Relaxed)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_f27_systemctl_reload_moves_the_main_process_and_nobody_notices() {
    let (upstream, streaming) = (Upstream::open().await, Upstream::open().await);
    let builder =
        Gateway::builder().route(Route::open("demo", &upstream)).route(Route::open("streams", &streaming));
    let test = "sr_f27_systemctl_reload_moves_the_main_process_and_nobody_notices";
    let Some(unit) = Unit::start(test, builder, AS_IT_IS).await else { return };
    assert_eq!(unit.property("ActiveState").await, "active");
    let (client, tokens) = unit.tokens().await;
    let at_streams = client.sign_in(&mut Browser::new(), "streams").await;
    let load = Load::begin(&unit.gateway, &tokens);
    let (mut last, mut streams) = (unit.property("MainPID").await, Vec::new());
    let rounds = if std::env::var_os("POSTERN_SOAK").is_some() { 20 } else { 2 };
    for round in 0..rounds {
        let (feed, answer) = Answer::stream();
        streaming.answer_next(answer);
        let mut events = unit.gateway.mcp("streams").bearer(&at_streams.access_token).events().await;
        feed.event("begins");
        assert_eq!(events.next(PATIENCE).await.unwrap().data, "begins");
        streams.push((feed, events));
        // The configuration alone, which the process reads that runs.
        unit.gateway.reconfigure("server.allowed_origins", json!([format!("https://{round}.example.com")]));
        unit.configure();
        let done = unit.systemctl("reload postern").await;
        assert_eq!(done.code, Some(0), "{}{}", done.stderr, unit.journal().await);
        assert_eq!(unit.property("MainPID").await, last);
        // Another program.
        unit.install();
        let done = unit.systemctl("reload postern").await;
        assert_eq!(done.code, Some(0), "{}{}", done.stderr, unit.journal().await);
        let successor = unit.property("MainPID").await;
        assert_ne!(successor, last);
        last = successor;
        let both = unit.processes().await;
        assert!(both.contains(&last) && both.len() > 1, "the old one keeps its stream: {both:?}");
        load.goes_on().await;
    }
    let served = load.end().await;
    println!("{} reloads by systemctl, {served} calls", 2 * rounds);
    for (feed, mut events) in streams {
        feed.event("goes on");
        assert_eq!(events.next(PATIENCE).await.unwrap().data, "goes on");
        feed.finish();
        assert_eq!(events.next(PATIENCE).await, None);
    }
    unit.is_alone(&last).await;
    for (name, value) in
        [("ActiveState", "active"), ("SubState", "running"), ("NRestarts", "0"), ("Result", "success")]
    {
        assert_eq!(unit.property(name).await, value, "{name}");
    }
    let status = unit.systemctl("--no-pager status postern").await;
    assert_eq!(status.code, Some(0), "{}", status.stdout);
    assert!(status.stdout.contains(&format!("Main PID: {last} (postern)")), "{}", status.stdout);
    // What the unit takes from it is taken from its successors as well.
    let limits = unit.machine.run(&format!("cat /proc/{last}/status")).await.stdout;
    let field =
        |name: &str| limits.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    let user: u32 = field("Uid:").split_whitespace().next().unwrap().parse().unwrap();
    assert!((61184..=65519).contains(&user), "a dynamic user: {user}");
    assert_eq!((field("NoNewPrivs:").as_str(), field("Seccomp:").as_str()), ("1", "2"));
    assert_eq!(field("CapEff:"), "0000000000000400", "ports below 1024, and nothing else");
    for place in ["usr", "etc", "var/lib"] {
        let touched = unit.machine.run(&format!("touch /proc/{last}/root/{place}/x")).await;
        assert!(touched.stderr.contains("Read-only file system"), "{place}: {}", touched.stderr);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sr_f28_systemctl_reload_fails_where_the_new_program_does_and_the_old_one_serves() {
    let upstream = Upstream::open().await;
    let builder = Gateway::builder().route(Route::open("demo", &upstream));
    let builder = builder.with("server.upgrade_timeout", json!("2s"));
    let test = "sr_f28_systemctl_reload_fails_where_the_new_program_does_and_the_old_one_serves";
    let Some(unit) = Unit::start(test, builder, AS_IT_IS).await else { return };
    let (_, tokens) = unit.tokens().await;
    let load = Load::begin(&unit.gateway, &tokens);
    let before = unit.property("MainPID").await;
    let stays = async |reason: &str| {
        let refused = unit.systemctl("reload postern").await;
        assert_eq!(refused.code, Some(1), "{reason}");
        // systemd names the service; why, is in the journal.
        eventually(PATIENCE, || async { unit.journal().await.contains(reason) }).await;
        assert_eq!(unit.property("MainPID").await, before, "{reason}");
        assert_eq!(unit.property("ActiveState").await, "active", "{reason}");
        unit.is_alone(&before).await;
        load.goes_on().await;
    };
    let good = std::fs::read_to_string(unit.gateway.config_file()).unwrap();
    std::fs::write(unit.gateway.config_file(), good.replace("\"routes\"", "\"rotues\"")).unwrap();
    unit.configure();
    stays("rotues").await;
    std::fs::write(unit.gateway.config_file(), good).unwrap();
    unit.configure();
    // One that does nothing at all, and those that fail only once they are to serve. Of the first, who was to become it dies so soon
    // that journald may not learn whose words "Exec format error" were: the status is systemd's own word.
    unit.install_script("no program at all");
    stays("status=203/EXEC").await;
    unit.install_script("#!/bin/sh\necho broken\nexit 1\n");
    stays("broken").await;
    for (run, reason) in [("exit 3", "(exit status: 3)"), ("exec sleep 1000", "did not serve in time")] {
        let all_but_run = format!("[ \"$1\" = run ] || exec {INSTALLED}.good \"$@\"");
        unit.install_script(&format!("#!/bin/sh\n{all_but_run}\n{run}\n"));
        stays(reason).await;
    }
    unit.install();
    let done = unit.systemctl("reload postern").await;
    assert_eq!(done.code, Some(0), "{}{}", done.stderr, unit.journal().await);
    let successor = unit.property("MainPID").await;
    assert_ne!(successor, before);
    load.goes_on().await;
    load.end().await;
    unit.is_alone(&successor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_is_watched_and_stopped_as_the_one_that_was_started() {
    let upstream = Upstream::open().await;
    let builder = Gateway::builder().route(Route::open("demo", &upstream));
    let test = "a_successor_is_watched_and_stopped_as_the_one_that_was_started";
    let Some(unit) = Unit::start(test, builder, "[Service]\nWatchdogSec=2\n").await else { return };
    let (_, tokens) = unit.tokens().await;
    let reload = async || {
        let before = unit.property("MainPID").await;
        unit.install();
        assert_eq!(unit.systemctl("reload postern").await.code, Some(0), "{}", unit.journal().await);
        let successor = unit.property("MainPID").await;
        assert_ne!(successor, before);
        successor
    };
    let restarts = async |count: &str| {
        eventually(4 * PATIENCE, || async { unit.property("NRestarts").await == count }).await;
        eventually(PATIENCE, || async { unit.answers(&tokens).await == Some(200) }).await;
    };
    // It dies while the old one still ends what it has begun, and is nobody's child but systemd's.
    let successor = reload().await;
    unit.machine.run(&format!("kill -KILL {successor}")).await;
    restarts("1").await;
    // It hangs.
    let successor = reload().await;
    unit.machine.run(&format!("kill -STOP {successor}")).await;
    restarts("2").await;
    assert!(unit.journal().await.contains("Watchdog timeout"), "{}", unit.journal().await);
    // It is stopped, and ends what it has begun. It is alone: for others systemd would wait in any case.
    let successor = reload().await;
    unit.is_alone(&successor).await;
    let gate = Gate::shut();
    upstream.set(|script| script.gate = Some(gate.clone()));
    let call = unit.gateway.mcp("demo").bearer(&tokens.access_token);
    let calling = tokio::spawn(async move { call.post(ECHO).await });
    gate.wait_for(1, PATIENCE).await;
    assert_eq!(unit.systemctl("--no-block stop postern").await.code, Some(0));
    // No call asks: one that came before the signal would wait at the gate as well.
    eventually(PATIENCE, || async { TcpStream::connect(unit.gateway.address).await.is_err() }).await;
    assert_eq!(unit.property("ActiveState").await, "deactivating");
    gate.open();
    assert_eq!(calling.await.unwrap().tool_text(), "late");
    eventually(PATIENCE, || async { unit.property("ActiveState").await == "inactive" }).await;
    assert_eq!(unit.property("Result").await, "success");
    assert_eq!(unit.property("ExecMainStatus").await, "0");
    assert!(unit.processes().await.is_empty());
}
