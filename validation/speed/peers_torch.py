"""PyTorch as people train sparse spiking networks with it today: dense weights, their gradients masked; SGD.

`Peer` is one training program. What differs between PyTorch, SpikingJelly and snnTorch are the layers that `build` puts
together: a class like `Layers`. The neuron is the paper's: decay 0.5, threshold 1, hard reset to 0 whose gradient is
kept, triangle of half width 1. Everything that does not cost accuracy is done to be fast: time and samples are one axis
wherever the neuron does not look at time, SGD is PyTorch's fused one. Nothing of refsnn is imported.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from task import Piece, Task
from torch import Tensor, nn

Array = npt.NDArray[Any]
P, Q, ETA, CAP = 0.5, 1.0, 1e-3, 0.9       # of the PQ index and the bound (rewire)


class Spike(torch.autograd.Function):
    """1 where x > 0; backwards a triangle."""

    @staticmethod
    def forward(ctx, x):
        """x = membrane - threshold."""
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        """max(0, 1 - |x|)."""
        (x,) = ctx.saved_tensors
        return grad * (1 - x.abs()).clamp(min=0)


class Lif(nn.Module):
    """Neurons over T steps; samples of all steps on the first axis, step by step."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        """(T B, ...) -> (T B, ...)."""
        spikes, v = [], None
        for current in x.chunk(self.steps):
            u = current if v is None else 0.5 * v + current
            spikes.append(Spike.apply(u - 1.0))
            v = u * (1 - spikes[-1])
        return torch.cat(spikes)


class Residual(nn.Module):
    """body(x) + shortcut(x)."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        """The join."""
        return self.body(x) + self.shortcut(x)


class Vote(nn.Module):
    """Mean of so many consecutive units."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """(..., K size) -> (..., K)."""
        return x.unflatten(-1, (-1, self.size)).mean(-1)


class Layers:
    """PyTorch's own; samples (T B, ...)."""

    flat = True         # time and samples are one axis

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def conv(self, *sizes: int, bias: bool) -> nn.Module:
        """Channels in and out, kernel, stride, padding."""
        return nn.Conv2d(*sizes, bias=bias)

    def norm(self, channels: int) -> nn.Module:
        """Batch norm over all steps together."""
        return nn.BatchNorm2d(channels)

    def lif(self) -> nn.Module:
        """The paper's neurons."""
        return Lif(self.steps)

    def pool(self, kind: str, size: int) -> nn.Module:
        """Average or max."""
        return {"average": nn.AvgPool2d, "max": nn.MaxPool2d}[kind](size)

    def flatten(self) -> nn.Module:
        """Maps to vectors."""
        return nn.Flatten(1)

    def linear(self, inputs: int, units: int, bias: bool) -> nn.Module:
        """Linear."""
        return nn.Linear(inputs, units, bias)

    def reset(self, net: nn.Module) -> None:
        """Before a forward pass: membranes back to 0 where modules keep them."""


