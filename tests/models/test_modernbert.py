"""ModernBERT alone: its two spellings on disk, its heads' options, half precision, and packages with models of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import mlxbert
from converter.convert import convert
from mlxbert.checkpoint import load_core
from mlxbert.encode.encoder import SentenceEncoder
from mlxbert.models.architecture import architecture, config_from_hf
from mlxbert.models.base import Encoder
from mlxbert.models.config_fields import ConfigError
from mlxbert.models.modernbert import GLOBAL, LOCAL, in_both_spellings
from tests.support.encoder_pairs import error, pair, reference
from tests.support.tiny import save_tiny, save_tokenizer, tiny_model

torch = pytest.importorskip("torch", reason="the reference is transformers")
transformers = pytest.importorskip("transformers")

BASE = {"model_type": "modernbert", "num_hidden_layers": 4, "pad_token_id": 0}
DEFAULT_BASES = (160_000.0, 10_000.0)


def rope(of_global: Any, of_local: Any = 10_000.0, **more: Any) -> dict[str, Any]:
    bases = {GLOBAL: of_global, LOCAL: of_local}
    return {kind: {"rope_type": "default", "rope_theta": base, **more} for kind, base in bases.items()}


# --- the configuration -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "kinds", "bases"),
    [
        ({}, "GLLG", DEFAULT_BASES),
        ({"global_attn_every_n_layers": 2}, "GLGL", DEFAULT_BASES),
        ({"global_attn_every_n_layers": 1, "global_rope_theta": 5, "local_rope_theta": 7.5}, "GGGG", (5.0, 7.5)),
        ({"layer_types": [LOCAL, GLOBAL, GLOBAL, LOCAL]}, "LGGL", DEFAULT_BASES),
        ({"layer_types": [GLOBAL, LOCAL, GLOBAL, LOCAL], "global_attn_every_n_layers": 2}, "GLGL", DEFAULT_BASES),
        ({"layer_types": [GLOBAL] * 4, "global_attn_every_n_layers": None}, "GGGG", DEFAULT_BASES),
        ({"rope_parameters": rope(11.0, 13.0)}, "GLLG", (11.0, 13.0)),
        ({"rope_parameters": rope(11.0, 13.0), "global_rope_theta": 11}, "GLLG", (11.0, 13.0)),
        ({"rope_parameters": {GLOBAL: {"rope_theta": 11.0}}, "local_rope_theta": 13.0}, "GLLG", (11.0, 13.0)),
        ({"rope_parameters": {LOCAL: {"rope_type": "default"}}}, "GLLG", DEFAULT_BASES),
        ({"rope_parameters": None, "layer_types": None, "rope_scaling": None}, "GLLG", DEFAULT_BASES),
    ],
    ids=str,
)
def test_both_spellings_are_read_as_transformers_reads_them(
    fields: dict[str, Any], kinds: str, bases: tuple[float, float]
) -> None:
    config = config_from_hf({**BASE, **fields})
    assert config.layer_types == tuple({"G": GLOBAL, "L": LOCAL}[kind] for kind in kinds)  # type: ignore[attr-defined]
    assert (config.theta(GLOBAL), config.theta(LOCAL)) == bases  # type: ignore[attr-defined]
    theirs = transformers.ModernBertConfig.from_dict({**BASE, **json.loads(json.dumps(fields))})
    assert tuple(theirs.layer_types) == config.layer_types  # type: ignore[attr-defined]
    assert tuple(theirs.rope_parameters[kind]["rope_theta"] for kind in (GLOBAL, LOCAL)) == bases


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"global_attn_every_n_layers": 2, "global_rope_theta": 5.0, "local_attention": 12},
        {"layer_types": [GLOBAL, LOCAL, LOCAL, LOCAL]},
        {"rope_parameters": rope(11.0, 13.0)},
        {"layer_types": [LOCAL, GLOBAL, GLOBAL, LOCAL]},
    ],
    ids=str,
)
def test_both_spellings_are_written_and_say_the_same(fields: dict[str, Any]) -> None:
    written = in_both_spellings({**BASE, **fields})
    config: Any = config_from_hf({**BASE, **fields})
    assert in_both_spellings(written) == written
    new = ("layer_types", "rope_parameters")
    old = ("global_attn_every_n_layers", "global_rope_theta", "local_rope_theta")
    assert config_from_hf({name: value for name, value in written.items() if name not in old}) == config
    if config.every_nth_global is None:
        # What the old spelling cannot say is null there: other packages fail on it, and take no default in silence.
        assert written["global_attn_every_n_layers"] is None
    else:
        assert config_from_hf({name: value for name, value in written.items() if name not in new}) == config
    theirs = transformers.ModernBertConfig.from_dict(json.loads(json.dumps(written)))
    assert tuple(theirs.layer_types) == config.layer_types
    assert theirs.rope_parameters == rope(config.theta(GLOBAL), config.theta(LOCAL))
    assert theirs.local_attention == config.local_attention


LINEAR = {"rope_type": "linear", "rope_theta": 1.0, "factor": 2.0}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"layer_types": [GLOBAL, LOCAL, LOCAL, LOCAL], "global_attn_every_n_layers": 3},
            "layer_types and global_attn_every_n_layers=3 disagree, and packages read one or the other; fix: remove",
        ),
        (
            {"rope_parameters": rope(11.0), "global_rope_theta": 12.0},
            f"rope_parameters.{GLOBAL}.rope_theta=11 and global_rope_theta=12.0 disagree, and packages read one or",
        ),
        ({"layer_types": [GLOBAL]}, "layer_types has 1 entries, and num_hidden_layers is 4"),
        ({"layer_types": ["chunked"] * 4}, "layer_types must list 'full_attention' and 'sliding_attention', not"),
        ({"layer_types": "full_attention"}, "layer_types must list 'full_attention' and 'sliding_attention', not"),
        ({"global_attn_every_n_layers": 0}, "global_attn_every_n_layers must be a positive whole number, not 0"),
        ({"global_attn_every_n_layers": None}, "global_attn_every_n_layers must be a positive whole number, not None"),
        ({"rope_parameters": {GLOBAL: LINEAR}}, f"rope_parameters.{GLOBAL}.rope_type='linear' asks for scaled pos"),
        ({"rope_parameters": {LOCAL: {"type": "yarn"}}}, f"rope_parameters.{LOCAL}.rope_type='yarn' asks for scaled"),
        ({"rope_parameters": rope(None)}, f"rope_parameters.{GLOBAL}.rope_theta must be a number between"),
        ({"rope_parameters": {"rope_theta": 1.0}}, "rope_parameters must have 'full_attention' and 'sliding_att"),
        ({"rope_parameters": {GLOBAL: None}}, f"rope_parameters.{GLOBAL} must be an object, not None"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling={'type': 'dynamic', 'factor': 2.0} asks"),
        ({"local_rope_theta": None}, "local_rope_theta must be a number between"),
        (
            {"sliding_window": 3},
            "sliding_window=3 asks for a window that `local_attention` does not say; not computed",
        ),
        ({"head_dim": 8}, "head_dim=8 asks for heads of another width than hidden_size / num_attention_heads; not"),
        ({"local_attention": 0}, "local_attention must be a positive whole number, not 0"),
        ({"classifier_pooling": "max"}, "classifier_pooling must be 'cls' or 'mean', not 'max'"),
        ({"classifier_activation": "prelu"}, "classifier_activation 'prelu' is not an activation this encoder"),
        ({"hidden_size": 20, "num_attention_heads": 4}, "hidden_size 20 / num_attention_heads 4 is 5; rotary positi"),
    ],
    ids=str,
)
def test_what_is_not_computed_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        config_from_hf({**BASE, **fields})


# --- the heads -------------------------------------------------------------------------------------------------------

SEQUENCE, TOKEN, CHOICE, SPAN, MASKED = (
    f"ModernBertFor{task}"
    for task in ("SequenceClassification", "TokenClassification", "MultipleChoice", "QuestionAnswering", "MaskedLM")
)
L = 12


def with_head(class_name: str, **options: Any) -> tuple[Any, Any]:
    """A random model of transformers with a head, and ours: the head's tensors by their names, nothing renamed."""
    theirs = tiny_model(class_name, attn_implementation="eager", **options)
    declared = architecture("modernbert")
    config = config_from_hf(theirs.config.to_dict())
    core = declared.encoder(config)
    tensors = {name: mx.array(value.numpy()) for name, value in theirs.state_dict().items()}
    prefix = declared.prefix
    core.load_weights([(n.removeprefix(prefix), t) for n, t in tensors.items() if n.startswith(prefix)])
    tied = {"decoder.weight"} if theirs.config.tie_word_embeddings else set()
    rest = {name: t for name, t in tensors.items() if not name.startswith(prefix) and name not in tied}
    head = declared.heads[class_name].build(config, theirs.config.num_labels, rest)
    head.load_weights(list(rest.items()))
    model = mlxbert.pretrained.PretrainedBert(
        core, head, class_name, mlxbert.pretrained.Labels({i: str(i) for i in range(theirs.config.num_labels)})
    )
    model.eval()
    return theirs, model


