"""The command `measure`: the numbers are those of pq.py, in every scope; whatever is wrong with a file is one line."""

import csv
import io
import zipfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest

from refsnn import cli
from refsnn.errors import UserError
from refsnn.measure import MAX_BYTES, measure_file, read_weights
from refsnn.pq import pq_index, retained_bound, rewiring_count
from refsnn.topology import Scope

Array = npt.NDArray[Any]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A convolution with a mask, a linear layer with zeros and an empty neuron, and arrays that are no weights."""
    draw = np.random.default_rng(0)
    conv, mask = draw.standard_normal((4, 2, 3, 3)).astype(np.float32), draw.random((4, 2, 3, 3)) < 0.5
    conv[0, 0, 0, 0], mask[0, 0, 0, 0] = 0, True        # active though it is 0
    linear = draw.standard_normal((5, 40))
    linear[draw.random((5, 40)) < 0.4] = 0
    linear[2] = 0
    path = tmp_path / "w.npz"
    arrays = {"conv.weight": conv, "conv.weight.mask": mask, "fc": linear, "bias": np.zeros(5), "label": np.array("a")}
    np.savez(path, **arrays)
    return path


def arrays(path: Path) -> tuple[Array, Array, Array]:
    with np.load(path) as stored:
        return stored["conv.weight"], stored["conv.weight.mask"], stored["fc"]


def expected(w: Array, places: int, **keys: float) -> dict[str, float]:
    """Eqs. (2)-(4) of one unit by the functions for single units."""
    p, q, eta = keys.get("p", 0.5), keys.get("q", 1.0), keys.get("eta", 1e-3)
    index = pq_index(w, p, q)
    bound = retained_bound(float(w.size), index, p, q, eta) if np.any(w) else float(w.size)
    count = rewiring_count(w.size, bound, keys.get("gamma", 1.0), keys.get("beta", 0.9))
    return {"active": w.size, "size": places, "index": index, "bound": bound, "count": count,
            "ratio_active": count / max(w.size, 1), "ratio_total": count / places}


def assert_row(row: dict[str, Any], wanted: dict[str, float]) -> None:
    for name, value in wanted.items():
        assert row[name] == pytest.approx(value, rel=1e-12), name


@pytest.mark.parametrize("keys", [{}, {"p": 1.0, "q": 2.0}, {"eta": 0.1}, {"gamma": 0.5}, {"beta": 0.05}])
def test_layer_wise_each_array_is_a_unit(file: Path, keys: dict[str, float]) -> None:
    conv, mask, linear = arrays(file)
    rows = measure_file(file, "layer", **keys).rows
    assert [row["array"] for row in rows] == ["conv.weight", "fc", "all"]
    parts = [expected(conv[mask], conv.size, **keys), expected(linear[linear != 0], linear.size, **keys)]
    for row, wanted in zip(rows, parts, strict=False):
        assert_row(row, wanted)
    for name in ("active", "size", "bound", "count"):
        assert rows[-1][name] == pytest.approx(sum(part[name] for part in parts))


def test_neuron_wise_each_row_is_a_unit(file: Path) -> None:
    conv, mask, linear = arrays(file)
    rows = measure_file(file, "neuron", every_unit=True).rows
    wanted = [expected(w[m], w.size) for w, m in zip(conv, mask, strict=True)]
    wanted += [expected(w[w != 0], w.size) for w in linear]
    assert [(row["array"], row["shape"]) for row in rows[:-1]] == (
        [("conv.weight", str(k)) for k in range(4)] + [("fc", str(k)) for k in range(5)])
    for row, one in zip(rows, wanted, strict=False):
        assert_row(row, one)
    summary = measure_file(file, "neuron").rows
    assert [row["units"] for row in summary] == [4, 5, 9]
    alive = [one["index"] for one in wanted[4:] if one["active"]]
    assert summary[1]["index_min"] == pytest.approx(min(alive))
    assert summary[1]["index_max"] == pytest.approx(max(alive))
    mean = sum(one["index"] * one["active"] for one in wanted) / sum(one["active"] for one in wanted)
    assert summary[2]["index"] == pytest.approx(mean)
    assert summary[2]["count"] == sum(one["count"] for one in wanted)


def test_global_all_arrays_are_one_unit(file: Path) -> None:
    conv, mask, linear = arrays(file)
    rows = measure_file(file, "global").rows
    assert len(rows) == 1
    assert_row(rows[0], expected(np.concatenate([conv[mask], linear[linear != 0]]), conv.size + linear.size))


def test_an_active_zero_counts_only_with_a_mask(tmp_path: Path) -> None:
    w = np.array([[1.0, 0.0, 2.0, 0.0]])
    np.savez(tmp_path / "w.npz", bare=w, masked=w, masked_mask=np.array([[True, True, True, False]]))
    rows = measure_file(tmp_path / "w.npz").rows
    assert [row["active"] for row in rows] == [2, 3, 5]


def test_notes_name_what_was_assumed_and_skipped(file: Path) -> None:
    unmasked, skipped = measure_file(file).notes
    assert unmasked.endswith(": fc")
    assert "bias float64(5)" in skipped
    assert "label" in skipped
    assert "mask" not in skipped


def test_all_zero_weights_lose_nothing(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", w=np.zeros((3, 4)), v=np.zeros((2, 2)), v_mask=np.ones((2, 2), dtype=bool))
    for scope in get_args(Scope):
        rows = measure_file(tmp_path / "w.npz", scope).rows
        assert all(row["index"] == 0 and row["count"] == 0 for row in rows)


# ----------------------------------------------------------------------------------------------------------- the output


def test_table_is_aligned_and_holds_the_numbers(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["measure", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    head = next(k for k, line in enumerate(lines) if line.startswith("array"))
    table = lines[head:head + 5]
    assert len({len(line) for line in table}) == 1
    row = measure_file(file).rows[1]
    assert table[3].split() == ["fc", "5×40", str(row["active"]), "200", f"{row['index']:.4f}", f"{row['bound']:.1f}",
                                str(row["count"]), *(f"{row[name]:.4f}" for name in ("ratio_active", "ratio_total"))]


@pytest.mark.parametrize("scope", ["layer", "neuron", "global"])
def test_csv_is_exact(file: Path, scope: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["measure", str(file), "--scope", scope, "--units", "--csv"]) == 0
    out = capsys.readouterr().out
    rows = measure_file(file, scope, every_unit=True).rows
    for text, row in zip(csv.DictReader(io.StringIO(out)), rows, strict=True):
        assert list(text) == list(row)
        assert float(text["bound"]) == row["bound"]
        assert int(text["count"]) == row["count"]


def test_units_prints_a_line_for_every_neuron(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["measure", str(file), "--scope", "neuron", "--units"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(("conv.weight ", "fc ")) for line in lines) == 9


# ------------------------------------------------------------------------------------------------------------ bad input


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_bad_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    assert "no such file" in refused(path)
    path.write_bytes(b"")
    refused(path)
    path.write_bytes(np.random.default_rng(0).bytes(1000))
    refused(path)
    np.savez(path, w=np.ones((50, 50)))
    whole = path.read_bytes()
    path.write_bytes(whole[:5000])
    refused(path)
    path.write_bytes(whole[:2000] + b"\x00" * 100 + whole[2100:])     # the zip's checksum tells
    refused(path)
    np.save(tmp_path / "one.npy", np.ones((2, 2)))
    refused(tmp_path / "one.npy")
    refused(tmp_path)


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", w=np.array([[{}, []]], dtype=object), allow_pickle=True)
    refused(tmp_path / "w.npz")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_named_unless_masked(tmp_path: Path, value: float) -> None:
    w = np.ones((2, 3))
    w[1, 1] = value
    np.savez(tmp_path / "w.npz", fine=np.ones((2, 2)), w=w)
    assert ": w: 1 of 6 active weights" in refused(tmp_path / "w.npz")
    np.savez(tmp_path / "w.npz", w=w, w_mask=np.isfinite(w))
    assert measure_file(tmp_path / "w.npz").rows[0]["active"] == 5


@pytest.mark.parametrize("mask", [np.ones((2, 3)), np.ones((3, 2), dtype=bool), np.ones(6, dtype=bool)])
def test_a_mask_must_be_boolean_and_fit(tmp_path: Path, mask: Array) -> None:
    np.savez(tmp_path / "w.npz", w=np.ones((2, 3)), w_mask=mask)
    assert "w_mask" in refused(tmp_path / "w.npz")


def test_a_file_without_weights_says_what_it_has(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", b=np.ones(3), c=np.ones((2, 2), dtype=complex), e=np.ones((0, 3)))
    message = refused(tmp_path / "w.npz")
    assert "b float64(3), c complex128(2, 2), e float64(0, 3)" in message
    np.savez(tmp_path / "w.npz")
    assert "no arrays" in refused(tmp_path / "w.npz")


def test_a_file_that_claims_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_BYTES >= 1 << 30
    np.savez(tmp_path / "w.npz", w=np.ones((100, 100)))
    monkeypatch.setattr("refsnn.measure.MAX_BYTES", 1000)
    assert "limit" in refused(tmp_path / "w.npz")


def test_other_files_in_the_archive_are_skipped(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", w=np.ones((2, 2)))
    with zipfile.ZipFile(tmp_path / "w.npz", "a") as archive:
        archive.writestr("readme.txt", "hello")
    assert "readme.txt" in measure_file(tmp_path / "w.npz").notes[-1]


@pytest.mark.parametrize("option", ["--p=1", "--p=0", "--q=0.5", "--q=0.5001", "--q=nan", "--eta=-1", "--gamma=-1",
                                    "--beta=2"])
def test_bad_parameters_are_one_line(file: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["measure", str(file), option]) == 2
    err = capsys.readouterr().err
    assert err.startswith("refsnn: ")
    assert err.count("\n") == 1
