"""The paper, part I: how compressible a set of weights is, and how many of them may therefore go.

Three equations of Shen et al. (ICLR 2025), which take them from Diao et al. (ICLR 2023, called SAP below), turn the
active weights w of one unit (a layer, or a neuron) into a number of connections to remove. d is how many there are.

    (2)  I = 1 − d^(1/q − 1/p) · ‖w‖_p / ‖w‖_q ,    0 < p < q        the PQ index        pq_index
    (3)  r = d (1 + η)^(−q/(q−p)) (1 − I)^(pq/(q−p))                 weights to retain   retained_bound
    (4)  count = floor( d · min(γ (1 − r/d), β) )                    weights to remove   rewiring_count

`measure` evaluates all three for every unit of a network at once. The paper speaks of the rewiring ratio c, which it
counts per *possible* connection, c = count / N with N the size of the dense tensor; `Measurement.ratio` is per *active*
one, count / d. Both are one division away from the count, and the count is what is acted upon.

What the index measures
-----------------------
The factor d^(1/q − 1/p) turns the two norms into power means, M_s = ((1/d) Σ|w_i|^s)^(1/s), so eq. (2) is
I = 1 − M_p / M_q. The power mean grows with its order, so I ≥ 0, and I = 0 only when all |w_i| are equal (nothing
to compress). The other extreme is a single non-zero weight, I = 1 − d^(1/q − 1/p). The scale of w drops out.

Where the bound comes from
--------------------------
Keep the r largest |w_i| (the set K) and call η_r the p-mass left behind relative to the p-mass kept,
Σ_{i∉K} |w_i|^p = η_r Σ_{i∈K} |w_i|^p. Then

    ‖w‖_p^p = (1 + η_r) Σ_{i∈K} |w_i|^p
            ≤ (1 + η_r) r^(1 − p/q) (Σ_{i∈K} |w_i|^q)^(p/q)          Hölder, exponents q/p and q/(q−p)
            ≤ (1 + η_r) r^(1 − p/q) ‖w‖_q^p .

Solved for r, and with ‖w‖_p / ‖w‖_q = (1 − I) d^(1/p − 1/q) put in, this is r ≥ (3) at η = η_r, true for *every* r.
The method fixes η instead (the paper's α_r = 0.001) and reads (3) as an estimate of r: then it is a heuristic. A
larger η lowers r, so η > 0 removes slightly more than η = 0.

d cancels in eq. (3): d · d^((1/q − 1/p) · pq/(q−p)) = d · d^(−1) = 1, hence r = (1 + η)^(−q/(q−p)) · n with

    n = (‖w‖_p / ‖w‖_q)^(pq/(q−p))

the *effective number of weights*. For (p, q) = (1, 2) it is the participation ratio (Σ|w|)² / Σw², for the default
(0.5, 1) it is (Σ√|w|)² / Σ|w|. d equal weights have n = d, k equal weights among zeros n = k: appending zeros to w
changes d and I, never r. Whoever keeps r weights keeps as many as the vector effectively has.

Six properties of a measure of sparsity
---------------------------------------
Hurley and Rickard (2009) ask, for w ≥ 0, that sparsity
    D1  Robin Hood     falls when a larger weight gives to a smaller one (by less than their difference);
    D2  scaling        does not change when all weights are multiplied by the same positive number;
    D3  rising tide    falls when the same positive number is added to all weights (unless all are equal);
    D4  cloning        does not change when the vector is repeated;
    P1  Bill Gates     rises as one weight grows, once that weight is large enough;
    P2  babies         rises when zeros are appended.
SAP states all six for every 0 < p < q. D1 does not hold that widely: a gift from large to small raises Σ|w|^s when
s < 1 (concave) and lowers it when s > 1 (convex), so M_p / M_q is sure to rise only if p ≤ 1 ≤ q. With both orders on
one side of 1 both means move the same way, and gifts exist after which I is *larger* ((1.5, 2), (1.2, 3), (0.2, 0.8):
vectors in tests/test_pq.py). `pq_index` and `measure` therefore warn outside p ≤ 1 ≤ q. Eq. (3) holds there too.

Two misprints of eq. (2)
------------------------
The displayed equation carries a minus sign in the place of the fraction bar. Norms would then be subtracted from a
pure number: doubling all weights would change the index, against D2. The form in the running text has the exponent's
sign flipped, d^(1/p − 1/q): a constant vector would get 1 − d^(2/p − 2/q) instead of 0, which falls without limit as
d grows. The form above is SAP's, and the only one of the three that is scale-free, 0 for constants and never negative.

Default p = 0.5, q = 1: not printed in the paper. It is SAP's default, and it makes r/d = 0.8455 for normal weights,
the factor between successive densities in the paper's layer-wise figures.
"""

