#!/usr/bin/env python3
"""Measures Postern beside nginx on one machine, in one run, against the same local MCP backend.

    benches/run.py POSTERN        (a release build; `make bench` makes one)

Load and backend share core 0; nginx and Postern have core 1, one worker each (with one core, all share it).
Every request is the same 283-byte tools/call. Rounds are interleaved, so that a busy moment of the machine
hits every target; the table shows medians. Only ratios travel to another machine.
By environment: BENCH_ROUNDS (5), BENCH_SECONDS (3, per target and round), BENCH_CONNECTIONS (64).
"""

import base64
import contextlib
import http.client
import json
import os
import pathlib
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field

import signin

HERE = pathlib.Path(__file__).resolve().parent
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
SECONDS = int(os.environ.get("BENCH_SECONDS", "3"))
CONNECTIONS = int(os.environ.get("BENCH_CONNECTIONS", "64"))
CORES = sorted(os.sched_getaffinity(0))
LOAD_CORE, PROXY_CORE = CORES[0], CORES[min(1, len(CORES) - 1)]
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

UPSTREAM_TOKEN = "upstream-credential-of-the-benchmark"
USERNAME, PASSWORD = "alice", "pw"
PASSWORD_HASH = (
    "$argon2id$v=19$m=19456,t=2,p=1$8ZCVR4QDG/0C4YXMmXc5eg$m/LlQtKDdhxEFEjjkAiV8iTCvwp/xu4N6O8sWaElWH8"
)
# As long as a usual token; stands for one where nobody looks at it.
IDLE_TOKEN = "x" * 500


def padded(message, text_of, size):
    """`message` as JSON, its text filled up until it is `size` bytes long."""
    text_of(message)["text"] = "".ljust(size - len(json.dumps(message)), "m")
    encoded = json.dumps(message)
    assert len(encoded) == size
    return encoded


CALL = padded(
    {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": "echo", "arguments": {"text": ""}, "_meta": {"progressToken": 1}},
    },
    lambda message: message["params"]["arguments"],
    283,
)
ANSWER = padded(
    {"jsonrpc": "2.0", "id": 1, "result": {"content": [{"type": "text", "text": ""}], "isError": False}},
    lambda message: message["result"]["content"][0],
    284,
)


@dataclass
class Target:
    """What is measured. `token` gives the bearer token of the moment, `arrives` what the backend must see."""

    name: str
    url: str
    process: subprocess.Popen
    token: callable
    arrives: str
    requests_per_second: list = field(default_factory=list)
    cpu_microseconds: list = field(default_factory=list)
    failed: int = 0


