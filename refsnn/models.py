"""A network is a chain of layers; `build` draws its connections and initial weights.

Three steps mirror the first lines of Algorithm 1: the layers are planned and so the shapes of all sparse weights; an
Erdos-Renyi mask of the asked overall density is drawn (eq. 1); the weights get their initial values. Every draw has
its own named stream: the mask of conv2 does not depend on how many numbers conv1 drew.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn.chain import Residual, chain_backward, chain_forward, leaf_caches, leaves
from refsnn.given import given_mask, read_given
from refsnn.layers import BatchNorm, Conv2d, Draw, Gradients, Layer, Linear, Records
from refsnn.ops.sparse import SparseWeight, from_dense
from refsnn.plan import alpha_of, neuron_of, plan_of
from refsnn.rng import stream
from refsnn.schema import Config, ModelConfig
from refsnn.topology import draw_mask, layer_counts

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

ROWS = 64       # neurons whose weights are drawn at a time


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
        return chain_forward(self.layers, x, training, rng, rec)

    def backward(self, dlogits: Array, caches: list[Any], rec: Records, dense: bool = False) -> Gradients:
        """Return the gradient of every parameter by name; with `dense`, also "<weight>.dense" at every place.

        The caches are used up; what `commit` takes over is left.
        """
        return chain_backward(dlogits, caches, rec, dense)[1]

    def commit(self, caches: list[Any]) -> None:
        """Take over what a training step changes besides the parameters: batch norm's running statistics."""
        for layer, cache in leaf_caches(caches):
            if isinstance(layer, BatchNorm):
                layer.commit(cache)

    @property
    def leaves(self) -> list[Layer]:
        """Every layer, those of residual blocks one by one, in order of execution."""
        return list(leaves(self.layers))

    @property
    def sparse_layers(self) -> list[Conv2d | Linear]:
        """The layers with a sparse weight, in order: every convolution and linear layer, first and last included."""
        return [layer for layer in self.leaves if isinstance(layer, Conv2d | Linear)]

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
        return [layer for layer in self.leaves if isinstance(layer, BatchNorm)]

    @property
    def density(self) -> float:
        """Active connections over all places, convolutions and linear layers together."""
        weights = self.weights.values()
        return sum(w.nnz for w in weights) / sum(w.size for w in weights)

    def input_shapes(self) -> dict[str, Shape]:
        """The shape of one sample at the input of every layer, by layer name; those of residual blocks included."""

        def walk(layers: list[Layer], shape: Shape) -> None:
            for layer in layers:
                shapes[layer.name] = shape
                if isinstance(layer, Residual):
                    walk(layer.body, shape)
                    walk(layer.shortcut, shape)
                shape = layer.output_shape(shape)

        shapes: dict[str, Shape] = {}
        walk(self.layers, self.input_shape)
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


def complete(config: Config) -> Config:
    """The configuration with every key of [neuron] written out, so that what a run used is in its config.toml."""
    return replace(config, neuron=replace(config.neuron, **vars(neuron_of(config)), alpha=alpha_of(config)))


def build(config: Config, input_shape: Shape, classes: int) -> Network:
    """Build the network of a configuration for samples of `input_shape` (C, H, W) and that many classes."""
    plan = plan_of(config, MODELS[config.model.name](config.model), input_shape, classes)
    drawn = draw_masks(config, plan.weights)
    given = read_given(config.structure.start, plan.weights | plan.others)
    masks = {name: given_mask(given, name, drawn[name]) for name in plan.weights}
    initial: dict[str, Array] = {}
    weights: dict[str, SparseWeight] = {}
    for name in plan.weights:
        dense = given[name].astype(config.dtype) if name in given else initial_weight(config, name, masks[name])
        weights[name] = from_dense(dense, masks[name])
        if config.rewire.rewind:
            initial[name] = dense
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
    values = np.empty(matrix.shape, config.dtype)
    for k in range(0, rows, ROWS):                  # a draw is of float64, and a large layer's would be twice `values`
        part, shape = slice(k, k + ROWS), values[k : k + ROWS].shape
        if keys.init == "kaiming_uniform":
            values[part] = np.sqrt(6 / fan[part]) * draw.uniform(-1, 1, shape)
        else:
            variance = 2 / fan[part] if keys.init == "kaiming_normal" else 2 / (fan[part] + rows * receptive)
            values[part] = np.sqrt(variance) * draw.standard_normal(shape)
    return values.reshape(mask.shape)


def conv2fc2(keys: ModelConfig) -> str:
    """Convolutions with batch norm, LIF and pooling, a hidden linear layer with LIF, the read-out: a small network."""
    pool = "AP2" if keys.pool == "average" else "MP2"
    dropout = f" DP{keys.dropout:.6f}" if keys.dropout > 0 else ""
    return " ".join(f"{filters}C3 {pool}" for filters in keys.channels) + f" FC{keys.hidden}{dropout} FC"


# The paper's networks; sources of their layers in docs/networks.md. "layers" is whatever model.layers says.
MODELS: dict[str, Callable[[ModelConfig], str]] = {
    "conv2fc2": conv2fc2,
    "layers": lambda keys: keys.layers,
    "resnet19": lambda _: "64C3 128R 128R 128R 256Rs2 256R 256R 512Rs2 512R GAP FC256 FC",
    "vggsnn": lambda _: "64C3 128C3 AP2 256C3 256C3 AP2 512C3 512C3 AP2 512C3 512C3 AP2 FC",
    "conv6fc2": lambda _: "256C3 256C3 256C3 MP2 256C3 256C3 256C3 MP2 FC2048/nobias FC/nobias VOTE10",
    "conv4fc1": lambda _: "32C3 AP2 64C3 AP2 128C3 AP2 256C3 AP2 FC",
}
