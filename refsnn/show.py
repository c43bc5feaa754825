"""What there is to see of a configuration, a run, an evaluation, a checkpoint or any other file of records.

All functions return lines of text: the commands `show` and `evaluate`, and the beginning and end of `train`. `table`
aligns columns for every command.
"""

import json
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from refsnn import config as configurations
from refsnn import runs, safe_read, schema
from refsnn.budget import budget, holdings
from refsnn.chain import Residual
from refsnn.datasets import Dataset
from refsnn.errors import UserError
from refsnn.evaluate import Evaluation, synapses
from refsnn.layers import Conv2d, Layer, Linear, Spiking
from refsnn.metrics import PICOJOULE_PER_MAC, PICOJOULE_PER_SOP
from refsnn.models import Network, complete
from refsnn.ops.conv import Timed
from refsnn.schema import Config
from refsnn.trace import Record
from refsnn.train import State, start

Array = npt.NDArray[Any]
Row = dict[str, Any]
FILES = ("config.toml", "checkpoint.h5", "metrics.csv", "structure.csv")


# ------------------------------------------------------------------------------------------------------- pieces of text


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """Columns of text under their heads, numbers to the right, the columns `left` to the left."""
    body = [list(row) for row in rows]
    widths = [max(len(row[k]) for row in [list(head), *body]) for k in range(len(head))]
    lines = ["  ".join(f"{cell:<{w}}" if k in left else f"{cell:>{w}}"
                       for k, (cell, w) in enumerate(zip(row, widths, strict=True)))
             for row in [list(head), ["─" * w for w in widths], *body]]
    return [line.rstrip() for line in lines]


def shape_text(shape: Sequence[int]) -> str:
    """(32, 8, 8) as 32×8×8; a single number as "1"."""
    return "×".join(str(n) for n in shape) or "1"


def statistics(value: Array) -> list[str]:
    """Smallest, mean, largest and share of non-zeros of an array, as text; empty where it has no entries."""
    if value.size == 0:
        return [""] * 4
    numbers = value.astype(np.float64)
    with np.errstate(all="ignore"):         # numbers may be infinite, and their mean NaN
        found = numbers.min(), numbers.mean(), numbers.max()
    return [*(f"{x:.4g}" for x in found), f"{np.count_nonzero(value) / value.size:.3f}"]


