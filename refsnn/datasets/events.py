"""Recordings of event cameras, and the files that hold them: AEDAT 2.0 (CIFAR10-DVS) and N-MNIST's .bin.

A pixel of an event camera sends (x, y, t, p) when its brightness has changed: where, when, and in which direction.
Readers take files from anywhere: what does not fit is refused in one line that names the file, the place and the
remedy, and no more than MAX_BYTES are ever read.
"""

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn.disk import write_whole
from refsnn.errors import UserError

Array = npt.NDArray[Any]

MAX_BYTES = 64 << 20        # of a file: 8 million events of 8 bytes, forty times a recording of CIFAR10-DVS
MAX_HEADER = 1 << 20        # of an AEDAT header, into which jAER may copy all of its settings
AEDAT2 = b"#!AER-DAT2.0"
DVS128 = (128, 128)         # height, width of the camera of CIFAR10-DVS
NMNIST = (34, 34)
PIXEL, SPECIAL = 0x7FFF, 0x80008000     # bits of an address of the DVS128: see `read_aedat2`
AGAIN = "copy or download it again"


@dataclass(frozen=True, eq=False)
class Events:
    """One recording of N events in the order of time.

    Field, Shape, Unit
      x        (N,) uint16            column, 0 .. width-1
      y        (N,) uint16            row, 0 .. height-1
      t        (N,) int64   us        never decreasing
      p        (N,) uint8             polarity, 0 or 1
      height, width                   of the sensor

    Raises ValueError where an array is not of that form.
    """

    x: Array
    y: Array
    t: Array
    p: Array
    height: int
    width: int

    def __post_init__(self) -> None:
        for name, dtype, end in (("x", np.uint16, self.width), ("y", np.uint16, self.height), ("t", np.int64, None),
                                 ("p", np.uint8, 2)):
            given = np.asarray(getattr(self, name))
            if given.shape != (len(self.x),) or given.dtype.kind not in "iu":
                raise ValueError(f"{name} must be {len(self.x)} integers, got {given.dtype} of shape {given.shape}")
            if end is not None and len(given) and not 0 <= given.min() <= given.max() < end:
                raise ValueError(f"{name} must be in 0..{end - 1}, got {given.min()}..{given.max()}")
            object.__setattr__(self, name, given.astype(dtype))
        if np.any(np.diff(self.t) < 0):
            raise ValueError("t must never decrease")

    def __len__(self) -> int:
        return len(self.t)


# ------------------------------------------------------------------------------------------------------------ AEDAT 2.0
@dataclass(frozen=True)
class Convention:
    """How the three fields of an address become x, y and p: u = bits 1-7, v = bits 8-14, b = bit 0.

        x, y = (v, u) if swap else (u, v)
        then 127 - x if flip_x, 127 - y if flip_y;   p = 1 - b if invert else b
    """

    swap: bool
    flip_x: bool
    flip_y: bool
    invert: bool

    def decode(self, address: Array) -> tuple[Array, Array, Array]:
        """Addresses (N,) -> x, y, p, each (N,)."""
        u, v, b = (address >> 1) & 127, (address >> 8) & 127, address & 1
        x, y = (v, u) if self.swap else (u, v)
        return (127 - x if self.flip_x else x), (127 - y if self.flip_y else y), (1 - b if self.invert else b)

    def encode(self, x: Array, y: Array, p: Array) -> Array:
        """x, y, p -> addresses (N,) uint32: the inverse of `decode`."""
        x, y, b = ((127 - x if self.flip_x else x), (127 - y if self.flip_y else y), (1 - p if self.invert else p))
        u, v = (y, x) if self.swap else (x, y)
        return (v.astype(np.uint32) << 8) | (u.astype(np.uint32) << 1) | b.astype(np.uint32)


