"""Events to frames: a recording is cut into T pieces, and the events of each piece are counted pixel by pixel."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from refsnn.datasets.events import Events
from refsnn.errors import UserError

Array = npt.NDArray[Any]


def frames(events: Events, steps: int, by: Literal["number", "time"] = "number",
           remainder: Literal["last", "drop"] = "last") -> Array:
    """Count a recording of N events in T = `steps` frames: (T, 2, H, W) uint16.

        frames[j, c, h, w] = number of events i with  k(i) = j,  p(i) = c,  y(i) = h,  x(i) = w

        by number:  k(i) = i // d,              d = N // T                      events i = 0 .. N-1
        by time:    k(i) = (t(i) - t(0)) // d,  d = (t(N-1) - t(0)) // T        microseconds

    Where T does not divide N, or the duration, some events have k(i) >= T: the remainder. By time the last event always
    belongs to it. A piece of time without an event is an empty frame.

    | Parameter | Default  | Meaning                                                                                |
    |-----------|----------|----------------------------------------------------------------------------------------|
    | steps     |          | T                                                                                      |
    | by        | "number" | pieces of equal number of events, or of equal time                                     |
    | remainder | "last"   | it goes into the last frame (SpikingJelly), or is left out: "drop" (tonic's `ToFrame`) |

    Raises UserError for fewer events than T, by time for a duration of less than T us, and where a pixel has more than
    65,535 events in one frame.
    """
    n, height, width = len(events), events.height, events.width
    length = n if by == "number" else int(events.t[-1] - events.t[0]) if n else 0
    if length < steps:
        amount = f"{length} events" if by == "number" else f"{n} events in {length} us"
        raise UserError(f"a recording of {amount} cannot be cut into {steps} frames by {by}; take fewer frames, or "
                        "leave it out")
    place = np.arange(n) if by == "number" else events.t - events.t[0]
    piece = place // (length // steps)
    if remainder == "last":
        piece = np.minimum(piece, steps - 1)
    cell = ((piece * 2 + events.p) * height + events.y) * width + events.x      # row-major in (T, 2, H, W)
    counts = np.bincount(cell[piece < steps], minlength=steps * 2 * height * width)
    if counts.max() > np.iinfo(np.uint16).max:
        raise UserError(f"a pixel has {counts.max()} events in one frame, more than the 65,535 that are counted; take "
                        "more frames, or leave the recording out")
    return counts.reshape(steps, 2, height, width).astype(np.uint16)
