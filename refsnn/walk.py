"""The command `step`: one iteration of Algorithm 1, walked in the terminal.

A first batch is recorded and every record is shown beside its equation. A few more batches stand for the rest of the
iteration's training. Then the measurement of one layer with its numbers put into eqs. (2)-(4), and Stage II with the
connections that go and the places that come, each with the reason.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn.datasets import Dataset
from refsnn.errors import UserError
from refsnn.layers import Linear
from refsnn.ops.sparse import SparseWeight
from refsnn.pq import Measurement, guarded_ceil
from refsnn.rewire import Rewiring, end_counts, inner_counts
from refsnn.rng import stream
from refsnn.schema import Config
from refsnn.show import shape_text, statistics, table
from refsnn.topology import active_counts, units
from refsnn.trace import NO_RECORD, Recorder
from refsnn.train import (
    State,
    advance,
    measure,
    regrows_after,
    stage_two,
    start,
    step_size,
    structures,
    train_step,
)

Array = npt.NDArray[Any]
BATCHES = 24        # optimiser steps that stand for an iteration, spread over its epochs
STAGES = {
    "encode": "the batch as the network's input over time",
    "forward": "Stage I: through layers and time",
    "loss": "Stage I: how wrong, at every time step",
    "backward": "Stage I: backprop through layers and time, from the last to the first",
    "optim": "Stage I: the step, on active weights only",
}
EQUATIONS = {       # (stage, kind of layer, last part of the name) -> what it is
    ("encode", "", "spikes"): "x(t)",
    ("forward", "Conv2d", "y"): "eq. (5): (M∘W) x(t)",
    ("forward", "Linear", "y"): "eq. (5): (M∘W) x(t) + b",
    ("forward", "Residual", "y"): "body(x) + shortcut(x)",
    ("forward", "Vote", "y"): "mean of each class's units",
    ("forward", "BatchNorm", "y"): "γ (y − mean) / √(var + ε) + β",
    ("forward", "Spiking", "h"): "eq. (5): u(t), charged",
    ("forward", "Spiking", "s"): "eq. (6): a(t) = Θ(u(t) − V_th)",
    ("forward", "Spiking", "v"): "eq. (7): u(t) after the reset",
    ("loss", "", "dlogits"): "dL/dO(t)",
    ("backward", "Spiking", "slope"): "surrogate at u − V_th, for da/du",
    ("backward", "Spiking", "dx"): "dL/dy through time",
    ("backward", "Conv2d", "dweight"): "dL/d(M∘W), active places",
    ("backward", "Linear", "dweight"): "dL/d(M∘W), active places",
    ("backward", "Conv2d", "dweight_dense"): "the same at every place, for growth",
    ("backward", "Linear", "dweight_dense"): "the same at every place, for growth",
}
MOMENTS = {
    "lr": "learning rate of this step",
    "gradient": "g, clipped to the joint norm train.clip",
    "momentum": "b ← momentum b + g",
    "first": "m ← β₁ m + (1 − β₁) g",
    "second": "v ← β₂ v + (1 − β₂) g²",
    "steps": "n, updates of each weight",
    "after": "the parameter after the step",
}


@dataclass(frozen=True)
class View:
    """What is shown: unit u in layer k with the weight `name`, neuron `row` where neurons are units; `count` rows."""

    k: int
    name: str
    row: int | None
    u: int
    count: int


def walk(config: Config, data: Dataset, layer: str | None, count: int) -> Iterator[str]:
    """The lines of the walk; of `layer`, `count` connections are shown of each kind. Raises UserError for its name."""
    config, epoch = shorten(config, len(data.train))
    state = start(config, data)
    name, keys = _weight_name(state, layer), config.train
    yield f"one iteration of {config.model.name} on {data.name}: preset {config.rewire.preset}, seed {config.seed}"
    yield f"shortened to epochs: {keys.epochs}, batches in each: {epoch}, samples in each: {keys.batch}"
    yield from first_batch(state, data, epoch)
    yield from _more(state, data, config.train.epochs * epoch - 1, epoch, "the rest of this iteration")

    found = measure(state)
    view = _view(state, found, name, count)
    yield from measured(state, found, view)

    state.measurement, state.epoch = found, config.train.epochs - 1
    prune, grow = end_counts(found, config.rewire.regrow_share)
    yield from rewiring(state, "end", prune, grow, view)
    if np.any(grow):
        return
    inner = next((e for e in range(config.train.epochs) if regrows_after(config, 1, e)), None)
    if inner is None:
        yield ""
        yield "This configuration never regrows: not at an iteration's end, and inside an iteration it does not rewire."
        return
    advance(state)
    yield from _more(state, data, (inner + 1) * epoch, epoch, "the beginning of the next iteration")
    state.epoch = inner
    same = inner_counts(found, active_counts(structures(state.network), config.rewire.scope))
    yield from rewiring(state, "inner", same, same, view)


def shorten(config: Config, samples: int) -> tuple[Config, int]:
    """The configuration with two iterations or more, and the batches of an epoch: about `BATCHES` an iteration."""
    keys = replace(config.train, iterations=max(2, config.train.iterations), max_steps=0)
    return replace(config, train=keys), min(max(1, BATCHES // keys.epochs), -(-samples // keys.batch))


def _weight_name(state: State, layer: str | None) -> str:
    names = [one.name for one in state.network.sparse_layers]
    if layer is None:
        layer = next((one.name for one in state.network.sparse_layers if isinstance(one, Linear)), names[0])
    if layer not in names:
        raise UserError(f"--layer {layer}: no layer with sparse weights has that name; there are {', '.join(names)}")
    return f"{layer}.weight"


# ----------------------------------------------------------------------------------------------------- Stage I, a batch


def first_batch(state: State, data: Dataset, epoch: int) -> Iterator[str]:
    """One optimiser step with every record, in execution order, by stage."""
    rec, lr = Recorder(), step_size(state, epoch)
    loss, correct = _train(state, data, 1, epoch, rec)
    kinds = {layer.name: type(layer).__name__ for layer in (*state.network.layers, *state.network.leaves)}
    for stage, about in STAGES.items():
        chosen = [r for r in rec.records if r.name.startswith(f"{stage}/")]
        yield ""
        yield f"{stage.upper()}   {about}"
        rows = [[r.name.removeprefix(f"{stage}/"), shape_text(r.value.shape), r.kind, *statistics(r.value),
                 _equation(stage, kinds, r.name, state.config.train.loss)] for r in chosen]
        head = ["record", "shape", "kind", "min", "mean", "max", "non-zero", "what it is"]
        yield from table(head, rows, left=(0, 1, 2, 7))
    yield ""
    yield "Activations are shaped (T, B, ...). The share of spikes that are not zero is the firing rate."
    yield f"{state.config.optim.kind} at learning rate {lr:.4g}; loss {loss:.4f}; {_right(state, correct)}"


def _equation(stage: str, kinds: dict[str, str], name: str, loss: str) -> str:
    parts = name.split("/")
    if stage == "optim":
        return MOMENTS[parts[-1]]
    if name == "loss/value":
        return "eq. (8)" if loss == "tet" else loss
    return EQUATIONS.get((stage, kinds.get(parts[1], ""), parts[-1]), "")


def _train(state: State, data: Dataset, batches: int, epoch: int, rec: Any = NO_RECORD) -> tuple[float, int]:
    """Train batches as `train.stage_one` does, with epochs of `epoch` batches; the last loss and samples right."""
    keys, result = state.config, (0.0, 0)
    for _ in range(batches):
        order = stream(keys.seed, "shuffle", state.step // epoch).permutation(len(data.train))
        chosen = order[state.batch * keys.train.batch:][:keys.train.batch]
        result = train_step(state, data.train.batch(chosen, state.step // epoch), data.train.labels[chosen], epoch, rec)
        state.batch += 1
        if state.batch == epoch:
            state.batch, state.epoch = 0, state.epoch + 1
    return result


def _more(state: State, data: Dataset, batches: int, epoch: int, where: str) -> Iterator[str]:
    yield ""
    if batches:
        loss, correct = _train(state, data, batches, epoch)
        last = f"in the last one loss {loss:.4f}, {_right(state, correct)}"
        yield f"... {where}, unrecorded, batches: {batches}; {last}"


def _right(state: State, correct: int) -> str:
    return f"{correct} of {state.config.train.batch} samples right"


# -------------------------------------------------------------------------------------------- the measurement, eqs. 2-4


def _view(state: State, found: Measurement, name: str, count: int) -> View:
    """The unit to show of a weight: under the neuron scope the first neuron of it that has something to prune."""
    of_row, _ = units(structures(state.network), state.config.rewire.scope)
    k = list(state.network.weights).index(name)
    if state.config.rewire.scope != "neuron":
        return View(k, name, None, int(of_row[k][0]), count)
    row = int(np.argmax(found.count[of_row[k]] > 0))
    return View(k, name, row, int(of_row[k][row]), count)


def _unit_text(state: State, view: View) -> str:
    scope = state.config.rewire.scope
    layer = view.name.removesuffix(".weight")
    return {"layer": layer, "neuron": f"neuron {view.row} of {layer}", "global": "the whole network"}[scope]


def measured(state: State, found: Measurement, view: View) -> Iterator[str]:
    """The end of Stage I: one unit's numbers put into eqs. (2)-(4)."""
    keys, u, places = state.config.rewire, view.u, _places(state, view)
    d, index, bound, count = int(found.d[u]), found.index[u], found.bound[u], int(found.count[u])
    p, q, norm_p, norm_q = f"{keys.p:g}", f"{keys.q:g}", f"{found.norm_p[u]:.6g}", f"{found.norm_q[u]:.6g}"
    root, outer = 1 / keys.q - 1 / keys.p, keys.q / (keys.q - keys.p)
    index_terms = f"1 − {d}^({root:g}) · {norm_p} / {norm_q}"
    bound_terms = f"{d} · (1 + {keys.eta:g})^({-outer:g}) · (1 − {index:.4f})^({keys.p * outer:g})"
    yield ""
    yield f"STAGE I ENDS   what {_unit_text(state, view)} measures"
    yield ""
    yield f"  d      {d:,} active weights of N = {places:,} places"
    yield f"  ‖w‖_p  = (Σ |w|^{p})^(1/{p}) = {norm_p}      ‖w‖_q = (Σ |w|^{q})^(1/{q}) = {norm_q}"
    yield "  I      = 1 − d^(1/q − 1/p) · ‖w‖_p / ‖w‖_q                        eq. (2)"
    yield f"         = {index_terms} = {index:.4f}"
    yield "  r      = d · (1 + η)^(−q/(q−p)) · (1 − I)^(pq/(q−p))              eq. (3)"
    yield f"         = {bound_terms} = {bound:.2f}"
    yield from _count_text(state, d, float(bound), count)
    yield f"  ratio  count/d = {count / max(d, 1):.4f}; the paper's c = count/N = {count / places:.4f}"


