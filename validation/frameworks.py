"""What the checks against spiking frameworks share: inputs with exact ties, and refsnn's side of every comparison.

A framework's side (`peers/*_net.py`) takes and returns arrays with time first, (T, B, F) or (T, B, C, H, W), as all
frameworks have them; refsnn's has features first and samples last. The turn is made here and nowhere else.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from common import EXACT, GRADIENT, Table, Worst, relative, unequal

from refsnn.layers import AvgPool2d, BatchNorm, Conv2d, Flatten, Linear, Spiking
from refsnn.models import Network
from refsnn.ops.loss import LOSSES
from refsnn.ops.neuron import Neuron, lif_backward, lif_forward, lif_reset
from refsnn.ops.sparse import from_dense
from refsnn.ops.surrogate import SURROGATES
from refsnn.trace import NO_RECORD, Recorder

Array = npt.NDArray[Any]
Peer = Callable[[Array, Array, Array], tuple[Array, Array, Array]]  # x, weights of s, of membrane -> s, membrane, dx
STEPS, BATCH, NEURONS = 25, 4, 100                                  # 10,000 spikes a case


# ----------------------------------------------------------------------------------------------------------- neurons


def inputs(neuron: Neuron, dtype: str = "float64", spread: float = 0.9, ties: bool = True) -> Iterator[Array]:
    """Input currents (T, B, F): normal numbers, and multiples of 1/4 of the threshold, which meet it exactly.

    Both are divided by the gain, so that a neuron that scales its input fires as often as one that does not.
    """
    draw, shape = np.random.default_rng(11), (STEPS, BATCH, NEURONS)
    yield (draw.normal(0.5, spread, shape) * neuron.v_threshold / neuron.gain).astype(dtype)
    if ties:
        yield (draw.integers(-3, 7, shape) / 4 * neuron.v_threshold / neuron.gain).astype(dtype)


def weights_like(x: Array) -> tuple[Array, Array]:
    """Two random arrays: the loss of a neuron's check is sum(first * spikes) + sum(second * membrane)."""
    draw = np.random.default_rng(12)
    return draw.standard_normal(x.shape).astype(x.dtype), draw.standard_normal(x.shape).astype(x.dtype)


def refsnn_neuron(neuron: Neuron, x: Array, on_spikes: Array, on_membrane: Array, *, membrane: str, surrogate: str,
                  alpha: float) -> tuple[Array, Array, Array, Array]:
    """Run refsnn's neuron on (T, B, F): spikes, the membrane asked for ("h" or "v"), the input's gradient, and h."""
    n, turned = neuron, features_first(x)
    s, h = lif_forward(turned, n.decay, n.gain, n.bias, n.v_threshold, n.v_reset, n.reset_amount, n.v_init, n.reset,
                       n.compare, n.form)
    slope = SURROGATES[surrogate].derivative(h - h.dtype.type(n.v_threshold), alpha)
    reached = {"dh" if membrane == "h" else "dv": features_first(on_membrane)}
    dx = lif_backward(features_first(on_spikes), h, s, slope, n.decay, n.gain, n.v_reset, n.reset_amount, n.reset,
                      n.detach_reset, **reached)
    shown_membrane = h if membrane == "h" else lif_reset(h, s, n.v_reset, n.reset_amount, n.reset)
    return time_first(s), time_first(shown_membrane), time_first(dx), time_first(h)


def features_first(a: Array) -> Array:
    """(T, B, F...) -> (F..., T, B)."""
    return np.ascontiguousarray(np.moveaxis(a, (0, 1), (-2, -1)))


def time_first(a: Array) -> Array:
    """(F..., T, B) -> (T, B, F...)."""
    return np.ascontiguousarray(np.moveaxis(a, (-2, -1), (0, 1)))


