"""The PQ-index authors' pruning (Diao et al., ICLR 2023) against refsnn's: counts and masks of random groups.

    python validation/check_sap.py              well under a minute

More than 10,000 groups, in the scopes neuron, layer and global, whose weights are normal, uniform, heavy-tailed, on a
coarse grid (ties), partly zero, or nearly equal. The authors' formulas (peers/sap.py) are evaluated in float32, as
their code does, and in float64; refsnn's with each of its three roundings. Where the two differ, exact integers decide
which rounding it was; a difference that no rounding explains fails the check. The sources of a difference:

    product   floor(d * (1 - m/d)) in floating point is d - m - 1, and not d - m: the product was rounded
    bound     eq. (3) lies within rounding of an integer, and the two programs round it up to different ones
    count     a mask differs because the counts do, in weights between the two cuts
    tie       several weights have the magnitude of the cut: the authors keep them all, refsnn removes `count` exactly
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from common import EXACT, Array, Table, Worst, main, need

from refsnn.pq import Measurement, Rounding, measure
from refsnn.rewire import Rewiring, prune_magnitude, rewire
from refsnn.topology import Scope, Structure, entry_units

NETWORKS = 60
SCOPES: tuple[Scope, ...] = ("neuron", "layer", "global")
ROUNDINGS: tuple[Rounding, ...] = ("integer", "exact", "float32")


@dataclass
class Differences:
    """What differed between the authors' formulas in one precision and refsnn in one rounding."""

    groups: int = 0
    entries: int = 0
    counts: int = 0
    masks: int = 0
    why: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("product", "bound", "count", "tie"), 0))
    unexplained: int = 0


def check(table: Table) -> None:
    """All networks, scopes, precisions and roundings."""
    torch, _ = need("torch", "peers.sap")
    torch.set_num_threads(1)        # its float32 sums, and so some counts, depend on the number of threads
    found = {(dtype, rounding): Differences() for dtype in ("float32", "float64") for rounding in ROUNDINGS}
    indices = {"float32": Worst(), "float64": Worst()}
    for network in range(NETWORKS):
        rng = np.random.default_rng(network)
        layers = [layer(shape, rng) for shape in ((40, 9), (100, int(rng.integers(20, 700))), (60, 100))]
        structures = [Structure.from_mask(mask) for _, mask in layers]
        data = [w[mask] for w, mask in layers]
        for scope in SCOPES:
            ours = {r: prune_ours(structures, data, scope, r) for r in ROUNDINGS}
            theirs = {dtype: prune_theirs(layers, scope, getattr(torch, dtype)) for dtype in indices}
            for (dtype, rounding), differences in found.items():
                compare(differences, theirs[dtype], theirs["float64"], *ours[rounding], layers)
            for dtype, worst in indices.items():
                worst.see_absolute(ours["integer"][0].index, theirs[dtype].index)
    report(table, found, indices)


def layer(shape: tuple[int, int], rng: np.random.Generator) -> tuple[Array, Array]:
    """Weights (rows, columns) in float32 and their mask; each row has its own law and density, and one active weight
    at least that is not zero: what remains of an index without weights is 0/0 in the authors' code."""
    rows, columns = shape
    w = np.empty(shape)
    for i in range(rows):
        laws = [rng.standard_normal(columns), rng.uniform(-1, 1, columns), rng.standard_t(2, columns),
                rng.integers(-6, 7, columns) / 4, rng.standard_normal(columns) * (rng.random(columns) < 0.5),
                1 + 1e-3 * rng.standard_normal(columns)]
        w[i] = laws[rng.integers(len(laws))] * 10.0 ** rng.integers(-3, 2)
    mask = rng.random(shape) < rng.uniform(0.02, 1, (rows, 1))
    first = rng.integers(columns, size=rows)
    mask[np.arange(rows), first], w[np.arange(rows), first] = True, 0.5
    return w.astype(np.float32), mask


def prune_ours(structures: list[Structure], data: list[Array], scope: Scope, rounding: Rounding
               ) -> tuple[Measurement, Rewiring]:
    """Measure and prune with refsnn."""
    unit, units = entry_units(structures, scope)
    measured = measure(np.concatenate(data), unit, units, rounding=rounding)
    scores, none = [prune_magnitude(w) for w in data], 0 * measured.count
    return measured, rewire(structures, scores, None, measured.count, none, scope)


@dataclass
class Theirs:
    """The authors' results as arrays: one entry per group, and the mask of what is left, layer by layer."""

    index: Array
    bound: Array
    retained: Array
    count: Array
    kept: list[Array]


def prune_theirs(layers: list[tuple[Array, Array]], scope: Scope, dtype: Any) -> Theirs:
    """The authors' formulas: rows are neurons, whole layers, or the whole network laid flat."""
    import torch
    from peers.sap import prune

    groups = layers if scope == "neuron" else [(w.reshape(1, -1), mask.reshape(1, -1)) for w, mask in layers]
    if scope == "global":
        groups = [(np.concatenate([w for w, _ in groups], axis=1), np.concatenate([m for _, m in groups], axis=1))]
    results = [prune(torch.from_numpy(w).to(dtype), torch.from_numpy(mask)) for w, mask in groups]
    numbers = [np.concatenate([getattr(r, part).double().numpy() for r in results])
               for part in ("index", "bound", "retained", "count")]
    flat = np.concatenate([r.kept.numpy().ravel() for r in results])
    ends = np.cumsum([mask.size for _, mask in layers])[:-1]
    return Theirs(*numbers, [part.reshape(m.shape) for part, (_, m) in zip(np.split(flat, ends), layers, strict=True)])


