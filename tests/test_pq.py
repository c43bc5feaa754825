"""PQ index, retained bound and count: values a person can check, edge cases, misprints, published reference values."""

import math
import warnings

import numpy as np
import pytest

from refsnn.pq import (
    GUARD_ULPS,
    ORDER_GAP,
    Measurement,
    guarded_ceil,
    guarded_floor,
    measure,
    pq_index,
    retained_bound,
    rewiring_count,
    rewiring_counts,
)

ORDERS = [(0.5, 1.0), (1.0, 2.0), (0.5, 2.0), (0.1, 1.0), (1.0, 1.5)]


@pytest.fixture
def rng():
    return np.random.default_rng(1)


def norm(w, order):
    return float(np.sum(np.abs(w) ** order) ** (1 / order))


def effective_number(w, p, q):
    return (norm(w, p) / norm(w, q)) ** (p * q / (q - p))


def one_unit(w, **parameters):
    w = np.asarray(w)
    return measure(w, np.zeros(w.size, dtype=int), 1, **parameters)


# --- eq. (2) ----------------------------------------------------------------------------------------------------------


def test_index_by_hand():
    # sum of roots 1 + 2 + 3 = 6, sum 14, d = 3: I = 1 - (36/9) / (14/3) = 1/7
    assert pq_index([1.0, -4.0, 9.0]) == pytest.approx(1 / 7, rel=1e-14)
    # (1, 2): participation ratio 8^2 / (9 + 25) over 2
    assert pq_index([3.0, 5.0], 1, 2) == pytest.approx(1 - math.sqrt(64 / 34 / 2), rel=1e-14)


@pytest.mark.parametrize(("p", "q"), ORDERS)
def test_index_is_eq_2_as_written(p, q, rng):
    w = rng.standard_normal(37)
    assert pq_index(w, p, q) == pytest.approx(1 - w.size ** (1 / q - 1 / p) * norm(w, p) / norm(w, q), rel=1e-11)


@pytest.mark.parametrize(("p", "q"), ORDERS)
@pytest.mark.parametrize("d", [1, 2, 10, 1000])
def test_extremes_of_the_index(p, q, d):
    assert pq_index(np.full(d, -0.37), p, q) == 0.0  # exactly: no rounding in the means of ones
    assert pq_index(np.eye(1, d), p, q) == pytest.approx(1 - d ** (1 / q - 1 / p), abs=1e-13)


@pytest.mark.parametrize("w", [[], np.zeros(5), [0.0], [3.0], [-1e-320]])
def test_index_is_zero_where_nothing_can_be_compared(w):
    assert pq_index(w) == 0.0


def test_rounding_never_makes_the_index_negative(rng):
    near_constant = 1 + 1e-12 * rng.standard_normal((200, 50))
    for w in near_constant:
        assert 0.0 <= pq_index(w) < 1e-15
        exact = 1 - w.size ** -1.0 * norm(w, 0.5) / norm(w, 1)  # the equation, unguarded
        assert abs(exact) < 1e-13
    assert any(1 - 50**-1.0 * norm(w, 0.5) / norm(w, 1) < 0 for w in near_constant)  # so the guard is needed


@pytest.mark.parametrize("scale", [1e300, 1e-300, 1e-308, 1.0])
def test_index_of_huge_and_tiny_weights(scale, rng):
    w = rng.uniform(0.1, 1, 50)
    assert pq_index(w * scale, 1, 2) == pytest.approx(pq_index(w, 1, 2), rel=1e-12)
    assert pq_index(w * scale) == pytest.approx(pq_index(w), rel=1e-12)


def test_squares_of_such_weights_leave_the_range_of_float64():
    with np.errstate(over="ignore", under="ignore"):
        assert np.isinf(np.sum(np.full(3, 1e300) ** 2))
        assert np.sum(np.full(3, 1e-300) ** 2) == 0.0
    assert pq_index([1e300, 1e300, 0.0], 1, 2) == pytest.approx(1 - math.sqrt(2 / 3), rel=1e-13)
    assert pq_index([1e-300, 1e-300, 0.0], 1, 2) == pytest.approx(1 - math.sqrt(2 / 3), rel=1e-13)


def test_denormal_weights_keep_their_index():
    smallest = 5e-324
    assert pq_index([smallest, 4 * smallest, 9 * smallest]) == pytest.approx(1 / 7, rel=1e-12)


def test_extreme_orders_do_not_become_nan():
    w = np.eye(1, 10**6)
    for p, q in [(1e-3, 2e-3), (1e-3, 1.0), (0.5, 500.0)]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            index = pq_index(w, p, q)
        assert 0.99 < index <= 1.0


