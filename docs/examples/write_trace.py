"""A trace written with h5py alone: one linear layer and its LIF neurons.   python write_trace.py mine.h5"""

import sys

import h5py
import numpy as np

T, B, INPUTS, NEURONS = 4, 2, 3, 5
rng = np.random.default_rng(0)
mask = rng.random((NEURONS, INPUTS)) < 0.7
weight = np.where(mask, 2 * rng.standard_normal(mask.shape), 0)  # dense, 0 where inactive
x = rng.random((T, B, INPUTS))                                  # activations: time, batch, features

y = x @ weight.T                                                # eq. (5): the current (M∘W) x(t)
h, s, v = (np.zeros((T, B, NEURONS)) for _ in range(3))
for t in range(T):
    h[t] = 0.5 * (v[t - 1] if t else 0) + y[t]                  # eq. (5): charge, decay 0.5
    s[t] = h[t] > 1                                             # eq. (6): fire, threshold 1
    v[t] = (1 - s[t]) * h[t]                                    # eq. (7): hard reset to 0

records = [                                                     # name, kind, array: in the order of execution
    ("params/fc1.weight/value", "real", weight),
    ("params/fc1.weight/mask", "mask", mask),
    ("encode/spikes", "real", x),
    ("forward/fc1/y", "real", y),
    ("forward/lif1/h", "real", h),
    ("forward/lif1/s", "spikes", s),
    ("forward/lif1/v", "real", v),
]
with h5py.File(sys.argv[1], "w") as file:
    file.attrs["format"] = "refsnn-trace/1"
    for seq, (name, kind, value) in enumerate(records):
        dataset = file.create_dataset(f"step_0000/{name}", data=value)
        dataset.attrs["seq"] = seq
        dataset.attrs["kind"] = kind
