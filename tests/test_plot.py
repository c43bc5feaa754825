"""Figures: what they show by value, that they are whole PNG files, and that whatever is wrong is one clear line."""

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image
from matplotlib.figure import Figure
from matplotlib.text import Text

from refsnn import config as configuration
from refsnn import disk, plot, runs, series, trace
from refsnn.datasets import load
from refsnn.errors import UserError
from refsnn.ops.sparse import SparseWeight, from_dense
from refsnn.trace import Record
from refsnn.train import start, train

ROOT = Path(plot.__file__).parent.parent

LAYERS = {"conv1.weight": (32, 9), "conv2.weight": (64, 288), "fc1.weight": (128, 256), "fc2.weight": (10, 128)}
FIGURES = ["accuracy.png", "pq_index.png", "firing_rates.png", "mask_fc1.png", "training.png"]


def matrices(layers: dict[str, tuple[int, int]], density: float, seed: int) -> dict[str, SparseWeight]:
    """Random sparse weights, rows of unequal numbers of connections."""
    made, generator = {}, np.random.default_rng(seed)
    for name, shape in layers.items():
        per_row = density * generator.uniform(0.3, 1.7, shape[0])[:, None]
        mask = generator.random(shape) < per_row
        made[name] = from_dense(generator.standard_normal(shape).astype(np.float32), mask)
    return made


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def metrics_rows(config: configuration.Config, iterations: int) -> list[dict[str, Any]]:
    """The accuracy of epoch k is (k + seed) / 100, so that every number shown is known."""
    rows = []
    for k in range(1, iterations * config.train.epochs + 1):
        iteration = (k - 1) // config.train.epochs + 1
        loss, accuracy = 2.0 / (k + config.seed), (k + config.seed) / 100
        rows.append({
            "epoch": k, "iteration": iteration, "train_loss": loss, "train_accuracy": accuracy + 0.05,
            "test_loss": 1.2 * loss, "test_accuracy": accuracy,
            "param_density": config.structure.density * 0.84 ** (iteration - 1), "synapse_density": 0.5, "sops": 1e4,
            "macs": 1e4, "energy_pj": 1e5, "evaluated_on": "validation" if config.data.validation > 0 else "test",
            "seconds": 1.0, **{f"rate_lif{n}": 0.05 * n + 0.1 * np.exp(-k / 9) for n in (1, 2, 3)},
        })
    return rows


def structure_rows(config: configuration.Config, iterations: int,
                   weights: dict[str, SparseWeight]) -> list[dict[str, Any]]:
    """One rewire inside and one at the end of every iteration; the last leaves each layer the connections it has.

    Layer k's index is 0.3 + 0.05 k + seed / 100 at the end of an iteration and 9 inside it.
    """
    rows: list[dict[str, Any]] = []
    totals = {"all": (sum(w.nnz for w in weights.values()), sum(w.size for w in weights.values()))}
    layers = {name: (w.nnz, w.size) for name, w in weights.items()} | totals
    for iteration in range(1, iterations + 1):
        for phase in ("inner", "last" if iteration == config.train.iterations else "end"):
            for k, (layer, (active, size)) in enumerate(layers.items()):
                index = 9.0 if phase == "inner" else 0.3 + 0.05 * k + config.seed / 100
                spread = 0.1 if config.rewire.scope == "neuron" else 0.0
                found: dict[str, Any] = {
                    "pq_index": index, "pq_index_min": index - spread, "pq_index_max": index + spread, "bound": 1.0,
                    "count": 1, "ratio_active": 0.15 + 0.01 * np.sin(iteration + k), "ratio_total": 0.1,
                }
                if config.rewire.scope == "global" and layer != "all":
                    found = dict.fromkeys(found)
                rows.append({
                    "iteration": iteration, "epoch": iteration * config.train.epochs, "layer": layer, "phase": phase,
                    "units": 1, "active_before": active + 3, **found, "pruned": 5, "regrown": 2, "returned": 0,
                    "shortfall": 0, "density_after": active / size, "overlap_initial": 0.5, "overlap_last": 0.5,
                    "ever_active": 0.6,
                })
    return rows


