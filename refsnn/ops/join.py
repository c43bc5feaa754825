"""The join of a residual block: what came along the body and what came beside it, added."""

from typing import Any

import numpy as np
import numpy.typing as npt

from refsnn.twin import op

Array = npt.NDArray[Any]


@op(kernel="join:join_kernel", agree="exact")
def join(along: Array, beside: Array) -> Array:
    """y = along + beside, place by place.

    along   any shape      floats; y has their dtype
    beside  the same       floats, or uint8 spikes
    """
    return np.add(along, beside, dtype=along.dtype)
