"""`PretrainedBert`: an encoder with its checkpoint's head, loaded from a converted directory and saved again.

The head class comes from the configuration, or from the names of the tensors. `Labels` names its outputs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from heads.pretrained import PretrainedHead
from mlxbert.checkpoint import (
    CheckpointError,
    encoder_layout,
    has_trained_head,
    is_full_layout,
    is_license_file,
    load,
    read_config,
    read_weights,
    resolve,
    side_files,
)
from mlxbert.errors import MLXBertError, first_ten, readable, shown
from mlxbert.files.output_directory import OutputDirectory
from mlxbert.files.safetensors import PlannedTensor, read_safetensors
from mlxbert.model_arrays import (
    DTYPE_CODES,
    InputError,
    encoder_tensors,
    mask_of,
    named_parameters,
    parameter_count,
    planned_tensors,
    read_array,
    tensor_problems,
    whole_numbers,
    with_true_dtype,
)
from mlxbert.models.architecture import Architecture, HeadKind, architecture
from mlxbert.models.base import BertOutput, Encoder
from mlxbert.models.config_fields import ConfigError, EncoderConfig
from mlxbert.tokenization.tokenizer import Tokenizer


class HeadClassError(MLXBertError):
    """The head's tensors do not fit the class that the config names, or do not determine the class."""


@dataclass(frozen=True)
class HeadChoice:
    """The class of a checkpoint's head.

    Attributes:
        name: the transformers class.
        note: one line if the config did not determine it, or if tensors are left over; None otherwise.
    """

    name: str
    note: str | None = None


