"""Given weights and masks to start a run from: an npz file of arrays by parameter name.

    conv1.weight        values, in the weight's dense shape (C_out, C_in, kH, kW) or (F_out, F_in)
    conv1.weight.mask   bool of the same shape: where a connection is; left out: where the value is not 0
    fc1.bias  norm1.gamma  norm1.beta  norm1.running_mean  norm1.running_var      optional, as they are

What the file does not name is drawn as for any run.
"""

import difflib
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn.errors import UserError

Array = npt.NDArray[Any]


def read_given(path: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """The arrays of a file, each with a known name and the shape in `shapes`; {} for an empty path.

    shapes: the dense shape of everything that can be given, by name, masks left out.
    Raises UserError for a file that is missing or damaged, an unknown name, a wrong shape, NaN or infinity.
    """
    if not path:
        return {}
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; structure.start names an npz file of weights and masks") from None
    except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile, AttributeError) as error:
        raise UserError(f"{path}: damaged, or no npz file of arrays ({error})") from None
    for name, array in arrays.items():
        _check(path, name, array, shapes)
    return arrays


def _check(path: str, name: str, array: Array, shapes: Mapping[str, tuple[int, ...]]) -> None:
    owner = name.removesuffix(".mask")
    if owner not in shapes:
        nearest = difflib.get_close_matches(owner, shapes, n=1, cutoff=0) or list(shapes)
        raise UserError(f"{path}: the network has no {name}; the nearest is {nearest[0]}")
    if array.shape != shapes[owner]:
        raise UserError(f"{path}: {name} has shape {array.shape}, the network's is {shapes[owner]}")
    if name.endswith(".mask"):
        if array.dtype != bool:
            raise UserError(f"{path}: {name} holds {array.dtype}; a mask is boolean")
    elif array.dtype.kind != "f" or not np.isfinite(array).all():
        raise UserError(f"{path}: {name} must hold finite floating-point numbers")


def given_mask(arrays: Mapping[str, Array], name: str, drawn: Array) -> Array:
    """The mask of a weight: the given one, else where a given value is not 0, else the drawn one."""
    if f"{name}.mask" in arrays:
        return arrays[f"{name}.mask"]
    return arrays[name] != 0 if name in arrays else drawn
