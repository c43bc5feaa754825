"""The command `trace`: all records in the order of execution, as docs/trace-format.md has them, and no bit moved."""

import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from conftest import Watcher, data_of, first, tiny
from refsnn import config as configuration
from refsnn import safe_read, trace, twin
from refsnn.datasets import Dataset
from refsnn.errors import UserError
from refsnn.ops.neuron import lif_forward
from refsnn.rng import stream
from refsnn.schema import Config
from refsnn.trace import FileRecorder
from refsnn.tracing import trace as run_trace
from refsnn.train import start, train

DOCS = Path(__file__).parents[1] / "docs"
SHORT = ("train.batch=40", "train.epochs=2", "train.iterations=3", "dtype=float64")
SAMPLES = 96        # 3 steps an epoch, the third with the 16 samples that are left; 18 in all
EVERYTHING = [      # configurations that together have every record of the format
    (), ("rewire.scope=neuron", "optim.kind=sgd", "rewire.preset=literal"), ("rewire.scope=global", "model.pool=max"),
    ("model.dropout=0.3", "train.clip=0.01", "rewire.grow=adam"), ("rewire.grow=random", "rewire.preset=partial"),
]
LAYERS = {"conv": ["conv1", "conv2"], "linear": ["fc1", "fc2"], "norm": ["norm1", "norm2"], "pool": ["pool1", "pool2"],
          "lif": ["lif1", "lif2", "lif3"], "dropout": ["dropout"], "layer": ["conv1", "conv2", "fc1", "fc2"]}
WEIGHTS = [f"{name}.weight" for name in LAYERS["layer"]]
PARAMETERS = [*WEIGHTS, "fc1.bias", "fc2.bias", *(f"{n}.{p}" for n in LAYERS["norm"] for p in ("gamma", "beta"))]
CHANNELS = {"1": 4, "2": 8}         # of tiny's convolutions and norms, by the number in their names


@pytest.fixture(autouse=True)
def definitions() -> Iterator[None]:
    with twin.backend("numpy"):
        yield


Values = dict[str, np.ndarray]


def samples(config: Config) -> Dataset:
    """The first digits."""
    return first(data_of(config), SAMPLES, SAMPLES)


@cache
def traced(*overrides: str, steps: int = 9) -> dict[str, trace.Record]:
    """The records of a trace of so many steps, written and read."""
    config = tiny(*SHORT, *overrides)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "t.h5"
        number = run_trace(config, samples(config), steps, path)
        found, _ = trace.read(path)
    assert number == len(found)
    return found


def values_of(found: dict[str, trace.Record]) -> Values:
    return {name: record.value for name, record in found.items()}


# --------------------------------------------------------------------------------------------------------------- order


