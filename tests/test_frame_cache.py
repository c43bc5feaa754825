"""The cache of frames: what is read back, when it is made anew, and that nothing but a whole file is ever used."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from refsnn.datasets import cache
from refsnn.datasets.cache import FrameSamples, FrameSettings, frame_samples
from refsnn.datasets.frames import frames
from refsnn.datasets.recordings import Recordings, list_nmnist
from refsnn.datasets.resize import resize
from refsnn.errors import UserError

SETTINGS = FrameSettings(steps=3)
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs locks and limits of POSIX")


@pytest.fixture
def recordings(tmp_path: Path) -> Recordings:
    """Two recordings of each digit, 30 to 60 events each."""
    draw = np.random.default_rng(0)
    for k in range(20):
        folder = tmp_path / "data" / "Train" / str(k // 2)
        folder.mkdir(parents=True, exist_ok=True)
        n = int(draw.integers(30, 60))
        stored = np.zeros((n, 5), np.uint8)
        stored[:, :2], stored[:, 2] = draw.integers(0, 34, (n, 2)), 128 * draw.integers(0, 2, n)
        stored[:, 4] = np.sort(draw.integers(0, 256, n))
        (folder / f"{k:05d}.bin").write_bytes(stored.tobytes())
    return list_nmnist(tmp_path / "data", "Train")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


class Told:
    """Counts what was converted; `at` raises when so many have been."""

    def __init__(self, error: BaseException | None = None, at: int = 0) -> None:
        self.calls: list[tuple[int, int]] = []
        self.error, self.at = error, at

    def __call__(self, done: int, everything: int) -> None:
        self.calls.append((done, everything))
        if self.error is not None and done == self.at:
            raise self.error


def everything(samples: FrameSamples) -> Any:
    return samples.batch(np.arange(len(samples)), 0)


def direct(recordings: Recordings, settings: FrameSettings = SETTINGS) -> Any:
    """What the cache must hold."""
    counts = [frames(recordings.read(k, ""), settings.steps, settings.by, settings.remainder) for k in range(20)]
    return np.stack(counts if settings.size is None else [resize(c, settings.size, settings.method) for c in counts])


def refused(act: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ----------------------------------------------------------------------------------------------------------- what it is
@pytest.mark.parametrize("settings", [
    SETTINGS, FrameSettings(2, "time", "drop"), FrameSettings(2, size=(8, 9)),
    FrameSettings(2, size=(8, 9), method="tet"),
])  # fmt: skip
def test_batches_are_the_frames(recordings: Recordings, folder: Path, settings: FrameSettings) -> None:
    told = Told()
    samples = frame_samples("nmnist-train", recordings, settings, folder, told)
    assert told.calls == [(k, 20) for k in range(1, 21)]
    expected = direct(recordings, settings)
    assert np.array_equal(everything(samples), expected)
    assert np.array_equal(samples.labels, recordings.labels)
    assert samples.labels.dtype == np.int64
    assert len(samples) == 20
    chosen = np.array([7, 3, 3, 19, 0, 7])
    batch = samples.batch(chosen, 5)
    assert batch.dtype == np.float32
    assert np.array_equal(batch, expected[chosen])
    batch[:] = -1                                                   # the caller's own: augmentation may write to it
    assert np.array_equal(samples.batch(chosen, 5), expected[chosen])
    assert samples.batch(np.zeros(0, int), 0).shape == (0, *expected.shape[1:])
    with pytest.raises(IndexError):
        samples.batch(np.array([20]), 0)


def files(folder: Path) -> list[Path]:
    """What is in the folder, the remembered hashes of contents left out."""
    return [path for path in folder.iterdir() if path.suffix != ".sha256"]


def test_it_is_made_once_and_read_by_anyone(recordings: Recordings, folder: Path) -> None:
    first = frame_samples("nmnist-train", recordings, SETTINGS, folder)
    written = first.path.stat().st_mtime_ns
    told = Told()
    again = frame_samples("nmnist-train", recordings, SETTINGS, folder, told)
    assert told.calls == []
    assert again.path == first.path
    assert [p.name for p in files(folder)] == [first.path.name]
    assert np.array_equal(everything(again), everything(first))
    assert again.path.stat().st_mtime_ns == written
    with h5py.File(str(first.path), locking=False) as file:
        assert file["frames"].shape == (20, 3, 2, 34, 34)
        assert file["frames"].dtype == np.uint16
        assert file["frames"].chunks == (1, 3, 2, 34, 34)
        assert np.array_equal(file["labels"][()], recordings.labels)


@pytest.mark.parametrize("other", [
    {"steps": 4}, {"by": "time"}, {"remainder": "drop"}, {"size": (17, 17)}, {"method": "area"}, {"convention": "jaer"},
])  # fmt: skip
def test_other_settings_have_a_file_of_their_own(recordings: Recordings, folder: Path, other: dict[str, Any]) -> None:
    first = frame_samples("a", recordings, SETTINGS, folder)
    second = frame_samples("a", recordings, replace(SETTINGS, **other), folder)
    assert first.path != second.path
    assert np.array_equal(everything(first), direct(recordings))


def test_a_changed_recording_is_converted_anew(recordings: Recordings, folder: Path) -> None:
    first = frame_samples("a", recordings, SETTINGS, folder)
    file = recordings.path(4)
    data = bytearray(file.read_bytes())
    data[0] = (data[0] + 1) % 34                    # one pixel, the size as before
    file.write_bytes(data)
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1_000_000))     # whatever the resolution of the file system
    told = Told()
    second = frame_samples("a", recordings, SETTINGS, folder, told)
    assert len(told.calls) == 20
    assert np.array_equal(everything(second), direct(recordings))
    assert not np.array_equal(everything(second), everything(first))


def test_recordings_that_were_only_touched_or_copied_keep_their_frames(
        recordings: Recordings, folder: Path, tmp_path: Path) -> None:
    first = frame_samples("a", recordings, SETTINGS, folder)
    os.utime(recordings.path(4), ns=(0, 1_000_000_000))
    shutil.copytree(recordings.root, tmp_path / "copy", copy_function=shutil.copyfile)
    told = Told()
    for those in (recordings, replace(recordings, root=tmp_path / "copy")):
        assert frame_samples("a", those, SETTINGS, folder, told).path == first.path
    assert told.calls == []


def test_a_spoilt_memory_of_contents_is_not_believed(recordings: Recordings, folder: Path) -> None:
    first = frame_samples("a", recordings, SETTINGS, folder)
    (memory,) = folder.glob("*.sha256")
    for spoilt in (b"", b"\xff" * 64, b"g" * 64, b"0" * 63):
        memory.write_bytes(spoilt)
        assert frame_samples("a", recordings, SETTINGS, folder).path == first.path


def test_other_recordings_or_labels_have_a_file_of_their_own(recordings: Recordings, folder: Path) -> None:
    part = recordings.chosen(recordings.labels < 5)
    other = replace(recordings, labels=recordings.labels[::-1].copy())
    found = {frame_samples("a", those, SETTINGS, folder).path for those in (recordings, part, other)}
    assert len(found) == 3


# ------------------------------------------------------------------------------------------------------- what is not it
def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def overwrite(path: Path) -> None:
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(range(256)) * 40)


def edit(change: Callable[[h5py.File], Any]) -> Callable[[Path], None]:
    """A change to an open file."""
    def act(path: Path) -> None:
        with h5py.File(str(path), "r+") as file:
            change(file)
    return act


def dataset_of(shape: tuple[int, ...], dtype: str = "uint16", **keys: Any) -> Callable[[h5py.File], Any]:
    """Other frames in the place of the right ones."""
    def act(file: h5py.File) -> None:
        del file["frames"]
        file.create_dataset("frames", shape, dtype, **keys)
    return act


def elsewhere(file: h5py.File) -> None:
    del file["frames"]
    file["frames"] = h5py.ExternalLink("other.h5", "frames")


def not_a_dataset(file: h5py.File) -> None:
    del file["frames"]
    file.create_group("frames")


def other_labels(file: h5py.File) -> None:
    file["labels"][0] = 9


SHAPE = (20, 3, 2, 34, 34)
GZIP = {"chunks": (1, *SHAPE[1:]), "compression": "gzip", "shuffle": True, "fletcher32": True}
NOT_IT: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: path.write_bytes(b"") and None,
    "cut": cut,
    "bytes": overwrite,
    "not complete": edit(lambda file: file.attrs.__delitem__("complete")),
    "complete is text": edit(lambda file: file.attrs.__setitem__("complete", "yes")),
    "another format": edit(lambda file: file.attrs.__setitem__("format", "refsnn-frames/0")),
    "another key": edit(lambda file: file.attrs.__setitem__("key", "0" * 64)),
    "a list for a key": edit(lambda file: file.attrs.__setitem__("key", np.arange(3))),
    "labels": edit(other_labels),
    "no frames": edit(lambda file: file.__delitem__("frames")),
    "a group": edit(not_a_dataset),
    "a link": edit(elsewhere),
    "shape": edit(dataset_of((19, *SHAPE[1:]), **GZIP)),
    "type": edit(dataset_of(SHAPE, "float64", **GZIP)),
    "huge chunks": edit(dataset_of(SHAPE, **GZIP | {"chunks": SHAPE})),
    "another filter": edit(dataset_of(SHAPE, **GZIP | {"compression": "lzf"})),
}


@pytest.mark.parametrize("damage", NOT_IT)
def test_a_file_that_is_not_it_is_made_anew(recordings: Recordings, folder: Path, damage: str) -> None:
    path = frame_samples("a", recordings, SETTINGS, folder).path
    NOT_IT[damage](path)
    told = Told()
    samples = frame_samples("a", recordings, SETTINGS, folder, told)
    assert len(told.calls) == 20
    assert np.array_equal(everything(samples), direct(recordings))
    assert files(folder) == [path]


def test_a_flipped_bit_in_the_frames_is_found(recordings: Recordings, folder: Path) -> None:
    samples = frame_samples("a", recordings, SETTINGS, folder)
    with h5py.File(str(samples.path)) as file:
        place = file["frames"].id.get_chunk_info(11)
    with open(samples.path, "r+b") as file:
        file.seek(place.byte_offset + place.size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))
    again = frame_samples("a", recordings, SETTINGS, folder)
    assert np.array_equal(again.batch(np.array([10]), 0), direct(recordings)[[10]])
    message = refused(lambda: again.batch(np.array([10, 11]), 0))
    assert message.startswith(f"{again.path}: this cache of frames cannot be read (")
    assert message.endswith("delete it, and it is made anew")


def test_a_file_that_has_gone_is_one_line(recordings: Recordings, folder: Path) -> None:
    samples = frame_samples("a", recordings, SETTINGS, folder)
    samples.path.unlink()
    assert "cannot be read" in refused(lambda: samples.batch(np.array([0]), 0))


# --------------------------------------------------------------------------------------------- interrupted, and at once
@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("x: bad; mend it"), ValueError("bug")])
def test_an_interrupted_conversion_leaves_nothing(recordings: Recordings, folder: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        frame_samples("a", recordings, SETTINGS, folder, Told(error, at=7))
    assert files(folder) == []
    assert np.array_equal(everything(frame_samples("a", recordings, SETTINGS, folder)), direct(recordings))


def test_a_bad_recording_is_named(recordings: Recordings, folder: Path) -> None:
    recordings.path(3).write_bytes(b"123")
    message = refused(lambda: frame_samples("a", recordings, SETTINGS, folder))
    assert message.startswith(f"{recordings.path(3)}: ends 3 bytes")
    recordings.path(3).write_bytes(bytes(5))
    message = refused(lambda: frame_samples("a", recordings, SETTINGS, folder))
    assert message.startswith(f"{recordings.path(3)}: a recording of 1 events cannot be cut into 3 frames")
    recordings.path(3).unlink()
    message = refused(lambda: frame_samples("a", recordings, SETTINGS, folder))
    assert message.startswith(f"{recordings.path(3)}: cannot be read")
    assert files(folder) == []


BUILD = """
import sys, time
from pathlib import Path
from refsnn.datasets.cache import FrameSettings, frame_samples
from refsnn.datasets.recordings import list_nmnist
from refsnn.errors import UserError
data, folder, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
def tell(done, n):
    if done == 5:
        print("begun", flush=True)
    if done >= 5:
        time.sleep(pause)
