"""Dot products of runs: one for every active weight, eight at a time in registers over a whole map.

    dot_runs     dots[q] += sum_m gradient[m] * x[offsets[q] + m]

where x may be packed one a bit: then the numbers of the gradient are added where the bit is set.
"""

from typing import Any

import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from refsnn.ops.kernels.blocks.vectors import I64, WIDE, Vectors, kernel_jit, vector, whole

Array = npt.NDArray[Any]


def _held_dots(filters: int, count: int, spikes: bool) -> Any:
    """Intrinsic: filters x `count` dot products, each a vector of partial sums in a register, over rows of n numbers.

    dots[place + f spread + q] for offsets[first + q] and f in 0..filters; the rest as `dot_runs`; n fills vectors.
    """

    def step(b: Any, v: Vectors, m: Any, vectors: int, gradients: Any, runs: Any, totals: Any) -> None:
        values = [[v.load(v.move(b.gep(p, [m]), i * v.size)) for i in range(vectors)] for p in gradients]
        for q, p in enumerate(runs):
            masks = v.masks(b.gep(p, [b.lshr(m, I64(3))]), vectors) if spikes else []
            for i in range(vectors):
                for f, value in enumerate(values):
                    if spikes:
                        v.add_where(masks[i], totals[f * count + q], value[i])
                    else:
                        v.add(totals[f * count + q], value[i], v.load(v.move(b.gep(p, [m]), i * v.size)))

    @intrinsic
    def dots(
        _context: Any, dots: Any, _place: Any, _spread: Any, gradient: Any, _at: Any, _apart: Any, _near: Any, x: Any,
        offsets: Any, _first: Any, _far: Any, _rows: Any, _n: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
            b, v = builder, Vectors(context, builder, dots.dtype)
            totals = v.held([ir.Constant(v.type, None)] * (filters * count))
            runs = [b.load(v.pointer(offsets, args[8], b.add(args[9], I64(q)))) for q in range(count)]
            runs = [v.pointer(x, args[7], run) for run in runs]
            base = v.pointer(gradient, args[3], args[4])
            bases = [b.gep(base, [b.mul(args[5], I64(f))]) for f in range(filters)]
            with cgutils.for_range_slice(b, I64(0), args[11], I64(1)) as (h, _):
                here = [b.gep(p, [b.mul(h, args[10])]) for p in runs]
                gradients = [b.gep(p, [b.mul(h, args[6])]) for p in bases]
                group = v.word.width // v.size if spikes else 1         # vectors that one word of bits serves
                done = b.and_(args[12], I64(-group * v.size))
                with cgutils.for_range_slice(b, I64(0), done, I64(group * v.size)) as (m, _):
                    step(b, v, m, group, gradients, here, totals)
                if group > 1:
                    with cgutils.for_range_slice(b, done, args[12], I64(v.size)) as (m, _):
                        step(b, v, m, 1, gradients, here, totals)
            for f in range(filters):
                sums = v.sums_of([b.load(total) for total in totals[f * count : (f + 1) * count]])
                place = v.pointer(dots, args[0], b.add(args[1], b.mul(args[2], I64(f))))
                for q in range(count):
                    number = b.extract_element(sums[q * len(sums) // count], ir.IntType(32)(q % v.size))
                    b.store(number, b.gep(place, [I64(q)]))
            return context.get_dummy_value()

        i = types.intp
        return types.void(dots, i, i, gradient, i, i, i, x, offsets, i, i, i, i), generate

    return dots


dots8, _dots4, _dots1 = (_held_dots(1, count, False) for count in (8, 4, 1))
spike_dots8, _spike_dots4, _spike_dots1 = (_held_dots(1, count, True) for count in (8, 4, 1))
_pairs8, _spike_pairs8 = _held_dots(2, 8, False), _held_dots(2, 8, True)


@kernel_jit(error_model="numpy", fastmath={"contract"})
def dot_runs(
    dots: Array, many: int, spread: int, gradient: Array, at: int, apart: int, near: int, x: Array, bits: Array,
    packed: bool, offsets: Array, first: int, last: int, far: int, rows: int, n: int,
) -> None:
    """dots[f spread + k] = sum of gradient[at + f apart + h near + m] * x[offsets[k] + h far + m] over h and m.

    For k in first..last and f in 0..many (1 or 2); h counts `rows` rows of n numbers m. Packed: bits stand for x, and
    offsets and far count bytes. A last group that is not full takes some k a second time.
    """
    done, k = whole(n, vector(gradient)) if WIDE else 0, first
    while k < last:
        count = 1 if last - first < 4 else 8 if last - first >= 8 and last - k > 4 else 4
        k = min(k, last - count)
        if WIDE and many == 2 and count == 8:
            if packed:
                _spike_pairs8(dots, k, spread, gradient, at, apart, near, bits, offsets, k, far, rows, done)
            else:
                _pairs8(dots, k, spread, gradient, at, apart, near, x, offsets, k, far, rows, done)
        for f in range(many):
            place, line = f * spread + k, at + f * apart
            if WIDE and not (many == 2 and count == 8):
                _dot_group(dots, place, gradient, line, near, x, bits, packed, offsets, k, count, far, rows, done)
            for q in range(count if done < n else 0):
                if done == 0:
                    dots[place + q] = 0
                dots[place + q] += _dot_rest(gradient, line, near, x, bits, packed, offsets[k + q], far, rows, done, n)
        k += count


@kernel_jit(error_model="numpy")
def _dot_group(
    dots: Array, place: int, gradient: Array, at: int, near: int, x: Array, bits: Array, packed: bool, offsets: Array,
    k: int, count: int, far: int, rows: int, n: int,
) -> None:
    """Eight, four or one dot product of whole vectors."""
    if count == 8 and packed:
        spike_dots8(dots, place, 0, gradient, at, 0, near, bits, offsets, k, far, rows, n)
    elif count == 8:
        dots8(dots, place, 0, gradient, at, 0, near, x, offsets, k, far, rows, n)
    elif count == 4 and packed:
        _spike_dots4(dots, place, 0, gradient, at, 0, near, bits, offsets, k, far, rows, n)
    elif count == 4:
        _dots4(dots, place, 0, gradient, at, 0, near, x, offsets, k, far, rows, n)
    elif packed:
        _spike_dots1(dots, place, 0, gradient, at, 0, near, bits, offsets, k, far, rows, n)
    else:
        _dots1(dots, place, 0, gradient, at, 0, near, x, offsets, k, far, rows, n)


@kernel_jit(error_model="numpy", fastmath={"contract"})
def _dot_rest(
    gradient: Array, at: int, near: int, x: Array, bits: Array, packed: bool, start: int, far: int, rows: int,
    done: int, n: int,
) -> Any:
    """What is left of a dot product beyond the vectors."""
    total = gradient.dtype.type(0)
    for h in range(rows):
        a, b = at + h * near, start + h * far
        for m in range(done, n):
            if packed:
                total += gradient[a + m] if bits[b + m // 8] >> (m % 8) & 1 else gradient.dtype.type(0)
            else:
                total += gradient[a + m] * x[b + m]
    return total
