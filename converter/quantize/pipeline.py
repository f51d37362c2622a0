"""Rounding without calibration: one matrix in memory at a time, in chunks of rows.

From a planned source to packed tensors: what `convert` calls where `--quantize` is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.canonical import CODES, cast, float32_core, read
from converter.mapping import Planned
from converter.quantize.calibrated import Calibrated, calibrate
from converter.quantize.recipes import RECIPES, QuantizeSettings, configure, require_packable
from converter.quantize.rounding import AffineWeight, Array, check_finite, in_chunks, pack, round_fp4, rounded_rows
from converter.quantize.texts import VARIANTS, CalibrationError, TokenBatch, thinned, token_batches
from converter.source import Source
from mlxbert.files.safetensors import MLX_METADATA, PlannedTensor, header, in_file_order
from mlxbert.quantization import MODES, LayerQuantization, QuantizationConfig


def packed_tensors(
    path: str, shape: tuple[int, ...], layer: LayerQuantization, dtype: str, read: Callable[[], Array]
) -> list[PlannedTensor]:
    """The tensors of one packed matrix; reading the first rounds it, and the others wait for that.

    Args:
        path: of the layer.
        shape: (rows, width).
        layer: how it is packed.
        dtype: of affine scales and biases.
        read: gives the matrix, float32.
    """
    rounding = _Rounding(path, layer, dtype, read)
    rows, width = shape
    groups = (rows, width // layer.group_size)
    scales = CODES[dtype] if layer.has_biases else "U8"
    words = (rows, width * layer.bits // 32)
    names = ["scales", "biases"] if layer.has_biases else ["scales"]
    return [
        PlannedTensor(f"{path}.weight", words, "U32", rounding.weight),
        *(PlannedTensor(f"{path}.{name}", groups, scales, partial(rounding.rest, name)) for name in names),
    ]


class _Rounding:
    """One matrix; scales and biases are kept until they are asked for, the words are not."""

    def __init__(self, path: str, layer: LayerQuantization, dtype: str, read: Callable[[], Array]):
        self._path, self._layer, self._dtype, self._read = path, layer, dtype, read
        self._rest: dict[str, Array] = {}

    def weight(self) -> Array:
        words, self._rest = pack_rows(self._path, self._read(), self._layer, self._dtype)
        return words

    def rest(self, name: str) -> Array:
        if not self._rest:
            self.weight()
        return self._rest[name]


def pack_rows(path: str, weight: Array, layer: LayerQuantization, dtype: str) -> tuple[Array, dict[str, Array]]:
    """Words of a float32 matrix, and its "scales" (and "biases").

    Raises:
        DtypeError: a weight is too large for the scales' dtype.
    """
    parts = in_chunks(partial(_pack_chunk, layer=layer, dtype=dtype), weight)
    packed: dict[str, Any] = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if layer.has_biases:
        check_finite(path, packed["scales"], packed["biases"], dtype)
    return packed.pop("weight"), packed


def _pack_chunk(chunk: Array, *, layer: LayerQuantization, dtype: str) -> dict[str, Array]:
    if layer.has_biases:
        affine = rounded_rows(chunk, layer, dtype=dtype)
        return {"weight": pack(affine.codes, layer.bits), "scales": affine.scales, "biases": affine.biases}
    if layer.bits == 4:
        codes, scales = round_fp4(chunk, layer.group_size, layer.mode)
        return {"weight": pack(codes, 4), "scales": scales}
    import mlx.core as mx

    quantized = mx.quantize(mx.array(chunk), layer.group_size, layer.bits, mode=layer.mode)
    return {"weight": np.array(quantized[0]), "scales": np.array(quantized[1])}


if TYPE_CHECKING:
    from converter.quantize.allotment import Allotment

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Quantized:
    """What is written in the place of a float encoder.

    Attributes:
        config: which layers are packed, and how.
        tensors: of the encoder.
        parameters: their true number.
        facts: for the "mlxbert" block of `config.json`: recipe, calibration, target, reasons.
        allotment: how `auto` came to it.
        notes: what the user should know.
    """

    config: QuantizationConfig
    tensors: tuple[PlannedTensor, ...]
    parameters: int
    facts: Mapping[str, Any]
    allotment: Allotment | None = None
    notes: tuple[str, ...] = ()

    @property
    def kept(self) -> list[str]:
        """A line for each reason why layers keep their numbers."""
        reasons: dict[str, list[str]] = {}
        for path, why in self.config.skipped.items():
            reasons.setdefault(why, []).append(path)
        return [f"not quantized ({why}): {', '.join(paths)}" for why, paths in reasons.items()]

    @property
    def size(self) -> int:
        """Bytes of the encoder's tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)


