"""How long rounding a bert-base takes and how much memory, and a quantized forward pass against a float32 one.

    python -m benchmarks.quantize_speed [--repeat N]

All sides in one run, in turn: `cp` + `sync` + `sha256sum` of a bert-base in float32 (438 MB) and `mlxbert-convert
--quantize RECIPE --no-verify` of it, each a process of its own; then forward passes of the written 4-bit directory, as
`mlxbert.load` gives it, and of the float32 conversion; and of MLX's own packed layers, on a small batch.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.convert import CONVERT, timed
from benchmarks.machine import load, machine
from examples.packaged_minilm import model_directory

RECIPES = {
    "4bit": "3 × baseline, 500 MB",
    "8bit": "3 × baseline, 500 MB",
    "mxfp4": "20 s, 700 MB",
    "nvfp4": "20 s, 700 MB",
}


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="counted runs of each side (default 3)")
    parser.add_argument("--calibrated", action="store_true", help="also calibrate 4 bits, once: minutes")
    options = parser.parse_args(argv)
    repeat = options.repeat
    console = Console()
    console.print(f"{machine()}; {load()}", soft_wrap=True)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        directory = Path(scratch) / "bert-base"
        directory.mkdir()
        # In a process of its own: a child's ru_maxrss begins at the size that its parent had when it was forked.
        make = "import sys; from pathlib import Path; from benchmarks.convert import make_bert_base as make; "
        subprocess.run([sys.executable, "-c", make + "make(Path(sys.argv[1]))", str(directory)], check=True)
        console.print(conversions(directory, Path(scratch), repeat))
        console.print(forwards(directory, Path(scratch), repeat))
        if options.calibrated:
            console.print(f"4bit, calibrated on the built-in sentences: {calibrated(directory, Path(scratch)):.0f} s")


def calibrated(directory: Path, scratch: Path) -> float:
    """Seconds that a calibrated conversion takes, with the vocabulary of bert-base-uncased, which MiniLM has too."""
    for name in ("tokenizer.json", "vocab.txt"):
        shutil.copy(model_directory() / name, directory / name)
    command = [sys.executable, "-c", CONVERT, str(directory), "-o", str(scratch / "calibrated"), "--no-verify"]
    return timed([*command, "--quantize", "4bit", "--calibration", "built-in"])[0]


def conversions(directory: Path, scratch: Path, repeat: int) -> Table:
    """Seconds and peak memory of every recipe, and of the baseline."""
    file, copy = directory / "model.safetensors", scratch / "copy"
    hasher = "sha256sum" if shutil.which("sha256sum") else "shasum -a 256"
    baseline = ["sh", "-c", f"cp '{file}' '{copy}' && sync && {hasher} '{copy}' && rm '{copy}'"]
    times: dict[str, list[float]] = {name: [] for name in ("baseline", *RECIPES)}
    peaks: dict[str, list[float]] = {name: [] for name in RECIPES}
    for run in range(repeat + 1):  # the first of each warms the cache
        found = {"baseline": timed(baseline)}
        for recipe in RECIPES:
            out = scratch / f"out-{recipe}"
            shutil.rmtree(out, ignore_errors=True)
            command = [sys.executable, "-c", CONVERT, str(directory), "-o", str(out), "--no-verify"]
            found[recipe] = timed([*command, "--quantize", recipe])
        for name, (seconds, peak) in found.items():
            if run:
                times[name].append(seconds)
                if name in peaks:
                    peaks[name].append(peak)
    table = Table(title=f"Quantize bert-base, {file.stat().st_size / 1e6:.0f} MB float32, --no-verify, {repeat} runs")
    for column in ("", "seconds, median (range)", "× baseline", "peak MB", "limit"):
        table.add_column(column, justify="left" if not column else "right")
    for name, values in times.items():
        ratios = [a / b for a, b in zip(values, times["baseline"], strict=True)]
        label = "cp + sync + sha256sum" if name == "baseline" else name
        middle = f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"
        peak = f"{max(peaks[name]):.0f}" if name in peaks else ""
        table.add_row(label, middle, f"{statistics.median(ratios):.2f}", peak, RECIPES.get(name, ""))
    return table


def forwards(directory: Path, scratch: Path, repeat: int) -> Table:
    """Seconds of a forward pass of 8 × 128 tokens: as loaded, float32, and with MLX's packed layers."""
    import mlx.core as mx

    from converter.convert import convert
    from mlxbert.checkpoint import load_core

    convert(directory, scratch / "float32", verify=False)
    begin = time.perf_counter()
    quantized = load_core(scratch / "out-4bit")
    loading = time.perf_counter() - begin
    float32 = load_core(scratch / "float32")
    sides: dict[tuple[int, int], dict[str, Any]] = {
        (8, 128): {"float32": float32, "4bit, as mlxbert.load gives it": quantized},
        # MLX's scalar loops would take a minute for a full batch.
        (1, 32): {"float32": float32, "4bit, MLX's packed layers": load_core(scratch / "out-4bit", dequantize=False)},
    }
    table = Table(title=f"Forward, bert-base; loading 4bit takes {loading:.1f} s")
    for column in ("", "batch", "seconds, median (range)", "× float32"):
        table.add_column(column, justify="left" if not column else "right")
    for shape, cores in sides.items():
        ids = mx.random.randint(0, 30522, shape)
        times: dict[str, list[float]] = {name: [] for name in cores}
        for run in range(repeat + 1):
            for name, core in cores.items():
                begin = time.perf_counter()
                mx.eval(core(ids).last_hidden_state)
                if run:
                    times[name].append(time.perf_counter() - begin)
        reference = statistics.median(times["float32"])
        for name, values in times.items():
            middle = statistics.median(values)
            seconds = f"{middle:.3f} ({min(values):.3f}–{max(values):.3f})"
            table.add_row(name, f"{shape[0]} × {shape[1]}", seconds, f"{middle / reference:.2f}")
    return table


if __name__ == "__main__":
    main()