def test_float32_weights_are_computed_in_float64(rng):
    w = rng.standard_normal(1000).astype(np.float32)
    assert pq_index(w) == pq_index(w.astype(np.float64))
    in_float32 = 1 - float(np.sum(np.sqrt(np.abs(w))) ** 2 / np.sum(np.abs(w)) / np.float32(w.size))
    assert pq_index(w) != in_float32


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_numbers_are_refused(bad):
    with pytest.raises(ValueError, match="1 of 3 weights are NaN or infinite"):
        pq_index([1.0, bad, 2.0])
    with pytest.raises(ValueError, match="1 of 3 weights are NaN or infinite"):
        one_unit([1.0, bad, 2.0])


@pytest.mark.parametrize(("p", "q"), [(1, 1), (2, 1), (0, 1), (-1, 1), (0.5, np.inf), (np.nan, 1), (0.5, np.nan)])
def test_orders_out_of_order_are_refused(p, q):
    calls = [lambda: pq_index([1.0], p, q), lambda: retained_bound(1, 0.0, p, q), lambda: one_unit([1.0], p=p, q=q)]
    for call in calls:
        with pytest.raises(ValueError, match="0 < p < q"):
            call()


def test_orders_too_close_are_refused_at_the_stated_gap():
    with pytest.raises(ValueError, match="too close"):
        pq_index([1.0, 2.0], 1 - 0.99 * ORDER_GAP, 1.0)
    assert 0 < pq_index([1.0, 2.0], 1 - 1.01 * ORDER_GAP, 1.0) < 1e-4


def test_warns_once_per_call_outside_p_1_q():
    for p, q in [(1.5, 2), (0.2, 0.8)]:
        for call in (lambda p=p, q=q: pq_index([1.0, 2.0], p, q), lambda p=p, q=q: one_unit([1.0, 2.0], p=p, q=q)):
            with pytest.warns(UserWarning, match="Robin Hood") as caught:
                call()
            assert len(caught) == 1
            assert caught[0].filename == __file__  # the line that asked, not one of refsnn
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for p, q in ORDERS:
            pq_index([1.0, 2.0], p, q)
        retained_bound(2, 0.1, 1.5, 2)  # eq. (3) is true for any orders


# (p, q), a vector, and the same after its first weight gave `gift` to the second: yet the index is larger.
ROBIN_HOOD_FAILS = [
    ((1.5, 2.0), [3.0, 0.0, 10.0], 1.0),
    ((1.2, 3.0), [3.0, 0.0, 10.0], 1.0),
    ((0.2, 0.8), [3000.0, 1000.0, *[1.0] * 100], 500.0),
]


@pytest.mark.parametrize(("orders", "before", "gift"), ROBIN_HOOD_FAILS)
def test_robin_hood_fails_outside_p_1_q(orders, before, gift):
    after = [before[0] - gift, before[1] + gift, *before[2:]]
    assert gift < before[0] - before[1]
    with pytest.warns(UserWarning, match="Robin Hood"):
        assert pq_index(after, *orders) > pq_index(before, *orders) + 1e-4
    assert pq_index(after) < pq_index(before)  # and holds at the default orders


# --- The misprints of eq. (2) -----------------------------------------------------------------------------------------


def printed(w, p=0.5, q=1.0):
    """The displayed equation, a minus sign for the fraction bar."""
    return 1 - w.size ** (1 / q - 1 / p) * norm(w, p) - norm(w, q)


def printed_grouped(w, p=0.5, q=1.0):
    """The same, with the factor applied to both norms."""
    return 1 - w.size ** (1 / q - 1 / p) * (norm(w, p) - norm(w, q))


def in_text(w, p=0.5, q=1.0):
    """The form in the running text, the exponent's sign flipped."""
    return 1 - w.size ** (1 / p - 1 / q) * norm(w, p) / norm(w, q)


def test_the_printed_minus_sign_cannot_be_meant(rng):
    w = rng.standard_normal(64)
    for form in (printed, printed_grouped):
        assert abs(form(2 * w) - form(w)) > 0.1  # not scale invariant
        assert form(np.full(64, 0.5)) < -1  # not an index between 0 and 1, and not 0 for constants
    assert pq_index(2 * w) == pytest.approx(pq_index(w), rel=1e-13)


def test_the_flipped_exponent_cannot_be_meant():
    for d in (2, 10, 100):
        assert in_text(np.ones(d)) == pytest.approx(1 - d**2, rel=1e-12)  # 1 - d^(2/p - 2/q), should be 0
        assert pq_index(np.ones(d)) == 0.0


