"""Sentence embeddings equal sentence-transformers' on the same directory."""

from __future__ import annotations

import json
import math
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense as ReferenceDense
from sentence_transformers.base.modules import Normalize as ReferenceNormalize
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util.quantization import quantize_embeddings
from transformers import BertConfig, BertModel

from mlxbert.backend.device import use_fast_blas
from mlxbert.encode.encoder import SentenceEncoder, SentenceEncoderWarning, batches
from mlxbert.encode.modules import ACTIVATIONS, Dense, SentenceModuleError
from mlxbert.encode.precision import PrecisionError
from mlxbert.encode.sentence_modules import read_pooling
from mlxbert.model_arrays import InputError
from mlxbert.pooling import PoolingError
from mlxbert.tokenization.tokenizer import TokenizerError, TruncationWarning

NASTY: list[str] = json.loads((Path(__file__).parents[1] / "support" / "data" / "nasty_texts.json").read_text("utf-8"))
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [chr(c) for c in range(ord("!"), ord("~") + 1)]
VOCABULARY = [*SPECIAL, *LETTERS, *(f"##{c}" for c in LETTERS), "the", "query", "fox", "Fox"]
TEXTS = ["the fox", "", "a longer text about a fox, a dog, and the query", " ", "the", "x" * 90, *NASTY]
TOLERANCE = 1e-5


def converted(directory: Path) -> Path:
    """Turn a Hugging Face directory into the layout of a converted one."""
    tensors = {k: v for k, v in load_file(directory / "model.safetensors").items() if not k.endswith("position_ids")}
    (directory / "model.safetensors").unlink()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "mlx"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model.safetensors")}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"mlxbert": {"format_version": 1}}))
    return directory


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random encoder, every parameter random, with a bare cased vocabulary."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=64, **sizes)
    model = BertModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    directory = tmp_path_factory.mktemp("encoder")
    model.save_pretrained(directory)
    (directory / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    (directory / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "model_max_length": 64}))
    return converted(directory)


@pytest.fixture
def plain(base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(base, tmp_path / "plain")


def legacy(directory: Path, pooling: dict[str, Any] | None = None, **files: Any) -> Path:
    """The files that sentence-transformers wrote before 6: `models.Pooling` and one flag a strategy."""
    kinds = ["Transformer", "Pooling", "Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{k}" if i else "", "type": f"sentence_transformers.models.{k}"}
        for i, k in enumerate(kinds)
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    flags = {"pooling_mode_mean_tokens": True} if pooling is None else pooling
    (directory / "1_Pooling").mkdir(exist_ok=True)
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **flags}))
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


def saved(base: Path, directory: Path, *modules: torch.nn.Module, **options: Any) -> Path:
    """The files that the installed sentence-transformers writes."""
    model = SentenceTransformer(modules=[Transformer(str(base)), *modules], device="cpu", **options)
    model.save_pretrained(str(directory), create_model_card=False)
    return converted(directory)


@cache
def reference(directory: Path) -> SentenceTransformer:
    return SentenceTransformer(str(directory), device="cpu")


def assert_same(directory: Path, texts: list[str] = TEXTS, **options: Any) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        got = SentenceEncoder.from_pretrained(directory).encode(texts, **options)
    options["normalize_embeddings"] = bool(options.pop("normalize", False))
    expected = reference(directory).encode(texts, show_progress_bar=False, **options)
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= TOLERANCE * max(1.0, np.abs(expected).max())
    return got


def test_minilm(minilm_source: Path, tmp_path: Path) -> None:
    """The real model: max_seq_length 256, though its tokenizer.json truncates and pads to 128."""
    directory = converted(shutil.copytree(minilm_source, tmp_path / "minilm", copy_function=shutil.copyfile))
    long = "a rather long text about everything and nothing, " * 10
    texts = [*NASTY, "This is an example sentence", "Each sentence is converted", long * 4]
    encoder = SentenceEncoder.from_pretrained(directory)
    assert (encoder.max_length, encoder.dimension) == (256, 384)
    with pytest.warns(
        TruncationWarning, match=r"^2 of 73 texts are longer than 256 tokens \(the longest has 402\) and were cut$"
    ):
        got = encoder.encode(texts)
    expected = reference(directory).encode(texts, show_progress_bar=False)
    assert np.abs(got - expected).max() <= TOLERANCE
    assert np.allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 32, 500])