def bytes_text(size: float) -> str:
    """A number of bytes, exact and in a unit to read."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= scale:
            return f"{size:,.0f} bytes ({size / scale:.1f} {unit})"
    return f"{size:,.0f} bytes"


def _optional(value: Any, form: str) -> str:
    return "–" if value is None or value == "" else format(value, form)


# ------------------------------------------------------------------------------------------------------ a configuration


def configuration(name: str, config: Config, data: Dataset, about: str) -> list[str]:
    """A configuration: what is said about its data, layers, weights, multiply-adds, memory, and every key."""
    state = start(config, data)
    return [
        f"configuration {name}",
        f"data      {about}",
        f"network   {config.model.name}: input {shape_text(state.network.input_shape)}, T = {config.encode.steps}",
        "",
        *layers(state.network, config.encode.steps, config.encode.steps * config.train.batch,
                config.encode.kind == "direct"),
        "",
        *memory(state),
        "",
        *keys(config),
    ]


def tested_on(config: Config) -> str:
    """The part of the data that accuracies are taken on."""
    return "validation" if config.data.validation > 0 else "test"


def executions(layer: Conv2d | Linear, samples: int) -> str:
    """How kernels run a sparse layer: by its active weights, or what of it by all places of the weight."""
    if isinstance(layer, Linear):
        return "sparse"
    dense = [one for one in get_args(Timed) if layer.executed(one, samples) == "dense"]
    return "sparse" if not dense else "dense" if len(dense) == 3 else f"dense {', '.join(dense)}"


def layers(network: Network, steps: int, samples: int, static: bool = False) -> list[str]:
    """Every layer: output, weights, multiply-adds per sample over all steps, how kernels run it with T B `samples`.

    static: the image is the same at every step, and the first convolution runs once, for B samples.
    """
    shapes, rows = network.input_shapes(), []
    total = [0] * 5
    for layer in network.leaves:
        output = shape_text(layer.output_shape(shapes[layer.name]))
        others = sum(array.size for name, array in layer.parameters().items() if name not in network.weights)
        kind = type(layer).__name__
        if isinstance(layer, Conv2d | Linear):
            w = layer.weight
            operations = [steps * n for n in synapses(Network([layer], shapes[layer.name]))]
            rows.append([layer.name, f"{kind} {shape_text(w.shape)}", output, f"{w.nnz:,}", f"{w.size:,}",
                         f"{w.density:.4f}", f"{others:,}" if others else "", *(f"{n:,}" for n in operations),
                         executions(layer, samples // steps if static and layer is network.leaves[0] else samples)])
            counted = [w.nnz, w.size, others, *operations]
        else:
            rows.append([layer.name, kind, output, "", "", "", f"{others:,}" if others else "", "", "", ""])
            counted = [0, 0, others, 0, 0]
        total = [a + b for a, b in zip(total, counted, strict=True)]
    active, size, others, busy, dense = total
    rows.append(["total", "", "", f"{active:,}", f"{size:,}", f"{active / size:.4f}",
                 *(f"{n:,}" for n in (others, busy, dense)), ""])
    head = ["layer", "kind", "output", "active", "weights", "density", "bias, norm", "MACs active", "MACs dense",
            "executed"]
    return [*table(head, rows, left=(0, 1, 2, 9)),
            f"MACs: multiply-adds of one sample over {steps} steps if no input were 0; spikes make them fewer."]


def memory(state: State) -> list[str]:
    """Bytes of what a run holds between two steps."""
    need, parts = budget(state.network, state.config), list(holdings(state.network, state.config).items())
    rows = [[name, f"{size:,}"] for name, size in [*parts, ("total", sum(size for _, size in parts))]]
    return [*table(["memory between two steps", "bytes"], rows),
            f"A training step of {state.config.train.batch} samples: about {bytes_text(need.memory)} in all."]


def keys(config: Config) -> list[str]:
    """Every key with its value and its sentence; a star where the value is not that of the default configuration."""
    effective, default = schema.settings(complete(config)), schema.settings(complete(Config()))
    width = max(20, min(shutil.get_terminal_size((120, 24)).columns, 160) - 50)
    lines, section = ["keys: * is not the default; (…) follows from neuron.preset or neuron.surrogate"], ""
    for name, value in schema.settings(config).items():
        owner, _, leaf = name.rpartition(".")
        if owner != section:
            section = owner
            lines += ["", f"[{section}]"]
        shown = schema.literal(effective[name])
        shown = f"({shown})" if value is None else shown
        star = "*" if effective[name] != default[name] else " "
        first, *rest = textwrap.wrap(schema.KEYS[name].help, width)
        lines.append(f"{star} {leaf:<16} {shown:<28} {first}")
        lines += [f"{'':<48}{more}" for more in rest]
    return lines


# --------------------------------------------------------------------------------------------------- a run and its rows


def training(state: State, data: Dataset, backend: str, folder: Path) -> list[str]:
    """What is about to be trained, in a few lines."""
    config, network, need = state.config, state.network, budget(state.network, state.config)
    weights = network.weights
    active, size = (sum(getattr(w, part) for w in weights.values()) for part in ("nnz", "size"))
    layer_densities = ", ".join(f"{name.removesuffix('.weight')} {w.density:.3f}" for name, w in weights.items())
    batches = -(-len(data.train) // config.train.batch)
    return [
        f"data      {data.name}: {len(data.train):,} training and {len(data.test):,} {tested_on(config)} samples,"
        f" {data.classes} classes",
        f"network   {config.model.name}, T = {config.encode.steps}: {active:,} of {size:,} weights active,"
        f" density {active / size:.4f} ({layer_densities})",
        f"plan      {config.train.iterations} iterations of {config.train.epochs} epochs of {batches} batches;"
        f" preset {config.rewire.preset}, one ratio per {config.rewire.scope}" + (
            f"; no more than {config.train.max_steps:,} steps" if config.train.max_steps else ""),
        f"step      {need.active:,} parameters active of {need.all:,}; {need.macs / 1e6:,.1f} of "
        f"{need.dense / 1e6:,.1f} million multiply-adds a sample; about {need.memory / 2**30:.2f} GiB of memory",
        f"backend   {backend}, {config.dtype}, seed {config.seed}",
        f"folder    {folder}",
    ]


def iterations(metrics: Sequence[Row], structure: Sequence[Row]) -> list[str]:
    """A table of the iterations: their last epoch, and what was measured and done at their end."""
    last = {row["iteration"]: row for row in metrics}
    ends = {row["iteration"]: row for row in structure if row["layer"] == "all" and row["phase"] in ("end", "last")}
    rows = []
    for number, row in last.items():
        end = ends.get(number, {})
        rows.append([
            f"{number}", f"{row['epoch']}", f"{row['param_density']:.4f}", f"{100 * row['test_accuracy']:.2f} %",
            f"{row['test_loss']:.4f}", f"{row['sops']:,.0f}", _optional(end.get("pq_index"), ".4f"),
            _optional(end.get("ratio_active"), ".4f"), _optional(end.get("ratio_total"), ".4f"),
            _optional(end.get("pruned"), ","), _optional(end.get("regrown"), ","),
        ])
    where = next((row["evaluated_on"] for row in metrics), "test")
    head = ["iteration", "epoch", "density", f"{where} accuracy", "loss", "SOPs", "PQ index", "count/d", "count/N",
            "pruned", "regrown"]
    return table(head, rows, left=()) if rows else ["no epoch is complete yet"]


def run(folder: Path) -> list[str]:
    """A run: how far it is, a table of its iterations, its files."""
    config = runs.load_config(folder)
    found, attributes = safe_read.read(folder / "checkpoint.h5")
    if attributes.get("kind") != "checkpoint":
        raise UserError(f"{folder / 'checkpoint.h5'}: is a trace, not a checkpoint; give it to refsnn show as a file")
    files = [[name, f"{(folder / name).stat().st_size:,}"] for name in FILES if (folder / name).exists()]
    return [
        f"run {folder}: {config.model.name} on {config.data.name}, preset {config.rewire.preset},"
        f" scope {config.rewire.scope}, seed {config.seed}",
        *checkpoint(found, attributes),
        "",
        *table(["file", "bytes"], files),
        "",
        f"refsnn show {folder / 'config.toml'} lists its keys, refsnn show {folder / 'checkpoint.h5'} its records.",
    ]


def checkpoint(found: dict[str, Record], attributes: dict[str, Any]) -> list[str]:
    """How far a checkpoint is, its layers, and the table of its iterations."""
    try:
        config = configurations.loads(str(attributes["config"]), place="checkpoint")
        counters = dict(zip(runs.COUNTERS, (int(n) for n in found["progress/counters"].value), strict=True))
        tables = json.loads(found["tables"].value.tobytes())
        active = {name.split("/")[1].removesuffix(".weight"): record.value.size
                  for name, record in found.items() if name.startswith("weights/") and name.endswith("/data")}
        rows = iterations(tables["metrics"], tables["structure"])
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise UserError(f"checkpoint: damaged or incomplete ({error}); the tables beside it are plain text") from error
    total = config.train.iterations * config.train.epochs
    done = counters["iteration"] * config.train.epochs + counters["epoch"]
    state = "finished" if done >= total else f"iteration {counters['iteration'] + 1}, epoch {counters['epoch'] + 1}"
    return [
        f"progress  {done} of {total} epochs, {counters['step']:,} steps; {state}" + (
            f", {counters['batch']} batches into it" if counters["batch"] else ""),
        "active    " + f"{sum(active.values()):,} weights: " + ", ".join(f"{name} {n:,}" for name, n in active.items()),
        "",
        *rows,
    ]


def evaluation(state: State, result: Evaluation) -> list[str]:
    """What an evaluation measured: of the network, and of each layer."""
    config, network = state.config, state.network
    weights = network.weights.values()
    active, size = sum(w.nnz for w in weights), sum(w.size for w in weights)
    unrolled, places = synapses(network)
    stored = sum(8 * w.nnz + 4 * (w.rows + 1) for w in weights)
    part = f"the test set: {result.samples:,} samples"
    if config.data.validation > 0:
        part = f"the validation set: {result.samples:,} samples held out of the training set; the test set stays unseen"
    rows = [
        ("accuracy", f"{100 * result.accuracy:.2f} %", "largest mean logit over time"),
        ("loss", f"{result.loss:.4f}", config.train.loss),
        ("param density", f"{active / size:.4f}", f"{active:,} of {size:,} weights active"),
        ("synapse density", f"{unrolled / places:.4f}", f"{unrolled:,} of {places:,} unrolled connections"),
        ("SOPs", f"{result.sops:,.0f}", "per sample: additions, where a layer's input is 0 or 1"),
        ("MACs", f"{result.macs:,.0f}", "per sample: multiply-adds, over non-zero inputs of the other layers"),
        ("SOPs after first", f"{result.sops_all_but_first:,.0f}", "every layer but the first as SOPs, a usual count"),
        ("energy", f"{result.energy_pj / 1000:,.1f} nJ",
         f"per sample: {PICOJOULE_PER_SOP} pJ a SOP and {PICOJOULE_PER_MAC} pJ a MAC (45 nm)"),
        ("stored sparse", f"{stored:,} bytes", "simple count: CSR, float32 values, int32 columns and row starts"),
        ("stored dense", f"{4 * size:,} bytes", f"float32 at every place: {4 * size / stored:.2f} times as much"),
    ]
    lines = table(["", "", ""], rows, left=(0, 2))[2:]      # without a head
    return [f"evaluated on {part}", "", *lines, "", *_layer_operations(network, result)]


def _layer_operations(network: Network, result: Evaluation) -> list[str]:
    """A table of the sparse layers; the firing rate is that of the neurons they feed."""
    fed, rows = _fed(network.layers, None), []
    for layer in network.sparse_layers:
        w, counted = layer.weight, result.layers[layer.name]
        rate = result.firing_rates.get(fed[layer.name] or "")
        rows.append([layer.name, f"{w.nnz:,}", f"{w.size:,}", f"{w.density:.4f}",
                     f"{counted.operations / result.samples:,.0f}", "SOP" if counted.binary else "MAC",
                     _optional(rate, ".4f")])
    head = ["layer", "active", "weights", "density", "operations", "kind", "firing rate"]
    return [*table(head, rows, left=(0,)),
            "operations per sample; firing rate: spikes per neuron and time step of the neurons the layer feeds"]


def _fed(layers: Sequence[Layer], after: str | None) -> dict[str, str | None]:
    """The neurons that each sparse layer of a chain feeds, by its name; `after`: those that the chain itself feeds."""
    found: dict[str, str | None] = {}
    for layer in reversed(layers):
        if isinstance(layer, Residual):
            found |= _fed(layer.body, after) | _fed(layer.shortcut, after)
        elif isinstance(layer, Spiking):
            after = layer.name
        if isinstance(layer, Conv2d | Linear):
            found[layer.name] = after
        if isinstance(layer, Conv2d | Linear | Residual):
            after = None
    return found


def measured(rows: Sequence[Row], scope: str, every_unit: bool) -> list[str]:
    """A table of `measure.Report.rows`: a line an array, a line a neuron, or one for all."""
    one_neuron = scope == "neuron" and every_unit
    spread = scope == "neuron" and not every_unit
    forms = {"array": ("array", ""), "shape": ("row" if one_neuron else "shape", ""), "units": ("neurons", ","),
             "active": ("d", ","), "size": ("N", ","), "index": ("PQ index", ".4f"), "index_min": ("min", ".4f"),
             "index_max": ("max", ".4f"), "bound": ("bound r", ",.1f"), "count": ("count", ","),
             "ratio_active": ("count/d", ".4f"), "ratio_total": ("count/N", ".4f")}
    for name in () if spread else ("units", "index_min", "index_max"):
        del forms[name]
    cells = [[format(row[name], form) for name, (_, form) in forms.items()] for row in rows]
    unit = {"layer": "each array", "neuron": "each neuron (a row of its array)", "global": "all arrays together"}[scope]
    lines = [f"measured for {unit}", *table([title for title, _ in forms.values()], cells, left=(0, 1))]
    if scope != "global" and len(rows) > 1:
        lines.append("several units in one line: PQ index is their mean weighted by d, bound and count are sums")
    return lines


# ----------------------------------------------------------------------------------------------------- files of records


def records(path: Path) -> list[str]:
    """Anyone's file of records: attributes, for a checkpoint how far it is, every record, and which are not finite."""
    found, attributes = safe_read.read(path)
    lines = [f"{path}: {attributes['format']}, {len(found)} records, {bytes_text(path.stat().st_size)}"]
    for name, value in attributes.items():
        if name not in ("config", "format"):
            lines.append(f"{name:<14}{_attribute(value)}")
    if is_checkpoint := attributes.get("kind") == "checkpoint":
        lines += ["", *checkpoint(found, attributes)]
    rows = [[name, shape_text(r.value.shape), str(r.value.dtype), r.kind,
             *statistics(_numbers(r) if is_checkpoint else r.value)] for name, r in found.items()]
    head = ["record", "shape", "type", "kind", "min", "mean", "max", "non-zero"]
    lines += ["", *table(head, rows, left=(0, 1, 2, 3))]
    if bad := [name for name, record in found.items() if not np.isfinite(record.value).all()]:
        lines += ["", f"records with NaN or infinite numbers: {len(bad)}, first {bad[0]}"]
    return lines


def _attribute(value: Any) -> str:
    """An attribute of a file in one line; a JSON object, such as the versions, as a list."""
    try:
        listed = json.loads(value)
        text = ", ".join(f"{k} {v}" for k, v in listed.items())
    except (ValueError, TypeError, AttributeError, RecursionError):
        text = str(value)
    return textwrap.shorten(text, 200, placeholder=" ...")


def _numbers(record: Record) -> Array:
    """The numbers of a checkpoint's record: a packed mask bit by bit, and of the tables' text none."""
    if record.name == "tables":
        return np.zeros(0)
    packed = record.kind == "mask" and record.value.dtype == np.uint8
    return np.unpackbits(record.value) if packed else record.value
