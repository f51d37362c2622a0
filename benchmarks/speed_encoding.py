"""The sides of `benchmarks.speed` that embed sentences: texts in, normalized means of the hidden states out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import speed_inputs as inputs
from benchmarks.speed_sides import CHECK, ENCODERS, OURS, SENTENCES, Encode, Run, Settings

# A short list is only compared.
_CHECKED = 40
_BATCH = 32

Embed = Callable[[Sequence[str]], np.ndarray]
"""From texts to embeddings, (N, D) float32."""


def encoding(settings: Settings) -> dict[str, Run]:
    """Return the cases: all texts in batches, and some of them one at a time."""
    texts = json.loads((settings.folder / inputs.TEXTS).read_text())["texts"]
    embed = embedder(settings)
    alone = texts[: inputs.ALONE]
    return {
        "all": lambda: embed(texts),
        "alone": lambda: np.concatenate([embed([text]) for text in alone]),
        CHECK: lambda: embed(texts[-_CHECKED:]),
    }


def embedder(settings: Settings) -> Embed:
    """Return the side's own function, or batches of texts through a side that only has an encoder."""
    if settings.side == SENTENCES:
        return sentence_transformers(settings)
    if settings.side == OURS:
        return mlxbert(settings)
    return in_batches(ENCODERS[settings.side](settings), settings.folder / inputs.CONVERTED)


def sentence_transformers(settings: Settings) -> Embed:
    """sentence-transformers' `encode`, with its defaults."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(settings.threads)
    model: Any = SentenceTransformer(
        str(settings.folder / inputs.MODEL), device="cpu", model_kwargs={"dtype": "float32"}
    )
    return lambda texts: np.asarray(model.encode(list(texts), show_progress_bar=False))


def mlxbert(settings: Settings) -> Embed:
    """Our `SentenceEncoder.encode`, with its defaults."""
    import mlx.core as mx

    from mlxbert.encode import SentenceEncoder

    mx.set_default_device(mx.cpu)
    return SentenceEncoder.from_pretrained(settings.folder / inputs.CONVERTED).encode


def in_batches(encode: Encode, directory: Path) -> Embed:
    """What one writes around a bare encoder: 32 texts of similar length at once, padded, and the mean of each.

    The texts of MiniLM are cut to 256 tokens, as its `sentence_bert_config.json` says.
    """
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.enable_truncation(256)
    tokenizer.enable_padding()

    def embed(texts: Sequence[str]) -> np.ndarray:
        order = np.argsort([-len(text) for text in texts], kind="stable")
        out: list[np.ndarray] = []
        for start in range(0, len(order), _BATCH):
            found = tokenizer.encode_batch([texts[i] for i in order[start : start + _BATCH]])
            ids = np.array([one.ids for one in found], np.int64)
            mask = np.array([one.attention_mask for one in found], np.int64)
            weights = mask[..., None].astype(np.float32)
            means = (encode(ids, mask) * weights).sum(1) / weights.sum(1)
            out.append(means / np.linalg.norm(means, axis=1, keepdims=True))
        embeddings = np.empty((len(texts), out[0].shape[1]), np.float32)
        embeddings[order] = np.concatenate(out)
        return embeddings

    return embed
