"""The rows of a measurement: a CSV file that grows and is resumed, a Markdown table, fixed costs, and figures."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from task import OURS, UNMATCHED

from refsnn.bench import milliseconds
from refsnn.disk import write_whole

DENSE_SHARE = 0.3       # densities up to here lie on one line: beyond, a layer may be computed as a dense one
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")      # Okabe and Ito


@dataclass(frozen=True)
class Row:
    """One program on one task. Times in seconds; memory in MiB; a program that was skipped has a reason and zeros.

    seconds, lower, upper   of a step: median and quartiles
    ours                    median of refsnn's step in the same rounds
    ratio, ...              median and quartiles over the rounds of seconds / refsnn's seconds
    loss, update, flips     against refsnn in float64: the loss, one step's update, relative; spikes that differ
    peak, peak_growing      memory of a process of its own, outside and inside a growth window; 0: not measured
    """

    net: str
    density: float
    spread: str
    program: str
    batch: int
    steps: int
    threads: int
    rounds: int = 0
    seconds: float = 0.0
    lower: float = 0.0
    upper: float = 0.0
    ours: float = 0.0
    ratio: float = 0.0
    ratio_lower: float = 0.0
    ratio_upper: float = 0.0
    loss: float = 0.0
    update: float = 0.0
    flips: int = 0
    entries: int = 0
    peak: float = 0.0
    peak_growing: float = 0.0
    skipped: str = ""
    machine: str = ""

    @property
    def task(self) -> tuple[Any, ...]:
        """What was measured."""
        return self.net, self.density, self.spread, self.batch, self.steps, self.threads

    @property
    def fair(self) -> bool:
        """Whether a peer computes with the same precision."""
        return self.program != OURS and self.program not in UNMATCHED and not self.skipped


def read(path: Path, kind: type = Row) -> list[Any]:
    """The rows of a file, of a dataclass of texts and numbers; none where the file is not there."""
    if not path.exists():
        return []
    types = {field.name: field.type for field in fields(kind)}
    with open(path, newline="") as file:
        return [kind(**{name: types[name](value) for name, value in row.items()}) for row in csv.DictReader(file)]


def write(path: Path, rows: Iterable[Any]) -> None:
    """Write rows, dataclasses of one type, the file whole or not at all."""
    values, text = [asdict(row) for row in rows], io.StringIO(newline="")
    writer = csv.DictWriter(text, list(values[0]))
    writer.writeheader()
    writer.writerows(values)
    write_whole(path, text.getvalue().encode())


def by_task(rows: Iterable[Row]) -> dict[tuple[Any, ...], dict[str, Row]]:
    """The rows of each task, by program."""
    found: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row.task, {})[row.program] = row
    return found


# ------------------------------------------------------------------------------------------------------------- tables


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def markdown(rows: list[Row]) -> list[str]:
    """Step times of refsnn, and by how much each peer takes longer and more memory: a table, reasons, fixed costs."""
    peers = list(dict.fromkeys(row.program for row in rows if row.program != OURS))
    head = ["net", "B, T", "density", "refsnn", *(f"{p}*" if p in UNMATCHED else p for p in peers), "best peer",
            "memory", "memory, growing"]
    lines = [f"{rows[0].machine}; {rows[0].threads} threads, float32. Time of the peer's training step over refsnn's: "
             "median of the ratios of the rounds (quartiles).", ""]
    lines += table(head, [_line(found, peers) for found in by_task(rows).values() if OURS in found])
    if any(row.program in UNMATCHED for row in rows):
        lines += ["", "\\* computes with three digits: no fair peer, not among the best ones"]
    reasons = {f"{row.program} is missing: {row.skipped}" for row in rows if row.skipped}
    return [*lines, "", *sorted(reasons), *fixed_costs(rows)]


def _line(found: dict[str, Row], peers: list[str]) -> list[str]:
    """One task."""
    ours = found[OURS]
    cells = [_ratio(found.get(name)) for name in peers]
    fair = [row for row in found.values() if row.fair]
    best = min(fair, key=lambda row: row.ratio) if fair else None
    density = f"{ours.density:.0%}" + ("" if ours.spread == "uniform" else f", {ours.spread}")
    return [ours.net, f"{ours.batch}, {ours.steps}", density, milliseconds(ours.seconds), *cells,
            f"**{best.ratio:.2f}** {best.program}" if best else "",
            _memory(ours.peak, [row.peak for row in fair]), _memory(ours.peak_growing, [r.peak_growing for r in fair])]


def _ratio(row: Row | None) -> str:
    if row is None or row.skipped:
        return "–"
    return f"{row.ratio:.2f} ({row.ratio_lower:.2f} – {row.ratio_upper:.2f})"


def _memory(ours: float, peers: list[float]) -> str:
    """Our MiB, and how many times as much the most frugal peer takes."""
    known = [peak for peak in peers if peak]
    return f"{ours:,.0f} MiB; {min(known) / ours:.2f}" if ours and known else ""


def fixed_costs(rows: list[Row]) -> list[str]:
    """The intercept of the line through step time over density, as a share of the step at 5 %; a line a net.

    Clocks move between densities: a step is measured in steps of a peer, whose time does not depend on the density. The
    fit minimises relative errors.
    """
    lines = []
    for net, peer in dict.fromkeys((row.net, row.program) for row in rows if row.fair):
        points = [(r.density, 1 / r.ratio) for r in rows
                  if (r.net, r.program, r.spread) == (net, peer, "uniform") and r.density <= DENSE_SHARE
                  and not r.skipped]
        if len({density for density, _ in points}) >= 3:
            start, share = fixed_cost(*np.array(points).T)
            lines.append(f"{net}: fixed cost {start:.4f} steps of {peer}, {share:.0%} of refsnn's step at 5 %")
    return lines


def fixed_cost(density: Any, time: Any) -> tuple[float, float]:
    """Intercept of the line through times over densities, relative errors minimised; its share of the line at 5 %."""
    slope, start = np.polyfit(density, time, 1, w=1 / time)
    return float(start), float(start / (start + 0.05 * slope))


# ------------------------------------------------------------------------------------------------------------- figure


def draw(rows: list[Row], net: str) -> bytes:
    """Step time against density, both logarithmic; each peer a horizontal line at the median of its steps. PNG."""
    figure = Figure((5, 3.6), layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    mine = sorted((r for r in rows if (r.net, r.program, r.spread) == (net, OURS, "uniform")), key=lambda r: r.density)
    x, y = [r.density for r in mine], [r.seconds for r in mine]
    spread = np.array([[r.seconds - r.lower for r in mine], [r.upper - r.seconds for r in mine]])
    axes.errorbar(x, y, spread, color=COLORS[0], marker="o", markersize=4, label="refsnn")
    peers = dict.fromkeys(r.program for r in rows if r.net == net and r.program != OURS and not r.skipped)
    for name, color in zip(peers, COLORS[1:], strict=False):
        level = float(np.median([r.seconds for r in rows if (r.net, r.program) == (net, name) and not r.skipped]))
        axes.axhline(level, color=color, linestyle=":" if name in UNMATCHED else "-", linewidth=1,
                     label=f"{name}, three digits" if name in UNMATCHED else name)
    axes.set(xscale="log", yscale="log", xlabel="density", ylabel="training step [s]", title=net)
    axes.set_xticks(x, [f"{value:.0%}" for value in x])
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    image = io.BytesIO()
    canvas.print_png(image)
    return image.getvalue()
