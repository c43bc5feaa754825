"""CIFAR-10 and CIFAR-100 from their official files, in either version.

    binary version   cifar-10-batches-bin/data_batch_1.bin ...    records of label, 3072 pixels
                     cifar-100-binary/train.bin, test.bin         records of coarse label, fine label, 3072 pixels
    python version   cifar-10-batches-py/data_batch_1 ...         a pickled dictionary: data (n, 3072), labels
                     cifar-100-python/train, test                 a pickled dictionary: data, fine_labels, coarse_labels

A label is a byte; the 3072 pixels are the red, the green, the blue plane of 32 rows of 32. The binary version is taken
where both are there. The pickles are read by `unpickle`, which calls nothing.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; the format, from the page of the data.
"""

import functools
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn.datasets import unpickle
from refsnn.errors import UserError

Array = npt.NDArray[Any]

PIXELS = 3 * 32 * 32
# A pickle holds a pixel in one byte, or in two where Python 3 wrote it with protocol 2, and a name beside each image.
MAX_PICKLE_BYTES_PER_IMAGE = 2 * PIXELS + 200

Statistics = tuple[tuple[float, ...], tuple[float, ...]]

# Mean and deviation of each channel, of pixels in [0, 1]. "training": over all pixels of the training set. "tet": what
# the loaders that go with Deng et al., ICLR 2022, and many others have; the deviations 0.2023, 0.1994, 0.2010 of
# CIFAR-10 are the mean over images of the deviation within one.
STATISTICS: dict[str, dict[str, Statistics]] = {
    "cifar10": {
        "tet": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        "training": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    },
    "cifar100": {
        "tet": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
        "training": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    },
}

NAMES = {
    "CIFAR-10": "airplane automobile bird cat deer dog frog horse ship truck",
    "CIFAR-100, fine":
        "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can "
        "castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin "
        "elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster "
        "man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck "
        "pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk "
        "skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger "
        "tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm",
    "CIFAR-100, coarse":
        "aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices "
        "household_furniture insects large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes "
        "large_omnivores_and_herbivores medium_mammals non-insect_invertebrates people reptiles small_mammals trees "
        "vehicles_1 vehicles_2",
}
CLASSES = {name: tuple(words.split()) for name, words in NAMES.items()}


@dataclass(frozen=True)
class Labels:
    """One kind of label: its byte in a binary record, its key in a pickle, the names of its classes."""

    byte: int
    key: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """The official files of a data set.

    train, test: name of each file, without the suffix .bin of the binary version, and how many images it holds.
    digests: of each file, as hexadecimal text; SHA-1 of the binary version, MD5 of the python version.
    content: SHA-256 of the labels, then the pixels, of the training images, then of the test images, a byte each.
    """

    title: str
    archive: str
    binary: str
    python: str
    train: dict[str, int]
    test: dict[str, int]
    labels: dict[str, Labels]
    digests: dict[str, str]
    content: str | None


@dataclass(frozen=True)
class CifarArrays:
    """x_train, x_test (n, 3, 32, 32) uint8;  y_train, y_test (n,) int64 in 0..K-1;  classes: their K names."""

    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Files:
    """The files that are there: of which data set, in which folder, of which version (suffix .bin, or none)."""

    layout: Layout
    folder: Path
    suffix: str

    def path(self, stem: str) -> Path:
        """One of them."""
        return self.folder / (stem + self.suffix)


# ------------------------------------------------------------------------------------------------------ finding files
def find_folder(name: str, roots: list[Path]) -> Path:
    """The folder of a data set's files: the official folder in one of these, or one of these itself; the first.

    name: "cifar10" or "cifar100".   A folder counts if it has any of the files; `read` names those that are missing.
    Raises UserError that lists the places looked at and the files wanted.
    """
    return _find(name, roots).folder


