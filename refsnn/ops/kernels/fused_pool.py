"""Kernels of batch norm, the neuron and the pool behind it in one, a channel to a thread.

What they do. Forwards the spikes of a channel are bytes that stay in the second cache, and only what is pooled leaves.
Backwards the pooled gradient is shared out, or given to the winners, for some rows of the map, which are taken back
through time at once. All the rest is `fused.py`, and so are the bits.

Why so. Apart, spikes in front of an average pool are numbers of four bytes, and the gradient of what is pooled is a map
as large, which is written and read again: both are four times what the pool has.

What it gained: VGGSNN, B 16, T 10, two Zen 5 cores: batch norm, neurons and pools forward 38 -> 23 ms, backward
60 -> 45.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from refsnn.ops.kernels.blocks import copy, empty, kernel_jit
from refsnn.ops.kernels.blocks.lanes import TOGETHER
from refsnn.ops.kernels.blocks.membrane import neuron_numbers, return_numbers
from refsnn.ops.kernels.blocks.moments import no_moments
from refsnn.ops.kernels.blocks.normed import differentiate_rows, fire_rows
from refsnn.ops.kernels.blocks.vectors import STREAM
from refsnn.ops.kernels.fused import (
    AHEAD,
    SERIAL,
    Norm,
    Numbers,
    affine,
    channels_of,
    check_form,
    check_shown,
    finish_static,
    gradient_map,
    measure,
)
from refsnn.ops.kernels.norm import finish_channel, inverse_deviation
from refsnn.ops.kernels.pool import average_row, check_size, largest_row, share_row, winners_row

Array = npt.NDArray[Any]

MAX = 1             # position of the word "max" among the options of `pooling`
BLOCK = 2**14       # numbers of the rows of a map whose pooled gradients are shared out, in the second cache


@kernel_jit(parallel=True, error_model="numpy")
def norm_lif_pool_forward_kernel(
    x: Array, gamma: Array | None, beta: Array | None, eps: float, decay: float, gain: float, bias: float,
    v_threshold: float, v_reset: float, reset_amount: float, v_init: float, reset: int, compare: int, form: int,
    spikes: Array, size: int, pooling: int, shown: int,
) -> tuple[Array, Array, Array, Array]:
    """Kernel of `norm_lif_pool_forward`."""
    check_size(size if pooling == MAX else 1)
    check_form(form, reset)
    check_shown(x.shape[3], shown)
    channels, height, width, of_x, batch = x.shape
    steps = of_x * shown
    scale, shift = channels_of(gamma, x), channels_of(beta, x)
    norm = (scale, shift, np.empty_like(scale), np.empty_like(scale), eps)
    numbers = neuron_numbers(x, decay, gain, bias, v_threshold, v_reset, reset_amount, v_init, reset, compare, form)
    h, w = height // size, width // size
    y = empty(channels * h * w * steps * batch, spikes.dtype).reshape(channels, h, w, steps, batch)
    winner = np.empty(y.shape if pooling == MAX else (0, 0, 0, 0, 0), np.uint8)
    target, shape = y.reshape((*y.shape[:3], steps * batch)), (height * width, steps, batch, of_x)
    places = winner.reshape((*winner.shape[:3], winner.shape[3] * winner.shape[4]))
    if x.size * shown < SERIAL:
        for c in range(channels):
            measure(norm, x.reshape(-1), c, shape)
            fire_and_pool(target, places, x, c, steps, size, pooling, norm, numbers, form)
    else:
        for c in prange(channels):
            measure(norm, x.reshape(-1), np.int64(c), shape)
            fire_and_pool(target, places, x, np.int64(c), steps, size, pooling, norm, numbers, form)
    return y, winner, norm[2], norm[3]


@kernel_jit(parallel=True, error_model="numpy")
def norm_lif_pool_backward_kernel(
    dy: Array, winner: Array, x: Array, gamma: Array | None, beta: Array | None, mean: Array, var: Array, eps: float,
    decay: float, gain: float, bias: float, v_threshold: float, v_reset: float, reset_amount: float, v_init: float,
    reset: int, compare: int, form: int, detach_reset: bool, surrogate: int, alpha: float, size: int, pooling: int,
    over_x: bool,
) -> tuple[Array, Array, Array]:
    """Kernel of `norm_lif_pool_backward`."""
    scale, shift = channels_of(gamma, x), channels_of(beta, x)
    norm, dgamma, dbeta = (scale, shift, mean, var, eps), np.empty_like(scale), np.empty_like(scale)
    numbers = neuron_numbers(x, decay, gain, bias, v_threshold, v_reset, reset_amount, v_init, reset, compare, form)
    back = return_numbers(x, decay, gain, v_threshold, v_reset, reset_amount, reset, compare, detach_reset, surrogate,
                          alpha)
    dx, source = gradient_map(x, over_x), dy.reshape((*dy.shape[:3], dy.shape[3] * dy.shape[4]))
    given = (source, winner.reshape((*winner.shape[:3], winner.shape[3] * winner.shape[4])))
    channels, height, width, steps, batch = x.shape
    shape, pool = (height, width, steps, batch, dy.shape[3]), (size, pooling)
    of_dx, of_x = dx.reshape(-1), x.reshape(-1)
    if channels * height * width * batch * dy.shape[3] < SERIAL:
        for c in range(channels):
            differentiate_pooled(of_dx, given, of_x, c, shape, pool, norm, dgamma, dbeta, numbers, form, back,
                                 surrogate)
    else:
        for c in prange(channels):
            differentiate_pooled(of_dx, given, of_x, np.int64(c), shape, pool, norm, dgamma, dbeta, numbers, form,
                                 back, surrogate)
    return dx, dgamma, dbeta


@kernel_jit(error_model="numpy")
def fire_and_pool(
    y: Array, winner: Array, x: Array, c: Any, steps: int, size: int, pooling: int, norm: Norm, numbers: Numbers,
    form: int,
) -> None:
    """Task: the pooled spikes of channel c of x (C, H, W, T or 1, B), in y (C, h, w, T B), and who won, in winner."""
    _, height, width, of_x, batch = x.shape
    rows, n = height * width, height * width * of_x * batch
    s = np.empty(rows * steps * batch, np.uint8)
    fire_rows(s, 0, x.reshape(-1), c * n, n, rows, steps, batch, of_x != steps, affine(norm, c, x), numbers, form)
    spikes, own = s.reshape((1, height, width, steps * batch)), y[c : c + 1]
    for row in range(y.shape[1]):
        if pooling == MAX:
            largest_row(own, winner[c : c + 1], spikes, row, size)
        else:
            average_row(own, spikes, row, size)


@kernel_jit(error_model="numpy")
def differentiate_pooled(
    dx: Array, given: tuple[Array, Array], x: Array, c: Any, shape: tuple[int, int, int, int, int],
    pool: tuple[int, int], norm: Norm, dgamma: Array, dbeta: Array, numbers: Numbers, form: int, back: Numbers,
    surrogate: int,
) -> None:
    """Task: the gradients of channel c of x, flat, as is dx; some rows of the map at a time.

    given: dy and winner (C, h, w, T B); shape: H, W, steps of x, B and T; pool: size and pooling.
    """
    (dy, winner), (size, pooling) = given, pool
    (height, width, of_x, batch, steps), (gamma, _, mean, var, eps) = shape, norm
    line, normed, moments, static = width * steps * batch, gamma.size > 0, no_moments(batch), of_x != steps
    n, own, many = height * line, width * of_x * batch, lines_at_once(line)
    ds = empty(many * line, x.dtype)
    shares = ds.reshape((many, width, steps * batch))
    apart = static or (normed and dx.size * dx.itemsize >= STREAM)
    dz, start = (empty(n, x.dtype), 0) if apart else (dx, c * n)
    m, r = (mean[c], inverse_deviation(var[c], eps, x)) if normed else (x.dtype.type(0), x.dtype.type(0))
    of_channel = (*affine(norm, c, x), r)
    for first in range(0, height, many):
        lines = min(many, height - first)
        for row in range(lines):
            if pooling == MAX:
                winners_row(shares, row, dy, winner, c, first + row, size)
            elif row > 0 and (first + row) % size > 0:          # of the same windows as the row before
                copy(ds, row * line, ds, (row - 1) * line, line)
            else:
                share_row(shares, row, dy, c, first + row, size)
        differentiate_rows(dz, start + first * line, ds, 0, x, (c * height + first) * own, moments, AHEAD,
                           lines * width, steps, batch, static, normed, form, surrogate, of_channel, numbers, back)
    if static:
        finish_static(dx, dz, x, c, c * height * own, (height * width, steps, batch), m, r, moments, gamma, dgamma,
                      dbeta)
    elif normed:
        finish_channel(dx, dz, start, x, c, n, m, r, moments, gamma, dgamma, dbeta,
                       apart and dx.ctypes.data != x.ctypes.data)


@njit(cache=True)
def lines_at_once(line: int) -> int:
    """Rows of a map whose gradients are held: so many that a multiple of four rows (T, B) is taken at a time."""
    return TOGETHER * max(1, BLOCK // max(1, TOGETHER * line))
