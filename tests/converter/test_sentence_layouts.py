"""Every layout and module of sentence-transformers converts whole; the oracle is itself, on the source."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Pooling, WeightedLayerPooling

from converter.card.loaders import DIFFERS
from converter.convert import convert
from converter.export.checkpoint import export
from converter.output import OutputError
from converter.quantize.quality import pooling_of
from converter.source import SourceError, open_source, select_files
from mlxbert.encode.encoder import SentenceEncoder
from mlxbert.encode.modules import SentenceModuleError, UnsupportedModuleError
from mlxbert.encode.sentence_modules import both_spellings, read_sentence_plan
from tests.support.tiny import save_tiny

TEXTS = ["abc", "word3 word4 x y z", "a", "word1 word2 word5 b c d e f"]
MODELS = "sentence_transformers.models."


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder with a vocabulary that has every word of TEXTS."""
    directory = tmp_path_factory.mktemp("encoder")
    save_tiny(directory, vocab_size=64)
    (directory / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "model_max_length": 64}))
    return directory


def layout(
    encoder: Path,
    directory: Path,
    folder: str,
    pooling: dict[str, Any],
    *more: tuple[str, str],
    kind: str = "Transformer",
) -> Path:
    """The layout of old releases: the encoder in `folder`, each further module in its own."""
    shutil.copytree(encoder, directory / folder)
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 48, **pooling}))
    modules = [(folder, kind), ("1_Pooling", "Pooling"), *more]
    listed = [{"idx": i, "name": str(i), "path": p, "type": MODELS + k} for i, (p, k) in enumerate(modules)]
    (directory / "modules.json").write_text(json.dumps(listed))
    return directory


