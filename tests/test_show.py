"""What is shown of configurations, runs and files of records is what they hold."""

import itertools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refsnn import config as configuration
from refsnn import datasets, runs, schema, show, trace, twin
from refsnn.cli import _shown
from refsnn.models import complete
from refsnn.schema import Config
from refsnn.train import State, start, train_step


@pytest.fixture(autouse=True)
def definitions() -> Any:
    with twin.backend("numpy"):
        yield


def prepared(*overrides: str) -> tuple[State, datasets.Dataset]:
    data = datasets.load(Config())
    return start(configuration.load("tiny", overrides), data), data


def cells(lines: list[str], name: str) -> list[str]:
    return next(line for line in lines if line.startswith(name + " ")).split()


# ------------------------------------------------------------------------------------------------------- pieces of text


def test_table_aligns() -> None:
    assert show.table(["name", "n"], [["a", "1"], ["long one", "1,000"]]) == [
        "name          n", "────────  ─────", "a             1", "long one  1,000"]


def test_statistics_of_an_array() -> None:
    assert show.statistics(np.array([-1.0, 0, 0, 3])) == ["-1", "0.5", "3", "0.500"]
    assert show.statistics(np.array([True, False])) == ["0", "0.5", "1", "0.500"]
    assert show.statistics(np.zeros((0, 3))) == ["", "", "", ""]


def test_bytes_are_exact_and_readable() -> None:
    assert show.bytes_text(999) == "999 bytes"
    assert show.bytes_text(3 << 20) == "3,145,728 bytes (3.0 MiB)"


# ------------------------------------------------------------------------------------------------------ a configuration


def brute_force_macs(shape: tuple[int, ...], weight: np.ndarray, padding: int) -> int:
    """Multiply-adds of a convolution by counting taps that fall inside the image, for every active weight."""
    _, height, width = shape
    kernel = weight.shape[2:]
    taps = {(i, j): sum(0 <= h + i - padding < height and 0 <= w + j - padding < width
                        for h, w in itertools.product(range(height), range(width)))
            for i, j in itertools.product(*(range(k) for k in kernel))}
    return sum(int(weight[:, :, i, j].sum()) * n for (i, j), n in taps.items())


def test_layers_count_weights_and_multiply_adds() -> None:
    state, _ = prepared()
    lines = show.layers(state.network, 2, 4)
    masks = {name: weight.mask() for name, weight in state.network.weights.items()}
    conv2 = masks["conv2.weight"]
    active, dense = (2 * brute_force_macs((4, 4, 4), m, 1) for m in (conv2, np.ones_like(conv2)))
    row = cells(lines, "conv2")
    assert row[1:] == ["Conv2d", "8×4×3×3", "8×4×4", str(conv2.sum()), "288", f"{conv2.mean():.4f}", f"{active:,}",
                       f"{dense:,}", "dense", "weight", "gradient"]
    fc1 = masks["fc1.weight"]
    assert cells(lines, "fc1")[1:] == ["Linear", "16×32", "16", str(fc1.sum()), "512", f"{fc1.mean():.4f}", "16",
                                       str(2 * fc1.sum()), "1,024", "sparse"]
    total = cells(lines, "total")
    assert total[1:5] == ["498", "996", "0.5000", str(8 + 16 + 16 + 10)]


def test_thousands_are_separated() -> None:
    data = datasets.load(Config())
    lines = show.layers(start(configuration.load("digits"), data).network, 4, 128)
    assert "52,768" in cells(lines, "total")
    assert "32,768" in cells(lines, "fc1")