def test_order_comes_back_whatever_the_batches(plain: Path, batch_size: int) -> None:
    got = assert_same(legacy(plain), batch_size=batch_size)
    encoder = SentenceEncoder.from_pretrained(plain)
    for i in (0, 1, 2, 7, 30):
        assert np.abs(encoder.encode(TEXTS[i]) - got[i]).max() <= TOLERANCE


def test_more_texts_than_a_block(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxbert.encode.encoder._BLOCK", 10)
    assert_same(legacy(plain), batch_size=4)


def test_batches_waste_less_than_half_on_padding() -> None:
    lengths = [int(n) for n in np.random.default_rng(0).geometric(0.02, 500).clip(2, 250)]
    got = list(batches(lengths, 32, 250))
    assert sorted(i for rows, _ in got for i in rows) == list(range(500))
    assert [length for _, length in got] == sorted((length for _, length in got), reverse=True)
    for rows, length in got:
        assert 1 <= len(rows) <= 32
        longest = max(lengths[i] for i in rows)
        assert longest <= length <= 250
        assert length - longest < max(longest / 32, 4 / math.gcd(4, len(rows)))
        assert length <= 16 or 2 * sum(lengths[i] for i in rows) > length * len(rows)
    assert list(batches([], 32, 250)) == []


def test_long_texts_make_smaller_batches() -> None:
    for threads in (1, 2, 8):
        got = list(batches([512] * 100, 1000, 512, threads=threads))
        assert [len(rows) for rows, _ in got][:-1] == [32 // threads] * (len(got) - 1)


def test_each_thread_gets_a_share_of_few_texts() -> None:
    got = {n: [len(rows) for rows, _ in batches([12] * n, 32, 512, threads=2)] for n in (1, 8, 11, 40, 100)}
    assert got == {1: [1], 8: [8], 11: [6, 5], 40: [20, 20], 100: [32, 32, 32, 4]}


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_batches_on_several_threads(plain: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    status = replace(use_fast_blas(), threads=threads)
    monkeypatch.setattr("mlxbert.backend.threads.use_fast_blas", lambda: status)
    monkeypatch.setattr("mlxbert.encode.encoder._BLOCK", 25)
    encoder = SentenceEncoder.from_pretrained(plain, pooling="mean")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        got = encoder.encode(TEXTS, batch_size=4)
        assert np.array_equal(got, encoder.encode(TEXTS, batch_size=4))
        alone = np.stack([encoder.encode(text) for text in TEXTS])
    assert np.abs(got - alone).max() <= TOLERANCE


def test_an_id_beyond_the_table_is_refused_in_every_batch(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = replace(use_fast_blas(), threads=2)
    monkeypatch.setattr("mlxbert.backend.threads.use_fast_blas", lambda: status)
    encoder = SentenceEncoder.from_pretrained(plain, pooling="mean")
    rows = encoder.core.embeddings.word_embeddings
    rows.weight = rows.weight[:8]
    for texts in (TEXTS, TEXTS[0]):
        with pytest.raises(InputError, match=r"^input_ids: \d+ at \[\d+, \d+\] is outside the model's table"):
            encoder.encode(texts, batch_size=4)


@pytest.mark.parametrize("mode", Pooling.POOLING_MODES)
def test_each_strategy_as_saved_today(base: Path, tmp_path: Path, mode: str) -> None:
    assert_same(saved(base, tmp_path / "m", Pooling(32, mode)))


def test_strategies_are_concatenated_in_their_order(base: Path, tmp_path: Path) -> None:
    got = assert_same(saved(base, tmp_path / "m", Pooling(32, ("max", "cls", "weightedmean")), ReferenceNormalize()))
    assert got.shape[1] == 96


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"pooling_mode_cls_token": True},
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": True},
        {"pooling_mode_mean_sqrt_len_tokens": True, "pooling_mode_max_tokens": True},
        {"pooling_mode_weightedmean_tokens": True, "pooling_mode_cls_token": False},
    ],
    ids=str,
)
def test_strategies_as_older_flags(plain: Path, flags: dict[str, bool]) -> None:
    assert_same(legacy(plain, flags))


@pytest.mark.parametrize("activation", [torch.nn.Tanh(), torch.nn.Identity(), torch.nn.GELU()])
@pytest.mark.parametrize(("width", "residual"), [(16, False), (32, True), (16, True)])
def test_dense(base: Path, tmp_path: Path, activation: torch.nn.Module, width: int, residual: bool) -> None:
    torch.manual_seed(1)
    dense = ReferenceDense(32, width, bias=width == 16, activation_function=activation, use_residual=residual)
    got = assert_same(saved(base, tmp_path / "m", Pooling(32), dense, ReferenceNormalize()))
    assert got.shape[1] == width


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_torch(name: str) -> None:
    x = np.linspace(-12, 12, 4001, dtype=np.float32)
    expected = getattr(torch.nn, name)()(torch.tensor(x)).numpy()
    assert np.abs(np.array(ACTIVATIONS[name](mx.array(x))) - expected).max() <= 2e-6


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("mode", Pooling.POOLING_MODES)
def test_prompts(base: Path, tmp_path: Path, mode: str, include: bool) -> None:
    directory = saved(
        base,
        tmp_path / "m",
        Pooling(32, mode, include_prompt=include),
        prompts={"query": "the query: ", "other": "fox "},
        default_prompt_name="other",
    )
    texts = ["a", "the fox and the dog", "a longer text about a fox"]
    default = assert_same(directory, texts)
    query = assert_same(directory, texts, prompt_name="query")
    own = assert_same(directory, texts, prompt="fox ")
    assert_same(directory, texts, prompt="")
    assert np.array_equal(default, own)
    assert np.abs(default - query).max() > 1e-3


def test_prompt_that_there_is_not(plain: Path) -> None:
    encoder = SentenceEncoder.from_pretrained(legacy(plain))
    with pytest.raises(ValueError, match=r"^prompt_name 'passage' is not one of document, query$"):
        encoder.encode("a", prompt_name="passage")
    with pytest.raises(ValueError, match=r"^give prompt or prompt_name, not both$"):
        encoder.encode("a", prompt_name="query", prompt="x")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_seq_length": 9, "do_lower_case": False}, 9),
        ({"max_seq_length": 9, "do_lower_case": True}, 9),
        ({"max_seq_length": None}, 64),
        ({"tokenizer_args": {"model_max_length": 12}}, 12),
        ({"max_seq_length": 20, "processor_kwargs": {"model_max_length": 12}}, 12),
    ],
)
def test_transformer_settings(plain: Path, settings: dict[str, Any], expected: int) -> None:
    directory = legacy(plain, sentence_bert_config=settings)
    assert_same(directory)
    encoder = SentenceEncoder.from_pretrained(directory)
    assert encoder.max_length == expected
    lowered = np.array_equal(encoder.encode("Fox"), encoder.encode("fox"))
    assert lowered is bool(settings.get("do_lower_case"))


