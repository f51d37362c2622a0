"""Checkpoints that other MLX tools wrote (mlx-embeddings, mlx-lm's quantizer): no block and no manifest of ours."""

from __future__ import annotations

from pathlib import Path

from mlxbert.errors import MLXBertError
from mlxbert.files.reading import read_json

INDEX = "model.safetensors.index.json"
_PARTS = ("embeddings.", "encoder.", "pooler.")


def written_by_mlx_tool(directory: Path, error: type[MLXBertError]) -> bool:
    """Whether the index lists an encoder under its canonical names and nothing else, as those tools write one.

    What PyTorch's tools write has an index for shards alone, and mostly a `bert.` before the names, or a head.

    Raises:
        error: the index is there and not JSON.
    """
    weight_map = (read_json(directory / INDEX, error) or {}).get("weight_map")
    if not isinstance(weight_map, dict) or "embeddings.word_embeddings.weight" not in weight_map:
        return False
    return all(
        name.startswith(_PARTS) and not name.endswith((".gamma", ".beta", "position_ids")) for name in weight_map
    )
