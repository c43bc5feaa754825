"""Normalisation and augmentation: definitions, and that order and batch size do not matter."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import data_of, every, tiny
from refsnn.datasets.augment import Augmented, Normalised, covered, rolled, shifted
from refsnn.datasets.samples import InMemory, Subset


def samples(n: int = 12, shape: tuple[int, ...] = (3, 6, 5), seed: int = 0) -> InMemory:
    draw = np.random.default_rng(seed)
    return InMemory(draw.integers(1, 256, (n, *shape), dtype=np.uint8), np.arange(n) % 3)


def test_normalised_is_the_formula() -> None:
    raw = samples()
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    x = every(Normalised(raw, mean, std))
    assert x.dtype == np.float32
    for c in range(3):
        np.testing.assert_allclose(x[:, c], (raw.x[:, c] / 255 - mean[c]) / std[c], rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(order=st.permutations(range(12)), epoch=st.integers(0, 5), size=st.integers(1, 12))
def test_a_sample_is_changed_alike_in_any_order_and_batch(order: list[int], epoch: int, size: int) -> None:
    whole = Augmented(samples(), 7, crop=2, flip=True, cutout=2, roll=1, border=(1.0, 2.0, 3.0))
    expected = whole.batch(np.arange(12), epoch)
    for start in range(0, 12, size):
        chosen = np.array(order[start : start + size])
        np.testing.assert_array_equal(whole.batch(chosen, epoch), expected[chosen])


def test_epochs_and_seeds_differ_and_repeat() -> None:
    a, b = (Augmented(samples(), seed, crop=2, flip=True) for seed in (0, 1))
    assert not np.array_equal(a.batch(np.arange(12), 0), a.batch(np.arange(12), 1))
    assert not np.array_equal(a.batch(np.arange(12), 0), b.batch(np.arange(12), 0))
    np.testing.assert_array_equal(a.batch(np.arange(12), 3), a.batch(np.arange(12), 3))


@pytest.mark.parametrize("shape", [(3, 6, 5), (4, 2, 6, 5)])
def test_shifted_is_a_crop_of_the_padded_image(shape: tuple[int, ...]) -> None:
    x = every(samples(4, shape))
    shift = np.array([[0, 0], [2, -1], [-2, 2], [1, 1]])
    border = tuple(float(c) for c in range(shape[-3]))
    out = shifted(x, shift, border)
    for b, (dy, dx) in enumerate(shift):
        for c in range(shape[-3]):
            image = x[b, ..., c, :, :]
            padded = np.pad(image, [(0, 0)] * (image.ndim - 2) + [(2, 2), (2, 2)], constant_values=border[c])
            np.testing.assert_array_equal(out[b, ..., c, :, :], padded[..., 2 + dy : 8 + dy, 2 + dx : 7 + dx])


def test_rolled_is_numpys_roll() -> None:
    x = every(samples(3, (2, 2, 6, 5)))
    shift = np.array([[0, 0], [2, -1], [-5, 5]])
    out = rolled(x, shift)
    for b in range(3):
        np.testing.assert_array_equal(out[b], np.roll(x[b], tuple(shift[b]), axis=(-2, -1)))


def test_covered_hides_a_square_and_nothing_else() -> None:
    x = np.ones((2, 1, 6, 6), np.float32)
    out = covered(x, np.array([[3, 3], [0, 5]]), 2)
    assert out[0].sum() == 36 - 4
    assert out[0, 0, 2:4, 2:4].sum() == 0
    assert out[1].sum() == 36 - 2, "cut off at the corner: rows -1..0, columns 4..5"
    assert covered(x, np.array([[3, 3], [3, 3]]), 3)[0, 0, 2:5, 2:5].sum() == 0


def test_half_of_the_samples_are_mirrored() -> None:
    raw = InMemory(np.tile(np.arange(4, dtype=np.float32), (400, 1, 2, 1)), np.zeros(400, np.int64))
    x = Augmented(raw, 0, flip=True).batch(np.arange(400), 0)
    mirrored = x[:, 0, 0, 0] == 3
    np.testing.assert_array_equal(x[mirrored], raw.x[mirrored][..., ::-1])
    np.testing.assert_array_equal(x[~mirrored], raw.x[~mirrored])
    assert 160 < mirrored.sum() < 240


def test_the_configuration_augments_training_samples_only() -> None:
    plain = data_of(tiny("data.validation=0.2"))
    changed = data_of(tiny("data.validation=0.2", "augment.crop=1", "augment.flip=true"))
    np.testing.assert_array_equal(every(changed.test), every(plain.test))
    np.testing.assert_array_equal(changed.train.labels, plain.train.labels)
    assert not np.array_equal(every(changed.train), every(plain.train))
    assert isinstance(plain.train, Subset)
