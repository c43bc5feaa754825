"""Twins: every heavy operation is a pair, a NumPy definition to read and a Numba kernel to run.

    @op(kernel="neuron:lif_forward_kernel", agree="exact")
    def lif_forward(x, decay, ...):
        \"\"\"equation, shapes, parameter table, source\"\"\"

binds the definition below the decorator to `lif_forward_kernel` in `ops/kernels/neuron.py`, which takes the same
arguments in the same order and is imported at its first call. The definition is the specification: where the two
differ, the kernel is wrong. Three backends choose what a call runs:

    numpy   the definitions              (the default under NUMBA_DISABLE_JIT=1: the reading mode)
    numba   the kernels, where they exist (the default otherwise)
    both    definition and kernel on every call; raises TwinMismatch at the first operation whose twins disagree

How far twins must agree is part of the binding:

    exact   bit for bit: only + - * / sqrt and comparisons occur, in the same order
    ulp     at most 4 units in the last place: exp, arctan, erf (NumPy's and LLVM's differ in some values)
    sum     reductions, whose order differs: |a - b| <= 1024 eps(dtype) * scale, with scale the largest magnitude
            among the arrays that went in or came out; a float64 kernel that accumulates in float32 fails
"""

import functools
import importlib
import inspect
import os
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, Literal, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from refsnn.machine import keep_freed_memory

P = ParamSpec("P")
R = TypeVar("R")
Array = npt.NDArray[Any]
Agreement = Literal["exact", "ulp", "sum"]
Backend = Literal["numpy", "numba", "both"]

# GNU OpenMP reads this when Numba loads it. By default its idle threads spin, and on a busy machine a parallel loop
# then costs a time slice of the scheduler: 152 ms a step of `digits` instead of 19, with one other process running.
# A short spin, some 50 microseconds, bridges the gap to the next kernel: 0.90 ms against 1.13 on two idle cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "30000")

BACKENDS: tuple[str, ...] = typing.get_args(Backend)
REGISTRY: "dict[str, Operation[Any, Any]]" = {}     # every operation by name
PLAIN = "".join(np.dtype(kind).char for kind in (np.float32, np.float64, np.int32, np.uint8))
MAX_ULP = 4
SUM_TOLERANCE = 1024.0                              # in units of eps(dtype) * scale

_active: Backend = "numpy" if os.environ.get("NUMBA_DISABLE_JIT", "0") == "1" else "numba"
_announce: Callable[[str], None] | None = None      # told, once, that kernels are being compiled


class TwinMismatch(AssertionError):
    """A kernel disagrees with its definition; the message names the operation, the place and both values."""


def get_backend() -> Backend:
    """Return the active backend."""
    return _active


def set_backend(name: str) -> None:
    """Choose what every operation runs from now on: "numpy", "numba" or "both". Raises ValueError for another name."""
    global _active
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    _active = typing.cast(Backend, name)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Run the body of a `with` statement on another backend."""
    before = _active
    set_backend(name)
    try:
        yield
    finally:
        set_backend(before)


def announce_compilation(tell: Callable[[str], None] | None) -> None:
    """Call `tell` with one line of text before the first kernel that must be compiled; None: say nothing."""
    global _announce
    _announce = tell


class Operation(Generic[P, R]):
    """A definition, its kernel, and how far they must agree. Call it like the definition.

    `__code__` is the definition's, so that a breakpoint set by name (`b lif_backward` in pdb) stops in the definition.
    """

    def __init__(self, definition: Callable[P, R], kernel: str | None, agree: Agreement) -> None:
        functools.update_wrapper(self, definition)
        self.definition = definition
        self.name = definition.__name__
        self.agree = agree
        self.kernel_path = kernel
        self.signature = inspect.signature(definition)
        self.__code__ = definition.__code__
        self._kernel: Callable[..., Any] | None = None
        self._names = tuple(self.signature.parameters)
        hints, options = typing.get_type_hints(definition), _literal_options(definition)
        self._words = tuple((k, name, options[name]) for k, name in enumerate(self._names) if name in options)
        self._arrays = tuple((k, name) for k, name in enumerate(self._names) if "ndarray" in str(hints[name]))

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if _active == "numba" and self.kernel_path is not None:
            result: R = self.run_kernel(*args, **kwargs)
            return result
        if _active == "numpy" or self.kernel_path is None:
            return self.definition(*args, **kwargs)
        expected = self.definition(*args, **kwargs)
        got = self.run_kernel(*args, **kwargs)
        check_agreement(self.name, self.agree, expected, got, (*args, *kwargs.values()))
        return typing.cast(R, got)

    def __repr__(self) -> str:
        return f"<operation {self.name}, kernel {self.kernel_path or 'none'}, agreement {self.agree}>"

    @property
    def kernel(self) -> Callable[..., Any] | None:
        """The kernel, imported at first use; None where an operation has only a definition."""
        if self._kernel is None and self.kernel_path is not None:
            file, function = self.kernel_path.split(":")
            keep_freed_memory()         # large arrays that a kernel makes would be mapped anew at every call
            self._kernel = getattr(importlib.import_module(f"refsnn.ops.kernels.{file}"), function)
        return self._kernel

    def run_kernel(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Call the kernel with the definition's arguments, prepared as Numba needs them.

        Small networks make this call every few microseconds: what is in order already is looked at and passed on.
        """
        values: Sequence[Any] = args
        if kwargs or len(args) != len(self._names):
            bound = self.signature.bind(*args, **kwargs)
            bound.apply_defaults()
            values = bound.args
        kernel = self._kernel or self.kernel
        if kernel is None:
            raise ValueError(f"{self.name} has no kernel")
        prepared = list(values)
        for k, name, options in self._words:
            word = prepared[k]
            if word not in options:
                raise ValueError(f"{self.name}: {name} must be one of {', '.join(options)}, got {word!r}")
            prepared[k] = options[word]
        for k, name in self._arrays:
            array = prepared[k]
            if isinstance(array, np.ndarray) and not (array.flags.carray and array.dtype.char in PLAIN):
                prepared[k] = self._in_order(array, name)
        if _announce is not None:
            _announce_if_cold(kernel)
        return kernel(*prepared)

    def _in_order(self, array: Array, name: str) -> Array:
        """The array contiguous, aligned and writable: another layout would compile again."""
        if array.dtype.kind in "iu" and array.dtype not in (np.int32, np.uint8):
            raise TypeError(f"{self.name}: integer array {name} must be int32 or uint8, got {array.dtype}")
        return np.require(array, requirements=["C", "A", "W"])


