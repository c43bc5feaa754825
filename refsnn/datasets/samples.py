"""What a data set is to the rest of the program: two collections of samples that give out batches.

A collection need not be in memory: event frames are read batch by batch from their cache. What a batch holds depends on
the chosen samples and the epoch alone, never on what was asked for before, so that a run can stop and resume anywhere.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from refsnn.errors import UserError

Array = npt.NDArray[Any]


class Samples(Protocol):
    """n samples with their labels."""

    @property
    def labels(self) -> Array:
        """(n,) int64 in 0..classes-1."""

    def __len__(self) -> int:
        """How many samples, n."""

    def batch(self, chosen: Array, epoch: int) -> Array:
        """The samples of these indices, in this order: float32 (B, C, H, W) images or (B, T, C, H, W) frames.

        chosen (B,): indices, which may repeat.   epoch: counted from 0 over the whole run; augmentation draws by it.
        """


@dataclass(frozen=True)
class InMemory:
    """Samples that are an array: x (n, C, H, W) or (n, T, C, H, W), uint8 or float32; labels (n,) int64."""

    x: Array
    labels: Array

    def __len__(self) -> int:
        """How many samples, n."""
        return len(self.labels)

    def batch(self, chosen: Array, epoch: int) -> Array:  # noqa: ARG002
        """See `Samples.batch`."""
        return self.x[chosen].astype(np.float32, copy=False)


@dataclass(frozen=True)
class Subset:
    """The samples of another collection at these indices (n,)."""

    samples: Samples
    indices: Array

    @property
    def labels(self) -> Array:
        """(n,) int64."""
        return self.samples.labels[self.indices]

    def __len__(self) -> int:
        """How many samples, n."""
        return len(self.indices)

    def batch(self, chosen: Array, epoch: int) -> Array:
        """See `Samples.batch`."""
        return self.samples.batch(self.indices[chosen], epoch)


@dataclass(frozen=True)
class Dataset:
    """Training and test samples.

    | Field   | Meaning                                                                                          |
    |---------|--------------------------------------------------------------------------------------------------|
    | name    | of the data set                                                                                  |
    | train   | samples to train on                                                                              |
    | test    | samples to test on                                                                               |
    | classes | K; labels are 0..K-1                                                                             |
    | border  | value of a pixel outside the image, one per channel or one for all; what a shifted image shows  |
    """

    name: str
    train: Samples
    test: Samples
    classes: int
    border: tuple[float, ...] = (0.0,)


# ---------------------------------------------------------------------------------------------------- stratified split
def quota(counts: Array, total: int) -> Array:
    """How many samples of each class a share of `total` takes: proportional, remainders to the largest fractions.

    counts: (K,) samples per class.   Returns (K,) integers; ties go to the lower class.
    Source: the largest remainder method.
    """
    exact_times_n = counts.astype(np.int64) * total
    taken, remainder = np.divmod(exact_times_n, counts.sum())
    largest_first = np.argsort(-remainder, kind="stable")
    taken[largest_first[: total - taken.sum()]] += 1
    return taken


def stratified(labels: Array, share: float, generator: np.random.Generator) -> Array:
    """Draw round(share * n) samples, of each class its `quota`, but never the last one of a class.

    labels: (n,) integers.   Returns a bool mask (n,), True for the samples drawn.
    """
    counts = np.bincount(labels)
    taken = np.minimum(quota(counts, round(share * len(labels))), np.maximum(counts - 1, 0))
    drawn = np.zeros(len(labels), bool)
    for label, count in enumerate(taken):
        drawn[generator.permutation(np.flatnonzero(labels == label))[:count]] = True
    return drawn


def hold_out(dataset: Dataset, share: float, generator: np.random.Generator) -> Dataset:
    """Put a stratified share of the training set in the place of the test set, which is left out altogether.

    | Parameter | Default | Unit | Meaning                                              |
    |-----------|---------|------|------------------------------------------------------|
    | share     |         | 1    | of the training samples, in (0, 1)                   |
    | generator |         |      | decides which ones                                   |

    Raises ValueError for a share outside (0, 1), UserError where it comes to no sample at all.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be in (0, 1), got {share}")
    held = stratified(dataset.train.labels, share, generator)
    if not held.any():
        raise UserError(f"data set {dataset.name}: a share of {share} of {len(held)} samples holds out none; raise it")
    parts = (Subset(dataset.train, np.flatnonzero(which)) for which in (~held, held))
    return replace(dataset, train=next(parts), test=next(parts))
