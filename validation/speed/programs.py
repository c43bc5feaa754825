"""All programs by name, their start from the same weights, and the proof that they do the same work."""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from peers_frameworks import FRAMEWORKS
from peers_torch import OPTIONS, Peer
from task import DETACHED, OURS, Task

Array = npt.NDArray[Any]

SAME = 1e-9         # float64, relative
FEW = 2             # samples of the proof


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


def make_equal(name: str, ours: Any, double: bool = False) -> Any:
    """A peer that starts where `ours` stands, with its batch; in float64 where asked."""
    peer = make(name, ours.task)
    if double:
        peer.double()
    peer.load(*ours.values())
    peer.give(ours.x, ours.labels)
    return peer


@dataclass(frozen=True)
class Equality:
    """How far a peer's work is that of refsnn, in float64.

    loss         loss from the same weights, relative
    update       largest difference of a parameter after one step, over its array's largest change by that step
    flips        spikes of the first step that differ, of `entries`
    """

    loss: float
    update: float
    flips: int
    entries: int

    def holds(self, gradients: bool) -> bool:
        """Not one spike differs, loss and updates agree; the latter only where the peer's gradients should."""
        return self.flips == 0 and self.loss <= SAME and (not gradients or self.update <= SAME)


def verify(name: str, task: Task) -> Equality:
    """A step of a peer and of refsnn, from the same weights, on a few samples of the task, in float64.

    The loss alone would not show a wrong gradient: it depends on spikes, and a small step flips hardly one. float32
    cannot prove it: where rounding flips one spike in a hundred thousand in one layer, the layers behind multiply
    it. Raises SystemExit where the peer does other work.
    """
    from ours import STATIC, Ours

    few = replace(task, batch=min(FEW, task.batch), lr=1.0)
    ours = Ours(few, (*STATIC, "dtype=float64"))
    peer = make_equal(name, ours, double=True)
    mine, theirs = ours.spikes(), peer.spikes()
    if [a.size for a in mine] != [b.size for b in theirs]:
        raise SystemExit(f"{task.net}: {name} has other layers of neurons")
    flips = sum(int(np.bitwise_count(a ^ b).sum()) for a, b in zip(mine, theirs, strict=True))
    before = {parameter: value.copy() for parameter, value in ours.values()[0].items()}
    losses = ours.step(), peer.step()
    after, others = ours.values()[0], peer.values()
    update = max(float(np.abs(after[key] - others[key]).max() / (np.abs(after[key] - before[key]).max() or 1))
                 for key in others)
    found = Equality(abs(losses[0] - losses[1]) / abs(losses[0]), update, flips, 8 * sum(a.size for a in mine))
    if not found.holds(gradients=name not in DETACHED):
        raise SystemExit(f"{task.net}, density {task.density:.0%}: {name} does other work: {found}")
    return found
