"""Neighbours in a chain that run as one: batch norm and the neurons behind it, or neurons alone (`ops/fused.py`).

A chain of layers is what people read, and what a recorded run executes, layer by layer. Where nothing is recorded and
kernels run, `grouped` puts a `Pair` in the place of such neighbours. It computes the same bits, passes spikes on as
bytes where the next layer takes them, and keeps only the input of the two, from which backward computes the rest again.
The caches are those of the layers that it stands for: batch norm's as always, and a neuron's with x, or nothing, where
it has (h, s) otherwise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn import twin
from refsnn.layers import BatchNorm, Conv2d, Flatten, Gradients, Layer, Linear, MaxPool2d, Records, Spiking
from refsnn.ops import fused

Array = npt.NDArray[Any]

_forward: Callable[..., Any] = fused.norm_lif_forward       # with arguments from a tuple, which types cannot follow
_inference: Callable[..., Any] = fused.norm_lif_inference
_backward: Callable[..., Any] = fused.norm_lif_backward


@dataclass
class Pair:
    """Batch norm, or None, and neurons; `compact`: their spikes are bytes."""

    norm: BatchNorm | None
    neurons: Spiking
    compact: bool

    @property
    def width(self) -> int:
        """How many layers it stands for."""
        return 1 if self.norm is None else 2

    def _neuron(self) -> tuple[Any, ...]:
        n = self.neurons.neuron
        return (n.decay, n.gain, n.bias, n.v_threshold, n.v_reset, n.reset_amount, n.v_init, n.reset, n.compare, n.form)

    def forward(self, x: Array, training: bool) -> tuple[Array, list[Any]]:
        """Return s, and the caches of the layers; in evaluation that of the neurons has s, (None, s), to be counted."""
        norm, spikes = self.norm, np.empty(0, np.uint8 if self.compact else x.dtype)
        if norm is None:
            s, _, _ = _forward(x, None, None, 0.0, *self._neuron(), spikes)
            return s, [(x,) if training else (None, s)]
        if not training:
            s = _inference(x, norm.gamma, norm.beta, norm.running_mean, norm.running_var, norm.eps, *self._neuron(),
                           spikes)
            return s, [None, (None, s)]
        s, mean, var = _forward(x, norm.gamma, norm.beta, norm.eps, *self._neuron(), spikes)
        return s, [(x, mean, var, norm.moved(x, mean, var)), None]

    def backward(self, ds: Array, caches: list[Any]) -> tuple[Array, Gradients]:
        """Return dx and batch norm's gradients."""
        norm, slope = self.norm, (self.neurons.neuron.detach_reset, self.neurons.surrogate, self.neurons.alpha)
        if norm is None:
            x, none = caches[0][0], np.empty(0, caches[0][0].dtype)
            dx, _, _ = _backward(ds, x, None, None, none, none, 0.0, *self._neuron(), *slope)
            return dx, {}
        x, mean, var, _ = caches[0]
        dx, dgamma, dbeta = _backward(ds, x, norm.gamma, norm.beta, mean, var, norm.eps, *self._neuron(), *slope)
        return dx, {f"{norm.name}.gamma": dgamma, f"{norm.name}.beta": dbeta}


def grouped(layers: Sequence[Layer], rec: Records) -> list[Layer | Pair]:
    """The layers in order, neighbours that run as one as a `Pair`; while something is recorded, the layers as they are.

    Definitions (backends "numpy" and "both") run layer by layer as well, as do neurons whose surrogate has no kernel.
    """
    if rec.active or twin.get_backend() != "numba":
        return list(layers)
    groups: list[Layer | Pair] = []
    for k, layer in enumerate(layers):
        if type(layer) is Spiking and layer.surrogate in fused.SLOPES:
            before = groups.pop() if groups and isinstance(groups[-1], BatchNorm) else None
            groups.append(Pair(before if isinstance(before, BatchNorm) else None, layer, takes_bytes(layers[k + 1 :])))
        else:
            groups.append(layer)
    return groups


def as_they_ran(layers: Sequence[Layer], cache: Any) -> Pair | None:
    """The pair that the last of these layers ran in, forwards: its cache says so; None where it ran by itself."""
    last = layers[-1]
    if not isinstance(last, Spiking) or (cache is not None and len(cache) != 1):
        return None
    before = layers[-2] if cache is None else None
    return Pair(before if isinstance(before, BatchNorm) else None, last, compact=False)


def takes_bytes(layers: Sequence[Any]) -> bool:
    """Whether the next layer takes spikes as bytes: sparse layers do, max pools and flattening hand them on."""
    for layer in layers:
        if isinstance(layer, Conv2d | Linear):
            return True
        if not isinstance(layer, MaxPool2d | Flatten):
            return hasattr(layer, "body") and takes_bytes(layer.body)     # a residual block, whose join adds bytes, too
    return False