def op(kernel: str | None = None, agree: Agreement = "exact") -> Callable[[Callable[P, R]], Operation[P, R]]:
    """Decorate a definition: bind it to `kernel` ("file:function" below `ops/kernels`) and register the pair."""

    def decorate(definition: Callable[P, R]) -> Operation[P, R]:
        operation = Operation(definition, kernel, agree)
        if operation.name in REGISTRY:
            raise ValueError(f"two operations are called {operation.name}")
        REGISTRY[operation.name] = operation
        return operation

    return decorate


def _literal_options(definition: Callable[..., Any]) -> dict[str, dict[str, int]]:
    """The allowed words of every argument that is annotated with a Literal of strings, and the position of each."""
    hints = typing.get_type_hints(definition)
    literals = {name: typing.get_args(hint) for name, hint in hints.items() if typing.get_origin(hint) is Literal}
    return {name: {word: position for position, word in enumerate(words)} for name, words in literals.items()}


def _announce_if_cold(kernel: Callable[..., Any]) -> None:
    """Say once, before it happens, that kernels are being compiled: a kernel without a cache file must be."""
    global _announce
    stats = getattr(kernel, "stats", None)
    if stats is None or getattr(kernel, "signatures", None):      # plain Python under NUMBA_DISABLE_JIT, or loaded
        return
    if not any(Path(stats.cache_path).glob(f"*.{kernel.__name__}-*.nbi")) and _announce is not None:
        _announce("compiling kernels: once per machine, cached afterwards ...")
        _announce = None


def ulp_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Units in the last place between floats of one dtype: how many representable numbers apart they lie."""
    signed, unsigned = (np.dtype(f"{kind}{a.dtype.itemsize}") for kind in "iu")
    lowest = np.iinfo(signed).min

    def ordered(x: np.ndarray) -> np.ndarray:
        bits = np.ascontiguousarray(x).view(signed)
        return np.where(bits < 0, lowest - bits, bits)      # rises with the number; -0.0 and 0.0 are the same

    i, j = ordered(a), ordered(b)
    return np.maximum(i, j).view(unsigned) - np.minimum(i, j).view(unsigned)    # modulo 2^n: cannot overflow


def check_agreement(name: str, agree: Agreement, expected: Any, got: Any, inputs: tuple[Any, ...] = ()) -> None:
    """Raise TwinMismatch unless a kernel's outputs agree with its definition's as `agree` asks (see the module)."""
    pairs = list(zip(_outputs(expected), _outputs(got), strict=True))
    floats = [v for v in (*inputs, *_outputs(expected)) if isinstance(v, np.ndarray) and v.dtype.kind == "f" and v.size]
    scale = max((float(np.max(np.abs(v))) for v in floats), default=1.0)
    for position, (e, g) in enumerate(pairs):
        e, g = np.asarray(e), np.asarray(g)
        place = f"{name}, output {position}"
        if e.shape != g.shape or e.dtype != g.dtype:
            raise TwinMismatch(f"{place}: definition gives {e.dtype}{e.shape}, kernel {g.dtype}{g.shape}")
        wrong = ~_agrees(agree, e, g, scale)
        if wrong.any():
            first = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise TwinMismatch(
                f"{place}: {int(wrong.sum())} of {e.size} values differ, first at {first}: "
                f"definition {e[first]!r}, kernel {g[first]!r} (agreement {agree})"
            )


def _outputs(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def _agrees(agree: Agreement, e: np.ndarray, g: np.ndarray, scale: float) -> np.ndarray:
    same = (e == g) | ((e != e) & (g != g))
    if agree == "exact" or e.dtype.kind != "f":
        return same
    if agree == "ulp":
        return same | (ulp_distance(e, g) <= MAX_ULP)
    return same | (np.abs(e - g) <= SUM_TOLERANCE * np.finfo(e.dtype).eps * scale)
