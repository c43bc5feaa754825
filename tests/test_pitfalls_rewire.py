"""Mistakes found in published sparse-training code, each planted here beside what refsnn does.

Every test states a check, sees refsnn pass it and the mistake fail it: a check that cannot tell them apart is no check.
"""

import numpy as np
import pytest

from refsnn.pq import measure
from refsnn.rewire import GROW, PRUNE, new_memory, observe, rewire
from refsnn.topology import Structure, active_counts, entry_units

ROWS, COLS = 6, 40


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.fixture
def layer(rng):
    return Structure.from_mask(rng.random((ROWS, COLS)) < 0.4)


def rewire_layer(layer, prune_score, grow_score, count, **options):
    return rewire([layer], [prune_score], [grow_score], np.array([count]), np.array([count]), "layer", **options)


def grown_places(rewiring):
    return set(rewiring.structures[0].places()[rewiring.origin[0] < 0].tolist())


def best_free_places(layer, score, count):
    """The places a person would point at: the largest scores among those without a connection."""
    free = np.where(layer.mask(), -np.inf, score).ravel()
    return set(np.argsort(-free, kind="stable")[:count].tolist())


# --- What growth looks at ---------------------------------------------------------------------------------------------


def test_momentum_masked_before_growth_ranks_zeros(layer, rng):
    memory = new_memory(layer.shape, "momentum", np.float64)
    for gradient in rng.standard_normal((20, *layer.shape)):
        memory = observe(memory, gradient)
    score = GROW["momentum"](memory, rng)
    masked = score * layer.mask()  # the mistake: the buffer is masked with the weights
    weight = rng.random(layer.active)

    def grows_where_the_momentum_is(score):
        got = rewire_layer(layer, weight, score, 12, return_at_once=False)
        return grown_places(got) == best_free_places(layer, np.abs(memory.average), 12)

    assert grows_where_the_momentum_is(score)
    assert not grows_where_the_momentum_is(masked)
    first_free = np.flatnonzero(~layer.mask())[:12]  # what the mistake comes to: all tie at 0
    assert grown_places(rewire_layer(layer, weight, masked, 12, return_at_once=False)) == set(first_free.tolist())


def test_gradient_through_the_mask_is_zero_where_growth_looks(layer, rng):
    """L = ½ ‖(M ⊙ W) x − t‖²: the slope along a *new* connection, by central differences."""
    w, x, target = layer.mask() * rng.standard_normal(layer.shape), rng.standard_normal(COLS), rng.standard_normal(ROWS)
    dense = np.outer(w @ x - target, x)  # dL/d(M ⊙ W)
    through_mask = dense * layer.mask()  # dL/dW, the mistake
    step = 1e-5

    def loss(w):
        return 0.5 * np.sum((w @ x - target) ** 2)

    def is_the_slope_at_free_places(gradient):
        score = GROW["gradient"](observe(new_memory(layer.shape, "gradient", np.float64), gradient), rng)
        for row, column in np.argwhere(~layer.mask())[::7]:
            nudge = np.zeros(layer.shape)
            nudge[row, column] = step
            slope = (loss(w + nudge) - loss(w - nudge)) / (2 * step)
            if score[row, column] != pytest.approx(abs(slope), rel=1e-6, abs=1e-9):
                return False
        return True

    assert is_the_slope_at_free_places(dense)
    assert not is_the_slope_at_free_places(through_mask)


def test_a_gradient_per_connection_is_refused(layer, rng):
    """The sparse gradient cannot even be handed over by mistake."""
    memory = new_memory(layer.shape, "momentum")
    with pytest.raises(ValueError, match="dense gradient"):
        observe(memory, rng.standard_normal(layer.active))


def test_random_growth_by_coin_flips_lets_the_density_drift(layer, rng):
    count, free = 20, layer.size - layer.active

    def keeps_the_density(active_after):
        return all(active == layer.active for active in active_after)

    def refsnn(seed):
        score = GROW["random"](new_memory(layer.shape, "random"), np.random.default_rng(seed))
        return rewire_layer(layer, rng.random(layer.active), score, count).structures[0].active

    def coin_flips(seed):  # the mistake: each free place with probability count / free
        return layer.active - count + int((np.random.default_rng(seed).random(free) < count / free).sum())

    assert keeps_the_density(refsnn(seed) for seed in range(20))
    assert not keeps_the_density(coin_flips(seed) for seed in range(20))


# --- What pruning looks at --------------------------------------------------------------------------------------------


