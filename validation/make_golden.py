"""The golden vectors in validation/golden/: small files of inputs and of what follows from them, in float64.

    python validation/make_golden.py            writes all five again, a few seconds

What is in them, record by record, and how another implementation uses them: validation/golden/README.md. A file is its
inputs (`input/`, `params/`, attributes) and its outputs, which one function computes from the inputs alone:
`tests/test_golden.py` calls it on what the file holds and compares. The definitions compute the vectors, not the
kernels. Every decision in them, a spike or a connection, is either an exact tie that is there on purpose or far from
its boundary: `require_decided` refuses vectors that the rounding of another machine could change.
"""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from refsnn import config as configuration
from refsnn import trace, tracing, twin
from refsnn.datasets import Dataset, load
from refsnn.layers import AvgPool2d, BatchNorm, Conv2d, Layer, Linear, MaxPool2d, Spiking
from refsnn.models import complete
from refsnn.ops.loss import LOSSES
from refsnn.ops.neuron import NEURONS, Neuron
from refsnn.ops.sparse import from_dense
from refsnn.schema import Config
from refsnn.trace import Record, Recorder
from refsnn.train import State, start, train

Array = npt.NDArray[Any]
Records = dict[str, Record]
Attributes = dict[str, Any]

FOLDER = Path(__file__).parent / "golden"
START = "start.npz"         # in a trace's config: the parameters of its first step, which the trace holds
TIED = 1 / 64               # |w| of fc1's connections to the silent filter
MARGIN = 1e-7               # how far a decision that is no tie must be from its boundary, relative to its scale


# ------------------------------------------------------------------------------------------------------- the layers


def as_given(records: Iterable[Record]) -> Records:
    """Records by name."""
    return {record.name: record for record in records}


def features_first(value: Array) -> Array:
    """(T, B, ...) of a record -> (..., T, B) of the program."""
    return np.ascontiguousarray(np.moveaxis(value, (0, 1), (-2, -1)))


def no_draw(name: str) -> np.random.Generator:
    """The random stream of a layer: none of these draws."""
    raise AssertionError(f"{name} was drawn")


def run_layer(layer: Layer, given: Records, rec: Recorder, training: bool = True) -> None:
    """Record a layer's forward pass on `input/<layer>/x`, and its backward pass on `input/<layer>/dy`."""
    y, cache = layer.forward(features_first(given[f"input/{layer.name}/x"].value), training, no_draw, rec)
    if training:
        dy = features_first(given[f"input/{layer.name}/dy"].value)
        assert dy.shape == y.shape
        layer.backward(dy, cache, rec, dense=True)


# -------------------------------------------------------------------------------------------------------- neurons.h5


def neuron_inputs() -> tuple[list[Record], Attributes]:
    """Currents and gradients for every preset: T = 6 steps, B = 2 samples, F = 6 neurons.

    Neuron 0 is exactly at the threshold at every step, 1 never fires, 2 always fires, 3 to 5 do both.
    """
    rng, rec, (steps, batch) = np.random.default_rng(0), Recorder(), (6, 2)
    for name, n in NEURONS.items():
        current = rng.uniform(-0.4, 1.6, (steps, batch, 6))
        current[..., 0] = 1.0 if n.compare == "ge" else 1.0 - n.decay     # ge fires and starts anew; gt stays at 1
        current[0, :, 0] = 1.0
        current[..., 1] = rng.uniform(-0.5, 0.01, (steps, batch))
        current[..., 2] = rng.uniform(2.5, 4.0, (steps, batch))
        rec.value(f"input/{name}/x", current / n.gain)
        rec.value(f"input/{name}/dy", rng.standard_normal(current.shape))
    presets = {name: asdict(neuron) for name, neuron in NEURONS.items()}
    return rec.records, {"neurons": json.dumps(presets), "surrogate": "triangle", "alpha": 1.0}


