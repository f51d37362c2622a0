"""Read the facts of the model card from a converted directory, for a conversion, a verification and a push.

The code that a card shows is run here on the written files: the card shows only code that runs. A conversion needs
little more memory than its largest tensor. So each part of the encoder (embeddings, one layer, the pooler) is read
from its file when it is used, and then released.
"""

from __future__ import annotations

import json
import math
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.card.card import LOAD, LOAD_WITH_HEAD, SENTENCES, TRAINED, CardFacts, Usage, read_scores
from converter.card.loaders import readings, traits_of
from converter.card.source_card import SourceCard
from converter.quantize.cost import QuantizationReport
from converter.readers.safetensors import TensorEntry, read_safetensors
from mlxbert.checkpoint import INDEX, CheckpointError, is_full_layout, is_license_file
from mlxbert.encode.modules import SentenceModuleError
from mlxbert.encode.sentence_modules import read_sentence_plan
from mlxbert.errors import MLXBertError, printable, reason
from mlxbert.files.reading import from_json, read_json
from mlxbert.models.architecture import architecture, config_from_hf
from mlxbert.quantization import QuantizationConfig
from mlxbert.tokenization.files import has_tokenizer

if TYPE_CHECKING:
    from converter.parity.report import ParityReport
    from mlxbert.files.output_file import FileRecord
    from mlxbert.models.base import Encoder

TEXTS = ("MLX runs BERT.", "BERT runs on MLX.")


@dataclass(frozen=True)
class _Block:
    """The fields of the "mlxbert" block of `config.json` that a card needs."""

    source: str
    revision: str | None
    converter_version: str
    original_architectures: Any
    dropped: Mapping[str, str]


@dataclass(frozen=True)
class _Metadata:
    """The index's metadata, as the conversion writes it."""

    total_parameters: int


@dataclass(frozen=True)
class _Index:
    """The fields of `model.safetensors.index.json` that a card needs."""

    metadata: _Metadata
    weight_map: Mapping[str, str]


def card_facts(
    directory: Path,
    config: dict[str, Any],
    report: ParityReport | None,
    *,
    name: str,
    records: Mapping[str, FileRecord],
    quantization: QuantizationReport | None = None,
) -> CardFacts:
    """Return the content of the card of the model in `directory`.

    Args:
        directory: with the index, the heads and the tokenizer files; its `config.json` may not be written yet.
        config: the content of `config.json`, with its "mlxbert" block.
        report: the parity report; None: nothing was compared.
        name: of the model; bytes in a directory's name that are not text are escaped.
        records: sizes and SHA-256 of the files, as in the manifest.
        quantization: what quantization cost; None: not quantized, or not measured.

    Raises:
        CheckpointError: the "mlxbert" block is not as the conversion writes it.
        ParityReportError: its "trained" block is damaged.
    """
    fix = "fix: convert again"
    content = read_json(directory / INDEX, CheckpointError) or {}
    index = from_json(_Index, content, place=str(directory / INDEX), fix=fix, error=CheckpointError)
    block, place = config["mlxbert"], f'{directory}: the "mlxbert" block of config.json'
    origin = from_json(_Block, block, place=place, fix=fix, error=CheckpointError)
    declared = architecture(config.get("model_type"))
    heads = _head_tensors(directory, index, config)
    return CardFacts(
        name=printable(name),
        model_type=config["model_type"],
        source=origin.source,
        revision=origin.revision,
        original_class=_original_class(config),
        dtype=str(config.get("dtype")),
        parameters=quantization.parameters if quantization else _encoder_parameters(index, config, heads),
        has_pooler=any(map(declared.is_pooler, index.weight_map)),
        converter_version=origin.converter_version,
        heads=tuple(heads),
        full_layout=is_full_layout(config),
        dropped=origin.dropped,
        missing_tokenizer=not has_tokenizer(file.name for file in directory.iterdir() if file.is_file()),
        parity=report,
        source_card=SourceCard.from_block(block),
        quantization=quantization,
        quantized="quantization" in config,
        skipped=_skipped(config),
        trained_head=trained_head(block),
        classes=_classes(block),
        scores=read_scores(block),
        weights=weight_sums(records),
        max_length=_max_length(directory, config),
        readings=readings(traits_of(directory, config, tuple(heads)), config["model_type"], config_from_hf(config)),
        license_files=tuple(sorted(name for name in records if is_license_file(name))),
        sentence_modules=(directory / "modules.json").is_file(),
        usage=run_usage(directory, config),
    )


