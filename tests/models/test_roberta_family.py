"""RoBERTa, XLM-RoBERTa and CamemBERT beyond the suites: positions, old files, heads in both gates, embeddings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import mlxbert
from converter.convert import convert
from converter.parity.report import CUMULATIVE, LOCAL, MAPPING, PRECISION
from converter.verify import verify
from heads.pretrained.bert import Decoder
from mlxbert.activations import gelu_tanh
from mlxbert.encode.encoder import SentenceEncoder
from mlxbert.model_arrays import InputError
from mlxbert.models.architecture import architecture
from mlxbert.models.config_fields import ConfigError
from mlxbert.models.roberta import ARCHITECTURES, RobertaConfig, RobertaCore
from mlxbert.pipelines import classify
from mlxbert.pretrained import PretrainedBert
from mlxbert.tokenization.tokenizer import TokenizerError
from tests.support.tiny import save_tiny, save_tokenizer, write_vocab
from tests.test_head_parity import gate

torch = pytest.importorskip("torch", reason="the reference is transformers on PyTorch")
safetensors_torch = pytest.importorskip("safetensors.torch")

MODEL_TYPES = [declared.model_type for declared in ARCHITECTURES]
HEADS = [name for declared in ARCHITECTURES for name in declared.heads]
each = pytest.mark.parametrize("model_type", MODEL_TYPES)


def rewrite(source: Path, change: Any) -> None:
    """Replace the tensors of `model.safetensors` by `change(tensors)`."""
    file = source / "model.safetensors"
    safetensors_torch.save_file(change(safetensors_torch.load_file(file)), file, {"format": "pt"})


def tiny_core(**fields: Any) -> RobertaCore:
    tiny = architecture("xlm-roberta").tiny
    core = RobertaCore(RobertaConfig.from_hf({"model_type": "roberta", **tiny, **fields}))
    core.eval()
    return core


# --- positions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", [0, 1, 5])
def test_positions_are_counted_from_the_ids_wherever_the_padding_is(pad: int) -> None:
    core = tiny_core(pad_token_id=pad)
    # Each row of the table is its own number, and nothing else is in the sum.
    table = core.embeddings.position_embeddings
    table.weight = mx.broadcast_to(mx.arange(table.weight.shape[0])[:, None], table.weight.shape).astype(mx.float32)
    for other in (core.embeddings.word_embeddings, core.embeddings.token_type_embeddings):
        other.weight = mx.zeros_like(other.weight)
    core.embeddings.LayerNorm = nn.Identity()  # type: ignore[assignment]
    real = pad + 2
    rows = [[real] * 4, [pad, pad, real, real], [real, pad, real, pad], [pad] * 4]
    positions = [[1, 2, 3, 4], [0, 0, 1, 2], [1, 0, 2, 0], [0] * 4]
    for mask in (None, np.array([[1, 0, 1, 0]] * 4)):
        x, _ = core.embed(np.array(rows), mask)
        assert x[..., 0].tolist() == (np.array(positions) + pad).tolist()
    # Without ids they follow one another, whatever the mask says.
    x, _ = core.embed(
        inputs_embeds=mx.zeros((2, 4, core.config.hidden_size)), attention_mask=np.array([[0, 1, 1, 1]] * 2)
    )
    assert x[..., 0].tolist() == [[pad + 1, pad + 2, pad + 3, pad + 4]] * 2


@each
def test_the_longest_text_is_shorter_than_the_table(model_type: str) -> None:
    read = architecture(model_type).config.from_hf
    for pad in (0, 1, 7):
        config = read({"model_type": model_type, "max_position_embeddings": 514, "pad_token_id": pad})
        assert config.max_length == 513 - pad
    with pytest.raises(
        ConfigError, match="max_position_embeddings 8 leaves no position for a token after pad_token_id 7"
    ):
        read({"model_type": model_type, "max_position_embeddings": 8, "pad_token_id": 7})
    with pytest.raises(
        ConfigError, match=r"pad_token_id is null, and positions are counted from it; fix: give the id"
    ):
        read({"model_type": model_type, "pad_token_id": None})


# --- one token type -------------------------------------------------------------------------------------------------


@each
def test_a_second_token_type_is_refused(model_type: str, tmp_path: Path) -> None:
    declared = architecture(model_type)
    core = declared.encoder(declared.config.from_hf({"model_type": model_type, **declared.tiny}))
    with pytest.raises(InputError, match=r"token_type_ids: 1 at \[0, 1\] is outside the model's table, which has the"):
        core(np.array([[5, 6]]), token_type_ids=np.array([[0, 1]]))
    # A tokenizer of BERT's kind, which marks the second text of a pair, with a model that has one type.
    name = next(name for name in declared.heads if name.endswith("ForSequenceClassification"))
    save_tiny(tmp_path / "source", name, num_labels=2)
    for file in (tmp_path / "source").iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()
    write_vocab(tmp_path / "source/vocab.txt", declared.tiny["vocab_size"])
    (tmp_path / "source/tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    convert(tmp_path / "source", tmp_path / "out", verify=False)
    model, tokenizer = mlxbert.load_with_head(tmp_path / "out")
    assert len(classify(model, tokenizer, ["a b", "c"])) == 2
    with pytest.raises(TokenizerError, match="this model has one token type, so it cannot take pairs; fix: join both"):
        classify(model, tokenizer, {"text": "a b", "text_pair": "c"})


# --- files ----------------------------------------------------------------------------------------------------------


@each
def test_old_names_and_stray_buffers(model_type: str, tmp_path: Path) -> None:
    declared = architecture(model_type)
    name = next(name for name in declared.heads if name.endswith("ForMaskedLM"))
    save_tiny(tmp_path / "new", name)
    save_tiny(tmp_path / "old", name)

    def age(tensors: dict[str, Any]) -> dict[str, Any]:
        def old(key: str) -> str:
            if "LayerNorm" in key or "layer_norm" in key:
                return key.replace(".weight", ".gamma").replace(".bias", ".beta")
            return key

        buffers = {
            "roberta.embeddings.position_ids": torch.arange(66)[None],
            "roberta.embeddings.token_type_ids": torch.zeros(1, 66, dtype=torch.long),
        }
        assert any(key.startswith("roberta.") for key in tensors)
        return {old(key): tensor for key, tensor in tensors.items()} | buffers

    rewrite(tmp_path / "old", age)
    new = convert(tmp_path / "new", tmp_path / "a")
    old = convert(tmp_path / "old", tmp_path / "b")
    assert new.report is not None
    assert new.report.passed
    assert old.report is not None
    assert old.report.passed
    assert old.dropped == {
        **new.dropped,
        "roberta.embeddings.position_ids": "a constant: 0, 1, 2, …",
        "roberta.embeddings.token_type_ids": "a constant: zeros",
    }
    for file in ("model.safetensors", "heads.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@each
def test_defaults_that_other_packages_do_not_share_are_written(model_type: str, tmp_path: Path) -> None:
    save_tiny(tmp_path / "source", architecture(model_type).encoder_class, type_vocab_size=2)
    file = tmp_path / "source/config.json"
    config = json.loads(file.read_text())
    for field in ("pad_token_id", "layer_norm_eps", "type_vocab_size"):
        config.pop(field, None)
    file.write_text(json.dumps(config))
    convert(tmp_path / "source", tmp_path / "out", verify=False)
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert (written["pad_token_id"], written["layer_norm_eps"], written["type_vocab_size"]) == (1, 1e-12, 2)


# --- heads ----------------------------------------------------------------------------------------------------------

OPTIONS: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in HEADS]
OPTIONS += [
    ("XLMRobertaForMaskedLM", {"tie_word_embeddings": False}),
    ("XLMRobertaForMaskedLM", {"hidden_act": "relu", "layer_norm_eps": 1e-5}),  # its head keeps GELU
    ("XLMRobertaForSequenceClassification", {"num_labels": 1, "problem_type": "regression"}),
    ("XLMRobertaForSequenceClassification", {"num_labels": 5, "problem_type": "multi_label_classification"}),
    ("XLMRobertaForTokenClassification", {"num_labels": 7, "classifier_dropout": 0.5}),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_both_gates_compare_the_logits(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    save_tiny(tmp_path / "source", name, **options)
    out = convert(tmp_path / "source", tmp_path / "out", dtype="bfloat16", verify=False).path
    report = verify(out, tmp_path / "source")
    assert report.passed, report.failures
    assert report.reference_class == name
    assert report.unexpected == ()
    for which, check in ((MAPPING, CUMULATIVE), (MAPPING, LOCAL), (PRECISION, CUMULATIVE)):
        assert any(point.name.startswith("logits.") for point in report.select(which, check))


@each
def test_the_language_model_s_decoder_is_tied_and_its_bias_is_its_own(model_type: str, tmp_path: Path) -> None:
    name = next(name for name in architecture(model_type).heads if name.endswith("ForMaskedLM"))
    theirs = save_tiny(tmp_path / "source", name)
    ids = np.array([[0, 9, 1, 7, 2]])
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()

    def with_copies(tensors: dict[str, Any]) -> dict[str, Any]:
        words = tensors["roberta.embeddings.word_embeddings.weight"].clone()
        return tensors | {"lm_head.decoder.weight": words, "lm_head.decoder.bias": tensors["lm_head.bias"].clone()}

    rewrite(tmp_path / "source", with_copies)
    result = convert(tmp_path / "source", tmp_path / "out", verify=False)
    assert result.dropped == {
        "lm_head.decoder.weight": "tied: a copy of embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "tied: a copy of lm_head.bias",
    }
    model, _ = mlxbert.load_with_head(tmp_path / "out")
    logits = model(ids).logits
    assert logits is not None
    assert np.abs(np.array(logits) - expected).max() < 2e-5 * max(1, np.abs(expected).max())
    bias = model.head.lm_head.bias
    assert float(mx.abs(bias).max()) > 0.1
    model.head.lm_head.bias = mx.zeros_like(bias)
    without = model(ids).logits
    assert without is not None
    assert np.allclose(np.array(logits - without), np.broadcast_to(np.array(bias), logits.shape), atol=1e-4)


def shift_bias(model: PretrainedBert) -> None:
    model.head.lm_head.bias = mx.roll(model.head.lm_head.bias, 1)


def untie(model: PretrainedBert) -> None:
    table = model.core.embeddings.word_embeddings
    rows, width = table.weight.shape
    model.head.lm_head.decoder = Decoder(width, rows, weight=True, bias=False)
    model.head.lm_head.decoder.weight = table.weight[::-1]


def tanh_gelu(model: PretrainedBert) -> None:
    model.head.lm_head._activation = gelu_tanh


def other_eps(model: PretrainedBert) -> None:
    model.head.lm_head.layer_norm.eps = 1e-4


def exchange_labels(model: PretrainedBert) -> None:
    model.head.classifier.out_proj.weight = model.head.classifier.out_proj.weight[::-1]


def without_tanh(model: PretrainedBert) -> None:
    classifier = model.head.classifier
    model.head.classifier = lambda x: classifier.out_proj(classifier.dense(x))


def of_the_last_token(model: PretrainedBert) -> None:
    real = type(model.head).__call__
    methods = {"__call__": lambda self, hidden, *rest: real(self, hidden[:, ::-1], *rest)}
    model.head.__class__ = type("Mutant", (type(model.head),), methods)


@pytest.mark.parametrize(
    ("kind", "mutate"),
    [
        *[("MaskedLM", mutate) for mutate in (shift_bias, untie, tanh_gelu, other_eps)],
        *[("SequenceClassification", mutate) for mutate in (exchange_labels, without_tanh, of_the_last_token)],
    ],
)
def test_a_wrong_head_is_named(kind: str, mutate: Callable[[PretrainedBert], None], tmp_path: Path) -> None:
    save_tiny(tmp_path / "source", f"XLMRobertaFor{kind}")
    convert(tmp_path / "source", tmp_path / "out", verify=False)
    report = gate(tmp_path / "source", mutate)
    assert not report.passed
    assert report.first_diverging_layer == "logits.logits"
    assert all(point.passed for point in report.points if not point.name.startswith("logits."))
    (point,) = [point for point in report.select(MAPPING, LOCAL) if point.name == "logits.logits"]
    assert (point.max_rel or 0) >= 5 * point.limit


# --- sentence-transformers ------------------------------------------------------------------------------------------

MODES = {"bge-m3": "cls", "multilingual-e5": "mean"}


@each
@pytest.mark.parametrize("layout", MODES)
def test_the_layout_of_published_embedders(model_type: str, layout: str, tmp_path: Path) -> None:
    """XLM-R as BAAI/bge-m3 (first token) and intfloat/multilingual-e5-base (mean) have it: normalized, 1_Pooling."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    source = tmp_path / "source"
    save_tiny(source, architecture(model_type).encoder_class)
    save_tokenizer(source)
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate([("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")])
    ]
    (source / "modules.json").write_text(json.dumps(modules))
    (source / "sentence_bert_config.json").write_text('{"max_seq_length": 20, "do_lower_case": false}')
    (source / "1_Pooling").mkdir()
    flags = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    pooling = {f"pooling_mode_{flag}": flag.startswith(f"{MODES[layout]}_tok") for flag in flags}
    (source / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 48, **pooling}))
    result = convert(source, tmp_path / "out")
    assert result.report is not None
    assert result.report.passed, result.report.failures
    texts = ["query: how much is it", "the tin hat", "", "in it was " * 20]
    expected = np.asarray(sentence_transformers.SentenceTransformer(str(source), device="cpu").encode(texts))
    with pytest.warns(UserWarning, match="1 of 4 texts is longer than 20 tokens"):
        got = SentenceEncoder.from_pretrained(tmp_path / "out").encode(texts)
    assert got.shape == expected.shape == (4, 48)
    assert np.abs(got - expected).max() < 1e-5
