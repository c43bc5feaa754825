"""Building block of the fused kernels: batch norm and neurons for some rows, in one pass of the registers.

What it does. Rows are (T, B) numbers of one channel; on flat arrays:

    fire_rows            x -> s                 normalise, charge, fire
    differentiate_rows   ds, x -> dz, moments   the same again, back through time, and the sums that batch norm needs

Why so. Four rows of 16 samples go through all steps, their membranes into a place of a few kilobytes, and back before
the next four come: what was read from memory is still in the first cache, and no array of membranes is made. While
registers compute, what will be read `ahead` is on its way.

What it gained, one Zen 5 core, float32, 16 numbers (32 maps of 8x8, T 4, B 32): backwards 4.2 ns; block by block of
4096 numbers, with a function for each of the three, 5.6.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from refsnn.ops.kernels.blocks.lanes import TOGETHER, Lanes, Rows, over_rows, pointers
from refsnn.ops.kernels.blocks.membrane import (
    TRIANGLE,
    charge,
    give_back,
    is_paper,
    plain_charge_rows,
    plain_return_rows,
)
from refsnn.ops.kernels.blocks.moments import plain_moments, sum_moments
from refsnn.ops.kernels.blocks.vectors import WIDE, empty, kernel_jit, outlined

Array = npt.NDArray[Any]
Numbers = tuple[Any, ...]


def _firing(paper: bool) -> Any:
    """The intrinsic of `fire_rows` for the paper's neuron, or for all."""

    def body(b: Any, args: list[Any]) -> None:
        s, x, ahead, rows, steps, batch, static, form, *numbers = args

        def neurons(lanes: Rows) -> None:
            def take(at: Any, _: Lanes, fires: Any, spikes: Lanes) -> None:
                place, apart = lanes.of_x(at)
                lanes.prefetch(x, b.add(place, ahead), apart)
                lanes.store_spikes(fires, spikes, s, at)

            charge(lanes, x, numbers[:3], numbers[3:], None if paper else form, take)

        over_rows(b, x.type.pointee, rows, (steps, batch), neurons, static)

    @intrinsic
    def fire(
        _context: Any, s: Any, _to: Any, x: Any, _at: Any, _ahead: Any, _rows: Any, _steps: Any, _batch: Any,
        _static: Any, _form: Any, norm: Any, numbers: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
            values = [*pointers(context, builder, (s, x), args[:4]), *args[4:10],
                      *cgutils.unpack_tuple(builder, args[10], 3), *cgutils.unpack_tuple(builder, args[11], 13)]
            outlined(builder, f"refsnn_fire_{paper}_{x.dtype}_{s.dtype}", values, body)
            return context.get_dummy_value()

        i = types.intp
        return types.void(s, i, x, i, i, i, i, i, types.boolean, i, norm, numbers), generate

    return fire


def _differentiating(paper: bool) -> Any:
    """The intrinsic of `differentiate_rows` for the paper's neuron and surrogate, or for all."""

    def body(b: Any, args: list[Any]) -> None:
        dz, ds, x, h, moments, ahead, rows, steps, batch, static, normed, form, surrogate, *numbers = args
        norm, r, numbers, back = numbers[:3], numbers[3], numbers[4:17], numbers[17:]

        def neurons(lanes: Rows) -> None:
            def remember(at: Any, u: Lanes, _fires: Any, _spikes: Lanes) -> None:
                place, apart = lanes.of_x(at)
                lanes.prefetch(x, b.add(place, ahead), apart)
                lanes.store(u, h, lanes.near(at))

            def give(at: Any, dz_t: Lanes) -> None:
                lanes.prefetch(ds, b.add(at, ahead))
                lanes.store(dz_t, dz, at)

            charge(lanes, x, norm, numbers, None if paper else form, remember)
            give_back(lanes, ds, lambda at: lanes.load(h, lanes.near(at)), back, None if paper else surrogate, give)
            with b.if_then(normed):
                sum_moments(lanes, moments, dz, x, [norm[0], r])

        over_rows(b, x.type.pointee, rows, (steps, batch), neurons, static)

    @intrinsic
    def differentiate(
        _context: Any, dz: Any, _to: Any, ds: Any, _of: Any, x: Any, _at: Any, h: Any, moments: Any, _ahead: Any,
        _rows: Any, _steps: Any, _batch: Any, _static: Any, _normed: Any, _form: Any, _surrogate: Any, norm: Any,
        numbers: Any, back: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
            zero = context.get_constant(types.intp, 0)
            values = [*pointers(context, builder, (dz, ds, x, h, moments), (*args[:7], zero, args[7], zero)),
                      *args[8:16], *cgutils.unpack_tuple(builder, args[16], 4),
                      *cgutils.unpack_tuple(builder, args[17], 13), *cgutils.unpack_tuple(builder, args[18], 12)]
            outlined(builder, f"refsnn_differentiate_{paper}_{x.dtype}", values, body)
            return context.get_dummy_value()

        i, truth = types.intp, types.boolean
        given = (dz, i, ds, i, x, i, h, moments, i, i, i, i, truth, truth, i, i, norm, numbers, back)
        return types.void(*given), generate

    return differentiate


if WIDE:
    _fire_paper, _fire_all = _firing(True), _firing(False)
    _differentiate_paper, _differentiate_all = _differentiating(True), _differentiating(False)


@kernel_jit(error_model="numpy")
def fire_rows(
    s: Array, to: int, x: Array, at: int, ahead: int, rows: int, steps: int, batch: int, static: bool, norm: Numbers,
    numbers: Numbers, form: int,
) -> None:
    """s, from place `to` on, = spikes of `rows` rows (T, B) from place `at` on in x, both flat; s may be bytes.

    norm: mean, scale and shift of x. ahead: so many numbers further on, x is asked for. static: x has rows (1, B).
    """
    if not WIDE:
        own, start = (plain_shown(x, at, rows, steps, batch), 0) if static else (x, at)
        plain_charge_rows(s, to, np.empty(rows * steps * batch, x.dtype), 0, own, start, rows, steps, batch, norm,
                          numbers, form)
    elif is_paper(numbers, form):
        _fire_paper(s, to, x, at, ahead, rows, steps, batch, static, form, norm, numbers)
    else:
        _fire_all(s, to, x, at, ahead, rows, steps, batch, static, form, norm, numbers)


@kernel_jit(error_model="numpy")
def differentiate_rows(
    dz: Array, to: int, ds: Array, of: int, x: Array, at: int, moments: Array, ahead: int, rows: int, steps: int,
    batch: int, static: bool, normed: bool, form: int, surrogate: int, norm: Numbers, numbers: Numbers, back: Numbers,
) -> None:
    """dz and moments of `rows` rows (T, B); places `to`, `of` and `at` on in dz, ds and x, which are flat.

    norm: mean, scale, shift and r of x. normed: whether the moments are wanted. ahead, static: as in `fire_rows`.
    """
    if not WIDE:
        own, start = (plain_shown(x, at, rows, steps, batch), 0) if static else (x, at)
        _plain_differentiate(dz, to, ds, of, own, start, moments, rows, steps, batch, normed, form, surrogate, norm,
                             numbers, back)
    else:
        h = empty(TOGETHER * steps * batch, x.dtype)
        if is_paper(numbers, form) and surrogate == TRIANGLE:
            _differentiate_paper(dz, to, ds, of, x, at, h, moments, ahead, rows, steps, batch, static, normed, form,
                                 surrogate, norm, numbers, back)
        else:
            _differentiate_all(dz, to, ds, of, x, at, h, moments, ahead, rows, steps, batch, static, normed, form,
                               surrogate, norm, numbers, back)


@njit(cache=True)
def plain_shown(x: Array, at: int, rows: int, steps: int, batch: int) -> Array:
    """Rows (1, B) from place `at` on, laid out at all steps: (rows T B,)."""
    shown = np.empty(rows * steps * batch, x.dtype)
    for n in range(shown.size):
        shown[n] = x[at + n // (steps * batch) * batch + n % batch]
    return shown


@njit(cache=True, error_model="numpy")
def _plain_differentiate(
    dz: Array, to: int, ds: Array, of: int, x: Array, at: int, moments: Array, rows: int, steps: int, batch: int,
    normed: bool, form: int, surrogate: int, norm: Numbers, numbers: Numbers, back: Numbers,
) -> None:
    """`differentiate_rows`, row by row, number by number."""
    size = steps * batch
    h, s = np.empty(size, x.dtype), np.empty(size, np.uint8)
    for row in range(rows):
        own, put = at + row * size, to + row * size
        plain_charge_rows(s, 0, h, 0, x, own, 1, steps, batch, norm[:3], numbers, form)
        plain_return_rows(dz, put, ds, of + row * size, h, 0, 1, steps, batch, surrogate, back)
        if normed:
            plain_moments(moments, dz, put, x, own, 1, steps, batch, (norm[0], norm[3]))