def _count_text(state: State, d: int, bound: float, count: int) -> Iterator[str]:
    """Eq. (4) with its numbers, in the rounding of the configuration."""
    keys = state.config.rewire
    if keys.ratio == "none":
        yield '  count  = 0, because rewire.ratio = "none"'
    elif keys.rounding == "integer":
        yield "  count  = min(⌊γ (d − ⌈r⌉)⌋, ⌊β d⌋)                                eq. (4), rounded in integers"
        retained = int(guarded_ceil(np.array(bound), np.array(d)))
        yield f"         = min(⌊{keys.gamma:g} · ({d} − {retained})⌋, ⌊{keys.beta:g} · {d}⌋) = {count:,}"
    else:
        yield f"  count  = ⌊d · min(γ (1 − r/d), β)⌋                                eq. (4), rounding {keys.rounding}"
        yield f"         = ⌊{d} · min({keys.gamma:g} · (1 − {bound:.2f}/{d}), {keys.beta:g})⌋ = {count:,}"


def _places(state: State, view: View) -> int:
    weights = list(state.network.weights.values())
    if state.config.rewire.scope == "global":
        return sum(w.size for w in weights)
    return weights[view.k].size if view.row is None else weights[view.k].columns


# ------------------------------------------------------------------------------------------------ Stage II, one by one


