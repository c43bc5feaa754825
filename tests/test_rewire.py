"""Structures, initial topology, counts, and the rewire itself against tables and against plain loops."""

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refsnn.pq import measure
from refsnn.rewire import (
    GROW,
    PRUNE,
    RATIOS,
    end_counts,
    inner_counts,
    new_memory,
    observe,
    rewire,
)
from refsnn.topology import (
    Structure,
    active_counts,
    draw_mask,
    entry_units,
    layer_counts,
    layer_densities,
    units,
)

SCOPES = ["layer", "neuron", "global"]


def mask_of(*rows):
    """"x" is a connection, "." a free place."""
    return np.array([[c == "x" for c in row] for row in rows])


def drawn(structure):
    return ["".join("x" if c else "." for c in row) for row in structure.mask()]


# --- Structure and units ----------------------------------------------------------------------------------------------


def test_structure_of_a_mask_by_hand():
    s = Structure.from_mask(mask_of("x.x", "...", ".xx"))
    assert (s.indices.tolist(), s.indptr.tolist(), s.shape) == ([0, 2, 1, 2], [0, 2, 2, 4], (3, 3))
    assert (s.rows().tolist(), s.places().tolist()) == ([0, 0, 2, 2], [0, 2, 7, 8])
    assert (s.active, s.size) == (4, 9)
    assert (s.indices.dtype, s.indptr.dtype) == (np.int32, np.int32)
    assert drawn(s) == ["x.x", "...", ".xx"]


@pytest.mark.parametrize(
    ("indices", "indptr"),
    [
        ([1, 0], [0, 2, 2]),  # columns not increasing
        ([1, 1], [0, 2, 2]),  # duplicate
        ([0, 3], [0, 1, 2]),  # no such column
        ([-1, 0], [0, 1, 2]),
        ([0, 1], [0, 1, 1]),  # entries beyond the last row
        ([0, 1], [0, 2]),  # a row too few
        ([0, 1], [1, 1, 2]),
        ([0, 1], [0, 3, 2]),
    ],
)
def test_structure_refuses_what_is_not_csr(indices, indptr):
    with pytest.raises(ValueError, match=r"indptr|column"):
        Structure(np.array(indices, dtype=np.int32), np.array(indptr, dtype=np.int32), (2, 3))


def test_units_of_the_three_scopes():
    layers = [Structure.from_mask(mask_of("x.", ".x")), Structure.from_mask(mask_of("...", "xx.", "..x"))]
    expected = {
        "layer": ([[0, 0], [1, 1, 1]], 2),
        "neuron": ([[0, 1], [2, 3, 4]], 5),
        "global": ([[0, 0], [0, 0, 0]], 1),
    }
    of_entry = {"layer": [0, 0, 1, 1, 1], "neuron": [0, 1, 3, 3, 4], "global": [0, 0, 0, 0, 0]}
    active = {"layer": [2, 3], "neuron": [1, 1, 0, 2, 1], "global": [5]}
    for scope in SCOPES:
        of_row, number = units(layers, scope)
        assert ([u.tolist() for u in of_row], number) == expected[scope]
        unit, number = entry_units(layers, scope)
        assert (unit.tolist(), number) == (of_entry[scope], expected[scope][1])
        assert active_counts(layers, scope).tolist() == active[scope]
    with pytest.raises(ValueError, match="scope is"):
        units(layers, "filter")


# --- Initial topology -------------------------------------------------------------------------------------------------


def resnet19_shapes(classes=10):
    """conv; 3 blocks of 128, 3 of 256, 2 of 512 channels with a 1×1 shortcut where the channels change; two FC."""
    shapes, channels = {"conv1": (64, 3, 3, 3)}, 64
    for layer, (width, blocks) in enumerate([(128, 3), (256, 3), (512, 2)], start=1):
        for block in range(blocks):
            name = f"layer{layer}.{block}"
            shapes[f"{name}.conv1"] = (width, channels, 3, 3)
            shapes[f"{name}.conv2"] = (width, width, 3, 3)
            if channels != width:
                shapes[f"{name}.shortcut"] = (width, channels, 1, 1)
            channels = width
    return {**shapes, "fc1": (256, 512), "fc2": (classes, 256)}


def vggsnn_shapes():
    channels = [2, 64, 128, 256, 256, 512, 512, 512, 512]
    convolutions = {f"conv{i}": (channels[i], channels[i - 1], 3, 3) for i in range(1, 9)}
    return {**convolutions, "fc": (10, 512 * 3 * 3)}


