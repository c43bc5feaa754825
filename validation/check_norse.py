"""Norse 1.1: neurons, surrogates, a whole convolutional net; what refsnn cannot express; traps.

    python validation/check_norse.py

Norse fires above the threshold (>), starts at v_leak, lets the gradient through the reset of a feed-forward cell and
returns the membrane after the reset. Its parameters must be float64 tensors: the defaults carry seven digits.
"""

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from common import EXACT, GRADIENT, Table, main, need, relative, unequal
from frameworks import (
    Neurons,
    differing_spikes,
    inputs,
    net_rows,
    refsnn_neuron,
    shown,
    surrogate_row,
    weights_like,
)

from refsnn.ops.neuron import NEURONS, Neuron

Array = npt.NDArray[Any]
TITLE = "refsnn against Norse"
SUPER: dict[str, Any] = {"surrogate": "fast_sigmoid", "alpha": 1.0}


def check(table: Table) -> None:
    """Every row of the page's section on Norse."""
    need("torch", "norse.torch")
    neurons(table)
    current_based(table)
    surrogates(table)
    net(table)
    traps(table)


def cell(kind: str = "LIFBox", dt: float = 0.001, method: str = "super", alpha: float = 100.0, **values: Any) -> Any:
    """A cell of Norse with float64 parameters: tau_mem_inv, v_leak, v_th, v_reset; reset_method as a function."""
    import norse.torch as norse
    import torch
    from peers.norse_net import double

    others = {name: values.pop(name) for name in ("reset_method",) if name in values}
    given = {"v_th": 1.0, "v_reset": 0.0} | ({} if kind == "IAF" else {"tau_mem_inv": 100.0, "v_leak": 0.0}) | values
    parameters = getattr(norse, f"{kind}Parameters")
    p = parameters(method=method, alpha=torch.tensor(alpha, dtype=torch.float64), **double(**given), **others)
    return getattr(norse, f"{kind}Cell")(p, dt=dt)


def peer(made: Any) -> Any:
    """A cell through time under autograd."""
    from peers.framework_net import differentiate
    from peers.norse_net import through_time

    return partial(differentiate, through_time(made))


def neurons(table: Table) -> None:
    """LIFBoxCell, IAFCell."""
    from norse.torch.functional.reset import reset_subtract

    rows = Neurons(table, **SUPER, membrane="v")
    rows.row("LIFBoxCell(), preset norse", NEURONS["norse"], peer(cell()))
    rows.row("LIFBoxCell(reset_subtract), preset norse_subtract", NEURONS["norse_subtract"],
             peer(cell(reset_method=reset_subtract)))
    quarter = {"decay": 0.75, "gain": 0.25, "v_threshold": 0.75, "form": "norse"}
    given = {"tau_mem_inv": 250.0, "v_th": 0.75}
    rows.row("LIFBoxCell, k = 1/4, v_reset", Neuron(v_reset=-0.5, **quarter), peer(cell(v_reset=-0.5, **given)))
    rows.row("LIFBoxCell, k = 1/4, reset_subtract", Neuron(reset="soft", reset_amount=0.75, **quarter),
             peer(cell(reset_method=reset_subtract, **given)))
    leak = Neuron(bias=0.25 * 0.3, v_reset=-0.2, v_init=0.3, **quarter)
    rows.row("LIFBoxCell, k = 1/4, v_leak 0.3", leak, peer(cell(v_leak=0.3, v_reset=-0.2, **given)),
             list(inputs(leak, ties=False)), bits=False)
    rows.row("LIFBoxCell, triangle(1)", NEURONS["norse"], peer(cell(method="triangle", alpha=1.0)),
             surrogate="triangle", alpha=1.0)
    rows.row("LIFBoxCell, tanh(2)", NEURONS["norse"], peer(cell(method="tanh", alpha=2.0)),
             surrogate="sigmoid", alpha=4.0)
    rows.row("IAFCell, v_reset -0.25", Neuron(decay=1, v_reset=-0.25, v_init=-0.25), peer(cell("IAF", v_reset=-0.25)))
    rows.report_ties()


