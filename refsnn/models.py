"""A network is a chain of layers; `build` draws its connections and initial weights.

Three steps mirror the first lines of Algorithm 1: a builder plans the layers and so the shapes of all sparse weights;
an Erdos-Renyi mask of the asked overall density is drawn (eq. 1); the weights get their initial values. Every draw has
its own named stream: the mask of conv2 does not depend on how many numbers conv1 drew.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn.errors import UserError
from refsnn.given import given_mask, read_given
from refsnn.layers import (
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Draw,
    Dropout,
    Flatten,
    Gradients,
    Layer,
    Linear,
    MaxPool2d,
    Records,
    Spiking,
)
from refsnn.ops.neuron import NEURONS, Neuron
from refsnn.ops.sparse import SparseWeight, from_dense
from refsnn.ops.surrogate import SURROGATES
from refsnn.rng import stream
from refsnn.schema import Config
from refsnn.topology import draw_mask, layer_counts

Array = npt.NDArray[Any]
Shape = tuple[int, ...]


@dataclass
class Network:
    """A chain of layers, run forwards and backwards.

    Field, Meaning
      layers       in order of execution
      input_shape  of one sample, (C, H, W)
      initial      what everything started from, to rewind to; dense for a sparse weight, whose every place has a value
    """

    layers: list[Layer]
    input_shape: Shape
    initial: dict[str, Array] = field(default_factory=dict)

    def forward(self, x: Array, training: bool, rng: Draw, rec: Records) -> tuple[Array, list[Any]]:
        """Return the read-out of every time step, logits (K, T, B), and what each layer keeps for backward."""
        caches = []
        for layer in self.layers:
            x, cache = layer.forward(x, training, rng, rec)
            caches.append(cache)
        return x, caches

    def backward(self, dlogits: Array, caches: list[Any], rec: Records, dense: bool = False) -> Gradients:
        """Return the gradient of every parameter by name; with `dense`, also "<weight>.dense" at every place."""
        gradients: Gradients = {}
        dy = dlogits
        for layer, cache in zip(reversed(self.layers), reversed(caches), strict=True):
            dy, own = layer.backward(dy, cache, rec, dense)
            gradients |= own
        return gradients

    def commit(self, caches: list[Any]) -> None:
        """Take over what a training step changes besides the parameters: batch norm's running statistics."""
        for layer, cache in zip(self.layers, caches, strict=True):
            if isinstance(layer, BatchNorm):
                layer.commit(cache)

    @property
    def sparse_layers(self) -> list[Conv2d | Linear]:
        """The layers with a sparse weight, in order: every convolution and linear layer, first and last included."""
        return [layer for layer in self.layers if isinstance(layer, Conv2d | Linear)]

    @property
    def weights(self) -> dict[str, SparseWeight]:
        """The sparse weights by name ("conv1.weight"), in order."""
        return {f"{layer.name}.weight": layer.weight for layer in self.sparse_layers}

    def set_weight(self, name: str, weight: SparseWeight) -> None:
        """Replace a sparse weight, structure and all; raises KeyError for an unknown name."""
        {f"{layer.name}.weight": layer for layer in self.sparse_layers}[name].weight = weight

    @property
    def parameters(self) -> dict[str, Array]:
        """Every array that the optimiser updates in place, by name; a sparse weight's is its `data`."""
        return {name: array for layer in self.layers for name, array in layer.parameters().items()}

    @property
    def norms(self) -> list[BatchNorm]:
        """The batch-norm layers, which hold running statistics."""
        return [layer for layer in self.layers if isinstance(layer, BatchNorm)]

    @property
    def density(self) -> float:
        """Active connections over all places, convolutions and linear layers together."""
        weights = self.weights.values()
        return sum(w.nnz for w in weights) / sum(w.size for w in weights)

    def input_shapes(self) -> dict[str, Shape]:
        """The shape of one sample at the input of every layer, by layer name."""
        shape, shapes = self.input_shape, {}
        for layer in self.layers:
            shapes[layer.name] = shape
            shape = layer.output_shape(shape)
        return shapes

    def rewind(self) -> None:
        """Put everything that is still connected back to its initial value, batch norm included."""
        for name, weight in self.weights.items():
            weight.data[:] = weight.gather(self.initial[name])
        for name, array in self.parameters.items():
            if name not in self.weights:
                array[:] = self.initial[name]
        for layer in self.norms:
            layer.running_mean = self.initial[f"{layer.name}.running_mean"].copy()
            layer.running_var = self.initial[f"{layer.name}.running_var"].copy()


