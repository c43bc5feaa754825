"""PyTorch against refsnn: autograd for every operation, its optimisers, and the whole method side by side.

    python validation/check_torch.py            three minutes on two cores, five where they are busy

The first part gives both the same input and compares outputs and gradients, in float64: spikes equal, gradients within
max |difference| / max |gradient| <= 1e-12. The second trains two programs on the handwritten digits: refsnn, and the
independent implementation in peers/torch_method.py, which takes refsnn's initial weights and masks and its sample
order and then goes its own way. After every rewire: all masks equal, all counts equal, weights within 1e-9.

Rounding grows. A spike is 0 or 1, so what the two programs compute differently in the last digit does not reach the
next layer as long as no spike flips; but the surrogate's slope does depend on it, and a learning rate at the edge of
stability multiplies the difference from step to step, in the convolutions. At the learning rate of the configuration
`digits` ("adam, fast") it grows up to tenfold from rewire to rewire: the last run shows it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from common import EXACT, GRADIENT, Array, Table, Worst, main, need, unequal

from refsnn.layers import AvgPool2d, BatchNorm, Conv2d, Dropout, Linear, MaxPool2d
from refsnn.ops.loss import LOSSES
from refsnn.ops.neuron import lif_backward, lif_forward, lif_reset
from refsnn.ops.sparse import SparseWeight, from_dense
from refsnn.ops.surrogate import SURROGATES
from refsnn.optim import Optimizer, clip_gradients, learning_rate
from refsnn.schema import OptimConfig
from refsnn.trace import NO_RECORD

STEPS = 50              # of every optimiser


def check(table: Table) -> None:
    """Operations first, then the method."""
    (torch,) = need("torch")
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    check_linear_maps(table, generator)
    check_other_layers(table, generator)
    check_neurons(table, generator)
    check_surrogates(table, generator)
    check_losses(table, generator)
    check_optimisers(table, generator)
    check_schedules(table)
    from side_by_side import check_method, check_network

    check_network(table)
    for scope, preset, kind in product(("layer", "neuron"), ("figures", "literal"), ("adam", "sgd")):
        check_method(table, scope, preset, kind)
    check_method(table, "layer", "figures", "adam, fast")


# --------------------------------------------------------------------------------------------------- helping hands


def tensor(a: Array, features: int) -> Any:
    """refsnn's (features..., T, B) as a leaf (T, B, features...) that collects a gradient; `features` axes first."""
    import torch

    moved = np.moveaxis(a, (features, features + 1), (0, 1))
    return torch.from_numpy(np.ascontiguousarray(moved)).requires_grad_()


def array(t: Any) -> Array:
    """A tensor (T, B, features...) in refsnn's order."""
    return np.moveaxis(t.detach().numpy(), (0, 1), (-2, -1))


def leaf(a: Array) -> Any:
    """Any array as a leaf that collects a gradient."""
    import torch

    return torch.from_numpy(np.array(a)).requires_grad_()


def sparse(shape: tuple[int, ...], density: float, rng: np.random.Generator) -> SparseWeight:
    """A random weight; its first row is empty and its second full, if there are so many."""
    mask = rng.random(shape) < density
    mask[:1], mask[1:2] = len(mask) < 2, True
    return from_dense(rng.standard_normal(shape), mask)


def draw(_name: str) -> np.random.Generator:
    """The random stream of a layer that draws."""
    return np.random.default_rng(5)


# ---------------------------------------------------------------------------------------------------------- layers


