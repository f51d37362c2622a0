"""Run the code that a model card shows, on the files that were written: the card shows only code that runs.

A conversion needs little more memory than its largest tensor. So each part of the encoder (embeddings, one layer, the
pooler) is read from its file when it computes, and is released after it.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxbert.errors import MLXBertError, reason

if TYPE_CHECKING:
    from mlxbert.models.base import Encoder

LOAD, LOAD_WITH_HEAD = "mlxbert.load", "mlxbert.load_with_head"
SENTENCES, TRAINED = "SentenceEncoder", "BertWithHead.load"
TEXTS = ("MLX runs BERT.", "BERT runs on MLX.")


@dataclass(frozen=True)
class Usage:
    """Which calls ran on the written files; a call that the files are not made for is in neither list.

    Attributes:
        ran: names of the calls that ran.
        failed: the name of a call that failed -> the reason.
    """

    ran: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def encodes(self) -> bool:
        """Return whether `mlxbert encode` runs: with the sentence pipeline, or without one with the encoder."""
        return SENTENCES in self.ran or (LOAD in self.ran and SENTENCES not in self.failed)

    @property
    def notes(self) -> list[str]:
        """Return a line for each call that does not run."""
        return [
            f"{call} does not run on these files ({why}); the card does not show it"
            for call, why in self.failed.items()
        ]


def run_usage(directory: Path, config: Mapping[str, Any]) -> Usage:
    """Run each call that a card could show on two short texts.

    Args:
        directory: converted; its `config.json` may not be written yet.
        config: the content of `config.json`.
    """
    from mlxbert.pretrained.model import has_head
    from mlxbert.tokenization.files import has_tokenizer

    if not has_tokenizer(file.name for file in directory.iterdir() if file.is_file()):
        return Usage()  # the card says what is missing, and shows no code
    calls: dict[str, Callable[[Path, Mapping[str, Any]], list[Any]]] = {LOAD: _load}
    block = config.get("mlxbert")
    if isinstance(block, dict) and isinstance(block.get("head"), dict):
        calls[TRAINED] = _load_trained
    elif has_head(directory, dict(config)):
        calls[LOAD_WITH_HEAD] = _load_with_head
    if (directory / "modules.json").is_file():
        calls[SENTENCES] = _encode_sentences
    ran, failed = [], {}
    for name, call in calls.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a tiny model truncates the texts
                _require_finite(call(directory, config))
            ran.append(name)
        except Exception as error:  # a user would get it too: the note and the card name it
            failed[name] = reason(error, directory)
    return Usage(tuple(ran), failed)


def _load(directory: Path, config: Mapping[str, Any]) -> list[Any]:
    encoder = _streamed_encoder(directory, config)
    inputs = _inputs(directory, encoder)
    output = encoder(**inputs)
    return [output.last_hidden_state, output.pool("mean", inputs["attention_mask"]), output.pooler_output]


def _load_with_head(directory: Path, config: Mapping[str, Any]) -> list[Any]:
    import mlx.core as mx

    from mlxbert.models.base import HeadKind
    from mlxbert.pretrained.labels import choose_head_class
    from mlxbert.pretrained.model import attach_head, read_head_tensors

    encoder, tensors = _streamed_encoder(directory, config), read_head_tensors(directory, dict(config))
    choice = choose_head_class(config, tensors, has_pooler=encoder.has_pooler, place=str(directory))
    # As `mlxbert.load_with_head` computes by default.
    dtype = mx.float32 if mx.default_device() == mx.Device(mx.cpu) else None
    model = attach_head(encoder, tensors, choice, dict(config), place=str(directory), dtype=dtype)
    inputs = _inputs(directory, encoder)
    if model.kind is HeadKind.CHOICE:  # (1, choices, L)
        inputs = {name: array[None] for name, array in inputs.items()}
    return [value for value in vars(model(**inputs)).values() if isinstance(value, mx.array)]


def _encode_sentences(directory: Path, config: Mapping[str, Any]) -> list[Any]:
    from mlxbert.checkpoint import load_tokenizer
    from mlxbert.encode.encoder import SentenceEncoder
    from mlxbert.encode.sentence_modules import read_sentence_plan

    encoder, plan = _streamed_encoder(directory, config), read_sentence_plan(directory, config)
    assert plan is not None  # modules.json exists
    sentence_encoder = SentenceEncoder(encoder, load_tokenizer(directory, encoder.config), plan)
    embeddings = sentence_encoder.encode(TEXTS)
    return [embeddings, sentence_encoder.similarity(embeddings, embeddings)]


def _load_trained(directory: Path, config: Mapping[str, Any]) -> list[Any]:
    """Load a fine-tuned model whole, from a folder of links, because its `config.json` may not be written yet."""
    from mlxbert.with_head import BertWithHead

    with tempfile.TemporaryDirectory() as folder:
        for file in directory.resolve().iterdir():
            if file.is_file() and file.name != "config.json":
                (Path(folder) / file.name).symlink_to(file)
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        model = BertWithHead.load(folder)
        return [model.predict(model(**_inputs(directory, model.core)))]


def _inputs(directory: Path, encoder: Encoder) -> dict[str, Any]:
    from mlxbert.checkpoint import load_tokenizer

    return dict(load_tokenizer(directory, encoder.config)(list(TEXTS)))


def _streamed_encoder(directory: Path, config: Mapping[str, Any]) -> Encoder:
    """Return the encoder as `mlxbert.load` does, but read each part's weights from the files when it computes."""
    import mlx.core as mx

    from mlxbert.checkpoint import load_core

    load = partial(load_core, directory, config=dict(config), lazy=True)

    def compute(part: str, *arguments: Any, **options: Any) -> Any:
        result = getattr(load(), part)(*arguments, **options)
        mx.eval(result)
        return result

    encoder = load()
    for part in ("embed_inputs", "run_layer", "finish", "pool", "decode"):
        setattr(encoder, part, partial(compute, part))
    return encoder


def _require_finite(arrays: list[Any]) -> None:
    import mlx.core as mx
    import numpy as np

    for array in arrays:
        values = np.array(array.astype(mx.float32)) if isinstance(array, mx.array) else array
        if values is not None and not np.isfinite(np.asarray(values, np.float64)).all():
            raise MLXBertError("it gives NaN or infinity")
