"""Peak memory of `mlxbert predict` for 20,000 rows over that for 2,000: prediction is streamed.

    python -m benchmarks.prediction_memory             # a tiny random model: a minute
    python -m benchmarks.prediction_memory --minilm    # all-MiniLM-L6-v2: half an hour on two cores

A run of two folds is trained for a moment, in a process of its own; then each file is predicted by the command itself,
and its process's peak resident memory is read. Texts have 5 to 40 words; the longest and shortest are in both files.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.child import timed
from benchmarks.machine import machine

_FEW, _MANY, _LIMIT = 2_000, 20_000, 1.1
_PREDICT = "import sys; from mlxbert.cli import main; sys.argv[0] = 'mlxbert'; main()"
_MAKE = "import sys; from benchmarks.prediction_memory import make; make(sys.argv[1], sys.argv[2] == 'minilm')"


def make(directory: str, minilm: bool) -> None:
    """In DIRECTORY: a run, and the two files to predict."""
    import numpy as np
    import pandas as pd

    from benchmarks.inputs import converted_minilm
    from mlxbert.runs import train

    root = Path(directory)
    rng = np.random.default_rng(0)
    words = np.array(["good", "bad", "service", "movie", "the", "a", "very", "not", "again", "word"])

    def frame(rows: int) -> pd.DataFrame:
        lengths = 5 + np.arange(rows) % 36
        texts = [" ".join([*rng.choice(words, length), str(row)]) for row, length in enumerate(lengths)]
        return pd.DataFrame({"id": [f"r{row}" for row in range(rows)], "text": texts})

    learn = frame(200)
    learn["target"] = rng.permutation(np.arange(200) % 2)
    model = converted_minilm(root / "model") if minilm else _tiny(root)
    settings = {"folds": 2, "epochs": 1, "max_length": 128, "compiled": False, "progress": False}
    train(learn, model=model, text="text", target="target", id="id", out=root / "run", **settings)
    for rows in (_FEW, _MANY):
        frame(rows).to_csv(root / f"{rows}.csv", index=False)


def _tiny(root: Path) -> Path:
    """A random BERT of two layers, 64 wide, with a vocabulary of letters."""
    import torch
    from transformers import BertConfig, BertModel

    from converter.convert import convert

    source = root / "source"
    torch.manual_seed(0)
    letters = [chr(code) for code in (*range(ord("a"), ord("z") + 1), *range(ord("0"), ord("9") + 1))]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    BertModel(BertConfig(vocab_size=len(vocabulary), **sizes)).save_pretrained(source)
    (source / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    return convert(source, root / "model", verify=False).path


def main(argv: list[str] | None = None) -> None:
    """Train, predict both files, and print the peaks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minilm", action="store_true", help="with all-MiniLM-L6-v2 instead of a tiny random model")
    options = parser.parse_args(argv)
    print(f"machine   {machine()}\n", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        subprocess.run([sys.executable, "-c", _MAKE, temporary, "minilm" if options.minilm else "tiny"], check=True)
        peaks = []
        for rows in (_FEW, _MANY):
            data, out = str(root / f"{rows}.csv"), str(root / "submission.csv")
            command = [sys.executable, "-c", _PREDICT, "predict", str(root / "run"), data, "-o", out]
            seconds, peak = timed(command)
            peaks.append(peak)
            print(f"mlxbert predict, {rows:>6,} rows: {peak:>7.0f} MB, {seconds:>6.1f} s", flush=True)
    ratio = peaks[1] / peaks[0]
    print(f"at most {_LIMIT} times: {'yes' if ratio <= _LIMIT else 'no'}  ({ratio:.2f})")


if __name__ == "__main__":
    main()
