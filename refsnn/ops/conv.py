"""Sparse convolution in two dimensions: forward, and the gradients of the input and of the weights.

The weight is the CSR matrix of its filters (see `sparse.py`): row o is filter o, column (c * kH + i) * kW + j is the
place (i, j) of its window on input channel c. `patches` lays every window of the input out along the same columns, so
that a convolution reads as the matrix product of eq. (5), W x, and its gradients as W^T dy and dy x^T.

Shapes: x (C, H, W, T, B), y (O, H_out, W_out, T, B) with H_out = (H + 2 padding - kH) // stride + 1, W_out alike.
Time and batch are samples: every one is convolved by itself. The gradient of a bias is `linear.bias_gradient`.

Spikes may be bytes, uint8: a quarter of the memory, and the same result, to the last bit. (They are numbers like any
other: a byte of 2 counts twice.) Where the stride is 1, they may also be what `pack_input` makes of them, a bit each
among the padding's zeros, told by its six axes: both passes of a training step read them so.

Parameter    Default  Unit   Meaning
kernel_size  -        pixel  (kH, kW), the window
stride       -        pixel  distance between neighbouring windows, both axes
padding      -        pixel  zeros added on each of the four sides
execution    sparse   -      how a kernel goes about it: by the active weights, or by all places of the weight, with 0
                             where there is none. The same sum: a definition does not look at it. `prefer_dense`
                             says which is faster.
"""

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from refsnn.twin import op

Array = npt.NDArray[Any]
Execution = Literal["sparse", "dense"]
Timed = Literal["forward", "input gradient", "weight gradient"]

# Densities above which the kernels are faster with all places of the weight, for spikes and for reals (Zen 5, AVX-512,
# float32). Forward, spikes are looked up four channels at once: see `kernels/blocks/dense.py`.
CROSSOVER = {"forward": (0.32, 0.52), "input gradient": (0.5, 0.5), "weight gradient": (0.63, 0.5)}


@op(kernel="conv:pack_input_kernel", agree="exact")
def pack_input(x: Array, padding: int) -> tuple[Array, bool]:
    """Spikes among zeros, a bit each.

        bit n % 8 of packed[c, a, 0, b, t, n // 8] = x[c, a - padding, b - padding, t, n]

    x        (C, H, W, T, B)                                   uint8, B a multiple of 8
    returns  (C, H + 2 padding, 1, W + 2 padding, T, B / 8)    uint8, and True; with no elements, and False, where x
                                                               holds other numbers than 0 and 1, or B does not fit
    """
    if x.shape[-1] % 8 or x.max(initial=0) > 1:
        return np.empty((0,) * 6, np.uint8), False
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0), (0, 0)))
    return np.packbits(padded, axis=-1, bitorder="little")[:, :, None], True


@op(kernel="conv:conv2d_forward_kernel", agree="sum")
def conv2d_forward(
    x: Array,
    data: Array,
    indices: Array,
    indptr: Array,
    bias: Array | None,
    kernel_size: tuple[int, int],
    stride: int,
    padding: int,
    execution: Execution = "sparse",  # noqa: ARG001
) -> Array:
    """Convolve spikes or reals with sparse filters: the synaptic current W x of eq. (5).

        y[o, h, w] = bias[o] + sum_k W[o, k] x[c, stride h + i - padding, stride w + j - padding]

    over the active k = (c kH + i) kW + j of row o; x is 0 outside the image. (A correlation: no flipped window.)

    x        (C, H, W, T, B)           input: float, or uint8 spikes; or packed
    data     (nnz,)                    active weights; with indices (nnz,), indptr (O + 1,) the CSR matrix (O, C kH kW)
    bias     (O,) or None              added to every place of a filter's map
    returns  (O, H_out, W_out, T, B)   in the dtype of data

    Raises ValueError where the window is larger than the padded image or packed spikes meet a stride, IndexError where
    a column lies beyond C kH kW.
    """
    windows = patches(unpacked(x, stride, padding), kernel_size, stride, padding)
    rows = indptr.size - 1
    y = np.zeros((rows, *windows.shape[1:]), dtype=data.dtype)
    for o in range(rows):
        k = slice(indptr[o], indptr[o + 1])                             # the active weights of filter o
        y[o] = np.tensordot(data[k], windows[indices[k]], axes=1)
        if bias is not None:
            y[o] += bias[o]
    return y


