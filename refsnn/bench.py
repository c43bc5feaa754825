"""`refsnn bench`: every definition against its kernel, on shapes of a convolutional network's middle layers.

Clocks move and other programs interfere, so that a time by itself says little: the two run in turn in one process,
after a warm-up that also verifies that they agree, and what is reported is the median of the ratios of each round, with
their quartiles. Work and memory traffic of a kernel stand beside it:

    GFLOP/s   two operations for each active weight and place it serves, over the kernel's time; sparse layers only
    GB/s      the arrays that go in and come out, each counted once, over the kernel's time

A new operation needs a line in `CASES`: a test demands one for every operation with a kernel.
"""

import csv
import io
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn import twin
from refsnn.disk import write_whole
from refsnn.errors import UserError
from refsnn.ops import conv, fused, join, linear, neuron, norm, pool, surrogate  # noqa: F401  (they enter REGISTRY)
from refsnn.ops.sparse import SparseWeight, from_dense

Array = npt.NDArray[Any]
Case = tuple[tuple[Any, ...], int]      # arguments of an operation, and its floating-point operations on active weights

SECONDS, LEAST, MOST = 2.0, 5, 50       # time to spend on an operation; fewest and most rounds
PAUSE, SHORTEST = 0.02, 0.1     # seconds: for another library's idle threads to fall asleep; what is timed at once
HEAD = f"{'operation':<30}{'definition':>12}{'kernel':>10}{'ratio':>8}   {'quartiles':<13}{'GFLOP/s':>9}{'GB/s':>7}"


@dataclass(frozen=True)
class Size:
    """The shapes that are measured: maps (channels, pixels, pixels, steps, batch), vectors (features, steps, batch)."""

    channels: int = 128
    pixels: int = 16
    features: int = 2048
    steps: int = 4
    batch: int = 16
    density: float = 0.05
    firing: float = 0.15        # spikes per neuron and step


@dataclass(frozen=True)
class Row:
    """What one operation took; the columns of the CSV file. Times in seconds, medians over the rounds.

    ratio is the median over the rounds of definition / kernel, lower and upper its quartiles. gflops is 0 where an
    operation has no weights.
    """

    operation: str
    dtype: str
    definition: float
    kernel: float
    ratio: float
    lower: float
    upper: float
    gflops: float
    gbytes: float
    rounds: int

    def __str__(self) -> str:
        gflops = f"{self.gflops:9.1f}" if self.gflops else f"{'':9}"
        return (f"{self.operation:<30}{milliseconds(self.definition):>12}{milliseconds(self.kernel):>10}"
                f"{self.ratio:8.3g}   {f'{self.lower:.3g} .. {self.upper:.3g}':<13}{gflops}{self.gbytes:7.1f}")


# -------------------------------------------------------------------------------------------------------- what is run


