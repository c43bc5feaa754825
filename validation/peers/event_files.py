"""SpikingJelly's and tonic's readers of event files and frames, torchvision's and Pillow's ways to shrink frames."""

import sys
import types
from typing import Any

import numpy as np
import numpy.typing as npt

# The wheels of these two are built for other PyTorches and do not load, and nothing here needs more than their names.
for name in ("torchvision._meta_registrations", "torchaudio"):
    sys.modules.setdefault(name, types.ModuleType(name))

import torch  # noqa: E402
from spikingjelly.datasets import cifar10_dvs, utils  # noqa: E402
from torchvision import transforms  # noqa: E402

Array = npt.NDArray[Any]
Columns = dict[str, Array]


def spikingjelly_aedat(path: str) -> Columns:
    """x, y, t, p of a recording of CIFAR10-DVS."""
    return cifar10_dvs._load_origin_data(path)


def spikingjelly_nmnist(path: str) -> Columns:
    """x, y, t, p of a recording of N-MNIST."""
    return utils.load_ATIS_bin(path)


def spikingjelly_frames(events: Columns, steps: int, by: str, height: int, width: int) -> Array:
    """(T, 2, H, W) counts."""
    return utils.integrate_events_by_fixed_frames_number(events, by, steps, height, width)


def spikingjelly_split(names: list[str], share: float) -> tuple[list[str], list[str]]:
    """Training and test files of one class: its split of files that are sorted as torchvision sorts a folder's."""
    train, test = utils._split_class_indices([list(range(len(names)))], share, False)
    in_order = sorted(names)
    return [in_order[k] for k in train], [in_order[k] for k in test]


def tonic_addresses(path: str) -> tuple[Array, Array]:
    """Addresses and times of an AEDAT file; its `read_dvs_128`, which would go on from here, raises in 1.7.0."""
    from tonic import io

    version, start, _ = io.read_aedat_header_from_file(path)
    found = io.get_aer_events_from_file(path, version, start)
    return found["address"].astype(np.int64), found["timeStamp"].astype(np.int64)


def tonic_nmnist(path: str) -> Columns:
    """x, y, t, p of a recording of N-MNIST."""
    from tonic import io

    found = io.read_mnist_file(path, io.events_struct)
    return {name: found[name].astype(np.int64) for name in "xytp"}


def tonic_frames(events: Columns, steps: int, by: str, height: int, width: int) -> Array:
    """(T, 2, H, W) counts, the remainder left out."""
    from tonic.io import make_structured_array
    from tonic.transforms import ToFrame

    several = make_structured_array(*(events[name] for name in "xytp"))
    key = {"number": "n_event_bins", "time": "n_time_bins"}[by]
    return ToFrame(sensor_size=(width, height, 2), **{key: steps})(several)


def interpolated(frames: Array, size: tuple[int, int], method: str) -> Array:
    """(B, C, H, W) -> (B, C, h, w) by torch.nn.functional.interpolate, in float64."""
    keys: dict[str, Any] = {"bilinear": {"mode": "bilinear", "align_corners": False},
                            "antialias": {"mode": "bilinear", "antialias": True}}.get(method, {"mode": method})
    return torch.nn.functional.interpolate(torch.tensor(frames.astype(np.float64)), size, **keys).numpy()


def resized_tensor(frames: Array, size: tuple[int, int]) -> Array:
    """(B, C, H, W) -> (B, C, h, w) by torchvision's Resize of a tensor, in float32."""
    return transforms.Resize(size)(torch.tensor(frames.astype(np.float32))).numpy()


def resized_image(frames: Array, size: tuple[int, int]) -> Array:
    """(B, 2, H, W) counts -> (B, 2, h, w) in 0..1 by way of an image of two channels, as loaders after TET's do."""
    through = transforms.Compose([transforms.ToPILImage(), transforms.Resize(size), transforms.ToTensor()])
    return np.stack([through(torch.tensor(frame.astype(np.float32))).numpy() for frame in frames])
