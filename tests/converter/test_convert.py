"""Every form of a source, built by code that shares nothing with the readers, compared with PyTorch's outputs."""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import mlxbert
from converter.convert import convert, default_output
from converter.source import open_source
from heads.binary import BinaryClassificationHead
from mlxbert.checkpoint import load_core, read_config
from mlxbert.files.output_file import manifest_problems
from mlxbert.with_head import BertWithHead
from tests.models.test_core import LIMIT, batch, error, torch_output
from tests.support.tiny import CLASSES, save_tiny, tiny_model, write_vocab

State = dict[str, torch.Tensor]


def reference_and_state(directory: Path, architecture: str = "BertForPreTraining") -> tuple[Any, State]:
    """A randomized model with its config.json and vocabulary in `directory`, and its own tensors, without ties."""
    model = tiny_model(architecture)
    model.config.architectures = [architecture]
    model.config.save_pretrained(directory)
    write_vocab(directory / "vocab.txt", model.config.vocab_size)
    return model, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_model(converted: Path, model: Any, limit: float = LIMIT) -> None:
    """Every hidden state and the pooler, over ragged masks and both types."""
    inputs = batch()
    encoder = getattr(model, "bert", model)
    theirs = torch_output(encoder, inputs, output_hidden_states=True)
    core, _ = mlxbert.load(converted)
    ours = core(**inputs, output_hidden_states=True)
    assert ours.hidden_states is not None
    for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert error(a, b, inputs["attention_mask"]) < limit
    assert (ours.pooler_output is None) == (theirs.pooler_output is None)
    if ours.pooler_output is not None:
        assert error(ours.pooler_output, theirs.pooler_output) < limit
    assert manifest_problems(converted) == []


def save_sharded_bin(directory: Path, state: State) -> None:
    names = sorted(state)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, keys in shards.items():
        torch.save({key: state[key] for key in keys}, directory / file)
    weight_map = {key: file for file, keys in shards.items() for key in keys}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def save_sharded_safetensors(directory: Path, state: State) -> None:
    names = sorted(state)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, keys in shards.items():
        save_file({key: state[key].clone() for key in keys}, directory / file)
    weight_map = {key: file for file, keys in shards.items() for key in keys}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def legacy_names(state: State) -> State:
    return {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in state.items()
    }


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


class Callback:
    """Stands for a class that a training framework pickles beside the weights."""

    def __init__(self) -> None:
        self.best = 0.5


def lightning(state: State) -> dict[str, Any]:
    return {
        "epoch": 3,
        "global_step": 100,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": prefixed("model.", state),
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3}]}],
        "hyper_parameters": {"lr": 1e-3, "callback": Callback(), "path": Path("runs")},
        "hparams_name": "kwargs",
    }


def mlx_examples_names(state: State) -> dict[str, np.ndarray]:
    """The names that mlx-examples' bert/convert.py gives, for an encoder."""
    renames = [
        (".layer.", ".layers."),
        (".self.query.", ".query_proj."),
        (".self.key.", ".key_proj."),
        (".self.value.", ".value_proj."),
        (".attention.output.dense.", ".attention.out_proj."),
        (".attention.output.LayerNorm.", ".ln1."),
        (".output.LayerNorm.", ".ln2."),
        (".intermediate.dense.", ".linear1."),
        (".output.dense.", ".linear2."),
        (".LayerNorm.", ".norm."),
        ("pooler.dense.", "pooler."),
    ]
    named = {}
    for name, tensor in state.items():
        for old, new in renames:
            name = name.replace(old, new)
        named[name] = tensor.numpy()
    return named


