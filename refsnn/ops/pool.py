"""Pooling over non-overlapping windows of size x size places, stride = size, no padding.

Where the size does not divide the map, the incomplete windows at the lower and right border are dropped:
h = floor(H / size), w = floor(W / size). Each definition walks the places (i, j) of a window in row-major order; the
slice of one place is a strided view of the map.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn.twin import op

Array = npt.NDArray[Any]


def _places(size: int, height: int, width: int) -> Iterator[tuple[int, slice, slice]]:
    """The places of a window in row-major order: number, and the rows and columns of the map they cover."""
    rows, columns = height // size * size, width // size * size
    for place in range(size * size):
        i, j = divmod(place, size)
        yield place, slice(i, rows, size), slice(j, columns, size)


@op(kernel="pool:avg_pool_forward_kernel", agree="exact")
def avg_pool_forward(x: Array, size: int) -> Array:
    """Mean of every window: y[c, p, q] = 1/size^2 sum_ij x[c, p size + i, q size + j].

    x (C, H, W, T, B); size: side of the window, places. Returns y (C, h, w, T, B), h = H // size, w = W // size.
    """
    channels, height, width, steps, batch = x.shape
    y = np.zeros((channels, height // size, width // size, steps, batch), x.dtype)
    for _, rows, columns in _places(size, height, width):
        y += x[:, rows, columns]
    return y / (size * size)


@op(kernel="pool:avg_pool_backward_kernel", agree="exact")
def avg_pool_backward(dy: Array, size: int, input_size: tuple[int, int]) -> Array:
    """Every place of a window receives dy / size^2; dropped borders receive 0.

    dy (C, h, w, T, B); input_size: (H, W). Returns dx (C, H, W, T, B).
    """
    dx = np.zeros((len(dy), *input_size, *dy.shape[-2:]), dy.dtype)
    for _, rows, columns in _places(size, *input_size):
        dx[:, rows, columns] = dy / (size * size)
    return dx


@op(kernel="pool:max_pool_forward_kernel", agree="exact")
def max_pool_forward(x: Array, size: int) -> tuple[Array, Array]:
    """Largest value of every window, and which place won; of equal values the first in row-major order.

    Ties are the rule, not the exception, where the map holds spikes. A NaN wins, so that it stays visible.
    x (C, H, W, T, B), float, or uint8 spikes; size: side of the window, places.
    Returns y (C, h, w, T, B) in the dtype of x and winner (C, h, w, T, B) uint8: i size + j of the place (i, j) within
    the window. Raises ValueError for a window of more than 16 x 16 places.
    """
    if size > 16:
        raise ValueError("max pooling: a window has at most 16 x 16 places")
    channels, height, width, steps, batch = x.shape
    lowest = -np.inf if x.dtype.kind == "f" else 0
    y = np.full((channels, height // size, width // size, steps, batch), lowest, x.dtype)
    winner = np.zeros(y.shape, np.uint8)
    for place, rows, columns in _places(size, height, width):
        candidate = x[:, rows, columns]
        larger = (candidate > y) | np.isnan(candidate)
        y[larger] = candidate[larger]
        winner[larger] = place
    return y, winner


@op(kernel="pool:max_pool_backward_kernel", agree="exact")
def max_pool_backward(dy: Array, winner: Array, size: int, input_size: tuple[int, int]) -> Array:
    """The winner of a window receives dy, all other places 0.

    dy (C, h, w, T, B); winner as `max_pool_forward` returned it; input_size: (H, W). Returns dx (C, H, W, T, B).
    """
    dx = np.zeros((len(dy), *input_size, *dy.shape[-2:]), dy.dtype)
    for place, rows, columns in _places(size, *input_size):
        dx[:, rows, columns] = np.where(winner == place, dy, 0)
    return dx
