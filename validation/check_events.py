"""Event files, frames and their sizes: refsnn against SpikingJelly, tonic, PyTorch, torchvision and Pillow.

    python validation/check_events.py           well under a minute

Recordings of CIFAR10-DVS are made here, byte by byte and at random; those of N-MNIST are read from $REFSNN_DATA/nmnist
or from $REFSNN_DATA itself (folders Train and Test), as many as there are, and are otherwise made, too. Events, counts,
splits and bytes must be equal. Frames in another size are float32 and are held to 1e-6 of PyTorch's float64; method
"tet" gives bytes, which must be Pillow's.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import EXACT, Array, Skip, Table, Worst, main, need, unequal

from refsnn.datasets.events import Events, read_aedat2, read_nmnist, write_aedat2
from refsnn.datasets.frames import frames
from refsnn.datasets.recordings import CIFAR10DVS_CLASSES, Recordings, list_cifar10dvs, list_nmnist, split_cifar10dvs
from refsnn.datasets.resize import WEIGHTS, resize
from refsnn.datasets.simulate import write_folder
from refsnn.errors import UserError

RECORDINGS = 20             # that are made
ROUNDED = 1e-6              # float32 against float64
SIZES = [((128, 128), (48, 48)), ((34, 34), (20, 16)), ((34, 34), (48, 48)), ((37, 21), (9, 30))]


def check(table: Table) -> None:
    """Every comparison."""
    peer: Any = need("torch", "peers.event_files")[-1]
    try:
        need("tonic")
        tonic = True
    except Skip as reason:
        table.note(f"without tonic's rows: {reason}")
        tonic = False
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        recordings = check_aedat(table, peer, tonic, Path(folder), rng)
        recordings += check_nmnist(table, peer, tonic, Path(folder), rng)
        check_simulated(table, peer, Path(folder) / "simulated", rng)
    check_frames(table, peer, tonic, recordings)
    check_splits(table, peer)
    check_sizes(table, peer, rng)


def columns(events: Events) -> dict[str, Array]:
    """Events as the frameworks hold them."""
    return {name: getattr(events, name).astype(np.int64) for name in "xytp"}


def differing(events: Events, found: dict[str, Array]) -> int:
    """How many entries of x, y, t, p differ."""
    return sum(unequal(value, np.asarray(found[name], np.int64)) for name, value in columns(events).items())


def aedat(path: Path, address: Array, time: Array) -> str:
    """Write an AEDAT 2.0 file without refsnn; SpikingJelly takes a header beyond ASCII for events."""
    pairs = np.stack([address, time], axis=1).astype(">u4")
    path.write_bytes(b"#!AER-DAT2.0\r\n# This is a raw AE data file\r\n#\r\n" + pairs.tobytes())
    return str(path)


def check_aedat(table: Table, peer: Any, tonic: bool, folder: Path, rng: np.random.Generator) -> list[Events]:
    """Readers and writer of CIFAR10-DVS."""
    reading, writing, raw, special, seen = Worst(), Worst(), Worst(), Worst(), []
    for k in range(RECORDINGS):
        n = int(rng.integers(1000, 20_000))
        address, time = rng.integers(0, 1 << 15, n), np.sort(rng.integers(0, 1_300_000, n))
        path = aedat(folder / f"{k}.aedat", address, time)
        events = read_aedat2(Path(path))
        reading.count(differing(events, peer.spikingjelly_aedat(path)), 4 * n)
        write_aedat2(folder / "again.aedat", events)
        writing.count(differing(events, peer.spikingjelly_aedat(str(folder / "again.aedat"))), 4 * n)
        if tonic:
            a, t = peer.tonic_addresses(path)
            found = {"x": (a >> 8) & 0x7F, "y": (a >> 1) & 0x7F, "p": a & 1, "t": t}    # as in its read_dvs_128
            raw.count(differing(read_aedat2(Path(path), "tonic"), found), 4 * n)
        pins = rng.random(n) < 0.01
        path = aedat(folder / "pins.aedat", np.where(pins, address | 0x8000, address), time)
        kept = peer.spikingjelly_aedat(path)
        special.count(differing(read_aedat2(Path(path)), {name: kept[name][~pins] for name in "xytp"}), 4 * n)
        seen.append(events)
    reading.report(table, "CIFAR10-DVS, read by both, convention spikingjelly: x, y, t, p", EXACT)
    writing.report(table, "CIFAR10-DVS, written by refsnn, read by SpikingJelly", EXACT)
    special.report(table, "events of the input pin, which SpikingJelly keeps: the others", EXACT)
    if tonic:
        raw.report(table, "CIFAR10-DVS, tonic's addresses and times, convention tonic", EXACT)
    return seen


def check_simulated(table: Table, peer: Any, folder: Path, rng: np.random.Generator) -> None:
    """A folder that the simulator wrote, one recording of each class."""
    reading, images = Worst(), rng.integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)
    write_folder(images, np.arange(10), CIFAR10DVS_CLASSES, folder, per_class=1, seed=0)
    recordings = list_cifar10dvs(folder)
    for k in range(len(recordings)):
        events = recordings.read(k, "spikingjelly")
        reading.count(differing(events, peer.spikingjelly_aedat(str(recordings.path(k)))), 4 * len(events))
    reading.report(table, "simulated recordings, read by both: x, y, t, p", EXACT)


def nmnist_files(folder: Path, rng: np.random.Generator) -> tuple[str, Iterable[Path]]:
    """Real recordings where there are some."""
    root = Path(os.environ.get("REFSNN_DATA", ""))
    for place in (root / "nmnist", root / "N-MNIST", root) if os.environ.get("REFSNN_DATA") else ():
        try:
            parts = [list_nmnist(place, "Train"), list_nmnist(place, "Test")]
        except UserError:
            continue
        return "published", [part.path(k) for part in parts for k in range(len(part))]
    return "made here", made_nmnist(folder, rng)


def made_nmnist(folder: Path, rng: np.random.Generator) -> Iterator[Path]:
    """Recordings in the format of N-MNIST."""
    for k in range(RECORDINGS):
        n = int(rng.integers(1000, 8000))
        time = np.sort(rng.integers(0, 310_000, n))
        stored = np.zeros((n, 5), np.uint8)
        stored[:, :2] = rng.integers(0, 34, (n, 2))
        stored[:, 2] = rng.integers(0, 2, n) << 7 | time >> 16
        stored[:, 3], stored[:, 4] = time >> 8 & 255, time & 255
        path = folder / f"{k}.bin"
        path.write_bytes(stored.tobytes())
        yield path


def check_nmnist(table: Table, peer: Any, tonic: bool, folder: Path, rng: np.random.Generator) -> list[Events]:
    """Readers of N-MNIST."""
    first, second, seen, number = Worst(), Worst(), [], 0
    origin, files = nmnist_files(folder, rng)
    for path in files:
        events = read_nmnist(path)
        first.count(differing(events, peer.spikingjelly_nmnist(str(path))), 4 * len(events))
        if tonic:
            second.count(differing(events, peer.tonic_nmnist(str(path))), 4 * len(events))
        if number < RECORDINGS:
            seen.append(events)
        number += 1
    first.report(table, f"N-MNIST, {number} recordings {origin}, SpikingJelly: x, y, t, p", EXACT)
    if tonic:
        second.report(table, f"N-MNIST, {number} recordings {origin}, tonic: x, y, t, p", EXACT)
    return seen


def check_frames(table: Table, peer: Any, tonic: bool, recordings: list[Events]) -> None:
    """Counts of the same recordings, both ways to cut, both remainders."""
    for by in ("number", "time"):
        last, dropped = Worst(), Worst()
        for events in recordings:
            for steps in (1, 4, 7, 10):
                theirs = peer.spikingjelly_frames(columns(events), steps, by, events.height, events.width)
                last.count(unequal(frames(events, steps, by), theirs), theirs.size)
                if tonic:
                    theirs = peer.tonic_frames(columns(events), steps, by, events.height, events.width)
                    dropped.count(unequal(frames(events, steps, by, "drop"), theirs), theirs.size)
        last.report(table, f"frames by {by}, remainder last: SpikingJelly", EXACT)
        if tonic:
            dropped.report(table, f"frames by {by}, remainder drop: tonic's ToFrame", EXACT)


def check_splits(table: Table, peer: Any) -> None:
    """The named splits of CIFAR10-DVS, whole and in part."""
    worst, numbered = Worst(), Worst()
    for n in (1000, 100, 37, 10):
        names = tuple(f"{c}/cifar10_{c}_{k}.aedat" for c in CIFAR10DVS_CLASSES for k in range(n))
        all_of_them = Recordings(Path(), names, np.repeat(np.arange(10), n), (128, 128))
        parts = split_cifar10dvs(all_of_them, "spikingjelly")
        for c in CIFAR10DVS_CLASSES:
            theirs = peer.spikingjelly_split([f"{c}/cifar10_{c}_{k}.aedat" for k in range(n)], 0.9)
            for mine, other in zip(parts, theirs, strict=True):
                worst.count(len({name for name in mine.names if name.startswith(c)} ^ set(other)), len(other))
        if n == 1000:       # CIFAR10DVSTEBNSplit: 0-99 of each class are test files
            test = {f"{c}/cifar10_{c}_{k}.aedat" for c in CIFAR10DVS_CLASSES for k in range(100)}
            numbered.count(len(set(split_cifar10dvs(all_of_them, "tebn")[1].names) ^ test), len(test))
    worst.report(table, "split spikingjelly: split_to_train_test_set(0.9, ...)", EXACT)
    numbered.report(table, "split tebn: numbers 0-99 of 1,000", EXACT)


def check_sizes(table: Table, peer: Any, rng: np.random.Generator) -> None:
    """Other sizes: matrices against interpolation, and the way over an image."""
    for method in WEIGHTS:
        worst = Worst()
        for old, new in SIZES:
            for mean in (0.1, 3.0):
                x = rng.poisson(mean, (10, 2, *old)).astype(np.uint16)
                worst.see(resize(x, new, method), peer.interpolated(x, new, method))
        worst.report(table, f"resize {method}: torch interpolate, float64", ROUNDED)
    tensor, image = Worst(), Worst()
    for old, new in SIZES:
        x = rng.poisson(0.5, (10, 2, *old)).astype(np.uint16)
        tensor.see(resize(x, new, "antialias"), peer.resized_tensor(x, new))
    for old, new in SIZES[:3]:          # both directions shrink, or both grow
        for mean in (0.02, 0.1, 0.5, 5.0, 300.0):
            x = rng.poisson(mean, (10, 2, *old)).astype(np.uint16)
            image.count(unequal(resize(x, new, "tet"), peer.resized_image(x, new)), x.size)
    tensor.report(table, "resize antialias: torchvision Resize of a tensor, float32", 1e-5)
    image.report(table, "resize tet: ToPILImage, Resize, ToTensor with Pillow, bits", EXACT)


if __name__ == "__main__":
    packages = ("torch", "torchvision", "spikingjelly", "tonic", "pillow")
    main("refsnn against readers of events and makers of frames", packages, check)
