"""Records of the method recomputed: optimiser, growth memory, measurement, rewiring, and the state they lead to.

As in refsnn/recompute.py: a rule without further arguments is the program's, its keyword arguments are somebody
else's. Everything is written with dense arrays and masks.
"""

from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn.optim import bias_correction
from refsnn.pq import Measurement, retained_bound, rewiring_counts
from refsnn.rewire import end_counts, rewire
from refsnn.topology import Scope, Structure, units
from refsnn.traced import Step, UnavailableError

Array = npt.NDArray[Any]
GRADIENTS = {"weight": "dweight", "bias": "dbias", "gamma": "dgamma", "beta": "dbeta"}
MEASURED = tuple(one.name for one in fields(Measurement))


def weights(step: Step) -> list[str]:
    """Names of the sparse weights in order: those with a mask."""
    return [name.split("/")[1] for name in step.names() if name.startswith("params/") and name.endswith("/mask")]


def _mask(step: Step, name: str) -> Array:
    """The connections of a weight during the step; all True for other parameters."""
    mask = f"params/{name}/mask"
    return step.value(mask).astype(bool) if step.has(mask) else np.ones(step.value(f"params/{name}/value").shape, bool)


def _came(step: Step, name: str) -> Array:
    """Where a connection of this step came with the rewire before it, straight back or for the first time."""
    before, mask = step.before(), _mask(step, name)
    came = mask & ~_mask(before, name)
    if before.has(f"stage2/{name}/grown"):
        came.reshape(-1)[before.value(f"stage2/{name}/grown")] = True
    return came


# --------------------------------------------------------------------------------------------------------- optimiser


def optimiser(step: Step, name: str, part: str, *, decay: str | None = None, eps: str = "outside",
              corrected: bool = True, count: str | None = None, kept: bool = False, momentum: str = "plain",
              nesterov: bool | None = None, unmasked: bool = False, fresh: bool | None = None) -> Array:
    """optim/<parameter>/{gradient, momentum, first, second, steps, after}: one step of refsnn/optim.py.

    decay: "coupled" (in the gradient), "decoupled" (beside it), "none"; eps: "outside" the root, "inside" it, or
    "early" (added to the root before the bias correction); corrected False: no bias correction; count "own" or, of a
    weight that came, "global": as many steps as of the oldest; kept: what came back keeps its moments; momentum:
    "plain", "averaged" (1 - momentum on the gradient) or "lr inside"; nesterov: the other form; unmasked: places
    without a connection are moved by moments and decay as well; fresh: all moments are 0 after an iteration.
    """
    c, mask = step.config.optim, _mask(step, name)
    decay = decay or ("decoupled" if c.kind == "adamw" else "coupled")
    w = step.value(f"params/{name}/value").astype(np.float64)
    if unmasked:
        return _moved_everywhere(step, name, mask)
    g = _gradient(step, name)
    if part == "gradient":
        return g
    lr = float(step.value("optim/lr"))
    if decay == "coupled":
        g = g + c.weight_decay * w
    elif decay == "decoupled":
        w = w * (1 - lr * c.weight_decay)
    old = _moments(step, name, kept, count or c.regrown_step, c.fresh if fresh is None else fresh)
    if c.kind == "sgd":
        return _sgd(step, name, part, w, g, old, lr, momentum, c.nesterov if nesterov is None else nesterov) * mask
    new = {"first": c.beta1 * old["first"] + (1 - c.beta1) * g, "second": c.beta2 * old["second"]
           + (1 - c.beta2) * g * g, "steps": old["steps"] + 1}
    if part != "after":
        return new[part] * mask
    recorded = {p: step.value(f"optim/{name}/{p}") for p in new if step.given(f"optim/{name}/{p}")}
    if count:
        recorded.pop("steps", None)
    m, v, n = (new | recorded).values()
    n = np.maximum(np.asarray(n).astype(np.int64), 1)
    one, two = (bias_correction(beta, n) if corrected else np.ones(n.shape) for beta in (c.beta1, c.beta2))
    root = {"outside": np.sqrt(v / two) + c.eps, "inside": np.sqrt(v / two + c.eps),
            "early": (np.sqrt(v) + c.eps) / np.sqrt(two)}[eps]
    return (w - lr * (m / one) / root) * mask