def check_linear_maps(table: Table, rng: np.random.Generator) -> None:
    """Sparse convolution and sparse linear layer: output, input gradient, weight gradient at active and at all places.

    Autograd differentiates by the effective weight M * W, so that its gradient is there at every place.
    """
    import torch.nn.functional as F
    from peers.torch_layers import conv

    y_, dx_, active, dense, bias_ = Worst(), Worst(), Worst(), Worst(), Worst()
    layers: list[tuple[Any, tuple[int, ...], Any]] = []
    for kernel, stride, padding, density in product([(1, 1), (3, 3), (2, 3), (5, 5)], (1, 2), (0, 1, 2), (0.1, 0.5, 1)):
        weight, bias = sparse((5, 3, *kernel), density, rng), rng.standard_normal(5) if stride == 1 else None
        layers.append((Conv2d("c", weight, bias, stride, padding), (3, 7, 8),
                       lambda x, w, b, s=stride, p=padding: conv(x, w, b, s, p)))
    for features, density in product((1, 7, 50), (0.05, 0.5, 1)):
        weight = sparse((9, features), density, rng)
        layers.append((Linear("l", weight, rng.standard_normal(9)), (features,), lambda x, w, b: F.linear(x, w, b)))
    for layer, shape, reference in layers:
        x = rng.standard_normal((*shape, 3, 4))
        x_, w, b = tensor(x, len(shape)), leaf(layer.weight.dense()), None if layer.bias is None else leaf(layer.bias)
        out = reference(x_, w, b)
        y, cache = layer.forward(x, True, draw, NO_RECORD)
        dy = rng.standard_normal(y.shape)
        out.backward(tensor(dy, dy.ndim - 2))
        full = w.grad.numpy()
        y_.see(y, array(out))
        for every in (False, True):
            dx, gradients = layer.backward(dy, cache, NO_RECORD, every)
            dx_.see(dx, array(x_.grad))
            active.see(layer.weight.scatter(gradients[f"{layer.name}.weight"]), full * layer.weight.mask())
        dense.see(gradients[f"{layer.name}.weight.dense"], full.reshape(len(full), -1))
        if b is not None:
            bias_.see(gradients[f"{layer.name}.bias"], b.grad.numpy())
    y_.report(table, "sparse conv2d and linear: output", GRADIENT)
    dx_.report(table, "sparse conv2d and linear: input gradient", GRADIENT)
    active.report(table, "sparse conv2d and linear: gradient of active weights", GRADIENT)
    dense.report(table, "sparse conv2d and linear: gradient at every place", GRADIENT)
    bias_.report(table, "sparse conv2d and linear: bias gradient", GRADIENT)