def listening_socket():
    """A socket on a port of the kernel's choosing; the program it is handed to never races for the port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=511)
    return listener, listener.getsockname()[1]


def started(stack, command, core, **options):
    """Starts a program on `core`; it is ended, by its own id, when the run ends."""
    process = subprocess.Popen(["taskset", "-c", str(core), *command], **options)

    def end():
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(end)
    return process


def nginx(stack, directory, name, core, **names):
    """One nginx with the configuration `name`.conf; takes its socket the way a binary upgrade hands it over."""
    listener, port = listening_socket()
    text = (HERE / f"{name}.conf").read_text()
    for key, value in {"dir": directory, "port": port, **names}.items():
        text = text.replace(f"@{key}@", str(value))
    configuration = directory / f"{name}.conf"
    configuration.write_text(text)
    command = ["nginx", "-p", str(directory), "-c", str(configuration), "-e", str(directory / f"{name}.log")]
    if os.geteuid() == 0:
        command += ["-g", "user root;"]
    environment = os.environ | {"NGINX": f"{listener.fileno()};"}
    with listener:
        process = started(
            stack, command, core, env=environment, pass_fds=[listener.fileno()], stdin=subprocess.DEVNULL
        )
    return process, port


def redis(stack, directory, core):
    """A Redis that keeps nothing."""
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)]
    started(stack, command, core, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return port


def on_redis(directory, port):
    """What the configuration says of a shared store."""
    key = directory / "sealing.key"
    key.write_text(base64.b64encode(os.urandom(32)).decode())
    key.chmod(0o600)
    return {
        "store": {"kind": "redis", "urls": [f"redis://127.0.0.1:{port}/0"]},
        "sealing_keys": [{"id": "k1", "file": str(key)}],
    }


def postern(stack, directory, program, core, backend_port, more=None):
    """Postern with one route to the backend and a static credential; its public socket by LISTEN_FDS."""
    directory.mkdir(exist_ok=True)
    listener, port = listening_socket()
    origin = f"http://127.0.0.1:{port}"
    secret = directory / "upstream-token"
    secret.write_text(UPSTREAM_TOKEN)
    configuration = {
        "server": {
            "public_url": origin,
            "listen": [f"127.0.0.1:{port}"],
            "admin": "127.0.0.1:0",
            "data_dir": str(directory / "postern-data"),
            "threads": 1,
            "access_log": "off",
        },
        "login": {"local": {"users": [{"username": USERNAME, "password_hash": PASSWORD_HASH}]}},
        "routes": [
            {
                "name": "bench",
                "path": "/bench",
                "upstream": {"url": f"http://127.0.0.1:{backend_port}/mcp", "allow_private": True},
                "credential": {
                    "kind": "header",
                    "name": "Authorization",
                    "value": {"file": str(secret)},
                    "format": "Bearer {value}",
                },
            }
        ],
    }
    path = directory / "postern.yaml"
    path.write_text(json.dumps(configuration | (more or {})))  # JSON is YAML
    hand_over = 'exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$0" "$@"'
    with listener, open(directory / "postern.log", "wb") as log:
        process = started(
            stack,
            ["sh", "-c", hand_over, program, "run", "--config", str(path)],
            core,
            stdin=listener,
            stdout=log,
            stderr=log,
        )
    return process, origin


class GatewayToken:
    """A token of Postern, got by the real flow and again when half its life is over."""

    def __init__(self, origin):
        self.origin, self.value, self.renew_at = origin, None, 0.0

    def __call__(self):
        if time.monotonic() >= self.renew_at:
            self.value, lifetime = signin.access_token(self.origin, f"{self.origin}/bench", USERNAME, PASSWORD)
            self.renew_at = time.monotonic() + lifetime / 2
        return self.value


def wait_until_serving(process, url):
    """Until the port answers anything at all; a program that has ended is an error."""
    host = url.split("/")[2]
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the program for {url} ended with {process.returncode}")
        connection = http.client.HTTPConnection(host, timeout=1)
        try:
            connection.request("GET", "/")
            connection.getresponse().read()
            return
        except OSError:
            pass  # the socket waits for its program, or the program has just begun
        finally:
            connection.close()
    raise RuntimeError(f"{url} does not answer")


def check(target, seen):
    """One call must come back whole, and the backend must have seen exactly the credential it should."""
    before = seen.read_text() if seen.exists() else ""
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": "2025-11-25",
        "Authorization": f"Bearer {target.token()}",
        "X-Bench-Check": "1",
    }
    _, _, host, path = target.url.split("/", 3)
    connection = http.client.HTTPConnection(host, timeout=10)
    connection.request("POST", f"/{path}", CALL, headers)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    if response.status != 200 or body != ANSWER:
        raise RuntimeError(f"{target.name}: {response.status} {body[:300]}")
    deadline = time.monotonic() + 5
    while (lines := seen.read_text() if seen.exists() else "") == before and time.monotonic() < deadline:
        os.sched_yield()  # nginx writes its log line just after the answer
    if lines[len(before) :] != f"{target.arrives or headers['Authorization']}\n":
        raise RuntimeError(f"{target.name}: the backend saw another credential than it should")


def cpu_ticks(root):
    """User and system time of a process and all its descendants, in clock ticks."""
    parents, ticks = {}, {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # ended meanwhile
                # After the name in parentheses: state, parent, ..., utime and stime as 12th and 13th.
                values = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)], ticks[int(entry.name)] = int(values[1]), int(values[11]) + int(values[12])
    total, family = 0, [root]
    while family:
        member = family.pop()
        total += ticks.get(member, 0)
        family += [child for child, parent in parents.items() if parent == member]
    return total


def load(target, seconds, body):
    """One run of wrk; gives requests, seconds and the CPU seconds of the target meanwhile."""
    command = ["taskset", "-c", str(LOAD_CORE), "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s"]
    environment = os.environ | {"BENCH_TOKEN": target.token(), "BENCH_BODY": str(body)}
    before = cpu_ticks(target.process.pid)
    output = subprocess.run(
        [*command, "-s", str(HERE / "call.lua"), target.url],
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
    ).stdout
    ticks = cpu_ticks(target.process.pid) - before
    result = next(line for line in output.splitlines() if line.startswith("RESULT ")).split()
    requests, microseconds, refused, broken = map(int, result[1:])
    return requests, microseconds / 1e6, ticks / TICKS_PER_SECOND, refused + broken


def measure(targets, body):
    for target in targets:
        load(target, 1, body)  # warm: connections, caches, branch predictors
    for _ in range(ROUNDS):
        for target in targets:
            requests, seconds, cpu_seconds, failed = load(target, SECONDS, body)
            if requests == 0:
                raise RuntimeError(f"{target.name}: no request came through")
            target.requests_per_second.append(requests / seconds)
            target.cpu_microseconds.append(cpu_seconds / requests * 1e6)
            target.failed += failed


def table(targets, yardstick):
    """Rows of text; ratios are to `yardstick`."""
    yield ["target", "req/s median (min–max)", "CPU µs/req", "failed", "req/s ÷ nginx", "CPU ÷ nginx"]
    base_rate = statistics.median(yardstick.requests_per_second)
    base_cpu = statistics.median(yardstick.cpu_microseconds)
    for target in targets:
        rates, cpu = target.requests_per_second, statistics.median(target.cpu_microseconds)
        rate = statistics.median(rates)
        yield [
            target.name,
            f"{rate:,.0f} ({min(rates):,.0f}–{max(rates):,.0f})",
            f"{cpu:.1f}",
            str(target.failed),
            f"{rate / base_rate:.2f}",
            # The CPU of the direct row is the backend's own: no ratio of proxies.
            f"{cpu / base_cpu:.2f}" if target is not targets[0] else "",
        ]


def print_table(rows):
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rule = ["-" * width for width in widths]
    for row in [rows[0], rule, *rows[1:]]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |")


def machine_line():
    model = next(
        (line.partition(":")[2].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    version = subprocess.run(["nginx", "-v"], capture_output=True, text=True).stderr.strip().rpartition("/")[2]
    placing = "cores shared" if LOAD_CORE == PROXY_CORE else "load and backend on one core, proxy on another"
    return (
        f"{model}, {len(CORES)} cores, Linux {platform.release()}, nginx {version}; {placing}; "
        f"wrk, 1 thread, {CONNECTIONS} connections, {ROUNDS} rounds of {SECONDS} s"
    )


def run(program):
    with contextlib.ExitStack() as stack:
        directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="postern-bench-")))
        body = directory / "call.json"
        body.write_text(CALL)
        seen = directory / "backend-seen.log"

        backend, backend_port = nginx(stack, directory, "backend", LOAD_CORE, answer=ANSWER)
        proxy, proxy_port = nginx(stack, directory, "proxy", PROXY_CORE, backend_port=backend_port)
        gateway, origin = postern(stack, directory, program, PROXY_CORE, backend_port)
        shared = on_redis(directory, redis(stack, directory, LOAD_CORE))
        second, second_origin = postern(
            stack, directory / "on-redis", program, PROXY_CORE, backend_port, shared
        )

        def idle():
            return IDLE_TOKEN

        targets = [
            Target("direct (CPU of the backend)", f"http://127.0.0.1:{backend_port}/mcp", backend, idle, ""),
            Target("nginx proxy_pass, no checks", f"http://127.0.0.1:{proxy_port}/mcp", proxy, idle, ""),
            Target("Postern", f"{origin}/bench", gateway, GatewayToken(origin), f"Bearer {UPSTREAM_TOKEN}"),
            Target(
                "Postern on Redis",
                f"{second_origin}/bench",
                second,
                GatewayToken(second_origin),
                f"Bearer {UPSTREAM_TOKEN}",
            ),
        ]
        try:
            for target in targets:
                wait_until_serving(target.process, target.url)
                check(target, seen)
            measure(targets, body)
        except Exception:
            for log in sorted(directory.glob("*.log")):
                if log != seen:
                    tail = log.read_text(errors="replace").splitlines()[-20:]
                    print(f"--- {log.name}", *tail, sep="\n", file=sys.stderr)
            raise
        print(machine_line())
        print_table(table(targets, yardstick=targets[1]))
        return sum(target.failed for target in targets)


def main():
    os.environ["PATH"] += ":/usr/sbin:/sbin"  # where Debian keeps nginx
    if len(sys.argv) != 2 or not os.access(sys.argv[1], os.X_OK):
        sys.exit("usage: benches/run.py POSTERN, the built program")
    absent = [name for name in ("nginx", "wrk", "taskset", "redis-server") if shutil.which(name) is None]
    if absent:
        sys.exit(f"missing: {', '.join(absent)}; tests/setup/install.sh bench installs them")
    try:
        failed = run(str(pathlib.Path(sys.argv[1]).resolve()))
    except RuntimeError as error:
        sys.exit(f"bench: {error}")
    if failed:
        sys.exit("some requests failed: the figures do not count")


if __name__ == "__main__":
    main()
