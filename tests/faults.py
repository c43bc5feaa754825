"""Faults as others make them: each plants one mistake in a run of the program and gives the trace of it.

`GOLDENS` are small runs in float64 with all that a mistake can hide in: an exact tie at the threshold, equal
magnitudes at the cut, active weights that are exactly 0. A fault changes the configuration, the state before the
first step, or a function of the program (`patch`), never the file. Where its mistake is one of the program's
conventions it says which; the others are those that the program does not know.
"""

import functools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from conftest import data_of, first, tiny
from refsnn import config as configuration
from refsnn import layers, optim, pq, rewire
from refsnn import train as training
from refsnn.chain import Residual, chain_backward, chain_forward
from refsnn.datasets import Dataset
from refsnn.ops import conv, norm
from refsnn.ops.loss import LOSSES
from refsnn.ops.neuron import lif_backward
from refsnn.ops.surrogate import SURROGATES
from refsnn.schema import Config
from refsnn.trace import Record, Recorder
from refsnn.train import State, start, train

Records = dict[str, Record]
SAMPLES = 24        # in batches of 8: three steps an epoch


class StopAfter:
    """Stops a run after some steps."""

    def __init__(self, steps: int) -> None:
        self.steps, self.done = steps, False

    def on_step(self, state: State) -> None:
        self.done = state.step >= self.steps

    def on_epoch(self, state: State) -> None:
        pass

    def save(self, state: State) -> None:
        pass

    def should_stop(self) -> bool:
        return self.done


@functools.cache
def few(config: Config) -> Dataset:
    return first(data_of(config), SAMPLES, 8)


def record(config: Config, steps: int, prepare: Callable[[State], None] = lambda _: None) -> tuple[Config, Records]:
    """The configuration in full and the records of the first steps; those before the error where a step raises."""
    state, recorder = start(config, few(config)), Recorder()
    prepare(state)
    with suppress(ValueError, IndexError):
        train(state, few(config), StopAfter(steps), recorder)
    return state.config, {one.name: one for one in recorder.records}


# -------------------------------------------------------------------------------------------------------- golden runs


RESIDUAL = "4C3 6R 8Rs2 8R GAP FC12 FC VOTE2"       # the shortcut is a convolution in blocks 1 and 2, empty in block 3
PLAIN = "4C3/nonorm 4C1 MP2 6C3s2/nolif 6C3 AP2 FC12/nobias DP0.2 FC/nobias VOTE3"
COMMON = ("dtype=float64", "train.batch=8", "train.epochs=1", "train.iterations=4", "rewire.preset=literal")


@functools.cache
def golden_config(base: str) -> Config:
    """A golden run's configuration by name."""
    extra: dict[str, tuple[str, ...]] = {
        "adam": (), "neuron": ("rewire.scope=neuron",), "max": ("model.pool=max",), "dropout": ("model.dropout=0.3",),
        "adamw": ("optim.kind=adamw", "optim.weight_decay=0.1"), "sgd": ("optim.kind=sgd", "optim.weight_decay=0.1"),
        "sap": ("rewire.preset=sap",), "fresh": ("optim.fresh=true",), "global": ("rewire.scope=global",),
        "float32": ("dtype=float32", "rewire.grow=adam"), "steps": ("optim.regrown_step=global", "train.clip=0.05"),
        "residual": layers_of(RESIDUAL), "plain": layers_of(PLAIN),
        "block tie": (*layers_of(RESIDUAL), f"structure.start={norm_at_the_threshold()}"),
        "tie": (f"neuron.v_threshold={membrane_of_the_first_neuron()!r}",) if base == "tie" else (),
        "equal": ("optim.lr=0.0", f"structure.start={equal_weights()}") if base == "equal" else (),
    }
    return tiny(*COMMON, *extra[base])


def layers_of(chain: str) -> tuple[str, ...]:
    return "model.name=layers", f'model.layers="{chain}"', "neuron.v_threshold=0.5", "structure.density=0.8"


@functools.cache
def norm_at_the_threshold() -> str:
    """A file of a batch norm in a block, with a channel that is 0.5 everywhere: membranes that begin with a tie."""
    path = Path(tempfile.mkdtemp()) / "norm.npz"
    np.savez(path, **{"block1.norm1.gamma": np.array([0.0, 1, 1, 1, 1, 1]),
                      "block1.norm1.beta": np.array([0.5, 0, 0, 0, 0, 0])})
    return str(path)


