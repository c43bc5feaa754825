"""Who is given what: for each layer of a configuration the records it reads, forwards and backwards.

In a chain a layer reads the output of the layer before it and, on the way back, the gradient that the layer behind it
passes on. A residual block gives what it reads to both of its chains; their ends meet in the join, forward/<block>/y,
and the gradient that arrives there arrives at both ends. To the layer before it a block passes on backward/<block>/dx.

                     body: block1.conv1 ... block1.norm2
    forward/lif1/s <                                     > forward/block1/y -- block1.lif2
                     shortcut: block1.shortcut ...
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from refsnn.chain import Residual
from refsnn.layers import Flatten, Layer, Spiking
from refsnn.models import MODELS
from refsnn.ops.sparse import INDEX, SparseWeight
from refsnn.plan import plan_of
from refsnn.schema import Config


@dataclass(frozen=True)
class Wired:
    """A layer in its place: names of records without their step.

    | Field | Meaning |
    |---|---|
    | layer | as the configuration has it, without connections |
    | input | the record that it is given: "forward/lif1/s" |
    | output | the record that it passes on |
    | arriving | the record of the gradient that arrives at its output, "backward/conv2/dx" |
    """

    layer: Any          # of any kind: who asks for a size or a stride knows which
    input: str
    output: str
    arriving: str


@lru_cache(maxsize=8)
def wiring_of(config: Config, input_shape: tuple[int, ...]) -> dict[str, Wired]:
    """Every layer that records something by its name, in order of execution, a block behind those in it.

    input_shape: (C, H, W) of the encoded samples. Raises UserError where the layers do not fit such samples.
    """
    chain = MODELS[config.model.name](config.model)
    plan = plan_of(config, chain, input_shape, classes=1)          # how many there are wires nothing
    return _wire(plan.finish({name: _unconnected(shape) for name, shape in plan.weights.items()}),
                 "encode/spikes", "loss/dlogits")


def _wire(layers: list[Layer], given: str, arriving: str) -> dict[str, Wired]:
    """A chain that is given the record `given` and at whose end the gradient `arriving` arrives."""
    layers = [layer for layer in layers if not isinstance(layer, Flatten)]       # which records nothing
    outputs = [f"forward/{layer.name}/{'s' if isinstance(layer, Spiking) else 'y'}" for layer in layers]
    gradients = [*(f"backward/{layer.name}/dx" for layer in layers[1:]), arriving]
    found: dict[str, Wired] = {}
    for layer, x, y, dy in zip(layers, [given, *outputs], outputs, gradients, strict=False):
        if isinstance(layer, Residual):
            found |= _wire(layer.body, x, dy) | _wire(layer.shortcut, x, dy)
        found[layer.name] = Wired(layer, x, y, dy)
    return found


def _unconnected(shape: tuple[int, ...]) -> SparseWeight:
    """A weight without a connection."""
    return SparseWeight(np.empty(0), np.empty(0, INDEX), np.zeros(shape[0] + 1, INDEX), shape)
