"""Sums of runs: an AXPY for every active weight, with the totals in registers over all weights of a filter.

    add_runs     target[m] = base[m] + sum_k weights[k] * x[offsets[k] + m]
    add_spikes   the same where x is packed one a bit: weights[k] is added where bit m of run k is set

are for one filter; `sum_runs` and `sum_spikes` do many filters that read the same part of x, each from a number of its
own: between filters a call would cost as much as ten weights. Written as loops, every multiply-add would load and store
its total. Each function has a twin in plain Python, which runs under NUMBA_DISABLE_JIT=1.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from refsnn.ops.kernels.blocks.vectors import HELD, I64, REGISTER, WIDE, Vectors

Array = npt.NDArray[Any]


class _Sum:
    """One filter: its weights k in first..last, and where in x they find their runs."""

    def __init__(
        self, spikes: bool, b: Any, v: Vectors, x: Any, offsets: Any, weights: Any, first: Any, last: Any
    ) -> None:
        self.spikes, self.b, self.v, self.x = spikes, b, v, x
        self.offsets, self.weights, self.first, self.last = offsets, weights, first, last

    def run(self, n: Any, start: Any, put: Any) -> None:
        """n totals: `start(m, wide)` is what m starts from, `put(m, totals, wide)` stores them."""
        b, v, done, count = self.b, self.v, I64(0), HELD
        while count:                                    # 16 vectors a pass over all k, then what is left: 8, 4, 2, 1
            stop = b.and_(n, I64(-count * v.size))
            with cgutils.for_range_slice(b, done, stop, I64(count * v.size)) as (m, _):
                totals = v.held([start(b.add(m, I64(i * v.size)), True) for i in range(count)])
                with cgutils.for_range_slice(b, self.first, self.last, I64(1)) as (k, _):
                    self.add(k, m, totals)
                put(m, [b.load(total) for total in totals], True)
            done, count = stop, count // 2
        with cgutils.for_range_slice(b, done, n, I64(1)) as (m, _):     # what fills no vector
            total = cgutils.alloca_once_value(b, start(m, False))
            with cgutils.for_range_slice(b, self.first, self.last, I64(1)) as (k, _):
                self.add_one(k, m, total)
            put(m, [b.load(total)], False)

    def add(self, k: Any, m: Any, totals: list[Any]) -> None:
        """Weight k to vectors of totals from m on."""
        b, v = self.b, self.v
        run, weight = v.integer(b.gep(self.offsets, [k])), v.repeat(b.load(b.gep(self.weights, [k])))
        run = b.gep(self.x, [b.add(run, b.lshr(m, I64(3)) if self.spikes else m)])
        masks = v.masks(run, len(totals)) if self.spikes else []
        for i, total in enumerate(totals):
            if self.spikes:
                v.add_where(masks[i], total, weight)
            else:
                v.add(total, v.load(v.move(run, i * v.size)), weight)

    def add_one(self, k: Any, m: Any, total: Any) -> None:
        """Weight k to total m alone."""
        b, v = self.b, self.v
        run, weight = v.integer(b.gep(self.offsets, [k])), b.load(b.gep(self.weights, [k]))
        if self.spikes:
            byte = b.load(b.gep(self.x, [b.add(run, b.lshr(m, I64(3)))]))
            bit = b.and_(b.lshr(byte, b.trunc(b.and_(m, I64(7)), byte.type)), byte.type(1))
            v.add_where(b.icmp_unsigned("!=", bit, byte.type(0)), total, weight)
        else:
            v.add(total, b.load(b.gep(self.x, [b.add(run, m)])), weight)


def _adding(spikes: bool) -> Any:
    """The intrinsic of `add_runs` (or `add_spikes`)."""

    def body(b: Any, v: Vectors, args: Any) -> None:
        target, base, n, x, offsets, weights, first, last = args

        def start(m: Any, wide: bool) -> Any:
            place = b.gep(base, [m])
            return v.load(place) if wide else b.load(place)

        def put(m: Any, totals: list[Any], wide: bool) -> None:
            for i, total in enumerate(totals):
                place = b.gep(target, [b.add(m, I64(i * v.size))])
                v.store(total, place) if wide else b.store(total, place)

        _Sum(spikes, b, v, x, offsets, weights, first, last).run(n, start, put)

    @intrinsic
    def add(
        _context: Any, target: Any, _at: Any, base: Any, _start: Any, _n: Any, x: Any, _shift: Any, offsets: Any,
        weights: Any, _first: Any, _last: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
            v = Vectors(context, builder, target.dtype)
            values = [v.pointer(target, args[0], args[1]), v.pointer(base, args[2], args[3]), args[4],
                      v.pointer(x, args[5], args[6]), v.pointer(offsets, args[7], I64(0)),
                      v.pointer(weights, args[8], I64(0)), args[9], args[10]]
            name = "refsnn_add_spikes" if spikes else "refsnn_add_runs"
            v.call(name, values, lambda b, own: body(b, Vectors(context, b, target.dtype), own))
            return context.get_dummy_value()

        i = types.intp
        return types.void(target, i, base, i, i, x, i, offsets, weights, i, i), generate

    return add


def _summing(spikes: bool) -> Any:
    """The intrinsic of `sum_runs` (or `sum_spikes`)."""

    def body(b: Any, v: Vectors, args: Any) -> None:
        target, spread, apart, base, n, x, offsets, weights, bounds, step, first, last, stream = args
        places = b.or_(b.ptrtoint(target, I64), b.mul(b.or_(spread, apart), I64(v.align)))
        stream = b.and_(stream, b.icmp_signed("==", b.and_(places, I64(REGISTER - 1)), I64(0)))
        with cgutils.for_range_slice(b, first, last, I64(1)) as (q, _):
            begin = b.gep(bounds, [b.mul(q, step)])
            own, level = b.gep(target, [b.mul(b.sub(q, first), spread)]), b.load(b.gep(base, [q]))

            def start(_m: Any, wide: bool, level: Any = level) -> Any:
                return v.repeat(level) if wide else level

            def put(m: Any, totals: list[Any], wide: bool, own: Any = own) -> None:
                vectors, rest = b.lshr(m, I64(v.size.bit_length() - 1)), b.and_(m, I64(v.size - 1))
                place = b.gep(own, [b.add(b.mul(vectors, apart), rest)])
                if not wide:
                    b.store(totals[0], place)
                    return
                with b.if_else(stream) as (past, through):
                    for branch, streamed in ((past, True), (through, False)):
                        with branch:
                            for i, total in enumerate(totals):
                                v.store(total, b.gep(place, [b.mul(apart, I64(i))]), streamed)

            one = _Sum(spikes, b, v, x, offsets, weights, v.integer(begin), v.integer(v.move(begin, 1)))
            one.run(n, start, put)
        with b.if_then(stream):
            b.fence("seq_cst")                                      # other threads see what went past the caches

    @intrinsic
    def sums(
        _context: Any, target: Any, _at: Any, _spread: Any, _apart: Any, base: Any, _n: Any, x: Any, _shift: Any,
        offsets: Any, _offset: Any, weights: Any, bounds: Any, _step: Any, _first: Any, _last: Any, _stream: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
            v = Vectors(context, builder, target.dtype)
            values = [v.pointer(target, args[0], args[1]), *args[2:4], v.pointer(base, args[4], I64(0)), args[5],
                      v.pointer(x, args[6], args[7]), v.pointer(offsets, args[8], args[9]),
                      v.pointer(weights, args[10], I64(0)), v.pointer(bounds, args[11], I64(0)), *args[12:]]
            name = "refsnn_sum_spikes" if spikes else "refsnn_sum_runs"
            v.call(name, values, lambda b, own: body(b, Vectors(context, b, target.dtype), own))
            return context.get_dummy_value()

        i, truth = types.intp, types.boolean
        return types.void(target, i, i, i, base, i, x, i, offsets, i, weights, bounds, i, i, i, truth), generate

    return sums


def _add_runs(
    target: Array, at: int, base: Array, start: int, n: int, x: Array, shift: int, offsets: Array, weights: Array,
    first: int, last: int,
) -> None:
    """target[at + m] = base[start + m] + sum of weights[k] * x[offsets[k] + shift + m] over k in first..last; m < n."""
    for m in range(n):
        target[at + m] = base[start + m]
    for k in range(first, last):
        for m in range(n):
            target[at + m] += weights[k] * x[offsets[k] + shift + m]


def _add_spikes(
    target: Array, at: int, base: Array, start: int, n: int, bits: Array, shift: int, offsets: Array, weights: Array,
    first: int, last: int,
) -> None:
    """`add_runs` for packed spikes: offsets and shift count bytes."""
    for m in range(n):
        target[at + m] = base[start + m]
    for k in range(first, last):
        for m in range(n):
            if bits[offsets[k] + shift + m // 8] >> (m % 8) & 1:
                target[at + m] += weights[k]


def _sum(add: Any) -> Any:
    """The plain twins of `sum_runs` and its kin."""

    def sums(
        target: Array, at: int, spread: int, apart: int, base: Array, n: int, x: Array, shift: int, offsets: Array,
        offset: int, weights: Array, bounds: Array, step: int, first: int, last: int, stream: bool,  # noqa: ARG001
    ) -> None:
        """The totals of filters q in first..last: the m-th is base[q] + sum of weights[k] * x[place + shift + m].

        place is offsets[offset + k], for k in bounds[q step]..bounds[q step + 1]. The totals go to at +
        (q - first) spread, vector after vector, `apart` from each other (numbers of a vector: without a gap; else n
        must fill vectors). `stream`: past the caches, where vectors are aligned. For packed spikes, x, offsets and
        shift count bytes.
        """
        size = max(8, REGISTER // target.itemsize)
        for q in range(first, last):
            own, begin, end = np.full(n, base[q], target.dtype), bounds[q * step], bounds[q * step + 1]
            add(own, 0, own, 0, n, x, shift, offsets[offset:], weights, begin, end)
            for m in range(n):
                target[at + (q - first) * spread + m // size * apart + m % size] = own[m]

    return sums


add_runs, add_spikes = (_adding(False), _adding(True)) if WIDE else (njit(_add_runs), njit(_add_spikes))
sum_runs, sum_spikes = (_summing(False), _summing(True)) if WIDE else (
    njit(_sum(add_runs)), njit(_sum(add_spikes)))
