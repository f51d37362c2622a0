"""What the model card says, read off a converted directory: one way for the conversion and for a verification."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.card.card import CardFacts, read_scores
from converter.card.loaders import readings, traits_of
from converter.card.source_card import SourceCard
from converter.card.usage import run_usage
from converter.mappings import mapping_for
from converter.quantize.cost import QuantizationReport
from converter.readers.safetensors import TensorEntry, read_safetensors
from mlxbert.checkpoint import INDEX, CheckpointError, is_full_layout, is_license_file
from mlxbert.encode.modules import SentenceModuleError
from mlxbert.encode.sentence_modules import read_sentence_plan
from mlxbert.errors import printable
from mlxbert.files.reading import from_json, read_json
from mlxbert.models.base import POOLER, architecture
from mlxbert.quantization import QuantizationConfig

if TYPE_CHECKING:
    from converter.parity.report import ParityReport
    from mlxbert.files.output_file import FileRecord

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")


def card_facts(
    directory: Path,
    config: dict[str, Any],
    report: ParityReport | None,
    *,
    name: str,
    records: Mapping[str, FileRecord],
    quantization: QuantizationReport | None = None,
) -> CardFacts:
    """The facts of the model in `directory`, whose `config.json` holds, or will hold, `config`.

    Args:
        directory: with the index, the heads and the tokenizer files written.
        config: as the conversion writes it, with its "mlxbert" block.
        report: the parity report; None where nothing was compared.
        name: of the model; what cannot be printed, a directory's bytes that are no text, is escaped.
        records: sizes and SHA-256 of the files, as the manifest has them or will have them.
        quantization: what it cost, where the model is quantized.

    Raises:
        CheckpointError: the "mlxbert" block is not as the conversion writes it.
        ParityReportError: nor is its "trained" block.
    """
    fix = "fix: convert again"
    parsed = read_json(directory / INDEX, CheckpointError)
    index = from_json(_Index, parsed or {}, place=str(directory / INDEX), fix=fix, error=CheckpointError)
    block, place = config["mlxbert"], f'{directory}: the "mlxbert" block of config.json'
    known = from_json(_Block, block, place=place, fix=fix, error=CheckpointError)
    heads = _head_tensors(directory, index, config)
    prefix = architecture(config.get("model_type")).prefix
    return CardFacts(
        name=printable(name),
        source=known.source,
        revision=known.revision,
        original_class=_original_class(config),
        dtype=str(config.get("dtype")),
        parameters=quantization.parameters if quantization else _encoder_parameters(index, config, heads),
        has_pooler=any(tensor.removeprefix(prefix).startswith(POOLER) for tensor in index.weight_map),
        converter_version=known.converter_version,
        heads=tuple(heads),
        full_layout=is_full_layout(config),
        dropped=known.dropped,
        missing_tokenizer=not any((directory / file).is_file() for file in TOKENIZER_FILES),
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
        readings=readings(traits_of(directory, config, tuple(heads))),
        license_files=tuple(sorted(name for name in records if is_license_file(name))),
        sentence_modules=(directory / "modules.json").is_file(),
        usage=run_usage(directory, config),
    )


def _head_tensors(directory: Path, index: _Index, config: Mapping[str, Any]) -> dict[str, TensorEntry]:
    """The head's tensors, wherever the layout has them."""
    if not is_full_layout(config):
        file = directory / "heads.safetensors"
        return read_safetensors(file) if file.is_file() else {}
    prefix = architecture(config.get("model_type")).prefix
    files = {file for name, file in index.weight_map.items() if not name.startswith(prefix)}
    found = {name: entry for file in sorted(files) for name, entry in read_safetensors(directory / file).items()}
    return {name: entry for name, entry in found.items() if not name.startswith(prefix)}


def _encoder_parameters(index: _Index, config: Mapping[str, Any], heads: Mapping[str, TensorEntry]) -> int:
    """The index counts all that is in its files."""
    total = index.metadata.total_parameters
    return total - (sum(math.prod(entry.shape) for entry in heads.values()) if is_full_layout(config) else 0)


@dataclass(frozen=True)
class _Block:
    """What a card needs of `config.json`'s "mlxbert"."""

    source: str
    revision: str | None
    converter_version: str
    original_architectures: Any
    dropped: Mapping[str, str]


@dataclass(frozen=True)
class _Metadata:
    """The index's own, as the conversion writes it."""

    total_parameters: int


@dataclass(frozen=True)
class _Index:
    """What a card needs of `model.safetensors.index.json`."""

    metadata: _Metadata
    weight_map: Mapping[str, str]


def weight_sums(records: Mapping[str, FileRecord]) -> dict[str, str]:
    """The SHA-256 of every weight file, by its name."""
    weights = (file for file in records if file.endswith(".safetensors") and "/" not in file)
    return {file: records[file].sha256 for file in weights}


def _skipped(config: Mapping[str, Any]) -> Mapping[str, str]:
    """The layers that a quantization left as they were, and why: known without measuring what it cost."""
    quantization = QuantizationConfig.from_hf(config)
    return quantization.skipped if quantization else {}


def trained_head(block: Mapping[str, Any]) -> str | None:
    """The name of a head of ours, which `BertWithHead.save` keeps with its settings."""
    head = block.get("head")
    name = head.get("name") if isinstance(head, dict) else None
    return name if isinstance(name, str) else None


def _classes(block: Mapping[str, Any]) -> tuple[str, ...]:
    """What the trained head tells apart; nothing where it gives numbers."""
    head = block.get("head")
    arguments = head.get("arguments") if isinstance(head, dict) else None
    classes = arguments.get("classes") if isinstance(arguments, dict) else None
    return tuple(map(str, classes)) if isinstance(classes, list) else ()


def _max_length(directory: Path, config: Mapping[str, Any]) -> int | None:
    """How many tokens of a text are read: a sentence-transformers model may cut it before its positions end."""
    try:
        plan = read_sentence_plan(directory, config)
    except SentenceModuleError:  # a module that is not known here, which does not stop a conversion
        plan = None
    limits = [config.get("max_position_embeddings"), plan.max_length if plan else None]
    return min((limit for limit in limits if limit is not None), default=None)


def _original_class(config: dict[str, Any]) -> str:
    """The first of the source's `architectures`, where it can be a class's name; a card must not carry its markup."""
    classes = config["mlxbert"]["original_architectures"]
    first = classes[0] if isinstance(classes, list) and classes else None
    return first if isinstance(first, str) and first.isidentifier() else mapping_for(config).base_class
