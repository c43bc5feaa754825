"""Optimisers and learning-rate schedules. State is kept per active weight: what is pruned leaves no trace.

PyTorch's conventions: momentum buffers start with the first gradient, Adam's eps is added outside the root, and weight
decay is added to the gradient (sgd, adam) or taken from the weight directly (adamw), for every parameter alike.

A large parameter is updated CHUNK weights at a time: what is computed on the way stays in the cache.
"""

import functools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn.errors import UserError
from refsnn.schema import OptimConfig

Array = npt.NDArray[Any]
Moments = dict[str, Array]      # the state of one parameter: arrays of the parameter's shape, by name

CHUNK = 2**16


class Optimizer:
    """Updates parameters in place; `state[name]` holds the moments of each, one entry per active weight.

    sgd    momentum  b <- momentum b + g,  b = g at the first step
           w <- w - lr b,  with Nesterov  w <- w - lr (g + momentum b)
    adam   first     m <- beta1 m + (1 - beta1) g
           second    v <- beta2 v + (1 - beta2) g^2
           steps     n <- n + 1, counted for each weight since it came
           w <- w - lr / (1 - beta1^n) * m / (sqrt(v / (1 - beta2^n)) + eps)
    adamw  the same after w <- w (1 - lr weight_decay)
    """

    def __init__(self, config: OptimConfig) -> None:
        self.config = config
        self.state: dict[str, Moments] = {}

    def prepare(self, parameters: dict[str, Array]) -> None:
        """Make the state of all parameters: made at the first step, it would lie among that step's large arrays."""
        self.state = {name: self._fresh(parameter) for name, parameter in parameters.items()}

    def step(self, parameters: dict[str, Array], gradients: dict[str, Array], lr: float) -> None:
        """Update every parameter from its gradient of the same name and shape, at learning rate `lr`."""
        update = {"sgd": self._sgd, "adam": self._adam, "adamw": self._adam}[self.config.kind]
        for name, parameter in parameters.items():
            gradient, moments = gradients[name], self.state.get(name)
            if moments is None:
                moments = self.state[name] = self._fresh(parameter)
            if parameter.size <= CHUNK:
                update(parameter, gradient, moments, lr)
                continue
            for k in range(0, len(parameter), CHUNK):
                part = slice(k, k + CHUNK)
                update(parameter[part], gradient[part], {key: moment[part] for key, moment in moments.items()}, lr)

    def _fresh(self, parameter: Array) -> Moments:
        """The state of weights that were never updated."""
        if self.config.kind == "sgd":
            return {"momentum": np.zeros_like(parameter)}
        return {
            "first": np.zeros_like(parameter),
            "second": np.zeros_like(parameter),
            "steps": np.zeros(parameter.shape, dtype=np.int32),
        }

    def _sgd(self, w: Array, g: Array, state: Moments, lr: float) -> None:
        c = self.config
        if c.weight_decay:
            g = g + c.weight_decay * w
        if c.momentum:
            b = state["momentum"]       # 0 before the first step, which makes b = g, as PyTorch has it
            b *= c.momentum
            b += g
            g = g + c.momentum * b if c.nesterov else b
        w -= lr * g

    def _adam(self, w: Array, g: Array, state: Moments, lr: float) -> None:
        c = self.config
        if c.kind == "adamw":
            w *= 1 - lr * c.weight_decay
        elif c.weight_decay:
            g = g + c.weight_decay * w
        m, v, n = state["first"], state["second"], state["steps"]
        n += 1
        m *= c.beta1
        m += (1 - c.beta1) * g
        v *= c.beta2
        v += (1 - c.beta2) * g * g
        unbias1, unbias2 = (bias_correction(beta, n, w.dtype) for beta in (c.beta1, c.beta2))
        w -= lr * (m / unbias1) / (np.sqrt(v / unbias2) + c.eps)

    def rewire(self, name: str, origin: Array) -> None:
        """Follow a weight to its new connections: what stayed keeps its moments, what came starts at zero.

        origin (nnz,): the place in the old arrays of each new active weight, or -1 for one that came. With
        `regrown_step = "global"` a weight that came takes the step count of the oldest.
        """
        if name not in self.state:
            return
        stayed = origin >= 0
        moved: Moments = {}
        for part, old in self.state[name].items():
            moved[part] = np.zeros(origin.shape, dtype=old.dtype)
            moved[part][stayed] = old[origin[stayed]]
            if part == "steps" and self.config.regrown_step == "global":
                moved[part][~stayed] = old.max(initial=0)
        self.state[name] = moved

    def reset(self) -> None:
        """Forget all moments."""
        self.state = {}


@functools.lru_cache(maxsize=8)
def _correction_table(beta: float, dtype: np.dtype[Any]) -> Array:
    """1 - beta^n for n = 0, 1, ... until it is 1 to the last bit of float64; in `dtype`, rounded once."""
    horizon = 1 if beta == 0 else math.ceil(math.log(np.finfo(np.float64).eps / 4) / math.log(beta))
    return (1.0 - beta ** np.arange(horizon + 1, dtype=np.float64)).astype(dtype)


def bias_correction(beta: float, steps: Array, dtype: npt.DTypeLike = np.float64) -> Array:
    """1 - beta^n for an integer array of step counts n >= 1, read from a table whose end stands for all that follow."""
    return _correction_table(beta, np.dtype(dtype)).take(steps, mode="clip")


def all_finite(arrays: Iterable[Array]) -> bool:
    """Whether no number is infinite or NaN.

    The sum of an array's squares is finite only if all its numbers are: one pass, and no array of truth values. Where
    it is not, large numbers may have overflowed, and each is looked at.
    """
    return all(math.isfinite(np.vdot(a, a)) or bool(np.isfinite(a).all()) for a in arrays)


def clip_gradients(gradients: dict[str, Array], names: list[str], largest: float) -> None:
    """Scale the gradients `names` in place so that their joint Euclidean norm is at most `largest`."""
    norm = math.sqrt(sum(float(np.sum(np.square(gradients[n], dtype=np.float64))) for n in names))
    if norm > largest:
        for name in names:
            gradients[name] *= largest / norm


def learning_rate(config: OptimConfig, step: int, period: int, steps_per_epoch: int) -> float:
    """Learning rate of optimiser step `step` (0, 1, ...) of a period of `period` steps.

        warm-up    lr (step + 1) / w                                   for the first w = warmup * steps_per_epoch steps
        cosine     lr (1 + cos(pi x)) / 2,  x = (step - w) / (period - w)     from lr down towards 0
        step       lr step_factor^k,        k = whole multiples of step_every epochs since the period's start
        constant   lr

    Raises UserError where the warm-up leaves no steps.
    """
    warm = config.warmup * steps_per_epoch
    if step < warm:
        return config.lr * (step + 1) / warm
    if warm >= period:
        raise UserError(f"optim.warmup = {config.warmup} epochs leaves no steps in a period of {period} steps")
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / (period - warm)))
    if config.schedule == "step":
        return config.lr * config.step_factor ** (step // (config.step_every * steps_per_epoch))
    return config.lr
