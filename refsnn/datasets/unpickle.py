"""Reading pickles as data: text, whole numbers, containers and tables of bytes, and nothing that is called.

A pickle is a program for a machine with a stack, and Python's own reader runs whatever program it is given. This one
knows the instructions of which the python versions of CIFAR consist, and refuses all others by name. What such a pickle
calls is never imported: `numpy.core.multiarray._reconstruct` is a word here, which stands for a table of bytes. So a
file from a stranger can do nothing but be refused.

Time and memory are bounded by the length of the file, which the caller limits, and by `MAX_INSTRUCTIONS`: lengths are
compared with what is left of the file before anything is allocated, nothing is copied twice, and keys are text.

Formats: Python's pickletools, protocols 2 to 4; numpy.ndarray.__reduce__ and numpy.dtype.__reduce__ for the tables.
"""

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from refsnn.errors import UserError

Array = npt.NDArray[Any]
T = TypeVar("T")

MAX_INSTRUCTIONS = 1_000_000  # the largest official file, CIFAR-100's training images, takes about 250,000
MAX_NAME = 200  # characters of a module and a function


class Refused(Exception):
    """The pickle holds something else than data, or is damaged: the reason is the message."""


@dataclass(frozen=True)
class Word:
    """What a name in a pickle stands for; one of the values of `WORDS`, or UINT8."""

    meaning: str


TABLE, TABLE_CLASS, TYPE, ENCODE, UINT8 = (Word(w) for w in ("table", "class of tables", "type", "encode", "uint8"))
WORDS = {
    "numpy.core.multiarray._reconstruct": TABLE,
    "numpy._core.multiarray._reconstruct": TABLE,  # since NumPy 2
    "numpy.ndarray": TABLE_CLASS,
    "numpy.dtype": TYPE,
    "_codecs.encode": ENCODE,  # how Python 3 writes bytes with protocol 2: as text of the characters 0..255
}


@dataclass
class Table:
    """An array of bytes (n, m), which a pickle first names and then fills."""

    values: Array | None = None


def load(file: Path) -> dict[str, Any]:
    """The dictionary in a pickle: its keys as text; bytes, text, whole numbers, lists and arrays (n, m) of uint8.

    The whole file is read: limit its length before.   Raises UserError for whatever is no such pickle, OSError.
    """
    try:
        stored = Machine(file.read_bytes()).run()
        if type(stored) is not dict:
            raise Refused(f"holds {_kind(stored)}, no dictionary")
        return {_text(key): _filled(value) for key, value in stored.items()}
    except IndexError:
        raise UserError(f"{file}: takes more than it has put down; this is no CIFAR file, or it is damaged") from None
    except UnicodeError:
        raise UserError(f"{file}: has text in no known encoding; this is no CIFAR file, or it is damaged") from None
    except Refused as reason:
        raise UserError(f"{file}: {reason}; this is no CIFAR file, or it is damaged") from None


def _text(key: bytes | str) -> str:
    return key.decode("latin-1") if isinstance(key, bytes) else key


def _filled(value: Any) -> Any:
    if isinstance(value, Table):
        if value.values is None:
            raise Refused("has an array without content")
        return value.values
    return value


def _kind(thing: Any) -> str:
    return thing.meaning if isinstance(thing, Word) else type(thing).__name__.lower()


