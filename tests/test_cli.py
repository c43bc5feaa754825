"""The command line: what commands print, that bad input is one line and damages nothing, that stopping is safe."""

import contextlib
import csv
import hashlib
import io
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import refsnn
from refsnn import cli, trace

# Twelve steps in all: two iterations of one epoch of six batches.
SMALL = ["--set", "train.iterations=2", "--set", "train.epochs=1", "--set", "train.batch=256"]
# Two epochs an iteration, so that there is a rewire inside the second one.
REWIRED = ["--set", "train.iterations=2", "--set", "train.epochs=2", "--set", "train.batch=256"]
HEAVY = ("numpy", "numba", "scipy", "h5py", "matplotlib", "tqdm")


def run(*argv: str | Path) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main([str(one) for one in argv])
    return status, out.getvalue(), err.getvalue()


def refused(*argv: str | Path) -> str:
    """The one line that a command which must fail prints."""
    status, _, err = run(*argv)
    assert status == 2, err
    assert err.startswith("refsnn: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return err


def hashes(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob("*")) if p.is_file()}


def metrics_without_seconds(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def state_of(folder: Path) -> dict[str, Any]:
    """Every record of a checkpoint but those that hold times."""
    found, _ = trace.read(folder / "checkpoint.h5")
    return {name: record.value for name, record in found.items() if name not in ("progress/sums", "tables")}


def assert_same_run(one: Path, other: Path) -> None:
    assert metrics_without_seconds(one) == metrics_without_seconds(other)
    assert (one / "structure.csv").read_bytes() == (other / "structure.csv").read_bytes()
    first, second = state_of(one), state_of(other)
    assert list(first) == list(second)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name, strict=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished small run, with what it printed beside it; not to be changed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    status, out, err = run("train", "tiny", *REWIRED, "--out", folder)
    assert status == 0, err
    (folder.parent / "printed").write_text(out)
    return folder


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run to damage."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


# ----------------------------------------------------------------------------------------------------- help and imports


def test_help_imports_nothing_heavy_and_is_instant() -> None:
    code = ("import sys, resource; from refsnn import cli; cli.main(['--help'])\n"
            "used = resource.getrusage(resource.RUSAGE_SELF)\n"
            f"print([m for m in {HEAVY} if m in sys.modules], used.ru_utime + used.ru_stime)")
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    last = [done.stdout.splitlines()[-1] for done in runs]
    assert all(line.startswith("[] ") for line in last), last
    assert min(float(line.removeprefix("[] ")) for line in last) < 0.2


@pytest.mark.parametrize("command", ["train", "evaluate", "show", "step", "measure", "plot"])
def test_every_command_has_a_help_with_an_example(command: str) -> None:
    status, out, _ = run(command, "--help")
    assert status == 0
    assert "example:\n  refsnn " + command in out
    assert f"usage: refsnn {command}" in out


def test_examples_in_help_are_commands_the_parser_takes() -> None:
    for command in ("train", "evaluate", "show", "step", "measure", "plot"):
        examples = run(command, "--help")[1].partition("example:\n")[2].splitlines()
        for line in filter(None, examples):
            cli._parser().parse_args(shlex.split(line)[1:])


def test_version_and_module_entry_point() -> None:
    done = subprocess.run([sys.executable, "-m", "refsnn", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"refsnn {refsnn.__version__}\n"


def test_importing_refsnn_imports_nothing_heavy() -> None:
    code = f"import sys, refsnn; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_public_names_resolve_and_are_listed() -> None:
    assert sorted(refsnn.__all__) == sorted(refsnn.PUBLIC)
    for name in [*refsnn.__all__, *refsnn.MODULES, "__version__"]:
        assert getattr(refsnn, name) is not None
        assert name in dir(refsnn)
    assert refsnn.pq_index is refsnn.pq.pq_index
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = refsnn.nothing


@pytest.mark.parametrize("argv", [[], ["trian", "tiny"], ["train"], ["train", "tiny", "--backend", "torch"],
                                  ["train", "tiny", "--unknown"], ["step", "tiny", "--rows", "many"]])
def test_a_wrong_command_line_is_one_line(argv: list[str]) -> None:
    assert "--help" in refused(*argv)


# ---------------------------------------------------------------------------------------------------------------- train


def test_train_says_what_it_trains_and_ends_with_a_table(trained: Path) -> None:
    printed = (trained.parent / "printed").read_text()
    assert "digits: 1,437 training and 360 test samples, 10 classes" in printed
    assert "498 of 996 weights active, density 0.5000 (conv1 1.000" in printed
    assert "2 iterations of 2 epochs of 6 batches; preset figures, one ratio per layer" in printed
    assert str(trained) in printed
    assert len(re.findall(r"^iteration +\d +epoch +\d+ +loss [\d.]+", printed, re.MULTILINE)) == 4
    assert "refsnn evaluate " + str(trained) in printed
    table = printed[printed.index("iteration  epoch"):].splitlines()
    rows = [line.split() for line in table[2:4]]
    metrics = metrics_without_seconds(trained)
    with open(trained / "structure.csv", newline="") as file:
        ends = [r for r in csv.DictReader(file) if r["layer"] == "all" and r["phase"] in ("end", "last")]
    for row, epoch, end in zip(rows, metrics[1::2], ends, strict=True):
        assert row[0] == epoch["iteration"]
        assert row[2] == f"{float(epoch['param_density']):.4f}"
        assert row[3] == f"{100 * float(epoch['test_accuracy']):.2f}"
        assert row[7:9] == [f"{float(end['pq_index']):.4f}", f"{float(end['ratio_active']):.4f}"]
        assert row[10:] == [end["pruned"], end["regrown"]]


def test_a_run_has_its_files_and_a_rewire_inside(trained: Path) -> None:
    assert {p.name for p in trained.iterdir()} == {"config.toml", "checkpoint.h5", "metrics.csv", "structure.csv"}
    with open(trained / "structure.csv", newline="") as file:
        assert {row["phase"] for row in csv.DictReader(file)} == {"end", "inner", "last"}


def test_default_folders_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for expected in ("tiny-seed3", "tiny-seed3-2", "tiny-seed3-3"):
        assert run("train", "tiny", *SMALL, "--set", "train.max_steps=1", "--set", "seed=3", "--quiet") == (0, "", "")
        assert (tmp_path / "runs" / expected / "checkpoint.h5").exists()
    (tmp_path / "mine.toml").write_text("seed = 4\n[train]\nmax_steps = 1\n")
    assert run("train", "mine.toml", "--quiet")[0] == 0
    assert (tmp_path / "runs" / "mine-seed4" / "config.toml").exists()


def test_a_run_is_not_overwritten(copy: Path) -> None:
    before = hashes(copy)
    assert "--resume" in refused("train", "tiny", *REWIRED, "--out", copy)
    assert hashes(copy) == before


def test_backend_is_that_of_the_command_only(tmp_path: Path) -> None:
    from refsnn import twin

    before = twin.get_backend()
    one_step = [*SMALL, "--set", "train.max_steps=1"]
    status, out, _ = run("train", "tiny", *one_step, "--backend", "numpy", "--out", tmp_path / "run")
    assert status == 0
    assert "backend   numpy, float32" in out
    assert twin.get_backend() == before


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch, signals: list[int]) -> None:
    """Send this process signals in the midst of an optimiser step's bookkeeping."""
    usual: Callable[..., None] = cli.Progress.on_step

    def on_step(self: cli.Progress, state: Any) -> None:
        usual(self, state)
        if state.step == step:
            for number in signals:
                signal.raise_signal(number)

    monkeypatch.setattr(cli.Progress, "on_step", on_step)


@pytest.mark.parametrize(("step", "number"), [(1, signal.SIGINT), (6, signal.SIGINT), (9, signal.SIGTERM),
                                              (12, signal.SIGINT), (15, signal.SIGINT), (23, signal.SIGINT)])
def test_stopped_and_resumed_is_as_uninterrupted(step: int, number: int, trained: Path, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a run"     # to be quoted
    with monkeypatch.context() as patched:
        stop_after(step, patched, [number])
        status, _, err = run("train", "tiny", *REWIRED, "--out", folder)
    assert status == 130
    line = err.splitlines()[-1]
    again = shlex.split(line.partition("To go on:  ")[2])
    assert again == ["refsnn", "train", str(folder / "config.toml"), "--out", str(folder), "--resume"]
    stale = folder / ".checkpoint.h5.1.partial"
    stale.write_bytes(b"half a file")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    status, out, err = run(*again[1:])
    assert status == 0, err
    assert f"(step {step})" in out
    assert not stale.exists()
    assert_same_run(folder, trained)


def test_stopped_at_the_very_last_step_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                   trained: Path) -> None:
    stop_after(24, monkeypatch, [signal.SIGINT])
    assert run("train", "tiny", *REWIRED, "--out", tmp_path / "run")[0] == 0
    assert_same_run(tmp_path / "run", trained)


def test_a_second_signal_aborts_and_leaves_a_run_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                           trained: Path) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        stop_after(8, patched, [signal.SIGINT, signal.SIGINT])
        status, _, err = run("train", "tiny", *REWIRED, "--out", folder)
    assert status == 130
    assert err.endswith("refsnn: interrupted\n")
    assert run("train", folder / "config.toml", "--out", folder, "--resume")[0] == 0
    assert_same_run(folder, trained)


def test_a_run_killed_before_its_first_epoch_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                            trained: Path) -> None:
    folder = tmp_path / "run"

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(cli.Progress, "on_step", killed)
        assert run("train", "tiny", *REWIRED, "--out", folder)[0] == 130
    assert run("train", folder / "config.toml", "--out", folder, "--resume")[0] == 0
    assert_same_run(folder, trained)


