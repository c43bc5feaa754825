"""Surrogates: what stands in for the derivative of the step in the backward pass.

A spike is s = step(x), x = h - v_threshold, whose derivative is 0 almost everywhere. The backward pass uses
sigma'(x) of a smooth (or piecewise smooth) sigma instead: `derivative`. The primitive sigma itself never enters
training; with it in place of the step the whole network becomes differentiable, and a gradient can be checked against
central differences without any framework (`neuron.lif_forward_smooth`).

Every primitive rises and passes 1/2 at x = 0; all but one rise from 0 to 1, so that their derivative has area 1.

| name | sigma'(x) | alpha | default | found in |
|---|---|---|---|---|
| triangle | max(0, a - abs(x)) / a^2 | half width, unit of h | 1 | TET; SpikingJelly PiecewiseQuadratic(1/a) |
| rectangle | a where abs(x) < 1/(2a), else 0 | height = 1 / width | 1 | STBP; SpikingJelly Rect |
| arctan | (a/2) / (1 + (pi a x / 2)^2) | twice the height | 2 | SpikingJelly ATan, snnTorch atan |
| sigmoid | a y (1 - y), y = 1 / (1 + exp(-a x)) | four times the height | 4 | SpikingJelly; snnTorch (25) |
| fast_sigmoid | 1 / (1 + a abs(x))^2 | sharpness; area 2/a | 25 | Zenke and Ganguli 2018 (SuperSpike); snnTorch |
| piecewise_exponential | (a/2) exp(-a abs(x)) | twice the height | 1 | SpikingJelly PiecewiseExp |
| erf | (a / sqrt(pi)) exp(-(a x)^2) | steepness | 2 | SpikingJelly Erf |

The range of `fast_sigmoid`'s primitive is (1/2 - 1/a, 1/2 + 1/a): its derivative is 1 at the threshold whatever a is.
To add a surrogate: two functions and a line in `SURROGATES`, all in this file. A kernel is optional: derivatives with
an exponential have none, because NumPy's is already vectorised, and one definition gives every backend the same bits.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn.twin import Operation, op

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Surrogate:
    """A primitive sigma and its derivative.

    Field, Unit, Meaning
      name        -              key in `SURROGATES`
      primitive   (x, alpha)     sigma: array of any shape -> same shape; rises, 1/2 at x = 0
      derivative  (x, alpha)     sigma': an operation, elementwise; never negative
      alpha       see module     default shape parameter, > 0
      kinks       alpha -> x     where sigma' is not smooth: central differences across such a place do not converge
      area        alpha -> -     integral of sigma': the distance between sigma's two limits
    """

    name: str
    primitive: Callable[[Array, float], Array]
    derivative: Operation[[Array, float], Array]
    alpha: float
    kinks: Callable[[float], tuple[float, ...]]
    area: Callable[[float], float] = lambda _: 1.0
    note: str = ""


def triangle(x: Array, alpha: float) -> Array:
    """Two parabolas that meet at 1/2: z = x/a clipped to [-1, 1], sigma = 1/2 + z - z abs(z) / 2."""
    z = np.clip(x / alpha, -1, 1)
    return 0.5 + z - z * np.abs(z) / 2


@op(kernel="surrogate:triangle_derivative_kernel", agree="exact")
def triangle_derivative(x: Array, alpha: float) -> Array:
    """Triangle of height 1/a and half width a: 1/a^2 max(0, a - abs(x)), the paper's surrogate with a = 1.

    x: h - v_threshold, any shape; alpha: half width, unit of h. Returns sigma'(x), same shape and dtype.
    """
    return 1 / (alpha * alpha) * np.maximum(0, alpha - np.abs(x))


def rectangle(x: Array, alpha: float) -> Array:
    """Ramp of slope a: a x + 1/2 clipped to [0, 1]."""
    half = 0.5 / alpha
    return alpha * np.clip(x, -half, half) + 0.5


@op(kernel="surrogate:rectangle_derivative_kernel", agree="exact")
def rectangle_derivative(x: Array, alpha: float) -> Array:
    """Box of height a and width 1/a: a where abs(x) < 1/(2a), else 0.

    x: h - v_threshold, any shape; alpha: height. Returns sigma'(x), same shape and dtype.
    """
    return alpha * (np.abs(x) < 0.5 / alpha).astype(x.dtype)


def arctan(x: Array, alpha: float) -> Array:
    """1/2 + arctan(pi a x / 2) / pi."""
    with np.errstate(over="ignore"):                    # arctan(inf) = pi/2 is the limit
        return 0.5 + np.arctan(math.pi / 2 * alpha * x) / math.pi


@op(kernel="surrogate:arctan_derivative_kernel", agree="exact")
def arctan_derivative(x: Array, alpha: float) -> Array:
    """Cauchy density: (a/2) / (1 + (pi a x / 2)^2).

    x: h - v_threshold, any shape; alpha: twice the height. Returns sigma'(x), same shape and dtype.
    """
    with np.errstate(over="ignore"):                    # 1 / inf = 0 is the limit
        z = math.pi / 2 * alpha * x
        return alpha / 2 / (1 + z * z)


def sigmoid(x: Array, alpha: float) -> Array:
    """1 / (1 + exp(-a x)), with the exponential of a number that is never positive."""
    with np.errstate(over="ignore"):
        e = np.exp(-np.abs(alpha * x))
    return np.where(x < 0, e / (1 + e), 1 / (1 + e))


@op()
def sigmoid_derivative(x: Array, alpha: float) -> Array:
    """a y (1 - y) with y = 1 / (1 + exp(-a x)), written a e / (1 + e)^2 with e = exp(-abs(a x)).

    The two are equal, but 1 - y loses every digit where y rounds to 1, and exp(-a x) overflows.
    x: h - v_threshold, any shape; alpha: steepness. Returns sigma'(x), same shape and dtype.
    """
    with np.errstate(over="ignore"):                    # exp(-inf) = 0 is the limit
        e = np.exp(-np.abs(alpha * x))
    return alpha * e / ((1 + e) * (1 + e))


def fast_sigmoid(x: Array, alpha: float) -> Array:
    """1/2 + x / (1 + a abs(x)), written so that a large x reaches the limits 1/2 -+ 1/a; not 0 and 1."""
    with np.errstate(over="ignore"):
        return 0.5 + np.sign(x) / alpha * (1 - 1 / (1 + alpha * np.abs(x)))


@op(kernel="surrogate:fast_sigmoid_derivative_kernel", agree="exact")
def fast_sigmoid_derivative(x: Array, alpha: float) -> Array:
    """SuperSpike: 1 / (1 + a abs(x))^2.

    x: h - v_threshold, any shape; alpha: sharpness. Returns sigma'(x), same shape and dtype.
    """
    with np.errstate(over="ignore"):                    # 1 / inf = 0 is the limit
        z = 1 + alpha * np.abs(x)
        return 1 / (z * z)


def piecewise_exponential(x: Array, alpha: float) -> Array:
    """exp(a x) / 2 below 0 and 1 - exp(-a x) / 2 above: the distribution function of Laplace."""
    with np.errstate(over="ignore"):
        e = 0.5 * np.exp(-alpha * np.abs(x))
    return np.where(x < 0, e, 1 - e)


@op()
def piecewise_exponential_derivative(x: Array, alpha: float) -> Array:
    """(a/2) exp(-a abs(x)).

    x: h - v_threshold, any shape; alpha: twice the height. Returns sigma'(x), same shape and dtype.
    """
    with np.errstate(over="ignore"):                    # exp(-inf) = 0 is the limit
        return alpha / 2 * np.exp(-alpha * np.abs(x))


def erf(x: Array, alpha: float) -> Array:
    """(1 + erf(a x)) / 2: the distribution function of a Gaussian of deviation 1 / (a sqrt(2))."""
    with np.errstate(over="ignore"):
        z = alpha * x
    return (0.5 + 0.5 * np.vectorize(math.erf, otypes=[np.float64])(z)).astype(x.dtype)


@op()
def erf_derivative(x: Array, alpha: float) -> Array:
    """(a / sqrt(pi)) exp(-(a x)^2).

    x: h - v_threshold, any shape; alpha: steepness. Returns sigma'(x), same shape and dtype.
    """
    with np.errstate(over="ignore"):                    # exp(-inf) = 0 is the limit
        z = alpha * x
        return alpha / math.sqrt(math.pi) * np.exp(-(z * z))


SURROGATES: dict[str, Surrogate] = {
    surrogate.name: surrogate
    for surrogate in (
        Surrogate("triangle", triangle, triangle_derivative, 1.0, lambda alpha: (-alpha, 0.0, alpha)),
        Surrogate("rectangle", rectangle, rectangle_derivative, 1.0, lambda alpha: (-0.5 / alpha, 0.5 / alpha)),
        Surrogate("arctan", arctan, arctan_derivative, 2.0, lambda _: ()),
        Surrogate("sigmoid", sigmoid, sigmoid_derivative, 4.0, lambda _: ()),
        Surrogate(
            "fast_sigmoid", fast_sigmoid, fast_sigmoid_derivative, 25.0, lambda _: (0.0,), lambda alpha: 2 / alpha,
            note="the primitive rises from 1/2 - 1/alpha to 1/2 + 1/alpha",
        ),
        Surrogate(
            "piecewise_exponential", piecewise_exponential, piecewise_exponential_derivative, 1.0, lambda _: (0.0,)
        ),
        Surrogate("erf", erf, erf_derivative, 2.0, lambda _: ()),
    )
}
