"""Reading mode: NUMBA_DISABLE_JIT=1 trains `tiny` in seconds, and the debugger stops where the README says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import refsnn

ENV = os.environ | {"NUMBA_DISABLE_JIT": "1", "OPENBLAS_NUM_THREADS": "1"}
README = Path(refsnn.__file__).parents[1] / "README.md"


def debug(commands: list[str], out: Path) -> str:
    """What pdb prints when these commands are typed into the README's walk."""
    script = [sys.executable, "-m", "pdb", "-m", "refsnn", "train", "tiny", "--quiet", "--out", str(out)]
    typed = "\n".join([*commands, "q"]) + "\n"
    return subprocess.run(script, input=typed, env=ENV, capture_output=True, text=True, timeout=300).stdout


@pytest.mark.parametrize(("module", "name", "look", "expected"), [
    ("refsnn.train", "train_step", "p x.shape", "(64, 1, 8, 8)"),
    ("refsnn.ops.neuron", "lif_forward", "p x.shape", "(4, 8, 8, 2, 64)"),
    ("refsnn.ops.neuron", "lif_backward", "p ds.shape, decay, detach_reset", "((16, 2, 64), 0.5, False)"),
    ("refsnn.pq", "measure", "p data.size", "498"),
    ("refsnn.rewire", "rewire", "p scope", "'layer'"),
])
def test_a_breakpoint_by_name_is_reached(module: str, name: str, look: str, expected: str, tmp_path: Path) -> None:
    output = debug([f"from {module} import {name}", f"b {name}", "c", look, "w"], tmp_path / "run")
    file = module.replace(".", "/") + ".py"
    assert re.search(rf"Breakpoint 1 at .*{file}:\d+", output), output
    assert f"{name}(" in output
    assert expected in output, output


def test_the_frame_of_lif_backward_is_a_few_below_train_step(tmp_path: Path) -> None:
    output = debug(["from refsnn.ops.neuron import lif_backward", "b lif_backward", "c", "w"], tmp_path / "run")
    frames = re.findall(r"/refsnn/\S+\.py\(\d+\)(\w+)\(", output)
    assert frames.index("lif_backward") - frames.index("train_step") <= 5, frames


def test_the_walk_of_the_readme_names_what_is_there() -> None:
    walk = README.read_text().split("## The walk")[1].split("\n## ")[0]
    places = re.findall(r"`from (refsnn[\w.]*) import (\w+)`, `b (\w+)`", walk)
    assert len(places) == 5
    for module, name, stop in places:
        assert name == stop
        assert hasattr(__import__(module, fromlist=[name]), name)


def test_the_docstring_of_lif_backward_leads_to_the_papers_symbols() -> None:
    from refsnn.ops import neuron

    assert "module's table" in neuron.lif_backward.__doc__
    for symbol in ("tau", "V_th", "eq. (5)", "eq. (6)", "eq. (7)"):
        assert symbol in neuron.__doc__
