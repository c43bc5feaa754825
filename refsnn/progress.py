"""What a person sees of a training while it runs, and how they stop it.

On a terminal a bar with loss, accuracy and density, elsewhere a line an epoch. The first Ctrl-C asks to stop after the
step under way, the second aborts at once.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refsnn.train import State


TIMED = 10      # steps by which the time of an epoch is estimated


@contextmanager
def announcing(tell: Callable[[str], None] | None) -> Iterator[None]:
    """Have `tell` called before kernels are compiled, which takes a while."""
    from refsnn import twin

    twin.announce_compilation(tell)
    try:
        yield
    finally:
        twin.announce_compilation(None)


def tell(text: str) -> None:
    """Print a line on stderr at once."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function (done, all) that moves a bar on a terminal, and elsewhere says once what is being done."""
    from tqdm import tqdm

    bars: list[Any] = []

    def count(done: int, total: int) -> None:
        if done == 1 and not sys.stderr.isatty():
            tell(f"{what}: {total:,}, once; they are kept for the next time")
        if done == 1:
            bars.append(tqdm(total=total, desc=what, dynamic_ncols=True, disable=not sys.stderr.isatty()))
        bars[-1].update(1)

    try:
        yield count
    finally:
        for bar in bars:
            bar.close()


class Progress:
    """Watches a training (train.Watcher): a bar on a terminal, else a line an epoch; saves; stops on a signal."""

    def __init__(self, folder: Path, state: "State", batches: int, quiet: bool) -> None:
        keys = state.config.train
        steps = keys.iterations * keys.epochs * batches
        self.folder, self.quiet, self.stop = folder, quiet, False
        self.total = min(steps, keys.max_steps) if keys.max_steps else steps
        self.done = state.step
        self.compiling: float | None = None
        self.batches, self.began, self.timed = batches, 0.0, 0      # the clock starts after the first step
        self.bar: Any = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Show progress and listen to signals: the first asks to stop after the step under way, the second aborts."""
        if sys.stderr.isatty() and not self.quiet:
            from tqdm import tqdm

            self.bar = tqdm(total=self.total, initial=self.done, unit="step", dynamic_ncols=True)
        listened = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with announcing(None if self.quiet else self._compilation):
                yield
        finally:
            for number, before in listened.items():
                signal.signal(number, before)
            if self.bar is not None:
                self.bar.close()

    def _on_signal(self, *_: Any) -> None:
        if self.stop:
            raise KeyboardInterrupt
        self.stop = True
        os.write(2, b"\nrefsnn: finishing the step under way, then saving; again to abort\n")  # print cannot be nested

    def _compilation(self, text: str) -> None:
        self.compiling = time.perf_counter()
        self._say(text)

    def _say(self, text: str) -> None:
        """A line on stderr, above the bar."""
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        else:
            tell(text)

    def on_step(self, state: "State") -> None:
        """Move the bar."""
        if self.compiling is not None:
            self._say(f"compiled, first step done, after {time.perf_counter() - self.compiling:.1f} s")
            self.compiling = None
        self._time_epoch()
        if self.bar is not None:
            seen, density = max(state.seen, 1), state.network.density
            self.bar.set_postfix_str(f"iteration {state.iteration + 1}, loss {state.loss_sum / seen:.3f}, "
                                     f"accuracy {state.correct / seen:.3f}, density {density:.3f}", refresh=False)
            self.bar.update(1)

    def _time_epoch(self) -> None:
        """After the first steps, say how long an epoch will take."""
        if self.timed == 0:
            self.began = time.perf_counter()
        elif self.timed == TIMED and not self.quiet and self.batches > TIMED:
            seconds = (time.perf_counter() - self.began) / TIMED * self.batches
            self._say(f"an epoch of {self.batches:,} steps will take about {seconds:,.0f} s, without its evaluation")
        self.timed += 1

    def on_epoch(self, state: "State") -> None:
        """Print the epoch's line where there is no bar."""
        if self.quiet or self.bar is not None:
            return
        row = state.metrics[-1]
        print(f"iteration {row['iteration']:2d}  epoch {row['epoch']:3d}  loss {row['train_loss']:.4f}  train "
              f"{100 * row['train_accuracy']:6.2f} %  {row['evaluated_on']} {100 * row['test_accuracy']:6.2f} %  "
              f"density {row['param_density']:.4f}  {row['seconds']:.1f} s", flush=True)

    def save(self, state: "State") -> None:
        """Write checkpoint and tables."""
        from refsnn import runs

        runs.save(self.folder, state)

    def should_stop(self) -> bool:
        """Whether a signal came."""
        return self.stop
