"""Encoder, pooling and head as one model: every head and pooling, saved and loaded bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from safetensors import safe_open

import mlxbert
from converter.convert import convert
from heads.binary import BinaryClassificationHead
from heads.errors import HeadError
from heads.head_registry import get_head
from heads.regression import RegressionHead
from mlxbert.checkpoint import CheckpointError
from mlxbert.errors import MLXBertError
from mlxbert.files.output_file import WriteError, manifest_problems
from mlxbert.models.bert import BertConfig, BertCore
from mlxbert.pooling import (
    CHOICES,
    AttentionPooling,
    PoolingError,
    WeightedLayerPooling,
    make_pooling,
    pooling_settings,
)
from mlxbert.with_head import BertWithHead
from tests.support.head_samples import NAMES, N, sample_of
from tests.support.tiny import save_tiny

WIDTH = 48
CONFIG = BertConfig(
    vocab_size=97,
    hidden_size=WIDTH,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=80,
    max_position_embeddings=64,
)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("with_head")
    save_tiny(root / "source", "BertForPreTraining")
    convert(root / "source", root / "out", verify=False)
    return root / "out"


def batch(rows: int = N, length: int = 9) -> dict[str, mx.array]:
    """Ragged ids with a mask and token types."""
    rng = np.random.default_rng(2)
    lengths = rng.integers(3, length + 1, rows)
    lengths[0] = length
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    ids = rng.integers(5, 97, (rows, length)) * mask
    types = (np.arange(length) >= lengths[:, None] // 2) * mask
    return {
        "input_ids": mx.array(ids),
        "attention_mask": mx.array(mask),
        "token_type_ids": mx.array(types.astype(np.int32)),
    }


def head_of(name: str, **options: Any) -> Any:
    sample = sample_of(name)
    return get_head(name).from_targets(WIDTH, sample.targets, **sample.fit, **options)


def randomize(model: nn.Module) -> None:
    """Head and pooling of no special values: zeros would round-trip whatever the code does."""
    for part in (model.head, model.pooling):
        part.update(
            nn.utils.tree_map(lambda a: a + 0.1 * mx.random.normal(a.shape).astype(a.dtype), part.parameters())
        )


def model_of(converted: Path, name: str, pooling: Any = "mean", dtype: mx.Dtype | None = None) -> BertWithHead:
    mx.random.seed(4)
    model = BertWithHead.from_pretrained(converted, head_of(name), pooling, dtype=dtype)
    randomize(model)
    if dtype is not None:
        model.set_dtype(dtype)
    return model


def parameters(model: nn.Module) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=["float32", "float16", "bfloat16"])
def test_every_head_comes_back_bit_for_bit(name: str, dtype: mx.Dtype, converted: Path, tmp_path: Path) -> None:
    model = model_of(converted, name, "attention", dtype)
    sample = sample_of(name)
    extra = sample.inputs(model.head)
    logits = model(**batch(), **extra)
    model.head.calibrate(logits, sample.targets, **sample.calibrate)
    path = model.save(tmp_path / "out")
    assert manifest_problems(path) == []
    again = BertWithHead.load(path, dtype=dtype)
    assert type(again.head) is type(model.head)
    assert again.head.settings() == model.head.settings()
    ours, theirs = parameters(model), parameters(again)
    assert ours.keys() == theirs.keys()
    for key, array in ours.items():
        assert theirs[key].dtype == array.dtype == dtype, key
        assert mx.array_equal(array, theirs[key]), key
    assert mx.array_equal(logits, again(**batch(), **extra))
    assert np.array_equal(model.predict(logits), again.predict(logits))


@pytest.mark.parametrize("pooling", [*CHOICES, {"name": "weighted_layers", "layers": 2, "strategy": "max"}])
def test_every_pooling_trains_pads_and_comes_back(pooling: Any, converted: Path, tmp_path: Path) -> None:
    model = model_of(converted, "binary", pooling)
    inputs = batch(6)
    logits = model(**inputs)

    # Padding: four more columns and two more rows, all of it padding.
    padded = {key: mx.pad(value, [(0, 2), (0, 4)]) for key, value in inputs.items()}
    padded["input_ids"] = mx.where(padded["attention_mask"] == 0, 77, padded["input_ids"])
    with_padding = model(**padded)
    assert np.allclose(with_padding[:6], logits, atol=1e-5)
    assert mx.isfinite(with_padding).all().item()

    # Gradients: in head and pooling everywhere, in the encoder wherever this pooling looks.
    targets = mx.array([0.0, 1, 0, 1, 1, 0])
    model.train()
    model.core.eval()
    gradients = parameters_gradient(model, inputs, targets)
    for path, gradient in gradients.items():
        assert mx.isfinite(gradient).all().item(), path
        # Softmax is indifferent to a shift of all keys; only the pooling "pooler" looks through the pooler.
        if path.endswith("key.bias") or (path.startswith("core.pooler") and pooling != "pooler"):
            continue
        assert mx.abs(gradient).max().item() > 0, path
    model.eval()

    path = model.save(tmp_path / "out")
    again = BertWithHead.load(path)
    assert type(again.pooling) is type(model.pooling)
    assert pooling_settings(again.pooling) == pooling_settings(model.pooling)
    assert mx.array_equal(again(**inputs), logits)


def parameters_gradient(model: BertWithHead, inputs: dict[str, mx.array], targets: mx.array) -> dict[str, mx.array]:
    _, gradients = nn.value_and_grad(model, lambda: model.loss(model(**inputs), targets))()
    return dict(tree_flatten(gradients))


def test_padding_rows_change_no_gradient(converted: Path) -> None:
    model = model_of(converted, "binary", "attention")
    inputs, targets = batch(6), mx.array([0.0, 1, 0, 1, 1, 0])
    padded = {key: mx.pad(value, [(0, 3), (0, 0)]) for key, value in inputs.items()}
    rows = mx.array([1] * 6 + [0] * 3)
    expected = parameters_gradient(model, inputs, targets)

    def loss() -> mx.array:
        return model.loss(model(**padded), mx.pad(targets, (0, 3)), rows=rows)

    _, gradients = nn.value_and_grad(model, loss)()
    for path, gradient in tree_flatten(gradients):
        scale = max(1.0, mx.abs(expected[path]).max().item())
        assert np.abs(np.array(gradient - expected[path])).max() < 1e-5 * scale, path


def test_the_directory_is_the_public_contract(converted: Path, tmp_path: Path) -> None:
    model = model_of(converted, "multiclass", "weighted_layers")
    path = model.save(tmp_path / "fine-tuned")
    names = {file.name for file in path.iterdir()}
    assert names == {
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "heads.safetensors",
        "manifest.json",
        "vocab.txt",
    }
    with safe_open(path / "heads.safetensors", "numpy") as file:
        assert set(file.keys()) == {"head.output.weight", "head.output.bias", "pooling.layer_logits"}
        assert file.metadata() == {"format": "mlx"}
    with safe_open(path / "model.safetensors", "numpy") as file:
        encoder = set(file.keys())
    with safe_open(converted / "model.safetensors", "numpy") as file:
        assert encoder == set(file.keys())
    index = json.loads((path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == encoder
    config, source = (json.loads((place / "config.json").read_text()) for place in (path, converted))
    settings = config["mlxbert"].pop("head")
    assert config == source
    assert settings["name"] == "multiclass"
    assert settings["pooling"] == {"name": "weighted_layers", "layers": 4, "strategy": "mean"}
    assert settings["arguments"]["classes"] == ["cat", "dog", "eel"]
    assert settings["fitted"]["temperature"] == 1.0
    # The encoder alone, and its tokenizer, load as from any converted directory.
    core, tokenizer = mlxbert.load(path)
    assert mx.array_equal(core(**batch()).last_hidden_state, model.core(**batch()).last_hidden_state)
    assert tokenizer.vocab_size == 97


def test_transformers_and_mlx_embeddings_load_what_was_fine_tuned(converted: Path, tmp_path: Path) -> None:
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    model = model_of(converted, "regression")
    model.core.embeddings.word_embeddings.weight = model.core.embeddings.word_embeddings.weight * 1.01
    path = model.save(tmp_path / "out")
    theirs = transformers.AutoModel.from_pretrained(path).eval()
    with torch.no_grad():
        expected = theirs(**{key: torch.tensor(np.array(value)).long() for key, value in batch().items()})
    keep = np.array(batch()["attention_mask"]).astype(bool)
    found = np.array(model.core(**batch()).last_hidden_state)
    assert np.abs(found - expected.last_hidden_state.numpy())[keep].max() < 2e-5


def test_half_precision_is_named_in_the_config_and_mixtures_keep_every_bit(converted: Path, tmp_path: Path) -> None:
    model = model_of(converted, "binary", "attention")
    model.core.set_dtype(mx.bfloat16)
    path = model.save(tmp_path / "mixed")
    assert json.loads((path / "config.json").read_text())["dtype"] == "bfloat16"
    again = BertWithHead.load(path, dtype=mx.bfloat16)
    for key, array in parameters(model).items():
        assert parameters(again)[key].dtype == array.dtype
        assert mx.array_equal(parameters(again)[key], array)
    assert mx.array_equal(again(**batch()), model(**batch()))
    model.core.embeddings.set_dtype(mx.float32)
    assert json.loads((model.save(tmp_path / "two") / "config.json").read_text())["dtype"] == "float32"


def test_a_model_without_a_source_saves_too(tmp_path: Path) -> None:
    model = BertWithHead(BertCore(CONFIG, add_pooling_layer=False), BinaryClassificationHead(WIDTH), "cls")
    model.eval()
    path = model.save(tmp_path / "out")
    again = BertWithHead.load(path)
    assert again.core.config == CONFIG
    assert mx.array_equal(again(**batch()), model(**batch()))
    assert json.loads((path / "config.json").read_text())["architectures"] == ["BertModel"]


def test_saving_replaces_only_when_told_and_what_it_loaded_from_too(converted: Path, tmp_path: Path) -> None:
    model = model_of(converted, "binary")
    path = model.save(tmp_path / "out")
    before = (path / "heads.safetensors").read_bytes()
    with pytest.raises(WriteError, match="exists"):
        model.save(path)
    assert (path / "heads.safetensors").read_bytes() == before
    again = BertWithHead.load(path)
    again.head.output.bias = again.head.output.bias + 1
    again.save(path, overwrite=True)
    assert manifest_problems(path) == []
    assert (path / "vocab.txt").read_bytes() == (converted / "vocab.txt").read_bytes()
    assert mx.array_equal(BertWithHead.load(path).head.output.bias, again.head.output.bias)


def damaged(converted: Path, tmp_path: Path, **changes: Any) -> Path:
    """A saved binary model with attention pooling whose head settings are changed."""
    path = model_of(converted, "binary", "attention").save(tmp_path / "out")
    config = json.loads((path / "config.json").read_text())
    config["mlxbert"]["head"] |= changes
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "binry"}, "config.json, mlxbert.head: there is no head named 'binry': did you mean 'binary'"),
        ({"arguments": {"hidden_size": 7}}, "the head takes 7 features and the encoder gives 48; fix: hidden_size=48"),
        ({"arguments": {"hidden_size": 48, "x": 1}}, "the settings have 'x', which this version does not know"),
        ({"arguments": {}}, "config.json, mlxbert.head: binary: the settings cannot be used ("),
        ({"arguments": {"hidden_size": 10**30}}, "binary: the settings cannot be used ("),
        ({"arguments": {"hidden_size": 48, "classes": 5}}, "binary: classes: 5 is no list; fix: give a list"),
        ({"fitted": {"threshold": "x"}}, "binary: threshold is 'x'; fix: a number in [0, 1]"),
        ({"fitted": {"temperature": -1}}, "binary: temperature is -1; fix: a number in (0, inf)"),
        ({"pooling": {"name": "weighted_layers", "layers": 10**30}}, "and an encoder of 3 layers has 4 hidden states"),
        ({"pooling": {"name": "mean"}}, "unexpected: pooling.dense.weight"),
        ({"pooling": {}}, "config.json, mlxbert.head: pooling None is unknown; known: cls, mean"),
        ({"pooling": {"name": "cls", "layers": 2}}, "pooling 'cls' has no setting 'layers'"),
        (
            {"name": "regression", "arguments": {"hidden_size": 48, "num_targets": 3}, "fitted": {}},
            "head.output.weight is (1, 48), config.json calls for (3, 48)",
        ),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], message: str, converted: Path, tmp_path: Path) -> None:
    with pytest.raises(MLXBertError) as caught:
        BertWithHead.load(damaged(converted, tmp_path, **changes))
    assert message in str(caught.value)


def test_damage(converted: Path, tmp_path: Path) -> None:
    path = damaged(converted, tmp_path)
    data = (path / "heads.safetensors").read_bytes()
    (path / "heads.safetensors").write_bytes(data[:100])
    with pytest.raises(CheckpointError, match=r"heads\.safetensors is damaged"):
        BertWithHead.load(path)
    (path / "heads.safetensors").unlink()
    with pytest.raises(CheckpointError, match="missing: head.output.weight".replace(".", r"\.")):
        BertWithHead.load(path)
    with pytest.raises(CheckpointError, match="a converted encoder without a task head; fix: BertWithHead"):
        BertWithHead.load(converted)
    copy = Path(shutil.copytree(converted, tmp_path / "copy"))
    model = model_of(copy, "binary")
    shutil.rmtree(copy)
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        model.save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_parts_that_do_not_fit_together(converted: Path) -> None:
    core = BertCore(CONFIG, add_pooling_layer=False)
    with pytest.raises(MLXBertError, match="the head takes 8 features and the encoder gives 48"):
        BertWithHead(core, BinaryClassificationHead(8))
    with pytest.raises(PoolingError, match="this checkpoint has no pooler; fix: use 'cls' or 'mean'"):
        BertWithHead(core, BinaryClassificationHead(WIDTH), "pooler")
    with pytest.raises(PoolingError, match="5 layers asked for, and an encoder of 3 layers has 4 hidden states"):
        BertWithHead(core, BinaryClassificationHead(WIDTH), WeightedLayerPooling(5))
    for wrong, message in (
        ({"name": "weighted_layers", "strategy": "pooler"}, "strategy 'pooler' cannot pool a mix of layers"),
        ({"name": "weighted_layers", "layers": 0}, "layers must be a positive whole number, not 0"),
        ("median", "pooling 'median' is unknown; known: cls, mean"),
        (3, "3 is neither a name, nor settings, nor a module of mlxbert.pooling"),
    ):
        with pytest.raises(PoolingError, match=message):
            make_pooling(wrong, WIDTH, 3)  # type: ignore[arg-type]
    module = AttentionPooling(WIDTH)
    assert BertWithHead(core, BinaryClassificationHead(WIDTH), module).pooling is module
    model = model_of(converted, "binary")
    with pytest.raises(HeadError, match="binary: input 'history' is unknown; extra inputs of this head: none"):
        model(**batch(), history=mx.zeros((N, 3)))
    with pytest.raises(HeadError, match="input 'hist' is unknown; extra inputs of this head: history, calendar"):
        model_of(converted, "time_series")(**batch(), hist=mx.zeros((N, 3)))


def test_sampling_draws_a_mask_a_pass_and_leaves_the_modes_alone(converted: Path) -> None:
    mx.random.seed(4)
    head = RegressionHead.from_targets(WIDTH, np.arange(9.0), dropout=0.3, dropout_samples=64)
    model = BertWithHead.from_pretrained(converted, head)
    randomize(model)
    model.head.train()
    modes = [module.training for module in model.modules()]
    sampled = model.sample(**batch(), samples=8)
    assert sampled.shape == (8, N, 1)
    assert np.array(sampled).std(axis=0).min() > 0
    assert [module.training for module in model.modules()] == modes
    assert head.dropout_samples == 64
    # Dropout in the encoder takes part: more disagreement than the head's alone makes.
    features = model.features(**batch())
    head.dropout_samples = 1
    alone = np.stack([np.array(head(features)) for _ in range(8)])
    assert np.array(sampled).std(axis=0).mean() > alone.std(axis=0).mean()
    assert head.mc_interval(sampled).value.shape == (N,)


def test_neither_torch_nor_the_packages_of_kaggle_are_imported() -> None:
    import subprocess
    import sys

    script = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "import mlxbert.with_head, heads.head_registry as r\n"
        "r.registered_heads()\n"
        "print(sorted({'scipy', 'sklearn', 'statsmodels', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    # Nor is what only fitting and scoring take, for a model that is loaded to predict.
    assert done.stdout.strip() == "[]", done.stderr
