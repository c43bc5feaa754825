"""Reading, merging and writing configurations: TOML <-> the frozen dataclasses of refsnn/schema.py.

Four layers are merged, the later winning: the defaults, the rewiring preset, the file, `--set`. Nothing is corrected
silently: an unknown key, a wrong type and a value out of range are errors that name the key, the place and the remedy.
"""

import difflib
import hashlib
import tomllib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from refsnn.errors import UserError
from refsnn.schema import KEYS, PRESETS, SECTIONS, Config, Value, allowed, check, fits, literal, settings

__all__ = ["Config", "config_hash", "differences", "dumps", "load", "loads", "names"]


def _nearest(name: str, known: Iterable[str]) -> str:
    """The known name most like `name`, by the whole name or by its last part."""

    def likeness(other: str) -> float:
        pairs = ((name, other), (name.rpartition(".")[2], other.rpartition(".")[2]))
        return max(difflib.SequenceMatcher(None, a, b).ratio() for a, b in pairs) + 0.01 * (pairs[0][0] == other)

    return max(known, key=likeness)


def _accept(name: str, value: Any, place: str) -> Value:
    """A value read from TOML as its key's type holds it: lists as tuples, integers as floats where floats belong."""
    if name.partition(".")[0] in SECTIONS and "." not in name:
        raise UserError(f"{place}: {name} is a section, not a key; its keys are written {name}.KEY, or below [{name}]")
    if name not in KEYS:
        raise UserError(f"{place}: there is no key {name}; the nearest is {_nearest(name, KEYS)}")
    if isinstance(value, list):
        value = tuple(value)
    if not fits(value, KEYS[name].kind):
        raise UserError(f"{place}: {name} = {literal(value)} is not allowed; allowed: {allowed(KEYS[name])}")
    return float(value) if type(value) is int and KEYS[name].takes_float else value


def _read(text: str, place: str) -> dict[str, Value]:
    """The keys that a TOML text writes."""
    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"{place}: not valid TOML: {' '.join(str(error).split())}") from None
    written: dict[str, Value] = {}
    for name, value in tables.items():
        if isinstance(value, dict) and name not in KEYS:
            if name not in SECTIONS:
                raise UserError(f"{place}: there is no section [{name}]; the nearest is [{_nearest(name, SECTIONS)}]")
            written.update({f"{name}.{leaf}": _accept(f"{name}.{leaf}", one, place) for leaf, one in value.items()})
        else:
            written[name] = _accept(name, value, place)
    return written


def _read_override(override: str) -> tuple[str, Value]:
    """`a.b=c`: the value as TOML, or as it stands where the key holds a text (so that quotes may be left out)."""
    name, equals, text = (part.strip() for part in override.partition("="))
    place = f"--set {override}"
    if not equals:
        raise UserError(f"{place}: write KEY=VALUE, as in --set optim.lr=0.001")
    try:
        parsed = tomllib.loads(f"value = {text}")
        value: Any = parsed["value"] if len(parsed) == 1 else text
    except (tomllib.TOMLDecodeError, RecursionError):
        value = text
    if name in KEYS and KEYS[name].kind is str and not isinstance(value, str):
        value = text
    return name, _accept(name, value, place)


def names() -> list[str]:
    """The configurations that come with the package."""
    folder = resources.files("refsnn") / "configs"
    return sorted(one.name.removesuffix(".toml") for one in folder.iterdir() if one.name.endswith(".toml"))


def load(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """The configuration of a bundled name or a .toml file, with `a.b=c` overrides.   Raises UserError."""
    place = str(name_or_path)
    if place.endswith(".toml"):
        source: Any = Path(name_or_path)
    elif place in names():
        source = resources.files("refsnn") / "configs" / f"{place}.toml"
    else:
        raise UserError(f"{place}: no such configuration; bundled: {', '.join(names())}; a file must end in .toml")
    try:
        text = source.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{place}: no such file; bundled configurations: {', '.join(names())}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{place}: cannot be read as UTF-8 text: {error}") from None
    return loads(text, overrides, place)


def loads(text: str, overrides: Iterable[str] = (), place: str = "configuration") -> Config:
    """The configuration of a TOML text; `place` names the text in errors.   Raises UserError."""
    written = _read(text, place)
    places = dict.fromkeys(written, place)
    for override in overrides:
        name, value = _read_override(override)
        written[name], places[name] = value, f"--set {override}"
    preset = PRESETS[str(written.get("rewire.preset", KEYS["rewire.preset"].default))]
    pinned = all(places.get(name) == place for name in preset)  # by the file: a preset from --set would be idle
    if places.get("rewire.preset", place) != place and pinned and any(written[name] != preset[name] for name in preset):
        idle, listed = places["rewire.preset"], ", ".join(preset)
        raise UserError(f"{idle}: changes nothing, because {place} itself writes {listed}; set these instead")
    values = {name: one.default for name, one in KEYS.items()} | preset | written
    check(values, places)
    tables: dict[str, Any] = {name: {} for name in SECTIONS}
    for name, value in values.items():
        section, _, leaf = name.rpartition(".")
        (tables[section] if section else tables)[leaf] = value
    return Config(**tables | {name: SECTIONS[name](**tables[name]) for name in SECTIONS})


def dumps(config: Config) -> str:
    """The complete configuration as TOML; loads(dumps(config)) == config. Keys left to a preset (None) are left out."""
    lines, section = [], ""
    for name, value in settings(config).items():
        owner, _, leaf = name.rpartition(".")
        if owner != section:
            section = owner
            lines += ["", f"[{section}]"]
        if value is not None:
            lines.append(f"{leaf} = {literal(value)}")
    return "\n".join(lines) + "\n"


def _deciding(config: Config) -> dict[str, Value]:
    """The settings that a result depends on: all but the name of the rewiring preset, whose keys are written out."""
    flat: dict[str, Any] = {name: value for name, value in settings(config).items() if name != "rewire.preset"}
    for name, value in flat.items():
        if KEYS[name].takes_float and isinstance(value, int | float):
            flat[name] = value + 0.0  # so that 1 and 1.0, and -0.0 and 0.0, are one setting
    return flat


def config_hash(config: Config) -> str:
    """Sixteen hexadecimal digits that are equal where two configurations compute the same."""
    text = "\n".join(f"{name} = {literal(value)}" for name, value in sorted(_deciding(config).items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(a: Config, b: Config) -> list[str]:
    """The keys by which two configurations compute differently: ["optim.lr = 0.002 against 0.001", ...]."""
    first, second = _deciding(a), _deciding(b)
    differing = [name for name in first if first[name] != second[name]]
    return [f"{name} = {literal(first[name])} against {literal(second[name])}" for name in differing]
