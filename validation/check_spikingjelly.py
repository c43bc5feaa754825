"""SpikingJelly 2.0: neurons, surrogates, a whole convolutional net; what refsnn cannot express; traps.

    python validation/check_spikingjelly.py

SpikingJelly fires at the threshold (>=), leaks towards v_reset and starts there, and returns the membrane after the
reset. Its order of operations is refsnn's form "spikingjelly" (decay_input=True) or "spikingjelly_full_input".
"""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from common import Table, main, need, relative, unequal
from frameworks import Neurons, differing_spikes, inputs, loss_row, net_rows, shown, surrogate_row, weights_like

from refsnn.ops.neuron import NEURONS, Neuron

TITLE = "refsnn against SpikingJelly"


def lif(tau: float, decay_input: bool = True, v_reset: float | None = 0.0, v_threshold: float = 1.0,
        detach_reset: bool = False) -> Neuron:
    """refsnn's parameters of LIFNode(tau, decay_input, v_threshold, v_reset, detach_reset=...)."""
    rest = 0.0 if v_reset is None else v_reset
    return Neuron(
        decay=1 - 1 / tau, gain=1 / tau if decay_input else 1.0, bias=rest / tau, v_threshold=v_threshold, v_reset=rest,
        reset="soft" if v_reset is None else "hard", reset_amount=v_threshold, v_init=rest, detach_reset=detach_reset,
        compare="ge", form="spikingjelly" if decay_input else "spikingjelly_full_input",
    )


def check(table: Table) -> None:
    """Every row of the page's section on SpikingJelly."""
    need("torch", "spikingjelly.activation_based.neuron")
    neurons(table)
    surrogates(table)
    losses(table)
    nets(table)
    not_expressible(table)
    traps(table)


def neurons(table: Table) -> None:
    """LIFNode, IFNode, and ParametricLIFNode at its present time constant."""
    from peers.framework_net import differentiate
    from peers.spikingjelly_net import NODES, SURROGATES, at_once, step_by_step

    def peer(node: Any, run: Any = at_once) -> Any:
        return partial(differentiate, run(node))

    rows = Neurons(table, "sigmoid", 4.0, "v")
    rows.row("LIFNode(), preset spikingjelly", NEURONS["spikingjelly"], peer(NODES.LIFNode()))
    rows.row("LIFNode() step by step", NEURONS["spikingjelly"], peer(NODES.LIFNode(), step_by_step))
    rows.row("LIFNode(decay_input=False), preset ..._full_input", NEURONS["spikingjelly_full_input"],
             peer(NODES.LIFNode(decay_input=False)))
    rows.row("LIFNode(v_reset=None), preset ..._soft", NEURONS["spikingjelly_soft"], peer(NODES.LIFNode(v_reset=None)))
    rows.row("IFNode(), preset spikingjelly_if", NEURONS["spikingjelly_if"], peer(NODES.IFNode()))
    settings: list[tuple[str, dict[str, Any]]] = [
        ("hard -0.25, detached", {"tau": 4 / 3, "v_reset": -0.25, "detach_reset": True}),
        ("soft", {"tau": 3.3, "v_reset": None, "v_threshold": 0.8}),
        ("full input, hard -0.3", {"tau": 2.5, "decay_input": False, "v_reset": -0.3, "v_threshold": 0.8}),
        ("full input, soft, detached", {"tau": 1.6, "decay_input": False, "v_reset": None, "detach_reset": True}),
    ]
    for what, keys in settings:
        node = NODES.LIFNode(**keys, surrogate_function=SURROGATES.ATan())
        rows.row(f"LIFNode({keys['tau']:.3g}), {what}", lif(**keys), peer(node), surrogate="arctan", alpha=2.0)
    rows.row("IFNode(v_reset=-0.3, detach_reset=True)",
             Neuron(decay=1, v_reset=-0.3, v_init=-0.3, detach_reset=True, compare="ge"),
             peer(NODES.IFNode(v_reset=-0.3, detach_reset=True)))
    rows.row("IFNode(v_reset=None)", Neuron(decay=1, reset="soft", compare="ge"), peer(NODES.IFNode(v_reset=None)))
    node = NODES.ParametricLIFNode(3.0).double()
    k = node.w.sigmoid().item()                     # w is drawn in float32: k is 1/3 to seven digits
    rows.row("ParametricLIFNode(3.0), as it starts", Neuron(decay=1 - k, gain=k, compare="ge", form="norse"),
             peer(node))
    thirds = lif(3.0, decay_input=False)
    rows.row("LIFNode(3), full input: 1/(1 - decay) is not 3", thirds, peer(NODES.LIFNode(3.0, False)),
             list(inputs(thirds, ties=False)), bits=False)
    rows.report_ties()
    single = lif(2.5, v_reset=-0.25)
    rows.row("float32: LIFNode(2.5), hard -0.25", single, peer(NODES.LIFNode(2.5, v_reset=-0.25)),
             list(inputs(single, "float32")), gradient=1e-6)