def test_max_seq_length_stands_above_the_tokenizers_own_limit(plain: Path) -> None:
    config = {"do_lower_case": False, "model_max_length": 16}
    directory = legacy(plain, sentence_bert_config={"max_seq_length": 40}, tokenizer_config=config)
    assert SentenceEncoder.from_pretrained(directory).max_length == 40
    assert_same(directory)


def test_normalize(base: Path, tmp_path: Path) -> None:
    without = saved(base, tmp_path / "a", Pooling(32))
    raw = assert_same(without)
    unit = assert_same(without, normalize=True)
    assert np.allclose(raw / np.linalg.norm(raw, axis=1, keepdims=True), unit, atol=1e-6)
    with_ = SentenceEncoder.from_pretrained(saved(base, tmp_path / "b", Pooling(32), ReferenceNormalize()))
    assert np.abs(with_.encode(TEXTS[:5]) - unit[:5]).max() <= TOLERANCE
    assert np.abs(with_.encode(TEXTS[:5], normalize=False) - raw[:5]).max() <= TOLERANCE


def test_truncate_dim(base: Path, tmp_path: Path) -> None:
    directory = saved(base, tmp_path / "m", Pooling(32), ReferenceNormalize(), truncate_dim=10)
    assert assert_same(directory).shape[1] == 10
    assert_same(directory, normalize=True)


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarity(base: Path, tmp_path: Path, name: str) -> None:
    directory = saved(base, tmp_path / "m", Pooling(32), similarity_fn_name=name)
    encoder, other = SentenceEncoder.from_pretrained(directory), reference(directory)
    a, b = encoder.encode(TEXTS[:5]), encoder.encode(TEXTS[1:5])
    expected = other.similarity(a, b).numpy()
    got = encoder.similarity(a, b)
    assert got.shape == (5, 4)
    assert np.abs(got - expected).max() <= 1e-5 * max(1, np.abs(expected).max())
    assert encoder.similarity(a[0], b).shape == (1, 4)


