"""The paper's networks against PyTorch: one training step and one rewire of each, in float64.

    python validation/check_networks.py                     all five
    python validation/check_networks.py cifar10_small       these configurations only

Each network is built from its bundled configuration at density 0.5 and takes one step on two samples: images of CIFAR
where they are found (REFSNN_DATA), else random ones; event frames are random. What starts at 0 or 1 (biases, batch
norm) is moved at random first, so that a parameter in another's place is noticed. Three comparisons:

free      peers/torch_networks.py is given the parameters and the samples, and goes its own way
forced    each layer of it is given refsnn's input and refsnn's gradient of the output: a verdict of its own for each
rewire    stages one and two, preset `literal`, against peers/torch_method.py, from the same weights and momentum
"""

import argparse
import math
import resource
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from common import EXACT, GRADIENT, Array, Table, main, need, relative, unequal

from refsnn import datasets
from refsnn.chain import Residual, chain_backward, chain_forward
from refsnn.config import load
from refsnn.datasets import Dataset, InMemory
from refsnn.encode import ENCODERS
from refsnn.errors import UserError
from refsnn.layers import Layer, Spiking
from refsnn.ops.loss import LOSSES
from refsnn.ops.sparse import SparseWeight
from refsnn.plan import neuron_of
from refsnn.rewire import end_counts
from refsnn.schema import Config
from refsnn.topology import Scope
from refsnn.trace import NO_RECORD
from refsnn.train import State, measure, stage_two, start, train_step

# configuration -> convolution and linear weights of its network, by its description
CONFIGS = {"cifar10_resnet19": 12_619_968, "cifar100_resnet19": 12_643_008, "cifar10dvs_vggsnn": 9_263_232,
           "cifar10_conv6fc2": 36_715_264, "cifar10_small": 398_176}
BATCH = 2
FREE = 1e-9         # a whole network: rounding grows from layer to layer; sums over all weights
TIE = 1e-9          # a membrane nearer to the threshold than this is a tie: rounding decides


def check(table: Table, names: Iterable[str] = tuple(CONFIGS)) -> None:
    """All comparisons for these configurations."""
    (torch,) = need("torch")
    torch.set_num_threads(1)
    for name in names:
        began, busy = time.perf_counter(), time.process_time()
        check_network(table, name)
        seconds, busy = time.perf_counter() - began, time.process_time() - busy
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        table.note(f"    {name}: {seconds:.0f} s, CPU time {busy:.0f} s, peak memory so far {peak:.1f} GiB\n")


def check_network(table: Table, name: str) -> None:
    """One network: the step, free and forced, then a rewire in each scope."""
    config = load(name, ["dtype=float64", f"train.batch={BATCH}", "rewire.preset=literal", "rewire.grow_window=0"])
    state, x, labels = setting(table, config)
    check_step(table, name, state, x, labels)
    for scope in ("layer", "neuron"):
        check_rewire(table, name, state, scope)


def setting(table: Table, config: Config) -> tuple[State, Array, Array]:
    """A state before its first step, whose biases and batch norms are not what they start with; a batch for it."""
    data = samples(table, config)
    state, rng = start(config, data), np.random.default_rng(0)
    network = state.network
    for name, parameter in network.parameters.items():
        if name not in network.weights:             # biases by more: without them hardly a neuron behind fc1 fires
            parameter += (1 if name.endswith("bias") else 0.2) * rng.standard_normal(parameter.shape)
    for norm in network.norms:
        norm.running_mean += rng.standard_normal(norm.running_mean.shape)
        norm.running_var *= rng.uniform(0.5, 2, norm.running_var.shape)
    chosen = np.arange(BATCH)
    return state, data.train.batch(chosen, 0).astype(np.float64), data.train.labels[chosen]


def samples(table: Table, config: Config) -> Dataset:
    """The first images of the configuration's data set, or random images or frames in their place."""
    few = replace(config, data=replace(config.data, train_samples=BATCH, test_samples=BATCH))
    rng, classes = np.random.default_rng(1), 100 if config.data.name == "cifar100" else 10
    labels = rng.integers(0, classes, BATCH)
    if config.encode.kind == "frames":
        frames = rng.poisson(0.5, (BATCH, config.encode.steps, 2, config.events.size, config.events.size))
        random = InMemory(frames.astype(np.float32), labels)
    else:
        try:
            return datasets.load(few)
        except UserError as error:
            table.note(f"random images: {error}")
        random = InMemory(rng.standard_normal((BATCH, 3, 32, 32)).astype(np.float32), labels)
    return Dataset("random", random, random, classes)


# ----------------------------------------------------------------------------------------- what passes through refsnn


