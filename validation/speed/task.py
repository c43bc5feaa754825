"""What is measured and who is, in words that refsnn and every peer understand. Nothing but Python is imported."""

import json
from dataclasses import asdict, dataclass
from typing import Any

OURS = "refsnn"
PEERS = ("pytorch", "channels_last", "compile", "spikingjelly", "snntorch", "bfloat16")
UNMATCHED = ("bfloat16",)       # computes with three digits: measured, but no fair peer
DETACHED = ("snntorch",)        # no gradient goes through the reset: the same spikes, other gradients

# kind, numbers, options, as refsnn/notation.py has them
Piece = tuple[str, tuple[float | None, ...], tuple[str, ...]]


@dataclass(frozen=True)
class Task:
    """A training step of one network.

    | Field        | Meaning                                                                       |
    |--------------|-------------------------------------------------------------------------------|
    | net          | bundled configuration                                                         |
    | density      | share of active weights; `spread` says how the layers share it                |
    | batch, steps | B samples, T time steps                                                       |
    | pieces       | the network's layers in order                                                 |
    | input_shape  | of one sample at one step, (C, H, W)                                          |
    | frames       | whether a sample has a time axis; else the same image is shown at every step  |
    | classes      | units of the read-out                                                         |
    | lr, momentum | of SGD; the rate is small, so that the firing rates stay what they are        |
    """

    net: str
    density: float
    batch: int
    steps: int
    pieces: tuple[Piece, ...]
    input_shape: tuple[int, int, int]
    frames: bool
    classes: int
    spread: str = "uniform"
    lr: float = 1e-4
    momentum: float = 0.9

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a batch: (B, C, H, W), or (B, T, C, H, W)."""
        return (self.batch, *((self.steps,) if self.frames else ()), *self.input_shape)

    def dumps(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))


def loads(text: str) -> Task:
    """The task of a JSON text."""
    values: dict[str, Any] = json.loads(text)
    pieces = tuple((kind, tuple(numbers), tuple(options)) for kind, numbers, options in values.pop("pieces"))
    return Task(**values | {"pieces": pieces, "input_shape": tuple(values["input_shape"])})
