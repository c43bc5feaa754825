"""What a training step will need, before it runs: multiply-adds and memory, and whether the machine has that much.

Memory is estimated from the layers, without running them:

    what a step keeps for its backward pass      every array that a layer's cache holds, counted once (exact: a test)
  + what is alive beside it for a moment         BESIDE arrays of the size of the largest map
  + what a run holds between two steps           weights, optimiser, growth memory, masks
  + the gradients of one step                    of the active weights, and dense ones where regrowth reads them
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from refsnn.chain import Residual, computed_twice
from refsnn.errors import UserError
from refsnn.evaluate import synapses
from refsnn.fusion import Group, grouped
from refsnn.layers import BatchNorm, Conv2d, Dropout, Flatten, Layer, Linear, MaxPool2d, Spiking
from refsnn.models import Network
from refsnn.rewire import GROW
from refsnn.schema import Config
from refsnn.trace import NO_RECORD

Shape = tuple[int, ...]
MOMENTS = {"sgd": (1, 0), "adam": (2, 4), "adamw": (2, 4)}      # a weight's: numbers of the run's dtype, other bytes
BESIDE = 3      # the gradient that arrives, the one that leaves, and what a kernel lays out
PROGRAM = 250 << 20     # bytes of Python, NumPy, Numba and the compiled kernels


@dataclass(frozen=True)
class Kept:
    """Numbers per sample and time step that a chain keeps, others in bytes, and its output.

    | Field   | Meaning                                                                     |
    |---------|-----------------------------------------------------------------------------|
    | numbers | kept, in numbers of the run's dtype                                         |
    | bytes   | kept besides, in bytes                                                      |
    | largest | numbers of the largest map                                                  |
    | shape   | of the output of one sample                                                 |
    | counted | whether the output is an array that is counted already                      |
    """

    numbers: float
    bytes: float
    largest: int
    shape: Shape
    counted: bool


@dataclass(frozen=True)
class Batch:
    """T steps, B samples, and bytes of a number: what it depends on how spikes are kept, and which maps are not.

    static: the data has one step for all (`ops/static.py`).
    """

    steps: int
    size: int
    item: int
    static: bool = False

    @property
    def samples(self) -> int:
        """T B."""
        return self.steps * self.size


def kept(layers: Sequence[Layer], shape: Shape, batch: Batch, counted: bool = False, as_bytes: bool = False) -> Kept:
    """What a chain of layers keeps of every sample and step, its input of `shape` included where a layer keeps it.

    counted: the input is an array that is counted already; as_bytes: it is one of spikes, a byte each.
    """
    numbers, others, largest = 0.0, 0.0, math.prod(shape)
    before: Layer | None = None
    static, batch = batch.static, replace(batch, static=False)      # of the blocks behind, none is
    groups = {id(one.neurons): one for one in grouped(layers, NO_RECORD) if isinstance(one, Group)}
    starts = {id(one.norm or one.neurons) for one in groups.values()}
    for layer in layers:
        if isinstance(layer, Residual):
            body = kept(layer.body, shape, batch, counted, as_bytes)
            alone = as_bytes and _packed(layer.body[0], shape, batch) > 0   # packed spikes are of one convolution
            shortcut = kept(layer.shortcut, shape, batch, not alone, as_bytes)
            numbers, others = numbers + body.numbers + shortcut.numbers, others + body.bytes + shortcut.bytes
            largest, before = max(largest, body.largest), layer
            shape, counted, as_bytes = body.shape, False, False
            continue
        size, group = math.prod(shape), groups.get(id(layer))
        own = size / batch.steps if static else size
        if as_bytes and (packed := _packed(layer, shape, batch)):
            others += packed
        elif (isinstance(layer, Conv2d | Linear | BatchNorm) or (group and group.norm is None)) and not counted:
            others += own * as_bytes                # its input
            again = id(layer) in starts and computed_twice(before, round(own * batch.samples) * batch.item)
            numbers += own * (not as_bytes) * (not again)
        if isinstance(layer, Spiking) and not group:
            numbers += 2 * size                     # membrane and spikes
        shape = layer.output_shape(shape)
        if isinstance(layer, MaxPool2d):
            others += math.prod(shape)              # the winners, a byte each
        if isinstance(layer, Dropout):
            numbers += size                         # its scale is one step's: counted as all steps', a little too much
        if not isinstance(layer, Flatten):
            counted = isinstance(layer, Spiking) and not group
        if not isinstance(layer, Flatten | MaxPool2d):
            as_bytes = group is not None and group.compact
        static = static and (isinstance(layer, BatchNorm | Flatten) or (isinstance(layer, Conv2d) and layer.first))
        largest, before = max(largest, math.prod(shape)), layer
    return Kept(numbers, others, largest, shape, counted)


def _packed(layer: Layer, shape: Shape, batch: Batch) -> float:
    """Bytes of a convolution's packed input, of a sample and step; 0 where it is not packed."""
    if not isinstance(layer, Conv2d) or not layer.packs(batch.steps, batch.size):
        return 0.0
    channels, height, width = shape
    return channels * (height + 2 * layer.padding) * (width + 2 * layer.padding) / 8


