"""Print the sha256 of what the commands write from the packaged MiniLM, to compare before and after a change.

    python -m benchmarks.same_bytes > before.txt
    python -m benchmarks.same_bytes --against before.txt

It runs `mlxbert-convert` (float32, 4bit, mixed), `mlxbert-export` of a checkpoint and of a run, and a seeded
`mlxbert train` that predicts a test file. It lists weights, heads, out-of-fold predictions and the submission.
Manifests and cards are left out: they hold versions and times. Compare on one machine, with one set of packages.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from examples.packaged_minilm import model_directory

# The bytes depend on the threads of the matrix products, so every command runs with one.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_KINDS = ("*.safetensors", "oof*.csv", "oof*.parquet", "submission*.csv", "predictions*.csv")
_WORDS = ("storm", "fire", "flood", "party", "coffee", "garden", "music", "train")


def rows() -> list[tuple[int, str, int]]:
    """Rows of (id, text, label); the label is 1 where the text names a disaster."""
    found = []
    for row in range(48):
        first, second = _WORDS[row % 8], _WORDS[(row * 3 + row // 8) % 8]
        found.append((row, f"{first} and {second} in street {row}", int(first in _WORDS[:3])))
    return found


def write_table(path: Path, labelled: bool) -> None:
    """Write the rows as CSV, with or without their labels."""
    lines = ["id,text,target" if labelled else "id,text"]
    lines += [f"{row},{text},{label}" if labelled else f"{row},{text}" for row, text, label in rows()]
    path.write_text("\n".join(lines) + "\n")


def commands(folder: Path, source: Path) -> list[list[str]]:
    """Return the commands to run, in order."""
    model, run = folder / "float32", folder / "run"
    convert = ["convert", str(source), "--no-verify", "-o"]
    train = ["train", str(folder / "train.csv"), "--model", str(model), "--text", "text", "--target", "target"]
    train += ["--task", "binary", "--folds", "2", "--epochs", "1", "--batch-size", "8", "--max-length", "16"]
    return [
        [*convert, str(model)],
        [*convert, str(folder / "4bit"), "--quantize", "4bit"],
        [*convert, str(folder / "mixed"), "--quantize", "mixed"],
        ["export", str(model), "-o", str(folder / "exported-model")],
        [*train, "--seed", "0", "--test", str(folder / "test.csv"), "-o", str(run)],
        ["export", str(run), "-o", str(folder / "exported-run")],
    ]


def digests(folder: Path) -> list[str]:
    """Return one line per file: its sha256 and its path inside the folder."""
    paths = sorted({path for kind in _KINDS for path in folder.rglob(kind)})
    return [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}" for path in paths]


def main(argv: list[str] | None = None) -> None:
    """Run the commands in a temporary folder and print the digests; with --against, the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="an earlier output of this command")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_table(folder / "train.csv", labelled=True)
        write_table(folder / "test.csv", labelled=False)
        for arguments in commands(folder, model_directory()):
            print(f"mlxbert {' '.join(arguments)}", file=sys.stderr, flush=True)
            subprocess.run(
                [sys.executable, "-m", "mlxbert", *arguments],
                check=True,
                env=os.environ | _ENVIRONMENT,
                stdout=subprocess.DEVNULL,
            )
        lines = digests(folder)
    print("\n".join(lines))
    if options.against is not None:
        earlier = options.against.read_text().splitlines()
        different = sorted(set(earlier) ^ set(lines))
        print(f"{len(different)} lines differ from {options.against}" if different else "The same bytes.")


if __name__ == "__main__":
    main()