def surrogates(table: Table) -> None:
    """Every surrogate that both have."""
    from peers.framework_net import slope
    from peers.spikingjelly_net import SURROGATES as S

    for alpha in (1.0, 0.5, 2.0):
        surrogate_row(table, f"PiecewiseQuadratic({1 / alpha:g})", "triangle", alpha,
                      partial(slope, S.PiecewiseQuadratic(1 / alpha)))
    for name, theirs, alphas in (("rectangle", S.Rect, (1.0, 2.0)), ("arctan", S.ATan, (2.0, 5.0)),
                                 ("sigmoid", S.Sigmoid, (4.0, 10.0)), ("erf", S.Erf, (2.0, 0.7)),
                                 ("piecewise_exponential", S.PiecewiseExp, (1.0, 3.0))):
        for alpha in alphas:
            surrogate_row(table, f"{theirs.__name__}({alpha:g})", name, alpha, partial(slope, theirs(alpha)))
    for alpha in (2.0, 5.0):
        surrogate_row(table, f"SoftSign({alpha:g})", "fast_sigmoid", alpha, partial(slope, S.SoftSign(alpha)),
                      factor=alpha / 2)
        surrogate_row(table, f"SuperSpike({alpha:g})", "fast_sigmoid", 1.0, partial(slope, S.SuperSpike(alpha)),
                      factor=alpha)


def losses(table: Table) -> None:
    """The loss of temporal efficient training, eq. (8)."""
    from peers.framework_net import value_and_slope
    from spikingjelly.activation_based import functional

    loss_row(table, "temporal_efficient_training_cross_entropy = tet", "tet",
             partial(value_and_slope, functional.temporal_efficient_training_cross_entropy))


def nets(table: Table) -> None:
    """A training step of a net made of SpikingJelly's layers."""
    from peers.framework_net import Step
    from peers.spikingjelly_net import NODES, SURROGATES, layers

    triangle = SURROGATES.PiecewiseQuadratic(1.0)
    settings: list[tuple[str, dict[str, Any]]] = [
        ("hard", {}), ("soft", {"v_reset": None}),
        ("hard, detached, full input", {"detach_reset": True, "decay_input": False}),
    ]
    for what, keys in settings:
        node = NODES.LIFNode(surrogate_function=triangle, **keys)
        net_rows(table, f"net, {what}", lif(2.0, **keys), "triangle", 1.0, partial(Step, layers(node)))


def not_expressible(table: Table) -> None:
    """A time constant that learns: equal until its first update, different after it."""
    import torch
    from peers.framework_net import differentiate
    from peers.spikingjelly_net import NODES, at_once

    node = NODES.ParametricLIFNode(2.0).double()
    fixed = Neuron(gain=0.5, compare="ge")
    x = next(inputs(fixed))
    before = differing_spikes(fixed, x, differentiate(at_once(node), x, *weights_like(x))[0])
    spikes, _ = at_once(node)(torch.tensor(x))
    (dw,) = torch.autograd.grad(spikes.mean(), node.w)
    with torch.no_grad():
        node.w -= 10 * dw
    after = differing_spikes(fixed, x, differentiate(at_once(node), x, *weights_like(x))[0])
    shown(table, f"a learning k: {before} spikes differ before an update, {after:,} after", before == 0 < after, x.size)


