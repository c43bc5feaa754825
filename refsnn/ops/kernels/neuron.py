"""Kernels of the neuron: rows of samples go through time in vector registers (`blocks/membrane.py`), TASK to a task.

Gained over the definitions: one Zen 5 core, float32, 16.8 million neuron-steps, T 4, B 16, processor time: forward
19 times, backward 10.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import prange

from refsnn.ops.kernels.blocks import ceil_div, kernel_jit
from refsnn.ops.kernels.blocks.membrane import (
    SNNTORCH,
    SOFT,
    charge_rows,
    neuron_numbers,
    return_given,
    return_numbers,
)

Array = npt.NDArray[Any]

TASK = 64           # rows of a task
SERIAL = 2**17      # numbers below which one thread works alone: to start the others costs more


@kernel_jit(parallel=True, error_model="numpy")
def lif_forward_kernel(
    x: Array, decay: float, gain: float, bias: float, v_threshold: float, v_reset: float, reset_amount: float,
    v_init: float, reset: int, compare: int, form: int,
) -> tuple[Array, Array]:
    """Kernel of `lif_forward`."""
    if form == SNNTORCH and reset != SOFT:
        raise ValueError("form snntorch contains its reset: it needs reset soft")
    s, h = np.empty_like(x), np.empty_like(x)
    numbers = neuron_numbers(x, decay, gain, bias, v_threshold, v_reset, reset_amount, v_init, reset, compare, form)
    if x.size < SERIAL:
        charge_task(s, h, x, 0, rows_of(x), numbers, form)
    else:
        for task in prange(ceil_div(rows_of(x), TASK)):
            charge_task(s, h, x, np.int64(task) * TASK, TASK, numbers, form)
    return s, h


@kernel_jit()
def rows_of(x: Array) -> int:
    """How many rows (T, B) an array (..., T, B) has."""
    return x.size // max(1, x.shape[-2] * x.shape[-1])


@kernel_jit(error_model="numpy")
def charge_task(s: Array, h: Array, x: Array, row: int, rows: int, numbers: tuple[Any, ...], form: int) -> None:
    """Task: some rows of (..., T, B), no more than there are."""
    steps, batch, (zero, one) = x.shape[-2], x.shape[-1], numbers[11:]
    at, rows, norm = row * steps * batch, min(rows, rows_of(x) - row), (zero, one, zero)
    flat = x.reshape(-1)
    charge_rows(s.reshape(-1), h.reshape(-1), flat, at, rows, steps, batch, norm, numbers, form)


@kernel_jit(parallel=True, error_model="numpy")
def lif_backward_kernel(
    ds: Array, h: Array, s: Array, slope: Array, decay: float, gain: float, v_reset: float, reset_amount: float,
    reset: int, detach_reset: bool, dh: Array | None = None, dv: Array | None = None,
) -> Array:
    """Kernel of `lif_backward`."""
    numbers = return_numbers(h, decay, gain, 0.0, v_reset, reset_amount, reset, 0, detach_reset, 0, 1.0)
    dx, extra = np.empty_like(h), dh is not None or dv is not None
    given = (ds.reshape(-1), h.reshape(-1), s.reshape(-1), slope.reshape(-1), zeros_for(dh, h, extra),
             zeros_for(dv, h, extra))
    if h.size < SERIAL:
        return_task(dx, given, 0, rows_of(h), numbers, extra)
    else:
        for task in prange(ceil_div(rows_of(h), TASK)):
            return_task(dx, given, np.int64(task) * TASK, TASK, numbers, extra)
    return dx


@kernel_jit()
def zeros_for(a: Array | None, like: Array, needed: bool) -> Array:
    """(..., T, B), flat; for None as many zeros, or an empty array where they are not needed."""
    return np.zeros(like.size if needed else 0, like.dtype) if a is None else a.reshape(-1)


@kernel_jit(error_model="numpy")
def return_task(dx: Array, given: Any, row: int, rows: int, numbers: tuple[Any, ...], extra: bool) -> None:
    """Task: some rows of (..., T, B), no more than there are."""
    steps, batch = dx.shape[-2], dx.shape[-1]
    at, none = row * steps * batch, row * steps * batch if extra else 0
    places = (at, at, at, at, none, none)
    return_given(dx.reshape(-1), at, given, places, min(rows, rows_of(dx) - row), steps, batch, extra, numbers)
