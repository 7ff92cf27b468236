#!/usr/bin/env python3
"""What a fleet of Postern asks of one Redis: counted on a Redis of its own, then multiplied.

    benches/fleet.py POSTERN

Users sign in by the real flow; whatever happens afterwards happens to all of them, and Redis says how many commands it
had, bytes in and out, CPU and memory. Then the same with a second instance that does nothing but listen: the difference is
what each further instance costs. The assumptions stand in `FLEET`; the tables of benches/fleet.md are what this prints.
"""

import concurrent.futures
import contextlib
import dataclasses
import http.client
import json
import pathlib
import socket
import sys
import tempfile
import time

from harness import check, gateway, machine, signin, users
from harness.calls import ANSWER, CALL

COUNT = 50
IDLE_SECONDS = 10
# Of the upstream's first tokens; the newer ones live for an hour.
SHORT, LONG = 25, 3600

ANYWHERE = "calls go anywhere"
FLEET = {
    "users": 1_000_000,
    "instances": 100,
    "upstreams per user": 3,
    "hours of work a day, within 8": 2,
    "calls per user and day": 200,
    "minutes an access token of ours lives": 10,
    "minutes an upstream's token lives": 60,
    "days between two sign-ins": 7,
}


class Upstream(users.Consenting):
    """As in the benchmark, but it takes tokens, gives refresh tokens, and its first tokens are soon over."""

    lifetime = SHORT

    def do_POST(self):
        given = self.rfile.read(int(self.headers["Content-Length"])).decode()
        json_type = {"Content-Type": "application/json"}
        if self.path == "/token":
            tokens = {"access_token": users.upstream_token("x"), "token_type": "Bearer", "expires_in": Upstream.lifetime}
            self.answer(200, json.dumps(tokens | {"refresh_token": "r" * 48}).encode(), json_type)
        elif given and "Authorization" in self.headers:
            self.answer(200, ANSWER.encode(), json_type)
        else:
            self.answer(401, b"", {"WWW-Authenticate": "Bearer"})


@dataclasses.dataclass
class Cost:
    """Of one thing that happens, or one second."""

    commands: float
    scripts: float
    bytes_in: float
    bytes_out: float
    cpu: float
    memory: float

    def __sub__(self, other):
        return self.each(other, lambda one, two: one - two)

    def over(self, count):
        return self.each(self, lambda one, _: one / count)

    def whole(self):
        """An event is a whole number of commands; the rest is noise."""
        return Cost(*(max(0, round(value)) for value in dataclasses.astuple(self)))

    def each(self, other, compute):
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other))
        return Cost(*(compute(one, two) for one, two in pairs))


