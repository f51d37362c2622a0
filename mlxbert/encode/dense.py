"""sentence-transformers' Dense module: a linear layer and an activation over the pooled vector.

Source: https://github.com/huggingface/sentence-transformers `base/modules/dense.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxbert.errors import MLXBertError

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
_PACKAGES = ("torch.nn", "torch.nn.modules.activation", "torch.nn.modules.linear")


class SentenceModuleError(MLXBertError):
    """A sentence-transformers module that is not known here, or one that is damaged."""


class Dense:
    """y = activation(x Wᵀ + b), with the input added to it where the config says `use_residual`.

    Attributes:
        in_features, out_features: widths of input and output.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, mx.array], where: Path):
        """Read the module's parsed config.json and tensors; `where` is named in errors.

        Raises:
            SentenceModuleError: an activation or a feature that is not known, or tensors that are not those that the
                config calls for.
        """
        for field in ("module_input_name", "module_output_name"):
            if config.get(field) not in (None, "sentence_embedding"):
                raise SentenceModuleError(
                    f"{where}: Dense with {field}={config[field]!r} is not supported; only 'sentence_embedding' is"
                )
        self.in_features = _width(config, "in_features", where)
        self.out_features = _width(config, "out_features", where)
        self._activation = _activation(config.get("activation_function", "torch.nn.Tanh"), where)
        self._residual = bool(config.get("use_residual", False))
        shapes: dict[str, tuple[int, ...]] = {"linear.weight": (self.out_features, self.in_features)}
        if config.get("bias", True):
            shapes["linear.bias"] = (self.out_features,)
        if self._residual and self.in_features != self.out_features:
            shapes["residual.weight"] = (self.out_features, self.in_features)
        found = {name: tensor.shape for name, tensor in tensors.items()}
        if found != shapes:
            raise SentenceModuleError(f"{where}: has tensors {found}; its config.json calls for {shapes}")
        self._tensors = {name: tensor.astype(mx.float32) for name, tensor in tensors.items()}

    @classmethod
    def from_directory(cls, directory: Path, config: Mapping[str, Any]) -> Dense:
        """Read `model.safetensors` of the module's directory.

        Raises:
            SentenceModuleError: there is none, or it is damaged.
        """
        file = directory / "model.safetensors"
        if not file.is_file():
            pickle = " (a pytorch_model.bin is, and pickles are not read here)"
            raise SentenceModuleError(
                f"{directory}: model.safetensors is not there"
                + (pickle if (directory / "pytorch_model.bin").is_file() else "")
                + "; fix: SentenceTransformer(SRC).save_pretrained(DIR) writes it; convert that DIR"
            )
        try:
            tensors = mx.load(str(file))
        except (RuntimeError, ValueError) as error:
            raise SentenceModuleError(f"{file} is damaged ({error}); fix: convert or download again") from error
        assert isinstance(tensors, dict)
        return cls(config, tensors, directory)

    def __call__(self, x: mx.array) -> mx.array:
        """(B, in_features) to (B, out_features), float32."""
        y = x @ self._tensors["linear.weight"].T
        if "linear.bias" in self._tensors:
            y = y + self._tensors["linear.bias"]
        y = self._activation(y)
        if not self._residual:
            return y
        return y + (x @ self._tensors["residual.weight"].T if "residual.weight" in self._tensors else x)


def _width(config: Mapping[str, Any], field: str, where: Path) -> int:
    value = config.get(field)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SentenceModuleError(f"{where}: config.json: {field} must be a positive whole number, not {value!r}")
    return value


def _activation(path: Any, where: Path) -> Callable[[mx.array], mx.array]:
    package, _, name = str(path).rpartition(".")
    if package not in _PACKAGES or name not in ACTIVATIONS:
        raise SentenceModuleError(
            f"{where}: activation {path!r} is not known; known are those of torch.nn: {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]
