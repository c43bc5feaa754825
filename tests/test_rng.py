"""Random streams: what is drawn depends on seed, name and keys only."""

import numpy as np
import pytest

from refsnn.rng import stream


def test_the_order_of_calls_does_not_matter() -> None:
    a1, b1 = stream(1, "a").random(), stream(1, "b").random()
    b2, a2 = stream(1, "b").random(), stream(1, "a").random()
    assert (a1, b1) == (a2, b2)


def test_seed_name_and_keys_each_make_another_stream() -> None:
    keys = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), (0, "a", 0, 0)]
    draws = [stream(*key).random(4).tobytes() for key in keys]
    assert len(set(draws)) == len(draws)


def test_a_stream_is_the_same_on_every_platform() -> None:
    assert stream(0, "mask/conv1.weight").integers(0, 1 << 32, 3).tolist() == [184959854, 1503957542, 53400226]


def test_streams_are_independent() -> None:
    a, b = (stream(0, "shuffle", epoch).standard_normal(20_000) for epoch in (0, 1))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.03


def test_negative_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="must be >= 0"):
        stream(0, "a", -1)
    with pytest.raises(ValueError, match="must be >= 0"):
        stream(-1, "a")
