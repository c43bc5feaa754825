"""ops/kernels/blocks: what runs in vector registers against the same sums in NumPy, and the key of the cache."""

import numba
import numpy as np
import pytest

from refsnn.ops.kernels import blocks, conv
from refsnn.ops.kernels.blocks import dense, sums, vectors

JIT = not numba.config.DISABLE_JIT
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
lengths = pytest.mark.parametrize("n", [8, 16, 40, 72, 256, 264, 504])


def runs(dtype, n, weights=13, seed=0):
    """Spikes, their bytes, places of runs in both, weights and a gradient of three rows."""
    rng = np.random.default_rng(seed)
    spikes = (rng.random(4096) < 0.3).astype(dtype)
    offsets = rng.integers(0, (spikes.size - 3 * n) // 8, weights) * 8
    return spikes, np.packbits(spikes > 0, bitorder="little"), offsets, rng.standard_normal((3, n)).astype(dtype)


@dtypes
@lengths
@pytest.mark.parametrize("count", [0, 1, 3, 4, 8, 13])
def test_dot_products_of_runs(dtype, n, count):
    x, bits, offsets, gradient = runs(dtype, n)
    truth = [sum(np.sum(gradient[h].astype(float) * x[at + h * n : at + h * n + n]) for h in range(3))
             for at in offsets[:count]]
    dots, masked = np.full(14, 7, dtype), np.full(14, 7, dtype)
    blocks.dot_runs(dots, 1, 0, gradient.reshape(-1), 0, 0, n, x, bits, False, offsets, 0, count, n, 3, n)
    blocks.dot_runs(masked, 1, 0, gradient.reshape(-1), 0, 0, n, x, bits, True, offsets // 8, 0, count, n // 8, 3, n)
    np.testing.assert_allclose(dots[:count], truth, rtol=0, atol=3 * n * np.finfo(dtype).eps)
    np.testing.assert_array_equal(masked, dots)
    assert (dots[count:] == 7).all()


@dtypes
@pytest.mark.parametrize("n", [1, 5, 16, 24, 131, 256, 504])
@pytest.mark.parametrize("count", [0, 1, 13])
def test_sums_of_runs(dtype, n, count):
    """What fills vectors and what does not, against the plain twin; nothing beyond the run is written."""
    x, bits, offsets, gradient = runs(dtype, 512)
    weights = gradient[0]
    given = (gradient[1].copy(), 8, n, offsets, weights, count)
    truth = gradient[1][8 : 8 + n] + sum(
        (weights[k].astype(float) * x[at + 16 : at + 16 + n] for k, at in enumerate(offsets[:count])), np.zeros(n))
    runs_, spikes = add(add_runs, x, offsets, 16, *given), add(add_spikes, bits, offsets // 8, 2, *given)
    np.testing.assert_allclose(runs_[3 : 3 + n], truth, rtol=0, atol=50 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(runs_, spikes)
    assert (runs_[:3] == 7).all()
    assert (runs_[3 + n :] == 7).all()
    np.testing.assert_allclose(runs_, add(numba.njit(sums._add_runs), x, offsets, 16, *given), rtol=1e-5)
    np.testing.assert_allclose(runs_, add(numba.njit(sums._add_spikes), bits, offsets // 8, 2, *given), rtol=1e-5)


def add(operation, x, offsets, shift, base, start, n, _, weights, count):
    """The target of add_runs or add_spikes, which writes n numbers from place 3 on among sevens."""
    target = np.full(600, 7, base.dtype)
    operation(target, 3, base, start, n, x, shift, offsets, weights, 0, count)
    return target


@numba.njit
def add_runs(target, at, base, start, n, x, shift, offsets, weights, first, last):
    """Intrinsics can be called from compiled code only."""
    blocks.add_runs(target, at, base, start, n, x, shift, offsets, weights, first, last)


@numba.njit
def add_spikes(target, at, base, start, n, bits, shift, offsets, weights, first, last):
    blocks.add_spikes(target, at, base, start, n, bits, shift, offsets, weights, first, last)


@dtypes
@pytest.mark.parametrize("vectors_", [1, 3, 16, 19, 35])
@pytest.mark.parametrize("stream", [False, True])
def test_sums_for_several_filters(dtype, vectors_, stream):
    """Next to each other and apart, past the caches and not, against the plain twin."""
    size = vectors.length(np.dtype(dtype).itemsize)
    n, filters = vectors_ * size, 3
    x, bits, offsets, gradient = runs(dtype, 600)
    bounds, base, weights = np.array([0, 5, 5, 13], np.int32), gradient[1][:filters].copy(), gradient[0]
    for apart in (size, 3 * size):
        spread = vectors_ * apart
        for operation, plain, source, places in ((sum_runs, sums._sum(sums._add_runs), x, offsets),
                                                 (sum_spikes, sums._sum(sums._add_spikes), bits, offsets // 8)):
            got, truth = (blocks.empty(filters * spread + 64, np.dtype(dtype)) for _ in range(2))    # starts at a line
            got[:] = truth[:] = 7
            args = (spread, apart, base, n, source, 0, places, 0, weights, bounds, 1, 0, filters, stream)
            operation(got, size, *args)
            plain(truth, size, *args)
            np.testing.assert_allclose(got, truth, rtol=0, atol=50 * np.finfo(dtype).eps)


@numba.njit
def sum_runs(target, at, spread, apart, base, n, x, shift, places, place, weights, bounds, step, first, last, stream):
    blocks.sum_runs(target, at, spread, apart, base, n, x, shift, places, place, weights, bounds, step, first, last,
                    stream)


@numba.njit
def sum_spikes(target, at, spread, apart, base, n, x, shift, places, place, weights, bounds, step, first, last, stream):
    blocks.sum_spikes(target, at, spread, apart, base, n, x, shift, places, place, weights, bounds, step, first, last,
                      stream)


@dtypes
def test_spikes_of_four_channels_in_a_byte(dtype):
    x, _, _, _ = runs(dtype, 8)
    for spikes in (x, x.astype(np.uint8)):
        merged = np.zeros(100, np.uint8)
        for c in range(4):
            assert dense.merge_spikes(merged, 0, spikes, 7 + 100 * c, 100, 1 << c)
        truth = sum(spikes[7 + 100 * c : 107 + 100 * c].astype(int) << c for c in range(4))
        np.testing.assert_array_equal(merged, truth)
        for place in (0, 99):
            other = spikes.copy()
            other[7 + place] = 3
            assert not dense.merge_spikes(merged, 0, other, 7, 100, 1)


@dtypes
@lengths
def test_packed_spikes_are_the_bits(dtype, n):
    x, _, _, _ = runs(dtype, n)
    bits = np.zeros(n // 8, np.uint8)
    for spikes in (x, x.astype(np.uint8)):
        bits[:] = 0
        assert blocks.pack_spikes(bits, 0, spikes, 3, n)
        np.testing.assert_array_equal(bits, np.packbits(x[3 : 3 + n] > 0, bitorder="little"))
    for value in (0.5, 2.0, np.nan, -1.0):
        for place in (0, n - 1):
            other = x.copy()
            other[3 + place] = value
            assert not blocks.pack_spikes(bits, 0, other, 3, n)


@pytest.mark.skipif(not JIT, reason="kernels run as plain Python: nothing is cached")
def test_the_digest_of_the_blocks_is_in_the_key_of_the_cache(monkeypatch):
    """Numba's cache looks at a kernel's own file: without the digest it would go on with the blocks of yesterday."""
    cache = conv.conv2d_weight_gradient_kernel._cache
    codegen = numba.core.registry.cpu_target.target_context.codegen()
    before = cache._index_key((), codegen)
    monkeypatch.setattr(vectors, "DIGEST", "another")
    assert cache._index_key((), codegen) != before
    assert cache._index_key((), codegen)[:-1] == before[:-1]