def _sgd(step: Step, name: str, part: str, w: Array, g: Array, old: dict[str, Array], lr: float, momentum: str,
         nesterov: bool) -> Array:
    beta = step.config.optim.momentum
    factor = {"plain": 1.0, "averaged": 1 - beta, "lr inside": lr}[momentum]
    b = beta * old["momentum"] + factor * g if beta else old["momentum"]
    if part == "momentum":
        return b
    if step.given(f"optim/{name}/momentum"):
        b = step.value(f"optim/{name}/momentum")
    moved = g if not beta else g + beta * b if nesterov else b
    return w - (1.0 if momentum == "lr inside" else lr) * moved


def _gradient(step: Step, name: str) -> Array:
    """dL/d parameter as the optimiser gets it: clipped where the configuration clips."""
    clipped = f"optim/{name}/gradient"
    if step.config.train.clip > 0 and step.given(clipped):
        return step.value(clipped)
    parameters = [n.split("/")[1] for n in step.names() if n.startswith("params/") and n.endswith("/value")]
    g = _raw_gradient(step, name)
    if step.config.train.clip > 0:
        every = [_raw_gradient(step, p) for p in parameters if p.rpartition(".")[2] in GRADIENTS]
        norm = float(np.sqrt(sum(np.square(one).sum() for one in every)))
        g = g * min(1.0, step.config.train.clip / norm) if norm else g
    return g


def _raw_gradient(step: Step, name: str) -> Array:
    layer, _, part = name.rpartition(".")
    return step.value(f"backward/{layer}/{GRADIENTS[part]}").astype(np.float64) * _mask(step, name)


def _moments(step: Step, name: str, kept: bool, count: str, fresh: bool) -> dict[str, Array]:
    """The moments before the step: 0 for what came, unless they are kept; all 0 where an iteration begins fresh."""
    shape = step.value(f"params/{name}/value").shape
    parts = ("momentum",) if step.config.optim.kind == "sgd" else ("first", "second", "steps")
    old = {p: np.zeros(shape, np.int64 if p == "steps" else np.float64) for p in parts}
    try:
        before = step.before()
    except UnavailableError:
        return old
    if fresh and before.has("stage1/d"):
        return old
    came = _came(step, name)
    if kept and not came.any():
        raise UnavailableError("nothing came before this step")
    for p in parts:
        last = before.value(f"optim/{name}/{p}")
        old[p] = last.astype(old[p].dtype) if kept else np.where(came, 0, last)
        if p == "steps" and count == "global":
            old[p] = np.where(came, last.max(initial=0), last)
    return old


def _moved_everywhere(step: Step, name: str, mask: Array) -> Array:
    """OTHER's array where no connection is, GOLDEN's where one is: fits where only pruned places were moved."""
    full = f"{step.prefix}optim/{name}/after"
    if step.target is None or full not in step.golden or step.target.shape != mask.shape or mask.all():
        raise UnavailableError("no place without a connection")
    return np.where(mask, step.golden[full], step.target)


def growth(step: Step, name: str, part: str, masked: bool = False, summed: bool = False, last: bool = False) -> Array:
    """growth/<weight>/{average, square}: what the growth rule remembers of the dense gradient.

    masked: only of active places; summed: m <- beta m + g, no factor 1 - beta; last: the gradient itself, no average.
    """
    beta = step.config.rewire.grow_beta if part == "average" else 0.999
    g = step.value(f"backward/{name.rpartition('.')[0]}/dweight_dense").astype(np.float64)
    g = g * _mask(step, name) if masked else g
    g = g if part == "average" else g * g
    try:
        before = step.before()
        old = before.value(f"growth/{name}/{part}") if before.has(f"growth/{name}/{part}") else 0 * g
    except UnavailableError:
        old = 0 * g
    new = g if last else beta * old + (1 if summed else 1 - beta) * g
    return new * _mask(step, name) if masked else new


# -------------------------------------------------------------------------------------- Stage I ends: the measurement


def measurement(step: Step, part: str, **changes: Any) -> Array:
    """stage1/{d, norm_p, norm_q, index, bound, count, ratio}, one entry per unit: eqs. (2)-(4).

    changes: `measured`'s. Later parts follow from the earlier ones as OTHER has them, where it has them.
    """
    given = {p: step.value(f"stage1/{p}") for p in MEASURED if p != part and step.given(f"stage1/{p}")}
    if "scope" in changes:
        given = {}
    return measured(step, given, **changes)[part]


