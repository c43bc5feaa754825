"""What the three frameworks' judges share: a neuron through time under autograd, and a training step of a small net.

Arrays are samples first, (T, B, F) or (T, B, C, H, W). Nothing of refsnn is imported.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from peers.torch_layers import LOSSES, batch_norm, conv, pool

Array = npt.NDArray[Any]
Sequence = Callable[[Tensor], tuple[Tensor, Tensor]]        # currents (T, ...) -> spikes and membranes (T, ...)
Layers = Callable[[dict[str, Tensor], dict[str, Tensor], Tensor, bool], tuple[list[Tensor], Tensor]]


def differentiate(neuron: Sequence, x: Array, on_spikes: Array, on_membrane: Array) -> tuple[Array, Array, Array]:
    """Spikes, membranes, and the gradient of sum(on_spikes * spikes) + sum(on_membrane * membranes) by the input."""
    current = torch.tensor(x, requires_grad=True)
    spikes, membranes = neuron(current)
    loss = (torch.tensor(on_spikes) * spikes).sum() + (torch.tensor(on_membrane) * membranes).sum()
    (dx,) = torch.autograd.grad(loss, current)
    return spikes.detach().numpy(), membranes.detach().numpy(), dx.numpy()


def slope(spike: Callable[[Tensor], Tensor], x: Array) -> Array:
    """The derivative that a surrogate uses in the backward pass, at every x."""
    at = torch.tensor(x, requires_grad=True)
    (gradient,) = torch.autograd.grad(spike(at).sum(), at)
    return gradient.numpy()


def value_and_slope(loss: Callable[[Tensor, Tensor], Tensor], logits: Array, labels: Array) -> tuple[float, Array]:
    """A loss of logits (T, B, K) and labels (B,), and its gradient by the logits."""
    at = torch.tensor(logits, requires_grad=True)
    value = loss(at, torch.tensor(labels))
    (gradient,) = torch.autograd.grad(value.sum(), at)
    return value.sum().item(), gradient.numpy()


def torch_layers(spiking: Callable[[Tensor], Tensor]) -> Layers:
    """Convolution, batch norm, neuron and average pool, twice, and a linear layer, with PyTorch's functions."""

    def forward(parameters: dict[str, Tensor], statistics: dict[str, Tensor], x: Tensor,
                training: bool) -> tuple[list[Tensor], Tensor]:
        spikes = []
        for k in ("1", "2"):
            x = conv(x, parameters[f"conv{k}.weight"], padding=1)
            x = batch_norm(x, parameters[f"norm{k}.gamma"], parameters[f"norm{k}.beta"],
                           statistics[f"norm{k}.running_mean"], statistics[f"norm{k}.running_var"], training)
            spikes.append(spiking(x))
            x = pool(spikes[-1], 2, "average")
        return spikes, torch.nn.functional.linear(x.flatten(2), parameters["fc.weight"], parameters["fc.bias"])

    return forward


class Step:
    """One training step: spikes, logits, loss, gradients, statistics, and the logits of an evaluation after it."""

    def __init__(self, layers: Layers, parameters: dict[str, Array], x: Array, labels: Array, loss: str) -> None:
        values = {name: torch.tensor(array, requires_grad=True) for name, array in parameters.items()}
        statistics = {}
        for k in ("1", "2"):
            features = len(parameters[f"norm{k}.gamma"])
            statistics[f"norm{k}.running_mean"] = torch.zeros(features, dtype=torch.float64)
            statistics[f"norm{k}.running_var"] = torch.ones(features, dtype=torch.float64)
        spikes, logits = layers(values, statistics, torch.tensor(x), True)
        objective = LOSSES[loss](logits, torch.tensor(labels))
        objective.backward()
        with torch.no_grad():
            _, evaluated = layers(values, statistics, torch.tensor(x), False)
        self.spikes = [s.detach().numpy() for s in spikes]
        self.logits = logits.detach().numpy()
        self.loss = objective.item()
        self.gradients = {name: np.asarray(value.grad) for name, value in values.items()}
        self.statistics = {name: value.numpy() for name, value in statistics.items()}
        self.evaluated = evaluated.numpy()
