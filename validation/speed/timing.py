"""Programs timed in turn: only ratios of the same rounds compare, because clocks move and other work interferes."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn.bench import quartiles

Array = npt.NDArray[Any]
__all__ = ["interleave", "quartiles", "timed"]

PAUSE, SHORTEST = 0.02, 0.1     # seconds: for another library's idle threads to fall asleep; what is timed at once


def interleave(calls: Sequence[Callable[[], object]], rounds: int) -> Array:
    """Seconds of one call of each in each round, (rounds, calls); who goes first moves on by one from round to round.

    One call each is for warming up, one to see how long it takes: what is short is repeated until it can be timed.
    """
    for call in calls:
        call()
    repeats = [max(1, round(SHORTEST / timed(call))) for call in calls]
    times = np.empty((rounds, len(calls)))
    for r in range(rounds):
        for k in range(len(calls)):
            which = (r + k) % len(calls)
            times[r, which] = timed(calls[which], repeats[which])
    return times


def timed(call: Callable[[], object], repeats: int = 1) -> float:
    """Seconds of one call, after a pause."""
    time.sleep(PAUSE)
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - began) / repeats
