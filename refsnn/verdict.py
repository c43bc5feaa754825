"""The verdict on one record: whether two arrays agree by the rule of their kind, and where they first do not.

| kind | rule |
|---|---|
| real | abs(a - b) <= atol + rtol abs(b), b GOLDEN's; rtol and atol: `Tolerance` |
| spikes, mask, count, rng | equal (rng that is drawn as real numbers: as real) |
| index | equal as sets of places, whatever their order; under rng/ in order, because the order was drawn |

A shape that differs, a kind of number that differs (real for integer), a number that is not finite, a spike that is
neither 0 nor 1: failures, each named. Nothing is transposed or flipped silently; `same_but` says whether that would
make two arrays agree.
"""

from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn.errors import UserError
from refsnn.trace import Record

Array = npt.NDArray[Any]
RTOL = {2: 1e-2, 4: 1e-4, 8: 1e-9}      # by the bytes of a number: float16, float32, float64
NUMBERS = {                             # what a record of a kind may hold: NumPy's letters for kinds of numbers
    "real": "f", "spikes": "fiub", "mask": "iub", "count": "iu", "index": "iu", "rng": "fiub",
}
AXES = {5: "t b c h w", 4: "o i kh kw", 3: "t b f", 2: "out in"}


@dataclass(frozen=True)
class Tolerance:
    """How far real numbers may lie apart: abs(a - b) <= atol + rtol abs(b).

    | Parameter | Default | Unit | Meaning |
    |---|---|---|---|
    | rtol | None | 1 | None: 1e-9 in float64, 1e-4 in float32, 1e-2 in float16, the coarsest of both arrays and dtype |
    | atol | None | the record's | None: rtol times the largest abs(b) of the record |
    | dtype | "float64" | | what GOLDEN computed in: a loss kept in float64 is no better than the logits it came from |

    The default atol gives every entry the same room as the record's largest. A sum of terms that cancel has an error
    in proportion to the terms, not to what is left of them: with atol = 0 a gradient that should be 0 and is 1e-17
    would be a difference. Raises UserError for a tolerance that is negative or no number.
    """

    rtol: float | None = None
    atol: float | None = None
    dtype: str = "float64"

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < np.inf:
                raise UserError(f"--{name} {value}: must be a number that is not negative")

    def relative(self, a: Array, b: Array) -> float:
        """The rtol that two arrays are compared with."""
        if self.rtol is not None:
            return self.rtol
        sizes = [np.dtype(self.dtype).itemsize, *(x.dtype.itemsize for x in (a, b) if x.dtype.kind == "f")]
        return RTOL.get(min(sizes), RTOL[8])

    def differ(self, a: Array, b: Array) -> Array:
        """Where a does not agree with GOLDEN's b; real arrays of one shape. Equal infinities agree, NaN never does."""
        rtol = self.relative(a, b)
        a, b = a.astype(np.float64), b.astype(np.float64)
        size = np.abs(b)
        largest = size.max(initial=0.0, where=np.isfinite(size))
        atol = rtol * largest if self.atol is None else self.atol
        with np.errstate(invalid="ignore", over="ignore"):
            return ~((np.abs(a - b) <= atol + rtol * np.where(np.isfinite(size), size, 0)) | (a == b))

    def agree(self, kind: str, a: Array, b: Array) -> bool:
        """Whether a agrees with b by the rule of a kind; False for arrays of two shapes."""
        if kind == "index":
            return np.array_equal(np.unique(a), np.unique(b))
        if a.shape != b.shape:
            return False
        if "f" in a.dtype.kind + b.dtype.kind and kind in ("real", "rng"):
            return not self.differ(a, b).any()
        return bool(np.array_equal(a, b))


