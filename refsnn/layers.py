"""Layers: parameters, a forward and, beside it, its backward. No tape: what backward needs is what forward returns.

    forward(x, training, rng, rec)       -> (y, cache)
    backward(dy, cache, rec, dense)      -> (dx, gradients)

Layers hold parameters, never activations, and forward changes nothing: the running statistics that a training step
updates travel in the cache and are committed by the step, so that running a layer twice gives the same result twice.

    x, y       (C, H, W, T, B) maps or (F, T, B) vectors: features first, samples last; an image that does not change
               is `ops/static.py`'s, and the gradient that reaches its convolution may have one step, their sum
    rng        rng(name) gives the random stream of this step with that name (dropout draws from it)
    rec        where intermediates are recorded (`trace.Recorder`); `NO_RECORD` records nothing
    dense      True: sparse layers also return the gradient at *every* place, dL/d(M*W), which regrowth needs
    gradients  by parameter name: (nnz,) per active weight; with `dense` also "<name>.dense" (rows, columns)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from refsnn.ops import conv, linear, norm, pool
from refsnn.ops.neuron import Neuron, lif_backward, lif_forward, lif_reset
from refsnn.ops.sparse import SparseWeight
from refsnn.ops.static import is_static, one_step, static, sum_of_steps
from refsnn.ops.surrogate import SURROGATES

Array = npt.NDArray[Any]
Draw = Callable[[str], np.random.Generator]
Gradients = dict[str, Array]


class Records(Protocol):
    """What layers and steps ask of a recorder; `trace.Recorder` and `trace.NO_RECORD` fulfil it."""

    active: bool

    def begin_step(self, step: int) -> None:
        """What follows belongs to this optimiser step."""

    def samples(self, name: str, value: Array, kind: str = "real") -> None:
        """Record an activation (..., T, B)."""

    def value(self, name: str, value: Any, kind: str = "real") -> None:
        """Record anything else as it is."""


class Layer(Protocol):
    """The layer protocol of the module's docstring."""

    name: str

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one sample's output, without (T, B), from that of its input."""

    def parameters(self) -> dict[str, Array]:
        """The arrays that the optimiser updates in place, by name; a sparse weight's is its `data`."""

    def forward(self, x: Array, training: bool, rng: Draw, rec: Records) -> tuple[Array, Any]:
        """Return (y, cache)."""

    def backward(self, dy: Array, cache: Any, rec: Records, dense: bool) -> tuple[Array, Gradients]:
        """Return (dx, gradients)."""


