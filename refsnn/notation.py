"""Networks in the field's own notation: "64C3 128R AP2 FC" is a chain of layers, in order of execution.

    64C3      convolution, 64 filters of 3x3, padding 1 (half the kernel), then batch norm, then LIF neurons
    64C3s2    with stride 2;   64C3p0 with padding 0
    128R      basic residual block: 128C3, 128C3 before its neurons, shortcut added, LIF; the shortcut is 128C1 with
              batch norm where the shape changes;   256Rs2 with stride 2 in its first convolution and its shortcut
    AP2 MP2   average or max pooling over 2x2;   GAP  the mean over the whole map
    FC256     linear layer of 256 units, then LIF;   maps are flattened before the first one
    FC        the read-out: a linear layer without neurons, one unit for each class (times the votes)
    VOTE10    behind the read-out: each class is the mean of 10 units
    DP0.2     dropout with probability 0.2
    /nonorm   a convolution without batch norm, with a bias;   /nolif  a layer without neurons
    /nobias   a linear layer without bias                      (64C3/nonorm/nolif, FC2048/nobias)

Layers may be joined by blanks or by "-". Example: the network of DVS-CIFAR10 is
64C3-128C3-AP2-256C3-256C3-AP2-512C3-512C3-AP2-512C3-512C3-AP2-FC.
"""

import re
from dataclasses import dataclass

from refsnn.errors import UserError

NUMBER = r"([1-9]\d{0,5})"
# kind -> what it looks like; the groups are the whole numbers that follow
FORMS: dict[str, re.Pattern[str]] = {
    "conv": re.compile(rf"{NUMBER}C{NUMBER}(?:s{NUMBER})?(?:p(\d{{1,3}}))?"),
    "block": re.compile(rf"{NUMBER}R(?:s{NUMBER})?"),
    "average": re.compile(rf"AP{NUMBER}"),
    "max": re.compile(rf"MP{NUMBER}"),
    "global": re.compile("GAP"),
    "linear": re.compile(rf"FC{NUMBER}"),
    "read-out": re.compile("FC"),
    "vote": re.compile(rf"VOTE{NUMBER}"),
    "dropout": re.compile(r"DP(0?\.\d+|0)"),
}
OPTIONS = {"conv": ("nonorm", "nolif"), "linear": ("nobias", "nolif"), "read-out": ("nobias",)}


@dataclass(frozen=True)
class Piece:
    """One layer of a chain: its kind, the numbers in its name (None where left out), its options, as it was written."""

    kind: str
    numbers: tuple[float | None, ...]
    options: tuple[str, ...]
    text: str


def parse(chain: str) -> list[Piece]:
    """The layers of a chain. Raises UserError that names the layer that is not understood, or is out of place."""
    pieces = [_piece(text) for text in re.split(r"[\s-]+", chain.strip())]
    kinds = [piece.kind for piece in pieces]
    if kinds.count("read-out") != 1 or kinds[-1] not in ("read-out", "vote") or "vote" in kinds[:-1]:
        raise UserError(f'model.layers = "{chain}": needs one read-out, FC without a number, at its end; '
                        "only VOTEn may follow it")
    if kinds[-1] == "vote" and kinds[-2] != "read-out":
        raise UserError(f'model.layers = "{chain}": {pieces[-1].text} must stand behind the read-out, FC')
    return pieces


def _piece(text: str) -> Piece:
    name, *options = text.split("/")
    for kind, form in FORMS.items():
        match = form.fullmatch(name)
        if match:
            for option in options:
                if option not in OPTIONS.get(kind, ()):
                    known = ", ".join("/" + one for one in OPTIONS.get(kind, ())) or "none"
                    raise UserError(f"model.layers: {text}: such a layer has no option /{option}; it has: {known}")
            return Piece(kind, tuple(None if n is None else float(n) for n in match.groups()), tuple(options), text)
    raise UserError(f'model.layers: "{text}" is no layer; layers are written 64C3, 64C3s2, 128R, AP2, MP2, GAP, FC256, '
                    "DP0.2, FC at the end, VOTE10 behind it (refsnn/notation.py)")
