"""Sums for weights that are nearly all there: several filters at a time, which share what they read.

    sum_dense    totals of FILTERS filters: total[f, m] += weights[k, f] * x[offsets[k] + m], over all columns k
    sum_tables   the same for spikes, four channels at once: total[f, m] += tables[k, f, x[offsets[k] + m]]

Why so. Filters that have all columns have the same runs: a vector of x, once loaded, serves them all (8 filters, 2
vectors each), and the multiply-adds wait for nothing. Of spikes, the four of neighbouring channels are one of sixteen
numbers, a byte (`merge_spikes`). What they add to a total is one of sixteen sums of weights: a table that fits a
register, in which one instruction looks up sixteen places. One lookup and one addition stand for four multiply-adds:
600 GFLOP/s a core (Zen 5) where the peak of multiply-adds is 270. Float32 and AVX-512 only (`TABLES`).
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from refsnn.ops.kernels.blocks.vectors import I64, REGISTER, WIDE, Vectors, kernel_jit, vector, whole

Array = npt.NDArray[Any]

MERGED = 4                                              # channels of a byte
TABLES = REGISTER == 64                                 # whether a register holds a table of 2^4 floats
FILTERS, LOOKERS = (8, 4) if REGISTER == 64 else (4, 4) # filters at a time of `sum_dense`, of `sum_tables`


def _dense(lookup: bool, filters: int, vectors: int) -> Any:
    """The intrinsic of `sum_dense` (or `sum_tables`): filters x vectors totals in registers."""

    def body(b: Any, v: Vectors, args: Any) -> None:
        target, spread, apart, base, n, x, offsets, columns, weights, many, stream = args
        places = b.or_(b.ptrtoint(target, I64), b.mul(b.or_(spread, apart), I64(v.align)))
        stream = b.and_(stream, b.icmp_signed("==", b.and_(places, I64(REGISTER - 1)), I64(0)))
        there = [b.icmp_signed("<", I64(f), many) for f in range(filters)]
        levels = [b.load(b.gep(base, [b.select(there[f], I64(f), I64(0))])) for f in range(filters)]
        done, count = I64(0), vectors
        while count:
            stop = b.and_(n, I64(-count * v.size))
            with cgutils.for_range_slice(b, done, stop, I64(count * v.size)) as (m, _):
                totals = [v.held([v.repeat(level)] * count) for level in levels]
                with cgutils.for_range_slice(b, I64(0), columns, I64(1)) as (k, _):
                    run = b.gep(x, [b.add(v.integer(b.gep(offsets, [k])), m)])
                    own = b.gep(weights, [b.mul(k, I64(filters * (v.size if lookup else 1)))])
                    _add(lookup, b, v, run, own, totals)
                start = b.mul(b.lshr(m, I64(v.size.bit_length() - 1)), apart)
                for f, line in enumerate(totals):
                    with b.if_then(there[f]):
                        place = b.gep(target, [b.add(start, b.mul(spread, I64(f)))])
                        _put(b, v, place, apart, [b.load(total) for total in line], stream)
            done, count = stop, count // 2
        with b.if_then(stream):
            b.fence("seq_cst")                                      # other threads see what went past the caches

    @intrinsic
    def sums(
        _context: Any, target: Any, _at: Any, _spread: Any, _apart: Any, base: Any, _first: Any, _n: Any, x: Any,
        _shift: Any, offsets: Any, _offset: Any, _columns: Any, weights: Any, _place: Any, _many: Any, _stream: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
            if lookup and not (TABLES and target.dtype == types.float32):       # never run
                return context.get_dummy_value()
            v = Vectors(context, builder, target.dtype)
            values = [v.pointer(target, args[0], args[1]), *args[2:4], v.pointer(base, args[4], args[5]), args[6],
                      v.pointer(x, args[7], args[8]), v.pointer(offsets, args[9], args[10]), args[11],
                      v.pointer(weights, args[12], args[13]), *args[14:]]
            name = "refsnn_sum_tables" if lookup else "refsnn_sum_dense"
            v.call(name, values, lambda b, own: body(b, Vectors(context, b, target.dtype), own))
            return context.get_dummy_value()

        i, truth = types.intp, types.boolean
        return types.void(target, i, i, i, base, i, i, x, i, offsets, i, i, weights, i, i, truth), generate

    return sums


def _add(lookup: bool, b: Any, v: Vectors, run: Any, weights: Any, totals: list[list[Any]]) -> None:
    """One column to all totals, [filter][vector]."""
    count = range(len(totals[0]))
    if lookup:
        small, lanes = ir.VectorType(ir.IntType(8), v.size), ir.VectorType(ir.IntType(32), v.size)
        places = [b.zext(v.load(v.move(run, i * v.size), small), lanes) for i in count]
        kind = ir.FunctionType(v.type, [v.type, lanes])
        look = cgutils.get_or_insert_function(b.module, kind, "llvm.x86.avx512.permvar.sf.512")
        for f, line in enumerate(totals):
            table = v.load(v.move(weights, f * v.size))
            for place, total in zip(places, line, strict=True):
                b.store(b.fadd(b.load(total), b.call(look, [table, place])), total)
        return
    values = [v.load(v.move(run, i * v.size)) for i in count]
    for f, line in enumerate(totals):
        weight = v.repeat(b.load(v.move(weights, f)))
        for value, total in zip(values, line, strict=True):
            v.add(total, value, weight)


def _put(b: Any, v: Vectors, place: Any, apart: Any, totals: list[Any], stream: Any) -> None:
    """Store vectors `apart` from each other, past the caches or not."""
    with b.if_else(stream) as (past, through):
        for branch, streamed in ((past, True), (through, False)):
            with branch:
                for i, total in enumerate(totals):
                    v.store(total, b.gep(place, [b.mul(apart, I64(i))]), streamed)


def _plain(lookup: bool, filters: int) -> Any:
    """The plain twins."""

    def sums(
        target: Array, at: int, spread: int, apart: int, base: Array, first: int, n: int, x: Array, shift: int,
        offsets: Array, offset: int, columns: int, weights: Array, place: int, many: int, stream: bool,  # noqa: ARG001
    ) -> None:
        """Totals of the filters first..first + many, at most FILTERS (LOOKERS): of filter first + f, for m < n,

            base[first + f] + sum over k < columns of weights[place + k FILTERS + f] * x[here + m]

        with here = offsets[offset + k] + shift (`sum_tables`: weights[place + (k LOOKERS + f) 16 + x[here + m]]).
        n fills vectors; target as in `sum_runs`.
        """
        size = max(8, REGISTER // target.itemsize)
        for f in range(many):
            own = np.full(n, base[first + f], target.dtype)
            for k in range(columns):
                run = x[offsets[offset + k] + shift : offsets[offset + k] + shift + n]
                here = place + (k * filters + f) * (16 if lookup else 1)
                own += weights[here + run.astype(np.int64)] if lookup else weights[here] * run
            for m in range(n):
                target[at + f * spread + m // size * apart + m % size] = own[m]

    return sums


sum_dense = _dense(False, FILTERS, 2) if WIDE else njit(_plain(False, FILTERS))
sum_tables = _dense(True, LOOKERS, 4) if WIDE else njit(_plain(True, LOOKERS))


def _tabling() -> Any:
    """The intrinsic of `fill_table`."""

    @intrinsic
    def fill(_context: Any, tables: Any, _at: Any, weights: Any, _first: Any, _apart: Any) -> Any:
        def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
            if not (TABLES and tables.dtype == types.float32):                  # never run
                return context.get_dummy_value()
            b, v = builder, Vectors(context, builder, tables.dtype)
            first, table = v.pointer(weights, args[2], args[3]), ir.Constant(v.type, None)
            for i in range(MERGED):
                weight = v.repeat(b.load(b.gep(first, [b.mul(args[4], I64(i))])))
                lanes = ir.Constant(ir.VectorType(ir.IntType(1), v.size), [p >> i & 1 for p in range(v.size)])
                table = b.select(lanes, b.fadd(table, weight), table)
            v.store(table, v.pointer(tables, args[0], args[1]))
            return context.get_dummy_value()

        i = types.intp
        return types.void(tables, i, weights, i, i), generate

    return fill


def _fill_table(tables: Array, at: int, weights: Array, first: int, apart: int) -> None:
    """tables[at + p] = the sum of weights[first + i apart] over the bits i of p, for p < 16."""
    tables[at] = 0
    for i in range(MERGED):
        for p in range(1 << i):
            tables[at + (1 << i) + p] = tables[at + p] + weights[first + i * apart]


fill_table = _tabling() if WIDE else njit(_fill_table)


def _merging() -> Any:
    """Intrinsic: `merge_spikes` for n that fills vectors."""

    @intrinsic
    def merge(_context: Any, target: Any, _at: Any, x: Any, _start: Any, _n: Any, _bit: Any) -> Any:
        def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
            b, v = builder, Vectors(context, builder, x.dtype)
            to, of, small = v.pointer(target, args[0], args[1]), v.pointer(x, args[2], args[3]), v.size
            kind, whole_number = ir.VectorType(ir.IntType(8), small), isinstance(x.dtype, types.Integer)
            zero, one = (ir.Constant(v.type, [i if whole_number else float(i)] * small) for i in (0, 1))
            value, nothing = v.repeat(b.trunc(args[5], ir.IntType(8))), ir.Constant(kind, None)
            good = cgutils.alloca_once_value(b, ir.IntType(small)(-1))
            equal = b.icmp_unsigned if whole_number else b.fcmp_ordered
            with cgutils.for_range_slice(b, I64(0), args[4], I64(small)) as (m, _):
                numbers, place = v.load(b.gep(of, [m])), b.bitcast(b.gep(to, [m]), kind.as_pointer())
                spikes, silent = equal("==", numbers, one), equal("==", numbers, zero)
                b.store(b.or_(b.load(place, align=1), b.select(spikes, value, nothing)), place, align=1)
                b.store(b.and_(b.load(good), b.bitcast(b.or_(spikes, silent), ir.IntType(small))), good)
            return b.icmp_signed("==", b.load(good), ir.IntType(small)(-1))

        i = types.intp
        return types.boolean(target, i, x, i, i, i), generate

    return merge


_merge = _merging()


@kernel_jit(error_model="numpy")
def merge_spikes(target: Array, at: int, x: Array, start: int, n: int, bit: int) -> bool:
    """target[at + m] |= bit where x[start + m] is 1, for n numbers. False where one is not 0 or 1."""
    done = whole(n, vector(x)) if WIDE else 0
    if WIDE and not _merge(target, at, x, start, done, bit):
        return False
    for m in range(done, n):
        number = x[start + m]
        if number != 0 and number != 1:
            return False
        if number == 1:
            target[at + m] |= bit
    return True
