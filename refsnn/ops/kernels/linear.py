"""Kernels of the sparse linear map.

What they do. T and B are one axis of N contiguous samples, so an active weight moves one run of N contiguous numbers.
Forward, input gradient and dense weight gradient are one operation, `add_rows`:

    total += sum_k weights[k] * source[index[k]]

    forward          total: y[o]               source: x (F, N)       k: active weights of neuron o
    input gradient   total: dx[f]              source: dy (O, N)      k: active weights of feature f, sorted by f first
    dense gradient   total: dW[:, f]           source: dy^T (N, O)    k: samples whose input f is not zero

Why so. Eight rows are added per pass over `total`, so that a multiply-add costs little more than one load. The dense
gradient skips inputs that are zero, which most spikes are. The sort of the input gradient is done in parallel, a block
of features by each task. Every output is written by one iteration in a fixed order: results do not depend on the number
of threads. Little work is done by one thread: to start the others costs more.

What it gained, time of the definition over time of the kernel, one thread each on a two-core AVX2 machine, float32,
inputs 20 % non-zero, 256 -> 128 features, N = 128: forward 13 at density 0.5 and 30 at 0.1, input gradient 10 and 15,
gradient of the active weights 5 and 14. The dense gradient does not gain there: 0.8 (its definition is one BLAS
product); it stays for results that do not depend on the number of threads or on the BLAS.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, prange

Array = npt.NDArray[Any]

FEATURES = 64   # input features of one parallel task of the input gradient
SERIAL = 2**22  # multiply-adds below which one thread works alone
TILE = 32       # features of one task of the dense gradient; edge of a block in a transposition


@njit(cache=True, parallel=True, fastmath={"contract"})
def linear_forward_kernel(x: Array, data: Array, indices: Array, indptr: Array, bias: Array | None) -> Array:
    """Kernel of `linear_forward`."""
    features, steps, batch = x.shape
    rows, source = indptr.size - 1, x.reshape(features, steps * batch)
    check_columns(indices, features)
    at_rest = no_bias(rows, x.dtype) if bias is None else bias
    y = np.empty((rows, steps * batch), x.dtype)
    if indices.size * steps * batch < SERIAL:
        for o in range(rows):
            weigh_inputs(y, o, source, data, indices, indptr, at_rest)
    else:
        for o in prange(rows):
            weigh_inputs(y, np.int64(o), source, data, indices, indptr, at_rest)
    return y.reshape(rows, steps, batch)


@njit(cache=True, fastmath={"contract"})
def weigh_inputs(
    y: Array, o: Any, source: Array, data: Array, indices: Array, indptr: Array, at_rest: Array
) -> None:
    """Task: the current of neuron o."""
    fill(y[o], at_rest[o])
    add_rows(y[o], source, indices[indptr[o] : indptr[o + 1]], data[indptr[o] : indptr[o + 1]])


@njit(cache=True, parallel=True, fastmath={"contract"})
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


@njit(cache=True, parallel=True, fastmath={"contract"})
def linear_weight_gradient_kernel(dy: Array, x: Array, indices: Array, indptr: Array) -> Array:
    """Kernel of `linear_weight_gradient`: a dot product of N samples for every active weight."""
    features, steps, batch = x.shape
    rows, samples = indptr.size - 1, steps * batch
    check_columns(indices, features)
    gradient, source, ddata = dy.reshape(rows, samples), x.reshape(features, samples), np.empty(indices.size, x.dtype)
    if indices.size * samples < SERIAL:
        for o in range(rows):
            dot_rows(ddata, o, gradient, source, indices, indptr)
    else:
        for o in prange(rows):
            dot_rows(ddata, np.int64(o), gradient, source, indices, indptr)
    return ddata


@njit(cache=True, parallel=True, fastmath={"contract"})
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


@njit(cache=True, fastmath={"contract"})
def add_rows(total: Array, source: Array, index: Array, weights: Array) -> None:
    """total += sum of weights[k] * source[index[k]], eight k a pass."""
    k, last = 0, weights.size
    while k + 8 <= last:
        w0, w1, w2, w3 = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        w4, w5, w6, w7 = weights[k + 4], weights[k + 5], weights[k + 6], weights[k + 7]
        x0, x1, x2, x3 = source[index[k]], source[index[k + 1]], source[index[k + 2]], source[index[k + 3]]
        x4, x5, x6, x7 = source[index[k + 4]], source[index[k + 5]], source[index[k + 6]], source[index[k + 7]]
        for m in range(total.size):
            half = total[m] + w0 * x0[m] + w1 * x1[m] + w2 * x2[m] + w3 * x3[m]
            total[m] = half + w4 * x4[m] + w5 * x5[m] + w6 * x6[m] + w7 * x7[m]
        k += 8
    while k + 2 <= last:
        w0, w1, x0, x1 = weights[k], weights[k + 1], source[index[k]], source[index[k + 1]]
        for m in range(total.size):
            total[m] = total[m] + w0 * x0[m] + w1 * x1[m]
        k += 2
    if k < last:
        w0, x0 = weights[k], source[index[k]]
        for m in range(total.size):
            total[m] = total[m] + w0 * x0[m]


@njit(cache=True, fastmath={"contract"})
def gather_features(dx: Array, task: Any, gradient: Array, data: Array, indices: Array, indptr: Array) -> None:
    """Task: FEATURES rows of dx (F, N). Sort the block's weights by feature, stably, and add their rows."""
    rows, start = gradient.shape[0], task * FEATURES
    features = min(dx.shape[0] - start, FEATURES)
    begin, end = np.empty(rows, np.int64), np.empty(rows, np.int64)         # the block's part of each row
    first = np.empty(features + 1, np.int64)
    fill(first, 0)
    for o in range(rows):
        begin[o] = find_column(indices, indptr[o], indptr[o + 1], start)
        end[o] = find_column(indices, begin[o], indptr[o + 1], start + features)
        for k in range(begin[o], end[o]):
            first[indices[k] - start + 1] += 1
    for f in range(features):
        first[f + 1] += first[f]
    weights, row, place = np.empty(first[features], data.dtype), np.empty(first[features], np.int32), first.copy()
    for o in range(rows):
        for k in range(begin[o], end[o]):
            f = indices[k] - start
            weights[place[f]], row[place[f]] = data[k], o
            place[f] += 1
    for f in range(features):
        fill(dx[start + f], dx.dtype.type(0))
        add_rows(dx[start + f], gradient, row[first[f] : first[f + 1]], weights[first[f] : first[f + 1]])