@dataclass
class Neurons:
    """Rows of neurons: the table, and the exact ties met over all of them.

    Field, Meaning
      surrogate, alpha   refsnn's, for every row that names no other
      membrane           which membrane the framework returns: "h" before the reset, "v" after it
    """

    table: Table
    surrogate: str
    alpha: float
    membrane: str
    ties: int = 0
    wrong_ties: int = 0

    def row(self, what: str, neuron: Neuron, peer: Peer, xs: Iterable[Array] | None = None, *, bits: bool = True,
            gradient: float = GRADIENT, **other: Any) -> None:
        """Compare spikes, membranes and gradients of one setting.

        bits: whether the operations come in the same order, so that membranes must be equal bit for bit; otherwise
        1e-12. other: surrogate, alpha, membrane in place of the rows' own.
        """
        how = {"surrogate": self.surrogate, "alpha": self.alpha, "membrane": self.membrane} | other
        spikes, membranes, gradients = Worst(), Worst(), Worst()
        for x in inputs(neuron) if xs is None else xs:
            weights = weights_like(x)
            s, v, dx = peer(x, *weights)
            s_, v_, dx_, h = refsnn_neuron(neuron, x, *weights, **how)
            tie = h == x.dtype.type(neuron.v_threshold)
            self.ties += int(tie.sum())
            self.wrong_ties += unequal(s[tie], s_[tie])
            spikes.count(unequal(s, s_), s.size)
            if bits:
                membranes.count(unequal(v, v_), v.size)
            else:
                membranes.see(v_, v)
            gradients.see(dx_, dx)
        spikes.report(self.table, f"{what}: spikes", EXACT)
        if bits:
            membranes.report(self.table, f"{what}: membranes, bits", EXACT)
        else:
            membranes.report(self.table, f"{what}: membranes", GRADIENT)
        gradients.report(self.table, f"{what}: gradient", gradient)

    def report_ties(self) -> None:
        """One row: over all settings so far, the membranes that met the threshold exactly."""
        self.table.add("all of these: membranes exactly at the threshold", self.ties, self.wrong_ties,
                       EXACT)


def differing_spikes(neuron: Neuron, x: Array, spikes: Array) -> int:
    """How many spikes of a framework differ from refsnn's on the same input."""
    zero = np.zeros_like(x)
    return unequal(refsnn_neuron(neuron, x, zero, zero, membrane="h", surrogate="triangle", alpha=1.0)[0], spikes)


def shown(table: Table, what: str, holds: bool, cases: int = 1) -> None:
    """A row for something that others do differently: it holds where the difference is there, as the page says."""
    table.add(what, cases, 0 if holds else 1, EXACT)


# -------------------------------------------------------------------------------------------------------- surrogates


def surrogate_row(table: Table, what: str, name: str, alpha: float, peer: Callable[[Array], Array], *,
                  factor: float = 1.0, limit: float = GRADIENT) -> None:
    """Compare a framework's derivative with `factor` times refsnn's: on a grid with the kinks, and at random."""
    surrogate = SURROGATES[name]
    x = np.concatenate([np.arange(-384, 385) / 128, surrogate.kinks(alpha), np.random.default_rng(13).normal(size=500)])
    error = relative(factor * surrogate.derivative(x, alpha), peer(x))
    scaled = "" if factor == 1 else f"{factor:g} x "
    table.add(f"{what} = {scaled}{name}, alpha {alpha:g}", x.size, error, limit)


# ------------------------------------------------------------------------------------------------------------ losses


def loss_row(table: Table, what: str, name: str, peer: Callable[[Array, Array], tuple[float, Array]], *,
             logits_times: float = 1.0, times: float = 1.0, limit: float = GRADIENT) -> None:
    """Compare a framework's loss with `times` refsnn's of `logits_times` the logits: value and gradient.

    peer: logits (T, B, K) and labels (B,) -> the loss and its gradient by the logits.
    """
    draw = np.random.default_rng(18)
    logits, labels = draw.standard_normal((4, 6, 5)), draw.integers(0, 5, 6)
    value, gradient = LOSSES[name](logits_times * features_first(logits), labels)
    other, dlogits = peer(logits, labels)
    worst = Worst()
    worst.see(times * value, other)
    worst.see(times * logits_times * time_first(gradient), dlogits)
    worst.report(table, f"{what}: loss and gradient", limit)


# ------------------------------------------------------------------------------------------------------- whole nets


@dataclass
class Step:
    """What one training step of a small network computes: the same fields from refsnn and from a framework.

    Field, Shape
      spikes      [(T, B, C, H, W), ...]   of each spiking layer
      logits      (T, B, K)                of every step
      loss
      gradients   by name: conv1.weight, norm1.gamma, norm1.beta, ..., fc.weight, fc.bias; at every place, active or not
      statistics  by name: norm1.running_mean, ...: after the step
      evaluated   (T, B, K)                logits of the same input afterwards, batch norm with its running statistics
    """

    spikes: list[Array] = field(default_factory=list)
    logits: Array = field(default_factory=lambda: np.zeros(0))
    loss: float = 0.0
    gradients: dict[str, Array] = field(default_factory=dict)
    statistics: dict[str, Array] = field(default_factory=dict)
    evaluated: Array = field(default_factory=lambda: np.zeros(0))


Parameters = dict[str, Array]
PeerStep = Callable[[Parameters, Array, Array, str], Any]       # parameters, x, labels, loss -> an object like Step


