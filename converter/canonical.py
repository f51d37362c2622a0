"""The tensors of a source under their canonical names, and their floating-point formats."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np

from converter.mapping import Plan, Planned, plan
from converter.mappings import mapping_for
from converter.source import Source
from mlxbert.checkpoint import new_encoder
from mlxbert.errors import MLXBertError
from mlxbert.files.safetensors import NUMPY_DTYPES
from mlxbert.models.architecture import config_from_hf
from mlxbert.models.base import Encoder
from mlxbert.models.config_fields import EncoderConfig
from mlxbert.pretrained import HeadChoice, PretrainedBert, attach_head

CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""Name of a floating-point format -> safetensors' name."""
DTYPE_SUFFIXES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
"""Name of a floating-point format -> suffix of a model's name."""

_NAMES = {code: name for name, code in CODES.items()}
_NUMPY = {name: NUMPY_DTYPES[code] for name, code in CODES.items()}
# Elements checked at once: the mask of a whole 94 MB embedding would be another 23 MB.
_CHUNK = 1 << 22


class DtypeError(MLXBertError):
    """A tensor that cannot be written: it is not floating-point, not finite, or too large for the format."""


def plan_source(source: Source) -> tuple[EncoderConfig, Plan]:
    """Return the configuration of a source, and the plan for each of its tensors.

    A tensor that repeats the one it is tied to is dropped; their bytes are compared.

    Raises:
        ConfigError, MappingError, DtypeError: the configuration or a tensor does not fit.
    """
    mapping = mapping_for(source.config)
    config = config_from_hf(source.config)
    planned = plan(mapping, config, {key: entry.shape for key, entry in source.entries.items()})
    planned = _without_tied_copies(source, config, planned)
    return config, replace(planned, dropped={**source.dropped, **planned.dropped})


def _without_tied_copies(source: Source, config: EncoderConfig, planned: Plan) -> Plan:
    """Drop the head tensors that repeat the tensor they are tied to; keep those that differ from it.

    transformers (>= 5) does the same: with `tie_word_embeddings`, it keeps a decoder of the file that differs from the
    embeddings.
    """
    if not config.tie_word_embeddings:
        return planned
    by_target = {item.target: item for item in (*planned.encoder, *planned.heads)}
    heads, dropped = [], dict(planned.dropped)
    for item in planned.heads:
        twin = by_target.get(item.tied_to) if item.tied_to else None
        if twin is not None and twin.shape == item.shape and _digest(source, item) == _digest(source, twin):
            dropped[item.source] = f"tied: a copy of {twin.target}"
        else:
            heads.append(item)
    return Plan(planned.encoder, tuple(heads), dropped)


def _digest(source: Source, item: Planned) -> bytes:
    # Digests, so that two 94 MB embeddings are never in memory together.
    array = np.ascontiguousarray(source.entries[item.source].read())
    return hashlib.sha256(array.reshape(-1).view(np.uint8).data).digest()


def output_dtype(codes: Iterable[str], requested: str | None) -> str:
    """Return the one dtype of the output.

    Args:
        codes: safetensors' names of the source tensors' dtypes.
        requested: the user's dtype; None: the source's. float64 becomes float32 (MLX has no float64 on a GPU); a
            mixture becomes float32.
    """
    if requested is not None:
        return requested
    names = {_NAMES.get(code, "float32") for code in codes}
    return names.pop() if names in ({"float16"}, {"bfloat16"}) else "float32"


def read(source: Source, item: Planned, dtype: str) -> np.ndarray[Any, Any]:
    """Return one planned tensor in `dtype`; raise DtypeError if it is not finite or overflows."""
    array = source.entries[item.source].read()
    if item.parts > 1:
        array = np.split(array, item.parts, axis=0)[item.part]
    return cast(array, dtype, item.source)


def cast(array: np.ndarray, dtype: str, key: str) -> np.ndarray:
    """Return `array` in `dtype`, every element finite; the same array if it has that dtype.

    Raises:
        DtypeError: the tensor `key` is not floating-point, holds NaN or inf, or overflows `dtype`.
    """
    if array.dtype not in _NUMPY.values():
        raise DtypeError(
            f"{key} has dtype {array.dtype}: a weight must be float64, float32, float16 or bfloat16; "
            "fix: convert the unquantized checkpoint"
        )
    target = _NUMPY[dtype]
    flat = array.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        finite = np.isfinite(chunk)
        if not finite.all():
            bad = chunk[~finite][0]
            place = tuple(int(i) for i in np.unravel_index(start + int(finite.argmin()), array.shape))
            raise DtypeError(f"{key} holds {bad} at {place}: this checkpoint is broken; fix: get the checkpoint again")
    if array.dtype == target:
        return array
    with np.errstate(over="ignore"):
        result = array.astype(target)
    flat_result = result.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        if not np.isfinite(flat_result[start : start + _CHUNK]).all():
            largest = np.abs(flat).max()
            raise DtypeError(
                f"{key} overflows {dtype}: its largest magnitude is {float(largest):.6g}, {dtype} holds up to "
                f"{float(ml_dtypes.finfo(target).max):.6g}; fix: --dtype bfloat16 or float32"
            )
    return result


def float32_core(source: Source) -> Encoder:
    """Return the source as a float32 MLX encoder, through the mapping; the mapping gate compares it."""

    import mlx.core as mx  # imported here, because importing mlxbert first explains which backend to install

    config, planned = plan_source(source)
    core = new_encoder(config, (item.target for item in planned.encoder))
    core.load_weights([(item.target, mx.array(read(source, item, "float32"))) for item in planned.encoder])
    core.eval()
    mx.eval(core.parameters())
    return core


def float32_model(source: Source, choice: HeadChoice) -> PretrainedBert:
    """Return `float32_core` with the source's own head, as a model of the chosen class.

    Raises:
        CheckpointError: the head's tensors are not those of the class.
    """

    import mlx.core as mx

    _, planned = plan_source(source)
    tensors = {item.target: mx.array(read(source, item, "float32")) for item in planned.heads}
    return attach_head(float32_core(source), tensors, choice, source.config, place=source.location, dtype=mx.float32)
