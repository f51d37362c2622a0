"""One trained model as PyTorch: a class of transformers where one computes the same, else its encoder and its head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from converter.export.checkpoint import PYTORCH_METADATA
from converter.export.head_settings import ExportedHead, exported_head, folded_linear, planned_array
from mlxbert.checkpoint import is_license_file, read_config
from mlxbert.files.output_directory import OutputDirectory
from mlxbert.files.safetensors import PlannedTensor, plan_shards, shard_index
from mlxbert.model_tensors import planned_tensors, stored_dtype
from mlxbert.pooling import pooling_settings
from mlxbert.with_head import TOKENIZER_FILES, BertWithHead

SEQUENCE, ENCODER = "BertForSequenceClassification", "BertModel"
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


@dataclass(frozen=True)
class MemberExport:
    """A trained model, ready to be written.

    Attributes:
        model: the model.
        exported: what is written of its head.
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


def read_member(directory: Path) -> MemberExport:
    """Return the model in a directory that `BertWithHead.save` wrote.

    Raises:
        CheckpointError: it is damaged, or quantized.
        ExportError: inference.py does not know its head.
    """
    stored = str(read_config(directory).get("dtype"))
    model = BertWithHead.load(directory, dtype=DTYPES.get(stored))  # in its own dtype, not the one that a CPU computes
    exported = exported_head(model.head, directory)
    pooling = pooling_settings(model.pooling)
    is_whole = pooling == {"name": "pooler"} and exported.is_sequence_classifier(model.head)
    head = {
        "class": SEQUENCE if is_whole else ENCODER,
        "is_whole": is_whole,
        "name": model.head.head_name,
        "pooling": pooling,
        "pooler": "pooler" in model.core,
        **exported.settings(model.head),
    }
    if is_whole and exported.is_folded:
        head["scaler"] = None  # the classifier's logits are the values already
    return MemberExport(model, exported, str(head["class"]), is_whole, head)


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
    return _config(member, {tensor.dtype for tensor in tensors})


def _classifier_tensors(member: MemberExport) -> Iterator[PlannedTensor]:
    """Yield the encoder's tensors below its prefix, and the linear layer."""
    yield from planned_tensors(member.model.core, "bert.")
    if member.exported.is_folded:
        for name, array in folded_linear(member.model.head).items():
            yield planned_array(f"classifier.{name}", array)
        return
    for tensor in planned_tensors(member.model.head):
        yield PlannedTensor(tensor.name.replace("output.", "classifier."), tensor.shape, tensor.dtype, tensor.read)


def _config(member: MemberExport, dtypes: set[str]) -> dict[str, Any]:
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
