"""Run the code that a model card shows, on the files that were written: what does not run is not on the card.

A conversion takes little more memory than its largest tensor, and this keeps to it: a part of the encoder (embeddings,
one layer, the pooler) is read from its file when it computes, and let go of after it.
"""

from __future__ import annotations

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


class UsageError(MLXBertError):
    """A call ran and gave numbers that are not finite."""


@dataclass(frozen=True)
class Usage:
    """Which calls ran on the written files, and why others did not; one that the files do not call for is in neither.

    Attributes:
        ran: their names.
        failed: a call's name to the reason.
    """

    ran: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def encodes(self) -> bool:
        """Whether `mlxbert encode` does: the sentence pipeline, or of a checkpoint without one the encoder."""
        return SENTENCES in self.ran or (LOAD in self.ran and SENTENCES not in self.failed)

    @property
    def notes(self) -> list[str]:
        """A line for each call that does not run."""
        return [
            f"{call} does not run on these files ({why}); the card does not show it"
            for call, why in self.failed.items()
        ]


def run_usage(directory: Path, config: Mapping[str, Any]) -> Usage:
    """Run each call that a card could show on two short texts.

    Args:
        directory: converted; its `config.json` may be missing still.
        config: what that holds, or will hold.
    """
    if not any((directory / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        return Usage()  # the card says what is missing, and shows no code
    from mlxbert.pretrained.model import has_head

    calls: dict[str, Callable[[], Any]] = {LOAD: partial(_load, directory, config)}
    trained = isinstance(config.get("mlxbert"), dict) and isinstance(config["mlxbert"].get("head"), dict)
    if trained:
        calls[TRAINED] = partial(_trained, directory, config)
    elif has_head(directory, dict(config)):
        calls[LOAD_WITH_HEAD] = partial(_load_with_head, directory, config)
    if (directory / "modules.json").is_file():
        calls[SENTENCES] = partial(_sentences, directory, config)
    ran, failed = [], {}
    for name, call in calls.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of texts that a tiny model cuts
                _require_finite(call())
            ran.append(name)
        except Exception as error:  # whatever a user would meet: the note and the card name it
            failed[name] = reason(error, directory)
    return Usage(tuple(ran), failed)


def _load(directory: Path, config: Mapping[str, Any]) -> Any:
    core, inputs = _core(directory, config), _inputs(directory, config)
    output = core(**inputs)
    return [output.last_hidden_state, output.pool("mean", inputs["attention_mask"]), output.pooler_output]


def _load_with_head(directory: Path, config: Mapping[str, Any]) -> Any:
    import mlx.core as mx

    from mlxbert.models.base import HeadKind
    from mlxbert.pretrained.labels import choose_head_class
    from mlxbert.pretrained.model import attach_head, read_head_tensors

    core, tensors = _core(directory, config), read_head_tensors(directory, dict(config))
    choice = choose_head_class(config, tensors, has_pooler=core.has_pooler, place=str(directory))
    model = attach_head(core, tensors, choice, dict(config), place=str(directory), dtype=_dtype())
    inputs = _inputs(directory, config)
    if model.kind is HeadKind.CHOICE:  # (1, choices, L)
        inputs = {name: mx.array(array)[None] for name, array in inputs.items()}
    return [value for value in vars(model(**inputs)).values() if isinstance(value, mx.array)]


def _sentences(directory: Path, config: Mapping[str, Any]) -> Any:
    from mlxbert.checkpoint import load_tokenizer
    from mlxbert.encode.encoder import SentenceEncoder
    from mlxbert.encode.sentence_modules import read_sentence_plan

    core, plan = _core(directory, config), read_sentence_plan(directory, config)
    assert plan is not None  # modules.json is there
    encoder = SentenceEncoder(core, load_tokenizer(directory, core.config), plan)
    embeddings = encoder.encode(TEXTS)
    return [embeddings, encoder.similarity(embeddings, embeddings)]


def _trained(directory: Path, config: Mapping[str, Any]) -> Any:
    """In a folder of links, for `config.json` may be missing beside the files; a trained model is loaded whole."""
    import json

    from mlxbert.with_head import BertWithHead

    with tempfile.TemporaryDirectory() as folder:
        for file in directory.resolve().iterdir():
            if file.is_file() and file.name != "config.json":
                (Path(folder) / file.name).symlink_to(file)
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        model = BertWithHead.load(folder)
        return [model.predict(model(**_inputs(directory, config)))]


def _inputs(directory: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    from mlxbert.checkpoint import load_tokenizer
    from mlxbert.models.base import config_from_hf

    return dict(load_tokenizer(directory, config_from_hf(config))(list(TEXTS)))


def _dtype() -> Any:
    """What `mlxbert.load` computes in by default."""
    import mlx.core as mx

    return mx.float32 if mx.default_device() == mx.Device(mx.cpu) else None


def _core(directory: Path, config: Mapping[str, Any]) -> Encoder:
    """Return the encoder as `load` gives it, its parts read from the files when they compute."""
    import mlx.core as mx

    from mlxbert.checkpoint import load_core
    from mlxbert.models.base import Encoder, Inputs

    def fresh() -> Encoder:
        return load_core(directory, config=dict(config), lazy=True)

    class Streamed(Encoder):
        """An encoder without weights of its own: each step reads those that it needs, and lets go of them."""

        has_pooler = fresh().has_pooler

        def embed_inputs(self, inputs: Inputs) -> Any:
            x, context = fresh().embed_inputs(inputs)
            mx.eval(x, context)
            return x, context

        def run_layer(self, i: int, x: mx.array, context: Any, output_attentions: bool = False) -> Any:
            return _computed(fresh().run_layer(i, x, context, output_attentions))

        def finish(self, x: mx.array) -> Any:
            return _computed(fresh().finish(x))

        def pool(self, x: mx.array) -> Any:
            return _computed(fresh().pool(x))

        def decode(self, x: mx.array) -> Any:
            return _computed(fresh().decode(x))

    return Streamed(fresh().config)


def _computed(result: Any) -> Any:
    import mlx.core as mx

    mx.eval(result)
    return result


def _require_finite(arrays: list[Any]) -> None:
    import mlx.core as mx
    import numpy as np

    for array in arrays:
        values = np.array(array.astype(mx.float32)) if isinstance(array, mx.array) else array
        if values is not None and not np.isfinite(np.asarray(values, np.float64)).all():
            raise UsageError("it gives NaN or infinity")
