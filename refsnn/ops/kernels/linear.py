"""Kernels of the sparse linear map.

What they do. T and B are one axis of N contiguous samples, so an active weight moves one run of N contiguous numbers.
Forward, input gradient and dense weight gradient are sums of runs, `add_runs` of `blocks.py`:

    forward          total: y[o]               runs: rows of x (F, N)       k: active weights of neuron o
    input gradient   total: dx[f]              runs: rows of dy (O, N)      k: active weights of feature f, after a sort
    dense gradient   total: dW[:, f]           runs: rows of dy^T (N, O)    k: samples whose input f is not zero

and the gradient of the active weights is a dot product of runs for each of them, eight at a time.

Why so. The total stays in registers over all k. Spikes are packed one a bit, for the forward pass and the gradient of
the active weights. The dense gradient skips inputs that are zero, as most spikes are. The sort of the input gradient
is done in parallel, a block of features by each task. Every output is written by one iteration in a fixed order:
results do not depend on the number of threads. Little work is done by one thread: to start the others costs more.

What it gained over plain loops, eight runs a pass: processor time, one AVX-512 core (Zen 5), float32, 4096 -> 1024,
N = 64, density 0.05, a tenth of the inputs spike: forward 2.2 times (71 GFLOP/s), active weights 9 (38), the dense
gradient nothing. The input gradient is bound by its sort: in blocks of 256 features 2 times (10), in blocks of 64 none.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from refsnn.ops.kernels.blocks import (
    add_runs,
    add_spikes,
    ceil_div,
    dot_runs,
    fill,
    kernel_jit,
    no_bias,
    pack_spikes,
)

Array = npt.NDArray[Any]

FEATURES = 256  # input features of one parallel task of the input gradient
SERIAL = 2**22  # multiply-adds below which one thread works alone
TILE = 32       # features of one task of the dense gradient; edge of a block in a transposition


@kernel_jit(parallel=True)
def linear_forward_kernel(x: Array, data: Array, indices: Array, indptr: Array, bias: Array | None) -> Array:
    """Kernel of `linear_forward`."""
    features, steps, batch = x.shape
    rows, samples = indptr.size - 1, steps * batch
    at_rest = no_bias(rows, x.dtype) if bias is None else bias
    y = np.empty((rows, samples), x.dtype)
    bits, packed = pack_rows(x.reshape(features, samples))
    offsets = row_offsets(indices, features, samples // 8 if packed else samples)
    if indices.size * samples < SERIAL:
        for o in range(rows):
            weigh_inputs(y, o, x, bits, packed, data, offsets, indptr, at_rest)
    else:
        for o in prange(rows):
            weigh_inputs(y, np.int64(o), x, bits, packed, data, offsets, indptr, at_rest)
    return y.reshape(rows, steps, batch)


@kernel_jit()
def weigh_inputs(
    y: Array, o: Any, x: Array, bits: Array, packed: bool, data: Array, offsets: Array, indptr: Array, at_rest: Array
) -> None:
    """Task: the current of neuron o."""
    n, target, at = y.shape[1], y.reshape(-1), o * y.shape[1]
    fill(target, at, n, at_rest[o])
    if packed:
        add_spikes(target, at, target, at, n, bits.reshape(-1), 0, offsets, data, indptr[o], indptr[o + 1])
    else:
        add_runs(target, at, target, at, n, x.reshape(-1), 0, offsets, data, indptr[o], indptr[o + 1])


@kernel_jit(parallel=True)
def linear_input_gradient_kernel(dy: Array, data: Array, indices: Array, indptr: Array, features: int) -> Array:
    """Kernel of `linear_input_gradient`."""
    rows, steps, batch = dy.shape
    check_columns(indices, features)
    gradient, dx = dy.reshape(rows, steps * batch), np.empty((features, steps * batch), dy.dtype)
    blocks = ceil_div(features, FEATURES)
    if indices.size * steps * batch < SERIAL:
        for t in range(blocks):
            gather_features(dx, t, gradient, data, indices, indptr)
    else:
        for t in prange(blocks):
            gather_features(dx, np.int64(t), gradient, data, indices, indptr)
    return dx.reshape(features, steps, batch)


@kernel_jit(parallel=True)
def linear_weight_gradient_kernel(dy: Array, x: Array, indices: Array, indptr: Array) -> Array:
    """Kernel of `linear_weight_gradient`: a dot product of N samples for every active weight."""
    features, steps, batch = x.shape
    rows, samples = indptr.size - 1, steps * batch
    bits, packed = pack_rows(x.reshape(features, samples))
    offsets = row_offsets(indices, features, samples // 8 if packed else samples)
    ddata = np.empty(indices.size, x.dtype)
    if indices.size * samples < SERIAL:
        for o in range(rows):
            dot_inputs(ddata, o, dy, x, bits, packed, offsets, indptr)
    else:
        for o in prange(rows):
            dot_inputs(ddata, np.int64(o), dy, x, bits, packed, offsets, indptr)
    return ddata


@kernel_jit()
def dot_inputs(
    ddata: Array, o: Any, dy: Array, x: Array, bits: Array, packed: bool, offsets: Array, indptr: Array
) -> None:
    """Task: the active weights of neuron o."""
    n, gradient, first, last = dy.shape[1] * dy.shape[2], dy.reshape(-1), indptr[o], indptr[o + 1]
    dot_runs(ddata, 1, 0, gradient, o * n, 0, n, x.reshape(-1), bits.reshape(-1), packed, offsets, first, last, 0, 1, n)


@kernel_jit(parallel=True)
def linear_weight_gradient_dense_kernel(dy: Array, x: Array) -> Array:
    """Kernel of `linear_weight_gradient_dense`: each non-zero input adds the gradients of all neurons."""
    features, steps, batch = x.shape
    rows, samples = dy.shape[0], steps * batch
    source, by_sample = x.reshape(features, samples), np.empty((samples, rows), dy.dtype)
    transpose(by_sample, dy.reshape(rows, samples))
    dense = np.empty((rows, features), x.dtype)
    if dense.size * samples // 8 < SERIAL:                                  # most inputs are zero
        for t in range(ceil_div(features, TILE)):
            add_events(dense, t, source, by_sample)
    else:
        for t in prange(ceil_div(features, TILE)):
            add_events(dense, np.int64(t), source, by_sample)
    return dense


@kernel_jit()
def gather_features(dx: Array, task: Any, gradient: Array, data: Array, indices: Array, indptr: Array) -> None:
    """Task: FEATURES rows of dx (F, N). Sort the block's weights by feature, stably, and add their rows."""
    (rows, n), start = gradient.shape, task * FEATURES
    features = min(dx.shape[0] - start, FEATURES)
    begin, end = np.empty(rows, np.int64), np.empty(rows, np.int64)         # the block's part of each row
    first = np.empty(features + 1, np.int64)
    fill(first, 0, first.size, 0)
    for o in range(rows):
        begin[o] = find_column(indices, indptr[o], indptr[o + 1], start)
        end[o] = find_column(indices, begin[o], indptr[o + 1], start + features)
        for k in range(begin[o], end[o]):
            first[indices[k] - start + 1] += 1
    for f in range(features):
        first[f + 1] += first[f]
    weights, row, place = np.empty(first[features], data.dtype), np.empty(first[features], np.int64), first.copy()
    for o in range(rows):
        for k in range(begin[o], end[o]):
            f = indices[k] - start
            weights[place[f]], row[place[f]] = data[k], o * n
            place[f] += 1
    target, source = dx.reshape(-1), gradient.reshape(-1)
    for f in range(features):
        at = (start + f) * n
        fill(target, at, n, dx.dtype.type(0))
        add_runs(target, at, target, at, n, source, 0, row, weights, first[f], first[f + 1])