@op(kernel="conv:conv2d_input_gradient_kernel", agree="sum")
def conv2d_input_gradient(
    dy: Array,
    data: Array,
    indices: Array,
    indptr: Array,
    input_size: tuple[int, int, int],
    kernel_size: tuple[int, int],
    stride: int,
    padding: int,
    execution: Execution = "sparse",  # noqa: ARG001
) -> Array:
    """Send the gradient back through the filters, W^T dy.

        dx[c, a, b] = sum_o sum_k W[o, k] dy[o, h, w]    with a = stride h + i - padding, b = stride w + j - padding

    dy          (O, H_out, W_out, T, B)  gradient of the loss by y; data, indices, indptr as in `conv2d_forward`
    input_size  (C, H, W)                channels and pixels of the input
    returns     (C, H, W, T, B)

    Raises ValueError where dy does not have the output's size, IndexError as `conv2d_forward`.
    """
    channels, height, width = input_size
    h_out, w_out = output_size((height, width), kernel_size, stride, padding)
    _check_gradient(dy, h_out, w_out)
    dwindows = np.zeros((channels * kernel_size[0] * kernel_size[1], *dy.shape[1:]), dtype=dy.dtype)
    for o in range(indptr.size - 1):
        k = slice(indptr[o], indptr[o + 1])
        dwindows[indices[k]] += np.multiply.outer(data[k], dy[o])       # a row names no column twice
    return fold(dwindows, input_size, kernel_size, stride, padding)


@op(kernel="conv:conv2d_weight_gradient_kernel", agree="sum")
def conv2d_weight_gradient(
    dy: Array,
    x: Array,
    indices: Array,
    indptr: Array,
    kernel_size: tuple[int, int],
    stride: int,
    padding: int,
    execution: Execution = "sparse",  # noqa: ARG001
) -> Array:
    """Gradient of the active weights only: the cost follows the density.

        dW[o, k] = sum over h, w, t, b of dy[o, h, w, t, b] x[c, stride h + i - padding, stride w + j - padding, t, b]

    dy       (O, H_out, W_out, T, B);  x  (C, H, W, T, B), float, or uint8 spikes; or packed
    indices  (nnz,), with indptr (O + 1,): the active k of each row
    returns  (nnz,)                   in the dtype of dy

    Raises ValueError where dy does not have the output's size, IndexError as `conv2d_forward`.
    """
    windows = patches(unpacked(x, stride, padding), kernel_size, stride, padding)
    _check_gradient(dy, *windows.shape[1:3])
    ddata = np.zeros(indices.size, dtype=dy.dtype)
    for o in range(indptr.size - 1):
        k = slice(indptr[o], indptr[o + 1])
        ddata[k] = np.tensordot(windows[indices[k]], dy[o], axes=4)
    return ddata


@op(kernel="conv:conv2d_weight_gradient_dense_kernel", agree="sum")
def conv2d_weight_gradient_dense(
    dy: Array, x: Array, kernel_size: tuple[int, int], stride: int, padding: int
) -> Array:
    """Gradient of every place of the weight, active or not: what the growth rules compare.

    The equation is that of `conv2d_weight_gradient`, for all k.

    dy       (O, H_out, W_out, T, B);  x  (C, H, W, T, B), float, or uint8 spikes; or packed
    returns  (O, C kH kW)             in the dtype of dy

    Raises ValueError where dy does not have the output's size.
    """
    windows = patches(unpacked(x, stride, padding), kernel_size, stride, padding)
    _check_gradient(dy, *windows.shape[1:3])
    return np.tensordot(dy, windows, axes=([1, 2, 3, 4], [1, 2, 3, 4]))