def make_run(folder: Path, *overrides: str, name: str = "digits", iterations: int | None = None,
             layers: dict[str, tuple[int, int]] = LAYERS) -> Path:
    """A run folder with invented numbers, in the columns of tables.py and the records of runs.py."""
    config = configuration.load(name, overrides)
    iterations = config.train.iterations if iterations is None else iterations
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(configuration.dumps(config), encoding="utf-8")
    weights = matrices(layers, 0.15, config.seed)
    write_table(folder / "metrics.csv", metrics_rows(config, iterations))
    write_table(folder / "structure.csv", structure_rows(config, iterations, weights))
    records = [Record(f"weights/{layer}/{part}", "real" if part == "data" else "index", getattr(weight, part))
               for layer, weight in weights.items() for part in ("data", "indices", "indptr", "shape")]
    trace.write(folder / "checkpoint.h5", records, {"kind": "checkpoint"})
    return folder


def error_of(*runs: Path, out: Path) -> str:
    """The message of the UserError that plotting ends with; it is one line, and nothing is left behind."""
    with pytest.raises(UserError) as caught:
        plot.plot_runs(list(runs), out)
    assert "\n" not in str(caught.value)
    assert not out.is_dir() or not list(out.iterdir())
    return str(caught.value)


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of a PNG file in pixels, read off its header."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    return int.from_bytes(content[16:20]), int.from_bytes(content[20:24])


def texts_of(figure: Figure) -> str:
    """Everything that is written in a figure."""
    return "\n".join(one.get_text().replace("\xa0", " ") for one in figure.findobj(Text))


# ---------------------------------------------------------------------------------------------------- whole files


@pytest.mark.parametrize("overrides", [
    ("rewire.scope=layer",), ("rewire.scope=neuron", "data.validation=0.1"), ("rewire.scope=global",),
    ("rewire.preset=sap",), ("rewire.ratio=none", "train.iterations=1", "train.epochs=1"),
])
def test_every_figure_of_one_run_is_a_whole_png(tmp_path, overrides):
    run = make_run(tmp_path / "run", *overrides)
    paths = plot.plot_runs([run], tmp_path / "new" / "figures")
    assert [path.name for path in paths] == FIGURES
    assert sorted(tmp_path.glob("new/figures/*")) == sorted(paths)
    for path in paths:
        width, height = size_of(path)
        assert width == 1050        # 3.5 inches at 300 dots an inch
        assert 600 < height < 1600
        pixels = image.imread(path)
        assert pixels[..., :3].std() > 0.05
        for edge in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]):
            assert (edge[..., :3] == 1).all()       # nothing is clipped


def test_several_runs_and_the_same_twice(tmp_path):
    folders = [make_run(tmp_path / f"run{seed}", f"seed={seed}", name="tiny") for seed in range(3)]
    first = {path.name: path.read_bytes() for path in plot.plot_runs(folders, tmp_path / "out")}
    assert list(first) == FIGURES
    assert first == {path.name: path.read_bytes() for path in plot.plot_runs(folders, tmp_path / "out")}


def test_many_layers_fit(tmp_path):
    layers = {f"layer{k}.conv{j}.weight": (4, 9 * k) for k in range(1, 9) for j in (1, 2)}
    run = make_run(tmp_path / "run", "train.iterations=3", layers=layers)
    for path in plot.plot_runs([run], tmp_path / "out"):
        assert (image.imread(path)[:, :2, :3] == 1).all()
        assert (image.imread(path)[:, -2:, :3] == 1).all()


def test_a_mask_of_a_chosen_layer(tmp_path):
    run = make_run(tmp_path / "run")
    assert plot.plot_mask(run, tmp_path / "out", "conv2").name == "mask_conv2.png"
    assert plot.plot_mask(run, tmp_path / "out", "fc2.weight").name == "mask_fc2.png"
    assert plot.plot_mask(run, tmp_path / "out").name == "mask_fc1.png"
    with pytest.raises(UserError, match="has no layer conv9; its layers: conv1, conv2, fc1, fc2"):
        plot.plot_mask(run, tmp_path / "out", "conv9")


def test_neither_a_display_nor_pyplot_is_needed(tmp_path):
    run = make_run(tmp_path / "run", name="tiny")
    code = ("import sys; from pathlib import Path; from refsnn.plot import plot_runs; "
            f"plot_runs([Path({str(run)!r})], Path({str(tmp_path / 'out')!r})); "
            "assert 'matplotlib.pyplot' not in sys.modules")
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MPLBACKEND")}
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT, env=environment)
    assert len(list((tmp_path / "out").iterdir())) == len(FIGURES)


