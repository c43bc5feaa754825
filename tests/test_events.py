"""Event files: AEDAT 2.0 and N-MNIST's, byte by byte, in every convention; what is refused, and in which words."""

import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refsnn.datasets import events
from refsnn.datasets.events import CONVENTIONS, Events, read_aedat2, read_nmnist, write_aedat2
from refsnn.errors import UserError

HEADER = b"#!AER-DAT2.0\r\n# This is a raw AE data file\r\n#  one more\r\n"


def aedat(path: Path, *pairs: tuple[int, int], header: bytes = HEADER, tail: bytes = b"") -> Path:
    """A file of (address, time) pairs, written without the program under test."""
    path.write_bytes(header + b"".join(struct.pack(">II", *pair) for pair in pairs) + tail)
    return path


def nmnist(path: Path, *found: tuple[int, int, int, int], tail: bytes = b"") -> Path:
    """A file of (x, y, polarity, time)."""
    path.write_bytes(b"".join(bytes([x, y]) + ((p << 23) | t).to_bytes(3, "big") for x, y, p, t in found) + tail)
    return path


def rows(found: Events) -> list[tuple[int, int, int, int]]:
    """Events as (x, y, t, p)."""
    return [tuple(int(v) for v in row) for row in zip(found.x, found.y, found.t, found.p, strict=True)]


def refused(read: Callable[[Path], Any], path: Path) -> str:
    """What the reader says of a file: one line that begins with its name and has a remedy."""
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert "; " in message
    return message


def some(n: int = 50, seed: int = 0, first: int = 0) -> Events:
    draw = np.random.default_rng(seed)
    t = first + np.sort(draw.integers(0, 1000, n))
    return Events(draw.integers(0, 128, n), draw.integers(0, 128, n), t, draw.integers(0, 2, n), 128, 128)


# ------------------------------------------------------------------------------------------------------------ AEDAT 2.0
# One address, u = 5 in bits 1-7, v = 100 in bits 8-14, polarity bit 1, by the text of each convention.
@pytest.mark.parametrize(
    ("convention", "x", "y", "p"),
    [("spikingjelly", 127 - 100, 127 - 5, 0), ("tonic", 100, 5, 1), ("jaer", 127 - 5, 100, 0)],
)
def test_a_convention_is_what_its_text_says(tmp_path: Path, convention: str, x: int, y: int, p: int) -> None:
    file = aedat(tmp_path / "a.aedat", ((100 << 8) | (5 << 1) | 1, 7))
    assert rows(read_aedat2(file, convention)) == [(x, y, 7, p)]


def test_every_convention_has_been_tried() -> None:
    assert set(CONVENTIONS) == {"spikingjelly", "tonic", "jaer"}


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_all_addresses_go_through_and_back(convention: str) -> None:
    addresses = np.arange(1 << 15, dtype=np.uint32)
    x, y, p = CONVENTIONS[convention].decode(addresses)
    assert len({*zip(x.tolist(), y.tolist(), p.tolist(), strict=True)}) == 1 << 15
    assert np.array_equal(CONVENTIONS[convention].encode(x, y, p), addresses)


@pytest.mark.parametrize(
    "header", [HEADER, b"#!AER-DAT2.0\n", b"#!AER-DAT2.0\r\n#\r\n", b"#!AER-DAT2.0 \r\n# \xe9\xff\r\n"]
)
def test_a_header_ends_at_the_first_line_without_its_mark(tmp_path: Path, header: bytes) -> None:
    pairs = [(0x2300, 10), (0x000A, 0x0A232323), (0x0D0A, 0x0A232324)]      # bytes that look like '#' and ends of lines
    found = read_aedat2(aedat(tmp_path / "a.aedat", *pairs, header=header), "tonic")
    assert found.t.tolist() == [time for _, time in pairs]
    assert found.x.tolist() == [(address >> 8) & 127 for address, _ in pairs]


