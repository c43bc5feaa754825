"""Named random streams: what is drawn depends on the seed and the name, never on the order of calls.

    stream(seed, "init/conv1")            the initial weights of conv1
    stream(seed, "shuffle", epoch)        the order of the samples in one epoch

A stream is made where it is needed and thrown away, so that a run carries no generator state: to resume a run it is
enough to know its seed and its epoch. The name is hashed with SHA-256, which is the same on every platform.
"""

import hashlib

import numpy as np


def stream(seed: int, name: str, *keys: int) -> np.random.Generator:
    """Return a generator that is independent of every stream of another seed, name or key.

    Parameter, Default, Unit, Meaning
      seed     -   -   the run's seed, >= 0
      name     -   -   what is drawn, such as "mask/conv1"
      keys     -   -   counters, such as the epoch, >= 0

    Raises ValueError for a negative seed or key. Source: NumPy's SeedSequence, whose spawn key separates streams.
    """
    if seed < 0 or any(key < 0 for key in keys):
        raise ValueError(f"stream {name!r}: seed and keys must be >= 0, got {seed} and {keys}")
    words = np.frombuffer(hashlib.sha256(name.encode()).digest(), dtype="<u4")
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(*(int(w) for w in words), *keys)))
