"""ops/linear.py: definitions against loops, kernels against definitions, gradients against their meaning."""

from dataclasses import dataclass

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refsnn import twin
from refsnn.ops import linear
from refsnn.ops.sparse import from_dense

JIT = not numba.config.DISABLE_JIT


@dataclass(frozen=True)
class Case:
    """A linear map of x (F, T, B) to O units."""

    features: int = 10
    units: int = 6
    samples: tuple[int, int] = (2, 5)
    density: float = 0.4
    bias: bool = True
    spikes: bool = False


SMALL = {
    "ordinary": Case(),
    "one of each": Case(features=1, units=1, samples=(1, 1), density=1.0),
    "N = 7": Case(samples=(1, 7), bias=False),
    "N = 3, below a quarter": Case(samples=(3, 1)),
    "N = 33": Case(samples=(3, 11)),
    "dense": Case(density=1.0),
    "no weight": Case(density=0.0),
    "no weight, no bias": Case(density=0.0, bias=False),
    "several blocks of features": Case(features=2500, units=3, samples=(2, 16), density=0.9),
    "many units": Case(features=5, units=70),
    "spikes, N = 8": Case(samples=(2, 4), spikes=True),
    "spikes, N = 40": Case(samples=(5, 8), spikes=True, density=1.0),
    "spikes, N = 10: no whole bytes": Case(spikes=True),
}
LARGE = {
    "enough work for all threads": Case(features=300, units=130, samples=(4, 33), density=0.9),
    "spikes, enough work for all threads": Case(features=2100, units=130, samples=(4, 64), density=0.3, spikes=True),
    "enough work for all threads, more features": Case(features=1030, units=128, samples=(4, 64), density=0.2),
}
KERNEL_CASES = SMALL | LARGE if JIT else SMALL      # as plain Python the kernels take minutes for the large ones
small = pytest.mark.parametrize("case", SMALL.values(), ids=SMALL.keys())
every = pytest.mark.parametrize("case", KERNEL_CASES.values(), ids=KERNEL_CASES.keys())
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def make(case, dtype=np.float64, seed=0):
    """x with about half its values zero, a weight whose second row is empty, bias, dy."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((case.features, *case.samples)) * (rng.random((case.features, *case.samples)) < 0.5)
    if case.spikes:
        x = (x != 0).astype(np.float64)
    mask = rng.random((case.units, case.features)) < case.density
    if case.density < 1:
        mask[1:2] = False
    weight = from_dense(rng.standard_normal(mask.shape).astype(dtype), mask)
    bias = rng.standard_normal(case.units).astype(dtype) if case.bias else None
    return x.astype(dtype), weight, bias, rng.standard_normal((case.units, *case.samples)).astype(dtype)


def calls(x, w, bias, dy):
    """Every operation of the file that has a kernel, with its arguments."""
    return {
        linear.linear_forward: (x, w.data, w.indices, w.indptr, bias),
        linear.linear_input_gradient: (dy, w.data, w.indices, w.indptr, x.shape[0]),
        linear.linear_weight_gradient: (dy, x, w.indices, w.indptr),
        linear.linear_weight_gradient_dense: (dy, x),
    }


def check_kernels(case, dtype, seed=0):
    for operation, args in calls(*make(case, dtype, seed)).items():
        expected = operation.definition(*args)
        assert expected.dtype == dtype
        twin.check_agreement(operation.name, operation.agree, expected, operation.run_kernel(*args), args)


@small
def test_definitions_are_the_equations(case):
    x, w, bias, dy = make(case)
    dense = w.dense()
    y, dx, dw = np.zeros_like(dy), np.zeros_like(x), np.zeros_like(dense)
    for o in range(case.units):
        for f in range(case.features):
            y[o] += dense[o, f] * x[f]
            dx[f] += dense[o, f] * dy[o]
            dw[o, f] = np.sum(dy[o] * x[f])
        if bias is not None:
            y[o] += bias[o]
    truth = (y, dx, w.gather(dw), dw)
    for (operation, args), expected in zip(calls(x, w, bias, dy).items(), truth, strict=True):
        np.testing.assert_allclose(operation.definition(*args), expected, rtol=0, atol=1e-12)


def test_bias_gradient_sums_all_but_the_first_axis():
    dy = np.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(linear.bias_gradient(dy), [np.arange(12).sum(), np.arange(12, 24).sum()])
    maps = np.random.default_rng(0).standard_normal((3, 2, 4, 5, 6)).astype(np.float32)
    got = linear.bias_gradient(np.asfortranarray(maps))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, np.einsum("ohwtb->o", maps.astype(np.float64)), rtol=0, atol=1e-5)


@every
@dtypes
def test_kernels_agree(case, dtype):
    check_kernels(case, dtype)


@settings(max_examples=25 if JIT else 5, deadline=None)
@given(
    features=st.integers(1, 80),
    units=st.integers(1, 40),
    samples=st.tuples(st.integers(1, 4), st.integers(1, 20)),
    density=st.floats(0, 1),
    bias=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_kernels_agree_on_any_map(features, units, samples, density, bias, seed):
    check_kernels(Case(features, units, samples, density, bias), np.float64, seed)


@pytest.mark.parametrize("backend", twin.BACKENDS[:2])
@pytest.mark.parametrize("case", [c for c in KERNEL_CASES.values() if c.spikes])
@dtypes
def test_spikes_in_bytes_give_what_they_give_as_floats(case, dtype, backend):
    x, *rest = make(case, dtype)
    for largest in (1, 3):                                      # bytes that are no spikes are numbers like any other
        with twin.backend(backend):
            both = [calls(x * largest, *rest), calls((x * largest).astype(np.uint8), *rest)]
            for (operation, floats), spikes in zip(both[0].items(), both[1].values(), strict=True):
                expected, got = operation(*floats), operation(*spikes)
                assert got.dtype == expected.dtype == dtype
                np.testing.assert_array_equal(got, expected)


@dtypes
def test_kernels_take_any_layout(dtype):
    """Views with other strides and read-only arrays: made contiguous and writable, with the same result."""
    x, w, bias, dy = make(Case(), dtype)
    strided = [np.repeat(a, 2, axis=-1)[..., ::2] for a in (x, dy)]
    transposed = [np.asfortranarray(a) for a in (x, dy)]
    frozen = [a.copy() for a in (x, dy)]
    for a in frozen:
        a.setflags(write=False)
    for other_x, other_dy in (strided, transposed, frozen):
        others = calls(other_x, w, bias, other_dy)
        for (operation, args), other in zip(calls(x, w, bias, dy).items(), others.values(), strict=True):
            np.testing.assert_array_equal(operation.run_kernel(*args), operation.run_kernel(*other))


def test_a_kernel_that_accumulates_in_float32_is_caught():
    for operation, args in calls(*make(Case())).items():
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
        y, dx, ddata, dense = (operation(*args) for operation, args in calls(x, w, None, dy).items())
    scale = np.sum(np.abs(dy)) + 1
    assert abs(np.sum(dy * y) - np.sum(dx * x)) <= 1e-12 * scale
    assert abs(np.sum(dy * y) - np.sum(ddata * w.data)) <= 1e-12 * scale
    np.testing.assert_allclose(ddata, w.gather(dense), rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("backend", twin.BACKENDS[:2])
def test_gradients_are_central_differences(backend):
    """Loss <dy, y>: linear in each input, so that a difference of step 1/2 has no truncation error."""
    x, w, bias, dy = make(Case(features=5, units=3))

    def loss(x, data, bias):
        return np.sum(dy * linear.linear_forward(x, data, w.indices, w.indptr, bias))

    def differences(name, inputs):
        result = np.zeros_like(inputs[name])
        for at in np.ndindex(result.shape):
            step = np.zeros_like(result)
            step[at] = 0.5
            up, down = inputs | {name: inputs[name] + step}, inputs | {name: inputs[name] - step}
            result[at] = loss(**up) - loss(**down)
        return result

    inputs = {"x": x, "data": w.data, "bias": bias}
    with twin.backend(backend):
        _, dx, ddata, _ = (operation(*args) for operation, args in calls(x, w, bias, dy).items())
        for name, gradient in (("x", dx), ("data", ddata), ("bias", linear.bias_gradient(dy))):
            np.testing.assert_allclose(differences(name, inputs), gradient, rtol=0, atol=1e-10)


@pytest.mark.skipif(not JIT, reason="kernels run as plain Python")
@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="numba has one thread")
@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE.keys())
@dtypes
def test_result_does_not_depend_on_the_number_of_threads(case, dtype):
    before = numba.get_num_threads()
    try:
        for operation, args in calls(*make(case, dtype)).items():
            results = []
            for threads in (1, 2):
                numba.set_num_threads(threads)
                results.append(operation.run_kernel(*args))
            np.testing.assert_array_equal(*results)
    finally:
        numba.set_num_threads(before)


@pytest.mark.parametrize("backend", twin.BACKENDS[:2])
def test_a_column_beyond_the_features_is_refused(backend):
    x, w, bias, dy = make(Case(density=1.0))
    with twin.backend(backend):
        for operation, args in list(calls(x[:-1], w, bias, dy).items())[:3]:
            with pytest.raises(IndexError):
                operation(*args)
