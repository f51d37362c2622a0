"""Every option of every architecture against transformers: the configurations of tests/support/family/.

Hidden states, attentions and pooler of the whole, each layer alone, embeddings in the place of ids, and gradients with
and without checkpointing. The first configuration of an architecture runs by default.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from converter.parity.gates import compare
from converter.parity.probes import make_probes
from converter.parity.reference import Reference
from converter.parity.report import Provenance
from mlxbert.models.architecture import architecture, supported
from mlxbert.models.base import module_at
from tests.support.encoder_pairs import (
    KINDS,
    assert_checkpointing_changes_no_gradient,
    assert_whole_forward_agrees,
    batches,
    error,
    pair,
    reference,
)
from tests.support.family import family_of

torch = pytest.importorskip("torch", reason="the reference is transformers")

VARIANTS = [
    pytest.param(model_type, variant, marks=[pytest.mark.slow] if number else [])
    for model_type in supported()
    for number, variant in enumerate(family_of(model_type).variants)
]
pytestmark = pytest.mark.parametrize(("model_type", "variant"), VARIANTS)


def made(model_type: str, variant: str) -> Any:
    return pair(model_type, **family_of(model_type).variants[variant])


def test_the_whole_forward_is_transformers_for_inputs_of_every_kind(model_type: str, variant: str) -> None:
    theirs, core = made(model_type, variant)
    limit = architecture(model_type).tolerances.mapping.cumulative
    inputs = batches(core)
    for kind in KINDS:
        assert_whole_forward_agrees(theirs, core, inputs[kind], limit)


def test_each_layer_alone_passes_the_mapping_gate(model_type: str, variant: str) -> None:
    theirs, core = made(model_type, variant)
    provenance = Provenance("random", None, {}, "the written weights", seed=0)
    sides = {"written_dtype": "float32", "provenance": provenance}
    report = compare(Reference(theirs, type(theirs).__name__), core, core, make_probes(core.config), **sides)
    assert report.passed, "\n".join(report.failures)


def test_embeddings_take_the_place_of_ids(model_type: str, variant: str) -> None:
    theirs, core = made(model_type, variant)
    inputs = batches(core)["padded right"]
    rows = module_at(core, core.architecture.tables["word"])(mx.array(inputs.pop("input_ids")))
    expected = reference(theirs, {**inputs, "inputs_embeds": np.array(rows)}).last_hidden_state
    got = core(**inputs, inputs_embeds=rows).last_hidden_state
    assert error(got, expected, inputs["attention_mask"]) < architecture(model_type).tolerances.mapping.cumulative


def test_checkpointing_changes_no_gradient(model_type: str, variant: str) -> None:
    _, core = made(model_type, variant)
    assert_checkpointing_changes_no_gradient(core, batches(core)["padded right"])
