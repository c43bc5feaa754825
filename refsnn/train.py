"""Algorithm 1: training a sparse spiking network from scratch in two stages.

    Stage I    ordinary training with the connections fixed, then the measurement: PQ index, bound, ratio (eqs. 2-4)
    Stage II   prune the weakest connections, regrow where the loss asks for it

`train` is Algorithm 1 on one screen; `train_step` is one batch of Stage I; the two functions `stage_one` and
`stage_two` are what their names say. An *iteration* is one cycle of both. The accuracy of an iteration is taken after
its last epoch, before its prune, so that ten iterations have nine prunes between them.
"""

import math
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from refsnn import metrics, pq
from refsnn.datasets.samples import Dataset
from refsnn.encode import ENCODERS
from refsnn.errors import UserError
from refsnn.evaluate import evaluate, synapses
from refsnn.layers import Gradients, Records
from refsnn.models import Network, build, complete
from refsnn.ops.loss import LOSSES
from refsnn.ops.sparse import SparseWeight
from refsnn.optim import Optimizer, all_finite, clip_gradients, learning_rate
from refsnn.recording import record_before, record_growth, record_measurement, record_rewiring, record_update
from refsnn.rewire import (
    GROW,
    PRUNE,
    RATIOS,
    GrowthMemory,
    Rewiring,
    end_counts,
    inner_counts,
    new_memory,
    observe,
    rewire,
)
from refsnn.rng import stream
from refsnn.schema import Config
from refsnn.tables import metrics_row, structure_rows
from refsnn.topology import Structure, active_counts, entry_units
from refsnn.trace import NO_RECORD, Recorder

Array = npt.NDArray[Any]


