"""Building blocks of the kernels: sums of runs, and dot products of runs, held in the registers of the processor.

What they do. A run is consecutive numbers in memory. Two operations on runs carry all the sparse arithmetic:

    add_runs     total[m] += sum_k weights[k] * x[offsets[k] + m]          an AXPY for every active weight
    dot_runs     dots[q]  += sum_m gradient[m] * x[offsets[q] + m]         a dot product for every active weight

and x may be spikes, packed one a bit, where a product becomes an addition under a mask:

    add_spikes   total[m] += weights[k]   where bit m of run k is set;  dot_runs alike

Why so. Written as loops, every multiply-add loads and stores its total: the compiler does not hold several vectors of
totals over the loop on k. Here LLVM's vector instructions are written out (`_held_sums`, `_held_dots`): 16 vectors of
totals stay in registers over all k, or eight dot products over all m, and a multiply-add costs one load. Bits make a
map 32 times smaller, so that it stays in the first caches. A product of a weight and a spike is the weight or zero, and
a fused multiply-add rounds once: bits and floats give the same result, to the last bit.

Arrays go by as they are, with a place in them: a slice, or a call that is not inlined, counts references, an atomic
operation for each array, which costs more than a short run does. Each operation has a twin in plain Python, which runs
under NUMBA_DISABLE_JIT=1. Every sum is taken in one order, whatever the number of threads.

Numba's cache looks at the file of a kernel only, not at those it uses. `kernel_jit` therefore puts the digest of this
file into the key of every kernel that uses it.
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
    """njit(cache=True, **options) for what uses this file: compiled again when this file changes."""

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

    def call(self, name: str, values: list[Any], body: Callable[[Any, list[Any]], None]) -> None:
        """Call the function of that name, which `body` writes at its first use: pointers go by without counts."""
        module, kind = self.builder.module, ir.FunctionType(ir.VoidType(), [value.type for value in values])
        function = module.globals.get(name)
        if function is None:
            function = ir.Function(module, kind, name)
            function.linkage = "internal"
            builder = ir.IRBuilder(function.append_basic_block())
            body(builder, list(function.args))
            builder.ret_void()
        self.builder.call(function, values)

    def held(self, values: list[Any]) -> list[Any]:
        """Variables that LLVM keeps in registers."""
        return [cgutils.alloca_once_value(self.builder, value) for value in values]

    def sums_of(self, values: list[Any]) -> list[Any]:
        """The sum of each vector, as the first numbers of one vector or more: neighbours are added, and again."""
        b, lanes, length = self.builder, ir.VectorType(ir.IntType(32), self.size), self.size
        while length > 1:
            pairs = list(zip(values[::2], values[1::2], strict=True)) if len(values) > 1 else [(values[0], values[0])]
            even, odd = (ir.Constant(lanes, list(range(start, 2 * self.size, 2))) for start in (0, 1))
            values = [b.fadd(b.shuffle_vector(p, q, even), b.shuffle_vector(p, q, odd)) for p, q in pairs]
            length //= 2
        return values

    def add(self, variable: Any, value: Any, factor: Any) -> None:
        """variable += value * factor."""
        b = self.builder
        b.store(b.fadd(b.fmul(value, factor, flags=FUSED), b.load(variable), flags=FUSED), variable)

    def add_where(self, mask: Any, variable: Any, value: Any) -> None:
        """variable += value where the mask is true."""
        b = self.builder
        before = b.load(variable)
        b.store(b.select(mask, b.fadd(before, value), before), variable)


def _adding(spikes: bool) -> Any:
    """The intrinsic of `add_runs` (or `add_spikes`): one function of pointers, in which vectors of totals are held."""

    def body(b: Any, v: "_Vectors", args: Any) -> None:
        target, base, n, x, offsets, weights, first, last = args
        done, count = I64(0), HELD
        while count:                                    # 16 vectors a pass over all k, then what is left: 8, 4, 2, 1
            stop = b.and_(n, I64(-count * v.size))
            with cgutils.for_range_slice(b, done, stop, I64(count * v.size)) as (m, _):
                totals = v.held([v.load(b.gep(base, [b.add(m, I64(i * v.size))])) for i in range(count)])
                with cgutils.for_range_slice(b, first, last, I64(1)) as (k, _):
                    run, weight = b.load(b.gep(offsets, [k])), v.repeat(b.load(b.gep(weights, [k])))
                    run = b.gep(x, [b.add(run, b.lshr(m, I64(3)) if spikes else m)])
                    for i, total in enumerate(totals):
                        if spikes:
                            v.add_where(v.mask(v.move(run, i * v.size // 8)), total, weight)
                        else:
                            v.add(total, v.load(v.move(run, i * v.size)), weight)
                for i, total in enumerate(totals):
                    v.store(b.load(total), b.gep(target, [b.add(m, I64(i * v.size))]))
            done, count = stop, count // 2
        with cgutils.for_range_slice(b, done, n, I64(1)) as (m, _):     # what fills no vector
            sum_ = cgutils.alloca_once_value(b, b.load(b.gep(base, [m])))
            with cgutils.for_range_slice(b, first, last, I64(1)) as (k, _):
                run, weight = b.load(b.gep(offsets, [k])), b.load(b.gep(weights, [k]))
                if spikes:
                    byte = b.load(b.gep(x, [b.add(run, b.lshr(m, I64(3)))]))
                    bit = b.and_(b.lshr(byte, b.trunc(b.and_(m, I64(7)), byte.type)), byte.type(1))
                    v.add_where(b.icmp_unsigned("!=", bit, byte.type(0)), sum_, weight)
                else:
                    v.add(sum_, b.load(b.gep(x, [b.add(run, m)])), weight)
            b.store(b.load(sum_), b.gep(target, [m]))

    @intrinsic
    def add(
        _context: Any, target: Any, _at: Any, base: Any, _start: Any, _n: Any, x: Any, _shift: Any, offsets: Any,
        weights: Any, _first: Any, _last: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
            v = _Vectors(context, builder, target.dtype)
            values = [v.pointer(target, args[0], args[1]), v.pointer(base, args[2], args[3]), args[4],
                      v.pointer(x, args[5], args[6]), v.pointer(offsets, args[7], I64(0)),
                      v.pointer(weights, args[8], I64(0)), args[9], args[10]]
            name = f"refsnn_add_{'spikes' if spikes else 'runs'}_{target.dtype}"
            v.call(name, values, lambda b, own: body(b, _Vectors(context, b, target.dtype), own))
            return context.get_dummy_value()

        i = types.intp
        return types.void(target, i, base, i, i, x, i, offsets, weights, i, i), generate

    return add


def _held_dots(filters: int, count: int, spikes: bool) -> Any:
    """Intrinsic: filters x `count` dot products, each a vector of partial sums in a register, over rows of n numbers.

    dots[place + f spread + q] for offsets[first + q] and f in 0..filters; the rest as `dot_runs`; n fills vectors.
    """

    @intrinsic
    def dots(
        _context: Any, dots: Any, _place: Any, _spread: Any, gradient: Any, _at: Any, _apart: Any, _near: Any, x: Any,
        offsets: Any, _first: Any, _far: Any, _rows: Any, _n: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
            b, v = builder, _Vectors(context, builder, dots.dtype)
            totals = v.held([ir.Constant(v.type, None)] * (filters * count))
            runs = [b.load(v.pointer(offsets, args[8], b.add(args[9], I64(q)))) for q in range(count)]
            runs = [v.pointer(x, args[7], run) for run in runs]
            base = v.pointer(gradient, args[3], args[4])
            bases = [b.gep(base, [b.mul(args[5], I64(f))]) for f in range(filters)]
            with cgutils.for_range_slice(b, I64(0), args[11], I64(1)) as (h, _):
                here = [b.gep(p, [b.mul(h, args[10])]) for p in runs]
                gradients = [b.gep(p, [b.mul(h, args[6])]) for p in bases]
                with cgutils.for_range_slice(b, I64(0), args[12], I64(v.size)) as (m, _):
                    values = [v.load(b.gep(p, [m])) for p in gradients]
                    for q, p in enumerate(here):
                        factor = v.mask(b.gep(p, [b.lshr(m, I64(3))])) if spikes else v.load(b.gep(p, [m]))
                        for f, value in enumerate(values):
                            if spikes:
                                v.add_where(factor, totals[f * count + q], value)
                            else:
                                v.add(totals[f * count + q], value, factor)
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


def _moving() -> tuple[Any, Any, Any]:
    """Intrinsics: how many numbers a vector of an array's numbers has; copy n numbers; write n equal numbers."""

    @intrinsic
    def vector(_context: Any, array: Any) -> Any:
        size = REGISTER // (array.dtype.bitwidth // 8)
        return types.intp(array), lambda _context, _builder, _signature, _args: I64(size)

    @intrinsic
    def copying(_context: Any, target: Any, _at: Any, source: Any, _start: Any, _n: Any) -> Any:
        def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
            v = _Vectors(context, builder, target.dtype)
            to, of = v.pointer(target, args[0], args[1]), v.pointer(source, args[2], args[3])
            cgutils.raw_memcpy(builder, to, of, args[4], v.align)
            return context.get_dummy_value()

        return types.void(target, types.intp, source, types.intp, types.intp), generate

    @intrinsic
    def filling(_context: Any, target: Any, _at: Any, _n: Any, _value: Any) -> Any:
        def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
            to = _Vectors(context, builder, target.dtype).pointer(target, args[0], args[1])
            with cgutils.for_range_slice(builder, I64(0), args[2], I64(1)) as (m, _):
                builder.store(args[3], builder.gep(to, [m]))
            return context.get_dummy_value()

        return types.void(target, types.intp, types.intp, target.dtype), generate

    return vector, copying, filling


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
_pairs8, _spike_pairs8 = _held_dots(2, 8, False), _held_dots(2, 8, True)