def check_other_layers(table: Table, rng: np.random.Generator) -> None:
    """Batch norm with its running statistics, pooling (ties too), dropout with the drawn scale taken over."""
    from peers.torch_layers import batch_norm, pool

    out, grads, stats, inference = Worst(), Worst(), Worst(), Worst()
    for shape in ((1, 1, 1), (3, 5, 4), (6, 8, 8)):
        channels = shape[0]
        layer = BatchNorm("n", *(rng.standard_normal(channels) for _ in range(3)), rng.random(channels) + 0.5)
        mean, var = (leaf(a).detach() for a in (layer.running_mean, layer.running_var))
        for _ in range(4):                      # the statistics move from step to step
            x = rng.standard_normal((*shape, 3, 4)) * 3 + 10
            x_, gamma, beta = tensor(x, 3), leaf(layer.gamma), leaf(layer.beta)
            y_ = batch_norm(x_, gamma, beta, mean, var, training=True)
            y, cache = layer.forward(x, True, draw, NO_RECORD)
            dy = rng.standard_normal(y.shape)
            y_.backward(tensor(dy, 3))
            dx, found = layer.backward(dy, cache, NO_RECORD, False)
            layer.commit(cache)
            out.see(y, array(y_))
            for ours, theirs in ((dx, array(x_.grad)), (found["n.gamma"], gamma.grad), (found["n.beta"], beta.grad)):
                grads.see(ours, np.asarray(theirs))
            stats.see(layer.running_mean, mean.numpy())
            stats.see(layer.running_var, var.numpy())
            inference.see(layer.forward(x, False, draw, NO_RECORD)[0],
                          array(batch_norm(x_, gamma, beta, mean, var, training=False)))
    out.report(table, "batch norm: output", GRADIENT)
    grads.report(table, "batch norm: gradients of input, gamma, beta", GRADIENT)
    stats.report(table, "batch norm: running mean and variance", GRADIENT)
    inference.report(table, "batch norm: evaluation", GRADIENT)

    average, largest = Worst(), Worst()
    for size, spikes in product((1, 2, 3), (False, True)):
        x = rng.standard_normal((4, 7, 8, 3, 4))
        x = (x > 0.5).astype(np.float64) if spikes else x
        for kind, make, worst in (("average", AvgPool2d, average), ("max", MaxPool2d, largest)):
            x_, pooling = tensor(x, 3), make("p", size)
            y_ = pool(x_, size, kind)
            y, cache = pooling.forward(x, True, draw, NO_RECORD)
            dy = rng.standard_normal(y.shape)
            y_.backward(tensor(dy, 3))
            worst.see(y, array(y_))
            worst.see(pooling.backward(dy, cache, NO_RECORD, False)[0], array(x_.grad))
    average.report(table, "average pooling: output and gradient", GRADIENT)
    largest.report(table, "max pooling: output and gradient, ties among spikes included", EXACT)

    dropout, worst = Dropout("d", 0.3), Worst()
    x = rng.standard_normal((50, 3, 4))
    y, scale = dropout.forward(x, True, draw, NO_RECORD)
    x_ = tensor(x, 1)
    y_ = x_ * tensor(np.broadcast_to(scale, x.shape), 1).detach()
    y_.backward(tensor(x, 1))
    worst.see(y, array(y_))
    worst.see(dropout.backward(x, scale, NO_RECORD, False)[0], array(x_.grad))
    worst.see(np.unique(scale), np.array([0, 1 / 0.7]))
    worst.report(table, "dropout: output and gradient with the same draw", EXACT)


# --------------------------------------------------------------------------------------------------------- neurons


@dataclass(frozen=True)
class Case:
    """One neuron in both programs' words."""

    ours: dict[str, Any]
    theirs: dict[str, Any]


def neuron_cases() -> Iterator[Case]:
    """Every reset, detached or not, both comparisons, and parameters that are not the paper's."""
    numbers = [(0.5, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0), (0.9, 0.1, 0.05, 0.3, -0.2, 0.7, 0.1),
               (1.0, 1.0, 0.0, 2.0, 0.5, 2.0, 0.0)]
    for values, reset, detach, compare in product(numbers, ("hard", "soft", "none"), (False, True), ("gt", "ge")):
        decay, gain, bias, threshold, v_reset, amount, v_init = values
        yield Case({"decay": decay, "gain": gain, "bias": bias, "v_threshold": threshold, "v_reset": v_reset,
                    "reset_amount": amount, "v_init": v_init, "reset": reset, "compare": compare, "form": "affine"},
                   {"decay": decay, "gain": gain, "bias": bias, "threshold": threshold, "v_reset": v_reset,
                    "amount": amount, "v_init": v_init, "reset": reset, "strict": compare == "gt", "detach": detach})


