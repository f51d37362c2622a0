"""Sources of every form: what open_source finds is what torch holds, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from safetensors.torch import save_file

from converter.source import SourceError, looks_like_repo_id, open_source, select_files
from mlxbert.hub import HubError
from tests.support.checkpoint_builders import CONFIG, assert_same, random_model, write_config

ROOT = Path(__file__).parents[2]
HEADS = [
    "BertModel", "BertForPreTraining", "BertForMaskedLM", "BertForNextSentencePrediction",
    "BertForSequenceClassification", "BertForMultipleChoice", "BertForTokenClassification",
    "BertForQuestionAnswering",
]  # fmt: skip


def shard_files(directory: Path, state: dict[str, Any], name: str, save: Callable[[Any, Path], Any]) -> list[str]:
    """Three shards and their index, by hand."""
    stem, suffix = name.rsplit(".", 1)
    keys = list(state)
    parts = [keys[i::3] for i in range(3)]
    files = [f"{stem}-0000{i + 1}-of-00003.{suffix}" for i in range(3)]
    directory.mkdir(exist_ok=True)
    for file, part in zip(files, parts, strict=True):
        save({key: state[key] for key in part}, directory / file)
    weight_map = {key: file for file, part in zip(files, parts, strict=True) for key in part}
    (directory / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return files


@pytest.mark.parametrize("kind", HEADS)
def test_every_class_as_transformers_saves_it(kind: str, tmp_path: Path) -> None:
    model = random_model(kind)
    model.save_pretrained(tmp_path)
    source = open_source(str(tmp_path))
    with_ties = dict(model.state_dict())
    expected = {key: with_ties[key] for key in source.entries}  # save_pretrained drops tied copies
    assert set(with_ties) - set(expected) <= {
        "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias",
    }
    assert_same(source.entries, expected)
    assert source.location == str(tmp_path)
    assert source.directory == tmp_path
    assert source.revision is None
    assert source.config["hidden_size"] == CONFIG["hidden_size"]
    assert source.format == "safetensors"
    assert source.weight_files == (tmp_path / "model.safetensors",)
    assert source.notes == ()


def test_shards_as_transformers_saves_them(tmp_path: Path) -> None:
    model = random_model()
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    source = open_source(str(tmp_path))
    assert len(source.weight_files) > 3
    assert_same(source.entries, dict(model.state_dict()))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pytorch_directories(zipped: bool, tmp_path: Path) -> None:
    state = random_model("BertForPreTraining").state_dict()
    write_config(tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    source = open_source(str(tmp_path))
    assert source.format == "pytorch"
    assert_same(source.entries, dict(state))


@pytest.mark.parametrize(
    ("name", "save"),
    [("pytorch_model.bin", torch.save), ("model.safetensors", save_file)],
    ids=["bin", "safetensors"],
)
def test_sharded_directories(name: str, save: Any, tmp_path: Path) -> None:
    state = dict(random_model().state_dict())
    files = shard_files(tmp_path, state, name, save)
    write_config(tmp_path)
    source = open_source(str(tmp_path))
    assert [path.name for path in source.weight_files] == files
    assert_same(source.entries, state)
    assert_same(open_source(str(tmp_path / f"{name}.index.json")).entries, state)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".npz"])
@pytest.mark.parametrize("config_at", ["beside", "elsewhere", "directory"])
def test_one_file(suffix: str, config_at: str, tmp_path: Path) -> None:
    state = dict(random_model().state_dict())
    path = tmp_path / "models" / f"my_bert{suffix}"
    path.parent.mkdir()
    if suffix == ".npz":
        np.savez(path, **{key: tensor.numpy() for key, tensor in state.items()})
    else:
        (save_file if suffix == ".safetensors" else torch.save)(state, path)
    config = write_config(tmp_path / "elsewhere" if config_at == "elsewhere" else path.parent)
    if config_at == "elsewhere":
        source = open_source(str(path), config=config)
    else:
        source = open_source(str(path.parent if config_at == "directory" else path))
    assert_same(source.entries, state)
    assert source.directory == path.parent
    assert source.config == CONFIG


def test_contents_count_more_than_the_suffix(tmp_path: Path) -> None:
    state = dict(random_model().state_dict())
    write_config(tmp_path)
    save_file(state, tmp_path / "pytorch_model.bin")
    source = open_source(str(tmp_path))
    assert source.format == "safetensors"
    assert_same(source.entries, state)


@dataclass(frozen=True)
class Wrapped:
    """How a training wrapper names the model's tensors, and what the reader makes of it."""

    write: Callable[[str], str]
    note: str


