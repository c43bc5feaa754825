"""The commands `trace` and `compare` as a person types them."""

import json
from pathlib import Path

import h5py
import pytest

from refsnn import cli

STEP = ["--steps", "1", "--set", "dtype=float64", "--set", "train.batch=8"]


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traces") / "golden.h5"
    assert cli.main(["trace", "tiny", *STEP, "--out", str(path)]) == 0
    return path


def test_trace_prints_a_line_for_every_record(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "spikes.h5"
    assert cli.main(["trace", "tiny", *STEP, "--out", str(out), "--only", "forward/lif*/s", "--print"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [f"step_0000/forward/lif{k}/s" for k in (1, 2, 3)]
    assert lines[-1] == f"{out}: 3 records of 1 step; float64"


def test_the_same_twice_agrees(golden: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["compare", str(golden), str(golden)]) == 0
    assert "verdict: the files agree" in capsys.readouterr().out


def test_a_soft_reset_is_found_and_named(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = tmp_path / "other.h5"
    assert cli.main(["trace", "tiny", *STEP, "--set", "neuron.reset=soft", "--out", str(other)]) == 0
    for forced in ([], ["--forced"]):
        assert cli.main(["compare", str(golden), str(other), *forced]) == 1
        text = capsys.readouterr().out
        assert "step_0000/forward/lif1/v" in text
        assert 'docs/conventions.md, row "soft reset"' in text
    assert cli.main(["compare", str(golden), str(other), "--json"]) == 1
    assert "soft reset" in json.dumps(json.loads(capsys.readouterr().out))


def test_a_wider_tolerance_forgives(golden: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.h5"
    other.write_bytes(golden.read_bytes())
    with h5py.File(str(other), "r+") as file:
        file["step_0000/loss/value"][...] *= 1.001
    assert cli.main(["compare", str(golden), str(other)]) == 1
    assert cli.main(["compare", str(golden), str(other), "--rtol", "0.01"]) == 0


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n" + bytes(100), b"not a trace"])
def test_a_file_that_is_no_trace_is_one_line_and_exit_2(golden: Path, tmp_path: Path, content: bytes,
                                                        capsys: pytest.CaptureFixture) -> None:
    other = tmp_path / "other.h5"
    other.write_bytes(content)
    for command in (["compare", str(golden), str(other)], ["compare", str(other), str(golden)], ["show", str(other)]):
        assert cli.main(command) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert str(other) in error


@pytest.mark.parametrize(("argv", "words"), [
    (["compare", "nowhere.h5", "nowhere.h5"], "nowhere.h5"),
    (["trace", "tiny", "--steps", "0", "--out", "t.h5"], "--steps 0"),
    (["trace", "tiny", "--steps", "1", "--out", "/proc/none/t.h5"], "/proc/none/t.h5"),
    (["trace", "tiny", "--steps", "1", "--out", "t.h5", "--only", "lif9"], "lif9"),
])
def test_bad_words_are_one_line_and_exit_2(argv: list[str], words: str, tmp_path: Path,
                                           monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error
    assert not (tmp_path / "t.h5").exists()
