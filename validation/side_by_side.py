"""Two programs train the same network: refsnn, and the dense PyTorch implementation in peers/torch_method.py.

The peer is given the initial weights and masks, and the order of the samples; everything else it computes itself. It
takes each step right after refsnn and is compared at once: the spikes of all layers and the loss after every step; PQ
indices, counts, masks, weights and the running statistics after every rewire; the test loss after every epoch.

Ties. A place may be chosen in one program and not in the other although both are right: where two scores are equal in
exact arithmetic, rounding decides. A differing place is called a tie only if its score lies within `TIE` of the score
at the cut of its unit, in units of the largest score there; the peer then takes over refsnn's choice and the tie is
counted. Anything else that differs fails the check, and so does more than one tie in ten thousand places.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from common import EXACT, GRADIENT, Array, Table, Worst, unequal
from peers.torch_method import Method, Plan, Settings

from refsnn import datasets
from refsnn.config import load
from refsnn.datasets import Dataset
from refsnn.encode import direct
from refsnn.ops.loss import LOSSES
from refsnn.trace import NO_RECORD, Recorder
from refsnn.train import State, start, train

BATCH = 64
WEIGHTS = 1e-9          # real numbers, after hundreds of steps and ten rewires; weights absolute, others relative
TIE = 1e-9              # distance from the score at the cut, in units of the unit's largest score
# 1,437 digits in batches of 64: 23 steps an epoch, so at least 23 between two rewires, of which there are ten:
COURSE = {
    "figures": {"epochs": 2, "iterations": 6},      # 5 at the ends of iterations, 5 inside
    "literal": {"epochs": 1, "iterations": 11},     # 10 at the ends
}
OPTIMISERS: dict[str, tuple[dict[str, Any], float]] = {     # settings, and the limit of what rounding may become
    "adam": ({"lr": 0.002}, WEIGHTS),
    "sgd": ({"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}, WEIGHTS),
    "adam, fast": ({"lr": 0.016}, 1e-6),                    # the learning rate of the configuration `digits`
}
HEAD = "    {:>6} {:>5} {:<6} {:>7} {:>8} {:>8} {:>9} {:>8} {:>5} {:>9} {:>9}"


def setting(scope: str, preset: str, kind: str, pool: str = "average") -> tuple[State, Dataset, Method]:
    """The same network in both programs: refsnn's state and data, and the peer with copies of its weights and masks."""
    course, optimiser, kind = COURSE[preset], OPTIMISERS[kind][0], kind.partition(",")[0]
    keys = {"dtype": "float64", "model.channels": "[16, 32]", "model.hidden": 64, "model.pool": pool,
            "train.batch": BATCH, "rewire.scope": scope, "rewire.preset": preset, "optim.kind": kind}
    keys |= {f"train.{k}": v for k, v in course.items()} | {f"optim.{k}": v for k, v in optimiser.items()}
    config = load("digits", [f"{k}={v}" for k, v in keys.items()])
    data = datasets.load(config)
    data = replace(data, test=datasets.Subset(data.test, np.arange(100)))
    state = start(config, data)
    network, weights = state.network, state.network.weights
    settings = Settings(scope=scope, inner=preset == "figures", regrow_share=int(preset == "literal"), optimizer=kind,
                        pool=pool, steps_per_epoch=-(-len(data.train) // BATCH), **course, **optimiser)
    peer = Method(
        settings,
        {name: torch.from_numpy(w.dense()) for name, w in weights.items()},
        {name: torch.from_numpy(w.mask()) for name, w in weights.items()},
        {name: torch.from_numpy(a.copy()) for name, a in network.parameters.items() if name not in weights},
        {n.name: (torch.from_numpy(n.running_mean.copy()), torch.from_numpy(n.running_var.copy()))
         for n in network.norms},
    )
    return state, data, peer


class Seen(Recorder):
    """Keeps the spikes and the loss of the last step, and what went and came at the last rewire by weight."""

    def __init__(self) -> None:
        super().__init__()
        self.spikes: dict[str, Array] = {}
        self.loss = np.nan
        self.order = np.zeros(0, np.int64)
        self.moved: dict[str, dict[str, Array]] = {}

    def value(self, name: str, value: Any, kind: str = "real") -> None:
        """Keep rng/order, forward/<layer>/s, loss/value and stage2/<weight>/...; forget all else."""
        *_, place, owner, what = ("", "", *name.split("/"))
        if kind == "spikes" and place == "forward":
            self.spikes[owner] = np.array(value)
        elif name.endswith("loss/value"):
            self.loss = float(value)
        elif name.endswith("rng/order"):
            self.order = np.array(value)
        elif place == "stage2":
            self.moved.setdefault(owner, {})[what] = np.array(value)


def images(data: Dataset, chosen: Array) -> tuple[torch.Tensor, torch.Tensor]:
    """These training samples as the peer takes them."""
    x = data.train.batch(chosen, 0).astype(np.float64)
    return torch.from_numpy(x), torch.from_numpy(data.train.labels[chosen])


def check_network(table: Table) -> None:
    """One step of the whole network: spikes equal, gradients of all parameters at every place, both poolings."""
    flips, compared, gradients = 0, 0, Worst()
    for pool in ("average", "max"):
        state, data, peer = setting("layer", "figures", "adam", pool)
        rec, chosen = Seen(), np.arange(BATCH)
        encoded = direct(data.train.batch(chosen, 0), 4, np.float64)
        logits, caches = state.network.forward(encoded, True, np.random.default_rng, rec)
        dlogits = LOSSES["tet"](logits, data.train.labels[chosen])[1]
        found = state.network.backward(dlogits, caches, NO_RECORD, dense=True)
        _, theirs, spikes = peer.gradients(*images(data, chosen))
        for name, s in spikes.items():
            flips += unequal(rec.spikes[name], s.detach().numpy())
            compared += s.numel()
        for name, g in theirs.items():
            ours = found.get(f"{name}.dense", found[name])
            gradients.see(ours.reshape(g.shape), g.numpy())
    table.add("whole network, one step: spikes that differ", compared, flips, EXACT)
    gradients.report(table, "whole network, one step: gradients at every place", GRADIENT)


def check_method(table: Table, scope: str, preset: str, kind: str) -> None:
    """Train both to the end and hold every step, rewire and epoch of one against the other."""
    state, data, peer = setting(scope, preset, kind)
    table.note(f"\n{scope}-wise, preset {preset}, {kind} {OPTIMISERS[kind][0]}")
    table.note(HEAD.format("rewire", "step", "phase", "density", "pruned", "regrown", "counts !=", "masks !=", "ties",
                           "|d index|", "|d w|"))
    rec = Seen()
    watcher = SideBySide(table, data, peer, rec)
    train(state, data, watcher, rec)
    watcher.report(f"{scope}, {preset}, {kind}: ", OPTIMISERS[kind][1])


class SideBySide:
    """Watches refsnn train and lets the peer do the same, after every step and after every epoch."""

    def __init__(self, table: Table, data: Dataset, peer: Method, rec: Seen) -> None:
        self.table, self.data, self.peer, self.rec = table, data, peer, rec
        self.losses, self.indices, self.statistics, self.evaluations = Worst(), Worst(), Worst(), Worst()
        self.flips = self.spikes = self.counts = self.units = self.masks = self.places = self.ties = self.rewires = 0
        self.weights = [0.0]

    def should_stop(self) -> bool:
        """Never."""
        return False

    def save(self, state: State) -> None:
        """Nothing is kept."""

    def on_step(self, state: State) -> None:
        """The same batch for the peer: the samples are those that refsnn drew; spikes and loss are the peer's own."""
        assert state.step == self.losses.cases + 1
        loss, spikes = self.peer.train_step(*images(self.data, self.rec.order))
        self.losses.see(self.rec.loss, loss)
        for name, s in spikes.items():
            self.flips += unequal(self.rec.spikes[name], s.detach().numpy())
            self.spikes += s.numel()

    def on_epoch(self, state: State) -> None:
        """The peer evaluates, measures and rewires as refsnn has just done."""
        test = self.data.test
        logits = self.peer.predict(torch.from_numpy(test.batch(np.arange(len(test)), 0).astype(np.float64)))
        losses = [torch.nn.functional.cross_entropy(step, torch.from_numpy(test.labels)) for step in logits]
        self.evaluations.see(state.metrics[-1]["test_loss"], torch.stack(losses).mean().item())
        plans = self.peer.end_epoch()
        inner = self.peer.epoch < self.peer.settings.epochs - 1
        error = 0.0 if inner else self.compare_measurements(state)
        if plans is not None:
            self.compare_rewires(state, plans, "inner" if inner else "end", error)
        self.weights.append(self.compare_networks(state))
        self.peer.advance()

    def compare_rewires(self, state: State, plans: dict[str, Plan], phase: str, error: float) -> None:
        """What goes and comes, then the networks after it; prints the line of this rewire."""
        counts = 0
        for name, plan in plans.items():
            for what, mine in self.rec.moved[name].items():
                if what in ("pruned", "grown"):
                    counts += unequal(per_unit(mine, plan), per_unit(np.flatnonzero(getattr(plan, what)), plan))
        masks, ties = self.settle(plans)
        self.peer.carry_out(plans)
        worst = self.compare_networks(state)
        self.rewires += 1
        self.masks, self.ties, self.counts = self.masks + masks, self.ties + ties, self.counts + counts
        went, came = (sum(int(getattr(p, what).sum()) for p in plans.values()) for what in ("pruned", "grown"))
        self.table.note(HEAD.format(self.rewires, state.step, phase, f"{state.network.density:.4f}", went, came, counts,
                                    masks, ties, f"{error:.1e}", f"{worst:.1e}"))

    def compare_measurements(self, state: State) -> float:
        """PQ indices and counts of all units at the end of an iteration; the worst absolute error of an index."""
        measured, ours = self.peer.measured.values(), state.measurement
        assert ours is not None
        d, index, count = (np.concatenate([getattr(m, part).numpy() for m in measured])
                           for part in ("d", "index", "count"))
        self.units += d.size
        self.counts += unequal(ours.count, count) + unequal(ours.d, d)
        self.indices.see(ours.index, index)
        return float(np.abs(ours.index - index).max())

    def settle(self, plans: dict[str, Plan]) -> tuple[int, int]:
        """Places that went or came in one program only: those that are no ties, and ties, which the peer takes over."""
        masks = ties = 0
        for name, plan in plans.items():
            mine = self.rec.moved[name]
            self.places += plan.pruned.numel()
            for what, score in (("pruned", plan.prune_score), ("grown", plan.grow_score)):
                theirs = getattr(plan, what)
                ours = torch.zeros(theirs.numel(), dtype=torch.bool)
                ours[torch.from_numpy(mine[what])] = True
                ours = ours.reshape(theirs.shape)
                differing = ours != theirs
                tied = differing & at_the_cut(score, theirs, largest=what == "grown")
                ties += int(tied.sum())
                masks += int((differing & ~tied).sum())
                setattr(plan, what, torch.where(tied, ours, theirs))
        return masks, ties

    def compare_networks(self, state: State) -> float:
        """Masks, parameters and running statistics after an epoch; the worst absolute error of a parameter."""
        errors = []
        for name, w in state.network.weights.items():
            self.masks += unequal(w.mask(), self.peer.masks[name].numpy())
            errors.append(np.abs(w.dense() - self.peer.weights[name].numpy()).max())
        for name, a in state.network.parameters.items():
            if name in self.peer.plain:
                errors.append(np.abs(a - self.peer.plain[name].numpy()).max())
        for norm in state.network.norms:
            mean, var = self.peer.statistics[norm.name]
            self.statistics.see(norm.running_mean, mean.numpy())
            self.statistics.see(norm.running_var, var.numpy())
        return float(np.max(errors))            # NaN if one of them is

    def report(self, run: str, limit: float) -> None:
        """The rows of this run; real numbers are held to `limit`."""
        table = self.table
        table.add(run + f"masks, {self.rewires} rewires: differing", self.places, self.masks, EXACT)
        table.add(run + "counts of units: differing", self.units, self.counts, EXACT)
        table.add(run + "differing places that are ties", self.places, self.ties, self.places / 10_000)
        table.add(run + "rewires, how many fewer than ten", self.rewires, max(10 - self.rewires, 0), EXACT)
        table.add(run + "spikes of all steps: flipped", self.spikes, self.flips, EXACT)
        table.add(run + "weights, absolute", self.rewires, np.max(self.weights), limit)
        self.losses.report(table, run + "loss of every step", WEIGHTS)
        self.indices.report(table, run + "PQ indices", limit)
        self.statistics.report(table, run + "running statistics", limit)
        self.evaluations.report(table, run + "test loss of every epoch", limit)


def per_unit(places: Array, plan: Plan) -> Array:
    """How many of the flat places of a weight lie in each unit."""
    units, columns = plan.pruned.shape
    return np.bincount(places // columns, minlength=units)


def at_the_cut(score: torch.Tensor, chosen: torch.Tensor, largest: bool) -> torch.Tensor:
    """Where a score equals, within `TIE`, that of the last one chosen in its unit, bool (units, places)."""
    sign = -1.0 if largest else 1.0
    cut = torch.where(chosen, sign * score, -torch.inf).amax(dim=1, keepdim=True)
    scale = score.abs().amax(dim=1, keepdim=True)
    return (sign * score - cut).abs() <= TIE * scale