@functools.cache
def membrane_of_the_first_neuron() -> float:
    """A membrane of the first step, which as a threshold makes an exact tie."""
    h = record(tiny(*COMMON), 1)[1]["step_0000/forward/lif1/h"].value
    return float(np.sort(h[0].reshape(-1))[-20])


@functools.cache
def equal_weights() -> str:
    """A file of weights rounded to a coarse grid: many are equal, some that are active are exactly 0."""
    network = start(tiny(*COMMON), few(tiny(*COMMON))).network
    given = {name: np.round(weight.dense() * 8) / 8 for name, weight in network.weights.items()}
    given |= {f"{name}.mask": weight.mask() for name, weight in network.weights.items()}
    path = Path(tempfile.mkdtemp()) / "start.npz"
    np.savez(path, **given)
    return str(path)


@functools.cache
def golden(base: str, steps: int = 5) -> tuple[dict[str, Any], Records]:
    """A golden trace: its attributes and records."""
    config, records = record(golden_config(base), steps)
    return {"config": configuration.dumps(config)}, records


# ------------------------------------------------------------------------------------------------------------- faults


@dataclass(frozen=True)
class Fault:
    """One mistake.

    where: the record at which it must be named, a pattern of the name without its step; convention: what it must be
    called, None where the program does not know it; base: the golden run; overrides, prepare, patch: the mistake.
    """

    where: str
    convention: str | None
    base: str = "adam"
    overrides: tuple[str, ...] = ()
    prepare: Callable[[State], None] = lambda _: None
    patch: tuple[Any, str, Callable[[Any], Any]] | None = None

    def records(self, steps: int = 5) -> Records:
        """OTHER's records."""
        config = golden_config(self.base)
        if self.overrides:
            config = configuration.loads(configuration.dumps(config), self.overrides)
        with self.planted():
            return record(config, steps, self.prepare)[1]

    @contextmanager
    def planted(self) -> Iterator[None]:
        """The program with the mistake in it."""
        if self.patch is None:
            yield
            return
        owner, name, wrap = self.patch
        if isinstance(owner, dict):
            with mock.patch.dict(owner, {name: wrap(owner[name])}):
                yield
        else:
            with mock.patch.object(owner, name, wrap(getattr(owner, name))):
                yield


def dense_convolution(change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, int]]) -> Any:
    """A convolution by dense weights; change(x, w) gives what is multiplied instead, and the padding."""
    def wrap(_: Any) -> Any:
        def forward(x, data, indices, indptr, bias, kernel_size, stride, padding, _="sparse"):    # noqa: ARG001
            w = np.zeros((indptr.size - 1, x.shape[0], *kernel_size))
            rows = np.repeat(np.arange(len(w)), np.diff(indptr))
            w.reshape(len(w), -1)[rows, indices] = data
            x, w, padding = change(x, w)
            return np.tensordot(w.reshape(len(w), -1), conv.patches(x, kernel_size, stride, padding), axes=1)
        return forward
    return wrap


def wrapped_pad(x: np.ndarray) -> np.ndarray:
    return np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0)), mode="wrap")


def norm_with(y: Callable[..., Any]) -> Any:
    """Batch norm whose output is y(x, gamma, beta, eps); statistics as they should be, unless y gives three."""
    def wrap(original: Any) -> Any:
        def forward(x, gamma, beta, eps):
            found = y(x, gamma, beta, eps)
            return found if isinstance(found, tuple) else (found, *original(x, gamma, beta, eps)[1:])
        return forward
    return wrap


def normalised(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, axes: tuple[int, ...], root: Any) -> np.ndarray:
    mean, var = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    column = (-1, *(1,) * (x.ndim - 1))
    return gamma.reshape(column) * (x - mean) / root(var, x.size / var.size) + beta.reshape(column)