def check_neurons(table: Table, rng: np.random.Generator) -> None:
    """Spikes and membranes over 25 steps, and the gradient through time; half the inputs meet the threshold exactly."""
    from peers.torch_layers import lif

    flips, membrane, gradients, compared = 0, 0, Worst(), 0
    for case, dyadic in product(neuron_cases(), (False, True)):
        x = rng.standard_normal((40, 25, 6)) + 0.3
        x = np.round(x * 4) / 4 if dyadic else x
        s, h = lif_forward(x, **case.ours)
        keys = ("v_reset", "reset_amount", "reset")
        v = lif_reset(h, s, *(case.ours[k] for k in keys))
        for name, surrogate in SURROGATES.items():
            x_ = tensor(x, 1)
            s_, h_, v_ = lif(x_, surrogate=name, alpha=surrogate.alpha, **case.theirs)
            ds, dh, dv = (rng.standard_normal(x.shape) for _ in range(3))
            total = sum((a * tensor(d, 1).detach()).sum() for a, d in ((s_, ds), (h_, dh), (v_, dv)))
            total.backward()
            slope = surrogate.derivative(h - case.ours["v_threshold"], surrogate.alpha)
            dx = lif_backward(ds, h, s, slope, case.ours["decay"], case.ours["gain"], *(case.ours[k] for k in keys),
                              case.theirs["detach"], dh, dv)
            gradients.see(dx, array(x_.grad))
        flips += unequal(s, array(s_))
        membrane += unequal(h, array(h_)) + unequal(v, array(v_))
        compared += s.size
    table.add("neuron: spikes that differ", compared, flips, EXACT)
    table.add("neuron: membranes before and after reset that differ in a bit", 2 * compared, membrane, EXACT)
    gradients.report(table, "neuron: gradient through 25 steps, all surrogates", GRADIENT)


def check_surrogates(table: Table, rng: np.random.Generator) -> None:
    """The slope against an independent formula, and against autograd of an independent primitive."""
    import torch
    from peers.torch_layers import PRIMITIVES, SLOPES

    slope, primitive, derived = Worst(), Worst(), Worst()
    for (name, surrogate), factor in product(SURROGATES.items(), (0.5, 1.0, 3.0)):
        alpha = surrogate.alpha * factor
        wide, narrow = rng.standard_normal(500), rng.standard_normal(500) / alpha
        x = np.concatenate([wide, narrow, [0.0, alpha, -alpha, 1 / alpha]])
        slope.see(surrogate.derivative(x, alpha), SLOPES[name](torch.from_numpy(x), alpha).numpy())
        smooth = x[np.all([np.abs(x - kink) > 1e-9 for kink in (*surrogate.kinks(alpha), np.inf)], axis=0)]
        x_ = leaf(smooth)
        y_ = PRIMITIVES[name](x_, alpha)
        y_.sum().backward()
        primitive.see(surrogate.primitive(smooth, alpha), y_.detach().numpy())
        derived.see(surrogate.derivative(smooth, alpha), x_.grad.numpy())
    slope.report(table, "surrogates: slope", GRADIENT)
    primitive.report(table, "surrogates: primitive", GRADIENT)
    derived.report(table, "surrogates: slope against autograd of the primitive", GRADIENT)


def check_losses(table: Table, rng: np.random.Generator) -> None:
    """Value and gradient of every loss, logits large and small."""
    import torch
    from peers.torch_layers import LOSSES as THEIRS

    value, gradient = Worst(), Worst()
    for (name, loss), scale in product(LOSSES.items(), (1e-3, 1.0, 50.0)):
        logits, labels = rng.standard_normal((10, 4, 16)) * scale, rng.integers(0, 10, 16)
        leaf_ = leaf(logits.transpose(1, 2, 0))
        loss_ = THEIRS[name](leaf_, torch.from_numpy(labels))
        loss_.backward()
        ours, dlogits = loss(logits, labels)
        value.see(ours, loss_.item())
        gradient.see(dlogits, leaf_.grad.numpy().transpose(2, 0, 1))
    value.report(table, "losses: value (tet, cross_entropy_mean, mse_rate)", GRADIENT)
    gradient.report(table, "losses: gradient", GRADIENT)


# ------------------------------------------------------------------------------------------------------ optimisers


