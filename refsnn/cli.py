"""The command line: one function per command. Heavy imports are inside them, so that `refsnn --help` is instant.

Errors are one line on stderr that names the thing, the place and the remedy; exit status 2. Ctrl-C during training
finishes the step under way, saves, and says how to go on; exit status 130.
"""

import argparse
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from refsnn.errors import UserError
from refsnn.progress import Progress, announcing, counting, tell

if TYPE_CHECKING:
    from refsnn.datasets import Dataset
    from refsnn.schema import Config
    from refsnn.train import State

STOPPED = 130       # exit status of a program that Ctrl-C ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0; 1 an error of refsnn itself; 2 bad input; 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")        # a terminal that lacks a sign gets a question mark
    try:
        args = _parser().parse_args(argv)
    except SystemExit as end:       # --help, or a usage error that has been printed
        return int(end.code or 0)
    try:
        with _short_warnings():
            status: int = args.command(args)
            sys.stdout.flush()
            return status
    except BrokenPipeError:         # whoever read the output (such as `head`) has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _complain("interrupted", STOPPED)
    except UserError as error:
        if args.debug:
            raise
        return _complain(str(error), 2)
    except Exception as error:
        if args.debug:
            raise
        return _complain(f"{type(error).__name__}: {error} (an error of refsnn; --debug shows where)", 1)


def _complain(message: str, status: int) -> int:
    print(f"refsnn: {' '.join(message.splitlines())}", file=sys.stderr)
    return status


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Warnings as one line on stderr, without the source line that raised them."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"refsnn: warning: {message}", file=sys.stderr)
        yield


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)


# ----------------------------------------------------------------------------------------------------------- the parser


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one line."""

    def error(self, message: str) -> NoReturn:
        """Print the line and exit."""
        self.exit(2, f"refsnn: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    about = "Compression-aware sparse training of spiking networks, to read, to check against, and to run."
    parser = _Parser(prog="refsnn", description=about, formatter_class=argparse.RawDescriptionHelpFormatter,
                     epilog="refsnn COMMAND --help explains a command.   First try: refsnn train tiny")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.add_argument("--debug", action="store_true", help="show a traceback where an error is one line otherwise")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (_add_train, _add_evaluate, _add_show, _add_step, _add_trace, _add_compare, _add_measure, _add_plot,
                _add_data, _add_bench):
        add(commands)
    return parser


class _Version(argparse.Action):
    """Looks the version up when asked for it."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"refsnn {version('refsnn')}")
        parser.exit()


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], int], about: str, example: str) -> Any:
    parser = commands.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".",
                                 epilog=f"example:\n  {example}", formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show a traceback on errors")
    parser.set_defaults(command=run)
    return parser


def _add_configuration(parser: Any) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a bundled configuration (tiny, digits, ...) or a .toml file")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE",
                        help="replace a key of the configuration, such as optim.lr=0.001; may be repeated")


# ---------------------------------------------------------------------------------------------------------------- train


