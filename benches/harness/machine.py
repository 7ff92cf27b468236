"""The machine: which core does what, programs that are started and ended, and what they cost meanwhile."""

import contextlib
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass

CORES = sorted(os.sched_getaffinity(0))
LOAD_CORE, PROXY_CORE = CORES[0], CORES[min(1, len(CORES) - 1)]
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def free_port():
    """Below the kernel's own range, so that no outgoing connection takes it before its program does."""
    while True:
        port = random.randrange(10_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port), reuse_port=False):
            return port


class Programs:
    """Everything that runs beside us: each pinned, each ended by its own id."""

    def __init__(self, directory):
        self.directory, self.running = directory, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end(*self.running)

    def start(self, name, command, core, output=None, environment=None):
        """What it prints goes to `NAME.log`, or its standard output to `output`."""
        with open(self.directory / f"{name}.log", "wb") as log, open(output or os.devnull, "ab") as other:
            process = subprocess.Popen(
                ["taskset", "-c", str(core), *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=other if output else log,
                stderr=log,
                env=os.environ | (environment or {}),
            )
        process.name = name
        self.running.append(process)
        return process

    def end(self, *processes):
        for process in processes:
            # By SIGTERM Pingora would wait for minutes.
            process.send_signal(signal.SIGINT)
        for process in processes:
            try:
                process.wait(timeout=4)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.running = [process for process in self.running if process not in processes]

    def last_words(self):
        """The ends of the logs of what runs, for when something went wrong."""
        for log in (self.directory / f"{process.name}.log" for process in self.running):
            lines = log.read_text(errors="replace").splitlines()[-5:]
            yield from [f"--- {log.name}", *lines] if lines else []


@dataclass
class Cost:
    """Of a stretch of time: CPU seconds of the watched programs, and how busy the two cores were (0 to 1)."""

    cpu_seconds: float = 0.0
    proxy_busy: float = 0.0
    load_busy: float = 0.0


@contextlib.contextmanager
def watched(processes, keepers=None):
    """Yields a `Cost` that is filled in at the end of the block. `keepers`: as [awake] gives them; they do not count."""
    cost, keepers = Cost(), keepers or {}

    def now():
        return {
            core: (used - cpu_ticks([keepers[core]]) if core in keepers else used, total)
            for core, (used, total) in core_times().items()
        }

    ticks, cores = cpu_ticks(processes), now()
    yield cost
    cost.cpu_seconds = (cpu_ticks(processes) - ticks) / TICKS_PER_SECOND
    after = now()
    cost.proxy_busy, cost.load_busy = (busy(cores[core], after[core]) for core in (PROXY_CORE, LOAD_CORE))


@contextlib.contextmanager
def awake():
    """Keeps both cores from falling asleep, as `idle=poll` would: on each something turns that makes way at once for anything
    else (SCHED_IDLE). How long a host takes to wake a core would else be the larger part of a latency at a low rate."""
    turn = "import os; os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0)); print(flush=True)\nwhile True: pass"
    keepers = {
        core: subprocess.Popen(["taskset", "-c", str(core), sys.executable, "-c", turn], stdout=subprocess.PIPE)
        for core in {PROXY_CORE, LOAD_CORE}
    }
    try:
        for keeper in keepers.values():
            keeper.stdout.readline()
        yield keepers
    finally:
        for keeper in keepers.values():
            keeper.kill()
            keeper.communicate()


def core_times():
    """By core: ticks in use, ticks in all. What a hypervisor took counts as in use."""
    times = {}
    for line in open("/proc/stat"):
        name, *values = line.split()
        if name.startswith("cpu") and name != "cpu":
            values = [int(value) for value in values[:8]]
            times[int(name[3:])] = sum(values) - values[3] - values[4], sum(values)
    return times


def busy(before, after):
    return (after[0] - before[0]) / max(1, after[1] - before[1])


def family(processes):
    """The ids of the processes and all their descendants."""
    children = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # ended meanwhile
                # After the name in parentheses: state, parent, ...
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    members = [process.pid for process in processes]
    for member in members:
        members += children.get(member, [])
    return members


def cpu_ticks(processes):
    """User and system time, in clock ticks."""
    ticks = 0
    for member in family(processes):
        values = pathlib.Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        ticks += int(values[11]) + int(values[12])
    return ticks


def cpu_nanoseconds(processes):
    """The same from the scheduler's own books, for what is too short to be counted in ticks."""
    return sum(
        int(schedstat.read_text().split()[0])
        for member in family(processes)
        for schedstat in pathlib.Path(f"/proc/{member}/task").glob("*/schedstat")
    )


def open_files(processes):
    return sum(len(os.listdir(f"/proc/{member}/fd")) for member in family(processes))


def resident_kib(processes):
    pages = sum(int(pathlib.Path(f"/proc/{member}/statm").read_text().split()[1]) for member in family(processes))
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024
