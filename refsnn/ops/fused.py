"""Batch norm and the neuron in one, and the pool behind: one pass over memory, which keeps less than they do.

    forward    z = batch norm of x, s = spikes of z              only s leaves, a byte each; z and h are not kept
    backward   z and h are computed again from x; then the gradient of `lif_forward`, then that of batch norm
    pooled     the same with averages or maxima of spikes instead of spikes, which then are not kept either
    static     x has one step, which is shown at all T: the current of an image; dx has one as well, summed over time

Nothing new is computed here: the definitions below call those of `norm.py`, `neuron.py` and `surrogate.py` one after
the other, and the kernels give, bit for bit, what the kernels of those give. A run uses them where nothing is recorded
and no definition is read (`refsnn/fusion.py`). Without gamma there is no batch norm and z is x.

| Parameter | Meaning |
|---|---|
| x | (C, ...), T and B last: input of batch norm, for instance a convolution's output |
| gamma, beta | (C,) scale and shift of batch norm, or None for both: no batch norm |
| eps | as in `norm.py` |
| decay, gain, bias, v_threshold, v_reset, reset_amount, v_init | of the neuron, as in the table of `neuron.py` |
| reset, compare, form, detach_reset | the same |
| spikes | (0,) an empty array; its dtype, uint8 or that of x, is that of the spikes |
| shown | at how many steps every step of x is shown: T for a static x, which has one; else 1 |
| size | side of the window that is pooled, places |
| pooling | what becomes of a window's spikes, "average" or "max" |
| surrogate, alpha | whose derivative stands in for the step's, `surrogate.py`; only those without an exponential |
| over_x | True: nobody needs x any more, and a kernel may write dx into its memory. The definition leaves it |
"""

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from refsnn.ops.neuron import Compare, Form, Reset, lif_backward, lif_forward
from refsnn.ops.norm import batch_norm_backward, batch_norm_forward, batch_norm_inference
from refsnn.ops.pool import avg_pool_backward, avg_pool_forward, max_pool_backward, max_pool_forward
from refsnn.ops.static import sum_of_steps
from refsnn.ops.surrogate import SURROGATES
from refsnn.twin import op

Array = npt.NDArray[Any]
Slope = Literal["triangle", "rectangle", "arctan", "fast_sigmoid"]
Pooling = Literal["average", "max"]
SLOPES: tuple[str, ...] = get_args(Slope)


@op(kernel="fused:norm_lif_forward_kernel", agree="sum")
def norm_lif_forward(
    x: Array, gamma: Array | None, beta: Array | None, eps: float, decay: float, gain: float, bias: float,
    v_threshold: float, v_reset: float, reset_amount: float, v_init: float, reset: Reset, compare: Compare, form: Form,
    spikes: Array, shown: int = 1,
) -> tuple[Array, Array, Array]:
    """Spikes of the batch-normalised input, eqs. (5)-(7), with the statistics of this batch.

    Returns s (C, ..., T, B) of the dtype of `spikes`, and mean and var (C,) as `batch_norm_forward` does, or (0,)
    without. Parameters: the module's table. Raises ValueError as `lif_forward`, and for several steps shown again.
    """
    z, mean, var = x, np.empty(0, x.dtype), np.empty(0, x.dtype)
    if gamma is not None and beta is not None:
        z, mean, var = batch_norm_forward.definition(x, gamma, beta, eps)
    s, _ = lif_forward.definition(_shown(z, shown), decay, gain, bias, v_threshold, v_reset, reset_amount, v_init,
                                  reset, compare, form)
    return s.astype(spikes.dtype), mean, var


@op(kernel="fused:norm_lif_inference_kernel", agree="sum")
def norm_lif_inference(
    x: Array, gamma: Array, beta: Array, mean: Array, var: Array, eps: float, decay: float, gain: float, bias: float,
    v_threshold: float, v_reset: float, reset_amount: float, v_init: float, reset: Reset, compare: Compare, form: Form,
    spikes: Array, shown: int = 1,
) -> Array:
    """The same with given statistics, the running ones: mean and var (C,). Returns s (C, ...)."""
    z = batch_norm_inference.definition(x, gamma, beta, mean, var, eps)
    s, _ = lif_forward.definition(_shown(z, shown), decay, gain, bias, v_threshold, v_reset, reset_amount, v_init,
                                  reset, compare, form)
    return s.astype(spikes.dtype)


