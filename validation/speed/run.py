"""refsnn's speed against PyTorch, SpikingJelly and snnTorch with masked dense weights; README.md in this folder.

    python validation/speed/run.py                                          everything, hours
    python validation/speed/run.py --nets digits --peers pytorch            a first look, a minute
    python validation/speed/run.py --whole | --inference | --scaling | --first | --roofline

What is in --out already is not measured again.
"""

import argparse
import os
import sys
from pathlib import Path

from task import PEERS

SIZES = {"cifar10_conv6fc2": (16, 4), "cifar10dvs_vggsnn": (16, 10), "cifar10_resnet19": (16, 2), "digits": (32, 4)}
MODES = ("training", "scaling", "whole", "inference", "first", "roofline")
# mode -> nets, densities in percent, peers and rounds that are measured where nothing else is said
USUAL: dict[str, tuple[tuple[str, ...], tuple[float, ...], tuple[str, ...], int]] = {
    "training": (tuple(SIZES), (1, 5, 10, 30, 100), PEERS, 9),
    "scaling": (("cifar10_conv6fc2", "digits"), (5,), ("pytorch",), 5),
    "whole": (("cifar10_conv6fc2",), (5,), ("pytorch",), 1),
    "inference": (tuple(SIZES), (5, 30), PEERS, 25),
    "first": (("digits", "cifar10_conv6fc2"), (10,), (), 3),
    "roofline": ((), (), (), 1),
}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = made.add_mutually_exclusive_group()
    abouts = ("exponents over batch, T and threads", "an iteration with a rewire", "latency of one image",
              "a fresh process's first step", "limits of the machine, and the kernels")
    for mode, about in zip(MODES[1:], abouts, strict=True):
        modes.add_argument(f"--{mode}", dest="mode", action="store_const", const=mode, help=about)
    made.add_argument("--nets", nargs="+", metavar="CONFIG", help=f"of: {', '.join(SIZES)}; or another bundled one")
    made.add_argument("--densities", nargs="+", type=float, metavar="PERCENT", help="percent; default: 1 5 10 30 100")
    made.add_argument("--peers", nargs="*", choices=PEERS, metavar="PEER", help=f"of: {', '.join(PEERS)}; default: all")
    made.add_argument("--rounds", type=int, help="rounds that all programs take in turn; default: 9")
    made.add_argument("--batch", type=int, help="B; default: 16, digits 32")
    made.add_argument("--steps", type=int, help="T; default: that of the configuration")
    made.add_argument("--spread", default="uniform", choices=("uniform", "er", "erk"),
                      help="training steps: how the layers share the density; uniform: each has it")
    made.add_argument("--threads", type=int, default=2, help="default: 2")
    made.add_argument("--length", type=int, default=500, metavar="STEPS", help="--whole: of an iteration; default: 500")
    made.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    made.add_argument("--out", type=Path, default=Path("speed"), metavar="DIR", help="default: speed")
    made.set_defaults(mode=MODES[0])
    return made


def complete(args: argparse.Namespace) -> argparse.Namespace:
    """What was not said is the usual of the mode; densities as shares; args.sizes(net) is (B, T)."""
    nets, densities, peers, rounds = USUAL[args.mode]
    args.nets = args.nets or nets
    args.densities = [percent / 100 for percent in args.densities or densities]
    args.peers = list(peers if args.peers is None else args.peers)
    args.rounds = args.rounds or rounds
    usual = {net: SIZES.get(net, (16, 4)) for net in args.nets}
    args.sizes = lambda net: (args.batch or usual[net][0], args.steps or usual[net][1])
    return args


def main() -> int:
    """Run one mode."""
    args = complete(parser().parse_args())
    for variable in THREADS:            # read when the libraries are loaded
        os.environ[variable] = str(args.threads)
    try:
        import torch  # before refsnn, which asks OpenMP's threads to sleep: a peer's are its own
    except ImportError:
        print("skipped: torch is not installed")
        return 0
    from importlib import import_module
    from importlib.metadata import version

    from refsnn.bench import machine
    from refsnn.errors import UserError
    from refsnn.machine import keep_freed_memory

    torch.set_num_threads(args.threads)
    keep_freed_memory()                 # as `refsnn train` does; the peers gain from it, too
    here = f"{machine()}, PyTorch {version('torch')}"
    print(here, file=sys.stderr)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        import_module(args.mode).run(args, here)
    except (UserError, OSError, ImportError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; what was finished is in {args.out}, the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