class Spy:
    """A layer, or a residual block, that keeps what passes through it: x, y, dy, dx, its cache and gradients."""

    def __init__(self, layer: Layer | Residual) -> None:
        self.layer, self.name = layer, layer.name
        self.x = self.y = self.dy = self.dx = self.cache = None

    def forward(self, x: Array, *rest: Any) -> tuple[Array, Any]:
        """As the layer."""
        self.x = x
        self.y, self.cache = self.layer.forward(x, *rest)
        return self.y, self.cache

    def backward(self, dy: Array, *rest: Any) -> tuple[Array, Any]:
        """As the layer."""
        self.dy = dy
        self.dx, gradients = self.layer.backward(dy, *rest)
        return self.dx, gradients


def spied(layers: list[Any]) -> list[Spy]:
    """The same layers, watched, those of residual blocks too."""
    return [Spy(replace(one, body=spied(one.body), shortcut=spied(one.shortcut)) if isinstance(one, Residual) else one)
            for one in layers]


def walk(spies: list[Spy]) -> Iterator[Spy]:
    """All that are watched: a block, then its layers."""
    for spy in spies:
        yield spy
        if isinstance(spy.layer, Residual):
            yield from walk([*spy.layer.body, *spy.layer.shortcut])


@dataclass
class Step:
    """refsnn's step: everything that passed through its layers, and the gradients at every place."""

    layers: dict[str, Spy]
    blocks: list[Spy]
    logits: Array
    loss: float
    gradients: dict[str, Array]


def run_step(state: State, x: Array, labels: Array) -> Step:
    """Forwards and backwards through layers that are watched; nothing is updated."""
    config, spies = state.config, spied(state.network.layers)
    encoded = ENCODERS[config.encode.kind](x, config.encode.steps, config.dtype)
    logits, caches = chain_forward(spies, encoded, True, np.random.default_rng, NO_RECORD)
    loss, dlogits = LOSSES[config.train.loss](logits, labels)
    _, gradients = chain_backward(dlogits, caches, NO_RECORD, True)
    every = list(walk(spies))
    layers = {spy.name: spy for spy in every if not isinstance(spy.layer, Residual)}
    return Step(layers, [spy for spy in every if isinstance(spy.layer, Residual)], logits, loss, gradients)


# --------------------------------------------------------------------------------------------------- helping hands


def tensor(a: Array, features_first: bool = True) -> Any:
    """A leaf that collects a gradient; refsnn's (features..., T, B) becomes (T, B, features...)."""
    import torch

    moved = np.moveaxis(a, (-2, -1), (0, 1)) if features_first else a
    return torch.from_numpy(np.array(moved, order="C")).requires_grad_()


def array(t: Any) -> Array:
    """A tensor (T, B, features...) in refsnn's order."""
    return np.moveaxis(t.detach().numpy(), (0, 1), (-2, -1))


class Rows:
    """Errors of one comparison by quantity, each with the layer it was found in; one row of the table a quantity.

    A quantity held to EXACT is a number of entries that differ, any other max |difference| / max |reference|.
    """

    def __init__(self, table: Table, title: str) -> None:
        self.table, self.title = table, title
        self.found: dict[tuple[str, float], list[tuple[str, float, int]]] = {}

    def see(self, what: str, layer: str, got: Any, reference: Any, limit: float) -> None:
        """Compare two arrays of one shape."""
        error = unequal(got, reference) if limit == EXACT else relative(got, reference)
        self.found.setdefault((what, limit), []).append((layer, error, np.size(reference)))

    def report(self) -> None:
        """Add the rows; under one that does not hold, the first layers at fault."""
        for (what, limit), found in self.found.items():
            errors = [error for _, error, _ in found]
            exact = limit == EXACT
            cases = sum(size for *_, size in found) if exact else len(found)
            if not self.table.add(f"{self.title}: {what}", cases, np.sum(errors) if exact else np.max(errors), limit):
                wrong = [(layer, error) for layer, error, _ in found if not error <= limit]
                for layer, error in wrong[:5]:
                    self.table.note(f"    {layer}: {error:.1e}")


# ---------------------------------------------------------------------------------------------------------- the step


def check_step(table: Table, name: str, state: State, x: Array, labels: Array) -> None:
    """One step in both programs, free and forced; then refsnn takes it in earnest."""
    step = run_step(state, x, labels)
    theirs = compare_free(Rows(table, name), state, step, x, labels, CONFIGS.get(name))
    compare_forced(Rows(table, f"{name}, forced"), state, step)
    del step
    loss, _ = train_step(state, x, labels, steps_per_epoch=1)
    rows = Rows(table, name)
    rows.see("loss of the step", "loss", loss, theirs.loss, FREE)
    for norm in state.network.norms:
        for part, value in zip(("running_mean", "running_var"), theirs.statistics[norm.name], strict=True):
            rows.see("running mean and variance", norm.name, getattr(norm, part), value.numpy(), FREE)
    for weight, memory in state.growth.items():
        rows.see("momentum for regrowth", weight, memory.average, 0.1 * theirs.dense[weight], FREE)
    rows.report()


