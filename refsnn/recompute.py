"""A record recomputed from the records it follows from, by the program's rule or by another one.

Each rule below computes one record of a step (refsnn/traced.py) from the records that it follows from; which those are,
in a chain or in a residual block, says refsnn/wiring.py. Without further arguments it is the program's own rule, which
must give GOLDEN's record from GOLDEN's inputs (`compare` makes sure before it believes a rule); the keyword arguments
are the changes that make it somebody else's, and refsnn/conventions.py is the table of them. Rules of the method:
refsnn/recompute_method.py.

Records are (T, B, ...); inside, arrays are features first, samples last, as everywhere in this program. The rules are
written with dense weights and matrix products, apart from the sparse code that wrote GOLDEN.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn.chain import Residual
from refsnn.encode import ENCODERS
from refsnn.layers import AvgPool2d, BatchNorm, Conv2d, Dropout, Linear, MaxPool2d, Spiking, Vote
from refsnn.ops.conv import fold, patches
from refsnn.ops.loss import LOSSES
from refsnn.ops.neuron import lif_backward, lif_forward, lif_reset
from refsnn.ops.norm import batch_norm_backward
from refsnn.ops.pool import avg_pool_backward, avg_pool_forward, max_pool_backward, max_pool_forward
from refsnn.ops.surrogate import SURROGATES
from refsnn.plan import alpha_of, neuron_of
from refsnn.traced import Step, UnavailableError, features_first, samples_first

Array = npt.NDArray[Any]


# ------------------------------------------------------------------------------------------------------- the neuron


def neuron(step: Step, layer: str, part: str, branch: bool = False, **changes: Any) -> Array:
    """forward/<layer>/{h, s, v}: eqs. (5)-(7), each step from the recorded state of the step before.

    branch: neurons behind a join are driven by the body alone, as if they stood before it; changes: parameters of the
    neuron (ops/neuron.py) that differ.
    """
    n = vars(neuron_of(step.config)) | changes
    names = {one: f"forward/{layer}/{one}" for one in "hsv"}
    x = step.value(_ends(step, _block_before(step, layer))[0] if branch else step.wired(layer).input)
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


def _product(columns: Array, w: Array, bias: Array | None) -> Array:
    y = np.tensordot(w.reshape(len(w), -1), columns, axes=1)
    return y if bias is None else y + bias.reshape(-1, *(1,) * (y.ndim - 1))


def _columns(step: Step, layer: str, x: Array, padding: str = "zero", flatten: str = "CHW",
             stride: int | None = None) -> Array:
    """What a layer is given, as the columns that its weight matrix multiplies."""
    conv = step.wired(layer).layer
    if not isinstance(conv, Conv2d):
        x = np.moveaxis(x, 0, -3) if flatten == "HWC" and x.ndim == 5 else x
        return x.reshape(-1, *x.shape[-2:])
    width = conv.padding
    if padding in ("edge", "reflect", "wrap"):
        x = np.pad(x, ((0, 0), (width, width), (width, width), (0, 0), (0, 0)), mode=padding)   # type: ignore[call-overload]
    return patches(x, conv.kernel_size, stride or conv.stride, width if padding == "zero" else 0)


def product(step: Step, layer: str, part: str, flip: bool = False, swap: bool = False, bias: bool = True,
            padding: str = "zero", flatten: str = "CHW", stride: int | None = None, currents: bool = False) -> Array:
    """forward/<layer>/y of a convolution or linear map: W x + b.

    flip: the kernel turned by 180 degrees, a true convolution; swap: its two axes exchanged; bias False: left out;
    padding: "zero", "none", "edge", "reflect", "wrap"; flatten "HWC": a linear map's input laid flat channels last;
    stride: another one; currents: x is what drives the neurons whose spikes it should be.
    """
    w, b = _matrix(step, layer)
    if part != "y":
        raise UnavailableError(f"{part}: no record of a convolution or linear map")
    if (flip or swap or stride or padding != "zero") and w.ndim != 4:
        raise UnavailableError("no convolution")
    kernel = w[:, :, ::-1, ::-1] if flip else w.swapaxes(2, 3) if swap else w
    x = step.samples(_currents(step, step.wired(layer).input)) if currents else step.input(layer)
    return samples_first(_product(_columns(step, layer, x, padding, flatten, stride), kernel, b if bias else None))


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
        columns = _columns(step, layer, step.input(layer))
        axes = list(range(1, columns.ndim))
        dw = np.tensordot(dy, columns, axes=(axes, axes)).reshape(w.shape)
        return dw * step.value(f"params/{layer}.weight/mask") if part == "dweight" or masked else dw
    x = step.input(layer)
    kernel = w[:, :, ::-1, ::-1] if flip and w.ndim == 4 else w
    dcolumns = np.tensordot(kernel.reshape(len(w), -1).T, dy, axes=1)
    conv = step.wired(layer).layer
    if not isinstance(conv, Conv2d):
        return samples_first(dcolumns)
    return samples_first(fold(dcolumns, x.shape[:3], conv.kernel_size, conv.stride, conv.padding))


def pool(step: Step, layer: str, part: str, kind: str | None = None, share: str = "") -> Array:
    """forward/<layer>/y and backward/<layer>/dx of a pooling layer.

    kind: "average", "max" or "sum"; share "all": each of several equal maxima receives the whole gradient.
    """
    x, own = step.input(layer), step.wired(layer).layer
    size, kind = own.size, kind or ("max" if isinstance(own, MaxPool2d) else "average")
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
    scale = kept / (1 - step.wired(layer).layer.p) if rescaled else kept
    if part == "scale":
        return scale
    if step.given(f"forward/{layer}/scale"):
        scale = step.value(f"forward/{layer}/scale")
    return scale * samples_first(step.input(layer) if part == "y" else step.output_gradient(layer))


def vote(step: Step, layer: str, part: str, summed: bool = False, interleaved: bool = False) -> Array:
    """forward/<layer>/y and backward/<layer>/dx of voting: a class is the mean of consecutive units.

    summed: their sum; interleaved: of the units k, k + K, k + 2 K, ... for class k of K.
    """
    size, axis = step.wired(layer).layer.size, 0 if interleaved else 1
    share = 1 if summed else size
    if part == "dx":
        dy = step.output_gradient(layer) / share
        return samples_first(np.concatenate([dy] * size) if interleaved else np.repeat(dy, size, axis=0))
    x = step.input(layer)
    votes = x.reshape((size, -1, *x.shape[1:]) if interleaved else (-1, size, *x.shape[1:]))
    return samples_first(votes.sum(axis=axis) / share)


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


# ---------------------------------------------------------------------------------------------------- residual blocks


def _ends(step: Step, block: str) -> tuple[str, str]:
    """The records at the ends of body and shortcut of a block; an empty shortcut ends where it begins."""
    place = step.wired(block)
    shortcut = place.layer.shortcut
    return (step.wired(place.layer.body[-1].name).output,
            step.wired(shortcut[-1].name).output if shortcut else place.input)


def _block_before(step: Step, layer: str) -> str:
    """The block whose join a layer is given, or the block itself."""
    for place in (step.wired(layer), step.maker(step.wired(layer).input)):
        if place is not None and isinstance(place.layer, Residual):
            return place.layer.name
    raise UnavailableError(f"{layer} does not stand behind a join")


def _currents(step: Step, spikes: str) -> str:
    """The record of what drives the neurons whose spikes another record is."""
    place = step.maker(spikes)
    if place is None or not isinstance(place.layer, Spiking):
        raise UnavailableError(f"{spikes} is no record of spikes")
    return place.input


def join(step: Step, block: str, part: str, shortcut: str = "whole") -> Array:      # noqa: ARG001
    """forward/<block>/y: what arrives at the ends of body and shortcut, added.

    shortcut: "whole"; "none", left out; "no norm", without its batch norm; "currents", an empty one that starts before
    the neurons whose spikes the block is given.
    """
    along, beside = _ends(step, block)
    layers = step.wired(block).layer.shortcut
    if (shortcut == "no norm" and not layers) or (shortcut == "currents" and layers):
        raise UnavailableError("another kind of shortcut")
    if shortcut == "none":
        return step.value(along)
    if shortcut == "no norm":
        beside = step.wired(layers[0].name).output
    return step.value(along) + step.value(_currents(step, beside) if shortcut == "currents" else beside)


def sew(step: Step, layer: str, part: str, connect: str) -> Array:      # noqa: ARG001
    """forward/<block>/y, or s of the neurons behind it, where blocks join spikes: SEW-ResNet (Fang et al., 2021).

        ADD  x + s      AND  x s      IAND  x (1 - s)

    s: spikes of neurons at the end of the body; x: of others at the end of the shortcut, or what an empty one is given.
    """
    n, block = vars(neuron_of(step.config)), _block_before(step, layer)
    along, beside = (step.value(end) for end in _ends(step, block))
    s = _whole_run(along, n)[1]
    x = _whole_run(beside, n)[1] if step.wired(block).layer.shortcut else beside
    return {"ADD": x + s, "AND": x * s, "IAND": x * (1 - s)}[connect]


def join_backward(step: Step, block: str, part: str, way: str = "both") -> Array:       # noqa: ARG001
    """backward/<block>/dx: the gradients along both ways, added. way: "both", or "body" or "shortcut" alone."""
    place = step.wired(block)
    shortcut = place.layer.shortcut
    along = step.value(f"backward/{place.layer.body[0].name}/dx")
    beside = step.value(f"backward/{shortcut[0].name}/dx" if shortcut else place.arriving)
    return {"both": along + beside, "body": along, "shortcut": beside}[way]


# --------------------------------------------------------------------------------------------------------------- loss


def loss(step: Step, part: str, kind: str | None = None, scale: str = "", softmax_first: bool = False) -> Array:
    """loss/{value, dlogits}: eq. (8) on the read-out of the last layer.

    kind: another of LOSSES; scale: "batch", "time" or "both", a sum in place of that mean; softmax_first: the
    probabilities, not the logits, are averaged over time.
    """
    logits, labels = step.logits(), step.value("input/y")
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


# For each kind of layer the rules of its records, forwards and backwards; the program's own first.
RULES: dict[type, tuple[tuple[str, ...], tuple[str, ...]]] = {
    Spiking: (("neuron", "sew"), ("neuron_backward", "surrogate")),
    Conv2d: (("product",), ("product_backward",)), Linear: (("product",), ("product_backward",)),
    BatchNorm: (("norm",), ("norm_backward",)), Residual: (("join", "sew"), ("join_backward",)),
    AvgPool2d: (("pool",), ("pool",)), MaxPool2d: (("pool",), ("pool",)), Dropout: (("dropout",), ("dropout",)),
    Vote: (("vote",), ("vote",)),
}
