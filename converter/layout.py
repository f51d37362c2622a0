"""Where a converted directory keeps the head of its source: beside the encoder's files, or in them.

`encoder`, the default: `model.safetensors` holds the encoder alone, which every package loads as one; the head lies in
`heads.safetensors`. `full`: names and class are those of the transformers class with the head, so that packages for
rerankers and taggers load it: transformers' `AutoModelFor…`, mlx-vlm's `load_reranker` and `load_token_classifier`,
Swift's MLXEmbedders. A package that wants an encoder then mostly refuses; `converter/loaders.py` says which.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from converter.mapping import Planned
from converter.source import Source
from mlxbert.checkpoint import ENCODER_PREFIX
from mlxbert.errors import MLXBertError
from mlxbert.files.safetensors_writer import PlannedTensor, safetensors_bytes
from mlxbert.pretrained.head_class import choose_head_class, is_head_tensor, original_architectures
from mlxbert.pretrained.labels import Labels

ENCODER, FULL = LAYOUTS = ("encoder", "full")
_NEED_LABELS = ("BertForSequenceClassification", "BertForTokenClassification")


class LayoutError(MLXBertError):
    """A source that cannot be written in the layout that was asked for."""


@dataclass(frozen=True)
class Layout:
    """How the tensors of a directory are named and distributed.

    Attributes:
        architecture: class that `config.json` names; None: the encoder's.
    """

    architecture: str | None = None

    @property
    def is_full(self) -> bool:
        """Whether the head lies in `model.safetensors`."""
        return self.architecture is not None

    def weights(
        self, encoder: Iterable[PlannedTensor], heads: Sequence[PlannedTensor]
    ) -> tuple[list[PlannedTensor], list[PlannedTensor]]:
        """Return what goes into `model.safetensors`, and what into `heads.safetensors`."""
        if not self.is_full:
            return list(encoder), list(heads)
        return [*(replace(tensor, name=ENCODER_PREFIX + tensor.name) for tensor in encoder), *heads], []

    def other_bytes(self, encoder: Sequence[Planned], heads: Sequence[PlannedTensor]) -> int:
        """Return the bytes that this layout adds to the encoder's tensors and their header, at most."""
        longer = 3 * len(ENCODER_PREFIX) * len(encoder) if self.is_full else 0  # a packed matrix has three names
        return longer + (safetensors_bytes(heads) if heads else 0)

    def config(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return a conversion's `config.json` with what this layout changes."""
        if not self.is_full:
            return config
        config = {**config, "architectures": [self.architecture], "mlxbert": {**config["mlxbert"], "layout": FULL}}
        if self.architecture in _NEED_LABELS:
            # transformers leaves out what it would assume, two labels; the other packages then assume one.
            names = Labels.from_hf(config).id2label
            config.setdefault("id2label", {str(index): name for index, name in names.items()})
            config.setdefault("label2id", {name: index for index, name in names.items()})
        return config


def choose_layout(source: Source, name: str) -> Layout:
    """Return the layout `name` for this source.

    Raises:
        LayoutError: there is no such layout, or a full one has no whole head of a transformers class.
        HeadClassError: nor does it tell which class its head is of.
    """
    if name not in LAYOUTS:
        raise LayoutError(f"layout {name!r} is unknown; fix: one of {', '.join(LAYOUTS)}")
    if name == ENCODER:
        return Layout()
    if source.own_head:
        raise LayoutError(
            f"{source.location}: its head was trained by mlxbert, which no class of transformers has; fix: "
            f"mlxbert-export {source.location} -o OUT, and if that writes a BertForSequenceClassification, "
            "mlxbert-convert OUT --layout full"
        )
    heads = [key for key in source.entries if is_head_tensor(key)]
    if not heads:
        raise LayoutError(
            f"{source.location}: no head is read from it, so it has no full layout; fix: leave --layout full out"
        )
    has_pooler = any(key.removeprefix(ENCODER_PREFIX).startswith("pooler.") for key in source.entries)
    choice = choose_head_class(
        original_architectures(source.config), heads, has_pooler=has_pooler, place=source.location
    )
    return Layout(choice.name)