def neuron_outputs(given: Records, attributes: Attributes) -> Records:
    """h, s, v, the triangle's slope at h - v_threshold, and dx, for every preset."""
    rec = Recorder()
    for name, parameters in json.loads(attributes["neurons"]).items():
        run_layer(Spiking(name, Neuron(**parameters), attributes["surrogate"], float(attributes["alpha"])), given, rec)
    return as_given(rec.records)


# --------------------------------------------------------------------------------------------------------- layers.h5

LAYERS: dict[str, dict[str, Any]] = {
    "conv": {"kind": "conv2d", "stride": 1, "padding": 1},
    "conv_stride2": {"kind": "conv2d", "stride": 2, "padding": 1},
    "conv_valid": {"kind": "conv2d", "stride": 2, "padding": 0},
    "fc": {"kind": "linear"},
    "avg_pool": {"kind": "avg_pool", "size": 2},
    "max_pool": {"kind": "max_pool", "size": 2},
    "norm": {"kind": "batch_norm", "eps": 1e-5, "momentum": 0.1, "training": True},
    "norm_vector": {"kind": "batch_norm", "eps": 1e-5, "momentum": 0.1, "training": True},
    "norm_running": {"kind": "batch_norm", "eps": 1e-5, "momentum": 0.1, "training": False},
}
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    # layer: shape of x, shape of y, shape of the weight; T = 2, B = 3
    "conv": ((2, 3, 2, 5, 6), (2, 3, 4, 5, 6), (4, 2, 3, 3)),
    "conv_stride2": ((2, 3, 2, 6, 5), (2, 3, 4, 3, 3), (4, 2, 3, 3)),
    "conv_valid": ((2, 3, 2, 6, 7), (2, 3, 4, 3, 3), (4, 2, 2, 3)),
    "fc": ((2, 3, 7), (2, 3, 5), (5, 7)),
    "avg_pool": ((2, 3, 2, 5, 7), (2, 3, 2, 2, 3), ()),
    "max_pool": ((2, 3, 2, 5, 7), (2, 3, 2, 2, 3), ()),
    "norm": ((2, 3, 4, 3, 2), (2, 3, 4, 3, 2), ()),
    "norm_vector": ((2, 3, 4), (2, 3, 4), ()),
    "norm_running": ((2, 3, 4, 3, 2), (2, 3, 4, 3, 2), ()),
}


def layer_inputs() -> tuple[list[Record], Attributes]:
    """Inputs, gradients and parameters of every kind of layer; logits and labels of the losses."""
    rng, rec = np.random.default_rng(1), Recorder()
    for name, (x_shape, y_shape, weight) in SHAPES.items():
        x, training = rng.standard_normal(x_shape), LAYERS[name].get("training", True)
        if name == "max_pool":
            x = rng.integers(0, 2, x_shape).astype(np.float64)          # spikes: most windows are ties
        if name == "norm":
            x = x * [[[1e-3]], [[1.0]], [[1.0]], [[50.0]]] + [[[0.0]], [[1e3]], [[0.0]], [[-2.0]]]
            x[:, :, 2] = 0.25                                           # a channel that is constant
        rec.value(f"input/{name}/x", x)
        if training:
            rec.value(f"input/{name}/dy", rng.standard_normal(y_shape))
        if weight:
            mask = rng.random(weight) < 0.5
            mask[0], mask[1] = False, True                              # no connection at all; fully connected
            value = rng.standard_normal(weight) * mask
            value[1].reshape(-1)[0] = 0.0                               # active, and exactly 0
            rec.value(f"params/{name}.weight/value", value)
            rec.value(f"params/{name}.weight/mask", mask, "mask")
            rec.value(f"params/{name}.bias/value", rng.standard_normal(weight[0]))
        if LAYERS[name]["kind"] == "batch_norm":
            for part, low, high in (("gamma", -1.5, 1.5), ("beta", -1, 1), ("running_mean", -1, 1),
                                    ("running_var", 0.1, 2)):
                rec.value(f"params/{name}.{part}/value", rng.uniform(low, high, 4))
    logits = rng.standard_normal((4, 3, 5))
    logits[1, 0] = [900.0, -900.0, 899.0, 0.0, 1.0]                     # exp overflows where nothing is taken out
    logits[2, 1] = 0.5                                                  # all classes equal
    rec.value("input/logits", logits)
    rec.value("input/y", np.array([2, 0, 4]), "count")
    return rec.records, {"layers": json.dumps(LAYERS)}


