"""What is DeBERTa-v2's own: buckets, contradictions in its configuration, its heads' pooler, Microsoft's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from converter.convert import convert
from converter.mapping import MappingError
from mlxbert import load, load_with_head
from mlxbert.data.tokens import token_rows
from mlxbert.encode import SentenceEncoder
from mlxbert.model_arrays import InputError, named_parameters
from mlxbert.models.architecture import config_from_hf
from mlxbert.models.base import Encoder
from mlxbert.models.config_fields import ConfigError
from mlxbert.models.deberta_v2 import DEBERTA_V2, DebertaV2Config
from mlxbert.models.distances import log_buckets, skewed
from mlxbert.pretrained import HeadClassError, choose_head_class
from tests.support.encoder_pairs import assert_whole_forward_agrees, batches, error, pair, reference
from tests.support.tiny import save_tiny, tiny_model

torch = pytest.importorskip("torch", reason="the reference is transformers")
transformers = pytest.importorskip("transformers")

LIMIT = 2e-5
MODEL = "deberta-v2"
LM, SEQUENCE = "DebertaV2ForMaskedLM", "DebertaV2ForSequenceClassification"
XLARGE: dict[str, Any] = {
    "share_att_key": False,
    "position_biased_input": False,
    "type_vocab_size": 0,
    "conv_kernel_size": 3,
    "conv_act": "gelu",
}


def parsed(**fields: Any) -> DebertaV2Config:
    config = config_from_hf({"model_type": MODEL, **DEBERTA_V2.tiny, **fields})
    assert isinstance(config, DebertaV2Config)
    return config


@pytest.mark.parametrize("buckets", [2, 3, 6, 7, 8, 18, 32, 64, 256, 512])
def test_buckets_are_transformers(buckets: int) -> None:
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    for longest in (8, 12, 33, 148, 300, 512, 1024):
        if longest - 1 <= buckets // 2:
            continue
        distances = np.arange(1 - longest, longest)
        expected = make_log_bucket_position(torch.tensor(distances), buckets, longest).to(torch.long).numpy()
        rows = parsed(position_buckets=buckets, max_position_embeddings=longest).rows_of_distances(longest)
        np.testing.assert_array_equal(rows, np.clip(expected + buckets, 0, 2 * buckets - 1))
    assert (log_buckets(np.array([-1, 0, 1]), buckets, 512) == [-1, 0, 1]).all()


@pytest.mark.parametrize("length", [1, 2, 7])
def test_scores_by_distance_become_scores_by_query_and_key(length: int) -> None:
    scores = mx.random.normal((2, 3, length, 2 * length - 1), key=mx.random.key(0))
    i, j = np.arange(length)[:, None], np.arange(length)
    expected = np.array(scores)[:, :, i, length - 1 - i + j]
    np.testing.assert_array_equal(np.array(skewed(scores)), expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pos_att_type": "c2p|p2p"}, "pos_att_type has 'p2p'; computed: 'c2p', 'p2c'"),
        ({"pos_att_type": ["C2P"]}, "pos_att_type has 'C2P'; computed: 'c2p', 'p2c'"),
        ({"pos_att_type": 3}, "pos_att_type has 3; computed"),
        ({"norm_rel_ebd": "batch_norm"}, "norm_rel_ebd has 'batch_norm'; computed: 'layer_norm'"),
        ({"norm_rel_ebd": 1}, "norm_rel_ebd has 1; computed"),
        ({"conv_kernel_size": 4}, "conv_kernel_size 4 is even, and transformers runs only odd ones"),
        ({"conv_kernel_size": 3, "conv_groups": 5}, "hidden_size 48 is not a multiple of conv_groups 5"),
        (
            {"attention_head_size": 8},
            "attention_head_size 8 must be 12, as hidden_size 48 has it; transformers cannot",
        ),
        ({"pooler_hidden_size": 40}, "pooler_hidden_size 40 must be 48"),
        ({"legacy": False, "embedding_size": 24}, "legacy=false needs embedding_size 24 to be hidden_size 48"),
        (
            {"position_buckets": 1},
            "position_buckets 1 with the longest distance 64 has no bucket for distances above 0",
        ),
        (
            {"position_buckets": 30, "max_relative_positions": 16},
            "position_buckets 30 with the longest distance 16 has no bucket",
        ),
        ({"position_buckets": 8.0}, r"position_buckets must be a whole number below 2\^30, not 8.0"),
        ({"position_buckets": 2**30}, r"position_buckets must be a whole number below 2\^30, not 1073741824"),
        ({"share_att_key": "yes"}, "share_att_key must be true or false, not 'yes'"),
        ({"conv_act": "none"}, "conv_act 'none' is not an activation"),
        ({"cls_dropout": 2}, "cls_dropout must be a number between 0 and 1"),
        ({"embedding_size": None}, "embedding_size must be a positive whole number, not None"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"config.json: {message}"):
        parsed(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"attention_head_size": 8},
        {"position_buckets": 1},
        {"conv_kernel_size": 4},
        {"conv_kernel_size": 3, "conv_groups": 5},
        {"pooler_hidden_size": 40},
        {"legacy": False, "embedding_size": 24},
    ],
)
def test_transformers_cannot_run_it_either(fields: dict[str, Any]) -> None:
    name = LM if "legacy" in fields else SEQUENCE
    with pytest.raises((RuntimeError, ValueError, ZeroDivisionError)):
        tiny_model(name, **fields)(torch.tensor([[5, 6, 7]]))


def test_configurations_in_every_spelling() -> None:
    assert parsed(pos_att_type="P2C | c2p").pos_att_type == parsed(pos_att_type=["c2p", "p2c"]).pos_att_type
    assert parsed(pos_att_type="").pos_att_type == parsed(pos_att_type=None).pos_att_type == ()
    assert parsed(norm_rel_ebd="none").norm_rel_ebd == ()
    assert parsed(max_relative_positions=0).longest_distance == 64
    assert parsed(position_buckets=0).distance_rows == 128
    assert parsed(conv_kernel_size=-1).conv_kernel_size == 0
    # Short texts have no distance above half the buckets.
    assert parsed(position_buckets=256, max_relative_positions=64).rows_of_distances(64)[0] == 256 - 63
    plain = DEBERTA_V2.config.from_hf({"model_type": MODEL})
    assert (plain.embedding_size, plain.longest_distance, plain.table_rows["position_ids"]) == (1536, 512, 512)


def test_a_table_of_distances_that_nothing_reads() -> None:
    theirs, core = pair(MODEL, pos_att_type=None)
    assert_whole_forward_agrees(theirs, core, batches(core)["padded right"], LIMIT)
    assert "distances" not in core.embed([[5, 6, 7]])[1]


def test_types_without_a_table_are_ignored() -> None:
    theirs, core = pair(MODEL, type_vocab_size=0)
    inputs = {"input_ids": np.array([[5, 6, 7]]), "token_type_ids": np.array([[0, 1, 1]])}
    assert mx.array_equal(core(**inputs).last_hidden_state, core(inputs["input_ids"]).last_hidden_state)
    assert_whole_forward_agrees(theirs, core, inputs, LIMIT)


@pytest.mark.parametrize("wider", [(3, 1, 1, 9), (3, 1, 9), (3, 9, 9), (3, 4, 9, 9)])
def test_the_convolution_reads_a_mask_of_every_rank(wider: tuple[int, ...]) -> None:
    theirs, core = pair(MODEL, **XLARGE)
    random = np.random.default_rng(0)
    ids = random.integers(1, 97, (3, 9))
    mask = (np.arange(9) < np.array([9, 5, 1])[:, None]).astype(np.int64)
    expected = reference(theirs, {"input_ids": ids, "attention_mask": mask}).last_hidden_state
    shape = (3, *(1 for _ in wider[2:]), 9)
    got = core(ids, np.broadcast_to(mask.reshape(shape), wider).copy()).last_hidden_state
    assert error(got, expected, mask) < LIMIT


def test_padding_is_zero_where_the_convolution_reads_it() -> None:
    theirs, core = pair(MODEL, **XLARGE)
    inputs = {"input_ids": np.array([[5, 6, 7, 8]]), "attention_mask": np.array([[1, 1, 0, 1]])}
    states = reference(theirs, inputs, output_hidden_states=True).hidden_states
    x, _ = core.embed(**inputs)
    assert error(x, states[0]) < LIMIT  # padding included
    assert not np.array(x)[0, 2].any()


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize("length", [128, 256])
def test_half_precision_has_no_nan_whatever_is_padding(dtype: mx.Dtype, length: int) -> None:
    _, core = pair(MODEL, **XLARGE, max_position_embeddings=256, num_hidden_layers=2)
    core.load_weights([(name, array.astype(dtype)) for name, array in named_parameters(core).items()])
    ids = np.random.default_rng(0).integers(1, 97, (3, length))
    mask = (np.arange(length) < np.array([length, length - 32, 0])[:, None]).astype(np.int64)
    for attentions in (False, True):  # the fused kernel, and scores of our own
        states = core(ids, mask, output_hidden_states=True, output_attentions=attentions).hidden_states
        assert states is not None
        assert all(state.dtype == dtype and mx.isfinite(state).all() for state in states)
    everything = core(ids, np.zeros_like(mask)).last_hidden_state
    assert mx.isfinite(everything).all()


def test_a_product_larger_than_float16_holds_does_not_overflow_before_it_is_scaled() -> None:
    _, core = pair(MODEL, num_hidden_layers=1)
    attention: Any = core.encoder.layer[0].attention.self  # type: ignore[attr-defined]
    large = 90.0  # 12 of its squares are more than 65504, the largest number; times 1/6, the scale, they are less
    q, k = (mx.full((1, 4, 2, 12), large, mx.float16) for _ in range(2))
    assert mx.isinf(q @ k.swapaxes(-1, -2)).all()
    weight = mx.zeros((48, 48), mx.float16)
    attention.update({"key_proj": {"weight": weight, "bias": mx.full((48,), large, mx.float16)}})
    attention.update({"query_proj": {"weight": weight, "bias": mx.full((48,), large, mx.float16)}})
    context = {"distances": mx.zeros((1, 3, 48), mx.float16)}
    scores = attention.position_scores(q * attention.scale, k, context)
    assert scores.dtype == mx.float16
    assert mx.isfinite(scores).all()


@pytest.mark.parametrize("act", ["gelu", "tanh", "relu", "gelu_new", "silu"])
def test_the_heads_pooler_has_its_own_activation(act: str, tmp_path: Path) -> None:
    theirs = save_tiny(tmp_path / "source", SEQUENCE, pooler_hidden_act=act, num_labels=3)
    ids = np.array([[5, 6, 7, 8], [9, 5, 0, 0]])
    mask = (ids != 0).astype(np.int64)
    expected = reference(theirs, {"input_ids": ids, "attention_mask": mask}).logits
    convert(tmp_path / "source", tmp_path / "out", verify=False)
    model, _ = load_with_head(tmp_path / "out")
    logits = model(ids, mask).logits
    assert logits is not None
    assert error(logits, expected) < LIMIT
    assert not model.core.has_pooler


def test_the_dropouts_of_the_heads() -> None:
    config = parsed(pooler_dropout=0.3, hidden_dropout_prob=0.2, cls_dropout=0.4)
    head = DEBERTA_V2.heads[SEQUENCE].build(config, 3, ())
    assert [1 - head.pooler.dropout._p_1, 1 - head.dropout._p_1] == pytest.approx([0.3, 0.4])
    without = DEBERTA_V2.heads["DebertaV2ForMultipleChoice"].build(parsed(hidden_dropout_prob=0.2), 3, ())
    assert 1 - without.dropout._p_1 == pytest.approx(0.2)
    tokens = DEBERTA_V2.heads["DebertaV2ForTokenClassification"].build(config, 3, ())
    assert 1 - tokens.dropout._p_1 == pytest.approx(0.2)


@pytest.mark.parametrize("fields", [{}, {"legacy": False}, {"tie_word_embeddings": False}, {"embedding_size": 24}])
def test_both_language_model_heads(fields: dict[str, Any], tmp_path: Path) -> None:
    theirs = save_tiny(tmp_path / "source", LM, **fields)
    expected = reference(theirs, {"input_ids": np.array([[5, 6, 7, 8]])}).logits
    report = convert(tmp_path / "source", tmp_path / "out", verify=True).report
    assert report is not None
    assert report.passed
    logits = load_with_head(tmp_path / "out")[0]([[5, 6, 7, 8]]).logits
    assert logits is not None
    assert error(logits, expected) < LIMIT


def microsoft(directory: Path, **fields: Any) -> Any:
    """Files as of microsoft/deberta-v3-base: both heads of pre-training, and a config.json that names no class."""
    theirs = save_tiny(directory, LM, legacy=False, position_biased_input=False, **fields)
    config = json.loads((directory / "config.json").read_text())
    for name in ("architectures", "legacy"):
        del config[name]
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors").unlink()
    rest = {f"mask_predictions.{name}": torch.ones(3) for name in ("dense.weight", "dense.bias", "classifier.bias")}
    rest |= {f"mask_predictions.LayerNorm.{name}": torch.ones(3) for name in ("weight", "bias")}
    rest["deberta.embeddings.position_embeddings.weight"] = torch.ones(64, 48)
    torch.save({**theirs.state_dict(), **rest}, directory / "pytorch_model.bin")
    return theirs


def test_microsofts_own_files(tmp_path: Path) -> None:
    theirs = microsoft(tmp_path / "source")
    converted = convert(tmp_path / "source", tmp_path / "out", verify=True, layout="full")
    assert converted.report is not None
    assert converted.report.passed
    assert converted.report.reference_class == LM
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    dropped = config["mlxbert"]["dropped"]
    assert len(dropped) == 6
    assert dropped["deberta.embeddings.position_embeddings.weight"].startswith("position_biased_input is false")
    assert dropped["mask_predictions.dense.weight"].startswith("the discriminator of pre-training")
    assert config["legacy"] is False
    sentence = "- In half precision, scores of distances are scaled before their products"
    assert sentence not in (tmp_path / "out/README.md").read_text()  # these weights are float32
    convert(tmp_path / "source", tmp_path / "half", dtype="float16", verify=False)
    assert sentence in (tmp_path / "half/README.md").read_text()
    notes = " ".join(converted.notes)
    assert "legacy is false, whatever config.json says: its tensors show it" in notes
    ids = np.array([[5, 6, 7, 8]])
    again = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    expected = reference(theirs, {"input_ids": ids}).logits
    assert float((reference(again, {"input_ids": ids}).logits - expected).abs().max()) == 0
    assert error(load_with_head(tmp_path / "out")[0](ids).logits, expected) < LIMIT  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["in_proj.weight", "q_bias", "v_bias", "pos_proj.weight", "pos_q_proj.bias"])
def test_the_first_deberta_is_refused_by_its_tensors(name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_tiny(tmp_path, DEBERTA_V2.encoder_class)
    file = tmp_path / "model.safetensors"
    tensor = f"encoder.layer.0.attention.self.{name}"
    save_file({**load_file(file), tensor: torch.ones(48)}, file)
    with pytest.raises(MappingError, match=r"a tensor of DeBERTa v1 \(model_type 'deberta'\)"):
        convert(tmp_path, tmp_path / "out", verify=False)


def test_the_convolution_keeps_torchs_layout_on_disk(tmp_path: Path) -> None:
    theirs = save_tiny(tmp_path / "source", DEBERTA_V2.encoder_class, **XLARGE, conv_groups=4)
    path = convert(tmp_path / "source", tmp_path / "out", verify=True).path
    written = mx.load(str(path / "model.safetensors"))
    assert isinstance(written, dict)
    weight = theirs.encoder.conv.conv.weight.detach().numpy()
    assert weight.shape == (48, 12, 3)
    np.testing.assert_array_equal(np.array(written["encoder.conv.conv.weight"]), weight)


def test_without_absolute_positions_a_text_may_be_longer_than_config_says() -> None:
    sizes = {"position_biased_input": False, "max_position_embeddings": 16, "max_relative_positions": 12}
    theirs, core = pair(MODEL, **sizes)
    inputs = {"input_ids": np.random.default_rng(0).integers(1, 97, (2, 50))}
    assert core.config.max_length == 16
    assert_whole_forward_agrees(theirs, core, inputs, LIMIT)
    with pytest.raises(InputError, match="17 tokens, but this model has 16 positions; truncate to 16"):
        pair(MODEL, max_position_embeddings=16)[1](np.full((1, 17), 5))
    # 8 buckets have rows for distances of at most 4 if the longest is 5.
    assert parsed(**sizes | {"max_position_embeddings": 5, "max_relative_positions": 5}).longest_input == 5


def test_a_call_may_ask_for_longer_texts(tmp_path: Path) -> None:
    sizes = {"position_biased_input": False, "max_position_embeddings": 16, "type_vocab_size": 0}
    save_tiny(tmp_path / "source", DEBERTA_V2.encoder_class, **sizes)
    core, tokenizer = load(convert(tmp_path / "source", tmp_path / "out", verify=False).path)
    text = "the water " * 18
    assert len(tokenizer.encode([text])[0]) == 16
    assert len(tokenizer.encode([text], max_length=40)[0]) == 38
    assert token_rows(tokenizer, [text], max_length=40).limit == 40
    encoder = SentenceEncoder.from_pretrained(tmp_path / "out", pooling="mean")
    assert encoder.max_seq_length == 16
    encoder.max_seq_length = 40
    expected = core(**tokenizer([text], max_length=40)).pool("mean")
    assert np.abs(encoder.encode([text]) - np.array(expected)).max() < 1e-6


def test_depths_of_what_is_beside_the_layers() -> None:
    core: Encoder = DEBERTA_V2.encoder(parsed(**XLARGE))
    depths = {"encoder.rel_embeddings.weight": 0, "encoder.LayerNorm.bias": 0, "encoder.conv.conv.weight": 1}
    assert {name: core.depth_of(name) for name in depths} == depths
    assert core.is_norm("encoder.LayerNorm.weight")
    assert core.is_norm("encoder.conv.LayerNorm.weight")


@pytest.mark.parametrize("tensors", [[], ["pooler.dense.weight", "classifier.weight"]], ids=["none", "a classifier"])
def test_a_masked_lm_without_its_tensors_is_refused(tensors: list[str]) -> None:
    config = {"model_type": "deberta-v2", "architectures": ["DebertaV2ForMaskedLM"]}
    with pytest.raises(HeadClassError, match=r"needs cls\.predictions\.\* or lm_predictions\.\*, and there is "):
        choose_head_class(config, tensors, has_pooler=False, place="x")


def test_an_encoder_alone_has_no_head() -> None:
    config = {"model_type": "deberta-v2", "architectures": ["DebertaV2Model"]}
    with pytest.raises(HeadClassError):
        choose_head_class(config, [], has_pooler=False, place="x")
