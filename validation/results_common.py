"""What the scripts of results share: train what is missing, read its tables, print Markdown.

A study is a table of runs: name -> (configuration, overrides, what it is). Every run is one `refsnn train` in a folder
of its own, on one thread; finished runs are not repeated, so that an interrupted batch goes on where it was.
"""

import csv
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

Study = dict[str, tuple[str, tuple[str, ...], str]]
PUBLISHED = {       # overall density by iteration, read off the paper's figures (CIFAR-10)
    "layer": (0.50, 0.42, 0.35, 0.30, 0.25, 0.21, 0.18, 0.15, 0.13, 0.11),
    "neuron": (0.50, 0.41, 0.33, 0.27),
}


def train(study: Study, out: Path, name: str, seed: int) -> None:
    """Train one run unless it is there; continue it where it was interrupted."""
    config, overrides, _ = study[name]
    folder = out / f"{name}-seed{seed}"
    command = [sys.executable, "-m", "refsnn", "train", config, "--out", str(folder), "--quiet"]
    for override in (*overrides, f"seed={seed}"):
        command += ["--set", override]
    if (folder / "checkpoint.h5").exists():
        command.append("--resume")
    subprocess.run(command, check=True, env=os.environ | {"NUMBA_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
    print(f"{folder}: done", file=sys.stderr, flush=True)


def train_all(study: Study, out: Path, jobs: Sequence[tuple[str, int]], at_a_time: int) -> None:
    """Train runs (name, seed), some at a time."""
    with ThreadPoolExecutor(at_a_time) as pool:
        list(pool.map(lambda job: train(study, out, *job), jobs))


def last_epochs(folder: Path, key: str) -> list[float]:
    """A column of a run's metrics.csv at the last epoch of every iteration."""
    with open(folder / "metrics.csv", newline="") as file:
        return list({row["iteration"]: float(row[key]) for row in csv.DictReader(file)}.values())


def column(out: Path, name: str, key: str, seeds: Iterable[int]) -> np.ndarray:
    """(seed, iteration): a column of metrics.csv at the last epoch of every iteration, as far as all seeds came."""
    runs = [last_epochs(out / f"{name}-seed{seed}", key) for seed in seeds]
    return np.array([run[:min(len(one) for one in runs)] for run in runs])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a Markdown table."""
    for row in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(row)} |")
    print()


def spread(values: np.ndarray, digits: int, factor: float = 1) -> list[str]:
    """mean ± standard deviation over the seeds (one seed: the value), column by column."""
    mean = factor * values.mean(axis=0)
    if len(values) == 1:
        return [f"{m:.{digits}f}" for m in mean]
    return [f"{m:.{digits}f} ± {s:.{digits}f}" for m, s in zip(mean, factor * values.std(axis=0, ddof=1), strict=True)]
