"""Folders of recordings: their order, their labels, the named splits, and what is refused."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refsnn.datasets.events import Events, write_aedat2
from refsnn.datasets.recordings import (
    CIFAR10DVS_CLASSES,
    SPLITS,
    Recordings,
    list_cifar10dvs,
    list_nmnist,
    split_cifar10dvs,
)
from refsnn.errors import UserError


def cifar10dvs(root: Path, numbers: Iterable[int]) -> Path:
    """The folders of CIFAR10-DVS with empty files of these numbers in each class."""
    names = list(numbers)
    for name in CIFAR10DVS_CLASSES:
        (root / name).mkdir()
        for number in names:
            (root / name / f"cifar10_{name}_{number}.aedat").touch()
    return root


def nmnist(root: Path, part: str, names: Iterable[str] = ("00012.bin", "00003.bin")) -> Path:
    for digit in range(10):
        (root / part / str(digit)).mkdir(parents=True)
        for name in names:
            (root / part / str(digit) / name).touch()
    return root


def refused(act: Callable[[], Any], place: Path) -> str:
    with pytest.raises(UserError) as caught:
        act()
    message = str(caught.value)
    assert message.startswith(f"{place}: ")
    assert "\n" not in message
    return message


def test_cifar10dvs_is_listed_by_class_and_number(tmp_path: Path) -> None:
    (cifar10dvs(tmp_path, [10, 2, 0, 1]) / "cat" / "._cifar10_cat_3.aedat").touch()        # macOS leaves such files
    (tmp_path / "cat" / "readme.txt").touch()
    found = list_cifar10dvs(tmp_path)
    assert found.names[:5] == (*(f"airplane/cifar10_airplane_{k}.aedat" for k in (0, 1, 2, 10)),
                               "automobile/cifar10_automobile_0.aedat")
    assert found.labels.tolist() == [label for label in range(10) for _ in range(4)]
    assert found.labels.dtype == np.int64
    assert found.sensor == (128, 128)
    assert found.path(1) == tmp_path / "airplane" / "cifar10_airplane_1.aedat"


@pytest.mark.parametrize("part", ["Train", "Test"])
def test_nmnist_is_listed_by_digit_and_name(tmp_path: Path, part: Any) -> None:
    found = list_nmnist(nmnist(tmp_path, part), part)
    assert found.names[:3] == (f"{part}/0/00003.bin", f"{part}/0/00012.bin", f"{part}/1/00003.bin")
    assert found.labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert found.sensor == (34, 34)


def test_a_recording_is_read_by_its_format(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    found = Events(draw.integers(0, 128, 9), draw.integers(0, 128, 9), np.arange(9), draw.integers(0, 2, 9), 128, 128)
    root = cifar10dvs(tmp_path, [0])
    write_aedat2(root / "bird" / "cifar10_bird_0.aedat", found, "jaer")
    assert np.array_equal(list_cifar10dvs(root).read(2, "jaer").x, found.x)
    (nmnist(root, "Test", ["00001.bin"]) / "Test" / "4" / "00001.bin").write_bytes(bytes([5, 6, 0, 0, 7]))
    assert list_nmnist(root, "Test").read(4, "").t.tolist() == [7]


def test_what_is_missing_is_named_with_what_was_looked_for(tmp_path: Path) -> None:
    message = refused(lambda: list_cifar10dvs(tmp_path), tmp_path / "airplane")
    assert "no such folder" in message
    assert "cifar10_airplane_0.aedat" in message
    cifar10dvs(tmp_path, [0])
    (tmp_path / "dog" / "cifar10_dog_0.aedat").unlink()
    message = refused(lambda: list_cifar10dvs(tmp_path), tmp_path / "dog")
    assert "holds no recording; looked for cifar10_dog_0.aedat" in message
    assert "no such folder" in refused(lambda: list_nmnist(tmp_path, "Train"), tmp_path / "Train" / "0")
    nmnist(tmp_path, "Train")
    for file in (tmp_path / "Train" / "7").iterdir():
        file.unlink()
    assert "looked for 00001.bin" in refused(lambda: list_nmnist(tmp_path, "Train"), tmp_path / "Train" / "7")


@pytest.mark.parametrize("name", ["cifar10_cat_1.aedat", "cifar10_dog_01.aedat", "cifar10_dog_1 (copy).aedat",
                                  "cifar10_dog_-1.aedat", "dog_1.aedat"])
def test_a_recording_of_another_name_is_refused(tmp_path: Path, name: str) -> None:
    (cifar10dvs(tmp_path, [0]) / "dog" / name).touch()
    assert "not named like a recording" in refused(lambda: list_cifar10dvs(tmp_path), tmp_path / "dog" / name)


# --------------------------------------------------------------------------------------------------------------- splits
def numbers(recordings: Recordings, label: int) -> list[int]:
    names = np.array(recordings.names)[recordings.labels == label]
    return [int(name.rpartition("_")[2].removesuffix(".aedat")) for name in names]


@pytest.fixture(scope="module")
def whole() -> Recordings:
    """CIFAR10-DVS without its files."""
    names = tuple(f"{c}/cifar10_{c}_{k}.aedat" for c in CIFAR10DVS_CLASSES for k in range(1000))
    return Recordings(Path("root"), names, np.repeat(np.arange(10), 1000), (128, 128))


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_parts_every_class_nine_to_one(whole: Recordings, split: str) -> None:
    train, test = split_cifar10dvs(whole, split)
    assert np.bincount(train.labels).tolist() == [900] * 10
    assert np.bincount(test.labels).tolist() == [100] * 10
    assert set(train.names) | set(test.names) == set(whole.names)


def test_the_split_of_spikingjelly_takes_the_names_as_text(whole: Recordings) -> None:
    as_text = sorted(range(1000), key=lambda k: f"cifar10_cat_{k}.npz")     # the files it makes, as Python sorts names
    for label in (0, 3, 9):
        train, test = split_cifar10dvs(whole, "spikingjelly")
        assert numbers(train, label) == sorted(as_text[:900])
        assert numbers(test, label) == sorted(as_text[900:])
    assert numbers(test, 3)[:3] == [91, 92, 93]


def test_the_split_of_tebn_takes_the_numbers(whole: Recordings) -> None:
    train, test = split_cifar10dvs(whole, "tebn")
    assert numbers(test, 5) == list(range(100))
    assert numbers(train, 5) == list(range(100, 1000))


@pytest.mark.parametrize("n", [10, 15, 20, 37])
def test_a_part_of_the_files_is_split_by_the_same_rules(tmp_path: Path, n: int) -> None:
    found = list_cifar10dvs(cifar10dvs(tmp_path, range(n)))
    train, test = split_cifar10dvs(found, "spikingjelly")
    assert len(train) == 10 * math.ceil(n * 0.9)
    assert numbers(test, 1) == sorted(sorted(range(n), key=str)[math.ceil(n * 0.9):])
    train, test = split_cifar10dvs(found, "tebn")
    assert numbers(test, 1) == [k for k in range(n) if k < n / 10]
    assert len(train) + len(test) == 10 * n


def test_a_missing_number_does_not_shift_the_split_of_tebn(tmp_path: Path) -> None:
    found = list_cifar10dvs(cifar10dvs(tmp_path, [k for k in range(100) if k != 4]))
    assert numbers(split_cifar10dvs(found, "tebn")[1], 0) == [0, 1, 2, 3, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(("split", "present", "part"), [
    ("spikingjelly", range(9), "test"), ("tebn", range(500, 600), "test"), ("tebn", [0], "training"),
])  # fmt: skip
def test_a_split_that_leaves_a_class_without_recordings_is_refused(
    tmp_path: Path, split: str, present: Iterable[int], part: str
) -> None:
    found = list_cifar10dvs(cifar10dvs(tmp_path, present))
    assert f"no {part} recording" in refused(lambda: split_cifar10dvs(found, split), tmp_path / "airplane")
