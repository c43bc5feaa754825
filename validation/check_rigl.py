"""RigL's updates and ERK densities: rigl_torch, sparsimony and an independent update against refsnn's `rewire`.

    python validation/check_rigl.py             well under a minute

A rule is a score: with the magnitude for pruning, the dense gradient for regrowth, a layer for the unit and the number
from RigL's cosine, `rewire` is RigL. Each package runs 1,000 updates on its own schedule, of layers whose weights and
gradients are drawn anew for each; refsnn is given the same numbers and must choose the same connections.
"""

from typing import Any

import numpy as np
from common import EXACT, GRADIENT, Array, Table, Worst, main, need, unequal

from refsnn.rewire import rewire
from refsnn.topology import Structure, layer_densities

UPDATES = 1_000
ALPHA = 0.6
NETWORKS: dict[str, list[tuple[int, ...]]] = {
    "conv2fc2": [(32, 1, 3, 3), (64, 32, 3, 3), (128, 256), (10, 128)],
    "VGGSNN": [(64, 2, 3, 3), (128, 64, 3, 3), (256, 128, 3, 3), (256, 256, 3, 3), (512, 256, 3, 3),
               *[(512, 512, 3, 3)] * 3, (10, 4608)],
    "ResNet-19": [(64, 3, 3, 3), (128, 64, 3, 3), (128, 128, 3, 3), (128, 64, 1, 1), *[(128, 128, 3, 3)] * 4,
                  (256, 128, 3, 3), (256, 256, 3, 3), (256, 128, 1, 1), *[(256, 256, 3, 3)] * 4,
                  (512, 256, 3, 3), (512, 512, 3, 3), (512, 256, 1, 1), *[(512, 512, 3, 3)] * 2, (256, 512), (10, 256)],
}


def check(table: Table) -> None:
    """The independent update first, then each package that is there; skipped if neither is."""
    need("torch")
    drivers, reasons = [], []
    for package, name in (("rigl_torch", "RiglTorch"), ("sparsimony", "Sparsimony")):
        try:
            drivers.append((package, driver(package, name)))
        except ModuleNotFoundError as error:
            reasons.append(f"{package} ({error.name} is not installed)")
    for reason in reasons:
        table.note(f"skipped: {reason}")
    for k, (package, made) in enumerate(drivers):
        check_updates(table, package, made, np.random.default_rng(k))
    check_erk(table, "sparsimony" in dict(drivers))


def driver(package: str, name: str) -> Any:
    """A driver of peers/rigl.py.   Raises ModuleNotFoundError where its package is absent."""
    import torch
    from peers import rigl

    torch.manual_seed(0)
    density = {"rigl_torch": 0.3, "sparsimony": 0.25}[package]
    return getattr(rigl, name)(end=rigl.EVERY * UPDATES + 1, alpha=ALPHA, density=density)


def check_updates(table: Table, package: str, peer: Any, rng: np.random.Generator) -> None:
    """Masks after each of many updates: the package's, the independent update's, and refsnn's; and the weights."""
    from peers.rigl import fraction, update

    mine, judged, values, entries, returned, kept_values, fractions = 0, 0, 0, 0, 0, 0, Worst()
    for k in range(1, UPDATES + 1):
        before = peer.masks()
        share, weights, gradients = peer.update(rng.standard_normal)
        fractions.see(share, fraction(2 * k, 2 * UPDATES + 1, ALPHA))
        counts = [peer.dropped(int(mask.sum()), share) for mask in before]
        result = refsnn_update(before, weights, gradients, counts)
        masks, after = peer.masks(), peer.weights()
        for layer, (mask, w, g) in enumerate(zip(before, weights, gradients, strict=True)):
            entries += mask.size
            ours = result.structures[layer].mask().reshape(mask.shape)
            mine += unequal(ours, masks[layer])
            expected, stays = update(w, mask, g, counts[layer])
            judged += unequal(expected, masks[layer])
            back = mask & ours & ~stays                             # went and came at once
            returned += int(back.sum())
            data = np.zeros(mask.shape)
            origin = result.origin[layer]
            data[ours] = np.where(origin >= 0, w[mask][origin], 0)  # refsnn: what comes starts at 0
            kept_values += int(np.count_nonzero(after[layer][back]))
            values += unequal(data[~back], after[layer][~back])
    table.add(f"{package}: {UPDATES} updates, mask entries that differ", entries, mine, EXACT)
    table.add(f"{package}: the same for the independent update", entries, judged, EXACT)
    table.add(f"{package}: weights that differ, returned connections apart", entries, values, EXACT)
    table.note(f"    of {returned:,} connections that went and came straight back, {package} restores the value of "
               f"{kept_values:,}; refsnn starts them all at 0")
    fractions.report(table, f"{package}: share dropped, cosine", GRADIENT)


def refsnn_update(masks: list[Array], weights: list[Array], gradients: list[Array], counts: list[int]) -> Any:
    """The same update as a rewiring by refsnn."""
    flat = [(mask.reshape(len(mask), -1), w.reshape(len(w), -1), g.reshape(len(g), -1))
            for mask, w, g in zip(masks, weights, gradients, strict=True)]
    return rewire([Structure.from_mask(mask) for mask, _, _ in flat], [np.abs(w[mask]) for mask, w, _ in flat],
                  [np.abs(g) for _, _, g in flat], np.array(counts), np.array(counts), "layer")


def check_erk(table: Table, has_sparsimony: bool) -> None:
    """ERK at many densities: an independent solution, and sparsimony's, whose numbers of zeros are rounded down."""
    from peers.rigl import erk, sparsimony_erk

    exact, rounded, distance = Worst(), Worst(), Worst()
    for shapes in NETWORKS.values():
        for density in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.97):
            ours = layer_densities(shapes, density, "erk")
            exact.see(ours, erk(shapes, density))
            if has_sparsimony:
                theirs = sparsimony_erk(shapes, density)
                rounded.see(theirs, erk(shapes, density, whole=True))
                one_a_layer = len(shapes) / min(int(np.prod(s)) for s in shapes)     # all of them in the smallest
                distance.see_absolute(theirs, ours, one_a_layer)
    exact.report(table, "ERK densities, independent solution", GRADIENT)
    if has_sparsimony:
        rounded.report(table, "ERK densities, sparsimony, zeros rounded down as it does", GRADIENT)
        distance.report(table, "ERK densities, sparsimony's in units of one connection a layer", 1.0)


if __name__ == "__main__":
    main("RigL and ERK", ("torch", "rigl-torch", "sparsimony"), check)
