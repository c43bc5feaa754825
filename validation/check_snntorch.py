"""snnTorch 1.0: neurons, surrogates, a whole convolutional net; what refsnn cannot express; traps.

    python validation/check_snntorch.py

snnTorch fires above the threshold (>), takes the reset off in the *next* step, always detaches it, and returns the
membrane before the reset. Its spikes are float32 whatever comes in; for twelve digits every neuron is built in float64
with a surrogate that keeps the dtype (`peers/snntorch_net.py`), and what the stock one costs is a row of its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from common import Table, main, need, relative, unequal
from frameworks import Neurons, differing_spikes, inputs, loss_row, net_rows, shown, surrogate_row, weights_like

from refsnn.ops.neuron import NEURONS, Neuron

TITLE = "refsnn against snnTorch"


@contextmanager
def double() -> Iterator[None]:
    """Build modules in float64: snnTorch keeps decay and threshold in PyTorch's default dtype."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def check(table: Table) -> None:
    """Every row of the page's section on snnTorch."""
    need("torch", "snntorch")
    with double():
        neurons(table)
        surrogates(table)
        losses(table)
        net(table)
        not_expressible(table)
        traps(table)
    float32_traps(table)


def leaky(beta: float = 0.9, *, threshold: float = 1.0, kind: Any = None, **keys: Any) -> Any:
    """A peer: Leaky(beta) or another class, with the arctan surrogate that keeps the dtype."""
    import snntorch
    from peers.framework_net import differentiate
    from peers.snntorch_net import keeps_dtype, through_time

    given = keys if kind is not None else {"beta": beta} | keys
    node = (kind or snntorch.Leaky)(threshold=threshold, spike_grad=keeps_dtype("arctan", 2.0), **given)
    return partial(differentiate, through_time(node))


def neurons(table: Table) -> None:
    """Leaky and Lapicque."""
    import snntorch

    rows = Neurons(table, "arctan", 2.0, "h")
    rows.row("Leaky(0.9), preset snntorch", NEURONS["snntorch"], leaky())
    rows.row("Leaky(0.9, 'zero'), preset snntorch_zero", NEURONS["snntorch_zero"], leaky(reset_mechanism="zero"))
    rows.row("Leaky(0.9, 'none')", Neuron(decay=0.9, reset="none"), leaky(reset_mechanism="none"))
    soft = {"reset": "soft", "detach_reset": True}
    for beta, threshold in ((0.5, 1.0), (0.95, 0.8)):
        rows.row(f"Leaky({beta}, threshold {threshold})",
                 Neuron(decay=beta, v_threshold=threshold, reset_amount=threshold / beta, form="snntorch", **soft),
                 leaky(beta, threshold=threshold))
    rows.row("Leaky(0.5, 'zero', threshold 0.8)", Neuron(v_threshold=0.8, detach_reset=True),
             leaky(0.5, threshold=0.8, reset_mechanism="zero"))
    rows.row("Leaky(0.9, 'zero', no delay)", Neuron(decay=0.9), leaky(reset_mechanism="zero", reset_delay=False),
             membrane="v")
    low = Neuron(decay=0.5, reset="soft")
    small = [x.clip(-1, 1.0) for x in inputs(low)]      # h <= 2 v_threshold: beyond it this mode does not work
    rows.row("Leaky(0.5, no delay), h <= 2 threshold", low, leaky(0.5, reset_delay=False), small, membrane="v")
    for what, (r, c) in {"R=1, C=2": (1.0, 2.0), "R=2, C=2.5": (2.0, 2.5)}.items():
        decay, gain = 1 - 1 / (r * c), 1 / c
        xs = list(inputs(Neuron(gain=gain), ties=decay == 0.5))
        lapicque = {"kind": snntorch.Lapicque, "R": r, "C": c, "time_step": 1}
        rows.row(f"Lapicque({what})", Neuron(decay=decay, gain=gain, reset_amount=1 / decay, **soft), leaky(**lapicque),
                 xs, bits=False)
        rows.row(f"Lapicque({what}, 'none')", Neuron(decay=decay, gain=gain, reset="none"),
                 leaky(reset_mechanism="none", **lapicque), xs, bits=False)
    rows.report_ties()


