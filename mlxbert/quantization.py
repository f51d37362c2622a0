"""Which layers of a checkpoint are quantized and how, and its packed weights.

`QuantizationConfig` is what `config.json` says. The form on disk is mlx-lm's (`mlx_lm/utils.py`, `load_model`), so
that its relatives load the same directory: `"quantization": {"group_size": 64, "bits": 4, "mode": "affine",
"a.layer": {"group_size": 64, "bits": 6, "mode": "affine"}, "another.layer": false}`. A layer has two entries: under
its path here, which every Python package uses, and under its path in mlx-swift-lm's MLXEmbedders, which Mac apps use.
Swift ignores keys that it does not know.

`PackedWeights` checks the quantized tensors, turns them back into numbers, or puts them into the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlxbert.errors import MLXBertError, first_ten, shown
from mlxbert.files.safetensors import PlannedTensor
from mlxbert.model_arrays import named_parameters, read_array
from mlxbert.models.architecture import Architecture, architecture, supported
from mlxbert.models.base import put_module

AFFINE = "affine"

# What MLX computes: mode -> (bits, group sizes); https://ml-explore.github.io/mlx, mlx.core.quantize.
MODES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    AFFINE: ((2, 3, 4, 5, 6, 8), (32, 64, 128)),
    "mxfp4": ((4,), (32,)),
    "mxfp8": ((8,), (32,)),
    "nvfp4": ((4,), (16,)),
}

_EMPTY: Mapping[str, Any] = MappingProxyType({})


class QuantizationError(MLXBertError):
    """A quantization that MLX does not compute, or that does not fit the tensors."""


@dataclass(frozen=True)
class LayerQuantization:
    """How one layer's weight is packed.

    Attributes:
        bits: of one weight.
        group_size: weights of a row that share a scale (and in affine mode a bias).
        mode: "affine", "mxfp4", "mxfp8" or "nvfp4".
    """

    bits: int
    group_size: int
    mode: str = AFFINE

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise QuantizationError(f"quantization mode {self.mode!r} is unknown; known: {', '.join(MODES)}")
        bits, groups = MODES[self.mode]
        for name, value, known in (("bits", self.bits, bits), ("group_size", self.group_size, groups)):
            if type(value) is not int or value not in known:
                allowed = ", ".join(map(str, known))
                raise QuantizationError(f"quantization mode {self.mode}: {name} {value!r} is none of {allowed}")

    @property
    def has_biases(self) -> bool:
        """Whether a group has a bias beside its scale."""
        return self.mode == AFFINE

    def fits(self, width: int) -> bool:
        """Return whether rows of this width divide into whole groups, and these into whole 32-bit words."""
        return width % self.group_size == 0

    def bytes_of(self, rows: int, width: int, scale_bytes: int = 2) -> int:
        """Return the bytes of a packed (rows, width) weight with its scales and biases."""
        groups = rows * width // self.group_size
        overhead = 2 * scale_bytes if self.has_biases else 1
        return rows * width * self.bits // 8 + groups * overhead

    def to_mlx(self) -> dict[str, Any]:
        """Return mlx-lm's form."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}

    @classmethod
    def from_mlx(cls, parsed: Mapping[str, Any], where: str) -> LayerQuantization:
        """Read mlx-lm's form; `mode` is missing in older files.

        Raises:
            QuantizationError: a number is missing, or MLX does not compute it.
        """
        missing = [name for name in ("group_size", "bits") if name not in parsed]
        if missing:
            raise QuantizationError(f"config.json: {where} has no {' and no '.join(missing)}; fix: convert again")
        try:
            return cls(parsed["bits"], parsed["group_size"], parsed.get("mode", AFFINE))
        except (QuantizationError, TypeError) as error:
            raise QuantizationError(f"config.json: {where}: {error}") from error


