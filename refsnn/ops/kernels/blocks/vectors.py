"""The machine underneath: vectors as LLVM's instructions have them, and kernels whose cache knows these files.

`kernel_jit` compiles what uses building blocks. Numba's cache on disk looks at the file of a kernel only, not at those
it uses; `kernel_jit` therefore puts the digest of all files of this folder into the key of every kernel.

`Vectors` is the vocabulary of the generators in `sums.py`, `dots.py` and `dense.py`: loads, stores and masks of one
register. Two choices of it were measured (Zen 5, AVX-512):

Masks. A mask register filled from memory costs a cycle, and so do sixteen additions under it. A word of bits repeated
over a vector and tested against one bit a lane costs half a cycle: 168 GFLOP/s of masked sums against 137.

Stores past the caches (`stream`): a line that is written as a whole need not be read before. 45 GB/s against 36 from
one core, for outputs that are larger than the caches; smaller ones stay there for the next operation.
"""

import hashlib
import sys
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

COMPILED: bool = not vars(config)["DISABLE_JIT"]
FEATURES = cpu_target.target_context.codegen().magic_tuple()[2] if COMPILED else ""
# Whether there are vectors worth writing out, 64 or 32 bytes: else the plain twins run, compiled by Numba as they are.
WIDE: bool = "+avx512f" in FEATURES or "+avx2" in FEATURES
DIGEST = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()
I64, FUSED = ir.IntType(64), ("contract",)
LARGE, PAGE, MADV_HUGEPAGE = 2**22, 4096, 14     # bytes of an array that is advised, and of a page; see madvise(2)
STREAM = 2**24  # bytes of an output that is written past the caches: what follows finds little of it there anyway


def _register_bytes() -> int:
    """Bytes of a vector register of the machine that Numba compiles for; LLVM splits vectors that are too long."""
    return 64 if "+avx512f" in FEATURES else 32


REGISTER = _register_bytes() if WIDE else 64
HELD = 16 if REGISTER == 64 else 8      # vectors of totals: half the registers