@dataclass
class State:
    """Everything that a run is at one moment; a checkpoint is this, written down.

    Field, Meaning
      growth       memory of the dense gradients, by weight: what the growth rule reads
      measurement  what the end of the previous iteration measured, one entry per unit of the scope; None before
      iteration, epoch, batch    where the run is: completed iterations, epochs of this iteration, batches of this epoch
      step         optimiser steps in all
      loss_sum, correct, seen    running sums of the epoch under way
      first_mask, last_mask, ever_active   connections at the start of the run, of this iteration, and ever, by weight,
                                           a bit a place (`SparseWeight.packed_mask`)
      metrics, structure                   the rows of metrics.csv and structure.csv so far
    """

    config: Config
    network: Network
    optimizer: Optimizer
    growth: dict[str, GrowthMemory] = field(default_factory=dict)
    measurement: pq.Measurement | None = None
    iteration: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    seconds: float = 0.0
    first_mask: dict[str, Array] = field(default_factory=dict)
    last_mask: dict[str, Array] = field(default_factory=dict)
    ever_active: dict[str, Array] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    structure: list[dict[str, Any]] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether all iterations, or all steps that `train.max_steps` allows, are done."""
        keys = self.config.train
        return self.iteration >= keys.iterations or (0 < keys.max_steps <= self.step)

    @property
    def ends_iteration(self) -> bool:
        """Whether the epoch under way is the last of its iteration, or cut short by `train.max_steps`."""
        return self.epoch == self.config.train.epochs - 1 or self.finished

    @property
    def is_last_iteration(self) -> bool:
        """Whether no Stage II follows this iteration."""
        return self.iteration == self.config.train.iterations - 1


class Watcher(Protocol):
    """Who looks on: the command line shows progress, saves, and passes on that the user wants to stop."""

    def on_step(self, state: State) -> None:
        """Called after every optimiser step."""

    def on_epoch(self, state: State) -> None:
        """Called after every epoch, when its row of metrics is there."""

    def save(self, state: State) -> None:
        """Write the checkpoint and the tables."""

    def should_stop(self) -> bool:
        """Whether to stop after the step under way."""


def start(config: Config, data: Dataset) -> State:
    """The state before the first step: a network with its initial connections and weights."""
    config = complete(config)
    encoded = one_sample(config, data)
    network = build(config, encoded.shape[:3], data.classes)
    masks = {name: weight.packed_mask() for name, weight in network.weights.items()}
    state = State(config, network, Optimizer(config.optim), first_mask=masks, last_mask=dict(masks),
                  ever_active={name: mask.copy() for name, mask in masks.items()})
    state.growth = new_growth(state)
    state.optimizer.prepare(network.parameters)
    return state


def one_sample(config: Config, data: Dataset) -> Array:
    """The first training sample, encoded: (C, H, W, T, 1)."""
    return ENCODERS[config.encode.kind](data.train.batch(np.zeros(1, np.int64), 0), config.encode.steps, config.dtype)


def run_every_kernel(state: State, data: Dataset) -> None:
    """Run one sample forwards and backwards in every mode and forget it: what has to be compiled is compiled now.

    Otherwise the first evaluation and the first step without a dense gradient would wait for the compiler. Eight times
    the sample are a batch whose spikes convolutions pack, which one is not; batches of a run may be of both kinds.
    """
    config, network = state.config, state.network
    encoded = one_sample(config, data)
    network.forward(encoded, False, partial(_draw, config.seed, 0), NO_RECORD)
    for batch in (encoded, encoded.repeat(8, axis=-1)):
        for dense in (False, True) if reads_dense_gradients(config) else (False,):
            logits, caches = network.forward(batch, True, partial(_draw, config.seed, 0), NO_RECORD)
            network.backward(logits, caches, NO_RECORD, dense)


def train(state: State, data: Dataset, watcher: Watcher, rec: Records = NO_RECORD) -> None:
    """Algorithm 1, from wherever `state` is to its end, or to where the watcher asks to stop."""
    keys = state.config.rewire
    while not state.finished and not watcher.should_stop():
        if not stage_one(state, data, watcher, rec):        # Stage I: one epoch with fixed connections
            watcher.save(state)                             # (stopped in its midst: the checkpoint knows where)
            return
        log_epoch(state, data)
        if state.ends_iteration:
            state.measurement = measure(state, rec)         # Stage I ends: PQ index, bound, count of every unit
            prune, grow = end_counts(state.measurement, keys.regrow_share)
            if state.is_last_iteration:
                stage_two(state, "last", 0 * prune, 0 * grow)   # measured only: no prune follows the last
            else:
                stage_two(state, "end", prune, grow, rec)   # Stage II: prune `count`, regrow the share kappa of it
        elif state.iteration > 0 and keys.inner_every and (state.epoch + 1) % keys.inner_every == 0:
            same = inner_counts(state.measurement, active_counts(structures(state.network), keys.scope))
            stage_two(state, "inner", same, same, rec)      # rewiring at constant density, with the ratio measured last
        advance(state)
        watcher.on_epoch(state)
        watcher.save(state)


def stage_one(state: State, data: Dataset, watcher: Watcher, rec: Records = NO_RECORD) -> bool:
    """Train for the rest of one epoch with the connections as they are; False where the watcher stopped it."""
    began = time.perf_counter()
    epochs_done = state.iteration * state.config.train.epochs + state.epoch
    order = stream(state.config.seed, "shuffle", epochs_done).permutation(len(data.train))
    batches = [order[k:k + state.config.train.batch] for k in range(0, len(order), state.config.train.batch)]
    labels, stopped = data.train.labels, False
    while state.batch < len(batches) and not state.finished and not stopped:
        chosen = batches[state.batch]
        rec.begin_step(state.step)
        rec.value("rng/order", chosen, "index")
        with np.errstate(over="ignore", invalid="ignore"):      # train_step itself refuses what is not finite
            x = data.train.batch(chosen, epochs_done)
            loss, correct = train_step(state, x, labels[chosen], len(batches), rec)
        state.batch += 1
        state.loss_sum += loss * len(chosen)
        state.correct += correct
        state.seen += len(chosen)
        watcher.on_step(state)
        stopped = watcher.should_stop()
    state.seconds += time.perf_counter() - began
    return not stopped or state.batch == len(batches) or state.finished


def train_step(
    state: State, x: Array, labels: Array, steps_per_epoch: int, rec: Records = NO_RECORD
) -> tuple[float, int]:
    """One batch: forward, loss, backward through time, one optimiser step. Returns the loss and the correct samples.

    x (B, C, H, W) or (B, T, C, H, W), labels (B,). Raises UserError where loss or gradients are not finite, before
    anything was changed.
    """
    config, network = state.config, state.network
    draw = partial(_draw, config.seed, state.step)
    record_before(rec, state, x, labels)
    encoded = ENCODERS[config.encode.kind](x, config.encode.steps, config.dtype)
    rec.samples("encode/spikes", encoded)
    logits, caches = network.forward(encoded, True, draw, rec)
    loss, dlogits = LOSSES[config.train.loss](logits, labels)
    rec.value("loss/value", loss)
    rec.samples("loss/dlogits", dlogits)
    gradients = network.backward(dlogits, caches, rec, dense=needs_dense_gradient(state, steps_per_epoch))
    if not (math.isfinite(loss) and all_finite(gradients.values())):
        raise UserError(explain_non_finite(state, encoded, labels))
    if config.train.clip > 0:
        clip_gradients(gradients, list(network.parameters), config.train.clip)
    lr = step_size(state, steps_per_epoch)
    state.optimizer.step(network.parameters, gradients, lr)
    record_update(rec, state, lr, gradients)
    network.commit(caches)
    remember_gradients(state, gradients)
    record_growth(rec, state)
    state.step += 1
    return loss, metrics.accuracy(logits, labels)


def _draw(seed: int, step: int, name: str) -> np.random.Generator:
    return stream(seed, name, step)


def step_size(state: State, steps_per_epoch: int) -> float:
    """The learning rate of the next step: the schedule's period is one iteration, or the whole run."""
    keys = state.config
    epochs = keys.train.epochs * (1 if keys.optim.restart else keys.train.iterations)
    done = state.epoch if keys.optim.restart else state.iteration * keys.train.epochs + state.epoch
    return learning_rate(keys.optim, done * steps_per_epoch + state.batch, epochs * steps_per_epoch, steps_per_epoch)


