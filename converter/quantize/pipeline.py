"""From a planned source to packed tensors: the function that `convert` calls for `--quantize`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.canonical import CODES, cast, float32_core, read
from converter.mapping import Planned
from converter.quantize.calibrated import Calibrated, calibrate
from converter.quantize.recipes import (
    RECIPES,
    VARIANTS,
    CalibrationError,
    QuantizeSettings,
    configure,
    require_packable,
    thinned,
    token_batches,
)
from converter.quantize.rounding import AffineWeight, Array, check_finite, in_chunks, pack, round_fp4, rounded_rows
from converter.source import Source
from mlxbert.files.safetensors import MLX_METADATA, PlannedTensor, header, in_file_order
from mlxbert.models.architecture import architecture
from mlxbert.quantization import MODES, LayerQuantization, QuantizationConfig

if TYPE_CHECKING:
    from converter.quantize.allotment import Allotment

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class Quantized:
    """A packed encoder, to be written in the place of the float one.

    Attributes:
        config: the packing of every layer.
        tensors: the encoder's tensors.
        parameters: the number of its parameters before packing.
        facts: for the "mlxbert" block of `config.json`: recipe, calibration, target, skipped layers.
        allotment: the result of `auto`; None for any other recipe.
        notes: notes for the user.
    """

    config: QuantizationConfig
    tensors: tuple[PlannedTensor, ...]
    parameters: int
    facts: Mapping[str, Any]
    allotment: Allotment | None = None
    notes: tuple[str, ...] = ()

    @property
    def kept(self) -> list[str]:
        """One line for each reason not to pack a layer, with the layers."""
        paths: dict[str, list[str]] = {}
        for path, reason in self.config.skipped.items():
            paths.setdefault(reason, []).append(path)
        return [f"not quantized ({reason}): {', '.join(of_reason)}" for reason, of_reason in paths.items()]


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
        settings: how to quantize.
        dtype: dtype of scales, and of tensors that are not packed.
        other_bytes: bytes of the weight files beside the encoder's tensors: heads.
        progress: called during calibration.

    Raises:
        MLXBertError: nothing can be packed or calibrated, or the target is out of reach; the message has the nearest.
    """
    shapes = _matrices(items)
    require_packable(settings.recipe, shapes)
    declared = architecture(source.config["model_type"])
    layers = settings.recipe.layers(declared.tables)
    config = configure(settings.recipe.default, shapes, layers, declared.kept)
    facts: dict[str, Any] = {"recipe": settings.recipe.name, "calibration": None, "skipped": dict(config.skipped)}
    allotment, calibrated = None, None
    notes: list[str] = []
    if settings.calibration is not None:
        core = float32_core(source)
        limit = core.config.max_length
        tokenizer = _tokenizer(source, core.config.vocab_size, limit)
        texts, notes = thinned(
            settings.calibration, tokenizer, max_length=limit, width=core.config.hidden_size, variants=VARIANTS
        )
        calibration = settings.calibration
        facts["calibration"] = {"name": calibration.name, "texts": len(texts), "sha256": calibration.digest}
        make = partial(token_batches, tokenizer=tokenizer, max_length=limit)
        if settings.target is None:
            batches = make(texts, variants=VARIANTS)
            calibrated = calibrate(core, batches, config, dtype=dtype, progress=partial(progress, "calibrate"))
        else:
            from converter.quantize.auto import Search
            from converter.quantize.quality import pooling_of

            facts["target"] = settings.target.description
            search = Search(
                core=core,
                make=make,
                texts=texts,
                shapes=shapes,
                settings=settings,
                pooling=pooling_of(source.root),
                dtype=dtype,
                plain_bytes=_plain_bytes(items, shapes, dtype),
                file_bytes=other_bytes + _header_bytes(items, shapes, dtype),
                progress=progress,
            )
            allotment, calibrated = search.run()
            config = allotment.config
    tensors = [tensor for item in items for tensor in _written(source, item, config, dtype, calibrated)]
    parameters = sum(PlannedTensor(item.target, item.shape, "F32", _unread).parameters for item in items)
    return Quantized(config, tuple(tensors), parameters, facts, allotment, tuple(notes))


def _matrices(items: Sequence[Planned]) -> dict[str, tuple[int, int]]:
    """Return path -> (rows, width) of every layer with a matrix: those that can be packed."""
    shapes = {}
    for item in items:
        if len(item.shape) == 2 and item.target.endswith(".weight"):
            rows, width = item.shape
            shapes[item.target.removesuffix(".weight")] = (rows, width)
    return shapes


def _tokenizer(source: Source, vocab_size: int, max_length: int) -> Any:
    """Return the source's own tokenizer.

    Raises:
        CalibrationError: it has none, or one with more ids than the model.
    """
    from mlxbert.tokenization.build import tokenizer_names
    from mlxbert.tokenization.files import has_tokenizer
    from mlxbert.tokenization.tokenizer import Tokenizer

    if not has_tokenizer(source.side_files):
        raise CalibrationError(
            f"{source.location}: has no tokenizer to read calibration text with; fix: put "
            f"{tokenizer_names(source.directory, source.config)} beside it, or --calibration none"
        )
    vocabulary = next(name for name in ("tokenizer.json", "vocab.txt", "vocab.json") if name in source.side_files)
    tokenizer = Tokenizer.from_directory(
        source.side_files[vocabulary].parent, max_length=max_length, hf_config=source.config
    )
    if tokenizer.vocab_size > vocab_size:
        raise CalibrationError(
            f"{source.location}: its tokenizer has more ids than the model; fix: put the right one there"
        )
    return tokenizer


