"""The folder of a run: what is written, when, and how a run is taken up again.

    config.toml      the complete configuration, with the versions that ran it; can be given to `refsnn train`
    checkpoint.h5    the whole state after the last epoch (or where it was stopped): a trace of one moment
    metrics.csv      a row an epoch               structure.csv    a row a rewire and layer       (columns: tables.py)

The checkpoint holds the rows of both tables too, and the tables are written from it: whatever interrupts a run, the
folder is as of the last checkpoint once it is resumed. Every file is written whole or not at all.
"""

import csv
import importlib.metadata
import io
import json
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn import config as configuration
from refsnn import disk, trace
from refsnn.datasets import Dataset
from refsnn.errors import UserError
from refsnn.models import complete
from refsnn.ops.sparse import SparseWeight
from refsnn.pq import Measurement
from refsnn.schema import Config
from refsnn.trace import Record
from refsnn.train import State, start

Array = npt.NDArray[Any]
PACKAGES = ("numpy", "numba", "scipy", "h5py")
MEASURED = ("d", "norm_p", "norm_q", "index", "bound", "count", "ratio")
COUNTERS = ("iteration", "epoch", "batch", "step", "correct", "seen")


def versions() -> dict[str, str]:
    """The versions that a result may depend on."""
    found = {"refsnn": importlib.metadata.version("refsnn"), "python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in PACKAGES}


def create(folder: Path, config: Config) -> None:
    """Make the folder of a new run and write its config.toml. Raises UserError where a run is there already."""
    if (folder / "checkpoint.h5").exists():
        raise UserError(f"{folder}: holds a run already; add --resume to continue it, or choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); choose another --out") from error
    ran = "".join(f"#   {name} {version}\n" for name, version in versions().items())
    header = f"# The complete configuration of this run, which was made by\n{ran}"
    write_text(folder / "config.toml", header + configuration.dumps(complete(config)))


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all. Raises UserError where it cannot be written."""
    try:
        disk.write_whole(path, text.encode())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); free space or choose another --out") from error


def save(folder: Path, state: State) -> None:
    """Write the checkpoint, then the tables it implies."""
    attributes = {
        "kind": "checkpoint",
        "config": configuration.dumps(state.config),
        "config_hash": configuration.config_hash(state.config),
        "versions": json.dumps(versions()),
    }
    trace.write(folder / "checkpoint.h5", _records(state), attributes)
    write_tables(folder, state)


def write_tables(folder: Path, state: State) -> None:
    """Write metrics.csv and structure.csv from the rows of the state."""
    for name, rows in (("metrics", state.metrics), ("structure", state.structure)):
        text = io.StringIO()
        if rows:
            writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        write_text(folder / f"{name}.csv", text.getvalue())


def load_config(folder: Path) -> Config:
    """The configuration of a run. Raises UserError where the folder holds none."""
    if not (folder / "checkpoint.h5").exists():
        raise UserError(f"{folder}: holds no run (no checkpoint.h5 is in it); give the --out folder of a training")
    return configuration.load(folder / "config.toml")


def restore(folder: Path, config: Config, data: Dataset) -> State:
    """The state that a run's checkpoint holds.

    Raises UserError where the checkpoint is missing, damaged, no checkpoint, or of another configuration; nothing is
    written in any case.
    """
    path = folder / "checkpoint.h5"
    if not path.exists():
        raise UserError(f"{path}: there is no checkpoint to resume from; leave --resume out to start, or check --out")
    found, attributes = trace.read(path)
    if attributes.get("kind") != "checkpoint":
        raise UserError(f"{path}: is a trace, not a checkpoint; give the folder of a run")
    try:
        theirs = configuration.loads(str(attributes["config"]), place=str(path))
        if differing := "; ".join(configuration.differences(theirs, complete(config))[:4]):
            own = folder / "config.toml"
            raise UserError(f"{path}: is of another configuration ({differing}); resume with its own, {own}")
        return _fill(start(config, data), {name: record.value for name, record in found.items()})
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: damaged or incomplete ({error}); start anew in another --out") from error


# ------------------------------------------------------------------------------------- the state as records and back


def _records(state: State) -> list[Record]:
    """Everything of a state, as records."""
    network, kept = state.network, []

    def keep(name: str, value: Any, kind: str = "real") -> None:
        kept.append(Record(name, kind, np.asarray(value)))

    keep("progress/counters", [getattr(state, name) for name in COUNTERS], "count")
    keep("progress/sums", [state.loss_sum, state.seconds])
    for name, weight in network.weights.items():
        keep(f"weights/{name}/data", weight.data)
        keep(f"weights/{name}/indices", weight.indices, "index")
        keep(f"weights/{name}/indptr", weight.indptr, "index")
        keep(f"weights/{name}/shape", weight.shape, "count")
        for part in ("first_mask", "last_mask", "ever_active"):
            keep(f"{part}/{name}", getattr(state, part)[name], "mask")
        keep(f"growth/{name}/steps", state.growth[name].steps, "count")
        for part in state.growth[name].reads:
            keep(f"growth/{name}/{part}", getattr(state.growth[name], part))
    for name, array in network.parameters.items():
        if name not in network.weights:
            keep(f"parameters/{name}", array)
    for layer in network.norms:
        keep(f"running/{layer.name}/mean", layer.running_mean)
        keep(f"running/{layer.name}/var", layer.running_var)
    for name, array in network.initial.items():
        keep(f"initial/{name}", array)
    for name, moments in state.optimizer.state.items():
        for part, array in moments.items():
            keep(f"optim/{name}/{part}", array, "count" if part == "steps" else "real")
    if state.measurement is not None:
        for part in MEASURED:
            keep(f"measurement/{part}", getattr(state.measurement, part), "count" if part in ("d", "count") else "real")
    rows = json.dumps({"metrics": state.metrics, "structure": state.structure})
    keep("tables", np.frombuffer(rows.encode(), dtype=np.uint8), "index")
    return kept


def _fill(state: State, values: dict[str, Array]) -> State:
    """Put the records of a checkpoint into a fresh state of the same configuration."""
    network = state.network
    for name, value in zip(COUNTERS, values["progress/counters"], strict=True):
        setattr(state, name, int(value))
    state.loss_sum, state.seconds = (float(v) for v in values["progress/sums"])
    for name, old in network.weights.items():
        data, indices, indptr = (values[f"weights/{name}/{part}"] for part in ("data", "indices", "indptr"))
        network.set_weight(name, SparseWeight(_like(data, name, old.data.dtype), indices, indptr, old.shape))
        for part in ("first_mask", "last_mask", "ever_active"):
            bits = _like(values[f"{part}/{name}"], name, np.dtype(np.uint8))
            getattr(state, part)[name] = bits.reshape(-(-old.size // 8))
        remembered: dict[str, Any] = {part: values[f"growth/{name}/{part}"] for part in state.growth[name].reads}
        state.growth[name] = replace(state.growth[name], steps=int(values[f"growth/{name}/steps"]), **remembered)
    for name, array in network.parameters.items():
        if name not in network.weights:
            array[:] = _like(values[f"parameters/{name}"], name, array.dtype)
    for layer in network.norms:
        layer.running_mean = _like(values[f"running/{layer.name}/mean"], layer.name, layer.running_mean.dtype)
        layer.running_var = _like(values[f"running/{layer.name}/var"], layer.name, layer.running_var.dtype)
    network.initial = {name: values[f"initial/{name}"] for name in network.initial}
    for name, value in values.items():
        if name.startswith("optim/"):
            _, parameter, part = name.split("/")
            state.optimizer.state.setdefault(parameter, {})[part] = value
    if "measurement/d" in values:
        state.measurement = Measurement(*(values[f"measurement/{part}"] for part in MEASURED))
    rows = json.loads(values["tables"].tobytes())
    state.metrics, state.structure = rows["metrics"], rows["structure"]
    return state


def _like(value: Array, name: str, dtype: np.dtype[Any]) -> Array:
    if value.dtype != dtype:
        raise ValueError(f"{name} holds {value.dtype}, not {dtype}")
    return value
