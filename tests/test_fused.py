"""ops/fused.py: the same bits as its parts one after the other, and a network that runs layer by layer is no other."""

from typing import get_args

import numba
import numpy as np
import pytest

from refsnn import chain, config, twin
from refsnn.fusion import Group, grouped
from refsnn.models import build
from refsnn.ops.fused import (
    SLOPES,
    Pooling,
    norm_lif_backward,
    norm_lif_forward,
    norm_lif_inference,
    norm_lif_pool_backward,
    norm_lif_pool_forward,
)
from refsnn.ops.join import join
from refsnn.ops.kernels.blocks.vectors import STREAM
from refsnn.ops.loss import LOSSES
from refsnn.ops.neuron import NEURONS, lif_backward, lif_forward
from refsnn.ops.norm import batch_norm_backward, batch_norm_forward
from refsnn.ops.pool import avg_pool_backward, avg_pool_forward, max_pool_backward, max_pool_forward
from refsnn.ops.static import is_static, one_step, static, sum_of_steps
from refsnn.ops.surrogate import SURROGATES
from refsnn.rng import stream
from refsnn.trace import NO_RECORD, Recorder

needs_jit = pytest.mark.skipif(numba.config.DISABLE_JIT, reason="NUMBA_DISABLE_JIT=1: there are no kernels")
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
SHAPES = [(5, 3, 4, 3, 16), (70, 3, 2, 3, 5), (1, 1, 1, 1, 1), (7, 1, 1, 4, 33), (200, 4, 8), (40, 40, 8, 2, 16)]
MAPS = [(5, 4, 6, 3, 16), (3, 5, 7, 2, 5), (1, 1, 1, 1, 1), (40, 8, 8, 4, 32), (2, 9, 12, 10, 48)]


def given(shape, dtype, name, normed):
    """Input, gradient of the spikes, gamma and beta, the neuron and its parameters."""
    rng = np.random.default_rng(0)
    x, ds = (rng.standard_normal((2, *shape)) * 1.5).astype(dtype)
    n = NEURONS[name]
    parameters = (n.decay, n.gain, n.bias, n.v_threshold, n.v_reset, n.reset_amount, n.v_init, n.reset, n.compare,
                  n.form)
    return x, ds, tuple(rng.uniform(0.5, 2, (2, shape[0])).astype(dtype)) if normed else (None, None), n, parameters


def apart(x, ds, norm, n, parameters, surrogate):
    """What the kernels of the parts give: s, mean, var, dx, dgamma, dbeta."""
    none = np.empty(0, x.dtype)
    z, mean, var = batch_norm_forward.run_kernel(x, *norm, 1e-5) if norm[0] is not None else (x, none, none)
    s, h = lif_forward.run_kernel(z, *parameters)
    slope = SURROGATES[surrogate].derivative.run_kernel(h - x.dtype.type(n.v_threshold), SURROGATES[surrogate].alpha)
    dz = lif_backward.run_kernel(ds, h, s, slope, n.decay, n.gain, n.v_reset, n.reset_amount, n.reset, n.detach_reset)
    if norm[0] is None:
        return s, mean, var, dz, none, none
    return (s, mean, var, *batch_norm_backward.run_kernel(dz, x, mean, var, norm[0], 1e-5))


@needs_jit
@dtypes
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NEURONS)
def test_fused_kernels_give_the_bits_of_their_parts(name, shape, normed, dtype) -> None:
    x, ds, norm, n, parameters = given(shape, dtype, name, normed)
    for k, surrogate in enumerate(SLOPES):
        s, mean, var, *gradients = apart(x, ds, norm, n, parameters, surrogate)
        spikes = np.empty(0, np.uint8 if k % 2 else dtype)
        forward = norm_lif_forward.run_kernel(x, *norm, 1e-5, *parameters, spikes)
        assert forward[0].dtype == spikes.dtype
        backward = norm_lif_backward.run_kernel(ds, x, *norm, mean, var, 1e-5, *parameters, n.detach_reset, surrogate,
                                                SURROGATES[surrogate].alpha, False)
        for got, expected in zip((*forward, *backward), (s, mean, var, *gradients), strict=True):
            np.testing.assert_array_equal(got, expected)
        if normed:
            again = norm_lif_inference.run_kernel(x, *norm, mean, var, 1e-5, *parameters, spikes)
            np.testing.assert_array_equal(again, s)


