"""`BertCore`: the BERT encoder, Devlin et al. 2018, https://arxiv.org/abs/1810.04805."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxbert.config import BertConfig
from mlxbert.embeddings import BertEmbeddings
from mlxbert.layers import BertEncoder, BertPooler
from mlxbert.model_inputs import InputError, mask_of, whole_numbers
from mlxbert.output import BertOutput
from mlxbert.quantization import PackedWeights


class BertCore(nn.Module):
    """Embeddings, encoder and, if the checkpoint has one, pooler.

    The module tree has the canonical names of a checkpoint (Hugging Face's, without `bert.`), so that loading
    needs no mapping.
    """

    def __init__(self, config: BertConfig, add_pooling_layer: bool = True):
        super().__init__()
        self.config = config
        self.packed: PackedWeights | None = None  # of a quantized checkpoint: what `save` writes
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        if add_pooling_layer:
            self.pooler = BertPooler(config)

    def __call__(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> BertOutput:
        """Encode a batch of token ids.

        Args:
            input_ids: (B, L) whole numbers below `vocab_size`; an `mx.array`, a NumPy array or lists.
            attention_mask: (B, L), 1 for real tokens and 0 for padding; None: all are real.
            token_type_ids: (B, L), below `type_vocab_size`: 0 for the first text and 1 for the second; None: all 0.
            position_ids: (B, L) or (1, L), below `max_position_embeddings`; None: 0 … L − 1.
            output_hidden_states: also return the embeddings' and each layer's output.
            output_attentions: also return each layer's attention weights.

        Raises:
            InputError: a shape that does not fit, L > `max_position_embeddings`, or an id outside its table. Inside
                `mx.compile` and `mx.vmap`, where ids have no values yet, such an id gives a row of NaN.
        """
        ids = whole_numbers("input_ids", input_ids)
        if ids.ndim != 2 or ids.size == 0:
            raise InputError(f"input_ids has shape {ids.shape}; expected (batch, length), both at least 1")
        limit = self.config.max_position_embeddings
        if ids.shape[1] > limit and position_ids is None:
            raise InputError(
                f"input_ids: {ids.shape[1]} tokens, but this model has {limit} positions; truncate to {limit}"
            )
        types = positions = mask = None
        if token_type_ids is not None:
            types = whole_numbers("token_type_ids", token_type_ids)
            _check_shape("token_type_ids", types, ids.shape)
        if attention_mask is not None:
            mask = mask_of("attention_mask", attention_mask)
            _check_shape("attention_mask", mask, ids.shape)
        if position_ids is not None:
            positions = whole_numbers("position_ids", position_ids)
            if positions.shape != (1, ids.shape[1]):
                _check_shape("position_ids", positions, ids.shape)
        # A boolean mask, never an additive one: a row with no kept key is then uniform instead of NaN.
        keep = None if mask is None else mask.astype(mx.bool_)[:, None, None, :]  # (B, 1, 1, L)

        x = self.embeddings(ids, types, positions)
        # Only what was asked for is held on to: the memory of one layer's output then serves a later layer.
        hidden_states = [x] if output_hidden_states else []
        attentions = []
        for layer in self.encoder.layer:
            x, weights = layer(x, keep, output_attentions)
            if output_hidden_states:
                hidden_states.append(x)
            if weights is not None:
                attentions.append(weights)
        return BertOutput(
            last_hidden_state=x,
            pooler_output=self.pooler(x) if "pooler" in self else None,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )


def _check_shape(name: str, array: mx.array, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise InputError(f"{name} has shape {array.shape}; expected {shape}, that of input_ids")