def original_architectures(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the classes that a config names: a converted one in its "mlxbert" block, any other in `architectures`."""
    block = config.get("mlxbert")
    names = block.get("original_architectures") if isinstance(block, dict) else config.get("architectures")
    return tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()


def choose_head_class(
    config: Mapping[str, Any], tensors: Iterable[str], *, has_pooler: bool, place: str
) -> HeadChoice:
    """Return the class that a configuration names, if its tensors are there; else the class that the tensors imply.

    Args:
        config: a parsed `config.json`.
        tensors: names of the head's tensors.
        has_pooler: whether the encoder has a pooler; some heads read it, others do not.
        place: for messages: where the tensors are.

    Raises:
        ConfigError: the architecture is not known here.
        HeadClassError: config and tensors do not fit each other; one line.
    """
    declared = architecture(config.get("model_type"))
    names = list(tensors)
    groups = tuple(prefix for prefix in declared.head_prefixes if any(name.startswith(prefix) for name in names))
    classes = original_architectures(config)
    named = {name for name in classes if name in declared.heads}
    listed = ", ".join(map(_shown, groups)) or "no head"
    if len(named) == 1:
        (class_name,) = named
        head = declared.heads[class_name]
        if not head.is_whole(groups):
            needed = " and ".join(map(_shown, head.prefixes)) or " or ".join(map(_shown, head.optional))
            raise HeadClassError(
                f"{place}: its config names {class_name}, which needs {needed}, and there is {listed}; "
                "fix: convert the complete checkpoint"
            )
        rest = [_shown(prefix) for prefix in groups if prefix not in head.all_prefixes]
        return HeadChoice(class_name, f"{place}: {class_name} has no use for {', '.join(rest)}" if rest else None)
    says = f"its config names {' and '.join(classes) or 'no class'}"
    fitting = _fitting(declared, groups)
    # Without a pooler, a fine-tuned head is one that reads none; pre-training left out its pooler.
    pooled = {name for name in fitting if declared.heads[name].fine_tuned and declared.heads[name].has_pooler}
    name = next((name for name in fitting if has_pooler or name not in pooled), None)
    if name is None:
        raise HeadClassError(
            f"{place}: {says}, and its tensors ({listed}) do not tell the head's class; "
            'fix: give the source\'s config.json its "architectures" and convert again'
        )
    doubt, others = "", [other for other in fitting if other != name]
    if others and declared.heads[name].fine_tuned:
        doubt = f"; if it is {' or '.join(others)}, say so in the source's config.json and convert again"
    return HeadChoice(name, f"{place}: {says}; from its tensors ({listed}) it is taken for {name}{doubt}")


def _fitting(declared: Architecture, groups: tuple[str, ...]) -> list[str]:
    """Return the classes whose head these groups of tensors can be; none if the groups belong to several heads.

    A fine-tuned head wins over a language model's, which is left over from pre-training.
    """
    tuned = {prefix for head in declared.heads.values() if head.fine_tuned for prefix in head.all_prefixes} & set(
        groups
    )
    wanted = tuned or set(groups)
    heads = declared.heads.items()
    return [name for name, head in heads if head.is_whole(wanted) and wanted <= set(head.all_prefixes)]


def _shown(prefix: str) -> str:
    """Return the names that begin with a prefix, for a message."""
    return f"{prefix}*" if prefix.endswith(".") else prefix


PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


@dataclass(frozen=True)
class Labels:
    """Names and kind of a classifier's outputs.

    Attributes:
        id2label: name of each output.
        problem_type: one of `PROBLEM_TYPES`; None if the configuration has none.
    """

    id2label: dict[int, str]
    problem_type: str | None = None

    @property
    def num_labels(self) -> int:
        """The number of outputs."""
        return len(self.id2label)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Labels:
        """Read a parsed `config.json`; as in transformers, without `id2label` there are `num_labels` or two outputs.

        Raises:
            ConfigError: a field has an invalid value.
        """
        problem_type = config.get("problem_type")
        if problem_type is not None and problem_type not in PROBLEM_TYPES:
            raise ConfigError(
                f"config.json: problem_type {shown(problem_type)} is not known; known are {', '.join(PROBLEM_TYPES)}"
            )
        names = config.get("id2label")
        if names is None:
            count = config.get("num_labels", 2)
            if isinstance(count, bool) or not isinstance(count, int) or not 0 < count < 2**20:
                raise ConfigError(f"config.json: num_labels must be a positive whole number, not {shown(count)}")
            return cls({index: f"LABEL_{index}" for index in range(count)}, problem_type)
        try:
            id2label = {int(index): str(name) for index, name in names.items()}
        except (AttributeError, TypeError, ValueError):
            raise ConfigError(f"config.json: id2label must map whole numbers to names, not {shown(names)}") from None
        if not id2label or set(id2label) != set(range(len(names))):
            raise ConfigError(f"config.json: id2label has the keys {sorted(id2label)[:10]}; expected 0, 1, 2, …")
        return cls(dict(sorted(id2label.items())), problem_type)


@dataclass(frozen=True)
class PretrainedOutput:
    """Output of a `PretrainedBert`; the field names are those of transformers, None if the class has no such output.

    Attributes:
        logits: masked LM (B, L, V), next sentence (B, 2), sequence (B, K), token (B, L, K), choice (B, C), replaced
            tokens (B, L).
        prediction_logits, seq_relationship_logits, sop_logits: pre-training, (B, L, V), (B, 2) and (B, 2).
        start_logits, end_logits: question answering, (B, L) each.
        hidden_states, attentions: on request, as in `BertOutput`; of B · C texts for multiple choice.
    """

    logits: mx.array | None = None
    prediction_logits: mx.array | None = None
    seq_relationship_logits: mx.array | None = None
    sop_logits: mx.array | None = None
    start_logits: mx.array | None = None
    end_logits: mx.array | None = None
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None


@dataclass(frozen=True)
class StoredHead:
    """The tensors of a `heads.safetensors` by name; a separate class, so that they are not parameters."""

    tensors: Mapping[str, mx.array]


class PretrainedBert(nn.Module):
    """An encoder and its checkpoint's own head.

    Attributes:
        core: the encoder.
        head: the head.
        config: the encoder's configuration.
        architecture: the equivalent class of transformers.
        kind: what the head does.
        labels: names and kind of a classifier's outputs.
        source: the converted directory that both came from; `save` takes configuration and tokenizer from it.
        stored_head: the head's tensors as they are in its file.
    """

    def __init__(self, core: Encoder, head: PretrainedHead, architecture: str, labels: Labels):
        super().__init__()
        self.source: Path | None = None
        self.stored_head = StoredHead({})
        self.core = core
        self.head = head
        self.config: EncoderConfig = core.config
        self.architecture = architecture
        self.kind: HeadKind = core.architecture.heads[architecture].kind
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
        """Encode a batch and apply the head; arguments as the encoder's, (B, C, L) each for multiple choice.

        Raises:
            InputError: a shape that does not fit, or an id outside its table.
        """
        inputs = [input_ids, attention_mask, token_type_ids, position_ids]
        choices = None
        if self.kind is HeadKind.CHOICE:
            ids = whole_numbers("input_ids", input_ids)
            if ids.ndim != 3:
                raise InputError(f"input_ids has shape {ids.shape}; multiple choice takes (batch, choices, length)")
            choices = ids.shape[1]
            inputs = [ids.reshape(-1, ids.shape[-1]), *_flat(ids.shape, attention_mask, token_type_ids, position_ids)]
        output = self.core(*inputs, output_hidden_states=output_hidden_states, output_attentions=output_attentions)
        return PretrainedOutput(
            **self.apply_head(output, inputs[1], choices=choices),
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def save(self, directory: str | Path, *, overwrite: bool = False) -> Path:
        """Write this model as a converted directory; a quantized encoder keeps its packed bytes.

        Raises:
            MLXBertError: this model was not loaded from a directory; or as `mlxbert.pretrained.save_pretrained`.
        """
        if self.source is None:
            raise MLXBertError(
                "this model came from no directory, so its configuration is unknown; fix: mlxbert.load_with_head"
            )
        tensors = self.stored_head.tensors
        return save_pretrained(self.core, self.head, tensors, self.source, directory, overwrite=overwrite)

    def apply_head(self, output: BertOutput, mask: Any = None, *, choices: int | None = None) -> dict[str, mx.array]:
        """Return the logits for the encoder's output.

        Args:
            output: of B texts.
            mask: (B, L), 1 for real tokens; None: all are real.
            choices: this many consecutive texts belong to one question.
        """
        mask = None if mask is None else mask_of("attention_mask", mask)
        if mask is not None and mask.ndim > 2:  # (B, L, L) or (B, H, L, L): a token that any other one sees is real
            mask = (mask != 0).any(axis=list(range(1, mask.ndim - 1)))
        pooled = self.head.pool(output.last_hidden_state, output.pooler_output, mask)
        logits = self.head(output.last_hidden_state, pooled, self.core.decode)
        if choices is None:
            return logits
        return {name: scores.reshape(-1, choices) for name, scores in logits.items()}  # (B · C,) -> (B, C)


def _flat(shape: tuple[int, ...], mask: Any, types: Any, positions: Any) -> list[mx.array | None]:
    """Reshape mask, types and positions of multiple choice, (B, C, L) each, to (B · C, L)."""
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

    The class is the source's; if its config names no known class, the tensors determine it, and a warning on the log
    "mlxbert" says which.

    Args:
        path_or_hub_id, revision, dtype, dequantize: as for `mlxbert.load`.

    Raises:
        CheckpointError: never converted, damaged, or without a head.
        HeadClassError: the head's tensors do not fit the class, or do not determine it.
    """
    directory = resolve(path_or_hub_id, revision)
    config = read_config(directory, other_tools=True)
    _require_head(directory, config)
    core, tokenizer = load(directory, dtype=dtype, dequantize=dequantize)
    tensors = read_head_tensors(directory, config)
    choice = choose_head_class(config, tensors, has_pooler=core.has_pooler, place=str(directory))
    if choice.note:
        logging.getLogger("mlxbert").warning("mlxbert: %s", readable(choice.note))
    model = attach_head(core, tensors, choice, config, place=str(directory), dtype=dtype)
    model.source = directory
    return model, tokenizer


def has_head(directory: Path, config: dict[str, Any]) -> bool:
    """Return whether a converted directory with this `config` has a head."""
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
    contents = read_safetensors(file, CheckpointError)
    tensors = {} if contents is None else contents[0]
    if has_trained_head(config):
        raise CheckpointError(f"{file} is a head that mlxbert trained; fix: load it with mlxbert.BertWithHead.load")
    return tensors


def attach_head(
    core: Encoder,
    tensors: dict[str, mx.array],
    choice: HeadChoice,
    config: dict[str, Any],
    *,
    place: str,
    dtype: mx.Dtype | None = None,
) -> PretrainedBert:
    """Return the encoder with a head of the chosen class, filled with `tensors`, in evaluation mode.

    Args:
        core: the encoder.
        tensors: under Hugging Face's names; those of another head are left out.
        choice: from `choose_head_class`.
        config: the parsed `config.json`.
        place: for messages.
        dtype: dtype of the computation; None: as `mlxbert.load`.

    Raises:
        CheckpointError: tensors are missing, unexpected, or of another shape than the configuration calls for; the
            encoder has no pooler, and this head needs one.
    """
    labels = Labels.from_hf(config)
    declared = core.architecture
    chosen = declared.heads[choice.name]
    head = chosen.build(core.config, labels.num_labels, tensors)
    if head.needs_pooler and not core.has_pooler:
        raise CheckpointError(
            f"{place}: {choice.name} reads the pooler, and this encoder has none; fix: convert the complete checkpoint"
        )
    parameters = {name: array.shape for name, array in named_parameters(head).items()}
    used = {
        name: tensor
        for name, tensor in tensors.items()
        # Tensors of another class's head are allowed: pre-training leaves its head behind.
        if name in parameters or not declared.is_head_tensor(name) or name.startswith(chosen.all_prefixes)
    }
    if problems := tensor_problems(used, parameters):
        raise CheckpointError(
            f"{place}: its head is not that of a {choice.name} of this config.json; fix: mlxbert.load for the encoder "
            f"alone, or convert a checkpoint whose head is whole\n{first_ten(problems)}"
        )
    if dtype is None and mx.default_device() == mx.Device(mx.cpu):
        dtype = mx.float32
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
            "fix: mlxbert.load for the encoder alone, or convert a checkpoint of a class with a head"
        )


