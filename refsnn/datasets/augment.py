"""Normalisation and augmentation: what happens to a sample on its way into a batch.

What is drawn for sample i in epoch e is row i of a table that is drawn anew for every epoch from its own named stream.
So it depends on (seed, e, i) alone: not on the order in which samples are asked for, nor on the size of a batch.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn.datasets.samples import Samples
from refsnn.rng import stream

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Normalised:
    """Pixels of 0..255 as numbers around 0, channel by channel:  (x / 255 - mean[c]) / std[c].

    samples give (B, C, H, W);  mean, std (C,), of pixels in [0, 1].
    """

    samples: Samples
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def labels(self) -> Array:
        """(n,) int64."""
        return self.samples.labels

    def __len__(self) -> int:
        """How many samples, n."""
        return len(self.samples)

    def batch(self, chosen: Array, epoch: int) -> Array:
        """See `Samples.batch`."""
        mean, std = (np.array(part, np.float32)[:, np.newaxis, np.newaxis] for part in (self.mean, self.std))
        x: Array = (self.samples.batch(chosen, epoch) / np.float32(255) - mean) / std
        return x


@dataclass(frozen=True)
class Augmented:
    """Training samples, each changed at random: cropped, flipped, partly covered, rolled, in this order.

    | Parameter | Default | Unit   | Meaning                                                                           |
    |-----------|---------|--------|-----------------------------------------------------------------------------------|
    | crop      | 0       | pixels | shift by -crop..crop in each direction; `border` comes in from outside            |
    | flip      | False   |        | mirror left and right with probability 1/2                                        |
    | cutout    | 0       | pixels | cover a square of this edge around a random pixel with 0, the mean                |
    | roll      | 0       | pixels | shift by -roll..roll in each direction; what leaves comes in at the other side    |
    | border    | (0,)    | pixel  | value outside the image, one per channel or one for all                           |

    All frames of a sample are changed alike.   Sources: crop and flip He et al. 2016, cutout DeVries and Taylor 2017,
    roll the loaders of event frames that go with Deng et al., ICLR 2022.
    """

    samples: Samples
    seed: int
    crop: int = 0
    flip: bool = False
    cutout: int = 0
    roll: int = 0
    border: tuple[float, ...] = (0.0,)

    @property
    def labels(self) -> Array:
        """(n,) int64."""
        return self.samples.labels

    def __len__(self) -> int:
        """How many samples, n."""
        return len(self.samples)

    def draws(self, what: str, low: int, high: int | tuple[int, int], epoch: int) -> Array:
        """The epoch's table of two whole numbers from low to below high for every sample, (n, 2)."""
        return stream(self.seed, f"augment/{what}", epoch).integers(low, high, (len(self), 2))

    def batch(self, chosen: Array, epoch: int) -> Array:
        """See `Samples.batch`."""
        x = self.samples.batch(chosen, epoch)
        height, width = x.shape[-2:]
        if self.crop:
            x = shifted(x, self.draws("crop", -self.crop, self.crop + 1, epoch)[chosen], self.border)
        if self.flip:
            mirrored = self.draws("flip", 0, 2, epoch)[chosen, 0] == 1
            x[mirrored] = x[mirrored, ..., ::-1]
        if self.cutout:
            x = covered(x, self.draws("cutout", 0, (height, width), epoch)[chosen], self.cutout)
        if self.roll:
            x = rolled(x, self.draws("roll", -self.roll, self.roll + 1, epoch)[chosen])
        return x


def _rows_and_columns(x: Array, shift: Array) -> tuple[Array, Array]:
    """For every sample the row and column that each output row (B, H) and column (B, W) is taken from."""
    return tuple(np.arange(size) + shift[:, k : k + 1] for k, size in enumerate(x.shape[-2:]))  # type: ignore[return-value]


def _taken(x: Array, rows: Array, columns: Array) -> Array:
    """out[b, ..., h, w] = x[b, ..., rows[b, h], columns[b, w]]."""
    flat = x.reshape(len(x), -1, *x.shape[-2:])
    sample = np.arange(len(x))[:, np.newaxis, np.newaxis]
    picked = flat.transpose(0, 2, 3, 1)[sample, rows[:, :, np.newaxis], columns[:, np.newaxis, :]]
    return np.ascontiguousarray(picked.transpose(0, 3, 1, 2)).reshape(x.shape)


def shifted(x: Array, shift: Array, border: tuple[float, ...]) -> Array:
    """out[b, ..., c, h, w] = x[b, ..., c, h + shift[b, 0], w + shift[b, 1]], and border[c] where that is outside.

    x (B, ..., C, H, W), shift (B, 2) whole pixels.   Shifts of -p..p are the random crop of an image padded by p.
    """
    rows, columns = _rows_and_columns(x, shift)
    height, width = x.shape[-2:]
    out = _taken(x, np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1))
    inside = ((rows >= 0) & (rows < height))[:, :, np.newaxis] & ((columns >= 0) & (columns < width))[:, np.newaxis, :]
    outside = np.array(border, x.dtype)[:, np.newaxis, np.newaxis]
    return np.where(inside.reshape(len(x), *[1] * (x.ndim - 3), height, width), out, outside)


def covered(x: Array, centre: Array, edge: int) -> Array:
    """x with 0 in the square of `edge` pixels around centre[b]: rows centre[b, 0] - edge // 2 and on, columns alike.

    x (B, ..., H, W), centre (B, 2).   At the border of the image the square is cut off.
    """
    below = edge // 2
    near = [(np.arange(size) >= centre[:, k : k + 1] - below) & (np.arange(size) < centre[:, k : k + 1] - below + edge)
            for k, size in enumerate(x.shape[-2:])]
    square = near[0][:, :, np.newaxis] & near[1][:, np.newaxis, :]
    return np.where(square.reshape(len(x), *[1] * (x.ndim - 3), *x.shape[-2:]), x.dtype.type(0), x)


def rolled(x: Array, shift: Array) -> Array:
    """out[b, ..., h, w] = x[b, ..., (h - shift[b, 0]) mod H, (w - shift[b, 1]) mod W].

    x (B, ..., H, W), shift (B, 2) whole pixels.
    """
    rows, columns = _rows_and_columns(x, -shift)
    return _taken(x, rows % x.shape[-2], columns % x.shape[-1])
