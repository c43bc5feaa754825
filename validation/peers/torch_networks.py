"""The paper's networks as ordinary PyTorch, differentiated by autograd; samples first, (T, B, C, H, W) and (T, B, F).

Written from the networks' descriptions (Shen et al., ICLR 2025: ResNet-19 and VGGSNN as Deng et al., ICLR 2022, have
them; six convolutions and two linear layers as Chen et al., IJCAI 2021); nothing of refsnn is imported. A network is a
function of a `Pass`, the images and the number of classes. Parameters are handed over by name: "conv1.weight",
"norm1.gamma", "norm1.beta", "fc1.bias", "block1.shortcut.weight"; weights are dense, 0 where there is no connection.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from peers.torch_layers import batch_norm, conv, each_step, lif, pool

Tensors = dict[str, Tensor]


class Pass:
    """One forward pass in training, layer by layer.

    parameters   by name
    statistics   running mean and variance by batch norm, which the pass moves
    given        None: every layer takes what the one before it gave. Else inputs by layer, leaves of the graph, and
                 each layer takes the one of its name: the layers are cut apart, and no error reaches the next
    inputs, outputs, membranes (before the reset), shapes (of the weights, as the description has them)   by name
    """

    def __init__(self, parameters: Tensors, statistics: dict[str, tuple[Tensor, Tensor]],
                 given: Tensors | None = None) -> None:
        self.parameters, self.statistics, self.given = parameters, statistics, given
        self.inputs: Tensors = {}
        self.outputs: Tensors = {}
        self.membranes: Tensors = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def layer(self, name: str, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Run a layer by this name."""
        self.inputs[name] = x if self.given is None else self.given[name]
        self.outputs[name] = function(self.inputs[name])
        return self.outputs[name]

    def weight(self, name: str, *shape: int) -> Tensor:
        """A layer's weight.   Raises ValueError where its shape is not the one the network needs."""
        found, self.shapes[name] = self.parameters[f"{name}.weight"], shape
        if found.shape != shape:
            raise ValueError(f"{name}.weight: the network needs {shape}, given is {tuple(found.shape)}")
        return found

    def conv(self, name: str, x: Tensor, filters: int, kernel: int = 3, stride: int = 1) -> Tensor:
        """Convolution without bias, padded by half its kernel."""
        w = self.weight(name, filters, x.shape[2], kernel, kernel)
        return self.layer(name, x, lambda x: conv(x, w, stride=stride, padding=kernel // 2))

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Batch norm over time, batch and space together."""
        gamma, beta = self.parameters[f"{name}.gamma"], self.parameters[f"{name}.beta"]
        return self.layer(name, x, lambda x: batch_norm(x, gamma, beta, *self.statistics[name], training=True))

    def lif(self, name: str, x: Tensor) -> Tensor:
        """The paper's neurons: decay 0.5, threshold 1, reset to 0, its gradient kept; triangle of width 1."""
        def fire(x: Tensor) -> Tensor:
            spikes, membrane, _ = lif(x)
            self.membranes[name] = membrane.detach()
            return spikes
        return self.layer(name, x, fire)

    def spiking(self, k: int, x: Tensor, filters: int) -> Tensor:
        """conv_k 3x3, norm_k, lif_k."""
        return self.lif(f"lif{k}", self.norm(f"norm{k}", self.conv(f"conv{k}", x, filters)))

    def block(self, name: str, x: Tensor, filters: int, stride: int) -> Tensor:
        """conv BN LIF conv BN, plus x, or a 1x1 conv with BN of x where the shape changes; then LIF."""
        y = self.norm(f"{name}.norm1", self.conv(f"{name}.conv1", x, filters, stride=stride))
        y = self.conv(f"{name}.conv2", self.lif(f"{name}.lif1", y), filters)
        y = self.norm(f"{name}.norm2", y)
        if stride > 1 or x.shape[2] != filters:
            x = self.norm(f"{name}.shortcut_norm", self.conv(f"{name}.shortcut", x, filters, kernel=1, stride=stride))
        return self.lif(f"{name}.lif2", y + x)

    def pool(self, k: int, x: Tensor, kind: str) -> Tensor:
        """Average or max pooling over 2x2."""
        return self.layer(f"pool{k}", x, lambda x: pool(x, 2, kind))

    def flatten(self, x: Tensor) -> Tensor:
        """(T, B, C, H, W) -> (T, B, C H W)."""
        return self.layer("flatten", x, lambda x: x.flatten(2))

    def linear(self, name: str, x: Tensor, units: int, bias: bool = True) -> Tensor:
        """Linear layer."""
        w, b = self.weight(name, units, x.shape[2]), self.parameters[f"{name}.bias"] if bias else None
        return self.layer(name, x, lambda x: each_step(lambda flat: F.linear(flat, w, b), x))


def over_time(x: Tensor, steps: int) -> Tensor:
    """Images (B, C, H, W), the same at every step, or frames (B, T, C, H, W), as (T, B, C, H, W)."""
    return x.transpose(0, 1) if x.ndim == 5 else x.expand(steps, *x.shape)


def resnet19(net: Pass, x: Tensor, classes: int) -> Tensor:
    """conv 64; three blocks of 128, three of 256, two of 512; mean over the map; 256 neurons; read-out."""
    x = net.spiking(1, x, 64)
    stages = [(128, 1), (128, 1), (128, 1), (256, 2), (256, 1), (256, 1), (512, 2), (512, 1)]
    for k, (filters, stride) in enumerate(stages, start=1):
        x = net.block(f"block{k}", x, filters, stride)
    x = net.layer("pool1", x, lambda x: x.mean(dim=(3, 4), keepdim=True))
    x = net.lif("lif2", net.linear("fc1", net.flatten(x), 256))
    return net.linear("fc2", x, classes)


def vggsnn(net: Pass, x: Tensor, classes: int) -> Tensor:
    """64 128 AP2 256 256 AP2 512 512 AP2 512 512 AP2, read-out."""
    for stage, (first, second) in enumerate([(64, 128), (256, 256), (512, 512), (512, 512)], start=1):
        x = net.spiking(2 * stage - 1, x, first)
        x = net.spiking(2 * stage, x, second)
        x = net.pool(stage, x, "average")
    return net.linear("fc1", net.flatten(x), classes)


def conv6fc2(net: Pass, x: Tensor, classes: int) -> Tensor:
    """256 256 256 MP2 256 256 256 MP2, 2048 neurons, ten units a class whose mean is its logit; no biases."""
    for k in range(1, 7):
        x = net.spiking(k, x, 256)
        if k % 3 == 0:
            x = net.pool(k // 3, x, "max")
    x = net.lif("lif7", net.linear("fc1", net.flatten(x), 2048, bias=False))
    x = net.linear("fc2", x, 10 * classes, bias=False)
    return net.layer("vote", x, lambda x: F.avg_pool1d(x, 10))


def conv4fc1(net: Pass, x: Tensor, classes: int) -> Tensor:
    """32 AP2 64 AP2 128 AP2 256 AP2, read-out."""
    for k, filters in enumerate((32, 64, 128, 256), start=1):
        x = net.pool(k, net.spiking(k, x, filters), "average")
    return net.linear("fc1", net.flatten(x), classes)


NETWORKS: dict[str, Callable[[Pass, Tensor, int], Tensor]] = {
    "resnet19": resnet19, "vggsnn": vggsnn, "conv6fc2": conv6fc2, "conv4fc1": conv4fc1,
}
