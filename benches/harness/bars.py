"""What has to hold, as data: one figure of Postern's over the same figure of somebody else's, in one scene."""

import statistics
from dataclasses import dataclass

BUSY = 0.95


@dataclass
class Bar:
    """`metric` of `target` ÷ that of `base`, both from `scene`; without `base` the figure itself. Where more is better
    (requests/s), `must` and `aim` are the least allowed, else the most."""

    figure: str
    scene: str
    metric: str
    target: str
    base: str | None
    must: float
    aim: float | None = None
    # What limits both is not the proxy's core, on purpose.
    is_limited_elsewhere: bool = False


def doing_the_same(figure, scene, target="postern"):
    return Bar(f"CPU ÷ bare Pingora, {figure}", scene, "cpu", target, "bare", 1.15)


BARS = [
    Bar("CPU ÷ bare Pingora", "main", "cpu", "postern", "bare", 1.08, 1.04),
    Bar("requests/s ÷ bare Pingora", "main", "rate", "postern", "bare", 0.93, 0.97),
    Bar("CPU ÷ bare Pingora as its examples build it", "main", "cpu", "postern", "bare-examples", 1.0, 0.85),
    Bar("CPU ÷ nginx auth_request + injected header", "main", "cpu", "postern", "nginx-auth", 1.25, 1.0),
    Bar("CPU ÷ nginx proxy_pass with a fixed header", "main", "cpu", "postern", "nginx-header", 2.0, 1.6),
    Bar("requests/s ÷ Envoy", "main", "rate", "postern", "envoy", 1.3, 1.6),
    Bar("requests/s ÷ Envoy jwt_authn", "main", "rate", "postern", "envoy-jwt", 2.6, 3.2),
    Bar("requests/s ÷ Envoy jwt_authn, cached", "main", "rate", "postern", "envoy-jwt-cache", 1.4, 1.7),
    Bar("requests/s ÷ Envoy + ext_proc", "main", "rate", "postern", "envoy-ext-proc", 3.3, 4.0),
    Bar("requests/s ÷ HAProxy jwt_verify + map", "main", "rate", "postern", "haproxy-jwt", 1.4, 1.7),
    Bar("p50 at 1,500/s ÷ bare Pingora", "1500", "p50", "postern", "bare", 1.05),
    Bar("p99 at half of saturation ÷ bare Pingora", "half", "p99", "postern", "bare", 1.3),
    Bar("512 connections: p99 ÷ nginx", "512", "p99", "postern", "nginx", 3.0, 1.5),
    Bar("requests/s ÷ Postern without rules, a rule on the method", "method", "rate", "unruled-method", "unruled", 0.97),
    Bar("the same, a rule on arguments and bodies of 1 KiB", "rules", "rate", "unruled-arguments", "unruled", 0.9),
    Bar("requests/s ÷ Postern without any, 10,000 managed", "managed", "rate", "postern-managed", "postern", 0.97),
    Bar("the same, at the route of one of them", "managed", "rate", "postern-connect", "postern", 0.95),
    doing_the_same("store on Redis", "main", "postern-redis"),
    doing_the_same("JSON access log on", "main", "postern-log"),
    doing_the_same("TLS in front", "tls"),
    doing_the_same("HTTP/2 in front", "h2"),
    Bar("p50 at 1,500/s ÷ bare Pingora, HTTP/2 in front", "h2-1500", "p50", "postern", "bare", 1.15),
    doing_the_same("SSE answers", "sse"),
    doing_the_same("bodies of 64 KiB", "64k"),
    doing_the_same("bodies of 1 MiB", "1m"),
    doing_the_same("two cores for the proxy", "cores"),
    Bar("p99 at 1,000/s beside 10,000 idle streams ÷ without", "streams", "p99", "postern-beside", "postern-quiet", 2.0),
    Bar("200s/s at five times saturation ÷ at saturation", "overload", "rate", "postern-flooded", "postern-full", 0.9, None, True),
    Bar("KiB per idle keep-alive connection", "memory", "idle", "postern", None, 36, 20),
    Bar("KiB per open SSE stream", "memory", "stream", "postern", None, 55, 40),
    Bar("CPU of a token's first call ÷ warm call", "first", "ratio", "postern", None, 1.5),
]


@dataclass
class Verdict:
    bar: Bar
    value: float
    verdict: str  # PASS or MISS
    is_aim: bool
    note: str


def judged(results):
    """Of every bar whose figures are there."""
    for bar in BARS:
        keys = [(bar.scene, key) for key in (bar.target, bar.base) if key]
        if not all(key in results for key in keys):
            continue
        value, note = measured(bar, keys, results)
        sign = -1 if bar.metric == "rate" else 1
        is_aim = bar.aim is not None and sign * value <= sign * bar.aim
        verdict = "PASS" if sign * value <= sign * bar.must else "MISS"
        yield Verdict(bar, value, verdict, is_aim, note)


def measured(bar, keys, results):
    """The figure, or the median of the ratios of each round, in which both met the same machine; and how it was got where that
    is not plain. Requests/s compare only where the proxy's core was the limit for both targets; elsewhere the inverse of
    their CPU says what they would be."""
    if bar.base is None:
        return middle(results[keys[0]], bar.metric), ""
    by_cpu = bar.metric == "rate" and not bar.is_limited_elsewhere
    if by_cpu and not all(is_proxy_bound(results[key]) for key in keys):
        return 1 / ratio(*(results[key] for key in keys), "cpu"), "by CPU, as the proxy's core was not the limit"
    return ratio(*(results[key] for key in keys), bar.metric), ""


def ratio(own, other, metric):
    return statistics.median(getattr(one, metric) / getattr(two, metric) for one, two in zip(own, other))


def is_proxy_bound(runs):
    return middle(runs, "proxy_busy") >= BUSY > middle(runs, "load_busy")


def middle(runs, metric):
    return statistics.median(getattr(run, metric) for run in runs)
