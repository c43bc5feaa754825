"""Building block of batch norm's kernels: sums over a channel and its gradient, and what they take away from it.

What it does. For one channel of x and dy = dL/dy, (T, B) rows, on flat arrays:

    mean_and_variance                                                       of `batch_norm_forward`
    add_moments      moments += sum of dy, and of dy x_hat                 dL/d beta, dL/d gamma
    total_moments    the two sums
    through_norm     dx = gamma r (dy - dbeta / n - x_hat dgamma / n)      of `batch_norm_backward`
    through_static   the same summed over time, where x has one step for all

Why so. The sums must have one order, whatever the number of threads and however a channel is cut into blocks, and
float64 for every number costs more than all the rest. So samples are lanes: a lane sums the steps of a row, the last
one first, and of four rows, in x's dtype, and what comes of them in float64: `moments` (2, B). dx may go past the
caches, where it is larger than they are: a line that is written as a whole need not be read. Mean and variance know of
no rows: number i goes to lane i % 64, `RUN` numbers of a lane are summed in x's dtype, runs in float64. The variance
takes a second pass around the mean.

What it gained, one Zen 5 core, float32, 16 numbers in the first cache: sums in float64 from numbers one after another
2.2 ns, here 0.5; mean and variance likewise 2.1 ns, here 0.8.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from refsnn.ops.kernels.blocks.lanes import LENGTH, Lanes, Rows, over_rows, pointers
from refsnn.ops.kernels.blocks.vectors import FUSED, I64, REGISTER, WIDE, kernel_jit, outlined

Array = npt.NDArray[Any]
Numbers = tuple[Any, ...]

TOTALS = 64     # lanes of mean and variance, four vectors that are added at the end
RUN = 8         # numbers of a lane that are summed in x's dtype


def _summing(squares: bool) -> Any:
    """The intrinsic of `add_numbers`, or of `add_squares`."""

    def body(b: Any, args: list[Any]) -> None:
        lanes, x, n, away = args
        vectors = Rows(b, x.type.pointee, LENGTH)
        double, parts = vectors.of(ir.DoubleType()), range(TOTALS // LENGTH)
        mean, zero = vectors.lanes(away), vectors.lanes(ir.Constant(away.type, 0.0))
        totals = [cgutils.alloca_once_value(b, ir.Constant(double, None)) for _ in parts]
        own = [vectors.variable(zero) for _ in parts]
        with cgutils.for_range_slice(b, I64(0), n, I64(TOTALS * RUN)) as (start, _):
            for part in own:
                part.set(zero)
            last = b.add(start, I64(TOTALS * RUN))
            last = b.select(b.icmp_signed("<", last, n), last, n)
            with cgutils.for_range_slice(b, start, last, I64(TOTALS)) as (m, _):
                for k, part in enumerate(own):
                    value = vectors.load(x, b.add(m, I64(LENGTH * k)))
                    if squares:
                        value = Lanes(b, (value - mean).value, FUSED)
                        value = value * value
                    part.set(value + part.get())
            for total, part in zip(totals, own, strict=True):
                value = part.get().value
                b.store(b.fadd(b.load(total), value if vectors.align == 8 else b.fpext(value, double)), total)
        place, together = b.bitcast(lanes, double.as_pointer()), [b.load(total) for total in totals]
        while len(together) > 1:
            together = [b.fadd(*pair) for pair in zip(together[::2], together[1::2], strict=True)]
        b.store(b.fadd(b.load(place, align=8), together[0]), place, align=8)

    @intrinsic
    def add(_context: Any, lanes: Any, x: Any, _at: Any, _n: Any, mean: Any) -> Any:
        def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
            values = [*pointers(context, builder, (lanes, x), (args[0], I64(0), *args[1:3])), *args[3:]]
            outlined(builder, f"refsnn_{'squares' if squares else 'numbers'}_{x.dtype}", values, body)
            return context.get_dummy_value()

        return types.void(lanes, x, types.intp, types.intp, mean), generate

    return add


def sum_moments(lanes: Rows, moments: Any, dy: Any, x: Any, numbers: list[Any]) -> None:
    """For generators: what some lanes give to `moments`; numbers: mean and r."""
    b = lanes.builder
    mean, r, zero = (lanes.lanes(value) for value in (*numbers, ir.Constant(numbers[0].type, 0.0)))
    plain, weighted = lanes.variable(zero), lanes.variable(zero)

    def step(at: Any) -> None:
        g = lanes.load(dy, at)
        plain.set(plain.get() + g)
        x_hat = (lanes.load(x, *lanes.of_x(at)) - mean) * r
        weighted.set(Lanes(b, g.value, FUSED) * x_hat + weighted.get())

    lanes.back_in_time(step)
    totals, m = Rows(b, ir.DoubleType(), lanes.size // lanes.rows), lanes.near(lanes.first)
    for at, variable in ((m, plain), (b.add(lanes.batch, m), weighted)):
        own = lanes.added_rows(variable.get().value)
        total = totals.load(moments, at) + Lanes(b, own if lanes.align == 8 else b.fpext(own, totals.type))
        totals.store(total, moments, at)


def _adding() -> Any:
    """The intrinsic of `add_moments`."""

    def body(b: Any, args: list[Any]) -> None:
        moments, dy, x, rows, steps, batch, *numbers = args
        over_rows(b, dy.type.pointee, rows, (steps, batch), lambda lanes: sum_moments(lanes, moments, dy, x, numbers))

    @intrinsic
    def add(
        _context: Any, moments: Any, dy: Any, x: Any, _at: Any, _rows: Any, _steps: Any, _batch: Any, numbers: Any
    ) -> Any:
        def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
            values = [*pointers(context, builder, (moments, dy, x), (args[0], I64(0), args[1], args[3], *args[2:4])),
                      *args[4:7], *cgutils.unpack_tuple(builder, args[7], 2)]
            outlined(builder, f"refsnn_moments_{dy.dtype}", values, body)
            return context.get_dummy_value()

        i = types.intp
        return types.void(moments, dy, x, i, i, i, i, numbers), generate

    return add


def _pulling() -> Any:
    """The intrinsic of `through_norm`."""

    def loop(b: Any, args: list[Any], first: Any, last: Any, size: int, stream: bool) -> None:
        dx, dy, x, _, _, *numbers = args
        lanes = Rows(b, dx.type.pointee, size)
        scale, shift, tilt, mean = (lanes.lanes(value) for value in numbers)
        down = lanes.lanes(ir.Constant(dx.type.pointee, 0.0)) - tilt
        with cgutils.for_range_slice(b, first, last, I64(size)) as (m, _):
            g, away = lanes.load(dy, m), lanes.load(x, m) - mean
            lanes.store(scale * away.times_plus(down, g - shift), dx, m, stream)

    def body(b: Any, args: list[Any]) -> None:
        n, stream, done = args[3], args[4], b.and_(args[3], I64(-LENGTH))
        aligned = b.icmp_signed("==", b.and_(b.ptrtoint(args[0], I64), I64(REGISTER - 1)), I64(0))
        with b.if_else(b.and_(stream, aligned)) as (past, through):
            with past:
                loop(b, args, I64(0), done, LENGTH, True)
                b.fence("seq_cst")                                  # other threads see what went past the caches
            with through:
                loop(b, args, I64(0), done, LENGTH, False)
        loop(b, args, done, n, 1, False)

    @intrinsic
    def pull(
        _context: Any, dx: Any, _at: Any, dy: Any, _dy: Any, x: Any, _x: Any, _n: Any, _stream: Any, numbers: Any
    ) -> Any:
        def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
            values = [*pointers(context, builder, (dx, dy, x), args[:6]), *args[6:8],
                      *cgutils.unpack_tuple(builder, args[8], 4)]
            outlined(builder, f"refsnn_through_norm_{dx.dtype}", values, body)
            return context.get_dummy_value()

        i = types.intp
        return types.void(dx, i, dy, i, x, i, i, types.boolean, numbers), generate

    return pull


def _pulling_static() -> Any:
    """The intrinsic of `through_static`."""

    def body(b: Any, args: list[Any]) -> None:
        dx, dy, x, rows, steps, batch, *numbers = args

        def rows_of_map(lanes: Rows) -> None:
            scale, shift, tilt, mean = (lanes.lanes(value) for value in numbers)
            zero = lanes.lanes(ir.Constant(numbers[0].type, 0.0))
            away, down, total = lanes.load(x, lanes.only, batch) - mean, zero - tilt, lanes.variable(zero)

            def step(at: Any) -> None:
                total.set(total.get() + scale * away.times_plus(down, lanes.load(dy, at) - shift))

            lanes.in_time(step)
            lanes.store(total.get(), dx, lanes.only, apart=batch)

        over_rows(b, dx.type.pointee, rows, (steps, batch), rows_of_map)

    @intrinsic
    def pull(
        _context: Any, dx: Any, _at: Any, dy: Any, _dy: Any, x: Any, _x: Any, _rows: Any, _steps: Any, _batch: Any,
        numbers: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
            values = [*pointers(context, builder, (dx, dy, x), args[:6]), *args[6:9],
                      *cgutils.unpack_tuple(builder, args[9], 4)]
            outlined(builder, f"refsnn_through_static_{dx.dtype}", values, body)
            return context.get_dummy_value()

        i = types.intp
        return types.void(dx, i, dy, i, x, i, i, i, i, numbers), generate

    return pull


def _add_numbers(lanes: Array, x: Array, at: int, n: int, _mean: float) -> None:
    """lanes (LENGTH,) += sums of n numbers, a multiple of TOTALS, from place `at` on."""
    for start in range(0, n, TOTALS * RUN):
        for lane in range(TOTALS):
            part = x.dtype.type(0)
            for m in range(start, min(start + TOTALS * RUN, n), TOTALS):
                part += x[at + m + lane]
            lanes[lane % LENGTH] += part


def _add_squares(lanes: Array, x: Array, at: int, n: int, mean: float) -> None:
    """lanes (LENGTH,) += sums of (x - mean)^2, likewise."""
    for start in range(0, n, TOTALS * RUN):
        for lane in range(TOTALS):
            part = x.dtype.type(0)
            for m in range(start, min(start + TOTALS * RUN, n), TOTALS):
                away = x[at + m + lane] - mean
                part += away * away
            lanes[lane % LENGTH] += part


def _add_moments(
    moments: Array, dy: Array, x: Array, at: int, rows: int, steps: int, batch: int, numbers: Numbers
) -> None:
    """moments += sums over `rows` rows (T, B) of dy and dy x_hat, from place `at` on; numbers: mean and r."""
    plain_moments(moments, dy, at, x, at, rows, steps, batch, numbers)


@njit(cache=True, error_model="numpy")
def plain_moments(
    moments: Array, dy: Array, dy_at: int, x: Array, x_at: int, rows: int, steps: int, batch: int, numbers: Numbers
) -> None:
    """`add_moments`, number by number."""
    mean, r = numbers
    for row in range(rows):
        for m in range(batch):
            plain, weighted = dy.dtype.type(0), dy.dtype.type(0)
            for k in range(steps):
                at = (row * steps + steps - 1 - k) * batch + m
                plain += dy[dy_at + at]
                weighted += dy[dy_at + at] * ((x[x_at + at] - mean) * r)
            moments[0, m] += plain
            moments[1, m] += weighted


def _through_norm(
    dx: Array, at: int, dy: Array, dy_at: int, x: Array, x_at: int, n: int, stream: bool,  # noqa: ARG001
    numbers: Numbers,
) -> None:
    """dx = scale (dy - shift - (x - mean) tilt) for n numbers, from their places on; `stream`: past the caches.

    numbers: scale, shift, tilt and mean. dx and dy may be the same.
    """
    scale, shift, tilt, mean = numbers
    for m in range(n):
        dx[at + m] = scale * (dy[dy_at + m] - shift - (x[x_at + m] - mean) * tilt)


def _through_static(
    dx: Array, at: int, dy: Array, dy_at: int, x: Array, x_at: int, rows: int, steps: int, batch: int, numbers: Numbers
) -> None:
    """dx of `rows` rows (1, B): sums over time, the first step first, of what `through_norm` gives for dy (T, B)."""
    scale, shift, tilt, mean = numbers
    for row in range(rows):
        for m in range(batch):
            total, away = dx.dtype.type(0), x[x_at + row * batch + m] - mean
            for t in range(steps):
                total += scale * (dy[dy_at + (row * steps + t) * batch + m] - shift - away * tilt)
            dx[at + row * batch + m] = total


add_numbers, add_squares, add_moments, through_norm, through_static = (
    (_summing(False), _summing(True), _adding(), _pulling(), _pulling_static()) if WIDE else
    (njit(_add_numbers), njit(_add_squares), njit(_add_moments), njit(_through_norm), njit(_through_static)))


@njit(cache=True)
def _total(lanes: Array) -> float:
    """The sum of all lanes, one after another."""
    total = 0.0
    for lane in range(lanes.size):
        total += lanes[lane]
    return total


@kernel_jit(error_model="numpy")
def mean_and_variance(x: Array, at: int, n: int) -> tuple[float, float]:
    """Mean and biased variance, float64, of n numbers from place `at` on in a flat array."""
    lanes, whole = np.zeros(LENGTH, np.float64), n // TOTALS * TOTALS
    add_numbers(lanes, x, at, whole, x.dtype.type(0))
    for m in range(whole, n):
        lanes[(m - whole) % LENGTH] += x[at + m]
    mean = _total(lanes) / n
    near = x.dtype.type(mean)           # the squares are taken around it; what it lacks is taken away again
    lanes[:] = 0.0
    add_squares(lanes, x, at, whole, near)
    for m in range(whole, n):
        lanes[(m - whole) % LENGTH] += np.float64(x[at + m] - near) ** 2
    var = _total(lanes) / n - (mean - near) ** 2
    return mean, 0.0 if var < 0.0 else var


@njit(cache=True)
def no_moments(batch: int) -> Array:
    """Sums of nothing, for each of so many samples."""
    return np.zeros((2, batch), np.float64)


@njit(cache=True)
def total_moments(moments: Array) -> tuple[float, float]:
    """Sum of dy and of dy x_hat: samples are added one after another."""
    return _total(moments[0]), _total(moments[1])
