"""ops/sparse.py: the round trip between dense weights, masks and CSR, and every refusal."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refsnn.ops.sparse import INDEX, SparseWeight, from_dense

SHAPES = st.one_of(
    st.tuples(st.integers(1, 6), st.integers(1, 9)),
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 5)),
)


def weight() -> SparseWeight:
    """Rows of 2, 0 and 1 connections; the last one is active and exactly 0."""
    data = np.array([1.5, -2.0, 0.0])
    return SparseWeight(data, np.array([1, 3, 0], INDEX), np.array([0, 2, 2, 3], INDEX), (3, 4))


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.floats(0, 1), st.integers(0, 2**32 - 1), st.sampled_from([np.float32, np.float64]))
def test_dense_and_mask_come_back(shape, density, seed, dtype):
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < density
    dense = rng.integers(-2, 3, shape).astype(dtype)                # some active weights are exactly 0
    w = from_dense(dense, mask)
    np.testing.assert_array_equal(w.mask(), mask)
    np.testing.assert_array_equal(w.dense(), np.where(mask, dense, 0))
    np.testing.assert_array_equal(w.gather(dense), dense[mask])
    assert w.dense().dtype == w.data.dtype == dtype
    assert (w.nnz, w.size, w.rows, w.columns) == (mask.sum(), mask.size, shape[0], mask.size // shape[0])
    assert w.density == mask.sum() / mask.size
    again = from_dense(w.dense(), w.mask())
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(again, name), getattr(w, name))
    assert again.indices.dtype == again.indptr.dtype == INDEX


def test_rows_and_places_by_hand():
    w = weight()
    np.testing.assert_array_equal(w.dense(), [[0, 1.5, 0, -2], [0, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(w.mask(), [[0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]])
    np.testing.assert_array_equal(w.row_index(), [0, 0, 2])
    np.testing.assert_array_equal(w.flat_index(), [1, 3, 8])


def test_active_zero_is_a_connection_and_an_inactive_value_is_not():
    w = from_dense(np.array([[0.0, 7.0]]), np.array([[True, False]]))
    assert (w.nnz, w.data.tolist(), w.indices.tolist()) == (1, [0.0], [0])


def test_gather_undoes_scatter():
    values = np.array([3.0, 4.0, 5.0])
    np.testing.assert_array_equal(weight().gather(weight().scatter(values)), values)


def test_columns_of_a_convolution_count_channel_row_column():
    mask = np.zeros((2, 3, 2, 5), bool)
    mask[1, 2, 0, 4] = True
    w = from_dense(np.ones(mask.shape), mask)
    assert w.indices.tolist() == [(2 * 2 + 0) * 5 + 4]
    assert w.indptr.tolist() == [0, 0, 1]


def test_weight_without_connections():
    w = from_dense(np.ones((2, 3), np.float32), np.zeros((2, 3), bool))
    assert (w.nnz, w.density, w.indptr.tolist()) == (0, 0, [0, 0, 0])
    assert not w.dense().any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indices": np.array([1, 3, 0])}, "int32"),
        ({"indptr": np.array([0, 2, 2, 3], np.int64)}, "int32"),
        ({"indptr": np.array([0, 2, 3], INDEX)}, "rise from 0 in 4 entries"),
        ({"indptr": np.array([1, 2, 2, 3], INDEX)}, "rise from 0"),
        ({"indptr": np.array([0, 2, 1, 3], INDEX)}, "rise from 0"),
        ({"data": np.zeros(2)}, "not 3 entries"),
        ({"indices": np.array([1, 3], INDEX)}, "not 3 entries"),
        ({"indices": np.array([3, 1, 0], INDEX)}, "ascend"),
        ({"indices": np.array([1, 1, 0], INDEX)}, "ascend"),
        ({"indices": np.array([-1, 3, 0], INDEX)}, "ascend"),
        ({"indices": np.array([1, 3, 4], INDEX)}, "0..3"),
        ({"indices": np.array([1, 4, 0], INDEX)}, "0..3"),
    ],
)
def test_refuses_what_is_no_matrix(change, message):
    w = weight()
    arguments = {"data": w.data, "indices": w.indices, "indptr": w.indptr, "shape": w.shape} | change
    with pytest.raises(ValueError, match=message):
        SparseWeight(**arguments)


@pytest.mark.parametrize(
    ("dense", "mask"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2), bool)),
        (np.zeros((2, 3)), np.zeros((2, 3))),
        (np.zeros(3), np.zeros(3, bool)),
    ],
)
def test_from_dense_refuses_other_shapes_and_types(dense, mask):
    with pytest.raises(ValueError, match="dense"):
        from_dense(dense, mask)
