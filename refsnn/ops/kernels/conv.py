"""Kernels of the sparse convolution.

What they do. T and B are one axis of N contiguous samples, so an active weight moves runs of contiguous numbers: one
output row is W_out * N of them. Forward, input gradient and dense weight gradient are one operation, `add_runs`:

    total += sum_k weights[k] * source[offsets[k] + shift :][: total.size]

                     total                        source                      k
    forward          a piece of an output row     x, zero-padded              active weights of a filter
    input gradient   a piece of an input row      dy, zero-padded             active weights of a channel
    dense gradient   dW[c, i, j] of all filters   dy, filters last            non-zero samples of a pixel

Why so. Eight runs are added per pass over `total`, so that a multiply-add costs little more than one load. Padding
removes the border cases, and sorting the columns (or the weights) by their remainder modulo the stride makes runs
contiguous for every stride. Filters (channels) of one task read the same part of the input, from the cache. The dense
gradient skips inputs that are zero, as most spikes are; on real inputs it is a matrix product.
The gradient of the active weights holds eight dot products of a filter in registers (`blocks.py`); where x are spikes,
they are packed one a bit first: 5 to 7 times what it was with one dot product at a time over partial sums in memory.
Every output is written by one iteration in a fixed order: results do not depend on the number of threads. Little work
is done by one thread: to start the others costs more, milliseconds on a busy machine.

What it gained, time of the definition over time of the kernel, one thread each on a two-core AVX2 machine, float32,
inputs 20 % non-zero. 32 -> 64 channels, 3x3, on 4x4 pixels, N = 128: forward 12 at density 0.5 and 8 at 0.1, input
gradient 30 and 10, gradient of the active weights 14 and 5, dense gradient 1.8 (its definition is one BLAS product; on
real inputs that is the faster one, 1.7 times for a first layer). 64 -> 64 channels on 16x16, N = 64, density 0.05: 8,
11, 5 and 1. Tried and dropped: pieces of 128 and 256 numbers, whose inputs would fit the second cache (1.4 and 1.1
times slower at 256 channels and density 0.05: the calls cost more than the cache gains).
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from refsnn.ops.kernels.blocks import dot_runs, dot_spikes, kernel_jit, pack_spikes

Array = npt.NDArray[Any]
Pair = tuple[int, int]

SERIAL = 2**22  # multiply-adds, or numbers to copy, below which one thread works alone
RUN = 1024      # numbers in a piece of a row
ROWS = 16       # filters (forward) or channels (input gradient) of one task
CHANNELS = 16   # input channels of one task of the dense gradient
TILE = 32       # edge of a block in a transposition


@njit(cache=True, parallel=True, fastmath={"contract"})
def conv2d_forward_kernel(
    x: Array, data: Array, indices: Array, indptr: Array, bias: Array | None,
    kernel_size: Pair, stride: int, padding: int,
) -> Array:
    """Kernel of `conv2d_forward`."""
    channels, height, width, steps, batch = x.shape
    rows, samples = indptr.size - 1, steps * batch
    h_out, w_out = output_size(height, width, kernel_size, stride, padding)
    wide = ceil_div(width + 2 * padding, stride)
    source = np.empty((channels, height + 2 * padding, stride, wide, samples), x.dtype)
    pad_maps(source, x, padding, padding)
    offsets = window_offsets(indices, source.shape, kernel_size)
    at_rest = no_bias(rows, x.dtype) if bias is None else bias

    y = np.empty((rows, h_out, w_out, steps, batch), x.dtype)
    flat = y.reshape(rows, h_out, w_out * samples)
    tasks = h_out * ceil_div(w_out * samples, RUN) * ceil_div(rows, ROWS)
    if indices.size * h_out * w_out * samples < SERIAL:
        for t in range(tasks):
            convolve_piece(flat, t, source, offsets, data, indptr, at_rest)
    else:
        for t in prange(tasks):
            convolve_piece(flat, np.int64(t), source, offsets, data, indptr, at_rest)
    return y


@njit(cache=True, fastmath={"contract"})
def convolve_piece(
    y: Array, task: Any, source: Array, offsets: Array, data: Array, indptr: Array, at_rest: Array
) -> None:
    """Task: a piece of row h of y (O, H_out, W_out N) for ROWS filters; the next task reads the same input."""
    rows, _, width = y.shape
    _, _, stride, wide, samples = source.shape
    groups, pieces, flat = ceil_div(rows, ROWS), ceil_div(width, RUN), source.reshape(-1)
    h, start, group = task // (pieces * groups), task // groups % pieces * RUN, task % groups
    shift = h * stride * stride * wide * samples + start
    for o in range(group * ROWS, min(rows, (group + 1) * ROWS)):
        total = y[o, h, start : start + RUN]
        fill(total, at_rest[o])
        add_runs(total, flat, offsets[indptr[o] : indptr[o + 1]], data[indptr[o] : indptr[o + 1]], shift)


@njit(cache=True, parallel=True, fastmath={"contract"})
def conv2d_input_gradient_kernel(
    dy: Array, data: Array, indices: Array, indptr: Array,
    input_size: tuple[int, int, int], kernel_size: Pair, stride: int, padding: int,
) -> Array:
    """Kernel of `conv2d_input_gradient`: dx is a convolution of dy, once for each remainder (row, column) mod stride.

    In padded coordinates dx[c, stride q + r, stride u + v] = sum over the weights (o, i, j) of channel c with
    i % stride = r and j % stride = v of W * dy[o, q - i // stride, u - j // stride].
    """
    (channels, height, width), (k_h, k_w) = input_size, kernel_size
    _, _, _, steps, batch = dy.shape
    h_out, w_out = output_size(height, width, kernel_size, stride, padding)
    check_gradient(dy, h_out, w_out)
    above, left = (k_h - 1) // stride, (k_w - 1) // stride                  # zeros before the first row and column
    tall = above + max(h_out, (height - 1 + padding) // stride + 1)
    wide = left + max(w_out, (width - 1 + padding) // stride + 1)
    source = np.empty((dy.shape[0], tall, 1, wide, steps * batch), dy.dtype)
    pad_maps(source, dy, above, left)
    weights, offsets, first = sort_by_channel(data, indices, indptr, channels, kernel_size, stride, source.shape)

    dx = np.empty((channels, height, width, steps, batch), dy.dtype)
    flat, tasks = dx.reshape(channels, height, width, steps * batch), height * ceil_div(channels, ROWS)
    if indices.size * h_out * w_out * steps * batch < SERIAL:
        for t in range(tasks):
            gather_rows(flat, t, source, weights, offsets, first, stride, padding)
    else:
        for t in prange(tasks):
            gather_rows(flat, np.int64(t), source, weights, offsets, first, stride, padding)
    return dx


@njit(cache=True, fastmath={"contract"})
def gather_rows(
    dx: Array, task: Any, source: Array, weights: Array, offsets: Array, first: Array, stride: int, padding: int
) -> None:
    """Task: row a of dx (C, H, W, N) for ROWS channels, one remainder of the columns modulo the stride at a time."""
    channels, _, width, samples = dx.shape
    groups, wide, flat = ceil_div(channels, ROWS), source.shape[3], source.reshape(-1)
    a, group = task // groups, task % groups
    q, r = (a + padding) // stride, (a + padding) % stride
    row = np.empty(ceil_div(width, stride) * samples, dx.dtype)
    for c in range(group * ROWS, min(channels, (group + 1) * ROWS)):
        for begin in range(min(stride, width)):         # pixels begin, begin + stride, ...
            u, key = (begin + padding) // stride, (c * stride + r) * stride + (begin + padding) % stride
            where, weight = offsets[first[key] : first[key + 1]], weights[first[key] : first[key + 1]]
            pixels = ceil_div(width - begin, stride)
            for start in range(0, pixels * samples, RUN):
                total = row[start : min(start + RUN, pixels * samples)]
                fill(total, dx.dtype.type(0))
                add_runs(total, flat, where, weight, (q * wide + u) * samples + start)
            for b in range(pixels):
                copy(dx[c, a, begin + b * stride], row[b * samples : (b + 1) * samples])


@kernel_jit(parallel=True, fastmath={"contract"})
def conv2d_weight_gradient_kernel(
    dy: Array, x: Array, indices: Array, indptr: Array, kernel_size: Pair, stride: int, padding: int
) -> Array:
    """Kernel of `conv2d_weight_gradient`: a dot product of output rows for every active weight."""
    channels, height, width, steps, batch = x.shape
    rows, samples = indptr.size - 1, steps * batch
    h_out, w_out = output_size(height, width, kernel_size, stride, padding)
    check_gradient(dy, h_out, w_out)
    tall, wide = height + 2 * padding, ceil_div(width + 2 * padding, stride)
    bits = np.empty((channels, tall, stride, wide, samples // 8), np.uint8)
    packed = samples % 8 == 0 and pack_maps(bits, x, padding, padding)
    many = channels if not packed else 0
    source = np.empty((many, tall, stride, wide, samples), x.dtype)
    if not packed:
        pad_maps(source, x, padding, padding)
    run = samples // 8 if packed else samples
    offsets = window_offsets(indices, (channels, tall, stride, wide, run), kernel_size)
    ddata, gradient, far = np.empty(indices.size, x.dtype), dy.reshape(-1), stride * stride * wide * run
    if indices.size * h_out * w_out * samples < SERIAL:
        for o in range(rows):
            dot_filter(ddata, o, gradient, source, bits, packed, offsets, indptr, far, h_out, w_out * samples)
    else:
        for o in prange(rows):
            dot_filter(ddata, np.int64(o), gradient, source, bits, packed, offsets, indptr, far, h_out, w_out * samples)
    return ddata


@kernel_jit()
def dot_filter(
    ddata: Array, o: Any, gradient: Array, source: Array, bits: Array, packed: bool, offsets: Array, indptr: Array,
    far: int, height: int, width: int,
) -> None:
    """Task: the active weights of filter o; rows of x lie `far` numbers (bytes of bits) apart."""
    first, last, at = indptr[o], indptr[o + 1], o * height * width
    if packed:
        dot_spikes(ddata, gradient, at, width, bits.reshape(-1), offsets, first, last, far, height, width)
    else:
        dot_runs(ddata, gradient, at, width, source.reshape(-1), offsets, first, last, far, height, width)


@kernel_jit(parallel=True)
def pack_maps(bits: Array, x: Array, above: int, left: int) -> bool:
    """`pad_maps` of spikes, a bit each: bits (C, rows, stride, columns, N / 8). False where x holds other numbers."""
    channels = x.shape[0]
    spikes = np.empty(channels, np.bool_)
    if x.size < SERIAL:
        for c in range(channels):
            spikes[c] = pack_map(bits[c], x[c], above, left)
    else:
        for c in prange(channels):
            spikes[c] = pack_map(bits[c], x[c], above, left)
    packed = True
    for c in range(channels):
        packed &= spikes[c]
    return packed


@kernel_jit()
def pack_map(bits: Array, image: Array, above: int, left: int) -> bool:
    """Task: one map of `pack_maps`; stops at the first number that is not 0 or 1."""
    (height, width, steps, batch), (_, stride, wide, run) = image.shape, bits.shape
    flat, numbers, samples = bits.reshape(-1), image.reshape(-1), steps * batch
    fill(flat, np.uint8(0))
    for a in range(height):
        for b in range(width):
            at = (((a + above) * stride + (b + left) % stride) * wide + (b + left) // stride) * run
            if not pack_spikes(flat, at, numbers, (a * width + b) * samples, samples):
                return False
    return True


@njit(cache=True, parallel=True, fastmath={"contract"})
def conv2d_weight_gradient_dense_kernel(dy: Array, x: Array, kernel_size: Pair, stride: int, padding: int) -> Array:
    """Kernel of `conv2d_weight_gradient_dense`: each non-zero input adds the gradients of all filters it reached."""
    channels, height, width, steps, batch = x.shape
    rows, samples, (k_h, k_w) = dy.shape[0], steps * batch, kernel_size
    h_out, w_out = output_size(height, width, kernel_size, stride, padding)
    check_gradient(dy, h_out, w_out)
    image = x.reshape(channels, height, width, samples)
    source = transposed(dy.reshape(rows, h_out * w_out * samples)).reshape(h_out, w_out, samples, rows)
    by_place = np.empty((channels, k_h, k_w, rows), x.dtype)
    blocks = ceil_div(channels, CHANNELS)
    if by_place.size * h_out * w_out * samples // 8 < SERIAL:               # most inputs are zero
        for t in range(blocks):
            add_events(by_place, t, blocks, image, source, stride, padding)
    else:
        tasks = blocks * k_h if blocks < 8 else blocks      # few channels: a task for each row of the window
        for t in prange(tasks):
            add_events(by_place, np.int64(t), tasks, image, source, stride, padding)
    return transposed(by_place.reshape(channels * k_h * k_w, rows))


@njit(cache=True, fastmath={"contract"})
def add_events(total: Array, task: Any, tasks: int, image: Array, source: Array, stride: int, padding: int) -> None:
    """Task: total[c, i] (kW, O) = sum over the non-zero inputs of the gradients they reached, for CHANNELS c.

    The non-zero inputs of an image row are listed first; then the gradients of one output pixel, source[h, w] (N, O),
    serve all channels and all j while they are in the cache.
    """
    (channels, height, width, samples), (h_out, w_out, _, rows) = image.shape, source.shape
    _, k_h, k_w, _ = total.shape
    shares = tasks // ceil_div(channels, CHANNELS)
    start, flat = task // shares * CHANNELS, source.reshape(-1)
    many = min(channels - start, CHANNELS)
    values, offsets = np.empty((many, width, samples), image.dtype), np.empty((many, width, samples), np.int64)
    count = np.empty((many, width), np.int64)
    for c in range(many):
        for i in range(task % shares, k_h, shares):
            fill(total[start + c, i].reshape(-1), image.dtype.type(0))
    for a in range(height):
        for c in range(many):
            for b in range(width):
                count[c, b] = find_nonzero(values[c, b], offsets[c, b], image[start + c, a, b], rows)
        for i in range(task % shares, k_h, shares):
            h = (a + padding - i) // stride
            if h * stride != a + padding - i or not 0 <= h < h_out:
                continue
            for w in range(w_out):
                shift = (h * w_out + w) * samples * rows
                for c in range(many):
                    for j in range(k_w):
                        b = w * stride + j - padding
                        if 0 <= b < width:
                            n = count[c, b]
                            add_runs(total[start + c, i, j], flat, offsets[c, b, :n], values[c, b, :n], shift)


@njit(cache=True, fastmath={"contract"})
def add_runs(total: Array, source: Array, offsets: Array, weights: Array, shift: int) -> None:
    """total += sum of weights[k] * source[offsets[k] + shift :][: total.size], eight k a pass."""
    n, k, last = total.size, 0, weights.size
    while k + 8 <= last:
        w0, w1, w2, w3 = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        w4, w5, w6, w7 = weights[k + 4], weights[k + 5], weights[k + 6], weights[k + 7]
        x0, x1 = run_of(source, offsets[k] + shift, n), run_of(source, offsets[k + 1] + shift, n)
        x2, x3 = run_of(source, offsets[k + 2] + shift, n), run_of(source, offsets[k + 3] + shift, n)
        x4, x5 = run_of(source, offsets[k + 4] + shift, n), run_of(source, offsets[k + 5] + shift, n)
        x6, x7 = run_of(source, offsets[k + 6] + shift, n), run_of(source, offsets[k + 7] + shift, n)
        for m in range(n):
            half = total[m] + w0 * x0[m] + w1 * x1[m] + w2 * x2[m] + w3 * x3[m]
            total[m] = half + w4 * x4[m] + w5 * x5[m] + w6 * x6[m] + w7 * x7[m]
        k += 8
    while k + 2 <= last:
        w0, w1 = weights[k], weights[k + 1]
        x0, x1 = run_of(source, offsets[k] + shift, n), run_of(source, offsets[k + 1] + shift, n)
        for m in range(n):
            total[m] = total[m] + w0 * x0[m] + w1 * x1[m]
        k += 2
    if k < last:
        w0, x0 = weights[k], run_of(source, offsets[k] + shift, n)
        for m in range(n):
            total[m] = total[m] + w0 * x0[m]


@njit(cache=True)
def run_of(source: Array, start: int, length: int) -> Array:
    """`length` numbers from `start` on: in a slice the compiler knows indices to be positive, and vectorises."""
    return source[start : start + length]


@njit(cache=True)
def find_nonzero(values: Array, offsets: Array, x: Array, scale: int) -> int:
    """Write the non-zero numbers of x and scale * their positions, return how many; no branch: none to mispredict."""
    count = 0
    for n in range(x.size):
        values[count] = x[n]
        offsets[count] = n * scale
        count += x[n] != 0
    return count


@njit(cache=True, parallel=True)
def pad_maps(padded: Array, x: Array, above: int, left: int) -> None:
    """Copy x (C, H, W, T, B) into zeros, padded (C, rows, stride, columns, N): pixel (a, b) lies at row a + above and,
    with v = b + left, at [v % stride, v // stride]."""
    channels, height, width, steps, batch = x.shape
    image = x.reshape(channels, height, width, steps * batch)
    if padded.size < SERIAL:
        for c in range(channels):
            pad_map(padded[c], image[c], above, left)
    else:
        for c in prange(channels):
            pad_map(padded[c], image[c], above, left)


@njit(cache=True)
def pad_map(padded: Array, image: Array, above: int, left: int) -> None:
    """Task: one map of `pad_maps`."""
    stride = padded.shape[1]
    fill(padded.reshape(-1), image.dtype.type(0))
    for a in range(image.shape[0]):
        for b in range(image.shape[1]):
            copy(padded[a + above, (b + left) % stride, (b + left) // stride], image[a, b])


@njit(cache=True, parallel=True)
def transposed(matrix: Array) -> Array:
    """The transposed matrix."""
    target = np.empty((matrix.shape[1], matrix.shape[0]), matrix.dtype)
    tiles = ceil_div(target.shape[0], TILE)
    if matrix.size < SERIAL:
        for t in range(tiles):
            transpose_rows(target, t, matrix)
    else:
        for t in prange(tiles):
            transpose_rows(target, np.int64(t), matrix)
    return target


@njit(cache=True)
def transpose_rows(target: Array, task: Any, matrix: Array) -> None:
    """Task: TILE rows of target. Reading runs and writing columns is twice as fast as the reverse."""
    start, stop = task * TILE, min(target.shape[0], (task + 1) * TILE)
    for block in range(0, target.shape[1], TILE):
        for q in range(block, min(target.shape[1], block + TILE)):
            for p in range(start, stop):
                target[p, q] = matrix[q, p]


@njit(cache=True)
def window_offsets(indices: Array, shape: tuple[int, int, int, int, int], kernel_size: Pair) -> Array:
    """Where the run of each column (c, i, j) starts in a flat array of `shape` (C, rows, stride, columns, N)."""
    (channels, tall, stride, wide, samples), (k_h, k_w) = shape, kernel_size
    offsets = np.empty(indices.size, np.int64)
    for k in range(indices.size):
        c, i, j = indices[k] // (k_h * k_w), indices[k] // k_w % k_h, indices[k] % k_w
        if not 0 <= c < channels:
            raise IndexError("a column of the weight lies beyond the input's channels")
        offsets[k] = (((c * tall + i) * stride + j % stride) * wide + j // stride) * samples
    return offsets


@njit(cache=True)
def sort_by_channel(
    data: Array, indices: Array, indptr: Array, channels: int, kernel_size: Pair, stride: int, shape: tuple[int, ...]
) -> tuple[Array, Array, Array]:
    """Sort the weights by (c, i % stride, j % stride), stably: values, places in dy of `shape`, start of each group."""
    (k_h, k_w), (_, tall, _, wide, samples) = kernel_size, shape
    above, left = (k_h - 1) // stride, (k_w - 1) // stride
    first, key = np.zeros(channels * stride * stride + 1, np.int64), np.empty(indices.size, np.int64)
    for k in range(indices.size):
        c, i, j = indices[k] // (k_h * k_w), indices[k] // k_w % k_h, indices[k] % k_w
        if not 0 <= c < channels:
            raise IndexError("a column of the weight lies beyond the input's channels")
        key[k] = (c * stride + i % stride) * stride + j % stride
        first[key[k] + 1] += 1
    for g in range(first.size - 1):
        first[g + 1] += first[g]
    weights, offsets, place = np.empty_like(data), np.empty(indices.size, np.int64), first.copy()
    for o in range(indptr.size - 1):
        for k in range(indptr[o], indptr[o + 1]):
            i, j, at = indices[k] // k_w % k_h, indices[k] % k_w, place[key[k]]
            weights[at] = data[k]
            offsets[at] = ((o * tall + above - i // stride) * wide + left - j // stride) * samples
            place[key[k]] += 1
    return weights, offsets, first


@njit(cache=True)
def output_size(height: int, width: int, kernel_size: Pair, stride: int, padding: int) -> Pair:
    """(H_out, W_out)."""
    if height + 2 * padding < kernel_size[0] or width + 2 * padding < kernel_size[1]:
        raise ValueError("the window does not fit the padded image")
    return (height + 2 * padding - kernel_size[0]) // stride + 1, (width + 2 * padding - kernel_size[1]) // stride + 1


@njit(cache=True)
def check_gradient(dy: Array, h_out: int, w_out: int) -> None:
    """Raise ValueError unless dy has the output's size."""
    if dy.shape[1] != h_out or dy.shape[2] != w_out:
        raise ValueError("dy does not have the size of the convolution's output")


@njit(cache=True)
def fill(target: Array, value: Any) -> None:
    """target[:] = value, as a loop, which compiles in a tenth of the time; so does `copy`."""
    for m in range(target.size):
        target[m] = value


@njit(cache=True)
def copy(target: Array, source: Array) -> None:
    """target[:] = source."""
    for m in range(target.size):
        target[m] = source[m]


@njit(cache=True)
def no_bias(rows: int, dtype: Any) -> Array:
    """A bias of zeros: made outside the parallel kernel, which would make this a parallel region."""
    return np.zeros(rows, dtype)


@njit(cache=True)
def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)
