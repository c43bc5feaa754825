"""CIFAR-10 and CIFAR-100 from their official files, in either version.

    binary version   cifar-10-batches-bin/data_batch_1.bin ...    records of label, 3072 pixels
                     cifar-100-binary/train.bin, test.bin         records of coarse label, fine label, 3072 pixels
    python version   cifar-10-batches-py/data_batch_1 ...         a pickled dictionary: data (n, 3072), labels
                     cifar-100-python/train, test                 a pickled dictionary: data, fine_labels, coarse_labels

A label is a byte; the 3072 pixels are the red, the green, the blue plane of 32 rows of 32. The binary version is taken
where both are there. The pickles are read by `unpickle`, which calls nothing.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; the format, from the page of the data.
"""

import hashlib
import os
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

# Mean and deviation of each channel over the training set, of pixels in [0, 1]. The deviations 0.2023, 0.1994, 0.2010
# that are often given for CIFAR-10 are another thing: the mean over images of the deviation within one.
STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}

CIFAR10_CLASSES = tuple(["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"])
FINE_CLASSES = tuple(
    ["apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm"]
)
COARSE_CLASSES = tuple(
    ["aquatic_mammals", "fish", "flowers", "food_containers", "fruit_and_vegetables", "household_electrical_devices", "household_furniture", "insects", "large_carnivores", "large_man-made_outdoor_things", "large_natural_outdoor_scenes", "large_omnivores_and_herbivores", "medium_mammals", "non-insect_invertebrates", "people", "reptiles", "small_mammals", "trees", "vehicles_1", "vehicles_2"]
)


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


# ------------------------------------------------------------------------------------------------------ finding files
def find_folder(name: str, roots: list[Path]) -> Path:
    """The first of these folders that holds files of the data set, or its official folder.

    name: "cifar10" or "cifar100".   Raises UserError that lists the places looked at and the files wanted.
    """
    layout = SETS[name]
    for root in roots:
        if _version(layout, root) is not None:
            return root
    wanted = [f"{folder}/ with {', '.join(stem + suffix for stem in (*layout.train, *layout.test))}"
              for folder, suffix in _versions(layout)]
    raise UserError(f"data set {name}: found neither {' nor '.join(wanted)}; looked in "
                    f"{', '.join(str(root) for root in roots)}; unpack the archive that data/{name}/README.md names there, "
                    "or set REFSNN_DATA to the folder that contains it")


def _versions(layout: Layout) -> tuple[tuple[str, str], tuple[str, str]]:
    """Folder and suffix of the binary and of the python version."""
    return (layout.binary, ".bin"), (layout.python, "")


def _version(layout: Layout, root: Path) -> tuple[Path, str] | None:
    """The folder that holds files of the data set, and their suffix; a missing file is named when it is read."""
    for folder, suffix in _versions(layout):
        for place in (root / folder, root):
            if any(os.path.isfile(place / (stem + suffix)) for stem in (*layout.train, *layout.test)):
                return place, suffix
    return None


# ------------------------------------------------------------------------------------------------------------- reading
def read(
    name: str, folder: Path, *, labels: str = "fine", train_samples: int = 0, test_samples: int = 0
) -> CifarArrays:
    """Training and test images of a data set, in the order of its files.

    | Parameter     | Default | Meaning                                                                                    |
    |---------------|---------|--------------------------------------------------------------------------------------------|
    | name          |         | "cifar10" or "cifar100"                                                                    |
    | folder        |         | holds the official folder, or its files                                                    |
    | labels        | "fine"  | "coarse": the 20 classes of cifar100                                                       |
    | train_samples | 0       | the first n images, of files that may hold fewer than published; 0: all, of complete files |
    | test_samples  | 0       | the same of the test set                                                                   |

    Raises UserError for files that are missing, unreadable, of another length, or no CIFAR files.
    """
    layout = SETS[name]
    if labels not in layout.labels:
        raise UserError(f"data.labels = {labels}: {layout.title} has only {' and '.join(layout.labels)} labels")
    where = _version(layout, find_folder(name, [folder]))
    assert where is not None
    x_train, y_train = _read_part(layout, layout.train, where, labels, train_samples, "data.train_samples")
    x_test, y_test = _read_part(layout, layout.test, where, labels, test_samples, "data.test_samples")
    return CifarArrays(x_train, y_train, x_test, y_test, layout.labels[labels].classes)


