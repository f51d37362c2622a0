"""The MLX side of a comparison: every module's output for a probe, in the whole model and alone."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import numpy as np

from converter.parity.own_head import MULTIPLE_CHOICE, as_vectors, choices_of
from converter.parity.probes import Probe
from converter.parity.reference import ReferenceOutput
from mlxbert.core import BertCore
from mlxbert.output import BertOutput
from mlxbert.pretrained import PretrainedBert

LOGITS = "logits."

Outputs = dict[str, np.ndarray]
"""Module name to its output: (B, L, D), or (B, D) for the pooler and the logits of a whole text."""

Model = BertCore | PretrainedBert
"""An encoder, or one with its checkpoint's own head."""


def named(output: ReferenceOutput) -> Outputs:
    """The reference's outputs under our module names, in the order of the model."""
    embeddings, *layers = output.hidden_states
    named = {"embeddings": embeddings} | {f"encoder.layer.{i}": layer for i, layer in enumerate(layers)}
    if output.pooler_output is not None:
        named["pooler"] = output.pooler_output
    return named | {f"{LOGITS}{name}": logits for name, logits in output.logits.items()}


def run(model: Model, probe: Probe) -> Outputs:
    """The whole model, from the ids."""
    core = _core(model)
    output = core(probe.input_ids, probe.attention_mask, probe.token_type_ids, output_hidden_states=True)
    assert output.hidden_states is not None
    pooled = output.pooler_output
    return named(
        ReferenceOutput(
            tuple(map(_numpy, output.hidden_states)),
            None if pooled is None else _numpy(pooled),
            _logits(model, output),
        )
    )


def run_each_alone(model: Model, probe: Probe, reference: ReferenceOutput) -> Outputs:
    """Each module alone, on what the reference gives to it: an error stays where it is made."""
    core = _core(model)
    states = reference.hidden_states
    keep = mx.array(probe.keep)[:, None, None, :]  # (B, 1, 1, L)
    embedded = core.embeddings(mx.array(probe.input_ids), mx.array(probe.token_type_ids), None)
    outputs = {"embeddings": _numpy(embedded)}
    for i, layer in enumerate(core.encoder.layer):
        if i + 1 < len(states):
            outputs[f"encoder.layer.{i}"] = _numpy(layer(mx.array(states[i]), keep)[0])
        else:
            outputs[f"encoder.layer.{i}"] = np.zeros(0)  # named as a layer that the reference does not have
    if "pooler" in core:
        outputs["pooler"] = _numpy(core.pooler(mx.array(states[-1])))
    pooled = reference.pooler_output
    output = BertOutput(mx.array(states[-1]), None if pooled is None else mx.array(pooled))
    return outputs | {f"{LOGITS}{name}": logits for name, logits in _logits(model, output).items()}


def _core(model: Model) -> BertCore:
    return model.core if isinstance(model, PretrainedBert) else model


def _logits(model: Model, output: BertOutput) -> dict[str, np.ndarray]:
    """The head's outputs for an encoder's, as `ReferenceOutput.logits`; none for an encoder alone."""
    if isinstance(model, BertCore):
        return {}
    batch = output.last_hidden_state.shape[0]
    if model.head.needs_pooler and output.pooler_output is None:
        return {}  # each is then named as what the MLX model does not have
    choices = choices_of(batch) if model.architecture == MULTIPLE_CHOICE else None
    logits = model.apply_head(output, choices=choices)
    return {name: as_vectors(name, _numpy(array), batch) for name, array in logits.items()}


def rows_alone(probe: Probe) -> Iterator[tuple[Probe, int]]:
    """Each padded row of a right-padded batch as a batch of its own, without its padding."""
    for row, length in enumerate(probe.keep.sum(axis=1)):
        if length == probe.shape[1]:
            continue
        ids, mask, types = (
            array[row : row + 1, :length] for array in (probe.input_ids, probe.attention_mask, probe.token_type_ids)
        )
        yield Probe(f"{probe.name}, row {row} alone", ids, mask, types), row


def row_of(outputs: Outputs, row: int, alone: Probe) -> Outputs:
    """One row of a batch's outputs, cut to the length that it has alone."""
    length = alone.shape[1]
    return {
        name: array[row : row + 1, :length] if array.ndim == 3 else array[row : row + 1]
        for name, array in outputs.items()
    }


def _numpy(array: mx.array) -> np.ndarray:
    """To float32 on the host; exact from float16 and bfloat16."""
    return np.array(array.astype(mx.float32))
