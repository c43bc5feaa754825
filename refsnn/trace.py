"""Records: every intermediate of a step in execution order, and how records are kept in HDF5.

A record is a name, a kind, and an array. Inside the program arrays are features first, samples last; a record is
written as all frameworks have it, (T, B, C, H, W). The kinds say how two records are compared:

    real    floating-point numbers           spikes  0 or 1           mask    connected or not
    count   integers                         index   places           rng     what was drawn at random

A file of records has the attribute `format = "refsnn-trace/1"` and one dataset a record, with the attributes `seq`
(execution order) and `kind`. Files are written whole or not at all. A checkpoint is a trace of one moment.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Self, cast

import h5py
import numpy as np
import numpy.typing as npt

from refsnn.disk import Disk, partial_of, replace_durably
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

    def begin_step(self, step: int) -> None:
        """Put the number of an optimiser step before every name from now on."""
        self.prefix = f"step_{step:04d}/"

    def samples(self, name: str, value: Array, kind: str = "real") -> None:
        """Record an activation (..., T, B) as (T, B, ...)."""
        self.value(name, np.moveaxis(value, (-2, -1), (0, 1)), kind)

    def value(self, name: str, value: Any, kind: str = "real") -> None:
        """Record an array or number as it is; the recorder keeps a copy."""
        if kind not in KINDS:
            raise ValueError(f"record {name}: kind must be one of {', '.join(KINDS)}, got {kind!r}")
        self.keep(Record(self.prefix + name, kind, np.asarray(value)))

    def keep(self, record: Record) -> None:
        """Keep a copy of a record."""
        self.records.append(Record(record.name, record.kind, record.value.copy()))


class _NoRecord:
    """Records nothing."""

    active = False

    def begin_step(self, step: int) -> None:
        """Do nothing."""

    def samples(self, name: str, value: Array, kind: str = "real") -> None:
        """Do nothing."""

    def value(self, name: str, value: Any, kind: str = "real") -> None:
        """Do nothing."""


NO_RECORD = _NoRecord()


class FileRecorder(Recorder):
    """Writes each record to an HDF5 file as it comes, so that memory does not grow with the steps.

        with FileRecorder(path, attributes, only=("forward/conv1/*",)) as rec: ...

    | Parameter  | Default | Meaning                                                                        |
    |------------|---------|--------------------------------------------------------------------------------|
    | attributes |         | of the file, besides `format`                                                  |
    | only       | ()      | patterns of the names to keep, matched with and without their step; (): all.   |
    |            |         | `*` stands for anything, slashes too, `?` for one character, [ab] for a or b   |
    | look       | None    | is called with each record that was kept                                       |

    The file appears at `path` when the block ends, whole; where the block raises, or the process dies, whatever was
    at `path` before stays as it was. Raises UserError where the file cannot be written, and at the end of the block
    where a pattern matched no record.
    """

    def __init__(self, path: Path, attributes: Mapping[str, Any], only: Sequence[str] = (),
                 look: Callable[[Record], None] | None = None) -> None:
        super().__init__()
        self.only, self.look = tuple(only), look
        self.matched: set[str] = set()
        self.seen: set[str] = set()         # names without their step: few, however long the run
        self.file = _PartialFile(path, attributes)

    @property
    def count(self) -> int:
        """Records written so far."""
        return self.file.count

    def keep(self, record: Record) -> None:
        """Write the record if it is asked for."""
        name = record.name.removeprefix(self.prefix)
        self.seen.add(name)
        matching = {pattern for pattern in self.only if fnmatchcase(record.name, pattern) or fnmatchcase(name, pattern)}
        self.matched |= matching
        if matching or not self.only:
            self.file.put(record)
            if self.look is not None:
                self.look(record)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        idle = [pattern for pattern in self.only if pattern not in self.matched]
        if kind is not None or idle:
            self.file.discard()
        if kind is not None:
            return
        if idle:
            nearest = get_close_matches(idle[0].rpartition("*/")[2], sorted(self.seen), n=3, cutoff=0.0)
            raise UserError(f"--only {idle[0]}: no record has such a name; nearest: {', '.join(nearest)}")
        self.file.finish()


class _PartialFile:
    """A file of records under construction beside its place."""

    def __init__(self, path: Path, attributes: Mapping[str, Any]) -> None:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; --out must name a file")
        self.path, self.partial = path, partial_of(path)
        self.count = 0
        try:
            self.disk = Disk(self.partial, "w+b")
        except OSError as error:
            raise self._failure(error) from error
        self.file = h5py.File(cast(Any, self.disk), "w")
        try:
            for key, value in {"format": FORMAT, **attributes}.items():
                self.file.attrs[key] = value
        except BaseException:
            self.discard()
            raise

    def put(self, record: Record) -> None:
        """Append a record."""
        dataset = self.file.create_dataset(record.name, data=record.value, track_times=False)
        dataset.attrs["seq"], dataset.attrs["kind"] = self.count, record.kind
        self.count += 1
        self._check()

    def finish(self) -> None:
        """Put the file in its place."""
        self._close()
        self._check()
        try:
            self.disk.close()
            replace_durably(self.partial, self.path)
        except OSError as error:
            raise self._failure(error) from error

    def discard(self) -> None:
        """Leave nothing behind."""
        self._close()
        self.disk.close()
        self.partial.unlink(missing_ok=True)

    def _close(self) -> None:
        try:
            self.file.close()
        except (OSError, RuntimeError) as error:        # where HDF5 misses what a full disk dropped
            self.disk.error = self.disk.error or error

    def _check(self) -> None:
        """Raise what went wrong in writing, if anything did."""
        if self.disk.error is not None:
            self.discard()
            raise self._failure(self.disk.error) from self.disk.error

    def _failure(self, error: BaseException) -> BaseException:
        """A line for the user from the disk's complaint, after which nothing of the file is left."""
        self.partial.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            return error
        why = f"cannot be written ({error.strerror}); free space or choose another --out"
        return UserError(f"{self.path}: {why}")


