"""Algorithm 1 as it runs: densities under every preset, what rewires do to weights and moments, bits."""

import numpy as np
import pytest

from conftest import Watcher, data_of, every, tiny, train_tiny
from refsnn import twin
from refsnn.errors import UserError
from refsnn.rewire import GROW
from refsnn.rng import stream
from refsnn.runs import _records
from refsnn.trace import NO_RECORD, Recorder
from refsnn.train import needs_dense_gradient, start, steps_to_growth, train, train_step

SHORT = ("train.epochs=2", "train.iterations=3", "train.batch=128")


def records(state) -> dict[str, bytes]:
    """Everything of a state but the clock, as bytes."""
    for row in state.metrics:
        row["seconds"] = 0
    state.seconds = 0.0
    return {r.name: r.value.tobytes() for r in _records(state)}


def rows(state, phase: str, layer: str = "all") -> list[dict]:
    return [row for row in state.structure if row["phase"] == phase and row["layer"] == layer]


# ------------------------------------------------------------------------------------------------------- the presets


@pytest.mark.parametrize("scope", ["layer", "neuron", "global"])
def test_figures_follows_d_minus_count(scope: str) -> None:
    state = train_tiny(*SHORT, f"rewire.scope={scope}")
    ends, size = rows(state, "end"), sum(w.size for w in state.network.weights.values())
    assert len(ends) == 2, "three iterations have two prunes between them"
    for row in ends:
        assert row["count"] > 0
        assert row["regrown"] == 0
        assert round(row["density_after"] * size) == row["active_before"] - row["count"]
    assert ends[1]["active_before"] == ends[0]["active_before"] - ends[0]["count"], "inside an iteration d is constant"
    inner = rows(state, "inner")
    assert len(inner) == 2, "one inner rewire in each iteration but the first"
    assert all(row["pruned"] == row["regrown"] > 0 for row in inner)
    assert sum(w.nnz for w in state.network.weights.values()) == ends[1]["active_before"] - ends[1]["count"]
    assert len(rows(state, "last")) == 1


def test_inner_rewires_use_the_ratio_of_the_previous_iteration() -> None:
    state = train_tiny(*SHORT)
    for layer in state.network.weights:
        end, inner = rows(state, "end", layer)[0], rows(state, "inner", layer)[0]
        assert inner["pruned"] == end["count"] * inner["active_before"] // end["active_before"]


def test_literal_conserves_the_density_exactly() -> None:
    state = train_tiny(*SHORT, "rewire.preset=literal")
    for layer in [*state.network.weights, "all"]:
        ends = rows(state, "end", layer)
        assert len(ends) == 2
        assert all(row["pruned"] == row["regrown"] == row["count"] > 0 for row in ends)
        assert len({row["active_before"] for row in ends}) == 1
    assert state.network.density == pytest.approx(0.5, abs=1e-3)
    assert not rows(state, "inner")


def test_partial_regrows_the_ratio_of_what_it_prunes() -> None:
    state = train_tiny(*SHORT, "rewire.preset=partial")
    for layer in state.network.weights:
        for row in rows(state, "end", layer):
            assert row["regrown"] == row["count"] ** 2 // row["active_before"]


def test_sap_starts_dense_prunes_only_and_rewinds() -> None:
    config = tiny(*SHORT, "rewire.preset=sap")
    data = data_of(config)
    state = start(config, data)
    assert state.network.density == 1.0
    initial = {name: weight.dense() for name, weight in state.network.weights.items()}
    rewound = []

    class Look(Watcher):
        def on_epoch(self, state) -> None:
            if state.epoch == 0 and state.iteration < 3:         # a new iteration has just begun
                for name, weight in state.network.weights.items():
                    expected = np.where(weight.mask(), initial[name], 0)
                    np.testing.assert_array_equal(weight.dense(), expected)
                for norm in state.network.norms:
                    assert (norm.running_mean == 0).all()
                    assert (norm.running_var == 1).all()
                rewound.append(state.iteration)

    train(state, data, Look())
    assert rewound == [1, 2]
    assert all(row["regrown"] == 0 for row in state.structure)
    assert rows(state, "end")[1]["density_after"] < rows(state, "end")[0]["density_after"] < 1
    moved = [np.abs(w.data - w.gather(initial[n])).max() for n, w in state.network.weights.items()]
    assert min(moved) > 0, "the last iteration has trained"


