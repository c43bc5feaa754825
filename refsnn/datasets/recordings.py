"""Folders of recordings as CIFAR10-DVS and N-MNIST are distributed, and the splits of CIFAR10-DVS by name."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from refsnn.datasets.events import DVS128, NMNIST, Events, read_aedat2, read_nmnist
from refsnn.errors import UserError

Array = npt.NDArray[Any]

CIFAR10DVS_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class Recordings:
    """Files of recordings with their labels, in an order that does not depend on the file system.

    Field, Shape
      root     folder that the names start from
      names    n paths relative to `root`, with slashes
      labels   (n,) int64
      sensor   height, width in pixels
    """

    root: Path
    names: tuple[str, ...]
    labels: Array
    sensor: tuple[int, int]

    def __len__(self) -> int:
        return len(self.names)

    def path(self, k: int) -> Path:
        """The file of recording k."""
        return self.root / self.names[k]

    def read(self, k: int, convention: str) -> Events:
        """The events of recording k; the convention is that of `read_aedat2`, N-MNIST knows only one."""
        path = self.path(k)
        return read_aedat2(path, convention) if path.suffix == ".aedat" else read_nmnist(path)

    def chosen(self, mask: Array) -> "Recordings":
        """Those where the mask (n,) is true."""
        names = tuple(name for name, taken in zip(self.names, mask, strict=True) if taken)
        return Recordings(self.root, names, self.labels[mask], self.sensor)


def list_cifar10dvs(root: Path) -> Recordings:
    """CIFAR10-DVS in `root`, its ten archives unpacked: `<class>/cifar10_<class>_<number>.aedat`, 1,000 of each class.

    Order: by class, airplane 0 .. truck 9, then by number. A part of the files will do, if no class is empty.
    Raises UserError for a missing folder, a class without recordings, and an .aedat file of another name.
    """
    listed = []
    for name in CIFAR10DVS_CLASSES:
        pattern = re.compile(rf"cifar10_{name}_(0|[1-9][0-9]*)\.aedat")
        files = _files(root / name, ".aedat", pattern, f"cifar10_{name}_0.aedat, cifar10_{name}_1.aedat, ...")
        listed.append(sorted(files, key=_number))
    return _recordings(root, CIFAR10DVS_CLASSES, listed, DVS128)


def list_nmnist(root: Path, part: Literal["Train", "Test"]) -> Recordings:
    """N-MNIST in `root`, its two archives unpacked: `Train/<digit>/<number>.bin` or `Test/...`.

    Order: by digit, then by name, which is that of MNIST's own numbers: they have five figures. A part of the files
    will do, if no digit is empty.
    Raises UserError for a missing folder, a digit without recordings, and a .bin file of another name.
    """
    pattern = re.compile(r"[0-9]+\.bin")
    listed = [sorted(_files(root / part / digit, ".bin", pattern, "00001.bin, ...")) for digit in DIGITS]
    return _recordings(root, tuple(f"{part}/{digit}" for digit in DIGITS), listed, NMNIST)


def _files(folder: Path, suffix: str, pattern: re.Pattern[str], expected: str) -> list[str]:
    """The names of a folder's recordings; names that begin with a dot are the file system's own."""
    try:
        found = [path.name for path in folder.iterdir() if path.suffix == suffix and not path.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{folder}: no such folder ({error.strerror}); unpack the archives so that it holds "
                        f"{expected}") from error
    for name in sorted(found):
        if not pattern.fullmatch(name):
            raise UserError(f"{folder / name}: is not named like a recording of this class, {expected}; rename it or "
                            "take it out of the folder")
    if not found:
        raise UserError(f"{folder}: holds no recording; looked for {expected}; unpack the archives again")
    return found


def _number(name: str) -> int:
    """7 of cifar10_cat_7.aedat."""
    return int(Path(name).stem.rpartition("_")[2])


def _recordings(root: Path, folders: tuple[str, ...], listed: list[list[str]], sensor: tuple[int, int]) -> Recordings:
    """One list of all classes."""
    names = tuple(f"{folder}/{name}" for folder, files in zip(folders, listed, strict=True) for name in files)
    return Recordings(root, names, np.repeat(np.arange(len(listed)), [len(files) for files in listed]), sensor)


# ------------------------------------------------------------------------------------------------ splits of CIFAR10-DVS
def _test_spikingjelly(recordings: Recordings) -> Array:
    """The last tenth of each class in the order of its names as text: _0, _1, _10, _100, _101 ... _999.

    Of n recordings of a class the first ceil(9 n / 10) are for training: 900 of 1,000.
    Source: SpikingJelly, split_to_train_test_set(0.9, CIFAR10DVS(...), 10).
    """
    test = np.zeros(len(recordings), bool)
    for label in range(len(CIFAR10DVS_CLASSES)):
        members = np.flatnonzero(recordings.labels == label)
        as_text = members[np.argsort([recordings.names[k] for k in members], kind="stable")]
        test[as_text[-(-9 * len(members) // 10):]] = True
    return test


def _test_tebn(recordings: Recordings) -> Array:
    """The numbers below a tenth of all numbers: 0..99 of 0..999, of each class.

    All numbers: from 0 to the largest that occurs.
    Source: Duan et al., NeurIPS 2022 (TEBN); SpikingJelly, CIFAR10DVSTEBNSplit.
    """
    numbers = np.array([_number(name) for name in recordings.names])
    return 10 * numbers < numbers.max() + 1


# name -> recordings of all classes -> bool (n,), True for testing
SPLITS: dict[str, Callable[[Recordings], Array]] = {"spikingjelly": _test_spikingjelly, "tebn": _test_tebn}


def split_cifar10dvs(recordings: Recordings, split: str) -> tuple[Recordings, Recordings]:
    """Part CIFAR10-DVS, which comes without a split, into training and test recordings, by one of SPLITS.

    Raises UserError where a class is left without training or without test recordings.
    """
    test = SPLITS[split](recordings)
    for part, mask in (("training", ~test), ("test", test)):
        counts = np.bincount(recordings.labels[mask], minlength=len(CIFAR10DVS_CLASSES))
        if counts.min() == 0:
            name = CIFAR10DVS_CLASSES[int(counts.argmin())]
            raise UserError(f"{recordings.root / name}: the split {split} leaves no {part} recording of this class; "
                            "unpack more of it, at least 10, numbered from 0")
    return recordings.chosen(~test), recordings.chosen(test)
