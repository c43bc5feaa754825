"""Events to frames: against one loop over the events, both ways to cut, both remainders, and what is refused."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refsnn.datasets.events import Events
from refsnn.datasets.frames import frames
from refsnn.errors import UserError

Array = npt.NDArray[Any]
By = Literal["number", "time"]
Remainder = Literal["last", "drop"]
H, W = 3, 5


@st.composite
def recordings(draw: st.DrawFn) -> Events:
    """Up to 40 events on 3 x 5 pixels, whose times repeat and pause."""
    n = draw(st.integers(1, 40))
    several = draw(st.lists(st.tuples(st.integers(0, W - 1), st.integers(0, H - 1), st.sampled_from([0, 0, 1, 7, 50]),
                                      st.integers(0, 1)), min_size=n, max_size=n))
    x, y, pauses, p = np.array(several).T
    return Events(x, y, 1000 + np.cumsum(pauses), p, H, W)


def counted(events: Events, steps: int, by: By, remainder: Remainder) -> Array:
    """The definition, event by event, with whole numbers of Python."""
    found = np.zeros((steps, 2, events.height, events.width), np.int64)
    first, last, n = int(events.t[0]), int(events.t[-1]), len(events)
    for i in range(n):
        place, end = (i, n) if by == "number" else (int(events.t[i]) - first, last - first)
        k = place // (end // steps)
        if k >= steps:
            if remainder == "drop":
                continue
            k = steps - 1
        found[k, events.p[i], events.y[i], events.x[i]] += 1
    return found


@given(events=recordings(), steps=st.integers(1, 9), by=st.sampled_from(["number", "time"]),
       remainder=st.sampled_from(["last", "drop"]))
def test_frames_are_the_counts_of_the_definition(events: Events, steps: int, by: By, remainder: Remainder) -> None:
    length = len(events) if by == "number" else int(events.t[-1] - events.t[0])
    if length < steps:
        with pytest.raises(UserError, match="cannot be cut"):
            frames(events, steps, by, remainder)
        return
    found = frames(events, steps, by, remainder)
    assert found.dtype == np.uint16
    assert np.array_equal(found, counted(events, steps, by, remainder))
    if remainder == "last":
        assert found.sum() == len(events)


def line(times: list[int]) -> Events:
    """Event i at pixel (i mod 5, 0), polarity i mod 2."""
    i = np.arange(len(times))
    return Events(i % W, i * 0, np.array(times), i % 2, H, W)


def test_by_number_the_last_frame_takes_the_remainder() -> None:
    events = line(list(range(11)))
    assert frames(events, 3).sum(axis=(1, 2, 3)).tolist() == [3, 3, 5]
    assert frames(events, 3, remainder="drop").sum(axis=(1, 2, 3)).tolist() == [3, 3, 3]
    assert frames(events, 11).sum(axis=(1, 2, 3)).tolist() == [1] * 11


def test_by_time_a_pause_is_an_empty_frame() -> None:
    events = line([100, 101, 102, 190, 199, 200])           # 100 us, four pieces of 25
    assert frames(events, 4, "time").sum(axis=(1, 2, 3)).tolist() == [3, 0, 0, 3]
    assert frames(events, 4, "time", "drop").sum(axis=(1, 2, 3)).tolist() == [3, 0, 0, 2]
    assert frames(events, 3, "time").sum(axis=(1, 2, 3)).tolist() == [3, 0, 3]             # three of 33, and 1 us
    assert frames(events, 3, "time", "drop").sum(axis=(1, 2, 3)).tolist() == [3, 0, 1]


def test_the_channel_is_the_polarity_and_the_row_is_y() -> None:
    found = frames(Events([4, 4, 1], [2, 2, 0], [0, 1, 2], [1, 1, 0], H, W), 1)
    assert found[0, 1, 2, 4] == 2
    assert found[0, 0, 0, 1] == 1
    assert found.sum() == 3


@pytest.mark.parametrize(
    ("times", "steps", "by", "words"),
    [
        ([], 1, "number", "a recording of 0 events cannot be cut into 1 frames by number"),
        ([], 1, "time", "a recording of 0 events in 0 us"),
        ([0, 1], 3, "number", "a recording of 2 events cannot be cut into 3 frames by number"),
        ([5, 5, 5, 5], 2, "time", "a recording of 4 events in 0 us cannot be cut into 2 frames by time"),
        ([5, 5, 5, 6], 2, "time", "a recording of 4 events in 1 us"),
    ],
)
def test_a_recording_too_short_is_refused_in_one_line(times: list[int], steps: int, by: By, words: str) -> None:
    events = line(times) if times else Events(*np.zeros((4, 0), int), H, W)
    with pytest.raises(UserError, match=words) as caught:
        frames(events, steps, by)
    assert "take fewer frames" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_counts_that_would_wrap_are_refused() -> None:
    n = 65_535
    events = Events(*np.zeros((2, n), int), np.arange(n), np.zeros(n, int), H, W)
    assert frames(events, 1)[0, 0, 0, 0] == 65_535
    one_more = Events(*np.zeros((2, n + 1), int), np.arange(n + 1), np.zeros(n + 1, int), H, W)
    with pytest.raises(UserError, match="a pixel has 65536 events in one frame"):
        frames(one_more, 1)
