"""Recomputing residual networks, strides, votes: who is given what, every record documented, files compared."""

import re
from pathlib import Path

import numpy as np
import pytest
from faults import PLAIN, RESIDUAL, Fault, Records, few, golden, golden_config, layers_of, spikes_joined

from conftest import tiny
from refsnn import recompute, safe_read, trace, twin
from refsnn.compare import Report, compare, compare_records
from refsnn.conventions import rules_of
from refsnn.layers import LAYERS, Flatten
from refsnn.trace import Record
from refsnn.traced import Step, UnavailableError
from refsnn.tracing import attributes
from refsnn.tracing import trace as run_trace
from refsnn.wiring import wiring_of

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(autouse=True)
def definitions():
    with twin.backend("numpy"):
        yield


# ------------------------------------------------------------------------------------------------- who is given what


def test_who_is_given_what_by_hand() -> None:
    wiring = wiring_of(tiny(*layers_of("4C3/nolif 4R 6Rs2 AP2 FC8 DP0.5 FC VOTE2")), (1, 8, 8))
    assert {name: (one.input, one.arriving) for name, one in wiring.items()} == {
        "conv1": ("encode/spikes", "backward/norm1/dx"),
        "norm1": ("forward/conv1/y", "backward/block1/dx"),
        "block1.conv1": ("forward/norm1/y", "backward/block1.norm1/dx"),
        "block1.norm1": ("forward/block1.conv1/y", "backward/block1.lif1/dx"),
        "block1.lif1": ("forward/block1.norm1/y", "backward/block1.conv2/dx"),
        "block1.conv2": ("forward/block1.lif1/s", "backward/block1.norm2/dx"),
        "block1.norm2": ("forward/block1.conv2/y", "backward/block1.lif2/dx"),
        "block1": ("forward/norm1/y", "backward/block1.lif2/dx"),
        "block1.lif2": ("forward/block1/y", "backward/block2/dx"),
        "block2.conv1": ("forward/block1.lif2/s", "backward/block2.norm1/dx"),
        "block2.norm1": ("forward/block2.conv1/y", "backward/block2.lif1/dx"),
        "block2.lif1": ("forward/block2.norm1/y", "backward/block2.conv2/dx"),
        "block2.conv2": ("forward/block2.lif1/s", "backward/block2.norm2/dx"),
        "block2.norm2": ("forward/block2.conv2/y", "backward/block2.lif2/dx"),
        "block2.shortcut": ("forward/block1.lif2/s", "backward/block2.shortcut_norm/dx"),
        "block2.shortcut_norm": ("forward/block2.shortcut/y", "backward/block2.lif2/dx"),
        "block2": ("forward/block1.lif2/s", "backward/block2.lif2/dx"),
        "block2.lif2": ("forward/block2/y", "backward/pool1/dx"),
        "pool1": ("forward/block2.lif2/s", "backward/fc1/dx"),
        "fc1": ("forward/pool1/y", "backward/lif1/dx"),
        "lif1": ("forward/fc1/y", "backward/dropout/dx"),
        "dropout": ("forward/lif1/s", "backward/fc2/dx"),
        "fc2": ("forward/dropout/y", "backward/vote/dx"),
        "vote": ("forward/fc2/y", "loss/dlogits"),
    }
    assert all(one.output in (f"forward/{name}/y", f"forward/{name}/s") for name, one in wiring.items())


@pytest.mark.parametrize("chain", [RESIDUAL, PLAIN, "4R 4Rs2 FC", "6C5s2p0/nonorm/nolif FC8/nolif FC"])
def test_layers_stand_in_the_order_in_which_they_record(chain: str, tmp_path: Path) -> None:
    config = tiny(*layers_of(chain), "train.batch=8", "train.epochs=1", "train.iterations=4")
    run_trace(config, few(config), 1, tmp_path / "t.h5", ("forward/*", "backward/*"))
    names = [name.split("/")[1:] for name in trace.read(tmp_path / "t.h5")[0]]
    wiring = wiring_of(config, (1, 8, 8))
    assert list(dict.fromkeys(layer for stage, layer, _ in names if stage == "forward")) == list(wiring)
    assert {layer for stage, layer, _ in names if stage == "backward"} == set(wiring)


def test_every_kind_of_layer_that_records_has_its_rules() -> None:
    assert set(LAYERS.values()) - {Flatten} <= set(recompute.RULES)


def test_what_cannot_be_placed_has_no_rule_and_breaks_nothing() -> None:
    config, (file, records) = golden_config("residual"), golden("residual")
    assert rules_of(Step({}, {}, "step_0000/", config), "forward/block1/y") == {}
    values = {name: one.value for name, one in records.items()}
    assert rules_of(Step(values, {}, "step_0000/", config), "forward/block9/y") == {}
    small = {"step_0000/input/x": np.zeros((8, 1, 1, 1))}               # too small for the network's strides
    with pytest.raises(UnavailableError):
        Step(small, {}, "step_0000/", tiny(*layers_of("4C3 AP2 FC"))).wiring()
    name = "step_0000/forward/block1/y"
    report = compare_records({name: records[name]}, file, {name: Record(name, "real", records[name].value + 1)}, {})
    assert "does not follow from what the file holds" in "\n".join(report.lines())


# ----------------------------------------------------------------------------------------- what people have at hand


