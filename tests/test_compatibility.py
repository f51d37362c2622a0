"""One converted directory, loaded unmodified by the packages that the card names, gives the same numbers in each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import mlxbert
from converter.convert import convert
from mlxbert.encode import SentenceEncoder
from tests.test_core import error
from tests.tiny import save_tiny

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
