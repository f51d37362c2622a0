"""What the bits cost a real model on text that calibration never saw: rounded, calibrated, and with allotted bits.

    python -m benchmarks.quantize_quality [--model minilm|mpnet] [--only rounded|limits|auto] [--texts FILE …]

Every model is converted here and loaded as a user would; cosines are between its sentence embeddings and those of the
float32 model, on the two held-out lists of the package and on any text file given (one text a line). Sizes are bytes
of `model.safetensors`. The last rows give `auto` the bytes of uniform recipes. Below the table stands, for every limit
and for `auto` against the best uniform recipe of at most its bytes, whether it is met and by how much.
all-mpnet-base-v2 has fewer rows and no limits: it takes eight times as long.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.inputs import PACKAGED, MissingInputError, packaged_source
from benchmarks.machine import load, machine
from converter.convert import convert
from converter.quantize.quality import Quality, measure_quality, pooling_of
from converter.quantize.recipes import HELD_OUT, TextList, built_in, calibration_texts


@dataclass(frozen=True)
class Limit:
    """The smallest cosines that a size is to give on every list: the mean, and any one sentence's."""

    mean: float
    min: float | None = None

    @property
    def words(self) -> str:
        """For the table."""
        return f"mean {self.mean:g}" + ("" if self.min is None else f", min {self.min:g}")


@dataclass(frozen=True)
class Row:
    """One conversion: what `convert` is told, and what it is to reach.

    Attributes:
        recipe: `quantize=`.
        options: the others.
        limit: of a size that has one.
        equal: the name of the row whose bytes it gets.
    """

    recipe: str
    options: Mapping[str, Any]
    limit: Limit | None = None
    equal: str | None = None


@dataclass(frozen=True)
class Found:
    """A row that was run: bytes, and the quality on every list."""

    row: Row
    size: int
    quality: tuple[Quality, ...]


_ROUNDED = {f"{name}, rounded": Row(name, {}) for name in ("4bit", "5bit", "6bit", "8bit", "mxfp4", "nvfp4")}
_CALIBRATED = {f"{name}, calibrated": Row(name, {"calibration": "built-in"}) for name in ("4bit", "5bit")}
_MIXED = {"mixed, calibrated": Row("mixed", {}, Limit(0.996, 0.992))}
_SIZES = {
    f"auto, {size}": Row("auto", {"target_size": size}, limit)
    for size, limit in {"14.3MB": Limit(0.996, 0.992), "13.0MB": Limit(0.986), "20MB": Limit(0.999)}.items()
}
_EQUAL = {f"auto, bytes of {name}": Row("auto", {}, equal=f"{name}, calibrated") for name in ("4bit", "5bit")}

_MPNET = {
    **{f"{name}, rounded": Row(name, {}) for name in ("4bit", "8bit")},
    "mixed, calibrated": Row("mixed", {}),
    "auto, bytes of 4bit": Row("auto", {}, equal="4bit, rounded"),
}

ONLY = {"rounded": _ROUNDED, "limits": {**_MIXED, **_SIZES}, "auto": {**_CALIBRATED, **_EQUAL}}
EVERYTHING = {**_ROUNDED, **_CALIBRATED, **_MIXED, **_SIZES, **_EQUAL}


def main(argv: list[str] | None = None) -> None:
    """Print the table and the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=PACKAGED, default="minilm", help="the packaged model (default minilm)")
    parser.add_argument("--only", choices=ONLY, help="a part: auto is against the calibrated recipes, at their bytes")
    parser.add_argument("--texts", type=Path, nargs="*", default=[], help="more held-out text, one a line")
    args = parser.parse_args(argv)
    lists = [*map(built_in, HELD_OUT), *map(calibration_texts, args.texts)]
    console = Console()
    console.print(f"{machine()}; {load()}", soft_wrap=True)
    try:
        source = packaged_source(args.model)
    except MissingInputError as error:
        console.print(f"left out: {error}")
        return
    rows = _MPNET if args.model == "mpnet" else EVERYTHING
    if args.only:
        chosen = {name for name in rows if name in ONLY[args.only]}
        chosen |= {rows[name].equal for name in chosen}  # what it is compared with
        rows = {name: row for name, row in rows.items() if name in chosen}
    table = Table(title=f"{PACKAGED[args.model]} against itself in float32: cosine mean / min, rank correlation")
    table.add_column("recipe")
    for column in ("MB", "seconds", *(texts.name for texts in lists), "limit"):
        table.add_column(column, justify="right")
    found: dict[str, Found] = {}
    with tempfile.TemporaryDirectory() as scratch:
        exact = Path(scratch) / "float32"
        convert(source, exact, verify=False)
        for name, row in rows.items():
            out = Path(scratch) / name.replace(" ", "-")
            options = row.options if row.equal is None else {"target_size": found[row.equal].size}
            begin = time.perf_counter()
            convert(source, out, quantize=row.recipe, verify=False, **options)
            seconds = time.perf_counter() - begin
            found[name] = Found(row, (out / "model.safetensors").stat().st_size, quality(exact, out, lists))
            cells = [
                f"{q.cosine_mean:.4f} / {q.cosine_min:.4f}, {q.rank_correlation or 0:.4f}" for q in found[name].quality
            ]
            limit = row.limit.words if row.limit else ""
            console.print(
                f"{name}: {found[name].size / 1e6:.2f} MB, {seconds:.0f} s", *cells, sep="; ", soft_wrap=True
            )
            table.add_row(name, f"{found[name].size / 1e6:.2f}", f"{seconds:.0f}", *cells, limit)
    console.print(table)
    for line in verdicts(found):
        console.print(line, soft_wrap=True)


def quality(exact: Path, quantized: Path, lists: Sequence[TextList]) -> tuple[Quality, ...]:
    """On every list."""
    import mlxbert

    (core, tokenizer), (other, _) = mlxbert.load(exact), mlxbert.load(quantized)
    return measure_quality(core, other, tokenizer, pooling_of(exact), lists)


def verdicts(found: Mapping[str, Found]) -> list[str]:
    """A line for every limit on every list, and for `auto` against the best uniform recipe of at most its bytes."""
    lines = []
    for name, one in found.items():
        for at, q in enumerate(one.quality):
            if one.row.limit is not None:
                lines.append(f"{name}, {q.text}: mean {_met(q.cosine_mean, one.row.limit.mean)}")
                if one.row.limit.min is not None:
                    lines.append(f"{name}, {q.text}: min {_met(q.cosine_min, one.row.limit.min)}")
            if one.row.equal is not None:
                budget = found[one.row.equal].size
                # `mixed` and `auto` give layers different bits; all others are uniform.
                uniform = {
                    other: them.quality[at].cosine_mean
                    for other, them in found.items()
                    if them.row.recipe not in ("auto", "mixed") and them.size <= budget
                }
                best = max(uniform, key=lambda other: uniform[other])
                lines.append(f"{name}, {q.text}: mean {_met(q.cosine_mean, uniform[best], strictly=True)} of {best}")
    return lines


def _met(value: float, limit: float, *, strictly: bool = False) -> str:
    """Whether, and by how much; also as a share of the way to 1 that the limit leaves."""
    met = value > limit if strictly else value >= limit
    word = "more than" if strictly else "at least"
    share = (value - limit) / (1 - limit) if limit < 1 else 0.0
    return f"{value:.5f}, {'MET' if met else 'MISSED'} by {abs(value - limit):.5f} ({share:+.0%}): {word} {limit:.5f}"


if __name__ == "__main__":
    main()