@dataclass(frozen=True)
class QuantizationConfig:
    """How a checkpoint is quantized.

    Attributes:
        default: for every layer that has no entry of its own.
        overrides: path of a layer -> how it is packed.
        skipped: path of a layer that is not packed -> the reason.
    """

    default: LayerQuantization
    overrides: Mapping[str, LayerQuantization] = field(default_factory=lambda: _EMPTY)
    skipped: Mapping[str, str] = field(default_factory=lambda: _EMPTY)

    def of(self, path: str) -> LayerQuantization | None:
        """Return how the layer at `path` is packed; None: it is not."""
        return None if path in self.skipped else self.overrides.get(path, self.default)

    def to_mlx(self, declared: Architecture) -> dict[str, Any]:
        """Return `config.json`'s "quantization" (and "quantization_config"), each layer under both its paths."""
        layers: dict[str, Any] = {path: layer.to_mlx() for path, layer in self.overrides.items()}
        layers |= dict.fromkeys(self.skipped, False)
        return {
            **self.default.to_mlx(),
            **layers,
            **{declared.swift_path(path): value for path, value in layers.items()},
        }

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> QuantizationConfig | None:
        """Read a parsed `config.json`; None: not quantized. The reasons are in its "mlxbert" block.

        Raises:
            QuantizationError: MLX does not compute this quantization.
        """
        parsed = config.get("quantization")
        if parsed is None:
            return None
        if not isinstance(parsed, dict):
            raise QuantizationError(
                f"config.json: quantization must be an object, not {shown(parsed)}; fix: convert again"
            )
        default = LayerQuantization.from_mlx(parsed, "quantization")
        overrides, skipped = {}, {}
        reasons = _reasons(config)
        model_type = config.get("model_type")
        declared = architecture(model_type) if model_type in supported() else None
        for path, value in parsed.items():
            canonical = path if declared is None else declared.from_swift_path(path)
            if canonical != path and canonical in parsed:  # stored twice, for Python and for Swift
                if value != parsed[canonical]:
                    raise QuantizationError(
                        f"config.json: quantization says {parsed[canonical]} of {canonical}, and {value} of {path}, "
                        "which is Swift's name for it; fix: convert again"
                    )
            elif isinstance(value, dict):
                overrides[path] = LayerQuantization.from_mlx(value, f"quantization of {path}")
            elif value is False:
                skipped[path] = reasons.get(path, "config.json says so")
        return cls(default, overrides, skipped)


def _reasons(config: Mapping[str, Any]) -> Mapping[str, str]:
    block = config.get("mlxbert")
    facts = block.get("quantization") if isinstance(block, dict) else None
    skipped = facts.get("skipped") if isinstance(facts, dict) else None
    return {str(path): str(why) for path, why in skipped.items()} if isinstance(skipped, dict) else {}


# Rows dequantized at once: a whole 30,522 × 1,024 embedding would need much memory for its codes.
_ROWS = 4096