@njit(cache=True, error_model="numpy")
def whole(n: int, size: int) -> int:
    """How many of n numbers fill vectors of `size`, a power of two; the rest is for plain loops."""
    return n & -size


@njit(cache=True, error_model="numpy")
def pack_spikes(bits: Array, at: int, x: Array, start: int, n: int) -> bool:
    """Pack n numbers, a multiple of 8, from x[start] on into bytes from bits[at] on. False where one is not 0 or 1."""
    done = whole(n, _vector(x)) if WIDE else 0
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


def _fill(target: Array, at: int, n: int, value: Any) -> None:
    """target[at : at + n] = value."""
    for m in range(n):
        target[at + m] = value


def _copy(target: Array, at: int, source: Array, start: int, n: int) -> None:
    """target[at : at + n] = source[start : start + n]."""
    for m in range(n):
        target[at + m] = source[start + m]


add_runs, add_spikes = (_adding(False), _adding(True)) if WIDE else (_add_runs, _add_spikes)
_vector, copy, fill = _moving() if WIDE else (len, _copy, _fill)


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def dot_runs(
    dots: Array, many: int, spread: int, gradient: Array, at: int, apart: int, near: int, x: Array, bits: Array,
    packed: bool, offsets: Array, first: int, last: int, far: int, rows: int, n: int,
) -> None:
    """dots[f spread + k] = sum of gradient[at + f apart + h near + m] * x[offsets[k] + h far + m] over h and m.

    For k in first..last and f in 0..many (1 or 2); h counts `rows` rows of n numbers m. Packed: bits stand for x, and
    offsets and far count bytes. A last group that is not full takes some k a second time.
    """
    done, k = whole(n, _vector(gradient)) if WIDE else 0, first
    while k < last:
        count = 8 if last - first >= 8 else 4 if last - first >= 4 else 1
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