def length(itemsize: int) -> int:
    """How many numbers of so many bytes a vector has: what a register holds, and at least 8, whose bits are a byte."""
    return max(8, REGISTER // itemsize)


class _Cache(FunctionCache):
    """Numba's cache on disk, with the digest of these files in the key."""

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return (*super()._index_key(sig, codegen), DIGEST)


def kernel_jit(**options: Any) -> Callable[[Any], Any]:
    """njit(cache=True, **options) for what uses building blocks: compiled again when one of their files changes."""

    def decorate(function: Any) -> Any:
        dispatcher = njit(**options)(function)
        if COMPILED:
            dispatcher._cache = _Cache(dispatcher.py_func)
        return dispatcher

    return decorate


def outlined(builder: Any, name: str, values: list[Any], body: Callable[[Any, list[Any]], None]) -> None:
    """Call the function of that name, which `body` writes at its first use.

    For size: LLVM would repeat loops that are written out already, and run out of registers for their addresses.
    """
    module, kind = builder.module, ir.FunctionType(ir.VoidType(), [value.type for value in values])
    function = module.globals.get(name)
    if function is None:
        function = ir.Function(module, kind, name)
        function.linkage = "internal"
        function.attributes.add("noinline")
        function.attributes.add("optsize")
        inner = ir.IRBuilder(function.append_basic_block())
        body(inner, list(function.args))
        inner.ret_void()
    builder.call(function, values)


def fetch(builder: Any, pointer: Any) -> None:
    """Ask for the line at a pointer, which need not be in any array."""
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    builder.call(prefetch, [builder.bitcast(pointer, byte), number(0), number(3), number(1)])


class Vectors:
    """The vocabulary of the generators: loads and stores of one vector of `dtype`, addresses in numbers."""

    def __init__(self, context: Any, builder: Any, dtype: Any) -> None:
        self.context, self.builder = context, builder
        self.align = dtype.bitwidth // 8
        self.size = length(self.align)
        self.type = ir.VectorType(context.get_value_type(dtype), self.size)
        self.word = ir.IntType(dtype.bitwidth)                      # as wide as a number
        self.words = ir.VectorType(self.word, self.size)

    def pointer(self, array_type: Any, array: Any, at: Any) -> Any:
        """Address of array[at]."""
        return self.builder.gep(self.context.make_array(array_type)(self.context, self.builder, array).data, [at])

    def move(self, pointer: Any, count: int) -> Any:
        """The pointer `count` numbers on."""
        return self.builder.gep(pointer, [I64(count)])

    def load(self, pointer: Any, kind: Any = None) -> Any:
        """The vector (or what else `kind` says) at a pointer to a number."""
        b = self.builder
        return b.load(b.bitcast(pointer, (kind or self.type).as_pointer()), align=1 if kind else self.align)

    def store(self, value: Any, pointer: Any, stream: bool = False) -> None:
        """The reverse of `load`; `stream` past the caches, to the start of a line."""
        b = self.builder
        written = b.store(value, b.bitcast(pointer, self.type.as_pointer()), align=REGISTER if stream else self.align)
        if stream:
            written.set_metadata("nontemporal", b.module.add_metadata([ir.IntType(32)(1)]))

    def prefetch(self, pointer: Any) -> None:
        """Ask for the line at a pointer, which need not be in any array."""
        fetch(self.builder, pointer)

    def integer(self, pointer: Any) -> Any:
        """The integer of whatever width at a pointer, as 64 bits."""
        number = self.builder.load(pointer)
        return number if number.type == I64 else self.builder.sext(number, I64)

    def repeat(self, number: Any) -> Any:
        """A vector of one number."""
        b, kind = self.builder, ir.VectorType(number.type, self.size)
        none = ir.Constant(kind, ir.Undefined)
        first = b.insert_element(none, number, ir.IntType(32)(0))
        return b.shuffle_vector(first, none, ir.Constant(ir.VectorType(ir.IntType(32), self.size), [0] * self.size))

    def masks(self, pointer: Any, count: int) -> list[Any]:
        """The bits at a pointer to a byte, as truth values for `count` vectors. Nothing beyond them is read."""
        b, group = self.builder, self.word.width // self.size               # vectors that one word of bits serves
        if count % group:
            bits, truths = ir.IntType(self.size), ir.VectorType(ir.IntType(1), self.size)
            return [b.bitcast(self.load(self.move(pointer, i * self.size // 8), bits), truths) for i in range(count)]
        masks = []
        for i in range(count // group):
            word = self.repeat(self.load(self.move(pointer, i * self.word.width // 8), self.word))
            for j in range(group):
                lanes = ir.Constant(self.words, [1 << (j * self.size + lane) for lane in range(self.size)])
                masks.append(b.icmp_signed("!=", b.and_(word, lanes), ir.Constant(self.words, None)))
        return masks

    def call(self, name: str, values: list[Any], body: Callable[[Any, list[Any]], None]) -> None:
        """Call the function of that name, which `body` writes at its first use: pointers go by without counts."""
        name += "_" + "_".join(str(value.type).strip("*") for value in values if isinstance(value.type, ir.PointerType))
        outlined(self.builder, name, values, body)

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


def _moving() -> tuple[Any, Any, Any, Any]:
    """Intrinsics: how many numbers a vector of an array's numbers has; copy n numbers; write n equal numbers;
    `_gather`."""

    @intrinsic
    def vector(_context: Any, array: Any) -> Any:
        size = length(array.dtype.bitwidth // 8)
        return types.intp(array), lambda _context, _builder, _signature, _args: I64(size)

    @intrinsic
    def copying(_context: Any, target: Any, _at: Any, source: Any, _start: Any, _n: Any) -> Any:
        def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
            v = Vectors(context, builder, target.dtype)
            to, of = v.pointer(target, args[0], args[1]), v.pointer(source, args[2], args[3])
            cgutils.raw_memcpy(builder, to, of, args[4], v.align)
            return context.get_dummy_value()

        return types.void(target, types.intp, source, types.intp, types.intp), generate

    @intrinsic
    def filling(_context: Any, target: Any, _at: Any, _n: Any, _value: Any) -> Any:
        def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
            to = Vectors(context, builder, target.dtype).pointer(target, args[0], args[1])
            with cgutils.for_range_slice(builder, I64(0), args[2], I64(1)) as (m, _):
                builder.store(args[3], builder.gep(to, [m]))
            return context.get_dummy_value()

        return types.void(target, types.intp, types.intp, target.dtype), generate

    @intrinsic
    def gathering(
        _context: Any, target: Any, _at: Any, _near: Any, source: Any, _start: Any, _far: Any, _rows: Any, _apart: Any,
        _n: Any, _count: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
            v = Vectors(context, builder, target.dtype)
            values = [v.pointer(target, args[0], args[1]), args[2], v.pointer(source, args[3], args[4]), *args[5:]]
            v.call("refsnn_gather", values, lambda b, own: pieces(b, Vectors(context, b, target.dtype), own))
            return context.get_dummy_value()

        i = types.intp
        return types.void(target, i, i, source, i, i, i, i, i, i), generate

    def pieces(b: Any, v: Vectors, args: Any) -> None:
        target, near, source, far, rows, apart, n, count = args
        with cgutils.for_range_slice(b, I64(0), rows, I64(1)) as (r, _):
            to, of = b.gep(target, [b.mul(r, near)]), b.gep(source, [b.mul(r, far)])
            with cgutils.for_range_slice(b, I64(0), count, I64(1)) as (k, _):
                put, get = b.gep(to, [b.mul(k, n)]), b.gep(of, [b.mul(k, apart)])
                with cgutils.for_range_slice(b, I64(0), n, I64(v.size)) as (m, _):
                    v.prefetch(b.gep(get, [b.add(m, b.mul(far, I64(4)))]))
                    v.store(v.load(b.gep(get, [m])), b.gep(put, [m]))

    return vector, copying, filling, gathering


def _fill(target: Array, at: int, n: int, value: Any) -> None:
    """target[at : at + n] = value."""
    for m in range(n):
        target[at + m] = value


def _copy(target: Array, at: int, source: Array, start: int, n: int) -> None:
    """target[at : at + n] = source[start : start + n]."""
    for m in range(n):
        target[at + m] = source[start + m]


def _gather(
    target: Array, at: int, near: int, source: Array, start: int, far: int, rows: int, apart: int, n: int, count: int
) -> None:
    """target[at + r near + k n + m] = source[start + r far + k apart + m], r < rows, k < count, m < n.

    n fills vectors. What is far away is fetched four rows before it is needed.
    """
    for r in range(rows):
        for k in range(count):
            copy(target, at + r * near + k * n, source, start + r * far + k * apart, n)


def _vector_of(array: Array) -> int:
    """How many numbers of an array a vector has."""
    return max(8, REGISTER // array.itemsize)


vector, copy, fill, gather = (
    _moving() if WIDE else (njit(_vector_of), njit(_copy), njit(_fill), njit(_gather)))


@njit(cache=True, error_model="numpy")
def whole(n: int, size: int) -> int:
    """How many of n numbers fill vectors of `size`, a power of two; the rest is for plain loops."""
    return n & -size


def _advising() -> Any:
    """Intrinsic: ask Linux to back an array with large pages, as NumPy does for its own arrays."""

    @intrinsic
    def advise(_context: Any, array: Any) -> Any:
        def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
            b, number = builder, ir.IntType(32)
            own = context.make_array(array)(context, builder, args[0])
            start = b.and_(b.add(b.ptrtoint(own.data, I64), I64(PAGE - 1)), I64(-PAGE))
            size = b.sub(b.add(b.ptrtoint(own.data, I64), b.mul(own.nitems, own.itemsize)), start)
            kind = ir.FunctionType(number, [I64, I64, number])
            b.call(cgutils.get_or_insert_function(b.module, kind, "madvise"), [start, size, number(MADV_HUGEPAGE)])
            return context.get_dummy_value()

        return types.void(array), generate

    return advise


def _no_advice(array: Array) -> None:
    """Elsewhere nothing happens."""


_advise = _advising() if WIDE and sys.platform.startswith("linux") else njit(_no_advice)


@kernel_jit()
def empty(n: int, dtype: Any) -> Array:
    """(n,) numbers that start at a cache line: a vector that lies across two lines costs two loads.

    The input gradient of 256 channels on 32x32, N = 64, takes pieces of one vector: its fixed cost is 8 ms where dy
    starts at a line, 16 ms where not. Large arrays are in large pages: fixed cost of forward pass 1.1 ms against 1.7.
    """
    numbers = np.empty(n + 64, dtype)
    if numbers.size * numbers.itemsize >= LARGE:
        _advise(numbers)
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
