"""What is measured: scenes, each some targets under one kind of load, round after round in turns."""

import os
import sys
from dataclasses import dataclass

from . import load
from .bars import middle

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
SECONDS = int(os.environ.get("BENCH_SECONDS", "3"))


@dataclass
class Scene:
    """`load` runs it once on a target for so many seconds and gives a `load.Run`."""

    key: str
    title: str
    targets: list
    load: callable
    rounds: int = ROUNDS


def play(scene, results):
    """Warms every target, then visits all in each round, there and back again, so that whatever else the machine does
    meets them alike. What it finds goes to `results` under scene and target."""
    for target in scene.targets:
        scene.load(target, 1)
    for number in range(scene.rounds):
        for target in scene.targets[:: -1 if number % 2 else 1]:
            told(f"{scene.title}, round {number + 1}: {target.name}")
            results.setdefault((scene.key, target.key), []).append(scene.load(target, SECONDS))
            if target.log:
                os.truncate(target.log, 0)
    told("")


def told(what):
    """Somebody who waits at a terminal."""
    if sys.stderr.isatty():
        print(f"\r{what}\033[K", end="", file=sys.stderr, flush=True)


def chosen(targets, *keys):
    return [target for target in targets if target.key in keys]


def main_scenes(targets, body, results):
    """The main table. Later scenes look at what earlier ones found: they are made one by one."""
    yield Scene("main", "64 connections", targets, lambda target, seconds: load.wrk(target, body, seconds))
    pair = chosen(targets, "postern", "bare")

    def steady(rate):
        return lambda target, seconds: load.at_rate(target, body, seconds, rate)

    yield Scene("1500", "1,500 requests a second", pair, steady(1500))
    if fastest := [middle(results["main", target.key], "rate") for target in pair if ("main", target.key) in results]:
        rate = round(min(fastest) / 2)
        yield Scene("half", f"half of saturation: {rate:,} requests a second", pair, steady(rate))
    trio = chosen(targets, "postern", "bare", "nginx")
    yield Scene("512", "512 connections", trio, lambda target, seconds: load.wrk(target, body, seconds, 512))