def _head_tensors(directory: Path, index: _Index, config: Mapping[str, Any]) -> dict[str, TensorEntry]:
    """Return the head's tensors, from the file where the layout has them."""
    if not is_full_layout(config):
        file = directory / "heads.safetensors"
        return read_safetensors(file) if file.is_file() else {}
    prefix = architecture(config["model_type"]).prefix
    files = {file for name, file in index.weight_map.items() if not name.startswith(prefix)}
    entries = {name: entry for file in sorted(files) for name, entry in read_safetensors(directory / file).items()}
    return {name: entry for name, entry in entries.items() if not name.startswith(prefix)}


def _encoder_parameters(index: _Index, config: Mapping[str, Any], heads: Mapping[str, TensorEntry]) -> int:
    """Return the number of the encoder's parameters; the index counts those of a head in its files too."""
    total = index.metadata.total_parameters
    return total - (sum(math.prod(entry.shape) for entry in heads.values()) if is_full_layout(config) else 0)


def weight_sums(records: Mapping[str, FileRecord]) -> dict[str, str]:
    """Return the SHA-256 of every weight file, by its name."""
    weights = (file for file in records if file.endswith(".safetensors") and "/" not in file)
    return {file: records[file].sha256 for file in weights}


def _skipped(config: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the layers that quantization left unchanged, each with its reason."""
    quantization = QuantizationConfig.from_hf(config)
    return quantization.skipped if quantization else {}


def trained_head(block: Mapping[str, Any]) -> str | None:
    """Return the name of a head of this project, which `BertWithHead.save` writes with its settings."""
    head = block.get("head")
    name = head.get("name") if isinstance(head, dict) else None
    return name if isinstance(name, str) else None


def _classes(block: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the classes of the trained head; empty for a regression."""
    head = block.get("head")
    arguments = head.get("arguments") if isinstance(head, dict) else None
    classes = arguments.get("classes") if isinstance(arguments, dict) else None
    return tuple(map(str, classes)) if isinstance(classes, list) else ()


def _max_length(directory: Path, config: Mapping[str, Any]) -> int:
    """Return how many tokens of a text are read: a sentence-transformers model may truncate earlier."""
    try:
        plan = read_sentence_plan(directory, config)
    except SentenceModuleError:  # an unknown module does not stop a conversion
        plan = None
    length = config_from_hf(config).max_length
    return length if plan is None or plan.max_length is None else min(length, plan.max_length)


def _original_class(config: dict[str, Any]) -> str:
    """Return the source's class, if it is one of its architecture; else the encoder's."""
    declared = architecture(config["model_type"])
    classes = config["mlxbert"]["original_architectures"]
    first = classes[0] if isinstance(classes, list) and classes else None
    return first if isinstance(first, str) and first in declared.heads else declared.encoder_class


def run_usage(directory: Path, config: Mapping[str, Any]) -> Usage:
    """Run each call that a card could show on two short texts.

    Args:
        directory: converted; its `config.json` may not be written yet.
        config: the content of `config.json`.
    """
    from mlxbert.pretrained import has_head

    if not has_tokenizer(file.name for file in directory.iterdir() if file.is_file()):
        return Usage()  # the card says what is missing, and shows no code
    calls: dict[str, Callable[[Path, Mapping[str, Any]], list[Any]]] = {LOAD: _load}
    block = config.get("mlxbert")
    if isinstance(block, dict) and isinstance(block.get("head"), dict):
        calls[TRAINED] = _load_trained
    elif has_head(directory, dict(config)):
        calls[LOAD_WITH_HEAD] = _load_with_head
    if (directory / "modules.json").is_file():
        calls[SENTENCES] = _encode_sentences
    ran, failed = [], {}
    for name, call in calls.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a tiny model truncates the texts
                _require_finite(call(directory, config))
            ran.append(name)
        except Exception as error:  # users would get this error too, so the note and the card name it
            failed[name] = reason(error, directory)
    return Usage(tuple(ran), failed)


def _load(directory: Path, config: Mapping[str, Any]) -> list[Any]:
    encoder = _streamed_encoder(directory, config)
    inputs = _inputs(directory, encoder, config)
    output = encoder(**inputs)
    return [output.last_hidden_state, output.pool("mean", inputs["attention_mask"]), output.pooler_output]


def _load_with_head(directory: Path, config: Mapping[str, Any]) -> list[Any]:
    import mlx.core as mx

    from mlxbert.models.architecture import HeadKind
    from mlxbert.pretrained import attach_head, choose_head_class, read_head_tensors

    encoder, tensors = _streamed_encoder(directory, config), read_head_tensors(directory, dict(config))
    choice = choose_head_class(config, tensors, has_pooler=encoder.has_pooler, place=str(directory))
    # As `mlxbert.load_with_head` computes by default.
    dtype = mx.float32 if mx.default_device() == mx.Device(mx.cpu) else None
    model = attach_head(encoder, tensors, choice, dict(config), place=str(directory), dtype=dtype)
    inputs = _inputs(directory, encoder, config)
    if model.kind is HeadKind.CHOICE:  # (1, choices, L)
        inputs = {name: array[None] for name, array in inputs.items()}
    return [value for value in vars(model(**inputs)).values() if isinstance(value, mx.array)]


def _encode_sentences(directory: Path, config: Mapping[str, Any]) -> list[Any]:
    from mlxbert.checkpoint import load_tokenizer
    from mlxbert.encode.encoder import SentenceEncoder

    encoder, plan = _streamed_encoder(directory, config), read_sentence_plan(directory, config)
    assert plan is not None  # modules.json exists
    sentence_encoder = SentenceEncoder(encoder, load_tokenizer(directory, encoder.config, hf_config=config), plan)
    embeddings = sentence_encoder.encode(TEXTS)
    return [embeddings, sentence_encoder.similarity(embeddings, embeddings)]


def _load_trained(directory: Path, config: Mapping[str, Any]) -> list[Any]:
    """Load a complete fine-tuned model from a folder of links, because its `config.json` may not be written yet."""
    from mlxbert.with_head import BertWithHead

    with tempfile.TemporaryDirectory() as folder:
        for file in directory.resolve().iterdir():
            if file.is_file() and file.name != "config.json":
                (Path(folder) / file.name).symlink_to(file)
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        model = BertWithHead.load(folder)
        return [model.predict(model(**_inputs(directory, model.core, config)))]


def _inputs(directory: Path, encoder: Encoder, config: Mapping[str, Any]) -> dict[str, Any]:
    from mlxbert.checkpoint import load_tokenizer

    return dict(load_tokenizer(directory, encoder.config, hf_config=config)(list(TEXTS)))


def _streamed_encoder(directory: Path, config: Mapping[str, Any]) -> Encoder:
    """Return the encoder as `mlxbert.load` does, but read each part's weights from the files when it computes."""
    import mlx.core as mx

    from mlxbert.checkpoint import load_core

    load = partial(load_core, directory, config=dict(config), lazy=True)

    def compute(part: str, *arguments: Any, **options: Any) -> Any:
        result = getattr(load(), part)(*arguments, **options)
        mx.eval(result)
        return result

    encoder = load()
    for part in ("embed_inputs", "run_layer", "finish", "pool", "decode"):
        setattr(encoder, part, partial(compute, part))
    return encoder


def _require_finite(arrays: list[Any]) -> None:
    import mlx.core as mx
    import numpy as np

    for array in arrays:
        values = np.array(array.astype(mx.float32)) if isinstance(array, mx.array) else array
        if values is not None and not np.isfinite(np.asarray(values, np.float64)).all():
            raise MLXBertError("it gives NaN or infinity")
