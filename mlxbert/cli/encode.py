"""`mlxbert encode`: sentence embeddings, and how alike they are."""

from __future__ import annotations

import io
from pathlib import Path

import click

from mlxbert.home import expand_home


@click.command()
@click.argument("model")
@click.argument("texts", nargs=-1, required=True)
@click.option("--revision", help="Branch, tag or commit of a model on the Hub.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Write the embeddings, (texts, width), to a .npy file."
)
def encode(model: str, texts: tuple[str, ...], revision: str | None, out: Path | None) -> None:
    """Embed TEXTS with MODEL, a converted directory or Hub id, and show how alike they are.

    \b
    Example:
      mlxbert encode mlx_models/minilm "A cat sits." "A kitten rests." "Stocks fell."
    """
    import numpy as np
    from rich.table import Table

    from mlxbert.encode import SentenceEncoder
    from mlxbert.files.output_file import replace_file
    from mlxbert.terminal import show

    embeddings = SentenceEncoder.from_pretrained(model, revision=revision).encode(list(texts))
    if out is not None:
        out = expand_home(out)
        array = io.BytesIO()  # numpy writes into a file without the system's reason where that fails
        np.save(array, embeddings)
        replace_file(out, array.getbuffer())
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    table = Table(title=f"Cosine similarity, {embeddings.shape[1]} dimensions")
    table.add_column("", no_wrap=True, min_width=12)
    for number in range(1, len(texts) + 1):
        table.add_column(str(number), justify="right", no_wrap=True)
    for number, (text, row) in enumerate(zip(texts, unit @ unit.T, strict=True), start=1):
        table.add_row(f"{number}  {text}", *(f"{value:.3f}" for value in row))
    show(table)
    if out is not None:
        show(f"Embeddings {embeddings.shape} written to {out}")