class Builder:
    """Puts modules together as a task's pieces say; `named` has them by the names of their parameters."""

    def __init__(self, task: Task, make: Layers) -> None:
        self.task, self.make, self.shape = task, make, tuple(task.input_shape)
        self.named: dict[str, nn.Module] = {}
        self.count: Counter[str] = Counter()

    def keep(self, name: str, module: nn.Module) -> nn.Module:
        """Enter a module with parameters."""
        self.named[name] = module
        return module

    def number(self, kind: str) -> str:
        """The next name: conv1, conv2, ..."""
        self.count[kind] += 1
        return f"{kind}{self.count[kind]}"

    def conv(self, name: str, filters: int, kernel: int, stride: int, padding: int, bias: bool = False) -> nn.Module:
        """A convolution."""
        module = self.make.conv(self.shape[0], filters, kernel, stride, padding, bias=bias)
        self.shape = (filters, *((n + 2 * padding - kernel) // stride + 1 for n in self.shape[1:]))
        return self.keep(name, module)

    def norm(self, name: str) -> nn.Module:
        """Batch norm of what comes out of the layer before."""
        return self.keep(name, self.make.norm(self.shape[0]))

    def block(self, name: str, filters: int, stride: int) -> list[nn.Module]:
        """conv BN LIF conv BN, plus x or its 1x1 conv and BN; then LIF."""
        start = self.shape
        body = [self.conv(f"{name}.conv1", filters, 3, stride, 1), self.norm(f"{name}.norm1"), self.make.lif(),
                self.conv(f"{name}.conv2", filters, 3, 1, 1), self.norm(f"{name}.norm2")]
        end, shortcut = self.shape, []
        if end != start:
            self.shape = start
            shortcut = [self.conv(f"{name}.shortcut", filters, 1, stride, 0), self.norm(f"{name}.shortcut_norm")]
        return [Residual(nn.Sequential(*body), nn.Sequential(*shortcut)), self.make.lif()]

    def linear(self, units: int, bias: bool) -> list[nn.Module]:
        """A linear layer, behind maps with a flattening before it."""
        before = [self.make.flatten()] if len(self.shape) == 3 else []
        inputs, self.shape = int(np.prod(self.shape)), (units,)
        return [*before, self.keep(self.number("fc"), self.make.linear(inputs, units, bias))]

    def pool(self, kind: str, size: int) -> nn.Module:
        """A pool whose stride is its size."""
        self.shape = (self.shape[0], *(n // size for n in self.shape[1:]))
        return self.make.pool(kind, size)

    def modules(self, piece: Piece, votes: int) -> list[nn.Module]:
        """The modules of one piece.   Raises ValueError for dropout, which no two programs draw alike."""
        kind, numbers, options = piece
        n = [int(value or 0) for value in numbers]
        neurons = [self.make.lif()] if kind in ("conv", "linear") and "nolif" not in options else []
        if kind == "conv":
            name, with_norm = self.number("conv"), "nonorm" not in options
            padding = n[1] // 2 if numbers[3] is None else n[3]
            module = self.conv(name, n[0], n[1], n[2] or 1, padding, bias=not with_norm)
            return [module, *([self.norm(name.replace("conv", "norm"))] if with_norm else []), *neurons]
        if kind == "block":
            return self.block(self.number("block"), n[0], n[1] or 1)
        if kind in ("average", "max", "global"):
            return [self.pool("average", self.shape[1]) if kind == "global" else self.pool(kind, n[0])]
        if kind in ("linear", "read-out"):
            return [*self.linear(n[0] if n else votes * self.task.classes, "nobias" not in options), *neurons]
        if kind == "vote":
            return [Vote(votes)]
        raise ValueError(f"{self.task.net}: {kind} draws at random, its programs cannot be compared")


def build(task: Task, make: Layers) -> tuple[nn.Sequential, dict[str, nn.Module]]:
    """The network of a task, and its modules with parameters by refsnn's names."""
    builder, (kind, numbers, _) = Builder(task, make), task.pieces[-1]
    votes = int(numbers[0] or 1) if kind == "vote" else 1
    return nn.Sequential(*(m for piece in task.pieces for m in builder.modules(piece, votes))), builder.named


class Peer:
    """A training program: network, masks, optimiser. It starts with random weights; `load` gives it others.

    | Parameter     | Meaning                                                                     |
    |---------------|-----------------------------------------------------------------------------|
    | layers        | whose layers: `Layers` or the same of a framework                           |
    | channels_last | the memory format that PyTorch recommends for convolutions on processors    |
    | compiled      | torch.compile                                                               |
    | bfloat16      | autocast: the products in 16 bits, faster and of 3 digits; weights float32  |
    """

    def __init__(self, task: Task, layers: Callable[[int], Layers] = Layers, channels_last: bool = False,
                 compiled: bool = False, bfloat16: bool = False) -> None:
        self.task, self.make, self.channels_last, self.bfloat16 = task, layers(task.steps), channels_last, bfloat16
        self.net, self.named = build(task, self.make)
        if channels_last:
            self.net.to(memory_format=torch.channels_last)
        self.run = torch.compile(self.net, dynamic=False) if compiled else self.net
        self.weights = {f"{n}.weight": m.weight for n, m in self.named.items() if not isinstance(m, nn.BatchNorm2d)}
        self.masks: dict[str, Tensor] = {}
        self.average: dict[str, Tensor] = {}        # of the dense gradients, once the next rewire regrows
        if task.density < 1:                        # without pruned weights nobody masks
            self.mask({name: torch.rand(w.shape) < task.density for name, w in self.weights.items()})
        self.optimizer = torch.optim.SGD(self.net.parameters(), task.lr, task.momentum, fused=True)
        self.give(torch.randn(task.shape), torch.randint(task.classes, (task.batch,)))

    def mask(self, masks: dict[str, Tensor]) -> None:
        """Connections, bool by weight: the others become 0 and stay it."""
        for name, mask in masks.items():
            w = self.weights[name]
            self.masks[name] = torch.empty_like(w).copy_(mask)      # of the weight's dtype and memory format
            w.data.mul_(self.masks[name])

    def load(self, values: dict[str, Array], masks: dict[str, Array]) -> None:
        """Take over parameters, running statistics and masks by refsnn's names."""
        for name, value in values.items():
            self.parameter(name).data.copy_(torch.from_numpy(value))
        if self.task.density < 1:
            self.mask({name: torch.from_numpy(mask) for name, mask in masks.items()})

    def parameter(self, name: str) -> Tensor:
        """A parameter, or running statistic, by refsnn's name."""
        layer, _, part = name.rpartition(".")
        return getattr(self.named[layer], {"gamma": "weight", "beta": "bias"}.get(part, part))

    def values(self) -> dict[str, Array]:
        """Every parameter by refsnn's name."""
        names = {"weight": "gamma", "bias": "beta"}
        return {f"{layer}.{names[part] if isinstance(module, nn.BatchNorm2d) else part}": p.detach().numpy()
                for layer, module in self.named.items() for part, p in module.named_parameters()}

    def double(self) -> None:
        """Compute in float64 from now on; `load` and `give` come after it."""
        self.net.double()

    def give(self, x: Array | Tensor, labels: Array | Tensor) -> None:
        """The batch, (B, C, H, W) or (B, T, C, H, W), and its labels (B,)."""
        self.x, self.labels = torch.as_tensor(x).to(next(self.net.parameters()).dtype), torch.as_tensor(labels)

    def logits(self) -> Tensor:
        """The read-out of every step, (T, B, K)."""
        steps, batch = self.task.steps, self.task.batch
        x = self.x.transpose(0, 1) if self.task.frames else self.x.expand(steps, *self.x.shape)
        if self.make.flat:
            x = x.flatten(0, 1)
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        self.make.reset(self.net)
        with torch.autocast("cpu", torch.bfloat16) if self.bfloat16 else nullcontext():
            logits = self.run(x)
        return (logits.float() if self.bfloat16 else logits).view(steps, batch, -1)

    def step(self) -> float:
        """Forward, backward, SGD on what the masks leave; returns the loss before the update (eq. 8)."""
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.logits().flatten(0, 1), self.labels.repeat(self.task.steps))
        loss.backward()
        for name, average in self.average.items():
            average.mul_(0.9).add_(self.weights[name].grad, alpha=0.1)
        for name, mask in self.masks.items():
            self.weights[name].grad.mul_(mask)
        self.optimizer.step()
        return loss.item()

    def predict(self) -> Array:
        """Logits (K, T, B) in evaluation."""
        self.net.eval()
        with torch.inference_mode():
            return self.logits().permute(2, 0, 1).numpy()

    def spikes(self) -> list[Array]:
        """The spikes of every spiking layer in training mode, in order of execution, (T, B, ...) as packed bits."""
        found: list[Array] = []
        kind = type(self.make.lif())
        hooks = [m.register_forward_hook(lambda _, __, out: found.append(np.packbits(out.float().numpy() > 0)))
                 for m in self.net.modules() if type(m) is kind]
        run, self.run = self.run, self.net          # hooks are Python: without the compiler
        with torch.no_grad():
            self.logits()
        self.run = run
        for hook in hooks:
            hook.remove()
        return found

    # ------------------------------------------------------------------------------------- the method, with masks

    def grow(self) -> None:
        """From now on every step averages the gradients at every place."""
        self.average = {name: torch.zeros_like(w) for name, w in self.weights.items()}

    def rewire(self) -> None:
        """Stage II, layer by layer: the smallest |w| go, as many come where the average is largest (eqs. 2-4)."""
        for name, w in self.weights.items():
            mask, magnitude = self.masks[name].flatten() > 0, w.data.abs().flatten()
            count = self.to_remove(magnitude[mask])
            score = torch.where(mask, magnitude, torch.inf)
            mask[score.topk(count, largest=False).indices] = False
            wish = torch.where(mask, -1.0, self.average[name].abs().flatten())
            mask[wish.topk(count).indices] = True
            self.mask({name: mask.view(w.shape)})
            self.optimizer.state[w]["momentum_buffer"].mul_(self.masks[name])
            self.average[name].zero_()

    @staticmethod
    def to_remove(w: Tensor) -> int:
        """How many of these magnitudes of active weights are too many: PQ index (2), bound (3), count (4)."""
        d = len(w)
        index = 1 - d ** (1 / Q - 1 / P) * w.pow(P).sum() ** (1 / P) / w.pow(Q).sum() ** (1 / Q)
        bound = d * (1 + ETA) ** (-Q / (Q - P)) * (1 - index) ** (P * Q / (Q - P))
        return max(0, min(d - int(bound.ceil()), int(CAP * d)))


# peer -> options of `Peer`
OPTIONS: dict[str, dict[str, Any]] = {
    "pytorch": {}, "channels_last": {"channels_last": True}, "compile": {"compiled": True},
    "bfloat16": {"channels_last": True, "bfloat16": True},
}
