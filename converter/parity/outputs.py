"""The MLX side of a comparison: the output of every module for a probe, in the whole model and alone."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from converter.parity.probes import Probe
from converter.parity.reference import PREDICTION, ReferenceOutput, as_vectors, choices_of, extra_inputs
from mlxbert.models.architecture import HeadKind
from mlxbert.models.base import BertOutput, Encoder
from mlxbert.pretrained.model import PretrainedBert

if TYPE_CHECKING:
    from mlxbert.with_head import BertWithHead

EMBEDDINGS, POOLED, LOGITS = "embeddings", "pooler", "logits."
"""Names of outputs that are not a layer's; a head's name follows the last one."""

Outputs = dict[str, np.ndarray]
"""Name of a module -> its output: (B, L, D), or (B, D) for the pooler and the logits of a whole text."""


class TrainedModel:
    """A fine-tuned `BertWithHead` as the gates run it: its encoder, and its head's outputs by name."""

    def __init__(self, model: BertWithHead, *, folded: bool):
        """Wrap a model; `folded`: its export has the scaler in its weights, so that only values can be compared."""
        self._model, self._folded = model, folded

    @property
    def core(self) -> Encoder:
        """The encoder."""
        return self._model.core

    def parameters(self) -> Any:
        """Return the parameters of encoder, pooling and head."""
        return self._model.parameters()

    def eval(self) -> None:
        """Turn dropout off."""
        self._model.eval()

    def logits(self, output: BertOutput, probe: Probe) -> dict[str, mx.array]:
        """Return the head's logits and predictions, (B, outputs) each, for the output of the encoder."""
        head: Any = self._model.head
        features = self._model.pooling(output, mx.array(probe.attention_mask))
        extra = extra_inputs(head, probe)
        logits = head(features, **(head.inputs(**extra) if extra else {}))
        predictions = head.probabilities(logits) if head.head_name == "ordinal" else head.predict(logits)
        if head.head_name == "time_series":
            logits = logits[:, : head.horizon]  # the export leaves out the variances that follow them
        values = mx.array(np.asarray(predictions, np.float32).reshape(len(features), -1))
        return {PREDICTION: values} if self._folded else {"logits": logits, PREDICTION: values}


Model = Encoder | PretrainedBert | TrainedModel
"""An encoder, or one with its checkpoint's own head, or one with a fine-tuned head."""


class Clock:
    """Seconds by module name, summed over probes."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def __call__(self, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """Compute the output of a module and add the time that it took."""
        begin = time.perf_counter()
        result = compute()
        self.seconds[name] += time.perf_counter() - begin
        return result


def named(output: ReferenceOutput, core: Encoder) -> Outputs:
    """Return the reference's outputs under the names of the MLX modules, in the order of the model."""
    embeddings, *layers = output.hidden_states
    outputs = {EMBEDDINGS: embeddings} | {core.layer_name(i): layer for i, layer in enumerate(layers)}
    if output.pooler_output is not None:
        outputs[POOLED] = output.pooler_output
    return outputs | {f"{LOGITS}{name}": logits for name, logits in output.logits.items()}


def run(model: Model, probe: Probe, clock: Clock | None = None) -> Outputs:
    """Run the whole model from the ids; the time of a module is that of its own step, since MLX is lazy."""
    clock = clock or Clock()
    core = model.core
    output = core(probe.input_ids, probe.attention_mask, probe.token_type_ids, output_hidden_states=True)
    assert output.hidden_states is not None
    embeddings, *layers = output.hidden_states
    outputs = {EMBEDDINGS: clock(EMBEDDINGS, partial(_numpy, embeddings))}
    for i, layer in enumerate(layers):
        name = core.layer_name(i)
        outputs[name] = clock(name, partial(_numpy, layer))
    if output.pooler_output is not None:
        outputs[POOLED] = clock(POOLED, partial(_numpy, output.pooler_output))
    return outputs | _logits(model, output, probe, clock)


def run_each_alone(model: Model, probe: Probe, reference: ReferenceOutput, clock: Clock | None = None) -> Outputs:
    """Run each module alone, on the reference's input to it: an error does not reach the modules that follow."""
    clock = clock or Clock()
    core = model.core
    states = [mx.array(state) for state in reference.hidden_states]
    x, context = core.embed(probe.input_ids, probe.attention_mask, probe.token_type_ids)
    outputs = {EMBEDDINGS: clock(EMBEDDINGS, partial(_numpy, x))}
    for i in range(core.num_layers):
        name = core.layer_name(i)
        if i + 1 < len(states):
            x, _ = core.run_layer(i, states[i], context)
            # The reference's last hidden state contains the final norm.
            outputs[name] = clock(name, partial(_numpy, core.finish(x) if i + 1 == core.num_layers else x))
        else:
            outputs[name] = np.zeros(0)  # the reference does not have this layer
    pooled = core.pool(states[-1])
    if pooled is not None:
        outputs[POOLED] = clock(POOLED, partial(_numpy, pooled))
    reference_pooled = None if reference.pooler_output is None else mx.array(reference.pooler_output)
    output = BertOutput(states[-1], reference_pooled, hidden_states=tuple(states), attentions=None)
    return outputs | _logits(model, output, probe, clock)


def _logits(model: Model, output: BertOutput, probe: Probe, clock: Clock) -> Outputs:
    """Return the head's outputs for those of an encoder, as `ReferenceOutput.logits`; none without a head."""
    batch = output.last_hidden_state.shape[0]
    if isinstance(model, Encoder):
        return {}
    if isinstance(model, TrainedModel):
        logits = model.logits(output, probe)
    elif model.head.needs_pooler and output.pooler_output is None:
        return {}  # the gates report each as missing in MLX
    else:
        logits = model.apply_head(output, choices=choices_of(batch) if model.kind is HeadKind.CHOICE else None)
    computed = {name: clock(f"{LOGITS}{name}", partial(_numpy, array)) for name, array in logits.items()}
    return {f"{LOGITS}{name}": as_vectors(name, array, batch) for name, array in computed.items()}


def rows_alone(probe: Probe) -> Iterator[tuple[Probe, int]]:
    """Yield each padded row of a right-padded batch as a batch of its own without padding, and its number."""
    for row, length in enumerate(probe.keep.sum(axis=1)):
        if length == probe.shape[1]:
            continue
        ids, mask, types = (
            array[row : row + 1, :length] for array in (probe.input_ids, probe.attention_mask, probe.token_type_ids)
        )
        yield Probe(f"{probe.name}, row {row} alone", ids, mask, types), row


def row_of(outputs: Outputs, row: int, alone: Probe) -> Outputs:
    """Return one row of a batch's outputs, cut to the length that it has alone."""
    length = alone.shape[1]
    return {
        name: array[row : row + 1, :length] if array.ndim == 3 else array[row : row + 1]
        for name, array in outputs.items()
    }


def _numpy(array: mx.array) -> np.ndarray:
    """Return float32 on the host; exact from float16 and bfloat16."""
    return np.array(array.astype(mx.float32))
