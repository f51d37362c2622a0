"""sentence-transformers' modules behind the transformer: a mix of layers, and layers over the pooled vector.

Source: https://github.com/huggingface/sentence-transformers `base/modules/dense.py`, `sentence_transformer/modules/`
(`layer_norm.py`, `weighted_layer_pooling.py`). Dropout is left out: nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import mlx.core as mx
import mlx.nn as nn

from mlxbert.errors import MLXBertError, printable
from mlxbert.files.safetensors import read_safetensors

# torch.nn classes by name, each with its default arguments, as sentence-transformers makes them.
ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "ELU": nn.elu,
    "GELU": nn.gelu,
    "Identity": lambda x: x,
    "LeakyReLU": nn.leaky_relu,
    "Mish": nn.mish,
    "ReLU": nn.relu,
    "ReLU6": nn.relu6,
    # MLX's own rounds the two constants of https://arxiv.org/abs/1706.02515 to six digits.
    "SELU": lambda x: 1.0507009873554805 * nn.elu(x, 1.6732632423543772),
    "SiLU": nn.silu,
    "Sigmoid": mx.sigmoid,
    "Softplus": nn.softplus,
    "Softsign": nn.softsign,
    "Tanh": mx.tanh,
}
T = TypeVar("T")
_PACKAGES = ("torch.nn", "torch.nn.modules.activation", "torch.nn.modules.linear")
_LAYER_NORM_EPS = 1e-5  # torch.nn.LayerNorm's default, which sentence-transformers keeps


class SentenceModuleError(MLXBertError):
    """The sentence-transformers files of a directory are damaged, or not supported here."""


class UnsupportedModuleError(SentenceModuleError):
    """The files are valid, but a module or a setting is not supported here."""


class Fields:
    """The fields of one JSON object of a checkpoint, each read as the type that it must have.

    Attributes:
        where: the file or folder that errors name.
    """

    def __init__(self, values: Mapping[str, Any], where: Path):
        self._values = values
        self.where = where

    def __getitem__(self, name: str) -> Any:
        """Return the unchecked field; None if it is absent."""
        return self._values.get(name)

    def __iter__(self) -> Iterator[str]:
        """Yield the names of the fields."""
        return iter(self._values)

    def flag(self, name: str, default: bool) -> bool:
        """Return a true/false field."""
        value = self._values.get(name, default)
        if value is None and not default:
            return False
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def size(self, name: str) -> int | None:
        """Return a positive whole number, or None."""
        value = self[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise self._wrong(name, "a positive whole number")
        return value

    def needed_size(self, name: str) -> int:
        """Return a positive whole number that must be there."""
        value = self.size(name)
        if value is None:
            raise self._wrong(name, "a positive whole number")
        return value

    def text(self, name: str, default: str) -> str:
        """Return a text; `default` if it is absent or null."""
        return self._of_type(name, str, default, "a text")

    def mapping(self, name: str) -> dict[str, Any]:
        """Return a JSON object; an empty one if it is absent or null."""
        return self._of_type(name, dict, {}, "a JSON object")

    def _of_type(self, name: str, kind: type[T], default: T, expected: str) -> T:
        value = self[name]
        if value is not None and not isinstance(value, kind):
            raise self._wrong(name, expected)
        return default if value is None else value

    def _wrong(self, name: str, expected: str) -> SentenceModuleError:
        return SentenceModuleError(
            f"{self.where}: {name} must be {expected}, not {printable(repr(self[name]))}; fix: fetch the file again"
        )


class Step(Protocol):
    """A step after pooling: (B, in_features) to (B, out_features), float32."""

    @property
    def in_features(self) -> int | None:
        """The width of the input; None: any, equal to that of the output."""
        ...

    @property
    def out_features(self) -> int | None:
        """The width of the output."""
        ...

    def __call__(self, x: mx.array) -> mx.array:
        """Apply it."""
        ...


class Normalize:
    """Scale vectors to length 1; a vector of zeros stays one."""

    in_features = out_features = None

    def __call__(self, x: mx.array) -> mx.array:
        """Map (B, D) to (B, D)."""
        return x / mx.maximum(mx.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


class Dense:
    """y = activation(x Wᵀ + b), plus the input if the config has `use_residual`.

    Attributes:
        in_features, out_features: widths of input and output.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, mx.array], where: Path):
        """Read the module's parsed config.json and tensors; `where` is named in errors.

        Raises:
            UnsupportedModuleError: an activation or a feature that is not computed here.
            SentenceModuleError: tensors that are not those that the config calls for.
        """
        fields = Fields(config, where)
        for field in ("module_input_name", "module_output_name"):
            if config.get(field) not in (None, "sentence_embedding"):
                raise UnsupportedModuleError(
                    f"{where}: Dense with {field}={config[field]!r} is not supported; only 'sentence_embedding' is"
                )
        self.in_features = fields.needed_size("in_features")
        self.out_features = fields.needed_size("out_features")
        self._activation = _activation(config.get("activation_function", "torch.nn.Tanh"), where)
        self._residual = fields.flag("use_residual", False)
        shapes: dict[str, tuple[int, ...]] = {"linear.weight": (self.out_features, self.in_features)}
        if fields.flag("bias", True):
            shapes["linear.bias"] = (self.out_features,)
        if self._residual and self.in_features != self.out_features:
            shapes["residual.weight"] = (self.out_features, self.in_features)
        self._tensors = _expected(tensors, shapes, where)

    def __call__(self, x: mx.array) -> mx.array:
        """Map (B, in_features) to (B, out_features), float32."""
        y = x @ self._tensors["linear.weight"].T
        if "linear.bias" in self._tensors:
            y = y + self._tensors["linear.bias"]
        y = self._activation(y)
        if not self._residual:
            return y
        return y + (x @ self._tensors["residual.weight"].T if "residual.weight" in self._tensors else x)


