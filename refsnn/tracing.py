"""The command `trace`: steps of Algorithm 1 with every intermediate written to a file, in execution order.

The file is what another implementation is checked against. Whatever was drawn at random is in it (the order of the
samples, initial weights and connections, dropout, random growth scores), to be read from there and not drawn again.
Names, shapes and equations: docs/trace-format.md.
"""

import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

from refsnn import config as configuration
from refsnn import twin
from refsnn.datasets import Dataset
from refsnn.errors import UserError
from refsnn.runs import versions
from refsnn.schema import Config
from refsnn.show import shape_text, statistics
from refsnn.trace import FileRecorder, Record
from refsnn.train import State, start, train


def trace(config: Config, data: Dataset, steps: int, out: Path, only: Sequence[str] = (),
          tell: Callable[[str], None] | None = None) -> int:
    """Train the first `steps` optimiser steps of Algorithm 1, rewires included, and write their records to `out`.

    | Parameter | Default | Unit  | Meaning                                                                      |
    |-----------|---------|-------|------------------------------------------------------------------------------|
    | steps     |         | steps | how many to record, from the first on; the rewire that follows the last, too |
    | out       |         |       | the HDF5 file; it appears when all is written, and replaces one of that name |
    | only      | ()      |       | patterns of the names to keep, as "forward/conv1/*" or "step_0000/*"; (): all |
    | tell      | None    |       | is given a line for each record that is kept: name, kind, shape, statistics  |

    Returns the number of records. What is computed has the same bits as in `train`. Raises UserError for a number of
    steps that the configuration does not have, a pattern that matches nothing, and a file that cannot be written.
    """
    state, most = start(config, data), total_steps(config, len(data.train))
    if not 1 <= steps <= most:
        raise UserError(f"--steps {steps}: must lie between 1 and {most:,}, the steps of this configuration")
    look = None if tell is None else lambda record: tell(line(record))
    with FileRecorder(out, attributes(state.config, steps), only, look) as rec:
        train(state, data, _StopAfter(steps), rec)
    return rec.count


def total_steps(config: Config, samples: int) -> int:
    """Optimiser steps of a whole run on that many training samples."""
    keys = config.train
    every = keys.iterations * keys.epochs * -(-samples // keys.batch)
    return min(every, keys.max_steps) if keys.max_steps else every


def attributes(config: Config, steps: int) -> dict[str, str | int]:
    """The attributes of a trace's file: what ran, and on what."""
    return {
        "kind": "trace", "steps": steps, "seed": config.seed, "dtype": config.dtype,
        "config": configuration.dumps(config), "config_hash": configuration.config_hash(config),
        "versions": json.dumps(versions()), "platform": f"{platform.system()} {platform.machine()}",
        "backend": twin.get_backend(),
    }


def line(record: Record) -> str:
    """One line for a record: name, kind, shape, smallest, mean and largest value."""
    low, mean, high, _ = statistics(record.value)
    numbers = f"min {low:<11} mean {mean:<11} max {high}" if record.value.size else "empty"
    return f"{record.name:<44} {record.kind:<6} {shape_text(record.value.shape):<16} {numbers}"


class _StopAfter:
    """Watches a training (train.Watcher): stops it after a number of steps, saves nothing."""

    def __init__(self, steps: int) -> None:
        self.steps, self.done = steps, False

    def on_step(self, state: State) -> None:
        """See whether this was the last step."""
        self.done = state.step >= self.steps

    def on_epoch(self, state: State) -> None:
        """Do nothing."""

    def save(self, state: State) -> None:
        """Do nothing."""

    def should_stop(self) -> bool:
        """Whether all steps are done."""
        return self.done