FORMS: dict[str, Callable[[Path, State], None]] = {
    "safetensors": lambda d, s: save_file(s, d / "model.safetensors"),
    "sharded safetensors": save_sharded_safetensors,
    "zip bin": lambda d, s: torch.save(s, d / "pytorch_model.bin"),
    "legacy bin": lambda d, s: torch.save(s, d / "pytorch_model.bin", _use_new_zipfile_serialization=False),
    "ordered dict with metadata": lambda d, s: torch.save(collections.OrderedDict(s), d / "pytorch_model.bin"),
    "parameters": lambda d, s: torch.save({k: torch.nn.Parameter(v) for k, v in s.items()}, d / "pytorch_model.bin"),
    "sharded bin": save_sharded_bin,
    "gamma and beta": lambda d, s: torch.save(legacy_names(s), d / "pytorch_model.bin"),
    "both formats": lambda d, s: (
        save_file(s, d / "model.safetensors"),
        torch.save({k: v + 1 for k, v in s.items()}, d / "pytorch_model.bin"),
    ),
    "position_ids": lambda d, s: torch.save(
        {**s, "bert.embeddings.position_ids": torch.arange(64)[None]}, d / "pytorch_model.bin"
    ),
    "float64": lambda d, s: save_file({k: v.double() for k, v in s.items()}, d / "model.safetensors"),
    "DistributedDataParallel": lambda d, s: torch.save(prefixed("module.", s), d / "pytorch_model.bin"),
    "torch.compile": lambda d, s: torch.save(prefixed("_orig_mod.", s), d / "pytorch_model.bin"),
    "DDP of compiled": lambda d, s: torch.save(prefixed("module._orig_mod.", s), d / "pytorch_model.bin"),
    "strided views": lambda d, s: torch.save(
        {k: v.t().contiguous().t() if v.ndim == 2 else v for k, v in s.items()}, d / "pytorch_model.bin"
    ),
}
FILES: dict[str, Callable[[Path, State], Path]] = {
    "bare.pt": lambda f, s: torch.save(s, f),
    "bare.pth": lambda f, s: torch.save(s, f, _use_new_zipfile_serialization=False),
    "wrapped.ckpt": lambda f, s: torch.save({"state_dict": s, "epoch": 1}, f),
    "model_state_dict.pt": lambda f, s: torch.save({"model_state_dict": s, "optimizer": {}}, f),
    "model.pt": lambda f, s: torch.save({"model": prefixed("module.", s)}, f),
    "nested.pt": lambda f, s: torch.save({"model": {"state_dict": s}}, f),
    "lightning.ckpt": lambda f, s: torch.save(lightning(s), f),
    "bare.safetensors": lambda f, s: save_file(s, f),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_directory(form: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    model, state = reference_and_state(source)
    FORMS[form](source, state)
    result = convert(source, tmp_path / "out", verify=False)
    assert result.dtype == "float32"
    assert_same_model(tmp_path / "out", model)
    if form == "both formats":
        assert any("safetensors" in note for note in result.notes)
    if form == "float64":
        assert any("float64" in note for note in result.notes)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("config_beside", [True, False])
def test_one_file(name: str, config_beside: bool, tmp_path: Path) -> None:
    model, state = reference_and_state(tmp_path / "configs")
    folder = tmp_path / "configs" if config_beside else tmp_path / "weights"
    folder.mkdir(exist_ok=True)
    FILES[name](folder / name, state)
    config = None if config_beside else tmp_path / "configs" / "config.json"
    convert(folder / name, tmp_path / "out", config=config, verify=False)
    assert_same_model(tmp_path / "out", model)


def test_mlx_examples_npz(tmp_path: Path) -> None:
    model, state = reference_and_state(tmp_path / "source", "BertModel")
    np.savez(tmp_path / "source" / "weights.npz", **mlx_examples_names(state))
    result = convert(tmp_path / "source" / "weights.npz", tmp_path / "out")
    assert result.unverified is not None
    assert "--reference" in result.unverified
    assert_same_model(tmp_path / "out", model)


def test_what_mlx_embeddings_wrote(tmp_path: Path) -> None:
    mlx_embeddings = pytest.importorskip("mlx_embeddings.convert")
    model = save_tiny(tmp_path / "source")
    mlx_embeddings.convert(str(tmp_path / "source"), mlx_path=str(tmp_path / "theirs"), dtype="float32")
    convert(tmp_path / "theirs", tmp_path / "out", verify=False)
    assert_same_model(tmp_path / "out", model)


@pytest.mark.parametrize("architecture", CLASSES)
def test_every_class_with_its_head_kept(architecture: str, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "source", architecture)
    convert(tmp_path / "source", tmp_path / "out", verify=False)
    assert_same_model(tmp_path / "out", model)
    with safe_open(tmp_path / "out" / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "mlx"}
        assert not any(re.match(r"bert\.|cls\.|classifier|qa_outputs", name) for name in file.keys())  # noqa: SIM118
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["BertModel"]
    assert config["mlxbert"]["original_architectures"] == [architecture]
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("bert.")}
    heads = tmp_path / "out" / "heads.safetensors"
    if architecture == "BertModel":
        assert not heads.exists()
        return
    saved = load_file(heads)
    tied = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    assert set(own) - tied <= set(saved) <= set(own)
    assert all(torch.equal(saved[name], own[name]) for name in saved)


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("same", [True, False])
def test_a_decoder_is_dropped_only_where_it_is_tied(tie: bool, same: bool, tmp_path: Path) -> None:
    _, state = reference_and_state(tmp_path / "source")
    decoder = "cls.predictions.decoder.weight"
    state[decoder] = state["bert.embeddings.word_embeddings.weight"].clone() + (0 if same else 1)
    torch.save(state, tmp_path / "source" / "pytorch_model.bin")
    file = tmp_path / "source" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "tie_word_embeddings": tie}))
    result = convert(tmp_path / "source", tmp_path / "out", verify=False)
    if tie and same:
        assert result.dropped[decoder] == "tied: a copy of embeddings.word_embeddings.weight"
        assert decoder not in result.heads
    else:
        assert torch.equal(load_file(tmp_path / "out" / "heads.safetensors")[decoder], state[decoder])