def expected_step(step: int) -> list[str]:
    """The names of one step of `tiny`, by hand."""
    names = ["rng/order", "input/x", "input/y"]
    parameters = ["conv1.weight", "norm1.gamma", "norm1.beta", "conv2.weight", "norm2.gamma", "norm2.beta",
                  "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    for name in parameters:
        names += [f"params/{name}/value"] + [f"params/{name}/mask"] * name.endswith("weight")
    names += [f"params/norm{k}.running_{part}/value" for k in (1, 2) for part in ("mean", "var")]
    names += ["encode/spikes"]
    for k in (1, 2):
        names += [f"forward/conv{k}/y", *(f"forward/norm{k}/{part}" for part in
                                          ("mean", "var", "running_mean", "running_var", "y")),
                  *(f"forward/lif{k}/{part}" for part in "hsv"), f"forward/pool{k}/y"]
    names += ["forward/fc1/y", *(f"forward/lif3/{part}" for part in "hsv"), "forward/fc2/y",
              "loss/value", "loss/dlogits"]
    weight = ["dweight", "dweight_dense"]
    names += [f"backward/fc2/{part}" for part in [*weight, "dbias", "dx"]] + ["backward/lif3/slope", "backward/lif3/dx"]
    names += [f"backward/fc1/{part}" for part in [*weight, "dbias", "dx"]]
    for k in (2, 1):
        names += [f"backward/pool{k}/dx", f"backward/lif{k}/slope", f"backward/lif{k}/dx",
                  *(f"backward/norm{k}/{part}" for part in ("dgamma", "dbeta", "dx")),
                  *(f"backward/conv{k}/{part}" for part in [*weight, "dx"])]
    names += ["optim/lr"]
    names += [f"optim/{name}/{part}" for name in parameters for part in ("first", "second", "steps", "after")]
    names += [f"growth/{name}/average" for name in WEIGHTS]
    return [f"step_{step:04d}/{name}" for name in names]


def expected_rewire(step: int, measured: bool, regrows: bool) -> list[str]:
    names = [f"stage1/{part}" for part in ("d", "norm_p", "norm_q", "index", "bound", "count", "ratio")] * measured
    names += ["stage2/prune_count", "stage2/grow_count"]
    for name in WEIGHTS:
        parts = ["prune_score", "pruned", *["grow_score"] * regrows, "grown", "mask"]
        names += [f"stage2/{name}/{part}" for part in parts]
    return [f"step_{step:04d}/{name}" for name in names]


def test_records_are_in_the_order_of_execution_and_rewires_where_they_fall() -> None:
    expected = []
    for step in range(9):
        expected += expected_step(step)
        if step == 5:                                                       # the first iteration ends
            expected += expected_rewire(step, measured=True, regrows=False)
        if step == 8:                                                       # an epoch of the second
            expected += expected_rewire(step, measured=False, regrows=True)
    assert list(traced()) == expected


def test_the_last_iteration_measures_and_does_not_rewire() -> None:
    found = traced("train.iterations=1", steps=6)
    assert [n for n in found if "stage" in n] == [n for n in expected_rewire(5, True, False) if "stage1" in n]


# ------------------------------------------------------------------------------------------------------- documentation


def documented() -> dict[str, tuple[str, str]]:
    """Every row of the page's tables of records: {pattern: (shape, kind)}."""
    text = (DOCS / "trace-format.md").read_text()
    rows = re.findall(r"^\| `([\w<>./]+/[\w<>./]+)` \| ([^|]+) \| (\w+) \|", text, re.M)
    found = {name: (shape, kind) for name, shape, kind in rows}
    assert len(found) == len(rows) > 55
    return found


def names_of(pattern: str) -> list[str]:
    """The names that a documented pattern stands for in `tiny`."""
    kinds = LAYERS | {"weight": WEIGHTS, "param": PARAMETERS}
    for word, names in kinds.items():
        if f"<{word}>" in pattern:
            return [pattern.replace(f"<{word}>", name) for name in names]
    return [pattern]


def rank_and_ends(shape: str, name: str, found: Values, step: str) -> tuple[int | None, tuple[int | None, ...]]:
    """The number of axes that a documented shape means (None: any), and the lengths of those that are known."""
    if shape.startswith("as the"):
        parameter = next(p for p in PARAMETERS if p in name or f"/{p.removesuffix('.weight')}/dweight" in name)
        lengths: tuple[int | None, ...] = found[f"{step}/params/{parameter}/value"].shape
        return len(lengths), lengths
    words = shape.strip("()").replace(",", " ").split()
    batch = len(found[f"{step}/input/y"])
    number = re.search(r"/(?:conv|norm)(\d)", name)
    channels = CHANNELS[number[1]] if number and not name.endswith(("conv1/dx", "conv2/dx")) else None
    lengths = tuple({"T": 2, "B": batch, "K": 10, "1": 1, "C": channels}.get(w) for w in words)
    return (None, lengths[:-1]) if words[-1:] == ["..."] else (len(words), lengths)


@pytest.mark.parametrize("overrides", EVERYTHING, ids=lambda o: " ".join(o) or "default")
def test_every_record_is_as_documented(overrides: tuple[str, ...]) -> None:
    found, pages = traced(*overrides), documented()
    kinds = {name: entry for pattern, entry in pages.items() for name in names_of(pattern)}
    values = values_of(found)
    for name, record in found.items():
        step, _, rest = name.partition("/")
        assert rest in kinds, f"{rest} is not in docs/trace-format.md"
        shape, kind = kinds[rest]
        assert record.kind == kind, name
        rank, lengths = rank_and_ends(shape, rest, values, step)
        assert rank in (None, record.value.ndim), name
        for length, documented_length in zip(record.value.shape, lengths, strict=False):
            assert documented_length in (None, length), f"{name} is {record.value.shape}"
        if kind in ("spikes", "mask"):
            assert np.isin(record.value, (0, 1)).all()
        if rest.startswith("stage1") or rest.endswith("_count"):
            units = {"layer": 4, "neuron": 4 + 8 + 16 + 10, "global": 1}[tiny(*overrides).rewire.scope]
            assert record.value.shape == (units,)


def test_every_documented_record_occurs() -> None:
    found: set[str] = set()
    for overrides in EVERYTHING:
        found |= {name.partition("/")[2] for name in traced(*overrides)}
    for pattern in documented():
        missing = [name for name in names_of(pattern) if name not in found]
        assert not missing, f"{pattern}: {missing}"


def test_the_equations_of_the_page_hold() -> None:
    v = values_of(traced("model.dropout=0.3", "train.clip=1e9"))
    c = tiny(*SHORT)
    for step in ("step_0000", "step_0007"):
        g = {name.partition("/")[2]: value for name, value in v.items() if name.startswith(step)}
        x, weight = g["forward/pool1/y"], g["params/conv2.weight/value"]
        padded = np.pad(x, [(0, 0)] * 3 + [(1, 1)] * 2)
        y = sum(np.einsum("tbchw,oc->tbohw", padded[..., i:i + 4, j:j + 4], weight[:, :, i, j])
                for i in range(3) for j in range(3))
        close(g["forward/conv2/y"], y)
        y = g["forward/conv2/y"]
        n, axes, wide = y.size // 8, (0, 1, 3, 4), (slice(None), None, None)
        close(g["forward/norm2/mean"], y.mean(axes))
        close(g["forward/norm2/var"], y.var(axes))
        close(g["forward/norm2/running_var"],
              0.9 * g["params/norm2.running_var/value"] + 0.1 * y.var(axes) * n / (n - 1))
        root = np.sqrt(g["forward/norm2/var"] + 1e-5)
        hat = (y - g["forward/norm2/mean"][wide]) / root[wide]
        close(g["forward/norm2/y"], g["params/norm2.gamma/value"][wide] * hat + g["params/norm2.beta/value"][wide])
        h, s, after = (g[f"forward/lif2/{part}"] for part in "hsv")
        close(h[1], 0.5 * after[0] + g["forward/norm2/y"][1])
        assert (s == (h > 1)).all()
        close(after, (1 - s) * h)
        close(g["forward/pool2/y"], s.reshape(2, -1, 8, 2, 2, 2, 2).mean((4, 6)))
        close(g["forward/dropout/scale"], g["rng/dropout/dropout"] / 0.7)
        close(g["forward/dropout/y"], g["forward/dropout/scale"] * g["forward/lif3/s"])
        logits, classes = g["forward/fc2/y"], g["input/y"]
        close(logits, g["forward/dropout/y"] @ g["params/fc2.weight/value"].T + g["params/fc2.bias/value"])
        p, onehot = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), np.eye(10)[classes]
        close(g["loss/value"], -np.log((p * onehot).sum(-1)).mean())
        close(g["loss/dlogits"], (p - onehot) / p[..., 0].size)
        close(g["backward/fc2/dweight_dense"], np.einsum("tbk,tbf->kf", g["loss/dlogits"], g["forward/dropout/y"]))
        close(g["backward/fc2/dweight"], g["backward/fc2/dweight_dense"] * g["params/fc2.weight/mask"])
        close(g["backward/fc2/dbias"], g["loss/dlogits"].sum((0, 1)))
        slope, dv, dy = g["backward/lif2/slope"], 0.0, g["backward/pool2/dx"]
        close(slope, np.maximum(0, 1 - abs(h - 1)))
        for t in (1, 0):
            du = dv * (1 - s[t]) + (dy[t] - dv * h[t]) * slope[t]
            close(g["backward/lif2/dx"][t], du)
            dv = 0.5 * du
        dy, dgamma, dbeta = (g[f"backward/{part}"] for part in ("lif2/dx", "norm2/dgamma", "norm2/dbeta"))
        close(dgamma, (dy * hat).sum(axes))
        close(g["backward/norm2/dx"], (g["params/norm2.gamma/value"] / root)[wide] *
              (dy - dbeta[wide] / n - hat * dgamma[wide] / n))
        d, m, square, steps = (g[f"optim/fc1.weight/{part}"] for part in ("gradient", "first", "second", "steps"))
        active = g["params/fc1.weight/mask"]
        close(d, g["backward/fc1/dweight"])
        update = (m / (1 - c.optim.beta1 ** np.maximum(steps, 1))) / (
            np.sqrt(square / (1 - c.optim.beta2 ** np.maximum(steps, 1))) + c.optim.eps)
        close(g["optim/fc1.weight/after"], g["params/fc1.weight/value"] - g["optim/lr"] * update * active)
    before, now = (v[f"step_000{k}/growth/fc1.weight/average"] for k in (6, 7))
    close(now, 0.9 * before + 0.1 * v["step_0007/backward/fc1/dweight_dense"])