# ------------------------------------------------------------------------------------------- Stage I ends: measuring


def structures(network: Network) -> list[Structure]:
    """The connections of every sparse layer as `rewire` takes them."""
    return [Structure(w.indices, w.indptr, (w.rows, w.columns)) for w in network.weights.values()]


def measure(state: State, rec: Records = NO_RECORD) -> pq.Measurement:
    """d, PQ index, bound and count of every unit of the scope, from the active weights: eqs. (2)-(4)."""
    keys = state.config.rewire
    unit, units = entry_units(structures(state.network), keys.scope)
    data = np.concatenate([w.data for w in state.network.weights.values()])
    found = RATIOS[keys.ratio](pq.measure(data, unit, units, p=keys.p, q=keys.q, eta=keys.eta, gamma=keys.gamma,
                                          beta=keys.beta, rounding=keys.rounding))
    record_measurement(rec, found)
    return found


# ------------------------------------------------------------------------------------------------ Stage II: rewiring


def stage_two(state: State, phase: str, prune_counts: Array, grow_counts: Array, rec: Records = NO_RECORD) -> Rewiring:
    """Prune and regrow these numbers of connections per unit; give weights and optimiser state their new structure."""
    keys, network = state.config.rewire, state.network
    before = network.weights
    rec.value("stage2/prune_count", prune_counts, "count")
    rec.value("stage2/grow_count", grow_counts, "count")
    prune_scores = [PRUNE[keys.prune](w.data) for w in before.values()]
    grow_scores = growth_scores(state) if np.any(grow_counts) else None
    result = rewire(structures(network), prune_scores, grow_scores, prune_counts, grow_counts, keys.scope,
                    return_at_once=keys.return_at_once, shortfall=keys.shortfall)
    for k, (name, old) in enumerate(before.items()):
        new, origin = result.structures[k], result.origin[k]
        data = np.zeros(origin.size, old.data.dtype)                    # what came starts at 0
        data[origin >= 0] = old.data[origin[origin >= 0]]               # what stays keeps its value
        network.set_weight(name, SparseWeight(data, new.indices, new.indptr, old.shape))
        state.optimizer.rewire(name, origin)                            # and its moments
        state.ever_active[name] |= network.weights[name].packed_mask()
        grow_score = None if grow_scores is None else grow_scores[k]
        record_rewiring(rec, state, name, old, origin, prune_scores[k], grow_score)
    state.structure += structure_rows(state, phase, before, result)
    return result


def growth_scores(state: State) -> list[Array]:
    """How much each place of each layer asks to be connected, (rows, columns) a layer."""
    keys, epochs_done = state.config.rewire, state.iteration * state.config.train.epochs + state.epoch
    return [GROW[keys.grow](state.growth[name], stream(state.config.seed, f"grow/{name}", epochs_done))
            for name in state.network.weights]


