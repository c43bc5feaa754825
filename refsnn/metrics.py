"""What is measured of a trained network: densities, synaptic operations, energy, firing rates, overlaps.

Two densities are in use in the literature and they are not comparable, so both are reported:

    param_density     active weights / all weights of convolutions and linear layers
    synapse_density   unrolled connections: a convolution's weight counts once at every output position it serves
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

PICOJOULE_PER_SOP = 0.9     # an addition, 45 nm figures used by the spiking-network literature
PICOJOULE_PER_MAC = 4.6     # a multiplication and addition, same source


def accuracy(logits: Array, labels: Array) -> int:
    """Number of samples whose largest mean logit over time is at their label; of equal ones the lower class.

    logits (K, T, B), labels (B,).
    """
    mean = np.add.reduce(logits, axis=1) / logits.shape[1]
    return int(np.count_nonzero(mean.argmax(axis=0) == labels))


def events(x: Array) -> Array:
    """Non-zero inputs over all time steps and samples: (C, H, W, T, B) -> (C, H, W) int64; (F, T, B) -> (F,)."""
    return np.count_nonzero(x, axis=(-2, -1)).astype(np.int64)


def is_binary(x: Array) -> bool:
    """Whether an input holds nothing but 0 and 1, so that an event costs additions only."""
    return bool(np.all((x == 0) | (x == 1)))


def driven_by_conv(count: Array, fan_out: Array, kernel_size: tuple[int, int], stride: int, padding: int) -> int:
    """Operations that events cause in a convolution, exact at borders and for strides.

        sum over (c, i, j) and output places (h, w) of  count[c, s h + i - p, s w + j - p] * fan_out[c, i, j]

    count (C, H, W): events per input place; fan_out (C * kH * kW,): active weights per column of the CSR matrix.
    With a count of 1 everywhere the result is the number of unrolled connections.
    """
    channels, height, width = count.shape
    padded = np.pad(count, ((0, 0), (padding, padding), (padding, padding)))
    rows = (height + 2 * padding - kernel_size[0]) // stride + 1
    columns = (width + 2 * padding - kernel_size[1]) // stride + 1
    fan = fan_out.reshape(channels, *kernel_size)
    total = 0
    for i, j in np.ndindex(*kernel_size):
        seen = padded[:, i:i + stride * rows:stride, j:j + stride * columns:stride].sum(axis=(1, 2))
        total += int(seen @ fan[:, i, j])
    return total


def driven_by_linear(count: Array, fan_out: Array) -> int:
    """Operations that events cause in a linear layer: count (F,) times active weights per column (F,)."""
    return int(count @ fan_out)


def energy_pj(sops: float, macs: float) -> float:
    """Picojoule of `sops` additions and `macs` multiply-adds: 0.9 and 4.6 pJ each (45 nm)."""
    return PICOJOULE_PER_SOP * sops + PICOJOULE_PER_MAC * macs


def connections(mask: Array) -> int:
    """Number of connections of a mask that is packed a bit a place, (n,) uint8."""
    return int(np.count_nonzero(np.unpackbits(mask)))


def overlap(mask: Array, other: Array) -> float:
    """Share of the connections of `mask` that are also in `other`, both packed; 1 for an empty mask."""
    active = connections(mask)
    return connections(mask & other) / active if active else 1.0
