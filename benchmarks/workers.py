"""Folds in parallel: the time of `mlxbert train --workers N` against the same folds in sequence with N threads.

    python -m benchmarks.workers
    python -m benchmarks.workers --workers 4 --rows 2000 --folds 4 --repeats 1

all-MiniLM-L6-v2 on disaster tweets. Both sides are the real command, from its start to its scores, in turns. In
sequence each model is trained on N threads; in parallel N models are trained on one thread each. A first run, which
does not count, fills the cache of MLX's compiler and that of the tokens. The second ratio leaves out what a command
takes before and after its models: the seconds of the models, divided by N in parallel.

A benchmark shows, and asserts nothing: the exit code is 0 whatever the numbers are.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.child import timed
from benchmarks.inputs import MissingInputError, converted_minilm, training_file
from benchmarks.machine import load, machine
from mlxbert.runs.log import read_log
from mlxbert.training.callbacks import MemberEvent


def main(arguments: list[str] | None = None) -> None:
    """Print the seconds of each turn, and the ratio of the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--data", type=Path, help="folder of disaster-tweets/train.csv")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        try:
            table = _rows(training_file("disaster-tweets", options.data), root / "train.csv", options.rows)
            model = converted_minilm(root / "minilm")
        except MissingInputError as error:
            sys.exit(f"benchmarks.workers: {error}")
        words = ["train", table, "--model", model, "--competition", "disaster-tweets", "--folds", options.folds]
        words += ["--epochs", 1, "--batch-size", options.batch_size, "--max-length", 64]
        environment = {
            **os.environ,
            "OPENBLAS_NUM_THREADS": str(options.workers),
            "MLXBERT_CACHE": str(root / "cache"),
        }
        sides = {
            f"in sequence, {options.workers} threads": ["--threads", options.workers],
            f"{options.workers} workers, 1 thread each": ["--threads", 1, "--workers", options.workers],
        }
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        of_models: dict[str, list[float]] = {name: [] for name in sides}
        print(machine(), load(), sep="\n", flush=True)
        for turn in range(options.repeats + 1):
            for name, more in sides.items():
                out = root / f"run-{turn}-{len(more)}"
                command = [sys.executable, "-m", "mlxbert", *map(str, [*words, *more, "-o", out])]
                taken, _ = timed(command, environment)
                if turn == 0:
                    break
                seconds[name].append(taken)
                of_models[name].append(_seconds_of_models(out) / (options.workers if "--workers" in more else 1))
                print(f"{name}: {taken:.1f} s, models {of_models[name][-1]:.1f} s", flush=True)
    if options.repeats:
        for what, sides_of in (("the command", seconds), ("its models", of_models)):
            sequence, parallel = (statistics.median(each) for each in sides_of.values())
            print(f"{what}: {sequence / parallel:.2f} times as fast with {options.workers} workers")


def _seconds_of_models(run: Path) -> float:
    """Return the seconds of all models of a run, one after the other."""
    log = read_log(run / "metrics.jsonl")
    events = (line.event for line in log.lines) if log is not None else ()
    return sum(event.seconds for event in events if isinstance(event, MemberEvent))


def _rows(source: Path, out: Path, rows: int) -> Path:
    """Write some rows of a table; return the new file."""
    import pandas

    frame = pandas.read_csv(source)
    frame.sample(min(rows, len(frame)), random_state=0).to_csv(out, index=False)
    return out


if __name__ == "__main__":
    main()
