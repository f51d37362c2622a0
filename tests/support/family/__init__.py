"""Test data of each architecture: its options as configurations, and mistakes that the gate must catch.

An architecture with options has a file here, named as its `model_type` with `_` for `-`. It declares:

- VARIANTS: name -> fields of transformers' configuration that differ from `Architecture.tiny`. Together they have each
  option both ways, and odd widths, one layer, other activations. The first one runs by default; the others are slow.
- MUTATIONS: each option once as a wrong module, once as a wrong field of the configuration.

tests/models/test_variants.py and tests/converter/test_mutations.py run them. Sizes as published are in
`benchmarks.family_sizes`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from mlxbert.models.base import Context, Encoder, Inputs


@dataclass(frozen=True)
class Mutation:
    """A mistake in our encoder that the mapping gate must find.

    Attributes:
        name: what is wrong.
        where: what the gate must name first: a layer's number, "embeddings", "pooler" or "finish" (the last layer,
            through `finish`).
        change: makes a copy of the right encoder wrong.
        config: wrong fields of the configuration, in transformers' spelling, for our side only.
        variant: the entry of VARIANTS that it applies to; None: `Architecture.tiny`.
    """

    name: str
    where: int | str
    change: Callable[[Encoder], None] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    variant: str | None = None


def with_positions(core: Encoder, positions: Callable[[Any, Inputs], mx.array]) -> None:
    """Let an encoder that counts positions from the ids count them in another way, from (encoder, checked inputs)."""

    def embed_inputs(self: Any, inputs: Inputs) -> tuple[mx.array, Context]:
        counted = {"counted_positions": lambda inputs, padding: positions(self, inputs)}
        mutant: Any = type("MutantInputs", (Inputs,), counted)
        return right(self, mutant(**vars(inputs)))

    right = type(core).embed_inputs
    core.__class__ = type("Mutant", (type(core),), {"embed_inputs": embed_inputs})


@dataclass(frozen=True)
class Family:
    """The test data of one architecture; empty where it has no file.

    Attributes:
        variants: name -> fields of transformers' configuration.
        mutations: mistakes that the gate must find.
    """

    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    mutations: tuple[Mutation, ...] = ()


def family_of(model_type: str) -> Family:
    """Return the test data of an architecture; a mistake inside its file is raised."""
    name = f"{__name__}.{model_type.replace('-', '_')}"
    if importlib.util.find_spec(name) is None:
        return Family()
    declared = vars(importlib.import_module(name))
    return Family(declared.get("VARIANTS", {}), tuple(declared.get("MUTATIONS", ())))
