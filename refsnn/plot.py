"""Figures of runs as PNG files, sized for one column of a paper; no display is needed.

    accuracy.png      accuracy (bars) and density (line) at the end of every iteration, as the paper's Figs. 2 and 3
    pq_index.png      PQ index and, below it, the rewiring ratio count/d of every layer at the end of every iteration
    firing_rates.png  spikes per neuron and time step of every spiking layer over the epochs
    mask_<layer>.png  the connections of one layer: a row a neuron, a column a place
    training.png      loss and accuracy over the epochs, in training and evaluated

`plot_runs` draws all of them, `plot_mask` the map of one layer. Everything is read from the folder of a run. Several
runs are averaged and must agree in all but the seed; what not all of them have reached yet is left out, and said so.
First come the functions that prepare what is shown, then those that draw it.
"""

import csv
import io
import math
import os
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

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
BLOCKS_BEYOND, BLOCKS = 1000, 160       # longest side of a mask drawn place by place; blocks a side beyond it

WIDTH, DPI = 3.5, 300                   # inches, the column of a paper; dots per inch
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")     # Okabe and Ito
MARKERS = "osD^vPX"
BAR, FAINT = "#A6CFE8", "#7A7A7A"
TITLE, LABEL, SMALL, TINY = 8.5, 7.5, 6.5, 5.6      # font sizes, points


def plot_runs(runs: list[Path], out: Path) -> list[Path]:
    """Draw all figures of one run, or of several that differ in the seed only; returns the paths of the PNG files.

    The mask is the first run's, of its largest layer. Raises UserError where a folder holds no run, no finished
    iteration or damaged files, where the runs differ in more than the seed, and where `out` cannot be written. Nothing
    is written before every figure is drawn.
    """
    read = read_runs(runs)
    layer, weight = read_weight(read[0], None)
    figures = {
        "accuracy": draw_accuracy(read),
        "pq_index": draw_index(read),
        "firing_rates": draw_rates(read),
        f"mask_{layer}": draw_mask(read[0], layer, weight),
        "training": draw_training(read),
    }
    return write_figures(figures, out)


def plot_mask(run: Path, out: Path, layer: str | None = None) -> Path:
    """Draw the connections of one layer ("conv1"; None: the largest) of a run; returns the path of the PNG file.

    Raises UserError as `plot_runs`, and for a layer that the run does not have.
    """
    read = read_run(run)
    name, weight = read_weight(read, layer)
    return write_figures({f"mask_{name}": draw_mask(read, name, weight)}, out)[0]