def test_a_static_structure_never_changes() -> None:
    state = train_tiny(*SHORT, "rewire.ratio=none", "structure.density=1.0")
    assert state.network.density == 1.0
    assert all(row["pruned"] == row["regrown"] == row["count"] == 0 for row in state.structure)


# ------------------------------------------------------------------------------ what a rewire leaves and what it brings


def test_what_grows_starts_at_zero_with_fresh_moments_and_what_stays_is_untouched() -> None:
    config = tiny("train.epochs=3", "train.iterations=2")
    data = data_of(config)
    state = start(config, data)
    import refsnn.train as module
    seen = []
    original = module.stage_two

    def look(state, phase, prune, grow, rec=NO_RECORD):
        moments_of = state.optimizer.state
        before = {name: (weight, {part: array.copy() for part, array in moments_of[name].items()})
                  for name, weight in state.network.weights.items()}
        result = original(state, phase, prune, grow, rec)
        for k, (name, (old, moments)) in enumerate(before.items()):
            new, origin = state.network.weights[name], result.origin[k]
            stayed = origin >= 0
            np.testing.assert_array_equal(new.data[stayed], old.data[origin[stayed]])
            assert (new.data[~stayed] == 0).all()
            for part, array in state.optimizer.state[name].items():
                np.testing.assert_array_equal(array[stayed], moments[part][origin[stayed]])
                assert (array[~stayed] == 0).all()
            np.testing.assert_array_equal(new.flat_index()[stayed], old.flat_index()[origin[stayed]])
        seen.append(phase)
        return result

    module.stage_two = look
    try:
        train(state, data, Watcher())
    finally:
        module.stage_two = original
    assert seen == ["end", "inner", "inner", "last"]


@pytest.mark.parametrize("grow", GROW)
def test_every_growth_rule_trains(grow: str) -> None:
    state = train_tiny("train.epochs=2", "train.iterations=2", f"rewire.grow={grow}")
    assert rows(state, "inner")[0]["regrown"] > 0


def test_the_dense_gradient_is_taken_only_where_growth_will_look_at_it() -> None:
    state = start(tiny("rewire.grow_window=3"), data_of(tiny()))
    per_epoch = 10
    assert steps_to_growth(state, per_epoch) == 3 * per_epoch, "2 epochs of iteration 1, then the first of iteration 2"
    asked = []
    for state.iteration, state.epoch, state.batch in [(0, 0, 0), (1, 0, 6), (1, 0, 7), (1, 0, 9), (1, 1, 9), (2, 0, 7)]:
        asked.append(needs_dense_gradient(state, per_epoch))
    assert asked == [False, False, True, True, False, True]
    state.iteration, state.epoch, state.batch = 2, 1, 0
    assert steps_to_growth(state, per_epoch) is None, "no rewire is left"
    cases = [("rewire.grow_window=0", True), ("rewire.grow=random", False), ("rewire.ratio=none", False)]
    for override, expected in cases:
        state = start(tiny(override), data_of(tiny()))
        assert needs_dense_gradient(state, per_epoch) is expected


def test_the_growth_memory_is_the_average_of_the_dense_gradients() -> None:
    config = tiny("dtype=float64", "structure.spread=uniform")
    data = data_of(config)
    state = start(config, data)
    average = dict.fromkeys(state.network.weights, 0.0)
    for _ in range(3):
        rec = Recorder()
        train_step(state, data.train.batch(np.arange(16), 0), data.train.labels[:16], 23, rec)
        found = {r.name: r.value for r in rec.records}
        for name in average:
            g = found[f"backward/{name.removesuffix('.weight')}/dweight_dense"]
            average[name] = 0.9 * average[name] + 0.1 * g
            if name != "fc2.weight":        # whose inputs are silent in the first steps
                assert np.count_nonzero(g[~state.network.weights[name].mask()]) > 0, "dormant places are remembered"
    for name, expected in average.items():
        np.testing.assert_allclose(state.growth[name].average, expected.reshape(state.growth[name].shape), rtol=1e-12)


