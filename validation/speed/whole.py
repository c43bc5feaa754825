"""A whole iteration with one rewire at its end, the same without, and the method with masks in PyTorch.

All three take their steps in turn. Before the rewire a growth window: `WINDOW` steps whose gradient is computed at
every place. A peer, whose gradients are dense anyway, is timed at every `SAMPLED`th step and at a quarter of the
window's, and its iteration is put together from the means.
"""

from argparse import Namespace
from dataclasses import dataclass
from typing import Any

import numpy as np
import programs
import results
from ours import GROWING, Ours, task_of

from refsnn.bench import timed
from refsnn.errors import UserError

WINDOW, SAMPLED = 44, 20


@dataclass(frozen=True)
class Iteration:
    """Seconds of one program's iteration: its steps outside and inside the window (sums), its rewire, and all."""

    net: str
    density: float
    program: str
    batch: int
    steps: int
    threads: int
    length: int
    outside: float
    inside: float
    rewire: float
    total: float
    machine: str


def run(args: Namespace, machine: str) -> None:
    """Every net and density that is not there yet; table on stdout."""
    path = args.out / "whole.csv"
    found = results.read(path, Iteration)
    if max(args.densities) == 1:
        raise UserError("--densities 100: a dense network has no place to regrow; --whole needs fewer connections")
    for net in args.nets:
        batch, steps = args.sizes(net)
        for density in args.densities:
            task = (net, density, batch, steps, args.threads, args.length)
            there = [(i.net, i.density, i.batch, i.steps, i.threads, i.length) for i in found]
            if task not in there:
                for name, sums in measure(net, density, batch, steps, args).items():
                    found.append(Iteration(net, density, name, *task[2:], *sums, sum(sums), machine))
                results.write(path, found)
    print("\n".join(results.table(("net", "density", "program", "steps outside", "in the window", "rewire", "all",
                                   "over refsnn without"), lines(found))))


def measure(net: str, density: float, batch: int, steps: int, args: Namespace) -> dict[str, tuple[float, float, float]]:
    """Seconds outside the window, inside it, and of the rewire, by program."""
    length, window = args.length, min(WINDOW, args.length // 2)
    task = task_of(net, density, batch, steps)
    static, rewiring = Ours(task), Ours(task, (*GROWING, f"rewire.grow_window={window}"), length)
    peers = {f"{name} with masks": programs.make_equal(name, static) for name in args.peers}
    everyone = {"refsnn without": static, "refsnn": rewiring, **peers}
    warm_up(everyone)
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in everyone}
    for step in range(length):
        inside = step >= length - window
        if step == length - window:
            for peer in peers.values():
                peer.grow()
        sampled = step % (4 if inside else SAMPLED) == 0
        for name, program in everyone.items():
            if sampled or name not in peers:
                times[name][inside].append(timed(program.step))
        rewiring.state.batch += 1
    counts = (length - window, window)
    return {name: (*(float(np.mean(t)) * n for t, n in zip(times[name], counts, strict=True)),
                   0.0 if program is static else timed(program.rewire))
            for name, program in everyone.items()}


def warm_up(everyone: dict[str, Any]) -> None:
    """Every program's memory, caches and compilers; also refsnn's kernels of the dense gradient."""
    for program in everyone.values():
        program.step()
    another = Ours(everyone["refsnn"].task)
    another.grow()
    another.step()


def lines(found: list[Iteration]) -> list[list[str]]:
    """A line a program."""
    base = {(i.net, i.density, i.length): i.total for i in found if i.program == "refsnn without"}
    return [[i.net, f"{i.density:.0%}", i.program, *(f"{t:.3g} s" for t in (i.outside, i.inside, i.rewire, i.total)),
             f"{i.total / base[i.net, i.density, i.length]:.2f}"] for i in found]
