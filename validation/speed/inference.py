"""Latency of one image, B = 1, in evaluation mode, encoding included."""

import sys
from argparse import Namespace
from dataclasses import dataclass

import programs
import results
from ours import Ours, task_of
from task import OURS, UNMATCHED

from refsnn.bench import interleave, milliseconds, quartiles

LIMIT = 1e-3        # logits, float32: largest difference over largest logit, where no spike flips


@dataclass(frozen=True)
class Latency:
    """Seconds of one prediction, median and quartiles; ratio to refsnn's, over the rounds; logits against refsnn's."""

    net: str
    density: float
    program: str
    steps: int
    threads: int
    seconds: float
    lower: float
    upper: float
    ratio: float
    ratio_lower: float
    ratio_upper: float
    error: float
    machine: str


def run(args: Namespace, machine: str) -> None:
    """Every net and density that is not there yet; table on stdout."""
    path = args.out / "inference.csv"
    found = results.read(path, Latency)
    for net in args.nets:
        steps = args.sizes(net)[1]
        for density in args.densities:
            there = {one.program for one in found
                     if (one.net, one.density, one.steps, one.threads) == (net, density, steps, args.threads)}
            missing = [name for name in args.peers if name not in there]
            if missing or OURS not in there:
                print(f"{net}, density {density:.0%}, one image: {', '.join((OURS, *missing))}", file=sys.stderr)
                new = measure(net, density, steps, missing, args, machine)
                found += [one for one in new if one.program not in there]
                results.write(path, found)
    rows = [[one.net, f"{one.density:.0%}", one.program, milliseconds(one.seconds),
             f"{one.ratio:.2f} ({one.ratio_lower:.2f} – {one.ratio_upper:.2f})", f"{one.error:.1e}"] for one in found]
    print("\n".join(results.table(("net", "density", "program", "one image", "over refsnn", "logits differ"), rows)))


def measure(net: str, density: float, steps: int, names: list[str], args: Namespace, machine: str) -> list[Latency]:
    """One image through refsnn and the peers.   Raises SystemExit where a peer's logits are others."""
    ours = Ours(task_of(net, density, 1, steps))
    ours.settle()
    logits, errors, peers = ours.predict(), {OURS: 0.0}, {}
    for name in names:
        try:
            peer = programs.make_equal(name, ours)
            errors[name] = float(abs(peer.predict() - logits).max() / abs(logits).max())
        except Exception as error:      # absent, or not compiled
            print(f"{name} is missing: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        if errors[name] > LIMIT and name not in UNMATCHED:
            sys.exit(f"{net}, density {density:.0%}: {name} does other work: its logits differ by {errors[name]:.1e}")
        peers[name] = peer
    times = interleave([ours.predict, *(peer.predict for peer in peers.values())], args.rounds)
    return [Latency(net, density, name, steps, args.threads, *quartiles(times[:, k]),
                    *quartiles(times[:, k] / times[:, 0]), errors[name], machine)
            for k, name in enumerate((OURS, *peers))]