def layer_of(name: str, spec: dict[str, Any], given: Records) -> Layer:
    """A layer from its parameters in a file."""
    def parameter(part: str) -> Array:
        return given[f"params/{name}.{part}/value"].value

    if spec["kind"] in ("conv2d", "linear"):
        weight = from_dense(parameter("weight"), given[f"params/{name}.weight/mask"].value.astype(bool))
        if spec["kind"] == "conv2d":
            return Conv2d(name, weight, parameter("bias"), spec["stride"], spec["padding"])
        return Linear(name, weight, parameter("bias"))
    if spec["kind"] == "batch_norm":
        parts = [parameter(part) for part in ("gamma", "beta", "running_mean", "running_var")]
        return BatchNorm(name, *parts, eps=spec["eps"], momentum=spec["momentum"])
    return (AvgPool2d if spec["kind"] == "avg_pool" else MaxPool2d)(name, spec["size"])


def layer_outputs(given: Records, attributes: Attributes) -> Records:
    """Forward and backward of every layer, value and gradient of every loss."""
    rec = Recorder()
    for name, spec in json.loads(attributes["layers"]).items():
        run_layer(layer_of(name, spec, given), given, rec, spec.get("training", True))
    logits, labels = features_first(given["input/logits"].value), given["input/y"].value
    for name, loss in LOSSES.items():
        value, dlogits = loss(logits, labels)
        rec.value(f"loss/{name}/value", value)
        rec.samples(f"loss/{name}/dlogits", dlogits)
    return as_given(rec.records)


# ----------------------------------------------------------------------------- step.h5, run_layer.h5, run_neuron.h5

STEP = ("dtype=float64", "model.channels=[2, 3]", "model.hidden=6", "train.batch=4", "model.dropout=0.25")
RUN = ("dtype=float64", "model.channels=[2, 3]", "model.hidden=6", "train.batch=8", "data.validation=0.985")


def drawn_start(config: Config) -> dict[str, Array]:
    """The parameters that a run of this configuration starts from, by the names of `structure.start`."""
    network = start(config, data_of(config)).network
    given = dict(network.parameters) | {name: weight.dense() for name, weight in network.weights.items()}
    return given | {f"{name}.mask": weight.mask() for name, weight in network.weights.items()}


def adversarial_start(config: Config) -> dict[str, Array]:
    """A start with a tie at the cut, a silent filter, a neuron without and one with all connections.

    Filter 2 of conv2 lies so far below the threshold that it never fires and that the surrogate is 0: what fc1 has on
    its four features keeps the value it starts with, +-1/64, while everything else learns. These are the weakest
    connections of their neurons, and there are more of them than the first prune takes: the cut falls among equals.
    """
    given = drawn_start(config)
    given["norm2.beta"] = np.array([0.0, 0.0, -20.0])
    weight, mask = given["fc1.weight"], given["fc1.weight.mask"]
    signs = np.where((np.arange(6)[:, None] + np.arange(4)) % 2, 1.0, -1.0)
    mask[:], weight[:] = True, np.where(mask, weight, 0.5 * np.cos(np.arange(72.0)).reshape(6, 12))
    weight[:, 8:] = TIED * signs
    mask[2, 3] = mask[3, 0] = mask[4, 5] = False
    mask[5] = False
    given["fc1.weight"] = weight * mask
    return given


