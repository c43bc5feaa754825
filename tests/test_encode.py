"""Encoders: where each number of a sample arrives, and what is refused."""

import numpy as np
import pytest

from refsnn.encode import ENCODERS, direct, frames
from refsnn.errors import UserError
from refsnn.ops.static import is_static, one_step

SHAPES = {"direct": (2, 3, 4, 5), "frames": (2, 6, 3, 4, 5)}  # (B, C, H, W), (B, T, C, H, W) with T = 6


def samples(kind: str) -> np.ndarray:
    return np.arange(np.prod(SHAPES[kind]), dtype=np.float32).reshape(SHAPES[kind])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ENCODERS)
def test_features_come_first_and_samples_last(kind: str, dtype: type) -> None:
    out = ENCODERS[kind](samples(kind), 6, dtype)
    assert out.shape == (3, 4, 5, 6, 2)
    assert out.dtype == dtype
    assert one_step(out).flags.carray
    assert is_static(out) == (kind == "direct")


def test_direct_shows_the_same_image_at_every_step() -> None:
    x = samples("direct")
    out = direct(x, 6)
    for b, c, h, w in np.ndindex(x.shape):
        assert (out[c, h, w, :, b] == x[b, c, h, w]).all()


def test_frames_shows_one_frame_per_step() -> None:
    x = samples("frames")
    out = frames(x, 6)
    for b, t, c, h, w in np.ndindex(x.shape):
        assert out[c, h, w, t, b] == x[b, t, c, h, w]


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_batch_is_not_shared(kind: str) -> None:
    x = np.ones((1, 1, 1, 1) if kind == "direct" else (1, 1, 1, 1, 1), np.float32)
    ENCODERS[kind](x, 1)[...] = 5
    assert (x == 1).all()


@pytest.mark.parametrize(
    ("kind", "shape", "steps", "words"),
    [
        ("direct", (2, 3, 4), 6, r"shape \(2, 3, 4\)$"),
        ("direct", (2, 6, 3, 4, 5), 6, 'needs encode.kind = "frames"'),
        ("direct", (2, 3, 4, 5), 0, "at least one time step"),
        ("frames", (2, 6, 3, 4), 6, 'need encode.kind = "direct"'),
        ("frames", (2, 3), 6, r"shape \(2, 3\)$"),
        ("frames", (2, 6, 3, 4, 5), 4, "encode.steps = 4: the data has 6 frames"),
    ],
)
def test_other_shapes_are_refused(kind: str, shape: tuple[int, ...], steps: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        ENCODERS[kind](np.zeros(shape, np.float32), steps)
