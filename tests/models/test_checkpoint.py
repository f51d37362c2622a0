"""Loading is strict: every name and shape, every damage, in one message with the fix; local and from the Hub."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mlxbert
from converter.convert import convert
from mlxbert.checkpoint import CheckpointError
from tests.support.tiny import save_tiny


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoint")
    save_tiny(root / "source", "BertForPreTraining")
    convert(root / "source", root / "out", verify=False)
    return root / "out"


@pytest.fixture
def converted(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "out"))


def rewrite(converted: Path, tensors: dict[str, np.ndarray]) -> None:
    """The model file and its index, made to agree with each other."""
    save_file(tensors, converted / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model.safetensors")}
    (converted / "model.safetensors.index.json").write_text(json.dumps(index))


def failure(converted: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        mlxbert.load(converted)
    return str(caught.value)


def test_missing_unexpected_and_misshapen_tensors_are_all_listed(converted: Path) -> None:
    tensors = load_file(converted / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.bias"]
    tensors["encoder.layer.9.output.dense.bias"] = np.zeros(3, np.float32)
    tensors["embeddings.LayerNorm.weight"] = np.zeros(47, np.float32)
    tensors["embeddings.LayerNorm.bias"] = np.zeros(48, np.int32)
    rewrite(converted, tensors)
    message = failure(converted)
    assert "missing: encoder.layer.1.output.dense.bias" in message
    assert "unexpected: encoder.layer.9.output.dense.bias" in message
    assert "embeddings.LayerNorm.weight is (47,), config.json calls for (48,)" in message
    assert "embeddings.LayerNorm.bias has dtype mlx.core.int32" in message
    assert "fix: convert again" in message


def test_long_lists_are_cut_after_ten(converted: Path) -> None:
    rewrite(converted, {"x": np.zeros(1, np.float32)})
    assert "… and 44 more" in failure(converted)


def test_half_a_pooler_is_missing_the_other_half(converted: Path) -> None:
    tensors = load_file(converted / "model.safetensors")
    del tensors["pooler.dense.bias"]
    rewrite(converted, tensors)
    assert "missing: pooler.dense.bias" in failure(converted)


def test_a_run_in_place_of_a_model_names_one_of_its_models(tmp_path: Path) -> None:
    for name in ("seed0-fold1", "seed0-fold0"):
        (tmp_path / "members" / name).mkdir(parents=True)
        (tmp_path / "members" / name / "config.json").write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        mlxbert.load(tmp_path)
    member = tmp_path / "members/seed0-fold0"
    assert str(caught.value) == f"{tmp_path} is a run, not one model; fix: one of its models, such as {member}"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "no config.json, so not a model; fix: mlxbert-convert SRC -o"),
        ("config.json", b"{", "config.json: not valid JSON"),
        ("config.json", b"[" * 100_000, "config.json: not valid JSON"),
        ("config.json", b"[]", "config.json: expected a JSON object, found list"),
        ("config.json", b"\xff\xfe", "config.json: not UTF-8"),
        ("model.safetensors", None, "model.safetensors is missing; fix: convert or download again"),
        ("model.safetensors", b"garbage" * 99, "model.safetensors is damaged"),
        ("model.safetensors.index.json", None, "model.safetensors.index.json is missing; fix: convert again"),
        ("model.safetensors.index.json", b"{}", "has no usable weight_map"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": 3}}', "has no usable weight_map"),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"a": "../../etc/passwd"}}',
            "names '../../etc/passwd', which is no safetensors file beside it",
        ),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"a": "model.safetensors"}}',
            "disagree; fix: convert again",
        ),
    ],
)
def test_damage(file: str, content: bytes | None, message: str, converted: Path) -> None:
    (converted / file).unlink()
    if content is not None:
        (converted / file).write_bytes(content)
    assert message in failure(converted)


def test_a_truncated_model_file(converted: Path) -> None:
    file = converted / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    assert "damaged" in failure(converted)


def test_shards_load_as_one(converted: Path) -> None:
    whole, _ = mlxbert.load(converted)
    tensors = load_file(converted / "model.safetensors")
    (converted / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        shard = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, converted / shard)
        weight_map |= dict.fromkeys(part, shard)
    (converted / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    sharded, _ = mlxbert.load(converted)
    ids = mx.array([[2, 9, 11, 3]])
    assert mx.array_equal(whole(ids).last_hidden_state, sharded(ids).last_hidden_state)


def test_a_path_that_is_none_a_revision_of_a_directory_and_a_source_that_was_never_converted(
    converted: Path, tmp_path: Path
) -> None:
    assert "no such directory, and not a Hub id" in failure(tmp_path / "nothing")
    assert "no such directory, and not a Hub id" in failure(converted / "model.safetensors")
    with pytest.raises(CheckpointError, match="is a directory: revision='main' is for a Hub id"):
        mlxbert.load(converted, revision="main")
    save_tiny(tmp_path / "source")
    command = f"mlxbert-convert {tmp_path / 'source'} -o mlx_models/source"
    assert failure(tmp_path / "source") == f"{tmp_path / 'source'} was never converted; run: {command}"


def test_a_tokenizer_of_another_model(converted: Path) -> None:
    with (converted / "vocab.txt").open("a") as file:
        file.write("one\ntoo\n")
    assert "the tokenizer has 99 ids and the model 97; fix: put the tokenizer there" in failure(converted)


def test_torch_and_transformers_are_not_needed(converted: Path) -> None:
    """In a process where neither can be imported, a converted directory still loads, encodes and pools."""
    script = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers"):
            raise ImportError(name + " must not be imported")
sys.meta_path.insert(0, Refuse())
import mlxbert
from mlxbert.encode.encoder import SentenceEncoder
model, tokenizer = mlxbert.load(sys.argv[1])
assert model(**tokenizer(["a b c"])).pool("mean").shape == (1, 48)
assert SentenceEncoder.from_pretrained(sys.argv[1]).encode(["a b", "c"]).shape == (2, 48)
assert not {"torch", "transformers"} & set(sys.modules)
print("fine")
"""
    command = [sys.executable, "-W", "ignore", "-c", script, str(converted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "fine", done.stderr