def densities(shapes, density, spread):
    return dict(zip(shapes, layer_densities(list(shapes.values()), density, spread), strict=True))


def test_shapes_are_those_of_the_paper():
    def total(shapes):
        return sum(int(np.prod(shape)) for shape in shapes.values())

    assert total(resnet19_shapes(10)) == 12_619_968
    assert total(resnet19_shapes(100)) == 12_643_008
    assert total(vggsnn_shapes()) == 9_263_232


def test_erk_of_resnet19():
    got = densities(resnet19_shapes(), 0.5, "erk")
    dense = {name for name, density in got.items() if density == 1.0}
    assert dense == {
        "conv1",
        *(name for name in got if name.startswith("layer1")),
        "layer2.0.conv1",
        "layer2.0.shortcut",
        "layer3.0.shortcut",
        "fc1",
        "fc2",
    }
    assert {round(got[n], 3) for n in got if n.startswith("layer2") and n not in dense} == {0.666}
    assert got["layer3.0.conv1"] == pytest.approx(0.498, abs=5e-4)
    assert {round(got[n], 3) for n in ("layer3.0.conv2", "layer3.1.conv1", "layer3.1.conv2")} == {0.331}


def test_er_of_resnet19_is_on_channels():
    got = densities(resnet19_shapes(), 0.5, "er")
    assert got["layer2.1.conv1"] == pytest.approx(0.68, abs=5e-3)
    assert got["layer3.0.conv1"] == pytest.approx(0.511, abs=5e-4)
    assert got["layer3.1.conv1"] == pytest.approx(0.34, abs=5e-3)
    assert got["fc1"] == got["layer3.0.shortcut"] == got["layer3.0.conv1"]  # all 256 to 512 channels
    assert got["conv1"] == got["fc2"] == 1.0


@pytest.mark.parametrize(
    ("density", "expected"),
    [
        (0.5, {"conv1": 1, "conv2": 1, "conv3": 1, "conv4": 0.845, "conv5": 0.63, "conv8": 0.42, "fc": 1}),
        (0.1, {"conv1": 1, "conv2": 0.475, "conv3": 0.234, "conv4": 0.155, "conv5": 0.116, "conv8": 0.077, "fc": 1}),
    ],
)
def test_erk_of_vggsnn(density, expected):
    got = densities(vggsnn_shapes(), density, "erk")
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, abs=4e-3)
        assert (got[name] == 1.0) == (value == 1)


@pytest.mark.parametrize("spread", ["er", "erk", "uniform"])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.3, 0.5, 0.97, 1.0])
def test_spread_meets_the_total_and_follows_its_equation(spread, density):
    shapes = list(resnet19_shapes().values())
    size = np.array([np.prod(shape) for shape in shapes])
    got = np.array(layer_densities(shapes, density, spread))
    assert np.all((got >= 0) & (got <= 1))
    assert np.sum(got * size) == pytest.approx(density * size.sum(), rel=1e-12)
    factor = {"er": [1 / s[0] + 1 / s[1] for s in shapes], "erk": [sum(s) / np.prod(s) for s in shapes]}
    epsilon = got / np.array(factor.get(spread, np.ones(len(shapes))))
    free = got < 1
    assert np.all(got[~free] == 1)
    assert free.any() or density == 1
    for one in epsilon[free]:  # one ε for all that are not dense, and the dense ones would exceed 1 with it
        np.testing.assert_allclose(epsilon[free], one, rtol=1e-12)
        assert np.all(epsilon[~free] <= one * (1 + 1e-12))
    counts = layer_counts(shapes, density, spread)
    assert sum(counts) == round(density * int(size.sum()))
    assert np.all(np.abs(counts - got * size) < 1)


def test_solving_once_is_not_enough():
    """Square layers of 10, 22 and 50: making the first dense lifts the second, .97 before, above 1 as well."""
    shapes, size = [(10, 10), (22, 22), (50, 50)], 100 + 484 + 2500
    wanted = 0.567 * size
    first = [wanted / (2 * 82) * 2 / n for n, _ in shapes]
    assert first[0] > 1 > first[1] > first[2]
    second = [(wanted - 100) / (2 * 72) * 2 / n for n in (22, 50)]
    assert second[0] > 1 > second[1]
    assert layer_densities(shapes, 0.567, "er") == [1.0, 1.0, pytest.approx((wanted - 584) / 2500, rel=1e-12)]


