"""`PretrainedBert`: an encoder with its checkpoint's own head, and what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from heads.pretrained import MultipleChoiceHead, PretrainedHead
from mlxbert.config import BertConfig
from mlxbert.core import BertCore
from mlxbert.errors import MLXBertError
from mlxbert.model_inputs import InputError, mask_of, whole_numbers
from mlxbert.output import BertOutput
from mlxbert.pretrained.labels import Labels


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
            MLXBertError: this model did not come from a directory; or as `mlxbert.pretrained.saving.save_pretrained`.
        """
        from mlxbert.pretrained.saving import save_pretrained

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