def biased_running(original: Any) -> Any:
    def forward(self, x, training, rng, rec):
        if not training:
            return original(self, x, training, rng, rec)
        y, (x, mean, var, running) = original(self, x, training, rng, SilentRecorder())
        running = (running[0], (1 - self.momentum) * self.running_var + self.momentum * var)
        for part, value in zip(("mean", "var", "running_mean", "running_var"), (mean, var, *running), strict=True):
            rec.value(f"forward/{self.name}/{part}", value)
        rec.samples(f"forward/{self.name}/y", y)
        return y, (x, mean, var, running)
    return forward


class SilentRecorder(Recorder):
    """Keeps nothing."""

    def value(self, name: str, value: Any, kind: str = "real") -> None:
        pass


def set_norms(**values: float) -> Callable[[State], None]:
    def prepare(state: State) -> None:
        for layer in state.network.norms:
            for name, value in values.items():
                setattr(layer, name, value)
    return prepare


def summed(kind: str) -> Any:
    def wrap(original: Any) -> Any:
        def loss(logits, labels):
            value, gradient = original(logits, labels)
            _, steps, batch = logits.shape
            factor = {"batch": batch, "time": steps, "both": steps * batch}[kind]
            return value * factor, gradient * factor
        return loss
    return wrap


def softmax_then_mean(_: Any) -> Any:
    def loss(logits, labels):
        p = np.exp(logits) / np.exp(logits).sum(axis=0)
        picked = p[labels, :, np.arange(len(labels))]                           # (B, T)
        value = -np.log(picked.mean(axis=1)).mean()
        onehot = np.eye(len(p))[labels].T[:, np.newaxis]
        weight = (picked / picked.sum(axis=1, keepdims=True)).T                 # (T, B)
        return float(value), weight * (p - onehot) / len(labels)
    return loss


def smoothed_labels(original: Any) -> Any:
    def loss(logits, labels):
        parts = [original(logits, np.full_like(labels, k)) for k in range(len(logits))]
        value, gradient = original(logits, labels)
        return 0.9 * value + 0.1 * np.mean([v for v, _ in parts]), 0.9 * gradient + 0.1 * np.mean(
            [g for _, g in parts], axis=0)
    return loss


def adam(change: str) -> Any:
    """Adam written anew, with one thing different."""
    def wrap(_: Any) -> Any:
        def step(self, w, g, state, lr):
            c = self.config
            if c.kind == "adamw" and change != "coupled":
                w *= 1 - lr * c.weight_decay
            elif c.weight_decay:
                g = g + c.weight_decay * w
            m, v, n = state["first"], state["second"], state["steps"]
            beta2 = 0.99 if change == "beta2" else c.beta2
            n += 1
            m[:] = c.beta1 * m + (1 - c.beta1) * g
            v[:] = beta2 * v + (1 - beta2) * g * g
            one, two = (1.0, 1.0) if change == "uncorrected" else (1 - c.beta1**n, 1 - beta2**n)
            root = np.sqrt(v / two + c.eps) if change == "inside" else np.sqrt(v / two) + c.eps
            w -= lr * (m / one) / root
        return step
    return wrap


def sgd(change: str) -> Any:
    """SGD written anew, with one thing different."""
    def wrap(_: Any) -> Any:
        def step(self, w, g, state, lr):
            c, b = self.config, state["momentum"]
            g = g if change == "no decay" else g + c.weight_decay * w
            b[:] = c.momentum * b + (1 - c.momentum if change == "averaged" else 1) * g
            w -= lr * (g + c.momentum * b if change == "nesterov" else b)
        return step
    return wrap


def returning(what: str) -> Any:
    """Stage II after which connections that came straight back have their old moments, or their old value."""
    def wrap(original: Any) -> Any:
        def stage_two(state, *arguments, **keys):
            old = {name: {part: weight.scatter(moment) for part, moment in state.optimizer.state[name].items()}
                   | {"value": weight.dense()} for name, weight in state.network.weights.items()}
            result = original(state, *arguments, **keys)
            for name, weight in state.network.weights.items():
                if what == "value":
                    weight.data[:] = weight.gather(old[name]["value"])
                else:
                    for part, moment in state.optimizer.state[name].items():
                        moment[:] = weight.gather(old[name][part])
            return result
        return stage_two
    return wrap


def masked_memory(original: Any) -> Any:
    def remember(state, gradients):
        for name, weight in state.network.weights.items():
            if f"{name}.dense" in gradients:
                gradients[f"{name}.dense"] = gradients[f"{name}.dense"] * weight.mask().reshape(weight.rows, -1)
        original(state, gradients)
    return remember