@dataclass(frozen=True)
class Scene:
    """One rewire, laid flat over all places of all layers. All arrays (places,).

    Field, Meaning
      unit, here           places that compete with one another; those of them in the layer that is shown
      first                where that layer begins
      pruned, kept, grown  what became of a place: connections that went, that stayed, that came
      weakness, growth     prune score and growth score, NaN where there is none
    """

    unit: Array
    here: Array
    first: int
    pruned: Array
    kept: Array
    grown: Array
    weakness: Array
    growth: Array


def rewiring(state: State, phase: str, prune: Array, grow: Array, view: View) -> Iterator[str]:
    """Stage II of all layers, and of one unit who goes, who comes, and why."""
    rec, before, u = Recorder(), state.network.weights, view.u
    result = stage_two(state, phase, prune, grow, rec)
    scene = _scene(state, before, result, rec, view)
    when = {"end": "at the iteration's end", "inner": "inside the next iteration, with the ratio just measured"}[phase]
    yield ""
    yield f"STAGE II   {when}"
    yield ""
    yield (f"{_unit_text(state, view)}: {result.pruned[u]:,} of {result.d[u]:,} connections go, {result.regrown[u]:,} "
           f"come ({result.returned[u]:,} of them had just gone), {result.shortfall[u]:,} find no free place")
    yield ""
    yield from _weakest(before[view.name], scene, view)
    if np.any(grow):
        yield ""
        yield from _candidates(state, scene, view)


