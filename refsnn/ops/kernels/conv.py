"""Kernels of the sparse convolution.

What they do. T and B are one axis of N contiguous samples, so an active weight moves runs of contiguous numbers.
Forward and input gradient are sums of runs, the gradients of the weights dot products of runs (`blocks/`).

Why so. Spikes are packed one a bit, and all maps stay in the cache. Real numbers are convolved by tiles, which roll
down their rows (`blocks/maps.py`, `blocks/tiles.py`). The input gradient is such a convolution of dy, with the weights
sorted by channel. Dense layers look spikes up four channels at once, or share what they read among eight filters
(`blocks/dense.py`). Every number is summed in one order: results do not depend on the number of threads, nor on how
tasks are cut. Little work is done by one thread: to start the others costs more.

What it gained. Processor time in ms, one AVX-512 core (Zen 5), float32, 256 channels on 32x32, N = 64, a tenth of the
inputs spike: patches of a few channels and floats in -> rolling tiles, bytes in, masks from vectors, stores past the
caches; behind it GFLOP/s of the active weights:

    density            0.01                    0.05                    0.1          1, dense execution
    forward            8.6 ->  5.8 (137)   28.9 -> 25.2 (153)   51.7 -> 49.2 (157)   135 (572)
    input gradient    22.5 -> 13.0  (61)   46.1 -> 43.5  (89)   82.2 -> 76.5 (101)   324 (239)
    active weights    14.7 ->  8.0  (99)   34.3 -> 26.7 (144)   56.4 -> 50.2 (154)   300 (257)
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import prange

from refsnn.ops.kernels.blocks import ceil_div, dot_runs, empty, kernel_jit, no_bias, sum_spikes, vector
from refsnn.ops.kernels.blocks.maps import (
    Pair,
    Tile,
    check_columns,
    find_column,
    gradient_size,
    output_size,
    pack_maps,
    patch_shape,
    pixels_at_least,
    read_bits,
    read_numbers,
    sizes,
    split_rows,
    tile_size,
    window_offsets,
)
from refsnn.ops.kernels.blocks.tiles import SERIAL, WRITTEN, convolve, convolve_dense, look_up
from refsnn.ops.kernels.blocks.vectors import STREAM

Array = npt.NDArray[Any]

DENSE = 1       # position of the word "dense" among the options of `execution`
ROWS = 16       # filters of a task of the forward pass over spikes
GROUP = 64      # channels of a task of the sort, where there are enough of them for eight tasks
FEW_WEIGHTS = 2**13     # that two tasks sort, and not eight, each of which reads the columns of all
NEAR = 2**23    # bytes of rows of real x that all filters read before the next ones: the last cache keeps them


@kernel_jit()
def pack_input_kernel(x: Array, padding: int) -> tuple[Array, bool]:
    """Kernel of `pack_input`."""
    bits, packed = pack_maps(x, padding, 1)
    if not packed or x.shape[4] % 8 != 0:
        return np.empty((0, 0, 0, 0, 0, 0), np.uint8), False
    return bits.reshape((*bits.shape[:4], x.shape[3], x.shape[4] // 8)), True


@kernel_jit(parallel=True, fastmath={"contract"})
def conv2d_forward_kernel(
    x: Array, data: Array, indices: Array, indptr: Array, bias: Array | None,
    kernel_size: Pair, stride: int, padding: int, execution: int,
) -> Array:
    """Kernel of `conv2d_forward`."""
    channels, height, width, steps, batch = sizes(x, padding)
    rows, samples = indptr.size - 1, steps * batch
    h_out, w_out = output_size(height, width, kernel_size, stride, padding)
    at_rest = no_bias(rows, data.dtype) if bias is None else bias
    flat = empty(rows * h_out * w_out * samples, data.dtype).reshape(rows, h_out, w_out, samples)
    geometry = (stride, padding, padding, 1, 0, 0, h_out, w_out)
    if x.ndim == 5 and execution == DENSE:
        done = look_up(flat, x, data, indices, indptr, at_rest, kernel_size, stride, padding)
        if not done:
            image = np.asarray(x, data.dtype).reshape(channels, height, width, samples)
            done = convolve_dense(flat, image, geometry, data, indices, indptr, kernel_size, at_rest, False)
        if done:
            return flat.reshape(rows, h_out, w_out, steps, batch)
    bits, packed = read_bits(x, padding, stride)
    if packed:
        offsets = window_offsets(indices, channels, bits.shape, kernel_size, 1)
        tasks = h_out * ceil_div(rows, ROWS)
        if indices.size * h_out * w_out * samples < SERIAL:
            for t in range(tasks):
                convolve_spikes(flat, t, bits, offsets, data, indptr, at_rest)
        else:
            for t in prange(tasks):
                convolve_spikes(flat, np.int64(t), bits, offsets, data, indptr, at_rest)
    else:
        image = np.asarray(x, data.dtype).reshape(channels, height, width, samples)
        least = pixels_at_least(indices.size, rows)
        tile = tile_size(channels, h_out, w_out, samples, kernel_size, stride, 1, data.itemsize, least)
        shape = patch_shape(tile, kernel_size, stride)
        offsets = window_offsets(indices, channels, shape, kernel_size, shape[1] if tile[4] else 1)
        first = split_rows(indices, indptr, tile[0], channels, kernel_size)
        convolve(flat, image, geometry, tile, kernel_size, data, offsets, first, at_rest, False)
    return flat.reshape(rows, h_out, w_out, steps, batch)


@kernel_jit(fastmath={"contract"})
def convolve_spikes(
    y: Array, task: Any, bits: Array, offsets: Array, data: Array, indptr: Array, at_rest: Array
) -> None:
    """Task: row h of y (O, H_out, W_out, N) for ROWS filters; the next task reads the same spikes."""
    rows, height, width, samples = y.shape
    _, _, stride, wide, run = bits.shape
    groups, n = ceil_div(rows, ROWS), width * samples
    h, o = task // groups, task % groups * ROWS
    sum_spikes(y.reshape(-1), (o * height + h) * n, height * n, vector(y), at_rest, n, bits.reshape(-1),
               h * stride * stride * wide * run, offsets.reshape(-1), 0, data, indptr, 1, o, min(rows, o + ROWS),
               y.size * y.itemsize >= STREAM)


@kernel_jit(fastmath={"contract"})
def conv2d_input_gradient_kernel(
    dy: Array, data: Array, indices: Array, indptr: Array,
    input_size: tuple[int, int, int], kernel_size: Pair, stride: int, padding: int, execution: int,
) -> Array:
    """Kernel of `conv2d_input_gradient`: dx is a convolution of dy, once for each remainder (row, column) mod stride.

    In padded coordinates dx[c, stride q + r, stride u + v] = sum over the weights (o, i, j) of channel c with
    i % stride = r and j % stride = v of W * dy[o, q - i // stride, u - j // stride].
    """
    (channels, height, width), (k_h, k_w) = input_size, kernel_size
    rows, _, _, steps, batch = dy.shape
    samples = steps * batch
    h_out, w_out = gradient_size(dy, height, width, kernel_size, stride, padding)
    gradient = dy.reshape(rows, h_out, w_out, samples)
    flat = empty(channels * height * width * samples, dy.dtype).reshape(channels, height, width, samples)
    small, at_rest = (ceil_div(k_h, stride), ceil_div(k_w, stride)), no_bias(channels, dy.dtype)
    if execution == DENSE and stride == 1:
        geometry = (1, k_h - 1 - padding, k_w - 1 - padding, 1, 0, 0, height, width)
        if convolve_dense(flat, gradient, geometry, data, indices, indptr, kernel_size, at_rest, True):
            return flat.reshape(channels, height, width, steps, batch)
    high, broad, least = ceil_div(height, stride), ceil_div(width, stride), pixels_at_least(indices.size, channels)
    tile = tile_size(rows, high, broad, samples, small, 1, stride, dy.itemsize, least)
    weights, offsets, first = sort_by_channel(data, indices, indptr, channels, kernel_size, stride, tile)
    for r in range(stride):
        for v in range(stride):
            a, b = (r - padding) % stride, (v - padding) % stride       # the first row and column of this remainder
            top, left = small[0] - 1 - (a + padding) // stride, small[1] - 1 - (b + padding) // stride
            high, broad = max(0, ceil_div(height - a, stride)), max(0, ceil_div(width - b, stride))
            geometry = (1, top, left, stride, a, b, high, broad)
            convolve(flat, gradient, geometry, tile, small, weights, offsets, first[r * stride + v], at_rest, False)
    return flat.reshape(channels, height, width, steps, batch)


@kernel_jit(parallel=True)
def conv2d_weight_gradient_dense_kernel(dy: Array, x: Array, kernel_size: Pair, stride: int, padding: int) -> Array:
    """Kernel of `conv2d_weight_gradient_dense`: `conv2d_weight_gradient` of all columns, for two filters at a time."""
    channels, height, width, steps, batch = sizes(x, padding)
    rows, samples, columns = dy.shape[0], steps * batch, channels * kernel_size[0] * kernel_size[1]
    h_out, w_out = gradient_size(dy, height, width, kernel_size, stride, padding)
    bits, packed = read_bits(x, padding, stride)
    source = read_numbers(x, packed, dy, padding, stride)
    run = bits.shape[4] if packed else samples
    shape, every = (channels, bits.shape[1], stride, bits.shape[3], run), np.arange(columns)
    offsets = window_offsets(every, channels, shape, kernel_size, 1).reshape(-1)
    dense, gradient, far = np.empty(rows * columns, dy.dtype), dy.reshape(-1), stride * stride * bits.shape[3] * run
    n, plain, spikes = w_out * samples, source.reshape(-1), bits.reshape(-1)
    if rows * columns * h_out * w_out * samples < SERIAL:
        for o in range(0, rows, 2):
            dot_runs(dense[o * columns :], min(2, rows - o), columns, gradient, o * h_out * n, h_out * n, n, plain,
                     spikes, packed, offsets, 0, columns, far, h_out, n)
    else:
        for t in prange(ceil_div(rows, 2)):
            u = 2 * np.int64(t)
            dot_runs(dense[u * columns :], min(2, rows - u), columns, gradient, u * h_out * n, h_out * n, n, plain,
                     spikes, packed, offsets, 0, columns, far, h_out, n)
    return dense.reshape(rows, columns)


@kernel_jit()
def take_active(dense: Array, indices: Array, indptr: Array) -> Array:
    """The places of `dense` (O, columns) that are active."""
    taken = np.empty(indices.size, dense.dtype)
    check_columns(indices, dense.shape[1])
    for o in range(dense.shape[0]):
        for k in range(indptr[o], indptr[o + 1]):
            taken[k] = dense[o, indices[k]]
    return taken


@kernel_jit(parallel=True)
def conv2d_weight_gradient_kernel(
    dy: Array, x: Array, indices: Array, indptr: Array, kernel_size: Pair, stride: int, padding: int, execution: int
) -> Array:
    """Kernel of `conv2d_weight_gradient`: a dot product of output rows for every active weight."""
    if execution == DENSE:
        return take_active(conv2d_weight_gradient_dense_kernel(dy, x, kernel_size, stride, padding), indices, indptr)
    channels, height, width, steps, batch = sizes(x, padding)
    rows, samples = indptr.size - 1, steps * batch
    h_out, w_out = gradient_size(dy, height, width, kernel_size, stride, padding)
    bits, packed = read_bits(x, padding, stride)
    source = read_numbers(x, packed, dy, padding, stride)
    run = bits.shape[4] if packed else samples
    offsets = window_offsets(indices, channels, (channels, bits.shape[1], stride, bits.shape[3], run), kernel_size,
                             1).reshape(-1)
    given = (dy.reshape(-1), source.reshape(-1), bits.reshape(-1))
    shape = (h_out, w_out * samples, stride * stride * bits.shape[3] * run)
    ddata, apart = np.zeros(indices.size, dy.dtype), shape[2] * channels * source.itemsize
    band = h_out if packed else max(1, min(h_out, NEAR // max(1, apart)))
    for h in range(0, h_out, max(1, band)):
        lines = min(band, h_out - h)
        if (indices.size + WRITTEN * rows) * lines * shape[1] < SERIAL:
            for o in range(rows):
                add_dots(ddata, o, h, lines, given, packed, shape, offsets, indptr)
        else:
            for o in prange(rows):
                add_dots(ddata, np.int64(o), h, lines, given, packed, shape, offsets, indptr)
    return ddata


@kernel_jit()
def add_dots(
    ddata: Array, o: Any, h: int, lines: int, given: tuple[Array, ...], packed: bool, shape: tuple[int, int, int],
    offsets: Array, indptr: Array,
) -> None:
    """Task: what output rows h..h + lines give to the weights of filter o; given: dy, x and its bits, flat.

    shape: rows of dy, numbers of one, and of a row of x for all phases of the stride.
    """
    (dy, x, bits), (height, n, far) = given, shape
    first, last = indptr[o], indptr[o + 1]
    part, skip = np.empty(last - first, ddata.dtype), h * far
    dot_runs(part, 1, 0, dy, (o * height + h) * n, 0, n, x[0 if packed else skip :], bits[skip if packed else 0 :],
             packed, offsets[first:], 0, last - first, far, lines, n)
    for k in range(first, last):
        ddata[k] += part[k - first]


@kernel_jit(parallel=True)
def sort_by_channel(
    data: Array, indices: Array, indptr: Array, channels: int, kernel_size: Pair, stride: int, tile: Tile
) -> tuple[Array, Array, Array]:
    """Sort the weights by (channel c, remainder of i and j, filter o), stably: values, places in a task's patch of dy
    (phases, nnz), and first (stride stride, C, blocks + 1): where those of c and a block of filters start."""
    rows = indptr.size - 1
    check_columns(indices, channels * kernel_size[0] * kernel_size[1])
    small = (ceil_div(kernel_size[0], stride), ceil_div(kernel_size[1], stride))
    phases = patch_shape(tile, small, 1)[1] if tile[4] else 1
    weights, offsets = np.empty_like(data), np.empty((phases, indices.size), np.int64)
    first = np.empty((stride * stride, channels, ceil_div(rows, tile[0]) + 1), np.int64)
    group = min(GROUP, ceil_div(channels, 2 if indices.size < FEW_WEIGHTS else 8))
    tasks = ceil_div(channels, max(1, group))
    if indices.size < SERIAL // 2048:
        for t in range(tasks):
            sort_channels(weights, offsets, first, t, group, data, indices, indptr, kernel_size, stride, tile)
    else:
        for t in prange(tasks):
            sort_channels(weights, offsets, first, np.int64(t), group, data, indices, indptr, kernel_size, stride, tile)
    return weights, offsets, first


@kernel_jit()
def sort_channels(
    weights: Array, offsets: Array, first: Array, task: Any, group: int, data: Array, indices: Array, indptr: Array,
    kernel_size: Pair, stride: int, tile: Tile,
) -> None:
    """Task: `group` channels of `sort_by_channel`, by counting."""
    (k_h, k_w), rows, start = kernel_size, indptr.size - 1, task * group
    groups, channels, blocks = first.shape
    many, blocks, window = min(group, channels - start), blocks - 1, k_h * k_w
    small = (ceil_div(k_h, stride), ceil_div(k_w, stride))
    held, tall, _, wide, samples = patch_shape(tile, small, 1)
    phases, key = offsets.shape[0], np.empty(many * window, np.int64)       # key and places of each column
    place = np.empty((phases, many * window), np.int64)
    for i in range(k_h):
        for j in range(k_w):
            g, place_of_j = i % stride * stride + j % stride, small[1] - 1 - j // stride
            for c in range(many):
                key[c * window + i * k_w + j] = (c * groups + g) * blocks
            for p in range(phases):
                spot = ((small[0] - 1 - i // stride + p) % tall * wide + place_of_j) * samples
                for c in range(many):
                    place[p, c * window + i * k_w + j] = spot
    begin, end = np.empty(rows, np.int64), np.empty(rows, np.int64)
    count, at = np.zeros(many * groups * blocks, np.int64), np.int64(0)
    for o in range(rows):
        begin[o] = find_column(indices, indptr[o], indptr[o + 1], start * window)
        end[o] = find_column(indices, begin[o], indptr[o + 1], (start + many) * window)
        at += begin[o] - indptr[o]
        for k in range(begin[o], end[o]):
            count[key[indices[k] - start * window] + o // tile[0]] += 1
    for c in range(many):
        for g in range(groups):
            for b in range(blocks):
                m = (c * groups + g) * blocks + b
                first[g, start + c, b] = at
                at, count[m] = at + count[m], at
            first[g, start + c, blocks] = at
    for o in range(rows):
        block, row = o // tile[0], o % held * tall * wide * samples
        for k in range(begin[o], end[o]):
            m = indices[k] - start * window
            to = count[key[m] + block]
            weights[to], count[key[m] + block] = data[k], to + 1
            for p in range(phases):
                offsets[p, to] = row + place[p, m]