def net_inputs() -> tuple[Parameters, Array, Array]:
    """Parameters of a net (2, 8, 8) -> conv 4 -> conv 6 -> 5 classes, half of the weights 0; frames; labels."""
    draw = np.random.default_rng(14)
    parameters: Parameters = {}
    for k, (filters, channels) in enumerate(((4, 2), (6, 4)), start=1):
        dense = draw.standard_normal((filters, channels, 3, 3)) / np.sqrt(4.5 * channels)
        parameters[f"conv{k}.weight"] = dense * (draw.random(dense.shape) < 0.5)
        parameters[f"norm{k}.gamma"] = draw.uniform(0.5, 1.5, filters)
        parameters[f"norm{k}.beta"] = draw.uniform(0.2, 0.8, filters)
    parameters["fc.weight"] = draw.standard_normal((5, 24)) * (draw.random((5, 24)) < 0.5)
    parameters["fc.bias"] = draw.standard_normal(5)
    return parameters, draw.standard_normal((5, 6, 2, 8, 8)), draw.integers(0, 5, 6)


def refsnn_step(neuron: Neuron, surrogate: str, alpha: float, parameters: Parameters, x: Array, labels: Array,
                loss: str) -> Step:
    """One training step of refsnn on sparse weights: what `train.train_step` does up to the gradients."""
    net = _network(neuron, surrogate, alpha, parameters)
    seen = Recorder()
    logits, caches = net.forward(features_first(x), True, _no_draw, seen)
    spikes = [record.value for record in seen.records if record.kind == "spikes"]
    value, dlogits = LOSSES[loss](logits, labels)
    found = net.backward(dlogits, caches, NO_RECORD, dense=True)
    net.commit(caches)
    gradients = {name: found.get(f"{name}.dense", found[name]).reshape(parameters[name].shape) for name in parameters}
    statistics = {f"{norm.name}.{part}": getattr(norm, part)
                  for norm in net.norms for part in ("running_mean", "running_var")}
    evaluated, _ = net.forward(features_first(x), False, _no_draw, NO_RECORD)
    return Step(spikes, time_first(logits), value, gradients, statistics, time_first(evaluated))


def _network(neuron: Neuron, surrogate: str, alpha: float, parameters: Parameters) -> Network:
    layers: list[Any] = []
    for k in (1, 2):
        weight = parameters[f"conv{k}.weight"]
        zeros, ones = np.zeros(len(weight)), np.ones(len(weight))
        layers += [
            Conv2d(f"conv{k}", from_dense(weight, weight != 0), padding=1),
            BatchNorm(f"norm{k}", parameters[f"norm{k}.gamma"].copy(), parameters[f"norm{k}.beta"].copy(), zeros, ones),
            Spiking(f"lif{k}", neuron, surrogate, alpha),
            AvgPool2d(f"pool{k}", 2),
        ]
    weight = parameters["fc.weight"]
    return Network([*layers, Flatten("flatten"), Linear("fc", from_dense(weight, weight != 0), parameters["fc.bias"])],
                   (2, 8, 8))


def _no_draw(name: str) -> np.random.Generator:
    raise ValueError(f"this network draws nothing, asked for {name}")


def net_rows(table: Table, what: str, neuron: Neuron, surrogate: str, alpha: float, peer: PeerStep) -> None:
    """Compare one training step of a whole net under both losses."""
    parameters, x, labels = net_inputs()
    spikes, forward, gradients, statistics = Worst(), Worst(), Worst(), Worst()
    for loss in ("cross_entropy_mean", "tet"):
        ours = refsnn_step(neuron, surrogate, alpha, parameters, x, labels, loss)
        theirs = peer(parameters, x, labels, loss)
        for mine, other in zip(ours.spikes, theirs.spikes, strict=True):
            spikes.count(unequal(mine, other), mine.size)
        for mine, other in ((ours.logits, theirs.logits), (ours.loss, theirs.loss), (ours.evaluated, theirs.evaluated)):
            forward.see(mine, other)
        for worst, mine, other in ((gradients, ours.gradients, theirs.gradients),
                                   (statistics, ours.statistics, theirs.statistics)):
            worst.count(len(mine.keys() ^ other.keys()), 0)
            for name in mine:
                worst.see(mine[name], other[name])
    spikes.report(table, f"{what}: spikes", EXACT)
    forward.report(table, f"{what}: logits, loss, evaluation", GRADIENT)
    gradients.report(table, f"{what}: parameter gradients", GRADIENT)
    statistics.report(table, f"{what}: running statistics", GRADIENT)