def save_pretrained(
    core: Encoder,
    head: nn.Module,
    stored_head: Mapping[str, mx.array],
    source: Path,
    directory: str | Path,
    *,
    overwrite: bool = False,
) -> Path:
    """Write encoder, head, `config.json` and side files, complete or not at all, and return the real path.

    Args:
        core: the encoder; a quantized one keeps its packed bytes.
        head: its parameters have Hugging Face's names.
        stored_head: the tensors that it was loaded from; unchanged ones are written as they were.
        source: the converted directory that the model came from.
        directory: where to write.
        overwrite: replace a converted model that is there.

    Raises:
        WriteError: the directory exists and `overwrite` is not given, or cannot be written.
        ChangedWeightsError: a quantized encoder has other weights than it was loaded with.
    """
    encoder = encoder_tensors(core)
    current = named_parameters(head)
    kept = {name: tensor for name, tensor in stored_head.items() if _is_held(current.get(name), tensor)}
    heads = [
        PlannedTensor(name, tuple(tensor.shape), DTYPE_CODES[tensor.dtype], partial(read_array, tensor))
        for name, tensor in kept.items()
    ]
    heads += [tensor for tensor in planned_tensors(head) if tensor.name not in kept]
    config = with_true_dtype(encoder_layout(read_config(source)), core)
    with OutputDirectory(Path(directory), overwrite=overwrite, source=source) as output:
        output.write_model(encoder, parameters=parameter_count(core))
        output.write_safetensors(HEADS_FILE, heads)
        files = [file for file in (*source.glob("*"), *source.glob("*/*")) if file.is_file()]
        names = [file.relative_to(source).as_posix() for file in files]
        for name in (*side_files(names), *filter(is_license_file, names)):
            output.copy(name, source / name)
        return output.commit(config)


def _is_held(current: mx.array | None, stored: mx.array) -> bool:
    """Return whether the head still has this tensor's numbers, or never used it (another head's)."""
    return current is None or bool(mx.array_equal(current, stored.astype(current.dtype)).item())
