"""Mistakes of published sparse-training code that concern weights and optimisers, each planted and caught.

A check below is a function of what is to be checked. It passes on the program, and must fail on the planted mistake.
(The mistakes that concern scores and counts are in test_pitfalls_rewire.py.)
"""

from collections.abc import Callable

import numpy as np
import pytest

from refsnn.ops.sparse import SparseWeight, from_dense
from refsnn.optim import Optimizer
from refsnn.schema import OptimConfig

SHAPE = (6, 8)
Step = Callable[[SparseWeight, np.ndarray], np.ndarray]     # (weight, dense gradient) -> dense weight after one step


def case(seed: int = 0) -> tuple[SparseWeight, np.ndarray, np.ndarray]:
    """A sparse weight with a history, the connections it will lose, and dense gradients."""
    draw = np.random.default_rng(seed)
    mask = draw.random(SHAPE) < 0.6
    weight = from_dense(draw.standard_normal(SHAPE), mask)
    return weight, draw.permutation(weight.nnz)[:5], draw.standard_normal((6, *SHAPE))


def prune(weight: SparseWeight, gone: np.ndarray) -> tuple[SparseWeight, np.ndarray]:
    """The weight without the connections `gone`, and the origin of those that stay."""
    origin = np.setdiff1d(np.arange(weight.nnz), gone)
    mask = weight.mask().reshape(-1)
    mask[weight.flat_index()[gone]] = False
    return from_dense(weight.dense(), mask.reshape(SHAPE)), origin


# ------------------------------------------------------------------ moments or weight decay that move masked weights


def masked_places_stay_at_zero(train: Callable[[OptimConfig], np.ndarray], config: OptimConfig) -> bool:
    """Train, prune, train on: whether the pruned places are still exactly 0."""
    weight, gone, _ = case()
    after = train(config)
    return bool((after.reshape(-1)[weight.flat_index()[gone]] == 0).all())


def ours(config: OptimConfig) -> np.ndarray:
    """The program: CSR data, an optimiser that follows the rewiring."""
    weight, gone, gradients = case()
    optimizer = Optimizer(config)
    for g in gradients[:3]:
        optimizer.step({"w": weight.data}, {"w": weight.gather(g)}, 0.1)
    weight, origin = prune(weight, gone)
    optimizer.rewire("w", origin)
    for g in gradients[3:]:
        optimizer.step({"w": weight.data}, {"w": weight.gather(g)}, 0.1)
    return weight.dense()


def dense_with_masked_gradient(config: OptimConfig) -> np.ndarray:
    """The mistake: dense weights, the mask put on the weight once and on the gradient, not on moments and decay."""
    weight, gone, gradients = case()
    dense, mask, optimizer = weight.dense(), weight.mask(), Optimizer(config)
    for g in gradients[:3]:
        optimizer.step({"w": dense}, {"w": mask * g}, 0.1)
    mask.reshape(-1)[weight.flat_index()[gone]] = False
    dense *= mask
    for g in gradients[3:]:
        optimizer.step({"w": dense}, {"w": mask * g}, 0.1)
    return dense


@pytest.mark.parametrize("config", [
    OptimConfig(kind="adam"), OptimConfig(kind="adamw", weight_decay=0.1), OptimConfig(kind="sgd", momentum=0.9),
    OptimConfig(kind="adam", weight_decay=0.1)], ids=lambda c: f"{c.kind} {c.weight_decay}")
def test_neither_moments_nor_decay_move_what_is_pruned(config: OptimConfig) -> None:
    assert masked_places_stay_at_zero(ours, config)
    assert not masked_places_stay_at_zero(dense_with_masked_gradient, config), "the check sees the mistake"


def test_what_stays_is_trained_as_if_nothing_else_had_been_there() -> None:
    weight, gone, gradients = case()
    alone, _ = prune(weight, gone)
    lone = Optimizer(OptimConfig())
    for g in gradients:
        lone.step({"w": alone.data}, {"w": alone.gather(g)}, 0.1)
    np.testing.assert_array_equal(ours(OptimConfig()), alone.dense())


# --------------------------------------------------------------------------- momentum of a regrown place that was kept


def first_step_of_a_regrown_weight(config: OptimConfig, rewire: Callable[[Optimizer, np.ndarray], None]) -> float:
    """Train with a large gradient, prune one connection and regrow it, step with no gradient: how far it moves."""
    w, optimizer = np.ones(3), Optimizer(config)
    for _ in range(5):
        optimizer.step({"w": w}, {"w": np.full(3, 4.0)}, 0.1)
    rewire(optimizer, np.array([0, -1, 2]))
    w[1] = 0
    optimizer.step({"w": w}, {"w": np.zeros(3)}, 0.1)
    return float(abs(w[1]))


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_a_regrown_weight_has_no_momentum_of_its_former_life(kind: str) -> None:
    config = OptimConfig(kind=kind)
    assert first_step_of_a_regrown_weight(config, lambda o, origin: o.rewire("w", origin)) == 0
    kept = first_step_of_a_regrown_weight(config, lambda o, origin: None)       # noqa: ARG005   the mistake
    assert kept > 0.01, "the check sees the mistake"