def masked_gradient(original: Any) -> Any:
    def gradients(name, weight, active, dense, rec):
        mask = weight.mask().reshape(weight.rows, -1)
        return original(name, weight, active, None if dense is None else lambda: dense() * mask, rec)
    return gradients


def non_zeros(original: Any) -> Any:
    def measure(data, unit, units, **keys):
        return original(data[data != 0], unit[data != 0], units, **keys)
    return measure


def index_as(formula: Callable[[Any, Any, Any, float, float], Any]) -> Any:
    """The measurement with another eq. (2): formula(norm_p, norm_q, d, p, q)."""
    def wrap(original: Any) -> Any:
        def measure(data, unit, units, *, p, q, eta, gamma, beta, rounding):
            m = original(data, unit, units, p=p, q=q, eta=eta, gamma=gamma, beta=beta, rounding=rounding)
            index = formula(m.norm_p, m.norm_q, m.d, p, q)
            bound = pq.retained_bound(m.d, np.clip(index, 0, 1), p, q, eta)
            count = pq.rewiring_counts(m.d, bound, gamma, beta, rounding)
            return pq.Measurement(m.d, m.norm_p, m.norm_q, index, bound, count, count / np.maximum(m.d, 1))
        return measure
    return wrap


def swapped(original: Any) -> Any:
    def measure(data, unit, units, *, p, q, **keys):
        m = original(data, unit, units, p=p, q=q, **keys)
        index = 1 - m.d ** (1 / p - 1 / q) * m.norm_q / m.norm_p
        return pq.Measurement(m.d, m.norm_q, m.norm_p, index, m.bound, m.count, m.ratio)
    return measure


def counted(round_: Callable[[Any, Any], Any]) -> Any:
    """Eq. (4) rounded otherwise: round_(d, bound)."""
    def wrap(_: Any) -> Any:
        return lambda d, bound, gamma, beta, rounding: round_(d, bound).astype(np.int64)    # noqa: ARG005
    return wrap


def ties_together(_: Any) -> Any:
    def smallest(score, bounds, counts):
        chosen = np.zeros(score.size, dtype=bool)
        for u in np.flatnonzero(counts):
            part = slice(bounds[u], bounds[u + 1])
            chosen[part] = score[part] <= np.sort(score[part])[counts[u] - 1]
        return chosen
    return smallest


def batches_backwards(original: Any) -> Any:
    def named(seed: int, name: str, *keys: int) -> Any:
        if name != "shuffle":
            return original(seed, name, *keys)
        return SimpleNamespace(permutation=lambda n: original(seed, name, *keys).permutation(n).reshape(-1, 8)[
            :, ::-1].reshape(-1))
    return named


def other_seed(original: Any) -> Any:
    return lambda seed, name, *keys: original(seed + (name == "shuffle"), name, *keys)


def slope_with(surrogate: Callable[[np.ndarray], np.ndarray]) -> Any:
    def wrap(original: Any) -> Any:
        return SimpleNamespace(**vars(original) | {"derivative": lambda x, _: surrogate(x)})
    return wrap


def negated_bias(original: Any) -> Any:
    return lambda dy: -original(dy)


def detached(_: Any) -> Any:
    def backward(ds, h, s, slope, decay, gain, v_reset, reset_amount, reset, detach_reset):     # noqa: ARG001
        return lif_backward(ds, h, s, slope, decay, gain, v_reset, reset_amount, reset, True)
    return backward


def blocks(state: State) -> list[Residual]:
    return [layer for layer in state.network.layers if isinstance(layer, Residual)]


def spikes_joined(state: State) -> None:
    """SEW-ResNet: the neurons behind every join move to the end of the body, others to the end of the shortcut."""
    chain = state.network.layers
    for block in blocks(state):
        neurons = chain.pop([layer is block for layer in chain].index(True) + 1)
        block.body.append(neurons)
        if block.shortcut:
            block.shortcut.append(replace(neurons, name=f"{block.name}.shortcut_lif"))


