"""The sentence pipeline in a comparison: texts to embeddings, through tokenizer, pooling and every module after it.

The reference is sentence-transformers itself where it is installed and opens the source. Otherwise it is PyTorch's
hidden states for our token ids, pooled here in NumPy and sent through torch's modules, all from the source's own files
and without the code of `mlxbert.encode`, which is compared.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.parity.outputs import Clock, Model
from converter.parity.probes import SENTENCES, Probe, padded
from converter.parity.reference import Reference, full_float32, quiet_transformers
from converter.parity.report import CUMULATIVE, MAPPING, PIPELINE, PRECISION, SENTENCE, Part
from mlxbert.checkpoint import load_tokenizer
from mlxbert.encode.encoder import SentenceEncoder
from mlxbert.encode.sentence_modules import read_sentence_plan
from mlxbert.errors import MLXBertError, reason
from mlxbert.files.reading import parse_json, read_json

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
    return SentenceEncoder(model.core, load_tokenizer(directory, model.core.config), plan)


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