# ------------------------------------------------------------------------------------------------- reading a run


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

    The checkpoint holds no number of columns; structure.csv does: density = connections / places.   Raises UserError.
    """
    path = run.folder / "checkpoint.h5"
    records, _ = trace.read(path)
    names = [name.split("/")[1].removesuffix(".weight") for name in records if name.endswith("/indptr")]
    if layer is not None and layer.removesuffix(".weight") not in names:
        raise UserError(f"{run.folder}: has no layer {layer}; its layers: {', '.join(names)}")
    try:
        sizes = {name: places(run.structure, f"{name}.weight") for name in names}
        name = max(sizes, key=sizes.__getitem__) if layer is None else layer.removesuffix(".weight")
        found = (records[f"weights/{name}.weight/{part}"].value for part in ("data", "indices", "indptr"))
        data, indices, indptr = found
        rows = len(indptr) - 1
        return name, SparseWeight(data, indices, indptr, (rows, sizes[name] // rows))
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


def places(structure: Table, layer: str) -> int:
    """N, the places of a layer, from any row that left it a connection; ValueError where there is none."""
    after = structure["active_before"] - structure["pruned"] + structure["regrown"]
    rows = np.flatnonzero((structure["layer"] == layer) & (after > 0))
    if not rows.size:
        raise ValueError(f"structure.csv knows no connection of {layer}")
    return round(after[rows[0]] / structure["density_after"][rows[0]])


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


# ----------------------------------------------------------------------------------------------------------- drawing


def draw_accuracy(runs: list[Run]) -> Figure:
    """Bars of accuracy with the standard deviation over the runs, and the line of density."""
    accuracy, density = 100 * at_iterations(runs, "test_accuracy"), at_iterations(runs, "param_density")
    mean, spread, averaged = accuracy.mean(axis=0), deviation(accuracy), "mean " * (len(runs) > 1)
    x = np.arange(1, len(mean) + 1)
    low, high = accuracy_limits(mean, spread)
    figure, (bars,) = new_figure("Accuracy and density", runs, f"the axis of the accuracy starts at {low:g} %", (2.1,))
    bars.bar(x, mean - low, width=0.76, bottom=low, color=BAR, label=f"{averaged}{evaluated_on(runs)} accuracy")
    if averaged:
        bars.errorbar(x, mean, spread, fmt="none", ecolor=PALETTE[0], elinewidth=0.9, capsize=2,
                      label="± standard deviation")
    for k, value in enumerate(mean if len(x) <= 12 else (), start=1):
        bars.text(k, low + 0.02 * (high - low), f"{value:.1f}", ha="center", va="bottom", fontsize=TINY)
    bars.set_ylim(low, high)
    bars.set_ylabel(f"{evaluated_on(runs)} accuracy (%)", fontsize=LABEL)
    label_x(bars, "iteration")
    line = bars.twinx()
    dress(line)
    line.spines["right"].set_visible(True)
    for axes in (bars, line):
        axes.grid(visible=False)
    known = published(runs[0].config, len(x))
    line.plot(x, density.mean(axis=0), "-o", color=PALETTE[1], linewidth=1.2, markersize=2.6,
              label=f"{averaged}density")
    if known is not None:
        line.plot(x[:len(known)], known, "o", color=FAINT, markersize=6, fillstyle="none", markeredgewidth=0.8,
                  zorder=1, label="published (read off the figure)")
    line.set_ylim(0, 1.12 * max(density.max(), 0 if known is None else known.max()))
    line.set_ylabel("density (active / all weights)", fontsize=LABEL)
    place_legend(figure, (bars, line))
    return figure


def evaluated_on(runs: list[Run]) -> str:
    """What the accuracy was taken on: "test" or "validation"."""
    return str(runs[0].metrics["evaluated_on"][0])


def draw_index(runs: list[Run]) -> Figure:
    """PQ index above rewiring ratio, a line a layer over the iterations."""
    keys = runs[0].config.rewire
    over = ["neurons (index only)"] * (keys.scope == "neuron") + ["seeds"] * (len(runs) > 1)
    note = f"bands: range over {' and '.join(over)}" if over else ""
    figure, (upper, lower) = new_figure("PQ index and rewiring ratio", runs, note, (1.5, 1.5))
    draw_lines(upper, over_iterations(runs, "pq_index", "pq_index_min", "pq_index_max"))
    upper.set_ylabel(f"PQ index (p = {keys.p:g}, q = {keys.q:g})", fontsize=LABEL)
    draw_lines(lower, over_iterations(runs, "ratio_active", "ratio_active", "ratio_active"))
    lower.set_ylabel("rewiring ratio, count / d", fontsize=LABEL)
    for axes in (upper, lower):
        from_zero(axes)
    label_x(lower, "iteration")
    place_legend(figure, (upper,))
    return figure


def draw_rates(runs: list[Run]) -> Figure:
    """Firing rates, a line a spiking layer over the epochs."""
    names = [name for name in runs[0].metrics if name.startswith("rate_")]
    figure, (axes,) = new_figure("Firing rates", runs, epochs_note(runs), (1.9,))
    draw_lines(axes, {name.removeprefix("rate_"): over_epochs(runs, name) for name in names})
    from_zero(axes)
    axes.set_ylabel("spikes per neuron and time step", fontsize=LABEL)
    mark_iterations(axes, runs)
    label_x(axes, "epoch")
    place_legend(figure, (axes,))
    return figure


def draw_training(runs: list[Run]) -> Figure:
    """Loss above accuracy over the epochs, in training and evaluated."""
    figure, (upper, lower) = new_figure("Training", runs, epochs_note(runs), (1.4, 1.4))
    for axes, what, factor in ((upper, "loss", 1), (lower, "accuracy", 100)):
        pairs = {"training": over_epochs(runs, f"train_{what}"), evaluated_on(runs): over_epochs(runs, f"test_{what}")}
        draw_lines(axes, pairs, factor)
        mark_iterations(axes, runs)
    upper.set_ylabel(f"loss ({runs[0].config.train.loss})", fontsize=LABEL)
    lower.set_ylabel("accuracy (%)", fontsize=LABEL)
    label_x(lower, "epoch")
    place_legend(figure, (upper,))
    return figure


def draw_mask(run: Run, layer: str, weight: SparseWeight) -> Figure:
    """Map of a layer's connections with the number of each row at its side."""
    note = f"{weight.nnz:,} of {weight.size:,} places are connected"
    figure, (chart, side) = new_figure(f"Connections of {layer}", [run], note, (2.4,), (5, 1.1))
    for axes in (chart, side):
        axes.grid(visible=False)
    if max(weight.rows, weight.columns) > BLOCKS_BEYOND:
        image = map_blocks(chart, weight)
        bar = figure.colorbar(image, ax=chart, location="bottom", shrink=0.8, aspect=30)
        bar.set_label("density of a block (connections / places)", fontsize=LABEL)
    else:
        image = map_places(chart, weight)
        bar = figure.colorbar(image, ax=chart, location="bottom", shrink=0.8, aspect=30, extend="both")
        bar.set_label("weight (white: no connection)", fontsize=LABEL)
    bar.ax.tick_params(labelsize=SMALL)
    chart.set_ylabel("neuron (row)", fontsize=LABEL)
    chart.set_xlabel("place (column)", fontsize=LABEL)
    edges = np.arange(weight.rows + 1)
    side.stairs(np.diff(weight.indptr), edges, orientation="horizontal", fill=True, color=PALETTE[0])
    side.set_xlim(left=0)
    side.xaxis.set_major_locator(MaxNLocator(2, integer=True))
    side.set_xlabel("connections\nof the row", fontsize=SMALL)
    return figure