"""
RUN = BUILD + """
try:
    samples = frame_samples("a", list_nmnist(data, "Train"), FrameSettings(3), folder, tell)
    print(float(samples.batch(range(20), 0).sum()))
except UserError as error:
    print(error)
"""


def start(recordings: Recordings, folder: Path, pause: float, program: str = RUN) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, str(recordings.root), str(folder), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@POSIX
def test_what_a_killed_program_left_is_not_used_and_removed(recordings: Recordings, folder: Path) -> None:
    child = start(recordings, folder, 60)
    assert child.stdout is not None
    assert child.stdout.readline() == "begun\n"
    (left,) = files(folder)
    assert left.suffix == ".partial"
    frame_samples("b", recordings, FrameSettings(2), folder)            # while it lives, its file is left alone
    assert left.exists()
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert left.exists()
    samples = frame_samples("a", recordings, SETTINGS, folder)
    assert np.array_equal(everything(samples), direct(recordings))
    assert not left.exists()


def test_two_programs_at_once_both_have_their_frames(recordings: Recordings, folder: Path) -> None:
    children = [start(recordings, folder, 0.03) for _ in range(2)]
    answers = [child.communicate(timeout=60) for child in children]
    total = float(direct(recordings).sum())
    assert [answer for answer, _ in answers] == [f"begun\n{total}\n"] * 2
    assert [errors for _, errors in answers] == ["", ""]
    (path,) = files(folder)
    told = Told()
    assert frame_samples("a", recordings, SETTINGS, folder, told).path == path
    assert told.calls == []


def test_a_program_that_cannot_rename_uses_what_another_has_made(
    recordings: Recordings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = frame_samples("a", recordings, SETTINGS, folder).path
    answers = iter([False, True])                                   # not there at first
    monkeypatch.setattr(cache, "_fits", lambda *_: next(answers))

    def occupied(_partial: Path, _path: Path) -> None:
        raise PermissionError(13, "in use")

    monkeypatch.setattr(cache, "replace_durably", occupied)
    assert np.array_equal(everything(frame_samples("a", recordings, SETTINGS, folder)), direct(recordings))
    assert files(folder) == [path]


@POSIX
@pytest.mark.parametrize("most", [0, 500, 3_000, 9_000])
def test_a_full_disk_is_one_line_and_leaves_nothing(recordings: Recordings, folder: Path, most: int) -> None:
    limited = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most}))\n" + RUN
    child = start(recordings, folder, 0, limited)
    answer, errors = child.communicate(timeout=60)
    assert child.returncode == 0, "HDF5 crashes at the exit of a process in which a write failed"
    assert errors == ""
    *begun, last = answer.splitlines()
    assert begun == [] or most == 9_000, "conversion goes on after the disk is full"
    assert last.startswith(f"{folder}/a-")
    suffix = ".sha256" if most == 0 else ".h5"
    assert last.endswith(f"{suffix}: the cache of frames cannot be written (File too large); free space, or set "
                         "events.cache to another folder")
    assert files(folder) == []


def test_a_folder_that_cannot_be_made_is_one_line(recordings: Recordings, folder: Path) -> None:
    folder.write_text("a file")
    message = refused(lambda: frame_samples("a", recordings, SETTINGS, folder))
    assert "the cache of frames cannot be written (File exists)" in message


@POSIX
def test_memory_does_not_grow_with_the_recordings(recordings: Recordings, folder: Path) -> None:
    program = BUILD + """
import resource
from dataclasses import replace
import numpy as np
few = list_nmnist(data, "Train")
many = replace(few, names=few.names * 10, labels=np.tile(few.labels, 10))
used = []
def look(done, n):
    used.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
samples = frame_samples("a", many, FrameSettings(3, size=(200, 200), method="nearest"), folder, look)
for k in range(0, len(many), 4):
    samples.batch(np.arange(k, k + 4), 0)
    look(0, 0)
print(len(many) * 3 * 2 * 200 * 200 * 4, 1024 * (used[-1] - used[10]))
"""
    answer, errors = start(recordings, folder, 0, program).communicate(timeout=120)
    assert errors == ""
    stored, grown = map(int, answer.split())
    assert stored > 190e6
    assert grown < 40e6
