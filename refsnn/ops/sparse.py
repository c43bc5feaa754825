"""Sparse weights: CSR is the truth. A pruned weight does not exist, so nothing can move it.

A weight of any shape is kept as the matrix of its neurons: row i holds the connections of neuron i (an output unit, or
a convolution's filter), column j counts the places of the rest of the shape in C order:

    convolution   (C_out, C_in, kH, kW)  ->  matrix (C_out, C_in * kH * kW)
    linear        (F_out, F_in)          ->  matrix (F_out, F_in)

    row i's connections:   indices[indptr[i]:indptr[i+1]]   (columns, ascending)
    their values:          data[indptr[i]:indptr[i+1]]      (an active weight may be exactly 0)
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
INDEX = np.int32        # one index type for `indices` and `indptr`: kernels compile once


@dataclass(frozen=True, eq=False)
class SparseWeight:
    """The connections of one layer and their values, in CSR form.

    Field, Shape, Unit, Meaning
      data     (nnz,)       -       value of each active weight; the optimiser updates it in place
      indices  (nnz,)       column  int32, ascending within a row
      indptr   (rows + 1,)  entry   int32, where each row starts
      shape    -            -       the dense weight's shape, (O, I, kH, kW) or (O, I)

    The structure (`indices`, `indptr`) is replaced, never edited: `rewired` weights are new objects.
    Raises ValueError where the arrays are no CSR matrix of that shape.
    """

    data: Array
    indices: Array
    indptr: Array
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.indices.dtype != INDEX or self.indptr.dtype != INDEX:
            raise ValueError(f"indices and indptr must be int32, got {self.indices.dtype} and {self.indptr.dtype}")
        if self.indptr.shape != (self.rows + 1,) or self.indptr[0] != 0 or (np.diff(self.indptr) < 0).any():
            raise ValueError(f"indptr must rise from 0 in {self.rows + 1} entries for shape {self.shape}")
        if not self.indices.shape == self.data.shape == (int(self.indptr[-1]),):
            raise ValueError(f"data {self.data.shape}, indices {self.indices.shape}: not {self.indptr[-1]} entries")
        flat = self.flat_index()
        if flat.size and (self.indices.min() < 0 or self.indices.max() >= self.columns or (np.diff(flat) <= 0).any()):
            raise ValueError(f"columns must ascend within each row and lie in 0..{self.columns - 1}")

    @property
    def rows(self) -> int:
        """Number of neurons: filters or output units."""
        return self.shape[0]

    @property
    def columns(self) -> int:
        """Places per neuron: the dense fan-in."""
        return math.prod(self.shape[1:])

    @property
    def nnz(self) -> int:
        """d, the number of active weights; an active weight that is exactly 0 counts."""
        return self.data.size

    @property
    def size(self) -> int:
        """N, the number of places of the dense weight."""
        return self.rows * self.columns

    @functools.cached_property
    def density(self) -> float:
        """d / N; every step asks for it."""
        return self.nnz / self.size

    def row_index(self) -> Array:
        """(nnz,) int64: the row of each active weight."""
        return np.repeat(np.arange(self.rows), np.diff(self.indptr))

    def flat_index(self) -> Array:
        """(nnz,) int64: the place of each active weight in the dense weight's C order, ascending."""
        return self.row_index() * self.columns + self.indices

    def mask(self) -> Array:
        """Bool array of the dense shape: where a connection is."""
        mask = np.zeros(self.size, dtype=bool)
        mask[self.flat_index()] = True
        return mask.reshape(self.shape)

    def packed_mask(self) -> Array:
        """The mask, flat and one bit a place: (ceil(N / 8),) uint8, the first place in the highest bit."""
        return np.packbits(self.mask())

    def dense(self) -> Array:
        """The dense weight M * W of the dense shape: 0 where no connection is."""
        return self.scatter(self.data)

    def scatter(self, values: Array) -> Array:
        """Dense array of the weight's shape that holds `values` (nnz,) at the active places and 0 elsewhere."""
        dense = np.zeros(self.size, dtype=values.dtype)
        dense[self.flat_index()] = values
        return dense.reshape(self.shape)

    def gather(self, dense: Array) -> Array:
        """(nnz,): the entries of a dense array of the weight's size at the active places."""
        return dense.reshape(-1)[self.flat_index()]


def from_dense(dense: Array, mask: Array) -> SparseWeight:
    """Build the sparse weight of the places where `mask` is True, zeros of `dense` included.

    dense: values, any shape with at least two axes; mask: bool, the same shape.
    Raises ValueError where the shapes differ or the mask is not boolean.
    """
    if dense.shape != mask.shape or dense.ndim < 2 or mask.dtype != bool:
        raise ValueError(f"dense {dense.shape} and mask {mask.dtype}{mask.shape} must share a shape of 2 axes or more")
    matrix = mask.reshape(mask.shape[0], -1)
    row, column = np.nonzero(matrix)                    # C order: rows ascending, columns ascending within a row
    indptr = np.concatenate([[0], np.cumsum(matrix.sum(axis=1))]).astype(INDEX)
    data = np.ascontiguousarray(dense.reshape(matrix.shape)[row, column])
    return SparseWeight(data, column.astype(INDEX), indptr, dense.shape)
