"""The whole, honest inputs that the fuzz suite damages: built once, small."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 80,
    "max_position_embeddings": 32,
}  # fmt: skip
FORMS = (
    *("safetensors", "shards", "zip", "legacy", "lightning", "npz", "npz compressed"),
    *("sentence-transformers", "sentencepiece"),
)
CONVERTED = ("float32", "4bit", "classifier", "sentences")
TABLES = ("train.csv", "train.tsv", "train.jsonl", "train.json", "train.parquet", "train.csv.gz")


def build(root: Path) -> None:
    """Write every sample below `root`: `forms/`, `adapter`, `converted/`, `runs/a`, `tables/`."""
    _forms(root / "forms")
    _adapter(root / "adapter")
    _converted(root)
    _runs(root)
    _tables(root / "tables")


def _forms(root: Path) -> None:
    import torch

    from tests.support.tiny import save_tiny

    for form in FORMS:
        directory = root / form
        model = save_tiny(directory, "XLMRobertaModel" if form == "sentencepiece" else "BertModel", **SIZES)
        state = model.state_dict()
        weights = directory / "model.safetensors"
        if form == "shards":
            model.save_pretrained(directory, max_shard_size="12KB")
            weights.unlink(missing_ok=True)
        elif form in ("zip", "legacy"):
            torch.save(state, directory / "pytorch_model.bin", _use_new_zipfile_serialization=form == "zip")
            weights.unlink()
        elif form == "lightning":
            held = {f"model.bert.{key}": value for key, value in state.items()}
            torch.save(
                {"epoch": 1, "hyper_parameters": {"lr": 0.1}, "state_dict": held}, directory / "pytorch_model.bin"
            )
            weights.unlink()
        elif form.startswith("npz"):
            save = np.savez if form == "npz" else np.savez_compressed
            save(directory / "weights.npz", **{key: value.numpy() for key, value in state.items()})
            weights.unlink()
        elif form == "sentence-transformers":
            _sentence_files(directory)
        elif form == "sentencepiece":
            (directory / "tokenizer.json").unlink()


def _sentence_files(directory: Path) -> None:
    from safetensors.numpy import save_file

    kind = "sentence_transformers.models."
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize")]
    listed = [{"idx": i, "name": str(i), "path": path, "type": kind + name} for i, (path, name) in enumerate(modules)]
    (directory / "modules.json").write_text(json.dumps(listed))
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False})
    )
    (directory / "2_Dense").mkdir()
    settings: dict[str, Any] = {"in_features": 32, "out_features": 8, "bias": True}
    settings["activation_function"] = "torch.nn.modules.activation.Tanh"
    (directory / "2_Dense" / "config.json").write_text(json.dumps(settings))
    rng = np.random.default_rng(0)
    arrays = {"linear.weight": rng.normal(size=(8, 32)), "linear.bias": rng.normal(size=8)}
    save_file({name: one.astype("f4") for name, one in arrays.items()}, directory / "2_Dense" / "model.safetensors")


def _adapter(directory: Path) -> None:
    """Write an adapter in PEFT's format, with a classifier, of the encoder in `forms/safetensors`."""
    from safetensors.numpy import save_file

    directory.mkdir()
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "r": 2,
        "lora_alpha": 4,
        "lora_dropout": 0.1,
        "bias": "none",
    }
    config |= {"use_dora": True, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {"value": 3}}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    shapes = {"classifier.weight": (3, 32), "classifier.bias": (3,)}
    for name in ("query", "value"):
        path = f"bert.encoder.layer.0.attention.self.{name}"
        shapes |= {f"{path}.lora_A.weight": (2, 32), f"{path}.lora_B.weight": (32, 2)}
        shapes[f"{path}.lora_magnitude_vector"] = (32,)
    arrays = {f"base_model.model.{name}": rng.normal(size=shape).astype("f4") for name, shape in shapes.items()}
    save_file(arrays, directory / "adapter_model.safetensors")


def _converted(root: Path) -> None:
    from converter.convert import convert
    from tests.support.tiny import save_tiny

    made = root / "converted"
    made.mkdir()
    convert(root / "forms" / "safetensors", made / "float32", verify=False)
    convert(root / "forms" / "safetensors", made / "4bit", verify=False, quantize="4bit")
    save_tiny(root / "classifier", "BertForSequenceClassification", **SIZES)
    convert(root / "classifier", made / "classifier", verify=False)
    convert(root / "forms" / "sentence-transformers", made / "sentences", verify=False)


def _runs(root: Path) -> None:
    import mlxbert
    from tests.support.run_samples import QUICK, options, sample

    frame = sample("multiclass", rows=24)
    told = {**options("multiclass"), **QUICK, "epochs": 1}
    mlxbert.train(frame, model=root / "converted" / "float32", out=root / "runs" / "a", **told)
    frame.drop(columns="y").to_csv(root / "test.csv", index=False)


def _tables(root: Path) -> None:
    from tests.support.run_samples import sample

    root.mkdir()
    frame = sample("binary", rows=16)
    frame.to_csv(root / "train.csv", index=False)
    frame.to_csv(root / "train.tsv", index=False, sep="\t")
    frame.to_json(root / "train.jsonl", orient="records", lines=True)
    frame.to_json(root / "train.json", orient="records")
    frame.to_parquet(root / "train.parquet")
    frame.to_csv(root / "train.csv.gz", index=False)


def copy_sample(sample: Path, place: Path) -> Path:
    """Copy a sample, a file or a directory, into `place/in`; returns where it is."""
    copied = place / "in" / sample.name
    if sample.is_dir():
        shutil.copytree(sample, copied, symlinks=True)
    else:
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(sample, copied)
    return copied


def use_of(value: Any) -> None:
    """Look at every number of an array, so that lazily read bytes are read."""
    np.asarray(value).sum()
