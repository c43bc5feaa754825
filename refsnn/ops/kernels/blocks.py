"""Building blocks of the kernels: sums of runs, and dot products of runs, held in the registers of the processor.

What they do. A run is consecutive numbers in memory. Two operations on runs carry all the sparse arithmetic:

    add_runs     total[m] += sum_k weights[k] * x[offsets[k] + m]          an AXPY for every active weight
    dot_runs     dots[q]  += sum_m gradient[m] * x[offsets[q] + m]         a dot product for every active weight

and each has a twin for x made of spikes, packed one a bit, where a product becomes an addition under a mask:

    add_spikes   total[m] += weights[k]   where bit m of run k is set
    dot_spikes   dots[q]  += gradient[m]  where bit m of run q is set

Why so. Written as loops, every multiply-add loads and stores its total: the compiler does not hold several vectors of
totals over the loop on k. Here LLVM's vector instructions are written out (`_held_sums`, `_held_dots`): 16 vectors of
totals stay in registers over all k, or eight dot products over all m, and a multiply-add costs one load. Bits make a
map 32 times smaller, so that it stays in the first caches. A product of a weight and a spike is the weight or zero, and
a fused multiply-add rounds once: bits and floats give the same result, to the last bit.

Each operation ends with the same loop in plain Python, which takes what does not fill a vector; it is all that runs
under NUMBA_DISABLE_JIT=1. Numbers are added in one order, whatever the vector length and the number of threads.

Numba's cache looks at the file of a kernel only, not at this one. `kernel_jit` therefore puts the digest of this file
into the key of every kernel that uses it.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils, config
from numba.core.caching import FunctionCache
from numba.core.registry import cpu_target
from numba.extending import intrinsic

Array = npt.NDArray[Any]

WIDE: bool = not vars(config)["DISABLE_JIT"]
DIGEST = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
I64, FUSED = ir.IntType(64), ("contract",)


def _register_bytes() -> int:
    """Bytes of a vector register of the machine that Numba compiles for; LLVM splits vectors that are too long."""
    return 64 if "+avx512f" in cpu_target.target_context.codegen().magic_tuple()[2] else 32


REGISTER = _register_bytes() if WIDE else 64
HELD = 16 if REGISTER == 64 else 8      # vectors of totals: half the registers


class _Cache(FunctionCache):
    """Numba's cache on disk, with this file's digest in the key."""

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return (*super()._index_key(sig, codegen), DIGEST)


def kernel_jit(**options: Any) -> Callable[[Any], Any]:
    """njit(cache=True, **options) for a kernel that uses this file: compiled again when this file changes."""

    def decorate(function: Any) -> Any:
        dispatcher = njit(**options)(function)
        if WIDE:
            dispatcher._cache = _Cache(dispatcher.py_func)
        return dispatcher

    return decorate


class _Vectors:
    """The vocabulary of the two generators: loads and stores of one vector of `dtype`, addresses in numbers."""

    def __init__(self, context: Any, builder: Any, dtype: Any) -> None:
        self.context, self.builder = context, builder
        self.align = dtype.bitwidth // 8
        self.size = REGISTER // self.align
        self.type = ir.VectorType(context.get_value_type(dtype), self.size)
        self.masks = ir.VectorType(ir.IntType(1), self.size)

    def pointer(self, array_type: Any, array: Any, at: Any) -> Any:
        """Address of array[at]."""
        return self.builder.gep(self.context.make_array(array_type)(self.context, self.builder, array).data, [at])

    def move(self, pointer: Any, count: int) -> Any:
        """The pointer `count` numbers on."""
        return self.builder.gep(pointer, [I64(count)])

    def load(self, pointer: Any) -> Any:
        """The vector at a pointer to a number."""
        b = self.builder
        return b.load(b.bitcast(pointer, self.type.as_pointer()), align=self.align)

    def store(self, value: Any, pointer: Any) -> None:
        """The reverse of `load`."""
        b = self.builder
        b.store(value, b.bitcast(pointer, self.type.as_pointer()), align=self.align)

    def mask(self, pointer: Any) -> Any:
        """The bits at a pointer to a byte, as truth values."""
        b, bits = self.builder, ir.IntType(self.size)
        return b.bitcast(b.load(b.bitcast(pointer, bits.as_pointer()), align=1), self.masks)

    def repeat(self, number: Any) -> Any:
        """A vector of one number."""
        b, none = self.builder, ir.Constant(self.type, ir.Undefined)
        first = b.insert_element(none, number, ir.IntType(32)(0))
        return b.shuffle_vector(first, none, ir.Constant(ir.VectorType(ir.IntType(32), self.size), [0] * self.size))

    def held(self, pointer: Any, count: int) -> list[Any]:
        """`count` vectors from a pointer on, as variables that LLVM keeps in registers."""
        variables = [cgutils.alloca_once(self.builder, self.type) for _ in range(count)]
        for i, variable in enumerate(variables):
            self.builder.store(self.load(self.move(pointer, i * self.size)), variable)
        return variables

    def release(self, variables: list[Any], pointer: Any) -> None:
        """Write them back."""
        for i, variable in enumerate(variables):
            self.store(self.builder.load(variable), self.move(pointer, i * self.size))

    def add(self, variable: Any, value: Any, factor: Any) -> None:
        """variable += value * factor."""
        b = self.builder
        b.store(b.fadd(b.fmul(value, factor, flags=FUSED), b.load(variable), flags=FUSED), variable)

    def add_where(self, mask: Any, variable: Any, value: Any) -> None:
        """variable += value where the mask is true."""
        b = self.builder
        before = b.load(variable)
        b.store(b.select(mask, b.fadd(before, value), before), variable)


def _held_sums(count: int, spikes: bool) -> Any:
    """Intrinsic: `count` vectors of totals in registers over all k in first..last."""

    @intrinsic
    def sums(
        _context: Any, total: Any, _at: Any, x: Any, _shift: Any, offsets: Any, weights: Any, _first: Any, _last: Any
    ) -> Any:
        def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
            v = _Vectors(context, builder, total.dtype)
            target, source = v.pointer(total, args[0], args[1]), v.pointer(x, args[2], args[3])
            variables = v.held(target, count)
            with cgutils.for_range_slice(builder, args[6], args[7], I64(1)) as (k, _):
                run = builder.gep(source, [builder.load(v.pointer(offsets, args[4], k))])
                weight = v.repeat(builder.load(v.pointer(weights, args[5], k)))
                for i, variable in enumerate(variables):
                    if spikes:
                        v.add_where(v.mask(v.move(run, i * v.size // 8)), variable, weight)
                    else:
                        v.add(variable, v.load(v.move(run, i * v.size)), weight)
            v.release(variables, target)
            return context.get_dummy_value()

        integer = types.intp
        return types.void(total, integer, x, integer, offsets, weights, integer, integer), generate

    return sums


def _held_dots(filters: int, count: int, spikes: bool) -> Any:
    """Intrinsic: filters x `count` vectors of partial sums in registers over `rows` runs of n numbers, n a multiple.

    lanes[f, q] += gradient run f * x run q; rows of gradient lie `near` numbers apart, those of x `far`.
    """

    @intrinsic
    def dots(
        _context: Any, lanes: Any, gradient: Any, _at: Any, _apart: Any, _near: Any, x: Any, offsets: Any, _first: Any,
        _far: Any, _rows: Any, _n: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
            b, v = builder, _Vectors(context, builder, lanes.dtype)
            target = v.pointer(lanes, args[0], I64(0))
            variables = v.held(target, filters * count)
            runs = [b.load(v.pointer(offsets, args[6], b.add(args[7], I64(q)))) for q in range(count)]
            runs = [v.pointer(x, args[5], run) for run in runs]
            base = v.pointer(gradient, args[1], args[2])
            bases = [b.gep(base, [b.mul(args[3], I64(f))]) for f in range(filters)]
            with cgutils.for_range_slice(b, I64(0), args[9], I64(1)) as (h, _):
                here = [b.gep(p, [b.mul(h, args[8])]) for p in runs]
                rows_of = [b.gep(p, [b.mul(h, args[4])]) for p in bases]
                with cgutils.for_range_slice(b, I64(0), args[10], I64(v.size)) as (m, _):
                    values = [v.load(b.gep(p, [m])) for p in rows_of]
                    for q, p in enumerate(here):
                        factor = v.mask(b.gep(p, [b.lshr(m, I64(3))])) if spikes else v.load(b.gep(p, [m]))
                        for f, value in enumerate(values):
                            if spikes:
                                v.add_where(factor, variables[f * count + q], value)
                            else:
                                v.add(variables[f * count + q], value, factor)
            v.release(variables, target)
            return context.get_dummy_value()

        i = types.intp
        return types.void(lanes, gradient, i, i, i, x, offsets, i, i, i, i), generate

    return dots


def _packing() -> Any:
    """Intrinsic: bit m of bits[at:] = x[start + m] == 1, for n numbers, n a multiple; whether all are 0 or 1."""

    @intrinsic
    def pack(_context: Any, bits: Any, _at: Any, x: Any, _start: Any, _n: Any) -> Any:
        def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
            b, v = builder, _Vectors(context, builder, x.dtype)
            source, target = v.pointer(x, args[2], args[3]), v.pointer(bits, args[0], args[1])
            one, integer = ir.Constant(v.type, [1.0] * v.size), ir.IntType(v.size)
            good = cgutils.alloca_once_value(b, integer(-1))
            with cgutils.for_range_slice(b, I64(0), args[4], I64(v.size)) as (m, _):
                numbers = v.load(b.gep(source, [m]))
                spikes = b.fcmp_ordered("==", numbers, one)
                silent = b.fcmp_ordered("==", numbers, ir.Constant(v.type, [0.0] * v.size))
                place = b.bitcast(b.gep(target, [b.lshr(m, I64(3))]), integer.as_pointer())
                b.store(b.bitcast(spikes, integer), place, align=1)
                b.store(b.and_(b.load(good), b.bitcast(b.or_(spikes, silent), integer)), good)
            return b.icmp_signed("==", b.load(good), integer(-1))

        return types.boolean(bits, types.intp, x, types.intp, types.intp), generate

    return pack


_pack = _packing()
_dots8, _dots4, _dots1 = (_held_dots(1, count, False) for count in (8, 4, 1))
_spike_dots8, _spike_dots4, _spike_dots1 = (_held_dots(1, count, True) for count in (8, 4, 1))


@njit(cache=True)
def whole(n: int, itemsize: int) -> int:
    """How many of n numbers fill vectors; the rest is for plain loops."""
    return n - n % (REGISTER // itemsize) if WIDE else 0


@njit(cache=True)
def pack_spikes(bits: Array, at: int, x: Array, start: int, n: int) -> bool:
    """Pack n numbers, a multiple of 8, from x[start] on into bytes from bits[at] on. False where one is not 0 or 1."""
    done = whole(n, x.itemsize)
    if WIDE and not _pack(bits, at, x, start, done):
        return False
    for m in range(done, n, 8):
        byte = np.int64(0)
        for i in range(8):
            number = x[start + m + i]
            if number != 0 and number != 1:
                return False
            byte |= np.int64(number == 1) << i
        bits[at + m // 8] = byte
    return True


@njit(cache=True, fastmath={"contract"})
def dot_runs(
    dots: Array, gradient: Array, at: int, near: int, x: Array, offsets: Array, first: int, last: int, far: int,
    rows: int, n: int,
) -> None:
    """dots[k] = sum over h and m of gradient[at + h near + m] * x[offsets[k] + h far + m], for k in first..last.

    h counts `rows` rows of n numbers. Vectors are summed lane by lane; lanes are added in order at the end.
    """
    size, done, k = REGISTER // gradient.itemsize, whole(n, gradient.itemsize), first
    lanes = np.empty((8, size), gradient.dtype)
    while k < last:
        fill(lanes.reshape(-1), gradient.dtype.type(0))
        count = 8 if k + 8 <= last else 4 if k + 4 <= last else 1
        if WIDE:
            if count == 8:
                _dots8(lanes, gradient, at, 0, near, x, offsets, k, far, rows, done)
            elif count == 4:
                _dots4(lanes, gradient, at, 0, near, x, offsets, k, far, rows, done)
            else:
                _dots1(lanes, gradient, at, 0, near, x, offsets, k, far, rows, done)
        for q in range(count):
            for h in range(rows if done < n else 0):
                a, b = at + h * near, offsets[k + q] + h * far
                for m in range(done, n):
                    lanes[q, (m - done) % size] += gradient[a + m] * x[b + m]
            dots[k + q] = sum_of(lanes[q])
        k += count


@njit(cache=True, fastmath={"contract"})
def dot_spikes(
    dots: Array, gradient: Array, at: int, near: int, bits: Array, offsets: Array, first: int, last: int, far: int,
    rows: int, n: int,
) -> None:
    """`dot_runs` for packed spikes: offsets and far count bytes."""
    size, done, k = REGISTER // gradient.itemsize, whole(n, gradient.itemsize), first
    lanes = np.empty((8, size), gradient.dtype)
    while k < last:
        fill(lanes.reshape(-1), gradient.dtype.type(0))
        count = 8 if k + 8 <= last else 4 if k + 4 <= last else 1
        if WIDE:
            if count == 8:
                _spike_dots8(lanes, gradient, at, 0, near, bits, offsets, k, far, rows, done)
            elif count == 4:
                _spike_dots4(lanes, gradient, at, 0, near, bits, offsets, k, far, rows, done)
            else:
                _spike_dots1(lanes, gradient, at, 0, near, bits, offsets, k, far, rows, done)
        for q in range(count):
            for h in range(rows if done < n else 0):
                a, b = at + h * near, offsets[k + q] + h * far
                for m in range(done, n):
                    if bits[b + m // 8] >> (m % 8) & 1:
                        lanes[q, (m - done) % size] += gradient[a + m]
            dots[k + q] = sum_of(lanes[q])
        k += count


@njit(cache=True)
def sum_of(lanes: Array) -> Any:
    """The sum of a few numbers, first to last."""
    total = lanes[0]
    for i in range(1, lanes.size):
        total += lanes[i]
    return total


@njit(cache=True)
def fill(target: Array, value: Any) -> None:
    """target[:] = value, as a loop, which compiles in a tenth of the time."""
    for m in range(target.size):
        target[m] = value
