"""All programs by name, their start from the same weights, and the proof that they do the same work."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from peers_frameworks import FRAMEWORKS
from peers_torch import OPTIONS, Peer
from task import OURS, Task

Array = npt.NDArray[Any]

SAME = 1e-5                         # losses from the same weights, float32: relative, where no spike flips
FLIPPED, SIMILAR = 1e-3, 1e-2       # share of spikes that rounding may flip; and losses with such flips


class Program(Protocol):
    """What every program can."""

    def step(self) -> float:
        """One training step; returns the loss before the update."""

    def spikes(self) -> list[Array]:
        """The spikes of every layer as packed bits."""

    def predict(self) -> Array:
        """Logits (K, T, B) in evaluation."""

    def grow(self) -> None:
        """Keep the momentum of the gradient at every place from now on."""

    def rewire(self) -> None:
        """Prune and regrow."""


def make(name: str, task: Task) -> Any:
    """A program of its own weights.   Raises whatever its framework raises where it is absent or does not work."""
    if name == OURS:
        from ours import Ours

        return Ours(task)
    return Peer(task, **(OPTIONS | FRAMEWORKS)[name])


def make_equal(name: str, ours: Any) -> Any:
    """A peer that starts where `ours` stands, with its batch."""
    peer = make(name, ours.task)
    peer.load(*ours.values())
    peer.give(ours.x, ours.labels)
    return peer


@dataclass(frozen=True)
class Equality:
    """How far a peer's work is that of refsnn: relative difference of the first losses, spikes that differ, of all."""

    loss: float
    flips: int
    entries: int

    @property
    def holds(self) -> bool:
        """To the last digits of float32 where no spike flips; where some do, they are few and the loss is similar."""
        few = self.flips <= FLIPPED * self.entries
        return few and self.loss <= (SIMILAR if self.flips else SAME)


def equality(ours: list[Array], theirs: list[Array], our_loss: float, their_loss: float) -> Equality:
    """Compare spikes, lists of packed bits layer by layer, and losses.   Raises ValueError where the layers differ."""
    if [a.size for a in ours] != [b.size for b in theirs]:
        raise ValueError("the programs have other layers of neurons")
    flips = sum(int(np.bitwise_count(a ^ b).sum()) for a, b in zip(ours, theirs, strict=True))
    return Equality(abs(our_loss - their_loss) / abs(our_loss), flips, 8 * sum(a.size for a in ours))