import warnings
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Rounding = Literal["integer", "exact", "float32"]
Number = TypeVar("Number", float, Array)

#: q − p may not be less than this share of q. Eq. (3) raises a rounded number to the power q/(q−p), which multiplies
#: its relative error and, worse, gives η the weight (1 + η)^(−1000): at p → q the bound says nothing about w.
ORDER_GAP = 1e-3

#: A real number within this many ulp *of d* of an integer is that integer, for ceil and floor. d equal weights have
#: r = d and k equal weights among zeros have r = k (η = 0), but eq. (2) rounds 1 − I to an ulp of 1, hence r to an ulp
#: of d: without the guard ceil would keep one weight too many. At d = 1000 the guard is 9e-13 wide.
GUARD_ULPS = 8


@dataclass(frozen=True)
class Measurement:
    """What eqs. (2) to (4) say of every unit. All arrays (units,).

    | Field  | Unit              | Meaning                                              |
    |--------|-------------------|------------------------------------------------------|
    | d      | connections (int) | active connections                                   |
    | norm_p | that of w         | ‖w‖_p (inf where it exceeds the range of float64)    |
    | norm_q | that of w         | ‖w‖_q                                                |
    | index  | 1                 | PQ index I, eq. (2)                                  |
    | bound  | connections       | lower bound r on the connections to retain, eq. (3)  |
    | count  | connections (int) | connections to remove, eq. (4)                       |
    | ratio  | 1                 | count / d, 0 where d = 0; the paper's c is count / N |
    """

    d: Array
    norm_p: Array
    norm_q: Array
    index: Array
    bound: Array
    count: Array
    ratio: Array


def pq_index(w: npt.ArrayLike, p: float = 0.5, q: float = 1.0) -> float:
    """PQ index of the active weights of one unit: 0 for equal magnitudes, near 1 for a few large ones among many small.

        I = 1 − d^(1/q − 1/p) · ‖w‖_p / ‖w‖_q                                                              eq. (2)

    w: the *active* weights, any shape; an active weight that happens to be 0 belongs to them, a pruned one does not.
    Defined everywhere: 0 for no weights, for weights that are all 0, for a single weight and for equal magnitudes.
    Computed in float64 whatever the dtype of w.

    | Parameter | Default | Unit | Meaning                                           |
    |-----------|---------|------|---------------------------------------------------|
    | p         | 0.5     | 1    | smaller order, of the norm above the fraction bar |
    | q         | 1       | 1    | larger order, of the norm below it                |

    Raises ValueError for weights that are NaN or infinite and for orders that are not 0 < p < q or too close
    (`ORDER_GAP`). Warns outside p ≤ 1 ≤ q (property D1). Source: paper eq. (2), corrected as told above.
    """
    _check_orders(p, q)
    _warn_outside_robin_hood(p, q)
    magnitude = _magnitude(w).ravel()
    peak = magnitude.max(initial=0.0)
    if peak == 0.0:
        return 0.0
    scaled = magnitude / peak  # in [0, 1]: no power can overflow, and each sum below lies in [1, d]
    return float(_index(np.sum(scaled**p), np.sum(scaled**q), np.float64(magnitude.size), p, q))


def retained_bound(d: Number, index: Number, p: float = 0.5, q: float = 1.0, eta: float = 1e-3) -> Number:
    """Lower bound r on the number of weights to retain, a real number between 0 and d.

        r = d (1 + η)^(−q/(q−p)) (1 − I)^(pq/(q−p))                                                        eq. (3)

    d, index: a unit's number of active weights and PQ index, or arrays (units,) of them. Returns the same form.

    | Parameter | Default | Unit | Meaning                                                         |
    |-----------|---------|------|-----------------------------------------------------------------|
    | p, q      | 0.5, 1  | 1    | the orders the index was computed with                          |
    | eta       | 0.001   | 1    | the paper's α_r: tolerated p-mass of the removed over the kept  |

    Raises ValueError unless 0 < p < q (`ORDER_GAP` apart), eta ≥ 0, d ≥ 0 and 0 ≤ index ≤ 1.
    Source: paper eq. (3); SAP, theorem on PQI-bounded pruning.
    """
    _check_orders(p, q)
    if not (np.isfinite(eta) and eta >= 0):
        raise ValueError(f"eta must be finite and not negative, got {eta}")
    if not (np.all(np.greater_equal(d, 0)) and np.all(np.greater_equal(index, 0)) and np.all(np.less_equal(index, 1))):
        raise ValueError("the bound needs d >= 0 and an index between 0 and 1")
    return d * (1 + eta) ** (-q / (q - p)) * (1 - index) ** (p * q / (q - p))