def write(path: Path, records: list[Record], attributes: Mapping[str, Any]) -> None:
    """Write records and file attributes to an HDF5 file, whole or not at all.

    The file is built beside its final place, flushed to the disk and renamed over it, so that at any moment `path`
    is either the old file or the new one. Raises UserError where it cannot be written; the old file is then intact.
    """
    with FileRecorder(path, attributes) as rec:
        for record in records:
            rec.keep(record)


def read(path: Path) -> tuple[dict[str, Record], dict[str, Any]]:
    """Read a file of records: the records by name in execution order, and the file's attributes.

    For files of one's own. HDF5 may spin or crash on a file that is damaged or made to harm: read what comes from
    elsewhere with `safe_read.read`. Raises UserError for a file that is missing, damaged, of another format, or that
    claims more than it can hold.
    """
    try:
        with h5py.File(str(path), "r") as file:
            attributes = {name: text_of(value) for name, value in file.attrs.items()}
            if str(attributes.get("format")) != FORMAT:
                raise UserError(f"{path}: is no {FORMAT} file; give a file written by refsnn")
            datasets = _datasets(file)
            claimed = sum(claimed_bytes(dataset) for _, dataset in datasets)
            if claimed > MAX_BYTES:
                raise UserError(f"{path}: claims {claimed:,} bytes of records, more than the limit of {MAX_BYTES:,}")
            found = [_record(name, dataset) for name, dataset in datasets]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{path}: damaged, or no HDF5 file ({_reason(error)})") from error
    return {record.name: record for _, record in sorted(found, key=lambda pair: pair[0])}, attributes


def text_of(value: Any) -> Any:
    """An attribute's value; text of fixed length, which h5py hands out as bytes, as text."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def claimed_bytes(dataset: h5py.Dataset) -> int:
    """What a dataset claims to hold, an axis of length 0 counted as 1."""
    return math.prod(max(1, n) for n in dataset.shape) * dataset.dtype.itemsize


def _datasets(file: h5py.File) -> list[tuple[str, h5py.Dataset]]:
    """Every dataset of a file by its path; links that lead out of the file or in circles are not followed."""
    found: list[tuple[str, h5py.Dataset]] = []
    file.visititems(lambda name, item: found.append((name, item)) if isinstance(item, h5py.Dataset) else None)
    return found


def _record(name: str, dataset: h5py.Dataset) -> tuple[int, Record]:
    if dataset.dtype.kind not in "fiub":
        raise ValueError(f"record {name} holds {dataset.dtype}, not numbers")
    seq, kind = (text_of(dataset.attrs[attribute]) for attribute in ("seq", "kind"))
    return int(np.asarray(seq)), Record(name, str(kind), np.asarray(dataset[()]))


def _reason(error: BaseException) -> str:
    """The first line of an error, for a message of one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