def padded(class_name: str, *, left: bool) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shape = (4, L)
    mask = (np.arange(L) < np.array([L, 7, 1, 4])[:, None]).astype(np.int64)
    mask = mask[:, ::-1].copy() if left else mask
    inputs = {"input_ids": np.where(mask, random.integers(1, 300, shape), 0), "attention_mask": mask}
    return {name: array.reshape(2, 2, L) for name, array in inputs.items()} if class_name == CHOICE else inputs


OPTIONS: dict[str, dict[str, Any]] = {
    "cls": {"classifier_pooling": "cls"},
    "mean": {"classifier_pooling": "mean"},
    "other activation": {"classifier_activation": "silu", "classifier_pooling": "mean"},
    "no bias": {"classifier_bias": False, "norm_bias": False},
}


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("class_name", [SEQUENCE, TOKEN, CHOICE, SPAN])
def test_options_of_the_heads_are_transformers(class_name: str, options: str, left: bool) -> None:
    labels = {} if class_name == SPAN else {"num_labels": 3}
    theirs, ours = with_head(class_name, **labels, **OPTIONS[options])
    inputs = padded(class_name, left=left)
    expected, found = reference(theirs, inputs), ours(**inputs)
    names = ("start_logits", "end_logits") if class_name == SPAN else ("logits",)
    positions = inputs["attention_mask"] if class_name in (TOKEN, SPAN) else None
    for name in names:
        assert error(getattr(found, name), expected[name], positions) < 2e-5
    if class_name in (SEQUENCE, CHOICE):  # both poolings on one model: they are no synonyms
        ours.head._pooling = "mean" if ours.head._pooling == "cls" else "cls"
        assert error(ours(**inputs).logits, expected.logits) > 1e-2


