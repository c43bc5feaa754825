"""Reading a stranger's file of records: first a child process with limits looks at it, then it is read.

HDF5 was not made for hostile input. On a damaged file the library may loop, crash, or ask for any amount of memory,
and a file that is not damaged may point to other files, name a plug-in to load, or unpack to a thousand times its
size. So the file is opened and read to its end in a child process that may use so much processor time and so much
memory, and is looked at closely before anything of it is read:

    attributes   format = "refsnn-trace/1"; numbers and text only, of a bounded size
    objects      groups and datasets, no deeper than DEPTH and no more than OBJECTS, each under one name; no links
                 that lead elsewhere or in circles
    records      integers, floating-point numbers or booleans of up to 8 bytes (nothing of variable length or compound),
                 stored in the file itself, plain or by a filter of HDF5's own; `seq`, each number once; a known `kind`
    bytes        no more than MAX_BYTES of `trace`, and above FREE_BYTES no more than RATIO times the file's size

NaN and infinities are numbers like others and are reported. What the child let pass is read by `trace.read`.
"""

import json
import os
import signal
import stat
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from refsnn.errors import UserError
from refsnn.trace import FORMAT, KINDS, MAX_BYTES, Record, claimed_bytes, text_of
from refsnn.trace import read as read_records

DEPTH = 8                   # groups within groups
OBJECTS = 1_000_000         # groups and datasets in a file
NAME = 200                  # characters of a name
TEXT = 1 << 16              # bytes of an attribute, HDF5's own limit for one in an object's header
FREE_BYTES = 64 << 20       # claims up to this need no file of their size
RATIO = 100                 # bytes of records per byte of file beyond that: compression, but no bomb
HDF5: Any = h5py            # type stubs know only a part of it
FILTERS = (HDF5.h5z.FILTER_DEFLATE, HDF5.h5z.FILTER_SHUFFLE, HDF5.h5z.FILTER_FLETCHER32, HDF5.h5z.FILTER_LZF)
SECONDS = 10                # of processor time for any file, and one more for each
BYTES_PER_SECOND = 2e6      # of its size: thousands of small records are read no faster
PATIENCE = 6                # seconds of the clock for each of these: the machine may be busy
WORKING = 256 << 20         # bytes of address space for the work of Python and HDF5, besides the records


@dataclass(frozen=True)
class Findings:
    """What a file holds: records, the bytes they take in memory, and the names of those with NaN or infinities."""

    records: int
    bytes: int
    not_finite: list[str]


class _Refused(Exception):
    """Why a file is not read: what is wrong with it, and the remedy."""


# ----------------------------------------------------------------------------------------------------------- the parent


def read(path: Path) -> tuple[dict[str, Record], dict[str, Any]]:
    """Read anyone's file of records: the records by name in execution order, and the file's attributes.

    Raises UserError, in bounded time and memory, where `examine` does.
    """
    examine(path)
    return read_records(path)


def examine(path: Path) -> Findings:
    """Have a child process look at a file and read it to its end.

    Raises UserError, one line with the file, what is wrong, and the remedy, for whatever is missing, not a file,
    damaged, of another format, or not safe to read.
    """
    size = _size(path)
    allowed = min(MAX_BYTES, max(FREE_BYTES, RATIO * size))
    seconds = SECONDS + int(size / BYTES_PER_SECOND)
    answer = ask([str(path), str(allowed)], seconds, WORKING + 2 * allowed)
    if "refused" in answer:
        raise UserError(f"{path}: {answer['refused']}")
    return Findings(**answer)


def _size(path: Path) -> int:
    """Bytes of a regular file; a pipe or a device has no end."""
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no such file, or not to be read; give a file of records") from error
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path}: is no regular file; give a file of records")
    return found.st_size


