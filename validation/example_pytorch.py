"""An ordinary PyTorch training step, written to a file that `refsnn compare` reads: see docs/crosscheck.md.

python example_pytorch.py golden.h5 other.h5 [--mistake]      nothing of refsnn is imported
"""

import sys

import h5py
import torch
import torch.nn.functional as F


class Spike(torch.autograd.Function):
    """1 above 0; on the way back a triangle of half width 1."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (1 - ctx.saved_tensors[0].abs()).clamp(min=0)


def lif(x, mistake):
    """x (T, B, ...): membrane before the reset, spikes, membrane after it; decay 0.5, threshold 1."""
    steps, v = [], torch.zeros_like(x[0])
    for current in x:
        h = 0.5 * v + current
        s = Spike.apply(h - 1)
        v = h - s if mistake else h * (1 - s)       # the mistake: a soft reset in place of the hard one
        steps.append(torch.stack([h, s, v]))
    return torch.stack(steps, dim=1)


def training_step(golden, mistake):
    """One step from GOLDEN's weights, masks and batch: every intermediate by its name, in order of computation."""
    p = {n: torch.tensor(g["value"][()], requires_grad="running" not in n) for n, g in golden["params"].items()}
    images, labels = torch.tensor(golden["input/x"][()]).double(), torch.tensor(golden["input/y"][()])
    steps = golden["encode/spikes"].shape[0]
    x = images.expand(steps, *images.shape).clone().requires_grad_()                # (T, B, C, H, W)
    records, inputs = {"encode/spikes": x}, {}

    def layer(name, x, function):
        inputs[name] = x
        x.retain_grad()
        y = records[f"forward/{name}/y"] = function(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return y

    def spiking(name, x):
        inputs[name] = x
        x.retain_grad()
        records.update({f"forward/{name}/{part}": value for part, value in zip("hsv", lif(x, mistake), strict=True)})
        return records[f"forward/{name}/s"]

    for k in "12":
        w, gamma, beta, *running = (p[f"{one}"] for one in (f"conv{k}.weight", f"norm{k}.gamma", f"norm{k}.beta",
                                                            f"norm{k}.running_mean", f"norm{k}.running_var"))
        x = layer(f"conv{k}", x, lambda x, w=w: F.conv2d(x, w, padding=1))
        x = layer(f"norm{k}", x, lambda x, a=(*running, gamma, beta): F.batch_norm(x, *a, training=True))
        x = layer(f"pool{k}", spiking(f"lif{k}", x), lambda x: F.avg_pool2d(x, 2))
    x = spiking("lif3", layer("fc1", x.flatten(2), lambda x: F.linear(x, p["fc1.weight"], p["fc1.bias"])))
    logits = layer("fc2", x, lambda x: F.linear(x, p["fc2.weight"], p["fc2.bias"]))
    loss = records["loss/value"] = F.cross_entropy(logits.flatten(0, 1), labels.repeat(steps))
    loss.backward()
    records |= {f"backward/{name}/dx": inputs[name].grad for name in reversed(inputs)}
    for name in ("conv1", "conv2", "fc1", "fc2"):
        p[f"{name}.weight"].grad *= torch.tensor(golden[f"params/{name}.weight/mask"][()])
        records[f"backward/{name}/dweight"] = p[f"{name}.weight"].grad
    torch.optim.Adam([w for w in p.values() if w.requires_grad], lr=float(golden["optim/lr"][()])).step()
    return records | {f"optim/{name}/after": w for name, w in p.items() if w.requires_grad}


with h5py.File(sys.argv[1]) as golden, h5py.File(sys.argv[2], "w") as other:
    other.attrs["format"], other.attrs["partial"] = "refsnn-trace/1", True
    for seq, (name, value) in enumerate(training_step(golden["step_0000"], "--mistake" in sys.argv).items()):
        dataset = other.create_dataset(f"step_0000/{name}", data=value.detach().numpy())
        dataset.attrs["seq"], dataset.attrs["kind"] = seq, "spikes" if name.endswith("/s") else "real"
