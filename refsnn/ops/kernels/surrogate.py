"""Kernels of the surrogates' derivatives: one pass over memory where NumPy makes three to six.

Each is a loop over a run of numbers, and a kernel that runs it in parts. Neurons fused with batch norm compute the same
on the way, in registers (`blocks/membrane.py`).
Gained over the definitions on two cores, 2 million values: 3 to 6 times in float32, 4 to 7 in float64.
For exp alone the gain was 1.2 to 2 and the last places differed, so that surrogates with an exponential have no kernel.

`error_model="numpy"` leaves out the test for a zero divisor, which would keep the loops from being vectorised.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from refsnn.ops.kernels.blocks import ceil_div, kernel_jit
from refsnn.ops.kernels.blocks.membrane import ARCTAN, FAST_SIGMOID, RECTANGLE, TRIANGLE

Array = npt.NDArray[Any]

PART = 2**14                                            # numbers of a task
SERIAL = 2**17                                          # numbers below which one thread works alone


@njit(cache=True, error_model="numpy")
def triangle(target: Array, x: Array, alpha: float) -> None:
    """1 / alpha^2 max(0, alpha - abs(x)) for a run of numbers."""
    zero, width, height = x.dtype.type(0), x.dtype.type(alpha), x.dtype.type(1 / (alpha * alpha))
    for i in range(x.size):
        target[i] = height * max(zero, width - abs(x[i]))


@njit(cache=True, error_model="numpy")
def rectangle(target: Array, x: Array, alpha: float) -> None:
    """alpha where abs(x) < 1 / (2 alpha), else 0."""
    zero, height, half = x.dtype.type(0), x.dtype.type(alpha), x.dtype.type(0.5 / alpha)
    for i in range(x.size):
        target[i] = height if abs(x[i]) < half else zero


@njit(cache=True, error_model="numpy")
def arctan(target: Array, x: Array, alpha: float) -> None:
    """(alpha / 2) / (1 + (pi alpha x / 2)^2)."""
    one, scale, height = x.dtype.type(1), x.dtype.type(math.pi / 2 * alpha), x.dtype.type(alpha / 2)
    for i in range(x.size):
        z = scale * x[i]
        target[i] = height / (one + z * z)


@njit(cache=True, error_model="numpy")
def fast_sigmoid(target: Array, x: Array, alpha: float) -> None:
    """1 / (1 + alpha abs(x))^2."""
    one, sharpness = x.dtype.type(1), x.dtype.type(alpha)
    for i in range(x.size):
        z = one + sharpness * abs(x[i])
        target[i] = one / (z * z)


@njit(cache=True, error_model="numpy")
def slope(target: Array, x: Array, alpha: float, surrogate: int) -> None:
    """The derivative of that surrogate for a run of numbers."""
    if surrogate == TRIANGLE:
        triangle(target, x, alpha)
    elif surrogate == RECTANGLE:
        rectangle(target, x, alpha)
    elif surrogate == ARCTAN:
        arctan(target, x, alpha)
    else:
        fast_sigmoid(target, x, alpha)


@kernel_jit(parallel=True, error_model="numpy")
def _all_parts(x: Array, alpha: float, surrogate: int) -> Array:
    """The derivative of any number of values."""
    result = np.empty_like(x)
    source, target, parts = x.reshape(-1), result.reshape(-1), ceil_div(x.size, PART)
    if x.size < SERIAL:
        slope(target, source, alpha, surrogate)
    else:
        for part in prange(parts):
            a, b = np.int64(part) * PART, min(x.size, (np.int64(part) + 1) * PART)
            slope(target[a:b], source[a:b], alpha, surrogate)
    return result


@kernel_jit()
def triangle_derivative_kernel(x: Array, alpha: float) -> Array:
    """Kernel of `triangle_derivative`."""
    return _all_parts(x, alpha, TRIANGLE)


@kernel_jit()
def rectangle_derivative_kernel(x: Array, alpha: float) -> Array:
    """Kernel of `rectangle_derivative`."""
    return _all_parts(x, alpha, RECTANGLE)


@kernel_jit()
def arctan_derivative_kernel(x: Array, alpha: float) -> Array:
    """Kernel of `arctan_derivative`."""
    return _all_parts(x, alpha, ARCTAN)


@kernel_jit()
def fast_sigmoid_derivative_kernel(x: Array, alpha: float) -> Array:
    """Kernel of `fast_sigmoid_derivative`."""
    return _all_parts(x, alpha, FAST_SIGMOID)
