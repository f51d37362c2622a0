"""The `config.json` of a conversion, and what its user should know: both follow from the source and the plan."""

from __future__ import annotations

import re
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from converter.facts import TOKENIZER_FILES
from converter.mapping import Plan
from converter.mappings import mapping_for
from converter.source import Source
from converter.source_card import SourceCard

if TYPE_CHECKING:
    from converter.quantize.pipeline import Quantized

FORMAT_VERSION = 1


def output_config(
    source: Source, planned: Plan, dtype: str, card: SourceCard, quantized: Quantized | None
) -> dict[str, Any]:
    """The source's `config.json`, its keys kept, with `dtype` and `architectures` made true."""
    mapping = mapping_for(source.config)
    config = {**source.config, "architectures": [mapping.base_class], "dtype": dtype}
    if "torch_dtype" in config:  # what transformers < 4.56 reads
        config["torch_dtype"] = dtype
    config = without_places(config)
    # Our own output as SRC, to change its dtype: its class is "BertModel" now, and the first one is in its block.
    earlier = source.config.get("mlxbert")
    classes = (earlier if isinstance(earlier, dict) else {}).get("original_architectures")
    came_from = {"source": source.name, "revision": source.revision}
    if isinstance(earlier, dict) and source.revision is None and earlier.get("source") and "head" not in earlier:
        # Converted once more, it still is what the first conversion's source is, as a comparison has yet to show
        # (`converter.publishing.evidence`). What was trained here is not.
        came_from = {"source": earlier["source"], "revision": earlier.get("revision")}
    config["mlxbert"] = {
        "format_version": FORMAT_VERSION,
        "source": came_from["source"],
        "revision": came_from["revision"],
        "converter_version": converter_version(),
        "original_architectures": classes or source.config.get("architectures"),
        "dropped": planned.dropped,
        "source_card": card.as_block(),
    }
    # "layout" and "quantization" of an earlier conversion are not of this one.
    if isinstance(earlier, dict):  # a comparison with the first source has to leave out the same
        config["mlxbert"] |= {key: earlier[key] for key in ("prefix", "encoder_only") if key in earlier}
    config["mlxbert"] |= source.choices
    if isinstance(earlier, dict) and source.own_head:
        config["mlxbert"] |= {key: earlier[key] for key in ("head", "trained") if key in earlier}
    if quantized is not None:
        config["quantization"] = quantized.config.to_mlx()
        config["quantization_config"] = quantized.config.to_mlx()
        config["mlxbert"]["quantization"] = dict(quantized.facts)
    return config


def without_places(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a source's JSON file, paths of the machine that wrote it cut to their last part.

    A path tells who trained the model, and where; transformers leaves some in `config.json` ("_name_or_path") and in
    `tokenizer_config.json` ("name_or_path", "special_tokens_map_file", "tokenizer_file").
    """
    return {name: _last_part(value) if _is_place(name, value) else value for name, value in values.items()}


def _is_place(name: str, value: object) -> bool:
    named = name.endswith(("name_or_path", "_file"))
    return named and isinstance(value, str) and re.match(r"/|~|\.\.|file:|[A-Za-z]:|.*\\", value) is not None


def _last_part(path: str) -> str:
    return PurePath(path.replace("\\", "/")).name


def notes_on(source: Source, planned: Plan, dtype: str) -> list[str]:
    """One line for each thing that the user should know."""
    notes = []
    kinds = Counter(source.entries[item.source].dtype for item in planned.encoder)
    if "F64" in kinds and dtype == "float32":
        notes.append(f"{kinds['F64']} float64 tensors become float32: MLX has no float64 on a GPU")
    elif len(kinds) > 1:
        notes.append(f"the source mixes {', '.join(sorted(kinds))}: all become {dtype}")
    if not any(item.target.startswith("pooler.") for item in planned.encoder):
        notes.append("the source has no pooler, so neither has the output")
    if not any(name in source.side_files for name in TOKENIZER_FILES):
        notes.append(
            "the source has no tokenizer (tokenizer.json or vocab.txt): copy one into the output to encode text"
        )
    return notes


def converter_version() -> str:
    """The installed version of mlxbert."""
    try:
        return version("mlxbert")
    except PackageNotFoundError:
        return "0+uninstalled"
