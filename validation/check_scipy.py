"""SciPy against refsnn: correlations, sparse products, filters, power means; needs nothing beyond refsnn itself.

    python validation/check_scipy.py            a few seconds

SciPy computes each of these its own way: a convolution by correlating whole images, a sparse layer by a CSR product,
the leaky membrane as a recursive filter, the PQ index from power means, the density of eq. (1) by finding a root. All
in float64; spikes equal, everything else within max |difference| / max |value| <= 1e-12.
"""

from itertools import pairwise, product

import numpy as np
from common import EXACT, GRADIENT, Array, Table, Worst, main, unequal
from scipy import ndimage, optimize, signal, sparse, special, stats

from refsnn.layers import AvgPool2d, Conv2d, Linear, MaxPool2d
from refsnn.ops.loss import LOSSES
from refsnn.ops.neuron import lif_forward
from refsnn.ops.sparse import SparseWeight, from_dense
from refsnn.ops.surrogate import SURROGATES
from refsnn.pq import measure
from refsnn.topology import layer_densities
from refsnn.trace import NO_RECORD


def check(table: Table) -> None:
    """All comparisons."""
    rng = np.random.default_rng(0)
    check_correlations(table, rng)
    check_sparse_products(table, rng)
    check_pooling(table, rng)
    check_membranes(table, rng)
    check_functions(table, rng)
    check_index(table, rng)
    check_densities(table)


def weight(shape: tuple[int, ...], density: float, rng: np.random.Generator) -> SparseWeight:
    """A random sparse weight whose first row is empty."""
    mask = rng.random(shape) < density
    mask[0] = False
    return from_dense(rng.standard_normal(shape), mask)


def draw(name: str) -> np.random.Generator:
    """The random stream of a layer that draws: none of these does."""
    raise AssertionError(f"{name} was drawn")


def check_correlations(table: Table, rng: np.random.Generator) -> None:
    """Convolution: every image and filter correlated on its own; its gradients are a convolution and a correlation."""
    out, dx_, dw = Worst(), Worst(), Worst()
    for kernel, stride, padding, density in product([(1, 1), (3, 3), (2, 4)], (1, 2, 3), (0, 2), (0.2, 1.0)):
        layer = Conv2d("c", weight((4, 3, *kernel), density, rng), None, stride, padding)
        w, x = layer.weight.dense(), rng.standard_normal((3, 7, 8, 2, 3))
        padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0), (0, 0)))
        y, cache = layer.forward(x, True, draw, NO_RECORD)
        dy = rng.standard_normal(y.shape)
        dx, gradients = layer.backward(dy, cache, NO_RECORD, True)
        spread = np.zeros((4, *(n - k + 1 for n, k in zip(padded.shape[1:3], kernel, strict=True)), 2, 3))
        spread[:, ::stride, ::stride] = dy          # the gradient at the places that the stride skips is 0
        y_, full, dw_ = np.zeros_like(y), np.zeros_like(padded), np.zeros_like(w)
        for t, b, o, c in product(range(2), range(3), range(4), range(3)):
            image = padded[c, :, :, t, b]
            y_[o, :, :, t, b] += signal.correlate(image, w[o, c], "valid")[::stride, ::stride]
            full[c, :, :, t, b] += signal.convolve(spread[o, :, :, t, b], w[o, c], "full")
            dw_[o, c] += signal.correlate(image, spread[o, :, :, t, b], "valid")
        out.see(y, y_)
        dx_.see(dx, full[:, padding:padding + 7, padding:padding + 8])
        dw.see(gradients["c.weight.dense"].reshape(w.shape), dw_)
        dw.see(layer.weight.scatter(layer.backward(dy, cache, NO_RECORD, False)[1]["c.weight"]),
               dw_ * layer.weight.mask())
    out.report(table, "conv2d: output, scipy.signal.correlate", GRADIENT)
    dx_.report(table, "conv2d: input gradient, scipy.signal.convolve", GRADIENT)
    dw.report(table, "conv2d: weight gradient, active and dense, correlate", GRADIENT)


