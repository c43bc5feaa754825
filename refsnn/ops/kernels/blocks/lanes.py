"""Lanes: the vocabulary of the generators in `membrane.py`, `moments.py` and `normed.py`, 16 numbers, or 8, 4, 1.

Rows are (T, B) numbers in memory, one place of a map each. Samples are the lanes of a vector, so that a neuron goes
through its steps in one lane. Four rows go side by side: a step waits for the one before, and while one row waits, the
others compute. An equation is written once, in Python: `Lanes` turns + - * / > abs into instructions,
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
TOGETHER = 4            # rows side by side


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
        return self._called("fabs")

    def times_plus(self, factor: "Lanes", more: "Lanes") -> "Lanes":
        """self * factor + more, rounded once wherever it stands; what is merely allowed to be, is not across blocks."""
        return self._called("fma", factor, more)

    def _called(self, name: str, *others: "Lanes") -> "Lanes":
        """An instruction that LLVM knows as a function."""
        b, kind = self.builder, self.value.type
        lanes, number = (f"v{kind.count}", kind.element) if isinstance(kind, ir.VectorType) else ("", kind)
        full = f"llvm.{name}.{lanes}{'f32' if str(number) == 'float' else 'f64'}"
        values = [self.value, *(one.value for one in others)]
        kinds = ir.FunctionType(kind, [kind] * len(values))
        return self._made(b.call(cgutils.get_or_insert_function(b.module, kinds, full), values))

    def __gt__(self, other: "Lanes") -> Any:
        return self.builder.fcmp_ordered(">", self.value, other.value)

    def where(self, mask: Any, a: "Lanes", b: "Lanes") -> "Lanes":
        """a where the mask is true, else b."""
        return self._made(self.builder.select(mask, a.value, b.value))


class Rows:
    """What a lane's body needs: loads and stores of `size` numbers, their steps in time, and variables.

    `rows` rows (T, B) share the lanes evenly; shape: T and B. The first lane's first step is in place `first`, its row
    starts at `row`. Where `static` is true, at run time, x has one step for all, and the lane is in place `only`.
    """

    def __init__(
        self, builder: Any, number: Any, samples: int, rows: int = 1, shape: tuple[Any, Any] = (None, None),
        row: Any = None, first: Any = None, only: Any = None, static: Any = None,
    ) -> None:
        self.builder, self.number, self.rows, self.size = builder, number, rows, samples * rows
        (self.steps, self.batch), self.row, self.first, self.only, self.static = shape, row, first, only, static
        self.t, self.x = None, None if static is None else self._of_x()
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

    def _of_x(self) -> tuple[Any, Any, Any]:
        """Where x has the first step of the first lane, and how far apart its steps and its rows are."""
        b, static = self.builder, self.static
        return (b.select(static, self.only, self.first), b.select(static, I64(0), self.batch),
                b.select(static, self.batch, b.mul(self.steps, self.batch)))

    def of_x(self, at: Any) -> tuple[Any, Any]:
        """Where x has what belongs to place `at` of the step under way, and how far apart its rows are."""
        if self.x is None:
            return at, None
        first, step, apart = self.x
        return self.builder.add(first, self.builder.mul(self.t, step)), apart

    def load(self, pointer: Any, at: Any, apart: Any = None) -> Lanes:
        """Lanes from pointer[at] on; rows are T B numbers apart, or `apart`."""
        b = self.builder
        pieces = [b.load(b.bitcast(b.gep(pointer, [place]), self._piece(self.number).as_pointer()), align=self.align)
                  for place in self._places(at, apart)]
        while len(pieces) > 1:
            both = 2 * pieces[0].type.count
            pieces = [b.shuffle_vector(first, second, self._order(0, both))
                      for first, second in zip(pieces[::2], pieces[1::2], strict=True)]
        return Lanes(b, pieces[0])

    def store(self, value: Lanes, pointer: Any, at: Any, stream: bool = False, apart: Any = None) -> None:
        """The reverse; `stream` past the caches, to the start of a line."""
        self._write(value.value, pointer, at, REGISTER if stream else self.align, stream, apart)

    def _write(self, value: Any, pointer: Any, at: Any, align: int, stream: bool, apart: Any = None) -> None:
        b = self.builder
        for piece, place in zip(self._split(value), self._places(at, apart), strict=True):
            written = b.store(piece, b.bitcast(b.gep(pointer, [place]), piece.type.as_pointer()), align=align)
            if stream:
                written.set_metadata("nontemporal", b.module.add_metadata([ir.IntType(32)(1)]))

    def _places(self, at: Any, apart: Any) -> list[Any]:
        """Of every row."""
        b = self.builder
        if self.rows == 1:
            return [at]
        apart = apart or b.mul(self.steps, self.batch)
        return [at, *(b.add(at, b.mul(apart, I64(k))) for k in range(1, self.rows))]

    def _split(self, value: Any) -> list[Any]:
        """The lanes of every row."""
        b, share = self.builder, self.size // self.rows
        return [value] if self.rows == 1 else [
            b.shuffle_vector(value, value, self._order(k * share, share)) for k in range(self.rows)]

    def _piece(self, number: Any) -> Any:
        """The type of lanes of one row."""
        return self.of(number) if self.rows == 1 else ir.VectorType(number, self.size // self.rows)

    def _order(self, first: int, count: int) -> Any:
        """A mask of `shuffle_vector`: consecutive lanes."""
        return ir.Constant(ir.VectorType(ir.IntType(32), count), list(range(first, first + count)))

    def store_spikes(self, mask: Any, value: Lanes, pointer: Any, at: Any) -> None:
        """Spikes as numbers, or as bytes where the pointer is to bytes."""
        b = self.builder
        if pointer.type.pointee != ir.IntType(8):
            self.store(value, pointer, at)
            return
        self._write(b.zext(mask, self.of(ir.IntType(8))), pointer, at, 1, False)

    def added_rows(self, value: Any) -> Any:
        """Lanes of one row: the sums over the rows, neighbours first."""
        b, pieces = self.builder, self._split(value)
        while len(pieces) > 1:
            pieces = [b.fadd(*pair) for pair in zip(pieces[::2], pieces[1::2], strict=True)]
        alone = self.rows > 1 and self.size == self.rows
        return b.extract_element(pieces[0], I64(0)) if alone else pieces[0]

    def prefetch(self, pointer: Any, at: Any, apart: Any = None) -> None:
        """`fetch` the lines at pointer[at]."""
        for place in self._places(at, apart):
            fetch(self.builder, self.builder.gep(pointer, [place]))

    def in_time(self, body: Callable[[Any], None]) -> None:
        """body(place of the first lane) for all steps."""
        b = self.builder
        with cgutils.for_range_slice(b, I64(0), self.steps, I64(1)) as (self.t, _):
            body(b.add(self.first, b.mul(self.t, self.batch)))

    def back_in_time(self, body: Callable[[Any], None]) -> None:
        """The same, the last step first."""
        b = self.builder
        with cgutils.for_range_slice(b, I64(1), b.add(self.steps, I64(1)), I64(1)) as (k, _):
            self.t = b.sub(self.steps, k)
            body(b.add(self.first, b.mul(self.t, self.batch)))

    def near(self, at: Any) -> Any:
        """A place in what holds no other rows."""
        return self.builder.sub(at, self.row)

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


def over_rows(
    b: Any, number: Any, rows: Any, shape: tuple[Any, Any], body: Callable[[Rows], None], static: Any = None
) -> None:
    """body(lanes) for all samples of so many rows; shape: T and B; static: whether x has one step for all.

    Rows are the inner loop, the longer one: to enter it costs a hundred nanoseconds.
    """
    steps, batch = shape
    done, many, size_of_row = I64(0), b.and_(rows, I64(-TOGETHER)), b.mul(steps, batch)
    for size in SIZES:
        filled = b.and_(batch, I64(-size))
        with cgutils.for_range_slice(b, done, filled, I64(size)) as (m, _):
            for first, last, together in ((I64(0), many, TOGETHER), (many, rows, 1)):
                with cgutils.for_range_slice(b, first, last, I64(together)) as (r, _):
                    row, only = b.mul(r, size_of_row), b.add(b.mul(r, batch), m)
                    body(Rows(b, number, size, together, shape, row, b.add(row, m), only, static))
        done = filled


def pointers(context: Any, builder: Any, kinds: tuple[Any, ...], args: Any) -> list[Any]:
    """Addresses of array[at] for arrays that alternate with their places."""
    return [builder.gep(context.make_array(kind)(context, builder, args[2 * k]).data, [args[2 * k + 1]])
            for k, kind in enumerate(kinds)]
