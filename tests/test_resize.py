"""Frames in another size: weights by hand, the equation, and what Pillow made of one frame."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refsnn.datasets.resize import WEIGHTS, resize, tet
from refsnn.errors import UserError

Array = npt.NDArray[Any]
SIZES = [((12, 9), (5, 4)), ((5, 4), (8, 9)), ((8, 8), (8, 8)), ((7, 3), (1, 3)), ((16, 16), (6, 6))]
METHOD = pytest.mark.parametrize("method", WEIGHTS)


def counts(shape: tuple[int, ...], mean: float = 0.7) -> Array:
    return np.random.default_rng(0).poisson(mean, shape).astype(np.uint16)


@METHOD
@given(n=st.integers(1, 40), m=st.integers(1, 40))
def test_weights_are_means(method: str, n: int, m: int) -> None:
    weights = WEIGHTS[method](n, m)
    assert weights.shape == (m, n)
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-12)


@pytest.mark.parametrize("method", sorted(WEIGHTS.keys() - {"nearest"}))        # which rounds down
@given(n=st.integers(1, 40), m=st.integers(1, 40))
def test_weights_are_the_same_from_both_ends(method: str, n: int, m: int) -> None:
    np.testing.assert_allclose(WEIGHTS[method](n, m), WEIGHTS[method](n, m)[::-1, ::-1], atol=1e-12)


@METHOD
def test_the_same_size_changes_nothing(method: str) -> None:
    x = counts((2, 3, 6, 7))
    out = resize(x, (6, 7), method)
    assert out.dtype == np.float32
    assert np.array_equal(out, x)


def test_weights_by_hand() -> None:
    np.testing.assert_allclose(WEIGHTS["bilinear"](4, 2), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    np.testing.assert_allclose(WEIGHTS["bilinear"](2, 4), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    np.testing.assert_allclose(WEIGHTS["antialias"](4, 2), np.array([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7)
    np.testing.assert_allclose(WEIGHTS["nearest"](5, 3), np.eye(5)[[0, 1, 3]])
    np.testing.assert_allclose(WEIGHTS["area"](5, 3), [[.5, .5, 0, 0, 0], [0, 1/3, 1/3, 1/3, 0], [0, 0, 0, .5, .5]])


@METHOD
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_a_frame_is_rows_times_frame_times_columns(method: str, old: tuple[int, int], new: tuple[int, int]) -> None:
    x = counts((2, 3, *old))
    rows, columns = WEIGHTS[method](old[0], new[0]), WEIGHTS[method](old[1], new[1])
    expected = np.zeros((2, 3, *new))
    for a, b, h, w in np.ndindex(expected.shape):
        expected[a, b, h, w] = sum(rows[h, i] * columns[w, j] * x[a, b, i, j] for i, j in np.ndindex(old))
    np.testing.assert_allclose(resize(x, new, method), expected, rtol=1e-6, atol=1e-7)


def test_antialias_sees_every_pixel_and_bilinear_does_not() -> None:
    assert WEIGHTS["antialias"](128, 48).sum(axis=0).min() > 0
    assert WEIGHTS["bilinear"](128, 32).sum(axis=0).min() == 0


# ------------------------------------------------------------------------------------------------------------------ tet
def frame(**pixels: int) -> Array:
    """Counts (1, 2, 16, 16) of one pixel in the middle: polarities p0 and p1."""
    x = np.zeros((1, 2, 16, 16), np.uint16)
    for name, value in pixels.items():
        x[0, int(name[1]), 8, 8] = value
    return x


def test_tet_loses_events_of_one_polarity_alone_and_nearly_all_of_the_count() -> None:
    assert tet(frame(p0=1), (6, 6)).max() == 0
    both = tet(frame(p0=1, p1=1), (6, 6))
    assert both[0, 0].max() == 1                    # gray, divided by its opacity again
    assert 0 < both[0, 1].max() < 0.3
    twice = tet(frame(p0=1, p1=2), (6, 6))          # 255 -> 254: less, if anything
    assert (twice[0, 1] <= both[0, 1]).all()
    assert np.array_equal(tet(frame(p0=256, p1=256), (6, 6)), tet(frame(), (6, 6)))


def test_tet_in_the_same_size_is_the_bytes() -> None:
    x = np.zeros((2, 1, 4), np.uint16)
    x[1], x[0] = [0, 1, 2, 3], [1, 1, 2, 3]
    out = tet(x, (1, 4)) * 255
    np.testing.assert_allclose(out[1, 0], [0, 255, 254, 253])
    np.testing.assert_allclose(out[0, 0], [0, 255, 254, 252], atol=1.01)


@pytest.mark.parametrize("x", [np.zeros((3, 8, 8), np.uint8), np.zeros((2, 8, 8), np.float32)])
def test_tet_takes_two_channels_of_counts(x: Array) -> None:
    with pytest.raises(UserError, match="the method tet takes two channels of counts"):
        resize(x, (4, 4), "tet")


# What torchvision 0.28 and Pillow 13 make of `waves()` in 6 x 6, as bytes; validation/check_events.py compares more.
PILLOW = [
    [[91, 175, 92, 135, 211, 198], [144, 133, 111, 227, 152, 181], [91, 137, 103, 143, 125, 116],
     [111, 189, 85, 133, 132, 151], [123, 182, 98, 127, 134, 94], [86, 155, 91, 217, 169, 178]],
    [[111, 87, 130, 109, 105, 118], [134, 105, 130, 132, 97, 138], [186, 113, 155, 163, 112, 180],
     [98, 78, 105, 101, 81, 99], [173, 113, 156, 154, 110, 176], [169, 115, 159, 155, 125, 167]],
]  # fmt: skip


def waves() -> Array:
    """Counts 0, 1 and 2 (2, 16, 16)."""
    i, j = np.indices((16, 16))
    return np.stack([(7 * i * j + 3 * i + j) % 5 // 2, (5 * i * j + i + 4 * j) % 7 // 3])


def test_tet_is_pillow_bit_for_bit() -> None:
    assert np.array_equal(tet(waves(), (6, 6)), np.array(PILLOW, np.float32) / np.float32(255))
    assert np.array_equal(resize(waves()[np.newaxis], (6, 6), "tet")[0], tet(waves(), (6, 6)))
