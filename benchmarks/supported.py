"""The README's table of what is supported, from the registry of architectures.

    python -m benchmarks.supported [--write]

It prints the table; with `--write` it puts the table into the README, between its markers. A test compares the two.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mlxbert.models.architecture import Architecture, architecture, supported
from mlxbert.tokenization.build import kind_of

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- python -m benchmarks.supported --write -->", "<!-- end of the table -->"
_TOKENIZERS = {"WordPiece": "WordPiece", "BPE": "byte-level BPE", "Unigram": "SentencePiece"}
_COLUMNS = ("`model_type`", "classes of transformers", "tokenizer", "train, quantize, export", "also loads in")


def table() -> str:
    """Return the table: a line for each `model_type`."""
    rows = [_COLUMNS, ("---",) * len(_COLUMNS), *(row(architecture(name)) for name in supported())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def row(declared: Architecture) -> tuple[str, ...]:
    """Return the cells of one architecture."""
    family = declared.encoder_class.removesuffix("Model")
    heads = [name.removeprefix(family).removeprefix("For") for name in declared.heads]
    kept = [f"`{path}`" for path in declared.kept]
    done = f"yes; {', '.join(kept)} stays as it is" if kept else "yes"
    elsewhere = ("transformers", "sentence-transformers", *sorted(declared.known_to, key=str.lower))
    return (
        f"`{declared.model_type}`",
        f"`{declared.encoder_class}`, `{family}For…`: {', '.join(heads)}",
        _tokenizer(declared),
        done,
        ", ".join(elsewhere),
    )


def _tokenizer(declared: Architecture) -> str:
    """Return the kind of the tokenizer; a class without a pipeline of its own has what `tokenizer.json` says."""
    kind = kind_of(declared.tokenizer_class)
    return "what `tokenizer.json` says" if kind is None else f"{_TOKENIZERS[kind.model]} ({kind.title}'s)"


def with_table(text: str) -> str:
    """Return the README's text with the table as it is now.

    Raises:
        ValueError: a marker is missing.
    """
    before, after = text.index(BEGIN) + len(BEGIN), text.index(END)
    return f"{text[:before]}\n{table()}\n{text[after:]}"


def main(argv: list[str] | None = None) -> None:
    """Print the table, or write it into the README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put it into the README")
    if parser.parse_args(argv).write:
        README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(table())


if __name__ == "__main__":
    main()
