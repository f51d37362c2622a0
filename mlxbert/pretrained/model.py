"""`PretrainedBert`: an encoder with its checkpoint's own head, and what it returns.

Load a converted checkpoint with the head that its source had.

Write a model with its checkpoint's own head as a converted directory again, packed where it was packed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
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
from mlxbert.checkpoint import (
    CheckpointError,
    encoder_layout,
    is_full_layout,
    is_license_file,
    load,
    read_config,
    read_weights,
    resolve,
    side_files,
)
from mlxbert.config import BertConfig
from mlxbert.core import BertCore
from mlxbert.errors import MLXBertError, first_ten, readable
from mlxbert.files.output_directory import OutputDirectory
from mlxbert.files.safetensors import PlannedTensor, read_safetensors
from mlxbert.model_inputs import InputError, mask_of, whole_numbers
from mlxbert.model_tensors import DTYPE_CODES, named_parameters, planned_tensors, read_array, stored_dtype
from mlxbert.output import BertOutput
from mlxbert.pretrained.labels import (
    HEAD_CLASSES,
    HeadChoice,
    Labels,
    choose_head_class,
    is_head_tensor,
    original_architectures,
)
from mlxbert.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True)
class PretrainedOutput:
    """What a `PretrainedBert` returns; the field names are transformers' own, and None where the class has no such.

    Attributes:
        logits: masked LM (B, L, V), next sentence (B, 2), sequence (B, K), token (B, L, K), choice (B, C).
        prediction_logits, seq_relationship_logits: pre-training, (B, L, V) and (B, 2).
        start_logits, end_logits: question answering, (B, L) each.
        hidden_states, attentions: on request, as in `BertOutput`; of B · C texts for multiple choice.
    """

    logits: mx.array | None = None
    prediction_logits: mx.array | None = None
    seq_relationship_logits: mx.array | None = None
    start_logits: mx.array | None = None
    end_logits: mx.array | None = None
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None


@dataclass(frozen=True)
class StoredHead:
    """The tensors of a `heads.safetensors` by name; in a class of its own, so that they are no parameters."""

    tensors: Mapping[str, mx.array]


class PretrainedBert(nn.Module):
    """An encoder and its checkpoint's own head.

    Attributes:
        core: the encoder.
        head: the head.
        config: the encoder's configuration.
        architecture: the transformers class that this computes, such as "BertForMaskedLM".
        labels: names and kind of a classifier's outputs.
        source: the converted directory that both came from; `save` takes configuration and tokenizer from it.
        stored_head: the head's tensors as they are in its file.
    """

    def __init__(self, core: BertCore, head: PretrainedHead, architecture: str, labels: Labels):
        super().__init__()
        self.source: Path | None = None
        self.stored_head = StoredHead({})
        self.core = core
        self.head = head
        self.config: BertConfig = core.config
        self.architecture = architecture
        self.labels = labels

    def __call__(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> PretrainedOutput:
        """Encode a batch and apply the head; arguments as `BertCore`'s, (B, C, L) each for multiple choice.

        Raises:
            InputError: a shape that does not fit, or an id outside its table.
        """
        inputs = [input_ids, attention_mask, token_type_ids, position_ids]
        choices = None
        if isinstance(self.head, MultipleChoiceHead):
            ids = whole_numbers("input_ids", input_ids)
            if ids.ndim != 3:
                raise InputError(f"input_ids has shape {ids.shape}; multiple choice takes (batch, choices, length)")
            choices = ids.shape[1]
            inputs = [ids.reshape(-1, ids.shape[-1]), *_flat(ids.shape, attention_mask, token_type_ids, position_ids)]
        output = self.core(*inputs, output_hidden_states=output_hidden_states, output_attentions=output_attentions)
        return PretrainedOutput(
            **self.apply_head(output, choices=choices),
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def save(self, directory: str | Path, *, overwrite: bool = False) -> Path:
        """Write a converted directory with this model in it; a quantized encoder packed as it was, the same bytes.

        Raises:
            MLXBertError: this model did not come from a directory; or as `mlxbert.pretrained.model.save_pretrained`.
        """
        if self.source is None:
            raise MLXBertError(
                "this model came from no directory, so its configuration is unknown; fix: mlxbert.load_with_head"
            )
        tensors = self.stored_head.tensors
        return save_pretrained(self.core, self.head, tensors, self.source, directory, overwrite=overwrite)

    def apply_head(self, output: BertOutput, *, choices: int | None = None) -> dict[str, mx.array]:
        """The logits for what the encoder computed; `choices` texts, one after the other, belong to one question."""
        pooled = output.pooler_output
        if choices is not None and pooled is not None:
            pooled = pooled.reshape(-1, choices, pooled.shape[-1])  # (B · C, D) -> (B, C, D)
        return self.head(output.last_hidden_state, pooled, self.core.embeddings.word_embeddings.as_linear)


def _flat(shape: tuple[int, ...], mask: Any, types: Any, positions: Any) -> list[mx.array | None]:
    """Mask, types and positions of multiple choice, (B, C, L) each, as (B · C, L)."""
    arrays = {
        "attention_mask": None if mask is None else mask_of("attention_mask", mask),
        "token_type_ids": None if types is None else whole_numbers("token_type_ids", types),
        "position_ids": None if positions is None else whole_numbers("position_ids", positions),
    }
    for name, array in arrays.items():
        if array is not None and array.shape != shape:
            raise InputError(f"{name} has shape {array.shape}; expected {shape}, that of input_ids")
    return [None if array is None else array.reshape(-1, shape[-1]) for array in arrays.values()]


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


def save_pretrained(
    core: BertCore,
    head: nn.Module,
    stored_head: Mapping[str, mx.array],
    source: Path,
    directory: str | Path,
    *,
    overwrite: bool = False,
) -> Path:
    """Write encoder, head, `config.json` and the files beside them, whole or not at all; returns the real path.

    Args:
        core: the encoder; a quantized one is written packed, the same bytes.
        head: its parameters have Hugging Face's names.
        stored_head: the tensors that it was loaded from; those that it still holds are written as they were.
        source: the converted directory that the model came from.
        directory: where to write.
        overwrite: replace a converted model that is there.

    Raises:
        WriteError: the directory exists and `overwrite` is not given, or cannot be written.
        ChangedWeightsError: a quantized encoder has other weights than it was loaded with.
    """
    packed = core.packed
    if packed is not None:
        packed.check_unchanged(core)
    encoder = planned_tensors(core) if packed is None else packed.planned()
    current = named_parameters(head)
    kept = {name: tensor for name, tensor in stored_head.items() if _is_held(current.get(name), tensor)}
    heads = [
        PlannedTensor(name, tuple(tensor.shape), DTYPE_CODES[tensor.dtype], partial(read_array, tensor))
        for name, tensor in kept.items()
    ]
    heads += [tensor for tensor in planned_tensors(head) if tensor.name not in kept]
    config = encoder_layout(read_config(source))
    config["dtype"] = stored_dtype(core) if packed is None else packed.dtype
    if "torch_dtype" in config:
        config["torch_dtype"] = config["dtype"]
    with OutputDirectory(Path(directory), overwrite=overwrite, source=source) as output:
        output.write_model(encoder, parameters=None if packed is None else packed.parameters)
        output.write_safetensors("heads.safetensors", heads)
        files = [file for file in (*source.glob("*"), *source.glob("*/*")) if file.is_file()]
        names = [file.relative_to(source).as_posix() for file in files]
        for name in (*side_files(names), *filter(is_license_file, names)):
            output.copy(name, source / name)
        return output.commit(config)


def _is_held(current: mx.array | None, stored: mx.array) -> bool:
    """Whether the head still has this tensor's numbers, or never had a use for it (another head's)."""
    return current is None or bool(mx.array_equal(current, stored.astype(current.dtype)).item())
