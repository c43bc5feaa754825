"""Data sets: the digits and their split, anyone's arrays, the share held out, and what is refused."""

import hashlib
import io
import zipfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import every
from refsnn import datasets
from refsnn.config import loads
from refsnn.datasets import Dataset, hold_out, images, recordings, samples
from refsnn.datasets.events import Events, write_aedat2
from refsnn.errors import UserError

CLONE = Path(__file__).resolve().parents[1] / "data" / "digits"
FILES = ("digits.npz", "test_indices.txt")


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def arrays(n: int = 20, classes: int = 4) -> dict[str, Any]:
    return {"x": np.arange(n * 6, dtype=np.uint8).reshape(n, 2, 3), "y": np.arange(n) % classes}


def write(folder: Path, **stored: Any) -> str:
    np.savez(folder / "mine.npz", **stored)
    return str(folder / "mine.npz")


def refused(path: str, share: float = 0.2) -> str:
    with pytest.raises(UserError) as caught:
        images.npz(path, share, generator())
    message = str(caught.value)
    assert message.startswith(path)
    assert "\n" not in message
    return message


# ------------------------------------------------------------------------------------------------ every data set
def check_dataset(one: Dataset) -> None:
    for x, y in [(every(one.train), one.train.labels), (every(one.test), one.test.labels)]:
        assert x.dtype == np.float32
        assert x.ndim in (4, 5)
        assert y.dtype == np.int64
        assert y.shape == x.shape[:1]
        assert y.min() >= 0
        assert y.max() < one.classes
        assert np.isfinite(x).all()
    assert every(one.train).shape[1:] == every(one.test).shape[1:]
    assert set(one.train.labels) == set(range(one.classes))