def given_start(records: Records) -> dict[str, Array]:
    """The parameters before the first step, as a trace holds them, by the names of `structure.start`."""
    first = "step_0000/params/"
    return {
        name.removeprefix(first).removesuffix("/value").replace("/mask", ".mask"): record.value
        for name, record in records.items() if name.startswith(first)
    }


class StopAfter:
    """Watches a training (train.Watcher): stops it after a number of steps, saves nothing."""

    def __init__(self, steps: int) -> None:
        self.steps, self.done = steps, 0

    def on_step(self, state: State) -> None:
        """Count a step."""
        self.done = state.step

    def on_epoch(self, state: State) -> None:
        """Do nothing."""

    def save(self, state: State) -> None:
        """Do nothing."""

    def should_stop(self) -> bool:
        """Whether all steps are done."""
        return self.done >= self.steps


def traced(config: Config, given: dict[str, Array], steps: int) -> Records:
    """All records of the first `steps` steps, as `refsnn trace` writes them, from given parameters."""
    rec, data = Recorder(), data_of(config)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        np.savez(START, **given)
        state = start(config, data)
    train(state, data, StopAfter(steps), rec)
    return as_given(rec.records)


def data_of(config: Config) -> Dataset:
    """The data set of a configuration."""
    return load(config)


def trace_outputs(given: Records, attributes: Attributes) -> Records:
    """The trace of a file's configuration from the parameters of its first step: all records that it may hold."""
    return traced(configuration.loads(attributes["config"]), given_start(given), int(attributes["steps"]))


def run_config(overrides: tuple[str, ...]) -> Config:
    """The configuration of a trace, every key written out; it starts from a file of given parameters."""
    config = configuration.load("tiny", overrides)
    return complete(replace(config, structure=replace(config.structure, start=START)))


def trace_file(overrides: tuple[str, ...], first: Callable[[Config], dict[str, Array]],
               steps: int | None) -> tuple[Records, Attributes]:
    """A whole trace from a start, and the attributes of its file: nothing of the clock or of the machine."""
    config = run_config(overrides)
    given = first(configuration.load("tiny", overrides))
    if steps is None:
        steps = tracing.total_steps(config, len(data_of(config).train))
    attributes = {"kind": "trace", "steps": steps, "seed": config.seed, "dtype": config.dtype,
                  "config": configuration.dumps(config), "config_hash": configuration.config_hash(config)}
    return traced(config, given, steps), attributes


def deciding(records: Records) -> list[Record]:
    """Of a whole run's records those that decide.

    Of every step the batch and the loss; of the first the parameters; of each step that a rewire follows the masks; all
    of the measurements and rewires; of the last step the parameters and running statistics after it.
    """
    step = {name: name.split("/", 1)[0] for name in records}
    first, last = min(step.values()), max(step.values())
    rewired = {step[name] for name in records if "/stage2/" in name}

    def keep(name: str) -> bool:
        part = name.split("/", 1)[1]
        return (part in ("rng/order", "input/x", "input/y", "loss/value") or part.startswith(("stage1/", "stage2/"))
                or (step[name] == first and part.startswith("params/"))
                or (step[name] in rewired | {last} and part.endswith("/mask"))
                or (step[name] == last and (part.endswith("/after") or "/running_" in part)))

    return [record for name, record in records.items() if keep(name)]


# ------------------------------------------------------------------------------------- decisions that rounding spares


def require_decided(records: Records, tied: Callable[[str], Array | bool] = lambda _: False) -> None:
    """Raise ValueError where a membrane lies within MARGIN of the threshold 1 without being meant to; tied(name): where
    it is meant to lie on it, and has to."""
    for name, record in records.items():
        if "forward/" in name and name.endswith("/h"):
            meant = np.broadcast_to(tied(name), record.value.shape)
            near = np.abs(record.value - 1.0) <= MARGIN
            if np.any(record.value[meant] != 1.0) or np.any(near & ~meant):
                raise ValueError(f"{name}: a membrane is near the threshold, or not on it where it should be")


