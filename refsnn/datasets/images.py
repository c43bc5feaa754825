"""Small image data sets: the embedded UCI digits, and anyone's arrays in an npz file.

A data set whose files are not named by the user is looked for in `$REFSNN_DATA/NAME`, then in `data/NAME` of a clone of
the repository, then in the installed package. The first folder that holds the files is used.
"""

import hashlib
import os
import zipfile
import zlib
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn.datasets.samples import Dataset, InMemory, stratified
from refsnn.errors import UserError

Array = npt.NDArray[Any]

DIGITS_SHA256 = "aa64e930663d6e9271e1566601d65e70236553f73ec6cb041a4ab37167cf1d04"
ARRAYS = ("x", "y", "x_test", "y_test")
MAX_BYTES = 8 << 30  # of an npz file's images as float32: larger ones are refused before anything is allocated
# What zipfile, zlib and NumPy's reader of headers raise for bytes that were never written by `numpy.savez`.
DAMAGED = (
    OSError, ValueError, TypeError, RuntimeError, SyntaxError, EOFError, TokenError, zlib.error, zipfile.BadZipFile
)  # fmt: skip


# ---------------------------------------------------------------------------------------------------- finding files
def places(name: str) -> list[Path]:
    """The folders in which a data set is looked for, in order."""
    package = Path(__file__).resolve().parents[1]
    own = [Path(os.environ["REFSNN_DATA"]).expanduser()] if os.environ.get("REFSNN_DATA") else []
    return [root / name for root in (*own, package.parent / "data", package / "data")]


def roots(name: str, path: str) -> list[Path]:
    """The folders in which the official files of a data set are looked for: the one given, or all `places`."""
    return [Path(path).expanduser()] if path else [where for place in places(name) for where in (place, place.parent)]


def first_with(name: str, folders: list[Path], parts: tuple[str, ...]) -> Path:
    """The first of some folders that has all these folders in it.   Raises UserError that lists where it looked."""
    for folder in folders:
        if all((folder / part).is_dir() for part in parts):
            return folder
    looked = ", ".join(dict.fromkeys(str(folder) for folder in folders))
    raise UserError(f"data set {name}: no folder has {', '.join(parts)} in it; looked in {looked}; unpack it there, "
                    "or set data.path to its folder")


def find(name: str, files: tuple[str, ...]) -> Path:
    """The first folder that holds all files of a data set.   Raises UserError that lists every place looked at."""
    for folder in places(name):
        if all((folder / file).is_file() for file in files):
            return folder
    looked = ", ".join(str(folder) for folder in places(name))
    remedy = "put them in one of these folders, or set REFSNN_DATA to the folder that contains " + name
    raise UserError(f"data set {name}: no folder has {' and '.join(files)}; looked in {looked}; {remedy}")


# ---------------------------------------------------------------------------------------------------- digits
def digits() -> Dataset:
    """The UCI optical digits: 1,797 images of 8x8 pixels, 10 classes; 1,437 to train, 360 to test.

    x (n, 1, 8, 8) in [0, 1]: the original counts 0..16, divided by 16.   The split: data/digits/test_indices.txt.
    Raises UserError where the files are missing or are not the published ones.
    Source: Alpaydin and Kaynak, 1998, doi 10.24432/C50P49, CC BY 4.0.
    """
    folder = find("digits", ("digits.npz", "test_indices.txt"))
    file = folder / "digits.npz"
    if hashlib.sha256(file.read_bytes()).hexdigest() != DIGITS_SHA256:
        raise UserError(f"{file}: is not the published file (its SHA-256 differs); restore it from the repository")
    with np.load(file, allow_pickle=False) as arrays:
        x = arrays["images"][:, np.newaxis].astype(np.float32) / np.float32(16)
        y = arrays["labels"].astype(np.int64)
    test = _read_indices(folder / "test_indices.txt", len(y))
    return Dataset("digits", InMemory(x[~test], y[~test]), InMemory(x[test], y[test]), 10)


def _read_indices(file: Path, n: int) -> Array:
    """A file of sorted zero-based indices, one a line, `#` for comments, as a bool mask (n,)."""
    try:
        lines = [line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines()]
        indices = np.array([int(line) for line in lines if line], np.int64)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not a list of indices: {error}; restore it from the repository") from None
    if len(indices) == 0 or indices[0] < 0 or indices[-1] >= n or np.any(np.diff(indices) <= 0):
        raise UserError(f"{file}: needs increasing indices in 0..{n - 1}; restore it from the repository")
    mask = np.zeros(n, bool)
    mask[indices] = True
    return mask