# --- eq. (3) ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "q"), ORDERS)
@pytest.mark.parametrize("eta", [0.0, 1e-3, 0.5])
def test_d_cancels_the_bound_is_an_effective_number_of_weights(p, q, eta, rng):
    w = rng.standard_normal(100)
    padded = np.concatenate([w, np.zeros(50)])
    expected = (1 + eta) ** (-q / (q - p)) * effective_number(w, p, q)
    assert retained_bound(100, pq_index(w, p, q), p, q, eta) == pytest.approx(expected, rel=1e-11)
    assert retained_bound(150, pq_index(padded, p, q), p, q, eta) == pytest.approx(expected, rel=1e-11)


def test_effective_number_is_the_participation_ratio_at_1_2(rng):
    w = np.abs(rng.standard_normal(100))
    assert retained_bound(100, pq_index(w, 1, 2), 1, 2, 0.0) == pytest.approx(w.sum() ** 2 / (w**2).sum(), rel=1e-12)
    assert retained_bound(100, pq_index(w), eta=0.0) == pytest.approx(np.sqrt(w).sum() ** 2 / w.sum(), rel=1e-12)


@pytest.mark.parametrize(("d", "k"), [(10, 3), (10, 10), (1000, 7), (64, 1), (100_000, 99_999)])
def test_k_equal_weights_among_zeros_count_k(d, k):
    w = np.zeros(d)
    w[:k] = 0.3
    assert retained_bound(d, pq_index(w), eta=0.0) == pytest.approx(k, abs=GUARD_ULPS * np.spacing(float(d)))
    assert one_unit(w, eta=0.0, beta=1.0).count == d - k


def test_eta_removes_slightly_more():
    bounds = [retained_bound(1000, 0.2, eta=eta) for eta in (0.0, 1e-3, 1e-2)]
    assert bounds[0] == pytest.approx(800)
    assert bounds[0] > bounds[1] > bounds[2]
    assert bounds[1] == pytest.approx(800 / 1.001**2)


def test_bound_takes_arrays():
    bound = retained_bound(np.array([0, 10, 1000]), np.array([0.0, 0.1, 0.2]))
    assert bound.tolist() == [0.0, retained_bound(10, 0.1), retained_bound(1000, 0.2)]


@pytest.mark.parametrize(
    ("d", "index", "eta"),
    [(-1, 0.1, 0.0), (5, -0.1, 0.0), (5, 1.1, 0.0), (5, np.nan, 0.0), (5, 0.1, -0.1), (5, 0.1, np.nan)],
)
def test_bound_refuses(d, index, eta):
    with pytest.raises(ValueError, match=r"bound needs|eta must"):
        retained_bound(d, index, eta=eta)


# --- eq. (4) ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("d", "bound", "gamma", "beta", "expected"),
    [
        (10, 7.2, 1.0, 0.9, 2),  # r rounded up: 8 stay
        (10, 8.0, 1.0, 0.9, 2),
        (10, 0.3, 1.0, 0.9, 9),  # capped: floor(0.9 * 10) is 9
        (10, 0.3, 1.0, 1.0, 9),  # ceil(0.3) = 1 stays
        (10, 0.0, 1.0, 1.0, 10),
        (7, 0.1, 1.0, 0.9, 6),  # floor(6.3)
        (1, 0.5, 1.0, 0.9, 0),
        (0, 0.0, 1.0, 0.9, 0),
        (10, 12.0, 1.0, 0.9, 0),  # never negative
        (10, 2.0, 0.5, 0.9, 4),
        (10, 3.0, 0.5, 0.9, 3),  # floor(3.5)
        (10, 6.0, 2.0, 0.9, 8),
        (10, 6.0, 0.0, 0.9, 0),
        (100, 0.0, 1.0, 0.29, 29),  # 0.29 * 100 is 28.999999999999996 in float64
    ],
)
def test_counts_by_hand(d, bound, gamma, beta, expected):
    assert rewiring_count(d, bound, gamma, beta) == expected
    assert type(rewiring_count(d, bound, gamma, beta)) is int


def test_the_three_roundings_differ_where_they_should():
    assert [rewiring_count(10, 7.0, rounding=r) for r in ("integer", "exact", "float32")] == [3, 3, 3]
    assert 10 * (1 - 9 / 10) < 1  # the rounding error in question
    assert [rewiring_count(10, 9.0, rounding=r) for r in ("integer", "exact", "float32")] == [1, 0, 1]
    cases = [(d, m) for d in range(1, 60) for m in range(d + 1)]
    d, m = np.array(cases).T
    exact, single = (rewiring_counts(d, m.astype(float), beta=1.0, rounding=r) for r in ("exact", "float32"))
    assert np.any(exact != single)
    assert np.all(np.abs(exact - single) <= 1)