def made(name: str, folder: Path) -> list[str]:
    """A small data set of the official layout in a folder, and the overrides with which it is read."""
    draw = generator()
    if name == "npz":
        return [f"data.path={write(folder, **arrays())}"]
    if name == "nmnist":
        for part, digit, k in product(("Train", "Test"), range(10), range(2)):
            file = folder / "N-MNIST" / part / str(digit) / f"{k:05d}.bin"
            file.parent.mkdir(parents=True, exist_ok=True)
            places = draw.integers(0, 34, (2, 30))
            events = np.stack([*places, *np.zeros((2, 30)), range(30)])
            file.write_bytes(events.T.astype(np.uint8).tobytes())
        return [f"data.path={folder}", "encode.kind=frames", f"events.cache={folder / 'cache'}"]
    if name == "cifar10dvs":
        for label, k in product(recordings.CIFAR10DVS_CLASSES, range(10)):
            (folder / label).mkdir(exist_ok=True)
            x, y, p = draw.integers(0, 128, 40), draw.integers(0, 128, 40), draw.integers(0, 2, 40)
            one = Events(*(part.astype(t) for part, t in ((x, np.uint16), (y, np.uint16))), np.arange(40),
                         p.astype(np.uint8), 128, 128)
            write_aedat2(folder / label / f"cifar10_{label}_{k}.aedat", one)
        return [f"data.path={folder}", "encode.kind=frames", f"events.cache={folder / 'cache'}", "events.size=16"]
    if name == "digits":
        return []
    coarse = int(name == "cifar100")
    inner = folder / ("cifar-100-binary" if coarse else "cifar-10-batches-bin")
    inner.mkdir()
    for file in ("train", "test") if coarse else (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        fine = np.arange(200) % 100 if coarse else np.arange(10)
        labels = np.stack([fine // 5, fine][1 - coarse:], axis=1)
        records = np.concatenate([labels, draw.integers(0, 256, (len(fine), 3072))], axis=1)
        (inner / f"{file}.bin").write_bytes(records.astype(np.uint8).tobytes())
    return [f"data.path={folder}", f"data.train_samples={200 if coarse else 50}",
            f"data.test_samples={200 if coarse else 10}"]


@pytest.mark.parametrize("name", datasets.DATASETS)
@pytest.mark.parametrize("validation", [0.0, 0.25])
def test_every_data_set_keeps_the_form(name: str, validation: float, tmp_path: Path) -> None:
    keys = [f"data.name={name}", f"data.validation={validation}", *made(name, tmp_path)]
    one = datasets.load(loads("", keys))
    check_dataset(one)
    again = datasets.load(loads("", keys))
    np.testing.assert_array_equal(every(again.train), every(one.train))
    np.testing.assert_array_equal(one.train.batch(np.array([3, 1, 3]), 0), every(one.train)[[3, 1, 3]])


def test_cifar_is_normalised_and_its_border_is_black(tmp_path: Path) -> None:
    one = datasets.load(loads("", ["data.name=cifar10", *made("cifar10", tmp_path), "augment.crop=2"]))
    raw = np.fromfile(tmp_path / "cifar-10-batches-bin" / "test_batch.bin", np.uint8).reshape(-1, 3073)[:, 1:]
    mean, std = (np.array(part)[:, np.newaxis, np.newaxis] for part in
                 ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)))
    np.testing.assert_allclose(every(one.test), (raw.reshape(-1, 3, 32, 32) / 255 - mean) / std, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one.border, ((0 - mean) / std).ravel(), rtol=1e-6)
    assert isinstance(one.train, datasets.Augmented)
    assert one.train.border == one.border


def test_coarse_labels(tmp_path: Path) -> None:
    keys = ["data.name=cifar100", *made("cifar100", tmp_path)]
    fine, coarse = (datasets.load(loads("", [*keys, f"data.labels={kind}"])) for kind in ("fine", "coarse"))
    assert (fine.classes, coarse.classes) == (100, 20)
    np.testing.assert_array_equal(coarse.train.labels, fine.train.labels // 5)


@pytest.mark.parametrize("name", ["cifar10dvs", "nmnist"])
def test_frames_are_converted_once_and_found_by_any_of_the_folders_names(
        name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ["data.name=" + name, *made(name, tmp_path)]
    told: list[tuple[int, int]] = []
    first = datasets.load(loads("", keys), lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1]
    assert every(first.train).shape[1:3] == (4, 2), "T = encode.steps frames of two polarities"
    told.clear()
    monkeypatch.setenv("REFSNN_DATA", str(tmp_path))
    again = datasets.load(loads("", [*keys, "data.path="]), lambda done, total: told.append((done, total)))
    assert told == []
    np.testing.assert_array_equal(every(again.test), every(first.test))


@pytest.mark.parametrize(("name", "words"), [
    ("cifar10", "data_batch_1.bin"), ("cifar10dvs", "no folder has airplane"), ("nmnist", "no folder has Train, Test")])
def test_a_data_set_that_is_not_there_is_looked_for_in_named_places(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        datasets.load(loads("", [f"data.name={name}", f"data.path={tmp_path}"]))
    assert words in str(caught.value)
    assert str(tmp_path) in str(caught.value)


# ------------------------------------------------------------------------------------------------ digits
def test_digits() -> None:
    one = images.digits()
    assert every(one.train).shape == (1437, 1, 8, 8)
    assert every(one.test).shape == (360, 1, 8, 8)
    assert one.classes == 10
    pixels = np.concatenate([every(one.train), every(one.test)]) * 16
    assert (pixels == np.round(pixels)).all()
    assert (pixels.min(), pixels.max()) == (0, 16)
    first = every(one.train)[one.train.labels == 0][0, 0]  # a zero has a hole
    assert first[3:5, 3:5].max() < first.max() / 2


def test_the_split_is_drawn_by_the_rule_it_states() -> None:
    with np.load(CLONE / "digits.npz") as stored:
        labels = stored["labels"].tolist()
    expected = []
    shares = {c: 360 * labels.count(c) / 1797 for c in range(10)}
    rounded_up = sorted(shares, key=lambda c: (int(shares[c]) - shares[c], c))[: 360 - sum(map(int, shares.values()))]
    for c in range(10):
        members = [i for i, label in enumerate(labels) if label == c]
        members.sort(key=lambda i: hashlib.sha256(f"digits/0/{i}".encode()).hexdigest())
        expected += members[: int(shares[c]) + (c in rounded_up)]
    lines = (CLONE / "test_indices.txt").read_text(encoding="utf-8").splitlines()
    assert [int(line) for line in lines if not line.startswith("#")] == sorted(expected)


def test_the_embedded_files_are_small_and_their_page_gives_the_checksum() -> None:
    assert sum(file.stat().st_size for file in CLONE.iterdir()) < 60_000
    page = (CLONE / "README.md").read_text(encoding="utf-8")
    assert images.DIGITS_SHA256 in page
    assert "10.24432/C50P49" in page


def copy_digits(root: Path) -> Path:
    (root / "digits").mkdir()
    for file in FILES:
        (root / "digits" / file).write_bytes((CLONE / file).read_bytes())
    return root / "digits"


def test_the_environment_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy_digits(tmp_path)
    monkeypatch.setenv("REFSNN_DATA", str(tmp_path))
    assert images.find("digits", FILES) == folder
    (folder / "test_indices.txt").write_text("5\n", encoding="utf-8")
    assert len(images.digits().test.labels) == 1
    (folder / "test_indices.txt").unlink()  # an incomplete folder is passed over
    assert len(images.digits().test.labels) == 360
    monkeypatch.setenv("REFSNN_DATA", "")
    assert images.places("digits") == [CLONE, CLONE.parents[1] / "refsnn" / "data" / "digits"]


def test_missing_digits_list_every_place_and_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFSNN_DATA", str(tmp_path / "own"))
    monkeypatch.setattr(images, "__file__", str(tmp_path / "refsnn" / "datasets" / "images.py"))
    with pytest.raises(UserError, match="set REFSNN_DATA") as caught:
        images.digits()
    for folder in ("own/digits", "data/digits", "refsnn/data/digits"):
        assert str(tmp_path / folder) in str(caught.value)


def test_the_installed_package_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REFSNN_DATA", raising=False)
    monkeypatch.setattr(images, "__file__", str(tmp_path / "refsnn" / "datasets" / "images.py"))
    (tmp_path / "refsnn" / "data").mkdir(parents=True)
    assert copy_digits(tmp_path / "refsnn" / "data") == images.find("digits", FILES)
    assert len(images.digits().train.labels) == 1437


@pytest.mark.parametrize("text", ["1\n1\n", "2\n1\n", "-1\n", "1797\n", "one\n", "", "# none\n", "1.5\n"])
def test_damaged_digits_are_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy_digits(tmp_path)
    monkeypatch.setenv("REFSNN_DATA", str(tmp_path))
    (folder / "test_indices.txt").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="restore it"):
        images.digits()
    with (folder / "digits.npz").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(UserError, match="SHA-256"):
        images.digits()


# ------------------------------------------------------------------------------------------------ stratified shares
@given(st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(any), st.floats(0, 1))
def test_a_quota_is_proportional_and_complete(counts: list[int], share: float) -> None:
    total = round(share * sum(counts))
    taken = samples.quota(np.array(counts), total)
    assert taken.sum() == total
    assert (taken >= 0).all()
    assert (taken <= counts).all()
    assert (np.abs(taken - np.array(counts) * total / sum(counts)) < 1).all()


def test_quota_by_hand() -> None:
    assert samples.quota(np.array([5, 3, 2]), 5).tolist() == [3, 1, 1]  # 2.5 1.5 1.0: a tie goes to the lower class
    assert samples.quota(np.array([1, 0, 6]), 2).tolist() == [0, 0, 2]  # 0.29 0 1.71


@given(st.integers(0, 100), st.floats(0.01, 0.99))
def test_a_stratified_draw_leaves_one_of_every_class(seed: int, share: float) -> None:
    labels = np.array([0] * 40 + [1] * 7 + [3] * 1 + [4] * 2)
    drawn = samples.stratified(labels, share, generator(seed))
    assert set(labels[~drawn]) == set(labels)
    counts = np.bincount(labels[drawn], minlength=5)
    expected = np.minimum(samples.quota(np.bincount(labels), round(share * 50)), [39, 6, 0, 0, 1])
    assert counts.tolist() == expected.tolist()


def test_hold_out_takes_the_place_of_the_test_set() -> None:
    whole = images.digits()
    held = hold_out(whole, 0.1, generator())
    assert (len(held.train.labels), len(held.test.labels)) == (1293, 144)
    assert np.abs(np.bincount(held.test.labels) - 14.4).max() < 1
    rows = {x.tobytes() for x in every(whole.train)}
    parts = [{x.tobytes() for x in part} for part in (every(held.train), every(held.test))]
    assert parts[0] | parts[1] == rows
    assert not parts[1] & {x.tobytes() for x in every(whole.test)}
    lookup = {x.tobytes(): y for x, y in zip(every(whole.train), whole.train.labels, strict=True)}
    assert all(lookup[x.tobytes()] == y for x, y in zip(every(held.test), held.test.labels, strict=True))


def test_hold_out_follows_its_generator() -> None:
    whole = images.digits()
    first, same, other = (every(hold_out(whole, 0.1, generator(seed)).test) for seed in (1, 1, 2))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_hold_out_refuses_a_share_that_is_nothing() -> None:
    with pytest.raises(UserError, match="holds out none"):
        hold_out(images.digits(), 1e-6, generator())
    for share in (0, 1):
        with pytest.raises(ValueError, match="share"):
            hold_out(images.digits(), share, generator())


# ------------------------------------------------------------------------------------------------ npz
def test_the_validation_split_leaves_the_test_split_alone(tmp_path: Path) -> None:
    path = write(tmp_path, **arrays())
    plain, validated = (
        datasets.load(loads("", ["data.name=npz", f"data.path={path}", f"data.validation={share}"]))
        for share in (0, 0.25)
    )
    assert (len(plain.train.labels), len(plain.test.labels)) == (16, 4)
    assert (len(validated.train.labels), len(validated.test.labels)) == (12, 4)
    seen = {x.tobytes() for x in (*every(validated.train), *every(validated.test))}
    assert seen == {x.tobytes() for x in every(plain.train)}


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (np.full((8, 2, 3), 255, np.uint8), 1.0),
        (np.full((8, 2, 3), 51, np.uint8), np.float32(51) / np.float32(255)),
        (np.ones((8, 5, 2, 3), bool), 1.0),
        (np.full((8, 5, 2, 3), -3.5, np.float64), -3.5),
        (np.full((8, 4, 5, 2, 3), 300, np.float16), 300),
        (np.full((8, 2, 3), 7, ">f4"), 7),
    ],
)
def test_scales_and_shapes(x: Any, expected: float, tmp_path: Path) -> None:
    one = images.npz(write(tmp_path, x=x, y=np.arange(8) % 2), 0.5, generator())
    check_dataset(one)
    assert (every(one.train) == expected).all()
    assert every(one.train).shape[1:] == ((1, 2, 3) if x.ndim == 3 else x.shape[1:])
    assert one.name == "mine"


def test_a_given_split_is_kept(tmp_path: Path) -> None:
    train, test = arrays(20), arrays(6)
    one = images.npz(write(tmp_path, **train, x_test=test["x"], y_test=test["y"], extra=1), 0.2, generator())
    assert np.array_equal(every(one.train)[:, 0] * 255, train["x"])
    assert np.array_equal(one.train.labels, train["y"])
    assert np.array_equal(every(one.test)[:, 0] * 255, test["x"])
    assert np.array_equal(one.test.labels, test["y"])


def test_samples_keep_their_labels_through_the_draw(tmp_path: Path) -> None:
    y = np.arange(40, dtype=np.uint8) % 3
    one = images.npz(write(tmp_path, x=np.ones((40, 2, 2)) * y[:, None, None], y=y), 0.3, generator())
    assert len(one.test.labels) == 12
    assert (every(one.test)[:, 0, 0, 0] == one.test.labels).all()
    assert (every(one.train)[:, 0, 0, 0] == one.train.labels).all()


X, Y = arrays()["x"], arrays()["y"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"y": None}, "needs the arrays x and y, and both or neither of x_test and y_test; it has: x"),
        ({"x": None}, "it has: y"),
        ({"x": None, "y": None}, "it has: none"),
        ({"x_test": X}, "it has: x, x_test, y"),
        ({"y_test": Y}, "it has: x, y, y_test"),
        ({"x": X.astype(object)}, "x has type object"),
        ({"y": Y.astype(object)}, "y has type object"),
        ({"x": X.astype(np.int16)}, "x has type int16 and shape (20, 2, 3); images are uint8"),
        ({"x": X.astype(complex)}, "images are uint8"),
        ({"x": X[:, 0]}, "shape (20, 3); the shape must be (n, H, W), (n, C, H, W) or (n, T, C, H, W)"),
        ({"x": X.reshape(20, 1, 1, 1, 2, 3)}, "the shape must be"),
        ({"y": Y[:, None]}, "y has type int64 and shape (20, 1); the shape must be (n,)"),
        ({"y": np.int64(3)}, "the shape must be (n,)"),
        ({"x": X[:0], "y": Y[:0]}, "is empty"),
        ({"x": X[:, :, :0]}, "is empty"),
        ({"y": Y[:-1]}, "x has 20 samples and y has 19 labels"),
        ({"x_test": X, "y_test": Y[:5]}, "x_test has 20 samples and y_test has 5 labels"),
        ({"x_test": X[:, :1], "y_test": Y}, "a sample of x is (1, 2, 3), of x_test (1, 1, 3)"),
        ({"x": np.where(X == 50, np.nan, X)}, "x: not finite as float32 at (8, 0, 0, 2)"),
        ({"x": X * 1e300}, "not finite as float32"),
        ({"x_test": X + np.inf, "y_test": Y}, "x_test: not finite"),
        ({"y": Y * 1.0}, "labels are integers"),
        ({"y": Y == 1}, "labels are integers"),
        ({"y": Y.astype(str)}, "labels are integers"),
        ({"y": Y - 1}, "negative label -1"),
        ({"y": Y + 1}, "no sample has label 0, the largest label is 4"),
        ({"y": Y * 1000}, "no sample has label 1, the largest label is 3000"),
        ({"y": Y * 0}, "no sample has label 1, the largest label is 0"),
        ({"y": Y.astype(np.uint64) + 2**63}, "is no label"),
    ],
)
def test_bad_arrays_are_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    stored = {name: array for name, array in (arrays() | change).items() if array is not None}
    assert words in refused(write(tmp_path, **stored))


