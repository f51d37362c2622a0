"""Rounding without calibration: one matrix in memory at a time, in chunks of rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from converter.dtypes import CODES
from converter.quantize.affine import Array, check_finite, in_chunks, pack, rounded_rows
from converter.quantize.fp4 import round_fp4
from mlxbert.files.safetensors_writer import PlannedTensor
from mlxbert.quantization import LayerQuantization


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
