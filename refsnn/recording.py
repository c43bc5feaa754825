"""What a training step and a rewire record of the state, besides what the layers record themselves.

Names, shapes and equations of all records: docs/trace-format.md. Weights, their moments and scores leave the program
dense, 0 where inactive.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from refsnn.layers import Gradients, Records
from refsnn.ops.sparse import SparseWeight
from refsnn.pq import Measurement
from refsnn.rewire import GROW

if TYPE_CHECKING:
    from refsnn.train import State

Array = npt.NDArray[Any]
MEASURED = {"d": "count", "norm_p": "real", "norm_q": "real", "index": "real", "bound": "real", "count": "count",
            "ratio": "real"}


def record_before(rec: Records, state: "State", x: Array, labels: Array) -> None:
    """Record what a step starts from: the batch, every parameter with its mask, the running statistics."""
    if not rec.active:
        return
    network = state.network
    rec.value("input/x", x)
    rec.value("input/y", labels, "count")
    for name, parameter in network.parameters.items():
        rec.value(f"params/{name}/value", _dense(network.weights, name, parameter))
        if name in network.weights:
            rec.value(f"params/{name}/mask", network.weights[name].mask(), "mask")
    for layer in network.norms:
        rec.value(f"params/{layer.name}.running_mean/value", layer.running_mean)
        rec.value(f"params/{layer.name}.running_var/value", layer.running_var)


def record_update(rec: Records, state: "State", lr: float, gradients: Gradients) -> None:
    """Record the learning rate, gradients that were clipped, the optimiser's moments, the parameters after its step."""
    if not rec.active:
        return
    weights = state.network.weights
    rec.value("optim/lr", lr)
    for name, parameter in state.network.parameters.items():
        clipped = {"gradient": gradients[name]} if state.config.train.clip > 0 else {}
        for part, value in (clipped | state.optimizer.state[name] | {"after": parameter}).items():
            rec.value(f"optim/{name}/{part}", _dense(weights, name, value), "count" if part == "steps" else "real")


def record_growth(rec: Records, state: "State") -> None:
    """Record the averages that the growth rule keeps of the dense gradients, while it keeps them."""
    if not rec.active:
        return
    for name, weight in state.network.weights.items():
        memory = state.growth[name]
        for part in ("average", "square"):
            if memory.steps and part in memory.reads:
                rec.value(f"growth/{name}/{part}", getattr(memory, part).reshape(weight.shape))


def record_measurement(rec: Records, found: Measurement) -> None:
    """Record what the end of Stage I measured, one entry per unit."""
    for part, kind in MEASURED.items():
        rec.value(f"stage1/{part}", getattr(found, part), kind)


def record_rewiring(rec: Records, state: "State", name: str, old: SparseWeight, origin: Array, prune_score: Array,
                    grow_score: Array | None) -> None:
    """Record what one layer's rewiring looked at and what it did; what came straight back is in pruned and in grown."""
    if not rec.active:
        return
    new = state.network.weights[name]
    rec.value(f"stage2/{name}/prune_score", old.scatter(prune_score))
    rec.value(f"stage2/{name}/pruned", np.delete(old.flat_index(), origin[origin >= 0]), "index")
    if grow_score is not None:
        drawn = not GROW[state.config.rewire.grow].reads        # a rule that reads nothing draws its scores
        if drawn:
            rec.value(f"rng/growth/{name}", grow_score.reshape(old.shape), "rng")
        rec.value(f"stage2/{name}/grow_score", grow_score.reshape(old.shape))
    rec.value(f"stage2/{name}/grown", new.flat_index()[origin < 0], "index")
    rec.value(f"stage2/{name}/mask", new.mask(), "mask")


def _dense(weights: dict[str, SparseWeight], name: str, value: Array) -> Array:
    """A parameter's array, or what belongs to it, as records have it."""
    return weights[name].scatter(value) if name in weights else value
