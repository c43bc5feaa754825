"""Frames in another size. No way is agreed on, and results depend on it: the method is named, always.

Every method but one is linear and separable: an output pixel is a weighted mean of input pixels, and the weights of
rows and of columns are two small matrices. The one, "tet", is what a widely copied loader does to frames by way of an
image library.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from refsnn.errors import UserError

Array = npt.NDArray[Any]


# ------------------------------------------------------------------------------------------ weights along one direction
def bilinear(n: int, m: int) -> Array:
    """The two pixels next to the place s = (i + 1/2) n/m - 1/2, without smoothing: (m, n).

    weight[i, j] = max(0, 1 - |s - j|), s held inside 0..n-1.   PyTorch: F.interpolate(mode="bilinear").
    """
    place = np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
    return np.maximum(0, 1 - np.abs(place[:, np.newaxis] - np.arange(n)))


def antialias(n: int, m: int) -> Array:
    """A triangle as wide as two output pixels, so that no input pixel is skipped: (m, n).

    weight[i, j] = max(0, 1 - |c - (j + 1/2)| / s) / sum over j,   c = (i + 1/2) n/m,  s = max(1, n/m)

    torchvision: Resize of a tensor; PyTorch: F.interpolate(mode="bilinear", antialias=True).
    """
    centre = (np.arange(m) + 0.5) * n / m
    weight = np.maximum(0, 1 - np.abs(centre[:, np.newaxis] - (np.arange(n) + 0.5)) / max(1, n / m))
    return weight / weight.sum(axis=1, keepdims=True)


def nearest(n: int, m: int) -> Array:
    """One pixel, j = floor(i n/m): (m, n).

    PyTorch: F.interpolate(mode="nearest"), which rounds n/m to float32 and is one pixel off at a few pairs of sizes.
    """
    return np.eye(n)[np.arange(m) * n // m]


def area(n: int, m: int) -> Array:
    """The mean of the pixels that an output pixel touches, floor(i n/m) .. ceil((i+1) n/m) - 1: (m, n).

    PyTorch: F.interpolate(mode="area").
    """
    i, j = np.arange(m)[:, np.newaxis], np.arange(n)
    touched = (j >= i * n // m) & (j < -(-(i + 1) * n // m))
    return touched / touched.sum(axis=1, keepdims=True)


# --------------------------------------------------------------------------------------------------------------- frames
def resize(frames: Array, size: tuple[int, int], method: str) -> Array:
    """Frames (..., H, W) of counts in the size (h, w), float32:

        out = A_h frame A_w^T,      A_h (h, H) and A_w (w, W) by `method`

    | Parameter | Unit   | Meaning                                                                              |
    |-----------|--------|--------------------------------------------------------------------------------------|
    | size      | pixels | h, w                                                                                 |
    | method    |        | "bilinear", "antialias", "nearest", "area"; or "tet", which is not linear: see `tet` |

    Means are taken, not sums: the total of a frame changes by about h w / (H W). Computed in float64.
    """
    return METHODS[method](frames, size)


def separable(weights: Callable[[int, int], Array], frames: Array, size: tuple[int, int]) -> Array:
    """A_h frame A_w^T, with the matrices (m, n) that `weights` gives for a direction of n pixels and m wanted ones."""
    rows, columns = weights(frames.shape[-2], size[0]), weights(frames.shape[-1], size[1])
    return along(rows, along(columns, frames, -1), -2).astype(np.float32)


def along(weights: Array, frames: Array, axis: int) -> Array:
    """weights (m, n) times every line of length n along an axis, float64.

    Few of the weights are not 0. So the product is a sparse one: one thread, and sums in one order on every machine.
    """
    lines = np.moveaxis(frames, axis, 0)
    product = csr_array(weights) @ lines.reshape(len(lines), -1).astype(np.float64)
    return np.moveaxis(product.reshape(-1, *lines.shape[1:]), 0, axis)


def tet(frames: Array, size: tuple[int, int]) -> Array:
    """What the loader that goes with TET (Deng et al., ICLR 2022) makes of counts (..., 2, H, W): (..., 2, h, w), 0..1.

    The loader turns a frame of two channels into an 8-bit image, shrinks that with Pillow, and turns it back:

        1  byte = 255 count mod 256         0, 1, 2, 3 -> 0, 255, 254, 253: there or not, in the main
        2  two channels are taken for gray with opacity, so that gray <- gray opacity / 255: an event of polarity 0
           vanishes where there is none of polarity 1
        3  `antialias` along the rows, then along the columns, each rounded to a byte
        4  gray <- min(255, 255 gray / opacity) where 0 < opacity < 255;  both / 255

    For comparison with results obtained that way; it is no sensible way to shrink events.
    Equal bit for bit to torchvision's ToPILImage, Resize, ToTensor with Pillow where both directions shrink.
    Raises UserError for other than two channels of whole numbers.
    """
    if frames.shape[-3] != 2 or frames.dtype.kind not in "iu":
        raise UserError(f"resize: the method tet takes two channels of counts, got {frames.dtype} of "
                        f"{frames.shape[-3]} channels; take antialias")
    opaque = 255 * frames[..., 1, :, :].astype(np.int64) % 256
    product = (255 * frames[..., 0, :, :].astype(np.int64) % 256) * opaque + 128
    gray = (product + (product >> 8)) >> 8                                  # product / 255, rounded, as Pillow does
    gray, opaque = (_shrunk_bytes(channel, size) for channel in (gray, opaque))
    restored = np.minimum(255, 255 * gray // np.maximum(opaque, 1))
    gray = np.where((opaque == 0) | (opaque == 255), gray, restored)
    return np.stack([gray, opaque], axis=-3).astype(np.float32) / np.float32(255)


def _shrunk_bytes(channel: Array, size: tuple[int, int]) -> Array:
    """`antialias` in whole numbers: weights of 22 bits after the point, columns first, then rows, each to a byte."""
    for axis, length in ((-1, size[1]), (-2, size[0])):
        n = channel.shape[axis]
        if n != length:
            weights = np.floor(antialias(n, length) * (1 << 22) + 0.5)      # sums stay below 2^31, exact in float64
            channel = np.minimum(255, (along(weights, channel, axis).astype(np.int64) + (1 << 21)) >> 22)
    return channel


# name -> the weights of one direction, (m, n) for n pixels and m wanted ones
WEIGHTS: dict[str, Callable[[int, int], Array]] = {
    "antialias": antialias, "bilinear": bilinear, "nearest": nearest, "area": area,
}
# name -> (frames, size) to frames
METHODS: dict[str, Callable[[Array, tuple[int, int]], Array]] = {
    **{name: partial(separable, weights) for name, weights in WEIGHTS.items()}, "tet": tet,
}