def rewiring_count(
    d: int, bound: float, gamma: float = 1.0, beta: float = 0.9, rounding: Rounding = "integer"
) -> int:
    """Number of weights of one unit to remove: `rewiring_counts` of a single unit."""
    return int(rewiring_counts(np.array([d]), np.array([bound]), gamma, beta, rounding)[0])


def rewiring_counts(
    d: Array, bound: Array, gamma: float = 1.0, beta: float = 0.9, rounding: Rounding = "integer"
) -> Array:
    """Number of weights to remove in each unit.

        count = floor( d · min(γ (1 − r/d), β) ) , at least 0                                              eq. (4)

    d (units,) active weights; bound (units,) the r of eq. (3). Returns (units,) int64, 0 where d = 0.

    | Parameter | Default   | Unit | Meaning                                                              |
    |-----------|-----------|------|----------------------------------------------------------------------|
    | gamma     | 1         | 1    | scales what the bound would remove                                   |
    | beta      | 0.9       | 1    | at most this fraction of the active weights goes                     |
    | rounding  | "integer" |      | how real numbers become counts:                                      |
    |           |           |      | "integer"  min(floor(γ (d − ceil(r))), floor(β d)): r is rounded up, |
    |           |           |      |            then only integers are subtracted                         |
    |           |           |      | "exact"    eq. (4) to the letter, r stays real, in float64           |
    |           |           |      | "float32"  the float32 operations of SAP's code, for comparisons     |

    SAP rounds r up first and then evaluates floor(d · (1 − ceil(r)/d)). That ought to be d − ceil(r), but the quotient
    and the difference are rounded, and for a fifth of all pairs d, ceil(r) the product falls short of the integer, in
    float64 (19 %) and in float32, though not for the same pairs: one connection fewer goes, for no reason but the
    arithmetic. Hence "integer". A product that only rounding keeps from an integer is that integer (`GUARD_ULPS`).

    Raises ValueError for gamma < 0, beta outside [0, 1], d < 0, a bound that is negative or NaN, an unknown rounding.
    Source: paper eq. (4); rounding: SAP's published code.
    """
    if not (gamma >= 0 and 0 <= beta <= 1):
        raise ValueError(f"eq. (4) needs gamma >= 0 and 0 <= beta <= 1, got gamma = {gamma}, beta = {beta}")
    if not (np.all(d >= 0) and np.all(bound >= 0)):
        raise ValueError("eq. (4) needs d >= 0 and a bound that is not negative")
    some = np.maximum(d, 1)  # in place of d where it divides: r = 0 and count = 0 there
    if rounding == "integer":
        retained = guarded_ceil(bound, d)
        count = np.minimum(guarded_floor(gamma * (d - retained), d), guarded_floor(beta * d, d))
    elif rounding == "exact":
        count = np.floor(d * np.minimum(gamma * (1 - bound / some), beta))
    elif rounding == "float32":
        retained, d32 = np.ceil(bound.astype(np.float32)), d.astype(np.float32)
        ratio = np.float32(gamma) * (np.float32(1) - retained / some.astype(np.float32))
        count = np.floor(d32 * np.clip(ratio, np.float32(0), np.float32(beta)))
    else:
        raise ValueError(f'rounding is "integer", "exact" or "float32", got {rounding!r}')
    return np.maximum(count, 0).astype(np.int64)


