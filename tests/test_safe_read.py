"""A stranger's file: what is refused and why, in one line, in bounded time and memory, and what is not refused."""

import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from refsnn import safe_read, trace
from refsnn.cli import main
from refsnn.errors import UserError
from refsnn.safe_read import ask, examine, read

Change = Callable[[Any], object]
REAL = {"seq": 1, "kind": "real"}


def valid(path: Path, change: Change = len, **options: Any) -> Path:
    """A small valid file, changed."""
    with h5py.File(path, "w", **options) as file:
        file.attrs["format"] = trace.FORMAT
        file.create_dataset("step_0000/a", data=np.arange(12.0).reshape(3, 4)).attrs.update(seq=0, kind="real")
        change(file)
    return path


def add(file: Any, data: Any = None, name: str = "b", **options: Any) -> Any:
    dataset = file.create_dataset(name, data=data, **options)
    dataset.attrs.update(REAL)
    return dataset


def compound(file: Any) -> None:
    add(file, np.zeros(3, dtype=[("x", "f8"), ("y", "i4")]))


def variable(file: Any) -> None:
    add(file, shape=(3,), dtype=h5py.vlen_dtype(np.float64))


def texts(file: Any) -> None:
    add(file, np.array(["a", "b"], dtype=object), dtype=h5py.string_dtype())


def nothing(file: Any) -> None:
    add(file, h5py.Empty("f8"))


def external_link(file: Any) -> None:
    file["b"] = h5py.ExternalLink("/etc/passwd", "/b")


def soft_cycle(file: Any) -> None:
    file["step_0000/b"] = h5py.SoftLink("/step_0000")


def hard_cycle(file: Any) -> None:
    file["step_0000/b"] = file["step_0000"]


def second_name(file: Any) -> None:
    file["b"] = file["step_0000/a"]


def datatype(file: Any) -> None:
    file["b"] = np.dtype("f8")


def outside(file: Any) -> None:
    add(file, shape=(4,), dtype="f8", external=[("/etc/passwd", 0, 32)])


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout(shape=(4,), dtype="f8")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "b", shape=(4,))
    file.create_virtual_dataset("b", layout).attrs.update(REAL)


def plug_in(file: Any) -> None:
    add(file, np.zeros(10), chunks=(10,), compression=32015, allow_unknown_filter=True)


def deep(file: Any) -> None:
    add(file, 1.0, "/".join("abcdefghijk"))


def escape(file: Any) -> None:
    add(file, 1.0, "b\x1b[2J")


def wide(file: Any) -> None:
    add(file, 1.0, "b" * 300)


def huge(file: Any) -> None:
    add(file, shape=(1 << 20, 1 << 20), dtype="f8", chunks=(1024, 1024))


def absurd(file: Any) -> None:
    add(file, shape=(0, 1 << 60), dtype="f8", chunks=(1, 1 << 10), maxshape=(None, None))


def many(file: Any) -> None:
    for k in range(20):
        add(file, shape=(1 << 20,), dtype="f8", name=f"b{k}", chunks=(1 << 10,)).attrs["seq"] = k + 1


def bomb(file: Any) -> None:
    add(file, np.zeros(20 << 20), compression="gzip", compression_opts=9, chunks=(1 << 20,))


def chunk(file: Any) -> None:
    add(file, shape=(1,), dtype="f8", chunks=(1 << 28,), maxshape=(None,), compression="gzip")


def no_seq(file: Any) -> None:
    del add(file, 1.0).attrs["seq"]


def array_seq(file: Any) -> None:
    add(file, 1.0).attrs["seq"] = [1, 2]


def text_seq(file: Any) -> None:
    add(file, 1.0).attrs["seq"] = "1"


def same_seq(file: Any) -> None:
    add(file, 1.0).attrs["seq"] = 0


def no_kind(file: Any) -> None:
    del add(file, 1.0).attrs["kind"]


def strange_kind(file: Any) -> None:
    add(file, 1.0).attrs["kind"] = "spike"


def number_kind(file: Any) -> None:
    add(file, 1.0).attrs["kind"] = 5


def no_format(file: Any) -> None:
    del file.attrs["format"]


def other_format(file: Any) -> None:
    file.attrs["format"] = "refsnn-trace/2"


def long_attribute(file: Any) -> None:
    file.attrs["note"] = "x" * 70_000


