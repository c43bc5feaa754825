"""Convolutions by tiles: what forward pass and input gradient have in common.

Real numbers are convolved by `convolve`: a task computes a tile of the output for all filters, see `maps.py`. Dense
layers of spikes are convolved by `look_up`, a row of the output at a time.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import prange

from refsnn.ops.kernels.blocks.dense import (
    FILTERS,
    LOOKERS,
    MERGED,
    TABLES,
    fill_table,
    merge_spikes,
    sum_dense,
    sum_tables,
)
from refsnn.ops.kernels.blocks.maps import (
    MOVED,
    RUN,
    Pair,
    Shape,
    Tile,
    check_columns,
    copy_patch,
    copy_row,
    patch_shape,
    tile_size,
    window_offsets,
)
from refsnn.ops.kernels.blocks.sums import add_runs, sum_runs
from refsnn.ops.kernels.blocks.vectors import STREAM, ceil_div, copy, empty, fill, kernel_jit, no_bias, vector

Array = npt.NDArray[Any]
Place = tuple[int, int, int, int, int]                          # of a task: first row, pixel, sample; rows, pixels
Geometry = tuple[int, int, int, int, int, int, int, int]        # see `convolve`

SERIAL = 2**20  # multiply-adds below which one thread works alone: to start the others costs more
WRITTEN = 4     # of them take as long as to write a number
BLOCK = 64      # filters of a task of `look_up`


@kernel_jit(parallel=True, fastmath={"contract"})
def convolve(
    y: Array, x: Array, geometry: Geometry, tile: Tile, kernel_size: Pair, weights: Array, offsets: Array,
    first: Array, at_rest: Array, dense: bool,
) -> None:
    """y[o, h S + a, w S + b] = at_rest[o] + sum_k weights[k] x[c_k, h s + i_k - top, w s + j_k - left], h < H, w < W.

    geometry (s, top, left, S, a, b, H, W). first (O, blocks + 1): where the weights of o and a block of channels start;
    dense: not used, all weights are there, as `dense_weights` has them, and the tile rolls.
    """
    _, _, _, _, _, _, high, broad = geometry
    _, band, pixels, samples, rolls = tile
    tasks = ceil_div(high, band) * ceil_div(broad, pixels) * ceil_div(y.shape[3], max(1, samples))
    if (weights.size + WRITTEN * y.shape[0]) * high * broad * y.shape[3] < SERIAL:
        for t in range(tasks):
            if rolls:
                roll_tile(y, t, x, geometry, tile, kernel_size, weights, offsets, first, at_rest, dense)
            else:
                convolve_tile(y, t, x, geometry, tile, kernel_size, weights, offsets, first, at_rest)
    else:
        for t in prange(tasks):
            if rolls:
                roll_tile(y, np.int64(t), x, geometry, tile, kernel_size, weights, offsets, first, at_rest, dense)
            else:
                convolve_tile(y, np.int64(t), x, geometry, tile, kernel_size, weights, offsets, first, at_rest)


@kernel_jit(fastmath={"contract"})
def roll_tile(
    y: Array, task: Any, x: Array, geometry: Geometry, tile: Tile, kernel_size: Pair, weights: Array, offsets: Array,
    first: Array, at_rest: Array, dense: bool,
) -> None:
    """Task: all filters of one tile of y, row after row; the rows of x that the next one shares stay."""
    stride, top, left, step, a0, b0, high, broad = geometry
    _, band, pixels, samples, _ = tile
    _, height, width, total = y.shape
    parts, across = total // samples, ceil_div(broad, pixels)
    first_row, w, n = task // (across * parts) * band, task // parts % across * pixels, task % parts * samples
    shape, last_row, many = patch_shape(tile, kernel_size, stride), min(high, first_row + band), offsets.shape[1]
    ring, held, fresh = empty(shape[0] * shape[1] * shape[2] * shape[3] * shape[4], x.dtype), shape[1], 0
    flat, places, bounds, stream = y.reshape(-1), offsets.reshape(-1), first.reshape(-1), y.size * y.itemsize >= STREAM
    apart, run = vector(y) if samples == total and step == 1 else step * total, min(pixels, broad - w) * samples
    for h in range(first_row, last_row):
        past = (h - first_row) * stride                                 # rows of x, counted from the tile's first
        for row in range(max(fresh, past), past + held):
            copy_row(ring, shape, row % held, x, first_row * stride - top + row, w * stride - left, n)
        at, fresh = ((h * step + a0) * width + w * step + b0) * total + n, past + held
        place, spread = past % held * many, height * width * total
        if not dense:
            sum_runs(flat, at, spread, apart, at_rest, run, ring, 0, places, place, weights, bounds, 2, 0, y.shape[0],
                     stream)
        for o in range(0, y.shape[0] if dense else 0, FILTERS):
            sum_dense(flat, at + o * spread, spread, apart, at_rest, o, run, ring, 0, places, place, many, weights,
                      o * many, min(FILTERS, y.shape[0] - o), stream)


@kernel_jit(fastmath={"contract"})
def convolve_tile(
    y: Array, task: Any, x: Array, geometry: Geometry, tile: Tile, kernel_size: Pair, weights: Array, offsets: Array,
    first: Array, at_rest: Array,
) -> None:
    """Task: all filters of one tile of y, a band of rows, a few pixels, a few samples: one patch of x after another."""
    stride, top, left, _, _, _, high, broad = geometry
    block, band, pixels, samples, _ = tile
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
    run, flat, places = (pixels - 1) * shape[4] + many, y.reshape(-1), offsets.reshape(-1)
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
                add_runs(flat, at, totals, begin, run, patch, shift, places, weights, first[o, b], first[o, b + 1])
            else:
                add_runs(totals, own, totals, begin, run, patch, shift, places, weights, first[o, b], first[o, b + 1])
                for p in range(pixels if closing else 0):
                    copy(flat, at + p * step * whole, totals, own + p * shape[4], many)


@kernel_jit()
def convolve_dense(
    y: Array, x: Array, geometry: Geometry, data: Array, indices: Array, indptr: Array, kernel_size: Pair,
    at_rest: Array, back: bool,
) -> bool:
    """`convolve` by all places of the weight. False, and nothing done, where the samples do not fill vectors."""
    stride, _, _, step, _, _, high, broad = geometry
    channels = x.shape[0]
    tile = tile_size(channels, high, broad, y.shape[3], kernel_size, stride, step, y.itemsize, 1)
    if not tile[4]:
        return False
    shape, columns = patch_shape(tile, kernel_size, stride), channels * kernel_size[0] * kernel_size[1]
    offsets = window_offsets(np.arange(columns), channels, shape, kernel_size, shape[1])
    weights = dense_weights(data, indices, indptr, y.shape[0], columns, kernel_size, back)
    convolve(y, x, geometry, tile, kernel_size, weights, offsets, np.zeros((1, 2), np.int64), at_rest, True)
    return True


@kernel_jit(parallel=True)
def dense_weights(
    data: Array, indices: Array, indptr: Array, rows: int, columns: int, kernel_size: Pair, back: bool
) -> Array:
    """The weights as `sum_dense` reads them: (groups, columns, FILTERS), zero where there is none.

    back: for the input gradient, where filters are the channels and (i, j) counts from the window's other corner.
    """
    area, groups = kernel_size[0] * kernel_size[1], ceil_div(rows, FILTERS)
    dense, place = no_bias(groups * columns * FILTERS, data.dtype), np.empty(rows * area if back else columns, np.int64)
    for m in range(place.size):
        filter_, column = (m // area, area - 1 - m % area) if back else (0, m)
        place[m] = (filter_ // FILTERS * columns + column) * FILTERS + filter_ % FILTERS
    check_columns(indices, place.size)
    for o in prange(indptr.size - 1):
        shift = o * area * FILTERS if back else (o // FILTERS * columns) * FILTERS + o % FILTERS
        for k in range(indptr[o], indptr[o + 1]):
            dense[place[indices[k]] + shift] = data[k]
    return dense


@kernel_jit()
def look_up(
    y: Array, x: Array, data: Array, indices: Array, indptr: Array, at_rest: Array, kernel_size: Pair, stride: int,
    padding: int,
) -> bool:
    """Dense forward pass of spikes, four channels a byte. False, and y undefined, where it cannot be done this way."""
    if not TABLES or y.itemsize != 4 or y.shape[3] % vector(y) != 0:
        return False
    merged, good = merge_maps(x, padding, stride)
    if good:
        area = kernel_size[0] * kernel_size[1]
        dense = dense_rows(data, indices, indptr, x.shape[0] * area, MERGED * merged.shape[0] * area)
        look_up_rows(y, merged, dense, at_rest, kernel_size)
    return good


@kernel_jit(parallel=True)
def look_up_rows(y: Array, merged: Array, dense: Array, at_rest: Array, kernel_size: Pair) -> None:
    """All rows of y, from the merged maps and the weights, zero where there is none."""
    rows, height, _, _ = y.shape
    area = kernel_size[0] * kernel_size[1]
    groups, tasks, columns = ceil_div(rows, LOOKERS), ceil_div(rows, BLOCK) * height, merged.shape[0] * area
    offsets = window_offsets(np.arange(columns), merged.shape[0], merged.shape, kernel_size, 1)
    tables = empty(groups * columns * LOOKERS * 16, y.dtype)
    for g in prange(groups):
        make_tables(tables, np.int64(g), dense, area)
    for t in prange(tasks):
        look_up_row(y, np.int64(t), merged, offsets, tables, at_rest)


@kernel_jit()
def look_up_row(y: Array, task: Any, merged: Array, offsets: Array, tables: Array, at_rest: Array) -> None:
    """Task: row h of y for BLOCK filters; the next task has the same tables."""
    rows, height, width, samples = y.shape
    _, _, stride, wide, _ = merged.shape
    n, columns, (first, h) = width * samples, offsets.shape[1], (task // height * BLOCK, task % height)
    stream = y.size * y.itemsize >= STREAM
    for o in range(first, min(rows, first + BLOCK), LOOKERS):
        sum_tables(y.reshape(-1), (o * height + h) * n, height * n, vector(y), at_rest, o, n, merged.reshape(-1),
                   h * stride * stride * wide * samples, offsets.reshape(-1), 0, columns, tables, o * columns * 16,
                   min(LOOKERS, rows - o), stream)


@kernel_jit(parallel=True)
def dense_rows(data: Array, indices: Array, indptr: Array, columns: int, width: int) -> Array:
    """(O, width): the weights, zero where there is none; `columns` of the width are places of the weight."""
    check_columns(indices, columns)
    rows = indptr.size - 1
    dense = no_bias(rows * width, data.dtype)
    for o in prange(rows):
        for k in range(indptr[o], indptr[o + 1]):
            dense[o * width + indices[k]] = data[k]
    return dense.reshape(rows, width)


@kernel_jit()
def make_tables(tables: Array, group: Any, dense: Array, area: int) -> None:
    """Task: the tables of LOOKERS filters, (columns, LOOKERS, 16): what four channels at one place may add."""
    rows, width = dense.shape
    flat, columns = dense.reshape(-1), width // MERGED
    for column in range(columns):
        c, place = column // area * MERGED, column % area
        for f in range(LOOKERS):
            o = min(rows - 1, group * LOOKERS + f)
            at = ((group * columns + column) * LOOKERS + f) * 16
            fill_table(tables, at, flat, o * width + c * area + place, area)


@kernel_jit(parallel=True)
def merge_maps(x: Array, padding: int, stride: int) -> tuple[Array, bool]:
    """Spikes of four channels a byte, among zeros: (C / 4, rows, stride, columns, N). False: x holds other numbers."""
    channels, height, width, steps, batch = x.shape
    groups, wide = ceil_div(channels, MERGED), ceil_div(width + 2 * padding, stride)
    shape = (groups, height + 2 * padding, stride, wide, steps * batch)
    merged = empty(shape[0] * shape[1] * shape[2] * shape[3] * shape[4], np.uint8).reshape(shape)
    good = np.empty(groups, np.bool_)
    if x.size * x.itemsize < MOVED:
        for g in range(groups):
            good[g] = merge_map(merged, g, x, padding)
    else:
        for g in prange(groups):
            good[g] = merge_map(merged, np.int64(g), x, padding)
    spikes = True
    for g in range(groups):
        spikes &= good[g]
    return merged, spikes


@kernel_jit()
def merge_map(merged: Array, group: Any, x: Array, padding: int) -> bool:
    """Task: four channels of `merge_maps`."""
    (channels, height, width, _, _), (_, rows, stride, wide, samples) = x.shape, merged.shape
    flat, numbers, size = merged.reshape(-1), x.reshape(-1), rows * stride * wide * samples
    fill(flat, group * size, size, np.uint8(0))
    pieces, many = (1, width * samples) if stride == 1 else (width, samples)        # a row, or a pixel, at once
    for c in range(group * MERGED, min(channels, (group + 1) * MERGED)):
        for a in range(height):
            for b in range(pieces):
                at = (((a + padding) * stride + (b + padding) % stride) * wide + (b + padding) // stride) * samples
                start = ((c * height + a) * width + b) * samples
                if not merge_spikes(flat, group * size + at, numbers, start, many, 1 << (c % MERGED)):
                    return False
    return True
