"""Write the adapters of a trained model in PEFT's format, for `peft.PeftModel.from_pretrained`.

The package peft is not needed. `config.json` beside the adapter is that of the adapted class of transformers: PEFT
does not read it, and `AutoConfig` gets the labels from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from converter.export.checkpoint import PYTORCH_METADATA, ExportError
from converter.export.member import MemberExport, classifier_layer, exported_config, read_member
from converter.export.run import Exported, read_run
from converter.peft.adapter import CONFIG, PREFIX, WEIGHTS
from mlxbert.adapters import LoRA, adapted
from mlxbert.adapters.files import is_adapter_directory
from mlxbert.checkpoint import read_config
from mlxbert.files.output_directory import OutputDirectory
from mlxbert.files.reading import expand_home, require_own_files
from mlxbert.files.safetensors import PlannedTensor
from mlxbert.model_arrays import planned_tensors, read_array
from mlxbert.runs.record import INFO


def export_adapter(
    source: str | Path, out: str | Path, *, base: str | Path | None = None, overwrite: bool = False
) -> Exported:
    """Write the adapters of a trained model in PEFT's format.

    A head that is one linear layer on the pooler, as transformers' classifier has it, is written with them
    (`modules_to_save`). Any other is written to `head.safetensors`, which PEFT does not read.

    Args:
        source: a trained model with adapters of its own, or a finished run of one such model.
        out: the directory to write.
        base: the base of the adapters, a directory or an id on the Hub; None: the recorded place.
        overwrite: replace an exported one that is there already.

    Raises:
        ExportError: it is none of these, or its adapters were merged into its weights.
        MLXBertError: it is damaged, or `out` cannot be written; nothing was written, nothing lost.
    """
    source, out = expand_home(source), expand_home(out)
    directory = _only_member(source)
    if not directory.is_dir():
        raise ExportError(f"{directory}: no such directory; fix: give a trained model, such as RUN/members/NAME")
    require_own_files(directory, ExportError)
    if not is_adapter_directory(directory):
        raise ExportError(
            f"{directory}: has no adapters of its own (if it was trained with --lora, they were merged into its "
            "weights); fix: mlxbert-export without --peft, or train with --lora …,merge=no"
        )
    member = read_member(directory, base=base, merge=False)
    with OutputDirectory(out, overwrite=overwrite, source=source) as output:
        output.write_safetensors(WEIGHTS[0], _tensors(member), metadata=PYTORCH_METADATA)
        output.write_json(CONFIG, _adapter_config(member, directory))
        if not member.is_whole:
            rest = member.exported.tensors(member.model.head) + planned_tensors(member.model.pooling, "pooling.")
            computed = member.exported.computed(member.model.head)
            output.write_safetensors("head.safetensors", [*rest, *computed], metadata=PYTORCH_METADATA)
            output.write_json("head.json", member.head)
        path = output.commit(exported_config(member, {"F32"}))
    return Exported(path, _what(member), _use(path, member, directory))


def _only_member(source: Path) -> Path:
    """Return the directory of a model; of a run, that of its only one."""
    if not (source / INFO).exists():
        return source
    members = list(read_run(source).members.values())
    if len(members) > 1:
        raise ExportError(
            f"{source}: has {len(members)} models, and an adapter belongs to one; fix: one of them, such as "
            f"{members[0]}"
        )
    return members[0]


def _settings(member: MemberExport) -> LoRA:
    settings = member.model.core.lora
    assert settings is not None  # `export_adapter` has refused a model without adapters
    return settings


def _prefix(member: MemberExport) -> str:
    """Return what the encoder's names begin with in the adapted class."""
    declared = member.model.core.architecture
    return "" if member.class_name == declared.encoder_class else declared.prefix


def _tensors(member: MemberExport) -> Iterator[PlannedTensor]:
    """Yield the tensors of the adapters, and of the classifier if the class has it, under PEFT's names."""
    for path, layer in adapted(member.model.core).items():
        begin = f"{PREFIX}{_prefix(member)}{path}"
        yield _planned(f"{begin}.lora_A.weight", layer.lora_a)
        yield _planned(f"{begin}.lora_B.weight", layer.lora_b)
        if layer.dora:
            yield _planned(f"{begin}.lora_magnitude_vector", layer.magnitude)
    if member.is_whole:
        for tensor in classifier_layer(member):
            yield PlannedTensor(PREFIX + tensor.name, tensor.shape, tensor.dtype, tensor.read)


def _planned(name: str, array: mx.array) -> PlannedTensor:
    return PlannedTensor(name, tuple(array.shape), "F32", partial(read_array, array.astype(mx.float32)))


def _adapter_config(member: MemberExport, directory: Path) -> dict[str, Any]:
    """Return `adapter_config.json`; fields that are left out have PEFT's defaults, which change nothing."""
    core, settings = member.model.core, _settings(member)
    alpha = settings.scale * settings.rank
    base, revision = _hub_base(directory)
    labels = core.architecture.heads[member.class_name].labels if member.is_whole else None
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if member.is_whole else "FEATURE_EXTRACTION",
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
        "r": settings.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": settings.dropout,
        # Whole paths: a short name may also fit a layer of the head.
        "target_modules": [f"{_prefix(member)}{path}" for path in adapted(core)],
        "modules_to_save": None if labels is None else [labels],
        "use_dora": settings.dora,
        "use_rslora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "rank_pattern": {},
        "alpha_pattern": {},
    }


def _hub_base(directory: Path) -> tuple[str | None, str | None]:
    """Return Hub id and commit of the base, if it came from the Hub."""
    block = read_config(directory).get("mlxbert", {})
    revision = block.get("revision")
    return (str(block["source"]), str(revision)) if revision and block.get("source") else (None, None)


def _what(member: MemberExport) -> str:
    settings = _settings(member)
    what = f"{'DoRA' if settings.dora else 'LoRA'} of rank {settings.rank} of a {member.class_name}, in PEFT's format"
    if member.is_whole:
        return f"{what}, with its classifier"
    return f"{what}; the head ({member.model.head.head_name}) is in head.safetensors, which PEFT does not read"


def _use(path: Path, member: MemberExport, directory: Path) -> tuple[str, ...]:
    base, _ = _hub_base(directory)
    auto = "AutoModelForSequenceClassification" if member.is_whole else "AutoModel"
    place = json.dumps(base or "BASE IN PYTORCH")
    config = f"config=transformers.AutoConfig.from_pretrained({json.dumps(str(path))})"
    lines = [] if base else ["BASE IN PYTORCH is what the base model was converted from, or mlxbert-export of it"]
    lines.append(f"model = transformers.{auto}.from_pretrained({place}, {config})")
    lines.append(f"peft.PeftModel.from_pretrained(model, {json.dumps(str(path))})")
    if member.model.core.packed is not None:
        lines.append("the adapter was trained on quantized weights: on the base in float32, numbers differ a little")
    return tuple(lines)
