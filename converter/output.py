"""Make `config.json` say how many labels a classifier has: its rows tell, the configuration may be wrong or silent.

transformers takes the length of `id2label`, else `num_labels`, else 2, and refuses a head of another size; so would
`mlxbert.load_with_head`.

Where a converted directory keeps the head of its source: beside the encoder's files, or in them.

`encoder`, the default: `model.safetensors` holds the encoder alone, which every package loads as one; the head lies in
`heads.safetensors`. `full`: names and class are those of the transformers class with the head, so that packages for
rerankers and taggers load it: transformers' `AutoModelFor…`, mlx-vlm's `load_reranker` and `load_token_classifier`,
Swift's MLXEmbedders. A package that wants an encoder then mostly refuses; `converter/loaders.py` says which.

The `config.json` of a conversion, and what its user should know: both follow from the source and the plan.

What a conversion writes beside the weights, and the look at the whole before it is put in place.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.card.facts import TOKENIZER_FILES
from converter.card.source_card import SourceCard
from converter.mapping import Plan, Planned
from converter.readers.safetensors import TensorEntry
from converter.readers.source_files import SourceError, read_json, read_json_object
from converter.readers.weight_files import SourceModule, read_weights
from converter.source import Source
from mlxbert.checkpoint import load_core, load_tokenizer
from mlxbert.encode.encoder import SentenceEncoder
from mlxbert.encode.modules import UnsupportedModuleError
from mlxbert.encode.sentence_modules import MODULES, both_spellings, read_sentence_plan
from mlxbert.errors import MLXBertError, printable
from mlxbert.files.output_directory import OutputDirectory
from mlxbert.files.safetensors import NUMPY_DTYPES, PlannedTensor, safetensors_bytes
from mlxbert.models.base import POOLER, HeadKind, architecture
from mlxbert.pretrained.labels import PROBLEM_TYPES, Labels, choose_head_class, original_architectures


def with_true_labels(source: Source) -> Source:
    """Return the source with labels in its configuration that fit its classifier, and a note where they did not.

    Without a classifier, labels that cannot be read are left out: they must not stop the encoder.
    """
    config = dict(source.config)
    notes = []
    problem = config.get("problem_type")
    if problem is not None and problem not in PROBLEM_TYPES:
        del config["problem_type"]
        notes.append(
            f"problem_type {printable(repr(problem), 60)} is not known to transformers: left out of config.json"
        )
    classifier = _classifier(source)
    rows = None if classifier is None else source.entries[classifier].shape[0]
    names = config.get("id2label")
    if rows is None:
        if names is not None and _by_index(names, None) is None:
            for field in ("id2label", "label2id"):
                config.pop(field, None)
            notes.append(
                "id2label does not name outputs 0, 1, 2, …, and there is no classifier: left out of config.json"
            )
        return replace(source, config=config, notes=(*source.notes, *notes)) if notes else source
    if _by_index(names, rows) is None and (names is not None or _count(config) != rows):
        labels, why = _fitted(names, config, rows, f"{classifier} has {rows} row{'s' if rows > 1 else ''}")
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
        config["label2id"] = {label: i for i, label in enumerate(labels)}
        config.pop("num_labels", None)  # id2label says it
        notes.append(why)
    return replace(source, config=config, notes=(*source.notes, *notes)) if notes else source


def _classifier(source: Source) -> str | None:
    """Return the name of the classifier's weight, whose rows are the labels; None: there is no whole one."""
    heads = architecture(source.config.get("model_type")).heads
    classes = [heads[name] for name in original_architectures(source.config) if name in heads]
    if any(head.kind is HeadKind.CHOICE for head in classes):  # one score for each choice
        return None
    for path in dict.fromkeys(head.labels for head in heads.values() if head.labels is not None):
        weight, bias = source.entries.get(f"{path}.weight"), source.entries.get(f"{path}.bias")
        if weight is not None and bias is not None:
            whole = len(weight.shape) == 2 and bias.shape == weight.shape[:1] and weight.shape[0] > 0
            return f"{path}.weight" if whole else None
    return None


def _count(config: Mapping[str, Any]) -> int:
    """How many labels transformers reads out of a configuration without `id2label`."""
    count = config.get("num_labels", 2)
    return count if type(count) is int else 0


