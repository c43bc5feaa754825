"""Static inputs: an image is shown at every time step, and what is computed from it alone is computed once.

A static array (..., T, B) looks like any other, but its steps are one place in memory: a stride of 0 over time. It
comes from direct encoding, and stays so through the first convolution and batch norm. Neurons end it. What does not ask
`is_static` gets the right numbers all the same, only later.

The gradient of a static array may come summed over time, with one step: nothing before it needs more.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def static(x: Array, steps: int) -> Array:
    """x (..., 1, B), contiguous, at `steps` time steps: (..., steps, B), where every step is x itself."""
    shape, strides = (*x.shape[:-2], steps, x.shape[-1]), (*x.strides[:-2], 0, x.strides[-1])
    return np.ndarray(shape, x.dtype, x, 0, strides)


def is_static(x: Array) -> bool:
    """Whether all steps of x (..., T, B), of more than one, are one place in memory."""
    return x.shape[-2] > 1 and x.strides[-2] == 0


def one_step(x: Array) -> Array:
    """The only step (..., 1, B) of a static array; another as it is."""
    return x[..., :1, :] if is_static(x) else x


def sum_of_steps(dx: Array) -> Array:
    """(..., T, B) summed over time, the first step first: (..., 1, B); itself where it has one step."""
    if dx.shape[-2] == 1:
        return dx
    total = dx[..., :1, :].copy()
    for t in range(1, dx.shape[-2]):
        total += dx[..., t : t + 1, :]
    return total
