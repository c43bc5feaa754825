"""The paper, part II: which connections go and which come (Stage II of Algorithm 1).

`rewire` takes structures (topology.py: which of a layer's places hold a connection) and returns structures. It knows no
weights, only scores and numbers of connections:

    prune   in each unit, the prune_counts[u] active connections with the smallest prune score go   (PRUNE: |w|)
    regrow  in each unit, the grow_counts[u] free places with the largest grow score come           (GROW: momentum)

so that a rule is a score, and SET, RigL and the paper differ by an entry of `PRUNE`, `GROW` and `RATIOS`. A *unit* is
what competes: a neuron ("neuron", the paper's neuron-wise), a layer ("layer", layer-wise), or the whole network
("global", SAP's third scope), where a connection pruned in one layer may come back in another.

How many go and come: four readings of one algorithm
----------------------------------------------------
Algorithm 1 removes and regrows the same number, which keeps the density for ever; the paper's own figures show it
fall by a constant factor, .84 layer-wise. Something that is regrown must be lost again. Four presets (config.py) cover
what can be meant, all made of the same plain keys:

    preset   inner_every  regrow_share  rewind  reading
    figures  1            0             no      The default, and the one that reproduces the figures. Between the epochs
                                                of an iteration rewire at constant density, with the ratio measured at
                                                the end of the previous iteration (`inner_counts`); at the iteration's
                                                end remove `count` and regrow none (`end_counts`). The inner rewires
                                                refill the small weights the next measurement looks at.
    literal  0            1             no      Algorithm 1 as printed: what goes comes back, density is conserved.
    partial  0            "ratio"       no      Of what goes, the fraction count/d comes back: the rewiring ratio read
                                                as a ratio of both.
    sap      0            0             yes     SAP: from a dense start, prune only, and set the remaining weights back
                                                to their initial values after each iteration.

Choices, where the paper leaves them open
-----------------------------------------
- d counts places, not non-zero values: a connection that has just come starts at exactly 0 and counts.
- A neuron is a row; one that lost all its connections is still a unit, with d = 0.
- Connections grow in the unit that pruned. Where its free places are fewer than its grow count it takes them all, and
  the rest is reported as `shortfall`; with shortfall = "redistribute" other neurons of the same layer take it over.
- A connection just removed may come back at once (as in RigL), unless return_at_once is false. It is then *new*:
  origin −1, hence weight 0 and fresh optimiser state, exactly like one that never existed. `returned` counts them.
- Ties go to the lower place, first layer first, row by row: never two for one, and the same on every machine.
- The growth score of the paper, momentum, is the exponential average of the gradient with respect to the *masked*
  weights M ⊙ W at *every* place, dL/d(M ⊙ W). The gradient with respect to W is this times M: it is 0 at every free
  place and would rank nothing. The same goes for an average that was masked, so `GrowthMemory` is dense and never is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from refsnn.pq import Measurement, guarded_floor
from refsnn.topology import Scope, Structure, units

Array = npt.NDArray[Any]
Shortfall = Literal["report", "redistribute"]

CHUNK = 2**16       # places whose gradients are averaged at a time


# --- Scores: which connection goes, which place is taken --------------------------------------------------------------


@dataclass(frozen=True)
class GrowthMemory:
    """What a growth rule remembers of the dense gradients g = dL/d(M ⊙ W) of one layer.

    shape: (rows, cols); steps: how many gradients were seen; reads: which of the three arrays the rule reads, the
    others stay empty. The arrays are (rows, cols), cover *all* places and are never masked:
        gradient   the last g                                              unit of g
        average    m ← β m + (1 − β) g ,      m = 0 before the first step  unit of g
        square     v ← β₂ v + (1 − β₂) g² ,   v = 0 before the first step  unit of g²
    """

    shape: tuple[int, int]
    reads: tuple[str, ...]
    gradient: Array
    average: Array
    square: Array
    steps: int = 0


def new_memory(shape: tuple[int, int], grow: str, dtype: npt.DTypeLike = np.float32) -> GrowthMemory:
    """Empty memory of one layer for the growth rule GROW[grow], before the first step or before a window of steps."""
    reads = GROW[grow].reads
    gradient, average, square = (
        np.zeros(shape if name in reads else 0, dtype) for name in ("gradient", "average", "square")
    )
    return GrowthMemory(shape, reads, gradient, average, square)


def observe(memory: GrowthMemory, gradient: Array, beta: float = 0.9, square_beta: float = 0.999) -> GrowthMemory:
    """The memory after one more dense gradient (rows, cols); equations at `GrowthMemory`.

    | Parameter   | Default | Unit | Meaning                                       |
    |-------------|---------|------|-----------------------------------------------|
    | beta        | 0.9     | 1    | β, the share of the average that stays a step |
    | square_beta | 0.999   | 1    | β₂, the same for the average of the squares   |

    The averages, as large as the dense layer, are moved in place: the memory that was given is not to be read again.

    Raises ValueError for a gradient of another shape: it must be dense, not one value per connection.
    """
    if gradient.shape != memory.shape:
        raise ValueError(f"the growth memory needs the dense gradient {memory.shape}, got {gradient.shape}")
    reads = memory.reads
    return replace(
        memory,
        gradient=gradient if "gradient" in reads else memory.gradient,
        average=_move(memory.average, gradient, beta, 1) if "average" in reads else memory.average,
        square=_move(memory.square, gradient, square_beta, 2) if "square" in reads else memory.square,
        steps=memory.steps + 1,
    )


def _move(average: Array, gradient: Array, beta: float, power: int) -> Array:
    """average ← β average + (1 − β) gradient^power, CHUNK places at a time: so the parts of it stay in the cache."""
    places, now = average.reshape(-1), gradient.reshape(-1)
    for k in range(0, places.size, CHUNK):
        part = slice(k, k + CHUNK)
        places[part] *= beta
        places[part] += (1 - beta) * now[part] ** power
    return average


@dataclass(frozen=True)
class GrowRule:
    """A growth rule: rule(memory, generator) is the score (rows, cols) ≥ 0 of every place, the largest come first.

    score: the function; reads: the arrays of the memory it reads. A rule that reads none needs no dense gradient.
    Raises ValueError when called before the memory has seen a gradient it needs: all places would tie.
    """

    score: Callable[[GrowthMemory, np.random.Generator], Array]
    reads: tuple[str, ...]

    def __call__(self, memory: GrowthMemory, generator: np.random.Generator) -> Array:
        if self.reads and memory.steps == 0:
            raise ValueError("the growth memory has seen no gradient yet: nothing to rank free places by")
        return self.score(memory, generator)


def prune_magnitude(data: Array) -> Array:
    """|w|, the paper's pruning rule. data (nnz,) weights; returns (nnz,), the smallest go first."""
    return np.abs(data)