@pytest.mark.parametrize("class_name", [SEQUENCE, CHOICE])
def test_a_mean_of_every_token_without_a_mask(class_name: str) -> None:
    theirs, ours = with_head(class_name, classifier_pooling="mean")
    ids = padded(class_name, left=False)["input_ids"]
    expected = reference(theirs, {"input_ids": ids, "attention_mask": np.ones_like(ids)}).logits
    assert error(ours(ids).logits, expected) < 2e-5


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_decoder_with_and_without_a_weight_and_a_bias_of_its_own(tmp_path: Path, tied: bool, bias: bool) -> None:
    theirs = save_tiny(tmp_path / "source", MASKED, decoder_bias=bias, tie_word_embeddings=tied)
    result = convert(tmp_path / "source", tmp_path / "out")  # both gates, logits included
    assert result.path.is_dir()
    model, _ = mlxbert.load_with_head(tmp_path / "out")
    own = set(model.head.parameters().get("decoder", {}))
    assert own == {name for name, there in (("weight", not tied), ("bias", bias)) if there}
    ids = np.array([[5, 6, 7, 8]])
    logits = model(ids).logits
    assert logits is not None
    assert error(logits, reference(theirs, {"input_ids": ids}).logits) < 2e-5


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "modules"),
    [
        ("embedding_dropout", {"core.embeddings.dropout"}),
        ("attention_dropout", {f"core.layers.{i}.attn.{name}" for i in range(3) for name in ("dropout", "out_drop")}),
        ("mlp_dropout", {f"core.layers.{i}.mlp.dropout" for i in range(3)}),
        ("classifier_dropout", {"head.drop"}),
    ],
)
def test_each_dropout_has_its_place(field: str, modules: set[str]) -> None:
    _, model = with_head(SEQUENCE, num_labels=3, **{field: 0.3})
    dropouts = {path: module for path, module in model.named_modules() if isinstance(module, nn.Dropout)}
    assert {path for path, module in dropouts.items() if module._p_1 == 0.7} == modules
    ids = padded(SEQUENCE, left=False)["input_ids"]
    calm = model(ids).logits
    model.train()
    assert not mx.allclose(model(ids).logits, calm)


# --- half precision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("length", [128, 160, 288])
def test_no_padding_gives_nan(length: int, dtype: mx.Dtype) -> None:
    """Windows that hold nothing but padding, a text that is all padding, lengths that are multiples of 32.

    Blaizzy/mlx-embeddings issue 80: additive masks of −1e9 become −inf in float16, and rows of them NaN.
    """
    _, core = pair("modernbert", max_position_embeddings=512, local_attention=8, num_hidden_layers=2)
    ids = np.random.default_rng(0).integers(1, 300, (4, length))
    mask = (np.arange(length) < np.array([length, 40, 3, 0])[:, None]).astype(np.int32)
    expected = core(ids, mask).last_hidden_state
    assert mx.isfinite(expected).all()
    core.set_dtype(dtype)
    found = core(ids, mask)
    assert mx.isfinite(found.last_hidden_state).all()
    assert found.last_hidden_state.dtype == dtype
    limit = {mx.float32: 1e-6, mx.float16: 3e-2, mx.bfloat16: 0.25}[dtype]
    assert error(found.last_hidden_state.astype(mx.float32), torch.tensor(np.array(expected)), mask) < limit
    left = mask[:, ::-1].copy()
    assert mx.isfinite(core(ids, left, output_attentions=True).last_hidden_state).all()


