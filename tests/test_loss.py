"""Losses: against explicit loops, central differences and numbers a person can check."""

import math

import numpy as np
import pytest

from refsnn.ops.loss import LOSSES, cross_entropy_mean, mse_rate, tet


@pytest.fixture(params=LOSSES)
def loss(request):
    return LOSSES[request.param]


def sample(classes=5, steps=3, batch=4, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(classes, steps, batch)) * 2, generator.integers(0, classes, batch)


def cross_entropy(z, label):
    return math.log(sum(math.exp(v) for v in z)) - z[label]


def test_tet_is_the_mean_of_the_cross_entropy_of_every_step():
    logits, labels = sample()
    expected = sum(cross_entropy(logits[:, t, b], labels[b]) for t in range(3) for b in range(4)) / 12
    assert tet(logits, labels)[0] == pytest.approx(expected, rel=1e-14)


def test_cross_entropy_mean_is_that_of_the_mean_over_time():
    logits, labels = sample()
    expected = sum(cross_entropy(logits[:, :, b].mean(axis=1), labels[b]) for b in range(4)) / 4
    assert cross_entropy_mean(logits, labels)[0] == pytest.approx(expected, rel=1e-14)


def test_mse_rate_is_the_squared_distance_to_one_hot():
    logits, labels = sample()
    total = 0.0
    for b in range(4):
        for k in range(5):
            total += (sum(logits[k, t, b] for t in range(3)) / 3 - (k == labels[b])) ** 2
    assert mse_rate(logits, labels)[0] == pytest.approx(total / 20, rel=1e-14)


def test_values_a_person_can_check():
    flat = np.zeros((4, 2, 1))
    label = np.array([1])
    assert tet(flat, label)[0] == pytest.approx(math.log(4))
    np.testing.assert_allclose(tet(flat, label)[1][:, 0, 0], [0.125, -0.375, 0.125, 0.125])
    assert cross_entropy_mean(flat, label)[0] == pytest.approx(math.log(4))
    assert mse_rate(flat, label)[0] == pytest.approx(0.25)


def test_gradient_equals_central_differences(loss):
    logits, labels = sample()
    gradient, step = loss(logits, labels)[1], 1e-5
    numerical = np.empty_like(logits)
    for place in np.ndindex(logits.shape):
        up, down = logits.copy(), logits.copy()
        up[place] += step
        down[place] -= step
        numerical[place] = (loss(up, labels)[0] - loss(down, labels)[0]) / (2 * step)
    assert np.max(np.abs(numerical - gradient)) <= 1e-7 * np.max(np.abs(gradient))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_logits_neither_overflow_nor_change_the_dtype(loss, dtype):
    logits, labels = sample()
    value, gradient = loss((logits * 1e4).astype(dtype), labels)
    assert isinstance(value, float)
    assert math.isfinite(value)
    assert gradient.dtype == dtype
    assert np.all(np.isfinite(gradient))
    assert gradient.shape == logits.shape
    assert gradient.flags.c_contiguous


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 7), (10, 7, 1)])
def test_odd_shapes(loss, shape):
    logits = np.random.default_rng(1).normal(size=shape)
    value, gradient = loss(logits, np.zeros(shape[2], np.int64))
    assert math.isfinite(value)
    assert gradient.shape == shape


def test_with_one_step_the_mean_over_time_changes_nothing():
    logits, labels = sample(steps=1)
    assert tet(logits, labels)[0] == pytest.approx(cross_entropy_mean(logits, labels)[0], rel=1e-15)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1, 2, 5]), "label 5 is none of the 5 classes"),
        (np.array([0, -1, 2, 3]), "label -1 is none"),
        (np.array([0, 1, 2]), "4 integers"),
        (np.array([0.0, 1.0, 2.0, 3.0]), "4 integers"),
    ],
)
def test_wrong_labels_are_refused(loss, labels, message):
    with pytest.raises(ValueError, match=message):
        loss(sample()[0], labels)