def test_a_test_share_of_nothing_is_refused(tmp_path: Path) -> None:
    assert "raise data.test_share" in refused(write(tmp_path, **arrays()), 0.01)


def test_files_that_are_no_npz_are_refused(tmp_path: Path) -> None:
    assert "no such file" in refused(str(tmp_path / "gone.npz"))
    (tmp_path / "folder.npz").mkdir()
    assert "not a readable npz file" in refused(str(tmp_path / "folder.npz"))
    for content in (b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"x,y\n1,2\n"):
        (tmp_path / "mine.npz").write_bytes(content)
        assert "not a readable npz file" in refused(str(tmp_path / "mine.npz"))


def with_header(folder: Path, header: str, content: bytes = b"") -> str:
    """An npz file whose x has a header of our own."""
    text = header.encode().ljust(117) + b"\n"
    labels = io.BytesIO()
    np.save(labels, arrays()["y"])
    with zipfile.ZipFile(folder / "mine.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content)
        archive.writestr("y.npy", labels.getvalue())
    return str(folder / "mine.npz")


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ("(20, 100000, 100000)", "above the limit of 8 GiB"),
        ("(20, 4294967296, 4294967296)", "above the limit"),  # the product is 0 in 64 bits
        ("(20, -1, 5)", "no length can be negative"),
        ("(20, 1000, 1000)", "not a readable npz file"),  # the file ends before the array does
        ("(20, 2", "not a readable npz file"),
        ("__import__('os')", "not a readable npz file"),
        ("(20, 2, 3), b'key': 1", "not a readable npz file"),
    ],
)
def test_headers_are_judged_before_anything_is_allocated(shape: str, words: str, tmp_path: Path) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
    assert words in refused(with_header(tmp_path, header, b"\0" * 120))