def array_attribute(file: Any) -> None:
    file.attrs["note"] = np.zeros(1000)


def terminal_attribute(file: Any) -> None:
    file.attrs["note"] = "\x1b]0;owned\x07"


REFUSED: list[tuple[Change, str]] = [
    (compound, "record b holds .*, not numbers of up to 8 bytes; write it as float64"),
    (variable, "record b holds object, not numbers"), (texts, "record b holds object, not numbers"),
    (nothing, "record b holds float64, not numbers"),
    (lambda f: add(f, np.zeros(2, "c16")), "record b holds complex128"),
    (lambda f: add(f, np.zeros(2, "S5")), r"record b holds \|S5"),
    (external_link, "b is a link that leads elsewhere; write a dataset of its own"),
    (soft_cycle, "step_0000/b is a link that leads elsewhere"),
    (hard_cycle, "step_0000/b is a second name of something"), (second_name, "is a second name of something"),
    (datatype, "b is neither a group nor a dataset"), (outside, "record b is stored in another file"),
    (virtual, "record b is stored in another file"), (plug_in, "record b is packed by filter 32015; write it plain"),
    (deep, "some deeper than 8 groups"), (escape, r"record b\?\[2J has a name of more than 200 or of unprintable"),
    (wide, "has a name of more than 200"), (huge, "claims 8,796,093,022,208 bytes of records or more"),
    (absurd, "claims 9,223,372,036,854,775,808 bytes"), (many, "bytes of records or more, and may hold 67,108,864"),
    (bomb, "claims 167,772,160 bytes .*; have it written with fewer records, or less compressed"),
    (chunk, "claims 2,147,483,648 bytes"), (no_seq, "record b has no attribute seq; add it"),
    (array_seq, "its attribute seq must be one integer"), (text_seq, "its attribute seq must be one integer"),
    (same_seq, "the attribute seq of two records is the same"), (no_kind, "record b has no attribute kind"),
    (strange_kind, "record b: its kind is spike, and must be one of real, spikes"),
    (number_kind, "its attribute kind must be one text"),
    (no_format, "is no refsnn-trace/1 file: it has no attribute format"),
    (other_format, "its format is refsnn-trace/2, and refsnn-trace/1 is what can be read"),
    (long_attribute, "attribute note"), (array_attribute, "attribute note is neither a number nor a text"),
    (terminal_attribute, "attribute note holds signs that cannot be printed"),
]


def refusal(path: Path, most: float = 10.0) -> str:
    """The one line that a file is refused with, within `most` seconds of processor time and bounded memory."""
    began, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with pytest.raises(UserError) as caught:
        read(path)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert spent.ru_utime + spent.ru_stime - used.ru_utime - used.ru_stime < most
    assert time.monotonic() - began < 10 * most
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    assert line.isprintable()
    return line.removeprefix(f"{path}: ")


@pytest.mark.parametrize(("change", "why"), REFUSED, ids=lambda c: getattr(c, "__name__", ""))
def test_what_is_not_to_be_read_is_refused_in_one_line(tmp_path: Path, change: Change, why: str) -> None:
    options = {"libver": "latest"} if change is long_attribute else {}
    path = valid(tmp_path / "t.h5", change, **options)
    with pytest.raises(safe_read._Refused) as caught:
        safe_read.inspect(str(path), 64 << 20)
    assert re.search(why, str(caught.value)), str(caught.value)


@pytest.mark.parametrize("change", [external_link, soft_cycle, huge, bomb, variable, escape])
def test_the_child_process_passes_the_reason_on(tmp_path: Path, change: Change) -> None:
    path = valid(tmp_path / "t.h5", change)
    with pytest.raises(safe_read._Refused) as caught:
        safe_read.inspect(str(path), 64 << 20)
    assert refusal(path) == str(caught.value)


