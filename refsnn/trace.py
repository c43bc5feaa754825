"""Records: every intermediate of a step in execution order, and how records are kept in HDF5.

A record is a name, a kind, and an array. Inside the program arrays are features first, samples last; a record is
written as all frameworks have it, (T, B, C, H, W). The kinds say how two records are compared:

    real    floating-point numbers           spikes  0 or 1           mask    connected or not
    count   integers                         index   places           rng     what was drawn at random

A file of records has the attribute `format = "refsnn-trace/1"` and one dataset a record, with the attributes `seq`
(execution order) and `kind`. Files are written whole or not at all. A checkpoint is a trace of one moment.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from refsnn.errors import UserError

Array = npt.NDArray[Any]
FORMAT = "refsnn-trace/1"
KINDS = ("real", "spikes", "mask", "count", "index", "rng")
MAX_BYTES = 16 << 30        # a file that claims more is refused before anything is allocated


@dataclass(frozen=True)
class Record:
    """One intermediate: its name ("forward/lif1/h"), kind, and value in the order (T, B, ...)."""

    name: str
    kind: str
    value: Array


class Recorder:
    """Collects records in execution order; `prefix` is put before every name ("step_0000/")."""

    active = True

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.prefix = ""

    def samples(self, name: str, value: Array, kind: str = "real") -> None:
        """Record an activation (..., T, B) as (T, B, ...)."""
        self.value(name, np.moveaxis(value, (-2, -1), (0, 1)), kind)

    def value(self, name: str, value: Any, kind: str = "real") -> None:
        """Record an array or number as it is; the recorder keeps a copy."""
        if kind not in KINDS:
            raise ValueError(f"record {name}: kind must be one of {', '.join(KINDS)}, got {kind!r}")
        self.records.append(Record(self.prefix + name, kind, np.array(value)))


class _NoRecord:
    """Records nothing."""

    active = False

    def samples(self, name: str, value: Array, kind: str = "real") -> None:
        """Do nothing."""

    def value(self, name: str, value: Any, kind: str = "real") -> None:
        """Do nothing."""


NO_RECORD = _NoRecord()


def write(path: Path, records: list[Record], attributes: Mapping[str, Any]) -> None:
    """Write records and file attributes to an HDF5 file, whole or not at all.

    The file is built beside its final place, flushed to the disk and renamed over it, so that at any moment `path`
    is either the old file or the new one. Raises UserError where it cannot be written; the old file is then intact.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with h5py.File(str(partial), "w") as file:
            file.attrs["format"] = FORMAT
            for key, value in attributes.items():
                file.attrs[key] = value
            for seq, record in enumerate(records):
                dataset = file.create_dataset(record.name, data=record.value, track_times=False)
                dataset.attrs["seq"], dataset.attrs["kind"] = seq, record.kind
        replace_durably(partial, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({_reason(error)}); free space or choose another --out") from error
    finally:
        partial.unlink(missing_ok=True)


def replace_durably(partial: Path, path: Path) -> None:
    """Rename a finished file over `path` after its bytes have reached the disk."""
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def read(path: Path) -> tuple[dict[str, Record], dict[str, Any]]:
    """Read a file of records: the records by name in execution order, and the file's attributes.

    Raises UserError for a file that is missing, damaged, of another format, or that claims more than it can hold.
    """
    try:
        with h5py.File(str(path), "r") as file:
            attributes = dict(file.attrs)
            if attributes.get("format") != FORMAT:
                raise UserError(f"{path}: is no {FORMAT} file; give a file written by refsnn")
            found: list[tuple[int, Record]] = []
            _check_size(path, file)
            for name, dataset in _datasets(file):
                found.append(_record(name, dataset))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{path}: damaged, or no HDF5 file ({_reason(error)})") from error
    return {record.name: record for _, record in sorted(found, key=lambda pair: pair[0])}, attributes


def _check_size(path: Path, file: h5py.File) -> None:
    claimed = sum(dataset.size * dataset.dtype.itemsize for _, dataset in _datasets(file))
    if claimed > MAX_BYTES:
        raise UserError(f"{path}: claims {claimed:,} bytes of records, more than the limit of {MAX_BYTES:,}")


def _datasets(file: h5py.File) -> list[tuple[str, h5py.Dataset]]:
    """Every dataset of a file by its path; links that lead out of the file or in circles are not followed."""
    found: list[tuple[str, h5py.Dataset]] = []
    file.visititems(lambda name, item: found.append((name, item)) if isinstance(item, h5py.Dataset) else None)
    return found


def _record(name: str, dataset: h5py.Dataset) -> tuple[int, Record]:
    if dataset.dtype.kind not in "fiub":
        raise ValueError(f"record {name} holds {dataset.dtype}, not numbers")
    return int(np.asarray(dataset.attrs["seq"])), Record(name, str(dataset.attrs["kind"]), np.asarray(dataset[()]))


def _reason(error: BaseException) -> str:
    """The first line of an error, for a message of one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