def quantize(
    source: Source,
    items: Sequence[Planned],
    settings: QuantizeSettings,
    *,
    dtype: str,
    other_bytes: int = 0,
    progress: Progress,
) -> Quantized:
    """Pack the encoder of a source.

    Args:
        source: the checkpoint.
        items: its encoder tensors.
        settings: how.
        dtype: of scales, and of what is not packed.
        other_bytes: of weight files beside the encoder's tensors: heads.
        progress: told of calibration.

    Raises:
        MLXBertError: nothing can be packed, or calibrated, or the target cannot be reached: it says the nearest.
    """
    shapes = matrices(items)
    require_packable(settings.recipe, shapes)
    allotment, calibrated = None, None
    texts: tuple[str, ...] = ()
    notes: list[str] = []
    if settings.calibration is None:
        config = configure(settings.recipe, shapes)
    else:
        core = float32_core(source)
        limit = core.config.max_length
        tokenizer = tokenizer_of(source, limit)
        make = partial(token_batches, tokenizer=tokenizer, max_length=limit)
        texts, notes = thinned(
            settings.calibration, tokenizer, max_length=limit, width=core.config.hidden_size, variants=VARIANTS
        )
        if settings.target is not None:
            from converter.quantize.auto import allot
            from converter.quantize.quality import pooling_of

            allotment, calibrated = allot(
                core,
                make,
                texts,
                shapes,
                settings,
                pooling=pooling_of(source.root),
                dtype=dtype,
                plain_bytes=_plain_bytes(items, shapes, dtype),
                file_bytes=other_bytes + _header_bytes(items, shapes, dtype),
                progress=progress,
            )
            config = allotment.config
        else:
            config = configure(settings.recipe, shapes)
            batches: list[TokenBatch] = make(texts, variants=VARIANTS)
            calibrated = calibrate(core, batches, config, dtype=dtype, progress=partial(progress, "calibrate"))
    tensors = [tensor for item in items for tensor in _written(source, item, config, dtype, calibrated)]
    facts: dict[str, Any] = {"recipe": settings.recipe.name, "calibration": None, "skipped": dict(config.skipped)}
    if settings.calibration is not None:
        facts["calibration"] = {
            "name": settings.calibration.name,
            "texts": len(texts),
            "sha256": settings.calibration.digest,
        }
    if settings.target is not None:
        facts["target"] = settings.target.words
    parameters = sum(PlannedTensor(item.target, item.shape, "F32", _unread).parameters for item in items)
    return Quantized(config, tuple(tensors), parameters, facts, allotment, tuple(notes))


def matrices(items: Sequence[Planned]) -> dict[str, tuple[int, int]]:
    """Path of every layer with a matrix to its (rows, width): what can be packed."""
    found = {}
    for item in items:
        if len(item.shape) == 2 and item.target.endswith(".weight"):
            rows, width = item.shape
            found[item.target.removesuffix(".weight")] = (rows, width)
    return found


def tokenizer_of(source: Source, max_length: int) -> Any:
    """The source's own tokenizer.

    Raises:
        CalibrationError: it has none, or one with more ids than the model.
    """
    from mlxbert.tokenization.tokenizer import Tokenizer

    if not any(name in source.side_files for name in ("tokenizer.json", "vocab.txt")):
        raise CalibrationError(
            f"{source.location}: has no tokenizer to read calibration text with; fix: put its tokenizer.json or "
            "vocab.txt beside it, or --calibration none"
        )
    place: Path = next(source.side_files[n].parent for n in ("tokenizer.json", "vocab.txt") if n in source.side_files)
    tokenizer = Tokenizer.from_directory(place, max_length=max_length)
    if tokenizer.vocab_size > source.config.get("vocab_size", 30522):
        raise CalibrationError(
            f"{source.location}: its tokenizer has more ids than the model; fix: put the right one there"
        )
    return tokenizer


def _written(
    source: Source, item: Planned, config: QuantizationConfig, dtype: str, calibrated: Calibrated | None
) -> list[PlannedTensor]:
    """One planned tensor as it is written: packed, changed by calibration, or as it was in `dtype`."""
    path = item.target.removesuffix(".weight")
    is_matrix = len(item.shape) == 2 and path != item.target
    layer = config.of(path) if is_matrix else None
    if layer is not None and calibrated is not None:
        return _from_memory(path, calibrated.weights[path], layer.bits, dtype)
    if layer is not None:
        return packed_tensors(path, item.shape, layer, dtype, partial(read, source, item, "float32"))
    if calibrated is not None and item.target in calibrated.biases:
        bias = cast(calibrated.biases[item.target], dtype, item.target)
        return [PlannedTensor(item.target, item.shape, CODES[dtype], lambda: bias)]
    return [PlannedTensor(item.target, item.shape, CODES[dtype], partial(read, source, item, dtype))]


def _from_memory(path: str, weight: AffineWeight, bits: int, dtype: str) -> list[PlannedTensor]:
    rows, width = weight.codes.shape
    code = CODES[dtype]
    return [
        PlannedTensor(f"{path}.weight", (rows, width * bits // 32), "U32", lambda: pack(weight.codes, bits)),
        PlannedTensor(f"{path}.scales", weight.scales.shape, code, lambda: weight.scales),
        PlannedTensor(f"{path}.biases", weight.biases.shape, code, lambda: weight.biases),
    ]


def _plain_bytes(items: Sequence[Planned], shapes: Mapping[str, Any], dtype: str) -> int:
    """Bytes of what is no matrix."""
    plain = [item for item in items if item.target.removesuffix(".weight") not in shapes]
    return sum(PlannedTensor(item.target, item.shape, CODES[dtype], _unread).nbytes for item in plain)


def _header_bytes(items: Sequence[Planned], shapes: Mapping[str, tuple[int, int]], dtype: str) -> int:
    """What the head of the weight file takes: names, shapes and offsets; a few bytes more than any packing's."""
    widest = configure(RECIPES["8bit"], shapes)
    tensors = []
    for item in items:
        path = item.target.removesuffix(".weight")
        layer = widest.of(path) if path in shapes else None
        if layer is not None:
            finest = LayerQuantization(layer.bits, min(MODES[layer.mode][1]))
            tensors += packed_tensors(path, item.shape, finest, dtype, _unread)
        else:
            tensors.append(PlannedTensor(item.target, item.shape, CODES[dtype], _unread))
    return len(header(in_file_order(tensors), MLX_METADATA))


def _unread() -> Any:
    raise AssertionError("a tensor that is only counted")
