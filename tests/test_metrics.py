"""Operations counted one by one, in loops, against the formulas; densities; energy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refsnn import metrics


def count_by_hand(x: np.ndarray, mask: np.ndarray, stride: int, padding: int) -> int:
    """Every multiplication of a convolution by a non-zero input, one by one. x (C, H, W), mask (O, C, kH, kW)."""
    (channels, height, width), (filters, _, kh, kw) = x.shape, mask.shape
    total = 0
    for oh in range((height + 2 * padding - kh) // stride + 1):
        for ow in range((width + 2 * padding - kw) // stride + 1):
            for o, c, i, j in np.ndindex(filters, channels, kh, kw):
                a, b = stride * oh + i - padding, stride * ow + j - padding
                if mask[o, c, i, j] and 0 <= a < height and 0 <= b < width and x[c, a, b]:
                    total += 1
    return total


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(0, 2), st.sampled_from([(1, 1), (3, 3), (3, 5), (2, 1)]))
def test_operations_of_a_convolution_are_exact_at_borders_and_for_strides(seed: int, stride: int, padding: int,
                                                                          kernel: tuple[int, int]) -> None:
    draw = np.random.default_rng(seed)
    x = draw.random((2, 5, 6)) < 0.4
    mask = draw.random((3, 2, *kernel)) < 0.5
    fan_out = mask.reshape(3, -1).sum(axis=0)
    got = metrics.driven_by_conv(x.astype(np.int64), fan_out, kernel, stride, padding)
    assert got == count_by_hand(x, mask, stride, padding)


def test_events_add_up_over_time_and_samples() -> None:
    x = np.zeros((2, 1, 1, 3, 4))
    x[0, 0, 0, 1] = 1
    x[1, 0, 0, 2, 3] = 0.25
    assert metrics.events(x)[:, 0, 0].tolist() == [4, 1]
    assert not metrics.is_binary(x)
    assert metrics.is_binary(x[:1])


def test_operations_of_a_linear_layer() -> None:
    assert metrics.driven_by_linear(np.array([2, 0, 5]), np.array([3, 7, 1])) == 11


def test_energy_states_its_constants() -> None:
    assert metrics.energy_pj(10, 0) == pytest.approx(9.0)
    assert metrics.energy_pj(0, 10) == pytest.approx(46.0)


def test_accuracy_is_of_the_mean_over_time() -> None:
    logits = np.zeros((3, 2, 2))
    logits[1, 0, 0], logits[2, 1, 0] = 5, 4       # mean 2.5 against 2: class 1
    assert metrics.accuracy(logits, np.array([1, 0])) == 2, "of equal logits the lower class"
    assert metrics.accuracy(logits, np.array([2, 1])) == 0


def test_overlap() -> None:
    a, b = (np.packbits([*mask, *[False] * 8, True]) for mask in ([1, 1, 0, 0], [1, 0, 1, 0]))
    assert metrics.connections(a) == 3
    assert metrics.overlap(a, b) == 2 / 3
    assert metrics.overlap(np.zeros(2, np.uint8), b) == 1.0