@op(kernel="fused:norm_lif_backward_kernel", agree="sum")
def norm_lif_backward(
    ds: Array, x: Array, gamma: Array | None, beta: Array | None, mean: Array, var: Array, eps: float, decay: float,
    gain: float, bias: float, v_threshold: float, v_reset: float, reset_amount: float, v_init: float, reset: Reset,
    compare: Compare, form: Form, detach_reset: bool, surrogate: Slope, alpha: float, over_x: bool,  # noqa: ARG001
) -> tuple[Array, Array, Array]:
    """From the gradient of the spikes to those of x, gamma and beta.

    ds         (C, ..., T, B)   gradient of the spikes
    mean, var  (C,)             as `norm_lif_forward` returned them
    Returns dx (C, ...), dgamma, dbeta (C,), the latter two (0,) without batch norm. Parameters: the module's table.
    """
    static, x = x.shape[-2] < ds.shape[-2], _shown(x, ds.shape[-2] // x.shape[-2])
    z = x
    if gamma is not None and beta is not None:
        z = batch_norm_inference.definition(x, gamma, beta, mean, var, eps)     # normalised as it was
    s, h = lif_forward.definition(z, decay, gain, bias, v_threshold, v_reset, reset_amount, v_init, reset, compare,
                                  form)
    slope = SURROGATES[surrogate].derivative.definition(h - h.dtype.type(v_threshold), alpha)
    dz = lif_backward.definition(ds, h, s, slope, decay, gain, v_reset, reset_amount, reset, detach_reset)
    dx, dgamma, dbeta = dz, np.empty(0, x.dtype), np.empty(0, x.dtype)
    if gamma is not None:
        dx, dgamma, dbeta = batch_norm_backward.definition(dz, x, mean, var, gamma, eps)
    return (sum_of_steps(dx) if static else dx), dgamma, dbeta


@op(kernel="fused_pool:norm_lif_pool_forward_kernel", agree="sum")
def norm_lif_pool_forward(
    x: Array, gamma: Array | None, beta: Array | None, eps: float, decay: float, gain: float, bias: float,
    v_threshold: float, v_reset: float, reset_amount: float, v_init: float, reset: Reset, compare: Compare, form: Form,
    spikes: Array, size: int, pooling: Pooling, shown: int = 1,
) -> tuple[Array, Array, Array, Array]:
    """As `norm_lif_forward`, its spikes pooled.

    x       (C, H, W, T, B), or (C, H, W, 1, B)
    spikes  (0,)             its dtype is that of y; for averages that of x
    Returns y and winner (C, h, w, T, B) as `max_pool_forward` does, or y as `avg_pool_forward` and a winner of no size;
    mean and var. Parameters: the module's table. Raises ValueError as `lif_forward` and `max_pool_forward`.
    """
    s, mean, var = norm_lif_forward.definition(x, gamma, beta, eps, decay, gain, bias, v_threshold, v_reset,
                                               reset_amount, v_init, reset, compare, form, spikes, shown)
    if pooling == "average":
        return avg_pool_forward.definition(s, size), np.empty((0,) * 5, np.uint8), mean, var
    return (*max_pool_forward.definition(s, size), mean, var)


@op(kernel="fused_pool:norm_lif_pool_backward_kernel", agree="sum")
def norm_lif_pool_backward(
    dy: Array, winner: Array, x: Array, gamma: Array | None, beta: Array | None, mean: Array, var: Array, eps: float,
    decay: float, gain: float, bias: float, v_threshold: float, v_reset: float, reset_amount: float, v_init: float,
    reset: Reset, compare: Compare, form: Form, detach_reset: bool, surrogate: Slope, alpha: float, size: int,
    pooling: Pooling, over_x: bool,
) -> tuple[Array, Array, Array]:
    """From the gradient of what was pooled to those of x, gamma and beta, as `norm_lif_backward`.

    dy                 (C, h, w, T, B)   gradient of y
    winner, mean, var                    as `norm_lif_pool_forward` returned them
    Returns dx, as large as x, dgamma, dbeta. Parameters: the module's table.
    """
    ds = (avg_pool_backward.definition(dy, size, x.shape[1:3]) if pooling == "average" else
          max_pool_backward.definition(dy, winner, size, x.shape[1:3]))
    return norm_lif_backward.definition(ds, x, gamma, beta, mean, var, eps, decay, gain, bias, v_threshold, v_reset,
                                        reset_amount, v_init, reset, compare, form, detach_reset, surrogate, alpha,
                                        over_x)


def _shown(x: Array, shown: int) -> Array:
    """x at all steps. Raises ValueError where it has several already, and they are shown again."""
    if shown > 1 and x.shape[-2] > 1:
        raise ValueError("what is shown at many steps must have one")
    return np.repeat(x, shown, axis=-2)
