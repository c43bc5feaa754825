"""Fixtures shared by the tests: a small configuration, its data, and a watcher that looks on."""

import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from refsnn import config as configuration
from refsnn.datasets import Dataset, Samples, Subset, load
from refsnn.schema import Config
from refsnn.train import State, start, train

sys.path.insert(0, str(Path(__file__).parent))      # so that tests find gradcheck


class Watcher:
    """Keeps what it was shown; stops after `stop_after` steps if that is given."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.steps = self.saves = 0

    def on_step(self, state: State) -> None:     # noqa: ARG002
        self.steps += 1

    def on_epoch(self, state: State) -> None:
        pass

    def save(self, state: State) -> None:       # noqa: ARG002
        self.saves += 1

    def should_stop(self) -> bool:
        return self.stop_after is not None and self.steps >= self.stop_after


def tiny(*overrides: str) -> Config:
    """The bundled `tiny` configuration with --set overrides."""
    return configuration.load("tiny", overrides)


def data_of(config: Config) -> Dataset:
    return load(config)


def first(data: Dataset, train: int, test: int) -> Dataset:
    """The first samples of each part."""
    parts = {"train": Subset(data.train, np.arange(train)), "test": Subset(data.test, np.arange(test))}
    return replace(data, **parts)


def every(samples: Samples) -> np.ndarray:
    """All samples as one array."""
    return samples.batch(np.arange(len(samples)), 0)


def train_tiny(*overrides: str) -> State:
    """Train `tiny` to its end and return the final state."""
    config = tiny(*overrides)
    data = data_of(config)
    state = start(config, data)
    train(state, data, Watcher())
    return state


@pytest.fixture(autouse=True, scope="session")
def _listen_to_ctrl_c() -> None:
    """A job in the background of a shell ignores Ctrl-C; the tests of it, and the programs they start, must not."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def watcher() -> Watcher:
    return Watcher()