def require_decided_rewires(records: Records, scope: str) -> None:
    """Raise ValueError where a count or a cut is a matter of rounding: ties are of scores that no rounding touched."""
    for name, record in records.items():
        if name.endswith("stage1/bound"):
            off = np.abs(record.value - np.round(record.value))
            if np.any((off <= MARGIN) & (record.value > 0)):
                raise ValueError(f"{name}: a bound is an integer but for rounding")
        if not name.endswith("_score"):
            continue
        step, _, weight, part = name.split("/")
        before = records[f"{step}/params/{weight}/mask"].value
        pruned, grown = (records[f"{step}/stage2/{weight}/{w}"].value for w in ("pruned", "grown"))
        left = before.copy()
        left.reshape(-1)[pruned] = False
        prunes = part == "prune_score"
        competing, taken = (before, pruned) if prunes else (~left, grown)
        for row in range(len(before)) if scope == "neuron" else [slice(None)]:
            gap, edge = cut(record.value, competing, taken, row, prunes)
            if gap <= MARGIN * np.abs(record.value).max() and not (gap == 0 and edge in (0.0, TIED)):
                raise ValueError(f"{name}: the cut at {edge} is a matter of rounding")


def cut(score: Array, competing: Array, taken: Array, row: Any, smallest: bool) -> tuple[float, float]:
    """Distance between the last score taken in a unit and the next, and the last; infinite where there is no choice."""
    chosen = np.zeros(score.shape, bool)
    chosen.reshape(-1)[taken] = True
    inside, outside = (score[row][(competing & one)[row]] for one in (chosen, ~chosen))
    if not inside.size or not outside.size:
        return np.inf, np.nan
    edge, following = (inside.max(), outside.min()) if smallest else (inside.min(), outside.max())
    return float(abs(following - edge)), float(edge)


# ------------------------------------------------------------------------------------------------------------- files

OUTPUTS: dict[str, Callable[[Records, Attributes], Records]] = {
    "neurons": neuron_outputs, "layers": layer_outputs, "step": trace_outputs, "run_layer": trace_outputs,
    "run_neuron": trace_outputs,
}


def vectors(name: str) -> tuple[list[Record], Attributes]:
    """The records and attributes of one file, computed by the definitions."""
    with twin.backend("numpy"):
        if name in ("neurons", "layers"):
            inputs, extra = neuron_inputs() if name == "neurons" else layer_inputs()
            attributes = {"kind": "golden", "dtype": "float64", **extra}
            outputs = OUTPUTS[name](as_given(inputs), attributes)
            require_decided(outputs, lambda _: np.arange(6) == 0)
            return [*inputs, *outputs.values()], attributes
        if name == "step":
            records, attributes = trace_file(STEP, drawn_start, 1)
            require_decided(records)
            return list(records.values()), attributes
        scope = name.removeprefix("run_")
        records, attributes = trace_file((*RUN, f"rewire.scope={scope}"), adversarial_start, None)
        require_decided(records)
        require_decided_rewires(records, scope)
        return deciding(records), attributes


def write(path: Path, records: list[Record], attributes: Attributes) -> None:
    """Write a file of records with HDF5's compact groups: most records are so small that the plain ones of
    `trace.write` would double the files, and compression, which is by chunks, make them larger still."""
    with h5py.File(path, "w", libver=("v108", "v108")) as file:
        for key, value in {"format": trace.FORMAT, **attributes}.items():
            file.attrs[key] = value
        for k, record in enumerate(records):
            dataset = file.create_dataset(record.name, data=record.value, track_times=False)
            dataset.attrs["seq"], dataset.attrs["kind"] = k, record.kind


def main(folder: Path = FOLDER) -> None:
    """Write all files and print their sizes."""
    for name in OUTPUTS:
        records, attributes = vectors(name)
        path = folder / f"{name}.h5"
        write(path, records, attributes)
        print(f"{path.name:<16} {len(records):>5} records {path.stat().st_size:>9,} bytes")


if __name__ == "__main__":
    main()