class _Plain:
    """A layer without parameters that keeps the shape; what does not fit is overridden."""

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Unchanged."""
        return shape

    def parameters(self) -> dict[str, Array]:
        """None."""
        return {}


def _weight_gradients(name: str, weight: SparseWeight, active: Callable[[], Array], dense: Callable[[], Array] | None,
                      rec: Records) -> Gradients:
    """Gradient per active weight; when regrowth asks for the dense one, the active ones are read off it."""
    if dense is None:
        gradient = active()
        rec.value(f"backward/{name}/dweight", _dense_if(rec, weight, gradient))
        return {f"{name}.weight": gradient}
    full = dense()
    gradient = weight.gather(full)
    rec.value(f"backward/{name}/dweight", _dense_if(rec, weight, gradient))
    rec.value(f"backward/{name}/dweight_dense", full.reshape(weight.shape))
    return {f"{name}.weight": gradient, f"{name}.weight.dense": full}


def _dense_if(rec: Records, weight: SparseWeight, values: Array) -> Array:
    """Records leave the program dense; without a recorder nothing is built."""
    return weight.scatter(values) if rec.active else values


@dataclass
class Conv2d:
    """Sparse convolution.

        y[o, h, w] = b[o] + sum over the active (c, i, j) of W[o, c, i, j] x[c, s h + i - p, s w + j - p]

    The synaptic current (M*W) x of eq. (5). Weight (C_out, C_in, kH, kW), bias (C_out,) or None. `first`: nobody needs
    the gradient of its input, the data; it is computed only to be recorded. `execution`: "sparse", "dense", or "auto",
    whichever is faster at the weight's density (`executed`).
    """

    name: str
    weight: SparseWeight
    bias: Array | None = None
    stride: int = 1
    padding: int = 0
    first: bool = False
    execution: str = "auto"

    def executed(self, operation: conv.Timed, samples: int) -> conv.Execution:
        """How the kernel of one operation goes about its work with that many samples, T B.

        Inputs are taken for spikes, except the data: the choice must not depend on how a run happens to hold them.
        """
        w = self.weight
        shape = (w.rows, w.shape[1])
        faster = conv.prefer_dense(operation, w.density, shape, samples, self.stride, spikes=not self.first)
        return "dense" if self.execution == "dense" or (self.execution == "auto" and faster) else "sparse"

    @property
    def kernel_size(self) -> tuple[int, int]:
        """(kH, kW)."""
        return self.weight.shape[2], self.weight.shape[3]

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(C_in, H, W) -> (C_out, H_out, W_out); raises ValueError where the channels do not fit."""
        if shape[0] != self.weight.shape[1]:
            raise ValueError(f"{self.name}: takes {self.weight.shape[1]} channels, is given {shape[0]}")
        size = [(n + 2 * self.padding - k) // self.stride + 1 for n, k in zip(shape[1:], self.kernel_size, strict=True)]
        return (self.weight.rows, *size)

    def parameters(self) -> dict[str, Array]:
        """<name>.weight: data of the active weights; <name>.bias."""
        return _with_bias(self.name, self.weight, self.bias)

    def output(self, x: Array) -> Array:
        """Return y, of a static x only the step that stands for all."""
        w, x = self.weight, one_step(x) if self.first else x
        samples = x.shape[-2] * x.shape[-1] * (8 if x.ndim == 6 else 1)
        return conv.conv2d_forward(x, w.data, w.indices, w.indptr, self.bias, self.kernel_size, self.stride,
                                   self.padding, self.executed("forward", samples))

    def forward(self, x: Array, training: bool, rng: Draw, rec: Records) -> tuple[Array, Any]:
        """Return (y, x); spikes in bytes are packed for both passes of a training step."""
        if training and x.dtype == np.uint8 and self.packs(*x.shape[-2:]):
            packed, possible = conv.pack_input(x, self.padding)
            x = packed if possible else x
        y = self.output(x)
        y = static(y, x.shape[-2]) if self.first and is_static(x) else y
        rec.samples(f"forward/{self.name}/y", y)
        return y, x

    def packs(self, steps: int, batch: int) -> bool:
        """Whether spikes are packed for both passes: forward, dense execution wants them in bytes."""
        return self.stride == 1 and batch % 8 == 0 and self.executed("forward", steps * batch) == "sparse"

    def backward(self, dy: Array, cache: Any, rec: Records, dense: bool) -> tuple[Array, Gradients]:
        """Return (dx, gradients)."""
        x, w, geometry = cache, self.weight, (self.kernel_size, self.stride, self.padding)
        own, samples = dy, dy.shape[-2] * dy.shape[-1]
        if self.first and is_static(x):
            x, own = one_step(x), sum_of_steps(dy)
        gradients = _weight_gradients(
            self.name, w,
            lambda: conv.conv2d_weight_gradient(own, x, w.indices, w.indptr, *geometry,
                                                self.executed("weight gradient", own.shape[-2] * own.shape[-1])),
            (lambda: conv.conv2d_weight_gradient_dense(own, x, *geometry)) if dense else None,
            rec,
        )
        _add_bias_gradient(gradients, self.name, self.bias, own, rec)
        if self.first and not rec.active:
            return np.zeros_like(x[:0]), gradients
        dx = conv.conv2d_input_gradient(dy, w.data, w.indices, w.indptr,
                                        conv.input_size(x, self.padding), *geometry,
                                        self.executed("input gradient", samples))
        rec.samples(f"backward/{self.name}/dx", dx)
        return dx, gradients


@dataclass
class Linear:
    """Sparse linear layer: y[o] = b[o] + sum over the active c of W[o, c] x[c]. Weight (F_out, F_in)."""

    name: str
    weight: SparseWeight
    bias: Array | None = None

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(F_in,) -> (F_out,); raises ValueError where the features do not fit."""
        if shape != (self.weight.columns,):
            raise ValueError(f"{self.name}: takes {self.weight.columns} features, is given {shape}")
        return (self.weight.rows,)

    def parameters(self) -> dict[str, Array]:
        """<name>.weight: data of the active weights; <name>.bias."""
        return _with_bias(self.name, self.weight, self.bias)

    def forward(self, x: Array, training: bool, rng: Draw, rec: Records) -> tuple[Array, Any]:
        """Return (y, x)."""
        y = linear.linear_forward(x, self.weight.data, self.weight.indices, self.weight.indptr, self.bias)
        rec.samples(f"forward/{self.name}/y", y)
        return y, x

    def backward(self, dy: Array, cache: Any, rec: Records, dense: bool) -> tuple[Array, Gradients]:
        """Return (dx, gradients)."""
        x, w = cache, self.weight
        gradients = _weight_gradients(
            self.name, w,
            lambda: linear.linear_weight_gradient(dy, x, w.indices, w.indptr),
            (lambda: linear.linear_weight_gradient_dense(dy, x)) if dense else None,
            rec,
        )
        _add_bias_gradient(gradients, self.name, self.bias, dy, rec)
        dx = linear.linear_input_gradient(dy, w.data, w.indices, w.indptr, x.shape[0])
        rec.samples(f"backward/{self.name}/dx", dx)
        return dx, gradients


def _with_bias(name: str, weight: SparseWeight, bias: Array | None) -> dict[str, Array]:
    return {f"{name}.weight": weight.data} | ({} if bias is None else {f"{name}.bias": bias})


def _add_bias_gradient(gradients: Gradients, name: str, bias: Array | None, dy: Array, rec: Records) -> None:
    if bias is not None:
        gradients[f"{name}.bias"] = linear.bias_gradient(dy)
        rec.value(f"backward/{name}/dbias", gradients[f"{name}.bias"])


@dataclass
class BatchNorm(_Plain):
    """Batch normalisation over batch, time and space together: one mean and variance per feature.

    Training normalises by the batch's biased variance and moves the running statistics by `momentum` towards the
    batch's mean and *unbiased* variance; evaluation uses the running ones. gamma, beta and the statistics are (C,).
    """

    name: str
    gamma: Array
    beta: Array
    running_mean: Array
    running_var: Array
    eps: float = 1e-5
    momentum: float = 0.1

    def parameters(self) -> dict[str, Array]:
        """<name>.gamma and <name>.beta."""
        return {f"{self.name}.gamma": self.gamma, f"{self.name}.beta": self.beta}

    def forward(self, x: Array, training: bool, rng: Draw, rec: Records) -> tuple[Array, Any]:
        """Return (y, (x, mean, var, new running statistics)); the cache is None in evaluation."""
        steps, once = x.shape[-2], one_step(x)
        if not training:
            y = norm.batch_norm_inference(once, self.gamma, self.beta, self.running_mean, self.running_var, self.eps)
            y = static(y, steps) if is_static(x) else y
            rec.samples(f"forward/{self.name}/y", y)
            return y, None
        y, mean, var = norm.batch_norm_forward(once, self.gamma, self.beta, self.eps)
        y = static(y, steps) if is_static(x) else y
        running = self.moved(x, mean, var)
        for part, value in zip(("mean", "var", "running_mean", "running_var"), (mean, var, *running), strict=True):
            rec.value(f"forward/{self.name}/{part}", value)
        rec.samples(f"forward/{self.name}/y", y)
        return y, (x, mean, var, running)

    def moved(self, x: Array, mean: Array, var: Array) -> tuple[Array, Array]:
        """The running statistics after a batch x of this mean and variance."""
        n = math.prod(x.shape[1:])
        keep, unbiased = 1 - self.momentum, n / max(n - 1, 1)
        return (keep * self.running_mean + self.momentum * mean,
                keep * self.running_var + self.momentum * unbiased * var)

    def commit(self, cache: Any) -> None:
        """Take over the running statistics that a training step computed."""
        self.running_mean, self.running_var = cache[3]

    def backward(self, dy: Array, cache: Any, rec: Records, dense: bool) -> tuple[Array, Gradients]:
        """Return (dx, gradients); the statistics are differentiated through."""
        x, mean, var, _ = cache
        dx, dgamma, dbeta = norm.batch_norm_backward(dy, x, mean, var, self.gamma, self.eps)
        rec.value(f"backward/{self.name}/dgamma", dgamma)
        rec.value(f"backward/{self.name}/dbeta", dbeta)
        rec.samples(f"backward/{self.name}/dx", dx)
        return dx, {f"{self.name}.gamma": dgamma, f"{self.name}.beta": dbeta}


@dataclass
class Spiking(_Plain):
    """A layer of leaky integrate-and-fire neurons: eqs. (5)-(7) over all time steps, and backprop through time."""

    name: str
    neuron: Neuron
    surrogate: str
    alpha: float

    def forward(self, x: Array, training: bool, rng: Draw, rec: Records) -> tuple[Array, Any]:
        """Return (s, (h, s)): spikes, and the membrane before its reset."""
        n = self.neuron
        s, h = lif_forward(x, n.decay, n.gain, n.bias, n.v_threshold, n.v_reset, n.reset_amount, n.v_init,
                           n.reset, n.compare, n.form)
        if rec.active:
            rec.samples(f"forward/{self.name}/h", h)
            rec.samples(f"forward/{self.name}/s", s, "spikes")
            rec.samples(f"forward/{self.name}/v", lif_reset(h, s, n.v_reset, n.reset_amount, n.reset))
        return s, (h, s)

    def backward(self, dy: Array, cache: Any, rec: Records, dense: bool) -> tuple[Array, Gradients]:
        """Return (dx, {}): the surrogate's slope at h - v_threshold stands for the derivative of the spike."""
        n, (h, s) = self.neuron, cache
        slope = SURROGATES[self.surrogate].derivative(h - h.dtype.type(n.v_threshold), self.alpha)
        dx = lif_backward(dy, h, s, slope, n.decay, n.gain, n.v_reset, n.reset_amount, n.reset, n.detach_reset)
        rec.samples(f"backward/{self.name}/slope", slope)
        rec.samples(f"backward/{self.name}/dx", dx)
        return dx, {}


@dataclass
class AvgPool2d(_Plain):
    """Mean over windows of size x size, stride = size; incomplete windows at the border are dropped."""

    name: str
    size: int

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(C, H, W) -> (C, H // size, W // size)."""
        return shape[0], shape[1] // self.size, shape[2] // self.size

    def forward(self, x: Array, training: bool, rng: Draw, rec: Records) -> tuple[Array, Any]:
        """Return (y, (H, W))."""
        y = pool.avg_pool_forward(x, self.size)
        rec.samples(f"forward/{self.name}/y", y)
        return y, x.shape[1:3]

    def backward(self, dy: Array, cache: Any, rec: Records, dense: bool) -> tuple[Array, Gradients]:
        """Return (dx, {})."""
        dx = pool.avg_pool_backward(dy, self.size, cache)
        rec.samples(f"backward/{self.name}/dx", dx)
        return dx, {}


@dataclass
class MaxPool2d(_Plain):
    """Largest value of windows of size x size, stride = size; of equal ones the first in row-major order."""

    name: str
    size: int

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(C, H, W) -> (C, H // size, W // size)."""
        return shape[0], shape[1] // self.size, shape[2] // self.size

    def forward(self, x: Array, training: bool, rng: Draw, rec: Records) -> tuple[Array, Any]:
        """Return (y, (winner, (H, W)))."""
        y, winner = pool.max_pool_forward(x, self.size)
        rec.samples(f"forward/{self.name}/y", y)
        return y, (winner, x.shape[1:3])

    def backward(self, dy: Array, cache: Any, rec: Records, dense: bool) -> tuple[Array, Gradients]:
        """Return (dx, {}): the gradient goes to the winner of each window."""
        winner, input_size = cache
        dx = pool.max_pool_backward(dy, winner, self.size, input_size)
        rec.samples(f"backward/{self.name}/dx", dx)
        return dx, {}


@dataclass
class Flatten(_Plain):
    """(C, H, W, T, B) -> (C*H*W, T, B), in C order."""

    name: str

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(C, H, W) -> (C*H*W,)."""
        return (math.prod(shape),)

    def forward(self, x: Array, training: bool, rng: Draw, rec: Records) -> tuple[Array, Any]:
        """Return (y, shape of x)."""
        return x.reshape(-1, *x.shape[-2:]), x.shape

    def backward(self, dy: Array, cache: Any, rec: Records, dense: bool) -> tuple[Array, Gradients]:
        """Return (dx, {})."""
        return dy.reshape(cache), {}


@dataclass
class Dropout(_Plain):
    """In training a feature of a sample is silenced with probability p, at all time steps; the rest grow by 1/(1-p)."""

    name: str
    p: float

    def forward(self, x: Array, training: bool, rng: Draw, rec: Records) -> tuple[Array, Any]:
        """Return (y, scale): scale (..., 1, B) is 0 or 1/(1-p); None in evaluation, where nothing is dropped."""
        if not training:
            return x, None
        kept = rng(f"dropout/{self.name}").random((*x.shape[:-2], 1, x.shape[-1])) >= self.p
        scale = (kept / (1 - self.p)).astype(x.dtype)
        y = x * scale
        rec.samples(f"rng/dropout/{self.name}", kept, "rng")
        rec.samples(f"forward/{self.name}/scale", scale)
        rec.samples(f"forward/{self.name}/y", y)
        return y, scale

    def backward(self, dy: Array, cache: Any, rec: Records, dense: bool) -> tuple[Array, Gradients]:
        """Return (dx, {})."""
        dx = dy * cache
        rec.samples(f"backward/{self.name}/dx", dx)
        return dx, {}


@dataclass
class Vote(_Plain):
    """Average voting: the logit of a class is the mean of `size` consecutive units.  y[k] = mean of x[k size + j]."""

    name: str
    size: int

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(F,) -> (F // size,)."""
        return (shape[0] // self.size,)

    def forward(self, x: Array, training: bool, rng: Draw, rec: Records) -> tuple[Array, Any]:
        """Return (y, None)."""
        y = x.reshape(-1, self.size, *x.shape[1:]).mean(axis=1)
        rec.samples(f"forward/{self.name}/y", y)
        return y, None

    def backward(self, dy: Array, cache: Any, rec: Records, dense: bool) -> tuple[Array, Gradients]:
        """Return (dx, {}): dx[k size + j] = dy[k] / size."""
        dx = np.repeat(dy / dy.dtype.type(self.size), self.size, axis=0)
        rec.samples(f"backward/{self.name}/dx", dx)
        return dx, {}


LAYERS: dict[str, type] = {
    "conv2d": Conv2d, "linear": Linear, "batch_norm": BatchNorm, "spiking": Spiking,
    "avg_pool": AvgPool2d, "max_pool": MaxPool2d, "flatten": Flatten, "dropout": Dropout, "vote": Vote,
}
