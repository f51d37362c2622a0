"""A source's links publish no private file, its pipes hang nothing, its bombs fill no memory."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from converter.convert import convert
from converter.export.checkpoint import ExportError, export
from converter.export.run import export_directory
from converter.output import OutputError
from converter.source import SourceError, open_source
from converter.verify import VerifyError, verify
from heads.binary import BinaryClassificationHead
from mlxbert.checkpoint import CheckpointError, load_core
from mlxbert.with_head import BertWithHead
from tests.support.tiny import save_tiny

POOLING = {"word_embedding_dimension": 48, "pooling_mode_mean_tokens": True}
READ = [
    "vocab.txt", "config.json", "model.safetensors", "README.md", "1_Pooling/config.json", "modules.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "sentence_bert_config.json", "config_sentence_transformers.json", "generation_config.json",
]  # fmt: skip
WRITTEN = [
    "vocab.txt", "config.json", "model.safetensors", "model.safetensors.index.json", "README.md", "manifest.json",
    "1_Pooling/config.json", "modules.json", "parity.json",
]  # fmt: skip


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`src`, a small sentence-transformers model, and `out`, its conversion."""
    directory = tmp_path_factory.mktemp("clean")
    save_tiny(directory / "src", num_hidden_layers=1)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    listed = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in modules]
    (directory / "src/modules.json").write_text(json.dumps(listed))
    (directory / "src/1_Pooling").mkdir()
    (directory / "src/1_Pooling/config.json").write_text(json.dumps(POOLING))
    convert(directory / "src", directory / "out", verify=False)
    return directory


@pytest.fixture
def source(clean: Path, tmp_path: Path) -> Path:
    return shutil.copytree(clean / "src", tmp_path / "src")


@pytest.fixture
def converted(clean: Path, tmp_path: Path) -> Path:
    return shutil.copytree(clean / "out", tmp_path / "out")


def put_link(path: Path) -> Path:
    """Put a link to a private file with the same content there, and give the private file."""
    private = path.parents[len(path.parts) - 1 - path.parts.index("src" if "src" in path.parts else "out")].parent
    private = private / "private" / path.name
    private.parent.mkdir(exist_ok=True)
    private.write_bytes(path.read_bytes() if path.is_file() else b"{}")
    path.unlink(missing_ok=True)
    path.symlink_to(os.path.relpath(private, path.parent))
    return private


def put_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def put_socket(path: Path) -> None:
    path.unlink(missing_ok=True)
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path has room for 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def put_device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("name", READ)
def test_a_link_out_of_a_source_is_refused(name: str, source: Path, tmp_path: Path) -> None:
    private = put_link(source / name)
    with pytest.raises(SourceError) as caught:
        convert(source, tmp_path / "out", verify=False)
    assert str(caught.value) == (
        f"{source / name}: a link that leads out of {source}, to {private}; fix: if you trust that file, copy it "
        "there in the place of the link (cp -L)"
    )
    assert not (tmp_path / "out").exists()
    (source / name).unlink()  # the fix
    shutil.copy(private, source / name)
    open_source(str(source))


def test_a_linked_folder_of_a_module_is_refused(source: Path, tmp_path: Path) -> None:
    (source / "1_Pooling").rename(tmp_path / "elsewhere")
    (source / "1_Pooling").symlink_to("../elsewhere")
    with pytest.raises(SourceError, match=r"1_Pooling/config\.json: a link that leads out of "):
        convert(source, tmp_path / "out", verify=False)


