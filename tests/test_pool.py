"""Pooling: against explicit loops, central differences, ties, and the kernels against the definitions."""

import os

import numpy as np
import pytest

from refsnn import twin
from refsnn.ops.pool import avg_pool_backward, avg_pool_forward, max_pool_backward, max_pool_forward

JIT = os.environ.get("NUMBA_DISABLE_JIT", "0") != "1"
needs_jit = pytest.mark.skipif(not JIT, reason="NUMBA_DISABLE_JIT=1: there are no kernels to compare")
BACKENDS = ["numpy", pytest.param("numba", marks=needs_jit)]
SHAPES = [((1, 2, 2, 1, 1), 2), ((3, 5, 7, 2, 1), 2), ((2, 7, 5, 3, 11), 3), ((2, 4, 4, 1, 33), 1),
          ((1, 4, 4, 5, 7), 4)]


def windows(x, size):
    """Every window of x as ((c, p, q, t, b), values in row-major order)."""
    channels, height, width, steps, batch = x.shape
    for place in np.ndindex(channels, height // size, width // size, steps, batch):
        c, p, q, t, b = place
        yield place, [x[c, p * size + i, q * size + j, t, b] for i in range(size) for j in range(size)]


@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_definitions_against_loops(shape, size):
    x = np.random.default_rng(0).integers(0, 3, shape).astype(float)            # ties everywhere
    average = avg_pool_forward.definition(x, size)
    largest, winner = max_pool_forward.definition(x, size)
    assert winner.dtype == np.uint8
    for place, values in windows(x, size):
        assert average[place] == pytest.approx(sum(values) / len(values), rel=1e-15)
        assert largest[place] == max(values)
        assert winner[place] == values.index(max(values))                       # the first of equal values
    height, width = shape[1] // size, shape[2] // size
    assert average.shape == largest.shape == (shape[0], height, width, *shape[3:])


def test_ties_go_to_the_first_place_in_row_major_order():
    x = np.array([[0.0, 1.0], [1.0, 1.0]]).reshape(1, 2, 2, 1, 1)
    y, winner = max_pool_forward.definition(x, 2)
    assert (y.item(), winner.item()) == (1.0, 1)
    dx = max_pool_backward.definition(np.full_like(y, 3.0), winner, 2, (2, 2))
    assert dx.reshape(2, 2).tolist() == [[0, 3], [0, 0]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_stays_visible(backend):
    x = np.ones((1, 2, 2, 1, 4))
    x[0, [0, 0, 1, 1], [0, 1, 0, 1], 0, range(4)] = np.nan
    with twin.backend(backend):
        assert np.all(np.isnan(max_pool_forward(x, 2)[0]))
        assert np.all(np.isnan(avg_pool_forward(x, 2)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_spikes_in_bytes_give_what_they_give_as_floats(shape, size, dtype, backend):
    spikes = np.random.default_rng(5).integers(0, 2, shape).astype(np.uint8)
    with twin.backend(backend):
        y, winner = max_pool_forward(spikes, size)
        expected, places = max_pool_forward(spikes.astype(dtype), size)
    assert (y.dtype, expected.dtype) == (np.uint8, dtype)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(winner, places)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_winner_of_a_window_fits_a_byte(backend):
    x = np.zeros((1, 17, 17, 1, 2), np.float32)
    x[0, 15, 15] = 1
    with twin.backend(backend):
        assert max_pool_forward(x, 16)[1].tolist() == [[[[[255, 255]]]]]
        with pytest.raises(ValueError, match="at most 16 x 16 places"):
            max_pool_forward(x, 17)


@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_gradients_equal_central_differences(shape, size):
    generator = np.random.default_rng(1)
    x = generator.permutation(np.prod(shape)).reshape(shape) * 1.0              # no two equal: max is smooth
    dy = generator.normal(size=avg_pool_forward.definition(x, size).shape)
    winner = max_pool_forward.definition(x, size)[1]
    gradients = {
        "average": (avg_pool_backward.definition(dy, size, shape[1:3]), lambda x: avg_pool_forward.definition(x, size)),
        "max": (
            max_pool_backward.definition(dy, winner, size, shape[1:3]),
            lambda x: max_pool_forward.definition(x, size)[0],
        ),
    }
    direction = generator.normal(size=shape)
    for name, (dx, forward) in gradients.items():
        assert dx.shape == shape
        numerical = np.sum((forward(x + 1e-3 * direction) - forward(x - 1e-3 * direction)) / 2e-3 * dy)
        assert numerical == pytest.approx(np.sum(dx * direction), rel=1e-7, abs=1e-7), name
        for place in list(np.ndindex(shape))[:: max(1, x.size // 20)]:          # and single places
            up, down = x.copy(), x.copy()
            up[place] += 0.25
            down[place] -= 0.25
            assert np.sum((forward(up) - forward(down)) * dy) * 2 == pytest.approx(dx[place], abs=1e-9), name


def test_dropped_borders_receive_nothing():
    dx = avg_pool_backward.definition(np.ones((1, 2, 2, 1, 1)), 2, (5, 5))
    assert np.all(dx[:, 4] == 0)
    assert np.all(dx[:, :, 4] == 0)
    assert np.all(dx[:, :4, :4] == 0.25)


@needs_jit
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_kernels_agree_bit_for_bit(shape, size, dtype):
    generator = np.random.default_rng(2)
    holes = np.where(generator.random(shape) < 0.3, np.nan, generator.integers(0, 2, shape)).astype(dtype)
    for x in (generator.normal(size=shape).astype(dtype), generator.integers(0, 2, shape).astype(dtype), holes):
        moved = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, -1, 0)), 0, -1)         # another memory layout
        moved.setflags(write=False)
        y, winner = max_pool_forward.definition(x, size)
        dy = generator.normal(size=y.shape).astype(dtype)
        for operation, arguments in (
            (avg_pool_forward, (moved, size)),
            (max_pool_forward, (moved, size)),
            (avg_pool_backward, (dy, size, shape[1:3])),
            (max_pool_backward, (dy, winner, size, shape[1:3])),
        ):
            assert operation.agree == "exact"
            twin.check_agreement(
                operation.name, "exact", operation.definition(*arguments), operation.run_kernel(*arguments), arguments
            )


@needs_jit
@pytest.mark.parametrize("spikes", [False, True])
def test_maps_that_all_threads_share_agree_bit_for_bit(spikes):
    generator = np.random.default_rng(3)
    x = generator.integers(0, 2, (9, 30, 31, 4, 17)).astype(np.uint8 if spikes else np.float32)
    dy = generator.normal(size=(9, 15, 15, 4, 17)).astype(np.float32)
    winner = max_pool_forward.definition(x, 2)[1]
    calls = [(max_pool_forward, (x, 2)), (max_pool_backward, (dy, winner, 2, (30, 31)))]
    if not spikes:
        calls += [(avg_pool_forward, (x, 2)), (avg_pool_backward, (dy, 2, (30, 31)))]
    for operation, arguments in calls:
        expected, got = operation.definition(*arguments), operation.run_kernel(*arguments)
        twin.check_agreement(operation.name, "exact", expected, got)


@needs_jit
def test_a_kernel_that_prefers_the_last_of_equals_is_caught():
    x = np.ones((1, 2, 2, 1, 1))
    y, winner = max_pool_forward.definition(x, 2)
    with pytest.raises(twin.TwinMismatch, match="output 1"):
        twin.check_agreement("max_pool_forward", "exact", (y, winner), (y, np.full_like(winner, 3)))