@dataclass(frozen=True)
class Verdict:
    """What is to be said of one record.

    | Field | Meaning |
    |---|---|
    | status | "agree", "differ", "shape", "numbers" (kind of number), "not finite", "not 0 or 1", "repeated" |
    | differing, size | entries that differ, and in all; of an index: places in one set only, and in either |
    | first | index of the first that differs, in execution order; of an index: (place,) |
    | golden, other | the two values there; of an index: True where the set holds the place |
    | max_abs, max_rel, max_ulp | largest difference: absolute, relative to GOLDEN, in units in the last place |
    | max_share | the largest absolute difference over the record's largest abs(GOLDEN) |
    | shapes | the two shapes |
    """

    name: str
    kind: str
    status: str
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    size: int = 0
    differing: int = 0
    first: tuple[int, ...] | None = None
    golden: Any = None
    other: Any = None
    max_abs: float = 0.0
    max_rel: float = 0.0
    max_ulp: float = 0.0
    max_share: float = 0.0
    numbers: tuple[str, str] = ("", "")

    @property
    def agrees(self) -> bool:
        """Whether there is nothing to complain of."""
        return self.status == "agree"


def judge(golden: Record, other: Array, tolerance: Tolerance, where: Array | None = None,
          last_step_first: bool = False) -> Verdict:
    """The verdict on OTHER's array for GOLDEN's record.

    where: bool array, the entries that count (the active places of a gradient), None for all; last_step_first: the
    record was computed from its last time step to its first, so that is the order in which the first is sought.
    """
    a, b, kind = other, golden.value, golden.kind
    shapes, numbers = (b.shape, a.shape), (str(b.dtype), str(a.dtype))

    def verdict(status: str, bad: Array | None = None) -> Verdict:
        if bad is None:
            return Verdict(golden.name, kind, status, shapes, b.size, numbers=numbers)
        first = _first(bad, last_step_first)
        return Verdict(golden.name, kind, status, shapes, b.size, int(np.count_nonzero(bad)), first,
                       b[first].item() if b.shape == bad.shape else None, a[first].item(), *_largest(a, b),
                       numbers=numbers)

    if a.dtype.kind not in NUMBERS[kind] or (kind == "rng" and (a.dtype.kind == "f") != (b.dtype.kind == "f")):
        return verdict("numbers")
    if a.dtype.kind == "f" and (bad := ~np.isfinite(a) & ~(np.isinf(b) if b.shape == a.shape else False)).any():
        return verdict("not finite", bad)
    if kind == "index" and "rng/" not in golden.name:
        return _judge_places(golden, a)
    if a.shape != b.shape:
        return verdict("shape")
    if kind in ("spikes", "mask") and (bad := (a != 0) & (a != 1)).any():
        return verdict("not 0 or 1", bad)
    real = kind == "real" or (b.dtype.kind == "f" and kind == "rng")
    bad = tolerance.differ(a, b) if real else np.asarray(a != b)
    if where is not None and where.shape == bad.shape:
        bad &= where
    if bad.any():
        return verdict("differ", bad)
    figures = _largest(a if where is None else a * where, b if where is None else b * where) if real else (0.0,) * 4
    return Verdict(golden.name, kind, "agree", shapes, b.size, 0, None, None, None, *figures, numbers=numbers)


def _judge_places(golden: Record, a: Array) -> Verdict:
    """Two lists of places, as sets."""
    b = golden.value
    shapes, numbers = (b.shape, a.shape), (str(b.dtype), str(a.dtype))
    if a.ndim != 1:
        return Verdict(golden.name, golden.kind, "shape", shapes, b.size, numbers=numbers)
    places, times = np.unique(a, return_counts=True)
    if (times > 1).any():
        first = int(places[times > 1][0])
        return Verdict(golden.name, golden.kind, "repeated", shapes, b.size, int((times > 1).sum()), (first,),
                       None, first, numbers=numbers)
    apart = np.setxor1d(a, b)
    if not apart.size:
        return Verdict(golden.name, golden.kind, "agree", shapes, b.size, numbers=numbers)
    first = int(apart[0])
    return Verdict(golden.name, golden.kind, "differ", shapes, np.union1d(a, b).size, apart.size, (first,),
                   bool(first in b), bool(first in a), numbers=numbers)