# No convention is agreed on. jAER shows (0, 0) at the lower left: its row 0 is the bottom of the picture. What
# SpikingJelly makes is the picture that jAER shows with rows and columns exchanged. tonic takes the fields as they are.
CONVENTIONS = {
    "spikingjelly": Convention(swap=True, flip_x=True, flip_y=True, invert=True),
    "tonic": Convention(swap=True, flip_x=False, flip_y=False, invert=False),
    "jaer": Convention(swap=False, flip_x=True, flip_y=False, invert=True),
}


def read_aedat2(path: Path, convention: str = "spikingjelly") -> Events:
    """Read an AEDAT 2.0 recording of a DVS128, the camera of CIFAR10-DVS: 128 x 128 pixels.

    The file is a header, lines that begin with '#', the first of them `#!AER-DAT2.0`, each ended by CR LF or LF; then
    events of 8 bytes to its end: address and time, big-endian, 32 bits each.

        bits of the address   0: polarity    1-7, 8-14: pixel    15: a signal on the camera's input pin, or a second
                              camera    31: another special event    16-30: not used by this camera

    Events with bit 15 or 31 are no pixels and are left out, as jAER does; SpikingJelly keeps them as pixels. Times are
    microseconds; a step is their difference modulo 2^32, so that a recording over which the clock wraps stays in order.

    | Parameter  | Default        | Meaning                                      |
    |------------|----------------|----------------------------------------------|
    | convention | "spikingjelly" | orientation and polarity: one of CONVENTIONS |

    Raises UserError for a file that is missing, cut short, too large, of another format or camera, without an event, or
    in which time runs backwards.
    Source: AEDAT 2.0, docs.inivation.com; jAER, DVS128.java.
    """
    decode = CONVENTIONS[convention].decode
    data = bytes_of(path)
    start = _end_of_header(data, path)
    _check_size(len(data) - start, 8, path)
    pairs = np.frombuffer(data, ">u4", offset=start).astype(np.uint32).reshape(-1, 2)
    special = (pairs[:, 0] & SPECIAL) != 0
    foreign = np.flatnonzero(~special & (pairs[:, 0] > PIXEL))
    if len(foreign):
        raise UserError(f"{path}: event {foreign[0]} has the address 0x{pairs[foreign[0], 0]:08x}, which no camera of "
                        "128x128 pixels sends; give recordings of a DVS128, as those of CIFAR10-DVS are")
    kept = np.flatnonzero(~special)
    if len(kept) == 0:
        raise UserError(f"{path}: none of its {len(pairs)} events is one of a pixel; take it out of its folder")
    address, time = pairs[kept].T
    steps = np.diff(time).view(np.int32)        # of uint32: modulo 2^32
    _check_order(steps, kept[1:], path)
    t = int(time[0]) + np.concatenate([[0], np.cumsum(steps, dtype=np.int64)])
    x, y, p = decode(address)
    return Events(x, y, t, p, *DVS128)


def write_aedat2(path: Path, events: Events, convention: str = "spikingjelly") -> None:
    """Write a recording of 128 x 128 pixels as AEDAT 2.0: what `read_aedat2` reads back equal; whole or not at all.

    Raises ValueError for another sensor, no event, a first time outside 0..2^32-1 or a pause of 2^31 us; UserError
    where the file cannot be written.
    """
    if (events.height, events.width) != DVS128 or len(events) == 0:
        raise ValueError(f"need events of 128x128 pixels, got {len(events)} of {events.height}x{events.width}")
    if not 0 <= events.t[0] < 1 << 32 or np.any(np.diff(events.t) >= 1 << 31):
        raise ValueError("the first time must be in 0..2^32-1, and the next event come within 2^31 us")
    pairs = np.empty((len(events), 2), ">u4")
    pairs[:, 0] = CONVENTIONS[convention].encode(events.x, events.y, events.p)
    pairs[:, 1] = events.t % (1 << 32)
    header = AEDAT2 + b"\r\n# uint32 address, uint32 time in us, big-endian\r\n# AEChip: DVS128\r\n"
    try:
        write_whole(path, header, pairs.tobytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); free space or choose another folder") from error