def test_a_window_counts_places_and_not_the_positions_of_the_caller() -> None:
    theirs, core = pair("modernbert")
    ids = np.random.default_rng(0).integers(1, 300, (2, 20))
    positions = np.stack([np.arange(20)[::-1] * 3, np.arange(20) + 1000])
    expected = reference(theirs, {"input_ids": ids, "position_ids": positions.copy()}).last_hidden_state
    assert error(core(ids, position_ids=positions).last_hidden_state, expected) < 2e-5


# --- other packages --------------------------------------------------------------------------------------------------

OTHERS = {
    "global_rope_theta": 500.0,
    "local_rope_theta": 7.0,
    "local_attention": 10,
    "num_hidden_layers": 5,
    "global_attn_every_n_layers": 4,
}


def new_spelling_alone(directory: Path) -> None:
    file = directory / "config.json"
    config = json.loads(file.read_text())
    assert "global_rope_theta" not in config
    del config["global_attn_every_n_layers"]
    file.write_text(json.dumps(config))


@pytest.fixture(scope="module", params=["gelu_pytorch_tanh", "gelu"])
def others(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A converted directory whose source has the new spelling alone, and how far other packages may be off.

    mlx-embeddings 0.1.0 and mlx-vlm 0.7.10 compute GELU by tanh, whatever the configuration says.
    """
    root = tmp_path_factory.mktemp("others")
    save_tiny(root / "source", "ModernBertModel", hidden_act=request.param, **OTHERS)
    save_tokenizer(root / "source")
    new_spelling_alone(root / "source")
    convert(root / "source", root / "out", verify=False)
    return root / "out", 1e-5 if request.param == "gelu_pytorch_tanh" else 1e-2


IDS = np.random.default_rng(0).integers(1, 300, (3, 40))
MASK = (np.arange(40) < np.array([40, 20, 9])[:, None]).astype(np.int32)


def ours_of(directory: Path) -> np.ndarray:
    core: Encoder = load_core(directory)
    return np.array(core(IDS, MASK).last_hidden_state)[MASK == 1]


def in_mlx_embeddings(directory: Path) -> np.ndarray:
    model, _ = pytest.importorskip("mlx_embeddings").load(str(directory))
    output = model.model(mx.array(IDS), attention_mask=mx.array(MASK), return_dict=True)
    return np.array(output["last_hidden_state"])[MASK == 1]


def in_mlx_vlm(directory: Path) -> np.ndarray:
    model = pytest.importorskip("mlx_vlm.embedding_loader").load_embedding_model(directory)
    return np.array(model(mx.array(IDS), attention_mask=mx.array(MASK)).last_hidden_state)[MASK == 1]


@pytest.mark.parametrize("package", [in_mlx_embeddings, in_mlx_vlm])
def test_other_packages_compute_the_same_hidden_states(
    others: tuple[Path, float], package: Any, tmp_path: Path
) -> None:
    directory, limit = others
    expected = ours_of(directory)
    assert np.abs(package(directory) - expected).max() < limit
    # With the new spelling alone, they take their defaults in silence.
    config = json.loads((directory / "config.json").read_text())
    for file in directory.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    old = ("global_attn_every_n_layers", "global_rope_theta", "local_rope_theta")
    (tmp_path / "config.json").write_text(json.dumps({n: v for n, v in config.items() if n not in old}))
    assert np.abs(package(tmp_path) - expected).max() > 0.1


def test_transformers_and_sentence_transformers_load_it(others: tuple[Path, float]) -> None:
    directory, _ = others
    expected = ours_of(directory)
    model = transformers.AutoModel.from_pretrained(directory, attn_implementation="eager")
    found = reference(model, {"input_ids": IDS, "attention_mask": MASK}).last_hidden_state.numpy()[MASK == 1]
    assert np.abs(found - expected).max() < 2e-5
    sentences = pytest.importorskip("sentence_transformers").SentenceTransformer(str(directory), device="cpu")
    theirs = sentences.encode(["a b c", "d"])
    np.testing.assert_allclose(SentenceEncoder.from_pretrained(directory).encode(["a b c", "d"]), theirs, atol=1e-5)


def test_a_base_in_rope_scaling_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"rope_scaling=.* asks for .* bases that rope_parameters does not say"):
        config_from_hf({"model_type": "modernbert", "rope_scaling": {"rope_type": "default", "rope_theta": 5000.0}})
    config = {"model_type": "modernbert", "rope_scaling": {"rope_type": "default"}, "sliding_window": None}
    assert not {"rope_scaling", "sliding_window"} & set(architecture("modernbert").written_config(config))