@dataclass
class Theirs:
    """What PyTorch found: loss, dense weight gradients (rows, columns), running statistics after the step."""

    loss: float
    dense: dict[str, Array]
    statistics: dict[str, Any]


def handed_over(state: State) -> tuple[dict[str, Any], dict[str, Any]]:
    """Copies of parameters, weights dense, and of running statistics for PyTorch."""
    network = state.network
    weights = network.weights
    parameters = {name: tensor(weights[name].dense() if name in weights else a, features_first=False)
                  for name, a in network.parameters.items()}
    statistics = {n.name: tuple(tensor(a, features_first=False).detach() for a in (n.running_mean, n.running_var))
                  for n in network.norms}
    return parameters, statistics


def compare_free(rows: Rows, state: State, step: Step, x: Array, labels: Array, described: int | None) -> Theirs:
    """PyTorch alone: spikes, membranes, logits, loss, gradients of all parameters, those of weights at every place."""
    import torch
    from peers.torch_layers import LOSSES as THEIRS
    from peers.torch_networks import NETWORKS, Pass, over_time

    config, weights = state.config, state.network.weights
    parameters, statistics = handed_over(state)
    net, classes = Pass(parameters, statistics), step.logits.shape[0]
    logits = NETWORKS[config.model.name](net, over_time(torch.from_numpy(x), config.encode.steps), classes)
    loss = THEIRS[config.train.loss](logits, torch.from_numpy(labels))
    found = dict(zip(parameters, torch.autograd.grad(loss, [*parameters.values()]), strict=True))

    rows.see("names of layers that differ", "network", sorted(step.layers), sorted(net.outputs), EXACT)
    if described is not None:
        sizes = (sum(w.size for w in weights.values()), sum(map(math.prod, net.shapes.values())))
        rows.see(f"weights of both, {described:,}", "network", sizes, (described, described), EXACT)
    rates = []
    for name, spy in step.layers.items():
        if isinstance(spy.layer, Spiking):
            s, h = array(net.outputs[name]), array(net.membranes[name])
            rows.see("spikes that differ", name, spy.y, s, EXACT)
            rows.see("membranes", name, spy.cache[0], h, FREE)
            rows.see("layers of neurons that never fire", name, [bool(spy.y.any())], [True], EXACT)
            rates.append((float(spy.y.mean()), name))
            explain(rows.table, name, spy, s, neuron_of(config).v_threshold)
    rows.see("logits", "logits", step.logits, array(logits), FREE)
    rows.see("loss", "loss", step.loss, loss.item(), FREE)
    dense = {}
    for name, gradient in found.items():
        g = gradient.numpy()
        if name in weights:
            dense[name] = g = g.reshape(len(g), -1)
            active = weights[name].gather(g)
            rows.see("gradients of active weights", name, step.gradients[name], active, FREE)
            rows.see("gradients of weights at every place", name, step.gradients[f"{name}.dense"], g, FREE)
        else:
            rows.see("gradients of gamma, beta, biases", name, step.gradients[name], g, FREE)
    rows.report()
    (low, rarest), (high, busiest) = min(rates), max(rates)
    rows.table.note(f"    spikes per neuron and step: from {low:.3f} in {rarest} to {high:.3f} in {busiest}")
    return Theirs(loss.item(), dense, statistics)


def explain(table: Table, name: str, spy: Spy, theirs: Array, threshold: float) -> None:
    """Where spikes differ: how far the membranes are from the threshold."""
    wrong = spy.y != theirs
    if wrong.any():
        distance = np.abs(spy.cache[0][wrong] - threshold).max()
        word = "rounding decides" if distance <= TIE else "no tie"
        table.note(f"    {name}: {wrong.sum()} spikes, membranes up to {distance:.1e} from the threshold: {word}")


