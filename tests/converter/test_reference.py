"""The PyTorch reference: what transformers makes of every source form, and never anything random."""

from __future__ import annotations

import inspect
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converter.parity.probes import make_probes
from converter.parity.reference import ReferenceModelError, build_reference
from converter.source import open_source
from heads.command_line import install_fix
from mlxbert.models.architecture import HeadKind, architecture, config_from_hf, supported
from mlxbert.models.bert import BertConfig
from tests.support.tiny import save_tiny, tiny_model

torch = pytest.importorskip("torch", reason="the reference is PyTorch, which is not installed")

BUILT = ["BertForPreTraining"]
for declared in map(architecture, supported()):
    BUILT += [declared.encoder_class, str(declared.head_of(HeadKind.TOKEN))]
TINY = BertConfig(vocab_size=97, max_position_embeddings=64)


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
@pytest.mark.parametrize("architecture", BUILT)
def test_the_reference_is_what_transformers_computes(tmp_path: Path, architecture: str, save: Any, note: str) -> None:
    model = tiny_model(architecture)
    model.config.architectures = [architecture]  # the tensors alone may fit several classes
    tmp_path.joinpath("source").mkdir()
    save(tmp_path / "source", model)
    (file,) = list((tmp_path / "source").glob("*.pt")) or [tmp_path / "source"]
    reference = build_reference(open_source(str(file)))
    assert f"PyTorch reference: {note}" in reference.notes
    assert reference.class_name == architecture
    assert not reference.model.training
    assert reference.unexpected == ()
    encoder = model.base_model
    if save is save_wrapped_bfloat16:
        for parameter in encoder.parameters():  # not the buffers: no file has them
            parameter.data = parameter.data.bfloat16().float()
    for probe in make_probes(config_from_hf(model.config.to_dict()))[:4]:
        with torch.inference_mode():
            names = ("input_ids", "attention_mask", "token_type_ids")
            taken = [name for name in names if name in inspect.signature(encoder.forward).parameters]
            expected = encoder(**{name: torch.from_numpy(getattr(probe, name)) for name in taken})
        found = reference.run(probe)
        assert len(found.hidden_states) == config_from_hf(model.config.to_dict()).num_layers + 1
        # Padding that attends to nothing is not the same in every implementation of attention.
        kept = probe.attention_mask == 1
        last, wanted = found.hidden_states[-1][kept], expected.last_hidden_state.numpy()[kept]
        np.testing.assert_allclose(last, wanted, atol=1e-5)
        if getattr(expected, "pooler_output", None) is None:
            assert found.pooler_output is None
        else:
            assert found.pooler_output is not None
            np.testing.assert_allclose(found.pooler_output, expected.pooler_output.numpy(), atol=1e-5)


@pytest.mark.parametrize("size", [3, -1, "x"])
def test_chunks_of_the_feed_forward_do_not_stop_the_reference(tmp_path: Path, size: Any) -> None:
    """transformers raises for a length that is no multiple of them; they change no number."""
    model = save_tiny(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"chunk_size_feed_forward": size}))
    probe = make_probes(BertConfig.from_hf(model.config.to_dict()))[1]
    assert probe.shape[1] % 3
    found = build_reference(open_source(str(tmp_path))).run(probe)
    with torch.inference_mode():
        expected = model(torch.from_numpy(probe.input_ids), token_type_ids=torch.from_numpy(probe.token_type_ids))
    np.testing.assert_allclose(found.hidden_states[-1], expected.last_hidden_state.numpy(), atol=1e-5)


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
    # The file has both of pre-training's heads, so both are compared.
    assert reference.class_name == "BertForPreTraining"
    assert torch.equal(reference.model.bert.pooler.dense.weight, model.bert.pooler.dense.weight)


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
    with pytest.raises(ReferenceModelError, match=f"fix: {re.escape(install_fix('torch'))}") as error:
        build_reference(source)
    assert "\n" not in str(error.value)
