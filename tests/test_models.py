"""Networks: what is drawn at the start, what can be given, shapes."""

import math
from pathlib import Path

import numpy as np
import pytest

from conftest import data_of, tiny, train_tiny
from refsnn.errors import UserError
from refsnn.models import build, complete, initial_weight
from refsnn.ops.neuron import NEURONS
from refsnn.plan import neuron_of
from refsnn.train import start


def network(*overrides: str):
    return build(tiny("model.channels=[16, 24]", "model.hidden=40", *overrides), (1, 8, 8), 10)


@pytest.mark.parametrize("spread", ["er", "erk", "uniform"])
@pytest.mark.parametrize("density", [0.5, 0.1, 1.0])
def test_the_density_is_what_was_asked(spread: str, density: float) -> None:
    weights = network(f"structure.spread={spread}", f"structure.density={density}").weights.values()
    size = sum(w.size for w in weights)
    assert sum(w.nnz for w in weights) == round(density * size)


def test_a_bernoulli_draw_varies_around_the_density() -> None:
    counts = {network("structure.draw=bernoulli", f"seed={seed}").density for seed in range(4)}
    assert len(counts) > 1
    assert np.mean(list(counts)) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("init", "variance"), [
    ("kaiming_normal", 2 / 144), ("kaiming_uniform", 2 / 144), ("xavier_normal", 2 / (144 + 400 * 9))])
def test_initial_weights_have_the_variance_of_their_rule(init: str, variance: float) -> None:
    mask = np.ones((400, 16, 3, 3), bool)
    values = initial_weight(tiny(f"structure.init={init}"), "w", mask)
    assert values.var() == pytest.approx(variance, rel=0.02)
    assert values.mean() == pytest.approx(0, abs=3 * math.sqrt(variance / values.size))


def test_the_active_fan_in_is_counted_row_by_row() -> None:
    mask = np.zeros((2, 1000), bool)
    mask[0, :10], mask[1, :500] = True, True
    values = initial_weight(tiny("structure.fan=active"), "w", mask)
    assert values[0].var() == pytest.approx(2 / 10, rel=0.15)
    assert values[1].var() == pytest.approx(2 / 500, rel=0.15)
    empty = initial_weight(tiny("structure.fan=active"), "w", np.zeros((1, 4), bool))
    assert np.isfinite(empty).all()


def test_the_draws_of_a_layer_do_not_depend_on_other_layers() -> None:
    a, b = (network("structure.spread=uniform", override) for override in ("model.hidden=40", "model.hidden=8"))
    np.testing.assert_array_equal(a.weights["conv2.weight"].dense(), b.weights["conv2.weight"].dense())


def test_keys_of_the_neuron_override_its_preset() -> None:
    config = tiny("neuron.preset=snntorch_zero", "neuron.v_threshold=0.7")
    neuron = neuron_of(config)
    assert neuron.decay == NEURONS["snntorch_zero"].decay
    assert neuron.v_threshold == 0.7
    assert complete(config).neuron.decay == neuron.decay
    assert complete(complete(config)) == complete(config)
    with pytest.raises(UserError, match="gain"):
        neuron_of(tiny("neuron.preset=spikingjelly", "neuron.gain=0.9"))


def test_images_too_small_for_the_network_are_refused() -> None:
    with pytest.raises(UserError, match="layer pool2: images too small"):
        build(tiny(), (1, 3, 3), 10)


# ------------------------------------------------------------------------------------------- given weights and masks


def save(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **{name.replace("__", "."): array for name, array in arrays.items()})
    return f"structure.start={path}"


def test_a_run_starts_from_given_weights_and_masks(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    conv, fc = draw.standard_normal((4, 1, 3, 3)), draw.standard_normal((10, 16))
    mask = draw.random((10, 16)) < 0.3
    conv[0] = 0
    gamma = np.full(4, 0.5)
    override = save(tmp_path / "given.npz",
                    conv1__weight=conv, fc2__weight=fc, fc2__weight__mask=mask, norm1__gamma=gamma)
    given = build(tiny(override), (1, 8, 8), 10)
    np.testing.assert_array_equal(given.weights["conv1.weight"].dense(), conv.astype(np.float32))
    assert given.weights["conv1.weight"].nnz == 27, "without a mask, what is not 0 is connected"
    np.testing.assert_array_equal(given.weights["fc2.weight"].mask(), mask)
    np.testing.assert_array_equal(given.parameters["norm1.gamma"], gamma)
    drawn = build(tiny(), (1, 8, 8), 10)
    np.testing.assert_array_equal(given.weights["conv2.weight"].data, drawn.weights["conv2.weight"].data)


def test_a_run_continues_from_the_weights_of_another(tmp_path: Path) -> None:
    first = train_tiny("train.iterations=1", "train.epochs=1")
    arrays = {name: a for name, a in first.network.parameters.items() if name not in first.network.weights}
    arrays |= {name: w.dense() for name, w in first.network.weights.items()}
    arrays |= {f"{name}.mask": w.mask() for name, w in first.network.weights.items()}
    for norm in first.network.norms:
        arrays |= {f"{norm.name}.running_mean": norm.running_mean, f"{norm.name}.running_var": norm.running_var}
    np.savez(tmp_path / "given.npz", **arrays)
    config = tiny(f"structure.start={tmp_path / 'given.npz'}", "rewire.rewind=true")
    state = start(config, data_of(config))
    for name, array in first.network.parameters.items():
        np.testing.assert_array_equal(state.network.parameters[name], array)
    before = state.network.norms[0].running_mean.copy()
    state.network.norms[0].running_mean[:] = 9
    state.network.rewind()
    np.testing.assert_array_equal(state.network.norms[0].running_mean, before)


@pytest.mark.parametrize(("arrays", "message"), [
    ({"conv9__weight": np.ones((4, 1, 3, 3))}, "the network has no conv9.weight; the nearest is conv"),
    ({"conv1__weight": np.ones((4, 1, 3))}, r"conv1.weight has shape \(4, 1, 3\), the network's is \(4, 1, 3, 3\)"),
    ({"conv1__weight": np.full((4, 1, 3, 3), np.nan)}, "conv1.weight must hold finite"),
    ({"conv1__weight__mask": np.ones((4, 1, 3, 3))}, "a mask is boolean"),
])
def test_bad_given_arrays_are_refused(tmp_path: Path, arrays: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(tiny(save(tmp_path / "given.npz", **arrays)), (1, 8, 8), 10)


def test_bad_given_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04nonsense")
    with pytest.raises(UserError, match="damaged, or no npz"):
        build(tiny(f"structure.start={tmp_path / 'cut.npz'}"), (1, 8, 8), 10)
    with pytest.raises(UserError, match="no such file"):
        build(tiny("structure.start=nowhere.npz"), (1, 8, 8), 10)
