#!/usr/bin/env python3
"""What a request costs with more users, more routes, more connections: CPU of Postern, curves in benches/growth.svg.

    benches/growth.py POSTERN [--draw]

Load and backend have one core, Postern another, with one worker. Users sign in once by the real flow, with a password hash
that is cheap on purpose, and each has an upstream token of their own. Medians of rounds in turns, but for routes, of which
there are more with every restart; figures in target/growth.json. `--draw`: only draws them again. By environment:
GROWTH_USERS (10000), GROWTH_ROUNDS (3), GROWTH_SECONDS (1).
"""

import collections
import contextlib
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

from harness import check, gateway, load, machine, peers, users
from harness.calls import CALL
from harness.signin import connection

HERE = pathlib.Path(__file__).resolve().parent
FIGURES = HERE.parent / "target" / "growth.json"
USERS = int(os.environ.get("GROWTH_USERS", "10000"))
ROUNDS = int(os.environ.get("GROWTH_ROUNDS", "3"))
SECONDS = int(os.environ.get("GROWTH_SECONDS", "1"))

# === measuring ===


class Growth:
    """One Postern with everybody signed in."""

    def __init__(self, stack, program):
        users.NAMES = [f"user-{number:05}" for number in range(USERS)]
        self.directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="postern-growth-")))
        self.programs = stack.enter_context(machine.Programs(self.directory))
        _, address = peers.backend(self.programs)
        upstream, consent = f"http://{address}/mcp", users.authorization_server(stack)
        self.body = self.directory / "call.json"
        self.body.write_text(CALL)
        self.postern = gateway.Gateway(self.programs, program, "growth", "Postern", upstream, consent)
        self.written = json.loads(self.postern.path.read_text())
        check.wait_until_serving(self.postern.target.url, self.postern.target.processes)
        began = time.monotonic()
        self.postern.sign_everybody_in()
        self.tokens = self.postern.target.tokens
        print(f"{USERS} users have signed in, {time.monotonic() - began:.0f} s", flush=True)

    def warm(self, callers, connections):
        """A first call of each, which does not count and costs several times as much."""
        self.cost(callers, connections, 1 + callers // 2_000)

    def cost(self, callers, connections, seconds=SECONDS):
        """CPU microseconds of a request."""
        tokens = self.tokens()[:callers]
        self.postern.target.tokens = lambda: tokens
        run = load.wrk(self.postern.target, self.body, seconds, connections)
        if run.failed:
            answers = collections.Counter(map(self.answer, tokens))
            raise RuntimeError(f"{callers} users, {connections} connections: {run.failed} calls failed; now {answers}")
        return run.cpu

    def answer(self, token):
        """What one call gets: the status and, of what is refused, the body."""
        asking = connection(self.postern.target.url)
        with contextlib.closing(asking):
            status, body = check.posted(asking, "/mcp", token, CALL)
        return status, "" if status == 200 else body[:200]

    def with_routes(self, count):
        """The one that is called, and others; of the users those who call, since a configuration has an end."""
        [route] = self.written["routes"]
        other = route | {"credential": {"kind": "none"}}
        others = [other | {"name": f"other-{number}", "path": f"/other-{number}"} for number in range(count - 1)]
        callers = {"local": {"users": self.written["login"]["local"]["users"][:1_000]}}
        self.postern.path.write_text(json.dumps(self.written | {"login": callers, "routes": [*others, route]}))
        starts = [1_000 * self.postern.restart() for _ in range(ROUNDS)]
        print(f"{count} routes: serves {', '.join(f'{start:.0f}' for start in starts)} ms after its start", flush=True)

    def curve(self, points, warm, cost):
        """By point, the costs of all rounds; each is warm before it counts."""
        costs = {point: [] for point in points}
        for point in points:
            warm(point)
        for _ in range(ROUNDS):
            for point in points:
                costs[point].append(cost(point))
        return costs

    def users(self):
        points = [count for count in (10, 100, 1_000, 10_000) if count <= USERS]
        return self.curve(points, lambda count: self.warm(count, 64), lambda count: self.cost(count, 64))

    def connections(self):
        points = [1, 10, 100, 1_000]
        return self.curve(points, lambda count: self.warm(1_000, count), lambda count: self.cost(1_000, count))

    def routes(self):
        costs = {}
        for count in (1, 10, 100, 1_000, 10_000):
            self.with_routes(count)
            self.warm(1_000, 64)
            costs[count] = [self.cost(1_000, 64) for _ in range(ROUNDS)]
        return costs


def measured(program):
    with contextlib.ExitStack() as stack:
        growth = Growth(stack, program)
        try:
            curves = {"users": growth.users(), "connections": growth.connections(), "routes": growth.routes()}
        except Exception:
            print(*growth.programs.last_words(), sep="\n", file=sys.stderr)
            raise
    return {"cores": len(machine.CORES), "rounds": ROUNDS, "seconds": SECONDS, "cpu_us": curves}


# === drawing ===

WIDTH, HEIGHT, LEFT, TOP, GAP = 280, 200, 60, 70, 60
INK, MUTED, GRID, LINE = "#1f2933", "#52606d", "#d9dfe5", "#0b6bcb"
TITLES = {"users": "users who call in turn", "routes": "routes", "connections": "client connections"}


def drawn(figures):
    curves = {name: {int(point): costs for point, costs in figures["cpu_us"][name].items()} for name in TITLES}
    top = max(cost for curve in curves.values() for costs in curve.values() for cost in costs)
    step = next(step for step in (5, 10, 20, 50, 100, 200) if top / step <= 6)
    top = step * (int(top / step) + 1)
    total = LEFT + len(curves) * (WIDTH + GAP)
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {TOP + HEIGHT + 70}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{INK}">'
    )
    yield '<rect width="100%" height="100%" fill="#ffffff"/>'
    yield f'<text x="{LEFT}" y="24" font-size="16" font-weight="600">What a warm call costs Postern, as things grow</text>'
    yield (
        f'<text x="{LEFT}" y="42" fill="{MUTED}">CPU µs a request, one worker on one core; line: median of '
        f'{figures["rounds"]} rounds, bars: lowest and highest</text>'
    )
    for number, (name, curve) in enumerate(curves.items()):
        yield from panel(LEFT + number * (WIDTH + GAP), name, curve, top, step)
    yield "</svg>"


