"""Maps as the kernels of the convolution read them: packed, among zeros, or cut into tiles.

A source (C, H, W, T, B) is read as (C, rows, stride, columns, N): pixel (a, b), counted from the corner of the padding,
lies at [a, b % stride, b // stride], which makes the runs that one column of the weight reads contiguous. Offsets are
places in that shape.

A tile is the part of the output that one task computes, and what of the source it reads is copied: without gaps (maps
whose size is a power of two would claim the same lines of a cache), among zeros, and small enough for the second cache.
A tile that rolls keeps `k_h` rows of all channels and brings the next ones in as it goes down its rows: every row is
copied once, and the totals of all weights of a filter are held at once. For rows of many channels it takes one vector
of samples only. Where even that does not fit, a tile takes a few channels after another, and totals go through memory.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from refsnn.ops.kernels.blocks.packing import pack_spikes
from refsnn.ops.kernels.blocks.vectors import REGISTER, ceil_div, copy, empty, fill, gather, kernel_jit

Array = npt.NDArray[Any]
Pair = tuple[int, int]
Shape = tuple[int, int, int, int, int]      # of a source, (C, rows, stride, columns, N)
Tile = tuple[int, int, int, int, int]       # source channels, output rows, pixels, samples; whether it rolls (1 or 0)

RUN = 256       # numbers of a run: what the registers hold
BAND = 4        # rows of a tile that does not roll
CACHE = 600000  # bytes of a patch, which stays in the second cache
RING = 900000
TILES = 16      # tasks that a convolution is cut into, if its rows allow
FEW = 64        # weights of a filter, see `pixels_at_least`
MOVED = 2**18   # bytes that one thread moves in less time than it takes to wake the others


@njit(cache=True)
def pixels_at_least(weights: int, filters: int) -> int:
    """The `least` of `tile_size` for sparse weights: with few, copying costs more than registers that are half full."""
    return 8 if weights < FEW * filters else 16


@kernel_jit()
def tile_size(
    channels: int, high: int, broad: int, total: int, kernel_size: Pair, stride: int, step: int, itemsize: int,
    least: int,
) -> Tile:
    """How tasks are cut: `high` output rows of `broad` pixels of `total` samples; pixels are `step` apart.

    least: pixels that make rolling with one vector of samples worth while.
    """
    vector, beyond = max(8, REGISTER // itemsize), (kernel_size[1] - 1) // stride
    for samples in (total, vector):
        if total == 0 or total % vector != 0 or (samples == total and step > 1):
            continue
        most, fewest = (broad, min(broad, 8)) if samples == total else (min(broad, 16), min(broad, least))
        pixels = min(most, RING // max(1, kernel_size[0] * stride * samples * channels * itemsize) - beyond)
        if pixels >= max(1, fewest):
            across = max(1, ceil_div(broad, max(1, pixels)))
            parts = across * (total // samples)
            band = max(min(high, 8), ceil_div(high, ceil_div(TILES, parts)))
            band = ceil_div(high, 2) if parts == 1 and band >= high else band       # two threads at least
            return channels, band, ceil_div(broad, across), samples, 1
    samples = min(total, RUN)
    for part in range(16, min(total, max(64, RUN // max(1, broad))) + 1, 16):       # vectors are filled
        samples = part if total % part == 0 else samples
    pixels, band = max(1, min(broad, RUN // max(1, samples))), min(high, BAND)
    patch = (band - 1) * stride + kernel_size[0], stride * (pixels + beyond)
    held = CACHE // (patch[0] * patch[1] * max(1, samples) * itemsize)
    return max(1, min(channels, held)), band, pixels, samples, 0


@njit(cache=True)
def patch_shape(tile: Tile, kernel_size: Pair, stride: int) -> Shape:
    """Shape of the part of the padded source that a task holds: (channels, rows, stride, columns, samples)."""
    block, band, pixels, samples, rolls = tile
    rows = kernel_size[0] if rolls else (band - 1) * stride + kernel_size[0]
    return block, rows, stride, pixels + (kernel_size[1] - 1) // stride, samples


@kernel_jit()
def copy_row(ring: Array, shape: Shape, slot: int, x: Array, row: int, left: int, n: int) -> None:
    """ring[c, slot, b % stride, b // stride] = x[c, row, left + b, n:] for all c; 0 outside the image.

    ring (flat) has `shape`, its samples fill vectors and all of them are in x.
    """
    channels, rows, stride, columns, samples = shape
    _, height, width, whole = x.shape
    source, zero = x.reshape(-1), ring.dtype.type(0)
    for v in range(stride):
        first = min(columns, max(0, ceil_div(-left - v, stride)))               # columns of the image: first..last
        last = max(first, min(columns, ceil_div(width - left - v, stride))) if 0 <= row < height else first
        size, at = rows * stride * columns * samples, (slot * stride + v) * columns * samples
        start = (row * width + left + v + first * stride) * whole + n
        gather(ring, at + first * samples, size, source, start, height * width * whole, channels, stride * whole,
               samples, last - first)
        for c in range(channels if last - first < columns else 0):
            fill(ring, at + c * size, first * samples, zero)
            fill(ring, at + c * size + last * samples, (columns - last) * samples, zero)


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
def window_offsets(indices: Array, channels: int, shape: Shape, kernel_size: Pair, phases: int) -> Array:
    """(phases, nnz): where the run of each column (c, i, j) starts in `shape` (C, rows, stride, columns, N).

    c counts modulo C, and in phase p the rows have moved on: i is the row (i + p) modulo their number.
    """
    (many, tall, stride, wide, samples), (k_h, k_w) = shape, kernel_size
    columns, size = channels * k_h * k_w, tall * stride * wide * samples
    check_columns(indices, columns)
    place, offsets = np.empty(columns, np.int64), np.empty((phases, indices.size), np.int64)
    for p in range(phases):
        for i in range(k_h):
            for j in range(k_w):
                at = (((i + p) % tall * stride + j % stride) * wide + j // stride) * samples
                for c in range(channels):
                    place[(c * k_h + i) * k_w + j] = c % many * size + at
        for k in range(indices.size):
            offsets[p, k] = place[indices[k]]
    return offsets


@njit(cache=True)
def check_columns(indices: Array, columns: int) -> None:
    """Raise IndexError where a column is none of `columns`. No branch: vectors of columns are compared."""
    within = True
    for k in range(indices.size):
        within &= (indices[k] >= 0) & (indices[k] < columns)
    if not within:
        raise IndexError("a column of the weight lies beyond its input")


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
    if x.size * x.itemsize < MOVED:
        for c in range(channels):
            spikes[c] = pack_map(bits, c, x, padding)
    else:
        for c in prange(channels):
            spikes[c] = pack_map(bits, np.int64(c), x, padding)
    packed = True
    for c in range(channels):
        packed &= spikes[c]
    return bits, packed


@kernel_jit()
def pack_map(bits: Array, c: Any, x: Array, padding: int) -> bool:
    """Task: map c of `pack_maps`; stops at the first number that is not 0 or 1."""
    (_, height, width, steps, batch), (_, rows, stride, wide, run) = x.shape, bits.shape
    flat, numbers, samples, size = bits.reshape(-1), x.reshape(-1), steps * batch, rows * stride * wide * run
    fill(flat, c * size, size, np.uint8(0))
    pieces, many = (1, width * samples) if stride == 1 else (width, samples)        # a row, or a pixel, at once
    for a in range(height):
        for b in range(pieces):
            at = (((a + padding) * stride + (b + padding) % stride) * wide + (b + padding) // stride) * run
            if not pack_spikes(flat, c * size + at, numbers, ((c * height + a) * width + b) * samples, many):
                return False
    return True


@kernel_jit()
def read_bits(x: Array, padding: int, stride: int) -> tuple[Array, bool]:
    """`pack_maps` of an input that may be packed already (`pack_input`)."""
    if x.ndim == 6:
        if stride != 1:
            raise ValueError("packed spikes are for a stride of 1")
        return x.reshape((*x.shape[:4], x.shape[4] * x.shape[5])), True
    return pack_maps(x, padding, stride)


@kernel_jit()
def read_numbers(x: Array, packed: bool, like: Array, padding: int, stride: int) -> Array:
    """`pad_maps` of an input that is not packed, in the dtype of `like`; of a packed one nothing."""
    if x.ndim == 6:
        return np.empty((0, 0, 0, 0, 0), like.dtype)
    return pad_maps(np.asarray(x[: 0 if packed else len(x)], like.dtype), padding, stride)


@njit(cache=True)
def sizes(x: Array, padding: int) -> Shape:
    """(C, H, W, T, B) of an input that may be packed."""
    if x.ndim == 6:
        return x.shape[0], x.shape[1] - 2 * padding, x.shape[3] - 2 * padding, x.shape[4], 8 * x.shape[5]
    return x.shape


@kernel_jit(parallel=True)
def pad_maps(x: Array, padding: int, stride: int) -> Array:
    """x (C, H, W, T, B) among zeros, (C, rows, stride, columns, N): pixel (a, b), from the corner of the padding, lies
    at [a, b % stride, b // stride]."""
    channels, height, width, steps, batch = x.shape
    shape = (channels, height + 2 * padding, stride, ceil_div(width + 2 * padding, stride), steps * batch)
    padded = empty(shape[0] * shape[1] * shape[2] * shape[3] * shape[4], x.dtype).reshape(shape)
    image = x.reshape(channels, height, width, steps * batch)
    if padded.size * padded.itemsize < MOVED:
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