class Plan:
    """The layers of a network before its weights are drawn: builders call its methods in order of execution.

    `shape` is the shape of one sample where the plan has arrived; `weights` the shapes of the sparse weights so far,
    `others` those of biases and of batch norm.
    """

    def __init__(self, config: Config, input_shape: Shape) -> None:
        self.config = config
        self.shape = input_shape
        self.weights: dict[str, Shape] = {}
        self.others: dict[str, Shape] = {}
        self._makers: list[Callable[[dict[str, SparseWeight]], Layer]] = []
        self._dtype = np.dtype(config.dtype)

    def add(self, layer: Layer) -> None:
        """Append a layer without weights."""
        self.shape = layer.output_shape(self.shape)
        if min(self.shape) < 1:
            raise UserError(f"layer {layer.name}: images too small, its output would be {self.shape}; use larger ones")
        self._makers.append(lambda _: layer)

    def conv(self, name: str, filters: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        """Append a convolution without bias, as it stands before a batch norm."""
        self.weights[f"{name}.weight"] = (filters, self.shape[0], kernel, kernel)
        self.shape = (filters, *((n + 2 * padding - kernel) // stride + 1 for n in self.shape[1:]))
        self._makers.append(lambda w: Conv2d(name, w[f"{name}.weight"], None, stride, padding))

    def linear(self, name: str, features: int) -> None:
        """Append a linear layer with a bias that starts at 0."""
        self.weights[f"{name}.weight"] = (features, self.shape[0])
        self.shape = self.others[f"{name}.bias"] = (features,)
        bias = np.zeros(features, self._dtype)
        self._makers.append(lambda w: Linear(name, w[f"{name}.weight"], bias))

    def norm(self, name: str) -> None:
        """Append a batch norm with gamma = 1, beta = 0, running mean 0 and variance 1."""
        zeros, ones = (np.full(self.shape[0], value, self._dtype) for value in (0, 1))
        parts = ("gamma", "beta", "running_mean", "running_var")
        self.others |= {f"{name}.{part}": (self.shape[0],) for part in parts}
        self.add(BatchNorm(name, ones, zeros, zeros.copy(), ones.copy()))

    def spiking(self, name: str) -> None:
        """Append a layer of the configuration's neurons."""
        self.add(Spiking(name, neuron_of(self.config), self.config.neuron.surrogate, alpha_of(self.config)))

    def finish(self, weights: dict[str, SparseWeight]) -> list[Layer]:
        """The layers, with their weights."""
        return [make(weights) for make in self._makers]


def neuron_of(config: Config) -> Neuron:
    """The neuron of a configuration: its preset, with the keys that are set in [neuron] put over it."""
    keys = config.neuron
    given = {n: getattr(keys, n) for n in Neuron.__dataclass_fields__ if getattr(keys, n, None) is not None}
    return replace(NEURONS[keys.preset], **given)


def complete(config: Config) -> Config:
    """The configuration with every key of [neuron] written out, so that what a run used is in its config.toml."""
    return replace(config, neuron=replace(config.neuron, **vars(neuron_of(config)), alpha=alpha_of(config)))


def alpha_of(config: Config) -> float:
    """The surrogate's shape parameter: the configuration's, or the surrogate's own."""
    keys = config.neuron
    return SURROGATES[keys.surrogate].alpha if keys.alpha is None else keys.alpha


def conv2fc2(plan: Plan, classes: int) -> None:
    """Two convolutions with batch norm, LIF and pooling, a hidden linear layer with LIF, and the read-out.

    (C, H, W) - [conv 3x3, BN, LIF, pool 2] twice - FC, LIF - FC; the read-out gives logits at every time step.
    """
    model = plan.config.model
    pool: type[AvgPool2d] | type[MaxPool2d] = AvgPool2d if model.pool == "average" else MaxPool2d
    for k, filters in enumerate(model.channels, start=1):
        plan.conv(f"conv{k}", filters, kernel=3, padding=1)
        plan.norm(f"norm{k}")
        plan.spiking(f"lif{k}")
        plan.add(pool(f"pool{k}", 2))
    plan.add(Flatten("flatten"))
    plan.linear("fc1", model.hidden)
    plan.spiking("lif3")
    if model.dropout > 0:
        plan.add(Dropout("dropout", model.dropout))
    plan.linear("fc2", classes)


def build(config: Config, input_shape: Shape, classes: int) -> Network:
    """Build the network of a configuration for samples of `input_shape` (C, H, W) and that many classes."""
    plan = Plan(config, input_shape)
    MODELS[config.model.name](plan, classes)
    drawn = draw_masks(config, plan.weights)
    given = read_given(config.structure.start, plan.weights | plan.others)
    masks = {name: given_mask(given, name, drawn[name]) for name in plan.weights}
    initial = {name: initial_weight(config, name, masks[name]) for name in plan.weights}
    initial |= {name: given[name].astype(config.dtype) for name in plan.weights if name in given}
    weights = {name: from_dense(initial[name], masks[name]) for name in plan.weights}
    network = Network(plan.finish(weights), input_shape)
    for name, array in network.parameters.items():
        if name in given and name not in weights:
            array[:] = given[name]
    for layer in network.norms:
        layer.running_mean[:] = given.get(f"{layer.name}.running_mean", layer.running_mean)
        layer.running_var[:] = given.get(f"{layer.name}.running_var", layer.running_var)
    if config.rewire.rewind:
        network.initial = initial | {n: a.copy() for n, a in network.parameters.items() if n not in initial}
        for layer in network.norms:
            network.initial[f"{layer.name}.running_mean"] = layer.running_mean.copy()
            network.initial[f"{layer.name}.running_var"] = layer.running_var.copy()
    return network


def draw_masks(config: Config, shapes: dict[str, Shape]) -> dict[str, Array]:
    """Draw the initial connections of every weight, bool arrays of the dense shapes: eq. (1)."""
    keys = config.structure
    counts = layer_counts(list(shapes.values()), keys.density, keys.spread)
    return {
        name: draw_mask(shape, count / math.prod(shape), stream(config.seed, f"mask/{name}"), keys.draw).reshape(shape)
        for (name, shape), count in zip(shapes.items(), counts, strict=True)
    }


def initial_weight(config: Config, name: str, mask: Array) -> Array:
    """Draw the initial value of every place of a weight, active or not, dense in the mask's shape.

        kaiming_normal    N(0, 2 / fan)                     He et al., 2015; gain of a rectifier
        kaiming_uniform   U(-sqrt(6 / fan), sqrt(6 / fan))
        xavier_normal     N(0, 2 / (fan + fan_out))         Glorot and Bengio, 2010

    fan is the fan-in, C_in kH kW of the dense layer; with `fan = "active"` each neuron counts its own connections.
    fan_out is C_out kH kW.
    """
    keys, draw = config.structure, stream(config.seed, f"init/{name}")
    rows, receptive = mask.shape[0], math.prod(mask.shape[2:])
    matrix = mask.reshape(rows, -1)
    fan = np.full(rows, matrix.shape[1]) if keys.fan == "dense" else np.maximum(matrix.sum(axis=1), 1)
    fan = fan[:, None].astype(np.float64)
    if keys.init == "kaiming_uniform":
        values = np.sqrt(6 / fan) * draw.uniform(-1, 1, matrix.shape)
    else:
        variance = 2 / fan if keys.init == "kaiming_normal" else 2 / (fan + rows * receptive)
        values = np.sqrt(variance) * draw.standard_normal(matrix.shape)
    return values.reshape(mask.shape).astype(config.dtype)


MODELS: dict[str, Callable[[Plan, int], None]] = {"conv2fc2": conv2fc2}
