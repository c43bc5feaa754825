"""Layers, surrogates and losses of a spiking network as ordinary PyTorch, differentiated by autograd.

Tensors are samples first, as PyTorch has them: (T, B, C, H, W) or (T, B, F), logits (T, B, K). Only the spike has a
backward pass of its own; everything else is left to autograd. Nothing of refsnn is imported.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Function = Callable[[Tensor, float], Tensor]


# ------------------------------------------------------------------------------------------------------- surrogates

# name -> the slope that stands for the step's derivative, of x = membrane - threshold and the shape parameter a
SLOPES: dict[str, Function] = {
    "triangle": lambda x, a: (a - x.abs()).clamp(min=0) / a**2,
    "rectangle": lambda x, a: torch.where(x.abs() < 1 / (2 * a), a, 0.0).to(x),
    "arctan": lambda x, a: a / (2 * (1 + (math.pi * a * x / 2) ** 2)),
    "sigmoid": lambda x, a: a * torch.sigmoid(a * x) * torch.sigmoid(-a * x),
    "fast_sigmoid": lambda x, a: (1 + a * x.abs()) ** -2,
    "piecewise_exponential": lambda x, a: a * torch.exp(-a * x.abs()) / 2,
    "erf": lambda x, a: a * torch.exp(-((a * x) ** 2)) / math.sqrt(math.pi),
}

# name -> a function whose autograd derivative is that slope wherever it is smooth
PRIMITIVES: dict[str, Function] = {
    "triangle": lambda x, a: torch.where(
        x.abs() < a, torch.where(x < 0, (x + a) ** 2 / (2 * a**2), 1 - (a - x) ** 2 / (2 * a**2)), (x > 0).to(x)),
    "rectangle": lambda x, a: F.hardtanh(a * x, -0.5, 0.5) + 0.5,
    "arctan": lambda x, a: torch.atan(math.pi / 2 * a * x) / math.pi + 0.5,
    "sigmoid": lambda x, a: torch.sigmoid(a * x),
    "fast_sigmoid": lambda x, a: x / (1 + a * x.abs()) + 0.5,
    "piecewise_exponential": lambda x, a: torch.where(
        x < 0, torch.exp(a * x.clamp(max=0)) / 2, 1 - torch.exp(-a * x.clamp(min=0)) / 2),
    "erf": lambda x, a: (1 + torch.erf(a * x)) / 2,
}


class Spike(torch.autograd.Function):
    """Step forwards, slope backwards: spike(x, slope, strict) is 1 where x > 0 (strict) or x >= 0, else 0."""

    @staticmethod
    def forward(ctx, x, slope, strict):
        """x = membrane - threshold."""
        ctx.save_for_backward(x)
        ctx.slope = slope
        return ((x > 0) if strict else (x >= 0)).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        """Chain rule with the slope in place of the derivative."""
        (x,) = ctx.saved_tensors
        return grad * ctx.slope(x), None, None


# ----------------------------------------------------------------------------------------------------------- neuron


def lif(current: Tensor, *, decay: float = 0.5, gain: float = 1.0, bias: float = 0.0, threshold: float = 1.0,
        v_reset: float = 0.0, reset: str = "hard", amount: float = 1.0, v_init: float = 0.0, detach: bool = False,
        strict: bool = True, surrogate: str = "triangle", alpha: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Leaky integrate-and-fire over the first axis; returns spikes, membrane before and after the reset, each (T, ...).

        u(t) = decay v(t-1) + gain current(t) + bias;  spike where u > threshold (>= if not strict)
        hard: v = v_reset where it spiked;  soft: v = u - amount spike;  none: v = u
    """
    v = torch.full_like(current[0], v_init)
    spikes, before, after = [], [], []
    for step in current:
        u = decay * v + gain * step + bias
        s = Spike.apply(u - threshold, lambda x: SLOPES[surrogate](x, alpha), strict)
        r = s.detach() if detach else s
        if reset == "hard":
            v = u * (1 - r) + v_reset * r
        elif reset == "soft":
            v = u - amount * r
        else:
            v = u
        spikes.append(s)
        before.append(u)
        after.append(v)
    return torch.stack(spikes), torch.stack(before), torch.stack(after)


# ----------------------------------------------------------------------------------------------------------- layers


def each_step(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a layer to all steps and samples at once, (T, B, ...) -> (T, B, ...)."""
    y = layer(x.flatten(0, 1))
    return y.unflatten(0, x.shape[:2])


def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0) -> Tensor:
    """Convolution of maps (T, B, C, H, W) with a weight (O, C, kH, kW)."""
    return each_step(lambda flat: F.conv2d(flat, weight, bias, stride, padding), x)


def batch_norm(x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, training: bool) -> Tensor:
    """PyTorch's own batch norm over time, batch and space together; in training it updates `mean` and `var`."""
    return each_step(lambda flat: F.batch_norm(flat, mean, var, gamma, beta, training, momentum=0.1, eps=1e-5), x)


def pool(x: Tensor, size: int, kind: str) -> Tensor:
    """Average or max pooling, stride = size."""
    function = {"average": F.avg_pool2d, "max": F.max_pool2d}[kind]
    return each_step(lambda flat: function(flat, size), x)


# ----------------------------------------------------------------------------------------------------------- losses


def tet(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the steps of the cross entropy of each; logits (T, B, K)."""
    return torch.stack([F.cross_entropy(step, labels) for step in logits]).mean()


def cross_entropy_mean(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of the mean over the steps."""
    return F.cross_entropy(logits.mean(0), labels)


def mse_rate(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean squared error between the mean over the steps and one-hot."""
    return F.mse_loss(logits.mean(0), F.one_hot(labels, logits.shape[2]).to(logits))


LOSSES = {"tet": tet, "cross_entropy_mean": cross_entropy_mean, "mse_rate": mse_rate}