def test_floor_of_the_product_is_wrong_for_a_fifth_of_all_pairs():
    d, m = np.array([(d, m) for d in range(1, 401) for m in range(d + 1)]).T
    naive = np.floor(d * (1 - m / d))
    assert 0.18 < np.mean(naive != d - m) < 0.21
    assert np.all(naive[naive != d - m] == (d - m)[naive != d - m] - 1)  # always one too few
    np.testing.assert_array_equal(rewiring_counts(d, m.astype(float), beta=1.0), d - m)
    np.testing.assert_array_equal(rewiring_counts(d, m.astype(float), beta=1.0, rounding="exact"), naive)


def test_float32_rounding_is_the_published_arithmetic_operation_by_operation():
    single = np.float32
    d, m = np.array([(d, m) for d in range(1, 200) for m in range(d + 1)]).T
    for gamma, beta in [(1.0, 0.9), (0.7, 0.5)]:
        expected = []
        for one_d, one_m in zip(d, m, strict=True):
            ratio = single(gamma) * (single(1) - single(one_m) / single(one_d))
            ratio = min(max(ratio, single(0)), single(beta))
            expected.append(int(np.floor(single(one_d) * ratio)))
        got = rewiring_counts(d, m - 0.5 * (m > 0), gamma, beta, "float32")  # r is rounded up first
        np.testing.assert_array_equal(got, expected)


def test_guard_is_a_few_ulp_wide_and_no_wider():
    d = np.array([10, 1000, 10**7])
    ulp = np.spacing(d.astype(float))
    np.testing.assert_array_equal(guarded_ceil(d + 4 * ulp, d), d)
    np.testing.assert_array_equal(guarded_floor(d - 4 * ulp, d), d)
    np.testing.assert_array_equal(guarded_ceil(d + 2 * GUARD_ULPS * ulp, d), d + 1)
    np.testing.assert_array_equal(guarded_floor(d - 2 * GUARD_ULPS * ulp, d), d - 1)
    assert rewiring_count(10, 5 + 1e-9) == 4  # honestly above 5


@pytest.mark.parametrize("p_q", ORDERS)
def test_constant_weights_without_eta_lose_nothing(p_q):
    p, q = p_q
    for d in range(1, 300):
        w = np.full(d, 0.1 + 1e-3 * d)
        assert rewiring_count(d, retained_bound(d, pq_index(w, p, q), p, q, eta=0.0)) == 0
        assert one_unit(w, p=p, q=q, eta=0.0).count == 0


def test_one_hot_is_capped_by_beta():
    for d in (1, 2, 9, 10, 1000):
        assert one_unit(np.eye(1, d).ravel()).count == min(d - 1, d * 9 // 10)


@pytest.mark.parametrize(
    ("d", "bound", "options"),
    [
        (-1, 0.0, {}),
        (5, -0.1, {}),
        (5, np.nan, {}),
        (5, 1.0, {"gamma": -1.0}),
        (5, 1.0, {"gamma": np.nan}),
        (5, 1.0, {"beta": 1.1}),
        (5, 1.0, {"beta": -0.1}),
        (5, 1.0, {"rounding": "nearest"}),
    ],
)
def test_count_refuses(d, bound, options):
    with pytest.raises(ValueError, match=r"eq\. \(4\) needs|rounding is"):
        rewiring_count(d, bound, **options)


# --- All units at once ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "q"), ORDERS)
@pytest.mark.parametrize("rounding", ["integer", "exact", "float32"])
def test_measure_is_the_single_unit_functions(p, q, rounding, rng):
    sizes = [0, 40, 1, 0, 0, 7, 300, 0]  # empty units first, last and in between
    unit = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))  # in no order
    data = rng.standard_normal(unit.size) * 10.0 ** unit
    got = measure(data, unit, len(sizes), p=p, q=q, eta=0.01, gamma=0.8, beta=0.5, rounding=rounding)
    assert got.d.tolist() == sizes
    for u, d in enumerate(sizes):
        w = data[unit == u]
        index = pq_index(w, p, q)
        bound = retained_bound(d, index, p, q, 0.01)
        assert got.index[u] == pytest.approx(index, rel=1e-12, abs=1e-12)
        assert got.bound[u] == pytest.approx(bound, rel=1e-12)
        assert got.count[u] == rewiring_count(d, bound, 0.8, 0.5, rounding)
        assert got.ratio[u] == (got.count[u] / d if d else 0)
        assert got.norm_p[u] == pytest.approx(norm(w, p), rel=1e-11)
        assert got.norm_q[u] == pytest.approx(norm(w, q), rel=1e-12)


