"""Everything that docs/results.md says of the digits: trains it, run by run, and prints the tables.

    python validation/results_digits.py --out runs/results --jobs 2 > tables.md

The test set decides nothing; the settings of the bundled configurations were chosen on a held-out part of the training
set (docs/results.md says how).
"""

import argparse
from pathlib import Path

from results_common import PUBLISHED, Study, column, spread, table, train_all

SEEDS = range(5)
# name -> (configuration, overrides, what it is)
RUNS: Study = {
    "layer": ("digits", (), "`figures`: rewiring inside, learning rate restarted"),
    "neuron": ("digits_neuron", (), "the same, neuron-wise"),
    "dense": ("digits", ("structure.density=1.0", "rewire.ratio=none"), "dense, same budget"),
    "prune-restart": ("digits", ("rewire.inner_every=0",), "prune only, restarted"),
    "inner-cosine": ("digits", ("optim.restart=false",), "`figures`, one cosine over the run"),
    "prune-cosine": ("digits", ("rewire.inner_every=0", "optim.restart=false"), "prune only, one cosine"),
    "inner-rewind": ("digits", ("rewire.rewind=true",), "`figures`, rewound to the initial weights"),
    "prune-rewind": ("digits", ("rewire.inner_every=0", "rewire.rewind=true"), "prune only, rewound"),
    "inner-sgd": (
        "digits", ("optim.kind=sgd", "optim.lr=0.1", "optim.weight_decay=0.0005"), "`figures`, SGD with decay"),
    "inner-adamw": ("digits", ("optim.kind=adamw", "optim.weight_decay=0.01"), "`figures`, AdamW with decay"),
    "inner-lr2": ("digits", ("optim.lr=0.002",), "`figures`, an eighth of the learning rate"),
}
READINGS = tuple(name for name in RUNS if name not in ("neuron", "dense"))


def densities(out: Path) -> None:
    """Density and accuracy by iteration, beside the published densities."""
    iterations = [str(k) for k in range(1, 11)]
    for name in ("layer", "neuron"):
        published = [f"{p:.2f}" for p in PUBLISHED[name]]
        table([f"{name}-wise, iteration", *iterations], [
            ["density, published", *published, *[""] * (10 - len(published))],
            ["density", *spread(column(out, name, "param_density", SEEDS), 3)],
            ["test accuracy, %", *spread(column(out, name, "test_accuracy", SEEDS), 2, 100)],
            ["dense, same budget, %", *spread(column(out, "dense", "test_accuracy", SEEDS), 2, 100)],
        ])


def readings(out: Path) -> None:
    """Ratio of successive densities under every reading."""
    rows = []
    for name in READINGS:
        density, accuracy = column(out, name, "param_density", SEEDS), column(out, name, "test_accuracy", SEEDS)
        ratios = density[:, 1:] / density[:, :-1]
        rows.append([RUNS[name][2], " ".join(f"{r:.3f}" for r in ratios.mean(axis=0)),
                     *spread(ratios.mean(axis=1)[:, None], 3), *spread(density[:, -1:], 3),
                     *spread(accuracy[:, 3:4], 2, 100), *spread(accuracy[:, -1:], 2, 100)])
    table(["reading", "ratio after iteration 1 … 9", "mean ratio", "density in iteration 10",
           "accuracy in iteration 4, %", "in iteration 10, %"], rows)


def main() -> None:
    """Train what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    args = parser.parse_args()
    train_all(RUNS, args.out, [(name, seed) for name in RUNS for seed in SEEDS], args.jobs)
    densities(args.out)
    readings(args.out)


if __name__ == "__main__":
    main()