@pytest.mark.parametrize(("density", "spread"), [(-0.1, "er"), (1.1, "er"), (np.nan, "er"), (0.5, "fixed")])
def test_spread_refuses(density, spread):
    with pytest.raises(ValueError, match=r"density must|spread is"):
        layer_densities([(2, 2)], density, spread)


def test_exact_draw_has_exactly_the_count_and_is_seeded():
    shape = (16, 8, 3, 3)
    for density in (0.0, 0.1, 1 / 3, 0.5, 1.0):
        mask = draw_mask(shape, density, np.random.default_rng(3))
        assert mask.shape == (16, 72)
        assert mask.sum() == round(density * mask.size)
        np.testing.assert_array_equal(mask, draw_mask(shape, density, np.random.default_rng(3)))
    other = draw_mask(shape, 0.5, np.random.default_rng(4))
    assert np.any(other != draw_mask(shape, 0.5, np.random.default_rng(3)))
    for count in range(1153):  # a count given as a density is that count
        assert draw_mask((16, 72), count / 1152, np.random.default_rng(0)).sum() == count


def test_exact_draw_favours_no_place():
    generator = np.random.default_rng(5)
    hits = sum(draw_mask((4, 5), 0.25, generator).astype(int) for _ in range(4000))
    assert np.all(np.abs(hits / 4000 - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 4000))


def test_bernoulli_draw_varies_around_the_density():
    counts = [draw_mask((20, 50), 0.3, np.random.default_rng(seed), "bernoulli").sum() for seed in range(200)]
    assert np.std(counts) == pytest.approx(np.sqrt(1000 * 0.3 * 0.7), rel=0.3)
    assert np.mean(counts) == pytest.approx(300, abs=5)


def test_draw_refuses():
    with pytest.raises(ValueError, match="density must"):
        draw_mask((2, 2), 1.5, np.random.default_rng(0))
    with pytest.raises(ValueError, match="draw is"):
        draw_mask((2, 2), 0.5, np.random.default_rng(0), "poisson")


# --- Scores -----------------------------------------------------------------------------------------------------------


def test_memory_follows_its_equations():
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((5, 3, 4))
    memory = new_memory((3, 4), "adam", np.float64)
    for g in gradients:
        memory = observe(memory, g, beta=0.7, square_beta=0.9)
    weight = np.array([0.7 ** (4 - k) for k in range(5)])[:, None, None]
    square_weight = np.array([0.9 ** (4 - k) for k in range(5)])[:, None, None]
    np.testing.assert_allclose(memory.average, np.sum(0.3 * weight * gradients, axis=0), rtol=1e-13)
    np.testing.assert_allclose(memory.square, np.sum(0.1 * square_weight * gradients**2, axis=0), rtol=1e-13)
    assert memory.steps == 5
    np.testing.assert_allclose(
        GROW["adam"](memory, rng), np.abs(memory.average) / (np.sqrt(memory.square) + 1e-8), rtol=1e-15
    )


def test_each_rule_scores_what_it_says():
    rng = np.random.default_rng(0)
    first, last = np.array([[8.0, -1.0, 0.0]]), np.array([[0.0, 1.0, -2.0]])

    def memory_of(grow):
        return observe(observe(new_memory((1, 3), grow, np.float64), first), last)

    np.testing.assert_allclose(GROW["momentum"](memory_of("momentum"), rng), [[0.72, 0.01, 0.2]])
    np.testing.assert_allclose(GROW["gradient"](memory_of("gradient"), rng), [[0.0, 1.0, 2.0]])
    assert [int(GROW[g](memory_of(g), rng).argmax()) for g in ("momentum", "gradient")] == [0, 2]
    one, two = (GROW["random"](memory_of("random"), np.random.default_rng(seed)) for seed in (1, 2))
    np.testing.assert_array_equal(one, GROW["random"](memory_of("random"), np.random.default_rng(1)))
    assert np.any(one != two)
    assert PRUNE["magnitude"](np.array([-3.0, 0.0, 2.0])).tolist() == [3.0, 0.0, 2.0]


