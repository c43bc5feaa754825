"""The command `step`: what it shows is what was recorded, measured and done, and the reasons it gives are true."""

import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from refsnn import config as configuration
from refsnn import datasets, twin, walk
from refsnn.errors import UserError
from refsnn.pq import rewiring_count
from refsnn.train import measure, start


@pytest.fixture(autouse=True)
def definitions() -> Any:
    with twin.backend("numpy"):
        yield


def lines(*overrides: str, layer: str | None = None, rows: int = 10) -> list[str]:
    config = configuration.load("tiny", ["train.batch=16", *overrides])
    return list(walk.walk(config, datasets.load(config), layer, rows))


def section(text: list[str], head: str) -> list[str]:
    """The lines from one that begins with `head` to the next in capitals."""
    first = next(k for k, line in enumerate(text) if line.startswith(head))
    rest = (k for k in range(first + 1, len(text)) if re.match(r"[A-Z]{4,}", text[k]) or text[k].startswith("..."))
    return text[first:next(rest, len(text))]


def table(text: list[str], head: str) -> list[list[str]]:
    """The cells of the table whose head line begins with `head`; columns are where the rule has its dashes."""
    first = next(k for k, line in enumerate(text) if line.strip().startswith(head))
    spans = [match.span() for match in re.finditer("─+", text[first + 1])]
    last = next((k for k in range(first + 2, len(text)) if not text[k]), len(text))
    return [[line[a:b].strip() for a, b in spans] for line in text[first + 2:last]]


def test_the_first_batch_is_shown_in_order_with_its_equations() -> None:
    text = lines()
    stages = [line.split()[0] for line in text if re.match("(ENCODE|FORWARD|LOSS|BACKWARD|OPTIM) ", line)]
    assert stages == ["ENCODE", "FORWARD", "LOSS", "BACKWARD", "OPTIM"]
    forward = table(section(text, "FORWARD"), "record")
    names = [row[0] for row in forward]
    assert names.index("conv1/y") < names.index("lif1/h") < names.index("lif1/s") < names.index("fc2/y")
    backward = [row[0] for row in table(section(text, "BACKWARD"), "record")]
    assert backward.index("fc2/dx") < backward.index("lif1/dx") < backward.index("conv1/dweight")
    by_name = {row[0]: row for row in forward}
    for name, equation in (("conv1/y", "eq. (5)"), ("lif1/h", "eq. (5)"), ("lif1/s", "eq. (6)"), ("lif1/v", "eq. (7)")):
        assert equation in by_name[name][-1]
    assert table(section(text, "LOSS"), "record")[0][-1] == "eq. (8)"
    assert by_name["lif1/s"][1:3] == ["2×16×4×8×8", "spikes"]
    mean, rate = float(by_name["lif1/s"][4]), float(by_name["lif1/s"][6])
    assert mean == pytest.approx(rate, abs=5e-4)        # the mean of spikes is their rate


def test_another_loss_is_not_called_equation_8() -> None:
    assert table(section(lines("train.loss=mse_rate"), "LOSS"), "record")[0][-1] == "mse_rate"


@pytest.mark.parametrize("keys", [[], ["rewire.p=1", "rewire.q=2"], ["rewire.gamma=0.5", "rewire.beta=0.1"],
                                  ["rewire.scope=neuron"], ["rewire.scope=global"]])
def test_the_numbers_in_the_equations_give_their_results(keys: list[str]) -> None:
    text = "\n".join(section(lines(*keys), "STAGE I ENDS"))
    d, exponent, norm_p, norm_q, index = re.search(
        r"= 1 − (\d+)\^\((\S+)\) · (\S+) / (\S+) = (\S+)", text).groups()
    assert 1 - float(d) ** float(exponent) * float(norm_p) / float(norm_q) == pytest.approx(float(index), abs=1e-4)
    _, eta, outer, _, inner, bound = re.search(
        r"= (\d+) · \(1 \+ (\S+)\)\^\((\S+)\) · \(1 − (\S+)\)\^\((\S+)\) = (\S+)", text).groups()
    assert float(d) * (1 + float(eta)) ** float(outer) * (1 - float(index)) ** float(inner) == pytest.approx(
        float(bound), rel=1e-3)
    gamma, _, retained, beta, _, count = re.search(
        r"= min\(⌊(\S+) · \((\d+) − (\d+)\)⌋, ⌊(\S+) · (\d+)⌋\) = (\S+)", text).groups()
    assert min(int(float(gamma) * (int(d) - int(retained))), int(float(beta) * int(d))) == int(count.replace(",", ""))
    assert rewiring_count(int(d), float(bound), float(gamma), float(beta)) == int(count.replace(",", ""))


def test_equal_weights_retain_all_in_the_text_too() -> None:
    config = configuration.load("tiny", ["rewire.eta=0"])
    state = start(config, datasets.load(config))
    state.network.weights["fc1.weight"].data[:] = 0.3       # r = d but for rounding, which must not count as one more
    found = measure(state)
    text = "\n".join(walk.measured(state, found, walk._view(state, found, "fc1.weight", 4)))
    assert "⌊1 · (122 − 122)⌋, ⌊0.9 · 122⌋) = 0" in text


