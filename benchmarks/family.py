"""Every architecture as large as its published base model: the forward pass, and with `--convert` the conversion.

    python -m benchmarks.family [--convert] [--only albert,roberta]

The forward pass is 8 × 128 tokens in float32 on the CPU, ours over PyTorch's, as `benchmarks.forward` measures it.
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

import numpy as np

from benchmarks import forward
from benchmarks.convert import MEMORY_LIMIT, TIME_LIMIT, measured
from benchmarks.machine import load, machine

LIMIT, LIMITS = 1.2, {"deberta-v2": 1.0, "modernbert": 1.0}
"""Our forward time over PyTorch's, in general and of two that are slow there."""

# In a process of its own: a child's peak memory begins at the size that its parent had when it was forked.
_WRITE = (
    "import sys; from pathlib import Path; from benchmarks.family_sizes import write_checkpoint; "
    "from mlxbert.models.architecture import HeadKind; "
    "write_checkpoint(Path(sys.argv[1]), sys.argv[2], HeadKind.MASKED_LM if sys.argv[3:] else None)"
)


def main(argv: list[str] | None = None) -> None:
    """Measure one architecture after the other, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="these model_types, separated by commas (default: all)")
    parser.add_argument("--repeat", type=int, default=3, help="pairs of processes (default 3)")
    parser.add_argument("--forwards", type=int, default=5, help="timed passes in each process (default 5)")
    parser.add_argument("--convert", action="store_true", help="measure the conversion instead")
    options = parser.parse_args(argv)
    if min(options.repeat, options.forwards) < 1:
        parser.error("--repeat and --forwards must be at least 1")
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


def written(name: str, scratch: Path, *flags: str) -> Path:
    """Write a random base-sized checkpoint into `scratch`; its directory."""
    directory = scratch / name
    subprocess.run([sys.executable, "-c", _WRITE, str(directory), name, *flags], check=True, capture_output=True)
    return directory


def pairs(name: str, scratch: Path, options: argparse.Namespace) -> str:
    """Measure the forward passes of one architecture; a line of the table."""
    directory = written(name, scratch)
    timings: dict[str, list[forward.Timing]] = {"torch": [], "mlxbert": []}
    for _ in range(options.repeat):
        for side, values in timings.items():
            values.append(forward.measure(side, directory, options.forwards))
    theirs, ours = timings["torch"], timings["mlxbert"]
    ratios = [b.seconds / a.seconds for a, b in zip(theirs, ours, strict=True)]
    columns = [forward.spread([timing.seconds for timing in values], " s") for values in (theirs, ours)]
    limit = LIMITS.get(name, LIMIT)
    verdict = "yes" if statistics.median(ratios) <= limit else "NO"
    difference = float(np.abs(ours[-1].hidden - theirs[-1].hidden).max())
    line = "".join(f"{column:<28}" for column in (*columns, forward.spread(ratios, "×")))
    return f"{name:<12}{line}{difference:.1e}   ≤ {limit}×: {verdict}"


def conversion(name: str, scratch: Path, repeat: int) -> str:
    """Measure the conversion of one architecture; a line of the table."""
    found = measured(written(name, scratch, "--head"), scratch, repeat)
    ratio, peak = statistics.median(found.ratios), max(found.peaks)
    verdict = "yes" if ratio <= TIME_LIMIT and peak <= MEMORY_LIMIT else "NO"
    columns = f"{forward.spread(found.ours, ' s'):<28}{forward.spread(found.ratios, '×'):<36}{peak:.0f}"
    return f"{name:<12}{found.size / 1e6:>6.0f}  {columns}   ≤ {TIME_LIMIT:.0f}× and {MEMORY_LIMIT} MB: {verdict}"


if __name__ == "__main__":
    main()
