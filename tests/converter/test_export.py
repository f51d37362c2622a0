"""Convert, export, and load with transformers: the same tensors bit for bit, the same outputs, nothing missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from converter import cli
from converter.convert import convert
from converter.export.checkpoint import ExportError, export
from mlxbert.errors import MLXBertError
from mlxbert.files.output_file import manifest_problems
from mlxbert.models.architecture import HeadKind
from tests.support.tiny import ALL_CLASSES, declared_of, save_tiny, tiny_model, write_vocab

INPUTS = {
    "input_ids": torch.tensor([[2, 7, 31, 90, 12, 3], [2, 64, 5, 3, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]),
    "token_type_ids": torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 0, 0]]),
}
FORMS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ALL_CLASSES),
    ("BertModel", {"pooler": False}),
    ("BertForPreTraining", {"tie_word_embeddings": False}),
    ("BertForMaskedLM", {"tie_word_embeddings": False}),
    ("BertForSequenceClassification", {"num_labels": 5}),
]


def outputs(model: Any) -> dict[str, torch.Tensor]:
    declared, inputs = declared_of(type(model).__name__), dict(INPUTS)
    if not declared.has_token_types:
        del inputs["token_type_ids"]
    inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, model.config.pad_token_id)
    if type(model).__name__ == declared.head_of(HeadKind.CHOICE):
        inputs = {name: tensor[None] for name, tensor in inputs.items()}
    with torch.no_grad():
        given = model(**inputs, output_hidden_states=True)
    states = {f"hidden_states.{i}": state for i, state in enumerate(given.hidden_states)}
    return states | {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


def load_strictly(directory: Path, architecture: str, **options: Any) -> Any:
    model, info = getattr(transformers, architecture).from_pretrained(directory, output_loading_info=True, **options)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert not info["error_msgs"]
    return model.eval()


def round_trip(source: Path, directory: Path, **options: Any) -> Path:
    convert(source, directory / "mlx", verify=False, **options)
    return export(directory / "mlx", directory / "back")


@pytest.mark.parametrize(("architecture", "options"), FORMS, ids=lambda value: str(value))
def test_float32_comes_back_bit_for_bit(tmp_path: Path, architecture: str, options: dict[str, Any]) -> None:
    original = save_tiny(tmp_path / "source", architecture, **options)
    back = round_trip(tmp_path / "source", tmp_path)

    before, after = load_file(tmp_path / "source/model.safetensors"), load_file(back / "model.safetensors")
    assert set(after) == set(before)
    for name, tensor in before.items():
        assert same_bits(after[name], tensor), name

    flags = {"add_pooling_layer": False} if options.get("pooler") is False else {}
    loaded = load_strictly(back, architecture, **flags)
    state = loaded.state_dict()
    assert set(state) == set(original.state_dict())
    for name, tensor in original.state_dict().items():
        assert same_bits(state[name], tensor), name
    # Tensors of a mapped file lie at any address, and torch's sums of a few values depend on their alignment.
    for model in (original, loaded):
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
    expected = outputs(original)
    for name, tensor in outputs(loaded).items():
        assert torch.equal(tensor, expected[name]), name

    config = json.loads((back / "config.json").read_text())
    assert config == json.loads((tmp_path / "source/config.json").read_text())
    with safe_open(back / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    files = {path.name for path in (tmp_path / "source").iterdir()} - {"generation_config.json"}
    assert {path.name for path in back.iterdir()} - {"generation_config.json"} == files | {"manifest.json"}
    for name in files - {"model.safetensors", "config.json"}:
        assert (back / name).read_bytes() == (tmp_path / "source" / name).read_bytes()
    assert manifest_problems(back) == []


def test_a_legacy_pickle_comes_back_with_todays_names(tmp_path: Path) -> None:
    """gamma and beta, a position_ids buffer and the tied copies, as bert-base-uncased's pytorch_model.bin has them."""
    source = tmp_path / "source"
    original = tiny_model("BertForPreTraining")
    original.config.save_pretrained(source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "architectures": ["BertForPreTraining"]}))
    write_vocab(source / "vocab.txt", original.config.vocab_size)
    state = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in original.state_dict().items()
    }
    state["bert.embeddings.position_ids"] = torch.arange(64)[None]
    torch.save(state, source / "pytorch_model.bin")
    back = round_trip(source, tmp_path)
    loaded = load_strictly(back, "BertForPreTraining").state_dict()
    for name, tensor in original.state_dict().items():
        assert same_bits(loaded[name], tensor), name