def test_what_may_be_read_is_read(tmp_path: Path) -> None:
    values = {"b": np.array([1, 0], bool), "c": np.array(5), "d": np.zeros((0, 3), np.float32), "e": np.ones(3, ">i2"),
              "f": np.array([np.nan, 1]), "g": np.array([np.inf]), "h": np.ones(4, np.float16)}

    def change(file: Any) -> None:
        for k, (name, value) in enumerate(values.items()):
            add(file, value, name).attrs["seq"] = 10 * k + 1
        options = {"compression": "gzip", "shuffle": True, "fletcher32": True, "chunks": (10, 10)}
        add(file, np.eye(100), "packed", **options).attrs.update(seq=99, kind=np.bytes_("real"))
        add(file, np.eye(50), "lzf", compression="lzf").attrs["seq"] = 98
        file.attrs.update({"config": "seed = 0\nδ = 1\n", "steps": 3, "note": np.bytes_("ascii")})

    for version in ("earliest", "latest"):
        path = valid(tmp_path / f"{version}.h5", change, libver=version)
        found = examine(path)
        assert found.records == len(values) + 3
        assert found.not_finite == ["f", "g"]
        assert found.bytes >= 100 * 100 * 8
        records, attributes = read(path)
        assert list(records) == ["step_0000/a", *values, "lzf", "packed"]
        assert attributes["note"] == "ascii"
        assert records["packed"].kind == "real"
        for name, value in values.items():
            np.testing.assert_array_equal(records[name].value, value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, why in ((tmp_path / "missing.h5", "no such file"), (tmp_path, "is no regular file"),
                      (tmp_path / "pipe", "is no regular file"), (Path("/dev/zero"), "is no regular file")):
        with pytest.raises(UserError, match=f"{re.escape(str(path))}: {why}"):
            read(path)


def test_foreign_and_cut_files_are_refused(tmp_path: Path) -> None:
    whole = valid(tmp_path / "t.h5").read_bytes()
    foreign = tmp_path / "foreign.h5"
    for content in (b"", b"\x89HDF\r\n\x1a\n", b"step,loss\n0,2.3\n", whole[:len(whole) // 2], whole[:-1],
                    whole[:8] + os.urandom(2000), os.urandom(5000)):
        foreign.write_bytes(content)
        assert refusal(foreign).startswith("damaged, or no HDF5 file (")


def looping(path: Path) -> Path:
    """A valid file in which one byte says that a text of the heap takes no room: HDF5 2.0 never gets past it."""
    content = bytearray(valid(path).read_bytes())
    place = content.index((4).to_bytes(8, "little") + b"real")
    content[place] = 0
    path.write_bytes(content)
    return path


def test_a_file_that_makes_the_library_loop_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe_read, "SECONDS", 2)
    line = refusal(looping(tmp_path / "t.h5"))
    assert re.match("reading it takes more than 2 s of processor time; damaged, or made to harm|damaged, or no", line)


def misbehave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, seconds: int = 1) -> dict[str, Any]:
    """What `ask` says of a child process that limits itself and then does something bad."""
    (tmp_path / "bad.py").write_text("import sys, os, time, signal\nfrom refsnn.safe_read import limit\n"
                                     f"limit(int(sys.argv[1]), int(sys.argv[2]))\n{body}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return ask([], seconds, 64 << 20, "bad")


def test_a_child_that_spins_hangs_or_crashes_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    assert "more than 1 s of processor" in misbehave(tmp_path, monkeypatch, "while True: pass")["refused"]
    monkeypatch.setattr(safe_read, "PATIENCE", 2)
    assert "more than 1 s of processor" in misbehave(tmp_path, monkeypatch, "time.sleep(1000)")["refused"]
    assert time.monotonic() - began < 60
    monkeypatch.setattr(safe_read, "PATIENCE", 60)
    crash = misbehave(tmp_path, monkeypatch, "os.kill(os.getpid(), signal.SIGSEGV)")["refused"]
    assert crash.startswith("makes the HDF5 library crash (SIGSEGV); damaged, or made to harm")
    with pytest.raises(RuntimeError, match=r"the reader's child process failed: (.|\n)*oh dear"):
        misbehave(tmp_path, monkeypatch, "raise ValueError('oh dear')")


@pytest.mark.skipif(sys.platform != "linux", reason="the address space is limited on Linux alone")
def test_a_child_gets_no_more_memory_than_it_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "try:\n    bytes(100 << 20)\nexcept MemoryError:\n    print('{\"refused\": \"no memory\"}')"
    assert misbehave(tmp_path, monkeypatch, body) == {"refused": "no memory"}
    assert "print" not in misbehave(tmp_path, monkeypatch, "bytes(10 << 20)\nprint('{}')")


def test_a_stranger_folder_is_not_imported_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = valid(tmp_path / "t.h5")
    (tmp_path / "h5py.py").write_text("raise SystemExit('imported from the folder of the file')")
    monkeypatch.chdir(tmp_path)
    assert examine(Path("t.h5")).records == 1
    assert path.exists()


FUZZ = """
import os, random, sys
from refsnn import safe_read
from pathlib import Path
base, case, first = Path(sys.argv[1]).read_bytes(), sys.argv[2], int(sys.argv[3])
for seed in range(first, first + 100):
    r, content = random.Random(seed), bytearray(base)
    for _ in range(r.choice((1, 1, 2, 4, 16, 64))):
        place = r.randrange(len(content) - 8)
        patch = r.choice((r.randbytes(1), b"\\xff" * 8, r.randrange(len(base)).to_bytes(4, "little"), bytes(8)))
        content[place:place + len(patch)] = patch
    Path(case).write_bytes(content[:r.randrange(len(content))] if r.random() < 0.1 else content)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = safe_read.main(["2", str(192 << 20), case, str(64 << 20)])
        sys.stdout.flush()
        os._exit(code)
    _, status, used = os.wait4(child, 0)
    print("status", os.waitstatus_to_exitcode(status), round(used.ru_utime + used.ru_stime, 1), used.ru_maxrss)
"""


def test_damaged_files_end_in_an_answer_or_at_a_limit(tmp_path: Path) -> None:
    """Random damage, each file examined in a process of its own: an answer, or a death that the parent reports."""
    def records(file: Any) -> None:
        for k in range(12):
            packed = {"chunks": (5, 5), "compression": "gzip"} if k % 3 == 0 else {}
            add(file, np.random.default_rng(k).random((5, 10)), f"g{k % 4}/r{k}", **packed).attrs["seq"] = k + 1

    for k, version in enumerate(("earliest", "latest")):
        path = valid(tmp_path / f"{version}.h5", records, libver=version)
        done = subprocess.run([sys.executable, "-c", FUZZ, str(path), str(tmp_path / "case.h5"), str(1000 * k)],
                              stdout=subprocess.PIPE, text=True, timeout=300, check=True)
        ends = re.findall(r"status (-?\d+) ([\d.]+) (\d+)", done.stdout)
        assert len(ends) == 100
        for code, seconds, kibibytes in ends:
            assert int(code) <= 0, f"the child neither answered nor died of a limit: {code}"
            assert float(seconds) < 8
            assert int(kibibytes) < 400_000
        assert done.stdout.count('"refused"') > 30


# ------------------------------------------------------------------------------------------------------ the command


@pytest.mark.parametrize("change", [external_link, bomb, terminal_attribute])
def test_show_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture, change: Change) -> None:
    path = valid(tmp_path / "t.h5", change)
    assert main(["show", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"refsnn: {path}: ")
    assert error.count("\n") == 1


def test_show_lists_a_strangers_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def change(file: Any) -> None:
        add(file, np.array([np.inf, -np.inf, np.nan]))
        add(file, np.array([[1, 0], [1, 1]], np.uint8), "mask").attrs.update(seq=2, kind="mask")
        file.attrs.update({"versions": "[" * 50_000, "note": "words " * 1000})

    assert main(["show", str(valid(tmp_path / "t.h5", change))]) == 0
    out = capsys.readouterr().out
    assert "records with NaN or infinite numbers: 1, first b" in out
    assert re.search(r"^mask +2×2 +uint8 +mask +0 +0\.75 +1 +0\.750", out, re.M)
    assert max(len(line) for line in out.splitlines()) < 250


@pytest.mark.parametrize("rows", [b"[]", b'{"metrics": 5, "structure": []}', b'{"metrics": [{}], "structure": []}',
                                  b"[" * 50_000, b"\xff", b'{"metrics": [[1]], "structure": [{"layer": "all"}]}'])
def test_show_refuses_a_checkpoint_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture, rows: bytes) -> None:
    def change(file: Any) -> None:
        file.attrs.update({"kind": "checkpoint", "config": "seed = 0"})
        add(file, np.frombuffer(rows, np.uint8), "tables")
        add(file, np.zeros(6), "progress/counters").attrs["seq"] = 2

    assert main(["show", str(valid(tmp_path / "t.h5", change))]) == 2
    assert capsys.readouterr().err.count("\n") == 1