@pytest.mark.parametrize("source_dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dtype", [None, "float32", "float16", "bfloat16"])
def test_dtypes(source_dtype: torch.dtype, dtype: str | None, tmp_path: Path) -> None:
    _, state = reference_and_state(tmp_path / "source", "BertModel")
    state = {name: tensor.to(source_dtype) for name, tensor in state.items()}
    save_file(state, tmp_path / "source" / "model.safetensors")
    result = convert(tmp_path / "source", tmp_path / "out", dtype=dtype, verify=False)
    expected = getattr(torch, dtype) if dtype else source_dtype
    assert result.dtype == str(expected).removeprefix("torch.")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == result.dtype
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert set(written) == set(state)
    for name, tensor in written.items():
        assert tensor.dtype == expected
        assert torch.equal(tensor, state[name].to(expected)), name


def test_half_precision_is_computed_in_float32_on_a_cpu_and_as_stored_where_asked(tmp_path: Path) -> None:
    save_tiny(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "out", dtype="float16", verify=False)
    core = load_core(tmp_path / "out")
    expected = mx.float32 if mx.default_device() == mx.Device(mx.cpu) else mx.float16
    assert core.embeddings.word_embeddings.weight.dtype == expected
    stored, _ = mlxbert.load(tmp_path / "out", dtype=mx.float16)
    assert stored.embeddings.word_embeddings.weight.dtype == mx.float16


def test_without_pooler_none_is_invented_and_the_card_says_so(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "source", pooler=False)
    result = convert(tmp_path / "source", tmp_path / "out", verify=False)
    assert_same_model(tmp_path / "out", model)
    assert "the source has no pooler, so neither has the output" in result.notes
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| mlx-embeddings | **no**: it needs a pooler, and the source has none |" in card


@pytest.mark.parametrize("quantize", [None, "4bit"])
def test_files_that_name_no_tokenizer_class_are_read_as_their_config_says(
    tmp_path: Path, quantize: str | None
) -> None:
    source = tmp_path / "source"
    save_tiny(source, "RobertaForMaskedLM", hidden_size=64)
    assert not list(source.glob("tokenizer*"))  # vocab.json and merges.txt alone
    result = convert(source, tmp_path / "out", quantize=quantize, verify=True)
    assert not [note for note in result.notes if "no probes" in note]
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    _, tokenizer = mlxbert.load(tmp_path / "out")
    (row,) = tokenizer.encode(["the thin"])
    assert list(row.ids) == AutoTokenizer.from_pretrained(source)("the thin")["input_ids"]