def against_residual(other: Records, **keys: bool) -> Report:
    return compare_records(golden("residual")[1], golden("residual")[0], other, {"partial": True}, **keys)


@pytest.mark.parametrize(("kept", "where", "convention"), [
    (r"forward/.*", "forward/block1/y", "SEW-ResNet ADD"),
    (r"forward/.*lif\d/[hsv]", "forward/block1.lif2/h", "neurons before the join"),
    (r"forward/.*lif\d/s", "forward/block1.lif2/s", "neurons before the join")])
def test_spikes_that_are_joined_are_seen_in_whatever_was_written(kept: str, where: str, convention: str) -> None:
    sew = Fault("", None, "residual", prepare=spikes_joined).records(1)
    first = against_residual({name: one for name, one in sew.items() if re.fullmatch(rf"step_\d+/{kept}", name)}
                             ).findings[0]
    assert first.verdict.name == f"step_0000/{where}"
    assert convention in first.explanation.fitting


def test_the_output_of_a_block_written_as_the_spikes_of_its_neurons_is_seen_too() -> None:
    """Spikes of 0, 1 and 2: no spikes, and the sum that SEW-ResNet has there."""
    sew = Fault("", None, "residual", prepare=spikes_joined).records(1)
    name = "step_0000/forward/block1.lif2/s"
    first = against_residual({name: Record(name, "spikes", sew["step_0000/forward/block1/y"].value)}).findings[0]
    assert first.verdict.status == "not 0 or 1"
    assert first.verdict.other == 2
    assert first.explanation.fitting == ("SEW-ResNet ADD",)
    assert any("SEW-ResNet ADD: " in line for line in first.lines("first divergence"))


def test_neurons_of_a_block_are_told_by_themselves_in_forced_mode() -> None:
    fault = Fault("", None, "residual", overrides=("neuron.reset=soft",)).records(1)
    records = dict(golden("residual")[1])
    name = "step_0000/forward/block2.lif2/v"
    h, s = (records[name[:-1] + part].value for part in "hs")
    records[name] = Record(name, "real", h - 0.5 * s)
    report = against_residual(records, forced=True)
    assert [one.verdict.name for one in report.findings] == [name]
    assert "soft reset" in report.findings[0].explanation.fitting
    assert against_residual(fault).findings[0].verdict.name == "step_0000/forward/lif1/v"


def test_traces_of_residual_networks_are_compared_as_files(tmp_path: Path) -> None:
    config = golden_config("residual")
    run_trace(config, few(config), 1, tmp_path / "golden.h5")
    assert compare(tmp_path / "golden.h5", tmp_path / "golden.h5").exit_code == 0
    fault = Fault("", None, "residual", prepare=spikes_joined).records(1)
    trace.write(tmp_path / "other.h5", list(fault.values()), attributes(config, 1) | {"partial": True})
    text = "\n".join(compare(tmp_path / "golden.h5", tmp_path / "other.h5").lines())
    for words in ("first divergence: step_0000/forward/block1/y   (real, 2x8x6x8x8)",
                  "agreed last   step_0000/forward/block1.shortcut_norm/y",
                  'read docs/conventions.md, row "SEW-ResNet ADD"', "downstream: "):
        assert words in text, text
    assert safe_read.read(tmp_path / "golden.h5")[0].keys() == {
        name for name in golden("residual")[1] if name.startswith("step_0000")}


# --------------------------------------------------------------------------------------------------------- the page


def documented() -> dict[str, tuple[int | None, str]]:
    """Every record of the page: its number of axes (None: any) and its kind, whichever column they stand in."""
    found = {}
    for row in (DOCS / "trace-format.md").read_text().replace("\\|", "/").splitlines():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        if len(cells) == 4 and re.fullmatch(r"`[\w<>./]+/[\w<>./]+`", cells[0]):
            shape = next((cell for cell in cells[1:] if re.fullmatch(r"\([^()]*\)", cell)), "(...)")
            words = shape.strip("()").replace(",", " ").split()
            kind = next(cell for cell in cells[1:] if cell in ("real", "spikes", "mask", "count", "index", "rng"))
            found[cells[0].strip("`")] = (None if "..." in words else len(words), kind)
    return found


@pytest.mark.parametrize("base", ["residual", "plain"])
def test_every_record_of_a_network_is_on_the_page(base: str) -> None:
    page, wiring = documented(), wiring_of(golden_config(base), (1, 8, 8))
    words = {"Conv2d": "conv", "Linear": "linear", "BatchNorm": "norm", "Spiking": "lif", "AvgPool2d": "pool",
             "MaxPool2d": "pool", "Dropout": "dropout", "Vote": "vote", "Residual": "block"}
    for name, record in golden(base)[1].items():
        stage, owner, *part = name.split("/")[1:]
        layer, _, running = owner.partition(".running_")
        kind = words[type(wiring[layer].layer).__name__] if layer in wiring else ""
        patterns = {f"{stage}/{owner}", f"rng/dropout/<{kind}>" if stage == "rng" else "", *(
            f"{stage}/<{word}>{'.running_' + running if running else ''}/{part[0]}"
            for word in (kind, "layer", "weight", "param") if part)}
        known = [page[one] for one in patterns if one in page]
        assert known, f"{name} is not in docs/trace-format.md"
        assert any(k == record.kind and rank in (None, record.value.ndim) for rank, k in known), name
