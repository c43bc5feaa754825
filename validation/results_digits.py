"""Everything that docs/results.md says of the digits: trains it, run by run, and prints the tables.

    python validation/results_digits.py --out runs/results --jobs 2 > tables.md

Every run is one `refsnn train` in a folder of its own, on one thread; finished runs are not repeated, so that an
interrupted batch goes on where it was. The test set decides nothing; the settings of the bundled configurations
were chosen on a held-out part of the training set (docs/results.md says how).
"""

import argparse
import csv
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

SEEDS = range(5)
PUBLISHED = {       # overall density by iteration, read off the paper's figures (CIFAR-10)
    "layer": (0.50, 0.42, 0.35, 0.30, 0.25, 0.21, 0.18, 0.15, 0.13, 0.11),
    "neuron": (0.50, 0.41, 0.33, 0.27),
}
# name -> (configuration, overrides, what it is)
RUNS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "layer": ("digits", (), "`figures`: rewiring inside, learning rate restarted"),
    "neuron": ("digits_neuron", (), "the same, neuron-wise"),
    "dense": ("digits", ("structure.density=1.0", "rewire.ratio=none"), "dense, same budget"),
    "prune-restart": ("digits", ("rewire.inner_every=0",), "prune only, restarted"),
    "inner-cosine": ("digits", ("optim.restart=false",), "`figures`, one cosine over the run"),
    "prune-cosine": ("digits", ("rewire.inner_every=0", "optim.restart=false"), "prune only, one cosine"),
    "inner-rewind": ("digits", ("rewire.rewind=true",), "`figures`, rewound to the initial weights"),
    "prune-rewind": ("digits", ("rewire.inner_every=0", "rewire.rewind=true"), "prune only, rewound"),
    "inner-sgd": (
        "digits", ("optim.kind=sgd", "optim.lr=0.1", "optim.weight_decay=0.0005"), "`figures`, SGD with decay"),
    "inner-adamw": ("digits", ("optim.kind=adamw", "optim.weight_decay=0.01"), "`figures`, AdamW with decay"),
    "inner-lr2": ("digits", ("optim.lr=0.002",), "`figures`, an eighth of the learning rate"),
}
READINGS = tuple(name for name in RUNS if name not in ("neuron", "dense"))


def train(out: Path, name: str, seed: int) -> None:
    """Train one run unless it is there; continue it where it was interrupted."""
    config, overrides, _ = RUNS[name]
    folder = out / f"{name}-seed{seed}"
    command = [sys.executable, "-m", "refsnn", "train", config, "--out", str(folder), "--quiet"]
    for override in (*overrides, f"seed={seed}"):
        command += ["--set", override]
    if (folder / "checkpoint.h5").exists():
        command.append("--resume")
    subprocess.run(command, check=True, env=os.environ | {"NUMBA_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
    print(f"{folder}: done", file=sys.stderr, flush=True)


def column(out: Path, name: str, key: str) -> np.ndarray:
    """(seed, iteration): a column of metrics.csv at the last epoch of every iteration."""
    runs = []
    for seed in SEEDS:
        with open(out / f"{name}-seed{seed}" / "metrics.csv", newline="") as file:
            last = {row["iteration"]: float(row[key]) for row in csv.DictReader(file)}
        runs.append(list(last.values()))
    return np.array(runs)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a Markdown table."""
    for row in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(row)} |")
    print()


def spread(values: np.ndarray, digits: int, factor: float = 1) -> list[str]:
    """mean ± standard deviation over the seeds, column by column."""
    mean, deviation = factor * values.mean(axis=0), factor * values.std(axis=0, ddof=1)
    return [f"{m:.{digits}f} ± {s:.{digits}f}" for m, s in zip(mean, deviation, strict=True)]


def densities(out: Path) -> None:
    """Density and accuracy by iteration, beside the published densities."""
    iterations = [str(k) for k in range(1, 11)]
    for name in ("layer", "neuron"):
        published = [f"{p:.2f}" for p in PUBLISHED[name]]
        table([f"{name}-wise, iteration", *iterations], [
            ["density, published", *published, *[""] * (10 - len(published))],
            ["density", *spread(column(out, name, "param_density"), 3)],
            ["test accuracy, %", *spread(column(out, name, "test_accuracy"), 2, 100)],
            ["dense, same budget, %", *spread(column(out, "dense", "test_accuracy"), 2, 100)],
        ])


def readings(out: Path) -> None:
    """Ratio of successive densities under every reading."""
    rows = []
    for name in READINGS:
        density, accuracy = column(out, name, "param_density"), column(out, name, "test_accuracy")
        ratios = density[:, 1:] / density[:, :-1]
        rows.append([RUNS[name][2], " ".join(f"{r:.3f}" for r in ratios.mean(axis=0)),
                     *spread(ratios.mean(axis=1)[:, None], 3), *spread(density[:, -1:], 3),
                     *spread(accuracy[:, 3:4], 2, 100), *spread(accuracy[:, -1:], 2, 100)])
    table(["reading", "ratio after iteration 1 … 9", "mean ratio", "density in iteration 10",
           "accuracy in iteration 4, %", "in iteration 10, %"], rows)


def main() -> None:
    """Train what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    args = parser.parse_args()
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda job: train(args.out, *job), [(name, seed) for name in RUNS for seed in SEEDS]))
    densities(args.out)
    readings(args.out)


if __name__ == "__main__":
    main()
