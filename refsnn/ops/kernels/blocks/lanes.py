"""Lanes: the vocabulary of the generators in `membrane.py` and `moments.py`, 16 numbers at a time, or 8, 4, 1.

Rows are (T, B) numbers in memory, one place of a map each. Samples are the lanes of a vector, so that a neuron goes
through its steps in one lane. An equation is written once, in Python: `Lanes` turns + - * / > abs into instructions,
one rounding each, in the order written. What fills no vector, the last samples of a batch or a small one, goes through
the same equation in shorter ones, and at last as lanes of one number.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils

from refsnn.ops.kernels.blocks.vectors import I64, REGISTER, fetch

LENGTH = 16             # lanes
SIZES = (16, 8, 4, 1)   # of a batch of 29: 16, 8, 4 and one more


class Lanes:
    """A vector of numbers, or one number, with Python's arithmetic: every operation is an instruction."""

    def __init__(self, builder: Any, value: Any, flags: tuple[str, ...] = ()) -> None:
        self.builder, self.value, self.flags = builder, value, flags

    def _made(self, value: Any) -> "Lanes":
        return Lanes(self.builder, value, self.flags)

    def __add__(self, other: "Lanes") -> "Lanes":
        return self._made(self.builder.fadd(self.value, other.value, flags=self.flags))

    def __sub__(self, other: "Lanes") -> "Lanes":
        return self._made(self.builder.fsub(self.value, other.value, flags=self.flags))

    def __mul__(self, other: "Lanes") -> "Lanes":
        return self._made(self.builder.fmul(self.value, other.value, flags=self.flags))

    def __truediv__(self, other: "Lanes") -> "Lanes":
        return self._made(self.builder.fdiv(self.value, other.value, flags=self.flags))

    def __abs__(self) -> "Lanes":
        b, kind = self.builder, self.value.type
        lanes, number = (f"v{kind.count}", kind.element) if isinstance(kind, ir.VectorType) else ("", kind)
        name = f"llvm.fabs.{lanes}{'f32' if str(number) == 'float' else 'f64'}"
        return self._made(b.call(cgutils.get_or_insert_function(b.module, ir.FunctionType(kind, [kind]), name),
                                 [self.value]))

    def __gt__(self, other: "Lanes") -> Any:
        return self.builder.fcmp_ordered(">", self.value, other.value)

    def where(self, mask: Any, a: "Lanes", b: "Lanes") -> "Lanes":
        """a where the mask is true, else b."""
        return self._made(self.builder.select(mask, a.value, b.value))


class Rows:
    """What a lane's body needs: loads and stores of `size` numbers, and variables."""

    def __init__(self, builder: Any, number: Any, size: int) -> None:
        self.builder, self.size, self.number = builder, size, number
        self.type = self.of(number)
        self.align = {"float": 4, "double": 8}[str(number)]

    def of(self, number: Any) -> Any:
        """The type of lanes of such a number."""
        return number if self.size == 1 else ir.VectorType(number, self.size)

    def lanes(self, value: Any, flags: tuple[str, ...] = ()) -> Lanes:
        """Lanes of one number each."""
        b = self.builder
        if self.size > 1:
            none, lane = ir.Constant(self.type, ir.Undefined), ir.IntType(32)
            first = b.insert_element(none, value, lane(0))
            value = b.shuffle_vector(first, none, ir.Constant(ir.VectorType(lane, self.size), [0] * self.size))
        return Lanes(b, value, flags)

    def load(self, pointer: Any, at: Any) -> Lanes:
        """Lanes from pointer[at] on."""
        b = self.builder
        return Lanes(b, b.load(b.bitcast(b.gep(pointer, [at]), self.type.as_pointer()), align=self.align))

    def store(self, value: Lanes, pointer: Any, at: Any, stream: bool = False) -> None:
        """The reverse; `stream` past the caches, to the start of a line."""
        b = self.builder
        place = b.bitcast(b.gep(pointer, [at]), self.type.as_pointer())
        written = b.store(value.value, place, align=REGISTER if stream else self.align)
        if stream:
            written.set_metadata("nontemporal", b.module.add_metadata([ir.IntType(32)(1)]))

    def store_spikes(self, mask: Any, value: Lanes, pointer: Any, at: Any) -> None:
        """Spikes as numbers, or as bytes where the pointer is to bytes."""
        b = self.builder
        if pointer.type.pointee != ir.IntType(8):
            self.store(value, pointer, at)
            return
        byte = self.of(ir.IntType(8))
        b.store(b.zext(mask, byte), b.bitcast(b.gep(pointer, [at]), byte.as_pointer()), align=1)

    def prefetch(self, pointer: Any, at: Any) -> None:
        """`fetch` the line at pointer[at]."""
        fetch(self.builder, self.builder.gep(pointer, [at]))

    def variable(self, value: Lanes) -> "Variable":
        """A variable that starts with a value."""
        return Variable(self.builder, value)


class Variable:
    """Lanes that change; LLVM keeps them in registers."""

    def __init__(self, builder: Any, value: Lanes) -> None:
        self.builder, self.place = builder, cgutils.alloca_once_value(builder, value.value)

    def get(self, flags: tuple[str, ...] = ()) -> Lanes:
        """Its value."""
        return Lanes(self.builder, self.builder.load(self.place), flags)

    def set(self, value: Lanes) -> None:
        """Change it."""
        self.builder.store(value.value, self.place)


def over_rows(b: Any, number: Any, rows: Any, steps: Any, batch: Any, body: Callable[[Rows, Any, Any], None]) -> None:
    """body(lanes, place of the first number within a row's first step, place of the row) for all rows and samples."""
    with cgutils.for_range_slice(b, I64(0), rows, I64(1)) as (r, _):
        row, done = b.mul(r, b.mul(steps, batch)), I64(0)
        for size in SIZES:
            filled = b.and_(batch, I64(-size))
            with cgutils.for_range_slice(b, done, filled, I64(size)) as (m, _):
                body(Rows(b, number, size), m, row)
            done = filled


def back_in_time(b: Any, steps: Any, batch: Any, row: Any, m: Any, body: Callable[[Any], None]) -> None:
    """body(place of sample m) for all steps of a row, the last one first."""
    with cgutils.for_range_slice(b, I64(1), b.add(steps, I64(1)), I64(1)) as (k, _):
        body(b.add(row, b.add(b.mul(b.sub(steps, k), batch), m)))


def pointers(context: Any, builder: Any, kinds: tuple[Any, ...], args: Any) -> list[Any]:
    """Addresses of array[at] for arrays that alternate with their places."""
    return [builder.gep(context.make_array(kind)(context, builder, args[2 * k]).data, [args[2 * k + 1]])
            for k, kind in enumerate(kinds)]