def compare(found: Differences, theirs: Theirs, precise: Theirs, measured: Measurement, rewiring: Rewiring,
            layers: list[tuple[Array, Array]]) -> None:
    """Count the differing counts and mask entries of one network, and say of each where it comes from.

    precise: theirs in float64. A bound that differs after rounding up is explained where float64 brings theirs to ours,
    or where theirs in float64 is within rounding of ours.
    """
    d = measured.d
    cap = 9 * d // 10
    by_their_bound = np.minimum(d - theirs.retained.astype(int), cap).clip(0)       # eq. (4) in whole numbers
    by_our_bound = np.minimum(d - np.ceil(measured.bound).astype(int), cap).clip(0)
    shortfall = np.abs(theirs.count - by_their_bound), np.abs(measured.count - by_our_bound)
    product = (np.maximum(*shortfall) == 1)                 # a product that was rounded costs one, never more
    near = np.abs(precise.bound - measured.bound) <= 100 * np.finfo(np.float64).eps * d
    bound = (by_their_bound != by_our_bound) & (near | (precise.retained == np.ceil(measured.bound)))
    differing = theirs.count != measured.count
    found.groups += d.size
    found.counts += int(differing.sum())
    found.why["product"] += int((differing & product).sum())
    found.why["bound"] += int((differing & bound & ~product).sum())
    same_bound = by_their_bound == by_our_bound
    explained = (bound | same_bound) & (np.maximum(*shortfall) <= 1)
    found.unexplained += int((differing & ~explained).sum())

    unit = unit_of_places(layers, d.size)
    for (w, mask), kept, new, of in zip(layers, theirs.kept, rewiring.structures, unit, strict=True):
        other = kept != new.mask()
        found.entries += int(mask.sum())
        found.masks += int(other.sum())
        magnitude = np.abs(w)
        cut, our_cut = (smallest(magnitude, left, of, d.size) for left in (kept, new.mask()))
        tie = other & ~differing[of] & (magnitude == cut[of])
        between = (np.minimum(cut, our_cut)[of] <= magnitude) & (magnitude <= np.maximum(cut, our_cut)[of])
        follows = other & differing[of] & between
        found.why["tie"] += int(tie.sum())
        found.why["count"] += int(follows.sum())
        found.unexplained += int((other & ~tie & ~follows).sum())


def unit_of_places(layers: list[tuple[Array, Array]], units: int) -> list[Array]:
    """The group of every place of every layer, (rows, columns): by their number it is seen which scope it is."""
    rows = [w.shape[0] for w, _ in layers]
    first = np.cumsum([0, *rows])
    number = {sum(rows): lambda k: np.arange(first[k], first[k + 1]), len(rows): lambda k: np.full(rows[k], k),
              1: lambda k: np.zeros(rows[k], int)}[units]
    return [np.broadcast_to(number(k)[:, np.newaxis], w.shape) for k, (w, _) in enumerate(layers)]


def smallest(magnitude: Array, left: Array, unit: Array, units: int) -> Array:
    """The smallest magnitude that is left in each group; layers do not share one but in scope global."""
    cut = np.full(units, np.inf)
    np.minimum.at(cut, unit[left], magnitude[left])
    return cut


def report(table: Table, found: dict[tuple[str, str], Differences], indices: dict[str, Worst]) -> None:
    """How much differs and why, and that nothing is left unexplained."""
    line = "{:<10} {:<9} {:>7} {:>10} {:>11} {:>9} {:>11} {:>9} {:>9} {:>8} {:>8}"
    table.note(line.format("authors in", "refsnn's", "groups", "counts !=", "by product", "by bound", "entries",
                           "masks !=", "by count", "by tie", "unexpl."))
    for (dtype, rounding), one in found.items():
        table.note(line.format(dtype, rounding, *(f"{n:,}" for n in (
            one.groups, one.counts, one.why["product"], one.why["bound"], one.entries, one.masks, one.why["count"],
            one.why["tie"], one.unexplained))))
    table.note("")
    indices["float64"].report(table, "PQ index, authors in float64, absolute", 1e-12)
    indices["float32"].report(table, "PQ index, authors in float32, absolute", 1e-4)
    for (dtype, rounding), one in found.items():
        cases = one.groups + one.entries
        table.add(f"authors in {dtype}, refsnn's {rounding}: unexplained", cases, one.unexplained, EXACT)
    groups = min(one.groups for one in found.values())
    table.add("groups short of 10,000", groups, max(10_000 - groups, 0), EXACT)


if __name__ == "__main__":
    main("SAP: pruning by the PQ index", ("torch",), check)