def _find(name: str, roots: list[Path]) -> Files:
    layout = SETS[name]
    stems, versions = (*layout.train, *layout.test), ((layout.binary, ".bin"), (layout.python, ""))
    for root in roots:
        for official, suffix in versions:
            for folder in (root / official, root):
                if any(os.path.isfile(folder / (stem + suffix)) for stem in stems):
                    return Files(layout, folder, suffix)
    wanted = " nor ".join(f"{folder}/ with {', '.join(stem + suffix for stem in stems)}" for folder, suffix in versions)
    looked = ", ".join(str(root) for root in roots)
    remedy = f"unpack {layout.archive} in one of these, or name its folder in data.path or REFSNN_DATA"
    raise UserError(f"data set {name}: found neither {wanted}; looked in {looked}; {remedy}")


# ------------------------------------------------------------------------------------------------------------- reading
def read(
    name: str, folder: Path, *, labels: str = "fine", train_samples: int = 0, test_samples: int = 0
) -> CifarArrays:
    """Training and test images of a data set, in the order of its files.

    | Parameter     | Default | Meaning                                                                                |
    |---------------|---------|----------------------------------------------------------------------------------------|
    | name          |         | "cifar10" or "cifar100"                                                                |
    | folder        |         | holds the official folder, or the files                                                |
    | labels        | "fine"  | "coarse": the 20 classes of cifar100                                                   |
    | train_samples | 0       | the first n images, of files that may hold fewer than published; 0: all, of full files |
    | test_samples  | 0       | the same of the test set                                                               |

    Raises UserError for files that are missing, unreadable, of another length, or no CIFAR files.
    """
    files = _find(name, [folder])
    if labels not in files.layout.labels:
        kinds = " or ".join(files.layout.labels)
        raise UserError(f"data.labels = {labels}: {files.layout.title} has no such labels; choose {kinds}")
    x_train, y_train = _read_part(files, files.layout.train, labels, train_samples, "data.train_samples")
    x_test, y_test = _read_part(files, files.layout.test, labels, test_samples, "data.test_samples")
    return CifarArrays(x_train, y_train, x_test, y_test, files.layout.labels[labels].classes)


def _read_part(files: Files, part: dict[str, int], kind: str, samples: int, key: str) -> tuple[Array, Array]:
    """The first `samples` images, (n, 3, 32, 32), and their labels, (n,), of the training or the test set; 0: all.

    key: what the user calls `samples`.   Files that no image is wanted of are not opened.
    """
    published = sum(part.values())
    if not 0 <= samples <= published:
        title = files.layout.title
        raise UserError(f"{key} = {samples}: {title} has {published:,} such images; choose at most that, 0 for all")
    total, filled = samples or published, 0
    x, y = np.empty((total, PIXELS), np.uint8), np.empty(total, np.int64)
    for stem, count in part.items():
        if filled < total:
            read_file = _read_binary if files.suffix else _read_pickle
            pixels, labels = read_file(files.path(stem), files.layout, count, "" if samples else key)
            n = min(len(pixels), total - filled)
            x[filled : filled + n], y[filled : filled + n] = pixels[:n], labels[kind][:n]
            filled += n
    if filled < total:
        names = ", ".join(files.path(stem).name for stem in part)
        raise UserError(f"{files.folder}: {key} = {samples}, but there are {filled:,} images in {names}; "
                        f"lower {key}, or unpack the whole data set")
    return x.reshape(-1, 3, 32, 32), y


def _read_binary(file: Path, layout: Layout, count: int, whole: str) -> tuple[Array, dict[str, Array]]:
    """Pixels (n, 3072) and labels (n,) of each kind, of a file of the binary version.

    count: images that were published in it.
    whole: the key by which the user would ask for a part of it; "" if that is done, and the file may hold fewer.
    """
    head = len(layout.labels)
    size, record = _size(file), head + PIXELS
    if size % record or not (size == count * record if whole else 0 < size <= count * record):
        wanted = f"{count * record:,}: {count:,}" if whole else f"a multiple of {record:,}, at most {count:,}"
        raise UserError(f"{file}: has {size:,} bytes, expected {wanted} records of {record:,} bytes; {_remedy(whole)}")
    try:
        records = np.fromfile(file, np.uint8, size).reshape(-1, record)
    except (OSError, ValueError) as error:      # ValueError: it was cut short meanwhile
        raise _unreadable(file, error) from None
    labels = {kind: records[:, label.byte] for kind, label in layout.labels.items()}
    _check_labels(file, layout, labels)
    return records[:, head:], labels


