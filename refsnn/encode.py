"""Encoding: from a batch of samples to the network's input over time, features first and samples last.

Adding an encoder: write a function of the same arguments and enter it in `ENCODERS`, at the bottom.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn.errors import UserError
from refsnn.ops.static import static

Array = npt.NDArray[Any]


def direct(x: Array, steps: int, dtype: npt.DTypeLike = np.float32) -> Array:
    """Direct encoding: the static image as input current at every time step.

        out[c, h, w, t, b] = x[b, c, h, w]        for t = 0 .. T-1

    x: (B, C, H, W) images.   Returns (C, H, W, T, B) in `dtype`, all steps one place in memory: `ops/static.py`.

    | Parameter | Default | Unit  | Meaning                                  |
    |-----------|---------|-------|------------------------------------------|
    | steps     |         | steps | T, how often the image is shown          |
    | dtype     | float32 |       | floating-point type of the network       |

    Raises UserError for an array of other than four dimensions, or T < 1.
    Source: the paper's Table 1 gives T; that the image is repeated is taken from Deng et al., ICLR 2022.
    """
    if x.ndim != 4:
        frames = '; data with a time axis needs encode.kind = "frames"' if x.ndim == 5 else ""
        raise UserError(f"encode.kind = direct: needs images (B, C, H, W), got an array of shape {x.shape}{frames}")
    if steps < 1:
        raise UserError(f"encode.steps = {steps}: needs at least one time step")
    batch, channels, height, width = x.shape
    return static(np.array(x.transpose(1, 2, 3, 0), dtype, order="C").reshape(channels, height, width, 1, batch), steps)


def frames(x: Array, steps: int, dtype: npt.DTypeLike = np.float32) -> Array:
    """Frames: the sample has a time axis already, one frame per step.

        out[c, h, w, t, b] = x[b, t, c, h, w]

    x: (B, T, C, H, W) frames, such as event counts per interval.   Returns (C, H, W, T, B), contiguous, in `dtype`.

    | Parameter | Default | Unit  | Meaning                                  |
    |-----------|---------|-------|------------------------------------------|
    | steps     |         | steps | T, must be the number of frames          |
    | dtype     | float32 |       | floating-point type of the network       |

    Raises UserError for an array of other than five dimensions, or with another number of frames than T.
    Source: the paper, DVS-CIFAR10 (T = 10 frames).
    """
    if x.ndim != 5:
        images = '; images without a time axis need encode.kind = "direct"' if x.ndim == 4 else ""
        raise UserError(f"encode.kind = frames: needs frames (B, T, C, H, W), got an array of shape {x.shape}{images}")
    if x.shape[1] != steps:
        raise UserError(f"encode.steps = {steps}: the data has {x.shape[1]} frames per sample; set it to that")
    return np.array(x.transpose(2, 3, 4, 1, 0), dtype, order="C")


ENCODERS: dict[str, Callable[..., Array]] = {"direct": direct, "frames": frames}
