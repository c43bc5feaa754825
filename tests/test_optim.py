"""Optimisers against their equations written out, schedules where it matters, state that follows rewiring."""

import numpy as np
import pytest

from refsnn import optim
from refsnn.errors import UserError
from refsnn.optim import Optimizer, all_finite, bias_correction, clip_gradients, learning_rate
from refsnn.schema import OptimConfig


def run(config: OptimConfig, gradients: np.ndarray, w0: np.ndarray, lr: float = 0.1) -> np.ndarray:
    w, optimizer = w0.copy(), Optimizer(config)
    for g in gradients:
        optimizer.step({"w": w}, {"w": g}, lr)
    return w


@pytest.fixture
def problem() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(3)
    return draw.standard_normal((30, 7)), draw.standard_normal(7)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_sgd_is_its_recurrence(problem: tuple, nesterov: bool, decay: float) -> None:
    gradients, w0 = problem
    w, b = w0.copy(), None
    for g in gradients:
        g = g + decay * w
        b = g if b is None else 0.9 * b + g
        w = w - 0.1 * (g + 0.9 * b if nesterov else b)
    config = OptimConfig(kind="sgd", momentum=0.9, nesterov=nesterov, weight_decay=decay)
    np.testing.assert_allclose(run(config, gradients, w0), w, rtol=1e-12)


def test_sgd_without_momentum(problem: tuple) -> None:
    gradients, w0 = problem
    found = run(OptimConfig(kind="sgd", momentum=0.0), gradients, w0)
    np.testing.assert_allclose(found, w0 - 0.1 * gradients.sum(0), rtol=1e-12)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_adam_is_its_equations(problem: tuple, kind: str, decay: float) -> None:
    gradients, w0 = problem
    w, m, v = w0.copy(), 0.0, 0.0
    for n, g in enumerate(gradients, start=1):
        if kind == "adamw":
            w = w * (1 - 0.1 * decay)
        else:
            g = g + decay * w
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - 0.1 * (m / (1 - 0.9**n)) / (np.sqrt(v / (1 - 0.999**n)) + 1e-8)
    np.testing.assert_allclose(run(OptimConfig(kind=kind, weight_decay=decay), gradients, w0), w, rtol=1e-12)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_the_size_of_a_chunk_changes_nothing(problem: tuple, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients, w0 = problem
    config = OptimConfig(kind=kind, weight_decay=0.05)
    whole = run(config, gradients, w0)
    monkeypatch.setattr(optim, "CHUNK", 3)
    np.testing.assert_array_equal(run(config, gradients, w0), whole)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(3,), (40, 50), (0,)])
def test_all_finite_sees_every_number_and_no_overflow(dtype: type, shape: tuple[int, ...]) -> None:
    good = np.full(shape, np.finfo(dtype).max)
    assert all_finite([np.ones(2, dtype), good, -good])
    for bad in (np.nan, np.inf, -np.inf):
        for at in list(np.ndindex(shape))[::7]:
            for fill in (good, 0 * good):
                spoiled = fill.copy()
                spoiled[at] = bad
                assert not all_finite([good, spoiled])


def test_bias_correction_is_the_power_for_every_count() -> None:
    steps = np.array([1, 2, 10, 1000, 10**6], dtype=np.int32)
    for beta in (0.0, 0.9, 0.999):
        np.testing.assert_allclose(bias_correction(beta, steps), 1 - beta**steps.astype(float), rtol=1e-15)


@pytest.mark.parametrize(("regrown_step", "expected"), [("own", [2, 0, 2]), ("global", [2, 2, 2])])
def test_what_stays_keeps_its_moments_and_what_comes_starts_at_zero(regrown_step: str, expected: list[int]) -> None:
    optimizer, w = Optimizer(OptimConfig(regrown_step=regrown_step)), np.ones(3)
    for _ in range(2):
        optimizer.step({"w": w}, {"w": np.array([1.0, 2.0, 3.0])}, 0.1)
    before = {part: array.copy() for part, array in optimizer.state["w"].items()}
    optimizer.rewire("w", np.array([0, -1, 2]))
    after = optimizer.state["w"]
    assert after["steps"].tolist() == expected
    for part in ("first", "second"):
        assert after[part].tolist() == [before[part][0], 0, before[part][2]]


def test_with_its_own_count_a_regrown_weight_moves_by_the_learning_rate_at_first() -> None:
    moved = {}
    for regrown_step in ("own", "global"):
        optimizer, w = Optimizer(OptimConfig(regrown_step=regrown_step)), np.ones(2)
        for _ in range(1000):
            optimizer.step({"w": w}, {"w": np.ones(2)}, 0.0)
        optimizer.rewire("w", np.array([0, -1]))
        w[:] = 0
        optimizer.step({"w": w}, {"w": np.full(2, 0.3)}, 0.01)
        moved[regrown_step] = -w[1] / 0.01
    assert moved["own"] == pytest.approx(1, rel=1e-6)
    assert moved["global"] == pytest.approx(2.5, rel=0.02), "the factor that docs/method.md names"


def test_clipping_bounds_the_joint_norm_and_leaves_smaller_ones() -> None:
    gradients = {"a": np.array([3.0]), "b": np.array([4.0]), "b.dense": np.array([9.0])}
    clip_gradients(gradients, ["a", "b"], 1.0)
    np.testing.assert_allclose([gradients["a"][0], gradients["b"][0]], [0.6, 0.8])
    assert gradients["b.dense"][0] == 9.0, "the growth rule sees the gradient as it was"
    clip_gradients(gradients, ["a", "b"], 2.0)
    np.testing.assert_allclose([gradients["a"][0], gradients["b"][0]], [0.6, 0.8])


def test_schedules_at_the_points_that_matter() -> None:
    cosine = OptimConfig(lr=1.0, schedule="cosine")
    assert learning_rate(cosine, 0, 100, 10) == 1.0
    assert learning_rate(cosine, 50, 100, 10) == pytest.approx(0.5)
    assert 0 < learning_rate(cosine, 99, 100, 10) < 1e-3
    step = OptimConfig(lr=1.0, schedule="step", step_every=2, step_factor=0.1)
    assert [learning_rate(step, k, 60, 10) for k in (0, 19, 20, 40)] == pytest.approx([1, 1, 0.1, 0.01])
    assert learning_rate(OptimConfig(lr=0.5, schedule="constant"), 77, 100, 10) == 0.5
    warm = OptimConfig(lr=1.0, schedule="cosine", warmup=1)
    assert [learning_rate(warm, k, 100, 10) for k in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1, 1])
    with pytest.raises(UserError, match="leaves no steps"):
        learning_rate(OptimConfig(warmup=1), 10, 10, 10)
