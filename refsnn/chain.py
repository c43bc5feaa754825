"""Chains of layers, run forwards and backwards, and the residual block that joins two of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from refsnn.fusion import Group, as_they_ran, grouped
from refsnn.layers import BatchNorm, Conv2d, Draw, Gradients, Layer, Records
from refsnn.ops.join import join

Array = npt.NDArray[Any]

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
        beside, theirs = chain_backward(self.shortcut, dy, cache[1], rec, dense)
        along, ours = chain_backward(self.body, dy, cache[0], rec, dense)
        dx = join(along, beside)
        rec.samples(f"backward/{self.name}/dx", dx)
        return dx, ours | theirs


# ------------------------------------------------------------------------------------------------ chains of layers


def chain_forward(layers: list[Layer], x: Array, training: bool, rng: Draw, rec: Records) -> tuple[Array, list[Any]]:
    """Run layers one after the other; the output, and what each keeps for backward.

    What the convolution of the data gives to a group is not kept where it is large: the data has few channels, and to
    convolve it again costs a hundredth of a step, where its output is the largest map.
    """
    caches: list[Any] = []
    for layer in grouped(layers, rec, training):
        if isinstance(layer, Group):
            again = training and bool(caches) and computed_twice(layers[len(caches) - 1], x.nbytes)
            x, own = layer.forward(x, training)
            if again:
                own[0] = (None, *own[0][1:])
            caches += own
        else:
            x, cache = layer.forward(x, training, rng, rec)
            caches.append(cache)
    return x, caches


def chain_backward(layers: list[Layer], dy: Array, caches: list[Any], rec: Records, dense: bool
                   ) -> tuple[Array, Gradients]:
    """Run layers backwards, from the last to the first; the gradient of the input, and those of all parameters.

    The caches are used up on the way: the largest maps belong to the first layers, and by then most others are free.
    """
    gradients: Gradients = {}
    end = len(caches)
    while end:
        group, last = as_they_ran(layers[:end], caches[:end]), end
        if group is not None:
            end -= group.width
            x, *statistics = caches[end]
            before = layers[end - 1]
            if x is None and isinstance(before, Conv2d):
                x = before.output(caches[end - 1])
            dy, own = group.backward(dy, [(x, *statistics), *caches[end + 1 : last]])
        else:
            end -= 1
            dy, own = layers[end].backward(dy, caches[end], rec, dense)
        caches[end:last] = map(_rest, layers[end:last], caches[end:last])
        gradients |= own
    return dy, gradients


def computed_twice(before: Layer | None, size: int) -> bool:
    """Whether a group does not keep its input, `size` bytes that the layer before it gave: those of the data's conv."""
    return isinstance(before, Conv2d) and before.first and size >= LARGE


def _rest(layer: Layer, cache: Any) -> Any:
    """What a step still wants of a cache after its backward: new running statistics."""
    if isinstance(layer, Residual):
        return cache
    return (None, None, None, cache[3]) if isinstance(layer, BatchNorm) else None


def leaves(layers: list[Layer]) -> Iterator[Layer]:
    """Every layer in order of execution, those of residual blocks one by one, without the blocks themselves."""
    for layer in layers:
        yield from leaves([*layer.body, *layer.shortcut]) if isinstance(layer, Residual) else (layer,)


def leaf_caches(layers: list[Layer], caches: list[Any]) -> Iterator[tuple[Layer, Any]]:
    """The same with what each layer kept."""
    for layer, cache in zip(layers, caches, strict=True):
        if isinstance(layer, Residual):
            yield from leaf_caches(layer.body, cache[0])
            yield from leaf_caches(layer.shortcut, cache[1])
        else:
            yield layer, cache