def test_events_of_the_camera_that_are_no_pixels_are_left_out(tmp_path: Path) -> None:
    pixel, pin, special = 0x0102, 0x8000 | 0x0102, 0x80000000
    file = aedat(tmp_path / "a.aedat", (pin, 1), (pixel, 2), (special, 1), (special | pin | 0x400000, 0), (pixel, 3))
    assert read_aedat2(file).t.tolist() == [2, 3]


def test_a_clock_that_wraps_goes_on(tmp_path: Path) -> None:
    file = aedat(tmp_path / "a.aedat", (0, 0xFFFFFFF0), (0, 0xFFFFFFFF), (0, 5), (0, 5))
    assert read_aedat2(file).t.tolist() == [0xFFFFFFF0, 0xFFFFFFFF, 0x100000005, 0x100000005]
    signed = aedat(tmp_path / "b.aedat", (0, 0x7FFFFFFF), (0, 0x80000000))        # of a reader of signed numbers
    assert read_aedat2(signed).t.tolist() == [0x7FFFFFFF, 0x80000000]


@given(
    found=st.lists(st.tuples(*[st.integers(0, 127)] * 2, st.integers(0, 2**31 - 1), st.integers(0, 1)), min_size=1),
    first=st.integers(0, 2**32 - 1),
    convention=st.sampled_from(sorted(CONVENTIONS)),
)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, found: list[tuple[int, ...]], first: int, convention: str
) -> None:
    x, y, steps, p = (np.array(column, np.int64) for column in zip(*found, strict=True))
    given_ = Events(x, y, first + np.cumsum(steps) - steps[0], p, 128, 128)
    file = tmp_path_factory.mktemp("events") / "e.aedat"
    write_aedat2(file, given_, convention)
    assert rows(read_aedat2(file, convention)) == rows(given_)


def test_a_written_file_has_the_published_form(tmp_path: Path) -> None:
    write_aedat2(tmp_path / "e.aedat", Events([3], [9], [258], [1], 128, 128), "tonic")
    data = (tmp_path / "e.aedat").read_bytes()
    assert data.startswith(b"#!AER-DAT2.0\r\n#")
    assert data.endswith(b"\r\n" + struct.pack(">II", (3 << 8) | (9 << 1) | 1, 258))