def check_optimisers(table: Table, rng: np.random.Generator) -> None:
    """50 steps of torch.optim and of refsnn from the same gradients, at a learning rate that moves."""
    import torch

    kinds: dict[str, list[tuple[dict[str, Any], Any]]] = {
        "sgd": [({"momentum": m, "nesterov": n, "weight_decay": w},
                 lambda ps, m=m, n=n, w=w: torch.optim.SGD(ps, 0.1, momentum=m, nesterov=n, weight_decay=w))
                for m, n, w in ((0.0, False, 0.0), (0.9, False, 0.0), (0.9, False, 5e-4), (0.9, True, 5e-4))],
        "adam": [({"weight_decay": w}, lambda ps, w=w: torch.optim.Adam(ps, 0.1, weight_decay=w)) for w in (0, 1e-2)],
        "adamw": [({"weight_decay": w, "beta1": 0.8, "beta2": 0.99, "eps": 1e-6},
                   lambda ps, w=w: torch.optim.AdamW(ps, 0.1, betas=(0.8, 0.99), eps=1e-6, weight_decay=w))
                  for w in (0, 1e-2)],
    }
    for kind, variants in kinds.items():
        worst = Worst()
        for settings, make in variants:
            config = OptimConfig(kind=kind, **{k: float(v) if k != "nesterov" else v for k, v in settings.items()})
            w = rng.standard_normal(2000)
            p, optimizer = leaf(w), Optimizer(config)
            theirs = make([p])
            for step in range(STEPS):
                lr = 0.01 / (1 + step)
                g = rng.standard_normal(w.size) * 10.0 ** rng.integers(-9, 2, w.size)
                g[:50] = 0
                optimizer.step({"w": w}, {"w": g.copy()}, lr)
                theirs.param_groups[0]["lr"], p.grad = lr, torch.from_numpy(g)
                theirs.step()
                worst.see(w, p.detach().numpy())
        worst.report(table, f"{kind}: weights after each of {STEPS} steps", GRADIENT)

    worst = Worst()
    for largest in (0.1, 1.0, 1e6):
        ours = {name: rng.standard_normal(30) for name in "ab"}
        theirs = [leaf(g) for g in ours.values()]
        for p, g in zip(theirs, ours.values(), strict=True):
            p.grad = torch.from_numpy(g.copy())
        norm = torch.nn.utils.clip_grad_norm_(theirs, largest).item()
        clip_gradients(ours, ["a", "b"], largest)
        added = (norm + 1e-6) / norm if norm > largest else 1.0     # torch divides by norm + 1e-6
        for p, g in zip(theirs, ours.values(), strict=True):
            worst.see(g, p.grad.numpy() * added)
    worst.report(table, "gradient clipping (PyTorch's + 1e-6 taken out)", GRADIENT)


def check_schedules(table: Table) -> None:
    """Learning rates of torch's schedulers over one period."""
    import torch

    period, per_epoch = 120, 12
    cosine = OptimConfig(lr=0.3, schedule="cosine")
    steps = OptimConfig(lr=0.3, schedule="step", step_every=3, step_factor=0.5)
    constant = OptimConfig(lr=0.3, schedule="constant")
    warm = OptimConfig(lr=0.3, schedule="constant", warmup=2)
    schedulers = torch.optim.lr_scheduler
    makers = [
        ("cosine", cosine, lambda o: schedulers.CosineAnnealingLR(o, period)),
        ("step", steps, lambda o: schedulers.StepLR(o, 3 * per_epoch, 0.5)),
        ("constant", constant, lambda o: schedulers.ConstantLR(o, 1.0)),
        ("warm-up", warm, lambda o: schedulers.LinearLR(o, 1 / 24, 1.0, total_iters=23)),
    ]
    worst = Worst()
    for _, config, make in makers:
        optimizer = torch.optim.SGD([leaf(np.zeros(1))], 0.3)
        scheduler, theirs = make(optimizer), []
        for _ in range(period):
            theirs.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        ours = [learning_rate(config, k, period, per_epoch) for k in range(period)]
        worst.see(ours, theirs)
    worst.report(table, "schedules: cosine, step, constant, warm-up, 120 steps each", GRADIENT)


if __name__ == "__main__":
    main("PyTorch", ("torch", "numba"), check)
