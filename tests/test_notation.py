"""Networks in the field's notation: what is built from it, and what is refused."""

import numpy as np
import pytest

from conftest import data_of, first, tiny
from refsnn import config as configuration
from refsnn.budget import Batch, budget, kept, require_memory
from refsnn.chain import Residual, leaf_caches
from refsnn.errors import UserError
from refsnn.layers import Conv2d
from refsnn.machine import available_memory
from refsnn.models import MODELS, build
from refsnn.notation import parse
from refsnn.ops.static import one_step, static
from refsnn.plan import plan_of
from refsnn.rng import stream
from refsnn.schema import Config
from refsnn.trace import NO_RECORD
from refsnn.train import start


def chain(text: str, *overrides: str) -> Config:
    return configuration.loads("", ["model.name=layers", f"model.layers={text}", *overrides])


def test_a_chain_becomes_its_layers() -> None:
    network = build(chain("4C3 6C5s2p0 MP2 8C1/nonorm 8C3/nolif AP2 FC12/nobias DP0.5 FC VOTE3"), (3, 32, 32), 5)
    found = [(type(layer).__name__, layer.name) for layer in network.layers]
    assert found == [
        ("Conv2d", "conv1"), ("BatchNorm", "norm1"), ("Spiking", "lif1"),
        ("Conv2d", "conv2"), ("BatchNorm", "norm2"), ("Spiking", "lif2"), ("MaxPool2d", "pool1"),
        ("Conv2d", "conv3"), ("Spiking", "lif3"), ("Conv2d", "conv4"), ("BatchNorm", "norm4"), ("AvgPool2d", "pool2"),
        ("Flatten", "flatten"), ("Linear", "fc1"), ("Spiking", "lif4"), ("Dropout", "dropout"), ("Linear", "fc2"),
        ("Vote", "vote"),
    ]
    by_name = {layer.name: layer for layer in network.layers}
    assert (by_name["conv2"].stride, by_name["conv2"].padding, by_name["conv2"].kernel_size) == (2, 0, (5, 5))
    assert by_name["conv1"].bias is None
    assert by_name["conv3"].bias is not None
    assert by_name["fc1"].bias is None
    assert by_name["fc2"].bias is not None
    assert by_name["fc2"].weight.shape == (15, 12)
    assert [layer.first for layer in network.sparse_layers if isinstance(layer, Conv2d)] == [True, False, False, False]


def test_blanks_and_dashes_are_alike() -> None:
    assert parse("64C3-128R-GAP-FC") == parse(" 64C3   128R GAP\nFC ")


def test_a_residual_block() -> None:
    network = build(chain("4C3 4R 6Rs2 GAP FC"), (3, 8, 8), 5)
    same, wider = (layer for layer in network.layers if isinstance(layer, Residual))
    assert same.shortcut == []
    assert [layer.name for layer in wider.body] == [f"block2.{n}" for n in ("conv1", "norm1", "lif1", "conv2", "norm2")]
    assert [layer.name for layer in wider.shortcut] == ["block2.shortcut", "block2.shortcut_norm"]
    assert (wider.body[0].stride, wider.body[3].stride, wider.shortcut[0].stride) == (2, 1, 2)
    assert wider.shortcut[0].kernel_size == (1, 1)
    assert network.input_shapes()["block2.conv2"] == (6, 4, 4)
    assert network.input_shapes()["block2.lif2"] == (6, 4, 4)
    assert network.input_shapes()["block2.shortcut"] == (4, 8, 8)
    names = list(network.weights)
    assert names == ["conv1.weight", "block1.conv1.weight", "block1.conv2.weight", "block2.conv1.weight",
                     "block2.conv2.weight", "block2.shortcut.weight", "fc1.weight"]
    assert not any(layer.first for layer in network.sparse_layers[1:-1] if isinstance(layer, Conv2d))


def test_the_join_adds_both_ways() -> None:
    network = build(chain("4C3 6Rs2 GAP FC", "dtype=float64"), (3, 8, 8), 5)
    block = network.layers[3]
    x = np.random.default_rng(0).random((4, 8, 8, 2, 3))
    rng = lambda name: stream(0, name)      # noqa: E731
    y, _ = block.forward(x, True, rng, NO_RECORD)
    along, beside = x, x
    for layer in block.body:
        along, _ = layer.forward(along, True, rng, NO_RECORD)
    for layer in block.shortcut:
        beside, _ = layer.forward(beside, True, rng, NO_RECORD)
    np.testing.assert_array_equal(y, along + beside)