@pytest.mark.parametrize(("density", "execution", "shown"), [
    (0.1, "auto", "sparse"), (0.4, "auto", "dense forward"), (1.0, "auto", "dense"), (1.0, "sparse", "sparse"),
    (0.1, "dense", "dense"),
])
def test_how_a_convolution_is_executed_is_shown(density: float, execution: str, shown: str) -> None:
    keys = [f"structure.density={density}", "structure.spread=uniform", f"structure.execution={execution}"]
    config = configuration.load("digits", keys)
    lines = show.layers(start(config, datasets.load(config)).network, 4, 128)
    assert next(line for line in lines if line.startswith("conv2")).rstrip().endswith(f" {shown}")
    assert next(line for line in lines if line.startswith("fc1")).rstrip().endswith(" sparse")


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("grow", ["momentum", "adam", "gradient", "random"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_memory_is_what_a_run_holds(kind: str, grow: str, dtype: str) -> None:
    state, data = prepared(f"optim.kind={kind}", f"rewire.grow={grow}", f"dtype={dtype}", "rewire.grow_window=0")
    lines = show.memory(state)

    def claimed(name: str) -> int:
        return int(next(line for line in lines if line.startswith(name)).split()[-1].replace(",", ""))

    state.epoch = 0
    state.iteration = 1     # a rewire follows this epoch
    state.batch = 22        # and this step, so that every rule looks at its gradient
    train_step(state, data.train.batch(np.arange(8), 0), data.train.labels[:8], 23)
    weights = state.network.weights.values()
    assert claimed("weights in CSR") == sum(w.data.nbytes + w.indices.nbytes + w.indptr.nbytes for w in weights)
    moments = state.optimizer.state.values()
    assert claimed("optimiser state") == sum(a.nbytes for parts in moments for a in parts.values())
    arrays = [getattr(memory, part) for memory in state.growth.values() for part in memory.reads]
    assert claimed("growth memory") == sum(a.nbytes for a in arrays)
    masks = [state.first_mask, state.last_mask, state.ever_active]
    assert claimed("masks kept") == sum(m.nbytes for part in masks for m in part.values())
    parts = ("weights in CSR", "biases", "optimiser", "growth", "masks")
    assert claimed("total") == sum(claimed(name) for name in parts)


def test_every_key_is_shown_with_its_value_and_sentence() -> None:
    config = configuration.load("tiny", ["optim.lr=0.5", "neuron.decay=0.25"])
    lines = show.keys(config)
    text = re.sub(r"\s+", " ", "\n".join(lines))
    section = ""
    shown: dict[str, tuple[str, bool]] = {}
    for line in lines[1:]:
        if line.startswith("["):
            section = line.strip("[]") + "."
        elif line and not line.startswith(" " * 8):
            name, value = line[2:46].split(None, 1)
            shown[section + name] = value.strip(), line.startswith("*")
    assert list(shown) == list(schema.KEYS)
    for name, key in schema.KEYS.items():
        assert key.help in text
        value = schema.settings(config)[name]
        if key.default is not None:
            assert shown[name][1] == (value != key.default)
        if value is not None:
            assert shown[name][0] == schema.literal(value)
    assert shown["neuron.decay"] == ("0.25", True)
    assert shown["neuron.v_threshold"] == ("(1.0)", False)
    assert shown["optim.lr"] == ("0.5", True)


def test_a_neuron_written_out_is_the_default_still() -> None:
    config = configuration.load("tiny")
    stars = [line for line in show.keys(config) if line.startswith("*")]
    completed = [line for line in show.keys(complete(config)) if line.startswith("*")]
    assert completed == stars
    other = "\n".join(show.keys(configuration.load("tiny", ["neuron.preset=snntorch"])))
    assert re.search(r"^\* reset +\(\"soft\"\)", other, re.MULTILINE)


def test_a_configuration_names_its_data() -> None:
    text = "\n".join(_shown("tiny", configuration.load("tiny")))
    assert "digits: 1,437 training samples, 360 test samples, 10 classes" in text
    assert "input 1×8×8, T = 2" in text


@pytest.mark.parametrize(("name", "words"), [
    ("cifar10_resnet19", ("12,619,968", "input 3×32×32, T = 2", "block4.shortcut")),
    ("cifar100_resnet19", ("12,643,008",)),
    ("cifar10dvs_vggsnn", ("9,263,232", "input 2×48×48, T = 10")), ("cifar10_conv6fc2", ("36,715,264", "vote")),
    ("nmnist", ("input 2×34×34, T = 10",)),
])
def test_a_network_is_shown_without_its_data(name: str, words: tuple[str, ...], tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFSNN_DATA", str(tmp_path))
    text = "\n".join(_shown(name, configuration.load(name, [f"data.path={tmp_path}"])))
    assert "not found: " in text
    assert all(word in text for word in words)


# ------------------------------------------------------------------------------------------------- runs and their files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run stopped in its second epoch."""
    from refsnn import cli

    folder = tmp_path_factory.mktemp("show") / "run"
    with twin.backend("numpy"):
        overrides = [part for one in ("train.batch=256", "train.max_steps=8") for part in ("--set", one)]
        assert cli.main(["train", "tiny", *overrides, "--out", str(folder), "--quiet"]) == 0
    return folder


def test_a_run_shows_how_far_it_is(folder: Path) -> None:
    text = "\n".join(show.run(folder))
    assert "preset figures, scope layer, seed 0" in text
    assert "8 steps" in text
    assert re.search(r"^checkpoint\.h5 +[\d,]+$", text, re.MULTILINE)
    found, _ = trace.read(folder / "checkpoint.h5")
    assert f"conv2 {found['weights/conv2.weight/data'].value.size}" in text


def test_a_run_without_an_epoch_says_so(tmp_path: Path) -> None:
    state, _ = prepared()
    runs.create(tmp_path / "run", state.config)
    runs.save(tmp_path / "run", state)
    text = "\n".join(show.run(tmp_path / "run"))
    assert "no epoch is complete yet" in text
    assert "0 of 6 epochs, 0 steps; iteration 1, epoch 1" in text


def test_iterations_show_their_last_epoch_and_their_end() -> None:
    metrics = [{"iteration": i, "epoch": e, "param_density": 0.5 / i, "test_accuracy": 0.25 * i, "test_loss": 1.0,
                "sops": 1234.5, "evaluated_on": "test"} for i, e in ((1, 1), (1, 2), (2, 3))]
    structure = [{"iteration": 1, "layer": layer, "phase": phase, "pq_index": 0.16, "ratio_active": 0.15,
                  "ratio_total": 0.075, "pruned": pruned, "regrown": 0}
                 for layer, phase, pruned in (("conv1", "end", 1), ("all", "inner", 2), ("all", "end", 3000))]
    lines = show.iterations(metrics, structure)
    assert re.split(" {2,}", lines[2].strip()) == ["1", "2", "0.5000", "25.00 %", "1.0000", "1,234", "0.1600", "0.1500",
                                                   "0.0750", "3,000", "0"]
    assert re.split(" {2,}", lines[3].strip()) == ["2", "3", "0.2500", "50.00 %", "1.0000", "1,234", *"–––––"]


def test_records_are_listed_with_statistics(tmp_path: Path) -> None:
    values = np.array([[-1.5, 0, 2.5]])
    trace.write(tmp_path / "t.h5", [trace.Record("forward/lif1/h", "real", values),
                                    trace.Record("loss/value", "real", np.array(0.25))], {"kind": "trace"})
    lines = show.records(tmp_path / "t.h5")
    assert cells(lines, "forward/lif1/h")[1:] == ["1×3", "float64", "real", "-1.5", "0.3333", "2.5", "0.667"]
    assert cells(lines, "loss/value")[1:] == ["1", "float64", "real", "0.25", "0.25", "0.25", "1.000"]
    assert cells(lines, "kind") == ["kind", "trace"]


def test_a_checkpoint_lists_every_record(folder: Path) -> None:
    path = folder / "checkpoint.h5"
    lines = show.records(path)
    found, attributes = trace.read(path)
    shown = [line.split()[0] for line in lines[-len(found):]]
    assert shown == list(found)
    assert f"{len(found)} records" in lines[0]
    assert any(str(attributes["config_hash"]) in line for line in lines)
    assert any(line.startswith("versions") and "numpy" in line for line in lines)
    row = cells(lines, "first_mask/fc1.weight")
    packed = found["first_mask/fc1.weight"].value
    assert math.isclose(float(row[-1]), np.unpackbits(packed).mean(), abs_tol=5e-4)


def test_both_ways_of_a_block_feed_the_neurons_behind_it() -> None:
    config = configuration.loads("", ["model.name=layers", "model.layers=4C3 6Rs2 6C1/nolif AP2 FC8 FC"])
    fed = show._fed(start(config, datasets.load(config)).network.layers, None)
    assert fed == {"conv1": "lif1", "block1.conv1": "block1.lif1", "block1.conv2": "block1.lif2",
                   "block1.shortcut": "block1.lif2", "conv2": None, "fc1": "lif2", "fc2": None}
