"""Evaluation of a network on a set of samples: accuracy, loss, firing rates, and the operations it took.

Operations per sample are exact, borders and strides included: every non-zero input of a sparse layer drives as many
active connections as it reaches. Where the input is 0 or 1 that is a synaptic operation (SOP), an addition; where it
is not (the image under direct encoding; spikes after average pooling) it is a multiply-add (MAC), counted apart.
The literature often counts every layer but the first as SOPs: `sops_all_but_first` is that number.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn import metrics
from refsnn.chain import leaf_caches
from refsnn.datasets.samples import Samples
from refsnn.encode import ENCODERS
from refsnn.layers import Conv2d, Linear, Spiking
from refsnn.models import Network
from refsnn.ops.loss import LOSSES
from refsnn.schema import Config
from refsnn.trace import NO_RECORD

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class LayerOperations:
    """Operations of one sparse layer, summed over the samples: `binary` says whether they are SOPs or MACs."""

    operations: int
    binary: bool


@dataclass(frozen=True)
class Evaluation:
    """What was measured on `samples` samples.

    Field, Shape, Unit, Meaning
      loss          -       -            mean over samples
      accuracy      -       1            share of samples whose largest mean logit is at the label
      firing_rates  layer   spikes/step  mean spikes per neuron and time step, by spiking layer
      layers        layer   operations   by sparse layer, summed over samples
    """

    samples: int
    loss: float
    accuracy: float
    firing_rates: dict[str, float]
    layers: dict[str, LayerOperations]

    @property
    def sops(self) -> float:
        """Synaptic operations per sample: the layers whose input is 0 or 1."""
        return sum(layer.operations for layer in self.layers.values() if layer.binary) / self.samples

    @property
    def macs(self) -> float:
        """Multiply-adds per sample, over non-zero inputs: the other layers."""
        return sum(layer.operations for layer in self.layers.values() if not layer.binary) / self.samples

    @property
    def sops_all_but_first(self) -> float:
        """Operations per sample of every layer but the first, as the literature likely counts SOPs."""
        return sum(layer.operations for layer in list(self.layers.values())[1:]) / self.samples

    @property
    def energy_pj(self) -> float:
        """Picojoule per sample at 0.9 pJ a SOP and 4.6 pJ a MAC."""
        return metrics.energy_pj(self.sops, self.macs)


def evaluate(network: Network, config: Config, samples: Samples) -> Evaluation:
    """Run samples through the network in evaluation mode, as many at a time as in training (`train.batch`)."""
    correct, loss_sum = 0, 0.0
    spikes = {layer.name: 0 for layer in network.leaves if isinstance(layer, Spiking)}
    neurons = dict.fromkeys(spikes, 0)
    operations = {layer.name: 0 for layer in network.sparse_layers}
    binary = dict.fromkeys(operations, True)
    labels, size = samples.labels, config.train.batch
    for start in range(0, len(labels), size):
        chosen = np.arange(start, min(start + size, len(labels)))
        target = labels[chosen]
        encoded = ENCODERS[config.encode.kind](samples.batch(chosen, 0), config.encode.steps, config.dtype)
        logits, caches = network.forward(encoded, False, _no_draws, NO_RECORD)
        correct += metrics.accuracy(logits, target)
        loss_sum += LOSSES[config.train.loss](logits, target)[0] * len(target)
        for layer, cache in leaf_caches(caches):
            if isinstance(layer, Spiking):
                s = cache[1]
                spikes[layer.name] += int(np.count_nonzero(s))
                neurons[layer.name] += s.size
            elif isinstance(layer, Conv2d | Linear):
                operations[layer.name] += driven(layer, metrics.events(cache))
                binary[layer.name] &= metrics.is_binary(cache)
    return Evaluation(
        len(labels), loss_sum / len(labels), correct / len(labels),
        {name: spikes[name] / neurons[name] for name in spikes},
        {name: LayerOperations(operations[name], binary[name]) for name in operations},
    )


def driven(layer: Conv2d | Linear, count: Array) -> int:
    """Operations that `count` events per input place cause in a sparse layer: see `metrics.driven_by_conv`."""
    fan_out = np.bincount(layer.weight.indices, minlength=layer.weight.columns)
    if isinstance(layer, Conv2d):
        return metrics.driven_by_conv(count, fan_out, layer.kernel_size, layer.stride, layer.padding)
    return metrics.driven_by_linear(count, fan_out)


def synapses(network: Network) -> tuple[int, int]:
    """Unrolled connections, active and in all: each weight counted at each output position it serves."""
    shapes, active, total = network.input_shapes(), 0, 0
    for layer in network.sparse_layers:
        once = np.ones(shapes[layer.name], dtype=np.int64)
        active += driven(layer, once)
        full = np.full(layer.weight.columns, layer.weight.rows)
        if isinstance(layer, Conv2d):
            total += metrics.driven_by_conv(once, full, layer.kernel_size, layer.stride, layer.padding)
        else:
            total += metrics.driven_by_linear(once, full)
    return active, total


def _no_draws(name: str) -> np.random.Generator:
    raise ValueError(f"evaluation draws nothing at random, {name} was asked for")


