"""Kernels of the sparse convolution.

What they do. T and B are one axis of N contiguous samples, so an active weight moves runs of contiguous numbers.
Forward and input gradient are sums of runs, the gradients of the weights dot products of runs (`blocks.py`).

Why so. Spikes are packed one a bit, and all maps stay in the cache. Real numbers are convolved by tiles (`convolve`): a
task computes one tile of the output for all filters, from patches of the zero-padded source, a few channels each, laid
out without gaps, because maps whose size is a power of two would claim the same lines of a cache. The input gradient
is such a convolution of dy, with the weights sorted by channel. Columns are sorted by their remainder modulo the
stride, which makes runs contiguous. Every number is summed in one order: results do not depend on the number of
threads, nor on how tasks are cut. Little work is done by one thread: to start the others costs more.

What it gained over plain loops, eight runs a pass: processor time, one AVX-512 core (Zen 5), float32, 256 channels on
16x16, N = 64, density 0.05, a tenth of the inputs spike: forward 2.8 times (121 GFLOP/s), input gradient 1.8 (74),
active weights 9 (114), dense gradient 1.4 (252; 6 for a first layer, whose inputs are real; 0.8 for 512 on 4x4).
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from refsnn.ops.kernels.blocks import (
    add_runs,
    add_spikes,
    ceil_div,
    copy,
    dot_runs,
    empty,
    fill,
    kernel_jit,
    no_bias,
    pack_spikes,
)

Array = npt.NDArray[Any]
Pair = tuple[int, int]
Shape = tuple[int, int, int, int, int]                          # of a source, (C, rows, stride, columns, N)
Tile = tuple[int, int, int, int]                                # see `tile_size`
Place = tuple[int, int, int, int, int]                          # of a task: first row, pixel, sample; rows, pixels
Geometry = tuple[int, int, int, int, int, int, int, int]        # see `convolve`

SERIAL = 2**22  # multiply-adds, or numbers to copy, below which one thread works alone
RUN = 256       # numbers of a run: what the registers hold
ROWS = 16       # filters of a task of the forward pass over spikes
BAND = 4        # rows of a tile
CACHE = 600000  # bytes of a patch, which stays in the second cache
GROUP = 64      # channels of a task of the sort


@kernel_jit(parallel=True, fastmath={"contract"})
def conv2d_forward_kernel(
    x: Array, data: Array, indices: Array, indptr: Array, bias: Array | None,
    kernel_size: Pair, stride: int, padding: int,
) -> Array:
    """Kernel of `conv2d_forward`."""
    channels, height, width, steps, batch = x.shape
    rows, samples = indptr.size - 1, steps * batch
    h_out, w_out = output_size(height, width, kernel_size, stride, padding)
    at_rest = no_bias(rows, x.dtype) if bias is None else bias
    y = np.empty((rows, h_out, w_out, steps, batch), x.dtype)
    flat = y.reshape(rows, h_out, w_out, samples)
    bits, packed = pack_maps(x, padding, stride)
    if packed:
        offsets = window_offsets(indices, channels, bits.shape, kernel_size)
        tasks = h_out * ceil_div(rows, ROWS)
        if indices.size * h_out * w_out * samples < SERIAL:
            for t in range(tasks):
                convolve_spikes(flat, t, bits, offsets, data, indptr, at_rest)
        else:
            for t in prange(tasks):
                convolve_spikes(flat, np.int64(t), bits, offsets, data, indptr, at_rest)
        return y
    image, geometry = x.reshape(channels, height, width, samples), (stride, padding, padding, 1, 0, 0, h_out, w_out)
    tile = tile_size(channels, h_out, w_out, samples, kernel_size, stride, x.itemsize)
    offsets = window_offsets(indices, channels, patch_shape(tile, kernel_size, stride), kernel_size)
    first = split_rows(indices, indptr, tile[0], channels, kernel_size)
    convolve(flat, image, geometry, tile, kernel_size, data, offsets, first, at_rest)
    return y


@kernel_jit(fastmath={"contract"})
def convolve_spikes(
    y: Array, task: Any, bits: Array, offsets: Array, data: Array, indptr: Array, at_rest: Array
) -> None:
    """Task: row h of y (O, H_out, W_out, N) for ROWS filters; the next task reads the same spikes."""
    rows, height, width, samples = y.shape
    _, _, stride, wide, run = bits.shape
    groups, flat, source, n = ceil_div(rows, ROWS), y.reshape(-1), bits.reshape(-1), width * samples
    h, group = task // groups, task % groups
    base, shift = np.empty(RUN, y.dtype), h * stride * stride * wide * run
    for o in range(group * ROWS, min(rows, (group + 1) * ROWS)):
        fill(base, 0, RUN, at_rest[o])
        for m in range(0, n, RUN):
            at, part = (o * height + h) * n + m, min(RUN, n - m)
            add_spikes(flat, at, base, 0, part, source, shift + m // 8, offsets, data, indptr[o], indptr[o + 1])


@kernel_jit(fastmath={"contract"})
def conv2d_input_gradient_kernel(
    dy: Array, data: Array, indices: Array, indptr: Array,
    input_size: tuple[int, int, int], kernel_size: Pair, stride: int, padding: int,
) -> Array:
    """Kernel of `conv2d_input_gradient`: dx is a convolution of dy, once for each remainder (row, column) mod stride.

    In padded coordinates dx[c, stride q + r, stride u + v] = sum over the weights (o, i, j) of channel c with
    i % stride = r and j % stride = v of W * dy[o, q - i // stride, u - j // stride].
    """
    (channels, height, width), (k_h, k_w) = input_size, kernel_size
    rows, _, _, steps, batch = dy.shape
    h_out, w_out = gradient_size(dy, height, width, kernel_size, stride, padding)
    dx = np.empty((channels, height, width, steps, batch), dy.dtype)
    flat, gradient = dx.reshape(channels, height, width, steps * batch), dy.reshape(rows, h_out, w_out, steps * batch)
    small = (ceil_div(k_h, stride), ceil_div(k_w, stride))
    tile = tile_size(rows, ceil_div(height, stride), ceil_div(width, stride), steps * batch, small, 1, dy.itemsize)
    weights, offsets, first = sort_by_channel(data, indices, indptr, channels, kernel_size, stride, tile, rows)
    at_rest = no_bias(channels, dy.dtype)
    for r in range(stride):
        for v in range(stride):
            a, b = (r - padding) % stride, (v - padding) % stride       # the first row and column of this remainder
            top, left = small[0] - 1 - (a + padding) // stride, small[1] - 1 - (b + padding) // stride
            high, broad = max(0, ceil_div(height - a, stride)), max(0, ceil_div(width - b, stride))
            geometry = (1, top, left, stride, a, b, high, broad)
            convolve(flat, gradient, geometry, tile, small, weights, offsets, first[r * stride + v], at_rest)
    return dx


@kernel_jit(parallel=True, fastmath={"contract"})
def convolve(
    y: Array, x: Array, geometry: Geometry, tile: Tile, kernel_size: Pair, weights: Array, offsets: Array,
    first: Array, at_rest: Array,
) -> None:
    """y[o, h S + a, w S + b] = at_rest[o] + sum_k weights[k] x[c_k, h s + i_k - top, w s + j_k - left], h < H, w < W.

    geometry (s, top, left, S, a, b, H, W). first (O, blocks + 1): where the weights of o and a block of channels start.
    """
    _, _, _, _, _, _, high, broad = geometry
    _, band, pixels, samples = tile
    tasks = ceil_div(high, band) * ceil_div(broad, pixels) * ceil_div(y.shape[3], max(1, samples))
    if weights.size * high * broad * y.shape[3] < SERIAL:
        for t in range(tasks):
            convolve_tile(y, t, x, geometry, tile, kernel_size, weights, offsets, first, at_rest)
    else:
        for t in prange(tasks):
            convolve_tile(y, np.int64(t), x, geometry, tile, kernel_size, weights, offsets, first, at_rest)


@kernel_jit(fastmath={"contract"})
def convolve_tile(
    y: Array, task: Any, x: Array, geometry: Geometry, tile: Tile, kernel_size: Pair, weights: Array, offsets: Array,
    first: Array, at_rest: Array,
) -> None:
    """Task: all filters of one tile of y, a band of rows, a few pixels, a few samples: one patch of x after another."""
    stride, top, left, _, _, _, high, broad = geometry
    block, band, pixels, samples = tile
    parts, across = ceil_div(y.shape[3], samples), ceil_div(broad, pixels)
    h, w, n = task // (across * parts) * band, task // parts % across * pixels, task % parts * samples
    lines, pixels = min(band, high - h), min(pixels, broad - w)
    shape = patch_shape(tile, kernel_size, stride)
    patch = empty(shape[0] * shape[1] * shape[2] * shape[3] * shape[4], x.dtype)
    totals = empty(RUN + (y.shape[0] if first.shape[1] > 2 else 1) * lines * pixels * samples, y.dtype)
    place = (h, w, n, lines, pixels)
    for b in range(first.shape[1] - 1):
        copy_patch(patch.reshape(shape), x, b * block, h * stride - top, w * stride - left, n)
        add_patch(y, totals, b, place, patch, shape, geometry, weights, offsets, first, at_rest)


@kernel_jit(fastmath={"contract"})
def add_patch(
    y: Array, totals: Array, b: int, place: Place, patch: Array, shape: Shape, geometry: Geometry, weights: Array,
    offsets: Array, first: Array, at_rest: Array,
) -> None:
    """Add patch b to all filters: from at_rest (the first patch) or the totals, to the totals or y (the last)."""
    stride, _, _, step, a0, b0, _, _ = geometry
    h, w, n, lines, pixels = place
    _, height, width, whole = y.shape
    many = min(shape[4], whole - n)
    run, flat = (pixels - 1) * shape[4] + many, y.reshape(-1)
    opening, closing = b == 0, b == first.shape[1] - 2
    direct = pixels == 1 or (step == 1 and shape[4] == whole)
    for o in range(first.shape[0]):
        if opening:
            fill(totals, 0, RUN, at_rest[o])            # the totals start behind it
        for line in range(lines):
            own = RUN + ((o * lines + line) * pixels * shape[4] if first.shape[1] > 2 else 0)
            at = ((o * height + (h + line) * step + a0) * width + w * step + b0) * whole + n
            shift = line * stride * stride * shape[3] * shape[4]
            begin = 0 if opening else own
            if closing and direct:
                add_runs(flat, at, totals, begin, run, patch, shift, offsets, weights, first[o, b], first[o, b + 1])
            else:
                add_runs(totals, own, totals, begin, run, patch, shift, offsets, weights, first[o, b], first[o, b + 1])
                for p in range(pixels if closing else 0):
                    copy(flat, at + p * step * whole, totals, own + p * shape[4], many)


@kernel_jit(parallel=True)
def conv2d_weight_gradient_kernel(
    dy: Array, x: Array, indices: Array, indptr: Array, kernel_size: Pair, stride: int, padding: int
) -> Array:
    """Kernel of `conv2d_weight_gradient`: a dot product of output rows for every active weight."""
    channels, height, width, steps, batch = x.shape
    rows, samples = indptr.size - 1, steps * batch
    h_out, w_out = gradient_size(dy, height, width, kernel_size, stride, padding)
    bits, packed = pack_maps(x, padding, stride)
    source = pad_maps(x[: 0 if packed else channels], padding, stride)
    run = bits.shape[4] if packed else samples
    offsets = window_offsets(indices, channels, (channels, bits.shape[1], stride, bits.shape[3], run), kernel_size)
    ddata, gradient, far = np.empty(indices.size, x.dtype), dy.reshape(-1), stride * stride * bits.shape[3] * run
    n, plain, spikes = w_out * samples, source.reshape(-1), bits.reshape(-1)
    if indices.size * h_out * w_out * samples < SERIAL:
        for o in range(rows):
            dot_runs(ddata, 1, 0, gradient, o * h_out * n, 0, n, plain, spikes, packed, offsets, indptr[o],
                     indptr[o + 1], far, h_out, n)
    else:
        for o in prange(rows):
            dot_runs(ddata, 1, 0, gradient, np.int64(o) * h_out * n, 0, n, plain, spikes, packed, offsets, indptr[o],
                     indptr[o + 1], far, h_out, n)
    return ddata


@kernel_jit(parallel=True)
def conv2d_weight_gradient_dense_kernel(dy: Array, x: Array, kernel_size: Pair, stride: int, padding: int) -> Array:
    """Kernel of `conv2d_weight_gradient_dense`: `conv2d_weight_gradient` of all columns, for two filters at a time."""
    channels, height, width, steps, batch = x.shape
    rows, samples, columns = dy.shape[0], steps * batch, channels * kernel_size[0] * kernel_size[1]
    h_out, w_out = gradient_size(dy, height, width, kernel_size, stride, padding)
    bits, packed = pack_maps(x, padding, stride)
    source = pad_maps(x[: 0 if packed else channels], padding, stride)
    run = bits.shape[4] if packed else samples
    shape, every = (channels, bits.shape[1], stride, bits.shape[3], run), np.arange(columns)
    offsets = window_offsets(every, channels, shape, kernel_size)
    dense, gradient, far = np.empty(rows * columns, x.dtype), dy.reshape(-1), stride * stride * bits.shape[3] * run
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


@njit(cache=True)
def tile_size(channels: int, high: int, broad: int, total: int, kernel_size: Pair, stride: int, itemsize: int) -> Tile:
    """How tasks are cut: source channels of a patch, output rows, output pixels, samples.

    Output: `high` rows of `broad` pixels of `total` samples. A row of a tile fills the registers, and a patch of as
    many channels as possible stays in the second cache.
    """
    samples = min(total, RUN)
    for part in range(16, min(total, max(64, RUN // broad)) + 1, 16):       # vectors are filled
        samples = part if total % part == 0 else samples
    pixels, band = max(1, min(broad, RUN // max(1, samples))), min(high, BAND)
    patch = (band - 1) * stride + kernel_size[0], stride * (pixels + (kernel_size[1] - 1) // stride)
    held = CACHE // (patch[0] * patch[1] * max(1, samples) * itemsize)
    return max(1, min(channels, held)), band, pixels, samples


@njit(cache=True)
def patch_shape(tile: Tile, kernel_size: Pair, stride: int) -> Shape:
    """Shape of the part of the padded source that a task reads: (channels, rows, stride, columns, samples)."""
    block, band, pixels, samples = tile
    return block, (band - 1) * stride + kernel_size[0], stride, pixels + (kernel_size[1] - 1) // stride, samples


@kernel_jit()
def copy_patch(patch: Array, x: Array, start: int, top: int, left: int, n: int) -> None:
    """patch[c, a, b % stride, b // stride] = x[start + c, top + a, left + b, n:], 0 outside the image."""
    channels, rows, stride, columns, samples = patch.shape
    total, height, width, whole = x.shape
    flat, source, many, zero = patch.reshape(-1), x.reshape(-1), min(samples, whole - n), patch.dtype.type(0)
    inner, stop = max(0, -left), min(columns * stride, width - left)        # columns of the image: inner..stop
    for c in range(min(channels, total - start)):
        for a in range(rows):
            line, at = ((start + c) * height + top + a) * width + left, (c * rows + a) * stride * columns * samples
            if not 0 <= top + a < height or inner >= stop:
                fill(flat, at, stride * columns * samples, zero)
            elif stride == 1 and samples == whole:
                fill(flat, at, inner * samples, zero)
                copy(flat, at + inner * samples, source, (line + inner) * whole, (stop - inner) * samples)
                fill(flat, at + stop * samples, (columns - stop) * samples, zero)
            else:
                for b in range(columns * stride):
                    pixel = at + (b % stride * columns + b // stride) * samples
                    held = many if inner <= b < stop else 0
                    copy(flat, pixel, source, (line + b) * whole + n, held)
                    fill(flat, pixel + held, samples - held, zero)


@njit(cache=True)
def split_rows(indices: Array, indptr: Array, block: int, channels: int, kernel_size: Pair) -> Array:
    """(O, blocks + 1): where in row o the weights of each block of input channels start."""
    first = np.empty((indptr.size - 1, ceil_div(channels, block) + 1), np.int64)
    for o in range(first.shape[0]):
        for b in range(first.shape[1]):
            first[o, b] = find_column(indices, indptr[o], indptr[o + 1], b * block * kernel_size[0] * kernel_size[1])
    return first


@njit(cache=True)
def window_offsets(indices: Array, channels: int, shape: Shape, kernel_size: Pair) -> Array:
    """Where the run of each column (c, i, j) starts in `shape` (C, rows, stride, columns, N), c modulo C."""
    (many, tall, stride, wide, samples), (k_h, k_w) = shape, kernel_size
    place, offsets, column = np.empty(channels * k_h * k_w, np.int64), np.empty(indices.size, np.int64), 0
    for c in range(channels):
        for i in range(k_h):
            for j in range(k_w):
                place[column] = (((c % many * tall + i) * stride + j % stride) * wide + j // stride) * samples
                column += 1
    for k in range(indices.size):
        if not 0 <= indices[k] < column:
            raise IndexError("a column of the weight lies beyond the input's channels")
        offsets[k] = place[indices[k]]
    return offsets


@kernel_jit(parallel=True)
def sort_by_channel(
    data: Array, indices: Array, indptr: Array, channels: int, kernel_size: Pair, stride: int, tile: Tile, rows: int
) -> tuple[Array, Array, Array]:
    """Sort the weights by (channel c, remainder of i and j, filter o), stably: values, places in a task's patch of dy,
    and first (stride stride, C, blocks + 1): where those of c and a block of filters start."""
    for o in range(rows):
        if indptr[o] < indptr[o + 1] and indices[indptr[o + 1] - 1] >= channels * kernel_size[0] * kernel_size[1]:
            raise IndexError("a column of the weight lies beyond the input's channels")
    weights, offsets = np.empty_like(data), np.empty(indices.size, np.int64)
    first = np.empty((stride * stride, channels, ceil_div(rows, tile[0]) + 1), np.int64)
    tasks = ceil_div(channels, GROUP)
    if indices.size < SERIAL // 64:
        for t in range(tasks):
            sort_channels(weights, offsets, first, t, data, indices, indptr, kernel_size, stride, tile)
    else:
        for t in prange(tasks):
            sort_channels(weights, offsets, first, np.int64(t), data, indices, indptr, kernel_size, stride, tile)
    return weights, offsets, first


@kernel_jit()
def sort_channels(
    weights: Array, offsets: Array, first: Array, task: Any, data: Array, indices: Array, indptr: Array,
    kernel_size: Pair, stride: int, tile: Tile,
) -> None:
    """Task: GROUP channels of `sort_by_channel`, by counting."""
    (k_h, k_w), rows, start = kernel_size, indptr.size - 1, task * GROUP
    groups, channels, blocks = first.shape
    many, blocks, window = min(GROUP, channels - start), blocks - 1, k_h * k_w
    small = (ceil_div(k_h, stride), ceil_div(k_w, stride))
    held, tall, _, wide, samples = patch_shape(tile, small, 1)
    key, place = np.empty(many * window, np.int64), np.empty(many * window, np.int64)       # of each column
    for m in range(many * window):
        c, i, j = m // window, m // k_w % k_h, m % k_w
        key[m] = ((c * groups) + i % stride * stride + j % stride) * blocks
        place[m] = ((small[0] - 1 - i // stride) * wide + small[1] - 1 - j // stride) * samples
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
            weights[to], offsets[to], count[key[m] + block] = data[k], row + place[m], to + 1


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


@kernel_jit(parallel=True)
def pack_maps(x: Array, padding: int, stride: int) -> tuple[Array, bool]:
    """`pad_maps` of spikes, a bit each: bytes (C, rows, stride, columns, N / 8). False where x holds other numbers."""
    channels, height, width, steps, batch = x.shape
    shape = (channels, height + 2 * padding, stride, ceil_div(width + 2 * padding, stride), steps * batch // 8)
    bits, spikes = np.empty(shape, np.uint8), np.empty(channels, np.bool_)
    if steps * batch % 8 != 0:
        return bits, False
    if x.size < SERIAL:
        for c in range(channels):
            spikes[c] = pack_map(bits[c], x[c], padding)
    else:
        for c in prange(channels):
            spikes[c] = pack_map(bits[c], x[c], padding)
    packed = True
    for c in range(channels):
        packed &= spikes[c]
    return bits, packed


@kernel_jit()
def pack_map(bits: Array, image: Array, padding: int) -> bool:
    """Task: one map of `pack_maps`; stops at the first number that is not 0 or 1."""
    (height, width, steps, batch), (_, stride, wide, run) = image.shape, bits.shape
    flat, numbers, samples = bits.reshape(-1), image.reshape(-1), steps * batch
    fill(flat, 0, flat.size, np.uint8(0))
    for a in range(height):
        for b in range(width):
            at = (((a + padding) * stride + (b + padding) % stride) * wide + (b + padding) // stride) * run
            if not pack_spikes(flat, at, numbers, (a * width + b) * samples, samples):
                return False
    return True


@kernel_jit(parallel=True)
def pad_maps(x: Array, padding: int, stride: int) -> Array:
    """x (C, H, W, T, B) among zeros, (C, rows, stride, columns, N): pixel (a, b), from the corner of the padding, lies
    at [a, b % stride, b // stride]."""
    channels, height, width, steps, batch = x.shape
    shape = (channels, height + 2 * padding, stride, ceil_div(width + 2 * padding, stride), steps * batch)
    padded = empty(shape[0] * shape[1] * shape[2] * shape[3] * shape[4], x.dtype).reshape(shape)
    image = x.reshape(channels, height, width, steps * batch)
    if padded.size < SERIAL:
        for c in range(channels):
            copy_patch(padded[c : c + 1], image, c, -padding, -padding, 0)
    else:
        for c in prange(channels):
            copy_patch(padded[c : c + 1], image, np.int64(c), -padding, -padding, 0)
    return padded


@njit(cache=True)
def output_size(height: int, width: int, kernel_size: Pair, stride: int, padding: int) -> Pair:
    """(H_out, W_out)."""
    if height + 2 * padding < kernel_size[0] or width + 2 * padding < kernel_size[1]:
        raise ValueError("the window does not fit the padded image")
    return (height + 2 * padding - kernel_size[0]) // stride + 1, (width + 2 * padding - kernel_size[1]) // stride + 1


@njit(cache=True)
def gradient_size(dy: Array, height: int, width: int, kernel_size: Pair, stride: int, padding: int) -> Pair:
    """`output_size`; raises ValueError unless it is that of dy."""
    h_out, w_out = output_size(height, width, kernel_size, stride, padding)
    if dy.shape[1] != h_out or dy.shape[2] != w_out:
        raise ValueError("dy does not have the size of the convolution's output")
    return h_out, w_out
