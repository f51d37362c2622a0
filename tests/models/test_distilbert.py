"""DistilBERT's own: the table of positions, two spellings of a field, no token types; mistakes in its heads."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import mlxbert
from converter.convert import convert
from converter.parity.report import LOCAL, MAPPING
from converter.verify import verify
from mlxbert.activations import ACTIVATIONS
from mlxbert.model_arrays import InputError
from mlxbert.models.architecture import config_from_hf
from mlxbert.models.config_fields import ConfigError
from mlxbert.models.distilbert import DISTILBERT, DistilBertConfig, DistilBertCore
from mlxbert.pretrained import PretrainedBert, attach_head
from mlxbert.tokenization.tokenizer import TruncationWarning
from tests.support.encoder_pairs import error, filled
from tests.support.tiny import save_tiny, save_tokenizer

torch = pytest.importorskip("torch", reason="the reference is transformers")


def converted(directory: Path, name: str, **options: Any) -> Path:
    save_tiny(directory / "source", name, **options)
    save_tokenizer(directory / "source")
    return convert(directory / "source", directory / "out", verify=False).path


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda name: converted(tmp_path_factory.mktemp("distilbert"), name))


def test_computed_positions_are_stored_and_trained_in_the_reference_too() -> None:
    import transformers

    config = transformers.DistilBertConfig(**DISTILBERT.tiny, sinusoidal_pos_embds=True)
    theirs = transformers.DistilBertModel(config).eval()
    table = theirs.embeddings.position_embeddings.weight
    assert table.requires_grad
    assert table[0, ::2].abs().max() == 0
    assert "embeddings.position_embeddings.weight" in theirs.state_dict()
    ids = np.random.default_rng(0).integers(5, 90, (2, 9))
    with torch.no_grad():
        table += 0.1 * torch.randn(table.shape, generator=torch.Generator().manual_seed(0))
        expected = theirs(torch.tensor(ids)).last_hidden_state
    assert error(filled(theirs)(ids).last_hidden_state, expected) < 2e-5


def test_both_spellings_of_a_size_are_read() -> None:
    ours = DistilBertConfig.from_hf({"model_type": "distilbert", "dim": 48, "n_layers": 2, "n_heads": 3})
    assert ours == DistilBertConfig.from_hf(
        {"model_type": "distilbert", "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
    )
    with pytest.raises(ConfigError, match="dim is 48 and hidden_size, the same field, 96; fix: remove the wrong one"):
        DistilBertConfig.from_hf({"model_type": "distilbert", "dim": 48, "hidden_size": 96})
    # transformers reads `activation` alone.
    assert config_from_hf({"model_type": "distilbert", "hidden_act": "relu"}).hidden_act == "gelu"


def test_every_token_has_type_0() -> None:
    core = DistilBertCore(DistilBertConfig.from_hf({"model_type": "distilbert", **DISTILBERT.tiny}))
    core.eval()
    ids = np.array([[5, 6, 7]])
    zeros, ones = np.zeros_like(ids), np.ones_like(ids)
    assert mx.array_equal(core(ids, None, zeros).last_hidden_state, core(ids).last_hidden_state)
    with pytest.raises(InputError, match="this model has no token types; fix: leave token_type_ids out"):
        core(ids, None, ones)


def test_a_pair_has_type_0_too_whatever_the_tokenizer_s_files_say(tmp_path: Path) -> None:
    import transformers

    out = converted(tmp_path, "DistilBertForSequenceClassification")
    model: Any
    model, tokenizer = mlxbert.load_with_head(out)
    texts, pairs = ["a bc", "the tin"], ["in it", "x " * 80]  # the second is cut
    for limit in (64, 9):
        with pytest.warns(TruncationWarning):
            batch = tokenizer(texts, pairs, max_length=limit)
        assert not batch["token_type_ids"].any()
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "source")
        inputs = theirs(texts, pairs, truncation=True, max_length=limit, padding=True, return_tensors="pt")
        assert inputs["token_type_ids"].any()  # which the model ignores
        assert np.array_equal(np.array(batch["input_ids"]), inputs["input_ids"].numpy())
        reference = transformers.DistilBertForSequenceClassification.from_pretrained(tmp_path / "source").eval()
        with torch.no_grad():
            expected = reference(**inputs).logits
        assert np.abs(np.array(model(**batch).logits) - expected.numpy()).max() < 2e-5
    assert [set(row.type_ids) for row in tokenizer.encode(texts, pairs)] == [{0}, {0}]


def with_tanh(head: Any) -> None:
    """tanh, as after BERT's pooler, instead of ReLU."""
    head.pre_classifier = nn.Sequential(head.pre_classifier, mx.tanh)


