"""Magnitude pruning by PyTorch, torch.nn.utils.prune and torch.ao.pruning, against refsnn's `rewire` without regrowth.

    python validation/check_torch_prune.py      seconds

The same number of connections, given as a count; the same connections must go, in one layer, in rounds, and over a
whole network at once (`global_unstructured` and scope "global").
"""

import numpy as np
from common import EXACT, Array, Table, main, need, unequal

from refsnn.rewire import prune_magnitude, rewire
from refsnn.topology import Scope, Structure

SHAPES = ((20, 30), (16, 4, 3, 3), (1, 7), (64, 32, 3, 3), (10, 1))


def check(table: Table) -> None:
    """Both of PyTorch's pruning packages."""
    need("torch.nn.utils.prune", "torch.ao.pruning")
    rng = np.random.default_rng(0)
    check_rounds(table, rng)
    check_global(table, rng)
    check_sparsifier(table, rng)


def prune(weights: list[Array], masks: list[Array], counts: list[int], scope: Scope = "layer") -> list[Array]:
    """The masks that refsnn leaves."""
    flat = [(w.reshape(len(w), -1), m.reshape(len(m), -1)) for w, m in zip(weights, masks, strict=True)]
    pruned = np.array(counts)
    result = rewire([Structure.from_mask(m) for _, m in flat], [prune_magnitude(w[m]) for w, m in flat], None, pruned,
                    0 * pruned, scope)
    return [new.mask().reshape(w.shape) for new, w in zip(result.structures, weights, strict=True)]


def check_rounds(table: Table, rng: np.random.Generator) -> None:
    """l1_unstructured, ten rounds on the same module: PyTorch prunes among what the rounds before have left."""
    import torch
    from torch.nn.utils.prune import l1_unstructured

    differing = entries = 0
    for shape in SHAPES:
        for dtype in (np.float32, np.float64):
            module = torch.nn.Module()
            w = rng.standard_normal(shape).astype(dtype)
            module.weight = torch.nn.Parameter(torch.from_numpy(w.copy()))
            mask = np.ones(shape, dtype=bool)
            for _ in range(10):
                count = int(mask.sum() * rng.uniform(0, 0.4))
                l1_unstructured(module, "weight", amount=count)
                (mask,) = prune([w], [mask], [count])
                differing += unequal(mask, module.weight_mask.bool().numpy())
                differing += unequal(np.where(mask, w, 0), module.weight.detach().numpy())
                entries += 2 * mask.size
    table.add("l1_unstructured, 10 rounds: mask and weight entries that differ", entries, differing, EXACT)


def check_global(table: Table, rng: np.random.Generator) -> None:
    """global_unstructured: all layers compete."""
    import torch
    from torch.nn.utils.prune import L1Unstructured, global_unstructured

    differing = entries = 0
    for _ in range(30):
        weights = [rng.standard_normal(shape) * 10.0 ** rng.uniform(-1, 1) for shape in SHAPES]
        modules = [torch.nn.Module() for _ in weights]
        for module, w in zip(modules, weights, strict=True):
            module.weight = torch.nn.Parameter(torch.from_numpy(w))
        count = int(sum(w.size for w in weights) * rng.uniform(0, 1))
        global_unstructured([(m, "weight") for m in modules], L1Unstructured, amount=count)
        masks = prune(weights, [np.ones(w.shape, bool) for w in weights], [count], "global")
        for mask, module in zip(masks, modules, strict=True):
            differing += unequal(mask, module.weight_mask.bool().numpy())
            entries += mask.size
    table.add("global_unstructured: mask entries that differ", entries, differing, EXACT)


def check_sparsifier(table: Table, rng: np.random.Generator) -> None:
    """WeightNormSparsifier with blocks of one weight: the smallest squares go, round(level * size) of them."""
    import torch
    from torch.ao.pruning import WeightNormSparsifier

    differing = entries = 0
    for rows, columns in ((32, 64), (5, 7), (100, 10)):
        for level in (0.1, 0.5, 0.8, 0.97):
            model = torch.nn.Sequential(torch.nn.Linear(columns, rows, bias=False)).double()
            w = rng.standard_normal((rows, columns))
            model[0].weight.data = torch.from_numpy(w)
            sparsifier = WeightNormSparsifier(sparsity_level=level, sparse_block_shape=(1, 1), zeros_per_block=1)
            sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
            sparsifier.step()
            (mask,) = prune([w], [np.ones(w.shape, bool)], [round(level * w.size)])
            differing += unequal(mask, model[0].parametrizations.weight[0].mask.bool().numpy())
            entries += mask.size
    table.add("WeightNormSparsifier: mask entries that differ", entries, differing, EXACT)


if __name__ == "__main__":
    main("Magnitude pruning in PyTorch", ("torch",), check)
