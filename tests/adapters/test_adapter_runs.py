"""Runs that train adapters: folds, resumed to the byte, merged or kept, on a packed base, by Python and command."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import mlxbert
from converter.convert import convert
from converter.export.member import read_member
from converter.publish.leaks import PublishError
from converter.publish.push import gather_evidence
from converter.readers.source_files import SourceError
from mlxbert.adapters import AdapterError, LoRA, adapted
from mlxbert.adapters.files import ADAPTER_FILE, SETTINGS_FILE
from mlxbert.checkpoint import base_of, load_core, weights_sha256
from mlxbert.cli import main as cli
from mlxbert.quantization import QuantizationError
from mlxbert.runs import Run, resume, train
from mlxbert.runs.blend import blend
from mlxbert.runs.command import repeating_command
from mlxbert.training.state import SaveError
from mlxbert.training.step import TrainStep
from mlxbert.with_head import BertWithHead
from tests.support.run_samples import QUICK, sample
from tests.training.test_every_architecture import contents

GIVEN: dict[str, Any] = {"text": "text", "target": "y", "id": "id", **QUICK}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a converted tiny BERT, "float", and the same in 8 bits, "packed"."""
    pytest.importorskip("torch", reason="transformers makes the checkpoint")
    from tests.support.tiny import save_tiny

    root = tmp_path_factory.mktemp("bases")
    save_tiny(root / "source", num_hidden_layers=2, hidden_size=64)
    convert(root / "source", root / "float", verify=False)
    convert(root / "source", root / "packed", quantize="8bit", verify=False)
    return root


class Stopped(BaseException):
    """What a kill is to the code that runs: nothing handles it."""


@pytest.mark.parametrize(("base", "merge"), [("float", "yes"), ("float", "no"), ("packed", "no")])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    base: str, merge: str, bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = f"rank=4,layers=query+output.dense,dropout=0.1,dora=yes,merge={merge}"
    settings = {"lora": lora, "ema": 0.9, "layer_decay": 0.9, "checkpoint_layers": True, "dropout": 0.1}
    given = GIVEN | settings | {"model": bases / base, "epochs": 1, "save_every": 1}
    frame = sample("binary", 24)
    train(frame, out=tmp_path / "straight", **given)
    real, calls = TrainStep.update, [0]

    def stopped(self: TrainStep) -> Any:
        report = real(self)
        calls[0] += 1
        if calls[0] == 4:  # in the second fold, whose first step is saved
            raise Stopped
        return report

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "update", stopped)
        with pytest.raises(Stopped):
            train(frame, out=tmp_path / "run", **given)
    state = next((tmp_path / "run").rglob("state.safetensors"))
    assert state.stat().st_size < 0.6 * (bases / "float/model.safetensors").stat().st_size
    run = resume(tmp_path / "run", frame, progress=False)
    assert contents(tmp_path / "run") == contents(tmp_path / "straight")
    assert run.record.config.lora == LoRA.make(lora)
    assert "--lora rank=4,alpha=8,dropout=0.1,layers=query+output.dense" in _command(run, tmp_path)


def _command(run: Run, tmp_path: Path) -> str:
    values = json.loads(json.dumps(run.record.values))
    values["data"]["path"] = "data.csv"
    return repeating_command(type(run.record).of(values), "out")


def test_a_state_on_another_base_is_refused(bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no manifest names the checkpoint's files."""
    shutil.copytree(bases / "float", tmp_path / "base")
    (tmp_path / "base" / "manifest.json").unlink()
    given = GIVEN | {"model": tmp_path / "base", "lora": "rank=4", "save_every": 1}
    frame = sample("binary", 24)
    real, calls = TrainStep.update, [0]

    def stopped(self: TrainStep) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise Stopped
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "update", stopped)
        with pytest.raises(Stopped):
            train(frame, out=tmp_path / "run", **given)
    weights = load_file(tmp_path / "base" / "model.safetensors")
    save_file({name: array + np.float32(1e-3) for name, array in weights.items()}, tmp_path / "base/model.safetensors")
    with pytest.raises(SaveError, match=r"belong to a base with the sha256 '.*', and this one has .*; fix"):
        resume(tmp_path / "run", frame, progress=False)


def test_merged_models_are_ordinary_and_kept_ones_are_small(bases: Path, tmp_path: Path) -> None:
    frame = sample("binary")
    given = GIVEN | {"model": bases / "float"}
    merged = train(frame, out=tmp_path / "merged", lora={"r": 4, "lora_alpha": 8}, **given)
    kept = train(frame, out=tmp_path / "kept", lora=LoRA(4, 8, merge=False), **given)
    for first, second in zip(merged.members, kept.members, strict=True):
        assert not (first / ADAPTER_FILE).exists()
        assert not (second / "model.safetensors").exists()
        assert (second / ADAPTER_FILE).stat().st_size < 0.1 * (first / "model.safetensors").stat().st_size
        assert load_core(first).lora is None
        assert len(adapted(load_core(second))) == 4
        assert mlxbert.load(second)[0].lora == LoRA(4, 8, merge=False)
    rows = frame.drop(columns="y")
    np.testing.assert_allclose(kept.predict_frame(rows).values, merged.predict_frame(rows).values, atol=1e-5)
    # A kept model that is loaded and saved again keeps its base.
    BertWithHead.load(kept.members[0]).save(tmp_path / "again")
    assert (tmp_path / "again" / SETTINGS_FILE).read_bytes() == (kept.members[0] / SETTINGS_FILE).read_bytes()