class Redis:
    """Our own connection to the server, which costs it the same at every reading."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.answers = self.socket.makefile("rb")
        self.own_in = self.own_out = self.own = 0

    def ask(self, *words):
        sent = b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in map(str.encode, words))
        request = b"*%d\r\n" % len(words) + sent
        self.socket.sendall(request)
        head = self.answers.readline()
        body = self.answers.read(int(head[1:]) + 2) if head.startswith(b"$") else b""
        self.own += 1
        self.own_in += len(request)
        self.own_out += len(head) + len(body)
        return body.decode()

    def read(self):
        before = self.own, self.own_in, self.own_out
        lines = self.ask("INFO", "all").splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        calls = {
            name[8:]: int(value.split(",")[0].partition("=")[2])
            for name, value in fields.items()
            if name.startswith("cmdstat_")
        }
        # Each minute an instance sweeps, in scripts of three commands; it would fall on whatever is counted just then.
        sweeps = calls.get("zremrangebyscore", 0)
        return Cost(
            sum(calls.values()) - before[0] - 3 * sweeps,
            calls.get("evalsha", 0) + calls.get("eval", 0) - sweeps,
            int(fields["total_net_input_bytes"]) - self.own_in,
            int(fields["total_net_output_bytes"]) - before[2],
            1e6 * (float(fields["used_cpu_user"]) + float(fields["used_cpu_sys"])),
            int(fields["used_memory"]),
        )


def settled():
    """News travel within half a second."""
    time.sleep(1.2)


def rest(redis):
    """A second in which nobody comes."""
    before = redis.read()
    time.sleep(IDLE_SECONDS)
    return (redis.read() - before).over(IDLE_SECONDS)


class Counting:
    """What things cost, each done for everybody."""

    def __init__(self, redis):
        self.redis, self.costs = redis, {}
        self.idle = rest(redis)

    def everybody(self, name, names, act):
        """Runs `act` of each, and takes off what the instances ask anyway."""
        before, began = self.redis.read(), time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            results = list(pool.map(act, names))
        settled()
        seconds = time.monotonic() - began
        spent = self.redis.read() - before - self.idle.over(1 / seconds)
        self.costs[name] = spent.over(len(results)).whole()
        return results


def call(target, token):
    asking = http.client.HTTPConnection(target.split("/")[2], timeout=30)
    status, body = check.posted(asking, "/mcp", token, CALL)
    asking.close()
    if status != 200:
        raise RuntimeError(f"a call: {status} {body[:200]}")


def revoked(origin, client_id, tokens):
    form = {"token": tokens["refresh_token"], "client_id": client_id}
    response, text = signin.Browser(origin).post_form("/oauth/revoke", form, "application/json")
    signin.expect(response, text, 200)


def life(counting, postern, names):
    """One life of a user, step by step."""
    origin, url = postern.origin, postern.target.url
    client_id = signin.registered(origin)
    Upstream.lifetime = SHORT
    began = time.monotonic()
    sign_in = lambda name: signin.sign_in(origin, client_id, url, name, users.PASSWORD)  # noqa: E731
    tokens = counting.everybody("sign-in, consent, connect", names, sign_in)
    first = lambda one: call(url, one["access_token"])  # noqa: E731
    counting.everybody("first call after it", tokens, first)
    counting.everybody("warm call", tokens, first)
    postern.restart()
    time.sleep(2)
    counting.everybody("first call at another instance", tokens, first)
    Upstream.lifetime = LONG
    time.sleep(max(0, began + SHORT + 8 - time.monotonic()))
    counting.everybody("upstream refresh", tokens, first)
    refresh = lambda one: signin.refreshed(signin.Browser(origin), client_id, one["refresh_token"])  # noqa: E731
    tokens = counting.everybody("our refresh", tokens, refresh)
    counting.everybody("revocation", tokens, lambda one: revoked(origin, client_id, one))


def listener(programs, postern):
    """One more instance, to which nobody comes."""
    configuration = json.loads(postern.path.read_text())
    configuration["server"] |= {
        "listen": [f"127.0.0.1:{machine.free_port()}"],
        "data_dir": str(programs.directory / "second-data"),
    }
    path = programs.directory / "second.yaml"
    path.write_text(json.dumps(configuration))
    programs.start("second", [postern.program, "run", "--config", path], machine.PROXY_CORE)
    time.sleep(2)


def counted(program):
    """The costs with one instance, and with two."""
    with contextlib.ExitStack() as stack:
        directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="postern-fleet-")))
        programs = stack.enter_context(machine.Programs(directory))
        upstream = stack.enter_context(users.Crowd(("127.0.0.1", 0), Upstream))
        concurrent.futures.ThreadPoolExecutor(1).submit(upstream.serve_forever)
        stack.callback(upstream.shutdown)
        consent = f"http://127.0.0.1:{upstream.server_address[1]}"
        port = gateway.redis(programs)
        time.sleep(0.5)
        redis = Redis(port)
        alone = rest(redis)
        more = gateway.on_redis(directory, port)
        postern = gateway.Gateway(programs, program, "fleet", "Postern", f"{consent}/mcp", consent, more=more)
        check.wait_until_serving(postern.target.url, postern.target.processes)
        time.sleep(2)
        one = Counting(redis)
        life(one, postern, users.NAMES[:COUNT])
        listener(programs, postern)
        two = Counting(redis)
        life(two, postern, users.NAMES[COUNT : 2 * COUNT])
        version = next(line[14:] for line in redis.ask("INFO", "server").splitlines() if line.startswith("redis_version:"))
        one.idle -= alone
        return one, two, version


def rates(fleet):
    """How often each thing happens in the whole fleet, per second of the working day; and what is kept."""
    day = 8 * 3600
    grants = fleet["users"] * fleet["upstreams per user"]
    busy = 60 * fleet["hours of work a day, within 8"]
    calls = fleet["users"] * fleet["calls per user and day"]
    refreshes = grants * busy / fleet["minutes an access token of ours lives"]
    renewals = grants * busy / fleet["minutes an upstream's token lives"]
    per_grant = calls / grants
    # A copy is read anew where it was emptied: at each instance that the grant's calls meet between two renewals.
    met = min(fleet["instances"], per_grant / max(1, renewals / grants)) * max(1, renewals / grants)
    return {
        "sign-in, consent, connect": grants / fleet["days between two sign-ins"] / day,
        "our refresh": refreshes / day,
        "upstream refresh": renewals / day,
        "first call after it": grants / fleet["days between two sign-ins"] / day,
        f"first call at another instance; {ANYWHERE}": grants * met / day,
        "warm call": calls / day,
        "revocation": grants / fleet["days between two sign-ins"] / day,
    }


def lines(one, two, version):
    further = {name: two.costs[name] - cost for name, cost in one.costs.items()}
    everything = [*one.costs.values(), *two.costs.values()]
    # By event the CPU is within the noise; over all of them it is not.
    price = sum(cost.cpu for cost in everything) / sum(cost.commands for cost in everything)
    yield f"Counted with {COUNT} users on Redis {version}; commands inside scripts count, {price:.1f} µs of its CPU each."
    yield ""
    yield "| once | commands | of them scripts | bytes to Redis | bytes from Redis | commands of each further instance |"
    yield "|---|---|---|---|---|---|"
    for name, cost in one.costs.items():
        # A few bytes without a command are the idle instance's.
        cost = cost if cost.commands else Cost(0, 0, 0, 0, 0, 0)
        values = [cost.commands, cost.scripts, cost.bytes_in, cost.bytes_out, further[name].commands]
        yield f"| {name} | " + " | ".join(f"{max(0, value):,}" for value in values) + " |"
    values = [one.idle.commands, one.idle.scripts, one.idle.bytes_in, one.idle.bytes_out]
    yield "| a second of an idle instance | " + " | ".join(f"{max(0, round(value)):,}" for value in values) + " | |"
    yield ""
    yield "Assumed: " + "; ".join(f"{value:,} {name}" for name, value in FLEET.items()) + "."
    yield ""
    yield "| in the whole fleet | events/s | commands/s | MB/s from Redis | of one Redis core | of it news for others |"
    yield "|---|---|---|---|---|---|"
    others, total = FLEET["instances"] - 1, [0, 0, 0]
    for name, rate in rates(FLEET).items():
        own, more = one.costs[name.partition(";")[0]], further[name.partition(";")[0]]
        news = rate * others * max(0, more.commands)
        own = own if own.commands else Cost(0, 0, 0, 0, 0, 0)
        commands = rate * own.commands + news
        out = rate * (own.bytes_out + others * max(0, more.bytes_out) if news else own.bytes_out)
        yield row(name, f"{rate:,.0f}", commands, out, news, price)
        if not name.endswith(ANYWHERE):
            total = [before + value for before, value in zip(total, (commands, out, news))]
    resting = [FLEET["instances"] * value for value in (one.idle.commands, one.idle.bytes_out)]
    yield row("idle instances", "", *resting, 0, price)
    commands, out, news = total
    yield row("**all, calls stick to one instance**", "", commands + resting[0], out + resting[1], news, price)
    records = FLEET["users"] * FLEET["upstreams per user"]
    memory = one.costs[next(iter(one.costs))].memory
    yield ""
    yield (
        f"Memory: {memory / 1024:.1f} KiB for each sign-in with grant and connection, "
        f"{records * memory / 2**30:,.0f} GiB for {records:,} of them."
    )


def row(name, rate, commands, out, news, price):
    share = f"{news * price / 1e6:.0%}" if news else ""
    return f"| {name} | {rate} | {commands:,.0f} | {out / 1e6:,.1f} | {commands * price / 1e6:.0%} | {share} |"


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    one, two, version = counted(pathlib.Path(sys.argv[1]).resolve())
    print("\n".join(lines(one, two, version)))


if __name__ == "__main__":
    main()