def membrane_shortcut(number: int) -> Callable[[State], None]:
    """MS-ResNet: the neurons before a block move to the beginning of its body."""
    def prepare(state: State) -> None:
        chain, block = state.network.layers, blocks(state)[number - 1]
        block.body.insert(0, chain.pop([layer is block for layer in chain].index(True) - 1))
    return prepare


def late_stride(state: State) -> None:
    body = blocks(state)[1].body
    body[0].stride, body[3].stride = 1, 2


def another_stride(state: State) -> None:
    blocks(state)[2].body[0].stride = 2         # the join cannot be computed then: the step ends there


def bare_shortcuts(state: State) -> None:
    for block in blocks(state):
        del block.shortcut[1:]


def fires_at_the_threshold(state: State) -> None:
    lif = blocks(state)[0].body[2]
    lif.neuron = replace(lif.neuron, compare="ge")


def joined(combine: Callable[[Any, Any], Any]) -> Any:
    """The join of a block with combine(body, shortcut) for their sum."""
    def wrap(_: Any) -> Any:
        def forward(self, x, training, rng, rec):
            along, body = chain_forward(self.body, x, training, rng, rec)
            beside, shortcut = chain_forward(self.shortcut, x, training, rng, rec)
            y = combine(along, beside)
            rec.samples(f"forward/{self.name}/y", y)
            return y, (body, shortcut)
        return forward
    return wrap


def returned(combine: Callable[[Any, Any], Any]) -> Any:
    """The way back through a block with combine(body, shortcut) for the sum of the two gradients."""
    def wrap(_: Any) -> Any:
        def backward(self, dy, cache, rec, dense):
            beside, theirs = chain_backward(dy, cache[1], rec, dense)
            along, ours = chain_backward(dy, cache[0], rec, dense)
            dx = combine(along, beside)
            rec.samples(f"backward/{self.name}/dx", dx)
            return dx, ours | theirs
        return backward
    return wrap


def voted(count: Callable[[Any, int], Any]) -> Any:
    """Voting with count(units, size) for the mean of consecutive units."""
    def wrap(_: Any) -> Any:
        def forward(self, x, training, rng, rec):        # noqa: ARG001
            y = count(x, self.size)
            rec.samples(f"forward/{self.name}/y", y)
            return y, None
        return forward
    return wrap


def undivided(_: Any) -> Any:
    def backward(self, dy, cache, rec, dense):           # noqa: ARG001
        dx = np.repeat(dy, self.size, axis=0)
        rec.samples(f"backward/{self.name}/dx", dx)
        return dx, {}
    return backward


def without_bias(original: Any) -> Any:
    return lambda x, data, indices, indptr, _, *geometry: original(x, data, indices, indptr, None, *geometry)


HALF = "neuron.decay=0.6065306597126334"        # exp(-1/2): tau = 2