def test_a_packed_base_is_trained_only_with_adapters(bases: Path, tmp_path: Path) -> None:
    frame, given = sample("binary"), GIVEN | {"model": bases / "packed"}
    with pytest.raises(QuantizationError, match=r"is quantized.*fix: train adapters on it with --lora rank=8"):
        train(frame, out=tmp_path / "run", **given)
    with pytest.raises(AdapterError, match=r"cannot be merged into packed weights, .*; fix: merge=no, or"):
        train(frame, out=tmp_path / "run", lora="rank=4,merge=yes", **given)
    assert not (tmp_path / "run").exists()
    run = train(frame, out=tmp_path / "run", lora="rank=4", **given)
    assert not list(run.path.rglob("model*.safetensors"))
    predicted = run.predict_frame(frame.drop(columns="y"))
    assert np.isfinite(predicted.values).all()
    with pytest.raises(AdapterError, match="cannot be merged into packed weights"):
        read_member(run.members[0])


@pytest.fixture(scope="module")
def kept(bases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with kept adapters, on a base of its own."""
    root = tmp_path_factory.mktemp("kept")
    shutil.copytree(bases / "float", root / "base")
    train(sample("binary"), out=root / "run", lora="rank=4,merge=no", **GIVEN | {"model": root / "base"})
    return root


def test_kept_adapters_are_no_checkpoint_to_start_from(kept: Path, tmp_path: Path) -> None:
    """Without the refusal the adapters alone would be trained, or new ones would be saved for the old base."""
    member, frame = next((kept / "run/members").iterdir()), sample("binary")
    given, message = GIVEN | {"model": member}, "are not merged into their base; fix: python -c"
    for lora in ({}, {"lora": "rank=2,merge=no"}):
        with pytest.raises(AdapterError, match=message):
            train(frame, out=tmp_path / "run", **given, **lora)
    assert not (tmp_path / "run").exists()
    with pytest.raises(PublishError, match=message):
        gather_evidence(member)
    with pytest.raises(SourceError, match=message) as error:
        convert(member, tmp_path / "out", quantize="8bit")
    code = shlex.split(str(error.value).partition("fix: ")[2].removesuffix(", and take OUT"))[2]
    exec(code.replace("OUT", str(tmp_path / "OUT")), {})
    ids = np.array([[2, 5, 6, 3]])
    merged, unmerged = (BertWithHead.load(path)(ids) for path in (tmp_path / "OUT", member))
    np.testing.assert_allclose(np.array(merged), np.array(unmerged), atol=1e-5)
    train(frame, out=tmp_path / "run", **given | {"model": tmp_path / "OUT"})


def test_the_base_is_found_at_its_place_or_is_named(kept: Path, bases: Path, tmp_path: Path) -> None:
    root = tmp_path / "moved"
    shutil.copytree(kept, root)
    rows = sample("binary").drop(columns="y")
    expected = Run.open(kept / "run").predict_frame(rows).values
    member = Run.open(root / "run").members[0]
    settings = json.loads((member / SETTINGS_FILE).read_text())
    digest = settings["base"]["sha256"]
    assert digest == weights_sha256(kept / "base") == base_of(member).sha256
    for each in Run.open(root / "run").members:
        settings["base"]["path"] = str(root / "gone")
        (each / SETTINGS_FILE).write_text(json.dumps(settings))
    with pytest.raises(AdapterError, match=rf"the base of this adapter was at .*gone \(sha256 '{digest}'\), and is"):
        Run.open(root / "run").predict_frame(rows)
    (root / "gone").symlink_to(root / "base")  # what the message says, for commands without --base
    np.testing.assert_array_equal(Run.open(root / "run").predict_frame(rows).values, expected)
    (root / "gone").unlink()
    run = Run.open(root / "run", base=root / "base")
    np.testing.assert_array_equal(run.predict_frame(rows).values, expected)
    other = weights_sha256(bases / "packed")
    with pytest.raises(AdapterError, match=rf"sha256 {digest}, and those of .*packed have {other}"):
        Run.open(root / "run", base=bases / "packed").predict_frame(rows)
    with pytest.raises(AdapterError, match="is an adapter itself, not the base of"):
        BertWithHead.load(member, base=member)
    with pytest.raises(mlxbert.MLXBertError, match=r"is a whole model, no adapter; fix: leave out base="):
        mlxbert.load(bases / "float", base=bases / "float")
    config = json.loads((root / "base/config.json").read_text())
    shutil.copytree(root / "base", tmp_path / "changed")
    (tmp_path / "changed/config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    with pytest.raises(AdapterError, match=r"differs from that of its base .*changed; fix: restore .*\n  hidden_"):
        Run.open(root / "run", base=tmp_path / "changed").predict_frame(rows)
    rows.to_csv(tmp_path / "test.csv", index=False)
    words = ["predict", str(root / "run"), str(tmp_path / "test.csv"), "-o", str(tmp_path / "s.csv")]
    refused = CliRunner().invoke(cli, words)
    assert refused.exit_code != 0
    done = CliRunner().invoke(cli, [*words, "--base", str(root / "base")])
    assert done.exit_code == 0, done.output
    blended = blend([root / "run", kept / "run"], out=tmp_path / "blend").path
    words[1] = str(blended)
    refused = CliRunner().invoke(cli, [*words, "--base", str(root / "base")])
    assert "blend is a blend; fix: put the base, or a link to it, at its recorded place" in refused.output
    (root / "gone").symlink_to(root / "base")
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"format": "x"}, "format 'x', version 1; this mlxbert reads 'mlxbert-adapter', version 1"),
        ({"settings": {"rank": 0}}, "adapter.json: settings: lora: rank must be a whole number from 1, not 0"),
        ({"settings": {"rank": 3}}, "are no adapter of rank 3"),
        ({"settings": {"rank": 4, "dora": True}}, "missing: .*magnitude"),
        ({"settings": {"rank": "4"}}, "settings.rank must be a whole number"),
        ({"settings": 1}, "settings must be an object"),
        ({"base": {"path": "\0", "sha256": None}}, "the base of this adapter was at"),
        ({"base": {"path": "x" * 9000, "sha256": None}}, "the base of this adapter was at"),
        ({"base": None}, "base must be an object"),
        (b"{", "adapter.json"),
    ],
)
def test_damaged_settings_of_an_adapter(damage: Any, message: str, kept: Path, tmp_path: Path) -> None:
    member = tmp_path / "member"
    shutil.copytree(Run.open(kept / "run").members[0], member)
    file = member / SETTINGS_FILE
    content = json.loads(file.read_text())
    file.write_bytes(damage if isinstance(damage, bytes) else json.dumps(content | damage).encode())
    with pytest.raises(mlxbert.MLXBertError, match=message):
        BertWithHead.load(member)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {name.replace("query", "qeury"): a for name, a in t.items()}, "qeury is no linear layer of this"),
        (lambda t: {name.replace("lora_a", "x"): a for name, a in t.items()}, "unexpected: .*x"),
        (lambda t: {name: a.T for name, a in t.items()}, "are no adapter of rank 4"),
        (lambda t: {name: a.astype(np.float16) for name, a in t.items()}, "has dtype .*float16, not float32"),
        (
            lambda t: {name: a[:, :3] if "lora_a" in name else a for name, a in t.items()},
            "is .64, 64., its",
        ),
        (lambda t: {name: a * np.float32(np.nan) for name, a in t.items()}, "numbers that are not finite"),
        (lambda t: {name: a[0, 0] for name, a in t.items()}, "are no adapter of rank 4"),
        (lambda t: {}, "it has no adapter"),
        (None, "it has no adapter"),
    ],
)
def test_damaged_tensors_of_an_adapter(change: Any, message: str, kept: Path, tmp_path: Path) -> None:
    member = tmp_path / "member"
    shutil.copytree(Run.open(kept / "run").members[0], member)
    file = member / ADAPTER_FILE
    tensors = load_file(file)
    file.unlink()
    if change is not None:
        save_file({name: np.ascontiguousarray(array) for name, array in change(tensors).items()}, file)
    with pytest.raises(AdapterError, match=message):
        BertWithHead.load(member)
    file.write_bytes(b"\0" * 64)
    with pytest.raises(AdapterError, match="is damaged"):
        BertWithHead.load(member)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ("rank=0", "lora: rank must be a whole number from 1, not 0; fix: rank=8"),
        ("layers=qurey", "lora: no linear layer is called 'qurey'; did you mean query?"),
        ("rank", "lora: 'rank': give NAME=VALUE"),
    ],
)
def test_the_command_refuses_in_one_line(lora: str, message: str, bases: Path, tmp_path: Path) -> None:
    sample("binary").to_csv(tmp_path / "train.csv", index=False)
    words = ["train", str(tmp_path / "train.csv"), "--model", str(bases / "float"), "--text", "text", "--target", "y"]
    result = CliRunner().invoke(cli, [*words, "--lora", lora, "-o", str(tmp_path / "run")])
    assert result.exit_code != 0
    assert message in result.output + str(result.exception)
    assert not (tmp_path / "run").exists()
