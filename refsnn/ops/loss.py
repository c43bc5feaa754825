"""Losses: from the read-out of every time step to one number, and its gradient.

All take logits (K, T, B), the membrane-free output O(t) of the last layer for K classes, T steps and B samples, and
labels (B,), and return the loss, averaged over the batch, with its gradient (K, T, B). CE is the cross entropy

    CE(z, y) = log(sum_k exp z_k) - z_y ,         d CE / d z_k = softmax(z)_k - [k = y] .

| name | loss | source |
|---|---|---|
| tet | 1/T sum_t CE(O(t), y) | eq. (8); Deng et al. 2022 without its extra squared term |
| cross_entropy_mean | CE(1/T sum_t O(t), y) | the usual loss of spiking networks; TET's counterpart |
| mse_rate | 1/K sum_k (1/T sum_t O_k(t) - [k = y])^2 | rate against one-hot, as SpikingJelly's examples |

There are no kernels: K x T x B numbers are few. To add a loss: a function and a line in `LOSSES`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Loss = Callable[[Array, Array], tuple[float, Array]]


def tet(logits: Array, labels: Array) -> tuple[float, Array]:
    """Temporal efficient training, eq. (8): the mean over time of the cross entropy of every step.

        L = 1/(T B) sum_t sum_b CE(O[:, t, b], y[b])        dL/dO = (softmax(O) - onehot) / (T B)

    logits   (K, T, B)   O(t)
    labels   (B,)        int, the class of each sample, 0..K-1
    Returns (loss, dlogits (K, T, B)). Raises ValueError where a label is no class or the shapes do not fit.
    """
    target = one_hot(logits, labels)[:, np.newaxis, :]          # (K, 1, B), the same at every step
    losses, gradient = _cross_entropy(logits, target)
    return _mean(losses), gradient / losses.size


def cross_entropy_mean(logits: Array, labels: Array) -> tuple[float, Array]:
    """Cross entropy of the read-out's mean over time.

        L = 1/B sum_b CE(1/T sum_t O[:, t, b], y[b])        dL/dO(t) = (softmax(mean O) - onehot) / (T B)

    logits (K, T, B), labels (B,) int. Returns (loss, dlogits (K, T, B)), the gradient the same at every t.
    Raises ValueError where a label is no class or the shapes do not fit.
    """
    target = one_hot(logits, labels)
    losses, gradient = _cross_entropy(logits.mean(axis=1), target)
    return _mean(losses), _to_every_step(gradient / losses.size, logits)


def mse_rate(logits: Array, labels: Array) -> tuple[float, Array]:
    """Mean squared difference between the read-out's mean over time (the rate) and one-hot.

        L = 1/(K B) sum_k sum_b (r[k, b] - [k = y[b]])^2 ,  r = 1/T sum_t O(t)      dL/dO(t) = 2 (r - onehot) / (K B T)

    logits (K, T, B), labels (B,) int. Returns (loss, dlogits (K, T, B)), the gradient the same at every t.
    Raises ValueError where a label is no class or the shapes do not fit.
    """
    difference = logits.mean(axis=1) - one_hot(logits, labels)
    return _mean(difference * difference), _to_every_step(2 * difference / difference.size, logits)


def one_hot(logits: Array, labels: Array) -> Array:
    """(K, B): 1 at each sample's class, in the dtype of logits (K, T, B); labels (B,) int.

    Raises ValueError where labels are no integers, do not fit the batch, or lie outside 0..K-1.
    """
    classes, _, batch = logits.shape
    if labels.shape != (batch,) or labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be {batch} integers, one a sample, got {labels.dtype}{labels.shape}")
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        raise ValueError(f"label {labels[wrong][0]} is none of the {classes} classes 0..{classes - 1}")
    return (np.arange(classes)[:, np.newaxis] == labels).astype(logits.dtype)


def _cross_entropy(logits: Array, target: Array) -> tuple[Array, Array]:
    """CE over the first axis, one number per column, and softmax - target; the largest logit is taken out first."""
    shifted = logits - logits.max(axis=0)                       # exp of it never overflows
    exponential = np.exp(shifted)
    total = exponential.sum(axis=0)
    losses = np.log(total) - (shifted * target).sum(axis=0)
    return losses, exponential / total - target


def _mean(values: Array) -> float:
    return float(values.sum(dtype=np.float64)) / values.size


def _to_every_step(gradient: Array, logits: Array) -> Array:
    """(K, B) gradient of the mean over T steps -> (K, T, B) gradient of each step: 1/T of it everywhere."""
    steps = logits.shape[1]
    return np.repeat(gradient[:, np.newaxis, :] / steps, steps, axis=1)


LOSSES: dict[str, Loss] = {"tet": tet, "cross_entropy_mean": cross_entropy_mean, "mse_rate": mse_rate}