def _end_of_header(data: bytes, path: Path) -> int:
    """Where the events begin: at the first line that does not begin with '#'. An address of the DVS128 never does."""
    start = 0
    while data[start:start + 1] == b"#":
        end = data.find(b"\n", start, MAX_HEADER)
        if end < 0:
            raise UserError(f"{path}: its header has no end within {MAX_HEADER:,} bytes; {AGAIN}")
        if start == 0 and (version := data[:end].rstrip()) != AEDAT2:
            shown = "".join(c if c.isprintable() else "?" for c in version[:40].decode("ascii", "replace"))
            raise UserError(f"{path}: its first line is {shown!r}, and must be {AEDAT2.decode()!r}; give the "
                            "recordings as they were published, in AEDAT 2.0")
        start = end + 1
    if start == 0:
        raise UserError(f"{path}: is no AEDAT 2.0 file, for it does not begin with {AEDAT2.decode()!r}; {AGAIN}")
    return start


# -------------------------------------------------------------------------------------------------------------- N-MNIST
def read_nmnist(path: Path) -> Events:
    """Read a recording of N-MNIST: 34 x 34 pixels, events of 5 bytes.

        byte 0: x    byte 1: y    byte 2, bit 7: polarity (1: brighter)    the other 23 bits, big-endian: time in us

    Some cameras of that kind mark an overflow of a shorter clock by an event with y = 240. N-MNIST has none: its 23
    bits last for 8 s, its recordings for 0.3 s, and its authors' reader knows no such event. It is refused like every
    pixel outside 34 x 34.

    Raises UserError for a file that is missing, cut short, too large, without an event, with a pixel outside the
    sensor, or in which time runs backwards.
    Source: Orchard et al., Frontiers in Neuroscience 9:437, 2015; Read_Ndataset.m of its authors.
    """
    data = bytes_of(path)
    _check_size(len(data), 5, path)
    x, y, high, middle, low = np.frombuffer(data, np.uint8).reshape(-1, 5).T
    outside = np.flatnonzero((x >= NMNIST[1]) | (y >= NMNIST[0]))
    if len(outside):
        k = outside[0]
        raise UserError(f"{path}: event {k} is at x = {x[k]}, y = {y[k]}, outside of 34x34 pixels; give recordings of "
                        f"N-MNIST, or {AGAIN}")
    t = ((high & 127).astype(np.int64) << 16) | (middle.astype(np.int64) << 8) | low
    _check_order(np.diff(t), np.arange(1, len(t)), path)
    return Events(x, y, t, high >> 7, *NMNIST)


# ----------------------------------------------------------------------------------------------------------------- both
def bytes_of(path: Path) -> bytes:
    """All of a regular file of at most MAX_BYTES."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise UserError(f"{path}: is no regular file; give a recording")
        if found.st_size > MAX_BYTES:
            raise UserError(f"{path}: has {found.st_size:,} bytes, more than the limit of {MAX_BYTES:,} for one "
                            "recording; cut it into shorter ones")
        with open(path, "rb") as file:
            return file.read(MAX_BYTES)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); it must be there and readable") from error


def _check_size(size: int, event: int, path: Path) -> None:
    """Refuse a file that ends inside of an event, and one without events; `event`: bytes of one."""
    if size % event:
        raise UserError(f"{path}: ends {size % event} bytes into event {size // event}, so it was cut short; {AGAIN}")
    if size == 0:
        raise UserError(f"{path}: holds no event; {AGAIN}, or take it out of its folder")


def _check_order(steps: Array, numbers: Array, path: Path) -> None:
    """Refuse steps of time below 0; numbers: of the events that the steps lead to, counted in the file."""
    back = np.flatnonzero(steps < 0)
    if len(back):
        raise UserError(f"{path}: time runs backwards {len(back)} times, first by {-int(steps[back[0]])} us at event "
                        f"{numbers[back[0]]}; {AGAIN}, or take it out of its folder")