def _by_index(names: Any, rows: int | None) -> dict[int, str] | None:
    """`id2label` where it names the outputs 0, 1, 2, … (`rows` of them, where that is known); else None."""
    if not isinstance(names, Mapping):
        return None
    try:
        found = {int(index): name for index, name in names.items()}
    except (TypeError, ValueError):
        return None
    texts = all(isinstance(name, str) for name in found.values())
    right = set(found) == set(range(len(names) if rows is None else rows))
    return found if texts and right and len(found) == len(names) and found else None


def _fitted(names: Any, config: Mapping[str, Any], rows: int, has: str) -> tuple[list[str], str]:
    """Return a name for each row, and what the user is told; `has` says how many rows there are."""
    generic = [f"LABEL_{i}" for i in range(rows)]
    called = f"labels are LABEL_0 to LABEL_{rows - 1}" if rows > 1 else "its label is LABEL_0"
    if not isinstance(names, Mapping):
        given = "no number of labels (2 is then meant)"
        if "num_labels" in config:
            given = f"num_labels {printable(repr(config['num_labels']), 60)}"
        elif names is not None:
            given = "nothing that can be read of its labels (id2label is no object)"
        return generic, f"config.json says {given}, and {has}: {called}"
    known = {str(index): str(name) for index, name in names.items() if type(name) in (str, int, float)}
    fits = set(known) <= {str(i) for i in range(rows)} and str(rows - 1) in known
    if len(names) != rows and not fits:
        return generic, (
            f"config.json names {len(names)} label{'s' if len(names) != 1 else ''}, and {has}: which is which is not "
            f"known, so {called}; fix: put the right id2label into the source's config.json, and convert again"
        )
    labels = [known.get(str(i), label) for i, label in enumerate(generic)]
    labels = labels if len(set(labels)) == rows else generic
    keys, shown = printable(", ".join(map(str, names)), 80), printable(", ".join(labels), 160)
    return (
        labels,
        f"id2label does not name each output once by a text (its keys: {keys}), and {has}: labels are {shown}",
    )


ENCODER, FULL = LAYOUTS = ("encoder", "full")


class LayoutError(MLXBertError):
    """A source that cannot be written in the layout that was asked for."""


