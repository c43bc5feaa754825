"""Kernels of the surrogates' derivatives: one pass over memory where NumPy makes three to six.

Gained over the definitions on two cores, 2 million values: 3 to 6 times in float32, 4 to 7 in float64.
For exp alone the gain was 1.2 to 2 and the last places differed, so that surrogates with an exponential have no kernel.

`error_model="numpy"` leaves out the test for a zero divisor, which would keep the loops from being vectorised.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, prange

Array = npt.NDArray[Any]


@njit(cache=True, parallel=True, error_model="numpy")
def triangle_derivative_kernel(x: Array, alpha: float) -> Array:
    """Kernel of `triangle_derivative`."""
    zero, width, square = x.dtype.type(0), x.dtype.type(alpha), x.dtype.type(alpha * alpha)
    slope = np.empty_like(x)
    source, target = x.reshape(-1), slope.reshape(-1)
    for i in prange(source.size):
        target[i] = max(zero, width - abs(source[i])) / square
    return slope


@njit(cache=True, parallel=True, error_model="numpy")
def rectangle_derivative_kernel(x: Array, alpha: float) -> Array:
    """Kernel of `rectangle_derivative`."""
    zero, height, half = x.dtype.type(0), x.dtype.type(alpha), x.dtype.type(0.5 / alpha)
    slope = np.empty_like(x)
    source, target = x.reshape(-1), slope.reshape(-1)
    for i in prange(source.size):
        target[i] = height if abs(source[i]) < half else zero
    return slope


@njit(cache=True, parallel=True, error_model="numpy")
def arctan_derivative_kernel(x: Array, alpha: float) -> Array:
    """Kernel of `arctan_derivative`."""
    one, scale, height = x.dtype.type(1), x.dtype.type(math.pi / 2 * alpha), x.dtype.type(alpha / 2)
    slope = np.empty_like(x)
    source, target = x.reshape(-1), slope.reshape(-1)
    for i in prange(source.size):
        z = scale * source[i]
        target[i] = height / (one + z * z)
    return slope


@njit(cache=True, parallel=True, error_model="numpy")
def fast_sigmoid_derivative_kernel(x: Array, alpha: float) -> Array:
    """Kernel of `fast_sigmoid_derivative`."""
    one, sharpness = x.dtype.type(1), x.dtype.type(alpha)
    slope = np.empty_like(x)
    source, target = x.reshape(-1), slope.reshape(-1)
    for i in prange(source.size):
        z = one + sharpness * abs(source[i])
        target[i] = one / (z * z)
    return slope