def _add_train(commands: Any) -> None:
    parser = _command(commands, "train", train, "train a sparse network, or continue a run",
                      "refsnn train digits --set optim.lr=0.001 --out runs/first")
    _add_configuration(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the run; default: runs/CONFIG-seedSEED")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out from its checkpoint")
    parser.add_argument("--backend", choices=("numpy", "numba", "both"),
                        help="run definitions, kernels, or both and compare them at every call")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def train(args: argparse.Namespace) -> int:
    """Train, with progress, and end with a table of the iterations."""
    from refsnn import config as configuration
    from refsnn import runs, show, twin
    from refsnn import train as algorithm

    if args.resume and args.out is None:
        raise UserError("--resume needs --out, the folder of the run to continue")
    config = configuration.load(args.config, args.overrides)
    data = _load_data(config)
    with twin.backend(args.backend) if args.backend else nullcontext():
        if args.resume:
            folder, state = args.out, runs.restore(args.out, config, data)
            for stale in folder.glob(".*.partial"):     # of a process that was killed while it wrote
                stale.unlink(missing_ok=True)
            runs.write_tables(folder, state)
        else:
            folder, state = args.out or _free_folder(args.config, config.seed), algorithm.start(config, data)
            _require_memory(state)
            runs.create(folder, config)
            runs.save(folder, state)        # so that a run can be resumed from its first moment on
        if not args.quiet:
            _print(show.training(state, data, twin.get_backend(), folder))
            if args.resume:
                print("resumed  ", "finished before, nothing is left to train" if state.finished else _place(state))
            sys.stdout.flush()
        progress = Progress(folder, state, -(-len(data.train) // config.train.batch), args.quiet)
        with progress.watching():
            if twin.get_backend() != "numpy":
                algorithm.run_every_kernel(state, data)
            algorithm.train(state, data, progress)
    if not state.finished:
        again = ["refsnn", "train", str(folder / "config.toml"), "--out", str(folder), "--resume"]
        again += ["--backend", args.backend] if args.backend else []
        return _complain(f"stopped at {_place(state)}; everything is saved. To go on:  {shlex.join(again)}", STOPPED)
    if not args.quiet:
        figures = shlex.join(["refsnn", "plot", str(folder), "--out", str(folder / "figures")])
        _print(["", *show.iterations(state.metrics, state.structure), "", f"in {folder}: {', '.join(show.FILES)}",
                f"next:  {shlex.join(['refsnn', 'evaluate', str(folder)])}", f"       {figures}"])
    return 0


def _require_memory(state: "State") -> None:
    """Refuse what the memory of this machine would not hold, before anything is written."""
    from refsnn.budget import budget, require_memory
    from refsnn.machine import available_memory

    require_memory(budget(state.network, state.config), state.config, available_memory())


def _place(state: "State") -> str:
    return f"iteration {state.iteration + 1}, epoch {state.epoch + 1}, batch {state.batch} (step {state.step:,})"


def _load_data(config: "Config") -> "Dataset":
    """The data of a configuration, split as its seed says."""
    from refsnn import datasets

    with counting("converting recordings to frames") as tell_count:
        return datasets.load(config, tell_count)


def _free_folder(name: str, seed: int) -> Path:
    """runs/NAME-seedSEED, or with -2, -3 ... behind it where that exists."""
    first = Path("runs") / f"{Path(name).stem if name.endswith('.toml') else name}-seed{seed}"
    folder, number = first, 1
    while folder.exists():
        number += 1
        folder = first.with_name(f"{first.name}-{number}")
    return folder


# ------------------------------------------------------------------------------------------------ evaluate, show, step


def _add_evaluate(commands: Any) -> None:
    parser = _command(commands, "evaluate", evaluate, "evaluate a run: accuracy, densities, operations, energy, size",
                      "refsnn evaluate runs/digits-seed0")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")


def evaluate(args: argparse.Namespace) -> int:
    """Restore a run and evaluate it."""
    from refsnn import runs, show
    from refsnn.evaluate import evaluate as run_network

    config = runs.load_config(args.run)
    data = _load_data(config)
    state = runs.restore(args.run, config, data)
    with announcing(tell):
        result = run_network(state.network, config, data.test)
    _print([f"run {args.run}: {_done(state)}", *show.evaluation(state, result)])
    return 0


def _done(state: "State") -> str:
    keys = state.config.train
    done = state.iteration * keys.epochs + state.epoch
    return f"{done} of {keys.iterations * keys.epochs} epochs trained, {state.step:,} steps"


def _add_show(commands: Any) -> None:
    parser = _command(commands, "show", show, "show what is in a configuration, a run, a checkpoint or a trace",
                      "refsnn show digits\n  refsnn show runs/digits-seed0/checkpoint.h5")
    parser.add_argument("what", metavar="CONFIG|FILE|RUN", help="a configuration, an .h5 file, or the folder of a run")


def show(args: argparse.Namespace) -> int:
    """Show a configuration, a run or a file of records."""
    from refsnn import config as configuration
    from refsnn import show as text

    what, path = args.what, Path(args.what)
    if what in configuration.names() or what.endswith(".toml"):
        _print(_shown(what, configuration.load(what)))
    elif path.is_dir():
        _print(text.run(path))
    elif path.exists():
        _print(text.records(path))
    else:
        known = ", ".join(configuration.names())
        raise UserError(f"{what}: no such configuration, file or run; bundled configurations: {known}")
    return 0


def _shown(name: str, config: "Config") -> list[str]:
    """A configuration; of a large data set it is said where it is, nothing is read."""
    from refsnn import datasets, show, stock

    empty = datasets.stand_in(config)
    if empty is None:
        data = _load_data(config)
        samples = f"{len(data.train):,} training samples, {len(data.test):,} {show.tested_on(config)} samples"
        return show.configuration(name, config, data, f"{data.name}: {samples}, {data.classes} classes")
    return show.configuration(name, config, empty, stock.line(config.data.name, config.data.path))


def _add_step(commands: Any) -> None:
    parser = _command(commands, "step", step,
                      "walk one iteration: a batch's records, then who goes and who comes, and why",
                      "refsnn step tiny --layer fc1 --rows 12")
    _add_configuration(parser)
    parser.add_argument("--layer", metavar="NAME", help="layer whose rewiring is shown; default: the first linear one")
    parser.add_argument("--rows", type=int, default=10, metavar="N", help="connections shown of each kind; default: 10")


def step(args: argparse.Namespace) -> int:
    """Walk one iteration."""
    from refsnn import config as configuration
    from refsnn import walk

    if args.rows < 1:
        raise UserError(f"--rows {args.rows}: must be at least 1")
    config = configuration.load(args.config, args.overrides)
    with announcing(tell):
        for line in walk.walk(config, _load_data(config), args.layer, args.rows):
            print(line, flush=True)
    return 0


# ------------------------------------------------------------------------------------------------------ trace, compare


def _add_trace(commands: Any) -> None:
    parser = _command(commands, "trace", trace, "record every intermediate of the first training steps in a file",
                      "refsnn trace tiny --steps 2 --set dtype=float64 --out golden.h5")
    _add_configuration(parser)
    parser.add_argument("--steps", type=int, required=True, metavar="N", help="optimiser steps, rewires included")
    parser.add_argument("--out", type=Path, required=True, metavar="T.h5", help="the file, in HDF5")
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN",
                        help="keep records of these names only, such as 'forward/lif*/s'; may be repeated")
    parser.add_argument("--print", action="store_true", dest="lines", help="a line for every record")


def trace(args: argparse.Namespace) -> int:
    """Record training steps."""
    from refsnn import config as configuration
    from refsnn import tracing

    config = configuration.load(args.config, args.overrides)
    with announcing(tell):
        show_line = print if args.lines else None
        count = tracing.trace(config, _load_data(config), args.steps, args.out, args.only, show_line)
    print(f"{args.out}: {count:,} records of {args.steps} step{'s' * (args.steps != 1)}; {config.dtype}")
    return 0


def _add_compare(commands: Any) -> None:
    parser = _command(commands, "compare", compare,
                      "find where another implementation's trace first differs, and what explains it",
                      "refsnn compare golden.h5 other.h5\n\nexit status: 0 they agree, 1 they differ, 2 bad input")
    parser.add_argument("golden", type=Path, metavar="GOLDEN", help="a trace of refsnn")
    parser.add_argument("other", type=Path, metavar="OTHER", help="the other implementation's")
    parser.add_argument("--forced", action="store_true",
                        help="every operation was given the golden inputs: each record gets its own verdict")
    parser.add_argument("--rtol", type=float, metavar="X", help="relative tolerance instead of the dtype's")
    parser.add_argument("--atol", type=float, metavar="X", help="absolute tolerance instead of the dtype's")
    parser.add_argument("--json", action="store_true", help="a report for machines")


def compare(args: argparse.Namespace) -> int:
    """Compare two traces."""
    from refsnn.compare import compare as compare_files

    report = compare_files(args.golden, args.other, forced=args.forced, rtol=args.rtol, atol=args.atol)
    _print([report.json()] if args.json else report.lines())
    return report.exit_code


# ------------------------------------------------------------------------------------------------------ measure, plot


def _add_measure(commands: Any) -> None:
    parser = _command(commands, "measure", measure,
                      "PQ index, bound, ratio and count of anyone's weights, eqs. (2)-(4)",
                      "refsnn measure weights.npz --scope neuron")
    parser.add_argument("file", type=Path, metavar="FILE.npz",
                        help="arrays of two axes or more; boolean NAME.mask or NAME_mask: what is active")
    parser.add_argument("--scope", choices=("layer", "neuron", "global"), default="layer",
                        help="unit with its own index: an array, a row of it, or all together; default: layer")
    for name, default, about in (("p", 0.5, "smaller order of eq. (2)"), ("q", 1.0, "larger order of eq. (2)"),
                                 ("eta", 0.001, "alpha_r of eq. (3)"), ("gamma", 1.0, "factor of eq. (4)"),
                                 ("beta", 0.9, "largest share that may go, eq. (4)")):
        parser.add_argument(f"--{name}", type=float, default=default, help=f"{about}; default: {default:g}")
    parser.add_argument("--units", action="store_true", help="a line for every neuron (with --scope neuron)")
    parser.add_argument("--csv", action="store_true", help="comma-separated values in full precision")


def measure(args: argparse.Namespace) -> int:
    """Measure the weights of an npz file."""
    from refsnn.measure import measure_file

    orders = {name: getattr(args, name) for name in ("p", "q", "eta", "gamma", "beta")}
    report = measure_file(args.file, args.scope, **orders, every_unit=args.units)
    if args.csv:
        import csv

        writer = csv.DictWriter(sys.stdout, fieldnames=list(report.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(report.rows)
        for note in report.notes:
            print(f"refsnn: {note}", file=sys.stderr)
        return 0
    from refsnn.show import measured

    _print([f"{args.file}: " + ", ".join(f"{name} = {value:g}" for name, value in orders.items()), "",
            *measured(report.rows, args.scope, args.units), "", *report.notes])
    return 0


def _add_plot(commands: Any) -> None:
    parser = _command(commands, "plot", plot, "draw the figures of one or several runs",
                      "refsnn plot runs/digits-seed0 runs/digits-seed1 --out figures")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the figures")
    parser.add_argument("--layer", metavar="NAME", help="draw only the map of this layer's connections")


def plot(args: argparse.Namespace) -> int:
    """Draw figures and say which files they are in."""
    from refsnn.plot import plot_mask, plot_runs

    if args.layer:
        if len(args.runs) > 1:
            raise UserError(f"--layer {args.layer}: draws the map of one run, {len(args.runs)} are given; give one")
        _print([str(plot_mask(args.runs[0], args.out, args.layer))])
    else:
        _print(str(path) for path in plot_runs(args.runs, args.out))
    return 0


# ---------------------------------------------------------------------------------------------------------------- data


def _add_data(commands: Any) -> None:
    parser = _command(commands, "data", data, "list the data sets, check their files, simulate an event camera",
                      "refsnn data check cifar10\n  refsnn data simulate --per-class 10 --out simulated/cifar10dvs")
    what = parser.add_subparsers(dest="what", metavar="list|check|simulate", required=True)
    what.add_parser("list", help="every data set: where it was found, or what is looked for and where")
    check = what.add_parser("check", help="verify the files of a data set: checksums, counts, labels")
    check.add_argument("name", metavar="NAME", help="cifar10, cifar100, cifar10dvs, nmnist or digits")
    simulate = what.add_parser("simulate", help="write event recordings of still images, in the layout of CIFAR10-DVS")
    simulate.add_argument("--from", dest="source", choices=("cifar10", "cifar100"), default="cifar10",
                          help="training images that are moved before the camera; default: cifar10")
    simulate.add_argument("--per-class", type=int, required=True, metavar="N", help="recordings of each class")
    simulate.add_argument("--seed", type=int, default=0, help="of the camera's noise; default: 0")
    simulate.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder; what is there is kept")
    for one in (check, simulate):
        one.add_argument("--path", default="", metavar="DIR", help="folder of the data set; default: search")


def data(args: argparse.Namespace) -> int:
    """List, check or simulate data."""
    from refsnn import stock

    if args.what == "list":
        _print(stock.listing())
        return 0
    if args.what == "check":
        lines, well = stock.check(args.name, args.path)
        _print(lines)
        return 0 if well else 1
    stock.simulate(args.source, args.path, args.per_class, args.seed, args.out, tell)
    return 0


# --------------------------------------------------------------------------------------------------------------- bench


def _add_bench(commands: Any) -> None:
    parser = _command(commands, "bench", bench, "time every kernel against its definition",
                      "refsnn bench --csv bench.csv")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="default: float32")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the rows to this file, too")


def bench(args: argparse.Namespace) -> int:
    """Time the kernels."""
    from refsnn.bench import bench as measured

    with announcing(tell):
        for line in measured(args.dtype, args.csv):
            print(line, flush=True)
    return 0