# ---------------------------------------------------------------------------------------------------- anyone's arrays
def npz(path: str, test_share: float, generator: np.random.Generator) -> Dataset:
    """Anyone's images or frames: an npz file with arrays x, y, and x_test, y_test where the split is given.

    x: (n, H, W), (n, C, H, W) or (n, T, C, H, W).   uint8 is divided by 255, bool becomes 0 and 1, floating point is
    taken as it is; other types are refused, for their scale cannot be known.
    y: (n,) integers, the classes 0..K-1, none of them empty.

    | Parameter  | Default | Unit | Meaning                                                       |
    |------------|---------|------|---------------------------------------------------------------|
    | path       |         |      | the file, as written by `numpy.savez`; `~` is the home folder |
    | test_share |         | 1    | drawn per class where the file has no x_test, y_test          |
    | generator  |         |      | decides which samples are drawn                               |

    Raises UserError, one line, for whatever is wrong with the file.
    """
    file = Path(path).expanduser()
    names = _check_headers(file)
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in names}
    except DAMAGED as error:
        raise _unreadable(file, error) from None
    x, *x_test = (_images(arrays.pop(name), f"{file}: {name}") for name in names if name.startswith("x"))
    y, *y_test = (_integers(arrays[name], f"{file}: {name}") for name in names if name.startswith("y"))
    labels = np.concatenate([y, *y_test])
    _check_labels(labels, file)
    classes = int(labels.max()) + 1
    if x_test:
        if x.shape[1:] != x_test[0].shape[1:]:
            raise UserError(f"{file}: a sample of x is {x.shape[1:]}, of x_test {x_test[0].shape[1:]}; make them equal")
        return Dataset(file.stem, InMemory(x, y), InMemory(x_test[0], y_test[0]), classes)
    test = stratified(y, test_share, generator)
    if not test.any():
        raise UserError(f"{file}: a test share of {test_share} of {len(y)} samples is none; raise data.test_share")
    return Dataset(file.stem, InMemory(x[~test], y[~test]), InMemory(x[test], y[test]), classes)


def _unreadable(file: Path, error: BaseException) -> UserError:
    return UserError(f"{file}: not a readable npz file: {' '.join(str(error).split()) or type(error).__name__}")


def _check_headers(file: Path) -> list[str]:
    """The names of the arrays; types, shapes and sizes are checked by the headers, before anything is allocated."""
    try:
        with zipfile.ZipFile(file) as archive:
            stored = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            headers = {name: _read_header(archive, f"{name}.npy") for name in ARRAYS if name in stored}
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; data.path must name an npz file with arrays x and y") from None
    except DAMAGED as error:
        raise _unreadable(file, error) from None
    if list(headers) not in (list(ARRAYS[:2]), list(ARRAYS)):
        found = ", ".join(sorted(stored)) or "none"
        raise UserError(f"{file}: needs the arrays x and y, and both or neither of x_test and y_test; it has: {found}")
    for name, (shape, dtype) in headers.items():
        _check_header(name, shape, dtype, file)
    for suffix in ("", "_test") if len(headers) == 4 else ("",):
        samples, labels = headers["x" + suffix][0][0], headers["y" + suffix][0][0]
        if samples != labels:
            raise UserError(f"{file}: x{suffix} has {samples} samples and y{suffix} has {labels} labels")
    return list(headers)


def _read_header(archive: zipfile.ZipFile, member: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array in a zip file. Version 3 of the format, for named fields, is read as damaged."""
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    return shape, dtype


def _check_header(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], file: Path) -> None:
    """Refuse an array of the wrong type or shape, and one that is too large."""
    shown = f"{file}: {name} has type {dtype} and shape {shape}"
    if any(length < 0 for length in shape):
        raise UserError(f"{shown}; no length can be negative")
    size, is_image = 1, name.startswith("x")
    for length in shape:
        size *= length  # in Python's integers: a product of lengths in a damaged header may exceed 64 bits
    if is_image and not (dtype == np.uint8 or dtype == np.bool_ or dtype.kind == "f"):
        raise UserError(f"{shown}; images are uint8 (divided by 255), bool, or floating point scaled as you want it")
    if not is_image and dtype.kind not in "iu":
        raise UserError(f"{shown}; labels are integers 0..K-1")
    if len(shape) not in ((3, 4, 5) if is_image else (1,)):
        wanted = "(n, H, W), (n, C, H, W) or (n, T, C, H, W)" if is_image else "(n,)"
        raise UserError(f"{shown}; the shape must be {wanted}")
    if size == 0:
        raise UserError(f"{shown}; it is empty")
    if size * max(dtype.itemsize, 4) > MAX_BYTES:
        raise UserError(f"{shown}, above the limit of {MAX_BYTES >> 30} GiB; use a part of it")


def _images(x: Array, place: str) -> Array:
    """Images as float32 of (n, C, H, W) or (n, T, C, H, W)."""
    if x.ndim == 3:
        x = x[:, np.newaxis]
    with np.errstate(over="ignore"):  # found and named below
        scaled = x.astype(np.float32, order="C")
    if x.dtype == np.uint8:
        scaled /= np.float32(255)
    if not np.isfinite(scaled).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(scaled))[0])
        raise UserError(f"{place}: not finite as float32 at {where}; remove NaN, infinite and huge values")
    return scaled


def _integers(y: Array, place: str) -> Array:
    """Labels as int64; what int64 cannot hold is no label."""
    if y.dtype == np.uint64 and y.max() > np.iinfo(np.int64).max:
        raise UserError(f"{place}: {y.max()} is no label; labels are integers 0..K-1")
    return y.astype(np.int64)


def _check_labels(labels: Array, file: Path) -> None:
    """Refuse labels that are not 0..K-1 with each class present: ones that start at 1, and stray numbers, are found."""
    if labels.min() < 0:
        raise UserError(f"{file}: y has the negative label {labels.min()}; labels are integers 0..K-1")
    present = np.unique(labels)
    if len(present) < 2 or present[-1] != len(present) - 1:
        absent = int(np.flatnonzero(np.append(present, -1) != np.arange(len(present) + 1))[0])
        why = f"no sample has label {absent}, the largest label is {present[-1]}"
        raise UserError(f"{file}: {why}; labels are integers 0..K-1, K at least 2, each with at least one sample")