@pytest.mark.parametrize("found", [
    Events(*np.zeros((4, 0), int), 128, 128), Events([1], [1], [0], [0], 34, 34), Events([1], [1], [-1], [0], 128, 128),
    Events([1], [1], [1 << 32], [0], 128, 128), Events([1, 1], [1, 1], [0, 1 << 31], [0, 0], 128, 128),
])  # fmt: skip
def test_what_could_not_be_read_back_is_not_written(tmp_path: Path, found: Events) -> None:
    with pytest.raises(ValueError, match=r"must|need"):
        write_aedat2(tmp_path / "e.aedat", found)
    assert not list(tmp_path.iterdir())


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "e.aedat"
    write_aedat2(file, some())
    before = file.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left on device" in refused(lambda path: write_aedat2(path, some(60)), file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_in_a_folder_that_is_not_there_is_not_written(tmp_path: Path) -> None:
    assert "No such file" in refused(lambda path: write_aedat2(path, some()), tmp_path / "no" / "e.aedat")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "does not begin with '#!AER-DAT2.0'"),
        (b"\x00\x01\x02\x03\x00\x00\x00\x01", "does not begin with"),
        (b"#!AER-DAT4.0\r\n", r"its first line is '#!AER-DAT4.0', and must be '#!AER-DAT2.0'"),
        (b"# created\r\n#!AER-DAT2.0\r\n", "its first line is '# created'"),
        (b"#!AER-\x1b[2J\x00\xff\r\n", r"its first line is '#!AER-\?\[2J\?.'"),
        (b"#" * 3000, "no end"),
        (b"#!AER-DAT2.0\r\n" + b"# line\r\n" * (1 << 18), "no end within 1,048,576 bytes"),
        (HEADER, "holds no event"),
        (HEADER + bytes(8) + bytes(5), "ends 5 bytes into event 1"),
        (HEADER + struct.pack(">II", 0x8001, 5), "none of its 1 events is one of a pixel"),
        (HEADER + struct.pack(">4I", 1, 5, 0x00010000, 6), "event 1 has the address 0x00010000"),
        (HEADER + struct.pack(">2I", 0x7FFF7FFF, 6), "event 0 has the address 0x7fff7fff"),
        (HEADER + struct.pack(">8I", 1, 5, 0x8000, 0, 1, 4, 1, 2), "backwards 2 times, first by 1 us at event 2;"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_aedat_file_is_refused_in_one_line(tmp_path: Path, data: bytes, words: str) -> None:
    file = tmp_path / "bad.aedat"
    file.write_bytes(data)
    assert re.search(words, refused(read_aedat2, file))


@pytest.mark.parametrize("read", [read_aedat2, read_nmnist])
def test_what_is_no_file_or_too_large_is_refused_before_it_is_read(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    assert "No such file" in refused(read, tmp_path / "missing.bin")
    assert "no regular file" in refused(read, tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert "no regular file" in refused(read, tmp_path / "pipe")
    huge = tmp_path / "huge.bin"
    with open(huge, "wb") as file:
        file.truncate(1 << 40)          # a hole: no byte of it is on the disk
    assert "1,099,511,627,776 bytes, more than the limit" in refused(read, huge)


@given(data=st.binary(max_size=200), start=st.sampled_from([b"", HEADER, b"#!AER-DAT2.0"]))
def test_any_bytes_are_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, start: bytes
) -> None:
    file = tmp_path_factory.mktemp("any") / "any.bin"
    file.write_bytes(start + data)
    for read in (read_aedat2, read_nmnist):
        try:
            found = len(read(file))
        except UserError:
            assert refused(read, file)
        else:
            assert found > 0


# -------------------------------------------------------------------------------------------------------------- N-MNIST
def test_nmnist_is_read_byte_by_byte(tmp_path: Path) -> None:
    found = [(0, 33, 1, 0), (33, 0, 0, 0x010203), (10, 20, 1, 0x7FFFFF)]
    read = read_nmnist(nmnist(tmp_path / "00001.bin", *found))
    assert rows(read) == [(x, y, t, p) for x, y, p, t in found]
    assert (read.height, read.width) == (34, 34)


def test_an_event_of_nmnist_is_five_bytes_big_endian(tmp_path: Path) -> None:
    (tmp_path / "1.bin").write_bytes(bytes([7, 9, 0x80 | 0x12, 0x34, 0x56]))
    assert rows(read_nmnist(tmp_path / "1.bin")) == [(7, 9, 0x123456, 1)]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "holds no event"),
        (bytes(10) + bytes(4), "ends 4 bytes into event 2"),
        (bytes(5) + bytes([34, 0, 0, 0, 0]), "event 1 is at x = 34, y = 0, outside of 34x34"),
        (bytes([0, 240, 0, 0, 0]), "event 0 is at x = 0, y = 240, outside of 34x34"),
        (bytes([0, 0, 0, 0, 9]) + bytes(5), "backwards 1 times, first by 9 us at event 1;"),
    ],
)
def test_a_file_of_nmnist_is_refused_in_one_line(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "bad.bin").write_bytes(data)
    assert words in refused(read_nmnist, tmp_path / "bad.bin")


# --------------------------------------------------------------------------------------------------------------- events
@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (([128], [0], [0], [0]), "x must be in 0..127, got 128..128"),
        (([0], [-1], [0], [0]), "y must be in 0..127"),
        (([0], [0], [0], [2]), "p must be in 0..1"),
        (([0, 0], [0, 0], [1, 0], [0, 0]), "t must never decrease"),
        (([0, 0], [0], [1, 2], [0, 0]), "y must be 2 integers"),
        (([0.5], [0], [1], [0]), "x must be 1 integers, got float64"),
    ],
)
def test_events_are_checked(arrays: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Events(*(np.array(a) for a in arrays), 128, 128)


def test_the_limit_leaves_room_for_the_recordings_of_the_field() -> None:
    assert events.MAX_BYTES > 20 * 8 * 205_072          # the mean of CIFAR10-DVS
