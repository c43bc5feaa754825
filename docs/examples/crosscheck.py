"""Runs the commands of docs/crosscheck.md and puts their output there.   python docs/examples/crosscheck.py [--check]

Needs PyTorch (for validation/example_pytorch.py) besides refsnn. With --check the page is left as it is, and the exit
status is 1 where a run gives other words than it shows; digits may differ in their last places from machine to machine.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "crosscheck.md"
BLOCK = re.compile(r"(?<=```console\n)((?:\$ [^\n]*\n)+)(.*?)(?=```)", re.S)


def run(command: str, folder: Path) -> str:
    """What a command prints, with the example's path as seen from the repository."""
    words = command.replace("validation/", f"{ROOT}/validation/").split()
    program = {"refsnn": [sys.executable, "-m", "refsnn"], "python": [sys.executable]}[words[0]]
    done = subprocess.run([*program, *words[1:]], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode > 1:
        raise SystemExit(f"{command}\n{done.stdout}{done.stderr}")
    return done.stdout


def regenerate(page: str) -> str:
    """The page with every console block's output replaced by what its commands print now."""
    with tempfile.TemporaryDirectory() as folder:
        def replace(match: re.Match[str]) -> str:
            outputs = [run(line[2:], Path(folder)) for line in match[1].splitlines()]
            return match[1] + "".join(outputs)
        return BLOCK.sub(replace, page)


def words(page: str) -> str:
    """A page without its digits, which depend on the machine in their last places."""
    return re.sub(r"[-+]?[\d.,]+(e[-+]?\d+)?", "#", page)


if __name__ == "__main__":
    old = PAGE.read_text()
    new = regenerate(old)
    if "--check" in sys.argv:
        sys.exit(0 if words(old) == words(new) else f"{PAGE.name} shows other words than a run gives")
    PAGE.write_text(new)
