"""One trained model as PyTorch: an equivalent class of transformers if there is one, else its encoder and head.

`EXPORTED_HEADS` has an entry for each head that `inference_modules/torch_heads.py` computes. To export a head of your
own, add an entry to both tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from converter.export.checkpoint import PYTORCH_METADATA, ExportError
from heads.regression import TargetScaler
from heads.time_series import decompose
from mlxbert.adapters import merge_adapters
from mlxbert.checkpoint import is_license_file, read_config
from mlxbert.files.output_directory import OutputDirectory
from mlxbert.files.safetensors import PlannedTensor, plan_shards, shard_index
from mlxbert.model_arrays import planned_tensors, stored_dtype
from mlxbert.models.architecture import HeadKind
from mlxbert.pooling import pooling_settings
from mlxbert.tokenization.files import TOKENIZER_FILES
from mlxbert.with_head import BertWithHead

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


# Heads


@dataclass(frozen=True)
class ExportedHead:
    """The parts of a head that are written.

    Attributes:
        settings: a head to its settings in `head.json`, beside its name.
        columns: a head to the number of columns of a submission, by what it holds; the usual one first. A second
            number is one that is possible, too.
        tensors: a head to those of its tensors that are written to `head.safetensors`.
        computed: a head to tensors that are computed from it, written there, too.
        problem_type: transformers' name for a classifier with these logits or values; None: it has none.
        labels: a head to the name of each logit.
        is_folded: whether such a classifier computes values in the user's units, the target scaler in its weights.
    """

    settings: Callable[[Any], dict[str, Any]]
    columns: Callable[[Any], dict[str, tuple[int, ...]]]
    tensors: Callable[[Any], list[PlannedTensor]] = lambda head: planned_tensors(head, "head.")
    computed: Callable[[Any], Iterator[PlannedTensor]] = lambda head: iter(())
    problem_type: str | None = None
    labels: Callable[[Any], list[str]] = lambda head: [str(label) for label in head.classes]
    is_folded: bool = False

    def is_sequence_classifier(self, head: Any) -> bool:
        """Return whether one linear layer computes these logits, or values, as they are."""
        if self.problem_type is None:
            return False
        return not (self.is_folded and (head.log_targets or head.objective == "gaussian"))


def exported_head(head: Any, directory: object) -> ExportedHead:
    """Return the parts of a head that are written; `directory` begins the message of an error.

    Raises:
        ExportError: it is a head of another package, or `inference.py` does not compute it.
    """
    if head.head_name not in EXPORTED_HEADS or not type(head).__module__.startswith("heads."):
        raise ExportError(
            f"{directory}: the head {head.head_name!r} comes from {type(head).__module__}, and inference.py knows "
            f"{', '.join(EXPORTED_HEADS)}; fix: write its predictions with mlxbert predict"
        )
    return EXPORTED_HEADS[head.head_name]


def folded_linear(head: Any) -> dict[str, np.ndarray]:
    """Return a regression's last layer with the target scaler in it, so that it gives values in the user's units."""
    weight, bias = (np.array(head.output[name].astype(mx.float32)).astype(np.float64) for name in ("weight", "bias"))
    scaler = target_scaler(head)
    scale, center = np.asarray(scaler.scale), np.asarray(scaler.center)
    folded = {"weight": weight * scale[:, None], "bias": bias * scale + center}
    return {name: array.astype(np.float32) for name, array in folded.items()}


def target_scaler(head: Any) -> TargetScaler:
    """Return the fitted scaler of a head; an identity scaler if the head's settings ask for none.

    Raises:
        ExportError: the head was never fitted.
    """
    if head.scaler is not None:
        return head.scaler
    if head.scaling == "none" and not head.log_targets:
        return TargetScaler((0.0,), (1.0,))  # one for all columns
    raise ExportError(f"{head.head_name}: the target scaler was never fitted; fix: head.fit_targets, then save again")


def planned_array(name: str, array: np.ndarray) -> PlannedTensor:
    """Return a NumPy array as a tensor to write."""
    dtype = {"float32": "F32", "float64": "F64"}[array.dtype.name]
    return PlannedTensor(name, array.shape, dtype, lambda: array)


def stl_matrices(window: int, period: int) -> tuple[np.ndarray, np.ndarray]:
    """Return trend and season of a history as matrices (W, W) float64: `history @ matrix`.

    STL without robustness weights only adds, and multiplies by constants that depend on the position. So it is linear
    for histories of one length, and row i of its matrix is its result for unit vector i.
    """
    trend, seasonal, _ = decompose(np.eye(window), period, "time_series")
    return trend, seasonal


def _ordinal_tensors(head: Any) -> list[PlannedTensor]:
    """Return the last layer, and with "corn" all others; otherwise `_ordinal_thresholds` replaces the others."""
    tensors = planned_tensors(head, "head.")
    return [tensor for tensor in tensors if head.objective == "corn" or tensor.name.startswith("head.output.")]


def _ordinal_thresholds(head: Any) -> Iterator[PlannedTensor]:
    if head.objective != "corn":
        yield planned_array("head.thresholds", np.array(head.thresholds, np.float32))


def _history_matrices(head: Any) -> Iterator[PlannedTensor]:
    if head.period:
        for name, matrix in zip(("trend", "seasonal"), stl_matrices(head.window, head.period), strict=True):
            yield planned_array(f"history.{name}", matrix)


def _classes(head: Any) -> dict[str, Any]:
    return {"classes": list(head.classes), "temperature": getattr(head, "temperature", 1.0)}


def _numbers(head: Any) -> dict[str, Any]:
    return {"targets": head.num_targets, "scaler": target_scaler(head).to_dict()}


def _series(head: Any) -> dict[str, Any]:
    names = ("horizon", "window", "period", "baseline")
    return {**_numbers(head), **{name: getattr(head, name) for name in names}, "calendar": list(head.calendar)}


def _value_names(head: Any) -> list[str]:
    return ["value"] if head.num_targets == 1 else [f"value_{i}" for i in range(head.num_targets)]


EXPORTED_HEADS = {
    "binary": ExportedHead(
        lambda head: {**_classes(head), "thresholds": [head.threshold]},
        lambda head: {"probabilities": (1,), "labels": (1,)},
        # One logit: transformers' pipelines read it by a sigmoid, as the head does.
        problem_type="multi_label_classification",
        labels=lambda head: [str(head.classes[1])],
    ),
    "multiclass": ExportedHead(
        _classes,
        lambda head: {"labels": (1,), "probabilities": (head.num_outputs,)},
        problem_type="single_label_classification",
    ),
    "multilabel": ExportedHead(
        lambda head: {**_classes(head), "thresholds": list(head.thresholds)},
        lambda head: {"probabilities": (head.num_outputs,), "labels": (head.num_outputs,)},
        problem_type="multi_label_classification",
    ),
    "regression": ExportedHead(
        _numbers,
        lambda head: {"values": (head.num_targets,)},
        problem_type="regression",
        labels=_value_names,
        is_folded=True,
    ),
    "ordinal": ExportedHead(
        lambda head: {"classes": list(head.classes), "objective": head.objective},
        # One column of probabilities is the expected rank.
        lambda head: {"labels": (1,), "probabilities": (head.num_outputs + 1, 1)},
        _ordinal_tensors,
        _ordinal_thresholds,
    ),
    "time_series": ExportedHead(_series, lambda head: {"values": (1,)}, computed=_history_matrices),
}
"""Every head that `inference.py` computes, by its name."""


# The model


@dataclass(frozen=True)
class MemberExport:
    """A trained model, ready to be written.

    Attributes:
        model: the model.
        exported: the parts of its head that are written.
        class_name: the class of transformers that its weights are written for.
        is_whole: whether that class has the head, too.
        head: `head.json`.
    """

    model: BertWithHead
    exported: ExportedHead
    class_name: str
    is_whole: bool
    head: dict[str, Any]

    @property
    def why(self) -> str:
        """The class, and the reason for it."""
        name, pooling = self.model.head.head_name, self.head["pooling"]["name"]
        if self.is_whole:
            return f"{self.class_name}: pooling 'pooler' and a linear head"
        return (
            f"{self.class_name} and head.safetensors: transformers has no class for head {name!r} on pooling "
            f"{pooling!r}"
        )


def read_member(directory: Path, *, base: str | Path | None = None, merge: bool = True) -> MemberExport:
    """Return the model in a directory that `BertWithHead.save` wrote.

    Args:
        directory: of the model.
        base: the base of its adapters, if it has some; None: the recorded place.
        merge: merge its adapters into its weights.

    Raises:
        CheckpointError: it is damaged, or quantized.
        AdapterError: the base of its adapters is not there, or is another one.
        ExportError: inference.py does not know its head.
    """
    stored = str(read_config(directory).get("dtype"))
    # In its own dtype, not the one that a CPU computes.
    model = BertWithHead.load(directory, dtype=DTYPES.get(stored), base=base)
    if merge and model.core.lora is not None:
        merge_adapters(model.core)
    exported = exported_head(model.head, directory)
    pooling = pooling_settings(model.pooling)
    class_name = linear_classifier(model) if exported.is_sequence_classifier(model.head) else None
    is_whole = class_name is not None and pooling == {"name": "pooler"}
    head = {
        "class": class_name if is_whole else model.core.architecture.encoder_class,
        "is_whole": is_whole,
        "name": model.head.head_name,
        "pooling": pooling,
        "pooler": model.core.has_pooler,
        **exported.settings(model.head),
    }
    if is_whole and exported.is_folded:
        head["scaler"] = None  # the classifier's logits are the values already
    return MemberExport(model, exported, str(head["class"]), is_whole, head)


def linear_classifier(model: BertWithHead) -> str | None:
    """Return transformers' classifier of one linear layer on the pooler; None where its classifier has more layers."""
    architecture = model.core.architecture
    name = architecture.head_of(HeadKind.SEQUENCE)
    head = None if name is None else architecture.heads[name]
    is_linear = head is not None and head.has_pooler and head.prefixes == (f"{head.labels}.",)
    return name if is_linear else None


