"""What the sides of `benchmarks.speed` read: checkpoints, texts and batches, made once in a folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# Names in the folder.
MODEL, CONVERTED, TEXTS, BATCHES = "model", "converted", "texts.json", "batches.npz"
MINILM: dict[str, int] = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}
"""The fields of all-MiniLM-L6-v2's configuration that differ from bert-base's."""
TINY: dict[str, int] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 1200,
}
"""Instead of bert-base, for the tests."""
SENTENCES, ALONE, STEPS = 1000, 100, 6
"""Texts, those that are embedded one at a time, and steps of a training on short texts."""


def made(path: Path, make: Callable[[Path], Any]) -> Path:
    """Return `path`; if it is not there, `make` writes it first, whole or not at all."""
    if not path.exists():
        unfinished = path.with_name(f"unfinished-{path.name}")
        if unfinished.is_dir():
            shutil.rmtree(unfinished)
        path.parent.mkdir(parents=True, exist_ok=True)
        make(unfinished)
        unfinished.rename(path)
    return path


def random_model(folder: Path, **changes: Any) -> None:
    """Make a model of random weights, and its conversion; `changes` as for `write_checkpoint`."""
    from benchmarks.family_sizes import write_checkpoint
    from converter.convert import convert

    source = made(folder / MODEL, lambda out: write_checkpoint(out, **changes))
    made(folder / CONVERTED, lambda out: convert(source, out, verify=False))


def packaged_model(folder: Path) -> None:
    """Copy the real all-MiniLM-L6-v2, and make its conversion.

    Raises:
        benchmarks.inputs.MissingInputError: its package is not installed.
    """
    from benchmarks.inputs import packaged_source
    from converter.convert import convert

    source = packaged_source("minilm")
    made(folder / MODEL, lambda out: shutil.copytree(source, out))
    made(folder / CONVERTED, lambda out: convert(source, out, verify=False))


def write_texts(folder: Path, count: int = SENTENCES) -> None:
    """Write `count` sentences: of STS 2016, if `MLXBERT_DATA` has it, else pieces of mlxbert's calibration texts."""

    def write(out: Path) -> None:
        name, sentences = _sentences(count)
        out.write_text(json.dumps({"name": name, "texts": sentences}))

    made(folder / TEXTS, write)


def _sentences(count: int) -> tuple[str, list[str]]:
    from benchmarks.inputs import MissingInputError
    from benchmarks.similarity import scored_pairs

    random = np.random.default_rng(0)
    try:
        found = list(dict.fromkeys(text for pairs in scored_pairs() for text in (*pairs.first, *pairs.second)))
        return "sts16", [found[i] for i in random.permutation(len(found))[:count]]
    except MissingInputError:
        import converter.quantize.sentences as package

        words = [
            word
            for file in sorted(Path(os.fspath(next(iter(package.__path__)))).glob("*.txt"))
            for word in file.read_text(encoding="utf-8").split()
        ]
        lengths = np.clip(np.rint(random.lognormal(np.log(9), 0.45, count)), 3, 40).astype(int)
        starts = random.integers(0, len(words) - 40, count)
        return "generated", [" ".join(words[a : a + n]) for a, n in zip(starts, lengths, strict=True)]


def ids(shape: tuple[int, int], config: dict[str, Any]) -> np.ndarray:
    """Return random ids of a vocabulary, (B, L) int64, none of them that of padding."""
    found = np.random.default_rng(0).integers(1, config["vocab_size"], shape)
    return np.where(found == config.get("pad_token_id"), found - 1, found)


def ragged(shape: tuple[int, int], config: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and mask, (B, L) int64, of texts of different lengths."""
    lengths = np.linspace(shape[1], shape[1] // 3, shape[0]).astype(int)
    mask = (np.arange(shape[1]) < lengths[:, None]).astype(np.int64)
    return np.where(mask > 0, ids(shape, config), config.get("pad_token_id") or 0), mask


def write_batches(folder: Path, shape: tuple[int, int] | None, vocabulary: int) -> None:
    """Write the batches of a training: one of this shape without padding, or six of 32 texts as long as tweets.

    The lengths of the texts are drawn like those of the disaster tweets (mean 33 tokens, deviation 12, at most 84).
    mlxbert plans the batches of an epoch; the six are its quantiles by length.
    """
    from mlxbert.data.tokens import Batch, TokenRows, TrainingBatches

    def write(out: Path) -> None:
        random = np.random.default_rng(0)
        many = 1 if shape else STEPS
        rows = shape[0] if shape else 6000
        lengths = np.full(rows, shape[1]) if shape else np.clip(np.rint(random.normal(33, 12, rows)), 4, 84)
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        tokens = TokenRows(
            ids=random.integers(1, vocabulary, starts[-1]).astype(np.int32),
            type_ids=np.zeros(starts[-1], np.uint8),
            starts=starts,
            cut=0,
            longest=int(lengths.max()),
            limit=512,
            pad_id=0,
        )
        planned = TrainingBatches(tokens, np.arange(rows), batch_size=shape[0] if shape else 32, seed=0)
        batches: list[Batch] = sorted(planned.epoch(0), key=lambda batch: batch.input_ids.shape[1])
        chosen = [batches[int((i + 0.5) * len(batches) / many)] for i in range(many)]
        arrays: dict[str, np.ndarray] = {}
        for number, batch in enumerate(chosen):
            arrays[f"ids{number}"], arrays[f"mask{number}"] = batch.input_ids, batch.attention_mask
            arrays[f"targets{number}"] = random.integers(0, 2, len(batch.rows)).astype(np.float32)
        with out.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    made(folder / BATCHES, write)


def read_batches(folder: Path) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return ids and mask, (B, L) int32, and targets, (B,) float32, of each batch."""
    with np.load(folder / BATCHES) as arrays:
        many = len(arrays.files) // 3
        return [(arrays[f"ids{i}"], arrays[f"mask{i}"], arrays[f"targets{i}"]) for i in range(many)]