class LayerNorm:
    """torch.nn.LayerNorm over the pooled vector.

    Attributes:
        in_features, out_features: its width.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, mx.array], where: Path):
        """Read the module's parsed config.json and tensors.

        Raises:
            SentenceModuleError: tensors that are not those that the config calls for.
        """
        self.in_features = self.out_features = Fields(config, where).needed_size("dimension")
        shape = (self.in_features,)
        self._tensors = _expected(tensors, {"norm.weight": shape, "norm.bias": shape}, where)

    def __call__(self, x: mx.array) -> mx.array:
        """Map (B, D) to (B, D), float32."""
        return mx.fast.layer_norm(x, self._tensors["norm.weight"], self._tensors["norm.bias"], _LAYER_NORM_EPS)


class LayerMix:
    """WeightedLayerPooling: replaces the last hidden state by the weighted mean of those from `start` on.

    Attributes:
        start: the first hidden state of the mean; 0 is the embeddings' output.
        count: the number of hidden states.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, mx.array], where: Path):
        """Read the module's parsed config.json and tensors.

        Raises:
            SentenceModuleError: tensors that are not those that the config calls for.
        """
        fields = Fields(config, where)
        start = config.get("layer_start", 4)
        layers = fields.size("num_hidden_layers") or 12
        if isinstance(start, bool) or not isinstance(start, int) or not 0 <= start <= layers:
            raise SentenceModuleError(
                f"{where}: layer_start must be a whole number from 0 to {layers}, not {printable(repr(start))}"
            )
        self.start, self.count = start, layers + 1 - start
        self._weights = _expected(tensors, {"layer_weights": (self.count,)}, where)["layer_weights"]

    def __call__(self, hidden_states: Sequence[mx.array]) -> mx.array:
        """Map num_hidden_layers + 1 hidden states (B, L, D) to one (B, L, D)."""
        pairs = zip(self._weights, hidden_states[self.start :], strict=True)
        mixed = sum((weight * hidden.astype(mx.float32) for weight, hidden in pairs), mx.array(0.0))
        return (mixed / self._weights.sum()).astype(hidden_states[-1].dtype)


def module_tensors(directory: Path) -> dict[str, mx.array]:
    """Return the tensors of a module's folder, from its `model.safetensors`.

    Raises:
        SentenceModuleError: there is none, or it is damaged.
    """
    contents = read_safetensors(directory / "model.safetensors", SentenceModuleError)
    if contents is None:
        pickle = " (a pytorch_model.bin is, which mlxbert-convert reads)"
        raise SentenceModuleError(
            f"{directory}: model.safetensors is not there"
            + (pickle if (directory / "pytorch_model.bin").is_file() else "")
            + "; fix: convert or download again"
        )
    return contents[0]


def _expected(
    tensors: Mapping[str, mx.array], shapes: Mapping[str, tuple[int, ...]], where: Path
) -> dict[str, mx.array]:
    """Return the tensors in float32; refuse others than those of `shapes`."""
    stored_shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if stored_shapes != shapes:
        raise SentenceModuleError(
            f"{where}: has tensors {printable(stored_shapes, 400)}; its config.json calls for {dict(shapes)}"
        )
    return {name: tensor.astype(mx.float32) for name, tensor in tensors.items()}


def _activation(path: Any, where: Path) -> Callable[[mx.array], mx.array]:
    package, _, name = str(path).rpartition(".")
    if package not in _PACKAGES or name not in ACTIVATIONS:
        raise UnsupportedModuleError(
            f"{where}: activation {printable(repr(path))} is not known; known are those of torch.nn: "
            f"{', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]
