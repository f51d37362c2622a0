"""The tensors of a source under their canonical names: planned, cut, cast, checked."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.dtypes import cast
from converter.mapping import Plan, Planned, plan
from converter.mappings import mapping_for
from converter.source import Source
from mlxbert.config import BertConfig

if TYPE_CHECKING:
    from mlxbert.core import BertCore
    from mlxbert.pretrained import PretrainedBert
    from mlxbert.pretrained.head_class import HeadChoice


def plan_source(source: Source) -> tuple[BertConfig, Plan]:
    """What becomes of every tensor of a source; tied copies are settled by comparing their bytes.

    Raises:
        ConfigError, MappingError, DtypeError: the configuration or a tensor does not fit.
    """
    mapping = mapping_for(source.config)
    config = BertConfig.from_hf(source.config)
    planned = plan(mapping, config, {key: entry.shape for key, entry in source.entries.items()})
    planned = _without_tied_copies(source, config, planned)
    return config, replace(planned, dropped={**source.dropped, **planned.dropped})


def read(source: Source, item: Planned, dtype: str) -> np.ndarray[Any, Any]:
    """One planned tensor, in `dtype`; raises DtypeError where it is not finite or overflows."""
    array = source.entries[item.source].read()
    if item.parts > 1:
        array = np.split(array, item.parts, axis=0)[item.part]
    return cast(array, dtype, item.source)


def float32_core(source: Source) -> BertCore:
    """The source as a float32 MLX encoder, straight through the mapping: what the mapping gate compares."""
    import mlx.core as mx

    from mlxbert.core import BertCore

    config, planned = plan_source(source)
    has_pooler = any(item.target.startswith("pooler.") for item in planned.encoder)
    core = BertCore(config, add_pooling_layer=has_pooler)
    core.load_weights([(item.target, mx.array(read(source, item, "float32"))) for item in planned.encoder])
    core.eval()
    mx.eval(core.parameters())
    return core


def float32_model(source: Source, choice: HeadChoice) -> PretrainedBert:
    """`float32_core` with the source's own head, as a model of the chosen class.

    Raises:
        CheckpointError: the head's tensors are not those of the class.
    """
    import mlx.core as mx

    from mlxbert.pretrained import attach_head

    _, planned = plan_source(source)
    tensors = {item.target: mx.array(read(source, item, "float32")) for item in planned.heads}
    return attach_head(float32_core(source), tensors, choice, source.config, place=source.location, dtype=mx.float32)


def _without_tied_copies(source: Source, config: BertConfig, planned: Plan) -> Plan:
    """Drop the head tensors that repeat the tensor they are tied to; what differs is untied, and kept.

    transformers (>= 5) decides likewise: with `tie_word_embeddings`, a decoder that the file has, and that differs
    from the embeddings, stays as it is.
    """
    if not config.tie_word_embeddings:
        return planned
    by_target = {item.target: item for item in (*planned.encoder, *planned.heads)}
    kept, dropped = [], dict(planned.dropped)
    for item in planned.heads:
        twin = by_target.get(item.tied_to) if item.tied_to else None
        if twin is not None and twin.shape == item.shape and _digest(source, item) == _digest(source, twin):
            dropped[item.source] = f"tied: a copy of {twin.target}"
        else:
            kept.append(item)
    return Plan(planned.encoder, tuple(kept), dropped)


def _digest(source: Source, item: Planned) -> bytes:
    # Hashed one after the other, so that two 94 MB embeddings are never in memory together.
    array = np.ascontiguousarray(source.entries[item.source].read())
    return hashlib.sha256(array.reshape(-1).view(np.uint8).data).digest()
