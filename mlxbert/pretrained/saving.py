"""Write a model with its checkpoint's own head as a converted directory again, packed where it was packed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from mlxbert.checkpoint import encoder_layout, is_license_file, read_config, side_files
from mlxbert.core import BertCore
from mlxbert.files.output_directory import OutputDirectory
from mlxbert.files.safetensors_writer import PlannedTensor
from mlxbert.model_tensors import DTYPE_CODES, named_parameters, planned_tensors, read_array, stored_dtype


def save_pretrained(
    core: BertCore,
    head: nn.Module,
    stored_head: Mapping[str, mx.array],
    source: Path,
    directory: str | Path,
    *,
    overwrite: bool = False,
) -> Path:
    """Write encoder, head, `config.json` and the files beside them, whole or not at all; returns the real path.

    Args:
        core: the encoder; a quantized one is written packed, the same bytes.
        head: its parameters have Hugging Face's names.
        stored_head: the tensors that it was loaded from; those that it still holds are written as they were.
        source: the converted directory that the model came from.
        directory: where to write.
        overwrite: replace a converted model that is there.

    Raises:
        WriteError: the directory exists and `overwrite` is not given, or cannot be written.
        ChangedWeightsError: a quantized encoder has other weights than it was loaded with.
    """
    packed = core.packed
    if packed is not None:
        packed.check_unchanged(core)
    encoder = planned_tensors(core) if packed is None else packed.planned()
    current = named_parameters(head)
    kept = {name: tensor for name, tensor in stored_head.items() if _is_held(current.get(name), tensor)}
    heads = [
        PlannedTensor(name, tuple(tensor.shape), DTYPE_CODES[tensor.dtype], partial(read_array, tensor))
        for name, tensor in kept.items()
    ]
    heads += [tensor for tensor in planned_tensors(head) if tensor.name not in kept]
    config = encoder_layout(read_config(source))
    config["dtype"] = stored_dtype(core) if packed is None else packed.dtype
    if "torch_dtype" in config:
        config["torch_dtype"] = config["dtype"]
    with OutputDirectory(Path(directory), overwrite=overwrite, source=source) as output:
        output.write_model(encoder, parameters=None if packed is None else packed.parameters)
        output.write_safetensors("heads.safetensors", heads)
        files = [file for file in (*source.glob("*"), *source.glob("*/*")) if file.is_file()]
        names = [file.relative_to(source).as_posix() for file in files]
        for name in (*side_files(names), *filter(is_license_file, names)):
            output.copy(name, source / name)
        return output.commit(config)


def _is_held(current: mx.array | None, stored: mx.array) -> bool:
    """Whether the head still has this tensor's numbers, or never had a use for it (another head's)."""
    return current is None or bool(mx.array_equal(current, stored.astype(current.dtype)).item())
