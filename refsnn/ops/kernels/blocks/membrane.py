"""Building block of the neurons' kernels: 16 neurons at a time go through all their steps in vector registers.

What it does. Rows are (T, B) numbers in memory, one place of a map each. Two functions on flat arrays:

    charge_rows    eqs. (5) to (7) for some rows: from x, normalised on the way or not, to h and s
    return_rows    backprop through time for some rows: from ds, h and the surrogate's slope to the gradient of x

Why so. The charge of a step needs what the step before left, so time cannot be the vector, and a batch of 16 or 32 is
too short for a loop: it costs more to enter than to run. Here the samples are the lanes of a vector, the membrane stays
in a register over all steps, and a step costs a load, its few operations, and a store. Equations are written as such:
`_Lanes` turns Python's + - * / > into vector instructions, one rounding each, in the order of the definition. What
fills no vector, the last samples of a batch, goes through the same equations number by number.

What it gained, 16.8 million neuron-steps (256 channels on 32x32, T 4, B 16), float32, processor time on one Zen 5 core:
`lif_forward` 5.3 ms, `lif_backward` 9.0; blocks brought into the order (T, place, B) for plain loops: 17 and 35.
Where Numba has no long vectors, and under NUMBA_DISABLE_JIT=1, the same equations run number by number.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from refsnn.ops.kernels.blocks.vectors import FUSED, I64, WIDE

Array = npt.NDArray[Any]
Numbers = tuple[Any, ...]

HARD, SOFT = 0, 1                                               # positions in the Literals of the definitions
AT_THRESHOLD = 1
AFFINE, SPIKINGJELLY, SPIKINGJELLY_FULL_INPUT, NORSE, SNNTORCH = range(5)
TRIANGLE, RECTANGLE, ARCTAN, FAST_SIGMOID, GIVEN = range(5)     # surrogates with a kernel; GIVEN: an array of slopes
LENGTH = 16                                                     # lanes


@njit(cache=True, error_model="numpy")
def neuron_numbers(
    like: Array, decay: float, gain: float, bias: float, v_threshold: float, v_reset: float, reset_amount: float,
    v_init: float, reset: int, compare: int, form: int,
) -> Numbers:
    """decay, gain, bias, v_reset, time constant or leak of `form`, v_init; below, keep, erase, put, 0, 1 and threshold.

    A neuron fires above `below`: the threshold, or the number before it where it fires at the threshold, too.
    Options become exact coefficients: v = (keep - s erase) h + s put. "snntorch" has no use for v: it keeps s theta
    there, which the next charge takes away.
    """
    number = like.dtype.type
    own = 1 / gain if form == SPIKINGJELLY else 1 / (1 - decay) if form == SPIKINGJELLY_FULL_INPUT else bias / gain
    put = v_reset if reset == HARD else -reset_amount if reset == SOFT else 0.0
    threshold = number(v_threshold)
    below = np.nextafter(threshold, number(-np.inf)) if compare == AT_THRESHOLD else threshold
    keep, erase = (0.0, 0.0) if form == SNNTORCH else (1.0, 1.0 if reset == HARD else 0.0)
    return (number(decay), number(gain), number(bias), number(v_reset), number(own), number(v_init), below,
            number(keep), number(erase), number(v_threshold if form == SNNTORCH else put), number(0), number(1),
            threshold)


@njit(cache=True, error_model="numpy")
def return_numbers(
    like: Array, decay: float, gain: float, v_threshold: float, v_reset: float, reset_amount: float, reset: int,
    compare: int, detach_reset: bool, surrogate: int, alpha: float,
) -> Numbers:
    """gain, decay, erase, through, put; below, threshold, two numbers of the surrogate, 0 and 1.

    How much of h (`through`), and what else (`put`), the reset takes away per spike; 0 where it is detached.
    """
    number = like.dtype.type
    erase = 1.0 if reset == HARD else 0.0
    put = v_reset if reset == HARD else -reset_amount if reset == SOFT else 0.0
    threshold = number(v_threshold)
    below = np.nextafter(threshold, number(-np.inf)) if compare == AT_THRESHOLD else threshold
    width, height = alpha, alpha * alpha
    if surrogate == RECTANGLE:
        width, height = 0.5 / alpha, alpha
    elif surrogate == ARCTAN:
        width, height = np.pi / 2 * alpha, alpha / 2
    return (number(gain), number(decay), number(erase), number(0.0 if detach_reset else erase),
            number(0.0 if detach_reset else put), below, threshold, number(width), number(height), number(0), number(1))


# ------------------------------------------------------------------------------------------- equations, for any lanes


def _charge(form: int, x: Any, v: Any, last: Any, n: Any) -> Any:
    """Eq. (5) in the order of `form`; last: the h before. n: decay, gain, bias, v_reset, own."""
    decay, gain, bias, v_reset, own = n
    if form == SPIKINGJELLY:
        return v + (x - (v - v_reset)) / own
    if form == SPIKINGJELLY_FULL_INPUT:
        return v - (v - v_reset) / own + x
    if form == NORSE:
        return v + gain * ((own - v) + x)
    if form == SNNTORCH:
        return decay * last + x - v
    return decay * v + gain * x + bias


def _slope(surrogate: int, x: Any, width: Any, height: Any, zero: Any, one: Any, where: Callable[..., Any]) -> Any:
    """The derivatives of `ops/surrogate.py`; x = h - threshold."""
    if surrogate == TRIANGLE:
        inside = width - abs(x)
        return where(inside > zero, inside, zero) / height
    if surrogate == RECTANGLE:
        return where(width > abs(x), height, zero)
    if surrogate == ARCTAN:
        z = width * x
        return height / (one + z * z)
    z = one + width * abs(x)
    return one / (z * z)


class _Lanes:
    """A vector of numbers, or one number, with Python's arithmetic: every operation is an instruction."""

    def __init__(self, builder: Any, value: Any, flags: tuple[str, ...] = ()) -> None:
        self.builder, self.value, self.flags = builder, value, flags

    def _made(self, value: Any) -> "_Lanes":
        return _Lanes(self.builder, value, self.flags)

    def __add__(self, other: "_Lanes") -> "_Lanes":
        return self._made(self.builder.fadd(self.value, other.value, flags=self.flags))

    def __sub__(self, other: "_Lanes") -> "_Lanes":
        return self._made(self.builder.fsub(self.value, other.value, flags=self.flags))

    def __mul__(self, other: "_Lanes") -> "_Lanes":
        return self._made(self.builder.fmul(self.value, other.value, flags=self.flags))

    def __truediv__(self, other: "_Lanes") -> "_Lanes":
        return self._made(self.builder.fdiv(self.value, other.value, flags=self.flags))

    def __abs__(self) -> "_Lanes":
        b = self.builder
        above = b.fcmp_ordered(">", self.value, ir.Constant(self.value.type, None))
        return self._made(b.select(above, self.value, b.fneg(self.value)))

    def __gt__(self, other: "_Lanes") -> Any:
        return self.builder.fcmp_ordered(">", self.value, other.value)

    def where(self, mask: Any, a: "_Lanes", b: "_Lanes") -> "_Lanes":
        """a where the mask is true, else b."""
        return self._made(self.builder.select(mask, a.value, b.value))


