"""Embedding 1,000,000 rows of 20 words: peak memory over that for 10,000, rows a second, and five kills on the way.

    python -m benchmarks.rows                                 # 10⁶ rows, twice: five minutes on two idle cores
    python -m benchmarks.rows --rows 200000 --kills 0         # memory and rows a second only

A tiny random BERT (32 wide, 1 layer), so that reading, tokenizing and writing count. `mlxbert encode` itself runs, in
a process of its own. The second call for all rows is killed with SIGKILL at random moments and goes on with --resume;
then the SHA-256 of every file is compared with those of the call that nobody killed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.child import timed
from benchmarks.machine import machine

_FEW, _MANY, _WORDS, _VOCABULARY, _LIMIT = 10_000, 1_000_000, 20, 2_000, 1.1
_MAKE = "import sys; from benchmarks.rows import make; make(sys.argv[1], [int(rows) for rows in sys.argv[2:]])"


def make(directory: str, tables: list[int]) -> None:
    """In DIRECTORY: a converted model, and a Parquet file of so many rows each, in row groups of 100,000."""
    import json

    import numpy as np
    import pyarrow
    import torch
    from pyarrow import parquet
    from transformers import BertConfig, BertModel

    from converter.convert import convert

    root = Path(directory)
    words = np.array([f"word{number}" for number in range(_VOCABULARY)])
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    source = root / "source"
    BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, **sizes)).save_pretrained(source)
    (source / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    model = convert(source, root / "model", verify=False).path
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (model / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (model / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (model / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    rng = np.random.default_rng(0)
    schema = pyarrow.schema([("key", pyarrow.string()), ("text", pyarrow.string())])
    for rows in tables:
        with parquet.ParquetWriter(root / f"{rows}.parquet", schema) as writer:
            for start in range(0, rows, 100_000):
                stop = min(start + 100_000, rows)
                chosen = words[rng.integers(0, _VOCABULARY, (stop - start, _WORDS))]
                texts = [" ".join(row) for row in chosen]
                writer.write_table(pyarrow.table({"key": [f"k{row}" for row in range(start, stop)], "text": texts}))


def _command(root: Path, rows: int, out: Path) -> list[str]:
    data, model = str(root / f"{rows}.parquet"), str(root / "model")
    command = [sys.executable, "-m", "mlxbert", "encode", data, "--model", model]
    return [*command, "--text", "text", "--id", "key", "-o", str(out), "--resume"]


def _files(out: Path) -> list[Path]:
    return sorted(out.glob("part-*.parquet"))


def _digests(out: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir())}


def _killed(command: list[str], out: Path, files: int, kills: int, seed: int) -> None:
    """Run a command until it succeeds; kill it `kills` times at random moments, spread over its files."""
    chance = random.Random(seed)
    for kill in range(kills):
        goal = (kill + 1) * files // (kills + 1)
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(_files(out)) < goal and child.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.random())
        child.kill()
        child.wait()
        left = [path.name for path in out.iterdir() if path.name.startswith(".")]
        print(f"kill {kill + 1}: {len(_files(out))} of {files} files, half written: {len(left)}", flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main(argv: list[str] | None = None) -> None:
    """Embed few and many rows, print peaks and rates, and compare with the call that is killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=_MANY)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--directory", type=Path, help="for model, data and results; files there are used again")
    options = parser.parse_args(argv)
    print(f"machine   {machine('pyarrow', 'tokenizers')}\n", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        root = options.directory or Path(temporary)
        tables = [_FEW, options.rows]
        if not (root / f"{options.rows}.parquet").exists():
            subprocess.run([sys.executable, "-c", _MAKE, str(root), *map(str, tables)], check=True)
        peaks = []
        for rows in tables:
            seconds, peak = timed(_command(root, rows, root / f"out-{rows}"), os.environ)
            peaks.append(peak)
            print(
                f"mlxbert encode, {rows:>9,} rows: {peak:>5.0f} MB, {seconds:>6.1f} s, {rows / seconds:>7,.0f} rows/s"
            )
        ratio = peaks[1] / peaks[0]
        print(f"at most {_LIMIT} times: {'yes' if ratio <= _LIMIT else 'no'}  ({ratio:.3f})", flush=True)
        if options.kills:
            whole, killed = root / f"out-{options.rows}", root / "killed"
            _killed(_command(root, options.rows, killed), killed, len(_files(whole)), options.kills, options.seed)
            same = _digests(whole) == _digests(killed)
            count = len(_files(whole))
            print(f"killed {options.kills} times, {count} files, the same bytes: {'yes' if same else 'NO'}")
            if not same:
                raise SystemExit(1)


if __name__ == "__main__":
    main()
