"""The command `measure`: eqs. (2)-(4) of anyone's weights, read from an npz file.

Every array with two axes or more is a layer: row i, its first axis, is neuron i, and the rest is laid flat. A boolean
array `<name>.mask` or `<name>_mask` of the same shape says which of its weights are active, an active 0 included;
without one the weights that are not 0 are taken for the active ones.
"""

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn import pq
from refsnn.errors import UserError
from refsnn.topology import Scope, Structure, entry_units, units

Array = npt.NDArray[Any]
Row = dict[str, Any]
SUFFIXES = (".mask", "_mask")
MAX_BYTES = 16 << 30        # of all arrays together, unpacked: a larger file is refused before anything is allocated
DAMAGED = (OSError, ValueError, TypeError, EOFError, KeyError, OverflowError, RuntimeError, MemoryError, SyntaxError,
           TokenError, zlib.error, zipfile.BadZipFile)


@dataclass(frozen=True)
class Weights:
    """One array of a file: its shape, the active weights (nnz,) in C order, and where they are."""

    name: str
    shape: tuple[int, ...]
    data: Array
    structure: Structure


@dataclass(frozen=True)
class Report:
    """What was measured. rows: a dict a line, total last; notes: sentences on what was skipped or taken for granted."""

    rows: list[Row]
    notes: list[str]


def measure_file(path: Path, scope: Scope = "layer", *, p: float = 0.5, q: float = 1.0, eta: float = 1e-3,
                 gamma: float = 1.0, beta: float = 0.9, every_unit: bool = False) -> Report:
    """Measure the weights of an npz file, in units of a scope.

    | Parameter  | Default | Unit | Meaning                                                                |
    |------------|---------|------|------------------------------------------------------------------------|
    | scope      | layer   |      | unit with its own index and count: layer, neuron, global               |
    | p, q       | 0.5, 1  | 1    | norms of the PQ index, eq. (2), 0 < p < q                              |
    | eta        | 0.001   | 1    | the paper's alpha_r, eq. (3)                                           |
    | gamma      | 1       | 1    | factor on the share beyond the bound, eq. (4)                          |
    | beta       | 0.9     | 1    | largest share of a unit that may go, eq. (4)                           |
    | every_unit | False   |      | a row for every unit, not one for every array                          |

    Rows: array, shape (or row), units, active (d), size (N), index (mean over units, weighted by d), index_min,
    index_max, bound, count (sums over units), ratio_active (count / d), ratio_total (count / N, the paper's c).
    Raises UserError for a file that cannot be read or holds no weights, and for parameters out of range.
    """
    weights, notes = read_weights(path)
    structures = [one.structure for one in weights]
    unit, number = entry_units(structures, scope)
    try:
        found = pq.measure(np.concatenate([one.data for one in weights]), unit, number,
                           p=p, q=q, eta=eta, gamma=gamma, beta=beta)
    except ValueError as error:
        raise UserError(str(error)) from error
    owned = [np.unique(of_row) for of_row in units(structures, scope)[0]]
    rows: list[Row] = []
    if every_unit and scope == "neuron":
        for one, numbers in zip(weights, owned, strict=True):
            size = one.structure.shape[1]
            rows += [_row(one.name, str(row), found, np.array([k]), size) for row, k in enumerate(numbers)]
    elif scope != "global":
        rows += [_row(one.name, _shown(one.shape), found, numbers, one.structure.size)
                 for one, numbers in zip(weights, owned, strict=True)]
    if scope == "global" or len(rows) > 1:
        rows.append(_row("all", "", found, np.arange(number), sum(s.size for s in structures)))
    return Report(rows, notes)


def _row(name: str, where: str, found: pq.Measurement, numbers: Array, size: int) -> Row:
    """What the units `numbers` measured, together."""
    d, index, count = found.d[numbers], found.index[numbers], int(found.count[numbers].sum())
    alive = index[d > 0] if (d > 0).any() else np.zeros(1)
    active = int(d.sum())
    return {
        "array": name, "shape": where, "units": numbers.size, "active": active, "size": size,
        "index": float(d @ index) / max(active, 1), "index_min": float(alive.min()), "index_max": float(alive.max()),
        "bound": float(found.bound[numbers].sum()), "count": count,
        "ratio_active": count / max(active, 1), "ratio_total": count / size,
    }


def _shown(shape: Sequence[int]) -> str:
    return "×".join(str(n) for n in shape)


# ---------------------------------------------------------------------------------------------------- reading the file


def read_weights(path: Path) -> tuple[list[Weights], list[str]]:
    """The arrays of a file that can be weights, and notes on the others. Raises UserError, one line."""
    arrays = _read(path)
    masks = {name: found for name in arrays for found in [name + s for s in SUFFIXES] if found in arrays}
    weights, unmasked, skipped = [], [], []
    for name, value in arrays.items():
        if name in masks.values():
            continue
        if value.ndim < 2 or value.size == 0 or value.dtype.kind not in "fiu":
            skipped.append(f"{name} {value.dtype}({', '.join(str(n) for n in value.shape)})")
            continue
        mask = value != 0
        if name in masks:
            mask = _mask(path, masks[name], arrays[masks[name]], value.shape)
        else:
            unmasked.append(name)
        weights.append(_weights(path, name, value, mask))
    if not weights:
        found = ", ".join(skipped) or "no arrays at all"
        raise UserError(f"{path}: holds no weights, which are numbers in arrays of two axes or more; it has {found}")
    notes = [f"without a mask, so the non-zero weights count as active: {', '.join(unmasked)}"] if unmasked else []
    return weights, notes + ([f"skipped, no weights of two axes or more: {', '.join(skipped)}"] if skipped else [])


def _weights(path: Path, name: str, value: Array, mask: Array) -> Weights:
    rows = value.shape[0]
    data = value[mask].astype(np.float64)
    if not np.isfinite(data).all():
        bad = f"{np.count_nonzero(~np.isfinite(data)):,} of {data.size:,}"
        raise UserError(f"{path}: {name}: {bad} active weights are NaN or infinite; repair or mask them")
    return Weights(name, value.shape, data, Structure.from_mask(mask.reshape(rows, -1)))


def _mask(path: Path, name: str, mask: Array, shape: tuple[int, ...]) -> Array:
    if mask.dtype != np.bool_ or mask.shape != shape:
        raise UserError(f"{path}: {name} is {mask.dtype}{mask.shape}; a mask must be bool{shape}, as its weights")
    return mask


def _read(path: Path) -> dict[str, Array]:
    """All arrays of an npz file."""
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(member.file_size for member in archive.infolist())
        if claimed > MAX_BYTES:
            raise UserError(f"{path}: unpacks to {claimed:,} bytes, above the limit of {MAX_BYTES:,}; use a part of it")
        with np.load(path, allow_pickle=False) as stored:
            return {name: np.asarray(stored[name]) for name in stored.files}    # a file of another kind: no numbers
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give an npz file of weights, as numpy.savez writes it") from None
    except DAMAGED as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: not a readable npz file ({why}); write one with numpy.savez") from error