def _read_pickle(file: Path, layout: Layout, count: int, whole: str) -> tuple[Array, dict[str, Array]]:
    """Pixels (n, 3072) and labels (n,) of each kind, of a file of the python version; arguments as `_read_binary`."""
    size, limit = _size(file), count * MAX_PICKLE_BYTES_PER_IMAGE
    if size > limit:
        raise UserError(f"{file}: has {size:,} bytes, {count:,} images take at most {limit:,}; this is no CIFAR file")
    try:
        stored = unpickle.load(file)
    except OSError as error:
        raise _unreadable(file, error) from None
    pixels = stored.get("data")
    if not (isinstance(pixels, np.ndarray) and pixels.shape[1] == PIXELS):
        raise UserError(f"{file}: 'data' is no array (n, {PIXELS}) of uint8; this is no CIFAR file")
    n = len(pixels)
    if not (n == count if whole else n <= count):
        raise UserError(f"{file}: has {n:,} images, expected {'' if whole else 'at most '}{count:,}; {_remedy(whole)}")
    labels = {kind: _label_list(file, stored, label.key, n) for kind, label in layout.labels.items()}
    _check_labels(file, layout, labels)
    return pixels, labels


def _label_list(file: Path, stored: dict[str, Any], key: str, n: int) -> Array:
    """A pickled list of n labels as an array of bytes."""
    found = stored.get(key)
    if not (isinstance(found, list) and len(found) == n and all(type(one) is int and 0 <= one < 256 for one in found)):
        raise UserError(f"{file}: '{key}' is no list of {n:,} whole numbers 0..255; this is no CIFAR file")
    return np.array(found, np.uint8)


def _check_labels(file: Path, layout: Layout, labels: dict[str, Array]) -> None:
    """Refuse labels beyond the last class."""
    for kind, values in labels.items():
        last = len(layout.labels[kind].classes) - 1
        beyond = np.flatnonzero(values > last)
        if len(beyond):
            first = beyond[0]
            raise UserError(f"{file}: image {first:,}, counted from 0, has the {kind} label {values[first]}; "
                            f"{layout.title} has 0..{last}; this is another file, or it is damaged: {_remedy('')}")


def _size(file: Path) -> int:
    """Bytes of a regular file.   Raises UserError where it is none."""
    try:
        status = file.stat()
    except FileNotFoundError:
        raise UserError(f"{file}: no such file, but others of the data set are there; {_remedy('')}") from None
    except OSError as error:
        raise _unreadable(file, error) from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{file}: is not a regular file; {_remedy('')}")
    return status.st_size


def _remedy(key: str) -> str:
    return "unpack the archive of the data set again" + (f", or use the first n images: {key} = n" if key else "")


