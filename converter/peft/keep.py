"""A PEFT adapter in mlxbert's own small form: `adapter.safetensors` beside its settings, the base by its digest."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from converter.convert import default_output
from converter.peft.adapter import AdaptedLayer, PeftAdapter, open_peft
from converter.readers.safetensors import TensorEntry
from converter.readers.source_files import SourceError
from mlxbert.adapters import LoRA
from mlxbert.adapters.files import ADAPTER_FILE, SETTINGS_FILE, adapter_json, add_saved, read_adapter
from mlxbert.checkpoint import base_of, is_license_file, load_core, read_config, side_files
from mlxbert.errors import first_ten, printable
from mlxbert.files.output_directory import OutputDirectory
from mlxbert.files.reading import expand_home, require_own_files
from mlxbert.files.safetensors import PlannedTensor
from mlxbert.models.architecture import architecture
from mlxbert.tokenization.files import TOKENIZER_FILES

_MERGE = "fix: without --keep-adapter it is merged into its base"


def keep_adapter(
    src: str | Path,
    base: str | Path,
    out: str | Path | None = None,
    *,
    revision: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the adapter `src` as files that `mlxbert.load` puts on its base; return the directory.

    Args:
        src: a directory in PEFT's format, or a Hub id.
        base: the converted directory that it belongs to; it may be quantized.
        out: the directory to write; None: `converter.convert.default_output`.
        revision: a branch, tag or commit, if `src` is a Hub id.
        overwrite: replace `out` if this project wrote it.

    Raises:
        SourceError: the adapter cannot be read, has modules that were trained whole, or ranks that differ by layer.
        MLXBertError: the base is not converted, or does not fit; nothing was written.
    """
    adapter, directory = open_peft(src, revision), expand_home(base)
    target = default_output(str(src)) if out is None else expand_home(out)
    config = read_config(directory)
    require_own_files(directory, SourceError)
    settings = _settings(adapter)
    prefix = architecture(config.get("model_type")).prefix
    with OutputDirectory(target, overwrite=overwrite, source=adapter.directory) as output:
        tensors = (
            tensor for path, layer in adapter.layers.items() for tensor in _tensors(path.removeprefix(prefix), layer)
        )
        output.write_safetensors(ADAPTER_FILE, tensors)
        output.write_json(SETTINGS_FILE, adapter_json(settings, base_of(directory)))
        files = sorted(file for file in (*directory.glob("*"), *directory.glob("*/*")) if file.is_file())
        names = [file.relative_to(directory).as_posix() for file in files]
        vocabularies = [name for name in names if name in TOKENIZER_FILES]
        for name in dict.fromkeys((*side_files(names), *vocabularies, *filter(is_license_file, names))):
            output.copy(name, directory / name)  # with the modules of sentence-transformers: they pool and normalize
        add_saved(load_core(directory, lazy=True), read_adapter(output.path), place=str(adapter.directory))
        return output.commit(config)


def _settings(adapter: PeftAdapter) -> LoRA:
    """Return the settings of all layers."""
    if adapter.whole:
        raise SourceError(
            f"{adapter.directory}: has {len(adapter.whole)} tensors of modules that were trained whole, which a kept "
            f"adapter has no place for; {_MERGE}\n{first_ten(adapter.whole)}"
        )
    kinds = {(layer.rank, layer.scale) for layer in adapter.layers.values()}
    if len(kinds) > 1:
        raise SourceError(
            f"{adapter.directory}: its ranks or scales differ by layer, and a kept adapter has one of each; {_MERGE}"
        )
    rank, scale = kinds.pop()
    return LoRA(
        rank=rank,
        alpha=scale * rank,
        dropout=adapter.dropout,
        layers=tuple(printable(path) for path in adapter.layers),
        dora=adapter.is_dora,
        merge=False,
    )


def _tensors(path: str, layer: AdaptedLayer) -> Iterator[PlannedTensor]:
    """Yield the tensors of a layer's adapter under our names, float32."""
    entries = {"lora_a": layer.a, "lora_b": layer.b, "magnitude": layer.magnitude}
    for leaf, entry in entries.items():
        if entry is not None:
            shape = entry.shape if leaf != "magnitude" else (layer.b.shape[0],)
            yield PlannedTensor(f"{path}.{leaf}", shape, "F32", partial(_read, entry, shape))


def _read(entry: TensorEntry, shape: tuple[int, ...]) -> np.ndarray:
    array: np.ndarray = entry.read().astype(np.float32).reshape(shape)
    return array
