"""Batch norm: every channel to mean 0 and variance 1 over batch, time and space together, then scaled and shifted.

Spiking networks that put batch norm between convolution and neuron normalise all time steps together (the paper's
"plain" batch norm): for the arrays of this package that is every axis but the first, and n = H W T B values a channel
(n = T B for vectors). Conventions are PyTorch's: the biased variance (divided by n) normalises, the unbiased one
(n / (n - 1) of it) belongs in the running statistics, and eps is added to the variance.

| Parameter | Default | Unit | Meaning |
|---|---|---|---|
| gamma | 1 | membrane | scale of each channel, learned |
| beta | 0 | membrane | shift of each channel, learned |
| eps | 1e-5 | x squared | keeps the divisor from 0 where a channel is constant |

Means and sums are accumulated in float64 whatever the dtype, the variance in a second pass around the mean: a channel
with a large mean loses nothing to cancellation. Source: Ioffe and Szegedy 2015.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn.twin import op

Array = npt.NDArray[Any]


@op(kernel="norm:batch_norm_forward_kernel", agree="sum")
def batch_norm_forward(x: Array, gamma: Array, beta: Array, eps: float) -> tuple[Array, Array, Array]:
    """Normalise with the statistics of this batch.

        mean_c = 1/n sum_i x[c, i]          var_c = 1/n sum_i (x[c, i] - mean_c)^2
        x_hat[c, i] = (x[c, i] - mean_c) / sqrt(var_c + eps)          y[c, i] = gamma_c x_hat[c, i] + beta_c

    x            (C, ...)   n values a channel
    gamma, beta  (C,)
    Returns y (C, ...), mean (C,), var (C,), the biased variance; all in the dtype of x.
    With n = 1 the variance is 0 and y = beta.
    """
    samples = x.reshape(len(x), -1)
    mean = samples.mean(axis=1, dtype=np.float64)
    var = np.square(samples - mean[:, np.newaxis]).mean(axis=1)
    mean, var = mean.astype(x.dtype), var.astype(x.dtype)
    return _normalise(x, gamma, beta, mean, var, eps), mean, var


@op(kernel="norm:batch_norm_backward_kernel", agree="sum")
def batch_norm_backward(
    dy: Array, x: Array, mean: Array, var: Array, gamma: Array, eps: float
) -> tuple[Array, Array, Array]:
    """Gradients of `batch_norm_forward`, through mean and variance as well.

    Per channel, with r = 1 / sqrt(var + eps), x_hat = (x - mean) r, and g_i = dL/d x_hat_i = gamma dy_i:

        dL/d beta  = sum_i dy_i                     because y = gamma x_hat + beta
        dL/d gamma = sum_i dy_i x_hat_i

        d mean / d x_j = 1/n                        d var / d x_j = 2/n (x_j - mean)      (sum_i (x_i - mean) = 0)
        d r / d x_j    = -1/2 r^3 d var / d x_j = -1/n r^2 x_hat_j
        d x_hat_i / d x_j = ([i = j] - 1/n) r + (x_i - mean) d r / d x_j
                          = r ([i = j] - 1/n - 1/n x_hat_i x_hat_j)

        dL/d x_j = sum_i g_i d x_hat_i / d x_j = r (g_j - 1/n sum_i g_i - x_hat_j 1/n sum_i g_i x_hat_i)
                 = gamma r (dy_j - 1/n dbeta - x_hat_j 1/n dgamma)

    dy, x        (C, ...)   gradient of y; the input of the forward pass
    mean, var    (C,)       as `batch_norm_forward` returned them
    Returns dx (C, ...), dgamma (C,), dbeta (C,).
    """
    dy_, x_ = dy.reshape(len(dy), -1), x.reshape(len(x), -1)
    n = x_.shape[1]
    r = 1 / np.sqrt(var + eps)
    x_hat = (x_ - mean[:, np.newaxis]) * r[:, np.newaxis]
    dbeta = dy_.sum(axis=1, dtype=np.float64).astype(x.dtype)
    dgamma = (dy_ * x_hat).sum(axis=1, dtype=np.float64).astype(x.dtype)
    dx = (gamma * r)[:, np.newaxis] * (dy_ - dbeta[:, np.newaxis] / n - x_hat * dgamma[:, np.newaxis] / n)
    return dx.reshape(x.shape), dgamma, dbeta


@op(kernel="norm:batch_norm_inference_kernel", agree="sum")
def batch_norm_inference(
    x: Array, gamma: Array, beta: Array, running_mean: Array, running_var: Array, eps: float
) -> Array:
    """Normalise with the running statistics: y = gamma (x - running_mean) / sqrt(running_var + eps) + beta.

    x (C, ...); gamma, beta, running_mean, running_var (C,). Returns y (C, ...).
    """
    return _normalise(x, gamma, beta, running_mean, running_var, eps)


def _normalise(x: Array, gamma: Array, beta: Array, mean: Array, var: Array, eps: float) -> Array:
    """gamma (x - mean) / sqrt(var + eps) + beta, channel by channel."""
    gamma, beta, mean, var = (a.reshape(-1, *(1,) * (x.ndim - 1)) for a in (gamma, beta, mean, var))
    return gamma * ((x - mean) / np.sqrt(var + eps)) + beta
