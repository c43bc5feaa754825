"""Planted faults: each is named at its own record, by its convention; those that are not in the list are unknown."""

import re

import pytest
from faults import KNOWN, UNKNOWN, Fault, golden

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


@pytest.mark.parametrize("name", KNOWN)
def test_a_planted_fault_is_named_at_its_own_record(name: str) -> None:
    fault = KNOWN[name]
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
    assert len(UNKNOWN) >= 5


@pytest.mark.parametrize("base", ["adam", "neuron", "max", "dropout", "adamw", "sgd", "tie", "equal"])
def test_without_a_fault_the_golden_runs_agree(base: str) -> None:
    report = report_of(Fault("", None, base))
    assert report.exit_code == 0
    assert not report.differing
