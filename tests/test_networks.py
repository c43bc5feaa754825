"""The paper's networks: their weights, the densities that ERK and ER give their layers, and the figures of Table 1."""

import math

import pytest

from refsnn.config import load
from refsnn.models import MODELS
from refsnn.plan import plan_of
from refsnn.topology import layer_counts, layer_densities

SHAPES = {  # configuration -> shape of a sample, classes
    "cifar10_resnet19": ((3, 32, 32), 10), "cifar100_resnet19": ((3, 32, 32), 100),
    "cifar10dvs_vggsnn": ((2, 48, 48), 10), "cifar10_conv6fc2": ((3, 32, 32), 10), "cifar10_small": ((3, 32, 32), 10),
}
SIZES = {"cifar10_resnet19": 12_619_968, "cifar100_resnet19": 12_643_008, "cifar10dvs_vggsnn": 9_263_232,
         "cifar10_conv6fc2": 36_715_264, "cifar10_small": 398_176}

# density -> layers, where those that are not named are dense
RESNET_LAYER2 = ("block4.conv2", "block5.conv1", "block5.conv2", "block6.conv1", "block6.conv2")
RESNET_LAYER3 = ("block7.conv2", "block8.conv1", "block8.conv2")
DENSITIES = [
    ("cifar10_resnet19", "erk", 0.5, 3, {.666: RESNET_LAYER2, .498: ("block7.conv1",), .331: RESNET_LAYER3}),
    ("cifar10_resnet19", "er", 0.5, 2, {.68: RESNET_LAYER2, .34: RESNET_LAYER3,
                                        .51: ("block7.conv1", "block7.shortcut", "fc1")}),
    ("cifar10_resnet19", "er", 0.5, 3, {.682: RESNET_LAYER2, .341: RESNET_LAYER3,
                                        .511: ("block7.conv1", "block7.shortcut", "fc1")}),
    ("cifar10dvs_vggsnn", "erk", 0.5, 3, {.845: ("conv4",), .631: ("conv5",), .42: ("conv6", "conv7", "conv8")}),
    ("cifar10dvs_vggsnn", "erk", 0.1, 3, {.475: ("conv2",), .234: ("conv3",), .155: ("conv4",), .116: ("conv5",),
                                          .077: ("conv6", "conv7", "conv8")}),
]


def weights_of(name: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a configuration's weights; none is drawn."""
    config = load(name, [])
    return plan_of(config, MODELS[config.model.name](config.model), *SHAPES[name]).weights


@pytest.mark.parametrize("name", SIZES)
def test_a_network_has_as_many_weights_as_its_description(name: str) -> None:
    assert sum(map(math.prod, weights_of(name).values())) == SIZES[name]


def test_resnet19_has_the_blocks_and_shortcuts_of_its_description() -> None:
    expected: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 3, 3)}
    channels = [64, 128, 128, 128, 256, 256, 256, 512, 512]
    for k in range(1, 9):
        before, after = channels[k - 1 : k + 1]
        expected[f"block{k}.conv1.weight"] = (after, before, 3, 3)
        expected[f"block{k}.conv2.weight"] = (after, after, 3, 3)
        if before != after:
            expected[f"block{k}.shortcut.weight"] = (after, before, 1, 1)
    expected |= {"fc1.weight": (256, 512), "fc2.weight": (10, 256)}
    found = weights_of("cifar10_resnet19")
    assert list(found.items()) == list(expected.items())


@pytest.mark.parametrize(("name", "spread", "density", "digits", "partial"), DENSITIES)
def test_the_density_of_every_layer_is_the_published_one(
    name: str, spread: str, density: float, digits: int, partial: dict[float, tuple[str, ...]]
) -> None:
    weights = weights_of(name)
    expected = {f"{layer}.weight": share for share, layers in partial.items() for layer in layers}
    assert expected.keys() <= weights.keys()
    found = dict(zip(weights, layer_densities(list(weights.values()), density, spread), strict=True))
    assert {layer: round(share, digits) for layer, share in found.items() if share < 1} == expected
    counts = layer_counts(list(weights.values()), density, spread)
    assert sum(counts) == round(density * SIZES[name])
    for (layer, shape), count in zip(weights.items(), counts, strict=True):
        assert count == pytest.approx(found[layer] * math.prod(shape), abs=1)


@pytest.mark.parametrize(("name", "percent", "millions"), [
    ("cifar10_resnet19", "40.58", "5.12"), ("cifar10_resnet19", "26.63", "3.36"), ("cifar10_resnet19", "29.72", "3.7"),
    ("cifar100_resnet19", "29.48", "3.73"), ("cifar10dvs_vggsnn", "30", "2.76")])
def test_the_share_of_all_weights_is_the_number_printed_in_table_1(name: str, percent: str, millions: str) -> None:
    """Both are printed with few digits: some number of connections fits both, 3.7 M being cut and not rounded."""
    def interval(text: str, cut: bool = False) -> tuple[float, float]:
        unit = 10.0 ** -len(text.partition(".")[2])
        return float(text) - (0 if cut else unit / 2), float(text) + (unit if cut else unit / 2)

    size = SIZES[name]
    low, high = (share / 100 * size for share in interval(percent))
    least, most = (number * 1e6 for number in interval(millions, cut=millions == "3.7"))
    assert max(low, least) < min(high, most)