KNOWN: dict[str, Fault] = {
    "greater or equal": Fault("forward/lif1/s", ">= against >", "tie", ("neuron.compare=ge",)),
    "exact decay": Fault("forward/lif1/h", "decay exp(-1/tau), tau = 1/(1-decay)", overrides=(HALF,)),
    "factor as time constant": Fault("forward/lif1/h", "decay taken for a time constant",
                                     overrides=("neuron.decay=0.1353352832366127",)),
    "no leak": Fault("forward/lif1/h", "no decay", overrides=("neuron.decay=1.0",)),
    "input decay": Fault("forward/lif1/h", "input scaled by 1 - decay", overrides=("neuron.gain=0.5",)),
    "soft reset": Fault("forward/lif1/v", "soft reset", overrides=("neuron.reset=soft",)),
    "late soft reset": Fault("forward/lif1/v", "soft reset after the decay",
                             overrides=("neuron.reset=soft", "neuron.reset_amount=2.0")),
    "no reset": Fault("forward/lif1/v", "no reset", overrides=("neuron.reset=none",)),
    "detached reset": Fault("backward/lif3/dx", "detached reset", patch=(layers, "lif_backward", detached)),
    "wide surrogate": Fault("backward/lif3/slope", "surrogate twice as wide", overrides=("neuron.alpha=2.0",)),
    "other surrogate": Fault("backward/lif3/slope", "surrogate arctan",
                             overrides=("neuron.surrogate=arctan", "neuron.alpha=2.0")),
    "flipped kernel": Fault("forward/conv1/y", "flipped kernel", patch=(conv, "conv2d_forward", dense_convolution(
        lambda x, w: (x, w[:, :, ::-1, ::-1], 1)))),
    "transposed kernel": Fault("forward/conv1/y", "transposed kernel", patch=(conv, "conv2d_forward", dense_convolution(
        lambda x, w: (x, w.swapaxes(2, 3), 1)))),
    "no padding": Fault("forward/conv1/y", "no padding", patch=(conv, "conv2d_forward", dense_convolution(
        lambda x, w: (x, w, 0)))),
    "circular padding": Fault("forward/conv1/y", "padding by wrap", patch=(conv, "conv2d_forward", dense_convolution(
        lambda x, w: (wrapped_pad(x), w, 0)))),
    # the first batch norm is given an image's current once, and does not know of how many numbers
    "unbiased normalisation": Fault("forward/norm2/y", "unbiased variance in the normalisation", patch=(
        norm, "batch_norm_forward", norm_with(lambda x, g, b, eps: normalised(
            x, g, b, (1, 2, 3, 4), lambda var, n: np.sqrt(var * (n / (n - 1) if x.shape[3] > 1 else 1) + eps))))),
    "statistics per step": Fault("forward/norm2/y", "statistics per time step", patch=(
        norm, "batch_norm_forward", norm_with(lambda x, g, b, eps: normalised(
            x, g, b, (1, 2, 4), lambda var, _: np.sqrt(var + eps))))),
    "eps outside": Fault("forward/norm1/y", "eps outside the root", patch=(
        norm, "batch_norm_forward", norm_with(lambda x, g, b, eps: normalised(
            x, g, b, (1, 2, 3, 4), lambda var, _: np.sqrt(var) + eps)))),
    "other eps": Fault("forward/norm1/y", "eps 1e-3", prepare=set_norms(eps=1e-3)),
    "biased running variance": Fault("forward/norm1/running_var", "biased variance in the running statistics",
                                     patch=(layers.BatchNorm, "forward", biased_running)),
    "running momentum": Fault("forward/norm1/running_mean", "running momentum 0.9", prepare=set_norms(momentum=0.9)),
    "statistics not differentiated": Fault("backward/norm2/dx", "statistics taken for constants", patch=(
        norm, "batch_norm_backward", lambda original: lambda dy, x, mean, var, gamma, eps: (
            dy * (gamma / np.sqrt(var + eps)).reshape(-1, 1, 1, 1, 1),
            *original(dy, x, mean, var, gamma, eps)[1:]))),
    "max for average": Fault("forward/pool1/y", "max pooling", overrides=("model.pool=max",)),
    "average for max": Fault("forward/pool1/y", "average pooling", "max", ("model.pool=average",)),
    "mean before the loss": Fault("loss/value", "loss cross_entropy_mean",
                                  overrides=("train.loss=cross_entropy_mean",)),
    "softmax before the mean": Fault("loss/value", "softmax before the mean", patch=(LOSSES, "tet", softmax_then_mean)),
    "batch summed": Fault("loss/value", "sum over the batch", patch=(LOSSES, "tet", summed("batch"))),
    "time summed": Fault("loss/value", "sum over time", patch=(LOSSES, "tet", summed("time"))),
    "coupled decay": Fault("optim/conv1.weight/first", "coupled weight decay", "adamw",
                           patch=(optim.Optimizer, "_adam", adam("coupled"))),
    "eps in the root": Fault("optim/conv1.weight/after", "Adam eps inside the root",
                             patch=(optim.Optimizer, "_adam", adam("inside"))),
    "uncorrected Adam": Fault("optim/conv1.weight/after", "no bias correction",
                              patch=(optim.Optimizer, "_adam", adam("uncorrected"))),
    "averaged momentum": Fault("optim/conv1.weight/momentum", "momentum averaged", "sgd",
                               patch=(optim.Optimizer, "_sgd", sgd("averaged"))),
    "Nesterov": Fault("optim/conv1.weight/after", "Nesterov", "sgd", patch=(optim.Optimizer, "_sgd", sgd("nesterov"))),
    "no weight decay": Fault("optim/conv1.weight/momentum", "no weight decay", "sgd",
                             patch=(optim.Optimizer, "_sgd", sgd("no decay"))),
    "global steps": Fault("optim/conv1.weight/steps", "global step count", overrides=("optim.regrown_step=global",)),
    "kept moments": Fault("optim/[a-z0-9]+.weight/first", "moments of regrown weights kept",
                          patch=(training, "stage_two", returning("moments"))),
    "kept momentum": Fault("optim/[a-z0-9]+.weight/momentum", "moments of regrown weights kept", "sgd",
                           patch=(training, "stage_two", returning("moments"))),
    "kept value": Fault("params/[a-z0-9]+.weight/value", "returning weights keep their value",
                        patch=(training, "stage_two", returning("value"))),
    "rewound": Fault("params/[a-z0-9]+.weight/value", "rewinding", overrides=("rewire.rewind=true",)),
    "not rewound": Fault("params/[a-z0-9]+.weight/value", "rewinding", "sap", ("rewire.rewind=false",)),
    "fresh optimiser": Fault("optim/conv1.weight/first", "fresh optimiser", overrides=("optim.fresh=true",)),
    "masked memory": Fault("growth/[a-z0-9]+.weight/average", "growth memory masked",
                           patch=(training, "remember_gradients", masked_memory)),
    "masked gradient": Fault("backward/[a-z0-9]+/dweight_dense", "dense gradient masked",
                             patch=(layers, "_weight_gradients", masked_gradient)),
    "non-zeros counted": Fault("stage1/d", "d counts non-zeros", "equal", patch=(pq, "measure", non_zeros)),
    "p and q swapped": Fault("stage1/norm_p", "p and q swapped", patch=(pq, "measure", swapped)),
    "printed minus": Fault("stage1/index", "eq. (2) with a minus sign", patch=(pq, "measure", index_as(
        lambda a, b, d, p, q: 1 - d ** (1 / q - 1 / p) * a - b))),
    "exponent flipped": Fault("stage1/index", "eq. (2) with the exponent flipped", patch=(pq, "measure", index_as(
        lambda a, b, d, p, q: 1 - d ** (1 / p - 1 / q) * a / b))),
    "no eta": Fault("stage1/bound", "eta left out", overrides=("rewire.eta=0.0",)),
    "rounded up": Fault("stage1/count", "count rounded up", patch=(pq, "rewiring_counts", counted(
        lambda d, bound: np.ceil(d * np.minimum(1 - bound / np.maximum(d, 1), 0.9))))),
    "bound rounded down": Fault("stage1/count", "bound rounded down", patch=(pq, "rewiring_counts", counted(
        lambda d, bound: np.minimum(d - np.floor(bound), np.floor(0.9 * d))))),
    "neuron scope": Fault("stage1/d", "scope neuron", overrides=("rewire.scope=neuron",)),
    "layer scope": Fault("stage1/d", "scope layer", "neuron", ("rewire.scope=layer",)),
    "ties together": Fault("stage2/[a-z0-9]+.weight/pruned", "<= at the cut", "equal",
                           patch=(rewire, "_smallest", ties_together)),
    "signed pruning": Fault("stage2/conv1.weight/prune_score", "signed weights pruned",
                            patch=(rewire.PRUNE, "magnitude", lambda _: lambda data: data)),
    "no return": Fault("stage2/[a-z0-9]+.weight/grown", "just-pruned may not return",
                       overrides=("rewire.return_at_once=false",)),
    "growth by gradient": Fault("stage2/conv1.weight/grow_score", "growth by gradient",
                                overrides=("rewire.grow=gradient",)),
    "another order": Fault("rng/order", "another random order", patch=(training, "stream", batches_backwards)),
}

