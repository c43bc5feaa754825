"""How near a decision was: a membrane to its threshold, a score to the cut. A tie is called a tie.

Spikes and connections are decisions on real numbers. Where the number lies exactly on the boundary, or nearer to it
than the comparison's tolerance, the two implementations may agree in every number and differ in the decision.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn.plan import neuron_of
from refsnn.schema import Config
from refsnn.traced import STEP
from refsnn.verdict import Tolerance, Verdict

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]


def nearness(v: Verdict, golden: Arrays, other: Arrays, config: Config | None, tolerance: Tolerance) -> str | None:
    """Distance from the boundary at a record's first difference, in words; None where it is no decision."""
    match = STEP.match(v.name)
    parts = match[3].split("/") if match else []
    if config is None or v.status != "differ" or len(parts) != 3:
        return None
    prefix = match[1] or ""     # type: ignore[index]
    if parts[0] == "forward" and parts[2] == "s":
        return _threshold(v, golden, other, f"{prefix}forward/{parts[1]}/h", config, tolerance)
    if parts[0] == "stage2" and parts[2] in ("pruned", "grown", "mask"):
        return _cut(v, golden, other, prefix, parts[1], parts[2], config, tolerance)
    return None


def _threshold(v: Verdict, golden: Arrays, other: Arrays, name: str, config: Config,
               tolerance: Tolerance) -> str | None:
    """The membranes at the first spike that differs, and how far they are from the threshold."""
    if name not in golden or golden[name].shape != v.shapes[0]:
        return None
    threshold = neuron_of(config).v_threshold
    found = {"GOLDEN": golden[name]}
    if name in other and other[name].shape == v.shapes[0]:
        found["OTHER"] = other[name]
    at = {who: float(h[v.first]) - threshold for who, h in found.items()}
    distances = ", ".join(f"{who} {x:+.3g}" for who, x in at.items())
    room = tolerance.relative(golden[name], golden[name]) * max(1.0, abs(threshold))
    if 0.0 in at.values():
        word = "a tie: the membrane is exactly at the threshold"
    elif min(map(abs, at.values())) <= room:
        word = "a tie within the tolerance: rounding decides"
    else:
        word = "no tie"
    return f"h - v_threshold there: {distances}: {word}"


def _cut(v: Verdict, golden: Arrays, other: Arrays, prefix: str, weight: str, part: str, config: Config,
         tolerance: Tolerance) -> str | None:
    """The score of the first place that differs, and of the last one that GOLDEN took in the same unit."""
    before = golden.get(f"{prefix}params/{weight}/mask")
    if before is None or not v.first:
        return None
    mine, theirs = golden[v.name], other[v.name]
    if part == "mask":
        places = np.flatnonzero(mine.reshape(-1) != theirs.reshape(-1))
    else:
        places = np.setxor1d(mine, theirs).astype(np.int64)
    if not ((places >= 0) & (places < before.size)).all():
        return None
    prunes = part == "pruned" or (part == "mask" and bool(before.reshape(-1)[places[0]]))
    score = golden.get(f"{prefix}stage2/{weight}/{'prune' if prunes else 'grow'}_score")
    taken = golden.get(f"{prefix}stage2/{weight}/{'pruned' if prunes else 'grown'}")
    if score is None or taken is None:
        return None
    flat, row = score.reshape(-1), before[0].size
    if config.rewire.scope == "neuron":
        taken, places = (one[one // row == places[0] // row] for one in (taken, places))
    if not taken.size:
        return f"score {flat[places[0]]:.9g}; GOLDEN took no place there"
    edge = float(flat[taken].max() if prunes else flat[taken].min())
    room = tolerance.relative(score, score) * float(np.abs(flat).max())
    apart = np.abs(flat[places] - edge)
    word = "a tie: equal scores" if not apart.any() else "no tie"
    if apart.any() and (apart <= room).all():
        word = "a tie within the tolerance: rounding decides"
    return f"score {flat[places[0]]:.9g}, GOLDEN's cut at {edge:.9g}: {word}"
