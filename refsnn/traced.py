"""The records of one step of a trace, as the rules that recompute them read them (refsnn/recompute.py).

Each is OTHER's where OTHER has it, GOLDEN's elsewhere. Records are (T, B, ...); what is read as `samples` is features
first, samples last, as everywhere in this program.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn.errors import UserError
from refsnn.schema import Config
from refsnn.wiring import Wired, wiring_of

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
STEP = re.compile(r"(step_(\d+)/)?(.*)")


class UnavailableError(Exception):
    """A record cannot be recomputed: an input is missing, or this convention has nothing to say about it."""


@dataclass
class Step:
    """The records of one step, by their names without it.

    | Field | Meaning |
    |---|---|
    | golden, other | all arrays by full name; OTHER's are read where they have GOLDEN's shape |
    | prefix | "step_0003/" |
    | config | GOLDEN's configuration |
    | target | OTHER's array for the record that is being explained, None where GOLDEN is recomputed |
    """

    golden: Arrays
    other: Arrays
    prefix: str
    config: Config
    target: Array | None = None

    def has(self, name: str) -> bool:
        """Whether one of the two files holds the record."""
        return self.prefix + name in self.golden or self.prefix + name in self.other

    def given(self, name: str) -> bool:
        """Whether OTHER holds the record (in GOLDEN's shape, where GOLDEN has it)."""
        full = self.prefix + name
        return full in self.other and (full not in self.golden or self.other[full].shape == self.golden[full].shape)

    def value(self, name: str) -> Array:
        """The record; raises UnavailableError where neither file holds it."""
        full = self.prefix + name
        if self.given(name):
            return self.other[full]
        if full in self.golden:
            return self.golden[full]
        raise UnavailableError(f"{full} is in neither file")

    def samples(self, name: str) -> Array:
        """An activation, features first: (T, B, ...) as (..., T, B)."""
        return features_first(self.value(name))

    def before(self) -> "Step":
        """The step before this one; raises UnavailableError for the first of the file."""
        match = STEP.match(self.prefix)
        if match is None or match[2] is None or int(match[2]) == 0:
            raise UnavailableError("no step before this one")
        return Step(self.golden, self.other, f"step_{int(match[2]) - 1:0{len(match[2])}d}/", self.config)

    def first(self, name: str) -> Array:
        """A record of the first step of a run; raises UnavailableError where GOLDEN does not begin there."""
        full = f"step_{0:0{len(self.prefix) - 6}d}/{name}"
        if full not in self.golden:
            raise UnavailableError(f"{full} is not in GOLDEN")
        return self.golden[full]

    def names(self) -> Iterator[str]:
        """GOLDEN's records of this step, in execution order, without the step."""
        return (name.removeprefix(self.prefix) for name in self.golden if name.startswith(self.prefix))

    # ------------------------------------------------------------------------------------------------ who is given what

    def wiring(self) -> dict[str, Wired]:
        """The layers of the configuration in their places; raises UnavailableError where GOLDEN holds no input."""
        for name in ("encode/spikes", "input/x"):
            shape = self.golden[self.prefix + name].shape if self.prefix + name in self.golden else ()
            if len(shape) > 3:
                try:
                    return wiring_of(self.config, shape[-3:])
                except UserError as error:
                    raise UnavailableError(str(error)) from None
        raise UnavailableError("the shape of the samples is not in GOLDEN")

    def wired(self, layer: str) -> Wired:
        """A layer in its place; raises UnavailableError for one that the configuration does not have."""
        wiring = self.wiring()
        if layer not in wiring:
            raise UnavailableError(f"the configuration has no layer {layer}")
        return wiring[layer]

    def maker(self, record: str) -> Wired | None:
        """The layer whose output a record is, None for the network's input."""
        return next((one for one in self.wiring().values() if one.output == record), None)

    def input(self, layer: str) -> Array:
        """What a layer was given, features first."""
        return self.samples(self.wired(layer).input)

    def output_gradient(self, layer: str) -> Array:
        """dL/d output of a layer, features first, in the shape of the output (a flattening undone)."""
        place = self.wired(layer)
        dy, shape = self.samples(place.arriving), self.samples(place.output).shape
        if dy.size != np.prod(shape):
            raise UnavailableError(f"the gradient of {layer} has another size than its output")
        return dy.reshape(shape)

    def logits(self) -> Array:
        """The read-out, (K, T, B)."""
        return self.samples(list(self.wiring().values())[-1].output)


def features_first(value: Array) -> Array:
    """(T, B, ...) as (..., T, B)."""
    if value.ndim < 2:
        raise UnavailableError("no activation")
    return np.moveaxis(value, (0, 1), (-2, -1))


def samples_first(value: Array) -> Array:
    """(..., T, B) as (T, B, ...), as records are."""
    return np.moveaxis(value, (-2, -1), (0, 1))