@njit(cache=True, error_model="numpy")
def _dot_group(
    dots: Array, place: int, gradient: Array, at: int, near: int, x: Array, bits: Array, packed: bool, offsets: Array,
    k: int, count: int, far: int, rows: int, n: int,
) -> None:
    """Eight, four or one dot product of whole vectors."""
    if count == 8 and packed:
        _spike_dots8(dots, place, 0, gradient, at, 0, near, bits, offsets, k, far, rows, n)
    elif count == 8:
        _dots8(dots, place, 0, gradient, at, 0, near, x, offsets, k, far, rows, n)
    elif count == 4 and packed:
        _spike_dots4(dots, place, 0, gradient, at, 0, near, bits, offsets, k, far, rows, n)
    elif count == 4:
        _dots4(dots, place, 0, gradient, at, 0, near, x, offsets, k, far, rows, n)
    elif packed:
        _spike_dots1(dots, place, 0, gradient, at, 0, near, bits, offsets, k, far, rows, n)
    else:
        _dots1(dots, place, 0, gradient, at, 0, near, x, offsets, k, far, rows, n)


@njit(cache=True, error_model="numpy", fastmath={"contract"})
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


@njit(cache=True)
def empty(n: int, dtype: Any) -> Array:
    """(n,) numbers that start at a cache line: a vector that lies across two lines costs two loads."""
    numbers = np.empty(n + 16, dtype)
    skip = -numbers.ctypes.data % 64 // numbers.itemsize
    return numbers[skip : skip + n]


@njit(cache=True)
def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


@njit(cache=True)
def no_bias(rows: int, dtype: Any) -> Array:
    """A bias of zeros: made outside the parallel kernel, which would make this a parallel region."""
    return np.zeros(rows, dtype)
