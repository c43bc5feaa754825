"""Kernel of the join of a residual block: a loop over parts, for bytes as well, which NumPy would convert first."""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from refsnn.ops.kernels.blocks import ceil_div, kernel_jit

Array = npt.NDArray[Any]

PART = 2**14        # numbers of a task
SERIAL = 2**17      # numbers below which one thread works alone


@kernel_jit(parallel=True)
def join_kernel(along: Array, beside: Array) -> Array:
    """Kernel of `join`."""
    if along.size != beside.size:
        raise ValueError("what is joined must have one shape")
    y = np.empty_like(along)
    if y.size < SERIAL:
        add(y.reshape(-1), along.reshape(-1), beside.reshape(-1))
    else:
        for part in prange(ceil_div(y.size, PART)):
            a, b = np.int64(part) * PART, min(y.size, (np.int64(part) + 1) * PART)
            add(y.reshape(-1)[a:b], along.reshape(-1)[a:b], beside.reshape(-1)[a:b])
    return y


@njit(cache=True)
def add(y: Array, along: Array, beside: Array) -> None:
    """One part."""
    for m in range(y.size):
        y[m] = along[m] + y.dtype.type(beside[m])
