"""What is shown of runs: read from their folders, and prepared as the series that a figure draws.

Everything comes from config.toml, metrics.csv, structure.csv and checkpoint.h5. Several runs are averaged and must
agree in all but the seed; what not all of them have reached yet is left out.
"""

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn import config as configuration
from refsnn import trace
from refsnn.errors import UserError
from refsnn.ops.sparse import SparseWeight
from refsnn.schema import PRESETS, Config, settings

Array = npt.NDArray[Any]
Table = dict[str, Array]        # one array a column

REMEDY = "train anew in another --out"
TEXTS = ("layer", "phase", "evaluated_on")
METRICS = ("epoch", "iteration", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "param_density",
           "evaluated_on")
STRUCTURE = ("iteration", "layer", "phase", "active_before", "pq_index", "pq_index_min", "pq_index_max", "pruned",
             "regrown", "ratio_active", "density_after")
# Densities of the paper's runs on CIFAR-10 by scope and start density, one an iteration, read off its figures.
PUBLISHED = {
    ("layer", 0.5): (0.50, 0.42, 0.35, 0.30, 0.25, 0.21, 0.18, 0.15, 0.13, 0.11),
    ("layer", 1.0): (1.00, 0.84, 0.71, 0.60, 0.50, 0.43, 0.36, 0.30, 0.26, 0.22),
    ("neuron", 0.5): (0.50, 0.41, 0.33, 0.27),
}


@dataclass(frozen=True)
class Run:
    """What is read of a run's folder; `iterations` are those that are finished."""

    folder: Path
    config: Config
    metrics: Table
    structure: Table
    iterations: int


def read_runs(folders: list[Path]) -> list[Run]:
    """Read runs that differ in the seed only.   Raises UserError."""
    if not folders:
        raise UserError("no run was given; give the --out folder of a training")
    runs = [read_run(folder) for folder in folders]
    for k, other in enumerate(runs):
        for one in runs[:k]:
            differing = configuration.differences(one.config, other.config)
            if not differing:
                raise UserError(f"{one.folder} and {other.folder}: have the same configuration and seed; give one")
            keys = [text for text in differing if not text.startswith("seed = ")]
            if keys:
                raise UserError(f"{one.folder} and {other.folder}: differ in more than the seed ({'; '.join(keys)}); "
                                "plot each configuration alone")
            if list(one.metrics) != list(other.metrics) or {*one.structure["layer"]} != {*other.structure["layer"]}:
                raise UserError(f"{one.folder} and {other.folder}: their tables have not the same columns and layers; "
                                "plot each alone, or train anew what another version made")
    return runs


def read_run(folder: Path) -> Run:
    """Read configuration and tables of one run.   Raises UserError."""
    if not (folder / "config.toml").is_file():
        raise UserError(f"{folder}: holds no run (there is no config.toml in it); give the --out folder of a training")
    config = configuration.load(folder / "config.toml")
    metrics = read_table(folder / "metrics.csv", METRICS)
    structure = read_table(folder / "structure.csv", STRUCTURE)
    if not np.array_equal(metrics["epoch"], np.arange(1, len(metrics["epoch"]) + 1)):
        raise UserError(f"{folder / 'metrics.csv'}: damaged (its epochs are not 1, 2, 3 ...); {REMEDY}")
    if any(np.isnan(metrics[name]).any() for name in metrics if name not in TEXTS):
        raise UserError(f"{folder / 'metrics.csv'}: damaged (a field is empty or nan); {REMEDY}")
    finished = len(metrics["epoch"]) // config.train.epochs
    if not finished:
        raise UserError(f"{folder}: has finished no iteration yet; train on with --resume")
    expected = np.arange(1, finished + 1)
    for layer in [*dict.fromkeys(structure["layer"]), "all"]:
        if not np.array_equal(structure["iteration"][measured(structure, layer)], expected):
            raise UserError(f"{folder / 'structure.csv'}: damaged (other iterations than metrics.csv); {REMEDY}")
    return Run(folder, config, metrics, structure, finished)


def read_table(path: Path, columns: Iterable[str]) -> Table:
    """Read a CSV file's columns, texts as str, numbers as float64 (nan where a field is empty).   Raises UserError."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            header, *rows = list(csv.reader(file, strict=True)) or [[]]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the folder of a run that has finished an iteration") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a table ({error}); {REMEDY}") from None
    if not rows:
        raise UserError(f"{path}: is empty; give a run that has finished an iteration, or train on with --resume")
    missing = [name for name in columns if name not in header]
    wrong = next((k for k, row in enumerate(rows, start=2) if len(row) != len(header)), None)
    if missing or wrong:
        what = f"there is no column {missing[0]}" if missing else f"line {wrong} has not the fields of the header"
        raise UserError(f"{path}: damaged ({what}); {REMEDY}")
    table: Table = {}
    for name, texts in zip(header, zip(*rows, strict=True), strict=True):
        try:
            table[name] = np.array(texts if name in TEXTS else [float(text) if text else math.nan for text in texts])
        except ValueError:
            raise UserError(f"{path}: damaged (column {name} holds no number); {REMEDY}") from None
    return table


def read_weight(run: Run, layer: str | None) -> tuple[str, SparseWeight]:
    """The sparse matrix of a layer ("conv1"; None: the largest) as the run's checkpoint has it, and the layer's name.

    Raises UserError.
    """
    path = run.folder / "checkpoint.h5"
    records, _ = trace.read(path)
    names = [name.split("/")[1].removesuffix(".weight") for name in records if name.endswith("/indptr")]
    if layer is not None and layer.removesuffix(".weight") not in names:
        raise UserError(f"{run.folder}: has no layer {layer}; its layers: {', '.join(names)}")
    try:
        shapes = {name: tuple(int(n) for n in records[f"weights/{name}.weight/shape"].value) for name in names}
        largest = max(shapes, key=lambda name: math.prod(shapes[name]))
        name = largest if layer is None else layer.removesuffix(".weight")
        found = (records[f"weights/{name}.weight/{part}"].value for part in ("data", "indices", "indptr"))
        data, indices, indptr = found
        rows, *rest = shapes[name]
        return name, SparseWeight(data, indices, indptr, (rows, math.prod(rest)))
    except (LookupError, ValueError, ArithmeticError) as error:
        raise UserError(f"{path}: damaged, or no checkpoint ({error}); {REMEDY}") from None


# --------------------------------------------------------------------------------------------- what the figures show


@dataclass(frozen=True)
class Series:
    """A line and its band: x (n,), and mean, low and high (n,) over the runs, all in the unit of the table's column."""

    x: Array
    mean: Array
    low: Array
    high: Array


