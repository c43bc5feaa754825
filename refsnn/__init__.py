"""refsnn: a readable reference implementation of compression-aware sparse training for spiking networks.

    from refsnn import load_config, load_data, pq_index, start
    refsnn.pq, refsnn.rewire           the paper: eqs. (1)-(4), prune and regrow
    refsnn.train, refsnn.evaluate      Algorithm 1, and what is measured of a trained network

Names and modules are imported when they are first asked for, so that `import refsnn` itself takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refsnn.config import load as load_config
    from refsnn.datasets import load as load_data
    from refsnn.errors import UserError
    from refsnn.models import Network
    from refsnn.models import build as build_network
    from refsnn.ops.neuron import Neuron, lif_backward, lif_forward
    from refsnn.ops.sparse import SparseWeight, from_dense
    from refsnn.pq import Measurement, pq_index, retained_bound, rewiring_count
    from refsnn.schema import Config
    from refsnn.topology import Structure, layer_densities
    from refsnn.trace import Recorder
    from refsnn.train import State, start, train_step
    from refsnn.twin import set_backend

PUBLIC = {      # name -> where it is defined
    "load_config": "config:load", "Config": "schema:Config", "load_data": "datasets:load",
    "pq_index": "pq:pq_index", "retained_bound": "pq:retained_bound", "rewiring_count": "pq:rewiring_count",
    "Measurement": "pq:Measurement", "Structure": "topology:Structure", "layer_densities": "topology:layer_densities",
    "State": "train:State", "start": "train:start", "train_step": "train:train_step", "Recorder": "trace:Recorder",
    "Network": "models:Network", "build_network": "models:build", "Neuron": "ops.neuron:Neuron",
    "SparseWeight": "ops.sparse:SparseWeight", "from_dense": "ops.sparse:from_dense",
    "lif_forward": "ops.neuron:lif_forward", "lif_backward": "ops.neuron:lif_backward",
    "set_backend": "twin:set_backend", "UserError": "errors:UserError",
}
MODULES = ("config", "datasets", "encode", "evaluate", "layers", "metrics", "models", "ops", "optim", "pq", "rewire",
           "rng", "runs", "safe_read", "schema", "topology", "trace", "tracing", "train", "twin")

__all__ = [     # noqa: RUF022      the keys of PUBLIC, for tools that read the text
    "load_config", "Config", "load_data", "pq_index", "retained_bound", "rewiring_count", "Measurement", "Structure",
    "layer_densities", "State", "start", "train_step", "Recorder", "Network", "build_network", "Neuron", "SparseWeight",
    "from_dense", "lif_forward", "lif_backward", "set_backend", "UserError",
]


def __getattr__(name: str) -> Any:
    """Import a public name or a module at first use (PEP 562)."""
    if name in PUBLIC:
        module, attribute = PUBLIC[name].split(":")
        value = getattr(import_module(f"refsnn.{module}"), attribute)
    elif name in MODULES:
        return import_module(f"refsnn.{name}")
    elif name == "__version__":
        value = import_module("importlib.metadata").version("refsnn")
    else:
        raise AttributeError(f"module 'refsnn' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC, *MODULES, "__version__"})
