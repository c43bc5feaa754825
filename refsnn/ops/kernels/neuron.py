"""Kernels of the neuron: features in parallel, time inside, the batch as the vector.

The charge of step t needs what step t-1 left, so time cannot be the vector and stays inside: a feature's T x B numbers
are contiguous and pass through the first-level cache once. One loop over the batch does charge, fire and reset.
The options become coefficients, exact ones, instead of branches in that loop (0 and 1 lose nothing in a product):

    reset     v = (1 - s erase) h + s put     hard: erase 1, put v_reset; soft: erase 0, put -reset_amount; none: 0, 0
    backward  ds + dv (a - b h)               hard: a v_reset, b 1; soft: a -reset_amount, b 0; detached or none: 0, 0

and every constant has the array's dtype: for finite numbers, bit for bit the definition.

Gained on one core (float32, T 4): forward 3 to 5 times, backward 2 to 4; beyond the cache both are bound by memory,
most of it fresh pages of the outputs, and gain 2. Tried: a call per row of the batch instead of one per feature, and
separate loops for charge, fire and reset, cost three times as much.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, prange

Array = npt.NDArray[Any]

HARD, SOFT = 0, 1                                   # positions in the Literals of the definitions
AT_THRESHOLD = 1
SPIKINGJELLY, SPIKINGJELLY_FULL_INPUT, NORSE, SNNTORCH = 1, 2, 3, 4
BLOCK = 64                                          # features that share one scratch row


@njit(cache=True, error_model="numpy")
def _fire(h: float, threshold: float, tie: bool, zero: float, one: float) -> float:
    """Eq. (6) for one membrane; tie: also exactly at the threshold."""
    return one if (h > threshold) | (tie & (h == threshold)) else zero


@njit(cache=True, error_model="numpy")
def _feature_forward(
    x: Array, s: Array, h: Array, v: Array, decay: float, gain: float, bias: float, v_threshold: float, v_reset: float,
    erase: float, put: float, tie: bool, form: int,
) -> None:
    """All steps of one feature: x, s, h (T, B); v (B,) holds v_init, then v[t]; "snntorch" keeps s theta there."""
    dtype = x.dtype
    zero, one, threshold, rest = dtype.type(0), dtype.type(1), dtype.type(v_threshold), dtype.type(v_reset)
    left, scale, constant = dtype.type(decay), dtype.type(gain), dtype.type(bias)
    if form == SPIKINGJELLY:
        tau = dtype.type(1 / gain)
        for t in range(x.shape[0]):
            for b in range(v.size):
                u = v[b] + (x[t, b] - (v[b] - rest)) / tau
                a = _fire(u, threshold, tie, zero, one)
                h[t, b], s[t, b], v[b] = u, a, (one - a * erase) * u + a * put
    elif form == SPIKINGJELLY_FULL_INPUT:
        tau = dtype.type(1 / (1 - decay))
        for t in range(x.shape[0]):
            for b in range(v.size):
                u = v[b] - (v[b] - rest) / tau + x[t, b]
                a = _fire(u, threshold, tie, zero, one)
                h[t, b], s[t, b], v[b] = u, a, (one - a * erase) * u + a * put
    elif form == NORSE:
        leak = dtype.type(bias / gain)
        for t in range(x.shape[0]):
            for b in range(v.size):
                u = v[b] + scale * ((leak - v[b]) + x[t, b])
                a = _fire(u, threshold, tie, zero, one)
                h[t, b], s[t, b], v[b] = u, a, (one - a * erase) * u + a * put
    elif form == SNNTORCH:
        for t in range(x.shape[0]):
            for b in range(v.size):
                before = v[b] if t == 0 else h[t - 1, b]
                u = left * before + x[t, b] - (zero if t == 0 else v[b])
                a = _fire(u, threshold, tie, zero, one)
                h[t, b], s[t, b], v[b] = u, a, a * threshold
    else:
        for t in range(x.shape[0]):
            for b in range(v.size):
                u = left * v[b] + scale * x[t, b] + constant
                a = _fire(u, threshold, tie, zero, one)
                h[t, b], s[t, b], v[b] = u, a, (one - a * erase) * u + a * put


@njit(cache=True, parallel=True, error_model="numpy")
def lif_forward_kernel(
    x: Array, decay: float, gain: float, bias: float, v_threshold: float, v_reset: float, reset_amount: float,
    v_init: float, reset: int, compare: int, form: int,
) -> tuple[Array, Array]:
    """Kernel of `lif_forward`."""
    if form == SNNTORCH and reset != SOFT:
        raise ValueError("form snntorch contains its reset: it needs reset soft")
    steps, batch = x.shape[-2], x.shape[-1]
    features = x.size // max(1, steps * batch)
    shape = (features, steps, batch)
    s, h = np.empty_like(x), np.empty_like(x)
    xs, ss, hs = x.reshape(shape), s.reshape(shape), h.reshape(shape)
    start = x.dtype.type(v_init)
    erase = x.dtype.type(1.0 if reset == HARD else 0.0)
    put = x.dtype.type(v_reset if reset == HARD else -reset_amount if reset == SOFT else 0.0)
    for block in prange((features + BLOCK - 1) // BLOCK):
        v = np.empty(batch, x.dtype)
        for f in range(block * BLOCK, min(features, (block + 1) * BLOCK)):
            v[:] = start
            _feature_forward(xs[f], ss[f], hs[f], v, decay, gain, bias, v_threshold, v_reset, erase, put,
                             compare == AT_THRESHOLD, form)
    return s, h


@njit(cache=True, error_model="numpy")
def _rows(a: Array | None, like: Array) -> Array:
    """(..., T, B) -> (F, T, B); None -> an empty array, because a prange may silently ignore one of optional type."""
    if a is None:
        return np.empty((0, like.shape[1], like.shape[2]), like.dtype)
    return a.reshape(like.shape)


@njit(cache=True, error_model="numpy")
def _feature_backward(
    dx: Array, ds: Array, h: Array, s: Array, slope: Array, carry: Array, f: int, dhs: Array, dvs: Array,
    left: float, scale: float, erase: float, through: float, put: float,
) -> None:
    """All steps of feature f: dx, ds, h, s, slope (T, B); carry (B,) starts at 0; dhs, dvs (F, T, B) or empty."""
    one = h.dtype.type(1)
    for t in range(h.shape[0] - 1, -1, -1):
        if dvs.shape[0] > 0:
            for b in range(carry.size):
                carry[b] += dvs[f, t, b]
        if dhs.shape[0] == 0:                       # training's case, without the test in the loop: 1.5 times faster
            for b in range(carry.size):
                spike = ds[t, b] + carry[b] * (put - through * h[t, b])
                g = carry[b] * (one - erase * s[t, b]) + spike * slope[t, b]
                dx[t, b] = scale * g
                carry[b] = left * g
        else:
            for b in range(carry.size):
                spike = ds[t, b] + carry[b] * (put - through * h[t, b])
                g = carry[b] * (one - erase * s[t, b]) + spike * slope[t, b] + dhs[f, t, b]
                dx[t, b] = scale * g
                carry[b] = left * g


@njit(cache=True, parallel=True, error_model="numpy")
def lif_backward_kernel(
    ds: Array, h: Array, s: Array, slope: Array, decay: float, gain: float, v_reset: float, reset_amount: float,
    reset: int, detach_reset: bool, dh: Array | None = None, dv: Array | None = None,
) -> Array:
    """Kernel of `lif_backward`."""
    steps, batch = h.shape[-2], h.shape[-1]
    features = h.size // max(1, steps * batch)
    shape = (features, steps, batch)
    dtype = h.dtype
    dx = np.empty_like(h)
    dxs, dss, hs, ss = dx.reshape(shape), ds.reshape(shape), h.reshape(shape), s.reshape(shape)
    slopes = slope.reshape(shape)
    dhs, dvs = _rows(dh, hs), _rows(dv, hs)
    zero, one, left, scale = dtype.type(0), dtype.type(1), dtype.type(decay), dtype.type(gain)
    erase = one if reset == HARD else zero
    through = zero if detach_reset else erase                   # how much of h the reset takes away per spike
    put = zero if detach_reset else dtype.type(v_reset if reset == HARD else -reset_amount if reset == SOFT else 0.0)
    for block in prange((features + BLOCK - 1) // BLOCK):
        carry = np.empty(batch, dtype)
        for f in range(block * BLOCK, min(features, (block + 1) * BLOCK)):
            carry[:] = zero
            _feature_backward(dxs[f], dss[f], hs[f], ss[f], slopes[f], carry, f, dhs, dvs, left, scale, erase, through,
                              put)
    return dx
