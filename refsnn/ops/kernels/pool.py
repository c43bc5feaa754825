"""Kernels of pooling: a row of windows to a task, all T x B samples of a place as the vector.

A place holds T x B contiguous samples, so that a window is a few runs of memory that meet in one output run. Windows of
2 x 2, the usual ones, are done in one pass: the places of a sample are a loop of known length, which LLVM unrolls, so
that totals and winners stay in registers. Small maps are pooled by one thread: to start the others costs more. Winners
are bytes, a quarter of the memory of int32.

Gained on one core (Zen 5, float32) over a pass for each place, which was 1.5 to 8 times as fast as the definitions: 256
channels, 32x32, N = 64: average 5.1 -> 2.6 ms forwards, max 11.3 -> 4.6 and 8.6 -> 3.2 backwards; spikes in bytes 1.1.
32 channels, 8x8, N = 128, calls from Python: average 33 -> 16 microseconds, max 124 -> 20 and 35 -> 21; bytes 8.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, prange

Array = npt.NDArray[Any]

SERIAL = 2**19      # numbers of the larger map below which one thread works alone: less than 100 microseconds
LARGEST = 16        # side of a window whose places fit a byte


@njit(cache=True, parallel=True, error_model="numpy")
def avg_pool_forward_kernel(x: Array, size: int) -> Array:
    """Kernel of `avg_pool_forward`."""
    channels, height, width, steps, batch = x.shape
    h, w = height // size, width // size
    y = np.empty((channels, h, w, steps, batch), x.dtype)
    source = x.reshape((channels, height, width, steps * batch))
    target = y.reshape((channels, h, w, steps * batch))
    if x.size < SERIAL:
        for row in range(channels * h):
            average_row(target, source, row, size)
    else:
        for row in prange(channels * h):
            average_row(target, source, np.int64(row), size)
    return y


@njit(cache=True, error_model="numpy")
def average_row(target: Array, source: Array, row: Any, size: int) -> None:
    """Task: one row of means."""
    _, h, w, samples = target.shape
    zero, places = target.dtype.type(0), target.dtype.type(size * size)
    c, p = row // h, row % h
    for q in range(w):
        if size == 2:                                           # the usual size in one pass: LLVM unrolls the places
            for n in range(samples):
                total = zero
                for number in range(4):
                    total += target.dtype.type(source[c, 2 * p + number // 2, 2 * q + number % 2, n])
                target[c, p, q, n] = total / places
            continue
        for n in range(samples):
            target[c, p, q, n] = zero
        for number in range(size * size):
            for n in range(samples):
                target[c, p, q, n] += source[c, p * size + number // size, q * size + number % size, n]
        for n in range(samples):
            target[c, p, q, n] /= places


@njit(cache=True, parallel=True, error_model="numpy")
def avg_pool_backward_kernel(dy: Array, size: int, input_size: tuple[int, int]) -> Array:
    """Kernel of `avg_pool_backward`."""
    channels, h, w, steps, batch = dy.shape
    height, width = input_size
    dx = np.empty((channels, height, width, steps, batch), dy.dtype)
    source = dy.reshape((channels, h, w, steps * batch))
    target = dx.reshape((channels * height, width, steps * batch))
    if dx.size < SERIAL:
        for row in range(channels * height):
            share_row(target, row, source, row // height, row % height, size)
    else:
        for row in prange(channels * height):
            share_row(target, np.int64(row), source, np.int64(row) // height, np.int64(row) % height, size)
    return dx


@njit(cache=True, error_model="numpy")
def share_row(target: Array, to: Any, source: Array, c: Any, row: Any, size: int) -> None:
    """One row of a map, into row `to` of the target: each place a share of its window's gradient in channel c."""
    _, width, samples = target.shape
    zero, places, p = target.dtype.type(0), target.dtype.type(size * size), row // size
    inside = source.shape[2] if p < source.shape[1] else 0
    for q in range(inside):
        for n in range(samples):
            target[to, q * size, n] = source[c, p, q, n] / places
        for k in range(q * size + 1, (q + 1) * size):
            for n in range(samples):
                target[to, k, n] = target[to, q * size, n]
    for k in range(inside * size, width):
        for n in range(samples):
            target[to, k, n] = zero