@pytest.mark.parametrize("grow", GROW)
def test_every_growth_rule(grow):
    """Shape, finite, not negative, nothing kept that is not read, float32 stays float32."""
    g = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    empty = new_memory((3, 4), grow)
    memory = observe(empty, g)
    for name in ("gradient", "average", "square"):
        array = getattr(memory, name)
        assert array.shape == ((3, 4) if name in GROW[grow].reads else (0,))
        assert array.dtype == np.float32
    score = GROW[grow](memory, np.random.default_rng(0))
    assert score.shape == (3, 4)
    assert np.all(np.isfinite(score) & (score >= 0))
    assert np.unique(score).size == 12 or grow == "adam"  # ranks the places (Adam's first step is nearly the same size)
    if GROW[grow].reads:
        with pytest.raises(ValueError, match="no gradient yet"):
            GROW[grow](new_memory((3, 4), grow), np.random.default_rng(0))
    with pytest.raises(ValueError, match="dense gradient"):
        observe(empty, g[:, :2])


@pytest.mark.parametrize("prune", PRUNE)
def test_every_prune_rule(prune):
    w = np.random.default_rng(0).standard_normal(9)
    assert PRUNE[prune](w).shape == w.shape
    assert np.all(np.isfinite(PRUNE[prune](w)))


# --- From a measurement to counts -------------------------------------------------------------------------------------


def measured(count, d):
    return SimpleNamespace(count=np.array(count), d=np.array(d))


def test_end_counts_by_hand():
    m = measured([0, 3, 7, 10, 0], [5, 10, 10, 10, 0])
    for share, expected in [
        (0.0, [0, 0, 0, 0, 0]),
        (1.0, [0, 3, 7, 10, 0]),
        (0.5, [0, 1, 3, 5, 0]),
        ("ratio", [0, 0, 4, 10, 0]),  # floor(count² / d)
    ]:
        prune, grow = end_counts(m, share)
        assert prune.tolist() == [0, 3, 7, 10, 0]
        assert grow.tolist() == expected
    assert end_counts(measured([100], [200]), 0.29)[1].tolist() == [29]  # 0.29 * 100 is 28.999999999999996
    for share in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="regrow_share"):
            end_counts(m, share)


def test_inner_counts_are_exact_integers():
    assert inner_counts(None, np.array([5, 7])).tolist() == [0, 0]  # the first iteration has no ratio
    assert inner_counts(measured([3, 0, 0], [10, 10, 0]), np.array([7, 7, 0])).tolist() == [2, 0, 0]
    count, before, now = np.array([(c, b, n) for b in range(1, 60) for c in range(b + 1) for n in (b - c, b, 7)]).T
    exact = [int(Fraction(int(c), int(b)) * int(n)) for c, b, n in zip(count, before, now, strict=True)]
    assert inner_counts(measured(count, before), now).tolist() == exact
    assert np.any(np.floor(count / before * now) != exact)  # floats would not do


def test_ratio_rules():
    w = np.random.default_rng(0).standard_normal(1000)
    m = measure(w, np.arange(1000) % 2, 2)
    assert set(RATIOS) == {"pq", "none"}
    assert RATIOS["pq"](m) is m
    none = RATIOS["none"](m)
    assert (none.count.tolist(), none.ratio.tolist()) == ([0, 0], [0.0, 0.0])
    assert none.index.tolist() == m.index.tolist()  # measured all the same
    for rule in RATIOS.values():
        got = rule(m)
        assert np.all((got.count >= 0) & (got.count <= m.d))
        np.testing.assert_allclose(got.ratio, got.count / m.d)
        assert got.count.dtype.kind == "i"


# --- Rewire: tables a person can check --------------------------------------------------------------------------------


def test_one_neuron_by_hand():
    layer = Structure.from_mask(mask_of("xx.x.x"))
    w = np.array([0.5, -0.1, 0.4, 0.2])  # columns 0, 1, 3, 5
    g = np.array([[9.0, 0.0, 3.0, 9.0, 5.0, 4.0]])
    got = rewire([layer], [np.abs(w)], [g], np.array([2]), np.array([2]), "neuron")
    # columns 1 (0.1) and 5 (0.2) go; free are 1, 2, 4, 5 with 0, 3, 5, 4: 4 and 5 come, 5 came straight back
    assert drawn(got.structures[0]) == ["x..xxx"]
    assert got.origin[0].tolist() == [0, 2, -1, -1]
    assert {k: int(getattr(got, k)[0]) for k in ("d", "pruned", "regrown", "returned", "shortfall")} == {
        "d": 4, "pruned": 2, "regrown": 2, "returned": 1, "shortfall": 0,
    }  # fmt: skip

    patient = rewire([layer], [np.abs(w)], [g], np.array([2]), np.array([2]), "neuron", return_at_once=False)
    assert drawn(patient.structures[0]) == ["x.xxx."]
    assert (patient.origin[0].tolist(), patient.returned.tolist()) == ([0, -1, 2, -1], [0])


