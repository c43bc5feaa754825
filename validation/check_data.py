"""CIFAR and the resizing of frames, by torchvision and PyTorch, against refsnn's readers and `resize`.

    REFSNN_DATA=FOLDER python validation/check_data.py      half a minute; without the data, on files made up

torchvision reads the python version of CIFAR. It is written here from the binary version, record by record, as Python 2
wrote the published one. So three readers see the same images: torchvision, refsnn's of the python version, refsnn's of
the binary version. torchvision refuses files without the published MD5, which these cannot have (the names of the
images are in no other file); its reader runs without that test.
"""

import io
import pickle
import struct
import sys
import tempfile
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from common import EXACT, Array, Table, Worst, main, need, unequal

from refsnn.datasets import cifar
from refsnn.datasets.images import roots
from refsnn.datasets.resize import resize
from refsnn.errors import UserError

FLOAT32 = 2**-24        # the rounding of refsnn's result; PyTorch is given float64, its float32 weights are off by 1e-5
SIZES = ((128, 128, 48, 48), (128, 128, 64, 64), (34, 34, 17, 17), (34, 34, 48, 48), (180, 240, 45, 60), (7, 5, 3, 9),
         (48, 48, 48, 48), (10, 10, 1, 1), (3, 2, 8, 8))
MADE_UP = 40            # images in each file where there are no real ones


def check(table: Table) -> None:
    """The readers of both data sets, and every method of resizing."""
    need("torch")
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("empty"))    # it wants CUDA's operators
    need("torchvision.datasets", "torchvision.transforms")
    for name in cifar.SETS:
        with tempfile.TemporaryDirectory() as folder:
            check_cifar(table, name, Path(folder), np.random.default_rng(0))
    check_linear(table, np.random.default_rng(1))
    check_tet(table, np.random.default_rng(2))


# -------------------------------------------------------------------------------------------------------------- CIFAR
class Python2(pickle._Pickler):     # type: ignore[name-defined]
    """Writes bytes as Python 2 wrote its text."""

    def save_text(self, text: bytes) -> None:
        """SHORT_BINSTRING or BINSTRING, the length, the bytes."""
        short = len(text) < 256
        self.write((b"U" + struct.pack("<B", len(text)) if short else b"T" + struct.pack("<I", len(text))) + text)
        self.memoize(text)

    dispatch = pickle._Pickler.dispatch | {bytes: save_text}        # type: ignore[attr-defined]


def write_python(file: Path, stored: dict[bytes, Any]) -> None:
    """A dictionary as Python 2 and the NumPy of its time wrote it."""
    out = io.BytesIO()
    Python2(out, protocol=2).dump(stored)
    file.write_bytes(out.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))


def check_cifar(table: Table, name: str, folder: Path, rng: np.random.Generator) -> None:
    """The images and labels of three readers, and of the records themselves."""
    layout = cifar.SETS[name]
    kinds = sorted(layout.labels, key=lambda kind: layout.labels[kind].byte)
    binary, python = real_files(table, name) or folder / layout.binary, folder / layout.python
    if binary.parent == folder:
        make_up(binary, name, rng)
    python.mkdir()
    records = {}
    for stem in (*layout.train, *layout.test):
        records[stem] = np.fromfile(binary / f"{stem}.bin", np.uint8).reshape(-1, len(kinds) + 3072)
        labels = {layout.labels[kind].key.encode(): records[stem][:, i].tolist() for i, kind in enumerate(kinds)}
        names = [b"image_s_%06d.png" % i for i in range(len(records[stem]))]
        write_python(python / stem, {b"batch_label": b"a batch", **labels, b"data": records[stem][:, len(kinds):],
                                     b"filenames": names})
    train, test = (np.concatenate([records[stem] for stem in part]) for part in (layout.train, layout.test))
    how = {"train_samples": len(train), "test_samples": len(test)}
    for version, files in (("binary", binary), ("python", python)):
        ours = {kind: cifar.read(name, files, labels=kind, **how) for kind in kinds}
        compare(table, f"{layout.title}, {version} version", ours, theirs(name, python), (train, test), kinds)
    (peer, _), digests = theirs(name, python), layout.digests
    published = [*peer.train_list, *peer.test_list]
    differing = sum(digests.get(stem) != md5 for stem, md5 in published)
    table.add(f"{layout.title}: published MD5s that differ", len(published), differing, EXACT)