def panel(left, name, curve, top, step):
    points = sorted(curve)
    across = {point: left + 20 + index * (WIDTH - 40) / (len(points) - 1) for index, point in enumerate(points)}
    up = lambda cost: TOP + HEIGHT * (1 - cost / top)  # noqa: E731
    for cost in range(0, top + 1, step):
        yield f'<line x1="{left}" x2="{left + WIDTH}" y1="{up(cost):.1f}" y2="{up(cost):.1f}" stroke="{GRID}"/>'
        yield f'<text x="{left - 8}" y="{up(cost) + 4:.1f}" text-anchor="end" fill="{MUTED}">{cost}</text>'
    for point in points:
        low, high = min(curve[point]), max(curve[point])
        x, middle = across[point], statistics.median(curve[point])
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{up(low):.1f}" y2="{up(high):.1f}" stroke="{LINE}" stroke-width="2" opacity="0.35"/>'
        yield f'<circle cx="{x:.1f}" cy="{up(middle):.1f}" r="3.5" fill="{LINE}"/>'
        yield f'<text x="{x:.1f}" y="{up(high) - 8:.1f}" text-anchor="middle">{middle:.1f}</text>'
        yield f'<text x="{x:.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle" fill="{MUTED}">{point:,}</text>'
    line = " ".join(f"{across[point]:.1f},{up(statistics.median(curve[point])):.1f}" for point in points)
    yield f'<polyline points="{line}" fill="none" stroke="{LINE}" stroke-width="2"/>'
    yield f'<text x="{left + WIDTH / 2}" y="{TOP + HEIGHT + 40}" text-anchor="middle">{TITLES[name]}</text>'


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    if "--draw" not in sys.argv:
        FIGURES.parent.mkdir(exist_ok=True)
        FIGURES.write_text(json.dumps(measured(pathlib.Path(sys.argv[1]).resolve()), indent=1))
    figures = json.loads(FIGURES.read_text())
    (HERE / "growth.svg").write_text("\n".join(drawn(figures)) + "\n")
    for name, curve in figures["cpu_us"].items():
        print(name, {point: round(statistics.median(costs), 1) for point, costs in curve.items()})


if __name__ == "__main__":
    main()
