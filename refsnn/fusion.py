"""Neighbours in a chain that run as one: batch norm, neurons, and a pool behind them (`ops/fused.py`).

A chain of layers is what people read, and what a recorded run executes, layer by layer. Where nothing is recorded and
kernels run, `grouped` puts a `Group` in the place of such neighbours: neurons, with the batch norm before them and, in
training, the pool behind them, where there is one. It computes the same bits, passes spikes on as bytes where
the next layer takes them, and keeps only its input, from which backward computes the rest again. What it keeps is a
cache for each layer that it stands for: batch norm's as always, a neuron's with x, or nothing, where it has (h, s)
otherwise, and a pool's with who won.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn import twin
from refsnn.layers import (
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Draw,
    Flatten,
    Gradients,
    Layer,
    Linear,
    MaxPool2d,
    Records,
    Spiking,
)
from refsnn.ops import fused
from refsnn.ops.static import is_static, one_step

Array = npt.NDArray[Any]

_forward: Callable[..., Any] = fused.norm_lif_forward       # with arguments from a tuple, which types cannot follow
_inference: Callable[..., Any] = fused.norm_lif_inference
_backward: Callable[..., Any] = fused.norm_lif_backward
_pool_forward: Callable[..., Any] = fused.norm_lif_pool_forward
_pool_backward: Callable[..., Any] = fused.norm_lif_pool_backward
_neuron = attrgetter("decay", "gain", "bias", "v_threshold", "v_reset", "reset_amount", "v_init", "reset", "compare",
                     "form")


@dataclass
class Group:
    """Batch norm, or None, neurons, and a pool, or None; `compact`: their spikes are bytes."""

    norm: BatchNorm | None
    neurons: Spiking
    compact: bool
    pool: AvgPool2d | MaxPool2d | None = None

    @property
    def layers(self) -> list[Layer]:
        """Those that it stands for."""
        return [layer for layer in (self.norm, self.neurons, self.pool) if layer is not None]

    def _pooling(self) -> tuple[int, fused.Pooling]:
        return (self.pool.size if self.pool else 1), "max" if isinstance(self.pool, MaxPool2d) else "average"

    def forward(self, x: Array, training: bool, rng: Draw, rec: Records) -> tuple[Array, list[Any]]:
        """Return s, pooled or not, and the caches of the layers.

        In evaluation, where nothing is pooled, that of the neurons has s, (None, s), to be counted.
        """
        norm, neuron = self.norm, _neuron(self.neurons.neuron)
        spikes, current, shown = np.empty(0, np.uint8 if self.compact else x.dtype), x, 1
        if is_static(x):
            x, shown = one_step(x), x.shape[-2]
        if norm is not None and not training:
            s = _inference(x, norm.gamma, norm.beta, norm.running_mean, norm.running_var, norm.eps, *neuron, spikes,
                           shown)
            return s, [None, (None, s)]
        affine = (None, None, 0.0) if norm is None else (norm.gamma, norm.beta, norm.eps)
        pooled: list[Any] = []
        if self.pool is None:
            y, mean, var = _forward(x, *affine, *neuron, spikes, shown)
        else:
            y, winner, mean, var = _pool_forward(x, *affine, *neuron, spikes, *self._pooling(), shown)
            pooled = [(winner,)]
        if norm is None:
            return y, [(x,) if training else (None, y), *pooled]
        return y, [(x, mean, var, norm.moved(current, mean, var)), None, *pooled]

    def backward(self, dy: Array, cache: list[Any], rec: Records, dense: bool) -> tuple[Array, Gradients]:
        """Return dx, whose memory may be that of the group's input, and batch norm's gradients."""
        norm, neuron = self.norm, _neuron(self.neurons.neuron)
        slope = (self.neurons.neuron.detach_reset, self.neurons.surrogate, self.neurons.alpha)
        x, *statistics = cache[0]
        none = np.empty(0, x.dtype)
        affine = (None, None, none, none, 0.0) if norm is None else (norm.gamma, norm.beta, *statistics[:2], norm.eps)
        if self.pool is None:
            dx, dgamma, dbeta = _backward(dy, x, *affine, *neuron, *slope, True)
        else:
            dx, dgamma, dbeta = _pool_backward(dy, *cache[-1], x, *affine, *neuron, *slope, *self._pooling(), True)
        return dx, {} if norm is None else {f"{norm.name}.gamma": dgamma, f"{norm.name}.beta": dbeta}


def grouped(layers: Sequence[Layer], rec: Records, training: bool = True) -> list[Layer | Group]:
    """The layers in order, neighbours that run as one as a `Group`; while something is recorded, just the layers.

    Definitions (backends "numpy" and "both") run layer by layer as well, as do neurons whose surrogate has no kernel.
    """
    if rec.active or twin.get_backend() != "numba":
        return list(layers)
    groups: list[Layer | Group] = []
    for k, layer in enumerate(layers):
        last = groups[-1] if groups else None
        if type(layer) is Spiking and layer.surrogate in fused.SLOPES:
            before = last if isinstance(last, BatchNorm) else None
            del groups[len(groups) - (before is not None) :]
            groups.append(Group(before, layer, takes_bytes(layers[k + 1 :])))
        elif training and isinstance(layer, AvgPool2d | MaxPool2d) and isinstance(last, Group) and last.pool is None:
            last.pool = layer
        else:
            groups.append(layer)
    return groups


def takes_bytes(layers: Sequence[Any]) -> bool:
    """Whether the next layer takes spikes as bytes: sparse layers do, max pools and flattening hand them on."""
    for layer in layers:
        if isinstance(layer, Conv2d | Linear):
            return True
        if not isinstance(layer, MaxPool2d | Flatten):
            return hasattr(layer, "body") and takes_bytes(layer.body)     # a residual block, whose join adds bytes, too
    return False