def measure(
    data: Array,
    unit: Array,
    units: int,
    *,
    p: float = 0.5,
    q: float = 1.0,
    eta: float = 1e-3,
    gamma: float = 1.0,
    beta: float = 0.9,
    rounding: Rounding = "integer",
) -> Measurement:
    """Eqs. (2) to (4) for all units of a scope at once; the end of Stage I in Algorithm 1.

    data (nnz,) the active weights; unit (nnz,) int, the unit of each, in any order; units: how many units there are,
    the empty ones included. The parameters are those of `pq_index`, `retained_bound` and `rewiring_counts`, and so are
    the results, to rounding. A unit without weights, or with nothing but zeros, has index 0, retains all d and loses
    none: no magnitude tells its weights apart.

    Each sum runs over a unit's weights in the order of `data`, in float64 (np.bincount; np.add.reduceat would give an
    empty unit the first weight of the next one).

    Raises ValueError as those functions do, and if data and unit do not match or a unit is not in 0 … units − 1.
    """
    _check_orders(p, q)
    _warn_outside_robin_hood(p, q)
    magnitude = _magnitude(data)
    if magnitude.ndim != 1 or magnitude.shape != unit.shape:
        raise ValueError(f"data {magnitude.shape} and unit {unit.shape} must be vectors of the same length")
    if unit.size and not (unit.min() >= 0 and unit.max() < units):
        raise ValueError(f"units are numbered 0 to {units - 1}, got {unit.min()} to {unit.max()}")

    d = np.bincount(unit, minlength=units)
    peak = np.zeros(units)
    np.maximum.at(peak, unit, magnitude)
    alive = peak > 0  # the others: no weights, or all zero
    scaled = magnitude / np.where(alive, peak, 1.0)[unit]
    sum_p = np.where(alive, np.bincount(unit, weights=scaled**p, minlength=units), 1.0)
    sum_q = np.where(alive, np.bincount(unit, weights=scaled**q, minlength=units), 1.0)

    index = np.where(alive, _index(sum_p, sum_q, np.where(alive, d, 1), p, q), 0.0)  # eq. (2)
    bound = np.where(alive, retained_bound(d, index, p, q, eta), d)  # eq. (3)
    count = rewiring_counts(d, bound, gamma, beta, rounding)  # eq. (4)
    with np.errstate(over="ignore"):
        norm_p, norm_q = peak * sum_p ** (1 / p), peak * sum_q ** (1 / q)
    return Measurement(d, norm_p, norm_q, index, bound, count, ratio=count / np.maximum(d, 1))


def guarded_floor(x: Array, scale: Array) -> Array:
    """floor(x) as int64, where x within `GUARD_ULPS` ulp of `scale` of an integer is that integer. Shapes alike."""
    return np.floor(x + _guard(scale)).astype(np.int64)


def guarded_ceil(x: Array, scale: Array) -> Array:
    """ceil(x) as int64, where x within `GUARD_ULPS` ulp of `scale` of an integer is that integer. Shapes alike."""
    return np.ceil(x - _guard(scale)).astype(np.int64)


def _guard(scale: Array) -> Array:
    return np.asarray(GUARD_ULPS * np.spacing(np.maximum(scale, 1).astype(np.float64)))


def _index(sum_p: Any, sum_q: Any, d: Any, p: float, q: float) -> Any:
    """Eq. (2) as 1 − M_p / M_q, from Σ|w|^p, Σ|w|^q (each in [1, d], weights scaled by their maximum) and d.

    In logarithms, so that no order makes a mean underflow, and equal magnitudes give 0 without rounding. I ≥ 0 holds
    exactly for exact numbers: what is below 0 is rounding, and becomes 0.
    """
    log_mean_p = np.log(sum_p / d) / p
    log_mean_q = np.log(sum_q / d) / q
    return np.maximum(-np.expm1(log_mean_p - log_mean_q), 0.0)


def _magnitude(w: npt.ArrayLike) -> Array:
    magnitude = np.abs(np.asarray(w, dtype=np.float64))
    if not np.all(np.isfinite(magnitude)):
        bad = np.count_nonzero(~np.isfinite(magnitude))
        raise ValueError(f"{bad} of {magnitude.size} weights are NaN or infinite: their sparsity is not defined")
    return magnitude


def _check_orders(p: float, q: float) -> None:
    if not (np.isfinite(q) and 0 < p < q):
        raise ValueError(f"the PQ index needs 0 < p < q, both finite, got p = {p}, q = {q}")
    if q - p < ORDER_GAP * q:
        raise ValueError(f"p = {p} and q = {q} are too close: eq. (3) needs q - p to be at least {ORDER_GAP} q")


def _warn_outside_robin_hood(p: float, q: float) -> None:
    if not p <= 1 <= q:
        warnings.warn(
            f"the PQ index at p = {p}, q = {q} breaks property D1 (Robin Hood), which needs p <= 1 <= q",
            stacklevel=3,
        )