def grow_momentum(memory: GrowthMemory, _generator: np.random.Generator) -> Array:
    """|m|, magnitude of the averaged dense gradient: the paper's growing rule."""
    return np.abs(memory.average)


def grow_adam(memory: GrowthMemory, _generator: np.random.Generator) -> Array:
    """|m| / (√v + ε), ε = 1e-8: the step Adam would make at each place, without its factors common to all places."""
    return np.abs(memory.average) / (np.sqrt(memory.square) + 1e-8)


def grow_gradient(memory: GrowthMemory, _generator: np.random.Generator) -> Array:
    """|g|, magnitude of the last dense gradient (RigL)."""
    return np.abs(memory.gradient)


def grow_random(memory: GrowthMemory, generator: np.random.Generator) -> Array:
    """Uniform in [0, 1), independent of the gradients (SET)."""
    return generator.random(memory.shape)


# --- How many: from a measurement to counts ---------------------------------------------------------------------------


def ratio_pq(measurement: Measurement) -> Measurement:
    """The paper's: remove what eq. (4) says."""
    return measurement


def ratio_none(measurement: Measurement) -> Measurement:
    """Remove nothing: a static structure, measured all the same."""
    nothing = np.zeros_like(measurement.count)
    return replace(measurement, count=nothing, ratio=nothing / 1.0)


def end_counts(measurement: Measurement, regrow_share: float | Literal["ratio"]) -> tuple[Array, Array]:
    """How many each unit removes and regrows at the end of an iteration, two (units,) int64.

        pruned = count ,    regrown = floor(κ · count) ,    κ = regrow_share, or count / d for "ratio"

    measurement: of the units as they are now, after a rule of `RATIOS`. With κ = 1 the density stays, with κ = 0 it
    falls by the whole ratio. Raises ValueError for a share outside [0, 1].
    """
    count = measurement.count
    if regrow_share == "ratio":
        return count, count * count // np.maximum(measurement.d, 1)
    if not 0 <= regrow_share <= 1:
        raise ValueError(f'regrow_share lies between 0 and 1, or is "ratio", got {regrow_share}')
    return count, guarded_floor(regrow_share * count, count)