def test_without_modules_the_mean_is_used_and_said(plain: Path) -> None:
    with pytest.warns(
        SentenceEncoderWarning, match=rf"^{re.escape(str(plain))} has no modules.json.*mean pooling is used"
    ):
        encoder = SentenceEncoder.from_pretrained(plain)
    expected = reference(plain).encode(TEXTS, show_progress_bar=False)
    with pytest.warns(TruncationWarning):
        got = encoder.encode(TEXTS)
    assert np.abs(got - expected).max() <= TOLERANCE * np.abs(expected).max()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cls = SentenceEncoder.from_pretrained(plain, pooling="cls")
        output = cls.core(**cls.tokenizer(["the fox"]))
        assert np.abs(cls.encode("the fox") - np.array(output.last_hidden_state[0, 0])).max() <= TOLERANCE
        with pytest.raises(PoolingError, match=r"^pooling 'median' is unknown"):
            SentenceEncoder.from_pretrained(plain, pooling="median").encode("a")
    with pytest.raises(SentenceModuleError, match=r"modules.json says how to pool; fix: leave pooling='cls' out$"):
        SentenceEncoder.from_pretrained(legacy(plain), pooling="cls")


@pytest.mark.parametrize("dense", [False, True], ids=["", "dense"])
@pytest.mark.parametrize("unit", [False, True], ids=["", "unit"])
@pytest.mark.parametrize("mode", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_every_pooling_with_and_without_dense_and_normalize(
    base: Path, tmp_path: Path, mode: str, unit: bool, dense: bool
) -> None:
    modules: list[torch.nn.Module] = [Pooling(32, pooling_mode=mode)]
    if dense:
        torch.manual_seed(1)
        modules.append(ReferenceDense(32, 20, activation_function=torch.nn.Tanh()))
    if unit:
        modules.append(ReferenceNormalize())
    directory = saved(base, tmp_path / "model", *modules)
    for normalize in (False, True):
        if normalize or not unit:
            assert_same(directory, TEXTS[:12], normalize=normalize)


def test_max_seq_length_may_be_set_as_in_sentence_transformers(plain: Path) -> None:
    encoder, expected = SentenceEncoder.from_pretrained(legacy(plain)), reference(legacy(plain))
    assert encoder.max_seq_length == expected.max_seq_length == 64
    encoder.max_seq_length = expected.max_seq_length = 7
    try:
        with pytest.warns(TruncationWarning, match="longer than 7 tokens"):
            got = encoder.encode(TEXTS)
        assert np.abs(got - expected.encode(TEXTS, show_progress_bar=False)).max() <= TOLERANCE
    finally:
        expected.max_seq_length = 64
    for wrong, message in (
        (2, "must be a whole number above 2"),
        (65, "more than the model's 64 positions"),
        ("9", "whole"),
    ):
        with pytest.raises(TokenizerError, match=message):
            encoder.max_seq_length = wrong
    assert encoder.max_length == 7
    encoder.max_seq_length = None
    assert encoder.max_length == 64
    for name in ("truncate_dim", "default_prompt_name", "prompts", "similarity_fn_name"):
        with pytest.raises(AttributeError, match=name):
            setattr(encoder, name, 1)
    with pytest.raises(ValueError, match="normalize must be True, False or None, not 'no'"):
        encoder.encode("a", normalize="no")


def test_inputs(plain: Path, capfd: pytest.CaptureFixture[str]) -> None:
    encoder = SentenceEncoder.from_pretrained(legacy(plain))
    assert encoder.encode("the fox").shape == (32,)
    assert encoder.encode(["the fox"]).shape == (1, 32)
    assert encoder.encode([]).shape == (0, 32)
    assert encoder.encode(np.array(["a", "b"])).shape == (2, 32)
    assert encoder.encode(iter(["a", "b"])).shape == (2, 32)
    with pytest.raises(TokenizerError, match=r"^text 1 is None \(NoneType\), not a string; fix: "):
        encoder.encode(["a", None])
    for wrong in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match=r"^batch_size must be a positive whole number, not "):
            encoder.encode("a", batch_size=wrong)
    assert capfd.readouterr() == ("", "")
    encoder.encode(["a", "b"], show_progress=True)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "encoding" in captured.err