def compare_forced(rows: Rows, state: State, step: Step) -> None:
    """Every layer by itself, from refsnn's input and refsnn's gradient of the output; sparse kernels, then dense ones.

    refsnn's `backward` runs once more without the dense gradient, so that the kernels of active weights are compared.
    The input gradient of the first layer is computed by neither.
    """
    import torch
    from peers.torch_networks import NETWORKS, Pass

    layers, weights = step.layers, state.network.weights
    parameters, statistics = handed_over(state)
    given = {name: tensor(spy.x) for name, spy in layers.items()}
    net = Pass(parameters, statistics, given)
    NETWORKS[state.config.model.name](net, next(iter(given.values())), step.logits.shape[0])
    leaves = given | parameters
    found = dict(zip(leaves, torch.autograd.grad([net.outputs[name] for name in layers], [*leaves.values()],
                                                 [tensor(spy.dy).detach() for spy in layers.values()]), strict=True))
    for name, spy in layers.items():
        spikes = isinstance(spy.layer, Spiking)
        rows.see("spikes that differ" if spikes else "outputs", name, spy.y, array(net.outputs[name]),
                 EXACT if spikes else GRADIENT)
        dx, gradients = spy.layer.backward(spy.dy, spy.cache, NO_RECORD, False)
        if dx.size:
            rows.see("input gradients", name, dx, array(found[name]), GRADIENT)
            rows.see("input gradients", name, spy.dx, array(found[name]), GRADIENT)
        for parameter, ours in gradients.items():
            g = found[parameter].numpy()
            if parameter in weights:
                rows.see("gradients of active weights", parameter, ours, weights[parameter].gather(g), GRADIENT)
                rows.see("gradients of weights at every place", parameter, step.gradients[f"{parameter}.dense"],
                         g.reshape(len(g), -1), GRADIENT)
            else:
                rows.see("gradients of gamma, beta, biases", parameter, ours, g, GRADIENT)
    for spy in step.blocks:
        body, shortcut = spy.layer.body, spy.layer.shortcut
        along, back = (shortcut[-1].y, shortcut[0].dx) if shortcut else (spy.x, spy.dy)
        rows.see("entries of joins that are no sums", spy.name, spy.y, body[-1].y + along, EXACT)
        rows.see("entries of joins that are no sums", spy.name, spy.dx, body[0].dx + back, EXACT)
    rows.report()


# -------------------------------------------------------------------------------------------------------- the rewire


def check_rewire(table: Table, name: str, state: State, scope: Scope) -> None:
    """Measure and rewire in both programs from the same weights and momentum; then put the connections back."""
    network, before = state.network, dict(state.network.weights)
    config = replace(state.config, rewire=replace(state.config.rewire, scope=scope))
    here = replace(state, config=config)
    here.optimizer.reset()              # its moments belong to the connections as they were
    found = measure(here)
    counts = end_counts(found, config.rewire.regrow_share)
    result = stage_two(here, "end", *counts)
    rows, unit = Rows(table, f"{name}, {scope}-wise rewire"), 0
    for weight, old in before.items():
        units = slice(unit, unit + (old.rows if scope == "neuron" else 1))
        compare_weight(rows, weight, old, here, {"d": found.d[units], "index": found.index[units],
                                                 "bound": found.bound[units], "count": found.count[units],
                                                 "pruned": result.pruned[units], "grown": result.regrown[units]})
        unit = units.stop
        network.set_weight(weight, old)
    rows.report()
    table.note(f"    {unit:,} units; of {result.d.sum():,} connections {result.pruned.sum():,} went and "
               f"{result.regrown.sum():,} came, {result.returned.sum():,} of them back at once")


def compare_weight(rows: Rows, name: str, old: SparseWeight, state: State, ours: dict[str, Array]) -> None:
    """One weight: PyTorch's measurement, its choice of what goes and comes, and its mask, against refsnn's."""
    import torch
    from peers.torch_method import Method, Settings

    settings = Settings(state.config.rewire.scope, inner=False, regrow_share=1, epochs=1, iterations=2,
                        steps_per_epoch=1, optimizer="sgd", lr=0.0)
    method = Method(settings, {name: torch.from_numpy(old.dense().astype(np.float64))},
                    {name: torch.from_numpy(old.mask())}, {}, {})
    method.growth[name] = torch.from_numpy(state.growth[name].average).reshape(old.shape)
    measured = method.measure(name)
    plan = method.plan(name, measured.count, measured.count)
    method.carry_out({name: plan})
    for what, limit in (("index", FREE), ("bound", FREE), ("d", EXACT), ("count", EXACT)):
        label = "d and counts that differ" if limit == EXACT else "PQ index and bound"
        rows.see(label, name, ours[what], getattr(measured, what).numpy(), limit)
    for what in ("pruned", "grown"):
        rows.see("gone and come, counts that differ", name, ours[what], getattr(plan, what).sum(1).numpy(), EXACT)
    rows.see("mask entries that differ", name, state.network.weights[name].mask(), method.masks[name].numpy(), EXACT)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configuration", nargs="*", metavar="CONFIGURATION", help=", ".join(CONFIGS))
    chosen = parser.parse_args().configuration
    unknown = [name for name in chosen if name not in CONFIGS]
    if unknown:
        parser.error(f"unknown configuration {unknown[0]}; known: {', '.join(CONFIGS)}")
    main("The paper's networks in PyTorch", ("torch", "numba"), partial(check, names=chosen or tuple(CONFIGS)))
