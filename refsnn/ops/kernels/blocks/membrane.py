"""Building block of the neurons' kernels: 16 neurons at a time go through all their steps in vector registers.

What it does. Rows are (T, B) numbers in memory, one place of a map each. On flat arrays:

    charge_rows    eqs. (5) to (7) for some rows: from x, normalised on the way, to h and s
    return_given   backprop through time for some rows: from ds, h, s and the slope to the gradient of the input

and for generators, `charge` and `give_back`: the same for some lanes, whatever becomes of what they compute.

Why so. The charge of a step needs what the step before left, so time cannot be the vector, and a batch of 16 or 32 is
too short for a loop: it costs more to enter than to run. Here the samples are the lanes of a vector (`lanes.py`), the
membrane stays in a register over all steps, and a step costs a load, its few operations, and a store. The paper's
neuron and surrogate have a loop of their own; all share another, which chooses at every step.

What it gained, 16.8 million neuron-steps (256 channels on 32x32, T 4, B 16), float32, processor time on one Zen 5 core:
`lif_forward` 5.3 ms, `lif_backward` 9.0; blocks brought into the order (T, place, B) for plain loops: 17 and 35.
Sixteen numbers in the first cache: charge 1.0 ns, with one row after another 2.3; back 1.4 against 1.9.
Where Numba has no long vectors, and under NUMBA_DISABLE_JIT=1, the same equations run number by number.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from refsnn.ops.kernels.blocks.lanes import Lanes, Rows, over_rows, pointers
from refsnn.ops.kernels.blocks.vectors import FUSED, I64, WIDE, kernel_jit, outlined

Array = npt.NDArray[Any]
Numbers = tuple[Any, ...]

HARD, SOFT = 0, 1                                               # positions in the Literals of the definitions
AT_THRESHOLD = 1
AFFINE, SPIKINGJELLY, SPIKINGJELLY_FULL_INPUT, NORSE, SNNTORCH = range(5)
TRIANGLE, RECTANGLE, ARCTAN, FAST_SIGMOID = range(4)


@njit(cache=True, error_model="numpy")
def neuron_numbers(
    like: Array, decay: float, gain: float, bias: float, v_threshold: float, v_reset: float, reset_amount: float,
    v_init: float, reset: int, compare: int, form: int,
) -> Numbers:
    """decay, gain, bias, v_reset, time constant or leak of `form`, v and h at the start; below, keep, fired, put, 0, 1.

    A neuron fires above `below`: the threshold, or the number before it where it fires at the threshold, too.
    Options become exact coefficients: v = fired h + put where it fires, keep h where not. "snntorch" has no use for v:
    it keeps s theta there, which the next charge takes away.
    """
    number = like.dtype.type
    own = 1 / gain if form == SPIKINGJELLY else 1 / (1 - decay) if form == SPIKINGJELLY_FULL_INPUT else bias / gain
    put = v_reset if reset == HARD else -reset_amount if reset == SOFT else 0.0
    threshold = number(v_threshold)
    below = np.nextafter(threshold, number(-np.inf)) if compare == AT_THRESHOLD else threshold
    keep = 0.0 if form == SNNTORCH else 1.0
    fired = 0.0 if reset == HARD else keep
    return (number(decay), number(gain), number(bias), number(v_reset), number(own),
            number(0.0 if form == SNNTORCH else v_init), number(v_init), below, number(keep), number(fired),
            number(v_threshold if form == SNNTORCH else put), number(0), number(1))


@njit(cache=True, error_model="numpy")
def return_numbers(
    like: Array, decay: float, gain: float, v_threshold: float, v_reset: float, reset_amount: float, reset: int,
    compare: int, detach_reset: bool, surrogate: int, alpha: float,
) -> Numbers:
    """gain, decay, erase, kept, through, put; below, threshold, two numbers of the surrogate, 0 and 1.

    kept: 1 - erase, what the reset leaves of h at a spike. How much of h (`through`), and what else (`put`), it takes
    away per spike; 0 where it is detached.
    """
    number = like.dtype.type
    erase = 1.0 if reset == HARD else 0.0
    put = v_reset if reset == HARD else -reset_amount if reset == SOFT else 0.0
    threshold = number(v_threshold)
    below = np.nextafter(threshold, number(-np.inf)) if compare == AT_THRESHOLD else threshold
    width, height = alpha, 1 / (alpha * alpha)
    if surrogate == RECTANGLE:
        width, height = 0.5 / alpha, alpha
    elif surrogate == ARCTAN:
        width, height = np.pi / 2 * alpha, alpha / 2
    return (number(gain), number(decay), number(erase), number(1.0 - erase), number(0.0 if detach_reset else erase),
            number(0.0 if detach_reset else put), below, threshold, number(width), number(height), number(0), number(1))


# --------------------------------------------------------------------------- equations, for lanes and for numbers


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
        return where(inside > zero, inside, zero) * height
    if surrogate == RECTANGLE:
        return where(width > abs(x), height, zero)
    if surrogate == ARCTAN:
        z = width * x
        return height / (one + z * z)
    z = one + width * abs(x)
    return one / (z * z)


# ------------------------------------------------------------------------------------------------------- generators


def _one_of(b: Any, lanes: Rows, choice: Any, options: range, equation: Callable[[int], Lanes]) -> Lanes:
    """equation(choice) for a choice that is known at run time only."""
    result = lanes.variable(equation(options[0]))
    for option in options[1:]:
        with b.if_then(b.icmp_signed("==", choice, I64(option))):
            result.set(equation(option))
    return result.get()


def charge(
    lanes: Rows, x: Any, norm: list[Any], numbers: list[Any], form: Any,
    take: Callable[[Any, Lanes, Any, Lanes], None],
) -> None:
    """Eqs. (5) to (7) through time; form: None for the paper's neuron (`is_paper`). take(place, h, fires, s)."""
    mean, scale, shift = (lanes.lanes(value, FUSED) for value in norm)
    constants = [lanes.lanes(value) for value in numbers]
    v_first, h_first, below, keep, fired, put, zero, one = constants[5:]
    decay, v, last = constants[0], lanes.variable(v_first), lanes.variable(h_first)
    decayed, at_rest = lanes.variable(decay * v_first), decay * put

    def step(at: Any) -> None:
        b = lanes.builder
        z = Lanes(b, ((Lanes(b, lanes.load(x, *lanes.of_x(at)).value, FUSED) - mean) * scale + shift).value)
        if form is None:        # it decays before it is reset: the next step waits for one addition, and not for three
            u = decayed.get() + z
            fires = u > below
            decayed.set(u.where(fires, at_rest, decay * u))
        else:
            known = (z, v.get(), last.get(), constants[:5])
            u = _one_of(b, lanes, form, range(AFFINE, SNNTORCH + 1), lambda one_: _charge(one_, *known))
            fires = u > below
            v.set(u.where(fires, fired * u + put, keep * u))
            last.set(u)
        take(at, u, fires, u.where(fires, one, zero))

    lanes.in_time(step)


