"""One trained model as PyTorch: what transformers has a class for, and the rest as tensors and settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from converter.export.checkpoint import PYTORCH_METADATA, ExportError
from heads.regression import TargetScaler
from heads.time_series import decompose
from mlxbert.checkpoint import is_license_file, read_config
from mlxbert.files.output_directory import OutputDirectory
from mlxbert.files.safetensors import PlannedTensor, plan_shards, shard_index
from mlxbert.model_tensors import planned_tensors, stored_dtype
from mlxbert.pooling import pooling_settings
from mlxbert.tokenization.files import TOKENIZER_FILES
from mlxbert.with_head import BertWithHead

SEQUENCE, ENCODER = "BertForSequenceClassification", "BertModel"
HEADS = ("binary", "multiclass", "multilabel", "regression", "ordinal", "time_series")
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
PROBLEM_TYPES = {
    # One logit: transformers' pipelines read it by a sigmoid, as ours.
    "binary": "multi_label_classification",
    "multilabel": "multi_label_classification",
    "multiclass": "single_label_classification",
    "regression": "regression",
}


@dataclass(frozen=True)
class MemberExport:
    """A trained model, ready to be written.

    Attributes:
        model: it.
        class_name: the transformers class that its weights are written as.
        head: `head.json`.
    """

    model: BertWithHead
    class_name: str
    head: dict[str, Any]

    @property
    def why(self) -> str:
        """Which class, and why that one."""
        name, pooling = self.model.head.head_name, self.head["pooling"]["name"]
        if self.class_name == SEQUENCE:
            return f"{SEQUENCE}: pooling 'pooler' and a linear head"
        return f"{ENCODER} and head.safetensors: transformers has no class for head {name!r} on pooling {pooling!r}"


def read_member(directory: Path) -> MemberExport:
    """The model in a directory that `BertWithHead.save` wrote.

    Raises:
        CheckpointError: it is damaged, or quantized.
        ExportError: its head is none of the six that inference.py knows.
    """
    stored = str(read_config(directory).get("dtype"))
    model = BertWithHead.load(directory, dtype=DTYPES.get(stored))  # as it is, not as a CPU computes
    head: Any = model.head
    if head.head_name not in HEADS or not type(head).__module__.startswith("heads."):
        raise ExportError(
            f"{directory}: the head {head.head_name!r} comes from {type(head).__module__}, and inference.py knows "
            f"{', '.join(HEADS)}; fix: write its predictions with mlxbert predict"
        )
    sequence = _is_sequence_classifier(model)
    return MemberExport(model, SEQUENCE if sequence else ENCODER, _head_settings(model, sequence))


def write_member(output: OutputDirectory, member: MemberExport, folder: str) -> dict[str, Any]:
    """Write the model under `folder` ("" for the output itself) but for config.json, which is returned."""
    model, sequence = member.model, member.class_name == SEQUENCE
    tensors = _sequence_tensors(model) if sequence else planned_tensors(model.core)
    shards = plan_shards(tensors)
    for name, shard in shards.items():
        output.write_safetensors(folder + name, shard, metadata=PYTORCH_METADATA)
    if len(shards) > 1:
        output.write_json(f"{folder}model.safetensors.index.json", shard_index(shards))
    if not sequence:
        output.write_safetensors(f"{folder}head.safetensors", list(_rest(model)), metadata=PYTORCH_METADATA)
    output.write_json(f"{folder}head.json", member.head)
    assert model.source is not None  # it was loaded
    for file in model.source.iterdir():
        if file.is_file() and (file.name in TOKENIZER_FILES or is_license_file(file.name)):
            output.copy(folder + file.name, file)
    return _config(member, {tensor.dtype for tensor in tensors})


def _is_sequence_classifier(model: BertWithHead) -> bool:
    """Whether transformers' pooler, dropout and one linear layer give these logits, or values, as they are."""
    head: Any = model.head
    if pooling_settings(model.pooling) != {"name": "pooler"} or head.head_name not in PROBLEM_TYPES:
        return False
    return head.head_name != "regression" or not (head.log_targets or head.objective == "gaussian")


def _sequence_tensors(model: BertWithHead) -> list[PlannedTensor]:
    """The encoder below `bert.`, and the linear layer: of a regression with the target scaler multiplied in."""
    encoder = planned_tensors(model.core, "bert.")
    head: Any = model.head
    if head.head_name != "regression":
        return encoder + [
            PlannedTensor(tensor.name.replace("output.", "classifier."), tensor.shape, tensor.dtype, tensor.read)
            for tensor in planned_tensors(head)
        ]
    weight, bias = (_float64(head.output[name]) for name in ("weight", "bias"))
    scaler = _scaler(head)
    scale, center = np.asarray(scaler.scale), np.asarray(scaler.center)
    folded = {"classifier.weight": weight * scale[:, None], "classifier.bias": bias * scale + center}
    return encoder + [_planned(name, array.astype(np.float32)) for name, array in folded.items()]