@njit(cache=True, parallel=True, error_model="numpy")
def max_pool_forward_kernel(x: Array, size: int) -> tuple[Array, Array]:
    """Kernel of `max_pool_forward`."""
    channels, height, width, steps, batch = x.shape
    check_size(size)
    h, w = height // size, width // size
    y = np.empty((channels, h, w, steps, batch), x.dtype)
    winner = np.empty((channels, h, w, steps, batch), np.uint8)
    source = x.reshape((channels, height, width, steps * batch))
    largest = y.reshape((channels, h, w, steps * batch))
    places = winner.reshape((channels, h, w, steps * batch))
    if x.size < SERIAL:
        for row in range(channels * h):
            largest_row(largest, places, source, row, size)
    else:
        for row in prange(channels * h):
            largest_row(largest, places, source, np.int64(row), size)
    return y, winner


@njit(cache=True, error_model="numpy")
def largest_row(largest: Array, places: Array, source: Array, row: Any, size: int) -> None:
    """Task: one row of windows. The first place wins until a larger one, or a NaN, comes."""
    _, h, w, samples = largest.shape
    c, p = row // h, row % h
    for q in range(w):
        if size == 2:                                           # as in `average_row`
            for n in range(samples):
                best, place = source[c, 2 * p, 2 * q, n], np.uint8(0)
                for number in range(4):
                    value = source[c, 2 * p + number // 2, 2 * q + number % 2, n]
                    larger = (value > best) | (value != value)
                    best, place = value if larger else best, np.uint8(number) if larger else place
                largest[c, p, q, n], places[c, p, q, n] = best, place
            continue
        for n in range(samples):
            largest[c, p, q, n] = source[c, p * size, q * size, n]
            places[c, p, q, n] = 0
        for number in range(size * size):
            for n in range(samples):
                value = source[c, p * size + number // size, q * size + number % size, n]
                larger = (value > largest[c, p, q, n]) | (value != value)
                places[c, p, q, n] = np.uint8(number) if larger else places[c, p, q, n]
                largest[c, p, q, n] = value if larger else largest[c, p, q, n]


@njit(cache=True, parallel=True, error_model="numpy")
def max_pool_backward_kernel(dy: Array, winner: Array, size: int, input_size: tuple[int, int]) -> Array:
    """Kernel of `max_pool_backward`."""
    channels, h, w, steps, batch = dy.shape
    height, width = input_size
    dx = np.empty((channels, height, width, steps, batch), dy.dtype)
    source = dy.reshape((channels, h, w, steps * batch))
    places = winner.reshape((channels, h, w, steps * batch))
    target = dx.reshape((channels * height, width, steps * batch))
    if dx.size < SERIAL:
        for row in range(channels * height):
            winners_row(target, row, source, places, row // height, row % height, size)
    else:
        for row in prange(channels * height):
            winners_row(target, np.int64(row), source, places, np.int64(row) // height, np.int64(row) % height, size)
    return dx


@njit(cache=True, error_model="numpy")
def winners_row(target: Array, to: Any, source: Array, places: Array, c: Any, row: Any, size: int) -> None:
    """One row of a map, as in `share_row`; the gradient of a window where the place is its winner, 0 elsewhere."""
    _, width, samples = target.shape
    zero, p = target.dtype.type(0), row // size
    inside, first = source.shape[2] if p < source.shape[1] else 0, np.uint8(row % size * size)
    second = np.uint8(first + 1)
    for q in range(inside):
        if size == 2:                                           # as in `average_row`: both places of the row at once
            for n in range(samples):
                value, winner = source[c, p, q, n], places[c, p, q, n]
                target[to, 2 * q, n] = value if winner == first else zero
                target[to, 2 * q + 1, n] = value if winner == second else zero
            continue
        for j in range(size):
            own = np.uint8(first + j)
            for n in range(samples):
                target[to, q * size + j, n] = source[c, p, q, n] if places[c, p, q, n] == own else zero
    for k in range(inside * size, width):
        for n in range(samples):
            target[to, k, n] = zero


@njit(cache=True)
def check_size(size: int) -> None:
    """Raise ValueError where the places of a window do not fit a byte."""
    if size > LARGEST:
        raise ValueError("max pooling: a window has at most 16 x 16 places")