@pytest.mark.parametrize(("text", "words"), [
    ("64C3", "needs one read-out"), ("FC FC", "needs one read-out"), ("FC 64C3", "at its end"),
    ("FC VOTE2 VOTE2", "VOTE"),
    ("FC10 VOTE2", "needs one read-out"), ("64K3 FC", '"64K3" is no layer'), ("0C3 FC", "is no layer"),
    ("64C3/nobias FC", "no option /nobias"), ("DP1.5 FC", "is no layer"), ("64C3 XX FC", "64C3, 64C3s2"),
    ("", '"" is no layer'),
])
def test_what_is_not_understood_is_named(text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "words"), [
    ("AP2 AP2 AP2 AP2 FC", "images too small"), ("FC8 4C3 FC", "a convolution needs maps"),
    ("FC8 4R FC", "block needs maps"),
    ("FC8 AP2 FC", "pooling needs maps"), ("4C3s2p0 GAP FC", "needs square maps"),
])
def test_layers_that_do_not_fit_are_named(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        plan_of(chain(text), text, (3, 8, 9) if "square" in words else (3, 8, 8), 5)


def test_keys_of_another_network_are_refused() -> None:
    with pytest.raises(UserError, match=r'belongs to model\.name = "conv2fc2"'):
        tiny("model.name=resnet19", "model.hidden=3")
    with pytest.raises(UserError, match=r'belongs to model\.name = "layers"'):
        tiny("model.layers=FC")
    with pytest.raises(UserError, match="needs the chain of layers"):
        tiny("model.name=layers")


@pytest.mark.parametrize("name", [n for n in MODELS if n not in ("layers", "conv2fc2")])
def test_every_named_network_is_a_chain(name: str) -> None:
    plan = plan_of(Config(), MODELS[name](Config().model), (2, 48, 48) if name == "vggsnn" else (3, 32, 32), 10)
    assert plan.shape == (10,)


# ---------------------------------------------------------------------------------------------------- the budget


def bytes_kept(caches: list) -> int:
    """Bytes of all arrays in caches, each buffer counted once; per-channel statistics left out."""
    seen: dict[int, int] = {}

    def visit(value: object) -> None:
        if isinstance(value, np.ndarray) and value.ndim > 1:
            held = one_step(value).nbytes
            seen[value.__array_interface__["data"][0]] = held               # a reshaped view has the same address
        elif isinstance(value, tuple | list):
            for one in value:
                visit(one)

    visit(caches)
    return sum(seen.values())


@pytest.mark.parametrize("still", [False, True])    # an image that is the same at every step
@pytest.mark.parametrize("large", [2**24, 0])       # 0: what the convolution of the data puts out is not kept
@pytest.mark.parametrize("batch", [4, 16])          # 16: spikes that convolutions read are packed
@pytest.mark.parametrize("text", ["4C3 6R 8Rs2 8R GAP FC12 FC", "4C3 MP2 6C3/nonorm AP2 FC8 FC VOTE2", "FC8/nolif FC",
                                  "4C3/nolif 4C3s2 AP2 FC"])
def test_the_budget_counts_what_the_caches_hold(
    text: str, batch: int, large: int, still: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refsnn.chain.LARGE", large)
    config = chain(text, "dtype=float64", "encode.steps=3", f"train.batch={batch}", "structure.density=0.2")
    network = build(config, (3, 8, 8), 5)
    x = np.random.default_rng(0).random((3, 8, 8, 1 if still else 3, batch))
    x = static(x, 3) if still else x
    _, caches = network.forward(x, True, lambda name: stream(0, name), NO_RECORD)
    need = kept(network.layers, (3, 8, 8), Batch(3, batch, 8, still))
    held = bytes_kept([c for _, c in leaf_caches(caches)])
    assert (need.numbers * 8 + need.bytes) * 3 * batch == pytest.approx(held, abs=1)


def test_too_little_memory_is_refused_with_the_remedy() -> None:
    config = tiny("train.batch=64")
    state = start(config, first(data_of(config), 64, 8))
    need = budget(state.network, config)
    require_memory(need, config, int(need.memory))
    require_memory(need, config, None)
    with pytest.raises(UserError, match=r"train.batch = 64, encode.steps = 2: .* GiB .*set train.batch to 31 or less"):
        require_memory(need, config, int(need.memory - 0.51 * need.step))
    with pytest.raises(UserError, match="take a smaller network"):
        require_memory(need, config, int(need.held))
    assert available_memory() is None or available_memory() > 0


def test_the_budget_counts_weights_and_operations() -> None:
    network = build(chain("4C3/nonorm FC", "structure.density=0.5", "encode.steps=3"), (1, 4, 4), 5)
    need = budget(network, chain("4C3/nonorm FC", "encode.steps=3"))
    assert (need.all, need.active) == (36 + 320, 178)
    assert need.dense == 3 * (4 * 10 * 10 + 320), "a 3x3 window meets 4x4 pixels 10 times in each direction, not 12"