def give_back(
    lanes: Rows, ds: Any, h_of: Callable[[Any], Lanes], numbers: list[Any], surrogate: Any,
    take: Callable[[Any, Lanes], None],
) -> None:
    """Backprop through time; surrogate: None for TRIANGLE. take(place, gradient of the neurons' input)."""
    constants = [lanes.lanes(value) for value in numbers]
    gain, decay, _, kept, through, put, below, threshold, width, height, zero, one = constants
    carry, known = lanes.variable(zero), (width, height, zero, one, zero.where)

    def step(at: Any) -> None:
        u, dv_t = h_of(at), carry.get()
        away = u - threshold
        slope = _slope(TRIANGLE, away, *known) if surrogate is None else _one_of(
            lanes.builder, lanes, surrogate, range(TRIANGLE, FAST_SIGMOID + 1), lambda one_: _slope(one_, away, *known))
        ds_t = lanes.load(ds, at) + dv_t * (put - through * u)
        dh_t = dv_t * u.where(u > below, kept, one) + ds_t * slope
        take(at, gain * dh_t)
        carry.set(decay * dh_t)

    lanes.back_in_time(step)


def _charging(paper: bool) -> Any:
    """The intrinsic of `charge_rows` for the paper's neuron, or for all."""

    def body(b: Any, args: list[Any]) -> None:
        s, h, x, rows, steps, batch, form, *numbers = args

        def neurons(lanes: Rows) -> None:
            def take(at: Any, u: Lanes, fires: Any, spikes: Lanes) -> None:
                lanes.store(u, h, at)
                lanes.store_spikes(fires, spikes, s, at)

            charge(lanes, x, numbers[:3], numbers[3:], None if paper else form, take)

        over_rows(b, x.type.pointee, rows, (steps, batch), neurons)

    @intrinsic
    def charging(
        _context: Any, s: Any, h: Any, x: Any, _at: Any, _rows: Any, _steps: Any, _batch: Any, _form: Any, norm: Any,
        numbers: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
            places = [one for array in args[:3] for one in (array, args[3])]
            values = [*pointers(context, builder, (s, h, x), places), *args[4:8],
                      *cgutils.unpack_tuple(builder, args[8], 3), *cgutils.unpack_tuple(builder, args[9], 13)]
            outlined(builder, f"refsnn_charge_{paper}_{x.dtype}_{s.dtype}", values, body)
            return context.get_dummy_value()

        i = types.intp
        return types.void(s, h, x, i, i, i, i, i, norm, numbers), generate

    return charging


def _returning_given() -> Any:
    """The intrinsic of `return_given`."""

    def body(b: Any, args: list[Any]) -> None:
        dx, ds, h, s, slopes, dh, dv, rows, steps, batch, extra, *numbers = args

        def neurons(lanes: Rows) -> None:
            gain, decay, erase, _, through, put, *_, zero, one = [lanes.lanes(value) for value in numbers]
            carry = lanes.variable(zero)

            def step(at: Any) -> None:
                u, from_h, from_v = lanes.load(h, at), lanes.variable(zero), lanes.variable(carry.get())
                with b.if_then(extra):
                    from_h.set(lanes.load(dh, at))
                    from_v.set(from_v.get() + lanes.load(dv, at))
                dv_t = from_v.get()
                ds_t = lanes.load(ds, at) + dv_t * (put - through * u)
                dh_t = dv_t * (one - erase * lanes.load(s, at)) + ds_t * lanes.load(slopes, at) + from_h.get()
                lanes.store(gain * dh_t, dx, at)
                carry.set(decay * dh_t)

            lanes.back_in_time(step)

        over_rows(b, dx.type.pointee, rows, (steps, batch), neurons)

    @intrinsic
    def giving_back(
        _context: Any, dx: Any, _at: Any, given: Any, _places: Any, _rows: Any, _steps: Any, _batch: Any, _extra: Any,
        numbers: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
            arrays = cgutils.unpack_tuple(builder, args[2], 6)
            places = cgutils.unpack_tuple(builder, args[3], 6)
            pairs = [one for pair in zip([args[0], *arrays], [args[1], *places], strict=True) for one in pair]
            values = [*pointers(context, builder, (dx, *given), pairs), *args[4:8],
                      *cgutils.unpack_tuple(builder, args[8], 12)]
            outlined(builder, f"refsnn_return_given_{dx.dtype}", values, body)
            return context.get_dummy_value()

        i = types.intp
        return types.void(dx, i, given, _places, i, i, i, types.boolean, numbers), generate

    return giving_back


# ----------------------------------------------------------------------------------------------- the three functions


@njit(cache=True, error_model="numpy")
def plain_charge_rows(
    s: Array, s_at: int, h: Array, h_at: int, x: Array, x_at: int, rows: int, steps: int, batch: int, norm: Numbers,
    numbers: Numbers, form: int,
) -> None:
    """`charge_rows`, number by number."""
    v_first, h_first, below, keep, fired, put, zero, one = numbers[5:]
    for r in range(rows):
        for m in range(batch):
            v, last = v_first, h_first
            for t in range(steps):
                at = (r * steps + t) * batch + m
                z = (x[x_at + at] - norm[0]) * norm[1] + norm[2]
                last = _plain_charge(form, z, v, last, numbers[:5])
                v = fired * last + put if last > below else keep * last
                h[h_at + at], s[s_at + at] = last, one if last > below else zero


@njit(cache=True, error_model="numpy")
def plain_return_rows(
    dz: Array, at: int, ds: Array, ds_at: int, h: Array, h_at: int, rows: int, steps: int, batch: int, surrogate: int,
    numbers: Numbers,
) -> None:
    """Backprop through time for `rows` rows, number by number: from ds and h to the gradient of the neurons' input."""
    gain, decay, _, kept, through, put, below, threshold, width, height, zero, one = numbers
    for r in range(rows):
        for m in range(batch):
            dv_t = zero
            for k in range(steps):
                n = (r * steps + steps - 1 - k) * batch + m
                u = h[h_at + n]
                slope = _plain_slope(surrogate, u - threshold, width, height, zero, one, _plain_where)
                ds_t = ds[ds_at + n] + dv_t * (put - through * u)
                dh_t = dv_t * (kept if u > below else one) + ds_t * slope
                dz[at + n], dv_t = gain * dh_t, decay * dh_t


@njit(cache=True, error_model="numpy")
def _plain_return_given(
    dx: Array, at: int, given: tuple[Array, ...], places: tuple[int, ...], rows: int, steps: int, batch: int,
    extra: bool, numbers: Numbers,
) -> None:
    """`return_given`, number by number."""
    gain, decay, erase, _, through, put = numbers[:6]
    ds, h, s, slopes, dh, dv = given
    for r in range(rows):
        for m in range(batch):
            carry = dx.dtype.type(0)
            for k in range(steps):
                n = (r * steps + steps - 1 - k) * batch + m
                u, dv_t = h[places[1] + n], carry + (dv[places[5] + n] if extra else dx.dtype.type(0))
                ds_t = ds[places[0] + n] + dv_t * (put - through * u)
                dh_t = dv_t * (numbers[11] - erase * s[places[2] + n]) + ds_t * slopes[places[3] + n]
                dh_t += dh[places[4] + n] if extra else dx.dtype.type(0)
                dx[at + n], carry = gain * dh_t, decay * dh_t


_plain_charge, _plain_slope = njit(cache=True)(_charge), njit(cache=True, error_model="numpy")(_slope)


@njit(cache=True)
def _plain_where(mask: bool, a: float, b: float) -> float:
    return a if mask else b


if WIDE:
    _charge_paper, _charge_all, _return_given = _charging(True), _charging(False), _returning_given()


@njit(cache=True)
def is_paper(numbers: Numbers, form: int) -> bool:
    """Whether eq. (5) is decay v + x, and a spike leaves v_reset."""
    return form == AFFINE and numbers[1] == 1 and numbers[2] == 0 and numbers[9] == 0


@kernel_jit(error_model="numpy")
def charge_rows(
    s: Array, h: Array, x: Array, at: int, rows: int, steps: int, batch: int, norm: Numbers, numbers: Numbers, form: int
) -> None:
    """s, h = spikes and membranes of `rows` rows (T, B), from place `at` on in flat arrays; s may be bytes.

    norm: mean, scale and shift of x, applied with one rounding after the product; 0, 1, 0 leave it as it is.
    """
    if not WIDE:
        plain_charge_rows(s, at, h, at, x, at, rows, steps, batch, norm, numbers, form)
    elif is_paper(numbers, form):
        _charge_paper(s, h, x, at, rows, steps, batch, form, norm, numbers)
    else:
        _charge_all(s, h, x, at, rows, steps, batch, form, norm, numbers)


@kernel_jit(error_model="numpy")
def return_given(
    dx: Array, at: int, given: tuple[Array, ...], places: tuple[int, ...], rows: int, steps: int, batch: int,
    extra: bool, numbers: Numbers,
) -> None:
    """dx = gradient of the neurons' input for `rows` rows (T, B), from place `at` on in a flat array.

    given, places: ds, h, s, slope, dh and dv, flat, and where their rows start; dh and dv are read with `extra` only.
    """
    if WIDE:
        _return_given(dx, at, given, places, rows, steps, batch, extra, numbers)
    else:
        _plain_return_given(dx, at, given, places, rows, steps, batch, extra, numbers)
