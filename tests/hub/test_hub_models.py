"""Convert from the Hub, load from the Hub: the real client, a local server."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import mlxbert
from converter.convert import convert
from mlxbert.checkpoint import CheckpointError
from mlxbert.encode.encoder import SentenceEncoder
from mlxbert.hub import HubError
from mlxbert.models.config_fields import ConfigError
from tests.converter.test_convert import assert_same_model
from tests.support.hub.plugin import Hub
from tests.support.tiny import save_tiny


def files_of(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_convert_records_the_commit_and_fetches_only_what_it_needs(hub: Hub, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "source", "BertForMaskedLM")
    junk = {
        "tf_model.h5": b"x" * 99,
        "pytorch_model.bin": b"y" * 99,
        "onnx/model.onnx": b"z" * 99,
    }
    theirs = b"---\nlicense: mit\nlanguage: [en, English]\nmodel-index: [{name: x}]\n---\n# Theirs\n"
    hub.add("team/tiny-bert", {**files_of(tmp_path / "source"), **junk, "README.md": theirs})
    result = convert("team/tiny-bert", tmp_path / "out", verify=False)
    assert_same_model(tmp_path / "out", model)
    block = mlxbert.checkpoint.read_config(tmp_path / "out")["mlxbert"]
    assert block["source"] == "team/tiny-bert"
    assert len(block["revision"]) == 40
    assert {"config.json", "model.safetensors", "vocab.txt"} <= set(hub.downloaded())
    assert not set(junk) & set(hub.downloaded())
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: mit\nlanguage:\n- en\nbase_model: team/tiny-bert\n" in card
    assert "Theirs" not in card
    assert "model-index" not in card
    assert "the source's card has language 'English', which the Hub refuses: left out of our card" in result.notes
    assert block["revision"] in card


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "nomic_bert"}, "model_type 'nomic_bert' is not supported"),
        ({"auto_map": {"AutoModel": "own.OwnModel"}}, "asks for code of its own, which is never run"),
        ({"architectures": ["BertLMHeadModel"]}, "BertLMHeadModel is a decoder"),
        ({"is_decoder": True}, "asks for a decoder"),
    ],
    ids=str,
)
@pytest.mark.parametrize("folder", ["", "0_Transformer/"])
def test_what_is_not_supported_costs_its_config_alone(
    fields: dict[str, object], message: str, folder: str, hub: Hub, tmp_path: Path
) -> None:
    save_tiny(tmp_path / "source")
    files = {f"{folder}{name}": content for name, content in files_of(tmp_path / "source").items()}
    files[f"{folder}config.json"] = json.dumps(json.loads(files[f"{folder}config.json"]) | fields).encode()
    if folder:
        module = {"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}
        files["modules.json"] = json.dumps([module]).encode()
    hub.add("team/other", {**files, "own.py": b"raise SystemExit"})
    with pytest.raises(ConfigError, match=message):
        convert("team/other", tmp_path / "out", verify=False)
    assert set(hub.downloaded()) == {f"{folder}config.json", *(["modules.json"] if folder else [])}


@pytest.mark.parametrize("card", [{"README.md": b"---\nlicense: mit\n---\n"}, {}])
def test_a_cache_without_the_card_is_enough_offline(
    card: dict[str, bytes], hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants, snapshot_download

    save_tiny(tmp_path / "source")
    hub.add("team/tiny-bert", {**files_of(tmp_path / "source"), **card})
    snapshot_download("team/tiny-bert", ignore_patterns="README.md")  # as transformers would have left it
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    result = convert("team/tiny-bert", tmp_path / "out", verify=False)
    note = "the source's README.md could not be fetched: look there for its license before you publish"
    assert (note in result.notes) == bool(card)
    assert len([line for line in result.notes if "could not be fetched" in line]) == bool(card)
    assert "license:" not in (tmp_path / "out" / "README.md").read_text()


def test_load_a_converted_repository_and_again_offline(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "out", verify=False)
    hub.add("mlx-community/tiny-bert", {**files_of(tmp_path / "out"), "extra.bin": b"not needed"})
    local, _ = mlxbert.load(tmp_path / "out")
    model, tokenizer = mlxbert.load("mlx-community/tiny-bert")
    ids = mx.array([[2, 9, 11, 3]])
    assert mx.array_equal(model(ids).last_hidden_state, local(ids).last_hidden_state)
    assert tokenizer.vocab_size == 97
    assert not {"extra.bin", "README.md", "parity.json"} & set(hub.downloaded())
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(hub.downloaded())
    with pytest.warns(UserWarning, match="mean"):  # no modules.json: said, and the mean is used
        encoder = SentenceEncoder.from_pretrained("mlx-community/tiny-bert")
    assert np.isfinite(encoder.encode(["a b c"])).all()
    assert len(hub.downloaded()) == before


def test_a_repository_that_was_never_converted_costs_its_config_alone(hub: Hub, tmp_path: Path) -> None:
    save_tiny(tmp_path / "source")
    hub.add("google-bert/bert-base-uncased", files_of(tmp_path / "source"))
    with pytest.raises(CheckpointError) as caught:
        mlxbert.load("google-bert/bert-base-uncased")
    assert str(caught.value) == (
        "google-bert/bert-base-uncased was never converted; "
        "run: mlxbert-convert google-bert/bert-base-uncased -o mlx_models/bert-base-uncased"
    )
    assert set(hub.downloaded()) == {"config.json"}


def test_no_such_repository(hub: Hub, tmp_path: Path) -> None:
    for attempt in (lambda: convert("team/nothing", tmp_path / "out"), lambda: mlxbert.load("team/nothing")):
        with pytest.raises(HubError, match=r"'team/nothing' does not exist on .* or is private .*hf auth login"):
            attempt()
    assert not (tmp_path / "out").exists()


def test_license_files_are_fetched_with_the_card(hub: Hub, tmp_path: Path) -> None:
    save_tiny(tmp_path / "source")
    front = "---\nlicense: other\nlicense_name: own-1.0\nlicense_link: {}\n---\n"
    files = {
        "LICENSE": b"Do as you like.\n",
        "NOTICE": b"Made by us.\n",
        "README.md": front.format("LICENSE").encode(),
    }
    hub.add("team/tiny-bert", {**files_of(tmp_path / "source"), **files})
    result = convert("team/tiny-bert", tmp_path / "out", verify=False)
    assert [note for note in result.notes if "license" in note] == []
    assert (tmp_path / "out/LICENSE").read_bytes() == files["LICENSE"]
    assert (tmp_path / "out/NOTICE").read_bytes() == files["NOTICE"]
    assert "\nlicense_name: own-1.0\nlicense_link: LICENSE\n" in (tmp_path / "out/README.md").read_text()
    hub.add("team/elsewhere", {**files_of(tmp_path / "source"), "README.md": front.format("legal/TERMS.md").encode()})
    convert("team/elsewhere", tmp_path / "other", verify=False)
    revision = json.loads((tmp_path / "other/config.json").read_text())["mlxbert"]["revision"]
    link = f"https://huggingface.co/team/elsewhere/blob/{revision}/legal/TERMS.md"
    assert f"license_link: {json.dumps(link)}\n" in (tmp_path / "other/README.md").read_text()