def surrogates(table: Table) -> None:
    """Every surrogate that both have."""
    from peers.framework_net import slope
    from snntorch import surrogate

    for name, theirs, alphas in (("arctan", surrogate.atan, (2.0, 5.0)),
                                 ("fast_sigmoid", surrogate.fast_sigmoid, (25.0, 2.0)),
                                 ("sigmoid", surrogate.sigmoid, (25.0, 4.0))):
        for alpha in alphas:
            surrogate_row(table, f"{theirs.__name__}({alpha:g})", name, alpha, partial(slope, theirs(alpha)))


def losses(table: Table) -> None:
    """Cross entropy of every step and of the sum, and the squared error of counts."""
    from peers.framework_net import value_and_slope
    from snntorch import functional

    steps = 4.0
    rate, count, mse = (partial(value_and_slope, loss()) for loss in (
        functional.ce_rate_loss, functional.ce_count_loss, functional.mse_count_loss))
    loss_row(table, "ce_rate_loss = tet", "tet", rate, limit=1e-6)      # it adds up in float32
    loss_row(table, "ce_count_loss = cross_entropy_mean of T x logits", "cross_entropy_mean", count, logits_times=steps)
    loss_row(table, "mse_count_loss = T x mse_rate", "mse_rate", mse, times=steps)


def net(table: Table) -> None:
    """A training step of a net of PyTorch's layers and Leaky neurons."""
    import snntorch
    from peers.framework_net import Step, torch_layers
    from peers.snntorch_net import keeps_dtype, through_time

    for preset, mechanism, surrogate, alpha in (("snntorch", "subtract", "triangle", 1.0),
                                                ("snntorch_zero", "zero", "arctan", 2.0)):
        node = snntorch.Leaky(0.9, spike_grad=keeps_dtype(surrogate, alpha), reset_mechanism=mechanism)

        def spiking(x: Any, node: Any = node) -> Any:
            return through_time(node)(x)[0]

        net_rows(table, f"net, {mechanism}", NEURONS[preset], surrogate, alpha, partial(Step, torch_layers(spiking)))


def spikes(peer: Any, x: Any) -> Any:
    """The spikes of a peer on x."""
    return peer(x, *weights_like(x))[0]


def not_expressible(table: Table) -> None:
    """Lapicque's reset to zero, a decay that learns, and a second state."""
    import snntorch
    import torch
    from peers.snntorch_net import keeps_dtype, through_time

    hard = Neuron(gain=0.5, detach_reset=True)
    x = next(inputs(hard))
    lapicque = leaky(kind=snntorch.Lapicque, R=1.0, C=2.0, time_step=1, reset_mechanism="zero")
    n = differing_spikes(hard, x, spikes(lapicque, x))
    shown(table, f"Lapicque 'zero' drops the next input: {n:,} spikes differ", n > 0, x.size)

    node = snntorch.Leaky(0.5, learn_beta=True, reset_mechanism="zero", spike_grad=keeps_dtype("arctan", 2.0))
    fixed, run = Neuron(), through_time(node)
    x = next(inputs(fixed))
    before = unequal(run(torch.tensor(x))[0].detach().numpy(), spikes(leaky(0.5, reset_mechanism="zero"), x))
    (dbeta,) = torch.autograd.grad(run(torch.tensor(x))[0].mean(), node.beta)
    with torch.no_grad():
        node.beta -= dbeta
    after = differing_spikes(fixed, x, run(torch.tensor(x))[0].detach().numpy())
    shown(table, f"a learning beta: {before} spikes differ before an update, {after:,} after", before == 0 < after,
          x.size)

    later = Neuron(reset="soft", reset_amount=2.0, detach_reset=True, form="snntorch")
    node = snntorch.Synaptic(alpha=0.5, beta=0.5, spike_grad=keeps_dtype("arctan", 2.0))
    current = membrane = torch.zeros(x.shape[1:])
    fired, filtered, kept = [], np.empty_like(x), np.zeros(x.shape[1:])
    for t in range(len(x)):
        spike, current, membrane = node(torch.tensor(x[t]), current, membrane)
        fired.append(spike.numpy())
        filtered[t] = kept = 0.5 * kept + x[t]
    n, same = (differing_spikes(later, given, np.stack(fired)) for given in (x, filtered))
    shown(table, f"Synaptic: {n:,} spikes differ; {same} if its input is filtered", n > 0 == same, x.size)