def test_ties_go_to_the_lower_place():
    layer = Structure.from_mask(mask_of("xxxx.", ".x..."))
    same = [np.full(5, 0.3)]
    got = rewire([layer], same, [np.ones((2, 5))], np.array([3]), np.array([2]), "layer")
    # places 0, 1, 2 go; of the free 0, 1, 2, 4, 5, … the first two come
    assert drawn(got.structures[0]) == ["xx.x.", ".x..."]
    assert (got.origin[0].tolist(), got.returned.tolist()) == ([-1, -1, 3, 4], [2])


def test_scopes_differ_in_who_competes():
    first, second = Structure.from_mask(mask_of("xx..", "xx..")), Structure.from_mask(mask_of("xxx."))
    score = [np.array([0.1, 0.2, 0.8, 0.9]), np.array([0.3, 0.4, 0.5])]
    grow = [np.array([[0.0, 0, 1, 2], [0, 0, 3, 4]]), np.array([[0.0, 0, 0, 9]])]

    def after(scope, counts):
        got = rewire([first, second], score, grow, np.array(counts), np.array(counts), scope)
        return [drawn(s) for s in got.structures], got

    assert after("neuron", [1, 1, 1])[0] == [[".x.x", ".x.x"], [".xxx"]]
    layer_wise, _ = after("layer", [2, 1])
    assert layer_wise == [["....", "xxxx"], [".xxx"]]  # both weakest are in row 0, both best places in row 1
    everywhere, result = after("global", [3])
    # 0.1, 0.2 of the first and 0.3 of the second layer go; 9, 4, 3 come: one place moved to another layer
    assert everywhere == [["....", "xxxx"], [".xxx"]]
    assert result.pruned.tolist() == [3]
    moved, _ = after("global", [2])
    assert moved == [["....", "xx.x"], ["xxxx"]]  # the first layer lost two, got one; the second gained one


def test_shortfall_is_reported_or_redistributed():
    layer = Structure.from_mask(mask_of("xxx", "x..", "..x"))
    score = [np.arange(5.0)]
    grow = [np.array([[0, 0, 0], [0, 5, 1], [2, 7, 0.0]])]
    prune, want = np.array([0, 0, 1]), np.array([2, 1, 1])
    got = rewire([layer], score, grow, prune, want, "neuron", return_at_once=False)
    assert drawn(got.structures[0]) == ["xxx", "xx.", ".x."]
    assert (got.regrown.tolist(), got.shortfall.tolist()) == ([0, 1, 1], [2, 0, 0])
    assert got.origin[0].tolist() == [0, 1, 2, 3, -1, -1]

    shared = rewire([layer], score, grow, prune, want, "neuron", return_at_once=False, shortfall="redistribute")
    assert drawn(shared.structures[0]) == ["xxx", "xxx", "xx."]  # 2 and 1 were the best left in the layer
    assert (shared.regrown.tolist(), shared.shortfall.tolist()) == ([0, 2, 2], [2, 0, 0])

    more = rewire([layer], score, grow, prune, np.array([9, 1, 1]), "neuron", shortfall="redistribute")
    assert drawn(more.structures[0]) == ["xxx", "xxx", "xxx"]  # full: what is missing still shows in the sums
    assert (more.regrown.sum(), more.shortfall.tolist(), more.returned.tolist()) == (5, [9, 0, 0], [0, 0, 1])


def test_redistribution_stays_within_the_layer():
    full, empty = Structure.from_mask(mask_of("xx")), Structure.from_mask(mask_of("..", ".."))
    grow = [np.zeros((1, 2)), np.ones((2, 2))]
    got = rewire(
        [full, empty], [np.ones(2), np.ones(0)], grow, np.zeros(3, int), np.array([2, 0, 0]), "neuron",
        shortfall="redistribute",
    )  # fmt: skip
    assert [drawn(s) for s in got.structures] == [["xx"], ["..", ".."]]
    assert got.shortfall.tolist() == [2, 0, 0]


