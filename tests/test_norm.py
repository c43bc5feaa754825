"""Batch norm: against explicit sums, central differences and awkward numbers; the kernels against the definitions."""

import math
import os

import numba
import numpy as np
import pytest

from refsnn import twin
from refsnn.ops.norm import batch_norm_backward, batch_norm_forward, batch_norm_inference

JIT = os.environ.get("NUMBA_DISABLE_JIT", "0") != "1"
needs_jit = pytest.mark.skipif(not JIT, reason="NUMBA_DISABLE_JIT=1: there are no kernels to compare")
BACKENDS = ["numpy", pytest.param("numba", marks=needs_jit)]
SHAPES = [(1, 1, 1), (3, 1, 7), (2, 3, 5, 2, 33), (7, 4, 33), (2, 8, 8, 1, 1), (1, 64, 2)]
EPS = 1e-5


def sample(shape, dtype=np.float64, seed=0):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=shape).astype(dtype) * 2 + 1
    gamma, beta = generator.normal(size=(2, shape[0])).astype(dtype)
    return x.astype(dtype), gamma, beta, generator.normal(size=shape).astype(dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_definition_against_exact_sums(shape):
    x, gamma, beta, _ = sample(shape)
    y, mean, var = batch_norm_forward.definition(x, gamma, beta, EPS)
    for c in range(shape[0]):
        values = x[c].ravel().tolist()
        m = math.fsum(values) / len(values)
        v = math.fsum((a - m) ** 2 for a in values) / len(values)
        assert mean[c] == pytest.approx(m, rel=1e-13)
        assert var[c] == pytest.approx(v, rel=1e-12, abs=1e-15)
        expected = [gamma[c] * (a - m) / math.sqrt(v + EPS) + beta[c] for a in values]
        np.testing.assert_allclose(y[c].ravel(), expected, rtol=1e-11, atol=1e-12)
    again = batch_norm_inference.definition(x, gamma, beta, mean, var, EPS)
    np.testing.assert_allclose(again, y, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_equal_central_differences(shape):
    x, gamma, beta, dy = sample(shape)
    _, mean, var = batch_norm_forward.definition(x, gamma, beta, 0.1)
    dx, dgamma, dbeta = batch_norm_backward.definition(dy, x, mean, var, gamma, 0.1)

    def loss(x, gamma, beta):
        return np.sum(batch_norm_forward.definition(x, gamma, beta, 0.1)[0] * dy)

    for position, (value, gradient) in enumerate(((x, dx), (gamma, dgamma), (beta, dbeta))):
        scale = max(1.0, np.max(np.abs(gradient)))
        for place in list(np.ndindex(value.shape))[:: max(1, value.size // 40)]:
            sides = []
            for step in (1e-5, -1e-5):
                arguments = [x, gamma, beta]
                arguments[position] = value.copy()
                arguments[position][place] += step
                sides.append(loss(*arguments))
            assert abs((sides[0] - sides[1]) / 2e-5 - gradient[place]) <= 1e-7 * scale


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_value_a_channel(backend):
    x, gamma, beta, dy = sample((4, 1, 1))
    with twin.backend(backend):
        y, mean, var = batch_norm_forward(x, gamma, beta, EPS)
        dx, dgamma, dbeta = batch_norm_backward(dy, x, mean, var, gamma, EPS)
    assert np.array_equal(mean, x.ravel())
    assert np.all(var == 0)
    assert np.array_equal(y.ravel(), beta)
    assert np.all(dx == 0)
    assert np.all(dgamma == 0)
    assert np.array_equal(dbeta, dy.ravel())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "offset", "tolerance"), [(np.float64, 1e8, 1e-6), (np.float32, 4096, 1e-3)])
def test_a_large_mean_costs_no_accuracy(backend, dtype, offset, tolerance):
    small = np.random.default_rng(3).normal(size=(2, 5, 777))
    x = (small + offset).astype(dtype)
    kept = x.astype(np.float64) - offset                            # what the rounding of the input left
    one, zero = np.ones(2, dtype), np.zeros(2, dtype)
    with twin.backend(backend):
        y, _, var = batch_norm_forward(x, one, zero, EPS)
    expected = kept.var(axis=(1, 2))
    np.testing.assert_allclose(var, expected, rtol=1e-6)
    centred = (kept - kept.mean(axis=(1, 2), keepdims=True)) / np.sqrt(expected + EPS).reshape(2, 1, 1)
    np.testing.assert_allclose(y, centred, atol=tolerance)


def calls(shape, dtype):
    x, gamma, beta, dy = sample(shape, dtype)
    _, mean, var = batch_norm_forward.definition(x, gamma, beta, EPS)
    return [
        (batch_norm_forward, (x, gamma, beta, EPS)),
        (batch_norm_backward, (dy, x, mean, var, gamma, EPS)),
        (batch_norm_inference, (x, gamma, beta, mean, var, EPS)),
    ]


@needs_jit
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_agree(shape, dtype):
    for operation, arguments in calls(shape, dtype):
        moved = tuple(np.asfortranarray(a) if isinstance(a, np.ndarray) else a for a in arguments)
        for a in moved:
            if isinstance(a, np.ndarray):
                a.setflags(write=False)
        expected, got = operation.definition(*arguments), operation.run_kernel(*moved)
        twin.check_agreement(operation.name, operation.agree, expected, got, arguments)


@needs_jit
def test_a_float64_kernel_that_accumulates_in_float32_is_caught():
    for operation, arguments in calls((2, 40, 33), np.float64):
        single = tuple(a.astype(np.float32) if isinstance(a, np.ndarray) else a for a in arguments)
        got = operation.definition(*single)
        got = tuple(np.asarray(a, np.float64) for a in got) if isinstance(got, tuple) else got.astype(np.float64)
        with pytest.raises(twin.TwinMismatch):
            twin.check_agreement(operation.name, operation.agree, operation.definition(*arguments), got, arguments)


@needs_jit
@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one thread only")
def test_the_number_of_threads_changes_no_bit():
    before = numba.get_num_threads()
    for operation, arguments in calls((7, 33, 21), np.float32):
        results = []
        try:
            for threads in (1, 2):
                numba.set_num_threads(threads)
                results.append(operation.run_kernel(*arguments))
        finally:
            numba.set_num_threads(before)
        twin.check_agreement(operation.name, "exact", *results)