@pytest.mark.parametrize("architecture", ["BertModel", "BertForMaskedLM"])
def test_a_source_that_names_no_class_comes_back_without_one(tmp_path: Path, architecture: str) -> None:
    source = tmp_path / "source"
    save_tiny(source, architecture)
    config = json.loads((source / "config.json").read_text())
    del config["architectures"]
    (source / "config.json").write_text(json.dumps(config))
    back = round_trip(source, tmp_path)
    assert json.loads((back / "config.json").read_text()) == config
    assert set(load_file(back / "model.safetensors")) == set(load_file(source / "model.safetensors"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_exported_as_it_was_converted(tmp_path: Path, dtype: str) -> None:
    original = save_tiny(tmp_path / "source", "BertForTokenClassification")
    back = round_trip(tmp_path / "source", tmp_path, dtype=dtype)
    assert json.loads((back / "config.json").read_text())["dtype"] == dtype
    tensors = load_file(back / "model.safetensors")
    for name, tensor in original.state_dict().items():
        assert torch.equal(tensors[name], tensor.to(getattr(torch, dtype))), name
    assert load_strictly(back, "BertForTokenClassification").dtype == getattr(torch, dtype)


def test_the_real_minilm_with_its_sentence_transformers_files(tmp_path: Path, minilm_source: Path) -> None:
    back = round_trip(minilm_source, tmp_path)
    before = load_file(minilm_source / "model.safetensors")
    after = load_file(back / "model.safetensors")
    assert set(before) - set(after) <= {"embeddings.position_ids"}
    for name, tensor in after.items():
        assert same_bits(tensor, before[name]), name
    from sentence_transformers import SentenceTransformer

    texts = ["A cat sits on the mat.", "Stock markets fell sharply today."]
    expected = SentenceTransformer(str(minilm_source), device="cpu").encode(texts)
    assert np.array_equal(SentenceTransformer(str(back), device="cpu").encode(texts), expected)


def test_what_was_exported_converts_again(tmp_path: Path) -> None:
    save_tiny(tmp_path / "source", "BertForPreTraining")
    back = round_trip(tmp_path / "source", tmp_path)
    again = convert(back, tmp_path / "again", verify=False).path
    for name in ("model.safetensors", "heads.safetensors"):
        assert (again / name).read_bytes() == (tmp_path / "mlx" / name).read_bytes()


class TestRefusals:
    @pytest.fixture
    def converted(self, tmp_path: Path) -> Path:
        save_tiny(tmp_path / "source", "BertForSequenceClassification")
        return convert(tmp_path / "source", tmp_path / "mlx", verify=False).path

    def edit_config(self, directory: Path, edit: Callable[[dict[str, Any]], object]) -> None:
        config = json.loads((directory / "config.json").read_text())
        edit(config)
        (directory / "config.json").write_text(json.dumps(config))

    def message(self, converted: Path, out: Path, kind: type[MLXBertError] = ExportError) -> str:
        with pytest.raises(kind) as caught:
            export(converted, out)
        assert not out.exists()
        return str(caught.value)

    def test_no_such_directory(self, tmp_path: Path) -> None:
        absent = tmp_path / "absent"
        text = self.message(absent, tmp_path / "out")
        assert text == f"{absent}: no such directory; fix: give one that mlxbert-convert wrote"
        absent.write_text("id,text\n")
        assert self.message(absent, tmp_path / "out").startswith(f"{absent}: a file; fix: give one that")

    def test_a_directory_that_was_never_converted(self, tmp_path: Path) -> None:
        save_tiny(tmp_path / "source")
        assert self.message(tmp_path / "source", tmp_path / "out") == (
            f'{tmp_path / "source"}: was not written by mlxbert-convert (no "mlxbert" in its config.json); '
            "fix: give a converted directory"
        )

    def test_a_quantized_one(self, converted: Path, tmp_path: Path) -> None:
        self.edit_config(converted, lambda config: config.update(quantization={"bits": 4, "group_size": 64}))
        assert self.message(converted, tmp_path / "out") == (
            f"{converted}: is quantized, which has no PyTorch form; fix: export the unquantized conversion, "
            "or mlxbert-convert … --dequantize first"
        )

    def test_a_head_that_mlxbert_trained(self, converted: Path, tmp_path: Path) -> None:
        save_file({"head.linear.weight": torch.ones(2, 2)}, converted / "heads.safetensors")
        assert self.message(converted, tmp_path / "out") == (
            f"{converted}: heads.safetensors has a head that mlxbert trained, and config.json lacks its settings; "
            "fix: save the model again\n  head.linear.weight"
        )
        self.edit_config(converted, lambda config: config["mlxbert"].update(head={"name": "binary"}))
        assert self.message(converted, tmp_path / "out") == (
            f"{converted}: heads.safetensors has a head that mlxbert trained, which this function does not write; "
            "fix: mlxbert-export, or export_directory(…)\n  head.linear.weight"
        )

    def test_a_truncated_one(self, converted: Path, tmp_path: Path) -> None:
        data = (converted / "model.safetensors").read_bytes()
        (converted / "model.safetensors").write_bytes(data[:-100])
        assert "is truncated" in self.message(converted, tmp_path / "out", MLXBertError)

    def test_an_output_inside_the_converted_one(self, converted: Path) -> None:
        text = self.message(converted, converted / "hf", MLXBertError)
        assert text.startswith(f"{converted / 'hf'}: lies inside the source {converted}")

    def test_an_output_that_exists(self, converted: Path, tmp_path: Path) -> None:
        out = export(converted, tmp_path / "out")
        with pytest.raises(MLXBertError, match="exists; replace it with --overwrite"):
            export(converted, out)
        assert export(converted, out, overwrite=True) == out

    def test_the_command_exits_with_2_and_one_line(self, tmp_path: Path) -> None:
        run = CliRunner().invoke(cli.export, [str(tmp_path / "absent"), "-o", str(tmp_path / "out")])
        assert run.exit_code == 2
        assert "no such directory; fix: give one that mlxbert-convert wrote" in run.output
        assert len(run.output.splitlines()) == 1

    def test_the_command_exports(self, converted: Path, tmp_path: Path) -> None:
        run = CliRunner().invoke(cli.export, [str(converted), "-o", str(tmp_path / "out")])
        assert run.exit_code == 0, run.output
        assert f"Exported to {tmp_path / 'out'}" in run.output
        load_strictly(tmp_path / "out", "BertForSequenceClassification")
