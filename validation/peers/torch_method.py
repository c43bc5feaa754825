"""The whole two-stage method once more: dense weights and masks in PyTorch, float64, gradients by autograd.

Written from the description of the method (Shen et al., ICLR 2025, with the equations as Diao et al., ICLR 2023, have
them); nothing of refsnn is imported. Where refsnn keeps lists of connections, this keeps whole tensors and a mask;
where refsnn derives gradients by hand, this leaves them to autograd; where refsnn selects, this sorts.

The caller gives the initial weights, masks and batches, because two programs that draw their own random numbers cannot
be compared. The network: (conv 3x3 - batch norm - LIF - pool 2) twice - linear - LIF - linear, TET loss.
"""

import math
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor

from peers.torch_layers import batch_norm, conv, each_step, lif, pool, tet

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Settings:
    """What a run needs to know; the names are the paper's or PyTorch's."""

    scope: str                      # "layer" or "neuron": what has an index and a ratio of its own
    inner: bool                     # rewire at constant density after every epoch of an iteration but the last
    regrow_share: int               # of what an iteration's end prunes: 0 nothing comes back, 1 all
    epochs: int                     # of an iteration
    iterations: int
    steps_per_epoch: int
    optimizer: str                  # "adam" or "sgd"
    lr: float                       # at the start of an iteration; falls along a cosine to 0
    weight_decay: float = 0.0
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    time_steps: int = 4
    pool: str = "average"
    p: float = 0.5
    q: float = 1.0
    eta: float = 1e-3
    cap: str = "0.9"                # the largest share that may go, a decimal number
    growth_decay: float = 0.9


@dataclass
class Measured:
    """What Stage I finds per unit of one weight, (units,) each: active weights, PQ index, bound, count to remove."""

    d: Tensor
    index: Tensor
    bound: Tensor
    count: Tensor


@dataclass
class Plan:
    """What Stage II does to one weight: which places go and which come, bool (units, places), and the scores."""

    pruned: Tensor
    grown: Tensor
    prune_score: Tensor
    grow_score: Tensor