def _unreadable(file: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or error
    return UserError(f"{file}: cannot be read: {reason}; check the file and its permissions")


# ------------------------------------------------------------------------------------------------------------ checking
def check(name: str, folder: Path) -> tuple[list[str], bool]:
    """Compare the files of a data set with the published ones: a line on each finding, and whether all is well.

    1  every file has the published digest: MD5 of the python version, SHA-1 of the binary version
    2  everything can be read: lengths, structure, range of labels
    3  there are equally many images of each class
    4  labels and pixels have the SHA-256 of the published ones, the same for both versions (CIFAR-10)

    Raises UserError where there is no file of the data set at all.   Sources of the digests: see `SETS`.
    """
    files = _find(name, [folder])
    layout, version = files.layout, "binary" if files.suffix else "python"
    findings = [(f"{files.folder}: the {version} version of {layout.title}", True)]
    findings += [_check_digest(files, stem) for stem in (*layout.train, *layout.test)]
    try:
        arrays = {kind: read(name, files.folder, labels=kind) for kind in layout.labels}
        findings += [finding for kind, found in arrays.items() for finding in _check_balance(found, kind)]
        findings.append(_check_content(arrays["fine"], layout))
    except UserError as error:
        findings.append((str(error), False))
    return [line for line, _ in findings], all(good for _, good in findings)


def _check_digest(files: Files, stem: str) -> tuple[str, bool]:
    """Whether a file has the published digest."""
    file, algorithm = files.path(stem), "SHA-1" if files.suffix else "MD5"
    published = files.layout.digests[file.name]
    try:
        with file.open("rb") as stream:
            new = functools.partial(hashlib.new, algorithm.replace("-", "").lower(), usedforsecurity=False)
            found = hashlib.file_digest(stream, new).hexdigest()
    except OSError as error:
        return str(_unreadable(file, error)), False
    if found == published:
        return f"{file.name}: {algorithm} as published", True
    return f"{file.name}: {algorithm} is {found}, published is {published}; {_remedy('')}", False


def _check_balance(arrays: CifarArrays, kind: str) -> list[tuple[str, bool]]:
    """Whether there are equally many images of each class."""
    findings = []
    for part, labels in (("training", arrays.y_train), ("test", arrays.y_test)):
        counts = np.bincount(labels, minlength=len(arrays.classes))
        even = bool(counts.min() == counts.max())
        each = f"{counts.min():,}" if even else f"{counts.min():,} to {counts.max():,}, not equally many,"
        findings.append((f"{len(labels):,} {part} images, {each} of each of the {len(counts)} {kind} classes", even))
    return findings


def _check_content(arrays: CifarArrays, layout: Layout) -> tuple[str, bool]:
    """Whether labels and pixels are the published ones."""
    if layout.content is None:
        return "labels and pixels: no SHA-256 of theirs is known; the digests of the files decide", True
    if content(arrays) == layout.content:
        return "labels and pixels: SHA-256 as of the published ones", True
    return f"labels and pixels: their SHA-256 is not that of the published ones; {_remedy('')}", False


def content(arrays: CifarArrays) -> str:
    """SHA-256 of the labels, then the pixels, of the training images, then of the test images, a byte each."""
    digest = hashlib.sha256()
    for x, y in ((arrays.x_train, arrays.y_train), (arrays.x_test, arrays.y_test)):
        digest.update(y.astype(np.uint8).tobytes())
        digest.update(np.ascontiguousarray(x).data)
    return digest.hexdigest()


# Digests: MD5 of the python version as torchvision has them, SHA-1 of the binary version as Apache MXNet has them.
SETS: dict[str, Layout] = {
    "cifar10": Layout(
        title="CIFAR-10", archive="cifar-10-binary.tar.gz", binary="cifar-10-batches-bin", python="cifar-10-batches-py",
        train={f"data_batch_{i}": 10_000 for i in range(1, 6)}, test={"test_batch": 10_000},
        labels={"fine": Labels(0, "labels", CLASSES["CIFAR-10"])},
        digests={
            "data_batch_1.bin": "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
            "data_batch_2.bin": "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
            "data_batch_3.bin": "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
            "data_batch_4.bin": "aab85764eb3584312d3c7f65fd2fd016e36a258e",
            "data_batch_5.bin": "26e2849e66a845b7f1e4614ae70f4889ae604628",
            "test_batch.bin": "67eb016db431130d61cd03c7ad570b013799c88c",
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
        content="0986e276e9a4dec8e941838372dcbefcbeb082320f292968919ddc5b333e15d7",
    ),
    "cifar100": Layout(
        title="CIFAR-100", archive="cifar-100-binary.tar.gz", binary="cifar-100-binary", python="cifar-100-python",
        train={"train": 50_000}, test={"test": 10_000},
        labels={"fine": Labels(1, "fine_labels", CLASSES["CIFAR-100, fine"]),
                "coarse": Labels(0, "coarse_labels", CLASSES["CIFAR-100, coarse"])},
        digests={
            "train.bin": "e207cd2e05b73b1393c74c7f5e7bea451d63e08e",
            "test.bin": "8fb6623e830365ff53cf14adec797474f5478006",
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        },
        content=None,
    ),
}
