"""The first step of a fresh process: with nothing compiled yet, and with all kernels in Numba's cache; and a peer's.

Each process tells how long its import took, and its first and second step from then on. "Cold" has an empty cache
folder; "warm" has the folder that the cold one filled. What compiles is `refsnn train`'s own way to its first step.
"""

import os
import subprocess
import sys
import tempfile
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import results
from task import OURS, Task

from refsnn.bench import milliseconds

CHILD = """
import sys, time
began = time.perf_counter()
{load}
loaded = time.perf_counter()
from task import loads
import programs
program = programs.make({name!r}, loads(sys.argv[1]))
ready = time.perf_counter()
program.step()
first = time.perf_counter()
program.step()
print(loaded - began, first - ready, time.perf_counter() - first)
"""
LOADS = {OURS: "import refsnn.train", "pytorch": "import torch"}


@dataclass(frozen=True)
class First:
    """Seconds of a fresh process: its import, its first and its second step."""

    net: str
    density: float
    program: str
    cache: str
    imported: float
    first: float
    second: float
    machine: str


def run(args: Namespace, machine: str) -> None:
    """Every net that is not there yet; table on stdout."""
    from ours import task_of

    path = args.out / "first.csv"
    found = results.read(path, First)
    for net in args.nets:
        for density in args.densities:
            if (net, density) not in {(one.net, one.density) for one in found}:
                found += measure(task_of(net, density, *args.sizes(net)), args.rounds, machine)
                results.write(path, found)
    rows = [[one.net, f"{one.density:.0%}", one.program, one.cache, *map(milliseconds, (one.imported, one.first,
                                                                                        one.second))] for one in found]
    print("\n".join(results.table(("net", "density", "program", "cache", "import", "first step", "second"), rows)))


def measure(task: Task, rounds: int, machine: str) -> list[First]:
    """One cold process; the quickest of some warm ones and of the peer's."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        cases = [(OURS, "cold", 1), (OURS, "warm", rounds), ("pytorch", "", rounds)]
        for name, cache, repeats in cases:
            times = [process(name, task, folder) for _ in range(repeats)]
            found.append(First(task.net, task.density, name, cache, *map(min, zip(*times, strict=True)), machine))
    return found


def process(name: str, task: Task, folder: str) -> tuple[float, ...]:
    """The three times of one process.   Raises RuntimeError with what it said where it fails."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": folder, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", CHILD.format(load=LOADS[name], name=name), task.dumps()],
                          capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"first step of {name}: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
    return tuple(float(word) for word in done.stdout.split()[-3:])