def inner_counts(previous: Measurement | None, d: Array) -> Array:
    """How many each unit removes, and as many regrows, at a rewire inside an iteration: (units,) int64.

        floor(ratio · d) ,    ratio = count / d of the previous iteration's end

    evaluated in integers, count · d // d_then. previous: that measurement, after a rule of `RATIOS`, or None in the
    first iteration, which has no ratio and rewires nothing; d (units,): connections of each unit now.
    """
    if previous is None:
        return np.zeros_like(d)
    return previous.count * d // np.maximum(previous.d, 1)


# --- Stage II ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rewiring:
    """What a rewire did. structures and origin: one entry a layer; the others: arrays (units,) int64, in connections,
    in the order of the `Measurement` of the same scope, which has each unit's index, bound and count.

    | Field      | Meaning                                                                                          |
    |------------|--------------------------------------------------------------------------------------------------|
    | structures | the new connections of each layer                                                                |
    | origin     | (new nnz,) int64 per layer: the position of each connection in the old data, −1 where it is new  |
    | d          | connections before                                                                               |
    | pruned     | connections removed                                                                              |
    | regrown    | connections that came into being in the unit; d − pruned + regrown are there now                 |
    | returned   | of the regrown, those that were removed in this same rewire                                      |
    | shortfall  | connections the unit should have regrown and had no free place for (others may have taken them: |
    |            | Σ grow_counts − Σ regrown is what nobody did)                                                    |
    """

    structures: list[Structure]
    origin: list[Array]
    d: Array
    pruned: Array
    regrown: Array
    returned: Array
    shortfall: Array


def rewire(
    structures: Sequence[Structure],
    prune_scores: Sequence[Array],
    grow_scores: Sequence[Array] | None,
    prune_counts: Array,
    grow_counts: Array,
    scope: Scope,
    *,
    return_at_once: bool = True,
    shortfall: Shortfall = "report",
) -> Rewiring:
    """Stage II of Algorithm 1: remove the weakest connections of each unit, let new ones come at its best free places.

    All layers are laid end to end, so that one number names a place of the network and a unit is a range of places.

    structures: one a layer; prune_scores: (nnz,) a layer, the smallest go first; grow_scores: (rows, cols) a layer,
    the largest come first (only free places are read), or None if nothing is to regrow; prune_counts, grow_counts:
    (units,) int, connections, in the order of `units`.

    | Parameter      | Default  | Meaning                                                                             |
    |----------------|----------|-------------------------------------------------------------------------------------|
    | scope          |          | "layer", "neuron" or "global": who competes with whom                               |
    | return_at_once | True     | a place just left is free at once                                                   |
    | shortfall      | "report" | a unit without enough free places: "report" only, or "redistribute" what is missing |
    |                |          | to the best free places left in its layer (moot where a unit is a layer or more)    |

    Raises ValueError for counts that are negative, exceed a unit's connections or do not number the units, for scores
    of the wrong shape or not finite, for missing grow scores, and for unknown words.
    Source: paper, Algorithm 1, Stage II; the choices are listed at the top of this file.
    """
    if shortfall not in ("report", "redistribute"):
        raise ValueError(f'shortfall is "report" or "redistribute", got {shortfall!r}')
    offset = np.cumsum([0, *(s.size for s in structures)])  # first place of each layer
    bounds = _unit_bounds(structures, scope)  # first place of each unit
    prune_counts, grow_counts = _counts(prune_counts, bounds), _counts(grow_counts, bounds)

    active = np.concatenate([s.places() + first for s, first in zip(structures, offset, strict=False)])
    d = _per_unit(active, bounds)
    if np.any(prune_counts > d):
        raise ValueError("a unit cannot lose more connections than it has")
    score = _scores(prune_scores, [(s.active,) for s in structures])
    pruned = _smallest(score, np.searchsorted(active, bounds), prune_counts)
    kept, removed = active[~pruned], active[pruned]

    grown, lacking = np.zeros(0, dtype=np.int64), np.zeros_like(grow_counts)
    if grow_counts.any():
        if grow_scores is None:
            raise ValueError("connections are to regrow, but there are no grow scores")
        occupied = kept if return_at_once else active
        free = np.diff(bounds) - _per_unit(occupied, bounds)
        lacking = np.maximum(grow_counts - free, 0)
        score = -_scores(grow_scores, [s.shape for s in structures])
        score[occupied] = np.inf  # never among the smallest: a unit takes no more than its free places
        chosen = _smallest(score, bounds, grow_counts - lacking)
        if shortfall == "redistribute" and scope == "neuron":
            score[chosen] = np.inf
            chosen |= _smallest(score, offset, _layer_remainder(structures, free, grow_counts, lacking))
        grown = np.flatnonzero(chosen)

    returned = grown[np.isin(grown, removed, assume_unique=True)]
    after = np.concatenate([kept, grown])
    order = np.argsort(after, kind="stable")
    origin = np.concatenate([np.flatnonzero(~pruned), np.full(grown.size, -1)])[order]
    new, origins = _split(structures, offset, after[order], origin)
    return Rewiring(new, origins, d, prune_counts, _per_unit(grown, bounds), _per_unit(returned, bounds), lacking)


