"""Every bad source gets one clear line with the fix."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import save_file

from converter.source import SourceError, open_source
from mlxbert.errors import MLXBertError
from tests.support.checkpoint_builders import CONFIG, write_config

ONE = {"a": torch.ones(2)}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 440473133\n"
HTML = b"\n <!DOCTYPE html>\n<html><head><title>404</title></head></html>"
INDEX = "model.safetensors.index.json"


def refusal(src: Path | str, **options: Any) -> str:
    """The error's text, which is one line and says the fix (a list of names may follow)."""
    with pytest.raises(MLXBertError) as error:
        open_source(str(src), **options)
    first, *rest = str(error.value).splitlines()
    assert "; fix: " in first, first
    assert all(line.startswith("  ") for line in rest)
    return str(error.value)


def model(directory: Path, **config: Any) -> Path:
    """A directory that is in order."""
    write_config(directory, **config)
    save_file(ONE, directory / "model.safetensors")
    return directory


def write_index(directory: Path, weight_map: Any) -> None:
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))


# paths


def test_no_such_path(tmp_path: Path) -> None:
    path = tmp_path / "missing"
    assert refusal(path) == f"{path}: no such file or directory; fix: check the path, or give a Hub id"
    assert refusal("") == "SRC is empty; fix: give a directory, a file or a Hub id"
    assert "no path has a NUL character in it; fix: " in refusal("nul\0byte")
    assert "File name too long; fix: " in refusal("/" + "x" * 5000)


def test_a_link_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert refusal(tmp_path / "link") == f"{tmp_path / 'link'}: is a link to nothing; fix: check where it leads"
    (model(tmp_path / "m") / "model.safetensors").unlink()
    (tmp_path / "m" / "model.safetensors").symlink_to(tmp_path / "gone")
    assert "model.safetensors: no such file; fix: check the path" in refusal(tmp_path / "m")


def test_a_revision_of_a_local_path(tmp_path: Path) -> None:
    message = refusal(model(tmp_path), revision="main")
    assert message == f"{tmp_path}: is a local path, which has no --revision; fix: leave --revision out"


def test_pipes_and_devices_are_refused_before_they_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.bin")
    assert "pipe.bin: is a pipe, not a regular file; fix: " in refusal(tmp_path / "pipe.bin")
    model(tmp_path / "m")
    os.mkfifo(tmp_path / "m" / "tokenizer.json")
    assert "tokenizer.json: is a pipe, not a regular file; fix: " in refusal(tmp_path / "m")


def test_a_directory_in_the_place_of_a_file(tmp_path: Path) -> None:
    model(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    assert "config.json: is a directory, not a regular file; fix: " in refusal(tmp_path)


def test_files_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model(tmp_path)
    real_open = os.open

    def denied(path: Any, *arguments: Any, **options: Any) -> Any:
        if str(path).endswith("model.safetensors"):
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(path, *arguments, **options)

    monkeypatch.setattr(os, "open", denied)
    path = tmp_path / "model.safetensors"
    assert refusal(tmp_path) == f"{path}: permission denied; fix: make it readable (chmod u+r {path})"


# what the weight file really is

PADDING = bytes(600)
STAND_INS = {
    "LFS pointer": (LFS, "is a Git-LFS pointer, not the file itself; fix: git lfs pull"),
    "HTML page": (
        HTML,
        "is an HTML or XML page (an error or login page saved under this name); fix: download",
    ),
    "XML error": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is an HTML or XML page"),
    "BOM HTML": (b"\xef\xbb\xbf<html>", "is an HTML or XML page"),
    "empty": (b"", "is empty; fix: get the file again"),
    "JSON": (b'{"error": "Repository not found"}', "is text, not weights; fix: download the file again"),
    "plain text": (
        b"Entry not found, sorry about that",
        "is text, not weights; fix: download the file again",
    ),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + PADDING, "is an HDF5 file (TensorFlow/Keras weights), which is not read"),
    "GGUF": (b"GGUF\x03" + PADDING, "is a GGUF file (llama.cpp)"),
    "gzip": (b"\x1f\x8b\x08" + PADDING, "is gzip-compressed, which is not read; fix: decompress it first"),
    "tar": (bytes(257) + b"ustar" + PADDING, "is a tar archive"),
}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "weights.npz", "x.ckpt"])
@pytest.mark.parametrize("case", STAND_INS)
def test_files_that_are_something_else(case: str, name: str, tmp_path: Path) -> None:
    data, text = STAND_INS[case]
    write_config(tmp_path)
    (tmp_path / name).write_bytes(data)
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / name}: {text}")
    assert "\n" not in message


