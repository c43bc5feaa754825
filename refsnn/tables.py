"""The rows of a run's two tables: `metrics.csv`, one an epoch, and `structure.csv`, one a rewire and layer.

Iterations and epochs are counted from 1; `epoch` counts through the whole run.

metrics.csv     epoch, iteration, train_loss, train_accuracy, test_loss, test_accuracy, param_density, synapse_density,
                sops, macs, energy_pj (per sample), evaluated_on (test or validation), seconds (training alone), and a
                column `rate_<layer>` per spiking layer: spikes per neuron and time step. Measured before the rewire.
structure.csv   iteration, epoch, layer ("all": the network), phase, units, active_before, pq_index (mean over units,
                weighted by d), pq_index_min, pq_index_max, bound and count (sums over units), pruned, regrown, returned
                (regrown where this same rewire had pruned), shortfall (asked to regrow, no place free), ratio_active =
                count/d, ratio_total = count/N (the paper's c), density_after, overlap_initial and overlap_last (share
                of the connections that the start, the iteration's start, had too), ever_active (share of all places
                that were connected at any time).
                phase: end (of an iteration: prune), inner (rewire at constant density), last (measured, not pruned).
Under the global scope index, bound and count belong to the network and are left empty in the rows of single layers.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from refsnn import metrics
from refsnn.evaluate import Evaluation
from refsnn.ops.sparse import SparseWeight
from refsnn.pq import Measurement
from refsnn.rewire import Rewiring

if TYPE_CHECKING:
    from refsnn.train import State

Array = npt.NDArray[Any]
Row = dict[str, Any]


def metrics_row(state: "State", result: Evaluation, synapses: tuple[int, int]) -> Row:
    """The row of the epoch that has just been trained and evaluated; synapses: (active, all) unrolled connections."""
    keys = state.config
    return {
        "epoch": state.iteration * keys.train.epochs + state.epoch + 1,
        "iteration": state.iteration + 1,
        "train_loss": state.loss_sum / state.seen,
        "train_accuracy": state.correct / state.seen,
        "test_loss": result.loss,
        "test_accuracy": result.accuracy,
        "param_density": state.network.density,
        "synapse_density": synapses[0] / synapses[1],
        "sops": result.sops,
        "macs": result.macs,
        "energy_pj": result.energy_pj,
        "evaluated_on": "validation" if keys.data.validation > 0 else "test",
        "seconds": round(state.seconds, 3),
        **{f"rate_{name}": rate for name, rate in result.firing_rates.items()},
    }


@dataclass
class _Change:
    """What a rewire did to the connections of one layer, or to all of them together."""

    before: int = 0
    pruned: int = 0
    regrown: int = 0
    returned: int = 0
    after: int = 0
    size: int = 0

    def __add__(self, other: "_Change") -> "_Change":
        return _Change(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


def structure_rows(state: "State", phase: str, before: dict[str, SparseWeight], result: Rewiring) -> list[Row]:
    """The rows of one rewire, a layer each and one for all.

    before: the weights until now; result: what `rewire` answered.
    """
    counts = result.pruned if state.measurement is None or phase == "inner" else state.measurement.count
    names = list(before)
    after = state.network.weights
    changes = {name: _change(before[name], after[name], result.origin[k]) for k, name in enumerate(names)}
    units = _units_of_layers(state.config.rewire.scope, before)
    rows = []
    for name in names:
        masks = [(after[name].packed_mask(), state.first_mask[name], state.last_mask[name], state.ever_active[name])]
        rows.append(_row(state, phase, name, changes[name], units[name], counts, result, masks))
    everything = np.arange(counts.size)
    masks = [(after[n].packed_mask(), state.first_mask[n], state.last_mask[n], state.ever_active[n]) for n in names]
    rows.append(_row(state, phase, "all", sum(changes.values(), _Change()), everything, counts, result, masks))
    return rows


def _change(old: SparseWeight, new: SparseWeight, origin: Array) -> _Change:
    kept = int(np.count_nonzero(origin >= 0))
    both = int(np.count_nonzero(old.mask() & new.mask()))
    return _Change(old.nnz, old.nnz - kept, new.nnz - kept, both - kept, new.nnz, old.size)


def _units_of_layers(scope: str, weights: dict[str, SparseWeight]) -> dict[str, Array | None]:
    """The units that belong to each layer alone; None under the global scope."""
    if scope == "global":
        return dict.fromkeys(weights)
    sizes = [w.rows if scope == "neuron" else 1 for w in weights.values()]
    first = np.cumsum([0, *sizes])
    return {name: np.arange(first[k], first[k + 1]) for k, name in enumerate(weights)}


def _row(state: "State", phase: str, layer: str, change: _Change, units: Array | None, counts: Array, result: Rewiring,
         masks: list[tuple[Array, Array, Array, Array]]) -> Row:
    now, first, last, ever = (np.concatenate([m[k] for m in masks]) for k in range(4))
    row: Row = {
        "iteration": state.iteration + 1,
        "epoch": state.iteration * state.config.train.epochs + state.epoch + 1,
        "layer": layer,
        "phase": phase,
        "units": None if units is None else units.size,
        "active_before": change.before,
        **_measured(state.measurement, units, counts, change),
        "pruned": change.pruned,
        "regrown": change.regrown,
        "returned": change.returned,
        "shortfall": None if units is None else int(result.shortfall[units].sum()),
        "density_after": change.after / change.size,
        "overlap_initial": metrics.overlap(now, first),
        "overlap_last": metrics.overlap(now, last),
        "ever_active": metrics.connections(ever) / change.size,
    }
    return row


def _measured(measurement: Measurement | None, units: Array | None, counts: Array, change: _Change) -> Row:
    """What the units of a layer measured, summarised."""
    names = ("pq_index", "pq_index_min", "pq_index_max", "bound", "count", "ratio_active", "ratio_total")
    if measurement is None or units is None:
        return dict.fromkeys(names)
    d, index = measurement.d[units], measurement.index[units]
    alive = index[d > 0] if (d > 0).any() else np.zeros(1)
    count = int(counts[units].sum())
    values = (float(d @ index / max(d.sum(), 1)), float(alive.min()), float(alive.max()),
              float(measurement.bound[units].sum()), count, count / max(change.before, 1), count / change.size)
    return dict(zip(names, values, strict=True))
