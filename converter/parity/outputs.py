"""The MLX side of a comparison: every module's output for a probe, and the sentence pipeline from texts to embeddings.

The reference of the sentence pipeline is sentence-transformers where it is installed and opens the source. Otherwise
it is PyTorch's hidden states for our token ids, pooled in NumPy and sent through torch's modules. Both use the files
of the source and none of the code of `mlxbert.encode`, which is compared.
"""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from converter.parity.probes import SENTENCES, Probe, padded
from converter.parity.reference import (
    PREDICTION,
    Reference,
    ReferenceOutput,
    as_vectors,
    choices_of,
    extra_inputs,
    full_float32,
    quiet_transformers,
)
from converter.parity.report import CUMULATIVE, MAPPING, PIPELINE, PRECISION, SENTENCE, Part
from mlxbert.checkpoint import load_tokenizer
from mlxbert.encode.encoder import SentenceEncoder
from mlxbert.encode.sentence_modules import read_sentence_plan
from mlxbert.errors import MLXBertError, reason
from mlxbert.files.reading import parse_json, read_json
from mlxbert.models.architecture import HeadKind
from mlxbert.models.base import BertOutput, Encoder
from mlxbert.pretrained import PretrainedBert

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
    output = core(
        probe.input_ids, probe.attention_mask, probe.token_type_ids, probe.position_ids, output_hidden_states=True
    )
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
    x, context = core.embed(probe.input_ids, probe.attention_mask, probe.token_type_ids, probe.position_ids)
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
    kind = None if isinstance(model, TrainedModel) else model.kind
    if isinstance(model, TrainedModel):
        logits = model.logits(output, probe)
    elif model.head.needs_pooler and output.pooler_output is None:
        return {}  # the gates report each as missing in MLX
    else:
        choices = choices_of(batch) if kind is HeadKind.CHOICE else None
        logits = model.apply_head(output, probe.attention_mask, choices=choices)
    computed = {name: clock(f"{LOGITS}{name}", partial(_numpy, array)) for name, array in logits.items()}
    return {f"{LOGITS}{name}": as_vectors(array, kind) for name, array in computed.items()}


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


def without_padded_logits(model: Model, outputs: Outputs) -> Outputs:
    """Return the outputs that padding must not change: not the logits of a head that reads padding by definition."""
    if not isinstance(model, PretrainedBert) or not model.head.reads_padding:
        return outputs
    return {name: array for name, array in outputs.items() if not name.startswith(LOGITS)}


def _numpy(array: mx.array) -> np.ndarray:
    """Return float32 on the host; exact from float16 and bfloat16."""
    return np.array(array.astype(mx.float32))


if TYPE_CHECKING:
    from converter.source import Source

Array = np.ndarray[Any, Any]

MODULES = "modules.json"
TEXTS = tuple(dict.fromkeys(text for pair in SENTENCES for text in pair if text is not None))

_POOLED: dict[str, Callable[[Array, Array], Array]] = {
    "cls": lambda hidden, mask: hidden[:, 0],
    "max": lambda hidden, mask: np.where(mask > 0, hidden, -np.inf).max(axis=1),
    "mean": lambda hidden, mask: (hidden * mask).sum(axis=1) / mask.sum(axis=1),
    "mean_sqrt_len_tokens": lambda hidden, mask: (hidden * mask).sum(axis=1) / np.sqrt(mask.sum(axis=1)),
    "weightedmean": lambda hidden, mask: (
        (hidden * mask * np.arange(1, hidden.shape[1] + 1)[:, None]).sum(axis=1)
        / (mask * np.arange(1, hidden.shape[1] + 1)[:, None]).sum(axis=1)
    ),
    "lasttoken": lambda hidden, mask: hidden[np.arange(len(hidden)), mask[..., 0].sum(axis=1) - 1],
}
_OLD_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


class _NotComparableError(MLXBertError):
    """A sentence pipeline that cannot be compared; the message is the reason."""


@dataclass(frozen=True)
class SentenceComparison:
    """Embeddings of `TEXTS`, (N, D) float32 each.

    Attributes:
        expected: those of the reference.
        float32: those of the float32 MLX model.
        written: those of the written checkpoint; None: it is the float32 model, or it is quantized.
        how: what the reference is.
        seconds: time of the float32 MLX model.
        precise: whether the precision gate applies.
    """

    expected: Array
    float32: Array
    written: Array | None
    how: str
    seconds: float
    precise: bool

    @property
    def part(self) -> Part:
        """The part of the report's scope."""
        return Part(PIPELINE, True, f"{len(TEXTS)} texts to embeddings, with {self.how}")

    def add_to(self, add: Callable[..., None]) -> None:
        """Add the comparison to the results of the gates."""
        ones = np.ones((len(TEXTS), 1), np.int64)
        probe = Probe(f"{len(TEXTS)} texts", ones, ones, ones)
        clock = Clock()
        clock.seconds[SENTENCE] = self.seconds
        add(MAPPING, CUMULATIVE, probe, {SENTENCE: self.expected}, {SENTENCE: self.float32}, clock)
        if self.precise:
            written = self.float32 if self.written is None else self.written
            add(PRECISION, CUMULATIVE, probe, {SENTENCE: self.float32}, {SENTENCE: written}, Clock())