def write_member(output: OutputDirectory, member: MemberExport, folder: str) -> dict[str, Any]:
    """Write the model under `folder` ("" for the output itself) but for config.json, which is returned."""
    model = member.model
    tensors = list(_classifier_tensors(member)) if member.is_whole else planned_tensors(model.core)
    shards = plan_shards(tensors)
    for name, shard in shards.items():
        output.write_safetensors(folder + name, shard, metadata=PYTORCH_METADATA)
    if len(shards) > 1:
        output.write_json(f"{folder}model.safetensors.index.json", shard_index(shards))
    if not member.is_whole:
        rest = member.exported.tensors(model.head) + planned_tensors(model.pooling, "pooling.")
        computed = member.exported.computed(model.head)
        output.write_safetensors(f"{folder}head.safetensors", [*rest, *computed], metadata=PYTORCH_METADATA)
    output.write_json(f"{folder}head.json", member.head)
    assert model.source is not None  # it was loaded
    for file in model.source.iterdir():
        if file.is_file() and (file.name in TOKENIZER_FILES or is_license_file(file.name)):
            output.copy(folder + file.name, file)
    return exported_config(member, {tensor.dtype for tensor in tensors})


def _classifier_tensors(member: MemberExport) -> Iterator[PlannedTensor]:
    """Yield the encoder's tensors below its prefix, and the linear layer."""
    yield from planned_tensors(member.model.core, member.model.core.architecture.prefix)
    yield from classifier_layer(member)


