"""The command `data`: what is found, what is wrong with files, recordings made from images."""

from pathlib import Path

import numpy as np
import pytest

from refsnn import cli, stock
from refsnn.datasets import cifar
from refsnn.datasets.recordings import CIFAR10DVS_CLASSES, list_cifar10dvs


def run(*args: str) -> int:
    return cli.main(["data", *args])


@pytest.fixture
def nmnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """N-MNIST with one recording a class and part, in the folder that REFSNN_DATA names."""
    monkeypatch.setenv("REFSNN_DATA", str(tmp_path))
    for part in ("Train", "Test"):
        for digit in range(10):
            folder = tmp_path / "N-MNIST" / part / str(digit)
            folder.mkdir(parents=True)
            (folder / "00001.bin").write_bytes(bytes([3, 4, 128, 0, 9] * 2))
    return tmp_path / "N-MNIST"


def test_list_names_every_data_set_and_where_it_is(nmnist: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(stock.ABOUT) == 5
    (found,) = (line for line in lines if line.startswith("nmnist"))
    assert found.endswith(f"in {nmnist}")
    (missing,) = (line for line in lines if line.startswith("cifar10dvs"))
    assert "not found: no folder has airplane" in missing
    assert str(nmnist.parent) in missing


def test_check_reads_every_recording(nmnist: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", "nmnist") == 0
    assert "40 events; no recordings cannot be read" in capsys.readouterr().out
    (nmnist / "Test" / "7" / "00001.bin").write_bytes(b"1234567")
    assert run("check", "nmnist") == 1
    out = capsys.readouterr().out
    assert f"{nmnist / 'Test' / '7' / '00001.bin'}: ends 2 bytes into event 1" in out
    assert "1 recording cannot be read" in out


def test_check_of_what_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", "cifar10", "--path", str(tmp_path)) == 2
    assert run("check", "mnist") == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("refsnn: data set cifar10: ")
    assert "there are digits, cifar10" in second


def test_the_digits_are_sound(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", "digits") == 0
    assert "SHA-256 as published" in capsys.readouterr().out


def test_simulate_writes_the_layout_and_goes_on_where_it_was(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(0)
    x = draw.integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
    arrays = cifar.CifarArrays(x, np.arange(20) % 10, x[:1], np.zeros(1, np.int64), CIFAR10DVS_CLASSES)
    monkeypatch.setattr(stock, "folder_of", lambda *_: tmp_path)
    monkeypatch.setattr(cifar, "read", lambda *_: arrays)
    out = tmp_path / "made"
    assert run("simulate", "--per-class", "1", "--out", str(out)) == 0
    assert "CIFAR10-DVS" in capsys.readouterr().err
    first = {path: path.read_bytes() for path in out.glob("*/*.aedat")}
    assert len(first) == 10
    assert run("simulate", "--per-class", "2", "--out", str(out)) == 0
    assert len(list_cifar10dvs(out)) == 20
    assert all(path.read_bytes() == data for path, data in first.items())
    assert run("simulate", "--per-class", "3", "--out", str(out)) == 2
    assert "3 recordings of each class are asked for" in capsys.readouterr().err
