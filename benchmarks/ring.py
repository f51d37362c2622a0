"""How long MLX's ring takes to add up gradients over processes, and whether it hangs: many arrays against few.

    python -m benchmarks.ring                        # four processes, some minutes
    python -m benchmarks.ring --ranks 2 --megabytes 40

MLX issue 4475 reports that the ring hangs in 3 to 4 % of the sums of a training's gradients, from three processes on.
Each layout here adds up the same numbers, `--times` times: every array by itself, groups as `nn.average_gradients`
makes them, and one flat array in pieces. A layout that is not done after `--timeout` seconds is ended, and the table
says how far it came. The sums are compared with the true ones.

A benchmark shows, and asserts nothing: the exit code is 0 whatever the numbers are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from rich.table import Table

from benchmarks.launched import Launched
from benchmarks.machine import machine
from mlxbert.terminal import show
from mlxbert.training.parallel import calm_launcher

# As many arrays as the adapters of the issue have.
ARRAYS = 504
# Name of a layout -> bytes of a piece of the flat array; None: no flat array.
LAYOUTS = {
    "every array by itself": None,
    "nn.average_gradients": None,
    "flat, pieces of 1 MB": 1 << 20,
    "flat, pieces of 4 MB": 4 << 20,
    "flat, one piece": 1 << 32,
}


def main(argv: list[str] | None = None) -> None:
    """Measure every layout, or one as a rank of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4, help="processes on this machine")
    parser.add_argument("--megabytes", type=float, default=4.0, help="of all gradients")
    parser.add_argument("--times", type=int, default=20, help="sums of all gradients for each layout")
    parser.add_argument("--timeout", type=float, default=90.0, help="seconds after which a layout is ended")
    parser.add_argument("--layout", choices=LAYOUTS, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.layout is not None:
        _rank(options.layout, options.megabytes, options.times)
        return
    table = Table(title=f"{options.ranks} ranks, {options.megabytes:g} MB in {ARRAYS} arrays; {machine()}")
    for heading in ("layout", "sums", "ms a sum: median", "longest", "ended"):
        table.add_column(heading, justify="left" if heading == "layout" else "right")
    for layout in LAYOUTS:
        seconds, ended = _launched(layout, options)
        times = [f"{1000 * f(seconds):.0f}" if seconds else "—" for f in (statistics.median, max)]
        table.add_row(layout, f"{len(seconds)} of {options.times}", *times, "yes" if ended else "no")
    show(table)


def _launched(layout: str, options: argparse.Namespace) -> tuple[list[float], bool]:
    """Return the seconds of each sum of a layout on real ranks, and whether they had to be ended."""
    words = ["--layout", layout, "--megabytes", str(options.megabytes), "--times", str(options.times)]
    with tempfile.TemporaryDirectory() as folder:
        launched = Launched(Path(folder), options.ranks, 1, [str(Path(__file__).resolve()), *words])
        try:
            ended = not launched.wait(options.timeout)
        finally:
            launched.end()
        lines = launched.output.read_text().splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines if line.startswith('{"seconds"')]
    if not ended and len(seconds) < options.times:
        raise SystemExit(f"{layout}: the ranks failed:\n" + "\n".join(lines[-10:]))
    return seconds, ended


def _rank(layout: str, megabytes: float, times: int) -> None:
    """Add up gradients as one of the ranks; the first prints the seconds of each sum."""
    calm_launcher()  # as in a training: else the launcher takes a core, and the sums wait for it
    group: Any = mx.distributed.init(strict=True)
    size = int(megabytes * 1e6 / 4 / ARRAYS)
    for _ in range(times):
        arrays = {f"w{i}": mx.full((size + i % 7,), float(group.rank() + 1)) for i in range(ARRAYS)}
        mx.eval(arrays)
        began = time.perf_counter()
        sums, mean = _added(layout, arrays, group)
        seconds = time.perf_counter() - began
        total = group.size() * (group.size() + 1) / 2
        wanted = total / group.size() if mean else total
        if not all(bool(mx.allclose(array, mx.array(wanted)).item()) for array in sums):
            raise SystemExit(f"{layout}: a sum is wrong")
        if group.rank() == 0:
            print(json.dumps({"seconds": seconds}), flush=True)


def _added(layout: str, arrays: dict[str, mx.array], group: Any) -> tuple[list[mx.array], bool]:
    """Return the sums over the ranks, and whether they are divided by their number."""
    if layout == "nn.average_gradients":
        averaged: Any = nn.average_gradients(arrays, group)
        mx.eval(averaged)
        return list(averaged.values()), True
    piece = LAYOUTS[layout]
    if piece is None:
        sums = [mx.distributed.all_sum(array, group=group) for array in arrays.values()]
        mx.eval(sums)
        return sums, False
    flat = mx.concatenate(list(arrays.values()))
    step = min(piece // 4, flat.size)
    sums = []
    for start in range(0, flat.size, step):
        sums.append(mx.distributed.all_sum(flat[start : start + step], group=group))
        mx.eval(sums[-1])
    return sums, False


if __name__ == "__main__":
    main()