def test_a_linked_transformer_and_a_linked_shard_are_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "st").mkdir()
    (tmp_path / "st/0_Transformer").symlink_to(source)
    (tmp_path / "st/modules.json").write_text(
        json.dumps([{"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}])
    )
    with pytest.raises(SourceError, match=r"0_Transformer/model\.safetensors: a link that leads out of "):
        convert(tmp_path / "st", tmp_path / "out", verify=False)
    (source / "model.safetensors").rename(tmp_path / "weights")
    shard = source / "model-00001-of-00001.safetensors"
    shard.symlink_to("../weights")
    keys = load_file(tmp_path / "weights")
    index = {"weight_map": dict.fromkeys(keys, shard.name)}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match=r"model-00001-of-00001\.safetensors: a link that leads out of "):
        convert(source, tmp_path / "out", verify=False)


def test_links_inside_a_source_and_a_linked_source_are_fine(source: Path, tmp_path: Path) -> None:
    (source / "vocab.txt").rename(source / "words")
    (source / "vocab.txt").symlink_to("words")
    (tmp_path / "link").symlink_to(source)
    convert(tmp_path / "link", tmp_path / "out", verify=False)
    assert not (tmp_path / "out/vocab.txt").is_symlink()


def test_the_hubs_cache_is_fine_and_a_directory_that_imitates_it_is_not(source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models--team--tiny"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / ("a" * 40)
    for file in [path for path in source.rglob("*") if path.is_file()]:
        link = snapshot / file.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = cache / "blobs" / str(len(list((cache / "blobs").iterdir())))
        shutil.copy(file, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    convert(snapshot, tmp_path / "out", verify=False)
    assert json.loads((tmp_path / "out/config.json").read_text())["mlxbert"]["source"] == "team/tiny"
    (cache / "blobs").rename(tmp_path / "private")  # now its blobs are a link to a private folder
    (cache / "blobs").symlink_to(tmp_path / "private")
    with pytest.raises(SourceError, match="a link that leads out of"):
        convert(snapshot, tmp_path / "again", verify=False)


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize(
    ("put", "what"), [(put_pipe, "a pipe"), (put_socket, "a socket"), (put_device, "a device")], ids=["pipe", "s", "d"]
)
def test_what_is_no_regular_file_is_refused(
    put: Callable[[Path], None], what: str, name: str, source: Path, tmp_path: Path
) -> None:
    put(source / name)
    with pytest.raises(SourceError, match=f"{Path(name).name}: is {what}, not a regular file; fix: "):
        convert(source, tmp_path / "out", verify=False)


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("put", [put_link, put_pipe], ids=["link", "pipe"])
def test_a_converted_directory_with_links_or_pipes_is_not_exported_or_compared(
    put: Callable[[Path], object], name: str, converted: Path, clean: Path, tmp_path: Path
) -> None:
    put(converted / name)
    expected = "is a pipe" if put is put_pipe else "a link that leads out of"
    for call in (export, export_directory):
        with pytest.raises(ExportError, match=expected):
            call(converted, tmp_path / "back")
    with pytest.raises(VerifyError, match=expected):
        verify(converted, clean / "src")


def test_a_trained_model_with_a_linked_vocabulary_is_not_exported(converted: Path, tmp_path: Path) -> None:
    model = BertWithHead.from_pretrained(converted, BinaryClassificationHead(48))
    model.save(tmp_path / "out2" / "out")
    put_link(tmp_path / "out2" / "out" / "vocab.txt")
    with pytest.raises(ExportError, match=r"vocab\.txt: a link that leads out of"):
        export_directory(tmp_path / "out2" / "out", tmp_path / "back")


# Bombs and long names


def test_a_zip_that_inflates_without_end_is_refused_before_memory_is_taken(source: Path, tmp_path: Path) -> None:
    state = load_file(source / "model.safetensors")
    state["embeddings.word_embeddings.weight"] = np.zeros((500_000, 48), np.float32)  # 96 MB of zeros
    bomb = tmp_path / "bomb"
    shutil.copytree(source, bomb)
    (bomb / "model.safetensors").unlink()
    np.savez_compressed(bomb / "weights.npz", **state)
    config = json.loads((bomb / "config.json").read_text())
    (bomb / "config.json").write_text(json.dumps(config | {"vocab_size": 500_000}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SourceError, match=r"weights\.npz: its 0\.\d MB would inflate to 92 MB, .*zip -0"):
        convert(bomb, tmp_path / "out", verify=False)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB
    with zipfile.ZipFile(bomb / "weights.npz") as packed:  # the fix
        packed.extractall(tmp_path / "arrays")
    with zipfile.ZipFile(bomb / "weights.npz", "w") as stored:
        for file in (tmp_path / "arrays").iterdir():
            stored.write(file, file.name)
    open_source(str(bomb))


def test_compressed_weights_are_read(source: Path, tmp_path: Path) -> None:
    np.savez_compressed(source / "weights.npz", **load_file(source / "model.safetensors"))
    (source / "model.safetensors").unlink()
    convert(source, tmp_path / "out", verify=False)


@pytest.mark.parametrize(
    "name",
    ["a.npz", "a.npy", "a.gguf", "x" * 300, "x" * 300 + ".safetensors", "", "a\0.safetensors", "\ud800.safetensors"],
)
def test_an_index_that_names_what_is_no_safetensors_file(name: str, converted: Path, source: Path) -> None:
    np.savez(converted / "a.npz", a=np.ones(1))
    for directory, error in ((converted, CheckpointError), (source, SourceError)):
        if directory == source:
            (source / "model.safetensors").rename(source / "model-00001-of-00001.safetensors")
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(error) as caught:
            load_core(directory) if directory == converted else open_source(str(directory))
        assert "; fix: " in str(caught.value)
        assert len(str(caught.value).splitlines()[0]) < 600


def test_an_unreadable_file_is_not_called_damaged(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_open = os.open

    def denied(path: object, *arguments: object, **options: object) -> int:
        if str(path).endswith("model.safetensors"):
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(path, *arguments, **options)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(os, "open", denied)
    file = converted / "model.safetensors"
    with pytest.raises(CheckpointError) as caught:
        load_core(converted)
    assert str(caught.value) == f"{file}: permission denied; fix: make it readable (chmod u+r {file})"


# What is written loads


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocab.txt", "\n".join(f"word{i}" for i in range(200))),
        ("vocab.txt", ""),
        ("tokenizer.json", '{"model": {"type": "WordPiece"}}'),
        ("tokenizer.json", "[1]"),
        ("tokenizer_config.json", "no JSON"),
        ("tokenizer_config.json", '{"model_max_length": "long"}'),
        ("added_tokens.json", '{"brandnew": 97}'),
        ("special_tokens_map.json", '{"cls_token": 3}'),
    ],
)
def test_a_tokenizer_that_load_refuses_is_never_written(name: str, content: str, source: Path, tmp_path: Path) -> None:
    (source / name).write_text(content)
    with pytest.raises(OutputError) as caught:
        convert(source, tmp_path / "out", verify=False)
    message = str(caught.value)
    assert str(source) in message
    assert ".out" not in message  # no name of a directory that is gone
    there = " and ".join(file for file in ("tokenizer.json", "vocab.txt") if (source / file).exists())
    assert f"nothing was written; without {there}, src converts to an encoder alone" in message
    assert not (tmp_path / "out").exists()
    for file in ("tokenizer.json", "vocab.txt"):  # the fix
        (source / file).unlink(missing_ok=True)
    convert(source, tmp_path / "out", verify=False)
    load_core(tmp_path / "out")