def test_nothing_regrows_without_scores():
    layer = Structure.from_mask(mask_of("xxx", "..."))
    got = rewire([layer], [np.array([3.0, 1.0, 2.0])], None, np.array([3, 0]), np.zeros(2, int), "neuron")
    assert drawn(got.structures[0]) == ["...", "..."]
    assert (got.structures[0].indices.size, got.origin[0].size) == (0, 0)
    with pytest.raises(ValueError, match="no grow scores"):
        rewire([layer], [np.ones(3)], None, np.array([1, 0]), np.array([1, 0]), "neuron")


def test_the_old_structure_is_not_touched():
    layer = Structure.from_mask(mask_of("xx.x"))
    score, grow = np.array([3.0, 1.0, 2.0]), np.array([[0.0, 1, 2, 3]])
    before = [layer.indices.copy(), layer.indptr.copy(), score.copy(), grow.copy()]
    rewire([layer], [score], [grow], np.array([2]), np.array([1]), "layer")
    for old, now in zip(before, [layer.indices, layer.indptr, score, grow], strict=True):
        np.testing.assert_array_equal(old, now)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"prune_counts": np.array([3])}, "lose more"),
        ({"prune_counts": np.array([-1])}, "not negative"),
        ({"grow_counts": np.array([-1])}, "not negative"),
        ({"prune_counts": np.array([1, 0])}, "one per unit"),
        ({"prune_counts": np.array([1.0])}, "integers"),
        ({"prune_scores": [np.array([1.0, np.nan])]}, "1 of 2 scores"),
        ({"grow_scores": [np.array([[1.0, np.inf, 0.0]])]}, "1 of 3 scores"),
        ({"prune_scores": [np.ones(3)]}, "shapes"),
        ({"grow_scores": [np.ones(1)]}, "shapes"),
        ({"grow_scores": []}, "shapes"),
        ({"scope": "row"}, "scope is"),
        ({"shortfall": "ignore"}, "shortfall is"),
    ],
)
def test_rewire_refuses(change, match):
    arguments = {
        "structures": [Structure.from_mask(mask_of("xx."))],
        "prune_scores": [np.ones(2)],
        "grow_scores": [np.ones((1, 3))],
        "prune_counts": np.array([1]),
        "grow_counts": np.array([1]),
        "scope": "layer",
    }
    rewire(**arguments)
    with pytest.raises(ValueError, match=match):
        rewire(**{**arguments, **change})


# --- Rewire: the same in plain loops, and what never changes ----------------------------------------------------------


def slow_rewire(masks, prune, grow, prune_counts, grow_counts, scope, return_at_once, shortfall):
    """Sets and sorted() over (layer, row, column); prune and grow dense. Returns new sets and the per-unit numbers."""

    def unit_of(layer, row):
        rows_before = sum(len(m) for m in masks[:layer])
        return {"global": 0, "layer": layer, "neuron": rows_before + row}[scope]

    every = [(k, i, j) for k, m in enumerate(masks) for i in range(m.shape[0]) for j in range(m.shape[1])]
    active = {(k, i, j) for k, i, j in every if masks[k][i, j]}
    removed, grown, missing = set(), set(), {}
    for u, count in enumerate(prune_counts):
        mine = sorted((prune[k][i, j], (k, i, j)) for k, i, j in active if unit_of(k, i) == u)
        removed |= {place for _, place in mine[:count]}
    taken = active - removed if return_at_once else set(active)
    for u, count in enumerate(grow_counts):
        mine = sorted((-grow[k][i, j], (k, i, j)) for k, i, j in every if unit_of(k, i) == u and (k, i, j) not in taken)
        grown |= {place for _, place in mine[:count]}
        missing[u] = max(0, count - len(mine))
    if shortfall == "redistribute" and scope == "neuron":
        for layer in range(len(masks)):
            lack = sum(n for u, n in missing.items() if u in {unit_of(layer, i) for i in range(len(masks[layer]))})
            rest = [place for place in every if place[0] == layer and place not in taken | grown]
            rest.sort(key=lambda place: (-grow[place[0]][place[1:]], place))
            grown |= set(rest[:lack])
    numbers = {
        name: [sum(unit_of(k, i) == u for k, i, _ in places) for u in range(len(prune_counts))]
        for name, places in [("d", active), ("pruned", removed), ("regrown", grown), ("returned", grown & removed)]
    }
    numbers["shortfall"] = list(missing.values())
    return active - removed, grown, numbers


