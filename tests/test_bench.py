"""`refsnn bench`: no operation is forgotten, equal work is verified first, what is reported is what was measured."""

import csv
import os
import time
from pathlib import Path

import numpy as np
import pytest

import refsnn.train  # noqa: F401  (imports all operations)
from refsnn import bench, twin
from refsnn.errors import UserError

needs_jit = pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT", "0") == "1",
                               reason="NUMBA_DISABLE_JIT=1: there are no kernels")
WITH_KERNEL = [name for name, operation in twin.REGISTRY.items() if operation.kernel_path]
TINY = bench.Size(channels=3, pixels=4, features=8, steps=2, batch=2, density=0.5)


def test_every_operation_with_a_kernel_has_a_case_and_no_other() -> None:
    assert sorted(bench.CASES) == sorted(WITH_KERNEL)


@needs_jit
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", WITH_KERNEL)
def test_every_case_runs_and_its_twins_agree(name: str, dtype: str) -> None:
    row = bench.measure(name, dtype, TINY, seconds=0)
    assert row.rounds == bench.LEAST
    assert row.lower <= row.ratio <= row.upper
    assert min(row.definition, row.kernel, row.gbytes) > 0
    assert (row.gflops > 0) == name.startswith(("conv", "linear"))
    arrays = [a for a in bench.CASES[name](bench.Draw(TINY, dtype))[0] if isinstance(a, np.ndarray)]
    assert {a.dtype for a in arrays if a.dtype.kind == "f"} == {np.dtype(dtype)}


@needs_jit
def test_twins_that_disagree_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twin.REGISTRY["lif_forward"], "_kernel", lambda x, *_: (x, x))
    with pytest.raises(twin.TwinMismatch, match="lif_forward, output 0"):
        bench.measure("lif_forward", "float32", TINY)


def test_work_counts_active_weights_and_the_places_they_serve() -> None:
    (x, data, *_), flops = bench.CASES["conv2d_forward"](bench.Draw(TINY, "float32"))
    assert x.shape == (3, 4, 4, 2, 2)
    assert flops == 2 * data.size * 4 * 4 * 2 * 2
    (dy, *_), flops = bench.CASES["linear_weight_gradient_dense"](bench.Draw(TINY, "float32"))
    assert dy.shape == (8, 2, 2)
    assert flops == 2 * 8 * 8 * 2 * 2


def test_programs_run_in_turn_and_each_goes_first() -> None:
    order: list[int] = []
    times = bench.interleave([lambda: order.append(0), lambda: (order.append(1), time.sleep(0.002))], 3)
    assert order == [0, 1, 1, 0, 0, 1]
    assert times.shape == (3, 2)
    assert (times[:, 1] > times[:, 0]).all()
    assert bench.quartiles(np.array([1.0, 2.0, 3.0, 4.0, 5.0])) == (3, 2, 4)


@needs_jit
def test_the_table_and_the_file_hold_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "Size", lambda: TINY)
    monkeypatch.setattr(bench, "SECONDS", 0)
    out = tmp_path / "bench.csv"
    lines = list(bench.bench("float32", out))
    assert lines[0] == bench.machine()
    assert "NumPy " in lines[0]
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["operation"] for row in rows] == list(bench.CASES)
    for row in rows:
        line = next(one for one in lines if one.startswith(row["operation"] + " "))
        assert f"{float(row['ratio']):.3g}" in line.split()
        assert row["machine"] == bench.machine()


def test_bad_input_is_one_line_before_anything_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    with pytest.raises(UserError, match=r"NUMBA_DISABLE_JIT=1: .*; unset it"):
        next(bench.bench("float32"))
    monkeypatch.delenv("NUMBA_DISABLE_JIT")
    with pytest.raises(UserError, match=r"there is no folder .*absent; make it first"):
        next(bench.bench("float32", tmp_path / "absent" / "bench.csv"))
    with pytest.raises(UserError, match="cannot be written"):
        bench.write_csv(tmp_path, [])


@pytest.mark.parametrize(("seconds", "text"), [(0.000124, "0.124 ms"), (0.0124, "12.4 ms"), (1.2449, "1,245 ms"),
                                               (0.001, "1.00 ms"), (0.0, "0.000 ms")])
def test_times_have_three_digits(seconds: float, text: str) -> None:
    assert bench.milliseconds(seconds) == text
