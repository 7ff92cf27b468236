"""Figures that are counted rather than loaded: memory of connections that stay, CPU of a token's first call."""

import contextlib
import socket
import urllib.parse
from dataclasses import dataclass

from . import check, full, machine, peers
from .bars import middle
from .calls import CALL, HEADERS

ROUNDS = 5
OPEN = 1000
# Users who warm the program before the others come for the first time; how many call at once; how often all come again.
EARLY, AT_ONCE, AGAIN = 100, 50, 5


@dataclass
class Memory:
    """KiB for each of a thousand: keep-alive connections that have called once, or streams that are open."""

    idle: float
    stream: float


@dataclass
class FirstCall:
    """CPU in microseconds, and how many warm calls the first one is worth."""

    first: float
    warm: float
    ratio: float


def figures(bench, is_wanted, results):
    """Tables, and what they say into `results`."""
    if is_wanted("memory") and bench.peer("bare") and bench.peer("backend"):
        rows = [["target", "KiB per idle connection", "KiB per open stream"]]
        measured = [("postern", "Postern", of_postern), ("bare", "bare Pingora", of_bare)]
        for _ in range(ROUNDS):
            for key, _, measure in measured:
                results.setdefault(("memory", key), []).append(measure(bench))
        for key, name, _ in measured:
            rows.append([name, *(f"{middle(results['memory', key], what):.1f}" for what in ("idle", "stream"))])
        yield f"memory, {OPEN:,} at a time", rows
    if is_wanted("first"):
        rounds = results["first", "postern"] = list(first_calls(bench))
        rows = [["target", "CPU µs, first call", "CPU µs, warm call", "ratio"]]
        rows.append(["Postern", *(f"{middle(rounds, what):.2f}" for what in ("first", "warm", "ratio"))])
        yield "a token's first call at a process, the store being warm", rows


class Connection:
    """One that stays; what is sent on it is made before."""

    def __init__(self, url):
        parts = urllib.parse.urlsplit(url)
        self.socket = socket.create_connection((parts.hostname, parts.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(10)

    def received(self, until):
        """Reads until `until` has come; anything but a 200 is an error."""
        answer = b""
        while until not in answer:
            piece = self.socket.recv(65536)
            if not piece:
                break
            answer += piece
        if not answer.startswith(b"HTTP/1.1 200") or until not in answer:
            raise RuntimeError(f"not what was asked for: {answer[:200]}")


def request(method, url, token, body=""):
    parts = urllib.parse.urlsplit(url)
    headers = HEADERS | {"Host": parts.netloc, "Authorization": f"Bearer {token}"}
    if body:
        headers["Content-Length"] = str(len(body))
    else:
        headers["Accept"] = "text/event-stream"
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {parts.path} HTTP/1.1\r\n{lines}\r\n{body}".encode()


def growth(target, method, body, until):
    """KiB of memory that each of a thousand connections takes, in a process that has served a few before."""
    calls = [request(method, target.url, token, body) for token in target.tokens()]
    with contextlib.ExitStack() as stack:

        def opened(asked):
            connection = Connection(target.url)
            stack.callback(connection.socket.close)
            connection.socket.sendall(asked)
            connection.received(until)

        for asked in calls[:20]:
            opened(asked)
        before = machine.resident_kib(target.processes)
        for asked in (calls * 2)[20 : 20 + OPEN]:
            opened(asked)
        return (machine.resident_kib(target.processes) - before) / OPEN


def idle(target):
    return growth(target, "POST", CALL, b'"isError": false}}')


def stream(target):
    return growth(target, "GET", "", b'"progress": 1}}')


def of_postern(bench):
    made = bench.gateway("postern-idle", "Postern")
    made.restart()
    of_idle = idle(made.target)
    bench.programs.end(*made.target.processes)
    made, end = full.signed_in_before_backend(bench, "stream")
    made.restart()
    of_stream = stream(made.target)
    end()
    return Memory(of_idle, of_stream)


def of_bare(bench):
    target = peers.bare(bench.programs, bench.peer("bare"), bench.address, "bare-idle")
    check.wait_until_serving(target.url, target.processes)
    of_idle = idle(target)
    address = f"127.0.0.1:{machine.free_port()}"
    backend = bench.programs.start("backend-bare", [bench.peer("backend"), "--listen", address], machine.LOAD_CORE)
    check.wait_until_serving(f"http://{address}", [backend])
    other = peers.bare(bench.programs, bench.peer("bare"), address, "bare-stream", path="/stream")
    check.wait_until_serving(other.url, other.processes)
    of_stream = stream(other)
    bench.programs.end(*target.processes, *other.processes, backend)
    return Memory(of_idle, of_stream)


def first_calls(bench):
    """Round after round a process that begins anew: some users warm it, then the others come for the first time."""
    made = bench.gateway("postern-first", "Postern")
    target = made.target
    for _ in range(ROUNDS):
        made.restart()
        calls = [request("POST", target.url, token, CALL) for token in target.tokens()]
        connections = [Connection(target.url) for _ in range(AT_ONCE)]
        spent(target, connections, calls[:EARLY] * AGAIN)
        first = spent(target, connections, calls[EARLY:])
        warm = spent(target, connections, calls[EARLY:] * AGAIN)
        for connection in connections:
            connection.socket.close()
        yield FirstCall(first, warm, first / warm)
    bench.programs.end(*target.processes)


def spent(target, connections, calls):
    """CPU microseconds of each call, made in waves over all connections."""
    before = machine.cpu_nanoseconds(target.processes)
    for at in range(0, len(calls), len(connections)):
        wave = list(zip(connections, calls[at : at + len(connections)]))
        for connection, asked in wave:
            connection.socket.sendall(asked)
        for connection, _ in wave:
            connection.received(b'"isError": false}}')
    return (machine.cpu_nanoseconds(target.processes) - before) / len(calls) / 1000
