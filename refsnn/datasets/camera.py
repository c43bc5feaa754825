"""An event camera, simulated: brightness at every pixel in, events out.

A pixel remembers the logarithm of the light at its last event. When the logarithm has moved away from it by the
contrast threshold, the pixel sends ON (brighter) or OFF (darker), is held in reset for the refractory time, and then
remembers the light of that moment. That is the circuit of the DVS128 (Lichtsteiner, Posch, Delbruck, IEEE Journal of
Solid-State Circuits 43:566, 2008) without its finite bandwidth and without what its readout does to timestamps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn.datasets.events import Events

Array = npt.NDArray[Any]

LEAST_THRESHOLD = 0.1       # of the mean: where the tail of a pixel's Gaussian threshold is cut


@dataclass(frozen=True)
class Camera:
    """The sensor. Defaults: docs/simulator.md says which are published, which fitted, and which merely plausible.

    Parameter   Default   Unit           Meaning
    threshold   0.21      log intensity  contrast theta that makes an event; both polarities
    mismatch    0.021     log intensity  standard deviation of theta over the pixels, drawn once per recording
    refractory  500       us             a pixel that sent an event neither sends nor follows the light for so long
    noise       0.1       1/s            events per pixel that no light caused (Poisson), ON and OFF alike
    dark        0.05      light          added before the logarithm: stray light and dark current, white being 1
    height      128       pixel
    width       128       pixel

    Raises ValueError for a value without meaning.
    """

    threshold: float = 0.21
    mismatch: float = 0.021
    refractory: int = 500
    noise: float = 0.1
    dark: float = 0.05
    height: int = 128
    width: int = 128

    def __post_init__(self) -> None:
        if not (self.threshold > 0 and self.mismatch >= 0 and self.noise >= 0 and self.dark > 0):
            raise ValueError(f"threshold and dark must be above 0, mismatch and noise at least 0: {self}")
        if self.refractory < 0 or self.refractory % 1 or self.height < 1 or self.width < 1:
            raise ValueError(f"refractory must be whole microseconds, at least 0, and the sensor have pixels: {self}")

    def level(self, light: Array) -> Array:
        """What a pixel measures, log(light + dark); light: any shape, 0 black .. 1 white."""
        return np.log(light + self.dark)


def record(levels: Sequence[Array], times: Array, camera: Camera, generator: np.random.Generator) -> Events:
    """The events of pixels that see `levels`, linear in time between `times`.

    levels   S + 1 arrays (H, W)   log intensity
    times    (S + 1,)         us   increasing, from 0
    returns  events in the order of time, at most one per pixel within `camera.refractory` us; p = 1 is ON

    With L moving by a constant slope from the remembered level, events come every theta / |slope| + refractory; without
    refractory time these are floor(|dL| / theta) events, the k-th where L has moved by k theta. Times are rounded down
    to whole microseconds, as a clock does.

    The draws, in order: thresholds (where mismatch > 0), number, pixels, times and polarities of the noise.
    """
    height, width = levels[0].shape
    theta = _thresholds(height * width, camera, generator)
    signal = _crossings([level.ravel() for level in levels], times, theta, camera.refractory)
    noise = _background(height * width, times[-1], camera, generator)
    pixel, t, on = (np.concatenate(both) for both in zip(signal, noise, strict=True))
    caused = np.arange(len(pixel)) < len(signal[0])
    t = np.floor(t).astype(np.int64)
    kept = _far_enough(pixel, t, caused, camera.refractory)
    kept = kept[np.lexsort((pixel[kept], t[kept]))]
    return Events(pixel[kept] % width, pixel[kept] // width, t[kept], on[kept].astype(np.uint8), height, width)


def _thresholds(pixels: int, camera: Camera, generator: np.random.Generator) -> Array:
    """The contrast threshold of every pixel (pixels,): Gaussian, cut where it would come near 0."""
    if camera.mismatch == 0:
        return np.full(pixels, camera.threshold)
    drawn = generator.normal(camera.threshold, camera.mismatch, pixels)
    return np.maximum(drawn, LEAST_THRESHOLD * camera.threshold)


def _crossings(levels: Sequence[Array], times: Array, theta: Array, refractory: int) -> tuple[Array, Array, Array]:
    """Events that light caused: pixel (N,), time (N,) in us, whether ON (N,); levels: S + 1 arrays (pixels,)."""
    remembered = levels[0].copy()
    awake = np.zeros(len(theta))                # when the pixel's last reset ends, us
    found: list[tuple[Array, Array, Array]] = [(np.zeros(0, np.intp), np.zeros(0), np.zeros(0, bool))]
    for before, after, start, end in zip(levels, levels[1:], times, times[1:], strict=False):

        def seen(pixel: Array, t: Array) -> Array:
            slope = (after[pixel] - before[pixel]) / (end - start)      # noqa: B023 (used within this step only)
            return before[pixel] + slope * (t - start)                  # noqa: B023

        waking = np.flatnonzero((awake > start) & (awake <= end))
        remembered[waking] = seen(waking, awake[waking])
        pixel = np.flatnonzero((np.abs(after - remembered) >= theta) & (awake <= end))
        while len(pixel):                       # each turn: the next event of every pixel that has one in this step
            on = after[pixel] > remembered[pixel]
            level = remembered[pixel] + np.where(on, theta[pixel], -theta[pixel])
            share = (level - before[pixel]) / (after[pixel] - before[pixel])
            t = np.clip(start + share * (end - start), np.maximum(awake[pixel], start), end)
            found.append((pixel, t, on))
            awake[pixel] = t + refractory
            pixel = pixel[awake[pixel] <= end]
            remembered[pixel] = seen(pixel, awake[pixel])
            pixel = pixel[np.abs(after[pixel] - remembered[pixel]) >= theta[pixel]]
    pixels, t, on = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return pixels, t, on


def _background(
    pixels: int, duration: float, camera: Camera, generator: np.random.Generator
) -> tuple[Array, Array, Array]:
    """Events that nothing caused: a Poisson process of the same rate in every pixel; pixel, time, whether ON."""
    count = generator.poisson(camera.noise * pixels * duration * 1e-6)
    pixel = generator.integers(pixels, size=count)
    return pixel, generator.uniform(0, duration, count), generator.random(count) < 0.5


def _far_enough(pixel: Array, t: Array, caused: Array, refractory: int) -> Array:
    """Indices of the events to keep: noise within the refractory time of another event of its pixel goes."""
    kept = np.lexsort((t, pixel))
    while True:
        earlier, later = kept[:-1], kept[1:]
        close = (pixel[earlier] == pixel[later]) & (t[later] - t[earlier] < refractory)
        if not close.any():
            return kept
        # of two, the later one goes if it is noise, else the earlier; two events of light are never that close
        gone = np.unique(np.where(caused[later], earlier, later)[close])
        kept = kept[~np.isin(kept, gone)]