def test_without_a_tokenizer_it_converts_and_says_what_is_missing(tmp_path: Path) -> None:
    save_tiny(tmp_path / "source")
    (tmp_path / "source" / "vocab.txt").unlink()
    result = convert(tmp_path / "source", tmp_path / "out", verify=False)
    assert any("no tokenizer (tokenizer.json or vocab.txt): put one there" in note for note in result.notes)
    assert "no tokenizer files" in (tmp_path / "out" / "README.md").read_text()
    load_core(tmp_path / "out")
    with pytest.raises(mlxbert.MLXBertError, match=r"tokenizer\.json"):
        mlxbert.load(tmp_path / "out")


def test_config_keys_are_kept_and_the_card_is_ours(tmp_path: Path) -> None:
    save_tiny(tmp_path / "source", num_labels=3, architecture="BertForSequenceClassification")
    (tmp_path / "source" / "README.md").write_text("the source's own card")
    convert(tmp_path / "source", tmp_path / "out", verify=False)
    theirs, ours = (json.loads((tmp_path / d / "config.json").read_text()) for d in ("source", "out"))
    changed = {"architectures", "dtype", "mlxbert"}
    assert {k: v for k, v in ours.items() if k not in changed} == {k: v for k, v in theirs.items() if k not in changed}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "the source's own card" not in card
    assert "NOT VERIFIED" in card
    assert str(tmp_path) not in card + json.dumps(ours["mlxbert"])


def test_the_same_source_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    save_tiny(tmp_path / "source", "BertForPreTraining")
    for name in ("a", "b"):
        convert(tmp_path / "source", tmp_path / name / "out", verify=False)
    files = sorted(p.name for p in (tmp_path / "a" / "out").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "b" / "out").iterdir())
    for name in files:
        assert (tmp_path / "a" / "out" / name).read_bytes() == (tmp_path / "b" / "out" / name).read_bytes(), name


def test_progress_is_told(tmp_path: Path) -> None:
    save_tiny(tmp_path / "source")
    seen: list[tuple[str, int, int]] = []
    convert(tmp_path / "source", tmp_path / "out", verify=False, progress=lambda *step: seen.append(step))
    assert seen[0][:2] == ("convert", 0)
    assert seen[-1][1] == seen[-1][2] > 0
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_our_own_output_converts_to_another_dtype_and_keeps_its_head_and_class(tmp_path: Path) -> None:
    save_tiny(tmp_path / "source", "BertForSequenceClassification")
    convert(tmp_path / "source", tmp_path / "first", verify=False)
    result = convert(tmp_path / "first", tmp_path / "second", dtype="float16", verify=False)
    assert result.heads == ("classifier.bias", "classifier.weight")
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    assert config["mlxbert"]["original_architectures"] == ["BertForSequenceClassification"]
    assert config["dtype"] == "float16"
    assert manifest_problems(tmp_path / "second") == []


def test_no_path_of_the_sources_machine_is_written(tmp_path: Path) -> None:
    save_tiny(tmp_path / "source")
    config = json.loads((tmp_path / "source/config.json").read_text())
    (tmp_path / "source/config.json").write_text(json.dumps({**config, "_name_or_path": "C:/Users/alice/bert"}))
    kept = {"do_lower_case": True, "model_max_length": 10**30, "name": "α"}
    places = {"name_or_path": "/root/bert/", "special_tokens_map_file": r"D:\alice\map.json", "tokenizer_file": None}
    (tmp_path / "source/tokenizer_config.json").write_text(json.dumps({**kept, **places}))
    convert(tmp_path / "source", tmp_path / "out", verify=False)
    assert json.loads((tmp_path / "out/config.json").read_text())["_name_or_path"] == "bert"
    assert json.loads((tmp_path / "out/tokenizer_config.json").read_text()) == {
        **kept,
        "name_or_path": "bert",
        "special_tokens_map_file": "map.json",
        "tokenizer_file": None,
    }
    assert manifest_problems(tmp_path / "out") == []