def test_an_empty_unit_has_no_neighbours_value():
    data, unit = np.array([1.0, 4.0, 9.0, 5.0]), np.array([0, 0, 0, 2])
    wrong = np.add.reduceat(data, [0, 3, 3])  # unit 1 is empty and gets the 5 of unit 2
    assert wrong[1] == 5.0
    got = measure(data, unit, 3)
    assert (got.norm_q[1], got.norm_p[1], got.index[1], got.bound[1], got.count[1], got.ratio[1]) == (0, 0, 0, 0, 0, 0)
    assert got.norm_q.tolist() == [14.0, 0.0, 5.0]


@pytest.mark.parametrize("rounding", ["integer", "exact", "float32"])
def test_a_unit_of_zeros_loses_nothing(rounding):
    got = measure(np.array([0.0] * 5000 + [1.0] * 5000), np.repeat([0, 1], 5000), 2, rounding=rounding)
    assert got.index.tolist() == [0.0, 0.0]
    assert got.bound[0] == 5000
    assert got.count[0] == 0
    assert got.count[1] == pytest.approx(5000 * (1 - 1.001**-2), abs=1)  # equal but not zero: eta has its say


def test_measure_of_nothing():
    got = measure(np.zeros(0), np.zeros(0, dtype=int), 3)
    for name in Measurement.__dataclass_fields__:
        assert getattr(got, name).tolist() == [0, 0, 0]


def test_an_active_weight_of_exactly_zero_counts_in_d():
    with_zero = one_unit([1.0, 4.0, 9.0, 0.0])
    without = one_unit([1.0, 4.0, 9.0])
    assert with_zero.d == 4
    assert without.d == 3
    assert with_zero.index == pytest.approx(1 - 36 / 14 / 4)
    assert without.index == pytest.approx(1 - 36 / 14 / 3)
    assert with_zero.bound == pytest.approx(without.bound)  # d cancels
    assert (int(with_zero.count[0]), int(without.count[0])) == (1, 0)


def test_norm_beyond_float64_is_infinite_and_the_index_is_not():
    got = one_unit(np.full(100, 1e308))
    assert np.isinf(got.norm_q)
    assert got.index == 0.0


@pytest.mark.parametrize("unit", [[0, 1], [0, 1, 3], [0, 1, -1]])
def test_measure_refuses_units_that_do_not_fit(unit):
    with pytest.raises(ValueError, match=r"same length|numbered"):
        measure(np.ones(3), np.array(unit), 3)


# --- Published reference values ---------------------------------------------------------------------------------------

MILLION = 1_000_000


@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        (lambda g: g.standard_normal(MILLION), 0.8455),
        (lambda g: g.uniform(-1, 1, MILLION), 0.887),
        (lambda g: g.logistic(size=MILLION), 0.828),
        (lambda g: g.standard_t(5, MILLION), 0.817),
        (lambda g: g.laplace(size=MILLION), 0.784),
    ],
    ids=["gaussian", "uniform", "logistic", "student-t5", "laplace"],
)
def test_bound_of_independent_weights(draw, expected):
    w = draw(np.random.default_rng(7))
    assert retained_bound(MILLION, pq_index(w)) / MILLION == pytest.approx(expected, abs=1e-3)


def test_bound_of_gaussian_weights_in_closed_form():
    mean_root = 2**0.25 * math.gamma(0.75) / math.sqrt(math.pi)  # E sqrt|w|
    assert mean_root**2 / math.sqrt(2 / math.pi) / 1.001**2 == pytest.approx(0.8455, abs=5e-5)
    w = np.random.default_rng(8).standard_normal(MILLION)
    assert retained_bound(MILLION, pq_index(w, 1, 2), 1, 2) / MILLION == pytest.approx(0.635, abs=1e-3)
    assert 2 / math.pi / 1.001**2 == pytest.approx(0.635, abs=5e-4)  # (E|w|)^2 / E w^2


@pytest.mark.parametrize(
    ("d", "rows", "expected"), [(9, 40_000, 0.085), (64, 6_000, 0.145), (576, 1_500, 0.153), (1152, 700, 0.154)]
)
def test_mean_removed_fraction_of_gaussian_rows(d, rows, expected):
    """Neuron-wise, small rows lose less: ceil and floor favour keeping, and a short row looks more even."""
    w = np.random.default_rng(9).standard_normal(d * rows)
    got = measure(w, np.repeat(np.arange(rows), d), rows)
    assert got.ratio.mean() == pytest.approx(expected, abs=1e-3)
