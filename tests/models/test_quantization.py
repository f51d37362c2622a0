"""Packed checkpoints in the runtime: the form on disk, loading, saving, refusing."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mlxbert
from converter.convert import convert
from heads.binary import BinaryClassificationHead
from mlxbert.checkpoint import CheckpointError, load_core
from mlxbert.model_arrays import named_parameters
from mlxbert.models.bert import BERT
from mlxbert.quantization import (
    ChangedWeightsError,
    LayerQuantization,
    QuantizationConfig,
    QuantizationError,
    refuse_training,
)
from tests.support.tiny import save_tiny

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96}
RECIPES = ("2bit", "3bit", "4bit", "5bit", "6bit", "8bit", "mxfp4", "mxfp8", "nvfp4")
QUERY = "encoder.layer.0.attention.self.query"
IDS = [[2, 7, 9, 40, 3], [2, 33, 3, 0, 0]]
MASK = [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("source") / "tiny"
    save_tiny(directory, "BertForMaskedLM", **SIZES)
    return directory


@pytest.fixture(scope="module")
def packed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "tiny-4bit"
    convert(source, out, quantize="4bit", verify=False)
    return out


@pytest.fixture(scope="module")
def exact(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("exact") / "tiny"
    convert(source, out, verify=False)
    return load_core(out)


def hidden(core: Any) -> np.ndarray:
    return np.array(core(IDS, MASK).last_hidden_state.astype(mx.float32))


@pytest.mark.parametrize("recipe", RECIPES)
def test_mlx_s_own_layers_and_the_unpacked_model_agree(recipe: str, source: Path, exact: Any, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", quantize=recipe, verify=False, dtype="float32")
    unpacked, layers = (load_core(tmp_path / "out", dequantize=way) for way in (True, False))
    assert any(name.endswith(".scales") for name in named_parameters(layers))
    np.testing.assert_allclose(hidden(unpacked), hidden(layers), atol=2e-2 if recipe[:2] in ("mx", "nv") else 2e-5)
    errors = np.abs(hidden(exact) - hidden(unpacked))
    assert errors.max() > 1e-5  # it is quantized
    assert errors.mean() < {"2bit": 0.9, "3bit": 0.45}.get(recipe, 0.25)


def test_config_says_it_as_mlx_lm_does(packed: Path) -> None:
    config = json.loads((packed / "config.json").read_text())
    assert config["quantization"] == config["quantization_config"]
    assert {k: config["quantization"][k] for k in ("bits", "group_size", "mode")} == {
        "bits": 4,
        "group_size": 64,
        "mode": "affine",
    }
    assert config["quantization"]["embeddings.token_type_embeddings"] is False
    # Rows of 96 do not divide by 64, but by 32.
    assert config["quantization"]["encoder.layer.0.output.dense"] == {"bits": 4, "group_size": 32, "mode": "affine"}
    assert config["dtype"] == "float16"
    index = json.loads((packed / "model.safetensors.index.json").read_text())
    tensors = named_parameters(load_core(packed, dequantize=True)).values()
    assert index["metadata"]["total_parameters"] == sum(tensor.size for tensor in tensors)


def test_a_width_that_no_group_divides_is_skipped_and_listed(tmp_path: Path) -> None:
    save_tiny(tmp_path / "source", hidden_size=48, intermediate_size=64)
    result = convert(tmp_path / "source", tmp_path / "out", quantize="4bit", verify=False)
    told = [note for note in result.notes if note.startswith("not quantized (rows of 48 divide into no groups of 32")]
    assert len(told) == 1
    assert "encoder.layer.2.intermediate.dense" in told[0]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    parsed = QuantizationConfig.from_hf(config)
    assert parsed is not None
    assert parsed.skipped["pooler.dense"] == "rows of 48 divide into no groups of 32, 64, 128"
    assert parsed.of("encoder.layer.0.output.dense") == LayerQuantization(4, 64)
    load_core(tmp_path / "out")


@pytest.mark.parametrize("way", [True, False])
def test_saving_writes_the_same_bytes(way: bool, packed: Path, tmp_path: Path) -> None:
    head = BinaryClassificationHead(64)
    mlxbert.BertWithHead.from_pretrained(packed, head, dequantize=way).save(tmp_path / "saved")
    for name in ("model.safetensors", "model.safetensors.index.json"):
        assert (tmp_path / "saved" / name).read_bytes() == (packed / name).read_bytes()
    again = mlxbert.BertWithHead.load(tmp_path / "saved", dequantize=way)
    assert any(name.endswith(".scales") for name in named_parameters(again)) is not way
    np.testing.assert_array_equal(hidden(again.core), hidden(load_core(packed, dequantize=way)))
    again.save(tmp_path / "twice")
    assert (tmp_path / "twice" / "heads.safetensors").is_file()
    assert (tmp_path / "twice" / "model.safetensors").read_bytes() == (packed / "model.safetensors").read_bytes()


def test_changed_weights_are_not_saved_as_the_old_ones(packed: Path, tmp_path: Path) -> None:
    core = load_core(packed)
    query = core.encoder.layer[0].attention.self.query
    query.weight = query.weight + 1
    with pytest.raises(ChangedWeightsError, match="1 weights of this quantized model were changed") as caught:
        mlxbert.BertWithHead(core, BinaryClassificationHead(64), source=packed).save(tmp_path / "saved")
    assert "encoder.layer.0.attention.self.query.weight" in str(caught.value)
    assert "--dequantize" in str(caught.value)
    assert not (tmp_path / "saved").exists()


def test_a_pretrained_head_runs_on_a_packed_encoder_and_is_saved_with_it(packed: Path, tmp_path: Path) -> None:
    unpacked, _ = mlxbert.load_with_head(packed)
    unpacked.save(tmp_path / "saved")
    for name in ("model.safetensors", "model.safetensors.index.json", "heads.safetensors", "config.json", "vocab.txt"):
        assert (tmp_path / "saved" / name).read_bytes() == (packed / name).read_bytes()
    unpacked.head.cls.predictions.bias = unpacked.head.cls.predictions.bias + 1
    unpacked.save(tmp_path / "changed")
    again, _ = mlxbert.load_with_head(tmp_path / "changed")
    np.testing.assert_array_equal(np.array(again(IDS, MASK).logits), np.array(unpacked(IDS, MASK).logits))
    unpacked, _ = mlxbert.load_with_head(packed)
    layers, _ = mlxbert.load_with_head(packed, dequantize=False)
    a, b = (np.array(model(IDS, MASK).logits) for model in (unpacked, layers))
    assert a.shape == (2, 5, 97)  # the decoder is the packed word embedding
    np.testing.assert_allclose(a, b, atol=0.05)


def test_a_trained_head_goes_with_its_encoder_when_that_is_packed_and_unpacked(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "plain", verify=False)
    head = BinaryClassificationHead(64)
    trained = mlxbert.BertWithHead.from_pretrained(tmp_path / "plain", head, {"name": "attention"})
    trained.save(tmp_path / "trained")
    result = convert(tmp_path / "trained", tmp_path / "packed", quantize="8bit")
    assert result.unverified == "a head that mlxbert trained has no PyTorch reference"
    assert result.quantization is not None
    convert(tmp_path / "packed", tmp_path / "back", dequantize=True)
    first, *others = (tmp_path / name for name in ("trained", "packed", "back"))
    for other in others:
        assert (other / "heads.safetensors").read_bytes() == (first / "heads.safetensors").read_bytes()
        configs = [json.loads((one / "config.json").read_text())["mlxbert"]["head"] for one in (first, other)]
        assert configs[0] == configs[1]
    models = [mlxbert.BertWithHead.load(one) for one in (first, *others)]
    exact, packed, unpacked = (np.array(model(IDS, MASK)) for model in models)
    np.testing.assert_array_equal(packed, unpacked)
    np.testing.assert_allclose(exact, packed, atol=0.05)
    assert np.abs(exact - packed).max() > 0
    refuse_training(models[2])


@pytest.mark.parametrize("quantize", ["8bit", None])
def test_a_head_on_another_tool_s_files_is_saved(quantize: str | None, source: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    convert(source, theirs, quantize=quantize, verify=False)
    for name in ("heads.safetensors", "manifest.json"):
        (theirs / name).unlink()
    config = json.loads((theirs / "config.json").read_text())
    del config["mlxbert"]
    (theirs / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))
    model = mlxbert.BertWithHead.from_pretrained(theirs, BinaryClassificationHead(64))
    model.save(tmp_path / "saved")
    again = mlxbert.BertWithHead.load(tmp_path / "saved")
    np.testing.assert_array_equal(np.array(again(IDS, MASK)), np.array(model(IDS, MASK)))
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["architectures"] == ["BertModel"]
    assert saved["mlxbert"]["original_architectures"] == ["BertForMaskedLM"]
    assert saved.get("quantization") == config.get("quantization")


@pytest.mark.parametrize("way", [True, False])
def test_training_is_refused_with_the_way_out(way: bool, packed: Path) -> None:
    from mlxbert.training.optimizer import Schedule
    from mlxbert.training.step import TrainStep

    model = mlxbert.BertWithHead(load_core(packed, dequantize=way), BinaryClassificationHead(64))
    with pytest.raises(QuantizationError, match=r"this model is quantized.*mlxbert-convert DIRECTORY --dequantize"):
        TrainStep(model, {}, Schedule(10))
    refuse_training(mlxbert.BertWithHead(mlxbert.BertCore(mlxbert.BertConfig(**TINY)), BinaryClassificationHead(64)))


TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization": {"bits": 4}}, "config.json: quantization has no group_size"),
        ({"quantization": {"bits": 7, "group_size": 64}}, "mode affine: bits 7 is none of 2, 3, 4, 5, 6, 8"),
        ({"quantization": {"bits": 4.0, "group_size": 64}}, "mode affine: bits 4.0 is none of 2, 3, 4, 5, 6, 8"),
        ({"quantization": {"bits": 4, "group_size": True}}, "mode affine: group_size True is none of 32, 64, 128"),
        ({"quantization": {"bits": 4, "group_size": 64, "mode": ["affine"]}}, "unhashable type"),
        ({"quantization": {"bits": 4, "group_size": 64, "mode": "int4"}}, "mode 'int4' is unknown"),
        ({"quantization": [4]}, "quantization must be an object"),
        ({"quantization": {"bits": 8, "group_size": 64}}, "config.json calls for"),
        ({"quantization": None}, 'is packed, but config.json has no "quantization"'),
        (
            {"quantization": {"bits": 4, "group_size": 64, "encoder.layer.0.attention.self.query": False}},
            "layers are quantized that config.json does not list",
        ),
    ],
)
def test_a_config_that_contradicts_the_files(change: dict[str, Any], message: str, packed: Path) -> None:
    config = json.loads((packed / "config.json").read_text()) | change
    with pytest.raises(CheckpointError, match=message):
        load_core(packed, config=config)


def test_scales_of_what_is_no_matrix_are_unexpected(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    tensors["embeddings.LayerNorm.scales"] = tensors["embeddings.LayerNorm.weight"]
    save_file(tensors, tmp_path / "out" / "model.safetensors", metadata={"format": "mlx"})
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    index["weight_map"]["embeddings.LayerNorm.scales"] = "model.safetensors"
    (tmp_path / "out" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"unexpected: embeddings\.LayerNorm\.scales"):
        load_core(tmp_path / "out")


def test_off_the_cpu_everything_is_unpacked_in_the_stored_dtype(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
        core = load_core(packed, dequantize=True)
    assert {array.dtype for array in named_parameters(core).values()} == {mx.float16}


class TestSwiftPaths:
    """Swift looks a layer's bits up under its own path, so every entry is there under both."""

    def test_each_entry_is_there_twice(self, packed: Path) -> None:
        config = json.loads((packed / "config.json").read_text())
        block = config["quantization"]
        ours = {
            path
            for path, value in block.items()
            if isinstance(value, dict | bool) and BERT.from_swift_path(path) == path
        }
        assert "encoder.layer.0.output.dense" in ours
        assert {path for path in ours if block[BERT.swift_path(path)] != block[path]} == set()
        assert block["encoder.layers.0.linear2"] == {"bits": 4, "group_size": 32, "mode": "affine"}
        parsed = QuantizationConfig.from_hf(config)
        assert parsed is not None
        assert {*parsed.overrides, *parsed.skipped} == ours
        assert parsed.to_mlx(BERT) == block

    @pytest.mark.parametrize("layer", [0, 11, 100])
    def test_the_way_there_and_back(self, layer: int) -> None:
        names = {
            f"encoder.layer.{layer}.attention.self.query": f"encoder.layers.{layer}.attention.query_proj",
            f"encoder.layer.{layer}.attention.self.key": f"encoder.layers.{layer}.attention.key_proj",
            f"encoder.layer.{layer}.attention.self.value": f"encoder.layers.{layer}.attention.value_proj",
            f"encoder.layer.{layer}.attention.output.dense": f"encoder.layers.{layer}.attention.out_proj",
            f"encoder.layer.{layer}.intermediate.dense": f"encoder.layers.{layer}.linear1",
            f"encoder.layer.{layer}.output.dense": f"encoder.layers.{layer}.linear2",
            "pooler.dense": "pooler",
            "embeddings.word_embeddings": "embeddings.word_embeddings",
        }
        assert {path: BERT.swift_path(path) for path in names} == names
        assert {path: BERT.from_swift_path(names[path]) for path in names} == {path: path for path in names}

    @pytest.mark.parametrize(
        ("path", "instead"),
        [
            ("encoder.layer.0.output.dense", "encoder.layer.0.output.dens"),
            ("encoder.layers.0.linear2", "encoder.layers.0.linear3"),
            ("embeddings.token_type_embeddings", "embeddings.type_embeddings"),
        ],
    )
    def test_a_misspelt_path_is_refused_by_name(self, path: str, instead: str, packed: Path, tmp_path: Path) -> None:
        def misspell(block: dict) -> None:
            block[instead] = block.pop(path)

        with pytest.raises(CheckpointError, match=re.escape(f"quantization names {instead}, which is no layer")):
            load_core(changed_block(packed, tmp_path, misspell))

    def test_two_paths_of_a_layer_that_disagree_are_refused(self, packed: Path, tmp_path: Path) -> None:
        def contradict(block: dict) -> None:
            block["encoder.layers.0.linear2"] = {"bits": 8, "group_size": 32, "mode": "affine"}

        with pytest.raises(CheckpointError, match=r"of encoder\.layers\.0\.linear2, which is Swift's name for it"):
            load_core(changed_block(packed, tmp_path, contradict))

    def test_without_swift_s_paths_as_earlier_versions_wrote_it(self, packed: Path, tmp_path: Path) -> None:
        def drop(block: dict) -> None:
            for path in [path for path in block if BERT.from_swift_path(path) != path]:
                del block[path]

        earlier = changed_block(packed, tmp_path, drop)
        np.testing.assert_array_equal(hidden(load_core(earlier)), hidden(load_core(packed)))


def changed_block(packed: Path, tmp_path: Path, change: Callable[[dict], None]) -> Path:
    """A copy of a quantized directory with another "quantization"."""
    shutil.copytree(packed, tmp_path / "changed")
    file = tmp_path / "changed/config.json"
    config = json.loads(file.read_text())
    change(config["quantization"])
    file.write_text(json.dumps(config))
    return tmp_path / "changed"
