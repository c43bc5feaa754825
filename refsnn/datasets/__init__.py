"""Data sets by name.

Adding one: write a loader that returns a `Dataset` and enter it in `DATASETS`.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from refsnn.datasets import images
from refsnn.datasets.augment import Augmented, Normalised
from refsnn.datasets.samples import Dataset, InMemory, Samples, Subset, hold_out
from refsnn.rng import stream
from refsnn.schema import Config

if TYPE_CHECKING:
    from refsnn.datasets.recordings import Recordings

__all__ = ["DATASETS", "Augmented", "Dataset", "InMemory", "Normalised", "Samples", "Subset", "event_folder",
           "hold_out", "load", "stand_in"]

Tell = Callable[[int, int], None]       # (recordings converted, all of them)


def _digits(_: Config, __: np.random.Generator, ___: Tell | None) -> Dataset:
    """The embedded digits."""
    return images.digits()


def _npz(config: Config, generator: np.random.Generator, _: Tell | None) -> Dataset:
    """Anyone's arrays."""
    return images.npz(config.data.path, config.data.test_share, generator)


def _cifar(config: Config, _: np.random.Generator, __: Tell | None) -> Dataset:
    """CIFAR-10 or CIFAR-100, normalised."""
    from refsnn.datasets import cifar

    keys = config.data
    arrays = cifar.read(keys.name, cifar.find_folder(keys.name, images.roots(keys.name, keys.path)), labels=keys.labels,
                        train_samples=keys.train_samples, test_samples=keys.test_samples)
    mean, std = cifar.STATISTICS[keys.name][keys.normalise]
    black = tuple(-m / s for m, s in zip(mean, std, strict=True))
    train = Normalised(InMemory(arrays.x_train, arrays.y_train), mean, std)
    test = Normalised(InMemory(arrays.x_test, arrays.y_test), mean, std)
    return Dataset(keys.name, train, test, len(arrays.classes), black)


def _cifar10dvs(config: Config, _: np.random.Generator, tell: Tell | None) -> Dataset:
    """CIFAR10-DVS as frames, split as `events.split` says."""
    from refsnn.datasets import recordings

    root = event_folder(config)
    train, test = recordings.split_cifar10dvs(recordings.list_cifar10dvs(root), config.events.split)
    return _frames(config, train, test, tell)


def _nmnist(config: Config, _: np.random.Generator, tell: Tell | None) -> Dataset:
    """N-MNIST as frames, with its own split."""
    from refsnn.datasets import recordings

    root = event_folder(config)
    return _frames(config, recordings.list_nmnist(root, "Train"), recordings.list_nmnist(root, "Test"), tell)


def event_folder(config: Config) -> Path:
    """The first folder that holds all folders of a data set of recordings; raises UserError that says where it looked.

    Each place that is looked at may be the folder itself, or hold it under its usual name.
    """
    from refsnn.datasets import recordings

    called, parts = {"nmnist": ("N-MNIST", ("Train", "Test")),
                     "cifar10dvs": ("cifar10dvs", recordings.CIFAR10DVS_CLASSES)}[config.data.name]
    roots = images.roots(config.data.name, config.data.path)
    return images.first_with(config.data.name, [where for root in roots for where in (root, root / called)], parts)


def _frames(config: Config, train: "Recordings", test: "Recordings", tell: Tell | None) -> Dataset:
    """Recordings as frames that stay in their cache."""
    from refsnn.datasets.cache import FrameSettings, frame_samples

    keys = config.events
    settings = FrameSettings(config.encode.steps, keys.frames_by, keys.remainder, (keys.size, keys.size) if keys.size
                             else None, keys.resize, keys.convention)
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(keys.cache or f"{caches}/refsnn").expanduser()
    train_frames, test_frames = (frame_samples(f"{config.data.name}-{part}", one, settings, folder, tell)
                                 for part, one in (("train", train), ("test", test)))
    return Dataset(config.data.name, train_frames, test_frames, 10)


# name -> loader(configuration, generator, tell); the generator draws the test split of a set that has none
DATASETS: dict[str, Callable[[Config, np.random.Generator, Tell | None], Dataset]] = {
    "digits": _digits, "npz": _npz, "cifar10": _cifar, "cifar100": _cifar, "cifar10dvs": _cifar10dvs, "nmnist": _nmnist,
}


def stand_in(config: Config) -> Dataset | None:
    """One sample of zeros in place of each part of a large set, to see what a network makes of it without its files.

    None for a set that is small, or whose form only its file knows.
    """
    size = config.events.size
    forms = {
        "cifar10": (3, 32, 32), "cifar100": (3, 32, 32),
        "cifar10dvs": (config.encode.steps, 2, size or 128, size or 128),
        "nmnist": (config.encode.steps, 2, size or 34, size or 34),
    }
    if config.data.name not in forms:
        return None
    zeros = InMemory(np.zeros((1, *forms[config.data.name]), np.float32), np.zeros(1, np.int64))
    classes = {"fine": 100, "coarse": 20}[config.data.labels] if config.data.name == "cifar100" else 10
    return Dataset(config.data.name, zeros, zeros, classes)


def load(config: Config, tell: Tell | None = None) -> Dataset:
    """The data set of a configuration: [data] says which and how split, [augment] what is done to training samples.

    Held-out samples (`data.validation`) take the place of the test set and are not augmented. `tell` is told how many
    recordings are converted to frames, where that has to be done.
    Raises UserError for missing or bad files.
    """
    generator = stream(config.seed, "split")
    dataset = DATASETS[config.data.name](config, generator, tell)
    if config.data.validation > 0:
        dataset = hold_out(dataset, config.data.validation, generator)
    keys = config.augment
    if not (keys.crop or keys.flip or keys.cutout or keys.roll):
        return dataset
    changed = Augmented(dataset.train, config.seed, keys.crop, keys.flip, keys.cutout, keys.roll, dataset.border)
    return replace(dataset, train=changed)