def test_a_real_run(tmp_path):
    class Watcher:
        def on_step(self, state): ...

        def on_epoch(self, state): ...

        def save(self, state):
            runs.save(tmp_path / "run", state)

        def should_stop(self):
            return False

    config = configuration.load("tiny", ["train.iterations=2", "train.epochs=1", "rewire.scope=neuron"])
    runs.create(tmp_path / "run", config)
    data = load(config)
    state = start(config, data)
    train(state, data, Watcher())
    assert [path.name for path in plot.plot_runs([tmp_path / "run"], tmp_path / "out")] == FIGURES
    read = series.read_run(tmp_path / "run")
    assert series.at_iterations([read], "test_accuracy")[0].tolist() == [row["test_accuracy"] for row in state.metrics]
    for name, weight in state.network.weights.items():
        short, found = series.read_weight(read, name)
        np.testing.assert_array_equal(found.dense(), weight.dense().reshape(weight.rows, -1))
        assert name == f"{short}.weight"


# -------------------------------------------------------------------------------------------------- what is shown


@pytest.fixture
def three(tmp_path):
    """Three runs of ten iterations of four epochs that differ in the seed; the last has finished but eight."""
    folders = [make_run(tmp_path / f"r{seed}", f"seed={seed}", iterations=8 + (seed < 2) * 2) for seed in range(3)]
    return series.read_runs(folders)


def test_an_iteration_is_its_last_epoch_and_what_not_all_runs_have_is_left_out(three):
    accuracy = series.at_iterations(three, "test_accuracy")
    np.testing.assert_allclose(accuracy, [[(4 * k + seed) / 100 for k in range(1, 9)] for seed in range(3)])
    np.testing.assert_allclose(series.deviation(accuracy), 0.01)
    assert (series.deviation(accuracy[:1]) == 0).all()
    np.testing.assert_allclose(series.at_iterations(three[:1], "param_density")[0], 0.5 * 0.84 ** np.arange(10))


def test_an_unfinished_iteration_is_left_out(tmp_path):
    run = make_run(tmp_path / "run", iterations=2)
    lines = (run / "metrics.csv").read_text().splitlines()
    (run / "metrics.csv").write_text("\n".join([*lines, lines[-1].replace("8,2", "9,3", 1)]) + "\n")
    read = series.read_run(run)
    assert read.iterations == 2
    assert series.at_iterations([read], "test_accuracy").shape == (1, 2)
    assert series.over_epochs([read], "test_accuracy").x[-1] == 9


def test_epochs_have_a_mean_and_a_range(three):
    lines = series.over_epochs(three, "test_accuracy")
    assert lines.x.tolist() == list(range(1, 33))
    for values, seed in ((lines.low, 0), (lines.mean, 1), (lines.high, 2)):
        np.testing.assert_allclose(values, (lines.x + seed) / 100)


def test_the_index_is_taken_at_the_ends_of_iterations(three):
    lines = series.over_iterations(three, "pq_index", "pq_index_min", "pq_index_max")
    assert list(lines) == ["conv1", "conv2", "fc1", "fc2"]
    for k, one in enumerate(lines.values()):
        assert one.x.tolist() == list(range(1, 9))
        for values, seed in ((one.low, 0), (one.mean, 1), (one.high, 2)):
            np.testing.assert_allclose(values, 0.3 + 0.05 * k + seed / 100)


def test_neurons_widen_the_band_and_the_global_scope_has_one_line(tmp_path):
    neuron = series.read_run(make_run(tmp_path / "neuron", "rewire.scope=neuron"))
    whole = series.read_run(make_run(tmp_path / "global", "rewire.scope=global"))
    fc1 = series.over_iterations([neuron], "pq_index", "pq_index_min", "pq_index_max")["fc1"]
    np.testing.assert_allclose([fc1.low[0], fc1.mean[0], fc1.high[0]], [0.3, 0.4, 0.5])
    lines = series.over_iterations([whole], "pq_index", "pq_index_min", "pq_index_max")
    assert list(lines) == ["network"]
    np.testing.assert_allclose(lines["network"].mean, 0.5)


@pytest.mark.parametrize(("overrides", "expected"), [
    ((), [0.50, 0.42, 0.35]), (("structure.density=1.0",), [1.00, 0.84, 0.71]),
    (("rewire.scope=neuron",), [0.50, 0.41, 0.33]), (("rewire.scope=global",), None), (("rewire.ratio=none",), None),
    (("structure.density=0.3",), None), (("rewire.scope=neuron", "structure.density=1.0"), None),
])
def test_published_densities(overrides, expected):
    found = series.published(configuration.load("digits", overrides), 3)
    assert (None if found is None else found.tolist()) == expected


