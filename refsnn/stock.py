"""What data there is: the data sets that were found, whether their files are sound, and recordings made from images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from refsnn.config import loads
from refsnn.datasets import cifar, event_folder, images
from refsnn.errors import UserError

PUBLISHED = {"cifar10dvs": "1,000 recordings of each class", "nmnist": "60,000 training and 10,000 test recordings"}
ABOUT = {
    "digits": "1,797 images of 8x8 pixels, part of the package",
    "cifar10": "60,000 images of 32x32 pixels, 10 classes",
    "cifar100": "60,000 images of 32x32 pixels, 100 classes, 20 coarse ones",
    "cifar10dvs": "10,000 recordings of a 128x128 event camera, 10 classes",
    "nmnist": "70,000 recordings of a 34x34 event camera, 10 classes",
}
EVENTS = ("cifar10dvs", "nmnist")


def folder_of(name: str, path: str) -> Path:
    """The folder that a data set is read from; raises UserError that says where it was looked for, and for a name."""
    if name == "digits":
        return images.find("digits", ("digits.npz", "test_indices.txt"))
    if name in EVENTS:
        return event_folder(loads("", [f"data.name={name}", f"data.path={path}"]))
    if name not in ABOUT:
        raise UserError(f"{name}: no such data set; there are {', '.join(ABOUT)}")
    return cifar.find_folder(name, images.roots(name, path))


def line(name: str, path: str) -> str:
    """A data set, and where it was found, or what is looked for."""
    try:
        return f"{name}: {ABOUT[name]}; in {folder_of(name, path)}"
    except UserError as error:
        return f"{name}: {ABOUT[name]}; not found: {str(error).removeprefix(f'data set {name}: ')}"


def listing() -> list[str]:
    """Every data set: see `line`."""
    return [line(name, "") for name in ABOUT]


def check(name: str, path: str) -> tuple[list[str], bool]:
    """What was found out about the files of a data set, line by line, and whether all is well."""
    folder = folder_of(name, path)
    if name == "digits":
        images.digits()
        return [f"{folder}: SHA-256 as published"], True
    if name not in EVENTS:
        return cifar.check(name, folder)
    return _check_recordings(name, folder)


def _check_recordings(name: str, folder: Path) -> tuple[list[str], bool]:
    """Read every recording; a line for each that cannot be read, then counts of recordings and events."""
    from refsnn.datasets import recordings

    listed = ([recordings.list_cifar10dvs(folder)] if name == "cifar10dvs" else
              [recordings.list_nmnist(folder, part) for part in ("Train", "Test")])
    lines, bad, events = [f"{folder}: published are {PUBLISHED[name]}; no digests of single files are"], 0, 0
    for part in listed:
        for k in range(len(part)):
            try:
                events += len(part.read(k, "spikingjelly"))
            except UserError as error:
                lines.append(str(error))
                bad += 1
        counts = np.bincount(part.labels, minlength=10)
        lines.append(f"{len(part):,} recordings, {counts.min():,} to {counts.max():,} of a class")
    lines.append(f"{events:,} events; {bad or 'no'} recording{'s' * (bad != 1)} cannot be read")
    return lines, bad == 0


def simulate(source: str, path: str, per_class: int, seed: int, out: Path, tell: Callable[[str], None]) -> None:
    """Write event recordings of a CIFAR set's training images, in the layout of CIFAR10-DVS; see `write_folder`."""
    from refsnn.datasets.simulate import write_folder

    arrays = cifar.read(source, folder_of(source, path))
    write_folder(arrays.x_train, arrays.y_train, arrays.classes, out, per_class, seed, tell=tell)
