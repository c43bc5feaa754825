"""Peak memory of one program in a process of its own, outside and inside a growth window.

    python validation/speed/memory.py PROGRAM < task.json      prints two numbers, MiB

The process imports what the program needs and nothing else: a peer's does not hold refsnn, and the other way round.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

from task import Task, loads

STEPS = 3       # the optimiser's state is there after the first, and the second meets it


def peaks(name: str, task: Task) -> tuple[float, float]:
    """MiB that a program has held at most, in ordinary steps, and in steps that keep the dense gradients' momentum.

    Raises RuntimeError with the last line of what the process said where it failed.
    """
    done = subprocess.run([sys.executable, str(Path(__file__)), name], input=task.dumps(), capture_output=True,
                          text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"memory of {name}: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
    ordinary, growing = done.stdout.split()[-2:]
    return float(ordinary), float(growing)


def main(name: str) -> None:
    """The process."""
    task = loads(sys.stdin.read())
    program = _make(name, task)
    for _ in range(STEPS):
        program.step()
    ordinary = _peak()
    program.grow()
    for _ in range(STEPS):
        program.step()
    print(ordinary, _peak())


def _make(name: str, task: Task) -> Any:
    """The program."""
    if name == "refsnn":
        from ours import Ours

        return Ours(task)
    from programs import make

    return make(name, task)


def _peak() -> float:
    """Of this program: the peak that getrusage tells begins with that of the process which started this one."""
    status = Path("/proc/self/status").read_text()
    return next(float(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 2**10


if __name__ == "__main__":
    main(sys.argv[1])
