"""The whole training step of refsnn and of its peers, by density: forward, backpropagation through time, SGD."""

import gc
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import programs
import results
from memory import peaks
from ours import Ours, task_of
from results import Row
from task import OURS, UNMATCHED, Task

from refsnn.bench import interleave, quartiles
from refsnn.disk import write_whole


def run(args: Namespace, machine: str) -> None:
    """Measure what is missing, task by task; write the rows after each, then the table and the figures."""
    path = args.out / "training.csv"
    rows = results.read(path)
    for net, density in ((net, density) for net in args.nets for density in args.densities):
        batch, steps = args.sizes(net)
        there = [row for row in rows if row.task == (net, density, args.spread, batch, steps, args.threads)]
        missing = [name for name in args.peers if name not in {row.program for row in there}]
        if there and not missing:
            continue
        print(f"{net}, density {density:.0%}, B {batch}, T {steps}: {', '.join((OURS, *missing))}", file=sys.stderr)
        new = measure(task_of(net, density, batch, steps, args.spread), missing, args.rounds)
        new = [replace(row, threads=args.threads, machine=machine) for row in new]
        new = [row for row in new if row.program not in {one.program for one in there}]
        rows += new if args.no_memory else with_memory(new, rows)
        results.write(path, rows)
    report(rows, args.out)


def report(rows: list[Row], out: Path) -> None:
    """Print the table and write it and the figures."""
    lines = results.markdown(rows)
    print("\n".join(lines))
    write_whole(out / "training.md", ("\n".join(lines) + "\n").encode())
    for net in dict.fromkeys(row.net for row in rows if row.spread == "uniform"):
        write_whole(out / f"training_{net}.png", results.draw(rows, net))


def measure(task: Task, names: list[str], rounds: int) -> list[Row]:
    """Rows of refsnn and these peers.   Raises SystemExit where a peer does other work."""
    same, rows = verified(names, task)
    ours = Ours(task)
    peers = {name: programs.make_equal(name, ours) for name in same}
    times = interleave([ours.step, *(peer.step for peer in peers.values())], rounds)
    same[OURS] = programs.Equality(0, 0, 0, max((one.entries for one in same.values()), default=0))
    for k, name in enumerate((OURS, *peers)):
        one, ratio = same[name], quartiles(times[:, k] / times[:, 0])
        rows.append(Row(task.net, task.density, task.spread, name, task.batch, task.steps, 0, rounds,
                        *quartiles(times[:, k]), float(np.median(times[:, 0])), *ratio, one.loss, one.update,
                        one.flips, one.entries))
    return rows


def verified(names: list[str], task: Task) -> tuple[dict[str, programs.Equality], list[Row]]:
    """The peers that work and do the same work; rows of the others, with the reason."""
    same: dict[str, programs.Equality] = {}
    rows = []
    for name in names:
        try:
            same[name] = programs.Equality(0, 0, 0, 0) if name in UNMATCHED else programs.verify(name, task)
            programs.make(name, task).step()
        except Exception as error:      # absent, or what a compiler may raise, is anybody's guess
            same.pop(name, None)
            rows.append(skipped(task, name, error))
    return same, rows


def skipped(task: Task, name: str, error: Exception) -> Row:
    """The row of a program that does not work."""
    lines = str(error).strip().splitlines() or [""]
    return Row(task.net, task.density, task.spread, name, task.batch, task.steps, 0,
               skipped=f"{type(error).__name__}: {lines[0]}")


def with_memory(new: list[Row], known: list[Row]) -> list[Row]:
    """The rows with their peak memory; a peer's does not depend on the density and is measured once a net and size."""
    gc.collect()        # the programs that were timed
    done = []
    for row in new:
        size = (row.net, row.program, row.batch, row.steps, row.threads)
        before = next((r for r in [*known, *done] if r.program != OURS and r.peak
                       and (r.net, r.program, r.batch, r.steps, r.threads) == size), None)
        if row.skipped:
            done.append(row)
        elif before:
            done.append(replace(row, peak=before.peak, peak_growing=before.peak_growing))
        else:
            task = task_of(row.net, row.density, row.batch, row.steps, row.spread)
            try:
                peak, growing = peaks(row.program, task)
            except RuntimeError as error:       # the times are worth keeping
                print(error, file=sys.stderr)
                peak = growing = 0.0
            done.append(replace(row, peak=peak, peak_growing=growing))
    return done