def test_the_published_curve_may_be_shorter_than_the_run(tmp_path):
    assert len(series.published(configuration.load("digits_neuron"), 10)) == 4
    assert plot.plot_runs([make_run(tmp_path / "run", name="digits_neuron")], tmp_path / "out")


@pytest.mark.parametrize(("mean", "spread", "low"), [
    ([98.0, 98.5], [0, 0], 97), ([98.0, 94.0], [0, 0], 90), ([98.0], [0.5], 96), ([10.0, 90.0], [0, 0], 0),
    ([0.0], [0], 0),
])
def test_the_axis_of_the_bars_shows_differences(mean, spread, low):
    found, high = series.accuracy_limits(np.array(mean), np.array(spread))
    assert found == low
    assert high > max(np.add(mean, spread))


def test_blocks_share_out_every_connection():
    weight = matrices({"w": (7, 2050)}, 0.3, 0)["w"]
    density = series.block_density(weight, 4)
    expected = [[weight.mask()[r:r + 2, c:c + 513].mean() for c in range(0, 2050, 513)] for r in range(0, 7, 2)]
    np.testing.assert_allclose(density, expected)
    np.testing.assert_array_equal(series.block_density(weight, 5000), weight.mask())


def test_a_large_layer_is_drawn_in_blocks_and_empty_ones_are_drawn_too(tmp_path):
    run = series.read_run(make_run(tmp_path / "run", layers={"fc1.weight": (20, 1500)}))
    figure = plot.draw_mask(run, *series.read_weight(run, None))
    assert figure.axes[0].images[0].get_array().shape == (20, 150)
    assert "density of a block" in texts_of(figure)
    for shape in ((20, 30), (2000, 30)):
        nothing = from_dense(np.ones(shape), np.zeros(shape, bool))
        plot.write_figures({"nothing": plot.draw_mask(run, "fc1", nothing)}, tmp_path)


def test_a_small_layer_is_drawn_place_by_place(tmp_path):
    run = series.read_run(make_run(tmp_path / "run"))
    layer, weight = series.read_weight(run, "conv1")
    shown = plot.draw_mask(run, layer, weight).axes[0].images[0].get_array()
    np.testing.assert_array_equal(~np.ma.getmaskarray(shown), weight.mask())
    np.testing.assert_array_equal(shown[weight.mask()], weight.data)
    colours = plot.sign_colours()(np.linspace(0, 1, 257))
    assert colours[:, :3].min(axis=1).max() < 0.75      # no weight is as pale as a place without one
    assert (colours[:128, 2] > colours[:128, 0]).all()  # blue below, red above 0
    assert (colours[129:, 0] > colours[129:, 2]).all()


def test_titles_say_what_was_run_and_on_what(tmp_path, three):
    text = texts_of(plot.draw_accuracy(three)).replace("\n", " ")
    for words in ("digits, conv2fc2, start density 0.5, layer-wise, preset figures, seeds 0–2 (n = 3)",
                  "8 of 10 iterations", "mean test accuracy", "± standard deviation",
                  "published (read off the figure)", "starts at 0 %"):
        assert words in text
    folders = [make_run(tmp_path / f"v{k}", f"seed={k}", "data.validation=0.1", "rewire.inner_every=0") for k in (3, 7)]
    runs_read = series.read_runs(folders)
    assert series.describe(runs_read)[-2:] == ["preset figures (changed)", "seeds 3, 7 (n = 2)"]
    assert "validation accuracy (%)" in texts_of(plot.draw_accuracy(runs_read))
    assert "validation" in texts_of(plot.draw_training(runs_read))
    assert "no rewiring" in series.describe([series.read_run(make_run(tmp_path / "static", "rewire.ratio=none"))])


# --------------------------------------------------------------------------------------------------------- errors


def test_folders_that_hold_no_run(tmp_path):
    out = tmp_path / "out"
    assert "no run was given" in error_of(out=out)
    assert "holds no run" in error_of(tmp_path / "nowhere", out=out)
    assert "holds no run" in error_of(tmp_path, out=out)
    assert "has finished no iteration" in error_of(unfinished(tmp_path / "a"), out=out)


def unfinished(folder: Path) -> Path:
    run = make_run(folder)
    (run / "metrics.csv").write_text("\n".join((run / "metrics.csv").read_text().splitlines()[:3]) + "\n")
    return run


