"""Load a converted checkpoint with the head that its source had."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten

from heads.pretrained import (
    MaskedLMHead,
    MultipleChoiceHead,
    NextSentenceHead,
    Predictions,
    PretrainedHead,
    PretrainingHead,
    SequenceClassificationHead,
    SpanHead,
    TokenClassificationHead,
)
from mlxbert.activations import ACTIVATIONS
from mlxbert.checkpoint import CheckpointError, is_full_layout, load, read_config, read_weights, resolve
from mlxbert.config import BertConfig
from mlxbert.core import BertCore
from mlxbert.errors import first_ten, readable
from mlxbert.files.safetensors_reader import read_safetensors
from mlxbert.pretrained.head_class import (
    HEAD_CLASSES,
    HeadChoice,
    choose_head_class,
    is_head_tensor,
    original_architectures,
)
from mlxbert.pretrained.labels import Labels
from mlxbert.pretrained.model import PretrainedBert, PretrainedOutput, StoredHead
from mlxbert.tokenization import Tokenizer

__all__ = ["HEADS_FILE", "PretrainedBert", "PretrainedOutput", "attach_head", "load_with_head", "read_head_tensors"]

HEADS_FILE = "heads.safetensors"


def load_with_head(
    path_or_hub_id: str | Path,
    revision: str | None = None,
    *,
    dtype: mx.Dtype | None = None,
    dequantize: bool | None = None,
) -> tuple[PretrainedBert, Tokenizer]:
    """Load a converted checkpoint with the head that its source had, and its tokenizer, in evaluation mode.

    The class is the source's own; where its config names none that is known here, the tensors tell, and one line on
    the log ("mlxbert", a warning) says what they told.

    Args:
        path_or_hub_id, revision, dtype, dequantize: as for `mlxbert.load`.

    Raises:
        CheckpointError: never converted, damaged, or without a head.
        HeadClassError: the head's tensors do not fit the class, or do not tell it.
    """
    directory = resolve(path_or_hub_id, revision)
    config = read_config(directory, other_tools=True)
    _require_head(directory, config)
    core, tokenizer = load(directory, dtype=dtype, dequantize=dequantize)
    tensors = read_head_tensors(directory, config)
    choice = choose_head_class(
        original_architectures(config), tensors, has_pooler="pooler" in core, place=str(directory)
    )
    if choice.note:
        logging.getLogger("mlxbert").warning("mlxbert: %s", readable(choice.note))
    model = attach_head(core, tensors, choice, config, place=str(directory), dtype=dtype)
    model.source = directory
    return model, tokenizer


def has_head(directory: Path, config: dict[str, Any]) -> bool:
    """Return whether a converted directory, whose `config.json` holds or will hold `config`, has a head."""
    return is_full_layout(config) or (directory / HEADS_FILE).is_file()


def read_head_tensors(directory: Path, config: dict[str, Any]) -> dict[str, mx.array]:
    """Return the head's tensors: those of `heads.safetensors`, or of `model.safetensors` in the layout "full".

    Raises:
        CheckpointError: there are none, a file is damaged, or it is a head that mlxbert trained.
    """
    _require_head(directory, config)
    if is_full_layout(config):
        return read_weights(directory, config)[1]
    file = directory / HEADS_FILE
    found = read_safetensors(file, CheckpointError)
    tensors = {} if found is None else found[0]
    if any(name.startswith(("head.", "pooling.")) for name in tensors):
        raise CheckpointError(f"{file} is a head that mlxbert trained; fix: load it with mlxbert.BertWithHead.load")
    return tensors


def attach_head(
    core: BertCore,
    tensors: dict[str, mx.array],
    choice: HeadChoice,
    config: dict[str, Any],
    *,
    place: str,
    dtype: mx.Dtype | None = None,
) -> PretrainedBert:
    """The encoder with a head of the chosen class, filled with `tensors`, in evaluation mode.

    Args:
        core: the encoder.
        tensors: under Hugging Face's names; those of another head are left out.
        choice: from `choose_head_class`.
        config: the parsed `config.json`.
        place: for messages.
        dtype: what to compute in; None: as `mlxbert.load`.

    Raises:
        CheckpointError: tensors are missing, unexpected, or of another shape than the configuration calls for; the
            encoder has no pooler, and this head needs one.
    """
    labels = Labels.from_hf(config)
    head = _build(choice.name, core.config, labels, tensors)
    if head.needs_pooler and "pooler" not in core:
        raise CheckpointError(
            f"{place}: {choice.name} reads the pooler, and this encoder has none; fix: convert the complete checkpoint"
        )
    parameters = dict(cast(list[tuple[str, mx.array]], tree_flatten(head.parameters())))
    _check(place, choice.name, tensors, {name: array.shape for name, array in parameters.items()})
    if dtype is None and mx.default_device() == mx.Device(mx.cpu):
        dtype = mx.float32
    used = {name: tensors[name] for name in parameters}
    head.load_weights([(name, tensor if dtype is None else tensor.astype(dtype)) for name, tensor in used.items()])
    model = PretrainedBert(core, head, choice.name, labels)
    model.stored_head = StoredHead(tensors)
    model.eval()
    mx.eval(head.parameters())
    return model


def _require_head(directory: Path, config: dict[str, Any]) -> None:
    if not has_head(directory, config):
        raise CheckpointError(
            f"{directory}: there is no {HEADS_FILE}, so no head: its source had none; "
            "fix: mlxbert.load for the encoder alone, or convert a checkpoint of a BertFor* class"
        )


def _build(name: str, config: BertConfig, labels: Labels, tensors: Iterable[str]) -> PretrainedHead:
    """An empty head of a transformers class; what of its decoder is tied, `tensors` tell."""
    size = config.hidden_size
    dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
    if name == "BertForSequenceClassification":
        return SequenceClassificationHead(size, labels.num_labels, dropout)
    if name == "BertForTokenClassification":
        return TokenClassificationHead(size, labels.num_labels, dropout)
    if name == "BertForMultipleChoice":
        return MultipleChoiceHead(size, dropout)
    if name == "BertForQuestionAnswering":
        return SpanHead(size)
    if name == "BertForNextSentencePrediction":
        return NextSentenceHead(size)
    own_bias = "cls.predictions.decoder.bias" in tensors
    predictions = Predictions(
        size,
        config.vocab_size,
        ACTIVATIONS[config.hidden_act],
        config.layer_norm_eps,
        bias="cls.predictions.bias" in tensors or not own_bias,
        # Untied by the configuration, it has to be there: the embeddings would give other numbers without a word.
        decoder_weight="cls.predictions.decoder.weight" in tensors or not config.tie_word_embeddings,
        decoder_bias=own_bias,
    )
    return PretrainingHead(predictions, size) if name == "BertForPreTraining" else MaskedLMHead(predictions)


def _check(place: str, name: str, tensors: dict[str, mx.array], expected: dict[str, tuple[int, ...]]) -> None:
    problems = [f"missing: {parameter}" for parameter in expected if parameter not in tensors]
    problems += [
        f"unexpected: {key}"
        for key in sorted(tensors)
        # Another class's head beside this one's is no damage: pre-training leaves its own behind.
        if key not in expected and (not is_head_tensor(key) or key.startswith(HEAD_CLASSES[name]))
    ]
    problems += [
        f"{key} is {tensors[key].shape}, config.json calls for {shape}"
        for key, shape in expected.items()
        if key in tensors and tensors[key].shape != shape
    ]
    problems += [
        f"{key} has dtype {tensors[key].dtype}"
        for key in expected
        if key in tensors and not mx.issubdtype(tensors[key].dtype, mx.floating)
    ]
    if problems:
        raise CheckpointError(
            f"{place}: its head is not that of a {name} of this config.json; fix: mlxbert.load for the encoder alone, "
            f"or convert a checkpoint whose head is whole\n{first_ten(problems)}"
        )
