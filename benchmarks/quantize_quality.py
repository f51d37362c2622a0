"""What the bits cost all-MiniLM-L6-v2 on text that calibration never saw: rounded, calibrated, and with allotted bits.

    python -m benchmarks.quantize_quality [--texts FILE …]

Every model is converted here and loaded as a user would; cosines are between its sentence embeddings and those of the
float32 model, on the two held-out lists of the package and on any text file given (one text a line). Sizes are bytes
of `model.safetensors`. The last rows give `auto` the bytes of the calibrated uniform recipes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import load, machine
from converter.convert import convert
from converter.quantize.quality import measure_quality, pooling_of
from converter.quantize.texts import HELD_OUT, TextList, built_in, calibration_texts
from examples.packaged_minilm import model_directory

LIMITS = {
    "auto, 14.3MB": "mean 0.996, min 0.992",
    "auto, 13.0MB": "mean 0.986",
    "auto, 20MB": "mean 0.999",
}


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, nargs="*", default=[], help="more held-out text, one a line")
    lists = [*map(built_in, HELD_OUT), *map(calibration_texts, parser.parse_args(argv).texts)]
    console = Console()
    console.print(f"{machine()}; {load()}", soft_wrap=True)
    try:
        source = model_directory()
    except FileNotFoundError as error:
        console.print(f"left out: {error}")
        return
    table = Table(title="all-MiniLM-L6-v2 against itself in float32: cosine mean / min, rank correlation")
    table.add_column("recipe")
    for column in ("MB", "seconds", *(texts.name for texts in lists), "limit"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as scratch:
        convert(source, Path(scratch) / "float32", verify=False)
        sizes: dict[str, int] = {}

        def row(name: str, quantize: str, **options: Any) -> None:
            out = Path(scratch) / name.replace(" ", "-")
            begin = time.perf_counter()
            convert(source, out, quantize=quantize, verify=False, **options)
            seconds = time.perf_counter() - begin
            sizes[name] = (out / "model.safetensors").stat().st_size
            numbers = quality(Path(scratch) / "float32", out, lists)
            table.add_row(name, f"{sizes[name] / 1e6:.2f}", f"{seconds:.0f}", *numbers, LIMITS.get(name, ""))

        for recipe in ("4bit", "5bit", "6bit", "8bit", "mxfp4", "nvfp4"):
            row(f"{recipe}, rounded", recipe)
        for recipe in ("4bit", "5bit"):
            row(f"{recipe}, calibrated", recipe, calibration="built-in")
        row("mixed, calibrated", "mixed")
        for name in LIMITS:
            row(name, "auto", target_size=name.partition(", ")[2])
        for recipe in ("4bit", "5bit"):
            row(f"auto, bytes of {recipe}", "auto", target_size=sizes[f"{recipe}, calibrated"])
    console.print(table)


def quality(exact: Path, quantized: Path, lists: list[TextList]) -> list[str]:
    """A cell for every list."""
    import mlxbert

    (core, tokenizer), (other, _) = mlxbert.load(exact), mlxbert.load(quantized)
    found = measure_quality(core, other, tokenizer, pooling_of(exact), lists)
    return [f"{q.cosine_mean:.4f} / {q.cosine_min:.4f}, {q.rank_correlation or 0:.4f}" for q in found]


if __name__ == "__main__":
    main()
