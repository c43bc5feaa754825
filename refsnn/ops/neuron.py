"""The spiking neuron: leaky integrate-and-fire through time, forward and backward.

One general neuron covers the paper's and those of other frameworks. For every step t = 0 .. T-1:

    charge   h[t] = decay v[t-1] + gain x[t] + bias                       eq. (5)    v[-1] = v_init
    fire     s[t] = 1 where h[t] > v_threshold, else 0                    eq. (6)    ">=" with compare = "ge"
    reset    v[t] = (1 - s[t]) h[t] + s[t] v_reset         "hard"         eq. (7)
             v[t] = h[t] - s[t] reset_amount               "soft"
             v[t] = h[t]                                   "none"

| Parameter | Paper | Default | Unit | Meaning |
|---|---|---|---|---|
| decay | tau | 0.5 | 1 | factor of the membrane per step, 0..1; 1: integrate-and-fire |
| gain | 1 | 1 | 1 | scale of the input; frameworks that scale it use 1 - decay |
| bias | 0 | 0 | membrane | constant input; without input the membrane goes to bias / (1 - decay) |
| v_threshold | V_th | 1 | membrane | the membrane above which the neuron fires |
| v_reset | 0 | 0 | membrane | the membrane after a spike (hard reset) |
| reset | hard | hard | - | hard, soft or none |
| reset_amount | - | 1 | membrane | what a spike takes from the membrane (soft reset) |
| v_init | 0 | 0 | membrane | the membrane before the first step |
| detach_reset | no | False | - | whether the backward pass takes the reset's spike for a constant |
| compare | > | gt | - | gt fires above the threshold, ge also exactly at it |
| form | affine | affine | - | the order of the operations of the charge, see below |

Variables: x input (the paper's (M * W) x), h membrane when it is compared (u before eq. 7), s spikes (a), v membrane
after the reset (u after eq. 7). The unit "membrane" is that of the threshold. The paper's tau is a factor, no time.

`form` is the same mathematics in another order of operations. It matters where a membrane meets the threshold exactly,
or in the last digit; the backward pass is the same for all. Each form implies some of the parameters:

| form | h[t] | implies |
|---|---|---|
| affine | decay v + gain x + bias | nothing |
| spikingjelly | v + (x - (v - v_reset)) / tau | tau = 1 / gain, gain = 1 - decay, bias = (1 - decay) v_reset |
| spikingjelly_full_input | v - (v - v_reset) / tau + x | tau = 1 / (1 - decay), gain = 1, bias = (1 - decay) v_reset |
| norse | v + k ((v_leak - v) + x) | k = gain = 1 - decay, v_leak = bias / gain |
| snntorch | decay h[t-1] + x - s[t-1] v_threshold | gain 1, bias 0, soft reset, reset_amount = v_threshold / decay |

snntorch subtracts the threshold *after* the decay of the next step: decay (h - v_threshold / decay) is the same number.
Others differ: docs/conventions, "neurons".
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from refsnn.errors import UserError
from refsnn.twin import op

Array = npt.NDArray[Any]
Reset = Literal["hard", "soft", "none"]
Compare = Literal["gt", "ge"]
Form = Literal["affine", "spikingjelly", "spikingjelly_full_input", "norse", "snntorch"]


@dataclass(frozen=True)
class Neuron:
    """The parameters of a neuron, as in the module's table; refused where they contradict their `form`.

    Raises UserError for an unknown word, a number that is not finite, a decay outside 0..1, or a parameter that differs
    from what the form implies.
    """

    decay: float = 0.5
    gain: float = 1.0
    bias: float = 0.0
    v_threshold: float = 1.0
    v_reset: float = 0.0
    reset: Reset = "hard"
    reset_amount: float = 1.0
    v_init: float = 0.0
    detach_reset: bool = False
    compare: Compare = "gt"
    form: Form = "affine"

    def __post_init__(self) -> None:
        for name, words in (("reset", Reset), ("compare", Compare), ("form", Form)):
            value, known = getattr(self, name), get_args(words)
            if value not in known:
                raise UserError(f"neuron.{name} must be one of {', '.join(known)}, got {value!r}")
        for name in ("decay", "gain", "bias", "v_threshold", "v_reset", "reset_amount", "v_init"):
            if not math.isfinite(getattr(self, name)):
                raise UserError(f"neuron.{name} must be a finite number, got {getattr(self, name)!r}")
        if not 0 <= self.decay <= 1:
            raise UserError(f"neuron.decay must lie in 0..1, got {self.decay!r}: it is a factor, no time")
        if self.form.startswith("spikingjelly") or self.form == "norse":
            if self.decay == 1:
                raise UserError(f'neuron.form "{self.form}" needs decay < 1; use form "affine" for decay = 1')
        elif self.form == "snntorch" and (self.reset != "soft" or self.decay == 0):
            raise UserError('neuron.form "snntorch" needs reset "soft" and decay > 0; use form "affine" for others')
        for name, implied in self.implied().items():
            if not math.isclose(getattr(self, name), implied, rel_tol=1e-9, abs_tol=1e-12):
                raise UserError(
                    f'neuron.{name} must be {implied!r} with form "{self.form}" and decay {self.decay!r}, '
                    f'got {getattr(self, name)!r}; form "affine" takes any'
                )

    def implied(self) -> dict[str, float]:
        """The parameters that `form` fixes, and their values."""
        leak = 1 - self.decay
        return {
            "affine": {},
            "spikingjelly": {"gain": leak, "bias": leak * self.v_reset},
            "spikingjelly_full_input": {"gain": 1.0, "bias": leak * self.v_reset},
            "norse": {"gain": leak},
            "snntorch": {"gain": 1.0, "bias": 0.0, "reset_amount": self.v_threshold / (self.decay or 1.0)},
        }[self.form]


@op(kernel="neuron:lif_forward_kernel", agree="exact")
def lif_forward(
    x: Array, decay: float, gain: float, bias: float, v_threshold: float, v_reset: float, reset_amount: float,
    v_init: float, reset: Reset, compare: Compare, form: Form,
) -> tuple[Array, Array]:
    """Charge, fire and reset for T steps: eqs. (5), (6), (7).

    x   (..., T, B)   input of each step, unit of the membrane
    s   (..., T, B)   returned: spikes, 0 or 1 in x's dtype
    h   (..., T, B)   returned: membrane after the charge, before the reset; with s it gives v (`lif_reset`)

    Parameters: the module's table. Raises ValueError for form "snntorch" without the soft reset it contains.
    Source: Shen et al. 2025, eqs. (5) to (7); other forms as the frameworks compute them.
    """
    _check_form(form, reset)
    x = np.moveaxis(x, -2, 0)                           # x[t] is the input of step t, as in eq. (5)
    h = np.full_like(x, v_init)                         # h[-1] and s[-1] are read at t = 0, before they are written:
    s = np.zeros_like(x)                                # the start, a membrane at v_init that has not fired
    v = h[-1]
    for t in range(len(x)):
        h[t] = _charge(x[t], v, h[t - 1], s[t - 1], decay, gain, bias, v_threshold, v_reset, form)      # eq. (5)
        s[t] = h[t] > v_threshold if compare == "gt" else h[t] >= v_threshold                           # eq. (6)
        v = lif_reset(h[t], s[t], v_reset, reset_amount, reset)                                         # eq. (7)
    return _time_last(s), _time_last(h)


def lif_reset(h: Array, s: Array, v_reset: float, reset_amount: float, reset: Reset) -> Array:
    """Reset where the neuron fired, eq. (7): the membrane v that the next step starts from.

    h, s: membrane and spikes of one shape; returns v, the same shape. Parameters: the module's table.
    """
    if reset == "hard":
        return (1 - s) * h + s * v_reset
    if reset == "soft":
        return h - s * reset_amount
    return h


def _charge(
    x: Array, v: Array, h_before: Array, s_before: Array, decay: float, gain: float, bias: float, v_threshold: float,
    v_reset: float, form: Form,
) -> Array:
    """One step of eq. (5) in the operation order of `form`; all arrays (..., B) of one step."""
    if form == "spikingjelly":
        tau = 1 / gain
        return v + (x - (v - v_reset)) / tau
    if form == "spikingjelly_full_input":
        tau = 1 / (1 - decay)
        return v - (v - v_reset) / tau + x
    if form == "norse":
        k, v_leak = gain, bias / gain
        return v + k * ((v_leak - v) + x)
    if form == "snntorch":
        return decay * h_before + x - s_before * v_threshold
    return decay * v + gain * x + bias


def _check_form(form: Form, reset: Reset) -> None:
    if form == "snntorch" and reset != "soft":
        raise ValueError("form snntorch contains its reset: it needs reset soft")


def _time_last(a: Array) -> Array:
    """(T, ..., B) -> (..., T, B), contiguous."""
    return np.ascontiguousarray(np.moveaxis(a, 0, -2))


@op(kernel="neuron:lif_backward_kernel", agree="exact")
def lif_backward(
    ds: Array, h: Array, s: Array, slope: Array, decay: float, gain: float, v_reset: float, reset_amount: float,
    reset: Reset, detach_reset: bool, dh: Array | None = None, dv: Array | None = None,
) -> Array:
    """Backpropagation through time: from the gradient of the spikes to the gradient of the input.

    For t = T-1 .. 0, each line the derivative of one line of `lif_forward`, in reverse; `carry` brings the gradient of
    v[t] from step t+1 and is 0 at the end:

        of v[t]:  dv_t = carry + dv[t]
        of s[t]:  ds_t = ds[t] + dv_t (v_reset - h[t])           hard reset, d eq. (7) / d s[t]
                  ds_t = ds[t] - dv_t reset_amount               soft reset
                  ds_t = ds[t]                                   no reset, or detach_reset
        of h[t]:  dh_t = dv_t (1 - s[t]) + ds_t slope[t] + dh[t] hard reset
                  dh_t = dv_t            + ds_t slope[t] + dh[t] soft or no reset
        of x[t]:  dx[t] = gain dh_t                              d eq. (5) / d x[t]
        to t-1:   carry = decay dh_t                             d eq. (5) / d v[t-1]

    ds      (..., T, B)   gradient of the spikes (loss per spike)
    h, s    (..., T, B)   membrane and spikes that `lif_forward` returned
    slope   (..., T, B)   sigma'(h - v_threshold), the surrogate in place of the derivative of eq. (6) (1 / membrane)
    dh, dv  (..., T, B)   gradients that reach h and v from elsewhere, or None for none
    dx      (..., T, B)   returned: gradient of the input

    Parameters: the module's table. The same for every `form`: they are one function of x.
    Source: the chain rule; surrogate gradients as Neftci, Mostafa and Zenke 2019.
    """
    ds, h, s, slope = (np.moveaxis(a, -2, 0) for a in (ds, h, s, slope))
    dh, dv = (None if a is None else np.moveaxis(a, -2, 0) for a in (dh, dv))
    dx = np.empty_like(h)
    carry = np.zeros_like(h[0])
    for t in reversed(range(len(h))):
        dv_t = carry if dv is None else carry + dv[t]
        ds_t = ds[t]
        if reset == "hard" and not detach_reset:
            ds_t = ds_t + dv_t * (v_reset - h[t])
        if reset == "soft" and not detach_reset:
            ds_t = ds_t - dv_t * reset_amount
        dh_t = (dv_t * (1 - s[t]) if reset == "hard" else dv_t) + ds_t * slope[t]
        if dh is not None:
            dh_t = dh_t + dh[t]
        dx[t] = gain * dh_t
        carry = decay * dh_t
    return _time_last(dx)


def lif_forward_smooth(
    x: Array, decay: float, gain: float, bias: float, v_threshold: float, v_reset: float, reset_amount: float,
    v_init: float, reset: Reset, form: Form, primitive: Callable[[Array], Array], frozen: Array | None = None,
) -> tuple[Array, Array]:
    """`lif_forward` with the surrogate's primitive in place of the step of eq. (6): a smooth function of x.

    Its derivative is what `lif_backward` computes, so that central differences check the backward pass without any
    framework. Differentiate with s and h of this function and slope = primitive'(h - v_threshold).

    x          (..., T, B)   input
    primitive  callable      sigma(h - v_threshold), with its alpha bound
    frozen     (..., T, B)   the spikes that the reset uses: with detach_reset they are constants; None: its own
    Returns s, h as `lif_forward` does; s lies between 0 and 1.
    """
    _check_form(form, reset)
    x = np.moveaxis(x, -2, 0)
    h, s = np.full_like(x, v_init), np.zeros_like(x)
    fixed = None if frozen is None else np.moveaxis(frozen, -2, 0)
    v, s_reset = h[-1], s[-1]
    for t in range(len(x)):
        h[t] = _charge(x[t], v, h[t - 1], s_reset, decay, gain, bias, v_threshold, v_reset, form)
        s[t] = primitive(h[t] - v_threshold)
        s_reset = s[t] if fixed is None else fixed[t]
        v = lif_reset(h[t], s_reset, v_reset, reset_amount, reset)
    return _time_last(s), _time_last(h)


# | preset | source |
# |---|---|
# | paper, if | Shen et al. 2025, eqs. (5) to (7), with TET's strict threshold; the same with decay 1 |
# | spikingjelly... | SpikingJelly 2.0 LIFNode(tau=2), with decay_input=False, IFNode(), LIFNode(v_reset=None) |
# | snntorch... | snnTorch 1.0 Leaky(beta=0.9), with reset_mechanism="zero" |
# | norse... | Norse 1.1 LIFBoxCell(), tau_mem_inv 100 and dt 0.001, with reset_subtract |
# | nir | NIR LIF(tau=2 dt, r=1, v_leak=0): Euler's step |
NEURONS: dict[str, Neuron] = {
    "paper": Neuron(),
    "if": Neuron(decay=1.0),
    "spikingjelly": Neuron(gain=0.5, compare="ge", form="spikingjelly"),
    "spikingjelly_full_input": Neuron(compare="ge", form="spikingjelly_full_input"),
    "spikingjelly_if": Neuron(decay=1.0, compare="ge"),
    "spikingjelly_soft": Neuron(gain=0.5, reset="soft", compare="ge", form="spikingjelly"),
    "snntorch": Neuron(decay=0.9, reset="soft", reset_amount=1 / 0.9, detach_reset=True, form="snntorch"),
    "snntorch_zero": Neuron(decay=0.9, detach_reset=True),
    "norse": Neuron(decay=0.9, gain=0.1, form="norse"),
    "norse_subtract": Neuron(decay=0.9, gain=0.1, reset="soft", form="norse"),
    "nir": Neuron(gain=0.5),
}
