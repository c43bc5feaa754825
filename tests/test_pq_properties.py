"""What must hold of the PQ index, the bound and the counts for *every* vector: searched by hypothesis."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from refsnn.pq import GUARD_ULPS, measure, pq_index, retained_bound, rewiring_count

quick = settings(max_examples=60, deadline=None, database=None)

TOLERANCE = 1e-12
weights = st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 1e3)), min_size=2, max_size=30).map(np.array)
orders = st.tuples(st.floats(0.1, 1.0), st.floats(1.0, 4.0)).filter(lambda order: order[1] - order[0] > 0.1)
any_orders = st.tuples(st.floats(0.1, 4.0), st.floats(0.2, 5.0)).filter(lambda order: order[1] - order[0] > 0.1)


def pq_mean_form(w, p, q):
    """1 − M_p / M_q without the house's scaling and logarithms, for orders that pq_index would warn about."""
    w = np.abs(w) / np.max(np.abs(w))
    return 1 - np.mean(w**p) ** (1 / p) / np.mean(w**q) ** (1 / q)


# --- The six properties, as predicates of any index, so that each can be seen to reject a wrong one ------------------


def robin_hood(index, w, share):
    """D1: a gift from the largest to the smallest, less than their difference, never raises the index."""
    rich, poor = int(np.argmax(w)), int(np.argmin(w))
    after = w.copy()
    after[rich] -= share * (w[rich] - w[poor])
    after[poor] += share * (w[rich] - w[poor])
    return index(after) <= index(w) + TOLERANCE


def scaling(index, w, factor):
    """D2"""
    return abs(index(factor * w) - index(w)) <= TOLERANCE


def rising_tide(index, w, water):
    """D3: strictly lower, where the weights are not all nearly equal."""
    if w.max() < 1.1 * w.min() + 1e-3:
        return index(w + water) <= index(w) + TOLERANCE
    return index(w + water) < index(w)


def cloning(index, w, times):
    """D4"""
    return abs(index(np.tile(w, times)) - index(w)) <= TOLERANCE


def bill_gates(index, w, growth):
    """P1: from where one weight is the largest on, its growth raises the index, unless no other is left (one-hot).

    dI/dw_i has the sign of Σ_j w_j^p (w_i^(q−p) − w_j^(q−p)): positive as soon as w_i is the largest of them.
    """
    richer = w.copy()
    richer[int(np.argmax(w))] += growth * w.max()
    if np.count_nonzero(w) == 1:
        return abs(index(richer) - index(w)) <= TOLERANCE
    return index(richer) > index(w)


def babies(index, w, zeros):
    """P2"""
    return index(np.concatenate([w, np.zeros(zeros)])) > index(w)


PROPERTIES = {
    robin_hood: st.floats(0.01, 0.99),
    scaling: st.floats(1e-6, 1e6),
    rising_tide: st.floats(1.0, 100.0),
    cloning: st.integers(2, 5),
    bill_gates: st.floats(0.1, 10.0),
    babies: st.integers(1, 20),
}


@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
def test_six_properties(holds):
    @quick
    @given(weights, orders, PROPERTIES[holds])
    def search(w, order, argument):
        assume(w.max() > 0)
        assert holds(lambda v: pq_index(v, *order), w, argument)

    search()


WRONG = {  # an index without the property, a vector and an argument that show it
    robin_hood: (lambda w: pq_mean_form(w, 0.2, 0.8), [10.0] + [0.1] * 101, 0.5),
    scaling: (lambda w: 1 - w.mean() / (1 + np.sqrt(np.mean(w**2))), [1.0, 2.0], 3.0),
    rising_tide: (lambda w: float(np.std(w)), [1.0, 2.0], 1.0),
    cloning: (lambda w: 1 - np.sqrt(w).sum() ** 2 / w.sum() / 100, [1.0, 2.0], 2),
    bill_gates: (lambda w: float(np.mean(w < w.max())), [1.0, 2.0], 1.0),
    babies: (lambda w: 1 - np.sqrt(w).sum() ** 2 / w.sum() / 100, [1.0, 2.0], 3),
}


@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
def test_each_property_rejects_a_wrong_index(holds):
    index, w, argument = WRONG[holds]
    assert not holds(index, np.array(w), argument)


# --- Range and bound --------------------------------------------------------------------------------------------------


@quick
@given(weights, orders)
def test_index_lies_between_constant_and_one_hot(w, order):
    p, q = order
    assert 0 <= pq_index(w, p, q) <= 1 - w.size ** (1 / q - 1 / p) + TOLERANCE


@quick
@given(weights, any_orders)
def test_bound_holds_for_every_r_with_its_own_eta(w, order):
    """r ≥ d (1 + η_r)^(−q/(q−p)) (1 − I)^(pq/(q−p)), for any 0 < p < q, also where D1 fails."""
    assume(w.max() > 0)
    p, q = order
    d, index = w.size, min(max(pq_mean_form(w, p, q), 0.0), 1.0)
    mass = np.sort(w / w.max())[::-1] ** p
    for r in range(1, d + 1):
        eta = mass[r:].sum() / mass[:r].sum()
        assert retained_bound(float(d), index, p, q, eta) <= r * (1 + 1e-9)


def test_the_bound_is_tight_and_false_for_a_smaller_eta():
    w = np.array([1.0] * 6 + [0.0] * 4)
    assert retained_bound(10.0, pq_index(w), eta=0.0) == pytest.approx(6)  # equality at r = 6: η_6 = 0
    assert retained_bound(10.0, pq_index(w), eta=0.0) > 5  # r = 5 needs its own η, 1/5
    assert retained_bound(10.0, pq_index(w), eta=1 / 5) <= 5


# --- All units at once, and counts ------------------------------------------------------------------------------------


@quick
@given(st.lists(weights, min_size=1, max_size=6), orders, st.randoms(use_true_random=False))
def test_measure_agrees_with_one_unit_at_a_time(vectors, order, random):
    p, q = order
    entries = [(u, x) for u, w in enumerate(vectors) for x in w]
    random.shuffle(entries)
    unit, data = np.array([u for u, _ in entries]), np.array([x for _, x in entries])
    got = measure(data, unit, len(vectors) + 1, p=p, q=q)
    for u, w in enumerate(vectors):
        assert got.d[u] == w.size
        assert abs(got.index[u] - pq_index(w, p, q)) <= 1e-12
    assert (got.d[-1], got.index[-1], got.count[-1]) == (0, 0, 0)
    for array in vars(got).values():
        assert np.all(np.isfinite(array))


@quick
@given(st.integers(0, 10**6), st.floats(0, 1), st.sampled_from(["integer", "exact", "float32"]))
def test_count_never_negative_nor_past_the_cap(d, share, rounding):
    count = rewiring_count(d, share * d, rounding=rounding)
    assert 0 <= count <= max(9 * d // 10, 0)


@quick
@given(st.integers(1, 10**6), st.floats(0, 1.1))
def test_integer_count_is_eq_4_in_exact_arithmetic(d, share):
    """With γ = 1 the definition needs no rounding at all: rationals give the answer, save within the guard."""
    bound = share * d
    exact = min(Fraction(d) - Fraction(bound), Fraction(9 * d, 10))
    nearest = round(Fraction(bound))
    assume(bound == nearest or abs(bound - nearest) > 2 * GUARD_ULPS * np.spacing(float(d)))
    assert rewiring_count(d, bound) == max(0, exact.__floor__())
