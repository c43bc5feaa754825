"""snnTorch's side: its neurons through time, with a surrogate that keeps the dtype of the membrane.

snnTorch's own surrogates return float32 spikes whatever comes in, which limits every comparison to seven digits.
Build its neurons after `torch.set_default_dtype(torch.float64)`: decay and threshold are kept in the default dtype.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from peers.framework_net import Sequence
from peers.torch_layers import SLOPES, Spike


def keeps_dtype(name: str, alpha: float) -> Callable[[Tensor], Tensor]:
    """A `spike_grad` that fires above 0 in the dtype of its input, with a slope of `torch_layers`."""
    return lambda x: Spike.apply(x, lambda at: SLOPES[name](at, alpha), True)


def through_time(node: Any) -> Sequence:
    """Call a neuron step by step, as its tutorials do; it starts from a membrane of zeros."""

    def run(current: Tensor) -> tuple[Tensor, Tensor]:
        membrane = torch.zeros_like(current[0])
        spikes, membranes = [], []
        for x in current:
            spike, membrane = node(x, membrane)
            spikes.append(spike)
            membranes.append(membrane)
        return torch.stack(spikes), torch.stack(membranes)

    return run