def _rest(model: BertWithHead) -> Iterator[PlannedTensor]:
    """What head.safetensors holds: every tensor of head and pooling, or what they amount to when nothing learns."""
    head: Any = model.head
    ordered = head.head_name == "ordinal" and head.objective != "corn"
    for tensor in planned_tensors(head, "head."):
        if not ordered or tensor.name.startswith("head.output."):
            yield tensor
    yield from planned_tensors(model.pooling, "pooling.")
    if ordered:
        yield _planned("head.thresholds", np.array(head.thresholds, np.float32))
    if head.head_name == "time_series" and head.period:
        for name, matrix in zip(("trend", "seasonal"), stl_matrices(head.window, head.period), strict=True):
            yield _planned(f"history.{name}", matrix)


def stl_matrices(window: int, period: int) -> tuple[np.ndarray, np.ndarray]:
    """Trend and season of a history as matrices (W, W) float64: `history @ matrix`.

    STL without robustness weights only adds and multiplies by constants of the place, so of a history of fixed length
    it is linear: its matrix has what it makes of each unit vector as a row.
    """
    trend, seasonal, _ = decompose(np.eye(window), period, "time_series")
    return trend, seasonal


def _head_settings(model: BertWithHead, sequence: bool) -> dict[str, Any]:
    """`head.json`: what inference.py needs to make predictions of the tensors' logits."""
    head: Any = model.head
    settings: dict[str, Any] = {
        "class": SEQUENCE if sequence else ENCODER,
        "name": head.head_name,
        "pooling": pooling_settings(model.pooling),
        "pooler": model.core.has_pooler,
    }
    if hasattr(head, "classes"):
        settings["classes"] = list(head.classes)
    if head.head_name in ("binary", "multiclass", "multilabel"):
        settings["temperature"] = getattr(head, "temperature", 1.0)
    if head.head_name in ("binary", "multilabel"):
        settings["thresholds"] = list(head.thresholds) if head.head_name == "multilabel" else [head.threshold]
    if head.head_name == "ordinal":
        settings["objective"] = head.objective
    if head.head_name in ("regression", "time_series"):
        settings["targets"] = head.num_targets
        # Of a sequence classifier the logits are the values already.
        settings["scaler"] = None if sequence else _scaler(head).to_dict()
    if head.head_name == "time_series":
        settings |= {name: getattr(head, name) for name in ("horizon", "window", "period", "baseline")}
        settings["calendar"] = list(head.calendar)
    return settings


def _config(member: MemberExport, dtypes: set[str]) -> dict[str, Any]:
    """`config.json`: the encoder's, with the class and dtype that the files have, and its labels."""
    model = member.model
    head: Any = model.head
    assert model.source is not None
    config = {key: value for key, value in read_config(model.source).items() if key != "mlxbert"}
    config["architectures"] = [member.class_name]
    dtype = stored_dtype(model.core) if len(dtypes) == 1 else "float32"  # of a mixture the one that holds every value
    config |= {"dtype": dtype, **({"torch_dtype": dtype} if "torch_dtype" in config else {})}
    if member.class_name != SEQUENCE:
        return config
    labels = _labels(head)
    config["id2label"] = {str(i): label for i, label in enumerate(labels)}
    config["label2id"] = {label: i for i, label in enumerate(labels)}
    config.pop("num_labels", None)  # id2label says it
    config["problem_type"] = PROBLEM_TYPES[head.head_name]
    config["classifier_dropout"] = head.dropout
    return config


def _labels(head: Any) -> list[str]:
    """The name of each logit."""
    if head.head_name == "regression":
        return ["value"] if head.num_targets == 1 else [f"value_{i}" for i in range(head.num_targets)]
    return [str(head.classes[1])] if head.head_name == "binary" else [str(label) for label in head.classes]


def _scaler(head: Any) -> TargetScaler:
    if head.scaler is not None:
        return head.scaler
    if head.scaling == "none" and not head.log_targets:
        return TargetScaler((0.0,), (1.0,))  # one for all columns
    raise ExportError(f"{head.head_name}: the target scaler was never fitted; fix: head.fit_targets, then save again")


def _float64(array: Any) -> np.ndarray:
    return np.array(array.astype(mx.float32)).astype(np.float64)


def _planned(name: str, array: np.ndarray) -> PlannedTensor:
    dtype = {"float32": "F32", "float64": "F64"}[array.dtype.name]
    return PlannedTensor(name, array.shape, dtype, lambda: array)
