"""The neuron: tables a person can check, explicit scalar loops, central differences, and the kernels bit for bit."""

import itertools
import os
from dataclasses import replace
from functools import partial
from typing import get_args

import numba
import numpy as np
import pytest

from refsnn import twin
from refsnn.errors import UserError
from refsnn.ops.neuron import (
    NEURONS,
    Compare,
    Form,
    Neuron,
    Reset,
    lif_backward,
    lif_forward,
    lif_forward_smooth,
    lif_reset,
)
from refsnn.ops.surrogate import SURROGATES

JIT = os.environ.get("NUMBA_DISABLE_JIT", "0") != "1"
needs_jit = pytest.mark.skipif(not JIT, reason="NUMBA_DISABLE_JIT=1: there are no kernels to compare")
BACKENDS = ["numpy", pytest.param("numba", marks=needs_jit)]
DTYPES = (np.float32, np.float64)
SHAPES = [(1, 1, 1), (1, 7, 1), (7, 1, 33), (65, 4, 7), (2, 3, 5, 3, 10), (1, 5, 33)]


def variant(form, reset, compare="gt", detach=False):
    """A neuron of that form with a rest, a start and a threshold that are not trivial, as the form allows."""
    decay, v_reset = 0.75, -0.25
    bias = (1 - decay) * v_reset
    fixed = {
        "affine": {"gain": 0.5, "bias": 0.125},
        "spikingjelly": {"gain": 1 - decay, "bias": bias},
        "spikingjelly_full_input": {"gain": 1.0, "bias": bias},
        "norse": {"gain": 1 - decay, "bias": 0.0625},
        "snntorch": {"reset_amount": 0.75 / decay},
    }[form]
    common = {"decay": decay, "v_threshold": 0.75, "v_reset": v_reset, "v_init": 0.25, "reset_amount": 0.5}
    return Neuron(**{**common, **fixed}, reset=reset, compare=compare, detach_reset=detach, form=form)


def variants():
    """Every form with every reset and comparison it allows."""
    for form, reset, compare in itertools.product(get_args(Form), get_args(Reset), get_args(Compare)):
        if form != "snntorch" or reset == "soft":
            yield variant(form, reset, compare)


def label(neuron):
    return f"{neuron.form}-{neuron.reset}-{neuron.compare}"


def forward_arguments(x, n):
    return (x, n.decay, n.gain, n.bias, n.v_threshold, n.v_reset, n.reset_amount, n.v_init, n.reset, n.compare, n.form)


def backward_arguments(ds, h, s, slope, n):
    return ds, h, s, slope, n.decay, n.gain, n.v_reset, n.reset_amount, n.reset, n.detach_reset


def column(*values):
    """The input of one neuron and one sample: (1, T, 1)."""
    return np.array(values, float).reshape(1, -1, 1)


# ---------------------------------------------------------------------------------------------------- by hand