@st.composite
def problems(draw):
    """Small layers with many ties, empty and full rows, counts up to everything."""
    scope = draw(st.sampled_from(SCOPES))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    shapes = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6)), min_size=1, max_size=3))
    masks = [rng.random(shape) < rng.choice([0.0, 0.3, 0.7, 1.0], size=(shape[0], 1)) for shape in shapes]
    levels = draw(st.sampled_from([1, 2, 4, 1000]))  # few levels: many ties
    prune, grow = ([rng.integers(0, levels, shape).astype(np.float32) for shape in shapes] for _ in range(2))
    d = active_counts([Structure.from_mask(m) for m in masks], scope)
    prune_counts = rng.integers(0, d + 1)
    grow_counts = prune_counts if draw(st.booleans()) else rng.integers(0, 8, d.size)
    return SimpleNamespace(
        scope=scope, masks=masks, prune=prune, grow=grow, prune_counts=prune_counts, grow_counts=grow_counts,
        return_at_once=draw(st.booleans()), shortfall=draw(st.sampled_from(["report", "redistribute"])),
    )  # fmt: skip


def run(problem):
    structures = [Structure.from_mask(m) for m in problem.masks]
    got = rewire(
        structures,
        [score[m] for score, m in zip(problem.prune, problem.masks, strict=True)],
        problem.grow,
        problem.prune_counts,
        problem.grow_counts,
        problem.scope,
        return_at_once=problem.return_at_once,
        shortfall=problem.shortfall,
    )
    return structures, got


@settings(max_examples=250, deadline=None, database=None)
@given(problems())
def test_rewire_is_the_plain_loops(problem):
    _, got = run(problem)
    kept, grown, numbers = slow_rewire(**vars(problem))
    new, old = set(), set()
    for layer, (structure, origin) in enumerate(zip(got.structures, got.origin, strict=True)):
        for row, column, came_from in zip(structure.rows(), structure.indices, origin, strict=True):
            (new if came_from < 0 else old).add((layer, int(row), int(column)))
    assert old == kept
    assert new == grown
    for name, expected in numbers.items():
        assert getattr(got, name).tolist() == expected


@settings(max_examples=150, deadline=None, database=None)
@given(problems())
def test_what_every_rewire_keeps(problem):
    """Counts add up, columns increase without duplicates, survivors keep place and value."""
    old, got = run(problem)
    after = active_counts(got.structures, problem.scope)
    np.testing.assert_array_equal(after, got.d - got.pruned + got.regrown)
    np.testing.assert_array_equal(got.pruned, problem.prune_counts)
    assert got.regrown.sum() + got.shortfall.sum() >= problem.grow_counts.sum()
    if problem.shortfall == "report" or problem.scope != "neuron":
        np.testing.assert_array_equal(got.regrown + got.shortfall, problem.grow_counts)
    if problem.grow_counts is problem.prune_counts and problem.return_at_once:
        assert not got.shortfall.any()  # what was removed has left room enough: density is conserved
        np.testing.assert_array_equal(after, got.d)
    if not problem.return_at_once:
        assert not got.returned.any()
    for before, structure, origin in zip(old, got.structures, got.origin, strict=True):
        for start, end in zip(structure.indptr[:-1], structure.indptr[1:], strict=True):
            assert np.all(np.diff(structure.indices[start:end]) > 0)
        value = before.places() * 10 + 1.0  # a value that tells its place
        carried = np.where(origin >= 0, value[origin] if value.size else 0.0, 0.0)
        np.testing.assert_array_equal(carried[origin >= 0], structure.places()[origin >= 0] * 10 + 1.0)
        assert origin.shape == structure.indices.shape


def test_selection_by_partition_is_a_stable_sort():
    """Larger than hypothesis makes them: a thousand units with ties, against lexsort."""
    rng = np.random.default_rng(0)
    mask = rng.random((1000, 60)) < 0.5
    layer = Structure.from_mask(mask)
    score = rng.integers(0, 12, layer.active).astype(float)
    counts = rng.integers(0, np.diff(layer.indptr) + 1)
    got = rewire([layer], [score], None, counts, np.zeros(1000, int), "neuron")
    order = np.lexsort((score, layer.rows()))  # by row, then score, then position
    rank = np.arange(layer.active) - layer.indptr[layer.rows()[order]]
    survivors = np.sort(order[rank >= counts[layer.rows()[order]]])
    np.testing.assert_array_equal(got.origin[0], survivors)
