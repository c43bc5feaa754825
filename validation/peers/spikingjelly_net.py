"""SpikingJelly's side: its neurons through time, and a training step made of its own multi-step layers."""

import logging
from typing import Any

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor

from peers.framework_net import Layers, Sequence

logging.getLogger("torch._library.triton").setLevel(logging.ERROR)      # a line a node without Triton
SURROGATES = surrogate
NODES = neuron


def at_once(node: Any) -> Sequence:
    """Run a node in step mode "m": all steps in one call; the membrane it keeps is the one after the reset."""
    node.step_mode = "m"
    node.store_v_seq = True

    def run(current: Tensor) -> tuple[Tensor, Tensor]:
        functional.reset_net(node)
        spikes = node(current)
        return spikes, node.v_seq

    return run


def step_by_step(node: Any) -> Sequence:
    """Run a node in step mode "s": a loop over time."""
    node.step_mode = "s"

    def run(current: Tensor) -> tuple[Tensor, Tensor]:
        functional.reset_net(node)
        spikes, membranes = [], []
        for x in current:
            spikes.append(node(x))
            membranes.append(node.v)
        return torch.stack(spikes), torch.stack(membranes)

    return run


def layers(node: Any) -> Layers:
    """The net of SpikingJelly's own layers in step mode "m", given parameters and running statistics."""
    conv1, conv2 = (layer.Conv2d(i, o, 3, padding=1, bias=False, step_mode="m") for i, o in ((2, 4), (4, 6)))
    norm1, norm2 = (layer.BatchNorm2d(features, step_mode="m") for features in (4, 6))
    pool, flat, fc = layer.AvgPool2d(2, step_mode="m"), layer.Flatten(step_mode="m"), layer.Linear(24, 5, step_mode="m")
    spiking = at_once(node)
    named = {"conv1": conv1, "conv2": conv2, "norm1": norm1, "norm2": norm2, "fc": fc}
    own = {"gamma": "weight", "beta": "bias"}

    def call(name: str, parameters: dict[str, Tensor], statistics: dict[str, Tensor], x: Tensor) -> Tensor:
        given = {key: value for key, value in (parameters | statistics).items() if key.startswith(name)}
        renamed = {own.get(part, part): value for part, value in ((key.partition(".")[2], value)
                                                                  for key, value in given.items())}
        return torch.func.functional_call(named[name], renamed, (x,))

    def forward(parameters: dict[str, Tensor], statistics: dict[str, Tensor], x: Tensor,
                training: bool) -> tuple[list[Tensor], Tensor]:
        norm1.train(training)
        norm2.train(training)
        spikes = []
        for k in ("1", "2"):
            x = call(f"norm{k}", parameters, statistics, call(f"conv{k}", parameters, statistics, x))
            spikes.append(spiking(x)[0])
            x = pool(spikes[-1])
        return spikes, call("fc", parameters, statistics, flat(x))

    return forward