def _scene(state: State, before: dict[str, SparseWeight], result: Rewiring, rec: Recorder, view: View) -> Scene:
    """Lay one rewire flat."""
    records = {r.name: r.value for r in rec.records}
    offsets = np.cumsum([0, *(w.size for w in before.values())])
    pruned, kept, grown = (np.zeros(offsets[-1], dtype=bool) for _ in range(3))
    weakness, growth = (np.full(offsets[-1], np.nan) for _ in range(2))
    for k, (name, weight) in enumerate(before.items()):
        part, old, origin = slice(offsets[k], offsets[k + 1]), weight.flat_index(), result.origin[k]
        stayed = origin[origin >= 0]
        kept[part][old[stayed]] = True
        pruned[part][np.delete(old, stayed)] = True
        grown[part][result.structures[k].places()[origin < 0]] = True
        weakness[part][old] = weight.gather(records[f"stage2/{name}/prune_score"])
        if f"stage2/{name}/grow_score" in records:
            growth[part] = records[f"stage2/{name}/grow_score"].reshape(-1)
    of_row, _ = units(result.structures, state.config.rewire.scope)
    unit_of = np.concatenate([np.repeat(rows, w.columns) for rows, w in zip(of_row, before.values(), strict=True)])
    unit, here = unit_of == view.u, np.zeros(offsets[-1], dtype=bool)
    here[offsets[view.k]:offsets[view.k + 1]] = True
    return Scene(unit, here & unit, int(offsets[view.k]), pruned, kept, grown, weakness, growth)


