"""Surrogates: each derivative is that of its primitive, safe far from the threshold, the same in its kernel."""

import os

import numpy as np
import pytest

from refsnn import twin
from refsnn.ops.surrogate import SURROGATES, triangle_derivative

JIT = os.environ.get("NUMBA_DISABLE_JIT", "0") != "1"
needs_jit = pytest.mark.skipif(not JIT, reason="NUMBA_DISABLE_JIT=1: there are no kernels to compare")
BACKENDS = ["numpy", pytest.param("numba", marks=needs_jit)]
WITH_KERNEL = [name for name, surrogate in SURROGATES.items() if surrogate.derivative.kernel_path is not None]
DTYPES = (np.float32, np.float64)

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(params=SURROGATES)
def surrogate(request):
    return SURROGATES[request.param]


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_derivative_is_the_derivative_of_the_primitive(surrogate, factor):
    alpha = factor * surrogate.alpha
    x = np.linspace(-3, 3, 2001) / max(alpha, 1 / alpha)
    step = 1e-6 / max(alpha, 1.0)
    far = np.all([np.abs(x - kink) > 2 * step for kink in surrogate.kinks(alpha)] or [np.ones(x.size, bool)], axis=0)
    numerical = (surrogate.primitive(x + step, alpha) - surrogate.primitive(x - step, alpha)) / (2 * step)
    exact = surrogate.derivative.definition(x, alpha)
    assert far.sum() >= 1990
    assert np.max(np.abs(numerical - exact)[far]) <= 1e-7 * max(1.0, exact.max())


def test_area_is_the_rise_of_the_primitive(surrogate):
    alpha = surrogate.alpha
    ends = surrogate.primitive(np.array([-1e12, 0.0, 1e12]), alpha)
    assert ends[1] == 0.5
    assert ends[2] - ends[0] == pytest.approx(surrogate.area(alpha), abs=1e-9)
    assert ends[2] - 0.5 == pytest.approx(0.5 - ends[0], abs=1e-12)
    x = np.concatenate([-np.geomspace(1e6, 1e-9, 400_000), [0.0], np.geomspace(1e-9, 1e6, 400_000)])
    y = surrogate.derivative.definition(x, alpha)
    assert np.sum((y[1:] + y[:-1]) / 2 * np.diff(x)) == pytest.approx(surrogate.area(alpha), abs=1e-4)


def test_primitive_rises_and_derivative_is_symmetric(surrogate):
    x = np.linspace(-4, 4, 1001)
    slope = surrogate.derivative.definition(x, surrogate.alpha)
    assert np.all(slope >= 0)
    assert np.array_equal(slope, surrogate.derivative.definition(-x, surrogate.alpha))
    assert np.all(np.diff(surrogate.primitive(x, surrogate.alpha)) >= 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_far_from_the_threshold_nothing_overflows(surrogate, dtype, backend):
    x = np.array([0, 1e-30, 1, 90, 1e3, 1e18, 1e20, 1e38, np.finfo(dtype).max, np.inf], dtype)
    x = np.concatenate([-x[::-1], x])
    with twin.backend(backend):
        slope = surrogate.derivative(x, surrogate.alpha)
    value = surrogate.primitive(x, surrogate.alpha)
    assert slope.dtype == value.dtype == dtype
    assert np.all(np.isfinite(slope))
    assert np.all(np.isfinite(value))
    assert np.all(np.diff(value) >= 0)
    assert slope[0] == slope[-1] == 0


def test_values_a_person_can_check():
    x = np.array([-2.0, -1.0, -0.5, 0.0, 0.25, 1.0])
    one_each = {
        "triangle": [0, 0, 0.5, 1, 0.75, 0],
        "rectangle": [0, 0, 0, 1, 1, 0],
        "arctan": [0.5 / (1 + (np.pi * v / 2) ** 2) for v in x],
        "sigmoid": [np.exp(-v) / (1 + np.exp(-v)) ** 2 for v in x],
        "fast_sigmoid": [1 / 9, 1 / 4, 1 / 2.25, 1, 0.64, 1 / 4],
        "piecewise_exponential": [0.5 * np.exp(-abs(v)) for v in x],
        "erf": [np.exp(-v * v) / np.sqrt(np.pi) for v in x],
    }
    assert set(one_each) <= set(SURROGATES)
    for name, expected in one_each.items():
        np.testing.assert_allclose(SURROGATES[name].derivative.definition(x, 1.0), expected, rtol=1e-14, err_msg=name)
    np.testing.assert_allclose(triangle_derivative.definition(x, 2.0), [0, 0.25, 0.375, 0.5, 0.4375, 0.25])


def test_the_key_is_the_name():
    assert all(name == surrogate.name for name, surrogate in SURROGATES.items())


@needs_jit
@pytest.mark.parametrize("name", WITH_KERNEL)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 3, 33), (2, 3, 5, 4, 7)])
def test_kernel_agrees(name, dtype, shape):
    operation, alpha = SURROGATES[name].derivative, SURROGATES[name].alpha
    x = np.random.default_rng(0).normal(size=shape).astype(dtype)
    x.flat[:: 3] = alpha                                    # exactly at a kink
    x.setflags(write=False)
    for a in (x, x.T):
        expected, got = operation.definition(a, alpha), operation.run_kernel(a, alpha)
        twin.check_agreement(operation.name, operation.agree, expected, got)
