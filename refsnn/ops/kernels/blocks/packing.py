"""Spikes, one a bit: a map is 32 times smaller than in floats, stays in the first caches, and serves as a mask.

`pack_spikes` reads floats or bytes and says at once whether they are nothing but 0 and 1.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from refsnn.ops.kernels.blocks.vectors import I64, WIDE, Vectors, kernel_jit, vector, whole

Array = npt.NDArray[Any]


def _packing() -> Any:
    """Intrinsic: bit m of bits[at:] = x[start + m] == 1, for n numbers that fill vectors; whether all are 0 or 1."""

    @intrinsic
    def pack(_context: Any, bits: Any, _at: Any, x: Any, _start: Any, _n: Any) -> Any:
        def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
            b, v = builder, Vectors(context, builder, x.dtype)
            source, target = v.pointer(x, args[2], args[3]), v.pointer(bits, args[0], args[1])
            bytes_ = isinstance(x.dtype, types.Integer)
            one = ir.Constant(v.type, [1 if bytes_ else 1.0] * v.size)
            silence, integer = ir.Constant(v.type, [0 if bytes_ else 0.0] * v.size), ir.IntType(v.size)
            good = cgutils.alloca_once_value(b, integer(-1))
            with cgutils.for_range_slice(b, I64(0), args[4], I64(v.size)) as (m, _):
                numbers = v.load(b.gep(source, [m]))
                equal = b.icmp_unsigned if bytes_ else b.fcmp_ordered
                spikes, silent = equal("==", numbers, one), equal("==", numbers, silence)
                place = b.bitcast(b.gep(target, [b.lshr(m, I64(3))]), integer.as_pointer())
                b.store(b.bitcast(spikes, integer), place, align=1)
                b.store(b.and_(b.load(good), b.bitcast(b.or_(spikes, silent), integer)), good)
            return b.icmp_signed("==", b.load(good), integer(-1))

        return types.boolean(bits, types.intp, x, types.intp, types.intp), generate

    return pack


_pack = _packing()


@kernel_jit(error_model="numpy")
def pack_spikes(bits: Array, at: int, x: Array, start: int, n: int) -> bool:
    """Pack n numbers, a multiple of 8, from x[start] on into bytes from bits[at] on. False where one is not 0 or 1."""
    done = whole(n, vector(x)) if WIDE else 0
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
