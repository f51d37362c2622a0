"""What is recorded, published and said of a quantization where nothing is compared, or with a conversion alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import converter.convert
from converter.convert import convert
from converter.parity.files import write_reports
from converter.parity.report import NotComparedError, ParityReport, Proof
from converter.publish.leaks import PublishError
from converter.publish.push import gather_evidence, push
from converter.quantize.recipes import HELD_OUT
from converter.terminal import show_result
from converter.verify import verify
from heads.command_line import install_fix
from mlxbert.files.output_file import FileRecord, manifest_bytes, manifest_problems, read_manifest
from tests.support.tiny import save_tiny

pytest.importorskip("torch")

NO_TORCH = f"torch and transformers are not installed; {install_fix('torch')}"
UNEVEN = "rows of 80 divide into no groups of 32, 64, 128"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 64, which groups divide, and in one layer of each block rows of 80, which none does."""
    directory = tmp_path_factory.mktemp("source") / "tiny"
    save_tiny(directory, "BertForMaskedLM", hidden_size=64, intermediate_size=80, num_hidden_layers=2)
    return directory


@pytest.fixture(scope="module")
def measured(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Quantized where PyTorch is not installed; not to be written to."""
    out = tmp_path_factory.mktemp("measured") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(converter.convert.importlib.util, "find_spec", lambda name: None)
        result = convert(source, out, quantize="4bit")
    assert (result.report, result.unverified) == (None, NO_TORCH)
    assert result.quantization is not None
    return out


@pytest.fixture
def out(measured: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    (tmp_path / "out").mkdir()
    for file in measured.iterdir():
        (tmp_path / "out" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "out"


class TestWithoutPyTorch:
    def test_the_cost_is_kept_and_no_verdict(self, measured: Path) -> None:
        parity = json.loads((measured / "parity.json").read_text("utf-8"))
        assert list(parity)[:3] == ["format_version", "passed", "not_compared"]
        assert parity["passed"] is None
        assert parity["not_compared"] == NO_TORCH
        assert set(parity["weights"]) == {"model.safetensors", "heads.safetensors"}
        records = read_manifest(measured) or {}
        assert parity["weights"] == {name: records[name].sha256 for name in parity["weights"]}
        assert "mlx" in parity["environment"]
        assert "torch" not in parity["environment"]
        assert [row["text"] for row in parity["quantization"]["quality"]] == list(HELD_OUT)
        assert all(0.9 < row["cosine_mean"] < 1 for row in parity["quantization"]["quality"])
        with pytest.raises(NotComparedError):
            ParityReport.read(measured)

    def test_the_card_has_the_cost_and_is_not_verified(self, measured: Path) -> None:
        card = (measured / "README.md").read_text("utf-8")
        assert "**NOT VERIFIED.**" in card
        assert "| encyclopedia | 64 |" in card
        assert f"- `encoder.layer.1.output.dense`: {UNEVEN}\n" in card

    def test_it_is_no_evidence_whatever_it_says(self, out: Path) -> None:
        for passed in (None, True):
            parity = json.loads((out / "parity.json").read_text("utf-8")) | {"passed": passed}
            data = (json.dumps(parity) + "\n").encode()
            (out / "parity.json").write_bytes(data)
            records = {**(read_manifest(out) or {}), "parity.json": FileRecord.of(data)}
            (out / "manifest.json").write_bytes(manifest_bytes(records))
            with pytest.raises(PublishError, match="the model was never compared with PyTorch; fix: mlxbert-verify "):
                gather_evidence(out)
        card = push(out, "mlx-community/tiny-4bit", allow_unverified=True, dry_run=True).plan.card
        assert "**Published although no comparison passed**: the model was never compared with PyTorch." in card
        assert "| encyclopedia | 64 |" in card
        assert "Yes" not in card

    def test_a_later_verification_takes_its_place(self, source: Path, out: Path) -> None:
        before = json.loads((out / "parity.json").read_text("utf-8"))["quantization"]
        report = verify(out, source)
        write_reports(report, out)
        assert manifest_problems(out) == []
        assert gather_evidence(out).unverified is None
        parity = json.loads((out / "parity.json").read_text("utf-8"))
        assert parity["passed"] is True
        assert parity["quantization"] == before
        assert "Yes, before it was quantized" in (out / "README.md").read_text("utf-8")


def test_nothing_measured_still_says_which_layers_kept_their_numbers(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", quantize="4bit", verify=False)
    assert not (tmp_path / "out" / "parity.json").exists()
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "It was not measured on text. Not quantized:" in card
    assert f"- `encoder.layer.0.output.dense`: {UNEVEN}\n" in card
    assert "- `embeddings.token_type_embeddings`: 2 rows: nothing to gain\n" in card


def test_a_model_made_from_verified_files_inherits_their_proof(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = convert(source, tmp_path / "first", verify=True)
    show_result(first)
    assert "Parity    VERIFIED: encoder, own head\n" in capsys.readouterr().out
    second = convert(tmp_path / "first", tmp_path / "second", quantize="8bit", verify=True)
    show_result(second)
    digest = (read_manifest(tmp_path / "first") or {})["parity.json"].sha256
    words = (
        "tiny, through first, whose float32 weights were compared with it (proof inherited by digest: parity.json "
        f"{digest[:12]})"
    )
    out = " ".join(capsys.readouterr().out.split())
    assert f"PASS mapping proven, float32 before packing: the same as {words}: encoder, own head (" in out
    verdict = f"VERIFIED before packing against {words}: encoder, own head; the cost is within the limits of 8bit"
    assert f"Parity {verdict} Next" in out
    assert second.report is not None
    assert second.report.provenance.proof == Proof("tiny", None, "float32", digest)
    assert f"Parity    {verdict}" in push(tmp_path / "second", "mlx-community/tiny-8bit", dry_run=True).plan.lines(
        tmp_path / "second"
    )
    # And so on: what is made of the heir's own unpacked numbers is compared with nothing, and says so.
    third = convert(tmp_path / "first", tmp_path / "third", dtype="bfloat16", verify=True)
    fourth = convert(tmp_path / "third", tmp_path / "fourth", quantize="8bit", verify=True)
    assert third.report is not None
    assert fourth.report is not None
    assert fourth.report.provenance.proof is not None
    assert (fourth.report.provenance.proof.source, fourth.report.provenance.proof.dtype) == ("tiny", "bfloat16")


@pytest.mark.parametrize("spoiled", ["no report", "edited report", "failed report", "other weights", "left out"])
def test_without_a_proof_of_these_very_weights_there_is_none_to_inherit(
    spoiled: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = convert(source, tmp_path / "first", verify=True).path
    report = json.loads((first / "parity.json").read_text("utf-8"))
    if spoiled == "no report":
        (first / "parity.json").unlink()
    elif spoiled == "edited report":
        (first / "parity.json").write_text(json.dumps(report | {"environment": {}}))
    else:
        if spoiled == "failed report":
            report["points"][0]["max_rel"] = 1.0
        elif spoiled == "other weights":
            report["provenance"]["weights"]["model.safetensors"] = "ab" * 32
        else:
            report["scope"].append({"name": "sentence pipeline", "compared": False, "detail": "why"})
        data = json.dumps(report).encode()
        (first / "parity.json").write_bytes(data)
        records = {**(read_manifest(first) or {}), "parity.json": FileRecord.of(data)}
        (first / "manifest.json").write_bytes(manifest_bytes(records))
    second = convert(first, tmp_path / "second", dtype="float16", verify=True)
    assert second.report is not None
    assert second.report.provenance.proof is None
    show_result(second)
    words = "first alone, itself a conversion of tiny, which was not compared"
    out = " ".join(capsys.readouterr().out.split())
    assert f"Parity VERIFIED against {words}: encoder, own head Next" in out
    assert f"PASS the same model as {words}: encoder, own head (" in out
    assert "itself a conversion of `tiny`, which was not compared, in PyTorch" in (
        tmp_path / "second" / "README.md"
    ).read_text("utf-8")
