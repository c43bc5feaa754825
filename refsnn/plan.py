"""From a chain in the field's notation to layers: names, shapes, and what of it has weights.

A plan is made before any weight is drawn, because the density of a layer depends on the shapes of all of them (eq. 1).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn import notation
from refsnn.chain import Residual
from refsnn.errors import UserError
from refsnn.layers import (
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Dropout,
    Flatten,
    Layer,
    Linear,
    MaxPool2d,
    Spiking,
    Vote,
)
from refsnn.ops.neuron import NEURONS, Neuron
from refsnn.ops.sparse import SparseWeight
from refsnn.ops.surrogate import SURROGATES
from refsnn.schema import Config

Array = npt.NDArray[Any]
Shape = tuple[int, ...]


class Plan:
    """The layers of a network before its weights are drawn: the methods append one, in order of execution.

    `shape` is the shape of one sample where the plan has arrived; `weights` the shapes of the sparse weights so far,
    `others` those of biases and of batch norm.
    """

    def __init__(self, config: Config, input_shape: Shape, at_input: bool = True) -> None:
        self.config = config
        self.at_input = at_input        # the next convolution sees the data
        self.shape = input_shape
        self.weights: dict[str, Shape] = {}
        self.others: dict[str, Shape] = {}
        self._makers: list[Callable[[dict[str, SparseWeight]], Layer]] = []
        self._dtype = np.dtype(config.dtype)

    def add(self, layer: Layer) -> None:
        """Append a layer without weights."""
        self.shape, self.at_input = layer.output_shape(self.shape), False
        self._check_size(layer.name)
        self._makers.append(lambda _: layer)

    def conv(self, name: str, filters: int, kernel: int, stride: int = 1, padding: int = 0, bias: bool = False) -> None:
        """Append a convolution; as it stands before a batch norm, without bias."""
        if len(self.shape) != 3:
            raise UserError(f"layer {name}: a convolution needs maps, and there are {self.shape[0]} features; "
                            "put it before the linear layers")
        self.weights[f"{name}.weight"] = (filters, self.shape[0], kernel, kernel)
        self.shape = (filters, *((n + 2 * padding - kernel) // stride + 1 for n in self.shape[1:]))
        self._check_size(name)
        start = self._bias(name, filters) if bias else None
        first, self.at_input = self.at_input, False
        how = self.config.structure.execution
        self._makers.append(lambda w: Conv2d(name, w[f"{name}.weight"], start, stride, padding, first, how))

    def linear(self, name: str, features: int, bias: bool = True) -> None:
        """Append a linear layer, behind maps with a flattening before it."""
        if len(self.shape) == 3:
            self.add(Flatten("flatten"))
        self.weights[f"{name}.weight"] = (features, self.shape[0])
        self.shape = (features,)
        start = self._bias(name, features) if bias else None
        self._makers.append(lambda w: Linear(name, w[f"{name}.weight"], start))

    def _bias(self, name: str, features: int) -> Array:
        self.others[f"{name}.bias"] = (features,)
        return np.zeros(features, self._dtype)

    def _check_size(self, name: str) -> None:
        if min(self.shape) < 1:
            raise UserError(f"layer {name}: images too small, its output would be {self.shape}; use larger ones")

    def norm(self, name: str) -> None:
        """Append a batch norm with gamma = 1, beta = 0, running mean 0 and variance 1."""
        zeros, ones = (np.full(self.shape[0], value, self._dtype) for value in (0, 1))
        parts = ("gamma", "beta", "running_mean", "running_var")
        self.others |= {f"{name}.{part}": (self.shape[0],) for part in parts}
        self.add(BatchNorm(name, ones, zeros, zeros.copy(), ones.copy()))

    def spiking(self, name: str) -> None:
        """Append a layer of the configuration's neurons."""
        self.add(Spiking(name, neuron_of(self.config), self.config.neuron.surrogate, alpha_of(self.config)))

    def block(self, name: str, filters: int, stride: int) -> None:
        """Append a basic residual block (He et al., 2016) as spiking networks have it: the join is before the neurons.

            conv 3x3, BN, LIF, conv 3x3, BN   +   x, or conv 1x1, BN of x where the shape changes;   then LIF
        """
        if len(self.shape) != 3:
            raise UserError(f"layer {name}: a residual block needs maps; put it before the linear layers")
        body, shortcut = Plan(self.config, self.shape, at_input=False), Plan(self.config, self.shape, at_input=False)
        body.conv(f"{name}.conv1", filters, kernel=3, stride=stride, padding=1)
        body.norm(f"{name}.norm1")
        body.spiking(f"{name}.lif1")
        body.conv(f"{name}.conv2", filters, kernel=3, padding=1)
        body.norm(f"{name}.norm2")
        if body.shape != self.shape:
            shortcut.conv(f"{name}.shortcut", filters, kernel=1, stride=stride)
            shortcut.norm(f"{name}.shortcut_norm")
        self.weights |= body.weights | shortcut.weights
        self.others |= body.others | shortcut.others
        self.shape = body.shape
        self._makers.append(lambda w: Residual(name, body.finish(w), shortcut.finish(w)))
        self.spiking(f"{name}.lif2")

    def finish(self, weights: dict[str, SparseWeight]) -> list[Layer]:
        """The layers, with their weights."""
        return [make(weights) for make in self._makers]