def map_places(axes: Axes, weight: SparseWeight) -> AxesImage:
    """Every place of the matrix by its weight's sign and size; places without a connection stay white."""
    values = np.where(weight.mask(), weight.dense(), np.nan)
    limit = float(np.quantile(np.abs(weight.data), 0.98)) if weight.nnz else 0.0
    limit = limit or 1.0            # all weights exactly 0, or none
    return axes.imshow(values, cmap=sign_colours(), vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest",
                       extent=(0, weight.columns, weight.rows, 0))


def map_blocks(axes: Axes, weight: SparseWeight) -> AxesImage:
    """Blocks of the matrix by their density."""
    density = block_density(weight, BLOCKS)
    return axes.imshow(density, cmap="Blues", vmin=0, vmax=float(density.max()) or 1.0, aspect="auto",
                       interpolation="nearest", extent=(0, weight.columns, weight.rows, 0))


def sign_colours() -> ListedColormap:
    """Blue for negative, orange to brown for positive weights, darker where larger, never near white; 0 is grey."""
    shades = np.linspace(0.4, 1.0, 128)
    grey = np.array([[0.6, 0.6, 0.6, 1.0]])
    return ListedColormap(np.vstack([colormaps["Blues"](shades[::-1]), grey, colormaps["Oranges"](shades)]))


# ------------------------------------------------------------------------------------------ what the figures share


