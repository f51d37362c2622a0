"""`verify` from end to end: conversions that are right, and converted directories that were changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import cast

import mlx.core as mx
import pytest

from converter.convert import convert
from converter.parity.report import CUMULATIVE, MAPPING, PADDING, PRECISION, ParityReport
from converter.verify import VerifyError, verify, write_reports
from mlxbert.files.output_file import WriteError, manifest_problems
from tests.support.hub.plugin import Hub
from tests.support.tiny import save_tiny, tiny_model

torch = pytest.importorskip("torch", reason="the reference is PyTorch, which is not installed")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("verify") / "source"
    save_tiny(directory, "BertForPreTraining")
    return directory


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("verify") / "other"
    save_tiny(directory, "BertForPreTraining", seed=1)
    return directory


@pytest.fixture(scope="module")
def converted(source: Path) -> Path:
    return convert(source, source.parent / "out", verify=False).path


@pytest.fixture
def out(converted: Path, tmp_path: Path) -> Path:
    """A conversion that the test may change."""
    return Path(shutil.copytree(converted, tmp_path / "out"))


@pytest.fixture(scope="module")
def report(converted: Path, source: Path) -> ParityReport:
    return verify(converted, source)


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


def test_a_weight_that_was_changed_after_conversion_is_found(out: Path, source: Path) -> None:
    tensors = cast(dict[str, mx.array], mx.load(str(out / "model.safetensors")))
    name = "encoder.layer.1.intermediate.dense.bias"
    tensors[name] = tensors[name] + 1e-3
    mx.save_safetensors(str(out / "model.safetensors"), tensors, {"format": "mlx"})
    report = verify(out, source)
    assert not report.passed
    assert report.first_diverging_layer == "encoder.layer.1"


def test_another_eps_in_config_json_is_found(out: Path, source: Path) -> None:
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-3}))
    assert verify(out, source).first_diverging_layer == "embeddings"


def test_the_probes_seed_is_in_the_report_and_the_same_run_gives_the_same_bytes(out: Path, source: Path) -> None:
    report = verify(out, source, seed=7)
    assert report.provenance.seed == 7
    assert report.to_json() == verify(out, source, seed=7).to_json()


def test_reports_are_written_and_the_manifest_still_holds(out: Path, tmp_path: Path, report: ParityReport) -> None:
    junit, html = tmp_path / "reports" / "parity.xml", tmp_path / "reports" / "parity.html"
    for _ in range(2):  # again, over what is there
        lines = write_reports(report, out, junit=junit, html=html)
        assert lines == [f"Written: {path}" for path in (junit, html, out / "parity.json")]
        assert manifest_problems(out) == []
    assert ParityReport.read(out) == report
    assert sorted(path.name for path in junit.parent.iterdir()) == ["parity.html", "parity.xml"]


def test_a_report_never_replaces_a_file_of_the_model(out: Path, tmp_path: Path, report: ParityReport) -> None:
    (tmp_path / "link").symlink_to(out / "model.safetensors")
    for path in (out / "config.json", out / "manifest.json", out / ".." / "out" / "vocab.txt", tmp_path / "link"):
        for kind in ("html", "junit"):
            with pytest.raises(WriteError, match=r"of the model, not a report; fix: give another name$"):
                write_reports(report, out, **{kind: path})
    assert manifest_problems(out) == []
    assert write_reports(report, out, html=out / "parity.html")[0] == f"Written: {out / 'parity.html'}"


def test_a_directory_that_cannot_be_written_costs_a_line(out: Path, report: ParityReport) -> None:
    (out / "parity.json").mkdir()
    (line,) = write_reports(report, out)
    assert line.startswith(f"Not written: {out / 'parity.json'}: is a directory, not a file; ")


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


def test_the_card_says_what_was_found_unless_somebody_has_edited_it(out: Path, report: ParityReport) -> None:
    card = out / "README.md"
    assert "NOT VERIFIED" in card.read_text()
    write_reports(report, out)
    assert "Yes: compared element by element" in card.read_text()
    assert "# out" in card.read_text().splitlines()
    assert manifest_problems(out) == []
    card.write_text("# mine\n")
    write_reports(report, out)
    assert card.read_text() == "# mine\n"


def test_itself_is_no_reference(out: Path) -> None:
    with pytest.raises(VerifyError, match="is compared with itself; fix: give --reference what it was converted from"):
        verify(out, out)


def test_a_wrong_reference_does_not_replace_a_proof(source: Path, other: Path, tmp_path: Path) -> None:
    out = convert(source, tmp_path / "out", verify=True).path
    proof, card = (out / "parity.json").read_bytes(), (out / "README.md").read_bytes()
    report = verify(out, other)
    assert not report.passed
    (line,) = write_reports(report, out)
    assert "it passes against source, and this failure is against other; it stays" in line
    assert (out / "parity.json").read_bytes() == proof
    assert (out / "README.md").read_bytes() == card
    assert manifest_problems(out) == []


def test_a_file_that_differs_from_the_manifest_is_noted(out: Path, source: Path) -> None:
    (out / "vocab.txt").write_text((out / "vocab.txt").read_text() + "\n")
    assert any("manifest: vocab.txt: " in note for note in verify(out, source).provenance.notes)


def test_the_recorded_commit_is_compared_not_what_the_branch_has_become(
    source: Path, other: Path, tmp_path: Path, hub: Hub
) -> None:
    files = {file.name: file.read_bytes() for file in source.iterdir()}
    repository = hub.add("team/bert", files)
    out = convert("team/bert", tmp_path / "out", verify=False).path
    repository.commit({file.name: file.read_bytes() for file in other.iterdir()})
    assert verify(out, "team/bert").passed
    assert not verify(out, "team/bert", revision="main").passed
