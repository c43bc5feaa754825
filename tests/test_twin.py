"""The twin machinery itself: dispatch, preparation of arguments, agreement, breakpoints by name."""

import inspect
from typing import Literal

import numpy as np
import pytest

from refsnn import twin
from refsnn.ops.neuron import lif_backward


def add(x: np.ndarray, way: Literal["left", "right"] = "left") -> np.ndarray:       # noqa: ARG001
    return x + 1


def operation(agree="exact", kernel=None, definition=add) -> twin.Operation:
    made = twin.Operation(definition, "none:none" if kernel else None, agree)
    made._kernel = kernel
    return made


def test_without_a_kernel_every_backend_runs_the_definition() -> None:
    for name in twin.BACKENDS:
        with twin.backend(name):
            assert operation()(np.zeros(2)).tolist() == [1, 1]


def test_backends_choose_what_runs() -> None:
    kernel_ran = []
    pair = operation(kernel=lambda x, way: kernel_ran.append(way) or x + 1)
    with twin.backend("numpy"):
        pair(np.zeros(2))
        assert kernel_ran == []
    with twin.backend("numba"):
        pair(np.zeros(2), "right")
        assert kernel_ran == [1], "a word reaches the kernel as its position"
    with twin.backend("both"):
        pair(np.zeros(2))
        assert kernel_ran == [1, 0]


def test_both_raises_at_the_first_disagreement_and_names_it() -> None:
    pair = operation(kernel=lambda x, _way: np.where(np.arange(x.size) == 2, 7, x + 1).astype(x.dtype))
    message = r"add, output 0: 1 of 4 values differ, first at \(2,\)"
    with twin.backend("both"), pytest.raises(twin.TwinMismatch, match=message):
        pair(np.zeros(4))


def test_the_backend_is_restored_after_an_error() -> None:
    before = twin.get_backend()
    with pytest.raises(RuntimeError), twin.backend("both"):
        raise RuntimeError
    assert twin.get_backend() == before
    with pytest.raises(ValueError, match="numpy, numba, both"):
        twin.set_backend("torch")


def test_kernels_get_contiguous_writable_arrays_of_the_one_index_type() -> None:
    seen = []
    pair = operation(kernel=lambda x, _way: seen.append(x) or x + 1)
    read_only = np.zeros((4, 4))
    read_only.flags.writeable = False
    with twin.backend("numba"):
        pair(read_only.T[::2])
    assert seen[0].flags.c_contiguous
    assert seen[0].flags.writeable
    with pytest.raises(TypeError, match="must be int32 or uint8, got int64"):
        pair.run_kernel(np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="way must be one of left, right, got 'up'"):
        pair.run_kernel(np.zeros(3), "up")


@pytest.mark.parametrize(("agree", "dtype", "error", "passes"), [
    ("exact", np.float64, 0.0, True), ("exact", np.float64, 1.0, False),
    ("ulp", np.float32, 4.0, True), ("ulp", np.float32, 6.0, False),
    ("ulp", np.float64, 4.0, True), ("ulp", np.float64, 6.0, False),
    ("sum", np.float64, 900.0, True), ("sum", np.float64, 2000.0, False), ("sum", np.float32, 900.0, True),
])
def test_agreement_is_as_strict_as_it_says(agree: str, dtype: type, error: float, passes: bool) -> None:
    expected = np.full(5, 1.0, dtype)                       # one ulp above 1 is eps
    got = expected + dtype(error * np.finfo(dtype).eps)
    if passes:
        twin.check_agreement("x", agree, expected, got)
    else:
        with pytest.raises(twin.TwinMismatch):
            twin.check_agreement("x", agree, expected, got)


def test_accumulating_in_float32_is_caught_in_float64() -> None:
    x = np.random.default_rng(0).standard_normal(1000)
    with pytest.raises(twin.TwinMismatch):
        twin.check_agreement("x", "sum", np.array(x.sum()), np.array(float(x.astype(np.float32).sum())), (x,))


def test_shapes_dtypes_and_nan_are_compared() -> None:
    with pytest.raises(twin.TwinMismatch, match=r"definition gives float64\(2,\), kernel float32\(2,\)"):
        twin.check_agreement("x", "sum", np.zeros(2), np.zeros(2, np.float32))
    with pytest.raises(twin.TwinMismatch):
        twin.check_agreement("x", "sum", np.zeros(2), np.zeros(3))
    twin.check_agreement("x", "exact", np.array([np.nan]), np.array([np.nan]))
    with pytest.raises(twin.TwinMismatch):
        twin.check_agreement("x", "sum", np.array([np.nan]), np.array([0.0]))


def test_ulp_distance_counts_representable_numbers() -> None:
    assert twin.ulp_distance(np.array([1.0]), np.nextafter([1.0], 2))[0] == 1
    assert twin.ulp_distance(np.array([-0.0]), np.array([0.0]))[0] == 0
    tiny = np.nextafter(np.float32(0), np.float32(1))
    assert twin.ulp_distance(np.array([-tiny]), np.array([tiny]))[0] == 2


def test_two_operations_cannot_share_a_name() -> None:
    with pytest.raises(ValueError, match="two operations are called lif_backward"):
        twin.op()(lif_backward.definition)


def test_a_breakpoint_by_name_is_set_in_the_definition() -> None:
    file, line = inspect.getsourcefile(lif_backward.definition), inspect.getsourcelines(lif_backward.definition)[1]
    code = lif_backward.__code__
    assert (code.co_filename, code.co_firstlineno, code.co_name) == (file, line, "lif_backward")
