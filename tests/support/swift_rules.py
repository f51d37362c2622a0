"""What mlx-swift-lm's MLXEmbedders asks of a BERT, RoBERTa or XLM-RoBERTa directory, and where its numbers are others.

Read from its source (commit 14414441, 2026-08-22: `MLXEmbedders/Models/Bert.swift`, `MLXEmbedders/Pooling.swift`,
`MLXLMCommon/Load.swift`, `MLXLMCommon/BaseConfiguration.swift`); there is no Swift here to run. It shares no code with
the project's own table, which it is there to check.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# In this order, as its `sanitize` replaces them wherever they stand in a tensor's name.
_RENAMED = {
    r"^(bert|roberta)\.": "",
    r"\.layer\.": ".layers.",
    r"\.self\.(key|query|value)\.": r".\1_proj.",
    r"\.attention\.output\.dense\.": ".attention.out_proj.",
    r"\.attention\.output\.LayerNorm\.": ".ln1.",
    r"\.output\.LayerNorm\.": ".ln2.",
    r"\.intermediate\.dense\.": ".linear1.",
    r"\.output\.dense\.": ".linear2.",
    r"\.LayerNorm\.": ".norm.",
    r"^pooler\.dense\.": "pooler.",
}
# Of `EmbedderTypeRegistry` (`MLXEmbedders/ModelFactory.swift`), those that are `BertModel`s.
_MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "distilbert")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
_POOLING = ("cls_token", "mean_tokens", "max_tokens", "lasttoken")


def swift_problems(directory: Path) -> list[str]:
    """What would stop the directory from loading, or give other numbers, one line each."""
    config = json.loads((directory / "config.json").read_text("utf-8"))
    tensors = {_swift_name(name): tuple(shape) for name, shape in _stored(directory)}
    tensors.pop("embeddings.position_ids", None)
    return [
        *_config_problems(config),
        *_layer_problems(config, tensors),
        *_parameter_problems(config, tensors),
        *_pooling_problems(directory),
        *(
            f"refuses: no {name}"
            for name in ("tokenizer.json", "tokenizer_config.json")
            if not (directory / name).is_file()
        ),
    ]


def _swift_name(name: str) -> str:
    for pattern, replacement in _RENAMED.items():
        name = re.sub(pattern, replacement, name)
    return name


def _stored(directory: Path) -> Iterator[tuple[str, list[int]]]:
    index = json.loads((directory / "model.safetensors.index.json").read_text("utf-8"))
    for file in sorted(set(index["weight_map"].values())):
        with (directory / file).open("rb") as stream:
            header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
        yield from ((name, entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _labels(config: dict[str, Any]) -> int | None:
    """Outputs of the classifier that it builds; None: it builds none."""
    if not any("ForSequenceClassification" in name for name in config.get("architectures") or []):
        return None
    return config.get("num_labels") or len(config.get("id2label") or {}) or 1


def _matrices(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Every linear and embedding layer that it builds: rows and width."""
    size, inner = config["hidden_size"], config["intermediate_size"]
    found = {
        "embeddings.word_embeddings": (config["vocab_size"], size),
        "embeddings.position_embeddings": (config["max_position_embeddings"], size),
        "embeddings.token_type_embeddings": (config["type_vocab_size"], size),
    }
    labels = _labels(config)
    # RoBERTa's classifier (`BertRerankerModel`) is built without a pooler, with a layer of its own in its place.
    has_own_layer = labels is not None and config["model_type"] in ("roberta", "xlm-roberta")
    found["classifier.dense" if has_own_layer else "pooler"] = (size, size)
    for i in range(config["num_hidden_layers"]):
        for name in ("query_proj", "key_proj", "value_proj", "out_proj"):
            found[f"encoder.layers.{i}.attention.{name}"] = (size, size)
        found |= {f"encoder.layers.{i}.linear1": (inner, size), f"encoder.layers.{i}.linear2": (size, inner)}
    if labels is not None:
        found["classifier.out_proj" if has_own_layer else "classifier"] = (labels, size)
    return found