KNOWN_IN_NETWORKS: dict[str, Fault] = {
    "no shortcut": Fault("forward/block1/y", "no shortcut", "residual",
                         patch=(Residual, "forward", joined(lambda along, _: along))),
    "shortcut without its norm": Fault("forward/block1/y", "shortcut without batch norm", "residual",
                                       prepare=bare_shortcuts),
    "spikes joined": Fault("forward/block1/y", "SEW-ResNet ADD", "residual", prepare=spikes_joined),
    "and of spikes": Fault("forward/block1/y", "SEW-ResNet AND", "residual", prepare=spikes_joined,
                           patch=(Residual, "forward", joined(lambda along, beside: along * beside))),
    "and not of spikes": Fault("forward/block1/y", "SEW-ResNet IAND", "residual", prepare=spikes_joined,
                               patch=(Residual, "forward", joined(lambda along, beside: beside * (1 - along)))),
    "shortcut of currents": Fault("forward/block3/y", "membrane shortcut", "residual", prepare=membrane_shortcut(3)),
    "shortcut of currents, convolved": Fault("forward/block1.shortcut/y", "currents for spikes", "residual",
                                             prepare=membrane_shortcut(1)),
    "late stride": Fault("forward/block2.conv1/y", "stride 1", "residual", prepare=late_stride),
    "another stride": Fault("forward/block3.conv1/y", "stride 2", "residual", prepare=another_stride),
    "greater or equal in a block": Fault("forward/block1.lif1/s", ">= against >", "block tie",
                                         prepare=fires_at_the_threshold),
    "gradient by the body": Fault("backward/block3/dx", "gradient along the body only", "residual",
                                  patch=(Residual, "backward", returned(lambda along, _: along))),
    "gradient by the shortcut": Fault("backward/block3/dx", "gradient along the shortcut only", "residual",
                                      patch=(Residual, "backward", returned(lambda _, beside: beside))),
    "votes summed": Fault("forward/vote/y", "votes summed", "residual", patch=(layers.Vote, "forward", voted(
        lambda x, size: x.reshape(-1, size, *x.shape[1:]).sum(axis=1)))),
    "votes interleaved": Fault("forward/vote/y", "votes interleaved", "plain", patch=(layers.Vote, "forward", voted(
        lambda x, size: x.reshape(size, -1, *x.shape[1:]).mean(axis=0)))),
    "gradient of a vote undivided": Fault("backward/vote/dx", "votes summed", "plain",
                                          patch=(layers.Vote, "backward", undivided)),
    "no bias": Fault("forward/conv1/y", "no bias", "plain", patch=(conv, "conv2d_forward", without_bias)),
    "max for the second pool": Fault("forward/pool2/y", "max pooling", "plain",
                                     overrides=layers_of(PLAIN.replace("AP2", "MP2"))),
    "average for the first pool": Fault("forward/pool1/y", "average pooling", "plain",
                                        overrides=layers_of(PLAIN.replace("MP2", "AP2"))),
}

