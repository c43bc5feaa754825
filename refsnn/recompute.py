"""A record recomputed from the records it follows from, by the program's rule or by another one.

`Step` reads the records of one step: OTHER's where OTHER has them, GOLDEN's elsewhere. Each rule below computes one
record from its inputs. Without further arguments it is the program's own rule, which must give GOLDEN's record from
GOLDEN's inputs (`compare` makes sure before it believes a rule); the keyword arguments are the changes that make it
somebody else's, and refsnn/conventions.py is the table of them. Rules of the method: refsnn/recompute_method.py.

Records are (T, B, ...); inside, arrays are features first, samples last, as everywhere in this program. The rules are
written with dense weights and matrix products, apart from the sparse code that wrote GOLDEN.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn.encode import ENCODERS
from refsnn.layers import BatchNorm
from refsnn.ops.conv import fold, output_size, patches
from refsnn.ops.loss import LOSSES
from refsnn.ops.neuron import lif_backward, lif_forward, lif_reset
from refsnn.ops.norm import batch_norm_backward
from refsnn.ops.pool import avg_pool_backward, avg_pool_forward, max_pool_backward, max_pool_forward
from refsnn.ops.surrogate import SURROGATES
from refsnn.plan import alpha_of, neuron_of
from refsnn.schema import Config
from refsnn.verdict import Tolerance

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
STEP = re.compile(r"(step_(\d+)/)?(.*)")


class UnavailableError(Exception):
    """A record cannot be recomputed: an input is missing, or this convention has nothing to say about it."""


@dataclass
class Step:
    """The records of one step, by their names without it.

    | Field | Meaning |
    |---|---|
    | golden, other | all arrays by full name; OTHER's are read where they have GOLDEN's shape |
    | prefix | "step_0003/" |
    | config | GOLDEN's configuration |
    | target | OTHER's array for the record that is being explained, None where GOLDEN is recomputed |
    | tolerance | what tells whether a stride and padding reproduce GOLDEN |
    """

    golden: Arrays
    other: Arrays
    prefix: str
    config: Config
    target: Array | None = None
    tolerance: Tolerance = field(default_factory=Tolerance)

    def has(self, name: str) -> bool:
        """Whether one of the two files holds the record."""
        return self.prefix + name in self.golden or self.prefix + name in self.other

    def given(self, name: str) -> bool:
        """Whether OTHER holds the record (in GOLDEN's shape, where GOLDEN has it)."""
        full = self.prefix + name
        return full in self.other and (full not in self.golden or self.other[full].shape == self.golden[full].shape)

    def value(self, name: str) -> Array:
        """The record; raises UnavailableError where neither file holds it."""
        full = self.prefix + name
        if self.given(name):
            return self.other[full]
        if full in self.golden:
            return self.golden[full]
        raise UnavailableError(f"{full} is in neither file")

    def samples(self, name: str) -> Array:
        """An activation, features first: (T, B, ...) as (..., T, B)."""
        return features_first(self.value(name))

    def before(self) -> "Step":
        """The step before this one; raises UnavailableError for the first of the file."""
        match = STEP.match(self.prefix)
        if match is None or match[2] is None or int(match[2]) == 0:
            raise UnavailableError("no step before this one")
        return Step(self.golden, self.other, f"step_{int(match[2]) - 1:0{len(match[2])}d}/", self.config)

    def first(self, name: str) -> Array:
        """A record of the first step of a run; raises UnavailableError where GOLDEN does not begin there."""
        full = f"step_{0:0{len(self.prefix) - 6}d}/{name}"
        if full not in self.golden:
            raise UnavailableError(f"{full} is not in GOLDEN")
        return self.golden[full]

    def names(self) -> Iterator[str]:
        """GOLDEN's records of this step, in execution order, without the step."""
        return (name.removeprefix(self.prefix) for name in self.golden if name.startswith(self.prefix))

    # ------------------------------------------------------------------------------------------- the chain of layers

    def layers(self) -> list[str]:
        """Names of the layers that recorded something in the forward pass, in order."""
        found = (name.split("/") for name in self.names())
        return list(dict.fromkeys(parts[1] for parts in found if parts[0] == "forward" and len(parts) == 3))

    def output(self, layer: str) -> str:
        """The record that a layer passes on."""
        return f"forward/{layer}/{'s' if self.has(f'forward/{layer}/s') else 'y'}"

    def input(self, layer: str) -> Array:
        """What a layer was given, features first."""
        layers = self.layers()
        k = layers.index(layer)
        return self.samples("encode/spikes" if k == 0 else self.output(layers[k - 1]))

    def output_gradient(self, layer: str) -> Array:
        """dL/d output of a layer, features first, in the shape of the output (a flattening undone)."""
        layers = self.layers()
        k = layers.index(layer)
        last = k == len(layers) - 1
        dy = self.samples("loss/dlogits" if last else f"backward/{layers[k + 1]}/dx")
        shape = self.samples(self.output(layer)).shape
        if dy.size != np.prod(shape):
            raise UnavailableError(f"the gradient of {layer} has another size than its output")
        return dy.reshape(shape)


def features_first(value: Array) -> Array:
    """(T, B, ...) as (..., T, B)."""
    if value.ndim < 2:
        raise UnavailableError("no activation")
    return np.moveaxis(value, (0, 1), (-2, -1))


def samples_first(value: Array) -> Array:
    """(..., T, B) as (T, B, ...), as records are."""
    return np.moveaxis(value, (-2, -1), (0, 1))


# ------------------------------------------------------------------------------------------------------- the neuron


def neuron(step: Step, layer: str, part: str, **changes: Any) -> Array:
    """forward/<layer>/{h, s, v}: eqs. (5)-(7), each step from the recorded state of the step before.

    changes: parameters of the neuron (ops/neuron.py) that differ.
    """
    n = vars(neuron_of(step.config)) | changes
    names = {one: f"forward/{layer}/{one}" for one in "hsv"}
    x = samples_first(step.input(layer))
    if part != "h" and not step.given(names["h"]):          # OTHER tells nothing of its membrane: run all steps
        h, s = _whole_run(x, n)
        return s if part == "s" else _resets(h, s, n)
    h = step.value(names["h"])
    if part == "s":
        return _fires(h, n)
    s = step.value(names["s"]) if step.given(names["s"]) else _fires(h, n)
    if part == "v":
        return _resets(h, s, n)
    v = step.value(names["v"]) if step.given(names["v"]) else _resets(h, s, n)
    v = np.concatenate([np.full_like(v[:1], n["v_init"]), v[:-1]])
    return n["decay"] * v + n["gain"] * x + n["bias"]


def _resets(h: Array, s: Array, n: dict[str, Any]) -> Array:
    return lif_reset(h, s.astype(h.dtype), n["v_reset"], n["reset_amount"], n["reset"])


def _fires(h: Array, n: dict[str, Any]) -> Array:
    return (h >= n["v_threshold"] if n["compare"] == "ge" else h > n["v_threshold"]).astype(h.dtype)


def _whole_run(x: Array, n: dict[str, Any]) -> tuple[Array, Array]:
    s, h = lif_forward.definition(
        features_first(x), n["decay"], n["gain"], n["bias"], n["v_threshold"], n["v_reset"], n["reset_amount"],
        n["v_init"], n["reset"], n["compare"], "affine")
    return samples_first(h), samples_first(s)


def surrogate(step: Step, layer: str, part: str, name: str | None = None, alpha: float | None = None,
              scale: float = 1.0, at: str = "h", **changes: Any) -> Array:
    """backward/<layer>/slope: the surrogate at h - v_threshold; backward/<layer>/dx where OTHER kept no slope.

    name: another surrogate, at its own alpha; alpha: another one, or scale times the configured; at "v": of the
    membrane after its reset, at "0": of the membrane without the threshold taken off.
    """
    keys = step.config.neuron
    shape = SURROGATES[name or keys.surrogate]
    if alpha is None:
        alpha = shape.alpha if name else scale * alpha_of(step.config)
    n = neuron_of(step.config)
    membrane = step.value(f"forward/{layer}/{'v' if at == 'v' else 'h'}")
    slope = shape.derivative.definition(membrane - (0 if at == "0" else membrane.dtype.type(n.v_threshold)), alpha)
    if part == "slope":
        return slope
    if step.given(f"backward/{layer}/slope"):
        raise UnavailableError("OTHER's slope is recorded, and was compared by itself")
    return neuron_backward(step, layer, part, slope=slope, **changes)


def neuron_backward(step: Step, layer: str, part: str, slope: Array | None = None, **changes: Any) -> Array:
    """backward/<layer>/dx: backprop through time. changes: parameters of the neuron that differ on the way back."""
    if part == "slope":
        return surrogate(step, layer, part)
    n = vars(neuron_of(step.config)) | changes
    slope = step.value(f"backward/{layer}/slope") if slope is None else slope
    dx = lif_backward.definition(
        step.output_gradient(layer), step.samples(f"forward/{layer}/h"), step.samples(f"forward/{layer}/s"),
        features_first(slope), n["decay"], n["gain"], n["v_reset"], n["reset_amount"], n["reset"], n["detach_reset"])
    return samples_first(dx)


# ------------------------------------------------------------------------------- convolution, linear map, pool, dropout


def _matrix(step: Step, layer: str) -> tuple[Array, Array | None]:
    """Weight as (O, I, kH, kW) or (O, I), and bias or None."""
    bias = f"params/{layer}.bias/value"
    return step.value(f"params/{layer}.weight/value"), step.value(bias) if step.has(bias) else None


def _geometry(step: Step, layer: str) -> tuple[int, int]:
    """(stride, padding) of a convolution: the smallest with which GOLDEN's weight and input give GOLDEN's output."""
    plain = Step(step.golden, step.golden, step.prefix, step.config)
    x, (w, bias), y = plain.input(layer), _matrix(plain, layer), plain.samples(f"forward/{layer}/y")
    kernel = (w.shape[2], w.shape[3])
    for stride in range(1, 1 + max(kernel[0], x.shape[1] // y.shape[1])):
        for padding in range(max(kernel)):
            if min(x.shape[1:3]) + 2 * padding < max(kernel):
                continue
            if output_size((x.shape[1], x.shape[2]), kernel, stride, padding) == y.shape[1:3] and step.tolerance.agree(
                    "real", _product(patches(x, kernel, stride, padding), w, bias), y):
                return stride, padding
    raise UnavailableError(f"no stride and padding lead from {layer}'s input to its output")


def _product(columns: Array, w: Array, bias: Array | None) -> Array:
    y = np.tensordot(w.reshape(len(w), -1), columns, axes=1)
    return y if bias is None else y + bias.reshape(-1, *(1,) * (y.ndim - 1))


def _columns(step: Step, layer: str, w: Array, padding: str = "zero", flatten: str = "CHW") -> Array:
    """The layer's input as the columns that its weight matrix multiplies."""
    x = step.input(layer)
    if w.ndim == 2:
        x = np.moveaxis(x, 0, -3) if flatten == "HWC" and x.ndim == 5 else x
        return x.reshape(-1, *x.shape[-2:])
    kernel = (w.shape[2], w.shape[3])
    stride, width = _geometry(step, layer)
    if padding in ("edge", "reflect", "wrap"):
        x = np.pad(x, ((0, 0), (width, width), (width, width), (0, 0), (0, 0)), mode=padding)   # type: ignore[call-overload]
    return patches(x, kernel, stride, width if padding == "zero" else 0)


def product(step: Step, layer: str, part: str, flip: bool = False, swap: bool = False, bias: bool = True,
            padding: str = "zero", flatten: str = "CHW") -> Array:
    """forward/<layer>/y of a convolution or linear map: W x + b.

    flip: the kernel turned by 180 degrees, a true convolution; swap: its two axes exchanged; bias False: left out;
    padding: "zero", "none", "edge", "reflect", "wrap"; flatten "HWC": a linear map's input laid flat channels last.
    """
    w, b = _matrix(step, layer)
    if part != "y":
        raise UnavailableError(f"{part}: no record of a convolution or linear map")
    if (flip or swap or padding != "zero") and w.ndim != 4:
        raise UnavailableError("no convolution")
    kernel = w[:, :, ::-1, ::-1] if flip else w.swapaxes(2, 3) if swap else w
    return samples_first(_product(_columns(step, layer, w, padding, flatten), kernel, b if bias else None))


def product_backward(step: Step, layer: str, part: str, masked: bool = False, flip: bool = False,
                     scale: str = "") -> Array:
    """backward/<layer>/{dweight, dweight_dense, dbias, dx}.

    masked: the dense gradient is 0 where no connection is; flip: dx from the kernel turned by 180 degrees;
    scale: "batch" or "time", divided by B or T once more.
    """
    w, _ = _matrix(step, layer)
    dy = step.output_gradient(layer)
    dy = dy / {"": 1, "batch": dy.shape[-1], "time": dy.shape[-2]}[scale]
    if part == "dbias":
        return dy.reshape(len(dy), -1).sum(axis=1)
    if part in ("dweight", "dweight_dense"):
        columns = _columns(step, layer, w)
        axes = list(range(1, columns.ndim))
        dw = np.tensordot(dy, columns, axes=(axes, axes)).reshape(w.shape)
        return dw * step.value(f"params/{layer}.weight/mask") if part == "dweight" or masked else dw
    x = step.input(layer)
    kernel = w[:, :, ::-1, ::-1] if flip and w.ndim == 4 else w
    dcolumns = np.tensordot(kernel.reshape(len(w), -1).T, dy, axes=1)
    if w.ndim == 2:
        return samples_first(dcolumns)
    return samples_first(fold(dcolumns, x.shape[:3], (w.shape[2], w.shape[3]), *_geometry(step, layer)))


def pool(step: Step, layer: str, part: str, kind: str | None = None, share: str = "") -> Array:
    """forward/<layer>/y and backward/<layer>/dx of a pooling layer.

    kind: "average", "max" or "sum"; share "all": each of several equal maxima receives the whole gradient.
    """
    x, y = step.input(layer), step.samples(step.output(layer))
    if x.ndim != 5 or y.ndim != 5:
        raise UnavailableError("no map")
    size, kind = x.shape[1] // y.shape[1], kind or step.config.model.pool
    largest, winner = max_pool_forward.definition(x, size)
    if part == "y":
        mean = avg_pool_forward.definition(x, size)
        return samples_first({"average": mean, "max": largest, "sum": mean * size**2}[kind])
    dy, area = step.output_gradient(layer), (x.shape[1], x.shape[2])
    if kind == "max" and share == "all":
        everywhere, maxima = (avg_pool_backward.definition(a, size, area) * size**2 for a in (dy, largest))
        return samples_first(everywhere * (x == maxima))
    if kind == "max":
        return samples_first(max_pool_backward.definition(dy, winner, size, area))
    return samples_first(avg_pool_backward.definition(dy, size, area) * (size**2 if kind == "sum" else 1))


def dropout(step: Step, layer: str, part: str, rescaled: bool = True) -> Array:
    """forward/<layer>/{scale, y} and backward/<layer>/dx of dropout. rescaled False: no factor 1 / (1 - p)."""
    kept = step.value(f"rng/dropout/{layer}").astype(step.value(f"forward/{layer}/scale").dtype)
    scale = kept / (1 - step.config.model.dropout) if rescaled else kept
    if part == "scale":
        return scale
    if step.given(f"forward/{layer}/scale"):
        scale = step.value(f"forward/{layer}/scale")
    return scale * samples_first(step.input(layer) if part == "y" else step.output_gradient(layer))


def encode(step: Step, part: str, first_only: bool = False) -> Array:   # noqa: ARG001
    """encode/spikes from the batch. first_only: the image is shown at the first step alone."""
    c = step.config
    spikes = samples_first(ENCODERS[c.encode.kind](step.value("input/x"), c.encode.steps, c.dtype))
    if first_only:
        spikes[1:] = 0
    return spikes


# --------------------------------------------------------------------------------------------------------- batch norm


def _statistics(x: Array, per_step: bool) -> tuple[Array, Array, int]:
    """Mean and biased variance (C, 1, ...) or, per step, (C, 1, ..., T, 1); how many values each is of."""
    axes = tuple(k for k in range(1, x.ndim) if not (per_step and k == x.ndim - 2))
    mean = x.mean(axis=axes, keepdims=True, dtype=np.float64)
    var = np.square(x - mean).mean(axis=axes, keepdims=True)
    return mean, var, int(np.prod([x.shape[k] for k in axes]))


def norm(step: Step, layer: str, part: str, var: str = "biased", running: str = "unbiased",
         momentum: float = BatchNorm.momentum, per_step: bool = False, frozen: bool = False,
         eps: float = BatchNorm.eps, eps_place: str = "inside") -> Array:
    """forward/<layer>/{mean, var, running_mean, running_var, y} of batch norm.

    var: the variance that normalises, running: the one in the running statistics, "biased" or "unbiased"; momentum:
    the share of the new; per_step: statistics of every time step by itself; frozen: y from the running statistics;
    eps_place "outside": added to the root.
    """
    x = step.input(layer)
    mean, biased, n = _statistics(x, per_step)
    unbiased = biased * n / max(n - 1, 1)
    used = unbiased if var == "unbiased" else biased
    if part in ("mean", "var"):
        found = mean if part == "mean" else used
        if not per_step:
            return found.reshape(-1)
        table = found.reshape(len(x), -1).T                             # (T, C)
        return table if step.target is not None and step.target.shape == table.shape else table[-1]
    if part.startswith("running"):
        new = (mean if part == "running_mean" else biased if running == "biased" else unbiased)
        moved = step.value(f"params/{layer}.{part}/value").astype(np.float64)
        for one in (new.reshape(len(x), -1).T if per_step else [new.reshape(-1)]):
            moved = (1 - momentum) * moved + momentum * one
        return moved
    column = (-1, *(1,) * (x.ndim - 1))
    if frozen:
        mean, used = (step.value(f"params/{layer}.running_{p}/value").reshape(column) for p in ("mean", "var"))
    gamma, beta = (step.value(f"params/{layer}.{p}/value").reshape(column) for p in ("gamma", "beta"))
    root = np.sqrt(used + eps) if eps_place == "inside" else np.sqrt(used) + eps
    return samples_first(gamma * (x - mean) / root + beta)


def norm_backward(step: Step, layer: str, part: str, constant: bool = False) -> Array:
    """backward/<layer>/{dgamma, dbeta, dx} of batch norm. constant: mean and variance are not differentiated."""
    x, dy, gamma = step.input(layer), step.output_gradient(layer), step.value(f"params/{layer}.gamma/value")
    mean, var = (s.reshape(-1) for s in _statistics(x, False)[:2])
    dx, dgamma, dbeta = batch_norm_backward.definition(dy, x, mean, var, gamma, BatchNorm.eps)
    if part != "dx":
        return {"dgamma": dgamma, "dbeta": dbeta}[part]
    if constant:
        dx = dy * (gamma / np.sqrt(var + BatchNorm.eps)).reshape(-1, *(1,) * (x.ndim - 1))
    return samples_first(dx)


# --------------------------------------------------------------------------------------------------------------- loss


def loss(step: Step, part: str, kind: str | None = None, scale: str = "", softmax_first: bool = False) -> Array:
    """loss/{value, dlogits}: eq. (8) on the read-out of the last layer.

    kind: another of LOSSES; scale: "batch", "time" or "both", a sum in place of that mean; softmax_first: the
    probabilities, not the logits, are averaged over time.
    """
    logits, labels = step.samples(step.output(step.layers()[-1])), step.value("input/y")
    try:
        value, gradient = LOSSES[kind or step.config.train.loss](logits, labels)
    except ValueError as error:
        raise UnavailableError(str(error)) from None
    if softmax_first:
        value, gradient = _log_of_mean_softmax(logits, labels)
    _, steps, batch = logits.shape
    factor = {"": 1, "batch": batch, "time": steps, "both": batch * steps}[scale]
    return np.asarray(value * factor) if part == "value" else samples_first(gradient * factor)


def _log_of_mean_softmax(logits: Array, labels: Array) -> tuple[float, Array]:
    """-1/B sum_b log(1/T sum_t softmax(O(t))_y), and its gradient."""
    p = np.exp(logits - logits.max(axis=0))
    p /= p.sum(axis=0)
    target = np.arange(len(p))[:, np.newaxis, np.newaxis] == labels             # (K, 1, B)
    right = (p * target).sum(axis=0)                                            # (T, B)
    mean = right.mean(axis=0)
    share = right / right.sum(axis=0)                                           # of each step in the mean
    return float(-np.log(mean).mean()), share * (p - target) / p.shape[-1]