def test_noise(tmp_path: Path) -> None:
    write_config(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(range(255, 0, -1)) * 9)
    assert "is no checkpoint that is read here (safetensors, torch.save, .npz), or is damaged" in refusal(tmp_path)
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "model.safetensors")
    assert "is truncated or no safetensors file: its header claims" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "config.json", "modules.json"])
@pytest.mark.parametrize("data", [LFS, HTML], ids=["LFS", "HTML"])
def test_side_files_that_are_something_else(name: str, data: bytes, tmp_path: Path) -> None:
    (model(tmp_path) / name).write_bytes(data)
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / name}: is a")
    assert "Git-LFS pointer" in message or "HTML or XML page" in message


# config.json


def test_no_config(tmp_path: Path) -> None:
    save_file(ONE, tmp_path / "model.safetensors")
    expected = (
        f"{tmp_path}: no config.json beside the weights; fix: put the model's config.json there, or pass --config FILE"
    )
    assert refusal(tmp_path) == expected
    assert refusal(tmp_path / "model.safetensors") == expected
    assert "nowhere.json: no such file; fix: check the path" in refusal(tmp_path, config=tmp_path / "nowhere.json")


def test_hyper_parameters_are_no_config(tmp_path: Path) -> None:
    checkpoint = {
        "state_dict": ONE,
        "hyper_parameters": {"hidden_size": 32},
        "pytorch-lightning_version": "2",
    }
    torch.save(checkpoint, tmp_path / "x.ckpt")
    assert refusal(tmp_path / "x.ckpt") == (
        f"{tmp_path}: no config.json beside the weights (the Lightning checkpoint's hyper_parameters belong "
        "to its training script and are no config.json); "
        "fix: put the model's config.json there, or pass --config FILE"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{'hidden_size': 3}", "not valid JSON (Expecting property name"),
        ('{"a": 1', "not valid JSON (Expecting ',' delimiter: line 1 column 8 (char 7)); fix: get the file again"),
        ("", "not valid JSON (Expecting value: line 1 column 1"),
        ("[1]", "expected a JSON object, found list; fix: get the file again"),
        ("null", "expected a JSON object, found null; fix: "),
        ("[" * 100_000, "not valid JSON (maximum recursion depth"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON (Exceeds the limit"),
        ("é\udcff", "not UTF-8 at line 1; fix: save it as UTF-8"),
    ],
)
def test_invalid_config(text: str, expected: str, tmp_path: Path) -> None:
    (model(tmp_path) / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert f"{tmp_path / 'config.json'}: {expected}" in refusal(tmp_path)


def test_a_config_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (model(tmp_path) / "config.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(CONFIG).encode())
    assert open_source(str(tmp_path)).config == CONFIG


def test_a_config_too_large(tmp_path: Path) -> None:
    with (model(tmp_path) / "config.json").open("wb") as file:
        file.truncate(65 << 20)
    assert "65 MB is too large for this file (limit 64 MB); fix: " in refusal(tmp_path)


def test_quantized_sources(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    original = "fix: give the original, unquantized checkpoint as SRC"
    model(tmp_path, quantization={"bits": 4, "group_size": 64}, quantization_config={"bits": 4})
    assert refusal(tmp_path) == (
        f'{config}: says "quantization": this is an MLX checkpoint quantized to 4 bits already; {original}, '
        "or --dequantize"
    )
    model(tmp_path, quantization_config={"quant_method": "bitsandbytes"})
    assert f"its weights are quantized by bitsandbytes already; {original}" in refusal(tmp_path)
    model(tmp_path)
    packed = {"x.weight": torch.ones(4, dtype=torch.int32).to(torch.uint32), "x.scales": torch.ones(1)}
    save_file(packed, tmp_path / "model.safetensors")
    assert "x.weight is packed uint32 beside x.scales: this is an MLX checkpoint quantized already" in refusal(
        tmp_path
    )
    model(tmp_path, quantization=None, quantization_config={})
    assert list(open_source(str(tmp_path)).entries) == ["a"]


# which file


def test_nothing_there(tmp_path: Path) -> None:
    assert f"{tmp_path}: has no weights (model.safetensors, pytorch_model.bin, *.npz …; there is: nothing)" in refusal(
        tmp_path
    )
    write_config(tmp_path)
    assert "there is: config.json); fix: check the path, or download the model whole" in refusal(tmp_path)


def test_several_candidates_are_named(tmp_path: Path) -> None:
    write_config(tmp_path)
    for name in ("epoch1.ckpt", "epoch2.ckpt", "last.ckpt"):
        torch.save(ONE, tmp_path / name)
    assert refusal(tmp_path) == (
        f"{tmp_path}: has 3 files that could be the model; fix: give the one you mean as SRC\n"
        "  epoch1.ckpt\n  epoch2.ckpt\n  last.ckpt"
    )


TENSORFLOW = "AutoModelForPreTraining.from_pretrained(DIR, from_tf=True).save_pretrained(NEW_DIR), then convert"
FOREIGN = {
    "tf_model.h5": ("TensorFlow", f"fix: with transformers<5 (5 dropped TensorFlow): {TENSORFLOW}"),
    "bert_model.ckpt.index": ("TensorFlow", TENSORFLOW),
    "saved_model.pb": ("TensorFlow", TENSORFLOW),
    "flax_model.msgpack": ("Flax", "with transformers<5 (5 dropped Flax): AutoModelForPreTraining"),
    "model.onnx": ("ONNX", "fix: get the model's PyTorch or safetensors weights"),
    "onnx/model_quantized.onnx": ("ONNX", "fix: get the model's PyTorch or safetensors weights"),
    "openvino_model.bin": ("OpenVINO", "fix: get the model's PyTorch or safetensors weights"),
    "rust_model.ot": ("Rust (rust-bert)", "fix: get the model's PyTorch or safetensors weights"),
    "bert.Q4.gguf": ("GGUF", "fix: get the model's PyTorch or safetensors weights"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_frameworks(name: str, tmp_path: Path) -> None:
    label, fix = FOREIGN[name]
    write_config(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path}: has {label} weights only, which are not read; fix: ")
    assert fix in message


def test_several_other_frameworks(tmp_path: Path) -> None:
    write_config(tmp_path)
    for name in ("tf_model.h5", "flax_model.msgpack"):
        (tmp_path / name).write_bytes(b"x")
    assert "has TensorFlow/Flax weights only, which are not read; fix: with transformers<5" in refusal(tmp_path)


def test_an_adapter_alone(tmp_path: Path) -> None:
    write_config(tmp_path)
    save_file(ONE, tmp_path / "adapter_model.safetensors")
    assert "has a PEFT adapter only, not a whole model; fix: --base with the model that it was trained on" in refusal(
        tmp_path
    )


def test_weights_in_a_folder(tmp_path: Path) -> None:
    for name in ("checkpoint-1", "checkpoint-2"):
        model(tmp_path / name)
    assert refusal(tmp_path) == (
        f"{tmp_path}: has no weights itself, but folders in it do; fix: give one of them as SRC\n"
        "  checkpoint-1\n  checkpoint-2"
    )


def test_an_empty_safetensors(tmp_path: Path) -> None:
    write_config(tmp_path)
    save_file({}, tmp_path / "model.safetensors")
    assert "model.safetensors: holds no tensors; fix: " in refusal(tmp_path)


# shards


def sharded(directory: Path) -> Path:
    write_config(directory)
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name, key in zip(names, "ab", strict=True):
        save_file({key: torch.ones(2)}, directory / name)
    write_index(directory, dict(zip("ab", names, strict=True)))
    return directory


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (sharded(tmp_path) / "model-00002-of-00002.safetensors").unlink()
    assert refusal(tmp_path) == (
        f"{tmp_path / INDEX}: 1 of 2 shards missing; fix: download them too\n  model-00002-of-00002.safetensors"
    )


def test_shards_without_their_index(tmp_path: Path) -> None:
    (sharded(tmp_path) / INDEX).unlink()
    assert refusal(tmp_path) == (
        f"{tmp_path}: has shards but not their index {INDEX}; fix: put it beside them\n"
        "  model-00001-of-00002.safetensors\n  model-00002-of-00002.safetensors"
    )


def test_one_shard_as_src(tmp_path: Path) -> None:
    message = refusal(sharded(tmp_path) / "model-00001-of-00002.safetensors")
    assert f"is one of 2 shards; fix: give the directory, with {INDEX} in it" in message


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/passwd", "x/../../y.safetensors", "..", "..\\x", "C:x", "", ".", "a\0b"],
)
def test_an_index_that_points_outside_its_directory(name: str, tmp_path: Path) -> None:
    directory = sharded(tmp_path / "m")
    save_file(ONE, tmp_path / "model.safetensors")
    write_index(directory, {"a": name})
    message = refusal(directory)
    assert message.startswith(f"{directory / INDEX}: names ")
    assert "which points outside its directory; fix: do not trust this checkpoint" in message


@pytest.mark.parametrize("weight_map", [None, {}, [], "x", {"a": 1}, {"a": None}, {"a": ["b"]}])
def test_an_index_without_a_weight_map(weight_map: Any, tmp_path: Path) -> None:
    write_index(sharded(tmp_path), weight_map)
    assert f"{INDEX}: has no weight_map of tensor names to file names; fix: " in refusal(tmp_path)


def test_index_and_shards_that_disagree(tmp_path: Path) -> None:
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    write_index(sharded(tmp_path), {"a": names[0], "b": names[1], "c": names[1]})
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / names[1]}: lacks tensors that {INDEX} promises; fix: get the shards")
    assert message.endswith("\n  c")
    save_file({"b": torch.ones(2), "z": torch.ones(2)}, tmp_path / names[1])
    write_index(tmp_path, {"a": names[0], "b": names[1]})
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / names[1]}: has tensors that {INDEX} does not list; fix: ")
    assert message.endswith("\n  z")


def test_shards_of_two_formats(tmp_path: Path) -> None:
    name = "model-00002-of-00002.safetensors"
    torch.save({"b": torch.ones(2)}, sharded(tmp_path) / name)
    assert "names shards of different formats; fix: " in refusal(tmp_path)


# modules.json


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", "expected a list of modules"),
        ("[1]", "expected a list of modules"),
        ('[{"path": 1, "type": "x"}]', "path must be a text, not 1"),
        ('[{"path": "1_Pooling"}]', "type must be the name of a class, not None"),
        ("nonsense", "not valid JSON"),
    ],
)
def test_a_malformed_modules_json(text: str, expected: str, tmp_path: Path) -> None:
    (model(tmp_path) / "modules.json").write_text(text)
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / 'modules.json'}: {expected}")


@pytest.mark.parametrize("path", ["..", "../secret", "/etc", "1_Pooling/../.."])
def test_modules_json_that_points_outside_its_directory(path: str, tmp_path: Path) -> None:
    listed = [{"path": path, "type": "sentence_transformers.models.Pooling"}]
    (model(tmp_path / "m") / "modules.json").write_text(json.dumps(listed))
    assert f"modules.json points outside its directory: {path!r}; fix: " in refusal(tmp_path / "m")


# reading late


@pytest.mark.parametrize("save", [lambda state, path: save_file(state, path), torch.save], ids=["safetensors", "bin"])
def test_a_file_that_shrinks_after_it_was_opened(save: Callable[..., Any], tmp_path: Path) -> None:
    write_config(tmp_path)
    path = tmp_path / "x.bin"
    save({"a": torch.ones(5000)}, path)
    entry = open_source(str(tmp_path)).entries["a"]
    os.truncate(path, 2000)
    with pytest.raises(SourceError, match=r"x\.bin: ends at byte 2000, .* bytes early; fix: get the file again"):
        entry.read()


def test_names_from_a_file_stay_on_one_line(tmp_path: Path) -> None:
    write_config(tmp_path)
    name = "evil\x1b[2J\nfix: send money" + "x" * 500
    torch.save({name: torch.eye(2).to_sparse()}, tmp_path / "x.pt")
    message = refusal(tmp_path)
    assert len(message.splitlines()) == 2
    assert "\x1b" not in message
    assert len(message.splitlines()[1]) < 250
