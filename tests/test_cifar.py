"""CIFAR from files in the official layouts: both versions are one data set, and other files are refused in one line."""

import hashlib
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_unpickle import python2

from refsnn.datasets import cifar
from refsnn.datasets.cifar import CifarArrays, read
from refsnn.datasets.images import roots
from refsnn.errors import UserError

COUNT = {"cifar10": 20, "cifar100": 200}        # images in each file, of each class equally many
KEYS = {"cifar10": ("labels",), "cifar100": ("coarse_labels", "fine_labels")}
FOLDERS = {"cifar10": ("cifar-10-batches-bin", "cifar-10-batches-py"),
           "cifar100": ("cifar-100-binary", "cifar-100-python")}
NAMES = sorted(COUNT)


def write(folder: Path, name: str, versions: str = "binary python") -> dict[str, np.ndarray[Any, Any]]:
    """Small files of a data set in both versions; returns their records, (n, 1 or 2 labels + 3072)."""
    rng, layout, written = np.random.default_rng(5), cifar.SETS[name], {}
    for stem in (*layout.train, *layout.test):
        pixels = rng.integers(0, 256, (COUNT[name], 3072), np.uint8)
        fine = rng.permutation(COUNT[name]) % (10 if name == "cifar10" else 100)
        labels = [fine] if name == "cifar10" else [fine // 5, fine]
        written[stem] = np.column_stack([*labels, pixels]).astype(np.uint8)
        for version, official in zip(("binary", "python"), FOLDERS[name], strict=True):
            (folder / official).mkdir(exist_ok=True)
            if version == "binary" in versions:
                (folder / official / f"{stem}.bin").write_bytes(written[stem].tobytes())
            elif version == "python" in versions:
                (folder / official / stem).write_bytes(pickled(name, written[stem]))
    return written


def pickled(name: str, records: np.ndarray[Any, Any], **changes: Any) -> bytes:
    head = len(KEYS[name])
    lists = {key.encode(): records[:, i].tolist() for i, key in enumerate(KEYS[name])}
    names = [b"image_s_%06d.png" % i for i in range(len(records))]
    stored = {b"batch_label": b"a batch", **lists, b"data": records[:, head:], b"filenames": names}
    return python2(stored | {key.encode(): value for key, value in changes.items()})


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sets that count as complete with as many images as `write` writes."""
    for name, layout in list(cifar.SETS.items()):
        parts = {part: dict.fromkeys(getattr(layout, part), COUNT[name]) for part in ("train", "test")}
        monkeypatch.setitem(cifar.SETS, name, replace(layout, **parts))


def equal(a: CifarArrays, b: CifarArrays) -> bool:
    assert a.classes == b.classes
    pairs = [(getattr(a, part), getattr(b, part)) for part in ("x_train", "y_train", "x_test", "y_test")]
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)


def refusal(name: str, folder: Path, **how: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(name, folder, **how)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------ what is read
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", ["fine", "coarse"])
@pytest.mark.parametrize("name", NAMES)
def test_both_versions_hold_the_same_images(tmp_path: Path, name: str, kind: str) -> None:
    written = write(tmp_path, name)
    if kind not in cifar.SETS[name].labels:
        assert "CIFAR-10 has no such labels; choose fine" in refusal(name, tmp_path, labels=kind)
        return
    binary, python = (read(name, tmp_path / official, labels=kind) for official in FOLDERS[name])
    assert equal(binary, python)
    n, test = len(written) - 1, written[list(written)[-1]]
    assert binary.x_train.shape == (n * COUNT[name], 3, 32, 32)
    assert (binary.x_train.dtype, binary.y_train.dtype) == (np.uint8, np.int64)
    assert binary.x_train.flags.writeable
    head = len(KEYS[name])
    row = test[7]
    assert binary.x_test[7, 2, 5, 9] == row[head + 2 * 1024 + 5 * 32 + 9]       # blue, row 5, column 9
    assert binary.y_test[7] == row[KEYS[name].index({"cifar10": "labels"}.get(name, f"{kind}_labels"))]
    every = np.concatenate([written[stem] for stem in list(written)[:-1]])
    assert np.array_equal(binary.x_train.reshape(-1, 3072), every[:, head:])


@pytest.mark.parametrize("version", [0, 1])
def test_the_first_images_of_a_part_of_the_files(tmp_path: Path, version: int) -> None:
    written = write(tmp_path, "cifar10")
    folder = tmp_path / FOLDERS["cifar10"][version]
    for stem in ("data_batch_4", "data_batch_5"):
        (folder / (stem + (".bin", "")[version])).unlink()      # no image of them is wanted
    found = read("cifar10", folder, train_samples=45, test_samples=20)
    first = np.concatenate([written[f"data_batch_{i}"] for i in (1, 2, 3)])[:45]
    assert np.array_equal(found.x_train.reshape(45, 3072), first[:, 1:])
    assert found.y_train.tolist() == first[:, 0].tolist()
    assert "no such file, but others of the data set are there" in refusal("cifar10", folder, train_samples=61)


def test_files_are_found_where_they_are_and_the_binary_version_first(tmp_path: Path) -> None:
    write(tmp_path, "cifar10")
    binary, python = (tmp_path / official for official in FOLDERS["cifar10"])
    assert cifar.find_folder("cifar10", [tmp_path / "nothing", tmp_path]) == binary
    assert cifar.find_folder("cifar10", [python, tmp_path]) == python
    assert cifar.find_folder("cifar10", roots("cifar10", str(binary))) == binary


@pytest.mark.parametrize("name", NAMES)
def test_where_there_are_no_files_all_places_and_files_are_named(tmp_path: Path, name: str) -> None:
    places = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(UserError) as caught:
        cifar.find_folder(name, places)
    message, layout = str(caught.value), cifar.SETS[name]
    for word in (*map(str, places), *FOLDERS[name], *(f"{stem}.bin" for stem in (*layout.train, *layout.test)),
                 layout.archive, "data.path", "REFSNN_DATA"):
        assert word in message
    assert "\n" not in message
    with pytest.raises(UserError, match="found neither"):
        read(name, tmp_path)


def test_the_names_of_the_classes() -> None:
    counts = {(name, kind): len(set(labels.classes)) for name, layout in cifar.SETS.items()
              for kind, labels in layout.labels.items()}
    assert counts == {("cifar10", "fine"): 10, ("cifar100", "fine"): 100, ("cifar100", "coarse"): 20}
    for names in cifar.CLASSES.values():
        assert list(names) == sorted(names)


# --------------------------------------------------------------------------------------------------- what is refused
def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def lose_a_record(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-(len(KEYS[name_of(file)]) + 3072)])


def name_of(file: Path) -> str:
    return "cifar10" if "cifar-10-" in str(file) else "cifar100"


def mislabel(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[3 * (len(KEYS[name_of(file)]) + 3072)] = 213
    file.write_bytes(content)


def become_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def become_a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


DAMAGE = {
    "cut": (cut, "bytes, expected", "multiple of"),
    "one record fewer": (lose_a_record, "bytes, expected", None),
    "one record more": (lambda file: file.write_bytes(file.read_bytes() + bytes(3074 - ("10-" in str(file)))),
                        "bytes, expected", "at most"),
    "empty": (lambda file: file.write_bytes(b""), "has 0 bytes, expected", "has 0 bytes"),
    "label": (mislabel, "image 3, counted from 0, has the", "label 213"),
    "folder": (become_a_folder, "is not a regular file", "is not a regular file"),
    "pipe": (become_a_pipe, "is not a regular file", "is not a regular file"),
    "gone": (Path.unlink, "no such file", "no such file"),
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("part", [False, True], ids=["all", "part"])
def test_a_damaged_binary_file_is_named(tmp_path: Path, name: str, damage: str, part: bool) -> None:
    write(tmp_path, name)
    file = tmp_path / FOLDERS[name][0] / ("data_batch_2.bin" if name == "cifar10" else "train.bin")
    change, all_said, part_said = DAMAGE[damage]
    change(file)
    how = {"train_samples": 25, "test_samples": 5} if part else {}
    said = part_said if part else all_said
    if said is None:
        assert len(read(name, tmp_path, **how).y_train) == 25
    elif damage == "gone" and name == "cifar100":
        assert f"{file}: no such file" in refusal(name, file.parent, **how)
    else:
        message = refusal(name, tmp_path, **how)
        assert message.startswith(f"{file}: ")
        assert said in message
        assert "unpack the archive of the data set again" in message


@pytest.mark.usefixtures("small")
def test_a_cut_file_says_found_expected_and_how_to_use_a_part(tmp_path: Path) -> None:
    write(tmp_path, "cifar10")
    file = tmp_path / FOLDERS["cifar10"][0] / "test_batch.bin"
    cut(file)
    assert refusal("cifar10", tmp_path) == (
        f"{file}: has 61,459 bytes, expected 61,460: 20 records of 3,073 bytes; unpack the archive of the data set "
        "again, or use the first n images: data.test_samples = n")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("changes", "said"), [
    ({"data": np.zeros((20, 3071), np.uint8)}, "'data' is no array (n, 3072) of uint8"),
    ({"data": np.zeros((19, 3072), np.uint8)}, "has 19 images, expected 20; unpack"),
    ({"data": np.zeros((21, 3072), np.uint8)}, "has 21 images, expected 20"),
    ({"data": [1, 2]}, "'data' is no array"),
    ({"labels": list(range(19))}, "'labels' is no list of 20 whole numbers"),
    ({"labels": [b"1"] * 20}, "'labels' is no list of 20 whole numbers"),
    ({"labels": [256] * 20}, "'labels' is no list of 20 whole numbers 0..255"),
    ({"labels": [-1] * 20}, "'labels' is no list of 20 whole numbers 0..255"),
    ({"labels": [0] * 19 + [10]}, "image 19, counted from 0, has the fine label 10; CIFAR-10 has 0..9"),
    ({"labels": b"text"}, "'labels' is no list"),
    ({"labels": np.zeros((20, 1), np.uint8)}, "'labels' is no list"),
])
def test_a_pickle_of_another_structure_is_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    written = write(tmp_path, "cifar10", "python")
    file = tmp_path / FOLDERS["cifar10"][1] / "data_batch_2"
    file.write_bytes(pickled("cifar10", written["data_batch_2"], **changes))
    message = refusal("cifar10", file.parent)
    assert message.startswith(f"{file}: ")
    assert said in message


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("content", "said"), [
    (b"", "ends early"),
    (b"\x80\x02}.", "'data' is no array"),
    (b"\x80\x02}(U\x04datacos\nsystem\nU\x04true\x85Ru.", "calls os.system: not an array or built-in"),
    (pickle.dumps({b"data": np.zeros((2, 3072)), b"labels": [0] * 20}, 2), "an array that is not of uint8"),
    (pickle.dumps({b"data": np.full((2, 3072), None), b"labels": [0] * 20}, 2), "an array that is not of uint8"),
    (bytes(200_000), "images take at most"),
])
def test_a_file_that_is_no_cifar_pickle_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    write(tmp_path, "cifar10", "python")
    file = tmp_path / FOLDERS["cifar10"][1] / "test_batch"
    file.write_bytes(content)
    message = refusal("cifar10", file.parent)
    assert message.startswith(f"{file}: ")
    assert said in message


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", [{"train_samples": 50_001}, {"test_samples": 10**15}, {"train_samples": -1}])
def test_a_number_of_images_that_there_never_were_is_refused(tmp_path: Path, name: str, how: dict[str, int]) -> None:
    write(tmp_path, name)
    key, = how
    assert f"data.{key} = {how[key]}: CIFAR-" in refusal(name, tmp_path, **({"train_samples": 5} | how))


@pytest.mark.parametrize("name", NAMES)
def test_more_images_than_the_files_hold_are_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, name)
    message = refusal(name, tmp_path, train_samples=5, test_samples=COUNT[name] + 1)
    assert f"data.test_samples = {COUNT[name] + 1}, but there are {COUNT[name]} images in te" in message


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("version", "place"), [(0, "numpy.fromfile"), (1, "pathlib.Path.read_bytes")])
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, place: str
) -> None:
    write(tmp_path, "cifar10")

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(place, refuse)
    folder = tmp_path / FOLDERS["cifar10"][version]
    message = refusal("cifar10", folder)
    assert message.startswith(str(folder))
    assert "cannot be read: Permission denied; check the file" in message


@pytest.mark.usefixtures("small")
@given(st.booleans(), st.data())
@settings(max_examples=150, deadline=None)
def test_files_at_random_are_read_or_refused(tmp_path_factory: Any, binary: bool, data: Any) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    for stale in folder.iterdir():
        stale.unlink()
    records = np.zeros((20, 3073), np.uint8)
    for stem in (*cifar.SETS["cifar10"].train, *cifar.SETS["cifar10"].test):
        content = bytearray(records.tobytes() if binary else pickled("cifar10", records))
        if stem == "data_batch_3":
            for _ in range(data.draw(st.integers(0, 3))):
                at = data.draw(st.integers(0, 500) | st.integers(0, len(content)))
                content[at:at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
        (folder / (stem + ".bin" * binary)).write_bytes(content)
    try:
        found, said = read("cifar10", folder), ""
    except UserError as error:
        found, said = None, str(error)
    assert "\n" not in said
    assert found is None or (found.x_train.shape == (100, 3, 32, 32) and found.y_train.max() < 10)


# ------------------------------------------------------------------------------------------------------------ checking
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_check_knows_the_published_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, version: int
) -> None:
    write(tmp_path, name)
    folder, algorithm = tmp_path / FOLDERS[name][version], ("SHA-1", "MD5")[version]
    lines, well = cifar.check(name, folder)
    assert not well         # these files were made up
    assert sum(f": {algorithm} is " in line and "published is " in line for line in lines) == len(digests(folder))
    publish(monkeypatch, name, folder)
    lines, well = cifar.check(name, folder)
    assert well, lines
    n, classes = len(digests(folder)) - 1, 10 if name == "cifar10" else 100
    each = f"{n * COUNT[name] // classes} of each of the {classes} fine classes"
    assert f"{n * COUNT[name]} training images, {each}" in lines
    assert (lines[-1] == "labels and pixels: SHA-256 as of the published ones") == (name == "cifar10")


def digests(folder: Path) -> dict[str, str]:
    """As they are published: MD5 of the python version, SHA-1 of the binary version."""
    return {file.name: (hashlib.sha1 if file.suffix else hashlib.md5)(file.read_bytes()).hexdigest()
            for file in folder.iterdir()}


def publish(monkeypatch: pytest.MonkeyPatch, name: str, folder: Path) -> None:
    """Let the files be the published ones."""
    content = None if name == "cifar100" else cifar.content(read(name, folder))
    monkeypatch.setitem(cifar.SETS, name, replace(cifar.SETS[name], content=content,
                                                  digests=cifar.SETS[name].digests | digests(folder)))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("damage", "said"), [
    (cut, "61,459 bytes, expected"), (Path.unlink, "data_batch_2.bin: cannot be read: No such file"),
    (lambda file: file.write_bytes(bytes([9]) + file.read_bytes()[1:]), "9 to 11, not equally many, of each"),
    (lambda file: file.write_bytes(file.read_bytes()[:-1] + b"\0"), "labels and pixels: their SHA-256 is not that of"),
])
def test_check_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any, said: str) -> None:
    written = write(tmp_path, "cifar10")
    folder = tmp_path / FOLDERS["cifar10"][0]
    assert written["data_batch_2"][0, 0] != 9
    assert written["data_batch_2"][-1, -1] != 0
    publish(monkeypatch, "cifar10", folder)
    assert cifar.check("cifar10", folder)[1]
    damage(folder / "data_batch_2.bin")
    lines, well = cifar.check("cifar10", folder)
    assert not well
    assert any(said in line for line in lines), lines
    assert any("data_batch_2.bin: " in line and "as published" not in line for line in lines)
    assert sum("as published" in line for line in lines) == 5


def test_the_published_digests_are_of_their_files() -> None:
    for layout in cifar.SETS.values():
        stems = [*layout.train, *layout.test]
        assert set(layout.digests) == {*stems, *(f"{stem}.bin" for stem in stems)}
        assert all(len(digest) == (40 if name.endswith(".bin") else 32) for name, digest in layout.digests.items())


def test_the_real_images_if_they_are_here() -> None:
    try:
        folder = cifar.find_folder("cifar10", roots("cifar10", ""))
    except UserError:
        pytest.skip("CIFAR-10 is not here; REFSNN_DATA names no folder with it")
    lines, well = cifar.check("cifar10", folder)
    assert well, lines
    found = read("cifar10", folder, train_samples=2, test_samples=1)
    assert [found.classes[label] for label in found.y_train] == ["frog", "truck"]
    whole = read("cifar10", folder).x_train / np.float32(255)
    for moment, published in zip((whole.mean((0, 2, 3), np.float64), whole.std((0, 2, 3), np.float64)),
                                 cifar.STATISTICS["cifar10"]["training"], strict=True):
        assert np.allclose(moment, published, atol=6e-5)