def plan_of(config: Config, chain: str, input_shape: Shape, classes: int) -> Plan:
    """The plan of a chain in the notation of refsnn/notation.py.

    Layers of a kind are numbered as they come: conv1, norm1, lif1, pool1, fc1, block1 (with block1.conv1, ...).
    Raises UserError for a chain that is not understood, and for maps too small for it.
    """
    plan, count = Plan(config, input_shape), dict.fromkeys(("conv", "lif", "pool", "fc", "block", "dropout"), 0)

    def number(kind: str) -> int:
        count[kind] += 1
        return count[kind]

    pieces = notation.parse(chain)
    votes = int(pieces[-1].numbers[0] or 1) if pieces[-1].kind == "vote" else 1
    for piece in pieces:
        n = [0 if value is None else int(value) for value in piece.numbers]
        neurons = piece.kind in ("conv", "linear") and "nolif" not in piece.options
        if piece.kind == "conv":
            k, with_norm = number("conv"), "nonorm" not in piece.options
            padding = n[1] // 2 if piece.numbers[3] is None else n[3]
            plan.conv(f"conv{k}", n[0], n[1], n[2] or 1, padding, bias=not with_norm)
            if with_norm:
                plan.norm(f"norm{k}")
        elif piece.kind == "block":
            plan.block(f"block{number('block')}", n[0], n[1] or 1)
        elif piece.kind in ("average", "max", "global"):
            plan.add(_pool(f"pool{number('pool')}", piece.kind, n, plan.shape))
        elif piece.kind in ("linear", "read-out"):
            plan.linear(f"fc{number('fc')}", n[0] if n else votes * classes, bias="nobias" not in piece.options)
        elif piece.kind == "dropout":
            plan.add(Dropout("dropout" if number("dropout") == 1 else f"dropout{count['dropout']}",
                             float(piece.numbers[0] or 0)))
        else:
            plan.add(Vote("vote", votes))
        if neurons:
            plan.spiking(f"lif{number('lif')}")
    return plan


def _pool(name: str, kind: str, numbers: list[int], shape: Shape) -> Layer:
    """A pooling layer; the global one covers the whole map, which must be square."""
    if len(shape) != 3 or (kind == "global" and shape[1] != shape[2]):
        raise UserError(f"layer {name}: pooling needs {'square ' * (kind == 'global')}maps, and is given {shape}")
    if kind == "max":
        if numbers[0] > 16:
            raise UserError(f"layer {name}: a max pool takes windows of at most 16 x 16, got {numbers[0]}; use AP")
        return MaxPool2d(name, numbers[0])
    return AvgPool2d(name, shape[1] if kind == "global" else numbers[0])


def neuron_of(config: Config) -> Neuron:
    """The neuron of a configuration: its preset, with the keys that are set in [neuron] put over it."""
    keys = config.neuron
    given = {n: getattr(keys, n) for n in Neuron.__dataclass_fields__ if getattr(keys, n, None) is not None}
    return replace(NEURONS[keys.preset], **given)


def alpha_of(config: Config) -> float:
    """The surrogate's shape parameter: the configuration's, or the surrogate's own."""
    keys = config.neuron
    return SURROGATES[keys.surrogate].alpha if keys.alpha is None else keys.alpha