def measured(structure: Table, layer: str) -> Array:
    """Bool, the rows of structure.csv where a layer was measured: the ends of the iterations."""
    return (structure["layer"] == layer) & np.isin(structure["phase"], ("end", "last"))


def at_iterations(runs: list[Run], column: str) -> Array:
    """(run, iteration): a column of metrics.csv at the last epoch of every iteration that all runs have finished."""
    finished, epochs = min(run.iterations for run in runs), runs[0].config.train.epochs
    return np.array([run.metrics[column][epochs - 1:finished * epochs:epochs] for run in runs])


def deviation(values: Array) -> Array:
    """Sample standard deviation over the runs (run, n) -> (n,); 0 where there is but one run."""
    return values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])


def over_epochs(runs: list[Run], column: str) -> Series:
    """A column of metrics.csv over the epochs that all runs have: mean and range over the runs."""
    length = min(len(run.metrics["epoch"]) for run in runs)
    values = np.array([run.metrics[column][:length] for run in runs])
    return Series(np.arange(1, length + 1), values.mean(axis=0), values.min(axis=0), values.max(axis=0))


def over_iterations(runs: list[Run], column: str, low: str, high: str) -> dict[str, Series]:
    """Columns of structure.csv at the ends of the iterations, by layer: mean of `column`, least `low`, largest `high`.

    Where single layers have no value of their own (global scope) there is one line, "network".
    """
    finished = min(run.iterations for run in runs)
    series = {}
    for layer in dict.fromkeys(runs[0].structure["layer"]):
        mean, least, most = (np.array([run.structure[name][measured(run.structure, layer)][:finished] for run in runs])
                             for name in (column, low, high))
        name = "network" if layer == "all" else str(layer).removesuffix(".weight")
        series[name] = Series(np.arange(1, finished + 1), mean.mean(axis=0), least.min(axis=0), most.max(axis=0))
    layers = {name: one for name, one in series.items() if name != "network" and np.isfinite(one.mean).all()}
    return layers or {"network": series["network"]}


def published(config: Config, iterations: int) -> Array | None:
    """The paper's densities for a configuration's scope and start density, as far as the run goes; None: not there."""
    found = PUBLISHED.get((config.rewire.scope, config.structure.density)) if config.rewire.ratio == "pq" else None
    return None if found is None else np.array(found[:iterations])


def accuracy_limits(mean: Array, spread: Array) -> tuple[float, float]:
    """Limits in percent of an axis that shows the differences between bars and error bars, in whole percent below.

    The axis starts as far below the lowest bar as the bars differ, but at least 1 % below it.
    """
    low, high = float((mean - spread).min()), float((mean + spread).max())
    margin = max(high - low, 1.0)
    return max(math.floor(low - margin), 0), high + 0.12 * margin


def block_density(weight: SparseWeight, blocks: int) -> Array:
    """Share of connected places in each block of a matrix that is cut into at most `blocks` x `blocks` equal blocks.

    Blocks at the lower and right border may be smaller.
    """
    height, width = math.ceil(weight.rows / blocks), math.ceil(weight.columns / blocks)
    shape = math.ceil(weight.rows / height), math.ceil(weight.columns / width)
    block = weight.row_index() // height * shape[1] + weight.indices // width
    count = np.bincount(block, minlength=shape[0] * shape[1]).reshape(shape)
    rows, columns = (np.minimum(np.full(n, size), end - size * np.arange(n))
                     for n, size, end in zip(shape, (height, width), (weight.rows, weight.columns), strict=True))
    return count / np.outer(rows, columns)


def describe(runs: list[Run]) -> list[str]:
    """What was run: ["digits", "conv2fc2", "start density 0.5", "layer-wise", "preset figures", "seeds 0–2 (n = 3)"]"""
    config = runs[0].config
    keys, flat = config.rewire, settings(config)
    as_named = all(flat[name] == value for name, value in PRESETS[keys.preset].items() if name != "structure.density")
    rule = f"preset {keys.preset}{'' if as_named else ' (changed)'}" if keys.ratio == "pq" else "no rewiring"
    scope = keys.scope if keys.scope == "global" else f"{keys.scope}-wise"
    seeds = sorted(run.config.seed for run in runs)
    consecutive = len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1
    listed = f"{seeds[0]}–{seeds[-1]}" if consecutive else ", ".join(str(seed) for seed in seeds)
    words = [config.data.name, config.model.name, f"start density {config.structure.density:g}", scope, rule,
             f"seeds {listed} (n = {len(seeds)})" if len(seeds) > 1 else f"seed {listed}"]
    finished = min(run.iterations for run in runs)
    if finished < config.train.iterations:
        words.append(f"{finished} of {config.train.iterations} iterations")
    return words
