"""The backward of every layer and of whole networks against central differences in float64."""

from functools import partial
from itertools import product

import numpy as np
import pytest

from gradcheck import TOLERANCE, SmoothSpiking, smooth, worst
from refsnn import config, twin
from refsnn.chain import Residual, leaf_caches
from refsnn.encode import direct
from refsnn.layers import LAYERS, AvgPool2d, BatchNorm, Conv2d, Dropout, Flatten, Linear, MaxPool2d, Spiking, Vote
from refsnn.models import build
from refsnn.ops.loss import LOSSES
from refsnn.ops.neuron import Neuron
from refsnn.ops.sparse import from_dense
from refsnn.ops.surrogate import SURROGATES
from refsnn.rng import stream
from refsnn.trace import NO_RECORD

T, B = 3, 4


@pytest.fixture(autouse=True)
def _definitions():
    with twin.backend("numpy"):
        yield


def weight(draw: np.random.Generator, *shape: int, empty_row: int = 1):
    mask = draw.random(shape) < 0.6
    mask[empty_row] = False
    return from_dense(draw.standard_normal(shape), mask)


def layer_cases() -> dict:
    draw = np.random.default_rng(0)
    norm = BatchNorm("norm", draw.random(3) + 0.5, draw.standard_normal(3), np.zeros(3), np.ones(3))
    return {
        "conv2d": (Conv2d("conv", weight(draw, 4, 2, 3, 3), draw.standard_normal(4), stride=2, padding=1), (2, 5, 6)),
        "linear": (Linear("fc", weight(draw, 4, 7), draw.standard_normal(4)), (7,)),
        "batch_norm": (norm, (3, 2, 2)),
        "spiking": (smooth(Spiking("lif", Neuron(), "sigmoid", 2.0)), (3, 2, 2)),
        "avg_pool": (AvgPool2d("pool", 2), (2, 5, 4)),
        "max_pool": (MaxPool2d("pool", 2), (2, 5, 4)),
        "flatten": (Flatten("flat"), (2, 3, 2)),
        "dropout": (Dropout("drop", 0.4), (6,)),
        "vote": (Vote("vote", 3), (6,)),
    }


def test_every_layer_has_a_case() -> None:
    assert layer_cases().keys() == LAYERS.keys()


@pytest.mark.parametrize("name", LAYERS)
def test_backward_of_a_layer_is_the_derivative_of_its_forward(name: str) -> None:
    layer, shape = layer_cases()[name]
    draw = np.random.default_rng(1)
    x = draw.standard_normal((*shape, T, B))
    rng = partial(stream, 5)
    y, cache = layer.forward(x, True, rng, NO_RECORD)
    dy = draw.standard_normal(y.shape)
    assert y.shape[:-2] == layer.output_shape(shape)
    dx, gradients = layer.backward(dy, cache, NO_RECORD, dense=False)

    def loss() -> float:
        return float(np.sum(layer.forward(x, True, rng, NO_RECORD)[0] * dy))

    def sides() -> list:
        return layer.side if isinstance(layer, SmoothSpiking) else [winners(layer, x)]

    for array, gradient in [(x, dx), *((p, gradients[n]) for n, p in layer.parameters().items())]:
        error, checked, left_out = worst(loss, sides, array, gradient, np.arange(array.size))
        assert error <= TOLERANCE
        assert checked > 0.8 * (checked + left_out)


def winners(layer, x: np.ndarray) -> np.ndarray:
    """Which input wins each pooling window: a gradient jumps where that changes."""
    return layer.forward(x, True, None, NO_RECORD)[1][0] if isinstance(layer, MaxPool2d) else np.zeros(0)


