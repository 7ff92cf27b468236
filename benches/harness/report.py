"""What was found: tables for people, JSON for programs, and the line that says where and when."""

import dataclasses
import datetime
import json
import platform
import re
import subprocess
import sys

from . import machine, scenes
from .bars import is_proxy_bound, middle


def printed(title, rows):
    """A table in markdown that reads well unrendered, too."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print(f"\n{title}")
    for row in [rows[0], ["-" * width for width in widths], *rows[1:]]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |")


def scene_table(scene, results):
    busy = ["proxy's core", "load's core", "req/s counts"]
    columns = ["target", "req/s (min–max)", "CPU µs/req", "p50 µs", "p99 µs", *busy, "failed"]
    rows = [columns]
    for target in scene.targets:
        runs = results[scene.key, target.key]
        rates = [run.rate for run in runs]
        rows.append(
            [
                target.name,
                f"{middle(runs, 'rate'):,.0f} ({min(rates):,.0f}–{max(rates):,.0f})",
                f"{middle(runs, 'cpu'):.1f}",
                f"{middle(runs, 'p50'):,.0f}",
                f"{middle(runs, 'p99'):,.0f}",
                f"{middle(runs, 'proxy_busy'):.0%}",
                f"{middle(runs, 'load_busy'):.0%}",
                "yes" if is_proxy_bound(runs) else "no",
                str(sum(run.failed for run in runs)),
            ]
        )
    return rows


def bar_table(verdicts):
    rows = [["figure", "measured", "must", "aim", "", "note"]]
    for verdict in verdicts:
        bar = verdict.bar
        sign = "≥" if bar.metric == "rate" else "≤"
        aim = "" if bar.aim is None else f"{sign} {bar.aim:g}"
        word = verdict.verdict + (" (aim)" if verdict.is_aim else "")
        rows.append([bar.figure, f"{verdict.value:.2f}", f"{sign} {bar.must:g}", aim, word, verdict.note])
    return rows


def version(*command):
    """The first number with dots that the program says of itself."""
    try:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=10)
    except OSError:
        return "absent"
    found = re.search(r"\d+\.\d+(\.\d+)?", done.stdout + done.stderr)
    return found[0] if found else "unknown"


def machine_line(postern, envoy):
    with open("/proc/cpuinfo") as lines:
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    versions = {
        "Postern": version(postern, "--version"),
        "nginx": version("nginx", "-v"),
        "HAProxy": version("haproxy", "-v"),
        "Envoy": version(envoy, "--version") if envoy else "absent",
        "Redis": version("redis-server", "--version"),
        "wrk": version("wrk", "-v"),
        "h2load": version("h2load", "--version"),
    }
    placing = "load and backend on one core, one worker of the proxy on another"
    if machine.LOAD_CORE == machine.PROXY_CORE:
        placing = "everything on one core"
    return (
        f"{datetime.date.today()}, `{' '.join(sys.argv)}`: {models[0] if models else platform.machine()}, "
        f"{len(machine.CORES)} cores, Linux {platform.release()}; {placing}; medians of {scenes.ROUNDS} rounds of "
        f"{scenes.SECONDS} s in turns; " + ", ".join(f"{name} {number}" for name, number in versions.items())
    )


def written(path, line, results, verdicts):
    path.parent.mkdir(parents=True, exist_ok=True)
    runs = [
        {"scene": scene, "target": target, "runs": [dataclasses.asdict(run) for run in each]}
        for (scene, target), each in results.items()
    ]
    bars = [dataclasses.asdict(verdict) for verdict in verdicts]
    path.write_text(json.dumps({"machine": line, "results": runs, "bars": bars}, indent=1))