def compare_sentences(
    source: Source,
    reference: Reference,
    directory: Path,
    hf_config: Mapping[str, Any],
    float32: Model,
    written: Model | None,
) -> SentenceComparison | Part | None:
    """Embed the texts on both sides.

    Args:
        source: the source of the reference.
        reference: its model in PyTorch.
        directory: the converted directory with tokenizer and modules; `config.json` may be missing.
        hf_config: the content of `config.json`.
        float32: the MLX side of the mapping gate.
        written: the written checkpoint; None: it is quantized.

    Returns:
        the comparison; a part with the reason if there cannot be one; None without a `modules.json`.
    """
    if not (directory / MODULES).exists():
        return None
    try:
        exact = _encoder(directory, hf_config, float32)
        expected, how = _expected(source, reference, exact)
    except MLXBertError as error:
        return Part(PIPELINE, False, reason(error, directory))
    begin = time.perf_counter()
    ours = _encoded(exact)
    seconds = time.perf_counter() - begin
    lossy = None if written is None or written is float32 else _encoded(_encoder(directory, hf_config, written))
    return SentenceComparison(expected, ours, lossy, how, seconds, precise=written is not None)


def _encoder(directory: Path, hf_config: Mapping[str, Any], model: Model) -> SentenceEncoder:
    plan = read_sentence_plan(directory, hf_config)
    assert plan is not None  # modules.json is there
    return SentenceEncoder(model.core, load_tokenizer(directory, model.core.config, hf_config=hf_config), plan)


def _encoded(encoder: SentenceEncoder) -> Array:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a text is too long for a small model: both sides cut it
        return encoder.encode(TEXTS)


def _expected(source: Source, reference: Reference, encoder: SentenceEncoder) -> tuple[Array, str]:
    """Return the embeddings of the reference, and what it is."""
    place = source.root
    if not (place / MODULES).is_file():
        raise _NotComparableError("the reference has no modules.json")
    if find_spec("sentence_transformers") is not None and reference.opened:
        return _by_sentence_transformers(place)
    return _by_hand(place, reference, encoder), "PyTorch's hidden states, pooled by NumPy"


def _by_sentence_transformers(place: Path) -> tuple[Array, str]:
    import torch

    try:
        with quiet_transformers(), full_float32(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import sentence_transformers

            model = sentence_transformers.SentenceTransformer(
                str(place),
                device="cpu",
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"dtype": torch.float32, "attn_implementation": "eager"},
            )
            embeddings = model.encode(list(TEXTS), show_progress_bar=False, convert_to_numpy=True)
    except Exception as error:  # it raises anything; the report says why this source cannot be compared
        summary = f"{type(error).__name__}: {error}".splitlines()[0]
        raise _NotComparableError(f"sentence-transformers cannot run the source ({summary})") from error
    return np.asarray(embeddings, np.float32), f"sentence-transformers {sentence_transformers.__version__}"


def _by_hand(place: Path, reference: Reference, encoder: SentenceEncoder) -> Array:
    """Run the modules of the source one after the other, in float64 NumPy and torch."""
    modules = parse_json(place / MODULES, _NotComparableError)
    if encoder.plan.default_prompt is not None and not encoder.plan.include_prompt:
        raise _NotComparableError("pooling leaves the prompt out: to compare that, install sentence-transformers")
    prompt = encoder.plan.prompts.get(encoder.plan.default_prompt or "", "")
    encodings = encoder.tokenizer.encode([prompt + text for text in TEXTS], max_length=encoder.max_length)
    rows = [(encoding.ids, encoding.type_ids) for encoding in encodings]
    probe = padded("texts", rows, encoder.core.config.pad_token_id)
    hidden, mask = reference.run(probe).hidden_states[-1].astype(np.float64), probe.attention_mask
    x = np.zeros(0)
    for entry in modules:
        kind, folder = str(entry["type"]).rpartition(".")[2], place / str(entry.get("path", ""))
        config = read_json(folder / "config.json", _NotComparableError) or {}
        if kind == "Pooling":
            x = np.concatenate([_POOLED[mode](hidden, mask[..., None]) for mode in _modes(config)], axis=1)
        elif kind == "Dense":
            x = _dense(x, config, folder)
        elif kind == "Normalize":
            x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        elif kind not in ("Transformer", "Dropout"):
            raise _NotComparableError(f"module {kind}: to compare that, install sentence-transformers")
    return x[:, : encoder.plan.truncate_dim].astype(np.float32)


def _modes(config: dict[str, Any]) -> list[str]:
    """Return the pooling modes of a config, in either spelling."""
    modes = config.get("pooling_mode") or [mode for flag, mode in _OLD_FLAGS.items() if config.get(flag)] or ["mean"]
    return [modes] if isinstance(modes, str) else list(modes)


def _dense(x: Array, config: dict[str, Any], folder: Path) -> Array:
    """Run torch's own linear layer and activation, in float64."""
    import torch
    from safetensors.torch import load_file

    if config.get("use_residual"):
        raise _NotComparableError("Dense with a residual: to compare that, install sentence-transformers")
    file = folder / "model.safetensors"
    if file.is_file():
        tensors = load_file(file)
    else:
        tensors = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    name = str(config.get("activation_function", "torch.nn.Tanh")).rpartition(".")[2]
    bias = tensors.get("linear.bias")
    with torch.inference_mode():
        y = torch.nn.functional.linear(
            torch.from_numpy(x), tensors["linear.weight"].double(), None if bias is None else bias.double()
        )
        return np.asarray(getattr(torch.nn, name)()(y).numpy())