def _read_part(
    layout: Layout, files: dict[str, int], where: tuple[Path, str], kind: str, samples: int, key: str
) -> tuple[Array, Array]:
    """The first `samples` images, (n, 3, 32, 32), and their labels, (n,), of some files; 0: all, of complete ones.

    key: what the user calls `samples`.   Files that no image is wanted of are not opened.
    """
    published, (folder, suffix) = sum(files.values()), where
    if not 0 <= samples <= published:
        raise UserError(f"{key} = {samples}: {layout.title} has {published:,} such images; choose 0 (all) or fewer")
    total, filled = samples or published, 0
    x, y = np.empty((total, PIXELS), np.uint8), np.empty(total, np.int64)
    for stem, count in files.items():
        if filled < total:
            read_file = _read_binary if suffix else _read_pickle
            pixels, labels = read_file(folder / (stem + suffix), layout, count, bool(samples), key)
            n = min(len(pixels), total - filled)
            x[filled : filled + n], y[filled : filled + n] = pixels[:n], labels[kind][:n]
            filled += n
    if filled < total:
        raise UserError(f"{folder}: {key} = {samples}, but {', '.join(stem + suffix for stem in files)} "
                        f"hold{'s' if len(files) == 1 else ''} {filled:,} images; lower {key} or get the whole data set")
    return x.reshape(-1, 3, 32, 32), y


def _size(file: Path) -> int:
    """Bytes of a regular file.   Raises UserError where it is none."""
    try:
        if file.exists() and not file.is_file():
            raise UserError(f"{file}: is not a regular file; unpack the archive of the data set again")
        return file.stat().st_size
    except FileNotFoundError:
        raise UserError(f"{file}: no such file, but others of the data set are there; unpack its archive again") from None
    except OSError as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: OSError) -> UserError:
    return UserError(f"{file}: cannot be read: {error.strerror or error}; check the file and its permissions")


def _read_binary(
    file: Path, layout: Layout, count: int, part: bool, key: str
) -> tuple[Array, dict[str, Array]]:
    """Pixels (n, 3072) and labels (n,) of each kind of a file of the binary version.

    count: images that were published in it.   part: whether the file may hold fewer.
    """
    head = len(layout.labels)
    size, record = _size(file), head + PIXELS
    if size % record or not (0 < size <= count * record if part else size == count * record):
        wanted = f"a whole number of records, at most {count:,}" if part else f"{count * record:,} bytes, {count:,} records"
        remedy = "unpack the archive of the data set again" + ("" if part else f", or use a part of it with {key}")
        raise UserError(f"{file}: has {size:,} bytes, expected {wanted} of {record:,} bytes each; {remedy}")
    try:
        records = np.fromfile(file, np.uint8, size)
    except OSError as error:
        raise _unreadable(file, error) from None
    if len(records) != size:
        raise UserError(f"{file}: {len(records):,} of {size:,} bytes could be read; try again")
    records = records.reshape(-1, record)
    labels = {kind: records[:, label.byte] for kind, label in layout.labels.items()}
    _check_labels(file, layout, labels)
    return records[:, head:], labels


def _read_pickle(
    file: Path, layout: Layout, count: int, part: bool, key: str
) -> tuple[Array, dict[str, Array]]:
    """Pixels (n, 3072) and labels (n,) of each kind of a file of the python version; arguments as `_read_binary`."""
    size, limit = _size(file), count * MAX_PICKLE_BYTES_PER_IMAGE
    if size > limit:
        raise UserError(f"{file}: has {size:,} bytes, more than {count:,} images take ({limit:,}); this is no CIFAR file")
    try:
        stored = unpickle.load(file)
    except OSError as error:
        raise _unreadable(file, error) from None
    pixels = stored.get("data")
    if not (isinstance(pixels, np.ndarray) and pixels.ndim == 2 and pixels.shape[1] == PIXELS):
        raise UserError(f"{file}: 'data' is no array of images, (n, {PIXELS}) of uint8; this is no CIFAR file")
    n = len(pixels)
    if not (0 < n <= count if part else n == count):
        remedy = "unpack the archive of the data set again" + ("" if part else f", or use a part of it with {key}")
        raise UserError(f"{file}: has {n:,} images, expected {'1 to ' if part else ''}{count:,}; {remedy}")
    labels = {kind: _label_list(file, stored, label.key, n) for kind, label in layout.labels.items()}
    _check_labels(file, layout, labels)
    return pixels, labels


def _label_list(file: Path, stored: dict[str, Any], key: str, n: int) -> Array:
    """A pickled list of n labels as an array."""
    found = stored.get(key)
    if not (isinstance(found, list) and len(found) == n and all(type(label) is int for label in found)):
        raise UserError(f"{file}: '{key}' is no list of {n:,} whole numbers; this is no CIFAR file")
    return np.array([min(max(label, -1), 256) for label in found], np.int64)    # no label is beyond, and int64 holds these