class _Rows:
    """Loops over the rows and lanes of flat arrays of `dtype`, and what a lane's body needs."""

    def __init__(self, builder: Any, number: Any, size: int) -> None:
        self.builder, self.size = builder, size
        self.type = number if size == 1 else ir.VectorType(number, size)
        self.align = {"float": 4, "double": 8}[str(number)]

    def lanes(self, value: Any, flags: tuple[str, ...] = ()) -> _Lanes:
        """Lanes of one number each."""
        b = self.builder
        if self.size > 1:
            none, lane = ir.Constant(self.type, ir.Undefined), ir.IntType(32)
            first = b.insert_element(none, value, lane(0))
            value = b.shuffle_vector(first, none, ir.Constant(ir.VectorType(lane, self.size), [0] * self.size))
        return _Lanes(b, value, flags)

    def load(self, pointer: Any, at: Any) -> _Lanes:
        """Lanes from pointer[at] on."""
        b = self.builder
        return _Lanes(b, b.load(b.bitcast(b.gep(pointer, [at]), self.type.as_pointer()), align=self.align))

    def store(self, value: _Lanes, pointer: Any, at: Any) -> None:
        """The reverse."""
        b = self.builder
        b.store(value.value, b.bitcast(b.gep(pointer, [at]), self.type.as_pointer()), align=self.align)

    def store_spikes(self, mask: Any, value: _Lanes, pointer: Any, at: Any) -> None:
        """Spikes as numbers, or as bytes where the pointer is to bytes."""
        b = self.builder
        if pointer.type.pointee != ir.IntType(8):
            self.store(value, pointer, at)
            return
        byte = ir.IntType(8) if self.size == 1 else ir.VectorType(ir.IntType(8), self.size)
        b.store(b.zext(mask, byte), b.bitcast(b.gep(pointer, [at]), byte.as_pointer()), align=1)