@dataclass(frozen=True)
class Budget:
    """One training step and what is held around it.

    | Field       | Unit  | Meaning                                                                        |
    |-------------|-------|--------------------------------------------------------------------------------|
    | active, all | 1     | sparse weights                                                                 |
    | macs, dense | 1     | multiply-adds of one sample over all steps, over active and over all weights   |
    | step        | bytes | activations of a batch: kept, and beside                                       |
    | held        | bytes | between two steps, and the gradients of one                                    |
    """

    active: int
    all: int
    macs: int
    dense: int
    step: float
    held: float

    @property
    def memory(self) -> float:
        """Bytes that the process will need at its peak."""
        return self.step + self.held + PROGRAM


def holdings(network: Network, config: Config) -> dict[str, int]:
    """Bytes of what a run holds between two steps, by what it is."""
    weights = network.weights.values()
    item, (numbers, extra) = np.dtype(config.dtype).itemsize, MOMENTS[config.optim.kind]
    places = sum(w.size for w in weights)
    return {
        "weights in CSR form (value, column, row starts)":
            sum(w.data.nbytes + w.indices.nbytes + w.indptr.nbytes for w in weights),
        "biases and batch norm": sum(a.nbytes for name, a in network.parameters.items() if name not in network.weights),
        f"optimiser state ({config.optim.kind})":
            sum(a.size for a in network.parameters.values()) * (numbers * item + extra),
        f"growth memory ({config.rewire.grow}; at every place, connected or not)":
            len(GROW[config.rewire.grow].reads) * places * item,
        "masks kept for the tables (three, one bit a place)": 3 * sum(-(-w.size // 8) for w in weights),
    }


def budget(network: Network, config: Config) -> Budget:
    """The budget of a training step of this network with `train.batch` samples."""
    batch = Batch(config.encode.steps, config.train.batch, np.dtype(config.dtype).itemsize,
                  config.encode.kind == "direct")
    need = kept(network.layers, network.input_shape, batch)
    weights = network.weights.values()
    active, places = sum(w.nnz for w in weights), sum(w.size for w in weights)
    busy, dense = (config.encode.steps * n for n in synapses(network))
    gradients = batch.item * (active + places * bool(GROW[config.rewire.grow].reads))
    step = batch.samples * (batch.item * (need.numbers + BESIDE * need.largest) + need.bytes)
    return Budget(active, places, busy, dense, step, sum(holdings(network, config).values()) + gradients)


def require_memory(need: Budget, config: Config, available: int | None) -> None:
    """Raise UserError, with the remedy, where a training step will not fit into memory."""
    if available is None or need.memory <= available:
        return
    room = available - need.held - PROGRAM
    batch = int(config.train.batch * room / need.step) if room > 0 else 0
    remedy = (f"set train.batch to {batch} or less, or lower encode.steps (T)" if batch >= 1
              else "take a smaller network, or a machine with more memory")
    raise UserError(f"train.batch = {config.train.batch}, encode.steps = {config.encode.steps}: a training step needs "
                    f"about {need.memory / 2**30:.1f} GiB, and {available / 2**30:.1f} GiB are free; {remedy}")
