"""Under which name a model is published: mlx-community's habit for the default, the Hub's rules for any."""

from __future__ import annotations

from typing import Any

from converter.dtypes import DTYPE_SUFFIXES
from converter.facts import trained_head
from converter.hub_rules import is_repo_id
from converter.publishing.errors import PublishError

DEFAULT_NAMESPACE = "mlx-community"


def precision_suffix(config: dict[str, Any], bits_per_weight: float | None = None) -> str:
    """What a name ends in: `fp32`, `fp16`, `bf16`, `4bit`, `mxfp4`, `nvfp4`; `mixed-4.6bit` where widths differ.

    Args:
        config: the converted `config.json`, with mlx's "quantization" where it is quantized.
        bits_per_weight: over the whole model, for the name of a mixed one.
    """
    quantization = config.get("quantization")
    if not isinstance(quantization, dict):
        return DTYPE_SUFFIXES.get(str(config.get("dtype")), str(config.get("dtype")))
    layers = [layer for layer in quantization.values() if isinstance(layer, dict)]
    own = {(str(layer.get("bits")), str(layer.get("mode", "affine"))) for layer in layers}
    bits, mode = str(quantization.get("bits")), str(quantization.get("mode", "affine"))
    if own - {(bits, mode)}:
        return f"mixed-{bits_per_weight:.1f}bit" if bits_per_weight else "mixed"
    return f"{bits}bit" if mode == "affine" else mode


def default_repo_id(config: dict[str, Any], directory_name: str, bits_per_weight: float | None = None) -> str:
    """`mlx-community/NAME-SUFFIX`: NAME is the Hub source's own, or the directory's where the source was local.

    Raises:
        PublishError: the model has a head that was trained here, or NAME breaks the Hub's rules.
    """
    block = config["mlxbert"]
    name = block["source"].rpartition("/")[2] if block["revision"] else directory_name
    if (head := trained_head(block)) is not None:  # named after its source, it would take that one's place
        raise PublishError(
            f"{directory_name}: a model with a head that was trained here has no default name; "
            f"fix: --to YOUR_NAME/{name}-{head}, or another"
        )
    suffix = precision_suffix(config, bits_per_weight)
    return check_repo_id(f"{DEFAULT_NAMESPACE}/{name.removesuffix(f'-{suffix}')}-{suffix}")


def check_repo_id(repo_id: str) -> str:
    """The id as it is, if the Hub takes it for a new repository.

    Raises:
        PublishError: it does not, and why.
    """
    if repo_id.count("/") != 1:
        raise PublishError(f"{repo_id!r} does not say whose it is: give OWNER/NAME, such as mlx-community/NAME")
    if not is_repo_id(repo_id):
        raise PublishError(
            f"{repo_id!r} breaks the Hub's rules for names: letters, digits, '-', '_' and '.', at most 96 of them, "
            "neither '--' nor '..', no '-' or '.' at either end, not ending in .git; choose another with --to"
        )
    return repo_id
