"""What the machine can do, measured, and how near to it refsnn's kernels come.

    sgemm   a product of two 2048 x 2048 matrices, float32: the most multiply-adds that a library gets out of it
    triad   a = b + 3 c of arrays far beyond the caches: the most numbers that reach memory and back

A kernel cannot be faster than the larger of its operations over sgemm's rate and its bytes over triad's; `of the limit`
is that time over its own. Bytes are those that go in and come out, and operations those on active weights (`refsnn
bench`): a kernel that reads a number twice, or skips a zero, is not credited.
"""

from argparse import Namespace
from collections.abc import Callable

import numpy as np
import results
import torch

from refsnn import bench
from refsnn.bench import timed

EDGE, NUMBERS, ROUNDS = 2048, 32 << 20, 15


def run(args: Namespace, machine: str) -> None:      # noqa: ARG001
    """Print the limits, then a line a kernel."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((EDGE, EDGE)).astype(np.float32) for _ in range(2))
    ta, tb, tout = torch.from_numpy(a), torch.from_numpy(b), torch.empty(EDGE, EDGE)
    x, y, z = (torch.rand(NUMBERS) for _ in range(3))
    products = [best_and_median(lambda: a @ b), best_and_median(lambda: torch.mm(ta, tb, out=tout))]
    flops = [(2 * EDGE**3 / best / 1e9, 2 * EDGE**3 / median / 1e9) for best, median in products]
    best, median = best_and_median(lambda: torch.add(x, y, alpha=3, out=z))
    rates = [3 * z.nbytes / t / 1e9 for t in (best, median)]
    for what, (high, middle) in zip(("sgemm, NumPy", "sgemm, PyTorch"), flops, strict=True):
        print(f"{what:<16} {high:7.1f} GFLOP/s best, {middle:7.1f} median")
    print(f"{'triad, PyTorch':<16} {rates[0]:7.1f} GB/s best, {rates[1]:10.1f} median\n")
    peak = max(high for high, _ in flops)
    print("\n".join(results.table(("kernel", "GFLOP/s", "GB/s", "FLOP/byte", "of the limit"), kernels(peak, rates[0]))))


def kernels(peak: float, bandwidth: float) -> list[list[str]]:
    """A line for each operation with a kernel, at the sizes of `refsnn bench`."""
    rows = (bench.measure(name, "float32", bench.Size()) for name in bench.CASES)
    return [[row.operation, f"{row.gflops:.1f}" if row.gflops else "", f"{row.gbytes:.1f}",
             f"{row.gflops / row.gbytes:.1f}" if row.gflops else "",
             f"{max(row.gflops / peak, row.gbytes / bandwidth):.0%}"] for row in rows]


def best_and_median(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of one call."""
    call()
    times = [timed(call) for _ in range(ROUNDS)]
    return min(times), float(np.median(times))