def current_based(table: Table) -> None:
    """LIFCell and lif_step drive the membrane by a current that decays: equal to a filter before refsnn's neuron."""
    import norse.torch as norse
    from peers.framework_net import differentiate
    from peers.norse_net import double, recurrent_step

    for what, leak in (("LIFCell", 0.0), ("LIFCell, v_leak 0.3", 0.3)):
        neuron = Neuron(decay=0.9, gain=0.1, bias=0.1 * leak, v_init=leak, form="norse")
        current_rows(table, what, neuron, peer(cell("LIF", tau_syn_inv=200.0, v_leak=leak)))
    p = norse.LIFParameters(**double(tau_syn_inv=200.0, tau_mem_inv=100.0, v_leak=0.0, v_th=1.0, v_reset=0.0))
    neuron = Neuron(decay=0.9, gain=0.1, detach_reset=True, form="norse")
    current_rows(table, "lif_step (detached)", neuron, partial(differentiate, recurrent_step(p, 0.001)))


def current_rows(table: Table, what: str, neuron: Neuron, theirs: Any) -> None:
    """Without the filter the spikes differ; with it everything is equal, and the gradient goes back through it."""
    leak = 0.001 * 200.0
    x = next(inputs(neuron)) / 3
    weights = weights_like(x)
    s, v, dx = theirs(x, *weights)
    current, before = np.empty_like(x), np.zeros_like(x[0])
    for t in range(len(x)):
        current[t] = before + x[t]
        before = current[t] + -leak * current[t]
    s_, v_, dcurrent, _ = refsnn_neuron(neuron, current, *weights, membrane="v", **SUPER)
    mine, after = np.empty_like(x), np.zeros_like(x[0])
    for t in reversed(range(len(x))):
        mine[t] = after = dcurrent[t] + (1 - leak) * after
    n = differing_spikes(neuron, x, s)
    shown(table, f"{what}: {n:,} spikes differ without its current", n > 0, x.size)
    table.add(f"{what} = filter, then refsnn: spikes, membranes", 2 * x.size, unequal(s, s_) + unequal(v, v_), EXACT)
    table.add(f"{what} = filter, then refsnn: gradient", x.size, relative(mine, dx), GRADIENT)


def surrogates(table: Table) -> None:
    """Every surrogate that both have."""
    import torch
    from norse.torch.functional.threshold import threshold
    from peers.framework_net import slope

    def method(name: str, alpha: float) -> Any:
        return partial(slope, lambda x: threshold(x, name, alpha))

    surrogate_row(table, "super", "fast_sigmoid", 1.0, method("super", 100.0))
    surrogate_row(table, "triangle(1)", "triangle", 1.0, method("triangle", 1.0))
    surrogate_row(table, "triangle(0.3)", "triangle", 1.0, method("triangle", 0.3), factor=0.3)
    for alpha in (2.0, 1.0):
        surrogate_row(table, f"tanh({alpha:g})", "sigmoid", 2 * alpha, method("tanh", alpha), factor=2 / alpha)
        surrogate_row(table, f"heavi_erfc({alpha:g})", "erf", alpha, method("heavi_erfc", alpha), factor=2 / alpha,
                      limit=1e-6)
    torch.set_default_dtype(torch.float64)              # its sqrt(pi) follows the default dtype
    try:
        surrogate_row(table, "heavi_erfc(2), default float64", "erf", 2.0, method("heavi_erfc", 2.0))
    finally:
        torch.set_default_dtype(torch.float32)


