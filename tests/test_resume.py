"""Killed with SIGKILL at random moments and resumed equals uninterrupted, in everything but the clock."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

KILLS = 20
RUN = ["train", "tiny", "--set", "train.iterations=6", "--set", "train.epochs=2", "--set", "train.batch=128", "--quiet"]


def start(folder: Path, *extra: str) -> subprocess.Popen:
    """Start the command line in reading mode, where nothing is compiled and every process starts in a second."""
    env = os.environ | {"NUMBA_DISABLE_JIT": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "refsnn", *RUN, "--out", str(folder), *extra],
                            env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def content(folder: Path) -> dict:
    """Everything a run leaves behind, but the clock."""
    found = {}
    for name in ("metrics.csv", "structure.csv"):
        with open(folder / name, newline="") as file:
            found[name] = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    with h5py.File(folder / "checkpoint.h5") as file:
        def collect(name, item):
            if isinstance(item, h5py.Dataset) and name not in ("tables", "progress/sums"):
                found[name] = np.asarray(item[()]).tobytes()
        file.visititems(collect)
        found["config"] = file.attrs["config"]
    found["files"] = sorted(p.name for p in folder.iterdir())
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, float]:
    folder, began = tmp_path_factory.mktemp("whole") / "run", time.monotonic()
    process = start(folder)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    return content(folder), time.monotonic() - began


def test_killed_at_random_moments_and_resumed_equals_uninterrupted(uninterrupted: tuple, tmp_path: Path) -> None:
    expected, seconds = uninterrupted
    draw, folder, kills, attempts = random.Random(0), tmp_path / "run0", 0, 0
    while kills < KILLS:
        attempts += 1
        assert attempts < 20 * KILLS, "the run ends before it can be killed"
        resume = ["--resume"] if (folder / "checkpoint.h5").exists() else []
        if not resume and folder.exists():                  # killed before its first checkpoint: nothing to keep
            folder = tmp_path / f"run{attempts}"
        process = start(folder, *resume)
        try:
            output = process.communicate(timeout=draw.uniform(0.3, max(1.0, 0.8 * seconds)))[0]
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0, output              # it came to its end: begin another
        assert content(folder) == expected
        folder = tmp_path / f"run{attempts}"
    process = start(folder, *(["--resume"] if (folder / "checkpoint.h5").exists() else []))
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert content(folder) == expected