def _smallest(score: Array, bounds: Array, counts: Array) -> Array:
    """Mask of the counts[u] smallest scores among score[bounds[u]:bounds[u+1]]; ties: the lower position.

    All below the k-th smallest, and of those equal to it the first ones: the same as a stable sort, in linear time.
    """
    chosen = np.zeros(score.size, dtype=bool)
    for unit in np.flatnonzero(counts):
        part = slice(bounds[unit], bounds[unit + 1])
        values, k = score[part], counts[unit]
        cut = np.partition(values, k - 1)[k - 1]
        below = values < cut
        ties = np.flatnonzero(values == cut)
        below[ties[: k - np.count_nonzero(below)]] = True
        chosen[part] = below
    return chosen


def _unit_bounds(structures: Sequence[Structure], scope: Scope) -> Array:
    """First place of each unit, and the number of places, (units + 1,)."""
    of_row, number = units(structures, scope)
    first = np.cumsum(np.concatenate([[0], *(np.full(s.shape[0], s.shape[1]) for s in structures)]))  # of each row
    return first[np.searchsorted(np.concatenate(of_row), np.arange(number + 1))]


def _per_unit(places: Array, bounds: Array) -> Array:
    """How many of the places (increasing) each unit holds, (units,)."""
    return np.diff(np.searchsorted(places, bounds))


def _layer_remainder(structures: Sequence[Structure], free: Array, grow_counts: Array, lacking: Array) -> Array:
    """Neuron-wise: what the neurons of each layer lack, no more than what its other neurons leave free. (layers,)."""
    rows = np.cumsum([0, *(s.shape[0] for s in structures)])
    left = free - (grow_counts - lacking)
    return np.array([min(lacking[a:b].sum(), left[a:b].sum()) for a, b in pairwise(rows)])


def _split(
    structures: Sequence[Structure], offset: Array, places: Array, origin: Array
) -> tuple[list[Structure], list[Array]]:
    """Cut the places (increasing) and their origins in the concatenated old data into layers."""
    cut = np.searchsorted(places, offset)
    entry = np.cumsum([0, *(s.active for s in structures)])  # first old connection of each layer
    new, origins = [], []
    for k, structure in enumerate(structures):
        part = slice(cut[k], cut[k + 1])
        new.append(Structure.from_places(places[part] - offset[k], structure.shape))
        origins.append(np.where(origin[part] < 0, -1, origin[part] - entry[k]))
    return new, origins


def _counts(counts: Array, bounds: Array) -> Array:
    counts = np.asarray(counts)
    if counts.shape != (bounds.size - 1,) or counts.dtype.kind not in "iu" or np.any(counts < 0):
        raise ValueError(f"counts must be {bounds.size - 1} integers that are not negative, one per unit")
    return counts.astype(np.int64)


def _scores(scores: Sequence[Array], shapes: Sequence[tuple[int, ...]]) -> Array:
    """The scores of all layers end to end, checked."""
    if [score.shape for score in scores] != list(shapes):
        raise ValueError(f"scores must have the shapes {list(shapes)}, got {[score.shape for score in scores]}")
    flat = np.concatenate([score.ravel() for score in scores])
    if not np.all(np.isfinite(flat)):
        raise ValueError(f"{np.count_nonzero(~np.isfinite(flat))} of {flat.size} scores are NaN or infinite")
    return flat


PRUNE: dict[str, Callable[[Array], Array]] = {"magnitude": prune_magnitude}

GROW: dict[str, GrowRule] = {
    "momentum": GrowRule(grow_momentum, reads=("average",)),
    "adam": GrowRule(grow_adam, reads=("average", "square")),
    "gradient": GrowRule(grow_gradient, reads=("gradient",)),
    "random": GrowRule(grow_random, reads=()),
}

RATIOS: dict[str, Callable[[Measurement], Measurement]] = {"pq": ratio_pq, "none": ratio_none}
