"""Data sets by name.

Adding one: write a loader that returns a `Dataset` and enter it in `DATASETS`.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from refsnn.datasets import cifar, images
from refsnn.datasets.augment import Augmented, Normalised
from refsnn.datasets.samples import Dataset, InMemory, Samples, Subset, hold_out
from refsnn.rng import stream
from refsnn.schema import Config

__all__ = ["DATASETS", "Augmented", "Dataset", "InMemory", "Normalised", "Samples", "Subset", "hold_out", "load"]


def _cifar(config: Config, _: np.random.Generator) -> Dataset:
    """CIFAR-10 or CIFAR-100, normalised by the mean and deviation that are published for its training set."""
    keys = config.data
    arrays = cifar.read(keys.name, cifar.find_folder(keys.name, images.roots(keys.name, keys.path)), labels=keys.labels,
                        train_samples=keys.train_samples, test_samples=keys.test_samples)
    mean, std = cifar.STATISTICS[keys.name]
    black = tuple(float(-m / s) for m, s in zip(mean, std, strict=True))
    train, test = (Normalised(InMemory(x, y), mean, std) for x, y in
                   ((arrays.x_train, arrays.y_train), (arrays.x_test, arrays.y_test)))
    return Dataset(keys.name, train, test, len(arrays.classes), black)


# name -> loader(configuration, generator); the generator draws the test split of a set that has none
DATASETS: dict[str, Callable[[Config, np.random.Generator], Dataset]] = {
    "digits": lambda _config, _generator: images.digits(),
    "npz": lambda config, generator: images.npz(config.data.path, config.data.test_share, generator),
    "cifar10": _cifar,
    "cifar100": _cifar,
}


def load(config: Config) -> Dataset:
    """The data set of a configuration: [data] says which and how split, [augment] what is done to training samples.

    Held-out samples (`data.validation`) take the place of the test set and are not augmented.
    Raises UserError for missing or bad files.
    """
    generator = stream(config.seed, "split")
    dataset = DATASETS[config.data.name](config, generator)
    if config.data.validation > 0:
        dataset = hold_out(dataset, config.data.validation, generator)
    keys = config.augment
    if not (keys.crop or keys.flip or keys.cutout or keys.roll):
        return dataset
    changed = Augmented(dataset.train, config.seed, keys.crop, keys.flip, keys.cutout, keys.roll, dataset.border)
    return replace(dataset, train=changed)
