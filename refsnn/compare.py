"""The command `compare`: where another implementation's records part from GOLDEN's, and which convention explains it.

GOLDEN is a trace of this program; OTHER is a file of the same form with records of the same names, written by anyone.
The records are judged in the order in which they were computed (refsnn/verdict.py). *Free* mode, the default: OTHER ran
by itself, so that everything after the first divergence is downstream of it and only counted. *Forced* mode: every
operation of OTHER was given GOLDEN's inputs, and every record gets its own verdict.

A layer of neurons runs through time, h, s, v, h, s, v; so do their records, step by step: a spike that differs at
t = 0 comes before the membrane that it changes at t = 1. How to use it: docs/crosscheck.md.
"""

import difflib
import json
import re
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn import config as configuration
from refsnn import safe_read
from refsnn.conventions import CONVENTIONS, Explanation, explain, page
from refsnn.errors import UserError
from refsnn.models import complete
from refsnn.schema import Config
from refsnn.ties import nearness
from refsnn.trace import Record
from refsnn.verdict import Tolerance, Verdict, index_text, judge, same_but

Array = npt.NDArray[Any]
Records = dict[str, Record]
NEURON = re.compile(r"(.*forward/[^/]+)/([hsv])$")
ON_ACTIVE = re.compile(
    r"(.*)(?:backward/([^/]+)/dweight|optim/([^/]+)\.weight/(?:first|second|momentum|steps|gradient))$")
SHOWN = 12          # differing records that forced mode tells in full


@dataclass(frozen=True)
class Finding:
    """A record that differs, and all that is known of it.

    | Field | Meaning |
    |---|---|
    | verdict | what differs, where, and by how much |
    | agreed_last | the record before it that agreed, None where none did |
    | unseen | records between the two that OTHER does not hold |
    | explanation | what the recomputations say, None where there was nothing to recompute from |
    | hint | an exchange of axes, a flip or a factor that would make it agree |
    | nearness | distance from the threshold or from the cut, and whether it is a tie |
    """

    verdict: Verdict
    agreed_last: str | None = None
    unseen: tuple[str, ...] = ()
    explanation: Explanation | None = None
    hint: str | None = None
    nearness: str | None = None

    def lines(self, title: str) -> list[str]:
        """The finding in words."""
        v = self.verdict
        lines = [f"{title}: {v.name}   ({v.kind}, {'x'.join(map(str, v.shapes[0])) or 'one number'})"]
        lines.append(f"  agreed last   {self.agreed_last or 'nothing: it is the first record compared'}")
        if self.unseen:
            more = f" and {len(self.unseen) - 3} more" if len(self.unseen) > 3 else ""
            lines.append(f"  not in OTHER  {', '.join(self.unseen[:3])}{more}: the fault may lie there")
        lines += [f"  {'what':<13} {_what(v)}"]
        if v.status == "differ" and v.golden is not None and v.kind != "index":
            lines.append(f"  first index   {index_text(v.name, v.first or ())}: GOLDEN {v.golden!r}, OTHER {v.other!r}")
        if v.status == "differ" and v.kind == "real":
            lines.append(f"  largest       difference {v.max_abs:.3g}, {v.max_share:.2g} of GOLDEN's largest entry"
                         + (f"; relative {v.max_rel:.3g}, {v.max_ulp:.3g} ulp" if np.isfinite(v.max_rel) else ""))
        lines += [f"  nearness      {self.nearness}"] if self.nearness else []
        lines += [f"  likely        {line}" if k == 0 else f"  {'':<13} {line}" for k, line in enumerate(self.likely())]
        return lines

    def likely(self) -> list[str]:
        """What explains the difference, a line each."""
        lines = [self.hint] if self.hint else []
        e = self.explanation
        if e is None:
            return lines
        if e.follows:
            return [*lines, "follows from OTHER's own inputs by GOLDEN's rule: the difference is theirs (within the "
                            "tolerance, or an earlier one), this record is not at fault"]
        for name in e.fitting:
            lines += [f"{name}: {CONVENTIONS[name].text}", f"  read {page(name)}"]
        if not e.reproducible:
            lines.append("unknown: GOLDEN's own record does not follow from what the file holds, nothing was tried")
        elif not e.fitting:
            lines.append(f"unknown: none of the {e.tried} known conventions for this record gives OTHER's values"
                         if e.tried else "unknown: no convention is known for this record")
        return lines