@needs_jit
@dtypes
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("shape", [(5, 3, 4, 3, 16), (40, 8, 8, 4, 32), (3, 5, 7, 2, 5), (2, 9, 12, 10, 29)])
@pytest.mark.parametrize("name", ["paper", "snntorch"])
def test_a_static_current_is_the_same_current_at_every_step(name, shape, normed, dtype) -> None:
    x, ds, norm, n, parameters = given(shape, dtype, name, normed)
    once = np.ascontiguousarray(x[..., :1, :])
    x, steps = np.repeat(once, shape[-2], axis=-2), shape[-2]
    none = np.empty(0, dtype)
    s, mean, var = norm_lif_forward.run_kernel(once, *norm, 1e-5, *parameters, none, steps)
    forward = norm_lif_forward.run_kernel(x, *norm, 1e-5, *parameters, none)
    if normed:      # statistics are those of one step, whose sum has another order
        np.testing.assert_allclose(mean, forward[1], atol=1e-6)
        forward = (norm_lif_inference.run_kernel(x, *norm, mean, var, 1e-5, *parameters, none),)
        again = norm_lif_inference.run_kernel(once, *norm, mean, var, 1e-5, *parameters, none, steps)
        np.testing.assert_array_equal(again, s)
    np.testing.assert_array_equal(s, forward[0])
    for surrogate in SLOPES:
        slope = (n.detach_reset, surrogate, SURROGATES[surrogate].alpha)
        ours, whole = (norm_lif_backward.run_kernel(ds, one, *norm, mean, var, 1e-5, *parameters, *slope, False)
                       for one in (once, x))
        for got, expected in zip(ours, (sum_of_steps(whole[0]), *whole[1:]), strict=True):
            np.testing.assert_array_equal(got, expected)
        for pooling, size in (("average", 2), ("max", 2), ("max", 3)):
            y, winner, *_ = norm_lif_pool_forward.run_kernel(once, *norm, 1e-5, *parameters, none, size, pooling, steps)
            pooled = (avg_pool_forward.run_kernel(s, size) if pooling == "average" else
                      max_pool_forward.run_kernel(s, size)[0])
            np.testing.assert_array_equal(y, pooled)
            ours, whole = (norm_lif_pool_backward.run_kernel(y, winner, one, *norm, mean, var, 1e-5, *parameters,
                                                             *slope, size, pooling, False) for one in (once, x))
            for got, expected in zip(ours, (sum_of_steps(whole[0]), *whole[1:]), strict=True):
                np.testing.assert_array_equal(got, expected)


def test_twins_agree_on_a_static_current() -> None:
    once, _, norm, n, parameters = given((4, 4, 4, 1, 5), np.float64, "paper", True)
    slope, none = (n.detach_reset, "triangle", 1.0), np.empty(0)
    with twin.backend("both"):
        s, mean, var = norm_lif_forward(once, *norm, 1e-5, *parameters, none, 3)
        norm_lif_inference(once, *norm, mean, var, 1e-5, *parameters, none, 3)
        norm_lif_backward(s, once, *norm, mean, var, 1e-5, *parameters, *slope, False)
        y, winner, *_ = norm_lif_pool_forward(once, *norm, 1e-5, *parameters, none, 2, "max", 3)
        norm_lif_pool_backward(y, winner, once, *norm, mean, var, 1e-5, *parameters, *slope, 2, "max", False)
    for backend in ("numpy", "numba"):
        with twin.backend(backend), pytest.raises(ValueError, match="must have one"):
            norm_lif_forward(s, *norm, 1e-5, *parameters, none, 3)


@needs_jit
@pytest.mark.parametrize("normed", [True, False])
def test_the_gradient_of_a_large_map_may_take_its_place(normed) -> None:
    x, ds, norm, n, parameters = given((4, 64, 64, 4, 64), np.float32, "paper", normed)
    assert x.nbytes >= STREAM
    mean, var = (x.mean(axis=(1, 2, 3, 4)), x.var(axis=(1, 2, 3, 4))) if normed else 2 * (np.empty(0, np.float32),)
    dy = np.ascontiguousarray(ds[:, ::2, ::2])
    none = np.empty((0,) * 5, np.uint8)
    for backward, gradient, pool in ((norm_lif_backward, (ds,), ()), (norm_lif_pool_backward, (dy, none),
                                                                      (2, "average"))):
        place = x.copy()
        apart, over = (backward.run_kernel(*gradient, where, *norm, mean, var, 1e-5, *parameters, n.detach_reset,
                                           "triangle", 1.0, *pool, where is place) for where in (x, place))
        assert np.shares_memory(over[0], place)
        assert not np.shares_memory(apart[0], x)
        for got, expected in zip(over, apart, strict=True):
            np.testing.assert_array_equal(got, expected)