def classifier_layer(member: MemberExport) -> Iterator[PlannedTensor]:
    """Yield the tensors of the linear layer of a class of transformers, under the names that it gives them."""
    layer = member.model.core.architecture.heads[member.class_name].labels
    if member.exported.is_folded:
        for name, array in folded_linear(member.model.head).items():
            yield planned_array(f"{layer}.{name}", array)
        return
    for tensor in planned_tensors(member.model.head):
        yield PlannedTensor(tensor.name.replace("output", str(layer), 1), tensor.shape, tensor.dtype, tensor.read)


def exported_config(member: MemberExport, dtypes: set[str]) -> dict[str, Any]:
    """Return `config.json`: the encoder's, with the class and dtype that the files have, and its labels."""
    model = member.model
    head: Any = model.head
    assert model.source is not None
    config = {key: value for key, value in read_config(model.source).items() if key != "mlxbert"}
    config["architectures"] = [member.class_name]
    dtype = stored_dtype(model.core) if len(dtypes) == 1 else "float32"  # of a mixture the one that holds every value
    config |= {"dtype": dtype, **({"torch_dtype": dtype} if "torch_dtype" in config else {})}
    if not member.is_whole:
        return config
    labels = member.exported.labels(head)
    config["id2label"] = {str(i): label for i, label in enumerate(labels)}
    config["label2id"] = {label: i for i, label in enumerate(labels)}
    config.pop("num_labels", None)  # id2label says it
    config["problem_type"] = member.exported.problem_type
    config["classifier_dropout"] = head.dropout
    return config
