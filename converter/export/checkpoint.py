"""Export a converted directory as a Hugging Face PyTorch checkpoint, with its heads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converter.mapping import hugging_face_names, plan
from converter.mappings import mapping_for
from converter.output import added_fields
from converter.publish.leaks import refuse_secrets
from converter.readers.source_files import read_json_object
from converter.source import Source, open_source
from mlxbert.errors import MLXBertError, first_ten
from mlxbert.files.output_directory import OutputDirectory
from mlxbert.files.reading import expand_home, require_own_files
from mlxbert.files.safetensors import PlannedTensor
from mlxbert.models.architecture import architecture, config_from_hf

PYTORCH_METADATA = {"format": "pt"}
_TRAINED = ("head.", "pooling.")


class ExportError(MLXBertError):
    """A directory that cannot become a Hugging Face checkpoint."""


def export(converted: str | Path, out: str | Path, *, overwrite: bool = False) -> Path:
    """Write the Hugging Face directory that `converted` came from (names, classes, tokenizer), and return its path.

    The tensors are those of `converted`, bit for bit, in its dtype: for a float32 conversion of a float32
    source, those of the source. Copies of tied tensors are left out, as transformers does when it saves.

    Raises:
        ExportError: `converted` was not written by mlxbert-convert, is quantized, or has a head of mlxbert's own.
        MLXBertError: it is damaged, or `out` cannot be written; nothing was written, nothing lost.
    """
    converted, out = expand_home(converted), expand_home(out)
    config = _converted_config(converted)
    source = open_source(str(converted))
    refuse_secrets(source.side_files, config, converted)
    with OutputDirectory(out, overwrite=overwrite, source=converted) as output:
        output.write_model(_tensors(source), metadata=PYTORCH_METADATA, always_index=False)
        for name, file in source.side_files.items():
            output.copy(name, file)
        return output.commit(_hugging_face_config(config))


def _converted_config(converted: Path) -> dict[str, Any]:
    if not converted.is_dir():
        what = "a file" if converted.exists() else "no such directory"
        raise ExportError(f"{converted}: {what}; fix: give one that mlxbert-convert wrote")
    require_own_files(converted, ExportError)
    config = read_json_object(converted / "config.json")
    if not isinstance(config.get("mlxbert"), dict):
        raise ExportError(
            f'{converted}: was not written by mlxbert-convert (no "mlxbert" in its config.json); '
            "fix: give a converted directory"
        )
    if "quantization" in config or "quantization_config" in config:
        raise ExportError(
            f"{converted}: is quantized, which has no PyTorch form; fix: export the unquantized conversion, "
            "or mlxbert-convert … --dequantize first"
        )
    return config


def _tensors(source: Source) -> list[PlannedTensor]:
    """Return every tensor of a converted directory under its Hugging Face name."""
    is_head = architecture(source.config.get("model_type")).is_head_tensor
    # Without settings, only the names tell a head that mlxbert trained.
    unknown = [key for key in source.entries if key.startswith(_TRAINED) and not is_head(key)]
    if trained := [*source.own_head, *unknown]:
        raise ExportError(
            f"{source.directory}: heads.safetensors has a head that mlxbert trained, {_trained_head(source.config)}\n"
            + first_ten(trained)
        )
    mapping = mapping_for(source.config)
    shapes = {key: entry.shape for key, entry in source.entries.items()}
    planned = plan(mapping, config_from_hf(source.config), shapes)
    classes = _original_classes(source.config)
    # If the class is missing (a bare state dict had no config) or wrong, the heads determine it.
    is_base = not planned.heads and classes in (None, [mapping.base_class])
    names = hugging_face_names(
        mapping,
        mapping.base_class if is_base else "a class with a head",
        (item.target for item in planned.encoder),
    )
    names |= {item.target: item.target for item in planned.heads}
    return [
        PlannedTensor(names[item.target], item.shape, entry.dtype, entry.read)
        for item in (*planned.encoder, *planned.heads)
        for entry in [source.entries[item.source]]
    ]


def _trained_head(config: Mapping[str, Any]) -> str:
    """Return why a trained head is not written here, and which command writes it."""
    if "head" in config["mlxbert"]:
        return "which this function does not write; fix: mlxbert-export, or export_directory(…)"
    return "and config.json lacks its settings; fix: save the model again"


def _hugging_face_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `config` as it was before the conversion, but with the dtype of these files."""
    ours = ("mlxbert", "architectures", *added_fields(config["mlxbert"]))
    restored = {key: value for key, value in config.items() if key not in ours}
    classes = _original_classes(config)
    return restored if classes is None else {**restored, "architectures": classes}


def _original_classes(config: Mapping[str, Any]) -> list[str] | None:
    """Return `architectures` of the source; None if it had none."""
    classes = config["mlxbert"].get("original_architectures")
    return [str(name) for name in classes] if isinstance(classes, list) and classes else None