@needs_jit
@dtypes
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("pooling", ["average", "max"])
@pytest.mark.parametrize("shape", MAPS)
@pytest.mark.parametrize("name", ["paper", "snntorch", "spikingjelly_soft"])
def test_pooled_kernels_give_the_bits_of_their_parts(name, shape, normed, pooling, dtype) -> None:
    x, _, norm, n, parameters = given(shape, dtype, name, normed)
    for k, (surrogate, size) in enumerate(zip(SLOPES, (2, 2, 3, 4), strict=True)):
        spikes = np.empty(0, np.uint8 if pooling == "max" and k % 2 else dtype)
        dy = np.random.default_rng(1).standard_normal((shape[0], shape[1] // size, shape[2] // size, *shape[3:]))
        forward = norm_lif_pool_forward.run_kernel(x, *norm, 1e-5, *parameters, spikes, size, pooling)
        assert forward[0].dtype == spikes.dtype
        ds = (avg_pool_backward.run_kernel(dy.astype(dtype), size, shape[1:3]) if pooling == "average" else
              max_pool_backward.run_kernel(dy.astype(dtype), forward[1], size, shape[1:3]))
        s, mean, var, *gradients = apart(x, ds, norm, n, parameters, surrogate)
        backward = norm_lif_pool_backward.run_kernel(dy.astype(dtype), forward[1], x, *norm, mean, var, 1e-5,
                                                     *parameters, n.detach_reset, surrogate,
                                                     SURROGATES[surrogate].alpha, size, pooling, False)
        pooled = ((avg_pool_forward.run_kernel(s, size), np.empty((0,) * 5)) if pooling == "average" else
                  max_pool_forward.run_kernel(s, size))
        for got, expected in zip((*forward, *backward), (*pooled, mean, var, *gradients), strict=True):
            np.testing.assert_array_equal(got, expected)


@dtypes
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("name", ["paper", "snntorch", "norse", "spikingjelly_soft"])
def test_twins_agree(name, normed, dtype) -> None:
    x, ds, norm, n, parameters = given((4, 2, 3, 3, 5), dtype, name, normed)
    x = x * 7                           # Norse's neurons take a tenth of it
    with twin.backend("both"):
        s, mean, var = norm_lif_forward(x, *norm, 1e-5, *parameters, np.empty(0, np.uint8))
        assert s.dtype == np.uint8
        assert 0 < s.mean() < 1
        pooled = {pooling: norm_lif_pool_forward(x, *norm, 1e-5, *parameters, np.empty(0, dtype), 2, pooling)[:2]
                  for pooling in get_args(Pooling)}
        for surrogate in SLOPES:
            slope = (n.detach_reset, surrogate, SURROGATES[surrogate].alpha)
            norm_lif_backward(ds, x, *norm, mean, var, 1e-5, *parameters, *slope, False)
            for pooling, (y, winner) in pooled.items():
                norm_lif_pool_backward(y, winner, x, *norm, mean, var, 1e-5, *parameters, *slope, 2, pooling, False)
        if normed:
            np.testing.assert_array_equal(
                norm_lif_inference(x, *norm, mean, var, 1e-5, *parameters, np.empty(0, dtype)), s)


def test_the_form_that_contains_its_reset_is_refused_without_it() -> None:
    x, _, norm, _, parameters = given((2, 3, 4), np.float32, "snntorch", True)
    wrong = (*parameters[:7], "hard", *parameters[8:])
    for backend in ("numpy", "numba"):
        with twin.backend(backend), pytest.raises(ValueError, match="needs reset soft"):
            norm_lif_forward(x, *norm, 1e-5, *wrong, np.empty(0, np.uint8))


@pytest.mark.parametrize("shape", [(3, 2, 2, 2, 3), (64, 32, 16, 2, 16)])
def test_a_join_adds_bytes_as_it_adds_floats(shape) -> None:
    rng = np.random.default_rng(0)
    along, beside = rng.standard_normal(shape).astype(np.float32), (rng.random(shape) < 0.3).astype(np.uint8)
    for backend in ("numpy", "numba"):
        with twin.backend(backend):
            y = join(along, beside)
            assert y.dtype == np.float32
            np.testing.assert_array_equal(y, along + beside.astype(np.float32))
            np.testing.assert_array_equal(join(along, along), along + along)


CHAINS = ["4C3 MP2 6C3/nonorm AP2 FC8 FC VOTE2", "4C3 AP2 AP2 6C3 AP2 FC", "4C3 6R 8Rs2 GAP FC12 FC",
          "4C3/nolif 4C3s2 DP0.3 FC", "4C3/nonorm AP2 FC8 FC"]


def network_of(text, *overrides):
    keys = config.loads("", ["model.name=layers", f'model.layers="{text}"', "structure.density=0.5",
                             "structure.fan=active", "dtype=float64", *overrides])
    return build(keys, (2, 8, 8), 3)


def results(network, x, training, rec):
    """Logits, gradients, and what a step would commit."""
    logits, caches = network.forward(x, training, lambda name: stream(0, name), rec)
    if not training:
        return [logits]
    gradients = network.backward(LOSSES["tet"](logits, np.arange(x.shape[-1]) % 3)[1], caches, rec)
    network.commit(caches)
    return [logits, *gradients.values(), *(a for n in network.norms for a in (n.running_mean, n.running_var))]


@needs_jit
@pytest.mark.parametrize("still", [False, True])            # an image that is the same at every step
@pytest.mark.parametrize("batch", [4, 8])                   # 8: spikes are packed for both passes of a convolution
@pytest.mark.parametrize("large", [chain.LARGE, 0])         # 0: every map of the data's convolution is computed twice
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("text", CHAINS)
def test_a_network_gives_the_same_bits_fused_and_layer_by_layer(text, training, large, batch, still, monkeypatch
                                                                ) -> None:
    monkeypatch.setattr(chain, "LARGE", large)
    x = np.random.default_rng(0).random((2, 8, 8, 3, batch))
    x = static(x[..., :1, :].copy(), 3) if still else x
    fused, recorded = (results(network_of(text), x, training, rec) for rec in (NO_RECORD, Recorder()))
    for a, b in zip(fused, recorded, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("text", CHAINS)
def test_what_is_computed_once_is_what_is_computed_at_every_step(text) -> None:
    x = static(np.random.default_rng(0).random((2, 8, 8, 1, 4)), 3)
    assert is_static(x)
    assert not is_static(np.ascontiguousarray(x))
    assert one_step(x).shape == (2, 8, 8, 1, 4)
    for training in (True, False):
        once, always = (results(network_of(text), shown, training, NO_RECORD) for shown in
                        (x, np.ascontiguousarray(x)))
        for a, b in zip(once, always, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@needs_jit
@pytest.mark.parametrize("text", CHAINS)
def test_a_forward_pass_that_was_recorded_goes_back_without_a_recorder(text) -> None:
    x, labels = np.random.default_rng(0).random((2, 8, 8, 3, 4)), np.array([0, 1, 2, 1])
    found = []
    for rec in (NO_RECORD, Recorder()):
        network = network_of(text)
        logits, caches = network.forward(x, True, lambda name: stream(0, name), rec)
        found.append(network.backward(LOSSES["tet"](logits, labels)[1], caches, NO_RECORD, dense=True))
    for name, gradient in found[0].items():
        np.testing.assert_array_equal(gradient, found[1][name])


@needs_jit
def test_what_is_fused() -> None:
    def pairs(text, *overrides):
        return [one for one in grouped(network_of(text, *overrides).layers, NO_RECORD) if isinstance(one, Group)]

    assert [(len(one.layers), one.compact) for one in pairs(CHAINS[0])] == [(3, True), (2, False), (1, True)]
    assert [(len(one.layers), one.compact) for one in pairs(CHAINS[1])] == [(3, False), (3, False)]
    assert [(len(one.layers), one.compact) for one in pairs(CHAINS[2])] == [(2, True), (1, True), (2, False), (1, True)]
    assert pairs(CHAINS[0], "neuron.surrogate=erf") == [], "an exponential has no kernel"
    with twin.backend("both"):
        assert pairs(CHAINS[0]) == [], "definitions are compared layer by layer"
    assert not any(isinstance(one, Group) for one in grouped(network_of(CHAINS[0]).layers, Recorder()))