def ask(arguments: list[str], seconds: int, memory: int, module: str = "refsnn.safe_read") -> dict[str, Any]:
    """Run `python -m module seconds memory arguments` and return the JSON that it prints.

    The child limits itself to that processor time, and to that many bytes of address space more than it has at its
    start; after PATIENCE times as long by the clock it is ended from outside. Where it ends without an answer, the
    answer is {"refused": why}.
    """
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OPENBLAS_NUM_THREADS": "1",
                        "HDF5_PLUGIN_PRELOAD": "::"}        # one thread's memory; no plug-ins
    command = [sys.executable, "-P", "-m", module, str(seconds), str(memory), *arguments]
    too_long = {"refused": f"reading it takes more than {seconds} s of processor time; damaged, or made to harm: "
                           "have it written anew"}
    try:
        done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, check=False,
                              timeout=PATIENCE * seconds)
    except subprocess.TimeoutExpired:
        return too_long
    if done.returncode == 0:
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer
    if hasattr(signal, "SIGXCPU") and done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return too_long
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return {"refused": f"makes the HDF5 library crash ({name}); damaged, or made to harm: have it written anew"}
    raise RuntimeError(f"the reader's child process failed: {done.stderr.decode(errors='replace')[-300:]}")


# ------------------------------------------------------------------------------------------------------------ the child


def main(arguments: list[str]) -> int:
    """The child process: limit itself, look at the file, print what was found as JSON."""
    seconds, memory, path, allowed = arguments
    limit(int(seconds), int(memory))
    answer: dict[str, Any]
    try:
        answer = asdict(inspect(path, int(allowed)))
    except _Refused as error:
        answer = {"refused": str(error)}
    except MemoryError:
        answer = {"refused": "reading it needs more memory than a file of its size may; have it written anew"}
    except Exception as error:          # whatever h5py makes of a damaged file
        why = _shown(str(error).split("\n")[0] or type(error).__name__)
        answer = {"refused": f"damaged, or no HDF5 file ({why}); have it written anew"}
    print(json.dumps(answer))
    return 0


def limit(seconds: int, memory: int) -> None:
    """Limit this process: seconds of processor time and bytes of memory from now on; it writes no core, no file."""
    try:
        import resource
    except ImportError:                 # not on Windows, where the parent's patience is the only limit
        return
    used, in_use = resource.getrusage(resource.RUSAGE_SELF), 2 << 30
    with suppress(OSError):             # Linux tells how much; elsewhere more than NumPy and HDF5 need
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    wanted = {resource.RLIMIT_CPU: int(used.ru_utime + used.ru_stime) + 1 + seconds,
              resource.RLIMIT_AS: in_use + memory, resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0}
    for what, most in wanted.items():
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with suppress(ValueError, OSError):         # macOS knows no limit of address space
            resource.setrlimit(what, (most, most))


def inspect(path: str, allowed: int) -> Findings:
    """Check a file and read every record once, one after another; it may claim `allowed` bytes of records."""
    with HDF5.File(path, "r") as file:
        _check_attributes(file)
        datasets = _collect(file)
        claimed, numbers = 0, set()
        for name, dataset in datasets:
            claimed += _check_storage(name, dataset, allowed)
            if claimed > allowed:
                raise _Refused(f"claims {claimed:,} bytes of records or more, and may hold {allowed:,}, by its size; "
                               "have it written with fewer records, or less compressed")
            numbers.add(_check_record(name, dataset))
        if len(numbers) < len(datasets):
            raise _Refused("the attribute seq of two records is the same; number them in execution order")
        not_finite = [name for name, dataset in datasets if not np.isfinite(dataset[()]).all()]
    return Findings(len(datasets), claimed, not_finite)


def _check_attributes(file: Any) -> None:
    """The file's own attributes: numbers and text, and the format."""
    for name in file.attrs:
        attribute = file.attrs.get_id(name)
        text = HDF5.check_string_dtype(attribute.dtype)
        if attribute.shape != () or not (text or attribute.dtype.kind in "fiub") or attribute.get_storage_size() > TEXT:
            raise _Refused(f"attribute {_shown(name)} is neither a number nor a text of up to {TEXT:,} bytes; "
                           "leave it out")
        value = text_of(file.attrs[name])
        if isinstance(value, str) and not (len(value) <= TEXT and value.replace("\n", "").isprintable()):
            raise _Refused(f"attribute {_shown(name)} holds signs that cannot be printed, or too many; leave it out")
    if "format" not in file.attrs:
        raise _Refused(f"is no {FORMAT} file: it has no attribute format; docs/trace-format.md tells how to write one")
    found = str(text_of(file.attrs["format"]))
    if found != FORMAT:
        raise _Refused(f"its format is {_shown(found)}, and {FORMAT} is what can be read; have it written as that")


