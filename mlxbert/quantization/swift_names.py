"""The paths of layers in mlx-swift-lm's MLXEmbedders, what Mac apps load with: its `Bert.swift` renames the tensors.

Swift looks a layer's own bits up by these paths and ignores a key that it does not know, where every package in Python
looks them up by ours: so `config.json` has both.
"""

from __future__ import annotations

import re

# After encoder.layer.{i}. here and encoder.layers.{i}. there.
_IN_LAYER = {
    "attention.self.query": "attention.query_proj",
    "attention.self.key": "attention.key_proj",
    "attention.self.value": "attention.value_proj",
    "attention.output.dense": "attention.out_proj",
    "intermediate.dense": "linear1",
    "output.dense": "linear2",
}
_BACK = {theirs: ours for ours, theirs in _IN_LAYER.items()}
_OURS, _THEIRS = (re.compile(rf"encoder\.{name}\.(0|[1-9]\d*)\.(.+)") for name in ("layer", "layers"))


def swift_path(path: str) -> str:
    """Return the path in Swift of the layer at `path`; the same where Swift has no other."""
    if path == "pooler.dense":
        return "pooler"
    found = _OURS.fullmatch(path)
    return f"encoder.layers.{found[1]}.{_IN_LAYER[found[2]]}" if found and found[2] in _IN_LAYER else path


def from_swift_path(path: str) -> str:
    """Return the canonical path of the layer at `path` in Swift; `path` itself where it is none of Swift's."""
    if path == "pooler":
        return "pooler.dense"
    found = _THEIRS.fullmatch(path)
    return f"encoder.layer.{found[1]}.{_BACK[found[2]]}" if found and found[2] in _BACK else path
