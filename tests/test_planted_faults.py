"""Planted faults: each is named at its own record, by its convention; those that are not in the list are unknown."""

import re

import pytest
from faults import KNOWN, KNOWN_IN_NETWORKS, UNKNOWN, Fault, golden

from refsnn import twin
from refsnn.compare import Report, compare_records

STEPS = 5       # three, a rewire, and two


@pytest.fixture(autouse=True)
def definitions():
    with twin.backend("numpy"):
        yield


def report_of(fault: Fault, *, forced: bool = False) -> Report:
    attributes, records = golden(fault.base, STEPS)
    return compare_records(records, attributes, fault.records(STEPS), {"partial": True}, forced=forced)


@pytest.mark.parametrize("fault", [*KNOWN.values(), *KNOWN_IN_NETWORKS.values()], ids=[*KNOWN, *KNOWN_IN_NETWORKS])
def test_a_planted_fault_is_named_at_its_own_record(fault: Fault) -> None:
    report = report_of(fault)
    first = report.findings[0]
    assert re.fullmatch(rf"step_\d+/{fault.where}", first.verdict.name), first.lines("first")
    assert first.explanation.reproducible, first.lines("first")
    assert fault.convention in first.explanation.fitting, first.lines("first")
    assert len(first.explanation.fitting) <= 3, first.explanation.fitting
    assert report.exit_code == 1
    assert f"{fault.convention}: " in "\n".join(report.lines())


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_fault_outside_the_list_is_located_and_called_unknown(name: str) -> None:
    fault = UNKNOWN[name]
    first = report_of(fault).findings[0]
    assert re.fullmatch(rf"step_\d+/{fault.where}", first.verdict.name), first.lines("first")
    assert first.explanation.fitting == (), first.lines("first")
    assert not first.explanation.follows
    assert any(line.startswith("unknown: ") for line in first.likely())


def test_there_are_enough_of_both() -> None:
    assert len(KNOWN) >= 25
    assert len(KNOWN_IN_NETWORKS) >= 15
    assert len(UNKNOWN) >= 5


def test_faults_in_a_network_are_named_all_at_once_in_forced_mode() -> None:
    """Each record was computed from what agrees with GOLDEN: together they are a run of forced operations."""
    attributes, records = golden("residual", STEPS)
    planted, expected = dict(records), {}
    for fault in KNOWN_IN_NETWORKS.values():
        name = f"step_0000/{fault.where}"
        if fault.base == "residual" and name not in expected:
            planted[name], expected[name] = fault.records(1)[name], fault.convention
    report = compare_records(records, attributes, planted, {}, forced=True)
    named = {one.verdict.name: one.explanation.fitting for one in report.findings}
    assert named.keys() == expected.keys()
    assert len(named) == 7
    assert all(convention in named[name] for name, convention in expected.items()), named


@pytest.mark.parametrize("base", ["adam", "neuron", "max", "dropout", "adamw", "sgd", "tie", "equal",
                                  "residual", "plain"])
def test_without_a_fault_the_golden_runs_agree(base: str) -> None:
    report = report_of(Fault("", None, base))
    assert report.exit_code == 0
    assert not report.differing
