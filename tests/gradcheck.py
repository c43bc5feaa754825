"""Central differences in float64, with the step of eq. (6) replaced by the surrogate's primitive.

The network then is a smooth function, apart from the surrogate's kinks and pooling ties, and its hand-written backward
must be its derivative. A coordinate that carries any neuron (or pooling winner) across such a place within ten steps
is left out and counted. With the reset detached its spikes are constants: they are frozen at their values.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from refsnn.layers import Spiking
from refsnn.ops.neuron import lif_forward_smooth
from refsnn.ops.surrogate import SURROGATES

STEP = 5e-6
TOLERANCE = 1e-7


@dataclass
class SmoothSpiking(Spiking):
    """A spiking layer that fires sigma(h - v_threshold); `side` says on which side of every kink each neuron is."""

    frozen: Any = None
    side: Any = None

    def forward(self, x, training, rng, rec):       # noqa: ARG002
        n, surrogate = self.neuron, SURROGATES[self.surrogate]
        s, h = lif_forward_smooth(x, n.decay, n.gain, n.bias, n.v_threshold, n.v_reset, n.reset_amount, n.v_init,
                                  n.reset, n.form, lambda u: surrogate.primitive(u, self.alpha), self.frozen)
        self.side = [h - n.v_threshold > kink for kink in surrogate.kinks(self.alpha)]
        return s, (h, s)

    def freeze(self, s) -> None:
        if self.neuron.detach_reset:
            self.frozen = s.copy()


def smooth(layer: Spiking) -> SmoothSpiking:
    return SmoothSpiking(layer.name, layer.neuron, layer.surrogate, layer.alpha)


def worst(loss: Callable[[], float], sides: Callable[[], list[np.ndarray]], array: np.ndarray, gradient: np.ndarray,
          places: np.ndarray) -> tuple[float, int, int]:
    """max |difference - gradient| / max |gradient| over `places` (flat) of `array`; how many were checked, left out."""
    flat, g = array.reshape(-1), gradient.reshape(-1)
    scale, error, checked = np.abs(g).max() or 1.0, 0.0, 0     # a gradient of nothing but 0: absolute
    for k in places:
        value = flat[k]
        losses, crossed = {}, []
        for steps in (-10, -1, 1, 10):
            flat[k] = value + steps * STEP
            losses[steps] = loss()
            crossed.append([np.array(side) for side in sides()])
        flat[k] = value
        if any((a != b).any() for a, b in zip(crossed[0], crossed[-1], strict=True)):
            continue
        checked += 1
        error = max(error, abs((losses[1] - losses[-1]) / (2 * STEP) - g[k]) / scale)
    return error, checked, len(places) - checked
