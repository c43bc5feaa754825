"""refsnn's side: the task of a bundled configuration, its training step, and what a peer needs to start equal."""

from typing import Any

import numpy as np
import numpy.typing as npt
from task import Task

from refsnn import datasets, notation
from refsnn import train as algorithm
from refsnn.config import load
from refsnn.datasets import Dataset, InMemory
from refsnn.encode import ENCODERS
from refsnn.models import MODELS
from refsnn.rewire import end_counts
from refsnn.schema import Config
from refsnn.trace import NO_RECORD

Array = npt.NDArray[Any]

# SGD as all programs have it; nothing is rewired, so that no step looks for the gradient at every place; weights that
# grow with 1 / density, so that neurons behind a linear layer fire at every density
STATIC = ("structure.fan=active", "optim.kind=sgd", "optim.schedule=constant", "optim.weight_decay=0",
          "rewire.ratio=none", "train.clip=0")
# the next rewire regrows: `window` steps before it, and in all steps with 0, the dense gradient is computed
GROWING = ("rewire.ratio=pq", "rewire.preset=literal", "train.iterations=2", "train.epochs=1")


def task_of(net: str, density: float, batch: int, steps: int, spread: str = "uniform") -> Task:
    """The task of a bundled configuration; with "uniform" every layer has that density."""
    config = load(net, [f"encode.steps={steps}", f"structure.density={density}"])
    sample = (datasets.stand_in(config) or datasets.load(config))
    shape = sample.train.batch(np.zeros(1, np.int64), 0).shape[1:]
    pieces = tuple((p.kind, p.numbers, p.options) for p in notation.parse(MODELS[config.model.name](config.model)))
    return Task(net, density, batch, steps, pieces, shape[-3:], config.encode.kind == "frames", sample.classes, spread)


def samples(task: Task) -> tuple[Array, Array]:
    """A batch of random images, normal numbers, or of random event frames, counts; and labels (B,)."""
    rng = np.random.default_rng(1)
    x = rng.poisson(0.3, task.shape) if task.frames else rng.standard_normal(task.shape)
    return x.astype(np.float32), rng.integers(0, task.classes, task.batch)


class Ours:
    """refsnn's training step; the same batch at every step."""

    def __init__(self, task: Task, overrides: tuple[str, ...] = STATIC, steps_per_epoch: int = 1) -> None:
        self.task, self.overrides, self.steps_per_epoch = task, overrides, steps_per_epoch
        self.x, self.labels = samples(task)
        both = InMemory(self.x[:1], self.labels[:1])
        self.state = algorithm.start(self.config(overrides), Dataset("random", both, both, task.classes))

    def config(self, overrides: tuple[str, ...]) -> Config:
        """The configuration of the task."""
        task = self.task
        keys = (f"encode.steps={task.steps}", f"structure.density={task.density}",
                f"structure.spread={task.spread}", f"train.batch={task.batch}",
                f"optim.lr={task.lr}", f"optim.momentum={task.momentum}", "rewire.rewind=false")
        return algorithm.complete(load(task.net, [*STATIC, *keys, *overrides]))

    def step(self) -> float:
        """Forward, backpropagation through time, SGD; returns the loss before the update."""
        with np.errstate(over="ignore", invalid="ignore"):      # as a run has it
            return algorithm.train_step(self.state, self.x, self.labels, self.steps_per_epoch)[0]

    def grow(self) -> None:
        """From now on every step keeps the momentum of the gradient at every place."""
        self.state.config = self.config((*GROWING, "rewire.grow_window=0"))

    def rewire(self) -> None:
        """The end of an iteration: measure, prune, regrow as many."""
        self.state.measurement = algorithm.measure(self.state)
        algorithm.stage_two(self.state, "end", *end_counts(self.state.measurement, 1.0))

    def encoded(self) -> Array:
        """The batch as the network's input, (C, H, W, T, B)."""
        keys = self.state.config
        return ENCODERS[keys.encode.kind](self.x, keys.encode.steps, keys.dtype)

    def spikes(self) -> list[Array]:
        """The spikes of every spiking layer in training mode, in order of execution, (T, B, ...) as packed bits."""
        keeper = _Keeper()
        self.state.network.forward(self.encoded(), True, _no_draws, keeper)
        return keeper.spikes

    def predict(self) -> Array:
        """Logits (K, T, B) of the batch in evaluation mode, encoding included."""
        return self.state.network.forward(self.encoded(), False, _no_draws, NO_RECORD)[0]

    def settle(self) -> None:
        """Give batch norm the statistics of this batch: those that a network starts with fit no network."""
        before = {norm.name: (norm.running_mean, norm.running_var) for norm in self.state.network.norms}
        self.step()
        for norm in self.state.network.norms:
            mean, var = ((new - (1 - norm.momentum) * old) / norm.momentum
                         for new, old in zip((norm.running_mean, norm.running_var), before[norm.name], strict=True))
            norm.running_mean, norm.running_var = mean.astype(self.x.dtype), var.clip(min=0).astype(self.x.dtype)

    def values(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """Every parameter and running statistic by name, weights dense; and the masks by name."""
        network = self.state.network
        found = dict(network.parameters) | {name: weight.dense() for name, weight in network.weights.items()}
        for norm in network.norms:
            found |= {f"{norm.name}.running_mean": norm.running_mean, f"{norm.name}.running_var": norm.running_var}
        return found, {name: weight.mask() for name, weight in network.weights.items()}


class _Keeper:
    """A recorder that keeps spikes and drops everything else."""

    active = True

    def __init__(self) -> None:
        self.spikes: list[Array] = []

    def begin_step(self, step: int) -> None:
        """Nothing."""

    def value(self, name: str, value: Any, kind: str = "real") -> None:
        """Dropped."""

    def samples(self, name: str, value: Array, kind: str = "real") -> None:     # noqa: ARG002
        """Spikes (..., T, B) are kept with time and samples first."""
        if kind == "spikes":
            self.spikes.append(np.packbits(np.moveaxis(value, (-2, -1), (0, 1)) > 0))


def _no_draws(name: str) -> np.random.Generator:
    raise ValueError(f"{name} draws at random: two programs cannot be compared")
