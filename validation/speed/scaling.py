"""How the time of a training step grows with the batch, the time steps and the threads: exponents."""

import sys
from argparse import Namespace
from dataclasses import dataclass
from functools import partial
from typing import Any

import numba
import numpy as np
import programs
import results
import torch
from ours import task_of
from task import OURS

from refsnn.bench import interleave, milliseconds, quartiles


@dataclass(frozen=True)
class Point:
    """A step's seconds, median and quartiles, at one value of one dimension; the exponent is that of all values."""

    net: str
    density: float
    program: str
    dimension: str
    value: int
    seconds: float
    lower: float
    upper: float
    exponent: float
    machine: str


def run(args: Namespace, machine: str) -> None:
    """Every net, density, program and dimension; resumed dimension by dimension; table on stdout."""
    path = args.out / "scaling.csv"
    points = results.read(path, Point)
    for net in args.nets:
        for density in args.densities:
            for name in (OURS, *args.peers):
                for dimension, values in ladders(*args.sizes(net), args.threads).items():
                    there = {(p.net, p.density, p.program, p.dimension) for p in points}
                    if len(values) > 1 and (net, density, name, dimension) not in there:
                        print(f"{net}, {density:.0%}, {name}: {dimension} {values}", file=sys.stderr)
                        points += measure(net, density, name, dimension, values, args, machine)
                        results.write(path, points)
    print("\n".join(results.table(("net", "density", "program", "", "values", "steps", "exponent"), lines(points))))


def ladders(batch: int, steps: int, threads: int) -> dict[str, list[int]]:
    """The values of each dimension."""
    return {"batch": sorted({max(1, batch // 4), max(1, batch // 2), batch}),
            "T": sorted({max(1, steps // 2), steps, 2 * steps}), "threads": list(range(1, threads + 1))}


def measure(net: str, density: float, name: str, dimension: str, values: list[int], args: Namespace,
            machine: str) -> list[Point]:
    """The points of one dimension, taken in turn."""
    batch, steps = args.sizes(net)
    if dimension == "threads":
        step = programs.make(name, task_of(net, density, batch, steps)).step
        calls = [partial(on_threads, step, value) for value in values]
    else:
        sizes = [(value, steps) if dimension == "batch" else (batch, value) for value in values]
        calls = [programs.make(name, task_of(net, density, *size)).step for size in sizes]
    times = interleave(calls, args.rounds)
    set_threads(args.threads)
    exponent = float(np.polyfit(np.log(values), np.log(np.median(times, axis=0)), 1)[0])
    return [Point(net, density, name, dimension, value, *quartiles(times[:, k]), exponent, machine)
            for k, value in enumerate(values)]


def on_threads(step: Any, threads: int) -> None:
    """A step on so many threads."""
    set_threads(threads)
    step()


def set_threads(threads: int) -> None:
    """Of both programs' kernels; no more than the process was started with."""
    numba.set_num_threads(threads)
    torch.set_num_threads(threads)


def lines(points: list[Point]) -> list[list[str]]:
    """A line a dimension: its values, the times, and the exponent."""
    found: dict[tuple[Any, ...], list[Point]] = {}
    for p in points:
        found.setdefault((p.net, p.density, p.program, p.dimension), []).append(p)
    return [[net, f"{density:.0%}", program, dimension, ", ".join(str(p.value) for p in group),
             ", ".join(milliseconds(p.seconds) for p in group), f"{group[0].exponent:.2f}"]
            for (net, density, program, dimension), group in found.items()]
