"""Batches of near lengths against shuffled ones: the loss curves, and the padding that they save.

    python -m benchmarks.batch_order                 # some three minutes
    python -m benchmarks.batch_order --rows 7613     # all rows

Training sorts the rows of several batches by length, then shuffles these batches. Here all-MiniLM-L6-v2 learns the
disaster tweets both ways, from the same weights of the head: the mean loss of each tenth of the steps, and loss and F1
of the held-out rows, as the mean over the seeds and their standard deviation. A difference below about twice
its own deviation, √(a² + b²) / √seeds, is noise.

A benchmark shows, and asserts nothing: the exit code is 0 whatever the numbers are.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.inputs import MissingInputError, converted_minilm, training_file
from benchmarks.machine import machine
from benchmarks.tweets import configuration, prepared_rows
from mlxbert.data import tokens
from mlxbert.runs.settings import RunSettings
from mlxbert.training.callbacks import Callback, EvaluationEvent, StepEvent

_TENTHS = 10
# Batches whose rows are sorted together: ours, and none.
POOLS = {"near lengths": tokens._POOL, "shuffled": 1}


class Curve(Callback):
    """Losses and padding of the steps, and what the last evaluation gave."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.padding: list[float] = []
        self.held_out: list[float] = []

    def on_step(self, event: StepEvent) -> None:
        """Note a step."""
        self.losses.append(event.loss)
        self.padding.append(event.padding or 0.0)

    def on_evaluation(self, event: EvaluationEvent) -> None:
        """Note an evaluation."""
        self.held_out = [event.loss, event.metrics["f1"]]

    def numbers(self) -> np.ndarray:
        """Return the mean loss of each tenth of the steps, held-out loss, F1, and the share of padding."""
        tenths = [part.mean() for part in np.array_split(np.array(self.losses), _TENTHS)]
        return np.array([*tenths, *self.held_out, float(np.mean(self.padding))])


def curve(data: Path, model: Path, rows: int, seed: int, pool: int) -> np.ndarray:
    """Train once; return the numbers of `Curve`."""
    import mlx.core as mx

    from mlxbert.runs.members import new_model
    from mlxbert.training.trainer import Member, Trainer

    mx.set_default_device(mx.cpu)
    tokens._POOL = pool
    config = configuration(seed)
    prepared = prepared_rows(data, model, config, rows)
    member, noted = Member(seed, 0), Curve()
    made = new_model(prepared, RunSettings(model=str(model), target=("target",)), config, member)
    options: dict[str, Any] = {"task": prepared.task, "metric": "f1", "member": member, "callbacks": [noted]}
    Trainer(made, prepared.examples, prepared.folds[0], config, **options).fit()
    return noted.numbers()


def main(argv: list[str] | None = None) -> None:
    """Train both ways with each seed, and print the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each kind (default 3)")
    parser.add_argument("--rows", type=int, default=2000, help="so many of the 7,613 rows (default 2000)")
    parser.add_argument("--data", type=Path, help="folder of the competitions' data (default: MLXBERT_DATA)")
    options = parser.parse_args(argv)
    if options.seeds < 2 or options.rows < 400:
        parser.error("--seeds must be at least 2, --rows at least 400")
    print(f"machine   {machine()}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        try:
            file = training_file("disaster-tweets", options.data)
            model = converted_minilm(Path(temporary) / "minilm")
        except MissingInputError as error:
            print(f"skipped: {error}")
            return
        found: dict[str, list[np.ndarray]] = {name: [] for name in POOLS}
        for seed in range(options.seeds):
            for name, pool in POOLS.items():
                found[name].append(curve(file, model, options.rows, seed, pool))
                print(f"seed {seed}, {name}: {' '.join(f'{number:.3f}' for number in found[name][-1])}", flush=True)
    near, shuffled = (np.array(curves) for curves in found.values())
    lines = [f"steps {10 * i} to {10 * (i + 1)} %" for i in range(_TENTHS)] + ["held-out loss", "F1", "padding"]
    print(f"\n{options.rows} rows, {options.seeds} seeds: mean ± standard deviation over the seeds\n")
    print(f"{'':<22}{'near lengths':>20}{'shuffled':>20}{'difference':>14}{'its deviation':>15}")
    for i, line in enumerate(lines):
        a, b = near[:, i], shuffled[:, i]
        deviation = math.hypot(a.std(ddof=1), b.std(ddof=1)) / math.sqrt(options.seeds)
        columns = "".join(f"{f'{side.mean():.4f} ± {side.std(ddof=1):.4f}':>20}" for side in (a, b))
        print(f"{line:<22}{columns}{a.mean() - b.mean():>+14.4f}{deviation:>15.4f}")


if __name__ == "__main__":
    main()