@dataclass
class Method:
    """A network in training. `weights` are dense, 0 where `masks` is False; `plain` are biases, gamma and beta."""

    settings: Settings
    weights: Tensors
    masks: Tensors
    plain: Tensors
    statistics: dict[str, tuple[Tensor, Tensor]]    # running mean and variance by batch norm
    growth: Tensors = field(default_factory=dict)   # average dense gradient, never masked
    moments: dict[str, Tensors] = field(default_factory=dict)
    measured: dict[str, Measured] = field(default_factory=dict)
    iteration: int = 0
    epoch: int = 0
    batch: int = 0

    def __post_init__(self) -> None:
        self.growth = {name: torch.zeros_like(w) for name, w in self.weights.items()}
        for name, w in (self.weights | self.plain).items():
            self.moments[name] = {part: torch.zeros_like(w) for part in ("first", "second", "count")}

    # ------------------------------------------------------------------------------------------ Stage I, one batch

    def forward(self, images: Tensor, weights: Tensors, plain: Tensors, training: bool) -> tuple[Tensor, Tensors]:
        """Logits (T, B, K) and the spikes of each spiking layer (T, B, ...) for images (B, C, H, W)."""
        x = images.unsqueeze(0).expand(self.settings.time_steps, *images.shape)
        spikes: Tensors = {}
        for k in (1, 2):
            x = conv(x, weights[f"conv{k}.weight"], padding=1)
            gamma, beta = plain[f"norm{k}.gamma"], plain[f"norm{k}.beta"]
            x = batch_norm(x, gamma, beta, *self.statistics[f"norm{k}"], training)
            x = spikes[f"lif{k}"] = lif(x)[0]
            x = pool(x, 2, self.settings.pool)
        x = each_step(lambda flat: flat @ weights["fc1.weight"].T + plain["fc1.bias"], x.flatten(2))
        x = spikes["lif3"] = lif(x)[0]
        return each_step(lambda flat: flat @ weights["fc2.weight"].T + plain["fc2.bias"], x), spikes

    def gradients(self, images: Tensor, labels: Tensor) -> tuple[float, Tensors, Tensors]:
        """Loss; gradient of every parameter, of weights at *every* place, dL/d(M * W); spikes."""
        weights = {name: (w * self.masks[name]).requires_grad_() for name, w in self.weights.items()}
        plain = {name: w.clone().requires_grad_() for name, w in self.plain.items()}
        logits, spikes = self.forward(images, weights, plain, training=True)
        loss = tet(logits, labels)
        found = torch.autograd.grad(loss, [*weights.values(), *plain.values()])
        return loss.item(), dict(zip([*weights, *plain], found, strict=True)), spikes

    def train_step(self, images: Tensor, labels: Tensor) -> tuple[float, Tensors]:
        """One batch: gradients, growth average, optimiser. Returns the loss and the spikes."""
        s = self.settings
        loss, gradients, spikes = self.gradients(images, labels)
        done = self.epoch * s.steps_per_epoch + self.batch
        lr = s.lr * (1 + math.cos(math.pi * done / (s.epochs * s.steps_per_epoch))) / 2
        with torch.no_grad():
            for name, w in self.weights.items():
                self.growth[name] = s.growth_decay * self.growth[name] + (1 - s.growth_decay) * gradients[name]
                self.update(name, w, gradients[name] * self.masks[name], self.masks[name].to(w.dtype), lr)
            for name, w in self.plain.items():
                self.update(name, w, gradients[name], torch.ones_like(w), lr)
        self.batch += 1
        return loss, spikes

    def update(self, name: str, w: Tensor, g: Tensor, mask: Tensor, lr: float) -> None:
        """Adam or SGD with momentum in place, where the mask is 1; Adam counts the steps of each weight."""
        s, m = self.settings, self.moments[name]
        g = g + s.weight_decay * w
        if s.optimizer == "sgd":
            m["first"] = s.momentum * m["first"] + g
            w -= lr * m["first"] * mask
            return
        m["count"] = m["count"] + mask
        m["first"] = s.betas[0] * m["first"] + (1 - s.betas[0]) * g
        m["second"] = s.betas[1] * m["second"] + (1 - s.betas[1]) * g * g
        age = m["count"].clamp(min=1)
        first = m["first"] / (1 - s.betas[0] ** age)
        second = m["second"] / (1 - s.betas[1] ** age)
        w -= lr * mask * first / (second.sqrt() + s.eps)

    def predict(self, images: Tensor) -> Tensor:
        """Logits (T, B, K) in evaluation, with the running statistics."""
        with torch.no_grad():
            return self.forward(images, self.weights, self.plain, training=False)[0]

    # -------------------------------------------------------------------------------------- Stage I ends: measuring

    def units(self, tensor: Tensor) -> Tensor:
        """A weight-shaped tensor as (units, places): one unit for the layer, or one a neuron."""
        return tensor.reshape(1, -1) if self.settings.scope == "layer" else tensor.flatten(1)

    def measure(self, name: str) -> Measured:
        """PQ index (2), bound (3) and count (4) of each unit of a weight."""
        s = self.settings
        mask, w = self.units(self.masks[name]), self.units(self.weights[name]).abs()
        d = mask.sum(1)
        norms = [torch.where(mask, w, 0.0).pow(order).sum(1).pow(1 / order) for order in (s.p, s.q)]
        size = d.to(w.dtype)
        ratio = size.pow(1 / s.q - 1 / s.p) * norms[0] / norms[1]
        dead = norms[1] == 0                                # no weights, or nothing but zeros: nothing to tell apart
        index = torch.where(dead, 0.0, 1 - ratio).clamp(min=0)
        gap = s.q - s.p
        bound = size * (1 + s.eta) ** (-s.q / gap) * (1 - index).pow(s.p * s.q / gap)
        bound = torch.where(dead, size, bound)
        cap = Fraction(s.cap)
        most = d * cap.numerator // cap.denominator
        count = torch.minimum(d - bound.ceil().long(), most).clamp(min=0)
        return Measured(d, index, bound, count)

    # ------------------------------------------------------------------------------------------- Stage II: rewiring

    def end_epoch(self) -> dict[str, Plan] | None:
        """What happens after the epoch that has ended, or None: measured and planned, not yet done."""
        s = self.settings
        if self.epoch == s.epochs - 1:
            self.measured = {name: self.measure(name) for name in self.weights}
            if self.iteration == s.iterations - 1:
                return None
            return {name: self.plan(name, m.count, s.regrow_share * m.count) for name, m in self.measured.items()}
        if not s.inner or self.iteration == 0:
            return None
        plans = {}
        for name, m in self.measured.items():
            now = self.units(self.masks[name]).sum(1)
            count = m.count * now // m.d.clamp(min=1)       # floor(ratio * d) with the ratio measured last
            plans[name] = self.plan(name, count, count)
        return plans

    def plan(self, name: str, prune: Tensor, grow: Tensor) -> Plan:
        """The `prune` smallest |w| of each unit go, then the `grow` largest averages among all free places come."""
        mask = self.units(self.masks[name])
        prune_score = self.units(self.weights[name]).abs()
        grow_score = self.units(self.growth[name]).abs()
        pruned = first(torch.where(mask, prune_score, math.inf), prune)
        free = ~mask | pruned
        grown = first(torch.where(free, -grow_score, math.inf), torch.minimum(grow, free.sum(1)))
        return Plan(pruned, grown, prune_score, grow_score)

    def carry_out(self, plans: dict[str, Plan]) -> None:
        """Change masks; what went and what came has weight 0 and an optimiser state that begins anew."""
        for name, plan in plans.items():
            shape = self.masks[name].shape
            pruned, grown = plan.pruned.reshape(shape), plan.grown.reshape(shape)
            self.masks[name] = self.masks[name] & ~pruned | grown
            for tensor in (self.weights[name], *self.moments[name].values()):
                tensor[pruned | grown] = 0

    def advance(self) -> None:
        """The next epoch begins."""
        self.batch = 0
        self.epoch += 1
        if self.epoch == self.settings.epochs:
            self.epoch, self.iteration = 0, self.iteration + 1


def first(score: Tensor, counts: Tensor) -> Tensor:
    """Mask of the counts[u] smallest scores of each row; equal scores in order of their place."""
    order = score.sort(dim=1, stable=True).indices
    rank = torch.arange(score.shape[1]).expand_as(order)
    return torch.zeros_like(score, dtype=torch.bool).scatter(1, order, rank < counts[:, None])
