#!/usr/bin/env python3
"""Instructions and allocations of a warm request, counted by callgrind: figures that a busy machine does not change.

    benches/callgrind.py POSTERN PEERS_DIR

One user calls over one connection. Counted apart are the first call, in which Postern has to ask its store, and calls after
some to get warm. Every instruction goes by the source file it was written in, inlined or not; so where the parser of JSON or
the store has any part in a warm call, this ends with 1. Figures in target/callgrind.json.
"""

import collections
import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from harness import check, counted, gateway, machine, peers, report, users
from harness.calls import CALL

TARGET = pathlib.Path(__file__).resolve().parent.parent / "target"
PROGRAMS = ["nginx", "taskset", "valgrind"]
WARM, CALLS = 200, 1000
# Callgrind takes each byte that `rep movsb` copies for an instruction, so large copies are made otherwise.
NO_REP = "GLIBC_TUNABLES=glibc.cpu.x86_rep_movsb_threshold=0x7fffffff:glibc.cpu.x86_rep_stosb_threshold=0x7fffffff"
# Where code comes from, by file; the first that fits.
ORIGINS = {
    "serde_json": r"/serde_json-\d",
    "store": r"/redb-\d|/redis-\d|^(?!.*/registry/).*/src/store/",
    "Pingora": r"/pingora-",
    "http, httparse": r"/(http|httparse)-\d",
    "tokio": r"/tokio-\d",
    "standard library": r"/library/|/hashbrown-\d",
    "mimalloc": r"mimalloc",
    "other crates": r"/registry/",
    "own code": r"/src/\w+(/\w+)*\.rs$",
}
REST = "C library"
COLD = ["serde_json", "store"]
HOOK = r"postern::gateway::Gateway as pingora_proxy::proxy_trait::ProxyHttp>::(\w+)(::\{\{closure\}\})?$"
ALLOCATING = r"(mi_)?([mcz]alloc|realloc)(_aligned)?|posix_memalign|aligned_alloc"


class Counted:
    """What callgrind wrote of some calls, for one of them."""

    def __init__(self, path, calls):
        # Instructions by file, how often a function was called, and what it took with all that it called.
        self.instructions, self.called, self.within = (collections.Counter() for _ in range(3))
        names, file, callee, is_inclusive = {}, None, None, False
        for line in path.read_text(errors="replace").splitlines():
            key, _, value = line.partition("=")
            if key in ("fl", "fi", "fe", "fn", "cfi", "cfl", "cfn"):
                number, _, name = value.partition(" ")  # the name itself comes once
                name = names.setdefault((key.endswith("fn"), number), name)
                if key == "cfn":
                    callee = name
                elif key in ("fl", "fi", "fe"):
                    file = name
            elif key == "calls":
                self.called[callee] += int(value.split()[0]) / calls
                is_inclusive = True
            elif line[:1] in tuple("0123456789+-*"):
                instructions = int(line.split()[1]) / calls
                if is_inclusive:  # the callee has lines of its own
                    self.within[callee] += instructions
                else:
                    self.instructions[file] += instructions
                is_inclusive = False

    def total(self):
        return sum(self.instructions.values())

    def by_origin(self):
        found = collections.Counter()
        for file, instructions in self.instructions.items():
            fits = (origin for origin, pattern in ORIGINS.items() if re.search(pattern, file))
            found[next(fits, REST)] += instructions
        return found

    def by_hook(self):
        found = collections.Counter()
        for name, instructions in self.within.items():
            if hook := re.search(HOOK, name):
                found[hook[1]] += instructions
        return found

    def allocations(self):
        return sum(count for name, count in self.called.items() if re.fullmatch(ALLOCATING, name))


