"""Chains of layers, run forwards and backwards, and the residual block that joins two of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from refsnn.fusion import Group, grouped
from refsnn.layers import BatchNorm, Conv2d, Draw, Gradients, Layer, Records
from refsnn.ops.join import join
from refsnn.ops.static import one_step

Array = npt.NDArray[Any]
Caches = list[tuple[Layer | Group, Any]]        # what ran, in order, and what it keeps for its backward

LARGE = 2**24       # bytes of a map that is rather computed twice than kept


@dataclass
class Residual:
    """Two chains of the same input, added: y = body(x) + shortcut(x); an empty shortcut is x itself."""

    name: str
    body: list[Layer]
    shortcut: list[Layer]

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """That of the body."""
        for layer in self.body:
            shape = layer.output_shape(shape)
        return shape

    def parameters(self) -> dict[str, Array]:
        """Those of both chains."""
        return {name: a for layer in (*self.body, *self.shortcut) for name, a in layer.parameters().items()}

    def forward(self, x: Array, training: bool, rng: Draw, rec: Records) -> tuple[Array, Any]:
        """Return (y, (caches of the body, caches of the shortcut))."""
        along, body = chain_forward(self.body, x, training, rng, rec)
        beside, shortcut = chain_forward(self.shortcut, x, training, rng, rec)
        y = join(along, beside)
        rec.samples(f"forward/{self.name}/y", y)
        return y, (body, shortcut)

    def backward(self, dy: Array, cache: Any, rec: Records, dense: bool) -> tuple[Array, Gradients]:
        """Return (dx, gradients): the gradients of x along both ways, added."""
        beside, theirs = chain_backward(dy, cache[1], rec, dense)
        along, ours = chain_backward(dy, cache[0], rec, dense)
        dx = join(along, beside)
        rec.samples(f"backward/{self.name}/dx", dx)
        return dx, ours | theirs


# ------------------------------------------------------------------------------------------------ chains of layers


def chain_forward(layers: list[Layer], x: Array, training: bool, rng: Draw, rec: Records) -> tuple[Array, Caches]:
    """Run layers one after the other; the output, and what each keeps for backward.

    What the convolution of the data gives to a group is not kept where it is large: the data has few channels, and to
    convolve it again costs a hundredth of a step, where its output is the largest map.
    """
    caches: Caches = []
    before: Layer | Group | None = None
    for one in grouped(layers, rec, training):
        again = training and isinstance(one, Group) and computed_twice(before, one_step(x).nbytes)
        x, cache = one.forward(x, training, rng, rec)
        if again:
            cache[0] = (None, *cache[0][1:])
        caches.append((one, cache))
        before = one
    return x, caches


def chain_backward(dy: Array, caches: Caches, rec: Records, dense: bool) -> tuple[Array, Gradients]:
    """Run what ran backwards, from the last to the first; the gradient of the input, and those of all parameters.

    The caches are used up on the way: the largest maps belong to the first layers, and by then most others are free.
    What a step still wants of them is left: `BatchNorm.commit`.
    """
    gradients: Gradients = {}
    for k in reversed(range(len(caches))):
        one, cache = caches[k]
        before, x = caches[k - 1]
        if isinstance(one, Group) and cache[0][0] is None and isinstance(before, Conv2d):
            cache[0] = (before.output(x), *cache[0][1:])
        dy, own = one.backward(dy, cache, rec, dense)
        caches[k] = (one, _rest(one, cache))
        gradients |= own
    return dy, gradients


def computed_twice(before: Layer | Group | None, size: int) -> bool:
    """Whether a group does not keep its input, `size` bytes that the layer before it gave: those of the data's conv."""
    return isinstance(before, Conv2d) and before.first and size >= LARGE


def _rest(one: Layer | Group, cache: Any) -> Any:
    """What a step still wants of a cache after its backward: new running statistics."""
    if isinstance(one, Residual):
        return cache
    if isinstance(one, Group):
        return [_rest(layer, own) for layer, own in zip(one.layers, cache, strict=True)]
    return (None, None, None, cache[3]) if isinstance(one, BatchNorm) else None


def leaves(layers: list[Layer]) -> Iterator[Layer]:
    """Every layer in order of execution, those of residual blocks one by one, without the blocks themselves."""
    for layer in layers:
        yield from leaves([*layer.body, *layer.shortcut]) if isinstance(layer, Residual) else (layer,)


def leaf_caches(caches: Caches) -> Iterator[tuple[Layer, Any]]:
    """The layers among them one by one, those of residual blocks and groups, too, with what each kept."""
    for one, cache in caches:
        if isinstance(one, Residual):
            yield from leaf_caches(cache[0])
            yield from leaf_caches(cache[1])
        elif isinstance(one, Group):
            yield from zip(one.layers, cache, strict=True)
        else:
            yield one, cache
