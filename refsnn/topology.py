"""Topology: which connections exist, what competes with what, and the initial connections of eq. (1).

The weights of a layer are a matrix (rows, cols): a row is a neuron (an output unit, or a filter of a convolution with
its C_in·kH·kW weights laid flat), a column one of its possible inputs. A `Structure` says which of these rows · cols
*places* hold a connection. It lists places, not values: a connection whose weight happens to be 0 exists all the same.

The initial density asked for is that of the whole network. It is spread over the layers by eq. (1), the Erdős–Rényi
rule on channel counts, or by ERK, which counts kernel sizes too, or evenly. Layers that would exceed density 1 are
dense and the others share the rest, so that the total is what was asked. Masks are drawn with an exact number of
connections; "bernoulli" is eq. (1) to the letter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from refsnn.pq import guarded_floor

Array = npt.NDArray[Any]
Scope = Literal["layer", "neuron", "global"]
Spread = Literal["er", "erk", "uniform"]
Draw = Literal["exact", "bernoulli"]


# --- Structures and units ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Structure:
    """The connections of one layer in compressed sparse rows; immutable, a rewire makes new ones.

    indices (nnz,) int32: the column of each connection, row by row, increasing within a row;
    indptr (rows + 1,) int32: row i owns entries indptr[i] to indptr[i+1] − 1; shape: (rows, cols).
    Raises ValueError where the arrays do not have this form.
    """

    indices: Array
    indptr: Array
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        rows, cols = self.shape
        nnz = self.indices.size
        ends = self.indptr.shape == (rows + 1,) and self.indptr[0] == 0 and self.indptr[-1] == nnz
        if not ends or np.any(np.diff(self.indptr) < 0):
            raise ValueError(f"indptr must rise from 0 to {nnz} in {rows + 1} entries")
        if nnz and not (self.indices.min() >= 0 and self.indices.max() < cols):
            raise ValueError(f"column indices must lie between 0 and {cols - 1}")
        if np.any(np.diff(self.places()) <= 0):
            raise ValueError("column indices must increase within each row, without duplicates")

    @classmethod
    def from_mask(cls, mask: Array) -> "Structure":
        """The connections where mask (rows, cols) is true."""
        rows, cols = mask.shape
        return cls.from_places(np.flatnonzero(mask), (rows, cols))

    @classmethod
    def from_places(cls, places: Array, shape: tuple[int, int]) -> "Structure":
        """The connections at the given flat places row · cols + column, (nnz,) increasing."""
        rows, cols = shape
        indptr = np.searchsorted(places, np.arange(rows + 1) * cols)
        return cls((places % cols).astype(np.int32), indptr.astype(np.int32), shape)

    @property
    def active(self) -> int:
        """Number of connections."""
        return self.indices.size

    @property
    def size(self) -> int:
        """Number of places, the N of the paper's ratio c = count / N."""
        return self.shape[0] * self.shape[1]

    def rows(self) -> Array:
        """Row of each connection, (nnz,)."""
        return np.repeat(np.arange(self.shape[0]), np.diff(self.indptr))

    def places(self) -> Array:
        """Flat place row · cols + column of each connection, (nnz,) int64, increasing."""
        return self.rows() * self.shape[1] + self.indices

    def mask(self) -> Array:
        """Dense view, (rows, cols) bool: true where a connection exists."""
        mask = np.zeros(self.size, dtype=bool)
        mask[self.places()] = True
        return mask.reshape(self.shape)


def units(structures: Sequence[Structure], scope: Scope) -> tuple[list[Array], int]:
    """The unit of every row of every layer, and the number of units.

    scope "neuron": each row is a unit; "layer": each layer; "global": all rows of all layers are unit 0. Units are
    numbered in order of layer and row. Returns a list of (rows,) int64 arrays, one a layer, and the number of units.
    Raises ValueError for an unknown scope.
    """
    rows = [structure.shape[0] for structure in structures]
    if scope == "neuron":
        first = np.cumsum([0, *rows])
        return [np.arange(first[k], first[k + 1]) for k in range(len(rows))], int(first[-1])
    if scope == "layer":
        return [np.full(n, k) for k, n in enumerate(rows)], len(rows)
    if scope == "global":
        return [np.zeros(n, dtype=np.int64) for n in rows], 1
    raise ValueError(f'scope is "layer", "neuron" or "global", got {scope!r}')