def measured(step: Step, given: dict[str, Array], *, d: str = "connections", index: str = "eq2", swap: bool = False,
             bound: str = "eq3", count: str = "", ratio: str = "d", scope: Scope | None = None,
             rooted: bool = True, **keys: float) -> dict[str, Array]:
    """Eqs. (2)-(4) of the weights after this step.

    d: "connections", "non-zeros" or "places"; swap: p and q exchanged; index: "eq2", "minus" (printed), "flipped"
    (exponent, in the text), "norms" (no factor of d); rooted False: sums of powers for norms; bound: "eq3", "inverse"
    (exponent of 1 + eta with the other sign); count: a rule of `_count`; ratio: "d" or "N"; scope: another one;
    keys: eta, gamma, beta, another value.
    """
    c = step.config.rewire
    p, q = (c.q, c.p) if swap else (c.p, c.q)
    magnitude, unit, number, size = _entries(step, scope or c.scope, d)
    out: dict[str, Array] = {"d": np.bincount(unit, minlength=number)}
    sums = {order: np.bincount(unit, weights=magnitude**order, minlength=number) for order in (p, q)}
    out["norm_p"], out["norm_q"] = ((sums[o] ** (1 / o) if rooted else sums[o]) for o in (p, q))
    seen = out | given
    many, n_p, n_q = np.maximum(seen["d"], 1.0), seen["norm_p"], seen["norm_q"]
    power = {"eq2": 1 / q - 1 / p, "minus": 1 / q - 1 / p, "flipped": 1 / p - 1 / q, "norms": 0.0}[index]
    quotient = many**power * n_p / np.where(n_q > 0, n_q, 1)
    found = 1 - many**power * n_p - n_q if index == "minus" else 1 - quotient
    out["index"] = np.where(n_q > 0, np.maximum(found, 0) if index == "eq2" and not swap else found, 0)
    eta = keys.get("eta", c.eta)
    seen = out | given
    if bound == "inverse":
        out["bound"] = seen["d"] * (1 + eta) ** (c.q / (c.q - c.p)) * (1 - seen["index"]) ** (c.p * c.q / (c.q - c.p))
    else:
        out["bound"] = retained_bound(seen["d"], np.clip(seen["index"], 0, 1), c.p, c.q, eta)
    seen = out | given
    out["count"] = _count(step, seen["d"], seen["bound"], count, size, keys.get("gamma", c.gamma),
                          keys.get("beta", c.beta))
    seen = out | given
    out["ratio"] = seen["count"] / (size if ratio == "N" else np.maximum(seen["d"], 1))
    return out


def _entries(step: Step, scope: Scope, d: str) -> tuple[Array, Array, int, Array]:
    """|w| and unit of everything that counts as a weight, the number of units, and the places of each unit."""
    names = weights(step)
    masks = [_mask(step, name) for name in names]
    values = [step.value(f"optim/{name}/after") for name in names]
    of_row, number = units([Structure.from_mask(m.reshape(len(m), -1)) for m in masks], scope)
    unit = [np.repeat(u, m[0].size) for u, m in zip(of_row, masks, strict=True)]
    chosen = np.concatenate([{"connections": m, "non-zeros": m & (v != 0), "places": np.ones_like(m)}[d].reshape(-1)
                             for m, v in zip(masks, values, strict=True)])
    magnitude = np.abs(np.concatenate([v.reshape(-1) for v in values]).astype(np.float64))
    place = np.concatenate(unit)
    return magnitude[chosen], place[chosen], number, np.bincount(place, minlength=number)


def _count(step: Step, d: Array, bound: Array, rule: str, size: Array, gamma: float, beta: float) -> Array:
    """Eq. (4) by a rule.

    "" the program's; "ceil" rounds the count up, "floor bound" the bound down, "round" the count to the nearest;
    "exact", "float32": other roundings of the program; "of N": the ratio is taken of all places.
    """
    c = step.config.rewire
    if c.ratio == "none":
        return 0 * d
    share = np.minimum(gamma * (1 - bound / np.maximum(d, 1)), beta)
    if rule == "ceil":
        return np.ceil(np.maximum(d * share, 0)).astype(np.int64)
    if rule == "round":
        return np.rint(np.maximum(d * share, 0)).astype(np.int64)
    if rule == "floor bound":
        return np.maximum(np.minimum(np.floor(gamma * (d - np.floor(bound))), np.floor(beta * d)), 0).astype(np.int64)
    if rule == "of N":
        return np.minimum(np.floor(np.maximum(size * share, 0)), d).astype(np.int64)
    rounding: Any = rule or c.rounding
    return rewiring_counts(np.asarray(d), np.asarray(bound, np.float64), gamma, beta, rounding)