def edit(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        file = directory / name
        content = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps(content | changes))

    return change


def text(name: str, content: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).write_text(content) and None


def modules(*kinds: str, path: str = "1_Pooling") -> Callable[[Path], None]:
    entries = [{"type": kind, "path": path if i else ""} for i, kind in enumerate(kinds)]
    return text("modules.json", json.dumps(entries))


MODELS = "sentence_transformers.models."
T, P, D, N = (MODELS + kind for kind in ("Transformer", "Pooling", "Dense", "Normalize"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            modules(T, P, MODELS + "LSTM"),
            "modules.json: module 'sentence_transformers.models.LSTM' is not known; known: T",
        ),
        (modules(T, P, "custom_st.Pooling"), "modules.json: module 'custom_st.Pooling' is not known"),
        (modules(T, N), "modules.json: the modules are Transformer, Normalize; known is Transformer, perhaps"),
        (modules(T, D, P), "modules.json: the modules are Transformer, Dense, Pooling; known is"),
        (modules(T, P, P), "modules.json: the modules are Transformer, Pooling, Pooling; known is"),
        (modules(T, P, path="../elsewhere"), "modules.json points outside its directory: '../elsewhere'; fix: do not"),
        (modules(T, P, path="/etc"), "modules.json points outside its directory: '/etc'"),
        (modules(T, P, path="gone"), "gone: config.json is not there; fix: convert or download again"),
        (text("modules.json", "{"), "modules.json: not valid JSON"),
        (text("modules.json", "[]"), "modules.json: expected a list of modules"),
        (text("modules.json", "[1]"), "modules.json: expected a list of modules"),
        (text("1_Pooling/config.json", "["), "1_Pooling/config.json: not valid JSON"),
        (
            edit("1_Pooling/config.json", pooling_mode="median"),
            "1_Pooling: pooling_mode 'median' is not known; known: cls",
        ),
        (edit("1_Pooling/config.json", pooling_mode=3), "1_Pooling: pooling_mode must be a name or a list of names"),
        (
            edit("sentence_bert_config.json", max_seq_length="long"),
            "sentence_bert_config.json: max_seq_length must be a",
        ),
        (
            edit("sentence_bert_config.json", transformer_task="fill-mask"),
            "sentence_bert_config.json: transformer_task='fill-mask' is not supported; fix: use sentence-transformers",
        ),
        (
            edit("sentence_bert_config.json", model_args={"add_pooling_layer": False}),
            "sentence_bert_config.json: model_kwargs add_pooling_layer=False is not supported",
        ),
        (
            edit("sentence_bert_config.json", modality_config={"text": {"method_output_name": "pooler_output"}}),
            "sentence_bert_config.json: modality_config text output='pooler_output' is not supported",
        ),
        (edit("config_sentence_transformers.json", model_type="SparseEncoder"), "a SparseEncoder gives no sentence"),
        (
            edit("config_sentence_transformers.json", default_prompt_name="x"),
            "default_prompt_name 'x' is not one of query",
        ),
        (
            edit("config_sentence_transformers.json", similarity_fn_name="x"),
            "similarity 'x' is not known; known: cosine",
        ),
        (edit("config_sentence_transformers.json", prompts={"a": 1}), "prompts must be texts by name, not {'a': 1}"),
        (
            edit("config_sentence_transformers.json", truncate_dim=0),
            "truncate_dim must be a positive whole number, not 0",
        ),
    ],
)
def test_what_is_not_known_is_refused_by_name(plain: Path, change: Callable[[Path], None], message: str) -> None:
    change(legacy(plain))
    with pytest.raises(SentenceModuleError) as caught:
        SentenceEncoder.from_pretrained(plain)
    line = str(caught.value)
    assert message in line
    assert line.startswith(str(plain))
    assert "\n" not in line