def _written(
    source: Source, item: Planned, config: QuantizationConfig, dtype: str, calibrated: Calibrated | None
) -> list[PlannedTensor]:
    """Return the tensors to write for a planned one: packed, corrected by calibration, or unchanged in `dtype`."""
    path = item.target.removesuffix(".weight")
    is_matrix = len(item.shape) == 2 and path != item.target
    layer = config.of(path) if is_matrix else None
    if layer is not None and calibrated is not None and path in calibrated.weights:
        return _calibrated_tensors(path, calibrated.weights[path], layer.bits, dtype)
    if layer is not None:
        return _packed_tensors(path, item.shape, layer, dtype, partial(read, source, item, "float32"))
    if calibrated is not None and item.target in calibrated.biases:
        bias = cast(calibrated.biases[item.target], dtype, item.target)
        return [PlannedTensor(item.target, item.shape, CODES[dtype], lambda: bias)]
    return [PlannedTensor(item.target, item.shape, CODES[dtype], partial(read, source, item, dtype))]


def _calibrated_tensors(path: str, weight: AffineWeight, bits: int, dtype: str) -> list[PlannedTensor]:
    rows, width = weight.codes.shape
    code = CODES[dtype]
    return [
        PlannedTensor(f"{path}.weight", (rows, width * bits // 32), "U32", lambda: pack(weight.codes, bits)),
        PlannedTensor(f"{path}.scales", weight.scales.shape, code, lambda: weight.scales),
        PlannedTensor(f"{path}.biases", weight.biases.shape, code, lambda: weight.biases),
    ]


def _packed_tensors(
    path: str, shape: tuple[int, ...], layer: LayerQuantization, dtype: str, read: Callable[[], Array]
) -> list[PlannedTensor]:
    """Return the tensors of a packed matrix; reading the first rounds the matrix, and the others wait for that.

    Args:
        path: path of the layer.
        shape: (rows, width).
        layer: the packing.
        dtype: dtype of affine scales and biases.
        read: returns the matrix, float32.
    """
    matrix = _RoundedMatrix(path, layer, dtype, read)
    rows, width = shape
    groups = (rows, width // layer.group_size)
    code = CODES[dtype] if layer.has_biases else "U8"
    words = (rows, width * layer.bits // 32)
    names = ["scales", "biases"] if layer.has_biases else ["scales"]
    return [
        PlannedTensor(f"{path}.weight", words, "U32", matrix.words),
        *(PlannedTensor(f"{path}.{name}", groups, code, partial(matrix.rest, name)) for name in names),
    ]


class _RoundedMatrix:
    """One matrix at a time in memory; scales and biases stay until they are written, the words do not."""

    def __init__(self, path: str, layer: LayerQuantization, dtype: str, read: Callable[[], Array]):
        self._path, self._layer, self._dtype, self._read = path, layer, dtype, read
        self._rest: dict[str, Array] = {}

    def words(self) -> Array:
        words, self._rest = pack_rows(self._path, self._read(), self._layer, self._dtype)
        return words

    def rest(self, name: str) -> Array:
        if not self._rest:
            self.words()
        return self._rest[name]


def pack_rows(path: str, weight: Array, layer: LayerQuantization, dtype: str) -> tuple[Array, dict[str, Array]]:
    """Return the words of a float32 matrix, and its "scales" (and "biases"); a chunk of rows at a time is rounded.

    Raises:
        DtypeError: a weight is too large for the dtype of the scales.
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


def _plain_bytes(items: Sequence[Planned], shapes: Mapping[str, Any], dtype: str) -> int:
    """Return the bytes of the tensors that are not matrices."""
    plain = [item for item in items if item.target.removesuffix(".weight") not in shapes]
    return sum(PlannedTensor(item.target, item.shape, CODES[dtype], _unread).nbytes for item in plain)


def _header_bytes(items: Sequence[Planned], shapes: Mapping[str, tuple[int, int]], dtype: str) -> int:
    """Return the bytes of the weight file's header (names, shapes, offsets), or slightly more."""
    widest = configure(RECIPES["8bit"].default, shapes)
    tensors = []
    for item in items:
        path = item.target.removesuffix(".weight")
        layer = widest.of(path) if path in shapes else None
        if layer is not None:
            finest = LayerQuantization(layer.bits, min(MODES[layer.mode][1]))
            tensors += _packed_tensors(path, item.shape, finest, dtype, _unread)
        else:
            tensors.append(PlannedTensor(item.target, item.shape, CODES[dtype], _unread))
    return len(header(in_file_order(tensors), MLX_METADATA))


def _unread() -> Any:
    raise AssertionError("the size of a tensor needs no reading")