def check_sparse_products(table: Table, rng: np.random.Generator) -> None:
    """Linear layer and 1x1 or whole-image convolution as CSR products, with the very arrays of the weight."""
    out, dx_, dw = Worst(), Worst(), Worst()
    for features, density in product((3, 60, 200), (0.05, 0.5, 1.0)):
        w = weight((20, features), density, rng)
        matrix = sparse.csr_array((w.data, w.indices, w.indptr), shape=w.shape)
        x, dy = rng.standard_normal((features, 2, 5)), rng.standard_normal((20, 2, 5))
        layer = Linear("l", w, rng.standard_normal(20))
        y, cache = layer.forward(x, True, draw, NO_RECORD)
        dx, gradients = layer.backward(dy, cache, NO_RECORD, True)
        out.see(y.reshape(20, -1), matrix @ x.reshape(features, -1) + layer.bias[:, np.newaxis])
        dx_.see(dx.reshape(features, -1), matrix.T @ dy.reshape(20, -1))
        outer = dy.reshape(20, -1) @ x.reshape(features, -1).T
        dw.see(gradients["l.weight.dense"], outer)
        dw.see(gradients["l.weight"], (sparse.csr_array(w.mask()) * outer).tocsr()[w.row_index(), w.indices])
        whole = Conv2d("c", SparseWeight(w.data, w.indices, w.indptr, (20, features, 1, 1)))
        out.see(whole.forward(x.reshape(features, 1, 1, 2, 5), True, draw, NO_RECORD)[0].reshape(20, -1),
                matrix @ x.reshape(features, -1))
    out.report(table, "linear and 1x1 conv: output, scipy.sparse product", GRADIENT)
    dx_.report(table, "linear: input gradient, product with the transpose", GRADIENT)
    dw.report(table, "linear: weight gradient, active and dense", GRADIENT)


def check_pooling(table: Table, rng: np.random.Generator) -> None:
    """Windows by scipy.ndimage's filters, read at every size-th place."""
    average, largest = Worst(), Worst()
    for size in (1, 2, 3):
        x = rng.standard_normal((3, 7, 8, 2, 3))
        h, w = 7 // size * size, 8 // size * size
        window, start = (1, size, size, 1, 1), size // 2
        places = (slice(None), slice(start, h, size), slice(start, w, size))
        average.see(AvgPool2d("p", size).forward(x, True, draw, NO_RECORD)[0],
                    ndimage.uniform_filter(x, window, mode="constant")[places])
        largest.see(MaxPool2d("p", size).forward(x, True, draw, NO_RECORD)[0],
                    ndimage.maximum_filter(x, window, mode="constant")[places])
    average.report(table, "average pooling, scipy.ndimage.uniform_filter", GRADIENT)
    largest.report(table, "max pooling, scipy.ndimage.maximum_filter", EXACT)


def check_membranes(table: Table, rng: np.random.Generator) -> None:
    """A neuron without reset is a recursive filter; between two spikes, so is one with the hard reset."""
    membrane, spikes, cases = Worst(), 0, 0
    for decay, gain, compare, dyadic in product((0.0, 0.5, 0.9, 1.0), (1.0, 0.3), ("gt", "ge"), (False, True)):
        x = rng.standard_normal((100, 30, 2))
        x = np.round(4 * x) / 4 if dyadic else x        # these meet the threshold exactly
        s, h = lif_forward(x, decay, gain, 0.0, 1.0, 0.0, 1.0, 0.0, "none", compare, "affine")
        h_ = signal.lfilter([gain], [1, -decay], x, axis=1)
        membrane.see(h, h_)
        spikes += unequal(s, np.heaviside(h - 1, float(compare == "ge")))
        s, h = lif_forward(x, decay, gain, 0.0, 1.0, 0.0, 1.0, 0.0, "hard", compare, "affine")
        spikes += unequal(s, np.heaviside(h - 1, float(compare == "ge")))
        membrane.see(h, filtered_between_spikes(x, s, decay, gain))
        cases += 2 * s.size
    membrane.report(table, "membrane, eq. (5), scipy.signal.lfilter", GRADIENT)
    table.add("spikes against heaviside of that membrane: differing", cases, spikes, EXACT)


def filtered_between_spikes(x: Array, s: Array, decay: float, gain: float) -> Array:
    """The membrane of a hard reset to 0: each stretch that follows a spike is filtered from rest."""
    h = np.empty_like(x)
    for i, b in product(range(x.shape[0]), range(x.shape[2])):
        starts = [0, *(np.flatnonzero(s[i, :-1, b]) + 1), x.shape[1]]
        for first, end in pairwise(starts):
            h[i, first:end, b] = signal.lfilter([gain], [1, -decay], x[i, first:end, b])
    return h


