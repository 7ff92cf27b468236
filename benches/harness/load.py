"""The load: wrk, a closed loop, and h2load, which sends at a fixed rate whether answers come or not."""

import math
import os
import pathlib
import statistics
import subprocess
import time
from dataclasses import dataclass

from . import machine
from .calls import HEADERS
from .peers import CONF


@dataclass
class Run:
    """One stretch of load on one target; latencies in microseconds, the cores' shares from 0 to 1."""

    rate: float
    cpu: float
    p50: float
    p99: float
    failed: int
    proxy_busy: float
    load_busy: float


def wrk(target, body, seconds, connections=64, core=machine.LOAD_CORE):
    """As fast as answers come. `body`: the file with what is posted."""
    tokens = body.parent / "tokens"
    tokens.write_text("\n".join(target.tokens()))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", CONF / "calls.lua"]
    environment = os.environ | {"BENCH_BODY": str(body), "BENCH_TOKENS": str(tokens)}
    with machine.watched(target.processes) as cost:
        output = loading([*command, target.url], environment, core)
    result = next(line for line in output.splitlines() if line.startswith("RESULT ")).split()
    requests, microseconds, p50, p99, refused, broken = map(int, result[1:])
    return run(target, cost, requests, microseconds / 1e6, p50, p99, refused + broken)


def at_rate(target, body, seconds, rate, is_h1=True):
    """`rate` requests a second, of one user: h2load knows one set of headers. Each client keeps its own clock,
    which ticks every 10 ms at best; so there are as many as it takes for one request a tick, and they start apart. The cores
    are kept awake meanwhile."""
    clients = max(32, math.ceil(rate / 90))
    log = body.parent / "h2load.log"
    log.unlink(missing_ok=True)
    total = math.ceil(rate * seconds / clients) * clients
    apart = ["-r", 1, "--rate-period", "1ms"]
    each = ["-c", clients, "-n", total, "--rps", f"{rate / clients:.3f}", *apart]
    command = ["h2load", *(["--h1"] if is_h1 else []), *each, "--log-file", log]
    with machine.awake() as keepers, machine.watched(target.processes, keepers) as cost:
        loading([*command, *posting(target, body), target.url])
    return logged(target, cost, log, total)


def h2(target, body, seconds, connections=64):
    """As fast as answers come, over TLS and HTTP/2, of one user."""
    log = body.parent / "h2load.log"
    log.unlink(missing_ok=True)
    command = ["h2load", "-c", connections, "-D", seconds, "--warm-up-time", 0, "--log-file", log]
    with machine.watched(target.processes) as cost:
        loading([*command, *posting(target, body), target.url])
    return logged(target, cost, log)


def held_open(programs, target, count):
    """Opens that many streams, a hundred on each HTTP/2 connection, and keeps them; the process that does."""
    each = ["-c", count // 100, "-m", 100, "-n", count]
    headers = HEADERS | {"Authorization": f"Bearer {target.tokens()[0]}", "Accept": "text/event-stream"}
    given = (part for name, value in headers.items() for part in ("-H", f"{name}: {value}"))
    before = machine.open_files(target.processes)
    holder = programs.start("streams", ["h2load", *each, *given, target.url], machine.LOAD_CORE)
    while machine.open_files(target.processes) < before + count:
        if holder.poll() is not None:
            raise RuntimeError(f"{target.name}: no {count} streams stay open")
        time.sleep(0.1)
    return holder


def posting(target, body):
    headers = HEADERS | {"Authorization": f"Bearer {target.tokens()[0]}"}
    return ["-d", body, *(part for name, value in headers.items() for part in ("-H", f"{name}: {value}"))]


def loading(command, environment=None, core=machine.LOAD_CORE):
    command = ["taskset", "-c", core, *command]
    done = subprocess.run(
        list(map(str, command)), env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{command[3]}: {done.stderr.strip()[-500:] or done.stdout.strip()[-500:]}")
    return done.stdout


def logged(target, cost, log, total=None):
    """From h2load's own log: when each request began, its status, how long it took, the times in microseconds."""
    lines = [list(map(int, line.split())) for line in pathlib.Path(log).read_text().splitlines()]
    good = [(began, took) for began, status, took in lines if status == 200]
    if not good:
        raise RuntimeError(f"{target.name}: no request came through")
    seconds = (max(began + took for began, took in good) - min(began for began, _ in good)) / 1e6
    cuts = statistics.quantiles([took for _, took in good], n=100)
    return run(target, cost, len(good), seconds, cuts[49], cuts[98], (total or len(lines)) - len(good))


def run(target, cost, requests, seconds, p50, p99, failed):
    if requests == 0:
        raise RuntimeError(f"{target.name}: no request came through")
    cpu = cost.cpu_seconds / requests * 1e6
    return Run(requests / seconds, cpu, p50, p99, failed, cost.proxy_busy, cost.load_busy)