def entry_units(structures: Sequence[Structure], scope: Scope) -> tuple[Array, int]:
    """The unit of every connection, all layers end to end, (nnz,) int64, and how many units: what `measure` takes."""
    of_row, number = units(structures, scope)
    return np.concatenate([unit[s.rows()] for unit, s in zip(of_row, structures, strict=True)]), number


def active_counts(structures: Sequence[Structure], scope: Scope) -> Array:
    """Connections of each unit, (units,) int64."""
    unit, number = entry_units(structures, scope)
    return np.bincount(unit, minlength=number)


# --- The initial topology, eq. (1) ------------------------------------------------------------------------------------


def layer_densities(shapes: Sequence[Sequence[int]], density: float, spread: Spread = "er") -> list[float]:
    """Density of each layer, such that all layers together have the density asked for.

        "er"        density_k = ε (n_k + n_{k−1}) / (n_k n_{k−1})            eq. (1), P(M = 1)
        "erk"       density_k = ε Σ dims_k / Π dims_k                        with kernel sizes (RigL)
        "uniform"   density_k = density

    shapes: of the weights, (C_out, C_in, kH, kW) or (out, in); n_k = shape[0], n_{k−1} = shape[1], that is channels for
    a convolution. ε is what makes Σ density_k N_k = density Σ N_k, N_k = Π dims_k. A layer that would exceed 1 is
    dense, and ε is solved again for the others, until none exceeds 1.

    Raises ValueError unless 0 ≤ density ≤ 1, and for an unknown spread. Source: paper eq. (1); ERK: Evci et al. 2020.
    """
    if not 0 <= density <= 1:
        raise ValueError(f"density must lie between 0 and 1, got {density}")
    if spread not in SPREADS:
        raise ValueError(f"spread is one of {sorted(SPREADS)}, got {spread!r}")
    size = np.array([np.prod(shape, dtype=np.float64) for shape in shapes])
    factor = np.array([SPREADS[spread](shape) for shape in shapes])
    dense = np.zeros(len(shapes), dtype=bool)
    epsilon = 0.0
    while not dense.all():
        wanted = density * size.sum() - size[dense].sum()
        epsilon = wanted / np.sum(factor[~dense] * size[~dense])
        above = ~dense & (epsilon * factor > 1)
        if not above.any():
            break
        dense |= above
    return [float(x) for x in np.where(dense, 1.0, epsilon * factor)]


SPREADS: dict[str, Callable[[Sequence[int]], float]] = {
    "er": lambda shape: (shape[0] + shape[1]) / (shape[0] * shape[1]),
    "erk": lambda shape: float(np.sum(shape) / np.prod(shape, dtype=np.float64)),
    "uniform": lambda _shape: 1.0,
}


def layer_counts(shapes: Sequence[Sequence[int]], density: float, spread: Spread = "er") -> list[int]:
    """Number of connections of each layer: `layer_densities` in whole connections, round(density · Σ N_k) in all.

    Every layer gets its density times its size rounded down, and those that lost most by it one more each (ties: the
    lower layer) until the total is met. draw_mask(shape, count / N_k, …) draws exactly this count.
    """
    size = np.array([np.prod(shape, dtype=np.int64) for shape in shapes])
    share = np.array(layer_densities(shapes, density, spread)) * size
    count = guarded_floor(share, size)
    missing = round(density * int(size.sum())) - int(count.sum())
    count[np.argsort(count - share, kind="stable")[:missing]] += 1
    return [int(n) for n in count]


def draw_mask(shape: Sequence[int], density: float, generator: np.random.Generator, draw: Draw = "exact") -> Array:
    """Random connections for a weight of the given shape, as a mask (shape[0], product of the rest) of bool.

    "exact": round(density · size) places, the first of a random permutation of all; "bernoulli": each place
    independently with probability `density`, eq. (1) to the letter, so that the number varies from draw to draw.
    Raises ValueError unless 0 ≤ density ≤ 1, and for an unknown draw.
    """
    if not 0 <= density <= 1:
        raise ValueError(f"density must lie between 0 and 1, got {density}")
    rows, cols = shape[0], int(np.prod(shape[1:], dtype=np.int64))
    if draw == "bernoulli":
        return generator.random((rows, cols)) < density
    if draw != "exact":
        raise ValueError(f'draw is "exact" or "bernoulli", got {draw!r}')
    n = rows * cols
    mask, order = np.zeros(n, dtype=bool), np.arange(n, dtype=np.min_scalar_type(n))
    generator.shuffle(order)                        # as `permutation(n)`, which takes eight bytes a place
    mask[order[: round(density * n)]] = True
    return mask.reshape(rows, cols)