def without_pre_classifier(head: Any) -> None:
    head.pre_classifier = nn.Identity()


def with_another_eps(head: Any) -> None:
    head.vocab_layer_norm.eps = 1e-3


def with_tanh_gelu(head: Any) -> None:
    head._activation = ACTIVATIONS["gelu_new"]


SEQUENCE, CHOICE, WORDS = (f"DistilBertFor{task}" for task in ("SequenceClassification", "MultipleChoice", "MaskedLM"))


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        *((name, mistake) for name in (SEQUENCE, CHOICE) for mistake in (with_tanh, without_pre_classifier)),
        *((WORDS, mistake) for mistake in (with_another_eps, with_tanh_gelu)),
    ],
)
def test_a_mistake_in_a_head_is_found_in_its_logits(
    name: str, mistake: Callable[[Any], None], make: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = make(name)

    def wrong(*inputs: Any, **options: Any) -> PretrainedBert:
        model = attach_head(*inputs, **options)
        mistake(model.head)
        return model

    monkeypatch.setattr("converter.verify.attach_head", wrong)
    report = verify(out, out.parent / "source")
    assert not report.passed
    (point,) = [point for point in report.select(MAPPING, LOCAL) if not point.passed]
    assert point.name == "logits.logits"
    assert point.max_rel is not None
    assert point.max_rel > 5 * point.limit


def test_a_head_that_config_json_unties_must_be_there(tmp_path: Path) -> None:
    out = converted(tmp_path, "DistilBertForMaskedLM", tie_word_embeddings=False)
    file = out / "heads.safetensors"
    tensors: Any = mx.load(str(file))
    modules = ("vocab_transform", "vocab_layer_norm", "vocab_projector")
    assert set(tensors) == {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}
    del tensors["vocab_projector.weight"]
    mx.save_safetensors(str(file), tensors, {"format": "mlx"})
    with pytest.raises(mlxbert.MLXBertError, match=r"missing: vocab_projector\.weight"):
        mlxbert.load_with_head(out)


def test_the_classes_that_share_tensors_are_told_apart_by_config_json(tmp_path: Path) -> None:
    out = converted(tmp_path, "DistilBertForMultipleChoice")
    assert mlxbert.load_with_head(out)[0].architecture == "DistilBertForMultipleChoice"
    config = json.loads((out / "config.json").read_text())
    config["mlxbert"]["original_architectures"] = None
    config["id2label"] = {"0": "a"}
    (out / "config.json").write_text(json.dumps(config))
    assert mlxbert.load_with_head(out)[0].architecture == "DistilBertForSequenceClassification"


def test_the_old_config_of_the_hub_is_read() -> None:
    old = """{
        "activation": "gelu", "attention_dropout": 0.1, "dim": 768, "dropout": 0.1, "hidden_dim": 3072,
        "initializer_range": 0.02, "max_position_embeddings": 512, "model_type": "distilbert", "n_heads": 12,
        "n_layers": 6, "pad_token_id": 0, "qa_dropout": 0.1, "seq_classif_dropout": 0.2, "vocab_size": 30522,
        "sinusoidal_pos_embds": false, "tie_weights_": true, "architectures": ["DistilBertForMaskedLM"]
    }"""
    assert config_from_hf(json.loads(old)) == DistilBertConfig()
