"""Files written whole or not at all: beside their place, flushed to the disk, renamed; and what HDF5 may write to."""

import io
import os
import secrets
from pathlib import Path
from typing import Any


def partial_of(path: Path) -> Path:
    """A new name beside `path`, hidden and unique, for a file under construction."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")


def replace_durably(partial: Path, path: Path) -> None:
    """Rename a finished file over `path` after its bytes have reached the disk."""
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_whole(path: Path, *parts: bytes) -> None:
    """Write the parts one after another to `path`, which is at any moment the old file or the new one.

    Raises OSError where that fails; nothing of the new file is left then.
    """
    partial = partial_of(path)
    try:
        with open(partial, "xb") as file:
            for part in parts:
                file.write(part)
        replace_durably(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


class Disk(io.FileIO):
    """A file that takes what HDF5 writes. HDF5 crashes the process, at its exit, where a write fails: so the first
    failure is kept in `error`, and what is written after it is dropped."""

    error: BaseException | None = None

    def write(self, data: Any, /) -> int:
        """Write all of the bytes."""
        left = memoryview(data).cast("B")
        size = len(left)
        while len(left) and self.error is None:
            try:
                left = left[super().write(left):]
            except BaseException as error:      # Ctrl-C, too, must not reach HDF5
                self.error = error
        return size

    def readinto(self, buffer: Any, /) -> int:
        """Read; what was never written is 0."""
        view = memoryview(buffer).cast("B")
        found = super().readinto(view) or 0
        view[found:] = bytes(len(view) - found)
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        """Set the file's length."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0