def test_a_tokenizers_settings_without_one_are_copied_as_they_are(tmp_path: Path) -> None:
    save_tiny(tmp_path / "source")
    text = '{"name_or_path":  "google-bert/bert-base-uncased"}'
    (tmp_path / "source/tokenizer_config.json").write_text(text)
    convert(tmp_path / "source", tmp_path / "out", verify=False)
    assert (tmp_path / "out/tokenizer_config.json").read_text() == text


def test_what_was_trained_here_does_not_come_from_the_hub(tmp_path: Path) -> None:
    """Converted once more, what came from the Hub still does; a model that was trained from it does not."""
    save_tiny(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "out", verify=False)
    config = read_config(tmp_path / "out")
    config["mlxbert"] |= {"source": "team/bert", "revision": "a" * 40}
    (tmp_path / "out/config.json").write_text(json.dumps(config))
    BertWithHead.from_pretrained(tmp_path / "out", BinaryClassificationHead(48)).save(tmp_path / "trained")
    convert(tmp_path / "out", tmp_path / "again", verify=False)
    convert(tmp_path / "trained/model.safetensors", tmp_path / "encoder", verify=False)
    named = [read_config(tmp_path / name)["mlxbert"] for name in ("again", "trained", "encoder")]
    assert [block["source"] for block in named] == ["team/bert", "team/bert", "trained/model.safetensors"]
    assert [block["revision"] for block in named] == ["a" * 40, "a" * 40, None]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "tiny"),
        ({"dtype": "bfloat16"}, "tiny-bf16"),
        ({"quantize": "4bit"}, "tiny-4bit"),
        ({"quantize": "4bit", "dtype": "float32"}, "tiny-4bit-fp32"),
        ({"quantize": "auto", "target": "14MB"}, "tiny-auto-14MB"),
        ({"quantize": "auto", "target": 3.5}, "tiny-auto-3.5"),
        ({"dequantize": True}, "tiny-dequantized"),
        ({"quantize": "../../x"}, "tiny-....x"),  # an unknown recipe, which is refused next
    ],
    ids=str,
)
def test_the_default_directory_carries_the_recipe(options: dict[str, Any], name: str, tmp_path: Path) -> None:
    assert default_output("team/tiny", **options) == Path("mlx_models") / name
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "x.pt").touch()
    assert default_output(str(tmp_path / "tiny"), **options) == Path("mlx_models") / name
    assert default_output(str(tmp_path / "tiny" / "x.pt"), **options) == Path("mlx_models") / name


def test_commands_without_an_output_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "tiny", hidden_size=64, intermediate_size=64)
    for options in ({}, {"quantize": "4bit"}, {"dtype": "float16"}):
        convert("tiny", verify=False, **options)
    convert("mlx_models/tiny", verify=False, quantize="8bit")
    convert("mlx_models/tiny-4bit", verify=False, dequantize=True)
    names = ["tiny", "tiny-4bit", "tiny-4bit-dequantized", "tiny-8bit", "tiny-fp16"]
    assert sorted(path.name for path in (tmp_path / "mlx_models").iterdir()) == names
    recorded = {read_config(tmp_path / "mlx_models" / name)["mlxbert"]["source"] for name in names}
    assert recorded == {"tiny"}  # the source's own name, however often it was converted


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("minilm/model", "minilm/model"),
        ("tweets/checkpoint-500", "tweets/checkpoint-500"),
        ("st/0_Transformer", "st/0_Transformer"),
        ("models--team--tiny/snapshots/" + "a" * 40, "team/tiny"),
        ("models--tiny/snapshots/" + "a" * 40, "tiny"),
        ("my-bert", "my-bert"),
    ],
)
def test_a_local_source_keeps_its_real_name(path: str, name: str, tmp_path: Path) -> None:
    save_tiny(tmp_path / path)
    assert open_source(str(tmp_path / path)).name == name
    convert(tmp_path / path, tmp_path / "out", verify=False)
    assert read_config(tmp_path / "out")["mlxbert"]["source"] == name
    assert str(tmp_path) not in (tmp_path / "out/README.md").read_text()