# --------------------------------------------------------------------------------------------------------- the machine
class Machine:
    """The stack, the marks in it, and the memory of a pickle; `INSTRUCTIONS` are what it can do."""

    def __init__(self, program: bytes) -> None:
        self.program, self.at = program, 0
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memory: dict[int, Any] = {}
        self.encoded = 0  # bytes

    def run(self) -> Any:
        """Carry out the instructions up to STOP and return what lies on the stack."""
        for _ in range(MAX_INSTRUCTIONS):
            where, code = self.at, self.take(1)
            if code == b".":
                return self.stack.pop()
            if code not in INSTRUCTIONS:
                known = (one.name for one in pickletools.opcodes if one.code == code.decode("latin-1"))
                name = next(known, f"number {code[0]}")
                raise Refused(f"has the instruction {name} at byte {where:,}, which no array or built-in needs")
            INSTRUCTIONS[code](self)
        raise Refused(f"has more than {MAX_INSTRUCTIONS:,} instructions")

    # ------------------------------------------------------------------------------- from the program
    def take(self, n: int) -> bytes:
        """The next n bytes."""
        if n > len(self.program) - self.at:
            raise Refused(f"ends early: {n:,} bytes wanted at byte {self.at:,} of {len(self.program):,}")
        self.at += n
        return self.program[self.at - n : self.at]

    def number(self, n: int, signed: bool = False) -> int:
        """The next n bytes as a whole number, lowest byte first."""
        return int.from_bytes(self.take(n), "little", signed=signed)

    def line(self) -> str:
        """The next bytes up to the end of the line."""
        end = self.program.find(b"\n", self.at, self.at + MAX_NAME)
        if end < 0:
            raise Refused(f"has a name of more than {MAX_NAME} characters, or ends early")
        line = self.take(end - self.at)
        self.at += 1
        return line.decode("utf-8")

    # ------------------------------------------------------------------------------- on the stack
    def push(self, thing: Any) -> None:
        """Put a thing down."""
        self.stack.append(thing)

    def pop(self, kind: type[T]) -> T:
        """Take up a thing that has to be of this type."""
        return _is(self.stack.pop(), kind)

    def since_mark(self) -> list[Any]:
        """Take up all things since the last mark."""
        mark = self.marks.pop()
        things = self.stack[mark:]
        del self.stack[mark:]
        return things

    def group(self, n: int) -> None:
        """Put the last n things down as one tuple."""
        if n > len(self.stack):
            raise IndexError
        things = tuple(self.stack[-n:])
        del self.stack[-n:]
        self.push(things)

    def append(self, things: list[Any]) -> None:
        """Add things to the list below them."""
        _is(self.stack[-1], list).extend(things)

    def set_items(self, things: list[Any]) -> None:
        """Add keys and values, in turn, to the dictionary below them."""
        target = _is(self.stack[-1], dict)
        if len(things) % 2:
            raise Refused("has a key without a value")
        for key, value in zip(things[::2], things[1::2], strict=True):
            if type(key) not in (bytes, str):  # so that no one can choose what is hashed, nor how slowly
                raise Refused(f"has {_kind(key)} for a key")
            target[key] = value

    def remember(self, place: int) -> None:
        """Keep the last thing in the memory."""
        self.memory[place] = self.stack[-1]

    def recall(self, place: int) -> None:
        """Put down a thing of the memory."""
        if place not in self.memory:
            raise Refused(f"recalls {place:,}, which was never stored")
        self.push(self.memory[place])

    # ------------------------------------------------------------------------------- what stands for calls
    def name(self, module: str, function: str) -> None:
        """Put down the word for a name; names without one are refused."""
        name = f"{module}.{function}"
        if name not in WORDS:
            shown = "".join(c if c.isprintable() else "?" for c in name[:MAX_NAME])
            raise Refused(f"calls {shown}: not an array or built-in")
        self.push(WORDS[name])

    def call(self) -> None:
        """What a pickle calls with a tuple: a new table, the type uint8, or bytes from text."""
        arguments = self.pop(tuple)
        function = self.pop(Word)
        if function == TABLE and arguments[0] == TABLE_CLASS:
            self.push(Table())
        elif function == TYPE:
            if arguments[0] not in ("u1", b"u1"):
                raise Refused("has an array that is not of uint8")
            self.push(UINT8)
        elif function == ENCODE and len(arguments) == 2 and arguments[1] in ("latin1", b"latin1"):
            self.push(self.encode(_is(arguments[0], str)))
        else:
            raise Refused(f"calls the word for {_kind(function)} in a way that makes no array")

    def encode(self, text: str) -> bytes:
        """Text of the characters 0..255 as bytes; all together not more than the program, which holds each once."""
        self.encoded += len(text)
        if self.encoded > len(self.program):
            raise Refused("encodes more text than it has")
        return text.encode("latin-1")

    def fill(self) -> None:
        """Give the table below a tuple its shape and values; the type uint8 takes no more than it has."""
        state = self.pop(tuple)
        target = self.stack[-1]
        if target == UINT8:
            if any(part is not None for part in state[2:5]):  # subarrays, fields
                raise Refused("has an array that is not of uint8")
            return
        table = _is(target, Table)
        if len(state) != 5:
            raise Refused("has an array of an unknown version")
        _, shape, dtype, by_columns, values = state
        if dtype != UINT8:
            raise Refused("has an array that is not of uint8")
        shape, values = _is(shape, tuple), _is(values, bytes)
        if len(shape) != 2 or not all(type(length) is int and length > 0 for length in shape):
            raise Refused("has an array that is no table")
        if math.prod(shape) != len(values):
            raise Refused(f"has an array whose shape does not fit its {len(values):,} bytes")
        table.values = np.frombuffer(values, np.uint8).reshape(shape, order="F" if by_columns is True else "C")