class Callgrind:
    """A program that the harness can start, and that counts when told."""

    def __init__(self, directory, program):
        self.out = directory / f"{program.name}.counted"
        self.program = directory / f"{program.name}.sh"
        command = f"valgrind --tool=callgrind --instr-atstart=no --callgrind-out-file={self.out}"
        self.program.write_text(f'#!/bin/sh\nexec env {NO_REP} {command} {program.resolve()} "$@"\n')
        self.program.chmod(0o755)
        self.written = 0

    def calls(self, target, seen):
        """One call at first, and one of those that come when it is warm."""
        pid = target.processes[0].pid
        with self.counting(pid):
            check.credentials(target, seen)
        first = self.counted(pid, 1)
        connection = counted.Connection(target.url)
        asked = counted.request("POST", target.url, target.tokens()[0], CALL)

        def call(times):
            for _ in range(times):
                connection.socket.sendall(asked)
                connection.received(b'"isError": false}}')

        call(WARM)
        with self.counting(pid):
            call(CALLS)
        connection.socket.close()
        return first, self.counted(pid, CALLS)

    @contextlib.contextmanager
    def counting(self, pid):
        control(pid, "--instr=on")
        yield
        control(pid, "--instr=off")

    def counted(self, pid, calls):
        control(pid, "--dump")
        self.written += 1
        return Counted(self.out.with_name(f"{self.out.name}.{self.written}"), calls)


def control(pid, what):
    subprocess.run(["callgrind_control", what, str(pid)], check=True, capture_output=True, timeout=60)


def measured(postern, bare):
    """For each program its first call and a warm one."""
    users.COUNT, users.NAMES, users.IDLE_TOKENS = 1, users.NAMES[:1], users.IDLE_TOKENS[:1]
    with contextlib.ExitStack() as stack:
        directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="postern-callgrind-")))
        programs = stack.enter_context(machine.Programs(directory))
        _, address = peers.backend(programs)
        consent = users.authorization_server(stack)
        callgrind = Callgrind(directory, postern)
        upstream = f"http://{address}/mcp"
        made = gateway.Gateway(programs, callgrind.program, "postern", "Postern", upstream, consent)
        check.wait_until_serving(made.target.url, made.target.processes)
        made.sign_everybody_in()
        yield callgrind.calls(made.target, directory / "seen")
        callgrind = Callgrind(directory, bare)
        target = peers.bare(programs, callgrind.program, address)
        check.wait_until_serving(target.url, target.processes)
        yield callgrind.calls(target, directory / "seen")


def rows(ours, bare):
    def row(name, one, other, digits=0, ratio=""):
        return [name, *(f"{value:,.{digits}f}" for value in (one, other, one - other)), ratio]

    def compared(name, one, other, digits=0):
        return row(name, one, other, digits, f"{one / other:.2f}")

    yield ["of a warm call", "Postern", "bare Pingora", "on top", "ratio"]
    yield compared("allocations", ours.allocations(), bare.allocations(), 1)
    yield compared("instructions", ours.total(), bare.total())
    both = ours.by_origin(), bare.by_origin()
    for origin in sorted([*ORIGINS, REST], key=lambda origin: -both[0][origin]):
        yield row(f"– {origin}", both[0][origin], both[1][origin])


def hooks(ours):
    yield ["hook, with all that it calls", "instructions"]
    for hook, instructions in ours.by_hook().most_common():
        yield [hook, f"{instructions:,.0f}"]


def main():
    os.environ["PATH"] += ":/usr/sbin:/sbin"  # where Debian keeps servers
    if absent := [name for name in PROGRAMS if shutil.which(name) is None]:
        sys.exit(f"missing: {', '.join(absent)}; tests/setup/install.sh bench installs them")
    postern, directory = map(pathlib.Path, sys.argv[1:])
    (first, ours), (_, bare) = measured(postern, directory / "bare")
    table = list(rows(ours, bare))
    report.printed(f"counted by callgrind, {CALLS:,} calls of one user over one connection", table)
    report.printed("what of it the gateway's hooks take", list(hooks(ours)))
    counts = [("postern", ours), ("postern-first", first), ("bare", bare)]
    figures = {
        name: {
            "instructions": one.total(),
            "allocations": one.allocations(),
            "by_origin": one.by_origin(),
            "by_hook": one.by_hook(),
        }
        for name, one in counts
    }
    TARGET.mkdir(exist_ok=True)
    (TARGET / "callgrind.json").write_text(json.dumps(figures, indent=1))
    if blind := [origin for origin in COLD if not first.by_origin()[origin]]:
        sys.exit(f"{', '.join(blind)} not seen in the first call: without lines of source nothing is proven")
    if entered := [origin for origin in COLD if ours.by_origin()[origin]]:
        sys.exit(f"a warm call enters {', '.join(entered)}")


if __name__ == "__main__":
    main()
