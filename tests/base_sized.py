"""``python -m tests.base_sized``: a random model as large as each published base model, through the commands.

Each one is converted, verified, packed at 4 bits, embeds two texts, and trains for ten steps. What a tiny model
cannot show does show here: shapes as published, texts of hundreds of tokens, the noise of many layers.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click

from mlxbert.models.architecture import supported

# In a process of its own, whose memory is free before the commands run.
_WRITE = "import sys; from tests.base_sized import write; write(sys.argv[1], sys.argv[2])"
_COMMAND = [sys.executable, "-m", "mlxbert"]
_TEXTS = ("a man eats a sandwich in the house", "the hat is tin")
_ROWS, _BATCH = 40, 2
"""Two folds train on half of the rows each: ten steps."""


def write(model_type: str, directory: str) -> None:
    """Write the source: every parameter random, a head for masked words, and a tokenizer of its kind.

    Matrices are as wide as transformers initializes them. At twice that, 4 bits cost a random model of 12 layers more
    than the limits of `4bit` allow, which are those of trained models: a random one loses no error on its way.
    """
    import transformers

    from benchmarks.family_sizes import BASE_SIZES
    from benchmarks.parity_errors import randomized
    from mlxbert.models.architecture import HeadKind, architecture
    from tests.support.tiny import save_tokenizer, write_tokenizer

    declared = architecture(model_type)
    config = transformers.CONFIG_MAPPING[model_type](**BASE_SIZES[model_type])
    model = getattr(transformers, str(declared.head_of(HeadKind.MASKED_LM)))(config)
    randomized(model, seed=0, norm=1.0, spread=0.02).save_pretrained(directory)
    write_tokenizer(Path(directory), declared.tokenizer_class, config.vocab_size)
    save_tokenizer(Path(directory))


def write_rows(file: Path) -> None:
    """Write texts of 3 to 32 words, each with one of two labels."""
    words = " ".join(_TEXTS).split()
    lines = ["text,label"]
    for row in range(_ROWS):
        count = 3 + 29 * row // _ROWS
        lines.append(f"{' '.join(words[(row + i) % len(words)] for i in range(count))} {row},{row % 2}")
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def commands(model_type: str, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield what each command is for, and the command."""
    source, out = str(folder / "source"), str(folder / "converted")
    yield "write", [sys.executable, "-c", _WRITE, model_type, source]
    yield "convert", [*_COMMAND, "convert", source, "-o", out, "--no-verify"]
    yield "verify", [*_COMMAND, "verify", out, "--reference", source]
    yield "4bit", [*_COMMAND, "convert", source, "--quantize", "4bit", "-o", str(folder / "4bit"), "--no-verify"]
    yield "verify 4bit", [*_COMMAND, "verify", str(folder / "4bit"), "--reference", source]
    yield "encode", [*_COMMAND, "encode", out, *_TEXTS]
    train = [*_COMMAND, "train", str(folder / "rows.csv"), "--model", out, "-o", str(folder / "run")]
    train += ["--text", "text", "--target", "label", "--folds", "2", "--epochs", "1", "--batch-size", str(_BATCH)]
    yield "train", train


@click.command()
@click.option("--only", help="These model_types, separated by commas.  [default: all]")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for the files, which stay.  [default: none]")
def main(only: str | None, keep: Path | None) -> None:
    """Take every architecture at its base size through the commands; stop at the first one that fails."""
    for model_type in only.split(",") if only else supported():
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
            folder = Path(scratch) if keep is None else keep / model_type
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_rows(folder / "rows.csv")
            for name, command in commands(model_type, folder):
                begin = time.perf_counter()
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(f"{model_type}: {name} failed\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
                print(f"{model_type:<12}{name:<12}{time.perf_counter() - begin:6.1f} s", flush=True)


if __name__ == "__main__":
    main()
