"""`refsnn bench`: no operation is forgotten, equal work is verified first, what is reported is what was measured."""

import csv
import importlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refsnn.train
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
    assert {a.dtype for a in arrays if a.dtype.kind == "f"} <= {np.dtype(dtype)}       # packing takes bytes only


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
    times = bench.interleave([lambda: order.append(0), lambda: (order.append(1), time.sleep(0.002))], 3, 0)
    assert order == [0, 1, 0, 1, 0, 1, 1, 0, 0, 1], "once for warming up, once to see how long they take, three rounds"
    assert times.shape == (3, 2)
    assert (times[:, 1] > times[:, 0]).all()
    order.clear()
    bench.interleave([lambda: order.append(0), lambda: (order.append(1), time.sleep(0.002))], 1, 0.01)
    assert 1 < order.count(1) - 2 <= 5, "a hundredth of a second, and no less"
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


# ----------------------------------------------------------------------------------------------- validation/speed


SPEED = Path(refsnn.__file__).parents[1] / "validation" / "speed"


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Import a module of validation/speed as its programs do."""
    if not SPEED.is_dir():
        pytest.skip("validation/ is not installed")
    monkeypatch.syspath_prepend(str(SPEED))
    return importlib.import_module


def test_rows_survive_the_file_and_the_best_fair_peer_is_found(speed: Callable[[str], Any], tmp_path: Path) -> None:
    results = speed("results")
    task = {"net": "digits", "density": 0.05, "spread": "uniform", "batch": 4, "steps": 4, "threads": 2}
    peers = (("refsnn", 1.0, 200.0), ("pytorch", 5.0, 800.0), ("spikingjelly", 4.0, 1000.0), ("bfloat16", 2.0, 600.0))
    rows = [results.Row(**task, program=name, ratio=ratio, ratio_lower=ratio, ratio_upper=ratio, seconds=ratio,
                        lower=ratio, upper=ratio, peak=peak) for name, ratio, peak in peers]
    rows.append(results.Row(**task, program="compile", skipped="RuntimeError: no compiler"))
    results.write(tmp_path / "training.csv", rows)
    assert results.read(tmp_path / "training.csv") == rows
    assert results.read(tmp_path / "absent.csv") == []
    text = "\n".join(results.markdown(rows))
    assert "**4.00** spikingjelly" in text, "bfloat16 is faster, but not matched"
    assert "200 MiB; 4.00" in text, "over the most frugal fair peer"
    assert "compile is missing: RuntimeError: no compiler" in text
    assert results.draw(rows, "digits").startswith(b"\x89PNG")


def test_the_fixed_cost_is_found_whatever_the_clock_does(speed: Callable[[str], Any]) -> None:
    results = speed("results")
    rows = [results.Row("digits", d, "uniform", "pytorch", 4, 4, 2, ratio=1 / (0.01 + 2 * d), seconds=clock)
            for d, clock in ((0.01, 1.0), (0.05, 3.0), (0.1, 1.0), (0.3, 2.0), (1.0, 9.0))]
    assert results.fixed_costs(rows) == [
        "digits: fixed cost 0.0100 steps of pytorch, 9% of refsnn's step at 5 %"]
    assert results.fixed_costs(rows[:2]) == []


def test_every_peer_has_a_program_and_no_peer_imports_refsnn(speed: Callable[[str], Any]) -> None:
    for path in SPEED.glob("peers_*.py"):
        assert "import refsnn" not in path.read_text()
        assert "from refsnn" not in path.read_text()
        assert "from ours" not in path.read_text()
    pytest.importorskip("torch")
    assert sorted(speed("peers_torch").OPTIONS | speed("peers_frameworks").FRAMEWORKS) == sorted(speed("task").PEERS)


def test_a_peer_that_starts_equal_does_the_same_work(speed: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
                                                     ) -> None:
    pytest.importorskip("torch").set_num_threads(1)
    programs, ours, peers = speed("programs"), speed("ours"), speed("peers_torch")
    task = ours.task_of("tiny", 0.5, 3, 2)
    same = programs.verify("pytorch", task)
    assert max(same.loss, same.update) < 1e-12
    assert same.flips == 0 < same.entries
    assert task == speed("task").loads(task.dumps())
    monkeypatch.setattr(peers.Spike, "backward", staticmethod(lambda _, grad: 0.99 * grad))
    with pytest.raises(SystemExit, match="pytorch does other work"):        # the first loss is right all the same
        programs.verify("pytorch", task)