WRAPPED = {
    "DataParallel": Wrapped(lambda key: f"module.{key}", "module."),
    "attribute": Wrapped(lambda key: f"model.{key}", "model."),
    "compiled": Wrapped(lambda key: f"_orig_mod.{key}", "_orig_mod."),
    "all": Wrapped(lambda key: f"module._orig_mod.model.{key}", "_orig_mod., module., model."),
    "compiled inside": Wrapped(lambda key: key.replace("encoder.", "encoder._orig_mod."), "_orig_mod."),
    "only some": Wrapped(lambda key: f"model.{key}" if "encoder" in key else key, "model."),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_wrapper_prefixes_are_taken_off(case: str, tmp_path: Path) -> None:
    state = dict(random_model("BertForMaskedLM").state_dict())
    torch.save({"state_dict": {WRAPPED[case].write(k): v for k, v in state.items()}}, tmp_path / "x.ckpt")
    write_config(tmp_path)
    source = open_source(str(tmp_path / "x.ckpt"))
    assert_same(source.entries, state)
    assert source.notes == (f"wrapper prefixes taken off tensor names: {WRAPPED[case].note}",)


def test_real_wrappers(tmp_path: Path) -> None:
    model = random_model()
    state = dict(model.state_dict())
    write_config(tmp_path)
    wrapped = torch.nn.DataParallel(cast(torch.nn.Module, torch.compile(model)))
    torch.save(wrapped.state_dict(), tmp_path / "x.pt")
    assert_same(open_source(str(tmp_path / "x.pt")).entries, state)


def test_a_loss_beside_the_model_keeps_its_name(tmp_path: Path) -> None:
    state = {
        "model.bert.x": torch.ones(2),
        "loss.weight": torch.ones(3),
        "model.classifier.bias": torch.zeros(1),
    }
    torch.save(state, tmp_path / "x.ckpt")
    write_config(tmp_path)
    assert list(open_source(str(tmp_path / "x.ckpt")).entries) == ["bert.x", "loss.weight", "classifier.bias"]


def test_names_that_collide_without_their_prefixes_are_refused(tmp_path: Path) -> None:
    state = {"model.bert.x": torch.ones(2), "module.bert.x": torch.zeros(2), "y": torch.ones(1)}
    torch.save(state, tmp_path / "x.ckpt")
    write_config(tmp_path)
    with pytest.raises(SourceError) as error:
        open_source(str(tmp_path / "x.ckpt"))
    first, second = str(error.value).splitlines()
    assert "two tensors have one name once wrapper prefixes are taken off" in first
    assert "fix: save the state_dict() of the one you mean" in first
    assert second == "  model.bert.x and module.bert.x would both be bert.x"


def test_both_formats_safetensors_used(tmp_path: Path) -> None:
    model = random_model()
    model.save_pretrained(tmp_path)
    torch.save({"other": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "tf_model.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    source = open_source(str(tmp_path))
    assert_same(source.entries, dict(model.state_dict()))
    assert source.notes == ("several formats present: model.safetensors used, pytorch_model.bin ignored",)


def test_one_file_before_shards_as_transformers_does(tmp_path: Path) -> None:
    model = random_model()
    model.save_pretrained(tmp_path)
    shard_files(tmp_path, {f"t{i}": torch.ones(1) for i in range(3)}, "model.safetensors", save_file)
    source = open_source(str(tmp_path))
    assert_same(source.entries, dict(model.state_dict()))
    assert source.notes == ("both one file and shards present: model.safetensors used, the shards ignored",)


@pytest.mark.parametrize("extra", ["training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", ".x.bin"])
def test_training_leftovers_are_not_the_model(extra: str, tmp_path: Path) -> None:
    write_config(tmp_path)
    torch.save({"a": torch.ones(1)}, tmp_path / "bert-finetuned.pt")
    torch.save({"b": torch.ones(1)}, tmp_path / extra)
    assert list(open_source(str(tmp_path)).entries) == ["a"]


def test_one_model_under_an_unusual_name_in_two_formats(tmp_path: Path) -> None:
    write_config(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "model.fp16.safetensors")
    torch.save({"b": torch.ones(1)}, tmp_path / "model.fp16.bin")
    source = open_source(str(tmp_path))
    assert list(source.entries) == ["a"]
    assert source.notes == ("several formats present: model.fp16.safetensors used, model.fp16.bin ignored",)


def test_this_projects_own_output_with_its_heads(tmp_path: Path) -> None:
    write_config(tmp_path, mlxbert={"format_version": 1})
    save_file({"embeddings.x": torch.ones(1)}, tmp_path / "model.safetensors", metadata={"format": "mlx"})
    save_file({"cls.y": torch.zeros(1)}, tmp_path / "heads.safetensors")
    source = open_source(str(tmp_path))
    assert list(source.entries) == ["embeddings.x", "cls.y"]
    assert [path.name for path in source.weight_files] == ["model.safetensors", "heads.safetensors"]
    save_file({"embeddings.x": torch.zeros(1)}, tmp_path / "heads.safetensors")
    with pytest.raises(SourceError, match="has tensors that the model's own files have too"):
        open_source(str(tmp_path))
    write_config(tmp_path)  # in another project's directory it is nothing that we know
    assert list(open_source(str(tmp_path)).entries) == ["embeddings.x"]


def test_a_directory_that_mlx_embeddings_wrote(tmp_path: Path) -> None:
    """Its layout: model.safetensors with metadata format mlx, and an index that lists that one file."""
    import mlx.core as mx

    state = {key: mx.array(tensor.numpy()) for key, tensor in random_model().state_dict().items() if "ids" not in key}
    write_config(tmp_path)
    mx.save_safetensors(str(tmp_path / "model.safetensors"), state, metadata={"format": "mlx"})
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(state, "model.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    source = open_source(str(tmp_path))
    assert source.notes == ()
    assert {key: entry.read().tobytes() for key, entry in source.entries.items()} == {
        key: np.array(array).tobytes() for key, array in state.items()
    }


SIDE = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "added_tokens.json",
]
SIDE += ["config_sentence_transformers.json", "sentence_bert_config.json"]


def sentence_transformer(directory: Path) -> list[str]:
    """Side files, three modules, and things that are none of the model's business."""
    write_config(directory)
    save_file({"a": torch.ones(1)}, directory / "model.safetensors")
    modules = [
        ("", "Transformer"),
        ("1_Pooling", "Pooling"),
        ("2_Dense", "Dense"),
        ("3_Normalize", "Normalize"),
    ]
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    (directory / "modules.json").write_text(json.dumps(listed))
    wanted = ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "vocab.json"]
    unwanted = [
        "2_Dense/pytorch_model.bin",
        "README.md",
        "rust_model.ot",
        "onnx/config.json",
        "4_Other/config.json",
    ]
    for name in wanted + unwanted + SIDE:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("{}")
    return [*SIDE, "modules.json", *wanted]


def test_side_files(tmp_path: Path) -> None:
    wanted = sentence_transformer(tmp_path)
    source = open_source(str(tmp_path))
    assert set(source.side_files) == set(wanted)
    assert all(path == tmp_path / name for name, path in source.side_files.items())
    (tmp_path / "2_Dense" / "model.safetensors").unlink()
    assert "2_Dense/pytorch_model.bin" in open_source(str(tmp_path)).side_files


def test_the_tokenizer_beside_config_is_used_when_the_weights_have_none(tmp_path: Path) -> None:
    config = write_config(tmp_path / "base")
    (tmp_path / "base" / "vocab.txt").write_text("[PAD]")
    (tmp_path / "base" / "modules.json").write_text("[]")
    path = tmp_path / "x.pt"
    torch.save({"a": torch.ones(1)}, path)
    source = open_source(str(path), config=config)
    assert source.side_files == {"vocab.txt": tmp_path / "base" / "vocab.txt"}
    assert source.notes == (f"the tokenizer is taken from beside {config}",)
    (tmp_path / "vocab.txt").write_text("[UNK]")
    assert open_source(str(path), config=config).side_files == {"vocab.txt": tmp_path / "vocab.txt"}


def test_links_as_in_the_hub_cache(tmp_path: Path) -> None:
    state = dict(random_model().state_dict())
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    write_config(blobs).rename(blobs / "1")
    save_file(state, blobs / "2")
    for name, blob in [("config.json", "1"), ("model.safetensors", "2")]:
        (snapshot / name).symlink_to(os.path.relpath(blobs / blob, snapshot))
    assert_same(open_source(str(snapshot)).entries, state)


def test_real_weights(minilm_source: Path) -> None:
    from transformers import AutoModel

    source = open_source(str(minilm_source))
    expected = dict(AutoModel.from_pretrained(minilm_source).state_dict())
    ids = {key for key in source.entries if key.endswith("position_ids")}
    assert_same({k: e for k, e in source.entries.items() if k not in ids}, expected)
    assert {"tokenizer.json", "vocab.txt", "modules.json", "1_Pooling/config.json"} <= set(source.side_files)


# The Hub

STANDARD = ["config.json", "tokenizer.json", "vocab.txt", "README.md", ".gitattributes"]
REPOSITORIES = {
    "bert-base-uncased": (
        [*STANDARD, "coreml/model.mlpackage/x", "flax_model.msgpack", "model.onnx", "model.safetensors",
         "pytorch_model.bin", "rust_model.ot", "tf_model.h5", "LICENSE"],
        ["config.json", "tokenizer.json", "vocab.txt", "model.safetensors"],
    ),
    "pickle only": (
        [*STANDARD, "pytorch_model.bin", "tf_model.h5", "onnx/model.onnx"],
        ["config.json", "tokenizer.json", "vocab.txt", "pytorch_model.bin"],
    ),
    "sharded": (
        [*STANDARD, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
         "model.safetensors.index.json", "pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"],
        ["config.json", "tokenizer.json", "vocab.txt", "model-00001-of-00002.safetensors",
         "model-00002-of-00002.safetensors", "model.safetensors.index.json"],
    ),
    "sharded pickles": (
        [*STANDARD, "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin",
         "pytorch_model.bin.index.json", "other-00001-of-00002.bin"],
        ["config.json", "tokenizer.json", "vocab.txt", "pytorch_model-00001-of-00002.bin",
         "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"],
    ),
    "sentence-transformers": (
        ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors",
         "2_Dense/pytorch_model.bin", "config.json", "model.safetensors", "modules.json",
         "onnx/model.onnx", "openvino/openvino_model.bin",
         "sentence_bert_config.json", "train_script.py", "data/1_x/config.json"],
        ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "config.json",
         "model.safetensors", "modules.json", "sentence_bert_config.json"],
    ),
    "npz": (["config.json", "weights.npz"], ["config.json", "weights.npz"]),
    "own output": (
        ["config.json", "heads.safetensors", "manifest.json", "model.safetensors",
         "model.safetensors.index.json"],
        ["config.json", "heads.safetensors", "model.safetensors", "model.safetensors.index.json"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REPOSITORIES)
def test_only_the_needed_files_are_selected(case: str) -> None:
    names, wanted = REPOSITORIES[case]
    assert select_files(names) == wanted


def test_a_tensorflow_repository_is_refused_before_any_download() -> None:
    with pytest.raises(
        SourceError, match=r"^the repository: has TensorFlow/Flax weights only, which are not read; fix"
    ):
        select_files([*STANDARD, "tf_model.h5", "flax_model.msgpack"])


def test_the_hub_is_asked_for_what_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model()
    model.save_pretrained(tmp_path / "snapshot")
    files = ["README.md", "config.json", "model.safetensors"]
    asked: list[Any] = []

    def snapshot(repo_id: str, *, revision: str | None, select: Any, progress: bool = True) -> Any:
        asked.append((repo_id, revision, select(files)))
        if asked[-1][-1] == ["README.md"]:
            raise HubError("not to be had")
        return SimpleNamespace(path=tmp_path / "snapshot", revision="0" * 40, repo_id=repo_id)

    monkeypatch.setitem(sys.modules, "mlxbert.hub", SimpleNamespace(snapshot=snapshot, HubError=HubError))
    monkeypatch.setattr("mlxbert.hub", sys.modules["mlxbert.hub"], raising=False)
    monkeypatch.chdir(tmp_path)
    source = open_source("google-bert/bert-base-uncased", revision="main")
    name = "google-bert/bert-base-uncased"
    assert asked == [
        (name, "main", ["config.json"]),  # it may show that the weights are not needed
        (name, "0" * 40, ["config.json", "model.safetensors"]),
        (name, "0" * 40, ["README.md"]),
    ]
    assert source.location == "google-bert/bert-base-uncased"
    assert "the source's README.md could not be fetched" in source.notes[-1]
    assert source.revision == "0" * 40
    assert source.directory == tmp_path / "snapshot"
    assert_same(source.entries, dict(model.state_dict()))
    shutil.copytree(tmp_path / "snapshot", tmp_path / "bert-base-cased")
    assert open_source("bert-base-cased").revision is None  # a directory of that name comes first
    assert len(asked) == 3


@pytest.mark.parametrize("src", ["bert-base-uncased", "a/b", "sentence-transformers/all-MiniLM-L6-v2", "x/y.v1_2"])
def test_what_can_be_a_hub_id(src: str) -> None:
    assert looks_like_repo_id(src)


NO_IDS = [
    "./bert",
    "../bert",
    "/tmp/bert",
    "~/bert",
    "a/b/c",
    "model.bin",
    "a/model.safetensors",
    "a/",
    "a b",
    "é",
]
NO_IDS += ["x.pt", "x.ckpt", "config.json", "a//b", "a\nb", "C:\\model", "a..b/c", "x" * 200, "-x/y"]


@pytest.mark.parametrize("src", NO_IDS)
def test_what_looks_like_a_path_is_never_looked_up(src: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "mlxbert.hub", None)  # importing it would fail
    with pytest.raises(SourceError) as error:
        open_source(src)
    assert "no such file or directory; fix: check the path, or give a Hub id" in str(error.value)
    assert "\n" not in str(error.value)


def test_neither_torch_nor_transformers_is_imported(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pt")
    write_config(tmp_path)
    code = (
        "import sys; from converter.source import open_source; "
        "open_source(sys.argv[1]).entries['a'].read(); "
        "assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True)
