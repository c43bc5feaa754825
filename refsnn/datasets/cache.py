"""Frames of recordings, computed once, kept in an HDF5 file, and read from it batch by batch.

    <folder>/<name>-<key>.h5      frames   (n, T, 2, h, w)   uint16 counts, or float32 where they are resized
                                  labels   (n,) int64
                                  attributes: format, key, settings, and complete = True, which is written last

The key is a hash of everything that the frames depend on: the settings, and name, label and content of every
recording. To hash contents all recordings must be read (16 GB of CIFAR10-DVS); so the hash of a folder is remembered in
`<name>-<stamp>.sha256`, whose stamp is of the size and the time of the last change of every recording: the next start
of a program asks for 10,000 entries of a folder only. Nothing is ever deleted but what an interrupted program left.

A file is built under another name in the same folder and renamed when it is whole, so that there is no moment at which
a part of it could be used. Two programs that need the same frames at the same time both build them, and the last to be
done renames over the first, which had the same content. So nobody waits for a program that may have died.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import h5py
import numpy as np
import numpy.typing as npt

from refsnn.datasets.events import bytes_of
from refsnn.datasets.frames import frames
from refsnn.datasets.recordings import Recordings
from refsnn.datasets.resize import resize
from refsnn.disk import Disk, partial_of, replace_durably, write_whole
from refsnn.errors import UserError

LOCKS: Any = None
with suppress(ImportError):     # on Windows, where a file that is open cannot be deleted anyway
    import fcntl
    LOCKS = fcntl

Array = npt.NDArray[Any]
Tell = Callable[[int, int], None]
HDF5: Any = h5py            # type stubs know only a part of it

FORMAT = "refsnn-frames/1"
FILTERS = [HDF5.h5z.FILTER_SHUFFLE, HDF5.h5z.FILTER_DEFLATE, HDF5.h5z.FILTER_FLETCHER32]


@dataclass(frozen=True)
class FrameSettings:
    """How recordings become frames.

    | Field              | Default        | Unit   | Meaning                                     |
    |--------------------|----------------|--------|---------------------------------------------|
    | steps              |                | 1      | T: see `frames`                             |
    | by, remainder      | number, last   |        | see `frames`                                |
    | size               | None           | pixels | h, w of the frames; None: as recorded       |
    | method             | "antialias"    |        | see `resize`                                |
    | convention         | "spikingjelly" |        | see `read_aedat2`; without meaning for .bin |
    """

    steps: int
    by: Literal["number", "time"] = "number"
    remainder: Literal["last", "drop"] = "last"
    size: tuple[int, int] | None = None
    method: str = "antialias"
    convention: str = "spikingjelly"

    def frames_of(self, recordings: Recordings, k: int) -> Array:
        """Recording k as (T, 2, h, w), uint16 or, resized, float32."""
        events = recordings.read(k, self.convention)
        try:
            counts = frames(events, self.steps, self.by, self.remainder)
        except UserError as error:
            raise UserError(f"{recordings.path(k)}: {error}") from None
        return counts if self.size is None else resize(counts, self.size, self.method)


class FrameSamples:
    """Samples whose frames stay in their file: a batch reads no more than what it gives out (see `Samples`)."""

    def __init__(self, path: Path, labels: Array) -> None:
        self.path = path
        self._labels = labels
        self._frames: Any = None            # the file is opened when the first batch is asked for

    @property
    def labels(self) -> Array:
        """(n,) int64."""
        return self._labels

    def __len__(self) -> int:
        return len(self._labels)

    def batch(self, chosen: Array, epoch: int) -> Array:  # noqa: ARG002
        """The frames of the chosen samples (B,), in this order: (B, T, 2, h, w) float32.

        Raises UserError where the file is damaged or gone.
        """
        indices = np.arange(len(self))[chosen]
        try:
            if self._frames is None:
                self._frames = h5py.File(str(self.path), "r", locking=False)["frames"]
            out = np.empty((len(indices), *self._frames.shape[1:]), np.float32)
            for k, index in enumerate(indices):         # a sample is a chunk, so none is unpacked in vain
                out[k] = self._frames[index]
        except (OSError, RuntimeError, KeyError) as error:
            raise UserError(f"{self.path}: this cache of frames cannot be read ({_reason(error)}); delete it, and it "
                            "is made anew") from error
        return out


def frame_samples(name: str, recordings: Recordings, settings: FrameSettings, folder: Path,
                  tell: Tell | None = None) -> FrameSamples:
    """The frames of recordings, from their file in `folder` if it is there, else computed and put there.

    | Parameter | Default | Meaning                                                            |
    |-----------|---------|--------------------------------------------------------------------|
    | name      |         | what the file's name begins with: "cifar10dvs-train"               |
    | folder    |         | of the cache; made where it is missing                             |
    | tell      | None    | called with (done, all) after every recording that was converted   |

    A file that is damaged, incomplete or another's is not used: it is replaced. Raises UserError for a recording that
    cannot be read, and where the cache cannot be written.
    """
    content = _content(recordings, folder, name)
    key = hashlib.sha256(json.dumps([FORMAT, asdict(settings), content]).encode()).hexdigest()
    path = folder / f"{name}-{key[:16]}.h5"
    if not _fits(path, key, recordings, settings):
        with _under_construction(path, lambda: _fits(path, key, recordings, settings)) as (file, check):
            _fill(file, check, key, recordings, settings, tell or (lambda _done, _all: None))
    return FrameSamples(path, recordings.labels)


def _content(recordings: Recordings, folder: Path, name: str) -> str:
    """A hash of names, labels and contents of all recordings, 64 hexadecimal figures; remembered in `folder`."""
    stamp, digest = hashlib.sha256(), hashlib.sha256()
    for k, (one, label) in enumerate(zip(recordings.names, recordings.labels, strict=True)):
        try:
            found = recordings.path(k).stat()
        except OSError as error:
            raise UserError(f"{recordings.path(k)}: cannot be read ({error.strerror}); it must be there") from error
        stamp.update(json.dumps([one, int(label), found.st_size, found.st_mtime_ns]).encode())
    memory = folder / f"{name}-{stamp.hexdigest()[:16]}.sha256"
    with suppress(OSError, UnicodeDecodeError):
        remembered = memory.read_text(encoding="ascii")
        if re.fullmatch("[0-9a-f]{64}", remembered):
            return remembered
    for k, (one, label) in enumerate(zip(recordings.names, recordings.labels, strict=True)):
        digest.update(json.dumps([one, int(label)]).encode())
        digest.update(bytes_of(recordings.path(k)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(memory, digest.hexdigest().encode())
    except OSError as error:
        raise _failure(memory, error) from error
    return digest.hexdigest()


def _layout(recordings: Recordings, settings: FrameSettings) -> tuple[tuple[int, ...], str]:
    """Shape and type of all frames."""
    size = settings.size or recordings.sensor
    return (len(recordings), settings.steps, 2, *size), "uint16" if settings.size is None else "float32"


# -------------------------------------------------------------------------------------------------------------- reading
def _fits(path: Path, key: str, recordings: Recordings, settings: FrameSettings) -> bool:
    """Whether a file holds these frames, by all that can be seen without unpacking them.

    The frames of a recording have a checksum of their own, which HDF5 compares when it reads them.
    """
    try:
        with h5py.File(str(path), "r", locking=False) as file:
            attributes = {"format": FORMAT, "key": key, "complete": True}
            if any(file.attrs.get(name) != value for name, value in attributes.items()):
                return False
            shape, dtype = _layout(recordings, settings)
            return (_is_plain(file, "frames", shape, dtype, (1, *shape[1:]))
                    and _is_plain(file, "labels", shape[:1], "int64", None)
                    and np.array_equal(file["labels"][()], recordings.labels))
    except Exception:       # whatever h5py makes of a damaged file: it is made anew
        return False


def _is_plain(file: h5py.File, name: str, shape: tuple[int, ...], dtype: str, chunks: tuple[int, ...] | None) -> bool:
    """Whether a dataset is what this program writes: in the file itself, of this shape, by these filters."""
    if not isinstance(file.get(name, getlink=True), HDF5.HardLink):
        return False
    dataset: Any = file[name]
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(k)[0] for k in range(properties.get_nfilters())]
    return (isinstance(dataset, HDF5.Dataset) and dataset.shape == shape and dataset.dtype == dtype
            and dataset.chunks == chunks and filters == (FILTERS if chunks else [])
            and not dataset.is_virtual and not dataset.external)


# ------------------------------------------------------------------------------------------------------------- building
def _fill(file: h5py.File, check: Callable[[], None], key: str, recordings: Recordings, settings: FrameSettings,
          tell: Tell) -> None:
    """Convert every recording; `check` raises what went wrong in writing."""
    shape, dtype = _layout(recordings, settings)
    file.attrs.update({"format": FORMAT, "key": key, "settings": json.dumps(asdict(settings))})
    file.create_dataset("labels", data=recordings.labels.astype(np.int64), track_times=False)
    stored = file.create_dataset("frames", shape, dtype, chunks=(1, *shape[1:]), compression="gzip", compression_opts=1,
                                 shuffle=True, fletcher32=True, track_times=False)
    for k in range(len(recordings)):
        stored[k] = settings.frames_of(recordings, k)
        check()
        tell(k + 1, len(recordings))
    file.attrs["complete"] = True


@contextmanager
def _under_construction(path: Path, there: Callable[[], bool]) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """An HDF5 file that appears at `path` when the block ends, whole, and leaves nothing where the block raises.

    Gives the file and a function that raises what went wrong in writing. there(): whether another program has put the
    same file at `path` meanwhile.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path.parent)
        disk, partial = _create(path)
    except OSError as error:
        raise _failure(path, error) from error

    def check() -> None:
        if disk.error is not None:
            raise disk.error

    try:
        file = h5py.File(cast(Any, disk), "w")
        try:
            yield file, check
        finally:
            try:
                file.close()
            except (OSError, RuntimeError) as error:        # where HDF5 misses what a full disk dropped
                disk.error = disk.error or error
        check()
        if LOCKS is None:
            disk.close()            # Windows renames no open file; elsewhere the lock is held until it has its name
        replace_durably(partial, path)
    except OSError as error:
        if not there():
            raise _failure(path, error) from error
    finally:
        disk.close()
        partial.unlink(missing_ok=True)


def _create(path: Path) -> tuple[Disk, Path]:
    """A new file beside `path`, locked for as long as this process lives."""
    while True:
        partial = partial_of(path)
        disk = Disk(partial, "x+b")
        if LOCKS is not None:
            with suppress(OSError):         # a file system without locks: then nobody will remove it either
                LOCKS.flock(disk, LOCKS.LOCK_EX)
        if partial.exists():
            return disk, partial
        disk.close()                        # removed by another process before the lock


def _remove_abandoned(folder: Path) -> None:
    """Remove the files under construction whose builder is no more: nobody holds their lock."""
    for partial in folder.glob(".*.h5.*.partial"):
        with suppress(OSError):
            if LOCKS is None:
                partial.unlink()
                continue
            with open(partial, "rb") as file:
                LOCKS.flock(file, LOCKS.LOCK_EX | LOCKS.LOCK_NB)
                partial.unlink()


def _failure(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: the cache of frames cannot be written ({error.strerror or _reason(error)}); free space, "
                     "or set events.cache to another folder")


def _reason(error: BaseException) -> str:
    """The first line of an error, for a message of one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
