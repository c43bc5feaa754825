"""Data sets by name.

Adding one: write a loader that returns a `Dataset` and enter it in `DATASETS`.
"""

from collections.abc import Callable

import numpy as np

from refsnn.datasets import images
from refsnn.datasets.images import Dataset, hold_out

__all__ = ["DATASETS", "Dataset", "hold_out", "load"]

# name -> loader(path, test_share, generator); only a set whose file the user names has a path, a share, a draw
DATASETS: dict[str, Callable[[str, float, np.random.Generator], Dataset]] = {
    "digits": lambda _path, _test_share, _generator: images.digits(),
    "npz": images.npz,
}


def load(
    name: str, generator: np.random.Generator, *, path: str = "", test_share: float = 0.2, validation: float = 0.0
) -> Dataset:
    """The data set of a configuration's [data] section.

    | Parameter  | Default | Unit | Meaning                                                                     |
    |------------|---------|------|-----------------------------------------------------------------------------|
    | generator  |         |      | draws the test split (where there is one to draw), then the validation split |
    | path       | ""      |      | of the npz file                                                             |
    | test_share | 0.2     | 1    | of an npz file without x_test, y_test                                       |
    | validation | 0.0     | 1    | of the training set; above 0 it takes the place of the test set             |

    Raises UserError for missing or bad files.
    """
    dataset = DATASETS[name](path, test_share, generator)
    return hold_out(dataset, validation, generator) if validation > 0 else dataset
