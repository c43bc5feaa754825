"""Recordings like those of CIFAR10-DVS, made from still images: the image moved before a simulated event camera.

CIFAR10-DVS showed images of CIFAR-10, enlarged to 512 x 512, on a monitor, moved them along a closed path, and recorded
that with a DVS128 (Li, Liu, Ji, Li, Shi, Frontiers in Neuroscience 11:309, 2017). Here the same is computed, so that
people without its 10 GB can run everything, and tests have known answers. It is no substitute for results on the real
recordings: docs/simulator.md says what differs.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn.datasets.camera import Camera, record
from refsnn.datasets.events import DVS128, Events, read_aedat2, write_aedat2
from refsnn.disk import write_whole
from refsnn.errors import UserError

Array = npt.NDArray[Any]

NOTE = "simulated.json"     # beside the folders of the classes: what made them

# What is known of the 10,000 recordings of CIFAR10-DVS; docs/simulator.md names the sources.
PUBLISHED_COUNT = 205_072           # events in a recording, mean: 2,050,719,068 / 10,000
PUBLISHED_SECONDS = 1.298_444       # from the first event to the last, mean
PUBLISHED_RATE = PUBLISHED_COUNT / PUBLISHED_SECONDS


# ------------------------------------------------------------------------------------------------------------- movement
@dataclass(frozen=True)
class Path:
    """How the image is shown and moved: round and round along straight lines from corner to corner.

    Parameter  Default                   Unit     Meaning
    corners    (0,0) (1,-1) (2,0) (1,1)  stride   (right, down); the last leads back to the first
    stride     10                        pixel    of the screen
    speed      200                       pixel/s  along the faster of the two axes
    loops      6                                  times round
    steps      10                                 time steps per segment, between which the level is linear
    pixels     512                       pixel    width and height of the image, which fills the view
    gamma      2.2                                light of the screen = value ** gamma

    Raises ValueError for a path that stands still or is empty.
    """

    corners: tuple[tuple[float, float], ...] = ((0, 0), (1, -1), (2, 0), (1, 1))
    stride: float = 10
    speed: float = 200
    loops: int = 6
    steps: int = 10
    pixels: int = 512
    gamma: float = 2.2

    def __post_init__(self) -> None:
        if min(self.stride, self.speed, self.loops, self.steps, self.pixels, self.gamma) <= 0:
            raise ValueError(f"every length, speed and number must be above 0: {self}")
        if any(a == b for a, b in self.segments()):
            raise ValueError(f"two corners that follow each other must differ: {self.corners}")

    def segments(self) -> Iterator[tuple[tuple[float, float], tuple[float, float]]]:
        """The straight lines of one loop, from corner to corner."""
        return zip(self.corners, (*self.corners[1:], self.corners[0]), strict=True)

    def loop(self) -> tuple[Array, Array]:
        """One time round: offsets (S, 2) of the image (right, down) in screen pixels, and durations (S,) in us."""
        offsets, durations = [], []
        for a, b in self.segments():
            start, way = self.stride * np.array(a), self.stride * (np.array(b) - a)
            offsets += [start + way * k / self.steps for k in range(self.steps)]
            durations += [1e6 * np.abs(way).max() / self.speed / self.steps] * self.steps
        return np.array(offsets), np.array(durations)


def simulate(image: Array, camera: Camera, path: Path, generator: np.random.Generator) -> Events:
    """Record a still image that is moved along `path`.

        L(x, t) = log(B(x - offset(t)) ** gamma + dark),    B: the image, bicubic between its pixels, 0 black .. 1 white

    image    (3, H, W) uint8, red, green, blue, or (H, W) in [0, 1]; beyond its border, its border goes on
    returns  the camera's events; p = 1 where it became brighter

    Raises ValueError for an image of another form.
    """
    values = brightness(image)
    offsets, durations = path.loop()
    shifts = offsets * (np.array(values.shape[::-1]) / path.pixels)          # in pixels of the image
    views = [camera.level(_view(values, right, down, camera) ** path.gamma) for right, down in shifts]
    times = np.concatenate([[0], np.cumsum(np.tile(durations, path.loops))])
    return record([*(views * path.loops), views[0]], times, camera, generator)


def brightness(image: Array) -> Array:
    """What a screen pixel is told, (H, W) in [0, 1]: 0.299 red + 0.587 green + 0.114 blue (ITU-R BT.601)."""
    if image.ndim == 3 and image.shape[0] == 3 and image.dtype == np.uint8:
        red, green, blue = image.astype(np.float64) / 255
        return 0.299 * red + 0.587 * green + 0.114 * blue
    if image.ndim == 2 and image.dtype.kind == "f" and image.size and 0 <= image.min() <= image.max() <= 1:
        return image.astype(np.float64)
    raise ValueError(f"need (3, H, W) of uint8 or (H, W) in [0, 1], got {image.shape} of {image.dtype}")


def _view(values: Array, right: float, down: float, camera: Camera) -> Array:
    """What the camera (height, width) sees of the image (H, W), moved by `right` and `down` pixels of the image.

    Sums of four products, not a matrix product, whose bits would depend on the number of threads.
    """
    rows, row_weights = _taps(camera.height, values.shape[0], down)
    columns, column_weights = _taps(camera.width, values.shape[1], right)
    tall = sum(row_weights[k][:, np.newaxis] * values[rows[k]] for k in range(4))
    full = sum(column_weights[k] * tall[:, columns[k]] for k in range(4))
    return np.clip(full, 0, 1)                  # a bicubic curve overshoots at edges, a screen cannot


def _taps(out: int, size: int, shift: float) -> tuple[Array, Array]:
    """Cubic interpolation (Keys, a = -1/2) at `out` places over `size` pixels: indices and weights, both (4, out)."""
    place = (np.arange(out) + 0.5) * size / out - 0.5 - shift
    first = np.floor(place)
    f = place - first
    weights = np.array([-f + 2 * f**2 - f**3, 2 - 5 * f**2 + 3 * f**3, f + 4 * f**2 - 3 * f**3, f**3 - f**2]) / 2
    indices = first.astype(np.intp) + np.arange(-1, 3)[:, np.newaxis]
    return np.clip(indices, 0, size - 1), weights


# ----------------------------------------------------------------------------------------------------------- statistics
@dataclass(frozen=True)
class Statistics:
    """What recordings have in common: their number, events in one (mean), events per second (mean), share of ON."""

    recordings: int
    count: float
    rate: float
    on_share: float

    def beside_published(self) -> str:
        """A line that states them beside what is known of CIFAR10-DVS."""
        return (f"{self.recordings} recordings: {self.count:,.0f} events each (CIFAR10-DVS {PUBLISHED_COUNT:,}), "
                f"{self.rate:,.0f} per second ({PUBLISHED_RATE:,.0f}), {100 * self.on_share:.1f} % ON "
                "(no published figure known)")


def statistics(recordings: Iterable[Events]) -> Statistics:
    """Count events; the rate is that of all events over all time, each recording lasting from its first to its last.

    Raises ValueError where there is no recording, or none with two events at different times.
    """
    number = events = on = span = 0
    for one in recordings:
        number, events, on = number + 1, events + len(one), on + int(one.p.sum())
        span += int(one.t[-1] - one.t[0]) if len(one) else 0
    if span == 0:
        raise ValueError(f"{number} recordings with {events} events have no rate")
    return Statistics(number, events / number, 1e6 * events / span, on / events)


# --------------------------------------------------------------------------------------------------------------- files
def write_folder(
    images: Array, labels: Array, class_names: tuple[str, ...], folder: FilePath, per_class: int, seed: int,
    camera: Camera | None = None, path: Path | None = None, tell: Callable[[str], None] | None = None,
) -> Statistics:  # fmt: skip
    """Write a data set in the layout of CIFAR10-DVS: `folder/airplane/cifar10_airplane_0.aedat` and so on.

    images       (n, 3, H, W) uint8; recording k of a class is made from its k-th image
    labels       (n,) integers, index into class_names
    per_class    recordings of each class
    seed         recording k of class c is drawn from (seed, c, k), whatever else is written and in which order
    tell         called with a line of progress per class, and the line of statistics at the end

    A recording that is there is read and kept, so that an interrupted call goes on where it was. `simulated.json` says
    with which seed, camera and path a folder was begun; another one is refused.

    Raises UserError for too few images, a folder begun otherwise, a damaged file in it, or a disk that is full.
    """
    camera, path = camera or Camera(), path or Path()
    if (camera.height, camera.width) != DVS128:
        raise ValueError(f"AEDAT 2.0 files are written for 128x128 pixels, got {camera.height}x{camera.width}")
    of_class = [np.flatnonzero(labels == c) for c in range(len(class_names))]
    for name, found in zip(class_names, of_class, strict=True):
        if not 1 <= per_class <= len(found):
            raise UserError(f"simulate: {per_class} recordings of each class are asked for, and class {name} has "
                            f"{len(found)} images; ask for at least one and at most that many")
    _begin(folder, class_names, {"seed": seed, "camera": asdict(camera), "path": asdict(path)})
    say = tell or (lambda _: None)
    total = per_class * len(class_names)
    say(f"{folder}: {total} recordings, some {8e-9 * total * PUBLISHED_COUNT:.1f} GB")

    def all_recordings() -> Iterator[Events]:
        for c, name in enumerate(class_names):
            for k, index in enumerate(of_class[c][:per_class]):
                generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(c, k)))
                yield _recording(folder / name / f"cifar10_{name}_{k}.aedat", images[index], camera, path, generator)
            say(f"{name}: {per_class} recordings ({c + 1} of {len(class_names)} classes)")

    written = statistics(all_recordings())
    say(written.beside_published())
    return written


def _recording(file: FilePath, image: Array, camera: Camera, path: Path, generator: np.random.Generator) -> Events:
    """The recording in `file`, which is simulated and written if it is not there."""
    if file.exists():
        return read_aedat2(file)
    events = simulate(image, camera, path, generator)
    if len(events) == 0:
        raise UserError(f"{file}: the image makes no event, and a file without one is refused; lower the camera's "
                        "threshold or give it noise")
    write_aedat2(file, events)
    return events


def _begin(folder: FilePath, class_names: tuple[str, ...], made_by: dict[str, Any]) -> None:
    """Make the folders, and write down what makes their recordings; refuse one whose recordings are made otherwise."""
    note = folder / NOTE
    wanted = json.dumps({"what": "simulated by refsnn: not the recordings of CIFAR10-DVS", **made_by}, indent=2) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if note.exists():
            if note.read_text(encoding="utf-8", errors="replace") != wanted:
                raise UserError(f"{note}: this folder was begun with another seed, camera or path; choose another one")
        elif any(folder.glob("*/*.aedat")):
            raise UserError(f"{folder}: has recordings but no {NOTE}, so they may be real ones; choose another folder")
        else:
            write_whole(note, wanted.encode())
        for name in class_names:
            (folder / name).mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
