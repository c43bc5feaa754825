"""What every check shares: a table of measured errors against limits, the versions, and skipping with a reason.

A check is a function `check(table)` that adds rows; `run(title, packages, check)` makes it a program:

    python validation/check_scipy.py         prints the table; exit 0 where every row holds, 1 where one does not
    skipped: rigl_torch is not installed     exit 0, where a framework that the check compares with is absent

A row states what was compared, how many cases, the worst error, and the limit it is held to. A row without a case, or
whose error is not a number, does not hold: nothing passes by having compared nothing.
"""

import importlib
import importlib.metadata
import math
import platform
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

EXACT = 0.0             # equal, bit for bit or as sets
GRADIENT = 1e-12        # float64: max |difference| / max |value|
LINE = "{:<64} {:>11} {:>10} {:>8}  {}"


class Skip(Exception):
    """The check cannot run: the reason is its message."""


@dataclass(frozen=True)
class Row:
    """One comparison: what, how many cases, the worst error and the largest that is allowed."""

    what: str
    cases: int
    worst: float
    limit: float

    @property
    def holds(self) -> bool:
        """Whether something was compared and nothing was worse than the limit."""
        return self.cases > 0 and math.isfinite(self.worst) and self.worst <= self.limit

    def __str__(self) -> str:
        return LINE.format(self.what, f"{self.cases:,}", _number(self.worst), _number(self.limit),
                           "ok" if self.holds else "FAILS")


@dataclass
class Table:
    """The rows of one check, printed as they come; `quiet` for tests."""

    quiet: bool = False
    rows: list[Row] = field(default_factory=list)

    def add(self, what: str, cases: int, worst: float, limit: float) -> bool:
        """Add a row and return whether it holds."""
        row = Row(what, cases, float(worst), limit)
        if not self.rows:
            self.note(LINE.format("what", "cases", "worst", "limit", "verdict"))
        self.rows.append(row)
        self.note(str(row))
        return row.holds

    def note(self, text: str) -> None:
        """Print a line that is no comparison."""
        if not self.quiet:
            print(text, flush=True)

    @property
    def holds(self) -> bool:
        """Whether there are rows and all of them hold."""
        return bool(self.rows) and all(row.holds for row in self.rows)


class Worst:
    """The worst relative error over many cases, for one row of the table."""

    def __init__(self) -> None:
        self.cases, self.error = 0, 0.0

    def see(self, got: Any, reference: Any) -> None:
        """Compare two arrays of one shape."""
        self.error = _worse(self.error, relative(got, reference))
        self.cases += 1

    def count(self, differing: int, cases: int = 1) -> None:
        """Add a number of differing entries instead of an error."""
        self.error, self.cases = self.error + differing, self.cases + cases

    def see_absolute(self, got: Any, reference: Any, unit: float = 1.0) -> None:
        """Compare two arrays of one shape by their largest absolute difference, in multiples of `unit`."""
        self.error = _worse(self.error, float(np.abs(np.subtract(got, reference)).max()) / unit)
        self.cases += 1

    def report(self, table: Table, what: str, limit: float) -> bool:
        """Add the row."""
        return table.add(what, self.cases, self.error, limit)


def _worse(a: float, b: float) -> float:
    """The larger; NaN is larger than anything."""
    return b if math.isnan(b) or b > a else a


def relative(got: Any, reference: Any) -> float:
    """max |got - reference| / max |reference|, infinite where the shapes differ, NaN where a value is.

    Where the reference is zero throughout, the absolute error.
    """
    a, b = np.asarray(got), np.asarray(reference)
    if a.shape != b.shape:
        return math.inf
    if a.size == 0:
        return 0.0
    scale = float(np.abs(b).max()) or 1.0
    return float(np.abs(np.subtract(a, b, dtype=np.float64)).max()) / scale


def unequal(got: Any, reference: Any) -> int:
    """How many entries differ in any bit of their value; all of them where the shapes differ."""
    a, b = np.asarray(got), np.asarray(reference)
    return int(np.count_nonzero(a != b)) if a.shape == b.shape else max(a.size, b.size, 1)


def need(*modules: str) -> list[Any]:
    """Import optional modules.   Raises Skip that names the first one that is not there, or does not load."""
    found = []
    for name in modules:
        try:
            found.append(importlib.import_module(name))
        except ModuleNotFoundError as error:
            missing = (error.name or name).partition(".")[0]
            raise Skip(f"{missing} is not installed") from None
        except (ImportError, OSError) as error:
            raise Skip(f"{name} does not load: {' '.join(str(error).split())}") from None
    return found


def versions(packages: Iterable[str]) -> str:
    """One line: Python and the installed versions of these packages."""
    parts = [f"Python {platform.python_version()}"]
    for name in packages:
        try:
            parts.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            parts.append(f"{name} absent")
    return ", ".join(parts)


def run(title: str, packages: Iterable[str], check: Callable[[Table], None]) -> int:
    """Run a check as a program: print its table; return the exit status."""
    from refsnn.twin import get_backend

    began, table = time.perf_counter(), Table()
    print(f"{title}\n{versions(('refsnn', 'numpy', *packages))}; refsnn's backend: {get_backend()}\n")
    try:
        check(table)
    except Skip as reason:
        print(f"skipped: {reason}")
        return 0
    failed = sum(not row.holds for row in table.rows)
    verdict = "agree" if table.holds else f"{failed} of {len(table.rows)} rows FAIL"
    print(f"\n{verdict}; {len(table.rows)} rows, {time.perf_counter() - began:.0f} s")
    return 0 if table.holds else 1


def main(title: str, packages: Iterable[str], check: Callable[[Table], None]) -> None:
    """`run`, and leave the program with its status."""
    sys.exit(run(title, packages, check))


def _number(value: float) -> str:
    """0 for zero, whole numbers as such, others with two digits."""
    if value == 0:
        return "0"
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e6 else f"{value:.1e}"
