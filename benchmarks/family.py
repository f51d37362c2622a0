"""Every architecture as large as its published base model: the forward pass, and with `--convert` the conversion.

    python -m benchmarks.family [--convert] [--only albert,roberta]

The forward pass is 8 × 128 tokens in float32 on the CPU, ours over PyTorch's, as `benchmarks.speed` measures it.
The conversion is that of a masked language model, as `benchmarks.convert` measures it: `mlxbert-convert --no-verify`
over `cp` + `sync` + `sha256sum` of the same file, and its peak memory. The weights are random.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.convert import MEMORY_LIMIT, TIME_LIMIT, measured
from benchmarks.machine import cores, load, machine
from benchmarks.speed import Process
from benchmarks.speed_sides import CHECK, OURS, PYTORCH

LIMIT, LIMITS = 1.2, {"deberta-v2": 1.0, "modernbert": 1.0}
"""Our forward time over PyTorch's, in general and of two that are slow there."""

# In processes of their own: a child's peak memory begins at the size that its parent had when it was forked.
_WRITE = (
    "import sys; from pathlib import Path; from benchmarks.family_sizes import write_checkpoint; "
    "from mlxbert.models.architecture import HeadKind; "
    "write_checkpoint(Path(sys.argv[1]), sys.argv[2], HeadKind.MASKED_LM)"
)
_MAKE = (
    "import sys; from pathlib import Path; from benchmarks.speed_inputs import random_model; "
    "random_model(Path(sys.argv[1]), model_type=sys.argv[2])"
)


def main(argv: list[str] | None = None) -> None:
    """Measure one architecture after the other, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="these model_types, separated by commas (default: all)")
    parser.add_argument("--repeat", type=int, default=3, help="turns of each side (default 3)")
    parser.add_argument("--seconds", type=float, default=3.0, help="that a turn lasts at least (default 3)")
    parser.add_argument("--convert", action="store_true", help="measure the conversion instead")
    options = parser.parse_args(argv)
    if options.repeat < 1 or options.seconds < 0:
        parser.error("--repeat must be at least 1, --seconds at least 0")
    known = registered()
    names = options.only.split(",") if options.only else known
    if unknown := sorted({*names} - {*known}):
        parser.error(f"--only: {', '.join(unknown)} unknown; known: {', '.join(known)}")
    print(f"machine   {machine()}\nbefore    {load()}\n", flush=True)
    if options.convert:
        print(f"{'':<12}{'MB':>6}  {'convert':<28}{'over cp + sync + sha256sum':<36}peak memory, MB")
    else:
        print(f"{'':<12}{'PyTorch':<28}{'mlxbert':<28}{'ratio, pair by pair':<28}hidden state off by")
    for name in names:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
            folder = Path(scratch)
            line = conversion(name, folder, options.repeat) if options.convert else pairs(name, folder, options)
            print(line, flush=True)


def registered() -> tuple[str, ...]:
    """Every supported `model_type`."""
    from mlxbert.models.architecture import supported

    return supported()


def pairs(name: str, scratch: Path, options: argparse.Namespace) -> str:
    """Measure the forward passes of one architecture; a line of the table."""
    subprocess.run([sys.executable, "-c", _MAKE, str(scratch), name], check=True, capture_output=True)
    sides = [Process("forward", side, scratch, cores()) for side in (PYTORCH, OURS)]
    seconds: dict[str, list[float]] = {side.side: [] for side in sides}
    errors: list[float] = []
    try:
        for side in sides:
            side.loaded()
            errors.append(side.turn(CHECK, 0)["error"])
        for _ in range(options.repeat):
            for side in sides:
                found = side.turn("8 × 128", options.seconds)
                seconds[side.side].append(statistics.median(found["seconds"]))
                errors.append(found.get("error", 0.0))
    finally:
        for side in sides:
            side.end()
    ratios = [ours / theirs for theirs, ours in zip(seconds[PYTORCH], seconds[OURS], strict=True)]
    columns = [spread(seconds[PYTORCH], " s"), spread(seconds[OURS], " s"), spread(ratios, "×")]
    limit = LIMITS.get(name, LIMIT)
    verdict = "yes" if statistics.median(ratios) <= limit else "NO"
    line = "".join(f"{column:<28}" for column in columns)
    return f"{name:<12}{line}{max(errors):.1e}   ≤ {limit}×: {verdict}"


def conversion(name: str, scratch: Path, repeat: int) -> str:
    """Measure the conversion of one architecture; a line of the table."""
    directory = scratch / name
    subprocess.run([sys.executable, "-c", _WRITE, str(directory), name], check=True, capture_output=True)
    found = measured(directory, scratch, repeat)
    ratio, peak = statistics.median(found.ratios), max(found.peaks)
    verdict = "yes" if ratio <= TIME_LIMIT and peak <= MEMORY_LIMIT else "NO"
    columns = f"{spread(found.ours, ' s'):<28}{spread(found.ratios, '×'):<36}{peak:.0f}"
    return f"{name:<12}{found.size / 1e6:>6.0f}  {columns}   ≤ {TIME_LIMIT:.0f}× and {MEMORY_LIMIT} MB: {verdict}"


def spread(values: list[float], unit: str) -> str:
    """Median [smallest – largest]."""
    return f"{statistics.median(values):.3f}{unit} [{min(values):.3f} – {max(values):.3f}]"


if __name__ == "__main__":
    main()