def prefer_dense(
    operation: Timed,
    density: float,
    shape: tuple[int, int],
    samples: int,
    stride: int = 1,
    spikes: bool = True,
) -> bool:
    """Whether dense execution is faster, at this density of a weight of `shape` (O, C) filters and channels.

    samples  T B; where they do not fill vectors of 16, forward pass and input gradient are sparse in any case
    spikes   whether the input is nothing but 0 and 1
    """
    filters, channels = shape
    used = 1.0
    if operation != "weight gradient" and (samples % 16 or (operation == "input gradient" and stride > 1)):
        return False
    if operation == "input gradient":
        used = _share(channels, 8)
    if operation == "forward":
        used = _share(channels, 4) * _share(filters, 4) if spikes else _share(filters, 8)
    return density * used > CROSSOVER[operation][not spikes]


def _share(many: int, group: int) -> float:
    """How much of groups of that size is used: they come whole."""
    return many / (math.ceil(many / group) * group)


def unpacked(x: Array, stride: int, padding: int) -> Array:
    """The input (C, H, W, T, B), which may be packed; bytes, where it is. Raises ValueError for a stride beyond 1."""
    if x.ndim == 5:
        return x
    if stride != 1:
        raise ValueError("packed spikes are for a stride of 1")
    _, height, width = input_size(x, padding)
    bits = np.unpackbits(x[:, :, 0], axis=-1, bitorder="little")
    return bits[:, padding : padding + height, padding : padding + width]


def input_size(x: Array, padding: int) -> tuple[int, int, int]:
    """(C, H, W) of an input, which may be packed."""
    if x.ndim == 5:
        return x.shape[0], x.shape[1], x.shape[2]
    return x.shape[0], x.shape[1] - 2 * padding, x.shape[3] - 2 * padding


def output_size(size: tuple[int, int], kernel_size: tuple[int, int], stride: int, padding: int) -> tuple[int, int]:
    """(H_out, W_out) of an image of `size` pixels. Raises ValueError where not one window fits."""
    (height, width), (k_h, k_w) = size, kernel_size
    if height + 2 * padding < k_h or width + 2 * padding < k_w:
        raise ValueError(f"a window of {k_h}x{k_w} does not fit an image of {height}x{width} with padding {padding}")
    return (height + 2 * padding - k_h) // stride + 1, (width + 2 * padding - k_w) // stride + 1


def patches(x: Array, kernel_size: tuple[int, int], stride: int, padding: int) -> Array:
    """Every window of x, column by column: patches[k, h, w] = x[c, stride h + i - padding, stride w + j - padding].

    x (C, H, W, T, B)  ->  (C kH kW, H_out, W_out, T, B), k = (c kH + i) kW + j as in the weight's columns.
    """
    k_h, k_w = kernel_size
    h_out, w_out = output_size((x.shape[1], x.shape[2]), kernel_size, stride, padding)
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0), (0, 0)))
    windows = np.empty((x.shape[0], k_h, k_w, h_out, w_out, *x.shape[3:]), dtype=x.dtype)
    for i in range(k_h):
        for j in range(k_w):
            windows[:, i, j] = padded[:, i : i + stride * h_out : stride, j : j + stride * w_out : stride]
    return windows.reshape(-1, h_out, w_out, *x.shape[3:])


def fold(
    dwindows: Array, input_size: tuple[int, int, int], kernel_size: tuple[int, int], stride: int, padding: int
) -> Array:
    """The transpose of `patches`: add every window back where it was taken, drop what fell on the padding.

    dwindows (C kH kW, H_out, W_out, T, B)  ->  (C, H, W, T, B)
    """
    (channels, height, width), (k_h, k_w) = input_size, kernel_size
    h_out, w_out, *samples = dwindows.shape[1:]
    dwindows = dwindows.reshape(channels, k_h, k_w, h_out, w_out, *samples)
    dx = np.zeros((channels, height + 2 * padding, width + 2 * padding, *samples), dtype=dwindows.dtype)
    for i in range(k_h):
        for j in range(k_w):
            dx[:, i : i + stride * h_out : stride, j : j + stride * w_out : stride] += dwindows[:, i, j]
    return np.ascontiguousarray(dx[:, padding : padding + height, padding : padding + width])


def _check_gradient(dy: Array, h_out: int, w_out: int) -> None:
    if dy.shape[1:3] != (h_out, w_out):
        raise ValueError(f"dy has {dy.shape[1]}x{dy.shape[2]} pixels, the convolution's output {h_out}x{w_out}")