def _weakest(weight: SparseWeight, scene: Scene, view: View) -> Iterator[str]:
    """The connections with the smallest prune score, and those around the cut, each with its fate."""
    active = np.flatnonzero(scene.here & (scene.pruned | scene.kept))
    order = active[np.argsort(scene.weakness[active], kind="stable")]
    gone = scene.unit & scene.pruned
    cut = float(scene.weakness[gone].max()) if gone.any() else None
    said = "none goes" if cut is None else f"the cut is |w| = {cut:.6g}, the largest that goes"
    dense = weight.dense().reshape(-1)

    def row(rank: int, place: int) -> list[str]:
        fate = "pruned" if scene.pruned[place] else "kept"
        why = "" if cut is None else _prune_reason(float(scene.weakness[place]), cut, bool(scene.pruned[place]))
        return [f"{rank:,}", _where(place - scene.first, weight), f"{dense[place - scene.first]:+.6g}", fate, why]

    yield f"the weakest of {len(order):,} connections of {view.name}; {said}"
    rows = _rows(order, scene.pruned, view.count, row)
    yield from table(["rank", "place", "w", "fate", "why"], rows, left=(1, 3, 4))


def _prune_reason(score: float, cut: float, pruned: bool) -> str:
    if score == cut:
        return "at the cut" if pruned else "ties with the cut, and comes after it"
    return "below the cut" if pruned else "above the cut"


def _candidates(state: State, scene: Scene, view: View) -> Iterator[str]:
    """The places with the largest growth score, connected ones included, and those around the cut, with their fate."""
    keys, weight = state.config.rewire, state.network.weights[view.name]
    here = np.flatnonzero(scene.here)
    order = here[np.argsort(-scene.growth[here], kind="stable")]
    came = scene.unit & scene.grown
    cut = float(scene.growth[came].min()) if came.any() else None
    said = "none comes" if cut is None else f"the cut is {cut:.6g}, the smallest that comes"

    def row(rank: int, place: int) -> list[str]:
        fate, why = _growth_fate(scene, place, cut, keys.return_at_once)
        return [f"{rank:,}", _where(place - scene.first, weight), f"{scene.growth[place]:.6g}", fate, why]

    yield f"the places of {view.name} that ask most to be connected, by {keys.grow}; {said}"
    rows = _rows(order, scene.grown, view.count, row)
    yield from table(["rank", "place", "score", "fate", "why"], rows, left=(1, 3, 4))


def _growth_fate(scene: Scene, place: int, cut: float | None, return_at_once: bool) -> tuple[str, str]:
    just = "just pruned, " if scene.pruned[place] else ""
    if scene.grown[place]:
        return "comes", "just pruned, returns and starts at 0" if just else "free, starts at 0"
    if scene.kept[place]:
        return "stays", "connected"
    if just and not return_at_once:
        return "free", "just pruned, may not return at once"
    tie = cut is not None and scene.growth[place] == cut
    return "free", just + ("ties with the cut, and comes after it" if tie else "below the cut")


def _rows(order: Array, chosen: Array, count: int, row: Callable[[int, int], list[str]]) -> list[list[str]]:
    """Rows of an ordered list: about half of `count` from its head, the others around the last that was chosen."""
    hits = np.flatnonzero(chosen[order])
    last = int(hits[-1]) if hits.size else 0
    if last < count - 1 or len(order) <= count:
        ranks: list[int] = list(range(min(count, len(order))))
    else:
        head, before = count - count // 2, count // 4
        ranks = [*range(head), *range(max(head, last + 1 - before), min(last + 1 + count // 2 - before, len(order)))]
    rows = []
    for k, rank in enumerate(ranks):
        if k and rank != ranks[k - 1] + 1:
            rows.append(["…"] * 5)
        rows.append(row(rank + 1, int(order[rank])))
    return rows


def _where(place: int, weight: SparseWeight) -> str:
    """A flat place as the index of the dense weight: [out, in] or [out, in, row, column]."""
    return f"[{', '.join(str(int(i)) for i in np.unravel_index(place, weight.shape))}]"