def traps(table: Table) -> None:
    """What makes two right implementations disagree, in float64."""
    import snntorch
    import torch
    from peers.framework_net import differentiate
    from peers.snntorch_net import keeps_dtype, through_time
    from snntorch import surrogate

    random, dyadic = inputs(Neuron())
    loose = Neuron(reset="soft", reset_amount=2.0, compare="ge", form="snntorch")
    n = differing_spikes(loose, dyadic, spikes(leaky(0.5), dyadic))
    shown(table, f">= in place of >: {n:,} spikes differ where ties occur", n > 0, dyadic.size)
    n = differing_spikes(Neuron(decay=0.9, reset="soft"), random, spikes(leaky(), random))
    shown(table, f"threshold subtracted before the decay: {n:,} spikes differ", n > 0, random.size)

    stuck, twice = (spikes(leaky(1.0, reset_delay=delay), np.array([2.5, 0, 0, 0]).reshape(4, 1, 1)).sum()
                    for delay in (False, True))
    x = np.random.default_rng(17).normal(0.3, 0.8, random.shape)
    n = differing_spikes(Neuron(decay=0.9, reset="soft"), x, spikes(leaky(reset_delay=False), x))
    shown(table, f"reset_delay=False, h > 2 threshold: {n} spikes wrong", n > 0 and stuck < twice, x.size)
    table.note(f"  Leaky(1.0) on 2.5, 0, 0, 0: {stuck:g} spike with reset_delay=False, {twice:g} with reset_delay=True")

    a, b = weights_like(random)
    detached = leaky(reset_mechanism="zero")(random, a, 0 * b)[2]
    passed = leaky(reset_mechanism="zero", reset_delay=False)(random, a, 0 * b)[2]
    error = relative(passed, detached)
    shown(table, f"reset_delay=False is not detached: gradient moves by {error:.2g}", error > 1e-3, random.size)

    node = snntorch.Leaky(0.9, spike_grad=keeps_dtype("arctan", 2.0), init_hidden=True)
    first, second = (torch.stack([node(step) for step in torch.tensor(random)]).numpy() for _ in range(2))
    n = unequal(first, second)
    shown(table, f"no reset_mem (init_hidden): {n} spikes of a 2nd batch differ", n > 0, random.size)

    stock = snntorch.Leaky(0.95, threshold=0.8)
    own = leaky(0.95, threshold=0.8)
    ours, theirs = own(random, a, b), differentiate(through_time(stock), random, a, b)
    error = relative(theirs[2], ours[2])
    kept = through_time(stock)(torch.tensor(random))[0].dtype
    shown(table, f"stock surrogate: float32 spikes, gradient off by {error:.1e}", str(kept) == "torch.float32")

    at = torch.tensor([-0.5, 0.5], requires_grad=True)
    (slope,) = torch.autograd.grad(surrogate.triangular(1)(at).sum(), at)
    shown(table, f"triangular() is no triangle: {slope[0]:g} below, {slope[1]:g} above", slope.tolist() == [1.0, -1.0])
    try:
        surrogate.LSO()(at)
        shown(table, "LSO() raises TypeError", False)
    except TypeError:
        shown(table, "LSO() raises TypeError", True)


def float32_traps(table: Table) -> None:
    """What the default dtype does."""
    import snntorch
    import torch
    from peers.framework_net import slope
    from snntorch import surrogate

    kept = snntorch.Leaky(beta=0.9).double().beta.item()
    shown(table, f"Leaky(0.9).double() has beta 0.9 {kept - 0.9:+.1e}", kept != 0.9 and abs(kept - 0.9) < 1e-7)
    x = np.arange(-160, 1, dtype=np.float32) / 32
    nan = x[np.isnan(slope(surrogate.sigmoid(25), x))]
    shown(table, f"sigmoid(25), float32: NaN gradient at h - threshold <= {nan.max(initial=-9):.3g}", nan.size > 0,
          x.size)
    lapicque = snntorch.Lapicque(R=1.0, C=2.0, time_step=1)
    used = lapicque(torch.zeros(1), torch.ones(1))[1].item()
    shown(table, f"Lapicque stores beta = {lapicque.beta.item():.3g} and decays by {used:.3g}", used == 0.5)


if __name__ == "__main__":
    main(TITLE, ("torch", "snntorch"), check)
