"""Kernels of batch norm and the neuron in one: a channel to a thread, all of both while it is in the cache.

What they do. Forwards a channel is read for its mean and variance, and once more for its spikes; z and h are never in
memory. Backwards four rows are normalised and charged again, go through time in reverse and add to the channel's sums
(`blocks/normed.py`); dx follows while the channel is in the second cache. Every number is computed as in `norm.py` and
`neuron.py`, so that results are the same bits.

Why so. Apart, a training step writes z, h, s, the slope and dz, and reads them again: 17 passes over a map of four
bytes a number. Together it reads x, ds and x and writes s, a byte, and dx: what is left of them is computed twice.
A static x, of an image that does not change, has one step for all T, and so has dx, which is summed over time.

What it gained, 63 million neuron-steps (6Conv2FC, B 16, T 4), two cores: forward 39 -> 7.4 ms, backward 111 -> 14.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from refsnn.ops.kernels.blocks import ceil_div, empty, kernel_jit
from refsnn.ops.kernels.blocks.membrane import SNNTORCH, SOFT, neuron_numbers, return_numbers
from refsnn.ops.kernels.blocks.moments import mean_and_variance, no_moments, through_static
from refsnn.ops.kernels.blocks.normed import differentiate_rows, fire_rows
from refsnn.ops.kernels.blocks.vectors import STREAM
from refsnn.ops.kernels.norm import channel_numbers, finish_channel, inverse_deviation

Array = npt.NDArray[Any]
Numbers = tuple[Any, ...]
Norm = tuple[Array, Array, Array, Array, float]     # gamma, beta, mean, var (C,) and eps; empty: no batch norm
Shape = tuple[int, int, int, int]                   # rows of a task, T, B, and steps of x: T, or 1 where it is static

ROWS = 64           # rows of a task without batch norm
AHEAD = 2**10       # numbers after which those lie that are asked for, where they come from memory
SERIAL = 2**15      # numbers below which one thread works alone: to start the others costs more


@kernel_jit(parallel=True, error_model="numpy")
def norm_lif_forward_kernel(
    x: Array, gamma: Array | None, beta: Array | None, eps: float, decay: float, gain: float, bias: float,
    v_threshold: float, v_reset: float, reset_amount: float, v_init: float, reset: int, compare: int, form: int,
    spikes: Array, shown: int,
) -> tuple[Array, Array, Array]:
    """Kernel of `norm_lif_forward`."""
    check_form(form, reset)
    check_shown(x.shape[-2], shown)
    scale, shift = channels_of(gamma, x), channels_of(beta, x)
    norm = (scale, shift, np.empty_like(scale), np.empty_like(scale), eps)
    numbers = neuron_numbers(x, decay, gain, bias, v_threshold, v_reset, reset_amount, v_init, reset, compare, form)
    s = np.empty((*x.shape[:-2], x.shape[-2] * shown, x.shape[-1]), spikes.dtype)
    shape = tasks_of(x, s, scale.size)
    tasks = ceil_div(s.size, max(1, shape[0] * shape[1] * shape[2]))
    if s.size < SERIAL:
        for task in range(tasks):
            measure(norm, x.reshape(-1), task, shape)
            fire(s.reshape(-1), x.reshape(-1), task, shape, norm, numbers, form)
    else:
        for task in prange(tasks):
            measure(norm, x.reshape(-1), np.int64(task), shape)
            fire(s.reshape(-1), x.reshape(-1), np.int64(task), shape, norm, numbers, form)
    return s, norm[2], norm[3]


@kernel_jit(parallel=True, error_model="numpy")
def norm_lif_inference_kernel(
    x: Array, gamma: Array, beta: Array, mean: Array, var: Array, eps: float, decay: float, gain: float, bias: float,
    v_threshold: float, v_reset: float, reset_amount: float, v_init: float, reset: int, compare: int, form: int,
    spikes: Array, shown: int,
) -> Array:
    """Kernel of `norm_lif_inference`."""
    check_form(form, reset)
    check_shown(x.shape[-2], shown)
    numbers = neuron_numbers(x, decay, gain, bias, v_threshold, v_reset, reset_amount, v_init, reset, compare, form)
    s = np.empty((*x.shape[:-2], x.shape[-2] * shown, x.shape[-1]), spikes.dtype)
    shape, norm = tasks_of(x, s, gamma.size), (gamma, beta, mean, var, eps)
    if s.size < SERIAL:
        for task in range(gamma.size):
            fire(s.reshape(-1), x.reshape(-1), task, shape, norm, numbers, form)
    else:
        for task in prange(gamma.size):
            fire(s.reshape(-1), x.reshape(-1), np.int64(task), shape, norm, numbers, form)
    return s


@kernel_jit(parallel=True, error_model="numpy")
def norm_lif_backward_kernel(
    ds: Array, x: Array, gamma: Array | None, beta: Array | None, mean: Array, var: Array, eps: float, decay: float,
    gain: float, bias: float, v_threshold: float, v_reset: float, reset_amount: float, v_init: float, reset: int,
    compare: int, form: int, detach_reset: bool, surrogate: int, alpha: float, over_x: bool,
) -> tuple[Array, Array, Array]:
    """Kernel of `norm_lif_backward`."""
    scale, shift = channels_of(gamma, x), channels_of(beta, x)
    norm, dgamma, dbeta = (scale, shift, mean, var, eps), np.empty_like(scale), np.empty_like(scale)
    numbers = neuron_numbers(x, decay, gain, bias, v_threshold, v_reset, reset_amount, v_init, reset, compare, form)
    back = return_numbers(x, decay, gain, v_threshold, v_reset, reset_amount, reset, compare, detach_reset, surrogate,
                          alpha)
    dx, shape = gradient_map(x, over_x), tasks_of(x, ds, scale.size)
    tasks = ceil_div(ds.size, max(1, shape[0] * shape[1] * shape[2]))
    given = (dx.reshape(-1), ds.reshape(-1), x.reshape(-1))
    if ds.size < SERIAL:
        for task in range(tasks):
            differentiate(given, task, shape, norm, dgamma, dbeta, numbers, form, back, surrogate)
    else:
        for task in prange(tasks):
            differentiate(given, np.int64(task), shape, norm, dgamma, dbeta, numbers, form, back, surrogate)
    return dx, dgamma, dbeta


@njit(cache=True)
def check_form(form: int, reset: int) -> None:
    """Raise ValueError for a form without the reset that it contains."""
    if form == SNNTORCH and reset != SOFT:
        raise ValueError("form snntorch contains its reset: it needs reset soft")


@njit(cache=True)
def check_shown(steps: int, shown: int) -> None:
    """Raise ValueError where several steps are to be shown several times."""
    if shown > 1 and steps > 1:
        raise ValueError("what is shown at many steps must have one")


@njit(cache=True)
def channels_of(a: Array | None, like: Array) -> Array:
    """The array, or an empty one for None: a prange may silently ignore one of optional type."""
    return np.empty(0, like.dtype) if a is None else a


@kernel_jit()
def gradient_map(x: Array, over_x: bool) -> Array:
    """Where dx goes: into x, where that is allowed and large, for then dz has a place of its own; else a new array."""
    if over_x and x.size * x.itemsize >= STREAM:
        return x
    return empty(x.size, x.dtype).reshape(x.shape)


@njit(cache=True)
def tasks_of(x: Array, s: Array, channels: int) -> Shape:
    """Rows (T, B) of a task, T and B of s, and steps of x; a task has a channel's rows, or ROWS."""
    steps, batch = s.shape[-2], s.shape[-1]
    return (s.size // max(1, channels * steps * batch) if channels > 0 else ROWS), steps, batch, x.shape[-2]


@kernel_jit(error_model="numpy")
def measure(norm: Norm, x: Array, task: Any, shape: Shape) -> None:
    """Enter mean and variance of a channel."""
    n = shape[0] * shape[3] * shape[2]
    if norm[0].size > 0:
        norm[2][task], norm[3][task] = mean_and_variance(x, task * n, n)


@njit(cache=True, error_model="numpy")
def affine(norm: Norm, task: Any, like: Array) -> tuple[float, float, float]:
    """Mean, scale and shift of a channel, as `normalise` has them; 0, 1 and 0 without batch norm."""
    gamma, beta, mean, var, eps = norm
    if gamma.size == 0:
        return like.dtype.type(0), like.dtype.type(1), like.dtype.type(0)
    return mean[task], gamma[task] / np.sqrt(var[task] + like.dtype.type(eps)), beta[task]


@kernel_jit(error_model="numpy")
def fire(s: Array, x: Array, task: Any, shape: Shape, norm: Norm, numbers: Numbers, form: int) -> None:
    """Task: the spikes of a channel, while the next channel comes."""
    rows, steps, batch, of_x = shape
    own, here = rows * of_x * batch, min(rows, s.size // max(1, steps * batch) - task * rows)
    fire_rows(s, task * rows * steps * batch, x, task * own, own, here, steps, batch, of_x != steps,
              affine(norm, task, x), numbers, form)


@kernel_jit(error_model="numpy")
def differentiate(
    given: tuple[Array, ...], task: Any, shape: Shape, norm: Norm, dgamma: Array, dbeta: Array, numbers: Numbers,
    form: int, back: Numbers, surrogate: int,
) -> None:
    """Task: the gradients of a channel; given: dx, ds, x.

    Where dx goes past the caches, or is summed over time, dz has a place of its own.
    """
    (dx, ds, x), (rows, steps, batch, of_x), (gamma, _, mean, var, eps) = given, shape, norm
    size, normed, moments, static = steps * batch, gamma.size > 0, no_moments(batch), of_x != steps
    at, own = task * rows * size, task * rows * of_x * batch
    here = min(rows, ds.size // max(1, size) - task * rows)
    apart = static or (normed and dx.size * dx.itemsize >= STREAM)
    dz, start = (empty(here * size, x.dtype), 0) if apart else (dx, at)
    m, r = (mean[task], inverse_deviation(var[task], eps, x)) if normed else (x.dtype.type(0), x.dtype.type(0))
    of_channel = (*affine(norm, task, x), r)
    differentiate_rows(dz, start, ds, at, x, own, moments, AHEAD, here, steps, batch, static, normed, form, surrogate,
                       of_channel, numbers, back)
    if static:
        finish_static(dx, dz, x, task, own, (here, steps, batch), m, r, moments, gamma, dgamma, dbeta)
    elif normed:
        finish_channel(dx, dz, start, x, task, here * size, m, r, moments, gamma, dgamma, dbeta,
                       apart and dx.ctypes.data != x.ctypes.data)


@kernel_jit(error_model="numpy")
def finish_static(
    dx: Array, dz: Array, x: Array, task: Any, at: int, shape: tuple[int, int, int], mean: float, r: float,
    moments: Array, gamma: Array, dgamma: Array, dbeta: Array,
) -> None:
    """The gradients of a task, summed over time: dx and x from place `at` on, dz from its start. shape: rows, T, B."""
    rows, steps, batch = shape
    zero = dx.dtype.type(0)
    numbers = (dx.dtype.type(1), zero, zero, zero)
    if gamma.size > 0:
        numbers = channel_numbers(dx, task, rows * steps * batch, mean, r, moments, gamma, dgamma, dbeta)
    through_static(dx, at, dz, 0, x, at, rows, steps, batch, numbers)
