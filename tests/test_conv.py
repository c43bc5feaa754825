"""ops/conv.py: definitions against loops and scipy, kernels against definitions, gradients against their meaning."""

import itertools
from dataclasses import dataclass

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import correlate

from refsnn import twin
from refsnn.ops import conv
from refsnn.ops.sparse import from_dense

JIT = not numba.config.DISABLE_JIT


@dataclass(frozen=True)
class Case:
    """A convolution: x of `size` (C, H, W) with T, B samples, O filters, density, and the window."""

    size: tuple[int, int, int] = (3, 6, 7)
    samples: tuple[int, int] = (2, 3)
    filters: int = 4
    kernel_size: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: int = 1
    density: float = 0.4
    bias: bool = True
    spikes: bool = False

    @property
    def window(self):
        return self.kernel_size, self.stride, self.padding


SMALL = {
    "ordinary": Case(),
    "one pixel": Case(size=(2, 1, 1)),
    "kernel 1": Case(kernel_size=(1, 1), padding=0),
    "kernel 1, padded": Case(kernel_size=(1, 1), padding=2, stride=2),
    "kernel 5": Case(kernel_size=(5, 5), padding=2),
    "kernel 5 over a small image": Case(size=(2, 3, 2), kernel_size=(5, 5), padding=2),
    "kernel (3, 5)": Case(kernel_size=(3, 5), padding=2, bias=False),
    "kernel (5, 1)": Case(kernel_size=(5, 1), padding=1),
    "stride 2": Case(stride=2),
    "stride 2, no padding, a row left over": Case(size=(2, 6, 8), stride=2, padding=0),
    "stride 3": Case(size=(2, 8, 7), stride=3, padding=2, kernel_size=(5, 3)),
    "stride above kernel": Case(size=(2, 9, 8), stride=3, padding=1, kernel_size=(2, 1)),
    "one channel, one sample": Case(size=(1, 5, 4), samples=(1, 1)),
    "N = 7": Case(samples=(1, 7), padding=2),
    "N = 33": Case(samples=(3, 11), filters=3),
    "dense": Case(density=1.0),
    "no weight": Case(density=0.0),
    "no weight, no bias": Case(density=0.0, bias=False),
    "one filter": Case(filters=1, density=0.1),
    "spikes, N = 8": Case(samples=(2, 4), spikes=True, density=0.9),
    "spikes, N = 24, stride 2": Case(size=(3, 7, 9), samples=(3, 8), stride=2, spikes=True),
    "spikes, N = 40, stride 3, no padding": Case(size=(2, 9, 8), samples=(5, 8), stride=3, padding=0, spikes=True),
    "spikes, N = 6: no whole bytes": Case(samples=(2, 3), spikes=True),
}
LARGE = {
    "several pieces of a row, groups and tiles": Case(size=(18, 4, 9), samples=(4, 33), filters=35, density=0.1),
    "enough work for all threads": Case(size=(20, 12, 12), samples=(4, 16), filters=33, density=0.5),
    "spikes, enough work for all threads": Case(size=(20, 12, 12), samples=(4, 18), filters=33, spikes=True),
    "rolling, all samples": Case(size=(9, 19, 21), samples=(3, 16), filters=7),
    "rolling, two columns of tiles": Case(size=(90, 9, 20), samples=(2, 16), filters=8, density=0.02),
    "rolling, a vector of samples": Case(size=(100, 17, 18), samples=(4, 16), filters=20, density=0.01),
    "rolling, stride 2": Case(size=(20, 33, 24), samples=(4, 16), filters=40, stride=2, density=0.03),
    "rolling, stride 3, kernel 2": Case(size=(20, 28, 40), samples=(2, 16), filters=9, kernel_size=(2, 2), stride=3),
    "many channels": Case(size=(150, 6, 6), samples=(4, 16), filters=150, density=0.1),
    "enough work for all threads, stride 2": Case(size=(20, 24, 24), samples=(4, 16), filters=33, stride=2),
}
KERNEL_CASES = SMALL | LARGE if JIT else SMALL      # as plain Python the kernels take minutes for the large ones
small = pytest.mark.parametrize("case", SMALL.values(), ids=SMALL.keys())
every = pytest.mark.parametrize("case", KERNEL_CASES.values(), ids=KERNEL_CASES.keys())
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def make(case, dtype=np.float64, seed=0):
    """x with about half its values zero, or spikes; a weight whose second row is empty, bias, dy."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((*case.size, *case.samples)) * (rng.random((*case.size, *case.samples)) < 0.5)
    if case.spikes:
        x = (x != 0).astype(np.float64)
    shape = (case.filters, case.size[0], *case.kernel_size)
    mask = rng.random(shape) < case.density
    if case.density < 1:
        mask[1:2] = False
    weight = from_dense(rng.standard_normal(shape).astype(dtype), mask)
    bias = rng.standard_normal(case.filters).astype(dtype) if case.bias else None
    out = conv.output_size(case.size[1:], *case.window)
    dy = rng.standard_normal((case.filters, *out, *case.samples)).astype(dtype)
    return x.astype(dtype), weight, bias, dy


def calls(case, x, w, bias, dy):
    """Every operation of the file with its arguments."""
    return {
        conv.conv2d_forward: (x, w.data, w.indices, w.indptr, bias, *case.window),
        conv.conv2d_input_gradient: (dy, w.data, w.indices, w.indptr, case.size, *case.window),
        conv.conv2d_weight_gradient: (dy, x, w.indices, w.indptr, *case.window),
        conv.conv2d_weight_gradient_dense: (dy, x, *case.window),
    }


def check_kernels(case, dtype, seed=0):
    for operation, args in calls(case, *make(case, dtype, seed)).items():
        expected = operation.definition(*args)
        assert expected.dtype == dtype
        twin.check_agreement(operation.name, operation.agree, expected, operation.run_kernel(*args), args)


def loops(case, x, dense, bias, dy):
    """Truth: y, dx and dW of the equation, term by term."""
    _, height, width = case.size
    y, dx, dw = np.zeros_like(dy), np.zeros_like(x), np.zeros_like(dense)
    if bias is not None:
        y += bias[:, None, None, None, None]
    for o, c, i, j, h, w in itertools.product(*map(range, (*dense.shape, *dy.shape[1:3]))):
        a, b = case.stride * h + i - case.padding, case.stride * w + j - case.padding
        if 0 <= a < height and 0 <= b < width:
            y[o, h, w] += dense[o, c, i, j] * x[c, a, b]
            dx[c, a, b] += dense[o, c, i, j] * dy[o, h, w]
            dw[o, c, i, j] += np.sum(dy[o, h, w] * x[c, a, b])
    return y, dx, dw


@small
def test_definitions_are_the_equations(case):
    x, w, bias, dy = make(case)
    truth = dict(zip(("y", "dx", "dw"), loops(case, x, w.dense(), bias, dy), strict=True))
    y, dx, ddata, dense = (operation.definition(*args) for operation, args in calls(case, x, w, bias, dy).items())
    np.testing.assert_allclose(y, truth["y"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(dx, truth["dx"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(dense.reshape(w.shape), truth["dw"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(ddata, w.gather(truth["dw"]), rtol=0, atol=1e-12)


@small
def test_forward_is_scipys_correlation(case):
    x, w, bias, dy = make(case)
    p, s, dense = case.padding, case.stride, w.dense()
    padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0), (0, 0)))
    y = conv.conv2d_forward.definition(*calls(case, x, w, bias, dy)[conv.conv2d_forward])
    for o in range(case.filters):
        truth = correlate(padded, dense[o][..., None, None], mode="valid", method="direct")[0, ::s, ::s]
        np.testing.assert_allclose(y[o], truth + (0 if bias is None else bias[o]), rtol=0, atol=1e-12)


@every
@dtypes
def test_kernels_agree(case, dtype):
    check_kernels(case, dtype)


@settings(max_examples=25 if JIT else 5, deadline=None)
@given(
    size=st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 7)),
    samples=st.tuples(st.integers(1, 3), st.integers(1, 12)),
    filters=st.integers(1, 6),
    kernel_size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.integers(1, 4),
    padding=st.integers(0, 3),
    density=st.floats(0, 1),
    bias=st.booleans(),
    spikes=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_kernels_agree_on_any_convolution(
    size, samples, filters, kernel_size, stride, padding, density, bias, spikes, seed
):
    padding = max(padding, *((k - n + 1) // 2 for k, n in zip(kernel_size, size[1:], strict=True)))
    if spikes:
        samples = (samples[0], 8)
    check_kernels(Case(size, samples, filters, kernel_size, stride, padding, density, bias, spikes), np.float64, seed)


DENSE = {
    "nine channels": Case(size=(9, 5, 6), samples=(1, 16), filters=11, density=0.7),
    "spikes, five channels": Case(size=(5, 6, 7), samples=(2, 16), filters=7, density=0.6, spikes=True),
    "spikes, kernel (3, 2), stride 2": Case(
        size=(6, 9, 12), samples=(3, 16), filters=13, kernel_size=(3, 2), stride=2, spikes=True),
    "one channel, one filter": Case(size=(1, 4, 4), samples=(4, 8), filters=1, density=1.0, spikes=True),
    "no weight": Case(samples=(2, 8), density=0.0),
    "samples that fill no vectors": Case(samples=(2, 3), density=0.9, spikes=True),
}
DENSE |= {} if not JIT else {
    "many channels": Case(size=(130, 6, 20), samples=(4, 16), filters=10, density=0.5),
    "enough work for all threads": Case(size=(40, 20, 21), samples=(4, 16), filters=20, density=0.5),
    "spikes, enough work for all threads": Case(size=(40, 20, 21), samples=(4, 16), filters=70, spikes=True),
}


@pytest.mark.parametrize("case", DENSE.values(), ids=DENSE.keys())
@dtypes
def test_dense_execution_is_the_same_sum(case, dtype):
    x, w, bias, dy = make(case, dtype)
    for spikes in (x, x.astype(np.uint8)) if case.spikes else (x,):
        for operation, args in list(calls(case, spikes, w, bias, dy).items())[:3]:
            got = operation.run_kernel(*args, execution="dense")
            twin.check_agreement(operation.name, operation.agree, operation.definition(*args), got, args)


def test_dense_execution_takes_numbers_that_are_no_spikes():
    case = Case(size=(5, 6, 7), samples=(4, 16), spikes=True)
    x, w, bias, dy = make(case, np.float32)
    x[4, 5, 6, 3, 15] = 3
    for operation, args in list(calls(case, x, w, bias, dy).items())[:3]:
        got = operation.run_kernel(*args, execution="dense")
        twin.check_agreement(operation.name, operation.agree, operation.definition(*args), got, args)


def test_dense_execution_refuses_a_column_beyond_the_channels():
    case = Case(size=(1, 6, 7), samples=(4, 16), spikes=True)
    x, _, bias, dy = make(case)
    _, w, _, _ = make(Case(samples=(4, 16)))
    for operation, args in list(calls(case, x, w, bias, dy).items())[:3]:
        for real in (False, True) if JIT else ():
            both = [a.astype(np.float32) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a for a in args]
            with pytest.raises(IndexError):
                operation.run_kernel(*(args if real else both), execution="dense")


def test_where_dense_execution_is_preferred():
    assert conv.prefer_dense("forward", 0.4, (64, 64), 64)
    assert not conv.prefer_dense("forward", 0.4, (64, 64), 64, spikes=False)
    assert not conv.prefer_dense("forward", 0.4, (64, 1), 64)           # a byte is for four channels
    assert not conv.prefer_dense("forward", 1.0, (64, 64), 63)
    assert conv.prefer_dense("input gradient", 0.6, (64, 64), 64)
    assert not conv.prefer_dense("input gradient", 0.6, (64, 3), 64)
    assert not conv.prefer_dense("input gradient", 1.0, (64, 64), 64, stride=2)
    assert conv.prefer_dense("weight gradient", 0.7, (64, 64), 63, stride=2)
    assert not conv.prefer_dense("weight gradient", 0.6, (64, 64), 64)
    assert conv.prefer_dense("weight gradient", 0.6, (64, 64), 64, spikes=False)


@dtypes
@pytest.mark.parametrize("backend", twin.BACKENDS[:2])
@pytest.mark.parametrize("samples", [(2, 3), (2, 4), (3, 8), (4, 16)])
@pytest.mark.parametrize("stride", [1, 2])
def test_spikes_in_bytes_give_the_same_bits(dtype, backend, samples, stride):
    case = Case(size=(3, 6, 7), samples=samples, stride=stride, spikes=True)
    x, w, bias, dy = make(case, dtype)
    with twin.backend(backend):
        bytes_ = calls(case, x.astype(np.uint8), w, bias, dy).items()
        for (operation, args), (_, floats) in zip(bytes_, calls(case, x, w, bias, dy).items(), strict=True):
            result = operation(*args)
            assert result.dtype == dtype
            np.testing.assert_array_equal(result, operation(*floats))


@dtypes
@pytest.mark.parametrize("backend", twin.BACKENDS)
@pytest.mark.parametrize("case", [
    Case(samples=(2, 8), spikes=True),
    Case(size=(2, 5, 3), samples=(3, 24), kernel_size=(1, 1), padding=0, spikes=True),
    Case(size=(20, 12, 12), samples=(4, 16), filters=33, kernel_size=(5, 3), padding=2, spikes=True),
], ids=str)
def test_packed_spikes_give_the_same_bits(case, backend, dtype):
    x, w, bias, dy = make(case, dtype)
    with twin.backend(backend):
        packed, good = conv.pack_input(x.astype(np.uint8), case.padding)
        assert good
        assert packed.nbytes < x.size / 2
        assert conv.input_size(packed, case.padding) == case.size
        np.testing.assert_array_equal(conv.unpacked(packed, 1, case.padding), x)
        plain = calls(case, x.astype(np.uint8), w, bias, dy)
        for (operation, args), bytes_ in zip(calls(case, packed, w, bias, dy).items(), plain.values(), strict=True):
            if operation is not conv.conv2d_input_gradient:
                np.testing.assert_array_equal(operation(*args), operation(*bytes_))


@pytest.mark.parametrize("backend", twin.BACKENDS)
def test_what_is_not_packed(backend):
    case = Case(samples=(2, 8), stride=2, spikes=True)
    x, w, _, _ = make(case)
    spikes = x.astype(np.uint8)
    with twin.backend(backend):
        assert conv.pack_input(spikes[..., :7], 1)[1] is False
        other = spikes.copy()
        other[2, 5, 6, 1, 7] = 2
        assert conv.pack_input(other, 1)[1] is False
        packed, _ = conv.pack_input(spikes, 1)
        with pytest.raises(ValueError, match="stride of 1"):
            conv.conv2d_forward(packed, w.data, w.indices, w.indptr, None, *case.window)


@dtypes
@pytest.mark.parametrize("backend", twin.BACKENDS[:2])
def test_bytes_that_are_no_spikes_are_numbers(dtype, backend):
    case = Case(samples=(4, 16), spikes=True)
    x, w, bias, dy = make(case, dtype)
    for value, place in ((2, (0, 0, 0, 0, 0)), (255, (2, 5, 6, 3, 15))):
        other = x.copy()
        other[place] = value
        with twin.backend(backend):
            for (operation, args), (_, floats) in zip(calls(case, other.astype(np.uint8), w, bias, dy).items(),
                                                      calls(case, other, w, bias, dy).items(), strict=True):
                np.testing.assert_array_equal(operation(*args), operation(*floats))


@dtypes
def test_a_number_that_is_no_spike_is_not_taken_for_one(dtype):
    """Maps of 0 and 1 are packed; one other number anywhere, or a NaN, must go the other way."""
    case = Case(samples=(4, 16), padding=1, spikes=True)
    x, w, bias, dy = make(case, dtype)
    for value in (2.0, -1.0, 0.5, 1 + np.finfo(dtype).eps):
        for place in ((0, 0, 0, 0, 0), (2, 5, 6, 3, 15)):
            other = x.copy()
            other[place] = value
            for operation, args in calls(case, other, w, bias, dy).items():
                twin.check_agreement(operation.name, operation.agree, operation.definition(*args),
                                     operation.run_kernel(*args), args)
    other = x.copy()
    other[1, 3, 3, 2, 7] = np.nan
    assert np.isnan(conv.conv2d_weight_gradient.run_kernel(dy, other, w.indices, w.indptr, *case.window)).any()


@dtypes
def test_kernels_take_any_layout(dtype):
    """Views with other strides and read-only arrays: made contiguous and writable, with the same result."""
    case = Case()
    x, w, bias, dy = make(case, dtype)
    strided = [np.repeat(a, 2, axis=-1)[..., ::2] for a in (x, dy)]
    transposed = [np.asfortranarray(a) for a in (x, dy)]
    frozen = [a.copy() for a in (x, dy)]
    for a in frozen:
        a.setflags(write=False)
    for other_x, other_dy in (strided, transposed, frozen):
        others = calls(case, other_x, w, bias, other_dy)
        for (operation, args), other in zip(calls(case, x, w, bias, dy).items(), others.values(), strict=True):
            np.testing.assert_array_equal(operation.run_kernel(*args), operation.run_kernel(*other))


def test_a_kernel_that_accumulates_in_float32_is_caught():
    case = Case()
    for operation, args in calls(case, *make(case)).items():
        expected = operation.definition(*args)
        narrow = [a.astype(np.float32) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a for a in args]
        planted = operation.definition(*narrow).astype(np.float64)
        with pytest.raises(twin.TwinMismatch):
            twin.check_agreement(operation.name, operation.agree, expected, planted, args)


@pytest.mark.parametrize("backend", twin.BACKENDS[:2])
@small
def test_gradients_are_adjoint(case, backend):
    """<dy, W x> = <W^T dy, x> = <dW, W>: all three are the same sum."""
    x, w, _, dy = make(case)
    with twin.backend(backend):
        y, dx, ddata, dense = (operation(*args) for operation, args in calls(case, x, w, None, dy).items())
    scale = np.sum(np.abs(dy)) + 1
    assert abs(np.sum(dy * y) - np.sum(dx * x)) <= 1e-12 * scale
    assert abs(np.sum(dy * y) - np.sum(ddata * w.data)) <= 1e-12 * scale
    np.testing.assert_allclose(ddata, w.gather(dense), rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("backend", twin.BACKENDS[:2])
def test_gradients_are_central_differences(backend):
    """Loss <dy, y>: linear in each input, so that a difference of step 1/2 has no truncation error."""
    case = Case(size=(2, 4, 3), samples=(1, 2), filters=2, stride=2)
    x, w, bias, dy = make(case)

    def loss(x, data):
        return np.sum(dy * conv.conv2d_forward(x, data, w.indices, w.indptr, bias, *case.window))

    with twin.backend(backend):
        _, dx, ddata, _ = (operation(*args) for operation, args in calls(case, x, w, bias, dy).items())
        for at in np.ndindex(x.shape):
            step = np.zeros_like(x)
            step[at] = 0.5
            assert loss(x + step, w.data) - loss(x - step, w.data) == pytest.approx(dx[at], abs=1e-10)
        for k in range(w.nnz):
            step = np.zeros_like(w.data)
            step[k] = 0.5
            assert loss(x, w.data + step) - loss(x, w.data - step) == pytest.approx(ddata[k], abs=1e-10)


@pytest.mark.skipif(not JIT, reason="kernels run as plain Python")
@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="numba has one thread")
@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE.keys())
@dtypes
def test_result_does_not_depend_on_the_number_of_threads(case, dtype):
    before = numba.get_num_threads()
    try:
        every = list(calls(case, *make(case, dtype)).items())
        for operation, args in [*every, *((operation, (*args, "dense")) for operation, args in every[:3])]:
            results = []
            for threads in (1, 2):
                numba.set_num_threads(threads)
                results.append(operation.run_kernel(*args))
            np.testing.assert_array_equal(*results)
    finally:
        numba.set_num_threads(before)


@pytest.mark.parametrize("backend", twin.BACKENDS[:2])
def test_refusals(backend):
    case = Case(kernel_size=(9, 3))
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((3, 6, 7, 2, 3)), from_dense(np.ones((4, 3, 9, 3)), np.ones((4, 3, 9, 3), bool))
    with twin.backend(backend):
        with pytest.raises(ValueError, match="window"):
            conv.conv2d_forward(x, w.data, w.indices, w.indptr, None, *case.window)
        x, w, bias, dy = make(Case())
        _, *gradients = calls(Case(), x, w, bias, dy[:, 1:]).items()
        for operation, args in gradients:
            with pytest.raises(ValueError, match="dy "):
                operation(*args)
        few = calls(Case(size=(1, 6, 7)), x[:1], w, bias, dy)
        for operation in (conv.conv2d_forward, conv.conv2d_input_gradient, conv.conv2d_weight_gradient):
            with pytest.raises(IndexError):
                operation(*few[operation])


def test_fold_is_the_transpose_of_patches():
    rng = np.random.default_rng(0)
    for case in SMALL.values():
        x, _, _, _ = make(case)
        windows = conv.patches(x, *case.window)
        v = rng.standard_normal(windows.shape)
        back = conv.fold(v, case.size, *case.window)
        assert np.sum(windows * v) == pytest.approx(np.sum(x * back), abs=1e-10)