@pytest.mark.parametrize(("name", "change", "words"), [
    ("metrics.csv", lambda _: "", "is empty"),
    ("structure.csv", lambda _: "", "is empty"),
    ("structure.csv", lambda text: text.splitlines()[0] + "\n", "is empty"),
    ("metrics.csv", lambda text: text.replace("param_density", "density"), "no column param_density"),
    ("metrics.csv", lambda text: text[:-30], "line 41 has not the fields"),
    ("metrics.csv", lambda text: text + "\0\0\n", "damaged"),
    ("metrics.csv", lambda text: text.replace("\n2,1,", "\n2,one,"), "iteration holds no number"),
    ("metrics.csv", lambda text: text.replace("\n2,1,", "\n2,,"), "a field is empty or nan"),
    ("structure.csv", lambda text: text.replace(",all,", ",none,"), "other iterations than metrics.csv"),
    ("metrics.csv", lambda text: text.replace("\n2,1,", "\n7,1,"), "epochs are not 1, 2, 3"),
    ("structure.csv", lambda text: text.replace("\n3,", "\n4,"), "other iterations than metrics.csv"),
    ("config.toml", lambda text: text + "[", "not valid TOML"),
    ("checkpoint.h5", lambda _: "nothing", "damaged, or no HDF5 file"),
])
def test_damaged_files(tmp_path, name, change, words):
    run = make_run(tmp_path / "run", layers={"conv1.weight": (4, 9)})
    text = "" if name == "checkpoint.h5" else (run / name).read_text(encoding="utf-8")
    (run / name).write_text(change(text), encoding="utf-8")
    message = error_of(run, out=tmp_path / "out")
    assert words in message
    assert name in message


@pytest.mark.parametrize("name", ["metrics.csv", "structure.csv", "checkpoint.h5"])
def test_missing_or_binary_files(tmp_path, name):
    run = make_run(tmp_path / "run", layers={"conv1.weight": (4, 9)})
    (run / name).write_bytes(b"\xff\xfe\x00,")
    assert name in error_of(run, out=tmp_path / "out")
    (run / name).unlink()
    assert "no such file" in error_of(run, out=tmp_path / "out")


@pytest.mark.parametrize("records", [
    [], [("indptr", [0, 1]), ("indices", [0])], [("indptr", [0, 1, 1, 1, 1]), ("indices", [9]), ("data", [1.0])],
    [("shape", [4, 9]), ("indptr", [0, 1, 1, 1, 1]), ("indices", [9]), ("data", [1.0])],
    [("shape", []), ("indptr", []), ("indices", [9]), ("data", [1.0])],
])
def test_damaged_checkpoints(tmp_path, records):
    run = make_run(tmp_path / "run", layers={"conv1.weight": (4, 9)})
    kept = [Record(f"weights/conv1.weight/{part}", "index", np.array(value, np.float32 if part == "data" else np.int32))
            for part, value in records]
    trace.write(run / "checkpoint.h5", kept, {"kind": "checkpoint"})
    assert "checkpoint.h5: damaged" in error_of(run, out=tmp_path / "out")


def test_runs_that_must_not_be_averaged(tmp_path):
    one, same = make_run(tmp_path / "one"), make_run(tmp_path / "same")
    other = make_run(tmp_path / "other", "seed=1", "optim.lr=0.5", "rewire.scope=neuron")
    assert "have the same configuration and seed" in error_of(one, same, out=tmp_path / "out")
    message = error_of(one, other, out=tmp_path / "out")
    assert "optim.lr = 0.016 against 0.5" in message
    assert "rewire.scope" in message
    assert "seed = 0" not in message
    older = make_run(tmp_path / "older", "seed=2")
    (older / "metrics.csv").write_text((older / "metrics.csv").read_text().replace("rate_lif3", "rate_lif4"))
    assert "not the same columns" in error_of(one, older, out=tmp_path / "out")


def test_a_folder_that_cannot_be_written(tmp_path):
    run = make_run(tmp_path / "run", layers={"conv1.weight": (4, 9)})
    (tmp_path / "file").write_text("in the way")
    assert "cannot be written" in error_of(run, out=tmp_path / "file")
    assert "cannot be written" in error_of(run, out=tmp_path / "file" / "below")


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", layers={"conv1.weight": (4, 9)})

    def full(*_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "replace_durably", full)
    assert "No space left" in error_of(run, out=tmp_path / "out")