def close(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_the_equations_of_a_rewire_hold() -> None:
    v = values_of(traced())
    weights = [v[f"step_0005/optim/{name}/after"][v[f"step_0005/params/{name}/mask"]] for name in WEIGHTS]
    d, index, bound, count = (v[f"step_0005/stage1/{part}"] for part in ("d", "index", "bound", "count"))
    assert d.tolist() == [w.size for w in weights]
    norms = [np.sum(np.sqrt(abs(w))) ** 2 for w in weights], [np.sum(abs(w)) for w in weights]
    close(v["step_0005/stage1/norm_p"], norms[0])
    close(v["step_0005/stage1/norm_q"], norms[1])
    close(index, 1 - np.divide(*norms) / d)
    close(bound, d * 1.001**-2 * (1 - index))
    assert count.tolist() == np.minimum(d - np.ceil(bound), np.floor(0.9 * d)).tolist()
    assert v["step_0005/stage2/prune_count"].tolist() == count.tolist()
    now = np.array([v[f"step_0008/params/{name}/mask"].sum() for name in WEIGHTS])
    assert v["step_0008/stage2/prune_count"].tolist() == (count * now // d).tolist()
    for name, number in zip(WEIGHTS, v["step_0008/stage2/grow_count"], strict=True):
        pruned, grown, mask, prune_score, grow_score = (
            v[f"step_0008/stage2/{name}/{part}"] for part in ("pruned", "grown", "mask", "prune_score", "grow_score"))
        before = v[f"step_0008/params/{name}/mask"].reshape(-1)
        close(prune_score.reshape(-1)[before], abs(v[f"step_0008/optim/{name}/after"].reshape(-1)[before]))
        close(grow_score, abs(v[f"step_0008/growth/{name}/average"]))
        order = [place for place in np.argsort(prune_score.reshape(-1), kind="stable") if before[place]]
        assert pruned.tolist() == sorted(order[:number])
        free = ~before
        free[pruned] = True
        order = [place for place in np.argsort(-grow_score.reshape(-1), kind="stable") if free[place]]
        assert grown.tolist() == sorted(order[:number])
        free[grown] = False
        assert (mask.reshape(-1) == ~free).all()


# ------------------------------------------------------------------------------------------------------ draws and bits


def test_what_was_drawn_is_recorded() -> None:
    v = values_of(traced("rewire.grow=random"))
    data = samples(tiny())
    order = [stream(0, "shuffle", epoch).permutation(len(data.train)) for epoch in range(3)]
    recorded = np.concatenate([v[f"step_{k:04d}/rng/order"] for k in range(9)])
    np.testing.assert_array_equal(recorded, np.concatenate(order))
    for k in (0, 4):
        np.testing.assert_array_equal(v[f"step_{k:04d}/input/x"], data.train.batch(v[f"step_{k:04d}/rng/order"], 0))
        np.testing.assert_array_equal(v[f"step_{k:04d}/input/y"], data.train.labels[v[f"step_{k:04d}/rng/order"]])
    for name in WEIGHTS:
        np.testing.assert_array_equal(v[f"step_0008/rng/growth/{name}"], v[f"step_0008/stage2/{name}/grow_score"])
    assert not any("growth" in name and "rng" not in name for name in v), "random growth keeps no average"


@pytest.mark.parametrize("overrides", [(), ("rewire.scope=neuron", "rewire.preset=partial", "dtype=float32"),
                                       ("model.dropout=0.5", "rewire.grow=random")])
def test_a_traced_run_computes_the_same_bits(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    config = tiny(*SHORT, *overrides)
    data, states = samples(config), []
    for recorded in (False, True):
        state = start(config, data)
        if recorded:
            with FileRecorder(tmp_path / "t.h5", {}, ["*/after"]) as rec:      # all are made, few written
                train(state, data, Watcher(), rec)
        else:
            train(state, data, Watcher())
        states.append(state)
    untraced, with_trace = states
    assert untraced.step == with_trace.step == 18
    assert [row["test_loss"] for row in untraced.metrics] == [row["test_loss"] for row in with_trace.metrics]
    for name, weight in untraced.network.weights.items():
        other = with_trace.network.weights[name]
        assert (weight.data.tobytes(), weight.indices.tobytes()) == (other.data.tobytes(), other.indices.tobytes())
        for part, moment in untraced.optimizer.state[name].items():
            assert moment.tobytes() == with_trace.optimizer.state[name][part].tobytes()
    last = trace.read(tmp_path / "t.h5")[0]["step_0017/optim/fc1.weight/after"].value
    np.testing.assert_array_equal(last, untraced.network.weights["fc1.weight"].dense())


def test_the_window_of_the_growth_rule_is_seen() -> None:
    found = traced("rewire.grow_window=2")
    dense = {name[:9] for name in found if name.endswith("dweight_dense")}
    assert dense == {name[:9] for name in found if "/growth/" in name} == {"step_0007", "step_0008"}


# ------------------------------------------------------------------------------------------------------- the file


def test_the_file_says_what_ran(tmp_path: Path) -> None:
    config = tiny(*SHORT, "seed=3")
    run_trace(config, samples(config), 2, tmp_path / "t.h5")
    attributes = trace.read(tmp_path / "t.h5")[1]
    assert {k: attributes[k] for k in ("format", "kind", "steps", "seed", "dtype", "backend")} == {
        "format": "refsnn-trace/1", "kind": "trace", "steps": 2, "seed": 3, "dtype": "float64", "backend": "numpy"}
    theirs = configuration.loads(attributes["config"])
    assert not configuration.differences(theirs, start(config, samples(config)).config)
    assert set(attributes) == {"format", "kind", "steps", "seed", "dtype", "backend", "config", "config_hash",
                               "versions", "platform"}


def test_patterns_and_a_line_for_each_record(tmp_path: Path) -> None:
    config, lines = tiny(*SHORT), []
    number = run_trace(config, samples(config), 2, tmp_path / "t.h5", ("forward/lif?/s", "loss/value"), lines.append)
    found = trace.read(tmp_path / "t.h5")[0]
    assert len(lines) == len(found) == number == 8
    assert all(fnmatchcase(name, "*/lif?/s") or name.endswith("loss/value") for name in found)
    assert lines[0].split()[:3] == ["step_0000/forward/lif1/s", "spikes", "2×40×4×8×8"]
    mean = found["step_0000/forward/lif1/s"].value.mean()
    assert lines[0].split()[3:] == ["min", "0", "mean", f"{mean:.4g}", "max", "1"]


@pytest.mark.parametrize("steps", [0, -1, 19])
def test_steps_that_there_are_not_are_refused(tmp_path: Path, steps: int) -> None:
    config = tiny(*SHORT)
    with pytest.raises(UserError, match=f"--steps {steps}: must lie between 1 and 18"):
        run_trace(config, samples(config), steps, tmp_path / "t.h5")
    assert list(tmp_path.iterdir()) == []


def test_killed_in_the_midst_leaves_no_trace(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from refsnn import config, datasets, tracing
tiny = config.load("tiny", ["train.batch=16"])
data = datasets.load(tiny)
tracing.trace(tiny, data, 500, Path(sys.argv[1]), (), lambda line: print(line, flush=True))
"""
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, str(tmp_path / "t.h5")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("step_0002"):
        time.sleep(0)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "t.h5").exists()


def test_the_example_of_the_page_is_a_valid_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = DOCS / "examples" / "write_trace.py"
    assert len(example.read_text().splitlines()) < 40
    monkeypatch.setattr(sys, "argv", [str(example), str(tmp_path / "mine.h5")])
    runpy.run_path(str(example), run_name="__main__")
    found, _ = safe_read.read(tmp_path / "mine.h5")
    values = {name.partition("/")[2]: record.value for name, record in found.items()}
    pages = {name: entry for pattern, entry in documented().items() for name in names_of(pattern)}
    assert {name: found[f"step_0000/{name}"].kind for name in values} == {name: pages[name][1] for name in values}
    x = np.moveaxis(values["forward/fc1/y"], (0, 1), (-2, -1))
    s, h = lif_forward(x, 0.5, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, "hard", "gt", "affine")
    np.testing.assert_array_equal(np.moveaxis(s, (-2, -1), (0, 1)), values["forward/lif1/s"])
    np.testing.assert_array_equal(np.moveaxis(h, (-2, -1), (0, 1)), values["forward/lif1/h"])
