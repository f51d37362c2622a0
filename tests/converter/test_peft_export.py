"""Adapters of trained models in PEFT's format: the real peft loads them, and computes the same within 1e-5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import transformers
from click.testing import CliRunner

from converter import cli
from converter.convert import convert
from converter.export.checkpoint import ExportError
from converter.export.run import export_directory
from converter.peft.export import export_adapter
from converter.verify import verify
from mlxbert.adapters import LoRA, adapted, add_adapters
from mlxbert.data.text_columns import RowText
from mlxbert.models.architecture import architecture, supported
from mlxbert.pretrained import load_with_head
from mlxbert.with_head import BertWithHead
from tests.converter.test_peft import LIMIT, batch, error, states_error
from tests.support.encoder_pairs import reference
from tests.support.exported_samples import run_json, trained, write_run
from tests.support.tiny import save_tiny

peft = pytest.importorskip("peft", reason="the reference is PEFT, which is not installed")

KEPT: dict[str, Any] = {"rank": 3, "alpha": 7.5, "merge": False}


def adapted_member(converted: Path, out: Path, settings: LoRA, head: str, pooling: str, **options: Any) -> Path:
    """A saved model that keeps random adapters, none of them without an effect."""
    model = BertWithHead.load(trained(converted, out.with_name(f"{out.name}-plain"), head, pooling, **options))
    mx.random.seed(4)
    add_adapters(model.core, settings)
    for layer in adapted(model.core).values():
        layer.lora_b = 0.2 * mx.random.normal(layer.lora_b.shape)
        if layer.dora:
            layer.magnitude = layer.magnitude * mx.random.uniform(0.8, 1.3, layer.magnitude.shape)
    return model.save(out)


def in_peft(base: Path, exported: Path, auto: str) -> Any:
    """PEFT's model, loaded as the command says; every tensor of the adapter has its place."""
    config = transformers.AutoConfig.from_pretrained(exported)
    model = getattr(transformers, auto).from_pretrained(base, config=config)
    loaded = peft.PeftModel.from_pretrained(model, exported).eval()
    result = loaded.load_adapter(exported, "default")
    assert not result.unexpected_keys
    return loaded


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("model_type", supported())
def test_the_encoder_is_the_same_in_peft(model_type: str, dora: bool, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", architecture(model_type).encoder_class)
    convert(tmp_path / "base", tmp_path / "mlx", verify=False)
    settings = LoRA(**KEPT, layers=("all",), dora=dora)
    member = adapted_member(tmp_path / "mlx", tmp_path / "member", settings, "multiclass", "mean")
    exported = export_adapter(member, tmp_path / "out")
    assert "the head (multiclass) is in head.safetensors, which PEFT does not read" in exported.what
    core = BertWithHead.load(member).core
    assert states_error(core, in_peft(tmp_path / "base", exported.path, "AutoModel"), batch(base.config)) < LIMIT


HEADS = {
    "multiclass": ("multiclass", {}),
    "binary": ("binary", {}),
    "regression": ("regression", {"scaling": "standard"}),
}


@pytest.mark.parametrize("case", HEADS)
def test_a_classifier_is_the_same_in_peft_and_comes_back(case: str, tmp_path: Path) -> None:
    head, options = HEADS[case]
    base = save_tiny(tmp_path / "base", "BertForPreTraining")
    convert(tmp_path / "base", tmp_path / "mlx", verify=False)
    settings = LoRA(**KEPT, layers=("query", "value", "pooler.dense"))
    member = adapted_member(tmp_path / "mlx", tmp_path / "member", settings, head, "pooler", **options)
    exported = export_adapter(member, tmp_path / "out")
    assert exported.what.endswith("of a BertForSequenceClassification, in PEFT's format, with its classifier")
    inputs = batch(base.config)
    theirs = in_peft(tmp_path / "base", exported.path, "AutoModelForSequenceClassification")
    logits = reference(theirs.base_model.model, inputs).logits
    model = BertWithHead.load(member)
    ours = model(**inputs) if head != "regression" else model.predict(model(**inputs)).reshape(logits.shape)
    assert error(ours, logits) < LIMIT
    back = convert(exported.path, tmp_path / "back", base=tmp_path / "mlx", verify=False)
    assert error(load_with_head(back.path)[0](**inputs).logits, logits) < LIMIT
    labels = json.loads((back.path / "config.json").read_text())["id2label"]
    assert labels == json.loads((exported.path / "config.json").read_text())["id2label"]


def test_the_command_and_what_it_refuses(tmp_path: Path) -> None:
    save_tiny(tmp_path / "base", "BertModel")
    convert(tmp_path / "base", tmp_path / "mlx", verify=False)
    run = tmp_path / "run"
    member = adapted_member(tmp_path / "mlx", run / "members/seed0-fold0", LoRA(**KEPT), "multiclass", "pooler")
    plain = member.with_name("seed0-fold0-plain")
    submission = {"id_column": "id", "columns": ["target"], "values": "labels"}
    write_run(run, run_json("multiclass", RowText("a"), ["seed0-fold0"], submission))
    result = CliRunner().invoke(cli.export, [str(run), "--peft", "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "LoRA of rank 3 of a BertForSequenceClassification, in PEFT's format" in result.output
    assert "BASE IN PYTORCH is what the base model was converted from, or mlxbert-export of it" in result.output
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["task_type"]) == (3, 7.5, "SEQ_CLS")
    assert config["modules_to_save"] == ["classifier"]
    assert "bert.encoder.layer.0.attention.self.query" in config["target_modules"]
    with pytest.raises(ExportError, match=r"has no adapters of its own .*; fix: mlxbert-export without --peft"):
        export_adapter(plain, tmp_path / "no")
    names = ["seed0-fold0", "seed0-fold0-plain"]
    write_run(run, run_json("multiclass", RowText("a"), names, submission))
    with pytest.raises(ExportError, match=r"has 2 models, and an adapter belongs to one; fix: one of them, such as "):
        export_adapter(run, tmp_path / "no")


def test_without_the_option_the_adapters_are_merged(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "BertModel")
    convert(tmp_path / "base", tmp_path / "mlx", verify=False)
    member = adapted_member(tmp_path / "mlx", tmp_path / "member", LoRA(**KEPT), "multiclass", "pooler")
    exported = export_directory(member, tmp_path / "out")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(exported.path)
    inputs = batch(base.config)
    assert error(np.array(BertWithHead.load(member)(**inputs)), reference(theirs, inputs).logits) < LIMIT
    assert verify(member).passed