def new_figure(title: str, runs: list[Run], note: str, heights: tuple[float, ...],
               widths: tuple[float, ...] = (1,)) -> tuple[Figure, list[Axes]]:
    """A figure of panels, heights in inches, with its title, what was run, and a note on how to read it."""
    figure = Figure(figsize=(WIDTH, sum(heights) + 1.15), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    # The first line is left to the title, which is bold; a part of the description is never broken.
    lines = textwrap.wrap(", ".join(part.replace(" ", "\xa0") for part in describe(runs)), 74)
    figure.suptitle("\n".join(["", *lines, note]).rstrip(), x=0.02, ha="left", fontsize=SMALL, linespacing=1.45)
    figure.text(0.02, 1 - 0.02 / figure.get_figheight(), title, va="top", fontsize=TITLE, fontweight="bold")
    panels = list(figure.subplots(len(heights), len(widths), sharex="col", sharey="row", squeeze=False,
                                  height_ratios=heights, width_ratios=widths).flat)
    for axes in panels:
        dress(axes)
    return figure, panels


def epochs_note(runs: list[Run]) -> str:
    """How to read a figure over the epochs."""
    return "vertical lines: ends of iterations" + "; bands: range over seeds" * (len(runs) > 1)


def dress(axes: Axes) -> None:
    """Quiet axes: thin lines, a pale horizontal grid behind the data."""
    axes.tick_params(labelsize=SMALL, width=0.6, length=2.5)
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.6)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_linewidth(0.6)
        spine.set_visible(name in ("left", "bottom"))


def label_x(axes: Axes, text: str) -> None:
    """Name the horizontal axis, which counts."""
    axes.set_xlabel(text, fontsize=LABEL)
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))


def draw_lines(axes: Axes, lines: dict[str, Series], factor: int = 1) -> None:
    """Lines with their bands, in the palette; more lines than it has colours go from dark to light in their order."""
    many = len(lines) > len(PALETTE)
    for k, (name, one) in enumerate(lines.items()):
        colour = colormaps["viridis"](0.92 * k / (len(lines) - 1)) if many else PALETTE[k]
        marker = MARKERS[k % len(MARKERS)] if len(one.x) <= 20 else ""
        axes.fill_between(one.x, factor * one.low, factor * one.high, color=colour, alpha=0.16, linewidth=0)
        axes.plot(one.x, factor * one.mean, color=colour, linewidth=1.1, marker=marker, markersize=2.4, label=name)


def mark_iterations(axes: Axes, runs: list[Run]) -> None:
    """A thin vertical line after the last epoch of every finished iteration."""
    epochs = runs[0].config.train.epochs
    for k in range(1, min(run.iterations for run in runs) + 1):
        axes.axvline(k * epochs + 0.5, color="#C8C8C8", linewidth=0.5, zorder=0)
    axes.set_xlim(left=0.3)


def from_zero(axes: Axes) -> None:
    """Let the vertical axis start at 0, with some room above the highest line."""
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])


def place_legend(figure: Figure, panels: Iterable[Axes]) -> None:
    """One legend below all panels, in as many columns as fit the width; each further row makes the figure higher."""
    found = [panel.get_legend_handles_labels() for panel in panels]
    handles, labels = [h for pair in found for h in pair[0]], [text for pair in found for text in pair[1]]
    columns = fitting_columns(labels)
    figure.set_figheight(figure.get_figheight() + 0.13 * (math.ceil(len(labels) / columns) - 1))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=SMALL, frameon=False,
                  handlelength=1.8, columnspacing=1.2)


def fitting_columns(labels: list[str]) -> int:
    """How many columns of a legend fit the width: 78 characters, of which each column's handle and space take 9."""
    for columns in range(len(labels), 1, -1):
        longest = [max(len(text) for text in column) for column in np.array_split(np.array(labels), columns)]
        if sum(longest) + 9 * columns <= 78:
            return columns
    return 1


def write_figures(figures: dict[str, Figure], out: Path) -> list[Path]:
    """Write figures to `out`/<name>.png, each whole or not at all.   Raises UserError where they cannot be written."""
    drawn = {}
    for name, figure in figures.items():
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=DPI)
        drawn[out / f"{name}.png"] = image.getvalue()
    for path, content in drawn.items():
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            out.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content)
            trace.replace_durably(partial, path)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error
        finally:
            if out.is_dir():
                partial.unlink(missing_ok=True)
    return list(drawn)