def _collect(file: Any) -> list[tuple[str, Any]]:
    """Every dataset by its name; refuses all that is not a tree of groups and datasets."""
    found: list[tuple[str, Any]] = []
    places = {HDF5.h5o.get_info(file.id).addr}
    waiting: list[tuple[str, Any, int]] = [("", file, 0)]
    while waiting:
        prefix, group, depth = waiting.pop()
        for leaf in group:
            name = prefix + leaf
            if len(name) > NAME or not name.isprintable():
                raise _Refused(f"record {_shown(name)} has a name of more than {NAME} or of unprintable characters; "
                               "choose another")
            if not isinstance(group.get(leaf, getlink=True), HDF5.HardLink):
                raise _Refused(f"{_shown(name)} is a link that leads elsewhere; write a dataset of its own")
            item = group[leaf]
            place = HDF5.h5o.get_info(item.id).addr
            if place in places:
                raise _Refused(f"{_shown(name)} is a second name of something; write a dataset of its own")
            places.add(place)
            if len(places) > OBJECTS or depth >= DEPTH:
                raise _Refused(f"holds more than {OBJECTS:,} objects, or some deeper than {DEPTH} groups; "
                               "have it written with fewer")
            if isinstance(item, HDF5.Dataset):
                found.append((name, item))
            elif isinstance(item, HDF5.Group):
                waiting.append((f"{name}/", item, depth + 1))
            else:
                raise _Refused(f"{_shown(name)} is neither a group nor a dataset; leave it out")
    return found


def _check_storage(name: str, dataset: Any, allowed: int) -> int:
    """How a dataset is stored; returns the bytes it claims."""
    if dataset.dtype.kind not in "fiub" or dataset.dtype.itemsize > 8 or dataset.shape is None:
        raise _Refused(f"record {name} holds {_shown(str(dataset.dtype))}, not numbers of up to 8 bytes; "
                       "write it as float64, int64 or bool")
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(k)[0] for k in range(properties.get_nfilters())]
    if unknown := [number for number in filters if number not in FILTERS]:
        raise _Refused(f"record {name} is packed by filter {unknown[0]}; write it plain or with gzip")
    if properties.get_layout() == HDF5.h5d.VIRTUAL or properties.get_external_count():
        raise _Refused(f"record {name} is stored in another file; write its numbers into this one")
    chunk = dataset.dtype.itemsize
    for length in dataset.chunks or ():
        chunk *= length
    return max(claimed_bytes(dataset), chunk if chunk > allowed else 0)


def _check_record(name: str, dataset: Any) -> int:
    """The attributes of a record; returns its number."""
    for attribute, kinds in (("seq", "iu"), ("kind", "")):
        if attribute not in dataset.attrs:
            raise _Refused(f"record {name} has no attribute {attribute}; add it (docs/trace-format.md)")
        stored = dataset.attrs.get_id(attribute)
        fits = stored.dtype.kind in kinds if kinds else HDF5.check_string_dtype(stored.dtype) is not None
        if stored.shape != () or not fits or stored.get_storage_size() > NAME:
            raise _Refused(f"record {name}: its attribute {attribute} must be one {'integer' if kinds else 'text'}")
    kind = str(text_of(dataset.attrs["kind"]))
    if kind not in KINDS:
        raise _Refused(f"record {name}: its kind is {_shown(kind)}, and must be one of {', '.join(KINDS)}")
    return int(dataset.attrs["seq"])


def _shown(text: str) -> str:
    """A stranger's text for a message of one line: short, and nothing that a terminal would obey."""
    plain = "".join(c if c.isprintable() else "?" for c in text)
    return plain if len(plain) <= 120 else f"{plain[:117]}..."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
