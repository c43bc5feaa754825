"""`compare`: the rules of each kind, order, both modes, what is missing, and that GOLDEN follows from itself."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import Fault, Records, golden

from refsnn import config as configuration
from refsnn import trace, twin
from refsnn.compare import Report, compare, compare_records
from refsnn.conventions import CONVENTIONS, candidates, explain, rules_of
from refsnn.errors import UserError
from refsnn.models import complete
from refsnn.trace import Record
from refsnn.traced import Step
from refsnn.verdict import Tolerance, judge, same_but


@pytest.fixture(autouse=True)
def definitions():
    with twin.backend("numpy"):
        yield


def against(other: Records, *, partial: bool = False, base: str = "adam", **keys: Any) -> Report:
    attributes, records = golden(base)
    return compare_records(records, attributes, other, {"partial": partial}, **keys)


def changed(name: str, change: Any, base: str = "adam") -> Records:
    """The golden records with one changed: change(array) gives the new one, or changes it in place."""
    records = dict(golden(base)[1])
    value = records[name].value.copy()
    found = change(value)
    records[name] = Record(name, records[name].kind, value if found is None else found)
    return records


def put(index: tuple[int, ...], value: Any) -> Any:
    def change(array: np.ndarray) -> None:
        array[index] = value
    return change


def judged(kind: str, a: Any, b: Any, **keys: Any) -> Any:
    return judge(Record("x", kind, np.asarray(b)), np.asarray(a), Tolerance(), **keys)


# -------------------------------------------------------------------------------------------------- the rules by kind


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-9), (np.float32, 1e-4), (np.float16, 1e-2)])
def test_real_numbers_have_the_tolerance_of_their_type(dtype: Any, rtol: float) -> None:
    b = np.array([1, -2, 0.5])
    assert judged("real", (b * (1 + 0.5 * rtol)).astype(dtype), b).agrees
    assert not judged("real", (b * (1 + 8 * rtol)).astype(dtype), b).agrees


def test_what_was_computed_in_float32_has_its_tolerance_even_if_kept_in_float64() -> None:
    a, b = np.array([1 + 1e-6]), Record("loss/value", "real", np.array([1.0]))
    assert not judge(b, a, Tolerance()).agrees
    assert judge(b, a, Tolerance(dtype="float32")).agrees


def test_a_cancelled_sum_has_the_room_of_the_largest_entry() -> None:
    b = np.array([1.0, 0.0])
    assert judged("real", [1.0, 1e-12], b).agrees
    assert not judge(Record("x", "real", b), np.array([1.0, 1e-12]), Tolerance(atol=0.0)).agrees


def test_what_was_drawn_is_equal_in_order() -> None:
    name = "step_0000/rng/order"
    assert against(changed(name, lambda order: order[::-1])).findings[0].verdict.name == name


def test_the_figures_of_a_difference() -> None:
    v = judged("real", [1.0, 2.0, 3.5], [1.0, 2.5, 4.0])
    assert (v.differing, v.size, v.first, v.golden, v.other) == (2, 3, (1,), 2.5, 2.0)
    assert v.max_abs == 0.5
    assert v.max_rel == pytest.approx(0.2)
    assert judged("real", [1.0 + 2**-20], [1.0]).max_ulp == 2**32
    assert judged("real", [4.0, 1.0 + 2**-40], [4.0, 1.0]).max_share == 2**-42


@pytest.mark.parametrize(("kind", "a", "b"), [
    ("spikes", [0.0, 1.0], [0.0, 1.0]), ("spikes", [False, True], [0.0, 1.0]), ("mask", [0, 1], [False, True]),
    ("count", [3], [3]), ("index", [5, 2], [2, 5]), ("rng", [0.5], [0.5]), ("real", [np.inf], [np.inf])])
def test_what_agrees(kind: str, a: Any, b: Any) -> None:
    assert judged(kind, a, b).agrees


@pytest.mark.parametrize(("kind", "a", "b", "status"), [
    ("spikes", [0.0, 0.5], [0.0, 1.0], "not 0 or 1"), ("mask", [0, 2], [False, True], "not 0 or 1"),
    ("mask", [0.0, 1.0], [False, True], "numbers"), ("count", [3.0], [3], "numbers"), ("real", [1], [1.0], "numbers"),
    ("index", [2, 2, 5], [2, 5], "repeated"), ("index", [[2, 5]], [2, 5], "shape"), ("index", [2], [2, 5], "differ"),
    ("spikes", [0.0, 0.0], [0.0, 1.0], "differ"), ("count", [2**53 + 1], [2**53], "differ"),
    ("real", [np.nan], [1.0], "not finite"), ("real", [np.nan], [np.nan], "not finite"),
    ("real", [np.inf], [1.0], "not finite"),
    ("real", [1.0, 2.0], [1.0], "shape"), ("spikes", [np.nan], [1.0], "not finite"), ("rng", [1], [1.0], "numbers")])
def test_what_does_not_agree_and_why(kind: str, a: Any, b: Any, status: str) -> None:
    assert judged(kind, a, b).status == status


def test_gradients_and_moments_count_at_connections_only_and_weights_everywhere() -> None:
    mask = golden("adam")[1]["step_0000/params/fc1.weight/mask"].value
    free = tuple(np.argwhere(~mask)[0])
    for name in ("backward/fc1/dweight", "optim/fc1.weight/first", "optim/fc1.weight/second"):
        assert against(changed(f"step_0000/{name}", put(free, 1.0))).exit_code == 0
    for name in ("backward/fc1/dweight_dense", "optim/fc1.weight/after", "params/fc1.weight/value"):
        report = against(changed(f"step_0000/{name}", put(free, 1.0)))
        assert report.findings[0].verdict.name == f"step_0000/{name}"


@pytest.mark.parametrize("tolerance", [-1.0, np.nan, np.inf])
def test_a_tolerance_is_a_number_that_is_not_negative(tolerance: float) -> None:
    with pytest.raises(UserError, match="--rtol"):
        Tolerance(rtol=tolerance)


# ------------------------------------------------------------------------------------- order, and what agreed before


def test_a_neuron_layer_is_compared_step_by_step() -> None:
    """A spike that differs at t = 0 comes before the membrane it changes at t = 1, though h stands before s."""
    records = changed("step_0000/forward/lif1/h", put((1, 0, 0, 0, 0), 7.0))
    spikes = records["step_0000/forward/lif1/s"].value.copy()
    spikes[0, 0, 0, 0, 0] = 1 - spikes[0, 0, 0, 0, 0]
    records["step_0000/forward/lif1/s"] = Record("step_0000/forward/lif1/s", "spikes", spikes)
    first = against(records).findings[0]
    assert first.verdict.name == "step_0000/forward/lif1/s"
    assert first.agreed_last == "step_0000/forward/lif1/h at t=0"
    first = against(changed("step_0000/forward/lif1/h", put((1, 0, 0, 0, 0), 7.0))).findings[0]
    assert first.verdict.first == (1, 0, 0, 0, 0)
    assert first.agreed_last == "step_0000/forward/lif1/v at t=0"


def test_backprop_through_time_is_compared_from_its_last_step() -> None:
    def change(dx: np.ndarray) -> None:
        dx[:, 0, 3] += 1
    assert against(changed("step_0000/backward/lif3/dx", change)).findings[0].verdict.first == (1, 0, 3)


def test_what_follows_is_counted_as_downstream_and_what_was_not_seen_is_said() -> None:
    other = Fault("", None, overrides=("neuron.decay=0.45",)).records()
    for name in [n for n in other if n.endswith(("norm1/y", "norm1/mean"))]:
        del other[name]
    report = against(other, partial=True)
    assert len(report.findings) == 1
    assert report.downstream
    assert report.differing == 1 + len(report.downstream)
    assert report.findings[0].verdict.name == "step_0000/forward/lif1/h"
    assert report.findings[0].agreed_last == "step_0000/forward/norm1/running_var" or report.findings[0].agreed_last
    assert any(line.startswith("downstream: ") for line in report.lines())


def test_forced_mode_gives_every_record_its_own_verdict() -> None:
    fault = Fault("", None, overrides=("neuron.reset=soft",))
    with fault.planted():
        soft = fault.records()
    records = dict(golden("adam")[1])
    for name in ("step_0000/forward/lif1/v", "step_0001/forward/lif3/v"):
        h, s = (records[name[:-1] + part].value for part in "hs")
        records[name] = Record(name, "real", h - s)
    report = against(records, forced=True)
    assert [one.verdict.name for one in report.findings] == [
        n for n in ("step_0000/forward/lif1/v", "step_0001/forward/lif3/v") if not np.array_equal(
            records[n].value, golden("adam")[1][n].value)]
    assert all("soft reset" in one.explanation.fitting for one in report.findings)
    assert not report.downstream
    assert soft


# ---------------------------------------------------------------------------------------- missing, extra, misshapen


def test_missing_records_fail_unless_other_is_declared_partial() -> None:
    other = {name: r for name, r in golden("adam")[1].items() if "/forward/" in name}
    assert against(other).exit_code == 1
    report = against(other, partial=True)
    assert report.exit_code == 0
    missing = [line for line in report.lines() if line.startswith("missing: ")]
    assert len(missing) == 1
    assert "declared partial" in missing[0]
    assert report.lines()[-1] == "verdict: the files agree in what OTHER holds"


def test_a_file_without_a_common_record_never_agrees() -> None:
    report = against({}, partial=True)
    assert report.exit_code == 1
    assert report.lines()[-1] == "verdict: nothing to compare"


def test_extra_records_fail_and_the_nearest_name_is_given() -> None:
    records = dict(golden("adam")[1])
    records["step_0000/forward/lif1/spk"] = records["step_0000/forward/lif1/s"]
    report = against(records)
    assert report.exit_code == 1
    assert any(line.startswith("extra: step_0000/forward/lif1/spk is no record of GOLDEN; the nearest is "
                               "step_0000/forward/lif1/") for line in report.lines())


@pytest.mark.parametrize(("name", "change", "words"), [
    ("step_0000/forward/conv1/y", lambda y: y.transpose(1, 0, 2, 3, 4), "its axes are put in the order"),
    ("step_0000/forward/conv1/y", lambda y: y.transpose(0, 1, 3, 4, 2), "its axes are put in the order"),
    ("step_0000/forward/conv1/y", lambda y: y.reshape(-1, *y.shape[2:]), "given the shape"),
    ("step_0000/params/conv2.weight/value", lambda w: w[:, :, ::-1, ::-1], "last two axes are flipped"),
    ("step_0000/encode/spikes", lambda x: x[:, ::-1], None),
    ("step_0000/backward/fc2/dx", lambda x: 2.5 * x, "GOLDEN times 2.5")])
def test_nothing_is_transposed_silently_and_it_is_said_if_it_would_help(name: str, change: Any, words: Any) -> None:
    first = against(changed(name, change)).findings[0]
    assert first.verdict.name == name
    assert first.hint is None if words is None else words in first.hint


def test_a_square_matrix_that_is_transposed_is_seen() -> None:
    w = np.arange(9.0).reshape(3, 3)
    assert "transposed" in same_but("real", w.T, w, Tolerance())
    assert same_but("real", w + 1, w, Tolerance()) is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_found_first(value: float) -> None:
    report = against(changed("step_0000/forward/norm1/y", put((0, 0, 1, 0, 0), value)))
    assert report.findings[0].verdict.status == "not finite"
    assert any("not finite: 1 of " in line for line in report.lines())
    json.loads(report.json())


def mangled(value: np.ndarray, how: int) -> np.ndarray:
    """What a stranger's file may hold in a record's place."""
    plain = value.dtype.kind == "b"
    return [
        lambda: value.reshape(-1), lambda: value[..., None], lambda: value.T, lambda: np.zeros((0, *value.shape)),
        lambda: value * np.nan, lambda: value.astype(np.int64), lambda: ~value if plain else -value,
        lambda: value.astype(np.int64) + 2**62, lambda: value * 1e300, lambda: value.astype(np.float16),
    ][how]()


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")    # of the mangling itself
@pytest.mark.parametrize("base", ["neuron", "sgd"])
def test_whatever_a_file_holds_there_is_a_report(base: str) -> None:
    attributes, records = golden(base)
    draw, names = np.random.default_rng(0), list(records)
    for _ in range(15):
        other = dict(records)
        for name in draw.choice(names, 3, replace=False):
            other[name] = Record(name, records[name].kind, mangled(records[name].value, draw.integers(10)))
        for forced in (False, True):
            report = compare_records(records, attributes, other, {}, forced=forced)
            assert report.lines()
            json.loads(report.json())


# --------------------------------------------------------------------------------------------- ties, likely conventions


def test_a_tie_at_the_threshold_is_called_a_tie() -> None:
    report = against(Fault("", None, "tie", ("neuron.compare=ge",)).records(), base="tie")
    assert report.findings[0].nearness.endswith("a tie: the membrane is exactly at the threshold")
    name = "step_0000/forward/lif1/s"
    far = tuple(np.argwhere(golden("adam")[1][name[:-1] + "h"].value < 0)[0])
    assert against(changed(name, put(far, 1.0))).findings[0].nearness.endswith("no tie")


def test_a_tie_at_the_cut_is_called_a_tie() -> None:
    records = golden("equal")[1]
    name, score, taken = _cut_with_a_tie(records)
    cut = score[taken].max()
    swap = np.setdiff1d(np.flatnonzero((score == cut) & records[name.replace("stage2", "params").replace(
        "pruned", "mask")].value.reshape(-1)), taken)[0]
    other = np.sort(np.append(np.delete(taken, np.flatnonzero(score[taken] == cut)[0]), swap))
    first = against(changed(name, lambda _: other, "equal"), base="equal").findings[0]
    assert first.nearness.endswith("a tie: equal scores")
    weakest = int(np.flatnonzero(score == score.max())[0])
    first = against(changed(name, lambda t: np.sort(np.append(t[1:], weakest)), "equal"), base="equal").findings[0]
    assert first.nearness.endswith("no tie")


def _cut_with_a_tie(records: Records) -> tuple[str, np.ndarray, np.ndarray]:
    for name, one in records.items():
        if re.fullmatch(r"step_0002/stage2/[^/]+/pruned", name):
            score = records[name.replace("pruned", "prune_score")].value.reshape(-1)
            mask = records[name.replace("stage2", "params").replace("pruned", "mask")].value.reshape(-1)
            if one.value.size and (score[mask] == score[one.value].max()).sum() > (
                    score[one.value] == score[one.value].max()).sum():
                return name, score, one.value
    raise AssertionError("no tie at a cut")


def test_a_record_that_follows_from_its_inputs_is_not_blamed() -> None:
    """The membrane lies within the tolerance, on the other side of the threshold: the spike is not at fault."""
    attributes, records = golden("tie")
    h = records["step_0000/forward/lif1/h"].value
    threshold = float(re.search(r"v_threshold = (\S+)", attributes["config"])[1])
    at = tuple(np.argwhere(h == threshold)[0])
    membrane, spikes = "step_0000/forward/lif1/h", "step_0000/forward/lif1/s"
    other = changed(membrane, put(at, threshold * (1 + 1e-15)), "tie")
    other[spikes] = changed(spikes, put(at, 1.0), "tie")[spikes]
    first = against(other, base="tie").findings[0]
    assert first.verdict.name == "step_0000/forward/lif1/s"
    assert first.explanation.follows
    assert "follows from OTHER's own inputs" in first.likely()[0]


@pytest.mark.parametrize(("fault", "kept", "convention"), [
    (Fault("", None, overrides=("neuron.reset=soft",)), r"forward/[^/]+/[hy]", "soft reset"),
    (Fault("", None, "tie", ("neuron.compare=ge",)), r"forward/[^/]+/s", ">= against >"),
    (Fault("", None, overrides=("neuron.gain=0.5",)), r"forward/[^/]+/s", "input scaled by 1 - decay"),
    (Fault("", None, overrides=("neuron.alpha=2.0",)), r"(backward/[^/]+/dx|forward/.*)", "surrogate twice as wide"),
    (Fault("", None, overrides=("rewire.eta=0.05",)), r"stage2/[^/]+/mask", None),
    (Fault("", None, overrides=("rewire.return_at_once=false",)), r"stage2/[^/]+/mask", "just-pruned may not return"),
    (Fault("", None, "neuron", overrides=("rewire.scope=layer",)), r"stage2/[^/]+/mask", "scope layer"),
], ids=lambda x: str(x) if not isinstance(x, Fault) else "")
def test_who_dumps_little_gets_as_much_of_an_answer(fault: Fault, kept: str, convention: str | None) -> None:
    other = {name: r for name, r in fault.records().items() if re.fullmatch(rf"step_\d+/{kept}", name)}
    first = against(other, base=fault.base, partial=True).findings[0]
    assert convention in first.explanation.fitting if convention else not first.explanation.fitting


@pytest.mark.parametrize("base", ["adam", "neuron", "max", "dropout", "adamw", "sgd", "tie", "equal", "sap", "fresh",
                                  "global", "float32", "steps", "residual", "plain"])
def test_every_record_of_a_golden_trace_follows_from_its_inputs(base: str) -> None:
    """The recomputations are dense and apart from the sparse code that wrote the trace: each checks the other."""
    attributes, records = golden(base)
    config = complete(configuration.loads(attributes["config"]))
    values = {name: r.value for name, r in records.items()}
    unexplained = {name.partition("/")[2] for name, r in records.items()
                   if not explain(values, values, name, r.kind, config, Tolerance(dtype=config.dtype)).reproducible}
    drawn = {n.partition("/")[2] for n in records if n.startswith("step_0000/params/")}
    assert unexplained - drawn == {"optim/lr"}


def test_every_convention_speaks_of_some_record_and_has_a_sentence() -> None:
    spoken = set()
    for base in ("adam", "max", "dropout", "sgd", "adamw", "residual"):
        attributes, records = golden(base)
        config = complete(configuration.loads(attributes["config"]))
        values = {name: r.value for name, r in records.items()}
        for name in records:
            prefix, _, short = name.partition("/")
            spoken |= set(candidates(Step(values, values, prefix + "/", config), short))
    assert spoken == set(CONVENTIONS)
    assert all(one.text.endswith(".") and one.rule for one in CONVENTIONS.values())


def test_every_convention_has_its_row_on_the_page_that_is_named() -> None:
    page = (Path(__file__).parents[1] / "docs" / "conventions.md").read_text().replace("\\|", "|")
    assert [name for name in CONVENTIONS if f"`{name}`" not in page] == []


def test_a_record_of_no_known_form_is_judged_and_not_explained() -> None:
    record = Record("lif/paper/h", "real", np.zeros(3))
    attributes = golden("adam")[0]
    other = Record(record.name, "real", np.ones(3))
    report = compare_records({record.name: record}, attributes, {record.name: other}, {})
    assert report.findings[0].explanation.tried == 0
    assert rules_of(Step({}, {}, "", configuration.loads("")), "lif/paper/h") == {}
    assert compare_records({record.name: record}, {}, {record.name: record}, {}).exit_code == 0


# ---------------------------------------------------------------------------------------------- files, text and JSON


def written(path: Path, records: Records, **attributes: Any) -> Path:
    trace.write(path, list(records.values()), attributes)
    return path


def test_files_are_compared_and_the_report_is_readable(tmp_path: Path) -> None:
    attributes, records = golden("adam")
    mine = written(tmp_path / "golden.h5", records, **attributes)
    same = compare(mine, written(tmp_path / "same.h5", records))
    assert same.exit_code == 0
    assert same.lines()[-1] == "verdict: the files agree"
    other = Fault("", None, overrides=("neuron.reset=soft",)).records()
    report = compare(mine, written(tmp_path / "other.h5", other, partial=True))
    text = "\n".join(report.lines())
    for words in ("first divergence: step_", "agreed last ", "first index   (t=0, b=", "soft reset: a spike subtracts",
                  'read docs/conventions.md, row "soft reset"', "downstream: ", "verdict: the files differ"):
        assert words in text, text
    found = json.loads(report.json())
    assert found["format"] == "refsnn-compare/1"
    assert found["exit_code"] == 1
    assert found["findings"][0]["explanation"]["fitting"] == list(report.findings[0].explanation.fitting)
    assert found["findings"][0]["verdict"]["first"]


def test_the_page_shows_what_its_commands_print() -> None:
    pytest.importorskip("torch")
    script = Path(__file__).parents[1] / "docs" / "examples" / "crosscheck.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_file_that_is_none_is_an_error_of_usage(tmp_path: Path) -> None:
    attributes, records = golden("adam")
    mine = written(tmp_path / "golden.h5", records, **attributes)
    with pytest.raises(UserError):
        compare(mine, tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(UserError):
        compare(mine, tmp_path / "text.h5")
    with pytest.raises(UserError):
        compare(mine, mine, rtol=-1.0)


def test_another_configuration_and_a_coarser_type_are_noted() -> None:
    attributes, records = golden("adam")
    single = {name: Record(name, r.kind, r.value.astype(np.float32) if r.value.dtype == np.float64 else r.value)
              for name, r in records.items()}
    theirs = attributes["config"].replace("seed = 0", "seed = 3")
    report = compare_records(records, attributes, single, {"config": theirs})
    assert "note: OTHER was configured differently: seed = 3 against 0" in report.lines()
    assert any("float32" in line for line in report.lines())
    assert report.exit_code == 0, "\n".join(report.lines())