def test_equal_magnitudes_go_together_past_the_count(layer, rng):
    weight = rng.choice([-0.5, 0.5, 1.0], layer.active)  # as after quantisation, or regrowth at one value
    magnitude, count = PRUNE["magnitude"](weight), 7

    def removes_the_count(survivors):
        return survivors.size == layer.active - count

    def refsnn():
        got = rewire([layer], [magnitude], None, np.array([count]), np.array([0]), "layer")
        return got.origin[0]

    threshold = np.sort(magnitude)[count - 1]
    assert removes_the_count(refsnn())
    assert not removes_the_count(np.flatnonzero(magnitude > threshold))  # a threshold takes all that equal it
    assert not removes_the_count(np.flatnonzero(magnitude >= threshold))  # or none of them
    assert refsnn().tolist() == np.sort(np.argsort(magnitude, kind="stable")[count:]).tolist()


def test_a_connection_at_exactly_zero_exists(layer, rng):
    """A connection that has just come is 0. Who reads the structure off the values has lost it by the next rewire."""
    scores = rng.random((5, *layer.shape))

    def structure_of(_values, structure):  # refsnn: places, not values
        return structure

    def structure_of_values(values, structure):  # the mistake
        dense = np.zeros(structure.size)
        dense[structure.places()] = values
        return Structure.from_mask(dense.reshape(structure.shape) != 0)

    def density_is_conserved(read):
        structure, values = layer, rng.standard_normal(layer.active)
        for grow in scores:
            before = read(values, structure)
            dense = np.zeros(structure.size)
            dense[structure.places()] = values
            values = dense[before.places()]
            got = rewire_layer(before, np.abs(values), grow, 10)
            structure, origin = got.structures[0], got.origin[0]
            values = np.where(origin >= 0, values[origin], 0.0)
        return read(values, structure).active == layer.active

    assert density_is_conserved(structure_of)
    assert not density_is_conserved(structure_of_values)


def test_zero_weights_count_in_d_and_go_first(layer, rng):
    weight = rng.standard_normal(layer.active)
    weight[::5] = 0.0
    unit, number = entry_units([layer], "layer")

    def d_is_the_number_of_connections(measurement):
        return measurement.d.tolist() == active_counts([layer], "layer").tolist()

    alive = weight != 0
    assert d_is_the_number_of_connections(measure(weight, unit, number))
    assert not d_is_the_number_of_connections(measure(weight[alive], unit[alive], number))

    zeros = int((~alive).sum())
    got = rewire([layer], [PRUNE["magnitude"](weight)], None, np.array([zeros]), np.array([0]), "layer")
    np.testing.assert_array_equal(got.origin[0], np.flatnonzero(alive))


# --- What a connection brings along -----------------------------------------------------------------------------------


def test_a_connection_that_returns_brings_nothing_back(layer, rng):
    """Weight, momentum and Adam's moments of a removed connection are gone, even if it comes back at once."""
    momentum = rng.standard_normal(layer.active) + 5.0
    weakest = np.argsort(np.arange(layer.active))[:8]
    score = np.zeros(layer.size)
    score[layer.places()[weakest]] = 1.0  # the places just left are the best
    got = rewire_layer(layer, np.arange(layer.active, dtype=float), score.reshape(layer.shape), 8)
    assert got.returned.tolist() == [8]
    assert drawn_alike(got.structures[0], layer)  # the mask alone cannot tell

    by_origin = np.where(got.origin[0] >= 0, momentum[got.origin[0]], 0.0)
    dense = np.zeros(layer.size)
    dense[layer.places()] = momentum
    by_place = dense[got.structures[0].places()]  # the mistake: state kept per place

    def starts_afresh(state):
        return np.count_nonzero(state) == layer.active - 8

    assert starts_afresh(by_origin)
    assert not starts_afresh(by_place)


def test_survivors_take_their_own_state_along(layer, rng):
    """After a rewire positions shift: state carried by position belongs to someone else."""
    owner = layer.places().astype(float)  # state that names its place
    got = rewire_layer(layer, rng.random(layer.active), rng.random(layer.shape), 15, return_at_once=False)
    kept = got.origin[0] >= 0

    def belongs_to_its_place(state):
        return np.array_equal(state[kept], got.structures[0].places()[kept])

    assert belongs_to_its_place(owner[np.maximum(got.origin[0], 0)])
    assert not belongs_to_its_place(owner)  # the mistake: the arrays still have the same length


def drawn_alike(one, other):
    return np.array_equal(one.mask(), other.mask())