def _over_rows(b: Any, number: Any, rows: Any, steps: Any, batch: Any, body: Callable[[_Rows, Any, Any], None]) -> None:
    """body(lanes, place of the first number within a row's first step, place of the row) for all rows and samples."""
    filled = b.and_(batch, I64(-LENGTH))
    with cgutils.for_range_slice(b, I64(0), rows, I64(1)) as (r, _):
        row = b.mul(r, b.mul(steps, batch))
        with cgutils.for_range_slice(b, I64(0), filled, I64(LENGTH)) as (m, _):
            body(_Rows(b, number, LENGTH), m, row)
        with cgutils.for_range_slice(b, filled, batch, I64(1)) as (m, _):
            body(_Rows(b, number, 1), m, row)


def _outlined(builder: Any, name: str, values: list[Any], body: Callable[[Any, list[Any]], None]) -> None:
    """Call the function of that name, which `body` writes at its first use."""
    module, kind = builder.module, ir.FunctionType(ir.VoidType(), [value.type for value in values])
    function = module.globals.get(name)
    if function is None:
        function = ir.Function(module, kind, name)
        function.linkage = "internal"
        inner = ir.IRBuilder(function.append_basic_block())
        body(inner, list(function.args))
        inner.ret_void()
    builder.call(function, values)