_CODES = {mx.uint32: "U32", mx.uint8: "U8", mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16"}


class ChangedWeightsError(MLXBertError):
    """A quantized model cannot be saved: its weights changed after they were packed."""


@dataclass(frozen=True)
class PackedWeights:
    """The tensors of a quantized checkpoint as they are in its files.

    Kept beside the model, so that saving writes the same bytes in every dtype: packing again would round twice.

    Attributes:
        config: which layers, and how.
        tensors: every tensor of the encoder, in the order of the files.
        block: `config.json`'s "quantization" as it was.
    """

    config: QuantizationConfig
    tensors: Mapping[str, mx.array]
    block: Mapping[str, Any]

    @property
    def layers(self) -> dict[str, LayerQuantization]:
        """How each packed layer is packed, by its path."""
        packed = {}
        for name in self.tensors:
            path = name.removesuffix(".scales")
            if path != name and (layer := self.config.of(path)) is not None:
                packed[path] = layer
        return packed

    @property
    def parameters(self) -> int:
        """The true number of parameters: of a packed layer its weights, not its words or scales."""
        layers = self.layers
        count = 0
        for name, tensor in self.tensors.items():
            path, _, leaf = name.rpartition(".")
            if path not in layers:
                count += tensor.size
            elif leaf == "weight":
                count += tensor.size * 32 // layers[path].bits
            elif leaf == "bias":
                count += tensor.size
        return count

    @property
    def dtype(self) -> str:
        """The dtype of scales and of tensors that are not packed, for `config.json`."""
        dtypes = {str(t.dtype).removeprefix("mlx.core.") for t in self.tensors.values() if _is_float(t)}
        return dtypes.pop() if len(dtypes) == 1 else "float32"

    def problems(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """Return a line for each missing, unexpected or misshapen tensor; `shapes` are the unpacked model's."""
        layers, expected = self.layers, {}
        named = {**self.config.overrides, **self.config.skipped}
        problems = [
            f"quantization names {path}, which is no layer" for path in named if f"{path}.weight" not in shapes
        ]
        for name, shape in shapes.items():
            path = name.removesuffix(".weight")
            layer = layers.get(path) if path != name and len(shape) == 2 else None  # a vector has no rows to pack
            if layer is None:
                expected[name] = (shape, "a floating-point dtype")
                continue
            if not layer.fits(shape[1]):
                problems.append(f"{path}: rows of {shape[1]} do not divide into groups of {layer.group_size}")
                continue
            groups = (shape[0], shape[1] // layer.group_size)
            scales = "a floating-point dtype" if layer.has_biases else "uint8"
            expected[name] = ((shape[0], shape[1] * layer.bits // 32), "uint32")
            expected[f"{path}.scales"] = (groups, scales)
            if layer.has_biases:
                expected[f"{path}.biases"] = (groups, scales)
        problems += [f"missing: {name}" for name in expected if name not in self.tensors]
        problems += [f"unexpected: {name}" for name in sorted(self.tensors) if name not in expected]
        for name, (shape, dtype) in expected.items():
            tensor = self.tensors.get(name)
            if tensor is None:
                continue
            if tensor.shape != shape:
                problems.append(f"{name} is {tensor.shape}, config.json calls for {shape}")
            stored = str(tensor.dtype).removeprefix("mlx.core.")
            if stored != dtype and not (dtype not in ("uint32", "uint8") and _is_float(tensor)):
                problems.append(f"{name} has dtype {stored}, config.json calls for {dtype}")
        return problems

    def dequantized(self, dtype: mx.Dtype | None = None) -> Iterator[tuple[str, mx.array]]:
        """Yield every parameter of the unpacked model in `dtype` (None: as stored, else float32)."""
        layers = self.layers
        for name, tensor in self.tensors.items():
            path, _, leaf = name.rpartition(".")
            if path not in layers or leaf == "bias":
                yield name, tensor if dtype is None else tensor.astype(dtype)
            elif leaf == "weight":
                yield name, self._numbers(path, layers[path]).astype(dtype or mx.float32)

    def install(self, module: nn.Module, dtype: mx.Dtype | None = None) -> None:
        """Replace the packed layers by MLX's quantized ones and fill the whole model; for a GPU.

        Args:
            module: the unpacked model.
            dtype: of scales and of tensors that are not packed; None: as stored.
        """
        layers = self.layers
        modules: Any = module.named_modules()
        for path, old in modules:
            layer = layers.get(path)
            if layer is not None:
                put_module(module, path, _empty(old, layer))
        tensors = [(n, t.astype(dtype) if dtype is not None and _is_float(t) else t) for n, t in self.tensors.items()]
        module.load_weights(tensors)

    def check_unchanged(self, module: nn.Module) -> None:
        """Refuse to save packed weights if the model now has other ones.

        Raises:
            ChangedWeightsError: a parameter is not what its packed form gives; lists them.
        """
        current = named_parameters(module)
        changed = []
        if any(name.endswith(".scales") for name in current):  # MLX's own quantized layers: the tensors themselves
            pairs: Any = self.tensors.items()
        else:
            pairs = self.dequantized(mx.float32)
        for name, array in pairs:
            parameter = current.get(name)
            if parameter is None or not _same(parameter, array):
                changed.append(name)
        if changed:
            raise ChangedWeightsError(
                f"{len(changed)} weights of this quantized model were changed after it was loaded, and saving would "
                "lose that; fix: mlxbert-convert DIRECTORY --dequantize -o OUT, and load that\n" + first_ten(changed)
            )

    def planned(self) -> list[PlannedTensor]:
        """Return the tensors to write, with the same bytes."""
        return [
            PlannedTensor(name, tuple(array.shape), _CODES[array.dtype], partial(read_array, array))
            for name, array in self.tensors.items()
        ]

    def _numbers(self, path: str, layer: LayerQuantization) -> mx.array:
        weight, scales = self.tensors[f"{path}.weight"], self.tensors[f"{path}.scales"]
        parts = list(unpack(weight, scales, self.tensors.get(f"{path}.biases"), layer))
        return parts[0] if len(parts) == 1 else mx.concatenate(parts)


def unpack(weight: Any, scales: Any, biases: Any, layer: LayerQuantization) -> Iterator[mx.array]:
    """Yield the float32 numbers of a packed matrix, some rows at a time, from arrays of MLX or NumPy."""
    for start in range(0, weight.shape[0], _ROWS):
        rows = slice(start, start + _ROWS)
        words, scale, bias = mx.array(weight[rows]), mx.array(scales[rows]), None
        if biases is not None:  # in float32: s · q + b in float16 would round a second time
            scale, bias = scale.astype(mx.float32), mx.array(biases[rows]).astype(mx.float32)
        part = mx.dequantize(words, scale, bias, layer.group_size, layer.bits, layer.mode, dtype=mx.float32)
        mx.eval(part)
        yield part


class PackedLinear(nn.QuantizedLinear):
    """`nn.QuantizedLinear` that a CPU computes with unpacked weights, for as long as it needs them.

    MLX's product with packed weights is a scalar loop on a CPU. So each call unpacks the weight, the backward pass
    once more, and neither keeps the numbers. A GPU multiplies the packed weights themselves.
    """

    def __call__(self, x: mx.array) -> mx.array:
        """Map (…, in) to (…, out)."""
        if mx.default_device() != mx.cpu:
            return cast(mx.array, super().__call__(x))

        @mx.custom_function
        def product(x: mx.array) -> mx.array:
            return x @ unpacked(self, after=x).astype(x.dtype).T

        @product.vjp
        def _gradient(x: mx.array, cotangent: mx.array, _output: mx.array) -> mx.array:
            return cotangent @ unpacked(self, after=cotangent).astype(x.dtype)

        y = cast(mx.array, product(x))
        return y + self.bias if "bias" in self else y


def unpacked(layer: nn.QuantizedLinear, after: mx.array | None = None) -> mx.array:
    """Return the weight (out, in) of a packed layer as float32 numbers.

    With `after`, it is computed only after that array: MLX cannot share one copy between forward and backward pass.
    """
    weight = layer.weight
    if after is not None:
        weight = mx.depends([weight], [mx.stop_gradient(after)])[0]
    scales, biases = layer.scales, layer.get("biases")
    if biases is not None:  # in float32: s · q + b in float16 would round a second time
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    return mx.stop_gradient(
        mx.dequantize(weight, scales, biases, layer.group_size, layer.bits, layer.mode, dtype=mx.float32)
    )


def split_quantized(config: Mapping[str, Any], tensors: Mapping[str, mx.array]) -> PackedWeights | None:
    """Return the packed weights of a checkpoint; None if neither `config.json` nor a tensor says that it is quantized.

    Raises:
        QuantizationError: both contradict each other, or MLX does not compute this quantization.
    """
    parsed = QuantizationConfig.from_hf(config)
    packed = [name.removesuffix(".scales") for name in tensors if name.endswith(".scales")]
    if parsed is None:
        if packed:
            raise QuantizationError(
                f'{packed[0]} is packed, but config.json has no "quantization"; fix: convert again'
            )
        return None
    contradicted = [path for path in packed if parsed.of(path) is None]
    if contradicted:
        raise QuantizationError(
            "layers are quantized that config.json does not list; fix: convert again\n" + first_ten(contradicted)
        )
    return PackedWeights(parsed, dict(tensors), config["quantization"])


def refuse_training(model: nn.Module) -> None:
    """Refuse to train a model with quantized weights, wherever they came from.

    Raises:
        QuantizationError: the model has them; the message says how to get one that can be trained.
    """
    for path, module in model.named_modules():
        layered = isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding)
        if layered or isinstance(getattr(module, "packed", None), PackedWeights):
            place = f" (at {path})" if path else ""
            source = getattr(model, "source", None) or "DIRECTORY"
            raise QuantizationError(
                f"this model is quantized{place}: its weights are rounded, and steps of training would be lost; "
                "fix: train adapters on it with --lora rank=8 (Python: lora={'rank': 8}); or mlxbert-convert "
                f"{source} --dequantize -o OUT, train that, and quantize the result"
            )


def _empty(old: nn.Module, layer: LayerQuantization) -> nn.Module:
    rows, width = old.weight.shape
    shape = (layer.group_size, layer.bits, layer.mode)
    if isinstance(old, nn.Embedding):
        return nn.QuantizedEmbedding(rows, width, *shape)
    return PackedLinear(width, rows, "bias" in old, *shape)


def _is_float(array: mx.array) -> bool:
    return mx.issubdtype(array.dtype, mx.floating)


def _same(current: mx.array, array: mx.array) -> bool:
    return current.shape == array.shape and bool(np.array(mx.array_equal(current, array.astype(current.dtype))))
