"""The two gates' parts: measures, probes, the reference for every source form, and `verify` from end to end."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest

from converter import environment
from converter.canonical import float32_core
from converter.convert import convert
from converter.deviation import measure, no_comparison, worst
from converter.environment import InexactFloat32Error, require_exact_float32
from converter.parity import ParityError, compare
from converter.parity_report import CUMULATIVE, MAPPING, PADDING, PRECISION, ParityReport, Provenance
from converter.probes import ProbeError, make_probes
from converter.reference import Reference, ReferenceModelError, build_reference
from converter.source import open_source
from converter.tolerances import UnknownToleranceError, precision_limits, tolerances
from converter.verify import VerifyError, verify, write_reports
from mlxbert.config import BertConfig
from mlxbert.writer.manifest import manifest_problems
from tests.tiny import save_tiny, tiny_model

torch = pytest.importorskip("torch", reason="the reference is PyTorch: pip install 'mlxbert[torch]'")

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


def test_sentences_are_padded_and_a_foreign_tokenizer_is_refused() -> None:
    sentences = make_probes(TINY, tokenize=lambda text, pair: (list(range(1, 3 + len(text) % 7)), [0] * 9))[-1]
    assert sentences.name == "8 sentences and pairs"
    assert sentences.padding_invariance
    assert not sentences.keep.all()
    with pytest.raises(ProbeError, match="it gives id 97, but the model's vocab_size is 97; fix: use the tokenizer"):
        make_probes(TINY, tokenize=lambda text, pair: ([97], [0]))


# --- the reference --------------------------------------------------------------------------------------------------


def save_legacy_names(directory: Path, model: Any) -> None:
    def legacy(key: str) -> str:
        return key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    model.config.save_pretrained(directory)
    state = {legacy(key): tensor for key, tensor in model.state_dict().items()}
    torch.save(state, directory / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def save_wrapped_standard_name(directory: Path, model: Any) -> None:
    model.config.save_pretrained(directory)
    state = {f"module.{key}": tensor for key, tensor in model.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, directory / "pytorch_model.bin")


def save_wrapped_bfloat16(directory: Path, model: Any) -> None:
    model.config.save_pretrained(directory)
    state = {f"_orig_mod.{key}": tensor.bfloat16() for key, tensor in model.state_dict().items()}
    torch.save({"model_state_dict": state}, directory / "model.pt")


@pytest.mark.parametrize(
    ("save", "note"),
    [
        (lambda directory, model: model.save_pretrained(directory), "from_pretrained(directory)"),
        (
            lambda directory, model: model.save_pretrained(directory, max_shard_size="20KB"),
            "from_pretrained(directory)",
        ),
        (save_legacy_names, "from_pretrained(directory)"),
        (save_wrapped_standard_name, "from_pretrained(None, state_dict=…)"),
        (save_wrapped_bfloat16, "from_pretrained(None, state_dict=…)"),
    ],
    ids=["safetensors", "sharded", "legacy-gamma-beta-bin", "wrapped-bin", "wrapped-bfloat16-pt"],
)
@pytest.mark.parametrize("architecture", ["BertForPreTraining", "BertModel"])
def test_the_reference_is_what_transformers_computes(tmp_path: Path, architecture: str, save: Any, note: str) -> None:
    model = tiny_model(architecture)
    tmp_path.joinpath("source").mkdir()
    save(tmp_path / "source", model)
    (file,) = list((tmp_path / "source").glob("*.pt")) or [tmp_path / "source"]
    reference = build_reference(open_source(str(file)))
    assert f"PyTorch reference: {note}" in reference.notes
    assert reference.class_name == "BertModel"
    assert not reference.model.training
    assert ("cls.seq_relationship.bias" in reference.unexpected) == (architecture == "BertForPreTraining")
    encoder = getattr(model, "bert", model)
    if save is save_wrapped_bfloat16:
        encoder = encoder.bfloat16().float()
    for probe in make_probes(BertConfig.from_hf(model.config.to_dict()))[:4]:
        with torch.inference_mode():
            expected = encoder(
                torch.from_numpy(probe.input_ids),
                torch.from_numpy(probe.attention_mask),
                torch.from_numpy(probe.token_type_ids),
            )
        found = reference.run(probe)
        assert len(found.hidden_states) == model.config.num_hidden_layers + 1
        np.testing.assert_allclose(found.hidden_states[-1], expected.last_hidden_state.numpy(), atol=1e-5)
        assert found.pooler_output is not None
        np.testing.assert_allclose(found.pooler_output, expected.pooler_output.numpy(), atol=1e-5)


def test_without_a_pooler_none_is_invented(tmp_path: Path) -> None:
    save_tiny(tmp_path, pooler=False)
    reference = build_reference(open_source(str(tmp_path)))
    assert "the checkpoint has no pooler; none is compared" in reference.notes
    assert reference.run(make_probes(TINY)[0]).pooler_output is None


def test_the_pooler_that_a_head_class_ignores_is_compared(tmp_path: Path) -> None:
    # bert-base-uncased: "architectures" says BertForMaskedLM, which has no pooler, and the file has one.
    model = save_tiny(tmp_path, "BertForPreTraining")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    reference = build_reference(open_source(str(tmp_path)))
    assert torch.equal(reference.model.pooler.dense.weight, model.bert.pooler.dense.weight)


def test_nothing_random_is_ever_compared_with(tmp_path: Path) -> None:
    model = tiny_model()
    state = {key: tensor for key, tensor in model.state_dict().items() if "layer.1.output.dense" not in key}
    model.config.save_pretrained(tmp_path)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(ReferenceModelError) as error:
        build_reference(open_source(str(tmp_path / "model.pt")))
    assert str(error.value).splitlines() == [
        f"{tmp_path / 'model.pt'}: transformers finds no tensor for 2 parameters and would fill them at random; "
        "fix: verify against the complete checkpoint",
        "  encoder.layer.1.output.dense.bias",
        "  encoder.layer.1.output.dense.weight",
    ]


def test_half_a_pooler_is_not_filled_in(tmp_path: Path) -> None:
    model = tiny_model()
    model.config.save_pretrained(tmp_path)
    state = {key: tensor for key, tensor in model.state_dict().items() if key != "pooler.dense.bias"}
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(ReferenceModelError, match="finds no tensor for 1 parameters"):
        build_reference(open_source(str(tmp_path / "model.pt")))


def test_an_npz_and_a_missing_torch_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(tmp_path)
    source = open_source(str(tmp_path))
    with pytest.raises(ReferenceModelError, match=r"PyTorch does not read \.npz files; fix: verify against"):
        build_reference(replace(source, format="npz"))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ReferenceModelError, match=r"fix: pip install 'mlxbert\[torch\]'") as error:
        build_reference(source)
    assert "\n" not in str(error.value)


# --- float32 that is float32 ----------------------------------------------------------------------------------------


def test_tf32_is_turned_off_before_the_gates_multiply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLX_ENABLE_TF32", raising=False)
    assert "MLX_ENABLE_TF32=0" in require_exact_float32()
    assert os.environ["MLX_ENABLE_TF32"] == "0"


def test_a_process_that_multiplies_as_tf32_already_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    full = mx.full

    def ten_bits(shape: Any, value: float) -> mx.array:
        return full(shape, round(value * 2**10) / 2**10)

    monkeypatch.setattr(environment.mx, "full", ten_bits)
    with pytest.raises(InexactFloat32Error, match="fix: set MLX_ENABLE_TF32=0 before the process starts"):
        require_exact_float32()


# --- limits ---------------------------------------------------------------------------------------------------------


def test_the_mapping_limits_are_those_of_the_design() -> None:
    assert tolerances("bert").mapping.cumulative == 2e-5
    assert tolerances("bert").mapping.local == 5e-6


def test_an_architecture_or_dtype_without_limits_is_refused() -> None:
    with pytest.raises(
        UnknownToleranceError, match=r"no limits for model_type 'gpt2'; fix: add a row to converter/tol"
    ):
        tolerances("gpt2")
    with pytest.raises(UnknownToleranceError, match="no precision limits for bert written as 'float8'; fix: add them"):
        precision_limits("bert", "float8")


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


# --- verify ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    save_tiny(directory, "BertForPreTraining")
    return directory


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_convert_writes_verifies(source: Path, tmp_path: Path, dtype: str) -> None:
    out = convert(source, tmp_path / "out", dtype=dtype, verify=False).path
    report = verify(out, source)
    assert report.passed, report.failures
    assert report.written_dtype == dtype
    assert {point.check for point in report.points} >= {CUMULATIVE, PADDING}
    assert "8 sentences and pairs" in report.probes[-1]
    errors = [point.max_abs for point in report.select(PRECISION, CUMULATIVE)]
    if dtype == "float32":
        assert set(errors) == {0.0}
        assert report.provenance.float32_core == "the written float32 weights in float32"
    else:
        assert min(error for error in errors if error is not None) > 0
        assert "through the mapping" in report.provenance.float32_core
    assert report.provenance.source == "source"


def test_half_precision_that_was_kept_is_the_mapping_gates_own_side(tmp_path: Path) -> None:
    model = tiny_model().bfloat16()
    model.save_pretrained(tmp_path / "source")
    out = convert(tmp_path / "source", tmp_path / "out", verify=False).path
    report = verify(out, tmp_path / "source")
    assert report.passed, report.failures
    assert report.written_dtype == "bfloat16"
    assert report.provenance.float32_core == "the written bfloat16 weights in float32"
    assert any("no tokenizer" in note for note in report.provenance.notes)


def test_a_weight_that_was_changed_after_conversion_is_found(source: Path, tmp_path: Path) -> None:
    out = convert(source, tmp_path / "out", verify=False).path
    tensors = cast(dict[str, mx.array], mx.load(str(out / "model.safetensors")))
    name = "encoder.layer.1.intermediate.dense.bias"
    tensors[name] = tensors[name] + 1e-3
    mx.save_safetensors(str(out / "model.safetensors"), tensors, {"format": "mlx"})
    report = verify(out, source)
    assert not report.passed
    assert report.first_diverging_layer == "encoder.layer.1"


def test_another_eps_in_config_json_is_found(source: Path, tmp_path: Path) -> None:
    out = convert(source, tmp_path / "out", verify=False).path
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-3}))
    assert verify(out, source).first_diverging_layer == "embeddings"


def test_the_probes_seed_is_in_the_report_and_the_same_run_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    out = convert(source, tmp_path / "out", verify=False).path
    report = verify(out, source, seed=7)
    assert report.provenance.seed == 7
    assert report.to_json() == verify(out, source, seed=7).to_json()


def test_reports_are_written_and_the_manifest_still_holds(source: Path, tmp_path: Path) -> None:
    out = convert(source, tmp_path / "out", verify=False).path
    report = verify(out, source)
    junit, html = tmp_path / "reports" / "parity.xml", tmp_path / "reports" / "parity.html"
    for _ in range(2):  # again, over what is there
        lines = write_reports(report, out, junit=junit, html=html)
        assert lines == [f"Written: {path}" for path in (junit, html, out / "parity.json")]
        assert manifest_problems(out) == []
    assert ParityReport.from_json((out / "parity.json").read_text(encoding="utf-8")) == report
    assert sorted(path.name for path in junit.parent.iterdir()) == ["parity.html", "parity.xml"]


def test_a_directory_that_cannot_be_written_costs_a_line(source: Path, tmp_path: Path) -> None:
    out = convert(source, tmp_path / "out", verify=False).path
    report = verify(out, source)
    (out / "parity.json").mkdir()
    (line,) = write_reports(report, out)
    assert line.startswith(f"Not written: {out / 'parity.json'}: cannot be written: ")


def test_no_such_directory_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(VerifyError) as error:
        verify(tmp_path / "none", "bert-base-uncased")
    none = tmp_path / "none"
    assert str(error.value) == f"{none}: no such directory; fix: mlxbert-convert bert-base-uncased -o {none}"


def test_the_real_model_verifies(minilm_source: Path, tmp_path: Path) -> None:
    out = convert(minilm_source, tmp_path / "out", verify=False).path
    report = verify(out, minilm_source)
    assert report.passed, report.failures
    # The limits have room: what another machine's rounding may take.
    assert max(point.max_rel or 1 for point in report.select(MAPPING, CUMULATIVE)) < 2e-5 * 0.75
