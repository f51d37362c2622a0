"""The two gates' parts: measures, probes, limits, float32 that is float32."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from converter.canonical import float32_core
from converter.convert import convert
from converter.parity import gates
from converter.parity.gates import ParityError, compare, measure, no_comparison, require_exact_float32, worst
from converter.parity.probes import ProbeError, longest_probe, make_probes
from converter.parity.reference import Reference
from converter.parity.report import Provenance
from converter.source import open_source
from converter.verify import verify
from mlxbert.models.architecture import architecture, config_from_hf, supported
from mlxbert.models.bert import BertConfig
from tests.support.tiny import save_tiny

torch = pytest.importorskip("torch", reason="the reference is PyTorch, which is not installed")

TINY = BertConfig(vocab_size=97, max_position_embeddings=64)


def provenance(seed: int = 0) -> Provenance:
    return Provenance("tiny", None, {}, "the written weights", seed)


# --- measures -------------------------------------------------------------------------------------------------------


def test_the_error_is_scaled_by_the_largest_magnitude_at_its_position_where_that_exceeds_1() -> None:
    reference = np.array([[[0.5, 0.25], [10.0, 0.0]]], dtype=np.float32)
    found = measure(reference, reference + np.array([[[0.0, 0.5], [0.0, 1.0]]], dtype=np.float32))
    assert found.max_abs == 1
    assert found.max_rel == 0.5  # 0.5 / 1, above 1.0 / 10
    assert found.argmax_agreement == 0.5
    assert found.positions == 2
    assert found.problem is None


def test_masked_positions_do_not_count() -> None:
    reference = np.ones((1, 2, 3), dtype=np.float32)
    wrong = reference.copy()
    wrong[0, 1] = 7
    assert measure(reference, wrong).max_abs == 6
    assert measure(reference, wrong, np.array([[True, False]])).max_abs == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["MLX", "the reference"])
def test_what_is_not_finite_is_a_problem_even_where_masked_and_on_both_sides(value: float, side: str) -> None:
    good = np.ones((1, 2, 3), dtype=np.float32)
    bad = good.copy()
    bad[0, 1, 2] = value
    what = "NaN" if np.isnan(value) else "infinity"
    pair = (good, bad) if side == "MLX" else (bad, good)
    assert measure(*pair, np.array([[True, False]])) == no_comparison(f"{what} in {side}")
    assert measure(bad, bad).problem == f"{what} in MLX"


def test_nothing_to_compare_is_a_problem() -> None:
    ones = np.ones((1, 2, 3))
    assert measure(ones, ones, np.zeros((1, 2), bool)).problem == "every position is masked"
    assert measure(ones, np.ones((1, 2, 4))).problem == "shape (1, 2, 4) in MLX, (1, 2, 3) in the reference"
    assert worst([]).problem == "nothing was compared"


def test_cosine_is_the_smallest_and_a_vanished_vector_agrees_with_no_other() -> None:
    reference = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]])
    assert measure(reference, reference).cosine == 1
    assert measure(reference, np.array([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0]])).cosine == 0
    assert measure(reference, np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])).cosine == 0


def test_worst_keeps_the_largest_error_and_any_problem() -> None:
    one = measure(np.zeros((1, 2)), np.full((1, 2), 0.5))
    other = measure(np.ones((3, 2)), np.ones((3, 2)))
    assert worst([one, other]).max_abs == 0.5
    assert worst([one, other]).positions == 4
    assert worst([other, no_comparison("NaN in MLX"), one]) == no_comparison("NaN in MLX")


# --- probes ---------------------------------------------------------------------------------------------------------


def test_probes_cover_lengths_masks_and_types_and_repeat_by_seed() -> None:
    config = replace(TINY, max_position_embeddings=200)
    probes = make_probes(config, seed=3)
    assert {1, 7, 128, 200} <= {probe.shape[1] for probe in probes}
    assert all(probe.input_ids.max() < config.vocab_size and probe.input_ids.min() >= 0 for probe in probes)
    assert all(probe.keep.any(axis=1).all() for probe in probes)
    assert {0, 1} == {int(value) for probe in probes for value in probe.token_type_ids.ravel()}
    assert any(probe.padding_invariance and not probe.keep.all() for probe in probes)
    assert any((np.diff(probe.attention_mask) > 0).any() for probe in probes), "a mask with holes"
    again = make_probes(config, seed=3)
    assert all((a.input_ids == b.input_ids).all() for a, b in zip(probes, again, strict=True))
    other = make_probes(config, seed=4)
    assert any((a.input_ids != b.input_ids).any() for a, b in zip(probes, other, strict=True))


def test_a_model_with_one_token_type_and_few_positions_is_not_asked_for_more() -> None:
    config = replace(TINY, type_vocab_size=1, max_position_embeddings=5)
    for probe in make_probes(config, tokenize=lambda text, pair: ([1] * 9, [0] * 5 + [1] * 4)):
        assert probe.shape[1] <= 5
        assert not probe.token_type_ids.any()


@pytest.mark.parametrize("model_type", supported())
def test_padding_ids_and_mask_disagree_in_a_probe_of_every_architecture(model_type: str) -> None:
    config = config_from_hf({"model_type": model_type, **architecture(model_type).tiny})
    pad = config.pad_token_id or 0
    probe = next(probe for probe in make_probes(config) if probe.name.startswith("padding anywhere"))
    padding = probe.input_ids == pad
    assert (padding & probe.keep).any(axis=1)[1], "padding that the mask keeps"
    assert (~padding & ~probe.keep).any(axis=1)[2], "real tokens that the mask hides"
    assert (padding & ~probe.keep)[0, 0], "padding at the left"
    assert (padding & probe.keep)[3].all(), "padding alone"


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_token_type_is_probed(count: int) -> None:
    """Of three types the third alone, or none, was compared: a swapped row of the table went unseen."""
    probes = make_probes(replace(TINY, type_vocab_size=count))
    for probe in probes:
        if probe.shape[1] >= count and not probe.padding_invariance:
            assert set(probe.token_type_ids[probe.keep].tolist()) <= set(range(count))
    full = [probe for probe in probes if probe.keep.all() and probe.shape[1] >= count]
    assert len(full) >= 2
    for probe in full:
        assert set(probe.token_type_ids.ravel().tolist()) == set(range(count)), probe.name


@pytest.mark.parametrize("model_type", supported())
def test_the_probes_of_every_architecture_reach_its_limits_and_no_further(model_type: str) -> None:
    config = config_from_hf({"model_type": model_type, **architecture(model_type).tiny})
    probes = make_probes(config, tokenize=lambda text, pair: ([5] * 99, [0] * 50 + [1] * 49))
    assert max(probe.shape[1] for probe in probes) == config.max_length
    for probe in probes:
        for name, rows in config.table_rows.items():
            values = getattr(probe, name)
            values = np.zeros(1) if values is None else values
            assert 0 <= values.min() <= values.max() < rows


def test_a_model_for_long_texts_is_asked_for_what_fits_in_memory_and_for_far_positions() -> None:
    """Of 8192 tokens, as bge-m3 takes them, eager attention of 16 heads has 4 GB of weights, in several copies."""
    config = replace(TINY, max_position_embeddings=8192, num_attention_heads=16)
    probes = make_probes(config)
    weights = [probe.shape[0] * probe.shape[1] ** 2 * config.num_attention_heads for probe in probes]
    assert max(weights) <= 2**26
    assert max(probe.shape[1] for probe in probes) == longest_probe(config) == 2048
    (far,) = [probe for probe in probes if probe.position_ids is not None]
    assert far.position_ids is not None
    assert far.position_ids[0].tolist() == list(range(8192 - 128, 8192))
    assert (far.position_ids[1] >= 2048).all()
    assert (far.position_ids[1] < 8192).all()


def test_a_mistake_in_a_far_position_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.parity.probes._MAX_WEIGHTS", 4 * 150**2)
    save_tiny(tmp_path / "source", max_position_embeddings=400)
    out = convert(tmp_path / "source", tmp_path / "out", verify=False).path
    report = verify(out, tmp_path / "source")
    assert report.passed
    assert "the longest probe has 150 of the 400 tokens that the model takes" in "\n".join(report.provenance.notes)
    weights = out / "model.safetensors"
    tensors = load_file(weights)
    tensors["embeddings.position_embeddings.weight"][-1, 0] += 1e-3
    save_file(tensors, weights, {"format": "mlx"})
    report = verify(out, tmp_path / "source")
    assert report.first_diverging_layer == "embeddings"


def test_sentences_are_padded_and_a_foreign_tokenizer_is_refused() -> None:
    sentences = make_probes(TINY, tokenize=lambda text, pair: (list(range(1, 3 + len(text) % 7)), [0] * 9))[-1]
    assert sentences.name == "8 sentences and pairs"
    assert sentences.padding_invariance
    assert not sentences.keep.all()
    with pytest.raises(ProbeError, match="it gives id 97, but the model's vocab_size is 97; fix: use the tokenizer"):
        make_probes(TINY, tokenize=lambda text, pair: ([97], [0]))


# --- float32 that is float32 ----------------------------------------------------------------------------------------


def test_tf32_is_turned_off_before_the_gates_multiply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLX_ENABLE_TF32", raising=False)
    assert "MLX_ENABLE_TF32=0" in require_exact_float32()
    assert os.environ["MLX_ENABLE_TF32"] == "0"


def test_a_process_that_multiplies_as_tf32_already_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    full = mx.full

    def ten_bits(shape: Any, value: float) -> mx.array:
        return full(shape, round(value * 2**10) / 2**10)

    monkeypatch.setattr(gates.mx, "full", ten_bits)
    with pytest.raises(ParityError, match="fix: set MLX_ENABLE_TF32=0 before the process starts"):
        require_exact_float32()


# --- limits ---------------------------------------------------------------------------------------------------------


# PyTorch's own noise, float32 against float64, where it is above a third of the design's limits; measured with
# benchmarks.parity_errors. Such an architecture's limits are at most three times it, rounded up.
NOISE = {"mpnet": (1.9e-4, 2.9e-6)}  # all-mpnet-base-v2, --seeds 6


def test_the_mapping_limits_are_those_of_the_design_or_three_times_the_noise_of_pytorch() -> None:
    for model_type in supported():
        mapping = architecture(model_type).tolerances.mapping
        if model_type not in NOISE:
            assert (mapping.cumulative, mapping.local) == (2e-5, 5e-6)
            continue
        whole, alone = NOISE[model_type]
        assert whole > 2e-5 / 3
        assert 2e-5 < mapping.cumulative <= 3.2 * whole
        assert 5e-6 < mapping.local <= 3.2 * alone


def test_a_dtype_without_limits_is_refused(tmp_path: Path) -> None:
    reference = Reference(save_tiny(tmp_path), "BertModel")
    core = float32_core(open_source(str(tmp_path)))
    with pytest.raises(ParityError, match="no precision limits for bert written as 'float8'; fix: add them"):
        compare(reference, core, core, make_probes(TINY), written_dtype="float8", provenance=provenance())


# --- the gates ------------------------------------------------------------------------------------------------------


def test_compare_refuses_what_it_cannot_compare(tmp_path: Path) -> None:
    model = save_tiny(tmp_path)
    core = float32_core(open_source(str(tmp_path)))
    reference = Reference(model, "BertModel")
    with pytest.raises(ParityError, match="no probes, so nothing would be compared"):
        compare(reference, core, core, (), written_dtype="float32", provenance=provenance())
    core.set_dtype(mx.float16)
    with pytest.raises(ParityError, match="compares float32 with float32; this core has float16 parameters"):
        compare(reference, core, core, make_probes(TINY), written_dtype="float32", provenance=provenance())


def test_both_sides_are_in_evaluation_mode_and_progress_is_told(tmp_path: Path) -> None:
    model = save_tiny(tmp_path)
    core = float32_core(open_source(str(tmp_path)))
    core.train()
    probes = make_probes(core.config)
    told = []
    report = compare(
        Reference(model, "BertModel"),
        core,
        core,
        probes,
        written_dtype="float32",
        provenance=provenance(),
        progress=lambda *step: told.append(step),
    )
    assert report.passed  # dropout would be seen
    assert told == [(i, len(probes), name) for i, name in enumerate([*(probe.name for probe in probes), ""])]
