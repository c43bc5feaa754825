"""Kernels of the sparse linear map.

What they do. T and B are one axis of N contiguous samples, so an active weight moves one run of N contiguous numbers.
Forward and dense weight gradient are sums of runs, `add_runs` and `sum_dense` of `blocks`:

    forward          total: y[o]               runs: rows of x (F, N)       k: active weights of neuron o
    dense gradient   totals: dW[o], eight o    runs: rows of x^T (N, F)     k: samples, with the weights dy[o, n]

the gradient of the active weights is a dot product of runs for each of them, eight at a time, and the input gradient
goes the other way: one run to many totals, `spread_run` below.

    input gradient   run: row o of dy (O, N)   totals: rows of dx (F, N)    k: active weights of neuron o

Why so. In a sum the total stays in registers over all k. The input gradient has no such order without sorting the
weights by column, which took longer than the arithmetic; so the run stays in registers, and the totals, a block of
rows of dx, in the second cache. Spikes are packed one a bit, for the forward pass and the gradient of the active
weights. The dense gradient takes a few features at a time, whose inputs stay in the cache while all neurons read them;
to skip inputs that are zero is slower, few as the others are. Every output is written by one task in a fixed order:
results do not depend on the number of threads. Little work is done by one thread: to start the others costs more. A
task has many rows, because a call costs as much as a short row.

What it gained over plain loops, eight runs a pass: processor time, one AVX-512 core (Zen 5), float32, 4096 -> 1024,
N = 64, density 0.05, a tenth of the inputs spike: forward 3.1 times (107 GFLOP/s), active weights 17 (81), input
gradient 4.6 (32). 16384 -> 2048, N = 64: input gradient 5.6 ms, with a sort 21.6. Dense gradient, two cores, 2048 ->
2048: by the inputs that are not zero, one after another, 29.7 ms, here 1.5 (370 GFLOP/s), NumPy's product 3.1.
256 -> 128, N = 128, density 0.1, calls from Python: 11, 14 and 15 microseconds; with a call for each row and a sort
30, 66 and 28.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from refsnn.ops.kernels.blocks import (
    HELD,
    WIDE,
    add_runs,
    add_spikes,
    ceil_div,
    dot_runs,
    empty,
    fill,
    kernel_jit,
    no_bias,
    pack_spikes,
    vector,
    whole,
)
from refsnn.ops.kernels.blocks.dense import FILTERS, sum_dense
from refsnn.ops.kernels.blocks.dots import dots8, spike_dots8
from refsnn.ops.kernels.blocks.maps import check_columns, find_column
from refsnn.ops.kernels.blocks.vectors import FUSED, I64, STREAM, Vectors

Array = npt.NDArray[Any]

SERIAL = 2**18  # multiply-adds below which one thread works alone
ROWS = 16       # neurons of a task
TILE = 272      # features of a task of the dense gradient; no power of two, whose columns would claim the same lines
EDGE = 32       # of a block in a transposition
PACK = 2**16    # numbers that a task packs, a multiple of 8; below eight times as many one thread works alone
BLOCK = 2**18   # input gradient: bytes of a block of dx, which stays in the second cache,
PART = 64       # the weights of a row that are enough for a block,
BLOCKS = 2      # and blocks of a task


@kernel_jit(parallel=True)
def linear_forward_kernel(x: Array, data: Array, indices: Array, indptr: Array, bias: Array | None) -> Array:
    """Kernel of `linear_forward`."""
    features, steps, batch = x.shape
    rows, samples = indptr.size - 1, steps * batch
    at_rest = no_bias(rows, data.dtype) if bias is None else bias
    y = empty(rows * samples, data.dtype).reshape(rows, samples)
    bits, packed = pack_rows(x.reshape(features, samples))
    numbers = as_floats(x, data, packed)
    check_columns(indices, features)
    if indices.size * samples < SERIAL:
        weigh_inputs(y, 0, rows, numbers, bits, packed, data, indices, indptr, at_rest)
    else:
        for t in prange(ceil_div(rows, ROWS)):
            weigh_inputs(y, np.int64(t) * ROWS, ROWS, numbers, bits, packed, data, indices, indptr, at_rest)
    return y.reshape(rows, steps, batch)


@kernel_jit()
def weigh_inputs(
    y: Array, start: int, count: int, x: Array, bits: Array, packed: bool, data: Array, indices: Array, indptr: Array,
    at_rest: Array,
) -> None:
    """Task: the currents of `count` neurons from `start` on."""
    n, target, real, spikes = y.shape[1], y.reshape(-1), x.reshape(-1), bits.reshape(-1)
    end = min(start + count, y.shape[0])
    offsets = for_a_row(indptr, start, end)
    for o in range(start, end):
        at, first, many = o * n, indptr[o], indptr[o + 1] - indptr[o]
        find_runs(offsets, indices, first, many, n // 8 if packed else n)
        fill(target, at, n, at_rest[o])
        if packed:
            add_spikes(target, at, target, at, n, spikes, 0, offsets, data[first:], 0, many)
        else:
            add_runs(target, at, target, at, n, real, 0, offsets, data[first:], 0, many)


@kernel_jit(parallel=True)
def linear_input_gradient_kernel(dy: Array, data: Array, indices: Array, indptr: Array, features: int) -> Array:
    """Kernel of `linear_input_gradient`."""
    rows, steps, batch = dy.shape
    check_columns(indices, features)
    gradient = dy.reshape(rows, steps * batch)
    dx = empty(features * steps * batch, dy.dtype).reshape(features, steps * batch)
    block = block_size(features, rows, indices.size, dx.shape[1] * dx.itemsize)
    tasks = ceil_div(features, BLOCKS * block)
    if tasks == 1 or indices.size * steps * batch < SERIAL:
        for t in range(tasks):
            spread_rows(dx, t, block, gradient, data, indices, indptr)
    else:
        for t in prange(tasks):
            spread_rows(dx, np.int64(t), block, gradient, data, indices, indptr)
    return dx.reshape(features, steps, batch)


@kernel_jit()
def spread_rows(
    dx: Array, task: Any, block: int, gradient: Array, data: Array, indices: Array, indptr: Array
) -> None:
    """Task: BLOCKS blocks of rows of dx (F, N), one after the other. Row o of dy is added to those it is connected to.

    at[o] is how far the columns of row o are done, in `indices`: they ascend.
    """
    (features, n), rows, start = dx.shape, gradient.shape[0], task * BLOCKS * block
    target, source, at = dx.reshape(-1), gradient.reshape(-1), np.empty(rows, np.int64)
    for o in range(rows):
        at[o] = find_column(indices, indptr[o], indptr[o + 1], start) if start > 0 else indptr[o]
    for f in range(start, min(features, start + BLOCKS * block), block):
        stop = min(features, f + block)
        fill(target, f * n, (stop - f) * n, dx.dtype.type(0))
        for o in range(rows):
            k, last = at[o], indptr[o + 1]
            if stop < features:
                while k < last and indices[k] < stop:
                    k += 1
                last = k
            spread_run(target, n, source, o * n, indices, data, at[o], last)
            at[o] = last


@kernel_jit(parallel=True)
def linear_weight_gradient_kernel(dy: Array, x: Array, indices: Array, indptr: Array) -> Array:
    """Kernel of `linear_weight_gradient`: a dot product of N samples for every active weight."""
    features, steps, batch = x.shape
    rows, samples = indptr.size - 1, steps * batch
    bits, packed = pack_rows(x.reshape(features, samples))
    numbers = as_floats(x, dy, packed)
    check_columns(indices, features)
    ddata = np.empty(indices.size, dy.dtype)
    if indices.size * samples < SERIAL:
        dot_inputs(ddata, 0, rows, dy, numbers, bits, packed, indices, indptr)
    else:
        for t in prange(ceil_div(rows, ROWS)):
            dot_inputs(ddata, np.int64(t) * ROWS, ROWS, dy, numbers, bits, packed, indices, indptr)
    return ddata


@kernel_jit()
def dot_inputs(
    ddata: Array, start: int, count: int, dy: Array, x: Array, bits: Array, packed: bool, indices: Array, indptr: Array
) -> None:
    """Task: the active weights of `count` neurons from `start` on. Where eight fill vectors, no call stands between."""
    n, gradient, real, spikes = dy.shape[1] * dy.shape[2], dy.reshape(-1), x.reshape(-1), bits.reshape(-1)
    filled, end = WIDE and whole(n, vector(gradient)) == n, min(start + count, dy.shape[0])
    offsets = for_a_row(indptr, start, end)
    for o in range(start, end):
        first, many, k = indptr[o], indptr[o + 1] - indptr[o], 0
        find_runs(offsets, indices, first, many, n // 8 if packed else n)
        if not filled or many < 8:
            dot_runs(ddata[first:], 1, 0, gradient, o * n, 0, n, real, spikes, packed, offsets, 0, many, 0, 1, n)
            continue
        while k < many:
            k = min(k, many - 8)                    # a last group that is not full takes some weights a second time
            if packed:
                spike_dots8(ddata, first + k, 0, gradient, o * n, 0, n, spikes, offsets, k, 0, 1, n)
            else:
                dots8(ddata, first + k, 0, gradient, o * n, 0, n, real, offsets, k, 0, 1, n)
            k += 8


@kernel_jit(parallel=True)
def linear_weight_gradient_dense_kernel(dy: Array, x: Array) -> Array:
    """Kernel of `linear_weight_gradient_dense`: each non-zero input adds the gradients of all neurons."""
    features, rows, samples = x.shape[0], dy.shape[0], x.shape[1] * x.shape[2]
    dense, tasks = empty(rows * features, dy.dtype).reshape(rows, features), ceil_div(features, TILE)
    source, gradient = x.reshape(features, samples), dy.reshape(rows, samples)
    by_filters = no_bias(ceil_div(rows, FILTERS) * samples * FILTERS, dy.dtype)     # as `sum_dense` reads them
    for o in range(rows):
        for n in range(samples):
            by_filters[(o // FILTERS * samples + n) * FILTERS + o % FILTERS] = gradient[o, n]
    if dense.size * samples < SERIAL:
        for t in range(tasks):
            multiply_tile(dense, t, source, gradient, by_filters)
    else:
        for t in prange(tasks):
            multiply_tile(dense, np.int64(t), source, gradient, by_filters)
    return dense


@kernel_jit()
def multiply_tile(dense: Array, task: Any, x: Array, dy: Array, by_filters: Array) -> None:
    """Task: dense[:, f] = sum over n of dy[:, n] x[f, n] for TILE features."""
    (rows, features), samples, start = dense.shape, x.shape[1], task * TILE
    many = min(TILE, features - start)
    done, flat, at_rest = whole(many, vector(dense)), dense.reshape(-1), no_bias(rows, dense.dtype)
    turned, offsets = np.empty((samples, many), dense.dtype), np.arange(samples) * many
    transpose(turned, x[start : start + many])
    for o in range(0, rows, FILTERS):
        sum_dense(flat, o * features + start, features, vector(dense), at_rest, o, done, turned.reshape(-1), 0, offsets,
                  0, samples, by_filters, o * samples, min(FILTERS, rows - o), dense.size * dense.itemsize >= STREAM)
    for o in range(rows if done < many else 0):                                 # features that fill no vector
        for f in range(done, many):
            total = dense.dtype.type(0)
            for n in range(samples):
                total += dy[o, n] * turned[n, f]
            dense[o, start + f] = total


@kernel_jit(parallel=True)
def pack_rows(x: Array) -> tuple[Array, bool]:
    """Spikes (F, N), a bit each: bytes (F, N / 8). False where x holds other numbers or N is no multiple of 8."""
    features, samples = x.shape
    bits, tasks = np.empty((features, samples // 8), np.uint8), ceil_div(x.size, PACK)
    if samples % 8 != 0:
        return bits, False
    flat, numbers, spikes = bits.reshape(-1), x.reshape(-1), np.empty(tasks, np.bool_)
    if features > 0 and not pack_spikes(flat, 0, numbers, 0, samples):          # real numbers show in the first row
        return bits, False
    if x.size < 8 * PACK:
        return bits, pack_spikes(flat, 0, numbers, 0, x.size)
    for t in prange(tasks):
        spikes[t] = pack_part(flat, numbers, np.int64(t) * PACK)
    packed = True
    for t in range(tasks):
        packed &= spikes[t]
    return bits, packed


@kernel_jit()
def pack_part(bits: Array, x: Array, start: Any) -> bool:
    """Task: PACK numbers from `start` on, or what is left of them."""
    return pack_spikes(bits, start // 8, x, start, min(PACK, x.size - start))


def as_floats(x: Array, like: Array, packed: bool) -> Array:
    """x (F, T, B) itself, or in the dtype of `like` where it has another; nothing then if it is packed."""
    if x.dtype == like.dtype:
        return x
    return np.empty((0, 0, 0), like.dtype) if packed else x.astype(like.dtype)


@overload(as_floats)
def _as_floats(x, like, packed):  # type: ignore[no-untyped-def]  # noqa: ARG001
    if x.dtype == like.dtype:
        return lambda x, like, packed: x                                            # noqa: ARG005
    return lambda x, like, packed: np.empty((0, 0, 0), like.dtype) if packed else x.astype(like.dtype)


@kernel_jit()
def find_runs(offsets: Array, indices: Array, first: int, many: int, run: int) -> None:
    """Where the runs of the columns of one neuron start: so many from `first` on; the first cache holds them."""
    for k in range(many):
        offsets[k] = np.int64(indices[first + k]) * run


@njit(cache=True)
def for_a_row(indptr: Array, start: int, end: int) -> Array:
    """Room for the places of the neuron with most weights among some."""
    most = 0
    for o in range(start, end):
        most = max(most, indptr[o + 1] - indptr[o])
    return np.empty(most, np.int64)


@njit(cache=True)
def block_size(features: int, rows: int, weights: int, run: int) -> int:
    """Input features of a block: PART weights of a row, on average, as far as BLOCK bytes hold so many runs."""
    return max(1, min(BLOCK // max(run, 1), PART * rows * features // max(weights, 1)))


@njit(cache=True)
def transpose(target: Array, source: Array) -> None:
    """target = source transposed, block by block; reading runs and writing columns, twice as fast as the reverse."""
    for m in range(0, target.shape[0], EDGE):
        for n in range(0, target.shape[1], EDGE):
            for q in range(n, min(target.shape[1], n + EDGE)):
                for p in range(m, min(target.shape[0], m + EDGE)):
                    target[p, q] = source[q, p]


def _spread_run(
    target: Array, n: int, x: Array, at: int, indices: Array, weights: Array, first: int, last: int
) -> None:
    """target[indices[k] n + m] += weights[k] * x[at + m] for every k in first..last and m in 0..n."""
    for k in range(first, last):
        for m in range(n):
            target[indices[k] * n + m] += weights[k] * x[at + m]


def _spreading() -> Any:
    """The intrinsic of `spread_run`: vectors of the run are held in registers while k moves on."""

    def add_all(b: Any, v: Any, args: Any, m: Any, count: int) -> None:
        """Add `count` vectors of the run from m on to each target; 0: the number at m alone."""
        target, n, x, indices, weights, first, last = args
        load, store, repeat = (v.load, v.store, v.repeat) if count else (b.load, b.store, lambda number: number)
        shifts = [i * v.size for i in range(max(count, 1))]
        held = [load(v.move(b.gep(x, [m]), shift)) for shift in shifts]
        with cgutils.for_range_slice(b, first, last, I64(1)) as (k, _):
            row, weight = b.sext(b.load(b.gep(indices, [k])), n.type), repeat(b.load(b.gep(weights, [k])))
            place = b.gep(target, [b.add(b.mul(row, n), m)])
            for part, shift in zip(held, shifts, strict=True):
                here = v.move(place, shift)
                store(b.fadd(b.fmul(part, weight, flags=FUSED), load(here), flags=FUSED), here)

    def body(b: Any, v: Any, args: Any) -> None:
        n, done, count = args[1], I64(0), HELD
        while count:
            stop = b.and_(n, I64(-count * v.size))
            with cgutils.for_range_slice(b, done, stop, I64(count * v.size)) as (m, _):
                add_all(b, v, args, m, count)
            done, count = stop, count // 2
        with cgutils.for_range_slice(b, done, n, I64(1)) as (m, _):             # what fills no vector
            add_all(b, v, args, m, 0)

    @intrinsic
    def spread(
        _context: Any, target: Any, _n: Any, x: Any, _at: Any, indices: Any, weights: Any, _first: Any, _last: Any
    ) -> Any:
        def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
            v = Vectors(context, builder, target.dtype)
            starts = [v.pointer(array, args[i], I64(0)) for array, i in ((target, 0), (indices, 4), (weights, 5))]
            values = [starts[0], args[1], v.pointer(x, args[2], args[3]), *starts[1:], args[6], args[7]]
            v.call("refsnn_spread", values, lambda b, own: body(b, Vectors(context, b, target.dtype), own))
            return context.get_dummy_value()

        i = types.intp
        return types.void(target, i, x, i, indices, weights, i, i), generate

    return spread


spread_run = _spreading() if WIDE else njit(_spread_run)
