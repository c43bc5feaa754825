"""SpikingJelly's and snnTorch's layers, to be put together by `peers_torch.build`. Nothing of refsnn is imported."""

import logging
from typing import Any

import torch
from peers_torch import Layers, Spike
from torch import Tensor, nn


class SpikingJelly(Layers):
    """SpikingJelly 2.0 in step mode "m": each layer takes all steps at once, (T, B, ...)."""

    flat = False

    def __init__(self, steps: int) -> None:
        super().__init__(steps)
        logging.getLogger("torch._library.triton").setLevel(logging.ERROR)      # a line a node without Triton
        from spikingjelly.activation_based import functional, layer, neuron, surrogate

        self.functional, self.layer, self.neuron, self.surrogate = functional, layer, neuron, surrogate

    def conv(self, *sizes: int, bias: bool) -> nn.Module:
        """As PyTorch's."""
        return self.layer.Conv2d(*sizes, bias=bias, step_mode="m")

    def norm(self, channels: int) -> nn.Module:
        """As PyTorch's."""
        return self.layer.BatchNorm2d(channels, step_mode="m")

    def lif(self) -> nn.Module:
        """tau 2 without decay of the input: u = v / 2 + x; fires at the threshold, where refsnn fires above it."""
        return self.neuron.LIFNode(2.0, decay_input=False, surrogate_function=self.surrogate.PiecewiseQuadratic(1.0),
                                   step_mode="m")

    def pool(self, kind: str, size: int) -> nn.Module:
        """As PyTorch's."""
        return {"average": self.layer.AvgPool2d, "max": self.layer.MaxPool2d}[kind](size, step_mode="m")

    def flatten(self) -> nn.Module:
        """As PyTorch's."""
        return self.layer.Flatten(step_mode="m")

    def linear(self, inputs: int, units: int, bias: bool) -> nn.Module:
        """As PyTorch's."""
        return self.layer.Linear(inputs, units, bias, step_mode="m")

    def reset(self, net: nn.Module) -> None:
        """Its neurons remember the last batch."""
        self.functional.reset_net(net)


class Leaky(nn.Module):
    """snnTorch's neurons, step by step; its default reset, one step late and detached: the same spikes."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        import snntorch

        self.steps = steps
        self.node = snntorch.Leaky(beta=0.5, reset_mechanism="zero", spike_grad=Spike.apply)

    def forward(self, x: Tensor) -> Tensor:
        """(T B, ...) -> (T B, ...)."""
        spikes, membrane = [], self.node.reset_mem()
        for current in x.chunk(self.steps):
            spike, membrane = self.node(current, membrane)
            spikes.append(spike)
        return torch.cat(spikes)


class SnnTorch(Layers):
    """snnTorch 1.0: PyTorch's layers over all steps at once, faster than its tutorials' loop, and its neurons."""

    def lif(self) -> nn.Module:
        """beta 0.5."""
        return Leaky(self.steps)


# peer -> options of `peers_torch.Peer`
FRAMEWORKS: dict[str, dict[str, Any]] = {"spikingjelly": {"layers": SpikingJelly}, "snntorch": {"layers": SnnTorch}}