@dataclass(frozen=True)
class Report:
    """What `compare` found.

    | Field | Meaning |
    |---|---|
    | findings | in free mode the first divergence, in forced mode every record that differs, in order of computation |
    | compared, differing | records that both files hold, and how many of them do not agree |
    | worst, worst_share | of the real records that agree the one with the largest max(abs(a - b)) / max(abs(b)) |
    | downstream | names of the records after the first divergence that differ too (free mode) |
    | missing, extra | names that OTHER lacks, and those that GOLDEN lacks |
    | partial | OTHER declares that it holds some of the records only: missing ones are no failure |
    | notes | lines on the two files: settings that differ, number types |
    """

    golden: str
    other: str
    forced: bool
    findings: tuple[Finding, ...]
    compared: int
    differing: int
    worst: str
    worst_share: float
    downstream: tuple[str, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    nearest: tuple[str, ...]
    partial: bool
    notes: tuple[str, ...]

    @property
    def agree(self) -> bool:
        """Whether everything that had to agree does, and there was something to compare."""
        return bool(self.compared) and not (self.findings or self.extra or (self.missing and not self.partial))

    @property
    def exit_code(self) -> int:
        """0 where the files agree, 1 where they do not."""
        return 0 if self.agree else 1

    def lines(self) -> list[str]:
        """The report for the terminal."""
        mode = "forced" if self.forced else "free"
        lines = [f"GOLDEN {self.golden}", f"OTHER  {self.other}", *self.notes,
                 f"compared {self.compared:,} records ({mode} mode): {self.compared - self.differing:,} agree"]
        if self.worst:
            lines.append(f"of these, at most max|a - b| / max|b| = {self.worst_share:.2g} apart, in {self.worst}")
        for finding in self.findings[:SHOWN]:
            lines += ["", *finding.lines("differs" if self.forced else "first divergence")]
        if len(self.findings) > SHOWN:
            lines += ["", f"and {len(self.findings) - SHOWN:,} more records differ; --json lists them all"]
        if self.downstream:
            lines += ["", f"downstream: {len(self.downstream):,} of the records after it differ too"]
        lines += self._absent()
        words = "agree" if self.agree else "differ"
        whole = " in what OTHER holds" if self.agree and self.missing else ""
        return [*lines, "", f"verdict: the files {words}{whole}" if self.compared else "verdict: nothing to compare"]

    def _absent(self) -> list[str]:
        """What only one of the files holds."""
        lines = []
        if self.missing:
            groups = Counter("/".join(name.split("/")[:2]) for name in self.missing)
            listed = ", ".join(f"{group}/* ({n})" for group, n in list(groups.items())[:4])
            more = f" and {len(groups) - 4} more groups" if len(groups) > 4 else ""
            why = "declared partial" if self.partial else "a failure; give OTHER the attribute partial = True if meant"
            total = self.compared + len(self.missing)
            lines += ["", f"missing: {len(self.missing):,} of {total:,} records ({why}): {listed}{more}"]
        for name, near in list(zip(self.extra, self.nearest, strict=True))[:4]:
            lines.append(f"extra: {name} is no record of GOLDEN" + (f"; the nearest is {near}" if near else ""))
        if len(self.extra) > 4:
            lines.append(f"extra: {len(self.extra) - 4:,} more records are not in GOLDEN")
        return lines

    def json(self) -> str:
        """The report for programs: every field, numbers that JSON cannot hold as text."""
        findings = [asdict(one) | {"likely": one.likely()} for one in self.findings]
        fields = {name: value for name, value in vars(self).items() if name != "findings"}
        whole = {"format": "refsnn-compare/1", "agree": self.agree, "exit_code": self.exit_code, **fields}
        return json.dumps(_plain(whole | {"findings": findings}), indent=1, allow_nan=False)


def compare(golden: Path, other: Path, *, forced: bool = False, rtol: float | None = None,
            atol: float | None = None) -> Report:
    """Compare OTHER's file of records with GOLDEN's; both are read in a process of their own (refsnn/safe_read.py).

    | Parameter | Default | Meaning |
    |---|---|---|
    | forced | False | every operation of OTHER was given GOLDEN's inputs: a verdict on each |
    | rtol, atol | None | tolerances of real records, `verdict.Tolerance` |

    Raises UserError for a file that is none of records and for a tolerance that is no number.
    """
    tolerance = Tolerance(rtol, atol)
    records, attributes = safe_read.read(golden)
    theirs, their_attributes = safe_read.read(other)
    report = compare_records(records, attributes, theirs, their_attributes, forced=forced, tolerance=tolerance)
    return replace(report, golden=str(golden), other=str(other))


@np.errstate(all="ignore")          # a stranger's numbers may be of any size
def compare_records(golden: Records, attributes: dict[str, Any], other: Records, their_attributes: dict[str, Any], *,
                    forced: bool = False, tolerance: Tolerance | None = None) -> Report:
    """`compare` on records that were read. golden: in order of computation; OTHER's order and kinds do not matter."""
    config = _config(attributes)
    tolerance = replace(tolerance or Tolerance(), dtype="float64" if config is None else config.dtype)
    common = [name for name in golden if name in other]
    verdicts = in_order([judge(golden[name], other[name].value, tolerance, _where(golden, name),
                               _runs_backwards(golden, name)) for name in common], list(golden))
    bad = [v for v in verdicts if not v.agrees]
    values = {name: r.value for name, r in golden.items()}, {name: r.value for name, r in other.items()}
    findings = [_finding(v, verdicts, golden, other, values, config, tolerance, forced)
                for v in (bad if forced else bad[:1])]
    worst = max((v for v in verdicts if v.agrees), key=lambda v: v.max_share, default=None)
    extra = tuple(name for name in other if name not in golden)
    near = [difflib.get_close_matches(name, golden, 1, 0.6) for name in extra[:4]]
    return Report(
        "", "", forced, tuple(findings), len(common), len(bad), worst.name if worst and worst.max_share else "",
        worst.max_share if worst else 0.0, tuple(v.name for v in bad[1:]) if not forced else (),
        tuple(name for name in golden if name not in other), extra,
        tuple(one[0] if one else "" for one in near) + ("",) * (len(extra) - len(near)),
        _flag(their_attributes.get("partial", False)), tuple(_notes(config, their_attributes, values, common)))


def in_order(verdicts: list[Verdict], names: list[str]) -> list[Verdict]:
    """Verdicts in order of computation: the three records of a neuron layer take turns, step by step.

    A record of a neuron that agrees counts with its last time step, one that differs with the step where it does.
    """
    position = {name: k for k, name in enumerate(names)}
    first_of: dict[str, int] = {}
    for name in names:
        if match := NEURON.match(name):
            first_of.setdefault(match[1], position[name])

    def key(v: Verdict) -> tuple[int, float, int]:
        match = NEURON.match(v.name)
        if not match:
            return position[v.name], 0, 0
        time = v.shapes[0][0] if v.agrees and v.shapes[0] else (v.first or (-1,))[0]
        return first_of[match[1]], time, "hsv".index(match[2])

    return sorted(verdicts, key=key)


def _finding(v: Verdict, verdicts: list[Verdict], golden: Records, other: Records,
             values: tuple[dict[str, Array], dict[str, Array]], config: Config | None, tolerance: Tolerance,
             forced: bool) -> Finding:
    """All that can be said of a record that differs."""
    agreed = _agreed_last(v, verdicts)
    names = list(golden)
    start = names.index(agreed.partition(" ")[0]) + 1 if agreed else 0
    unseen = tuple(name for name in names[start:names.index(v.name)] if name not in other)
    if v.status not in ("differ", "shape", "not 0 or 1"):       # what is no number cannot be recomputed
        return Finding(v, agreed, unseen)
    target, wanted = values[1][v.name], values[0][v.name]
    explanation = None if config is None else explain(
        *values, v.name, v.kind, config, tolerance, forced=forced, where=_where(golden, v.name))
    hint = None if explanation and explanation.fitting else same_but(v.kind, target, wanted, tolerance)
    return Finding(v, agreed, unseen, explanation, hint, nearness(v, *values, config, tolerance))


def _agreed_last(v: Verdict, verdicts: list[Verdict]) -> str | None:
    """The record computed last before this one that agreed; of the same neurons, up to which time step."""
    match = NEURON.match(v.name)
    if match and v.first:
        seen, (earlier, later) = {one.name: one for one in verdicts}, "hsv".split(match[2])
        turns = [(v.first[0], part) for part in reversed(earlier)]
        turns += [(v.first[0] - 1, part) for part in reversed(match[2] + later)]
        for time, part in turns:
            one = seen.get(f"{match[1]}/{part}")
            if time >= 0 and one is not None and (one.agrees or (one.first is not None and one.first[0] > time)):
                return f"{one.name} at t={time}"
    before = [one.name for one in verdicts[:verdicts.index(v)] if one.agrees]
    return before[-1] if before else None


def _where(golden: Records, name: str) -> Array | None:
    """The entries of a record that count: a weight's gradient and moments exist at its connections only."""
    match = ON_ACTIVE.match(name)
    if not match:
        return None
    mask = golden.get(f"{match[1]}params/{match[2] or match[3]}.weight/mask")
    return None if mask is None else mask.value.astype(bool)


def _runs_backwards(golden: Records, name: str) -> bool:
    """Whether a record was computed from its last time step to its first: backprop through a layer of neurons."""
    match = re.match(r"(.*)backward/([^/]+)/dx$", name)
    return bool(match) and f"{match[1]}forward/{match[2]}/s" in golden     # type: ignore[index]


def _config(attributes: dict[str, Any]) -> Config | None:
    """The configuration in a file's attributes, None where there is none that can be read."""
    text = attributes.get("config")
    try:
        return None if text is None else complete(configuration.loads(str(text), place="config"))
    except UserError:
        return None


def _notes(config: Config | None, theirs: dict[str, Any], values: tuple[dict[str, Array], dict[str, Array]],
           common: list[str]) -> list[str]:
    """What is worth knowing of the two files before their records are."""
    notes = [] if config is not None else ["note: GOLDEN holds no configuration: conventions cannot be tried"]
    mine = _config(theirs)
    if config is not None and mine is not None and (apart := configuration.differences(mine, config)):
        more = f" and {len(apart) - 4} more" if len(apart) > 4 else ""
        notes.append(f"note: OTHER was configured differently: {', '.join(apart[:4])}{more}")
    coarser = {str(b.dtype) for name in common if (a := values[0][name]).dtype.kind == (b := values[1][name]).dtype.kind
               == "f" and b.dtype.itemsize < a.dtype.itemsize}
    if coarser:
        notes.append(f"note: OTHER holds {', '.join(sorted(coarser))}: compared with the tolerance of that type")
    return notes


def _what(v: Verdict) -> str:
    """The failure in words."""
    if v.status == "shape":
        return f"shape: GOLDEN {v.shapes[0]}, OTHER {v.shapes[1]}"
    if v.status == "numbers":
        return f"kind of number: a record of kind {v.kind} is {v.numbers[0]} in GOLDEN, {v.numbers[1]} in OTHER"
    if v.status in ("not finite", "not 0 or 1"):
        where = index_text(v.name, v.first or ())
        return f"{v.status}: {v.differing:,} of {v.size:,} entries, the first at {where}: {v.other}"
    if v.status == "repeated":
        return f"{v.differing:,} places stand in the list more than once, the first is {v.other}"
    if v.kind == "index":
        only, place = "GOLDEN" if v.golden else "OTHER", (v.first or (0,))[0]
        return f"{v.differing:,} of {v.size:,} places are in one of the two only; the first, {place}, is in {only}"
    return f"{v.differing:,} of {v.size:,} entries differ"


def _flag(value: Any) -> bool:
    """A truth value as files hold it."""
    return str(value).lower() not in ("false", "0", "", "no")


def _plain(value: Any) -> Any:
    """What JSON can hold."""
    if isinstance(value, dict):
        return {str(k): _plain(one) for k, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, str | bool | int) or np.isfinite(value) else str(value)
