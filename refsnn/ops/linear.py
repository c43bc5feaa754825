"""Sparse linear maps: forward, and the gradients of the input, the weights and the bias.

The weight is the CSR matrix of its neurons (see `sparse.py`): row o holds the connections of output unit o, column f
is input feature f. Shapes: x (F, T, B), y (O, T, B). Time and batch are samples: every one is mapped by itself.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn.twin import op

Array = npt.NDArray[Any]


@op(kernel="linear:linear_forward_kernel", agree="sum")
def linear_forward(x: Array, data: Array, indices: Array, indptr: Array, bias: Array | None) -> Array:
    """Weigh the inputs of every neuron: the synaptic current W x of eq. (5).

        y[o] = bias[o] + sum_f W[o, f] x[f]    over the active f of row o

    x        (F, T, B)     input: float, or uint8 spikes
    data     (nnz,)        active weights; with indices (nnz,) and indptr (O + 1,) the CSR matrix (O, F)
    bias     (O,) or None  added to every sample
    returns  (O, T, B)     in the dtype of data

    Raises IndexError where a column lies beyond F.
    """
    rows = indptr.size - 1
    y = np.zeros((rows, *x.shape[1:]), dtype=data.dtype)
    for o in range(rows):
        k = slice(indptr[o], indptr[o + 1])                             # the active weights of neuron o
        y[o] = np.tensordot(data[k], x[indices[k]], axes=1)
        if bias is not None:
            y[o] += bias[o]
    return y


@op(kernel="linear:linear_input_gradient_kernel", agree="sum")
def linear_input_gradient(dy: Array, data: Array, indices: Array, indptr: Array, features: int) -> Array:
    """Send the gradient back through the connections, W^T dy.

        dx[f] = sum_o W[o, f] dy[o]

    dy        (O, T, B)  gradient of the loss by y; data, indices, indptr as in `linear_forward`
    features  F          number of input features
    returns   (F, T, B)

    Raises IndexError as `linear_forward`.
    """
    dx = np.zeros((features, *dy.shape[1:]), dtype=dy.dtype)
    for o in range(indptr.size - 1):
        k = slice(indptr[o], indptr[o + 1])
        dx[indices[k]] += np.multiply.outer(data[k], dy[o])             # a row names no column twice
    return dx


@op(kernel="linear:linear_weight_gradient_kernel", agree="sum")
def linear_weight_gradient(dy: Array, x: Array, indices: Array, indptr: Array) -> Array:
    """Gradient of the active weights only: the cost follows the density.

        dW[o, f] = sum over t, b of dy[o, t, b] x[f, t, b]

    dy       (O, T, B);  x  (F, T, B), float, or uint8 spikes
    indices  (nnz,), indptr (O + 1,): the active f of each row
    returns  (nnz,)      in the dtype of dy

    Raises IndexError as `linear_forward`.
    """
    ddata = np.zeros(indices.size, dtype=dy.dtype)
    for o in range(indptr.size - 1):
        k = slice(indptr[o], indptr[o + 1])
        ddata[k] = np.tensordot(x[indices[k]], dy[o], axes=2)
    return ddata


@op(kernel="linear:linear_weight_gradient_dense_kernel", agree="sum")
def linear_weight_gradient_dense(dy: Array, x: Array) -> Array:
    """Gradient of every place of the weight, active or not: what the growth rules compare.

    The equation is that of `linear_weight_gradient`, for all f.

    dy       (O, T, B);  x  (F, T, B), float, or uint8 spikes
    returns  (O, F)      in the dtype of dy
    """
    return np.tensordot(dy, x, axes=([1, 2], [1, 2]))


@op()
def bias_gradient(dy: Array) -> Array:
    """Gradient of a bias, of a convolution's maps or of a linear map's units: the sum over all they were added to.

        dbias[o] = sum of dy[o]

    dy       (O, ...)
    returns  (O,)
    """
    return np.sum(dy.reshape(dy.shape[0], -1), axis=1)