def _is(thing: Any, kind: type[T]) -> T:
    """The thing, which has to be of this very type."""
    if type(thing) is not kind:
        raise Refused(f"has {_kind(thing)} where {kind.__name__.lower()} belongs")
    return thing


def _name_from_stack(machine: Machine) -> None:
    function = machine.pop(str)
    machine.name(machine.pop(str), function)


INSTRUCTIONS: dict[bytes, Callable[[Machine], object]] = {
    b"\x80": lambda m: m.take(1),                                       # PROTO: the version
    b"\x95": lambda m: m.take(8),                                       # FRAME: a length
    b"(": lambda m: m.marks.append(len(m.stack)),                       # MARK
    b"N": lambda m: m.push(None),                                       # NONE
    b"\x88": lambda m: m.push(True),                                    # NEWTRUE
    b"\x89": lambda m: m.push(False),                                   # NEWFALSE
    b"K": lambda m: m.push(m.number(1)),                                # BININT1
    b"M": lambda m: m.push(m.number(2)),                                # BININT2
    b"J": lambda m: m.push(m.number(4, signed=True)),                   # BININT
    b"\x8a": lambda m: m.push(m.number(m.number(1), signed=True)),      # LONG1
    b"U": lambda m: m.push(m.take(m.number(1))),                        # SHORT_BINSTRING: text of Python 2
    b"T": lambda m: m.push(m.take(m.number(4))),                        # BINSTRING
    b"C": lambda m: m.push(m.take(m.number(1))),                        # SHORT_BINBYTES
    b"B": lambda m: m.push(m.take(m.number(4))),                        # BINBYTES
    b"\x8c": lambda m: m.push(m.take(m.number(1)).decode("utf-8")),     # SHORT_BINUNICODE
    b"X": lambda m: m.push(m.take(m.number(4)).decode("utf-8")),        # BINUNICODE
    b")": lambda m: m.push(()),                                         # EMPTY_TUPLE
    b"\x85": lambda m: m.group(1),                                      # TUPLE1
    b"\x86": lambda m: m.group(2),                                      # TUPLE2
    b"\x87": lambda m: m.group(3),                                      # TUPLE3
    b"t": lambda m: m.push(tuple(m.since_mark())),                      # TUPLE
    b"]": lambda m: m.push([]),                                         # EMPTY_LIST
    b"a": lambda m: m.append([m.stack.pop()]),                          # APPEND
    b"e": lambda m: m.append(m.since_mark()),                           # APPENDS
    b"}": lambda m: m.push({}),                                         # EMPTY_DICT
    b"s": lambda m: m.set_items([m.stack.pop(), m.stack.pop()][::-1]),  # SETITEM
    b"u": lambda m: m.set_items(m.since_mark()),                        # SETITEMS
    b"q": lambda m: m.remember(m.number(1)),                            # BINPUT
    b"r": lambda m: m.remember(m.number(4)),                            # LONG_BINPUT
    b"\x94": lambda m: m.remember(len(m.memory)),                       # MEMOIZE
    b"h": lambda m: m.recall(m.number(1)),                              # BINGET
    b"j": lambda m: m.recall(m.number(4)),                              # LONG_BINGET
    b"c": lambda m: m.name(m.line(), m.line()),                         # GLOBAL
    b"\x93": _name_from_stack,                                          # STACK_GLOBAL
    b"R": lambda m: m.call(),                                           # REDUCE
    b"b": lambda m: m.fill(),                                           # BUILD
}
