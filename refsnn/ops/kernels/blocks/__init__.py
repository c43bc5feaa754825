"""Building blocks of the kernels: sums of runs, and dot products of runs, held in the registers of the processor.

What they do. A run is consecutive numbers in memory. Two operations on runs carry all the sparse arithmetic:

    add_runs     total[m] += sum_k weights[k] * x[offsets[k] + m]          an AXPY for every active weight
    dot_runs     dots[q]  += sum_m gradient[m] * x[offsets[q] + m]         a dot product for every active weight

and x may be spikes, packed one a bit, where a product becomes an addition under a mask:

    add_spikes   total[m] += weights[k]   where bit m of run k is set;  dot_runs alike

Why so. Written as loops, every multiply-add loads and stores its total: the compiler does not hold several vectors of
totals over the loop on k. Here LLVM's vector instructions are written out: 16 vectors of totals stay in registers over
all k (`sums.py`), or eight dot products over all m (`dots.py`), and a multiply-add costs one load. Bits make a map 32
times smaller (`packing.py`), so that it stays in the first caches. A product of a weight and a spike is the weight or
zero, and a fused multiply-add rounds once: bits and floats give the same result, to the last bit.

Arrays go by as they are, with a place in them: a slice, or a call that is not inlined, counts references, an atomic
operation for each array, which costs more than a short run does. What convolutions make of this: `maps.py` and
`tiles.py`; weights that are nearly all there: `dense.py`. Each operation has a twin in plain Python, which runs under
NUMBA_DISABLE_JIT=1, and compiled where a processor has neither AVX-512 nor AVX2. Every sum is taken in one order,
whatever the number of threads. The words that the generators use, and the cache of compiled kernels: `vectors.py`.
"""

from refsnn.ops.kernels.blocks.dots import dot_runs
from refsnn.ops.kernels.blocks.packing import pack_spikes
from refsnn.ops.kernels.blocks.sums import add_runs, add_spikes, sum_runs, sum_spikes
from refsnn.ops.kernels.blocks.vectors import (
    HELD,
    REGISTER,
    WIDE,
    ceil_div,
    copy,
    empty,
    fill,
    gather,
    kernel_jit,
    no_bias,
    vector,
    whole,
)

__all__ = [
    "HELD", "REGISTER", "WIDE", "add_runs", "add_spikes", "ceil_div", "copy", "dot_runs", "empty", "fill", "gather",
    "kernel_jit", "no_bias", "pack_spikes", "sum_runs", "sum_spikes", "vector", "whole",
]
