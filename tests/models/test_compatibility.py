"""One converted directory, loaded unmodified by the packages that the card names, gives the same numbers in each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import mlxbert
from converter.convert import convert
from converter.quantize.recipes import built_in
from converter.verify import verify
from mlxbert.encode.encoder import SentenceEncoder
from tests.models.test_core import error
from tests.support.tiny import save_tiny, save_tokenizer

TEXTS = [
    "A cat sits on the mat.",
    "MLX runs BERT, too.",
    "Ein Café in Zürich — 日本語, emoji 🙂!",
    "word " * 60,
]


@pytest.fixture(scope="module")
def minilm(minilm_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "minilm"
    convert(minilm_source, out, verify=False)
    return out


def test_the_written_tensors_are_the_source_s_bit_for_bit(minilm: Path, minilm_source: Path) -> None:
    theirs, ours = (load_file(directory / "model.safetensors") for directory in (minilm_source, minilm))
    assert set(theirs) - set(ours) == {"embeddings.position_ids"}
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_transformers_auto_model(minilm: Path) -> None:
    from transformers import AutoModel

    reference, info = AutoModel.from_pretrained(minilm, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    model, tokenizer = mlxbert.load(minilm)
    inputs = tokenizer(TEXTS)
    with torch.no_grad():
        theirs = reference.eval()(**{name: torch.tensor(np.array(value)).long() for name, value in inputs.items()})
    ours = model(**inputs)
    mask = np.array(inputs["attention_mask"])
    assert error(ours.last_hidden_state, theirs.last_hidden_state, mask) < 2e-5
    assert error(ours.pooler_output, theirs.pooler_output) < 2e-5


def test_sentence_transformers(minilm: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    theirs = sentence_transformers.SentenceTransformer(str(minilm), device="cpu").encode(TEXTS)
    ours = SentenceEncoder.from_pretrained(minilm).encode(TEXTS)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_mlx_embeddings(minilm: Path) -> None:
    theirs, _ = pytest.importorskip("mlx_embeddings").load(str(minilm))
    assert "pooler" in theirs  # mlx_embeddings loads strictly, and insists on it
    check_mlx(theirs, minilm)


def test_mlx_vlm(minilm: Path) -> None:
    check_mlx(pytest.importorskip("mlx_vlm.embedding_loader").load_embedding_model(minilm), minilm)


def check_mlx(theirs: Any, minilm: Path) -> None:
    """The same hidden states and the same sentence embeddings from another package's model."""
    model, tokenizer = mlxbert.load(minilm)
    inputs = tokenizer(TEXTS[:2])
    output = theirs(inputs["input_ids"], attention_mask=inputs["attention_mask"])
    mask = np.array(inputs["attention_mask"])
    expected = torch.tensor(np.array(output.last_hidden_state))
    assert error(model(**inputs).last_hidden_state, expected, mask) < 2e-5
    ours = SentenceEncoder.from_pretrained(minilm).encode(TEXTS[:2])
    np.testing.assert_allclose(ours, np.array(output.text_embeds), atol=2e-6)


@pytest.mark.parametrize("architecture", ["BertForPreTraining", "BertForSequenceClassification"])
def test_heads_beside_the_encoder_disturb_nobody(architecture: str, tmp_path: Path) -> None:
    from transformers import AutoModel

    if architecture == "BertForPreTraining":
        mlx_embeddings = pytest.importorskip("mlx_embeddings")
    save_tiny(tmp_path / "source", architecture)
    convert(tmp_path / "source", tmp_path / "out", verify=False)
    assert (tmp_path / "out" / "heads.safetensors").is_file()
    reference, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(reference).__name__ == "BertModel"
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    if architecture == "BertForPreTraining":
        mlx_embeddings.load(str(tmp_path / "out"))
    assert "heads" not in json.dumps(json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text()))


@pytest.fixture(scope="module", params=["mixed", "mxfp4", "nvfp4", "3bit"])
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantized directory with overrides, a skipped layer and the source's head; `mixed` without calibration."""
    directory = tmp_path_factory.mktemp(f"packed-{request.param}")
    save_tiny(directory / "source", "BertForPreTraining", hidden_size=64, intermediate_size=96)
    convert(directory / "source", directory / "out", quantize=request.param, calibration="none", verify=False)
    return directory / "out"


def test_quantized_in_mlx_embeddings(packed: Path) -> None:
    theirs, _ = pytest.importorskip("mlx_embeddings").load(str(packed))
    check_quantized(theirs, packed)


def test_quantized_in_mlx_vlm(packed: Path) -> None:
    check_quantized(pytest.importorskip("mlx_vlm.embedding_loader").load_embedding_model(packed), packed)


