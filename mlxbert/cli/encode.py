"""`mlxbert encode`: sentence embeddings, and how alike they are."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlxbert.files.reading import expand_home

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

# The matrix of cosines of this many texts fits 80 columns.
MATRIX = 6


@click.command()
@click.argument("model")
@click.argument("texts", nargs=-1, required=True)
@click.option("--revision", help="Branch, tag or commit of a model on the Hub.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="File (.npy) for the embeddings, an array (texts, width)."
)
def encode(model: str, texts: tuple[str, ...], revision: str | None, out: Path | None) -> None:
    """Embed TEXTS with MODEL, a converted directory or Hub id, and show how alike they are.

    \b
    Example:
      mlxbert encode mlx_models/minilm "A cat sits." "A kitten rests." "Stocks fell."
    """
    import numpy as np

    from mlxbert.encode.encoder import SentenceEncoder
    from mlxbert.files.output_file import replace_file
    from mlxbert.terminal import show

    embeddings = SentenceEncoder.from_pretrained(model, revision=revision).encode(list(texts))
    if out is not None:
        out = expand_home(out)
        array = io.BytesIO()  # where writing fails, numpy hides the reason of the system
        np.save(array, embeddings)
        replace_file(out, array.getbuffer())
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    show(_similarities(texts, unit @ unit.T, embeddings.shape[1]))
    if out is not None:
        show(f"Embeddings {embeddings.shape} written to {out}")


def _similarities(texts: Sequence[str], cosines: np.ndarray, width: int) -> Table:
    """Return the cosines as a matrix; if that does not fit 80 columns, each text with the text most like it.

    Args:
        texts: N texts, shortened in the table.
        cosines: (N, N).
        width: width of the embeddings.
    """
    from rich.table import Table

    table = Table(title=f"Cosine similarity, {width} dimensions")
    if len(texts) <= MATRIX:
        table.add_column("", no_wrap=True, overflow="ellipsis", max_width=76 - 9 * len(texts))
        for number in range(1, len(texts) + 1):
            table.add_column(str(number), justify="right", no_wrap=True, min_width=6)
        for number, (text, row) in enumerate(zip(texts, cosines, strict=True), start=1):
            table.add_row(f"{number}  {text}", *(f"{value:.3f}" for value in row))
        return table
    table.add_column("text", no_wrap=True, overflow="ellipsis", max_width=30)
    table.add_column("most like it", no_wrap=True, overflow="ellipsis", max_width=30)
    table.add_column("cosine", justify="right", no_wrap=True)
    for number, row in enumerate(cosines.tolist()):
        other = max((index for index in range(len(texts)) if index != number), key=row.__getitem__)
        table.add_row(f"{number + 1}  {texts[number]}", f"{other + 1}  {texts[other]}", f"{row[other]:.3f}")
    return table
