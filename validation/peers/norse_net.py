"""Norse's side: its cells through time, with parameters in float64.

The parameters must be float64 tensors: those of a cell's default are float32, and carry their seven digits along.
"""

from typing import Any

import torch
from norse.torch.functional.lif import LIFState, lif_step
from torch import Tensor

from peers.framework_net import Sequence


def double(**values: float) -> dict[str, Tensor]:
    """Numbers as float64 tensors, for a cell's parameters."""
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def through_time(cell: Any) -> Sequence:
    """Call a feed-forward cell step by step from its own initial state; the state's v is the one after the reset."""

    def run(current: Tensor) -> tuple[Tensor, Tensor]:
        state, spikes, membranes = None, [], []
        for x in current:
            spike, state = cell(x, state)
            spikes.append(spike)
            membranes.append(state.v)
        return torch.stack(spikes), torch.stack(membranes)

    return run


def recurrent_step(parameters: Any, dt: float) -> Sequence:
    """`lif_step`, what recurrent cells call, with every neuron connected to its own input and to no other neuron."""

    def run(current: Tensor) -> tuple[Tensor, Tensor]:
        zero = torch.zeros_like(current[0])
        identity = torch.eye(zero.shape[-1], dtype=zero.dtype)
        state, spikes, membranes = LIFState(zero, zero, zero), [], []
        for x in current:
            spike, state = lif_step(x, state, identity, torch.zeros_like(identity), parameters, dt)
            spikes.append(spike)
            membranes.append(state.v)
        return torch.stack(spikes), torch.stack(membranes)

    return run
