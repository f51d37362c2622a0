"""Whether sentence embeddings keep their quality: rank correlation with people's judgements, STS 2016.

    python -m benchmarks.similarity [--data DIR] [--model minilm|mpnet]

Spearman's correlation of cosines with the scores of the scored pairs, on four sets of SemEval 2016 task 1, for
sentence-transformers and for mlxbert's conversion, in float32 and with weights in bfloat16 (both compute in float32,
mlxbert on a CPU alone); and the largest difference of any number of any embedding in float32. Data: DIR/sts16, or
where MLXBERT_DATA points.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from benchmarks.inputs import PACKAGED, MissingInputError, packaged_source
from benchmarks.machine import load, machine
from converter.convert import convert
from mlxbert.encode.encoder import SentenceEncoder


@dataclass(frozen=True)
class Pairs:
    """A set of scored pairs of sentences.

    Attributes:
        name: of the set.
        first, second: the sentences.
        scores: from 0 (unrelated) to 5 (the same).
    """

    name: str
    first: tuple[str, ...]
    second: tuple[str, ...]
    scores: tuple[float, ...]

    def correlation(self, first: np.ndarray, second: np.ndarray) -> float:
        """Return Spearman's correlation of the cosines of two arrays of embeddings (N, D) with the scores."""
        lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        return float(spearmanr((first * second).sum(axis=1) / lengths, self.scores).statistic)


def scored_pairs(data: Path | None = None) -> list[Pairs]:
    """Return the four sets, without the pairs that nobody scored.

    Raises:
        MissingInputError: they are not there.
    """
    root = data or os.environ.get("MLXBERT_DATA")
    files = sorted((Path(root) / "sts16").glob("*.test.tsv")) if root else []
    if not files:
        raise MissingInputError("no data; fix: --data or MLXBERT_DATA, a folder with sts16/*.test.tsv")
    return [_read(file) for file in files]


def _read(file: Path) -> Pairs:
    with file.open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if row and row[0]]
    scores, first, second = zip(*((float(row[0]), row[1], row[2]) for row in rows), strict=True)
    return Pairs(file.name.removesuffix(".test.tsv"), first, second, scores)


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with sts16/ (default: MLXBERT_DATA)")
    parser.add_argument("--model", choices=PACKAGED, default="mpnet", help="the packaged model (default mpnet)")
    args = parser.parse_args(argv)
    console = Console()
    console.print(f"{machine()}; {load()}", soft_wrap=True)
    try:
        sets, source = scored_pairs(args.data), packaged_source(args.model)
    except MissingInputError as error:
        console.print(f"left out: {error}")
        return
    table = Table(title=f"{PACKAGED[args.model]}: Spearman's correlation on STS 2016")
    table.add_column("set (pairs)")
    for column in ("theirs", "mlxbert", "theirs, bfloat16", "mlxbert, bfloat16", "largest difference"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as scratch:
        models: list[Any] = []
        for dtype in ("float32", "bfloat16"):
            converted = convert(source, Path(scratch) / dtype, dtype=dtype, verify=False).path
            # Their bfloat16 are the weights that mlxbert rounded.
            models.append(_sentence_transformers(source if dtype == "float32" else converted))
            models.append(SentenceEncoder.from_pretrained(converted))
        for pairs in sets:
            found = [(model.encode(list(pairs.first)), model.encode(list(pairs.second))) for model in models]
            theirs, ours = found[:2]
            largest = max(float(np.abs(a - b).max()) for a, b in zip(theirs, ours, strict=True))
            correlations = [f"{pairs.correlation(*embeddings):.5f}" for embeddings in found]
            row = (f"{pairs.name} ({len(pairs.scores)})", *correlations, f"{largest:.1e}")
            console.print(*row, sep="; ", soft_wrap=True)  # a set may take minutes
            table.add_row(*row)
    console.print(table)


def _sentence_transformers(source: Path) -> Any:
    import sentence_transformers

    return sentence_transformers.SentenceTransformer(str(source), device="cpu", model_kwargs={"dtype": "float32"})


if __name__ == "__main__":
    main()