@pytest.mark.parametrize("name", ["conv2d", "linear"])
def test_the_dense_gradient_holds_the_active_one_and_what_a_new_connection_would_get(name: str) -> None:
    layer, shape = layer_cases()[name]
    draw = np.random.default_rng(2)
    x = draw.standard_normal((*shape, T, B))
    y, cache = layer.forward(x, True, None, NO_RECORD)
    dy = draw.standard_normal(y.shape)
    active = layer.backward(dy, cache, NO_RECORD, dense=False)[1]
    both = layer.backward(dy, cache, NO_RECORD, dense=True)[1]
    key = f"{layer.name}.weight"
    np.testing.assert_allclose(both[key], active[key], rtol=1e-12, atol=1e-12)
    layer.weight, sparse = from_dense(layer.weight.dense(), np.ones(layer.weight.shape, bool)), layer.weight
    full = layer.backward(dy, cache, NO_RECORD, dense=False)[1]         # dormant places as active zeros
    layer.weight = sparse
    np.testing.assert_allclose(both[f"{key}.dense"].reshape(-1), full[key], rtol=1e-12, atol=1e-12)
    dormant = full[key].reshape(layer.weight.shape)[~layer.weight.mask()]
    assert np.abs(dormant).max() > 0.1, "dormant places do have a gradient"


NETWORKS = [
    *({"neuron.reset": reset, "neuron.detach_reset": detach, "model.pool": "average", "train.loss": "tet"}
      for reset, detach in product(["hard", "soft", "none"], [False, True])),
    *({"train.loss": loss, "model.pool": "max", "model.dropout": 0.2, "neuron.surrogate": surrogate, "neuron.alpha": 2}
      for loss, surrogate in zip([*LOSSES, *LOSSES, *LOSSES], SURROGATES, strict=False)),
    {"neuron.preset": "spikingjelly"}, {"neuron.preset": "snntorch"},
    {"neuron.preset": "norse", "neuron.v_threshold": 0.2},
    {"structure.density": 1.0}, {"structure.density": 0.05},
    {"model.layers": "3C3 4Rs2 4R AP2 FC8/nobias FC VOTE2"}, {"model.layers": "3C3s2/nonorm 4C1/nolif 4R GAP FC"},
]


def make_smooth(layers: list) -> None:
    """Replace spiking layers by smooth ones, in residual blocks too."""
    for k, layer in enumerate(layers):
        if isinstance(layer, Residual):
            make_smooth(layer.body)
            make_smooth(layer.shortcut)
        elif isinstance(layer, Spiking):
            layers[k] = smooth(layer)


@pytest.mark.parametrize("settings", NETWORKS, ids=lambda s: " ".join(str(v) for v in s.values()))
def test_backward_of_a_whole_network_is_its_derivative(settings: dict) -> None:
    base = {"dtype": "float64", "encode.steps": T}
    chain = "model.layers" in settings
    base |= {"model.name": "layers"} if chain else {"model.channels": [2, 3], "model.hidden": 6}
    keys = config.load("tiny", [f"{k}={config.literal(v)}" for k, v in (base | settings).items()])
    network = build(keys, (1, 8, 8), 5)
    make_smooth(network.layers)
    for weight in network.weights.values():
        weight.data[:] *= 3             # enough drive for every layer to fire: gradients far above rounding
    draw = np.random.default_rng(3)
    x, labels = direct(draw.random((B, 1, 8, 8)), T, np.float64), draw.integers(0, 5, B)
    rng = partial(stream, 7)

    def forward():
        return network.forward(x, True, rng, NO_RECORD)

    logits, caches = forward()
    for layer, cache in leaf_caches(caches):
        if isinstance(layer, SmoothSpiking):
            layer.freeze(cache[1])
    gradients = network.backward(LOSSES[keys.train.loss](logits, labels)[1], caches, NO_RECORD)

    def sides() -> list:
        spiking = [side for layer in network.leaves if isinstance(layer, SmoothSpiking) for side in layer.side]
        caches = leaf_caches(forward()[1])
        return spiking + [cache[0] for layer, cache in caches if isinstance(layer, MaxPool2d)]

    def loss() -> float:
        return LOSSES[keys.train.loss](forward()[0], labels)[0]

    checked = left_out = 0
    for name, array in network.parameters.items():
        places = draw.permutation(array.size)[:10]
        error, here, out = worst(loss, sides, array, gradients[name], places)
        assert error <= TOLERANCE, f"{name}: {error:.1e}"
        checked, left_out = checked + here, left_out + out
    assert checked > 0.6 * (checked + left_out), f"{left_out} of {checked + left_out} left out"