def traps(table: Table) -> None:
    """What makes two right implementations disagree."""
    import torch
    from peers.framework_net import differentiate
    from peers.spikingjelly_net import NODES, SURROGATES, at_once

    preset = NEURONS["spikingjelly"]
    random, dyadic = inputs(preset)
    zero = np.zeros_like(dyadic)
    theirs = differentiate(at_once(NODES.LIFNode()), dyadic, zero, zero)[0]
    strict = Neuron(gain=0.5, form="spikingjelly")
    n = differing_spikes(strict, dyadic, theirs)
    shown(table, f"> in place of >=: {n:,} spikes differ where ties occur", n > 0, dyadic.size)

    order(table)
    a, b = weights_like(random)
    passed, stopped = (differentiate(at_once(NODES.LIFNode(detach_reset=d)), random, a, b)[2] for d in (False, True))
    error = relative(stopped, passed)
    shown(table, f"detached or not: the gradient moves by {error:.2g} of its largest", error > 1e-3, random.size)

    node = NODES.LIFNode(step_mode="m")
    x = torch.tensor(random)
    first, second = node(x), node(x)
    n = unequal(first.numpy(), second.numpy())
    shown(table, f"no reset_net: {n} spikes of a second batch differ", n > 0, random.size)

    per_step(table)
    theirs = differentiate(at_once(NODES.LIFNode(v_reset=-0.5)), random, a, b)[0]
    n = differing_spikes(replace(lif(2.0, v_reset=-0.5), v_init=0.0), random, theirs)
    shown(table, f"starts at v_reset: {n} spikes differ from a start at 0", n > 0, random.size)
    two = SURROGATES.SuperSpike(2.0)
    at = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(two(at).sum(), at)
    shown(table, f"SuperSpike(2) is {slope[0]:g} at the threshold: alpha is a factor",
          slope.tolist() == [2.0, 0.5])


def order(table: Table) -> None:
    """The same mathematics in another order of operations, where membranes meet the threshold up to rounding."""
    from peers.framework_net import differentiate
    from peers.spikingjelly_net import NODES, at_once

    node, own = NODES.LIFNode(decay_input=False, v_reset=-0.3), lif(2.0, decay_input=False, v_reset=-0.3)
    x = (np.random.default_rng(15).integers(-4, 17, (25, 4, 100)) / 10).astype(np.float32)
    theirs = differentiate(at_once(node), x, np.zeros_like(x), np.zeros_like(x))[0]
    n, same = differing_spikes(replace(own, form="affine"), x, theirs), differing_spikes(own, x, theirs)
    shown(table, f"float32 in form affine: {n} spikes differ; in its own form {same}", n > 0 == same, x.size)


def per_step(table: Table) -> None:
    """Batch norm in step mode "s" in a loop over time: statistics of each step by itself."""
    import torch
    from spikingjelly.activation_based import layer

    x = torch.tensor(np.random.default_rng(16).standard_normal((4, 8, 3, 5, 5)))
    together = layer.BatchNorm2d(3, step_mode="m").double()
    alone = layer.BatchNorm2d(3, step_mode="s").double()
    error = relative(torch.stack([alone(step) for step in x]).detach(), together(x).detach())
    counts = int(alone.num_batches_tracked), int(together.num_batches_tracked)
    shown(table, f"batch norm step by step: y moves by {error:.2g}, {counts[0]} updates for 1",
          error > 1e-3 and counts == (4, 1), x.numel())


if __name__ == "__main__":
    main(TITLE, ("torch", "spikingjelly"), check)
