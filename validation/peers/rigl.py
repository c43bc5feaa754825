"""RigL (Evci et al., ICML 2020): its update written anew, the two packages that have it, and ERK densities.

Both packages are driven through their own schedule: gradients reach them in a backward pass, and they decide themselves
that this step is one of theirs. Nothing of refsnn is imported.

Traps, each met by the drivers below:
    rigl_torch 0.5.2    imports torchvision for two class names: a stand-in supplies them. The first layer stays dense.
                        A connection that is dropped and comes straight back keeps its value.
    sparsimony 0.1.0    the number to drop, int(nnz * share), is a product in the mask's dtype; the target is
                        int(N (1 - sparsity)), one short of the truth for some N: N and sparsity are chosen so that it
                        is exact. With an update at every step the gradients of all steps so far add up, and before
                        the first update those of all steps: it updates at every second step, and starts closed.
"""

import math
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]
EVERY = 2       # steps from update to update


def fraction(step: int, end: int, alpha: float) -> float:
    """The share that is dropped at a step: alpha at the start, on a cosine to 0 at the end."""
    return alpha / 2 * (1 + math.cos(math.pi * step / end))


def update(w: Array, mask: Array, gradient: Array, drop: int) -> tuple[Array, Array]:
    """One update of a whole tensor: the new mask, and what had been active and was not among the `drop` smallest.

    Of the active, the `drop` smallest |w| go; then the `drop` largest |gradient| come, of all that are not active now,
    those that have just gone included.
    """
    size, growth = np.abs(w).ravel(), np.abs(gradient).ravel()
    active = np.flatnonzero(mask)
    kept = np.setdiff1d(active, active[np.argsort(size[active], kind="stable")[:drop]])
    free = np.setdiff1d(np.arange(size.size), kept)
    new = np.zeros(size.size, dtype=bool)
    stays = new.copy()
    stays[kept] = True
    new[kept] = True
    new[free[np.argsort(-growth[free], kind="stable")[:drop]]] = True
    return new.reshape(mask.shape), stays.reshape(mask.shape)


def model() -> torch.nn.Sequential:
    """Four weights without biases; the first is there to stay dense. Sizes are multiples of 4."""
    return torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Conv2d(4, 10, 3, bias=False),
                               torch.nn.Conv2d(10, 6, (2, 3), bias=False), torch.nn.Linear(30, 20, bias=False)).double()


class RiglTorch:
    """The scheduler of rigl_torch on `model`; layers 1 to 3 are sparse."""

    def __init__(self, end: int, alpha: float, density: float) -> None:
        scheduler = load_rigl_torch()
        self.model = model()
        optimizer = torch.optim.SGD(self.model.parameters(), 0.1, momentum=0.9)
        self.scheduler = scheduler(self.model, optimizer, dense_allocation=density, T_end=end, delta=EVERY, alpha=alpha,
                                   ignore_linear_layers=False)
        self.layers = (1, 2, 3)

    def dropped(self, active: int, share: float) -> int:
        """How many of the active go."""
        return int(active * share)

    def masks(self) -> list[Array]:
        """Of the sparse layers."""
        return [self.scheduler.backward_masks[k].numpy().copy() for k in self.layers]

    def weights(self) -> list[Array]:
        """Of the sparse layers."""
        return [self.scheduler.W[k].detach().numpy().copy() for k in self.layers]

    def update(self, draw: Callable[[tuple[int, ...]], Array]) -> tuple[float, list[Array], list[Array]]:
        """New random weights and gradients, and an update; returns its share, weights before, and dense gradients."""
        for k in self.layers:
            w = self.scheduler.W[k]
            w.data = torch.from_numpy(draw(tuple(w.shape))) * self.scheduler.backward_masks[k]
        weights, gradients = self.weights(), []
        for _ in range(EVERY):                  # the last of these backward passes is the one that counts
            gradients = [draw(tuple(w.shape)) for w in self.scheduler.W]
            self.model.zero_grad()
            sum((w * torch.from_numpy(g)).sum() for w, g in zip(self.scheduler.W, gradients, strict=True)).backward()
            trains = self.scheduler()
        assert not trains, "rigl_torch did not update"
        return self.scheduler.cosine_annealing(), weights, [gradients[k] for k in self.layers]


def load_rigl_torch() -> Any:
    """The scheduler class, imported with a stand-in for torchvision."""
    names = ("torchvision", "torchvision.models", "torchvision.models.resnet")
    before = {name: sys.modules.get(name) for name in names}
    stand_in = [types.ModuleType(name) for name in names]
    stand_in[0].models, stand_in[1].resnet = stand_in[1:]
    stand_in[2].Bottleneck = stand_in[2].BasicBlock = type("Absent", (), {})
    sys.modules.update(zip(names, stand_in, strict=True))
    try:
        from rigl_torch.RigL import RigLScheduler
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    return RigLScheduler