def check_fates(text: list[str]) -> int:
    """Check a table of the weakest connections; return how many of its rows are pruned."""
    cut = float(next(line for line in text if "the largest that goes" in line).split("|w| = ")[1].split(",")[0])
    weights = [(abs(float(row[2])), row[3], row[4]) for row in table(text, "rank")]
    for weight, fate, why in weights:
        if fate == "pruned":
            assert weight <= cut
            assert why == ("at the cut" if weight == cut else "below the cut")
        else:
            assert weight >= cut
    assert [w for w, *_ in weights] == sorted(w for w, *_ in weights)
    return sum(fate == "pruned" for _, fate, _ in weights)


def test_the_weakest_go_and_the_cut_is_shown() -> None:
    text = section(lines(rows=1000), "STAGE II   at the iteration's end")
    said = re.search(r"fc1: (\d+) of (\d+) connections go", "\n".join(text))
    assert said
    pruned, active = (int(number) for number in said.groups())
    assert check_fates(text) == pruned
    assert len(table(text, "rank")) == active


def test_figures_shows_growth_inside_the_next_iteration() -> None:
    text = lines(rows=1000)
    inner = section(text, "STAGE II   inside the next iteration")
    came = int(re.search(r"connections go, (\d+) come", "\n".join(inner)).group(1))
    assert came > 0
    first = next(k for k, line in enumerate(inner) if "ask most to be connected" in line)
    rows = table(inner[first:], "rank")
    cut = float(re.search(r"the cut is (\S+),", inner[first]).group(1))
    assert sum(row[3] == "comes" for row in rows) == came
    assert len(rows) == 16 * 32
    for row in rows:
        if row[3] == "comes":
            assert float(row[2]) >= cut
        elif row[4] in ("below the cut", "just pruned, below the cut"):
            assert float(row[2]) < cut
        elif row[3] == "stays":
            assert row[4] == "connected"


def test_literal_shows_growth_at_the_end_and_nothing_after() -> None:
    text = lines("rewire.preset=literal")
    assert "ask most to be connected" in "\n".join(section(text, "STAGE II   at the iteration's end"))
    assert sum(line.startswith("STAGE II") for line in text) == 1


@pytest.mark.parametrize("keys", [["rewire.preset=sap"], ["rewire.ratio=none"], ["train.epochs=1"]])
def test_a_configuration_that_never_regrows_is_said_to(keys: list[str]) -> None:
    assert lines(*keys)[-1].startswith("This configuration never regrows")


@pytest.mark.parametrize("grow", ["momentum", "adam", "gradient", "random"])
@pytest.mark.parametrize("scope", ["layer", "neuron", "global"])
def test_every_rule_and_scope_can_be_walked(grow: str, scope: str) -> None:
    text = lines(f"rewire.grow={grow}", f"rewire.scope={scope}", "rewire.grow_window=3", layer="conv2", rows=3)
    assert f"by {grow}" in "\n".join(section(text, "STAGE II   inside"))


def test_a_connection_that_may_not_return_is_said_to() -> None:
    text = "\n".join(lines("rewire.return_at_once=false", "rewire.scope=global", "structure.density=0.9", rows=1000))
    assert "just pruned, may not return at once" in text
    assert "returns and starts at 0" not in text
    assert "just pruned, returns and starts at 0" in "\n".join(
        lines("rewire.scope=global", "structure.density=0.9", rows=1000))


def test_ties_at_the_cut_are_told_apart() -> None:
    config = configuration.load("tiny", ["rewire.scope=layer"])
    state = start(config, datasets.load(config))
    state.network.weights["fc1.weight"].data[:] = 0.5
    found = measure(state)
    prune = np.array([0, 0, 2, 0])
    state.measurement = found
    text = "\n".join(walk.rewiring(state, "end", prune, 0 * prune, walk._view(state, found, "fc1.weight", 4)))
    assert text.count("at the cut") == 2
    assert text.count("ties with the cut, and comes after it") == 2


def test_an_unknown_layer_is_named() -> None:
    with pytest.raises(UserError, match="conv1, conv2, fc1, fc2"):
        lines(layer="lif1")


@pytest.mark.parametrize(("chosen", "count", "ranks"), [
    ([0, 1], 4, [1, 2, 3, 4]),                          # all of it fits
    (range(50), 8, [1, 2, 3, 4, 49, 50, 51, 52]),       # head, gap, around the cut
    (range(99), 8, [1, 2, 3, 4, 98, 99, 100]),          # the cut is near the end
    (range(100), 4, [1, 2, 100]),
    ([], 3, [1, 2, 3]),
    (range(5), 5, [1, 2, 3, 5, 6]),
    (range(100), 100, list(range(1, 101))),
])
def test_rows_show_the_head_and_the_cut(chosen: Any, count: int, ranks: list[int]) -> None:
    flags = np.zeros(100, dtype=bool)
    flags[list(chosen)] = True
    rows = walk._rows(np.arange(100), flags, count, lambda rank, _: [str(rank)])
    assert [int(row[0]) for row in rows if row[0] != "…"] == ranks
    gaps = [k for k, row in enumerate(rows) if row[0] == "…"]
    assert len(gaps) == sum(b != a + 1 for a, b in pairwise(ranks))