def assert_same(source: Path, out: Path) -> np.ndarray[Any, Any]:
    """mlxbert and sentence-transformers, each on the output, give what sentence-transformers gives on the source."""
    expected = np.asarray(SentenceTransformer(str(source), device="cpu").encode(TEXTS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = SentenceEncoder.from_pretrained(out).encode(TEXTS)
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() < 1e-5
    theirs = np.asarray(SentenceTransformer(str(out), device="cpu").encode(TEXTS))
    assert np.abs(theirs - expected).max() < 1e-5
    return ours


@pytest.mark.parametrize("folder", ["0_Transformer", "encoder", "parts/bert"])
@pytest.mark.parametrize("flag", ["pooling_mode_cls_token", "pooling_mode_max_tokens"])
def test_a_transformer_in_a_folder_converts_whole(folder: str, flag: str, encoder: Path, tmp_path: Path) -> None:
    source = layout(encoder, tmp_path / "st", folder, {flag: True}, ("2_Normalize", "Normalize"))
    (source / folder / "sentence_bert_config.json").write_text('{"max_seq_length": 5, "do_lower_case": false}')
    result = convert(source, tmp_path / "out", verify=True)
    assert f"modules.json names {folder}: its configuration, weights and tokenizer are used" in result.notes
    assert SentenceEncoder.from_pretrained(tmp_path / "out").max_length == 5
    (tmp_path / "out/sentence_bert_config.json").unlink()  # as above, but no text is cut
    (source / folder / "sentence_bert_config.json").unlink()
    assert_same(source, tmp_path / "out")
    assert json.loads((tmp_path / "out/modules.json").read_text())[0]["path"] == ""
    export(tmp_path / "out", tmp_path / "back")
    theirs = SentenceTransformer(str(tmp_path / "back"), device="cpu").encode(TEXTS)
    assert np.abs(theirs - SentenceTransformer(str(source), device="cpu").encode(TEXTS)).max() < 1e-5


def test_the_class_that_was_called_after_the_architecture(encoder: Path, tmp_path: Path) -> None:
    """sentence-transformers 0.2: `models.BERT` in 0_BERT, which its later releases do not open any more."""
    source = layout(encoder, tmp_path / "st", "0_BERT", {"pooling_mode_cls_token": True}, kind="BERT")
    convert(source, tmp_path / "out", verify=False)
    layout(encoder, tmp_path / "new", "0_Transformer", {"pooling_mode_cls_token": True})
    assert_same(tmp_path / "new", tmp_path / "out")


def test_the_folder_alone_says_what_it_leaves_out(encoder: Path, tmp_path: Path) -> None:
    source = layout(encoder, tmp_path / "st", "0_Transformer", {"pooling_mode_cls_token": True})
    notes = convert(source / "0_Transformer", tmp_path / "out", verify=False).notes
    assert f"give {source} as SRC to keep it" in str(notes)


def test_weights_beside_modules_json_are_not_those_of_the_folder(encoder: Path, tmp_path: Path) -> None:
    source = layout(encoder, tmp_path / "st", "0_Transformer", {"pooling_mode_mean_tokens": True})
    save_file({"a": torch.ones(1)}, source / "model.safetensors")
    result = convert(source, tmp_path / "out", verify=False)
    assert "are used, not the weights beside modules.json" in str(result.notes)
    assert_same(source, tmp_path / "out")


def test_the_layout_on_the_hub_is_chosen_by_names() -> None:
    names = ["0_Transformer/config.json", "0_Transformer/pytorch_model.bin", "0_Transformer/vocab.txt",
             "0_Transformer/sentence_bert_config.json", "0_Transformer/tf_model.h5", "1_Pooling/config.json",
             "2_Dense/config.json", "2_Dense/pytorch_model.bin", "README.md", "modules.json",
             "config_sentence_transformers.json", "onnx/model.onnx"]  # fmt: skip
    left = {"0_Transformer/tf_model.h5", "README.md", "onnx/model.onnx"}
    assert select_files(names) == [name for name in names if name not in left]
    both = [*names, "config.json", "model.safetensors"]
    assert "0_Transformer/pytorch_model.bin" not in select_files(both)  # modules.json, once there, says which
    assert "0_Transformer/pytorch_model.bin" in select_files(both, "0_Transformer")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_a_dense_that_is_a_pickle_alone(zipped: bool, dtype: torch.dtype, encoder: Path, tmp_path: Path) -> None:
    source = layout(
        encoder, tmp_path / "st", "0_Transformer", {"pooling_mode_mean_tokens": True}, ("2_Dense", "Dense")
    )
    (source / "2_Dense").mkdir()
    config = {
        "in_features": 48,
        "out_features": 7,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    (source / "2_Dense/config.json").write_text(json.dumps(config))
    state = {"linear.weight": torch.randn(7, 48).to(dtype), "linear.bias": torch.randn(7).to(dtype)}
    torch.save(state, source / "2_Dense/pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    convert(source, tmp_path / "out", verify=False)
    assert sorted(p.name for p in (tmp_path / "out/2_Dense").iterdir()) == ["config.json", "model.safetensors"]
    written = load_file(tmp_path / "out/2_Dense/model.safetensors")
    assert torch.equal(written["linear.weight"].to(dtype), state["linear.weight"].float().to(dtype))
    assert assert_same(source, tmp_path / "out").shape[1] == 7


def saved(encoder: Path, directory: Path, *modules: torch.nn.Module, **config: Any) -> Path:
    """What the installed sentence-transformers saves of these modules, every parameter random."""
    torch.manual_seed(3)
    transformer = Transformer(str(encoder))
    for name, value in config.items():
        setattr(transformer.model.config, name, value)
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter.copy_(torch.rand_like(parameter) + 0.2)
    SentenceTransformer(modules=[transformer, *modules], device="cpu").save_pretrained(
        str(directory), create_model_card=False
    )
    return directory


MODULES: dict[str, tuple[Callable[[], list[torch.nn.Module]], dict[str, Any]]] = {
    "LayerNorm": (lambda: [Pooling(48), LayerNorm(48)], {}),
    "Dropout": (lambda: [Pooling(48, "cls"), Dropout(0.5), Normalize()], {}),
    "Dense and LayerNorm": (lambda: [Pooling(48), Dense(48, 9), LayerNorm(9), Dropout(), Normalize()], {}),
    "WeightedLayerPooling": (
        lambda: [WeightedLayerPooling(48, num_hidden_layers=3, layer_start=1), Pooling(48)],
        {"output_hidden_states": True},
    ),
    "WeightedLayerPooling of all layers": (
        lambda: [WeightedLayerPooling(48, num_hidden_layers=3, layer_start=0), Pooling(48, "cls"), Normalize()],
        {"output_hidden_states": True},
    ),
    "WeightedLayerPooling without hidden states": (
        lambda: [WeightedLayerPooling(48, num_hidden_layers=3, layer_start=1), Pooling(48)], {}
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MODULES)
def test_modules_run_as_in_sentence_transformers(case: str, encoder: Path, tmp_path: Path) -> None:
    modules, config = MODULES[case]
    source = saved(encoder, tmp_path / "st", *modules(), **config)
    convert(source, tmp_path / "out", verify=False)
    assert_same(source, tmp_path / "out")


def test_a_mix_of_other_layers_is_refused_before_it_is_written(encoder: Path, tmp_path: Path) -> None:
    mix = WeightedLayerPooling(48, num_hidden_layers=12)
    source = saved(encoder, tmp_path / "st", mix, Pooling(48), output_hidden_states=True)
    with pytest.raises(OutputError, match=r"made for 13 hidden states, and this model has 4; nothing was written"):
        convert(source, tmp_path / "out", verify=False)
    assert not (tmp_path / "out").exists()


# Pooling in both spellings

FLAGS = ["cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"]


@pytest.mark.parametrize("mode", Pooling.POOLING_MODES)
@pytest.mark.parametrize("old", [True, False])
def test_pooling_is_written_in_both_spellings(mode: str, old: bool, encoder: Path, tmp_path: Path) -> None:
    if old:
        index = Pooling.POOLING_MODES.index(mode)
        source = layout(encoder, tmp_path / "st", "0_Transformer", {f"pooling_mode_{FLAGS[index]}": True})
    else:
        source = saved(encoder, tmp_path / "st", Pooling(48, mode, include_prompt=False))
    convert(source, tmp_path / "out", verify=False)
    written = json.loads((tmp_path / "out/1_Pooling/config.json").read_text())
    flags = {f"pooling_mode_{flag}": m == mode for flag, m in zip(FLAGS, Pooling.POOLING_MODES, strict=True)}
    assert written == {
        "word_embedding_dimension": 48, **flags, "pooling_mode": mode, **({} if old else {"include_prompt": False})
    }  # fmt: skip
    assert_same(source, tmp_path / "out")


@pytest.mark.parametrize("modes", [("cls", "mean"), ("mean", "cls"), ("max", "mean", "lasttoken")], ids=str)
def test_several_strategies_keep_their_order(modes: tuple[Any, ...], encoder: Path, tmp_path: Path) -> None:
    source = saved(encoder, tmp_path / "st", Pooling(48, modes))
    convert(source, tmp_path / "out", verify=False)
    written = json.loads((tmp_path / "out/1_Pooling/config.json").read_text())
    assert ("pooling_mode" in written) is (modes == ("mean", "cls"))  # the flags cannot say that order
    assert_same(source, tmp_path / "out")


def test_spelling_twice_changes_nothing() -> None:
    once = both_spellings({"embedding_dimension": 48, "pooling_mode": "cls"}, Path("x"), 48)
    assert both_spellings(once, Path("x"), 48) == once


# What cannot run, and what is damaged


def test_a_module_that_is_not_computed_here_does_not_stop_the_encoder(encoder: Path, tmp_path: Path) -> None:
    source = layout(encoder, tmp_path / "st", "0_Transformer", {}, ("2_CNN", "CNN"))
    result = convert(source, tmp_path / "out", verify=True)
    why = "modules.json: module 'sentence_transformers.models.CNN' is not known"
    assert any(note.startswith(f"SentenceEncoder does not run on these files ({why}") for note in result.notes)
    assert "SentenceEncoder.from_pretrained" not in (tmp_path / "out/README.md").read_text()
    effects = {reading.loader.package: reading.effect for reading in result.readings}
    assert effects["sentence-transformers"] == effects["mlx-embeddings"] == effects["mlx-vlm"] == DIFFERS
    with pytest.raises(UnsupportedModuleError, match=r"module 'sentence_transformers\.models\.CNN' is not known"):
        SentenceEncoder.from_pretrained(tmp_path / "out")


def test_a_folder_of_a_module_gets_a_name_that_every_loader_looks_for(encoder: Path, tmp_path: Path) -> None:
    source = layout(encoder, tmp_path / "st", "0_Transformer", {"pooling_mode_max_tokens": True})
    (source / "1_Pooling").rename(source / "pooling")
    entries = json.loads((source / "modules.json").read_text())
    entries[1]["path"] = "pooling"
    (source / "modules.json").write_text(json.dumps(entries))
    convert(source, tmp_path / "out", verify=False)
    assert (tmp_path / "out/1_Pooling/config.json").is_file()
    assert_same(source, tmp_path / "out")


WRONG = [(file, field, value)
    for file, fields in {
        "1_Pooling/config.json": ["pooling_mode", "pooling_mode_cls_token", "include_prompt"],
        "sentence_bert_config.json": ["max_seq_length", "do_lower_case", "modality_config", "model_args",
                                      "tokenizer_args", "config_args", "transformer_task", "processing_kwargs"],
        "config_sentence_transformers.json": ["model_type", "prompts", "default_prompt_name", "similarity_fn_name",
                                              "truncate_dim"],
        "2_Dense/config.json": ["in_features", "out_features", "bias", "activation_function", "use_residual",
                                "module_input_name"],
        "3_LayerNorm/config.json": ["dimension"],
        "modules.json": ["path", "type"],
    }.items() for field in fields for value in ([{}], {"text": [1]}, 1.5, "\ud800", -1, [["cls"]])
]  # fmt: skip


@pytest.fixture(scope="session")
def whole(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted model with every file that may be damaged."""
    directory = tmp_path_factory.mktemp("whole")
    source = saved(encoder, directory / "st", Pooling(48), Dense(48, 9), LayerNorm(9), Normalize())
    convert(source, directory / "out", verify=False)
    return directory / "out"


@pytest.mark.parametrize(("file", "field", "value"), WRONG, ids=str)
def test_a_field_of_the_wrong_type_is_one_line(file: str, field: str, value: Any, whole: Path, tmp_path: Path) -> None:
    directory = tmp_path / "m"
    shutil.copytree(whole, directory)
    content = json.loads((directory / file).read_text()) if (directory / file).is_file() else {}
    if isinstance(content, list):
        content[1][field] = value
    else:
        content[field] = value
    if field == "pooling_mode_cls_token":
        del content["pooling_mode"]
    (directory / file).write_text(json.dumps(content))
    with pytest.raises(SentenceModuleError) as caught:
        read_sentence_plan(directory)
    message = str(caught.value)
    assert str(directory) in message
    assert "\n" not in message
    assert all(character.isprintable() for character in message)


def test_damaged_sentence_files_stop_a_conversion_with_the_fix(encoder: Path, tmp_path: Path) -> None:
    source = layout(encoder, tmp_path / "st", "0_Transformer", {"pooling_mode_cls_token": "yes"})
    with pytest.raises(SentenceModuleError, match=r"st/1_Pooling: pooling_mode_cls_token must be true or false"):
        convert(source, tmp_path / "out", verify=False)
    assert not (tmp_path / "out").exists()


def test_calibration_pools_as_the_source_does_whatever_else_it_has(encoder: Path, tmp_path: Path) -> None:
    source = layout(encoder, tmp_path / "st", "0_Transformer", {"pooling_mode_cls_token": True}, ("2_CNN", "CNN"))
    assert pooling_of(open_source(str(source)).root) == ("cls",)


def test_modules_json_that_names_no_folder_that_there_is(encoder: Path, tmp_path: Path) -> None:
    source = layout(encoder, tmp_path / "st", "0_Transformer", {})
    (source / "0_Transformer").rename(source / "elsewhere")
    with pytest.raises(SourceError, match=r"0_Transformer: cannot be read: No such file or directory; fix: "):
        convert(source, tmp_path / "out", verify=False)