def check_functions(table: Table, rng: np.random.Generator) -> None:
    """Surrogates and losses by scipy.special and scipy.stats."""
    value, gradient = Worst(), Worst()
    for scale in (1e-3, 1.0, 100.0):
        logits, labels = rng.standard_normal((10, 4, 16)) * scale, rng.integers(0, 10, 16)
        for name, z in (("tet", logits), ("cross_entropy_mean", logits.mean(1, keepdims=True))):
            loss, dlogits = LOSSES[name](logits, labels)
            value.see(loss, -special.log_softmax(z, axis=0)[labels, :, np.arange(16)].mean())
            expected = (special.softmax(z, axis=0) - np.eye(10)[labels].T[:, np.newaxis]) / 64
            gradient.see(dlogits, np.broadcast_to(expected, logits.shape))
    value.report(table, "losses: value, scipy.special.log_softmax", GRADIENT)
    gradient.report(table, "losses: gradient, scipy.special.softmax", GRADIENT)
    x, primitive, slope = rng.standard_normal(1000), Worst(), Worst()
    for a in (0.5, 2.0, 7.0):
        spread = 1 / (a * np.sqrt(2))
        laws = {"sigmoid": stats.logistic(scale=1 / a), "erf": stats.norm(scale=spread),
                "piecewise_exponential": stats.laplace(scale=1 / a), "arctan": stats.cauchy(scale=2 / (np.pi * a)),
                "triangle": stats.triang(0.5, -a, 2 * a), "rectangle": stats.uniform(-0.5 / a, 1 / a)}
        for name, law in laws.items():
            primitive.see(SURROGATES[name].primitive(x, a), law.cdf(x))
            slope.see(SURROGATES[name].derivative(x, a), law.pdf(x))
    primitive.report(table, "surrogates: primitive, distribution functions of scipy.stats", GRADIENT)
    slope.report(table, "surrogates: slope, their densities", GRADIENT)


def check_index(table: Table, rng: np.random.Generator) -> None:
    """PQ index from scipy.stats.pmean; effective number of weights from scipy.special; counts in whole numbers."""
    index, bound, counts, units = Worst(), Worst(), 0, 0
    for p, q in ((0.5, 1.0), (1.0, 2.0), (0.3, 1.5)):
        groups = [rng.standard_t(3, size=n) for n in rng.integers(1, 400, 300)]
        unit = np.repeat(np.arange(len(groups)), [g.size for g in groups])
        found = measure(np.concatenate(groups), unit, len(groups), p=p, q=q)
        means = [(stats.pmean(np.abs(g), p), stats.pmean(np.abs(g), q)) for g in groups]
        index.see(found.index, np.array([1 - a / b for a, b in means]))
        logs = [q * special.logsumexp(p * np.log(np.abs(g))) - p * special.logsumexp(q * np.log(np.abs(g)))
                for g in groups]
        retained = 1.001 ** (-q / (q - p)) * np.exp(np.array(logs) / (q - p))
        bound.see(found.bound, retained)
        expected = np.minimum(found.d - np.ceil(retained), 9 * found.d // 10)
        counts += unequal(found.count, np.maximum(expected, 0))
        units += len(groups)
    index.report(table, "PQ index, eq. (2), scipy.stats.pmean", GRADIENT)
    bound.report(table, "retained weights, eq. (3), scipy.special.logsumexp", GRADIENT)
    table.add("counts, eq. (4): differing", units, counts, EXACT)


def check_densities(table: Table) -> None:
    """Eq. (1) and ERK: epsilon as the root of (connections - asked), layers capped at 1, by scipy.optimize.brentq."""
    worst = Worst()
    networks = {
        "conv2fc2": [(32, 1, 3, 3), (64, 32, 3, 3), (128, 256), (10, 128)],
        "VGGSNN": [(64, 2, 3, 3), (128, 64, 3, 3), (256, 128, 3, 3), (256, 256, 3, 3), (512, 256, 3, 3),
                   *[(512, 512, 3, 3)] * 3, (10, 4608)],
    }
    for shapes, density, spread in product(networks.values(), (0.05, 0.1, 0.3, 0.5, 0.9), ("er", "erk")):
        size = np.array([np.prod(s) for s in shapes], float)
        factor = np.array([(sum(s) if spread == "erk" else s[0] + s[1]) for s in shapes], float)
        factor /= size if spread == "erk" else np.array([s[0] * s[1] for s in shapes])

        def excess(epsilon: float, f: Array = factor, n: Array = size, asked: float = density) -> float:
            return float(np.minimum(1, epsilon * f) @ n - asked * n.sum())

        epsilon = optimize.brentq(excess, 0, 2 / factor.min(), xtol=1e-300, rtol=1e-15)
        worst.see(layer_densities(shapes, density, spread), np.minimum(1, epsilon * factor))
    worst.report(table, "layer densities, ER and ERK, scipy.optimize.brentq", GRADIENT)


if __name__ == "__main__":
    main("SciPy", ("scipy", "numba"), check)