def test_resuming_a_finished_run_rewrites_its_tables(copy: Path) -> None:
    before = hashes(copy)
    (copy / "metrics.csv").write_text("spoilt")
    (copy / "structure.csv").unlink()
    status, out, _ = run("train", copy / "config.toml", "--out", copy, "--resume")
    assert status == 0
    assert "finished before" in out
    assert hashes(copy) == before


def test_the_progress_bar_is_shown_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert cli.main(["train", "tiny", *SMALL, "--out", str(tmp_path / "run")]) == 0
    assert "12/12" in terminal.getvalue()
    assert "density 0.4" in terminal.getvalue()
    assert not re.search(r"^iteration +1 +epoch +1 +loss", out.getvalue(), re.MULTILINE)


def test_a_closed_pipe_is_silent() -> None:
    command = [sys.executable, "-m", "refsnn", "show", "tiny"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


# ------------------------------------------------------------------------------------------------------------ bad input

CONFIGURATIONS = [
    (["train.itrations=3"], "nearest is train.iterations"),
    (["rewire.p=1", "rewire.q=0.5"], "0 < p < q"),
    (["structure.density=0"], "(0, 1]"),
    (["structure.density=1.2"], "(0, 1]"),
    (["encode.steps=0"], "[1, inf)"),
    (["optim.lr=fast"], "optim.lr"),
    (["optim.lr"], "KEY=VALUE"),
    (["data.name=npz"], "data.path"),
    (["data.name=npz", "data.path=missing.npz"], "no such file"),
    (["encode.kind=frames"], "encode.kind"),
]


@pytest.mark.parametrize("command", ["train", "step"])
@pytest.mark.parametrize(("overrides", "words"), CONFIGURATIONS)
def test_a_bad_configuration_is_one_line(command: str, overrides: list[str], words: str, tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refused(command, "tiny", *(part for one in overrides for part in ("--set", one)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("argv", [["train", "tinny"], ["train", "missing.toml"], ["step", "tinny"], ["show", "tinny"],
                                  ["show", "missing.toml"], ["show", "missing.h5"], ["evaluate", "missing"],
                                  ["measure", "missing.npz"], ["plot", "missing", "--out", "figures"]])
def test_a_missing_file_is_named(argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert argv[1] in refused(*argv)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("argv", [["train", "tiny", "--out", "run"], ["step", "tiny"], ["show", "tiny"]])
def test_a_missing_data_set_is_one_line(argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from refsnn.datasets import images

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REFSNN_DATA", str(tmp_path / "data"))
    own = images.places("digits")[0]
    monkeypatch.setattr(images, "places", lambda _: [own])
    line = refused(*argv)
    assert str(own) in line
    assert "REFSNN_DATA" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["file", "file/inside", "/proc/refsnn"])
def test_a_folder_that_cannot_be_made_is_one_line(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("here before")
    before = hashes(tmp_path)
    assert "--out" in refused("train", "tiny", *SMALL, "--out", place)
    assert hashes(tmp_path) == before


def damage_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_random(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(50_000))


def damage_middle(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[96:6000] = np.random.default_rng(1).bytes(5904)
    path.write_bytes(whole)


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["weights"] = np.zeros((3, 3))


def other_trace(path: Path) -> None:
    trace.write(path, [trace.Record("forward/y", "real", np.zeros(3))], {"kind": "trace"})


def lacking(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["weights/fc1.weight/data"]


def wrong_structure(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["weights/fc1.weight/indices"][0] = 10_000


DAMAGES = [damage_cut, damage_random, damage_middle, damage_empty, foreign, other_trace, lacking, wrong_structure]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("command", ["resume", "evaluate", "show"])
def test_a_damaged_checkpoint_is_one_line_and_is_left_alone(command: str, damage: Callable[[Path], None],
                                                            copy: Path) -> None:
    damage(copy / "checkpoint.h5")
    before = hashes(copy)
    argv = {"resume": ["train", copy / "config.toml", "--out", copy, "--resume"], "evaluate": ["evaluate", copy],
            "show": ["show", copy]}[command]
    if command == "show" and damage in (lacking, wrong_structure):      # what is there is shown
        assert run(*argv)[0] == 0
    else:
        assert "checkpoint.h5" in refused(*argv)
    assert hashes(copy) == before


def test_a_checkpoint_of_another_configuration_is_refused(copy: Path) -> None:
    before = hashes(copy)
    line = refused("train", copy / "config.toml", "--set", "optim.lr=0.5", "--out", copy, "--resume")
    assert "optim.lr" in line
    assert hashes(copy) == before


def test_resume_needs_a_run(tmp_path: Path) -> None:
    assert "--out" in refused("train", "tiny", "--resume")
    assert "checkpoint" in refused("train", "tiny", "--out", tmp_path, "--resume")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no run")
    for argv in (["evaluate", tmp_path], ["show", tmp_path], ["plot", tmp_path, "--out", tmp_path / "figures"]):
        assert str(tmp_path) in refused(*argv)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_debug_shows_the_traceback() -> None:
    for argv in (["--debug", "train", "tinny"], ["train", "tinny", "--debug"]):
        done = subprocess.run([sys.executable, "-m", "refsnn", *argv], capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "Traceback" in done.stderr
        assert "UserError" in done.stderr


def test_an_error_of_refsnn_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from refsnn import config

    def broken(*_: Any) -> None:
        raise ValueError("two\nlines")

    monkeypatch.setattr(config, "load", broken)
    status, _, err = run("train", "tiny")
    assert status == 1
    assert err == "refsnn: ValueError: two lines (an error of refsnn; --debug shows where)\n"


# ------------------------------------------------------------------------------------------- evaluate, show, step, plot


def test_evaluate_prints_what_training_measured(trained: Path) -> None:
    status, out, _ = run("evaluate", trained)
    assert status == 0
    last = metrics_without_seconds(trained)[-1]
    assert re.search(rf"^accuracy +{100 * float(last['test_accuracy']):.2f} % ", out, re.MULTILINE)
    assert "the test set: 360 samples" in out
    for name in ("SOPs", "MACs"):
        assert re.search(rf"^{name} +{float(last[name.lower()]):,.0f} ", out, re.MULTILINE)
    assert f"{float(last['energy_pj']) / 1000:,.1f} nJ" in out
    assert "0.9 pJ a SOP and 4.6 pJ a MAC" in out
    assert re.search(r"^conv1 +\d+ +36 .* MAC +0\.\d{4}$", out, re.MULTILINE)
    assert re.search(r"^fc2 +\d+ +160 .* SOP +–$", out, re.MULTILINE)


def test_evaluate_says_that_validation_was_used(tmp_path: Path) -> None:
    overrides = ["--set", "data.validation=0.1", "--set", "train.max_steps=1"]
    assert run("train", "tiny", *SMALL, *overrides, "--out", tmp_path / "run")[0] == 0
    out = run("evaluate", tmp_path / "run")[1]
    assert "the validation set: 144 samples held out of the training set" in out
    assert "validation accuracy" in run("show", tmp_path / "run")[1]


def test_show_takes_a_configuration_a_run_and_a_file(trained: Path) -> None:
    assert run("show", "tiny")[1].startswith("configuration tiny\n")
    assert run("show", trained / "config.toml")[1].startswith(f"configuration {trained / 'config.toml'}\n")
    assert run("show", trained)[1].startswith(f"run {trained}: ")
    assert "refsnn-trace/1" in run("show", trained / "checkpoint.h5")[1]


def test_step_walks() -> None:
    status, out, err = run("step", "tiny", "--layer", "conv2", "--rows", "4")
    assert status == 0, err
    assert "STAGE I ENDS   what conv2 measures" in out
    assert "fc1, fc2" in refused("step", "tiny", "--layer", "lif1")
    assert "--rows" in refused("step", "tiny", "--rows", "0")


def test_plot_says_which_files_it_wrote(trained: Path, tmp_path: Path) -> None:
    status, out, err = run("plot", trained, "--out", tmp_path / "figures")
    assert status == 0, err
    written = [Path(line) for line in out.splitlines() if line.endswith(".png")]
    assert written
    assert sorted(written) == sorted((tmp_path / "figures").iterdir())


def test_plot_draws_the_map_of_one_layer(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["plot", str(trained), "--out", str(tmp_path), "--layer", "conv2"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["mask_conv2.png"]
    assert cli.main(["plot", str(trained), str(trained), "--out", str(tmp_path), "--layer", "conv2"]) == 2
    assert "give one" in capsys.readouterr().err


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", w=np.arange(1.0, 7.0).reshape(2, 3))
    status, _, err = run("measure", tmp_path / "w.npz", "--p", "1.5", "--q", "2")
    assert status == 0
    assert err.startswith("refsnn: warning: ")
    assert err.count("\n") == 1
