"""A PEFT adapter merged into its base model: a source whose adapted weights are computed when they are read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from converter.canonical import plan_source
from converter.mapping import Planned
from converter.peft.adapter import AdaptedLayer, PeftAdapter
from converter.readers.safetensors import TensorEntry
from converter.readers.source_files import SourceError, check_file, read_json_object
from converter.source import Source, local_name
from mlxbert.errors import first_ten, printable
from mlxbert.models.architecture import HeadKind, architecture

_KINDS = {
    "SEQ_CLS": HeadKind.SEQUENCE,
    "TOKEN_CLS": HeadKind.TOKEN,
    "QUESTION_ANS": HeadKind.SPAN,
}
"""PEFT's `task_type` -> the kind of the head."""

# What a configuration beside the adapter says of its head.
_HEAD_FIELDS = ("id2label", "label2id", "problem_type")


def with_adapter(base: Source, adapter: PeftAdapter) -> Source:
    """Return the base as a source with the adapter in its weights, and with the modules that were trained whole.

    A merged tensor is float32, whatever the base is, so that nothing of the adapter is lost.

    Raises:
        SourceError: the adapter changes layers that the base does not have, or of other sizes.
    """
    if base.own_head:
        raise SourceError(
            f"{base.location}: has a head that mlxbert trained, and a PEFT adapter belongs to a plain encoder; "
            "fix: give --base the model that it was trained from"
        )
    declared = architecture(base.config.get("model_type"))
    class_name = adapted_class(base.config, adapter)
    _, plan = plan_source(base)
    by_target = {item.target: item for item in (*plan.encoder, *plan.heads)}
    weights = _weights(base, adapter, by_target)
    entries, dropped = dict(base.entries), dict(base.dropped)
    if class_name is not None:
        kept = declared.heads[class_name].all_prefixes if class_name in declared.heads else ()
        for key in base.entries:
            if declared.is_head_tensor(key) and not key.startswith(kept):
                del entries[key]
                dropped[key] = f"{class_name}, which was adapted, does not have it"
    for name, entry in adapter.whole.items():
        item = by_target.get(name.removeprefix(declared.prefix))
        key = name if item is None else item.source
        entries[key] = replace(entry, key=key)
    unmerged: dict[str, TensorEntry] = {}
    for path, layer in adapter.layers.items():
        key = weights[path].source
        if f"{path}.weight" in adapter.whole or key not in entries:
            raise SourceError(f"{adapter.directory}: {printable(path)} is adapted twice; fix: get the adapter again")
        weight = unmerged[key] = entries[key]
        entries[key] = TensorEntry(key, weight.shape, "F32", partial(merged, weight.read, layer))
    return replace(
        base,
        location=str(adapter.directory),
        revision=None,
        config=_config(base, adapter, class_name),
        entries=entries,
        weight_files=(*base.weight_files, *adapter.files),
        dropped=dropped,
        notes=(*base.notes, f"{_count(adapter)}, merged into {base.name}"),
        choices={**base.choices, "adapter": {"base": base.name, "base_revision": base.revision}},
        unmerged=unmerged,
    )


def adapted_class(config: Mapping[str, Any], adapter: PeftAdapter) -> str | None:
    """Return the class of transformers that was adapted, by what the adapter says of it; None: it does not say."""
    declared = architecture(config.get("model_type"))
    if adapter.class_name in (declared.encoder_class, *declared.heads):
        return adapter.class_name
    if adapter.task in _KINDS:
        return declared.head_of(_KINDS[adapter.task])
    return declared.encoder_class if adapter.task == "FEATURE_EXTRACTION" else None


def _weights(base: Source, adapter: PeftAdapter, by_target: Mapping[str, Planned]) -> dict[str, Planned]:
    """Return the weight of the base for each adapted path, its shape checked.

    Raises:
        SourceError: the base lacks some of them, or they have other sizes.
    """
    prefix = architecture(base.config.get("model_type")).prefix
    found: dict[str, Planned] = {}
    missing, other = [], []
    for path, layer in adapter.layers.items():
        item = by_target.get(f"{path.removeprefix(prefix)}.weight")
        size = (layer.b.shape[0], layer.a.shape[1])
        if item is None:
            missing.append(path)
        elif item.parts > 1:
            raise SourceError(
                f"{base.location}: {printable(path)} is a part of {printable(item.source)}; fix: mlxbert-convert "
                f"{base.location} -o DIR, and give --base DIR"
            )
        elif item.shape != size:
            other.append(f"{path}: the adapter is for {size}, the base has {item.shape}")
        else:
            found[path] = item
    said = f", which calls its base {adapter.base!r}" if adapter.base else ""
    for lines, what in ((missing, "layers that the base does not have"), (other, "layers of another size")):
        if lines:
            raise SourceError(
                f"{adapter.directory}{said}: adapts {len(lines)} {what}, {base.location}; fix: --base with the model "
                f"that it was trained on\n{first_ten(lines)}"
            )
    return found


def merged(read: Callable[[], np.ndarray], layer: AdaptedLayer) -> np.ndarray:
    """Return `weight + scale · B A` (out, in), float32; with DoRA, each row then has its magnitude as its norm.

    PEFT's `Linear.get_delta_weight` and, for DoRA (Liu et al. 2024, https://arxiv.org/abs/2402.09353), its
    `DoraLinearVariant.merge_safe`.
    """
    a, b = (_float32(entry) for entry in (layer.a, layer.b))
    weight: np.ndarray = read().astype(np.float32) + np.float32(layer.scale) * (b @ a)
    if layer.magnitude is not None:
        norm = np.linalg.norm(weight, axis=1)
        weight *= (_float32(layer.magnitude).reshape(-1) / norm)[:, None]
    return weight


def _float32(entry: TensorEntry) -> np.ndarray:
    return entry.read().astype(np.float32)


def _config(base: Source, adapter: PeftAdapter, class_name: str | None) -> dict[str, Any]:
    """Return the base's `config.json` with the adapted class, and the labels of a configuration beside the adapter."""
    config = dict(base.config)
    file = adapter.directory / "config.json"
    if os.path.lexists(file):
        check_file(file, adapter.directory)
        beside = read_json_object(file)
        config |= {name: beside[name] for name in _HEAD_FIELDS if name in beside}
    if class_name is not None:
        config["architectures"] = [class_name]
    block = config.get("mlxbert")
    if isinstance(block, dict):  # a converted base: neither its source nor its class are this model's
        left_out = ("source", "revision") if class_name is None else ("source", "revision", "original_architectures")
        config["mlxbert"] = {name: value for name, value in block.items() if name not in left_out}
        if class_name is not None:
            config["mlxbert"]["original_architectures"] = [class_name]
    return config


def _count(adapter: PeftAdapter) -> str:
    kind, count = "DoRA" if adapter.is_dora else "LoRA", len(adapter.layers)
    head = f" and {len(adapter.whole)} tensors of modules trained whole" if adapter.whole else ""
    return f"{printable(local_name(adapter.directory))}: {kind} of rank {adapter.rank} on {count} layers{head}"