TABLES = {                      # decay 0.5, threshold 1; every number is exact in binary
    "below, exactly at it, far above": ("hard", "gt", [0.5, 0.75, 0.5, 2.0, 0.25],
                                        [0, 0, 0, 1, 0], [0.5, 1.0, 1.0, 2.5, 0.25]),
    "the same, >=": ("hard", "ge", [0.5, 0.75, 0.5, 2.0, 0.25],
                     [0, 1, 0, 1, 0], [0.5, 1.0, 0.5, 2.25, 0.25]),
    "soft": ("soft", "gt", [0.5, 0.75, 1.0, 2.0, 0.25], [0, 0, 1, 1, 0], [0.5, 1.0, 1.5, 2.25, 0.875]),
    "none": ("none", "gt", [2.0, 1.0, 1.0, 0.0], [1, 1, 1, 0], [2.0, 2.0, 2.0, 1.0]),
    "never fires": ("hard", "gt", [0.5] * 4, [0] * 4, [0.5, 0.75, 0.875, 0.9375]),
    "always fires": ("hard", "gt", [1.5] * 4, [1] * 4, [1.5] * 4),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", TABLES)
def test_tables(case, dtype, backend):
    reset, compare, x, s, h = TABLES[case]
    neuron = replace(NEURONS["paper"], reset=reset, compare=compare)
    with twin.backend(backend):
        spikes, membrane = lif_forward(*forward_arguments(column(*x).astype(dtype), neuron))
    assert spikes.ravel().tolist() == s
    assert membrane.ravel().tolist() == h
    assert spikes.dtype == membrane.dtype == dtype


def test_integrate_and_fire_counts():
    s, h = lif_forward.definition(*forward_arguments(column(*[0.25] * 6), replace(NEURONS["if"], compare="ge")))
    assert h.ravel().tolist() == [0.25, 0.5, 0.75, 1.0, 0.25, 0.5]
    assert s.ravel().tolist() == [0, 0, 0, 1, 0, 0]


def test_snntorch_subtracts_after_the_decay():
    neuron = Neuron(reset="soft", reset_amount=2.0, detach_reset=True, form="snntorch")
    s, h = lif_forward.definition(*forward_arguments(column(1.5, 1.0, 0.0, 2.0), neuron))
    assert h.ravel().tolist() == [1.5, 0.75, 0.375, 2.1875]         # 0.75 = 0.5 * 1.5 + 1 - 1
    assert s.ravel().tolist() == [1, 0, 0, 1]


def test_a_gradient_by_hand():
    """Two steps, the first fires: every line of the recursion with numbers."""
    h, s, ds = column(1.5, 0.75), column(1, 0), column(1.0, 2.0)
    slope = column(0.5, 0.75)
    # t=1: dh = 2 * 0.75 = 1.5, dx = 1.5, carry = 0.75;  t=0: ds = 1 + 0.75 * (0 - 1.5) = -0.125, dh = 0.75 * 0 - 0.0625
    assert lif_backward.definition(*backward_arguments(ds, h, s, slope, Neuron())).ravel().tolist() == [-0.0625, 1.5]
    detached = Neuron(detach_reset=True)
    assert lif_backward.definition(*backward_arguments(ds, h, s, slope, detached)).ravel().tolist() == [0.5, 1.5]
    soft = Neuron(reset="soft")
    assert lif_backward.definition(*backward_arguments(ds, h, s, slope, soft)).ravel().tolist() == [0.875, 1.5]


# ---------------------------------------------------------------------------------------------------- against loops

def scalar_neuron(x, n):
    """One neuron, one sample, in plain Python and in the general form; spikes and membranes."""
    v, spikes, membranes = n.v_init, [], []
    for value in x:
        h = n.decay * v + n.gain * value + n.bias
        fires = h > n.v_threshold if n.compare == "gt" else h >= n.v_threshold
        if fires and n.reset == "hard":
            v = n.v_reset
        elif fires and n.reset == "soft":
            v = h - n.reset_amount
        else:
            v = h
        spikes.append(float(fires))
        membranes.append(h)
    return spikes, membranes


@pytest.mark.parametrize("neuron", [*variants(), *NEURONS.values()], ids=[*map(label, variants()), *NEURONS])
def test_every_form_is_the_general_neuron(neuron):
    x = np.random.default_rng(0).normal(size=(3, 4, 12, 5)) * 2 + 0.5
    s, h = lif_forward.definition(*forward_arguments(x, neuron))
    assert 0 < s.sum() < s.size
    for c, f, b in np.ndindex(3, 4, 5):
        spikes, membranes = scalar_neuron(x[c, f, :, b], neuron)
        assert s[c, f, :, b].tolist() == spikes
        np.testing.assert_allclose(h[c, f, :, b], membranes, rtol=1e-13, atol=1e-13)


def test_lif_reset_gives_the_membrane_the_next_step_starts_from():
    h, s = np.array([0.5, 2.0]), np.array([0.0, 1.0])
    assert lif_reset(h, s, -0.5, 0.75, "hard").tolist() == [0.5, -0.5]
    assert lif_reset(h, s, -0.5, 0.75, "soft").tolist() == [0.5, 1.25]
    assert lif_reset(h, s, -0.5, 0.75, "none").tolist() == [0.5, 2.0]


# ---------------------------------------------------------------------------------------------------- gradients

def gradient_and_numerical(neuron, surrogate, with_h, with_v, seed=0):
    """lif_backward, and central differences of the smooth neuron; NaN within ten steps of a kink."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(4, 7, 3)) * 1.5 + 0.3
    weight_s, weight_h, weight_v = generator.normal(size=(3, *x.shape))
    alpha, step = surrogate.alpha, 1e-6
    n = neuron
    run = partial(
        lif_forward_smooth, decay=n.decay, gain=n.gain, bias=n.bias, v_threshold=n.v_threshold, v_reset=n.v_reset,
        reset_amount=n.reset_amount, v_init=n.v_init, reset=n.reset, form=n.form,
        primitive=lambda a: surrogate.primitive(a, alpha),
    )
    s, h = run(x)
    frozen = s if n.detach_reset else None

    def loss(x):                                                    # one per feature and sample: time is summed
        s, h = run(x, frozen=frozen)
        v = lif_reset(h, s if frozen is None else frozen, n.v_reset, n.reset_amount, n.reset)
        return np.sum(weight_s * s + with_h * weight_h * h + with_v * weight_v * v, axis=1)

    slope = surrogate.derivative.definition(h - n.v_threshold, alpha)
    gradient = lif_backward.definition(
        *backward_arguments(weight_s, h, s, slope, n), weight_h if with_h else None, weight_v if with_v else None
    )
    numerical = np.empty_like(x)
    for t in range(x.shape[1]):
        delta = np.zeros_like(x)
        delta[:, t] = step
        numerical[:, t] = (loss(x + delta) - loss(x - delta)) / (2 * step)
    at_kink = np.zeros(h.shape, bool)
    for kink in surrogate.kinks(alpha):
        at_kink |= np.abs(h - n.v_threshold - kink) < 10 * step
    touched = np.flip(np.logical_or.accumulate(np.flip(at_kink, 1), axis=1), 1)     # x[t] moves h[t], h[t+1], ...
    numerical[touched] = np.nan
    return gradient, numerical


GRADIENT_NEURONS = [
    replace(neuron, detach_reset=detach) for neuron in variants() if neuron.compare == "gt" for detach in (False, True)
]


@pytest.mark.parametrize("neuron", GRADIENT_NEURONS, ids=[f"{label(n)}-{n.detach_reset}" for n in GRADIENT_NEURONS])
@pytest.mark.parametrize(("with_h", "with_v"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_backward_equals_central_differences(neuron, with_h, with_v):
    gradient, numerical = gradient_and_numerical(neuron, SURROGATES["triangle"], with_h, with_v)
    compared = ~np.isnan(numerical)
    assert compared.sum() >= 0.95 * compared.size
    assert np.max(np.abs(gradient - numerical)[compared]) <= 1e-7 * np.max(np.abs(gradient))


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("preset", ["paper", "spikingjelly_soft", "snntorch"])
def test_backward_equals_central_differences_for_every_surrogate(name, preset):
    gradient, numerical = gradient_and_numerical(NEURONS[preset], SURROGATES[name], 1, 1)
    compared = ~np.isnan(numerical)
    assert compared.sum() >= 0.9 * compared.size
    assert np.max(np.abs(gradient - numerical)[compared]) <= 1e-7 * np.max(np.abs(gradient))


def test_a_wrong_gradient_is_caught():
    """The check would notice a reset that is detached on one side only."""
    neuron = NEURONS["paper"]
    _, numerical = gradient_and_numerical(neuron, SURROGATES["arctan"], 0, 0)
    wrong, _ = gradient_and_numerical(replace(neuron, detach_reset=True), SURROGATES["arctan"], 0, 0)
    assert np.nanmax(np.abs(wrong - numerical)) > 1e-2


# ---------------------------------------------------------------------------------------------------- parameters

def test_presets_are_what_their_frameworks_compute():
    assert NEURONS["paper"] == Neuron(0.5, 1.0, 0.0, 1.0, 0.0, "hard", 1.0, 0.0, False, "gt", "affine")
    assert NEURONS["if"].decay == 1
    assert all(n.compare == ("ge" if name.startswith("spikingjelly") else "gt") for name, n in NEURONS.items())
    assert all(n.detach_reset == name.startswith("snntorch") for name, n in NEURONS.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "spikingjelly"}, "gain must be 0.5"),
        ({"form": "spikingjelly", "gain": 0.5, "v_reset": 0.5}, "bias must be 0.25"),
        ({"form": "spikingjelly_full_input", "gain": 0.5}, "gain must be 1.0"),
        ({"form": "norse"}, "gain must be 0.5"),
        ({"form": "norse", "decay": 1.0, "gain": 0.0}, "needs decay < 1"),
        ({"form": "snntorch"}, 'needs reset "soft"'),
        ({"form": "snntorch", "reset": "soft"}, "reset_amount must be 2.0"),
        ({"reset": "zero"}, "reset must be one of hard, soft, none"),
        ({"compare": ">"}, "compare must be one of gt, ge"),
        ({"form": "euler"}, "form must be one of"),
        ({"decay": 2.0}, "decay must lie in 0..1"),
        ({"v_threshold": float("nan")}, "v_threshold must be a finite number"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        Neuron(**changes)


@pytest.mark.parametrize("backend", BACKENDS)
def test_form_snntorch_with_another_reset_is_refused(backend):
    with twin.backend(backend), pytest.raises(ValueError, match="needs reset soft"):
        lif_forward(column(1.0), 0.5, 1.0, 0.0, 1.0, 0.0, 2.0, 0.0, "hard", "gt", "snntorch")


# ---------------------------------------------------------------------------------------------------- kernels

def sample(shape, dtype, neuron, seed=0):
    """Input with exact ties: multiples of 1/8, where every form computes without rounding; and rough input."""
    generator = np.random.default_rng(seed)
    yield generator.integers(-8, 25, shape).astype(dtype) / 8
    yield (generator.normal(size=shape) * 2 + neuron.v_threshold / 2).astype(dtype)


@needs_jit
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("neuron", [*variants(), *NEURONS.values()], ids=[*map(label, variants()), *NEURONS])
def test_forward_kernel_agrees_bit_for_bit(neuron, dtype):
    assert lif_forward.agree == "exact"
    for shape in SHAPES:
        for x in sample(shape, dtype, neuron):
            strided = np.asfortranarray(x)
            strided.setflags(write=False)
            expected = lif_forward.definition(*forward_arguments(x, neuron))
            got = lif_forward.run_kernel(*forward_arguments(strided, neuron))
            twin.check_agreement("lif_forward", "exact", expected, got)


@needs_jit
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("neuron", GRADIENT_NEURONS, ids=[f"{label(n)}-{n.detach_reset}" for n in GRADIENT_NEURONS])
@pytest.mark.parametrize(("with_h", "with_v"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_backward_kernel_agrees_bit_for_bit(neuron, dtype, with_h, with_v):
    assert lif_backward.agree == "exact"
    for shape in SHAPES:
        for x in sample(shape, dtype, neuron):
            s, h = lif_forward.definition(*forward_arguments(x, neuron))
            slope = SURROGATES["triangle"].derivative.definition(h - neuron.v_threshold, 1.0)
            ds, dh, dv = np.random.default_rng(1).normal(size=(3, *shape)).astype(dtype)
            extra = (dh if with_h else None, dv if with_v else None)
            expected = lif_backward.definition(*backward_arguments(ds, h, s, slope, neuron), *extra)
            got = lif_backward.run_kernel(*backward_arguments(np.asfortranarray(ds), h, s, slope, neuron), *extra)
            twin.check_agreement("lif_backward", "exact", expected, got)


@needs_jit
def test_a_kernel_that_fires_at_the_threshold_is_caught():
    neuron = NEURONS["paper"]
    x = next(sample((65, 4, 7), np.float32, neuron))
    expected = lif_forward.definition(*forward_arguments(x, neuron))
    got = lif_forward.run_kernel(*forward_arguments(x, replace(neuron, compare="ge")))
    with pytest.raises(twin.TwinMismatch, match="output 0"):
        twin.check_agreement("lif_forward", "exact", expected, got)


@needs_jit
@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one thread only")
def test_the_number_of_threads_changes_no_bit():
    neuron, before = NEURONS["norse"], numba.get_num_threads()
    x = np.random.default_rng(0).normal(size=(333, 5, 7)).astype(np.float32) + 2
    results = []
    try:
        for threads in (1, 2):
            numba.set_num_threads(threads)
            s, h = lif_forward.run_kernel(*forward_arguments(x, neuron))
            results.append((s, h, lif_backward.run_kernel(*backward_arguments(x, h, s, x, neuron))))
    finally:
        numba.set_num_threads(before)
    twin.check_agreement("lif", "exact", *results)
