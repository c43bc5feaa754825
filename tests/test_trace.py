"""Recorders and files of records: what is kept, in which order, and that a file is there whole or not at all."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from refsnn.errors import UserError
from refsnn.trace import FORMAT, FileRecorder, Record, Recorder, read, write


def test_activations_leave_as_time_batch_features() -> None:
    rec, maps, vectors = Recorder(), np.arange(2 * 3 * 4 * 5 * 6).reshape(2, 3, 4, 5, 6), np.zeros((7, 5, 6))
    rec.samples("map", maps)
    rec.samples("vector", vectors)
    assert [r.value.shape for r in rec.records] == [(5, 6, 2, 3, 4), (5, 6, 7)]
    assert rec.records[0].value[1, 2, 0, 1, 3] == maps[0, 1, 3, 1, 2]


def test_a_record_is_a_copy() -> None:
    rec, value = Recorder(), np.zeros(3)
    rec.value("a", value)
    value += 1
    assert not rec.records[0].value.any()


def test_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match="kind must be one of real"):
        Recorder().value("a", 1, "spike")


def test_streamed_records_are_those_that_memory_keeps(tmp_path: Path) -> None:
    memory = Recorder()
    with FileRecorder(tmp_path / "t.h5", {"kind": "trace", "seed": 3}) as stream:
        for rec in (memory, stream):
            rec.begin_step(12)
            rec.samples("b", np.random.default_rng(0).random((2, 3, 4)))
            rec.value("a", np.array([], dtype=np.int64), "index")
            rec.value("c/d", True, "mask")
        assert list(tmp_path.glob("t.h5")) == [], "the file appears when it is whole"
        assert stream.count == 3
    found, attributes = read(tmp_path / "t.h5")
    assert attributes == {"format": FORMAT, "kind": "trace", "seed": 3}
    assert list(found) == ["step_0012/b", "step_0012/a", "step_0012/c/d"], "in the order of execution"
    for kept in memory.records:
        np.testing.assert_array_equal(found[kept.name].value, kept.value)
        assert found[kept.name].value.dtype == kept.value.dtype
        assert found[kept.name].kind == kept.kind
    assert [p.name for p in tmp_path.iterdir()] == ["t.h5"]


@pytest.mark.parametrize(("only", "expected"), [
    (["forward/*"], ["step_0000/forward/lif1/h", "step_0001/forward/lif1/h"]),
    (["*/lif1/?"], ["step_0000/forward/lif1/h", "step_0001/forward/lif1/h"]),
    (["step_0001/*"], ["step_0001/loss/value", "step_0001/forward/lif1/h"]),
    (["loss/value", "step_0001/forward/*"], ["step_0000/loss/value", "step_0001/loss/value",
                                             "step_0001/forward/lif1/h"]),
])
def test_only_keeps_what_a_pattern_names(tmp_path: Path, only: list[str], expected: list[str]) -> None:
    looked: list[str] = []
    with FileRecorder(tmp_path / "t.h5", {}, only, lambda record: looked.append(record.name)) as rec:
        for step in range(2):
            rec.begin_step(step)
            rec.value("loss/value", 0.5)
            rec.value("forward/lif1/h", np.zeros(2))
    assert list(read(tmp_path / "t.h5")[0]) == looked == expected


def test_a_pattern_that_matches_nothing_is_an_error_and_no_file(tmp_path: Path) -> None:
    def record() -> None:
        with FileRecorder(tmp_path / "t.h5", {}, ["loss/*", "forward/lif9/*"]) as rec:
            rec.begin_step(0)
            rec.value("loss/value", 0.5)
            rec.value("forward/lif1/h", np.zeros(2))

    with pytest.raises(UserError, match=r"--only forward/lif9/\*: no record has such a name; nearest: forward/lif1/h"):
        record()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_fails_in_the_midst_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "t.h5"
    write(path, [Record("old", "real", np.ones(2))], {})
    before = path.read_bytes()

    def record() -> None:
        with FileRecorder(path, {}) as rec:
            rec.value("new", np.zeros(1000))
            raise error

    with pytest.raises(error):
        record()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["t.h5"]


def test_places_that_cannot_hold_a_file_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        FileRecorder(tmp_path, {})
    with pytest.raises(UserError, match="cannot be written \\(No such file or directory\\)"):
        FileRecorder(tmp_path / "missing" / "t.h5", {})
    with pytest.raises((OSError, RuntimeError), match="attribute"):         # more than HDF5 takes
        FileRecorder(tmp_path / "t.h5", {"config": np.zeros(1 << 20)})
    assert list(tmp_path.iterdir()) == []


def child(script: str, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True,
                          timeout=60, check=False)


@pytest.mark.parametrize(("most", "size"), [(100_000, 1_000), (3_000, 10), (400, 10), (70_000, 100_000)])
def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path: Path, most: int, size: int) -> None:
    write(tmp_path / "t.h5", [Record("old", "real", np.ones(2))], {})
    script = """
import resource, sys
from pathlib import Path
import numpy as np
from refsnn.errors import UserError
from refsnn.trace import FileRecorder
most, size, path = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
try:
    with FileRecorder(path, {"kind": "trace"}) as rec:
        for k in range(50):
            rec.value(f"r{k}", np.ones(size))
except UserError as error:
    print(error)
"""
    done = child(script, most, size, tmp_path / "t.h5")
    assert done.returncode == 0, "HDF5 crashes at the exit of a process in which a write failed"
    assert "t.h5: cannot be written (File too large); free space or choose another --out\n" in done.stdout
    assert done.stderr == ""
    assert [p.name for p in tmp_path.iterdir()] == ["t.h5"]
    assert list(read(tmp_path / "t.h5")[0]) == ["old"]


def test_memory_does_not_grow_with_the_records(tmp_path: Path) -> None:
    script = """
import resource, sys
from pathlib import Path
import numpy as np
from refsnn.trace import FileRecorder
value, used = np.ones(1 << 17), []
with FileRecorder(Path(sys.argv[1]), {}) as rec:
    for step in range(100):
        rec.begin_step(step)
        rec.value("a", value)
        used.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(used[-1] - used[5])
"""
    done = child(script, tmp_path / "t.h5")
    assert int(done.stdout) < 20_000, "KiB more for 100 MiB of records"
    assert (tmp_path / "t.h5").stat().st_size > 100 << 20


def test_killed_in_the_midst_leaves_no_file(tmp_path: Path) -> None:
    script = """
import itertools, sys
from pathlib import Path
import numpy as np
from refsnn.trace import FileRecorder
with FileRecorder(Path(sys.argv[1]), {}) as rec:
    for step in itertools.count():
        rec.begin_step(step)
        rec.value("a", np.ones(1000))
        print(step, flush=True)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "t.h5")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while int(process.stdout.readline()) < 20:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "t.h5").exists()


def test_text_of_fixed_length_reads_as_text(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file.attrs["format"] = np.bytes_(FORMAT)
        file.create_dataset("a", data=[1.5]).attrs.update({"seq": 0, "kind": np.bytes_("real")})
    found, attributes = read(tmp_path / "t.h5")
    assert attributes["format"] == FORMAT
    assert found["a"].kind == "real"