@kernel_jit()
def add_events(dense: Array, task: Any, x: Array, by_sample: Array) -> None:
    """Task: dense[:, f] = sum of x[f, n] * by_sample[n] over the n where x[f, n] is not zero, for TILE features.

    The n are listed without a branch: none to mispredict. The block is transposed while it is in the cache.
    """
    (features, samples), rows, start = x.shape, by_sample.shape[1], task * TILE
    values, index = np.empty(samples, x.dtype), np.empty(samples, np.int64)
    block, source = np.empty((min(features - start, TILE), rows), x.dtype), by_sample.reshape(-1)
    totals = block.reshape(-1)
    for f in range(block.shape[0]):
        count = 0
        for n in range(samples):
            values[count], index[count] = x[start + f, n], n * rows
            count += x[start + f, n] != 0
        fill(totals, f * rows, rows, x.dtype.type(0))
        add_runs(totals, f * rows, totals, f * rows, rows, source, 0, index, values, 0, count)
    transpose(dense[:, start : start + TILE], block)


@kernel_jit(parallel=True)
def pack_rows(x: Array) -> tuple[Array, bool]:
    """Spikes (F, N), a bit each: bytes (F, N / 8). False where x holds other numbers or N is no multiple of 8."""
    features, samples = x.shape
    bits, spikes = np.empty((features, samples // 8), np.uint8), np.empty(features, np.bool_)
    if samples % 8 != 0:
        return bits, False
    flat, numbers = bits.reshape(-1), x.reshape(-1)
    if x.size < SERIAL:
        for f in range(features):
            spikes[f] = pack_spikes(flat, f * (samples // 8), numbers, f * samples, samples)
    else:
        for f in prange(features):
            spikes[f] = pack_spikes(flat, f * (samples // 8), numbers, f * samples, samples)
    packed = True
    for f in range(features):
        packed &= spikes[f]
    return bits, packed


@njit(cache=True)
def row_offsets(indices: Array, features: int, run: int) -> Array:
    """Where the run of each column starts. Raises IndexError where a column lies beyond the input's features."""
    offsets = np.empty(indices.size, np.int64)
    for k in range(indices.size):
        if not 0 <= indices[k] < features:
            raise IndexError("a column of the weight lies beyond the input's features")
        offsets[k] = np.int64(indices[k]) * run
    return offsets


@njit(cache=True)
def find_column(indices: Array, first: int, last: int, column: int) -> int:
    """The first k in first..last whose column is not below `column`, by bisection: columns ascend within a row."""
    low, high = first, last
    while low < high:
        middle = (low + high) // 2
        if indices[middle] < column:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True)
def check_columns(indices: Array, features: int) -> None:
    """Raise IndexError where a column lies beyond the input's features."""
    for k in range(indices.size):
        if not 0 <= indices[k] < features:
            raise IndexError("a column of the weight lies beyond the input's features")


@njit(cache=True)
def transpose(target: Array, source: Array) -> None:
    """target = source transposed, block by block; reading runs and writing columns, twice as fast as the reverse."""
    for m in range(0, target.shape[0], TILE):
        for n in range(0, target.shape[1], TILE):
            for q in range(n, min(target.shape[1], n + TILE)):
                for p in range(m, min(target.shape[0], m + TILE)):
                    target[p, q] = source[q, p]