# ------------------------------------------------------------------------------------------------------------- bits


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    a, b, c = (records(train_tiny(*SHORT, f"seed={seed}")) for seed in (0, 0, 1))
    assert a == b
    assert a["weights/fc1.weight/data"] != c["weights/fc1.weight/data"]


@pytest.mark.skipif(twin.get_backend() == "numpy", reason="definitions run in one thread")
def test_the_number_of_threads_changes_no_bit() -> None:
    import numba

    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("this machine gives Numba one thread")
    found = []
    for threads in (1, 2):
        numba.set_num_threads(threads)
        found.append(records(train_tiny(*SHORT)))
    assert found[0] == found[1]


@pytest.mark.skipif(twin.get_backend() == "numpy", reason="compares kernels with definitions")
def test_backend_both_trains_tiny_to_the_end() -> None:
    with twin.backend("both"):
        state = train_tiny()
    assert state.finished


@pytest.mark.parametrize("where", [1, 12, 13, 30])
def test_stopped_anywhere_and_continued_equals_uninterrupted(where: int) -> None:
    config = tiny(*SHORT)
    data = data_of(config)
    state = start(config, data)
    train(state, data, Watcher(stop_after=where))
    assert state.step == where
    train(state, data, Watcher())
    assert records(state) == records(train_tiny(*SHORT))


def test_max_steps_ends_a_run() -> None:
    state = train_tiny("train.max_steps=5")
    assert state.step == 5
    assert len(state.metrics) == 1


@pytest.mark.parametrize("preset", ["figures", "literal"])
@pytest.mark.parametrize("window", [0, 3])
def test_max_steps_closes_the_iteration_under_way(preset: str, window: int) -> None:
    state = train_tiny("train.max_steps=5", f"rewire.preset={preset}", f"rewire.grow_window={window}")
    (end,) = (row for row in state.structure if row["layer"] == "all")
    assert end["phase"] == "end"
    assert end["pruned"] == end["count"] > 0
    assert end["regrown"] == (end["pruned"] if preset == "literal" else 0)
    assert state.metrics[-1]["param_density"] == pytest.approx(0.5, abs=1e-3), "the accuracy is taken before the prune"


def test_max_steps_in_the_last_iteration_prunes_nothing() -> None:
    state = train_tiny("train.iterations=1", "train.max_steps=5")
    (last,) = (row for row in state.structure if row["layer"] == "all")
    assert (last["phase"], last["pruned"]) == ("last", 0)


def test_running_a_layer_twice_changes_nothing() -> None:
    config = tiny()
    data = data_of(config)
    state = start(config, data)
    before = records(state)
    rec = Recorder()
    for _ in range(2):
        encoded = np.ones((1, 8, 8, 2, 3), np.float32)
        state.network.forward(encoded, True, lambda name: stream(0, name), rec)
    assert records(state) == before


# ------------------------------------------------------------------------------------------------------- bad numbers


@pytest.mark.parametrize(("spoil", "where"), [("conv2.weight", "forward/conv2/y"), ("norm1.gamma", "forward/norm1/y")])
def test_a_number_that_is_not_finite_stops_with_the_layer_where_it_began(spoil: str, where: str) -> None:
    config = tiny()
    data = data_of(config)
    state = start(config, data)
    state.network.parameters[spoil][0] = np.nan
    before = records(state)
    with pytest.raises(UserError, match=f"not finite, first in {where}"):
        train_step(state, data.train.batch(np.arange(8), 0), data.train.labels[:8], 23)
    assert records(state) == before


def test_a_learning_rate_that_diverges_is_reported() -> None:
    with pytest.raises(UserError, match=r"lower optim\.lr"):
        train_tiny("optim.kind=sgd", "optim.lr=1e38")


def test_validation_never_touches_the_test_set() -> None:
    whole, part = data_of(tiny()), data_of(tiny("data.validation=0.2"))
    assert len(part.train) + len(part.test) == len(whole.train)
    pool = {x.tobytes() for x in every(whole.train)}
    assert {x.tobytes() for x in every(part.test)} <= pool
    assert train_tiny("data.validation=0.2", "train.iterations=1").metrics[0]["evaluated_on"] == "validation"