def _first(bad: Array, last_step_first: bool) -> tuple[int, ...]:
    """Index of the first True, in C order, or with the first axis from its end."""
    if last_step_first and bad.ndim:
        step = int(np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))[-1])
        return (step, *_first(bad[step], False))
    return tuple(int(k) for k in np.unravel_index(int(np.argmax(bad)), bad.shape))


def _largest(a: Array, b: Array) -> tuple[float, float, float, float]:
    """Verdict's max_abs, max_rel, max_ulp (of the coarser float) and max_share; inf where GOLDEN is 0, OTHER not."""
    if a.shape != b.shape or b.size == 0:
        return 0.0, 0.0, 0.0, 0.0
    kinds = [x.dtype for x in (a, b) if x.dtype.kind == "f"]
    unit = np.finfo(min(kinds, key=lambda d: d.itemsize)).eps if kinds else np.finfo(np.float64).eps
    a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(all="ignore"):
        apart = np.abs(a - b)
        relative = np.where(b != 0, apart / np.abs(b), np.where(apart > 0, np.inf, 0))
        ulp = apart / (2.0 ** np.floor(np.log2(np.abs(b))) * unit)
        share = apart / np.abs(b).max(where=np.isfinite(b), initial=0.0)
    found = [float(x[~np.isnan(x)].max(initial=0.0)) for x in (apart, relative, ulp, share)]
    return found[0], found[1], found[2], found[3]


def index_text(name: str, first: tuple[int, ...]) -> str:
    """(1, 0, 3) as (t=1, b=0, f=3): the axes of activations and of weights have names."""
    of_weight = any(part in name for part in ("/params/", "/optim/", "/growth/", "/stage", "dweight"))
    letters = AXES.get(len(first), "").split()
    if letters and (letters[0] == "t") != of_weight:
        return f"({', '.join(f'{letter}={k}' for letter, k in zip(letters, first, strict=True))})"
    return f"({', '.join(map(str, first))})"


def same_but(kind: str, a: Array, b: Array, tolerance: Tolerance) -> str | None:
    """What would make OTHER's array a agree with GOLDEN's b: another order of axes, a flip, another shape, a factor.

    Returns words, or None. What no order changes, the sums of all entries and of their squares, is compared first: the
    full comparisons are left to arrays that have a chance.
    """
    if kind == "index" or a.size != b.size or a.size < 2:
        return None
    if a.dtype.kind == b.dtype.kind == "f" and not (np.isfinite(a).all() and np.isfinite(b).all()):
        return None
    if _same_sums(a, b, tolerance):
        if a.ndim == b.ndim <= 5:
            for axes in permutations(range(a.ndim)):
                if axes != tuple(range(a.ndim)) and tolerance.agree(kind, a.transpose(axes), b):
                    return f"OTHER agrees once its axes are put in the order {axes}: it is transposed"
        if a.shape != b.shape and tolerance.agree(kind, a.reshape(b.shape), b):
            return f"OTHER agrees once it is given the shape {b.shape}"
        if a.ndim >= 2 and tolerance.agree(kind, a[..., ::-1, ::-1], b):
            return "OTHER agrees once its last two axes are flipped"
        if a.ndim >= 1 and tolerance.agree(kind, a[::-1], b):
            return "OTHER agrees once its first axis is reversed"
    if a.shape != b.shape:
        return None
    if kind == "real" and np.any(b) and np.any(a):
        factor = float(np.vdot(b, a).real / np.vdot(b, b).real)
        if factor and tolerance.agree(kind, a / a.dtype.type(factor), b):
            return f"OTHER is GOLDEN times {factor:.6g} everywhere"
    return None


def _same_sums(a: Array, b: Array, tolerance: Tolerance) -> bool:
    """Whether two arrays may hold the same entries in another order, to twice the tolerance of their entries."""
    room = 4 * (tolerance.relative(a, b) + (tolerance.atol or 0.0))
    a, b = a.astype(np.float64), b.astype(np.float64)
    size = float(np.abs(b).max()) or 1.0
    return bool(abs(a.sum() - b.sum()) <= room * size * b.size
                and abs(np.square(a).sum() - np.square(b).sum()) <= room * size * size * b.size)
