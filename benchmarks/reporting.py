"""What it costs to look at a run: writers and report, and the watch over its finiteness.

    python -m benchmarks.reporting [--dataset FOLDER] [--steps 20000]

Trains the benchmarks' MLP, a step of which takes a fraction of a millisecond, with a log row every
100 steps, so that there is as much to report as there ever is. Prints shares of the run's time.
"""

import argparse
import tempfile
import time
from pathlib import Path

from flax import nnx

from benchmarks.models import BATCH, MLP, source
from trainers import Trainer
from trainers.fit import Fit
from trainers.loop.watch import Watch
from trainers.report.report import Report


class Stopwatch:
    """Adds up the time in a method of a class.

    Args:
        owner: The class.
        method: The method's name.
    """

    def __init__(self, owner: type, method: str):
        self.seconds, self.calls = 0.0, 0
        inner = getattr(owner, method)

        def timed(*arguments, **named):
            begun = time.perf_counter()
            try:
                return inner(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - begun
                self.calls += 1

        setattr(owner, method, timed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", help="a folder with MNIST's columns; default: random images")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--quick", action="store_true", help="1,000 steps: only to try it")
    args = parser.parse_args()
    steps = 1_000 if args.quick else args.steps
    closing, watching = Stopwatch(Report, "close"), Stopwatch(Watch, "is_finite")
    starting = Stopwatch(Watch, "__init__")
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            MLP(rngs=nnx.Rngs(0)),
            source(args.dataset),
            batch_size=BATCH,
            steps=steps,
            workdir=folder,
        )
        with Fit.opened(trainer._plan) as fit:  # what trainer.fit() runs, to read its clock
            begun = time.perf_counter()
            fit()
            whole = time.perf_counter() - begun
        page = (Path(folder) / "report.html").stat().st_size
    parts = {
        "writers, report and progress": fit.clock.seconds["reporting"] + closing.seconds,
        "watch, its start": starting.seconds,
        f"watch, {watching.calls} looks": watching.seconds,
    }
    print(f"{whole:.1f} s for {steps:,} steps, of which {fit.clock.seconds['computing']:.1f} s")
    for name, seconds in parts.items():
        print(f"  {name:32} {seconds:7.3f} s  {seconds / whole:6.2%}")
    print(f"  ({page / 1000:,.0f} kB of report)")


if __name__ == "__main__":
    main()