def _check_labels(file: Path, layout: Layout, labels: dict[str, Array]) -> None:
    """Refuse labels beyond the last class."""
    for kind, values in labels.items():
        classes = len(layout.labels[kind].classes)
        bad = np.flatnonzero((values < 0) | (values >= classes))
        if len(bad):
            raise UserError(f"{file}: image {bad[0]:,} (from 0) has the {kind} label {values[bad[0]]}, {layout.title} has "
                            f"0..{classes - 1}; this is no file of {layout.title}, or it is damaged: unpack it again")


# ------------------------------------------------------------------------------------------------------------ checking
def check(name: str, folder: Path) -> tuple[list[str], bool]:
    """Compare the files of a data set with the published ones: what was found, a line each, and whether all is well.

    1  the digest of every file: MD5 of the python version (as its archive's users check it, torchvision), SHA-1 of the
       binary version (Apache MXNet)
    2  lengths, structure and range of labels: by reading everything
    3  labels: equally many of each class
    4  content: SHA-256 of all labels and pixels, the same for both versions of CIFAR-10

    Raises UserError where there is no file of the data set at all.
    """
    layout = SETS[name]
    where = _version(layout, find_folder(name, [folder]))
    assert where is not None
    place, suffix = where
    algorithm = "SHA-1" if suffix else "MD5"
    lines, well = [f"{place}: {'binary' if suffix else 'python'} version of {layout.title}"], True
    for stem in (*layout.train, *layout.test):
        line, good = _check_digest(place / (stem + suffix), algorithm, layout.digests[stem + suffix])
        lines, well = [*lines, line], well and good
    try:
        arrays = {kind: read(name, folder, labels=kind) for kind in layout.labels}
    except UserError as error:
        return [*lines, str(error)], False
    for kind, found in arrays.items():
        for part, labels in (("training", found.y_train), ("test", found.y_test)):
            counts = np.bincount(labels, minlength=len(found.classes))
            good = counts.min() == counts.max()
            each = f"{counts.min():,}" + ("" if good else f" to {counts.max():,}, not equally many,")
            lines.append(f"{len(labels):,} {part} images, {each} of each of {len(counts)} {kind} classes")
            well = well and bool(good)
    if layout.content is not None:
        good = content(arrays["fine"]) == layout.content
        lines.append("labels and pixels: SHA-256 " + ("as of the published images" if good else "differs from that of the "
                                                      "published images; unpack the archive again"))
        well = well and good
    return lines, well


def content(arrays: CifarArrays) -> str:
    """SHA-256 of the labels, then the pixels, of the training images, then of the test images, a byte each."""
    digest = hashlib.sha256()
    for x, y in ((arrays.x_train, arrays.y_train), (arrays.x_test, arrays.y_test)):
        digest.update(y.astype(np.uint8).tobytes())
        digest.update(np.ascontiguousarray(x))
    return digest.hexdigest()


def _check_digest(file: Path, algorithm: str, published: str) -> tuple[str, bool]:
    """One line on the digest of a file, and whether it is the published one."""
    try:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, lambda: hashlib.new(algorithm.replace("-", ""), usedforsecurity=False))
    except OSError as error:
        return str(_unreadable(file, error)), False
    if found.hexdigest() == published:
        return f"{file.name}: {algorithm} as published", True
    return f"{file.name}: {algorithm} is {found.hexdigest()}, published {published}; unpack the archive again", False


SETS: dict[str, Layout] = {
    "cifar10": Layout(
        title="CIFAR-10", binary="cifar-10-batches-bin", python="cifar-10-batches-py",
        train={f"data_batch_{i}": 10_000 for i in range(1, 6)}, test={"test_batch": 10_000},
        labels={"fine": Labels(0, "labels", CIFAR10_CLASSES)},
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
        content="?",
    ),
    "cifar100": Layout(
        title="CIFAR-100", binary="cifar-100-binary", python="cifar-100-python",
        train={"train": 50_000}, test={"test": 10_000},
        labels={"fine": Labels(1, "fine_labels", FINE_CLASSES), "coarse": Labels(0, "coarse_labels", COARSE_CLASSES)},
        digests={
            "train.bin": "e207cd2e05b73b1393c74c7f5e7bea451d63e08e",
            "test.bin": "8fb6623e830365ff53cf14adec797474f5478006",
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        },
        content=None,
    ),
}
