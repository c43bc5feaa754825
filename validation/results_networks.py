"""Everything that docs/results.md says of CIFAR, N-MNIST and simulated recordings: trains it and prints the tables.

    REFSNN_DATA=DATA python validation/results_networks.py --out runs/networks --only nmnist cifar10 > tables.md

Data sets are looked for as always (data/README.md). `cifar10dvs` wants recordings; where the real ones are not at hand:
`refsnn data simulate --per-class 100 --out DATA/cifar10dvs`.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from results_common import PUBLISHED, Study, column, last_epochs, spread, table, train_all

DENSE = ("structure.density=1.0", "rewire.ratio=none")
PART = ("data.train_samples=10000", "data.test_samples=5000", "train.epochs=4")    # what there is of CIFAR-100
RUNS: Study = {
    "cifar10": ("cifar10_small", (), "CIFAR-10, all images"),
    "cifar10-dense": ("cifar10_small", DENSE, "dense, same budget"),
    "cifar100": ("cifar100_small", PART, "CIFAR-100, its first 10,000 + 5,000 images"),
    "cifar100-dense": ("cifar100_small", (*PART, *DENSE), "dense, same budget"),
    "nmnist": ("nmnist", (), "N-MNIST, 1,000 + 100 recordings"),
    "nmnist-dense": ("nmnist", DENSE, "dense, same budget"),
    "cifar10dvs": ("cifar10dvs_small", (), "simulated recordings, 900 + 100"),
    "cifar10dvs-dense": ("cifar10dvs_small", DENSE, "dense, same budget"),
}
SEEDS = {"cifar10": range(2), "cifar100": range(1), "nmnist": range(5), "cifar10dvs": range(2)}


def index(folder: Path) -> list[float]:
    """The PQ index at the end of every iteration: of each layer, averaged with its active weights as weight."""
    found: dict[str, list[tuple[float, float]]] = {}
    with open(folder / "structure.csv", newline="") as file:
        for row in csv.DictReader(file):
            if row["phase"] in ("end", "last") and row["layer"] != "all":
                found.setdefault(row["iteration"], []).append((float(row["active_before"]), float(row["pq_index"])))
    return [sum(d * i for d, i in layers) / sum(d for d, _ in layers) for layers in found.values()]


def minutes(folder: Path) -> float:
    """Training time of a run, evaluation left out."""
    with open(folder / "metrics.csv", newline="") as file:
        return sum(float(row["seconds"]) for row in csv.DictReader(file)) / 60


def done(out: Path, name: str, seeds: range) -> list[int]:
    """The seeds whose runs are finished, or as far as they came."""
    return [seed for seed in seeds if (out / f"{name}-seed{seed}" / "metrics.csv").exists()]


def report(out: Path, name: str) -> None:
    """Density, accuracy and PQ index by iteration, and the dense network's accuracy."""
    sparse, dense = done(out, name, SEEDS[name]), done(out, f"{name}-dense", SEEDS[name])
    accuracy = column(out, name, "test_accuracy", sparse)
    of_dense = column(out, f"{name}-dense", "test_accuracy", dense)
    rows = [
        ["density, published (CIFAR-10)", *(f"{p:.2f}" for p in PUBLISHED["layer"])],
        ["density", *spread(column(out, name, "param_density", sparse), 3)],
        ["test accuracy, %", *spread(accuracy, 2, 100)],
        [f"dense, same budget, % ({len(dense)} of {len(sparse)} seeds)", *spread(of_dense, 2, 100)],
        ["PQ index", *spread(np.array([index(out / f"{name}-seed{seed}") for seed in sparse]), 4)],
    ]
    table([f"{RUNS[name][2]}, iteration", *(str(k) for k in range(1, 11))], rows)
    for kind, seeds in ((name, sparse), (f"{name}-dense", dense)):
        for seed in seeds:
            folder = out / f"{kind}-seed{seed}"
            print(f"{folder.name}: {len(last_epochs(folder, 'test_accuracy'))} iterations, "
                  f"{minutes(folder):.0f} minutes of training on one thread")
    print()


def main() -> None:
    """Train what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--only", nargs="+", choices=list(SEEDS), default=list(SEEDS), help="data sets; default: all")
    parser.add_argument("--tables", action="store_true", help="print what is there, train nothing")
    args = parser.parse_args()
    if not args.tables:
        jobs = [(run, seed) for name in args.only for run in (name, f"{name}-dense") for seed in SEEDS[name]]
        train_all(RUNS, args.out, jobs, args.jobs)
    for name in args.only:
        report(args.out, name)


if __name__ == "__main__":
    main()
