"""Rows per second per core of `mlxbert.ray.Embed`, and what 10⁸ rows cost at that rate.

Texts of 20 words through MiniLM. Sides, in turn, each in processes of its own: one process with one thread; one
process with a thread for each core; Ray Data with an actor of one thread for each core. The time runs from the first
batch to the end of the last: without the start of Python, of Ray and of the model, which is printed beside it. Rows
per second of CPU time are printed too: other work on the machine changes them less.

    python -m benchmarks.rows_per_core --model mlx_models/minilm
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.child import child
from benchmarks.machine import cores, load, machine
from mlxbert.ray import Embed

SIDES = ("one thread", "all threads", "ray")
BATCH = 256
ON_PAPER = 100_000_000
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
# Of a text.
_WORDS = 20


def texts(first: int, count: int) -> np.ndarray:
    """Return texts of 20 words in a row of the calibration sentences; the row number alone decides about a text."""
    words = (resources.files("converter.quantize.sentences") / "calibration.txt").read_text("utf-8").split()
    places = [int(np.random.default_rng(first + row).integers(len(words) - _WORDS)) for row in range(count)]
    return np.array([" ".join(words[place : place + _WORDS]) for place in places], object)


class Timed(Embed):
    """Embeds; each row also gets begin and end of its batch, its share of the batch's CPU time, and the process."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.encoder.encode(list(texts(0, 64)))  # compiles

    def __call__(self, batch: Any) -> Any:
        made = texts(int(batch["id"][0]), len(batch["id"]))
        begin, cpu = time.time(), time.process_time()
        vectors = super().__call__({"text": made})["embedding"]
        cpu = (time.process_time() - cpu) / len(made)
        return {"embedding": vectors, "times": np.tile([begin, time.time(), cpu, os.getpid()], (len(made), 1))}


def plain(model: str, rows: int) -> np.ndarray:
    """Embed in this process; return the times of the rows, as `Timed` has them: (N, 4)."""
    embed = Timed(model=model)
    ids = np.arange(rows)
    return np.concatenate([embed({"id": ids[first : first + BATCH]})["times"] for first in range(0, rows, BATCH)])


def rates(times: np.ndarray) -> dict[str, float]:
    """Return rows per second, the sum over the processes; rows per second of CPU time; and the processes."""
    of_each = [times[times[:, 3] == process] for process in set(times[:, 3])]
    wall = sum(len(rows) / (rows[:, 1].max() - rows[:, 0].min()) for rows in of_each)
    return {"rate": wall, "of_cpu": 1 / times[:, 2].mean(), "processes": len(of_each)}


def on_ray(model: str, rows: int, actors: int) -> np.ndarray:
    """Embed on a local Ray; return the times of the rows, as `Timed` has them: (N, 4)."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as sockets:
        ray.init(
            num_cpus=actors + 1,
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            log_to_driver=False,
            _temp_dir=sockets,
        )
        DataContext.get_current().enable_progress_bars = False
        try:
            embedded = ray.data.range(rows, override_num_blocks=4 * actors).map_batches(
                Timed,
                fn_constructor_kwargs={"model": model},
                compute=ActorPoolStrategy(size=actors),
                num_cpus=1,
                batch_size=BATCH,
            )
            return np.concatenate([batch["times"] for batch in embedded.iter_batches(batch_size=None)])
        finally:
            ray.shutdown()


def measure(side: str, model: str, rows: int, actors: int) -> dict[str, Any]:
    """Return what one side takes, from a process of its own."""
    environment = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    own = dict.fromkeys(_THREADS, {"one thread": "1", "all threads": str(actors), "ray": ""}[side])
    arguments = ("--side", side, "--model", model, "--rows", rows, "--actors", actors)
    process = child("rows_per_core", *arguments, environment={**environment, **own})
    printed, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"failed: {side}")
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found


def on_paper(rate: float) -> list[str]:
    """Return lines of a table: hours of 10⁸ rows at a number of rows per second of CPU time."""
    hours = ON_PAPER / rate / 3600
    lines = [
        f"{ON_PAPER:,} rows at {rate:.0f} rows per CPU second are {hours:,.0f} core hours",
        "",
        "| machines | hours |",
    ]
    lines.append("|---|---|")
    for machines, each in ((1, 2), (1, 16), (4, 16), (10, 16), (10, 64)):
        lines.append(f"| {machines} of {each} cores | {hours / machines / each:,.1f} |")
    return lines


def main(argv: list[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mlx_models/minilm", help="a converted directory (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=1024, help="of each core and round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--actors", type=int, default=cores(), help="(default: the cores, %(default)s)")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.side is not None:
        if options.side == "ray":
            for name in _THREADS:  # Ray chooses
                os.environ.pop(name, None)
            times = on_ray(options.model, options.rows, options.actors)
        else:
            times = plain(options.model, options.rows)
        assert len(times) == options.rows
        print(json.dumps(rates(times)))
        return
    if not Path(options.model).is_dir():
        print(f"{options.model} is not there; fix: make demo, or --model DIRECTORY")
        return
    print(machine("ray"), load(), sep="\n")
    model = str(Path(options.model).resolve())
    found: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    for _ in range(options.rounds):
        for side in SIDES:
            used = 1 if side == SIDES[0] else options.actors
            begin = time.perf_counter()
            measured = measure(side, model, options.rows * used, options.actors)
            found[side].append((measured["rate"] / used, measured["of_cpu"]))
            wall = time.perf_counter() - begin
            print(f"{side}: {measured['rate']:.0f} rows/s, {measured['of_cpu']:.0f} rows per CPU second, ", end="")
            print(f"{measured['processes']} processes, {wall:.1f} s with the start", flush=True)
    print("\n| side | cores | rows/s per core, median | against one thread | rows per CPU second |")
    print("|---|---|---|---|---|")
    medians = {side: np.median(found[side], axis=0) for side in SIDES}
    for side, (rate, of_cpu) in medians.items():
        used = 1 if side == SIDES[0] else options.actors
        print(f"| {side} | {used} | {rate:.0f} | {rate / medians[SIDES[0]][0]:.2f} | {of_cpu:.0f} |")
    print("", *on_paper(float(medians["ray"][1])), sep="\n")


if __name__ == "__main__":
    main()