@dataclass(frozen=True)
class Layout:
    """How the tensors of a directory are named and distributed.

    Attributes:
        architecture: class that `config.json` names; None: the encoder's.
        prefix: what the encoder's names begin with in that class.
        labels: whether the class has labels.
    """

    architecture: str | None = None
    prefix: str = ""
    labels: bool = False

    @property
    def is_full(self) -> bool:
        """Whether the head lies in `model.safetensors`."""
        return self.architecture is not None

    def weights(
        self, encoder: Iterable[PlannedTensor], heads: Sequence[PlannedTensor]
    ) -> tuple[list[PlannedTensor], list[PlannedTensor]]:
        """Return what goes into `model.safetensors`, and what into `heads.safetensors`."""
        if not self.is_full:
            return list(encoder), list(heads)
        return [*(replace(tensor, name=self.prefix + tensor.name) for tensor in encoder), *heads], []

    def other_bytes(self, encoder: Sequence[Planned], heads: Sequence[PlannedTensor]) -> int:
        """Return the bytes that this layout adds to the encoder's tensors and their header, at most."""
        longer = 3 * len(self.prefix) * len(encoder) if self.is_full else 0  # a packed matrix has three names
        return longer + (safetensors_bytes(heads) if heads else 0)

    def config(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return a conversion's `config.json` with what this layout changes."""
        if not self.is_full:
            return config
        config = {**config, "architectures": [self.architecture], "mlxbert": {**config["mlxbert"], "layout": FULL}}
        if self.labels:
            # transformers leaves out what it would assume, two labels; the other packages then assume one.
            names = Labels.from_hf(config).id2label
            config.setdefault("id2label", {str(index): name for index, name in names.items()})
            config.setdefault("label2id", {name: index for index, name in names.items()})
        return config


def choose_layout(source: Source, name: str) -> Layout:
    """Return the layout `name` for this source.

    Raises:
        LayoutError: there is no such layout, or a full one has no whole head of a transformers class.
        HeadClassError: nor does it tell which class its head is of.
    """
    if name not in LAYOUTS:
        raise LayoutError(f"layout {name!r} is unknown; fix: one of {', '.join(LAYOUTS)}")
    if name == ENCODER:
        return Layout()
    declared = architecture(source.config.get("model_type"))
    if source.own_head:
        raise LayoutError(
            f"{source.location}: its head was trained by mlxbert, which no class of transformers has; fix: "
            f"mlxbert-export {source.location} -o OUT, and if that writes a {declared.head_of(HeadKind.SEQUENCE)}, "
            "mlxbert-convert OUT --layout full"
        )
    heads = [key for key in source.entries if declared.is_head_tensor(key)]
    if not heads:
        raise LayoutError(
            f"{source.location}: no head is read from it, so it has no full layout; fix: leave --layout full out"
        )
    has_pooler = any(key.removeprefix(declared.prefix).startswith(POOLER) for key in source.entries)
    choice = choose_head_class(source.config, heads, has_pooler=has_pooler, place=source.location)
    return Layout(choice.name, declared.prefix, declared.heads[choice.name].labels is not None)


if TYPE_CHECKING:
    from converter.quantize.pipeline import Quantized

FORMAT_VERSION = 1


def output_config(
    source: Source, planned: Plan, dtype: str, card: SourceCard, quantized: Quantized | None
) -> dict[str, Any]:
    """The source's `config.json`, its keys kept, with `dtype` and `architectures` made true."""
    declared = architecture(source.config.get("model_type"))
    config = {**source.config, "architectures": [declared.encoder_class], "dtype": dtype}
    if "torch_dtype" in config:  # what transformers < 4.56 reads
        config["torch_dtype"] = dtype
    config = without_places(config)
    # Our own output as SRC, to change its dtype: its class is the encoder's now, and the first one is in its block.
    earlier = source.config.get("mlxbert")
    classes = (earlier if isinstance(earlier, dict) else {}).get("original_architectures")
    came_from = {"source": source.name, "revision": source.revision}
    if isinstance(earlier, dict) and source.revision is None and earlier.get("source") and "head" not in earlier:
        # Converted once more, it still is what the first conversion's source is, as a comparison has yet to show
        # (`converter.publishing.evidence`). What was trained here is not.
        came_from = {"source": earlier["source"], "revision": earlier.get("revision")}
    config["mlxbert"] = {
        "format_version": FORMAT_VERSION,
        "source": came_from["source"],
        "revision": came_from["revision"],
        "converter_version": converter_version(),
        "original_architectures": classes or source.config.get("architectures"),
        "dropped": planned.dropped,
        "source_card": card.as_block(),
    }
    # "layout" and "quantization" of an earlier conversion are not of this one.
    if isinstance(earlier, dict):  # a comparison with the first source has to leave out the same
        config["mlxbert"] |= {key: earlier[key] for key in ("prefix", "encoder_only") if key in earlier}
    config["mlxbert"] |= source.choices
    if isinstance(earlier, dict) and source.own_head:
        config["mlxbert"] |= {key: earlier[key] for key in ("head", "trained") if key in earlier}
    if quantized is not None:
        config["quantization"] = quantized.config.to_mlx(declared)
        config["quantization_config"] = quantized.config.to_mlx(declared)
        config["mlxbert"]["quantization"] = dict(quantized.facts)
    return config


def without_places(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a source's JSON file, paths of the machine that wrote it cut to their last part.

    A path tells who trained the model, and where; transformers leaves some in `config.json` ("_name_or_path") and in
    `tokenizer_config.json` ("name_or_path", "special_tokens_map_file", "tokenizer_file").
    """
    return {name: _last_part(value) if _is_place(name, value) else value for name, value in values.items()}


def _is_place(name: str, value: object) -> bool:
    named = name.endswith(("name_or_path", "_file"))
    return named and isinstance(value, str) and re.match(r"/|~|\.\.|file:|[A-Za-z]:|.*\\", value) is not None


def _last_part(path: str) -> str:
    return PurePath(path.replace("\\", "/")).name


def notes_on(source: Source, planned: Plan, dtype: str) -> list[str]:
    """One line for each thing that the user should know."""
    notes = []
    kinds = Counter(source.entries[item.source].dtype for item in planned.encoder)
    if "F64" in kinds and dtype == "float32":
        notes.append(f"{kinds['F64']} float64 tensors become float32: MLX has no float64 on a GPU")
    elif len(kinds) > 1:
        notes.append(f"the source mixes {', '.join(sorted(kinds))}: all become {dtype}")
    if not any(item.target.startswith(POOLER) for item in planned.encoder):
        notes.append("the source has no pooler, so neither has the output")
    if not any(name in source.side_files for name in TOKENIZER_FILES):
        notes.append(
            "the source has no tokenizer (tokenizer.json or vocab.txt): copy one into the output to encode text"
        )
    return notes


def converter_version() -> str:
    """The installed version of mlxbert."""
    try:
        return version("mlxbert")
    except PackageNotFoundError:
        return "0+uninstalled"


_TRANSFORMER = "sentence_transformers.models.Transformer"
_MODULE_WEIGHTS = re.compile(r"[^/]+/(model\.safetensors|pytorch_model\.bin)")


class StagedModelError(MLXBertError):
    """What was converted could not be loaded by its user, so it was not put in place."""


def write_side_files(output: OutputDirectory, source: Source, hidden_size: int) -> None:
    """Write the tokenizer's and sentence-transformers' files, changed only where they would be wrong in the output.

    `modules.json` names the folders that the output has; a Pooling module is spelled for old and new releases; weights
    of modules become safetensors; paths of the machine that wrote the tokenizer's configuration are cut.

    Raises:
        SourceError, SentenceModuleError, WriteError: a file is damaged, or cannot be written.
    """
    poolings = {module.folder: module for module in source.modules if module.entry.kind == "Pooling"}
    for name, file in source.side_files.items():
        folder, _, last = name.rpartition("/")
        changed: Any = None
        if _MODULE_WEIGHTS.fullmatch(name):
            _write_module_weights(output, name, file)
            continue
        if name == MODULES:
            changed = _moved_modules(file, source.modules)
        elif folder in poolings and last == "config.json":
            changed = _respelled_pooling(file, hidden_size)
        elif name == "tokenizer_config.json":
            changed = _without_places(file)
        if changed is None:
            output.copy(name, file)
        else:
            output.write_json(name, changed)


def check_staged(directory: Path, config: Mapping[str, Any], source: Source) -> None:
    """Load what was written as its user will, weights aside: headers, tokenizer and sentence-transformers' files.

    A module that is not computed here is no fault of the files, and is told elsewhere (the card shows what runs).

    Args:
        directory: the whole output but for its `config.json`.
        config: what that file will hold.
        source: where it came from, for messages.

    Raises:
        StagedModelError: something cannot be loaded.
    """
    core = load_core(directory, config=dict(config), lazy=True)
    try:
        part = "tokenizer.json and vocab.txt"
        there = any((directory / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
        tokenizer = load_tokenizer(directory, core.config) if there else None
        part = MODULES
        plan = read_sentence_plan(directory, config)
        if plan is not None and tokenizer is not None:
            SentenceEncoder(core, tokenizer, plan)
    except UnsupportedModuleError:
        return
    except MLXBertError as error:
        message = str(error).replace(str(directory), str(source.directory))
        raise StagedModelError(
            f"{message}; nothing was written; without {part}, {source.name} converts to an encoder alone"
        ) from error


def _moved_modules(file: Path, modules: tuple[SourceModule, ...]) -> list[dict[str, Any]] | None:
    """`modules.json` with the output's folders; None where they are the source's."""
    if all(module.entry.folder == module.folder for module in modules):
        return None
    entries = [dict(entry) for entry in read_json(file)]
    for entry, module in zip(entries, modules, strict=True):
        entry["path"] = module.folder
        if not module.folder:
            entry["type"] = _TRANSFORMER
    return entries


def _respelled_pooling(file: Path, hidden_size: int) -> dict[str, Any] | None:
    try:
        return both_spellings(read_json_object(file), file.parent, hidden_size)
    except UnsupportedModuleError:  # said of the whole output, by `check_staged`
        return None


def _without_places(file: Path) -> dict[str, Any] | None:
    """The tokenizer's configuration without paths of the machine that wrote it; None: there are none in it."""
    try:
        values = read_json_object(file)
    except SourceError:  # the tokenizer's own reader says so, in `check_staged`
        return None
    cleaned = without_places(values)
    return None if cleaned == values else cleaned


def _write_module_weights(output: OutputDirectory, name: str, file: Path) -> None:
    """Copy a module's safetensors; pickles, and float64, which MLX does not read, are written as safetensors anew."""
    entries = read_weights(file).entries
    if file.suffix == ".safetensors" and all(entry.dtype != "F64" for entry in entries.values()):
        output.copy(name, file)
        return
    target = str(PurePosixPath(name).with_name("model.safetensors"))
    output.write_safetensors(target, [_planned(key, entry) for key, entry in entries.items()])


def _planned(name: str, entry: TensorEntry) -> PlannedTensor:
    dtype = "F32" if entry.dtype == "F64" else entry.dtype
    return PlannedTensor(
        name, entry.shape, dtype, lambda: np.asarray(entry.read()).astype(NUMPY_DTYPES[dtype], copy=False)
    )