class Draw:
    """Random arguments of one size and dtype."""

    def __init__(self, size: Size, dtype: str) -> None:
        self.size, self.dtype, self.rng = size, np.dtype(dtype), np.random.default_rng(0)
        samples = (size.steps, size.batch)
        self.map = (size.channels, size.pixels, size.pixels, *samples)
        self.half = (size.channels, size.pixels // 2, size.pixels // 2, *samples)      # behind a pool over 2x2
        self.vector = (size.features, *samples)

    def reals(self, shape: tuple[int, ...]) -> Array:
        """Normal numbers."""
        return self.rng.standard_normal(shape).astype(self.dtype)

    def positive(self, shape: tuple[int, ...]) -> Array:
        """Numbers between 1/2 and 2."""
        return self.rng.uniform(0.5, 2, shape).astype(self.dtype)

    def spikes(self, shape: tuple[int, ...]) -> Array:
        """0 and 1."""
        return (self.rng.random(shape) < self.size.firing).astype(self.dtype)

    def weight(self, *shape: int) -> SparseWeight:
        """A sparse weight of the size's density."""
        return from_dense(self.reals(shape), self.rng.random(shape) < self.size.density)

    def filters(self) -> SparseWeight:
        """3x3, from all channels to as many."""
        return self.weight(self.size.channels, self.size.channels, 3, 3)

    def connections(self) -> SparseWeight:
        """From all features to as many."""
        return self.weight(self.size.features, self.size.features)


WINDOW = ((3, 3), 1, 1)                                         # kernel size, stride, padding
NEURON = (0.5, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, "hard", "gt", "affine")    # the paper's
CHANGE = (0.5, 1.0, 0.0, 1.0, "hard", False)


def _uses(shape: Sequence[int]) -> int:
    """Operations of one weight: a multiplication and an addition for each pixel, step and sample."""
    return 2 * math.prod(shape[1:])


def _conv_forward(d: Draw) -> Case:
    w = d.filters()
    return (d.spikes(d.map), w.data, w.indices, w.indptr, None, *WINDOW), w.nnz * _uses(d.map)


def _conv_input_gradient(d: Draw) -> Case:
    w = d.filters()
    return (d.reals(d.map), w.data, w.indices, w.indptr, d.map[:3], *WINDOW), w.nnz * _uses(d.map)


def _conv_weight_gradient(d: Draw) -> Case:
    w = d.filters()
    return (d.reals(d.map), d.spikes(d.map), w.indices, w.indptr, *WINDOW), w.nnz * _uses(d.map)


def _conv_dense_gradient(d: Draw) -> Case:
    return (d.reals(d.map), d.spikes(d.map), *WINDOW), d.size.channels**2 * 9 * _uses(d.map)


def _linear_forward(d: Draw) -> Case:
    w = d.connections()
    return (d.spikes(d.vector), w.data, w.indices, w.indptr, None), w.nnz * _uses(d.vector)


def _linear_input_gradient(d: Draw) -> Case:
    w = d.connections()
    return (d.reals(d.vector), w.data, w.indices, w.indptr, d.size.features), w.nnz * _uses(d.vector)


def _linear_weight_gradient(d: Draw) -> Case:
    w = d.connections()
    return (d.reals(d.vector), d.spikes(d.vector), w.indices, w.indptr), w.nnz * _uses(d.vector)


def _linear_dense_gradient(d: Draw) -> Case:
    return (d.reals(d.vector), d.spikes(d.vector)), d.size.features**2 * _uses(d.vector)


def _norm(d: Draw, channels: int) -> Case:
    """x or dy, and one positive number a channel so many times."""
    return (d.reals(d.map), *_channels(d, channels), 1e-5), 0


def _channels(d: Draw, many: int) -> tuple[Array, ...]:
    """Positive numbers, one a channel."""
    return tuple(d.positive(d.map[:1]) for _ in range(many))


def _norm_backward(d: Draw) -> Case:
    (dy, *per_channel), _ = _norm(d, 3)
    return (dy, d.reals(d.map), *per_channel), 0


def _max_backward(d: Draw) -> Case:
    return (d.reals(d.half), d.rng.integers(0, 4, d.half, dtype=np.uint8), 2, d.map[1:3]), 0


def _lif_backward(d: Draw) -> Case:
    return (d.reals(d.map), d.reals(d.map), d.spikes(d.map), d.positive(d.map), *CHANGE), 0


def _slope(d: Draw) -> Case:
    return (d.reals(d.map), 1.5), 0


CASES: dict[str, Callable[[Draw], Case]] = {
    "pack_input": lambda d: ((d.spikes(d.map).astype(np.uint8), 1), 0),
    "conv2d_forward": _conv_forward,
    "conv2d_input_gradient": _conv_input_gradient,
    "conv2d_weight_gradient": _conv_weight_gradient,
    "conv2d_weight_gradient_dense": _conv_dense_gradient,
    "linear_forward": _linear_forward,
    "linear_input_gradient": _linear_input_gradient,
    "linear_weight_gradient": _linear_weight_gradient,
    "linear_weight_gradient_dense": _linear_dense_gradient,
    "batch_norm_forward": lambda d: _norm(d, 2),
    "batch_norm_backward": _norm_backward,
    "batch_norm_inference": lambda d: _norm(d, 4),
    "avg_pool_forward": lambda d: ((d.spikes(d.map), 2), 0),
    "avg_pool_backward": lambda d: ((d.reals(d.half), 2, d.map[1:3]), 0),
    "max_pool_forward": lambda d: ((d.spikes(d.map), 2), 0),
    "max_pool_backward": _max_backward,
    "lif_forward": lambda d: ((d.reals(d.map), *NEURON), 0),
    "lif_backward": _lif_backward,
    "norm_lif_forward": lambda d: ((d.reals(d.map), *_channels(d, 2), 1e-5, *NEURON, np.empty(0, np.uint8)), 0),
    "norm_lif_inference": lambda d: ((d.reals(d.map), *_channels(d, 4), 1e-5, *NEURON, np.empty(0, np.uint8)), 0),
    "norm_lif_backward": lambda d: ((d.reals(d.map), d.reals(d.map), *_channels(d, 4), 1e-5, *NEURON, False,
                                     "triangle", 1.0, False), 0),
    "norm_lif_pool_forward": lambda d: ((d.reals(d.map), *_channels(d, 2), 1e-5, *NEURON, np.empty(0, np.uint8), 2,
                                         "max"), 0),
    "norm_lif_pool_backward": lambda d: ((*_max_backward(d)[0][:2], d.reals(d.map), *_channels(d, 4), 1e-5, *NEURON,
                                          False, "triangle", 1.0, 2, "max", False), 0),
    "join": lambda d: ((d.reals(d.map), d.spikes(d.map).astype(np.uint8)), 0),
    "triangle_derivative": _slope,
    "rectangle_derivative": _slope,
    "arctan_derivative": _slope,
    "fast_sigmoid_derivative": _slope,
}

# Twins normalise with different roundings, and in float32 one membrane in millions lies between: float64 compares them.
NORMALISED = ("norm_lif_forward", "norm_lif_inference", "norm_lif_backward", "norm_lif_pool_forward",
              "norm_lif_pool_backward")


# ---------------------------------------------------------------------------------------------------------- measuring


def measure(name: str, dtype: str, size: Size, seconds: float = SECONDS) -> Row:
    """Time one operation's definition and kernel in turn.   Raises TwinMismatch where they disagree."""
    operation = twin.REGISTRY[name]
    args, flops = CASES[name](Draw(size, dtype))
    same = _in_float64(args) if name in NORMALISED else args
    twin.check_agreement(name, operation.agree, operation.definition(*same), operation.run_kernel(*same), same)
    programs = [lambda: operation.definition(*args), lambda: operation.run_kernel(*args)]
    warm, shortest = sum(timed(program) for program in programs), min(SHORTEST, seconds)
    rounds = min(max(LEAST, int(seconds / (warm + 2 * (PAUSE + shortest)))), MOST)
    definition, kernel = interleave(programs, rounds, shortest).T
    ratio, lower, upper = quartiles(definition / kernel)
    once = float(np.median(kernel))
    moved = sum(a.nbytes for a in (*args, *_results(operation.run_kernel(*args))) if isinstance(a, np.ndarray))
    return Row(name, dtype, float(np.median(definition)), once, ratio, lower, upper, flops / once / 1e9,
               moved / once / 1e9, rounds)


def _in_float64(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments with their floats in float64."""
    return tuple(a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a for a in args)


def interleave(calls: Sequence[Callable[[], object]], rounds: int, shortest: float = SHORTEST) -> Array:
    """Seconds of one call of each in each round, (rounds, calls); who goes first moves on by one from round to round.

    One call each is for warming up, one to see how long it takes: what is shorter than `shortest` seconds is repeated.
    """
    for call in calls:
        call()
    repeats = [max(1, round(shortest / timed(call))) for call in calls]
    times = np.empty((rounds, len(calls)))
    for r in range(rounds):
        for k in range(len(calls)):
            which = (r + k) % len(calls)
            times[r, which] = timed(calls[which], repeats[which])
    return times


def timed(call: Callable[[], object], repeats: int = 1) -> float:
    """Seconds of one call, after a pause."""
    time.sleep(PAUSE)
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - began) / repeats


def quartiles(values: Array) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    lower, median, upper = (float(q) for q in np.percentile(values, (25, 50, 75)))
    return median, lower, upper


def _results(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


# ---------------------------------------------------------------------------------------------------------- reporting


def bench(dtype: str, out: Path | None = None) -> Iterator[str]:
    """The body of `refsnn bench`: lines to print, one as soon as an operation is measured; then `out`, a CSV file.

    Raises UserError where there are no compiled kernels, or `out` cannot be written.
    """
    if os.environ.get("NUMBA_DISABLE_JIT", "0") == "1":
        raise UserError("NUMBA_DISABLE_JIT=1: there are no compiled kernels to time; unset it")
    if out is not None and not out.absolute().parent.is_dir():
        raise UserError(f"--csv {out}: there is no folder {out.absolute().parent}; make it first")
    size, rows = Size(), []
    yield machine()
    yield (f"{dtype}; map {' x '.join(map(str, Draw(size, dtype).map))}, vector {size.features} x {size.steps} x "
           f"{size.batch}, density {size.density:.0%}, {size.firing:.0%} of inputs spike; medians, ratio by rounds")
    yield ""
    yield HEAD
    for name in CASES:
        rows.append(measure(name, dtype, size, SECONDS))
        yield str(rows[-1])
    if out is not None:
        write_csv(out, rows)
        yield f"\nin {out}"


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """Write the rows, and the machine in a last column.   Raises UserError where that fails."""
    text, names = io.StringIO(newline=""), [field.name for field in fields(Row)]
    writer = csv.writer(text)
    writer.writerow([*names, "machine"])
    writer.writerows([*(getattr(row, name) for name in names), machine()] for row in rows)
    try:
        write_whole(path, text.getvalue().encode())
    except OSError as error:
        raise UserError(f"--csv {path}: cannot be written: {error.strerror}") from None


def machine() -> str:
    """One line: processor, cores, threads of the kernels, versions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("NUMBA_NUM_THREADS", cores)
    return (f"{_processor()}, {cores} cores, {threads} threads; Python {platform.python_version()}, "
            + ", ".join(f"{name} {_version(package)}" for name, package in (("NumPy", "numpy"), ("Numba", "numba"))))


def milliseconds(seconds: float) -> str:
    """Three digits: "0.124 ms", "12.4 ms", "1,240 ms"."""
    value = 1e3 * seconds
    digits = next((digits for digits, limit in enumerate((100, 10, 1)) if value >= limit), 3)
    return f"{value:,.{digits}f} ms"


def _processor() -> str:
    """The model as Linux names it, and its widest vectors; elsewhere what Python knows."""
    try:
        lines = dict(line.split("\t", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if "\t" in line)
    except OSError:
        lines = {}
    facts = {name: value.strip().removeprefix(": ") for name, value in lines.items()}
    flags = facts.get("flags", "").split()
    vectors = " AVX-512" if "avx512f" in flags else " AVX2" if "avx2" in flags else ""
    return (facts.get("model name") or platform.processor() or platform.machine()) + vectors


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