def compare(table: Table, what: str, ours: dict[str, Any], peers: list[Any], records: tuple[Array, Array],
            kinds: list[str]) -> None:
    """Two rows: pixels and labels. torchvision has no coarse labels: they are compared with the records."""
    pixels, labels = Worst(), Worst()
    for part, peer, rows in zip(("train", "test"), peers, records, strict=True):
        x = getattr(ours["fine"], f"x_{part}")
        pixels.count(unequal(x, np.moveaxis(peer.data, 3, 1)), x.size)
        labels.count(unequal(getattr(ours["fine"], f"y_{part}"), peer.targets), len(x))
        for i, kind in enumerate(kinds):
            labels.count(unequal(getattr(ours[kind], f"y_{part}"), rows[:, i]), len(x))
    pixels.report(table, f"{what}: pixels that differ", EXACT)
    labels.report(table, f"{what}: labels that differ", EXACT)


def theirs(name: str, python: Path) -> list[Any]:
    """torchvision's training and test set."""
    from torchvision import datasets

    base = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    unchecked = type("Unchecked", (base,), {"_check_integrity": lambda _: True, "_load_meta": lambda _: None})
    return [unchecked(str(python.parent), train=train) for train in (True, False)]


def real_files(table: Table, name: str) -> Path | None:
    """The folder of the binary version, if it is there; it may hold a part of the images."""
    try:
        folder = cifar.find_folder(name, roots(name, ""))
    except UserError:
        folder = None
    layout = cifar.SETS[name]
    if folder is None or not all((folder / f"{stem}.bin").is_file() for stem in (*layout.train, *layout.test)):
        table.note(f"{layout.title}: made-up files of {MADE_UP} images; set REFSNN_DATA for the real ones")
        return None
    table.note(f"{layout.title}: the real files")
    return folder


def make_up(binary: Path, name: str, rng: np.random.Generator) -> None:
    """Small files of the binary version."""
    layout = cifar.SETS[name]
    binary.mkdir()
    for stem in (*layout.train, *layout.test):
        labels = [rng.integers(0, len(layout.labels[kind].classes), MADE_UP) for kind in sorted(layout.labels)]
        pixels = rng.integers(0, 256, (MADE_UP, 3072))
        (binary / f"{stem}.bin").write_bytes(np.column_stack([*labels, pixels]).astype(np.uint8).tobytes())


# ------------------------------------------------------------------------------------------------------------- resize
def check_linear(table: Table, rng: np.random.Generator) -> None:
    """The methods that are weighted means, on counts of few and of many events."""
    import torch
    from torch.nn.functional import interpolate
    from torchvision.transforms import Resize

    peers = {
        "bilinear": lambda x, size: interpolate(x, size, mode="bilinear", align_corners=False),
        "antialias": lambda x, size: Resize(size, antialias=True)(x),
        "nearest": lambda x, size: interpolate(x, size, mode="nearest"),
        "area": lambda x, size: interpolate(x, size, mode="area"),
    }
    for method, peer in peers.items():
        worst = Worst()
        for height, width, *size in SIZES:
            for rate in (0.05, 20):
                frames = rng.poisson(rate, (3, 2, height, width)).astype(np.float64)
                worst.see(resize(frames, tuple(size), method), peer(torch.from_numpy(frames), size).numpy())
        worst.report(table, f"resize, {method}, {len(SIZES)} pairs of sizes", EXACT if method == "nearest" else FLOAT32)


def check_tet(table: Table, rng: np.random.Generator) -> None:
    """The method "tet": by way of Pillow's images of gray and opacity."""
    import torch
    from torchvision.transforms import Compose, Resize, ToPILImage, ToTensor

    differing = entries = 0
    for height, width, *size in SIZES:
        if height <= size[0] or width <= size[1]:
            continue
        by_pillow = Compose([ToPILImage(), Resize(size), ToTensor()])
        for rate in (0.05, 1, 20):
            frames = rng.poisson(rate, (3, 2, height, width))
            with warnings.catch_warnings(action="ignore"):      # Pillow on modes
                wanted = np.stack([by_pillow(torch.from_numpy(frame.astype(np.float32))).numpy() for frame in frames])
            differing += unequal(resize(frames, tuple(size), "tet"), wanted)
            entries += wanted.size
    table.add("resize, tet, by Pillow: entries that differ", entries, differing, EXACT)


if __name__ == "__main__":
    main("Readers of CIFAR, and resizing, against torchvision and PyTorch", ("torch", "torchvision", "pillow"), check)