def net(table: Table) -> None:
    """A training step of a net of PyTorch's layers and LIFBoxCells."""
    from norse.torch.functional.reset import reset_subtract
    from peers.framework_net import Step, torch_layers
    from peers.norse_net import through_time

    for reset, keys in (("hard", {}), ("soft", {"reset_method": reset_subtract})):
        neuron = Neuron(gain=0.5, reset=reset, form="norse")
        made = cell(tau_mem_inv=500.0, method="triangle", alpha=1.0, **keys)

        def spiking(x: Any, made: Any = made) -> Any:
            return through_time(made)(x)[0]

        net_rows(table, f"net, {reset}", neuron, "triangle", 1.0, partial(Step, torch_layers(spiking)))


def traps(table: Table) -> None:
    """What makes two right implementations disagree."""
    import norse.torch as norse
    import torch
    from norse.torch.functional.threshold import threshold
    from peers.framework_net import differentiate, slope
    from peers.norse_net import double, recurrent_step

    preset = NEURONS["norse"]
    random, dyadic = inputs(preset)
    a, b = weights_like(random)
    loose = Neuron(decay=0.9, gain=0.1, compare="ge", form="norse")
    n = differing_spikes(loose, dyadic, peer(cell())(dyadic, a, b)[0])
    shown(table, f">= in place of >: {n:,} spikes differ where ties occur", n > 0, dyadic.size)

    at = np.arange(-8, 9) / 4
    slopes = [slope(lambda x, alpha=alpha: threshold(x, "super", alpha), at) for alpha in (1.0, 100.0, 1000.0)]
    shown(table, "super ignores alpha: 1, 100 and 1000 give one derivative",
          all(np.array_equal(slopes[0], other) for other in slopes), at.size)

    v = peer(norse.LIFBoxCell())(random, a, b)[1]
    k = (0.001 * torch.tensor(100.0)).item()
    narrow = Neuron(decay=1 - k, gain=k, form="norse")
    same = unequal(refsnn_neuron(narrow, random, a, b, membrane="v", **SUPER)[1], v)
    error = relative(refsnn_neuron(preset, random, a, b, membrane="v", **SUPER)[1], v)
    shown(table, f"default parameters are float32: k = 0.1 {k - 0.1:+.1e}", same == 0 < error < 1e-6, random.size)
    table.note(f"  membranes of LIFBoxCell() are off by {error:.1e} from k = 0.1, equal to those of that k")

    p = norse.LIFParameters(**double(tau_syn_inv=200.0, tau_mem_inv=100.0, v_leak=0.0, v_th=1.0, v_reset=0.0))
    forward = peer(cell("LIF", tau_syn_inv=200.0))(random / 3, a, b)
    recurrent = differentiate(recurrent_step(p, 0.001), random / 3, a, b)
    error = relative(recurrent[2], forward[2])
    shown(table, f"recurrent cells detach the reset: gradient moves by {error:.2g}",
          unequal(forward[0], recurrent[0]) == 0 and error > 1e-3, random.size)

    shared = norse.IAFParameters().v_reset
    try:
        norse.IAFCell()(torch.zeros(1))
        shown(table, "IAFCell() makes its shared default require a gradient", shared.requires_grad)
    finally:
        shared.requires_grad_(False)

    leak = Neuron(decay=0.75, gain=0.25, bias=0.075, v_init=0.3, form="norse")
    v = peer(cell(tau_mem_inv=250.0, v_leak=0.3))(random, a, b)[1]
    n = unequal(refsnn_neuron(leak, random, a, b, membrane="v", **SUPER)[1], v)
    shown(table, f"LIFBox adds v_leak to x first: last bits of {n:,} membranes", n > 0, random.size)
    n = differing_spikes(Neuron(decay=0.75, gain=0.25, bias=0.25 * 0.75, form="norse"), random,
                         peer(cell(tau_mem_inv=250.0, v_leak=0.75))(random, a, b)[0])
    shown(table, f"starts at v_leak: {n} spikes differ from a start at 0", n > 0, random.size)


if __name__ == "__main__":
    main(TITLE, ("torch", "norse"), check)