@pytest.mark.parametrize("package", ["mlx_embeddings", "mlx_vlm"])
def test_swift_s_paths_in_config_json_change_nothing_in_python(package: str, packed: Path, tmp_path: Path) -> None:
    without = shutil.copytree(packed, tmp_path / "without")
    config = json.loads((without / "config.json").read_text())
    swift = [path for path in config["quantization"] if path == "pooler" or path.startswith("encoder.layers.")]
    for block in ("quantization", "quantization_config"):
        config[block] = {path: value for path, value in config[block].items() if path not in swift}
    (without / "config.json").write_text(json.dumps(config))

    def hidden(directory: Path) -> np.ndarray:
        load = loader(package)
        output = load(directory)(mx.array([[2, 7, 9, 3]]))
        return np.array(output.last_hidden_state.astype(mx.float32))

    assert np.array_equal(hidden(packed), hidden(without))


def loader(package: str) -> Callable[[Path], Any]:
    """The function of another package that loads an encoder, without its tokenizer."""
    if package == "mlx_embeddings":
        return pytest.importorskip("mlx_embeddings.utils").load_model
    return pytest.importorskip("mlx_vlm.embedding_loader").load_embedding_model


@pytest.fixture(scope="module")
def calibrated(minilm_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real model, calibrated on a few sentences: overrides, skipped layers, biases that calibration changed."""
    root = tmp_path_factory.mktemp("calibrated")
    (root / "texts.txt").write_text("\n".join(built_in("calibration").texts[::8]), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("converter.quantize.pipeline.VARIANTS", 0)  # of 4, for the time they take: quality is not judged
        convert(minilm_source, root / "out", quantize="mixed", calibration=root / "texts.txt", verify=False)
    return root / "out"


@pytest.mark.slow
@pytest.mark.parametrize("package", ["mlx_embeddings", "mlx_vlm"])
def test_a_real_calibrated_model_gives_the_same_embeddings(package: str, calibrated: Path) -> None:
    if package == "mlx_embeddings":
        theirs, _ = pytest.importorskip("mlx_embeddings").load(str(calibrated))
    else:
        theirs = pytest.importorskip("mlx_vlm.embedding_loader").load_embedding_model(calibrated)
    output = check_quantized(theirs, calibrated, TEXTS[:2])
    expected = np.array(output.text_embeds.astype(mx.float32))
    ours = SentenceEncoder.from_pretrained(calibrated).encode(TEXTS[:2])
    assert (ours * expected).sum(axis=1).min() > 0.9999


def check_quantized(theirs: Any, packed: Path, texts: Sequence[str] = ("a b c d e", "f g")) -> Any:
    """Packed there too, and the same hidden states, up to the half precision that they compute in; their output.

    The texts are few and short: MLX's own kernels for packed half precision take mlx_vlm 0.4 s a token on a CPU.
    """
    import mlx.nn as nn

    query = theirs.encoder.layer[0].attention.self.query
    assert isinstance(query, nn.QuantizedLinear)
    model, tokenizer = mlxbert.load(packed)
    inputs = tokenizer(list(texts))
    output = theirs(inputs["input_ids"], attention_mask=inputs["attention_mask"])
    mask = np.array(inputs["attention_mask"]).astype(bool)
    expected = np.array(output.last_hidden_state.astype(mx.float32))
    ours = np.array(model(**inputs).last_hidden_state)
    assert np.abs(ours - expected)[mask].max() < 0.1
    cosine = (ours * expected).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert cosine[mask].min() > 0.9995
    return output


@pytest.mark.parametrize("mode", ["affine", "mxfp4"])
def test_what_mlx_embeddings_quantized_loads_and_is_unpacked(mode: str, tmp_path: Path) -> None:
    converter = pytest.importorskip("mlx_embeddings.convert")
    save_tiny(tmp_path / "source", hidden_size=64, intermediate_size=96)
    save_tokenizer(tmp_path / "source")
    converter.convert(
        str(tmp_path / "source"),
        str(tmp_path / "theirs"),
        quantize=True,
        q_group_size=32,
        q_bits=4,
        q_mode=mode,
    )
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert "mlxbert" not in config
    model, tokenizer = mlxbert.load(tmp_path / "theirs")
    assert model.packed is not None
    inputs = tokenizer(["a b c", "d"])
    theirs, _ = pytest.importorskip("mlx_embeddings").load(str(tmp_path / "theirs"))
    expected = theirs(inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    mask = np.array(inputs["attention_mask"]).astype(bool)
    ours = np.array(model(**inputs).last_hidden_state)
    assert np.abs(ours - np.array(expected.astype(mx.float32)))[mask].max() < 0.1
    report = verify(tmp_path / "theirs", tmp_path / "source")
    assert report.passed
    assert report.quantization is not None
    assert report.quantization.recipe == ("4bit" if mode == "affine" else mode)
    convert(tmp_path / "theirs", tmp_path / "unpacked", dequantize=True)
    unpacked, _ = mlxbert.load(tmp_path / "unpacked")
    np.testing.assert_array_equal(np.array(unpacked(**inputs).last_hidden_state), ours)
