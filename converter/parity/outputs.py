"""The MLX side of a comparison: every module's output for a probe, in the whole model and alone."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial

import mlx.core as mx
import numpy as np

from converter.parity.own_head import MULTIPLE_CHOICE, as_vectors, choices_of
from converter.parity.probes import Probe
from converter.parity.reference import ReferenceOutput
from converter.parity.trained import TrainedModel
from mlxbert.core import BertCore
from mlxbert.output import BertOutput
from mlxbert.pretrained import PretrainedBert

LOGITS = "logits."

Outputs = dict[str, np.ndarray]
"""Module name to its output: (B, L, D), or (B, D) for the pooler and the logits of a whole text."""

Model = BertCore | PretrainedBert | TrainedModel
"""An encoder, or one with its checkpoint's own head, or with one that mlxbert trained."""


class Clock:
    """Seconds by module name, added up over probes."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def __call__(self, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """Compute one module's output and note how long that took."""
        begin = time.perf_counter()
        result = compute()
        self.seconds[name] += time.perf_counter() - begin
        return result


def named(output: ReferenceOutput) -> Outputs:
    """The reference's outputs under our module names, in the order of the model."""
    embeddings, *layers = output.hidden_states
    named = {"embeddings": embeddings} | {f"encoder.layer.{i}": layer for i, layer in enumerate(layers)}
    if output.pooler_output is not None:
        named["pooler"] = output.pooler_output
    return named | {f"{LOGITS}{name}": logits for name, logits in output.logits.items()}


def run(model: Model, probe: Probe, clock: Clock | None = None) -> Outputs:
    """The whole model, from the ids; each module's time is that of its own step, since MLX computes when asked."""
    clock = clock or Clock()
    output = core_of(model)(probe.input_ids, probe.attention_mask, probe.token_type_ids, output_hidden_states=True)
    assert output.hidden_states is not None
    embeddings, *layers = output.hidden_states
    found = {"embeddings": clock("embeddings", lambda: _numpy(embeddings))}
    for i, layer in enumerate(layers):
        found[f"encoder.layer.{i}"] = clock(f"encoder.layer.{i}", partial(_numpy, layer))
    if output.pooler_output is not None:
        pooled = output.pooler_output
        found["pooler"] = clock("pooler", partial(_numpy, pooled))
    return found | _logits(model, output, probe, clock)


def run_each_alone(model: Model, probe: Probe, reference: ReferenceOutput, clock: Clock | None = None) -> Outputs:
    """Each module alone, on what the reference gives to it: an error stays where it is made."""
    clock = clock or Clock()
    core = core_of(model)
    states = [mx.array(state) for state in reference.hidden_states]
    keep = mx.array(probe.keep)[:, None, None, :]  # (B, 1, 1, L)
    ids, types = mx.array(probe.input_ids), mx.array(probe.token_type_ids)
    outputs = {"embeddings": clock("embeddings", partial(_numpy, core.embeddings(ids, types, None)))}
    for i, layer in enumerate(core.encoder.layer):
        name = f"encoder.layer.{i}"
        if i + 1 < len(states):
            outputs[name] = clock(name, partial(_numpy, layer(states[i], keep)[0]))
        else:
            outputs[name] = np.zeros(0)  # named as a layer that the reference does not have
    if "pooler" in core:
        outputs["pooler"] = clock("pooler", partial(_numpy, core.pooler(states[-1])))
    pooled = reference.pooler_output
    output = BertOutput(
        states[-1], None if pooled is None else mx.array(pooled), hidden_states=tuple(states), attentions=None
    )
    return outputs | _logits(model, output, probe, clock)


def core_of(model: Model) -> BertCore:
    """The encoder of a model, which may be one itself."""
    return model if isinstance(model, BertCore) else model.core


def _logits(model: Model, output: BertOutput, probe: Probe, clock: Clock) -> Outputs:
    """The head's outputs for an encoder's, as `ReferenceOutput.logits`; none for an encoder alone."""
    if isinstance(model, BertCore):
        return {}
    batch = output.last_hidden_state.shape[0]
    if isinstance(model, TrainedModel):
        logits = model.logits(output, probe)
    elif model.head.needs_pooler and output.pooler_output is None:
        return {}  # each is then named as what the MLX model does not have
    else:
        choices = choices_of(batch) if model.architecture == MULTIPLE_CHOICE else None
        logits = model.apply_head(output, choices=choices)
    computed = {name: clock(f"{LOGITS}{name}", partial(_numpy, array)) for name, array in logits.items()}
    return {f"{LOGITS}{name}": as_vectors(name, array, batch) for name, array in computed.items()}


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