def test_unknown_pooling_flag() -> None:
    with pytest.raises(
        SentenceModuleError, match=r"^here: pooling_mode_median_tokens is not known; known: pooling_mode_cls"
    ):
        read_pooling({"pooling_mode_median_tokens": True}, Path("here"))
    assert read_pooling({"pooling_mode_median_tokens": False}, Path("here")) == ("mean",)


@pytest.fixture
def dense(base: Path, tmp_path: Path) -> Path:
    saved(base, tmp_path / "m", Pooling(32), ReferenceDense(32, 16))
    return tmp_path / "m"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            edit("2_Dense/config.json", activation_function="os.system"),
            "activation 'os.system' is not known; known are",
        ),
        (
            edit("2_Dense/config.json", activation_function="torch.nn.Softmax"),
            "activation 'torch.nn.Softmax' is not known",
        ),
        (edit("2_Dense/config.json", in_features=31), "2_Dense: has tensors {"),
        (edit("2_Dense/config.json", out_features=None), "out_features must be a positive whole number, not None"),
        (edit("2_Dense/config.json", bias=False), "2_Dense: has tensors {"),
        (
            edit("2_Dense/config.json", module_input_name="token_embeddings"),
            "module_input_name='token_embeddings' is not",
        ),
        (text("2_Dense/model.safetensors", "garbage"), "2_Dense/model.safetensors is damaged ("),
        (
            lambda d: (d / "2_Dense" / "model.safetensors").unlink(),
            "2_Dense: model.safetensors is not there; fix: convert or download again",
        ),
        (
            lambda d: (d / "2_Dense" / "model.safetensors").rename(d / "2_Dense" / "pytorch_model.bin"),
            "2_Dense: model.safetensors is not there (a pytorch_model.bin is, which mlxbert-convert reads); fix: ",
        ),
    ],
)
def test_damaged_dense(dense: Path, change: Callable[[Path], Any], message: str) -> None:
    change(dense)
    with pytest.raises(SentenceModuleError) as caught:
        SentenceEncoder.from_pretrained(dense)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(dense / "2_Dense"))


def test_dense_of_another_width(base: Path, dense: Path) -> None:
    tensors = {"linear.weight": mx.zeros((16, 8)), "linear.bias": mx.zeros((16,))}
    config = {"in_features": 8, "out_features": 16}
    assert Dense(config, tensors, dense).out_features == 16
    save_file({k: np.array(v) for k, v in tensors.items()}, dense / "2_Dense" / "model.safetensors")
    edit("2_Dense/config.json", **config)(dense)
    with pytest.raises(SentenceModuleError, match=r"^modules.json: Dense takes 8 features, and is given 32$"):
        SentenceEncoder.from_pretrained(dense)


def test_dense_without_an_activation_is_tanh(dense: Path) -> None:
    file = dense / "2_Dense" / "config.json"
    config = json.loads(file.read_text())
    del config["activation_function"]
    file.write_text(json.dumps(config))
    assert_same(dense)


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_precision(base: Path, tmp_path: Path, precision: Any) -> None:
    """`encode(precision=…)` is `quantize_embeddings` of the float32 embeddings, also of one text."""
    directory = legacy(shutil.copytree(base, tmp_path / "model"))
    encoder = SentenceEncoder.from_pretrained(directory)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        full = encoder.encode(TEXTS)
        ranges = np.stack([full.min(axis=0), full.max(axis=0)])
        got = encoder.encode(TEXTS, precision=precision, ranges=ranges)
        np.testing.assert_array_equal(got, quantize_embeddings(full, precision, ranges=ranges))
        np.testing.assert_array_equal(got, encoder.encode(TEXTS, precision=precision, calibration=full))
    single = encoder.encode("the fox", precision=precision, ranges=ranges)
    np.testing.assert_array_equal(
        single, quantize_embeddings(encoder.encode(["the fox"]), precision, ranges=ranges)[0]
    )
    with pytest.raises(PrecisionError, match="there is no precision named 'int4': did you mean 'int8'"):
        encoder.encode(TEXTS, precision="int4")