class Sparsimony:
    """The RigL sparsifier of sparsimony on `model`, all layers sparse."""

    def __init__(self, end: int, alpha: float, density: float) -> None:
        from sparsimony.distributions.base import UniformDistribution
        from sparsimony.dst.rigl import RigL
        from sparsimony.schedulers.base import CosineDecayScheduler

        self.model = model()
        optimizer = torch.optim.SGD(self.model.parameters(), 0.1, momentum=0.9)
        self.scheduler = CosineDecayScheduler(alpha, end, EVERY)
        self.sparsifier = RigL(self.scheduler, UniformDistribution(), optimizer, sparsity=1 - density, init_method=None)
        self.sparsifier.prepare(self.model, [{"tensor_fqn": f"{k}.weight"} for k in range(4)])
        self.layers, self.steps = (0, 1, 2, 3), 0
        for k in self.layers:                   # as it is after every update; at first it is True
            self.model[k].parametrizations.weight[0].accumulate = False

    def dropped(self, active: int, share: float) -> int:
        """How many of the active go."""
        return int(torch.tensor(active, dtype=self.model[0].parametrizations.weight[0].mask.dtype) * share)

    def masks(self) -> list[Array]:
        """Of all layers."""
        return [self.model[k].parametrizations.weight[0].mask.bool().numpy().copy() for k in self.layers]

    def weights(self) -> list[Array]:
        """Of all layers, masked."""
        return [self.model[k].weight.detach().numpy().copy() for k in self.layers]

    def update(self, draw: Callable[[tuple[int, ...]], Array]) -> tuple[float, list[Array], list[Array]]:
        """New random weights and gradients, and an update; returns its share, weights before, and dense gradients."""
        for k in self.layers:
            original = self.model[k].parametrizations.weight.original
            original.data = torch.from_numpy(draw(tuple(original.shape)))
        weights, gradients, changed = self.weights(), [], False
        for _ in range(EVERY):                  # the last of these backward passes is the one that counts
            gradients = [draw(w.shape) for w in weights]
            self.backward(gradients)
            changed = self.sparsifier.step()
            self.steps += 1
        assert changed, "sparsimony did not update"
        share = self.scheduler(self.steps)
        assert share is not None
        return float(share), weights, gradients

    def backward(self, gradients: list[Array]) -> None:
        """A backward pass in which these gradients reach the masked weights."""
        self.model.zero_grad()
        pairs = zip(self.layers, gradients, strict=True)
        sum((self.model[k].weight * torch.from_numpy(g)).sum() for k, g in pairs).backward()


def erk(shapes: Sequence[Sequence[int]], density: float, whole: bool = False) -> list[float]:
    """Density of each layer: epsilon (sum of dims) / (product of dims), and 1 where that exceeds 1.

    whole: the numbers of connections in the equation for epsilon are rounded as the RigL authors' code does, layer by
    layer int(N (1 - density)) zeros; the total is then met to one connection a layer only.
    """
    sizes = [math.prod(s) for s in shapes]
    raw = [sum(s) / n for s, n in zip(shapes, sizes, strict=True)]
    zeros = [float(int(n * (1 - density))) if whole else n * (1 - density) for n in sizes]
    dense: set[int] = set()
    while True:
        rest = [k for k in range(len(sizes)) if k not in dense]
        ones = sum(sizes[k] - zeros[k] for k in rest) - sum(zeros[k] for k in dense)
        epsilon = ones / sum(raw[k] * sizes[k] for k in rest)
        largest = max(rest, key=lambda k: raw[k])
        if epsilon * raw[largest] <= 1:
            return [1.0 if k in dense else epsilon * raw[k] for k in range(len(sizes))]
        dense.add(largest)


def sparsimony_erk(shapes: Sequence[Sequence[int]], density: float) -> list[float]:
    """Densities of sparsimony's ERKDistribution, for weights without memory."""
    from sparsimony.distributions.base import ERKDistribution

    def group(shape: Sequence[int]) -> dict[str, Any]:
        weight = types.SimpleNamespace(original=torch.empty(tuple(shape), device="meta"))
        owner = types.SimpleNamespace(parametrizations=types.SimpleNamespace(weight=weight))
        return {"module": owner, "module_fqn": "", "tensor_name": "weight"}

    groups = ERKDistribution()(1 - density, [group(s) for s in shapes])
    return [1 - g["sparsity"] for g in groups]
