"""Pruning by the PQ index as its authors compute it (Diao et al., ICLR 2023), written anew in PyTorch.

What is theirs and decides the last digit: norms and index in the tensor's dtype, the index as a difference over the
larger norm, the bound rounded up before the ratio is formed, the ratio in floating point, the count floored again, and
everything *below* the weight of that rank dropped (of equal magnitudes at the cut none goes). Nothing of refsnn is
imported.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Pruned:
    """Per row: the index, the bound before and after rounding up, the count, and the mask of what is left."""

    index: Tensor
    bound: Tensor
    retained: Tensor
    count: Tensor
    kept: Tensor


def prune(w: Tensor, mask: Tensor, p: float = 0.5, q: float = 1.0, eta: float = 1e-3, gamma: float = 1.0,
          beta: float = 0.9) -> Pruned:
    """Prune each row of w (rows, places), whose active places are `mask`, in the dtype of w.

    A row is a neuron, or a whole layer, or the whole network laid flat: the three scopes differ in the rows only.
    """
    w = torch.where(mask, w, 0.0)
    d = mask.to(w.dtype).sum(1)
    small = torch.linalg.vector_norm(w, p, dim=1)
    large = torch.linalg.vector_norm(w, q, dim=1)
    index = (large - d ** (1 / q - 1 / p) * small) / large
    bound = d * (1 + eta) ** (q / (p - q)) * (1 - index) ** (q * p / (q - p))
    retained = bound.ceil()
    share = (gamma * (1 - retained / d)).clamp(0, beta)
    count = (d * share).floor().long()
    ordered = torch.where(mask, w.abs(), torch.nan).sort(dim=1).values      # inactive places last
    cut = ordered.gather(1, count[:, None])
    return Pruned(index, bound, retained, count, mask & ~(w.abs() < cut))