UNKNOWN: dict[str, Fault] = {
    "wrong decay": Fault("forward/lif1/h", None, overrides=("neuron.decay=0.45",)),
    "label smoothing": Fault("loss/(value|dlogits)", None, patch=(LOSSES, "tet", smoothed_labels)),
    "odd surrogate": Fault("backward/lif3/slope", None, patch=(SURROGATES, "triangle", slope_with(
        lambda x: 1 / np.cosh(x) ** 2 / 2))),
    "beta2 of 0.99": Fault("optim/conv1.weight/second", None, patch=(optim.Optimizer, "_adam", adam("beta2"))),
    "negated bias gradient": Fault("backward/fc2/dbias", None, patch=(layers.linear, "bias_gradient", negated_bias)),
    "constant learning rate": Fault("optim/lr", None, overrides=("optim.schedule=constant",)),
    "p of 0.6": Fault("stage1/norm_p", None, overrides=("rewire.p=0.6",)),
    "redrawn order": Fault("rng/order", None, patch=(training, "stream", other_seed)),
    "or of spikes": Fault("forward/block1/y", None, "residual", prepare=spikes_joined,
                          patch=(Residual, "forward", joined(np.maximum))),
    "shortcut subtracted": Fault("forward/block1/y", None, "residual",
                                 patch=(Residual, "forward", joined(lambda along, beside: along - beside))),
    "gradient by the shortcut halved": Fault("backward/block3/dx", None, "residual", patch=(
        Residual, "backward", returned(lambda along, beside: along + beside / 2))),
    "largest vote": Fault("forward/vote/y", None, "residual", patch=(layers.Vote, "forward", voted(
        lambda x, size: x.reshape(-1, size, *x.shape[1:]).max(axis=1)))),
    "clipped gradient": Fault("optim/conv1.weight/first", None, overrides=("train.clip=0.05",)),
}