def _charging(form: int, normed: bool) -> Any:
    """The intrinsic of `charge_rows` for one form, with or without batch norm."""

    def body(b: Any, args: list[Any]) -> None:
        s, h, x, rows, steps, batch, *numbers = args

        def one_vector(lanes: _Rows, m: Any, row: Any) -> None:
            mean, scale, shift = (lanes.lanes(value, FUSED) for value in numbers[:3])
            constants = [lanes.lanes(value) for value in numbers[3:]]
            v_init, below, keep, erase, put, zero, one, _ = constants[5:]
            v = cgutils.alloca_once_value(b, (zero if form == SNNTORCH else v_init).value)
            last = cgutils.alloca_once_value(b, v_init.value)
            with cgutils.for_range_slice(b, I64(0), steps, I64(1)) as (t, _):
                at = b.add(row, b.add(b.mul(t, batch), m))
                z = lanes.load(x, at)
                if normed:
                    z = _Lanes(b, ((_Lanes(b, z.value, FUSED) - mean) * scale + shift).value)
                u = _charge(form, z, _Lanes(b, b.load(v)), _Lanes(b, b.load(last)), constants[:5])
                fires = u > below
                spike = u.where(fires, one, zero)
                b.store(((keep - spike * erase) * u + spike * put).value, v)
                b.store(u.value, last)
                lanes.store(u, h, at)
                lanes.store_spikes(fires, spike, s, at)

        _over_rows(b, x.type.pointee, rows, steps, batch, one_vector)

    @intrinsic
    def charge(
        _context: Any, s: Any, _s: Any, h: Any, _h: Any, x: Any, _x: Any, _rows: Any, _steps: Any, _batch: Any,
        norm: Any, numbers: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
            values = [*_pointers(context, builder, (s, h, x), args[:6]), *args[6:9],
                      *cgutils.unpack_tuple(builder, args[9], 3), *cgutils.unpack_tuple(builder, args[10], 13)]
            _outlined(builder, f"refsnn_charge_{form}_{normed}_{x.dtype}_{s.dtype}", values, body)
            return context.get_dummy_value()

        i = types.intp
        return types.void(s, i, h, i, x, i, i, i, i, norm, numbers), generate

    return charge


def _pointers(context: Any, builder: Any, kinds: tuple[Any, ...], args: Any) -> list[Any]:
    """Addresses of array[at] for arrays that alternate with their places."""
    return [builder.gep(context.make_array(kind)(context, builder, args[2 * k]).data, [args[2 * k + 1]])
            for k, kind in enumerate(kinds)]


def _returning(surrogate: int, extra: bool) -> Any:
    """The intrinsic of `return_rows` for one surrogate. GIVEN: s and slope are arrays; extra: dh and dv as well."""

    def body(b: Any, args: list[Any]) -> None:
        dx, ds, h, s, slopes, dh, dv, rows, steps, batch, *numbers = args

        def one_vector(lanes: _Rows, m: Any, row: Any) -> None:
            constants = [lanes.lanes(value) for value in numbers]
            gain, decay, erase, through, put, below, threshold, width, height, zero, one = constants
            carry = cgutils.alloca_once_value(b, zero.value)
            with cgutils.for_range_slice(b, I64(1), b.add(steps, I64(1)), I64(1)) as (k, _):
                at = b.add(row, b.add(b.mul(b.sub(steps, k), batch), m))
                u, dv_t = lanes.load(h, at), _Lanes(b, b.load(carry))
                if extra:
                    dv_t = dv_t + lanes.load(dv, at)
                if surrogate == GIVEN:
                    spike, slope = lanes.load(s, at), lanes.load(slopes, at)
                else:
                    spike = u.where(u > below, one, zero)
                    slope = _slope(surrogate, u - threshold, width, height, zero, one, u.where)
                ds_t = lanes.load(ds, at) + dv_t * (put - through * u)
                dh_t = dv_t * (one - erase * spike) + ds_t * slope
                if extra:
                    dh_t = dh_t + lanes.load(dh, at)
                lanes.store(gain * dh_t, dx, at)
                b.store((decay * dh_t).value, carry)

        _over_rows(b, dx.type.pointee, rows, steps, batch, one_vector)

    @intrinsic
    def give_back(
        _context: Any, dx: Any, _at: Any, given: Any, _places: Any, _rows: Any, _steps: Any, _batch: Any, numbers: Any
    ) -> Any:
        def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
            arrays = cgutils.unpack_tuple(builder, args[2], 6)
            places = cgutils.unpack_tuple(builder, args[3], 6)
            pairs = [one for pair in zip([args[0], *arrays], [args[1], *places], strict=True) for one in pair]
            values = [*_pointers(context, builder, (dx, *given), pairs), *args[4:7],
                      *cgutils.unpack_tuple(builder, args[7], 11)]
            _outlined(builder, f"refsnn_return_{surrogate}_{extra}_{dx.dtype}", values, body)
            return context.get_dummy_value()

        i = types.intp
        return types.void(dx, i, given, _places, i, i, i, numbers), generate

    return give_back


# ------------------------------------------------------------------------------------------------- the two functions


if WIDE:
    _affine, _spikingjelly, _full_input, _norse, _snntorch = (_charging(form, False) for form in range(5))
    _n_affine, _n_spikingjelly, _n_full_input, _n_norse, _n_snntorch = (_charging(form, True) for form in range(5))
    _triangle, _rectangle, _arctan, _fast_sigmoid, _given = (_returning(kind, False) for kind in range(5))
    _given_more = _returning(GIVEN, True)


@njit(cache=True, error_model="numpy")
def _plain_charge_rows(
    s: Array, s_at: int, h: Array, h_at: int, x: Array, x_at: int, rows: int, steps: int, batch: int, normed: bool,
    norm: Numbers, numbers: Numbers, form: int,
) -> None:
    """`charge_rows`, number by number."""
    v_init, below, keep, erase, put, zero, one = numbers[5:12]
    for r in range(rows):
        for m in range(batch):
            v, last = zero if form == SNNTORCH else v_init, v_init
            for t in range(steps):
                at = (r * steps + t) * batch + m
                z = (x[x_at + at] - norm[0]) * norm[1] + norm[2] if normed else x[x_at + at]
                last = _plain_charge(form, z, v, last, numbers[:5])
                spike = one if last > below else zero
                v = (keep - spike * erase) * last + spike * put
                h[h_at + at], s[s_at + at] = last, spike


@njit(cache=True, error_model="numpy")
def _plain_return_rows(
    dx: Array, at: int, given: tuple[Array, ...], places: tuple[int, ...], rows: int, steps: int, batch: int,
    numbers: Numbers, surrogate: int, extra: bool,
) -> None:
    """`return_rows`, number by number."""
    gain, decay, erase, through, put, below, threshold, width, height, zero, one = numbers
    ds, h, s, slopes, dh, dv = given
    for r in range(rows):
        for m in range(batch):
            carry = zero
            for k in range(steps):
                n = (r * steps + steps - 1 - k) * batch + m
                u, dv_t = h[places[1] + n], carry + (dv[places[5] + n] if extra else zero)
                spike, slope = one if u > below else zero, zero
                if surrogate == GIVEN:
                    spike, slope = s[places[2] + n], slopes[places[3] + n]
                else:
                    slope = _plain_slope(surrogate, u - threshold, width, height, zero, one, _plain_where)
                ds_t = ds[places[0] + n] + dv_t * (put - through * u)
                dh_t = dv_t * (one - erase * spike) + ds_t * slope + (dh[places[4] + n] if extra else zero)
                dx[at + n], carry = gain * dh_t, decay * dh_t


_plain_charge, _plain_slope = njit(cache=True)(_charge), njit(cache=True, error_model="numpy")(_slope)


@njit(cache=True)
def _plain_where(mask: bool, a: float, b: float) -> float:
    return a if mask else b


@njit(cache=True, error_model="numpy")
def charge_rows(
    s: Array, s_at: int, h: Array, h_at: int, x: Array, x_at: int, rows: int, steps: int, batch: int, normed: bool,
    norm: Numbers, numbers: Numbers, form: int,
) -> None:
    """s, h = spikes and membranes of `rows` rows (T, B): places s_at, h_at, x_at on in flat arrays; s may be bytes.

    norm: mean, scale and shift of x, applied with one rounding after the product, where `normed`.
    """
    given = (s, s_at, h, h_at, x, x_at, rows, steps, batch)
    if not WIDE:
        _plain_charge_rows(*given, normed, norm, numbers, form)
    elif normed:
        if form == AFFINE:
            _n_affine(*given, norm, numbers)
        elif form == SPIKINGJELLY:
            _n_spikingjelly(*given, norm, numbers)
        elif form == SPIKINGJELLY_FULL_INPUT:
            _n_full_input(*given, norm, numbers)
        elif form == NORSE:
            _n_norse(*given, norm, numbers)
        else:
            _n_snntorch(*given, norm, numbers)
    elif form == AFFINE:
        _affine(*given, norm, numbers)
    elif form == SPIKINGJELLY:
        _spikingjelly(*given, norm, numbers)
    elif form == SPIKINGJELLY_FULL_INPUT:
        _full_input(*given, norm, numbers)
    elif form == NORSE:
        _norse(*given, norm, numbers)
    else:
        _snntorch(*given, norm, numbers)


@njit(cache=True, error_model="numpy")
def return_rows(
    dx: Array, at: int, given: tuple[Array, ...], places: tuple[int, ...], rows: int, steps: int, batch: int,
    numbers: Numbers, surrogate: int, extra: bool,
) -> None:
    """dx = gradient of the neurons' input for `rows` rows (T, B), from place `at` on in a flat array.

    given, places: ds, h, s, slope, dh and dv, flat, and where their rows start. s and slope are read for the surrogate
    GIVEN only, dh and dv with `extra` only, which goes with GIVEN.
    """
    if not WIDE:
        _plain_return_rows(dx, at, given, places, rows, steps, batch, numbers, surrogate, extra)
    elif extra:
        _given_more(dx, at, given, places, rows, steps, batch, numbers)
    elif surrogate == GIVEN:
        _given(dx, at, given, places, rows, steps, batch, numbers)
    elif surrogate == TRIANGLE:
        _triangle(dx, at, given, places, rows, steps, batch, numbers)
    elif surrogate == RECTANGLE:
        _rectangle(dx, at, given, places, rows, steps, batch, numbers)
    elif surrogate == ARCTAN:
        _arctan(dx, at, given, places, rows, steps, batch, numbers)
    else:
        _fast_sigmoid(dx, at, given, places, rows, steps, batch, numbers)