def test_the_limit_counts_the_bytes_of_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, **arrays())
    monkeypatch.setattr(images, "MAX_BYTES", 480)  # 20 x 2 x 3 x 4 bytes
    images.npz(path, 0.2, generator())
    monkeypatch.setattr(images, "MAX_BYTES", 479)
    assert "above the limit" in refused(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_damaged_file_is_refused_or_read_whole(compressed: bool, tmp_path: Path) -> None:
    (np.savez_compressed if compressed else np.savez)(tmp_path / "mine.npz", **arrays())
    path, draw = tmp_path / "mine.npz", np.random.default_rng(0)
    whole = path.read_bytes()
    expected = images.npz(str(path), 0.2, generator())
    refusals = 0
    for _ in range(300):
        damaged = bytearray(whole[: draw.integers(1, len(whole))] if draw.random() < 0.2 else whole)
        damaged[draw.integers(len(damaged))] ^= 1 << draw.integers(8)
        path.write_bytes(damaged)
        try:
            got = images.npz(str(path), 0.2, generator())
        except UserError:
            refusals += 1
        else:  # the bit was in a date or a name that nothing reads
            assert np.array_equal(every(got.train), every(expected.train))
            assert np.array_equal(got.train.labels, expected.train.labels)
    assert refusals > 150