# ---------------------------------------------------------------------------------------------------------- Stage II


def counts(step: Step, part: str, **changes: Any) -> Array:
    """stage2/{prune_count, grow_count} of an iteration's end: the measured count, and the share that comes back."""
    if not step.has("stage1/d"):
        raise UnavailableError("no measurement in this step")
    given = {} if changes else {p: step.value(f"stage1/{p}") for p in MEASURED if step.given(f"stage1/{p}")}
    found = measured(step, given, **changes)
    prune, grow = end_counts(Measurement(**found), step.config.rewire.regrow_share)
    return prune if part == "prune_count" else grow


def rewiring(step: Step, name: str, part: str, *, score: str = "magnitude", grow: str | None = None,
             masked: bool = False, signed: bool = False, ties: str = "lower", return_at_once: bool | None = None,
             scope: Scope | None = None, largest: bool = False, shortfall: str | None = None,
             measure: dict[str, Any] | None = None) -> Array:
    """stage2/<weight>/{prune_score, pruned, grow_score, grown, mask}: refsnn/rewire.py on the recorded scores.

    score: "magnitude", "signed" or "gradient" (|w g|); grow: "momentum", "adam", "gradient"; masked, signed: of the
    average; ties: "lower", "higher" or "all" (everything at the cut goes too); scope: who competes; measure: changes
    of the measurement that the counts come from; the other arguments as in the configuration.
    """
    c, names = step.config.rewire, weights(step)
    scope = scope or (measure or {}).get("scope", c.scope)
    if part == "prune_score":
        return _prune_score(step, name, score)
    if part == "grow_score":
        return _grow_score(step, name, grow or c.grow, masked, signed)
    masks = [_mask(step, one) for one in names]
    structures = [Structure.from_mask(m.reshape(len(m), -1)) for m in masks]
    prune = [_read(step, one, "prune_score", score != "magnitude", lambda n: _prune_score(step, n, score))[m]
             for one, m in zip(names, masks, strict=True)]
    prune = [-p for p in prune] if largest else prune
    dense = [_read(step, one, "grow_score", bool(grow or masked or signed),
                   lambda n: _grow_score(step, n, grow or c.grow, masked, signed)) for one in names]
    goes, comes = (_asked(step, which, scope, measure) for which in ("prune_count", "grow_count"))
    if ties == "all":
        goes = _with_ties(structures, prune, goes, scope)
    shapes = [s.shape for s in structures]
    if ties == "higher":        # the same rule on everything in the opposite order, and back
        return _reversed(step, name, part, masks, prune, dense, [goes, comes], scope)
    result = rewire(structures, prune, [g.reshape(s) for g, s in zip(dense, shapes, strict=True)], goes, comes,
                    scope, return_at_once=c.return_at_once if return_at_once is None else return_at_once,
                    shortfall=shortfall or c.shortfall)     # type: ignore[arg-type]
    k = names.index(name)
    return _part(part, masks[k], result.structures[k].mask().reshape(-1), result.origin[k])


def _part(part: str, old: Array, new: Array, origin: Array) -> Array:
    """pruned, grown or mask from the old and the new connections of a weight."""
    if part == "mask":
        return new.reshape(old.shape)
    if part == "grown":
        return np.flatnonzero(new)[origin < 0]
    return np.delete(np.flatnonzero(old), origin[origin >= 0])


def _read(step: Step, name: str, part: str, changed: bool, compute: Any) -> Array:
    """A score: recorded, unless it is changed or OTHER left it out and GOLDEN too."""
    full = f"stage2/{name}/{part}"
    if changed and not step.given(full):
        return np.asarray(compute(name))
    if step.has(full):
        return step.value(full)
    return np.zeros(_mask(step, name).shape)        # nothing grows: nobody asks


def _prune_score(step: Step, name: str, score: str) -> Array:
    w, mask = step.value(f"optim/{name}/after"), _mask(step, name)
    if score == "gradient":
        return np.abs(w * _raw_gradient(step, name)) * mask
    return (w if score == "signed" else np.abs(w)) * mask


def _grow_score(step: Step, name: str, rule: str, masked: bool, signed: bool) -> Array:
    mask = _mask(step, name)
    if rule == "random":
        return step.value(f"rng/growth/{name}")
    if rule == "gradient":
        found = step.value(f"backward/{name.rpartition('.')[0]}/dweight_dense")
    else:
        found = step.value(f"growth/{name}/average")
        if rule == "adam":
            found = found / (np.sqrt(step.value(f"growth/{name}/square")) + 1e-8)
    return (found if signed else np.abs(found)) * (mask if masked else 1)