def _config_problems(config: dict[str, Any]) -> Iterator[str]:
    if config["model_type"] not in _MODEL_TYPES:
        yield f"refuses: there is no model {config['model_type']}"
    if config.get("hidden_act", "gelu") not in ("gelu", "gelu_python"):
        yield "differs: it always computes gelu"
    if not all(isinstance(name, str) for name in (config.get("id2label") or {}).values()):
        yield "refuses: id2label with values that are no text"
    if not all(type(index) is int for index in (config.get("label2id") or {}).values()):
        yield "refuses: label2id with values that are no whole number"


def _layer_problems(config: dict[str, Any], tensors: dict[str, tuple[int, ...]]) -> Iterator[str]:
    """A packed layer is built with the bits under its path in Swift, else with the default ones."""
    quantization = config.get("quantization")
    if quantization is None:
        return
    own = {path: value for path, value in quantization.items() if isinstance(value, dict | bool)}
    matrices = _matrices(config)
    for path, (rows, width) in matrices.items():
        if f"{path}.scales" not in tensors:
            continue
        how = own.get(path, quantization)
        if how is False:
            yield f"refuses: {path} is packed, and its entry says that it is not"
        elif tensors[f"{path}.weight"] != (rows, width * how["bits"] // 32) or tensors[f"{path}.scales"] != (
            rows,
            width // how["group_size"],
        ):
            yield f"refuses: {path} is not packed in {how['bits']} bits by {how['group_size']}"


def _parameter_problems(config: dict[str, Any], tensors: dict[str, tuple[int, ...]]) -> Iterator[str]:
    """It verifies that every parameter is there, and no other."""
    matrices = _matrices(config)
    expected: dict[str, tuple[int, ...] | None] = {}
    for path, shape in matrices.items():
        packed = f"{path}.scales" in tensors
        expected[f"{path}.weight"] = None if packed else shape
        if not path.startswith("embeddings."):
            expected[f"{path}.bias"] = (shape[0],)
        if packed:
            expected |= {name: None for leaf in ("scales", "biases") if (name := f"{path}.{leaf}") in tensors}
    norms = [
        "embeddings.norm",
        *(f"encoder.layers.{i}.ln{n}" for i in range(config["num_hidden_layers"]) for n in (1, 2)),
    ]
    expected |= {f"{norm}.{leaf}": (config["hidden_size"],) for norm in norms for leaf in ("weight", "bias")}
    yield from (f"refuses: no {name}" for name in expected if name not in tensors)
    yield from (f"refuses: {name} is not used" for name in tensors if name not in expected)
    yield from (
        f"refuses: {name} is {tensors[name]}, expected {shape}"
        for name, shape in expected.items()
        if shape is not None and tensors.get(name, shape) != shape
    )


def _pooling_problems(directory: Path) -> Iterator[str]:
    """It reads 1_Pooling/config.json alone, in the older spelling; where it cannot, it gives the pooler's output."""
    modules = directory / "modules.json"
    if not modules.is_file():
        return
    entries = json.loads(modules.read_text("utf-8"))
    kinds = [entry["type"].rpartition(".")[2] for entry in entries]
    if others := set(kinds) - {"Transformer", "Pooling", "Normalize"}:
        yield f"differs: {', '.join(sorted(others))} is not computed"
    if [entry["path"] for entry in entries if entry["type"].endswith(".Pooling")][:1] != ["1_Pooling"]:
        yield "differs: no pooling in 1_Pooling"
        return
    pooling = json.loads((directory / "1_Pooling/config.json").read_text("utf-8"))
    if type(pooling.get("word_embedding_dimension")) is not int:
        yield "differs: without word_embedding_dimension the pooling is not read"
        return
    on = [name for name in _POOLING if pooling.get(f"pooling_mode_{name}")]
    all_on = [name for name in pooling if name.startswith("pooling_mode_") and pooling[name] is True]
    if len(all_on) != 1 or len(on) != 1:
        yield f"differs: of the modes {all_on} it takes {(on or ['the first token'])[0]}"
    elif on == ["cls_token"]:
        yield "differs: cls is the pooler's output"
    elif on == ["max_tokens"]:
        yield "differs: padding counts as 0 in the maximum"
    if pooling.get("include_prompt") is False:
        yield "differs: the prompt is pooled too"
