"""Figures of runs as PNG files, sized for one column of a paper; no display is needed.

    accuracy.png      accuracy (bars) and density (line) at the end of every iteration, as the paper's Figs. 2 and 3
    pq_index.png      PQ index and, below it, the rewiring ratio count/d of every layer at the end of every iteration
    firing_rates.png  spikes per neuron and time step of every spiking layer over the epochs
    mask_<layer>.png  the connections of one layer: a row a neuron, a column a place
    training.png      loss and accuracy over the epochs, in training and evaluated

`plot_runs` draws all of them, `plot_mask` the map of one layer. Everything is read from the folder of a run. Several
runs are averaged and must agree in all but the seed; what not all of them have reached yet is left out, and said so.
What is shown is prepared in series.py; here it is drawn.
"""

import io
import math
import textwrap
from collections.abc import Iterable
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

from refsnn.disk import write_whole
from refsnn.errors import UserError
from refsnn.ops.sparse import SparseWeight
from refsnn.series import (
    Run,
    Series,
    accuracy_limits,
    at_iterations,
    block_density,
    describe,
    deviation,
    over_epochs,
    over_iterations,
    published,
    read_run,
    read_runs,
    read_weight,
)

Array = npt.NDArray[Any]
Table = dict[str, Array]        # one array a column

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
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_whole(path, content)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error
    return list(drawn)