def _asked(step: Step, which: str, scope: Scope, changes: dict[str, Any] | None) -> Array:
    """How many go or come in each unit of the scope."""
    own = step.config.rewire.scope
    if changes is not None:
        return counts(step, which, **changes)
    if scope == own:
        return step.value(f"stage2/{which}")
    if own == "neuron" and scope == "layer":        # the same numbers, chosen from the whole layer
        ends = np.cumsum([0, *(len(_mask(step, name)) for name in weights(step))])
        return np.add.reduceat(step.value(f"stage2/{which}"), ends[:-1])
    if scope == "global":
        return step.value(f"stage2/{which}").sum(keepdims=True)
    return counts(step, which, scope=scope)


def _with_ties(structures: list[Structure], scores: list[Array], number: Array, scope: Scope) -> Array:
    """How many go when everything that equals the score at the cut goes too."""
    of_row, _ = units(structures, scope)
    unit = np.concatenate([u[s.rows()] for u, s in zip(of_row, structures, strict=True)])
    score = np.concatenate(scores)
    found = number.copy()
    for u in np.flatnonzero(number):
        own = np.sort(score[unit == u])
        found[u] = np.searchsorted(own, own[number[u] - 1], side="right")
    return found


def _reversed(step: Step, name: str, part: str, masks: list[Array], prune: list[Array], dense: list[Array],
              number: list[Array], scope: Scope) -> Array:
    """The rewiring with ties given to the higher place: everything laid out from its end, and the answer turned."""
    c, shapes = step.config.rewire, [(len(m), m[0].size) for m in masks[::-1]]
    back = [m.reshape(-1)[::-1] for m in masks[::-1]]
    scores = [g.reshape(-1)[::-1].reshape(s) for g, s in zip(dense[::-1], shapes, strict=True)]
    result = rewire([Structure.from_mask(m.reshape(s)) for m, s in zip(back, shapes, strict=True)],
                    [p[::-1] for p in prune[::-1]], scores, number[0][::-1], number[1][::-1], scope,
                    return_at_once=c.return_at_once, shortfall=c.shortfall)
    k = len(masks) - 1 - weights(step).index(name)
    found = _part(part, back[k], result.structures[k].mask().reshape(-1), result.origin[k])
    return found[::-1].reshape(masks[-1 - k].shape) if part == "mask" else np.sort(back[k].size - 1 - found)


# --------------------------------------------------------------------------------------- what the next step starts from


def state(step: Step, name: str, part: str, keeps_value: bool = False, committed: bool = True,
          rewind: bool | None = None) -> Array:
    """params/<name>/{value, mask} after the first step: what the step before, and the rewire after it, left.

    keeps_value: a connection that was pruned and came straight back keeps its weight; committed False: batch norm's
    running statistics stay as they were; rewind: everything goes back to its initial value after an iteration.
    """
    before = step.before()
    if part == "value" and before.has("stage1/d") and (step.config.rewire.rewind if rewind is None else rewind):
        return step.first(f"params/{name}/value") * _mask(step, name)
    rewired = f"stage2/{name}/mask"
    if part == "mask":
        return before.value(rewired if before.has(rewired) else f"params/{name}/mask")
    layer, _, which = name.rpartition(".")
    if which.startswith("running"):
        return before.value(f"forward/{layer}/{which}" if committed else f"params/{name}/value")
    after = before.value(f"optim/{name}/after")
    if not before.has(rewired):
        return after
    new = np.zeros_like(after)
    stayed = before.value(rewired).astype(bool)
    if not keeps_value and before.has(f"stage2/{name}/grown"):
        stayed = stayed.copy()
        stayed.reshape(-1)[before.value(f"stage2/{name}/grown")] = False
    new[stayed] = after[stayed]
    return new


def draws(step: Step, name: str) -> Array:
    """rng/*, input/*: OTHER's own, where it is GOLDEN's in another order along the batch."""
    full = step.prefix + name
    target = step.target
    if target is None or target.shape != step.golden[full].shape or not target.ndim:
        raise UnavailableError("another number of samples")
    rows = [a.reshape(len(a), -1) for a in (target, step.golden[full])]
    order = [np.lexsort(a.T[::-1]) for a in rows]
    if not np.array_equal(rows[0][order[0]], rows[1][order[1]]):
        raise UnavailableError("other samples")
    return target