def advance(state: State) -> None:
    """Close the epoch, and with its last epoch the iteration: rewind the weights or clear the optimiser where asked."""
    state.batch, state.loss_sum, state.correct, state.seen, state.seconds = 0, 0.0, 0, 0, 0.0
    state.epoch += 1
    if state.epoch < state.config.train.epochs:
        return
    state.epoch = 0
    state.iteration += 1
    state.last_mask = {name: weight.packed_mask() for name, weight in state.network.weights.items()}
    if state.iteration < state.config.train.iterations:
        if state.config.rewire.rewind:
            state.network.rewind()
        if state.config.optim.fresh:
            state.optimizer.reset()


# ------------------------------------------------------------------------- the dense gradient and who remembers it


def new_growth(state: State) -> dict[str, GrowthMemory]:
    """Empty growth memory for every weight."""
    keys = state.config
    weights = state.network.weights
    return {name: new_memory((w.rows, w.columns), keys.rewire.grow, keys.dtype) for name, w in weights.items()}


def reads_dense_gradients(config: Config) -> bool:
    """Whether some step of a run looks at the gradient at every place: something regrows, by a rule that does."""
    return config.rewire.ratio != "none" and bool(GROW[config.rewire.grow].reads)


def needs_dense_gradient(state: State, steps_per_epoch: int) -> bool:
    """Whether the growth rule wants to see the next step's gradient at every place."""
    keys, reads = state.config.rewire, GROW[state.config.rewire.grow].reads
    if not reads_dense_gradients(state.config):
        return False
    window = keys.grow_window if "average" in reads else 1      # the last gradient is all that the others look at
    distance = steps_to_growth(state, steps_per_epoch)
    return distance is not None and (window == 0 or distance <= window)


def steps_to_growth(state: State, steps_per_epoch: int) -> int | None:
    """Optimiser steps, the next one included, to the next rewire that regrows; None where there is none."""
    keys = state.config.train
    for ahead in range(keys.epochs * keys.iterations):
        iteration, epoch = divmod(state.iteration * keys.epochs + state.epoch + ahead, keys.epochs)
        if iteration >= keys.iterations:
            return None
        distance = (ahead + 1) * steps_per_epoch - state.batch
        if 0 < keys.max_steps <= state.step + distance:         # the run ends in this epoch, and with it the iteration
            return keys.max_steps - state.step if regrows_after(state.config, iteration, keys.epochs - 1) else None
        if regrows_after(state.config, iteration, epoch):
            return distance
    return None


def regrows_after(config: Config, iteration: int, epoch: int) -> bool:
    """Whether the rewire that follows an epoch, both counted from 0, brings connections back."""
    keys = config.rewire
    if keys.ratio == "none":
        return False
    if epoch == config.train.epochs - 1:
        return keys.regrow_share != 0 and iteration < config.train.iterations - 1
    return iteration > 0 and keys.inner_every > 0 and (epoch + 1) % keys.inner_every == 0


def remember_gradients(state: State, gradients: Gradients) -> None:
    """Show the growth memory this step's dense gradients; outside a window it is empty."""
    keys = state.config.rewire
    for name, memory in state.growth.items():
        if f"{name}.dense" in gradients:
            state.growth[name] = observe(memory, gradients[f"{name}.dense"], keys.grow_beta)
        elif memory.steps:
            weight = state.network.weights[name]
            state.growth[name] = new_memory((weight.rows, weight.columns), keys.grow, state.config.dtype)


# ---------------------------------------------------------------------------------------------------- keeping books


def log_epoch(state: State, data: Dataset) -> None:
    """Evaluate, and append the epoch's row of metrics."""
    result = evaluate(state.network, state.config, data.test)
    state.metrics.append(metrics_row(state, result, synapses(state.network)))


def explain_non_finite(state: State, encoded: Array, labels: Array) -> str:
    """One line for a loss or gradient that is not finite: the first record of the step that is not."""
    rec = Recorder()
    logits, caches = state.network.forward(encoded, True, partial(_draw, state.config.seed, state.step), rec)
    loss, dlogits = LOSSES[state.config.train.loss](logits, labels)
    rec.value("loss/value", loss)
    state.network.backward(dlogits, caches, rec)
    bad = [r.name for r in rec.records if r.value.dtype.kind == "f" and not np.isfinite(r.value).all()]
    where = f"iteration {state.iteration + 1}, epoch {state.epoch + 1}, step {state.step}"
    return (f"{where}: not finite, first in {bad[0]}; lower optim.lr or set train.clip "
            "(checkpoints written so far are intact)")


