"""The rows beside the main table: Postern and bare Pingora, doing the same. Each scene has its own."""

import contextlib
import dataclasses
import time

from . import check, gateway, load, machine, managed, peers, users
from .calls import CALL, call
from .scenes import ROUNDS, Scene

SIZES = {"64k": ("bodies of 64 KiB, both ways", 64 * 1024), "1m": ("bodies of 1 MiB, both ways", 1024 * 1024)}

STREAMS, STREAMS_RATE = 10_000, 1_000
# So many requests at once are taken; as many connections keep them at work. And how much more than that comes.
AT_ONCE, TIMES = 64, 5


def scenes(bench, is_wanted):
    if bench.peer("bare") is None or bench.peer("backend") is None:
        print(f"skipped: all further rows, as bare and backend are not built in {bench.peers}")
        return
    small = bench.body(CALL)

    def called(body, **more):
        return lambda target, seconds: load.wrk(target, body, seconds, **more)

    def steady(target, seconds):
        return load.at_rate(target, small, seconds, 1500, is_h1=False)

    if any(map(is_wanted, ("tls", "h2", "h2-1500"))):
        with beside_bare(bench, "tls", tls=gateway.certificate(bench.directory)) as targets:
            yield Scene("tls", "TLS in front", targets, called(small))
            yield Scene("h2", "HTTP/2 in front", targets, lambda target, seconds: load.h2(target, small, seconds))
            yield Scene("h2-1500", "HTTP/2 in front, 1,500 requests a second", targets, steady)
    if is_wanted("sse"):
        with behind_both(bench, "sse") as targets:
            yield Scene("sse", "SSE answers, ten events each", targets, called(small))
    for key, (title, size) in SIZES.items():
        if is_wanted(key):
            with behind_both(bench, "big") as targets:
                for target in targets:
                    target.url += f"?bytes={size}"
                yield Scene(key, title, targets, called(bench.body(call(size), key)))
    if is_wanted("cores"):
        if len(machine.CORES) < 4:
            print("skipped: two cores for the proxy, as that takes four")
            return
        with beside_bare(bench, "cores", cores=machine.CORES[1:3]) as targets:
            yield Scene("cores", "two cores for the proxy", targets, called(small, core=machine.CORES[3]))


def rules(bench, is_wanted):
    """One Postern at a route without rules and at two that have one. Two processes that are alike differ by more than a rule on
    the method costs, as the memory lies that each of them got; so it is one."""
    if not is_wanted("method") and not is_wanted("rules"):
        return
    on_method = {"name": "calls", "allow": "mcp.method == 'tools/call'"}
    on_arguments = {"name": "short", "deny": "mcp.arguments.text.startsWith('x')"}
    beside = {"method": gateway.ruled(on_method), "arguments": gateway.ruled(on_arguments)}
    made = bench.gateway("unruled", "Postern, no rule", beside=beside)

    def called(size):
        body = bench.body(call(size), f"{size}.json")
        return lambda target, seconds: load.wrk(target, body, seconds)

    ruled = made.at(f"{made.origin}/method", "unruled-method", "the same, a rule on the method")
    yield Scene("method", "a rule on the method", [made.target, ruled], called(len(CALL)), rounds=3 * ROUNDS)
    ruled = made.at(f"{made.origin}/arguments", "unruled-arguments", "the same, a rule on arguments")
    yield Scene("rules", "a rule on arguments, bodies of 1 KiB", [made.target, ruled], called(1024))
    bench.programs.end(*made.target.processes)


def managed_connections(bench, targets, is_wanted):
    """Postern with many managed configurations in its store, at a configured route and at one of theirs."""
    own = [target for target in targets if target.key == "postern"]
    if not own or not is_wanted("managed"):
        return
    more = gateway.on_redis(bench.directory, gateway.redis(bench.programs))
    more |= {"managed": {"allow_hosts": ["127.0.0.1"]}}
    with managed.uncounted():
        made = bench.gateway("postern-managed", "Postern, 10,000 managed configurations", more=more)
        begun = time.monotonic()
        address = managed.filled(made, f"http://{bench.address}/mcp")
        print(f"made over the API in {time.monotonic() - begun:.0f} s")
    made.restart()  # What is measured has found them in its store.
    theirs = made.at(address, "postern-connect", "the same, at the route of one")
    body = bench.body(CALL)
    yield Scene(
        "managed",
        "10,000 managed configurations, 100,000 assignments",
        [*own, made.target, theirs],
        lambda target, seconds: load.wrk(target, body, seconds),
    )
    bench.programs.end(*made.target.processes)


