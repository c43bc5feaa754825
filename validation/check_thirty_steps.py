"""Thirty steps of the paper's networks on real data, then one rewire, which PyTorch repeats from the same weights.

    REFSNN_DATA=DATA python validation/check_thirty_steps.py cifar10_resnet19 [--steps 30]

What `refsnn train CONFIGURATION --set train.max_steps=30` trains, in float32 with the batch of the configuration: Stage
I, whose loss is printed and must fall; then Stage II with the preset `literal`, so that it prunes and regrows. The
peer (peers/torch_method.py) is given the weights and the momentum, and must come to the same counts and masks, in the
scope of the configuration. Without the data set there is nothing to check: it says so, and exits with 0.
"""

import argparse
import time
from functools import partial

import numpy as np
from check_networks import CONFIGS, check_rewire
from common import Skip, Table, main, need

from refsnn import datasets
from refsnn.config import load
from refsnn.errors import UserError
from refsnn.train import State, stage_one, start


class Losses:
    """Watches a training (train.Watcher): keeps and prints the loss of every step."""

    def __init__(self, table: Table) -> None:
        self.table, self.sum, self.seen, self.losses, self.began = table, 0.0, 0, [], time.perf_counter()

    def on_step(self, state: State) -> None:
        """Keep the loss of the step."""
        self.losses.append((state.loss_sum - self.sum) / (state.seen - self.seen))
        self.sum, self.seen = state.loss_sum, state.seen
        seconds = time.perf_counter() - self.began
        self.table.note(f"    step {len(self.losses):2d}  loss {self.losses[-1]:.4f}  {seconds:6.1f} s")

    def on_epoch(self, state: State) -> None:
        """Do nothing."""

    def save(self, state: State) -> None:
        """Do nothing."""

    def should_stop(self) -> bool:
        """Never."""
        return False


def check(table: Table, name: str, steps: int) -> None:
    """Train, compare the first losses with the last, rewire."""
    (torch,) = need("torch")
    torch.set_num_threads(1)
    config = load(name, [f"train.max_steps={steps}", "rewire.preset=literal", "rewire.grow_window=10"])
    try:
        data = datasets.load(config)
    except UserError as error:
        raise Skip(str(error)) from None
    state, losses = start(config, data), Losses(table)
    stage_one(state, data, losses)
    few = max(1, steps // 6)
    first, last = np.mean(losses.losses[:few]), np.mean(losses.losses[-few:])
    table.add(f"{name}: mean loss of the last {few} steps over the first {few}", steps, last / first, 1.0)
    check_rewire(table, name, state, config.rewire.scope)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configuration", choices=list(CONFIGS), metavar="CONFIGURATION", help=", ".join(CONFIGS))
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    main("Thirty steps and a rewire", ("torch", "numba"), partial(check, name=args.configuration, steps=args.steps))
