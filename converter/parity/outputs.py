"""A model that mlxbert fine-tuned, against its own export to PyTorch.

Its weights are in no PyTorch checkpoint, so the reference is what `mlxbert-export` writes of it: transformers' own
encoder, and the head in torch as the shipped `inference.py` computes it, which shares no code with `heads/`.

The MLX side of a comparison: every module's output for a probe, in the whole model and alone.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from converter.parity.probes import Probe
from converter.parity.reference import (
    MULTIPLE_CHOICE,
    ReferenceOutput,
    as_vectors,
    choices_of,
    full_float32,
    require_torch,
)
from mlxbert.models.base import BertOutput, Encoder
from mlxbert.pretrained.model import PretrainedBert

if TYPE_CHECKING:
    from mlxbert.models.base import BertOutput
    from mlxbert.models.bert import Encoder
    from mlxbert.with_head import BertWithHead

Array = np.ndarray[Any, Any]

PREDICTION = "prediction"
"""What the head makes of its logits: probabilities, or values in the user's units."""


class TrainedModel:
    """A `BertWithHead` as the gates run it: its encoder, and its head's outputs by name."""

    def __init__(self, model: BertWithHead, *, folded: bool):
        """Wrap a model; `folded`: its export has the scaler in its weights, so that only values can be compared."""
        self._model, self._folded = model, folded

    @property
    def core(self) -> Encoder:
        """The encoder."""
        return self._model.core

    def parameters(self) -> Any:
        """The parameters of encoder, pooling and head."""
        return self._model.parameters()

    def eval(self) -> None:
        """Turn dropout off."""
        self._model.eval()

    def logits(self, output: BertOutput, probe: Probe) -> dict[str, mx.array]:
        """The head's logits and predictions, (B, outputs) each, for what the encoder computed."""
        head: Any = self._model.head
        features = self._model.pooling(output, mx.array(probe.attention_mask))
        given = extra_inputs(head, probe)
        logits = head(features, **(head.inputs(**given) if given else {}))
        made = head.probabilities(logits) if head.head_name == "ordinal" else head.predict(logits)
        if head.head_name == "time_series":
            logits = logits[:, : head.horizon]  # the export leaves out the variances that stand behind them
        found = {PREDICTION: mx.array(np.asarray(made, np.float32).reshape(len(features), -1))}
        return found if self._folded else {"logits": logits, **found}


def extra_inputs(head: Any, probe: Probe) -> dict[str, Array]:
    """What a time series head reads beside the text: a history and a date for each row, which its tokens seed.

    So a row has the same ones in a padded batch and alone.
    """
    found: dict[str, Array] = {}
    rows = [np.random.default_rng(ids[keep]) for ids, keep in zip(probe.input_ids, probe.keep, strict=True)]
    if getattr(head, "window", 0):
        found["history"] = np.stack([100 + 20 * rng.random(head.window) for rng in rows])
    if getattr(head, "calendar", ()):
        hours = np.array([rng.integers(0, 24 * 3650) for rng in rows]) * np.timedelta64(1, "h")
        found["made_at"] = np.datetime64("2001-02-03T04") + hours
    return found


@dataclass(frozen=True)
class ExportedReference:
    """The exported model in PyTorch.

    Attributes:
        member: the exported model, a `Member` of the code that an export has.
        head: the MLX head, for what it reads beside the text.
        class_name: the transformers class that it was exported as, and its head.
    """

    member: Any
    head: Any
    class_name: str
    unexpected: tuple[str, ...] = ()
    notes: tuple[str, ...] = ("PyTorch reference: the model's own export, its head as in inference.py",)

    def run(self, probe: Probe) -> ReferenceOutput:
        """Every hidden state, the pooler's output, the logits and the predictions for one batch."""
        import torch

        batch = {
            name: torch.from_numpy(getattr(probe, name)) for name in ("input_ids", "attention_mask", "token_type_ids")
        }
        settings = self.member.head
        with torch.inference_mode(), full_float32():
            encoded = self.member.model.base_model(**batch, output_hidden_states=True)
            logits = self.member.logits(batch, extra_inputs(self.head, probe)).double().numpy()
        thresholds = np.asarray(settings.get("thresholds", [0.5]))
        made = self.member.decide(self.member.outcome(logits), thresholds)
        values = made.probabilities if made.values is None else made.values
        assert values is not None
        found = {} if is_folded(settings) else {"logits": logits.astype(np.float32)}
        return ReferenceOutput(
            hidden_states=tuple(state.numpy() for state in encoded.hidden_states),
            pooler_output=None if encoded.pooler_output is None else encoded.pooler_output.numpy(),
            logits=found | {PREDICTION: values.astype(np.float32).reshape(len(logits), -1)},
        )


def is_folded(settings: Any) -> bool:
    """Whether `head.json` is of a class of transformers whose last layer gives values in the user's units."""
    return bool(settings["is_whole"] and settings["name"] == "regression")


def build_exported(directory: Path, scratch: Path) -> tuple[ExportedReference, bool]:
    """Export a trained model below `scratch` and open it in PyTorch; also whether its scaler is folded in.

    Raises:
        MLXBertError: PyTorch is not installed, the model is damaged or quantized, or its head has no PyTorch form.
    """
    require_torch()
    import torch

    from converter.export.inference_modules.predictor import Member
    from converter.export.member import read_member, write_member
    from mlxbert.files.output_directory import OutputDirectory

    member = read_member(directory)
    with OutputDirectory(scratch / "export") as output:
        output.commit(write_member(output, member, ""))
    name = member.class_name if member.is_whole else f"{member.class_name} with a {member.head['name']} head"
    with full_float32():
        exported = Member(scratch / "export", torch.device("cpu"))
    return ExportedReference(exported, member.model.head, name), is_folded(member.head)


LOGITS = "logits."

Outputs = dict[str, np.ndarray]
"""Module name to its output: (B, L, D), or (B, D) for the pooler and the logits of a whole text."""

Model = Encoder | PretrainedBert | TrainedModel
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
    x, context = core.embed(probe.input_ids, probe.attention_mask, probe.token_type_ids)
    outputs = {"embeddings": clock("embeddings", partial(_numpy, x))}
    for i in range(core.num_layers):
        name = core.layer_name(i)
        if i + 1 < len(states):
            outputs[name] = clock(name, partial(_numpy, core.run_layer(i, states[i], context)[0]))
        else:
            outputs[name] = np.zeros(0)  # named as a layer that the reference does not have
    if core.has_pooler:
        outputs["pooler"] = clock("pooler", partial(_numpy, core.pool(states[-1])))
    pooled = reference.pooler_output
    output = BertOutput(
        states[-1], None if pooled is None else mx.array(pooled), hidden_states=tuple(states), attentions=None
    )
    return outputs | _logits(model, output, probe, clock)


def core_of(model: Model) -> Encoder:
    """The encoder of a model, which may be one itself."""
    return model if isinstance(model, Encoder) else model.core


def _logits(model: Model, output: BertOutput, probe: Probe, clock: Clock) -> Outputs:
    """The head's outputs for an encoder's, as `ReferenceOutput.logits`; none for an encoder alone."""
    if isinstance(model, Encoder):
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