@njit(cache=True, fastmath={"contract"})
def add_events(dense: Array, task: Any, x: Array, by_sample: Array) -> None:
    """Task: dense[:, f] = sum of x[f, n] * by_sample[n] over the n where x[f, n] is not zero, for TILE features.

    The n are listed without a branch: none to mispredict. The block is transposed while it is in the cache.
    """
    (features, samples), rows, start = x.shape, by_sample.shape[1], task * TILE
    values, index = np.empty(samples, x.dtype), np.empty(samples, np.int32)
    block = np.empty((min(features - start, TILE), rows), x.dtype)
    for f in range(block.shape[0]):
        count = 0
        for n in range(samples):
            values[count], index[count] = x[start + f, n], n
            count += x[start + f, n] != 0
        fill(block[f], x.dtype.type(0))
        add_rows(block[f], by_sample, index[:count], values[:count])
    transpose(dense[:, start : start + TILE], block)


@njit(cache=True, fastmath={"contract"})
def dot_rows(ddata: Array, o: Any, gradient: Array, source: Array, indices: Array, indptr: Array) -> None:
    """Task: the active weights of neuron o, ddata[k] = sum of gradient[o] * source[indices[k]].

    By quarters and in as many partial sums as one has numbers: a sum in one variable would not vectorise.
    """
    n = gradient.shape[1] // 4
    lanes = np.empty(n, gradient.dtype)
    a0, a1, a2, a3 = gradient[o, :n], gradient[o, n : 2 * n], gradient[o, 2 * n : 3 * n], gradient[o, 3 * n : 4 * n]
    for k in range(indptr[o], indptr[o + 1]):
        x = source[indices[k]]
        x0, x1, x2, x3 = x[:n], x[n : 2 * n], x[2 * n : 3 * n], x[3 * n : 4 * n]
        for m in range(n):
            lanes[m] = a0[m] * x0[m] + a1[m] * x1[m] + a2[m] * x2[m] + a3[m] * x3[m]
        dot = sum_of(lanes)
        for m in range(4 * n, x.size):
            dot += gradient[o, m] * x[m]
        ddata[k] = dot


@njit(cache=True)
def sum_of(lanes: Array) -> Any:
    """The sum of all numbers, by halves; they are overwritten."""
    n = lanes.size
    if n == 0:
        return lanes.dtype.type(0)
    while n > 1:
        half = (n + 1) // 2
        upper = lanes[half:n]
        for m in range(upper.size):
            lanes[m] = lanes[m] + upper[m]
        n = half
    return lanes[0]


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
def fill(target: Array, value: Any) -> None:
    """target[:] = value., as a loop, which compiles in a tenth of the time."""
    for m in range(target.size):
        target[m] = value


@njit(cache=True)
def no_bias(rows: int, dtype: Any) -> Array:
    """A bias of zeros: made outside the parallel kernel, which would make this a parallel region."""
    return np.zeros(rows, dtype)


@njit(cache=True)
def transpose(target: Array, source: Array) -> None:
    """target = source transposed, block by block; reading runs and writing columns, twice as fast as the reverse."""
    for m in range(0, target.shape[0], TILE):
        for n in range(0, target.shape[1], TILE):
            for q in range(n, min(target.shape[1], n + TILE)):
                for p in range(m, min(target.shape[0], m + TILE)):
                    target[p, q] = source[q, p]


@njit(cache=True)
def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)