def idle_streams(bench, is_wanted):
    """Postern that keeps ten thousand streams on which nothing comes, and without any. They come over HTTP/2: a process may
    seldom have the twice as many files that each of them takes otherwise."""
    if not is_wanted("streams") or bench.peer("backend") is None:
        return
    tls = gateway.certificate(bench.directory)
    more = {"limits": {"streams": 2 * STREAMS, "streams_per_user": 2 * STREAMS}}
    targets, ends = [], []
    for key, name in (("quiet", "Postern"), ("beside", f"Postern, {STREAMS:,} idle streams")):
        made, end = signed_in_before_backend(bench, "stream", key, tls=tls, more=more)
        made.target.key, made.target.name = f"postern-{key}", name
        targets.append(made.target)
        ends.append(end)
    holder = load.held_open(bench.programs, targets[1], STREAMS)
    body = bench.body(CALL)
    yield Scene(
        "streams",
        f"{STREAMS_RATE:,} requests a second beside idle streams",
        targets,
        lambda target, seconds: load.at_rate(target, body, seconds, STREAMS_RATE),
    )
    bench.programs.end(holder)
    for end in ends:
        end()


def overload(bench, is_wanted):
    """Postern that takes as many requests at once as its upstream can work on: with so many, and with five times what comes
    of them in a second. What counts are answers of the upstream; the rest is turned away."""
    if not is_wanted("overload") or bench.peer("backend") is None:
        return
    made, end = signed_in_before_backend(bench, "busy", "overload", more={"limits": {"requests": AT_ONCE}})
    body = bench.body(CALL)
    most = load.wrk(made.target, body, 1, AT_ONCE).rate
    full = dataclasses.replace(made.target, key="postern-full", name=f"Postern, {AT_ONCE} requests at once")
    flooded = dataclasses.replace(made.target, key="postern-flooded", name=f"Postern, {TIMES} times what it can answer")

    def loaded(target, seconds):
        if target is full:
            return load.wrk(target, body, seconds, AT_ONCE)
        run = load.at_rate(target, body, seconds, TIMES * most)
        # Nobody is turned away by mistake here.
        return dataclasses.replace(run, failed=0)

    yield Scene("overload", f"overload: {TIMES * most:,.0f} requests a second", [full, flooded], loaded)
    end()


@contextlib.contextmanager
def beside_bare(bench, key, **more):
    """Postern and bare Pingora before the backend of the main table."""
    made = bench.gateway(f"postern-{key}", "Postern", **more).target
    made.key = "postern"
    bare = peers.bare(bench.programs, bench.peer("bare"), bench.address, f"bare-{key}", **more)
    bare.key = "bare"
    check.wait_until_serving(bare.url, bare.processes)
    yield [bare, made]
    bench.programs.end(*made.processes, *bare.processes)


@contextlib.contextmanager
def behind_both(bench, path):
    """Postern and bare Pingora before a path of the backend in benches/peers."""
    made, end = signed_in_before_backend(bench, path)
    target = made.target
    target.key = "postern"
    bare = peers.bare(bench.programs, bench.peer("bare"), made.address, f"bare-{path}", path=f"/{path}")
    bare.key = "bare"
    check.wait_until_serving(bare.url, bare.processes)
    yield [bare, target]
    end()
    bench.programs.end(*bare.processes)


def signed_in_before_backend(bench, path, key=None, **more):
    """A gateway before a backend that asks nobody for a token; while users sign in, somebody stands there who does.
    And what ends both."""
    port = machine.free_port()
    with contextlib.ExitStack() as stack:
        users.authorization_server(stack, port)
        made = bench.gateway(f"postern-{key or path}", "Postern", f"http://127.0.0.1:{port}/{path}", **more)
    made.address = f"127.0.0.1:{port}"
    command = [bench.peer("backend"), "--listen", made.address]
    backend = bench.programs.start(f"backend-{key or path}", command, machine.LOAD_CORE)
    check.wait_until_serving(f"http://{made.address}", [backend])
    return made, lambda: bench.programs.end(*made.target.processes, backend)
